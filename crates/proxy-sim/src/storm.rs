//! A storm at a size that no seed draws: the whole gateway, record by record and call by call, before the emulator's logic.
//!
//! Every device is obedient and every call is answered, so that what is measured is the service; the process may be killed now and then.
//! The judge reads the log as of any other run; what is counted here is counted from the log as well.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use dps_emulator::{ConcurrentRegistration, QuotaShape};
use proxy_core::ids::InstanceName;

use crate::dice::Dice;
use crate::log::{Call, Event, Told};
use crate::network::WINDOW;
use crate::scenario::{Course, DevicePlan, InstancePlan, Manner, Occasion, Scenario, Weather};
use crate::{Report, Run, run_scenario};

/// Registrations that may leave together, as configured by default.
const BURST: u32 = 10;

/// How long a killed process is down.
const DOWN: Duration = Duration::from_secs(2);

/// A storm to simulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storm {
    /// Devices that come back; at least 1.
    pub devices: u32,
    /// DPS instances that share them; 1 to 100.
    pub instances: u16,
    /// Registrations that each accepts in any 60 seconds; at least 1.
    pub quota_per_minute: u32,
    /// Within which time they come back, evenly.
    pub boot: Duration,
    /// How often the process is killed while the lines drain.
    pub kills: u32,
    /// What chance is drawn from.
    pub seed: u64,
}

/// What a storm came to.
#[derive(Debug)]
pub struct StormReport {
    /// The run and its verdict.
    pub report: Report,
    /// When the last device was told its hub.
    pub finished_after: Duration,
    /// (Registrations − burst) ÷ quota of the longest line, and nothing for DPS's own time.
    pub ideal: Duration,
    /// Requests of devices to the gateway, by all of them together.
    pub requests: u64,
    /// The most calls that arrived at one instance in any 60 seconds and drew on its quota.
    pub most_in_any_minute: usize,
    storm: Storm,
}

impl StormReport {
    /// Requests of the devices to the gateway, by each.
    #[must_use]
    pub fn requests_per_device(&self) -> f64 {
        self.requests as f64 / f64::from(self.storm.devices)
    }

    /// How much longer than the ideal it took.
    #[must_use]
    pub fn finish_to_ideal(&self) -> f64 {
        self.finished_after.as_secs_f64() / self.ideal.as_secs_f64()
    }
}

impl fmt::Display for StormReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Storm { devices, instances, quota_per_minute, boot, kills, seed } = self.storm;
        writeln!(
            f,
            "{devices} devices come back within {} s, {instances} instances at {quota_per_minute} a minute, killed {kills} times, seed {seed}",
            boot.as_secs()
        )?;
        let figures = &self.report.figures;
        writeln!(
            f,
            "  {:.3} requests per device; finished after {:.1} s, {:.4} of the ideal",
            self.requests_per_device(),
            self.finished_after.as_secs_f64(),
            self.finish_to_ideal()
        )?;
        writeln!(
            f,
            "  {} registrations, at most {} of one instance in any minute, {} throttled, {} polls, {} events",
            figures.registers, self.most_in_any_minute, figures.throttled, figures.polls, figures.events
        )?;
        for violation in &self.report.violations {
            writeln!(f, "  BROKEN: {violation}")?;
        }
        write!(f, "  {}", if self.report.violations.is_empty() { "every promise kept" } else { "promises broken" })
    }
}

impl Storm {
    /// Runs it.
    ///
    /// # Panics
    /// If tokio cannot make a runtime, or the storm is out of the bounds that its fields name.
    #[must_use]
    pub fn run(self) -> StormReport {
        let report = run_scenario(self.scenario(), Run::of(self.seed));
        let mut instance_of = BTreeMap::new();
        let mut arrivals: BTreeMap<&InstanceName, Vec<Duration>> = BTreeMap::new();
        let (mut requests, mut finished_after) = (0, Duration::ZERO);
        for entry in &report.log {
            match &entry.event {
                Event::Sent { number, instance, call: Call::Register | Call::Lookup, .. } => {
                    instance_of.insert(*number, instance);
                }
                Event::Arrived { number, .. } => {
                    if let Some(instance) = instance_of.get(number) {
                        arrivals.entry(instance).or_default().push(entry.at);
                    }
                }
                Event::Asked { .. } => requests += 1,
                Event::Told { told: Told::Assigned { .. }, .. } => finished_after = entry.at,
                _ => {}
            }
        }
        let longest = arrivals.values().map(Vec::len).max().unwrap_or(0) as f64;
        let minutes = (longest - f64::from(BURST)).max(1.0) / f64::from(self.quota_per_minute);
        StormReport {
            finished_after,
            ideal: WINDOW.mul_f64(minutes),
            requests,
            most_in_any_minute: arrivals.values().map(|times| most_in_any_minute(times)).max().unwrap_or(0),
            storm: self,
            report,
        }
    }

