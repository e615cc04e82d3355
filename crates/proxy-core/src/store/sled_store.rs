//! The embedded store: sled 0.34 behind the rules under which it can be trusted.
//!
//! Invariants:
//! - One thread decides ([`plan`]) and writes ([`writer`]); it syncs the data files itself before it acknowledges, because sled's flush does not.
//! - Reads never wait for a sync and never show what is not synced: a value is looked up in sled first and then in the
//!   overlay, which holds the durable value of every key that is being written. In this order no interleaving with the writer
//!   can show an unsynced value.
//! - Every value carries a checksum over key, version, place and payload: damage is reported, never served.
//! - No panic of sled leaves this module. At start it becomes an [`OpenError`], in a read a [`ReadError`], in a write the store
//!   becomes read-only for good.
//! - One sled tree holds all tables, so that a commit is within one `apply_batch`, which a crash cannot tear.
//!
//! Damage: a cleanly closed store is sealed with a checksum of its data, so any later change of it is refused at the next start.
//! After a kill there is no seal, and sled takes a damaged byte for the torn end of its log and silently drops an update, or all
//! that follow. Then the start reads all rows once and compares them with the [`digest`] that was committed with them, and the
//! digest with the file `head`, which counts the acknowledged batches: a row that was lost, rolled back or raised from the dead
//! is refused. By then sled has changed its files, so a refused store stays refused. Only after a write that failed (a full disk)
//! the rows are taken as they are, because sled keeps parts of the batch that it could not write.
//!
//! Not noticed: after the loss of power, damage that only takes back batches younger than the last `head` the kernel wrote down
//! by itself (half a minute by default); that bytes went missing together with the file `head`; damage to a running store until
//! a read meets it.
//!
//! A directory that was removed or replaced while it was in use is noticed by the first commit that begins ten milliseconds later, and at once by
//! whoever asks for the health: the store takes no writes from then on.
//!
//! A directory belongs to one process at a time. Backups are copies of the whole directory of a closed store.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use sled::{Db, IVec};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

use super::answer::{self, Outcome};
use super::lease;
use super::{
    Commit, CommitError, Health, Key, Lease, LeaseChange, LeaseError, ReadError, Row, Store, Stored, Table, validate,
};
use crate::ids::{InstanceName, LeaseName};
use crate::place::Sequence;
use disk::NotOurs;
use opening::Opened;
use plan::{Known, Work};
use writer::{Message, Pending, Writer};

mod codec;
mod digest;
mod disk;
mod opening;
mod plan;
mod reading;
#[cfg(test)]
mod tests;
mod writer;

/// Scans of more rows leave the thread that asks: a page may have to come from the disk, and others are served there.
const INLINE_ROWS: usize = 16;

/// Rows of a scan that are read before sled has to have written what that brought about: some ten nodes.
const SCAN_ROWS_MAX: usize = 128;

/// How long an observation of the free space holds.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);

/// The bounds of a [`SledStore`].
#[derive(Debug, Clone)]
pub struct SledOptions {
    /// Bytes sled may spend on its page cache; a cap, not a reservation. Real use may reach twice this.
    pub cache_capacity: u64,
    /// Commits that may wait for the writer, at least 1.
    pub inbox_max: usize,
    /// How long a commit waits for room in the inbox before it fails with [`CommitError::Busy`].
    pub inbox_wait: Duration,
    /// Commits that share one sync, at least 1.
    pub batch_max: usize,
    /// Free bytes on the file system below which no writes are taken. Sled cannot even be opened on a full disk.
    pub min_free_bytes: u64,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self {
            cache_capacity: 256 * 1024 * 1024,
            inbox_max: 8192,
            inbox_wait: Duration::from_secs(1),
            batch_max: 1024,
            min_free_bytes: 1024 * 1024 * 1024,
        }
    }
}

