//! How far the wall clock is ahead of the boot-time clock: the two run alike until one of them jumps.

use super::Now;

/// Slewing and leap seconds move the wall clock by less than this.
const JUMP_MIN_MILLIS: u64 = 2_000;

/// What the wall clock read less what the boot-time clock read, in milliseconds, at some moment.
///
/// It changes when the wall clock is set, and when it is set right after the machine stood still without its boot-time clock noticing (a
/// virtual machine that was paused, or moved). Which of the two it was cannot be told from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallLead(i64);

impl WallLead {
    /// As of `now`.
    #[must_use]
    pub fn of(now: Now) -> Self {
        let boot = i64::try_from(now.mono.as_nanos() / 1_000_000).unwrap_or(i64::MAX);
        Self(now.wall.unix_millis().saturating_sub(boot))
    }

    /// In milliseconds.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// Whether a clock has jumped between then and `now`.
    #[must_use]
    pub fn has_jumped(self, now: Now) -> bool {
        Self::of(now).0.abs_diff(self.0) > JUMP_MIN_MILLIS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{BootId, BootTag, Mono, Process, WallTime};

    fn now(boot_millis: u64, wall_millis: i64) -> Now {
        let process = Process { boot: BootTag::of(&BootId("a".to_owned())), began: Mono::default() };
        Now { mono: Mono::from_nanos(boot_millis * 1_000_000), wall: WallTime::from_unix_millis(wall_millis), process }
    }

    #[test]
    fn clocks_that_run_alike_do_not_jump() {
        let lead = WallLead::of(now(5_000, 1_000_000));
        assert_eq!(lead.millis(), 995_000);
        assert!(!lead.has_jumped(now(3_605_000, 4_601_500)), "slewed");
        assert!(lead.has_jumped(now(6_000, 1_000_000 + 3_601_000)), "set, or stood still");
        assert!(lead.has_jumped(now(6_000, 0)));
    }
}
