//! Replicas contend for one lease and send under one quota, and what DPS would count is counted apart from them.
//!
//! Time is real time in milliseconds; every replica reads a boot-time clock of its own, which may run a little off, and may stand still while the
//! replica is stopped. Replicas are stopped right between their last check and the send, leases are taken far too early, processes are
//! killed, answers get lost. The rules are those of `rate_control::ownership`; each mutant leaves one of them out.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rate_control::entropy::Entropy;
use rate_control::ledger::{Ledger, Settlement, SlotId};
use rate_control::ownership::{Beat, Epoch, LeaseWatch, Sightings, Tenure};
use rate_control::time::{BootId, Mono};

const QUOTA: u32 = 12;
const REPLICAS: usize = 3;
const STEP: u64 = 50;
const RUN: u64 = 25 * 60_000;
const TTL: Duration = Duration::from_secs(5);
const GUARD: Duration = Duration::from_millis(500);
const READ_EVERY: u64 = 500;
const RENEW_EVERY: u64 = 1_000;
const UPSTREAM_MAX_DELAY: u64 = 30_000;
const REQUEST_TIMEOUT: u64 = 30_000;
const TOKEN_LIFE: u64 = 120_000;
/// For how long after its end DPS may still take a token.
const TOKEN_TOLERANCE: u64 = 300_000;
/// The token's life and tolerance, a window, its guard, and some.
const ORPHAN_HOLD: Duration = Duration::from_millis(TOKEN_LIFE + TOKEN_TOLERANCE + 60_000 + 100 + 2_000);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    /// The store takes an arm of any epoch.
    NoFence,
    /// A successor does not count sends whose end it does not know.
    OrphansForgotten,
    /// It counts them for as long as after a crash of its own.
    OrphansHeldShort,
    /// Tokens live for an hour.
    LongTokens,
    /// The old owner's clock is taken for one's own.
    ForeignClockAsOwn,
    /// The sighting with the smallest offset maps all moments, as time synchronisation over a network does it.
    SmallestOffset,
}

/// The shared rows.
#[derive(Default)]
struct Store {
    epoch: u64,
    beat: u64,
    clock: Option<(BootId, Mono)>,
    slots: BTreeMap<SlotId, Row>,
}

#[derive(Clone)]
struct Row {
    epoch: u64,
    send: u64,
    boot: BootId,
    end: Option<(Settlement, Mono)>,
}

/// A call that a replica has out.
struct Call {
    slot: SlotId,
    epoch: u64,
    send: u64,
    /// When it leaves: at once, or when the replica goes on that was stopped before it.
    left: bool,
    token_ends: u64,
    /// When its answer is there, if it comes at all.
    answer: Option<u64>,
    give_up: u64,
}

struct Owner {
    epoch: u64,
    ledger: Ledger,
    tenure: Tenure,
    renew_at: u64,
    sends: u64,
}

struct Replica {
    boot: BootId,
    offset: u64,
    /// Parts in a million that its clock is fast.
    rate: i64,
    /// How long its clock has stood still so far.
    stood_still: u64,
    stopped_until: u64,
    frozen_since: Option<u64>,
    watch: LeaseWatch,
    read_at: u64,
    sightings: Sightings,
    /// What [`Mutant::SmallestOffset`] goes by: ours less theirs.
    smallest_offset: BTreeMap<BootId, i128>,
    owner: Option<Owner>,
    calls: Vec<Call>,
}

impl Replica {
    fn new(index: usize, incarnation: u64, offset: u64, rate: i64) -> Self {
        Self {
            boot: BootId(format!("boot-{index}-{incarnation}")),
            offset,
            rate,
            stood_still: 0,
            stopped_until: 0,
            frozen_since: None,
            watch: LeaseWatch::new(TTL + GUARD),
            read_at: 0,
            sightings: Sightings::default(),
            smallest_offset: BTreeMap::new(),
            owner: None,
            calls: Vec::new(),
        }
    }

    fn clock(&self, now: u64) -> Mono {
        let ran = i64::try_from(now - self.stood_still).unwrap();
        let millis = self.offset + u64::try_from(ran + ran * self.rate / 1_000_000).unwrap();
        Mono::from_nanos(millis * 1_000_000)
    }

