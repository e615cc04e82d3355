//! The limit learner of one instance: what DPS really takes, when that is less than the configured quota.
//!
//! Other callers may share the quota, and quotas change. What a refusal shows depends on how DPS counts, which nobody has published:
//! - *A window*: what DPS took within the last minute is what it takes. If the window is a fixed one, the waits that DPS asks for
//!   end with it, and what it took since its last end is what it takes.
//! - *A bucket*: known by DPS having taken a call on top of more than it refuses one on top of now. The bucket was empty at both
//!   refusals, so what it took in between came in at the rate sought.
//!
//! At the first refusal either may be true. A wait that is too short for a window to empty speaks for a bucket, and the next calls
//! tell: a window takes nothing then, or only what others leave.
//!
//! Where that leaves much open, the limit is sought between what was taken and what was refused, a window per step. Then it is
//! believed for a while, and explored upwards in bounded steps.
//!
//! Invariants:
//! - The limit stays within the band from the floor to the configured quota. It is never above the quota, so promise and
//!   ledger hold whatever is learned.
//! - One step down per limit: refusals of calls that had left before a step say nothing about the new limit. So a step costs
//!   one refusal and at most those of the calls that were out.
//! - While DPS takes nothing at all it is asked once more, and then not before a window is over, whatever wait it names. That
//!   second refusal is a step of its own. Where so little was taken that no window can be full, it waits as
//!   named, then twice that, four times, up to a window.
//! - It steps up only after a whole window in which the limit was what held the line back, and only by a bounded step. An exploration
//!   that found nothing doubles the time until the next one.

use std::collections::VecDeque;
use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use crate::ledger::{DRIFT_GUARD, WINDOW};
use crate::time::Mono;

#[cfg(test)]
mod tests;

/// A limit comes down to at least this part of itself: fewer acceptances than that say that the window had hardly begun.
const LEAST_PART: u32 = 5;

/// Fewer acceptances than this measure no rate.
const FEW: u32 = 20;

/// Kept below what was accepted, in per cent: another caller's share and DPS's own clock vary a little.
const MARGIN_PERCENT: u32 = 2;

/// Steps beyond what is known, in per cent of the quota: the first one, and the largest.
const STEP_PERCENT: (u32, u32) = (2, 10);

/// How long a limit that DPS has shown is believed before a higher one is explored; doubles with every refused exploration.
const BELIEVED: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(3600));

/// Of the calls that an hour has room for, one in so many may be refused; an exploration waits until it stays within that. A little
/// more than a thousand, as some of an hour goes by in pauses.
const CALLS_PER_REFUSAL: u64 = 1050;

/// Refusals that an exploration may cost, unless the last one cost more.
const EXPLORATION_COST: u64 = 4;

/// An exploration that ends at no more than this above where it began found nothing, in per cent.
const FOUND_PERCENT: u32 = 5;

const HOUR: Duration = Duration::from_secs(3600);

/// How long a limit has to hold the line back before it counts as kept.
const PROVEN: Duration = WINDOW.saturating_add(DRIFT_GUARD);

/// A limit that has not held the line back for so long, beyond its own pace, was not what held it.
const BINDING_GAP: Duration = Duration::from_secs(5);

/// Refusals no further apart than this are about the same change.
const EPISODE: Duration = Duration::from_secs(120);

/// How far a window's end that DPS names, in whole seconds, may be off.
const NAMED_WITHIN: Duration = Duration::from_millis(1500);

/// A window's end that was named so many windows ago says where they end now.
const NAMED_WINDOWS_MAX: u32 = 5;

/// DPS names a wait no longer than this for a bucket. For a window only if calls fall out of it all the time, or if it always does.
const SHORT_WAIT: Duration = Duration::from_secs(5);

/// What a bucket is assumed to hold, until it has been measured: what flows into it in this time.
const BUCKET_HOLDS: Duration = Duration::from_secs(6);

/// What the learner is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Learning {
    /// The configured quota holds.
    Configured,
    /// A lower limit was shown by DPS and is believed for a while.
    Believed,
    /// The limit is sought between what was taken and what was refused, or a higher one is being tried.
    Probing,
    /// Switched off.
    Off,
}

