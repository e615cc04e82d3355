//! A moment that is written down, so that its age survives a wall clock that is set.
//!
//! Beside the wall time it keeps which boot of the machine it fell into and what the boot-time clock read: within that boot its age is
//! exact, whatever becomes of the wall clock. For a moment of another boot only the wall clock is left, and a moment that lies in
//! its future is a moment at which one of the two was wrong: it counts as of the start of this process then, so that no wait is longer
//! than the configured one from there.
//!
//! Written as RFC 3339 with a suffix after RFC 9557, `2026-01-01T00:00:00.000Z[_boot=00c0ffee00c0ffee-5000]`: the boot, and its clock in
//! milliseconds. Without the suffix it is what earlier versions wrote, and reads as a moment of another boot.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{BootId, Mono, Now, WallTime};

/// The wall clocks of two machines, or of one before and after a correction, differ by this much without meaning anything.
const WALL_TOLERANCE: Duration = Duration::from_secs(60);

const BOOT_KEY: &str = "_boot";

/// A [`BootId`], shortened to what tells boots apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BootTag(u64);

impl BootTag {
    /// The tag of a boot: the same for the same ID, in every version.
    #[must_use]
    pub fn of(boot: &BootId) -> Self {
        let digest = Sha256::digest(boot.0.as_bytes());
        Self(digest.iter().take(8).fold(0, |tag, byte| (tag << 8) | u64::from(*byte)))
    }
}

/// What a process knows of itself to judge the age of a stored moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// The boot it runs in.
    pub boot: BootTag,
    /// When it began.
    pub began: Mono,
}

/// A moment by both clocks, to be stored. Milliseconds, as its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredMoment {
    wall: WallTime,
    boot: Option<(BootTag, u64)>,
}

impl StoredMoment {
    /// Now.
    #[must_use]
    pub fn of(now: Now) -> Self {
        Self { wall: now.wall, boot: Some((now.process.boot, now.mono.as_nanos() / 1_000_000)) }
    }

    /// What the wall clock read.
    #[must_use]
    pub const fn wall(self) -> WallTime {
        self.wall
    }

    /// The same moment for people: the wall time alone.
    #[must_use]
    pub const fn shown(self) -> Self {
        Self { wall: self.wall, boot: None }
    }

    /// How long ago this was: exact within one boot, else as far as the wall clock tells.
    #[must_use]
    pub fn age(self, now: Now) -> Duration {
        match self.boot {
            Some((boot, millis)) if boot == now.process.boot => {
                Duration::from_millis((now.mono.as_nanos() / 1_000_000).saturating_sub(millis))
            }
            // Its clock or ours was wrong. All that is certain is that it happened before this process began.
            _ if self.wall > now.wall.after(WALL_TOLERANCE) => now.mono.since(now.process.began),
            _ => now.wall.since(self.wall),
        }
    }

    /// What is left of `duration`, if it began at this moment; `None` if it is over.
    #[must_use]
    pub fn left_of(self, duration: Duration, now: Now) -> Option<Duration> {
        duration.checked_sub(self.age(now)).filter(|left| !left.is_zero())
    }
}

/// A moment of which nothing but the wall time is known.
impl From<WallTime> for StoredMoment {
    fn from(wall: WallTime) -> Self {
        Self { wall, boot: None }
    }
}

/// For people: the wall time alone.
impl fmt::Display for StoredMoment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.wall.fmt(f)
    }
}

impl Serialize for StoredMoment {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.boot {
            Some((BootTag(boot), millis)) => {
                serializer.collect_str(&format_args!("{}[{BOOT_KEY}={boot:016x}-{millis}]", self.wall))
            }
            None => self.wall.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for StoredMoment {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::text::read(deserializer, "an RFC 3339 time", |text| parse(text).ok_or("expected an RFC 3339 time"))
    }
}

fn parse(text: &str) -> Option<StoredMoment> {
    let (wall, suffix) = text.split_at(text.find('[').unwrap_or(text.len()));
    let boot = suffix.strip_prefix('[').and_then(|suffix| suffix.strip_suffix(']')).and_then(|suffix| {
        let (boot, millis) = suffix.strip_prefix(BOOT_KEY)?.strip_prefix('=')?.split_once('-')?;
        Some((BootTag(u64::from_str_radix(boot, 16).ok()?), millis.parse().ok()?))
    });
    Some(StoredMoment { wall: WallTime::parse(wall)?, boot })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const NOON: WallTime = WallTime::from_unix_millis(1_795_521_600_000);

    /// On boot `boot`, `up` after it; the process began when the machine had been up for a minute.
    fn now(boot: &str, up: Duration, wall: WallTime) -> Now {
        let began = Mono::default().after(Duration::from_secs(60));
        Now {
            mono: Mono::default().after(up),
            wall,
            process: Process { boot: BootTag::of(&BootId(boot.to_owned())), began },
        }
    }

    fn earlier(wall: WallTime, by: Duration) -> WallTime {
        WallTime::from_unix_millis(wall.unix_millis() - i64::try_from(by.as_millis()).unwrap())
    }

    #[test]
    fn within_one_boot_a_clock_that_is_set_changes_no_age() {
        for wall in [NOON.after(HOUR * 24 * 365 * 20), NOON.after(HOUR), NOON, WallTime::default()] {
            let stored = StoredMoment::of(now("a", HOUR, wall));
            assert_eq!(stored.age(now("a", HOUR + Duration::from_secs(7), NOON)), Duration::from_secs(7));
            assert_eq!(stored.left_of(Duration::from_secs(7), now("a", HOUR + Duration::from_secs(7), NOON)), None);
        }
    }

    #[test]
    fn of_another_boot_the_wall_clock_is_believed_unless_it_makes_no_sense() {
        let age = |stored: Now, up, wall| StoredMoment::of(stored).age(now("b", up, wall));
        assert_eq!(age(now("a", HOUR, earlier(NOON, HOUR)), HOUR, NOON), HOUR);
        assert_eq!(age(now("a", HOUR, NOON.after(Duration::from_secs(30))), HOUR, NOON), Duration::ZERO);
        // An hour, or twenty years, in the future: as old as this process at least.
        for ahead in [HOUR, HOUR * 24 * 365 * 20] {
            assert_eq!(age(now("a", HOUR, NOON.after(ahead)), Duration::from_secs(70), NOON), Duration::from_secs(10));
        }
    }

    #[test]
    fn the_text_is_read_back_and_what_earlier_versions_wrote_as_well() {
        let stored = StoredMoment::of(now("a", Duration::from_millis(5_001), NOON));
        let text = serde_json::to_string(&stored).unwrap();
        let tag = BootTag::of(&BootId("a".to_owned())).0;
        assert_eq!(text, format!("\"2026-11-24T12:00:00.000Z[_boot={tag:016x}-5001]\""));
        assert_eq!(serde_json::from_str::<StoredMoment>(&text).unwrap(), stored);
        assert_eq!(serde_json::to_string(&stored.shown()).unwrap(), "\"2026-11-24T12:00:00.000Z\"");
        let plain: StoredMoment = serde_json::from_str("\"2026-11-24T12:00:00.000Z\"").unwrap();
        assert_eq!((plain, plain.wall()), (NOON.into(), NOON));
        // A reader that knows nothing of the suffix still reads the time: RFC 9557 tells it to ignore the rest.
        assert_eq!(WallTime::parse(text.trim_matches('"')), Some(NOON));
        assert!(serde_json::from_str::<StoredMoment>("\"noon\"").is_err());
    }
}