    fn go_on(&mut self, now: u64) {
        if let Some(since) = self.frozen_since.take() {
            self.stood_still += now - since;
        }
    }
}

struct World {
    mutant: Mutant,
    entropy: Entropy,
    store: Store,
    replicas: Vec<Replica>,
    /// When DPS counted a registration.
    counted: Vec<u64>,
    takeovers: u64,
    left_when_deposed: u64,
}

/// What a run shows.
struct Verdict {
    most_in_a_window: usize,
    sent: usize,
    takeovers: u64,
    left_when_deposed: u64,
}

impl World {
    fn new(seed: u64, mutant: Mutant) -> Self {
        let mut entropy = Entropy::from_seed(seed);
        let replicas = (0..REPLICAS)
            .map(|index| {
                let rate = i64::try_from(entropy.next_u64() % 1_001).unwrap() - 500;
                Replica::new(index, 0, entropy.next_u64() % 10_000_000, rate)
            })
            .collect();
        let store = Store::default();
        Self { mutant, entropy, store, replicas, counted: Vec::new(), takeovers: 0, left_when_deposed: 0 }
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.entropy.next_u64().is_multiple_of(n)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.entropy.next_u64() % n
    }

    fn run(mut self) -> Verdict {
        for now in (0..RUN).step_by(usize::try_from(STEP).unwrap()) {
            for index in 0..REPLICAS {
                if self.one_in(40_000) {
                    self.kill(index, now);
                }
                if now < self.replicas[index].stopped_until {
                    continue;
                }
                self.replicas[index].go_on(now);
                self.call_on(index, now);
                self.follow(index, now);
                self.own(index, now);
            }
        }
        self.counted.sort_unstable();
        let mut window = VecDeque::new();
        let mut most = 0;
        for &moment in &self.counted {
            window.push_back(moment);
            while window.front().is_some_and(|first| first + 60_000 <= moment) {
                window.pop_front();
            }
            most = most.max(window.len());
        }
        Verdict {
            most_in_a_window: most,
            sent: self.counted.len(),
            takeovers: self.takeovers,
            left_when_deposed: self.left_when_deposed,
        }
    }

    /// The process dies; the machine goes on, or is started anew. What it had sent may still arrive for as long as the network keeps it.
    fn kill(&mut self, index: usize, now: u64) {
        let reboot = self.one_in(2);
        let down = 1_000 + self.below(20_000);
        let (offset, incarnation) = (self.below(10_000_000), self.below(u64::MAX));
        let replica = &mut self.replicas[index];
        replica.go_on(now);
        let rate = replica.rate;
        let mut next = if reboot {
            Replica::new(index, incarnation, offset, rate)
        } else {
            Replica {
                boot: replica.boot.clone(),
                stood_still: replica.stood_still,
                ..Replica::new(index, 0, replica.offset, rate)
            }
        };
        next.stopped_until = now + down;
        *replica = next;
    }

    /// Calls that were about to leave leave; answers that have come are settled.
    fn call_on(&mut self, index: usize, now: u64) {
        let mut calls = std::mem::take(&mut self.replicas[index].calls);
        for call in &mut calls {
            if !call.left {
                self.leave(call, now);
            }
        }
        calls.retain(|call| {
            let replica = &mut self.replicas[index];
            let settlement = match call.answer {
                Some(answer) if answer <= now => Settlement::Answered,
                _ if call.give_up <= now => Settlement::Abandoned,
                _ => return true,
            };
            let at = replica.clock(now);
            if let Some(owner) = replica.owner.as_mut().filter(|owner| owner.epoch == call.epoch) {
                match settlement {
                    Settlement::Answered => owner.ledger.answered(call.slot, at),
                    _ => owner.ledger.abandoned(call.slot, at),
                }
            }
            self.settle(call, settlement, at);
            false
        });
        self.replicas[index].calls.append(&mut calls);
    }

