//! A simulated world: one gateway, its clock, its store, and the DPS instances it talks to.
//!
//! Nothing here takes real time. A process is killed by killing its store and its network first: what is left of it can neither
//! read, nor write, nor call anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proxy_core::attestation::{Presented, Proof, Selector};
use proxy_core::device::Record;
use proxy_core::dialect::Dialect;
use proxy_core::gateway::{Fixed, Gateway, Surroundings};
use proxy_core::ids::{EnrollmentName, IdScope, InstanceName, RegistrationId, TenantName};
use proxy_core::line_owner::LineOwner;
use proxy_core::ownership::Ownership;
use proxy_core::sas;
use proxy_core::secret::SymmetricKey;
use proxy_core::settings::{
    AttestationSettings, Credential, DeriveFrom, DeviceAttestation, Enrollment, FeedSettings, Instance, LineSettings,
    Membership, RegistrationSettings, Settings, UpstreamAttestation,
};
use proxy_core::store::Store;
use proxy_core::store::memory::MemoryStore;
use proxy_core::use_cases::import::ImportRow;
use proxy_core::use_cases::provision::{Assigned, Intent, Outcome, ProvisionError, ProvisionRequest, Queued};
use rate_control::entropy::Entropy;
use serde_json::Value;

pub(crate) mod clock;
pub(crate) mod dps;
mod far;
pub(crate) mod judge;
pub(crate) mod replicas;

use clock::TestClock;
use dps::{Dps, Network, Process};

pub(crate) const AUDIENCE: &str = "gateway.example";
const GROUP_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

pub(crate) fn group_key() -> SymmetricKey {
    SymmetricKey::from_base64(GROUP_KEY).unwrap()
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// On the paused clock, which goes on at once.
pub(crate) async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

pub(crate) fn id(text: &str) -> RegistrationId {
    RegistrationId::parse(text).unwrap()
}

pub(crate) fn name(text: &str) -> InstanceName {
    InstanceName::parse(text).unwrap()
}

pub(crate) fn enrollment_name(text: &str) -> EnrollmentName {
    EnrollmentName::parse(text).unwrap()
}

pub(crate) fn instance(scope: &str, quota: u32) -> Instance {
    Instance {
        id_scope: IdScope::parse(scope).unwrap(),
        endpoint: "https://dps.example".to_owned(),
        extra_ca_pem: None,
        quota_per_minute: quota,
        burst: quota.min(10),
        adaptive_limit: false,
        adaptive_limit_min_per_minute: 1,
        capacity: 1_000_000,
        external_count: 0,
        weight: quota,
        region: None,
        labels: BTreeMap::new(),
        hubs: BTreeSet::new(),
        tenant: None,
        draining: false,
    }
}

pub(crate) fn enrollment() -> Enrollment {
    Enrollment {
        tenant: TenantName::parse("default").unwrap(),
        device: DeviceAttestation::SasToken {
            audiences: [AUDIENCE.to_owned()].into(),
            membership: Membership::Signature,
        },
        hosts: BTreeSet::new(),
        derive_from: DeriveFrom::RegistrationId,
        upstream: UpstreamAttestation::Group { key: group_key(), key_overrides: BTreeMap::new() },
        instances: BTreeSet::new(),
        region: None,
        labels: BTreeMap::new(),
        credential: Credential::None,
        credential_once: false,
    }
}

/// The defaults of the service, for these instances and their quotas.
/// The same with individual enrollments at DPS: devices have keys of their own, and any device ID.
pub(crate) fn individual(mut settings: Settings) -> Settings {
    for enrollment in settings.enrollments.values_mut() {
        enrollment.upstream = UpstreamAttestation::Individual;
    }
    settings
}

pub(crate) fn settings(instances: &[(&str, u32)]) -> Settings {
    let plant = enrollment_name("plant");
    Settings {
        instances: instances
            .iter()
            .map(|&(text, quota)| (name(text), instance(&format!("0ne{text}"), quota)))
            .collect(),
        enrollments: [(plant.clone(), enrollment())].into(),
        default_enrollment: Some(plant),
        tenants: BTreeMap::new(),
        line: LineSettings {
            length_max: 1_000_000,
            urgent_share_percent: 10,
            class_handicap: seconds(600),
            rebook_after: seconds(30),
            jitter_max: seconds(5),
            expected_registration: seconds(4),
        },
        registration: RegistrationSettings {
            api_version: "2021-10-01".to_owned(),
            connect_timeout: seconds(10),
            request_timeout: seconds(30),
            token_life: seconds(120),
            upstream_max_delay: dps::MAX_DELAY,
            connections_max: 256,
            idle_connections_max: 32,
            idle_timeout: seconds(60),
            in_flight_max: 10_000,
            poll_interval: seconds(2),
            poll_interval_max: seconds(60),
            throttle_wait_max: seconds(600),
            assigning_max: seconds(300),
            breaker_threshold: 2,
            backoff_min: millis(500),
            backoff_max: seconds(60),
            attempts_max: 8,
            lookup_spends: true,
            refusal_ttl: seconds(3600),
            reprovision_cooldown: seconds(900),
            suspect_cooldown: seconds(900),
            timeline_max: 24,
        },
        attestation: AttestationSettings { sas_lifetime_max: seconds(25 * 3600), clock_skew: seconds(300) },
        feed: FeedSettings { retention: seconds(24 * 3600), events_max: 100_000 },
    }
}

/// What a device sends.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) hardware_id: String,
    pub(crate) authorization: Option<String>,
    pub(crate) payload: Option<Value>,
    pub(crate) reprovision: bool,
    pub(crate) wait: Duration,
}

