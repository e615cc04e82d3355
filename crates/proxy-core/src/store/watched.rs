//! A store whose troubles are told: one line in the log when it stops or begins to take writes, and counts once a minute between.
//!
//! Invariants:
//! - A change of state is one line, however many commits are refused meanwhile: whoever is refused answers its caller and logs nothing.
//! - The state is what the store says of itself ([`Store::health`]). Somebody has to look ([`Watched::look`]) every second or so, as a
//!   store that nobody writes to can fail too.
//! - Commits that are refused while the store takes writes, because its writer is behind, are told once a minute.
//! - A write that hangs ([`Watched::look_for_standstill`]) keeps nobody waiting: whoever waits is told that the outcome is unknown, and the
//!   store has failed for good, even if it comes to life again. It is not asked for anything but reads from then on.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::standstill::Standstill;
use super::{Commit, CommitError, Health, Key, Lease, LeaseChange, LeaseError, ReadError, Row, Store, Stored, Table};
use crate::ids::{InstanceName, LeaseName};
use crate::place::Sequence;
use rate_control::time::{Clock, Mono, Now, WallTime};

/// How often counts are told.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The store takes no writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Since when.
    pub since: WallTime,
    /// Why, and what to do.
    pub why: String,
    /// Whether it stays so until the process is started anew.
    pub lasting: bool,
    /// Commits that it has refused since then.
    pub refused: u64,
}

/// A store that is watched, see the module.
pub struct Watched {
    inner: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    standstill: Standstill,
    /// Commits refused since the start.
    refused: AtomicU64,
}

#[derive(Default)]
struct State {
    trouble: Option<Trouble>,
    /// Commits that had been refused when the trouble began.
    refused_before: u64,
    /// When counts were last told, and what they were.
    told: Mono,
    refused_told: u64,
    closed: bool,
}

