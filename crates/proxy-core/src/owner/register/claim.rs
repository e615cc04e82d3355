//! One device ID belongs to one registration of a tenant.
//!
//! Invariant: from the moment that a device ID is claimed until its assignment is written, nobody else of the tenant gets it.

use std::collections::hash_map::Entry;

use super::Attempt;
use crate::base::StoreError;
use crate::device::Versioned;
use crate::ids::{DeviceId, RegistrationId, TenantName};
use crate::owner::dispatcher::count;
use crate::records::Records;

impl Attempt {
    /// Claims the device ID, and does not give up while the store cannot be read. `None` if the service stops.
    pub(super) async fn claim(&self, device_id: &DeviceId) -> Option<Claimed<'_>> {
        let mut failures = 0;
        loop {
            match self.records.claim(&self.id, device_id).await {
                Ok(claimed) => return Some(claimed),
                Err(error) => {
                    failures += 1;
                    tracing::error!(registration_id = %self.id, instance = %self.dispatcher.name, %error, "cannot read yet whether the device ID is taken");
                }
            }
            if !self.wait_for_the_store(failures).await {
                count(&self.base.unwritten);
                return None;
            }
        }
    }
}

/// `None` if the record is gone. The error is another registration of the same tenant that holds the device ID.
pub(super) type Claimed<'a> = Result<Option<Claim<'a>>, RegistrationId>;

/// A device ID that is being assigned; free again when dropped.
pub(super) struct Claim<'a> {
    records: &'a Records,
    key: (TenantName, DeviceId),
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.records.claims.lock().remove(&self.key);
    }
}

impl Records {
    /// Claims `device_id` for a registration.
    async fn claim(&self, id: &RegistrationId, device_id: &DeviceId) -> Result<Claimed<'_>, StoreError> {
        let Some(Versioned { record: own, .. }) = self.load(id).await? else { return Ok(Ok(None)) };
        let key = (own.tenant().clone(), device_id.clone());
        match self.claims.lock().entry(key.clone()) {
            Entry::Occupied(held) => return Ok(Err(held.get().clone())),
            Entry::Vacant(free) => {
                free.insert(id.clone());
            }
        }
        let claim = Claim { records: self, key };
        let holder = self.holder(own.tenant(), device_id, id).await?;
        Ok(holder.map_or(Ok(Some(claim)), Err))
    }
}
