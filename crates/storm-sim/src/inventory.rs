//! Which instance a newcomer goes to: the one that is filled least, its tenant's own ones before the shared ones.
//!
//! That is the rule of `proxy-core`'s placement for instances of equal weight without regions and labels; a test holds the two against each
//! other. There it looks at every instance for every device, which is dear for ten million devices on a hundred instances; here the
//! instances lie in a heap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proxy_core::placement::NoRoom;
use rate_control::entropy::hash64;

use crate::fleet::{CAPACITY, Fleet};

/// Filled so far, then a number that spreads equally filled ones, then the instance.
type Instance = Reverse<(u64, u64, u16)>;

/// Instances of one tenant, or the shared ones.
#[derive(Debug, Default)]
struct Pool {
    with_room: BinaryHeap<Instance>,
}

impl Pool {
    fn add(&mut self, number: u16, filled: u64) {
        let mut bytes = filled.to_le_bytes().to_vec();
        bytes.extend(number.to_le_bytes());
        self.with_room.push(Reverse((filled, hash64(&bytes), number)));
    }

    fn place(&mut self) -> Option<u16> {
        let Reverse((filled, _, number)) = self.with_room.pop()?;
        if filled + 1 < CAPACITY {
            self.add(number, filled + 1);
        }
        Some(number)
    }
}

/// The inventory, and how full it is.
#[derive(Debug)]
pub(crate) struct Inventory {
    /// By tenant, in the fleet's order.
    own: Vec<Pool>,
    shared: Pool,
}

impl Inventory {
    /// `instances` of equal weight. The first ones are dedicated to the tenants that have some, in order; the others are shared.
    pub(crate) fn new(fleet: &Fleet, instances: u16) -> Self {
        let mut inventory = Self { own: Vec::new(), shared: Pool::default() };
        let mut numbers = 0..instances;
        for tenant in fleet.tenants() {
            let mut own = Pool::default();
            let dedicated = usize::try_from(tenant.dedicated_instances).unwrap_or(usize::MAX);
            numbers.by_ref().take(dedicated).for_each(|number| own.add(number, 0));
            inventory.own.push(own);
        }
        numbers.for_each(|number| inventory.shared.add(number, 0));
        inventory
    }

    /// Gives a device of a tenant its instance.
    pub(crate) fn place(&mut self, tenant: u16) -> Result<u16, NoRoom> {
        let own = self.own[usize::from(tenant)].place();
        own.or_else(|| self.shared.place()).ok_or(NoRoom::NoneFits)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use proxy_core::ids::{InstanceName, TenantName};
    use proxy_core::placement::Occupancy;

    use super::*;
    use crate::fleet::{BootCurve, Tenant};
    use crate::wiring;

    #[test]
    fn it_fills_instances_as_the_service_does() {
        let tenant = |name: &str, dedicated_instances| Tenant {
            name: TenantName::parse(name).unwrap(),
            devices: 1,
            boot: BootCurve::Within(Duration::ZERO),
            begins_after: Duration::ZERO,
            dedicated_instances,
            weight: 1,
        };
        let fleet = Fleet::new(vec![tenant("a", 2), tenant("b", 0), tenant("c", 1)]).unwrap();
        let (mut ours, mut services) = (Inventory::new(&fleet, 7), Occupancy::default());
        let owner = |number: usize| [Some(0), Some(0), Some(2)].get(number).copied().flatten();
        let names: Vec<InstanceName> = (0..7).map(|n| InstanceName::parse(&format!("dps-{n}")).unwrap()).collect();
        let instance = |n: usize| wiring::instance(1000, owner(n).map(|t: usize| &fleet.tenants()[t].name));
        let instances: BTreeMap<_, _> = (0..7).map(|n| (names[n].clone(), instance(n))).collect();
        let mut filled = [0_u64; 7];
        for device in 0..1000_u32 {
            let tenant = device % 3;
            filled[usize::from(ours.place(u16::try_from(tenant).unwrap()).unwrap())] += 1;
            let enrollment = wiring::enrollment(&fleet.tenants()[tenant as usize].name);
            services.place(&instances, &enrollment, &wiring::id_of(device), &BTreeSet::new()).unwrap();
        }
        // Which of equally filled ones is next is left to chance by both.
        for (filled, name) in filled.into_iter().zip(&names) {
            assert!(filled.abs_diff(services.filled(name)) <= 1, "{name}: {filled}, {}", services.filled(name));
        }
    }
}
