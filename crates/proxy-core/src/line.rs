//! The line of one instance: who goes next, when, and what everybody else may be told.
//!
//! A pure state machine: events and the time go in, decisions come out. It never awaits and holds nothing but memory; the
//! durable record of a place is the caller's business, and comes first: *room* is held for it, it is written, and then the device *arrives*
//! at the place that the store has given.
//!
//! Invariants:
//! - Nothing departs that the gate holds; see there.
//! - Within a lane places depart in the order of their numbers. One that arrives late, or comes back (throttled, failed), stands where its
//!   number says; one that was left meanwhile does neither.
//! - Every place is in exactly one of: a lane, the deferred set, the set under way.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{RegistrationId, TenantName};
use crate::line::lane::{DepartureNumber, JobKind, Joined, Waiting};
use crate::line::scheduler::{FairScheduler, Fairness, Turn};
use crate::place::{Class, Place};
use crate::settings::{Instance, LineSettings, RegistrationSettings};
use rate_control::adaptive_limit::Kept;
use rate_control::circuit_breaker::CircuitState;
use rate_control::entropy::Entropy;
use rate_control::latency_estimate::LatencyEstimate;
use rate_control::ledger::{Settlement, SlotId};
use rate_control::time::Mono;

mod gate;
pub mod lane;
mod moving;
mod recent;
mod room;
pub mod scheduler;
mod status;

pub use gate::RecoveryState;
use gate::{Gate, Hold};
pub use recent::LastMinute;
use recent::Recent;
pub use status::{LineStatus, TenantStatus};

use room::{Arriving, Outside};

/// Joining is counted in these, from a moment a year before the line was made, so that places of earlier processes fit.
const JOINED_UNIT: Duration = Duration::from_millis(100);
const JOINED_AT_START: Joined = 365 * 24 * 3600 * 10;

/// What an ordinary appointment allows for expedited devices still to come, at most: they are not worth more to the others.
const URGENT_RESERVE_TIME_MAX: Duration = Duration::from_secs(5);

/// In a line that tenants share, an appointment allows for devices of others that nobody has heard of yet: half of the wait, but no more
/// than this and a burst at the even pace or, if that is more, [`COMPANY_RESERVE_PART`] of the wait. Measured in docs/decisions/0010.
const COMPANY_RESERVE: Duration = Duration::from_secs(15);

/// See [`COMPANY_RESERVE`].
const COMPANY_RESERVE_PART: f64 = 0.02;

/// Of what a device is told beyond its turn others may take this part; the rest is for departures that are a little later than forecast.
const APPOINTMENT_MARGIN: f64 = 0.95;

/// A place that may not go before a moment of its own.
#[derive(Debug)]
struct Deferred {
    tenant: TenantName,
    waiting: Waiting,
}

#[derive(Debug)]
struct UnderWay {
    tenant: TenantName,
    id: RegistrationId,
    joined: Joined,
    appointment: Option<DepartureNumber>,
    since: Mono,
    /// Its call to DPS has not ended yet.
    calling: bool,
    /// Polls of its registration that failed in a row, and the last cause.
    polls_failed: Option<(u32, String)>,
    /// A poll failed, or it was begun by an earlier process.
    disturbed: bool,
    /// Given up meanwhile: it does not come back.
    left: bool,
}

/// A device that may go now. The caller writes the *sent* mark and then calls DPS once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure {
    /// Who.
    pub id: RegistrationId,
    /// Whose.
    pub tenant: TenantName,
    /// From where; it comes back there if it has to.
    pub place: Place,
    /// What for.
    pub job: JobKind,
    /// The ledger slot it holds; `None` for a lookup that spends no registration.
    pub slot: Option<SlotId>,
}

/// What the line wants to happen next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// This device goes now.
    Depart(Departure),
    /// Nobody can go before this moment; ask again then or after any event.
    WaitUntil(Mono),
    /// Nobody can go; ask again after any event.
    Idle,
}

