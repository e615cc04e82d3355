//! Who knocks, and when it first does.

use std::time::Duration;

use proxy_core::ids::TenantName;
use rate_control::entropy::Entropy;
use rate_control::time::Mono;

/// Most instances that a simulation takes.
pub const INSTANCES_MAX: u16 = 1_000;

/// Registration records that one instance holds (Microsoft's limit).
pub const CAPACITY: u64 = 1_000_000;

/// Most devices that a simulation takes.
const DEVICES_MAX: u64 = 50_000_000;

/// How a fleet comes back: when its devices first knock, counted from the moment the power returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootCurve {
    /// All within this time, evenly spread; zero means at the same moment.
    Within(Duration),
    /// More and more, from none to a peak at the end of this time.
    Ramp(Duration),
    /// Most at once and the rest later and later: exponential with this mean, cut off at ten times the mean.
    Tail(Duration),
}

impl BootCurve {
    fn draw(self, entropy: &mut Entropy) -> Duration {
        match self {
            Self::Within(span) => entropy.up_to(span),
            // Of two even draws the later one: the density grows evenly from zero.
            Self::Ramp(span) => entropy.up_to(span).max(entropy.up_to(span)),
            Self::Tail(mean) => {
                // 53 bits, as many as a double holds; never zero, so that the logarithm is finite.
                let uniform = ((entropy.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
                mean.mul_f64((-uniform.ln()).min(10.0))
            }
        }
    }
}

/// Devices of one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// The owner.
    pub name: TenantName,
    /// How many devices knock; at least 1.
    pub devices: u32,
    /// When.
    pub boot: BootCurve,
    /// How long after the power returned that begins.
    pub begins_after: Duration,
    /// Instances that only this tenant uses; it uses the shared ones as well only when those are full. 0: it shares.
    pub dedicated_instances: u32,
    /// Its share of a line, relative to the other tenants' that wait in it; 1 to 1,000.
    pub weight: u32,
}

/// Everybody who knocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    tenants: Vec<Tenant>,
}

/// A fleet that cannot be simulated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FleetError {
    /// Nobody is in it.
    #[error("the fleet has no devices")]
    Empty,
    /// A tenant has no devices.
    #[error("tenant {0} has no devices")]
    EmptyTenant(TenantName),
    /// A tenant is named twice.
    #[error("tenant {0} is named twice")]
    Twice(TenantName),
    /// More devices than a simulation takes.
    #[error("the fleet has {0} devices; a simulation takes at most {DEVICES_MAX}")]
    TooManyDevices(u64),
    /// More tenants than a simulation takes.
    #[error("the fleet has {0} tenants; a simulation takes at most {max}", max = u16::MAX)]
    TooManyTenants(usize),
}

impl Fleet {
    /// The devices of these tenants.
    ///
    /// # Errors
    /// [`FleetError`] if nobody knocks, a tenant is named twice, or there are too many.
    pub fn new(tenants: Vec<Tenant>) -> Result<Self, FleetError> {
        if tenants.len() > usize::from(u16::MAX) {
            return Err(FleetError::TooManyTenants(tenants.len()));
        }
        let mut names = std::collections::BTreeSet::new();
        for tenant in &tenants {
            if tenant.devices == 0 {
                return Err(FleetError::EmptyTenant(tenant.name.clone()));
            }
            if !names.insert(&tenant.name) {
                return Err(FleetError::Twice(tenant.name.clone()));
            }
        }
        let fleet = Self { tenants };
        match fleet.devices() {
            0 => Err(FleetError::Empty),
            devices if devices > DEVICES_MAX => Err(FleetError::TooManyDevices(devices)),
            _ => Ok(fleet),
        }
    }

    /// The owners, in order.
    #[must_use]
    pub fn tenants(&self) -> &[Tenant] {
        &self.tenants
    }

    /// How many devices there are.
    #[must_use]
    pub fn devices(&self) -> u64 {
        self.tenants.iter().map(|tenant| u64::from(tenant.devices)).sum()
    }

