//! How many instances a deadline needs, found by simulating.

use std::time::Duration;

use proxy_core::ids::TenantName;
use proxy_core::placement::NoRoom;
use rate_control::entropy::Entropy;
use rate_control::time::Mono;

use crate::fleet::INSTANCES_MAX;
use crate::judge::Report;
use crate::scenario::Scenario;
use crate::storm::run_watched;
use crate::watcher::{Trial, Watcher};
use crate::wiring;

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Needed {
    /// What the storm costs with the fewest instances that meet the deadline.
    pub report: Report,
    /// With fewer instances than these the quotas of the time up to the deadline add up to fewer registrations than there are
    /// devices, or there is no room for their records, or a tenant has no instance: not simulated.
    pub fewest_thinkable: u16,
    /// What was simulated, in order.
    pub trials: Vec<Trial>,
}

/// Why no number of instances meets the deadline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutOfReach {
    /// The fleet comes too late.
    #[error(
        "the last device comes back only {} s after the power returned, and DPS takes {} s for it; no number of instances ends before that",
        .last_knock.as_secs(),
        .dps_time.as_secs_f64()
    )]
    LateFleet {
        /// When the last device first knocks.
        last_knock: Duration,
        /// What DPS takes for one device.
        dps_time: Duration,
    },
    /// A tenant's own instances do not get through in time, and shared ones do not help it.
    #[error(
        "tenant {tenant} has {instances} dedicated instances, and they end after {} s only; more shared ones do not help it, more dedicated ones do",
        .finished_after.as_secs()
    )]
    Dedicated {
        /// Whose.
        tenant: TenantName,
        /// How many.
        instances: u32,
        /// When their last device was told its hub.
        finished_after: Duration,
    },
    /// More than a simulation takes.
    #[error("it would take more than {INSTANCES_MAX} instances, which is as many as a simulation takes")]
    TooMany,
    /// The fleet does not fit.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

/// Finds the fewest instances with which `scenario` ends within `deadline`; how many it names itself is not looked at. Each may take
/// many seconds, so `watcher` hears of every one.
///
/// # Errors
/// [`OutOfReach`] if there is no such number.
pub fn instances_needed(
    scenario: &Scenario,
    deadline: Duration,
    watcher: &mut dyn Watcher,
) -> Result<Needed, OutOfReach> {
    let newcomers = scenario.fleet.boot(&mut Entropy::from_seed(scenario.seed));
    let last_knock = newcomers.iter().map(|newcomer| newcomer.knocks_at).max().unwrap_or_default();
    let (last_knock, dps_time) = (last_knock.since(Mono::default()), scenario.dps.latency + scenario.dps.assigning);
    if last_knock + dps_time > deadline {
        return Err(OutOfReach::LateFleet { last_knock, dps_time });
    }
    let fewest_thinkable = fewest_thinkable(scenario, deadline)?;
    let mut search = Search { scenario, deadline, trials: Vec::new(), best: None, watcher };
    // Usually the first or the second will do; else ever longer strides find a number that does, and halving the fewest.
    let (mut too_few, mut stride) = (fewest_thinkable - 1, 1);
    let mut enough = fewest_thinkable;
    while !search.meets(enough)? {
        if enough == INSTANCES_MAX {
            return Err(OutOfReach::TooMany);
        }
        too_few = enough;
        enough = enough.saturating_add(stride).min(INSTANCES_MAX);
        stride = stride.saturating_mul(2);
    }
    while enough - too_few > 1 {
        let middle = too_few + (enough - too_few) / 2;
        if search.meets(middle)? {
            enough = middle;
        } else {
            too_few = middle;
        }
    }
    let Search { trials, best, .. } = search;
    let report = best.ok_or(OutOfReach::TooMany)?;
    Ok(Needed { report, fewest_thinkable, trials })
}

/// A lower bound that needs no simulation: what the quotas allow until the deadline, room for the records, an instance for everybody.
fn fewest_thinkable(scenario: &Scenario, deadline: Duration) -> Result<u16, OutOfReach> {
    let (fleet, minutes) = (&scenario.fleet, deadline.as_secs_f64() / 60.0);
    let each = |quota: u32| minutes * f64::from(quota) + f64::from(wiring::burst(quota));
    let sums = (0..INSTANCES_MAX).scan(0.0, |sum, instance| {
        *sum += each(scenario.quota_of(instance));
        Some(*sum)
    });
    let too_few = sums.take_while(|sum| *sum < fleet.devices() as f64).count();
    let (for_quota, for_room) = (too_few as u64 + 1, fleet.instances_for_room());
    let for_everybody = fleet.dedicated_instances() + u64::from(fleet.shares());
    let fewest = for_quota.max(for_room).max(for_everybody).max(1);
    u16::try_from(fewest).ok().filter(|&fewest| fewest <= INSTANCES_MAX).ok_or(OutOfReach::TooMany)
}

struct Search<'a> {
    scenario: &'a Scenario,
    deadline: Duration,
    trials: Vec<Trial>,
    /// The report of the fewest instances so far that meet the deadline.
    best: Option<Report>,
    watcher: &'a mut dyn Watcher,
}

impl Search<'_> {
    fn meets(&mut self, instances: u16) -> Result<bool, OutOfReach> {
        let report = run_watched(&Scenario { instances, ..self.scenario.clone() }, self.watcher)?;
        let finished_after = report.finished_after;
        let trial = Trial { instances, finished_after };
        self.watcher.tried(&trial);
        self.trials.push(trial);
        if finished_after <= self.deadline {
            self.best = Some(report);
            return Ok(true);
        }
        let mut lines = report.lines_finished_after.iter();
        for tenant in self.scenario.fleet.tenants() {
            let own = lines.by_ref().take(usize::try_from(tenant.dedicated_instances).unwrap_or(usize::MAX));
            if let Some(&finished_after) = own.max().filter(|&&finished_after| finished_after > self.deadline) {
                let (tenant, instances) = (tenant.name.clone(), tenant.dedicated_instances);
                return Err(OutOfReach::Dedicated { tenant, instances, finished_after });
            }
        }
        Ok(false)
    }
}
