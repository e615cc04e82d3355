//! What a database has to be, and what is told of one that is not.

use std::time::Duration;

use proxy_core::ids::InstanceName;
use proxy_core::store::conformance::{commit, device, join, put};
use proxy_core::store::{Expect, Store};
use store_postgresql::{ConnectionString, Migrated, OpenError, Options, PostgresqlStore, migrate};

use crate::cluster::{Database, PASSWORD};

async fn error(options: Options) -> OpenError {
    PostgresqlStore::open(options).await.expect_err("it must not be used")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_let_in_is_told_why_and_the_password_is_not() {
    let Some(database) = Database::new().await else { return };
    let port = database.cluster.port;
    let wrong = |text: &str| Options::new(ConnectionString::parse(text).unwrap());
    for (text, expected) in [
        (
            format!("host=127.0.0.1 port={port} user=gateway password=hunter2 dbname={}", database.name),
            "password authentication",
        ),
        (
            format!("host=127.0.0.1 port={port} user=nobody password='{PASSWORD}' dbname={}", database.name),
            "authentication",
        ),
        (format!("host=127.0.0.1 port={port} user=gateway password='{PASSWORD}' dbname=none"), "does not exist"),
        (format!("host=127.0.0.1 port=1 user=gateway password='{PASSWORD}'"), "refused"),
    ] {
        let error = error(wrong(&text)).await;
        let told = format!("{error} {error:?}");
        assert!(told.contains(expected), "{told}");
        assert!(!told.contains("hunter2") && !told.contains(PASSWORD), "{told}");
    }
    // Somebody who takes connections and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut options = crate::cluster::options("gateway", &database.name, silent.local_addr().unwrap().port());
    options.connect_timeout = Duration::from_millis(200);
    assert!(matches!(error(options).await, OpenError::Unreachable { why, .. } if why.contains("0.2 s")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_migrate_at_once_do_it_once_and_a_gateway_creates_nothing() {
    let Some(database) = Database::empty().await else { return };
    assert!(matches!(error(database.owner_options()).await, OpenError::NotMigrated { found: 0, needed: 2, .. }));
    let migrations = (0..6).map(|_| {
        let options = database.owner_options();
        tokio::spawn(async move { migrate(&options, Some("gateway")).await })
    });
    for migration in migrations.collect::<Vec<_>>() {
        assert_eq!(migration.await.unwrap().unwrap().to, 2);
    }
    assert_eq!(migrate(&database.owner_options(), None).await.unwrap(), Migrated { from: 2, to: 2 });
    let store = database.open().await;
    commit(&store, vec![join("a", &InstanceName::parse("new-line").unwrap(), Expect::Absent)]).await.unwrap();
    // It joined a line that was not there, and may create nothing by itself.
    let refused = migrate(
        &{
            let admin = database.admin().await;
            admin.batch_execute("DELETE FROM dps_proxy.schema").await.unwrap();
            database.options()
        },
        None,
    )
    .await;
    assert!(
        matches!(&refused, Err(OpenError::Refused { why, .. }) if why.contains("permission denied")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_of_another_release_is_told_from_one_that_this_release_may_use() {
    let Some(database) = Database::new().await else { return };
    let admin = database.admin().await;
    admin.batch_execute("INSERT INTO dps_proxy.schema VALUES (3, 1, 'of the next release')").await.unwrap();
    let store = database.open().await;
    commit(&store, vec![put(device("a"), Expect::Absent, "x")]).await.unwrap();
    assert_eq!(migrate(&database.owner_options(), None).await.unwrap(), Migrated { from: 3, to: 3 });
    admin.batch_execute("UPDATE dps_proxy.schema SET least_writer = 3 WHERE version = 3").await.unwrap();
    let newer = |error: &OpenError| matches!(error, OpenError::Newer { found: 3, least_writer: 3, known: 2, .. });
    assert!(newer(&error(database.options()).await));
    assert!(newer(&migrate(&database.owner_options(), None).await.unwrap_err()));
    admin
        .batch_execute("DELETE FROM dps_proxy.schema WHERE version = 3; UPDATE dps_proxy.schema SET checksum = 'x'")
        .await
        .unwrap();
    assert!(matches!(error(database.options()).await, OpenError::Altered { version: 1, .. }));
    assert!(matches!(migrate(&database.owner_options(), None).await, Err(OpenError::Altered { version: 1, .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_role_or_a_database_sets_for_itself_weakens_nothing() {
    let Some(database) = Database::new().await else { return };
    let admin = database.admin().await;
    for setting in [
        "synchronous_commit = off",
        "statement_timeout = '1ms'",
        "default_transaction_isolation = 'serializable'",
        "search_path = public",
    ] {
        let sql = format!("ALTER ROLE gateway IN DATABASE {} SET {setting}", database.name);
        admin.batch_execute(&sql).await.unwrap();
    }
    let store = database.open().await;
    commit(&store, vec![put(device("a"), Expect::Absent, "x")]).await.unwrap();
    assert!(store.get(&device("a")).await.unwrap().is_some());
    let read_only = format!("ALTER DATABASE {} SET default_transaction_read_only = on", database.name);
    admin.batch_execute(&read_only).await.unwrap();
    let refused = error(database.options()).await;
    assert!(matches!(&refused, OpenError::ReadOnly { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_sync_is_refused() {
    let Some(database) = Database::alone().await else { return };
    let admin = database.admin().await;
    let set = async |value: &str| {
        admin.batch_execute(&format!("ALTER SYSTEM SET fsync = {value}")).await.unwrap();
        admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        let fsync = async || admin.query_one("SHOW fsync", &[]).await.unwrap().get::<_, String>(0);
        while fsync().await != value {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    set("off").await;
    let refused = error(database.options()).await;
    set("on").await;
    assert!(refused.to_string().contains("fsync = off") && refused.to_string().contains("Switch it on"), "{refused}");
    database.open().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_connection_is_verified() {
    let Some(database) = Database::new().await else { return };
    let port = database.cluster.port;
    let connection = format!(
        "host=127.0.0.1 port={port} user=gateway password='{PASSWORD}' dbname={} sslmode=require",
        database.name
    );
    let mut options = Options::new(ConnectionString::parse(&connection).unwrap());
    options.roots = Some(vec![database.cluster.root.clone()]);
    let store = PostgresqlStore::open(options.clone()).await.unwrap();
    commit(&store, vec![put(device("a"), Expect::Absent, "x")]).await.unwrap();
    assert!(store.get(&device("a")).await.unwrap().is_some());
    let admin = database.admin().await;
    let encrypted =
        "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE s.ssl AND a.datname = $1";
    let count: i64 = admin.query_one(encrypted, &[&database.name]).await.unwrap().get(0);
    assert_eq!(count, 2, "the one that writes and the one that reads");
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap().cert.der().clone();
    options.roots = Some(vec![other]);
    let refused = error(options).await;
    assert!(refused.to_string().contains("certificate"), "{refused}");
}
