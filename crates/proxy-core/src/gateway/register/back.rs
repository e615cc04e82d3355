//! Back to the place: the device goes again, because DPS throttled or failed, or nothing left this machine.

use std::sync::Arc;
use std::time::Duration;

use super::durable::set_stage;
use super::{Attempt, Settled};
use crate::gateway::Gateway;
use crate::gateway::dispatch::count;
use crate::gateway::task_names::NOTES;
use crate::line::lane::JobKind;
use crate::record::{Pending, Record, Stage};
use crate::upstream::verdict::{Call, Named, RefusalWords, trace};
use rate_control::retry;
use rate_control::time::StoredMoment;

/// Least wait after DPS throttled us, whatever it asked for.
const THROTTLE_WAIT_MIN: Duration = Duration::from_secs(1);

impl Gateway {
    /// How long nobody of an instance goes after DPS throttled a call: as it asked, within our bounds.
    pub(in crate::gateway) fn throttle_wait(&self, retry_after: Option<Duration>) -> Duration {
        let settings = self.settings();
        let registration = &settings.registration;
        let most = registration.throttle_wait_max.max(THROTTLE_WAIT_MIN);
        retry_after
            .unwrap_or_else(|| retry::ceiling(3, registration.backoff_min, registration.backoff_max))
            .clamp(THROTTLE_WAIT_MIN, most)
    }
}

impl Attempt {
    pub(super) async fn throttled(
        &self,
        call: Call,
        (retry_after, tracking_id): (Option<Duration>, Option<String>),
        settled: Settled,
    ) {
        count(&self.dispatcher.counts.throttled);
        let wait = self.gateway.throttle_wait(retry_after);
        if let Some(asked) = retry_after.filter(|&asked| asked > wait) {
            tracing::error!(registration_id = %self.id, instance = %self.dispatcher.name, asked_seconds = asked.as_secs(), wait_seconds = wait.as_secs(), "DPS asked for a longer wait than registration.throttle_wait_max; the instance is paused for that long only");
        }
        tracing::warn!(registration_id = %self.id, instance = %self.dispatcher.name, wait_seconds = wait.as_secs(), "DPS throttled the instance");
        let now = self.now().mono;
        self.dispatcher.line.lock().throttled(settled.spent_at, now.after(wait), now);
        self.gateway.spawn(NOTES, Arc::clone(&self.gateway).keep_pause(Arc::clone(&self.dispatcher)));
        let (stage, job) = match call {
            Call::Lookup => (None, JobKind::Lookup),
            Call::Register | Call::Poll => (Some(Stage::Waiting), JobKind::Register),
        };
        let (name, seconds, trace) = (&self.dispatcher.name, wait.as_secs(), trace(tracking_id.as_deref()));
        let what = format!("{name} throttled us for {seconds} s; the place is kept{trace}");
        if self.edit_mine(settled, &what, |record| set_stage(record, stage.clone())).await {
            self.come_back(job, self.now().mono);
        }
    }

    pub(super) async fn unreachable(&self, why: &str, sent_before: Option<StoredMoment>, settled: Settled) {
        tracing::debug!(why, "the instance cannot be reached");
        let what = format!("{} cannot be reached: {why}", self.dispatcher.name);
        self.stay(&what, JobKind::Register, sent_before, settled).await;
    }

    /// Nothing left: the place is as it was.
    pub(super) async fn stay(&self, what: &str, job: JobKind, sent_before: Option<StoredMoment>, settled: Settled) {
        let undo = |record: &mut Record| {
            if job == JobKind::Register
                && let Some(pending) = &mut record.pending
            {
                pending.stage = Stage::Waiting;
                pending.attempts = pending.attempts.saturating_sub(1);
                record.last_sent = sent_before;
            }
        };
        if self.edit_mine(settled, what, undo).await {
            self.come_back(job, self.now().mono);
        }
    }

    /// The call failed. The device goes again after a growing wait. `no_result`: what DPS called the failure, if it was DPS that spoke.
    pub(super) async fn failed(&self, why: &str, no_result: Option<Named>, settled: Settled) {
        let wait = self.growing_wait(self.own(|pending| pending.attempts).await);
        self.go_again(why, wait, no_result, settled).await;
    }

    fn growing_wait(&self, attempts: u32) -> Duration {
        let settings = self.gateway.settings();
        let (min, max) = (settings.registration.backoff_min, settings.registration.backoff_max);
        retry::full_jitter(attempts, min, max, &mut self.gateway.entropy.lock())
    }

    /// A number of the device's place; 0 if it has none any more.
    async fn own(&self, read: impl Fn(&Pending) -> u32) -> u32 {
        let record = self.gateway.load(&self.id).await.ok().flatten();
        record.and_then(|versioned| versioned.record.pending).map_or(0, |pending| read(&pending))
    }

    /// Back to the place, for another registration: at once after a first one that got lost, and after a growing wait if that goes on.
    pub(super) async fn go_again_in_time(&self, why: &str, settled: Settled) {
        let attempts = self.own(|pending| pending.attempts).await;
        let wait = if attempts > 1 { self.growing_wait(attempts) } else { Duration::ZERO };
        self.go_again(why, wait, None, settled).await;
    }

    /// Back to the place, for another registration. `no_result`: DPS itself gave none, and called that so. A device that this happens to
    /// again and again while others get a result is refused; what is not DPS's doing is never held against it.
    pub(super) async fn go_again(&self, why: &str, wait: Duration, no_result: Option<Named>, settled: Settled) {
        let held_against = no_result.filter(|_| self.others_get_results());
        let fruitless = self.own(|pending| pending.fruitless).await + u32::from(held_against.is_some());
        let attempts_max = self.gateway.settings().registration.attempts_max;
        if let Some(named) = held_against.filter(|_| fruitless >= attempts_max) {
            let detail = format!("{attempts_max} registrations had no result, while others did: {why}");
            return self.refuse(RefusalWords::of_ours("no-result", detail, named), settled).await;
        }
        let back = |record: &mut Record| {
            set_stage(record, Some(Stage::Waiting));
            if let Some(pending) = &mut record.pending {
                pending.fruitless = fruitless;
            }
        };
        if self.edit_mine(settled, why, back).await {
            self.come_back(JobKind::Register, self.now().mono.after(wait));
        }
    }

    /// Whether DPS came to results about devices not long ago, and calls to it do not fail.
    fn others_get_results(&self) -> bool {
        let within = self.gateway.settings().registration.assigning_max;
        let last = *self.dispatcher.last_result.lock();
        let now = self.now().mono;
        self.dispatcher.line.lock().failures() <= 1 && last.is_some_and(|last| now.since(last) <= within)
    }
}
