//! One registration, from departure to its end: *sent* on disk → call → ledger → verdict → poll → assignment on disk.
//!
//! Invariants:
//! - The ledger's slot and the *sent* mark are durable in one commit before the call; the answer's time goes to disk with the next commit.
//! - A record that is no longer at this departure's place (blocked, moved, deleted meanwhile) is left alone; the answer is dropped.
//! - However a call ends, its slot is settled exactly once and the place is finished or back in line exactly once.
//! - What a call's end is evidence of is decided in [`crate::upstream::evidence`] alone, and acted upon in `trouble` alone.
//!
//! Here: departure, the call, and what follows from the answer. The rest: `poll`, `lookup` (an outcome nobody told us), `back` (another
//! try from the same place), `ends` (assigned or refused), `trouble` (calls fail, or go through again), `durable` (how the record is
//! edited).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::dispatch::{Connection, Dispatcher, count};
use super::{ChangeError, Gateway, about};
use crate::attestation;
use crate::ids::{OperationId, RegistrationId};
use crate::line::lane::JobKind;
use crate::line::{Admission, Departure, Holding};
use crate::place::Place;
use crate::record::{Record, Stage};
use crate::store::Write;
use crate::upstream::evidence::{Blame, Evidence};
use crate::upstream::verdict::{Call, Named, RefusalWords, Verdict, judge};
use crate::upstream::{Answer, CallResult, Caller, DpsError, LastLook, NoAnswer, Said, Upstream};
use rate_control::ledger::{SlotId, SlotRecord};
use rate_control::time::{Mono, Now, StoredMoment};

mod back;
mod durable;
mod ends;
mod lookup;
mod poll;
mod trouble;

/// After "another registration of this device is running" (409203): 1 to 3 s, as the SDKs' own tests do.
const REQUEUE_WAIT_MIN: Duration = Duration::from_secs(1);
const REQUEUE_WAIT_SPREAD: Duration = Duration::from_secs(2);

/// Until a device is tried again whose earlier registration, from a place it was moved away from, is still on the wire.
const OTHER_CALL_WAIT: Duration = Duration::from_secs(1);

/// A proof that is good for this much longer than we made it is one by another clock.
const TOKEN_TOLERANCE: Duration = Duration::from_secs(60);

/// The first polls after a start are spread over this time at least.
const RESUME_SPREAD_MIN: Duration = Duration::from_secs(5);

/// The record is not at this departure's place any more, or cannot go from there.
enum NotGoing {
    /// Somebody else decided about the device.
    Elsewhere,
    /// An operator blocked the device since its last registration.
    Blocked,
    /// What time it is at DPS is not known, so nothing can be signed.
    NoTime,
    /// It cannot be proven to DPS.
    Refused(RefusalWords),
}

/// A call that may leave now.
struct Ready {
    caller: Caller,
    payload: Option<serde_json::Value>,
    repeated: bool,
    /// When the registration before this one was sent.
    sent_before: Option<StoredMoment>,
}

/// What the ledger on disk must still hear of a call that ended.
#[derive(Debug, Default)]
struct Settled {
    /// When the call was sent, if it spends a registration.
    spent_at: Option<Mono>,
    write: Option<Write>,
    /// A slot that nothing was sent under. It is free for others only after that is on disk: a late deletion must not hit theirs.
    free_after: Option<SlotId>,
}

/// What DPS called an answer that gave no result, if that may be held against the device: not what somebody else answered, and not that a
/// proof of ours was not believed.
fn no_result(answer: &Answer, evidence: Evidence) -> Option<Named> {
    let not_believed = matches!(answer.said, Said::Error(DpsError { http_status: 401, .. }));
    (evidence != Evidence::Against(Blame::Path) && !not_believed).then(|| Named::of(answer))
}

