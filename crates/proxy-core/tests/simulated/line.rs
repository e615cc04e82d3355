//! The line of one instance as a state machine, under random events and against its own forecasts.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proxy_core::ids::TenantName;
use proxy_core::line::lane::JobKind;
use proxy_core::line::scheduler::Fairness;
use proxy_core::line::{Admission, Line, Next, RecoveryState};
use proxy_core::place::{Class, Place};
use rate_control::entropy::Entropy;
use rate_control::time::{BootId, Mono};

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
    let boot = BootId("boot".to_owned());
    Line::new(instance, rules, fairness, RecoveryState::default(), &boot, at(0))
}

fn tenant() -> TenantName {
    TenantName::parse("default").unwrap()
}

#[derive(Debug, Clone)]
enum Event {
    Join { expedited: bool },
    Confirm(usize),
    LoseTheRace(usize),
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
        6 => any.clone().prop_map(Event::Confirm),
        1 => any.clone().prop_map(Event::LoseTheRace),
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
    unconfirmed: BTreeSet<Place>,
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

    /// Whether it is this one's turn within its class: it is confirmed, and nobody before it waits.
    fn is_first(&self, place: Place) -> bool {
        let first = |places: &BTreeSet<Place>| places.iter().find(|other| other.class == place.class).copied();
        first(&self.ready) == Some(place) && first(&self.unconfirmed).is_none_or(|unconfirmed| place < unconfirmed)
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
        let (mut now, mut joined) = (0u64, 0u32);
        for event in events {
            match event {
                Event::Join { expedited } => {
                    let class = if expedited { Class::Expedited } else { Class::First };
                    let waiting = seen.unconfirmed.len() + seen.ready.len() + seen.deferred.len();
                    joined += 1;
                    match line.reserve(&tenant(), id(&format!("device-{joined}")), class, at(now)) {
                        Ok(place) => prop_assert!(waiting < length_max && seen.unconfirmed.insert(place)),
                        Err(full) => prop_assert!(waiting >= length_max && full.length_max == length_max),
                    }
                }
                Event::Confirm(which) => if let Some(place) = pick(seen.unconfirmed.iter().copied(), which) {
                    line.confirm(&tenant(), place);
                    seen.unconfirmed.remove(&place);
                    seen.ready.insert(place);
                },
                Event::LoseTheRace(which) => if let Some(place) = pick(seen.unconfirmed.iter().copied(), which) {
                    prop_assert!(line.leave(&tenant(), place));
                    seen.unconfirmed.remove(&place);
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
            prop_assert_eq!(status.waiting, seen.unconfirmed.len() + seen.ready.len() + seen.deferred.len());
            prop_assert_eq!(status.under_way, seen.under_way.len());
            prop_assert!(status.budget <= quota);
        }
        let places: Vec<Place> = seen.unconfirmed.iter().chain(&seen.ready).chain(seen.deferred.keys()).copied().collect();
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
            let place = line.reserve(&tenant(), id(&format!("device-{number}")), Class::First, at(0)).unwrap();
            line.confirm(&tenant(), place);
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
fn a_place_is_given_back_by_the_line_that_gave_it_only_and_to_one_device_at_a_time() {
    let mut line = line(60, 1000, 100);
    let place = line.reserve(&tenant(), id("sn-1"), Class::First, at(0)).unwrap();
    line.confirm(&tenant(), place);
    assert!(!line.reserve_returning(&tenant(), place, id("sn-2"), seconds(0), at(1)), "somebody stands there");
    line.leave(&tenant(), place);
    assert!(line.reserve_returning(&tenant(), place, id("sn-1"), seconds(0), at(1)));
    let foreign = Place { sequence: 7, ..place };
    assert!(!line.reserve_returning(&tenant(), foreign, id("sn-3"), seconds(0), at(1)), "this line has not given it");
    // A line that is made anew is told which places devices elsewhere have in it, and gives them to no other.
    line.seen(foreign);
    let next = line.reserve(&tenant(), id("sn-4"), Class::First, at(1)).unwrap();
    assert!(next.sequence > foreign.sequence);
    assert!(line.reserve_returning(&tenant(), foreign, id("sn-3"), seconds(0), at(1)));
}
