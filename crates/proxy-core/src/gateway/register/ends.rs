//! The ends of a registration: the device is assigned, or refused.

use std::collections::hash_map::Entry;

use super::{Attempt, Settled};
use crate::gateway::dispatch::count;
use crate::gateway::{Gateway, StoreError};
use crate::ids::{DeviceId, HubName, RegistrationId, TenantName};
use crate::record::{Assignment, AssignmentState, Record, Refusal, Versioned};
use crate::settings::UpstreamAttestation;
use crate::upstream::RegistrationState;
use crate::upstream::verdict::{Named, RefusalWords, trace};
use rate_control::time::StoredMoment;

impl Attempt {
    /// The assignment goes to disk, then everybody hears of it.
    pub(super) async fn assign(&self, state: RegistrationState, named: Named, settled: Settled) {
        let Some(record) = self.own_record().await else { return self.finish(false) };
        if let Some(detail) = self.names_another(&record, &state) {
            tracing::error!(registration_id = %self.id, instance = %self.dispatcher.name, detail, "DPS named another device than ours");
            let words = RefusalWords::of_ours("unexpected-device-id", detail, named);
            return self.refuse(words, settled).await;
        }
        let Some(hub) = state.assigned_hub.clone() else { return self.finish(false) };
        let settings = self.gateway.settings();
        let allowed = settings
            .instances
            .get(&self.dispatcher.name)
            .is_none_or(|instance| instance.hubs.is_empty() || instance.hubs.contains(&hub));
        if !allowed {
            tracing::error!(registration_id = %self.id, instance = %self.dispatcher.name, assigned_hub = %hub, "DPS assigned a hub that is not in the instance's list");
            let detail = format!(
                "DPS assigned {hub}, which is not among the hubs configured for {}: correct the list or the enrollment's linked hubs",
                self.dispatcher.name
            );
            return self.refuse(RefusalWords::of_ours("unexpected-hub", detail, named), settled).await;
        }
        let device_id = match &state.device_id {
            Some(device_id) => device_id.clone(),
            None => DeviceId::parse(self.id.as_str()).expect("a registration ID is a device ID"),
        };
        // Held until the assignment is written, so that of two at once one is refused.
        let Some(claim) = self.claim(&device_id).await else { return self.finish(false) };
        if let Err(other) = &claim {
            tracing::error!(registration_id = %self.id, instance = %self.dispatcher.name, device_id = %device_id, other = %other, "two registrations claim one device ID");
            let detail = format!(
                "DPS named the device {device_id}, which registration {other} of the same tenant has already: give one of the enrollments another deviceId"
            );
            return self.refuse(RefusalWords::of_ours("device-id-taken", detail, named), settled).await;
        }
        self.store_assignment(&hub, &device_id, &state, settled).await;
    }

    /// The device's record. Does not give up while the store cannot be read. `None` if there is none any more, or the service stops.
    async fn own_record(&self) -> Option<Record> {
        let mut failures = 0;
        loop {
            match self.gateway.load(&self.id).await {
                Ok(found) => return found.map(|versioned| versioned.record),
                Err(error) => {
                    failures += 1;
                    tracing::error!(registration_id = %self.id, instance = %self.dispatcher.name, %error, "the record of an assigned device cannot be read yet");
                }
            }
            if !self.wait_for_the_store(failures).await {
                return None;
            }
        }
    }

    /// Whether DPS answered about another device, in words for an operator. The device of an enrollment group has its registration ID for a
    /// name at the hub, in a spelling that is DPS's to choose; an individual enrollment may give it any.
    fn names_another(&self, record: &Record, state: &RegistrationState) -> Option<String> {
        let instance = &self.dispatcher.name;
        if let Some(other) = state.registration_id.as_ref().filter(|other| **other != self.id) {
            return Some(format!(
                "{instance} answered with the registration of {other}, not of {}: look for a proxy or cache between us and DPS that mixes answers up",
                self.id
            ));
        }
        if state.odd_name {
            return Some(format!("{instance} named the device in a way that is no device or registration ID"));
        }
        let settings = self.gateway.settings();
        let upstream = &settings.enrollments.get(&record.enrollment)?.upstream;
        let other = state.device_id.as_ref().filter(|name| !name.as_str().eq_ignore_ascii_case(self.id.as_str()))?;
        matches!(upstream, UpstreamAttestation::Group { .. }).then(|| {
            format!(
                "{instance} named the device {other}, but a device of an enrollment group is named by its registration ID: if DPS holds an individual enrollment with another deviceId for it, remove that or configure an enrollment with upstream = \"individual\""
            )
        })
    }

