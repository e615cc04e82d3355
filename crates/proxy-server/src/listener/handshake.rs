//! TLS handshakes: a slot while we compute, none while we wait for the peer.
//!
//! The costly part, key exchange and signature, follows a whole ClientHello and ends when our answer to it is written. Whoever says
//! nothing, half of a ClientHello, or nothing after our answer, has no slot meanwhile; only the time limit of its connection runs.

use std::io;
use std::sync::Arc;

use futures_util::future::poll_immediate;
use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// The handshakes of one listener, over all its workers.
#[derive(Debug, Clone)]
pub(super) struct Handshakes {
    config: Arc<ServerConfig>,
    slots: Arc<Semaphore>,
    unread_max_bytes: usize,
}

impl Handshakes {
    pub(super) fn new(config: Arc<ServerConfig>, slots: Arc<Semaphore>, unread_max_bytes: usize) -> Self {
        Self { config, slots, unread_max_bytes }
    }

    /// Shakes hands. The caller bounds the time.
    pub(super) async fn shake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let slot = self.slots.acquire().await.map_err(io::Error::other)?;
        let unread_max_bytes = self.unread_max_bytes;
        let config = Arc::clone(&self.config);
        let mut rest = begun.into_stream_with(config, |connection| connection.set_buffer_limit(Some(unread_max_bytes)));
        // Writes our answer, which an empty send buffer takes at once; then it is the peer's turn.
        let done = poll_immediate(&mut rest).await;
        drop(slot);
        match done {
            Some(done) => done,
            None => rest.await,
        }
    }
}
