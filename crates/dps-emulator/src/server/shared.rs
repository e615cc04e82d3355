//! What the device listener, the control listener and the owner share: the instance under its lock, and the clock it goes by.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;

use crate::device_api::{Dps, Reply, Request};
use crate::now::Now;

/// What the device listener, the control listener and the owner share.
pub(crate) struct Shared {
    pub(super) dps: Mutex<Dps>,
    pub(super) started: Instant,
    pub(super) addr: SocketAddr,
    pub(super) scheme: &'static str,
    /// Connections of workers that are still about to end are reset meanwhile.
    pub(super) paused: AtomicBool,
    /// By how much its clock is ahead of the machine's, in seconds.
    pub(super) clock_offset_s: AtomicI64,
}

impl Shared {
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// Does something with the instance at a moment taken under its lock, so that time never goes back.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Dps, Now) -> T) -> T {
        let mut dps = self.dps.lock();
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let offset_ms = self.clock_offset_s.load(Ordering::Relaxed).saturating_mul(1000);
        let now = Now {
            monotonic_ns: u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX),
            unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX).saturating_add_signed(offset_ms),
        };
        act(&mut dps, now)
    }

    /// The reply, and what the emulator's clock read.
    pub(crate) fn handle(&self, request: &Request<'_>) -> (Reply, u64) {
        self.with(|dps, now| (dps.handle(request, now), now.unix_ms))
    }

    pub(crate) fn set_clock_offset_s(&self, offset: i64) {
        self.clock_offset_s.store(offset, Ordering::Relaxed);
    }
}
