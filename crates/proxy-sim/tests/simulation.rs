//! The simulation in the test run: first that it can be trusted, then that the core is sound, then that the judge has teeth.

use std::time::Duration;

use proxy_sim::{Mutant, Storm, meta, run};

/// Seeds of one test run; the command line runs thousands.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=40;

/// Within so many seeds every mutant must be caught.
const SEEDS_FOR_A_MUTANT: std::ops::RangeInclusive<u64> = 1..=12;

#[test]
fn the_same_seed_gives_the_same_bytes_and_then_forty_seeds_are_good() {
    for seed in [1, 7, 11] {
        if let Err(difference) = meta(seed) {
            panic!("{difference}");
        }
    }
    let mut processes = 0;
    for seed in SEEDS {
        let report = run(seed, None);
        assert!(report.violations.is_empty(), "{report}");
        processes += report.figures.processes;
    }
    assert!(processes > *SEEDS.end() as u32, "nobody was ever killed");
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
    assert_ne!(run(1, None).digest(), run(2, None).digest());
}

/// Runs seeds until the judge names an invariant that `mutant` breaks.
fn is_caught(mutant: Mutant) {
    for seed in SEEDS_FOR_A_MUTANT {
        let report = run(seed, Some(mutant));
        let named = |invariant| report.violations.iter().any(|violation| violation.invariant == invariant);
        if mutant.breaks().iter().any(|&invariant| named(invariant)) {
            let text = report.to_string();
            assert!(text.contains(&format!("--seed {seed} --break {mutant}")), "no way to replay it: {text}");
            return;
        }
        assert!(report.violations.is_empty(), "{mutant} is taken for something else: {report}");
    }
    panic!("{mutant} was not caught within {SEEDS_FOR_A_MUTANT:?}");
}

#[test]
fn a_limiter_that_is_off_by_one_is_caught() {
    is_caught(Mutant::OffByOne);
}

#[test]
fn a_forgotten_place_is_caught() {
    is_caught(Mutant::ForgetPlace);
}

#[test]
fn a_skipped_flush_is_caught() {
    is_caught(Mutant::SkipFlush);
}

#[test]
fn an_ignored_retry_after_is_caught() {
    is_caught(Mutant::IgnoreRetryAfter);
}

#[test]
fn a_call_that_leaves_twice_is_caught() {
    is_caught(Mutant::SendTwice);
}

#[test]
fn a_wrong_hub_is_caught() {
    is_caught(Mutant::WrongHub);
}
