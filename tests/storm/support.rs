//! What all scenarios need: the binary, a site (directory, ports, configuration, tokens) for it, emulators, devices, randomness.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dps_emulator::{
    CallKind, Config, GroupConfig, HubConfig, JournalEntry, Quota, QuotaShape, Tls, derive_device_key, device_token,
};
use dps_proxy_tests::binary::dps_proxy;
use dps_proxy_tests::test_ca;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

/// The group key that the service, the emulators and the devices share.
pub(crate) const GROUP_KEY: [u8; 32] = *b"a group key of 32 bytes, no more";
const OPERATOR_TOKEN: &str = "operator-token-of-the-storm";
const BACKEND_TOKEN: &str = "backend-token-of-the-storm";
/// Longest that a start, a restart or an end of the binary may take.
const PROCESS_PATIENCE: Duration = Duration::from_secs(30);

/// The window of every quota.
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

// --- randomness and time ---------------------------------------------------------------------------------------------

/// Splitmix64: enough for a test, and repeatable.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    /// Seeded by `STORM_SEED` or the clock; prints the seed.
    pub(crate) fn new(scenario: &str) -> Self {
        let seed = std::env::var("STORM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(unix_ms);
        println!("{scenario}: STORM_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// Unix milliseconds, the clock that emulators' journals, devices and the test share.
pub(crate) fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Asks until it is so; panics with `what` when patience ends.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, patience: Duration, mut is_so: impl FnMut() -> F) {
    let deadline = Instant::now() + patience;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

// --- the binary --------------------------------------------------------------------------------------------------------

/// Ports below the range from which the kernel takes those of outgoing connections: they stay ours while the process is down.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap_or(0);
    for _ in 0..10_000 {
        let port = 20_000 + (start - 20_000 + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

// --- emulators ---------------------------------------------------------------------------------------------------------

/// A strict emulated instance: sliding quota, refused calls and lookups count.
pub(crate) fn emulator_config(name: &str, quota: u32) -> Config {
    Config {
        tls: Tls::Issued(test_ca().clone()),
        id_scope: scope_of(name),
        groups: vec![GroupConfig::new("fleet", STANDARD.encode(GROUP_KEY))],
        hubs: hubs_of(name).into_iter().map(|name| HubConfig { name, weight: 1 }).collect(),
        quota: Quota { count: quota, window: MINUTE, shape: QuotaShape::Sliding },
        ..Config::default()
    }
}

pub(crate) fn scope_of(name: &str) -> String {
    format!("0ne{}", name.to_ascii_uppercase().replace('-', ""))
}

pub(crate) fn hubs_of(name: &str) -> Vec<String> {
    (1..=3).map(|hub| format!("hub-{name}-{hub}.azure-devices.net")).collect()
}

/// How many calls the instance has counted within the minute before `now_ms`.
pub(crate) fn counted_in_last_minute(journal: &[JournalEntry], now_ms: u64) -> usize {
    journal.iter().filter(|entry| entry.counted && entry.unix_ms <= now_ms && entry.unix_ms + 60_000 > now_ms).count()
}

pub(crate) fn registers(journal: &[JournalEntry]) -> impl Iterator<Item = &JournalEntry> {
    journal.iter().filter(|entry| entry.call == CallKind::Register)
}

// --- the site ----------------------------------------------------------------------------------------------------------

/// One instance as the configuration names it.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) endpoint: String,
    pub(crate) quota: u32,
    pub(crate) burst: u32,
}

/// What differs from scenario to scenario.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    pub(crate) instances: Vec<Instance>,
    /// Lines of `[registration]`.
    pub(crate) registration: String,
    /// Lines of `[line]`.
    pub(crate) line: String,
    /// Lines of `[device]`.
    pub(crate) device: String,
    /// Enrollments, each with its instances; its audience is its name. None: one enrollment for all.
    pub(crate) enrollments: Vec<(String, Vec<String>)>,
    /// Whether each enrollment is that of a tenant of its own, of the same name.
    pub(crate) tenants: bool,
}

/// A directory with everything that a service needs, and the addresses it will have.
pub(crate) struct Site {
    directory: tempfile::TempDir,
    binary: PathBuf,
    ports: [u16; 3],
    pub(crate) client: reqwest::Client,
}

impl Site {
    pub(crate) fn new(plan: &Plan) -> Self {
        raise_descriptor_limit();
        let directory = tempfile::tempdir().unwrap();
        let binary = directory.path().join("dps-proxy");
        // A copy, because another build may replace the original between two starts.
        std::fs::copy(dps_proxy(), &binary).unwrap();
        let client =
            reqwest::Client::builder().http1_only().no_proxy().timeout(Duration::from_secs(20)).build().unwrap();
        let site = Self { directory, binary, ports: std::array::from_fn(|_| free_port()), client };
        for (file, text) in [
            ("ca.pem", test_ca().ca_pem()),
            ("group.key", STANDARD.encode(GROUP_KEY)),
            ("operator.token", OPERATOR_TOKEN.to_owned()),
            ("backend.token", BACKEND_TOKEN.to_owned()),
        ] {
            write_private(&site.directory.path().join(file), &text);
        }
        site.configure(plan);
        site
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.directory().join("dps-proxy.toml")
    }

    /// Writes the configuration, as an editor does: a new file, renamed over the old one.
    pub(crate) fn configure(&self, plan: &Plan) {
        let draft = self.directory().join("dps-proxy.toml.draft");
        std::fs::write(&draft, self.text_of(plan)).unwrap();
        std::fs::rename(draft, self.config_file()).unwrap();
    }

    fn text_of(&self, plan: &Plan) -> String {
        let [device, backend, operator] = self.ports;
        let mut text = format!(
            r#"
[store]
path = "store"
free_space_min_mib = 64
[device]
listen = "127.0.0.1:{device}"
host_name = "fleet"
tls = "off"
workers = 2
connections_max = 4096
{device_lines}
[backend]
listen = "127.0.0.1:{backend}"
workers = 1
connections_max = 256
[[backend.tokens]]
name = "storm"
token_file = "backend.token"
[operator]
listen = "127.0.0.1:{operator}"
[[operator.tokens]]
name = "storm"
token_file = "operator.token"
role = "operate"
[log]
format = "json"
[shutdown]
readiness_delay = "0s"
drain_timeout = "5s"
[registration]
{registration}
[line]
{line_lines}
"#,
            device_lines = plan.device,
            line_lines = plan.line,
            registration = plan.registration,
        );
        for Instance { name, endpoint, quota, burst } in &plan.instances {
            let (scope, hubs) = (scope_of(name), json!(hubs_of(name)));
            write!(
                text,
                "[instances.{name}]\nid_scope = \"{scope}\"\nendpoint = \"{endpoint}\"\nextra_ca_file = \"ca.pem\"\n\
                 quota_per_minute = {quota}\nburst = {burst}\nhubs = {hubs}\n"
            )
            .unwrap();
        }
        let all = [("fleet".to_owned(), plan.instances.iter().map(|instance| instance.name.clone()).collect())];
        let enrollments = if plan.enrollments.is_empty() { &all[..] } else { &plan.enrollments };
        for (name, instances) in enrollments {
            let instances = json!(instances);
            write!(
                text,
                "[enrollments.{name}]\nattestation = \"sas-token\"\naudiences = [\"{name}\"]\nupstream = \"group\"\n\
                 group_key_file = \"group.key\"\ninstances = {instances}\n"
            )
            .unwrap();
            if plan.tenants {
                writeln!(text, "tenant = \"{name}\"").unwrap();
            }
        }
        text
    }

    /// Starts the service and waits until it is ready.
    pub(crate) async fn start(&self) -> Service {
        self.start_as(Command::new(&self.binary)).await
    }

    /// The same, with a command in front of the service's arguments.
    pub(crate) async fn start_as(&self, mut command: Command) -> Service {
        let log_file = self.directory().join("log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_file).unwrap();
        command.args(["serve", "--config"]).arg(self.config_file()).env_remove("RUST_LOG").kill_on_drop(true);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut service = Service { child, log_file };
        let deadline = Instant::now() + PROCESS_PATIENCE;
        let url = self.operator_url("/readyz");
        while !self.client.get(&url).send().await.is_ok_and(|response| response.status() == 200) {
            let ended = service.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the service is not ready ({ended:?}): {}",
                service.log_end()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        service
    }

    fn operator_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports[2])
    }

    /// `GET` on the operator plane.
    pub(crate) async fn operator(&self, path: &str) -> (u16, Value) {
        let request = self.client.get(self.operator_url(path)).bearer_auth(OPERATOR_TOKEN);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap_or(Value::Null))
    }

    /// `POST` on the operator plane; the status.
    pub(crate) async fn operate(&self, path: &str) -> u16 {
        self.client.post(self.operator_url(path)).bearer_auth(OPERATOR_TOKEN).send().await.unwrap().status().as_u16()
    }

    /// One instance as the operator sees it.
    pub(crate) async fn instance(&self, name: &str) -> Value {
        let (status, body) = self.operator("/v1/instances").await;
        assert_eq!(status, 200);
        body["instances"].as_array().unwrap().iter().find(|instance| instance["name"] == name).cloned().unwrap()
    }

    /// A counter of one instance in `/metrics`.
    pub(crate) async fn metric(&self, metric: &str, instance: &str) -> u64 {
        let request = self.client.get(self.operator_url("/metrics")).bearer_auth(OPERATOR_TOKEN);
        let text = request.send().await.unwrap().text().await.unwrap();
        let wanted = format!("dps_proxy_{metric}{{instance=\"{instance}\"}} ");
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(&wanted))
            .unwrap_or_else(|| panic!("no {wanted} in\n{text}"));
        value.parse::<f64>().unwrap() as u64
    }

    /// What the backend plane says of each device, in order.
    pub(crate) async fn lookup(&self, device_ids: &[String]) -> Vec<Value> {
        let mut answers = Vec::new();
        for page in device_ids.chunks(1000) {
            let url = format!("http://127.0.0.1:{}/v1/assignments/lookup", self.ports[1]);
            let request = self.client.post(url).bearer_auth(BACKEND_TOKEN).json(&json!({ "deviceIds": page }));
            let body: Value = request.send().await.unwrap().json().await.unwrap();
            let page_answers = body.as_object().and_then(|body| body.values().find_map(Value::as_array)).cloned();
            answers.extend(page_answers.unwrap_or_else(|| panic!("no list in {body}")));
        }
        answers
    }

    /// A device of the enrollment `fleet`.
    pub(crate) fn device(&self, hardware_id: &str) -> Device {
        self.device_of("fleet", hardware_id)
    }

    pub(crate) fn device_of(&self, audience: &str, hardware_id: &str) -> Device {
        let id = hardware_id.to_ascii_lowercase();
        let key = derive_device_key(&GROUP_KEY, &id);
        Device {
            client: self.client.clone(),
            url: format!("http://127.0.0.1:{}/v1/provision", self.ports[0]),
            credential: device_token(&key, audience, &id, unix_ms() / 1000 + 6 * 3600),
            id,
        }
    }
}

/// Hundreds of devices and emulators in one process need more descriptors than the usual soft limit.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

// --- the running service -----------------------------------------------------------------------------------------------

/// A running process; killed when it is dropped.
pub(crate) struct Service {
    child: Child,
    log_file: PathBuf,
}

impl Service {
    pub(crate) fn log_end(&self) -> String {
        let text = std::fs::read_to_string(&self.log_file).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    fn check_log(&self) {
        let text = std::fs::read_to_string(&self.log_file).unwrap_or_default();
        let panicked: Vec<&str> = text.lines().filter(|line| line.contains("panicked at")).collect();
        assert!(panicked.is_empty(), "the service has panicked: {panicked:?}");
    }

    /// `kill -9`; the moment it had happened by.
    pub(crate) async fn kill(mut self) -> u64 {
        assert!(self.child.try_wait().unwrap().is_none(), "the service had ended by itself: {}", self.log_end());
        self.child.start_kill().unwrap();
        let _signalled =
            tokio::time::timeout(PROCESS_PATIENCE, self.child.wait()).await.expect("SIGKILL ends it").unwrap();
        self.check_log();
        unix_ms()
    }

    /// SIGTERM, and its own end in good time.
    pub(crate) async fn stop(mut self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let ended = tokio::time::timeout(PROCESS_PATIENCE, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("still running: {}", self.log_end())).unwrap();
        assert!(status.success(), "{status}: {}", self.log_end());
        self.check_log();
    }
}

// --- devices -----------------------------------------------------------------------------------------------------------

/// A microcontroller: an ID, a credential, one URL.
#[derive(Clone)]
pub(crate) struct Device {
    client: reqwest::Client,
    url: String,
    credential: String,
    pub(crate) id: String,
}

/// What a device was told.
#[derive(Debug, Clone)]
pub(crate) enum Said {
    Hub(String),
    Queued { wait: Duration, position: u64 },
    Problem { status: u16, wait: Option<Duration>, body: Value },
    Nothing(String),
}

impl Said {
    pub(crate) fn hub(&self) -> Option<String> {
        if let Self::Hub(hub) = self { Some(hub.clone()) } else { None }
    }

    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Hub(_) => 200,
            Self::Queued { .. } => 202,
            Self::Problem { status, .. } => *status,
            Self::Nothing(_) => 0,
        }
    }
}

