//! What DPS's own clock reads, from the `Date` of its answers.
//!
//! Each answer bounds the difference between DPS's clock and our boot-time clock: `Date` was true, to the second, at some moment
//! between sending and receiving. The bounds of all answers intersect, so a few answers narrow it to the network's latency. Our
//! wall clock does not enter, so a jump of it changes nothing.
//!
//! The bounds widen with the time since the last answer, because the two clocks do not run alike, and after an hour without one they
//! are not relied on.

use std::time::Duration;

use crate::time::{Mono, WallTime};

/// After so long without an answer DPS is asked anew before anything is signed.
pub const GOOD_FOR: Duration = Duration::from_secs(3600);

/// How far two clocks may drift apart, in millionths: twice what ordinary crystals do.
const DRIFT_PER_MILLION: i64 = 100;

/// Bounds of `DPS's clock − our boot-time clock`, in milliseconds, as of the last answer.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    least: i64,
    most: i64,
    heard: Mono,
}

impl Bounds {
    fn at(self, moment: Mono) -> (i64, i64) {
        let drift = whole_millis(moment.since(self.heard)).saturating_mul(DRIFT_PER_MILLION) / 1_000_000;
        (self.least - drift, self.most + drift)
    }
}

/// What is known of DPS's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct DpsClock {
    bounds: Option<Bounds>,
}

fn whole_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn millis(moment: Mono) -> i64 {
    whole_millis(moment.since(Mono::default()))
}

impl DpsClock {
    /// An answer that was dated `date` came to a call sent and received at these moments.
    pub fn observe(&mut self, date: WallTime, sent: Mono, received: Mono) {
        let least = date.unix_millis() - millis(received) - 1;
        let most = date.unix_millis() + 1000 - millis(sent);
        let known = self.bounds.map(|bounds| bounds.at(received));
        let (least, most) = match known {
            // Bounds that exclude each other mean that a clock was set: start again from what is true now.
            Some((low, high)) if low.max(least) <= high.min(most) => (low.max(least), high.min(most)),
            Some(_) | None => (least, most),
        };
        self.bounds = Some(Bounds { least, most, heard: received });
    }

    /// Whether DPS was heard of lately enough to sign by its clock.
    #[must_use]
    pub fn is_known(&self, now: Mono) -> bool {
        self.bounds.is_some_and(|bounds| now.since(bounds.heard) < GOOD_FOR)
    }

    /// The earliest that DPS's clock can read at `moment`. `None` before DPS was heard of.
    #[must_use]
    pub fn earliest_at(&self, moment: Mono) -> Option<WallTime> {
        self.bounds.map(|bounds| WallTime::from_unix_millis(bounds.at(moment).0 + millis(moment)))
    }

    /// The latest that DPS's clock can read at `moment`. `None` before DPS was heard of.
    #[must_use]
    pub fn latest_at(&self, moment: Mono) -> Option<WallTime> {
        self.bounds.map(|bounds| WallTime::from_unix_millis(bounds.at(moment).1 + millis(moment)))
    }

    /// The middle of the bounds of `DPS's clock − our boot-time clock`, in milliseconds. `None` before DPS was heard of.
    #[must_use]
    pub fn ahead_of_boot_millis(&self) -> Option<i64> {
        self.bounds.map(|bounds| bounds.least.midpoint(bounds.most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn answers_narrow_the_bounds_and_a_set_clock_starts_anew() {
        let dps = |moment: u64| i64::try_from(moment).unwrap() + 500_300;
        let mut clock = DpsClock::default();
        assert_eq!((clock.earliest_at(at(0)), clock.latest_at(at(0)), clock.is_known(at(0))), (None, None, false));
        for moment in (0..20_000).step_by(130) {
            let date = WallTime::from_unix_millis(dps(moment + 5) / 1000 * 1000);
            clock.observe(date, at(moment), at(moment + 10));
        }
        let latest = clock.latest_at(at(30_000)).unwrap().unix_millis();
        assert!((dps(30_000)..dps(30_000) + 150).contains(&latest), "{latest}");
        let earliest = clock.earliest_at(at(30_000)).unwrap().unix_millis();
        assert!((dps(30_000) - 150..=dps(30_000)).contains(&earliest), "{earliest}");
        clock.observe(WallTime::from_unix_millis(9_000_000), at(40_000), at(40_010));
        assert_eq!(clock.latest_at(at(40_010)), Some(WallTime::from_unix_millis(9_001_010)));
        assert_eq!(clock.earliest_at(at(40_010)), Some(WallTime::from_unix_millis(8_999_999)));
    }

    #[test]
    fn silence_widens_the_bounds_until_they_are_not_relied_on() {
        let mut clock = DpsClock::default();
        clock.observe(WallTime::from_unix_millis(1_000_000), at(0), at(0));
        let width = |moment| clock.latest_at(moment).unwrap().since(clock.earliest_at(moment).unwrap());
        let hour = at(3_600_000);
        assert_eq!(width(hour) - width(at(0)), Duration::from_millis(720));
        assert!(clock.is_known(at(3_599_999)) && !clock.is_known(hour));
    }
}
