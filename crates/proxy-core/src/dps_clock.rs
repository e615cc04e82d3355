//! What DPS's own clock reads, from the `Date` of its answers.
//!
//! Each answer bounds the difference between DPS's clock and our boot-time clock: `Date` was true, to the second, at some moment
//! between sending and receiving. The bounds of all answers intersect, so a few answers narrow it to the network's latency. Our
//! wall clock does not enter.
//!
//! The bounds widen with the time since the last answer, because the two clocks do not run alike. They are not relied on after an hour
//! without one, nor after the wall clock and the boot-time clock have parted: the boot-time clock may have stood still.

use std::time::Duration;

use rate_control::time::{Mono, Now, WallLead, WallTime};

/// After so long without an answer DPS is asked anew before anything is signed.
pub const GOOD_FOR: Duration = Duration::from_secs(3600);

/// After so long without an answer DPS is asked anew if somebody has the time to. It leaves ten tries, a minute apart, before the clock is
/// not relied on.
pub const REFRESH_AFTER: Duration = Duration::from_secs(3000);

/// How far two clocks may drift apart, in millionths: twice what ordinary crystals do.
const DRIFT_PER_MILLION: i64 = 100;

/// Bounds of `DPS's clock − our boot-time clock`, in milliseconds, as of the last answer.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    least: i64,
    most: i64,
    heard: Mono,
    /// What our own clocks read against each other then.
    lead: WallLead,
}

impl Bounds {
    fn at(self, moment: Mono) -> (i64, i64) {
        let drift = whole_millis(moment.since(self.heard)).saturating_mul(DRIFT_PER_MILLION) / 1_000_000;
        (self.least - drift, self.most + drift)
    }
}

/// What is assumed of DPS's clock while DPS does not tell.
#[derive(Debug, Clone, Copy)]
struct Assumed {
    /// `DPS's clock − our boot-time clock`, in milliseconds.
    ahead_of_boot: i64,
    since: Mono,
    lead: WallLead,
}

/// What is known of DPS's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct DpsClock {
    bounds: Option<Bounds>,
    assumed: Option<Assumed>,
}

fn whole_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn millis(moment: Mono) -> i64 {
    whole_millis(moment.since(Mono::default()))
}

impl DpsClock {
    /// An answer that was dated `date` came to a call sent and received at these moments.
    pub fn observe(&mut self, date: WallTime, sent: Mono, received_at: Now) {
        let received = received_at.mono;
        let least = date.unix_millis() - millis(received) - 1;
        let most = date.unix_millis() + 1000 - millis(sent);
        let known = self.bounds.map(|bounds| bounds.at(received));
        let (least, most) = match known {
            // Bounds that exclude each other mean that a clock was set: start again from what is true now.
            Some((low, high)) if low.max(least) <= high.min(most) => (low.max(least), high.min(most)),
            Some(_) | None => (least, most),
        };
        self.assumed = None;
        self.bounds = Some(Bounds { least, most, heard: received, lead: WallLead::of(received_at) });
    }

    /// Whether DPS was heard of lately enough to sign by its clock, and our clocks have run alike since.
    #[must_use]
    pub fn is_known(&self, now: Now) -> bool {
        self.is_younger_than(GOOD_FOR, now)
    }

    /// Goes by an assumption, for as long as by an answer, or until DPS is heard of.
    pub fn assume(&mut self, ahead_of_boot_millis: i64, now: Now) {
        let lead = WallLead::of(now);
        self.assumed = Some(Assumed { ahead_of_boot: ahead_of_boot_millis, since: now.mono, lead });
    }

    /// Whether something can be signed: the clock is known, or assumed.
    #[must_use]
    pub fn can_sign(&self, now: Now) -> bool {
        self.is_known(now) || self.assumption(GOOD_FOR, now).is_some()
    }

    /// Whether DPS is to be asked, so that its clock stays known.
    #[must_use]
    pub fn is_due(&self, now: Now) -> bool {
        !self.is_younger_than(REFRESH_AFTER, now) && self.assumption(REFRESH_AFTER, now).is_none()
    }

    fn assumption(&self, age: Duration, now: Now) -> Option<Assumed> {
        self.assumed.filter(|assumed| now.mono.since(assumed.since) < age && !assumed.lead.has_jumped(now))
    }

    fn is_younger_than(&self, age: Duration, now: Now) -> bool {
        self.bounds.is_some_and(|bounds| now.mono.since(bounds.heard) < age && !bounds.lead.has_jumped(now))
    }

    /// The earliest that DPS's clock can read, or what it is assumed to read. `None` if [nothing can be signed](Self::can_sign).
    #[must_use]
    pub fn earliest(&self, now: Now) -> Option<WallTime> {
        let assumed = || {
            let assumed = self.assumption(GOOD_FOR, now)?;
            Some(WallTime::from_unix_millis(assumed.ahead_of_boot.saturating_add(millis(now.mono))))
        };
        self.known_at(now).map(|(earliest, _)| earliest).or_else(assumed)
    }

    /// The latest that DPS's clock can read. `None` if it is not [known](Self::is_known).
    #[must_use]
    pub fn latest(&self, now: Now) -> Option<WallTime> {
        self.known_at(now).map(|(_, latest)| latest)
    }

