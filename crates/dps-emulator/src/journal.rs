//! What happened: every request with its time, and counters that judge a client on their own.
//!
//! Invariant: the counters share nothing with the throttle. They count what arrived, so that "never over quota" can be
//! judged even when the throttle has a bug or another shape.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Serialize;

use crate::call_kind::CallKind;

mod stats;
mod window_judge;

pub use stats::Stats;

pub(crate) use window_judge::WindowJudge;

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
    /// For how many seconds its SAS token was still good, by the emulator's own clock; 0 or less if it had ended. Absent without a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_seconds_left: Option<i64>,
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

#[cfg(test)]
mod tests {
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
            token_seconds_left: None,
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
}
