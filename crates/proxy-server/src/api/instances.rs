//! The instances, as operators see them.

use proxy_core::line;
use proxy_core::line_owner::{BlamedView, CountsView};
use proxy_core::use_cases::operator as core;
use rate_control::adaptive_limit;
use rate_control::circuit_breaker::CircuitState;
use serde::Serialize;
use utoipa::ToSchema;

use super::mirrored;
use super::names::{IdScope, InstanceName, Moment, TenantName};
use super::problem::{EVERY, TOKEN, problems};

/// All instances.
#[derive(Debug, Serialize, ToSchema)]
pub struct Instances {
    /// By name.
    pub instances: Vec<Instance>,
}

mirrored! {
    /// State of the adaptive limit. `quota`: it is the quota. `held`: DPS throttled, and the limit was lowered. `growing`: it rises every
    /// minute until DPS throttles. `off`: it does not adapt.
    LimitState of adaptive_limit::LimitState {
        /// It is the quota.
        Quota,
        /// DPS throttled, and the limit was lowered.
        Held,
        /// It rises every minute until DPS throttles.
        Growing,
        /// It does not adapt.
        Off,
    }
}

mirrored! {
    /// State of the circuit breaker. `closed`: calls go through. `open`: calls fail, and none is sent until `pausedUntil`. `half-open`: one
    /// trial request is out.
    Breaker of CircuitState {
        /// Calls go through.
        Closed,
        /// Calls fail, and none is sent.
        Open,
        /// One trial request is out.
        HalfOpen,
    }
}

mirrored! {
    /// What holds the front of the line. `nothing`; `pace`: the quota is spread over the minute; `quota`: this minute's is used;
    /// `concurrency`: as many calls are out as the rate needs; `throttled-by-dps`: DPS asked us to wait; `after-throttling`: few calls at
    /// once for a while; `instance-failing`: calls fail; `ramping-up`: they succeed again, and few are sent at once at first; `in-flight-max`,
    /// `connections-max`: the bound of that name; `store`: it takes no writes.
    Holding of line::Holding {
        /// Nothing.
        Nothing,
        /// DPS asked us to wait.
        ThrottledByDps,
        /// Few calls at once for a while.
        AfterThrottling,
        /// Calls fail.
        InstanceFailing,
        /// Calls succeed again, and few are sent at once at first.
        RampingUp,
        /// This minute's quota is used.
        Quota,
        /// The quota is spread over the minute.
        Pace,
        /// As many calls are out as the rate needs.
        Concurrency,
        /// As many registrations are under way as `registration.in_flight_max` allows.
        InFlightMax,
        /// As many calls are out as `registration.connections_max` allows.
        ConnectionsMax,
        /// The store takes no writes.
        Store,
    }
}

/// One instance.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Our name.
    pub name: InstanceName,
    /// Its ID scope.
    pub id_scope: IdScope,
    /// Registrations per minute.
    pub quota_per_minute: u32,
    /// Registrations per minute that may leave: the adaptive limit, at most the quota.
    pub limit_per_minute: u32,
    /// State of the adaptive limit.
    pub limit_state: LimitState,
    /// When the limit grows next, while it is below the quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub limit_grows_at: Option<Moment>,
    /// Registrations that could leave now.
    pub budget: u32,
    /// Devices that wait.
    pub line_length: usize,
    /// Of these, the ones that wait for a moment of their own (a cool-down, a wait after a failure), and not for their turn.
    pub deferred: usize,
    /// The latest such moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub deferred_until: Option<Moment>,
    /// Devices under way.
    pub under_way: usize,
    /// When half of the devices that wait for their turn now should be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub half_drained_at: Option<Moment>,
    /// When the last device that waits for its turn now should be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub drained_at: Option<Moment>,
    /// Registrations that left within the last minute.
    pub left_last_minute: u32,
    /// Devices that were assigned within the last minute.
    pub assigned_last_minute: u32,
    /// The same for each tenant that has devices waiting, or had some within the last minute.
    pub tenants: Vec<TenantLine>,
    /// What holds the front of the line.
    pub holding: Holding,
    /// Nothing is sent before this moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub paused_until: Option<Moment>,
    /// State of the circuit breaker.
    pub breaker: Breaker,
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// Devices that may have a record there, tombstones included.
    pub registered_count: u64,
    /// Records of others, as configured.
    pub external_count: u64,
    /// Records it may hold.
    pub capacity: u64,
    /// Whether it takes no new devices.
    pub draining: bool,
    /// Whether the task that serves the line runs.
    pub dispatcher_up: bool,
    /// By how much DPS's clock is ahead of ours; negative if it is behind. Not there before DPS was heard of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub clock_offset_seconds: Option<i64>,
    /// What happened since the process started.
    pub counts: Counts,
}

