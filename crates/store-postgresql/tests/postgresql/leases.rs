//! Owners that follow each other: what of the one before is applied, and who waits for whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proxy_core::ids::LeaseName;
use proxy_core::store::conformance::{Candidate, commit, device, fenced, lease_name, put, seen, take, unnamed};
use proxy_core::store::{CommitError, Expect, Key, LeaseError, Store, Table};
use rate_control::ownership::{Beat, Epoch};
use store_postgresql::{Options, PostgresqlStore};
use tokio_postgres::Client;

use crate::cluster::Database;
use crate::middleman::{Middleman, Plan};

fn lines() -> LeaseName {
    lease_name("lines")
}

/// The options of somebody who waits long for everything.
fn patient(database: &Database) -> Options {
    let long = Duration::from_secs(60);
    Options { commit_timeout: long, lock_timeout: long, lease_timeout: 2 * long, ..database.options() }
}

async fn open(options: Options) -> PostgresqlStore {
    PostgresqlStore::open(options).await.unwrap()
}

/// Until a process of the server waits for a lock within a statement that says `what`.
async fn until_it_waits(admin: &Client, what: &str) {
    const WAITING: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' \
        AND wait_event_type = 'Lock' AND query LIKE '%' || $1 || '%' AND pid <> pg_backend_pid()";
    while admin.query_one(WAITING, &[&what]).await.unwrap().get::<_, i64>(0) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taking_waits_for_a_commit_that_is_under_way_and_a_renewal_does_not() {
    let Some(database) = Database::new().await else { return };
    let (name, a, b) = (lines(), Candidate::new("a"), Candidate::new("b"));
    let (owner, successor) = (open(patient(&database)).await, open(patient(&database)).await);
    let (admin, holder) = (database.admin().await, database.admin().await);
    take(&owner, &name, &a).await;
    // All is checked and written, and it cannot end.
    holder.batch_execute("BEGIN; LOCK TABLE dps_proxy.attempt IN SHARE MODE").await.unwrap();
    let last = owner.commit(fenced(&name, Epoch(1), vec![put(device("last"), Expect::Absent, "of the first")]));
    let takeover = async {
        until_it_waits(&admin, "commit_v2").await;
        let renewed = owner.change_lease(&name, a.renew(Epoch(1), 2_000)).await.unwrap();
        assert_eq!(renewed.beat, Beat(1), "a renewal passes");
        let mut taking = successor.change_lease(&name, b.take(Some((Epoch(1), Beat(1)))));
        tokio::select! {
            taken = &mut taking => panic!("it did not wait: {taken:?}"),
            () = until_it_waits(&admin, "lease_take_v1") => {}
        }
        assert_eq!(seen(&owner, &name).await, Some((Epoch(1), Beat(1))), "nobody owns it but the first");
        assert_eq!(owner.get(&device("last")).await.unwrap(), None);
        holder.batch_execute("COMMIT").await.unwrap();
        assert_eq!(taking.await.unwrap().epoch, Epoch(2));
        // What the successor reads from now on is all that there will be.
        successor.get(&device("last")).await.unwrap().expect("the commit came first")
    };
    let (committed, found) = tokio::join!(last, takeover);
    committed.unwrap();
    assert_eq!(found.value, "of the first");
    let late = owner.commit(fenced(&name, Epoch(1), vec![put(device("late"), Expect::Any, "x")])).await;
    assert!(matches!(late, Err(CommitError::Fenced)), "{late:?}");
    assert_eq!(successor.get(&device("late")).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_comes_before_a_taking_that_waits_wins() {
    let Some(database) = Database::new().await else { return };
    let (name, a, b) = (lines(), Candidate::new("a"), Candidate::new("b"));
    let (owner, successor) = (open(patient(&database)).await, open(patient(&database)).await);
    let (admin, holder) = (database.admin().await, database.admin().await);
    take(&owner, &name, &a).await;
    holder.batch_execute("BEGIN; LOCK TABLE dps_proxy.attempt IN SHARE MODE").await.unwrap();
    let last = owner.commit(fenced(&name, Epoch(1), vec![put(device("last"), Expect::Absent, "x")]));
    let takeover = async {
        until_it_waits(&admin, "commit_v2").await;
        let mut taking = successor.change_lease(&name, b.take(Some((Epoch(1), Beat(0)))));
        tokio::select! {
            taken = &mut taking => panic!("it did not wait: {taken:?}"),
            () = until_it_waits(&admin, "lease_take_v1") => {}
        }
        let renewed = owner.change_lease(&name, a.renew(Epoch(1), 2_000)).await.unwrap();
        holder.batch_execute("COMMIT").await.unwrap();
        let lost = taking.await;
        assert!(matches!(&lost, Err(LeaseError::Lost { now: Some(now) }) if *now == renewed), "{lost:?}");
    };
    tokio::join!(last, takeover).0.unwrap();
    commit(&owner, vec![put(device("b"), Expect::Absent, "x")]).await.unwrap();
    owner.commit(fenced(&name, Epoch(1), vec![put(device("c"), Expect::Absent, "x")])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taking_that_hangs_keeps_only_those_waiting_who_carry_its_fence() {
    let Some(database) = Database::new().await else { return };
    let (name, a) = (lines(), Candidate::new("a"));
    let owner = open(Options { lock_timeout: Duration::from_millis(100), ..patient(&database) }).await;
    let holder = database.admin().await;
    take(&owner, &name, &a).await;
    holder.batch_execute("BEGIN; UPDATE dps_proxy.lease SET epoch = epoch + 1").await.unwrap();
    let commits = (0..8).map(|n| {
        let writes = vec![put(device(&n.to_string()), Expect::Absent, "x")];
        owner.commit(if n % 2 == 0 { fenced(&name, Epoch(1), writes) } else { unnamed(writes) })
    });
    for (n, outcome) in futures_util::future::join_all(commits).await.into_iter().enumerate() {
        match outcome {
            Ok(_) if n % 2 == 1 => {}
            // Nobody knows yet whether the epoch has ended.
            Err(CommitError::Busy) if n % 2 == 0 => {}
            other => panic!("{n}: {other:?}"),
        }
    }
    holder.batch_execute("ROLLBACK").await.unwrap();
    owner.commit(fenced(&name, Epoch(1), vec![put(device("0"), Expect::Absent, "x")])).await.expect("nobody took it");
}

/// Commits on and on under one epoch, until it is told that the epoch has ended; how often it was acknowledged.
async fn commit_until_fenced(store: Arc<PostgresqlStore>, epoch: Epoch, task: usize) -> usize {
    for n in 0.. {
        let write = put(device(&format!("{}-{task}-{n}", epoch.0)), Expect::Absent, "x");
        match store.commit(fenced(&lines(), epoch, vec![write])).await {
            Ok(_) => {}
            Err(CommitError::Fenced) => return n,
            // It waited for a taking too long.
            Err(CommitError::Busy) => {}
            Err(other) => panic!("{other}"),
        }
    }
    unreachable!()
}

/// A process that was deposed without knowing it goes on with all its might.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_commits_without_a_pause_is_deposed_and_nothing_of_it_comes_later() {
    const TASKS: usize = 16;
    const ROUNDS: u64 = 5;
    let Some(database) = Database::new().await else { return };
    let (name, candidates) = (lines(), [Candidate::new("a"), Candidate::new("b")]);
    let stores = [Arc::new(database.open().await), Arc::new(database.open().await)];
    let (mut acknowledged, mut owners) = (0, Vec::<tokio::task::JoinHandle<usize>>::new());
    for epoch in (1..=ROUNDS).map(Epoch) {
        let turn = usize::from(epoch.0.is_multiple_of(2));
        let (store, candidate) = (&stores[turn], &candidates[turn]);
        let asked = Instant::now();
        loop {
            let sight = seen(&**store, &name).await;
            match store.change_lease(&name, candidate.take(sight)).await {
                Ok(lease) => break assert_eq!(lease.epoch, epoch),
                // The commits of the one before left no gap for too long.
                Err(LeaseError::Unavailable(why)) => assert!(asked.elapsed() < Duration::from_secs(20), "{why}"),
                Err(other) => panic!("{other}"),
            }
        }
        let found = store.scan(Table::Device, None, usize::MAX).await.unwrap();
        for owner in owners.drain(..) {
            acknowledged += owner.await.unwrap();
        }
        let later = store.scan(Table::Device, None, usize::MAX).await.unwrap();
        assert_eq!(found.len(), later.len(), "what the successor read first was all");
        assert!(later.len() >= acknowledged, "{acknowledged} were acknowledged");
        if epoch.0 < ROUNDS {
            owners.extend((0..TASKS).map(|task| tokio::spawn(commit_until_fenced(Arc::clone(store), epoch, task))));
            // It is at it.
            while store.scan(Table::Device, None, usize::MAX).await.unwrap().len() < later.len() + TASKS {
                tokio::task::yield_now().await;
            }
        }
    }
    assert!(acknowledged >= TASKS * 4, "{acknowledged} were acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_processes_one_takes_the_lease() {
    let Some(database) = Database::new().await else { return };
    let mut processes = Vec::new();
    for n in 0..6 {
        processes.push((Arc::new(database.open().await), Arc::new(Candidate::new(&format!("replica-{n}")))));
    }
    let name = lines();
    for round in 1..=8 {
        let sight = seen(&*processes[0].0, &name).await;
        let tries = processes.iter().map(|(store, candidate)| {
            let (store, name, change) = (Arc::clone(store), name.clone(), candidate.take(sight));
            tokio::spawn(async move { store.change_lease(&name, change).await })
        });
        let mut won = Vec::new();
        for outcome in tries.collect::<Vec<_>>() {
            match outcome.await.unwrap() {
                Ok(lease) => won.push(lease),
                Err(LeaseError::Lost { now: Some(now) }) => assert_eq!(now.epoch, Epoch(round)),
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(won.len(), 1, "{won:?}");
        assert_eq!(won[0].epoch, Epoch(round));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_commits_nor_reads_that_are_stuck_keep_a_renewal_waiting() {
    let Some(database) = Database::new().await else { return };
    let (name, a) = (lines(), Candidate::new("a"));
    let options = Options { inbox_max: 4, read_connections: 1, scan_connections: 1, ..patient(&database) };
    let store = Arc::new(open(Options { lease_timeout: Duration::from_secs(20), ..options }).await);
    let (admin, holder) = (database.admin().await, database.admin().await);
    take(&*store, &name, &a).await;
    let everything = "BEGIN; LOCK TABLE dps_proxy.attempt, dps_proxy.device, dps_proxy.entry IN ACCESS EXCLUSIVE MODE";
    holder.batch_execute(everything).await.unwrap();
    let stuck: Vec<_> = (0..8)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { commit(&*store, vec![put(device(&n.to_string()), Expect::Any, "x")]).await })
        })
        .collect();
    let reading = Arc::clone(&store);
    let read = tokio::spawn(async move { reading.get(&Key::new(Table::Meta, "a")).await });
    until_it_waits(&admin, "commit_v2").await;
    until_it_waits(&admin, "FROM entry").await;
    for beat in 1..=3 {
        let renewed = store.change_lease(&name, a.renew(Epoch(1), beat * 1_000)).await.unwrap();
        assert_eq!(renewed.beat, Beat(beat));
        assert_eq!(store.lease(&name).await.unwrap(), Some(renewed));
    }
    assert!(stuck.iter().all(|commit| !commit.is_finished()) || !read.is_finished(), "nothing was stuck");
    holder.batch_execute("COMMIT").await.unwrap();
    for commit in stuck {
        let outcome = commit.await.unwrap();
        assert!(matches!(outcome, Ok(_) | Err(CommitError::Busy)), "{outcome:?}");
    }
    let _read = read.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taking_that_waits_keeps_no_renewal_of_another_lease_waiting() {
    let Some(database) = Database::new().await else { return };
    let (a, b) = (Candidate::new("a"), Candidate::new("b"));
    let (wanted, own) = (lease_name("line/wanted"), lease_name("line/own"));
    let (owner, store) = (open(patient(&database)).await, open(patient(&database)).await);
    let (admin, holder) = (database.admin().await, database.admin().await);
    take(&owner, &wanted, &a).await;
    take(&store, &own, &b).await;
    holder.batch_execute("BEGIN; LOCK TABLE dps_proxy.attempt IN SHARE MODE").await.unwrap();
    let last = owner.commit(fenced(&wanted, Epoch(1), vec![put(device("last"), Expect::Absent, "x")]));
    let others = async {
        until_it_waits(&admin, "commit_v2").await;
        let mut taking = store.change_lease(&wanted, b.take(Some((Epoch(1), Beat(0)))));
        tokio::select! {
            taken = &mut taking => panic!("it did not wait: {taken:?}"),
            () = until_it_waits(&admin, "lease_take_v1") => {}
        }
        store.change_lease(&own, b.renew(Epoch(1), 2_000)).await.unwrap();
        holder.batch_execute("COMMIT").await.unwrap();
        taking.await.unwrap();
    };
    tokio::join!(last, others).0.unwrap();
}

/// A store that reaches the server through somebody else, and knows its statements.
async fn through(database: &Database) -> (Middleman, PostgresqlStore) {
    let middleman = Middleman::before(database.cluster.port).await;
    let mut options = crate::cluster::options("gateway", &database.name, middleman.port);
    (options.commit_timeout, options.lease_timeout) = (Duration::from_millis(700), Duration::from_millis(700));
    let store = open(options).await;
    commit(&store, vec![put(device("first"), Expect::Absent, "x")]).await.unwrap();
    (middleman, store)
}

/// The process was stopped, or its network was, while a commit was out; when it goes on, it has a successor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_arrives_or_is_sent_again_after_the_lease_was_taken_is_not_applied() {
    let Some(database) = Database::new().await else { return };
    let (name, a, b) = (lines(), Candidate::new("a"), Candidate::new("b"));
    let (middleman, owner) = through(&database).await;
    let successor = database.open().await;
    take(&owner, &name, &a).await;
    middleman.next(Plan::KeepRequest);
    let takeover = async {
        while !middleman.is_done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(take(&successor, &name, &b).await, Epoch(2));
    };
    let write = || vec![put(device("late"), Expect::Any, "x")];
    let (late, ()) = tokio::join!(owner.commit(fenced(&name, Epoch(1), write())), takeover);
    assert!(matches!(late, Err(CommitError::Fenced)), "{late:?}");
    let answer = String::from_utf8_lossy(&middleman.deliver().await).into_owned();
    assert!(!answer.is_empty());
    assert_eq!(successor.get(&device("late")).await.unwrap(), None);
    owner.commit(unnamed(write())).await.expect("it was fenced off, and nothing else ails it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_answer_was_lost_is_asked_for_again_and_happens_once() {
    let Some(database) = Database::new().await else { return };
    let (name, a, b) = (lines(), Candidate::new("a"), Candidate::new("b"));
    let (middleman, store) = through(&database).await;
    // So that the next request is the taking itself.
    let foreign = store.change_lease(&name, b.take(Some((Epoch(9), Beat(9))))).await;
    assert!(matches!(foreign, Err(LeaseError::Lost { now: None })), "{foreign:?}");
    middleman.next(Plan::LoseAnswer);
    let taken = store.change_lease(&name, a.take(None)).await.unwrap();
    assert!(middleman.is_done());
    assert_eq!((taken.epoch, taken.beat), (Epoch(1), Beat(0)), "it did not take it from itself");
    store.change_lease(&name, a.renew(Epoch(1), 1_000)).await.unwrap();
    middleman.next(Plan::LoseAnswer);
    let renewed = store.change_lease(&name, a.renew(Epoch(1), 2_000)).await.unwrap();
    assert_eq!((renewed.epoch, renewed.reading), (Epoch(1), a.reading(2_000)));
    middleman.next(Plan::LoseAnswer);
    let released = store.change_lease(&name, a.release(Epoch(1), 3_000)).await.unwrap();
    assert!(released.released);
    assert_eq!(take(&store, &name, &b).await, Epoch(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_away_a_lease_is_neither_lost_nor_renewed() {
    let Some(database) = Database::new().await else { return };
    let (name, a) = (lines(), Candidate::new("a"));
    let (middleman, store) = through(&database).await;
    take(&store, &name, &a).await;
    middleman.open(false);
    let asked = Instant::now();
    let renewed = store.change_lease(&name, a.renew(Epoch(1), 2_000)).await;
    assert!(matches!(renewed, Err(LeaseError::Unavailable(_))), "{renewed:?}");
    assert!(store.lease(&name).await.is_err());
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    middleman.open(true);
    let renewed = loop {
        match store.change_lease(&name, a.renew(Epoch(1), 3_000)).await {
            Ok(lease) => break lease,
            Err(LeaseError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!((renewed.epoch, renewed.reading), (Epoch(1), a.reading(3_000)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_epoch_is_given_again_when_the_server_was_killed() {
    let Some(database) = Database::alone().await else { return };
    let name = lines();
    let store = Arc::new(database.open().await);
    let mut last = Epoch(0);
    for round in 0..2 {
        let stop = Arc::new(AtomicBool::new(false));
        let taker = {
            let (store, name, stop) = (Arc::clone(&store), name.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let Ok(lease) = store.lease(&name).await else { continue };
                    let sight = lease.map(|lease| (lease.epoch, lease.beat));
                    if let Ok(taken) = store.change_lease(&name, Candidate::new("a").take(sight)).await {
                        acknowledged.push(taken.epoch);
                    }
                    tokio::task::yield_now().await;
                }
                acknowledged
            })
        };
        while seen(&*store, &name).await.is_none_or(|(epoch, _)| epoch < Epoch(last.0 + 20)) {
            tokio::task::yield_now().await;
        }
        database.cluster.kill().await;
        stop.store(true, Ordering::Relaxed);
        let acknowledged = taker.await.unwrap();
        assert!(
            acknowledged.first() > Some(&last) && acknowledged.is_sorted_by(|a, b| a < b),
            "{round}: {acknowledged:?}"
        );
        let survivor = database.open().await;
        let (found, _) = seen(&survivor, &name).await.unwrap();
        assert!(Some(&found) >= acknowledged.last(), "{found:?} is there, and more was acknowledged: {acknowledged:?}");
        last = found;
    }
}
