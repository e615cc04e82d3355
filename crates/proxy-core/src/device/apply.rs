//! What each command does to a record.
//!
//! Invariants:
//! - Every function here checks first and changes afterwards: a rejected command leaves the record as it was.
//! - A device has one place at most, and its instance is in the footprint from the moment the place is taken. A place that is taken has no
//!   number until the record is stored.
//! - An instance leaves the footprint only with a place from which nothing was ever sent.
//! - A registration is sent from a place where none is under way, and while none from another place may be on its way.
//! - The revision of an assignment grows with every change that a backend could care about, and never shrinks.

use super::assignment::{Assignment, AssignmentState};
use super::command::{Claim, Command, Decision, Listing, Rejected, Seat, Step};
use super::effects::Effects;
use super::flight::{Flight, Sender};
use super::pending::{Home, Pending, Reason, Stage};
use super::record::{Blocked, Listed, Record, Refusal};
use super::timeline;
use super::unknown::Unknown;
use crate::ids::{HubName, InstanceName};
use crate::place::{Class, Place};
use rate_control::ledger::SlotId;
use rate_control::time::{Now, StoredMoment, WallTime};
use serde_json::Value;

impl Record {
    /// Does what `command` says, at `now`. The timeline keeps `timeline_max` events.
    ///
    /// # Errors
    /// [`Rejected`] if the command does not fit the device's state; nothing was changed then.
    pub fn apply(&mut self, command: Command, now: Now, timeline_max: usize) -> Result<Effects, Rejected> {
        let before = self.outline();
        let mut change = Change { record: self, now, timeline_max };
        match command {
            Command::List(listing) => change.list(listing),
            Command::Claim(claim) => change.claim(claim),
            Command::Join { seat, reason, payload, reprovision } => change.join(seat, reason, payload, reprovision),
            Command::Rebook { seat } => change.rebook(seat),
            Command::ComeHome => change.come_home(),
            Command::Move { seat } => change.move_to(seat),
            Command::Reseat { class, why } => change.reseat(class, why),
            Command::Ask { spelling, payload, reprovision } => change.ask(spelling, payload, reprovision),
            Command::Attempt { instance, place, step } => change.attempt(&instance, place, step),
            Command::Land { call } => change.land(&call),
            Command::Tell { reprovision, credential } => change.tell(reprovision, credential),
            Command::Contradict { hub, reason } => change.contradict(hub.as_ref(), &reason),
            Command::Block { by, reason } => change.block(by, reason),
            Command::Unblock { by } => change.unblock(&by),
            Command::Retry => change.retry(),
            Command::Retire { kept } => change.retire(kept),
        }?;
        Ok(Effects { before: Some(before), after: Some(self.outline()) })
    }
}

/// How a device joins a line.
struct Joining {
    place: Place,
    request_id: Option<String>,
    reason: Reason,
    joined_at: StoredMoment,
    reprovision: bool,
    payload: Option<Value>,
    home: Option<Home>,
    rebooked: u32,
    unknown: Unknown,
}

impl Joining {
    /// Anew, to the end of a line.
    fn new(class: Class, request_id: Option<String>, reason: Reason, joined_at: StoredMoment) -> Self {
        let (place, unknown) = (Place::last(class), Unknown::default());
        let (reprovision, payload, home, rebooked) = (false, None, None, 0);
        Self { place, request_id, reason, joined_at, reprovision, payload, home, rebooked, unknown }
    }

    /// At `place`, as it joined the one that it leaves.
    fn again(left: Pending, place: Place, joined_at: StoredMoment) -> Self {
        let Pending { request_id, reason, reprovision, payload, home, rebooked, unknown, .. } = left;
        Self { place, request_id, reason, joined_at, reprovision, payload, home, rebooked, unknown }
    }
}

/// One command under way.
struct Change<'r> {
    record: &'r mut Record,
    now: Now,
    timeline_max: usize,
}

