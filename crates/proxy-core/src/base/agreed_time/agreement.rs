//! What DPS's clocks say together, and when that is in doubt. Pure.
//!
//! Invariants:
//! - Of several instances, one alone overrides neither what was agreed nor our own wall clock.
//! - What was agreed is measured from our boot-time clock, and holds as long as that and the wall clock run alike. When one of them jumps,
//!   it is in doubt: the wall clock may have been set wrong, or it was set right after the machine stood still. The instances are asked then,
//!   and if none of them can say within [`DOUBT_MAX`], the wall clock is believed.

use std::time::Duration;

use rate_control::time::{Mono, Now, WallLead};

/// Our wall clock is off if it differs from DPS's by more than this.
pub(crate) const OFF_MIN_MILLIS: i64 = 30_000;

/// Two readings of clocks that agree differ by less than this: answers are dated to the second.
const ALIKE_MILLIS: u64 = 2_000;

/// For so long nobody is judged by a time that is in doubt.
pub(crate) const DOUBT_MAX: Duration = Duration::from_secs(2);

/// What is agreed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// DPS's time less our wall clock, in milliseconds; `None` if nothing is agreed.
    Settled(Option<i64>),
    /// A clock of ours jumped, and DPS has to be asked: now, if it is `news`. Over after `left` at the latest.
    Doubtful { left: Duration, news: bool },
    /// Nobody could say which clock jumped: nothing is agreed from now on. Told once.
    GivenUp,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    /// DPS's time less our boot-time clock, in milliseconds.
    ahead_of_boot: i64,
    /// What our own clocks read against each other when that was last confirmed.
    lead: WallLead,
    doubted_since: Option<Mono>,
}

impl Held {
    fn offset_millis(self, now: Now) -> i64 {
        self.ahead_of_boot.saturating_sub(WallLead::of(now).millis())
    }

    /// A clock jumped, and that matters.
    fn is_doubtful(self, now: Now) -> bool {
        is_off(self.offset_millis(now)) && self.lead.has_jumped(now)
    }
}

fn is_off(offset_millis: i64) -> bool {
    offset_millis.abs() > OFF_MIN_MILLIS
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    held: Option<Held>,
}

impl Agreement {
    /// How it stands.
    pub(crate) fn look(&mut self, now: Now) -> Standing {
        let Some(held) = &mut self.held else { return Standing::Settled(None) };
        if !held.is_doubtful(now) {
            return Standing::Settled(Some(held.offset_millis(now)));
        }
        let news = held.doubted_since.is_none();
        let since = *held.doubted_since.get_or_insert(now.mono);
        match DOUBT_MAX.checked_sub(now.mono.since(since)).filter(|left| !left.is_zero()) {
            Some(left) => Standing::Doubtful { left, news },
            None => {
                self.held = None;
                Standing::GivenUp
            }
        }
    }

    /// Whether a reading of one instance, its time less our boot-time clock in milliseconds, may change anything.
    pub(crate) fn is_news(&self, ahead_of_boot: i64, now: Now) -> bool {
        self.held
            .is_none_or(|held| held.ahead_of_boot.abs_diff(ahead_of_boot) > ALIKE_MILLIS || held.lead.has_jumped(now))
    }

