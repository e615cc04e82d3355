//! Faults on demand: rules that say which calls go wrong, how, and how often.
//!
//! A rule is looked at for every call of the device API. Delays add up; of all other rules the first that fits acts. Nothing
//! is guessed: a rule with an unknown field or action, or with a field its action does not use, is refused.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::ConfigError;
use crate::journal::CallKind;

/// Names a rule that was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FaultId(pub u64);

impl fmt::Display for FaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

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
    fn shapes_operation(&self) -> bool {
        matches!(
            self,
            Self::StuckAssigning | Self::Fail { .. } | Self::WrongHub { .. } | Self::Disabled | Self::Unassigned
        )
    }

    fn name(&self) -> &'static str {
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

/// Which registration IDs a rule is about; compared in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdMatch {
    /// This one.
    Exact(String),
    /// All that begin like this.
    Prefix(String),
}

/// Which of the calls that fit a rule acts on.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Occurrence {
    /// Every one.
    #[default]
    Always,
    /// The n-th, counted from 1.
    Nth(u64),
    /// Every k-th.
    Every(u64),
    /// Each with this probability, drawn from the emulator's seed.
    Probability(f64),
}

/// A rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// Shown in the journal.
    pub name: String,
    /// Which call; any of the three if absent.
    pub call: Option<CallKind>,
    /// Which devices; all if absent.
    pub registration_id: Option<IdMatch>,
    /// Only calls on a connection that has carried calls before (`true`), or has not (`false`); all if absent.
    pub reused_connection: Option<bool>,
    /// Which of the calls that fit.
    pub occurrence: Occurrence,
    /// Not before this time since the emulator started.
    pub from: Option<Duration>,
    /// Not at or after this time since the emulator started.
    pub until: Option<Duration>,
    /// How often it acts at most.
    pub times: Option<u64>,
    /// What happens.
    pub action: FaultAction,
}

impl Fault {
    /// A rule that acts on every call it can act on.
    #[must_use]
    pub fn new(action: FaultAction) -> Self {
        Self {
            name: action.name().to_owned(),
            call: None,
            registration_id: None,
            reused_connection: None,
            occurrence: Occurrence::Always,
            from: None,
            until: None,
            times: None,
            action,
        }
    }

    /// Gives it a name for the journal.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Only this kind of call.
    #[must_use]
    pub fn on(self, call: CallKind) -> Self {
        Self { call: Some(call), ..self }
    }

    /// Only this device.
    #[must_use]
    pub fn for_device(self, registration_id: &str) -> Self {
        Self { registration_id: Some(IdMatch::Exact(registration_id.to_ascii_lowercase())), ..self }
    }

    /// Only calls on a connection that has carried calls before.
    #[must_use]
    pub fn on_reused_connections(self) -> Self {
        Self { reused_connection: Some(true), ..self }
    }

    /// Only the n-th call that fits, counted from 1.
    #[must_use]
    pub fn nth(self, n: u64) -> Self {
        Self { occurrence: Occurrence::Nth(n), ..self }
    }

    /// Only every k-th call that fits.
    #[must_use]
    pub fn every(self, k: u64) -> Self {
        Self { occurrence: Occurrence::Every(k), ..self }
    }

    /// With this probability.
    #[must_use]
    pub fn with_probability(self, probability: f64) -> Self {
        Self { occurrence: Occurrence::Probability(probability), ..self }
    }

    /// At most this often.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }

    fn fits(&self, call: CallKind, registration_id: Option<&str>, reused: bool, now: u64) -> bool {
        if self.reused_connection.is_some_and(|wanted| wanted != reused) {
            return false;
        }
        let call_fits = match self.call {
            Some(wanted) => wanted == call,
            // What is none of the three calls goes wrong only where a rule names it.
            None if call == CallKind::Other => false,
            None => !self.action.shapes_operation() || call == CallKind::Register,
        };
        let id_fits = match (&self.registration_id, registration_id) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(IdMatch::Exact(wanted)), Some(id)) => wanted == id,
            (Some(IdMatch::Prefix(wanted)), Some(id)) => id.starts_with(wanted.as_str()),
        };
        let now = Duration::from_nanos(now);
        call_fits && id_fits && self.from.is_none_or(|from| now >= from) && self.until.is_none_or(|until| now < until)
    }
}

