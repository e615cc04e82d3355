//! Everything that belongs to one instance: its line, its client, its clock, and what happened there so far. Trouble of one stalls no
//! other: they share nothing but the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::base::OFF_MIN_MILLIS;
use crate::dps_clock::DpsClock;
use crate::ids::InstanceName;
use crate::line::scheduler::Fairness;
use crate::line::{Holding, Line, LineStatus};
use crate::line_owner::{BlamedView, CountsView};
use crate::settings::{Instance, Settings};
use crate::store::{Expect, Key, Table, Write};
use crate::upstream::evidence::Blame;
use crate::upstream::{NoAnswer, Upstream};
use rate_control::entropy::Entropy;
use rate_control::ledger::{SlotId, SlotRecord};
use rate_control::time::{Mono, Now, WallLead};

/// How often things happened at one instance since the process started.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Registrations sent.
    pub(super) registrations: AtomicU64,
    /// Of these, sent again for a device whose earlier one had no clear outcome.
    pub(super) repeated: AtomicU64,
    /// Status lookups sent.
    pub(super) lookups: AtomicU64,
    /// Polls sent.
    pub(super) polls: AtomicU64,
    /// Calls without an answer.
    pub(super) lost: AtomicU64,
    /// Calls for which no connection could be made.
    pub(super) unreachable: AtomicU64,
    /// Registrations and lookups that DPS throttled.
    pub(super) throttled: AtomicU64,
    /// Calls that failed, by who is to blame.
    pub(super) blamed: Blamed,
    /// Devices assigned.
    pub(super) assigned: AtomicU64,
    /// Devices refused.
    pub(super) refused: AtomicU64,
}

/// Calls that failed on nobody's fault but these.
#[derive(Debug, Default)]
pub(super) struct Blamed {
    /// DPS itself.
    pub(super) instance: AtomicU64,
    /// What is between us and DPS.
    pub(super) path: AtomicU64,
    /// This machine, or its configuration.
    pub(super) ourselves: AtomicU64,
}

impl Counts {
    /// What they are now.
    pub(super) fn view(&self) -> CountsView {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CountsView {
            registrations: read(&self.registrations),
            repeated: read(&self.repeated),
            lookups: read(&self.lookups),
            polls: read(&self.polls),
            lost: read(&self.lost),
            unreachable: read(&self.unreachable),
            throttled: read(&self.throttled),
            blamed: BlamedView {
                instance: read(&self.blamed.instance),
                path: read(&self.blamed.path),
                ourselves: read(&self.blamed.ourselves),
            },
            assigned: read(&self.assigned),
            refused: read(&self.refused),
        }
    }
}

impl Blamed {
    /// The counter of one of them.
    pub(super) const fn of(&self, blame: Blame) -> &AtomicU64 {
        match blame {
            Blame::Instance => &self.instance,
            Blame::Path => &self.path,
            Blame::Ourselves => &self.ourselves,
        }
    }
}

/// Adds one; the counters are independent of each other.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Room for one call to an instance; free for the next one when dropped.
pub(super) type Connection = OwnedSemaphorePermit;

/// As many connections as `registration.connections_max` allows.
#[derive(Debug)]
struct Connections {
    max: usize,
    free: Arc<Semaphore>,
}

impl Connections {
    fn new(max: usize) -> Self {
        Self { max, free: Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))) }
    }
}

/// How asking an instance for its time goes.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// When it last failed, and how, if it did.
    pub(super) last_failure: Option<(Mono, NoAnswer)>,
    /// Answers in a row that came from somebody before DPS, or without a date.
    pub(super) unanswered: u32,
    /// It was throttled: not before this moment again.
    pub(super) not_before: Mono,
}

/// Everything that belongs to one instance.
#[derive(Debug)]
pub(super) struct Dispatcher {
    pub(super) name: InstanceName,
    pub(super) line: Mutex<Line>,
    /// Rung after every event that may let somebody go.
    pub(super) bell: Notify,
    pub(super) upstream: RwLock<Arc<dyn Upstream>>,
    connections: Mutex<Connections>,
    connections_changed: Notify,
    /// How often calls to the instance went through again, and the bell for it. Not a watch channel: that wakes in an order of its own,
    /// and a run could not be replayed.
    recoveries: AtomicU64,
    recovered: Notify,
    pub(super) dps_clock: Mutex<DpsClock>,
    /// Held while the instance is asked for its time.
    pub(super) asking_time: tokio::sync::Mutex<Asking>,
    /// Who was last said to be to blame, while calls fail.
    pub(super) trouble: Mutex<Option<Blame>>,
    /// When DPS last came to a result about a device.
    pub(super) last_result: Mutex<Option<Mono>>,
    /// Held while what DPS let us know is written down, so that the last word stays.
    pub(super) keeping: tokio::sync::Mutex<()>,
    /// What happened so far.
    pub(super) counts: Counts,
    /// Whether its task runs.
    pub(super) up: AtomicBool,
    /// Ends the dispatcher when its instance is removed.
    pub(super) removed: tokio_util::sync::CancellationToken,
}

impl Dispatcher {
    pub(super) fn new(name: InstanceName, line: Line, upstream: Arc<dyn Upstream>, connections_max: usize) -> Self {
        Self {
            name,
            line: Mutex::new(line),
            bell: Notify::new(),
            upstream: RwLock::new(upstream),
            connections: Mutex::new(Connections::new(connections_max)),
            connections_changed: Notify::new(),
            recoveries: AtomicU64::new(0),
            recovered: Notify::new(),
            dps_clock: Mutex::default(),
            asking_time: tokio::sync::Mutex::default(),
            trouble: Mutex::default(),
            last_result: Mutex::default(),
            keeping: tokio::sync::Mutex::default(),
            counts: Counts::default(),
            up: AtomicBool::new(false),
            removed: tokio_util::sync::CancellationToken::new(),
        }
    }

