//! What is known of a registration, for those who look from outside.

use crate::wire::{Status, Substatus};

/// What is known of a registration, for tests and the control interface.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// In lower case.
    pub registration_id: String,
    /// Status of the last finished registration; `assigning` if none has finished.
    pub status: Status,
    /// Substatus, if assigned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub substatus: Option<Substatus>,
    /// Device ID at the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Hub on which the device is now, also after a later failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assigned_hub: Option<String>,
    /// Register calls that were accepted.
    pub registers: u32,
    /// Operations that run now.
    pub running: u32,
    /// First registration, Unix milliseconds.
    pub created_unix_ms: u64,
    /// Last finished registration, Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_unix_ms: Option<u64>,
}
