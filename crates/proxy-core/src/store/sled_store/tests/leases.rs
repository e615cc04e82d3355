//! Leases in a store that belongs to one process at a time.

use rate_control::ownership::{Beat, Epoch};

use super::open;
use crate::store::conformance::{Candidate, commit, device, fenced, lease_name, put, take};
use crate::store::sled_store::codec;
use crate::store::{CommitError, Expect, LeaseError, ReadError, Store as _, Table, lease};

#[tokio::test]
async fn the_next_process_takes_the_lease_at_once_in_an_epoch_of_its_own() {
    let (dir, name) = (tempfile::tempdir().unwrap(), lease_name("lines"));
    for epoch in 1..=4 {
        let (store, process) = (open(&dir), Candidate::new("alone"));
        assert!(store.is_exclusive(), "whoever had it before is gone");
        assert_eq!(take(&store, &name, &process).await, Epoch(epoch));
        let writes = vec![put(device("a"), Expect::Any, epoch.to_string())];
        store.commit(fenced(&name, Epoch(epoch), writes)).await.unwrap();
        store.change_lease(&name, process.renew(Epoch(epoch), 2_000)).await.unwrap();
        if epoch % 2 == 0 {
            store.close().await;
        }
    }
    let store = open(&dir);
    assert_eq!(store.lease(&name).await.unwrap().map(|lease| (lease.epoch, lease.beat)), Some((Epoch(4), Beat(1))));
}

#[tokio::test]
async fn a_damaged_lease_is_held_by_nobody_and_given_to_nobody() {
    let (dir, name, process) = (tempfile::tempdir().unwrap(), lease_name("lines"), Candidate::new("alone"));
    let store = open(&dir);
    take(&store, &name, &process).await;
    store.close().await;
    drop(store);
    let store = open(&dir);
    let raw = codec::raw_name(Table::Meta, &lease::row_name(&name));
    let db = store.shared.db.read().clone().unwrap();
    let mut value = db.get(&raw).unwrap().unwrap().to_vec();
    *value.last_mut().unwrap() ^= 1;
    db.insert(&raw, value).unwrap();
    drop(db);
    assert!(matches!(store.lease(&name).await, Err(ReadError::Corrupt { table: Table::Meta, .. })));
    let taken = store.change_lease(&name, process.take(Some((Epoch(1), Beat(0))))).await;
    assert!(matches!(&taken, Err(LeaseError::Refused(why)) if why.contains("backup")), "{taken:?}");
    let under_it = store.commit(fenced(&name, Epoch(1), vec![put(device("a"), Expect::Any, "x")])).await;
    assert!(matches!(under_it, Err(CommitError::Refused(_))), "{under_it:?}");
    commit(&store, vec![put(device("b"), Expect::Any, "x")]).await.unwrap();
}
