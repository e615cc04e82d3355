//! The limit alone, refusal by refusal. Before a DPS that counts it is driven by the simulated tests of `proxy-core`.

use proptest::prelude::*;

use super::*;

fn at(millis: u64) -> Mono {
    Mono::from_nanos(millis * 1_000_000)
}

fn band(quota: u32) -> Band {
    Band { floor: (quota / 10).max(1), quota, on: true }
}

fn limit(quota: u32) -> AdaptiveLimit {
    AdaptiveLimit::new(band(quota), None, at(0))
}

/// So many calls are accepted, evenly over the minute that ends at `end`.
fn accept(limit: &mut AdaptiveLimit, calls: u64, end: u64) {
    for call in 0..calls {
        let sent = end - 60_000 + call * 60_000 / calls + 1;
        limit.accepted(at(sent), at(sent));
    }
}

/// A call is sent and refused at this moment, with a wait of a second. Whether the limit came down.
fn refuse(limit: &mut AdaptiveLimit, now: u64) -> bool {
    limit.refused(at(now), at(now + 1_000), at(now))
}

#[test]
fn a_lone_refusal_in_a_minute_only_pauses_and_the_second_one_lowers() {
    let mut limit = limit(1000);
    accept(&mut limit, 600, 60_000);
    assert!(!refuse(&mut limit, 60_000));
    // The pause of a second does not count.
    assert!(!refuse(&mut limit, 121_000), "a minute later");
    assert_eq!((limit.limit(), limit.state()), (1000, LimitState::Quota));
    accept(&mut limit, 600, 181_000);
    assert!(refuse(&mut limit, 181_999), "within a minute");
    assert_eq!((limit.limit(), limit.state()), (590, LimitState::Held), "what was accepted within the minute");
    accept(&mut limit, 500, 242_000);
    assert!(!refuse(&mut limit, 242_000), "it takes two again");
}

#[test]
fn it_comes_down_by_half_at_most_and_never_below_the_floor() {
    let mut limit = limit(1000);
    let mut seen = Vec::new();
    for now in 100_000..100_010 {
        if refuse(&mut limit, now) {
            seen.push(limit.limit());
        }
    }
    assert_eq!(seen, [500, 250, 125, 100]);
}

#[test]
fn refusals_of_calls_that_had_left_before_a_step_are_none_of_the_new_limit() {
    let mut limit = limit(1000);
    let heard = at(100_000);
    let steps = (0..50).filter(|call| limit.refused(at(99_000 + call), at(160_000), heard)).count();
    assert_eq!((steps, limit.limit()), (1, 500));
}

#[test]
fn after_the_hold_it_grows_by_a_tenth_a_minute_until_it_is_the_quota() {
    let mut limit = limit(1000);
    accept(&mut limit, 90, 60_000);
    for now in 60_000..60_010 {
        refuse(&mut limit, now);
    }
    assert_eq!(limit.limit(), 100, "the floor");
    let mut seen = Vec::new();
    for minute in 0..30 {
        limit.grow(at(60_001 + minute * 60_000));
        seen.push(limit.limit());
    }
    let held = HOLD.as_secs() as usize / 60;
    assert!(seen[..held].iter().all(|limit| *limit == 100), "{seen:?}");
    assert_eq!(seen[held..held + 4], [110, 121, 134, 148], "{seen:?}");
    assert_eq!((seen.iter().position(|limit| *limit == 1000), limit.state()), (Some(held + 23), LimitState::Quota));
    // However long nobody asked.
    let mut asleep = limit;
    refuse(&mut asleep, 3_600_000);
    refuse(&mut asleep, 3_600_001);
    assert_eq!(asleep.limit(), 500);
    asleep.grow(at(3_600_001 + 30 * 60_000));
    assert_eq!((asleep.limit(), asleep.grows_at()), (1000, None));
}

#[test]
fn a_limit_that_grows_and_is_refused_is_held_again() {
    let mut limit = limit(1000);
    accept(&mut limit, 400, 60_000);
    refuse(&mut limit, 60_000);
    refuse(&mut limit, 60_001);
    let held_until = limit.grows_at().unwrap();
    assert_eq!(held_until, at(60_001).after(HOLD));
    let now = 60_001 + u64::try_from(HOLD.as_millis()).unwrap() + 90_000;
    limit.grow(at(now));
    assert_eq!(limit.state(), LimitState::Growing);
    accept(&mut limit, 400, now);
    refuse(&mut limit, now);
    assert!(refuse(&mut limit, now + 1));
    assert_eq!((limit.state(), limit.grows_at()), (LimitState::Held, Some(at(now + 1).after(HOLD))));
}

