//! The configuration of the server: one TOML file, overrides from the environment, secrets from files of their own.
//!
//! Invariants:
//! - [`load`] either gives a configuration that is consistent in itself, or *all* that is wrong with it, each with its place.
//! - Nothing is opened, bound or written: loading is safe while a service runs on the same file.
//! - No secret is in a message or in the `Debug` form of anything here.
//!
//! What it gives falls into three parts by how it changes: [`ServerSettings`] need a restart ([`restart_needed`] names what),
//! [`LiveServer`] and [`Settings`] are swapped whole in the running service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proxy_core::ids::{InstanceName, TenantName};
use proxy_core::secret::TokenDigest;
use proxy_core::settings::Settings;
use rustls_pki_types::CertificateDer;
use store_postgresql::Options;

mod enrollments;
mod files;
mod instances;
mod listeners;
mod problem;
mod reader;
mod rules;
mod secrets;
mod store;
#[cfg(test)]
mod tests;
mod watch;

pub use files::FilesRead;
pub use problem::{Problem, Problems};
pub use watch::ConfigWatcher;

pub(crate) use files::read_bounded;
use reader::Document;
pub(crate) use reader::{did_you_mean, parse_duration};

/// A configuration that can be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What is fixed while the service runs.
    pub server: ServerSettings,
    /// What the server itself takes over live.
    pub live: LiveServer,
    /// What the core takes over live.
    pub settings: Settings,
    /// What the operator should know; nothing that keeps the service from running.
    pub warnings: Vec<Problem>,
    /// The files it was read from; a [`ConfigWatcher`] wants them.
    pub files: FilesRead,
}

/// What needs a restart to change.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerSettings {
    /// Where records live.
    pub store: StoreSettings,
    /// The device plane.
    pub device: DeviceSettings,
    /// The backend plane.
    pub backend: BackendSettings,
    /// The operator plane.
    pub operator: OperatorSettings,
    /// What is logged, and how.
    pub log: LogSettings,
    /// How the service ends.
    pub shutdown: ShutdownSettings,
    /// The value in force of each key, by key path.
    effective: BTreeMap<String, String>,
}

/// What the server, not the core, takes over while it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveServer {
    /// The public host names of the device plane, lower case; not empty.
    pub host_names: Vec<String>,
    /// Who may ask the backend plane.
    pub backend_tokens: Vec<BackendToken>,
    /// Who may ask the operator plane.
    pub operator_tokens: Vec<OperatorToken>,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// Which backend, with what it alone needs.
    pub backend: StoreBackend,
    /// Whether a new store may be begun where there is none.
    pub create: bool,
    /// Commits that may wait to be written.
    pub inbox_max: usize,
}

/// The kinds of store there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreBackend {
    /// The embedded one.
    Sled(SledSettings),
    /// A database.
    Postgresql(Box<PostgresqlSettings>),
}

/// What the embedded store needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SledSettings {
    /// Its directory.
    pub path: PathBuf,
    /// Memory for cached pages, in MiB.
    pub cache_mib: u64,
    /// Free space on the volume below which the store takes no more writes, in MiB.
    pub free_space_min_mib: u64,
    /// How long writing may stand still before the process ends.
    pub write_stall_max: Duration,
}

/// `[store.postgresql]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresqlSettings {
    /// Where the database is, and all bounds. Holds the password, and prints it nowhere.
    pub options: Options,
    /// Whether `serve` migrates the schema before it opens it.
    pub migrate_on_start: bool,
}

impl StoreSettings {
    /// Where it is, for people: a directory, or user, host and database.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.backend {
            StoreBackend::Sled(sled) => sled.path.display().to_string(),
            StoreBackend::Postgresql(postgresql) => postgresql.options.connection.to_string(),
        }
    }
}

