//! The line of one instance as a state machine, under random events and against its own forecasts.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proxy_core::ids::TenantName;
use proxy_core::line::lane::JobKind;
use proxy_core::line::scheduler::Fairness;
use proxy_core::line::{Admission, Line, Next, RecoveryState};
use proxy_core::place::{Class, Place};
use rate_control::entropy::Entropy;
use rate_control::time::Mono;

use crate::support::{id, millis, name, seconds, settings};

fn at(millis: u64) -> Mono {
    Mono::from_nanos(millis * 1_000_000)
}

fn line(quota: u32, length_max: usize, in_flight_max: usize) -> Line {
    let mut settings = settings(&[("a", quota)]);
    settings.line.length_max = length_max;
    settings.registration.in_flight_max = in_flight_max;
    let instance = settings.instances.values().next().unwrap();
    let (rules, fairness) = ((&settings.line, &settings.registration), Fairness::of(&settings, &name("a")));
    Line::new(instance, rules, fairness, &RecoveryState::default(), at(0))
}

fn tenant() -> TenantName {
    TenantName::parse("default").unwrap()
}

#[derive(Debug, Clone)]
enum Event {
    Join { expedited: bool },
    Arrive(usize),
    LoseTheRace(usize),
    LeaveEarly(usize),
    Defer(usize, u64),
    Leave(usize),
    LeaveUnderWay(usize),
    Depart,
    Finish(usize),
    ComeBack(usize, u64),
    Throttled(u64),
    Fails,
    Works,
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let any = 0usize..1000;
    prop_oneof![
        6 => prop::bool::weighted(0.1).prop_map(|expedited| Event::Join { expedited }),
        6 => any.clone().prop_map(Event::Arrive),
        1 => any.clone().prop_map(Event::LoseTheRace),
        1 => any.clone().prop_map(Event::LeaveEarly),
        1 => (any.clone(), 0u64..30_000).prop_map(|(which, wait)| Event::Defer(which, wait)),
        1 => any.clone().prop_map(Event::Leave),
        1 => any.clone().prop_map(Event::LeaveUnderWay),
        8 => Just(Event::Depart),
        5 => any.clone().prop_map(Event::Finish),
        3 => (any, 0u64..10_000).prop_map(|(which, wait)| Event::ComeBack(which, wait)),
        1 => (0u64..10_000).prop_map(Event::Throttled),
        1 => Just(Event::Fails),
        2 => Just(Event::Works),
        6 => (0u64..5_000).prop_map(Event::Wait),
    ]
}

/// Where each place is, as an onlooker keeps count.
#[derive(Default)]
struct Onlooker {
    /// Being written.
    arriving: BTreeSet<Place>,
    /// Of these, the ones that do not arrive any more.
    left_early: BTreeSet<Place>,
    ready: BTreeSet<Place>,
    deferred: BTreeMap<Place, u64>,
    under_way: BTreeMap<Place, Option<rate_control::ledger::SlotId>>,
    /// Of those under way, the ones that do not come back.
    left: BTreeSet<Place>,
    throttled_until: u64,
}

impl Onlooker {
    /// Deferred places that are due go back to their lanes whenever the line is asked who goes next.
    fn recalling(&mut self, now: u64, next: impl FnOnce() -> Next) -> Next {
        let due: Vec<Place> =
            self.deferred.iter().filter(|&(_, &until)| until <= now).map(|(&place, _)| place).collect();
        for place in due {
            self.deferred.remove(&place);
            self.ready.insert(place);
        }
        next()
    }

    /// Whether it is this one's turn within its class: nobody before it waits.
    fn is_first(&self, place: Place) -> bool {
        self.ready.iter().find(|other| other.class == place.class) == Some(&place)
    }
}

fn pick<T: Copy>(items: impl Iterator<Item = T>, which: usize) -> Option<T> {
    let items: Vec<T> = items.collect();
    items.get(which % items.len().max(1)).copied()
}

