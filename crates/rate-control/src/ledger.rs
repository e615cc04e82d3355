//! The ledger: the one place that decides whether a registration may leave without breaking an instance's quota.
//!
//! A send at `s` is counted by DPS at some moment between `s` and its answer `r`. A send is safe whenever fewer than *quota*
//! earlier sends are unanswered or were answered within the last 60 s plus a guard. Proof: suppose `N + 1` were counted in
//! `(x, x + 60]`; take the last one sent, at `s`; each of the other `N` was answered after `x ≥ s − 60` or not at all, so at `s` it
//! held a slot, and the send was not admitted.
//!
//! Invariants:
//! - A slot is held from before the send until its answer plus [`WINDOW`] plus [`DRIFT_GUARD`]; a send whose answer is given up
//!   is held until then plus the longest delay the network may add: the longest in force between the send and then, as its connection
//!   was made under that.
//! - Admission never looks at the wall clock. Time only comes in as an argument.
//! - A send of an earlier owner whose end nobody knows is an orphan: it is held until its end is seen, and then as if it had ended at that
//!   moment; or for the orphan hold, after which DPS has accepted it or never will.
//! - At most as many slots exist as the largest quota ever admitted under, so the persisted ledger is bounded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Mono;

mod slot;

pub use slot::{LeftSend, SendId, Settlement, SlotRecord};

/// The window of Microsoft's quota ("registrations per minute").
pub const WINDOW: Duration = Duration::from_secs(60);

/// Covers what two clocks may drift apart in one window, and the granularity of timers.
pub const DRIFT_GUARD: Duration = Duration::from_millis(100);

/// Names the slot that one send holds. Reused after it was released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotId(pub u32);

/// How long a send is held after its answer was given up: until then it may arrive, and a window more it counts.
#[must_use]
pub fn abandoned_hold(longest_delay: Duration) -> Duration {
    longest_delay + WINDOW + DRIFT_GUARD
}

/// Why nothing may leave now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Until this moment at least.
    Until(Mono),
    /// Until one of the sends under way is answered.
    UntilAnswered,
}

/// The sends of one instance that may still count against its quota.
#[derive(Debug)]
pub struct Ledger {
    quota: u32,
    upstream_max_delay: Duration,
    free: BTreeSet<SlotId>,
    slots_known: u32,
    /// Sends under way, each with the longest delay that was in force since it left.
    unanswered: BTreeMap<SlotId, Duration>,
    /// Slots with a known end, soonest first. Ends come nearly in order, so this is cheaper than a tree, and any of them can be asked for.
    held: VecDeque<(Mono, SlotId)>,
    /// Of both, those of earlier owners whose end is not known.
    orphans: BTreeSet<SlotId>,
}

impl Ledger {
    /// An empty ledger: nothing was sent in the last window.
    #[must_use]
    pub fn new(quota: u32, upstream_max_delay: Duration) -> Self {
        Self {
            quota,
            upstream_max_delay,
            free: BTreeSet::new(),
            slots_known: 0,
            unanswered: BTreeMap::new(),
            held: VecDeque::new(),
            orphans: BTreeSet::new(),
        }
    }

    /// Takes over the slots of an earlier process or owner: how each send ended and when ([`LeftSend::end`]); `None` for an orphan, which is held
    /// for `orphan_hold` from `now`, or without one until [its end is seen](Self::orphan_ended).
    pub fn inherit(
        &mut self,
        slots: impl IntoIterator<Item = (SlotId, Option<(Settlement, Mono)>)>,
        orphan_hold: Option<Duration>,
        now: Mono,
    ) {
        for (slot, end) in slots {
            self.grow_to(slot.0.saturating_add(1));
            if !self.free.remove(&slot) {
                continue;
            }
            match (end, orphan_hold) {
                (Some((settlement, ended)), _) => self.end(slot, settlement, self.upstream_max_delay, ended),
                (None, Some(hold)) => {
                    self.orphans.insert(slot);
                    self.hold(now.after(hold), slot);
                }
                (None, None) => {
                    self.orphans.insert(slot);
                    self.unanswered.insert(slot, self.upstream_max_delay);
                }
            }
        }
        self.release_expired(now);
    }

    /// The end of an orphan was seen at `now`: its owner has settled it after all, or is proven dead, so that it is abandoned at the latest.
    pub fn orphan_ended(&mut self, slot: SlotId, settlement: Settlement, now: Mono) {
        self.release_expired(now);
        if self.orphans.remove(&slot) {
            let longest = self.unanswered.remove(&slot).unwrap_or(self.upstream_max_delay);
            self.held.retain(|&(_, held)| held != slot);
            self.end(slot, settlement, longest, now);
        }
    }

