//! What a change of a record asks of others: derived from what they know of the record before and after, so that nothing is forgotten.
//!
//! Invariant: lines, counts, names and the feed follow [`Effects`] and nothing else, at start as well as while the service runs.

use std::collections::BTreeSet;

use super::pending::Reason;
use super::record::Record;
use crate::ids::{DeviceId, InstanceName, RegistrationId, TenantName};
use crate::place::Place;
use rate_control::time::StoredMoment;

/// What others know of a device: derived from its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Who.
    pub registration_id: RegistrationId,
    /// Whose.
    pub tenant: TenantName,
    /// Where it stands in line, if it does.
    pub standing: Option<Standing>,
    /// Instances that may hold a registration of it.
    pub footprint: BTreeSet<InstanceName>,
    /// The device ID of its assignment.
    pub device_id: Option<DeviceId>,
    /// The place that it was booked away from and may come back to.
    pub home: Option<(InstanceName, Place)>,
    /// The revision of its assignment.
    pub revision: Option<u64>,
}

impl Outline {
    /// Its device ID, where that is not its registration ID.
    #[must_use]
    pub fn alias(&self) -> Option<&DeviceId> {
        self.device_id.as_ref().filter(|device_id| device_id.as_str() != self.registration_id.as_str())
    }
}

/// Where a device stands in line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Whose line.
    pub instance: InstanceName,
    /// The place.
    pub place: Place,
    /// Since when it waits.
    pub joined_at: StoredMoment,
    /// Why.
    pub reason: Reason,
    /// When the registration behind its assignment was sent.
    pub last_registration_begun: Option<StoredMoment>,
}

impl Standing {
    fn is_at(&self, other: &Self) -> bool {
        self.instance == other.instance && self.place == other.place
    }
}

/// What a change did to a device, as far as others care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effects {
    /// Before the change; `None` if nothing was stored.
    pub before: Option<Outline>,
    /// After it; `None` if nothing is stored any more.
    pub after: Option<Outline>,
}

impl Effects {
    /// Of a record that begins to count.
    #[must_use]
    pub fn of_new(record: &Record) -> Self {
        Self { before: None, after: Some(record.outline()) }
    }

    /// The same change, after which the record is deleted.
    #[must_use]
    pub fn deleted(&self) -> Self {
        Self { before: self.before.clone(), after: None }
    }

    /// The place that is given up, if one is, and by whom.
    #[must_use]
    pub fn left(&self) -> Option<(&Outline, &Standing)> {
        let (who, before) = standing(self.before.as_ref())?;
        let kept = standing(self.after.as_ref()).is_some_and(|(_, after)| after.is_at(before));
        (!kept).then_some((who, before))
    }

    /// The place that is taken, if one is, and by whom.
    #[must_use]
    pub fn joined(&self) -> Option<(&Outline, &Standing)> {
        let (who, after) = standing(self.after.as_ref())?;
        let had = standing(self.before.as_ref()).is_some_and(|(_, before)| before.is_at(after));
        (!had).then_some((who, after))
    }

    /// Whether the assignment changed in a way that backends are told.
    #[must_use]
    pub fn announces(&self) -> bool {
        let revision = |outline: &Option<Outline>| outline.as_ref().and_then(|outline| outline.revision);
        revision(&self.after).is_some() && revision(&self.before) != revision(&self.after)
    }
}

fn standing(outline: Option<&Outline>) -> Option<(&Outline, &Standing)> {
    outline.and_then(|outline| Some((outline, outline.standing.as_ref()?)))
}

impl Record {
    /// What others know of the device.
    #[must_use]
    pub fn outline(&self) -> Outline {
        Outline {
            registration_id: self.registration_id.clone(),
            tenant: self.tenant.clone(),
            standing: self.pending.as_ref().map(|pending| Standing {
                instance: pending.instance.clone(),
                place: pending.place,
                joined_at: pending.joined_at,
                reason: pending.reason,
                last_registration_begun: self.last_registration_begun,
            }),
            footprint: self.footprint.clone(),
            device_id: self.assignment.as_ref().map(|assignment| assignment.device_id.clone()),
            home: self.home_to_come_back_to().map(|(instance, place)| (instance.clone(), place)),
            revision: self.assignment.as_ref().map(|assignment| assignment.revision),
        }
    }
}
