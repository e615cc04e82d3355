//! The device API as a function of a request and a time.
//!
//! Order of judgement for a register call, the strictest that the documentation allows: path and method, ID scope, quota,
//! `api-version`, size, content type, body, registration ID, credential, then the operation. Unless told otherwise a call
//! draws on the quota before anything else about it is looked at, so that a client cannot hide an overrun behind errors.
//!
//! An unknown ID scope, an unknown registration and a wrong signature get the same 401 (code 401002, "Unauthorized"): other
//! texts of the service are not known. The reason goes to the journal. Only a call without any credential is told that it has none: there
//! is nothing to guess in that.
//!
//! Error codes are the HTTP status and three digits. Known are 401002, 404201 and 409203; 429001 and 500001 are guesses by
//! analogy with IoT Hub, and `…000` stands for "the service's detail is not known".

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::config::{
    ConcurrentRegistration, Config, ConfigError, GroupConfig, HubConfig, IndividualConfig, Quota, check_hubs,
    check_quota,
};
use crate::enrollment::{Enrollments, Hubs, Terms};
use crate::faults::{ActiveFault, Fault, FaultAction, FaultId, Faults, Picked, rewrite};
use crate::journal::{Answered, CallKind, Journal, JournalEntry, RefusedCall, Stats, WindowJudge};
use crate::operation::{Plan, Polled, Registration, Registry, guid};
use crate::sas::Token;
use crate::throttle::{PollLimiter, RegistrationQuota, retry_after_seconds};
use crate::wire::{
    DeviceRegistration, ErrorBody, MESSAGE_BYTES_MAX, OperationStatus, RegistrationResult, Status, is_api_version,
    is_registration_id, timestamp,
};

/// One moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds since the emulator started, never going back: for quotas and operations.
    pub monotonic_ns: u64,
    /// Unix milliseconds: for tokens and timestamps.
    pub unix_ms: u64,
}

/// A request as it arrived.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Method, upper-case.
    pub method: &'a str,
    /// Path as received, not decoded.
    pub path: &'a str,
    /// Query as received, without the question mark; empty if there is none.
    pub query: &'a str,
    /// Scheme and authority of the URL, for `Location`; for example `https://localhost:8443`.
    pub origin: &'a str,
    /// `Authorization`
    pub authorization: Option<&'a str>,
    /// `Content-Type`
    pub content_type: Option<&'a str>,
    /// Whether the connection has carried a call before.
    pub reused_connection: bool,
    /// The body. Whoever reads it may stop after [`MESSAGE_BYTES_MAX`] + 1 bytes.
    pub body: &'a [u8],
}

/// What the client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// How long it waits for it.
    pub delay: Duration,
    /// The answer; `None` is a connection that is reset without one.
    pub answer: Option<Answer>,
    /// What was refused and why, if it was; for a log.
    pub refused: Option<Arc<RefusedCall>>,
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers, in order.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

const JSON: &str = "application/json; charset=utf-8";

/// What a captive portal would send.
const WEB_PAGE: &[u8] =
    b"<!doctype html><html><head><title>Sign in to the network</title></head><body>Please sign in.</body></html>";

/// How long a call that is not answered is left hanging, unless its client hangs up first.
const SILENCE: Duration = Duration::from_secs(3600);

/// An error answer in the making.
struct Refusal {
    status: u16,
    code: u32,
    message: String,
    retry_after: Option<u64>,
    allow: Option<&'static str>,
    reason: Option<&'static str>,
}

impl Refusal {
    fn new(code: u32, message: impl Into<String>) -> Self {
        // A six-digit code begins with the status.
        let status = u16::try_from(code / 1000).unwrap_or(500);
        Self { status, code, message: message.into(), retry_after: None, allow: None, reason: None }
    }

    fn unauthorized(reason: &'static str) -> Self {
        Self { reason: Some(reason), ..Self::new(401_002, "Unauthorized") }
    }

    fn without_credential() -> Self {
        let message = "Unauthorized: the request has no Authorization header; a shared access signature belongs there";
        Self { reason: Some("no Authorization header"), ..Self::new(401_002, message) }
    }

    fn throttled(wait_ns: u64) -> Self {
        Self { retry_after: Some(retry_after_seconds(wait_ns)), ..Self::new(429_001, "Throttled") }
    }
}