/// What a device in line can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// Devices that go before it, plus one; 0 if it is under way.
    pub position: usize,
    /// When it should hold its assignment.
    pub appointment: Mono,
}

/// Why the line takes nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the line is full: line.length_max allows {length_max} devices{}", share_words(*.share))]
pub struct LineFull {
    /// The configured bound.
    pub length_max: usize,
    /// Other tenants want some of it too, and the device's own has its share, which is this many.
    pub share: Option<usize>,
}

fn share_words(share: Option<usize>) -> String {
    share.map_or_else(String::new, |share| {
        format!(", which tenants share by weight (tenants.NAME.weight), and this one has its {share}")
    })
}

/// What keeps the front from going, in words for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// Nothing: the front goes now, nobody waits, or each of those who do waits for a moment of its own.
    Nothing,
    /// DPS asked us to wait.
    ThrottledByDps,
    /// DPS throttled a call recently, and calls ramp up from one at a time.
    AfterThrottling,
    /// Calls to the instance fail: the circuit is open or half-open.
    InstanceFailing,
    /// The circuit closed again, and calls ramp up.
    RampingUp,
    /// The quota of this minute is used.
    Quota,
    /// The quota is spread evenly over the minute.
    Pace,
    /// As many calls are in flight as the rate needs; the next one leaves with an answer.
    Concurrency,
    /// As many registrations as `registration.in_flight_max` allows are under way.
    InFlightMax,
    /// As many calls as `registration.connections_max` allows are in flight.
    ConnectionsMax,
    /// The store takes no writes, and nothing leaves that is not on disk.
    Store,
}

/// What an answer shows of the instance's quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// DPS took the call.
    Admitted,
    /// DPS refused it over its quota.
    Throttled,
    /// Nothing: DPS failed, or something in between answered.
    Unclear,
}

/// The line of one instance. See the module for its invariants.
#[derive(Debug)]
pub struct Line {
    scheduler: FairScheduler,
    deferred: BTreeMap<(Mono, Place), Deferred>,
    deferred_until: BTreeMap<Place, Mono>,
    /// How many of each tenant are deferred, and the latest moment that any of those had to wait for.
    deferred_of: BTreeMap<TenantName, (usize, Mono)>,
    /// Devices that were turned away, for want of room.
    outside: Outside,
    /// Devices whose places are being written.
    arriving: Arriving,
    under_way: BTreeMap<Place, UnderWay>,
    /// Of these, how many have a call out.
    calling: usize,
    gate: Gate,
    began: Mono,
    length_max: usize,
    in_flight_max: usize,
    lookup_spends: bool,
    upstream_max_delay: Duration,
    registration_time: LatencyEstimate,
    recent: Recent,
}

impl Line {
    /// An empty line with what an earlier process left of its gate, if there was one.
    #[must_use]
    pub fn new(
        instance: &Instance,
        rules: (&LineSettings, &RegistrationSettings),
        fairness: Fairness,
        left: &RecoveryState,
        now: Mono,
    ) -> Self {
        let (line, registration) = rules;
        Self {
            scheduler: FairScheduler::new(fairness),
            deferred: BTreeMap::new(),
            deferred_until: BTreeMap::new(),
            deferred_of: BTreeMap::new(),
            outside: Outside::default(),
            arriving: Arriving::default(),
            under_way: BTreeMap::new(),
            calling: 0,
            gate: Gate::new(instance, registration, left, now),
            began: now,
            length_max: line.length_max,
            in_flight_max: registration.in_flight_max,
            lookup_spends: registration.lookup_spends,
            upstream_max_delay: registration.upstream_max_delay,
            registration_time: LatencyEstimate::new(line.expected_registration),
            recent: Recent::default(),
        }
    }

