//! A new store is begun only if the configuration allows it, and is announced: an empty one in place of the fleet's records means,
//! more often than not, a volume that is not mounted, or the wrong database.

use anyhow::{anyhow, bail};
use proxy_core::store::sled_store::SledStore;
use proxy_core::store::{CommitError, Expect, Key, Store, Table, Versions, Write};
use rate_control::entropy::Entropy;
use rate_control::time::{SystemClock, WallTime};

use super::store::UNFINISHED_COPY;
use crate::config::{StoreBackend, StoreSettings};

/// Why an empty one is refused, by where it would be.
fn forbidden(settings: &StoreSettings) -> anyhow::Error {
    match &settings.backend {
        StoreBackend::Sled(sled) => anyhow!(
            "store.path: {} holds no store, and store.create = false forbids to begin an empty one. Mount the volume that holds it or \
             correct store.path; to begin a new store on purpose, set store.create = true",
            sled.path.display()
        ),
        StoreBackend::Postgresql(_) => anyhow!(
            "the database at {} holds no records, and store.create = false forbids to begin with an empty one. Correct \
             store.postgresql.connection; to begin a new store on purpose, set store.create = true",
            settings.place()
        ),
    }
}

/// To be asked before the store is opened: whether it is known by now that there is none, so that opening begins one.
///
/// # Errors
/// If there is none, and `store.create` forbids to begin one.
pub(super) fn begins(settings: &StoreSettings) -> anyhow::Result<bool> {
    let begins = match &settings.backend {
        StoreBackend::Sled(sled) => !SledStore::is_at(&sled.path),
        // Only whoever has opened it can tell.
        StoreBackend::Postgresql(_) => false,
    };
    if begins && !settings.create { Err(forbidden(settings)) } else { Ok(begins) }
}

/// When the store was begun; if that is now (`is_new`, or a database without records), notes it in the store and says so in the log. `None` for a
/// store that is older than this note.
///
/// # Errors
/// If the store cannot be read or written, or is an empty database and `store.create` forbids to begin there.
pub(super) async fn began(
    store: &dyn Store,
    settings: &StoreSettings,
    is_new: bool,
) -> anyhow::Result<Option<WallTime>> {
    if store.get(&Key::new(Table::Meta, UNFINISHED_COPY)).await?.is_some() {
        bail!("{} holds a copy that is not finished; run the same `dps-proxy store copy` again", settings.place());
    }
    let key = Key::new(Table::Meta, "began");
    if !is_new {
        let noted = store.get(&key).await?;
        let is_empty_database = noted.is_none()
            && matches!(settings.backend, StoreBackend::Postgresql(_))
            && store.last(Table::Device).await?.is_none()
            && store.last(Table::Meta).await?.is_none();
        if !is_empty_database {
            return Ok(noted.and_then(|noted| WallTime::parse(&String::from_utf8_lossy(&noted.value))));
        }
        if !settings.create {
            return Err(forbidden(settings));
        }
    }
    let now = SystemClock::wall();
    let place = settings.place();
    match settings.backend {
        StoreBackend::Sled(_) => tracing::warn!(
            path = place,
            "a new, empty store begins here: no device is known. If there should be records, stop the service and check that the \
             volume is mounted and store.path is right; store.create = false refuses to begin a new one"
        ),
        StoreBackend::Postgresql(_) => tracing::warn!(
            database = place,
            "a new, empty store begins here: no device is known. If there should be records, stop the service and check that \
             store.postgresql.connection is right; store.create = false refuses to begin a new one"
        ),
    }
    let write = Write::put(key, Expect::Any, now.to_string());
    match store.commit(Versions::new(Entropy::from_system()).commit(vec![write])).await {
        // On a full disk the store opens all the same and takes no writes; the gateway says so.
        Ok(_) | Err(CommitError::ReadOnly(_)) => Ok(Some(now)),
        Err(error) => Err(error.into()),
    }
}
