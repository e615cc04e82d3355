//! Opens the store that the configuration names.

use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;

use anyhow::Context as _;
use proxy_core::store::Store;
use proxy_core::store::sled_store::{SledOptions, SledStore};
use store_postgresql::{PostgresqlStore, SoleUse, migrate};

use crate::config::{PostgresqlSettings, SledSettings, StoreBackend, StoreSettings};

/// The name in [`Table::Meta`](proxy_core::store::Table::Meta) that marks a copy that is not finished; it holds what is copied.
pub(crate) const UNFINISHED_COPY: &str = "copy.from";

/// A store, and what keeps other processes away from it.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn Store>,
    /// Of a database; the embedded store locks its own file.
    pub(crate) sole_use: Option<SoleUse>,
}

/// Opens it, or begins it where there is none.
///
/// # Errors
/// If its directory cannot be made, or the store cannot be opened.
pub(crate) async fn open(settings: &StoreSettings) -> anyhow::Result<Opened> {
    match &settings.backend {
        StoreBackend::Sled(sled) => {
            Ok(Opened { store: Arc::new(open_sled(sled, settings.inbox_max).await?), sole_use: None })
        }
        StoreBackend::Postgresql(postgresql) => open_postgresql(postgresql).await,
    }
}

async fn open_sled(settings: &SledSettings, inbox_max: usize) -> anyhow::Result<SledStore> {
    let options = SledOptions {
        cache_capacity: settings.cache_mib.saturating_mul(1024 * 1024),
        min_free_bytes: settings.free_space_min_mib.saturating_mul(1024 * 1024),
        inbox_max,
        ..SledOptions::default()
    };
    let path = settings.path.clone();
    // Keys of devices are in it, so it is for its owner alone; a directory that exists keeps what it was given.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)
        .with_context(|| format!("store.path: cannot create {}", path.display()))?;
    // Opening reads the whole log after a crash; it must not hold up the runtime.
    let opened = tokio::task::spawn_blocking(move || SledStore::open(&path, options));
    Ok(opened.await.context("opening the store")??)
}

async fn open_postgresql(settings: &PostgresqlSettings) -> anyhow::Result<Opened> {
    // First, so that nothing is changed in a database that another process uses.
    let sole_use = SoleUse::take(&settings.options).await?;
    if settings.migrate_on_start {
        let migrated = migrate(&settings.options, None).await?;
        tracing::info!(from = migrated.from, to = migrated.to, "the schema of the database is in place");
    }
    let store = PostgresqlStore::open(settings.options.clone()).await?;
    Ok(Opened { store: Arc::new(store), sole_use: Some(sole_use) })
}

/// Why the store must not be used any more, once another process has it. Until then, and as long as this is not dropped, it is kept.
pub(super) async fn taken_away(sole_use: Option<SoleUse>) -> String {
    match sole_use {
        Some(sole_use) => sole_use.kept().await,
        None => std::future::pending().await,
    }
}
