//! What every backend keeps of leases and fences.

use std::sync::Arc;

use rate_control::entropy::Entropy;
use rate_control::ownership::{Beat, Epoch};
use rate_control::time::{BootId, Mono};

use super::{Fixture, device, line, numbers, put, unnamed, value};
use crate::ids::{LeaseName, ReplicaName};
use crate::store::conformance::join;
use crate::store::{
    ClockReading, Commit, CommitError, Expect, Fence, Health, Lease, LeaseChange, LeaseError, LeaseOwner, OwnerId,
    Store, Table, Write,
};

pub fn lease_name(name: &str) -> LeaseName {
    LeaseName::parse(name).unwrap()
}

/// A process that may own a lease.
pub struct Candidate {
    pub owner: LeaseOwner,
}

impl Candidate {
    pub fn new(replica: &str) -> Self {
        let id = OwnerId::random(&mut Entropy::from_system());
        Self { owner: LeaseOwner { id, replica: ReplicaName::parse(replica).unwrap() } }
    }

    /// What its clock reads, in milliseconds; each has a machine of its own.
    pub fn reading(&self, millis: u64) -> ClockReading {
        let boot = BootId(format!("boot-of-{}", self.owner.replica));
        ClockReading { boot, mono: Mono::from_nanos(millis * 1_000_000) }
    }

    pub fn take(&self, seen: Option<(Epoch, Beat)>) -> LeaseChange {
        LeaseChange::Take { seen, owner: self.owner.clone(), reading: self.reading(1_000) }
    }

    pub fn renew(&self, epoch: Epoch, millis: u64) -> LeaseChange {
        LeaseChange::Renew { epoch, owner: self.owner.id, reading: self.reading(millis) }
    }

    pub fn release(&self, epoch: Epoch, millis: u64) -> LeaseChange {
        LeaseChange::Release { epoch, owner: self.owner.id, reading: self.reading(millis) }
    }
}

/// The lease as who wants to take it has seen it.
pub async fn seen(store: &dyn Store, name: &LeaseName) -> Option<(Epoch, Beat)> {
    store.lease(name).await.unwrap().map(|lease| (lease.epoch, lease.beat))
}

/// Takes it, whoever has it.
pub async fn take(store: &dyn Store, name: &LeaseName, candidate: &Candidate) -> Epoch {
    let seen = seen(store, name).await;
    store.change_lease(name, candidate.take(seen)).await.unwrap().epoch
}

/// A commit that is applied only in this epoch.
pub fn fenced(name: &LeaseName, epoch: Epoch, writes: Vec<Write>) -> Commit {
    Commit { fence: Some(Fence { lease: name.clone(), epoch }), ..unnamed(writes) }
}

#[track_caller]
fn assert_lost(outcome: Result<Lease, LeaseError>, now: Option<&Lease>) {
    match outcome {
        Err(LeaseError::Lost { now: told }) => assert_eq!(told.as_ref(), now, "who lost is told to what"),
        other => panic!("{other:?}"),
    }
}

pub async fn a_lease_is_taken_renewed_and_given_back(fixture: &Fixture) {
    let (store, name, a) = (&*fixture.store, lease_name("lines"), Candidate::new("a"));
    assert_eq!(store.lease(&name).await.unwrap(), None);
    let taken = store.change_lease(&name, a.take(None)).await.unwrap();
    let expected =
        Lease { epoch: Epoch(1), beat: Beat(0), owner: a.owner.clone(), reading: a.reading(1_000), released: false };
    assert_eq!(taken, expected);
    assert_eq!(store.lease(&name).await.unwrap(), Some(taken.clone()));
    assert!(taken.is_owned_by(a.owner.id));
    let renewed = store.change_lease(&name, a.renew(Epoch(1), 2_000)).await.unwrap();
    assert_eq!(renewed, Lease { beat: Beat(1), reading: a.reading(2_000), ..taken.clone() });
    let renewed = store.change_lease(&name, a.renew(Epoch(1), 1_500)).await.unwrap();
    assert_eq!(renewed.reading, a.reading(2_000), "one that was sent earlier takes nothing back");
    assert_eq!(store.lease(&name).await.unwrap(), Some(renewed));
    let released = store.change_lease(&name, a.release(Epoch(1), 3_000)).await.unwrap();
    assert_eq!(released, Lease { beat: Beat(3), reading: a.reading(3_000), released: true, ..taken });
    assert!(!released.is_owned_by(a.owner.id));
    assert_eq!(store.lease(&name).await.unwrap(), Some(released));
    assert_eq!(store.lease(&lease_name("line/other")).await.unwrap(), None, "leases are apart");
}

