//! Devices that wait elsewhere while their own instance fails, and the places there that they may come back to. Derived from the records.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::device::{Effects, Outline};
use crate::ids::{InstanceName, RegistrationId};
use crate::place::Place;

/// Devices that wait elsewhere, by the instance that is their home, in the order of their places there.
#[derive(Debug, Default)]
pub(super) struct Away {
    homes: BTreeMap<InstanceName, BTreeSet<(Place, RegistrationId)>>,
}

impl Away {
    /// A record was changed.
    pub(super) fn follow(&mut self, effects: &Effects) {
        let (old, new) = (effects.before.as_ref().and_then(home), effects.after.as_ref().and_then(home));
        if old == new {
            return;
        }
        if let Some((instance, key)) = old {
            self.forget(&instance, &key);
        }
        if let Some((instance, key)) = new {
            self.homes.entry(instance).or_default().insert(key);
        }
    }

    /// A device is not away from `instance` any more.
    pub(super) fn forget(&mut self, instance: &InstanceName, key: &(Place, RegistrationId)) {
        if let Some(away) = self.homes.get_mut(instance) {
            away.remove(key);
            if away.is_empty() {
                self.homes.remove(instance);
            }
        }
    }

    /// The instances that devices would come back to.
    pub(super) fn homes(&self) -> Vec<InstanceName> {
        self.homes.keys().cloned().collect()
    }

    /// Whether any device would come back to `instance`.
    pub(super) fn any_from(&self, instance: &InstanceName) -> bool {
        self.homes.contains_key(instance)
    }

    /// At most `most` of `instance`, behind `after`.
    pub(super) fn next(
        &self,
        instance: &InstanceName,
        after: Option<&(Place, RegistrationId)>,
        most: usize,
    ) -> Vec<(Place, RegistrationId)> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let away = self.homes.get(instance).into_iter();
        away.flat_map(|away| away.range::<(Place, RegistrationId), _>((after, Bound::Unbounded)))
            .take(most)
            .cloned()
            .collect()
    }
}

fn home(outline: &Outline) -> Option<(InstanceName, (Place, RegistrationId))> {
    let (instance, place) = outline.home.clone()?;
    Some((instance, (place, outline.registration_id.clone())))
}
