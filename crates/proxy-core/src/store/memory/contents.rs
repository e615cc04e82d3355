//! What the memory double holds, and what becomes of it: every decision, behind one lock.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use tokio::sync::oneshot;

use super::Failure;
use crate::ids::{InstanceName, LeaseName};
use crate::place::{Place, Sequence};
use crate::store::answer::{Answer, Outcome};
use crate::store::lease::{self, Lease, LeaseChange};
use crate::store::numbers::{self, Given, Numbers};
use crate::store::{
    Change, Commit, CommitError, Fence, Health, Key, Placing, ReadError, Row, Stored, Table, Version, Write, validate,
};

#[derive(Default)]
pub(super) struct Contents {
    pub(super) durable: Layer<Stored>,
    /// What a crash may take: `None` is a deletion.
    volatile: Layer<Option<Stored>>,
    numbers: Numbers,
    /// Rows that were planted past every commit.
    planted: u64,
    pub(super) waiting: Vec<Waiting>,
    pub(super) failures: VecDeque<Failure>,
    pub(super) trouble: Option<Health>,
    pub(super) hold: bool,
    /// Whether the volatile layer is found after a crash although it was never acknowledged.
    pub(super) volatile_survives: bool,
    /// The handles that are not open any more.
    ended: BTreeMap<u64, State>,
    /// Whether none is.
    crashed: bool,
    /// The next handle is this one.
    handles: u64,
    /// Whether several handles may be open at the same time.
    pub(super) shared: bool,
    pub(super) commits: u64,
}

/// What becomes of a handle.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Open,
    Closed,
    Crashed,
}

/// Somebody who is told at the next sync.
pub(super) struct Waiting {
    /// Whose handle.
    handle: u64,
    outcome: Outcome,
    reply: oneshot::Sender<Outcome>,
}

/// One ordered map per table, so that a lookup needs no owned key.
pub(super) struct Layer<T>([BTreeMap<Vec<u8>, T>; Table::ALL.len()]);

impl<T> Default for Layer<T> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| BTreeMap::new()))
    }
}

impl<T> Layer<T> {
    pub(super) fn of(&self, table: Table) -> &BTreeMap<Vec<u8>, T> {
        &self.0[table as usize]
    }

    pub(super) fn of_mut(&mut self, table: Table) -> &mut BTreeMap<Vec<u8>, T> {
        &mut self.0[table as usize]
    }
}

impl Contents {
    /// Nothing, with one handle: 0. There may be more if it is shared.
    pub(super) fn new(shared: bool) -> Self {
        Self { shared, handles: 1, ..Self::default() }
    }

    /// One more handle.
    pub(super) fn handle(&mut self) -> u64 {
        let handle = self.handles;
        self.handles += 1;
        handle
    }

    /// Nobody reads or writes this any more; what the disk holds is returned.
    pub(super) fn crash(&mut self) -> Self {
        if self.volatile_survives {
            self.make_durable();
        }
        let (durable, planted, shared) = (std::mem::take(&mut self.durable), self.planted, self.shared);
        // Dropping the senders is what the waiting commits notice.
        *self = Self { crashed: true, ..Self::new(shared) };
        Self { durable, planted, ..Self::new(shared) }
    }

    /// The process of a handle was killed: whoever waits there hears nothing.
    pub(super) fn kill(&mut self, handle: u64) {
        self.ended.insert(handle, State::Crashed);
        self.waiting.retain(|waiting| waiting.handle != handle);
    }

    /// A handle is closed. What was committed is durable.
    pub(super) fn close(&mut self, handle: u64) {
        if self.state(handle) == State::Open {
            if !self.volatile_survives {
                self.sync();
            }
            self.ended.insert(handle, State::Closed);
        }
    }

    /// What the next commit finds under `key`, durable or not.
    fn current(&self, key: &Key) -> Option<&Stored> {
        match self.volatile.of(key.table).get(&key.name) {
            Some(changed) => changed.as_ref(),
            None => self.durable.of(key.table).get(&key.name),
        }
    }

    pub(super) fn state(&self, handle: u64) -> State {
        if self.crashed { State::Crashed } else { self.ended.get(&handle).copied().unwrap_or_default() }
    }

    pub(super) fn readable(&self, handle: u64) -> Result<(), ReadError> {
        match self.state(handle) {
            State::Open => Ok(()),
            State::Closed => Err(ReadError::Unavailable("it is closed".into())),
            State::Crashed => Err(ReadError::Unavailable("it crashed".into())),
        }
    }

