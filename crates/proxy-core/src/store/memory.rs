//! The memory double: the contract of a durable store without a disk, a thread or a clock, so that a run replays exactly.
//!
//! Invariants:
//! - Two layers. What was committed since the last [`MemoryStore::sync`] is volatile: expectations are checked against it,
//!   but no read shows it and no commit of it is acknowledged. Unless acknowledgements are held, every commit syncs at once.
//! - A crash takes the volatile layer and nothing else. The crashed store is dead: whoever still holds it can neither read nor
//!   write, as a process that was killed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Bound;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{CommitError, Expect, Health, Key, ReadError, Row, Store, Stored, Table, Version, Write, validate};

/// A way for the next commit to fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The inbox stayed full: nothing applied.
    Busy,
    /// The store takes no writes: nothing applied. Only this commit is refused; see [`MemoryStore::set_health`] for a lasting state.
    ReadOnly(String),
    /// The backend failed while it wrote. The store is read-only from here on, and only a crash ([`MemoryStore::crash`]) tells
    /// whether the commit was applied.
    Failed {
        /// Whether the commit, and every unsynced one before it, is found after the crash.
        applied: bool,
    },
}

/// A store in memory, see the module. Share it in an `Arc`.
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    durable: Layer<Stored>,
    /// What a crash may take: `None` is a deletion.
    volatile: Layer<Option<Stored>>,
    waiting: Vec<Waiting>,
    failures: VecDeque<Failure>,
    trouble: Option<Health>,
    hold: bool,
    /// Whether the volatile layer is found after a crash although it was never acknowledged.
    volatile_survives: bool,
    state: State,
    commits: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    Closed,
    Crashed,
}

struct Waiting {
    outcome: Result<Vec<Version>, CommitError>,
    reply: oneshot::Sender<Result<Vec<Version>, CommitError>>,
}

/// One ordered map per table, so that a lookup needs no owned key.
struct Layer<T>([BTreeMap<Vec<u8>, T>; 4]);

impl<T> Default for Layer<T> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| BTreeMap::new()))
    }
}

impl<T> Layer<T> {
    fn of(&self, table: Table) -> &BTreeMap<Vec<u8>, T> {
        &self.0[index(table)]
    }

    fn of_mut(&mut self, table: Table) -> &mut BTreeMap<Vec<u8>, T> {
        &mut self.0[index(table)]
    }
}

const fn index(table: Table) -> usize {
    match table {
        Table::Meta => 0,
        Table::Device => 1,
        Table::Ledger => 2,
        Table::Feed => 3,
    }
}

impl Inner {
    fn version(&self, key: &Key) -> Version {
        match self.volatile.of(key.table).get(&key.name) {
            Some(changed) => changed.as_ref().map_or(0, |stored| stored.version),
            None => self.durable.of(key.table).get(&key.name).map_or(0, |stored| stored.version),
        }
    }

    fn readable(&self) -> Result<(), ReadError> {
        match self.state {
            State::Open => Ok(()),
            State::Closed => Err(ReadError::Unavailable("it is closed".into())),
            State::Crashed => Err(ReadError::Unavailable("it crashed".into())),
        }
    }

    fn writable(&self) -> Result<(), CommitError> {
        match self.state {
            State::Open => {}
            State::Closed => return Err(CommitError::ReadOnly("it is closed".into())),
            State::Crashed => return Err(CommitError::Failed("it crashed".into())),
        }
        match &self.trouble {
            Some(Health::ReadOnly(why) | Health::Failed(why)) => Err(CommitError::ReadOnly(why.clone())),
            Some(Health::Writable) | None => Ok(()),
        }
    }

    /// The versions the writes would leave, if every expectation holds.
    fn check(&self, writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        let mut left: BTreeMap<&Key, Version> = BTreeMap::new();
        let mut versions = Vec::with_capacity(writes.len());
        for (index, write) in writes.iter().enumerate() {
            let current = left.get(&write.key).copied().unwrap_or_else(|| self.version(&write.key));
            let holds = match write.expect {
                Expect::Absent => current == 0,
                Expect::Version(version) => version != 0 && current == version,
                Expect::Any => true,
            };
            if !holds {
                return Err(CommitError::Conflict { index });
            }
            let next = if write.value.is_some() { current + 1 } else { 0 };
            left.insert(&write.key, next);
            versions.push(next);
        }
        Ok(versions)
    }

    fn apply(&mut self, writes: Vec<Write>, versions: &[Version]) {
        self.commits += 1;
        for (write, version) in writes.into_iter().zip(versions) {
            let stored = write.value.map(|value| Stored { version: *version, value });
            self.volatile.of_mut(write.key.table).insert(write.key.name, stored);
        }
    }

    fn make_durable(&mut self) {
        for table in [Table::Meta, Table::Device, Table::Ledger, Table::Feed] {
            let durable = self.durable.of_mut(table);
            for (name, changed) in std::mem::take(self.volatile.of_mut(table)) {
                match changed {
                    Some(stored) => durable.insert(name, stored),
                    None => durable.remove(&name),
                };
            }
        }
    }