/// A rule with its number and how often it acted.
#[derive(Debug, Clone, PartialEq)]
pub struct ActiveFault {
    /// Its number.
    pub id: FaultId,
    /// The rule.
    pub fault: Fault,
    /// Calls that fitted so far.
    pub matched: u64,
    /// Times it acted.
    pub acted: u64,
}

/// What the rules say about one call.
#[derive(Debug, Default)]
pub(crate) struct Picked {
    pub(crate) delay: Duration,
    pub(crate) action: Option<FaultAction>,
    pub(crate) name: Option<Arc<str>>,
}

#[derive(Debug)]
pub(crate) struct Faults {
    rules: Vec<ActiveFault>,
    next: u64,
    seed: u64,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rules: Vec::new(), next: 1, seed }
    }

    pub(crate) fn add(&mut self, fault: Fault) -> FaultId {
        let id = FaultId(self.next);
        self.next += 1;
        self.rules.push(ActiveFault { id, fault, matched: 0, acted: 0 });
        id
    }

    pub(crate) fn remove(&mut self, id: FaultId) -> bool {
        let before = self.rules.len();
        self.rules.retain(|rule| rule.id != id);
        self.rules.len() != before
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(crate) fn list(&self) -> Vec<ActiveFault> {
        self.rules.clone()
    }

    pub(crate) fn pick(&mut self, call: CallKind, registration_id: Option<&str>, reused: bool, now: u64) -> Picked {
        let mut picked = Picked::default();
        for rule in &mut self.rules {
            let is_delay = matches!(rule.fault.action, FaultAction::Delay { .. });
            if picked.action.is_some() && !is_delay {
                continue;
            }
            let used_up = rule.fault.times.is_some_and(|times| rule.acted >= times);
            if used_up || !rule.fault.fits(call, registration_id, reused, now) {
                continue;
            }
            rule.matched += 1;
            let acts = match rule.fault.occurrence {
                Occurrence::Always => true,
                Occurrence::Nth(n) => rule.matched == n,
                Occurrence::Every(k) => k > 0 && rule.matched.is_multiple_of(k),
                Occurrence::Probability(p) => {
                    let draw = mix(self.seed ^ rule.id.0.rotate_left(48) ^ rule.matched) >> 11;
                    (draw as f64) < p * (1_u64 << 53) as f64
                }
            };
            if !acts {
                continue;
            }
            rule.acted += 1;
            picked.name.get_or_insert_with(|| Arc::from(rule.fault.name.as_str()));
            match &rule.fault.action {
                FaultAction::Delay { delay } => picked.delay += *delay,
                action => {
                    picked.name = Some(Arc::from(rule.fault.name.as_str()));
                    picked.action = Some(action.clone());
                }
            }
        }
        picked
    }
}

/// Changes the JSON of an answer; one that is not a JSON object stays as it is.
pub(crate) fn rewrite(body: &[u8], set: &BTreeMap<String, Value>, remove: &[String]) -> Vec<u8> {
    let Ok(mut answer @ Value::Object(_)) = serde_json::from_slice::<Value>(body) else { return body.to_vec() };
    for (path, value) in set {
        if let Some((parent, member)) = parent(&mut answer, path) {
            parent.insert(member.to_owned(), value.clone());
        }
    }
    for path in remove {
        if let Some((parent, member)) = parent(&mut answer, path) {
            parent.remove(member);
        }
    }
    answer.to_string().into_bytes()
}

/// The object that holds the member at `path`, if there is one, and the member's name.
fn parent<'v, 'p>(answer: &'v mut Value, path: &'p str) -> Option<(&'v mut serde_json::Map<String, Value>, &'p str)> {
    let (parents, member) = path.rsplit_once('.').unwrap_or(("", path));
    let mut object = answer;
    for name in parents.split('.').filter(|name| !name.is_empty()) {
        object = object.get_mut(name)?;
    }
    Some((object.as_object_mut()?, member))
}

/// The finaliser of splitmix64: a bijection that scatters well.
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

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

/// A file of rules: `[[fault]]` tables in TOML, or `{"fault":[…]}` in JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultFile {
    /// The rules.
    #[serde(default)]
    pub fault: Vec<FaultSpec>,
}

impl FaultFile {
    /// Reads TOML, or JSON if the text begins with a brace.
    ///
    /// # Errors
    /// Names what was not understood.
    pub fn parse(text: &str) -> Result<Vec<Fault>, ConfigError> {
        let file: Self = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| ConfigError::new(error.to_string()))?
        } else {
            toml::from_str(text).map_err(|error| ConfigError::new(error.to_string()))?
        };
        file.fault.into_iter().map(Fault::try_from).collect()
    }
}

