//! Answers that are lost, servers that die, and statements that come too late.

use std::sync::Arc;
use std::time::Duration;

use proxy_core::ids::InstanceName;
use proxy_core::place::{Class, Place};
use proxy_core::store::conformance::{commit, device, join, put, unnamed};
use proxy_core::store::{CommitError, Expect, Health, Store};
use store_postgresql::PostgresqlStore;

use crate::cluster::Database;
use crate::middleman::{Middleman, Plan};

fn line() -> InstanceName {
    InstanceName::parse("a").unwrap()
}

async fn value(store: &PostgresqlStore, name: &str) -> Option<String> {
    let stored = store.get(&device(name)).await.unwrap();
    stored.map(|stored| String::from_utf8(stored.value.to_vec()).unwrap())
}

/// A store that reaches the server through somebody else.
async fn through(database: &Database) -> (Middleman, PostgresqlStore) {
    let middleman = Middleman::before(database.cluster.port).await;
    let mut options = crate::cluster::options("gateway", &database.name, middleman.port);
    options.commit_timeout = Duration::from_millis(700);
    let store = PostgresqlStore::open(options).await.unwrap();
    // The line has its number, so that the next request is the commit.
    commit(&store, vec![join("first", &line(), Expect::Absent)]).await.unwrap();
    (middleman, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_was_lost_is_acknowledged_once_with_its_numbers() {
    let Some(database) = Database::new().await else { return };
    let (middleman, store) = through(&database).await;
    let mut last = 0;
    for n in 0..3 {
        let name = format!("sn-{n}");
        middleman.next(Plan::LoseAnswer);
        let numbers = store.commit(unnamed(vec![join(&name, &line(), Expect::Absent)])).await.unwrap();
        assert!(middleman.is_done());
        let [number] = numbers[..] else { panic!("{numbers:?}") };
        assert_eq!(number, last + 1, "it was given one number, and not another one when it was sent again");
        last = number;
        let stored = store.get(&device(&name)).await.unwrap().unwrap();
        assert_eq!(stored.place, Some(Place { class: Class::First, sequence: number }));
    }
    // A deletion and a conflict leave no value that could tell.
    middleman.next(Plan::LoseAnswer);
    let delete = proxy_core::store::Write::delete(device("sn-0"), Expect::Any);
    commit(&store, vec![delete]).await.unwrap();
    middleman.next(Plan::LoseAnswer);
    let lost =
        commit(&store, vec![put(device("sn-9"), Expect::Any, "x"), put(device("sn-1"), Expect::Absent, "x")]).await;
    assert!(matches!(lost, Err(CommitError::Conflict { index: 1 })), "{lost:?}");
    assert_eq!(value(&store, "sn-9").await, None);
    assert_eq!(store.places(&line(), None, 10).await.unwrap().len(), 3, "first, sn-1 and sn-2");
    assert_eq!(store.health(), Health::Writable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_comes_too_late_does_nothing() {
    let Some(database) = Database::new().await else { return };
    let (middleman, store) = through(&database).await;
    middleman.next(Plan::KeepRequest);
    // It is given up after its time-out, settled as one that never happens, and sent again over another connection.
    let numbers = store.commit(unnamed(vec![join("a", &line(), Expect::Absent)])).await.unwrap();
    assert!(middleman.is_done());
    commit(&store, vec![put(device("a"), Expect::Any, "newer")]).await.unwrap();
    let kept = store.get(&device("a")).await.unwrap();
    assert!(!middleman.deliver().await.is_empty());
    assert_eq!(store.get(&device("a")).await.unwrap(), kept, "what came later stands");

    // The same with a write that expects nothing, which would not even be a conflict.
    middleman.next(Plan::KeepRequest);
    commit(&store, vec![put(device("a"), Expect::Any, "old")]).await.unwrap();
    commit(&store, vec![put(device("a"), Expect::Any, "new")]).await.unwrap();
    let answer = String::from_utf8_lossy(&middleman.deliver().await).into_owned();
    assert!(answer.contains("attempt_pkey"), "the attempt was settled: {answer:?}");
    assert_eq!(value(&store, "a").await.as_deref(), Some("new"));
    assert!(numbers[0] > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_is_still_under_way_is_waited_for() {
    let Some(database) = Database::new().await else { return };
    let (_middleman, store) = through(&database).await;
    let admin = database.admin().await;
    admin.batch_execute("BEGIN; LOCK TABLE dps_proxy.entry IN SHARE MODE").await.unwrap();
    let key = proxy_core::store::Key::new(proxy_core::store::Table::Meta, "a");
    let taking = commit(&store, vec![put(key.clone(), Expect::Absent, "x")]);
    let release = async {
        // Longer than the time-out of a commit, and shorter than that of a lock.
        tokio::time::sleep(Duration::from_millis(850)).await;
        admin.batch_execute("COMMIT").await.unwrap();
    };
    let (taken, ()) = tokio::join!(taking, release);
    let version = taken.unwrap();
    assert_eq!(store.get(&key).await.unwrap().unwrap().version, version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_away_everything_is_refused_and_then_it_goes_on_by_itself() {
    let Some(database) = Database::new().await else { return };
    let (middleman, store) = through(&database).await;
    middleman.open(false);
    // Also if nobody writes.
    while store.health() == Health::Writable {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let Health::ReadOnly(why) = store.health() else { panic!("{:?}", store.health()) };
    assert!(why.contains("cannot be reached") && why.contains("by themselves"), "{why}");
    for _ in 0..3 {
        let refused = commit(&store, vec![put(device("b"), Expect::Any, "x")]).await;
        assert!(matches!(refused, Err(CommitError::ReadOnly(_))), "{refused:?}");
    }
    assert!(store.raise_sequence(&line(), 7).await.is_err());
    store.get(&device("first")).await.unwrap_err();
    store.scan(proxy_core::store::Table::Device, None, 1).await.unwrap_err();
    middleman.open(true);
    while store.health() != Health::Writable {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    commit(&store, vec![put(device("b"), Expect::Absent, "x")]).await.expect("nothing of it was applied before");
    assert!(store.get(&device("first")).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_closes_also_while_the_server_is_away() {
    let Some(database) = Database::new().await else { return };
    let (middleman, store) = through(&database).await;
    let store = Arc::new(store);
    middleman.next(Plan::KeepRequest);
    let closing = Arc::clone(&store);
    let unheard = tokio::spawn(async move { commit(&*closing, vec![put(device("b"), Expect::Any, "x")]).await });
    while !middleman.is_done() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    middleman.open(false);
    store.close().await;
    let outcome = unheard.await.unwrap();
    assert!(matches!(outcome, Err(CommitError::Failed(_))), "nobody knows: {outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_the_kill_of_the_server() {
    let Some(database) = Database::alone().await else { return };
    let store = Arc::new(database.open().await);
    let mut writers = Vec::new();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    for task in 0..8 {
        let (store, stopped) = (Arc::clone(&store), stopped.clone());
        writers.push(tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for n in 0.. {
                if *stopped.borrow() {
                    break;
                }
                let name = format!("{task}-{n}");
                match store.commit(unnamed(vec![join(&name, &line(), Expect::Absent)])).await {
                    Ok(numbers) => acknowledged.push((name, numbers[0])),
                    // While it is away.
                    Err(CommitError::ReadOnly(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                    Err(other) => panic!("{other}"),
                }
            }
            acknowledged
        }));
    }
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        database.cluster.kill().await;
        while store.health() != Health::Writable {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    commit(&*store, vec![put(device("after"), Expect::Absent, "x")]).await.unwrap();
    stop.send_replace(true);
    let survivor = database.open().await;
    let mut numbers = std::collections::BTreeSet::new();
    for writer in writers {
        for (name, number) in writer.await.unwrap() {
            let stored = survivor.get(&device(&name)).await.unwrap();
            let place = stored.unwrap_or_else(|| panic!("{name} is lost")).place;
            assert_eq!(place, Some(Place { class: Class::First, sequence: number }), "{name}");
            assert!(numbers.insert(number), "{number} was given twice");
        }
    }
    assert!(numbers.len() > 50, "{} were acknowledged", numbers.len());
    assert!(value(&survivor, "after").await.is_some());
}

/// The process of the server that carries out a commit and waits for `event`, once there is one. Not to be asked within a transaction, which sees the same
/// all the time.
async fn waiting_backend(admin: &tokio_postgres::Client, event: &str) -> i32 {
    const WAITING: &str = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' \
        AND query LIKE '%commit_v2%' AND wait_event = $1 AND pid <> pg_backend_pid()";
    loop {
        if let Some(row) = admin.query(WAITING, &[&event]).await.unwrap().first() {
            return row.get(0);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_an_administrator_ends_costs_no_commit() {
    let Some(database) = Database::new().await else { return };
    let mut options = database.options();
    options.lock_timeout = Duration::from_secs(30);
    options.commit_timeout = Duration::from_secs(30);
    let store = PostgresqlStore::open(options).await.unwrap();
    commit(&store, vec![join("first", &line(), Expect::Absent)]).await.unwrap();
    let (admin, holder) = (database.admin().await, database.admin().await);
    holder.batch_execute("BEGIN; LOCK TABLE dps_proxy.place IN SHARE MODE").await.unwrap();
    let taking = store.commit(unnamed(vec![join("a", &line(), Expect::Absent)]));
    let ending = async {
        let backend = waiting_backend(&admin, "relation").await;
        admin.query_one("SELECT pg_terminate_backend($1)", &[&backend]).await.unwrap();
        holder.batch_execute("COMMIT").await.unwrap();
    };
    let (taken, ()) = tokio::join!(taking, ending);
    let numbers = taken.unwrap();
    let place = store.get(&device("a")).await.unwrap().unwrap().place;
    assert_eq!(place, Some(Place { class: Class::First, sequence: numbers[0] }));
    assert_eq!(store.places(&line(), None, 10).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_waits_for_a_standby_is_neither_shown_nor_sent_again() {
    let Some(database) = Database::alone().await else { return };
    let mut options = database.options();
    options.commit_timeout = Duration::from_millis(300);
    let store = PostgresqlStore::open(options).await.unwrap();
    commit(&store, vec![join("first", &line(), Expect::Absent)]).await.unwrap();
    let admin = database.admin().await;
    let standbys = async |names: &str| {
        admin.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).await.unwrap();
        admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        while admin.query_one("SHOW synchronous_standby_names", &[]).await.unwrap().get::<_, String>(0) != names {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    standbys("nobody").await;
    // The server's processes hear of it one after the other.
    let mut number = 0;
    let (taking, name) = loop {
        number += 1;
        let name = number.to_string();
        let mut taking = store.commit(unnamed(vec![join(&name, &line(), Expect::Absent)]));
        tokio::select! {
            taken = &mut taking => assert_eq!(taken.unwrap(), [number]),
            _backend = waiting_backend(&admin, "SyncRep") => break (taking, name),
        }
    };
    let waiting = async {
        // Given up twice and more: the connection is dropped, and the server goes on waiting.
        let before = store.steps();
        while store.steps() < before + 4 {
            assert_eq!(value(&store, &name).await, None, "no standby has it yet");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        standbys("").await;
    };
    let (taken, ()) = tokio::join!(taking, waiting);
    assert_eq!(taken.unwrap(), [number], "one number, and no second try");
    assert_eq!(value(&store, &name).await.as_deref(), Some("joined"));
}
