//! How an attempt edits its record and leaves the line: durably, and only while the record is still at the attempt's place.

use std::time::Duration;

use super::{Attempt, Settled};
use crate::gateway::ChangeError;
use crate::gateway::dispatch::count;
use crate::line::lane::JobKind;
use crate::record::{Record, Stage};
use crate::store::Write;
use rate_control::retry;
use rate_control::time::Mono;

impl Attempt {
    pub(super) async fn move_to_stage(&self, stage: Stage, what: &str, settled: Settled) -> bool {
        self.edit_mine(settled, what, |record| set_stage(record, Some(stage.clone()))).await
    }

    /// Edits the record with an event, durably. False if the attempt is over: the record is elsewhere, or the service stops.
    pub(super) async fn edit_mine(&self, settled: Settled, what: &str, edit: impl Fn(&mut Record)) -> bool {
        let timeline_max = self.gateway.settings().registration.timeline_max;
        let now = self.now().wall;
        let edited = self
            .edit_durably(settled, |record| {
                edit(record);
                record.note(now, timeline_max, what);
            })
            .await;
        if !edited {
            self.finish(false);
        }
        edited
    }

    /// Edits the record while it is at this attempt's place, and does not give up while the store cannot write: what DPS said must not
    /// be lost to a full disk. False if the record is elsewhere or the service stops.
    pub(super) async fn edit_durably(&self, settled: Settled, edit: impl Fn(&mut Record)) -> bool {
        let edited = self.keep_editing(settled.write, edit).await;
        self.dispatcher.line.lock().never_left(settled.free_after);
        edited
    }

    async fn keep_editing(&self, slot_write: Option<Write>, edit: impl Fn(&mut Record)) -> bool {
        // The slot's end goes with the first try only: by a later one the slot may be another send's. Without it, the slot is held
        // longer after a restart, which is safe.
        let mut more: Vec<Write> = slot_write.into_iter().collect();
        let mut failures = 0;
        loop {
            let edited = self
                .gateway
                .change(&self.id, &more, |record| {
                    if !self.is_mine(record) {
                        return Err(());
                    }
                    edit(record);
                    Ok(())
                })
                .await;
            let error = match edited {
                Ok(_) => return true,
                Err(ChangeError::Unknown | ChangeError::Refused(())) => {
                    if !more.is_empty() {
                        let _ = self.gateway.store.commit(more).await;
                    }
                    return false;
                }
                Err(ChangeError::Store(error)) => error,
            };
            failures += 1;
            more.clear();
            // A store in trouble is told once, by whoever watches it.
            tracing::debug!(registration_id = %self.id, instance = %self.dispatcher.name, %error, "what DPS answered could not be written yet");
            if !self.wait_for_the_store(failures).await {
                count(&self.gateway.unwritten);
                return false;
            }
        }
    }

    pub(super) async fn wait_for_the_store(&self, failures: u32) -> bool {
        let wait = retry::ceiling(failures, Duration::from_millis(200), Duration::from_secs(10));
        tokio::select! {
            biased;
            () = self.gateway.stopping.cancelled() => false,
            () = tokio::time::sleep(wait) => true,
        }
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

pub(super) fn set_stage(record: &mut Record, stage: Option<Stage>) {
    if let (Some(pending), Some(stage)) = (&mut record.pending, stage) {
        pending.stage = stage;
    }
}
