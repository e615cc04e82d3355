//! What happened: every request with its time, and counters that judge a client on their own.
//!
//! Invariant: the counters share nothing with the throttle. They count what arrived, so that "never over quota" can be
//! judged even when the throttle has a bug or another shape.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Serialize;

/// The calls of the device API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallKind {
    /// `PUT /{idScope}/registrations/{registrationId}/register`
    Register,
    /// `GET /{idScope}/registrations/{registrationId}/operations/{operationId}`
    Poll,
    /// `POST /{idScope}/registrations/{registrationId}`
    Lookup,
    /// Anything else.
    Other,
}

impl CallKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Poll => "poll",
            Self::Lookup => "lookup",
            Self::Other => "other",
        }
    }
}

/// What the client was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answered {
    /// An HTTP status.
    Status(u16),
    /// The connection was reset, nothing was processed.
    Reset,
    /// The call was processed, the reply was lost.
    Lost,
}

/// A request that was refused, and why. Long methods and paths are cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedCall {
    /// In plain words. The client is told this, or, when it was not authorised, less.
    pub reason: String,
    /// The method.
    pub method: String,
    /// The path as it was received.
    pub path: String,
}

impl RefusedCall {
    pub(crate) fn new(reason: impl Into<String>, method: &str, path: &str) -> Self {
        let cut = |text: &str, most| text.chars().take(most).collect();
        Self { reason: reason.into(), method: cut(method, 32), path: cut(path, 512) }
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalEntry {
    /// Counts from 1 and never repeats.
    pub sequence: u64,
    /// When it was processed, in nanoseconds since the emulator started.
    pub at_ns: u64,
    /// The same moment in Unix milliseconds.
    pub unix_ms: u64,
    /// Which call.
    pub call: CallKind,
    /// Registration ID in lower case, if the path had a valid one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_id: Option<Arc<str>>,
    /// Operation ID that was created or polled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation_id: Option<Arc<str>>,
    /// What was answered.
    pub answered: Answered,
    /// Whether it counted as a registration (see [`Stats::registrations_counted`]).
    pub counted: bool,
    /// Whether it was answered 429 by a limit (not by a fault).
    pub throttled: bool,
    /// Why it was not authorised. The client is never told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unauthorized: Option<&'static str>,
    /// What was refused and why, if it was.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Arc<RefusedCall>>,
    /// Name of the fault that acted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Arc<str>>,
}

/// Counters since the start, or since they were reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// All requests.
    pub requests: u64,
    /// Register calls that arrived.
    pub registers: u64,
    /// Polls that arrived.
    pub polls: u64,
    /// Status lookups that arrived.
    pub lookups: u64,
    /// Requests that are none of the three.
    pub others: u64,
    /// Calls that drew on the registration quota or were refused by it: an overrun is always visible here.
    pub registrations_counted: u64,
    /// The most of them in any sliding window as long as the quota's (60 s unless changed).
    pub registrations_max_sliding: u32,
    /// The most of them in any fixed window of that length; the first begins when the emulator starts.
    pub registrations_max_fixed: u32,
    /// How many of them arrived while the sliding window that ends with them held more than the quota of that moment.
    pub over_quota_sliding: u64,
    /// Calls refused by the registration quota.
    pub throttled: u64,
    /// Polls refused by the poll limit.
    pub poll_limit_violations: u64,
    /// Calls answered 401.
    pub unauthorized: u64,
    /// Calls answered with another 4xx, faults not counted.
    pub refused: u64,
    /// Times a fault acted.
    pub faults_acted: u64,
    /// Registrations of a device that began while an earlier one, whose operation ID the device was told, was running.
    pub concurrent_registrations: u64,
    /// The same, but the reply to the earlier one had been lost.
    pub concurrent_after_lost_reply: u64,
    /// Operations that began.
    pub operations_started: u64,
    /// Operations that ended `assigned`.
    pub operations_assigned: u64,
    /// Operations that ended otherwise.
    pub operations_not_assigned: u64,
    /// Registrations that ended on another hub than before.
    pub moved: u64,
    /// Devices that are assigned now. A reset leaves it.
    pub devices_registered: u64,
    /// Devices assigned to each hub now. A reset leaves it.
    pub per_hub: std::collections::BTreeMap<String, u64>,
    /// The most register calls any one device sent. A reset leaves it.
    pub registers_per_device_max: u32,
    /// Journal entries that were forgotten because the journal was full. A reset leaves it.
    pub journal_forgotten: u64,
}

/// The journal proper: bounded, oldest forgotten first.
#[derive(Debug)]
pub(crate) struct Journal {
    entries: VecDeque<JournalEntry>,
    capacity: usize,
    next: u64,
    pub(crate) forgotten: u64,
}

impl Journal {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { entries: VecDeque::new(), capacity, next: 1, forgotten: 0 }
    }

