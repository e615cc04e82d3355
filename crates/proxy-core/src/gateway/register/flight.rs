//! Which registrations may still arrive at DPS, of those that were on their way when their device was moved or deleted, or when the process
//! that had sent them died.
//!
//! Invariant: a registration of this process is on its way until its call has ended and that is on disk. One of an earlier process is for as
//! long as the ledger holds its slot, as whoever sent it is gone since this process has the store.

use std::sync::Arc;
use std::time::Duration;

use crate::device::{Command, Flight, Record, Rejected, Sender};
use crate::gateway::dispatch::Dispatcher;
use crate::gateway::{ChangeError, Gateway};
use crate::ids::RegistrationId;
use rate_control::entropy::hash64;
use rate_control::failpoint::Failpoint;
use rate_control::ledger::{self, SlotId};
use rate_control::time::Mono;

/// Until a device is tried again whose earlier registration, from a place it was moved away from, is still on the wire.
pub(super) const OTHER_CALL_WAIT: Duration = Duration::from_secs(1);

/// Who sends.
#[derive(Debug)]
pub(in crate::gateway) struct Flights {
    /// This process.
    pub(super) sender: Sender,
    /// From when on no earlier process sends.
    begun: Mono,
}

impl Flights {
    /// For a process that has the store for itself from `begun` on. Its name is made of `drawn`, a number drawn at random.
    pub(in crate::gateway) fn begin(begun: Mono, drawn: u64) -> Self {
        Self { sender: Sender(hash64(&drawn.to_be_bytes())), begun }
    }
}

/// A registration that may be on its way.
pub(in crate::gateway) struct OnItsWay<'r> {
    pub(in crate::gateway) flight: &'r Flight,
    /// Until when; `None` if that is known only when its call has ended.
    pub(in crate::gateway) until: Option<Mono>,
}

impl Gateway {
    /// The registration of a device that may be on its way at `now`, if there is one.
    pub(in crate::gateway) fn on_its_way<'r>(&self, record: &'r Record, now: Mono) -> Option<OnItsWay<'r>> {
        let flight = record.flight().filter(|_| !Failpoint::FlightForgotten.is_on())?;
        if flight.sender == self.flights.sender {
            return Some(OnItsWay { flight, until: None });
        }
        let longest = ledger::abandoned_hold(self.settings().registration.upstream_max_delay);
        let latest = self.flights.begun.after(longest);
        // The slot tells better where the process before the last one had sent it, and may be another call's by now.
        let until = match (self.dispatcher(&flight.instance), flight.slot) {
            (Some(dispatcher), Some(slot)) => dispatcher.line.lock().held_until(slot)?.min(latest),
            _ => latest,
        };
        (until > now).then_some(OnItsWay { flight, until: Some(until) })
    }

    /// Whoever looked after the call that held `slot` is gone: it has ended. Goes on until that is on disk, or the service stops.
    pub(in crate::gateway) async fn land_deserted(
        self: &Arc<Self>,
        dispatcher: &Dispatcher,
        id: &RegistrationId,
        slot: Option<SlotId>,
    ) {
        let mine = |flight: &&Flight| {
            flight.sender == self.flights.sender && flight.instance == dispatcher.name && flight.slot == slot
        };
        let mut failures = 0;
        loop {
            let landed = self.change(id, self.now(), &[], |draft| {
                let call = draft.record().flight().filter(mine).cloned().ok_or(Rejected::NoFlight)?;
                draft.apply(Command::Land { call })
            });
            let Err(ChangeError::Store(_)) = landed.await else { return };
            failures += 1;
            if !self.wait_for_the_store(failures).await {
                return;
            }
        }
    }
}
