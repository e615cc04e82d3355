//! Looking up: DPS is asked what it holds, because the outcome of a registration is unknown.

use std::time::Duration;

use super::{Settled, Trip};
use crate::gateway::dispatch::{Connection, count};
use crate::lane::Errand;
use crate::ledger::SlotRecord;
use crate::line::Departure;
use crate::record::{Record, Stage};
use crate::time::Now;
use crate::upstream::verdict::{Call, Verdict};
use crate::upstream::{Answer, NoAnswer, RegistrationState, Said, Status};

/// Least wait before looking up what became of a call without a clear answer: DPS needs a moment to have recorded it.
const LOOKUP_WAIT: Duration = Duration::from_secs(2);

impl Trip {
    pub(super) async fn outcome_unknown(&self, why: &str, settled: Settled) {
        tracing::debug!(why, "the outcome of a registration is unknown");
        self.pause_instance(why);
        self.look_up_later(Call::Register, why, settled).await;
    }

    /// Keeps the *sent* mark and asks DPS what became of the registration, after `call` did not tell.
    pub(super) async fn look_up_later(&self, call: Call, why: &str, settled: Settled) {
        let wait = if call == Call::Lookup { self.next_lookup_wait().await } else { LOOKUP_WAIT };
        let what = format!("outcome unknown ({why}); asking {} what it holds", self.dispatcher.name);
        if self.edit_mine(settled, &what, |_| {}).await {
            self.come_back(Errand::Lookup, self.now().mono.after(wait));
        }
    }

    /// As long as the registration is old already, so that the waits double: a lookup may cost as much of the quota as a registration.
    async fn next_lookup_wait(&self) -> Duration {
        let record = self.gateway.load(&self.id).await.ok().flatten();
        let sent = record.and_then(|versioned| versioned.record.last_sent);
        let age = sent.map_or(LOOKUP_WAIT, |sent| sent.age(self.now()));
        age.clamp(LOOKUP_WAIT, self.gateway.settings().registration.poll_interval_max.max(LOOKUP_WAIT))
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
        if let Err(held) = self.may_send(&departure) {
            drop(connection);
            let settled = self.nothing_left(&departure);
            return self.stay(held, Errand::Lookup, None, settled).await;
        }
        count(&self.dispatcher.counts.lookups);
        let sent = self.now().mono;
        let result = self.upstream().lookup(&ready.caller).await;
        drop(connection);
        let settled = self.settle(&departure, sent, &result);
        match result {
            Ok(answer) => match self.judge(Call::Lookup, &answer, &ready.caller) {
                Verdict::Assigned(state) if !self.is_news(&before, &state) => {
                    self.go_again("DPS holds an older registration only", Duration::ZERO, settled).await;
                }
                // The failure of an earlier registration says nothing about this one, whatever it was.
                _ if failure(&answer).is_some_and(|state| !is_after_send(&before, state)) => {
                    self.go_again("DPS holds an older failure only", Duration::ZERO, settled).await;
                }
                Verdict::Retry { why } if self.lookups_are_over(&before, now) => self.failed(&why, settled).await,
                Verdict::Assigning { .. } | Verdict::Requeue { .. } | Verdict::Unknown { .. }
                    if self.lookups_are_over(&before, now) =>
                {
                    self.go_again("DPS gave no result in time", Duration::ZERO, settled).await;
                }
                verdict => {
                    if let Some((operation_id, wait)) = self.follow(Call::Lookup, verdict, &answer, settled).await {
                        self.poll(operation_id, wait).await;
                    }
                }
            },
            Err(NoAnswer::NeverLeft(why) | NoAnswer::Lost(why)) => {
                self.pause_instance(&why);
                self.look_up_later(Call::Lookup, &why, settled).await;
            }
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
        Said::Progress(_) | Said::Error(_) | Said::Unreadable { .. } => None,
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