    /// A replica may settle its own send, whatever epoch it is by now.
    fn settle(&mut self, call: &Call, settlement: Settlement, at: Mono) {
        let row = self.store.slots.get_mut(&call.slot);
        if let Some(row) = row.filter(|row| (row.epoch, row.send) == (call.epoch, call.send)) {
            row.end = Some((settlement, at));
        }
    }

    /// The bytes leave. DPS counts the registration at some moment until its answer, or refuses its token.
    fn leave(&mut self, call: &mut Call, now: u64) {
        call.left = true;
        call.give_up = now + REQUEST_TIMEOUT;
        if call.epoch != self.store.epoch {
            self.left_when_deposed += 1;
        }
        let lost = self.one_in(12);
        let latency = if self.one_in(10) { self.below(25_000) } else { self.below(600) };
        let span = if lost { REQUEST_TIMEOUT + UPSTREAM_MAX_DELAY } else { latency };
        let arrives = now + self.below(span + 1);
        if arrives <= call.token_ends + TOKEN_TOLERANCE {
            self.counted.push(arrives);
        }
        call.answer = (!lost).then_some(now + latency);
    }

    /// Looks at the lease, and takes it if it may; or far too early.
    fn follow(&mut self, index: usize, now: u64) {
        if self.replicas[index].owner.is_some() || now < self.replicas[index].read_at {
            return;
        }
        let failed = self.one_in(50);
        let too_early = self.one_in(600);
        let (epoch, beat) = (self.store.epoch, self.store.beat);
        let replica = &mut self.replicas[index];
        replica.read_at = now + READ_EVERY;
        let at = replica.clock(now);
        if failed {
            return replica.watch.read_failed();
        }
        replica.watch.read(Epoch(epoch), Beat(beat), at, at);
        if let Some((boot, theirs)) = &self.store.clock {
            replica.sightings.saw(boot, *theirs, at);
            let offset = i128::from(at.as_nanos()) - i128::from(theirs.as_nanos());
            let smallest = replica.smallest_offset.entry(boot.clone()).or_insert(offset);
            *smallest = offset.min(*smallest);
        }
        if too_early || replica.watch.may_take().is_some() {
            self.take(index, now);
        }
    }

    /// The store grants the lease; the slots are read after that.
    fn take(&mut self, index: usize, now: u64) {
        self.store.epoch += 1;
        self.store.beat = 0;
        self.takeovers += 1;
        let replica = &mut self.replicas[index];
        let at = replica.clock(now);
        self.store.clock = Some((replica.boot.clone(), at));
        let hold = match self.mutant {
            Mutant::OrphansForgotten => Duration::ZERO,
            Mutant::OrphansHeldShort => Duration::from_millis(UPSTREAM_MAX_DELAY + 60_100),
            _ => ORPHAN_HOLD,
        };
        let mapped = |boot: &BootId, theirs: Mono| match self.mutant {
            Mutant::ForeignClockAsOwn => theirs.min(at),
            Mutant::SmallestOffset if *boot != replica.boot => {
                let offset = replica.smallest_offset.get(boot).copied();
                offset.map_or(at, |offset| {
                    let nanos = u64::try_from((i128::from(theirs.as_nanos()) + offset).max(0)).unwrap();
                    Mono::from_nanos(nanos).min(at)
                })
            }
            _ => replica.sightings.ours(boot, theirs, &replica.boot, at),
        };
        let slots: Vec<_> = self
            .store
            .slots
            .iter()
            .map(|(slot, row)| (*slot, row.end.map(|(settlement, theirs)| (settlement, mapped(&row.boot, theirs)))))
            .collect();
        let mut ledger = Ledger::new(QUOTA, Duration::from_millis(UPSTREAM_MAX_DELAY));
        ledger.inherit(slots, Some(hold), at);
        let tenure = Tenure::new(TTL, GUARD, at);
        replica.owner = Some(Owner { epoch: self.store.epoch, ledger, tenure, renew_at: now + RENEW_EVERY, sends: 0 });
    }

