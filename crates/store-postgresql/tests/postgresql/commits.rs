//! Several processes on one database, and what a commit leaves in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proxy_core::ids::InstanceName;
use proxy_core::place::{Class, Place, Sequence};
use proxy_core::store::conformance::{commit, device, join, put, unnamed};
use proxy_core::store::{Change, CommitError, Expect, Key, Placing, Store, Table, Write};
use store_postgresql::{LinePlace, PostgresqlStore};

use crate::cluster::Database;

fn line(name: &str) -> InstanceName {
    InstanceName::parse(name).unwrap()
}

async fn stores(database: &Database, count: usize) -> Vec<Arc<PostgresqlStore>> {
    let mut stores = Vec::new();
    for _ in 0..count {
        stores.push(Arc::new(database.open().await));
    }
    stores
}

/// Adds 1 to what is under `key`, as often as that takes; how often it lost.
async fn add_one(store: &PostgresqlStore, key: &Key) -> usize {
    for lost in 0.. {
        let found = store.get(key).await.unwrap();
        let count: u64 = found.as_ref().map_or(0, |stored| str::from_utf8(&stored.value).unwrap().parse().unwrap());
        let expect = found.map_or(Expect::Absent, |stored| Expect::Version(stored.version));
        match commit(store, vec![put(key.clone(), expect, (count + 1).to_string())]).await {
            Ok(_) => return lost,
            Err(CommitError::Conflict { index: 0 }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    unreachable!()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_eight_writers_none_overwrites_another() {
    const ROUNDS: usize = 15;
    let Some(database) = Database::new().await else { return };
    let keys = [device("a"), device("b"), Key::new(Table::Meta, "a"), Key::new(Table::Ledger, "a")];
    let writers = stores(&database, 8).await.into_iter().map(|store| {
        let keys = keys.clone();
        tokio::spawn(async move {
            let mut lost = 0;
            for round in 0..ROUNDS {
                // All begin with a key that nobody has created yet.
                lost += add_one(&store, &keys[round % keys.len()]).await;
            }
            lost
        })
    });
    let mut lost = 0;
    for writer in writers.collect::<Vec<_>>() {
        lost += writer.await.unwrap();
    }
    assert!(lost > 0, "they never met");
    let store = database.open().await;
    let mut sum = 0;
    for key in &keys {
        sum += str::from_utf8(&store.get(key).await.unwrap().unwrap().value).unwrap().parse::<usize>().unwrap();
    }
    assert_eq!(sum, 8 * ROUNDS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_eight_writers_that_create_the_same_devices_one_gets_each() {
    let Some(database) = Database::new().await else { return };
    let creators = stores(&database, 8).await.into_iter().map(|store| {
        tokio::spawn(async move {
            let a = line("a");
            let all: Vec<String> = (0..40).map(|n| format!("sn-{n}")).collect();
            let joins = all.iter().map(|name| store.commit(unnamed(vec![join(name, &a, Expect::Absent)])));
            let mut given = BTreeMap::new();
            for (name, outcome) in all.iter().zip(futures_util::future::join_all(joins).await) {
                match outcome {
                    Ok(numbers) => drop(given.insert(numbers[0], name.clone())),
                    Err(CommitError::Conflict { index: 0 }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            given
        })
    });
    let mut given = BTreeMap::new();
    for creator in creators.collect::<Vec<_>>() {
        for (number, name) in creator.await.unwrap() {
            assert_eq!(given.insert(number, name), None, "{number} was given twice");
        }
    }
    assert_eq!(given.len(), 40, "each device once");
    let store = database.open().await;
    let places = store.places(&line("a"), None, 1000).await.unwrap();
    let found: BTreeMap<Sequence, String> =
        places.into_iter().map(|place| (place.sequence, String::from_utf8(place.name).unwrap())).collect();
    assert_eq!(found, given, "whoever lost left no place");
}

/// Reads on and on, from where it is, until it is told that no more are written and has come to the end.
async fn follow(store: &PostgresqlStore, written: &AtomicBool) -> Vec<Sequence> {
    let (mut seen, mut last): (Vec<Sequence>, Option<LinePlace>) = (Vec::new(), None);
    loop {
        let ended = written.load(Ordering::Acquire);
        let page = store.places(&line("a"), last.as_ref(), 7).await.unwrap();
        if page.is_empty() && ended {
            return seen;
        }
        seen.extend(page.iter().map(|place| place.sequence));
        last = page.into_iter().next_back().or(last);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_with_a_cursor_sees_every_place_that_is_given() {
    let Some(database) = Database::new().await else { return };
    let written = Arc::new(AtomicBool::new(false));
    let (reader, ends) = (Arc::new(database.open().await), Arc::clone(&written));
    let follower = tokio::spawn(async move { follow(&reader, &ends).await });
    let mut joiners = Vec::new();
    for (number, store) in stores(&database, 4).await.into_iter().enumerate() {
        for task in 0..4 {
            let store = Arc::clone(&store);
            joiners.push(tokio::spawn(async move {
                let mut given: Vec<Sequence> = Vec::new();
                for n in 0..25 {
                    let name = format!("{number}-{task}-{n}");
                    let numbers = store.commit(unnamed(vec![join(&name, &line("a"), Expect::Absent)])).await.unwrap();
                    assert!(given.last() < numbers.first(), "numbers follow the order of the commits");
                    given.extend(numbers);
                }
                given
            }));
        }
    }
    let mut given = BTreeSet::new();
    for joiner in joiners {
        given.extend(joiner.await.unwrap());
    }
    written.store(true, Ordering::Release);
    let seen = follower.await.unwrap();
    assert_eq!(given.len(), 4 * 4 * 25);
    assert_eq!(seen, given.into_iter().collect::<Vec<_>>(), "all of them, each once, in order");
}

fn placed(name: &str, placing: Placing) -> Write {
    Write { key: device(name), expect: Expect::Any, change: Change::Put { value: "x".into(), placing } }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_can_be_read_without_its_records_and_follows_them() {
    let Some(database) = Database::new().await else { return };
    let store = database.open().await;
    let (a, b) = (line("a"), line("b"));
    let names = async |line: &InstanceName| -> Vec<(String, Class, Sequence)> {
        let places = store.places(line, None, 10).await.unwrap();
        places.into_iter().map(|at| (String::from_utf8(at.name).unwrap(), at.place.class, at.place.sequence)).collect()
    };
    assert!(names(&a).await.is_empty(), "nobody has ever joined it");
    let joins = vec![join("1", &a, Expect::Absent), join("2", &a, Expect::Absent), join("3", &a, Expect::Absent)];
    assert_eq!(store.commit(unnamed(joins)).await.unwrap(), [0, 1, 2]);
    let first = |name: &str, number| (name.to_owned(), Class::First, number);
    assert_eq!(names(&a).await, [first("1", 0), first("2", 1), first("3", 2)]);

    // A move to another line, one step ahead in the same place, out of the line, and gone.
    let kept = |class, sequence| Placing::At { line: line("a"), place: Place { class, sequence } };
    store.commit(unnamed(vec![join("1", &b, Expect::Any)])).await.unwrap();
    store.commit(unnamed(vec![placed("2", kept(Class::Expedited, 1))])).await.unwrap();
    assert_eq!(names(&a).await, [("2".to_owned(), Class::Expedited, 1), first("3", 2)]);
    assert_eq!(names(&b).await, [first("1", 0)]);
    store.commit(unnamed(vec![placed("2", Placing::Nowhere)])).await.unwrap();
    assert_eq!(names(&a).await, [first("3", 2)]);
    store.commit(unnamed(vec![placed("3", kept(Class::First, 2))])).await.unwrap();
    assert_eq!(names(&a).await, [first("3", 2)], "it stays");
    store.commit(unnamed(vec![Write::delete(device("3"), Expect::Any)])).await.unwrap();
    assert!(names(&a).await.is_empty());

    // Back to an earlier place, which another one of another class may have as well.
    store.commit(unnamed(vec![placed("1", kept(Class::First, 1))])).await.unwrap();
    store.commit(unnamed(vec![placed("4", kept(Class::Background, 1))])).await.unwrap();
    assert_eq!(names(&a).await, [first("1", 1), ("4".to_owned(), Class::Background, 1)]);
    assert!(names(&b).await.is_empty());
    let one = store.places(&a, None, 1).await.unwrap();
    let next = store.places(&a, one.first(), 10).await.unwrap();
    assert_eq!(next.len(), 1, "a page may end between two of the same number: {next:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_while_a_batch_is_under_way_goes_together_in_the_next_one() {
    let Some(database) = Database::new().await else { return };
    let store = database.open().await;
    let admin = database.admin().await;
    admin.batch_execute("BEGIN; LOCK TABLE dps_proxy.attempt IN SHARE MODE").await.unwrap();
    let before = store.steps();
    let commits = (0..100).map(|n| store.commit(unnamed(vec![join(&n.to_string(), &line("a"), Expect::Absent)])));
    let all = futures_util::future::join_all(commits);
    let release = async {
        // The first one is under way: it waits for the table.
        while store.steps() == before {
            tokio::task::yield_now().await;
        }
        admin.batch_execute("COMMIT").await.unwrap();
    };
    let (outcomes, ()) = futures_util::future::join(all, release).await;
    let numbers: Vec<Sequence> = outcomes.into_iter().map(|outcome| outcome.unwrap()[0]).collect();
    assert_eq!(numbers, (0..100).collect::<Vec<_>>(), "in the order in which they came");
    // Two steps each: sent, and answered.
    let batches = (store.steps() - before) / 2;
    assert!(batches <= 4, "{batches} batches for 100 commits");
}
