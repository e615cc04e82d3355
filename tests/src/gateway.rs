//! The real service as a child process.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use reqwest::header::AUTHORIZATION;
use reqwest::{Client, Method, RequestBuilder};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::config::ConfigText;
use crate::device::{AUDIENCE, FLEET_KEY, TestDevice, unix_seconds_in};
use crate::dps::{TestDps, test_ca};
use crate::reply::Reply;
use crate::wait::{PATIENCE, eventually_some};
use crate::{binary, sse};

/// The backend's token.
pub const BACKEND_TOKEN: &str = "backend-token-of-the-tests-0123456789";
/// The operator's token that may act.
pub const OPERATOR_TOKEN: &str = "operator-token-of-the-tests-0123456789";
/// The operator's token that may look.
pub const READ_TOKEN: &str = "read-token-of-the-tests-0123456789abcd";

/// One of the three listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plane {
    /// Devices.
    Device,
    /// Backends.
    Backend,
    /// Operators.
    Operator,
}

impl Plane {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Device, Self::Backend, Self::Operator];

    /// Its section in the configuration.
    #[must_use]
    pub fn section(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Backend => "backend",
            Self::Operator => "operator",
        }
    }
}

/// Writes a configuration and starts the service with it.
#[derive(Debug)]
pub struct GatewayBuilder {
    config: ConfigText,
    secrets: Vec<(String, String)>,
    tls: Vec<Plane>,
}

impl GatewayBuilder {
    /// A service without instances: one enrollment `fleet` (SAS tokens for [`AUDIENCE`], the group key [`FLEET_KEY`]), one backend, an operator who may
    /// act and one who may look, JSON logs, plain HTTP, hardly any limit on repeats, no jitter, no delay at shutdown.
    fn new() -> Self {
        let mut config = ConfigText::default();
        for plane in ["device", "backend", "operator"] {
            config.set(&format!("{plane}.listen"), "\"127.0.0.1:0\"");
            config.set(&format!("{plane}.workers"), "1");
            config.set(&format!("{plane}.connections_max"), "256");
        }
        config
            .set("store.path", "\"store\"")
            .set("store.cache_mib", "8")
            .set("store.free_space_min_mib", "16")
            .set("device.host_name", &format!("\"{AUDIENCE}\""))
            .set("device.tls", "\"off\"")
            .set("device.repeat_burst", "1000")
            .set("device.repeat_per", "\"10ms\"")
            .set("shutdown.readiness_delay", "\"0s\"")
            .set("shutdown.drain_timeout", "\"3s\"")
            .set("log.format", "\"json\"")
            .set("line.jitter_max", "\"0s\"")
            .set("line.expected_registration", "\"2s\"")
            .set("default_enrollment", "\"fleet\"")
            .set("enrollments.fleet.group_key_file", "\"fleet.key\"")
            .push("backend.tokens", &[("name", "\"test-backend\""), ("token_file", "\"backend.token\"")])
            .push(
                "operator.tokens",
                &[("name", "\"test-operator\""), ("token_file", "\"operator.token\""), ("role", "\"operate\"")],
            )
            .push(
                "operator.tokens",
                &[("name", "\"test-reader\""), ("token_file", "\"read.token\""), ("role", "\"read\"")],
            );
        let secret = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let secrets = vec![
            secret("fleet.key", FLEET_KEY),
            secret("backend.token", BACKEND_TOKEN),
            secret("operator.token", OPERATOR_TOKEN),
            secret("read.token", READ_TOKEN),
            secret("ca.pem", &test_ca().ca_pem()),
        ];
        Self { config, secrets, tls: Vec::new() }
    }

    /// Adds an instance.
    #[must_use]
    pub fn instance(mut self, name: &str, dps: &TestDps) -> Self {
        self.config
            .set(&format!("instances.{name}.id_scope"), &format!("\"{}\"", dps.id_scope()))
            .set(&format!("instances.{name}.endpoint"), &format!("\"{}\"", dps.emulator.url()))
            .set(&format!("instances.{name}.extra_ca_file"), "\"ca.pem\"");
        self
    }

