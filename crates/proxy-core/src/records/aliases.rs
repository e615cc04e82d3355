//! Device IDs that differ from their registration ID (individual enrollments): derived from the records, a hint where to look.
//!
//! Invariant: as many entries as assignments under another name, found by that name in whatever case. Whoever needs certainty reads
//! the record.

use std::collections::{BTreeSet, HashMap};

use crate::device::{Effects, Outline};
use crate::ids::{DeviceId, RegistrationId, TenantName};

/// Who has been given a device ID, by the ID in lower case. Tenants may use the same one.
#[derive(Debug, Default)]
pub(crate) struct Aliases(HashMap<String, BTreeSet<(TenantName, RegistrationId)>>);

impl Aliases {
    /// A record was changed.
    pub(crate) fn follow(&mut self, effects: &Effects) {
        let (old, new) = (effects.before.as_ref().and_then(alias), effects.after.as_ref().and_then(alias));
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
    pub(crate) fn of(&self, device_id: &str) -> impl Iterator<Item = &RegistrationId> {
        self.0.get(&folded(device_id)).into_iter().flatten().map(|(_, registration_id)| registration_id)
    }
}

fn folded(device_id: &str) -> String {
    device_id.to_ascii_lowercase()
}

fn alias(outline: &Outline) -> Option<(DeviceId, (TenantName, RegistrationId))> {
    let device_id = outline.alias()?.clone();
    Some((device_id, (outline.tenant.clone(), outline.registration_id.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn named(tenant: &str, registration_id: &str, device_id: &str) -> Outline {
        Outline {
            registration_id: RegistrationId::parse(registration_id).unwrap(),
            tenant: TenantName::parse(tenant).unwrap(),
            standing: None,
            footprint: BTreeSet::new(),
            device_id: Some(DeviceId::parse(device_id).unwrap()),
            home: None,
            revision: Some(1),
        }
    }

    #[test]
    fn a_name_is_forgotten_when_its_device_has_another_or_is_gone() {
        let mut aliases = Aliases::default();
        let follow = |aliases: &mut Aliases, before: Option<&Outline>, after: Option<&Outline>| {
            aliases.follow(&Effects { before: before.cloned(), after: after.cloned() });
        };
        let holders = |aliases: &Aliases, name: &str| aliases.of(name).map(ToString::to_string).collect::<Vec<_>>();
        let (first, renamed) = (named("one", "sn-1", "Pump-7"), named("one", "sn-1", "Pump-8"));
        let other = named("two", "sn-2", "Pump-7");
        follow(&mut aliases, None, Some(&first));
        follow(&mut aliases, None, Some(&other));
        assert_eq!(holders(&aliases, "Pump-7"), ["sn-1", "sn-2"]);
        follow(&mut aliases, Some(&first), Some(&renamed));
        assert_eq!(
            (holders(&aliases, "Pump-7"), holders(&aliases, "pump-8")),
            (vec!["sn-2".into()], vec!["sn-1".into()])
        );
        follow(&mut aliases, Some(&renamed), Some(&named("one", "sn-1", "sn-1")));
        follow(&mut aliases, Some(&other), None);
        assert!(aliases.0.is_empty(), "{aliases:?}");
    }
}
