//! Placement: which instance a new device goes to.
//!
//! Least-filled by weight over the inventory: region, labels, tenant and draining filter first, then the instance with the smallest
//! `filled / weight` wins; equal ones are told apart by a hash of registration ID and instance name, so that the choice is stable
//! and spreads. The first durable record wins; the caller reserves room here before it writes and gives it back if the
//! write loses.
//!
//! Invariant: `filled` counts device records that name the instance in their footprint (tombstones included) plus reservations. With
//! the external count it never grows beyond capacity through this module.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::ids::{InstanceName, RegistrationId, TenantName};
use crate::settings::{Enrollment, Instance};
use rate_control::entropy::hash64;

/// Instances that a message names, at most.
const REASONS_TOLD: usize = 3;

/// How full every instance is.
#[derive(Debug, Default)]
pub struct Occupancy {
    filled: BTreeMap<InstanceName, u64>,
}

/// No instance can take the device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// No instance fits the enrollment's filters.
    #[error("no instance fits the enrollment's instances, region, labels and tenant")]
    NoneFits,
    /// Some fit, but they take no new devices: for each, the key that says so and its number.
    #[error("no instance has room: {0}")]
    AllFull(String),
}

impl Occupancy {
    /// Devices that `instance` may hold records of, as far as we know (without the external count).
    #[must_use]
    pub fn filled(&self, instance: &InstanceName) -> u64 {
        self.filled.get(instance).copied().unwrap_or(0)
    }

    /// The instances that any record refers to.
    pub fn instances(&self) -> impl Iterator<Item = &InstanceName> {
        self.filled.iter().filter(|&(_, &filled)| filled > 0).map(|(name, _)| name)
    }

    /// One more device may have a record at `instance`.
    pub fn add(&mut self, instance: &InstanceName) {
        *self.filled.entry(instance.clone()).or_default() += 1;
    }

    /// One device fewer has.
    pub fn remove(&mut self, instance: &InstanceName) {
        if let Some(filled) = self.filled.get_mut(instance) {
            *filled = filled.saturating_sub(1);
        }
    }

    /// A record's footprint changed from `old` to `new`; `reserved` was counted already when the device was placed.
    pub fn follow(
        &mut self,
        old: Option<&BTreeSet<InstanceName>>,
        new: Option<&BTreeSet<InstanceName>>,
        reserved: Option<&InstanceName>,
    ) {
        let holds = |names: Option<&BTreeSet<InstanceName>>, instance: &InstanceName| {
            names.is_some_and(|names| names.contains(instance))
        };
        for instance in
            new.into_iter().flatten().filter(|instance| reserved != Some(*instance) && !holds(old, instance))
        {
            self.add(instance);
        }
        for instance in old.into_iter().flatten().filter(|instance| !holds(new, instance)) {
            self.remove(instance);
        }
    }

    /// Chooses an instance and counts the device in. Give it back with [`remove`](Self::remove) if its record is not written.
    ///
    /// Instances dedicated to the tenant come first; shared ones take what those have no room for. None of `avoid` is chosen.
    ///
    /// # Errors
    /// [`NoRoom`] if there is none.
    pub fn place(
        &mut self,
        instances: &BTreeMap<InstanceName, Instance>,
        enrollment: &Enrollment,
        registration_id: &RegistrationId,
        avoid: &BTreeSet<InstanceName>,
    ) -> Result<InstanceName, NoRoom> {
        let fitting: Vec<_> = instances.iter().filter(|(name, instance)| fits(enrollment, name, instance)).collect();
        if fitting.is_empty() {
            return Err(NoRoom::NoneFits);
        }
        let open: Vec<_> = fitting
            .iter()
            .filter(|(name, instance)| !instance.draining && self.has_room(name, instance))
            .filter(|(name, _)| !avoid.contains(*name))
            .collect();
        let best = open.iter().map(|(name, instance)| self.candidate(name, instance)).min_by(|a, b| {
            (b.dedicated.cmp(&a.dedicated))
                .then_with(|| (a.filled * u128::from(b.weight)).cmp(&(b.filled * u128::from(a.weight))))
                .then_with(|| a.tie_break(registration_id).cmp(&b.tie_break(registration_id)))
        });
        let Some(Candidate { name, .. }) = best else {
            let shut: Vec<String> = fitting.iter().map(|(name, instance)| self.why_shut(name, instance)).collect();
            return Err(NoRoom::AllFull(shortened(&shut)));
        };
        let name = name.clone();
        self.add(&name);
        Ok(name)
    }

    /// Whether `instance` can take one more device.
    #[must_use]
    pub fn has_room(&self, name: &InstanceName, instance: &Instance) -> bool {
        self.filled(name).saturating_add(instance.external_count) < instance.capacity
    }