    /// Applies changed limits at once. Places are untouched.
    pub fn configure(
        &mut self,
        instance: &Instance,
        rules: (&LineSettings, &RegistrationSettings),
        fairness: Fairness,
        now: Mono,
    ) {
        let (line, registration) = rules;
        if self.scheduler.configure(fairness) {
            self.under_way.values_mut().for_each(|under_way| under_way.appointment = None);
            self.deferred.values_mut().for_each(|deferred| deferred.waiting.appointment = None);
        }
        self.gate.configure(instance, registration, now);
        self.upstream_max_delay = registration.upstream_max_delay;
        self.length_max = line.length_max;
        self.in_flight_max = registration.in_flight_max;
        self.lookup_spends = registration.lookup_spends;
        self.registration_time.expect(line.expected_registration);
    }

    /// Whether the limit has changed since this was last asked.
    pub fn take_limit_changed(&mut self) -> bool {
        self.gate.take_limit_changed()
    }

    /// What is to be kept of the limit for the next process.
    #[must_use]
    pub fn kept_limit(&self, now: Mono) -> Kept {
        self.gate.kept_limit(now)
    }

    /// Registrations per minute that may leave.
    #[must_use]
    pub fn limit_per_minute(&self) -> u32 {
        self.gate.limit_per_minute()
    }

