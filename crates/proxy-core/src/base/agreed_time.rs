//! The time that credentials are judged and made by: DPS's, if its clocks agree that ours is off.
//!
//! Invariants:
//! - When DPS's clocks agree that ours is off (`agreement`), credentials go by their time; everything else of the wall clock is for
//!   people. Nobody is refused because our clock is wrong.
//! - Whoever reads the clocks tells them here; whoever needs the time asks here, and knows nothing of lines.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use rate_control::time::{Now, WallTime};

mod agreement;

use agreement::Agreement;
pub(crate) use agreement::{OFF_MIN_MILLIS, Standing};

/// What DPS's clocks say together.
#[derive(Debug, Default)]
pub(crate) struct AgreedTime {
    agreement: Mutex<Agreement>,
    /// Our wall clock is off; told in the log when it changes.
    off: AtomicBool,
    /// Rung when clocks may have to be read before their time.
    look: Notify,
    /// Rung when a doubt may be over.
    settled: Notify,
}

impl AgreedTime {
    /// The time that credentials are judged and made by: DPS's, if its clocks agree that ours is off. Ours while that is in doubt.
    pub(crate) fn credential_time(&self, now: Now) -> WallTime {
        let Standing::Settled(offset) = self.standing(now) else { return now.wall };
        let off = offset.filter(|offset| offset.abs() > OFF_MIN_MILLIS);
        off.map_or(now.wall, |offset| WallTime::from_unix_millis(now.wall.unix_millis().saturating_add(offset)))
    }

    /// Waits until that time is not in doubt: for as long as it takes to ask DPS, and no longer than a bound. Cancel-safe.
    pub(crate) async fn settle(&self, now: impl Fn() -> Now) {
        loop {
            let settled = self.settled.notified();
            let Standing::Doubtful { left, .. } = self.standing(now()) else { return };
            let _ = tokio::time::timeout(left, settled).await;
        }
    }

    /// Looks at what is agreed. Has the instances asked if that has come into doubt.
    pub(crate) fn standing(&self, now: Now) -> Standing {
        let standing = self.agreement.lock().look(now);
        match standing {
            Standing::Doubtful { news: true, .. } => self.look_at_clocks(),
            Standing::GivenUp => {
                self.off.store(false, Ordering::Relaxed);
                tracing::warn!(
                    "this machine's clock was set, or the machine was suspended, and no DPS instance answers with its time: credentials are judged by this machine's clock until one does"
                );
            }
            Standing::Doubtful { .. } | Standing::Settled(_) => {}
        }
        standing
    }

    /// The clocks of instances that are not known any more are read now.
    pub(crate) fn look_at_clocks(&self) {
        self.look.notify_waiters();
    }

    /// Waits until the clocks are to be looked at.
    pub(crate) fn rung(&self) -> Notified<'_> {
        self.look.notified()
    }

    /// Whether a reading of one instance, its time less our boot-time clock in milliseconds, may change anything.
    pub(crate) fn is_news(&self, ahead_of_boot: i64, now: Now) -> bool {
        self.agreement.lock().is_news(ahead_of_boot, now)
    }

    /// Takes the readings of all instances that were heard of lately, of `configured` ones.
    pub(crate) fn take(&self, readings: Vec<i64>, configured: usize, now: Now) {
        self.agreement.lock().take(readings, configured, now);
        self.settled.notify_waiters();
    }

    /// One line when our clock goes wrong, one when it is right again.
    pub(crate) fn tell_change(&self, now: Now) {
        let Standing::Settled(Some(offset)) = self.standing(now) else { return };
        let off = offset.abs() > OFF_MIN_MILLIS;
        if self.off.swap(off, Ordering::Relaxed) == off {
            return;
        }
        let offset_seconds = offset / 1000;
        if off {
            tracing::warn!(
                offset_seconds,
                "this machine's clock differs from DPS's by offset_seconds (DPS's minus ours): credentials are judged and signed by DPS's time until it is corrected"
            );
        } else {
            tracing::info!(offset_seconds, "this machine's clock agrees with DPS's again");
        }
    }
}
