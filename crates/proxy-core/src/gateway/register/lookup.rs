//! Looking up: DPS is asked what it holds, because the outcome of a registration is unknown.

use std::time::Duration;

use super::{Attempt, Settled, no_result};
use crate::gateway::dispatch::Connection;
use crate::line::Departure;
use crate::line::lane::JobKind;
use crate::record::{Record, Stage};
use crate::upstream::evidence::Evidence;
use crate::upstream::verdict::{Call, Verdict};
use crate::upstream::{Answer, CallResult, Caller, NoAnswer, RegistrationState, Said, Status};
use rate_control::ledger::SlotRecord;
use rate_control::time::Now;

/// Least wait before looking up what became of a call without a clear answer: DPS needs a moment to have recorded it.
pub(super) const LOOKUP_WAIT: Duration = Duration::from_secs(2);

/// The same after an old connection broke: most likely DPS has never heard of the call.
pub(super) const OLD_CONNECTION_WAIT: Duration = Duration::from_secs(1);

impl Attempt {
    pub(super) async fn outcome_unknown(&self, why: &str, wait: Duration, settled: Settled) {
        tracing::debug!(why, "the outcome of a registration is unknown");
        self.look_up_after(wait, why, settled).await;
    }

    /// Keeps the *sent* mark and asks DPS what became of the registration, after `call` did not tell.
    pub(super) async fn look_up_later(&self, call: Call, why: &str, settled: Settled) {
        let wait = if call == Call::Lookup { self.next_lookup_wait().await } else { LOOKUP_WAIT };
        self.look_up_after(wait, why, settled).await;
    }

    async fn look_up_after(&self, wait: Duration, why: &str, settled: Settled) {
        let what = format!("outcome unknown ({why}); asking {} what it holds", self.dispatcher.name);
        if self.edit_mine(settled, &what, |_| {}).await {
            self.come_back(JobKind::Lookup, self.now().mono.after(wait));
        }
    }

    /// As long as the registration is old already, so that the waits double: a lookup may cost as much of the quota as a registration.
    /// While calls fail, the circuit sees to that, and needs somebody who tries.
    async fn next_lookup_wait(&self) -> Duration {
        let record = self.gateway.load(&self.id).await.ok().flatten();
        let sent = record.and_then(|versioned| versioned.record.last_sent);
        let age = sent.map_or(LOOKUP_WAIT, |sent| sent.age(self.now()));
        let failing = self.dispatcher.line.lock().failures() > 0;
        let registration = &self.gateway.settings().registration;
        let most = if failing { registration.backoff_max } else { registration.poll_interval_max };
        age.clamp(LOOKUP_WAIT, most.max(LOOKUP_WAIT))
    }

    pub(super) async fn look_up(self, departure: Departure, connection: Connection) {
        let settings = self.gateway.settings();
        let now = self.now();
        let slot =
            self.slot_writes(&departure, |boot| SlotRecord { boot, sent: now.mono, answered: None, abandoned: None });
        let marked = self.gateway.change(&self.id, &slot, |record| {
            self.prepare(&settings, record, now).map(|ready| (ready, record.clone()))
        });
        let (ready, before) = match marked.await {
            Ok((found, _)) => found,
            Err(error) => {
                drop(connection);
                return self.not_going(&departure, error).await;
            }
        };
        let (sent, last_look) = (self.now().mono, self.last_look(Call::Lookup, &departure, false));
        let result = self.upstream().lookup(&ready.caller, &last_look).await;
        drop(connection);
        let evidence = self.learn_from(Call::Lookup, &result);
        let settled = self.settle(&departure, sent, &result, evidence);
        self.follow_lookup((result, evidence), &ready.caller, &before, settled).await;
    }

    async fn follow_lookup(
        self,
        (result, evidence): (CallResult, Evidence),
        caller: &Caller,
        before: &Record,
        settled: Settled,
    ) {
        let now = self.now();
        match result {
            Ok(answer) => {
                let no_result = no_result(&answer, evidence);
                match self.judge(Call::Lookup, &answer, caller) {
                    Verdict::Assigned(state) if !self.is_news(before, &state) => {
                        self.go_again_in_time("DPS holds an older registration only", settled).await;
                    }
                    // The failure of an earlier registration says nothing about this one, whatever it was.
                    _ if failure(&answer).is_some_and(|state| !is_after_send(before, state)) => {
                        self.go_again_in_time("DPS holds an older failure only", settled).await;
                    }
                    Verdict::Retry { why } if self.lookups_are_over(before, now) => {
                        self.failed(&why, no_result, settled).await;
                    }
                    Verdict::Assigning { .. } | Verdict::Requeue { .. } | Verdict::Unknown { .. }
                        if self.lookups_are_over(before, now) =>
                    {
                        self.go_again("DPS gave no result in time", Duration::ZERO, no_result, settled).await;
                    }
                    verdict => {
                        let judged = (verdict, &answer, evidence);
                        if let Some((operation_id, wait)) = self.follow(Call::Lookup, judged, settled).await {
                            self.poll(operation_id, wait).await;
                        }
                    }
                }
            }
            Err(NoAnswer::Withheld(held)) => self.stay(held, JobKind::Lookup, None, settled).await,
            Err(no_answer) => self.look_up_later(Call::Lookup, &no_answer.to_string(), settled).await,
        }
    }

    /// Whether a looked-up registration is younger than our send: else it may be what DPS held before.
    fn is_news(&self, before: &Record, found: &RegistrationState) -> bool {
        let Some(updated) = found.last_updated else { return false };
        let known = before.assignment.as_ref().filter(|known| known.instance == self.dispatcher.name);
        if let Some((known, known_updated)) = known.and_then(|known| Some((known, known.dps_last_updated?))) {
            return updated > known_updated && found.etag != known.dps_etag;
        }
        is_after_send(before, found)
    }

    fn lookups_are_over(&self, before: &Record, now: Now) -> bool {
        let assigning_max = self.gateway.settings().registration.assigning_max;
        before.last_sent.is_none_or(|sent| sent.age(now) > assigning_max)
    }
}

/// The state of a registration that DPS ended without a hub.
fn failure(answer: &Answer) -> Option<&RegistrationState> {
    match &answer.said {
        Said::Progress(progress) if matches!(progress.status, Status::Failed | Status::Disabled) => {
            Some(&progress.state)
        }
        Said::Progress(_) | Said::Error(_) | Said::Unreadable { .. } | Said::Foreign { .. } => None,
    }
}

/// Whether DPS changed `found` after our send, by its own clock.
fn is_after_send(before: &Record, found: &RegistrationState) -> bool {
    let Some(updated) = found.last_updated else { return false };
    match before.pending.as_ref().map(|pending| &pending.stage) {
        // Before DPS was ever heard of, its clock is unknown, and ours says nothing about it.
        Some(Stage::Sent { dps_time, .. }) => dps_time.is_some_and(|sent| updated >= sent),
        Some(Stage::Assigning { .. } | Stage::Waiting) | None => false,
    }
}
