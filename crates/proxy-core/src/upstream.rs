//! What we ask of one DPS instance, and what can come of a call.
//!
//! Two channels of failure are kept apart all the way: DPS answered (then the call counts as answered in the ledger, whatever it
//! said), or nobody who speaks for DPS did (then the outcome is unknown, unless the call never left).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::ids::{DeviceId, HubName, InstanceName, OperationId, RegistrationId};
use crate::settings::{Instance, RegistrationSettings};
use rate_control::time::WallTime;

pub mod answer;
mod connections;
pub mod evidence;
pub mod https;
pub mod time;
pub mod verdict;

use time::TimeAnswer;

/// Who is registered, and the proof.
#[derive(Clone)]
pub struct Caller {
    /// The registration ID in the spelling DPS is to see.
    pub registration_id: String,
    /// The `Authorization` header: a SAS token for this instance. A secret.
    pub authorization: String,
    /// When that ends, by DPS's clock.
    pub expires: WallTime,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("registration_id", &self.registration_id).finish_non_exhaustive()
    }
}

/// DPS's word for how far a registration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Not registered.
    Unassigned,
    /// At work.
    Assigning,
    /// Done.
    Assigned,
    /// Allocation failed.
    Failed,
    /// The enrollment is disabled.
    Disabled,
}

/// A registration as DPS describes it (`DeviceRegistrationResult`).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RegistrationState {
    /// The hub, if assigned.
    pub assigned_hub: Option<HubName>,
    /// The device's name at the hub.
    pub device_id: Option<DeviceId>,
    /// Whose registration it is, in DPS's words.
    pub registration_id: Option<RegistrationId>,
    /// DPS named the device in a way that is no name, so one of the two above is missing.
    pub odd_name: bool,
    /// What DPS did.
    pub substatus: Option<String>,
    /// From a custom allocation policy.
    pub payload: Option<Value>,
    /// Changes with every registration.
    pub etag: Option<String>,
    /// When DPS last changed it.
    pub last_updated: Option<WallTime>,
    /// Six digits, when failed.
    pub error_code: Option<i64>,
    /// Words, when failed.
    pub error_message: Option<String>,
}

/// A call that DPS understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What to poll; absent in the answer to a lookup.
    pub operation_id: Option<OperationId>,
    /// How far it is.
    pub status: Status,
    /// What is known so far.
    pub state: RegistrationState,
}

/// A call that DPS refused or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DpsError {
    /// The HTTP status.
    pub http_status: u16,
    /// Six digits: HTTP status × 1000 + detail. Absent if the body had none.
    pub error_code: Option<i64>,
    /// DPS's name for the failure.
    pub tracking_id: Option<String>,
    /// Its words, shortened.
    pub message: String,
    /// There was no body at all.
    pub body_is_empty: bool,
}

/// What DPS said.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// It understood.
    Progress(Progress),
    /// It refused or failed.
    Error(DpsError),
    /// DPS answered, but its words cannot be made sense of.
    Unreadable {
        /// The HTTP status.
        http_status: u16,
        /// What does not fit.
        detail: String,
    },
    /// A success that is not DPS's: something in between answered in its stead.
    Foreign {
        /// The HTTP status.
        http_status: u16,
        /// What came instead.
        detail: String,
    },
}

/// An answer in DPS's name; whether it is DPS's is for [`evidence`] to say.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its content.
    pub said: Said,
    /// `Retry-After`, if it was there and can be read.
    pub retry_after: Option<Duration>,
    /// DPS's own clock (`Date`), to the second; `None` if somebody else answered.
    pub date: Option<WallTime>,
    /// `x-ms-request-id`.
    pub request_id: Option<String>,
}

/// No answer that counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// No connection came about, so the call never left this machine.
    #[error("no connection to DPS: {0}")]
    NeverLeft(String),
    /// The call left, or may have: reset, time-out, or an error status from something between us and DPS.
    #[error("no answer from DPS: {0}")]
    Lost(String),
    /// The same on a connection that had been used before: it may have been dead for long.
    #[error("no answer on a connection that had been used before: {0}")]
    OldConnection(String),
    /// This machine could not make a connection, for lack of descriptors, ports or memory; the call never left.
    #[error("this machine cannot open a connection: {0}")]
    NoMeans(String),
    /// The last look held it back; the call never left.
    #[error("not sent: {0}")]
    Withheld(&'static str),
}

impl NoAnswer {
    /// Whether the call surely never left this machine.
    #[must_use]
    pub const fn never_left(&self) -> bool {
        matches!(self, Self::NeverLeft(_) | Self::NoMeans(_) | Self::Withheld(_))
    }
}

/// An error with all its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Asked when the connection of a call is there, right before its first byte: while it came up, DPS may have asked us to wait, or the
/// quota may have been lowered.
#[derive(Clone)]
pub struct LastLook(Arc<dyn Fn() -> Result<(), &'static str> + Send + Sync>);

impl LastLook {
    /// `look` says what holds the call back, in words for its timeline.
    pub fn new(look: impl Fn() -> Result<(), &'static str> + Send + Sync + 'static) -> Self {
        Self(Arc::new(look))
    }

    /// Whether the call may leave now.
    ///
    /// # Errors
    /// What holds it back.
    pub fn ask(&self) -> Result<(), &'static str> {
        (self.0)()
    }
}

impl fmt::Debug for LastLook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LastLook")
    }
}

/// The result of one call.
pub type CallResult = Result<Answer, NoAnswer>;

/// The three device calls of one DPS instance, and the question for its time. Each method sends at most one request and never repeats it;
/// those that may spend a registration ask for the last look right before.
///
/// Not cancel-safe for the ledger: a dropped call may have left. Callers run it to its end.
pub trait Upstream: Send + Sync + fmt::Debug {
    /// `PUT …/register`.
    fn register<'a>(
        &'a self,
        caller: &'a Caller,
        payload: Option<&'a Value>,
        last_look: &'a LastLook,
    ) -> BoxFuture<'a, CallResult>;
    /// `GET …/operations/{operationId}`.
    fn poll<'a>(&'a self, caller: &'a Caller, operation_id: &'a OperationId) -> BoxFuture<'a, CallResult>;
    /// `POST …/registrations/{registrationId}`: the stored assignment, without a new allocation.
    fn lookup<'a>(&'a self, caller: &'a Caller, last_look: &'a LastLook) -> BoxFuture<'a, CallResult>;
    /// What DPS's clock reads, to the second. A call without a credential, which registers nothing and spends nothing. Cancel-safe.
    fn time(&self) -> BoxFuture<'_, Result<TimeAnswer, NoAnswer>>;
}

/// Makes the client of an instance; called again when its endpoint, trust or time-outs change.
pub trait Connect: Send + Sync + fmt::Debug {
    /// A client for `instance`.
    ///
    /// # Errors
    /// Words on what in the instance's settings or the machine's trust store does not work.
    fn connect(
        &self,
        name: &InstanceName,
        instance: &Instance,
        registration: &RegistrationSettings,
    ) -> Result<Arc<dyn Upstream>, String>;
}