impl Change<'_> {
    fn note(&mut self, what: impl Into<String>) {
        timeline::note(&mut self.record.timeline, self.now.wall, self.timeline_max, what);
    }

    /// The device may be given a place.
    fn check_admitted(&self) -> Result<(), Rejected> {
        if self.record.retired.is_some() {
            return Err(Rejected::Retired);
        }
        if self.record.blocked.is_some() {
            return Err(Rejected::Blocked);
        }
        Ok(())
    }

    /// The device waits, and nothing of its registration has left.
    fn waiting(&mut self) -> Result<&mut Pending, Rejected> {
        match &mut self.record.pending {
            None => Err(Rejected::NoPlace),
            Some(pending) if pending.stage != Stage::Waiting => Err(Rejected::UnderWay),
            Some(pending) => Ok(pending),
        }
    }

    /// A registration has left from the device's place, or may have.
    fn under_way(&mut self) -> Result<&mut Pending, Rejected> {
        let sent = |pending: &&mut Pending| pending.stage != Stage::Waiting;
        self.record.pending.as_mut().filter(sent).ok_or(Rejected::NotSent)
    }

    fn list(&mut self, listing: Listing) -> Result<(), Rejected> {
        let Listing { claim, batch, key } = listing;
        let record = &mut *self.record;
        if record.retired.is_some() {
            return Err(Rejected::Retired);
        }
        if record.was_seen() && record.known_tenant().is_some_and(|known| *known != claim.tenant) {
            return Err(Rejected::OtherTenant);
        }
        let same = |listed: &Listed| listed.batch == batch && listed.key == key;
        let unchanged = record.tenant == claim.tenant && record.enrollment == claim.enrollment;
        if unchanged && record.listed.as_ref().is_some_and(same) {
            return Ok(());
        }
        // The spelling that a device has proved itself with is better than that of a list.
        if !record.was_seen() || record.unclaimed {
            record.hardware_id = claim.spelling;
        }
        (record.tenant, record.enrollment, record.unclaimed) = (claim.tenant, claim.enrollment, false);
        let unknown = record.listed.take().map(|listed| listed.unknown).unwrap_or_default();
        record.listed = Some(Listed { batch, key, at: self.now.wall, unknown });
        Ok(())
    }

    fn claim(&mut self, claim: Claim) -> Result<(), Rejected> {
        if self.record.is_claimed() && self.record.tenant != claim.tenant {
            return Err(Rejected::OtherTenant);
        }
        let record = &mut *self.record;
        (record.tenant, record.enrollment, record.unclaimed) = (claim.tenant, claim.enrollment, false);
        record.hardware_id = claim.spelling;
        Ok(())
    }

    fn join(&mut self, seat: Seat, reason: Reason, payload: Option<Value>, reprovision: bool) -> Result<(), Rejected> {
        self.check_admitted()?;
        if self.record.pending.is_some() {
            return Err(Rejected::HasPlace);
        }
        let Seat { instance, class, request_id } = seat;
        let joining = Joining::new(class, request_id, reason, StoredMoment::of(self.now));
        self.take(instance, Joining { reprovision, payload, ..joining });
        Ok(())
    }

    fn rebook(&mut self, seat: Seat) -> Result<(), Rejected> {
        let pending = self.record.pending.as_ref().filter(|pending| pending.instance != seat.instance);
        let left = pending.filter(|_| self.record.may_be_rebooked()).ok_or(Rejected::Bound)?.clone();
        self.leave();
        self.note(format!(
            "calls to {} fail, and nothing was sent there: booked on another instance, {}, which has it sooner",
            left.instance, seat.instance
        ));
        let stood = Home {
            instance: left.instance.clone(),
            place: left.place,
            joined_at: left.joined_at,
            unknown: Unknown::default(),
        };
        let home = Some(left.home.clone().unwrap_or(stood));
        let request_id = left.request_id.clone().or(seat.request_id);
        let rebooked = left.rebooked + 1;
        let again = Joining::again(left, Place::last(seat.class), StoredMoment::of(self.now));
        self.take(seat.instance, Joining { request_id, home, rebooked, ..again });
        Ok(())
    }

    fn come_home(&mut self) -> Result<(), Rejected> {
        self.record.home_to_come_back_to().ok_or(Rejected::Bound)?;
        let left = self.record.pending.clone().ok_or(Rejected::Bound)?;
        let home = left.home.clone().ok_or(Rejected::Bound)?;
        self.leave();
        self.note(format!(
            "calls to {} go through again: back from {} to its place there",
            home.instance, left.instance
        ));
        self.take(home.instance, Joining::again(left, home.place, home.joined_at));
        Ok(())
    }

    fn move_to(&mut self, seat: Seat) -> Result<(), Rejected> {
        self.check_admitted()?;
        if self.record.pending.as_ref().is_some_and(|pending| pending.instance == seat.instance) {
            return Err(Rejected::HasPlace);
        }
        let payload = self.leave().and_then(|left| left.payload);
        if let Some(assignment) = &mut self.record.assignment {
            assignment.state = AssignmentState::Moved;
            assignment.revision += 1;
        }
        self.note(format!("an operator moves the device to {}", seat.instance));
        self.record.moving_to = Some(seat.instance.clone());
        let Seat { instance, class, request_id } = seat;
        let joining = Joining::new(class, request_id, Reason::Moved, StoredMoment::of(self.now));
        self.take(instance, Joining { payload, ..joining });
        Ok(())
    }

    fn reseat(&mut self, class: Class, why: &str) -> Result<(), Rejected> {
        self.waiting()?.place = Place::last(class);
        self.note(why);
        Ok(())
    }

    fn ask(&mut self, spelling: Option<String>, payload: Option<Value>, reprovision: bool) -> Result<(), Rejected> {
        let pending = self.waiting()?;
        pending.reprovision |= reprovision;
        if payload.is_some() {
            pending.payload = payload;
        }
        self.record.hardware_id = spelling;
        Ok(())
    }

    fn attempt(&mut self, instance: &InstanceName, place: Place, step: Step) -> Result<(), Rejected> {
        if !self.record.stands_at(instance, place) {
            return Err(Rejected::Elsewhere);
        }
        match step {
            Step::Send { dps_time, slot, sender, over } => self.send(dps_time, slot, sender, over.as_ref())?,
            Step::NothingLeft { why, sent_before } => {
                let pending = self.under_way()?;
                pending.come_to(Stage::Waiting);
                pending.attempts = pending.attempts.saturating_sub(1);
                self.record.flight = None;
                self.record.last_sent = sent_before;
                self.note(why);
            }
            Step::Assigning { operation_id } => {
                let (time, what) = (self.now.wall, format!("{instance} works on it (operation {operation_id})"));
                self.under_way()?.come_to(Stage::Assigning { operation_id, time });
                self.note(what);
            }
            Step::Back { why, fruitless } => {
                if let Some(pending) = &mut self.record.pending {
                    pending.come_to(Stage::Waiting);
                    pending.fruitless = pending.fruitless.saturating_add(fruitless.into());
                }
                self.note(why);
            }
            Step::Event { why } => self.note(why),
            Step::Assign(decision) => {
                self.under_way()?;
                self.assign(instance, *decision);
            }
            Step::Refuse(refusal) => self.refuse(*refusal),
            Step::GiveUp => drop(self.leave()),
        }
        Ok(())
    }

    fn send(
        &mut self,
        dps_time: Option<WallTime>,
        slot: Option<SlotId>,
        sender: Sender,
        over: Option<&Flight>,
    ) -> Result<(), Rejected> {
        let now = self.now;
        self.waiting()?;
        if self.record.flight.as_ref().is_some_and(|flight| over.is_none_or(|over| !flight.is(over))) {
            return Err(Rejected::InFlight);
        }
        let pending = self.waiting()?;
        pending.attempts = pending.attempts.saturating_add(1);
        pending.come_to(Stage::Sent { time: now.wall, dps_time });
        let (instance, sent) = (pending.instance.clone(), StoredMoment::of(now));
        let what = format!("registration {} sent to {instance}", pending.attempts);
        self.record.flight = Some(Flight { instance, slot, sent, sender, unknown: Unknown::default() });
        self.record.last_sent = Some(sent);
        self.note(what);
        Ok(())
    }

    fn land(&mut self, call: &Flight) -> Result<(), Rejected> {
        self.record.flight.take_if(|flight| flight.is(call)).map(drop).ok_or(Rejected::NoFlight)
    }

    fn assign(&mut self, instance: &InstanceName, decision: Decision) {
        let (record, now) = (&mut *self.record, self.now.wall);
        let Decision { hub, device_id, substatus, payload, dps_etag, dps_last_updated } = decision;
        let what = format!("assigned to {hub} by {instance}");
        let asked = record.pending.take().is_some_and(|pending| pending.reprovision);
        let earlier = record.assignment.take();
        let stays = earlier.as_ref().filter(|earlier| earlier.hub == hub && earlier.instance == *instance);
        record.credential_claimed = record.credential_claimed.filter(|_| stays.is_some());
        record.assignment = Some(Assignment {
            device_id,
            instance: instance.clone(),
            state: AssignmentState::Confirmed,
            substatus,
            payload,
            assigned_at: stays.map_or(now, |earlier| earlier.assigned_at),
            confirmed_at: now,
            suspected_at: None,
            revision: earlier.as_ref().map_or(1, |earlier| earlier.revision + 1),
            dps_etag,
            dps_last_updated,
            unknown: stays.map(|earlier| earlier.unknown.clone()).unwrap_or_default(),
            hub,
        });
        record.refusal = None;
        record.moving_to = record.moving_to.take().filter(|target| target != instance);
        record.last_registration_begun = record.last_sent;
        record.reprovisioned_untold = asked;
        self.note(what);
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.leave();
        let trace = refusal.tracking_id.as_ref().map(|id| format!(", tracking ID {id}")).unwrap_or_default();
        let what = format!("refused by {}: {}{trace}", refusal.instance, refusal.detail);
        self.record.refusal = Some(refusal);
        self.note(what);
    }

    fn tell(&mut self, reprovision: bool, credential: bool) -> Result<(), Rejected> {
        self.record.confirmed().ok_or(Rejected::NotConfirmed)?;
        if reprovision {
            self.record.reprovisioned_untold = false;
            self.record.reprovision_told = Some(StoredMoment::of(self.now));
        }
        if credential {
            self.record.credential_claimed = Some(self.now.wall);
        }
        Ok(())
    }

    fn contradict(&mut self, hub: Option<&HubName>, reason: &str) -> Result<(), Rejected> {
        let meant = |assignment: &&mut Assignment| hub.is_none_or(|hub| assignment.hub == *hub);
        let assignment = self.record.assignment.as_mut().filter(meant).ok_or(Rejected::NoAssignment)?;
        if assignment.state == AssignmentState::Confirmed {
            assignment.state = AssignmentState::Suspect;
            assignment.suspected_at = Some(self.now.wall);
            assignment.revision += 1;
            self.note(format!("a backend contradicted the assignment: {reason}"));
        }
        Ok(())
    }

    /// Of several reasons the latest stands, and the time of the first.
    fn block(&mut self, by: String, reason: Option<String>) -> Result<(), Rejected> {
        if self.waiting().is_ok() {
            self.leave();
        }
        let before = self.record.blocked.as_ref();
        if before.is_some() && reason.is_none() {
            return Ok(());
        }
        let why = reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let what = format!("blocked by operator {by}{why}");
        let at = before.map_or(self.now.wall, |blocked| blocked.at);
        let unknown = before.map(|blocked| blocked.unknown.clone()).unwrap_or_default();
        let blocked = Some(Blocked { reason, by: Some(by), at, unknown });
        if self.record.blocked != blocked {
            self.record.blocked = blocked;
            self.note(what);
        }
        Ok(())
    }

    fn unblock(&mut self, by: &str) -> Result<(), Rejected> {
        if self.record.blocked.take().is_some() {
            self.note(format!("unblocked by operator {by}"));
        }
        Ok(())
    }

    fn retry(&mut self) -> Result<(), Rejected> {
        self.record.refusal = None;
        self.record.credential_claimed = None;
        self.note("an operator asked for another try");
        Ok(())
    }

    fn retire(&mut self, kept: Option<String>) -> Result<(), Rejected> {
        self.leave();
        if self.record.retired.is_none() {
            self.record.retired = Some(self.now.wall);
            if let Some(assignment) = &mut self.record.assignment {
                assignment.state = AssignmentState::Retired;
                assignment.revision += 1;
            }
            self.note("retired by an operator");
        }
        kept.into_iter().for_each(|why| self.note(why));
        Ok(())
    }

    /// Takes a place in the line of `instance`.
    fn take(&mut self, instance: InstanceName, joining: Joining) {
        let Joining { place, request_id, reason, joined_at, reprovision, payload, home, rebooked, unknown } = joining;
        let first_there = self.record.footprint.insert(instance.clone());
        self.record.refusal = None;
        self.note(format!("joined the line of {instance} ({})", reason_words(reason)));
        self.record.pending = Some(Pending {
            place,
            reason,
            joined_at,
            stage: Stage::Waiting,
            reprovision,
            first_there,
            request_id,
            attempts: 0,
            fruitless: 0,
            payload,
            home: home.filter(|home| home.instance != instance),
            rebooked,
            unknown,
            unknown_of_stage: Unknown::default(),
            instance,
        });
    }

    /// Gives the place up. The instance leaves the footprint only if nothing was ever sent there.
    fn leave(&mut self) -> Option<Pending> {
        let pending = self.record.pending.take()?;
        if pending.first_there && pending.attempts == 0 && pending.stage == Stage::Waiting {
            self.record.footprint.remove(&pending.instance);
        }
        Some(pending)
    }
}

fn reason_words(reason: Reason) -> &'static str {
    match reason {
        Reason::First => "it has no assignment yet",
        Reason::Reprovision => "it asked for a new registration",
        Reason::Suspect => "its assignment was contradicted",
        Reason::Moved => "an operator moves it",
    }
}
