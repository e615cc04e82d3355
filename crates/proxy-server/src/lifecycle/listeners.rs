//! The listeners of the planes, as a list: bound first, served afterwards.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use actix_web::web;
use anyhow::{Context as _, bail};
use proxy_core::settings::Settings;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{HttpSettings, ServerSettings};
use crate::http::serve::protocol;
use crate::listener::{Limits, Listener};
use crate::plane::Plane;
use crate::planes;
use crate::state::App;
use crate::tls::Certificate;

/// File descriptors needed beside connections in use: the store, idle upstream connections, the runtime.
const DESCRIPTORS_BESIDE: u64 = 512;

/// The planes with their listeners' settings, in the order in which they are started. The operator plane is the last: it is drained
/// behind all others.
fn of(server: &ServerSettings) -> [(Plane, &HttpSettings); 3] {
    [
        (Plane::Device, &server.device.http),
        (Plane::Backend, &server.backend.http),
        (Plane::Operator, &server.operator.http),
    ]
}

/// A plane's listener, bound; nobody is accepted yet.
pub(super) struct Bound {
    pub(super) plane: Plane,
    settings: HttpSettings,
    pub(super) listener: TcpListener,
    pub(super) certificate: Option<Arc<Certificate>>,
}

impl Bound {
    /// Where it listens.
    pub(super) fn address(&self) -> anyhow::Result<SocketAddr> {
        self.listener.local_addr().context("a bound listener has an address")
    }
}

/// Binds all listeners.
pub(super) fn bind_all(server: &ServerSettings) -> anyhow::Result<Vec<Bound>> {
    of(server).into_iter().map(|(plane, settings)| bind(plane, settings)).collect()
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
pub(super) async fn serve_all(
    bound: Vec<Bound>,
    app: &web::Data<App>,
    listeners: &mut Vec<Listener>,
) -> anyhow::Result<()> {
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
    let protocol = protocol(planes::routes(plane), &settings, app);
    Listener::start(plane.as_str(), listener, limits, tls, protocol, app.metrics.connections(plane)).await
}

/// Raises the soft limit of file descriptors as far as it goes, and refuses a configuration that needs more.
pub(super) fn require_descriptors(server: &ServerSettings, settings: &Settings) -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let listeners: usize = of(server).iter().map(|(_, http)| http.connections_max).sum();
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
