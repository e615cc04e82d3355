//! Connections to one instance, one HTTP client for each of them.
//!
//! An HTTP library's own pool hides two things that matter here: whether a call travelled on a connection that had been used before, and
//! the moment at which a new connection is up. So each client here carries one call at a time and keeps one connection, and idle clients
//! wait in a stack.
//!
//! Invariants:
//! - A connection on which nothing that we send is acknowledged for [`UNACKNOWLEDGED_MAX`] is dead, however long an answer may take. Once a call
//!   on an old one has been silent for [`SUSPECT_AFTER`], nobody else is sent into what is idle.
//! - A call that failed on an old connection says nothing about the instance: a firewall may have lost its state, or the other side may
//!   have closed it. All idle connections are dropped then, and for [`REUSE_PAUSE`] each call gets a new one.
//! - A new connection asks for the last look once it is up, before a byte of the call is written.
//! - A call on a client that has carried one before opens no connection unless that client's own is gone.
#![expect(
    clippy::disallowed_methods,
    reason = "for how long a connection has been idle is between the network and us, and decides nothing else"
)]

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::{Client, ClientBuilder, redirect, retry};
use rustls::ClientConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use rustls_platform_verifier::Verifier;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::LastLook;
use crate::settings::RegistrationSettings;

/// How long connections are not used twice after one that was old failed: something on the way forgets them.
const REUSE_PAUSE: Duration = Duration::from_secs(60);

/// The other end, or something on the way, forgot a connection that acknowledges nothing for so long: three retransmissions and more. DPS itself may
/// take its time, as its machine acknowledges at once.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(5);

/// A call on a connection that had been used before is answered sooner than this, or the other idle ones are not used any more: new ones cost a
/// handshake each, a call that is lost costs much more.
pub(super) const SUSPECT_AFTER: Duration = Duration::from_secs(2);

/// A client has its connection back in hand a moment after the call before has ended, in a task of its own. For so long the next call waits for
/// it; only then has the other side closed it, and a new one is opened.
const BACK_WITHIN: Duration = Duration::from_millis(100);

/// The last look said no: nothing was written.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("held back: {0}")]
pub(super) struct HeldBack(pub(super) &'static str);

/// The call has left on the connection that was there.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("no connection is needed")]
struct NotNeeded;

/// What a client and its connector share about the call under way.
#[derive(Default)]
struct Shared {
    last_look: Mutex<Option<LastLook>>,
    connected: AtomicBool,
    /// A call has come to its end: the connection it was on should be there for the next one.
    used: AtomicBool,
}

/// A client with one connection, used by one call at a time.
pub(super) struct Link {
    pub(super) client: Client,
    shared: Arc<Shared>,
}

impl Link {
    /// A call begins. For one on a connection that is up already, the last look is the caller's business.
    pub(super) fn begin(&self, last_look: Option<LastLook>) {
        self.shared.connected.store(false, Ordering::Release);
        *self.shared.last_look.lock() = last_look;
    }

    /// Whether it has carried a call before.
    pub(super) fn is_used(&self) -> bool {
        self.shared.used.load(Ordering::Acquire)
    }

    /// Whether the call under way is on a connection that had carried calls before.
    pub(super) fn is_old(&self) -> bool {
        self.is_used() && !self.has_connected()
    }

    /// Whether a connection came up since the call began.
    pub(super) fn has_connected(&self) -> bool {
        self.shared.connected.load(Ordering::Acquire)
    }
}

#[derive(Default)]
struct Idle {
    /// The one used last is on top.
    links: Vec<(Link, Instant)>,
    /// Until when connections are used once only.
    no_reuse_until: Option<Instant>,
}

/// See the module.
pub(super) struct Connections {
    tls: Arc<ClientConfig>,
    registration: RegistrationSettings,
    idle: Mutex<Idle>,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("idle", &self.idle.lock().links.len()).finish_non_exhaustive()
    }
}

impl Connections {
    /// No connections yet.
    ///
    /// # Errors
    /// If the extra roots are not PEM, or the machine has no root certificates (a container without a CA bundle).
    pub(super) fn new(extra_roots_pem: Option<&[u8]>, registration: &RegistrationSettings) -> Result<Self, String> {
        let tls = Arc::new(tls(extra_roots_pem)?);
        let connections = Self { tls, registration: registration.clone(), idle: Mutex::default() };
        // So that what cannot work is known at start.
        connections.connect()?;
        Ok(connections)
    }

    /// The idle connection that was used last, or a new one.
    ///
    /// # Errors
    /// If a client cannot be made.
    pub(super) fn take(&self) -> Result<Link, String> {
        let idle = {
            let mut idle = self.idle.lock();
            let now = Instant::now();
            idle.links.retain(|(_, since)| now.duration_since(*since) < self.registration.idle_timeout);
            idle.links.pop()
        };
        match idle {
            Some((link, _)) => Ok(link),
            None => self.connect(),
        }
    }

    /// Gives a connection back that carried a call to its end.
    pub(super) fn give_back(&self, link: Link) {
        let mut idle = self.idle.lock();
        let now = Instant::now();
        if idle.no_reuse_until.is_some_and(|until| now < until) || self.registration.idle_connections_max == 0 {
            return;
        }
        if idle.links.len() >= self.registration.idle_connections_max {
            idle.links.remove(0);
        }
        link.shared.used.store(true, Ordering::Release);
        idle.links.push((link, now));
    }

    /// The connections that are idle now are not used any more: they may be as dead as one that has been silent for long.
    pub(super) fn drop_idle(&self) {
        self.idle.lock().links.clear();
    }

