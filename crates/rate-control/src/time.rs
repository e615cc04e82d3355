//! Time as the core sees it: always an argument, never asked for.
//!
//! Two clocks, never mixed. [`Mono`] measures ages: it is the machine's boot-time clock, which runs on while the machine
//! sleeps and which no operator can set. [`WallTime`] is what people and credentials speak of; it may jump, and nothing that
//! protects a quota depends on it. What is stored keeps both ([`StoredMoment`]). Only [`SystemClock`] asks the operating system.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod lead;
mod stored;

pub use lead::WallLead;
pub use stored::{BootTag, Process, StoredMoment};

/// A moment of the boot-time clock, in nanoseconds since boot. Comparable only within one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mono(u64);

impl Mono {
    /// The moment `nanos` nanoseconds after boot.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// This moment plus `duration`; saturates at the end of time (584 years).
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// This moment less `duration`; not before the boot.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A moment of the wall clock, in milliseconds since the Unix epoch. Displayed and serialised as RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WallTime(i64);

impl WallTime {
    /// The moment `millis` milliseconds after the Unix epoch.
    #[must_use]
    pub const fn from_unix_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn unix_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down.
    #[must_use]
    pub const fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// This moment plus `duration`.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Parses RFC 3339, as DPS writes it (`2026-01-01T00:00:00.0000000Z`). `None` if it is not that.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        text.parse::<jiff::Timestamp>().ok().map(|timestamp| Self(timestamp.as_millisecond()))
    }
}

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(timestamp) => write!(f, "{timestamp:.3}"),
            Err(_) => write!(f, "{} ms after the Unix epoch", self.0),
        }
    }
}

impl Serialize for WallTime {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WallTime {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::text::read(deserializer, "an RFC 3339 time", |text| Self::parse(text).ok_or("expected an RFC 3339 time"))
    }
}

/// Both clocks, read together, once per event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For ages and waits.
    pub mono: Mono,
    /// For people and credentials.
    pub wall: WallTime,
    /// Who reads them: what the age of a stored moment is judged by.
    pub process: Process,
}

impl Now {
    /// The wall time at which `moment` falls, as far as anyone can tell now.
    #[must_use]
    pub fn wall_at(&self, moment: Mono) -> WallTime {
        self.wall.after(moment.since(self.mono))
    }
}

/// Names one boot of the machine, so that persisted [`Mono`] values of another boot are never compared with ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

/// Where the shell reads the time. The core's decisions take [`Now`] instead.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Reads both clocks.
    fn now(&self) -> Now;
    /// The current boot.
    fn boot_id(&self) -> BootId;
}

/// The operating system's clocks: `CLOCK_BOOTTIME` and the real-time clock.
#[derive(Debug)]
pub struct SystemClock {
    boot_id: BootId,
    process: Process,
}

impl SystemClock {
    /// Reads the boot ID from the kernel. Where there is none (not Linux), every process counts as a boot of its own,
    /// which is the cautious reading: ages from an earlier process are then not trusted.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the kernel tells the boot's ID in a file, read once at start")]
    pub fn new() -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(
            |_| format!("process-{}-{}", std::process::id(), wall_now().unix_millis()),
            |text| text.trim().to_owned(),
        );
        let boot_id = BootId(boot_id);
        let process = Process { boot: BootTag::of(&boot_id), began: mono_now() };
        Self { boot_id, process }
    }

    /// Reads the wall clock.
    #[must_use]
    pub fn wall() -> WallTime {
        wall_now()
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        Now { mono: mono_now(), wall: wall_now(), process: self.process }
    }

    fn boot_id(&self) -> BootId {
        self.boot_id.clone()
    }
}

#[expect(clippy::disallowed_methods, reason = "here the boot-time clock is read, and nowhere else")]
fn mono_now() -> Mono {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = rustix::time::ClockId::Monotonic;
    let read = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(read.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(read.tv_nsec).unwrap_or(0);
    Mono(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

#[expect(clippy::disallowed_methods, reason = "here the wall clock is read, and nowhere else")]
fn wall_now() -> WallTime {
    WallTime(jiff::Timestamp::now().as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_reads_what_dps_writes_and_prints_milliseconds() {
        let time = WallTime::parse("2026-01-01T00:00:01.2340000Z").unwrap();
        assert_eq!(time.to_string(), "2026-01-01T00:00:01.234Z");
        assert_eq!(WallTime::parse("yesterday"), None);
    }

    #[test]
    fn ages_never_go_negative() {
        assert_eq!(Mono::from_nanos(5).since(Mono::from_nanos(9)), Duration::ZERO);
        assert_eq!(WallTime::from_unix_millis(5).since(WallTime::from_unix_millis(9)), Duration::ZERO);
    }
}
