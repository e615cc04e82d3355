//! Deliberately broken parts, each made of wrappers around a sound gateway, to show that the judge notices.

use clap::ValueEnum;

use crate::invariant::Invariant;

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mutant {
    /// The gateway believes that each quota is one larger than it is.
    OffByOne,
    /// One acknowledged place is missing from the disk after each crash.
    ForgetPlace,
    /// The disk acknowledges before it is durable: a crash takes back what was told.
    SkipFlush,
    /// `Retry-After` never reaches the gateway.
    IgnoreRetryAfter,
    /// Each register call leaves twice.
    SendTwice,
    /// Now and then a device is told the hub of another one.
    WrongHub,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::OffByOne, Self::ForgetPlace, Self::SkipFlush, Self::IgnoreRetryAfter, Self::SendTwice, Self::WrongHub];

    /// The invariants of which the judge must name one.
    #[must_use]
    pub fn breaks(self) -> &'static [Invariant] {
        match self {
            Self::OffByOne => &[Invariant::Quota],
            Self::ForgetPlace => &[Invariant::PlaceKept],
            Self::SkipFlush => &[Invariant::PlaceKept, Invariant::AssignmentKept],
            Self::IgnoreRetryAfter => &[Invariant::RetryAfter],
            Self::SendTwice => &[Invariant::OneAtOnce],
            Self::WrongHub => &[Invariant::OneHub],
        }
    }
}

impl std::fmt::Display for Mutant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("?", clap::builder::PossibleValue::get_name))
    }
}