/// A path taken apart.
enum Route<'a> {
    Call { kind: CallKind, scope: &'a str, id: String, operation: String },
    WrongMethod { allow: &'static str },
    Unknown,
}

impl<'a> Route<'a> {
    fn of(request: &Request<'a>) -> Self {
        let decode = |text: &str| percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned());
        let Some(path) = request.path.strip_prefix('/') else { return Self::Unknown };
        let segments: Vec<&str> = path.split('/').collect();
        let (kind, method, scope, id, operation) = match segments.as_slice() {
            [scope, "registrations", id] => (CallKind::Lookup, "POST", *scope, *id, ""),
            [scope, "registrations", id, "register"] => (CallKind::Register, "PUT", *scope, *id, ""),
            [scope, "registrations", id, "operations", operation] => (CallKind::Poll, "GET", *scope, *id, *operation),
            _ => return Self::Unknown,
        };
        let (Some(id), Some(operation)) = (decode(id), decode(operation)) else { return Self::Unknown };
        if scope.is_empty() || id.is_empty() {
            return Self::Unknown;
        }
        if request.method != method {
            return Self::WrongMethod { allow: method };
        }
        Self::Call { kind, scope, id, operation }
    }
}

/// A call while it is being served; becomes its journal entry.
struct Case {
    now: Now,
    kind: CallKind,
    id: Option<Arc<str>>,
    operation: Option<Arc<str>>,
    counted: bool,
    throttled: bool,
    unauthorized: Option<&'static str>,
    refused: Option<Arc<RefusedCall>>,
}

/// One DPS instance.
pub struct Dps {
    config: Config,
    enrollments: Enrollments,
    hubs: Hubs,
    registry: Registry,
    quota: RegistrationQuota,
    polls: PollLimiter,
    faults: Faults,
    journal: Journal,
    judge: WindowJudge,
    stats: Stats,
    requests: u64,
}