impl Ask {
    pub(crate) fn reprovision(mut self) -> Self {
        self.reprovision = true;
        self
    }

    pub(crate) fn payload(mut self, payload: Value) -> Self {
        self.payload = Some(payload);
        self
    }

    pub(crate) fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    pub(crate) fn authorization(mut self, authorization: Option<&str>) -> Self {
        self.authorization = authorization.map(str::to_owned);
        self
    }

    pub(crate) async fn of(self, gateway: Arc<Gateway>) -> Result<Outcome, ProvisionError> {
        let presented = Presented {
            hardware_id: &self.hardware_id,
            proof: self.authorization.as_deref().map_or(Proof::Nothing, Proof::Token),
            selector: Selector { host: Some(AUDIENCE), ports: &[] },
        };
        let intent = Intent { payload: self.payload.clone(), reprovision: self.reprovision };
        let question = ProvisionRequest { presented, intent, patience: self.wait, dialect: Dialect::PLAIN };
        gateway.provision(&question).await
    }
}

pub(crate) struct World {
    pub(crate) clock: Arc<TestClock>,
    pub(crate) instances: BTreeMap<InstanceName, Arc<Dps>>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) gateway: Arc<Gateway>,
    process: Arc<Process>,
    fixed: Fixed,
    starts: u64,
}

impl World {
    pub(crate) async fn new(settings: Settings) -> Self {
        Self::seeded(settings, 1).await
    }

    pub(crate) async fn seeded(settings: Settings, seed: u64) -> Self {
        let instances = settings.instances.keys().zip(0..).map(|(name, number)| {
            (name.clone(), Dps::new(seed * 1000 + number, &format!("hub-{name}.azure-devices.net")))
        });
        let instances: BTreeMap<_, _> = instances.collect();
        Self::with(settings, instances, Fixed { parked_max: 1000, repeat_burst: 5, repeat_interval: seconds(1) }).await
    }

    pub(crate) async fn with(settings: Settings, instances: BTreeMap<InstanceName, Arc<Dps>>, fixed: Fixed) -> Self {
        let clock = Arc::new(TestClock::new());
        let store = Arc::new(MemoryStore::new());
        let process = Arc::new(Process::default());
        let gateway = open(&store, &clock, &process, &instances, settings, fixed, 1).await;
        Self { clock, instances, store, gateway, process, fixed, starts: 1 }
    }

    pub(crate) fn dps(&self, instance: &str) -> &Arc<Dps> {
        &self.instances[&name(instance)]
    }

    /// A device with its own key and a fresh token. Its clock is right, whatever ours reads.
    pub(crate) fn ask(&self, hardware_id: &str) -> Ask {
        self.ask_of(hardware_id, AUDIENCE)
    }

    /// The same, with a token for `audience`.
    pub(crate) fn ask_of(&self, hardware_id: &str, audience: &str) -> Ask {
        let registration_id = hardware_id.to_ascii_lowercase();
        let key = sas::derive_device_key(&group_key(), &registration_id);
        let resource = format!("{audience}%2Fregistrations%2F{registration_id}");
        let expiry = self.clock.true_unix_seconds() + 3600;
        Ask {
            hardware_id: hardware_id.to_owned(),
            authorization: Some(sas::device_token(&key, &resource, expiry, None)),
            payload: None,
            reprovision: false,
            wait: Duration::ZERO,
        }
    }

    /// Lists a device of an individual enrollment, with the key that its tokens are signed with.
    pub(crate) async fn list(&self, device: &str, enrollment: &str) {
        let key = proxy_core::sas::derive_device_key(&group_key(), device).expose_base64();
        let (hardware_id, enrollment) = (device.to_owned(), enrollment.to_owned());
        let row = ImportRow { hardware_id, enrollment, tenant: None, batch: None, key: Some(key) };
        self.gateway.import(vec![row]).await.unwrap();
    }

    pub(crate) async fn provision(&self, ask: Ask) -> Result<Outcome, ProvisionError> {
        ask.of(Arc::clone(&self.gateway)).await
    }

    /// Asks once and has to be put in line.
    pub(crate) async fn queue(&self, hardware_id: &str) -> Queued {
        match self.provision(self.ask(hardware_id)).await {
            Ok(Outcome::Queued(queued)) => queued,
            other => panic!("{hardware_id}: {other:?}"),
        }
    }

