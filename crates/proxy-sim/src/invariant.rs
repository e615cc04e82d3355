//! The promises that a run is judged by.

use std::fmt;

/// A promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// No 60 seconds, sliding or fixed, hold more registrations than the quota that was in force when the last of them was sent.
    Quota,
    /// After a quota was lowered, nothing is sent while the window ending at that send holds the new quota.
    LoweredQuota,
    /// Never two register calls of one device on the wire at once: not from one process, nor one that leaves while that of a process which
    /// has ended is yet to arrive.
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
    /// While devices wait and DPS answers within 300 ms, at least 99 % of the quota is used.
    QuotaUsed,
    /// Registrations leave at an even pace, with no more than a burst ahead of it.
    Paced,
    /// Within one lane devices go in the order in which they were given their places, also through crashes.
    LaneOrder,
    /// Tenants that have devices waiting in one line share it by weight.
    FairShares,
    /// Expedited devices go before others, and take no more than their share while others wait.
    UrgentShare,
    /// A device is told when its assignment will be there: not earlier, and little later.
    ToldInTime,
    /// Two requests per device drain a storm: ask once, come back once.
    TwoRequests,
    /// Of calls that fail in a row no more leave than the circuit lets through: one trial call at a time, with growing waits.
    CircuitOpen,
    /// Where an instance fails, its devices are served by others that work, and by itself when it works again.
    SoonerElsewhere,
    /// A registration leaves after that is on disk.
    SentKept,
    /// A device is registered again only after an unknown outcome.
    NoneInVain,
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
            Self::QuotaUsed => "the quota is used while devices wait",
            Self::Paced => "registrations leave at an even pace",
            Self::LaneOrder => "order is kept within a lane",
            Self::FairShares => "tenants share a line by weight",
            Self::UrgentShare => "expedited devices have their share",
            Self::ToldInTime => "devices are told when their assignment is there",
            Self::TwoRequests => "two requests per device drain a storm",
            Self::CircuitOpen => "an instance that fails is tried with one call at a time",
            Self::SoonerElsewhere => {
                "devices of an instance that fails are served elsewhere, and at home again when it works"
            }
            Self::SentKept => "a call follows its sent mark",
            Self::NoneInVain => "nobody is registered again without need",
            Self::NoPanic => "no task panics",
        })
    }
}
