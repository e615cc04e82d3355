//! The one place where an error becomes a status, headers and a body (RFC 9457 problem details).
//!
//! Invariants:
//! - `code` is stable and for programs; `detail` is for people and names the limit or rule that was hit. Neither holds a secret.
//! - Every 401, 403, 422, 429 and 503 says when to come back, in whole seconds, at least 1; refusals that many devices may get
//!   at once are spread at random.
//! - The match over each core error is exhaustive: a new failure cannot be forgotten.

use std::time::Duration;

use actix_web::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, ResponseError};
use proxy_core::attestation::Told;
use proxy_core::base::StoreError;
use proxy_core::base::about;
use proxy_core::device::Refusal;
use proxy_core::store::{CommitError, ReadError};
use proxy_core::use_cases::backend::{BackendError, Found};
use proxy_core::use_cases::lists::ListError;
use proxy_core::use_cases::operator::OperatorError;
use proxy_core::use_cases::provision::ProvisionError;
use rate_control::entropy::Entropy;
use rate_control::time::WallTime;

use crate::api::assignments::NotFoundAnswer;
use crate::api::names::Moment;
use crate::api::problem::{self, Code, Upstream};
use crate::scans::UnderWay;

/// A problem document in the making.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: Code,
    detail: String,
    retry_after: Option<Duration>,
    headers: Vec<(HeaderName, HeaderValue)>,
    further: Box<Further>,
}

/// What some documents say beside status, code and detail.
#[derive(Debug, Default)]
struct Further {
    server_time: Option<WallTime>,
    upstream: Option<Upstream>,
    known_as: Option<String>,
    problems: Option<Vec<String>>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl Problem {
    /// A problem with this status and code.
    #[must_use]
    pub fn new(status: StatusCode, code: Code, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after: None, headers: Vec::new(), further: Box::default() }
    }

    /// 400.
    #[must_use]
    pub fn bad_request(code: Code, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 404.
    #[must_use]
    pub fn not_found(code: Code, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 503, to come back between `least` and three times that.
    #[must_use]
    pub fn unavailable(code: Code, detail: impl Into<String>, least: Duration) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).retry_spread(least, least * 2)
    }

    /// When to come back.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// When to come back, spread at random.
    #[must_use]
    pub fn retry_spread(self, least: Duration, spread: Duration) -> Self {
        let wait = least + Entropy::from_system().up_to(spread);
        self.retry_after(wait)
    }

    /// A further header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    /// What time it is.
    #[must_use]
    fn server_time(mut self, now: WallTime) -> Self {
        self.further.server_time = Some(now);
        self
    }

    /// What DPS said.
    #[must_use]
    fn upstream(mut self, upstream: Upstream) -> Self {
        self.further.upstream = Some(upstream);
        self
    }

    /// In which spelling a device is known.
    #[must_use]
    fn known_as(mut self, spelling: String) -> Self {
        self.further.known_as = Some(spelling);
        self
    }

    /// All that is wrong, where that is more than one thing.
    #[must_use]
    pub fn problems(mut self, problems: Vec<String>) -> Self {
        self.further.problems = Some(problems);
        self
    }

    /// Where the problem tells the server's time, it is the one that credentials are judged by.
    #[must_use]
    pub fn told_at(mut self, credential_time: WallTime) -> Self {
        self.further.server_time = self.further.server_time.map(|_| credential_time);
        self
    }

    /// The same as the answer for one device among many.
    #[must_use]
    pub fn in_lookup(self, device_id: &str) -> NotFoundAnswer {
        let Further { upstream, known_as, .. } = *self.further;
        NotFoundAnswer { device_id: device_id.to_owned(), found: false, code: self.code, upstream, known_as }
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let retry_after = self.retry_after.map(|wait| (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1));
        let Further { server_time, upstream, known_as, problems } = &*self.further;
        let document = problem::Problem {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            code: self.code,
            detail: self.detail.clone(),
            request_id: about::request_id().map(|id| id.as_ref().to_owned()),
            retry_after,
            server_time: server_time.map(Moment::from),
            upstream: upstream.clone(),
            known_as: known_as.clone(),
            problems: problems.clone(),
        };
        let mut response = HttpResponse::build(self.status);
        if let Some(seconds) = retry_after {
            response.insert_header((RETRY_AFTER, seconds));
        }
        for (name, value) in &self.headers {
            response.append_header((name.clone(), value.clone()));
        }
        response.insert_header((CONTENT_TYPE, problem::MEDIA_TYPE));
        response.insert_header((header::CACHE_CONTROL, "no-store"));
        response.body(serde_json::to_string(&document).expect("a problem has string keys only"))
    }
}

