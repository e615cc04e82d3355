//! Open requests that wait, and a read that takes long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use proxy_core::ids::{InstanceName, LeaseName};
use proxy_core::place::Sequence;
use proxy_core::store::memory::MemoryStore;
use proxy_core::store::{
    Commit, CommitError, Health, Key, Lease, LeaseChange, LeaseError, ReadError, Row, Store, Stored, Table,
};
use proxy_core::use_cases::provision::Outcome;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::support::{World, seconds, settings, sleep};

/// A store whose next read of a device, once that is asked for, hands out what it has read only when it is told to.
#[derive(Debug)]
struct SlowRead {
    store: Arc<MemoryStore>,
    next_is_slow: AtomicBool,
    goes_on: Notify,
}

impl Store for SlowRead {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, ReadError>> {
        Box::pin(async move {
            let read = self.store.get(key).await;
            if key.table == Table::Device && self.next_is_slow.swap(false, Ordering::Relaxed) {
                self.goes_on.notified().await;
            }
            read
        })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Vec<Sequence>, CommitError>> {
        self.store.commit(commit)
    }

    fn lease<'a>(&'a self, name: &'a LeaseName) -> BoxFuture<'a, Result<Option<Lease>, ReadError>> {
        self.store.lease(name)
    }

    fn change_lease<'a>(
        &'a self,
        name: &'a LeaseName,
        change: LeaseChange,
    ) -> BoxFuture<'a, Result<Lease, LeaseError>> {
        self.store.change_lease(name, change)
    }

    fn is_exclusive(&self) -> bool {
        self.store.is_exclusive()
    }

    fn raise_sequence<'a>(&'a self, line: &'a InstanceName, next: Sequence) -> BoxFuture<'a, Result<(), CommitError>> {
        self.store.raise_sequence(line, next)
    }

    fn scan<'a>(
        &'a self,
        table: Table,
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Row>, ReadError>> {
        self.store.scan(table, after, limit)
    }

    fn last(&self, table: Table) -> BoxFuture<'_, Result<Option<Row>, ReadError>> {
        self.store.last(table)
    }

    fn health(&self) -> Health {
        self.store.health()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.store.close()
    }
}

#[tokio::test(start_paused = true)]
async fn an_assignment_that_is_written_while_the_record_is_read_is_told_at_once() {
    let mut slow = None;
    let world = World::behind(settings(&[("a", 60)]), |store| {
        let store = Arc::new(SlowRead { store, next_is_slow: AtomicBool::new(false), goes_on: Notify::new() });
        slow = Some(Arc::clone(&store));
        store
    })
    .await;
    let slow = slow.unwrap();
    world.queue("device-1").await;
    slow.next_is_slow.store(true, Ordering::Relaxed);
    let waiting = tokio::spawn(world.ask("device-1").wait(seconds(30)).of(Arc::clone(&world.gateway)));
    // Its registration ends meanwhile, and nobody waits for that yet.
    sleep(seconds(15)).await;
    assert!(!slow.next_is_slow.load(Ordering::Relaxed), "the request is being read");
    assert!(world.record("device-1").await.unwrap().confirmed().is_some());
    let went_on = Instant::now();
    slow.goes_on.notify_one();
    let answered = waiting.await.unwrap();
    assert!(matches!(answered, Ok(Outcome::Assigned(_))), "{answered:?}");
    assert!(went_on.elapsed() < seconds(1), "{:?}", went_on.elapsed());
}
