//! Everything that happened, in order: what the judge reads, and what two runs of one seed must agree on to the byte.
//!
//! Invariant: an event names facts that can be seen from outside the gateway (on the wire, on the disk, in its answers); nothing here
//! comes from its limiter.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proxy_core::ids::InstanceName;

use crate::clock::SimClock;

/// The device calls of DPS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Register,
    Poll,
    Lookup,
}

/// What a device was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    Assigned {
        hub: String,
    },
    Queued {
        retry_after: u64,
        position: usize,
    },
    /// DPS refused it.
    Refused {
        code: String,
    },
    /// It asks far too often.
    TooFast,
    /// Any other error.
    Turned(String),
    /// Nobody listened, or the process died with the request.
    NoAnswer,
    /// The device did not wait for the answer.
    HungUp,
}

/// What the disk holds of a device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Kept {
    /// When it joined the line, and its place there.
    pub(crate) place: Option<(String, String)>,
    pub(crate) hub: Option<String>,
    pub(crate) refused: bool,
    /// Events of the timeline.
    pub(crate) timeline: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// For people; the judge does not read it.
    Note(String),
    Started {
        process: u32,
    },
    Ended {
        process: u32,
    },
    /// The operator's quota is in force.
    Quota {
        instance: InstanceName,
        quota: u32,
    },
    Sent {
        process: u32,
        number: u64,
        instance: InstanceName,
        call: Call,
        id: String,
    },
    Arrived {
        number: u64,
        status: Option<u16>,
    },
    /// The process heard of a call; `None` if it gave up or was reset.
    Heard {
        number: u64,
        status: Option<u16>,
        retry_after: Option<u64>,
    },
    Asked {
        device: usize,
        reprovision: bool,
    },
    Told {
        device: usize,
        told: Told,
    },
    /// A backend or an operator gave cause for another hub.
    Cause {
        device: usize,
        what: &'static str,
    },
    /// An operator's move is written down.
    Moved {
        device: usize,
    },
    /// Looked up on the disk while no process runs; `None` if there is no record.
    Found {
        device: usize,
        kept: Option<Kept>,
        /// It says that a registration has left, or more.
        sent: bool,
    },
    /// A device that nobody has enrolled asked.
    Stranger {
        believed: bool,
        commits: u64,
    },
    Line {
        instance: InstanceName,
        waiting: usize,
        under_way: usize,
        parked: usize,
    },
    /// Everything works from here on.
    Healed,
    /// The bound on the time after healing is over, or everybody is served.
    Over {
        served: bool,
    },
    /// The disk at the end.
    Rows {
        devices: usize,
        slots: usize,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Note(text) => f.write_str(text),
            Self::Started { process } => write!(f, "process {process} started"),
            Self::Ended { process } => write!(f, "process {process} ended"),
            Self::Quota { instance, quota } => write!(f, "{instance}: the quota is {quota} a minute"),
            Self::Sent { process, number, instance, call, id } => {
                write!(f, "call {number} left process {process}: {call:?} of {id} to {instance}")
            }
            Self::Arrived { number, status } => write!(f, "call {number} arrived, {}", Status(*status)),
            Self::Heard { number, status, retry_after } => {
                write!(f, "call {number} ended, {}", Status(*status))?;
                retry_after.map_or(Ok(()), |seconds| write!(f, ", Retry-After {seconds}"))
            }
            Self::Asked { device, reprovision } => {
                write!(f, "device {device} asks{}", if *reprovision { " for a new registration" } else { "" })
            }
            Self::Told { device, told } => write!(f, "device {device} is told {told:?}"),
            Self::Cause { device, what } => write!(f, "device {device}: {what}"),
            Self::Moved { device } => write!(f, "device {device} is moved"),
            Self::Found { device, kept, .. } => write!(f, "device {device} on disk: {kept:?}"),
            Self::Stranger { believed, commits } => write!(f, "a stranger: believed {believed}, commits {commits}"),
            Self::Line { instance, waiting, under_way, parked } => {
                write!(f, "{instance}: {waiting} wait, {under_way} under way; {parked} requests parked")
            }
            Self::Healed => f.write_str("healed"),
            Self::Over { served } => write!(f, "over, all served: {served}"),
            Self::Rows { devices, slots } => write!(f, "on disk: {devices} devices, {slots} slots"),
        }
    }
}

struct Status(Option<u16>);

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("no answer"),
            Some(status) => write!(f, "{status}"),
        }
    }
}

/// An event and when it happened, in true time since the run began.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) at: Duration,
    pub(crate) event: Event,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10.3} {}", self.at.as_secs_f64(), self.event)
    }
}

/// The log of one run.
#[derive(Debug)]
pub(crate) struct Log {
    clock: Arc<SimClock>,
    entries: Mutex<Vec<Entry>>,
    calls: Mutex<u64>,
}

impl Log {
    pub(crate) fn new(clock: Arc<SimClock>) -> Self {
        Self { clock, entries: Mutex::default(), calls: Mutex::default() }
    }

    pub(crate) fn add(&self, event: Event) {
        self.entries.lock().push(Entry { at: self.clock.elapsed(), event });
    }

    pub(crate) fn note(&self, text: impl Into<String>) {
        self.add(Event::Note(text.into()));
    }

    /// A number for the next call.
    pub(crate) fn number(&self) -> u64 {
        let mut calls = self.calls.lock();
        *calls += 1;
        *calls
    }

    /// Takes out what was logged so far.
    pub(crate) fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.entries.lock())
    }
}