    fn sync(&mut self) {
        self.make_durable();
        for waiting in self.waiting.drain(..) {
            // Nobody listens when the commit's future was dropped: it is durable all the same.
            let _ = waiting.reply.send(waiting.outcome);
        }
    }

    fn submit(&mut self, writes: Vec<Write>) -> Submitted {
        match self.try_submit(writes) {
            Ok(submitted) => submitted,
            Err(error) => Submitted::Done(Err(error)),
        }
    }

    fn try_submit(&mut self, writes: Vec<Write>) -> Result<Submitted, CommitError> {
        validate(&writes)?;
        self.writable()?;
        let failure = self.failures.pop_front();
        match failure {
            Some(Failure::Busy) => return Err(CommitError::Busy),
            Some(Failure::ReadOnly(why)) => return Err(CommitError::ReadOnly(why)),
            Some(Failure::Failed { .. }) | None => {}
        }
        let versions = match self.check(&writes) {
            Ok(versions) => versions,
            Err(lost) if self.hold => return Ok(self.wait(Err(lost))),
            Err(lost) => return Err(lost),
        };
        if let Some(Failure::Failed { applied }) = failure {
            self.trouble = Some(Health::Failed("it failed while writing: open it again".into()));
            if applied {
                self.volatile_survives = true;
                self.apply(writes, &versions);
            }
            // Whatever was not acknowledged never will be: the writer is gone.
            for waiting in self.waiting.drain(..) {
                let _ = waiting.reply.send(Err(CommitError::Failed("simulated".into())));
            }
            return Err(CommitError::Failed("simulated".into()));
        }
        self.apply(writes, &versions);
        if !self.hold {
            self.sync();
            return Ok(Submitted::Done(Ok(versions)));
        }
        Ok(self.wait(Ok(versions)))
    }

    /// The outcome is told at the next sync. That holds for a conflict too: what it lost to cannot be read before.
    fn wait(&mut self, outcome: Result<Vec<Version>, CommitError>) -> Submitted {
        let (reply, told) = oneshot::channel();
        self.waiting.push(Waiting { outcome, reply });
        Submitted::Waiting(told)
    }

    fn scan(&self, table: Table, after: Option<&[u8]>, limit: usize) -> Vec<Row> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.durable.of(table).range::<[u8], _>((from, Bound::Unbounded));
        rows.take(limit).map(|(name, stored)| row(name, stored)).collect()
    }
}

fn row(name: &[u8], stored: &Stored) -> Row {
    Row { name: name.to_vec(), stored: stored.clone() }
}

