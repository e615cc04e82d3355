//! Serves a call as a fault wants it.

use std::sync::Arc;

use super::message::{Answer, Request};
use super::refusal::Refusal;
use super::route::Route;
use super::{Case, Dps};
use crate::faults::{FaultAction, rewrite};
use crate::journal::Answered;
use crate::operation::Plan;

/// What a captive portal would send.
const WEB_PAGE: &[u8] =
    b"<!doctype html><html><head><title>Sign in to the network</title></head><body>Please sign in.</body></html>";

impl Dps {
    /// Serves a call as a fault wants it.
    pub(super) fn serve_with(
        &mut self,
        action: Option<FaultAction>,
        request: &Request<'_>,
        route: &Route<'_>,
        case: &mut Case,
    ) -> (Option<Answer>, Answered) {
        let answer = match action {
            Some(FaultAction::Reset) => return (None, Answered::Reset),
            // To the client it is the same as an answer that was lost.
            Some(FaultAction::Silence) => return (None, Answered::Lost),
            Some(FaultAction::WebPage { code }) => {
                let headers = vec![("Content-Type", "text/html; charset=utf-8".to_owned())];
                Answer { status: code, headers, body: WEB_PAGE.to_vec() }
            }
            Some(FaultAction::Rewrite { set, remove }) => {
                let mut answer = self.serve(request, route, case, Plan::Allocate, true);
                answer.body = rewrite(&answer.body, &set, &remove);
                answer
            }
            Some(FaultAction::LoseReply) => {
                self.serve(request, route, case, Plan::Allocate, false);
                return (None, Answered::Lost);
            }
            Some(FaultAction::Status { code, retry_after, error_code, intermediary }) => {
                self.forced_status(request, (code, retry_after, error_code, intermediary), case)
            }
            Some(FaultAction::MalformedBody { body, content_type }) => {
                let mut answer = self.serve(request, route, case, Plan::Allocate, true);
                answer.body = match body {
                    Some(body) => body.into_bytes(),
                    None => answer.body[..answer.body.len() / 2].to_vec(),
                };
                if let (Some(wanted), Some(header)) =
                    (content_type, answer.headers.iter_mut().find(|(name, _)| *name == "Content-Type"))
                {
                    header.1 = wanted;
                }
                answer
            }
            other => {
                let plan = match other {
                    Some(FaultAction::StuckAssigning) => Plan::GiveUp,
                    Some(FaultAction::Fail { error_code, message }) => {
                        Plan::Fail { error_code, message: Arc::from(message) }
                    }
                    Some(FaultAction::WrongHub { host }) => Plan::Hub(Arc::from(host)),
                    Some(FaultAction::Disabled) => Plan::Disabled,
                    Some(FaultAction::Unassigned) => Plan::Unassigned,
                    _ => Plan::Allocate,
                };
                self.serve(request, route, case, plan, true)
            }
        };
        let answered = Answered::Status(answer.status);
        (Some(answer), answered)
    }

    fn forced_status(
        &mut self,
        request: &Request<'_>,
        (code, retry_after, error_code, intermediary): (u16, Option<u32>, Option<u32>, bool),
        case: &mut Case,
    ) -> Answer {
        if intermediary {
            let headers = retry_after.map(|seconds| ("Retry-After", seconds.to_string())).into_iter().collect();
            return Answer { status: code, headers, body: Vec::new() };
        }
        if self.draws_on_quota(case.kind) {
            // The service answered this call, so it has counted it.
            let _ = self.quota.charge(case.now.monotonic_ns);
            self.judge_call(case);
        }
        let code = u32::from(code);
        let refusal = Refusal {
            retry_after: retry_after.map(u64::from),
            status: u16::try_from(code).unwrap_or(500),
            ..Refusal::new(error_code.unwrap_or(code * 1000 + 1), "A fault was asked for")
        };
        self.refuse(&refusal, request, case)
    }
}
