//! Where records live: a narrow trait, written for the weakest backend.
//!
//! Invariants every backend keeps:
//! - **Durable before acknowledged.** [`Store::commit`] returns `Ok` only when the writes would survive the loss of power.
//! - **Durable before visible.** [`Store::get`] and [`Store::scan`] never show a value that a crash could still take back.
//! - **First in, first durable.** Commits submitted one after the other by one task become durable in that order.
//! - **Compare-and-set on one key** is all that callers may rely on. A commit of several writes checks every expectation before
//!   it applies any; a backend that cannot apply them atomically applies them in the order given, so callers order them
//!   such that every prefix is safe.
//!
//! Deliberately absent: secondary indexes, counters, cross-key transactions. Those are derived from the records.

use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;

#[cfg(test)]
mod conformance;
pub mod memory;
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "it is the disk: files, a thread of its own, and the clocks and the randomness of the machine"
)]
pub mod sled_store;
mod standstill;
pub mod watched;

/// The most writes one commit may hold.
pub const MAX_WRITES: usize = 4096;

/// The longest name of a key, in bytes.
pub const MAX_NAME: usize = 512;

/// The largest value, in bytes.
pub const MAX_VALUE: usize = 1024 * 1024;

/// Refuses what no backend can hold, before it costs anything.
pub(crate) fn validate(writes: &[Write]) -> Result<(), CommitError> {
    if writes.len() > MAX_WRITES {
        return Err(CommitError::Refused(format!("{} writes in one commit; at most {MAX_WRITES}", writes.len())));
    }
    for (index, write) in writes.iter().enumerate() {
        let name = write.key.name.len();
        if name > MAX_NAME {
            return Err(CommitError::Refused(format!("write {index}: a name of {name} bytes; at most {MAX_NAME}")));
        }
        let value = write.value.as_ref().map_or(0, Bytes::len);
        if value > MAX_VALUE {
            return Err(CommitError::Refused(format!("write {index}: a value of {value} bytes; at most {MAX_VALUE}")));
        }
    }
    Ok(())
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

/// Counts the writes of one key, from 1. Given by the store; a deleted key that is created anew starts at 1 again.
pub type Version = u64;

/// A value and the version to name in the compare-and-set that changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// How often this key was written.
    pub version: Version,
    /// The value as it was committed.
    pub value: Bytes,
}

/// What a key must hold for a write to be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Absent,
    /// Exactly this version.
    Version(Version),
    /// Whatever it holds.
    Any,
}

/// One conditional write. `value: None` deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// What is written.
    pub key: Key,
    /// The condition.
    pub expect: Expect,
    /// The new value, or `None` to delete.
    pub value: Option<Bytes>,
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
        /// Position in the vector given to [`Store::commit`].
        index: usize,
    },
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
/// All methods are cancel-safe: a commit whose future is dropped is either applied whole or not at all.
pub trait Store: Send + Sync + fmt::Debug {
    /// The durable value under `key`.
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, ReadError>>;

    /// Applies `writes` if every expectation holds, and returns when they are durable, with the new version of each
    /// (0 for a deletion). At most [`MAX_WRITES`] writes. It is submitted when the future is first polled. Where one commit
    /// names a key twice, the later write expects what the earlier one leaves.
    fn commit(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<Vec<Version>, CommitError>>;

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
