//! What a seed stands for: instances, fleets, options and mishaps, all drawn before anything runs.
//!
//! Each kind of mishap is in or out as a whole, so that runs differ in kind: a run with nothing but crashes finds what drowns in a
//! run with everything.

use std::time::Duration;

use dps_emulator::{CallKind, ConcurrentRegistration, Fault, FaultAction, QuotaShape};
use proxy_core::ids::InstanceName;

use crate::Kind;
use crate::dice::Dice;

mod orderly;

/// What a run is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    /// All kinds of things go wrong, as drawn.
    Mishaps,
    /// A fleet comes back, and nothing goes wrong.
    Storm,
    /// An operator expedites a few of its devices, and then many.
    Expedited,
    /// The process is killed now and then.
    Kills,
    /// One of two instances is out of order for some minutes.
    Outage,
}

/// How a device behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Comes back exactly when told.
    Obedient,
    /// Comes back long before it is told to.
    Impatient,
    /// Asks every 5 seconds, whatever it is told.
    Poller,
    /// Loses power at random, forgets everything and asks anew.
    Flapper,
    /// Asks once and is never seen again.
    NeverReturns,
}

#[derive(Debug, Clone)]
pub(crate) struct DevicePlan {
    /// As the device spells it.
    pub(crate) hardware_id: String,
    pub(crate) tenant: usize,
    pub(crate) manner: Manner,
    /// When it is switched on.
    pub(crate) arrives: Duration,
    pub(crate) reprovision: bool,
    /// How long it holds its request open (`Prefer: wait`).
    pub(crate) wait: Duration,
    /// When it hangs up on an open request.
    pub(crate) patience: Option<Duration>,
    pub(crate) payload: bool,
    /// How often it asks again after it was told its hub.
    pub(crate) comebacks: u32,
}

/// How calls fare on the way. All weights out of 1000 calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// One way, in milliseconds, from least to most.
    pub(crate) latency: (u64, u64),
    pub(crate) lost_there: u64,
    pub(crate) lost_back: u64,
    /// Arrives after the caller has given up.
    pub(crate) late: u64,
    pub(crate) never_left: u64,
    pub(crate) reset: u64,
}

