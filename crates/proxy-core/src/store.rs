//! Where records live: a narrow trait, written for the weakest backend.
//!
//! Invariants every backend keeps:
//! - **Durable before acknowledged.** [`Store::commit`] returns `Ok` only when the writes would survive the loss of power.
//! - **Durable before visible.** [`Store::get`] and [`Store::scan`] never show a value that a crash could still take back.
//! - **First in, first durable.** Commits submitted one after the other by one task become durable in that order.
//! - **Compare-and-set on one key** is all that callers may rely on. A commit of several writes checks every expectation before
//!   it applies any; a backend that cannot apply them atomically applies them in the order given, so callers order them
//!   such that every prefix is safe.
//! - **A version is written once.** The writer chooses it, at random, and every value of its commit carries it. So no value is taken
//!   for an earlier one of its key, also after a deletion, and one read tells whether a commit happened whose acknowledgement was lost.
//! - **A number is given once.** The places of a line are numbered by the store, in the order in which commits become durable; no number
//!   is given again, also after a crash. Numbers may be left out.
//! - **A fence is part of its commit.** A commit may name a lease and an epoch ([`Fence`]): it is applied only while that epoch is in
//!   force, and taking the lease waits for those under way. See [`lease`].
//!
//! Deliberately absent: secondary indexes, counters other than those of the lines, cross-key transactions. Those are derived from the
//! records. The place of a value is kept beside it, so that lines can be read without the records.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::ids::{InstanceName, LeaseName};
use crate::place::{Class, Place, Sequence};

mod answer;
pub mod conformance;
pub mod lease;
pub mod memory;
mod numbers;
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "it is the disk: files, a thread of its own, and the clocks and the randomness of the machine"
)]
pub mod sled_store;
mod standstill;
mod version;
pub mod watched;

pub use lease::{ClockReading, Fence, Lease, LeaseChange, LeaseError, LeaseOwner, OwnerId};
pub use version::{Version, Versions};

/// The most writes one commit may hold.
pub const MAX_WRITES: usize = 4096;

/// The longest name of a key, in bytes.
pub const MAX_NAME: usize = 512;

/// The largest value, in bytes.
pub const MAX_VALUE: usize = 1024 * 1024;

/// Names of [`Table::Meta`] that begin so are the backend's own.
pub(crate) const RESERVED: &[u8] = b"store.";

/// Refuses what no backend can hold, before it costs anything. For backends.
///
/// # Errors
/// [`CommitError::Refused`], which names the write and the bound.
pub fn validate(writes: &[Write]) -> Result<(), CommitError> {
    if writes.len() > MAX_WRITES {
        return Err(CommitError::Refused(format!("{} writes in one commit; at most {MAX_WRITES}", writes.len())));
    }
    for (index, Write { key, change, .. }) in writes.iter().enumerate() {
        let refuse = |why: String| Err(CommitError::Refused(format!("write {index}: {why}")));
        let name = key.name.len();
        if name > MAX_NAME {
            return refuse(format!("a name of {name} bytes; at most {MAX_NAME}"));
        }
        if key.table == Table::Meta && key.name.starts_with(RESERVED) {
            return refuse("names of Meta that begin with `store.` are reserved".to_owned());
        }
        let value = change.value().map_or(0, Bytes::len);
        if value > MAX_VALUE {
            return refuse(format!("a value of {value} bytes; at most {MAX_VALUE}"));
        }
    }
    match named_twice(writes) {
        Some(index) => Err(CommitError::Refused(format!("write {index}: an earlier write names the same key"))),
        None => Ok(()),
    }
}

/// The first write whose key an earlier one names.
fn named_twice(writes: &[Write]) -> Option<usize> {
    // Most commits have two or three.
    if writes.len() <= 8 {
        return (1..writes.len()).find(|&index| writes[..index].iter().any(|earlier| earlier.key == writes[index].key));
    }
    let mut named = BTreeSet::new();
    writes.iter().position(|write| !named.insert(&write.key))
}

/// Which collection a key belongs to. The order is part of the on-disk format: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Schema version, store identity, and what of the settings must not change behind the records.
    Meta,
    /// One record per device, keyed by registration ID.
    Device,
    /// One entry per ledger slot, keyed by instance and slot.
    Ledger,
    /// The change feed, keyed by big-endian sequence number.
    Feed,
    /// Whose a device ID is: the registration ID, keyed by tenant and device ID.
    DeviceId,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Meta, Self::Device, Self::Ledger, Self::Feed, Self::DeviceId];
}

