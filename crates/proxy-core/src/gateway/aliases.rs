//! Device IDs that differ from their registration ID (individual enrollments): derived from the records, a hint where to look.
//!
//! Invariant: as many entries as assignments under another name, found by that name in whatever case. Whoever needs certainty reads
//! the record.

use std::collections::{BTreeSet, HashMap};

use crate::ids::{DeviceId, RegistrationId, TenantName};
use crate::record::Record;

/// Who has been given a device ID, by the ID in lower case. Tenants may use the same one.
#[derive(Debug, Default)]
pub(super) struct Aliases(HashMap<String, BTreeSet<(TenantName, RegistrationId)>>);

impl Aliases {
    /// A record changed from `old` to `new`; `None` if there is none.
    pub(super) fn follow(&mut self, old: Option<&Record>, new: Option<&Record>) {
        let (old, new) = (old.and_then(alias), new.and_then(alias));
        if old == new {
            return;
        }
        if let Some((device_id, holder)) = old
            && let Some(holders) = self.0.get_mut(&folded(device_id.as_str()))
        {
            holders.remove(&holder);
            if holders.is_empty() {
                self.0.remove(&folded(device_id.as_str()));
            }
        }
        if let Some((device_id, holder)) = new {
            self.0.entry(folded(device_id.as_str())).or_default().insert(holder);
        }
    }

    /// The registrations that have been given `device_id` in whatever case, of whatever tenant.
    pub(super) fn of(&self, device_id: &str) -> impl Iterator<Item = &RegistrationId> {
        self.0.get(&folded(device_id)).into_iter().flatten().map(|(_, registration_id)| registration_id)
    }
}

fn folded(device_id: &str) -> String {
    device_id.to_ascii_lowercase()
}

fn alias(record: &Record) -> Option<(DeviceId, (TenantName, RegistrationId))> {
    let device_id = &record.assignment.as_ref()?.device_id;
    (device_id.as_str() != record.registration_id.as_str())
        .then(|| (device_id.clone(), (record.tenant.clone(), record.registration_id.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{EnrollmentName, HubName, InstanceName};
    use crate::record::{Assignment, AssignmentState};
    use rate_control::time::WallTime;

    fn named(tenant: &str, registration_id: &str, device_id: &str) -> Record {
        let tenant = TenantName::parse(tenant).unwrap();
        let id = RegistrationId::parse(registration_id).unwrap();
        let mut record = Record::new(id, tenant, EnrollmentName::parse("plant").unwrap());
        record.assignment = Some(Assignment {
            hub: HubName::parse("hub.azure-devices.net").unwrap(),
            device_id: DeviceId::parse(device_id).unwrap(),
            instance: InstanceName::parse("eu-1").unwrap(),
            state: AssignmentState::Confirmed,
            substatus: None,
            payload: None,
            assigned_at: WallTime::default(),
            confirmed_at: WallTime::default(),
            suspected_at: None,
            revision: 1,
            dps_etag: None,
            dps_last_updated: None,
        });
        record
    }

    #[test]
    fn a_name_is_forgotten_when_its_device_has_another_or_is_gone() {
        let mut aliases = Aliases::default();
        let holders = |aliases: &Aliases, name: &str| aliases.of(name).map(ToString::to_string).collect::<Vec<_>>();
        let (first, renamed) = (named("one", "sn-1", "Pump-7"), named("one", "sn-1", "Pump-8"));
        let other = named("two", "sn-2", "Pump-7");
        aliases.follow(None, Some(&first));
        aliases.follow(None, Some(&other));
        assert_eq!(holders(&aliases, "Pump-7"), ["sn-1", "sn-2"]);
        aliases.follow(Some(&first), Some(&renamed));
        assert_eq!(
            (holders(&aliases, "Pump-7"), holders(&aliases, "pump-8")),
            (vec!["sn-2".into()], vec!["sn-1".into()])
        );
        aliases.follow(Some(&renamed), Some(&named("one", "sn-1", "sn-1")));
        aliases.follow(Some(&other), None);
        assert!(aliases.0.is_empty(), "{aliases:?}");
    }
}
