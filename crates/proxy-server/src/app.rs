//! The service: bound first, run afterwards, so that every address is known before the first request.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_web::web;
use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use futures_util::future::{join_all, select_all};
use parking_lot::Mutex;
use proxy_core::entropy::Entropy;
use proxy_core::gateway::{Fixed, Gateway, Stopped};
use proxy_core::settings::Settings;
use proxy_core::store::Store;
use proxy_core::store::sled_store::{SledOptions, SledStore};
use proxy_core::supervise::Task;
use proxy_core::time::{SystemClock, WallTime};
use proxy_core::upstream::https::HttpsConnect;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::config::{
    ConfigWatcher, FilesRead, HttpSettings, LiveServer, Loaded, ServedChains, ServerSettings, StoreBackend,
    StoreSettings,
};
use crate::ending;
use crate::http::connection;
use crate::http::scans::Scans;
use crate::listener::{Limits, Listener};
use crate::metrics::{Metrics, Plane, ServerFacts};
use crate::new_store;
use crate::refusals::Refusals;
use crate::reload;
use crate::tls::{self, Certificate, Renewal};

/// File descriptors needed beside connections in use: the store, idle upstream connections, the runtime.
const DESCRIPTORS_BESIDE: u64 = 512;

/// What operators have left for the answers under way, after everything else has stopped.
const LAST_ANSWERS: Duration = Duration::from_millis(250);

/// Before the watcher of the configuration is begun anew.
const WATCH_AGAIN_WAIT: Duration = Duration::from_secs(1);

/// Where the configuration came from, to load it anew.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// The environment as it was at the start.
    pub environment: Vec<(String, String)>,
}

/// What every handler can reach.
#[derive(Debug)]
pub struct App {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    /// What is fixed.
    pub server: ServerSettings,
    /// What the server takes over live.
    pub live: ArcSwap<LiveServer>,
    /// What is counted.
    pub metrics: Metrics,
    /// Credentials that were not believed.
    pub refusals: Refusals,
    /// The tokens that have a reading of all records under way.
    pub scans: Scans,
    /// Room for streams of changes.
    pub change_streams: Arc<Semaphore>,
    /// Where the configuration came from.
    pub source: Option<Source>,
    /// One reload at a time, so that the configuration that was read last is the one in force.
    pub reloading: tokio::sync::Mutex<()>,
    /// When the store was begun; `None` if that was never noted.
    pub store_began: Option<WallTime>,
    certificates: Vec<Arc<Certificate>>,
    watcher: Mutex<Option<ConfigWatcher>>,
    ready: AtomicBool,
}

impl App {
    /// Whether the main job can be done. A store that has gone read-only does not change that: known devices are still answered.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && !self.gateway.is_stopping()
    }

    /// What the server itself has to tell in metrics.
    #[must_use]
    pub fn facts(&self) -> ServerFacts {
        let ends = self.certificates.iter().filter_map(|certificate| Some((certificate.plane(), certificate.end()?)));
        ServerFacts { store_began: self.store_began, certificate_ends: ends.collect() }
    }

    /// Watches these files from now on, if files are watched.
    pub fn watch(&self, files: FilesRead) {
        if let Some(watcher) = &*self.watcher.lock() {
            watcher.set_files(files);
        }
    }

    /// The certificates that the listeners serve.
    #[must_use]
    pub fn served_chains(&self) -> ServedChains {
        self.certificates.iter().map(|certificate| (certificate.plane().as_str(), certificate.chain())).collect()
    }

    /// Reads the listeners' certificates anew; those in use stay until [`renew`](Renewal::renew).
    ///
    /// # Errors
    /// What is wrong with each.
    pub fn read_certificates(&self) -> Result<Vec<Renewal<'_>>, Vec<String>> {
        let (mut read, mut problems) = (Vec::new(), Vec::new());
        for certificate in &self.certificates {
            match certificate.read_anew() {
                Ok(renewal) => read.push(renewal),
                Err(error) => problems.push(format!("{error:#}")),
            }
        }
        if problems.is_empty() { Ok(read) } else { Err(problems) }
    }
}

/// The addresses that were bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Devices.
    pub device: SocketAddr,
    /// Backends.
    pub backend: SocketAddr,
    /// Operators.
    pub operator: SocketAddr,
}

struct Bound {
    plane: Plane,
    settings: HttpSettings,
    listener: TcpListener,
    certificate: Option<Arc<Certificate>>,
}

/// A service that is bound and knows its addresses.
pub struct Application {
    app: web::Data<App>,
    listeners: [Bound; 3],
    addresses: Addresses,
    files: FilesRead,
}

