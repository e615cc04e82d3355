//! What a line tells of devices that could change their instance: how it stands for one that is not in it, and how for one whose instance
//! fails.

use std::time::Duration;

use super::Line;
use crate::ids::{RegistrationId, TenantName};
use crate::line::scheduler::Walk;
use crate::place::{Class, Place};
use rate_control::circuit_breaker::CircuitState;
use rate_control::time::Mono;

impl Line {
    /// When a device of `tenant` should hold its assignment that joins in `class` now.
    #[must_use]
    pub fn forecast_joining(&self, tenant: &TenantName, class: Class, now: Mono) -> Mono {
        self.forecast_returning(tenant, Place::last(class), Duration::ZERO, now)
    }

    /// When a device of `tenant` should hold its assignment that comes back to `place`, and has waited for `ago`.
    #[must_use]
    pub fn forecast_returning(&self, tenant: &TenantName, place: Place, ago: Duration, now: Mono) -> Mono {
        let joined = self.joined(now, ago);
        let permit = self.gate.forecast(self.rank(tenant, place, joined) as u64, now);
        let allowance = self.company_allowance(tenant, place, joined, permit.since(now), now);
        permit.after(allowance + self.registration_time.value())
    }

    /// When the device at `place` should hold its assignment, although calls fail: a failure is taken to last as long again as it has
    /// lasted, and at least until the next try.
    #[must_use]
    pub fn forecast_failing(&self, tenant: &TenantName, place: Place, now: Mono) -> Option<Mono> {
        let appointment = self.forecast(tenant, place, now)?.appointment;
        let next_try = self.gate.paused(now).map_or(now, |(until, _)| until);
        let failing = self.sick_for(now).unwrap_or_default();
        Some(appointment.after(failing.saturating_sub(next_try.since(now))))
    }

    /// Whether nobody is at `place`, so that the device that had it may come back.
    #[must_use]
    pub fn is_free(&self, tenant: &TenantName, place: Place) -> bool {
        self.scheduler.joined(tenant, place).is_none()
            && !self.deferred_until.contains_key(&place)
            && !self.under_way.contains_key(&place)
    }

    /// Whether nothing speaks against the instance.
    #[must_use]
    pub fn works(&self) -> bool {
        self.gate.breaker().state() == CircuitState::Closed
    }

    /// Whether one device only is here, so that nobody would try the instance without it.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.waiting() + self.under_way.len() <= 1
    }

    /// The next devices that wait for a registration, see [`FairScheduler::walk`](crate::line::scheduler::FairScheduler::walk).
    #[must_use]
    pub fn walk(&self, walk: &mut Walk, most: usize) -> Vec<RegistrationId> {
        self.scheduler.walk(walk, most)
    }
}