impl Watched {
    /// Watches `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        Self { inner, clock, state: Mutex::default(), standstill: Standstill::default(), refused: AtomicU64::new(0) }
    }

    /// Asks the store how it is, and tells what has changed.
    pub fn look(&self) {
        let health = self.health();
        let (now, refused) = (self.clock.now(), self.refused());
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        match health {
            Health::Writable => state.writable(refused, now),
            Health::ReadOnly(why) => state.troubled(why, false, refused, now),
            Health::Failed(why) => state.troubled(why, true, refused, now),
        }
    }

    /// Looks whether a write hangs: commits wait, and nothing has got on for `longest`, of which time between looks counts two seconds at
    /// most. Says why, from then on. To be called by a thread that does nothing else, as whoever reads the store may hang with it.
    #[must_use]
    pub fn look_for_standstill(&self, longest: Duration) -> Option<String> {
        self.standstill.look(self.inner.steps(), self.clock.now().mono, longest).map(str::to_owned)
    }

    /// For how long commits have waited and nothing has got on, as of the last look.
    #[must_use]
    pub fn in_vain(&self) -> Duration {
        self.standstill.in_vain()
    }

    /// Commits that were refused since the start because the store took no writes or was behind.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// What ails it, if it takes no writes; as of the last look.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        let state = self.state.lock();
        let refused = self.refused() - state.refused_before;
        state.trouble.clone().map(|trouble| Trouble { refused, ..trouble })
    }

    /// Waits for what is asked of the store, unless that stands still.
    async fn submit<T>(&self, asked: BoxFuture<'_, Result<T, CommitError>>) -> Result<T, CommitError> {
        let outcome = self.watch(asked).await;
        outcome.inspect_err(|error| self.refuse(error))
    }

    async fn watch<T>(&self, asked: BoxFuture<'_, Result<T, CommitError>>) -> Result<T, CommitError> {
        if let Some(why) = self.standstill.why() {
            return Err(CommitError::ReadOnly(why.to_owned()));
        }
        let _waiting = self.standstill.wait();
        tokio::select! {
            biased;
            outcome = asked => {
                // That its inbox is full says nothing of what the store does.
                if !matches!(outcome, Err(CommitError::Busy)) {
                    self.standstill.answered();
                }
                outcome
            }
            why = self.standstill.found() => Err(CommitError::Failed(why.to_owned())),
        }
    }

    /// Waits for what is asked of a lease, unless the store stands still. It is no sign of life: a backend may change leases apart from
    /// commits.
    async fn unless_hanging(&self, asked: BoxFuture<'_, Result<Lease, LeaseError>>) -> Result<Lease, LeaseError> {
        let hangs = |why: &str| Err(LeaseError::Unavailable(why.to_owned()));
        if let Some(why) = self.standstill.why() {
            return hangs(why);
        }
        tokio::select! {
            biased;
            outcome = asked => outcome,
            why = self.standstill.found() => hangs(why),
        }
    }

    fn refuse(&self, error: &CommitError) {
        match error {
            // The first one looks before it counts, so that the trouble counts it.
            CommitError::ReadOnly(_) | CommitError::Failed(_) if self.state.lock().trouble.is_none() => self.look(),
            CommitError::ReadOnly(_) | CommitError::Failed(_) | CommitError::Busy => {}
            // What is wrong is the commit.
            CommitError::Conflict { .. } | CommitError::Fenced | CommitError::Refused(_) => return,
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

impl State {
    fn writable(&mut self, refused: u64, now: Now) {
        if let Some(over) = self.trouble.take() {
            let seconds = now.wall.since(over.since).as_secs();
            tracing::info!(seconds, refused = refused - self.refused_before, "the store takes writes again");
            self.tell(refused, now);
        } else if refused > self.refused_told && now.mono.since(self.told) >= TELL_EVERY {
            tracing::warn!(
                refused = refused - self.refused_told,
                "the store's writer is behind: commits were refused since this was last told"
            );
            self.tell(refused, now);
        }
    }

    fn troubled(&mut self, why: String, lasting: bool, refused: u64, now: Now) {
        match &mut self.trouble {
            Some(trouble) if trouble.lasting == lasting => {
                trouble.why = why;
                if now.mono.since(self.told) >= TELL_EVERY {
                    let (seconds, why) = (now.wall.since(trouble.since).as_secs(), &trouble.why);
                    tracing::warn!(
                        seconds,
                        refused = refused - self.refused_told,
                        "the store still takes no writes: {why}"
                    );
                    self.tell(refused, now);
                }
            }
            _ => {
                tracing::error!("the store takes no writes: {why}");
                self.trouble = Some(Trouble { since: now.wall, why, lasting, refused: 0 });
                self.refused_before = refused;
                self.tell(refused, now);
            }
        }
    }

    fn tell(&mut self, refused: u64, now: Now) {
        (self.told, self.refused_told) = (now.mono, refused);
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("inner", &self.inner).field("trouble", &self.trouble()).finish_non_exhaustive()
    }
}

impl Store for Watched {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, ReadError>> {
        self.inner.get(key)
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Vec<Sequence>, CommitError>> {
        self.submit(self.inner.commit(commit)).boxed()
    }

    fn lease<'a>(&'a self, name: &'a LeaseName) -> BoxFuture<'a, Result<Option<Lease>, ReadError>> {
        self.inner.lease(name)
    }

    fn change_lease<'a>(
        &'a self,
        name: &'a LeaseName,
        change: LeaseChange,
    ) -> BoxFuture<'a, Result<Lease, LeaseError>> {
        self.unless_hanging(self.inner.change_lease(name, change)).boxed()
    }

    fn is_exclusive(&self) -> bool {
        self.inner.is_exclusive()
    }

    fn raise_sequence<'a>(&'a self, line: &'a InstanceName, next: Sequence) -> BoxFuture<'a, Result<(), CommitError>> {
        self.submit(self.inner.raise_sequence(line, next)).boxed()
    }

    fn scan<'a>(
        &'a self,
        table: Table,
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Row>, ReadError>> {
        self.inner.scan(table, after, limit)
    }

    fn last(&self, table: Table) -> BoxFuture<'_, Result<Option<Row>, ReadError>> {
        self.inner.last(table)
    }

    fn health(&self) -> Health {
        match self.standstill.why() {
            Some(why) => Health::Failed(why.to_owned()),
            None => self.inner.health(),
        }
    }

    fn steps(&self) -> u64 {
        self.inner.steps()
    }

    /// Gives up on a store that stands still.
    fn close(&self) -> BoxFuture<'_, ()> {
        // What the store says of itself from now on is not news.
        self.state.lock().closed = true;
        async move {
            if self.standstill.why().is_some() {
                return;
            }
            let _waiting = self.standstill.wait();
            tokio::select! {
                biased;
                () = self.inner.close() => {}
                _why = self.standstill.found() => {}
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Expect;
    use crate::store::conformance::{Candidate, commit, device, lease_name, put, unnamed};
    use crate::store::memory::{Failure, MemoryStore};
    use rate_control::time::SystemClock;

    fn watched() -> (Arc<MemoryStore>, Watched) {
        let store = Arc::new(MemoryStore::new());
        let watched = Watched::new(Arc::clone(&store) as Arc<dyn Store>, Arc::new(SystemClock::new()));
        watched.look();
        (store, watched)
    }

    async fn write(store: &Watched) -> bool {
        commit(store, vec![put(device("a"), Expect::Any, "x")]).await.is_ok()
    }

    #[tokio::test]
    async fn trouble_is_noticed_with_the_first_refusal_and_counts_the_others_until_it_is_over() {
        let (store, watched) = watched();
        assert!(write(&watched).await && watched.trouble().is_none());
        store.set_health(Health::ReadOnly("full".to_owned()));
        for _ in 0..3 {
            assert!(!write(&watched).await);
        }
        let trouble = watched.trouble().unwrap();
        assert_eq!((trouble.why.as_str(), trouble.lasting, trouble.refused), ("full", false, 3));
        store.set_health(Health::Writable);
        watched.look();
        assert!(watched.trouble().is_none() && write(&watched).await);
        store.set_health(Health::Failed("gone".to_owned()));
        watched.look();
        let trouble = watched.trouble().unwrap();
        assert_eq!((trouble.why.as_str(), trouble.lasting, trouble.refused), ("gone", true, 0));
        assert_eq!(watched.refused(), 3);
    }

    #[tokio::test]
    async fn a_store_that_is_closed_is_not_in_trouble_and_one_that_is_behind_is_counted_only() {
        let (store, watched) = watched();
        store.fail_next_commit(Failure::Busy);
        assert!(!write(&watched).await);
        watched.look();
        assert_eq!((watched.refused(), watched.trouble()), (1, None));
        watched.close().await;
        assert!(!write(&watched).await);
        assert_eq!(watched.trouble(), None);
    }

    #[tokio::test]
    async fn a_write_that_hangs_keeps_nobody_waiting_and_the_store_has_failed() {
        let (store, watched) = watched();
        assert!(write(&watched).await);
        store.hold_acks(true);
        let mut hanging = std::pin::pin!(watched.commit(unnamed(vec![put(device("a"), Expect::Any, "y")])));
        assert!(hanging.as_mut().now_or_never().is_none());
        assert_eq!(watched.look_for_standstill(Duration::from_secs(60)), None);
        let (name, a) = (lease_name("lines"), Candidate::new("a"));
        let mut taking = std::pin::pin!(watched.change_lease(&name, a.take(None)));
        assert!(taking.as_mut().now_or_never().is_none());
        let why = watched.look_for_standstill(Duration::ZERO).unwrap();
        assert!(why.contains("no write has made progress"), "{why}");
        for outcome in [taking.await, watched.change_lease(&name, a.take(None)).await] {
            assert!(matches!(outcome, Err(LeaseError::Unavailable(_))), "{outcome:?}");
        }
        assert!(matches!(hanging.await, Err(CommitError::Failed(_))), "nobody knows what becomes of it");
        assert!(matches!(commit(&watched, vec![]).await, Err(CommitError::ReadOnly(_))));
        let trouble = watched.trouble().unwrap();
        assert_eq!((trouble.why, trouble.lasting, trouble.refused), (why.clone(), true, 2));
        assert_eq!(watched.get(&device("a")).await.unwrap().unwrap().value, "x", "reads go on");
        store.hold_acks(false);
        assert_eq!(watched.health(), Health::Failed(why), "also when it comes to life again");
        watched.close().await;
        assert_eq!(store.health(), Health::Writable, "it is not asked to close");
    }

    /// A store that answers reads, and nothing else.
    #[derive(Debug, Default)]
    struct Hanging(MemoryStore);

    impl Store for Hanging {
        fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, ReadError>> {
            self.0.get(key)
        }

        fn commit(&self, _commit: Commit) -> BoxFuture<'_, Result<Vec<Sequence>, CommitError>> {
            std::future::pending().boxed()
        }

        fn lease<'a>(&'a self, name: &'a LeaseName) -> BoxFuture<'a, Result<Option<Lease>, ReadError>> {
            self.0.lease(name)
        }

        fn change_lease<'a>(
            &'a self,
            _name: &'a LeaseName,
            _change: LeaseChange,
        ) -> BoxFuture<'a, Result<Lease, LeaseError>> {
            std::future::pending().boxed()
        }

        fn is_exclusive(&self) -> bool {
            self.0.is_exclusive()
        }

        fn raise_sequence<'a>(
            &'a self,
            _line: &'a InstanceName,
            _next: Sequence,
        ) -> BoxFuture<'a, Result<(), CommitError>> {
            std::future::pending().boxed()
        }

        fn scan<'a>(
            &'a self,
            table: Table,
            after: Option<&'a [u8]>,
            limit: usize,
        ) -> BoxFuture<'a, Result<Vec<Row>, ReadError>> {
            self.0.scan(table, after, limit)
        }

        fn last(&self, table: Table) -> BoxFuture<'_, Result<Option<Row>, ReadError>> {
            self.0.last(table)
        }

        fn health(&self) -> Health {
            self.0.health()
        }

        fn close(&self) -> BoxFuture<'_, ()> {
            std::future::pending().boxed()
        }
    }

    #[tokio::test]
    async fn a_store_that_hangs_while_it_is_closed_is_left_alone() {
        let watched = Watched::new(Arc::new(Hanging::default()), Arc::new(SystemClock::new()));
        let mut closing = std::pin::pin!(watched.close());
        assert!(closing.as_mut().now_or_never().is_none());
        assert!(watched.look_for_standstill(Duration::ZERO).is_some());
        closing.await;
    }
}
