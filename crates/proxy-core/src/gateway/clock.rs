//! What time it is: DPS's clock for what is signed for DPS, and a check of our own wall clock against it.
//!
//! Invariants:
//! - No token leaves for an instance whose clock was not read within the last hour ([`dps_clock::GOOD_FOR`]). It is read by a call that
//!   carries no credential and spends nothing.
//! - When DPS's clocks agree that ours is off, credentials are judged and made by their time; everything else of the wall clock is
//!   for people. Nobody is refused because our clock is wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use super::Gateway;
use super::dispatch::{Dispatcher, count};
use crate::dps_clock;
use crate::time::{Mono, Now, WallTime};
use crate::upstream::NoAnswer;
use crate::upstream::evidence::{self, Evidence, weigh};
use crate::upstream::verdict::Call;

/// Our wall clock is off if it differs from DPS's by more than this.
const OFF_MIN_MILLIS: i64 = 30_000;

/// Two readings of clocks that agree differ by less than this: answers are dated to the second.
const ALIKE_MILLIS: i64 = 2_000;

/// Between two questions for the time while DPS does not answer them and nobody waits for it.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// DPS was not heard of, or its instances contradict each other.
const UNKNOWN: i64 = i64::MIN;

/// What DPS's clocks say together.
#[derive(Debug)]
pub(super) struct Agreed {
    /// Their time less our boot-time clock, in milliseconds.
    ahead_of_boot: AtomicI64,
    /// Our wall clock is off; told in the log when it changes.
    off: AtomicBool,
}

impl Default for Agreed {
    fn default() -> Self {
        Self { ahead_of_boot: AtomicI64::new(UNKNOWN), off: AtomicBool::new(false) }
    }
}

impl Agreed {
    /// DPS's time less our wall clock, in milliseconds.
    fn offset_millis(&self, now: Now) -> Option<i64> {
        let ahead = self.ahead_of_boot.load(Ordering::Relaxed);
        (ahead != UNKNOWN).then(|| offset_millis(ahead, now))
    }
}

fn offset_millis(ahead_of_boot: i64, now: Now) -> i64 {
    let boot = i64::try_from(now.mono.as_nanos() / 1_000_000).unwrap_or(i64::MAX);
    ahead_of_boot.saturating_add(boot).saturating_sub(now.wall.unix_millis())
}

/// The middle one of the readings, if most of them are near it.
fn agree(mut readings: Vec<i64>) -> Option<i64> {
    readings.sort_unstable();
    let middle = *readings.get(readings.len() / 2)?;
    let near = readings.iter().filter(|reading| reading.abs_diff(middle) <= OFF_MIN_MILLIS.unsigned_abs()).count();
    (near * 2 > readings.len()).then_some(middle)
}

impl Dispatcher {
    /// Whether what is signed for the instance can end by its own clock.
    pub(super) fn knows_time(&self, now: Mono) -> bool {
        self.dps_clock.lock().is_known(now)
    }

    /// The instance's time less our wall clock, in milliseconds; `None` before it was heard of.
    pub(super) fn offset_millis(&self, now: Now) -> Option<i64> {
        Some(offset_millis(self.dps_clock.lock().ahead_of_boot_millis()?, now))
    }

    /// In words, if that says that our clock is off.
    pub(super) fn clock_trouble(&self, now: Now) -> Option<String> {
        let offset = self.offset_millis(now).filter(|offset| offset.abs() > OFF_MIN_MILLIS)?;
        let (seconds, side) = ((offset.abs() + 500) / 1000, if offset > 0 { "behind" } else { "ahead of" });
        Some(format!("our wall clock is {seconds} s {side} DPS's: what we sign goes by DPS's clock; set ours"))
    }
}

impl Gateway {
    /// The time that credentials are judged and made by: DPS's, if its clocks agree that ours is off.
    #[must_use]
    pub fn credential_time(&self, now: Now) -> WallTime {
        let off = self.agreed_time.offset_millis(now).filter(|offset| offset.abs() > OFF_MIN_MILLIS);
        off.map_or(now.wall, |offset| WallTime::from_unix_millis(now.wall.unix_millis().saturating_add(offset)))
    }