pub async fn of_many_who_have_seen_the_same_one_takes_the_lease(fixture: &Fixture) {
    let name = lease_name("lines");
    let candidates: Vec<_> = (0..8).map(|n| Arc::new(Candidate::new(&format!("replica-{n}")))).collect();
    for round in 0..3 {
        let seen = seen(&*fixture.store, &name).await;
        let tries = candidates.iter().map(|candidate| {
            let (store, name, take) = (Arc::clone(&fixture.store), name.clone(), candidate.take(seen));
            tokio::spawn(async move { store.change_lease(&name, take).await })
        });
        let (mut won, mut lost) = (Vec::new(), Vec::new());
        for outcome in tries.collect::<Vec<_>>() {
            match outcome.await.unwrap() {
                Ok(lease) => won.push(lease),
                Err(LeaseError::Lost { now }) => lost.push(now),
                Err(other) => panic!("{other}"),
            }
        }
        let [winner] = &won[..] else { panic!("{won:?} won") };
        assert_eq!(winner.epoch, Epoch(round + 1));
        assert_eq!(lost, vec![Some(winner.clone()); 7], "all others are told who has it");
        assert_eq!(fixture.store.lease(&name).await.unwrap().as_ref(), Some(winner));
    }
}

pub async fn a_lease_is_taken_only_from_what_was_seen(fixture: &Fixture) {
    let (store, name) = (&*fixture.store, lease_name("lines"));
    let (a, b) = (Candidate::new("a"), Candidate::new("b"));
    assert_lost(store.change_lease(&name, b.take(Some((Epoch(1), Beat(0))))).await, None);
    take(store, &name, &a).await;
    let renewed = store.change_lease(&name, a.renew(Epoch(1), 2_000)).await.unwrap();
    for stale in [None, Some((Epoch(1), Beat(0))), Some((Epoch(0), Beat(1))), Some((Epoch(2), Beat(1)))] {
        assert_lost(store.change_lease(&name, b.take(stale)).await, Some(&renewed));
    }
    assert_eq!(store.lease(&name).await.unwrap(), Some(renewed), "nothing came of them");
    let taken = store.change_lease(&name, b.take(Some((Epoch(1), Beat(1))))).await.unwrap();
    assert_eq!((taken.epoch, taken.beat), (Epoch(2), Beat(0)));
}

pub async fn an_owner_that_was_deposed_renews_and_releases_nothing(fixture: &Fixture) {
    let (store, name) = (&*fixture.store, lease_name("lines"));
    let (a, b) = (Candidate::new("a"), Candidate::new("b"));
    assert_lost(store.change_lease(&name, a.renew(Epoch(1), 1)).await, None);
    assert_lost(store.change_lease(&name, a.release(Epoch(1), 1)).await, None);
    take(store, &name, &a).await;
    take(store, &name, &b).await;
    let held = store.lease(&name).await.unwrap();
    for change in
        [a.renew(Epoch(1), 9_000), a.release(Epoch(1), 9_000), a.renew(Epoch(2), 9_000), b.renew(Epoch(1), 9_000)]
    {
        assert_lost(store.change_lease(&name, change).await, held.as_ref());
    }
    assert_eq!(store.lease(&name).await.unwrap(), held);
    store.change_lease(&name, b.renew(Epoch(2), 9_000)).await.unwrap();
}

