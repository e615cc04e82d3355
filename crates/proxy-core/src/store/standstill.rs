//! Notices that writing stands still: commits wait, and none of them gets on.
//!
//! Invariants:
//! - What counts as getting on is an answer to a commit, or a step that the store reports ([`Store::steps`](super::Store::steps)). So a
//!   disk that is slow is no standstill, and neither is a store to which nobody writes.
//! - Time in which nobody looked counts for two looks at most: a machine that slept, or a process that was stopped, did not stand still.
//! - Once found, it stays: commits that wait then have an outcome that nobody knows, and only another process can tell.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use rate_control::time::Mono;

/// A longer time between two looks counts as this.
const LOOK_COUNTS_MAX: Duration = Duration::from_secs(2);

/// Counts who waits for the store, and for how long in vain.
#[derive(Default)]
pub(super) struct Standstill {
    waiting: AtomicUsize,
    answered: AtomicU64,
    seen: Mutex<Seen>,
    why: OnceLock<String>,
    found: CancellationToken,
}

#[derive(Default)]
struct Seen {
    at: Mono,
    answered: u64,
    steps: u64,
    in_vain: Duration,
}

/// Somebody waits for the store, until this is dropped.
pub(super) struct Waiting<'s>(&'s Standstill);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Standstill {
    /// Somebody waits from now on.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// The store has answered somebody.
    pub(super) fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// Looks how far the store has come. Why it is taken to hang, once nothing has got on for `longest`.
    pub(super) fn look(&self, steps: u64, now: Mono, longest: Duration) -> Option<&str> {
        let (waiting, answered) = (self.waiting.load(Ordering::Relaxed), self.answered.load(Ordering::Relaxed));
        let mut seen = self.seen.lock();
        let since = now.since(seen.at).min(LOOK_COUNTS_MAX);
        let got_on = waiting == 0 || (answered, steps) != (seen.answered, seen.steps);
        let in_vain = if got_on { Duration::ZERO } else { seen.in_vain + since };
        *seen = Seen { at: now, answered, steps, in_vain };
        if in_vain >= longest && self.why.get().is_none() {
            let seconds = in_vain.as_secs();
            let _first = self.why.set(format!(
                "no write has made progress for {seconds} s ({waiting} wait): the disk does not answer, or the store's engine waits for \
                 itself. Everything that was acknowledged is on disk; start the process again, and check the disk if it happens again"
            ));
            self.found.cancel();
        }
        self.why()
    }

    /// For how long nothing has got on, as of the last look.
    pub(super) fn in_vain(&self) -> Duration {
        self.seen.lock().in_vain
    }

    /// Why the store is taken to hang, if it is.
    pub(super) fn why(&self) -> Option<&str> {
        self.why.get().map(String::as_str)
    }

    /// Waits until the store is taken to hang, and says why. Cancel-safe.
    pub(super) async fn found(&self) -> &str {
        self.found.cancelled().await;
        self.why().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(5);

    fn at(seconds: u64) -> Mono {
        Mono::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn only_time_in_which_somebody_waits_and_nothing_gets_on_counts() {
        let standstill = Standstill::default();
        for second in 0..20 {
            assert_eq!(standstill.look(0, at(second), LONGEST), None, "nobody waits");
        }
        let waiting = standstill.wait();
        for second in 20..40 {
            assert_eq!(standstill.look(second, at(second), LONGEST), None, "the store gets on");
        }
        for second in 40..60 {
            standstill.answered();
            assert_eq!(standstill.look(39, at(second), LONGEST), None, "somebody is answered");
        }
        for second in 60..64 {
            assert_eq!(standstill.look(39, at(second), LONGEST), None, "not for long");
        }
        assert_eq!(standstill.in_vain(), Duration::from_secs(4));
        drop(waiting);
        assert_eq!(standstill.look(39, at(64), LONGEST), None, "nobody waits any more");
        assert_eq!(standstill.in_vain(), Duration::ZERO);
    }

    #[test]
    fn a_standstill_is_found_once_and_stays_and_a_pause_of_the_machine_is_none() {
        let standstill = Standstill::default();
        let _waiting = standstill.wait();
        standstill.look(1, at(0), LONGEST);
        assert_eq!(standstill.look(1, at(10_000), LONGEST), None, "the machine slept");
        assert_eq!(standstill.look(1, at(10_001), LONGEST), None);
        assert_eq!(standstill.look(1, at(10_002), LONGEST), None);
        let why = standstill.look(1, at(10_003), LONGEST).unwrap().to_owned();
        assert!(why.contains("for 5 s (1 wait)"), "{why}");
        assert_eq!(standstill.look(2, at(10_004), LONGEST), Some(why.as_str()), "too late");
    }
}
