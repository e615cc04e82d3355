//! What every part of the gateway needs: the store, the time, the settings, chance, tasks that are looked after, the change feed, and the
//! requests that wait.
//!
//! Invariants:
//! - It knows no record, no line and nobody above it.
//! - Locks are never held across an await.
//!
//! The parts: `tasks` (starting them), `task_names`, `housekeeping` (what goes on as long as the gateway does), `agreed_time` (the time
//! that credentials go by), `about` (what log lines carry).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::device::{Record, Refusal, Sender};
use crate::feed::Feed;
use crate::ownership::Ownership;
use crate::place::Sequence;
use crate::settings::Settings;
use crate::store::watched::{Trouble, Watched};
use crate::store::{Commit, CommitError, Expect, Key, ReadError, Store, Table, Versions, Write};
use crate::supervise::Supervisor;
use crate::waiters::Waiters;
use rate_control::entropy::{Entropy, hash64};
use rate_control::failpoint::Failpoint;
use rate_control::ledger::SendId;
use rate_control::time::{Clock, Mono, Now};

pub mod about;
mod agreed_time;
mod housekeeping;
pub(crate) mod task_names;
mod tasks;

pub(crate) use agreed_time::{AgreedTime, OFF_MIN_MILLIS, Standing};

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

/// New settings that cannot be applied while the service runs. Nothing of them was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct NotApplicable(pub Vec<String>);

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The settings do not fit what is stored, or an instance's client cannot be made.
    #[error(transparent)]
    Settings(#[from] NotApplicable),
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

/// See the module.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) store: Arc<dyn Store>,
    /// The same store, to ask how it is.
    pub(crate) watched: Arc<Watched>,
    /// Of every commit.
    versions: Versions,
    /// The right to serve the lines.
    pub(crate) ownership: Ownership,
    /// Of the sends of this process.
    sends: AtomicU64,
    pub(crate) clock: Arc<dyn Clock>,
    settings: ArcSwap<Settings>,
    /// This process, as a sender of registrations.
    pub(crate) sender: Sender,
    /// From when on no earlier process sends.
    pub(crate) begun: Mono,
    /// Names the settings in force: refusals given under others are not believed.
    settings_mark: AtomicU64,
    pub(crate) entropy: Mutex<Entropy>,
    pub(crate) feed: Feed,
    pub(crate) waiters: Waiters,
    pub(crate) agreed_time: AgreedTime,
    pub(crate) stopping: CancellationToken,
    pub(crate) supervisor: Arc<Supervisor>,
    tasks: TaskTracker,
    /// Where tasks run, whichever thread asks for them.
    runtime: tokio::runtime::Handle,
    /// Devices of which DPS said something that could not be written before the stop.
    pub(crate) unwritten: AtomicU64,
}

