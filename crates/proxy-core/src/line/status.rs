//! The numbers of a line that an operator watches, and when it should be drained.

use std::collections::BTreeMap;

use super::{Holding, Line};
use crate::breaker::BreakerState;
use crate::ids::TenantName;
use crate::learner::Learning;
use crate::time::Mono;

/// The devices of one tenant in the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantStatus {
    /// Whose.
    pub tenant: TenantName,
    /// Devices that wait, deferred ones included.
    pub waiting: usize,
    /// When half of them should be done.
    pub half_drained_at: Mono,
    /// When all of them should be done.
    pub drained_at: Mono,
}

/// The numbers an operator watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineStatus {
    /// Devices that wait, deferred ones included.
    pub waiting: usize,
    /// Of these, expedited ones.
    pub expedited: usize,
    /// Devices under way.
    pub under_way: usize,
    /// Of these, how many have a call out.
    pub calling: usize,
    /// Registrations that may leave per minute, as configured.
    pub quota_per_minute: u32,
    /// Registrations that may leave per minute, as far as is known; at most the quota.
    pub learned_per_minute: u32,
    /// How the limit is known.
    pub learning: Learning,
    /// It is as low as the configured band allows.
    pub at_floor: bool,
    /// A lower limit than the quota is believed: before when no higher one is tried.
    pub next_probe_at: Option<Mono>,
    /// Registrations that could leave now without breaking the limit.
    pub budget: u32,
    /// When half of the devices waiting now should be done; `None` if nobody waits.
    pub half_drained_at: Option<Mono>,
    /// When the last device waiting now should be done; `None` if nobody waits.
    pub drained_at: Option<Mono>,
    /// The same for each tenant that has devices waiting.
    pub tenants: Vec<TenantStatus>,
    /// What keeps the front from going.
    pub holding: Holding,
    /// So many calls may be out at the same time, if that is what holds it.
    pub calls_max: Option<usize>,
    /// Somebody is there who may go, and nothing of this keeps it.
    pub front_may_go: bool,
    /// Until when the line is paused, if it is.
    pub paused_until: Option<Mono>,
    /// Whether calls go through.
    pub breaker: BreakerState,
    /// Failures of the instance in a row.
    pub failures: u32,
}

impl Line {
    /// The numbers an operator watches.
    #[must_use]
    pub fn status(&mut self, now: Mono) -> LineStatus {
        let waiting = self.waiting();
        let used = self.ledger.used(now);
        let paused = self.paused(now);
        let front = self.lanes.front();
        let hold = front.as_ref().and_then(|turn| self.hold(turn, now));
        let last = waiting.checked_sub(1);
        LineStatus {
            waiting,
            expedited: self.lanes.expedited(),
            under_way: self.under_way.len(),
            calling: self.calling,
            quota_per_minute: self.quota_per_minute,
            learned_per_minute: self.learner.limit(),
            learning: self.learner.state(),
            at_floor: self.learner.limit() <= self.learner.certain(),
            next_probe_at: self.learner.next_probe_at().filter(|at| *at > now),
            budget: self.ledger.quota().saturating_sub(used),
            half_drained_at: last.map(|last| self.done_forecast(last / 2, now)),
            drained_at: last.map(|last| self.done_forecast(last, now)),
            tenants: self.tenants(now),
            holding: hold.map_or(Holding::Nothing, |hold| hold.by),
            calls_max: hold.and_then(|hold| hold.calls_max),
            front_may_go: front.is_some() && hold.is_none(),
            paused_until: paused.map(|(until, _)| until),
            breaker: self.breaker.state(),
            failures: self.breaker.failures(),
        }
    }

    fn tenants(&self, now: Mono) -> Vec<TenantStatus> {
        let mut counted: BTreeMap<&TenantName, usize> = self.lanes.tenants().collect();
        for tenant in self.deferred_of.keys() {
            counted.entry(tenant).or_default();
        }
        let status = counted.into_iter().map(|(tenant, in_lanes)| {
            let done = |part| self.lanes.ahead_of_part(tenant, part).map_or(now, |rank| self.done_forecast(rank, now));
            let (half, all) = (done(0.5), done(1.0));
            let (deferred, latest) = self.deferred_of.get(tenant).copied().unwrap_or_default();
            let deferred_done = if deferred > 0 { latest.after(self.registration_time.value()) } else { now };
            TenantStatus {
                tenant: tenant.clone(),
                waiting: in_lanes + deferred,
                half_drained_at: if deferred > in_lanes { half.max(deferred_done) } else { half },
                drained_at: all.max(deferred_done),
            }
        });
        status.collect()
    }

    /// When the device with so many before it should be done. Those that wait for a moment of their own come last here, spread evenly
    /// between the first and the last such moment.
    fn done_forecast(&self, rank: usize, now: Mono) -> Mono {
        let permit = self.permit_forecast(rank as u64, now);
        let Some(later) = rank.checked_sub(self.lanes.len()) else {
            return permit.after(self.registration_time.value());
        };
        let ends = self.deferred.first_key_value().zip(self.deferred.last_key_value());
        let due = ends.map_or(now, |((&(first, _), _), (&(last, _), _))| {
            let part = (later + 1) as f64 / self.deferred.len() as f64;
            first.after(last.since(first).mul_f64(part.min(1.0)))
        });
        permit.max(due).after(self.registration_time.value())
    }
}
