//! The disk: what a crash leaves of it, and how it fails.
//!
//! Invariants:
//! - A sound disk is the core's own memory double: nothing is acknowledged or shown before it is durable, a crash takes the rest.
//! - A mutant is a wrapper around that double; it breaks one promise of the disk and no other.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use proxy_core::device::Record;
use proxy_core::ids::{InstanceName, LeaseName};
use proxy_core::place::{Place, Sequence};
use proxy_core::store::memory::{Failure, MemoryStore};
use proxy_core::store::{
    Change, Commit, CommitError, Expect, Health, Key, Lease, LeaseChange, LeaseError, Placing, ReadError, Row, Store,
    Stored, Table, Versions, Write,
};
use rate_control::entropy::Entropy;
use serde_json::{Value, json};

use crate::delay::Delay;
use crate::mutant::Mutant;

/// How many commits a hasty disk acknowledges before it makes them durable.
const UNFLUSHED_MAX: usize = 12;

/// One life of the disk, from a start to a crash.
#[derive(Debug)]
pub(crate) struct Disk {
    memory: MemoryStore,
    hasty: Option<Hasty>,
    /// Writes whatever it is told, although what it holds is newer than what the writer has read.
    careless: bool,
    slow: Slow,
    /// Of what is written without a process.
    versions: Arc<Versions>,
}

/// What of a disk takes time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slow {
    /// Reads.
    pub(crate) reads: Option<Arc<Delay>>,
    /// To hear that a commit is durable, after it is: of two, the later one may be heard of first.
    pub(crate) acks: Option<Arc<Delay>>,
}

/// What is really durable of a disk that acknowledges too early.
struct Hasty {
    durable: MemoryStore,
    unflushed: Mutex<Vec<Commit>>,
}

impl fmt::Debug for Hasty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasty").field("unflushed", &self.unflushed.lock().len()).finish_non_exhaustive()
    }
}

impl Disk {
    /// An empty disk.
    pub(crate) fn new(mutant: Option<Mutant>, slow: Slow) -> Self {
        let (hasty, careless) = (mutant == Some(Mutant::SkipFlush), mutant == Some(Mutant::NoCompareAndSet));
        let hasty = hasty.then(|| Hasty { durable: MemoryStore::new(), unflushed: Mutex::default() });
        let versions = Arc::new(Versions::new(Entropy::from_seed(0)));
        Self { memory: MemoryStore::new(), hasty, careless, slow, versions }
    }

    /// What is under `key`, without a process that asks.
    pub(crate) async fn peek(&self, key: &Key) -> Option<Stored> {
        self.memory.get(key).await.ok().flatten()
    }

    /// A read that takes its time, before it sees what there is and before it tells.
    async fn slowly<T>(delay: &Delay, read: BoxFuture<'_, T>) -> T {
        delay.pass().await;
        let found = read.await;
        delay.pass().await;
        found
    }

    /// Commits wait for [`sync`](Self::sync) from now on.
    pub(crate) fn hold(&self) {
        self.memory.hold_acks(true);
    }

    pub(crate) fn sync(&self) {
        self.memory.sync();
    }

    pub(crate) fn fail_next_commit(&self, failure: Failure) {
        self.memory.fail_next_commit(failure);
    }

    pub(crate) fn set_read_only(&self, read_only: bool) {
        let why = || "the disk is full: make room".to_owned();
        self.memory.set_health(if read_only { Health::ReadOnly(why()) } else { Health::Writable });
    }

    /// Commits applied in this life.
    pub(crate) fn commits(&self) -> u64 {
        self.memory.commits()
    }

    pub(crate) fn rows(&self, table: Table) -> usize {
        self.memory.rows(table)
    }

    /// What a crash leaves.
    pub(crate) async fn crash(&self) -> Self {
        let memory = self.memory.crash();
        let (slow, versions) = (self.slow.clone(), Arc::clone(&self.versions));
        let Some(hasty) = &self.hasty else {
            return Self { memory, hasty: None, careless: self.careless, slow, versions };
        };
        let durable = hasty.durable.crash();
        let live = MemoryStore::new();
        for table in Table::ALL {
            for Row { name, stored } in durable.scan(table, None, usize::MAX).await.unwrap_or_default() {
                live.seed_stored(Key::new(table, name), stored);
            }
        }
        let hasty = Some(Hasty { durable, unflushed: Mutex::default() });
        Self { memory: live, hasty, careless: false, slow, versions }
    }

    /// Writes without a process.
    async fn write(&self, write: Write) -> bool {
        self.memory.commit(self.versions.commit(vec![write])).await.is_ok()
    }

    /// A commit whose end is heard of after a while.
    async fn heard_late<T>(delay: &Delay, commit: BoxFuture<'_, T>) -> T {
        let outcome = commit.await;
        delay.pass().await;
        outcome
    }

    /// Removes the rows of `table` whose names begin so.
    pub(crate) async fn forget(&self, table: Table, beginning: &str) {
        for row in self.memory.scan(table, None, usize::MAX).await.unwrap_or_default() {
            if row.name.starts_with(beginning.as_bytes()) {
                self.write(Write::delete(Key::new(table, row.name), Expect::Any)).await;
            }
        }
    }