impl Learning {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Configured, Self::Believed, Self::Probing, Self::Off];

    /// Its name in metrics and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Believed => "believed",
            Self::Probing => "probing",
            Self::Off => "off",
        }
    }
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

/// What a process leaves of its learning to the next one. Its text is `200@1000`, or `200..800@1000` while the limit is sought in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    /// Registrations per minute that may leave.
    pub limit: u32,
    /// What was refused, if the limit is sought below that without waiting.
    pub ceiling: Option<u32>,
    /// The quota that was configured. Under another one it says nothing.
    pub quota: u32,
}

impl fmt::Display for Learned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.limit)?;
        if let Some(ceiling) = self.ceiling {
            write!(f, "..{ceiling}")?;
        }
        write!(f, "@{}", self.quota)
    }
}

impl FromStr for Learned {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let (limits, quota) = text.split_once('@').unwrap_or((text, ""));
        let (limit, ceiling) =
            limits.split_once("..").map_or((limits, None), |(limit, ceiling)| (limit, Some(ceiling)));
        Ok(Self { limit: limit.parse()?, ceiling: ceiling.map(str::parse).transpose()?, quota: quota.parse()? })
    }
}

/// What is known since DPS began to refuse.
#[derive(Debug)]
struct Episode {
    began: Mono,
    /// The end of the last pause.
    last: Mono,
    /// The first refusal was taken for that of a bucket, because of its wait.
    bucket_assumed: bool,
    /// How often it was found to take nothing since the last step.
    asked_in_vain: u32,
    /// It was so after some step, on top of enough to fill a window; and it has not refused on top of less since.
    is_window: bool,
    /// The lowest limit since it began.
    lowest: u32,
    /// Steps since then.
    steps_as_window: u32,
    /// Whether a call that was sent since the last step was accepted.
    took_since_step: bool,
    /// Calls accepted since it began.
    accepted: u32,
    /// The most calls within one window that DPS accepted another one on top of.
    most_in_window: u32,
}

impl Episode {
    /// Whether DPS refuses one on top of `count` calls that fits no window.
    const fn is_bucket(&self, count: u32) -> bool {
        self.bucket_assumed || self.most_in_window > count + 2 + count / 50
    }
}

/// What became of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The limit came down.
    pub stepped: bool,
    /// Nobody goes before; at least as long as DPS asked for.
    pub not_before: Mono,
}

/// What a refusal shows: DPS takes at least `limit`, and less than `ceiling`.
#[derive(Debug, Clone, Copy)]
struct Shown {
    limit: u32,
    ceiling: u32,
    /// Below this it shows nothing.
    least: u32,
    /// It is so of a bucket only.
    of_bucket: bool,
}

/// The last time that more was tried than was known to be taken.
#[derive(Debug, Clone, Copy)]
struct Exploration {
    /// The limit that it began at.
    from: u32,
    /// Refusals since then.
    cost: u64,
    /// How long a limit is believed if it finds nothing.
    believe_if_fruitless: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Learner {
    band: Band,
    limit: u32,
    /// Calls accepted within the last window, by when they were sent.
    accepted: VecDeque<Mono>,
    episode: Option<Episode>,
    /// The end of the last pause that DPS asked for.
    paused_until: Option<Mono>,
    /// When the limit last came down.
    stepped: Mono,
    /// Since when the limit holds the line back, and until when it is known to.
    binding: Option<(Mono, Mono)>,
    /// The limit that was last kept.
    kept: u32,
    /// What was refused: the limit is sought between the two, without waiting.
    ceiling: Option<u32>,
    believed_until: Mono,
    exploration: Option<Exploration>,
    /// When calls were refused within the last hour; at most as many as an hour has room for, and one.
    refused: VecDeque<Mono>,
    step_percent: u32,
    /// The limit was raised on trial, and is not proven yet.
    probing: bool,
}

impl Learner {
    /// A learner that begins with `learned`, if an earlier process left that, else with the quota.
    #[must_use]
    pub fn new(band: Band, learned: Option<Learned>, now: Mono) -> Self {
        let mut learner = Self {
            band,
            limit: band.quota,
            accepted: VecDeque::new(),
            episode: None,
            paused_until: None,
            stepped: Mono::default(),
            binding: None,
            kept: band.quota,
            ceiling: None,
            believed_until: Mono::default(),
            exploration: None,
            refused: VecDeque::new(),
            step_percent: STEP_PERCENT.0,
            probing: false,
        };
        let fits = |learned: &Learned| band.on && learned.quota == band.quota && learned.limit < band.quota;
        if let Some(learned) = learned.filter(fits) {
            learner.limit = learned.limit.max(band.floor);
            (learner.kept, learner.ceiling) = (learner.limit, learned.ceiling);
            learner.believed_until = if learned.ceiling.is_some() { now } else { now.after(BELIEVED.0) };
        }
        learner
    }

