//! The gate before a send: everything that decides whether one more call may leave for an instance now.
//!
//! It asks in this order, and what holds first is what operators are told:
//! 1. the *pauses*: DPS asked us to wait, calls fail, or the store takes no writes
//! 2. the *circuit breaker*: whether calls go through
//! 3. the *concurrency limit*: how many calls are out, while they begin slowly
//!
//! and of a call that spends a registration:
//! 4. the *ledger*: whether the minute has room, under the *adaptive limit*
//! 5. the *concurrency limit*: whether the rate needs one more out
//! 6. the *token bucket*: last, so that no permit is spent on what is then held
//!
//! Invariants:
//! - Nothing that spends a registration passes without a slot of the ledger, and the ledger never allows more than the quota.
//! - The limit of ledger and bucket is the adaptive limit, and changes in `follow` only.
//! - Nothing but time ends a pause that DPS asked for.

use std::time::Duration;

use super::{Admission, Holding};
use crate::settings::{Instance, RegistrationSettings};
use rate_control::adaptive_limit::{AdaptiveLimit, Band, Kept, LimitState};
use rate_control::circuit_breaker::{CircuitBreaker, CircuitState, Held};
use rate_control::concurrency_limit::{After, ConcurrencyLimit};
use rate_control::entropy::Entropy;
use rate_control::latency_estimate::LatencyEstimate;
use rate_control::ledger::{Full, Ledger, LeftSend, Settlement, SlotId};
use rate_control::time::Mono;
use rate_control::token_bucket::TokenBucket;

/// How long nobody goes after the store failed.
const STORE_WAIT: Duration = Duration::from_secs(1);

/// A limit below the quota makes up for delays by at most this part of a minute's registrations at once: 300 ms, about what answers vary by.
const CATCH_UP_PART: u32 = 200;

/// How long an answer is taken to need before there was one.
const EXPECTED_ANSWER: Duration = Duration::from_millis(300);

/// What an earlier process left of the gate.
#[derive(Debug, Default)]
pub struct RecoveryState {
    /// Sends that may still count.
    pub slots: Vec<(SlotId, LeftSend)>,
    /// How long those without a known end are held; `None` if that can only be seen.
    pub orphan_hold: Option<Duration>,
    /// The adaptive limit.
    pub limit: Option<Kept>,
    /// Until when DPS asked us to wait.
    pub paused_until: Option<Mono>,
}

/// What keeps a call from leaving, and until when it surely does; `None` if an event ends it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hold {
    pub(super) by: Holding,
    pub(super) until: Option<Mono>,
    /// So many calls may be out at the same time, if that is what holds it.
    pub(super) calls_max: Option<usize>,
}

impl Hold {
    pub(super) const fn by(by: Holding, until: Option<Mono>) -> Self {
        Self { by, until, calls_max: None }
    }

