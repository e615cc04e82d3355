//! The learner alone, call by call. Before a DPS that counts it is driven by the simulated tests.

use super::*;

fn at(millis: u64) -> Mono {
    Mono::from_nanos(millis * 1_000_000)
}

fn learner(quota: u32) -> Learner {
    Learner::new(Band { floor: quota / 10, quota, on: true }, None, at(0))
}

#[test]
fn a_refusal_that_shows_no_limit_is_forgotten_within_minutes() {
    let mut learner = learner(1000);
    assert!(learner.refused(at(0), at(1_000), at(0)).stepped);
    assert_eq!(learner.limit(), 200);
    for second in 0..200 {
        learner.observe(Some(at(second * 1000)), at(second * 1000));
    }
    assert_eq!(learner.limit(), 1000);
}

#[test]
fn what_hardly_began_to_be_counted_is_one_step_however_often_it_is_refused() {
    let mut learner = learner(1000);
    learner.accepted(at(0), at(100));
    assert!(learner.refused(at(100), at(1_200), at(200)).stepped);
    assert!(!learner.refused(at(1_200), at(2_300), at(1_300)).stepped);
    assert_eq!(learner.limit(), 200);
}

#[test]
fn who_hardly_began_and_is_refused_by_chance_waits_as_named_then_longer_but_no_whole_window() {
    let mut learner = learner(6000);
    learner.accepted(at(0), at(100));
    let mut sent = 100;
    for (wait, what) in [(2_000, "as named"), (4_000, "twice"), (8_000, "and again")] {
        let heard = at(sent + 100);
        let not_before = learner.refused(at(sent), heard.after(Duration::from_secs(2)), heard).not_before;
        assert_eq!(not_before.since(heard).as_millis(), wait, "{what}");
        sent += 100 + u64::try_from(wait).unwrap();
    }
    // One call taken, and it is as it was.
    learner.accepted(at(sent), at(sent + 100));
    let heard = at(sent + 300);
    let not_before = learner.refused(at(sent + 200), heard.after(Duration::from_secs(2)), heard).not_before;
    assert_eq!(not_before.since(heard).as_millis(), 2_000);
}

#[test]
fn refusals_by_chance_do_not_pause_the_line_a_window_each() {
    let mut learner = learner(1000);
    for sent in 0..1000 {
        learner.accepted(at(sent * 60), at(sent * 60 + 100));
    }
    let refuse = |learner: &mut Learner, sent: u64| {
        let heard = at(sent + 100);
        learner.refused(at(sent), heard.after(Duration::from_secs(2)), heard).not_before.since(heard)
    };
    assert_eq!(refuse(&mut learner, 60_000), Duration::from_secs(2));
    assert!(refuse(&mut learner, 62_200) > Duration::from_secs(50), "it may be a full window");
    // It was none: it goes on to take a few and to refuse the next one.
    for round in 0..20 {
        let sent = 130_000 + round * 5_000;
        learner.accepted(at(sent), at(sent + 100));
        assert_eq!(refuse(&mut learner, sent + 100), Duration::from_secs(2), "round {round}");
    }
}

#[test]
fn a_search_outlives_its_process() {
    let mut learner = learner(1000);
    learner.refused(at(0), at(1_000), at(0));
    let left = learner.learned().to_string();
    assert_eq!(left, "200..2000@1000");
    let mut next = Learner::new(Band { floor: 100, quota: 1000, on: true }, Some(left.parse().unwrap()), at(5_000));
    assert_eq!(next.limit(), 200);
    for second in 5..=66 {
        next.observe(Some(at(second * 1000)), at(second * 1000));
    }
    assert_eq!(next.limit(), 400);
    let of = |quota, left: &str| Learner::new(Band { floor: 1, quota, on: true }, left.parse().ok(), at(0));
    assert_eq!(of(1000, "200@1000").learned().to_string(), "200@1000");
    for (quota, left) in [(2000, "200@1000"), (1000, "200"), (1000, "@"), (1000, "..@1000")] {
        assert_eq!(of(quota, left).limit(), quota, "{left}");
    }
}