impl From<core::InstanceView> for Instance {
    fn from(view: core::InstanceView) -> Self {
        Self {
            name: view.name.into(),
            id_scope: view.id_scope.into(),
            quota_per_minute: view.quota_per_minute,
            limit_per_minute: view.limit_per_minute,
            limit_state: view.limit_state.into(),
            limit_grows_at: view.limit_grows_at.map(Moment::from),
            budget: view.budget,
            line_length: view.line_length,
            deferred: view.deferred,
            deferred_until: view.deferred_until.map(Moment::from),
            under_way: view.under_way,
            half_drained_at: view.half_drained_at.map(Moment::from),
            drained_at: view.drained_at.map(Moment::from),
            left_last_minute: view.left_last_minute,
            assigned_last_minute: view.assigned_last_minute,
            tenants: view.tenants.into_iter().map(TenantLine::from).collect(),
            holding: view.holding.into(),
            paused_until: view.paused_until.map(Moment::from),
            breaker: view.breaker.into(),
            consecutive_failures: view.consecutive_failures,
            registered_count: view.registered_count,
            external_count: view.external_count,
            capacity: view.capacity,
            draining: view.draining,
            dispatcher_up: view.dispatcher_up,
            clock_offset_seconds: view.clock_offset_seconds,
            counts: view.counts.into(),
        }
    }
}

/// One tenant's devices in a line.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantLine {
    /// Whose.
    pub tenant: TenantName,
    /// Devices that wait.
    pub line_length: usize,
    /// Of these, the ones that wait for a moment of their own, and not for their turn.
    pub deferred: usize,
    /// The latest such moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub deferred_until: Option<Moment>,
    /// When half of those that wait for their turn should be done.
    pub half_drained_at: Moment,
    /// When all of those should be done.
    pub drained_at: Moment,
    /// Registrations that left within the last minute.
    pub left_last_minute: u32,
    /// Devices that were assigned within the last minute.
    pub assigned_last_minute: u32,
}

impl From<core::TenantView> for TenantLine {
    fn from(view: core::TenantView) -> Self {
        Self {
            tenant: view.tenant.into(),
            line_length: view.line_length,
            deferred: view.deferred,
            deferred_until: view.deferred_until.map(Moment::from),
            half_drained_at: view.half_drained_at.into(),
            drained_at: view.drained_at.into(),
            left_last_minute: view.left_last_minute,
            assigned_last_minute: view.assigned_last_minute,
        }
    }
}

/// What happened at an instance since the process started.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Registrations sent.
    pub registrations: u64,
    /// Of these, the ones sent again because the outcome of an earlier one was unknown.
    pub repeated: u64,
    /// Lookups of what became of a registration.
    pub lookups: u64,
    /// Polls of operations.
    pub polls: u64,
    /// Registrations without an answer.
    pub lost: u64,
    /// Calls that never reached DPS.
    pub unreachable: u64,
    /// Calls that DPS throttled.
    pub throttled: u64,
    /// Calls that failed, by who is to blame.
    pub blamed: Blamed,
    /// Devices assigned.
    pub assigned: u64,
    /// Devices refused.
    pub refused: u64,
}

impl From<CountsView> for Counts {
    fn from(view: CountsView) -> Self {
        Self {
            registrations: view.registrations,
            repeated: view.repeated,
            lookups: view.lookups,
            polls: view.polls,
            lost: view.lost,
            unreachable: view.unreachable,
            throttled: view.throttled,
            blamed: view.blamed.into(),
            assigned: view.assigned,
            refused: view.refused,
        }
    }
}

/// Calls that failed, by who is to blame if the device is not.
#[derive(Debug, Serialize, ToSchema)]
pub struct Blamed {
    /// DPS itself.
    pub instance: u64,
    /// What is between us and DPS.
    pub path: u64,
    /// This machine, or its configuration.
    pub ourselves: u64,
}

impl From<BlamedView> for Blamed {
    fn from(view: BlamedView) -> Self {
        Self { instance: view.instance, path: view.path, ourselves: view.ourselves }
    }
}

problems! {
    /// What `GET /v1/instances` refuses.
    InstancesProblems = [EVERY, TOKEN] + {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_written_as_metrics_name_them() {
        for state in CircuitState::ALL {
            assert_eq!(serde_json::to_value(Breaker::from(state)).unwrap(), state.as_str());
        }
        for state in adaptive_limit::LimitState::ALL {
            assert_eq!(serde_json::to_value(LimitState::from(state)).unwrap(), state.as_str());
        }
    }
}
