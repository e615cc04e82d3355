//! Enrollments as they are configured: groups, single devices, and what happens when a device moves.

use serde::{Deserialize, Serialize};

use crate::config_error::ConfigError;

/// A symmetric-key enrollment group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// The `enrollmentGroupId`.
    pub name: String,
    /// Primary group key: base64 of 16 to 64 bytes.
    #[serde(rename = "key")]
    pub key_base64: String,
    /// Secondary group key.
    #[serde(rename = "secondary-key", default)]
    pub secondary_key_base64: Option<String>,
    /// The one hub of a static allocation; hashed over the linked hubs if absent.
    #[serde(default)]
    pub hub: Option<String>,
    /// What happens when a later allocation names another hub.
    #[serde(default)]
    pub reprovision: ReprovisionPolicy,
    /// What a custom allocation policy returns for the device, as it is: an object. The hub is still chosen as above.
    #[serde(default)]
    pub payload: Option<serde_json::Value>,
    /// A disabled enrollment answers 401, as the service does.
    #[serde(default)]
    pub disabled: bool,
}

impl GroupConfig {
    /// A group with hashed allocation and the default reprovisioning policy.
    #[must_use]
    pub fn new(name: impl Into<String>, key_base64: impl Into<String>) -> Self {
        Self { name: name.into(), key_base64: key_base64.into(), ..Self::default() }
    }
}

/// A symmetric-key individual enrollment; its key is used as it is, without derivation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndividualConfig {
    /// Registration ID.
    #[serde(rename = "id")]
    pub registration_id: String,
    /// Primary key: base64 of 16 to 64 bytes.
    #[serde(rename = "key")]
    pub key_base64: String,
    /// Secondary key.
    #[serde(rename = "secondary-key", default)]
    pub secondary_key_base64: Option<String>,
    /// Device ID at the hub; the registration ID if absent.
    #[serde(rename = "device-id", default)]
    pub device_id: Option<String>,
    /// The one hub of a static allocation; hashed over the linked hubs if absent.
    #[serde(default)]
    pub hub: Option<String>,
    /// What happens when a later allocation names another hub.
    #[serde(default)]
    pub reprovision: ReprovisionPolicy,
    /// What a custom allocation policy returns for the device, as it is: an object. The hub is still chosen as above.
    #[serde(default)]
    pub payload: Option<serde_json::Value>,
    /// A disabled enrollment answers 401, as the service does.
    #[serde(default)]
    pub disabled: bool,
}

impl IndividualConfig {
    /// An individual enrollment with hashed allocation and the default reprovisioning policy.
    #[must_use]
    pub fn new(registration_id: impl Into<String>, key_base64: impl Into<String>) -> Self {
        Self { registration_id: registration_id.into(), key_base64: key_base64.into(), ..Self::default() }
    }
}

/// What happens when a device registers again and allocation names another hub.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReprovisionPolicy {
    /// The device moves and its twin with it: `deviceDataMigrated`. The service's default.
    #[default]
    Migrate,
    /// The device moves and starts with the initial twin: `deviceDataReset`.
    Reset,
    /// The device stays on its first hub.
    Never,
}

pub(crate) fn check_payload(of: &str, payload: Option<&serde_json::Value>) -> Result<(), ConfigError> {
    match payload {
        Some(payload) if !payload.is_object() => {
            Err(ConfigError::new(format!("the payload of `{of}` is not an object")))
        }
        Some(_) | None => Ok(()),
    }
}