    fn scenario(self) -> Scenario {
        let instances = (0..self.instances).map(|number| self.instance(number)).collect();
        let mut dice = Dice::new(self.seed, "storm", 0);
        let latest = u64::try_from(self.boot.as_millis()).unwrap_or(u64::MAX);
        let devices: Vec<_> = (0..self.devices).map(|number| device(number, dice.millis(0, latest))).collect();
        let occasions = self.occasions();
        Scenario {
            seed: self.seed,
            course: Course::Mishaps,
            slow_reads: false,
            slow_acks: false,
            slow_owner: false,
            machines: 1,
            tenants: 1,
            strangers: 0,
            safety: occasions.last().map_or(self.boot, |(at, _)| self.boot.max(*at)),
            occasions,
            sync_every: Duration::ZERO,
            lookup_counts: true,
            lookup_spends: true,
            request_timeout: Duration::from_secs(30),
            upstream_max_delay: Duration::from_secs(30),
            throttle_wait_max: Duration::from_secs(600),
            assigning_max: Duration::from_secs(120),
            give_up: Duration::from_secs(60),
            backoff_max: Duration::from_secs(60),
            attempts_max: 10,
            cooldown: Duration::from_secs(60),
            refusal_ttl: Duration::from_secs(60),
            length_max: devices.len(),
            in_flight_max: 10_000,
            connections_max: 256,
            parked_max: 1_000,
            timeline_max: 24,
            weights: vec![1],
            urgent_share_percent: 10,
            class_handicap: Duration::from_secs(600),
            rebook_after: Duration::from_secs(60),
            breaker_threshold: 3,
            adaptive_limits: true,
            instances,
            devices,
        }
    }

    /// The kills, evenly over the time that the lines need.
    fn occasions(self) -> Vec<(Duration, Occasion)> {
        let quota = f64::from(self.quota_per_minute) * f64::from(self.instances);
        let drain = WINDOW.mul_f64(f64::from(self.devices) / quota);
        (1..=self.kills).map(|number| (drain * number / (self.kills + 1), Occasion::Kill { down: DOWN })).collect()
    }

    fn instance(self, number: u16) -> InstancePlan {
        InstancePlan {
            name: InstanceName::parse(&format!("i{number:02}")).expect("it is a name"),
            scope: format!("0ne000000{number:02}"),
            tenant: None,
            quota: self.quota_per_minute,
            weight: self.quota_per_minute,
            burst: BURST.min(self.quota_per_minute),
            shape: QuotaShape::Sliding,
            hubs: 2,
            weather: Weather { latency: (20, 150), lost_there: 0, lost_back: 0, late: 0, never_left: 0, reset: 0 },
            faults: Vec::new(),
            assigning: Duration::from_millis(1_500),
            concurrent: ConcurrentRegistration::NewOperation,
            retry_after_seconds: 3,
            skew_millis: 0,
        }
    }
}

fn device(number: u32, arrives: Duration) -> DevicePlan {
    DevicePlan {
        hardware_id: format!("sn-{number:07}"),
        tenant: 0,
        manner: Manner::Obedient,
        arrives,
        reprovision: false,
        wait: Duration::ZERO,
        patience: None,
        payload: false,
        comebacks: 0,
    }
}

/// Of moments in order.
fn most_in_any_minute(times: &[Duration]) -> usize {
    let mut first = 0;
    let held = times.iter().enumerate().map(|(last, &at)| {
        while at - times[first] >= WINDOW {
            first += 1;
        }
        last + 1 - first
    });
    held.max().unwrap_or(0)
}
