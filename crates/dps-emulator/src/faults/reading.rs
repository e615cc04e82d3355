//! Reads the written form of a rule. What is unknown, contradicts itself or is not used by the action is refused.

use std::time::Duration;

use super::action::FaultAction;
use super::rule::{Fault, IdMatch, Occurrence};
use super::spec::FaultSpec;
use crate::call_kind::CallKind;
use crate::config_error::ConfigError;

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