    /// Failures of the instance in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.gate.breaker().failures()
    }

    /// For how long calls to the instance have not gone through; `None` while they do, and when it is time to try again and nobody is
    /// here who would: then the next device does.
    #[must_use]
    pub fn sick_for(&self, now: Mono) -> Option<Duration> {
        let deserted = self.waiting() == 0 && self.under_way.is_empty();
        let due = self.gate.breaker().open_until().is_none_or(|until| until <= now);
        self.gate.breaker().sick_for(now).filter(|_| !(deserted && due))
    }

    /// Devices that wait, and whose places are on disk.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.scheduler.len() + self.deferred.len()
    }

    /// A device that has waited for `ago` arrives at its place, which is on disk: its turn counts from now on. It takes the room that was
    /// [held](Self::hold_room) for it.
    pub fn arrive(&mut self, tenant: &TenantName, place: Place, id: RegistrationId, ago: Duration, now: Mono) {
        if self.arriving.arrives(tenant, place) {
            let joined = self.joined(now, ago);
            let waiting = Waiting { id, job: JobKind::Register, joined, appointment: None };
            self.scheduler.insert(tenant, place, &waiting);
            self.scheduler.joins(tenant, now);
        }
    }

    fn joined(&self, now: Mono, ago: Duration) -> Joined {
        let units = |duration: Duration| {
            Joined::try_from(duration.as_millis() / JOINED_UNIT.as_millis()).unwrap_or(Joined::MAX)
        };
        JOINED_AT_START.saturating_add(units(now.since(self.began))).saturating_sub(units(ago))
    }

    /// A place goes not before `not_before`; those behind it do not wait for it.
    pub fn defer(&mut self, tenant: &TenantName, place: Place, not_before: Mono) {
        if let Some(waiting) = self.scheduler.remove(tenant, place) {
            self.put_off(tenant.clone(), place, waiting, not_before);
        }
    }

    fn put_off(&mut self, tenant: TenantName, place: Place, waiting: Waiting, not_before: Mono) {
        let (count, latest) = self.deferred_of.entry(tenant.clone()).or_default();
        (*count, *latest) = (*count + 1, not_before.max(*latest));
        self.deferred.insert((not_before, place), Deferred { tenant, waiting });
        self.deferred_until.insert(place, not_before);
    }

    fn take_deferred(&mut self, place: Place) -> Option<Deferred> {
        let due = self.deferred_until.remove(&place)?;
        let deferred = self.deferred.remove(&(due, place))?;
        if let Some((count, _)) = self.deferred_of.get_mut(&deferred.tenant) {
            *count -= 1;
            if *count == 0 {
                self.deferred_of.remove(&deferred.tenant);
            }
        }
        Some(deferred)
    }

    /// Puts a place of an earlier process back where it was; the device has waited for `ago`.
    pub fn restore(
        &mut self,
        tenant: &TenantName,
        place: Place,
        id: RegistrationId,
        job: JobKind,
        ago: Duration,
        now: Mono,
    ) {
        let joined = self.joined(now, ago);
        self.scheduler.insert(tenant, place, &Waiting { id, job, joined, appointment: None });
    }

    /// Takes over a registration that an earlier process left with DPS and that only has to be polled. Its device joined `ago`: if it has
    /// to come back, it stands where it stood.
    pub fn adopt(&mut self, tenant: &TenantName, place: Place, id: RegistrationId, ago: Duration, now: Mono) {
        let joined = self.joined(now, ago);
        let (tenant, since, disturbed) = (tenant.clone(), now, true);
        self.under_way.insert(
            place,
            UnderWay {
                tenant,
                id,
                joined,
                appointment: None,
                since,
                calling: false,
                polls_failed: None,
                disturbed,
                left: false,
            },
        );
    }

    /// A device has another place, which is on disk: the one it had is left. Whatever the first one had to wait for, the second one waits
    /// for too, unless an operator expedites the device.
    pub fn exchange(&mut self, tenant: &TenantName, from: Place, to: Place, id: RegistrationId, now: Mono) {
        let not_before = self.deferred_until.get(&from).copied().filter(|_| to.class != Class::Expedited);
        self.arrive(tenant, to, id, Duration::ZERO, now);
        self.leave(tenant, from);
        if let Some(not_before) = not_before {
            self.defer(tenant, to, not_before);
        }
    }

    /// Gives a place up: one under way ends there instead of coming back, and one that has not arrived yet never does. Returns whether it
    /// was waiting (not under way, not unknown).
    pub fn leave(&mut self, tenant: &TenantName, place: Place) -> bool {
        if let Some(under_way) = self.under_way.get_mut(&place) {
            under_way.left = true;
            return false;
        }
        let waited = self.take_deferred(place).is_some() || self.scheduler.remove(tenant, place).is_some();
        if !waited {
            self.arriving.left(place);
        }
        waited
    }

    /// Whether the device under way at `place` has left it meanwhile: it was moved, or retired.
    #[must_use]
    pub fn has_left(&self, place: Place) -> bool {
        self.under_way.get(&place).is_none_or(|under_way| under_way.left)
    }

    /// Decides who goes next. On [`Next::Depart`] the slot and the permit are taken and the place is under way.
    pub fn next(&mut self, now: Mono) -> Next {
        self.recall_deferred(now);
        let deferred_due = self.deferred.first_key_value().map(|(&(due, _), _)| due);
        let wait = |moment: Option<Mono>| match (moment, deferred_due) {
            (None, None) => Next::Idle,
            (Some(moment), None) | (None, Some(moment)) => Next::WaitUntil(moment),
            (Some(moment), Some(due)) => Next::WaitUntil(moment.min(due)),
        };
        let Some(turn) = self.scheduler.front() else {
            return wait(None);
        };
        if let Some(hold) = self.hold(&turn, now) {
            return wait(hold.until);
        }
        match self.gate.leave(self.spends(turn.job), now) {
            Ok(slot) => match self.depart(turn, slot, now) {
                Some(departure) => Next::Depart(departure),
                None => {
                    self.never_left(slot);
                    wait(None)
                }
            },
            Err(hold) => wait(hold.until),
        }
    }

    /// Whether somebody is there who may go now. Takes nothing.
    pub fn front_may_go(&mut self, now: Mono) -> bool {
        self.recall_deferred(now);
        let front = self.scheduler.front();
        front.is_some_and(|turn| self.hold(&turn, now).is_none())
    }

    /// A call that is no device's leaves. If calls failed, it is the one that tries.
    pub fn tries(&mut self) {
        self.gate.tries();
    }

    fn spends(&self, job: JobKind) -> bool {
        job == JobKind::Register || self.lookup_spends
    }

    /// What keeps `turn` from going. Takes nothing.
    fn hold(&mut self, turn: &Turn, now: Mono) -> Option<Hold> {
        if self.under_way.len() >= self.in_flight_max {
            return Some(Hold::by(Holding::InFlightMax, None));
        }
        self.gate.hold(self.spends(turn.job), self.calling, now)
    }

    fn depart(&mut self, turn: Turn, slot: Option<SlotId>, now: Mono) -> Option<Departure> {
        let Waiting { id, job, joined, appointment, .. } = self.scheduler.depart(&turn)?;
        if slot.is_some() {
            self.recent.left(&turn.tenant, now);
        }
        let Turn { tenant, place, .. } = turn;
        let (owner, device) = (tenant.clone(), id.clone());
        let (since, calling, polls_failed, left) = (now, true, None, false);
        let disturbed = false;
        self.under_way.insert(
            place,
            UnderWay { tenant: owner, id: device, joined, appointment, since, calling, polls_failed, disturbed, left },
        );
        self.calling += 1;
        Some(Departure { id, tenant, place, job, slot })
    }

    fn recall_deferred(&mut self, now: Mono) {
        while let Some((&(due, place), _)) = self.deferred.first_key_value()
            && due <= now
        {
            if let Some(Deferred { tenant, waiting }) = self.take_deferred(place) {
                self.scheduler.insert(&tenant, place, &waiting);
            }
        }
    }

    /// Whether a departure may still send at `now`.
    ///
    /// # Errors
    /// What holds it: DPS asked us to wait meanwhile, other calls failed meanwhile, or the limit was lowered below what left meanwhile.
    pub fn may_send(&mut self, slot: Option<SlotId>, now: Mono) -> Result<(), Holding> {
        self.gate.may_send(slot, now)
    }

    /// The call that holds `slot`, which was sent at `sent`, was answered.
    pub fn answered(&mut self, place: Place, slot: Option<SlotId>, sent: Mono, admission: Admission, now: Mono) {
        self.gate.answered(slot, sent, admission, now);
        self.call_ended(place);
    }

    /// The call that holds `slot` was given up without an answer.
    pub fn abandoned(&mut self, place: Place, slot: Option<SlotId>, now: Mono) {
        if let Some(slot) = slot {
            self.gate.abandoned(slot, now);
        }
        self.call_ended(place);
    }

    /// Whoever looked after the call that holds `slot` is gone. If the call had ended before, its slot was settled then, and may be
    /// another call's by now.
    pub fn deserted(&mut self, place: Place, slot: Option<SlotId>, now: Mono) {
        let calling = self.under_way.get(&place).is_some_and(|under_way| under_way.calling);
        self.abandoned(place, slot.filter(|_| calling), now);
    }

    /// The call that holds `slot` never left this machine.
    pub fn never_left(&mut self, slot: Option<SlotId>) {
        if let Some(slot) = slot {
            self.gate.never_left(slot);
        }
    }

    /// Until when `slot` is held; `None` if it is free, or if its call is out.
    #[must_use]
    pub fn held_until(&self, slot: SlotId) -> Option<Mono> {
        self.gate.held_until(slot)
    }

    /// The sends of earlier owners whose end is not known.
    pub fn orphans(&self) -> impl Iterator<Item = SlotId> {
        self.gate.orphans()
    }

    /// The end of an orphan was seen: its owner has settled it after all.
    pub fn orphan_ended(&mut self, slot: SlotId, settlement: Settlement, now: Mono) {
        self.gate.orphan_ended(slot, settlement, now);
    }

    fn call_ended(&mut self, place: Place) {
        if let Some(under_way) = self.under_way.get_mut(&place)
            && std::mem::take(&mut under_way.calling)
        {
            self.calling -= 1;
        }
    }

    fn take_under_way(&mut self, place: Place) -> Option<UnderWay> {
        self.call_ended(place);
        self.under_way.remove(&place)
    }

    /// The device is done with this line: assigned, refused or gone. `assigned` teaches the forecast how long that takes.
    pub fn finish(&mut self, place: Place, assigned: bool, now: Mono) {
        let Some(under_way) = self.take_under_way(place) else { return };
        if assigned {
            self.recent.assigned(&under_way.tenant, now);
        }
        // How long it takes while calls fail says nothing about how long it takes.
        if assigned && self.gate.opened().is_none_or(|opened| opened < under_way.since) && !under_way.disturbed {
            self.registration_time.observe(now.since(under_way.since));
        }
    }

    /// A device under way comes back to its place, to go again not before `not_before`; unless the place was left meanwhile.
    pub fn come_back(&mut self, place: Place, job: JobKind, not_before: Mono, now: Mono) {
        let Some(under_way) = self.take_under_way(place).filter(|under_way| !under_way.left) else { return };
        let UnderWay { tenant, id, joined, appointment, .. } = under_way;
        let waiting = Waiting { id, job, joined, appointment };
        if not_before <= now {
            self.scheduler.insert(&tenant, place, &waiting);
        } else {
            self.put_off(tenant, place, waiting, not_before);
        }
    }

    /// DPS throttled a call: nobody goes before `until`. If it would have spent a registration at `spent_at`, the limit may come down.
    pub fn throttled(&mut self, spent_at: Option<Mono>, until: Mono, now: Mono) {
        self.gate.throttled(spent_at, until, now);
    }

    /// Until when DPS told us to wait; a moment in the past if it did not.
    #[must_use]
    pub const fn throttled_until(&self) -> Mono {
        self.gate.throttled_until()
    }

    /// A call failed in a way that blames the instance. Until when nobody goes, if that is news.
    pub fn instance_failed(&mut self, now: Mono, entropy: &mut Entropy) -> Option<Mono> {
        self.gate.instance_failed(now, entropy)
    }

    /// The mark of a departure could not be written: nobody goes for a while. It has nothing to do with the instance.
    pub fn store_failed(&mut self, now: Mono) {
        self.gate.store_failed(now);
    }

    /// The instance answered as it should. Whether calls to it failed until now.
    pub fn instance_works(&mut self) -> bool {
        self.gate.instance_works()
    }

    /// Before when a place does not go, whoever is before it: it has to wait after a failure or a contradiction.
    #[must_use]
    pub fn not_before(&self, place: Place) -> Option<Mono> {
        self.deferred_until.get(&place).copied()
    }

    /// What the device at `place` can be told at `now`. `None` if this line does not know it.
    #[must_use]
    pub fn forecast(&self, tenant: &TenantName, place: Place, now: Mono) -> Option<Forecast> {
        let typical = self.registration_time.value();
        if let Some(under_way) = self.under_way.get(&place) {
            // One that is overdue is expected to take half as long again, so that its device does not ask every other second.
            let mut due = under_way.since.after(typical);
            if under_way.calling && self.gate.breaker().state() != CircuitState::Closed {
                // Most likely it hangs until it is given up.
                due = due.max(under_way.since.after(self.upstream_max_delay));
            }
            let appointment = due.max(now.after((now.since(due) / 2).max(Duration::from_secs(1))));
            return Some(Forecast { position: 0, appointment });
        }
        let deferred_until = self.deferred_until.get(&place).copied();
        let joined = match deferred_until {
            Some(until) => self.deferred.get(&(until, place)).map(|deferred| deferred.waiting.joined),
            None => self.scheduler.joined(tenant, place),
        }?;
        let rank = self.rank(tenant, place, joined);
        let permit = self.gate.forecast(rank as u64, now);
        let reserve = u32::try_from(self.scheduler.reserve(place.class, rank)).unwrap_or(u32::MAX);
        let reserve = (self.gate.interval() * reserve).min(URGENT_RESERVE_TIME_MAX);
        let permit = permit.after(reserve).max(deferred_until.unwrap_or_default());
        let permit = permit.after(self.company_allowance(tenant, place, joined, permit.since(now), now));
        let kept =
            self.scheduler.appointment(tenant, place).map(|after| (after, self.gate.forecast(after as u64, now)));
        let (rank, permit) = kept.map_or((rank, permit), |(after, by)| (rank.min(after), permit.min(by)));
        Some(Forecast { position: rank + 1, appointment: permit.after(typical) })
    }

    /// How many devices go before the one at `place`, which joined at `joined`, if nobody else joins: those whose turn is before, or whose
    /// appointment.
    fn rank(&self, tenant: &TenantName, place: Place, joined: Joined) -> usize {
        let ahead = self.scheduler.ahead(tenant, place, joined);
        if place.class == Class::Expedited { ahead } else { self.scheduler.first_free(ahead) }
    }

    /// What the device at `place` is told at `now`. In a line that tenants share that is an appointment: whoever joins later, the device
    /// goes in time. `None` if this line does not know it.
    pub fn appoint(&mut self, tenant: &TenantName, place: Place, now: Mono) -> Option<Forecast> {
        let forecast = self.forecast(tenant, place, now)?;
        if self.scheduler.is_shared() && self.scheduler.joined(tenant, place).is_some() {
            let after = self.departures_before(&forecast, now);
            self.scheduler.appoint(tenant, place, after);
        }
        Some(forecast)
    }

    /// How many others can go first so that a device surely is in time for what it was told.
    fn departures_before(&self, forecast: &Forecast, now: Mono) -> usize {
        let rank = forecast.position.saturating_sub(1);
        let least = self.gate.forecast(rank as u64, now).since(now);
        let wait = forecast.appointment.since(now).saturating_sub(self.registration_time.value());
        let goes_by = now.after(least + wait.saturating_sub(least).mul_f64(APPOINTMENT_MARGIN));
        // No more than at the full pace.
        let most = wait.as_nanos() / self.gate.interval().as_nanos().max(1);
        let (mut in_time, mut late) = (rank, rank.saturating_add(usize::try_from(most).unwrap_or(0)) + 1);
        while in_time + 1 < late {
            let middle = in_time.midpoint(late);
            if self.gate.forecast(middle as u64, now) <= goes_by { in_time = middle } else { late = middle }
        }
        in_time
    }

    /// How much later than after `wait` a device may go because of devices of other tenants that have not joined yet and whose turn comes
    /// first. To be told too late costs a device a little of its time; to be told too early costs everybody one more request.
    fn company_allowance(
        &self,
        tenant: &TenantName,
        place: Place,
        joined: Joined,
        wait: Duration,
        now: Mono,
    ) -> Duration {
        if !self.scheduler.is_shared() || place.class == Class::Expedited {
            return Duration::ZERO;
        }
        let expected = self.scheduler.expected_ahead(tenant, place, joined, now, wait);
        let expected = self.gate.interval().saturating_mul(u32::try_from(expected).unwrap_or(u32::MAX));
        let wait = wait.saturating_add(expected);
        // After a burst the line rests until the quota's window has moved on.
        let rest = self.gate.interval() * self.gate.burst().saturating_sub(1);
        expected + (wait / 2).min((COMPANY_RESERVE + rest).max(wait.mul_f64(COMPANY_RESERVE_PART)))
    }

    /// The last polls of a device under way failed, so many in a row, and the last one of this cause; or the last one did not.
    pub fn polls_failed(&mut self, place: Place, failed: Option<(u32, String)>) {
        if let Some(under_way) = self.under_way.get_mut(&place) {
            under_way.disturbed |= failed.is_some();
            under_way.polls_failed = failed;
        }
    }

    /// How many of the last polls of the device at `place` failed in a row, and the last cause.
    #[must_use]
    pub fn failed_polls(&self, place: Place) -> Option<&(u32, String)> {
        self.under_way.get(&place)?.polls_failed.as_ref()
    }
}