    /// Renews, follows the orphans, and sends what the ledger admits.
    fn own(&mut self, index: usize, now: u64) {
        let Some(mut owner) = self.replicas[index].owner.take() else { return };
        let at = self.replicas[index].clock(now);
        let mine = owner.epoch == self.store.epoch;
        if now >= owner.renew_at {
            if !mine && self.mutant != Mutant::NoFence {
                // Deposed: its calls end, it sends no more.
                self.replicas[index].watch = LeaseWatch::new(TTL + GUARD);
                return;
            }
            if mine {
                self.store.beat += 1;
                self.store.clock = Some((self.replicas[index].boot.clone(), at));
            }
            owner.tenure.renewed(at);
            owner.renew_at = now + RENEW_EVERY;
            let orphans: Vec<SlotId> = owner.ledger.orphans().collect();
            for slot in orphans {
                if let Some((settlement, _)) = self.store.slots.get(&slot).and_then(|row| row.end) {
                    owner.ledger.orphan_ended(slot, settlement, at);
                }
            }
        }
        if self.one_in(4) && owner.ledger.check(at).is_ok() && !self.send(index, &mut owner, now) {
            self.replicas[index].watch = LeaseWatch::new(TTL + GUARD);
            return;
        }
        self.replicas[index].owner = Some(owner);
    }

    /// Arms a send, checks once more, and lets it leave; or is stopped right before that. False if the store refused the arm.
    fn send(&mut self, index: usize, owner: &mut Owner, now: u64) -> bool {
        if owner.epoch != self.store.epoch && self.mutant != Mutant::NoFence {
            return false;
        }
        let slot = owner.ledger.take();
        owner.sends += 1;
        let (epoch, send, boot) = (owner.epoch, owner.sends, self.replicas[index].boot.clone());
        self.store.slots.insert(slot, Row { epoch, send, boot, end: None });
        let life = if self.mutant == Mutant::LongTokens { 3_600_000 } else { TOKEN_LIFE };
        let (token_ends, give_up) = (now + life, now + REQUEST_TIMEOUT);
        let mut call = Call { slot, epoch, send, left: false, token_ends, answer: None, give_up };
        if !owner.tenure.may_leave(self.replicas[index].clock(now)) {
            owner.ledger.never_left(slot);
            let at = self.replicas[index].clock(now);
            self.settle(&call, Settlement::NeverLeft, at);
            return true;
        }
        if self.one_in(120) {
            let (long, frozen) = (self.one_in(3), self.one_in(2));
            let stop = self.below(if long { 900_000 } else { 20_000 });
            let replica = &mut self.replicas[index];
            replica.stopped_until = now + stop;
            replica.frozen_since = frozen.then_some(now);
            // Nothing after the last check asks again: it leaves when the process goes on.
            call.give_up = u64::MAX;
        } else {
            self.leave(&mut call, now);
        }
        self.replicas[index].calls.push(call);
        true
    }
}

fn broken_of(seeds: std::ops::Range<u64>, mutant: Mutant) -> usize {
    seeds.filter(|&seed| World::new(seed, mutant).run().most_in_a_window > QUOTA as usize).count()
}

#[test]
fn no_window_holds_more_than_the_quota_whoever_owns_the_line() {
    let (mut sent, mut takeovers, mut left_when_deposed) = (0, 0, 0);
    for seed in 0..400 {
        let verdict = World::new(seed, Mutant::None).run();
        assert!(verdict.most_in_a_window <= QUOTA as usize, "seed {seed}: {} in a window", verdict.most_in_a_window);
        sent += verdict.sent;
        takeovers += verdict.takeovers;
        left_when_deposed += verdict.left_when_deposed;
    }
    println!("{sent} sends, {takeovers} takeovers, {left_when_deposed} sends left after their owner was deposed");
    assert!(sent > 10_000 && takeovers > 1_000 && left_when_deposed > 100, "the runs show something");
}

#[test]
fn each_rule_that_is_left_out_breaks_the_quota() {
    for mutant in [
        Mutant::NoFence,
        Mutant::OrphansForgotten,
        Mutant::OrphansHeldShort,
        Mutant::LongTokens,
        Mutant::ForeignClockAsOwn,
        Mutant::SmallestOffset,
    ] {
        let broken = broken_of(0..120, mutant);
        println!("{mutant:?}: {broken} of 120 runs broken");
        assert!(broken > 0, "{mutant:?} is not noticed");
    }
}
