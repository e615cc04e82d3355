//! The gateway: one straight line from a device's question to its hub.
//!
//! authenticate → confirmed? answer from the store → place in inventory → durable place in that instance's line → ledger and
//! permit → durable *sent* → register → poll → durable assignment → answer.
//!
//! Invariants:
//! - Durable before told: a place before its 202, an assignment before its 200, a *sent* mark before its call.
//! - A device has at most one registration under way, because only its own place's departure may send one, and none that was sent from an
//!   earlier place may still be on its way.
//! - Locks are never held across an await. The decisions are in [`crate::line`], [`crate::placement`], [`crate::attestation`]
//!   and [`crate::upstream::verdict`]; here they are carried out.
//!
//! The parts: `provision` (devices), `backend` and `operator` (people and programs), `lists` (all devices,
//! in pages), `places` (lines follow records; another class), `outside` (no place), `relief` (instances that fail),
//! `dispatch` (one task per instance), `clock` (what time it is),
//! `register` (one registration, from departure to its end), `restore` (what an earlier process left), `tasks` (what runs, and what is
//! done when a task dies; `task_names`: what they are called), `about` (what log lines carry).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::device::{Draft, Effects, Record, Refusal, Rejected, Versioned};
use crate::feed::{Change, Feed};
use crate::ids::{DeviceId, InstanceName, RegistrationId, TenantName};
use crate::placement::Occupancy;
use crate::repeat::RepeatGuard;
use crate::settings::Settings;
use crate::store::watched::{Trouble, Watched};
use crate::store::{CommitError, Health, ReadError, Store, Versions, Write};
use crate::supervise::{Died, Supervisor, Task};
use crate::upstream::Connect;
use crate::waiters::Waiters;
use rate_control::entropy::Entropy;
use rate_control::time::{Clock, Now, StoredMoment};

pub mod about;
mod aliases;
pub mod backend;
mod clock;
pub mod dispatch;
pub mod lists;
pub mod operator;
mod outside;
mod places;
pub mod provision;
mod recovered_limits;
mod recovered_places;
mod register;
mod relief;
pub mod restore;
mod task_names;
mod tasks;
mod wait_explanation;

use aliases::Aliases;
use dispatch::Dispatcher;
use relief::Away;

/// How often a compare-and-set is tried anew before we call the store busy. Two writers of one device are rare, sixteen are a bug.
const CAS_ATTEMPTS_MAX: usize = 16;

/// What does not change while the gateway runs.
#[derive(Debug, Clone, Copy)]
pub struct Fixed {
    /// Open requests that may wait (`Prefer: wait`).
    pub parked_max: usize,
    /// Requests of one device that pass at once.
    pub repeat_burst: u32,
    /// One more passes per this time.
    pub repeat_interval: Duration,
}

/// The gateway. Cheap to share; see the module.
#[derive(Debug)]
pub struct Gateway {
    store: Arc<dyn Store>,
    /// The same store, to ask how it is.
    watched: Arc<Watched>,
    /// Of every commit.
    versions: Versions,
    clock: Arc<dyn Clock>,
    connect: Arc<dyn Connect>,
    settings: ArcSwap<Settings>,
    applying: tokio::sync::Mutex<()>,
    dispatchers: ArcSwap<BTreeMap<InstanceName, Arc<Dispatcher>>>,
    occupancy: Mutex<Occupancy>,
    aliases: RwLock<Aliases>,
    feed: Feed,
    waiters: Waiters,
    repeat: RepeatGuard,
    entropy: Mutex<Entropy>,
    /// Names the settings in force: refusals given under others are not believed.
    settings_mark: AtomicU64,
    /// Who sends, and since when: what is on its way by an earlier process is over some time after that.
    flights: register::Flights,
    /// Devices that wait at another instance because their own fails. Follows the records.
    away: Mutex<Away>,
    /// Device IDs whose assignment is being written.
    claims: Mutex<HashMap<(TenantName, DeviceId), RegistrationId>>,
    agreed_time: clock::Agreed,
    stopping: CancellationToken,
    tasks: TaskTracker,
    supervisor: Arc<Supervisor>,
    /// Devices of which DPS said something that could not be written before the stop.
    unwritten: AtomicU64,
    /// Where tasks run, whichever thread asks for them.
    runtime: tokio::runtime::Handle,
}

