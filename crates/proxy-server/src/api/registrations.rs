//! One device, and lists of devices, as operators see them; and what operators wish for a device.

use proxy_core::use_cases::lists;
use proxy_core::use_cases::operator as core;
use proxy_core::{device, place};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::assignments::AssignmentState;
use super::members::{FromMembers, Members};
use super::mirrored;
use super::names::{
    DeviceId, EnrollmentName, HardwareId, HubName, InstanceName, Moment, OperationId, RegistrationId, TenantName,
};
use super::problem::{ACT, BODY, EVERY, QUERY, REGISTRATION, STORE, TOKEN, problems};

mirrored! {
    /// What a device is to us; each is in one state. `listed`: on the allow-list, never came. `waiting`: in line. `under-way`: its
    /// registration is with DPS. `assigned`: it has a confirmed hub. `suspect`: its assignment was contradicted, and it is not in line.
    /// `moved`: an operator moved it, and it is not in line. `refused`: DPS refused it, and that is still believed. `idle`: it came, and has
    /// neither place nor hub. `blocked`: an operator keeps it out. `retired`: an operator deleted it.
    RegistrationState of lists::RegistrationState {
        /// On the allow-list, never came.
        Listed,
        /// In line.
        Waiting,
        /// Its registration is with DPS.
        UnderWay,
        /// It has a confirmed hub.
        Assigned,
        /// Its assignment was contradicted, and it is not in line.
        Suspect,
        /// An operator moved it, and it is not in line.
        Moved,
        /// DPS refused it, and that is still believed.
        Refused,
        /// It came, and has neither place nor hub.
        Idle,
        /// An operator keeps it out.
        Blocked,
        /// An operator deleted it.
        Retired,
    }
}

/// Which devices to list: those that fit all of these.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RegistrationsQuery {
    /// What the page before gave as `next`: a registration ID.
    #[param(value_type = Option<HardwareId>)]
    pub after: Option<String>,
    /// Devices in a page, at most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<usize>,
    /// Only those in this state.
    #[param(value_type = Option<RegistrationState>)]
    pub state: Option<String>,
    /// Only those of this tenant.
    #[param(value_type = Option<TenantName>)]
    pub tenant: Option<String>,
    /// Only those that wait for this instance, or were assigned by it.
    #[param(value_type = Option<InstanceName>)]
    pub instance: Option<String>,
}

/// A page of devices, in the order of their registration IDs.
#[derive(Debug, Serialize, ToSchema)]
pub struct RegistrationPage {
    /// Perhaps none, also where there are more.
    pub registrations: Vec<RegistrationSummary>,
    /// What to name as `after` for the next page; the last page has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub next: Option<RegistrationId>,
}

impl From<lists::Page<lists::RegistrationSummary>> for RegistrationPage {
    fn from(page: lists::Page<lists::RegistrationSummary>) -> Self {
        let registrations = page.items.into_iter().map(RegistrationSummary::from).collect();
        Self { registrations, next: page.next.map(RegistrationId::from) }
    }
}

/// One device in a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegistrationSummary {
    /// Who.
    pub registration_id: RegistrationId,
    /// Whose; not there while the device is only blocked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub tenant: Option<TenantName>,
    /// By which rules; not there while the device is only blocked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub enrollment: Option<EnrollmentName>,
    /// What it is to us.
    pub state: RegistrationState,
    /// The instance that it waits for, or that assigned it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub instance: Option<InstanceName>,
    /// Its hub, in whatever state the assignment is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub assigned_hub: Option<HubName>,
    /// As its hub knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub device_id: Option<DeviceId>,
}

impl From<lists::RegistrationSummary> for RegistrationSummary {
    fn from(summary: lists::RegistrationSummary) -> Self {
        Self {
            registration_id: summary.registration_id.into(),
            tenant: summary.tenant.map(TenantName::from),
            enrollment: summary.enrollment.map(EnrollmentName::from),
            state: summary.state.into(),
            instance: summary.instance.map(InstanceName::from),
            assigned_hub: summary.assigned_hub.map(HubName::from),
            device_id: summary.device_id.map(DeviceId::from),
        }
    }
}