const UNAUTHORIZED_WAIT: Duration = Duration::from_secs(60);
const FORBIDDEN_WAIT: Duration = Duration::from_secs(3600);
const UNAVAILABLE_WAIT: Duration = Duration::from_secs(20);
/// A refused device asks again at least this often: an operator may have mended the cause.
const REFUSED_WAIT_MAX: Duration = Duration::from_secs(900);

impl From<UnderWay> for Problem {
    fn from(UnderWay: UnderWay) -> Self {
        let detail = "this token has a page of a list or the invalidation of a hub under way, and only one is allowed at a time: wait for it to finish, then try again";
        Self::new(StatusCode::TOO_MANY_REQUESTS, Code::OneAtATime, detail).retry_after(Duration::from_secs(1))
    }
}

impl From<ProvisionError> for Problem {
    fn from(error: ProvisionError) -> Self {
        let text = error.to_string();
        match error {
            ProvisionError::IllFormedId(_) => Self::bad_request(Code::InvalidHardwareId, text),
            ProvisionError::NotBelieved(not_believed) => unauthorized_device(not_believed.told()),
            ProvisionError::Blocked => forbidden(Code::Blocked, text),
            ProvisionError::Retired => forbidden(Code::Retired, text),
            ProvisionError::OtherTenant => forbidden(Code::BelongsToAnotherTenant, text),
            ProvisionError::Refused(refusal) => refused(&refusal),
            ProvisionError::TooFast(wait) => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                Code::TooFast,
                format!("{text} (device.repeat_burst, device.repeat_per)"),
            )
            .retry_after(wait),
            // Told by the line's own forecast, each device another time.
            ProvisionError::LineFull { retry_after_seconds, .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::LineFull, text)
                    .retry_after(Duration::from_secs(retry_after_seconds))
            }
            ProvisionError::NoRoom(_) => Self::unavailable(Code::NoRoom, text, UNAVAILABLE_WAIT * 15),
            ProvisionError::Store(error) => store_problem(&error),
            ProvisionError::Stopping => Self::unavailable(Code::ShuttingDown, text, Duration::from_secs(5)),
        }
    }
}

fn unauthorized_device(told: Told) -> Problem {
    let (code, detail) = match told {
        Told::Unauthorized => {
            (Code::Unauthorized, "no valid credential: check key, audience (sr), hardware ID and token lifetime")
        }
        Told::Expired => {
            (Code::CredentialExpired, "the credential's se lies in the past of serverTime: make a fresh one")
        }
        Told::TooFarAhead => (
            Code::CredentialTooFarAhead,
            "the credential's se lies further ahead of serverTime than attestation.sas_lifetime_max allows: set the clock by serverTime, and make a shorter one, in seconds",
        ),
    };
    let problem = Problem::new(StatusCode::UNAUTHORIZED, code, detail)
        .header(WWW_AUTHENTICATE, "SharedAccessSignature")
        .header(WWW_AUTHENTICATE, "Bearer")
        .retry_spread(UNAUTHORIZED_WAIT, UNAUTHORIZED_WAIT / 2);
    match told {
        Told::Unauthorized => problem,
        Told::Expired | Told::TooFarAhead => problem.server_time(server_time()),
    }
}

/// The server's time, for devices without a clock.
#[must_use]
pub fn server_time() -> WallTime {
    rate_control::time::SystemClock::wall()
}

fn forbidden(code: Code, detail: String) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, code, detail).retry_spread(FORBIDDEN_WAIT, FORBIDDEN_WAIT / 10)
}

fn refused(refusal: &Refusal) -> Problem {
    let left = refusal.until.since(server_time()).min(REFUSED_WAIT_MAX);
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, Code::RefusedByDps, refusal.detail.clone())
        .retry_spread(left, left / 10)
        .upstream(refusal.into())
}

