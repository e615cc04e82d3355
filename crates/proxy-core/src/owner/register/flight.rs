//! Which registrations may still arrive at DPS, of those that were on their way when their device was moved or deleted, or when the process
//! that had sent them died.
//!
//! Invariant: a registration of this process is on its way until its call has ended and that is on disk. One of an earlier process is for as
//! long as the ledger holds its slot, as whoever sent it is gone since this process has the store.

use super::Attempts;
use super::durable::wait_for_the_store;
use crate::device::{Command, Flight, Rejected};
use crate::ids::RegistrationId;
use crate::owner::dispatcher::Dispatcher;
use crate::records::ChangeError;
use rate_control::ledger::SlotId;

impl Attempts {
    /// Whoever looked after the call that held `slot` is gone: it has ended. Goes on until that is on disk, or the service stops.
    pub(in crate::owner) async fn land_deserted(
        &self,
        dispatcher: &Dispatcher,
        id: &RegistrationId,
        slot: Option<SlotId>,
    ) {
        let mine = |flight: &&Flight| {
            flight.sender == self.base.sender && flight.instance == dispatcher.name && flight.slot == slot
        };
        let mut failures = 0;
        loop {
            let landed = self.records.change(id, self.base.now(), &[], |draft| {
                let call = draft.record().flight().filter(mine).cloned().ok_or(Rejected::NoFlight)?;
                draft.apply(Command::Land { call })
            });
            let Err(ChangeError::Store(_)) = landed.await else { return };
            failures += 1;
            if !wait_for_the_store(&self.base, failures).await {
                return;
            }
        }
    }
}