impl Weather {
    /// The same latency, and nothing goes wrong.
    pub(crate) fn fair(self) -> Self {
        Self { lost_there: 0, lost_back: 0, late: 0, never_left: 0, reset: 0, ..self }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct InstancePlan {
    pub(crate) name: InstanceName,
    pub(crate) scope: String,
    /// The one tenant it is for; `None` if shared.
    pub(crate) tenant: Option<usize>,
    pub(crate) quota: u32,
    /// Its share of new devices.
    pub(crate) weight: u32,
    pub(crate) burst: u32,
    pub(crate) shape: QuotaShape,
    pub(crate) hubs: usize,
    pub(crate) weather: Weather,
    pub(crate) faults: Vec<Fault>,
    pub(crate) assigning: Duration,
    pub(crate) concurrent: ConcurrentRegistration,
    pub(crate) retry_after_seconds: u32,
    /// How wrong DPS's own clock is.
    pub(crate) skew_millis: i64,
}

/// How an instance is out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// Connections are refused.
    Refuses,
    /// Nothing comes back.
    Silent,
    /// A gateway in front of it answers 503.
    Gateway,
    /// It answers 500 itself.
    Fails,
}

/// Something that happens in the safety phase.
#[derive(Debug, Clone)]
pub(crate) enum Occasion {
    Kill {
        down: Duration,
    },
    Reboot {
        down: Duration,
        uptime: Duration,
    },
    /// A clean stop, and a start.
    Restart {
        down: Duration,
    },
    /// The gateway's wall clock is wrong by so much from here on.
    WallClock {
        offset_millis: i64,
    },
    Outage {
        instance: usize,
        outage: Option<Outage>,
    },
    OutageOfAll {
        outage: Option<Outage>,
    },
    /// The operator changes the configured quota.
    Quota {
        instance: usize,
        quota: u32,
    },
    /// The real quota of DPS becomes this share of the first one.
    RealQuota {
        instance: usize,
        percent: u32,
    },
    DiskReadOnly(bool),
    /// The next commits fail once each.
    DiskBusy {
        commits: u32,
    },
    /// A write fails half way; the process is killed `kill_after`.
    DiskFails {
        applied: bool,
        kill_after: Duration,
    },
    /// Others hubs are linked: whoever registers again may move.
    Hubs {
        instance: usize,
        hubs: usize,
    },
    Invalidate {
        device: usize,
    },
    Expedite {
        device: usize,
    },
    Move {
        device: usize,
        instance: usize,
    },
}

/// Everything drawn from a seed.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) course: Course,
    pub(crate) tenants: usize,
    pub(crate) instances: Vec<InstancePlan>,
    pub(crate) devices: Vec<DevicePlan>,
    pub(crate) strangers: u32,
    pub(crate) occasions: Vec<(Duration, Occasion)>,
    /// How long things go wrong.
    pub(crate) safety: Duration,
    /// Commits are durable (and acknowledged) at these intervals; zero for at once.
    pub(crate) sync_every: Duration,
    /// Reads of the store take a while, each another one.
    pub(crate) slow_reads: bool,
    /// That a commit is durable is heard of after a while, each time another one.
    pub(crate) slow_acks: bool,
    /// The owner of the lines is far away: each question takes a while, and each answer.
    pub(crate) slow_owner: bool,
    /// Machines that take turns: whenever a process ends, the next one starts on the next of them.
    pub(crate) machines: usize,
    pub(crate) lookup_spends: bool,
    pub(crate) lookup_counts: bool,
    pub(crate) request_timeout: Duration,
    pub(crate) upstream_max_delay: Duration,
    pub(crate) throttle_wait_max: Duration,
    pub(crate) assigning_max: Duration,
    /// When DPS ends an operation that is stuck.
    pub(crate) give_up: Duration,
    pub(crate) backoff_max: Duration,
    pub(crate) attempts_max: u32,
    pub(crate) cooldown: Duration,
    pub(crate) refusal_ttl: Duration,
    pub(crate) length_max: usize,
    pub(crate) in_flight_max: usize,
    pub(crate) connections_max: usize,
    pub(crate) parked_max: usize,
    pub(crate) timeline_max: usize,
    /// By tenant.
    pub(crate) weights: Vec<u32>,
    pub(crate) urgent_share_percent: u32,
    pub(crate) class_handicap: Duration,
    pub(crate) rebook_after: Duration,
    pub(crate) breaker_threshold: u32,
    pub(crate) adaptive_limits: bool,
}

/// Which kinds of mishap a run has.
struct Kinds {
    network: bool,
    faults: bool,
    crashes: bool,
    clocks: bool,
    outages: bool,
    quotas: bool,
    real_quotas: bool,
    disk: bool,
    hubs: bool,
    operators: bool,
}

impl Kinds {
    fn draw(dice: &mut Dice) -> Self {
        // One run in twelve is calm.
        let share = if dice.chance(80) { 0 } else { dice.between(250, 750) };
        Self {
            network: dice.chance(share),
            faults: dice.chance(share),
            crashes: dice.chance(share),
            clocks: dice.chance(share),
            outages: dice.chance(share),
            quotas: dice.chance(share),
            real_quotas: dice.chance(share),
            disk: dice.chance(share / 2),
            hubs: dice.chance(share),
            operators: dice.chance(share),
        }
    }
}

impl Scenario {
    /// Whether something takes seconds that is done at once otherwise.
    pub(crate) const fn is_slow(&self) -> bool {
        self.slow_reads || self.slow_acks || self.slow_owner
    }

    /// What `seed` stands for in runs of this kind.
    pub(crate) fn draw(seed: u64, kind: Kind) -> Self {
        match kind {
            Kind::Mishaps => Self::draw_mishaps(seed),
            Kind::Orderly => orderly::draw(seed),
        }
    }