/// All that is known of one device, without secrets.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// Who.
    pub registration_id: RegistrationId,
    /// The hardware ID in the device's own spelling, where it is not the registration ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub hardware_id: Option<String>,
    /// Whose; not there while the device is only blocked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub tenant: Option<TenantName>,
    /// By which rules; not there while the device is only blocked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub enrollment: Option<EnrollmentName>,
    /// `true` while an operator's block is all that is known; else not there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unclaimed: bool,
    /// Its entry on the allow-list.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub listed: Option<Listed>,
    /// Its last assignment, in whatever state.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub assignment: Option<RegistrationAssignment>,
    /// What it waits for, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub pending: Option<Pending>,
    /// DPS's last refusal, until it expires or is cleared.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub refusal: Option<Refusal>,
    /// That an operator keeps it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub blocked: Option<Blocked>,
    /// When an operator deleted it: what is left is a tombstone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub retired: Option<Moment>,
    /// Where an operator moves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub moving_to: Option<InstanceName>,
    /// Instances that may hold a registration of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub footprint: Vec<InstanceName>,
    /// When the last registration was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub last_sent: Option<Moment>,
    /// When the registration behind the assignment was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub last_registration_begun: Option<Moment>,
    /// `true` if it was reprovisioned and not told yet; else not there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reprovisioned_untold: bool,
    /// When it was told of a reprovisioning.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reprovision_told: Option<Moment>,
    /// When its credential was handed out, where that happens once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub credential_claimed: Option<Moment>,
    /// What happened to it, oldest first, bounded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<TimelineEvent>,
    /// Why it waits, in plain words.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub waiting_because: Option<String>,
    /// Its place now.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub position: Option<usize>,
    /// When its assignment should be there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub appointment: Option<Moment>,
}

impl From<core::RegistrationView> for Registration {
    fn from(view: core::RegistrationView) -> Self {
        let core::RegistrationView { record, waiting_because, position, appointment } = view;
        let is_claimed = !record.is_unclaimed();
        Self {
            registration_id: record.registration_id().into(),
            hardware_id: record.hardware_id().map(str::to_owned),
            tenant: is_claimed.then(|| record.tenant().into()),
            enrollment: is_claimed.then(|| record.enrollment().into()),
            unclaimed: record.is_unclaimed(),
            listed: record.listed().map(Listed::from),
            assignment: record.assignment().cloned().map(RegistrationAssignment::from),
            pending: record.pending().cloned().map(Pending::from),
            refusal: record.refusal().cloned().map(Refusal::from),
            blocked: record.blocked().cloned().map(Blocked::from),
            retired: record.retired().map(Moment::from),
            moving_to: record.moving_to().map(InstanceName::from),
            footprint: record.footprint().iter().map(InstanceName::from).collect(),
            last_sent: record.last_sent().map(Moment::from),
            last_registration_begun: record.last_registration_begun().map(Moment::from),
            reprovisioned_untold: record.reprovisioned_untold(),
            reprovision_told: record.reprovision_told().map(Moment::from),
            credential_claimed: record.credential_claimed().map(Moment::from),
            timeline: record.timeline().iter().cloned().map(TimelineEvent::from).collect(),
            waiting_because,
            position,
            appointment: appointment.map(Moment::from),
        }
    }
}

/// An entry on the allow-list. A key that came with it is never shown.
#[derive(Debug, Serialize, ToSchema)]
pub struct Listed {
    /// The delivery it came with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub batch: Option<String>,
    /// When it was listed.
    pub at: Moment,
}

impl From<&device::Listed> for Listed {
    fn from(listed: &device::Listed) -> Self {
        Self { batch: listed.batch.clone(), at: listed.at.into() }
    }
}

/// What DPS decided.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegistrationAssignment {
    /// The hub.
    pub hub: HubName,
    /// As its hub knows it.
    pub device_id: DeviceId,
    /// Who decided.
    pub instance: InstanceName,
    /// How far to rely on it.
    pub state: AssignmentState,
    /// DPS's word for what it did, for example `initialAssignment`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub substatus: Option<String>,
    /// What a custom allocation policy returned for the device: any JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value, required = false)]
    pub payload: Option<Value>,
    /// When the device came to this hub.
    pub assigned_at: Moment,
    /// When DPS last said so.
    pub confirmed_at: Moment,
    /// When somebody last contradicted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub suspected_at: Option<Moment>,
    /// Grows with every change.
    pub revision: u64,
    /// DPS's `etag` of the registration.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub dps_etag: Option<String>,
    /// DPS's `lastUpdatedDateTimeUtc` of the registration.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub dps_last_updated: Option<Moment>,
}