impl TryFrom<FaultSpec> for Fault {
    type Error = ConfigError;

    fn try_from(mut spec: FaultSpec) -> Result<Self, ConfigError> {
        let wrong = |text: String| ConfigError::new(format!("fault: {text}"));
        let action = take_action(&mut spec)?;
        let call = match spec.call.as_deref() {
            None | Some("any") => None,
            Some("register") => Some(CallKind::Register),
            Some("poll") => Some(CallKind::Poll),
            Some("lookup") => Some(CallKind::Lookup),
            Some(other) => return Err(wrong(format!("unknown call `{other}` (register, poll, lookup, any)"))),
        };
        if action.shapes_operation() && !matches!(call, None | Some(CallKind::Register)) {
            return Err(wrong(format!("`{}` acts on register calls only", action.name())));
        }
        let registration_id = match (spec.registration_id, spec.registration_id_prefix) {
            (None, None) => None,
            (Some(id), None) => Some(IdMatch::Exact(id.to_ascii_lowercase())),
            (None, Some(prefix)) => Some(IdMatch::Prefix(prefix.to_ascii_lowercase())),
            (Some(_), Some(_)) => return Err(wrong("registration-id or registration-id-prefix, not both".to_owned())),
        };
        let occurrence = match (spec.nth, spec.every, spec.probability) {
            (None, None, None) => Occurrence::Always,
            (Some(n), None, None) if n > 0 => Occurrence::Nth(n),
            (None, Some(k), None) if k > 0 => Occurrence::Every(k),
            (None, None, Some(p)) if (0.0..=1.0).contains(&p) => Occurrence::Probability(p),
            _ => return Err(wrong("one of nth (>0), every (>0), probability (0 to 1)".to_owned())),
        };
        let leftovers = [
            ("delay-ms", spec.delay_ms.is_some()),
            ("status", spec.status.is_some()),
            ("retry-after", spec.retry_after.is_some()),
            ("intermediary", spec.intermediary.is_some()),
            ("error-code", spec.error_code.is_some()),
            ("message", spec.message.is_some()),
            ("body", spec.body.is_some()),
            ("content-type", spec.content_type.is_some()),
            ("set", spec.set.is_some()),
            ("remove", spec.remove.is_some()),
            ("host", spec.host.is_some()),
        ];
        if let Some((field, _)) = leftovers.iter().find(|(_, present)| *present) {
            return Err(wrong(format!("`{}` does not use `{field}`", action.name())));
        }
        Ok(Self {
            name: spec.name.unwrap_or_else(|| action.name().to_owned()),
            call,
            registration_id,
            reused_connection: spec.reused_connection,
            occurrence,
            from: spec.from_ms.map(Duration::from_millis),
            until: spec.until_ms.map(Duration::from_millis),
            times: spec.times,
            action,
        })
    }
}

