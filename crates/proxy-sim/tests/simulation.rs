//! The simulation in the test run: first that it can be trusted, then that the core is sound, then that the judge has teeth.

use std::time::Duration;

use proxy_sim::{Mutant, Run, Storm};

/// Seeds of one test run; the command line runs thousands.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=40;

/// The same of orderly runs.
const ORDERLY_SEEDS: std::ops::RangeInclusive<u64> = 1..=8;

/// The same of runs in which reads of the store, or questions to the owner of the lines, take time.
const SLOW_SEEDS: std::ops::RangeInclusive<u64> = 1..=12;

/// Within so many seeds every mutant must be caught.
const SEEDS_FOR_A_MUTANT: std::ops::RangeInclusive<u64> = 1..=80;

#[test]
fn the_same_seed_gives_the_same_bytes_and_then_forty_seeds_are_good() {
    let slow = Run { slow_reads: true, machines: 3, ..Run::of(7) };
    let far = Run { slow_owner: true, ..Run::of(3) };
    for run in [Run::of(1), Run::of(7), Run::of(11), Run::orderly(1), slow, far] {
        if let Err(difference) = run.make_twice() {
            panic!("{difference}");
        }
    }
    let mut processes = 0;
    for seed in SEEDS {
        let report = Run::of(seed).make();
        assert!(report.violations.is_empty(), "{report}");
        processes += report.figures.processes;
    }
    assert!(processes > *SEEDS.end() as u32, "nobody was ever killed");
}

#[test]
fn orderly_runs_are_good() {
    for seed in ORDERLY_SEEDS {
        let report = Run::orderly(seed).make();
        assert!(report.violations.is_empty(), "{report}");
    }
}

#[test]
fn runs_are_good_where_reads_take_time_and_processes_take_turns_on_three_machines() {
    for seed in SLOW_SEEDS {
        for run in [Run::of(seed), Run::orderly(seed)] {
            let report = Run { slow_reads: true, machines: 3, ..run }.make();
            assert!(report.violations.is_empty(), "{report}");
        }
    }
}

#[test]
fn runs_are_good_where_the_owner_of_the_lines_is_far_away() {
    for seed in SLOW_SEEDS {
        for run in [Run::of(seed), Run::orderly(seed)] {
            let report = Run { slow_owner: true, ..run }.make();
            assert!(report.violations.is_empty(), "{report}");
        }
    }
}

/// The command line runs a million on ten instances.
#[test]
fn the_whole_gateway_drains_a_storm_in_two_requests_per_device_and_at_the_quota() {
    // A line of an hour: in a short one the spread of the last device's return, up to 5 s, weighs more than one part in a hundred.
    let boot = Duration::from_secs(60);
    let storm = Storm { devices: 4_000, instances: 1, quota_per_minute: 60, boot, kills: 0, seed: 1 };
    let report = storm.run();
    assert!(report.report.violations.is_empty(), "{report}");
    assert!(report.requests_per_device() <= 2.05, "{report}");
    assert!(report.finish_to_ideal() <= 1.01, "{report}");
    assert_eq!(report.report.figures.registers, 4_000, "{report}");
    assert_eq!(report.report.figures.throttled, 0, "{report}");
    assert_eq!(report.most_in_any_minute, 60, "{report}");
}

#[test]
fn two_seeds_are_two_runs() {
    assert_ne!(Run::of(1).make().digest(), Run::of(2).make().digest());
}

/// Runs seeds until the judge names an invariant that `mutant` breaks.
fn is_caught(mutant: Mutant) {
    for seed in SEEDS_FOR_A_MUTANT {
        let report = Run::breaking(mutant, seed).make();
        let named = |invariant| report.violations.iter().any(|violation| violation.invariant == invariant);
        if mutant.breaks().iter().any(|&invariant| named(invariant)) {
            let text = report.to_string();
            let again = [format!("--seed {seed}"), format!("--break {mutant}")];
            assert!(again.iter().all(|part| text.contains(part)), "no way to replay it: {text}");
            return;
        }
    }
    panic!("{mutant} was not caught within {SEEDS_FOR_A_MUTANT:?}");
}

/// In four tests, so that they run side by side.
fn are_caught(quarter: usize) {
    Mutant::all()
        .iter()
        .skip(quarter)
        .step_by(4)
        .filter(|mutant| mutant.exists() && mutant.rarity() == 1)
        .for_each(|mutant| is_caught(*mutant));
}

#[test]
fn every_mutant_is_caught_first_quarter() {
    are_caught(0);
}

#[test]
fn every_mutant_is_caught_second_quarter() {
    are_caught(1);
}

#[test]
fn every_mutant_is_caught_third_quarter() {
    are_caught(2);
}

#[test]
fn every_mutant_is_caught_last_quarter() {
    are_caught(3);
}
