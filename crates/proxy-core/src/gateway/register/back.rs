//! Back to the place: the device goes again, because DPS throttled or failed, or nothing left this machine.

use std::sync::Arc;
use std::time::Duration;

use super::durable::set_stage;
use super::{Settled, Trip};
use crate::gateway::dispatch::count;
use crate::gateway::tasks::NOTES;
use crate::lane::Errand;
use crate::record::{Record, Stage};
use crate::retry;
use crate::time::StoredMoment;
use crate::upstream::verdict::{Call, RefusalWords, trace};

/// Least wait after DPS throttled us, whatever it asked for.
const THROTTLE_WAIT_MIN: Duration = Duration::from_secs(1);

impl Trip {
    pub(super) async fn throttled(
        &self,
        call: Call,
        (retry_after, tracking_id): (Option<Duration>, Option<String>),
        settled: Settled,
    ) {
        count(&self.dispatcher.counts.throttled);
        let settings = self.gateway.settings();
        let registration = &settings.registration;
        let most = registration.throttle_wait_max.max(THROTTLE_WAIT_MIN);
        if let Some(asked) = retry_after.filter(|&asked| asked > most) {
            tracing::error!(registration_id = %self.id, instance = %self.dispatcher.name, asked_seconds = asked.as_secs(), wait_seconds = most.as_secs(), "DPS asked for a longer wait than registration.throttle_wait_max; the instance is paused for that long only");
        }
        let wait = retry_after
            .unwrap_or_else(|| retry::ceiling(3, registration.backoff_min, registration.backoff_max))
            .clamp(THROTTLE_WAIT_MIN, most);
        tracing::warn!(registration_id = %self.id, instance = %self.dispatcher.name, wait_seconds = wait.as_secs(), "DPS throttled the instance");
        let now = self.now().mono;
        self.dispatcher.line.lock().throttled(settled.spent_at, now.after(wait), now);
        self.gateway.spawn(NOTES, Arc::clone(&self.gateway).keep_pause(Arc::clone(&self.dispatcher)));
        let (stage, errand) = match call {
            Call::Lookup => (None, Errand::Lookup),
            Call::Register | Call::Poll => (Some(Stage::Waiting), Errand::Register),
        };
        let (name, seconds, trace) = (&self.dispatcher.name, wait.as_secs(), trace(tracking_id.as_deref()));
        let what = format!("{name} throttled us for {seconds} s; the place is kept{trace}");
        if self.edit_mine(settled, &what, |record| set_stage(record, stage.clone())).await {
            self.come_back(errand, self.now().mono);
        }
    }

    pub(super) async fn unreachable(&self, why: &str, sent_before: Option<StoredMoment>, settled: Settled) {
        self.pause_instance(why);
        let what = format!("{} cannot be reached: {why}", self.dispatcher.name);
        self.stay(&what, Errand::Register, sent_before, settled).await;
    }

    /// Nothing left: the place is as it was.
    pub(super) async fn stay(&self, what: &str, errand: Errand, sent_before: Option<StoredMoment>, settled: Settled) {
        let undo = |record: &mut Record| {
            if errand == Errand::Register
                && let Some(pending) = &mut record.pending
            {
                pending.stage = Stage::Waiting;
                pending.attempts = pending.attempts.saturating_sub(1);
                record.last_sent = sent_before;
            }
        };
        if self.edit_mine(settled, what, undo).await {
            self.come_back(errand, self.now().mono);
        }
    }

    /// DPS failed. The device goes again after a growing wait, unless it alone keeps failing while others succeed.
    pub(super) async fn failed(&self, why: &str, settled: Settled) {
        self.pause_instance(why);
        let settings = self.gateway.settings();
        let attempts = self.attempts().await;
        let wait = retry::full_jitter(
            attempts,
            settings.registration.backoff_min,
            settings.registration.backoff_max,
            &mut self.gateway.entropy.lock(),
        );
        self.go_again(why, wait, settled).await;
    }

    async fn attempts(&self) -> u32 {
        let record = self.gateway.load(&self.id).await.ok().flatten();
        record.and_then(|versioned| versioned.record.pending).map_or(1, |pending| pending.attempts)
    }

    /// Back to the place, for another registration.
    pub(super) async fn go_again(&self, why: &str, wait: Duration, settled: Settled) {
        let attempts_max = self.gateway.settings().registration.attempts_max;
        let others_succeed = self.dispatcher.line.lock().failures() <= 1;
        if others_succeed && self.attempts().await >= attempts_max {
            let detail = format!("{attempts_max} registrations had no result, while others did: {why}");
            return self
                .refuse(RefusalWords { code: "no-result", detail, error_code: None, tracking_id: None }, settled)
                .await;
        }
        if self.move_to_stage(Stage::Waiting, why, settled).await {
            self.come_back(Errand::Register, self.now().mono.after(wait));
        }
    }
}