/// Takes the fields that the action uses out of the rule, so that what is left over is known to be wrong.
fn take_action(spec: &mut FaultSpec) -> Result<FaultAction, ConfigError> {
    let needs = |field: &str| ConfigError::new(format!("fault: `{}` needs `{field}`", spec.action));
    Ok(match spec.action.as_str() {
        "delay" => {
            FaultAction::Delay { delay: Duration::from_millis(spec.delay_ms.take().ok_or_else(|| needs("delay-ms"))?) }
        }
        "status" => {
            let code = spec.status.ok_or_else(|| needs("status"))?;
            spec.status = None;
            if !(400..600).contains(&code) {
                return Err(ConfigError::new(format!("fault: status {code} is not within 400 to 599")));
            }
            let intermediary = spec.intermediary.take().unwrap_or(false);
            if intermediary && spec.error_code.is_some() {
                return Err(ConfigError::new("fault: an intermediary sends no error-code"));
            }
            FaultAction::Status {
                code,
                retry_after: spec.retry_after.take(),
                error_code: spec.error_code.take(),
                intermediary,
            }
        }
        "reset" => FaultAction::Reset,
        "lose-reply" => FaultAction::LoseReply,
        "stuck-assigning" => FaultAction::StuckAssigning,
        "fail" => {
            let error_code = spec.error_code.ok_or_else(|| needs("error-code"))?;
            spec.error_code = None;
            if !(400_000..600_000).contains(&error_code) {
                return Err(ConfigError::new(format!("fault: error-code {error_code} is not six digits from 400000")));
            }
            let message = spec.message.take().unwrap_or_else(|| default_message(error_code).to_owned());
            FaultAction::Fail { error_code, message }
        }
        "malformed-body" => {
            FaultAction::MalformedBody { body: spec.body.take(), content_type: spec.content_type.take() }
        }
        "rewrite" => {
            let (set, remove) = (spec.set.take().unwrap_or_default(), spec.remove.take().unwrap_or_default());
            if set.is_empty() && remove.is_empty() {
                return Err(needs("set or remove"));
            }
            FaultAction::Rewrite { set, remove }
        }
        "web-page" => {
            let code = spec.status.take().unwrap_or(200);
            if !(200..600).contains(&code) {
                return Err(ConfigError::new(format!("fault: status {code} is not within 200 to 599")));
            }
            FaultAction::WebPage { code }
        }
        "silence" => FaultAction::Silence,
        "wrong-hub" => FaultAction::WrongHub { host: spec.host.take().ok_or_else(|| needs("host"))? },
        "disabled" => FaultAction::Disabled,
        "unassigned" => FaultAction::Unassigned,
        other => {
            return Err(ConfigError::new(format!(
                "fault: unknown action `{other}` (delay, status, reset, lose-reply, silence, web-page, rewrite, \
                 malformed-body, stuck-assigning, fail, wrong-hub, disabled, unassigned)"
            )));
        }
    })
}