/// Why a store could not be opened. Each names the path and the way out.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another handle in this one, has it open.
    #[error("the store at {} is in use by another process: stop that one first, or choose another directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// What lies there is damaged, or is not a store of ours.
    #[error(
        "the store at {} is damaged: {detail}. Move the directory aside and restore the newest backup, or start with an empty \
         directory and let the devices register again", path.display()
    )]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What does not fit.
        detail: String,
    },
    /// A newer release wrote it.
    #[error(
        "the store at {} has schema {found}, and this release knows {known}: run the newer release, or move the directory aside \
         and restore a backup of this one", path.display()
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// The schema found.
        found: u32,
        /// The newest schema known.
        known: u32,
    },
    /// The file system refused.
    #[error("the store at {} cannot be opened: {source}. Check that the directory is writable and the disk is not full", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

/// Figures for metrics, since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SledStats {
    /// Commits applied.
    pub commits: u64,
    /// Batches written, each with one sync.
    pub batches: u64,
    /// Commits that wait for the writer now.
    pub queued: usize,
}

/// The embedded store, see the module. Dropping it does what [`Store::close`] does, and blocks meanwhile.
pub struct SledStore {
    shared: Arc<Shared>,
    inbox: mpsc::Sender<Message>,
    inbox_wait: Duration,
    finished: watch::Receiver<bool>,
    writer: Option<JoinHandle<()>>,
}

/// What readers and the writer share.
struct Shared {
    path: PathBuf,
    store_id: String,
    /// `None` once closed.
    db: RwLock<Option<Db>>,
    /// The durable value of every key that is being written.
    overlay: RwLock<BTreeMap<Vec<u8>, Option<IVec>>>,
    /// Why no write will ever be taken again.
    failure: Mutex<Option<String>>,
    closing: AtomicBool,
    space: Space,
    identity: disk::Identity,
    commits: AtomicU64,
    batches: AtomicU64,
    /// Grows as the writer gets on.
    steps: AtomicU64,
    #[cfg(test)]
    hooks: tests::Hooks,
}

/// The free-space watermark, observed at most once a second.
struct Space {
    min_free: AtomicU64,
    observed: Mutex<Observed>,
}

#[derive(Default)]
struct Observed {
    at: Option<Instant>,
    trouble: Option<String>,
}

impl Space {
    fn check(&self, path: &Path) -> Result<(), String> {
        let mut observed = self.observed.lock();
        if observed.at.is_none_or(|at| at.elapsed() >= SPACE_INTERVAL) {
            let trouble = self.observe(path);
            *observed = Observed { at: Some(Instant::now()), trouble };
        }
        observed.trouble.clone().map_or(Ok(()), Err)
    }

    fn observe(&self, path: &Path) -> Option<String> {
        let min_free = self.min_free.load(Ordering::Relaxed);
        match disk::free_bytes(path) {
            Ok(free) if free >= min_free => None,
            Ok(free) => Some(format!(
                "the file system of {} has {free} bytes free, less than {min_free}: make room, and writes resume by themselves",
                path.display()
            )),
            Err(error) => Some(format!("the free space of {} is unknown: {error}", path.display())),
        }
    }
}

impl Shared {
    fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// Nothing is written any more. The first cause stands; whoever watches the store's health tells it.
    fn fail(&self, why: &str) {
        let text = format!(
            "writing to {} failed ({why}); the store is read-only until the process is restarted",
            self.path.display()
        );
        self.failure.lock().get_or_insert(text);
    }

    /// Whether a batch may be written now.
    fn writable(&self) -> Result<(), String> {
        self.failure().map_or(Ok(()), Err)?;
        self.space.check(&self.path)
    }

    /// Whether the files that are open are the ones that the next start will find. If not, nothing is written any more.
    fn still_ours(&self) -> Result<(), String> {
        match self.identity.check() {
            Ok(()) => Ok(()),
            Err(NotOurs::Unclear(why)) => Err(why),
            Err(NotOurs::Replaced(why)) => {
                self.failure.lock().get_or_insert_with(|| why.clone());
                Err(why)
            }
        }
    }

