//! The concurrency limit of one instance: how many calls are out side by side. It is the only place where that number rises.
//!
//! Two rules:
//! - *Slow start.* After DPS throttled a call, and after the circuit has closed, calls begin one at a time; every call that goes through
//!   allows one more, so that they double per round trip. A refusal that comes again right away costs one call.
//! - *As many as the rate needs.* If the instance takes less than it did, DPS refuses all that are out at that moment. So no more
//!   registrations are out than the rate needs by Little's law, rate × answer time. Slots that were taken in one burst come free together
//!   a minute later, and this spreads them.
//!
//! Invariants:
//! - The second rule never holds a line below its rate: one that is out for longer than an answer typically takes does not count any more.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ledger::{SlotId, WINDOW};
use crate::time::Mono;

/// Calls at the same time with which the slow start has ended.
const SLOW_START_END: usize = 64;

/// What calls begin slowly after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// DPS throttled a call.
    Throttling,
    /// Calls failed, and one got through.
    Failure,
}

/// See the module.
#[derive(Debug, Default)]
pub struct ConcurrencyLimit {
    /// Registrations that left and were not answered yet, as far as they count; oldest first.
    out: VecDeque<(Mono, SlotId)>,
    /// So many calls may be out while they begin slowly.
    slow_start: Option<(usize, After)>,
}

impl ConcurrencyLimit {
    /// Calls begin with one at a time.
    pub fn begin_slowly(&mut self, after: After) {
        self.slow_start = Some((1, after));
    }

    /// A call went through.
    pub fn went_through(&mut self) {
        self.slow_start =
            self.slow_start.map(|(most, after)| (most + 1, after)).filter(|(most, _)| *most < SLOW_START_END);
    }

    /// Whether one more call may leave while `calling` are out.
    ///
    /// # Errors
    /// How many may be out, and after what: until one of them ends.
    pub fn admit(&self, calling: usize) -> Result<(), (usize, After)> {
        self.slow_start.filter(|(most, _)| calling >= *most).map_or(Ok(()), Err)
    }

    /// A registration left under `slot`.
    pub fn left(&mut self, slot: SlotId, now: Mono) {
        self.out.push_back((now, slot));
    }

    /// The registration under `slot` is over: answered, given up, or it never left.
    pub fn ended(&mut self, slot: SlotId) {
        self.out.retain(|(_, out)| *out != slot);
    }

    /// Whether the rate needs one more registration out at `now`, if an answer typically takes `answer_time`.
    ///
    /// # Errors
    /// How many may be out, and when one more may leave at the latest; the end of one that is out may come before.
    pub fn check(&mut self, limit_per_minute: u32, answer_time: Duration, now: Mono) -> Result<(), (usize, Mono)> {
        let most = needed(limit_per_minute, answer_time);
        while self.out.front().is_some_and(|(left, _)| now.since(*left) >= answer_time) {
            self.out.pop_front();
        }
        match self.out.front() {
            Some((left, _)) if self.out.len() >= most => Err((most, left.after(answer_time))),
            _ => Ok(()),
        }
    }
}

/// The least number that keeps up the rate, whatever the phase.
fn needed(limit_per_minute: u32, answer_time: Duration) -> usize {
    let needed = 1 + u128::from(limit_per_minute) * answer_time.as_nanos() / WINDOW.as_nanos();
    usize::try_from(needed).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER_TIME: Duration = Duration::from_millis(300);

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn calls_begin_slowly_and_one_that_goes_through_allows_one_more() {
        for after in [After::Throttling, After::Failure] {
            let mut concurrency = ConcurrencyLimit::default();
            assert_eq!(concurrency.admit(10_000), Ok(()));
            concurrency.begin_slowly(after);
            for most in 1..SLOW_START_END {
                assert_eq!((concurrency.admit(most - 1), concurrency.admit(most)), (Ok(()), Err((most, after))));
                concurrency.went_through();
            }
            assert_eq!(concurrency.admit(10_000), Ok(()));
        }
    }

    #[test]
    fn as_many_are_out_as_the_rate_needs() {
        for (limit, most) in [(1, 1), (100, 1), (200, 2), (1000, 6), (10_000, 51)] {
            let mut concurrency = ConcurrencyLimit::default();
            for slot in 0..u32::try_from(most).unwrap() {
                assert_eq!(concurrency.check(limit, ANSWER_TIME, at(5)), Ok(()), "{slot} at {limit}");
                concurrency.left(SlotId(slot), at(5));
            }
            assert_eq!(concurrency.check(limit, ANSWER_TIME, at(6)), Err((most, at(305))), "{limit}");
            concurrency.ended(SlotId(0));
            assert_eq!(concurrency.check(limit, ANSWER_TIME, at(6)), Ok(()), "{limit}");
        }
    }

    #[test]
    fn a_line_whose_calls_are_never_answered_keeps_its_rate() {
        for limit in [1, 60, 199, 200, 1000, 10_000] {
            let mut concurrency = ConcurrencyLimit::default();
            let (mut now, mut left) = (0, 0);
            while now < 60_000 {
                while concurrency.check(limit, ANSWER_TIME, at(now)).is_ok() && now < 60_000 {
                    concurrency.left(SlotId(left), at(now));
                    left += 1;
                }
                now += 1;
            }
            assert!(left >= limit, "{left} of {limit}");
        }
    }
}
