//! Durable places per second: authenticate, place, write to the embedded store with an fdatasync, answer 202. No HTTP. And rows of an
//! allow-list per second, beside the store's own rate for the same rows: the reference that says what the gateway adds.
#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use proxy_core::attestation::{Presented, Proof, Selector};
use proxy_core::base::StoreError;
use proxy_core::device::{Claim, Command, Draft, Listing, Record};
use proxy_core::dialect::Dialect;
use proxy_core::gateway::{Fixed, Gateway};
use proxy_core::ids::{EnrollmentName, IdScope, InstanceName, OperationId, RegistrationId, TenantName};
use proxy_core::sas;
use proxy_core::secret::SymmetricKey;
use proxy_core::settings::{
    AttestationSettings, Credential, DeriveFrom, DeviceAttestation, Enrollment, FeedSettings, Instance, LineSettings,
    Membership, RegistrationSettings, Settings, UpstreamAttestation,
};
use proxy_core::store::sled_store::{SledOptions, SledStore};
use proxy_core::store::{Store as _, Versions};
use proxy_core::upstream::time::{Speaker, TimeAnswer};
use proxy_core::upstream::{CallResult, Caller, Connect, LastLook, NoAnswer, Upstream};
use proxy_core::use_cases::import::{ImportRow, Imported};
use proxy_core::use_cases::provision::{Intent, Outcome, ProvisionRequest};
use rate_control::entropy::Entropy;
use rate_control::time::{Clock as _, SystemClock};
use serde_json::Value;

const HOST: &str = "gateway.example.com";
const EACH: Duration = Duration::from_secs(5);

/// A DPS that never answers: this measures joining alone.
#[derive(Debug)]
struct Silent;

impl Upstream for Silent {
    fn register<'a>(&'a self, _: &'a Caller, _: Option<&'a Value>, _: &'a LastLook) -> BoxFuture<'a, CallResult> {
        Box::pin(std::future::pending())
    }
    fn poll<'a>(&'a self, _: &'a Caller, _: &'a OperationId) -> BoxFuture<'a, CallResult> {
        Box::pin(std::future::pending())
    }
    fn lookup<'a>(&'a self, _: &'a Caller, _: &'a LastLook) -> BoxFuture<'a, CallResult> {
        Box::pin(std::future::pending())
    }
    fn time(&self) -> BoxFuture<'_, Result<TimeAnswer, NoAnswer>> {
        let date = Some(SystemClock::wall());
        let answer = TimeAnswer { speaker: Speaker::Dps, http_status: 401, date, retry_after: None };
        Box::pin(std::future::ready(Ok(answer)))
    }
}

