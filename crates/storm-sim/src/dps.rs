//! DPS's side of one instance: counts registrations when they arrive, and refuses what is over the quota.
//!
//! Written apart from the ledger that it judges. A minute is counted in two ways: any 60 seconds (a registration at `t` counts until
//! just before `t + 60 s`), and minutes of the clock. What decides is the stricter one, any 60 seconds; refused ones spend nothing, but
//! are counted in what was asked for.

use std::collections::VecDeque;

use rate_control::time::Mono;

const MINUTE_NANOS: u64 = 60_000_000_000;

/// One instance as it counts.
#[derive(Debug)]
pub(crate) struct Dps {
    quota_per_minute: u32,
    /// Registrations accepted in the last minute.
    accepted: VecDeque<u64>,
    /// Registrations asked for in the last minute, whatever the answer.
    asked: VecDeque<u64>,
    /// The minute of the clock that `asked_in_minute` belongs to.
    minute: u64,
    asked_in_minute: u64,
    pub(crate) counts: Counts,
}

/// What one instance saw.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    /// Most registrations asked for in any 60 seconds.
    pub(crate) most_in_any_minute: u64,
    /// Most registrations asked for in a minute of the clock.
    pub(crate) most_in_clock_minute: u64,
}

impl Dps {
    pub(crate) fn new(quota_per_minute: u32) -> Self {
        Self {
            quota_per_minute,
            accepted: VecDeque::new(),
            asked: VecDeque::new(),
            minute: 0,
            asked_in_minute: 0,
            counts: Counts::default(),
        }
    }

    /// A registration arrives. Refused ones (429) are told in how many seconds the window has room again.
    pub(crate) fn register(&mut self, now: Mono) -> Result<(), u64> {
        let now = now.as_nanos();
        let begins = |window: &mut VecDeque<u64>| {
            while window.front().is_some_and(|&at| at + MINUTE_NANOS <= now) {
                window.pop_front();
            }
        };
        begins(&mut self.accepted);
        begins(&mut self.asked);
        self.asked.push_back(now);
        if now / MINUTE_NANOS != self.minute {
            (self.minute, self.asked_in_minute) = (now / MINUTE_NANOS, 0);
        }
        self.asked_in_minute += 1;
        let counts = &mut self.counts;
        counts.most_in_any_minute = counts.most_in_any_minute.max(self.asked.len() as u64);
        counts.most_in_clock_minute = counts.most_in_clock_minute.max(self.asked_in_minute);
        if let Some(&oldest) = self.accepted.front()
            && self.accepted.len() >= self.quota_per_minute as usize
        {
            counts.refused += 1;
            return Err((oldest + MINUTE_NANOS - now).div_ceil(1_000_000_000));
        }
        self.accepted.push_back(now);
        counts.accepted += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn what_is_over_the_quota_of_any_minute_is_refused_and_counted() {
        let mut dps = Dps::new(2);
        assert_eq!(dps.register(at(59_000)), Ok(()));
        assert_eq!(dps.register(at(61_000)), Ok(()));
        assert_eq!(dps.register(at(118_999)), Err(1));
        assert_eq!(dps.register(at(119_000)), Ok(()), "the first one has left the window");
        assert_eq!(dps.register(at(119_001)), Err(2));
        let counts = dps.counts;
        assert_eq!((counts.accepted, counts.refused), (3, 2));
        assert_eq!((counts.most_in_any_minute, counts.most_in_clock_minute), (4, 4));
    }
}
