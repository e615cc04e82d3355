//! Why a device waits, in plain words: the exact limit that holds it, and its place behind it.

use std::fmt;

use crate::lanes::Class;
use crate::line::{Holding, LineStatus};
use crate::record::{Pending, Stage};
use crate::time::{Mono, Now};

/// What is known of the device and of its line at one moment; as text, why it waits.
pub(super) struct Why<'a> {
    pub(super) pending: &'a Pending,
    pub(super) status: &'a LineStatus,
    /// Devices that go before it, plus one.
    pub(super) position: Option<usize>,
    /// It goes not before this moment, whoever is before it.
    pub(super) not_before: Option<Mono>,
    /// Polls of its registration that failed, in a row.
    pub(super) failed_polls: u32,
    pub(super) urgent_share_percent: u32,
    pub(super) now: Now,
}

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instance = &self.pending.instance;
        match &self.pending.stage {
            Stage::Assigning { operation_id, .. } => {
                write!(f, "{instance} works on its registration (operation {operation_id}); we poll")?;
                if self.failed_polls > 0 {
                    write!(f, ", and the last polls failed: {} in a row", self.failed_polls)?;
                }
                self.write_failing(f)
            }
            Stage::Sent { .. } => {
                let unclear = "has no clear outcome yet; we wait for it or look it up";
                write!(f, "its registration was sent to {instance} and {unclear}")?;
                self.write_failing(f)
            }
            Stage::Waiting => match self.not_before.filter(|not_before| *not_before > self.now.mono) {
                Some(not_before) => write!(
                    f,
                    "it goes not before {}: a wait after a failure, or registration.suspect_cooldown after its last registration",
                    self.now.wall_at(not_before)
                ),
                None => self.write_place(f),
            },
        }
    }
}

impl Why<'_> {
    fn write_failing(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failures = self.status.failures;
        if failures == 0 { Ok(()) } else { write!(f, "; calls to the instance fail ({failures} in a row)") }
    }

    fn write_place(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(position) = self.position {
            write!(f, "place {position} of {} in the line of {}; ", self.status.waiting, self.pending.instance)?;
        }
        self.write_limit(f)?;
        self.write_shares(f)
    }

    /// What holds the front of its line.
    fn write_limit(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LineStatus { calling, under_way, failures, .. } = self.status;
        match self.status.holding {
            Holding::ThrottledByDps => {
                let until = self.now.wall_at(self.status.paused_until.unwrap_or(self.now.mono));
                write!(f, "DPS throttled the instance until {until}")
            }
            Holding::AfterThrottling => write!(
                f,
                "DPS throttled the instance not long ago, so no more than {calling} at the same time for now; the next one goes when DPS answers"
            ),
            Holding::InstanceFailing => {
                write!(f, "calls to the instance fail ({failures} in a row), ")?;
                match self.status.paused_until {
                    Some(until) => write!(f, "next try at {}", self.now.wall_at(until)),
                    None => write!(f, "one device tries it now"),
                }
            }
            Holding::RampingUp => write!(
                f,
                "calls to the instance failed and go through again, no more than {calling} at the same time for now; the next one goes when DPS answers"
            ),
            Holding::InFlightMax => {
                write!(f, "{under_way} registrations are under way, as many as registration.in_flight_max allows")
            }
            Holding::ConnectionsMax => {
                write!(f, "as many calls are out as registration.connections_max allows")
            }
            Holding::Concurrency => {
                write!(f, "{calling} calls are out, as many as the rate needs; ")?;
                self.write_rate(f)
            }
            Holding::Quota => {
                write!(f, "the quota of this minute is used; ")?;
                self.write_rate(f)
            }
            Holding::Pace | Holding::Nothing => self.write_rate(f),
        }
    }

    fn write_rate(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LineStatus { learned_per_minute: learned, quota_per_minute: quota, .. } = self.status;
        write!(f, "the instance takes {learned} registrations per minute")?;
        if learned < quota { write!(f, ", as DPS has shown; its quota is {quota}") } else { Ok(()) }
    }

    /// Whom it shares that with.
    fn write_shares(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (expedited, share) = (self.status.expedited, self.urgent_share_percent);
        if self.pending.place.class == Class::Expedited {
            if expedited < self.status.waiting {
                write!(f, "; expedited devices get {share} % of that while others wait")?;
            }
        } else if expedited > 0 {
            write!(f, "; {expedited} expedited devices get up to {share} % of that")?;
        }
        let tenants = self.status.tenants.len();
        if tenants > 1 { write!(f, "; {tenants} tenants share it by weight") } else { Ok(()) }
    }
}