impl From<device::Assignment> for RegistrationAssignment {
    fn from(assignment: device::Assignment) -> Self {
        Self {
            hub: assignment.hub.into(),
            device_id: assignment.device_id.into(),
            instance: assignment.instance.into(),
            state: assignment.state.into(),
            substatus: assignment.substatus,
            payload: assignment.payload,
            assigned_at: assignment.assigned_at.into(),
            confirmed_at: assignment.confirmed_at.into(),
            suspected_at: assignment.suspected_at.map(Moment::from),
            revision: assignment.revision,
            dps_etag: assignment.dps_etag,
            dps_last_updated: assignment.dps_last_updated.map(Moment::from),
        }
    }
}

mirrored! {
    /// Why a device is in line: it has no assignment, asked for a new one, its assignment is suspect, or an operator moves it.
    WaitReason of device::Reason {
        /// It has no assignment.
        First,
        /// It asked for a new one.
        Reprovision,
        /// Its assignment is suspect.
        Suspect,
        /// An operator moves it.
        Moved,
    }
}

mirrored! {
    /// In which order devices of a tenant go, beside that of their coming: `expedited` by an operator; those without an assignment; those that
    /// ask for another one; those that nobody at the door waits for.
    Class of place::Class {
        /// Moved ahead by an operator.
        Expedited,
        /// Without an assignment.
        First,
        /// With an assignment, and asking for another.
        Reprovision,
        /// Nobody at the door.
        Background,
    }
}

/// Where a device stands in a line.
#[derive(Debug, Serialize, ToSchema)]
pub struct Place {
    /// Its class.
    pub class: Class,
    /// Its number within the class, in the order of coming.
    pub sequence: u64,
}

impl From<place::Place> for Place {
    fn from(place: place::Place) -> Self {
        Self { class: place.class.into(), sequence: place.sequence }
    }
}

/// How far the registration of a device in line has come.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "at")]
pub enum Stage {
    /// Nothing that counts has left.
    Waiting,
    /// A registration may have left; its outcome is unknown until DPS answers.
    #[serde(rename_all = "camelCase")]
    Sent {
        /// When.
        time: Moment,
        /// The latest that DPS's own clock can have read then.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        dps_time: Option<Moment>,
    },
    /// DPS works on it.
    #[serde(rename_all = "camelCase")]
    Assigning {
        /// What is polled.
        operation_id: OperationId,
        /// When DPS answered so.
        time: Moment,
    },
}

impl From<device::Stage> for Stage {
    fn from(stage: device::Stage) -> Self {
        match stage {
            device::Stage::Waiting => Self::Waiting,
            device::Stage::Sent { time, dps_time } => {
                Self::Sent { time: time.into(), dps_time: dps_time.map(Moment::from) }
            }
            device::Stage::Assigning { operation_id, time } => {
                Self::Assigning { operation_id: operation_id.into(), time: time.into() }
            }
        }
    }
}

/// What a device waits for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// Whose line.
    pub instance: InstanceName,
    /// Where in it.
    pub place: Place,
    /// Why.
    pub reason: WaitReason,
    /// Since when.
    pub joined_at: Moment,
    /// How far its registration has come.
    pub stage: Stage,
    /// `true` if the device asked for a new registration; else not there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reprovision: bool,
    /// `true` if the instance held nothing of the device before; else not there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub first_there: bool,
    /// The request that gave the device this place, where one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub request_id: Option<String>,
    /// Registrations sent for it so far.
    pub attempts: u32,
    /// Of these, how many DPS gave no result for while it gave one to others.
    pub fruitless: u32,
    /// What the device wants DPS's allocation policy to know: any JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value, required = false)]
    pub payload: Option<Value>,
    /// Where it stood before: the instance that it was first placed at fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub home: Option<Home>,
    /// How often it was booked on another instance for that reason; not there if never.
    #[serde(skip_serializing_if = "is_zero")]
    pub rebooked: u32,
}

const fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl From<device::Pending> for Pending {
    fn from(pending: device::Pending) -> Self {
        Self {
            instance: pending.instance.into(),
            place: pending.place.into(),
            reason: pending.reason.into(),
            joined_at: pending.joined_at.into(),
            stage: pending.stage.into(),
            reprovision: pending.reprovision,
            first_there: pending.first_there,
            request_id: pending.request_id,
            attempts: pending.attempts,
            fruitless: pending.fruitless,
            payload: pending.payload,
            home: pending.home.map(Home::from),
            rebooked: pending.rebooked,
        }
    }
}

