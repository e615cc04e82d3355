//! One rule: which calls it is about, which of them it acts on, and what goes wrong.

use std::time::Duration;

use super::action::FaultAction;
use crate::call_kind::CallKind;

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

    pub(super) fn fits(&self, call: CallKind, registration_id: Option<&str>, reused: bool, now: u64) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
