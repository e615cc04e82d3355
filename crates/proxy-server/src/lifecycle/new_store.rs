//! A new store is begun only if the configuration allows it, and is announced: an empty one in place of the fleet's records means,
//! more often than not, a volume that is not mounted.

use anyhow::bail;
use proxy_core::store::sled_store::SledStore;
use proxy_core::store::{CommitError, Expect, Key, Store, Table, Versions, Write};
use rate_control::entropy::Entropy;
use rate_control::time::{SystemClock, WallTime};

use crate::config::{StoreBackend, StoreSettings};

/// Whether there is no store yet, so that opening begins one.
///
/// # Errors
/// If there is none, and `store.create` forbids to begin one.
pub(super) fn begins(settings: &StoreSettings) -> anyhow::Result<bool> {
    let exists = match settings.backend {
        StoreBackend::Sled => SledStore::is_at(&settings.path),
    };
    if !exists && !settings.create {
        bail!(
            "store.path: {} holds no store, and store.create = false forbids to begin an empty one. Mount the volume that holds it or \
             correct store.path; to begin a new store on purpose, set store.create = true",
            settings.path.display()
        );
    }
    Ok(!exists)
}

/// When the store was begun; if that is now (`is_new`), notes it in the store and says so in the log. `None` for a store that is
/// older than this note.
///
/// # Errors
/// If the store cannot be read or written.
pub(super) async fn began(
    store: &dyn Store,
    settings: &StoreSettings,
    is_new: bool,
) -> anyhow::Result<Option<WallTime>> {
    let key = Key::new(Table::Meta, "began");
    if !is_new {
        let noted = store.get(&key).await?;
        return Ok(noted.and_then(|noted| WallTime::parse(&String::from_utf8_lossy(&noted.value))));
    }
    let now = SystemClock::wall();
    tracing::warn!(
        path = %settings.path.display(),
        "a new, empty store begins here: no device is known. If there should be records, stop the service and check that the \
         volume is mounted and store.path is right; store.create = false refuses to begin a new one"
    );
    let write = Write::put(key, Expect::Any, now.to_string());
    match store.commit(Versions::new(Entropy::from_system()).commit(vec![write])).await {
        // On a full disk the store opens all the same and takes no writes; the gateway says so.
        Ok(_) | Err(CommitError::ReadOnly(_)) => Ok(Some(now)),
        Err(error) => Err(error.into()),
    }
}