    fn draw_mishaps(seed: u64) -> Self {
        let mut dice = Dice::new(seed, "scenario", 0);
        let kinds = Kinds::draw(&mut dice);
        let tenants = dice.index(3) + 1;
        let safety = dice.seconds(120, 480);
        let instances = draw_instances(&mut dice, tenants, safety, &kinds);
        let capacity: u32 = instances.iter().map(|instance| instance.quota).sum();
        let fleet = u64::from(capacity) * dice.between(1, 8) + dice.below(10);
        let devices: Vec<_> =
            (0..fleet.clamp(4, 160)).map(|number| draw_device(&mut dice, number, tenants, safety)).collect();
        let occasions = draw_occasions(&mut dice, &instances, devices.len(), safety, &kinds);
        let lookup_counts = dice.chance(600);
        let mut sharing = Dice::new(seed, "sharing", 0);
        let length_max = if dice.chance(200) { devices.len() / 2 + 1 } else { 1_000_000 };
        Self {
            seed,
            course: Course::Mishaps,
            slow_reads: false,
            slow_acks: false,
            slow_owner: false,
            machines: 1,
            tenants,
            strangers: dice.count(0, 12),
            safety,
            sync_every: Duration::from_millis(dice.pick(&[0, 0, 2, 15, 60])),
            lookup_counts,
            lookup_spends: lookup_counts || dice.chance(300),
            request_timeout: Duration::from_secs(dice.pick(&[3, 10, 30])),
            upstream_max_delay: Duration::from_secs(dice.pick(&[5, 30])),
            throttle_wait_max: Duration::from_secs(dice.pick(&[10, 60, 600])),
            assigning_max: dice.seconds(20, 120),
            give_up: dice.seconds(15, 150),
            backoff_max: Duration::from_secs(dice.pick(&[5, 30, 60])),
            attempts_max: dice.count(3, 12),
            cooldown: dice.seconds(5, 120),
            refusal_ttl: dice.seconds(20, 200),
            length_max,
            in_flight_max: dice.pick(&[2, 10, 10_000]),
            connections_max: dice.pick(&[2, 8, 256]),
            parked_max: dice.pick(&[1, 5, 1000]),
            timeline_max: dice.pick(&[4, 24]),
            weights: (0..tenants).map(|_| sharing.pick(&[1, 1, 2, 7])).collect(),
            urgent_share_percent: sharing.pick(&[1, 10, 50]),
            class_handicap: Duration::from_secs(sharing.pick(&[0, 30, 600])),
            rebook_after: Duration::from_secs(sharing.pick(&[1, 10, 60, 86_400])),
            breaker_threshold: sharing.count(2, 4),
            adaptive_limits: sharing.chance(400),
            instances,
            devices,
            occasions,
        }
    }

    /// Within how long after healing everybody must be served: what may still be held back by then, and three registrations for every
    /// device at the slowest instance.
    pub(crate) fn liveness_bound(&self) -> Duration {
        let slowest = self.instances.iter().map(|instance| instance.quota).min().unwrap_or(1);
        let windows = 3 * u32::try_from(self.devices.len()).unwrap_or(u32::MAX) / slowest + 3;
        let held_back = self.upstream_max_delay * 2
            + self.throttle_wait_max
            + self.assigning_max * 2
            + self.give_up
            + self.backoff_max * 2
            + self.cooldown
            + self.refusal_ttl
            + Duration::from_secs(300);
        // A wall clock that is set back makes what is remembered by it last longer: cool-downs, refusals, the end of lookups.
        let jumps = |(_, occasion): &(Duration, Occasion)| matches!(occasion, Occasion::WallClock { .. });
        let set_back = if self.occasions.iter().any(jumps) { Duration::from_secs(1200) } else { Duration::ZERO };
        // A limit that came down while DPS took less is held, and then grows until it is the quota again.
        let lowered = if self.adaptive_limits { Duration::from_secs(30 * 60) } else { Duration::ZERO };
        held_back + set_back + lowered + windows * Duration::from_millis(60_100) + windows * self.request_timeout / 8
    }

    /// Whether the emulator's own count must agree that no quota was broken: nobody but the operator changed one.
    pub(crate) fn real_quota_is_configured(&self) -> bool {
        !self.occasions.iter().any(|(_, occasion)| matches!(occasion, Occasion::RealQuota { .. }))
    }

    /// Whether a device's hub at DPS can only change because it registered.
    pub(crate) fn hubs_stay(&self) -> bool {
        !self.occasions.iter().any(|(_, occasion)| matches!(occasion, Occasion::Hubs { .. } | Occasion::Move { .. }))
    }
}