    /// Instances that are dedicated to one tenant or another.
    #[must_use]
    pub fn dedicated_instances(&self) -> u64 {
        self.tenants.iter().map(|tenant| u64::from(tenant.dedicated_instances)).sum()
    }

    /// The fewest instances that hold a record of every device, given those that are dedicated, and serve every tenant.
    #[must_use]
    pub fn instances_for_room(&self) -> u64 {
        let own_room = |tenant: &Tenant| u64::from(tenant.dedicated_instances) * CAPACITY;
        let rest = self.tenants.iter().map(|tenant| u64::from(tenant.devices).saturating_sub(own_room(tenant)));
        self.dedicated_instances() + rest.sum::<u64>().div_ceil(CAPACITY)
    }

    /// Whether somebody needs an instance that is shared.
    #[must_use]
    pub fn shares(&self) -> bool {
        self.tenants.iter().any(|tenant| tenant.dedicated_instances == 0)
    }

    /// When each device first knocks, in that order; at the same moment tenant by tenant.
    ///
    /// Devices are numbered in this order, and served in nearly the same one. So those that anything happens to at about the same time lie
    /// side by side in memory, which counts when there are millions of them.
    pub(crate) fn boot(&self, entropy: &mut Entropy) -> Vec<Newcomer> {
        let tenants = self.tenants.iter().zip(0_u16..);
        let mut newcomers: Vec<Newcomer> = tenants
            .flat_map(|(tenant, number)| (0..tenant.devices).map(move |_| (tenant.begins_after, tenant.boot, number)))
            .map(|(begins_after, boot, tenant)| Newcomer {
                knocks_at: Mono::default().after(begins_after + boot.draw(entropy)),
                tenant,
            })
            .collect();
        newcomers.sort_by_key(|newcomer| newcomer.knocks_at);
        newcomers
    }
}

/// A device that has not knocked yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Newcomer {
    pub(crate) knocks_at: Mono,
    /// The number of its tenant.
    pub(crate) tenant: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str, devices: u32, boot: BootCurve) -> Tenant {
        Tenant {
            name: TenantName::parse(name).unwrap(),
            devices,
            boot,
            begins_after: Duration::ZERO,
            dedicated_instances: 0,
            weight: 1,
        }
    }

    fn knocks(boot: BootCurve) -> Vec<u64> {
        let fleet = Fleet::new(vec![tenant("a", 10_000, boot)]).unwrap();
        let newcomers = fleet.boot(&mut Entropy::from_seed(1));
        newcomers.iter().map(|newcomer| newcomer.knocks_at.as_nanos() / 1_000_000_000).collect()
    }

    #[test]
    fn the_curves_have_their_shapes() {
        let span = Duration::from_secs(1000);
        let half = 5_000;
        assert!((480..520).contains(&knocks(BootCurve::Within(span))[half]));
        assert!((690..725).contains(&knocks(BootCurve::Ramp(span))[half]), "half of a triangle is at its root");
        let tail = knocks(BootCurve::Tail(span));
        assert!((670..720).contains(&tail[half]), "the median is the mean times ln 2, but {}", tail[half]);
        assert!(*tail.last().unwrap() <= 10_000);
        assert_eq!(knocks(BootCurve::Within(Duration::ZERO)).last(), Some(&0));
    }

    #[test]
    fn a_fleet_that_makes_no_sense_is_refused_by_name() {
        let now = BootCurve::Within(Duration::ZERO);
        assert_eq!(Fleet::new(Vec::new()), Err(FleetError::Empty));
        let twice = Fleet::new(vec![tenant("a", 1, now), tenant("a", 1, now)]).unwrap_err();
        assert_eq!(twice.to_string(), "tenant a is named twice");
        assert!(matches!(Fleet::new(vec![tenant("a", 0, now)]), Err(FleetError::EmptyTenant(_))));
    }
}