/// The store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// It could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It did not take a write.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A record was changed by others each time we tried.
    #[error("too many changes to this device's record at the same time")]
    Contended,
}

/// Why a record was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError<E> {
    /// There is no such record.
    #[error("unknown device")]
    Unknown,
    /// The edit itself refused; nothing was written.
    #[error("refused")]
    Refused(E),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a gateway leaves that has stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Registrations that DPS still works on.
    pub left_with_dps: usize,
    /// Devices of which DPS said something that could not be written. The next process asks DPS anew.
    pub unwritten: u64,
    /// Why the store took no writes at the end, if it did not.
    pub trouble: Option<Trouble>,
}

/// New settings that cannot be applied while the service runs. Nothing of them was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct NotApplicable(pub Vec<String>);

/// A command that does not fit the record any more is a lost race: whoever lost it decides anew.
const fn lost_race(_: Rejected) -> CommitError {
    CommitError::Conflict { index: 0 }
}

impl Gateway {
    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// Whether the store takes writes.
    #[must_use]
    pub fn store_health(&self) -> Health {
        self.store.health()
    }

    /// Commits that the store refused since the start.
    #[must_use]
    pub fn store_refused(&self) -> u64 {
        self.watched.refused()
    }

    /// Looks whether the store hangs, see [`Watched::look_for_standstill`]; why, if it does. It has failed for good then.
    #[must_use]
    pub fn look_for_store_standstill(&self, longest: Duration) -> Option<String> {
        self.watched.look_for_standstill(longest)
    }

    /// How long writes have waited for the store without any progress, as of the last look.
    #[must_use]
    pub fn store_in_vain(&self) -> Duration {
        self.watched.in_vain()
    }

