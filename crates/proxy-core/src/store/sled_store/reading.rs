//! Reads: what is durable, whatever the writer is doing.
//!
//! Invariant: a value is looked up in sled first and then in the overlay, so that no interleaving with the writer shows an unsynced value.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};

use sled::{Db, IVec};

use super::{SCAN_ROWS_MAX, Shared, codec, panic_text};
use crate::store::{Key, ReadError, Row, Stored, Table};

impl Shared {
    pub(super) fn read<T>(
        &self,
        table: Table,
        read: impl FnOnce(&Db) -> Result<T, sled::Error>,
    ) -> Result<T, ReadError> {
        let db = self.db.read();
        let Some(db) = db.as_ref() else {
            return Err(ReadError::Unavailable(format!("{} is closed", self.path.display())));
        };
        match catch_unwind(AssertUnwindSafe(|| read(db))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error @ sled::Error::Corruption { .. })) => Err(ReadError::Corrupt {
                table,
                detail: format!("{error}; restore a backup of {}", self.path.display()),
            }),
            Ok(Err(error)) => Err(ReadError::Unavailable(error.to_string())),
            Err(panic) => Err(ReadError::Unavailable(format!("sled panicked: {}", panic_text(&*panic)))),
        }
    }

    /// Has sled write what reading brought about: whoever meets a node that is too full splits it, and so writes. Many reads in a row that
    /// do may bring about the deadlock of which `GROUP_BYTES_MAX` in [`writer`](super::writer) tells. Next to nothing where nothing was
    /// written.
    pub(super) fn flush_after_reads(&self, db: &Db) {
        if self.failure.lock().is_none() {
            // If it fails, the next write will too, and is there to tell.
            let _ = db.flush();
        }
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
        let raw_key = codec::raw_key(key);
        let written = self.read(key.table, |db| db.get(&raw_key))?;
        let durable = match self.overlay.read().get(&raw_key) {
            Some(durable) => durable.clone(),
            None => written,
        };
        durable.map(|raw| codec::decode(key.table, &raw_key, &raw)).transpose()
    }

    pub(super) fn scan(&self, table: Table, after: Option<&[u8]>, limit: usize) -> Result<Vec<Row>, ReadError> {
        let end = vec![codec::prefix(table) + 1];
        let mut from = match after {
            Some(name) => Bound::Excluded(codec::raw_name(table, name)),
            None => Bound::Included(codec::raw_name(table, &[])),
        };
        let mut rows = Vec::new();
        while rows.len() < limit {
            let room = limit - rows.len();
            let want = room.min(SCAN_ROWS_MAX);
            let range = (from.clone(), Bound::Excluded(end.clone()));
            let written: Vec<(IVec, IVec)> = self.read(table, |db| db.range(range).take(want).collect())?;
            let last = written.last().map(|(key, _)| key.to_vec()).filter(|_| written.len() == want);
            let upto = last.clone().map_or(Bound::Excluded(end.clone()), Bound::Included);
            for (key, raw) in self.durable_rows(written, (from, upto)).into_iter().take(room) {
                rows.push(decode_row(table, &key, &raw)?);
            }
            // Rows that are not durable yet were left out: go on, so that a short page always means the end.
            let Some(last) = last else { break };
            from = Bound::Excluded(last);
            if rows.len() < limit {
                self.read(table, |db| {
                    self.flush_after_reads(db);
                    Ok(())
                })?;
            }
        }
        Ok(rows)
    }

    /// `written`, which is all that sled holds in `range`, with every key that is being written set back.
    fn durable_rows(&self, written: Vec<(IVec, IVec)>, range: (Bound<Vec<u8>>, Bound<Vec<u8>>)) -> Vec<(IVec, IVec)> {
        let overlay = self.overlay.read();
        let mut changed = overlay.range(range).peekable();
        if changed.peek().is_none() {
            return written;
        }
        let mut rows: BTreeMap<IVec, IVec> = written.into_iter().collect();
        for (key, durable) in changed {
            match durable {
                Some(raw) => rows.insert(key.as_slice().into(), raw.clone()),
                None => rows.remove(key.as_slice()),
            };
        }
        rows.into_iter().collect()
    }

    pub(super) fn last(&self, table: Table) -> Result<Option<Row>, ReadError> {
        let start = codec::raw_name(table, &[]);
        let mut end = vec![codec::prefix(table) + 1];
        // Few rows at the end are being written at any time, so one step is the rule.
        loop {
            let range = (Bound::Included(start.clone()), Bound::Excluded(end.clone()));
            let written = self.read(table, |db| db.range(range).next_back().transpose())?;
            let from = written.as_ref().map_or_else(|| start.clone(), |(key, _)| key.to_vec());
            let exhausted = written.is_none();
            let bounds = (Bound::Included(from.clone()), Bound::Excluded(end));
            if let Some((key, raw)) = self.durable_rows(written.into_iter().collect(), bounds).pop() {
                return decode_row(table, &key, &raw).map(Some);
            }
            if exhausted || from == start {
                return Ok(None);
            }
            end = from;
        }
    }
}

fn decode_row(table: Table, key: &[u8], raw: &[u8]) -> Result<Row, ReadError> {
    let stored = codec::decode(table, key, raw)?;
    Ok(Row { name: key.get(1..).unwrap_or_default().to_vec(), stored })
}
