//! One suite for every backend: what the core relies on, and nothing more.

use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;

use super::{CommitError, Expect, Health, Key, MAX_NAME, MAX_VALUE, MAX_WRITES, Row, Store, Table, Version, Write};

/// A store and the means to stall what makes commits durable.
pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) hold: Box<dyn Fn(bool) + Send + Sync>,
    /// What has to outlive the store.
    pub(crate) _keep: Box<dyn std::any::Any>,
}

/// Runs the whole suite on what `$make` constructs.
macro_rules! conformance {
    ($make:expr) => {
        $crate::store::conformance::conformance!($make;
            versions_count_the_writes_of_a_key
            of_many_that_create_one_key_one_wins
            of_many_that_change_one_version_one_wins
            one_broken_expectation_applies_nothing
            a_key_named_twice_builds_on_itself
            a_deleted_key_begins_anew
            a_scan_is_ordered_paged_and_bounded_to_its_table
            last_is_the_end_of_its_table
            commits_become_durable_in_order
            nothing_is_visible_before_it_is_durable
            a_conflict_is_told_when_what_it_lost_to_can_be_read
            a_dropped_commit_is_applied_whole
            large_values_come_back
            bounds_are_refused
            a_closed_store_takes_nothing
        );
    };
    ($make:expr; $($case:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let fixture = $make;
                $crate::store::conformance::$case(&fixture).await;
            }
        )+
    };
}
pub(crate) use conformance;

pub(crate) fn device(name: &str) -> Key {
    Key::new(Table::Device, name)
}

pub(crate) fn put(key: Key, expect: Expect, value: impl AsRef<[u8]>) -> Write {
    Write { key, expect, value: Some(Bytes::copy_from_slice(value.as_ref())) }
}

fn delete(key: Key, expect: Expect) -> Write {
    Write { key, expect, value: None }
}

async fn value(store: &dyn Store, key: &Key) -> Option<(Version, Vec<u8>)> {
    store.get(key).await.unwrap().map(|stored| (stored.version, stored.value.to_vec()))
}

fn names(rows: &[Row]) -> Vec<String> {
    rows.iter().map(|row| String::from_utf8(row.name.clone()).unwrap()).collect()
}

pub(crate) async fn versions_count_the_writes_of_a_key(fixture: &Fixture) {
    let (store, key) = (&*fixture.store, device("a"));
    assert_eq!(value(store, &key).await, None);
    assert_eq!(store.commit(vec![put(key.clone(), Expect::Absent, "1")]).await.unwrap(), [1]);
    assert_eq!(store.commit(vec![put(key.clone(), Expect::Version(1), "2")]).await.unwrap(), [2]);
    assert_eq!(store.commit(vec![put(key.clone(), Expect::Any, "3")]).await.unwrap(), [3]);
    assert_eq!(value(store, &key).await, Some((3, b"3".to_vec())));
    assert_eq!(value(store, &Key::new(Table::Feed, "a")).await, None, "tables are apart");
    assert!(store.commit(Vec::new()).await.unwrap().is_empty());
}

