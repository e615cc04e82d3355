//! The numbers of places: one counter per line, of which the disk knows only up to where numbers may have been given.
//!
//! Invariants:
//! - What was given is below the line's bound, and the bound is durable no later than what was given with it.
//! - After a start numbers go on at the bound. What was left of the block below it is left out.

use std::collections::BTreeMap;

use crate::ids::InstanceName;
use crate::place::Sequence;

/// So many numbers are given before the bound has to be written again.
pub(super) const BLOCK: Sequence = 1024;

/// The counters of the lines that have given numbers in this process, or are about to.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    lines: BTreeMap<InstanceName, Counter>,
}

#[derive(Debug, Default)]
struct Counter {
    next: Sequence,
    /// `None` until it was read.
    bound: Option<Sequence>,
}

/// A number, and what has to be written with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) number: Sequence,
    /// The line's new bound.
    pub(super) bound: Option<Sequence>,
}

/// The name in [`Table::Meta`](super::Table::Meta) of a line's bound.
pub(super) fn row_name(line: &InstanceName) -> Vec<u8> {
    format!("store.number/{line}").into_bytes()
}

/// The bound as it is stored.
pub(super) fn encode(bound: Sequence) -> Vec<u8> {
    bound.to_string().into_bytes()
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(value: &[u8]) -> Option<Sequence> {
    str::from_utf8(value).ok()?.parse().ok()
}

impl Numbers {
    /// Whether the line's bound was read.
    pub(super) fn knows(&self, line: &InstanceName) -> bool {
        self.lines.get(line).is_some_and(|counter| counter.bound.is_some())
    }

    /// The line's bound as it is on disk; 0 if there is none.
    pub(super) fn read(&mut self, line: &InstanceName, bound: Sequence) {
        let counter = self.lines.entry(line.clone()).or_default();
        counter.next = counter.next.max(bound);
        counter.bound = Some(bound);
    }

    /// Numbers are at least `next` from now on, in this process.
    pub(super) fn raise(&mut self, line: &InstanceName, next: Sequence) {
        let counter = self.lines.entry(line.clone()).or_default();
        counter.next = counter.next.max(next);
    }

    /// The bound to write, so that the next process knows of a raise, too.
    pub(super) fn raised_bound(&mut self, line: &InstanceName) -> Option<Sequence> {
        let counter = self.lines.get_mut(line)?;
        let behind = counter.bound.is_some_and(|bound| bound < counter.next);
        behind.then(|| *counter.bound.insert(counter.next))
    }

    /// The next number of a line whose bound was read.
    pub(super) fn give(&mut self, line: &InstanceName) -> Given {
        let counter = self.lines.entry(line.clone()).or_default();
        let number = counter.next;
        counter.next += 1;
        let used_up = counter.bound.is_none_or(|bound| number >= bound);
        let bound = used_up.then(|| number + BLOCK);
        counter.bound = bound.or(counter.bound);
        Given { number, bound }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_where_the_bound_says_and_it_is_written_once_in_a_block() {
        let line = InstanceName::parse("a").unwrap();
        let mut numbers = Numbers::default();
        assert!(!numbers.knows(&line));
        numbers.read(&line, 0);
        let mut bound = 0;
        for number in 0..3 * BLOCK {
            let given = numbers.give(&line);
            assert_eq!(given, Given { number, bound: number.is_multiple_of(BLOCK).then_some(number + BLOCK) });
            bound = given.bound.unwrap_or(bound);
            assert!(number < bound);
        }
        numbers.give(&line);
        // The next process.
        let mut numbers = Numbers::default();
        numbers.read(&line, decode(&encode(bound + BLOCK)).unwrap());
        assert_eq!(numbers.give(&line), Given { number: 4 * BLOCK, bound: Some(5 * BLOCK) });
    }

    #[test]
    fn a_line_that_is_raised_never_falls_back() {
        let line = InstanceName::parse("a").unwrap();
        let mut numbers = Numbers::default();
        numbers.raise(&line, 70);
        assert_eq!(numbers.raised_bound(&line), None, "what is on disk is not known yet");
        numbers.read(&line, 7);
        numbers.raise(&line, 60);
        assert_eq!(numbers.raised_bound(&line), Some(70));
        assert_eq!(numbers.raised_bound(&line), None);
        assert_eq!(numbers.give(&line).number, 70);
        // Not written down, as by a store that takes no writes: the next number is.
        numbers.raise(&line, 5000);
        assert_eq!(numbers.give(&line), Given { number: 5000, bound: Some(5000 + BLOCK) });
    }
}
