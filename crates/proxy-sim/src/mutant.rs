//! Deliberately broken parts, to show that the judge notices.
//!
//! Almost all of them are made of wrappers around a sound gateway: its settings, its disk, its network or what devices hear is not what it
//! should be. What is too deep inside for that is a [`Failpoint`], which debug builds alone have.

use std::time::Duration;

use clap::ValueEnum;
use proxy_core::settings::Settings;
use rate_control::failpoint::Failpoint;

use crate::Kind;
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
    /// Registrations leave at half the rate.
    HalfRate,
    /// All of a minute's registrations may leave together.
    NoPace,
    /// The last place of a lane goes first.
    LastInFirstOut,
    /// One tenant has a thousand times the share of the others.
    UnfairShares,
    /// An operator's wish to expedite a device changes nothing.
    NoUrgentShare,
    /// Expedited devices take all departures while any of them waits.
    UrgentTakesAll,
    /// Devices are told half of their wait.
    EarlyAppointments,
    /// Devices are told twice their wait.
    LateAppointments,
    /// The circuit never opens.
    NoBreaker,
    /// While one trial call is out, others leave as well.
    TrialsTogether,
    /// Devices of an instance that fails stay there.
    NoRebooking,
    /// Devices that were booked elsewhere stay there when their instance works again.
    NeverHome,
    /// A device is booked elsewhere although a registration of it has left.
    RebookedAfterSent,
    /// That a registration has left is missing from the disk after each crash.
    ForgetSent,
    /// The quota's slots are missing from the disk after each crash.
    ForgetSlots,
    /// How long DPS asked to wait is missing from the disk after each crash.
    ForgetPause,
    /// A call without an answer is taken for one that never left.
    LostIsNotSent,
    /// Nothing is looked at right before a call leaves.
    NoLastLook,
    /// Any number of calls may be out.
    NoConnectionLimit,
    /// That a registration may still be on its way is forgotten when its device is moved, or its process dies.
    ForgetFlight,
    /// The disk writes whatever it is told, although what it holds is newer than what the writer has read.
    NoCompareAndSet,
}