    /// Why `instance` takes no new device, with the key to change.
    #[must_use]
    pub fn why_shut(&self, name: &InstanceName, instance: &Instance) -> String {
        let (filled, external) = (self.filled(name), instance.external_count);
        if instance.draining {
            return format!("instances.{name}.draining is set");
        }
        if self.has_room(name, instance) {
            return format!("instance {name} is passed over, because its line is full or calls to it fail");
        }
        let counted = match external {
            0 => String::new(),
            _ => format!(" ({external} of them by instances.{name}.external_count)"),
        };
        let held = filled.saturating_add(external);
        format!(
            "instance {name} holds {held} registrations{counted}, and instances.{name}.capacity allows {}",
            instance.capacity
        )
    }

    fn candidate<'i>(&self, name: &'i InstanceName, instance: &'i Instance) -> Candidate<'i> {
        Candidate {
            name,
            dedicated: instance.tenant.is_some(),
            filled: u128::from(self.filled(name).saturating_add(instance.external_count)),
            weight: instance.weight,
            tie_break: OnceCell::new(),
        }
    }
}

/// An instance that could take the device. `filled / weight` is compared without division.
struct Candidate<'i> {
    name: &'i InstanceName,
    dedicated: bool,
    filled: u128,
    weight: u32,
    /// Hashed once, and only if it has to be.
    tie_break: OnceCell<u64>,
}

impl Candidate<'_> {
    fn tie_break(&self, registration_id: &RegistrationId) -> u64 {
        *self.tie_break.get_or_init(|| tie_break(registration_id, self.name))
    }
}

/// As many of `reasons` as fit into a message.
fn shortened(reasons: &[String]) -> String {
    let mut told = reasons[..reasons.len().min(REASONS_TOLD)].join("; ");
    if reasons.len() > REASONS_TOLD {
        let _ = write!(told, "; and {} more instances take none", reasons.len() - REASONS_TOLD);
    }
    told
}

/// Whether `instance` may serve `enrollment` at all.
#[must_use]
pub fn fits(enrollment: &Enrollment, name: &InstanceName, instance: &Instance) -> bool {
    (enrollment.instances.is_empty() || enrollment.instances.contains(name))
        && serves(&enrollment.tenant, instance)
        && enrollment.region.as_ref().is_none_or(|region| instance.region.as_ref() == Some(region))
        && enrollment.labels.iter().all(|(label, value)| instance.labels.get(label) == Some(value))
}

/// Whether `instance` is shared or dedicated to `tenant`.
#[must_use]
pub fn serves(tenant: &TenantName, instance: &Instance) -> bool {
    instance.tenant.as_ref().is_none_or(|dedicated| dedicated == tenant)
}

