//! Commits on their way to the server: what goes together, what it is in the server's terms, and what each of them is told.

use std::collections::{HashMap, HashSet};

use proxy_core::ids::InstanceName;
use proxy_core::place::Sequence;
use proxy_core::store::{Change, Commit, CommitError, Expect, Key, Placing, Table};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::codec;

/// The numbers that a commit was given.
pub(crate) type Outcome = Result<Vec<Sequence>, CommitError>;

/// A commit, and who waits for its outcome.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) commit: Commit,
    pub(crate) reply: oneshot::Sender<Outcome>,
}

impl Unit {
    /// Nobody listens when the commit's future was dropped.
    pub(crate) fn tell(self, outcome: Outcome) {
        let _nobody_listens = self.reply.send(outcome);
    }

    fn bytes(&self) -> usize {
        let value = |change: &Change| match change {
            Change::Put { value, .. } => value.len(),
            Change::Delete | Change::Keep => 0,
        };
        self.commit.writes.iter().map(|write| write.key.name.len() + value(&write.change)).sum()
    }

    fn joins(&self) -> usize {
        let joins = |change: &Change| matches!(change, Change::Put { placing: Placing::Join { .. }, .. });
        self.commit.writes.iter().filter(|write| joins(&write.change)).count()
    }
}

/// Refuses what only this backend cannot hold.
pub(crate) fn validate(commit: &Commit) -> Result<(), CommitError> {
    for (index, write) in commit.writes.iter().enumerate() {
        let placed = matches!(&write.change, Change::Put { placing, .. } if *placing != Placing::Nowhere);
        if placed && write.key.table != Table::Device {
            return Err(CommitError::Refused(format!("write {index}: only devices stand in a line")));
        }
    }
    Ok(())
}

/// Commits that go together, none of which names a key that another one names: so each can be judged by what was there before.
#[derive(Debug)]
pub(crate) struct Batch {
    units: Vec<Unit>,
    keys: HashSet<Key>,
    bytes: usize,
}

/// Bounds of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) units_max: usize,
    pub(crate) bytes_max: usize,
}

impl Batch {
    pub(crate) fn of(unit: Unit) -> Self {
        let mut batch = Self { units: Vec::new(), keys: HashSet::new(), bytes: 0 };
        batch.push(unit);
        batch
    }

    fn push(&mut self, unit: Unit) {
        self.bytes += unit.bytes();
        self.keys.extend(unit.commit.writes.iter().map(|write| write.key.clone()));
        self.units.push(unit);
    }

    /// Takes one more, or gives it back for the next batch.
    pub(crate) fn add(&mut self, unit: Unit, limits: Limits) -> Result<(), Unit> {
        // There is nothing to ask for a commit without writes and without a fence: it waits for nobody.
        let alone = self.is_empty() || (unit.commit.writes.is_empty() && unit.commit.fence.is_none());
        let fits = !alone && self.units.len() < limits.units_max && self.bytes + unit.bytes() <= limits.bytes_max;
        if !fits || unit.commit.writes.iter().any(|write| self.keys.contains(&write.key)) {
            return Err(unit);
        }
        self.push(unit);
        Ok(())
    }

    pub(crate) const fn len(&self) -> usize {
        self.units.len()
    }

    /// Its commits, each as a batch of its own.
    pub(crate) fn one_by_one(self) -> impl Iterator<Item = Self> {
        self.units.into_iter().map(Self::of)
    }

    /// Whether there is nothing to ask the server.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.units.iter().all(|unit| unit.commit.fence.is_none())
    }

    /// The lines whose numbers have to be known.
    pub(crate) fn lines(&self) -> impl Iterator<Item = &InstanceName> {
        self.units.iter().flat_map(|unit| &unit.commit.writes).filter_map(|write| match &write.change {
            Change::Put { placing: Placing::At { line, .. } | Placing::Join { line, .. }, .. } => Some(line),
            Change::Put { placing: Placing::Nowhere, .. } | Change::Delete | Change::Keep => None,
        })
    }

    /// Tells everybody that nothing was applied, and why.
    pub(crate) fn refuse(self, why: &CommitError) {
        for unit in self.units {
            unit.tell(Err(why.clone()));
        }
    }

    /// Tells everybody what the server said.
    pub(crate) fn tell(self, told: &Told) {
        let mut numbers = told.numbers.iter().copied().map(codec::sequence_of);
        for (n, unit) in self.units.into_iter().enumerate() {
            let conflict = told.conflicts.get(n).copied().flatten();
            let outcome = match conflict.map(usize::try_from) {
                _ if conflict == Some(FENCED) => Err(CommitError::Fenced),
                None => Ok(numbers.by_ref().take(unit.joins()).collect()),
                Some(Ok(index)) => Err(CommitError::Conflict { index }),
                Some(Err(_)) => {
                    Err(CommitError::Refused("the server told an outcome that this release does not know".into()))
                }
            };
            unit.tell(outcome);
        }
    }
}

/// What the server says of a commit whose fence does not hold.
const FENCED: i32 = -1;

/// What the server says of a batch.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// Per commit the write whose expectation did not hold, or [`FENCED`]; `None` where it was applied.
    pub(crate) conflicts: Vec<Option<i32>>,
    /// Of all that were applied, in their order.
    pub(crate) numbers: Vec<i64>,
}

impl Told {
    pub(crate) fn anything_applied(&self) -> bool {
        self.conflicts.iter().any(Option::is_none)
    }
}

