//! Orderly runs: a fleet that comes back at once, and at most one thing that is in its way, so that it can be measured what the service is
//! good for: how fast a line goes, in which order, by whose share, and what devices are told.

use std::time::Duration;

use dps_emulator::{CallKind, ConcurrentRegistration, Fault, FaultAction, QuotaShape};
use proxy_core::ids::InstanceName;

use super::{Course, DevicePlan, InstancePlan, Manner, Occasion, Outage, Scenario, Weather};
use crate::dice::Dice;

/// Most devices of a run.
const DEVICES_MAX: u64 = 600;

/// What `seed` stands for. The courses take turns.
pub(super) fn draw(seed: u64) -> Scenario {
    let courses = [Course::Storm, Course::Outage, Course::Expedited, Course::Kills];
    let course = courses[usize::try_from(seed % 4).unwrap_or(0)];
    let mut dice = Dice::new(seed, "orderly", 0);
    let tenants = match course {
        Course::Storm => dice.index(3) + 1,
        Course::Kills | Course::Outage => dice.index(2) + 1,
        Course::Expedited | Course::Mishaps => 1,
    };
    let mut instances = draw_instances(&mut dice, course);
    if course == Course::Kills && (seed / 4).is_multiple_of(2) {
        instances[0].faults.push(throttles_now_and_then());
    }
    let trouble = Trouble::draw(seed, &mut dice);
    let devices = draw_devices(&mut dice, (course, trouble), &instances, tenants);
    let occasions = draw_occasions(&mut dice, course, devices.len(), trouble);
    let last = occasions.last().map_or(Duration::ZERO, |(at, _)| *at);
    Scenario {
        seed,
        course,
        tenants,
        strangers: 0,
        safety: last.max(Duration::from_secs(10)) + Duration::from_millis(1),
        sync_every: Duration::from_millis(dice.pick(&[0, 2, 15])),
        slow_reads: false,
        slow_acks: false,
        slow_owner: false,
        machines: 1,
        lookup_counts: true,
        lookup_spends: true,
        request_timeout: Duration::from_secs(10),
        upstream_max_delay: Duration::from_secs(5),
        throttle_wait_max: Duration::from_secs(60),
        assigning_max: Duration::from_secs(60),
        give_up: Duration::from_secs(60),
        backoff_max: Duration::from_secs(30),
        attempts_max: 10,
        cooldown: Duration::from_secs(60),
        refusal_ttl: Duration::from_secs(60),
        length_max: 1_000_000,
        in_flight_max: 10_000,
        connections_max: 256,
        parked_max: 1_000,
        timeline_max: 24,
        weights: (0..tenants).map(|_| dice.pick(&[1, 1, 2, 7])).collect(),
        urgent_share_percent: dice.pick(&[10, 20, 50]),
        class_handicap: Duration::from_secs(600),
        rebook_after: Duration::from_secs(dice.pick(&[1, 10, 30])),
        breaker_threshold: dice.count(2, 4),
        adaptive_limits: dice.chance(500),
        instances,
        devices,
        occasions,
    }
}

/// An outage, and who asks meanwhile.
#[derive(Clone, Copy)]
struct Trouble {
    from: Duration,
    lasts: Duration,
    how: Outage,
    /// Devices out of 1000 that ask again and again instead of when they are told to: those are booked elsewhere first.
    restless: u64,
}

impl Trouble {
    /// How it shows takes turns as well.
    fn draw(seed: u64, dice: &mut Dice) -> Self {
        let turns = [(Outage::Fails, 0), (Outage::Silent, 1_000), (Outage::Gateway, 500), (Outage::Refuses, 0)];
        let (how, restless) = turns[usize::try_from(seed / 4 % 4).unwrap_or(0)];
        Self { from: dice.seconds(20, 40), lasts: dice.seconds(150, 210), how, restless }
    }
}

fn draw_instances(dice: &mut Dice, course: Course) -> Vec<InstancePlan> {
    let count = match course {
        Course::Storm | Course::Kills => dice.index(2) + 1,
        Course::Outage => 2,
        Course::Expedited | Course::Mishaps => 1,
    };
    (0..count).map(|number| draw_instance(dice, number, course)).collect()
}

