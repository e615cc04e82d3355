//! The service's bodies, written down on their own so that they can contradict a client.
//!
//! Invariants: members without a value are left out (the embedded C parser fails on `null`), statuses are lower-case, times
//! have seven fraction digits and a `Z`.
//!
//! Source: `DeviceRegistration`, `RegistrationOperationStatus` and `DeviceRegistrationResult` of the service's published
//! API specification, version 2021-10-01.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The largest message the service takes ("Quotas and limits": 96 KB).
pub const MESSAGE_BYTES_MAX: usize = 96 * 1024;

/// `enrollmentStatus`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Not assigned.
    Unassigned,
    /// Being assigned.
    Assigning,
    /// Assigned to a hub.
    Assigned,
    /// Failed; `errorCode` says why.
    Failed,
    /// Enrollment disabled.
    Disabled,
}

/// How a device came to its hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Substatus {
    /// First assignment.
    InitialAssignment,
    /// Moved, twin kept.
    DeviceDataMigrated,
    /// Moved, twin from the enrollment.
    DeviceDataReset,
    /// Reprovisioned to the hub it had.
    ReprovisionedToInitialAssignment,
}

/// Body of a register or lookup call, every member optional.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DeviceRegistration {
    pub(crate) registration_id: Option<String>,
    pub(crate) payload: Option<serde_json::Value>,
    pub(crate) tpm: Option<serde_json::Value>,
    pub(crate) csr: Option<serde_json::Value>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OperationStatus<'a> {
    pub(crate) operation_id: &'a str,
    pub(crate) status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) registration_state: Option<RegistrationResult<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SymmetricKeyResult<'a> {
    pub(crate) enrollment_group_id: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RegistrationResult<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) symmetric_key: Option<SymmetricKeyResult<'a>>,
    pub(crate) registration_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) created_date_time_utc: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) assigned_hub: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) device_id: Option<&'a str>,
    pub(crate) status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) substatus: Option<Substatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error_code: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error_message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_updated_date_time_utc: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) etag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payload: Option<&'a serde_json::Value>,
}

impl<'a> RegistrationResult<'a> {
    /// What a poll shows while the operation runs.
    pub(crate) fn assigning(registration_id: &'a str) -> Self {
        Self {
            symmetric_key: None,
            registration_id,
            created_date_time_utc: None,
            assigned_hub: None,
            device_id: None,
            status: Status::Assigning,
            substatus: None,
            error_code: None,
            error_message: None,
            last_updated_date_time_utc: None,
            etag: None,
            payload: None,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ErrorBody<'a> {
    pub(crate) error_code: u32,
    pub(crate) tracking_id: &'a str,
    pub(crate) message: &'a str,
    pub(crate) timestamp_utc: String,
}

/// A moment in the service's form: seven fraction digits and `Z`.
#[must_use]
pub fn timestamp(unix_ms: u64) -> String {
    let millis = i64::try_from(unix_ms).unwrap_or(i64::MAX);
    let moment = Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX);
    format!("{}.{:03}0000Z", moment.strftime("%Y-%m-%dT%H:%M:%S"), unix_ms % 1000)
}

/// `YYYY-MM-DD` or `YYYY-MM-DD-preview`, a date that could be one.
pub(crate) fn is_api_version(text: &str) -> bool {
    let date = text.strip_suffix("-preview").unwrap_or(text);
    date.len() == 10 && date.is_ascii() && date.parse::<jiff::civil::Date>().is_ok()
}

/// The service's grammar of registration IDs: 1 to 128 of letters, digits and `-._:`, the last one a letter, a digit or `-`.
/// The first one must be a letter or a digit: the published API specification forbids specials at either end, which is
/// the stricter of two texts. Case is accepted and folded.
pub(crate) fn is_registration_id(id: &str) -> bool {
    let bytes = id.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    bytes.len() <= 128
        && first.is_ascii_alphanumeric()
        && (last.is_ascii_alphanumeric() || *last == b'-')
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_have_seven_digits() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.0000000Z");
        assert_eq!(timestamp(1_767_225_600_042), "2026-01-01T00:00:00.0420000Z");
    }

    #[test]
    fn api_versions() {
        for good in ["2019-03-31", "2021-06-01", "2021-10-01", "2025-07-01-preview"] {
            assert!(is_api_version(good), "{good}");
        }
        for bad in ["", "2021", "2021-13-01", "2021-10-01-beta", "2021-10-01 ", "20211001", "+02021-10-01", "2021-1-1"]
        {
            assert!(!is_api_version(bad), "{bad}");
        }
    }

    #[test]
    fn registration_ids() {
        let longest = "a".repeat(128);
        for good in ["a", "A1", "sn-007-888", "gw01:sensor_9.x-a", "a-", longest.as_str()] {
            assert!(is_registration_id(good), "{good}");
        }
        let too_long = "a".repeat(129);
        for bad in ["", "-a", ".a", "a.", "a_", "a:", "a b", "ä", "a/b", "a%3Ab", too_long.as_str()] {
            assert!(!is_registration_id(bad), "{bad}");
        }
    }
}
