//! The limit learner of one instance: what DPS really takes, when that is less than the configured quota.
//!
//! Other callers may share the quota, and quotas change. When DPS throttles a registration, what it accepted within the last
//! minute is what it takes: the limit comes down to that, and is tried upwards later, in steps.
//!
//! Invariants:
//! - The limit stays within the band from the floor to the configured quota. It is never above the quota, so promise and
//!   ledger hold whatever is learned.
//! - One step down per limit: refusals of calls that had left before a step say nothing about the new limit. So a step costs
//!   one refusal and at most those of the calls that were out.
//! - It steps up only after a whole window in which the limit was what held the line back, and only by a bounded step. A step that is
//!   refused doubles the time until the next try.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use crate::ledger::{DRIFT_GUARD, WINDOW};
use crate::time::Mono;

/// A limit comes down to at least this part of itself: fewer acceptances than that say that the window had hardly begun.
const LEAST_PART: u32 = 5;

/// Kept below what was accepted, in per cent: another caller's share and DPS's own clock vary a little.
const MARGIN_PERCENT: u32 = 2;

/// Upward steps, in per cent of the quota: the first one, and the largest.
const STEP_PERCENT: (u32, u32) = (2, 10);

/// How long a limit that DPS has shown is believed before a higher one is tried; doubles with every refused try.
const BELIEVED: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(3600));

/// How long a limit has to hold the line back before it counts as kept.
const PROVEN: Duration = WINDOW.saturating_add(DRIFT_GUARD);

/// What the learner is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Learning {
    /// The configured quota holds.
    Configured,
    /// A lower limit was shown by DPS and is believed for a while.
    Believed,
    /// A higher limit is being tried.
    Probing,
    /// Switched off.
    Off,
}

/// The band, as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Band {
    /// Never below this; at least 1.
    pub floor: u32,
    /// Never above this: the quota.
    pub quota: u32,
    /// Whether to learn at all.
    pub on: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Learner {
    band: Band,
    limit: u32,
    /// Calls accepted within the last window, by when they were sent.
    accepted: VecDeque<Mono>,
    /// When the limit last came down.
    stepped: Mono,
    /// Since when the limit holds the line back.
    binding_since: Option<Mono>,
    believed_until: Mono,
    believe: Duration,
    step_percent: u32,
    /// The limit was raised on trial, and is not proven yet.
    probing: bool,
}

impl Learner {
    /// A learner that begins with `learned`, if an earlier process left that, else with the quota.
    #[must_use]
    pub fn new(band: Band, learned: Option<u32>, now: Mono) -> Self {
        let mut learner = Self {
            band,
            limit: band.quota,
            accepted: VecDeque::new(),
            stepped: Mono::default(),
            binding_since: None,
            believed_until: Mono::default(),
            believe: BELIEVED.0,
            step_percent: STEP_PERCENT.0,
            probing: false,
        };
        if let Some(learned) = learned.filter(|learned| band.on && *learned < band.quota) {
            learner.limit = learned.max(band.floor);
            learner.believed_until = now.after(BELIEVED.0);
        }
        learner
    }