/// A table and the bytes that name one value in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The collection.
    pub table: Table,
    /// The name within it; at most 512 bytes.
    pub name: Vec<u8>,
}

impl Key {
    /// A key in `table`.
    #[must_use]
    pub fn new(table: Table, name: impl Into<Vec<u8>>) -> Self {
        Self { table, name: name.into() }
    }
}

/// A value, and the version to name in the compare-and-set that changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The commit that wrote it.
    pub version: Version,
    /// The place that it stands at in a line, if it does.
    pub place: Option<Place>,
    /// The value as it was committed.
    pub value: Bytes,
}

/// What a key must hold for a commit to be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Absent,
    /// What the commit of this version wrote.
    Version(Version),
    /// Whatever it holds.
    Any,
}

impl Expect {
    /// Whether it holds for a key that has `current`.
    #[must_use]
    pub fn holds(self, current: Option<Version>) -> bool {
        match self {
            Self::Absent => current.is_none(),
            Self::Version(version) => current == Some(version),
            Self::Any => true,
        }
    }
}

/// What a value says of a place in line. A backend keeps it beside the value, so that lines can be read without the records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placing {
    /// It stands in no line.
    Nowhere,
    /// It stands at this place of this line: kept, or come back to.
    At {
        /// Whose line.
        line: InstanceName,
        /// The place.
        place: Place,
    },
    /// It joins the end of the line: the store gives the next number of that.
    Join {
        /// Whose line.
        line: InstanceName,
        /// In which class.
        class: Class,
    },
}

/// What becomes of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It holds this from now on.
    Put {
        /// The new value.
        value: Bytes,
        /// Where it stands in line.
        placing: Placing,
    },
    /// It holds nothing from now on.
    Delete,
    /// It stays as it is: only the expectation counts, and keeps the whole commit from being applied if it does not hold.
    Keep,
}

impl Change {
    const fn value(&self) -> Option<&Bytes> {
        match self {
            Self::Put { value, .. } => Some(value),
            Self::Delete | Self::Keep => None,
        }
    }
}

/// One conditional write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// What is written.
    pub key: Key,
    /// The condition.
    pub expect: Expect,
    /// What becomes of it.
    pub change: Change,
}

impl Write {
    /// Puts a value that stands in no line.
    #[must_use]
    pub fn put(key: Key, expect: Expect, value: impl Into<Bytes>) -> Self {
        Self { key, expect, change: Change::Put { value: value.into(), placing: Placing::Nowhere } }
    }

    /// Deletes what is there.
    #[must_use]
    pub const fn delete(key: Key, expect: Expect) -> Self {
        Self { key, expect, change: Change::Delete }
    }

    /// Changes nothing, and guards the commit.
    #[must_use]
    pub const fn keep(key: Key, expect: Expect) -> Self {
        Self { key, expect, change: Change::Keep }
    }
}

/// Writes that are applied together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// What names it: every value that it writes carries this.
    pub version: Version,
    /// At most [`MAX_WRITES`], each of another key.
    pub writes: Vec<Write>,
    /// The epoch under which it was decided, if it may only be applied while that is in force.
    pub fence: Option<Fence>,
}

/// One row of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Name within the scanned table.
    pub name: Vec<u8>,
    /// What it holds.
    pub stored: Stored,
}

/// Whether the store takes writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Writable,
    /// It answers reads only, until the cause is gone; the text says why and what to do.
    ReadOnly(String),
    /// It answers reads only until it is opened again; the text says why and what to do.
    Failed(String),
}

/// Why a read failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The bytes under a key are not what was written: nothing wrong is served.
    #[error("the store holds a damaged value in table {table:?}: {detail}")]
    Corrupt {
        /// The table of the damaged value.
        table: Table,
        /// What does not fit, and the way out.
        detail: String,
    },
    /// The value is sound, and a newer version of this service wrote something into it that this one would have to understand.
    #[error(
        "the store holds what a newer version has written, in table {table:?}, and this one cannot read it: {detail}"
    )]
    Newer {
        /// The table of the value.
        table: Table,
        /// What is new.
        detail: String,
    },
    /// The backend did not answer.
    #[error("the store cannot be read: {0}")]
    Unavailable(String),
}

