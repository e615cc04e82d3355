//! Serves the lines: one dispatcher per instance asks the line who goes next and sends each on its way. What is done when a task dies.
//!
//! Invariants:
//! - A dispatcher that dies is begun anew at once; one that dies twice within a minute ends the process, because nothing else would
//!   serve its line.
//! - A registration that dies holds nothing afterwards: its slot counts as a call without an answer, and its place is finished or back
//!   in line. A later try waits, so that a fault which one device brings about costs a call a minute at most.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::Instrument as _;

use super::clock::Clocks;
use super::dispatcher::{Connection, Dispatcher};
use super::recovered_limits::keep_limit;
use super::register::Attempts;
use crate::base::task_names::{CLOCK, DISPATCHER, NOTES, POLL, REGISTRATION};
use crate::base::{Base, about};
use crate::device::Stage;
use crate::ids::{OperationId, RegistrationId};
use crate::line::lane::JobKind;
use crate::line::{Departure, Next};
use crate::place::Place;
use crate::records::Records;
use crate::supervise::{Deaths, Died, Task};
use rate_control::ledger::SlotId;

/// Before a device goes again whose registration died.
const AFTER_DEATH: Duration = Duration::from_secs(60);

/// What a registration under way holds in its line.
struct Held {
    id: RegistrationId,
    place: Place,
    slot: Option<SlotId>,
}

/// Serves lines. See the module.
#[derive(Debug, Clone)]
pub(super) struct Dispatch {
    base: Arc<Base>,
    records: Arc<Records>,
    clocks: Clocks,
    attempts: Attempts,
}

impl Dispatch {
    pub(super) const fn new(base: Arc<Base>, records: Arc<Records>, clocks: Clocks, attempts: Attempts) -> Self {
        Self { base, records, clocks, attempts }
    }

    /// Keeps knowing what an instance's clock reads, until the gateway stops or the instance is removed.
    pub(super) fn spawn_clock(&self, dispatcher: Arc<Dispatcher>) {
        let (task, clocks) = (Task::of(CLOCK, &dispatcher.name), self.clocks.clone());
        self.base.spawn_kept(task, move || clocks.clone().keep_time(Arc::clone(&dispatcher)));
    }

    /// Serves the line of an instance until the gateway stops or the instance is removed.
    pub(super) fn spawn_dispatcher(&self, dispatcher: Arc<Dispatcher>) {
        let serving = self.clone();
        self.base.spawn_watched(async move {
            let mut deaths = Deaths::default();
            loop {
                dispatcher.up.store(true, Ordering::Relaxed);
                let dispatching = serving.dispatch(&dispatcher);
                let ended = serving.base.supervisor.watch(Task::of(DISPATCHER, &dispatcher.name), dispatching).await;
                dispatcher.up.store(false, Ordering::Relaxed);
                if ended.is_ok() {
                    return;
                }
                if deaths.again_so_soon(serving.base.now().mono) {
                    let reason = format!(
                        "the dispatcher of instance {} panicked twice within a minute, so its line is not served; the process exits, and the next start continues from what is on disk",
                        dispatcher.name
                    );
                    tracing::error!(instance = %dispatcher.name, "{reason}");
                    return serving.base.supervisor.give_up(reason);
                }
                tracing::error!(instance = %dispatcher.name, "the dispatcher panicked and was restarted; its line is unchanged");
            }
        });
    }