    /// Registrations per minute that may leave.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> Learning {
        match (self.band.on, self.probing) {
            (false, _) => Learning::Off,
            (true, true) => Learning::Probing,
            (true, false) if self.limit < self.band.quota => Learning::Believed,
            (true, false) => Learning::Configured,
        }
    }

    /// Takes a changed band over. A changed quota is news from the operator: what was learned under the old one is forgotten.
    pub fn configure(&mut self, band: Band, now: Mono) {
        if band.quota != self.band.quota || !band.on {
            *self = Self { accepted: std::mem::take(&mut self.accepted), ..Self::new(band, None, now) };
        } else {
            self.band = band;
            self.limit = self.limit.max(band.floor.min(band.quota));
        }
    }

    /// DPS took a registration that was sent at `sent`.
    pub fn accepted(&mut self, sent: Mono, now: Mono) {
        if self.band.on {
            self.forget(now);
            self.accepted.push_back(sent);
        }
    }

    fn forget(&mut self, now: Mono) {
        while self.accepted.front().is_some_and(|sent| now.since(*sent) >= PROVEN) {
            self.accepted.pop_front();
        }
    }

    /// DPS throttled a registration that was sent at `sent`. Whether the limit came down.
    pub fn refused(&mut self, sent: Mono, now: Mono) -> bool {
        if !self.band.on || sent < self.stepped {
            return false;
        }
        self.forget(now);
        let accepted = u32::try_from(self.accepted.len()).unwrap_or(u32::MAX);
        let shown = accepted - accepted.saturating_mul(MARGIN_PERCENT).div_ceil(100).min(accepted);
        let least = (self.limit / LEAST_PART).max(self.band.floor).max(1);
        let below = self.limit.saturating_sub(1).max(self.band.floor);
        let limit = shown.clamp(least.min(below), below);
        // Hardly anything was accepted: the refusal shows no limit, so that it is not believed for long.
        let shows_a_limit = shown >= least;
        if self.probing {
            self.believe = (self.believe * 2).min(BELIEVED.1);
        }
        self.believed_until = if shows_a_limit { now.after(self.believe) } else { now };
        self.step_percent = if shows_a_limit { STEP_PERCENT.0 } else { 100 };
        (self.stepped, self.binding_since, self.probing) = (now, None, false);
        std::mem::replace(&mut self.limit, limit) != limit
    }

    /// Told at each departure and whenever the limit holds somebody back (`binding`) or nobody waits. Whether the limit was raised.
    pub fn observe(&mut self, binding: bool, now: Mono) -> bool {
        if !self.band.on || self.limit >= self.band.quota && !self.probing {
            return false;
        }
        if !binding {
            self.binding_since = None;
            return false;
        }
        let since = *self.binding_since.get_or_insert(now);
        if now.since(since) < PROVEN || now < self.believed_until {
            return false;
        }
        if self.probing {
            // It was kept for a whole window: the next step may be larger.
            self.believe = BELIEVED.0;
            self.step_percent = (self.step_percent * 2).min(STEP_PERCENT.1.max(self.step_percent));
        }
        self.probing = self.limit < self.band.quota;
        let step = if self.step_percent >= 100 {
            // Nothing is known of a limit in between: double it.
            self.limit
        } else {
            (u64::from(self.band.quota) * u64::from(self.step_percent)).div_ceil(100).try_into().unwrap_or(u32::MAX)
        };
        let limit = self.limit.saturating_add(step.max(1)).min(self.band.quota);
        self.binding_since = Some(now);
        std::mem::replace(&mut self.limit, limit) != limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DPS as a sliding window of `real` per minute; refused calls do not count. Runs the learner as a line that always has
    /// somebody waiting, with `latency` between sending and answer.
    struct Run {
        learner: Learner,
        now: u64,
        sent: VecDeque<u64>,
        counted: VecDeque<u64>,
        /// Answers under way: when, when sent, whether refused.
        answers: VecDeque<(u64, u64, bool)>,
        paused_until: u64,
        refused: Vec<u64>,
        total: u64,
    }

    const LATENCY: u64 = 300;

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    impl Run {
        fn new(quota: u32) -> Self {
            let band = Band { floor: quota / 10, quota, on: true };
            Self {
                learner: Learner::new(band, None, at(0)),
                now: 0,
                sent: VecDeque::new(),
                counted: VecDeque::new(),
                answers: VecDeque::new(),
                paused_until: 0,
                refused: Vec::new(),
                total: 0,
            }
        }

        /// Sends at the learned rate for so many seconds against a real quota.
        fn run(&mut self, seconds: u64, real: usize) {
            let end = self.now + seconds * 1000;
            let mut next = self.now;
            while self.now < end {
                while self.answers.front().is_some_and(|answer| answer.0 <= self.now) {
                    let (_, sent, refused) = self.answers.pop_front().unwrap();
                    if refused {
                        self.learner.refused(at(sent), at(self.now));
                        // As DPS asks: until its window has room.
                        let room = self.counted.front().map_or(0, |first| first + 60_000);
                        self.paused_until = self.paused_until.max(room.max(self.now + 1000));
                    } else {
                        self.learner.accepted(at(sent), at(self.now));
                    }
                }
                while self.sent.front().is_some_and(|sent| sent + 60_100 + LATENCY <= self.now) {
                    self.sent.pop_front();
                }
                let limit = self.learner.limit();
                let open = self.now >= self.paused_until && self.sent.len() < limit as usize;
                if open && self.now >= next {
                    self.send(real);
                    next = self.now + 60_000 / u64::from(limit);
                }
                self.learner.observe(self.now >= self.paused_until, at(self.now));
                self.now += 10;
            }
        }

        fn send(&mut self, real: usize) {
            self.total += 1;
            self.sent.push_back(self.now);
            while self.counted.front().is_some_and(|first| first + 60_000 <= self.now) {
                self.counted.pop_front();
            }
            let refused = self.counted.len() >= real;
            if refused {
                self.refused.push(self.now);
            } else {
                self.counted.push_back(self.now);
            }
            self.answers.push_back((self.now + LATENCY, self.now, refused));
        }
    }

    #[test]
    fn a_lower_quota_is_found_at_once_and_hardly_ever_exceeded_again() {
        let mut run = Run::new(1000);
        run.run(120, 200);
        assert!((180..=200).contains(&run.learner.limit()), "{}", run.learner.limit());
        let settled = run.refused.len();
        assert!(settled <= 7, "{settled} refusals to find it");
        run.run(3480, 200);
        let refused = run.refused.len() as f64 / run.total as f64;
        assert!(refused < 0.001, "{} of {} refused in the hour", run.refused.len(), run.total);
        assert!((180..=210).contains(&run.learner.limit()), "{}", run.learner.limit());
    }

    #[test]
    fn a_quota_that_is_raised_again_is_found_again() {
        let mut run = Run::new(1000);
        run.run(300, 200);
        run.run(3600, 1000);
        assert_eq!(run.learner.limit(), 1000);
    }

    #[test]
    fn a_refusal_that_shows_no_limit_is_forgotten_within_minutes() {
        let mut run = Run::new(1000);
        run.learner.refused(at(0), at(0));
        assert_eq!(run.learner.limit(), 200);
        run.run(300, 1000);
        assert_eq!((run.learner.limit(), run.refused.len()), (1000, 0));
    }

    #[test]
    fn refusals_of_calls_that_were_out_are_one_step() {
        let mut run = Run::new(100);
        for sent in 0..100 {
            run.learner.accepted(at(sent), at(sent));
        }
        assert!(run.learner.refused(at(200), at(500)));
        let limit = run.learner.limit();
        assert_eq!(limit, 98);
        for sent in [201, 300, 499] {
            assert!(!run.learner.refused(at(sent), at(600)));
        }
        assert_eq!(run.learner.limit(), limit);
    }

    #[test]
    fn the_band_is_never_left_and_a_new_quota_starts_anew() {
        let mut learner = Learner::new(Band { floor: 50, quota: 100, on: true }, Some(3), at(0));
        assert_eq!((learner.limit(), learner.state()), (50, Learning::Believed));
        learner.configure(Band { floor: 20, quota: 60, on: true }, at(0));
        assert_eq!((learner.limit(), learner.state()), (60, Learning::Configured));
        for moment in 1..20 {
            learner.refused(at(moment * 1000), at(moment * 1000));
            assert!((20..=60).contains(&learner.limit()));
        }
        learner.configure(Band { floor: 20, quota: 60, on: false }, at(0));
        assert!(!learner.refused(at(90_000), at(90_000)));
        assert_eq!((learner.limit(), learner.state()), (60, Learning::Off));
    }
}