    /// The sends of earlier owners whose end is not known.
    pub fn orphans(&self) -> impl Iterator<Item = SlotId> {
        self.orphans.iter().copied()
    }

    /// A send that holds no slot any more ended at `ended`.
    fn end(&mut self, slot: SlotId, settlement: Settlement, longest_delay: Duration, ended: Mono) {
        match settlement {
            Settlement::Answered => self.hold(ended.after(WINDOW + DRIFT_GUARD), slot),
            Settlement::Abandoned => self.hold(ended.after(abandoned_hold(longest_delay)), slot),
            Settlement::NeverLeft => drop(self.free.insert(slot)),
        }
    }

    fn hold(&mut self, until: Mono, slot: SlotId) {
        let end = (until, slot);
        let is_last = self.held.back().is_none_or(|last| *last < end);
        let at = if is_last { self.held.len() } else { self.held.partition_point(|held| *held < end) };
        self.held.insert(at, end);
    }

    fn grow_to(&mut self, slots: u32) {
        while self.slots_known < slots {
            self.free.insert(SlotId(self.slots_known));
            self.slots_known += 1;
        }
    }

    /// Changes the limits. A lower quota sends nothing until the window holds fewer than the new one. A shorter delay holds for what leaves
    /// from now on.
    pub fn configure(&mut self, quota: u32, upstream_max_delay: Duration) {
        self.quota = quota;
        self.upstream_max_delay = upstream_max_delay;
        self.unanswered.values_mut().for_each(|longest| *longest = upstream_max_delay.max(*longest));
    }

    /// The configured quota, in registrations per [`WINDOW`].
    #[must_use]
    pub const fn quota(&self) -> u32 {
        self.quota
    }

    /// Slots in use at `now`: unanswered, or answered within the window.
    pub fn used(&mut self, now: Mono) -> u32 {
        self.release_expired(now);
        u32::try_from(self.unanswered.len() + self.held.len()).unwrap_or(u32::MAX)
    }

    fn release_expired(&mut self, now: Mono) {
        while let Some(&(until, slot)) = self.held.front()
            && until <= now
        {
            self.held.pop_front();
            self.orphans.remove(&slot);
            self.free.insert(slot);
        }
    }

    /// Whether a send is safe at `now`; takes nothing.
    ///
    /// # Errors
    /// [`Full`] with the earliest moment at which asking again can help.
    pub fn check(&mut self, now: Mono) -> Result<(), Full> {
        let used = self.used(now);
        if used < self.quota {
            return Ok(());
        }
        // After a quota was lowered, more than one slot has to end first.
        let ends_needed = (used - self.quota) as usize;
        self.held.get(ends_needed).map_or(Err(Full::UntilAnswered), |&(until, _)| Err(Full::Until(until)))
    }

    /// Takes a slot for a send that [`check`](Self::check) just found safe.
    pub fn take(&mut self) -> SlotId {
        if self.free.is_empty() {
            self.grow_to(self.slots_known + 1);
        }
        let slot = self.free.pop_first().expect("a slot was just made");
        self.unanswered.insert(slot, self.upstream_max_delay);
        slot
    }

    /// DPS answered: the slot is held for one more window.
    pub fn answered(&mut self, slot: SlotId, now: Mono) {
        if let Some(longest) = self.unanswered.remove(&slot) {
            self.end(slot, Settlement::Answered, longest, now);
        }
    }

    /// No answer will be waited for any more, but DPS may still count the send.
    pub fn abandoned(&mut self, slot: SlotId, now: Mono) {
        if let Some(longest) = self.unanswered.remove(&slot) {
            self.end(slot, Settlement::Abandoned, longest, now);
        }
    }

    /// The send never left this machine.
    pub fn never_left(&mut self, slot: SlotId) {
        if self.unanswered.remove(&slot).is_some() {
            self.free.insert(slot);
        }
    }

    /// Until when `slot` is held; `None` if it is free, or if its send has no end yet.
    #[must_use]
    pub fn held_until(&self, slot: SlotId) -> Option<Mono> {
        self.held.iter().find(|(_, held)| *held == slot).map(|(until, _)| *until)
    }

