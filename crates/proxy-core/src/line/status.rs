//! The numbers of a line that an operator watches, and when it should be drained.

use std::collections::BTreeMap;

use super::{Holding, LastMinute, Line};
use crate::ids::TenantName;
use crate::line::scheduler::Drain;
use rate_control::adaptive_limit::LimitState;
use rate_control::circuit_breaker::CircuitState;
use rate_control::time::Mono;

/// The devices of one tenant in the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantStatus {
    /// Whose.
    pub tenant: TenantName,
    /// Devices that wait, deferred ones included.
    pub waiting: usize,
    /// Of these, the ones that wait for a moment of their own, and not for their turn.
    pub deferred: usize,
    /// The latest such moment, if there is one.
    pub deferred_until: Option<Mono>,
    /// When half of those that wait for their turn should be done; now if none does.
    pub half_drained_at: Mono,
    /// When all of those should be done.
    pub drained_at: Mono,
    /// What happened within the last minute.
    pub last_minute: LastMinute,
}

/// The numbers an operator watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineStatus {
    /// Devices that wait, deferred ones included.
    pub waiting: usize,
    /// Of these, the ones that wait for a moment of their own, and not for their turn.
    pub deferred: usize,
    /// The latest such moment, if there is one.
    pub deferred_until: Option<Mono>,
    /// Of those that wait, expedited ones.
    pub expedited: usize,
    /// Devices under way.
    pub under_way: usize,
    /// Of these, how many have a call out.
    pub calling: usize,
    /// Registrations that may leave per minute, as configured.
    pub quota_per_minute: u32,
    /// Registrations that may leave per minute: the adaptive limit, at most the quota.
    pub limit_per_minute: u32,
    /// What the adaptive limit is at.
    pub limit_state: LimitState,
    /// It is as low as the configured band allows.
    pub limit_at_floor: bool,
    /// When the adaptive limit grows next; `None` while it is the quota.
    pub limit_grows_at: Option<Mono>,
    /// Registrations that could leave now without breaking the limit.
    pub budget: u32,
    /// When half of the devices that wait for their turn now should be done; `None` if none does.
    pub half_drained_at: Option<Mono>,
    /// When the last device that waits for its turn now should be done; `None` if none does.
    pub drained_at: Option<Mono>,
    /// What happened within the last minute.
    pub last_minute: LastMinute,
    /// The same for each tenant that has devices waiting, or had some within the last minute.
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
    pub breaker: CircuitState,
    /// Failures of the instance in a row.
    pub failures: u32,
}

impl Line {
    /// The numbers an operator watches.
    #[must_use]
    pub fn status(&mut self, now: Mono) -> LineStatus {
        self.gate.follow(now);
        let waiting = self.waiting();
        let (limit_state, limit_at_floor) = self.gate.limit_state();
        let paused = self.gate.paused(now);
        let front = self.scheduler.front();
        let hold = front.as_ref().and_then(|turn| self.hold(turn, now));
        let last = self.scheduler.len().checked_sub(1);
        LineStatus {
            waiting,
            deferred: self.deferred.len(),
            deferred_until: self.deferred.last_key_value().map(|(&(until, _), _)| until),
            expedited: self.scheduler.expedited(),
            under_way: self.under_way.len(),
            calling: self.calling,
            quota_per_minute: self.gate.quota_per_minute(),
            limit_per_minute: self.gate.limit_per_minute(),
            limit_state,
            limit_at_floor,
            limit_grows_at: self.gate.limit_grows_at(),
            budget: self.gate.budget(now),
            half_drained_at: last.map(|last| self.done_forecast(last / 2, now)),
            drained_at: last.map(|last| self.done_forecast(last, now)),
            last_minute: self.recent.all(now),
            tenants: self.tenants(now),
            holding: hold.map_or(Holding::Nothing, |hold| hold.by),
            calls_max: hold.and_then(|hold| hold.calls_max),
            front_may_go: front.is_some() && hold.is_none(),
            paused_until: paused.map(|(until, _)| until),
            breaker: self.gate.breaker().state(),
            failures: self.gate.breaker().failures(),
        }
    }

    fn tenants(&self, now: Mono) -> Vec<TenantStatus> {
        let mut found: BTreeMap<TenantName, TenantStatus> = BTreeMap::new();
        let quiet = |tenant: TenantName| TenantStatus {
            tenant,
            waiting: 0,
            deferred: 0,
            deferred_until: None,
            half_drained_at: now,
            drained_at: now,
            last_minute: LastMinute::default(),
        };
        for Drain { tenant, waiting, half, all } in self.scheduler.drains() {
            let (half_drained_at, drained_at) = (self.done_forecast(half, now), self.done_forecast(all, now));
            found.insert(tenant.clone(), TenantStatus { waiting, half_drained_at, drained_at, ..quiet(tenant) });
        }
        for (tenant, &(deferred, latest)) in &self.deferred_of {
            let status = found.entry(tenant.clone()).or_insert_with_key(|tenant| quiet(tenant.clone()));
            (status.deferred, status.deferred_until) = (deferred, Some(latest));
            status.waiting += deferred;
        }
        for (tenant, last_minute) in self.recent.tenants(now) {
            let status = found.entry(tenant.clone()).or_insert_with_key(|tenant| quiet(tenant.clone()));
            status.last_minute = last_minute;
        }
        found.into_values().collect()
    }

    /// When the device with so many before it should be done.
    fn done_forecast(&self, rank: usize, now: Mono) -> Mono {
        self.gate.forecast(rank as u64, now).after(self.registration_time.value())
    }
}