    /// Applies changed limits at once.
    pub(super) fn configure(&self, instance: &Instance, settings: &Settings, now: Mono) {
        let rules = (&settings.line, &settings.registration);
        self.line.lock().configure(instance, rules, Fairness::of(settings, &self.name), now);
        let mut connections = self.connections.lock();
        // Calls under way end beside the new ones.
        if connections.max != settings.registration.connections_max {
            *connections = Connections::new(settings.registration.connections_max);
            drop(connections);
            self.connections_changed.notify_waiters();
        }
    }

    /// Waits until fewer calls than allowed are under way.
    pub(super) async fn connection(&self) -> Connection {
        loop {
            let changed = self.connections_changed.notified();
            let free = Arc::clone(&self.connections.lock().free);
            tokio::select! {
                biased;
                connection = free.acquire_owned() => return connection.expect("it is never closed"),
                () = changed => {}
            }
        }
    }

    /// Calls to the instance go through again.
    pub(super) fn recover(&self) {
        count(&self.recoveries);
        self.recovered.notify_waiters();
    }

    /// How often calls to the instance went through again.
    pub(super) fn recoveries(&self) -> u64 {
        self.recoveries.load(Ordering::Relaxed)
    }

    /// Waits until that was more often than `seen`. Cancel-safe.
    pub(super) async fn recovered(&self, seen: u64) {
        let recovered = self.recovered.notified();
        if self.recoveries() == seen {
            recovered.await;
        }
    }

    /// A call failed, and no device is to blame.
    pub(super) fn failed(&self, blame: Blame, why: &str, now: Mono, entropy: &mut Entropy) {
        let opened = self.line.lock().instance_failed(now, entropy);
        let instance = &self.name;
        // A long outage is one line here and one when it is over; what happens meanwhile is for whoever wants to see each call.
        let Some(until) = opened else {
            return tracing::debug!(%instance, blame = blame.as_str(), why, "a call to the instance failed");
        };
        let wait_seconds = until.since(now).as_secs_f64();
        if self.trouble.lock().replace(blame) == Some(blame) {
            tracing::debug!(%instance, blame = blame.as_str(), why, wait_seconds, "a trial request failed");
        } else {
            let (blame, to_blame) = (blame.as_str(), blame.in_words());
            tracing::warn!(%instance, blame, why, wait_seconds, "calls to the instance fail, and {to_blame}: the circuit is open, with one trial request at a time until one gets through");
        }
    }

    /// Whether something can be signed for the instance: its clock is known, or there is a guess.
    pub(super) fn knows_time(&self, now: Now) -> bool {
        self.dps_clock.lock().can_sign(now)
    }

    /// The instance's time less our wall clock, in milliseconds; `None` before it was heard of.
    pub(super) fn offset_millis(&self, now: Now) -> Option<i64> {
        Some(self.dps_clock.lock().ahead_of_boot_millis()?.saturating_sub(WallLead::of(now).millis()))
    }

    /// In words, if that says that our clock is off.
    pub(super) fn clock_trouble(&self, now: Now) -> Option<String> {
        let offset = self.offset_millis(now).filter(|offset| offset.abs() > OFF_MIN_MILLIS)?;
        let (seconds, side) = ((offset.abs() + 500) / 1000, if offset > 0 { "behind" } else { "ahead of" });
        Some(format!(
            "this machine's clock is {seconds} s {side} DPS's; tokens are signed by DPS's time until it is corrected"
        ))
    }

    /// The numbers of its `line`, and what holds that up.
    pub(super) fn status(&self, line: &mut Line, now: Mono) -> LineStatus {
        let mut status = line.status(now);
        if status.front_may_go && self.connections.lock().free.available_permits() == 0 {
            status.holding = Holding::ConnectionsMax;
        }
        status
    }

    /// Where `slot` is kept on disk.
    pub(super) fn slot_key(&self, slot: SlotId) -> Key {
        slot_key(&self.name, slot)
    }

    /// The write that keeps `slot` on disk; `None` frees it.
    pub(super) fn slot_write(&self, slot: SlotId, record: Option<&SlotRecord>) -> Write {
        let key = slot_key(&self.name, slot);
        match record {
            Some(record) => {
                Write::put(key, Expect::Any, serde_json::to_vec(record).expect("a slot has string keys only"))
            }
            None => Write::delete(key, Expect::Any),
        }
    }
}

fn slot_key(instance: &InstanceName, slot: SlotId) -> Key {
    let mut name = instance.as_str().as_bytes().to_vec();
    name.push(0);
    name.extend_from_slice(&slot.0.to_be_bytes());
    Key::new(Table::Ledger, name)
}

/// Reads what [`slot_key`] named.
pub(super) fn slot_of(name: &[u8]) -> Option<(InstanceName, SlotId)> {
    let (instance, slot) = name.split_at_checked(name.len().checked_sub(5)?)?;
    let slot = u32::from_be_bytes(slot.strip_prefix(&[0])?.try_into().ok()?);
    Some((InstanceName::parse(std::str::from_utf8(instance).ok()?).ok()?, SlotId(slot)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_key_is_read_back() {
        let name = InstanceName::parse("eu-1").unwrap();
        let key = slot_key(&name, SlotId(700));
        assert_eq!(slot_of(&key.name), Some((name, SlotId(700))));
        assert_eq!(slot_of(b"x"), None);
    }
}