/// Its place before it was booked on another instance; it returns there if that is sooner.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Home {
    /// Whose line.
    pub instance: InstanceName,
    /// Where in it.
    pub place: Place,
    /// Since when it had that.
    pub joined_at: Moment,
}

impl From<device::Home> for Home {
    fn from(home: device::Home) -> Self {
        Self { instance: home.instance.into(), place: home.place.into(), joined_at: home.joined_at.into() }
    }
}

/// DPS refused the device.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// The kind of refusal.
    #[schema(examples("not-enrolled"))]
    pub code: String,
    /// What to mend, in plain words.
    pub detail: String,
    /// DPS's six-digit code, if it gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub error_code: Option<i64>,
    /// DPS's name for the failure, for a support request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub tracking_id: Option<String>,
    /// The instance that refused.
    pub instance: InstanceName,
    /// When.
    pub at: Moment,
    /// Until when it is believed.
    pub until: Moment,
    /// Names the settings under which it was given.
    pub settings_mark: u64,
}

impl From<device::Refusal> for Refusal {
    fn from(refusal: device::Refusal) -> Self {
        Self {
            code: refusal.code,
            detail: refusal.detail,
            error_code: refusal.error_code,
            tracking_id: refusal.tracking_id,
            instance: refusal.instance.into(),
            at: refusal.at.into(),
            until: refusal.until.into(),
            settings_mark: refusal.settings_mark,
        }
    }
}

/// An operator keeps the device out.
#[derive(Debug, Serialize, ToSchema)]
pub struct Blocked {
    /// In the operator's words; the latest ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reason: Option<String>,
    /// Who said so last: the name of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub by: Option<String>,
    /// Since when.
    pub at: Moment,
}

impl From<device::Blocked> for Blocked {
    fn from(blocked: device::Blocked) -> Self {
        Self { reason: blocked.reason, by: blocked.by, at: blocked.at.into() }
    }
}

/// One thing that happened to a device.
#[derive(Debug, Serialize, ToSchema)]
pub struct TimelineEvent {
    /// When.
    pub at: Moment,
    /// What, in plain words.
    pub what: String,
}

impl From<device::TimelineEvent> for TimelineEvent {
    fn from(event: device::TimelineEvent) -> Self {
        Self { at: event.at.into(), what: event.what }
    }
}

/// Why an operator acts on a device.
#[derive(Debug, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// In the operator's words, for the log and, of a block, for the device's record: printable characters only, and the first 200 of them.
    #[schema(examples("stolen"))]
    pub reason: Option<String>,
}

impl FromMembers for Action {
    fn from_members(members: &Members) -> Result<Self, String> {
        Ok(Self { reason: members.text("reason")? })
    }
}

/// Where to move a device.
#[derive(Debug, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// In the operator's words, for the log: printable characters only, and the first 200 of them.
    pub reason: Option<String>,
    /// The instance, by name. Without one, a move is 400 `invalid-request`.
    #[schema(value_type = InstanceName, required = true)]
    pub instance: Option<String>,
}

impl FromMembers for Move {
    fn from_members(members: &Members) -> Result<Self, String> {
        Ok(Self { reason: members.text("reason")?, instance: members.text("instance")? })
    }
}

/// How much of a device to delete.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteQuery {
    /// That no instance holds a registration of the device any more, so that it can be forgotten.
    #[serde(default)]
    #[param(required = false, default = false)]
    pub dps_record_deleted: bool,
}

problems! {
    /// What `GET /v1/registrations` refuses.
    RegistrationsProblems = [EVERY, TOKEN, QUERY, STORE] + { 429: [OneAtATime] }
}

problems! {
    /// What `GET /v1/registrations/{registrationId}` refuses.
    RegistrationProblems = [EVERY, TOKEN, REGISTRATION, STORE] + {}
}

problems! {
    /// What `DELETE /v1/registrations/{registrationId}` refuses.
    DeleteProblems = [EVERY, ACT, QUERY, REGISTRATION, STORE] + { 409: [NotNow] }
}

problems! {
    /// What the actions on a device refuse.
    ActionProblems = [EVERY, ACT, BODY, REGISTRATION, STORE] + {
        400: [InvalidRequest],
        409: [NotNow],
        503: [LineFull, NoRoom, ShuttingDown],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_written_as_they_are_asked_for() {
        for state in lists::RegistrationState::ALL {
            assert_eq!(serde_json::to_value(RegistrationState::from(state)).unwrap(), state.as_str());
        }
    }
}