/// What all three listeners have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Certificate chain and key; `None` for plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Worker threads; at least 1.
    pub workers: usize,
    /// Open connections, over all workers.
    pub connections_max: usize,
    /// The share of them up to which one source is treated like any other when all are taken, in percent.
    pub source_share_percent: usize,
    /// TLS handshakes that are computed at the same time, over all workers.
    pub handshakes_max: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// Connections that the kernel holds until a worker takes them.
    pub backlog: u32,
    /// How long a client may take to send headers, and again to send the body.
    pub request_timeout: Duration,
    /// How long a client may take to read `unread_max_bytes` of answers, or whatever is left.
    pub write_timeout: Duration,
    /// Answers that are held for a client that does not read, in bytes.
    pub unread_max_bytes: usize,
    /// How long an idle connection is kept.
    pub keep_alive: Duration,
    /// Largest request body, in bytes.
    pub body_max_bytes: usize,
    /// Header fields of one request.
    pub headers_max: usize,
    /// Bytes of all header fields of one request, names and values.
    pub header_bytes_max: usize,
}

/// PEM files of a listener. Both were readable and fitted together when the configuration was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, the server's own certificate first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// `[device]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSettings {
    /// The listener.
    pub http: HttpSettings,
    /// Largest `payload` of a request, in bytes of JSON; less than `http.body_max_bytes`.
    pub payload_max_bytes: usize,
    /// Longest that `Prefer: wait=N` holds a request open.
    pub wait_max: Duration,
    /// Requests that may be held open at the same time.
    pub parked_max: usize,
    /// Requests of one device that may come at once.
    pub repeat_burst: u32,
    /// One more request of one device is let through per this time.
    pub repeat_per: Duration,
    /// Credentials that were not believed, kept in memory for operators.
    pub refusals_kept: usize,
    /// Lines about them in the log, per second and reason.
    pub refusals_logged_per_second: u32,
}

/// `[backend]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSettings {
    /// The listener.
    pub http: HttpSettings,
    /// Device IDs in one lookup.
    pub lookup_ids_max: usize,
    /// Streams of changes that may be open at the same time.
    pub change_streams_max: usize,
    /// How long a stream of changes is silent at most.
    pub change_heartbeat: Duration,
}

/// `[operator]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorSettings {
    /// The listener.
    pub http: HttpSettings,
    /// Longest line of an import, in bytes.
    pub import_line_max_bytes: usize,
    /// Rows of one import: its lines but the header and blank ones.
    pub import_rows_max: u64,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// How a line is written.
    pub format: LogFormat,
    /// What is logged, in the syntax of `RUST_LOG`; valid.
    pub filter: String,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people on a terminal, else JSON.
    Auto,
    /// For people.
    Human,
    /// One JSON object per line.
    Json,
}

/// `[shutdown]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownSettings {
    /// How long requests are still taken after readiness went off.
    pub readiness_delay: Duration,
    /// How long requests under way may take after that.
    pub drain_timeout: Duration,
}

/// One backend that may ask for assignments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendToken {
    /// Who it is, for logs.
    pub name: String,
    /// Its token.
    pub digest: TokenDigest,
    /// The tenants whose devices it sees; `None`: all of them. Not empty.
    pub tenants: Option<BTreeSet<TenantName>>,
}

/// One operator, or one scraper of metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorToken {
    /// Who it is, for logs.
    pub name: String,
    /// The token.
    pub digest: TokenDigest,
    /// What it allows.
    pub role: OperatorRole,
}

/// What an operator's token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperatorRole {
    /// To look: `/metrics` and every `GET`.
    Read,
    /// Everything.
    Operate,
}

/// The certificate chains that the listeners of a running service serve, by section.
pub type ServedChains = BTreeMap<&'static str, Vec<CertificateDer<'static>>>;

/// Loads the configuration in `path`. `env` is the environment; what does not begin with `DPS_PROXY__` is ignored.
///
/// # Errors
/// [`Problems`]: everything that is wrong, at once.
pub fn load(path: &Path, env: impl IntoIterator<Item = (String, String)>) -> Result<Loaded, Problems> {
    load_for_service(path, env, ServedChains::new())
}

/// The same for a service that runs, and serves these certificates: that one of them has expired meanwhile is a warning.
///
/// # Errors
/// As [`load`].
pub fn load_for_service(
    path: &Path,
    env: impl IntoIterator<Item = (String, String)>,
    served: ServedChains,
) -> Result<Loaded, Problems> {
    let mut files = FilesRead::default();
    let read = read_bounded(path);
    files.note(path, read.as_ref().ok().map(Vec::as_slice));
    let text = read
        .map_err(|error| format!("cannot be read: {error}"))
        .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "is not a text file in UTF-8".to_owned()));
    match text {
        Ok(text) => load_text(text.trim_start_matches('\u{feff}'), path, files, env, served),
        Err(message) => {
            let problem = Problem { key: String::new(), line: None, variable: None, message };
            Err(Problems { file: path.to_owned(), problems: vec![problem], warnings: Vec::new(), files })
        }
    }
}