#[test]
fn what_is_left_to_the_next_process_goes_on_there_under_the_same_quota() {
    let mut limit = limit(1000);
    accept(&mut limit, 600, 60_000);
    refuse(&mut limit, 60_000);
    refuse(&mut limit, 60_000);
    let kept = limit.kept(at(100_000));
    assert_eq!(kept, Kept { limit: 600, quota: 1000, grows_in: HOLD - Duration::from_secs(40) });
    let next = AdaptiveLimit::new(band(1000), Some(kept), at(5_000));
    assert_eq!((next.limit(), next.grows_at()), (600, Some(at(5_000).after(kept.grows_in))));
    let off = Band { on: false, ..band(1000) };
    for (band, limit) in [(band(2000), 2000), (off, 1000)] {
        assert_eq!(AdaptiveLimit::new(band, Some(kept), at(0)).limit(), limit);
    }
    let below = Kept { limit: 3, ..kept };
    assert_eq!(AdaptiveLimit::new(band(1000), Some(below), at(0)).limit(), 100, "the floor was raised");
}

#[test]
fn a_changed_quota_begins_anew_and_switched_off_it_is_the_quota() {
    let mut limit = limit(1000);
    refuse(&mut limit, 60_000);
    refuse(&mut limit, 60_001);
    limit.configure(Band { floor: 600, ..band(1000) }, at(61_000));
    assert_eq!(limit.limit(), 600, "a floor that was raised");
    limit.configure(band(800), at(62_000));
    assert_eq!((limit.limit(), limit.state()), (800, LimitState::Quota));
    limit.configure(Band { on: false, ..band(800) }, at(63_000));
    for now in 64_000..64_100 {
        assert!(!refuse(&mut limit, now));
    }
    assert_eq!((limit.limit(), limit.floor(), limit.state()), (800, 800, LimitState::Off));
}

#[derive(Debug, Clone)]
enum Event {
    Pass(u64),
    Accepted(u64),
    /// Sent so long ago, with such a wait.
    Refused(u64, u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        (0..90_000_u64).prop_map(Event::Pass),
        (0..2_000_u64).prop_map(Event::Accepted),
        (0..2_000_u64, 0..120_000_u64).prop_map(|(ago, wait)| Event::Refused(ago, wait)),
    ];
    prop::collection::vec(event, 1..300)
}

proptest! {
    #[test]
    fn it_stays_in_its_band_and_comes_down_once_for_two_refusals(
        quota in 1_u32..5_000,
        floor_percent in 1_u32..=100,
        events in events(),
    ) {
        let band = Band { floor: (quota * floor_percent / 100).max(1), quota, on: true };
        let mut limit = AdaptiveLimit::new(band, None, at(0));
        let (mut now, mut refusals, mut steps) = (10_000, 0, 0);
        for event in events {
            let before = (limit.limit(), limit.state(), limit.grows_at());
            match event {
                Event::Pass(millis) => {
                    now += millis;
                    limit.grow(at(now));
                    prop_assert!(limit.limit() >= before.0);
                }
                Event::Accepted(ago) => {
                    limit.accepted(at(now - ago), at(now));
                    prop_assert_eq!(limit.limit(), before.0);
                }
                Event::Refused(ago, wait) => {
                    refusals += 1;
                    let stepped = limit.refused(at(now - ago), at(now + wait), at(now));
                    steps += u32::from(stepped);
                    prop_assert_eq!(stepped, limit.limit() < before.0);
                    prop_assert!(limit.limit() >= before.0 / 2, "by more than half");
                    if before.1 == LimitState::Held {
                        prop_assert_eq!(limit.grows_at(), before.2, "a refusal put off the growth");
                    }
                }
            }
            prop_assert!((band.floor..=quota).contains(&limit.limit()));
            prop_assert!(steps * 2 <= refusals, "{} steps for {} refusals", steps, refusals);
        }
        // Once the refusals are over: the hold, and from a tenth 24 minutes.
        if floor_percent >= 10 && band.floor * 10 >= quota {
            limit.grow(at(now + 30 * 60_000));
            prop_assert_eq!(limit.limit(), quota);
        }
    }
}