    /// Takes the readings of all instances that were heard of lately, of `configured` ones.
    pub(crate) fn take(&mut self, mut readings: Vec<i64>, configured: usize, now: Now) {
        readings.sort_unstable();
        let Some(&middle) = readings.get(readings.len() / 2) else { return };
        let near = |other: i64| !is_off(middle.saturating_sub(other));
        let alike = readings.iter().filter(|&&reading| near(reading)).count();
        if alike * 2 <= readings.len() {
            return;
        }
        let lead = WallLead::of(now);
        let confirms = self.held.is_some_and(|held| near(held.ahead_of_boot));
        if alike == 1 && configured > 1 {
            // It takes somebody else to say the same: what was agreed before, or, where nothing is, our own clock.
            let free = self.held.is_none_or(|held| held.is_doubtful(now));
            if let Some(held) = self.held.as_mut().filter(|_| confirms) {
                (held.lead, held.doubted_since) = (lead, None);
                return;
            }
            if !(free && near(lead.millis())) {
                return;
            }
        }
        self.held = Some(Held { ahead_of_boot: middle, lead, doubted_since: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rate_control::time::{BootId, BootTag, Process, WallTime};

    const TWO_HOURS: i64 = 7_200_000;

    /// The boot-time clock reads `boot_millis`, and the wall clock is `lead` milliseconds ahead of it.
    fn at(boot_millis: u64, lead: i64) -> Now {
        let process = Process { boot: BootTag::of(&BootId("a".to_owned())), began: Mono::default() };
        let wall = WallTime::from_unix_millis(i64::try_from(boot_millis).unwrap() + lead);
        Now { mono: Mono::from_nanos(boot_millis * 1_000_000), wall, process }
    }

    fn agreed(readings: &[i64], configured: usize) -> Standing {
        let mut agreement = Agreement::default();
        agreement.take(readings.to_vec(), configured, at(0, 0));
        agreement.look(at(0, 0))
    }

    #[test]
    fn most_clocks_have_to_agree_and_at_least_two() {
        for (readings, configured, expected) in [
            (&[][..], 1, None),
            (&[TWO_HOURS], 1, Some(TWO_HOURS)),
            (&[TWO_HOURS], 2, None),
            (&[500], 2, Some(500)),
            (&[TWO_HOURS, TWO_HOURS + 1_000], 7, Some(TWO_HOURS + 1_000)),
            (&[TWO_HOURS, TWO_HOURS + 1_000, 0], 3, Some(TWO_HOURS)),
            (&[TWO_HOURS, 0], 2, None),
            (&[500, 0, TWO_HOURS, 1_000], 4, Some(1_000)),
        ] {
            assert_eq!(agreed(readings, configured), Standing::Settled(expected), "{readings:?} of {configured}");
        }
    }

    #[test]
    fn one_of_several_changes_nothing_that_was_agreed() {
        let mut agreement = Agreement::default();
        agreement.take(vec![TWO_HOURS, TWO_HOURS], 3, at(0, 0));
        for odd in [0, 9_999_999_999] {
            agreement.take(vec![odd], 3, at(1_000, 0));
            assert_eq!(agreement.look(at(1_000, 0)), Standing::Settled(Some(TWO_HOURS)), "{odd}");
        }
        agreement.take(vec![0, 0], 3, at(2_000, 0));
        assert_eq!(agreement.look(at(2_000, 0)), Standing::Settled(Some(0)));
    }

    #[test]
    fn a_jump_is_doubted_until_an_instance_tells_which_clock_it_was() {
        let jumped = at(1_000, TWO_HOURS);
        for (told, offset) in [(TWO_HOURS, 0), (0, -TWO_HOURS)] {
            let mut agreement = Agreement::default();
            agreement.take(vec![0, 0], 2, at(0, 0));
            assert_eq!(agreement.look(jumped), Standing::Doubtful { left: DOUBT_MAX, news: true });
            assert_eq!(agreement.look(jumped), Standing::Doubtful { left: DOUBT_MAX, news: false });
            assert!(agreement.is_news(told, jumped));
            agreement.take(vec![told], 2, jumped);
            assert_eq!(agreement.look(at(9_000, TWO_HOURS)), Standing::Settled(Some(offset)));
        }
    }

    #[test]
    fn a_doubt_that_nobody_ends_is_over_in_time() {
        let mut agreement = Agreement::default();
        agreement.take(vec![0], 1, at(0, 0));
        assert_eq!(agreement.look(at(1_000, 20_000)), Standing::Settled(Some(-20_000)), "too little to matter");
        assert!(matches!(agreement.look(at(1_000, TWO_HOURS)), Standing::Doubtful { .. }));
        agreement.take(vec![9_999_999_999, 0], 2, at(1_500, TWO_HOURS));
        let left = Duration::from_millis(1_000);
        assert_eq!(agreement.look(at(2_000, TWO_HOURS)), Standing::Doubtful { left, news: false });
        assert_eq!(agreement.look(at(3_000, TWO_HOURS)), Standing::GivenUp);
        assert_eq!(agreement.look(at(3_000, TWO_HOURS)), Standing::Settled(None));
    }
}