    pub(crate) fn push(&mut self, mut entry: JournalEntry) {
        entry.sequence = self.next;
        self.next += 1;
        self.entries.push_back(entry);
        while self.entries.len() > self.capacity {
            self.entries.pop_front();
            self.forgotten += 1;
        }
    }

    /// Entries after this sequence number, at most `limit`.
    pub(crate) fn after(&self, sequence: u64, limit: usize) -> Vec<JournalEntry> {
        let first = self.entries.front().map_or(0, |entry| entry.sequence);
        let skip = usize::try_from((sequence + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        self.entries.iter().skip(skip).take(limit).cloned().collect()
    }
}

/// Entries kept exactly; beyond them, calls within the same millisecond are merged so that memory stays bounded.
const EXACT_TIMES_MAX: usize = 1_000_000;

/// The judge of the registration quota: the most calls in any sliding and in any fixed window.
#[derive(Debug)]
pub(crate) struct WindowJudge {
    window: u64,
    times: VecDeque<(u64, u32)>,
    inside: u32,
    pub(crate) max_sliding: u32,
    fixed: (u64, u32),
    pub(crate) max_fixed: u32,
}

impl WindowJudge {
    pub(crate) fn new(window_ns: u64) -> Self {
        Self { window: window_ns, times: VecDeque::new(), inside: 0, max_sliding: 0, fixed: (0, 0), max_fixed: 0 }
    }

    /// Judges by another window from now on. What was seen inside the old window is kept.
    pub(crate) fn set_window(&mut self, window_ns: u64) {
        self.window = window_ns;
        self.fixed = (0, 0);
    }

    pub(crate) fn reset(&mut self) {
        (self.max_sliding, self.max_fixed) = (0, 0);
    }

    /// Counts a call and says how many the sliding window that ends with it holds.
    pub(crate) fn count(&mut self, now: u64) -> u32 {
        while let Some(&(at, calls)) = self.times.front() {
            if at.saturating_add(self.window) > now {
                break;
            }
            self.times.pop_front();
            self.inside -= calls;
        }
        let crowded = self.times.len() >= EXACT_TIMES_MAX;
        match self.times.back_mut() {
            Some((at, calls)) if *at == now || (crowded && now - *at < 1_000_000) => *calls += 1,
            _ => self.times.push_back((now, 1)),
        }
        self.inside += 1;
        self.max_sliding = self.max_sliding.max(self.inside);
        let index = now / self.window;
        if self.fixed.0 != index {
            self.fixed = (index, 0);
        }
        self.fixed.1 += 1;
        self.max_fixed = self.max_fixed.max(self.fixed.1);
        self.inside
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> JournalEntry {
        JournalEntry {
            sequence: 0,
            at_ns: 0,
            unix_ms: 0,
            call: CallKind::Other,
            registration_id: None,
            operation_id: None,
            answered: Answered::Status(404),
            counted: false,
            throttled: false,
            unauthorized: None,
            refused: None,
            fault: None,
        }
    }

    #[test]
    fn journal_is_bounded_and_pages() {
        let mut journal = Journal::new(3);
        for _ in 0..5 {
            journal.push(entry());
        }
        let numbers = |after, limit| journal.after(after, limit).iter().map(|e| e.sequence).collect::<Vec<_>>();
        assert_eq!(numbers(0, 10), [3, 4, 5]);
        assert_eq!(numbers(3, 1), [4]);
        assert_eq!(numbers(5, 10), [0; 0]);
        assert_eq!(journal.forgotten, 2);
    }

    proptest! {
        #[test]
        fn judge_equals_a_count(gaps in prop::collection::vec(0_u64..40, 1..200), window in 1_u64..200) {
            let mut judge = WindowJudge::new(window);
            let mut times: Vec<u64> = Vec::new();
            let mut now = 0;
            for gap in gaps {
                now += gap;
                times.push(now);
                let inside = judge.count(now);
                prop_assert_eq!(inside as usize, times.iter().filter(|&&at| at + window > now).count());
            }
            let sliding = times.iter().map(|&end| times.iter().filter(|&&at| at <= end && at + window > end).count()).max();
            prop_assert_eq!(Some(judge.max_sliding as usize), sliding);
            let fixed = times.iter().map(|&t| times.iter().filter(|&&at| at / window == t / window).count()).max();
            prop_assert_eq!(Some(judge.max_fixed as usize), fixed);
        }
    }
}
