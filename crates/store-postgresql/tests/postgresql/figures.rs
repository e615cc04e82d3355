//! Figures, not tests. On a machine that does nothing else, and with `TMPDIR` on a disk:
//!
//!     TMPDIR=/var/tmp cargo test --release -p store-postgresql --test postgresql -- --ignored --nocapture figures

use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy_core::ids::InstanceName;
use proxy_core::store::conformance::{Candidate, device, join, lease_name, put, take, unnamed};
use proxy_core::store::{Commit, Expect, Store, Write};

use tokio_postgres::{Client, Statement};

use crate::cluster::Database;

const SPAN: Duration = Duration::from_millis(1500);

/// A record of the usual size.
const VALUE: [u8; 1100] = [b'x'; 1100];

fn a_join(name: &str) -> Commit {
    let mut write = join(name, &InstanceName::parse("a").unwrap(), Expect::Absent);
    if let proxy_core::store::Change::Put { value, .. } = &mut write.change {
        *value = bytes::Bytes::from_static(&VALUE);
    }
    unnamed(vec![write])
}

/// Commits of `tasks` that each go on when theirs is durable: how many a second, and how long the slowest hundredth took.
async fn commits<S: Store + 'static>(store: &Arc<S>, tasks: usize, label: &str, make: fn(&str) -> Commit) -> f64 {
    let begun = Instant::now();
    let working = (0..tasks).map(|task| {
        let (store, label) = (Arc::clone(store), label.to_owned());
        tokio::spawn(async move {
            let mut took = Vec::new();
            while begun.elapsed() < SPAN {
                let asked = Instant::now();
                store.commit(make(&format!("{label}-{task}-{}", took.len()))).await.unwrap();
                took.push(asked.elapsed());
            }
            took
        })
    });
    let mut took = Vec::new();
    for task in working.collect::<Vec<_>>() {
        took.extend(task.await.unwrap());
    }
    took.sort();
    let rate = took.len() as f64 / begun.elapsed().as_secs_f64();
    let percentile = |hundredth: usize| took[(took.len() * hundredth / 100).min(took.len() - 1)].as_secs_f64() * 1000.0;
    println!("{label}, {tasks} tasks: {rate:.0}/s, p50 {:.1} ms, p99 {:.1} ms", percentile(50), percentile(99));
    rate
}

/// The store's own statement, with what it is given made by the server; `fence` is the lease of each commit, in its first epoch.
fn statement(fence: &str) -> String {
    format!(
        "SELECT commit_v2(gen_random_uuid(), NULL, array_agg({fence}), array_agg(1::bigint), array_agg(n), array_agg(0),
        array_agg(1::smallint), array_agg(($1 || n)::bytea), array_agg(0::smallint), array_agg(NULL::uuid), array_agg(1::smallint),
        array_agg(gen_random_uuid()), array_agg($2::bytea), array_agg(1), array_agg(1::smallint), array_agg(NULL::bigint))
        FROM generate_series(1, $3::int) n"
    )
}

/// The plainest thing that is as durable: rows of the same size.
const INSERTS: &str = "INSERT INTO bare SELECT $1 || n, $2 FROM generate_series(1, $3::int) n";

/// A statement over and over: how many rows a second.
async fn bare(client: &Client, statement: &Statement, label: &str, rows: i32) -> f64 {
    let (begun, mut n) = (Instant::now(), 0_u32);
    while begun.elapsed() < SPAN {
        n += 1;
        client.execute(statement, &[&format!("{label}-{n}-"), &&VALUE[..], &rows]).await.unwrap();
    }
    let rate = f64::from(n) * f64::from(rows) / begun.elapsed().as_secs_f64();
    println!("{label}: {rate:.0} rows/s");
    rate
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures, for a machine that does nothing else"]
async fn figures() {
    let Some(database) = Database::alone().await else { return };
    let store = Arc::new(database.open().await);
    // Warm: the plans of the functions are made.
    commits(&store, 4, "warm", a_join).await;
    let admin = database.admin().await;
    admin
        .batch_execute("SET search_path = dps_proxy; CREATE TABLE bare (name text PRIMARY KEY, value bytea)")
        .await
        .unwrap();
    let (free, inserts) =
        (admin.prepare(&statement("NULL::text")).await.unwrap(), admin.prepare(INSERTS).await.unwrap());
    take(&*store, &lease_name("lines"), &Candidate::new("a")).await;
    let fenced = admin.prepare(&statement("'lines'::text")).await.unwrap();
    for round in 0..3 {
        let single = commits(&store, 1, &format!("joins one by one {round}"), a_join).await;
        let statement_single = bare(&admin, &free, &format!("the statement, of one {round}"), 1).await;
        let many = commits(&store, 192, &format!("joins {round}"), a_join).await;
        let statement_many = bare(&admin, &free, &format!("the statement, of 64 {round}"), 64).await;
        let fenced_single = bare(&admin, &fenced, &format!("the statement, fenced, of one {round}"), 1).await;
        let fenced_many = bare(&admin, &fenced, &format!("the statement, fenced, of 64 {round}"), 64).await;
        println!(
            "ratio of fenced to free: {:.2} one by one, {:.2} together",
            fenced_single / statement_single,
            fenced_many / statement_many
        );
        let inserts_many = bare(&admin, &inserts, &format!("inserts of 64 rows {round}"), 64).await;
        println!(
            "ratio to the statement: {:.2} one by one, {:.2} together; the statement to inserts: {:.2}",
            single / statement_single,
            many / statement_many,
            statement_many / inserts_many
        );
    }
    let change = |name: &str| {
        let slot = proxy_core::store::Key::new(proxy_core::store::Table::Ledger, name);
        let record = Write::put(device(name), Expect::Any, bytes::Bytes::from_static(&VALUE));
        unnamed(vec![put(slot, Expect::Any, "a slot of the ledger"), record])
    };
    commits(&store, 1, "arms one by one", change).await;
    commits(&store, 64, "arms", change).await;

    let begun = Instant::now();
    let readers = (0..32).map(|task| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let mut reads = 0_u32;
            while begun.elapsed() < SPAN {
                let key = device(&format!("joins 0-{}-{}", task % 192, reads % 10));
                assert!(store.get(&key).await.unwrap().is_some());
                reads += 1;
            }
            reads
        })
    });
    let mut reads = 0;
    for reader in readers.collect::<Vec<_>>() {
        reads += reader.await.unwrap();
    }
    println!("reads, 32 tasks: {:.0}/s", f64::from(reads) / begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    let (mut count, mut last) = (0, None);
    loop {
        let page = store.places(&InstanceName::parse("a").unwrap(), last.as_ref(), 10_000).await.unwrap();
        count += page.len();
        let Some(end) = page.into_iter().next_back() else { break };
        last = Some(end);
    }
    println!("places: {count} in {:.2} s", begun.elapsed().as_secs_f64());
}
