//! The connections of the listeners, as they are counted.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::PlaneLabels;
use crate::plane::Plane;

/// Why a connection was closed that might have gone on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Its TLS handshake failed.
    HandshakeFailed,
    /// Its TLS handshake took too long.
    HandshakeTimeout,
    /// A request took too long to arrive.
    RequestTimeout,
    /// Its peer did not read.
    WriteTimeout,
    /// It had waited for its peer longest when room was needed.
    OldestIdle,
    /// The same, among those of a source above its share.
    SourceShare,
    /// It was not done when the drain was over.
    DrainTimeout,
}

impl DropReason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::HandshakeFailed,
        Self::HandshakeTimeout,
        Self::RequestTimeout,
        Self::WriteTimeout,
        Self::OldestIdle,
        Self::SourceShare,
        Self::DrainTimeout,
    ];

    /// Its name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HandshakeFailed => "handshake-failed",
            Self::HandshakeTimeout => "handshake-timeout",
            Self::RequestTimeout => "request-timeout",
            Self::WriteTimeout => "write-timeout",
            Self::OldestIdle => "oldest-idle",
            Self::SourceShare => "source-share",
            Self::DrainTimeout => "drain-timeout",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DroppedLabels {
    plane: &'static str,
    reason: &'static str,
}

/// Those of all listeners.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: Family<PlaneLabels, Gauge>,
    accepted: Family<PlaneLabels, Counter>,
    dropped: Family<DroppedLabels, Counter>,
}

impl Connections {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let connections = Self::default();
        registry.register("connections_open", "Connections that are open", connections.open.clone());
        registry.register("connections_accepted", "Connections accepted", connections.accepted.clone());
        let help = "Connections closed that might have gone on, by plane and reason";
        registry.register("connections_dropped", help, connections.dropped.clone());
        connections
    }

    /// Those of one listener. Every reason to drop one is there from the start, at zero.
    pub(super) fn of(&self, plane: Plane) -> ConnectionMetrics {
        let plane = plane.as_str();
        for reason in DropReason::ALL {
            drop(self.dropped.get_or_create(&DroppedLabels { plane, reason: reason.as_str() }));
        }
        ConnectionMetrics {
            plane,
            open: self.open.get_or_create(&PlaneLabels { plane }).clone(),
            accepted: self.accepted.get_or_create(&PlaneLabels { plane }).clone(),
            dropped: self.dropped.clone(),
        }
    }
}

/// The connections of one listener.
#[derive(Debug, Clone)]
pub struct ConnectionMetrics {
    plane: &'static str,
    open: Gauge,
    accepted: Counter,
    dropped: Family<DroppedLabels, Counter>,
}

impl ConnectionMetrics {
    /// A connection was accepted and has room.
    pub fn opened(&self) {
        self.open.inc();
        self.accepted.inc();
    }

    /// A connection is closed.
    pub fn closed(&self) {
        self.open.dec();
    }

    /// A connection was closed that might have gone on.
    pub fn dropped(&self, reason: DropReason) {
        self.dropped.get_or_create(&DroppedLabels { plane: self.plane, reason: reason.as_str() }).inc();
    }
}