/// What an answer shows of the quota.
fn admission(said: &Said) -> Admission {
    match said {
        Said::Error(DpsError { http_status: 429, .. }) => Admission::Throttled,
        Said::Progress(_) => Admission::Admitted,
        // DPS has judged the device.
        Said::Error(DpsError { http_status: ..500, error_code: Some(_), .. }) => Admission::Admitted,
        Said::Error(_) | Said::Unreadable { .. } | Said::Foreign { .. } => Admission::Unclear,
    }
}

/// One registration under way.
struct Attempt {
    gateway: Arc<Gateway>,
    dispatcher: Arc<Dispatcher>,
    id: RegistrationId,
    place: Place,
}

/// A device has a registration on the wire as long as this lives.
struct OnTheWire {
    gateway: Arc<Gateway>,
    id: RegistrationId,
}

impl OnTheWire {
    /// `None` if it has one already.
    fn begin(gateway: &Arc<Gateway>, id: &RegistrationId) -> Option<Self> {
        let begun = gateway.on_the_wire.lock().insert(id.clone());
        begun.then(|| Self { gateway: Arc::clone(gateway), id: id.clone() })
    }
}

impl Drop for OnTheWire {
    fn drop(&mut self) {
        self.gateway.on_the_wire.lock().remove(&self.id);
    }
}

impl Gateway {
    /// Carries a departure out, to its end.
    pub(super) async fn carry_out(
        self: Arc<Self>,
        dispatcher: Arc<Dispatcher>,
        departure: Departure,
        connection: Connection,
    ) {
        let attempt = Attempt { gateway: self, dispatcher, id: departure.id.clone(), place: departure.place };
        match departure.job {
            JobKind::Register => attempt.register(departure, connection).await,
            JobKind::Lookup => Box::pin(attempt.look_up(departure, connection)).await,
        }
    }

    /// Goes on polling a registration that an earlier process had begun; not all of them at once.
    pub(super) async fn resume(
        self: Arc<Self>,
        dispatcher: Arc<Dispatcher>,
        id: RegistrationId,
        place: Place,
        operation_id: OperationId,
    ) {
        let spread = self.settings().registration.poll_interval.max(RESUME_SPREAD_MIN);
        let first_wait = self.spread(spread);
        about::operation(&operation_id);
        let attempt = Attempt { gateway: self, dispatcher, id, place };
        attempt.poll(operation_id, first_wait).await;
    }
}

impl Attempt {
    fn now(&self) -> Now {
        self.gateway.now()
    }

    fn upstream(&self) -> Arc<dyn Upstream> {
        Arc::clone(&self.dispatcher.upstream.read())
    }

    /// Whether the record is still where this attempt began.
    fn is_mine(&self, record: &Record) -> bool {
        record
            .pending
            .as_ref()
            .is_some_and(|pending| pending.instance == self.dispatcher.name && pending.place == self.place)
    }

    async fn register(self, departure: Departure, connection: Connection) {
        let Some(on_the_wire) = OnTheWire::begin(&self.gateway, &self.id) else {
            self.dispatcher.line.lock().never_left(departure.slot);
            return self.come_back(departure.job, self.now().mono.after(OTHER_CALL_WAIT));
        };
        let ready = match self.mark_sent(&departure).await {
            Ok(ready) => ready,
            Err(error) => {
                drop((connection, on_the_wire));
                return self.not_going(&departure, error).await;
            }
        };
        tracing::debug!("registration sent");
        let (sent, last_look) = (self.now().mono, self.last_look(Call::Register, &departure, ready.repeated));
        let result = self.upstream().register(&ready.caller, ready.payload.as_ref(), &last_look).await;
        drop((connection, on_the_wire));
        let evidence = self.learn_from(Call::Register, &result);
        let settled = self.settle(&departure, sent, &result, evidence);
        match result {
            Ok(answer) => {
                let verdict = self.judge(Call::Register, &answer, &ready.caller);
                let judged = (verdict, &answer, evidence);
                if let Some((operation_id, wait)) = self.follow(Call::Register, judged, settled).await {
                    self.poll(operation_id, wait).await;
                }
            }
            Err(NoAnswer::Withheld(held)) => self.stay(held, JobKind::Register, ready.sent_before, settled).await,
            Err(NoAnswer::NeverLeft(why) | NoAnswer::NoMeans(why)) => {
                self.unreachable(&why, ready.sent_before, settled).await;
            }
            Err(NoAnswer::Lost(why)) => self.outcome_unknown(&why, lookup::LOOKUP_WAIT, settled).await,
            Err(NoAnswer::OldConnection(why)) => {
                self.outcome_unknown(&why, lookup::OLD_CONNECTION_WAIT, settled).await;
            }
        }
    }