pub async fn what_was_given_back_is_taken_at_once_and_is_not_renewed(fixture: &Fixture) {
    let (store, name) = (&*fixture.store, lease_name("lines"));
    let (a, b) = (Candidate::new("a"), Candidate::new("b"));
    take(store, &name, &a).await;
    let released = store.change_lease(&name, a.release(Epoch(1), 2_000)).await.unwrap();
    assert_lost(store.change_lease(&name, a.renew(Epoch(1), 3_000)).await, Some(&released));
    assert_eq!(take(store, &name, &b).await, Epoch(2), "its epoch was kept");
    store.change_lease(&name, b.release(Epoch(2), 2_000)).await.unwrap();
    assert_eq!(take(store, &name, &b).await, Epoch(3), "also by the same one");
}

/// Whoever had no answer asks again.
pub async fn a_change_that_is_repeated_is_granted_again(fixture: &Fixture) {
    let (store, name) = (&*fixture.store, lease_name("lines"));
    let (a, b) = (Candidate::new("a"), Candidate::new("b"));
    for seen in [None, Some((Epoch(1), Beat(0)))] {
        let candidate = if seen.is_none() { &a } else { &b };
        let taken = store.change_lease(&name, candidate.take(seen)).await.unwrap();
        assert_eq!(store.change_lease(&name, candidate.take(seen)).await.unwrap(), taken, "the same epoch");
        assert_eq!(store.lease(&name).await.unwrap(), Some(taken));
    }
    let renewed = store.change_lease(&name, b.renew(Epoch(2), 2_000)).await.unwrap();
    assert_eq!(store.change_lease(&name, b.take(Some((Epoch(1), Beat(0))))).await.unwrap(), renewed);
    let released = store.change_lease(&name, b.release(Epoch(2), 3_000)).await.unwrap();
    assert_eq!(store.change_lease(&name, b.release(Epoch(2), 4_000)).await.unwrap(), released);
    assert_lost(store.change_lease(&name, b.take(Some((Epoch(1), Beat(0))))).await, Some(&released));
}

/// Whoever did not hear of the end of its taking reads, or takes again.
pub async fn a_taking_that_nobody_heard_of_happened_or_did_not(fixture: &Fixture) {
    let (store, name, a) = (&*fixture.store, lease_name("lines"), Candidate::new("a"));
    (fixture.hold)(true);
    let mut unheard = store.change_lease(&name, a.take(None));
    assert!(futures_util::poll!(&mut unheard).is_pending());
    drop(unheard);
    assert_eq!(store.lease(&name).await.unwrap(), None);
    (fixture.hold)(false);
    let again = store.change_lease(&name, a.take(None)).await.unwrap();
    assert_eq!(again.epoch, Epoch(1), "it did not take it from itself");
    assert_eq!(store.lease(&name).await.unwrap(), Some(again));
    let lost = store.change_lease(&name, Candidate::new("b").take(None)).await;
    assert!(matches!(lost, Err(LeaseError::Lost { now: Some(now) }) if now.is_owned_by(a.owner.id)));
}

pub async fn a_lease_shows_only_what_is_durable(fixture: &Fixture) {
    let (store, name) = (&*fixture.store, lease_name("lines"));
    let (a, b) = (Candidate::new("a"), Candidate::new("b"));
    take(store, &name, &a).await;
    let old = store.lease(&name).await.unwrap();
    (fixture.hold)(true);
    let mut taking = store.change_lease(&name, b.take(Some((Epoch(1), Beat(0)))));
    // Looks while the writer works: whenever it applies, nothing of it may show.
    for _ in 0..100 {
        assert!(futures_util::poll!(&mut taking).is_pending());
        assert_eq!(store.lease(&name).await.unwrap(), old);
        tokio::task::yield_now().await;
    }
    (fixture.hold)(false);
    let taken = taking.await.unwrap();
    assert_eq!(store.lease(&name).await.unwrap(), Some(taken));
}

