//! The line of one instance: who goes next, when, and what everybody else may be told.
//!
//! A pure state machine: events and the time go in, decisions come out. It never awaits and holds nothing but memory; the
//! durable record of a place is the caller's business, and comes first: a place is *reserved*, written, then *confirmed*.
//!
//! Invariants:
//! - Nothing departs unless the ledger has a slot for it; the pace is asked last, so no permit is spent that the ledger then refuses.
//! - Within a lane places depart in the order they were reserved; a place that is being written holds up those behind it.
//! - A place that comes back (throttled, failed) stands where it stood; one that was left meanwhile does not come back.
//! - Every place is in exactly one of: a lane, the deferred set, the set under way.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::ids::{RegistrationId, TenantName};
use crate::line::lane::{Departure as DepartureNumber, JobKind, Joined, Waiting};
use crate::line::scheduler::{FairScheduler, Fairness, Turn};
use crate::place::{Class, Place, Sequence};
use crate::settings::{Instance, LineSettings, RegistrationSettings};
use rate_control::circuit_breaker::{CircuitBreaker, CircuitState, Held};
use rate_control::concurrency_limit::ConcurrencyLimit;
use rate_control::entropy::Entropy;
use rate_control::latency_estimate::LatencyEstimate;
use rate_control::learner::{Band, Learned, Learner};
use rate_control::ledger::{Full, Ledger, SlotId, SlotRecord};
use rate_control::time::{BootId, Mono};
use rate_control::token_bucket::TokenBucket;

pub mod lane;
mod moving;
mod recent;
mod room;
pub mod scheduler;
mod status;

pub use recent::LastMinute;
use recent::Recent;
pub use status::{LineStatus, TenantStatus};

use room::Outside;

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

/// How long nobody goes after the store failed.
const STORE_WAIT: Duration = Duration::from_secs(1);

