//! Why a call is refused, and what its client is told.

use crate::throttle::retry_after_seconds;

/// An error answer in the making.
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: u32,
    pub(super) message: String,
    pub(super) retry_after: Option<u64>,
    pub(super) allow: Option<&'static str>,
    pub(super) reason: Option<&'static str>,
}

impl Refusal {
    pub(super) fn new(code: u32, message: impl Into<String>) -> Self {
        // A six-digit code begins with the status.
        let status = u16::try_from(code / 1000).unwrap_or(500);
        Self { status, code, message: message.into(), retry_after: None, allow: None, reason: None }
    }

    pub(super) fn unauthorized(reason: &'static str) -> Self {
        Self { reason: Some(reason), ..Self::new(401_002, "Unauthorized") }
    }

    pub(super) fn without_credential() -> Self {
        let message = "Unauthorized: the request has no Authorization header; a shared access signature belongs there";
        Self { reason: Some("no Authorization header"), ..Self::new(401_002, message) }
    }

    pub(super) fn throttled(wait_ns: u64) -> Self {
        Self { retry_after: Some(retry_after_seconds(wait_ns)), ..Self::new(429_001, "Throttled") }
    }
}
