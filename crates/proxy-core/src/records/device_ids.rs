//! Whose a device ID is: within a tenant it belongs to one registration, however many write to the store.
//!
//! Invariants:
//! - A device ID that is not the registration ID of its holder has a row in [`Table::DeviceId`]. It is written in the commit that writes the
//!   assignment, and deleted in the one that removes it.
//! - A registration ID that is a device ID needs no row. Whoever is to get it as another name guards the commit with the record of that
//!   registration, which guards its own assignment with the absence of a row.
//!
//! So of two assignments with one device ID, the later commit fails, and whoever tries it reads again and finds the holder.

use super::Records;
use super::scan::pages;
use crate::base::{Base, StoreError};
use crate::device::{Effects, Outline, Record, Versioned};
use crate::ids::{DeviceId, RegistrationId, TenantName};
use crate::store::{CommitError, Expect, Key, ReadError, Table, Write};

/// What has to be true of a device ID when an assignment with it is written; or whose it is.
pub(super) type Claim = Result<Vec<Write>, RegistrationId>;

/// The device ID that a change gives, with its tenant.
fn given(effects: &Effects) -> Option<(&TenantName, &DeviceId)> {
    let held = |outline: Option<&Outline>| outline.and_then(|outline| outline.device_id.clone());
    let after = effects.after.as_ref()?;
    let device_id = after.device_id.as_ref()?;
    (held(effects.before.as_ref()).as_ref() != Some(device_id)).then_some((&after.tenant, device_id))
}

/// Frees the row of a device ID that a change takes away.
pub(super) fn release(effects: &Effects) -> Option<Write> {
    let before = effects.before.as_ref()?;
    let alias = before.alias()?;
    let kept = effects.after.as_ref().is_some_and(|after| after.alias() == Some(alias));
    (!kept).then(|| Write::delete(key(&before.tenant, alias), Expect::Any))
}

/// A tenant's name has no `/`.
fn key(tenant: &TenantName, device_id: &DeviceId) -> Key {
    Key::new(Table::DeviceId, format!("{tenant}/{device_id}"))
}

fn row(key: Key, expect: Expect, holder: &RegistrationId) -> Write {
    Write::put(key, expect, holder.as_str().to_owned())
}

impl Records {
    /// Claims the device ID that a change gives to `id`: what the commit of that change has to write and to guard. The error is another
    /// registration of the tenant that holds it.
    pub(super) async fn claim(&self, id: &RegistrationId, effects: &Effects) -> Result<Claim, ReadError> {
        let Some((tenant, device_id)) = given(effects) else { return Ok(Ok(Vec::new())) };
        let key = key(tenant, device_id);
        let found = self.base.store.get(&key).await?;
        let holder =
            found.as_ref().and_then(|found| RegistrationId::parse(&String::from_utf8_lossy(&found.value)).ok());
        if let Some(other) = holder.filter(|holder| holder != id) {
            return Ok(Err(other));
        }
        let expect = found.map_or(Expect::Absent, |found| Expect::Version(found.version));
        if device_id.as_str() == id.as_str() {
            return Ok(Ok(vec![Write::keep(key, expect)]));
        }
        let mut writes = vec![row(key, expect, id)];
        let namesake = RegistrationId::parse(device_id.as_str()).ok();
        // A registration ID is in lower case, and a device ID in another case is another one.
        if let Some(namesake) = namesake.filter(|namesake| namesake.as_str() == device_id.as_str()) {
            let stored = self.load(&namesake).await?;
            let expect = stored.as_ref().map_or(Expect::Absent, |stored| Expect::Version(stored.version));
            if stored.is_some_and(|Versioned { record, .. }| holds(&record, tenant, device_id)) {
                return Ok(Err(namesake));
            }
            writes.push(Write::keep(Record::key(&namesake), expect));
        }
        Ok(Ok(writes))
    }
}

fn holds(record: &Record, tenant: &TenantName, device_id: &DeviceId) -> bool {
    record.tenant() == tenant && record.assignment().is_some_and(|held| held.device_id == *device_id)
}

/// Writes the rows of a store whose assignments were made before there were rows.
///
/// # Errors
/// If the store cannot be read or written. A read-only store is left as it is until the next start.
pub(crate) async fn index_earlier(base: &Base) -> Result<(), StoreError> {
    let done = Key::new(Table::Meta, "device-ids");
    if base.store.get(&done).await?.is_some() {
        return Ok(());
    }
    let mut pages = pages(&*base.store);
    while let Some(records) = pages.next().await? {
        let outlines = records.iter().map(Record::outline);
        let rows = outlines.filter_map(|outline| {
            Some(row(key(&outline.tenant, outline.alias()?), Expect::Any, &outline.registration_id))
        });
        commit(base, rows.collect()).await?;
    }
    commit(base, vec![Write::put(done, Expect::Any, "indexed")]).await
}

async fn commit(base: &Base, writes: Vec<Write>) -> Result<(), StoreError> {
    if writes.is_empty() {
        return Ok(());
    }
    match base.commit(writes).await {
        // Nothing is assigned while nothing can be written.
        Ok(_) | Err(CommitError::ReadOnly(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
