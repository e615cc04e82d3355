//! The line of one instance: who goes next, when, and what everybody else may be told.
//!
//! A pure state machine: events and the time go in, decisions come out. It never awaits and holds nothing but memory; the
//! durable record of a place is the caller's business, and comes first: a place is *reserved*, written, then *confirmed*.
//!
//! Invariants:
//! - Nothing departs unless the ledger has a slot for it; the pace is asked last, so no permit is spent and then refused.
//! - Within a lane places depart in the order they were reserved; a place that is being written holds up those behind it.
//! - A place that comes back (throttled, failed) stands where it stood; one that was left meanwhile does not come back.
//! - Every place is in exactly one of: a lane, the deferred set, the set under way.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::entropy::Entropy;
use crate::ids::RegistrationId;
use crate::lane::{Lane, Sequence};
use crate::ledger::{Full, Ledger, SlotId, SlotRecord};
use crate::pace::Pace;
use crate::retry;
use crate::settings::{Instance, LineSettings, RegistrationSettings};
use crate::time::{BootId, Mono};

/// Which lane a place is in. The order is the order of departure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Moved ahead by an operator.
    Expedited,
    /// Everybody else.
    Ordinary,
}

const CLASSES: [Class; 2] = [Class::Expedited, Class::Ordinary];

/// A place in the line of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The lane.
    pub class: Class,
    /// The number within the lane.
    pub sequence: Sequence,
}

/// What the device at the front needs from DPS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// A registration.
    Register,
    /// A status lookup, because the outcome of its last registration is unknown.
    Lookup,
}

#[derive(Debug, Clone)]
struct Waiting {
    id: RegistrationId,
    errand: Errand,
    /// False while its durable record is being written.
    confirmed: bool,
}

#[derive(Debug)]
struct UnderWay {
    id: RegistrationId,
    since: Mono,
    /// Given up meanwhile: it does not come back.
    left: bool,
}

/// A device that may go now. The caller writes the *sent* mark and then calls DPS once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure {
    /// Who.
    pub id: RegistrationId,
    /// From where; it comes back there if it has to.
    pub place: Place,
    /// What for.
    pub errand: Errand,
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
#[error("the line holds {length_max} devices, as many as line.length_max allows")]
pub struct LineFull {
    /// The configured bound.
    pub length_max: usize,
}

/// What keeps the front from going, in words for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holding {
    /// Nothing: the line moves or is empty.
    Nothing,
    /// DPS asked us to wait.
    ThrottledByDps,
    /// Calls to the instance fail; we try again after a growing wait.
    InstanceFailing,
    /// The quota of this minute is used.
    Quota,
    /// As many registrations as `registration.in_flight_max` allows are under way.
    InFlightMax,
}

/// The numbers an operator watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineStatus {
    /// Devices that wait, deferred ones included.
    pub waiting: usize,
    /// Devices under way.
    pub under_way: usize,
    /// Registrations that may leave per minute.
    pub quota_per_minute: u32,
    /// Registrations that could leave now without breaking the quota.
    pub budget: u32,
    /// When the last device waiting now should be done; `None` if nobody waits.
    pub drained_at: Option<Mono>,
    /// What keeps the front from going.
    pub holding: Holding,
    /// Until when the line is paused, if it is.
    pub paused_until: Option<Mono>,
    /// Failures of the instance in a row.
    pub failures: u32,
}

/// The line of one instance. See the module for its invariants.
#[derive(Debug)]
pub struct Line {
    lanes: [Lane<Waiting>; 2],
    next_sequence: [Sequence; 2],
    /// Places that may not go before a moment of their own.
    deferred: BTreeMap<(Mono, Place), Waiting>,
    deferred_until: BTreeMap<Place, Mono>,
    under_way: BTreeMap<Place, UnderWay>,
    ledger: Ledger,
    pace: Pace,
    quota_per_minute: u32,
    burst: u32,
    length_max: usize,
    in_flight_max: usize,
    lookup_spends: bool,
    backoff: (Duration, Duration),
    /// Until when DPS told us to wait; only time ends that.
    throttled_until: Mono,
    /// Until when we wait because calls fail; a success ends that.
    failing_until: Mono,
    failures: u32,
    registration_time: Typical,
    answer_time: Typical,
}

