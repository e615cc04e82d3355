//! Looking through the lanes a few devices at a time, every tenant by its share.

use std::collections::BTreeMap;

use super::{Class, FairScheduler, STRIDE};
use crate::ids::{RegistrationId, TenantName};
use crate::place::Sequence;

/// How far lanes have been looked through; a new one begins at their fronts.
#[derive(Debug, Default)]
pub struct Walk {
    next: BTreeMap<(TenantName, Class), Sequence>,
}

impl FairScheduler {
    /// The next devices that need a registration, from where `walk` has come to: `most` in all, shared by weight, but at
    /// least one of each tenant, and in the order in which the tenants would take turns. A lane whose end was reached begins at its
    /// front the next time.
    #[must_use]
    pub fn walk(&self, walk: &mut Walk, most: usize) -> Vec<RegistrationId> {
        let tenants: Vec<(&TenantName, u64)> =
            self.tenants().map(|(tenant, _)| (tenant, u64::from(self.weight(tenant)))).collect();
        let total: u64 = tenants.iter().map(|(_, weight)| weight).sum();
        let mut found: Vec<(u64, RegistrationId)> = Vec::new();
        for (tenant, weight) in tenants {
            let share = usize::try_from(most as u64 * weight / total.max(1)).unwrap_or(most).max(1);
            let turns = (1_u64..).map(|turn| turn * (STRIDE / weight));
            found.extend(turns.zip(self.walk_tenant(tenant, walk, share)));
        }
        found.sort_by_key(|(turn, _)| *turn);
        found.into_iter().map(|(_, id)| id).collect()
    }

    fn walk_tenant(&self, tenant: &TenantName, walk: &mut Walk, most: usize) -> Vec<RegistrationId> {
        let Some(lanes) = self.of(tenant) else { return Vec::new() };
        let mut found = Vec::new();
        for class in Class::ALL {
            let wanted = most - found.len();
            if wanted == 0 {
                break;
            }
            let key = (tenant.clone(), class);
            let next = lanes.lane(class).first(walk.next.remove(&key).unwrap_or(0), wanted);
            if let Some((last, _)) = next.last().filter(|_| next.len() == wanted) {
                walk.next.insert(key, last + 1);
            }
            found.extend(next.into_iter().map(|(_, id)| id));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Fairness, Place};
    use super::*;
    use crate::line::lane::{JobKind, Waiting};

    fn filled(tenants: &[(&str, u64)], weights: &[(&str, u32)]) -> FairScheduler {
        let tenant = |name: &str| TenantName::parse(name).unwrap();
        let weights = weights.iter().map(|(name, weight)| (tenant(name), *weight)).collect();
        let mut lanes = FairScheduler::new(Fairness { urgent_share_percent: 10, handicap: 600, weights, shared: true });
        for (name, count) in tenants {
            for sequence in 0..*count {
                let id = RegistrationId::parse(&format!("{name}-{sequence}")).unwrap();
                let waiting = Waiting { id, job: JobKind::Register, joined: 0, appointment: None };
                lanes.insert(&tenant(name), Place { class: Class::First, sequence }, &waiting);
            }
        }
        lanes
    }

    fn of(ids: &[RegistrationId], tenant: &str) -> usize {
        ids.iter().filter(|id| id.as_str().starts_with(tenant)).count()
    }

    #[test]
    fn every_tenant_is_looked_at_by_its_share_however_many_devices_the_others_have() {
        let lanes = filled(&[("a", 1000), ("b", 1000), ("c", 3)], &[("b", 2)]);
        let found = lanes.walk(&mut Walk::default(), 100);
        assert_eq!((of(&found, "a"), of(&found, "b"), of(&found, "c")), (25, 50, 3));
        // In turn, so that room for few is shared as well.
        assert_eq!((of(&found[..8], "a"), of(&found[..8], "b"), of(&found[..8], "c")), (2, 4, 2));
    }

    #[test]
    fn the_next_look_goes_on_behind_the_last_one_and_begins_again_at_the_end() {
        let lanes = filled(&[("a", 250)], &[]);
        let mut walk = Walk::default();
        let rounds: Vec<Vec<RegistrationId>> = (0..4).map(|_| lanes.walk(&mut walk, 100)).collect();
        let firsts: Vec<&str> = rounds.iter().map(|round| round[0].as_str()).collect();
        assert_eq!(firsts, ["a-0", "a-100", "a-200", "a-0"]);
        assert_eq!(rounds.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50, 100]);
    }
}