    /// Writes that a registration is about to leave, with its ledger slot.
    async fn mark_sent(&self, departure: &Departure) -> Result<Ready, ChangeError<NotGoing>> {
        let settings = self.gateway.settings();
        let now = self.now();
        let dps_time = self.dispatcher.dps_clock.lock().latest(now);
        let slot =
            self.slot_writes(departure, |boot| SlotRecord { boot, sent: now.mono, answered: None, abandoned: None });
        let edit = |record: &mut Record| {
            let ready = self.prepare(&settings, record, now)?;
            let timeline_max = settings.registration.timeline_max;
            let pending = record.pending.as_mut().ok_or(NotGoing::Elsewhere)?;
            pending.attempts = pending.attempts.saturating_add(1);
            pending.stage = Stage::Sent { time: now.wall, dps_time };
            let number = pending.attempts;
            record.last_sent = Some(StoredMoment::of(now));
            record.note(now.wall, timeline_max, format!("registration {number} sent to {}", self.dispatcher.name));
            Ok(ready)
        };
        self.gateway.change(&self.id, &slot, edit).await.map(|(ready, _)| ready)
    }

    /// Checks that the device may go, and makes its proof.
    fn prepare(&self, settings: &crate::settings::Settings, record: &Record, now: Now) -> Result<Ready, NotGoing> {
        let pending = record.pending.as_ref().filter(|_| self.is_mine(record)).ok_or(NotGoing::Elsewhere)?;
        about::cause(record);
        if record.blocked.is_some() && pending.stage == Stage::Waiting {
            return Err(NotGoing::Blocked);
        }
        let refused = |code, detail: String| {
            NotGoing::Refused(RefusalWords { code, detail, error_code: None, tracking_id: None })
        };
        let enrollment = settings.enrollments.get(&record.enrollment).ok_or_else(|| {
            refused(
                "enrollment-removed",
                format!("the enrollment {} is not in the configuration any more", record.enrollment),
            )
        })?;
        let earliest = self.dispatcher.dps_clock.lock().earliest(now).ok_or(NotGoing::NoTime)?;
        let expires = earliest.after(settings.registration.token_life);
        let caller = attestation::caller(settings, enrollment, record, &self.dispatcher.name, expires)
            .map_err(|error| refused("no-key", error.to_string()))?;
        Ok(Ready {
            caller,
            payload: pending.payload.clone(),
            repeated: pending.attempts > 0,
            sent_before: record.last_sent,
        })
    }

    fn slot_writes(
        &self,
        departure: &Departure,
        record: impl FnOnce(rate_control::time::BootId) -> SlotRecord,
    ) -> Vec<Write> {
        let boot = self.gateway.clock.boot_id();
        departure.slot.map(|slot| self.dispatcher.slot_write(slot, Some(&record(boot)))).into_iter().collect()
    }

