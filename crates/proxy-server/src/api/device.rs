//! What devices send and are told.

use proxy_core::attestation::HandedCredential;
use proxy_core::use_cases::provision as core;
use rate_control::time::WallTime;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::members::{FromMembers, Members};
use super::names::{DeviceId, HardwareId, HubName, Moment, RegistrationId};
use super::problem::{BODY, EVERY, STORE, problems};

/// A device asks for its hub. It repeats the same request until it is told one.
#[derive(Debug, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Provision {
    /// What names the device.
    #[schema(value_type = HardwareId)]
    pub hardware_id: String,
    /// For DPS's custom allocation policy; at most `device.payload_max_bytes` (4 KiB) of JSON. The latest one wins until the
    /// registration is sent.
    #[schema(value_type = Option<Object>, required = false)]
    pub payload: Option<Map<String, Value>>,
    /// Asks for a new registration. One that was begun since this was first asked, or within `registration.reprovision_cooldown`, is
    /// that registration, so repeating the request never loops.
    #[schema(value_type = Option<bool>, required = false)]
    pub reprovision: bool,
}

impl FromMembers for Provision {
    fn from_members(members: &Members) -> Result<Self, String> {
        Ok(Self {
            hardware_id: members.required_text("hardwareId")?,
            payload: members.object("payload")?,
            reprovision: members.flag("reprovision")?,
        })
    }
}

/// The word of an answer that tells a hub.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AssignedStatus {
    /// It has a hub.
    Assigned,
}

/// The device's hub. At most 512 bytes without `payload` and `credential`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Assigned {
    /// When the device came to this hub.
    pub assigned_at: Moment,
    /// Its hub.
    pub assigned_hub: HubName,
    /// What it proves itself with there, if its enrollment hands that out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub credential: Option<Credential>,
    /// As its hub knows it.
    pub device_id: DeviceId,
    /// What a custom allocation policy returned for it: any JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value, required = false)]
    pub payload: Option<Value>,
    /// As DPS knows it.
    pub registration_id: RegistrationId,
    /// Always `assigned`.
    pub status: AssignedStatus,
    /// DPS's word for what it did, for example `initialAssignment`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub substatus: Option<String>,
}

impl From<core::Assigned> for Assigned {
    fn from(assigned: core::Assigned) -> Self {
        Self {
            assigned_at: assigned.assigned_at.into(),
            assigned_hub: assigned.hub.into(),
            credential: assigned.credential.map(Credential::from),
            device_id: assigned.device_id.into(),
            payload: assigned.payload,
            registration_id: assigned.registration_id.into(),
            status: AssignedStatus::Assigned,
            substatus: assigned.substatus,
        }
    }
}

/// What a device proves itself with at its hub.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Credential {
    /// A SAS token for its hub.
    #[serde(rename_all = "camelCase")]
    HubSas {
        /// The token.
        token: String,
        /// Its end.
        expires_at: Moment,
    },
    /// Its symmetric key.
    DerivedKey {
        /// The key, in base64.
        key: String,
    },
}

impl From<HandedCredential> for Credential {
    fn from(handed: HandedCredential) -> Self {
        match handed {
            HandedCredential::HubSas { token, expires_at } => Self::HubSas { token, expires_at: expires_at.into() },
            HandedCredential::DerivedKey { key } => Self::DerivedKey { key },
        }
    }
}

/// The word of an answer that tells a place.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum QueuedStatus {
    /// It waits in line.
    Queued,
}

/// The device's place in line, and when to come back.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Queued {
    /// When its assignment should be there.
    pub appointment: Moment,
    /// Devices that go before it, plus one; 0 while DPS works on it.
    pub position: usize,
    /// When to come back, in seconds: a forecast for this device alone. The header says the same.
    #[schema(minimum = 1)]
    pub retry_after: u64,
    /// Always `queued`.
    pub status: QueuedStatus,
}

impl From<core::Queued> for Queued {
    fn from(queued: core::Queued) -> Self {
        let core::Queued { retry_after_seconds, appointment, position } = queued;
        Self {
            appointment: appointment.into(),
            position,
            retry_after: retry_after_seconds,
            status: QueuedStatus::Queued,
        }
    }
}

/// The time that credentials are judged by.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Time {
    /// As text.
    pub time: Moment,
    /// The same in whole seconds since 1970, as the `se` of a SAS token counts them.
    pub unix_seconds: i64,
}

impl From<WallTime> for Time {
    fn from(now: WallTime) -> Self {
        Self { time: now.into(), unix_seconds: now.unix_seconds() }
    }
}

problems! {
    /// What `POST /v1/provision` refuses.
    ProvisionProblems = [EVERY, BODY, STORE] + {
        400: [InvalidHardwareId],
        401: [Unauthorized, CredentialExpired, CredentialTooFarAhead],
        403: [Blocked, Retired, BelongsToAnotherTenant],
        413: [PayloadTooLarge],
        422: [RefusedByDps],
        429: [TooFast],
        503: [LineFull, NoRoom, ShuttingDown],
    }
}

problems! {
    /// What `GET /v1/time` refuses.
    TimeProblems = [EVERY] + {}
}
