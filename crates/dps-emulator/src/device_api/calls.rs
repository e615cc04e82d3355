//! The three calls: register, poll and status lookup, and the credential that each of them needs.

use std::fmt::Write as _;
use std::sync::Arc;

use super::checks::{check_id, check_size, check_version, read_body};
use super::message::{Answer, Request};
use super::refusal::Refusal;
use super::{Case, Dps};
use crate::config::ConcurrentRegistration;
use crate::enrollment::Terms;
use crate::operation::{Plan, Polled};
use crate::sas::Token;
use crate::wire::{OperationStatus, RegistrationResult, Status};

impl Dps {
    pub(super) fn register(
        &mut self,
        request: &Request<'_>,
        id: &str,
        case: &mut Case,
        plan: Plan,
        told: bool,
    ) -> Result<Answer, Refusal> {
        let body = read_body(request, id)?;
        if body.csr.is_some() {
            return Err(Refusal::new(400_000, "dps-emulator does not issue certificates (`csr`)"));
        }
        let folded = id.to_ascii_lowercase();
        let terms = self.authenticate(request, id, &folded, case.now.unix_ms / 1000)?;
        let (told_running, untold_running) = self.registry.running(&folded);
        if self.config.concurrent == ConcurrentRegistration::Conflict && told_running + untold_running > 0 {
            return Err(Refusal::new(409_203, "Precondition failed: another registration of this device is running"));
        }
        let (known, operation) = self.registry.begin(&folded, terms, plan, told, case.now, &mut self.stats);
        case.id = Some(known);
        case.operation = Some(Arc::clone(&operation));
        let body = OperationStatus { operation_id: &operation, status: Status::Assigning, registration_state: None };
        Ok(self.answer(202, &body, Some(location(request, id))))
    }

    pub(super) fn poll(
        &mut self,
        request: &Request<'_>,
        id: &str,
        operation: &str,
        case: &mut Case,
    ) -> Result<Answer, Refusal> {
        check_version(request.query)?;
        // A body is ignored: some SDKs send `{}` or a space with a poll.
        check_size(request.body)?;
        check_id(id)?;
        let folded = id.to_ascii_lowercase();
        let found = self.registry.poll(&folded, operation);
        let now_s = case.now.unix_ms / 1000;
        let valid_at = match &found {
            Some((_, created)) if !self.config.poll_expiry_enforced => now_s.min(*created),
            _ => now_s,
        };
        self.authenticate(request, id, &folded, valid_at)?;
        let device = case.id.clone().unwrap_or_else(|| Arc::from(folded.as_str()));
        if let Err(wait) = self.polls.poll(&device, case.now.monotonic_ns) {
            case.throttled = true;
            self.stats.poll_limit_violations += 1;
            return Err(Refusal::throttled(wait));
        }
        let (polled, _) = found.ok_or_else(|| Refusal::new(404_201, "Operation not found"))?;
        Ok(match polled {
            Polled::Running { text } => {
                let state = RegistrationResult::assigning(&folded);
                let body =
                    OperationStatus { operation_id: &text, status: Status::Assigning, registration_state: Some(state) };
                let answer = self.answer(202, &body, Some(location(request, id)));
                case.operation = Some(text);
                answer
            }
            Polled::Ended { text, outcome } => {
                let body = OperationStatus {
                    operation_id: &text,
                    status: outcome.status,
                    registration_state: Some(outcome.result(&folded)),
                };
                let answer = self.answer(200, &body, None);
                case.operation = Some(text);
                answer
            }
        })
    }

    pub(super) fn lookup(&mut self, request: &Request<'_>, id: &str, case: &Case) -> Result<Answer, Refusal> {
        let body = read_body(request, id)?;
        if body.csr.is_some() {
            return Err(Refusal::new(400_000, "A status lookup takes no `csr`"));
        }
        let folded = id.to_ascii_lowercase();
        self.authenticate(request, id, &folded, case.now.unix_ms / 1000)?;
        match self.registry.lookup(&folded) {
            None => Err(Refusal::new(404_201, "Registration not found")),
            // The one bare result of the API: not wrapped in an operation.
            Some(None) => Ok(self.answer(200, &RegistrationResult::assigning(&folded), None)),
            Some(Some(outcome)) => Ok(self.answer(200, &outcome.result(&folded), None)),
        }
    }

    fn authenticate(&self, request: &Request<'_>, id: &str, folded: &str, valid_at: u64) -> Result<Terms, Refusal> {
        let header = request.authorization.ok_or_else(Refusal::without_credential)?;
        let token = Token::parse(header).map_err(Refusal::unauthorized)?;
        if !token.is_for(&self.config.id_scope, folded) {
            return Err(Refusal::unauthorized("token is for another audience"));
        }
        let terms = self.enrollments.authenticate(&token, id, folded).map_err(Refusal::unauthorized)?;
        if token.expires.saturating_add(self.config.clock_skew.as_secs()) <= valid_at {
            return Err(Refusal::unauthorized("token has expired"));
        }
        Ok(terms)
    }
}

/// Published captures show the `/register` URL without the operation ID, also while polling. A client that polls it is
/// refused, as it should be.
fn location(request: &Request<'_>, id: &str) -> String {
    let mut location = format!("{}/", request.origin);
    let scope = request.path.trim_start_matches('/').split('/').next().unwrap_or_default();
    // Writing to a String cannot fail.
    let _ = write!(location, "{scope}/registrations/{id}/register");
    location
}