/// Why a commit failed. Nothing of it was applied, unless it says so.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// The expectation of the write at `index` did not hold. Read again and decide again: what it lost to is durable by now.
    #[error("write {index} expected another version")]
    Conflict {
        /// Position in [`Commit::writes`].
        index: usize,
    },
    /// The epoch of its fence is not in force: the lease was taken since, given back, or was never taken. Whatever was decided under that
    /// epoch is to be dropped.
    #[error("the lease is not held in the epoch of the commit any more")]
    Fenced,
    /// The store takes no writes now; the text says why and what to do.
    #[error("the store takes no writes: {0}")]
    ReadOnly(String),
    /// The bounded inbox of the writer stayed full for as long as the caller may wait. Try again later.
    #[error("the store's writer is behind")]
    Busy,
    /// This commit can never be applied as it is: a bound is exceeded, or a value it builds on is damaged. The store goes on.
    #[error("the commit is refused: {0}")]
    Refused(String),
    /// The backend failed while it wrote: the outcome is unknown until the store is opened again (all of it, none or a part may have
    /// been applied), and it is read-only from here on.
    #[error("the store failed while writing: {0}")]
    Failed(String),
}

/// A key-value store with compare-and-set. See the module for what every backend promises.
///
/// All methods are cancel-safe: a commit, or the change of a lease, whose future is dropped is either applied whole or not at all.
pub trait Store: Send + Sync + fmt::Debug {
    /// The durable value under `key`.
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, ReadError>>;

    /// Applies the writes if the fence and every expectation hold, and returns when they are durable, with the numbers that were given:
    /// one per write that joins a line, in the order of the writes. It is submitted when the future is first polled.
    ///
    /// Numbers grow in the order in which commits become durable: of two, one of which was acknowledged before the other was submitted, the
    /// earlier one has the smaller numbers.
    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Vec<Sequence>, CommitError>>;

    /// The durable lease of this name; `None` if nobody has ever taken it.
    fn lease<'a>(&'a self, name: &'a LeaseName) -> BoxFuture<'a, Result<Option<Lease>, ReadError>>;

    /// Takes, renews or gives back a lease, and returns it as it is then, when that is durable. See [`LeaseChange`]. It is submitted when
    /// the future is first polled.
    ///
    /// A change whose future is dropped, or that has no answer, happened, or happens a little later, or never does. It may always be
    /// repeated: what has happened already is granted again. And a process that reads that it owns the lease owns it, also in an epoch
    /// that it did not know of.
    ///
    /// # Errors
    /// See [`LeaseError`]; only [`LeaseError::Lost`] says that the lease is another's.
    fn change_lease<'a>(&'a self, name: &'a LeaseName, change: LeaseChange)
    -> BoxFuture<'a, Result<Lease, LeaseError>>;

    /// Whether nobody else can read or write while this store is open. Then a lease that an earlier process has left may be taken at
    /// once: that process is gone. The answer never changes.
    fn is_exclusive(&self) -> bool;

    /// Numbers that are given in `line` from now on are at least `next`: for places that another store, or an earlier format, has given.
    ///
    /// # Errors
    /// As those of a commit. A store that is [`ReadOnly`](CommitError::ReadOnly) keeps to it all the same, should it take writes later
    /// without being opened again.
    fn raise_sequence<'a>(&'a self, line: &'a InstanceName, next: Sequence) -> BoxFuture<'a, Result<(), CommitError>>;

    /// At most `limit` durable rows of `table` in key order, those with `name > after` only.
    fn scan<'a>(
        &'a self,
        table: Table,
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Row>, ReadError>>;

    /// The last row of `table` in key order.
    fn last(&self, table: Table) -> BoxFuture<'_, Result<Option<Row>, ReadError>>;

    /// Whether commits are taken.
    fn health(&self) -> Health;

    /// Grows whenever what is being written has come a step further, so that a write that takes long is told from one that hangs. A
    /// store whose only steps are its acknowledgements says nothing of them.
    fn steps(&self) -> u64 {
        0
    }

    /// Stops taking commits, makes what was taken durable, and releases the store (files, locks, connections).
    fn close(&self) -> BoxFuture<'_, ()>;
}
