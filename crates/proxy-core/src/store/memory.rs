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

use super::numbers::{self, Given, Numbers};
use super::{
    Change, Commit, CommitError, Health, Key, Placing, ReadError, Row, Store, Stored, Table, Version, Write, validate,
};
use crate::ids::InstanceName;
use crate::place::{Place, Sequence};

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
    numbers: Numbers,
    /// Rows that were planted past every commit.
    planted: u64,
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

/// The numbers that a commit was given.
type Outcome = Result<Vec<Sequence>, CommitError>;

struct Waiting {
    outcome: Outcome,
    reply: oneshot::Sender<Outcome>,
}

/// One ordered map per table, so that a lookup needs no owned key.
struct Layer<T>([BTreeMap<Vec<u8>, T>; Table::ALL.len()]);

impl<T> Default for Layer<T> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| BTreeMap::new()))
    }
}

impl<T> Layer<T> {
    fn of(&self, table: Table) -> &BTreeMap<Vec<u8>, T> {
        &self.0[table as usize]
    }

    fn of_mut(&mut self, table: Table) -> &mut BTreeMap<Vec<u8>, T> {
        &mut self.0[table as usize]
    }
}

impl Inner {
    /// What the next commit finds under `key`, durable or not.
    fn current(&self, key: &Key) -> Option<&Stored> {
        match self.volatile.of(key.table).get(&key.name) {
            Some(changed) => changed.as_ref(),
            None => self.durable.of(key.table).get(&key.name),
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

    fn check(&self, writes: &[Write]) -> Result<(), CommitError> {
        let holds = |write: &Write| write.expect.holds(self.current(&write.key).map(|stored| stored.version));
        writes.iter().position(|write| !holds(write)).map_or(Ok(()), |index| Err(CommitError::Conflict { index }))
    }

    /// Applies a commit that was checked.
    fn apply(&mut self, Commit { version, writes }: Commit) -> Vec<Sequence> {
        self.commits += 1;
        let mut given = Vec::new();
        for Write { key, change, .. } in writes {
            let stored = match change {
                Change::Keep => continue,
                Change::Delete => None,
                Change::Put { value, placing } => {
                    let place = match placing {
                        Placing::Nowhere => None,
                        Placing::At { place, .. } => Some(place),
                        Placing::Join { line, class } => {
                            let sequence = self.give(&line, version);
                            given.push(sequence);
                            Some(Place { class, sequence })
                        }
                    };
                    Some(Stored { version, place, value })
                }
            };
            self.volatile.of_mut(key.table).insert(key.name, stored);
        }
        given
    }

    /// The next number of `line`, in a commit of `version`.
    fn give(&mut self, line: &InstanceName, version: Version) -> Sequence {
        self.read_bound(line);
        let Given { number, bound } = self.numbers.give(line);
        if let Some(bound) = bound {
            self.write_bound(line, bound, version);
        }
        number
    }

    fn read_bound(&mut self, line: &InstanceName) {
        if !self.numbers.knows(line) {
            let row = self.current(&Key::new(Table::Meta, numbers::row_name(line)));
            let bound = row.and_then(|stored| numbers::decode(&stored.value)).unwrap_or(0);
            self.numbers.read(line, bound);
        }
    }

    fn write_bound(&mut self, line: &InstanceName, bound: Sequence, version: Version) {
        let stored = Stored { version, place: None, value: numbers::encode(bound).into() };
        self.volatile.of_mut(Table::Meta).insert(numbers::row_name(line), Some(stored));
    }

    /// Every number of `line` is at least `next` from now on.
    fn raise(&mut self, line: &InstanceName, next: Sequence) -> Submitted {
        self.numbers.raise(line, next);
        if let Err(error) = self.writable() {
            return Submitted::Done(Err(error));
        }
        self.read_bound(line);
        if let Some(bound) = self.numbers.raised_bound(line) {
            let version = self.plant();
            self.write_bound(line, bound, version);
            if self.hold {
                return self.wait(Ok(Vec::new()));
            }
            self.sync();
        }
        Submitted::Done(Ok(Vec::new()))
    }

    /// A version for what no commit writes.
    fn plant(&mut self) -> Version {
        self.planted += 1;
        Version(u128::from(self.planted).to_be_bytes())
    }

    fn make_durable(&mut self) {
        for table in Table::ALL {
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

    fn submit(&mut self, commit: Commit) -> Submitted {
        match self.try_submit(commit) {
            Ok(submitted) => submitted,
            Err(error) => Submitted::Done(Err(error)),
        }
    }

    fn try_submit(&mut self, commit: Commit) -> Result<Submitted, CommitError> {
        validate(&commit.writes)?;
        self.writable()?;
        let failure = self.failures.pop_front();
        match failure {
            Some(Failure::Busy) => return Err(CommitError::Busy),
            Some(Failure::ReadOnly(why)) => return Err(CommitError::ReadOnly(why)),
            Some(Failure::Failed { .. }) | None => {}
        }
        match self.check(&commit.writes) {
            Ok(()) => {}
            Err(lost) if self.hold => return Ok(self.wait(Err(lost))),
            Err(lost) => return Err(lost),
        }
        if let Some(Failure::Failed { applied }) = failure {
            self.trouble = Some(Health::Failed("it failed while writing: open it again".into()));
            if applied {
                self.volatile_survives = true;
                self.apply(commit);
            }
            // Whatever was not acknowledged never will be: the writer is gone.
            for waiting in self.waiting.drain(..) {
                let _ = waiting.reply.send(Err(CommitError::Failed("simulated".into())));
            }
            return Err(CommitError::Failed("simulated".into()));
        }
        let given = self.apply(commit);
        if !self.hold {
            self.sync();
            return Ok(Submitted::Done(Ok(given)));
        }
        Ok(self.wait(Ok(given)))
    }

    /// The outcome is told at the next sync. That holds for a conflict too: what it lost to cannot be read before.
    fn wait(&mut self, outcome: Outcome) -> Submitted {
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
    Done(Outcome),
    Waiting(oneshot::Receiver<Outcome>),
}

impl Submitted {
    async fn outcome(self) -> Outcome {
        match self {
            Self::Done(outcome) => outcome,
            Self::Waiting(told) => told.await.unwrap_or_else(|_| Err(CommitError::Failed("it crashed".into()))),
        }
    }
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
        let (durable, planted) = (std::mem::take(&mut inner.durable), inner.planted);
        // Dropping the senders is what the waiting commits notice.
        *inner = Inner { state: State::Crashed, ..Inner::default() };
        Self { inner: Mutex::new(Inner { durable, planted, ..Inner::default() }) }
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
        let version = self.inner.lock().plant();
        self.seed_stored(key, Stored { version, place: None, value: value.into() });
    }

    /// The same with version and place.
    pub fn seed_stored(&self, key: Key, stored: Stored) {
        self.inner.lock().durable.of_mut(key.table).insert(key.name, stored);
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

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Vec<Sequence>, CommitError>> {
        async move {
            let submitted = self.inner.lock().submit(commit);
            submitted.outcome().await
        }
        .boxed()
    }

    fn raise_sequence<'a>(&'a self, line: &'a InstanceName, next: Sequence) -> BoxFuture<'a, Result<(), CommitError>> {
        async move {
            let submitted = self.inner.lock().raise(line, next);
            submitted.outcome().await.map(|_| ())
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
    use crate::store::Expect;
    use crate::store::conformance::{Fixture, commit, conformance, device, join, put, unnamed};

    fn fixture() -> Fixture {
        let store = Arc::new(MemoryStore::new());
        let (gate, killed) = (Arc::clone(&store), Arc::clone(&store));
        Fixture {
            store,
            hold: Box::new(move |hold| gate.hold_acks(hold)),
            killed: Box::new(move || Arc::new(killed.crash())),
            _keep: Box::new(()),
        }
    }

    conformance!(fixture());

    #[tokio::test]
    async fn a_crash_keeps_what_was_synced_and_nothing_else() {
        let store = MemoryStore::new();
        let first = commit(&store, vec![put(device("a"), Expect::Absent, "kept")]).await.unwrap();
        store.hold_acks(true);
        let mut synced = store.commit(unnamed(vec![put(device("b"), Expect::Absent, "kept")]));
        assert!(poll!(&mut synced).is_pending());
        store.sync();
        synced.await.unwrap();
        let mut lost = store.commit(unnamed(vec![put(device("a"), Expect::Version(first), "lost")]));
        assert!(poll!(&mut lost).is_pending());
        assert_eq!(store.held(), 1);
        let survivor = store.crash();
        assert!(matches!(lost.await, Err(CommitError::Failed(_))));
        assert!(matches!(commit(&store, Vec::new()).await, Err(CommitError::Failed(_))), "the killed cannot write");
        assert!(store.get(&device("a")).await.is_err());
        assert_eq!(survivor.rows(Table::Device), 2);
        assert_eq!(survivor.get(&device("a")).await.unwrap().unwrap().value, "kept");
        commit(&survivor, vec![put(device("a"), Expect::Version(first), "next")]).await.unwrap();
    }

    #[tokio::test]
    async fn an_injected_failure_is_the_next_commits_alone() {
        let store = MemoryStore::new();
        let commit = || commit(&store, vec![put(device("a"), Expect::Any, "x")]);
        store.fail_next_commit(Failure::Busy);
        store.fail_next_commit(Failure::ReadOnly("full".into()));
        assert!(matches!(commit().await, Err(CommitError::Busy)));
        assert!(matches!(commit().await, Err(CommitError::ReadOnly(_))));
        commit().await.unwrap();
        store.set_health(Health::ReadOnly("full".into()));
        assert!(matches!(commit().await, Err(CommitError::ReadOnly(_))));
        store.set_health(Health::Writable);
        commit().await.unwrap();
    }

    #[tokio::test]
    async fn only_a_crash_tells_what_a_failed_commit_did() {
        for applied in [false, true] {
            let store = MemoryStore::new();
            store.fail_next_commit(Failure::Failed { applied });
            let failed = commit(&store, vec![put(device("a"), Expect::Absent, "x")]).await;
            assert!(matches!(failed, Err(CommitError::Failed(_))));
            assert_eq!(store.get(&device("a")).await.unwrap(), None);
            assert!(matches!(store.health(), Health::Failed(_)));
            let survivor = store.crash();
            assert_eq!(survivor.get(&device("a")).await.unwrap().is_some(), applied);
            assert_eq!(survivor.health(), Health::Writable);
        }
    }

    #[tokio::test]
    async fn a_line_is_raised_also_while_no_writes_are_taken() {
        let store = MemoryStore::new();
        let line = InstanceName::parse("a").unwrap();
        store.set_health(Health::ReadOnly("full".into()));
        assert!(matches!(store.raise_sequence(&line, 70).await, Err(CommitError::ReadOnly(_))));
        store.set_health(Health::Writable);
        let write = join("b", &line, Expect::Absent);
        assert_eq!(store.commit(unnamed(vec![write])).await.unwrap(), [70]);
    }
}
