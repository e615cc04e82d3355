//! Listeners: who may connect, how many may be connected, and how long a connection may keep us waiting.
//!
//! A listener knows nothing of HTTP. It accepts, finds room, shakes hands and hands a [`Stream`] to its [`Protocol`], which says
//! what is done with it. Accepting is one task; connections live on the listener's own worker threads.
//!
//! Invariants:
//! - At most `connections_max` connections are open. When all are taken, one that waits for its peer makes room for a new one: the
//!   one that has waited longest, of a source above its share if there is such a source. A connection whose request is being
//!   answered is never closed for another.
//! - A handshake holds one of `handshakes_max` slots only while we compute. Nothing that a peer does, or fails to do, holds a slot.
//! - Every wait for a peer has an end: the handshake, what the protocol waits for, and output that is not read.
//! - While output is not read, nothing further is read.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::future::LocalBoxFuture;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::{ConnectionMetrics, DropReason};

mod admission;
mod connection;
mod fullness;
mod handshake;
mod stream;
mod worker;

pub use connection::{Connection, Deadline};
pub use stream::Stream;

use admission::{Admission, Order, Source};
use fullness::Fullness;
use handshake::Handshakes;
use worker::{Accepted, Worker};

/// How long to wait for room before another connection is asked to make some.
const ROOM_PATIENCE: Duration = Duration::from_millis(50);
/// How long to wait before accepting again after the system refused, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection that was told to end, and a thread without connections, may take to do so.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Serves one connection to its end. It lives on one worker thread.
pub type Serve = Rc<dyn Fn(Stream) -> LocalBoxFuture<'static, ()>>;

/// Makes, once on each worker thread, what serves that thread's connections.
pub type Protocol = Arc<dyn Fn() -> LocalBoxFuture<'static, anyhow::Result<Serve>> + Send + Sync>;

/// What bounds a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Worker threads; at least 1.
    pub workers: usize,
    /// Open connections, those in their handshake included.
    pub connections_max: usize,
    /// TLS handshakes that are computed at the same time.
    pub handshakes_max: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long a peer may take to read `unread_max_bytes`, or whatever is left.
    pub write_timeout: Duration,
    /// Output that is held for a peer, in bytes.
    pub unread_max_bytes: usize,
    /// The share of `connections_max` up to which one source is treated like any other, in percent.
    pub source_share_percent: usize,
}

/// A listener that serves. Dropping it stops accepting, and its threads end; [`drain`](Self::drain) does so in good order.
#[derive(Debug)]
pub struct Listener {
    name: &'static str,
    admission: Arc<Admission>,
    stop: CancellationToken,
    accepting: JoinHandle<anyhow::Result<()>>,
    workers: Vec<Worker>,
}

impl Listener {
    /// Starts the worker threads and accepts from now on. `name` is for logs and threads.
    ///
    /// # Errors
    /// If a thread or its protocol cannot be started.
    pub async fn start(
        name: &'static str,
        socket: StdListener,
        limits: Limits,
        tls: Option<Arc<rustls::ServerConfig>>,
        protocol: Protocol,
        metrics: ConnectionMetrics,
    ) -> anyhow::Result<Self> {
        let admission = Arc::new(Admission::new(limits, metrics.clone()));
        let slots = Arc::new(Semaphore::new(limits.handshakes_max));
        let handshakes = tls.map(|config| Handshakes::new(config, slots, limits.unread_max_bytes));
        let mut workers = Vec::new();
        for index in 0..limits.workers.max(1) {
            let shared = worker::Shared { limits, handshakes: handshakes.clone(), metrics: metrics.clone() };
            workers.push(Worker::start(format!("{name}-{index}"), shared, Arc::clone(&protocol)).await?);
        }
        let stop = CancellationToken::new();
        let socket = TcpListener::from_std(socket).with_context(|| format!("{name}: the listening socket"))?;
        let acceptor = Acceptor {
            socket,
            admission: Arc::clone(&admission),
            doors: workers.iter().map(Worker::door).collect(),
            fullness: Fullness::new(name, limits.connections_max),
            stop: stop.clone(),
        };
        let accepting = tokio::spawn(acceptor.run());
        Ok(Self { name, admission, stop, accepting, workers })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Waits until the listener cannot go on, which should be never. Cancel-safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        let error = match (&mut self.accepting).await {
            Ok(Ok(())) => anyhow!("it ended"),
            Ok(Err(error)) => error,
            Err(error) => anyhow!(error).context("its task"),
        };
        error.context(format!("the listener of the {} plane failed", self.name))
    }

    /// Stops accepting, closes what is idle, and lets what is being answered end until `until`; what is left then is cut.
    pub async fn drain(mut self, until: Instant) {
        self.stop.cancel();
        // One that has failed was waited for already.
        if !self.accepting.is_finished() {
            let _ended = tokio::time::timeout(END_PATIENCE, &mut self.accepting).await;
        }
        self.admission.order_all(Order::EndAtRest);
        if tokio::time::timeout_at(until, self.admission.emptied()).await.is_err() {
            self.admission.order_all(Order::End(DropReason::DrainTimeout));
            let _ended = tokio::time::timeout(END_PATIENCE, self.admission.emptied()).await;
        }
        let workers = std::mem::take(&mut self.workers);
        let joining = tokio::task::spawn_blocking(|| workers.into_iter().for_each(Worker::join));
        let _ended = tokio::time::timeout(END_PATIENCE, joining).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Accepts connections, finds room for them and gives them to the worker with the fewest.
struct Acceptor {
    socket: TcpListener,
    admission: Arc<Admission>,
    doors: Vec<worker::Door>,
    fullness: Fullness,
    stop: CancellationToken,
}

impl Acceptor {
    /// Until the listener stops.
    ///
    /// # Errors
    /// If the socket is no good any more, or a worker thread has ended.
    async fn run(mut self) -> anyhow::Result<()> {
        let stop = self.stop.clone();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = self.fullness.is_over() => continue,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    self.fullness.accepts();
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return Ok(()),
                        admitted = self.admit(stream, peer) => admitted?,
                    }
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) if is_for_good(&error) => {
                    return Err(error).context("its socket no longer accepts connections");
                }
                Err(error) => {
                    self.fullness.cannot_accept(&error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn admit(&mut self, stream: TcpStream, peer: SocketAddr) -> anyhow::Result<()> {
        let source = Source::of(peer.ip());
        let ticket = loop {
            let freed = self.admission.freed();
            if let Some(ticket) = self.admission.enter(source) {
                break ticket;
            }
            self.fullness.is_full();
            self.admission.make_room();
            // Nobody may be there who could make room: all are being answered. Then the kernel holds further connections.
            let _late = tokio::time::timeout(ROOM_PATIENCE, freed).await;
        };
        // The worker's runtime takes it over.
        let Ok(stream) = stream.into_std() else { return Ok(()) };
        let door = &self.doors[ticket.worker()];
        door.send(Accepted { stream, peer, ticket }).map_err(|_| anyhow!("a worker thread has ended"))
    }
}

/// Whether only the connection that was about to be accepted is gone.
fn concerns_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Whether asking again is in vain: the socket is not one that listens. Anything else, such as want of descriptors or memory, may pass.
fn is_for_good(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| [Errno::INVAL, Errno::BADF, Errno::NOTSOCK, Errno::OPNOTSUPP].contains(&errno))
}
