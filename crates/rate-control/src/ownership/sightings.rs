//! When something happened by another machine's clock, told by one's own: late, never early.

use std::collections::{BTreeMap, VecDeque};

use crate::failpoint::Failpoint;
use crate::ledger::{DRIFT_GUARD, LeftSend, Settlement, SlotRecord, WINDOW};
use crate::time::{BootId, Mono};

/// The most sightings of one boot that are kept. One every half second for a window and its guard are 121.
const KEPT_MAX: usize = 256;

/// What an owner's boot-time clock read, and what one's own read when that was seen. An owner writes its clock with each renewal.
///
/// A moment x of the other clock is mapped by the **first** sighting that was read after x: it happened before that was seen by at least what
/// the other clock has counted since. By an earlier one it could be made older than it is, if the other clock stood still in between (a
/// machine that is stopped, a virtual machine that is frozen or moved). A sighting of the very moment x is an earlier one, for the same reason:
/// a clock that stands still reads x again later.
#[derive(Debug, Default, Clone)]
pub struct Sightings {
    of: BTreeMap<BootId, VecDeque<Sighting>>,
}

#[derive(Debug, Clone, Copy)]
struct Sighting {
    theirs: Mono,
    ours: Mono,
}

impl Sightings {
    /// The clock of `boot` had read `theirs` before a read of the lease that was answered at `ours`.
    pub fn saw(&mut self, boot: &BootId, theirs: Mono, ours: Mono) {
        self.forget(ours);
        let seen = self.of.entry(boot.clone()).or_default();
        // The same reading again says less than the first time.
        if seen.back().is_none_or(|last| last.theirs < theirs) {
            seen.push_back(Sighting { theirs, ours });
        }
        if seen.len() > KEPT_MAX {
            seen.pop_front();
        }
    }

    /// What is older than a window maps to moments that count no more. Without it, they map later than with it.
    fn forget(&mut self, now: Mono) {
        self.of.retain(|_, seen| {
            while seen.front().is_some_and(|sighting| now.since(sighting.ours) > WINDOW + DRIFT_GUARD) {
                seen.pop_front();
            }
            !seen.is_empty()
        });
    }

    /// What an owner that may live on left of a send: its moments by this machine's clock, and without an end it is an orphan.
    #[must_use]
    pub fn left(&self, send: &SlotRecord, own_boot: &BootId, now: Mono) -> LeftSend {
        let ours = |moment: Mono| self.ours(&send.boot, moment, own_boot, now);
        let end = send.settled().map(|(settlement, ended)| (settlement, ours(ended)));
        let broken = [
            (Failpoint::OrphansForgotten, Settlement::NeverLeft),
            (Failpoint::OrphansAbandoned, Settlement::Abandoned),
        ];
        let broken =
            broken.into_iter().find(|(failpoint, _)| failpoint.is_on()).map(|(_, settlement)| (settlement, now));
        LeftSend { sent: Some(ours(send.sent)), end: end.or(broken) }
    }

    /// When `theirs` of `boot` was by this machine's clock, or later, but not after `now`.
    #[must_use]
    pub fn ours(&self, boot: &BootId, theirs: Mono, own_boot: &BootId, now: Mono) -> Mono {
        if boot == own_boot {
            return theirs.min(now);
        }
        let seen = self.of.get(boot).and_then(|seen| {
            let after = seen.partition_point(|sighting| sighting.theirs <= theirs);
            seen.get(after)
        });
        seen.map_or(now, |sighting| sighting.ours.before(sighting.theirs.since(theirs)).min(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    fn boot(name: &str) -> BootId {
        BootId(name.to_owned())
    }

    #[test]
    fn a_moment_is_mapped_by_the_first_sighting_behind_it() {
        let mut sightings = Sightings::default();
        let (a, own) = (boot("a"), boot("own"));
        sightings.saw(&a, at(1_000), at(50_000));
        // It stood still for 20 s.
        sightings.saw(&a, at(2_000), at(71_000));
        assert_eq!(
            sightings.ours(&a, at(1_500), &own, at(80_000)),
            at(70_500),
            "not 50,500, which the earlier one says"
        );
        assert_eq!(sightings.ours(&a, at(900), &own, at(80_000)), at(49_900));
        assert_eq!(
            sightings.ours(&a, at(1_000), &own, at(80_000)),
            at(70_000),
            "it stood still at 1,000, maybe before that moment"
        );
        assert_eq!(sightings.ours(&a, at(2_000), &own, at(80_000)), at(80_000), "nobody has seen it after that");
        assert_eq!(sightings.ours(&boot("b"), at(1), &own, at(80_000)), at(80_000));
        assert_eq!(sightings.ours(&own, at(79_000), &own, at(80_000)), at(79_000));
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_forgotten_maps_later() {
        let mut sightings = Sightings::default();
        let a = boot("a");
        for second in 0..1_000 {
            sightings.saw(&a, at(second * 1_000), at(second * 1_000 + 7));
        }
        assert!(sightings.of[&a].len() <= 62, "{}", sightings.of[&a].len());
        let mapped = sightings.ours(&a, at(10_000), &boot("own"), at(1_000_000));
        assert!(mapped >= at(10_000), "{mapped:?}");
        sightings.saw(&boot("c"), at(1), at(2_000_000));
        assert_eq!(sightings.of.len(), 1);
    }
}