    /// Sets a key of the configuration to a value as TOML writes it; see [`ConfigText::set`].
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.config.set(key, value);
        self
    }

    /// Leaves a key out.
    #[must_use]
    pub fn unset(mut self, key: &str) -> Self {
        self.config.unset(key);
        self
    }

    /// Adds an element to an array of tables; see [`ConfigText::push`].
    #[must_use]
    pub fn push(mut self, array: &str, keys: &[(&str, &str)]) -> Self {
        self.config.push(array, keys);
        self
    }

    /// Adds a file beside the configuration, readable by its owner only.
    #[must_use]
    pub fn secret(mut self, file: &str, text: &str) -> Self {
        self.secrets.push((file.to_owned(), text.to_owned()));
        self
    }

    /// A plane speaks TLS, with a certificate of [`test_ca`] for `localhost`, in `{section}.pem` and `{section}-key.pem`.
    ///
    /// # Panics
    /// If no certificate can be made.
    #[must_use]
    pub fn tls(mut self, plane: Plane) -> Self {
        let leaf = test_ca().issue(["localhost", "127.0.0.1"]).expect("a certificate can be made");
        let section = plane.section();
        let (chain, key) = (format!("{section}.pem"), format!("{section}-key.pem"));
        self.config
            .unset(&format!("{section}.tls"))
            .set(&format!("{section}.tls_cert_file"), &format!("\"{chain}\""))
            .set(&format!("{section}.tls_key_file"), &format!("\"{key}\""));
        self.tls.push(plane);
        self.secret(&chain, &leaf.chain_pem).secret(&key, &leaf.key_pem)
    }

    /// Writes everything into a new directory and starts nothing.
    ///
    /// # Panics
    /// If the directory cannot be written.
    #[must_use]
    pub fn prepare(self) -> TestGateway {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (file, text) in &self.secrets {
            write_private(&directory.path().join(file), text);
        }
        let config_path = directory.path().join("dps-proxy.toml");
        std::fs::write(&config_path, self.config.text()).expect("a configuration can be written");
        let ca = reqwest::Certificate::from_pem(test_ca().ca_pem().as_bytes()).expect("a certificate");
        let client = Client::builder().no_proxy().tls_certs_only([ca]).timeout(Duration::from_secs(60)).build();
        TestGateway {
            directory,
            config_path,
            config: self.config,
            tls: self.tls,
            client: client.expect("an HTTP client"),
            process: None,
            addresses: None,
            earlier_logs: Vec::new(),
        }
    }

    /// Writes everything and starts the service; when this returns, it answers.
    ///
    /// # Panics
    /// If it does not become ready.
    pub async fn start(self) -> TestGateway {
        let mut gateway = self.prepare();
        gateway.start_again().await;
        gateway
    }
}

fn write_private(path: &Path, text: &str) {
    use std::io::Write as _;
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).expect("a file can be written");
}

#[derive(Debug)]
struct Process {
    child: Child,
    stderr: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Process {
    fn spawn(config_path: &Path, environment: &[(&str, &str)]) -> Self {
        let mut command: Command = binary::command();
        command.arg("serve").arg("--config").arg(config_path).envs(environment.iter().copied());
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary can be started");
        let pipe = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&stderr);
        let reader = std::thread::spawn(move || {
            for line in pipe.split(b'\n').map_while(Result::ok) {
                lock(&lines).push(String::from_utf8_lossy(&line).into_owned());
            }
        });
        Self { child, stderr, reader: Some(reader) }
    }

    fn lines(&self) -> Vec<String> {
        lock(&self.stderr).clone()
    }

    /// Reads the rest of the log. Only after the process has ended.
    fn into_lines(mut self) -> Vec<String> {
        if let Some(reader) = self.reader.take() {
            let _its_panic_is_ours = reader.join();
        }
        self.lines()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Clone, Copy)]
