//! The promises that a run is judged by.

use std::fmt;

/// A promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// No 60 seconds, sliding or fixed, hold more registrations than the quota that was in force when the last of them was sent.
    Quota,
    /// After a quota was lowered, nothing is sent while the window ending at that send holds the new quota.
    LoweredQuota,
    /// Never two register calls of one device on the wire at once from one process.
    OneAtOnce,
    /// No device is told two hubs without a recorded cause, nor a hub that DPS has not given it.
    OneHub,
    /// A place that was acknowledged is on disk after every crash, and is the same place.
    PlaceKept,
    /// An assignment that was told is on disk after every crash.
    AssignmentKept,
    /// Nothing leaves for an instance before the `Retry-After` of its 429 is over.
    RetryAfter,
    /// A device whose registration has reached an instance goes to no other, unless an operator moves it.
    AtHome,
    /// After healing everybody is served within the bound.
    Starved,
    /// Lines, open requests, timelines, slots and records keep within their bounds.
    Bounded,
    /// Who is unknown costs no write and no call.
    StrangersCostNothing,
    /// A device that was told its hub costs no further registration.
    KnownCostNothing,
    /// A device that was told its hub is told it again whenever it asks, whatever is out of order behind us.
    KnownIsAnswered,
    /// Without mishaps DPS never throttles.
    CalmIsCalm,
    /// No task of the run panicked.
    NoPanic,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quota => "never over quota",
            Self::LoweredQuota => "nothing is sent over a lowered quota",
            Self::OneAtOnce => "one register call of a device at once",
            Self::OneHub => "no two hubs without cause",
            Self::PlaceKept => "an acknowledged place is kept",
            Self::AtHome => "nobody is silently re-homed",
            Self::AssignmentKept => "an acknowledged assignment is kept",
            Self::RetryAfter => "DPS's Retry-After is obeyed",
            Self::Starved => "nobody starves",
            Self::Bounded => "everything is bounded",
            Self::StrangersCostNothing => "unknown devices cost nothing",
            Self::KnownCostNothing => "a known device costs DPS nothing",
            Self::KnownIsAnswered => "a known device is always answered",
            Self::CalmIsCalm => "without mishaps DPS never throttles",
            Self::NoPanic => "no task panics",
        })
    }
}