    pub(super) fn writable(&self, handle: u64) -> Result<(), CommitError> {
        match self.state(handle) {
            State::Open => {}
            State::Closed => return Err(CommitError::ReadOnly("it is closed".into())),
            State::Crashed => return Err(CommitError::Failed("it crashed".into())),
        }
        match &self.trouble {
            Some(Health::ReadOnly(why) | Health::Failed(why)) => Err(CommitError::ReadOnly(why.clone())),
            Some(Health::Writable) | None => Ok(()),
        }
    }

    /// The lease that the next change finds.
    fn current_lease(&self, name: &LeaseName) -> Result<Option<Lease>, CommitError> {
        let row = self.current(&Key::new(Table::Meta, lease::row_name(name)));
        row.map(|stored| lease::decode(&stored.value)).transpose().map_err(CommitError::Refused)
    }

    /// The lease as it is durable.
    pub(super) fn durable_lease(&self, name: &LeaseName) -> Result<Option<Lease>, ReadError> {
        let row = self.durable.of(Table::Meta).get(&lease::row_name(name));
        let lease = row.map(|stored| lease::decode(&stored.value)).transpose();
        lease.map_err(|detail| ReadError::Corrupt { table: Table::Meta, detail })
    }

    /// What becomes of a lease, for whom `handle` belongs to.
    pub(super) fn change_lease(&mut self, handle: u64, name: &LeaseName, change: &LeaseChange) -> Submitted {
        match self.decide_lease(handle, name, change) {
            Ok(answer) => self.answer(handle, answer),
            Err(error) => Submitted::Done(Err(error)),
        }
    }

    fn decide_lease(&mut self, handle: u64, name: &LeaseName, change: &LeaseChange) -> Result<Answer, CommitError> {
        self.writable(handle)?;
        let current = self.current_lease(name)?;
        let Some(changed) = change.of(current.as_ref()) else { return Ok(Answer::Lost(current)) };
        let version = self.plant();
        let stored = Stored { version, place: None, value: lease::encode(&changed).into() };
        self.volatile.of_mut(Table::Meta).insert(lease::row_name(name), Some(stored));
        Ok(Answer::Lease(changed))
    }

    fn check_fence(&self, fence: Option<&Fence>) -> Result<(), CommitError> {
        let Some(Fence { lease, epoch }) = fence else { return Ok(()) };
        let held = self.current_lease(lease)?.is_some_and(|lease| lease.holds(*epoch));
        if held { Ok(()) } else { Err(CommitError::Fenced) }
    }

    fn check(&self, writes: &[Write]) -> Result<(), CommitError> {
        let holds = |write: &Write| write.expect.holds(self.current(&write.key).map(|stored| stored.version));
        writes.iter().position(|write| !holds(write)).map_or(Ok(()), |index| Err(CommitError::Conflict { index }))
    }

    /// Applies a commit that was checked.
    fn apply(&mut self, Commit { version, writes, fence: _ }: Commit) -> Vec<Sequence> {
        self.commits += 1;
        let mut given = Vec::new();
        for Write { key, change, .. } in writes {
            let stored = match change {
                Change::Keep => continue,
                Change::Delete => None,
                Change::Put { value, placing } => {
                    let place = match placing {
                        Placing::Nowhere => None,
                        Placing::At { place, .. } => Some(place),
                        Placing::Join { line, class } => {
                            let sequence = self.give(&line, version);
                            given.push(sequence);
                            Some(Place { class, sequence })
                        }
                    };
                    Some(Stored { version, place, value })
                }
            };
            self.volatile.of_mut(key.table).insert(key.name, stored);
        }
        given
    }

    /// The next number of `line`, in a commit of `version`.
    fn give(&mut self, line: &InstanceName, version: Version) -> Sequence {
        self.read_bound(line);
        let Given { number, bound } = self.numbers.give(line);
        if let Some(bound) = bound {
            self.write_bound(line, bound, version);
        }
        number
    }

    fn read_bound(&mut self, line: &InstanceName) {
        if !self.numbers.knows(line) {
            let row = self.current(&Key::new(Table::Meta, numbers::row_name(line)));
            let bound = row.and_then(|stored| numbers::decode(&stored.value)).unwrap_or(0);
            self.numbers.read(line, bound);
        }
    }

    fn write_bound(&mut self, line: &InstanceName, bound: Sequence, version: Version) {
        let stored = Stored { version, place: None, value: numbers::encode(bound).into() };
        self.volatile.of_mut(Table::Meta).insert(numbers::row_name(line), Some(stored));
    }

