//! The judge: what the storm cost, counted from what devices and DPS saw.
//!
//! All times are measured from the moment the power returned. A device *waits* from its first request until it is told its hub.

use std::time::Duration;

use proxy_core::ids::TenantName;
use rate_control::time::Mono;

use crate::bucket::Bucket;
use crate::dps::Counts;
use crate::scenario::Scenario;
use crate::wiring;

/// What a storm cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Devices that knocked; every one was told its hub.
    pub devices: u64,
    /// DPS instances.
    pub instances: u16,
    /// When the last device was told its hub.
    pub finished_after: Duration,
    /// When half of the devices were told theirs.
    pub half_after: Duration,
    /// When the last device would have been done had every instance's line used exactly its quota: the first knocks as they came, an
    /// even pace after the burst, and DPS's own time (latency and assigning) for the last one. With everybody there at once that is
    /// (registrations − burst) ÷ rate of the longest line, plus DPS's own time.
    pub ideal_after: Duration,
    /// Requests of devices, to whomever they ask.
    pub requests: u64,
    /// Most requests of devices in one second.
    pub knocks_per_second_max: u32,
    /// Registrations that DPS accepted, and bills.
    pub registrations: u64,
    /// Registrations that DPS refused with 429.
    pub throttled: u64,
    /// Most registrations that one instance was asked for in any 60 seconds.
    pub most_in_any_minute: u64,
    /// Most registrations that one instance was asked for in a minute of its clock.
    pub most_in_clock_minute: u64,
    /// Accepted registrations as a share of the quota, summed over the times in which an instance had devices waiting. More than 1 if
    /// a herd takes a whole minute's quota in one second.
    pub quota_used: f64,
    /// Most devices that waited for one instance.
    pub line_length_max: u64,
    /// The median wait of a device.
    pub wait_p50: Duration,
    /// The wait that one device in a hundred exceeds.
    pub wait_p99: Duration,
    /// The longest wait.
    pub wait_max: Duration,
    /// Devices that waited, second by second.
    pub waiting: Vec<u32>,
    /// The fleet's owners, in order.
    pub tenants: Vec<TenantReport>,
    /// By instance, when the last of its devices was told its hub. Dedicated instances come first.
    pub lines_finished_after: Vec<Duration>,
}

/// What the storm was for one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantReport {
    /// The owner.
    pub name: TenantName,
    /// Its devices.
    pub devices: u32,
    /// When half of them were told their hub.
    pub half_after: Duration,
    /// When the last one was.
    pub finished_after: Duration,
}

impl Report {
    /// Requests of devices, on average.
    #[must_use]
    pub fn requests_per_device(&self) -> f64 {
        self.requests as f64 / self.devices as f64
    }

    /// The finish as a multiple of the ideal.
    #[must_use]
    pub fn finish_to_ideal(&self) -> f64 {
        self.finished_after.as_secs_f64() / self.ideal_after.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// How many of a group are told, and when.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    devices: u64,
    told: u64,
    half_at: Mono,
    all_at: Mono,
}

impl Progress {
    fn told(&mut self, now: Mono) {
        self.told += 1;
        if self.told == self.devices.div_ceil(2) {
            self.half_at = now;
        }
        self.all_at = now;
    }
}

/// The line of one instance, seen from outside: devices that have knocked and whose registration DPS has not accepted.
#[derive(Debug)]
struct Queue {
    quota: u32,
    ideal: Bucket,
    ideal_at: Mono,
    waiting: u64,
    waiting_max: u64,
    busy_since: Mono,
    busy: Duration,
    accepted: u64,
    told_at: Mono,
}

/// Counts while the storm goes on.
#[derive(Debug)]
pub(crate) struct Judge {
    requests: u64,
    knocks_per_second: Vec<u32>,
    /// By second: how many more devices wait than the second before.
    waiting_changes: Vec<i64>,
    waits_millis: Vec<u32>,
    fleet: Progress,
    tenants: Vec<Progress>,
    queues: Vec<Queue>,
}

impl Judge {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let queue = |instance| Queue {
            quota: scenario.quota_of(instance),
            ideal: Bucket::new(scenario.quota_of(instance), wiring::burst(scenario.quota_of(instance))),
            ideal_at: Mono::default(),
            waiting: 0,
            waiting_max: 0,
            busy_since: Mono::default(),
            busy: Duration::ZERO,
            accepted: 0,
            told_at: Mono::default(),
        };
        let progress = |devices| Progress { devices, ..Progress::default() };
        Self {
            requests: 0,
            knocks_per_second: Vec::new(),
            waiting_changes: Vec::new(),
            waits_millis: Vec::new(),
            fleet: progress(scenario.fleet.devices()),
            tenants: scenario.fleet.tenants().iter().map(|tenant| progress(tenant.devices.into())).collect(),
            queues: (0..scenario.instances).map(queue).collect(),
        }
    }