fn draw_instance(dice: &mut Dice, number: usize, course: Course) -> InstancePlan {
    let quota = match (course, number) {
        (Course::Outage, 0) => 60,
        (Course::Outage, _) => dice.pick(&[30, 30, 60]),
        _ => dice.pick(&[30, 60, 90]),
    };
    let least = dice.between(5, 60);
    let most = least + dice.pick(&[0, 40, 80]);
    InstancePlan {
        name: InstanceName::parse(&format!("i{number}")).expect("it is a name"),
        scope: format!("0ne0000000{number}"),
        tenant: None,
        quota,
        // The one that is to fail has all devices, so that whoever goes to the other one does so because of that.
        weight: match (course, number) {
            (Course::Outage, 0) => 1_000_000,
            (Course::Outage, _) => 1,
            _ => quota,
        },
        burst: dice.count(1, 10),
        shape: dice.pick(&[QuotaShape::Sliding, QuotaShape::Fixed]),
        hubs: 2,
        weather: Weather { latency: (least, most), lost_there: 0, lost_back: 0, late: 0, never_left: 0, reset: 0 },
        faults: Vec::new(),
        assigning: dice.millis(200, 3_000),
        concurrent: ConcurrentRegistration::NewOperation,
        retry_after_seconds: dice.pick(&[1, 3]),
        skew_millis: 0,
    }
}

/// DPS throttles one call in thirty for most of a minute, although there is no reason to: a pause that a killed process must leave behind.
fn throttles_now_and_then() -> Fault {
    let throttled =
        FaultAction::Status { code: 429, retry_after: Some(45), error_code: Some(429_001), intermediary: false };
    let fault = Fault::new(throttled).on(CallKind::Register).with_probability(0.03);
    Fault { until: Some(Duration::from_secs(240)), ..fault }
}

/// As many as the lines need minutes for.
fn draw_devices(
    dice: &mut Dice,
    (course, trouble): (Course, Trouble),
    instances: &[InstancePlan],
    tenants: usize,
) -> Vec<DevicePlan> {
    let quota: u64 = instances.iter().map(|plan| u64::from(plan.quota)).sum();
    let other: u64 = instances.iter().skip(1).map(|plan| u64::from(plan.quota)).sum();
    let devices = match course {
        Course::Outage => other * trouble.lasts.as_secs() / 60 + quota * 3,
        _ => quota * dice.between(3, 5),
    };
    let boot = dice.between(2_000, 8_000);
    let device = |number| {
        let tenant = dice.index(tenants);
        let restless = course == Course::Outage && dice.chance(trouble.restless);
        DevicePlan {
            hardware_id: format!("sn-{number:04}"),
            tenant,
            manner: if restless { Manner::Flapper } else { Manner::Obedient },
            arrives: dice.millis(0, boot),
            reprovision: false,
            wait: Duration::ZERO,
            patience: None,
            payload: false,
            comebacks: 0,
        }
    };
    (0..devices.min(DEVICES_MAX)).map(device).collect()
}

fn draw_occasions(dice: &mut Dice, course: Course, devices: usize, trouble: Trouble) -> Vec<(Duration, Occasion)> {
    match course {
        Course::Storm | Course::Mishaps => Vec::new(),
        Course::Outage => {
            let Trouble { from, lasts, how, .. } = trouble;
            let becomes = |outage| Occasion::Outage { instance: 0, outage };
            vec![(from, becomes(Some(how))), (from + lasts, becomes(None))]
        }
        Course::Expedited => {
            let wave = |dice: &mut Dice, at: Duration, count: u64| -> Vec<(Duration, Occasion)> {
                (0..count).map(|_| (at, Occasion::Expedite { device: dice.index(devices) })).collect()
            };
            let mut occasions = wave(dice, Duration::from_secs(20), 3);
            occasions.extend(wave(dice, Duration::from_secs(60), 40));
            occasions
        }
        Course::Kills => {
            let mut at = Duration::ZERO;
            let kill = |_| {
                at += dice.millis(20_000, 70_000);
                (at, Occasion::Kill { down: dice.millis(0, 5_000) })
            };
            (0..3).map(kill).collect()
        }
    }
}