    const fn calls(by: Holding, calls_max: usize, until: Option<Mono>) -> Self {
        Self { by, until, calls_max: Some(calls_max) }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Gate {
    /// Until when DPS told us to wait.
    throttled_until: Mono,
    /// Until when the store is left alone after a failed write.
    store_until: Mono,
    breaker: CircuitBreaker,
    /// When the breaker last opened.
    opened: Option<Mono>,
    concurrency: ConcurrencyLimit,
    limit: AdaptiveLimit,
    /// The limit changed since somebody asked for it.
    limit_changed: bool,
    ledger: Ledger,
    bucket: TokenBucket,
    answer_time: LatencyEstimate,
    quota_per_minute: u32,
    burst: u32,
    upstream_max_delay: Duration,
}

impl Gate {
    /// The gate of an instance, with what an earlier process left.
    pub(super) fn new(
        instance: &Instance,
        registration: &RegistrationSettings,
        left: &RecoveryState,
        now: Mono,
    ) -> Self {
        let mut limit = AdaptiveLimit::new(band(instance), left.limit, now);
        let answered = left.slots.iter().filter(|(_, send)| matches!(send.end, Some((Settlement::Answered, _))));
        limit.recall(answered.filter_map(|(_, send)| send.sent), now);
        let per_minute = limit.limit();
        let burst = burst_at(per_minute, instance.quota_per_minute, instance.burst);
        let mut sent: Vec<Mono> = left.slots.iter().map(|(_, send)| send.sent.unwrap_or(now)).collect();
        sent.sort_unstable();
        let credit = TokenBucket::credit_after(per_minute, burst, sent, now);
        let mut ledger = Ledger::new(per_minute, registration.upstream_max_delay);
        ledger.inherit(left.slots.iter().map(|(slot, send)| (*slot, send.end)), left.orphan_hold, now);
        let mut concurrency = ConcurrencyLimit::default();
        if left.paused_until.is_some_and(|until| until > now) {
            concurrency.begin_slowly(After::Throttling);
        }
        Self {
            throttled_until: left.paused_until.unwrap_or_default(),
            store_until: Mono::default(),
            breaker: CircuitBreaker::new(registration.breaker_threshold, backoff(registration)),
            opened: None,
            concurrency,
            limit,
            limit_changed: false,
            ledger,
            bucket: TokenBucket::new(per_minute, burst, credit, now),
            answer_time: LatencyEstimate::new(EXPECTED_ANSWER),
            quota_per_minute: instance.quota_per_minute,
            burst: instance.burst,
            upstream_max_delay: registration.upstream_max_delay,
        }
    }

    /// Applies changed limits at once.
    pub(super) fn configure(&mut self, instance: &Instance, registration: &RegistrationSettings, now: Mono) {
        let before = (self.quota_per_minute, self.burst);
        (self.quota_per_minute, self.burst) = (instance.quota_per_minute, instance.burst);
        self.upstream_max_delay = registration.upstream_max_delay;
        self.ledger.configure(self.ledger.quota(), self.upstream_max_delay);
        self.breaker.configure(registration.breaker_threshold, backoff(registration));
        self.limit.configure(band(instance), now);
        if before == (self.quota_per_minute, self.burst) {
            self.follow(now);
        } else {
            self.use_limit(now);
        }
    }

    /// Ledger and bucket follow the adaptive limit, which grows by itself.
    pub(super) fn follow(&mut self, now: Mono) {
        self.limit.grow(now);
        if self.limit.limit() != self.ledger.quota() {
            self.use_limit(now);
        }
    }

    fn use_limit(&mut self, now: Mono) {
        let limit = self.limit.limit();
        let burst = burst_at(limit, self.quota_per_minute, self.burst);
        self.ledger.configure(limit, self.upstream_max_delay);
        self.bucket = TokenBucket::new(limit, burst, self.bucket.credit(now).min(burst), now);
        self.limit_changed = true;
    }

    /// What keeps one more call from leaving while `calling` are out. Takes nothing.
    pub(super) fn hold(&mut self, spends: bool, calling: usize, now: Mono) -> Option<Hold> {
        self.follow(now);
        if let Some((until, by)) = self.paused(now) {
            return Some(Hold::by(by, Some(until)));
        }
        if let Err(held) = self.breaker.admit(now, calling) {
            let until = if let Held::Until(until) = held { Some(until) } else { None };
            return Some(Hold::by(Holding::InstanceFailing, until));
        }
        if let Err((most, after)) = self.concurrency.admit(calling) {
            let by = match after {
                After::Throttling => Holding::AfterThrottling,
                After::Failure => Holding::RampingUp,
            };
            return Some(Hold::calls(by, most, None));
        }
        if spends { self.limited(now) } else { None }
    }

    /// What keeps a registration from leaving that spends the quota.
    fn limited(&mut self, now: Mono) -> Option<Hold> {
        match self.ledger.check(now) {
            Ok(()) => {}
            Err(Full::Until(until)) => return Some(Hold::by(Holding::Quota, Some(until))),
            Err(Full::UntilAnswered) => return Some(Hold::by(Holding::Quota, None)),
        }
        let is_above_floor = self.ledger.used(now) >= self.limit.floor();
        match self.concurrency.check(self.limit.limit(), self.answer_time.value(), now) {
            Err((most, until)) if is_above_floor => return Some(Hold::calls(Holding::Concurrency, most, Some(until))),
            _ => {}
        }
        let permit = self.bucket.forecast(0, now);
        (permit > now).then_some(Hold::by(Holding::Pace, Some(permit)))
    }

    /// A call leaves that nothing [held](Self::hold); the slot is of one that spends a registration.
    ///
    /// # Errors
    /// The token bucket holds it after all.
    pub(super) fn leave(&mut self, spends: bool, now: Mono) -> Result<Option<SlotId>, Hold> {
        if spends && let Err(until) = self.bucket.take(now) {
            return Err(Hold::by(Holding::Pace, Some(until)));
        }
        let slot = spends.then(|| self.ledger.take());
        if let Some(slot) = slot {
            self.concurrency.left(slot, now);
        }
        self.breaker.left();
        Ok(slot)
    }

    /// A call that is no device's leaves. If calls failed, it is the trial call.
    pub(super) fn tries(&mut self) {
        self.breaker.left();
    }

    /// Whether a call that left the line may still be sent.
    ///
    /// # Errors
    /// What holds it: DPS asked us to wait meanwhile, other calls failed meanwhile, or the limit came down below what left meanwhile.
    pub(super) fn may_send(&mut self, slot: Option<SlotId>, now: Mono) -> Result<(), Holding> {
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
    pub(super) fn answered(&mut self, slot: Option<SlotId>, sent: Mono, admission: Admission, now: Mono) {
        if let Some(slot) = slot {
            self.ledger.answered(slot, now);
            self.concurrency.ended(slot);
        }
        if admission == Admission::Admitted {
            self.answer_time.observe(now.since(sent));
            if slot.is_some() {
                self.limit.accepted(sent, now);
            }
        }
    }

    /// The call that holds `slot` was given up without an answer.
    pub(super) fn abandoned(&mut self, slot: SlotId, now: Mono) {
        self.ledger.abandoned(slot, now);
        self.concurrency.ended(slot);
    }

    /// The call that holds `slot` never left this machine.
    pub(super) fn never_left(&mut self, slot: SlotId) {
        self.ledger.never_left(slot);
        self.concurrency.ended(slot);
    }

    /// Until when `slot` is held; `None` if it is free, or if its call is out.
    pub(super) fn held_until(&self, slot: SlotId) -> Option<Mono> {
        self.ledger.held_until(slot)
    }

    /// The sends of earlier owners whose end is not known.
    pub(super) fn orphans(&self) -> impl Iterator<Item = SlotId> {
        self.ledger.orphans()
    }

    /// The end of an orphan was seen.
    pub(super) fn orphan_ended(&mut self, slot: SlotId, settlement: Settlement, now: Mono) {
        self.ledger.orphan_ended(slot, settlement, now);
    }

    /// DPS throttled a call: nobody goes before `until`. If it would have spent a registration at `spent_at`, the limit may come down.
    pub(super) fn throttled(&mut self, spent_at: Option<Mono>, until: Mono, now: Mono) {
        self.throttled_until = self.throttled_until.max(until);
        self.concurrency.begin_slowly(After::Throttling);
        if let Some(sent) = spent_at {
            self.limit.refused(sent, until, now);
            self.follow(now);
        }
    }

    /// A call failed in a way that blames the instance. Until when nobody goes, if that is news.
    pub(super) fn instance_failed(&mut self, now: Mono, entropy: &mut Entropy) -> Option<Mono> {
        if !self.breaker.fails(now, entropy) {
            return None;
        }
        self.opened = Some(now);
        self.breaker.open_until()
    }

    /// The instance answered as it should. Whether calls to it failed until now.
    pub(super) fn instance_works(&mut self) -> bool {
        let closes = self.breaker.works();
        if closes {
            self.concurrency.begin_slowly(After::Failure);
        }
        self.concurrency.went_through();
        closes
    }

    /// The store failed: nobody goes for a while. It has nothing to do with the instance.
    pub(super) fn store_failed(&mut self, now: Mono) {
        self.store_until = now.after(STORE_WAIT);
    }

    /// Until when nobody goes, and why, if nobody does.
    pub(super) fn paused(&self, now: Mono) -> Option<(Mono, Holding)> {
        let failing = self.breaker.open_until().unwrap_or_default();
        let pauses = [
            (self.throttled_until, Holding::ThrottledByDps),
            (failing, Holding::InstanceFailing),
            (self.store_until, Holding::Store),
        ];
        pauses.into_iter().filter(|&(until, _)| until > now).max_by_key(|&(until, _)| until)
    }

    /// When the call with so many others before it may leave, if all leave as soon as they may.
    pub(super) fn forecast(&self, rank: u64, now: Mono) -> Mono {
        let start = self.paused(now).map_or_else(|| self.breaker.tried_until(now).unwrap_or(now), |(until, _)| until);
        let latency = self.answer_time.value();
        let paced = |rank| self.bucket.forecast(rank, start);
        paced(rank).max(self.ledger.forecast(rank, start, latency, paced))
    }

    /// The time between two registrations that leave evenly.
    pub(super) const fn interval(&self) -> Duration {
        self.bucket.interval()
    }

    /// Registrations that may leave together, as configured.
    pub(super) const fn burst(&self) -> u32 {
        self.burst
    }

    /// Registrations per minute that may leave, as configured.
    pub(super) const fn quota_per_minute(&self) -> u32 {
        self.quota_per_minute
    }

    /// Registrations per minute that may leave, as it was last [followed](Self::follow).
    pub(super) const fn limit_per_minute(&self) -> u32 {
        self.ledger.quota()
    }

    /// What the adaptive limit is at, and whether that is the floor of its band.
    pub(super) const fn limit_state(&self) -> (LimitState, bool) {
        (self.limit.state(), self.limit.limit() <= self.limit.floor())
    }

    /// When the adaptive limit grows next; `None` while it is the quota.
    pub(super) fn limit_grows_at(&self) -> Option<Mono> {
        self.limit.grows_at()
    }

    /// What is left of the limit to the next process.
    pub(super) fn kept_limit(&self, now: Mono) -> Kept {
        self.limit.kept(now)
    }

    /// Whether the limit has changed since this was last asked.
    pub(super) const fn take_limit_changed(&mut self) -> bool {
        std::mem::replace(&mut self.limit_changed, false)
    }

    /// Registrations that could leave now without breaking the limit.
    pub(super) fn budget(&mut self, now: Mono) -> u32 {
        let used = self.ledger.used(now);
        self.ledger.quota().saturating_sub(used)
    }

    /// Until when DPS told us to wait; a moment in the past if it did not.
    pub(super) const fn throttled_until(&self) -> Mono {
        self.throttled_until
    }

    /// The circuit breaker, to be looked at.
    pub(super) const fn breaker(&self) -> &CircuitBreaker {
        &self.breaker
    }

    /// When the breaker last opened.
    pub(super) const fn opened(&self) -> Option<Mono> {
        self.opened
    }
}

const fn backoff(registration: &RegistrationSettings) -> (Duration, Duration) {
    (registration.backoff_min, registration.backoff_max)
}

/// A limit that DPS showed may be off, and then it refuses all of a burst: it is used evenly.
fn burst_at(limit: u32, quota: u32, burst: u32) -> u32 {
    let most = if limit < quota { 1 + limit / CATCH_UP_PART } else { burst };
    burst.min(most).min(limit)
}

fn band(instance: &Instance) -> Band {
    let quota = instance.quota_per_minute;
    Band { floor: instance.adaptive_limit_min_per_minute.min(quota), quota, on: instance.adaptive_limit }
}
