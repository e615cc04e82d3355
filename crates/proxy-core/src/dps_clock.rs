//! What DPS's own clock reads, from the `Date` of its answers.
//!
//! Each answer bounds the difference between DPS's clock and our boot-time clock: `Date` was true, to the second, at some moment
//! between sending and receiving. The bounds of all answers intersect, so a few answers narrow it to the network's latency. Our
//! wall clock does not enter, so a jump of it changes nothing.

use crate::time::{Mono, WallTime};

/// Bounds of `DPS's clock − our boot-time clock`, in milliseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct DpsClock {
    bounds: Option<(i64, i64)>,
}

fn millis(moment: Mono) -> i64 {
    i64::try_from(moment.as_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

impl DpsClock {
    /// An answer that was dated `date` came to a call sent and received at these moments.
    pub fn observe(&mut self, date: WallTime, sent: Mono, received: Mono) {
        let least = date.unix_millis() - millis(received) - 1;
        let most = date.unix_millis() + 1000 - millis(sent);
        self.bounds = match self.bounds {
            // Bounds that exclude each other mean that a clock was set: start again from what is true now.
            Some((low, high)) if low.max(least) <= high.min(most) => Some((low.max(least), high.min(most))),
            Some(_) | None => Some((least, most)),
        };
    }

    /// The latest that DPS's clock can read at `moment`. `None` before DPS was heard of.
    #[must_use]
    pub fn latest_at(&self, moment: Mono) -> Option<WallTime> {
        self.bounds.map(|(_, high)| WallTime::from_unix_millis(high + millis(moment)))
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
        assert_eq!(clock.latest_at(at(0)), None);
        for moment in (0..20_000).step_by(130) {
            let date = WallTime::from_unix_millis(dps(moment + 5) / 1000 * 1000);
            clock.observe(date, at(moment), at(moment + 10));
        }
        let latest = clock.latest_at(at(30_000)).unwrap().unix_millis();
        assert!((dps(30_000)..dps(30_000) + 150).contains(&latest), "{latest}");
        clock.observe(WallTime::from_unix_millis(9_000_000), at(40_000), at(40_010));
        assert_eq!(clock.latest_at(at(40_010)), Some(WallTime::from_unix_millis(9_001_010)));
    }
}
