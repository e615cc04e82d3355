//! How fast the devices of one tenant join a line, and how many more are to be expected.
//!
//! After a blackout a fleet is back within about a minute, so a tenant whose devices have begun to come is expected to go on until that
//! minute is over, at the rate of the last seconds. After that it is expected to go on for a tenth of the time that it has lasted: a
//! storm ends, and a trickle of hours goes on. Measured in docs/decisions/0010.

use std::time::Duration;

use rate_control::time::Mono;

/// How long a fleet takes to come back.
const STORM: Duration = Duration::from_secs(60);

/// A storm that has lasted longer goes on for this part of the time that it has lasted.
const GOES_ON_PART: f64 = 0.1;

/// The rate is that of about the last so many seconds.
const RECENT_SECONDS: f64 = 5.0;

/// A tenant that has not come for so long begins anew.
const QUIET: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    began: Mono,
    last: Mono,
    /// Devices that joined, those of longer ago counting less and less; 0 if none ever did.
    recent: f64,
}

impl Arrivals {
    /// A device has joined.
    pub(super) fn joined(&mut self, now: Mono) {
        if self.recent == 0.0 || now.since(self.last) > QUIET {
            (self.began, self.recent) = (now, 0.0);
        }
        self.recent = self.faded(now) + 1.0;
        self.last = now;
    }

    fn faded(&self, now: Mono) -> f64 {
        self.recent * (-now.since(self.last).as_secs_f64() / RECENT_SECONDS).exp()
    }

    fn per_second(&self, now: Mono) -> f64 {
        // Who has just begun has not had the time to add up to its rate.
        let lasted = now.since(self.began).as_secs_f64().max(1.0);
        self.faded(now) / (RECENT_SECONDS * (1.0 - (-lasted / RECENT_SECONDS).exp()))
    }

    /// How many more are expected to join within `horizon`.
    pub(super) fn expected(&self, now: Mono, horizon: Duration) -> usize {
        if self.recent == 0.0 {
            return 0;
        }
        let lasted = now.since(self.began);
        let goes_on = STORM.saturating_sub(lasted).max(lasted.mul_f64(GOES_ON_PART));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count that is not negative")]
        let expected = (self.per_second(now) * horizon.min(goes_on).as_secs_f64()) as usize;
        expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    /// One device every 100 ms from the start until `end`.
    fn ten_a_second(end_millis: u64) -> Arrivals {
        let mut arrivals = Arrivals::default();
        (0..end_millis).step_by(100).for_each(|millis| arrivals.joined(at(millis)));
        arrivals
    }

    #[test]
    fn a_storm_is_expected_to_last_for_its_minute_and_a_trickle_to_go_on() {
        let expected = |lasted| ten_a_second(lasted).expected(at(lasted), HOUR);
        assert!((360..=440).contains(&expected(20_000)), "{}", expected(20_000));
        assert!((90..=110).contains(&expected(100_000)), "{}", expected(100_000));
        assert!((3_200..=4_000).contains(&expected(3_600_000)), "{}", expected(3_600_000));
        let soon = ten_a_second(20_000).expected(at(20_000), Duration::from_secs(3));
        assert!((27..=33).contains(&soon), "{soon}");
    }

    #[test]
    fn who_has_stopped_is_not_expected_and_begins_anew_later() {
        assert_eq!(Arrivals::default().expected(at(0), HOUR), 0);
        let mut arrivals = ten_a_second(20_000);
        assert_eq!(arrivals.expected(at(60_000), HOUR), 0);
        arrivals.joined(at(90_000));
        assert_eq!(arrivals.began, at(90_000));
    }
}