pub async fn no_epoch_is_given_again_after_a_kill(fixture: &Fixture) {
    let name = lease_name("lines");
    let (a, b) = (Candidate::new("a"), Candidate::new("b"));
    take(&*fixture.store, &name, &a).await;
    take(&*fixture.store, &name, &b).await;
    let held = fixture.store.lease(&name).await.unwrap();
    let survivor = (fixture.killed)();
    assert_eq!(survivor.lease(&name).await.unwrap(), held, "it is as it was");
    assert_lost(survivor.change_lease(&name, a.take(Some((Epoch(1), Beat(0))))).await, held.as_ref());
    assert_eq!(take(&*survivor, &name, &a).await, Epoch(3));
    let writes = || vec![put(device("a"), Expect::Any, "x")];
    let late = survivor.commit(fenced(&name, Epoch(2), writes())).await;
    assert!(matches!(late, Err(CommitError::Fenced)), "{late:?}");
    survivor.commit(fenced(&name, Epoch(3), writes())).await.unwrap();
}

pub async fn a_commit_is_applied_in_the_epoch_of_its_fence_only(fixture: &Fixture) {
    let (store, name) = (&*fixture.store, lease_name("lines"));
    let (a, b) = (Candidate::new("a"), Candidate::new("b"));
    let write = |text: &str| vec![put(device("a"), Expect::Any, text)];
    let refused = async |name: &LeaseName, epoch, why: &str| {
        let outcome = store.commit(fenced(name, Epoch(epoch), write("late"))).await;
        assert!(matches!(outcome, Err(CommitError::Fenced)), "{why}: {outcome:?}");
    };
    refused(&name, 0, "nobody has ever taken it").await;
    refused(&name, 1, "nor will that be the first epoch by itself").await;
    take(store, &name, &a).await;
    store.commit(fenced(&name, Epoch(1), write("of the first"))).await.unwrap();
    refused(&name, 2, "that is to come").await;
    refused(&lease_name("line/other"), 1, "another lease").await;
    store.change_lease(&name, a.renew(Epoch(1), 2_000)).await.unwrap();
    store.commit(fenced(&name, Epoch(1), write("renewed"))).await.unwrap();
    take(store, &name, &b).await;
    refused(&name, 1, "it was taken").await;
    assert_eq!(value(store, &device("a")).await.unwrap().1, b"renewed");
    store.commit(fenced(&name, Epoch(2), write("of the second"))).await.unwrap();
    store.change_lease(&name, b.release(Epoch(2), 2_000)).await.unwrap();
    refused(&name, 2, "it was given back").await;
    assert_eq!(value(store, &device("a")).await.unwrap().1, b"of the second");
    store.commit(unnamed(write("without a fence"))).await.unwrap();
    assert_eq!(store.health(), Health::Writable, "the fence is no trouble of the store");
}

pub async fn a_fence_that_does_not_hold_outweighs_every_expectation(fixture: &Fixture) {
    let (store, name, a) = (&*fixture.store, lease_name("lines"), Candidate::new("a"));
    store.commit(unnamed(vec![put(device("a"), Expect::Absent, "x")])).await.unwrap();
    take(store, &name, &a).await;
    let conflicting = || vec![put(device("b"), Expect::Absent, "y"), put(device("a"), Expect::Absent, "y")];
    let outcome = store.commit(fenced(&name, Epoch(7), conflicting())).await;
    assert!(matches!(outcome, Err(CommitError::Fenced)), "{outcome:?}");
    let outcome = store.commit(fenced(&name, Epoch(1), conflicting())).await;
    assert!(matches!(outcome, Err(CommitError::Conflict { index: 1 })), "{outcome:?}");
    for (epoch, held) in [(1, true), (7, false)] {
        let outcome = store.commit(fenced(&name, Epoch(epoch), Vec::new())).await;
        assert_eq!(outcome.is_ok(), held, "also of a commit that writes nothing: {outcome:?}");
    }
    let lost = store.commit(fenced(&name, Epoch(7), vec![join("c", &line("a"), Expect::Absent)])).await;
    assert!(matches!(lost, Err(CommitError::Fenced)), "{lost:?}");
    assert_eq!(numbers(store, vec![join("d", &line("a"), Expect::Absent)]).await, [0], "it was given no number");
    assert_eq!(store.scan(Table::Device, None, 10).await.unwrap().len(), 2);
}

