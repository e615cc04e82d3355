//! When somebody else's lease may be taken: expiry is observed, never read.

use std::time::Duration;

use super::{Beat, Epoch};
use crate::time::Mono;

/// Watches a lease that another replica holds. See [`LeaseWatch::may_take`].
///
/// Nothing is compared with a time that somebody else wrote. After an outage of the store its owners renew before anybody may take, because a
/// read that failed begins the wait anew; and a database whose clock is set means nothing.
#[derive(Debug, Clone)]
pub struct LeaseWatch {
    patience: Duration,
    seen: Option<Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    epoch: Epoch,
    beat: Beat,
    /// The end of the first read that showed them.
    first_ended: Mono,
    /// The start of the last one.
    last_began: Mono,
}

impl LeaseWatch {
    /// Takes a lease whose beat has not changed for `patience`: the time that a lease lives, and a guard.
    #[must_use]
    pub const fn new(patience: Duration) -> Self {
        Self { patience, seen: None }
    }

    /// A read that was sent at `began` and answered at `ended`, by this machine's boot-time clock, showed `epoch` and `beat`.
    pub fn read(&mut self, epoch: Epoch, beat: Beat, began: Mono, ended: Mono) {
        match &mut self.seen {
            Some(seen) if (seen.epoch, seen.beat) == (epoch, beat) => seen.last_began = began,
            _ => self.seen = Some(Seen { epoch, beat, first_ended: ended, last_began: began }),
        }
    }

    /// A read failed: nothing is known of the time since the last one.
    pub fn read_failed(&mut self) {
        self.seen = None;
    }

    /// The epoch and the beat to take the lease from, if they have stood still for long enough. The taking must be conditional on both.
    #[must_use]
    pub fn may_take(&self) -> Option<(Epoch, Beat)> {
        let seen = self.seen?;
        (seen.last_began.since(seen.first_ended) >= self.patience).then_some((seen.epoch, seen.beat))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(5_500);

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    fn read(watch: &mut LeaseWatch, beat: u64, began: u64, ended: u64) -> bool {
        watch.read(Epoch(7), Beat(beat), at(began), at(ended));
        watch.may_take().is_some()
    }

    #[test]
    fn a_lease_is_taken_when_its_beat_stood_still_between_two_reads() {
        let mut watch = LeaseWatch::new(PATIENCE);
        assert!(!read(&mut watch, 1, 0, 100));
        assert!(!read(&mut watch, 1, 5_599, 9_000), "the last read may have been answered as of its start");
        assert!(read(&mut watch, 1, 5_600, 5_610));
        assert_eq!(watch.may_take(), Some((Epoch(7), Beat(1))));
        assert!(!read(&mut watch, 2, 6_000, 6_010), "it was renewed after all");
    }

    #[test]
    fn a_read_that_fails_begins_the_wait_anew() {
        let mut watch = LeaseWatch::new(PATIENCE);
        read(&mut watch, 1, 0, 100);
        watch.read_failed();
        assert!(!read(&mut watch, 1, 60_000, 60_100), "the owner could not renew either");
        assert!(read(&mut watch, 1, 65_600, 65_610));
    }

    #[test]
    fn the_same_beat_of_another_epoch_is_another_lease() {
        let mut watch = LeaseWatch::new(PATIENCE);
        read(&mut watch, 1, 0, 100);
        watch.read(Epoch(8), Beat(1), at(6_000), at(6_010));
        assert_eq!(watch.may_take(), None);
    }
}
