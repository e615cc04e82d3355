//! One registration, from departure to its end: *sent* on disk → call → ledger → verdict → poll → assignment on disk.
//!
//! Invariants:
//! - The ledger's slot and the *sent* mark are durable in one commit before the call; the answer's time goes to disk with the next commit.
//! - A record that is no longer at this departure's place (blocked, moved, deleted meanwhile) is left alone; the answer is dropped. All that
//!   it hears is that the call has ended.
//! - However a call ends, its slot is settled exactly once and the place is finished or back in line exactly once.
//! - What a call's end is evidence of is decided in [`crate::upstream::evidence`] alone, and acted upon in `trouble` alone.
//!
//! What follows from the end of a call is decided in [`crate::registration`]; this is the one driver that carries it out. Here: departure,
//! the call, and doing what was decided. The rest: `poll`, `flight` (what may still be on its way),
//! `trouble` (calls fail, or go through again), `durable` (how the record changes, and how the line is left).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use self::durable::DeviceIdTaken;
use super::clock::Clocks;
use super::dispatcher::{Connection, Dispatcher, count};
use super::lines::Lines;
use super::recovered_limits::keep_pause;
use crate::attestation::Signer;
use crate::base::task_names::NOTES;
use crate::base::{Base, about};
use crate::device::{Decision, Draft, Flight, Record, Refusal, Rejected, Stage, Step, Unknown};
use crate::ids::{OperationId, RegistrationId};
use crate::line::lane::JobKind;
use crate::line::{Admission, Departure, Holding};
use crate::place::Place;
use crate::records::{ChangeError, Records};
use crate::registration::{self, Next, Situation};
use crate::settings::UpstreamAttestation;
use crate::store::Write;
use crate::upstream::evidence::{Blame, Evidence};
use crate::upstream::verdict::{Call, Named, RefusalWords};
use crate::upstream::{CallResult, Caller, DpsError, LastLook, NoAnswer, Said, Upstream};
use rate_control::entropy::Entropy;
use rate_control::ledger::{SendId, SlotId, SlotRecord};
use rate_control::time::{BootId, Mono, Now, StoredMoment, WallTime};

mod durable;
mod flight;
mod poll;
mod trouble;

/// A call that could not be signed any more when it was to leave, in words for its timeline.
const TIME_UNKNOWN: &str = "DPS's clock was no longer known when the call was about to be sent";

/// The first polls after a start are spread over this time at least.
const RESUME_SPREAD_MIN: Duration = Duration::from_secs(5);

/// The record is not at this departure's place any more, or cannot go from there.
enum NotGoing {
    /// Somebody else decided about the device.
    Elsewhere,
    /// An operator blocked the device since its last registration.
    Blocked,
    /// A registration from this place has left already, and its outcome is not known.
    UnderWay,
    /// A registration from another place, or of an earlier process, may be on its way: until then, if that is known.
    InFlight(Option<Mono>),
    /// What time it is at DPS is not known, so nothing can be signed.
    NoTime,
    /// It cannot be proven to DPS.
    Refused(RefusalWords),
}

impl From<Rejected> for NotGoing {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::UnderWay => Self::UnderWay,
            Rejected::InFlight => Self::InFlight(None),
            _ => Self::Elsewhere,
        }
    }
}

/// A call that may leave.
struct Ready {
    signer: Signer,
    /// When its proof ends, by DPS's clock.
    expires: WallTime,
    /// The device as it is when the call leaves.
    record: Record,
    /// Names it.
    send: SendId,
    /// When the registration before this one was sent.
    sent_before: Option<StoredMoment>,
}

/// A call that leaves now: signed, with the client that carries it.
struct Leaving {
    upstream: Arc<dyn Upstream>,
    caller: Caller,
    /// Whatever leaves later could arrive when the proof has ended.
    not_after: Mono,
}

/// What the ledger on disk must still hear of a call that ended.
#[derive(Debug, Default)]
struct Settled {
    /// When the call was sent, if it spends a registration.
    spent_at: Option<Mono>,
    write: Option<Write>,
    /// A slot that nothing was sent under. It is free for others only after that is on disk: a late deletion must not hit theirs.
    free_after: Option<SlotId>,
    /// The registration that is not on its way any more.
    landed: Option<Flight>,
    /// The call that ended.
    send: SendId,
}