/// What a failing store looks like outside. Its own words stay in the log: they name paths.
fn store_problem(error: &StoreError) -> Problem {
    match error {
        // These are about one device, or ours to mend.
        StoreError::Read(ReadError::Corrupt { .. } | ReadError::Newer { .. })
        | StoreError::Commit(CommitError::Refused(_) | CommitError::Conflict { .. }) => {
            tracing::error!(%error, "the store failed while a request was served");
        }
        // The store's state is told once, by whoever watches it, and not for every request that meets it.
        StoreError::Read(ReadError::Unavailable(_)) | StoreError::Contended => {
            tracing::debug!(%error, "the store failed while a request was served");
        }
        StoreError::Commit(
            CommitError::Busy | CommitError::Fenced | CommitError::ReadOnly(_) | CommitError::Failed(_),
        ) => {
            tracing::debug!(%error, "the store did not accept a write of a request");
        }
    }
    let (code, detail) = match error {
        StoreError::Read(ReadError::Corrupt { .. }) | StoreError::Commit(CommitError::Refused(_)) => {
            (Code::StoreDamaged, "the stored record of this device cannot be read; an operator has to repair the store")
        }
        StoreError::Read(ReadError::Newer { .. }) => (
            Code::StoreUnavailable,
            "a newer version of this service has written what is stored of this device, and this one cannot read it",
        ),
        StoreError::Read(ReadError::Unavailable(_)) => (Code::StoreUnavailable, "the store cannot be read now"),
        StoreError::Commit(CommitError::Fenced) => {
            (Code::StoreUnavailable, "another replica has taken over from this one while it answered; try again")
        }
        StoreError::Commit(CommitError::Busy) | StoreError::Contended => {
            (Code::StoreBusy, "the store is busy; try again")
        }
        StoreError::Commit(CommitError::Conflict { .. } | CommitError::ReadOnly(_) | CommitError::Failed(_)) => (
            Code::StoreReadOnly,
            "the store takes no writes now, so no place can be kept; known devices are still answered",
        ),
    };
    Problem::unavailable(code, detail, UNAVAILABLE_WAIT)
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        store_problem(&error)
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        store_problem(&error.into())
    }
}

impl From<Found> for Problem {
    /// What a device ID that has no assignment is told as.
    fn from(found: Found) -> Self {
        match found {
            Found::Assignment(_) | Found::NeverSeen => {
                Self::not_found(Code::NeverSeen, "no device of that ID has ever been given a place")
            }
            Found::InLine => Self::not_found(Code::InLine, "the device waits in line for its first assignment"),
            Found::Blocked => Self::not_found(Code::Blocked, "an operator has blocked the device before it had a hub"),
            Found::Retired => Self::not_found(Code::Retired, "an operator has retired the device before it had a hub"),
            Found::Refused(refusal) => Self::not_found(
                Code::Refused,
                format!("DPS has refused the device, so it has no hub: {}", refusal.detail),
            )
            .upstream((&*refusal).into()),
            Found::NotInLine => Self::not_found(
                Code::NotInLine,
                "the device is known, has no hub and is not in line; it joins the line when it asks again",
            ),
            Found::OtherSpelling(known_as) => {
                let detail = format!("device IDs are case-sensitive: this device is known as {known_as}");
                Self::not_found(Code::DiffersInCase, detail).known_as(known_as)
            }
            Found::Ambiguous(tenants) => {
                let names: Vec<String> = tenants.iter().map(ToString::to_string).collect();
                let detail =
                    format!("tenants {} each have a device of that ID: name one with ?tenant=", names.join(", "));
                Self::new(StatusCode::CONFLICT, Code::AmbiguousDeviceId, detail)
            }
        }
    }
}

impl From<BackendError> for Problem {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::NotFound(found) => found.into(),
            BackendError::Store(error) => error.into(),
        }
    }
}

impl From<ListError> for Problem {
    fn from(error: ListError) -> Self {
        match error {
            ListError::Outdated => {
                let detail = "the changes since this list began are no longer kept, or the list belongs to another store: start it again, without after";
                Self::new(StatusCode::GONE, Code::ListOutdated, detail)
            }
            ListError::Read(error) => error.into(),
        }
    }
}

