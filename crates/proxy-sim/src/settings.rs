//! The gateway's settings of a run. The one place that names every field of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proxy_core::gateway::Fixed;
use proxy_core::ids::{EnrollmentName, IdScope, InstanceName, TenantName};
use proxy_core::secret::SymmetricKey;
use proxy_core::settings::{
    AttestationSettings, Credential, DeriveFrom, DeviceAttestation, Enrollment, FeedSettings, Instance, LineSettings,
    Membership, RegistrationSettings, Settings, TenantSettings, UpstreamAttestation,
};

use crate::mutant::Mutant;
use crate::scenario::{InstancePlan, Scenario};

/// The key of each tenant's enrollment group, at the gateway and at DPS.
pub(crate) const GROUP_KEYS: [&str; 3] = [
    "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=",
    "QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl8=",
];

/// The name of a tenant, which is also that of its one enrollment.
pub(crate) fn tenant_name(tenant: usize) -> String {
    format!("tenant-{tenant}")
}

/// The audience that devices of a tenant sign for.
pub(crate) fn audience(tenant: usize) -> String {
    format!("{}.example", tenant_name(tenant))
}

pub(crate) fn group_key(tenant: usize) -> SymmetricKey {
    SymmetricKey::from_base64(GROUP_KEYS[tenant]).expect("it is base64 of 32 bytes")
}

/// The settings with these quotas, spoilt by the mutant if there is one.
pub(crate) fn settings(scenario: &Scenario, quotas: &BTreeMap<InstanceName, u32>, mutant: Option<Mutant>) -> Settings {
    let mut settings = sound_settings(scenario, quotas);
    if let Some(mutant) = mutant {
        mutant.spoil(&mut settings);
    }
    settings
}

fn sound_settings(scenario: &Scenario, quotas: &BTreeMap<InstanceName, u32>) -> Settings {
    let instance = |plan: &InstancePlan| {
        let quota = quotas.get(&plan.name).copied().unwrap_or(plan.quota);
        (plan.name.clone(), instance(plan, quota, scenario.adaptive_limits))
    };
    let enrollments = (0..scenario.tenants).map(|tenant| {
        let name = EnrollmentName::parse(&tenant_name(tenant)).expect("it is a name");
        (name, enrollment(tenant))
    });
    Settings {
        instances: scenario.instances.iter().map(instance).collect(),
        enrollments: enrollments.collect(),
        tenants: (0..scenario.tenants).map(|tenant| (tenant_named(tenant), weight(scenario, tenant))).collect(),
        default_enrollment: None,
        line: LineSettings {
            length_max: scenario.length_max,
            urgent_share_percent: scenario.urgent_share_percent,
            class_handicap: scenario.class_handicap,
            rebook_after: scenario.rebook_after,
            jitter_max: Duration::from_secs(5),
            expected_registration: Duration::from_secs(4),
        },
        registration: registration(scenario),
        attestation: AttestationSettings {
            sas_lifetime_max: Duration::from_secs(25 * 3600),
            clock_skew: Duration::from_secs(300),
        },
        feed: FeedSettings { retention: Duration::from_secs(24 * 3600), events_max: 100_000 },
    }
}

fn tenant_named(tenant: usize) -> TenantName {
    TenantName::parse(&tenant_name(tenant)).expect("it is a name")
}

fn weight(scenario: &Scenario, tenant: usize) -> TenantSettings {
    TenantSettings { weight: scenario.weights[tenant] }
}

fn instance(plan: &InstancePlan, quota: u32, adaptive_limit: bool) -> Instance {
    Instance {
        id_scope: IdScope::parse(&plan.scope).expect("it is an ID scope"),
        endpoint: format!("https://{}.example", plan.name),
        extra_ca_pem: None,
        quota_per_minute: quota,
        burst: plan.burst.min(quota),
        adaptive_limit,
        adaptive_limit_min_per_minute: (quota / 10).max(1),
        capacity: 1_000_000,
        external_count: 0,
        weight: plan.weight,
        region: None,
        labels: BTreeMap::new(),
        hubs: BTreeSet::new(),
        tenant: plan.tenant.map(tenant_named),
        draining: false,
    }
}

fn enrollment(tenant: usize) -> Enrollment {
    Enrollment {
        tenant: tenant_named(tenant),
        device: DeviceAttestation::SasToken { audiences: [audience(tenant)].into(), membership: Membership::Signature },
        hosts: BTreeSet::new(),
        derive_from: DeriveFrom::RegistrationId,
        upstream: UpstreamAttestation::Group { key: group_key(tenant), key_overrides: BTreeMap::new() },
        instances: BTreeSet::new(),
        region: None,
        labels: BTreeMap::new(),
        credential: Credential::None,
        credential_once: false,
    }
}

fn registration(scenario: &Scenario) -> RegistrationSettings {
    RegistrationSettings {
        api_version: "2021-10-01".to_owned(),
        connect_timeout: Duration::from_secs(5),
        request_timeout: scenario.request_timeout,
        upstream_max_delay: scenario.upstream_max_delay,
        connections_max: scenario.connections_max,
        idle_connections_max: 32,
        idle_timeout: Duration::from_secs(60),
        in_flight_max: scenario.in_flight_max,
        poll_interval: Duration::from_secs(2),
        poll_interval_max: Duration::from_secs(30),
        throttle_wait_max: scenario.throttle_wait_max,
        assigning_max: scenario.assigning_max,
        token_life: Duration::from_secs(120),
        breaker_threshold: scenario.breaker_threshold,
        backoff_min: Duration::from_millis(500),
        backoff_max: scenario.backoff_max,
        attempts_max: scenario.attempts_max,
        lookup_spends: scenario.lookup_spends,
        refusal_ttl: scenario.refusal_ttl,
        reprovision_cooldown: scenario.cooldown,
        suspect_cooldown: scenario.cooldown,
        timeline_max: scenario.timeline_max,
    }
}

/// What does not change while the gateway runs.
pub(crate) fn fixed(scenario: &Scenario) -> Fixed {
    Fixed { parked_max: scenario.parked_max, repeat_burst: 5, repeat_interval: Duration::from_secs(1) }
}
