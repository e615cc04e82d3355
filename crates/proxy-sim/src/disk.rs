//! The disk: what a crash leaves of it, and how it fails.
//!
//! Invariants:
//! - A sound disk is the core's own memory double: nothing is acknowledged or shown before it is durable, a crash takes the rest.
//! - A mutant is a wrapper around that double; it breaks one promise of the disk and no other.

use std::collections::BTreeSet;
use std::fmt;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use proxy_core::device::Record;
use proxy_core::store::memory::{Failure, MemoryStore};
use proxy_core::store::{CommitError, Expect, Health, Key, ReadError, Row, Store, Stored, Table, Version, Write};

/// How many commits a hasty disk acknowledges before it makes them durable.
const UNFLUSHED_MAX: usize = 12;

/// One life of the disk, from a start to a crash.
#[derive(Debug)]
pub(crate) struct Disk {
    memory: MemoryStore,
    hasty: Option<Hasty>,
}

/// What is really durable of a disk that acknowledges too early.
struct Hasty {
    durable: MemoryStore,
    unflushed: Mutex<Vec<Vec<Write>>>,
}

impl fmt::Debug for Hasty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasty").field("unflushed", &self.unflushed.lock().len()).finish_non_exhaustive()
    }
}

impl Disk {
    pub(crate) fn new(hasty: bool) -> Self {
        let hasty = hasty.then(|| Hasty { durable: MemoryStore::new(), unflushed: Mutex::default() });
        Self { memory: MemoryStore::new(), hasty }
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
        let Some(hasty) = &self.hasty else { return Self { memory, hasty: None } };
        let durable = hasty.durable.crash();
        let live = MemoryStore::new();
        for table in [Table::Meta, Table::Device, Table::Ledger, Table::Feed] {
            for row in durable.scan(table, None, usize::MAX).await.unwrap_or_default() {
                // As often as it was written, so that both copies count the same versions.
                for _ in 0..row.stored.version {
                    live.seed(Key::new(table, row.name.clone()), row.stored.value.clone());
                }
            }
        }
        Self { memory: live, hasty: Some(Hasty { durable, unflushed: Mutex::default() }) }
    }

    /// Removes the record of one of these devices that has a place: a disk that forgets.
    pub(crate) async fn forget_a_place(&self, devices: &BTreeSet<String>) -> Option<String> {
        for row in self.memory.scan(Table::Device, None, usize::MAX).await.unwrap_or_default() {
            let Ok(record) = Record::decode(&row.stored).map(|versioned| versioned.record) else { continue };
            let id = record.registration_id().to_string();
            if record.pending().is_some() && record.assignment().is_none() && devices.contains(&id) {
                let key = Key::new(Table::Device, row.name);
                let forgotten = self.memory.commit(vec![Write { key, expect: Expect::Any, value: None }]).await;
                return forgotten.is_ok().then_some(id);
            }
        }
        None
    }
}

impl Hasty {
    /// Keeps what was acknowledged; all of it becomes durable at once, now and then.
    async fn keep(&self, writes: Vec<Write>) {
        let due = {
            let mut unflushed = self.unflushed.lock();
            unflushed.push(writes);
            if unflushed.len() < UNFLUSHED_MAX {
                return;
            }
            std::mem::take(&mut *unflushed)
        };
        for writes in due {
            let writes = writes.into_iter().map(|write| Write { expect: Expect::Any, ..write }).collect();
            // It was accepted by the other copy, which keeps the same rows.
            let _ = self.durable.commit(writes).await;
        }
    }
}

impl Store for Disk {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, ReadError>> {
        self.memory.get(key)
    }

    fn commit(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<Vec<Version>, CommitError>> {
        let Some(hasty) = &self.hasty else { return self.memory.commit(writes) };
        async move {
            let versions = self.memory.commit(writes.clone()).await?;
            hasty.keep(writes).await;
            Ok(versions)
        }
        .boxed()
    }

    fn scan<'a>(
        &'a self,
        table: Table,
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Row>, ReadError>> {
        self.memory.scan(table, after, limit)
    }

    fn last(&self, table: Table) -> BoxFuture<'_, Result<Option<Row>, ReadError>> {
        self.memory.last(table)
    }

    fn health(&self) -> Health {
        self.memory.health()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.memory.close()
    }
}
