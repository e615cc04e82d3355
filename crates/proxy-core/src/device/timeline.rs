//! What happened to a device, for people: bounded, and without secrets.

use serde::{Deserialize, Serialize};

use super::unknown::Unknown;
use rate_control::time::WallTime;

/// One thing that happened to a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimelineEvent {
    /// When.
    pub at: WallTime,
    /// What, in plain words.
    pub what: String,
    /// What a newer version wrote beside this.
    #[serde(flatten, skip_deserializing)]
    pub(super) unknown: Unknown,
}

/// Adds an event; the oldest ones give way beyond `timeline_max`, of which one is always kept.
pub(super) fn note(timeline: &mut Vec<TimelineEvent>, at: WallTime, timeline_max: usize, what: impl Into<String>) {
    timeline.push(TimelineEvent { at, what: what.into(), unknown: Unknown::default() });
    let excess = timeline.len().saturating_sub(timeline_max.max(1));
    timeline.drain(..excess);
}
