//! What can go wrong with a call.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub enum FaultAction {
    /// The answer is held back; the call itself is processed when it arrives.
    Delay {
        /// For how long.
        delay: Duration,
    },
    /// An HTTP status instead of processing.
    Status {
        /// The status, 400 to 599.
        code: u16,
        /// Value of `Retry-After`, if any.
        retry_after: Option<u32>,
        /// Six-digit code in the error body; `status * 1000 + 1` if absent.
        error_code: Option<u32>,
        /// An empty body, as from something in between (a gateway, a load balancer) that is not the service. Such a call
        /// never reached the service and draws on no quota.
        intermediary: bool,
    },
    /// The connection is reset before anything is processed.
    Reset,
    /// The call is processed and counted, then the connection is reset.
    LoseReply,
    /// The operation stays `assigning` until the service gives up on it.
    StuckAssigning,
    /// The operation ends `failed`.
    Fail {
        /// `registrationState.errorCode`, for example 400207, 400208, 400209, 404201 or 409203.
        error_code: u32,
        /// `registrationState.errorMessage`.
        message: String,
    },
    /// The call is processed, the body is not what it should be.
    MalformedBody {
        /// The body sent; the first half of the true one if absent.
        body: Option<String>,
        /// The content type sent; JSON if absent.
        content_type: Option<String>,
    },
    /// The call is processed, and the answer's JSON is changed: what is set is set, then what is removed is left out.
    Rewrite {
        /// New values by the path of the member, `registrationState.deviceId` for example.
        set: BTreeMap<String, Value>,
        /// Paths of members to leave out.
        remove: Vec<String>,
    },
    /// Something in between answers with a web page: a captive portal, a block page. The service never hears of the call.
    WebPage {
        /// The status, 200 to 599.
        code: u16,
    },
    /// Nothing comes back and nothing is processed, as if every packet were lost.
    Silence,
    /// The operation ends at this hub, linked or not.
    WrongHub {
        /// Host name.
        host: String,
    },
    /// The operation ends with status `disabled`.
    Disabled,
    /// The operation ends with status `unassigned`.
    Unassigned,
}

impl FaultAction {
    /// Whether it shapes an operation and so can only act on the call that creates one.
    pub(super) fn shapes_operation(&self) -> bool {
        matches!(
            self,
            Self::StuckAssigning | Self::Fail { .. } | Self::WrongHub { .. } | Self::Disabled | Self::Unassigned
        )
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Delay { .. } => "delay",
            Self::Status { .. } => "status",
            Self::Reset => "reset",
            Self::LoseReply => "lose-reply",
            Self::StuckAssigning => "stuck-assigning",
            Self::Fail { .. } => "fail",
            Self::MalformedBody { .. } => "malformed-body",
            Self::Rewrite { .. } => "rewrite",
            Self::WebPage { .. } => "web-page",
            Self::Silence => "silence",
            Self::WrongHub { .. } => "wrong-hub",
            Self::Disabled => "disabled",
            Self::Unassigned => "unassigned",
        }
    }
}