    /// Takes back that registrations have left, of all devices that wait for the end of one.
    pub(crate) async fn forget_sent(&self) {
        for row in self.memory.scan(Table::Device, None, usize::MAX).await.unwrap_or_default() {
            let mut record: Value = serde_json::from_slice(&row.stored.value).unwrap_or_default();
            if record["pending"].is_object() && record["pending"]["stage"]["at"] != "waiting" {
                record["pending"]["stage"] = json!({ "at": "waiting" });
                record["pending"]["attempts"] = json!(0);
                record["flight"] = Value::Null;
                let line = record["pending"]["instance"].as_str().and_then(|name| InstanceName::parse(name).ok());
                let standing = row.stored.place.zip(line);
                let placing = standing.map_or(Placing::Nowhere, |(place, line)| Placing::At { line, place });
                let change = Change::Put { value: record.to_string().into(), placing };
                self.write(Write { key: Key::new(Table::Device, row.name), expect: Expect::Any, change }).await;
            }
        }
    }

    /// Removes the record of one of these devices that has a place: a disk that forgets.
    pub(crate) async fn forget_a_place(&self, devices: &BTreeSet<String>) -> Option<String> {
        for row in self.memory.scan(Table::Device, None, usize::MAX).await.unwrap_or_default() {
            let Ok(record) = Record::decode(&row.stored).map(|versioned| versioned.record) else { continue };
            let id = record.registration_id().to_string();
            if record.pending().is_some() && record.assignment().is_none() && devices.contains(&id) {
                let forgotten = self.write(Write::delete(Key::new(Table::Device, row.name), Expect::Any)).await;
                return forgotten.then_some(id);
            }
        }
        None
    }
}

/// Whether a record says that a registration may have left, or how it ended.
pub(crate) fn says_sent(stored: &Stored) -> bool {
    let record: Value = serde_json::from_slice(&stored.value).unwrap_or_default();
    let waits = record["pending"]["stage"]["at"] == "waiting"
        && record["pending"]["attempts"].as_u64().unwrap_or(0) == 0
        && record["flight"].is_null();
    !waits || !record["assignment"].is_null()
}

impl Hasty {
    /// Keeps what was acknowledged, with the numbers that were given; all of it becomes durable at once, now and then.
    async fn keep(&self, mut commit: Commit, given: &[Sequence]) {
        let mut given = given.iter();
        // It was judged by the other copy, which keeps the leases.
        commit.fence = None;
        for write in &mut commit.writes {
            write.expect = Expect::Any;
            if let Change::Put { placing, .. } = &mut write.change
                && let Placing::Join { line, class } = placing
                && let Some(&sequence) = given.next()
            {
                *placing = Placing::At { line: line.clone(), place: Place { class: *class, sequence } };
            }
        }
        let due = {
            let mut unflushed = self.unflushed.lock();
            unflushed.push(commit);
            if unflushed.len() < UNFLUSHED_MAX {
                return;
            }
            std::mem::take(&mut *unflushed)
        };
        for commit in due {
            for write in &commit.writes {
                if let Change::Put { placing: Placing::At { line, place }, .. } = &write.change {
                    let _ = self.durable.raise_sequence(line, place.sequence.saturating_add(1)).await;
                }
            }
            // It was accepted by the other copy, which keeps the same rows.
            let _ = self.durable.commit(commit).await;
        }
    }
}

impl Store for Disk {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, ReadError>> {
        let read = self.memory.get(key);
        match &self.slow.reads {
            Some(delay) => Self::slowly(delay, read).boxed(),
            None => read,
        }
    }

    fn commit(&self, mut commit: Commit) -> BoxFuture<'_, Result<Vec<Sequence>, CommitError>> {
        if self.careless {
            commit.writes.iter_mut().for_each(|write| write.expect = Expect::Any);
        }
        let Some(hasty) = &self.hasty else {
            let commit = self.memory.commit(commit);
            return match &self.slow.acks {
                Some(delay) => Self::heard_late(delay, commit).boxed(),
                None => commit,
            };
        };
        async move {
            let given = self.memory.commit(commit.clone()).await?;
            hasty.keep(commit, &given).await;
            Ok(given)
        }
        .boxed()
    }

    fn lease<'a>(&'a self, name: &'a LeaseName) -> BoxFuture<'a, Result<Option<Lease>, ReadError>> {
        self.memory.lease(name)
    }

    fn change_lease<'a>(
        &'a self,
        name: &'a LeaseName,
        change: LeaseChange,
    ) -> BoxFuture<'a, Result<Lease, LeaseError>> {
        self.memory.change_lease(name, change)
    }

    fn is_exclusive(&self) -> bool {
        self.memory.is_exclusive()
    }

    fn raise_sequence<'a>(&'a self, line: &'a InstanceName, next: Sequence) -> BoxFuture<'a, Result<(), CommitError>> {
        self.memory.raise_sequence(line, next)
    }

    fn scan<'a>(
        &'a self,
        table: Table,
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Row>, ReadError>> {
        let read = self.memory.scan(table, after, limit);
        match &self.slow.reads {
            Some(delay) => Self::slowly(delay, read).boxed(),
            None => read,
        }
    }

    fn last(&self, table: Table) -> BoxFuture<'_, Result<Option<Row>, ReadError>> {
        let read = self.memory.last(table);
        match &self.slow.reads {
            Some(delay) => Self::slowly(delay, read).boxed(),
            None => read,
        }
    }

    fn health(&self) -> Health {
        self.memory.health()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.memory.close()
    }
}