/// The slot of a send that has no end yet.
const fn armed(boot: BootId, sent: Mono, send: SendId) -> SlotRecord {
    SlotRecord { boot, sent, answered: None, abandoned: None, send }
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

/// Carries registrations out.
#[derive(Debug, Clone)]
pub(super) struct Attempts {
    base: Arc<Base>,
    records: Arc<Records>,
    clocks: Clocks,
    lines: Arc<Lines>,
}

/// One registration under way.
struct Attempt {
    base: Arc<Base>,
    records: Arc<Records>,
    clocks: Clocks,
    lines: Arc<Lines>,
    dispatcher: Arc<Dispatcher>,
    id: RegistrationId,
    place: Place,
}

impl Attempts {
    pub(super) const fn new(base: Arc<Base>, records: Arc<Records>, clocks: Clocks, lines: Arc<Lines>) -> Self {
        Self { base, records, clocks, lines }
    }

    fn attempt(self, dispatcher: Arc<Dispatcher>, id: RegistrationId, place: Place) -> Attempt {
        let Self { base, records, clocks, lines } = self;
        Attempt { base, records, clocks, lines, dispatcher, id, place }
    }

    /// Carries a departure out, to its end.
    pub(super) async fn carry_out(self, dispatcher: Arc<Dispatcher>, departure: Departure, connection: Connection) {
        let attempt = self.attempt(dispatcher, departure.id.clone(), departure.place);
        // Boxed, so that thousands that are polled for seconds each hold no more than what polling needs.
        let begun = match departure.job {
            JobKind::Register => Box::pin(attempt.register(departure, connection)).await,
            JobKind::Lookup => Box::pin(attempt.look_up(departure, connection)).await,
        };
        if let Some((operation_id, wait)) = begun {
            attempt.poll(operation_id, wait).await;
        }
    }

    /// Goes on polling a registration that an earlier process had begun; not all of them at once.
    pub(super) async fn resume(
        self,
        dispatcher: Arc<Dispatcher>,
        id: RegistrationId,
        place: Place,
        operation_id: OperationId,
    ) {
        let spread = self.base.settings().registration.poll_interval.max(RESUME_SPREAD_MIN);
        let first_wait = self.base.spread(spread);
        about::operation(&operation_id);
        self.attempt(dispatcher, id, place).poll(operation_id, first_wait).await;
    }
}

impl Attempt {
    fn now(&self) -> Now {
        self.base.now()
    }

    /// Whether the record is still where this attempt began.
    fn is_mine(&self, record: &Record) -> bool {
        record.stands_at(&self.dispatcher.name, self.place)
    }

    /// Registers the device. Returns what is to be polled, and after which wait, if DPS has begun to work on it.
    async fn register(&self, departure: Departure, connection: Connection) -> Option<(OperationId, Duration)> {
        let mut ready = match self.mark_sent(&departure).await {
            Ok(ready) => ready,
            Err(error) => {
                drop(connection);
                self.not_going(&departure, error).await;
                return None;
            }
        };
        tracing::debug!("registration sent");
        let (sent, leaving) = (self.now().mono, self.sign(&mut ready));
        let pending = ready.record.pending();
        let repeated = pending.is_some_and(|pending| pending.attempts > 1);
        let payload = pending.and_then(|pending| pending.payload.as_ref());
        let result = match leaving {
            Ok(leaving) => {
                let last_look = self.last_look(Call::Register, &departure, repeated, &leaving);
                leaving.upstream.register(&leaving.caller, payload, &last_look).await
            }
            Err(held) => Err(held),
        };
        drop(connection);
        self.ended(Call::Register, &departure, &ready, sent, result).await
    }

    /// Asks DPS what became of a registration that nobody told the outcome of. Returns the same.
    async fn look_up(&self, departure: Departure, connection: Connection) -> Option<(OperationId, Duration)> {
        let (settings, now) = (self.base.settings(), self.now());
        let send = self.base.next_send();
        let slot = self.slot_writes(&departure, |boot| armed(boot, now.mono, send));
        let marked = self
            .records
            .change(&self.id, now, &slot, |draft: &mut Draft| self.prepare(&settings, draft.record(), send, now));
        let mut ready = match marked.await {
            Ok((ready, _)) => ready,
            Err(error) => {
                drop(connection);
                self.not_going(&departure, error).await;
                return None;
            }
        };
        let (sent, leaving) = (self.now().mono, self.sign(&mut ready));
        let result = match leaving {
            Ok(leaving) => {
                let last_look = self.last_look(Call::Lookup, &departure, false, &leaving);
                leaving.upstream.lookup(&leaving.caller, &last_look).await
            }
            Err(held) => Err(held),
        };
        drop(connection);
        self.ended(Call::Lookup, &departure, &ready, sent, result).await
    }

    /// A call that had a slot of the quota has ended. Returns what is to be polled.
    async fn ended(
        &self,
        call: Call,
        departure: &Departure,
        ready: &Ready,
        sent: Mono,
        result: CallResult,
    ) -> Option<(OperationId, Duration)> {
        let evidence = self.learn_from(call, &result);
        let landed = ready.record.flight().filter(|_| call == Call::Register).cloned();
        let settled =
            Settled { landed, send: ready.send, ..self.settle(departure, ready.send, sent, &result, evidence) };
        let next = self.decide(call, ready, &result, evidence, 0);
        self.follow(next, settled).await
    }

    /// Writes that a registration is about to leave, with its ledger slot.
    async fn mark_sent(&self, departure: &Departure) -> Result<Ready, ChangeError<NotGoing>> {
        let settings = self.base.settings();
        let now = self.now();
        let dps_time = self.dispatcher.dps_clock.lock().latest(now);
        let send = self.base.next_send();
        let slot = self.slot_writes(departure, |boot| armed(boot, now.mono, send));
        let leaves = |draft: &mut Draft| {
            let ready = self.prepare(&settings, draft.record(), send, now)?;
            let over = draft.record().flight().cloned();
            if let Some(other) = over.as_ref().and_then(|flight| self.lines.until_landed(flight, now.mono)) {
                return Err(NotGoing::InFlight(other.until));
            }
            let sender = self.base.sender;
            draft.apply(self.command(Step::Send { dps_time, slot: departure.slot, sender, over }))?;
            Ok(Ready { record: draft.record().clone(), ..ready })
        };
        self.records.change(&self.id, now, &slot, leaves).await.map(|(ready, _)| ready)
    }

    /// Checks that the device may go, and can be proven to DPS.
    fn prepare(
        &self,
        settings: &crate::settings::Settings,
        record: &Record,
        send: SendId,
        now: Now,
    ) -> Result<Ready, NotGoing> {
        let pending = record.pending().filter(|_| self.is_mine(record)).ok_or(NotGoing::Elsewhere)?;
        about::cause(record);
        if record.blocked().is_some() && pending.stage == Stage::Waiting {
            return Err(NotGoing::Blocked);
        }
        let refused = |code, detail: String| {
            NotGoing::Refused(RefusalWords { code, detail, error_code: None, tracking_id: None })
        };
        let enrollment = settings.enrollments.get(record.enrollment()).ok_or_else(|| {
            refused(
                "enrollment-removed",
                format!("the enrollment {} is no longer in the configuration", record.enrollment()),
            )
        })?;
        let earliest = self.dispatcher.dps_clock.lock().earliest(now).ok_or(NotGoing::NoTime)?;
        let expires = earliest.after(settings.registration.token_life);
        let signer = Signer::of(settings, enrollment, record, &self.dispatcher.name)
            .map_err(|error| refused("no-key", error.to_string()))?;
        Ok(Ready { signer, expires, record: record.clone(), send, sent_before: record.last_sent() })
    }

    /// Signs a call that leaves now, by what DPS's clock reads now: after whatever had to be waited for, be it the disk or a connection
    /// that is free. Fails if what DPS's clock reads is not known any more.
    fn sign(&self, ready: &mut Ready) -> Result<Leaving, NoAnswer> {
        let (now, settings) = (self.now(), self.base.settings());
        let registration = &settings.registration;
        let earliest = self.dispatcher.dps_clock.lock().earliest(now).ok_or(NoAnswer::Withheld(TIME_UNKNOWN))?;
        ready.expires = earliest.after(registration.token_life);
        let on_the_way = registration.upstream_max_delay;
        Ok(Leaving {
            upstream: Arc::clone(&self.dispatcher.upstream.read()),
            caller: ready.signer.sign(ready.expires),
            not_after: now.mono.after(registration.token_life.saturating_sub(on_the_way)),
        })
    }

    fn slot_writes(&self, departure: &Departure, record: impl FnOnce(BootId) -> SlotRecord) -> Vec<Write> {
        let boot = self.base.clock.boot_id();
        departure.slot.map(|slot| self.dispatcher.slot_write(slot, Some(&record(boot)))).into_iter().collect()
    }

    /// Nothing was sent: gives slot and place back.
    async fn not_going(&self, departure: &Departure, error: ChangeError<NotGoing>) {
        self.dispatcher.line.lock().never_left(departure.slot);
        match error {
            ChangeError::Unknown | ChangeError::Refused(NotGoing::Elsewhere) | ChangeError::DeviceIdTaken(_) => {
                self.finish(false);
            }
            ChangeError::Refused(NotGoing::NoTime) => self.come_back(departure.job, self.now().mono),
            ChangeError::Refused(NotGoing::InFlight(until)) => self.wait_for_flight(departure.job, until).await,
            // Never a second one beside it: DPS is asked what became of the first.
            ChangeError::Refused(NotGoing::UnderWay) => self.come_back(JobKind::Lookup, self.now().mono),
            ChangeError::Refused(NotGoing::Refused(words)) => self.refuse(words, Settled::default()).await,
            ChangeError::Refused(NotGoing::Blocked) => {
                self.take_step(Settled::default(), Step::GiveUp).await;
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
    fn settle(
        &self,
        departure: &Departure,
        send: SendId,
        sent: Mono,
        result: &CallResult,
        evidence: Evidence,
    ) -> Settled {
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
                    self.clocks.hear_date(&self.dispatcher, date, sent);
                }
                let ended = |boot| SlotRecord { answered: Some(now), ..armed(boot, sent, send) };
                let write = self.slot_writes(departure, ended).pop();
                Settled { spent_at, write, ..Settled::default() }
            }
            Ok(_) | Err(NoAnswer::Lost(_) | NoAnswer::OldConnection(_)) => {
                line.abandoned(self.place, departure.slot, now);
                drop(line);
                self.dispatcher.bell.notify_one();
                if result.is_err() {
                    count(&self.dispatcher.counts.lost);
                }
                let ended = |boot| SlotRecord { abandoned: Some(now), ..armed(boot, sent, send) };
                let write = self.slot_writes(departure, ended).pop();
                Settled { spent_at, write, ..Settled::default() }
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
    /// have failed, the quota been lowered, the device been moved or retired, the instance been given another endpoint, or this machine stood
    /// still for so long that the token ends. Counts the call if it may leave.
    fn last_look(&self, call: Call, departure: &Departure, repeated: bool, leaving: &Leaving) -> LastLook {
        let (base, dispatcher, slot) = (Arc::clone(&self.base), Arc::clone(&self.dispatcher), departure.slot);
        let (upstream, not_after, place) = (Arc::clone(&leaving.upstream), leaving.not_after, self.place);
        // A connection that was closed while idle is replaced, and then asks once more.
        let counted = AtomicBool::new(false);
        LastLook::new(move || {
            if base.is_stopping() {
                return Err("the service stopped before the call was sent");
            }
            if !Arc::ptr_eq(&upstream, &dispatcher.upstream.read()) {
                return Err("the settings of the instance changed before the call was sent");
            }
            let now = base.now().mono;
            if now > not_after {
                return Err("its token could have expired on the way, because the call waited too long to be sent");
            }
            if !base.ownership.may_leave(now) {
                return Err(
                    "the lease of the lines was not renewed, or another gateway took it, before the call was sent",
                );
            }
            let mut line = dispatcher.line.lock();
            if line.has_left(place) {
                return Err("the device was moved or retired before the call was sent");
            }
            line.may_send(slot, now).map_err(|held| match held {
                Holding::ThrottledByDps => "DPS throttled the instance before the call was sent",
                Holding::InstanceFailing => "other calls to the instance failed before the call was sent",
                _ => "the limit was lowered before the call was sent",
            })?;
            drop(line);
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

    /// What follows from the end of a call. `failed_polls` polls of the registration in a row had failed before.
    fn decide(&self, call: Call, ready: &Ready, result: &CallResult, evidence: Evidence, failed_polls: u32) -> Next {
        match result {
            Ok(answer) => {
                about::answer(answer);
                tracing::debug!(?call, ?evidence, "DPS answered");
            }
            Err(no_answer) => tracing::debug!(?call, ?evidence, %no_answer, "DPS did not answer"),
        }
        self.with_situation(ready, failed_polls, |situation, entropy| {
            registration::decide(situation, call, result, evidence, entropy)
        })
    }

    fn with_situation(
        &self,
        ready: &Ready,
        failed_polls: u32,
        decide: impl FnOnce(&Situation<'_>, &mut Entropy) -> Next,
    ) -> Next {
        let settings = self.base.settings();
        let instance = &self.dispatcher.name;
        let enrollment = settings.enrollments.get(ready.record.enrollment());
        let situation = Situation {
            record: &ready.record,
            instance,
            hubs: settings.instances.get(instance).map(|instance| &instance.hubs),
            in_group: enrollment.is_some_and(|found| matches!(found.upstream, UpstreamAttestation::Group { .. })),
            rules: &settings.registration,
            sent_before: ready.sent_before,
            expires: ready.expires,
            others_get_results: self.others_get_results(),
            instance_fails: self.dispatcher.line.lock().failures() > 0,
            failed_polls,
            now: self.now(),
        };
        decide(&situation, &mut self.base.entropy.lock())
    }

    /// Whether DPS came to results about devices not long ago, and calls to it do not fail.
    fn others_get_results(&self) -> bool {
        let within = self.base.settings().registration.assigning_max;
        let last = *self.dispatcher.last_result.lock();
        let now = self.now().mono;
        self.dispatcher.line.lock().failures() <= 1 && last.is_some_and(|last| now.since(last) <= within)
    }

    /// Does what was decided. Returns what is to be polled, and after which wait, if DPS has begun to work on the registration.
    async fn follow(&self, next: Next, settled: Settled) -> Option<(OperationId, Duration)> {
        match next {
            Next::Poll { operation_id, wait } => {
                about::operation(&operation_id);
                let step = Step::Assigning { operation_id: operation_id.clone() };
                let taken = self.take_step_or_finish(settled, step).await;
                tracing::debug!("DPS works on the registration");
                return taken.then_some((operation_id, wait));
            }
            // Only a poll is answered so, and polling has its own loop.
            Next::PollAgain { wait, .. } => self.come_back(JobKind::Lookup, self.now().mono.after(wait)),
            Next::Return { step, job, wait } => {
                if self.take_step_or_finish(settled, step).await {
                    self.come_back(job, self.now().mono.after(wait));
                }
            }
            Next::Throttled { step, job, wait, asked } => {
                self.throttled(wait, asked, settled.spent_at);
                if self.take_step_or_finish(settled, step).await {
                    self.come_back(job, self.now().mono);
                }
            }
            Next::Assign { decision, named } => self.assign(*decision, named, settled).await,
            Next::Refuse { words, by_dps } => {
                if by_dps {
                    *self.dispatcher.last_result.lock() = Some(self.now().mono);
                }
                self.refuse(words, settled).await;
            }
        }
        None
    }

    /// Nobody of the instance goes for a while.
    fn throttled(&self, wait: Duration, asked: Option<Duration>, spent_at: Option<Mono>) {
        count(&self.dispatcher.counts.throttled);
        if let Some(asked) = asked.filter(|&asked| asked > wait) {
            tracing::error!(registration_id = %self.id, instance = %self.dispatcher.name, asked_seconds = asked.as_secs(), wait_seconds = wait.as_secs(), "DPS asked for a longer wait than registration.throttle_wait_max; the instance is paused for that long only");
        }
        tracing::warn!(registration_id = %self.id, instance = %self.dispatcher.name, wait_seconds = wait.as_secs(), "DPS throttled the instance");
        let now = self.now().mono;
        self.dispatcher.line.lock().throttled(spent_at, now.after(wait), now);
        self.base.spawn(NOTES, keep_pause(Arc::clone(&self.base), Arc::clone(&self.dispatcher)));
    }

    /// The assignment goes to disk, then everybody hears of it.
    async fn assign(&self, decision: Decision, named: Named, settled: Settled) {
        let (hub, device_id) = (decision.hub.clone(), decision.device_id.clone());
        let stored = match self.try_step(settled, Step::Assign(Box::new(decision))).await {
            Ok(stored) => stored,
            Err(taken) => {
                let DeviceIdTaken { holder, settled } = *taken;
                tracing::error!(registration_id = %self.id, instance = %self.dispatcher.name, %device_id, other = %holder, "two registrations claim one device ID");
                let words = registration::device_id_taken(&device_id, &holder, named);
                return self.refuse(words, settled).await;
            }
        };
        if stored {
            count(&self.dispatcher.counts.assigned);
            *self.dispatcher.last_result.lock() = Some(self.now().mono);
            tracing::info!(registration_id = %self.id, instance = %self.dispatcher.name, assigned_hub = %hub, "assigned");
        }
        self.finish(stored);
    }

    /// The device leaves the line, and is told why until the refusal expires.
    async fn refuse(&self, words: RefusalWords, settled: Settled) {
        let now = self.now();
        tracing::warn!(registration_id = %self.id, instance = %self.dispatcher.name, code = words.code, detail = words.detail,
            error_code = words.error_code, tracking_id = words.tracking_id, "registration refused");
        let refusal = Refusal {
            code: words.code.to_owned(),
            detail: words.detail,
            error_code: words.error_code,
            tracking_id: words.tracking_id,
            instance: self.dispatcher.name.clone(),
            at: StoredMoment::of(now),
            until: now.wall.after(self.base.settings().registration.refusal_ttl),
            settings_mark: self.base.settings_mark(),
            unknown: Unknown::default(),
        };
        let stored = self.take_step(settled, Step::Refuse(Box::new(refusal))).await;
        if stored {
            count(&self.dispatcher.counts.refused);
        }
        self.finish(false);
    }
}