fn draw_instances(dice: &mut Dice, tenants: usize, safety: Duration, kinds: &Kinds) -> Vec<InstancePlan> {
    let mut instances = Vec::new();
    for number in 0..dice.index(4) + 1 {
        // The first is shared, so that every tenant has somewhere to go.
        let tenant = (number > 0 && dice.chance(400)).then(|| dice.index(tenants));
        let quota = dice.pick(&[3, 5, 8, 12, 20, 40, 80]);
        let shape = dice.pick(&[QuotaShape::Sliding, QuotaShape::Sliding, QuotaShape::Fixed, QuotaShape::Bucket]);
        let least = dice.between(1, 60);
        let most = least + dice.pick(&[0, 50, 400, 2500]);
        let weight = |dice: &mut Dice| if kinds.network { dice.pick(&[0, 0, 20, 120]) } else { 0 };
        instances.push(InstancePlan {
            name: InstanceName::parse(&format!("i{number}")).expect("it is a name"),
            scope: format!("0ne0000000{number}"),
            tenant,
            quota,
            weight: quota,
            burst: dice.count(1, quota.min(10)),
            shape,
            hubs: dice.index(3) + 1,
            weather: Weather {
                latency: (least, most),
                lost_there: weight(dice),
                lost_back: weight(dice),
                late: weight(dice),
                never_left: weight(dice),
                reset: weight(dice),
            },
            faults: if kinds.faults { draw_faults(dice, safety) } else { Vec::new() },
            assigning: dice.millis(0, dice.clone().pick(&[0, 1500, 8000])),
            concurrent: dice.pick(&[ConcurrentRegistration::NewOperation, ConcurrentRegistration::Conflict]),
            retry_after_seconds: dice.pick(&[1, 3, 5]),
            skew_millis: if kinds.clocks { i64::try_from(dice.below(240_000)).unwrap_or(0) - 120_000 } else { 0 },
        });
    }
    instances
}

/// Faults of DPS itself, each with a probability; over when the safety phase is.
fn draw_faults(dice: &mut Dice, safety: Duration) -> Vec<Fault> {
    let status = |code, retry_after, error_code, intermediary| FaultAction::Status {
        code,
        retry_after,
        error_code,
        intermediary,
    };
    let delay = dice.millis(100, 12_000);
    let asked = dice.pick(&[None, Some(1), Some(7), Some(45), Some(900)]);
    let all = [
        Fault::new(FaultAction::Delay { delay }),
        Fault::new(FaultAction::Reset),
        Fault::new(FaultAction::LoseReply),
        Fault::new(status(503, None, None, true)),
        Fault::new(status(500, None, Some(500_001), false)),
        Fault::new(status(429, asked, Some(429_001), false)).on(CallKind::Register),
        Fault::new(status(429, asked, Some(429_001), false)).on(CallKind::Lookup),
        Fault::new(status(429, Some(3), Some(429_001), false)).on(CallKind::Poll),
        Fault::new(FaultAction::MalformedBody { body: None, content_type: None }),
        Fault::new(FaultAction::StuckAssigning),
        Fault::new(FaultAction::Unassigned),
        Fault::new(FaultAction::Disabled),
        Fault::new(FaultAction::Fail { error_code: 500_001, message: "a fault".to_owned() }),
        Fault::new(FaultAction::Fail { error_code: 400_208, message: "a fault".to_owned() }),
    ];
    let mut faults = Vec::new();
    for fault in all {
        if dice.chance(250) {
            let probability = [0.01, 0.05, 0.2][dice.index(3)];
            faults.push(Fault { until: Some(safety), ..fault.with_probability(probability) });
        }
    }
    faults
}