struct Addresses {
    device: SocketAddr,
    backend: SocketAddr,
    operator: SocketAddr,
}

impl Addresses {
    fn of(line: &str) -> Option<Self> {
        let line: Value = serde_json::from_str(line).ok()?;
        let address = |plane: &str| line[plane].as_str()?.parse().ok();
        (line["message"] == "ready")
            .then(|| {
                Some(Self { device: address("device")?, backend: address("backend")?, operator: address("operator")? })
            })
            .flatten()
    }
}

/// The service, its directory and its clients. Dropping it kills the service, and fails the test if the service has panicked.
#[derive(Debug)]
pub struct TestGateway {
    directory: TempDir,
    config_path: PathBuf,
    config: ConfigText,
    tls: Vec<Plane>,
    client: Client,
    process: Option<Process>,
    addresses: Option<Addresses>,
    earlier_logs: Vec<String>,
}

impl TestGateway {
    /// A service in the making.
    #[must_use]
    pub fn builder() -> GatewayBuilder {
        GatewayBuilder::new()
    }

    // --- the process ----------------------------------------------------------------------------------------------

    /// Starts the service (again) on its store, and waits until it is ready. It listens on other ports than before.
    ///
    /// # Panics
    /// If it ends instead, or does not become ready in time.
    pub async fn start_again(&mut self) {
        self.start_with(&[]).await;
    }

    /// The same with environment variables.
    ///
    /// # Panics
    /// As [`start_again`](Self::start_again).
    pub async fn start_with(&mut self, environment: &[(&str, &str)]) {
        assert!(self.process.is_none(), "it runs already");
        self.process = Some(Process::spawn(&self.config_path, environment));
        let addresses = eventually_some("the service is ready", async || {
            let process = self.process.as_mut().expect("it was started");
            if let Some(status) = process.child.try_wait().expect("a child can be waited for") {
                panic!("the service ended with {status} instead of becoming ready:\n{}", process.lines().join("\n"));
            }
            process.lines().iter().find_map(|line| Addresses::of(line))
        });
        self.addresses = Some(addresses.await);
    }

    /// Kills the service at once (`SIGKILL`): nothing is flushed, nobody is told.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill9(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.child.kill().expect("a child can be killed");
        process.child.wait().expect("a child can be waited for");
        self.earlier_logs.extend(process.into_lines());
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If the service does not run.
    pub fn signal(&self, signal: Signal) {
        let child = &self.process.as_ref().expect("it runs").child;
        kill_process(Pid::from_child(child), signal).expect("a child can be signalled");
    }

