//! A database of the server that tests share, with and without our schema.

use postgresql_cluster::Cluster;
pub(crate) use postgresql_cluster::PASSWORD;
use store_postgresql::{ConnectionString, Options, PostgresqlStore, migrate};
use tokio::sync::OnceCell;
use tokio_postgres::Client;

/// What databases are copied from.
const MIGRATED: &str = "migrated";

/// Options for a role of the server.
pub(crate) fn options(user: &str, database: &str, port: u16) -> Options {
    let text = format!("host=127.0.0.1 port={port} user={user} password='{PASSWORD}' dbname={database}");
    Options::new(ConnectionString::parse(&text).unwrap())
}

/// A database of a test. A test has one only.
pub(crate) struct Database {
    pub(crate) cluster: &'static Cluster,
    pub(crate) name: String,
    inner: postgresql_cluster::Database,
}

impl Database {
    /// One that was migrated.
    pub(crate) async fn new() -> Option<Self> {
        Self::of(true, false).await
    }

    /// One that was migrated, for a test that troubles the whole server.
    pub(crate) async fn alone() -> Option<Self> {
        Self::of(true, true).await
    }

    /// One without a schema.
    pub(crate) async fn empty() -> Option<Self> {
        Self::of(false, false).await
    }

    async fn of(migrated: bool, alone: bool) -> Option<Self> {
        static TEMPLATE: OnceCell<()> = OnceCell::const_new();
        let cluster = Cluster::get().await?;
        TEMPLATE.get_or_init(|| prepare(cluster)).await;
        let inner = postgresql_cluster::Database::new(migrated.then_some(MIGRATED), alone).await?;
        Some(Self { cluster, name: inner.name.clone(), inner })
    }

    pub(crate) async fn admin(&self) -> Client {
        self.inner.admin().await
    }

    /// As a gateway: with a role that may create nothing.
    pub(crate) fn options(&self) -> Options {
        options("gateway", &self.name, self.cluster.port)
    }

    pub(crate) fn owner_options(&self) -> Options {
        options("owner", &self.name, self.cluster.port)
    }

    pub(crate) async fn open(&self) -> PostgresqlStore {
        PostgresqlStore::open(self.options()).await.unwrap()
    }
}

async fn prepare(cluster: &Cluster) {
    let admin = cluster.admin("postgres").await;
    admin.batch_execute(&format!("CREATE DATABASE {MIGRATED} OWNER owner")).await.unwrap();
    migrate(&options("owner", MIGRATED, cluster.port), Some("gateway")).await.unwrap();
}