    /// Devices that have been told their hub.
    pub(crate) const fn devices_told(&self) -> u64 {
        self.fleet.told
    }

    /// A device asks somebody something.
    pub(crate) fn request(&mut self, now: Mono) {
        self.requests += 1;
        *at_second(&mut self.knocks_per_second, now) += 1;
    }

    /// A device that belongs to `instance` has knocked for the first time.
    pub(crate) fn came(&mut self, instance: u16, now: Mono) {
        *at_second(&mut self.waiting_changes, now) += 1;
        let queue = &mut self.queues[usize::from(instance)];
        queue.ideal_at = queue.ideal.due(now);
        queue.ideal.take(now);
        if queue.waiting == 0 {
            queue.busy_since = now;
        }
        queue.waiting += 1;
        queue.waiting_max = queue.waiting_max.max(queue.waiting);
    }

    /// DPS has accepted the registration of a device.
    pub(crate) fn accepted(&mut self, instance: u16, now: Mono) {
        let queue = &mut self.queues[usize::from(instance)];
        queue.accepted += 1;
        queue.waiting -= 1;
        if queue.waiting == 0 {
            queue.busy += now.since(queue.busy_since);
        }
    }

    /// A device of `tenant` that came at `came_at` is told its hub.
    pub(crate) fn told(&mut self, instance: u16, tenant: u16, came_at: Mono, now: Mono) {
        *at_second(&mut self.waiting_changes, now) -= 1;
        self.waits_millis.push(u32::try_from(now.since(came_at).as_millis()).unwrap_or(u32::MAX));
        self.fleet.told(now);
        self.tenants[usize::from(tenant)].told(now);
        self.queues[usize::from(instance)].told_at = now;
    }

    /// The sum of it, given what each instance counted.
    pub(crate) fn report(mut self, scenario: &Scenario, counts: &[Counts]) -> Report {
        self.waits_millis.sort_unstable();
        let wait = |permille: usize| {
            let last = self.waits_millis.len().saturating_sub(1);
            Duration::from_millis(self.waits_millis.get(last * permille / 1000).copied().unwrap_or(0).into())
        };
        let (waits, since_start) = ([wait(500), wait(990), wait(1000)], |moment: Mono| moment.since(Mono::default()));
        let accepted: u64 = self.queues.iter().map(|queue| queue.accepted).sum();
        let allowed = |queue: &Queue| queue.busy.as_secs_f64() / 60.0 * f64::from(queue.quota);
        let allowed: f64 = self.queues.iter().map(allowed).sum();
        let ideal_at = self.queues.iter().map(|queue| queue.ideal_at).max().unwrap_or_default();
        let most = |count: fn(&Counts) -> u64| counts.iter().map(count).max().unwrap_or(0);
        let tenants = self.tenants.iter().zip(scenario.fleet.tenants());
        Report {
            devices: self.fleet.told,
            instances: scenario.instances,
            finished_after: since_start(self.fleet.all_at),
            half_after: since_start(self.fleet.half_at),
            ideal_after: since_start(ideal_at) + scenario.dps.latency + scenario.dps.assigning,
            requests: self.requests,
            knocks_per_second_max: self.knocks_per_second.iter().copied().max().unwrap_or(0),
            registrations: counts.iter().map(|counts| counts.accepted).sum(),
            throttled: counts.iter().map(|counts| counts.refused).sum(),
            most_in_any_minute: most(|counts| counts.most_in_any_minute),
            most_in_clock_minute: most(|counts| counts.most_in_clock_minute),
            // Nobody waited long enough to leave any quota unused.
            quota_used: if allowed > 0.0 { accepted as f64 / allowed } else { 1.0 },
            line_length_max: self.queues.iter().map(|queue| queue.waiting_max).max().unwrap_or(0),
            wait_p50: waits[0],
            wait_p99: waits[1],
            wait_max: waits[2],
            waiting: running_sum(&self.waiting_changes),
            tenants: tenants
                .map(|(progress, tenant)| TenantReport {
                    name: tenant.name.clone(),
                    devices: tenant.devices,
                    half_after: since_start(progress.half_at),
                    finished_after: since_start(progress.all_at),
                })
                .collect(),
            lines_finished_after: self.queues.iter().map(|queue| since_start(queue.told_at)).collect(),
        }
    }
}

/// The entry of the second that `now` is in.
fn at_second<T: Default + Clone>(seconds: &mut Vec<T>, now: Mono) -> &mut T {
    let second = usize::try_from(now.as_nanos() / 1_000_000_000).unwrap_or(usize::MAX);
    if second >= seconds.len() {
        seconds.resize(second + 1, T::default());
    }
    &mut seconds[second]
}

fn running_sum(changes: &[i64]) -> Vec<u32> {
    let sum = |waiting: &mut i64, change: &i64| {
        *waiting += change;
        Some(u32::try_from(*waiting).unwrap_or(0))
    };
    changes.iter().scan(0, sum).collect()
}