async fn race(store: &Arc<dyn Store>, expect: Expect) -> Vec<usize> {
    let tasks: Vec<_> = (0..32_usize)
        .map(|n| {
            let store = Arc::clone(store);
            tokio::spawn(async move { store.commit(vec![put(device("raced"), expect, n.to_string())]).await })
        })
        .collect();
    let mut winners = Vec::new();
    for (n, task) in tasks.into_iter().enumerate() {
        match task.await.unwrap() {
            Ok(_) => winners.push(n),
            Err(CommitError::Conflict { index: 0 }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    winners
}

pub(crate) async fn of_many_that_create_one_key_one_wins(fixture: &Fixture) {
    let winners = race(&fixture.store, Expect::Absent).await;
    let [winner] = winners[..] else { panic!("{winners:?} won") };
    assert_eq!(value(&*fixture.store, &device("raced")).await, Some((1, winner.to_string().into_bytes())));
}

pub(crate) async fn of_many_that_change_one_version_one_wins(fixture: &Fixture) {
    fixture.store.commit(vec![put(device("raced"), Expect::Absent, "first")]).await.unwrap();
    let winners = race(&fixture.store, Expect::Version(1)).await;
    let [winner] = winners[..] else { panic!("{winners:?} won") };
    assert_eq!(value(&*fixture.store, &device("raced")).await, Some((2, winner.to_string().into_bytes())));
    assert!(race(&fixture.store, Expect::Version(0)).await.is_empty(), "version 0 names nothing");
}

pub(crate) async fn one_broken_expectation_applies_nothing(fixture: &Fixture) {
    let store = &*fixture.store;
    store.commit(vec![put(device("b"), Expect::Absent, "old")]).await.unwrap();
    let writes = vec![
        put(device("a"), Expect::Absent, "new"),
        put(device("b"), Expect::Any, "new"),
        put(device("c"), Expect::Version(7), "new"),
        put(device("d"), Expect::Version(7), "new"),
    ];
    let error = store.commit(writes).await.unwrap_err();
    assert!(matches!(error, CommitError::Conflict { index: 2 }), "{error}");
    assert_eq!(value(store, &device("a")).await, None);
    assert_eq!(value(store, &device("b")).await, Some((1, b"old".to_vec())));
    let writes = vec![put(device("a"), Expect::Absent, "new"), put(device("b"), Expect::Version(1), "new")];
    assert_eq!(store.commit(writes).await.unwrap(), [1, 2], "what was refused left nothing behind");
}

pub(crate) async fn a_key_named_twice_builds_on_itself(fixture: &Fixture) {
    let (store, key) = (&*fixture.store, device("a"));
    let writes = vec![put(key.clone(), Expect::Absent, "1"), put(key.clone(), Expect::Version(1), "2")];
    assert_eq!(store.commit(writes).await.unwrap(), [1, 2]);
    assert_eq!(value(store, &key).await, Some((2, b"2".to_vec())));
    let writes = vec![put(key.clone(), Expect::Version(2), "3"), put(key.clone(), Expect::Version(2), "4")];
    assert!(matches!(store.commit(writes).await, Err(CommitError::Conflict { index: 1 })));
    assert_eq!(value(store, &key).await, Some((2, b"2".to_vec())));
}

pub(crate) async fn a_deleted_key_begins_anew(fixture: &Fixture) {
    let (store, key) = (&*fixture.store, device("a"));
    store.commit(vec![put(key.clone(), Expect::Absent, "1")]).await.unwrap();
    store.commit(vec![put(key.clone(), Expect::Any, "2")]).await.unwrap();
    assert!(store.commit(vec![delete(key.clone(), Expect::Version(1))]).await.is_err());
    assert_eq!(store.commit(vec![delete(key.clone(), Expect::Version(2))]).await.unwrap(), [0]);
    assert_eq!(value(store, &key).await, None);
    assert_eq!(store.commit(vec![delete(key.clone(), Expect::Absent)]).await.unwrap(), [0]);
    assert_eq!(store.commit(vec![put(key.clone(), Expect::Absent, "3")]).await.unwrap(), [1]);
}

pub(crate) async fn a_scan_is_ordered_paged_and_bounded_to_its_table(fixture: &Fixture) {
    let store = &*fixture.store;
    let mut writes: Vec<Write> =
        ["d", "b", "", "ab", "a", "c"].map(|name| put(device(name), Expect::Absent, name)).into();
    writes.push(put(Key::new(Table::Ledger, ""), Expect::Absent, "other"));
    store.commit(writes).await.unwrap();
    let all = store.scan(Table::Device, None, 4096).await.unwrap();
    assert_eq!(names(&all), ["", "a", "ab", "b", "c", "d"]);
    assert!(all.iter().all(|row| row.stored.value == row.name && row.stored.version == 1));
    let mut paged = Vec::new();
    loop {
        let after = paged.last().map(|row: &Row| row.name.clone());
        let page = store.scan(Table::Device, after.as_deref(), 4).await.unwrap();
        let end = page.len() < 4;
        paged.extend(page);
        if end {
            break;
        }
    }
    assert_eq!(paged, all);
    assert_eq!(names(&store.scan(Table::Device, Some(b"aa"), 2).await.unwrap()), ["ab", "b"], "after need not exist");
    assert!(store.scan(Table::Device, None, 0).await.unwrap().is_empty());
    assert!(store.scan(Table::Feed, None, 10).await.unwrap().is_empty());
}

pub(crate) async fn last_is_the_end_of_its_table(fixture: &Fixture) {
    let store = &*fixture.store;
    let feed = |n: u64| Key::new(Table::Feed, n.to_be_bytes());
    assert_eq!(store.last(Table::Feed).await.unwrap(), None);
    for n in [1, 2, 256] {
        store.commit(vec![put(feed(n), Expect::Absent, "x"), put(device("z"), Expect::Any, "x")]).await.unwrap();
        assert_eq!(store.last(Table::Feed).await.unwrap().unwrap().name, n.to_be_bytes());
    }
    store.commit(vec![delete(feed(256), Expect::Any)]).await.unwrap();
    assert_eq!(store.last(Table::Feed).await.unwrap().unwrap().name, 2_u64.to_be_bytes());
    assert_eq!(store.last(Table::Ledger).await.unwrap(), None);
}

pub(crate) async fn commits_become_durable_in_order(fixture: &Fixture) {
    let store = &*fixture.store;
    // Submitted together, each builds on the one before: they succeed only in this order.
    let chain = (0..200).map(|n| {
        let expect = if n == 0 { Expect::Absent } else { Expect::Version(n) };
        store.commit(vec![put(device("a"), expect, n.to_string())])
    });
    for (n, outcome) in (1..).zip(futures_util::future::join_all(chain).await) {
        assert_eq!(outcome.unwrap(), [n]);
    }
}

pub(crate) async fn nothing_is_visible_before_it_is_durable(fixture: &Fixture) {
    let store = &*fixture.store;
    let old = ["a", "c", "e"].map(|name| put(device(name), Expect::Absent, "old"));
    store.commit(old.into()).await.unwrap();
    (fixture.hold)(true);
    let writes = vec![
        put(device("a"), Expect::Version(1), "new"),
        put(device("b"), Expect::Absent, "new"),
        delete(device("c"), Expect::Version(1)),
        put(device("f"), Expect::Absent, "new"),
    ];
    let mut first = store.commit(writes);
    // Hundreds of looks while the writer works: whenever it applies, nothing of it may show.
    for _ in 0..300 {
        assert!(matches!(futures_util::poll!(&mut first), Poll::Pending));
        assert_eq!(value(store, &device("a")).await, Some((1, b"old".to_vec())));
        assert_eq!(value(store, &device("b")).await, None);
        assert_eq!(names(&store.scan(Table::Device, None, 2).await.unwrap()), ["a", "c"]);
        assert_eq!(names(&store.scan(Table::Device, Some(b"c"), 1).await.unwrap()), ["e"]);
        assert_eq!(names(&store.scan(Table::Device, None, 100).await.unwrap()), ["a", "c", "e"]);
        assert_eq!(store.last(Table::Device).await.unwrap().unwrap().name, b"e");
        tokio::task::yield_now().await;
    }
    let mut second = store.commit(vec![put(device("a"), Expect::Version(2), "newer")]);
    assert!(matches!(futures_util::poll!(&mut second), Poll::Pending), "it builds on what is not durable yet");
    (fixture.hold)(false);
    assert_eq!(first.await.unwrap(), [2, 1, 0, 1]);
    assert_eq!(second.await.unwrap(), [3]);
    assert_eq!(names(&store.scan(Table::Device, None, 100).await.unwrap()), ["a", "b", "e", "f"]);
    assert_eq!(store.last(Table::Device).await.unwrap().unwrap().name, b"f");
}

pub(crate) async fn a_conflict_is_told_when_what_it_lost_to_can_be_read(fixture: &Fixture) {
    let Fixture { store, hold, .. } = fixture;
    hold(true);
    let create = || {
        let store = Arc::clone(store);
        tokio::spawn(async move { store.commit(vec![put(device("contested"), Expect::Absent, "x")]).await })
    };
    let creators = [create(), create()];
    tokio::task::yield_now().await;
    hold(false);
    let mut lost = 0;
    for creator in creators {
        if let Err(error) = creator.await.unwrap() {
            assert!(matches!(error, CommitError::Conflict { index: 0 }), "{error}");
            assert!(store.get(&device("contested")).await.unwrap().is_some());
            lost += 1;
        }
    }
    assert_eq!(lost, 1);
}

pub(crate) async fn a_dropped_commit_is_applied_whole(fixture: &Fixture) {
    let store = &*fixture.store;
    (fixture.hold)(true);
    let mut commit = store.commit(vec![put(device("a"), Expect::Any, "1"), put(device("b"), Expect::Any, "1")]);
    assert!(futures_util::poll!(&mut commit).is_pending());
    drop(commit);
    (fixture.hold)(false);
    // First in, first durable: when the next one is, so is the dropped one.
    store.commit(vec![put(device("c"), Expect::Any, "1")]).await.unwrap();
    assert_eq!(names(&store.scan(Table::Device, None, 10).await.unwrap()), ["a", "b", "c"]);
}

pub(crate) async fn large_values_come_back(fixture: &Fixture) {
    let store = &*fixture.store;
    for (name, size) in [("a", 0), ("b", 20_000), ("c", 300_000), ("d", MAX_VALUE)] {
        let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        store.commit(vec![put(device(name), Expect::Absent, &bytes)]).await.unwrap();
        assert!(value(store, &device(name)).await.unwrap().1 == bytes, "{size} bytes");
    }
}

pub(crate) async fn bounds_are_refused(fixture: &Fixture) {
    let store = &*fixture.store;
    let many = |count: usize| (0..count).map(|n| put(device(&n.to_string()), Expect::Absent, "x")).collect::<Vec<_>>();
    assert_eq!(store.commit(many(MAX_WRITES)).await.unwrap().len(), MAX_WRITES);
    assert_eq!(store.scan(Table::Device, None, 10_000).await.unwrap().len(), MAX_WRITES);
    let long = "n".repeat(MAX_NAME + 1);
    let large = vec![0; MAX_VALUE + 1];
    let refused = [
        many(MAX_WRITES + 1),
        vec![put(device(&long), Expect::Any, "x")],
        vec![put(device("large"), Expect::Any, large)],
    ];
    for writes in refused {
        let error = store.commit(writes).await.unwrap_err();
        assert!(matches!(error, CommitError::Refused(_)), "{error}");
    }
    assert_eq!(store.health(), Health::Writable, "the caller's mistake is not the store's");
    store.commit(vec![put(device(&long[1..]), Expect::Absent, "x")]).await.unwrap();
}

pub(crate) async fn a_closed_store_takes_nothing(fixture: &Fixture) {
    let store = &*fixture.store;
    let taken = store.commit(vec![put(device("a"), Expect::Absent, "x")]);
    let (taken, ()) = futures_util::future::join(taken, store.close()).await;
    assert_eq!(taken.unwrap(), [1], "what was taken before the close is durable after it");
    let error = store.commit(vec![put(device("b"), Expect::Absent, "x")]).await.unwrap_err();
    assert!(matches!(error, CommitError::ReadOnly(_)), "{error}");
    assert!(store.get(&device("a")).await.is_err());
    assert!(store.scan(Table::Device, None, 1).await.is_err());
    assert!(matches!(store.health(), Health::ReadOnly(_)));
    store.close().await;
}
