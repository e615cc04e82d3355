//! The written form of a rule, in a file or in a call to the control interface, and how a rule is shown in it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::action::FaultAction;
use super::rule::{Fault, IdMatch, Occurrence};

/// A rule as it is written in a file or sent to the control interface.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct FaultSpec {
    /// Shown in the journal; the action's name if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What happens: delay, status, reset, lose-reply, silence, web-page, rewrite, malformed-body, stuck-assigning, fail, wrong-hub,
    /// disabled, unassigned.
    pub action: String,
    /// register, poll, lookup or any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// One device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_id: Option<String>,
    /// Devices whose ID begins like this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_id_prefix: Option<String>,
    /// Calls on a connection that has carried calls before, or has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reused_connection: Option<bool>,
    /// The n-th call that fits, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nth: Option<u64>,
    /// Every k-th call that fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// A probability within 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// Not before, in milliseconds since the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_ms: Option<u64>,
    /// Not at or after, in milliseconds since the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// How often it acts at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// delay: milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// status, web-page: the HTTP status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// status: `Retry-After` in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
    /// status: empty body, not from the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intermediary: Option<bool>,
    /// status, fail: six-digit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<u32>,
    /// fail: text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// malformed-body: what is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// malformed-body: its content type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// rewrite: new values by the path of the member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<BTreeMap<String, Value>>,
    /// rewrite: paths of members to leave out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove: Option<Vec<String>>,
    /// wrong-hub: host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

impl From<&Fault> for FaultSpec {
    fn from(fault: &Fault) -> Self {
        let millis = |time: Option<Duration>| time.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
        let mut spec = Self {
            name: Some(fault.name.clone()),
            action: fault.action.name().to_owned(),
            call: fault.call.map(|call| call.name().to_owned()),
            reused_connection: fault.reused_connection,
            from_ms: millis(fault.from),
            until_ms: millis(fault.until),
            times: fault.times,
            ..Self::default()
        };
        match &fault.registration_id {
            Some(IdMatch::Exact(id)) => spec.registration_id = Some(id.clone()),
            Some(IdMatch::Prefix(prefix)) => spec.registration_id_prefix = Some(prefix.clone()),
            None => {}
        }
        match fault.occurrence {
            Occurrence::Always => {}
            Occurrence::Nth(n) => spec.nth = Some(n),
            Occurrence::Every(k) => spec.every = Some(k),
            Occurrence::Probability(p) => spec.probability = Some(p),
        }
        match &fault.action {
            FaultAction::Delay { delay } => spec.delay_ms = millis(Some(*delay)),
            FaultAction::Status { code, retry_after, error_code, intermediary } => {
                spec.status = Some(*code);
                spec.retry_after = *retry_after;
                spec.error_code = *error_code;
                spec.intermediary = Some(*intermediary);
            }
            FaultAction::Fail { error_code, message } => {
                spec.error_code = Some(*error_code);
                spec.message = Some(message.clone());
            }
            FaultAction::MalformedBody { body, content_type } => {
                spec.body.clone_from(body);
                spec.content_type.clone_from(content_type);
            }
            FaultAction::Rewrite { set, remove } => {
                spec.set = Some(set.clone());
                spec.remove = Some(remove.clone());
            }
            FaultAction::WebPage { code } => spec.status = Some(*code),
            FaultAction::WrongHub { host } => spec.host = Some(host.clone()),
            FaultAction::Silence
            | FaultAction::Reset
            | FaultAction::LoseReply
            | FaultAction::StuckAssigning
            | FaultAction::Disabled
            | FaultAction::Unassigned => {}
        }
        spec
    }
}
