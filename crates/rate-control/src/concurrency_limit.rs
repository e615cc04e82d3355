//! The concurrency limit of one line: how many registrations are out side by side.
//!
//! If the instance takes less than it did, DPS refuses all that are out at that moment, and the refusals of an hour are counted in
//! ones. So no more are out than the rate needs by Little's law, rate × answer time. Slots that were taken in one burst come free
//! together a minute later, and this spreads them.
//!
//! Invariants:
//! - It never holds a line below its rate: one that is out for longer than an answer typically takes does not count any more.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ledger::{SlotId, WINDOW};
use crate::time::Mono;

/// See the module.
#[derive(Debug, Default)]
pub struct ConcurrencyLimit {
    /// What left and was not answered yet, as far as it counts; oldest first.
    out: VecDeque<(Mono, SlotId)>,
}

impl ConcurrencyLimit {
    /// A registration left under `slot`.
    pub fn left(&mut self, slot: SlotId, now: Mono) {
        self.out.push_back((now, slot));
    }

    /// The registration under `slot` is over: answered, given up, or it never left.
    pub fn ended(&mut self, slot: SlotId) {
        self.out.retain(|(_, out)| *out != slot);
    }

    /// Whether one more may leave at `now`, if an answer typically takes `answer_time`.
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
