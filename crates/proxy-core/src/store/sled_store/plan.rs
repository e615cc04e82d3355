//! What a batch of commits comes to, decided before anything of it is written.
//!
//! Invariants:
//! - A commit is decided by what those before it leave. If one of its expectations does not hold, it leaves nothing, not even a number
//!   that was given.
//! - A fence is judged by the lease as those before it leave it, like any expectation.
//! - A line's bound is written in the commit whose number is beyond the one before.

use std::collections::HashMap;

use sled::{Db, IVec};
use tokio::sync::oneshot;

use super::{Shared, codec, digest};
use crate::ids::{InstanceName, LeaseName};
use crate::place::{Place, Sequence};
use crate::store::answer::{Answer, Outcome};
use crate::store::lease::{self, Fence, Lease, LeaseChange, Leases};
use crate::store::numbers::{self, Given, Numbers};
use crate::store::{Change, Commit, CommitError, Expect, Placing, Table, Version, Write};

/// The writes of one commit, in sled's form.
pub(super) type Applied = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// So many keys are looked up before sled has to have written what that brought about.
const LOOKUPS_MAX: usize = 16;

/// What the writer is asked for.
pub(super) enum Work {
    Commit(Commit),
    /// Numbers of `line` are at least `next` from now on.
    Raise {
        line: InstanceName,
        next: Sequence,
    },
    /// What becomes of a lease.
    Lease {
        name: LeaseName,
        change: LeaseChange,
    },
}

/// What the writer knows of the rows that are the backend's own, as they will be once its writes are durable.
#[derive(Default)]
pub(super) struct Known {
    pub(super) numbers: Numbers,
    pub(super) leases: Leases,
}

/// What a key holds as the next commit of the batch will find it, and what it held when the batch began.
pub(super) struct Slot {
    pub(super) durable: Option<IVec>,
    current: Result<Option<Version>, String>,
    /// The hash of what sled holds, as it goes.
    pub(super) hash: Option<u64>,
}

/// The batch as it is decided.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) slots: HashMap<Vec<u8>, Slot>,
    pub(super) apply: Vec<Applied>,
    pub(super) acks: Vec<(oneshot::Sender<Outcome>, Outcome)>,
    /// A damaged row goes, and nobody knows what the digest counted for it.
    pub(super) recount: bool,
}

/// Where the rows are looked up.
#[derive(Clone, Copy)]
pub(super) struct Source<'s> {
    pub(super) shared: &'s Shared,
    pub(super) db: &'s Db,
}

impl Plan {
    /// `Err` if sled cannot be read at all.
    pub(super) fn decide(&mut self, from: Source<'_>, known: &mut Known, work: Work) -> Result<Outcome, String> {
        match work {
            Work::Commit(commit) => self.commit(from, known, commit),
            Work::Raise { line, next } => self.raise(from, &mut known.numbers, &line, next),
            Work::Lease { name, change } => self.lease(from, &mut known.leases, &name, &change),
        }
    }

    fn commit(
        &mut self,
        from: Source<'_>,
        known: &mut Known,
        Commit { version, writes, fence }: Commit,
    ) -> Result<Outcome, String> {
        if let Some(Fence { lease, epoch }) = fence {
            match self.current_lease(from, &mut known.leases, &lease)? {
                Ok(held) if held.is_some_and(|held| held.holds(epoch)) => {}
                Ok(_) => return Ok(Err(CommitError::Fenced)),
                Err(refused) => return Ok(Err(refused)),
            }
        }
        let numbers = &mut known.numbers;
        let mut keys = Vec::with_capacity(writes.len());
        for (index, write) in writes.iter().enumerate() {
            let key = codec::raw_key(&write.key);
            if let Err(refused) = check(index, self.slot(from, &key)?, write) {
                return Ok(Err(refused));
            }
            if let Change::Put { placing: Placing::Join { line, .. }, .. } = &write.change
                && let Err(refused) = self.read_bound(from, numbers, line)?
            {
                return Ok(Err(refused));
            }
            keys.push(key);
        }
        let (mut given, mut applied) = (Vec::new(), Applied::with_capacity(keys.len()));
        for (key, write) in keys.into_iter().zip(writes) {
            match write.change {
                Change::Keep => {}
                Change::Delete => self.write(&mut applied, key, None, None),
                Change::Put { value, placing } => {
                    let place = match placing {
                        Placing::Nowhere => None,
                        Placing::At { place, .. } => Some(place),
                        Placing::Join { line, class } => {
                            let Given { number, bound } = numbers.give(&line);
                            if let Some(bound) = bound {
                                self.write_bound(from, &mut applied, &line, bound, version)?;
                            }
                            given.push(number);
                            Some(Place { class, sequence: number })
                        }
                    };
                    let value = codec::encode(&key, version, place, &value);
                    self.write(&mut applied, key, Some(value), Some(version));
                }
            }
        }
        self.apply.push(applied);
        Ok(Ok(Answer::Numbers(given)))
    }

