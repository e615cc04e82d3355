//! What operators tune, as the core understands it: validated, with secrets loaded.
//!
//! Invariant: a `Settings` value is consistent in itself (whoever builds it has checked it). It is swapped whole while the
//! service runs; the core reads it once per decision.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::ids::{EnrollmentName, HubName, IdScope, InstanceName, TenantName};
use crate::secret::{SymmetricKey, TokenDigest};
use rate_control::ledger::{DRIFT_GUARD, WINDOW};

/// Everything that can change while the service runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The inventory: every DPS instance we may register with.
    pub instances: BTreeMap<InstanceName, Instance>,
    /// Our logical groups of devices.
    pub enrollments: BTreeMap<EnrollmentName, Enrollment>,
    /// Tenants that have another weight than 1.
    pub tenants: BTreeMap<TenantName, TenantSettings>,
    /// Which enrollment a device belongs to if nothing else tells. `None` if there is none.
    pub default_enrollment: Option<EnrollmentName>,
    /// Rules of the line.
    pub line: LineSettings,
    /// Rules of registering.
    pub registration: RegistrationSettings,
    /// Rules of device credentials.
    pub attestation: AttestationSettings,
    /// Rules of the change feed.
    pub feed: FeedSettings,
}

/// One DPS instance.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// Selects the instance at the shared endpoint.
    pub id_scope: IdScope,
    /// Base URL, for example `https://global.azure-devices-provisioning.net`; private endpoints need the instance's own name.
    pub endpoint: String,
    /// PEM bundle of further roots to trust at this endpoint.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// Registrations that DPS accepts of us per minute (Microsoft's default: 1,000). At least 1.
    pub quota_per_minute: u32,
    /// Registrations that may leave together; 1 to 1,000 and at most the quota. No larger than DPS's own bucket.
    pub burst: u32,
    /// Whether the limit comes down when DPS throttles, and grows again.
    pub adaptive_limit: bool,
    /// It never comes down below this; 1 to the quota.
    pub adaptive_limit_min_per_minute: u32,
    /// Registration records the instance may hold (Microsoft's default: 1,000,000).
    pub capacity: u64,
    /// Records that others hold there and that we cannot see.
    pub external_count: u64,
    /// Share of new devices, relative to the other instances'; at least 1.
    pub weight: u32,
    /// Where it is; matched by an enrollment's `region`.
    pub region: Option<String>,
    /// Free labels; an enrollment's labels must all be among them.
    pub labels: BTreeMap<String, String>,
    /// The hubs it may answer with. Empty: any.
    pub hubs: BTreeSet<HubName>,
    /// The tenant it is dedicated to; `None` if shared.
    pub tenant: Option<TenantName>,
    /// Takes no new devices, but serves those it has.
    pub draining: bool,
}

/// What is known of one tenant, beside its enrollments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantSettings {
    /// Share of a line, relative to the other tenants' that wait in it; 1 to 1,000.
    pub weight: u32,
}

/// How a device of an enrollment proves itself to us.
#[derive(Debug, Clone, PartialEq)]
pub enum DeviceAttestation {
    /// A SAS token signed with the device's own key.
    SasToken {
        /// Accepted audiences (`sr` = `{audience}/registrations/{registrationId}`), folded to lower case; not empty.
        audiences: BTreeSet<String>,
        /// Who may come.
        membership: Membership,
    },
    /// On the allow-list, and a bearer token shared by the fleet.
    FleetToken {
        /// The accepted tokens (several while they are rotated); not empty.
        tokens: Vec<TokenDigest>,
    },
    /// On the allow-list, and nothing else: whoever guesses a hardware ID is believed.
    AllowListAlone,
}

/// Whether a valid signature is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// A valid group-derived signature is enough.
    Signature,
    /// The device must be on the allow-list as well.
    AllowList,
}

/// Which spelling of the hardware ID the device's key was derived from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeriveFrom {
    /// The registration ID (lower case): what DPS itself is registered with.
    RegistrationId,
    /// The hardware ID as the device sends it.
    AsGiven,
}

/// How we prove a device to DPS.
#[derive(Debug, Clone, PartialEq)]
pub enum UpstreamAttestation {
    /// A symmetric-key enrollment group: the device key is derived from the group key.
    Group {
        /// The group key of instances without one of their own.
        key: SymmetricKey,
        /// Instances whose group has another key.
        key_overrides: BTreeMap<InstanceName, SymmetricKey>,
    },
    /// Individual symmetric-key enrollments: each device's key comes with its allow-list entry.
    Individual,
}

/// What a device is handed with its assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nothing: it has its own key.
    None,
    /// A SAS token for the assigned hub.
    HubSas {
        /// How long the token is good for.
        lifetime: Duration,
    },
    /// The symmetric key that its hub identity carries.
    DerivedKey,
}