fn tie_break(registration_id: &RegistrationId, name: &InstanceName) -> u64 {
    let mut bytes = Vec::with_capacity(registration_id.as_str().len() + name.as_str().len() + 1);
    bytes.extend_from_slice(registration_id.as_str().as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(name.as_str().as_bytes());
    hash64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{EnrollmentName, IdScope};
    use crate::secret::SymmetricKey;
    use crate::settings::{Credential, DeriveFrom, DeviceAttestation, Membership, UpstreamAttestation};

    fn name(text: &str) -> InstanceName {
        InstanceName::parse(text).unwrap()
    }

    fn tenant(text: &str) -> TenantName {
        TenantName::parse(text).unwrap()
    }

    fn id(number: usize) -> RegistrationId {
        RegistrationId::parse(&format!("device-{number:06}")).unwrap()
    }

    fn instance(weight: u32) -> Instance {
        Instance {
            id_scope: IdScope::parse("0ne000AB12C").unwrap(),
            endpoint: "https://localhost".to_owned(),
            extra_ca_pem: None,
            quota_per_minute: 1000,
            adaptive_limit: true,
            adaptive_limit_min_per_minute: 100,
            burst: 10,
            capacity: 1_000_000,
            external_count: 0,
            weight,
            region: None,
            labels: BTreeMap::new(),
            hubs: BTreeSet::new(),
            tenant: None,
            draining: false,
        }
    }

    fn enrollment() -> Enrollment {
        let _ = EnrollmentName::parse("plant").unwrap();
        Enrollment {
            tenant: tenant("default"),
            device: DeviceAttestation::SasToken { audiences: BTreeSet::new(), membership: Membership::Signature },
            hosts: BTreeSet::new(),
            derive_from: DeriveFrom::RegistrationId,
            upstream: UpstreamAttestation::Group {
                key: SymmetricKey::from_digest([7; 32]),
                key_overrides: BTreeMap::new(),
            },
            instances: BTreeSet::new(),
            region: None,
            labels: BTreeMap::new(),
            credential: Credential::None,
            credential_once: false,
        }
    }

    #[test]
    fn shares_follow_the_weights_within_five_percent_at_ten_thousand_devices() {
        let instances: BTreeMap<_, _> =
            [("a", 1), ("b", 2), ("c", 7)].map(|(n, weight)| (name(n), instance(weight))).into();
        let mut occupancy = Occupancy::default();
        for number in 0..10_000 {
            occupancy.place(&instances, &enrollment(), &id(number), &BTreeSet::new()).unwrap();
        }
        for (n, share) in [("a", 1_000.0), ("b", 2_000.0), ("c", 7_000.0)] {
            let filled = occupancy.filled(&name(n)) as f64;
            assert!((filled - share).abs() <= share * 0.05, "{n} has {filled}");
        }
    }

    #[test]
    fn nothing_goes_beyond_capacity_with_the_external_count_in_it() {
        let mut full = instance(1);
        (full.capacity, full.external_count) = (10, 7);
        let instances: BTreeMap<_, _> = [(name("a"), full)].into();
        let mut occupancy = Occupancy::default();
        for number in 0..3 {
            assert_eq!(occupancy.place(&instances, &enrollment(), &id(number), &BTreeSet::new()), Ok(name("a")));
        }
        let refused = occupancy.place(&instances, &enrollment(), &id(4), &BTreeSet::new()).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "no instance has room: instance a holds 10 registrations (7 of them by instances.a.external_count), and \
             instances.a.capacity allows 10"
        );
        occupancy.remove(&name("a"));
        assert_eq!(occupancy.place(&instances, &enrollment(), &id(4), &BTreeSet::new()), Ok(name("a")));
    }

    #[test]
    fn filters_come_first() {
        let mut eu = instance(1);
        eu.region = Some("eu".to_owned());
        eu.labels.insert("tier".to_owned(), "gold".to_owned());
        let mut draining = eu.clone();
        draining.draining = true;
        let mut others = instance(1);
        others.tenant = Some(tenant("other"));
        let instances: BTreeMap<_, _> =
            [(name("eu"), eu), (name("draining"), draining), (name("others"), others), (name("us"), instance(100))]
                .into();
        let mut in_eu = enrollment();
        in_eu.region = Some("eu".to_owned());
        in_eu.labels.insert("tier".to_owned(), "gold".to_owned());
        let mut occupancy = Occupancy::default();
        for number in 0..20 {
            assert_eq!(occupancy.place(&instances, &in_eu, &id(number), &BTreeSet::new()), Ok(name("eu")));
        }
        in_eu.instances.insert(name("others"));
        assert_eq!(occupancy.place(&instances, &in_eu, &id(1), &BTreeSet::new()), Err(NoRoom::NoneFits));
    }

    #[test]
    fn dedicated_instances_fill_before_shared_ones() {
        let mut dedicated = instance(1);
        (dedicated.tenant, dedicated.capacity) = (Some(tenant("default")), 2);
        let instances: BTreeMap<_, _> = [(name("own"), dedicated), (name("shared"), instance(1))].into();
        let mut occupancy = Occupancy::default();
        let placed: Vec<_> = (0..4)
            .map(|number| occupancy.place(&instances, &enrollment(), &id(number), &BTreeSet::new()).unwrap())
            .collect();
        assert_eq!(placed, [name("own"), name("own"), name("shared"), name("shared")]);
    }

    #[test]
    fn equal_instances_are_told_apart_by_the_device() {
        let instances: BTreeMap<_, _> = [(name("a"), instance(1)), (name("b"), instance(1))].into();
        let chosen: BTreeSet<_> = (0..32)
            .map(|number| Occupancy::default().place(&instances, &enrollment(), &id(number), &BTreeSet::new()).unwrap())
            .collect();
        assert_eq!(chosen.len(), 2, "an empty inventory does not always start at the same instance");
    }

    #[test]
    fn an_instance_to_be_avoided_is_not_chosen_however_empty() {
        let instances: BTreeMap<_, _> = [(name("a"), instance(1)), (name("b"), instance(1))].into();
        let (mut occupancy, avoid) = (Occupancy::default(), BTreeSet::from([name("a")]));
        for number in 0..5 {
            assert_eq!(occupancy.place(&instances, &enrollment(), &id(number), &avoid), Ok(name("b")));
        }
        let both = BTreeSet::from([name("a"), name("b")]);
        assert!(matches!(occupancy.place(&instances, &enrollment(), &id(9), &both), Err(NoRoom::AllFull(_))));
    }
}