    /// Whether a new commit may come in now.
    fn admits(&self) -> Result<(), String> {
        if self.closing.load(Ordering::Acquire) {
            return Err(format!("the store at {} is closed", self.path.display()));
        }
        self.writable()
    }

    fn overlay_fill(&self, durable: impl Iterator<Item = (Vec<u8>, Option<IVec>)>) {
        let mut overlay = self.overlay.write();
        for (key, value) in durable {
            overlay.entry(key).or_insert(value);
        }
    }

    fn overlay_clear(&self) {
        // Freed after the lock is.
        let _cleared = std::mem::take(&mut *self.overlay.write());
    }

    /// The writer has got on.
    fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    fn count_batch(&self, commits: usize) {
        if commits > 0 {
            self.batches.fetch_add(1, Ordering::Relaxed);
            self.commits.fetch_add(u64::try_from(commits).unwrap_or(0), Ordering::Relaxed);
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no message").to_owned()
}

impl SledStore {
    /// Whether there is a store in the directory `path`, sound or not. Opens and locks nothing.
    #[must_use]
    pub fn is_at(path: &Path) -> bool {
        disk::has_data(path) || !matches!(disk::marked_id(path), Ok(None))
    }

    /// Opens the store in the directory `path`, or creates it. Blocks: for a large store, seconds.
    ///
    /// Where the free space is below the watermark the store opens read-only; it recovers by itself.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]. A store that is in use is not touched. One that is refused for another reason stays so, even though sled
    /// may have cut off what it takes for a torn end.
    #[allow(clippy::needless_pass_by_value, reason = "options are built for one store, and may come to own something")]
    pub fn open(path: &Path, options: SledOptions) -> Result<Self, OpenError> {
        let Opened { lock, db, files, head, digest, store_id } = opening::open(path, options.cache_capacity)?;
        let identity = disk::Identity::of(path, &lock, &files)
            .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            store_id,
            db: RwLock::new(Some(db)),
            overlay: RwLock::default(),
            failure: Mutex::default(),
            closing: AtomicBool::new(false),
            space: Space { min_free: AtomicU64::new(options.min_free_bytes), observed: Mutex::default() },
            identity,
            commits: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            #[cfg(test)]
            hooks: tests::Hooks::default(),
        });
        let (inbox, outbox) = mpsc::channel(options.inbox_max.max(1));
        let (finished_sender, finished) = watch::channel(false);
        let writer = Writer {
            shared: Arc::clone(&shared),
            inbox: outbox,
            batch_max: options.batch_max.max(1),
            files,
            head,
            digest,
            known: Known::default(),
            lock,
            finished: finished_sender,
            names_seen: None,
        };
        let thread = std::thread::Builder::new().name("store-writer".into()).spawn(move || writer.run());
        let thread = thread.map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        Ok(Self { shared, inbox, inbox_wait: options.inbox_wait, finished, writer: Some(thread) })
    }