    /// Serves the line of `dispatcher` until the gateway stops or the instance is removed.
    async fn dispatch(&self, dispatcher: &Arc<Dispatcher>) {
        loop {
            // Asked first: a departure that had to wait for its connection would leave later than its pace allows, along with others.
            let connection = tokio::select! {
                biased;
                () = self.base.stopping.cancelled() => return,
                () = dispatcher.removed.cancelled() => return,
                connection = dispatcher.connection() => connection,
            };
            let now = self.base.now();
            let knows_time = dispatcher.knows_time(now);
            let now = now.mono;
            // Before a turn is taken, so that those who go afterwards go at their pace.
            if !knows_time && dispatcher.line.lock().front_may_go(now) {
                tokio::select! {
                    biased;
                    () = self.base.stopping.cancelled() => return,
                    () = dispatcher.removed.cancelled() => return,
                    () = self.clocks.learn_time(dispatcher) => continue,
                }
            }
            let (next, limit_changed) = {
                let mut line = dispatcher.line.lock();
                (line.next(now), line.take_limit_changed())
            };
            if limit_changed {
                self.base.spawn(NOTES, keep_limit(Arc::clone(&self.base), Arc::clone(dispatcher)));
            }
            let wait = match next {
                Next::Depart(departure) => {
                    self.spawn_registration(Arc::clone(dispatcher), departure, connection);
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
                () = self.base.stopping.cancelled() => return,
                () = dispatcher.removed.cancelled() => return,
                () = dispatcher.bell.notified() => {}
                () = timer => {}
            }
        }
    }

    /// Sends a departure on its way.
    pub(super) fn spawn_registration(&self, dispatcher: Arc<Dispatcher>, departure: Departure, connection: Connection) {
        let serving = self.clone();
        let span = about::registration_span(&departure.id, &dispatcher.name);
        let carried_out = async move {
            let held = Held { id: departure.id.clone(), place: departure.place, slot: departure.slot };
            // Boxed, because it is large and is moved on the way.
            let work = Box::pin(serving.attempts.clone().carry_out(Arc::clone(&dispatcher), departure, connection));
            let task = Task::of(REGISTRATION, &dispatcher.name);
            if serving.base.supervisor.watch(task, work).await == Err(Died) {
                serving.settle_died(&dispatcher, held).await;
            }
        };
        self.base.spawn_watched(carried_out.instrument(span));
    }

    /// Goes on polling a registration that DPS works on.
    pub(super) fn spawn_poll(
        &self,
        dispatcher: Arc<Dispatcher>,
        id: RegistrationId,
        place: Place,
        operation_id: OperationId,
    ) {
        let serving = self.clone();
        let span = about::registration_span(&id, &dispatcher.name);
        let polled = async move {
            let held = Held { id: id.clone(), place, slot: None };
            let work = Box::pin(serving.attempts.clone().resume(Arc::clone(&dispatcher), id, place, operation_id));
            if serving.base.supervisor.watch(Task::of(POLL, &dispatcher.name), work).await == Err(Died) {
                serving.settle_died(&dispatcher, held).await;
            }
        };
        self.base.spawn_watched(polled.instrument(span));
    }

    /// A registration under way died: whether anything was sent is what its record says.
    async fn settle_died(&self, dispatcher: &Arc<Dispatcher>, held: Held) {
        let Held { id, place, slot } = held;
        tracing::error!(registration_id = %id, instance = %dispatcher.name, "the task of a registration panicked; the device keeps its place and is tried again in a minute");
        dispatcher.line.lock().deserted(place, slot, self.base.now().mono);
        self.attempts.land_deserted(dispatcher, &id, slot).await;
        let stage = match self.records.load(&id).await {
            Ok(found) => found
                .filter(|found| found.record.stands_at(&dispatcher.name, place))
                .and_then(|found| found.record.pending().map(|pending| pending.stage.clone())),
            // What cannot be read may have been sent.
            Err(_) => Some(Stage::Sent { time: self.base.now().wall, dps_time: None }),
        };
        let now = self.base.now().mono;
        match stage {
            None => dispatcher.line.lock().finish(place, false, now),
            Some(Stage::Assigning { operation_id, .. }) => {
                tokio::select! {
                    biased;
                    () = self.base.stopping.cancelled() => return,
                    () = tokio::time::sleep(AFTER_DEATH) => {}
                }
                self.spawn_poll(Arc::clone(dispatcher), id, place, operation_id);
            }
            Some(Stage::Waiting) => {
                dispatcher.line.lock().come_back(place, JobKind::Register, now.after(AFTER_DEATH), now);
            }
            Some(Stage::Sent { .. }) => {
                dispatcher.line.lock().come_back(place, JobKind::Lookup, now.after(AFTER_DEATH), now);
            }
        }
        dispatcher.bell.notify_one();
    }
}