/// Commits that go to the store together have an outcome each.
pub async fn a_commit_that_is_fenced_off_is_refused_alone(fixture: &Fixture) {
    let (store, name, a) = (&*fixture.store, lease_name("lines"), Candidate::new("a"));
    take(store, &name, &a).await;
    let commits = (0..60).map(|n| {
        let writes =
            vec![put(device(&n.to_string()), Expect::Absent, "x"), join(&format!("j{n}"), &line("a"), Expect::Any)];
        match n % 3 {
            0 => store.commit(unnamed(writes)),
            1 => store.commit(fenced(&name, Epoch(1), writes)),
            _ => store.commit(fenced(&name, Epoch(2), writes)),
        }
    });
    let mut given = Vec::new();
    for (n, outcome) in futures_util::future::join_all(commits).await.into_iter().enumerate() {
        match outcome {
            Ok(numbers) if n % 3 != 2 => given.extend(numbers),
            Err(CommitError::Fenced) if n % 3 == 2 => {}
            other => panic!("{n}: {other:?}"),
        }
        let applied = value(store, &device(&n.to_string())).await.is_some();
        assert_eq!(applied, n % 3 != 2, "{n}");
    }
    assert_eq!(given, (0..40).collect::<Vec<_>>(), "each got its own numbers");
}

pub async fn what_bounds_a_lease_is_refused(fixture: &Fixture) {
    let (store, name, a) = (&*fixture.store, lease_name("lines"), Candidate::new("a"));
    let owner = || a.owner.clone();
    for boot in [String::new(), "b".repeat(129), "with a space".to_owned()] {
        let reading = ClockReading { boot: BootId(boot), mono: Mono::default() };
        let refused = store.change_lease(&name, LeaseChange::Take { seen: None, owner: owner(), reading }).await;
        assert!(matches!(refused, Err(LeaseError::Refused(_))), "{refused:?}");
    }
    let longest = ClockReading { boot: BootId("b".repeat(128)), mono: Mono::from_nanos(i64::MAX.unsigned_abs()) };
    let owner = LeaseOwner { replica: ReplicaName::parse(&"~".repeat(128)).unwrap(), ..owner() };
    let name = lease_name(&"l".repeat(128));
    let taken = store.change_lease(&name, LeaseChange::Take { seen: None, owner, reading: longest }).await.unwrap();
    assert_eq!(store.lease(&name).await.unwrap(), Some(taken));
    let meta = unnamed(vec![Write::delete(crate::store::Key::new(Table::Meta, "store.lease/lines"), Expect::Any)]);
    assert!(matches!(store.commit(meta).await, Err(CommitError::Refused(_))), "no commit reaches a lease");
}

pub async fn a_closed_store_changes_no_lease(fixture: &Fixture) {
    let (store, name, a) = (&*fixture.store, lease_name("lines"), Candidate::new("a"));
    take(store, &name, &a).await;
    let exclusive = store.is_exclusive();
    store.close().await;
    let renewed = store.change_lease(&name, a.renew(Epoch(1), 2_000)).await;
    assert!(matches!(renewed, Err(LeaseError::Unavailable(_))), "{renewed:?}");
    assert!(store.lease(&name).await.is_err());
    let commit = store.commit(fenced(&name, Epoch(1), Vec::new())).await;
    assert!(matches!(commit, Err(CommitError::ReadOnly(_))), "{commit:?}");
    assert_eq!(store.is_exclusive(), exclusive);
}