    /// Asks once and has to be told its hub.
    pub(crate) async fn hub(&self, hardware_id: &str) -> String {
        self.assigned(self.ask(hardware_id)).await.hub.to_string()
    }

    pub(crate) async fn assigned(&self, ask: Ask) -> Assigned {
        let hardware_id = ask.hardware_id.clone();
        match self.provision(ask).await {
            Ok(Outcome::Assigned(assigned)) => *assigned,
            other => panic!("{hardware_id} at {:?}: {other:?}", self.clock.elapsed()),
        }
    }

    /// Asks, and comes back as told, until it has its hub. Returns the hub and how often it asked.
    pub(crate) async fn settle(&self, ask: Ask) -> (String, u32) {
        let mut requests = 0;
        loop {
            requests += 1;
            match self.provision(ask.clone()).await {
                Ok(Outcome::Assigned(assigned)) => return (assigned.hub.to_string(), requests),
                Ok(Outcome::Queued(queued)) => sleep(seconds(queued.retry_after_seconds)).await,
                Err(error) => panic!("{}: {error:?}", ask.hardware_id),
            }
            assert!(requests < 200, "{} is never served", ask.hardware_id);
        }
    }

    /// What is on disk about a device.
    pub(crate) async fn record(&self, registration_id: &str) -> Option<Record> {
        let stored = self.store.get(&Record::key(&id(registration_id))).await.unwrap();
        stored.map(|stored| Record::decode(&stored).unwrap().record)
    }

    /// `kill -9`: what was not synced is lost, and nothing of the old process is heard of again.
    pub(crate) async fn kill(&mut self) {
        self.start_anew(|_| {}).await;
    }

    /// A loss of power, after which the process starts when the machine has been up for `uptime`.
    pub(crate) async fn reboot(&mut self, uptime: Duration) {
        self.start_anew(|clock| clock.reboot(uptime)).await;
    }

    /// A clean stop and a start.
    pub(crate) async fn restart(&mut self) {
        self.gateway.stop(seconds(1)).await;
        self.kill().await;
    }

    async fn start_anew(&mut self, between: impl FnOnce(&TestClock)) {
        let settings = (*self.gateway.settings()).clone();
        self.process.kill();
        self.store = Arc::new(self.store.crash());
        let old = Arc::clone(&self.gateway);
        // Ends the loops of what is left of the old process.
        old.stop(Duration::ZERO).await;
        between(&self.clock);
        self.starts += 1;
        self.process = Arc::new(Process::default());
        self.gateway =
            open(&self.store, &self.clock, &self.process, &self.instances, settings, self.fixed, self.starts).await;
    }
}

impl World {
    /// The same process before the same store, but behind `door`: whatever is read and written goes through it.
    pub(crate) async fn behind(settings: Settings, door: impl FnOnce(Arc<MemoryStore>) -> Arc<dyn Store>) -> Self {
        let mut world = Self::new(settings.clone()).await;
        world.gateway.stop(Duration::ZERO).await;
        world.process = Arc::new(Process::default());
        world.store = Arc::new(world.store.crash());
        let (store, clock) = (door(Arc::clone(&world.store)), Arc::clone(&world.clock));
        let network = Network { process: Arc::clone(&world.process), instances: world.instances.clone() };
        let opened = Gateway::open(store, clock, Arc::new(network), settings, world.fixed, Entropy::from_seed(1)).await;
        world.gateway = opened.unwrap();
        world
    }
}

impl World {
    /// A new world, in which every question to the owner of the lines takes this long to get there, and every answer to come back.
    pub(crate) async fn far_from_the_owner(settings: Settings, way: Duration) -> Self {
        let mut world = Self::new(settings.clone()).await;
        world.gateway.stop(Duration::ZERO).await;
        world.process = Arc::new(Process::default());
        world.store = Arc::new(world.store.crash());
        let (store, clock) = (Arc::clone(&world.store), Arc::clone(&world.clock));
        let network = Arc::new(Network { process: Arc::clone(&world.process), instances: world.instances.clone() });
        let (entropy, far) = (Entropy::from_seed(1), |owner| Arc::new(far::Far { owner, way }) as Arc<dyn LineOwner>);
        let surroundings = Surroundings { store, clock, connect: network, ownership: Ownership::undisputed() };
        let opened = Gateway::open_before(surroundings, settings, world.fixed, entropy, far).await;
        world.gateway = opened.unwrap();
        world
    }
}

async fn open(
    store: &Arc<MemoryStore>,
    clock: &Arc<TestClock>,
    process: &Arc<Process>,
    instances: &BTreeMap<InstanceName, Arc<Dps>>,
    settings: Settings,
    fixed: Fixed,
    starts: u64,
) -> Arc<Gateway> {
    let network = Network { process: Arc::clone(process), instances: instances.clone() };
    let (store, clock): (Arc<dyn Store>, Arc<TestClock>) = (Arc::clone(store) as _, Arc::clone(clock));
    Gateway::open(store, clock, Arc::new(network), settings, fixed, Entropy::from_seed(starts)).await.unwrap()
}