    /// An answer of DPS was dated `date`; its call was sent at `sent`.
    pub(super) fn hear_date(&self, dispatcher: &Dispatcher, date: WallTime, sent: Mono) {
        let now = self.now();
        let ahead = {
            let mut clock = dispatcher.dps_clock.lock();
            clock.observe(date, sent, now.mono);
            clock.ahead_of_boot_millis()
        };
        let agreed = self.agreed_time.ahead_of_boot.load(Ordering::Relaxed);
        // Asked of all instances only when this one has news: it is seldom, and answers are many.
        if agreed == UNKNOWN || ahead.is_some_and(|ahead| ahead.abs_diff(agreed) > ALIKE_MILLIS.unsigned_abs()) {
            let dispatchers = self.dispatchers.load();
            let known = |dispatcher: &Arc<Dispatcher>| {
                let clock = *dispatcher.dps_clock.lock();
                clock.ahead_of_boot_millis().filter(|_| clock.is_known(now.mono))
            };
            let agreed = agree(dispatchers.values().filter_map(known).collect());
            self.agreed_time.ahead_of_boot.store(agreed.unwrap_or(UNKNOWN), Ordering::Relaxed);
        }
        self.tell_change(now);
    }

    /// One line when our clock goes wrong, one when it is right again.
    fn tell_change(&self, now: Now) {
        let Some(offset) = self.agreed_time.offset_millis(now) else { return };
        let off = offset.abs() > OFF_MIN_MILLIS;
        if self.agreed_time.off.swap(off, Ordering::Relaxed) == off {
            return;
        }
        let offset_seconds = offset / 1000;
        if off {
            tracing::warn!(
                offset_seconds,
                "our wall clock differs from DPS's by offset_seconds (DPS's less ours): credentials go by DPS's time until it is set"
            );
        } else {
            tracing::info!(offset_seconds, "our wall clock agrees with DPS's again");
        }
    }

    /// Reads the instance's clock, unless it is known; whoever asks meanwhile shares the answer. Cancel-safe.
    ///
    /// # Errors
    /// Nobody who speaks for DPS answered.
    pub(super) async fn know_time(&self, dispatcher: &Dispatcher) -> Result<(), NoAnswer> {
        let asked = self.now().mono;
        if dispatcher.knows_time(asked) {
            return Ok(());
        }
        let mut last_failure = dispatcher.asking_time.lock().await;
        let sent = self.now().mono;
        if dispatcher.knows_time(sent) {
            return Ok(());
        }
        if let Some((at, failure)) = &*last_failure
            && *at >= asked
        {
            return Err(failure.clone());
        }
        let upstream = Arc::clone(&dispatcher.upstream.read());
        match upstream.time().await {
            Ok(date) => {
                *last_failure = None;
                self.hear_date(dispatcher, date, sent);
                Ok(())
            }
            Err(failure) => {
                let counts = &dispatcher.counts;
                count(if failure.never_left() { &counts.unreachable } else { &counts.lost });
                *last_failure = Some((self.now().mono, failure.clone()));
                Err(failure)
            }
        }
    }

    /// Somebody could go, but the instance's clock is unknown: asks for it. A failure is one of the instance, as of any call.
    pub(super) async fn learn_time(&self, dispatcher: &Dispatcher) {
        dispatcher.line.lock().tries();
        if let Err(failure) = self.know_time(dispatcher).await {
            let result = Err(failure);
            if let Evidence::Against(blame) = weigh(Call::Lookup, &result) {
                count(dispatcher.counts.blamed.of(blame));
                self.instance_failed(dispatcher, blame, &evidence::words(&result));
            }
        }
    }

    /// Keeps the instance's clock known while nobody waits for it: devices' credentials are to be judged by the right time from the start.
    pub(super) async fn keep_time(self: Arc<Self>, dispatcher: Arc<Dispatcher>) {
        loop {
            let known = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                () = dispatcher.removed.cancelled() => return,
                known = self.know_time(&dispatcher) => known,
            };
            if let Err(failure) = &known {
                tracing::debug!(instance = %dispatcher.name, %failure, "the instance's clock could not be read");
            }
            let wait = if known.is_ok() { dps_clock::GOOD_FOR } else { ASK_AGAIN };
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                () = dispatcher.removed.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_clocks_have_to_agree() {
        assert_eq!(agree(vec![]), None);
        assert_eq!(agree(vec![7_200_000]), Some(7_200_000));
        assert_eq!(agree(vec![7_200_000, 7_201_000, 0]), Some(7_200_000));
        assert_eq!(agree(vec![7_200_000, 0]), None);
        assert_eq!(agree(vec![500, 0, 7_200_000, 1_000]), Some(1_000));
    }
}