impl std::fmt::Debug for Application {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Application").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Application {
    /// Binds the listeners, opens the store and rebuilds the lines. Nothing is answered yet.
    ///
    /// # Errors
    /// Whatever of it fails, in words for an operator.
    pub async fn build(loaded: Loaded, source: Option<Source>) -> anyhow::Result<Self> {
        let Loaded { server, live, settings, warnings, files } = loaded;
        for warning in &warnings {
            tracing::warn!(%warning, "configuration");
        }
        require_descriptors(&server, &settings)?;
        let listeners = [
            bind(Plane::Device, &server.device.http)?,
            bind(Plane::Backend, &server.backend.http)?,
            bind(Plane::Operator, &server.operator.http)?,
        ];
        let certificates = listeners.iter().filter_map(|bound| bound.certificate.clone()).collect();
        let address = |bound: &Bound| bound.listener.local_addr().context("a bound listener has an address");
        let addresses = Addresses {
            device: address(&listeners[0])?,
            backend: address(&listeners[1])?,
            operator: address(&listeners[2])?,
        };
        let fixed = Fixed {
            parked_max: server.device.parked_max,
            repeat_burst: server.device.repeat_burst,
            repeat_interval: server.device.repeat_per,
        };
        let is_new = new_store::begins(&server.store)?;
        let store = open_store(&server.store).await?;
        let store_began = new_store::began(&*store, &server.store, is_new).await?;
        let clock = Arc::new(SystemClock::new());
        let gateway =
            Gateway::open(store, clock, Arc::new(HttpsConnect), settings, fixed, Entropy::from_system()).await?;
        let app = web::Data::new(App {
            gateway,
            refusals: Refusals::new(server.device.refusals_kept, server.device.refusals_logged_per_second),
            scans: Scans::default(),
            change_streams: Arc::new(Semaphore::new(server.backend.change_streams_max)),
            server,
            live: ArcSwap::from_pointee(live),
            metrics: Metrics::new(),
            source,
            reloading: tokio::sync::Mutex::new(()),
            certificates,
            watcher: Mutex::new(None),
            store_began,
            ready: AtomicBool::new(false),
        });
        Ok(Self { app, listeners, addresses, files })
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// What the handlers reach.
    #[must_use]
    pub fn app(&self) -> web::Data<App> {
        self.app.clone()
    }

    /// Serves until `stop` is ready, or a fault of ours makes going on useless (a listener that fails is one), then drains: readiness
    /// off, a pause for load balancers, no new work, what is under way to its end or durable, the operator plane last. All of the drain
    /// together has `shutdown.drain_timeout`.
    ///
    /// # Errors
    /// If the service ended because of a fault, or with something left undone; see [`ending`].
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self { app, listeners: bound, addresses, files } = self;
        let reloading = tokio::spawn(keep_reloading(app.clone(), files));
        let watching = tokio::spawn(keep_watching_certificates(app.clone()));
        let mut listeners = Vec::new();
        let fault = match serve_all(bound, &app, &mut listeners).await {
            Ok(()) => {
                app.ready.store(true, Ordering::Relaxed);
                tracing::info!(device = %addresses.device, backend = %addresses.backend, operator = %addresses.operator, "ready");
                tokio::select! {
                    () = stop => None,
                    fault = app.gateway.supervisor().failed() => Some(fault),
                    (error, _, _) = select_all(listeners.iter_mut().map(|listener| listener.failed().boxed())) => Some(format!("{error:#}")),
                }
            }
            Err(error) => Some(format!("{error:#}")),
        };
        if let Some(fault) = &fault {
            tracing::error!(fault, "the service cannot go on and stops");
        }
        tracing::info!("stopping: readiness is off");
        app.ready.store(false, Ordering::Relaxed);
        tokio::time::sleep(app.server.shutdown.readiness_delay).await;
        let stopped = drain_and_stop(&app, listeners, app.server.shutdown.drain_timeout).await;
        reloading.abort();
        watching.abort();
        match ending::last_line(fault.as_deref(), &stopped) {
            Ok(line) => {
                tracing::info!(left_with_dps = stopped.left_with_dps, "{line}");
                Ok(())
            }
            Err(line) => {
                tracing::error!(left_with_dps = stopped.left_with_dps, unwritten = stopped.unwritten, "{line}");
                bail!("{line}")
            }
        }
    }
}

