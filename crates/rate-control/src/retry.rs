//! How long to wait: we after failures (exponential, with full jitter, from one place only), a device until its appointment.
//!
//! No other layer repeats a request: the HTTP client's own retries are off, because a hidden second send would not be in the ledger.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

use crate::entropy::Entropy;

/// A wait after the `failures`-th failure in a row (from 1): uniform between zero and `min · 2^(failures − 1)`, the bound itself at
/// most `max`.
pub fn full_jitter(failures: u32, min: Duration, max: Duration, entropy: &mut Entropy) -> Duration {
    entropy.up_to(ceiling(failures, min, max))
}

/// The largest wait that [`full_jitter`] can give.
#[must_use]
pub fn ceiling(failures: u32, min: Duration, max: Duration) -> Duration {
    // Beyond 2^32 the bound is `max` for every sensible `min`.
    let steps = failures.saturating_sub(1).min(32) as usize;
    ExponentialBuilder::new()
        .with_factor(2.0)
        .with_min_delay(min)
        .with_max_delay(max)
        .without_max_times()
        .build()
        .nth(steps)
        .unwrap_or(max)
        .min(max)
}

/// The `Retry-After` of a device whose appointment is `wait` from now, in whole seconds, at least 1. It is spread by up to 1 % of the
/// wait and at most `jitter_max`, only later: who comes back early has to come back once more. `spread` draws from zero to its argument.
pub fn told_seconds(wait: Duration, jitter_max: Duration, spread: impl FnOnce(Duration) -> Duration) -> u64 {
    let told = wait + spread(jitter_max.min(wait / 100));
    (told.as_secs() + u64::from(told.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(500);
    const MAX: Duration = Duration::from_secs(60);

    #[test]
    fn the_ceiling_doubles_up_to_its_bound() {
        let ceilings: Vec<u128> = (1..=9).map(|failures| ceiling(failures, MIN, MAX).as_millis()).collect();
        assert_eq!(ceilings, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(ceiling(u32::MAX, MIN, MAX), MAX);
    }

    #[test]
    fn the_wait_uses_the_whole_range() {
        let mut entropy = Entropy::from_seed(1);
        let waits: Vec<Duration> = (0..1000).map(|_| full_jitter(3, MIN, MAX, &mut entropy)).collect();
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(2)));
        assert!(waits.iter().any(|wait| *wait < Duration::from_millis(200)));
        assert!(waits.iter().any(|wait| *wait > Duration::from_millis(1800)));
    }

    #[test]
    fn a_device_is_told_whole_seconds_never_too_few() {
        let most = |max| max;
        let jitter_max = Duration::from_secs(5);
        let told =
            |millis, spread: fn(Duration) -> Duration| told_seconds(Duration::from_millis(millis), jitter_max, spread);
        assert_eq!([0, 1, 1000, 1001].map(|millis| told(millis, |_| Duration::ZERO)), [1, 1, 1, 2]);
        assert_eq!([100_000, 6_000_000].map(|millis| told(millis, most)), [101, 6_005]);
    }
}
