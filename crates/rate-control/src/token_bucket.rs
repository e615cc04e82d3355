//! The pace: spreads admitted sends over the minute, so that a full ledger does not leave in one clap.
//!
//! governor does the arithmetic (GCRA). Its clock is told the time here, as everything in this crate is. The ledger decides
//! first and alone about safety; a permit is only taken when the ledger has room, so none is spent and then refused.
//!
//! governor cannot be asked when its next permits fall due without taking one, so this keeps the same number beside it
//! (the theoretical arrival time) for forecasts only.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::ledger::WINDOW;
use crate::time::Mono;

/// A clock that stands where it was last put.
#[derive(Debug, Clone, Default)]
struct HandedClock(Arc<AtomicU64>);

impl Clock for HandedClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.0.load(Ordering::Relaxed))
    }
}

/// Spreads sends evenly, with a bounded burst.
pub struct TokenBucket {
    clock: HandedClock,
    limiter: RateLimiter<NotKeyed, InMemoryState, HandedClock, NoOpMiddleware<Nanos>>,
    interval: Duration,
    burst: u32,
    theoretical_arrival: Mono,
}

impl fmt::Debug for TokenBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenBucket")
            .field("interval", &self.interval)
            .field("burst", &self.burst)
            .finish_non_exhaustive()
    }
}

impl TokenBucket {
    /// A pace of `quota_per_minute` with bursts of `burst` sends, both at least 1, of which `credit` may leave now.
    #[must_use]
    pub fn new(quota_per_minute: u32, burst: u32, credit: u32, now: Mono) -> Self {
        let interval = emission_interval(quota_per_minute);
        let clock = HandedClock::default();
        clock.0.store(now.as_nanos(), Ordering::Relaxed);
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(interval).expect("an interval is never zero").allow_burst(burst);
        let limiter = RateLimiter::direct_with_clock(quota, clock.clone());
        let mut bucket = Self { clock, limiter, interval, burst: burst.get(), theoretical_arrival: now };
        for _ in credit..burst.get() {
            // Cannot fail: fewer than a burst are taken.
            let _ = bucket.take(now);
        }
        bucket
    }

    /// The time between two permits.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// How much of a burst may leave at `now`, given when earlier ones of the same pace left, in order.
    #[must_use]
    pub fn credit_after(quota_per_minute: u32, burst: u32, sent: impl IntoIterator<Item = Mono>, now: Mono) -> u32 {
        let interval = emission_interval(quota_per_minute);
        let arrival = sent.into_iter().fold(Mono::default(), |arrival, sent| arrival.max(sent).after(interval));
        credit(arrival, interval, burst, now)
    }

    /// How many permits could be taken at once.
    #[must_use]
    pub fn credit(&self, now: Mono) -> u32 {
        credit(self.theoretical_arrival, self.interval, self.burst, now)
    }

    /// Takes a permit.
    ///
    /// # Errors
    /// The moment at which the next permit falls due.
    pub fn take(&mut self, now: Mono) -> Result<(), Mono> {
        self.clock.0.fetch_max(now.as_nanos(), Ordering::Relaxed);
        match self.limiter.check() {
            Ok(()) => {
                self.theoretical_arrival = self.theoretical_arrival.max(now).after(self.interval);
                Ok(())
            }
            Err(not_until) => Err(now.after(not_until.wait_time_from(self.clock.now()).max(Duration::from_nanos(1)))),
        }
    }

    /// When the `rank`-th further permit (from 0) falls due, if all before it are taken at once.
    #[must_use]
    pub fn forecast(&self, rank: u64, now: Mono) -> Mono {
        let ahead = u128::from(rank) * self.interval.as_nanos();
        let due = u128::from(self.theoretical_arrival.max(now).as_nanos()) + ahead;
        let credit = self.interval.as_nanos() * u128::from(self.burst - 1);
        Mono::from_nanos(u64::try_from(due.saturating_sub(credit)).unwrap_or(u64::MAX)).max(now)
    }
}

fn credit(theoretical_arrival: Mono, interval: Duration, burst: u32, now: Mono) -> u32 {
    let taken = theoretical_arrival.since(now).as_nanos().div_ceil(interval.as_nanos());
    burst.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX))
}

/// The time between two permits: a minute divided by the quota, rounded up to whole nanoseconds, because governor's own
/// `per_minute` rounds down and would run a hair too fast.
fn emission_interval(quota_per_minute: u32) -> Duration {
    let nanos = WINDOW.as_nanos().div_ceil(u128::from(quota_per_minute.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_burst_leaves_at_once_and_the_rest_at_even_intervals() {
        let mut bucket = TokenBucket::new(60, 3, 3, at(5_000));
        for _ in 0..3 {
            assert_eq!(bucket.take(at(5_000)), Ok(()));
        }
        assert_eq!(bucket.take(at(5_000)), Err(at(6_000)));
        assert_eq!(bucket.take(at(6_000)), Ok(()));
        assert_eq!(bucket.take(at(6_000)), Err(at(7_000)));
    }

    #[test]
    fn what_is_left_of_a_burst_outlives_the_pace() {
        let mut bucket = TokenBucket::new(60, 3, 3, at(0));
        let sent = [at(0), at(0), at(500)];
        for moment in sent {
            assert_eq!(bucket.take(moment), Ok(()));
        }
        for (moment, credit) in [(500, 0), (999, 0), (1_000, 1), (2_999, 2), (3_000, 3), (9_000, 3)] {
            assert_eq!(bucket.credit(at(moment)), credit, "at {moment}");
            assert_eq!(TokenBucket::credit_after(60, 3, sent, at(moment)), credit, "at {moment}");
        }
        let mut renewed = TokenBucket::new(60, 3, 1, at(1_000));
        assert_eq!(renewed.take(at(1_000)), Ok(()));
        assert_eq!(renewed.take(at(1_000)), Err(at(2_000)));
    }

    #[test]
    fn the_forecast_is_what_then_happens() {
        let mut bucket = TokenBucket::new(7, 2, 2, at(0));
        let forecasts: Vec<Mono> = (0..20).map(|rank| bucket.forecast(rank, at(0))).collect();
        let mut now = at(0);
        for forecast in forecasts {
            while let Err(due) = bucket.take(now) {
                now = due;
            }
            assert_eq!(now, forecast);
        }
    }
}
