//! The circuit breaker of one instance: stops sending when calls fail, and goes on when one trial call got through.
//!
//! The well-known states: *closed* (calls go), *open* (calls are paused until a moment), *half-open* (one trial call is in flight). How many calls go
//! side by side once it has closed is the business of the concurrency limit.
//!
//! Invariants:
//! - Only what blames the instance counts as a failure; a single one never opens it, as it may be about that one device.
//! - Failures of calls that had left before it opened do not lengthen the wait.
//! - It decides about sending only. Places, slots of the quota and known devices are none of its business.

use std::time::Duration;

use crate::entropy::Entropy;
use crate::failpoint::Failpoint;
use crate::retry;
use crate::time::Mono;

/// What the breaker is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitState {
    /// Calls go through.
    Closed,
    /// Calls are paused.
    Open,
    /// One trial call decides.
    HalfOpen,
}

impl CircuitState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// Its name in metrics and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// Why no call may leave now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The circuit is open: calls are paused until this moment.
    Until(Mono),
    /// The circuit is half-open: until the trial call ends.
    Trying,
    /// The circuit is open: a trial call leaves when those have ended that left before.
    ForOlderCalls,
}

/// See the module.
#[derive(Debug)]
pub struct CircuitBreaker {
    /// Failures in a row that open it; at least 2.
    threshold: u32,
    backoff: (Duration, Duration),
    state: CircuitState,
    until: Mono,
    /// The last wait.
    wait: Duration,
    failures: u32,
    /// How often it opened in a row.
    trips: u32,
    /// Since when it is not closed.
    since: Option<Mono>,
}

impl CircuitBreaker {
    /// A closed breaker. Its waits grow from `backoff.0` to `backoff.1`, with full jitter.
    #[must_use]
    pub fn new(threshold: u32, backoff: (Duration, Duration)) -> Self {
        Self {
            threshold: threshold.max(2),
            backoff,
            state: CircuitState::Closed,
            until: Mono::default(),
            wait: Duration::ZERO,
            failures: 0,
            trips: 0,
            since: None,
        }
    }

    /// Changes the rules; the state stays.
    pub fn configure(&mut self, threshold: u32, backoff: (Duration, Duration)) {
        (self.threshold, self.backoff) = (threshold.max(2), backoff);
    }

    /// The state.
    #[must_use]
    pub const fn state(&self) -> CircuitState {
        self.state
    }

    /// Failures in a row.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Until when nobody goes.
    #[must_use]
    pub fn open_until(&self) -> Option<Mono> {
        (self.state == CircuitState::Open).then_some(self.until)
    }

    /// While one device tries: until when nobody else goes if it fails as the last one did.
    #[must_use]
    pub fn tried_until(&self, now: Mono) -> Option<Mono> {
        (self.state == CircuitState::HalfOpen).then(|| now.after(self.wait))
    }

    /// For how long calls have not gone through.
    #[must_use]
    pub fn sick_for(&self, now: Mono) -> Option<Duration> {
        self.since.map(|since| now.since(since))
    }

    /// Whether one more call may leave while `calling` are out.
    ///
    /// # Errors
    /// [`Held`].
    pub fn admit(&self, now: Mono, calling: usize) -> Result<(), Held> {
        match self.state {
            CircuitState::Open if now < self.until => Err(Held::Until(self.until)),
            CircuitState::Open if calling > 0 => Err(Held::ForOlderCalls),
            CircuitState::HalfOpen if calling > 0 && !Failpoint::TrialsTogether.is_on() => Err(Held::Trying),
            CircuitState::Open | CircuitState::HalfOpen | CircuitState::Closed => Ok(()),
        }
    }

    /// A call leaves. If calls failed, it is the one that tries.
    pub fn left(&mut self) {
        if self.state == CircuitState::Open {
            self.state = CircuitState::HalfOpen;
        }
    }

    /// The instance answered as it should. Whether that closes it.
    pub fn works(&mut self) -> bool {
        self.failures = 0;
        let closes = self.state != CircuitState::Closed;
        if closes {
            (self.state, self.since, self.trips) = (CircuitState::Closed, None, 0);
        }
        closes
    }

    /// A call failed in a way that blames the instance. Whether that opens it.
    pub fn fails(&mut self, now: Mono, entropy: &mut Entropy) -> bool {
        self.failures = self.failures.saturating_add(1);
        let opens = match self.state {
            CircuitState::Closed => self.failures >= self.threshold,
            CircuitState::HalfOpen => true,
            CircuitState::Open => false,
        };
        if opens {
            self.trips = self.trips.saturating_add(1);
            let wait = retry::full_jitter(self.trips.saturating_add(1), self.backoff.0, self.backoff.1, entropy);
            (self.until, self.wait) = (now.after(wait), wait);
            self.state = CircuitState::Open;
            self.since = self.since.or(Some(now));
        }
        opens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    fn opened(now: Mono) -> (CircuitBreaker, Entropy) {
        let (mut breaker, mut entropy) = (CircuitBreaker::new(2, BACKOFF), Entropy::from_seed(7));
        breaker.fails(now, &mut entropy);
        assert_eq!(
            (breaker.state(), breaker.admit(now, 500)),
            (CircuitState::Closed, Ok(())),
            "one failure is nothing"
        );
        breaker.fails(now, &mut entropy);
        assert_eq!(breaker.state(), CircuitState::Open);
        (breaker, entropy)
    }

    #[test]
    fn one_device_tries_and_its_answer_closes_it() {
        let (mut breaker, _) = opened(at(0));
        let until = breaker.open_until().unwrap();
        assert_eq!(breaker.admit(at(0), 0), Err(Held::Until(until)));
        assert_eq!((breaker.admit(until, 1), breaker.admit(until, 0)), (Err(Held::ForOlderCalls), Ok(())));
        breaker.left();
        assert_eq!((breaker.state(), breaker.admit(until, 1)), (CircuitState::HalfOpen, Err(Held::Trying)));
        assert!(breaker.works(), "that is news");
        assert_eq!((breaker.state(), breaker.sick_for(until)), (CircuitState::Closed, None));
        assert_eq!((breaker.works(), breaker.admit(until, 10_000)), (false, Ok(())));
    }

    #[test]
    fn a_failed_try_opens_it_again_for_longer_and_old_calls_do_not() {
        let (mut breaker, mut entropy) = opened(at(0));
        let until = breaker.open_until();
        for _ in 0..100 {
            breaker.fails(at(1), &mut entropy);
        }
        assert_eq!(breaker.open_until(), until);
        let (mut now, mut longest) = (at(0), Duration::ZERO);
        for _ in 0..30 {
            now = breaker.open_until().unwrap();
            assert_eq!(breaker.admit(now, 0), Ok(()));
            breaker.left();
            breaker.fails(now, &mut entropy);
            longest = longest.max(breaker.open_until().unwrap().since(now));
        }
        assert!(longest > Duration::from_secs(20) && longest <= BACKOFF.1, "{longest:?}");
        assert_eq!(breaker.sick_for(now), Some(now.since(at(0))));
    }
}
