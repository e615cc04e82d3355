//! What DPS decided about a device, and how far that may be relied on.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::unknown::Unknown;
use crate::ids::{DeviceId, HubName, InstanceName};
use rate_control::time::WallTime;

/// How far an assignment may be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AssignmentState {
    /// DPS said so and nobody contradicted. The only state that gives a device 200.
    Confirmed,
    /// A hub or a backend contradicted: the device joins the line.
    Suspect,
    /// An operator moves the device to another instance.
    Moved,
    /// An operator deleted the device.
    Retired,
}

/// What DPS decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Assignment {
    /// The hub.
    pub hub: HubName,
    /// The device's name at that hub.
    pub device_id: DeviceId,
    /// The instance that decided.
    pub instance: InstanceName,
    /// How far to rely on it.
    pub state: AssignmentState,
    /// DPS's word for what it did, for example `initialAssignment`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub substatus: Option<String>,
    /// What a custom allocation policy returned for the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Value>,
    /// When the device came to this hub.
    pub assigned_at: WallTime,
    /// When DPS last said so.
    pub confirmed_at: WallTime,
    /// When somebody last contradicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspected_at: Option<WallTime>,
    /// Grows with every change that a backend could care about.
    pub revision: u64,
    /// DPS's `etag` of the registration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dps_etag: Option<String>,
    /// DPS's `lastUpdatedDateTimeUtc` of the registration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dps_last_updated: Option<WallTime>,
    /// What a newer version wrote beside this.
    #[serde(flatten, skip_deserializing)]
    pub(super) unknown: Unknown,
}