/// Loads a configuration from `text`, as if it stood in the file `path` (which need not exist).
///
/// # Errors
/// [`Problems`]: everything that is wrong, at once.
pub fn load_str(text: &str, path: &Path, env: impl IntoIterator<Item = (String, String)>) -> Result<Loaded, Problems> {
    load_text(text, path, FilesRead::default(), env, ServedChains::new())
}

fn load_text(
    text: &str,
    path: &Path,
    files: FilesRead,
    env: impl IntoIterator<Item = (String, String)>,
    served: ServedChains,
) -> Result<Loaded, Problems> {
    let mut document = Document::parse(text, path.parent().unwrap_or(Path::new("")), files).for_service(served);
    // Of a document that is not TOML, everything else would only seem to be missing.
    let draft = document.is_sound().then(|| {
        document.overlay(env);
        draft(&document)
    });
    let report = document.into_report();
    let (warnings, files) = (report.warnings, report.files);
    match draft {
        Some(Some((mut server, live, settings))) if report.problems.is_empty() => {
            server.effective = report.effective;
            Ok(Loaded { server, live, settings, warnings, files })
        }
        _ => Err(Problems { file: path.to_owned(), problems: report.problems, warnings, files }),
    }
}

/// Reads everything, whatever is wrong with a part of it, so that all problems come at once. What it gives may be used only if no
/// problem was noted on the way; `None` only if one was.
fn draft(document: &Document) -> Option<(ServerSettings, LiveServer, Settings)> {
    let root = document.root();
    let planes = listeners::read(&root);
    let instances = instances::read(&root);
    let enrollments = enrollments::read(&root, &planes.live.host_names, &instances);
    secrets::check_distinct(document, &planes.tokens, &enrollments.fleet_tokens);
    let tenants = instances::tenants(&root);
    listeners::check_tenants(document, &planes.live.backend_tokens, &tenants, &enrollments.tenants);
    let (store, log, shutdown) = (store::read(&root), rules::log(&root), rules::shutdown(&root));
    let settings = Settings {
        instances: instances.instances,
        enrollments: enrollments.enrollments,
        tenants,
        default_enrollment: enrollments.default,
        line: rules::line(&root),
        registration: rules::registration(&root),
        attestation: rules::attestation(&root),
        feed: rules::feed(&root),
    };
    root.check_unknown();
    // Nothing is read from here on.
    let server = ServerSettings {
        store,
        device: planes.device?,
        backend: planes.backend?,
        operator: planes.operator?,
        log,
        shutdown,
        effective: BTreeMap::new(),
    };
    Some((server, planes.live, settings))
}

/// The keys, by path, that differ between two configurations and take effect only after a restart.
#[must_use]
pub fn restart_needed(old: &ServerSettings, new: &ServerSettings) -> Vec<String> {
    let keys: BTreeSet<&String> = old.effective.keys().chain(new.effective.keys()).collect();
    let changed = keys.into_iter().filter(|key| is_fixed(key) && old.effective.get(*key) != new.effective.get(*key));
    changed.cloned().collect()
}

/// Whether the key needs a restart. `device.host_name`, the tokens and the log's filter do not, although they stand in such a section.
fn is_fixed(key: &str) -> bool {
    let section = key.split('.').next().unwrap_or_default();
    matches!(section, "store" | "device" | "backend" | "operator" | "log" | "shutdown")
        && !matches!(key, "device.host_name" | "log.filter")
        && !key.contains(".tokens.")
}

/// The instances that `old` has and `new` has not. Whoever takes `new` over refuses it if a record refers to one of them.
#[must_use]
pub fn removed_instances(old: &Settings, new: &Settings) -> Vec<InstanceName> {
    old.instances.keys().filter(|name| !new.instances.contains_key(*name)).cloned().collect()
}