#[test]
fn refusals_while_nothing_is_accepted_show_no_limit_and_come_once_a_window() {
    for retry_after in [1_000, 5_000, 60_000, 120_000, 600_000] {
        let mut learner = learner(1000);
        for sent in 0..1000 {
            learner.accepted(at(sent * 60), at(sent * 60 + 100));
        }
        let (mut now, mut refusals) = (60_200, 0);
        while now < 60_000 * 30 {
            let heard = at(now + 100);
            let refused = learner.refused(at(now), at(now + 100 + retry_after), heard);
            now = u64::try_from(refused.not_before.since(at(0)).as_millis()).unwrap();
            assert!(now >= retry_after);
            refusals += 1;
        }
        // What it was refused on top of after a short wait.
        assert!(learner.limit() >= 880, "{} with Retry-After {retry_after} ms", learner.limit());
        assert!(refusals <= 31, "{refusals} with Retry-After {retry_after} ms");
    }
}

#[test]
fn what_an_old_exploration_found_does_not_outlast_the_quota_s_return() {
    let mut learner = learner(1000);
    let mut now = 0;
    for cycle in 0..4 {
        for _ in 0..200 {
            learner.accepted(at(now), at(now + 100));
            now += 60;
        }
        learner.refused(at(now), at(now + 1_000), at(now + 100));
        let (fell, believed_until) = (at(now + 100), learner.believed_until);
        assert!(believed_until.since(fell) <= BELIEVED.0, "cycle {cycle}: {:?}", believed_until.since(fell));
        while learner.limit() < 1000 || learner.state() == Learning::Probing {
            now += 500;
            learner.accepted(at(now), at(now + 100));
            learner.observe(Some(at(now + 500)), at(now));
        }
        now += 200_000;
    }
}

#[test]
fn a_trickle_that_is_refused_shows_no_limit_for_long() {
    let mut learner = learner(1000);
    for number in 0..4 {
        let now = number * 10_000;
        learner.accepted(at(now), at(now + 100));
        learner.refused(at(now + 1_000), at(now + 2_000), at(now + 1_100));
    }
    assert_eq!(learner.limit(), 100, "the floor");
    for second in 40..400 {
        learner.observe(Some(at(second * 1000)), at(second * 1000));
    }
    assert_eq!(learner.limit(), 1000);
}

#[test]
fn refusals_of_calls_that_were_out_are_one_step() {
    let mut learner = learner(100);
    for sent in 0..100 {
        learner.accepted(at(sent * 500), at(sent * 500 + 100));
    }
    assert!(learner.refused(at(50_000), at(52_000), at(50_300)).stepped);
    let limit = learner.limit();
    assert_eq!(limit, 98);
    for sent in [50_001, 50_100, 50_299] {
        assert!(!learner.refused(at(sent), at(52_000), at(50_400)).stepped);
    }
    assert_eq!(learner.limit(), limit);
}

#[test]
fn a_limit_that_does_not_hold_the_line_back_is_not_raised() {
    let mut learner = learner(100);
    learner.refused(at(0), at(1_000), at(0));
    let limit = learner.limit();
    for second in 0..7200 {
        // Somebody waits every other minute.
        assert!(!learner.observe((second / 60 % 2 == 0).then_some(at(second * 1000)), at(second * 1000)));
    }
    assert_eq!(learner.limit(), limit);
}

#[test]
fn the_band_is_never_left_and_a_new_quota_starts_anew() {
    let mut learner = Learner::new(Band { floor: 50, quota: 100, on: true }, Some("3@100".parse().unwrap()), at(0));
    assert_eq!((learner.limit(), learner.state()), (50, Learning::Believed));
    learner.configure(Band { floor: 20, quota: 60, on: true }, at(0));
    assert_eq!((learner.limit(), learner.state()), (60, Learning::Configured));
    for moment in 1..20 {
        learner.refused(at(moment * 1000), at(moment * 1000 + 1000), at(moment * 1000));
        assert!((20..=60).contains(&learner.limit()));
    }
    learner.configure(Band { floor: 20, quota: 60, on: false }, at(0));
    assert!(!learner.refused(at(90_000), at(90_000), at(90_000)).stepped);
    assert_eq!((learner.limit(), learner.state()), (60, Learning::Off));
}
