//! Reading all records: of the running gateway a few at a time, and all at once when it starts.

use crate::base::Base;
use crate::device::Record;
use crate::ids::RegistrationId;
use crate::store::{ReadError, Row, Store, Table};

/// Rows read and decoded at once: well under a millisecond.
const ROWS: usize = 128;

/// Rows read at once while starting.
const START_ROWS: usize = 1024;

/// Records in the order of their IDs.
pub(crate) struct Scan<'a> {
    base: &'a Base,
    after: Option<Vec<u8>>,
}

impl<'a> Scan<'a> {
    /// Those behind `after`.
    pub(super) fn new(base: &'a Base, after: Option<RegistrationId>) -> Self {
        Self { base, after: after.map(|id| id.as_str().as_bytes().to_vec()) }
    }

    /// The next few; `None` behind the last one. A record that cannot be read is an error: a list without it would be wrong.
    ///
    /// # Errors
    /// If the store cannot be read, or the gateway stops.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Record>>, ReadError> {
        if self.base.is_stopping() {
            return Err(ReadError::Unavailable("the service stops".to_owned()));
        }
        let rows = self.base.store.scan(Table::Device, self.after.as_deref(), ROWS).await?;
        let Some(last) = rows.last() else { return Ok(None) };
        self.after = Some(last.name.clone());
        let records = rows.iter().map(decode).collect::<Result<_, _>>()?;
        // Others take turns, also where reading never waits.
        tokio::task::yield_now().await;
        Ok(Some(records))
    }
}

/// The records of a store that is being opened, a page at a time.
pub(super) struct Pages<'a> {
    store: &'a dyn Store,
    after: Option<Vec<u8>>,
}

/// From the first record on.
pub(super) const fn pages(store: &dyn Store) -> Pages<'_> {
    Pages { store, after: None }
}

impl Pages<'_> {
    /// The next page; `None` behind the last one.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Record>>, ReadError> {
        let rows = self.store.scan(Table::Device, self.after.as_deref(), START_ROWS).await?;
        let Some(last) = rows.last() else { return Ok(None) };
        self.after = Some(last.name.clone());
        rows.iter().map(decode).collect::<Result<_, _>>().map(Some)
    }
}

/// Shows every record of a store to `see`.
///
/// # Errors
/// If the store cannot be read, or a record in it is damaged.
pub(crate) async fn read_all(store: &dyn Store, see: impl FnMut(&Record)) -> Result<(), ReadError> {
    let (mut pages, mut see) = (pages(store), see);
    while let Some(records) = pages.next().await? {
        records.iter().for_each(&mut see);
    }
    Ok(())
}

fn decode(row: &Row) -> Result<Record, ReadError> {
    let decoded = Record::decode(&row.stored);
    let decoded = decoded.map_err(|error| error.into_read_error(&String::from_utf8_lossy(&row.name)))?;
    Ok(decoded.record)
}