/// A batch as `commit_v2` takes it: one position per write, and of `fence` and `epoch` one per commit.
#[derive(Debug, Default)]
pub(crate) struct Columns<'b> {
    pub(crate) fence: Vec<Option<&'b str>>,
    pub(crate) epoch: Vec<Option<i64>>,
    pub(crate) unit: Vec<i32>,
    pub(crate) slot: Vec<i32>,
    pub(crate) table: Vec<i16>,
    pub(crate) name: Vec<&'b [u8]>,
    pub(crate) expect: Vec<i16>,
    pub(crate) expected: Vec<Option<Uuid>>,
    pub(crate) change: Vec<i16>,
    pub(crate) version: Vec<Uuid>,
    pub(crate) value: Vec<Option<&'b [u8]>>,
    pub(crate) line: Vec<Option<i32>>,
    pub(crate) class: Vec<Option<i16>>,
    pub(crate) sequence: Vec<Option<i64>>,
}

impl<'b> Columns<'b> {
    pub(crate) fn of(batch: &'b Batch, lines: &HashMap<InstanceName, i32>) -> Self {
        let mut columns = Self::default();
        for (unit, Unit { commit, .. }) in (1..).zip(&batch.units) {
            columns.fence.push(commit.fence.as_ref().map(|fence| fence.lease.as_str()));
            columns.epoch.push(commit.fence.as_ref().map(|fence| codec::bigint(fence.epoch.0)));
            for (slot, write) in (0..).zip(&commit.writes) {
                columns.unit.push(unit);
                columns.slot.push(slot);
                columns.table.push(codec::table(write.key.table));
                columns.name.push(&write.key.name);
                let (expect, expected) = match write.expect {
                    Expect::Absent => (0, None),
                    Expect::Version(version) => (1, Some(codec::version(version))),
                    Expect::Any => (2, None),
                };
                columns.expect.push(expect);
                columns.expected.push(expected);
                columns.version.push(codec::version(commit.version));
                columns.push_change(&write.change, lines);
            }
        }
        columns
    }

    fn push_change(&mut self, change: &'b Change, lines: &HashMap<InstanceName, i32>) {
        let (code, value, placing) = match change {
            Change::Keep => (0, None, None),
            Change::Put { value, placing } => (1, Some(value.as_ref()), Some(placing)),
            Change::Delete => (2, None, None),
        };
        let (line, class, sequence) = match placing {
            None | Some(Placing::Nowhere) => (None, None, None),
            Some(Placing::At { line, place }) => (Some(line), Some(place.class), Some(codec::sequence(place.sequence))),
            Some(Placing::Join { line, class }) => (Some(line), Some(*class), None),
        };
        self.change.push(code);
        self.value.push(value);
        self.line.push(line.and_then(|line| lines.get(line).copied()));
        self.class.push(class.map(codec::class));
        self.sequence.push(sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_core::place::Class;
    use proxy_core::store::{Version, Write};

    const LIMITS: Limits = Limits { units_max: 3, bytes_max: 100 };

    fn unit(writes: Vec<Write>) -> (Unit, oneshot::Receiver<Outcome>) {
        let (reply, outcome) = oneshot::channel();
        (Unit { commit: Commit { version: Version([7; 16]), writes, fence: None }, reply }, outcome)
    }

    fn put(name: &str, value: &'static str) -> Write {
        Write::put(Key::new(Table::Device, name), Expect::Any, value)
    }

    fn join(name: &str) -> Write {
        let placing = Placing::Join { line: InstanceName::parse("a").unwrap(), class: Class::First };
        Write {
            key: Key::new(Table::Device, name),
            expect: Expect::Absent,
            change: Change::Put { value: "x".into(), placing },
        }
    }

    #[test]
    fn a_batch_is_bounded_and_no_key_is_in_it_twice() {
        let mut batch = Batch::of(unit(vec![put("a", "x")]).0);
        assert!(batch.add(unit(vec![put("b", "x"), put("a", "y")]).0, LIMITS).is_err(), "it builds on the first");
        let guard = Write::keep(Key::new(Table::Device, "a"), Expect::Any);
        assert!(batch.add(unit(vec![guard]).0, LIMITS).is_err(), "so does a guard");
        let large: &'static str =
            "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";
        assert!(batch.add(unit(vec![put("b", large)]).0, LIMITS).is_err(), "too many bytes");
        assert!(batch.add(unit(vec![Write::put(Key::new(Table::Feed, "a"), Expect::Any, "x")]).0, LIMITS).is_ok());
        assert!(batch.add(unit(vec![put("c", "x")]).0, LIMITS).is_ok());
        assert!(batch.add(unit(vec![put("d", "x")]).0, LIMITS).is_err(), "too many commits");
        assert_eq!(batch.len(), 3);
    }

    #[test]
    fn everybody_is_told_its_own_outcome_and_its_own_numbers() {
        let (first, first_told) = unit(vec![join("a"), put("b", "x"), join("c")]);
        let (lost, lost_told) = unit(vec![join("d")]);
        let (last, last_told) = unit(vec![join("e")]);
        let mut batch = Batch::of(first);
        batch.add(lost, LIMITS).unwrap();
        batch.add(last, LIMITS).unwrap();
        batch.tell(&Told { conflicts: vec![None, Some(0), None], numbers: vec![4, 5, 6] });
        assert_eq!(first_told.blocking_recv().unwrap().unwrap(), [4, 5]);
        assert!(matches!(lost_told.blocking_recv().unwrap(), Err(CommitError::Conflict { index: 0 })));
        assert_eq!(last_told.blocking_recv().unwrap().unwrap(), [6]);
    }

    #[test]
    fn only_devices_stand_in_a_line() {
        let mut write = join("a");
        assert!(validate(&unit(vec![write.clone()]).0.commit).is_ok());
        write.key.table = Table::Feed;
        assert!(matches!(validate(&unit(vec![write]).0.commit), Err(CommitError::Refused(_))));
    }
}