/// One logical group of devices.
#[derive(Debug, Clone, PartialEq)]
pub struct Enrollment {
    /// Whose devices these are.
    pub tenant: TenantName,
    /// How a device proves itself to us.
    pub device: DeviceAttestation,
    /// Host names (`Host`/SNI) that select this enrollment when neither allow-list nor audience does; lower case.
    pub hosts: BTreeSet<String>,
    /// The spelling that keys are derived from.
    pub derive_from: DeriveFrom,
    /// How we prove a device to DPS.
    pub upstream: UpstreamAttestation,
    /// Instances it may use. Empty: every instance that is shared or dedicated to its tenant.
    pub instances: BTreeSet<InstanceName>,
    /// Only instances of this region.
    pub region: Option<String>,
    /// Only instances that carry all these labels.
    pub labels: BTreeMap<String, String>,
    /// What the device is handed with its assignment.
    pub credential: Credential,
    /// Hand the credential out once only; an operator's retry allows it again.
    pub credential_once: bool,
}

/// Rules of the line.
#[derive(Debug, Clone, PartialEq)]
pub struct LineSettings {
    /// Devices that may wait for one instance.
    pub length_max: usize,
    /// Per cent of the departures that expedited devices may take while others wait; 1 to 50.
    pub urgent_share_percent: u32,
    /// How much longer a device waits for its turn in each class behind the first: first provisioning, reprovisioning, background.
    pub class_handicap: Duration,
    /// How long an instance fails before devices that nothing was sent for may be booked on another one.
    pub rebook_after: Duration,
    /// Most that a `Retry-After` is spread over, later only.
    pub jitter_max: Duration,
    /// What a registration is assumed to take until enough were observed.
    pub expected_registration: Duration,
}

/// Rules of registering with DPS.
#[derive(Debug, Clone, PartialEq)]
pub struct RegistrationSettings {
    /// `api-version` of every call; default `2021-10-01`.
    pub api_version: String,
    /// Longest to wait for a connection, TLS included.
    pub connect_timeout: Duration,
    /// Longest to wait for the answer to one call.
    pub request_timeout: Duration,
    /// How long what we sign for DPS is good for, by DPS's own clock; longer than a call may take.
    pub token_life: Duration,
    /// After we abandon a call, how much later DPS may still count it (default 30 s); the kernel sends no byte again after that. At least
    /// `connect_timeout`.
    pub upstream_max_delay: Duration,
    /// Calls of any kind to one instance at the same time, and so connections in use; the others wait for one.
    pub connections_max: usize,
    /// Idle connections kept per instance.
    pub idle_connections_max: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// Registrations of one instance that may be under way (sent, or polled) at the same time.
    pub in_flight_max: usize,
    /// Wait before the first poll and between polls when DPS names none; at least 2 s (DPS allows 5 polls per 10 s and device).
    pub poll_interval: Duration,
    /// Longest wait between polls, whatever DPS asks for.
    pub poll_interval_max: Duration,
    /// Longest that an instance is paused because DPS throttled it, whatever DPS asks for.
    pub throttle_wait_max: Duration,
    /// How long a registration may stay `assigning` before it is begun anew.
    pub assigning_max: Duration,
    /// Failures in a row after which the circuit opens: one trial request at a time. At least 2.
    pub breaker_threshold: u32,
    /// First wait after a failure; doubles from there, with full jitter.
    pub backoff_min: Duration,
    /// Longest wait after failures, and so between the trial requests of an open circuit.
    pub backoff_max: Duration,
    /// Registrations that DPS gave no result for, while it gave one to others, after which a device is refused for `refusal_ttl`.
    pub attempts_max: u32,
    /// Whether a status lookup spends a registration. Microsoft's pages disagree; `true` is the cautious reading.
    pub lookup_spends: bool,
    /// How long a refusal by DPS is remembered.
    pub refusal_ttl: Duration,
    /// A registration begun less than this ago satisfies `reprovision: true`.
    pub reprovision_cooldown: Duration,
    /// One registration of a suspect device per this time.
    pub suspect_cooldown: Duration,
    /// Events kept in one device's timeline.
    pub timeline_max: usize,
}

/// For how long after its end DPS may still accept a token. No source says; five minutes is what such services grant for clocks.
const TOKEN_TOLERANCE: Duration = Duration::from_secs(300);

impl RegistrationSettings {
    /// How long a send counts whose end nobody knows and whose owner may live on, from when that owner could arm no other one: until DPS
    /// cannot accept its token any more, and a window beyond; with two seconds for what clocks may be off by in that time.
    #[must_use]
    pub fn orphan_hold(&self) -> Duration {
        self.token_life + TOKEN_TOLERANCE + WINDOW + DRIFT_GUARD + Duration::from_secs(2)
    }
}

/// Rules of device credentials.
#[derive(Debug, Clone, PartialEq)]
pub struct AttestationSettings {
    /// Longest that a SAS token may still be valid for.
    pub sas_lifetime_max: Duration,
    /// How far a device's clock may be behind ours.
    pub clock_skew: Duration,
}

/// Rules of the change feed.
#[derive(Debug, Clone, PartialEq)]
pub struct FeedSettings {
    /// How long an event can be resumed from.
    pub retention: Duration,
    /// How many events are kept at most.
    pub events_max: u64,
}
