//! The rules in force: what they make of each call, and how often each of them acted.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::action::FaultAction;
use super::rule::{Fault, Occurrence};
use crate::call_kind::CallKind;
use crate::seeded::mix;

/// Names a rule that was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FaultId(pub u64);

impl fmt::Display for FaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
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
}
