//! Devices that wait on an open request for their record to change.
//!
//! Invariant: at most `parked_max` wait at once; one more is not parked but answered at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::ids::RegistrationId;

#[derive(Debug, Default)]
struct Parked {
    devices: BTreeMap<RegistrationId, (usize, Arc<Notify>)>,
    requests: usize,
}

/// The open requests.
#[derive(Debug)]
pub struct Waiters {
    parked: Mutex<Parked>,
    parked_max: usize,
}

/// One parked request; leaves when dropped.
#[derive(Debug)]
pub struct Waiter<'a> {
    waiters: &'a Waiters,
    id: RegistrationId,
    /// Woken at each change of the record.
    pub changed: Arc<Notify>,
}

impl Waiters {
    /// Room for `parked_max` open requests.
    #[must_use]
    pub fn new(parked_max: usize) -> Self {
        Self { parked: Mutex::default(), parked_max }
    }

    /// Parks a request for `id`; `None` if there is no room.
    #[must_use]
    pub fn park(&self, id: &RegistrationId) -> Option<Waiter<'_>> {
        let mut parked = self.parked.lock();
        if parked.requests >= self.parked_max {
            return None;
        }
        parked.requests += 1;
        let (requests, changed) = parked.devices.entry(id.clone()).or_default();
        *requests += 1;
        let changed = Arc::clone(changed);
        Some(Waiter { waiters: self, id: id.clone(), changed })
    }

    /// The record of `id` has changed.
    pub fn wake(&self, id: &RegistrationId) {
        if let Some((_, changed)) = self.parked.lock().devices.get(id) {
            changed.notify_waiters();
        }
    }

    /// Wakes everybody, as the service is about to stop.
    pub fn wake_all(&self) {
        for (_, changed) in self.parked.lock().devices.values() {
            changed.notify_waiters();
        }
    }

    /// Requests parked now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parked.lock().requests
    }

    /// Whether none is parked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut parked = self.waiters.parked.lock();
        parked.requests -= 1;
        if let Some((requests, _)) = parked.devices.get_mut(&self.id) {
            *requests -= 1;
            if *requests == 0 {
                parked.devices.remove(&self.id);
            }
        }
    }
}