impl Dps {
    /// An instance without devices.
    ///
    /// # Errors
    /// Names what is wrong with the configuration.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        config.check()?;
        let mut faults = Faults::new(config.seed);
        for fault in &config.faults {
            faults.add(fault.clone());
        }
        Ok(Self {
            enrollments: Enrollments::new(config)?,
            hubs: Hubs::new(&config.hubs),
            registry: Registry::new(config),
            quota: RegistrationQuota::new(config.quota, config.bucket_burst, 0),
            polls: PollLimiter::new(config.poll_limit, config.rejected_count),
            faults,
            journal: Journal::new(config.journal_capacity),
            judge: WindowJudge::new(window_ns(config.quota)),
            stats: Stats::default(),
            requests: 0,
            config: config.clone(),
        })
    }

    /// Serves one request. Times must not go back from call to call.
    pub fn handle(&mut self, request: &Request<'_>, now: Now) -> Reply {
        self.advance(now);
        self.requests += 1;
        let route = Route::of(request);
        let (kind, folded) = match &route {
            // A poll for what can be nobody's operation is none: it is how a client without a credential asks for the time.
            Route::Call { kind: CallKind::Poll, id, .. } if !is_registration_id(id) => (CallKind::Other, None),
            Route::Call { kind, id, .. } => (*kind, is_registration_id(id).then(|| id.to_ascii_lowercase())),
            _ => (CallKind::Other, None),
        };
        let id = folded.as_deref().map(|id| self.registry.known_id(id).unwrap_or_else(|| Arc::from(id)));
        let mut case = Case {
            now,
            kind,
            id,
            operation: None,
            counted: false,
            throttled: false,
            unauthorized: None,
            refused: None,
        };
        let Picked { delay, action, name } =
            self.faults.pick(kind, folded.as_deref(), request.reused_connection, now.monotonic_ns);
        let delay = if action == Some(FaultAction::Silence) { SILENCE } else { delay };
        let (answer, answered) = self.serve_with(action, request, &route, &mut case);
        let refused = case.refused.clone();
        self.write_down(case, answered, name);
        Reply { delay, answer, refused }
    }

    /// Serves a call as a fault wants it.
    fn serve_with(
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

    fn serve(&mut self, request: &Request<'_>, route: &Route<'_>, case: &mut Case, plan: Plan, told: bool) -> Answer {
        let served = match route {
            Route::Unknown => Err(Refusal::new(404_000, "There is no such resource")),
            Route::WrongMethod { allow } => {
                Err(Refusal { allow: Some(allow), ..Refusal::new(405_000, "Method not allowed") })
            }
            Route::Call { scope, .. } if *scope != self.config.id_scope => {
                Err(Refusal::unauthorized("ID scope is not this instance's"))
            }
            Route::Call { kind: CallKind::Poll, id, operation, .. } => self.poll(request, id, operation, case),
            Route::Call { id, .. } => self.metered(request, id, case, plan, told),
        };
        served.unwrap_or_else(|refusal| {
            if refusal.status != 401 && refusal.status != 429 {
                self.stats.refused += 1;
            }
            self.refuse(&refusal, request, case)
        })
    }

    fn draws_on_quota(&self, kind: CallKind) -> bool {
        kind == CallKind::Register || (kind == CallKind::Lookup && self.config.lookup_counts)
    }

    fn judge_call(&mut self, case: &mut Case) {
        case.counted = true;
        self.stats.registrations_counted += 1;
        let inside = self.judge.count(case.now.monotonic_ns);
        if inside > self.quota.quota().count {
            self.stats.over_quota_sliding += 1;
        }
    }

    /// Register and lookup calls, which draw on the registration quota.
    fn metered(
        &mut self,
        request: &Request<'_>,
        id: &str,
        case: &mut Case,
        plan: Plan,
        told: bool,
    ) -> Result<Answer, Refusal> {
        let now = case.now.monotonic_ns;
        let draws = self.draws_on_quota(case.kind);
        if draws {
            let room = if self.config.rejected_count { self.quota.charge(now) } else { self.quota.check(now) };
            if self.config.rejected_count || room.is_err() {
                // A throttled call is always judged, else an overrun could not be seen.
                self.judge_call(case);
            }
            if let Err(wait) = room {
                case.throttled = true;
                self.stats.throttled += 1;
                return Err(Refusal::throttled(wait));
            }
        }
        let served = match case.kind {
            CallKind::Register => self.register(request, id, case, plan, told),
            _ => self.lookup(request, id, case),
        };
        if draws && !self.config.rejected_count && served.is_ok() {
            self.quota.record(now);
            self.judge_call(case);
        }
        served
    }

    fn register(
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

    fn poll(&mut self, request: &Request<'_>, id: &str, operation: &str, case: &mut Case) -> Result<Answer, Refusal> {
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

    fn lookup(&mut self, request: &Request<'_>, id: &str, case: &Case) -> Result<Answer, Refusal> {
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

    fn tracking_id(&self) -> String {
        guid(self.config.seed ^ 0x7452_4143_4b49_4e47, self.requests)
    }

    fn answer(&self, status: u16, body: &impl serde::Serialize, location: Option<String>) -> Answer {
        let mut headers = vec![("Content-Type", JSON.to_owned()), ("x-ms-request-id", self.tracking_id())];
        if let Some(location) = location {
            headers.push(("Location", location));
            headers.push(("Retry-After", self.config.retry_after_seconds.to_string()));
        }
        Answer { status, headers, body: serde_json::to_vec(body).expect("bodies are plain structures") }
    }

    fn refuse(&self, refusal: &Refusal, request: &Request<'_>, case: &mut Case) -> Answer {
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

    fn write_down(&mut self, case: Case, answered: Answered, fault: Option<Arc<str>>) {
        self.stats.requests += 1;
        match case.kind {
            CallKind::Register => self.stats.registers += 1,
            CallKind::Poll => self.stats.polls += 1,
            CallKind::Lookup => self.stats.lookups += 1,
            CallKind::Other => self.stats.others += 1,
        }
        if fault.is_some() {
            self.stats.faults_acted += 1;
        }
        if case.unauthorized.is_some() {
            self.stats.unauthorized += 1;
        }
        self.journal.push(JournalEntry {
            sequence: 0,
            at_ns: case.now.monotonic_ns,
            unix_ms: case.now.unix_ms,
            call: case.kind,
            registration_id: case.id,
            operation_id: case.operation,
            answered,
            counted: case.counted,
            throttled: case.throttled,
            unauthorized: case.unauthorized,
            refused: case.refused,
            fault,
        });
    }

    /// Ends the operations that are due. Every other method that is told the time does it by itself.
    pub fn advance(&mut self, now: Now) {
        self.registry.advance(now, &self.hubs, &mut self.stats);
    }

    /// The counters at this moment.
    pub fn stats(&mut self, now: Now) -> Stats {
        self.advance(now);
        Stats {
            registrations_max_sliding: self.judge.max_sliding,
            registrations_max_fixed: self.judge.max_fixed,
            devices_registered: self.registry.devices_registered(),
            per_hub: self.registry.per_hub(),
            journal_forgotten: self.journal.forgotten,
            ..self.stats.clone()
        }
    }

    /// Sets the counters to zero, except those that say they stay.
    pub fn reset_stats(&mut self) {
        self.judge.reset();
        self.stats = Stats { registers_per_device_max: self.stats.registers_per_device_max, ..Stats::default() };
    }

    /// At most `limit` journal entries after a sequence number.
    #[must_use]
    pub fn journal_after(&self, sequence: u64, limit: usize) -> Vec<JournalEntry> {
        self.journal.after(sequence, limit)
    }

    /// What is known of a registration.
    pub fn registration(&mut self, registration_id: &str, now: Now) -> Option<Registration> {
        self.advance(now);
        self.registry.registration(&registration_id.to_ascii_lowercase())
    }

    /// Deletes a registration record, as an operator would with the service API. Says whether there was one.
    pub fn delete_registration(&mut self, registration_id: &str, now: Now) -> bool {
        self.advance(now);
        self.registry.delete(&registration_id.to_ascii_lowercase())
    }

    /// Adds a fault.
    pub fn add_fault(&mut self, fault: Fault) -> FaultId {
        self.faults.add(fault)
    }

    /// Removes a fault; says whether there was one.
    pub fn remove_fault(&mut self, id: FaultId) -> bool {
        self.faults.remove(id)
    }

    /// Removes all faults.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// The faults and how often they acted.
    #[must_use]
    pub fn faults(&self) -> Vec<ActiveFault> {
        self.faults.list()
    }

    /// The registration quota.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.quota.quota()
    }

    /// Changes the registration quota from now on; what was counted still counts while the shape stays the same.
    ///
    /// # Errors
    /// If it allows nothing or its window is out of range.
    pub fn set_quota(&mut self, quota: Quota, now: Now) -> Result<(), ConfigError> {
        check_quota(quota)?;
        if quota.window != self.quota.quota().window {
            self.judge.set_window(window_ns(quota));
        }
        self.quota.change(quota, self.config.bucket_burst, now.monotonic_ns);
        Ok(())
    }

    /// Changes how long operations last that begin from now on.
    pub fn set_assigning(&mut self, assigning: Duration) {
        self.registry.set_assigning(assigning);
    }

    /// The linked hubs.
    #[must_use]
    pub fn hubs(&self) -> &[HubConfig] {
        &self.config.hubs
    }

    /// Changes the linked hubs; later registrations may move.
    ///
    /// # Errors
    /// Names a hub that is malformed or named twice.
    pub fn set_hubs(&mut self, hubs: Vec<HubConfig>, now: Now) -> Result<(), ConfigError> {
        check_hubs(&hubs)?;
        self.advance(now);
        self.hubs = Hubs::new(&hubs);
        self.config.hubs = hubs;
        Ok(())
    }

    /// Creates or replaces an enrollment group.
    ///
    /// # Errors
    /// Names what is wrong with it.
    pub fn put_group(&mut self, group: &GroupConfig) -> Result<(), ConfigError> {
        self.enrollments.put_group(group)
    }

    /// Creates or replaces an individual enrollment.
    ///
    /// # Errors
    /// Names what is wrong with it.
    pub fn put_enrollment(&mut self, enrollment: &IndividualConfig) -> Result<(), ConfigError> {
        self.enrollments.put_individual(enrollment)
    }
}

fn window_ns(quota: Quota) -> u64 {
    u64::try_from(quota.window.as_nanos()).unwrap_or(u64::MAX)
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

fn check_version(query: &str) -> Result<(), Refusal> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("api-version="));
    match value {
        None => Err(Refusal::new(400_000, "The query parameter `api-version` is required")),
        Some(version) if is_api_version(version) => Ok(()),
        Some(_) => Err(Refusal::new(400_000, "`api-version` is not of the form YYYY-MM-DD or YYYY-MM-DD-preview")),
    }
}

fn check_size(body: &[u8]) -> Result<(), Refusal> {
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(Refusal::new(413_000, format!("The message is larger than {MESSAGE_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn check_id(id: &str) -> Result<(), Refusal> {
    if is_registration_id(id) {
        return Ok(());
    }
    Err(Refusal::new(
        400_000,
        "The registration ID has 1 to 128 letters, digits and `-` `.` `_` `:`, begins with a letter or digit and ends with a \
         letter, digit or `-`",
    ))
}

/// Checks everything about a register or lookup call but its credential.
fn read_body(request: &Request<'_>, id: &str) -> Result<DeviceRegistration, Refusal> {
    check_version(request.query)?;
    check_size(request.body)?;
    let body = request.body.trim_ascii();
    let registration = if body.is_empty() {
        DeviceRegistration::default()
    } else {
        let media_type = request.content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if !media_type.eq_ignore_ascii_case("application/json") {
            return Err(Refusal::new(415_000, "Content-Type must be application/json"));
        }
        serde_json::from_slice(body)
            .map_err(|error| Refusal::new(400_000, format!("The body is malformed: {error}")))?
    };
    check_id(id)?;
    if registration.registration_id.as_deref().is_some_and(|named| !named.eq_ignore_ascii_case(id)) {
        return Err(Refusal::new(400_000, "`registrationId` in the body is not the one in the URL"));
    }
    if registration.payload.as_ref().is_some_and(|payload| !payload.is_object()) {
        return Err(Refusal::new(400_000, "`payload` is not an object"));
    }
    if registration.tpm.is_some() {
        return Err(Refusal::new(400_000, "dps-emulator does not know TPM attestation (`tpm`)"));
    }
    Ok(registration)
}