fn draw_device(dice: &mut Dice, number: u64, tenants: usize, safety: Duration) -> DevicePlan {
    use Manner::{Flapper, Impatient, NeverReturns, Obedient, Poller};
    let manner = dice.pick(&[Obedient, Obedient, Obedient, Obedient, Impatient, Poller, Flapper, NeverReturns]);
    let shouted = dice.chance(100);
    let name = format!("sn-{number:04}");
    // Most knock together; the others come by and by.
    let latest = if dice.chance(700) { 5_000 } else { u64::try_from(safety.as_millis()).unwrap_or(0) };
    DevicePlan {
        hardware_id: if shouted { name.to_ascii_uppercase() } else { name },
        tenant: dice.index(tenants),
        manner,
        arrives: dice.millis(0, latest),
        reprovision: dice.chance(80),
        wait: if dice.chance(200) { dice.seconds(1, 60) } else { Duration::ZERO },
        patience: dice.chance(150).then(|| dice.millis(0, 4_000)),
        payload: dice.chance(200),
        comebacks: if dice.chance(300) { dice.count(1, 2) } else { 0 },
    }
}

fn draw_occasions(
    dice: &mut Dice,
    instances: &[InstancePlan],
    devices: usize,
    safety: Duration,
    kinds: &Kinds,
) -> Vec<(Duration, Occasion)> {
    let mut drawn = Vec::new();
    let latest = u64::try_from(safety.as_millis()).unwrap_or(0);
    let times = |dice: &mut Dice, wanted: bool, most: u64| -> Vec<Duration> {
        let count = if wanted { dice.between(1, most) } else { 0 };
        (0..count).map(|_| dice.millis(500, latest)).collect()
    };
    for at in times(dice, kinds.crashes, 6) {
        let down = dice.millis(0, 15_000);
        let occasion = match dice.below(4) {
            0 => Occasion::Reboot { down, uptime: dice.seconds(1, 120) },
            1 => Occasion::Restart { down },
            _ => Occasion::Kill { down },
        };
        drawn.push((at, occasion));
    }
    for at in times(dice, kinds.clocks, 4) {
        let offset_millis = i64::try_from(dice.below(1_200_000)).unwrap_or(0) - 600_000;
        drawn.push((at, Occasion::WallClock { offset_millis }));
    }
    for at in times(dice, kinds.outages, 4) {
        let outage = Some(dice.pick(&[Outage::Refuses, Outage::Silent, Outage::Gateway]));
        let back = at + dice.seconds(5, 120);
        if dice.chance(250) {
            drawn.push((at, Occasion::OutageOfAll { outage }));
            drawn.push((back, Occasion::OutageOfAll { outage: None }));
        } else {
            let instance = dice.index(instances.len());
            drawn.push((at, Occasion::Outage { instance, outage }));
            drawn.push((back, Occasion::Outage { instance, outage: None }));
        }
    }
    for at in times(dice, kinds.quotas, 5) {
        let instance = dice.index(instances.len());
        let percent = dice.pick(&[20, 50, 90, 150, 300]);
        drawn.push((at, Occasion::Quota { instance, quota: (instances[instance].quota * percent / 100).max(1) }));
    }
    for at in times(dice, kinds.real_quotas, 2) {
        let instance = dice.index(instances.len());
        drawn.push((at, Occasion::RealQuota { instance, percent: dice.pick(&[25, 50, 80]) }));
        drawn.push((at + dice.seconds(30, 200), Occasion::RealQuota { instance, percent: 100 }));
    }
    for at in times(dice, kinds.disk, 3) {
        match dice.below(3) {
            0 => {
                drawn.push((at, Occasion::DiskReadOnly(true)));
                drawn.push((at + dice.seconds(2, 60), Occasion::DiskReadOnly(false)));
            }
            1 => drawn.push((at, Occasion::DiskBusy { commits: dice.count(1, 8) })),
            _ => drawn.push((at, Occasion::DiskFails { applied: dice.chance(500), kill_after: dice.seconds(1, 20) })),
        }
    }
    for at in times(dice, kinds.hubs, 2) {
        drawn.push((at, Occasion::Hubs { instance: dice.index(instances.len()), hubs: dice.index(4) + 1 }));
    }
    for at in times(dice, kinds.operators, 12) {
        let device = dice.index(devices);
        let occasion = match dice.below(3) {
            0 => Occasion::Invalidate { device },
            1 => Occasion::Expedite { device },
            _ => Occasion::Move { device, instance: dice.index(instances.len()) },
        };
        drawn.push((at, occasion));
    }
    drawn.retain(|(at, _)| *at < safety);
    drawn.sort_by_key(|(at, _)| *at);
    drawn
}