    /// A call got no answer: idle connections are likely to be as dead as the one it was on. `old` if that one had been used before.
    pub(super) fn distrust(&self, old: bool) {
        let mut idle = self.idle.lock();
        idle.links.clear();
        if old {
            idle.no_reuse_until = Some(Instant::now() + REUSE_PAUSE);
        }
    }

    fn connect(&self) -> Result<Link, String> {
        let shared = Arc::new(Shared::default());
        let builder = bounded_delay(Client::builder(), self.registration.upstream_max_delay)
            .http1_only()
            .tls_backend_preconfigured((*self.tls).clone())
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .referer(false)
            .connect_timeout(self.registration.connect_timeout)
            .timeout(self.registration.request_timeout)
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(self.registration.idle_timeout)
            .connector_layer(AskLast { shared: Arc::clone(&shared) })
            .user_agent(concat!("dps-proxy/", env!("CARGO_PKG_VERSION")));
        let client =
            builder.build().map_err(|error| format!("the HTTP client cannot be made: {}", super::chain(&error)))?;
        Ok(Link { client, shared })
    }
}

/// The kernel gives a connection up that acknowledges nothing for so long, and never sends a call again for longer after we gave it up.
#[cfg(target_os = "linux")]
fn bounded_delay(builder: ClientBuilder, upstream_max_delay: Duration) -> ClientBuilder {
    builder.tcp_user_timeout(upstream_max_delay.min(UNACKNOWLEDGED_MAX))
}

/// Other systems have no such bound.
#[cfg(not(target_os = "linux"))]
fn bounded_delay(builder: ClientBuilder, _: Duration) -> ClientBuilder {
    builder
}

/// One TLS configuration for all connections of an instance, so that roots are read once and sessions are resumed: TLS 1.2 and 1.3, HTTP/1.1,
/// the machine's own roots and the extra ones.
fn tls(extra_roots_pem: Option<&[u8]>) -> Result<ClientConfig, String> {
    let roots: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(extra_roots_pem.unwrap_or_default())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("extra_ca_file is not a PEM bundle: {error}"))?;
    let provider = CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()));
    let no_roots = |error: rustls::Error| {
        format!("the TLS client cannot be built (is there a CA bundle on this machine?): {error}")
    };
    let verifier = Verifier::new_with_extra_roots(roots, Arc::clone(&provider)).map_err(no_roots)?;
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(no_roots)?
        // The verifier that the HTTP client itself would use; it checks chain, name and dates.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

/// Asks for the last look when a connection is up.
#[derive(Clone)]
struct AskLast {
    shared: Arc<Shared>,
}

impl<S> Layer<S> for AskLast {
    type Service = Asking<S>;

    fn layer(&self, connector: S) -> Asking<S> {
        Asking { connector, shared: Arc::clone(&self.shared) }
    }
}

/// A connector that asks for the last look.
#[derive(Clone)]
struct Asking<S> {
    connector: S,
    shared: Arc<Shared>,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

impl<S, R> Service<R> for Asking<S>
where
    S: Service<R, Error = AnyError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = AnyError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, AnyError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), AnyError>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, target: R) -> Self::Future {
        // Begins when it is awaited.
        let (connecting, shared) = (self.connector.call(target), Arc::clone(&self.shared));
        Box::pin(async move {
            if shared.used.load(Ordering::Acquire) {
                let caller = tokio::task::try_id();
                tokio::time::sleep(BACK_WITHIN).await;
                // A call that got its connection meanwhile leaves this to a task of its own.
                if tokio::task::try_id() != caller {
                    return Err(AnyError::from(NotNeeded));
                }
            }
            let connection = connecting.await?;
            let last_look = shared.last_look.lock().clone();
            if let Some(Err(held)) = last_look.map(|look| look.ask()) {
                return Err(AnyError::from(HeldBack(held)));
            }
            shared.connected.store(true, Ordering::Release);
            Ok(connection)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers every request on a connection, and counts the connections.
    async fn server() -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (url, accepted) = (format!("http://{}", listener.local_addr().unwrap()), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                        stream.write_all(answer).await.unwrap();
                    }
                });
            }
        });
        (url, accepted)
    }

    fn connections() -> Connections {
        let second = Duration::from_secs(1);
        let registration = RegistrationSettings {
            api_version: "2021-10-01".to_owned(),
            connect_timeout: second * 10,
            request_timeout: second * 30,
            token_life: second * 3600,
            upstream_max_delay: second * 30,
            connections_max: 256,
            idle_connections_max: 32,
            idle_timeout: second * 60,
            in_flight_max: 10_000,
            poll_interval: second * 2,
            poll_interval_max: second * 60,
            throttle_wait_max: second * 600,
            assigning_max: second * 300,
            breaker_threshold: 2,
            backoff_min: second,
            backoff_max: second * 60,
            attempts_max: 8,
            lookup_spends: true,
            refusal_ttl: second * 3600,
            reprovision_cooldown: second * 900,
            suspect_cooldown: second * 900,
            timeline_max: 24,
        };
        Connections::new(None, &registration).unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn calls_one_right_after_the_other_go_over_one_connection() {
        let (url, accepted) = server().await;
        let connections = connections();
        for _ in 0..200 {
            let link = connections.take().unwrap();
            link.begin(None);
            assert_eq!(link.client.get(&url).send().await.unwrap().text().await.unwrap(), "{}");
            connections.give_back(link);
        }
        // What the library had begun beside a call would be there by now.
        tokio::time::sleep(BACK_WITHIN * 2).await;
        let accepted = accepted.load(Ordering::Relaxed);
        assert!(accepted <= 5, "{accepted}: one, and few more if the machine stalls");
    }
}
