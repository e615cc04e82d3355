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

use std::sync::Arc;
use std::time::Duration;

use crate::allocation::Hubs;
use crate::call_kind::CallKind;
use crate::config::{Config, Quota};
use crate::config_error::ConfigError;
use crate::enrollment::Enrollments;
use crate::faults::{FaultAction, Faults, Picked};
use crate::journal::{Answered, Journal, JournalEntry, RefusedCall, Stats, WindowJudge};
use crate::now::Now;
use crate::operation::{Plan, Registry};
use crate::sas::Token;
use crate::throttle::{PollLimiter, RegistrationQuota};
use crate::wire::is_registration_id;

mod answers;
mod calls;
mod checks;
mod faulty;
mod message;
mod metered;
mod refusal;
mod route;
mod steering;

pub use message::{Answer, Reply, Request};

use refusal::Refusal;
use route::Route;

/// How long a call that is not answered is left hanging, unless its client hangs up first.
const SILENCE: Duration = Duration::from_secs(3600);

/// A call while it is being served; becomes its journal entry.
struct Case {
    now: Now,
    kind: CallKind,
    id: Option<Arc<str>>,
    operation: Option<Arc<str>>,
    counted: bool,
    throttled: bool,
    token_seconds_left: Option<i64>,
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
            token_seconds_left: token_seconds_left(request, now),
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

    /// Ends the operations that are due. Every other method that is told the time does it by itself.
    pub fn advance(&mut self, now: Now) {
        self.registry.advance(now, &self.hubs, &mut self.stats);
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
            token_seconds_left: case.token_seconds_left,
            unauthorized: case.unauthorized,
            refused: case.refused,
            fault,
        });
    }
}

/// For how long the credential of a call is good, believed or not.
fn token_seconds_left(request: &Request<'_>, now: Now) -> Option<i64> {
    let token = Token::parse(request.authorization?).ok()?;
    let signed = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
    Some(signed(token.expires).saturating_sub(signed(now.unix_ms / 1000)))
}

fn window_ns(quota: Quota) -> u64 {
    u64::try_from(quota.window.as_nanos()).unwrap_or(u64::MAX)
}