/// DPS still worked on the first device when an earlier process ended, and now it has to be registered anew.
#[test]
fn a_device_under_way_at_a_crash_comes_back_as_old_as_it_is() {
    let mut line = line(60, 1000, 1000);
    let place = |class, sequence| Place { class, sequence };
    let first = place(Class::First, 0);
    line.adopt(&tenant(), first, id("first"), seconds(1500), at(0));
    line.restore(&tenant(), place(Class::First, 1), id("second"), JobKind::Register, seconds(1499), at(0));
    // Its class is behind the other by 600 s, and it joined 650 s after them.
    line.restore(&tenant(), place(Class::Reprovision, 0), id("third"), JobKind::Register, seconds(850), at(0));
    line.come_back(first, JobKind::Register, at(0), at(0));
    let told = |line: &Line, place| line.forecast(&tenant(), place, at(0)).unwrap().position;
    let positions = [first, place(Class::First, 1), place(Class::Reprovision, 0)].map(|place| told(&line, place));
    assert_eq!(positions, [1, 2, 3]);
    let order: Vec<String> = std::iter::from_fn(|| match line.next(at(0)) {
        Next::Depart(departure) => Some(departure.id.to_string()),
        Next::WaitUntil(_) | Next::Idle => None,
    })
    .collect();
    assert_eq!(order, ["first", "second", "third"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_place_is_in_one_set_and_departures_keep_the_order(
        quota in 1u32..80, length_max in 1usize..40, in_flight_max in 1usize..20,
        events in prop::collection::vec(event(), 1..400),
    ) {
        let mut line = line(quota, length_max, in_flight_max);
        let mut seen = Onlooker::default();
        let mut entropy = Entropy::from_seed(7);
        let (mut now, mut joined) = (0u64, 0u64);
        for event in events {
            match event {
                Event::Join { expedited } => {
                    let class = if expedited { Class::Expedited } else { Class::First };
                    let waiting = seen.arriving.len() + seen.ready.len() + seen.deferred.len();
                    joined += 1;
                    match line.hold_room(&tenant(), at(now)) {
                        Ok(()) => {
                            prop_assert!(waiting < length_max);
                            seen.arriving.insert(Place { class, sequence: joined });
                        }
                        Err(full) => prop_assert!(waiting >= length_max && full.length_max == length_max),
                    }
                }
                // In any order: of two commits the later one may be heard of first.
                Event::Arrive(which) => if let Some(place) = pick(seen.arriving.iter().copied(), which) {
                    line.arrive(&tenant(), place, id(&format!("device-{}", place.sequence)), seconds(0), at(now));
                    seen.arriving.remove(&place);
                    if !seen.left_early.remove(&place) {
                        seen.ready.insert(place);
                    }
                },
                Event::LoseTheRace(which) => {
                    let unwritten = seen.arriving.difference(&seen.left_early).copied();
                    if let Some(place) = pick(unwritten, which) {
                        line.release_room(&tenant());
                        seen.arriving.remove(&place);
                    }
                }
                Event::LeaveEarly(which) => if let Some(place) = pick(seen.arriving.iter().copied(), which) {
                    prop_assert!(!line.leave(&tenant(), place), "it does not wait yet");
                    seen.left_early.insert(place);
                },
                Event::Defer(which, wait) => if let Some(place) = pick(seen.ready.iter().copied(), which) {
                    line.defer(&tenant(), place, at(now + wait));
                    seen.ready.remove(&place);
                    seen.deferred.insert(place, now + wait);
                },
                Event::Leave(which) => if let Some(place) = pick(seen.ready.iter().chain(seen.deferred.keys()).copied(), which) {
                    prop_assert!(line.leave(&tenant(), place));
                    prop_assert!(!line.leave(&tenant(), place), "it left");
                    seen.ready.remove(&place);
                    seen.deferred.remove(&place);
                },
                Event::LeaveUnderWay(which) => if let Some(place) = pick(seen.under_way.keys().copied(), which) {
                    prop_assert!(!line.leave(&tenant(), place), "it does not wait");
                    seen.left.insert(place);
                },
                Event::Depart => match seen.recalling(now, || line.next(at(now))) {
                    Next::Depart(departure) => {
                        prop_assert!(seen.is_first(departure.place));
                        prop_assert!(now >= seen.throttled_until);
                        prop_assert!(seen.under_way.len() < in_flight_max);
                        seen.ready.remove(&departure.place);
                        seen.under_way.insert(departure.place, departure.slot);
                    }
                    Next::WaitUntil(moment) => prop_assert!(moment > at(now)),
                    Next::Idle => prop_assert!(seen.deferred.is_empty()),
                },
                Event::Finish(which) => if let Some(place) = pick(seen.under_way.keys().copied(), which) {
                    line.answered(place, seen.under_way.remove(&place).unwrap(), at(now.saturating_sub(100)), Admission::Admitted, at(now));
                    line.finish(place, true, at(now));
                },
                Event::ComeBack(which, wait) => if let Some(place) = pick(seen.under_way.keys().copied(), which) {
                    line.abandoned(place, seen.under_way.remove(&place).unwrap(), at(now));
                    line.come_back(place, JobKind::Lookup, at(now + wait), at(now));
                    if seen.left.contains(&place) {
                        prop_assert_eq!(line.forecast(&tenant(), place, at(now)), None, "it was left");
                    } else if wait == 0 {
                        seen.ready.insert(place);
                    } else {
                        seen.deferred.insert(place, now + wait);
                    }
                },
                Event::Throttled(wait) => {
                    line.throttled(Some(at(now)), at(now + wait), at(now));
                    seen.throttled_until = seen.throttled_until.max(now + wait);
                }
                Event::Fails => drop(line.instance_failed(at(now), &mut entropy)),
                Event::Works => drop(line.instance_works()),
                Event::Wait(wait) => now += wait,
            }
            let status = line.status(at(now));
            prop_assert_eq!(status.waiting, seen.ready.len() + seen.deferred.len());
            prop_assert_eq!(status.under_way, seen.under_way.len());
            prop_assert!(status.budget <= quota);
        }
        let places: Vec<Place> = seen.ready.iter().chain(seen.deferred.keys()).copied().collect();
        for place in places {
            prop_assert!(line.forecast(&tenant(), place, at(now)).is_some_and(|forecast| forecast.position > 0));
        }
        for &place in seen.under_way.keys() {
            prop_assert!(line.forecast(&tenant(), place, at(now)).is_some_and(|forecast| forecast.position == 0));
        }
    }

    /// What the last device in an undisturbed line is told when it joins is what then happens.
    #[test]
    fn the_forecast_of_an_undisturbed_line_comes_true(quota in 1u32..200, length in 1usize..400, latency in 0u64..300) {
        let mut line = line(quota, 1000, 1000);
        let mut told = BTreeMap::new();
        for number in 0..length {
            line.hold_room(&tenant(), at(0)).unwrap();
            let place = Place { class: Class::First, sequence: number as u64 };
            line.arrive(&tenant(), place, id(&format!("device-{number}")), seconds(0), at(0));
            told.insert(place, line.forecast(&tenant(), place, at(0)).unwrap());
        }
        let (mut now, mut answers) = (0u64, Vec::<(u64, Place, Option<rate_control::ledger::SlotId>)>::new());
        // Registering takes the 4 s that are expected of it.
        let typical = seconds(4);
        let mut departed = 0;
        while departed < length {
            answers.retain(|&(due, place, slot)| {
                if due <= now { line.answered(place, slot, at(due - latency), Admission::Admitted, at(due)); }
                due > now
            });
            match line.next(at(now)) {
                Next::Depart(departure) => {
                    let forecast = told[&departure.place];
                    departed += 1;
                    prop_assert_eq!(forecast.position, departed);
                    let done = at(now).after(typical);
                    // One window's worth of latency error for each window waited.
                    let slack = seconds(1) + millis(400) * u32::try_from(length / quota as usize + 1).unwrap();
                    prop_assert!(done <= forecast.appointment.after(slack), "place {}: {:?} after {:?}", departed, done, forecast.appointment);
                    // Up to 25 expedited devices that take a tenth may still come; they do not.
                    let reserve = (millis(60_000) * u32::try_from(((departed - 1) / 10).min(25)).unwrap() / quota).min(seconds(5));
                    prop_assert!(forecast.appointment <= done.after(slack + reserve), "place {}: {:?} before {:?}", departed, done, forecast.appointment);
                    answers.push((now + latency, departure.place, departure.slot));
                }
                Next::WaitUntil(moment) => {
                    let wake = moment.as_nanos().div_ceil(1_000_000);
                    now = answers.iter().map(|&(due, ..)| due).filter(|&due| due > now).min().unwrap_or(wake).min(wake);
                }
                Next::Idle => now = answers.iter().map(|&(due, ..)| due).filter(|&due| due > now).min().unwrap(),
            }
        }
    }
}

#[test]
fn a_place_is_given_back_to_one_device_at_a_time() {
    let mut line = line(60, 1000, 100);
    let place = Place { class: Class::First, sequence: 7 };
    line.hold_room(&tenant(), at(0)).unwrap();
    line.arrive(&tenant(), place, id("sn-1"), seconds(0), at(0));
    assert!(!line.is_free(&tenant(), place), "somebody stands there");
    line.leave(&tenant(), place);
    assert!(line.is_free(&tenant(), place));
    line.defer(&tenant(), place, at(5));
    assert!(line.is_free(&tenant(), place), "nobody is there to be put off");
    line.restore(&tenant(), place, id("sn-1"), JobKind::Register, seconds(3), at(1));
    line.defer(&tenant(), place, at(5000));
    assert!(!line.is_free(&tenant(), place));
    let Next::Depart(_) = line.next(at(5000)) else { panic!("it goes") };
    assert!(!line.is_free(&tenant(), place), "it may come back");
}
