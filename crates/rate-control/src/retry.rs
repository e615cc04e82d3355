//! How long to wait after failures: exponential, with full jitter, from one place only.
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
}
