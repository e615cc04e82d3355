//! One suite for every backend: what the core relies on, and nothing more. Public for backends that live in crates of their own.
#![expect(
    clippy::unwrap_used,
    missing_docs,
    reason = "it is run by tests only, and the names of its cases say what holds"
)]

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};
use std::task::Poll;

use bytes::Bytes;

use super::{
    Change, Commit, CommitError, Expect, Health, Key, MAX_NAME, MAX_VALUE, MAX_WRITES, Placing, Row, Store, Table,
    Version, Versions, Write,
};
use crate::ids::InstanceName;
use crate::place::{Class, Place, Sequence};
use rate_control::entropy::Entropy;

/// A store and the means to stall what makes commits durable.
pub struct Fixture {
    pub store: Arc<dyn Store>,
    pub hold: Box<dyn Fn(bool) + Send + Sync>,
    /// What a process finds that starts when this one is killed.
    pub killed: Box<dyn Fn() -> Arc<dyn Store> + Send + Sync>,
    /// What has to outlive the store.
    pub _keep: Box<dyn std::any::Any>,
}

/// Runs the whole suite on what `$make` constructs: a test per case, in a crate that has `tokio` with its macros.
#[macro_export]
macro_rules! store_conformance {
    ($make:expr) => {
        $crate::store::conformance::conformance!($make;
            a_value_carries_the_version_of_its_commit
            of_many_that_create_one_key_one_wins
            of_many_that_change_one_version_one_wins
            one_broken_expectation_applies_nothing
            a_guard_changes_nothing_and_has_to_hold
            no_value_is_taken_for_an_earlier_one_also_after_a_deletion
            one_read_tells_whether_a_commit_happened
            places_are_kept_beside_their_values
            numbers_follow_the_order_of_the_commits
            of_many_that_join_each_gets_its_own_number
            no_number_is_given_again_after_a_kill
            a_line_that_is_raised_goes_on_from_there
            a_scan_is_ordered_paged_and_bounded_to_its_table
            last_is_the_end_of_its_table
            commits_become_durable_in_order
            nothing_is_visible_before_it_is_durable
            a_conflict_is_told_when_what_it_lost_to_can_be_read
            a_dropped_commit_is_applied_whole
            large_values_come_back
            bounds_are_refused
            a_closed_store_takes_nothing
            a_lease_is_taken_renewed_and_given_back
            of_many_who_have_seen_the_same_one_takes_the_lease
            a_lease_is_taken_only_from_what_was_seen
            an_owner_that_was_deposed_renews_and_releases_nothing
            what_was_given_back_is_taken_at_once_and_is_not_renewed
            a_change_that_is_repeated_is_granted_again
            a_taking_that_nobody_heard_of_happened_or_did_not
            a_lease_shows_only_what_is_durable
            no_epoch_is_given_again_after_a_kill
            a_commit_is_applied_in_the_epoch_of_its_fence_only
            a_fence_that_does_not_hold_outweighs_every_expectation
            a_commit_that_is_fenced_off_is_refused_alone
            what_bounds_a_lease_is_refused
            a_closed_store_changes_no_lease
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
pub use crate::store_conformance as conformance;
pub use leases::*;

mod leases;

pub fn device(name: &str) -> Key {
    Key::new(Table::Device, name)
}

pub fn put(key: Key, expect: Expect, value: impl AsRef<[u8]>) -> Write {
    Write::put(key, expect, Bytes::copy_from_slice(value.as_ref()))
}

/// A device that joins `line`.
pub fn join(name: &str, line: &InstanceName, expect: Expect) -> Write {
    let placing = Placing::Join { line: line.clone(), class: Class::First };
    Write { key: device(name), expect, change: Change::Put { value: Bytes::from_static(b"joined"), placing } }
}

/// A commit of a version that no other has.
pub fn unnamed(writes: Vec<Write>) -> Commit {
    static VERSIONS: LazyLock<Versions> = LazyLock::new(|| Versions::new(Entropy::from_system()));
    VERSIONS.commit(writes)
}

/// Commits, and gives the version that the values carry from then on.
pub async fn commit(store: &dyn Store, writes: Vec<Write>) -> Result<Version, CommitError> {
    let commit = unnamed(writes);
    let version = commit.version;
    store.commit(commit).await.map(|_| version)
}

async fn numbers(store: &dyn Store, writes: Vec<Write>) -> Vec<Sequence> {
    store.commit(unnamed(writes)).await.unwrap()
}

fn line(name: &str) -> InstanceName {
    InstanceName::parse(name).unwrap()
}

async fn value(store: &dyn Store, key: &Key) -> Option<(Version, Vec<u8>)> {
    store.get(key).await.unwrap().map(|stored| (stored.version, stored.value.to_vec()))
}

async fn place(store: &dyn Store, name: &str) -> Option<Place> {
    store.get(&device(name)).await.unwrap().unwrap().place
}

fn names(rows: &[Row]) -> Vec<String> {
    rows.iter().map(|row| String::from_utf8(row.name.clone()).unwrap()).collect()
}

pub async fn a_value_carries_the_version_of_its_commit(fixture: &Fixture) {
    let (store, key) = (&*fixture.store, device("a"));
    assert_eq!(value(store, &key).await, None);
    let first = commit(store, vec![put(key.clone(), Expect::Absent, "1")]).await.unwrap();
    assert_eq!(value(store, &key).await, Some((first, b"1".to_vec())));
    let writes = vec![put(key.clone(), Expect::Version(first), "2"), put(device("b"), Expect::Absent, "2")];
    let second = commit(store, writes).await.unwrap();
    assert_eq!(value(store, &device("b")).await.unwrap().0, second, "all that it writes");
    let third = commit(store, vec![put(key.clone(), Expect::Any, "3")]).await.unwrap();
    assert_eq!(value(store, &key).await, Some((third, b"3".to_vec())));
    assert_eq!(value(store, &Key::new(Table::Feed, "a")).await, None, "tables are apart");
    commit(store, Vec::new()).await.unwrap();
    for table in Table::ALL {
        commit(store, vec![put(Key::new(table, "each"), Expect::Absent, "x")]).await.unwrap();
        assert!(store.get(&Key::new(table, "each")).await.unwrap().is_some());
    }
}

async fn race(store: &Arc<dyn Store>, expect: Expect) -> Vec<usize> {
    let tasks: Vec<_> = (0..32_usize)
        .map(|n| {
            let store = Arc::clone(store);
            tokio::spawn(async move { commit(&*store, vec![put(device("raced"), expect, n.to_string())]).await })
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

pub async fn of_many_that_create_one_key_one_wins(fixture: &Fixture) {
    let winners = race(&fixture.store, Expect::Absent).await;
    let [winner] = winners[..] else { panic!("{winners:?} won") };
    assert_eq!(value(&*fixture.store, &device("raced")).await.unwrap().1, winner.to_string().into_bytes());
}

pub async fn of_many_that_change_one_version_one_wins(fixture: &Fixture) {
    let store = &fixture.store;
    let first = commit(&**store, vec![put(device("raced"), Expect::Absent, "first")]).await.unwrap();
    let winners = race(store, Expect::Version(first)).await;
    let [winner] = winners[..] else { panic!("{winners:?} won") };
    assert_eq!(value(&**store, &device("raced")).await.unwrap().1, winner.to_string().into_bytes());
    assert!(race(store, Expect::Version(first)).await.is_empty(), "that is gone");
    assert!(race(store, Expect::Version(unnamed(Vec::new()).version)).await.is_empty(), "and that never was");
}

pub async fn one_broken_expectation_applies_nothing(fixture: &Fixture) {
    let store = &*fixture.store;
    let old = commit(store, vec![put(device("b"), Expect::Absent, "old")]).await.unwrap();
    let other = || Expect::Version(unnamed(Vec::new()).version);
    let writes = vec![
        put(device("a"), Expect::Absent, "new"),
        put(device("b"), Expect::Any, "new"),
        put(device("c"), other(), "new"),
        put(device("d"), other(), "new"),
    ];
    let error = commit(store, writes).await.unwrap_err();
    assert!(matches!(error, CommitError::Conflict { index: 2 }), "{error}");
    assert_eq!(value(store, &device("a")).await, None);
    assert_eq!(value(store, &device("b")).await, Some((old, b"old".to_vec())));
    let writes = vec![put(device("a"), Expect::Absent, "new"), put(device("b"), Expect::Version(old), "new")];
    commit(store, writes).await.unwrap();
}

pub async fn a_guard_changes_nothing_and_has_to_hold(fixture: &Fixture) {
    let store = &*fixture.store;
    let guarded = commit(store, vec![put(device("a"), Expect::Absent, "guarded")]).await.unwrap();
    let beside = |expect| vec![Write::keep(device("a"), expect), put(device("b"), Expect::Any, "x")];
    for expect in [Expect::Version(guarded), Expect::Any] {
        commit(store, beside(expect)).await.unwrap();
        assert_eq!(value(store, &device("a")).await, Some((guarded, b"guarded".to_vec())));
    }
    commit(store, vec![Write::keep(device("nobody"), Expect::Absent)]).await.unwrap();
    assert_eq!(value(store, &device("nobody")).await, None);
    let kept = value(store, &device("b")).await;
    let broken = commit(store, beside(Expect::Absent)).await;
    assert!(matches!(broken, Err(CommitError::Conflict { index: 0 })), "{broken:?}");
    let writes = vec![put(device("b"), Expect::Any, "y"), Write::keep(device("nobody"), Expect::Version(guarded))];
    let broken = commit(store, writes).await;
    assert!(matches!(broken, Err(CommitError::Conflict { index: 1 })), "{broken:?}");
    assert_eq!(value(store, &device("b")).await, kept);
}

pub async fn no_value_is_taken_for_an_earlier_one_also_after_a_deletion(fixture: &Fixture) {
    let (store, key) = (&*fixture.store, device("a"));
    let first = commit(store, vec![put(key.clone(), Expect::Absent, "1")]).await.unwrap();
    let second = commit(store, vec![put(key.clone(), Expect::Any, "2")]).await.unwrap();
    assert!(commit(store, vec![Write::delete(key.clone(), Expect::Version(first))]).await.is_err());
    commit(store, vec![Write::delete(key.clone(), Expect::Version(second))]).await.unwrap();
    assert_eq!(value(store, &key).await, None);
    commit(store, vec![Write::delete(key.clone(), Expect::Absent)]).await.unwrap();
    let third = commit(store, vec![put(key.clone(), Expect::Absent, "1")]).await.unwrap();
    for gone in [first, second] {
        let late = commit(store, vec![put(key.clone(), Expect::Version(gone), "late")]).await;
        assert!(matches!(late, Err(CommitError::Conflict { index: 0 })), "{late:?}");
    }
    assert_eq!(value(store, &key).await, Some((third, b"1".to_vec())));
}

/// Whoever did not hear of the end of its commit reads one of the keys that it wrote.
pub async fn one_read_tells_whether_a_commit_happened(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, vec![put(device("a"), Expect::Absent, "old")]).await.unwrap();
    (fixture.hold)(true);
    let unheard = unnamed(vec![put(device("a"), Expect::Any, "new")]);
    let (version, mut commits) = (unheard.version, store.commit(unheard));
    assert!(futures_util::poll!(&mut commits).is_pending());
    drop(commits);
    assert_ne!(value(store, &device("a")).await.unwrap().0, version);
    (fixture.hold)(false);
    // First in, first durable.
    commit(store, vec![put(device("b"), Expect::Absent, "x")]).await.unwrap();
    assert_eq!(value(store, &device("a")).await.unwrap().0, version, "it happened");
    let lost = unnamed(vec![put(device("a"), Expect::Absent, "newer")]);
    let version = lost.version;
    assert!(store.commit(lost).await.is_err());
    assert_ne!(value(store, &device("a")).await.unwrap().0, version, "it did not");
    let survivor = (fixture.killed)();
    assert_eq!(value(&*survivor, &device("a")).await.unwrap().1, b"new", "also for the next process");
}

pub async fn places_are_kept_beside_their_values(fixture: &Fixture) {
    let store = &*fixture.store;
    let (home, other) = (line("home"), line("other"));
    let [number] = numbers(store, vec![join("a", &home, Expect::Absent)]).await[..] else { panic!("one number") };
    let given = Place { class: Class::First, sequence: number };
    assert_eq!(place(store, "a").await, Some(given));
    let row = store.scan(Table::Device, None, 1).await.unwrap().remove(0);
    assert_eq!((row.stored.place, row.stored.value.as_ref()), (Some(given), b"joined".as_slice()));
    assert_eq!(store.last(Table::Device).await.unwrap().unwrap().stored.place, Some(given));
    let at = |line: &InstanceName, place| {
        let placing = Placing::At { line: line.clone(), place };
        Write { key: device("a"), expect: Expect::Any, change: Change::Put { value: Bytes::new(), placing } }
    };
    for class in Class::ALL {
        for sequence in [0, number, Sequence::MAX] {
            let kept = Place { class, sequence };
            assert!(numbers(store, vec![at(&other, kept)]).await.is_empty(), "it was given already");
            assert_eq!(place(store, "a").await, Some(kept));
        }
    }
    assert_eq!(place(&*(fixture.killed)(), "a").await, Some(Place { class: Class::Background, sequence: u64::MAX }));
}

pub async fn numbers_follow_the_order_of_the_commits(fixture: &Fixture) {
    let store = &*fixture.store;
    let (a, b) = (line("a"), line("b"));
    let mut last = None;
    for n in 0..20 {
        let name = |what: &str| format!("{what}-{n}");
        let writes = vec![
            join(&name("first"), &a, Expect::Absent),
            put(device(&name("nowhere")), Expect::Absent, "x"),
            join(&name("other"), &b, Expect::Absent),
            join(&name("second"), &a, Expect::Absent),
        ];
        let given = numbers(store, writes).await;
        let [first, other, second] = given[..] else { panic!("{given:?}") };
        assert!(last < Some(first) && first < second, "{first} and {second} after {last:?}");
        for (what, number) in [("first", first), ("other", other), ("second", second)] {
            assert_eq!(place(store, &name(what)).await.unwrap().sequence, number);
        }
        assert_eq!(place(store, &name("nowhere")).await, None);
        last = Some(second);
        // Whoever loses gets no number.
        let lost =
            commit(store, vec![join("lost", &a, Expect::Absent), join(&name("first"), &a, Expect::Absent)]).await;
        assert!(matches!(lost, Err(CommitError::Conflict { index: 1 })), "{lost:?}");
    }
}

pub async fn of_many_that_join_each_gets_its_own_number(fixture: &Fixture) {
    let joins = (0..64).map(|task| {
        let store = Arc::clone(&fixture.store);
        tokio::spawn(async move {
            let mut given = Vec::new();
            for n in 0..40 {
                given.extend(numbers(&*store, vec![join(&format!("{task}-{n}"), &line("a"), Expect::Absent)]).await);
            }
            given
        })
    });
    let mut all = HashSet::new();
    for task in joins.collect::<Vec<_>>() {
        let given = task.await.unwrap();
        assert!(given.len() == 40 && given.is_sorted(), "{given:?}");
        all.extend(given);
    }
    assert_eq!(all.len(), 64 * 40, "no number is given twice");
}

pub async fn no_number_is_given_again_after_a_kill(fixture: &Fixture) {
    let store = &*fixture.store;
    let given = numbers(store, (0..5).map(|n| join(&n.to_string(), &line("a"), Expect::Absent)).collect()).await;
    commit(store, vec![Write::delete(device("4"), Expect::Any)]).await.unwrap();
    let survivor = (fixture.killed)();
    let [next] = numbers(&*survivor, vec![join("5", &line("a"), Expect::Absent)]).await[..] else { panic!("a number") };
    assert!(given.iter().all(|number| *number < next), "{next} after {given:?}");
}

pub async fn a_line_that_is_raised_goes_on_from_there(fixture: &Fixture) {
    let (store, a) = (&*fixture.store, line("a"));
    numbers(store, vec![join("1", &a, Expect::Absent)]).await;
    store.raise_sequence(&a, 1_000_000).await.unwrap();
    store.raise_sequence(&a, 7).await.unwrap();
    store.raise_sequence(&line("other"), 70).await.unwrap();
    assert_eq!(numbers(store, vec![join("2", &a, Expect::Absent)]).await, [1_000_000]);
    let survivor = (fixture.killed)();
    let [next] = numbers(&*survivor, vec![join("3", &a, Expect::Absent)]).await[..] else { panic!("a number") };
    assert!(next > 1_000_000, "{next}");
    let other = numbers(&*survivor, vec![join("4", &line("other"), Expect::Absent)]).await;
    assert!(other[0] >= 70, "{other:?}: it is raised for good, also if no number was given since");
}

pub async fn a_scan_is_ordered_paged_and_bounded_to_its_table(fixture: &Fixture) {
    let store = &*fixture.store;
    let mut writes: Vec<Write> =
        ["d", "b", "", "ab", "a", "c"].map(|name| put(device(name), Expect::Absent, name)).into();
    writes.push(put(Key::new(Table::Ledger, ""), Expect::Absent, "other"));
    let version = commit(store, writes).await.unwrap();
    let all = store.scan(Table::Device, None, 4096).await.unwrap();
    assert_eq!(names(&all), ["", "a", "ab", "b", "c", "d"]);
    assert!(all.iter().all(|row| row.stored.value == row.name && row.stored.version == version));
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

pub async fn last_is_the_end_of_its_table(fixture: &Fixture) {
    let store = &*fixture.store;
    let feed = |n: u64| Key::new(Table::Feed, n.to_be_bytes());
    assert_eq!(store.last(Table::Feed).await.unwrap(), None);
    for n in [1, 2, 256] {
        commit(store, vec![put(feed(n), Expect::Absent, "x"), put(device("z"), Expect::Any, "x")]).await.unwrap();
        assert_eq!(store.last(Table::Feed).await.unwrap().unwrap().name, n.to_be_bytes());
    }
    commit(store, vec![Write::delete(feed(256), Expect::Any)]).await.unwrap();
    assert_eq!(store.last(Table::Feed).await.unwrap().unwrap().name, 2_u64.to_be_bytes());
    assert_eq!(store.last(Table::Ledger).await.unwrap(), None);
}

pub async fn commits_become_durable_in_order(fixture: &Fixture) {
    let store = &*fixture.store;
    // Submitted together, each builds on the one before: they succeed only in this order.
    let versions: Vec<Version> = (0..200).map(|_| unnamed(Vec::new()).version).collect();
    let chain = versions.iter().enumerate().map(|(n, version)| {
        let expect = n.checked_sub(1).map_or(Expect::Absent, |before| Expect::Version(versions[before]));
        let writes = vec![put(device("a"), expect, n.to_string())];
        store.commit(Commit { version: *version, writes, fence: None })
    });
    for outcome in futures_util::future::join_all(chain).await {
        assert!(outcome.unwrap().is_empty());
    }
}

pub async fn nothing_is_visible_before_it_is_durable(fixture: &Fixture) {
    let store = &*fixture.store;
    let old = ["a", "c", "e"].map(|name| put(device(name), Expect::Absent, "old"));
    let old = commit(store, old.into()).await.unwrap();
    (fixture.hold)(true);
    let writes = vec![
        put(device("a"), Expect::Version(old), "new"),
        put(device("b"), Expect::Absent, "new"),
        Write::delete(device("c"), Expect::Version(old)),
        join("f", &line("a"), Expect::Absent),
    ];
    let submitted = unnamed(writes);
    let (new, mut first) = (submitted.version, store.commit(submitted));
    // Hundreds of looks while the writer works: whenever it applies, nothing of it may show.
    for _ in 0..300 {
        assert!(matches!(futures_util::poll!(&mut first), Poll::Pending));
        assert_eq!(value(store, &device("a")).await, Some((old, b"old".to_vec())));
        assert_eq!(value(store, &device("b")).await, None);
        assert_eq!(names(&store.scan(Table::Device, None, 2).await.unwrap()), ["a", "c"]);
        assert_eq!(names(&store.scan(Table::Device, Some(b"c"), 1).await.unwrap()), ["e"]);
        assert_eq!(names(&store.scan(Table::Device, None, 100).await.unwrap()), ["a", "c", "e"]);
        assert_eq!(store.last(Table::Device).await.unwrap().unwrap().name, b"e");
        tokio::task::yield_now().await;
    }
    let mut second = store.commit(unnamed(vec![put(device("a"), Expect::Version(new), "newer")]));
    assert!(matches!(futures_util::poll!(&mut second), Poll::Pending), "it builds on what is not durable yet");
    (fixture.hold)(false);
    assert_eq!(first.await.unwrap().len(), 1);
    second.await.unwrap();
    assert_eq!(names(&store.scan(Table::Device, None, 100).await.unwrap()), ["a", "b", "e", "f"]);
    assert_eq!(store.last(Table::Device).await.unwrap().unwrap().name, b"f");
}

pub async fn a_conflict_is_told_when_what_it_lost_to_can_be_read(fixture: &Fixture) {
    let Fixture { store, hold, .. } = fixture;
    hold(true);
    let create = || {
        let store = Arc::clone(store);
        tokio::spawn(async move { commit(&*store, vec![put(device("contested"), Expect::Absent, "x")]).await })
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

pub async fn a_dropped_commit_is_applied_whole(fixture: &Fixture) {
    let store = &*fixture.store;
    (fixture.hold)(true);
    let writes = vec![put(device("a"), Expect::Any, "1"), put(device("b"), Expect::Any, "1")];
    let mut dropped = store.commit(unnamed(writes));
    assert!(futures_util::poll!(&mut dropped).is_pending());
    drop(dropped);
    (fixture.hold)(false);
    // First in, first durable: when the next one is, so is the dropped one.
    commit(store, vec![put(device("c"), Expect::Any, "1")]).await.unwrap();
    assert_eq!(names(&store.scan(Table::Device, None, 10).await.unwrap()), ["a", "b", "c"]);
}

pub async fn large_values_come_back(fixture: &Fixture) {
    let store = &*fixture.store;
    for (name, size) in [("a", 0), ("b", 20_000), ("c", 300_000), ("d", MAX_VALUE)] {
        let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        commit(store, vec![put(device(name), Expect::Absent, &bytes)]).await.unwrap();
        assert!(value(store, &device(name)).await.unwrap().1 == bytes, "{size} bytes");
    }
}

pub async fn bounds_are_refused(fixture: &Fixture) {
    let store = &*fixture.store;
    let many = |count: usize| (0..count).map(|n| put(device(&n.to_string()), Expect::Absent, "x")).collect::<Vec<_>>();
    commit(store, many(MAX_WRITES)).await.unwrap();
    assert_eq!(store.scan(Table::Device, None, 10_000).await.unwrap().len(), MAX_WRITES);
    let long = "n".repeat(MAX_NAME + 1);
    let large = vec![0; MAX_VALUE + 1];
    let refused = [
        many(MAX_WRITES + 1),
        vec![put(device(&long), Expect::Any, "x")],
        vec![put(device("large"), Expect::Any, large)],
        vec![put(device("twice"), Expect::Any, "1"), put(device("twice"), Expect::Any, "2")],
        many(20).into_iter().chain([Write::keep(device("11"), Expect::Any)]).collect(),
        vec![put(Key::new(Table::Meta, "store.id"), Expect::Any, "mine")],
    ];
    for writes in refused {
        let error = commit(store, writes).await.unwrap_err();
        assert!(matches!(error, CommitError::Refused(_)), "{error}");
    }
    assert_eq!(store.health(), Health::Writable, "the caller's mistake is not the store's");
    commit(store, vec![put(device(&long[1..]), Expect::Absent, "x")]).await.unwrap();
}

pub async fn a_closed_store_takes_nothing(fixture: &Fixture) {
    let store = &*fixture.store;
    let taken = store.commit(unnamed(vec![put(device("a"), Expect::Absent, "x")]));
    let (taken, ()) = futures_util::future::join(taken, store.close()).await;
    taken.expect("what was taken before the close is durable after it");
    let error = commit(store, vec![put(device("b"), Expect::Absent, "x")]).await.unwrap_err();
    assert!(matches!(error, CommitError::ReadOnly(_)), "{error}");
    let error = store.raise_sequence(&line("a"), 7).await.unwrap_err();
    assert!(matches!(error, CommitError::ReadOnly(_)), "{error}");
    assert!(store.get(&device("a")).await.is_err());
    assert!(store.scan(Table::Device, None, 1).await.is_err());
    assert!(matches!(store.health(), Health::ReadOnly(_)));
    store.close().await;
}
