//! What our types are in columns. The numbers are part of the format: append only.

use bytes::Bytes;
use proxy_core::place::{Class, Place, Sequence};
use proxy_core::store::{ReadError, Stored, Table, Version};
use tokio_postgres::Row;
use uuid::Uuid;

/// A table that has rows of its own kind, the devices; the others share one.
pub(crate) const DEVICE: i16 = 1;

pub(crate) const fn table(table: Table) -> i16 {
    match table {
        Table::Meta => 0,
        Table::Device => DEVICE,
        Table::Ledger => 2,
        Table::Feed => 3,
        Table::DeviceId => 4,
    }
}

pub(crate) const fn class(class: Class) -> i16 {
    match class {
        Class::Expedited => 0,
        Class::First => 1,
        Class::Reprovision => 2,
        Class::Background => 3,
    }
}

fn class_of(code: i16) -> Option<Class> {
    Class::ALL.into_iter().find(|known| class(*known) == code)
}

pub(crate) const fn version(version: Version) -> Uuid {
    Uuid::from_bytes(version.0)
}

/// Numbers from 2^63 on, which no sequence gives, become negative: they come back as they were, and stand before all others.
pub(crate) const fn sequence(sequence: Sequence) -> i64 {
    sequence.cast_signed()
}

pub(crate) const fn sequence_of(column: i64) -> Sequence {
    column.cast_unsigned()
}

/// A number of a lease. One that no lease has becomes one that no row has.
pub(crate) fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(-1)
}

/// The columns `version`, `class`, `seq`, `value` from the first one on.
pub(crate) fn stored(table: Table, row: &Row, first: usize) -> Result<Stored, ReadError> {
    let corrupt = |error: tokio_postgres::Error| ReadError::Corrupt { table, detail: error.to_string() };
    let version: Uuid = row.try_get(first).map_err(corrupt)?;
    let (code, number) = (row.try_get(first + 1).map_err(corrupt)?, row.try_get(first + 2).map_err(corrupt)?);
    let value: &[u8] = row.try_get(first + 3).map_err(corrupt)?;
    Ok(Stored {
        version: Version(version.into_bytes()),
        place: place(table, code, number)?,
        value: Bytes::copy_from_slice(value),
    })
}

/// A place as two columns say it.
pub(crate) fn place(table: Table, code: Option<i16>, number: Option<i64>) -> Result<Option<Place>, ReadError> {
    let (Some(code), Some(number)) = (code, number) else { return Ok(None) };
    let unknown =
        || ReadError::Corrupt { table, detail: format!("a place has class {code}, which this release does not know") };
    Ok(Some(Place { class: class_of(code).ok_or_else(unknown)?, sequence: sequence_of(number) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_table_and_number_has_a_column_of_its_own_and_comes_back() {
        for known in Class::ALL {
            assert_eq!(class_of(class(known)), Some(known));
        }
        assert_eq!(class_of(9), None);
        let tables: std::collections::BTreeSet<i16> = Table::ALL.into_iter().map(table).collect();
        assert_eq!(tables.len(), Table::ALL.len());
        for number in [0, 1, 1 << 62, u64::MAX - 1, u64::MAX] {
            assert_eq!(sequence_of(sequence(number)), number);
        }
    }
}
