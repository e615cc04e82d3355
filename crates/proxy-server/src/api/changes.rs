//! Changes of assignments, as backends follow them.

use proxy_core::feed;
use serde::Serialize;
use utoipa::ToSchema;

use super::assignments::AssignmentState;
use super::names::{DeviceId, HubName, InstanceName, Moment, RegistrationId, TenantName};
use super::problem::{EVERY, QUERY, TOKEN, problems};

/// One change of one assignment: the `data` of an event `assignment`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Whose device.
    pub tenant: TenantName,
    /// As its hub knows it.
    pub device_id: DeviceId,
    /// As DPS knows it.
    pub registration_id: RegistrationId,
    /// Its hub.
    pub assigned_hub: HubName,
    /// Who decided.
    pub instance: InstanceName,
    /// How far to rely on it from now on.
    pub state: AssignmentState,
    /// The revision that the assignment has now.
    pub revision: u64,
    /// When.
    pub at: Moment,
}

impl From<feed::Change> for Change {
    fn from(change: feed::Change) -> Self {
        Self {
            tenant: change.tenant.into(),
            device_id: change.device_id.into(),
            registration_id: change.registration_id.into(),
            assigned_hub: change.assigned_hub.into(),
            instance: change.instance.into(),
            state: change.state.into(),
            revision: change.revision,
            at: change.at.into(),
        }
    }
}

/// Events were missed: the `data` of an event `reset`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Reset {
    /// What to do.
    #[schema(value_type = String)]
    pub reason: &'static str,
}

problems! {
    /// What `GET /v1/assignments/changes` refuses.
    ChangesProblems = [EVERY, TOKEN, QUERY] + { 503: [TooManyStreams] }
}