enum Submitted {
    Done(Result<Vec<Version>, CommitError>),
    Waiting(oneshot::Receiver<Result<Vec<Version>, CommitError>>),
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store that makes every commit durable at once.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: Mutex::new(Inner::default()) }
    }

    /// Holds every later commit back from being durable until [`MemoryStore::sync`], or, given `false`, syncs now and lets commits
    /// through again.
    pub fn hold_acks(&self, hold: bool) {
        let mut inner = self.inner.lock();
        inner.hold = hold;
        if !hold && inner.state == State::Open && inner.trouble.is_none() {
            inner.sync();
        }
    }

    /// Makes what was committed so far durable and acknowledges it, in order. Nothing happens on a store that failed.
    pub fn sync(&self) {
        let mut inner = self.inner.lock();
        if inner.state == State::Open && !inner.volatile_survives {
            inner.sync();
        }
    }

    /// How many commits wait for [`MemoryStore::sync`].
    #[must_use]
    pub fn held(&self) -> usize {
        self.inner.lock().waiting.len()
    }

    /// How many commits were applied since this store was made or reopened; for tests that bound the cost of something.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.inner.lock().commits
    }

    /// How many durable rows `table` holds.
    #[must_use]
    pub fn rows(&self, table: Table) -> usize {
        self.inner.lock().durable.of(table).len()
    }

    /// Kills the store, as `kill -9` or a loss of power would, and opens what the disk holds: exactly what was synced. Commits in
    /// flight get [`CommitError::Failed`]; so does every later one on the old handle. After [`Store::close`] this is a reopening.
    #[must_use = "the returned store is the one that survives"]
    pub fn crash(&self) -> Self {
        let mut inner = self.inner.lock();
        if inner.volatile_survives {
            inner.make_durable();
        }
        let durable = std::mem::take(&mut inner.durable);
        // Dropping the senders is what the waiting commits notice.
        *inner = Inner { state: State::Crashed, ..Inner::default() };
        Self { inner: Mutex::new(Inner { durable, ..Inner::default() }) }
    }

    /// Lets the next commit that passes the bounds fail; called again, the one after that.
    pub fn fail_next_commit(&self, failure: Failure) {
        self.inner.lock().failures.push_back(failure);
    }

    /// Makes the store read-only, or writable again.
    pub fn set_health(&self, health: Health) {
        self.inner.lock().trouble = Some(health).filter(|health| *health != Health::Writable);
    }

    /// Puts a durable row in place past every check; for tests that start from a given state.
    pub fn seed(&self, key: Key, value: impl Into<Bytes>) {
        let mut inner = self.inner.lock();
        let version = inner.version(&key) + 1;
        inner.durable.of_mut(key.table).insert(key.name, Stored { version, value: value.into() });
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.lock();
        f.debug_struct("MemoryStore")
            .field("state", &inner.state)
            .field("held", &inner.waiting.len())
            .finish_non_exhaustive()
    }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, ReadError>> {
        async move {
            let inner = self.inner.lock();
            inner.readable()?;
            Ok(inner.durable.of(key.table).get(&key.name).cloned())
        }
        .boxed()
    }

    fn commit(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<Vec<Version>, CommitError>> {
        async move {
            let submitted = self.inner.lock().submit(writes);
            match submitted {
                Submitted::Done(outcome) => outcome,
                Submitted::Waiting(outcome) => {
                    outcome.await.unwrap_or_else(|_| Err(CommitError::Failed("it crashed".into())))
                }
            }
        }
        .boxed()
    }

    fn scan<'a>(
        &'a self,
        table: Table,
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Row>, ReadError>> {
        async move {
            let inner = self.inner.lock();
            inner.readable()?;
            Ok(inner.scan(table, after, limit))
        }
        .boxed()
    }

    fn last(&self, table: Table) -> BoxFuture<'_, Result<Option<Row>, ReadError>> {
        async move {
            let inner = self.inner.lock();
            inner.readable()?;
            Ok(inner.durable.of(table).last_key_value().map(|(name, stored)| row(name, stored)))
        }
        .boxed()
    }

    fn health(&self) -> Health {
        let inner = self.inner.lock();
        match inner.writable() {
            Ok(()) => Health::Writable,
            Err(CommitError::ReadOnly(why)) => inner.trouble.clone().unwrap_or(Health::ReadOnly(why)),
            Err(other) => Health::Failed(other.to_string()),
        }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            let mut inner = self.inner.lock();
            if inner.state == State::Open {
                if !inner.volatile_survives {
                    inner.sync();
                }
                inner.state = State::Closed;
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::poll;

    use super::*;
    use crate::store::conformance::{Fixture, conformance, device, put};

    fn fixture() -> Fixture {
        let store = Arc::new(MemoryStore::new());
        let gate = Arc::clone(&store);
        Fixture { store, hold: Box::new(move |hold| gate.hold_acks(hold)), _keep: Box::new(()) }
    }

    conformance!(fixture());

    #[tokio::test]
    async fn a_crash_keeps_what_was_synced_and_nothing_else() {
        let store = MemoryStore::new();
        store.commit(vec![put(device("a"), Expect::Absent, "kept")]).await.unwrap();
        store.hold_acks(true);
        let mut synced = store.commit(vec![put(device("b"), Expect::Absent, "kept")]);
        assert!(poll!(&mut synced).is_pending());
        store.sync();
        synced.await.unwrap();
        let mut lost = store.commit(vec![put(device("a"), Expect::Version(1), "lost")]);
        assert!(poll!(&mut lost).is_pending());
        assert_eq!(store.held(), 1);
        let survivor = store.crash();
        assert!(matches!(lost.await, Err(CommitError::Failed(_))));
        assert!(matches!(store.commit(Vec::new()).await, Err(CommitError::Failed(_))), "the killed cannot write");
        assert!(store.get(&device("a")).await.is_err());
        assert_eq!(survivor.rows(Table::Device), 2);
        assert_eq!(survivor.get(&device("a")).await.unwrap().unwrap().value, "kept");
        assert_eq!(survivor.commit(vec![put(device("a"), Expect::Version(1), "next")]).await.unwrap(), [2]);
    }

    #[tokio::test]
    async fn an_injected_failure_is_the_next_commits_alone() {
        let store = MemoryStore::new();
        let commit = || store.commit(vec![put(device("a"), Expect::Any, "x")]);
        store.fail_next_commit(Failure::Busy);
        store.fail_next_commit(Failure::ReadOnly("full".into()));
        assert!(matches!(commit().await, Err(CommitError::Busy)));
        assert!(matches!(commit().await, Err(CommitError::ReadOnly(_))));
        assert_eq!(commit().await.unwrap(), [1]);
        store.set_health(Health::ReadOnly("full".into()));
        assert!(matches!(commit().await, Err(CommitError::ReadOnly(_))));
        store.set_health(Health::Writable);
        assert_eq!(commit().await.unwrap(), [2]);
    }

    #[tokio::test]
    async fn only_a_crash_tells_what_a_failed_commit_did() {
        for applied in [false, true] {
            let store = MemoryStore::new();
            store.fail_next_commit(Failure::Failed { applied });
            assert!(matches!(
                store.commit(vec![put(device("a"), Expect::Absent, "x")]).await,
                Err(CommitError::Failed(_))
            ));
            assert_eq!(store.get(&device("a")).await.unwrap(), None);
            assert!(matches!(store.health(), Health::Failed(_)));
            let survivor = store.crash();
            assert_eq!(survivor.get(&device("a")).await.unwrap().is_some(), applied);
            assert_eq!(survivor.health(), Health::Writable);
        }
    }
}