impl Device {
    pub(crate) async fn ask(&self) -> Said {
        self.ask_waiting(0).await
    }

    /// Asks, and lets the service hold the request for up to `seconds`.
    pub(crate) async fn ask_waiting(&self, seconds: u64) -> Said {
        let mut request = self.client.post(&self.url).header("Authorization", &self.credential);
        if seconds > 0 {
            request = request.header("Prefer", format!("wait={seconds}"));
        }
        let response = match request.json(&json!({ "hardwareId": self.id })).send().await {
            Ok(response) => response,
            Err(error) => return Said::Nothing(format!("{error:?}")),
        };
        let status = response.status().as_u16();
        let header = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let wait = header.and_then(|text| text.parse().ok()).map(Duration::from_secs);
        let body: Value = match response.json().await {
            Ok(body) => body,
            Err(error) => return Said::Nothing(format!("{error:?}")),
        };
        match (status, wait) {
            (200, _) => Said::Hub(body["assignedHub"].as_str().unwrap().to_owned()),
            (202, Some(wait)) => Said::Queued { wait, position: body["position"].as_u64().unwrap() },
            (status, wait) => Said::Problem { status, wait, body },
        }
    }
}

impl Device {
    /// Does as it is told until it has a hub. Panics on anything but 200 and 202, and when patience ends.
    pub(crate) async fn ask_until_assigned(&self, patience: Duration) -> String {
        let deadline = Instant::now() + patience;
        loop {
            match self.ask_waiting(5).await {
                Said::Hub(hub) => return hub,
                Said::Queued { wait, .. } => {
                    assert!(
                        Instant::now() + wait < deadline,
                        "{}: not assigned within {patience:?}, told to wait {wait:?} more",
                        self.id
                    );
                    tokio::time::sleep(wait).await;
                }
                Said::Nothing(why) => panic!("{}: no answer: {why}", self.id),
                other @ Said::Problem { .. } => panic!("{}: {other:?}", self.id),
            }
        }
    }
}
