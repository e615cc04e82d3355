//! The life of the service: bound first, run afterwards, so that every address is known before the first request; then drained.
//!
//! It knows everybody, and nobody knows it but the command line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::web;
use anyhow::{Context as _, bail};
use futures_util::FutureExt as _;
use futures_util::future::{join_all, select_all};
use proxy_core::base::Stopped;
use proxy_core::gateway::{Fixed, Gateway};
use proxy_core::upstream::https::HttpsConnect;
use rate_control::entropy::Entropy;
use rate_control::time::SystemClock;
use store_postgresql::SoleUse;
use tokio::time::Instant;

use crate::config::{FilesRead, Loaded};
use crate::listener::Listener;
use crate::plane::Plane;
use crate::state::{App, Source};

mod ending;
mod listeners;
mod new_store;
mod standstill;
pub(crate) mod store;
mod tasks;

use listeners::Bound;
use store::Opened;

/// What operators have left for the answers under way, after everything else has stopped.
const LAST_ANSWERS: Duration = Duration::from_millis(250);

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

impl Addresses {
    fn of(listeners: &[Bound]) -> anyhow::Result<Self> {
        let address = |plane: Plane| {
            let bound = listeners.iter().find(|bound| bound.plane == plane);
            bound.with_context(|| format!("the {} plane has no listener", plane.as_str()))?.address()
        };
        Ok(Self {
            device: address(Plane::Device)?,
            backend: address(Plane::Backend)?,
            operator: address(Plane::Operator)?,
        })
    }
}

/// A service that is bound and knows its addresses.
pub struct Application {
    app: web::Data<App>,
    listeners: Vec<Bound>,
    addresses: Addresses,
    files: FilesRead,
    standstill: standstill::Watch,
    sole_use: Option<SoleUse>,
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
        listeners::require_descriptors(&server, &settings)?;
        let listeners = listeners::bind_all(&server)?;
        let certificates = listeners.iter().filter_map(|bound| bound.certificate.clone()).collect();
        let addresses = Addresses::of(&listeners)?;
        let fixed = Fixed {
            parked_max: server.device.parked_max,
            repeat_burst: server.device.repeat_burst,
            repeat_interval: server.device.repeat_per,
        };
        let is_new = new_store::begins(&server.store)?;
        let Opened { store, sole_use } = store::open(&server.store).await?;
        let store_began = new_store::began(&*store, &server.store, is_new).await?;
        let clock = Arc::new(SystemClock::new());
        let gateway =
            Gateway::open(store, clock, Arc::new(HttpsConnect), settings, fixed, Entropy::from_system()).await?;
        let app = web::Data::new(App::new(gateway, server, live, source, certificates, store_began));
        let standstill = standstill::watch(&app)?;
        Ok(Self { app, listeners, addresses, files, standstill, sole_use })
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
    /// If the service ended because of a fault, or with something left undone; the error says what.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self { app, listeners: bound, addresses, files, standstill: _until_the_end, sole_use } = self;
        let mut taken_away = std::pin::pin!(store::taken_away(sole_use));
        let reloading = tokio::spawn(tasks::keep_reloading(app.clone(), files));
        let watching = tokio::spawn(tasks::keep_watching_certificates(app.clone()));
        let mut listeners = Vec::new();
        let fault = match listeners::serve_all(bound, &app, &mut listeners).await {
            Ok(()) => {
                app.set_ready(true);
                tracing::info!(device = %addresses.device, backend = %addresses.backend, operator = %addresses.operator, "ready");
                tokio::select! {
                    () = stop => None,
                    fault = app.gateway.supervisor().failed() => Some(fault),
                    fault = &mut taken_away => Some(fault),
                    (error, _, _) = select_all(listeners.iter_mut().map(|listener| listener.failed().boxed())) => Some(format!("{error:#}")),
                }
            }
            Err(error) => Some(format!("{error:#}")),
        };
        if let Some(fault) = &fault {
            tracing::error!(fault, "the service cannot continue and shuts down");
        }
        tracing::info!("stopping: readiness is off");
        app.set_ready(false);
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

#[cfg(test)]
mod tests {
    use socket2::Socket;

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
