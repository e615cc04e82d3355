//! The memory double: the contract of a durable store without a disk, a thread or a clock, so that a run replays exactly.
//!
//! Invariants:
//! - Two layers. What was committed since the last [`MemoryStore::sync`] is volatile: expectations are checked against it,
//!   but no read shows it and no commit of it is acknowledged. Unless acknowledgements are held, every commit syncs at once.
//! - A crash takes the volatile layer and nothing else. The crashed store is dead: whoever still holds it can neither read nor
//!   write, as a process that was killed.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::answer;
use super::{Commit, CommitError, Health, Key, Lease, LeaseChange, LeaseError, ReadError, Row, Store, Stored, Table};
use crate::ids::{InstanceName, LeaseName};
use crate::place::Sequence;
use contents::{Contents, State, row};

mod contents;

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

/// A store in memory, see the module. Share it in an `Arc`, or give each process a [handle](MemoryStore::handle) of its own.
pub struct MemoryStore {
    contents: Arc<Mutex<Contents>>,
    handle: u64,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store that makes every commit durable at once, and belongs to one process at a time.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Contents::new(false))
    }

    /// An empty store that several processes may have open: it is not [exclusive](Store::is_exclusive).
    #[must_use]
    pub fn shared() -> Self {
        Self::of(Contents::new(true))
    }

    fn of(contents: Contents) -> Self {
        Self { contents: Arc::new(Mutex::new(contents)), handle: 0 }
    }

    /// The same store as another process has it open: closed and killed apart from this handle, while a [crash](MemoryStore::crash) is
    /// everybody's.
    ///
    /// # Panics
    /// If the store was not made to be [shared](MemoryStore::shared).
    #[must_use]
    pub fn handle(&self) -> Self {
        let mut contents = self.contents.lock();
        assert!(contents.shared, "a store of one process has one handle");
        let handle = contents.handle();
        Self { contents: Arc::clone(&self.contents), handle }
    }

    /// Kills the process that has this handle, and not the store: what it committed happens, but it never hears of it, and neither reads
    /// nor writes any more.
    pub fn kill(&self) {
        self.contents.lock().kill(self.handle);
    }

    /// Holds every later commit back from being durable until [`MemoryStore::sync`], or, given `false`, syncs now and lets commits
    /// through again.
    pub fn hold_acks(&self, hold: bool) {
        let mut contents = self.contents.lock();
        contents.hold = hold;
        if !hold && contents.state(self.handle) == State::Open && contents.trouble.is_none() {
            contents.sync();
        }
    }

    /// Makes what was committed so far durable and acknowledges it, in order. Nothing happens on a store that failed.
    pub fn sync(&self) {
        let mut contents = self.contents.lock();
        if contents.state(self.handle) == State::Open && !contents.volatile_survives {
            contents.sync();
        }
    }

    /// How many commits wait for [`MemoryStore::sync`].
    #[must_use]
    pub fn held(&self) -> usize {
        self.contents.lock().waiting.len()
    }

    /// How many commits were applied since this store was made or reopened; for tests that bound the cost of something.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.contents.lock().commits
    }

    /// How many durable rows `table` holds.
    #[must_use]
    pub fn rows(&self, table: Table) -> usize {
        self.contents.lock().durable.of(table).len()
    }

    /// Kills the store, as `kill -9` or a loss of power would, and opens what the disk holds: exactly what was synced. Commits in
    /// flight get [`CommitError::Failed`]; so does every later one on the old handles. After [`Store::close`] this is a reopening.
    #[must_use = "the returned store is the one that survives"]
    pub fn crash(&self) -> Self {
        Self::of(self.contents.lock().crash())
    }

    /// Lets the next commit that passes the bounds fail; called again, the one after that.
    pub fn fail_next_commit(&self, failure: Failure) {
        self.contents.lock().failures.push_back(failure);
    }

    /// Makes the store read-only, or writable again.
    pub fn set_health(&self, health: Health) {
        self.contents.lock().trouble = Some(health).filter(|health| *health != Health::Writable);
    }

    /// Puts a durable row in place past every check; for tests that start from a given state.
    pub fn seed(&self, key: Key, value: impl Into<Bytes>) {
        let version = self.contents.lock().plant();
        self.seed_stored(key, Stored { version, place: None, value: value.into() });
    }

    /// The same with version and place.
    pub fn seed_stored(&self, key: Key, stored: Stored) {
        self.contents.lock().durable.of_mut(key.table).insert(key.name, stored);
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let contents = self.contents.lock();
        f.debug_struct("MemoryStore")
            .field("state", &contents.state(self.handle))
            .field("held", &contents.waiting.len())
            .finish_non_exhaustive()
    }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, ReadError>> {
        async move {
            let contents = self.contents.lock();
            contents.readable(self.handle)?;
            Ok(contents.durable.of(key.table).get(&key.name).cloned())
        }
        .boxed()
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Vec<Sequence>, CommitError>> {
        async move {
            let submitted = self.contents.lock().submit(self.handle, commit);
            answer::of_commit(submitted.outcome().await)
        }
        .boxed()
    }

    fn lease<'a>(&'a self, name: &'a LeaseName) -> BoxFuture<'a, Result<Option<Lease>, ReadError>> {
        async move {
            let contents = self.contents.lock();
            contents.readable(self.handle)?;
            contents.durable_lease(name)
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
            let submitted = self.contents.lock().change_lease(self.handle, name, &change);
            answer::of_lease(submitted.outcome().await)
        }
        .boxed()
    }

    fn is_exclusive(&self) -> bool {
        !self.contents.lock().shared
    }

    fn raise_sequence<'a>(&'a self, line: &'a InstanceName, next: Sequence) -> BoxFuture<'a, Result<(), CommitError>> {
        async move {
            let submitted = self.contents.lock().raise(self.handle, line, next);
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
            let contents = self.contents.lock();
            contents.readable(self.handle)?;
            Ok(contents.scan(table, after, limit))
        }
        .boxed()
    }

    fn last(&self, table: Table) -> BoxFuture<'_, Result<Option<Row>, ReadError>> {
        async move {
            let contents = self.contents.lock();
            contents.readable(self.handle)?;
            Ok(contents.durable.of(table).last_key_value().map(|(name, stored)| row(name, stored)))
        }
        .boxed()
    }

    fn health(&self) -> Health {
        let contents = self.contents.lock();
        match contents.writable(self.handle) {
            Ok(()) => Health::Writable,
            Err(CommitError::ReadOnly(why)) => contents.trouble.clone().unwrap_or(Health::ReadOnly(why)),
            Err(other) => Health::Failed(other.to_string()),
        }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move { self.contents.lock().close(self.handle) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;
    use crate::store::Expect;
    use crate::store::conformance::{
        Candidate, Fixture, commit, conformance, device, join, lease_name, put, take, unnamed,
    };
    use rate_control::ownership::Epoch;

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
    async fn of_several_processes_on_one_store_one_is_killed_and_the_others_go_on() {
        let (name, a, b) = (lease_name("lines"), Candidate::new("a"), Candidate::new("b"));
        let first = MemoryStore::shared();
        let second = first.handle();
        assert!(!first.is_exclusive() && !second.is_exclusive() && MemoryStore::new().is_exclusive());
        assert_eq!(take(&first, &name, &a).await, Epoch(1));
        first.hold_acks(true);
        let mut unheard = first.commit(unnamed(vec![put(device("a"), Expect::Absent, "x")]));
        assert!(poll!(&mut unheard).is_pending());
        first.kill();
        assert!(matches!(unheard.await, Err(CommitError::Failed(_))));
        assert!(first.get(&device("a")).await.is_err());
        assert!(matches!(commit(&first, Vec::new()).await, Err(CommitError::Failed(_))));
        second.hold_acks(false);
        assert_eq!(second.get(&device("a")).await.unwrap().unwrap().value, "x", "it happened all the same");
        assert_eq!(take(&second, &name, &b).await, Epoch(2));
        let third = second.handle();
        second.close().await;
        assert!(matches!(second.health(), Health::ReadOnly(_)));
        commit(&third, vec![put(device("b"), Expect::Absent, "x")]).await.unwrap();
        let survivor = third.crash();
        assert!(!survivor.is_exclusive());
        assert!(matches!(third.health(), Health::Failed(_)), "a crash is everybody's");
        assert_eq!(take(&survivor.handle(), &name, &a).await, Epoch(3));
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
