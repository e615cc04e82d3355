//! Which hub a device is on, as backends are told it, and what they contradict.

use proxy_core::device;
use proxy_core::ids::HubName as CoreHubName;
use proxy_core::use_cases::backend as core;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::members::{FromMembers, Members};
use super::mirrored;
use super::names::{DeviceId, HubName, InstanceName, Moment, RegistrationId, TenantName};
use super::problem::{BODY, Code, EVERY, QUERY, STORE, TOKEN, Told, Upstream, problems};

mirrored! {
    /// How far an assignment may be relied on. `confirmed`: DPS said so and nobody contradicted; rely on this one only. `suspect`: a hub or
    /// a backend contradicted it, and the device joins the line. `moved`: an operator moves the device to another instance. `retired`: an
    /// operator deleted the device.
    AssignmentState of device::AssignmentState {
        /// DPS said so and nobody contradicted.
        Confirmed,
        /// A hub or a backend contradicted it.
        Suspect,
        /// An operator moves the device to another instance.
        Moved,
        /// An operator deleted the device.
        Retired,
    }
}

/// An assignment.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// As its hub knows it.
    pub device_id: DeviceId,
    /// As DPS knows it.
    pub registration_id: RegistrationId,
    /// Whose.
    pub tenant: TenantName,
    /// Where to send.
    pub assigned_hub: HubName,
    /// Who decided.
    pub instance: InstanceName,
    /// How far to rely on it.
    pub state: AssignmentState,
    /// When the device came to this hub.
    pub assigned_at: Moment,
    /// When DPS last said so.
    pub last_confirmed_at: Moment,
    /// Grows with every change.
    pub revision: u64,
}

impl From<core::AssignmentView> for Assignment {
    fn from(view: core::AssignmentView) -> Self {
        Self {
            device_id: view.device_id.into(),
            registration_id: view.registration_id.into(),
            tenant: view.tenant.into(),
            assigned_hub: view.assigned_hub.into(),
            instance: view.instance.into(),
            state: view.state.into(),
            assigned_at: view.assigned_at.into(),
            last_confirmed_at: view.last_confirmed_at.into(),
            revision: view.revision,
        }
    }
}

/// Asks for many devices at once.
#[derive(Debug, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lookup {
    /// As their hubs know them; at most `backend.lookup_ids_max`, which is 1,000 unless configured otherwise.
    #[schema(max_items = 1000)]
    pub device_ids: Vec<String>,
}

impl FromMembers for Lookup {
    fn from_members(members: &Members) -> Result<Self, String> {
        Ok(Self { device_ids: members.required_texts("deviceIds")? })
    }
}

/// What is known of each, in the order asked.
#[derive(Debug, Serialize, ToSchema)]
pub struct LookupAnswers {
    /// One for each.
    pub assignments: Vec<LookupAnswer>,
}

/// What is known of one device.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum LookupAnswer {
    /// It has, or had, a hub.
    Found(FoundAnswer),
    /// It has none.
    NotFound(NotFoundAnswer),
}

/// A device that has, or had, a hub.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FoundAnswer {
    /// As it was asked for.
    pub device_id: String,
    /// Always `true`.
    pub found: bool,
    /// Its assignment.
    pub assignment: Assignment,
}

/// A device that has no hub.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotFoundAnswer {
    /// As it was asked for.
    pub device_id: String,
    /// Always `false`.
    pub found: bool,
    /// Why, as the call for one device tells it.
    pub code: Code,
    /// With `refused`: what DPS said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub upstream: Option<Upstream>,
    /// With `differs-in-case`: the spelling that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub known_as: Option<String>,
}

/// Why an assignment is contradicted.
#[derive(Debug, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Invalidation {
    /// Goes into the device's timeline: printable characters only, and the first 200 of them.
    #[schema(examples("hub-404001"))]
    pub reason: Option<String>,
}

impl FromMembers for Invalidation {
    fn from_members(members: &Members) -> Result<Self, String> {
        Ok(Self { reason: members.text("reason")? })
    }
}

/// A hub whose devices are in doubt.
#[derive(Debug, Serialize, ToSchema)]
pub struct HubInvalidated {
    /// The hub.
    pub hub: HubName,
    /// Assignments that became `suspect`.
    pub invalidated: u64,
}

impl HubInvalidated {
    /// `invalidated` devices of `hub`.
    #[must_use]
    pub fn new(hub: CoreHubName, invalidated: u64) -> Self {
        Self { hub: hub.into(), invalidated }
    }
}

/// Which assignments to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AssignmentsQuery {
    /// What the page before gave as `next`. How it is made up may change.
    #[param(pattern = "^[0-9a-f]{16}-[0-9]{1,19}~[A-Za-z0-9]([A-Za-z0-9._:-]{0,126}[A-Za-z0-9-])?$")]
    pub after: Option<String>,
    /// Devices in a page, at most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<usize>,
    /// Only those of this tenant.
    #[param(value_type = Option<TenantName>)]
    pub tenant: Option<String>,
}

/// A page of the assignments, in whatever state, in the order of the registration IDs.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AssignmentPage {
    /// Perhaps none, also where there are more.
    pub assignments: Vec<Assignment>,
    /// Taken before the first page: follow the changes from here, and nothing is missed.
    pub feed_position: String,
    /// What to name as `after` for the next page; the last page has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub next: Option<String>,
}

/// What is wrong with the path of a device or a hub.
const PATH: Told = &[(400, &[Code::InvalidPath])];
/// Why a device has no hub.
const WITHOUT_HUB: Told = &[
    (
        404,
        &[
            Code::NeverSeen,
            Code::DiffersInCase,
            Code::InLine,
            Code::Refused,
            Code::Blocked,
            Code::Retired,
            Code::NotInLine,
        ],
    ),
    (409, &[Code::AmbiguousDeviceId]),
];

problems! {
    /// What `GET /v1/devices/{deviceId}/assignment` refuses.
    AssignmentProblems = [EVERY, TOKEN, QUERY, STORE, PATH, WITHOUT_HUB] + {}
}

problems! {
    /// What `POST /v1/devices/{deviceId}/assignment/invalidate` refuses.
    InvalidateProblems = [EVERY, TOKEN, QUERY, BODY, STORE, PATH, WITHOUT_HUB] + {}
}

problems! {
    /// What `POST /v1/assignments/lookup` refuses.
    LookupProblems = [EVERY, TOKEN, QUERY, BODY, STORE] + { 400: [TooManyIds] }
}

problems! {
    /// What `POST /v1/hubs/{hostName}/invalidate` refuses.
    InvalidateHubProblems = [EVERY, TOKEN, QUERY, BODY, STORE, PATH] + { 400: [InvalidHostName], 429: [OneAtATime] }
}

problems! {
    /// What `GET /v1/assignments` refuses.
    ListProblems = [EVERY, TOKEN, QUERY, STORE] + { 410: [ListOutdated], 429: [OneAtATime] }
}