impl Connect for Silent {
    fn connect(&self, _: &InstanceName, _: &Instance, _: &RegistrationSettings) -> Result<Arc<dyn Upstream>, String> {
        Ok(Arc::new(Self))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test --benches` only asks whether this starts.
    let quick = !std::env::args().any(|argument| argument == "--bench");
    let each = if quick { Duration::from_millis(50) } else { EACH };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for concurrent in [1_usize, 16, 256] {
        let places = runtime.block_on(measure(concurrent, each))?;
        println!("{concurrent:>4} devices at once: {places:>9.0} durable places per second");
    }
    let (rows, rounds) = if quick { (2_000, 1) } else { (200_000, 3) };
    for _ in 0..rounds {
        let bare = runtime.block_on(commit_bare(rows))?;
        let imported = runtime.block_on(import(rows))?;
        println!(
            "import of {rows} rows: {imported:>9.0} per second; the store alone, same rows: {bare:>9.0}; ratio {:.2}",
            imported / bare
        );
    }
    Ok(())
}

/// Rows of one commit, as the import over HTTP has them.
const ROWS: usize = 1_000;

fn row(number: usize) -> ImportRow {
    ImportRow {
        hardware_id: format!("SN-{number:09}"),
        enrollment: "fleet".to_owned(),
        tenant: None,
        batch: Some("delivery-7".to_owned()),
        key: None,
    }
}

/// The records that an import leaves, written by nobody but the store: rows per second.
async fn commit_bare(rows: usize) -> Result<f64, Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let store = open(&directory)?;
    let (tenant, enrollment) = (TenantName::parse("default")?, EnrollmentName::parse("fleet")?);
    let now = SystemClock::new().now();
    let mut chunks = Vec::new();
    for first in (0..rows).step_by(ROWS) {
        let mut writes = Vec::with_capacity(ROWS);
        for number in first..(first + ROWS).min(rows) {
            let row = row(number);
            let id = RegistrationId::parse(&row.hardware_id)?;
            let mut draft = Draft::new(Record::new(id, tenant.clone(), enrollment.clone()), now, 1);
            let spelling = Some(row.hardware_id);
            let claim = Claim { tenant: tenant.clone(), enrollment: enrollment.clone(), spelling };
            draft.apply(Command::List(Listing { claim, batch: row.batch, key: None }))?;
            writes.push(draft.write());
        }
        chunks.push(writes);
    }
    let versions = Versions::new(Entropy::from_seed(2));
    let began = Instant::now();
    for writes in chunks {
        store.commit(versions.commit(writes)).await?;
    }
    Ok(rows as f64 / began.elapsed().as_secs_f64())
}

/// The same rows through the gateway, the next ones made ready while those before are written: rows per second.
async fn import(rows: usize) -> Result<f64, Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let gateway = gateway(open(&directory)?, &SymmetricKey::from_digest([7; 32])).await?;
    let began = Instant::now();
    let mut under_way = None;
    for first in (0..rows).step_by(ROWS) {
        let chunk: Vec<ImportRow> = (first..(first + ROWS).min(rows)).map(row).collect();
        if let Some(written) = under_way.take() {
            let written: tokio::task::JoinHandle<Result<Vec<Imported>, StoreError>> = written;
            written.await??;
        }
        let gateway = Arc::clone(&gateway);
        under_way = Some(tokio::spawn(async move { gateway.import(chunk).await }));
    }
    if let Some(written) = under_way {
        written.await??;
    }
    let rate = rows as f64 / began.elapsed().as_secs_f64();
    gateway.stop(Duration::ZERO).await;
    Ok(rate)
}

fn open(directory: &tempfile::TempDir) -> Result<Arc<SledStore>, Box<dyn Error>> {
    let options = SledOptions { min_free_bytes: 0, ..SledOptions::default() };
    Ok(Arc::new(SledStore::open(&directory.path().join("store"), options)?))
}

async fn gateway(store: Arc<SledStore>, group_key: &SymmetricKey) -> Result<Arc<Gateway>, Box<dyn Error>> {
    let fixed = Fixed { parked_max: 0, repeat_burst: 100, repeat_interval: Duration::from_secs(1) };
    let clock = Arc::new(SystemClock::new());
    Ok(Gateway::open(store, clock, Arc::new(Silent), settings(group_key)?, fixed, Entropy::from_seed(1)).await?)
}

async fn measure(concurrent: usize, each: Duration) -> Result<f64, Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let group_key = SymmetricKey::from_digest([7; 32]);
    let gateway = gateway(open(&directory)?, &group_key).await?;
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let devices = (0..concurrent).map(|_| {
        let (gateway, next, group_key) = (Arc::clone(&gateway), Arc::clone(&next), group_key.clone());
        tokio::spawn(async move {
            let mut places = 0_u64;
            while began.elapsed() < each {
                let hardware_id = format!("device-{:09}", next.fetch_add(1, Ordering::Relaxed));
                places += u64::from(join(&gateway, &group_key, &hardware_id).await);
            }
            places
        })
    });
    let mut places = 0;
    for device in devices.collect::<Vec<_>>() {
        places += device.await?;
    }
    let rate = places as f64 / began.elapsed().as_secs_f64();
    gateway.stop(Duration::ZERO).await;
    Ok(rate)
}

async fn join(gateway: &Arc<Gateway>, group_key: &SymmetricKey, hardware_id: &str) -> bool {
    let key = sas::derive_device_key(group_key, hardware_id);
    let expiry = gateway.now().wall.unix_seconds() + 3600;
    let authorization = sas::device_token(&key, &format!("{HOST}%2Fregistrations%2F{hardware_id}"), expiry, None);
    let (proof, selector) = (Proof::Token(&authorization), Selector::default());
    let question = ProvisionRequest {
        presented: Presented { hardware_id, proof, selector },
        intent: Intent::default(),
        patience: Duration::ZERO,
        dialect: Dialect::PLAIN,
    };
    matches!(gateway.provision(&question).await, Ok(Outcome::Queued(_)))
}

fn settings(group_key: &SymmetricKey) -> Result<Settings, Box<dyn Error>> {
    let enrollment = Enrollment {
        tenant: TenantName::parse("default")?,
        device: DeviceAttestation::SasToken {
            audiences: BTreeSet::from([HOST.to_owned()]),
            membership: Membership::Signature,
        },
        hosts: BTreeSet::new(),
        derive_from: DeriveFrom::RegistrationId,
        upstream: UpstreamAttestation::Group { key: group_key.clone(), key_overrides: BTreeMap::new() },
        instances: BTreeSet::new(),
        region: None,
        labels: BTreeMap::new(),
        credential: Credential::None,
        credential_once: false,
    };
    let name = EnrollmentName::parse("fleet")?;
    let instances = ["a", "b", "c"].map(|name| Ok::<_, Box<dyn Error>>((InstanceName::parse(name)?, instance()?)));
    Ok(Settings {
        instances: instances.into_iter().collect::<Result<_, _>>()?,
        enrollments: BTreeMap::from([(name.clone(), enrollment)]),
        tenants: BTreeMap::new(),
        default_enrollment: Some(name),
        line: LineSettings {
            length_max: 10_000_000,
            jitter_max: Duration::from_secs(5),
            expected_registration: Duration::from_secs(4),
            urgent_share_percent: 10,
            class_handicap: Duration::from_secs(600),
            rebook_after: Duration::from_secs(30),
        },
        registration: registration(),
        attestation: AttestationSettings {
            sas_lifetime_max: Duration::from_secs(86_400),
            clock_skew: Duration::from_secs(300),
        },
        feed: FeedSettings { retention: Duration::from_secs(86_400), events_max: 1_000_000 },
    })
}

fn instance() -> Result<Instance, Box<dyn Error>> {
    Ok(Instance {
        id_scope: IdScope::parse("0ne000AB12C")?,
        endpoint: "https://localhost".to_owned(),
        extra_ca_pem: None,
        quota_per_minute: 1,
        burst: 1,
        adaptive_limit: true,
        adaptive_limit_min_per_minute: 1,
        capacity: u64::MAX,
        external_count: 0,
        weight: 1,
        region: None,
        labels: BTreeMap::new(),
        hubs: BTreeSet::new(),
        tenant: None,
        draining: false,
    })
}

fn registration() -> RegistrationSettings {
    RegistrationSettings {
        api_version: "2021-10-01".to_owned(),
        connect_timeout: Duration::from_secs(10),
        request_timeout: Duration::from_secs(30),
        token_life: Duration::from_secs(120),
        upstream_max_delay: Duration::from_secs(30),
        connections_max: 256,
        idle_connections_max: 32,
        idle_timeout: Duration::from_secs(60),
        in_flight_max: 10_000,
        poll_interval: Duration::from_secs(2),
        poll_interval_max: Duration::from_secs(60),
        throttle_wait_max: Duration::from_secs(600),
        assigning_max: Duration::from_secs(300),
        breaker_threshold: 2,
        backoff_min: Duration::from_millis(500),
        backoff_max: Duration::from_secs(60),
        attempts_max: 8,
        lookup_spends: true,
        refusal_ttl: Duration::from_secs(3600),
        reprovision_cooldown: Duration::from_secs(900),
        suspect_cooldown: Duration::from_secs(900),
        timeline_max: 24,
    }
}
