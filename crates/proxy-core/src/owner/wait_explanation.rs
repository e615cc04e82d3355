//! Why a device waits, in plain words: its position in the line, and the exact limit that holds the front of it.

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
    /// Devices ahead of it, plus one; 0 while it is under way.
    pub(super) position: Option<usize>,
    /// It leaves no earlier than this, whoever is ahead of it.
    pub(super) not_before: Option<Mono>,
    /// Polls of its registration that failed in a row, and the last cause.
    pub(super) failed_polls: Option<&'a (u32, String)>,
    pub(super) urgent_share_percent: u32,
    pub(super) now: Now,
    /// That this machine's clock is off, in words.
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
                let what = format!("is processing its registration (operation {operation_id})");
                write!(f, "{instance} {what}; polling for the result")?;
                if let Some((in_a_row, why)) = self.failed_polls {
                    write!(f, "; failed polls in a row: {in_a_row} (the last one: {why})")?;
                }
                let failures = self.status.failures;
                if failures == 0 { Ok(()) } else { write!(f, "; calls to {instance} fail ({failures} in a row)") }
            }
            Stage::Sent { .. } if under_way => write!(f, "waiting for {instance} to answer its call"),
            Stage::Sent { .. } => {
                write!(f, "its registration was sent to {instance} with an unknown outcome; waiting to look it up: ")?;
                self.write_turn(f)
            }
            Stage::Waiting if under_way => write!(f, "its registration is about to be sent to {instance}"),
            Stage::Waiting => self.write_turn(f),
        }
    }

    fn write_turn(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(not_before) = self.not_before.filter(|not_before| *not_before > self.now.mono) {
            let until = self.now.wall_at(not_before);
            return write!(
                f,
                "deferred until {until} by its last event (see its timeline) or by registration.suspect_cooldown"
            );
        }
        if let Some(position) = self.position {
            write!(f, "position {position} of {} in the line of {}; ", self.status.waiting, self.pending.instance)?;
        }
        self.write_limit(f)?;
        self.write_shares(f)
    }

    /// What holds the front of its line.
    fn write_limit(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LineStatus { under_way, calling, failures, paused_until, .. } = self.status;
        let until = self.now.wall_at(paused_until.unwrap_or(self.now.mono));
        let most = self.status.calls_max.unwrap_or(1);
        let next_call =
            format!("the next call leaves when DPS answers one in flight (at most {most} at the same time)");
        match self.status.holding {
            Holding::ThrottledByDps => write!(f, "DPS throttled the instance: paused until {until}"),
            Holding::AfterThrottling => write!(f, "DPS throttled the instance recently and calls ramp up: {next_call}"),
            Holding::InstanceFailing => {
                write!(f, "calls to the instance fail ({failures} in a row); ")?;
                match (paused_until, self.status.breaker) {
                    (Some(_), _) => write!(f, "circuit open: paused until {until}, then one trial request"),
                    (None, CircuitState::HalfOpen) => write!(f, "circuit half-open: one trial request is in flight"),
                    (None, _) => {
                        write!(f, "circuit open: one trial request follows when the calls in flight have ended")
                    }
                }
            }
            Holding::RampingUp => write!(f, "the circuit closed again and calls ramp up: {next_call}"),
            Holding::InFlightMax => {
                write!(f, "{under_way} registrations are under way, as many as registration.in_flight_max allows")
            }
            Holding::ConnectionsMax => {
                write!(f, "{calling} calls in flight, as many as registration.connections_max allows")
            }
            Holding::Store => write!(f, "the store takes no writes, and nothing is sent that is not on disk"),
            Holding::Concurrency => {
                self.write_rate(f)?;
                write!(f, "; {next_call}")
            }
            Holding::Quota => {
                write!(f, "the quota of this minute is used up; ")?;
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
                write!(f, ", the floor set by adaptive_limit_min_percent; its quota is {quota}")
            }
            LimitState::Held => write!(f, ", because DPS refused more; its quota is {quota}"),
            LimitState::Growing => write!(f, ", rising every minute until DPS refuses again; its quota is {quota}"),
        }
    }

    /// Whom it shares that with.
    fn write_shares(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (expedited, share) = (self.status.expedited, self.urgent_share_percent);
        if self.pending.place.class == Class::Expedited {
            if expedited < self.status.waiting {
                write!(f, "; expedited devices get {share} % of the departures while others wait")?;
            }
        } else if expedited > 0 {
            write!(f, "; {expedited} expedited devices get up to {share} % of the departures")?;
        }
        let tenants = self.status.tenants.iter().filter(|tenant| tenant.waiting > 0).count();
        if tenants > 1 { write!(f, "; {tenants} tenants share the line by weight") } else { Ok(()) }
    }
}