    /// Nothing was sent: gives slot and place back.
    async fn not_going(&self, departure: &Departure, error: ChangeError<NotGoing>) {
        self.dispatcher.line.lock().never_left(departure.slot);
        match error {
            ChangeError::Unknown | ChangeError::Refused(NotGoing::Elsewhere) => self.finish(false),
            ChangeError::Refused(NotGoing::NoTime) => self.come_back(departure.job, self.now().mono),
            ChangeError::Refused(NotGoing::Refused(words)) => self.refuse(words, Settled::default()).await,
            ChangeError::Refused(NotGoing::Blocked) => {
                self.edit_durably(Settled::default(), |record| drop(record.drop_pending())).await;
                self.finish(false);
            }
            ChangeError::Store(error) => {
                tracing::debug!(registration_id = %self.id, instance = %self.dispatcher.name, %error, "the sent mark could not be written; nothing was sent");
                let now = self.now().mono;
                self.dispatcher.line.lock().store_failed(now);
                self.come_back(departure.job, now);
            }
        }
    }

    /// Tells the ledger how a call ended, and returns the write that keeps it. Only DPS's own answer tells when DPS has counted the call:
    /// what somebody else answered is no answer.
    fn settle(&self, departure: &Departure, sent: Mono, result: &CallResult, evidence: Evidence) -> Settled {
        let now = self.now().mono;
        let spent_at = departure.slot.map(|_| sent);
        let mut line = self.dispatcher.line.lock();
        match result {
            Ok(answer) if evidence != Evidence::Against(Blame::Path) => {
                let admission = admission(&answer.said);
                line.answered(self.place, departure.slot, sent, admission, now);
                drop(line);
                if admission != Admission::Throttled {
                    // The next one need not wait until this one is assigned.
                    self.dispatcher.bell.notify_one();
                }
                if let Some(date) = answer.date {
                    self.gateway.hear_date(&self.dispatcher, date, sent);
                }
                let write = self
                    .slot_writes(departure, |boot| SlotRecord { boot, sent, answered: Some(now), abandoned: None })
                    .pop();
                Settled { spent_at, write, free_after: None }
            }
            Ok(_) | Err(NoAnswer::Lost(_) | NoAnswer::OldConnection(_)) => {
                line.abandoned(self.place, departure.slot, now);
                drop(line);
                self.dispatcher.bell.notify_one();
                if result.is_err() {
                    count(&self.dispatcher.counts.lost);
                }
                let write = self
                    .slot_writes(departure, |boot| SlotRecord { boot, sent, answered: None, abandoned: Some(now) })
                    .pop();
                Settled { spent_at, write, free_after: None }
            }
            Err(no_answer @ (NoAnswer::NeverLeft(_) | NoAnswer::NoMeans(_) | NoAnswer::Withheld(_))) => {
                drop(line);
                if !matches!(no_answer, NoAnswer::Withheld(_)) {
                    count(&self.dispatcher.counts.unreachable);
                }
                self.nothing_left(departure)
            }
        }
    }

    /// Nothing was sent under the departure's slot.
    fn nothing_left(&self, departure: &Departure) -> Settled {
        let write = departure.slot.map(|slot| self.dispatcher.slot_write(slot, None));
        Settled { write, free_after: departure.slot, ..Settled::default() }
    }

    /// Asked right before each send: writing the mark and connecting take time, in which DPS may have asked us to wait, other calls may
    /// have failed, or the quota been lowered. Counts the call if it may leave.
    fn last_look(&self, call: Call, departure: &Departure, repeated: bool) -> LastLook {
        let (gateway, dispatcher, slot) = (Arc::clone(&self.gateway), Arc::clone(&self.dispatcher), departure.slot);
        // A connection that was closed while idle is replaced, and then asks once more.
        let counted = AtomicBool::new(false);
        LastLook::new(move || {
            let now = gateway.now().mono;
            dispatcher.line.lock().may_send(slot, now).map_err(|held| match held {
                Holding::ThrottledByDps => "DPS throttled the instance before it had left",
                Holding::InstanceFailing => "other calls to the instance failed before it had left",
                _ => "the limit came down before it had left",
            })?;
            if !counted.swap(true, Ordering::Relaxed) {
                let counts = &dispatcher.counts;
                count(if call == Call::Lookup { &counts.lookups } else { &counts.registrations });
                if repeated {
                    count(&counts.repeated);
                }
            }
            Ok(())
        })
    }

