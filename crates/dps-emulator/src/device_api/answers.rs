//! Answers and refusals as the service words them.

use std::sync::Arc;

use super::message::{Answer, Request};
use super::refusal::Refusal;
use super::{Case, Dps};
use crate::journal::RefusedCall;
use crate::seeded::guid;
use crate::wire::{ErrorBody, timestamp};

const JSON: &str = "application/json; charset=utf-8";

impl Dps {
    fn tracking_id(&self) -> String {
        guid(self.config.seed ^ 0x7452_4143_4b49_4e47, self.requests)
    }

    pub(super) fn answer(&self, status: u16, body: &impl serde::Serialize, location: Option<String>) -> Answer {
        let mut headers = vec![("Content-Type", JSON.to_owned()), ("x-ms-request-id", self.tracking_id())];
        if let Some(location) = location {
            headers.push(("Location", location));
            headers.push(("Retry-After", self.config.retry_after_seconds.to_string()));
        }
        Answer { status, headers, body: serde_json::to_vec(body).expect("bodies are plain structures") }
    }

    pub(super) fn refuse(&self, refusal: &Refusal, request: &Request<'_>, case: &mut Case) -> Answer {
        case.unauthorized = refusal.reason;
        let reason = refusal.reason.unwrap_or(&refusal.message);
        case.refused = Some(Arc::new(RefusedCall::new(reason, request.method, request.path)));
        let tracking_id = self.tracking_id();
        let body = ErrorBody {
            error_code: refusal.code,
            tracking_id: &tracking_id,
            message: &refusal.message,
            timestamp_utc: timestamp(case.now.unix_ms),
        };
        let mut headers = vec![
            ("Content-Type", JSON.to_owned()),
            ("x-ms-request-id", tracking_id.clone()),
            ("x-ms-error-code", refusal.code.to_string()),
        ];
        headers.extend(refusal.retry_after.map(|seconds| ("Retry-After", seconds.to_string())));
        headers.extend(refusal.allow.map(|method| ("Allow", method.to_owned())));
        let body = serde_json::to_vec(&body).expect("bodies are plain structures");
        Answer { status: refusal.status, headers, body }
    }
}