/// A duration that no run lasts.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl Mutant {
    /// All of them.
    #[must_use]
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// The invariants of which the judge must name one.
    #[must_use]
    pub fn breaks(self) -> &'static [Invariant] {
        match self {
            Self::OffByOne | Self::ForgetSlots => &[Invariant::Quota],
            Self::ForgetPlace => &[Invariant::PlaceKept],
            Self::SkipFlush => &[Invariant::PlaceKept, Invariant::AssignmentKept, Invariant::SentKept],
            Self::IgnoreRetryAfter | Self::ForgetPause => &[Invariant::RetryAfter],
            Self::SendTwice | Self::ForgetFlight => &[Invariant::OneAtOnce],
            Self::WrongHub => &[Invariant::OneHub],
            Self::HalfRate => &[Invariant::QuotaUsed],
            Self::NoPace => &[Invariant::Paced],
            Self::LastInFirstOut => &[Invariant::LaneOrder],
            Self::UnfairShares => &[Invariant::FairShares],
            Self::NoUrgentShare | Self::UrgentTakesAll => &[Invariant::UrgentShare],
            Self::EarlyAppointments => &[Invariant::ToldInTime, Invariant::TwoRequests],
            Self::LateAppointments => &[Invariant::ToldInTime],
            Self::NoBreaker | Self::TrialsTogether => &[Invariant::CircuitOpen],
            Self::NoRebooking | Self::NeverHome => &[Invariant::SoonerElsewhere],
            Self::RebookedAfterSent => &[Invariant::AtHome],
            Self::ForgetSent => &[Invariant::SentKept],
            Self::LostIsNotSent => &[Invariant::Quota, Invariant::LoweredQuota, Invariant::AtHome],
            Self::NoLastLook => &[Invariant::RetryAfter, Invariant::LoweredQuota, Invariant::CircuitOpen],
            Self::NoConnectionLimit => &[Invariant::Bounded],
            Self::NoCompareAndSet => &[
                Invariant::OneHub,
                Invariant::PlaceKept,
                Invariant::AssignmentKept,
                Invariant::SentKept,
                Invariant::AtHome,
                Invariant::KnownIsAnswered,
                Invariant::Starved,
            ],
        }
    }

    /// The runs that show it.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::HalfRate
            | Self::NoPace
            | Self::LastInFirstOut
            | Self::UnfairShares
            | Self::NoUrgentShare
            | Self::UrgentTakesAll
            | Self::EarlyAppointments
            | Self::LateAppointments
            | Self::NoBreaker
            | Self::NoRebooking
            | Self::NeverHome
            | Self::RebookedAfterSent
            | Self::ForgetPause
            | Self::NoLastLook => Kind::Orderly,
            Self::OffByOne
            | Self::ForgetPlace
            | Self::SkipFlush
            | Self::IgnoreRetryAfter
            | Self::SendTwice
            | Self::WrongHub
            | Self::TrialsTogether
            | Self::ForgetSent
            | Self::ForgetSlots
            | Self::LostIsNotSent
            | Self::NoConnectionLimit
            | Self::ForgetFlight
            | Self::NoCompareAndSet => Kind::Mishaps,
        }
    }

    /// Whether it shows only where reads of the store take time.
    #[must_use]
    pub const fn needs_slow_reads(self) -> bool {
        matches!(self, Self::NoLastLook | Self::NoCompareAndSet)
    }

    /// In how many seeds, for one of the others, it shows: it takes a device that is looked up in vain after a crash, and whose first call
    /// arrives all the same. The tests leave out what is rarer than one; the core's own tests hold it.
    #[must_use]
    pub const fn rarity(self) -> u64 {
        if matches!(self, Self::ForgetFlight) { 5 } else { 1 }
    }

    /// The spot in the core, where it is broken there.
    #[must_use]
    pub const fn failpoint(self) -> Option<Failpoint> {
        match self {
            Self::LastInFirstOut => Some(Failpoint::LastInFirstOut),
            Self::TrialsTogether => Some(Failpoint::TrialsTogether),
            Self::NeverHome => Some(Failpoint::NeverHome),
            Self::RebookedAfterSent => Some(Failpoint::RebookedAfterSent),
            Self::ForgetFlight => Some(Failpoint::FlightForgotten),
            _ => None,
        }
    }

    /// Whether this build has it.
    #[must_use]
    pub fn exists(self) -> bool {
        Failpoint::EXIST || self.failpoint().is_none()
    }

    /// Spoils the settings that the gateway is given, where that is what is broken.
    pub(crate) fn spoil(self, settings: &mut Settings) {
        let instances = settings.instances.values_mut();
        match self {
            Self::OffByOne => instances.for_each(|instance| instance.quota_per_minute += 1),
            Self::HalfRate => instances.for_each(|instance| {
                instance.quota_per_minute = (instance.quota_per_minute / 2).max(1);
                instance.burst = instance.burst.min(instance.quota_per_minute);
                instance.adaptive_limit_min_per_minute =
                    instance.adaptive_limit_min_per_minute.min(instance.quota_per_minute);
            }),
            Self::NoPace => instances.for_each(|instance| instance.burst = instance.quota_per_minute),
            Self::UnfairShares => {
                for (number, tenant) in settings.tenants.values_mut().enumerate() {
                    tenant.weight = if number == 0 { 1000 } else { 1 };
                }
            }
            Self::UrgentTakesAll => settings.line.urgent_share_percent = 99,
            Self::NoBreaker => settings.registration.breaker_threshold = u32::MAX,
            Self::NoRebooking => settings.line.rebook_after = NEVER,
            Self::NoConnectionLimit => settings.registration.connections_max = 10_000,
            _ => {}
        }
    }
}

impl std::fmt::Display for Mutant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("?", clap::builder::PossibleValue::get_name))
    }
}