    /// When the `rank`-th further send (from 0) would have a slot, if every answer takes `latency` and the pace lets the sends that find
    /// free slots go when `paced` says, by rank. A forecast, not a promise.
    ///
    /// `now` may lie in the future (a pause ends then), so nothing is released here: a slot that is free by then is still held.
    pub fn forecast(&self, rank: u64, now: Mono, latency: Duration, paced: impl Fn(u64) -> Mono) -> Mono {
        let cycle = WINDOW + DRIFT_GUARD + latency;
        let (cycles, rank) = (rank / u64::from(self.quota.max(1)), rank % u64::from(self.quota.max(1)));
        let has_ended = |&(until, _): &(Mono, SlotId)| until <= now;
        let ended = if self.held.front().is_some_and(has_ended) { self.held.partition_point(has_ended) } else { 0 };
        let used = self.unanswered.len() + self.held.len() - ended;
        let (room, excess) = ((self.quota as usize).saturating_sub(used), used.saturating_sub(self.quota as usize));
        let first = match usize::try_from(rank).unwrap_or(usize::MAX).checked_sub(room) {
            // Free slots are taken no faster than the pace allows, and come free again in that rhythm.
            None => paced(rank),
            // Held by sends that are not answered yet, if by none that is known: they are about to be.
            Some(ends_needed) => {
                self.held.get(ended + ends_needed + excess).map_or_else(|| now.after(cycle), |&(until, _)| until)
            }
        };
        first.after(cycle.saturating_mul(u32::try_from(cycles).unwrap_or(u32::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time::BootId;

    const DELAY: Duration = Duration::from_secs(30);

    fn at(millis: u64) -> Mono {
        Mono::from_nanos(millis * 1_000_000)
    }

    fn boot(name: &str) -> BootId {
        BootId(name.to_owned())
    }

    fn restore(ledger: &mut Ledger, slots: impl IntoIterator<Item = (SlotId, SlotRecord)>, boot: &BootId, now: Mono) {
        let left = slots.into_iter().map(|(slot, record)| (slot, record.left_by_the_dead(boot, now).end));
        ledger.inherit(left, None, now);
    }

    #[test]
    fn a_slot_is_free_again_one_window_and_the_guard_after_its_answer() {
        let mut ledger = Ledger::new(1, DELAY);
        assert_eq!(ledger.check(at(0)), Ok(()));
        let slot = ledger.take();
        assert_eq!(ledger.check(at(10)), Err(Full::UntilAnswered));
        ledger.answered(slot, at(300));
        assert_eq!(ledger.check(at(60_399)), Err(Full::Until(at(60_400))));
        assert_eq!(ledger.check(at(60_400)), Ok(()));
    }

    #[test]
    fn a_lost_answer_holds_its_slot_for_the_longest_delay_and_then_ends() {
        let mut ledger = Ledger::new(1, DELAY);
        let slot = ledger.take();
        ledger.abandoned(slot, at(10_000));
        assert_eq!(ledger.check(at(10_000)), Err(Full::Until(at(100_100))));
        assert_eq!(ledger.check(at(100_100)), Ok(()));
    }

    #[test]
    fn a_shorter_delay_holds_for_what_leaves_under_it_and_a_longer_one_for_all() {
        let short = Duration::from_secs(1);
        let mut ledger = Ledger::new(1, DELAY);
        let slot = ledger.take();
        ledger.configure(1, short);
        ledger.abandoned(slot, at(10_000));
        assert_eq!(
            ledger.check(at(10_000)),
            Err(Full::Until(at(100_100))),
            "its connection was made under the longer one"
        );
        let slot = ledger.take();
        ledger.abandoned(slot, at(200_000));
        assert_eq!(ledger.check(at(200_000)), Err(Full::Until(at(261_100))));
        let slot = ledger.take();
        ledger.configure(1, DELAY);
        ledger.abandoned(slot, at(300_000));
        assert_eq!(ledger.check(at(300_000)), Err(Full::Until(at(390_100))));
    }

    #[test]
    fn starts_in_a_row_hold_what_had_no_answer_only_once() {
        let sent =
            SlotRecord { boot: boot("a"), sent: at(5_000), answered: None, abandoned: None, send: SendId::default() };
        let first = sent.taken_over(&boot("a"), at(10_000)).expect("it had no answer");
        assert_eq!(first, SlotRecord { abandoned: Some(at(10_000)), ..sent.clone() });
        assert_eq!(first.taken_over(&boot("a"), at(20_000)), None);
        let mut ledger = Ledger::new(1, DELAY);
        restore(&mut ledger, [(SlotId(0), first.clone())], &boot("a"), at(20_000));
        assert_eq!(ledger.check(at(20_000)), Err(Full::Until(at(100_100))), "the first start began the hold");

        // The clock of another boot says nothing of this one, once.
        let other = first.taken_over(&boot("b"), at(1_000)).expect("another boot");
        let given_up = SlotRecord { boot: boot("b"), sent: at(1_000), abandoned: Some(at(1_000)), ..first };
        assert_eq!(other, given_up);
        assert_eq!(other.taken_over(&boot("b"), at(2_000)), None);
        let answered = SlotRecord { answered: Some(at(6_000)), ..sent };
        assert_eq!(answered.taken_over(&boot("a"), at(7_000)), None);
        let other = answered.taken_over(&boot("b"), at(1_000)).expect("another boot");
        assert_eq!((other.answered, other.abandoned), (Some(at(1_000)), None));
    }

    #[test]
    fn an_orphan_is_held_until_its_end_is_seen_and_no_longer_than_the_orphan_hold() {
        let hold = Some(Duration::from_secs(500));
        let mut ledger = Ledger::new(1, DELAY);
        ledger.inherit([(SlotId(0), None)], hold, at(1_000));
        assert_eq!(ledger.check(at(1_000)), Err(Full::Until(at(501_000))));
        ledger.orphan_ended(SlotId(0), Settlement::Answered, at(20_000));
        assert_eq!(ledger.check(at(20_000)), Err(Full::Until(at(80_100))));
        ledger.orphan_ended(SlotId(0), Settlement::NeverLeft, at(21_000));
        assert_eq!(ledger.check(at(21_000)), Err(Full::Until(at(80_100))), "it ends once");

        let mut ledger = Ledger::new(1, DELAY);
        ledger.inherit([(SlotId(0), None)], None, at(1_000));
        assert_eq!(ledger.check(at(9_000_000)), Err(Full::UntilAnswered), "until it is proven");
        ledger.orphan_ended(SlotId(0), Settlement::Abandoned, at(9_000_000));
        assert_eq!(ledger.check(at(9_000_000)), Err(Full::Until(at(9_090_100))));

        let mut ledger = Ledger::new(1, DELAY);
        ledger.inherit([(SlotId(0), None)], hold, at(0));
        ledger.orphan_ended(SlotId(0), Settlement::NeverLeft, at(1));
        assert_eq!(ledger.check(at(1)), Ok(()));
        assert_eq!(ledger.take(), SlotId(0));
        ledger.orphan_ended(SlotId(0), Settlement::NeverLeft, at(2));
        assert_eq!(ledger.check(at(2)), Err(Full::UntilAnswered), "the slot is another send's by now");
    }

    #[test]
    fn what_an_earlier_owner_settled_is_counted_from_then() {
        let mut ledger = Ledger::new(2, DELAY);
        let slots = [
            (SlotId(0), Some((Settlement::Answered, at(10_000)))),
            (SlotId(3), Some((Settlement::Abandoned, at(10_000)))),
            (SlotId(1), Some((Settlement::NeverLeft, at(10_000)))),
        ];
        ledger.inherit(slots, None, at(20_000));
        assert_eq!(ledger.check(at(20_000)), Err(Full::Until(at(70_100))));
        assert_eq!((ledger.used(at(70_100)), ledger.used(at(100_100))), (1, 0));
    }

    #[test]
    fn after_the_quota_is_lowered_nothing_leaves_until_the_window_has_room_for_it() {
        let mut ledger = Ledger::new(3, DELAY);
        for answered in [100, 200, 300] {
            let slot = ledger.take();
            ledger.answered(slot, at(answered));
        }
        ledger.configure(1, DELAY);
        assert_eq!(ledger.check(at(1_000)), Err(Full::Until(at(60_400))), "all three must leave the window first");
        ledger.configure(5, DELAY);
        assert_eq!(ledger.check(at(1_000)), Ok(()));
    }

    #[test]
    fn a_forecast_of_a_later_moment_releases_nothing_now() {
        let mut ledger = Ledger::new(1, DELAY);
        let slot = ledger.take();
        ledger.answered(slot, at(300));
        let forecast = |from: u64| ledger.forecast(0, at(from), Duration::ZERO, |_| at(from));
        assert_eq!((forecast(90_000), forecast(1_000)), (at(90_000), at(60_400)));
        assert_eq!(ledger.check(at(1_000)), Err(Full::Until(at(60_400))));
    }

    #[test]
    fn a_forecast_beyond_this_minute_keeps_the_pace_of_the_sends_before() {
        let latency = Duration::from_millis(300);
        let ledger = Ledger::new(10, DELAY);
        let forecast = |rank| ledger.forecast(rank, at(0), latency, |rank| at(6_000 * rank));
        // The send at 54 s is answered at 54.3 s and holds its slot until 114.4 s.
        assert_eq!([9, 10, 19, 29].map(forecast), [at(54_000), at(60_400), at(114_400), at(174_800)]);
    }

    #[test]
    fn what_another_boot_left_is_counted_from_now() {
        let answered = SlotRecord {
            boot: boot("a"),
            sent: at(1),
            answered: Some(at(2)),
            abandoned: None,
            send: SendId::default(),
        };
        let lost = SlotRecord { answered: None, ..answered.clone() };
        let slots = || vec![(SlotId(0), answered.clone()), (SlotId(1), lost.clone())];

        let mut same_boot = Ledger::new(2, DELAY);
        restore(&mut same_boot, slots(), &boot("a"), at(50_000));
        assert_eq!(same_boot.check(at(50_000)), Err(Full::Until(at(60_102))));

        let mut other_boot = Ledger::new(2, DELAY);
        restore(&mut other_boot, slots(), &boot("b"), at(50_000));
        assert_eq!(other_boot.check(at(50_000)), Err(Full::Until(at(110_100))));
        assert_eq!(other_boot.used(at(110_100)), 1, "the lost one is held for the longest delay as well");
        assert_eq!(other_boot.used(at(140_100)), 0);
    }

    /// What DPS would count, told apart from the ledger's own arithmetic.
    fn most_in_any_window(mut counted: Vec<u64>) -> usize {
        counted.sort_unstable();
        (0..counted.len())
            .map(|first| counted[first..].iter().take_while(|&&at| at < counted[first] + 60_000).count())
            .max()
            .unwrap_or(0)
    }

    #[derive(Debug, Clone)]
    struct Send {
        wait: u64,
        latency: u64,
        counted_permille: u64,
        lost: bool,
    }

    fn sends() -> impl Strategy<Value = Vec<Send>> {
        prop::collection::vec(
            (0u64..4_000, 0u64..20_000, 0u64..=1000, prop::bool::weighted(0.1))
                .prop_map(|(wait, latency, counted_permille, lost)| Send { wait, latency, counted_permille, lost }),
            1..200,
        )
    }

    proptest! {
        /// Slow answers, lost replies that DPS counts up to the longest delay after we gave up, restarts of the process and of
        /// the machine: no 60 seconds ever hold more than the quota.
        #[test]
        fn no_window_holds_more_than_the_quota(
            quota in 1u32..12, sends in sends(), restarts in prop::collection::btree_set(0usize..200, 0..4), reboot in any::<bool>()
        ) {
            let mut now = 0u64;
            let mut ledger = Ledger::new(quota, DELAY);
            let mut persisted: std::collections::BTreeMap<SlotId, SlotRecord> = std::collections::BTreeMap::new();
            let mut answers: Vec<(u64, SlotId, bool)> = Vec::new();
            let mut counted: Vec<u64> = Vec::new();
            let mut boots = 0u32;
            for (index, send) in sends.iter().enumerate() {
                now += send.wait;
                if restarts.contains(&index) {
                    // The connections died with the process: what is still on its way is counted within the longest delay.
                    for moment in &mut counted {
                        *moment = (*moment).min(now + 30_000);
                    }
                    answers.clear();
                    boots += u32::from(reboot);
                    ledger = Ledger::new(quota, DELAY);
                    restore(&mut ledger, persisted.clone(), &boot(&boots.to_string()), at(now));
                }
                // Wait for a slot, delivering answers as they fall due.
                loop {
                    answers.sort_unstable();
                    while let Some(&(due, slot, lost)) = answers.first() && due <= now {
                        answers.remove(0);
                        let record = persisted.get_mut(&slot).unwrap();
                        if lost { ledger.abandoned(slot, at(due)); record.abandoned = Some(at(due)); }
                        else { ledger.answered(slot, at(due)); record.answered = Some(at(due)); }
                    }
                    match ledger.check(at(now)) {
                        Ok(()) => break,
                        Err(Full::Until(until)) => now = (until.as_nanos() / 1_000_000).min(answers.first().map_or(u64::MAX, |a| a.0)).max(now + 1),
                        Err(Full::UntilAnswered) => now = answers.first().expect("an answer is due").0.max(now),
                    }
                }
                let slot = ledger.take();
                persisted.insert(slot, SlotRecord { boot: boot(&boots.to_string()), sent: at(now), answered: None, abandoned: None, send: SendId::default() });
                let answered = now + send.latency;
                answers.push((answered, slot, send.lost));
                // DPS counts no later than it answers; a lost one up to the longest delay after we gave it up.
                let span = if send.lost { send.latency + 30_000 } else { send.latency };
                counted.push(now + span * send.counted_permille / 1000);
            }
            prop_assert!(most_in_any_window(counted) <= quota as usize);
        }
    }
}
