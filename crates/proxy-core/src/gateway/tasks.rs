//! The gateway's tasks, each looked after by the supervisor: what is done when one dies.
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

use super::dispatch::{Connection, Dispatcher};
use super::task_names::{CLOCK, DISPATCHER, POLL, REGISTRATION};
use super::{Gateway, about};
use crate::device::Stage;
use crate::ids::{OperationId, RegistrationId};
use crate::line::Departure;
use crate::line::lane::JobKind;
use crate::place::Place;
use crate::supervise::{Deaths, Died, Supervisor, Task};
use rate_control::ledger::SlotId;

/// Before a device goes again whose registration died.
const AFTER_DEATH: Duration = Duration::from_secs(60);

/// What a registration under way holds in its line.
struct Held {
    id: RegistrationId,
    place: Place,
    slot: Option<SlotId>,
}

impl Gateway {
    /// Who looks after the tasks.
    #[must_use]
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// Runs a task that need not be begun anew if it dies: what it does is tried again by others.
    pub(super) fn spawn(self: &Arc<Self>, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let gateway = Arc::clone(self);
        self.spawn_watched(async move {
            if gateway.supervisor.watch(Task::new(name), work).await == Err(Died) {
                tracing::error!(task = name, "a task panicked; what it left undone is retried by other tasks");
            }
        });
    }

    /// Runs a task for as long as the gateway does.
    pub(super) fn spawn_kept<F>(self: &Arc<Self>, task: Task, begin: impl Fn(Arc<Self>) -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let gateway = Arc::clone(self);
        self.spawn_watched(async move {
            let kept = gateway.supervisor.keep(task, || gateway.now().mono, || begin(Arc::clone(&gateway)));
            tokio::select! {
                biased;
                () = kept => {}
                // It ends by itself then, unless it just waits to be begun anew.
                () = gateway.stopping.cancelled() => {}
            }
        });
    }

    /// Keeps knowing what an instance's clock reads, until the gateway stops or the instance is removed.
    pub(super) fn spawn_clock(self: &Arc<Self>, dispatcher: Arc<Dispatcher>) {
        let task = Task::of(CLOCK, &dispatcher.name);
        self.spawn_kept(task, move |gateway| gateway.keep_time(Arc::clone(&dispatcher)));
    }

    /// `work` has to be looked after already.
    fn spawn_watched(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.tasks.spawn_on(work, &self.runtime));
    }

    /// Serves the line of an instance until the gateway stops or the instance is removed.
    pub(super) fn spawn_dispatcher(self: &Arc<Self>, dispatcher: Arc<Dispatcher>) {
        let gateway = Arc::clone(self);
        self.spawn_watched(async move {
            let mut deaths = Deaths::default();
            loop {
                dispatcher.up.store(true, Ordering::Relaxed);
                let serving = Arc::clone(&gateway).dispatch(Arc::clone(&dispatcher));
                let ended = gateway.supervisor.watch(Task::of(DISPATCHER, &dispatcher.name), serving).await;
                dispatcher.up.store(false, Ordering::Relaxed);
                if ended.is_ok() {
                    return;
                }
                if deaths.again_so_soon(gateway.now().mono) {
                    let reason = format!(
                        "the dispatcher of instance {} panicked twice within a minute, so its line is not served; the process exits, and the next start continues from what is on disk",
                        dispatcher.name
                    );
                    tracing::error!(instance = %dispatcher.name, "{reason}");
                    return gateway.supervisor.give_up(reason);
                }
                tracing::error!(instance = %dispatcher.name, "the dispatcher panicked and was restarted; its line is unchanged");
            }
        });
    }

    /// Sends a departure on its way.
    pub(super) fn spawn_registration(
        self: &Arc<Self>,
        dispatcher: Arc<Dispatcher>,
        departure: Departure,
        connection: Connection,
    ) {
        let gateway = Arc::clone(self);
        let span = about::registration_span(&departure.id, &dispatcher.name);
        let carried_out = async move {
            let held = Held { id: departure.id.clone(), place: departure.place, slot: departure.slot };
            // Boxed, because it is large and is moved on the way.
            let work = Box::pin(Arc::clone(&gateway).carry_out(Arc::clone(&dispatcher), departure, connection));
            let task = Task::of(REGISTRATION, &dispatcher.name);
            if gateway.supervisor.watch(task, work).await == Err(Died) {
                gateway.settle_died(&dispatcher, held).await;
            }
        };
        self.spawn_watched(carried_out.instrument(span));
    }

    /// Goes on polling a registration that DPS works on.
    pub(super) fn spawn_poll(
        self: &Arc<Self>,
        dispatcher: Arc<Dispatcher>,
        id: RegistrationId,
        place: Place,
        operation_id: OperationId,
    ) {
        let gateway = Arc::clone(self);
        let span = about::registration_span(&id, &dispatcher.name);
        let polled = async move {
            let held = Held { id: id.clone(), place, slot: None };
            let work = Box::pin(Arc::clone(&gateway).resume(Arc::clone(&dispatcher), id, place, operation_id));
            if gateway.supervisor.watch(Task::of(POLL, &dispatcher.name), work).await == Err(Died) {
                gateway.settle_died(&dispatcher, held).await;
            }
        };
        self.spawn_watched(polled.instrument(span));
    }

    /// A registration under way died: whether anything was sent is what its record says.
    async fn settle_died(self: &Arc<Self>, dispatcher: &Arc<Dispatcher>, held: Held) {
        let Held { id, place, slot } = held;
        tracing::error!(registration_id = %id, instance = %dispatcher.name, "the task of a registration panicked; the device keeps its place and is tried again in a minute");
        dispatcher.line.lock().deserted(place, slot, self.now().mono);
        self.land_deserted(dispatcher, &id, slot).await;
        let stage = match self.load(&id).await {
            Ok(found) => found
                .filter(|found| found.record.stands_at(&dispatcher.name, place))
                .and_then(|found| found.record.pending().map(|pending| pending.stage.clone())),
            // What cannot be read may have been sent.
            Err(_) => Some(Stage::Sent { time: self.now().wall, dps_time: None }),
        };
        let now = self.now().mono;
        match stage {
            None => dispatcher.line.lock().finish(place, false, now),
            Some(Stage::Assigning { operation_id, .. }) => {
                tokio::select! {
                    biased;
                    () = self.stopping.cancelled() => return,
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
