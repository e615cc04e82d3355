//! One log line when a listener becomes full or cannot accept, and one when that is over, however many connections that concerns.

use std::time::Duration;

use tokio::time::Instant;

/// A listener is not full any more when nobody had to make room for so long.
const CALM_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Fullness {
    name: &'static str,
    connections_max: usize,
    full_at: Option<Instant>,
    refused: bool,
}

impl Fullness {
    pub(super) fn new(name: &'static str, connections_max: usize) -> Self {
        Self { name, connections_max, full_at: None, refused: false }
    }

    /// A connection found no room.
    pub(super) fn is_full(&mut self) {
        if self.full_at.replace(Instant::now()).is_none() {
            tracing::warn!(
                plane = self.name,
                connections_max = self.connections_max,
                "all connections of this listener are in use: each new one closes the one that has been idle for longest"
            );
        }
    }

    /// Ready, after having said so, once it is not full any more; never if it is not full. Cancel-safe.
    pub(super) async fn is_over(&mut self) {
        let Some(full_at) = self.full_at else { return std::future::pending().await };
        tokio::time::sleep_until(full_at + CALM_AFTER).await;
        self.full_at = None;
        tracing::info!(plane = self.name, "this listener has free connections again");
    }

    /// The system refused to accept.
    pub(super) fn cannot_accept(&mut self, error: &std::io::Error) {
        if !std::mem::replace(&mut self.refused, true) {
            tracing::error!(
                plane = self.name, %error,
                "the system does not accept connections for this listener; retrying ten times a second"
            );
        }
    }

    /// A connection was accepted.
    pub(super) fn accepts(&mut self) {
        if std::mem::replace(&mut self.refused, false) {
            tracing::info!(plane = self.name, "this listener accepts connections again");
        }
    }
}