    /// What an answer means. That DPS does not believe what had ended by its clock is nothing that a device is to blame for: its clock was
    /// set, or ours stood still.
    fn judge(&self, call: Call, answer: &Answer, caller: &Caller) -> Verdict {
        about::answer(answer);
        let verdict = judge(call, answer);
        let not_believed = matches!(&answer.said, Said::Error(DpsError { http_status: 401, .. }));
        let Some(date) = answer.date.filter(|_| not_believed) else { return verdict };
        let life = self.gateway.settings().registration.token_life;
        if date < caller.expires && caller.expires.since(date) <= life + TOKEN_TOLERANCE {
            return verdict;
        }
        let why = format!(
            "DPS's clock was set to {date}: the proof we sent was good until {}; we sign by its clock now",
            caller.expires
        );
        tracing::warn!(%why, "a proof was refused because of a clock");
        // What is polled goes on being polled; everything else goes again.
        if call == Call::Poll { Verdict::Retry { why } } else { Verdict::Requeue { why } }
    }

    /// Does what an answer means. Returns what is to be polled, and after which wait, if DPS has begun to work on the registration.
    async fn follow(
        &self,
        call: Call,
        (verdict, answer, evidence): (Verdict, &Answer, Evidence),
        settled: Settled,
    ) -> Option<(OperationId, Duration)> {
        tracing::debug!(?call, ?evidence, "DPS answered");
        let no_result = no_result(answer, evidence);
        match verdict {
            Verdict::Assigned(state) => self.assign(state, Named::of(answer), settled).await,
            Verdict::Assigning { operation_id: Some(operation_id) } => {
                return self.assigning(operation_id, answer.retry_after, settled).await;
            }
            Verdict::Assigning { operation_id: None } => {
                self.look_up_later(call, "DPS still works on it", settled).await;
            }
            Verdict::Throttled { retry_after, tracking_id } => {
                self.throttled(call, (retry_after, tracking_id), settled).await;
            }
            // What became of the registration is still unknown: nothing is sent again before that is clear.
            Verdict::Requeue { why } | Verdict::Retry { why } if call == Call::Lookup => {
                self.look_up_later(call, &why, settled).await;
            }
            Verdict::Requeue { why } => {
                let wait = REQUEUE_WAIT_MIN + self.gateway.spread(REQUEUE_WAIT_SPREAD);
                self.go_again(&why, wait, no_result, settled).await;
            }
            Verdict::Retry { why } => self.failed(&why, no_result, settled).await,
            Verdict::Refused(words) => {
                *self.dispatcher.last_result.lock() = Some(self.now().mono);
                self.refuse(words, settled).await;
            }
            Verdict::Unknown { why } => self.look_up_later(call, &why, settled).await,
            Verdict::NotRegistered => {
                self.go_again_in_time("DPS holds no registration of the device", settled).await;
            }
            Verdict::NoLookups => {
                let why = "this DPS has no status lookups, so the device is registered again";
                self.go_again_in_time(why, settled).await;
            }
        }
        None
    }

    async fn assigning(
        &self,
        operation_id: OperationId,
        retry_after: Option<Duration>,
        settled: Settled,
    ) -> Option<(OperationId, Duration)> {
        about::operation(&operation_id);
        let stage = Stage::Assigning { operation_id: operation_id.clone(), time: self.now().wall };
        let what = format!("{} works on it (operation {operation_id})", self.dispatcher.name);
        let moved = self.move_to_stage(stage, &what, settled).await;
        tracing::debug!("DPS works on the registration");
        moved.then(|| (operation_id, self.poll_wait(retry_after)))
    }
}
