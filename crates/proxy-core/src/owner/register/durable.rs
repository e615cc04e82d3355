//! How an attempt takes a step and leaves the line: durably, and only while the record is still at the attempt's place.

use std::time::Duration;

use super::{Attempt, Settled};
use crate::base::{Base, StoreError};
use crate::device::{Command, Step};
use crate::ids::RegistrationId;
use crate::line::lane::JobKind;
use crate::owner::dispatcher::count;
use crate::records::ChangeError;
use crate::store::{CommitError, Expect, Write};
use rate_control::ledger::{SendId, SlotRecord};
use rate_control::retry;
use rate_control::time::Mono;

/// Until a device is tried again whose earlier registration, from a place it was moved away from, is still on the wire.
const OTHER_CALL_WAIT: Duration = Duration::from_secs(1);

/// The device ID that a step gives belongs to another registration. Nothing was written.
pub(super) struct DeviceIdTaken {
    pub(super) holder: RegistrationId,
    /// What the ledger must still hear.
    pub(super) settled: Settled,
}

/// Waits before the store is tried again that failed so many times in a row. False if the service stops.
pub(super) async fn wait_for_the_store(base: &Base, failures: u32) -> bool {
    let wait = retry::ceiling(failures, Duration::from_millis(200), Duration::from_secs(10));
    tokio::select! {
        biased;
        () = base.stopping.cancelled() => false,
        () = tokio::time::sleep(wait) => true,
    }
}

impl Attempt {
    /// The step as a command for the record: it is rejected if the record is not at this attempt's place any more.
    pub(super) fn command(&self, step: Step) -> Command {
        Command::Attempt { instance: self.dispatcher.name.clone(), place: self.place, step }
    }

    /// Takes a step, durably. False if the attempt is over: the record is elsewhere, or the service stops.
    pub(super) async fn take_step_or_finish(&self, settled: Settled, step: Step) -> bool {
        let taken = self.take_step(settled, step).await;
        if !taken {
            self.finish(false);
        }
        taken
    }

    /// Takes a step while the record is at this attempt's place, and does not give up while the store cannot write: what DPS said must not
    /// be lost to a full disk. False if the record is elsewhere or the service stops.
    pub(super) async fn take_step(&self, settled: Settled, step: Step) -> bool {
        matches!(self.try_step(settled, step).await, Ok(true))
    }

    /// The same, of a step that may give the device an ID.
    pub(super) async fn try_step(&self, settled: Settled, step: Step) -> Result<bool, Box<DeviceIdTaken>> {
        let free_after = settled.free_after;
        let taken = self.keep_trying(settled, step).await;
        self.dispatcher.line.lock().never_left(free_after);
        taken
    }

    /// Waits until the registration that is on its way has ended, or until then.
    pub(super) async fn wait_for_flight(&self, job: JobKind, until: Option<Mono>) {
        let now = self.now();
        let Some(until) = until else { return self.come_back(job, now.mono.after(OTHER_CALL_WAIT)) };
        let why = format!(
            "a registration that an earlier process sent may still arrive at DPS: no other one leaves before {}",
            now.wall_at(until)
        );
        if self.take_step_or_finish(Settled::default(), Step::Event { why }).await {
            self.come_back(job, until);
        }
    }

    async fn keep_trying(&self, settled: Settled, step: Step) -> Result<bool, Box<DeviceIdTaken>> {
        let Settled { write, landed, send, .. } = settled;
        // The slot's end goes with the first try only: by a later one the slot may be another send's. Without it, the slot is held
        // longer after a restart, which is safe.
        let mut more: Vec<Write> = write.iter().cloned().collect();
        // The timeline says when it happened, not when the store could write again.
        let (now, command) = (self.now(), self.command(step));
        let mut failures = 0;
        loop {
            let edited = self.records.change(&self.id, now, &more, |draft| {
                // Wherever the device is by now, its call has ended.
                let lands = landed.clone().is_some_and(|call| draft.apply(Command::Land { call }).is_ok());
                let taken = draft.apply(command.clone());
                if lands { Ok(taken.is_ok()) } else { taken.map(|()| true) }
            });
            let error = match edited.await {
                Ok((taken, _)) => return Ok(taken),
                Err(ChangeError::DeviceIdTaken(holder)) => {
                    let settled = Settled { write: more.pop(), landed, send, ..Settled::default() };
                    return Err(Box::new(DeviceIdTaken { holder, settled }));
                }
                Err(ChangeError::Unknown | ChangeError::Refused(_)) => {
                    if !more.is_empty() && matches!(self.base.commit(more).await, Err(CommitError::Fenced)) {
                        self.settle_deposed(write, send).await;
                    }
                    return Ok(false);
                }
                // The next owner asks DPS what became of the device. That the send has ended, it can learn only here.
                Err(ChangeError::Store(StoreError::Commit(CommitError::Fenced))) => {
                    self.settle_deposed(write, send).await;
                    return Ok(false);
                }
                Err(ChangeError::Store(error)) => error,
            };
            failures += 1;
            more.clear();
            // A store in trouble is told once, by whoever watches it.
            tracing::debug!(registration_id = %self.id, instance = %self.dispatcher.name, %error, "an answer of DPS could not be written yet");
            if !self.wait_for_the_store(failures).await {
                count(&self.base.unwritten);
                return Ok(false);
            }
        }
    }

    /// Writes the end of a send of this owner, whose lease another gateway has taken: if the slot still holds that very send.
    async fn settle_deposed(&self, write: Option<Write>, send: SendId) {
        let Some(write) = write else { return };
        let mut failures = 0;
        while let Err(error) = self.try_to_settle(&write, send).await {
            failures += 1;
            tracing::debug!(registration_id = %self.id, instance = %self.dispatcher.name, %error, "the end of a call could not be written for the next owner of the lines yet");
            if !self.wait_for_the_store(failures).await {
                return;
            }
        }
    }

    async fn try_to_settle(&self, write: &Write, send: SendId) -> Result<(), StoreError> {
        let Some(stored) = self.base.store.get(&write.key).await? else { return Ok(()) };
        let mine = serde_json::from_slice(&stored.value).is_ok_and(|slot: SlotRecord| slot.send == send);
        if !mine {
            return Ok(());
        }
        let write = Write { expect: Expect::Version(stored.version), ..write.clone() };
        match self.base.commit_deposed(write).await {
            // Whoever has the slot by now is another send.
            Ok(()) | Err(CommitError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn wait_for_the_store(&self, failures: u32) -> bool {
        wait_for_the_store(&self.base, failures).await
    }

    pub(super) fn come_back(&self, job: JobKind, not_before: Mono) {
        let now = self.now().mono;
        self.dispatcher.line.lock().come_back(self.place, job, not_before, now);
        self.dispatcher.bell.notify_one();
    }

    pub(super) fn finish(&self, assigned: bool) {
        let now = self.now().mono;
        self.dispatcher.line.lock().finish(self.place, assigned, now);
        self.dispatcher.bell.notify_one();
    }
}