    /// Open requests that wait now.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.waiters.len()
    }

    /// Sends nothing more, gives no new places, and answers those who wait. What is known is still answered.
    pub fn begin_stop(&self) {
        self.stopping.cancel();
        self.waiters.wake_all();
    }

    /// Ends what [`begin_stop`](Self::begin_stop) began: lets what is under way end for at most `drain`, and closes the store, after which
    /// nothing can be answered. Registrations that DPS still works on stay durable and are polled by the next process.
    pub async fn stop(&self, drain: Duration) -> Stopped {
        self.begin_stop();
        self.tasks.close();
        let _ = tokio::time::timeout(drain, self.tasks.wait()).await;
        self.watched.look();
        let stopped = Stopped {
            left_with_dps: self.tasks.len(),
            unwritten: self.unwritten.load(Ordering::Relaxed),
            trouble: self.watched.trouble(),
        };
        self.store.close().await;
        stopped
    }

    /// Whether [`begin_stop`](Self::begin_stop) was called.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// A token that is cancelled when the gateway stops; streams end with it.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    fn spread(&self, max: Duration) -> Duration {
        self.entropy.lock().up_to(max)
    }

    fn dispatcher(&self, instance: &InstanceName) -> Option<Arc<Dispatcher>> {
        self.dispatchers.load().get(instance).cloned()
    }

    fn settings_mark(&self) -> u64 {
        self.settings_mark.load(Ordering::Relaxed)
    }

    /// The refusal of a device, if it is still believed.
    fn refusal<'r>(&self, record: &'r Record, now: Now) -> Option<&'r Refusal> {
        record.refused(now).filter(|refusal| refusal.settings_mark == self.settings_mark())
    }

    async fn load(&self, id: &RegistrationId) -> Result<Option<Versioned>, ReadError> {
        let stored = self.store.get(&Record::key(id)).await?;
        stored.map(|stored| Record::decode(&stored)).transpose().map_err(|error| error.into_read_error(id.as_str()))
    }

    /// Begins to change a record that was read.
    fn draft(&self, stored: Versioned, now: Now) -> Draft {
        Draft::of(stored, now, self.settings.load().registration.timeline_max)
    }

    /// Begins a record that is not in the store.
    fn new_draft(&self, record: Record, now: Now) -> Draft {
        Draft::new(record, now, self.settings.load().registration.timeline_max)
    }

    /// Writes a changed record, together with `more` (written first) and the feed event of a changed assignment; then counts, aliases and
    /// lines follow the record.
    ///
    /// Cancel-safe: it goes on in a task of its own when its future is dropped.
    async fn commit(self: &Arc<Self>, draft: Draft, more: Vec<Write>) -> Result<(), CommitError> {
        let gateway = Arc::clone(self);
        self.to_the_end(async move { gateway.commit_here(&draft, more, None).await }).await
    }

    /// Runs a step that must not stop half way, whatever becomes of the request that began it.
    async fn to_the_end<T: Send + 'static>(
        &self,
        step: impl Future<Output = Result<T, CommitError>> + Send + 'static,
    ) -> Result<T, CommitError> {
        // Boxed, because it is large and each wrapper around it would hold it twice.
        let (supervisor, step) = (Arc::clone(&self.supervisor), Box::pin(step.in_current_span()));
        let step = async move { supervisor.watch(Task::new(task_names::COMMIT), step).await };
        match self.tasks.spawn_on(step, &self.runtime).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(Died)) => Err(CommitError::Failed("the task that was to write died".to_owned())),
            Err(error) => Err(CommitError::Failed(error.to_string())),
        }
    }

    /// `reserved` is an instance that placement has already counted for the record.
    async fn commit_here(
        &self,
        draft: &Draft,
        more: Vec<Write>,
        reserved: Option<&InstanceName>,
    ) -> Result<(), CommitError> {
        let announces = draft.effects().announces();
        let change = Change::of(draft.record(), StoredMoment::of(self.now())).filter(|_| announces);
        let ticket = change.as_ref().map(|_| self.feed.ticket());
        let mut writes = more;
        if let (Some(ticket), Some(change)) = (&ticket, &change) {
            writes.push(ticket.write(change));
        }
        writes.push(draft.write());
        if let Err(error) = self.store.commit(self.versions.commit(writes)).await {
            if let Some(instance) = reserved {
                self.occupancy.lock().remove(instance);
            }
            return Err(error);
        }
        self.follow(draft.effects(), reserved);
        if let Some(ticket) = ticket {
            ticket.committed();
        }
        self.waiters.wake(draft.record().registration_id());
        Ok(())
    }

    /// Counts, aliases and lines follow a record that was written.
    fn follow(&self, effects: &Effects, reserved: Option<&InstanceName>) {
        let before = effects.before.as_ref().map(|outline| &outline.footprint);
        let after = effects.after.as_ref().map(|outline| &outline.footprint);
        self.occupancy.lock().follow(before, after, reserved);
        self.aliases.write().follow(effects);
        self.away.lock().follow(effects);
        self.follow_in_lines(effects);
    }

    /// The registration of `tenant`, other than `id`, that has been given `device_id`.
    async fn holder(
        &self,
        tenant: &TenantName,
        device_id: &DeviceId,
        id: &RegistrationId,
    ) -> Result<Option<RegistrationId>, ReadError> {
        let namesake = RegistrationId::parse(device_id.as_str()).ok();
        let aliased: Vec<RegistrationId> = self.aliases.read().of(device_id.as_str()).cloned().collect();
        for other in aliased.into_iter().chain(namesake).filter(|other| other != id) {
            let Some(Versioned { record, .. }) = self.load(&other).await? else { continue };
            let held = record.assignment().is_some_and(|held| held.device_id == *device_id);
            if held && record.tenant() == tenant {
                return Ok(Some(other));
            }
        }
        Ok(None)
    }

    /// Changes an existing record by compare-and-set, at `now`, trying anew while others change it. `edit` may run several times.
    async fn change<T, E>(
        self: &Arc<Self>,
        id: &RegistrationId,
        now: Now,
        more: &[Write],
        mut edit: impl FnMut(&mut Draft) -> Result<T, E>,
    ) -> Result<(T, Record), ChangeError<E>> {
        for _ in 0..CAS_ATTEMPTS_MAX {
            let old = self.load(id).await.map_err(StoreError::from)?.ok_or(ChangeError::Unknown)?;
            let before = old.record.clone();
            let mut draft = self.draft(old, now);
            let value = edit(&mut draft).map_err(ChangeError::Refused)?;
            if *draft.record() == before && more.is_empty() {
                return Ok((value, before));
            }
            let record = draft.record().clone();
            match self.commit(draft, more.to_vec()).await {
                Ok(()) => return Ok((value, record)),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(StoreError::from(error).into()),
            }
        }
        Err(StoreError::Contended.into())
    }
}