    fn lease(
        &mut self,
        from: Source<'_>,
        leases: &mut Leases,
        name: &LeaseName,
        change: &LeaseChange,
    ) -> Result<Outcome, String> {
        let current = match self.current_lease(from, leases, name)? {
            Ok(current) => current,
            Err(refused) => return Ok(Err(refused)),
        };
        let Some(changed) = change.of(current) else { return Ok(Ok(Answer::Lost(current.cloned()))) };
        let key = codec::raw_name(Table::Meta, &lease::row_name(name));
        self.slot(from, &key)?;
        let version = Version((u128::from(changed.epoch.0) << 64 | u128::from(changed.beat.0)).to_be_bytes());
        let value = codec::encode(&key, version, None, &lease::encode(&changed));
        let mut applied = Applied::new();
        self.write(&mut applied, key, Some(value), Some(version));
        self.apply.push(applied);
        leases.set(name, changed.clone());
        Ok(Ok(Answer::Lease(changed)))
    }

    /// The lease as what was decided before leaves it.
    fn current_lease<'l>(
        &mut self,
        from: Source<'_>,
        leases: &'l mut Leases,
        name: &LeaseName,
    ) -> Result<Result<Option<&'l Lease>, CommitError>, String> {
        if leases.get(name).is_none() {
            let key = codec::raw_name(Table::Meta, &lease::row_name(name));
            let Some(raw) = &self.slot(from, &key)?.durable else { return Ok(Ok(None)) };
            let read = codec::open(&key, raw).and_then(|opened| lease::decode(opened.payload));
            match read {
                Ok(lease) => leases.set(name, lease),
                Err(why) => {
                    let why = format!("the row of lease {name} is damaged ({why}); restore a backup");
                    return Ok(Err(CommitError::Refused(why)));
                }
            }
        }
        Ok(Ok(leases.get(name)))
    }

    fn raise(
        &mut self,
        from: Source<'_>,
        numbers: &mut Numbers,
        line: &InstanceName,
        next: Sequence,
    ) -> Result<Outcome, String> {
        numbers.raise(line, next);
        if let Err(refused) = self.read_bound(from, numbers, line)? {
            return Ok(Err(refused));
        }
        if let Some(bound) = numbers.raised_bound(line) {
            let mut applied = Applied::new();
            self.write_bound(from, &mut applied, line, bound, Version(u128::from(bound).to_be_bytes()))?;
            self.apply.push(applied);
        }
        Ok(Ok(Answer::Numbers(Vec::new())))
    }

    /// Has `numbers` know the bound of `line`.
    fn read_bound(
        &mut self,
        from: Source<'_>,
        numbers: &mut Numbers,
        line: &InstanceName,
    ) -> Result<Result<(), CommitError>, String> {
        if numbers.knows(line) {
            return Ok(Ok(()));
        }
        let key = codec::raw_name(Table::Meta, &numbers::row_name(line));
        let bound = match &self.slot(from, &key)?.durable {
            None => Some(0),
            Some(raw) => codec::open(&key, raw).ok().and_then(|opened| numbers::decode(opened.payload)),
        };
        let Some(bound) = bound else {
            let why = format!("how far the places of line {line} were numbered is damaged; restore a backup");
            return Ok(Err(CommitError::Refused(why)));
        };
        numbers.read(line, bound);
        Ok(Ok(()))
    }

    fn write_bound(
        &mut self,
        from: Source<'_>,
        applied: &mut Applied,
        line: &InstanceName,
        bound: Sequence,
        version: Version,
    ) -> Result<(), String> {
        let key = codec::raw_name(Table::Meta, &numbers::row_name(line));
        self.slot(from, &key)?;
        let value = codec::encode(&key, version, None, &numbers::encode(bound));
        self.write(applied, key, Some(value), Some(version));
        Ok(())
    }

    /// `key`, which has a slot, holds `value` from now on.
    fn write(&mut self, applied: &mut Applied, key: Vec<u8>, value: Option<Vec<u8>>, version: Option<Version>) {
        if let Some(slot) = self.slots.get_mut(&key) {
            self.recount |= slot.current.is_err();
            slot.current = Ok(version);
        }
        applied.push((key, value));
    }

    fn slot(&mut self, from: Source<'_>, key: &[u8]) -> Result<&Slot, String> {
        if !self.slots.contains_key(key) {
            if self.slots.len() % LOOKUPS_MAX == LOOKUPS_MAX - 1 {
                from.shared.flush_after_reads(from.db);
            }
            let durable = from.db.get(key).map_err(|error| error.to_string())?;
            let current = durable.as_ref().map(|raw| codec::open(key, raw).map(|opened| opened.version)).transpose();
            let hash = durable.as_ref().map(|raw| digest::hash(key, raw));
            self.slots.insert(key.to_vec(), Slot { durable, current, hash });
        }
        self.slots.get(key).ok_or_else(|| "a planned key is gone".to_owned())
    }
}

fn check(index: usize, slot: &Slot, write: &Write) -> Result<(), CommitError> {
    match &slot.current {
        Ok(current) if write.expect.holds(*current) => Ok(()),
        Ok(_) => Err(CommitError::Conflict { index }),
        // The one way to get rid of a damaged value.
        Err(_) if write.expect == Expect::Any && write.change == Change::Delete => Ok(()),
        Err(why) => Err(CommitError::Refused(format!("write {index} builds on a damaged value: {why}"))),
    }
}