    /// Registrations per minute that may leave.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Registrations within one window that DPS takes for certain.
    #[must_use]
    pub const fn certain(&self) -> u32 {
        if self.band.on { self.band.floor } else { self.band.quota }
    }

    /// What is left to the next process.
    #[must_use]
    pub fn learned(&self) -> Learned {
        // What is being tried may be refused.
        let limit = if self.probing { self.kept.min(self.limit) } else { self.limit };
        Learned { limit, ceiling: self.ceiling.filter(|_| self.is_vague(limit)), quota: self.band.quota }
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> Learning {
        match (self.band.on, self.probing) {
            (false, _) => Learning::Off,
            (true, true) => Learning::Probing,
            (true, false) if self.limit < self.band.quota && self.is_vague(self.limit) => Learning::Probing,
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

    /// Calls that DPS answered an earlier process, by when they were sent. A few of them may have been refused.
    pub fn recall(&mut self, sent: impl Iterator<Item = Mono>, now: Mono) {
        self.accepted.extend(sent.filter(|sent| *sent <= now));
        self.accepted.make_contiguous().sort_unstable();
        self.forget(now);
    }

    /// DPS took a registration that was sent at `sent`.
    pub fn accepted(&mut self, sent: Mono, now: Mono) {
        // Also while it is switched off: so there is a whole window to show when it is switched on.
        self.forget(now);
        let before = self.count();
        self.accepted.push_back(sent);
        if let Some(episode) = self.episode.as_mut().filter(|episode| sent >= episode.began) {
            episode.accepted = episode.accepted.saturating_add(1);
            episode.took_since_step |= sent >= self.stepped;
            episode.most_in_window = episode.most_in_window.max(before);
        }
    }

    fn forget(&mut self, now: Mono) {
        while self.accepted.front().is_some_and(|sent| now.since(*sent) >= PROVEN) {
            self.accepted.pop_front();
        }
        if self.episode.as_ref().is_some_and(|episode| now.since(episode.last) >= EPISODE) {
            self.episode = None;
        }
    }

    fn count(&self) -> u32 {
        u32::try_from(self.accepted.len()).unwrap_or(u32::MAX)
    }

    /// DPS throttled a registration that was sent at `sent`, and nobody goes before `until`.
    pub fn refused(&mut self, sent: Mono, until: Mono, now: Mono) -> Refused {
        let nothing = Refused { stepped: false, not_before: until };
        if !self.band.on {
            return nothing;
        }
        self.forget(now);
        let was_out = sent < self.stepped;
        // Where even the floor is refused it is not because more was tried: such refusals do not put off the way back up.
        if was_out || self.limit > self.band.floor {
            self.refused.push_back(now);
        }
        while self.refused.len() as u64 > hourly(self.band.quota) + 1 {
            self.refused.pop_front();
        }
        if self.episode.is_none() && !self.probing {
            // A new fall has nothing to do with what was explored last.
            self.exploration = None;
        }
        if let Some(exploration) = &mut self.exploration {
            exploration.cost += 1;
        }
        if was_out {
            return nothing;
        }
        if self.episode.as_ref().is_some_and(|episode| !episode.took_since_step) {
            return self.refused_in_vain(until, now);
        }
        let takes_so_much = self.count() >= self.band.floor;
        if let Some(episode) = &mut self.episode {
            // It takes calls, and refuses others before they fill the smallest window: the wait that it names is as good as any.
            episode.is_window &= takes_so_much;
        }
        let shown = self.shown(sent, until, now);
        let before = self.limit;
        self.come_down(shown, now);
        self.paused_until = Some(until);
        let episode = self.episode.get_or_insert(Episode {
            began: sent,
            last: now,
            bucket_assumed: shown.of_bucket,
            asked_in_vain: 0,
            is_window: false,
            lowest: self.limit,
            steps_as_window: 0,
            took_since_step: false,
            accepted: 0,
            most_in_window: 0,
        });
        episode.lowest = episode.lowest.min(self.limit);
        episode.steps_as_window += u32::from(episode.is_window);
        // Where the wait that it names says nothing, we do not ask a second time.
        let not_before = if episode.is_window { until.max(now.after(WINDOW)) } else { until };
        (episode.last, episode.asked_in_vain, episode.took_since_step) = (not_before.max(now), 0, false);
        Refused { stepped: self.limit != before, not_before }
    }

    /// DPS takes nothing at all though the wait that it named is over. If what it took may fill a window, that is why, and its wait says
    /// nothing; soon after the step it shows a limit too: what it was refused on top of. After that it only shows that nothing is taken.
    fn refused_in_vain(&mut self, until: Mono, now: Mono) -> Refused {
        let before = self.limit;
        let in_vain = self.episode.as_ref().map_or(0, |episode| episode.asked_in_vain);
        let (first, shown) = (in_vain == 0, self.shown_by_window());
        let since = if first { self.stepped } else { now };
        let may_be_full = self.count() >= shown.least.max(self.band.floor);
        if first && may_be_full && now.since(since) <= SHORT_WAIT * 2 {
            self.come_down(shown, now);
        }
        let Some(episode) = &mut self.episode else { return Refused { stepped: false, not_before: until } };
        episode.is_window |= may_be_full;
        let not_before = if episode.is_window {
            until.max(since.after(WINDOW))
        } else {
            let longer = until.since(now).saturating_mul(2_u32.saturating_pow(in_vain.saturating_add(1)));
            until.max(now.after(longer.min(WINDOW)))
        };
        (episode.last, episode.asked_in_vain) = (not_before, in_vain.saturating_add(1));
        episode.lowest = episode.lowest.min(self.limit);
        self.paused_until = Some(until);
        Refused { stepped: self.limit != before, not_before }
    }

    /// Takes the limit down to what is shown, but not below the band.
    fn come_down(&mut self, shown: Shown, now: Mono) {
        let least = shown.least.max(self.band.floor).max(1);
        let below = self.limit.saturating_sub(1).max(self.band.floor);
        let exploring = self.probing && self.ceiling.is_none();
        let most = if exploring { self.kept.min(below).max(self.band.floor) } else { below };
        let limit = shown.limit.clamp(least.min(most), most);
        // What hardly began to be counted shows no limit, so that the way back up is open.
        let open = self.limit.saturating_mul(2).max(self.ceiling.unwrap_or(0));
        self.ceiling = Some(if shown.limit < shown.least { open } else { shown.ceiling.min(self.limit) });
        self.step_percent = STEP_PERCENT.0;
        // Refusals that come again and again, whatever the limit, do not put off the way back up.
        if self.is_vague(limit) {
            self.believed_until = now;
        } else if self.probing || self.believed_until <= now {
            self.believed_until = now.after(self.believe(limit));
        }
        (self.limit, self.stepped, self.binding, self.probing) = (limit, now, None, false);
    }

    /// Whether what was refused is so much more than `limit` that the truth is sought in between, without waiting.
    fn is_vague(&self, limit: u32) -> bool {
        self.ceiling.is_some_and(|ceiling| ceiling > limit + limit / 6)
    }

    fn shown(&self, sent: Mono, until: Mono, now: Mono) -> Shown {
        let by_window = self.shown_by_window();
        if let Some(one_window) = self.taken_in_named_window(until) {
            return Shown { limit: with_margin(one_window), ceiling: one_window.saturating_add(1), ..by_window };
        }
        match &self.episode {
            None => self.shown_at_first(until, now),
            // A sliding one would not have refused less than it took. A fixed one began somewhere within the last minute, and took
            // no more in its part of that than in the part before.
            Some(episode) if episode.is_window && episode.steps_as_window > 0 => {
                Shown { limit: self.count() / 2, ..by_window }
            }
            Some(episode) if episode.is_window => by_window,
            // What a wait alone made a bucket may as well be a window where others left room, until there is something to measure.
            Some(episode) if episode.bucket_assumed && episode.accepted < FEW => by_window,
            // The window's count says little then.
            Some(episode) if episode.is_bucket(self.count()) => {
                let filled = sent.since(episode.began);
                let limit = with_margin(per_minute(episode.accepted, filled).min(self.count()));
                // One more or less of each end is within the measure. But where less was sent than it takes, it filled up meanwhile.
                let measured = per_minute(episode.accepted.saturating_add(2), filled);
                let ceiling = if episode.lowest <= measured { self.limit } else { measured };
                Shown { limit, ceiling, least: 1, ..by_window }
            }
            Some(_) => Shown { ceiling: self.sent_per_minute(now), ..by_window },
        }
    }

    /// What is shown when nothing had been refused for some time.
    fn shown_at_first(&self, until: Mono, now: Mono) -> Shown {
        let by_window = self.shown_by_window();
        if until.since(now) > SHORT_WAIT {
            return by_window;
        }
        let (of_bucket, ceiling) = self.shown_by_bucket(now);
        // If a whole minute is there to show, the window's count is the larger one, and closer.
        if (self.count()..self.limit).contains(&of_bucket) {
            Shown { limit: with_margin(of_bucket), ceiling, of_bucket: true, ..by_window }
        } else {
            Shown { ceiling: self.sent_per_minute(now), ..by_window }
        }
    }

    /// What flows into a bucket that is empty now, per minute: it began to empty when that explains the highest rate. And the rate that was
    /// sent since then.
    fn shown_by_bucket(&self, now: Mono) -> (u32, u32) {
        let rates = self.accepted.iter().rev().zip(1..).map(|(sent, calls)| {
            let since = now.since(*sent).max(Duration::from_secs(1));
            (per_minute(calls, since + BUCKET_HOLDS), per_minute(calls, since).saturating_add(1))
        });
        rates.max().unwrap_or_default()
    }

    /// What is shown if DPS counts what it took within the last minute.
    fn shown_by_window(&self) -> Shown {
        let count = self.count();
        let (limit, ceiling) = (with_margin(count), count.saturating_add(1));
        Shown { limit, ceiling, least: self.limit / LEAST_PART, of_bucket: false }
    }

    /// The rate within what there is to show of the last window, and one.
    fn sent_per_minute(&self, now: Mono) -> u32 {
        per_minute(self.count(), self.seen(now)).saturating_add(1)
    }

    /// How much of the last window there is to show.
    fn seen(&self, now: Mono) -> Duration {
        let first = self.accepted.front().map_or(now, |first| *first);
        now.since(first).clamp(Duration::from_secs(1), WINDOW)
    }

    /// What DPS took in the window that ends with the wait that it asks for, if that is whole windows after the last such end.
    fn taken_in_named_window(&self, until: Mono) -> Option<u32> {
        let last_end = self.paused_until?;
        let since = until.since(last_end);
        let windows = u32::try_from((since + WINDOW / 2).as_nanos() / WINDOW.as_nanos()).ok()?;
        if windows == 0 || windows > NAMED_WINDOWS_MAX || since.abs_diff(WINDOW * windows) > NAMED_WITHIN {
            return None;
        }
        let began = last_end.after(WINDOW * (windows - 1));
        let taken = self.accepted.iter().filter(|sent| **sent >= began).count();
        Some(u32::try_from(taken).unwrap_or(u32::MAX))
    }

    /// Told whenever the limit holds somebody back, and until when, and with `None` when something else does or nobody waits. Whether
    /// the limit was raised.
    pub fn observe(&mut self, held_until: Option<Mono>, now: Mono) -> bool {
        if !self.band.on || self.limit >= self.band.quota && !self.probing {
            return false;
        }
        let Some(until) = held_until else {
            self.binding = None;
            return false;
        };
        // It is seen to at least once for each call that leaves.
        let gap = WINDOW * 2 / self.limit.max(1) + BINDING_GAP;
        let since = self.binding.filter(|(_, last)| now.since(*last) <= gap).map_or(now, |(since, _)| since);
        self.binding = Some((since, until));
        if now.since(since) < PROVEN || now < self.believed_until {
            return false;
        }
        self.kept = self.limit;
        self.binding = Some((now, until));
        if self.probing && self.ceiling.is_some() && !self.is_vague(self.limit) {
            // Found.
            (self.probing, self.believed_until) = (false, now.after(self.believe(self.limit)));
            return false;
        }
        if !self.probing && !self.is_vague(self.limit) && now < self.room_at() {
            return false;
        }
        self.raise()
    }

    /// When the last hour leaves room for what an exploration may cost. Once an hour it does, however small the limit.
    fn room_at(&self) -> Mono {
        let room = hourly(self.limit).saturating_sub(self.exploration_cost());
        let too_many = (self.refused.len() as u64).saturating_sub(room);
        let last = usize::try_from(too_many).ok().and_then(|too_many| self.refused.get(too_many.checked_sub(1)?));
        last.map_or(Mono::default(), |at| at.after(HOUR))
    }

    /// Before when no higher limit is tried than the one that is believed; `None` if none is.
    #[must_use]
    pub fn next_probe_at(&self) -> Option<Mono> {
        (self.state() == Learning::Believed).then(|| self.believed_until.max(self.room_at()))
    }

    fn exploration_cost(&self) -> u64 {
        self.exploration.map_or(0, |last| last.cost).max(EXPLORATION_COST)
    }

    /// How long a limit is believed that has come down to `limit`.
    fn believe(&self, limit: u32) -> Duration {
        let fruitless = self.exploration.filter(|last| limit <= last.from + last.from * FOUND_PERCENT / 100);
        fruitless.map_or(BELIEVED.0, |last| last.believe_if_fruitless)
    }

    /// Begins to try more than is known to be taken.
    fn explore(&mut self) {
        let believed = self.believe(self.limit);
        let believe_if_fruitless = (believed * 2).min(BELIEVED.1);
        self.exploration = Some(Exploration { from: self.limit, cost: 0, believe_if_fruitless });
    }

    fn raise(&mut self) -> bool {
        let step = if self.is_vague(self.limit) {
            self.ceiling.map_or(1, |ceiling| ((ceiling - self.limit) / 3).min(self.limit))
        } else {
            self.ceiling = None;
            if self.probing {
                // It was kept for a whole window: the next step may be larger.
                self.step_percent = (self.step_percent * 2).min(STEP_PERCENT.1);
            } else {
                self.explore();
            }
            (u64::from(self.band.quota) * u64::from(self.step_percent)).div_ceil(100).try_into().unwrap_or(u32::MAX)
        };
        self.probing = self.limit < self.band.quota;
        if !self.probing {
            self.exploration = None;
        }
        let limit = self.limit.saturating_add(step.max(1)).min(self.band.quota);
        std::mem::replace(&mut self.limit, limit) != limit
    }
}

/// Refusals that an hour at such a limit has room for.
fn hourly(limit_per_minute: u32) -> u64 {
    u64::from(limit_per_minute) * 60 / CALLS_PER_REFUSAL
}

fn per_minute(calls: u32, within: Duration) -> u32 {
    let rate = u128::from(calls) * WINDOW.as_nanos() / within.as_nanos().max(1);
    u32::try_from(rate).unwrap_or(u32::MAX)
}

fn with_margin(accepted: u32) -> u32 {
    accepted - accepted.saturating_mul(MARGIN_PERCENT).div_ceil(100).min(accepted)
}
