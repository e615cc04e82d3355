//! The adaptive limit of one instance: how many registrations may leave per minute, when DPS takes fewer than the configured quota.
//!
//! Other callers may share the quota, and quotas change. A refusal (429) pauses the line as DPS asks, which is the gate's business. A
//! single one shows no more than that. A second one within a minute shows that the limit is too high: it comes down to what DPS accepted
//! within the last minute, but by no more than half. There it is held for a while. Then it grows, once a minute,
//! until it is the quota again or DPS refuses two more.
//!
//! How DPS counts is never asked: what it took within a minute is the same number for a sliding minute, a fixed one and an empty bucket.
//!
//! Invariants:
//! - The limit stays within the band from the floor to the configured quota. It is never above the quota, so promise and ledger hold
//!   whatever DPS does.
//! - It comes down once for every two refusals. Refusals of calls that had left before say nothing about the new limit.
//! - A refusal never puts off the moment at which the limit grows, but for the one that takes down a limit that was growing.
//! - It grows by time alone, so that what DPS once refused is forgotten within half an hour.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ledger::WINDOW;
use crate::time::Mono;

#[cfg(test)]
mod tests;

/// The limit comes down to one in so many of itself at the most: who had hardly begun to send has little to show.
const LEAST_PART: u32 = 2;

/// How long a limit that came down is held.
pub const HOLD: Duration = Duration::from_secs(240);

/// After that it grows by one in so many of itself, every minute.
const GROWTH_PART: u32 = 10;

/// What the limit is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitState {
    /// It is the configured quota.
    Quota,
    /// It came down, and is held.
    Held,
    /// It came down, was held, and grows.
    Growing,
    /// It is switched off: the quota holds.
    Off,
}

impl LimitState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Quota, Self::Held, Self::Growing, Self::Off];

    /// Its name in metrics and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::Held => "held",
            Self::Growing => "growing",
            Self::Off => "off",
        }
    }
}

/// The band, as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Band {
    /// Never below this; 1 to the quota.
    pub floor: u32,
    /// Never above this: the quota.
    pub quota: u32,
    /// Whether the limit adapts at all.
    pub on: bool,
}

/// What a process leaves of the limit to the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Registrations per minute that may leave.
    pub limit: u32,
    /// The quota that was configured. Under another one the limit says nothing.
    pub quota: u32,
    /// What is left until it grows.
    pub grows_in: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct AdaptiveLimit {
    band: Band,
    limit: u32,
    /// When the calls were sent that DPS accepted within the last minute; oldest first.
    accepted: VecDeque<Mono>,
    /// Until then a refusal is a second one.
    second_until: Option<Mono>,
    /// When the limit last came down.
    lowered: Mono,
    /// When it grows next, if it is below the quota.
    grows_at: Mono,
    /// It has not grown since it came down.
    held: bool,
}

impl AdaptiveLimit {
    /// Begins with what an earlier process left, if it did under the same quota, else with the quota.
    #[must_use]
    pub fn new(band: Band, kept: Option<Kept>, now: Mono) -> Self {
        let kept = kept.filter(|kept| band.on && kept.quota == band.quota);
        Self {
            band,
            limit: kept.map_or(band.quota, |kept| kept.limit.clamp(band.floor, band.quota)),
            accepted: VecDeque::new(),
            second_until: None,
            lowered: Mono::default(),
            grows_at: kept.map_or(now, |kept| now.after(kept.grows_in.min(HOLD))),
            held: true,
        }
    }

    /// Takes a changed band over. A changed quota is news from the operator: what was found under the old one is forgotten.
    pub fn configure(&mut self, band: Band, now: Mono) {
        if band.quota != self.band.quota || !band.on {
            *self = Self { accepted: std::mem::take(&mut self.accepted), ..Self::new(band, None, now) };
        } else {
            (self.band, self.limit) = (band, self.limit.max(band.floor));
        }
    }

    /// Calls that DPS answered an earlier process, by when they were sent. A few of them may have been refused.
    pub fn recall(&mut self, sent: impl Iterator<Item = Mono>, now: Mono) {
        self.accepted.extend(sent.filter(|sent| *sent <= now));
        self.accepted.make_contiguous().sort_unstable();
    }

    /// Registrations per minute that may leave.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Registrations within one minute that may leave whatever DPS does.
    #[must_use]
    pub const fn floor(&self) -> u32 {
        if self.band.on { self.band.floor } else { self.band.quota }
    }

    /// What it is at.
    #[must_use]
    pub const fn state(&self) -> LimitState {
        match (self.band.on, self.limit < self.band.quota, self.held) {
            (false, ..) => LimitState::Off,
            (true, false, _) => LimitState::Quota,
            (true, true, true) => LimitState::Held,
            (true, true, false) => LimitState::Growing,
        }
    }

    /// When it grows next; `None` while it is the quota.
    #[must_use]
    pub fn grows_at(&self) -> Option<Mono> {
        (self.limit < self.band.quota).then_some(self.grows_at)
    }

    /// What is left to the next process.
    #[must_use]
    pub fn kept(&self, now: Mono) -> Kept {
        Kept { limit: self.limit, quota: self.band.quota, grows_in: self.grows_at.since(now) }
    }

    /// Lets it grow, if it is time. Asked before every use.
    pub fn grow(&mut self, now: Mono) {
        while self.limit < self.band.quota && self.grows_at <= now {
            self.limit = self.limit.saturating_add(self.limit.div_ceil(GROWTH_PART)).min(self.band.quota);
            (self.grows_at, self.held) = (self.grows_at.after(WINDOW), false);
        }
    }

    /// DPS took a registration that was sent at `sent`.
    pub fn accepted(&mut self, sent: Mono, now: Mono) {
        // Also while it is switched off: so there is a whole minute to show when it is switched on.
        self.forget(now);
        self.accepted.push_back(sent);
    }

    fn forget(&mut self, now: Mono) {
        while self.accepted.front().is_some_and(|sent| now.since(*sent) >= WINDOW) {
            self.accepted.pop_front();
        }
    }

    /// DPS throttled a registration that was sent at `sent`, and nobody goes before `until`. Whether the limit came down.
    pub fn refused(&mut self, sent: Mono, until: Mono, now: Mono) -> bool {
        self.grow(now);
        if !self.band.on || sent < self.lowered {
            return false;
        }
        // The pause itself does not count: nobody could be refused in it.
        if self.second_until.take().is_none_or(|by| now >= by) {
            self.second_until = Some(until.max(now).after(WINDOW));
            return false;
        }
        self.forget(now);
        let accepted = u32::try_from(self.accepted.len()).unwrap_or(u32::MAX);
        let before = self.limit;
        self.limit = accepted.clamp(before.div_ceil(LEAST_PART), before).max(self.band.floor);
        if !self.held || before == self.band.quota {
            (self.grows_at, self.held) = (now.after(HOLD), true);
        }
        self.lowered = now;
        self.limit < before
    }
}