    fn known_at(&self, now: Now) -> Option<(WallTime, WallTime)> {
        let (least, most) = self.bounds.filter(|_| self.is_known(now))?.at(now.mono);
        Some((
            WallTime::from_unix_millis(least + millis(now.mono)),
            WallTime::from_unix_millis(most + millis(now.mono)),
        ))
    }

    /// The middle of the bounds of `DPS's clock − our boot-time clock`, in milliseconds. `None` before DPS was heard of.
    #[must_use]
    pub fn ahead_of_boot_millis(&self) -> Option<i64> {
        self.bounds.map(|bounds| bounds.least.midpoint(bounds.most))
    }

    /// The same as of the last answer, however old, unless a clock of ours has jumped since.
    #[must_use]
    pub fn last_ahead_of_boot_millis(&self, now: Now) -> Option<i64> {
        self.ahead_of_boot_millis().filter(|_| self.bounds.is_some_and(|bounds| !bounds.lead.has_jumped(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rate_control::time::{BootId, BootTag, Process};

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    /// With a wall clock that is `lead` milliseconds ahead of the boot-time clock.
    fn led(millis: u64, lead: i64) -> Now {
        let process = Process { boot: BootTag::of(&BootId("a".to_owned())), began: at(0) };
        Now { mono: at(millis), wall: WallTime::from_unix_millis(i64::try_from(millis).unwrap() + lead), process }
    }

    fn now(millis: u64) -> Now {
        led(millis, 500_000)
    }

    #[test]
    fn answers_narrow_the_bounds_and_a_set_clock_starts_anew() {
        let dps = |moment: u64| i64::try_from(moment).unwrap() + 500_300;
        let mut clock = DpsClock::default();
        assert_eq!((clock.earliest(now(0)), clock.latest(now(0)), clock.is_known(now(0))), (None, None, false));
        for moment in (0..20_000).step_by(130) {
            let date = WallTime::from_unix_millis(dps(moment + 5) / 1000 * 1000);
            clock.observe(date, at(moment), now(moment + 10));
        }
        let latest = clock.latest(now(30_000)).unwrap().unix_millis();
        assert!((dps(30_000)..dps(30_000) + 150).contains(&latest), "{latest}");
        let earliest = clock.earliest(now(30_000)).unwrap().unix_millis();
        assert!((dps(30_000) - 150..=dps(30_000)).contains(&earliest), "{earliest}");
        clock.observe(WallTime::from_unix_millis(9_000_000), at(40_000), now(40_010));
        assert_eq!(clock.latest(now(40_010)), Some(WallTime::from_unix_millis(9_001_010)));
        assert_eq!(clock.earliest(now(40_010)), Some(WallTime::from_unix_millis(8_999_999)));
    }

    #[test]
    fn silence_widens_the_bounds_until_they_are_not_relied_on() {
        let mut clock = DpsClock::default();
        clock.observe(WallTime::from_unix_millis(1_000_000), at(0), now(0));
        let width = |moment| clock.latest(now(moment)).unwrap().since(clock.earliest(now(moment)).unwrap());
        assert_eq!(width(3_599_999) - width(0), Duration::from_millis(718));
        assert!(clock.is_known(now(3_599_999)) && !clock.is_known(now(3_600_000)));
        assert!(clock.is_due(now(3_000_000)) && !clock.is_due(now(2_999_999)), "asked before it lapses");
    }

    #[test]
    fn an_assumption_is_good_to_sign_by_until_dps_is_heard_of_or_a_clock_jumps() {
        let mut clock = DpsClock::default();
        assert!(!clock.can_sign(now(0)));
        clock.assume(1_000_000, now(0));
        assert!(clock.can_sign(now(3_599_999)) && !clock.can_sign(now(3_600_000)) && !clock.can_sign(led(10, 0)));
        assert!(!clock.is_known(now(10)) && !clock.is_due(now(10)) && clock.is_due(now(3_000_000)));
        assert_eq!(clock.earliest(now(10)), Some(WallTime::from_unix_millis(1_000_010)));
        assert_eq!((clock.latest(now(10)), clock.ahead_of_boot_millis()), (None, None), "it is evidence of nothing");
        clock.observe(WallTime::from_unix_millis(5_000_000), at(20), now(20));
        assert_eq!(clock.earliest(now(20)), Some(WallTime::from_unix_millis(4_999_999)));
        assert_eq!(clock.last_ahead_of_boot_millis(led(20, 0)), None);
    }

    #[test]
    fn a_clock_of_ours_that_jumped_makes_it_unknown_until_dps_is_heard_of() {
        let mut clock = DpsClock::default();
        clock.observe(WallTime::from_unix_millis(1_000_000), at(0), now(0));
        for lead in [500_000 + 7_200_000, 500_000 - 7_200_000] {
            assert!(clock.is_known(now(10)) && !clock.is_known(led(10, lead)) && clock.is_due(led(10, lead)));
        }
        clock.observe(WallTime::from_unix_millis(1_000_000), at(20), led(20, 0));
        assert!(clock.is_known(led(30, 0)) && !clock.is_known(now(30)));
    }
}