impl Line {
    /// An empty line with the ledger of an earlier process, if there was one.
    #[must_use]
    pub fn new(
        instance: &Instance,
        line: &LineSettings,
        registration: &RegistrationSettings,
        slots: impl IntoIterator<Item = (SlotId, SlotRecord)>,
        boot: &BootId,
        now: Mono,
    ) -> Self {
        let slots: Vec<_> = slots.into_iter().collect();
        let (quota, burst) = (instance.quota_per_minute, instance.burst);
        let mut sent: Vec<Mono> =
            slots.iter().map(|(_, slot)| if slot.boot == *boot { slot.sent.min(now) } else { now }).collect();
        sent.sort_unstable();
        let credit = Pace::credit_after(quota, burst, sent, now);
        let mut ledger = Ledger::new(quota, registration.upstream_max_delay);
        ledger.restore(slots, boot, now);
        Self {
            lanes: [Lane::default(), Lane::default()],
            next_sequence: [0, 0],
            deferred: BTreeMap::new(),
            deferred_until: BTreeMap::new(),
            under_way: BTreeMap::new(),
            ledger,
            pace: Pace::new(quota, burst, credit, now),
            quota_per_minute: quota,
            burst,
            length_max: line.length_max,
            in_flight_max: registration.in_flight_max,
            lookup_spends: registration.lookup_spends,
            backoff: (registration.backoff_min, registration.backoff_max),
            throttled_until: Mono::default(),
            failing_until: Mono::default(),
            failures: 0,
            registration_time: Typical::new(line.expected_registration),
            answer_time: Typical::new(Duration::from_millis(300)),
        }
    }

    /// Applies changed limits at once. Places are untouched.
    pub fn configure(
        &mut self,
        instance: &Instance,
        line: &LineSettings,
        registration: &RegistrationSettings,
        now: Mono,
    ) {
        self.ledger.configure(instance.quota_per_minute, registration.upstream_max_delay);
        if (self.quota_per_minute, self.burst) != (instance.quota_per_minute, instance.burst) {
            let credit = self.pace.credit(now).min(instance.burst);
            self.pace = Pace::new(instance.quota_per_minute, instance.burst, credit, now);
            (self.quota_per_minute, self.burst) = (instance.quota_per_minute, instance.burst);
        }
        self.length_max = line.length_max;
        self.in_flight_max = registration.in_flight_max;
        self.lookup_spends = registration.lookup_spends;
        self.backoff = (registration.backoff_min, registration.backoff_max);
        self.registration_time.expect(line.expected_registration);
    }

