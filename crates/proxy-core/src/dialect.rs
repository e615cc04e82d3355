//! Dialects: how a wait is told to a kind of client. Pure.
//!
//! Every client of ours waits in the same line; what differs is which waits it can be told. Our own protocol takes any. Clients that speak
//! DPS's own protocol take a range, and come back in between.
//!
//! Invariants:
//! - A device is never told too few seconds: who comes back early has to come back once more.
//! - What is told is within the dialect's range. A wait beyond it is told in equal parts, so that nobody makes a tiny last step.

use std::time::Duration;

/// How a wait is told to a kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect {
    /// The longest wait that is told at once, in whole seconds and at least 1; `None` for any.
    pub retry_after_max_seconds: Option<u64>,
}

impl Dialect {
    /// Our own protocol: whoever speaks it waits for as long as it is told.
    pub const PLAIN: Self = Self { retry_after_max_seconds: None };

    /// What a device is told whose appointment is `wait` from now, in whole seconds, at least 1. It is spread by up to 1 % of the wait and at
    /// most `jitter_max`, only later. `spread` draws from zero to its argument.
    pub fn told_seconds(self, wait: Duration, jitter_max: Duration, spread: impl FnOnce(Duration) -> Duration) -> u64 {
        let told = whole_seconds(wait + spread(jitter_max.min(wait / 100)));
        match self.retry_after_max_seconds.map(|max| max.max(1)) {
            Some(max) if told > max => told.div_ceil(told.div_ceil(max)),
            Some(_) | None => told,
        }
    }
}

fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const JITTER_MAX: Duration = Duration::from_secs(5);

    fn told(dialect: Dialect, millis: u64, spread: fn(Duration) -> Duration) -> u64 {
        dialect.told_seconds(Duration::from_millis(millis), JITTER_MAX, spread)
    }

    #[test]
    fn a_device_is_told_whole_seconds_never_too_few() {
        let plain = |millis, spread| told(Dialect::PLAIN, millis, spread);
        assert_eq!([0, 1, 1000, 1001].map(|millis| plain(millis, |_| Duration::ZERO)), [1, 1, 1, 2]);
        assert_eq!([100_000, 6_000_000].map(|millis| plain(millis, |max| max)), [101, 6_005]);
    }

    #[test]
    fn a_wait_beyond_the_range_is_told_in_equal_parts() {
        let dialect = Dialect { retry_after_max_seconds: Some(300) };
        let exactly = |seconds: u64| told(dialect, seconds * 1000, |_| Duration::ZERO);
        assert_eq!([1, 299, 300, 301, 600, 601, 1800].map(exactly), [1, 299, 300, 151, 300, 201, 300]);
    }

    proptest! {
        #[test]
        fn whoever_comes_back_as_told_is_there_in_as_few_steps_as_the_range_allows(wait in 1_u64..100_000, max in 1_u64..2_000) {
            let dialect = Dialect { retry_after_max_seconds: Some(max) };
            let (mut left, mut steps) = (wait, 0);
            while left > 0 {
                let told = told(dialect, left * 1000, |_| Duration::ZERO);
                prop_assert!((1..=max).contains(&told));
                left = left.saturating_sub(told);
                steps += 1;
            }
            prop_assert_eq!(steps, wait.div_ceil(max));
        }
    }
}