impl From<OperatorError> for Problem {
    fn from(error: OperatorError) -> Self {
        match error {
            OperatorError::Unknown => {
                Self::not_found(Code::UnknownRegistration, "no device of that registration ID is known")
            }
            OperatorError::NotNow(detail) => Self::new(StatusCode::CONFLICT, Code::NotNow, detail),
            OperatorError::Wrong(detail) => Self::bad_request(Code::InvalidRequest, detail),
            OperatorError::NoPlace(error) => (*error).into(),
            OperatorError::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proxy_core::attestation::{NotBelieved, Reason};
    use proxy_core::device::Unknown;
    use proxy_core::ids::{InstanceName, RegistrationId};
    use proxy_core::line::LineFull;
    use proxy_core::placement::NoRoom;
    use proxy_core::store::Table;

    use super::*;

    fn refusal(left: Duration) -> Refusal {
        Refusal {
            code: "not-enrolled".to_owned(),
            detail: "DPS does not know the device".to_owned(),
            error_code: None,
            tracking_id: None,
            instance: InstanceName::parse("eu-1").unwrap(),
            at: server_time().into(),
            until: server_time().after(left),
            settings_mark: 0,
            unknown: Unknown::default(),
        }
    }

    fn store_errors() -> Vec<StoreError> {
        vec![
            ReadError::Corrupt { table: Table::Device, detail: "checksum".to_owned() }.into(),
            ReadError::Newer { table: Table::Device, detail: "a stage".to_owned() }.into(),
            ReadError::Unavailable("gone".to_owned()).into(),
            CommitError::Conflict { index: 0 }.into(),
            CommitError::ReadOnly("full".to_owned()).into(),
            CommitError::Busy.into(),
            CommitError::Fenced.into(),
            CommitError::Refused("too large".to_owned()).into(),
            CommitError::Failed("broken".to_owned()).into(),
            StoreError::Contended,
        ]
    }

    fn provision_errors() -> Vec<ProvisionError> {
        let mut errors = vec![
            RegistrationId::parse("-").unwrap_err().into(),
            NotBelieved::from(Reason::WrongSignature).into(),
            NotBelieved::from(Reason::Expired).into(),
            NotBelieved::from(Reason::ImplausibleExpiry).into(),
            ProvisionError::Blocked,
            ProvisionError::Retired,
            ProvisionError::OtherTenant,
            ProvisionError::Refused(Box::new(refusal(Duration::ZERO))),
            ProvisionError::Refused(Box::new(refusal(Duration::from_secs(86_400)))),
            ProvisionError::TooFast(Duration::from_millis(1)),
            ProvisionError::LineFull { full: LineFull { length_max: 1, share: Some(1) }, retry_after_seconds: 0 },
            NoRoom::NoneFits.into(),
            NoRoom::AllFull("eu-1".to_owned()).into(),
            ProvisionError::Stopping,
        ];
        errors.extend(store_errors().into_iter().map(ProvisionError::from));
        errors
    }

    #[test]
    fn every_401_403_422_429_and_503_says_when_to_come_back_and_nothing_else_does() {
        let mut problems: Vec<Problem> = provision_errors().into_iter().map(Problem::from).collect();
        problems.extend(provision_errors().into_iter().map(|error| OperatorError::NoPlace(Box::new(error)).into()));
        problems.extend(store_errors().into_iter().map(|error| BackendError::Store(error).into()));
        problems.extend(store_errors().into_iter().map(|error| OperatorError::Store(error).into()));
        problems.push(BackendError::NotFound(Found::NeverSeen).into());
        problems.push(OperatorError::Unknown.into());
        problems.push(OperatorError::NotNow("it waits".to_owned()).into());
        problems.push(OperatorError::Wrong("no such instance".to_owned()).into());
        for problem in problems {
            let (what, status) = (problem.to_string(), problem.status_code().as_u16());
            let response = problem.error_response();
            let told = response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap().parse::<u64>().unwrap());
            assert_eq!(told.is_some(), matches!(status, 401 | 403 | 422 | 429 | 503), "{status} {what}");
            assert_ne!(told, Some(0), "{status} {what}");
        }
    }

    #[test]
    fn a_refused_device_comes_back_when_the_refusal_is_over_but_not_much_later_than_in_a_quarter_of_an_hour() {
        let told = |left| refused(&refusal(left)).retry_after.unwrap();
        for _ in 0..100 {
            assert!((295..=330).contains(&told(Duration::from_secs(300)).as_secs()));
            assert!((900..=990).contains(&told(Duration::from_secs(86_400)).as_secs()));
        }
    }
}