impl Base {
    /// Looks at the store, and opens its change feed. At most `parked_max` open requests wait at once. Tasks run on the tokio runtime that
    /// this is called on.
    ///
    /// # Errors
    /// If the store can neither be read nor say that it takes no writes.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        settings: Settings,
        ownership: Ownership,
        parked_max: usize,
        mut entropy: Entropy,
    ) -> Result<Self, StoreError> {
        let watched = Arc::new(Watched::new(store, Arc::clone(&clock)));
        let store: Arc<dyn Store> = Arc::clone(&watched) as _;
        // Told from the start, not at the first commit.
        watched.look();
        let versions = Versions::new(entropy.fork());
        let epoch = feed_epoch(&*store, &versions, &mut entropy).await?;
        let feed = Feed::open(&*store, epoch).await?;
        let (settings_mark, begun) = (entropy.next_u64(), clock.now().mono);
        Ok(Self {
            store,
            watched,
            versions,
            ownership,
            sends: AtomicU64::new(0),
            clock,
            settings: ArcSwap::from_pointee(settings),
            sender: Sender(hash64(&settings_mark.to_be_bytes())),
            begun,
            settings_mark: AtomicU64::new(settings_mark),
            entropy: Mutex::new(entropy),
            feed,
            waiters: Waiters::new(parked_max),
            agreed_time: AgreedTime::default(),
            stopping: CancellationToken::new(),
            supervisor: Arc::default(),
            tasks: TaskTracker::new(),
            runtime: tokio::runtime::Handle::current(),
            unwritten: AtomicU64::new(0),
        })
    }

    /// Writes, under a version that was never used and as the owner of the lines.
    ///
    /// # Errors
    /// The store's; [`CommitError::Fenced`] if another gateway owns the lines.
    pub(crate) async fn commit(&self, writes: Vec<Write>) -> Result<Vec<Sequence>, CommitError> {
        let fence = self.ownership.fence().filter(|_| !Failpoint::NoFence.is_on()).cloned();
        let commit = Commit { fence, ..self.versions.commit(writes) };
        let committed = self.store.commit(commit).await;
        if matches!(committed, Err(CommitError::Fenced)) {
            self.ownership.depose();
        }
        committed
    }

    /// The same of one write that has to be right whoever owns the lines by now. Its expectation has to see to that.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn commit_deposed(&self, write: Write) -> Result<(), CommitError> {
        self.store.commit(self.versions.commit(vec![write])).await.map(|_| ())
    }

    /// Names the next send.
    pub(crate) fn next_send(&self) -> SendId {
        SendId { epoch: self.ownership.epoch(), number: self.sends.fetch_add(1, Ordering::Relaxed) }
    }

    /// The settings in force.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// The same, without a count of who holds them: for a look.
    pub(crate) fn look_at_settings(&self) -> arc_swap::Guard<Arc<Settings>> {
        self.settings.load()
    }

    /// Brings other settings into force.
    pub(crate) fn put_in_force(&self, settings: Arc<Settings>) {
        self.settings.store(settings);
    }

    /// The time.
    pub(crate) fn now(&self) -> Now {
        self.clock.now()
    }

    /// A duration by chance, of at most `max`.
    pub(crate) fn spread(&self, max: Duration) -> Duration {
        self.entropy.lock().up_to(max)
    }

    /// Names the settings in force.
    pub(crate) fn settings_mark(&self) -> u64 {
        self.settings_mark.load(Ordering::Relaxed)
    }

    /// Whoever applies settings, changed or not, may have mended what DPS refused devices for.
    pub(crate) fn forget_refusals(&self) {
        let mark = self.entropy.lock().next_u64();
        self.settings_mark.store(mark, Ordering::Relaxed);
    }

    /// The refusal of a device, if it is still believed.
    pub(crate) fn refusal<'r>(&self, record: &'r Record, now: Now) -> Option<&'r Refusal> {
        record.refused(now).filter(|refusal| refusal.settings_mark == self.settings_mark())
    }

    /// Nothing more is sent, and no place is given; whoever waits is answered.
    pub(crate) fn begin_stop(&self) {
        self.stopping.cancel();
        self.waiters.wake_all();
    }

    /// Whether the gateway is about to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Lets what is under way end for at most `drain`, and closes the store.
    pub(crate) async fn stop(&self, drain: Duration) -> Stopped {
        let stopped = self.end(drain).await;
        self.store.close().await;
        stopped
    }

    /// Lets what is under way end for at most `drain`.
    pub(crate) async fn end(&self, drain: Duration) -> Stopped {
        self.begin_stop();
        self.tasks.close();
        let _ = tokio::time::timeout(drain, self.tasks.wait()).await;
        self.watched.look();
        Stopped {
            left_with_dps: self.tasks.len(),
            unwritten: self.unwritten.load(Ordering::Relaxed),
            trouble: self.watched.trouble(),
        }
    }
}

/// Made once per store, so that event numbers of another store are told apart.
async fn feed_epoch(store: &dyn Store, versions: &Versions, entropy: &mut Entropy) -> Result<String, StoreError> {
    let key = Key::new(Table::Meta, "feed-epoch");
    if let Some(stored) = store.get(&key).await? {
        return Ok(String::from_utf8_lossy(&stored.value).into_owned());
    }
    let epoch = format!("{:016x}", entropy.next_u64());
    let write = Write::put(key, Expect::Absent, epoch.clone());
    match store.commit(versions.commit(vec![write])).await {
        Ok(_) => Ok(epoch),
        // A read-only store still serves what it has; numbers of this run are then valid for this run alone.
        Err(CommitError::ReadOnly(_)) => Ok(epoch),
        Err(error) => Err(error.into()),
    }
}
