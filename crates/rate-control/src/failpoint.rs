//! Failpoints: named spots that the simulation breaks on purpose, to show that its judge notices.
//!
//! Most of what it breaks it breaks from outside, around the service. These few are too deep inside for that.
//!
//! Invariants:
//! - Debug builds only. In a release build [`Failpoint::is_on`] is `false` at compile time, so nothing of it is left.
//! - No configuration reaches it, and what one thread switches on is on for that thread alone.

use std::cell::Cell;

/// A spot that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failpoint {
    /// The last place of a lane goes first.
    LastInFirstOut,
    /// While one trial call is out, others leave as well.
    TrialsTogether,
    /// A device changes its instance although a registration of it has left.
    RebookedAfterSent,
    /// A device that was booked elsewhere is never brought home.
    NeverHome,
    /// A registration leaves although an earlier one of the device may still be on its way.
    FlightForgotten,
    /// Commits of an owner count although another one has taken its lease.
    NoFence,
    /// A send of an earlier owner whose end nobody knows does not count.
    OrphansForgotten,
    /// It counts for as long as one of a process that is gone.
    OrphansAbandoned,
}

thread_local! {
    static ON: Cell<Option<Failpoint>> = const { Cell::new(None) };
}

impl Failpoint {
    /// Whether this build can break anything.
    pub const EXIST: bool = cfg!(debug_assertions);

    /// Whether it is broken.
    #[inline]
    #[must_use]
    pub fn is_on(self) -> bool {
        Self::EXIST && ON.get() == Some(self)
    }

    /// Breaks it on this thread for as long as the guard lives, instead of whatever was broken before.
    #[must_use = "it is whole again when this is dropped"]
    pub fn switch_on(self) -> Broken {
        ON.set(Some(self));
        Broken(())
    }
}

/// Something is broken on purpose. See [`Failpoint::switch_on`].
#[derive(Debug)]
pub struct Broken(());

impl Drop for Broken {
    fn drop(&mut self) {
        ON.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "another thread is what it is about")]
    fn a_failpoint_is_on_for_its_thread_until_the_guard_is_dropped() {
        let point = Failpoint::LastInFirstOut;
        assert!(!point.is_on());
        let broken = point.switch_on();
        assert_eq!(point.is_on(), Failpoint::EXIST);
        assert!(!Failpoint::NeverHome.is_on());
        assert!(!std::thread::spawn(move || point.is_on()).join().unwrap());
        drop(broken);
        assert!(!point.is_on());
    }
}