/// A learned limit makes up for delays by at most this part of a minute's registrations at once: 300 ms, about what answers vary by.
const CATCH_UP_PART: u32 = 200;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holding {
    /// Nothing: the front goes now, nobody waits, or each of those who do waits for a moment of its own.
    Nothing,
    /// DPS asked us to wait.
    ThrottledByDps,
    /// DPS throttled a call not long ago: few are out at the same time, at first one.
    AfterThrottling,
    /// Calls to the instance fail; we try again with one device after a growing wait, and then ramp up.
    InstanceFailing,
    /// Calls to the instance go through again: few are out at the same time at first.
    RampingUp,
    /// The quota of this minute is used.
    Quota,
    /// The quota is spread evenly over the minute.
    Pace,
    /// As many registrations are out as the rate needs; the next one leaves with an answer.
    Concurrency,
    /// As many registrations as `registration.in_flight_max` allows are under way.
    InFlightMax,
    /// As many calls as `registration.connections_max` allows are out.
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

/// What keeps the front from going, and until when it surely does; `None` if an event ends it.
#[derive(Debug, Clone, Copy)]
struct Hold {
    by: Holding,
    until: Option<Mono>,
    /// So many calls may be out at the same time, if that is what holds it.
    calls_max: Option<usize>,
}

impl Hold {
    const fn by(by: Holding, until: Option<Mono>) -> Self {
        Self { by, until, calls_max: None }
    }

    const fn calls(by: Holding, calls_max: usize, until: Option<Mono>) -> Self {
        Self { by, until, calls_max: Some(calls_max) }
    }
}

/// The line of one instance. See the module for its invariants.
#[derive(Debug)]
pub struct Line {
    scheduler: FairScheduler,
    next_sequence: [Sequence; 4],
    deferred: BTreeMap<(Mono, Place), Deferred>,
    deferred_until: BTreeMap<Place, Mono>,
    /// How many of each tenant are deferred, and the latest moment that any of those had to wait for.
    deferred_of: BTreeMap<TenantName, (usize, Mono)>,
    /// Devices that were turned away, for want of room.
    outside: Outside,
    under_way: BTreeMap<Place, UnderWay>,
    /// Of these, how many have a call out.
    calling: usize,
    ledger: Ledger,
    bucket: TokenBucket,
    breaker: CircuitBreaker,
    /// When the breaker last opened.
    opened: Option<Mono>,
    concurrency: ConcurrencyLimit,
    learner: Learner,
    /// The limit changed since somebody asked for it.
    learned_anew: bool,
    began: Mono,
    quota_per_minute: u32,
    burst: u32,
    length_max: usize,
    in_flight_max: usize,
    lookup_spends: bool,
    upstream_max_delay: Duration,
    /// Until when DPS told us to wait; only time ends that.
    throttled_until: Mono,
    /// Until when the store is left alone after a failed write.
    store_until: Mono,
    registration_time: LatencyEstimate,
    answer_time: LatencyEstimate,
    recent: Recent,
}

/// What an earlier process left of one line, besides its places.
#[derive(Debug, Default)]
pub struct RecoveryState {
    /// Sends that may still count.
    pub slots: Vec<(SlotId, SlotRecord)>,
    /// What was learned of the limit.
    pub learned: Option<Learned>,
    /// Until when DPS asked us to wait.
    pub paused_until: Option<Mono>,
}

impl Line {
    /// An empty line with the ledger of an earlier process, if there was one.
    #[must_use]
    pub fn new(
        instance: &Instance,
        rules: (&LineSettings, &RegistrationSettings),
        fairness: Fairness,
        left: RecoveryState,
        boot: &BootId,
        now: Mono,
    ) -> Self {
        let (line, registration) = rules;
        let mut learner = Learner::new(band(instance), left.learned, now);
        let answered =
            left.slots.iter().map(|(_, slot)| slot).filter(|slot| slot.boot == *boot && slot.answered.is_some());
        learner.recall(answered.map(|slot| slot.sent), now);
        let (limit, burst) = (learner.limit(), burst_at(learner.limit(), instance.quota_per_minute, instance.burst));
        let mut sent: Vec<Mono> =
            left.slots.iter().map(|(_, slot)| if slot.boot == *boot { slot.sent.min(now) } else { now }).collect();
        sent.sort_unstable();
        let credit = TokenBucket::credit_after(limit, burst, sent, now);
        let mut ledger = Ledger::new(limit, registration.upstream_max_delay);
        ledger.restore(left.slots, boot, now);
        let waits = (registration.backoff_min, registration.backoff_max);
        let mut breaker = CircuitBreaker::new(registration.breaker_threshold, waits);
        if left.paused_until.is_some_and(|until| until > now) {
            breaker.throttled();
        }
        Self {
            scheduler: FairScheduler::new(fairness),
            next_sequence: [0; 4],
            deferred: BTreeMap::new(),
            deferred_until: BTreeMap::new(),
            deferred_of: BTreeMap::new(),
            outside: Outside::default(),
            under_way: BTreeMap::new(),
            calling: 0,
            ledger,
            bucket: TokenBucket::new(limit, burst, credit, now),
            breaker,
            opened: None,
            concurrency: ConcurrencyLimit::default(),
            learner,
            learned_anew: false,
            began: now,
            quota_per_minute: instance.quota_per_minute,
            burst: instance.burst,
            length_max: line.length_max,
            in_flight_max: registration.in_flight_max,
            lookup_spends: registration.lookup_spends,
            upstream_max_delay: registration.upstream_max_delay,
            throttled_until: left.paused_until.unwrap_or_default(),
            store_until: Mono::default(),
            registration_time: LatencyEstimate::new(line.expected_registration),
            answer_time: LatencyEstimate::new(Duration::from_millis(300)),
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
        let limit_before = self.learner.limit();
        self.learner.configure(band(instance), now);
        self.upstream_max_delay = registration.upstream_max_delay;
        let quota_before = std::mem::replace(&mut self.quota_per_minute, instance.quota_per_minute);
        let burst_before = std::mem::replace(&mut self.burst, instance.burst);
        self.ledger.configure(self.learner.limit(), self.upstream_max_delay);
        let before = (limit_before, burst_before, quota_before);
        if before != (self.learner.limit(), self.burst, self.quota_per_minute) {
            self.limit_changed(now);
        }
        self.length_max = line.length_max;
        self.in_flight_max = registration.in_flight_max;
        self.lookup_spends = registration.lookup_spends;
        self.breaker.configure(registration.breaker_threshold, (registration.backoff_min, registration.backoff_max));
        self.registration_time.expect(line.expected_registration);
    }

    fn limit_changed(&mut self, now: Mono) {
        let limit = self.learner.limit();
        let burst = burst_at(limit, self.quota_per_minute, self.burst);
        self.ledger.configure(limit, self.upstream_max_delay);
        self.bucket = TokenBucket::new(limit, burst, self.bucket.credit(now).min(burst), now);
        self.learned_anew = true;
    }

    /// Whether the limit has changed since this was last asked.
    pub fn take_learned_anew(&mut self) -> bool {
        std::mem::take(&mut self.learned_anew)
    }

    /// What is to be kept of the limit for the next process.
    #[must_use]
    pub fn learned(&self) -> Learned {
        self.learner.learned()
    }

    /// Registrations per minute that may leave, as far as is known.
    #[must_use]
    pub fn limit_per_minute(&self) -> u32 {
        self.learner.limit()
    }

    /// Failures of the instance in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.breaker.failures()
    }

    /// For how long calls to the instance have not gone through; `None` while they do, and when it is time to try again and nobody is
    /// here who would: then the next device does.
    #[must_use]
    pub fn sick_for(&self, now: Mono) -> Option<Duration> {
        let deserted = self.waiting() == 0 && self.under_way.is_empty();
        let due = self.breaker.open_until().is_none_or(|until| until <= now);
        self.breaker.sick_for(now).filter(|_| !(deserted && due))
    }

    /// Devices that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.scheduler.len() + self.deferred.len()
    }

    /// Gives out the next place of a lane. It holds up those behind it until [`confirm`](Self::confirm) or [`leave`](Self::leave).
    ///
    /// # Errors
    /// [`LineFull`] if as many wait as the configuration allows, or the tenant's share is used and others want theirs.
    pub fn reserve(
        &mut self,
        tenant: &TenantName,
        id: RegistrationId,
        class: Class,
        now: Mono,
    ) -> Result<Place, LineFull> {
        if !self.has_room(tenant, now) {
            return Err(self.full(tenant));
        }
        self.outside.came_in(tenant);
        Ok(self.give(tenant, id, class, now))
    }

    /// Gives a device that waits already a second place, in another class, to be [exchanged](Self::exchange) for its first one. Needs
    /// no room, so that it works in a full line.
    pub fn reserve_again(&mut self, tenant: &TenantName, id: RegistrationId, class: Class, now: Mono) -> Place {
        self.give(tenant, id, class, now)
    }

    fn give(&mut self, tenant: &TenantName, id: RegistrationId, class: Class, now: Mono) -> Place {
        let sequence = self.next_sequence[class as usize];
        self.next_sequence[class as usize] += 1;
        let place = Place { class, sequence };
        let joined = self.joined(now, Duration::ZERO);
        self.scheduler.insert(
            tenant,
            place,
            &Waiting { id, job: JobKind::Register, confirmed: false, joined, appointment: None },
        );
        self.scheduler.joins(tenant, now);
        place
    }

    fn joined(&self, now: Mono, ago: Duration) -> Joined {
        let units = |duration: Duration| {
            Joined::try_from(duration.as_millis() / JOINED_UNIT.as_millis()).unwrap_or(Joined::MAX)
        };
        JOINED_AT_START.saturating_add(units(now.since(self.began))).saturating_sub(units(ago))
    }

    /// The place is on disk: its turn counts from now on.
    pub fn confirm(&mut self, tenant: &TenantName, place: Place) {
        self.scheduler.confirm(tenant, place);
    }

    /// A confirmed place goes not before `not_before`; those behind it do not wait for it.
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
        self.scheduler.insert(tenant, place, &Waiting { id, job, confirmed: true, joined, appointment: None });
        self.seen(place);
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
        self.seen(place);
    }

    /// That place was given to a device earlier, and is given to no other.
    pub fn seen(&mut self, place: Place) {
        let next = &mut self.next_sequence[place.class as usize];
        *next = (*next).max(place.sequence.saturating_add(1));
    }

    /// The second place of a device is on disk: the first one is left. Whatever the first one had to wait for, the second one waits for
    /// too, unless an operator expedites the device.
    pub fn exchange(&mut self, tenant: &TenantName, from: Place, to: Place) {
        let not_before = self.deferred_until.get(&from).copied().filter(|_| to.class != Class::Expedited);
        self.confirm(tenant, to);
        self.leave(tenant, from);
        if let Some(not_before) = not_before {
            self.defer(tenant, to, not_before);
        }
    }

    /// Gives a place up: one under way ends there instead of coming back. Returns whether it was waiting (not under way, not unknown).
    pub fn leave(&mut self, tenant: &TenantName, place: Place) -> bool {
        if let Some(under_way) = self.under_way.get_mut(&place) {
            under_way.left = true;
            return false;
        }
        self.take_deferred(place).is_some() || self.scheduler.remove(tenant, place).is_some()
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
            self.learn(None, now);
            return wait(None);
        };
        let hold = self.hold(&turn, now).or_else(|| {
            let until = self.spends(turn.job).then(|| self.bucket.take(now).err()).flatten()?;
            Some(Hold::by(Holding::Pace, Some(until)))
        });
        if let Some(hold) = hold {
            let limit = if self.spends(turn.job) { Some(hold) } else { None };
            return if self.learn(limit, now) { self.next(now) } else { wait(hold.until) };
        }
        self.depart(turn, now).map_or_else(|| wait(None), Next::Depart)
    }

    /// Whether somebody is there who may go now. Takes nothing.
    pub fn front_may_go(&mut self, now: Mono) -> bool {
        self.recall_deferred(now);
        let front = self.scheduler.front();
        front.is_some_and(|turn| self.hold(&turn, now).is_none())
    }

    /// A call that is no device's leaves. If calls failed, it is the one that tries.
    pub fn tries(&mut self) {
        self.breaker.left();
    }

    fn spends(&self, job: JobKind) -> bool {
        job == JobKind::Register || self.lookup_spends
    }

    /// What keeps `turn` from going. Takes nothing.
    fn hold(&mut self, turn: &Turn, now: Mono) -> Option<Hold> {
        if self.under_way.len() >= self.in_flight_max {
            return Some(Hold::by(Holding::InFlightMax, None));
        }
        if let Some((until, by)) = self.paused(now) {
            return Some(Hold::by(by, Some(until)));
        }
        if let Err(held) = self.breaker.admit(now, self.calling) {
            return Some(match held {
                Held::Until(until) => Hold::by(Holding::InstanceFailing, Some(until)),
                Held::Trying | Held::ForOlderCalls => Hold::by(Holding::InstanceFailing, None),
                Held::RampingUp(most) => Hold::calls(Holding::RampingUp, most, None),
                Held::AfterThrottling(most) => Hold::calls(Holding::AfterThrottling, most, None),
            });
        }
        if self.spends(turn.job) { self.limited(now) } else { None }
    }

    /// What keeps a registration from going that spends the quota.
    fn limited(&mut self, now: Mono) -> Option<Hold> {
        let by_quota = |until| Some(Hold::by(Holding::Quota, until));
        match self.ledger.check(now) {
            Ok(()) => {}
            Err(Full::Until(until)) => return by_quota(Some(until)),
            Err(Full::UntilAnswered) => return by_quota(None),
        }
        let certain = self.ledger.used(now) < self.learner.certain();
        let answer_time = self.answer_time.value();
        match self.concurrency.check(self.learner.limit(), answer_time, now) {
            Err((most, until)) if !certain => return Some(Hold::calls(Holding::Concurrency, most, Some(until))),
            _ => {}
        }
        let permit = self.bucket.forecast(0, now);
        (permit > now).then_some(Hold::by(Holding::Pace, Some(permit)))
    }

    fn depart(&mut self, turn: Turn, now: Mono) -> Option<Departure> {
        let Waiting { id, job, joined, appointment, .. } = self.scheduler.depart(&turn)?;
        let slot = self.spends(job).then(|| self.ledger.take());
        if let Some(slot) = slot {
            self.concurrency.left(slot, now);
            self.recent.left(&turn.tenant, now);
        }
        self.breaker.left();
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

    /// Tells the learner until when the limit holds the line back, or that it does not. Whether the limit was raised.
    fn learn(&mut self, hold: Option<Hold>, now: Mono) -> bool {
        let held_until = match hold.map(|hold| (hold.by, hold.until)) {
            // Over with the next answer, and soon for good: no news.
            Some((Holding::Concurrency | Holding::AfterThrottling | Holding::RampingUp, _)) => return false,
            Some((Holding::Quota | Holding::Pace, until)) => Some(until.unwrap_or(now)),
            Some(_) | None => None,
        };
        let raised = self.learner.observe(held_until, now);
        if raised {
            self.limit_changed(now);
        }
        raised
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
        if self.throttled_until > now {
            return Err(Holding::ThrottledByDps);
        }
        if self.breaker.state() == CircuitState::Open {
            return Err(Holding::InstanceFailing);
        }
        if slot.is_some() && self.ledger.used(now) > self.ledger.quota() {
            return Err(Holding::Quota);
        }
        Ok(())
    }

    /// The call that holds `slot`, which was sent at `sent`, was answered.
    pub fn answered(&mut self, place: Place, slot: Option<SlotId>, sent: Mono, admission: Admission, now: Mono) {
        if let Some(slot) = slot {
            self.ledger.answered(slot, now);
            self.concurrency.ended(slot);
            if admission == Admission::Admitted {
                self.learner.accepted(sent, now);
                self.breaker.accepted();
            }
        }
        if admission == Admission::Admitted {
            self.answer_time.observe(now.since(sent));
        }
        self.call_ended(place);
    }

    /// The call that holds `slot` was given up without an answer.
    pub fn abandoned(&mut self, place: Place, slot: Option<SlotId>, now: Mono) {
        if let Some(slot) = slot {
            self.ledger.abandoned(slot, now);
            self.concurrency.ended(slot);
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
            self.ledger.never_left(slot);
            self.concurrency.ended(slot);
        }
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
        if assigned && self.opened.is_none_or(|opened| opened < under_way.since) && !under_way.disturbed {
            self.registration_time.observe(now.since(under_way.since));
        }
    }

    /// A device under way comes back to its place, to go again not before `not_before`; unless the place was left meanwhile.
    pub fn come_back(&mut self, place: Place, job: JobKind, not_before: Mono, now: Mono) {
        let Some(under_way) = self.take_under_way(place).filter(|under_way| !under_way.left) else { return };
        let UnderWay { tenant, id, joined, appointment, .. } = under_way;
        let waiting = Waiting { id, job, confirmed: true, joined, appointment };
        if not_before <= now {
            self.scheduler.insert(&tenant, place, &waiting);
        } else {
            self.put_off(tenant, place, waiting, not_before);
        }
    }

    /// DPS throttled a call: nobody goes before `until`. If it would have spent a registration at `spent_at`, the limit may come down.
    pub fn throttled(&mut self, spent_at: Option<Mono>, until: Mono, now: Mono) {
        self.breaker.throttled();
        let refused = spent_at.map(|sent| self.learner.refused(sent, until, now));
        if refused.is_some_and(|refused| refused.stepped) {
            self.limit_changed(now);
        }
        let not_before = refused.map_or(until, |refused| refused.not_before);
        self.throttled_until = self.throttled_until.max(not_before);
    }

    /// Until when DPS told us to wait; a moment in the past if it did not.
    #[must_use]
    pub const fn throttled_until(&self) -> Mono {
        self.throttled_until
    }

    /// A call failed in a way that blames the instance. Until when nobody goes, if that is news.
    pub fn instance_failed(&mut self, now: Mono, entropy: &mut Entropy) -> Option<Mono> {
        if !self.breaker.fails(now, entropy) {
            return None;
        }
        self.opened = Some(now);
        self.breaker.open_until()
    }

    /// The mark of a departure could not be written: nobody goes for a while. It has nothing to do with the instance.
    pub fn store_failed(&mut self, now: Mono) {
        self.store_until = now.after(STORE_WAIT);
    }

    /// The instance answered as it should. Whether calls to it failed until now.
    pub fn instance_works(&mut self) -> bool {
        self.breaker.works()
    }

    fn paused(&self, now: Mono) -> Option<(Mono, Holding)> {
        let failing = self.breaker.open_until().unwrap_or_default();
        let pauses = [
            (self.throttled_until, Holding::ThrottledByDps),
            (failing, Holding::InstanceFailing),
            (self.store_until, Holding::Store),
        ];
        pauses.into_iter().filter(|&(until, _)| until > now).max_by_key(|&(until, _)| until)
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
            if under_way.calling && self.breaker.state() != CircuitState::Closed {
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
        let permit = self.permit_forecast(rank as u64, now);
        let reserve = u32::try_from(self.scheduler.reserve(place.class, rank)).unwrap_or(u32::MAX);
        let reserve = (self.bucket.interval() * reserve).min(URGENT_RESERVE_TIME_MAX);
        let permit = permit.after(reserve).max(deferred_until.unwrap_or_default());
        let permit = permit.after(self.company_allowance(tenant, place, joined, permit.since(now), now));
        let kept =
            self.scheduler.appointment(tenant, place).map(|after| (after, self.permit_forecast(after as u64, now)));
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
        let least = self.permit_forecast(rank as u64, now).since(now);
        let wait = forecast.appointment.since(now).saturating_sub(self.registration_time.value());
        let goes_by = now.after(least + wait.saturating_sub(least).mul_f64(APPOINTMENT_MARGIN));
        // No more than at the full pace.
        let most = wait.as_nanos() / self.bucket.interval().as_nanos().max(1);
        let (mut in_time, mut late) = (rank, rank.saturating_add(usize::try_from(most).unwrap_or(0)) + 1);
        while in_time + 1 < late {
            let middle = in_time.midpoint(late);
            if self.permit_forecast(middle as u64, now) <= goes_by { in_time = middle } else { late = middle }
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
        let expected = self.bucket.interval().saturating_mul(u32::try_from(expected).unwrap_or(u32::MAX));
        let wait = wait.saturating_add(expected);
        // After a burst the line rests until the quota's window has moved on.
        let rest = self.bucket.interval() * self.burst.saturating_sub(1);
        expected + (wait / 2).min((COMPANY_RESERVE + rest).max(wait.mul_f64(COMPANY_RESERVE_PART)))
    }

    fn permit_forecast(&self, rank: u64, now: Mono) -> Mono {
        let start = self.paused(now).map_or_else(|| self.breaker.tried_until(now).unwrap_or(now), |(until, _)| until);
        let latency = self.answer_time.value();
        let paced = |rank| self.bucket.forecast(rank, start);
        paced(rank).max(self.ledger.forecast(rank, start, latency, paced))
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

/// A limit that was learned may be wrong, and then DPS refuses all of a burst: it is used evenly.
fn burst_at(limit: u32, quota: u32, burst: u32) -> u32 {
    let most = if limit < quota { 1 + limit / CATCH_UP_PART } else { burst };
    burst.min(most).min(limit)
}

fn band(instance: &Instance) -> Band {
    Band { floor: instance.learned_min_per_minute, quota: instance.quota_per_minute, on: instance.learn_limit }
}