async fn drain_and_stop(app: &App, mut listeners: Vec<Listener>, drain: Duration) -> Stopped {
    // One moment for all: what is under way with DPS goes on while the listeners drain, and the operator plane is told last.
    let until = Instant::now() + drain;
    let operator = listeners.pop_if(|listener| listener.name() == Plane::Operator.as_str());
    // No new places from here on, and those who wait are answered, so the listeners drain quickly. The store stays open until they
    // have: requests under way are still answered from it.
    app.gateway.begin_stop();
    join_all(listeners.into_iter().map(|listener| listener.drain(until))).await;
    let stopped = app.gateway.stop(until.saturating_duration_since(Instant::now())).await;
    if let Some(operator) = operator {
        operator.drain(until.max(Instant::now() + LAST_ANSWERS)).await;
    }
    stopped
}

async fn open_store(settings: &StoreSettings) -> anyhow::Result<Arc<dyn Store>> {
    match settings.backend {
        StoreBackend::Sled => {
            let options = SledOptions {
                cache_capacity: settings.cache_mib.saturating_mul(1024 * 1024),
                min_free_bytes: settings.free_space_min_mib.saturating_mul(1024 * 1024),
                inbox_max: settings.inbox_max,
                ..SledOptions::default()
            };
            let path = settings.path.clone();
            // Keys of devices are in it, so it is for its owner alone; a directory that exists keeps what it was given.
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .with_context(|| format!("store.path: cannot create {}", path.display()))?;
            // Opening reads the whole log after a crash; it must not hold up the runtime.
            let store = tokio::task::spawn_blocking(move || SledStore::open(&path, options))
                .await
                .context("opening the store")??;
            Ok(Arc::new(store))
        }
    }
}

fn bind(plane: Plane, settings: &HttpSettings) -> anyhow::Result<Bound> {
    let address = settings.listen;
    let open = || -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        // Every connection has it from here: so much is held for a peer that does not read.
        socket.set_send_buffer_size(settings.unread_max_bytes)?;
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(settings.backlog).unwrap_or(i32::MAX))?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    let listener = open().with_context(|| format!("{}.listen: cannot listen on {address}", plane.as_str()))?;
    let certificate = settings.tls.as_ref().map(|files| Certificate::load(plane, files)).transpose()?;
    Ok(Bound { plane, settings: settings.clone(), listener, certificate })
}

/// Starts the listeners. Those in `listeners` run, also if a further one cannot be started.
async fn serve_all(bound: [Bound; 3], app: &web::Data<App>, listeners: &mut Vec<Listener>) -> anyhow::Result<()> {
    for bound in bound {
        listeners.push(serve(bound, app).await?);
    }
    Ok(())
}

async fn serve(bound: Bound, app: &web::Data<App>) -> anyhow::Result<Listener> {
    let Bound { plane, settings, listener, certificate } = bound;
    let limits = Limits {
        workers: settings.workers,
        connections_max: settings.connections_max,
        handshakes_max: settings.handshakes_max,
        handshake_timeout: settings.handshake_timeout,
        write_timeout: settings.write_timeout,
        unread_max_bytes: settings.unread_max_bytes,
        source_share_percent: settings.source_share_percent,
    };
    let tls = certificate.map(|certificate| certificate.server_config().map(Arc::new)).transpose()?;
    let protocol = connection::protocol(plane, &settings, app);
    Listener::start(plane.as_str(), listener, limits, tls, protocol, app.metrics.connections(plane)).await
}

/// Raises the soft limit of file descriptors as far as it goes, and refuses a configuration that needs more.
fn require_descriptors(server: &ServerSettings, settings: &Settings) -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let planes = [&server.device.http, &server.backend.http, &server.operator.http];
    let listeners: usize = planes.iter().map(|http| http.connections_max).sum();
    let upstream = settings.registration.connections_max.saturating_mul(settings.instances.len());
    let needed = (listeners as u64).saturating_add(upstream as u64).saturating_add(DESCRIPTORS_BESIDE);
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < needed) {
        let _best_effort = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    match getrlimit(Resource::Nofile).current {
        Some(current) if current < needed => bail!(
            "connections_max of the three listeners ({listeners}) and registration.connections_max for each of {} instances \
             ({upstream}) need {needed} file descriptors, but this process may open {current}: lower device.connections_max or \
             registration.connections_max, or raise the limit (ulimit -n, LimitNOFILE)",
            settings.instances.len()
        ),
        Some(_) | None => Ok(()),
    }
}