    /// Failures of the instance in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Devices that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lanes.iter().map(Lane::len).sum::<usize>() + self.deferred.len()
    }

    /// Gives out the next place of a lane. It holds up those behind it until [`confirm`](Self::confirm) or [`leave`](Self::leave).
    ///
    /// # Errors
    /// [`LineFull`] if as many wait as the configuration allows.
    pub fn reserve(&mut self, id: RegistrationId, class: Class) -> Result<Place, LineFull> {
        if self.waiting() >= self.length_max {
            return Err(LineFull { length_max: self.length_max });
        }
        Ok(self.give(id, class))
    }

    /// Gives a device that waits already a second place, ahead of all that are not expedited; its first one must be left then. Needs
    /// no room, so that it works in a full line.
    pub fn reserve_ahead(&mut self, id: RegistrationId) -> Place {
        self.give(id, Class::Expedited)
    }

    fn give(&mut self, id: RegistrationId, class: Class) -> Place {
        let sequence = self.next_sequence[class as usize];
        self.next_sequence[class as usize] += 1;
        self.lanes[class as usize].insert(sequence, Waiting { id, errand: Errand::Register, confirmed: false });
        Place { class, sequence }
    }

    /// The place is on disk: its turn counts from now on.
    pub fn confirm(&mut self, place: Place) {
        if let Some(waiting) = self.lanes[place.class as usize].get_mut(place.sequence) {
            waiting.confirmed = true;
        }
    }

    /// A confirmed place goes not before `not_before`; those behind it do not wait for it.
    pub fn defer(&mut self, place: Place, not_before: Mono) {
        if let Some(waiting) = self.lanes[place.class as usize].remove(place.sequence) {
            self.deferred.insert((not_before, place), waiting);
            self.deferred_until.insert(place, not_before);
        }
    }

    /// Puts a place of an earlier process back where it was.
    pub fn restore(&mut self, place: Place, id: RegistrationId, errand: Errand) {
        self.lanes[place.class as usize].insert(place.sequence, Waiting { id, errand, confirmed: true });
        self.seen(place);
    }

    /// Takes over a registration that an earlier process left with DPS and that only has to be polled.
    pub fn adopt(&mut self, place: Place, id: RegistrationId, now: Mono) {
        self.under_way.insert(place, UnderWay { id, since: now, left: false });
        self.seen(place);
    }

    fn seen(&mut self, place: Place) {
        let next = &mut self.next_sequence[place.class as usize];
        *next = (*next).max(place.sequence.saturating_add(1));
    }

    /// Gives a place up: one under way ends there instead of coming back. Returns whether it was waiting (not under way, not unknown).
    pub fn leave(&mut self, place: Place) -> bool {
        if let Some(under_way) = self.under_way.get_mut(&place) {
            under_way.left = true;
            return false;
        }
        if let Some(due) = self.deferred_until.remove(&place) {
            return self.deferred.remove(&(due, place)).is_some();
        }
        self.lanes[place.class as usize].remove(place.sequence).is_some()
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
        let Some((place, errand)) = self.front() else { return wait(None) };
        if self.under_way.len() >= self.in_flight_max {
            return wait(None);
        }
        if let Some((until, _)) = self.paused(now) {
            return Next::WaitUntil(until);
        }
        let mut slot = None;
        if errand == Errand::Register || self.lookup_spends {
            match self.ledger.check(now) {
                Ok(()) => {}
                Err(Full::Until(until)) => return wait(Some(until)),
                Err(Full::UntilAnswered) => return wait(None),
            }
            if let Err(due) = self.pace.take(now) {
                return wait(Some(due));
            }
            slot = Some(self.ledger.take());
        }
        let Some(waiting) = self.lanes[place.class as usize].remove(place.sequence) else { return wait(None) };
        self.under_way.insert(place, UnderWay { id: waiting.id.clone(), since: now, left: false });
        Next::Depart(Departure { id: waiting.id, place, errand, slot })
    }

    /// The first confirmed place. A lane whose first place is still being written yields to the lane behind it.
    fn front(&mut self) -> Option<(Place, Errand)> {
        for class in CLASSES {
            if let Some((sequence, waiting)) = self.lanes[class as usize].front()
                && waiting.confirmed
            {
                return Some((Place { class, sequence }, waiting.errand));
            }
        }
        None
    }

    fn recall_deferred(&mut self, now: Mono) {
        while let Some((&(due, place), _)) = self.deferred.first_key_value()
            && due <= now
        {
            if let Some(waiting) = self.deferred.remove(&(due, place)) {
                self.deferred_until.remove(&place);
                self.lanes[place.class as usize].insert(place.sequence, waiting);
            }
        }
    }

    /// Whether a departure may still send at `now`: not if the quota was lowered below what left in the meantime.
    #[must_use]
    pub fn may_send(&mut self, slot: Option<SlotId>, now: Mono) -> bool {
        slot.is_none() || self.ledger.used(now) <= self.ledger.quota()
    }

    /// DPS answered the call that holds `slot`, `took` after it was sent.
    pub fn answered(&mut self, slot: Option<SlotId>, now: Mono, took: Duration) {
        if let Some(slot) = slot {
            self.ledger.answered(slot, now);
        }
        self.answer_time.observe(took);
    }

    /// The call that holds `slot` was given up without an answer.
    pub fn abandoned(&mut self, slot: Option<SlotId>, now: Mono) {
        if let Some(slot) = slot {
            self.ledger.abandoned(slot, now);
        }
    }

    /// The call that holds `slot` never left this machine.
    pub fn never_left(&mut self, slot: Option<SlotId>) {
        if let Some(slot) = slot {
            self.ledger.never_left(slot);
        }
    }

    /// The device is done with this line: assigned, refused or gone. `assigned` teaches the forecast how long that takes.
    pub fn finish(&mut self, place: Place, assigned: bool, now: Mono) {
        if let Some(under_way) = self.under_way.remove(&place)
            && assigned
        {
            self.registration_time.observe(now.since(under_way.since));
        }
    }

    /// A device under way comes back to its place, to go again not before `not_before`; unless the place was left meanwhile.
    pub fn come_back(&mut self, place: Place, errand: Errand, not_before: Mono, now: Mono) {
        let Some(under_way) = self.under_way.remove(&place).filter(|under_way| !under_way.left) else { return };
        let waiting = Waiting { id: under_way.id, errand, confirmed: true };
        if not_before <= now {
            self.lanes[place.class as usize].insert(place.sequence, waiting);
        } else {
            self.deferred.insert((not_before, place), waiting);
            self.deferred_until.insert(place, not_before);
        }
    }

    /// Nobody goes before `until`, because DPS said so.
    pub fn throttled_until(&mut self, until: Mono) {
        self.throttled_until = self.throttled_until.max(until);
    }

    /// A call failed in a way that blames the instance: waits grow with each failure in a row, with full jitter. The first failure
    /// alone pauses nobody: it may be about that one device.
    pub fn instance_failed(&mut self, now: Mono, entropy: &mut Entropy) {
        self.failures = self.failures.saturating_add(1);
        if self.failures > 1 {
            let wait = retry::full_jitter(self.failures, self.backoff.0, self.backoff.1, entropy);
            self.failing_until = self.failing_until.max(now.after(wait));
        }
    }

    /// The instance answered as it should.
    pub fn instance_works(&mut self) {
        self.failures = 0;
        self.failing_until = Mono::default();
    }

    fn paused(&self, now: Mono) -> Option<(Mono, Holding)> {
        let pauses = [(self.throttled_until, Holding::ThrottledByDps), (self.failing_until, Holding::InstanceFailing)];
        pauses.into_iter().filter(|&(until, _)| until > now).max_by_key(|&(until, _)| until)
    }

    /// What the device at `place` can be told at `now`. `None` if this line does not know it.
    #[must_use]
    pub fn forecast(&mut self, place: Place, now: Mono) -> Option<Forecast> {
        let typical = self.registration_time.value();
        if let Some(under_way) = self.under_way.get(&place) {
            // Overdue ones are expected at the next poll.
            let appointment = under_way.since.after(typical).max(now.after(Duration::from_secs(1)));
            return Some(Forecast { position: 0, appointment });
        }
        let deferred_until = self.deferred_until.get(&place).copied();
        if deferred_until.is_none() && self.lanes[place.class as usize].get(place.sequence).is_none() {
            return None;
        }
        let ahead_classes: usize =
            CLASSES.iter().filter(|class| **class < place.class).map(|&class| self.lanes[class as usize].len()).sum();
        let rank = ahead_classes + self.lanes[place.class as usize].rank(place.sequence);
        let permit = self.permit_forecast(rank as u64, now).max(deferred_until.unwrap_or_default());
        Some(Forecast { position: rank + 1, appointment: permit.after(typical) })
    }

    fn permit_forecast(&mut self, rank: u64, now: Mono) -> Mono {
        let start = self.paused(now).map_or(now, |(until, _)| until);
        let latency = self.answer_time.value();
        self.pace.forecast(rank, start).max(self.ledger.forecast(rank, start, latency))
    }

    /// The numbers an operator watches.
    #[must_use]
    pub fn status(&mut self, now: Mono) -> LineStatus {
        let waiting = self.waiting();
        let used = self.ledger.used(now);
        let paused = self.paused(now);
        let holding = match paused {
            _ if waiting == 0 => Holding::Nothing,
            Some((_, holding)) => holding,
            None if self.under_way.len() >= self.in_flight_max => Holding::InFlightMax,
            None if used >= self.ledger.quota() => Holding::Quota,
            None => Holding::Nothing,
        };
        let drained_at = waiting.checked_sub(1).map(|last| {
            let last = self.permit_forecast(last as u64, now);
            last.after(self.registration_time.value())
        });
        LineStatus {
            waiting,
            under_way: self.under_way.len(),
            quota_per_minute: self.quota_per_minute,
            budget: self.ledger.quota().saturating_sub(used),
            drained_at,
            holding,
            paused_until: paused.map(|(until, _)| until),
            failures: self.failures,
        }
    }
}

