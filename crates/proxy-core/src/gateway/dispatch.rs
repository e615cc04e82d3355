//! One dispatcher per instance: asks the line who goes next and sends each on its way. Trouble of one stalls no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::Gateway;
use super::task_names::NOTES;
use crate::dps_clock::DpsClock;
use crate::ids::InstanceName;
use crate::line::scheduler::Fairness;
use crate::line::{Holding, Line, LineStatus, Next};
use crate::settings::{Instance, Settings};
use crate::store::{Expect, Key, Table, Write};
use crate::upstream::evidence::Blame;
use crate::upstream::{NoAnswer, Upstream};
use rate_control::ledger::{SlotId, SlotRecord};
use rate_control::time::Mono;

/// How often things happened at one instance since the process started.
#[derive(Debug, Default)]
pub struct Counts {
    /// Registrations sent.
    pub registrations: AtomicU64,
    /// Of these, sent again for a device whose earlier one had no clear outcome.
    pub repeated: AtomicU64,
    /// Status lookups sent.
    pub lookups: AtomicU64,
    /// Polls sent.
    pub polls: AtomicU64,
    /// Calls without an answer.
    pub lost: AtomicU64,
    /// Calls for which no connection could be made.
    pub unreachable: AtomicU64,
    /// Registrations and lookups that DPS throttled.
    pub throttled: AtomicU64,
    /// Calls that failed, by who is to blame.
    pub blamed: Blamed,
    /// Devices assigned.
    pub assigned: AtomicU64,
    /// Devices refused.
    pub refused: AtomicU64,
}

/// Calls that failed on nobody's fault but these.
#[derive(Debug, Default)]
pub struct Blamed {
    /// DPS itself.
    pub instance: AtomicU64,
    /// What is between us and DPS.
    pub path: AtomicU64,
    /// This machine, or its configuration.
    pub ourselves: AtomicU64,
}

impl Blamed {
    /// The counter of one of them.
    #[must_use]
    pub const fn of(&self, blame: Blame) -> &AtomicU64 {
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
pub struct Dispatcher {
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
    pub counts: Counts,
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

    /// The numbers of its `line`, and what holds that up.
    pub(super) fn status(&self, line: &mut Line, now: Mono) -> LineStatus {
        let mut status = line.status(now);
        if status.front_may_go && self.connections.lock().free.available_permits() == 0 {
            status.holding = Holding::ConnectionsMax;
        }
        status
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

impl Gateway {
    /// A call failed, and no device is to blame.
    pub(super) fn instance_failed(&self, dispatcher: &Dispatcher, blame: Blame, why: &str) {
        let now = self.now().mono;
        let opened = {
            let mut entropy = self.entropy.lock();
            dispatcher.line.lock().instance_failed(now, &mut entropy)
        };
        let instance = &dispatcher.name;
        // A long outage is one line here and one when it is over; what happens meanwhile is for whoever wants to see each call.
        let Some(until) = opened else {
            return tracing::debug!(%instance, blame = blame.as_str(), why, "a call to the instance failed");
        };
        let wait_seconds = until.since(now).as_secs_f64();
        if dispatcher.trouble.lock().replace(blame) == Some(blame) {
            tracing::debug!(%instance, blame = blame.as_str(), why, wait_seconds, "a trial request failed");
        } else {
            let (blame, to_blame) = (blame.as_str(), blame.in_words());
            tracing::warn!(%instance, blame, why, wait_seconds, "calls to the instance fail, and {to_blame}: the circuit is open, with one trial request at a time until one gets through");
        }
    }

    /// Serves the line of `dispatcher` until the gateway stops or the instance is removed.
    pub(super) async fn dispatch(self: Arc<Self>, dispatcher: Arc<Dispatcher>) {
        loop {
            // Asked first: a departure that had to wait for its connection would leave later than its pace allows, along with others.
            let connection = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                () = dispatcher.removed.cancelled() => return,
                connection = dispatcher.connection() => connection,
            };
            let now = self.now();
            let knows_time = dispatcher.knows_time(now);
            let now = now.mono;
            // Before a turn is taken, so that those who go afterwards go at their pace.
            if !knows_time && dispatcher.line.lock().front_may_go(now) {
                tokio::select! {
                    biased;
                    () = self.stopping.cancelled() => return,
                    () = dispatcher.removed.cancelled() => return,
                    () = self.learn_time(&dispatcher) => continue,
                }
            }
            let (next, limit_changed) = {
                let mut line = dispatcher.line.lock();
                (line.next(now), line.take_limit_changed())
            };
            if limit_changed {
                self.spawn(NOTES, Arc::clone(&self).keep_limit(Arc::clone(&dispatcher)));
            }
            let wait = match next {
                Next::Depart(departure) => {
                    self.spawn_registration(Arc::clone(&dispatcher), departure, connection);
                    continue;
                }
                Next::WaitUntil(moment) => Some(moment.since(now)),
                Next::Idle => None,
            };
            drop(connection);
            let timer = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                () = dispatcher.removed.cancelled() => return,
                () = dispatcher.bell.notified() => {}
                () = timer => {}
            }
        }
    }
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
