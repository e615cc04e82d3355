//! Why a device waits, in plain words: the exact limit that holds it, and its place behind it.

use std::fmt;

use crate::device::{Pending, Stage};
use crate::line::{Holding, LineStatus};
use crate::place::Class;
use rate_control::adaptive_limit::LimitState;
use rate_control::circuit_breaker::CircuitState;
use rate_control::time::{Mono, Now};

/// What is known of the device and of its line at one moment; as text, why it waits.
pub(super) struct WaitExplanation<'a> {
    pub(super) pending: &'a Pending,
    pub(super) status: &'a LineStatus,
    /// Devices that go before it, plus one.
    pub(super) position: Option<usize>,
    /// It goes not before this moment, whoever is before it.
    pub(super) not_before: Option<Mono>,
    /// Polls of its registration that failed in a row, and the last cause.
    pub(super) failed_polls: Option<&'a (u32, String)>,
    pub(super) urgent_share_percent: u32,
    pub(super) now: Now,
    /// Our wall clock is off, in words.
    pub(super) clock_trouble: Option<&'a str>,
}

impl fmt::Display for WaitExplanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_stage(f)?;
        self.clock_trouble.map_or(Ok(()), |trouble| write!(f, "; {trouble}"))
    }
}

impl WaitExplanation<'_> {
    fn write_stage(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instance = &self.pending.instance;
        let under_way = self.position == Some(0);
        match &self.pending.stage {
            Stage::Assigning { operation_id, .. } => {
                write!(f, "{instance} works on its registration (operation {operation_id}); we poll")?;
                if let Some((in_a_row, why)) = self.failed_polls {
                    write!(f, ", and the last polls failed: {in_a_row} in a row, the last one: {why}")?;
                }
                let failures = self.status.failures;
                if failures == 0 { Ok(()) } else { write!(f, "; calls to {instance} fail ({failures} in a row)") }
            }
            Stage::Sent { .. } if under_way => write!(f, "its call to {instance} is out, and not answered yet"),
            Stage::Sent { .. } => {
                write!(
                    f,
                    "its registration was sent to {instance} and has no clear outcome; we ask what became of it: "
                )?;
                self.write_turn(f)
            }
            Stage::Waiting if under_way => {
                write!(f, "it is its turn; its registration is about to be sent to {instance}")
            }
            Stage::Waiting => self.write_turn(f),
        }
    }

    fn write_turn(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(not_before) = self.not_before.filter(|not_before| *not_before > self.now.mono) {
            let until = self.now.wall_at(not_before);
            return write!(
                f,
                "it goes not before {until}, because of what happened last (see its timeline) or registration.suspect_cooldown"
            );
        }
        if let Some(position) = self.position {
            write!(f, "place {position} of {} in the line of {}; ", self.status.waiting, self.pending.instance)?;
        }
        self.write_limit(f)?;
        self.write_shares(f)
    }

    /// What holds the front of its line.
    fn write_limit(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LineStatus { under_way, failures, paused_until, .. } = self.status;
        let until = self.now.wall_at(paused_until.unwrap_or(self.now.mono));
        let calls = self.status.calls_max.map_or_else(String::new, |most| {
            format!("no more than {most} at the same time for a while, and the next one goes when DPS answers")
        });
        match self.status.holding {
            Holding::ThrottledByDps => write!(f, "DPS throttled the instance, and nobody goes before {until}"),
            Holding::AfterThrottling => write!(f, "DPS throttled the instance not long ago: {calls}"),
            Holding::InstanceFailing => {
                write!(f, "calls to the instance fail ({failures} in a row), ")?;
                match (paused_until, self.status.breaker) {
                    (Some(_), _) => write!(f, "next try at {until}"),
                    (None, CircuitState::HalfOpen) => write!(f, "one device tries it now"),
                    (None, _) => write!(f, "next try when those have ended that were sent before"),
                }
            }
            Holding::RampingUp => write!(f, "calls to the instance failed and go through again: {calls}"),
            Holding::InFlightMax => {
                write!(f, "{under_way} registrations are under way, as many as registration.in_flight_max allows")
            }
            Holding::ConnectionsMax => write!(f, "as many calls are out as registration.connections_max allows"),
            Holding::Store => write!(f, "the store takes no writes, and nothing is sent that is not on disk"),
            Holding::Concurrency => {
                self.write_rate(f)?;
                match self.status.calls_max {
                    Some(most) if most > 1 => write!(f, ", for which {most} calls at the same time do"),
                    _ => write!(f, ", for which one call at a time does"),
                }
            }
            Holding::Quota => {
                write!(f, "the quota of this minute is used; ")?;
                self.write_rate(f)
            }
            Holding::Pace | Holding::Nothing => self.write_rate(f),
        }
    }

    fn write_rate(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LineStatus { limit_per_minute: limit, quota_per_minute: quota, .. } = self.status;
        write!(f, "the instance takes {limit} registrations per minute")?;
        match self.status.limit_state {
            LimitState::Quota | LimitState::Off => Ok(()),
            _ if self.status.limit_at_floor => {
                write!(f, ", the least that adaptive_limit_min_percent allows; its quota is {quota}")
            }
            LimitState::Held => write!(f, ", as DPS refused more; its quota is {quota}"),
            LimitState::Growing => write!(f, ", and more every minute until DPS refuses; its quota is {quota}"),
        }
    }

    /// Whom it shares that with.
    fn write_shares(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (expedited, share) = (self.status.expedited, self.urgent_share_percent);
        if self.pending.place.class == Class::Expedited {
            if expedited < self.status.waiting {
                write!(f, "; expedited devices get {share} % of the turns while others wait")?;
            }
        } else if expedited > 0 {
            write!(f, "; {expedited} expedited devices get up to {share} % of the turns")?;
        }
        let tenants = self.status.tenants.iter().filter(|tenant| tenant.waiting > 0).count();
        if tenants > 1 { write!(f, "; {tenants} tenants share the line by weight") } else { Ok(()) }
    }
}
