//! The only place that speaks to `proxy-core`'s line, placement and settings: devices and instances are numbers on this side, names
//! on the other.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use proxy_core::dialect::Dialect;
use proxy_core::ids::{IdScope, RegistrationId, TenantName};
use proxy_core::line::lane::JobKind;
use proxy_core::line::scheduler::Fairness;
use proxy_core::line::{Admission, Line, Next, RecoveryState};
use proxy_core::place::{Class, Place, Sequence};
#[cfg(test)]
use proxy_core::secret::SymmetricKey;
#[cfg(test)]
use proxy_core::settings::{Credential, DeriveFrom, DeviceAttestation, Enrollment, Membership, UpstreamAttestation};
use proxy_core::settings::{Instance, LineSettings, RegistrationSettings};
use rate_control::entropy::Entropy;
use rate_control::ledger::SlotId;

use rate_control::time::Mono;

use crate::fleet::{CAPACITY, Fleet};
use crate::scenario::Scenario;

/// The default of `registration.connections_max`.
pub(crate) const CONNECTIONS_MAX: usize = 256;

/// The default of `registration.poll_interval`; DPS's own `Retry-After` counts if it is longer.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The default of `burst`, or the whole quota where that is less.
pub(crate) fn burst(quota_per_minute: u32) -> u32 {
    quota_per_minute.min(10)
}

/// A place in the line of one instance.
pub(crate) type Stand = Place;

/// The slot of the ledger that a send holds.
pub(crate) type Slot = Option<SlotId>;

/// What a line wants to happen next, in this crate's numbers.
pub(crate) enum Turn {
    Depart { device: u32, slot: Slot },
    WaitUntil(Mono),
    Idle,
}

/// The empty line of every instance of a scenario.
pub(crate) fn lines(scenario: &Scenario) -> Vec<SimulatedLine> {
    let fleet = &scenario.fleet;
    let rules = (&line_settings(), &registration_settings());
    let tenants: Rc<[TenantName]> = fleet.tenants().iter().map(|tenant| tenant.name.clone()).collect();
    let mut owners = fleet.tenants().iter().flat_map(|tenant| {
        std::iter::repeat_n(&tenant.name, usize::try_from(tenant.dedicated_instances).unwrap_or(usize::MAX))
    });
    let line = |number| {
        let instance = instance(scenario.quota_of(number), owners.next());
        let fairness = fairness(fleet, instance.tenant.is_none());
        let line = Line::new(&instance, rules, fairness, &RecoveryState::default(), Mono::default());
        SimulatedLine { line, next: 0, tenants: Rc::clone(&tenants) }
    };
    (0..scenario.instances).map(line).collect()
}

/// The line of one instance.
#[derive(Debug)]
pub(crate) struct SimulatedLine {
    line: Line,
    /// The number of the next place.
    next: Sequence,
    tenants: Rc<[TenantName]>,
}

impl SimulatedLine {
    /// A device joins for the first time. Its record is on disk at once: disks are not simulated.
    pub(crate) fn join(&mut self, tenant: u16, device: u32, now: Mono) -> Stand {
        let tenant = &self.tenants[usize::from(tenant)];
        self.line.hold_room(tenant, now).expect("a line of a simulation has no bound");
        let place = Place { class: Class::First, sequence: self.next };
        self.next += 1;
        self.line.arrive(tenant, place, id_of(device), Duration::ZERO, now);
        place
    }

    /// The `Retry-After` that the device at `place` is told, in seconds; `None` if the line does not know it.
    pub(crate) fn told_seconds(&mut self, tenant: u16, place: Stand, now: Mono, entropy: &mut Entropy) -> Option<u64> {
        let forecast = self.line.appoint(&self.tenants[usize::from(tenant)], place, now)?;
        let wait = forecast.appointment.since(now);
        Some(Dialect::PLAIN.told_seconds(wait, line_settings().jitter_max, |most| entropy.up_to(most)))
    }

    pub(crate) fn next(&mut self, now: Mono) -> Turn {
        match self.line.next(now) {
            Next::Depart(departure) => Turn::Depart { device: device_of(&departure.id), slot: departure.slot },
            Next::WaitUntil(moment) => Turn::WaitUntil(moment),
            Next::Idle => Turn::Idle,
        }
    }

    /// DPS accepted the registration that was sent at `sent` and holds `slot`.
    pub(crate) fn accepted(&mut self, place: Stand, slot: Slot, sent: Mono, now: Mono) {
        self.line.answered(place, slot, sent, Admission::Admitted, now);
        self.line.instance_works();
    }