    /// The service's process ID, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.child.id())
    }

    /// Asks the service to stop (`SIGTERM`) and waits until it has.
    ///
    /// # Panics
    /// If it does not run, or does not end in time.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// Waits until the service has ended.
    ///
    /// # Panics
    /// If it does not run, or does not end in time.
    pub async fn ended(&mut self) -> ExitStatus {
        let process = self.process.as_mut().expect("it runs");
        let status =
            eventually_some("the service ends", async || process.child.try_wait().expect("a child can be waited for"))
                .await;
        if let Some(process) = self.process.take() {
            self.earlier_logs.extend(process.into_lines());
        }
        status
    }

    /// Runs the service where it is expected to end by itself; its exit code and what it wrote.
    ///
    /// # Panics
    /// If it does not end in time.
    pub async fn run_to_end(&mut self) -> (Option<i32>, String) {
        assert!(self.process.is_none(), "it runs already");
        self.earlier_logs.clear();
        self.process = Some(Process::spawn(&self.config_path, &[]));
        let status = self.ended().await;
        (status.code(), self.earlier_logs.join("\n"))
    }

    /// Every line that the service and its earlier processes wrote to standard error.
    #[must_use]
    pub fn log_lines(&self) -> Vec<String> {
        let now = self.process.as_ref().map(Process::lines).unwrap_or_default();
        self.earlier_logs.iter().cloned().chain(now).collect()
    }

    /// The same as JSON; lines that are not JSON are left out.
    #[must_use]
    pub fn logs(&self) -> Vec<Value> {
        self.log_lines().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a line of the log that `wanted` accepts.
    ///
    /// # Panics
    /// If none comes in time.
    pub async fn logged(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually_some(what, async || self.logs().into_iter().find(&wanted)).await
    }

    // --- files ----------------------------------------------------------------------------------------------------

    /// The directory with configuration, secrets and store.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The configuration file.
    #[must_use]
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }

    /// The configuration as it was last written.
    #[must_use]
    pub fn config(&self) -> &ConfigText {
        &self.config
    }

    /// Changes the configuration file in place, as an editor would. Nothing waits for the service to notice.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn edit_config(&mut self, change: impl FnOnce(&mut ConfigText)) {
        change(&mut self.config);
        std::fs::write(&self.config_path, self.config.text()).expect("a configuration can be written");
    }

    /// Changes the configuration file and asks the service to take it over.
    ///
    /// # Panics
    /// If it is not taken over.
    pub async fn reconfigure(&mut self, change: impl FnOnce(&mut ConfigText)) -> Reply {
        self.edit_config(change);
        self.send(self.operator(Method::POST, "/v1/config/reload")).await.ok()
    }

    // --- requests -------------------------------------------------------------------------------------------------

    /// Where a plane listens.
    ///
    /// # Panics
    /// If the service was never ready.
    #[must_use]
    pub fn address(&self, plane: Plane) -> SocketAddr {
        let addresses = self.addresses.expect("the service was ready");
        match plane {
            Plane::Device => addresses.device,
            Plane::Backend => addresses.backend,
            Plane::Operator => addresses.operator,
        }
    }

    /// The URL of a path.
    #[must_use]
    pub fn url(&self, plane: Plane, path: &str) -> String {
        let address = self.address(plane);
        if self.tls.contains(&plane) {
            format!("https://localhost:{}{path}", address.port())
        } else {
            format!("http://{address}{path}")
        }
    }

    /// A request without a token.
    pub fn request(&self, plane: Plane, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(plane, path))
    }

    /// A request to the backend plane, with its token.
    pub fn backend(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(Plane::Backend, method, path).bearer_auth(BACKEND_TOKEN)
    }

    /// A request to the operator plane, with the token that may act.
    pub fn operator(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(Plane::Operator, method, path).bearer_auth(OPERATOR_TOKEN)
    }

    /// Sends a request and reads its answer.
    ///
    /// # Panics
    /// If there is none.
    pub async fn send(&self, request: RequestBuilder) -> Reply {
        let response = request.send().await.expect("the service answers");
        Reply::read(response).await.expect("the answer is complete")
    }

    /// `GET` on the backend plane.
    pub async fn backend_get(&self, path: &str) -> Reply {
        self.send(self.backend(Method::GET, path)).await
    }

    /// `GET` on the operator plane.
    pub async fn operator_get(&self, path: &str) -> Reply {
        self.send(self.operator(Method::GET, path)).await
    }

    /// `POST` with a JSON body on the operator plane.
    pub async fn operator_post(&self, path: &str, body: Value) -> Reply {
        self.send(self.operator(Method::POST, path).json(&body)).await
    }

    /// One instance as `GET /v1/instances` shows it.
    ///
    /// # Panics
    /// If there is none of that name.
    pub async fn instance_view(&self, name: &str) -> Value {
        let views = self.operator_get("/v1/instances").await.ok().json;
        let views = views["instances"].as_array().cloned().unwrap_or_default();
        views.into_iter().find(|view| view["name"] == name).expect("an instance of that name")
    }

    /// Imports lines of an allow-list (CSV with its header).
    pub async fn import_csv(&self, csv: impl Into<String>) -> Reply {
        let request = self.operator(Method::POST, "/v1/registrations/import").header("Content-Type", "text/csv");
        self.send(request.body(csv.into())).await
    }

    /// Opens the stream of changes, behind an event or from now on.
    ///
    /// # Panics
    /// If the service does not open it.
    pub async fn changes(&self, last_event_id: Option<&str>) -> sse::Events {
        let mut request = self.backend(Method::GET, "/v1/assignments/changes");
        if let Some(id) = last_event_id {
            request = request.header("Last-Event-ID", id);
        }
        sse::Events::new(request.send().await.expect("the service answers"))
    }

    // --- devices --------------------------------------------------------------------------------------------------

    /// A device's question in the making.
    pub fn ask<'a>(&'a self, device: &'a TestDevice) -> Ask<'a> {
        Ask { gateway: self, device, authorization: Some(device.usual_credential()), wait: None, body: Map::new() }
    }

    /// A device asks once.
    pub async fn provision(&self, device: &TestDevice) -> Reply {
        self.ask(device).send().await
    }

    /// A device asks, and comes back whenever it is told to, until it has its hub.
    ///
    /// # Panics
    /// If it is refused, or gets none in time.
    pub async fn assigned(&self, device: &TestDevice) -> Reply {
        self.assigned_by(device, AUDIENCE).await
    }

    /// The same with tokens for another audience.
    ///
    /// # Panics
    /// As [`assigned`](Self::assigned).
    pub async fn assigned_by(&self, device: &TestDevice, audience: &str) -> Reply {
        let began = std::time::Instant::now();
        loop {
            let credential = device.credential(audience, unix_seconds_in(Duration::from_hours(1)));
            let reply = self.ask(device).authorization(credential).wait(20).send().await;
            match reply.status {
                200 => return reply,
                202 => assert!(began.elapsed() < PATIENCE, "in line for too long: {}", reply.body),
                status => panic!("{status}: {}", reply.body),
            }
        }
    }
}

