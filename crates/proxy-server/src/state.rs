//! What every handler can reach. Whoever starts and stops the service is not in it: see [`lifecycle`](crate::lifecycle).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use proxy_core::gateway::Gateway;
use rate_control::time::WallTime;
use tokio::sync::Semaphore;

use crate::config::{ConfigWatcher, FilesRead, LiveServer, ServedChains, ServerSettings};
use crate::metrics::{Metrics, ServerFacts};
use crate::refusals::Refusals;
use crate::scans::Scans;
use crate::tls::{Certificate, Renewal};

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
    /// The state of a service that is not ready yet.
    #[must_use]
    pub fn new(
        gateway: Arc<Gateway>,
        server: ServerSettings,
        live: LiveServer,
        source: Option<Source>,
        certificates: Vec<Arc<Certificate>>,
        store_began: Option<WallTime>,
    ) -> Self {
        Self {
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
        }
    }

    /// Whether the main job can be done. A store that has gone read-only does not change that: known devices are still answered.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && !self.gateway.is_stopping()
    }

    /// Says from now on whether the service takes requests.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// What the server itself has to tell in metrics.
    #[must_use]
    pub fn facts(&self) -> ServerFacts {
        let ends = self.certificates.iter().filter_map(|certificate| Some((certificate.plane(), certificate.end()?)));
        ServerFacts { store_began: self.store_began, certificate_ends: ends.collect() }
    }

    /// Keeps what watches the configuration's files, in place of an earlier one.
    pub fn set_watcher(&self, watcher: ConfigWatcher) {
        *self.watcher.lock() = Some(watcher);
    }

    /// Watches these files from now on, if files are watched.
    pub fn watch(&self, files: FilesRead) {
        if let Some(watcher) = &*self.watcher.lock() {
            watcher.set_files(files);
        }
    }

    /// The listeners' certificates.
    #[must_use]
    pub fn certificates(&self) -> &[Arc<Certificate>] {
        &self.certificates
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