/// Text for a failed registration; the real texts are known for few codes.
fn default_message(error_code: u32) -> &'static str {
    match error_code {
        400_207 => "Custom allocation failed with status code: 400",
        400_208 => "No IoT hub could be selected",
        400_209 => "The IoT hub refused the provisioning service",
        404_201 => "Enrollment not found",
        409_203 => "Precondition failed",
        _ => "Registration failed",
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn acted(fault: Fault, calls: u64) -> Vec<u64> {
        let mut faults = Faults::new(7);
        faults.add(fault);
        (1..=calls).filter(|_| faults.pick(CallKind::Register, Some("d"), false, 0).action.is_some()).collect()
    }

    #[test]
    fn occurrence_and_times() {
        assert_eq!(acted(Fault::new(FaultAction::Reset), 3), [1, 2, 3]);
        assert_eq!(acted(Fault::new(FaultAction::Reset).nth(2), 5), [2]);
        assert_eq!(acted(Fault::new(FaultAction::Reset).every(2), 6), [2, 4, 6]);
        assert_eq!(acted(Fault::new(FaultAction::Reset).every(2).times(2), 9), [2, 4]);
        assert_eq!(acted(Fault::new(FaultAction::Reset).with_probability(0.0), 50).len(), 0);
        assert_eq!(acted(Fault::new(FaultAction::Reset).with_probability(1.0), 50).len(), 50);
        let half = acted(Fault::new(FaultAction::Reset).with_probability(0.5), 1000);
        assert!((400..600).contains(&half.len()), "{}", half.len());
        assert_eq!(half, acted(Fault::new(FaultAction::Reset).with_probability(0.5), 1000), "same seed, same draws");
    }

    #[test]
    fn matching_by_call_device_and_time() {
        let fault = Fault {
            registration_id: Some(IdMatch::Prefix("th-".to_owned())),
            from: Some(Duration::from_nanos(10)),
            until: Some(Duration::from_nanos(20)),
            ..Fault::new(FaultAction::Reset).on(CallKind::Poll)
        };
        assert!(fault.fits(CallKind::Poll, Some("th-1"), false, 10));
        assert!(!fault.fits(CallKind::Poll, Some("th-1"), false, 9));
        assert!(!fault.fits(CallKind::Poll, Some("th-1"), false, 20));
        assert!(!fault.fits(CallKind::Poll, Some("x"), false, 10));
        assert!(!fault.fits(CallKind::Register, Some("th-1"), false, 10));
        let reused = Fault::new(FaultAction::Reset).on_reused_connections();
        assert!(reused.fits(CallKind::Poll, None, true, 0) && !reused.fits(CallKind::Poll, None, false, 0));
        let shaping = Fault::new(FaultAction::StuckAssigning);
        assert!(shaping.fits(CallKind::Register, None, false, 0) && !shaping.fits(CallKind::Poll, None, false, 0));
    }

    #[test]
    fn what_is_no_device_call_goes_wrong_only_where_a_rule_names_it() {
        let mut faults = Faults::new(7);
        faults.add(Fault::new(FaultAction::Reset));
        assert!(faults.pick(CallKind::Other, None, false, 0).action.is_none());
        faults.add(Fault::new(FaultAction::WebPage { code: 403 }).on(CallKind::Other));
        assert_eq!(faults.pick(CallKind::Other, None, false, 0).action, Some(FaultAction::WebPage { code: 403 }));
        assert_eq!(faults.pick(CallKind::Lookup, None, false, 0).action, Some(FaultAction::Reset));
    }

    #[test]
    fn delays_add_up_and_the_first_other_rule_acts() {
        let mut faults = Faults::new(7);
        faults.add(Fault::new(FaultAction::Delay { delay: Duration::from_millis(5) }));
        faults.add(Fault::new(FaultAction::Reset).named("first"));
        faults.add(Fault::new(FaultAction::LoseReply));
        faults.add(Fault::new(FaultAction::Delay { delay: Duration::from_millis(7) }));
        let picked = faults.pick(CallKind::Lookup, None, false, 0);
        assert_eq!(picked.delay, Duration::from_millis(12));
        assert_eq!(picked.action, Some(FaultAction::Reset));
        assert_eq!(picked.name.as_deref(), Some("first"));
        assert!(faults.pick(CallKind::Other, None, false, 0).action.is_none());
    }

    #[test]
    fn an_answer_is_rewritten_member_by_member() {
        let set = BTreeMap::from([
            ("registrationState.deviceId".to_owned(), Value::from("another")),
            ("absent.member".to_owned(), Value::from(1)),
        ]);
        let body = br#"{"status":"assigned","registrationState":{"deviceId":"d","substatus":"s"}}"#;
        let rewritten = rewrite(body, &set, &["status".to_owned(), "registrationState.substatus".to_owned()]);
        assert_eq!(rewritten, br#"{"registrationState":{"deviceId":"another"}}"#);
        assert_eq!(rewrite(b"<html>", &set, &[]), b"<html>");
    }

    #[test]
    fn files_are_read_and_what_is_unknown_is_refused() {
        let faults = FaultFile::parse(
            "[[fault]]\naction = \"status\"\nstatus = 503\nretry-after = 7\ncall = \"register\"\nnth = 3\n\
             [[fault]]\naction = \"fail\"\nerror-code = 400208\nregistration-id = \"Dev-1\"\n\
             [[fault]]\naction = \"web-page\"\nstatus = 403\n\
             [[fault]]\naction = \"silence\"\nreused-connection = true\n\
             [[fault]]\naction = \"rewrite\"\nremove = [\"status\"]\nset = { operationId = \"..\" }\n",
        )
        .unwrap();
        assert_eq!(faults.len(), 5);
        assert_eq!(faults[1].registration_id, Some(IdMatch::Exact("dev-1".to_owned())));
        assert_eq!(FaultFile::parse(r#"{"fault":[{"action":"reset"}]}"#).unwrap().len(), 1);
        for fault in &faults {
            assert_eq!(&Fault::try_from(FaultSpec::from(fault)).unwrap(), fault, "a rule survives being shown");
        }
        for bad in [
            "[[fault]]\naction = \"explode\"",
            "[[fault]]\naction = \"reset\"\nhow = 1",
            "[[fault]]\naction = \"reset\"\ndelay-ms = 1",
            "[[fault]]\naction = \"delay\"",
            "[[fault]]\naction = \"rewrite\"",
            "[[fault]]\naction = \"silence\"\nstatus = 200",
            "[[fault]]\naction = \"status\"\nstatus = 200",
            "[[fault]]\naction = \"status\"\nstatus = 503\nintermediary = true\nerror-code = 503001",
            "[[fault]]\naction = \"fail\"\nerror-code = 7",
            "[[fault]]\naction = \"disabled\"\ncall = \"poll\"",
            "[[fault]]\naction = \"reset\"\ncall = \"connect\"",
            "[[fault]]\naction = \"reset\"\nnth = 0",
            "[[fault]]\naction = \"reset\"\nnth = 1\nevery = 2",
            "[[fault]]\naction = \"reset\"\nprobability = 1.5",
            "[[faults]]\naction = \"reset\"",
        ] {
            assert!(FaultFile::parse(bad).is_err(), "{bad}");
        }
    }
}