/// What a duration typically is: the longest but one of the last ones seen, so that a device that is told this seldom comes back too
/// early, and one straggler does not hold up the others.
#[derive(Debug)]
struct Typical {
    expected: Duration,
    recent: Vec<Duration>,
    oldest: usize,
    value: Duration,
}

const TYPICAL_OBSERVATIONS: usize = 64;

impl Typical {
    fn new(expected: Duration) -> Self {
        Self { expected, recent: Vec::new(), oldest: 0, value: expected }
    }

    fn expect(&mut self, expected: Duration) {
        self.expected = expected;
        self.update();
    }

    fn observe(&mut self, duration: Duration) {
        if self.recent.len() < TYPICAL_OBSERVATIONS {
            self.recent.push(duration);
        } else {
            self.recent[self.oldest] = duration;
            self.oldest = (self.oldest + 1) % TYPICAL_OBSERVATIONS;
        }
        self.update();
    }

    fn update(&mut self) {
        // A handful of observations says little about the slow ones.
        if self.recent.len() < 8 {
            self.value = self.recent.iter().copied().fold(self.expected, Duration::max);
            return;
        }
        let mut sorted = self.recent.clone();
        sorted.sort_unstable();
        self.value = sorted[sorted.len() - 2];
    }

    fn value(&self) -> Duration {
        self.value
    }
}
