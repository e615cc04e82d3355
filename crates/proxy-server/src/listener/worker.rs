//! A worker: one thread with a runtime of its own, on which connections live from their handshake to their end.

use std::net::{SocketAddr, TcpStream as StdStream};
use std::rc::Rc;
use std::thread::JoinHandle;

use anyhow::Context as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::admission::Ticket;
use super::connection::{Connection, Deadline, End};
use super::handshake::Handshakes;
use super::stream::{Stream, Transport};
use super::{END_PATIENCE, Limits, Protocol, Serve};
use crate::metrics::{ConnectionMetrics, DropReason};

/// A connection that has room.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) stream: StdStream,
    pub(super) peer: SocketAddr,
    pub(super) ticket: Ticket,
}

/// Where a worker takes connections. Not bounded by itself: every connection in it has a ticket.
pub(super) type Door = mpsc::UnboundedSender<Accepted>;

/// What all workers of a listener have in common.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) handshakes: Option<Handshakes>,
    pub(super) metrics: ConnectionMetrics,
}

#[derive(Debug)]
pub(super) struct Worker {
    door: Door,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts the thread and waits until it can serve.
    pub(super) async fn start(name: String, shared: Shared, protocol: Protocol) -> anyhow::Result<Self> {
        let (door, accepted) = mpsc::unbounded_channel();
        let (ready, is_ready) = oneshot::channel();
        let run = move || match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
            // What is left when nobody comes any more ends with the runtime.
            Ok(runtime) => runtime.block_on(serve(shared, protocol, accepted, ready)),
            Err(error) => drop(ready.send(Err(error.into()))),
        };
        let thread =
            std::thread::Builder::new().name(name.clone()).spawn(run).with_context(|| format!("thread {name}"))?;
        is_ready.await.with_context(|| format!("thread {name} ended"))??;
        Ok(Self { door, thread })
    }

    pub(super) fn door(&self) -> Door {
        self.door.clone()
    }

    /// Waits until the thread has ended, which it does when all its doors are closed.
    pub(super) fn join(self) {
        drop(self.door);
        // A panic has been reported where it happened.
        let _ended = self.thread.join();
    }
}

async fn serve(
    shared: Shared,
    protocol: Protocol,
    mut accepted: mpsc::UnboundedReceiver<Accepted>,
    ready: oneshot::Sender<anyhow::Result<()>>,
) {
    let serve = match protocol().await {
        Ok(serve) => serve,
        Err(error) => return drop(ready.send(Err(error))),
    };
    if ready.send(Ok(())).is_err() {
        return;
    }
    let shared = Rc::new(shared);
    while let Some(accepted) = accepted.recv().await {
        tokio::task::spawn_local(attend(accepted, Rc::clone(&shared), Rc::clone(&serve)));
    }
}

/// One connection from its handshake to its end.
async fn attend(accepted: Accepted, shared: Rc<Shared>, serve: Serve) {
    let Accepted { stream, peer, ticket } = accepted;
    let limits = shared.limits;
    let handshake = Deadline {
        at: Instant::now() + limits.handshake_timeout,
        reason: Some(DropReason::HandshakeTimeout),
        last_word: b"",
    };
    let deadline = shared.handshakes.is_some().then_some(handshake);
    let connection = Rc::new(Connection::new(peer, limits, ticket, deadline));
    // Answers are small and final: waiting to fill a segment would cost 40 ms with a peer that delays its acknowledgements.
    let Ok(stream) = stream.set_nodelay(true).and_then(|()| TcpStream::from_std(stream)) else { return };
    let transport = match &shared.handshakes {
        None => Transport::Plain(stream),
        // What a handshake needs is large, and given back when it is over.
        Some(handshakes) => match connection.run(Box::pin(handshakes.shake(stream))).await {
            Ok(Ok(stream)) => Transport::Tls(Box::new(stream)),
            Ok(Err(_)) => return shared.metrics.dropped(DropReason::HandshakeFailed),
            Err(End { reason, .. }) => return reason.into_iter().for_each(|reason| shared.metrics.dropped(reason)),
        },
    };
    connection.wait_until(None);
    let stream = Stream::new(transport, Rc::clone(&connection));
    let mut last = stream.handle();
    if let Err(End { reason, last_word }) = connection.run(serve(stream)).await {
        reason.into_iter().for_each(|reason| shared.metrics.dropped(reason));
        if !last_word.is_empty() {
            let saying = async {
                last.write_all(last_word).await?;
                last.shutdown().await
            };
            let _unread = tokio::time::timeout(END_PATIENCE, saying).await;
        }
    }
}
