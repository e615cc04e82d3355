//! Opens the store that the configuration names.

use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;

use anyhow::Context as _;
use proxy_core::store::Store;
use proxy_core::store::sled_store::{SledOptions, SledStore};

use crate::config::{StoreBackend, StoreSettings};

/// Opens it, or begins it where there is none.
///
/// # Errors
/// If its directory cannot be made, or the store cannot be opened.
pub(super) async fn open(settings: &StoreSettings) -> anyhow::Result<Arc<dyn Store>> {
    match settings.backend {
        StoreBackend::Sled => {
            let options = SledOptions {
                cache_capacity: settings.cache_mib.saturating_mul(1024 * 1024),
                min_free_bytes: settings.free_space_min_mib.saturating_mul(1024 * 1024),
                inbox_max: settings.inbox_max,
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
            let store = tokio::task::spawn_blocking(move || SledStore::open(&path, options))
                .await
                .context("opening the store")??;
            Ok(Arc::new(store))
        }
    }
}