    /// The random name, 32 hexadecimal digits, this store got when it was created.
    #[must_use]
    pub fn store_id(&self) -> &str {
        &self.shared.store_id
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Figures for metrics; cheap.
    #[must_use]
    pub fn stats(&self) -> SledStats {
        SledStats {
            commits: self.shared.commits.load(Ordering::Relaxed),
            batches: self.shared.batches.load(Ordering::Relaxed),
            queued: self.inbox.max_capacity().saturating_sub(self.inbox.capacity()),
        }
    }

    /// Moves the free-space watermark, in bytes; it holds from the next commit on.
    pub fn set_min_free_bytes(&self, bytes: u64) {
        self.shared.space.min_free.store(bytes, Ordering::Relaxed);
        self.shared.space.observed.lock().at = None;
    }

    async fn submit(&self, work: Work) -> Outcome {
        // A line is raised also where nothing can be written now.
        let admitted = if matches!(work, Work::Raise { .. }) { Ok(()) } else { self.shared.admits() };
        admitted.map_err(CommitError::ReadOnly)?;
        let (reply, outcome) = oneshot::channel();
        let message = Message::Work(Pending { work, reply });
        if let Err(refused) = self.inbox.try_send(message) {
            let TrySendError::Full(message) = refused else { return Err(self.closed()) };
            match tokio::time::timeout(self.inbox_wait, self.inbox.reserve()).await {
                Ok(Ok(room)) => room.send(message),
                Ok(Err(_)) => return Err(self.closed()),
                Err(_) => return Err(CommitError::Busy),
            }
        }
        outcome.await.unwrap_or_else(|_| Err(CommitError::Failed("the writer stopped before it answered".into())))
    }

    fn closed(&self) -> CommitError {
        let why =
            self.shared.failure().unwrap_or_else(|| format!("the store at {} is closed", self.shared.path.display()));
        CommitError::ReadOnly(why)
    }
}

impl fmt::Debug for SledStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledStore")
            .field("path", &self.shared.path)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Store for SledStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, ReadError>> {
        async move { self.shared.get(key) }.boxed()
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Vec<Sequence>, CommitError>> {
        async move {
            validate(&commit.writes)?;
            answer::of_commit(self.submit(Work::Commit(commit)).await)
        }
        .boxed()
    }

    fn lease<'a>(&'a self, name: &'a LeaseName) -> BoxFuture<'a, Result<Option<Lease>, ReadError>> {
        async move {
            let row = self.shared.get(&Key::new(Table::Meta, lease::row_name(name)))?;
            let lease = row.map(|stored| lease::decode(&stored.value)).transpose();
            lease.map_err(|detail| ReadError::Corrupt { table: Table::Meta, detail })
        }
        .boxed()
    }

    fn change_lease<'a>(
        &'a self,
        name: &'a LeaseName,
        change: LeaseChange,
    ) -> BoxFuture<'a, Result<Lease, LeaseError>> {
        async move {
            change.validate()?;
            answer::of_lease(self.submit(Work::Lease { name: name.clone(), change }).await)
        }
        .boxed()
    }

    /// The lock on the directory is held.
    fn is_exclusive(&self) -> bool {
        true
    }

    fn raise_sequence<'a>(&'a self, line: &'a InstanceName, next: Sequence) -> BoxFuture<'a, Result<(), CommitError>> {
        async move { self.submit(Work::Raise { line: line.clone(), next }).await.map(|_| ()) }.boxed()
    }

    fn scan<'a>(
        &'a self,
        table: Table,
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Row>, ReadError>> {
        async move {
            if limit <= INLINE_ROWS {
                return self.shared.scan(table, after, limit);
            }
            let Ok(runtime) = tokio::runtime::Handle::try_current() else {
                return self.shared.scan(table, after, limit);
            };
            let (shared, after) = (Arc::clone(&self.shared), after.map(<[u8]>::to_vec));
            let scan = runtime.spawn_blocking(move || shared.scan(table, after.as_deref(), limit));
            scan.await.unwrap_or_else(|error| Err(ReadError::Unavailable(error.to_string())))
        }
        .boxed()
    }

    fn last(&self, table: Table) -> BoxFuture<'_, Result<Option<Row>, ReadError>> {
        async move { self.shared.last(table) }.boxed()
    }

    fn health(&self) -> Health {
        let admitted = self.shared.admits().and_then(|()| self.shared.still_ours());
        match (admitted, self.shared.failure()) {
            (Ok(()), _) => Health::Writable,
            (Err(_), Some(why)) => Health::Failed(why),
            (Err(why), None) => Health::ReadOnly(why),
        }
    }

    fn steps(&self) -> u64 {
        self.shared.steps.load(Ordering::Relaxed)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.shared.closing.store(true, Ordering::Release);
            // Queues behind what was taken; an error means that the writer is closing already.
            let _ = self.inbox.send(Message::Close).await;
            // An error means that the writer is gone.
            let _ = self.finished.clone().wait_for(|finished| *finished).await;
        }
        .boxed()
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        // The writer drains and stops when the last sender is gone.
        drop(std::mem::replace(&mut self.inbox, mpsc::channel(1).0));
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}