    /// Claims the device ID, and does not give up while the store cannot be read. `None` if the service stops.
    async fn claim(&self, device_id: &DeviceId) -> Option<Claimed<'_>> {
        let mut failures = 0;
        loop {
            match self.gateway.claim(&self.id, device_id).await {
                Ok(claimed) => return Some(claimed),
                Err(error) => {
                    failures += 1;
                    tracing::error!(registration_id = %self.id, instance = %self.dispatcher.name, %error, "whether the device ID is taken cannot be read yet");
                }
            }
            if !self.wait_for_the_store(failures).await {
                count(&self.gateway.unwritten);
                return None;
            }
        }
    }

    async fn store_assignment(&self, hub: &HubName, device_id: &DeviceId, state: &RegistrationState, settled: Settled) {
        let timeline_max = self.gateway.settings().registration.timeline_max;
        let now = self.now().wall;
        let stored = self
            .edit_durably(settled, |record| {
                let begun = record.last_sent;
                let asked = record.pending.take().is_some_and(|pending| pending.reprovision);
                let earlier = record.assignment.take();
                let stays =
                    earlier.as_ref().filter(|earlier| earlier.hub == *hub && earlier.instance == self.dispatcher.name);
                record.assignment = Some(Assignment {
                    hub: hub.clone(),
                    device_id: device_id.clone(),
                    instance: self.dispatcher.name.clone(),
                    state: AssignmentState::Confirmed,
                    substatus: state.substatus.clone(),
                    payload: state.payload.clone(),
                    assigned_at: stays.map_or(now, |earlier| earlier.assigned_at),
                    confirmed_at: now,
                    suspected_at: None,
                    revision: earlier.as_ref().map_or(1, |earlier| earlier.revision + 1),
                    dps_etag: state.etag.clone(),
                    dps_last_updated: state.last_updated,
                });
                record.refusal = None;
                record.moving_to = record.moving_to.take().filter(|target| *target != self.dispatcher.name);
                record.last_registration_begun = begun;
                record.reprovisioned_untold = asked;
                record.credential_claimed = record.credential_claimed.filter(|_| stays.is_some());
                record.note(now, timeline_max, format!("assigned to {hub} by {}", self.dispatcher.name));
            })
            .await;
        if stored {
            count(&self.dispatcher.counts.assigned);
            *self.dispatcher.last_result.lock() = Some(self.now().mono);
            tracing::info!(registration_id = %self.id, instance = %self.dispatcher.name, assigned_hub = %hub, "assigned");
        }
        self.finish(stored);
    }

    /// DPS will not have the device: it leaves the line, and is told why until the refusal expires.
    pub(super) async fn refuse(&self, words: RefusalWords, settled: Settled) {
        let (settings, settings_mark) = (self.gateway.settings(), self.gateway.settings_mark());
        let now = self.now();
        tracing::warn!(registration_id = %self.id, instance = %self.dispatcher.name, code = words.code, detail = words.detail,
            error_code = words.error_code, tracking_id = words.tracking_id, "registration refused");
        let stored = self
            .edit_durably(settled, |record| {
                record.drop_pending();
                record.refusal = Some(Refusal {
                    code: words.code.to_owned(),
                    detail: words.detail.clone(),
                    error_code: words.error_code,
                    tracking_id: words.tracking_id.clone(),
                    instance: self.dispatcher.name.clone(),
                    at: StoredMoment::of(now),
                    until: now.wall.after(settings.registration.refusal_ttl),
                    settings_mark,
                });
                let tracking = trace(words.tracking_id.as_deref());
                record.note(
                    now.wall,
                    settings.registration.timeline_max,
                    format!("refused by {}: {}{tracking}", self.dispatcher.name, words.detail),
                );
            })
            .await;
        if stored {
            count(&self.dispatcher.counts.refused);
        }
        self.finish(false);
    }
}

/// `None` if the record is gone. The error is another registration of the same tenant that holds the device ID.
type Claimed<'a> = Result<Option<Claim<'a>>, RegistrationId>;

/// A device ID that is being assigned; free again when dropped.
struct Claim<'a> {
    gateway: &'a Gateway,
    key: (TenantName, DeviceId),
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.gateway.claims.lock().remove(&self.key);
    }
}

impl Gateway {
    /// Claims `device_id` for a registration.
    async fn claim(&self, id: &RegistrationId, device_id: &DeviceId) -> Result<Claimed<'_>, StoreError> {
        let Some(Versioned { record: own, .. }) = self.load(id).await? else { return Ok(Ok(None)) };
        let key = (own.tenant.clone(), device_id.clone());
        match self.claims.lock().entry(key.clone()) {
            Entry::Occupied(held) => return Ok(Err(held.get().clone())),
            Entry::Vacant(free) => {
                free.insert(id.clone());
            }
        }
        let claim = Claim { gateway: self, key };
        let holder = self.holder(&own.tenant, device_id, id).await?;
        Ok(holder.map_or(Ok(Some(claim)), Err))
    }
}