/// Tells of certificates that near their end, as long as the service runs.
async fn keep_watching_certificates(app: web::Data<App>) {
    let now = || app.gateway.now().mono;
    let begin = || tls::watch_ends(app.certificates.clone());
    app.gateway.supervisor().keep(Task::new("certificate-watch"), now, begin).await;
}

/// Takes over the configuration whenever its files change and on SIGHUP, as long as the service runs.
async fn keep_reloading(app: web::Data<App>, files: FilesRead) {
    let now = || app.gateway.now().mono;
    let begin = || reload_on_change(app.clone(), files.clone());
    app.gateway.supervisor().keep(Task::new("config-reload"), now, begin).await;
}

async fn reload_on_change(app: web::Data<App>, files: FilesRead) {
    let Some(source) = &app.source else { return };
    let Ok(mut hangup) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()) else {
        return tracing::error!("SIGHUP cannot be caught; use POST /v1/config/reload");
    };
    let mut changed = watch_files(&app, source, files.clone());
    loop {
        tokio::select! {
            change = next_change(&mut changed) => if change.is_none() {
                // The watcher's thread is gone; what changed since the start is noticed again, which does no harm.
                app.gateway.supervisor().count_death("config-watch");
                tracing::error!("the watcher of the configuration died and is begun anew");
                tokio::time::sleep(WATCH_AGAIN_WAIT).await;
                changed = watch_files(&app, source, files.clone());
                continue;
            },
            Some(()) = hangup.recv() => {}
        }
        // The outcome is in the log either way.
        let _logged = reload::reload(&app).await;
    }
}

/// Where changes of the files are signalled; `None` if they cannot be watched.
fn watch_files(app: &App, source: &Source, files: FilesRead) -> Option<mpsc::Receiver<()>> {
    let (sender, changed) = mpsc::channel(1);
    match ConfigWatcher::start(&source.path, files, sender) {
        Ok(watcher) => {
            *app.watcher.lock() = Some(watcher);
            Some(changed)
        }
        Err(error) => {
            tracing::error!(%error, "the configuration is not watched; use SIGHUP or POST /v1/config/reload");
            None
        }
    }
}

/// `None` if nobody watches any more. Cancel-safe.
async fn next_change(changed: &mut Option<mpsc::Receiver<()>>) -> Option<()> {
    match changed {
        Some(changed) => changed.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const TOKEN: &str = "operator-token-of-the-tests-0123456789";

    /// A service that is bound, with three plain listeners on loopback.
    async fn bound(directory: &std::path::Path) -> Application {
        std::fs::write(directory.join("key"), KEY).unwrap();
        std::fs::write(directory.join("token"), TOKEN).unwrap();
        let mut text = "[instances.eu-1]\nid_scope = \"0ne000AB12C\"\n[enrollments.plant]\ngroup_key_file = \"key\"\n\
            [store]\npath = \"store\"\nfree_space_min_mib = 16\n[shutdown]\nreadiness_delay = \"0s\"\n"
            .to_owned();
        for (plane, more) in
            [("device", "host_name = \"p.example.com\"\ntls = \"off\"\n"), ("backend", ""), ("operator", "")]
        {
            text += &format!("[{plane}]\nlisten = \"127.0.0.1:0\"\nworkers = 1\nconnections_max = 64\n{more}");
        }
        text += "[[operator.tokens]]\nname = \"o\"\ntoken_file = \"token\"\nrole = \"operate\"\n";
        let path = directory.join("dps-proxy.toml");
        std::fs::write(&path, text).unwrap();
        Application::build(crate::config::load(&path, []).unwrap(), None).await.unwrap()
    }

    #[actix_web::test]
    async fn a_listener_that_fails_ends_the_service_with_a_drain_and_an_error() {
        for failing in 0..3 {
            let directory = tempfile::tempdir().unwrap();
            let application = bound(directory.path()).await;
            let app = application.app();
            let socket = Socket::from(application.listeners[failing].listener.try_clone().unwrap());
            let plane = application.listeners[failing].plane.as_str();
            let breaking = async {
                while !app.is_ready() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                socket.shutdown(std::net::Shutdown::Both).unwrap();
                std::future::pending::<()>().await;
            };
            let ended = tokio::time::timeout(Duration::from_secs(30), application.run_until(breaking)).await.unwrap();
            let line = ended.unwrap_err().to_string();
            // The line of a stop in good order: the gateway has stopped, and the store is closed.
            assert!(line.starts_with("stopped; every place and every answer is on disk"), "{line}");
            assert!(line.contains(&format!("the listener of the {plane} plane failed")), "{line}");
            assert!(app.gateway.is_stopping() && !app.is_ready());
        }
    }
}