impl Drop for TestGateway {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _ended = process.child.kill();
            let _reaped = process.child.wait();
            self.earlier_logs.extend(process.into_lines());
        }
        let panicked = self.earlier_logs.iter().find(|line| line.contains("panicked"));
        if let Some(line) = panicked.filter(|_| !std::thread::panicking()) {
            panic!("the service has panicked: {line}");
        }
    }
}

/// A device's question; send it with [`send`](Ask::send).
#[derive(Debug, Clone)]
#[must_use]
pub struct Ask<'a> {
    gateway: &'a TestGateway,
    device: &'a TestDevice,
    authorization: Option<String>,
    wait: Option<u64>,
    body: Map<String, Value>,
}

impl Ask<'_> {
    /// With `Prefer: wait=N`.
    pub fn wait(mut self, seconds: u64) -> Self {
        self.wait = Some(seconds);
        self
    }

    /// With another `Authorization`.
    pub fn authorization(mut self, value: impl Into<String>) -> Self {
        self.authorization = Some(value.into());
        self
    }

    /// Without `Authorization`.
    pub fn anonymous(mut self) -> Self {
        self.authorization = None;
        self
    }

    /// With another member of the body, such as `payload` or `reprovision`.
    pub fn with(mut self, member: &str, value: Value) -> Self {
        self.body.insert(member.to_owned(), value);
        self
    }

    /// Sends it and reads the answer.
    ///
    /// # Panics
    /// If there is none.
    pub async fn send(self) -> Reply {
        let mut body = self.body;
        body.entry("hardwareId").or_insert_with(|| json!(self.device.hardware_id));
        let mut request = self.gateway.request(Plane::Device, Method::POST, "/v1/provision").json(&body);
        if let Some(authorization) = self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some(seconds) = self.wait {
            request = request.header("Prefer", format!("wait={seconds}"));
        }
        self.gateway.send(request).await
    }
}