    /// Every number of `line` is at least `next` from now on.
    pub(super) fn raise(&mut self, handle: u64, line: &InstanceName, next: Sequence) -> Submitted {
        self.numbers.raise(line, next);
        if let Err(error) = self.writable(handle) {
            return Submitted::Done(Err(error));
        }
        self.read_bound(line);
        let Some(bound) = self.numbers.raised_bound(line) else {
            return Submitted::Done(Ok(Answer::Numbers(Vec::new())));
        };
        let version = self.plant();
        self.write_bound(line, bound, version);
        self.answer(handle, Answer::Numbers(Vec::new()))
    }

    /// A version for what no commit writes.
    pub(super) fn plant(&mut self) -> Version {
        self.planted += 1;
        Version(u128::from(self.planted).to_be_bytes())
    }

    pub(super) fn make_durable(&mut self) {
        for table in Table::ALL {
            let durable = self.durable.of_mut(table);
            for (name, changed) in std::mem::take(self.volatile.of_mut(table)) {
                match changed {
                    Some(stored) => durable.insert(name, stored),
                    None => durable.remove(&name),
                };
            }
        }
    }

    pub(super) fn sync(&mut self) {
        self.make_durable();
        for waiting in self.waiting.drain(..) {
            // Nobody listens when the commit's future was dropped: it is durable all the same.
            let _ = waiting.reply.send(waiting.outcome);
        }
    }

    pub(super) fn submit(&mut self, handle: u64, commit: Commit) -> Submitted {
        match self.try_submit(handle, commit) {
            Ok(submitted) => submitted,
            Err(error) => Submitted::Done(Err(error)),
        }
    }

    fn try_submit(&mut self, handle: u64, commit: Commit) -> Result<Submitted, CommitError> {
        validate(&commit.writes)?;
        self.writable(handle)?;
        let failure = self.failures.pop_front();
        match failure {
            Some(Failure::Busy) => return Err(CommitError::Busy),
            Some(Failure::ReadOnly(why)) => return Err(CommitError::ReadOnly(why)),
            Some(Failure::Failed { .. }) | None => {}
        }
        match self.check_fence(commit.fence.as_ref()).and_then(|()| self.check(&commit.writes)) {
            Ok(()) => {}
            Err(lost) if self.hold => return Ok(self.wait(handle, Err(lost))),
            Err(lost) => return Err(lost),
        }
        if let Some(Failure::Failed { applied }) = failure {
            self.trouble = Some(Health::Failed("it failed while writing: open it again".into()));
            if applied {
                self.volatile_survives = true;
                self.apply(commit);
            }
            // Whatever was not acknowledged never will be: the writer is gone.
            for waiting in self.waiting.drain(..) {
                let _ = waiting.reply.send(Err(CommitError::Failed("simulated".into())));
            }
            return Err(CommitError::Failed("simulated".into()));
        }
        let given = self.apply(commit);
        Ok(self.answer(handle, Answer::Numbers(given)))
    }

    /// Makes what was applied durable and tells it; later, if acknowledgements are held.
    fn answer(&mut self, handle: u64, answer: Answer) -> Submitted {
        if self.hold {
            return self.wait(handle, Ok(answer));
        }
        self.sync();
        Submitted::Done(Ok(answer))
    }

    /// The outcome is told at the next sync. That holds for a conflict too: what it lost to cannot be read before.
    fn wait(&mut self, handle: u64, outcome: Outcome) -> Submitted {
        let (reply, told) = oneshot::channel();
        self.waiting.push(Waiting { handle, outcome, reply });
        Submitted::Waiting(told)
    }

    pub(super) fn scan(&self, table: Table, after: Option<&[u8]>, limit: usize) -> Vec<Row> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.durable.of(table).range::<[u8], _>((from, Bound::Unbounded));
        rows.take(limit).map(|(name, stored)| row(name, stored)).collect()
    }
}

pub(super) fn row(name: &[u8], stored: &Stored) -> Row {
    Row { name: name.to_vec(), stored: stored.clone() }
}

/// What was asked: done, or told later.
pub(super) enum Submitted {
    Done(Outcome),
    Waiting(oneshot::Receiver<Outcome>),
}

impl Submitted {
    pub(super) async fn outcome(self) -> Outcome {
        match self {
            Self::Done(outcome) => outcome,
            Self::Waiting(told) => told.await.unwrap_or_else(|_| Err(CommitError::Failed("it crashed".into()))),
        }
    }
}