    /// DPS refused it with 429 and asked for `wait`.
    pub(crate) fn throttled(&mut self, place: Stand, slot: Slot, sent: Mono, wait: Duration, now: Mono) {
        self.line.answered(place, slot, sent, Admission::Throttled, now);
        self.line.throttled(Some(sent), now.after(wait), now);
        self.line.come_back(place, JobKind::Register, now, now);
    }

    pub(crate) fn assigned(&mut self, place: Stand, now: Mono) {
        self.line.finish(place, true, now);
    }
}

pub(crate) fn id_of(device: u32) -> RegistrationId {
    RegistrationId::parse(&device.to_string()).expect("digits")
}

fn device_of(id: &RegistrationId) -> u32 {
    id.as_str().parse().expect("only numbers join")
}

pub(crate) fn instance(quota_per_minute: u32, tenant: Option<&TenantName>) -> Instance {
    Instance {
        id_scope: IdScope::parse("0ne00000000").expect("letters and digits"),
        endpoint: "https://global.azure-devices-provisioning.net".to_owned(),
        extra_ca_pem: None,
        quota_per_minute,
        burst: burst(quota_per_minute),
        adaptive_limit: true,
        adaptive_limit_min_per_minute: (quota_per_minute / 10).max(1),
        capacity: CAPACITY,
        external_count: 0,
        weight: 1,
        region: None,
        labels: BTreeMap::new(),
        hubs: BTreeSet::new(),
        tenant: tenant.cloned(),
        draining: false,
    }
}

#[cfg(test)]
pub(crate) fn enrollment(tenant: &TenantName) -> Enrollment {
    Enrollment {
        tenant: tenant.clone(),
        device: DeviceAttestation::SasToken { audiences: BTreeSet::new(), membership: Membership::Signature },
        hosts: BTreeSet::new(),
        derive_from: DeriveFrom::RegistrationId,
        upstream: UpstreamAttestation::Group {
            key: SymmetricKey::from_digest([0; 32]),
            key_overrides: BTreeMap::new(),
        },
        instances: BTreeSet::new(),
        region: None,
        labels: BTreeMap::new(),
        credential: Credential::None,
        credential_once: false,
    }
}

/// The defaults of `[line]`, but for the bound: a planner is to say how long the line gets.
fn line_settings() -> LineSettings {
    LineSettings {
        length_max: usize::MAX,
        urgent_share_percent: 10,
        class_handicap: Duration::from_secs(600),
        rebook_after: Duration::from_secs(30),
        jitter_max: Duration::from_secs(5),
        expected_registration: Duration::from_secs(4),
    }
}

/// Tenants share by the weights of the fleet the lines of instances that are `shared`.
fn fairness(fleet: &Fleet, shared: bool) -> Fairness {
    let LineSettings { urgent_share_percent, class_handicap, .. } = line_settings();
    let tenths = u32::try_from(class_handicap.as_millis() / 100).unwrap_or(u32::MAX);
    let weights = fleet.tenants().iter().map(|tenant| (tenant.name.clone(), tenant.weight)).collect();
    let shared = shared && fleet.tenants().len() > 1;
    Fairness { urgent_share_percent, handicap: tenths, weights, shared }
}

/// The defaults of `[registration]`.
fn registration_settings() -> RegistrationSettings {
    RegistrationSettings {
        api_version: "2021-10-01".to_owned(),
        connect_timeout: Duration::from_secs(10),
        request_timeout: Duration::from_secs(30),
        upstream_max_delay: Duration::from_secs(30),
        connections_max: CONNECTIONS_MAX,
        idle_connections_max: 32,
        idle_timeout: Duration::from_secs(60),
        in_flight_max: 10_000,
        poll_interval: POLL_INTERVAL,
        poll_interval_max: Duration::from_secs(60),
        throttle_wait_max: Duration::from_secs(600),
        assigning_max: Duration::from_secs(300),
        token_life: Duration::from_secs(120),
        backoff_min: Duration::from_millis(500),
        backoff_max: Duration::from_secs(60),
        attempts_max: 8,
        breaker_threshold: 2,
        lookup_spends: true,
        refusal_ttl: Duration::from_secs(3600),
        reprovision_cooldown: Duration::from_secs(900),
        suspect_cooldown: Duration::from_secs(900),
        timeline_max: 24,
    }
}
