//! How a registration ended, and how the service tells it.

use std::sync::Arc;

use crate::wire::{RegistrationResult, Status, Substatus, SymmetricKeyResult, timestamp};

/// A finished registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) status: Status,
    pub(super) substatus: Option<Substatus>,
    pub(super) hub: Option<Arc<str>>,
    pub(super) device_id: Arc<str>,
    pub(super) group: Option<Arc<str>>,
    pub(super) error: Option<(u32, Arc<str>)>,
    /// From a custom allocation policy.
    pub(super) payload: Option<Arc<serde_json::Value>>,
    pub(super) created_ms: u64,
    pub(super) updated_ms: u64,
    pub(super) etag: u64,
}

impl Outcome {
    pub(crate) fn result<'a>(&'a self, registration_id: &'a str) -> RegistrationResult<'a> {
        let assigned = self.status == Status::Assigned;
        RegistrationResult {
            symmetric_key: self
                .group
                .as_deref()
                .filter(|_| assigned)
                .map(|group| SymmetricKeyResult { enrollment_group_id: group }),
            registration_id,
            created_date_time_utc: Some(timestamp(self.created_ms)),
            assigned_hub: self.hub.as_deref().filter(|_| assigned),
            // The embedded C parser wants both of assignedHub and deviceId, or neither.
            device_id: assigned.then_some(&*self.device_id),
            status: self.status,
            substatus: self.substatus,
            error_code: self.error.as_ref().map(|(code, _)| *code),
            error_message: self.error.as_ref().map(|(_, message)| &**message),
            payload: self.payload.as_deref().filter(|_| assigned),
            last_updated_date_time_utc: Some(timestamp(self.updated_ms)),
            etag: Some(etag(self.etag)),
        }
    }
}

/// Base64 of a quoted hexadecimal text, as in published captures.
fn etag(value: u64) -> String {
    use base64::Engine as _;
    let quoted = format!("\"{:08x}-0000-0000-0000-{:012x}\"", value >> 32, value & 0xFFFF_FFFF_FFFF);
    base64::engine::general_purpose::STANDARD.encode(quoted)
}
