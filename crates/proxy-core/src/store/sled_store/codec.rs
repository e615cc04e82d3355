//! The bytes on disk. Invariant: what decodes is what was encoded under that very key, or it does not decode.
//!
//! ```text
//! key       table prefix (1) | name
//! format 2  2 (1) | version (16) | CRC-32 of key, version and what follows (4) | class (1) | number (8) | payload
//! format 1  1 (1) | version, big-endian (8) | CRC-32 of key, version and payload (4) | payload
//! ```
//!
//! Numbers are big-endian. The class is 0 for a value that stands in no line, and then there is no number. Format 1 was written by earlier
//! releases and is only read, but for the row of the digest, whose version is a count, and those that name the store and its schema.

use bytes::Bytes;

use crate::place::{Class, Place};
use crate::store::{Key, ReadError, Stored, Table, Version};

const FORMAT: u8 = 2;
const COUNTED: u8 = 1;

/// The first byte of every key of `table`. Part of the format: never renumber.
pub(super) const fn prefix(table: Table) -> u8 {
    match table {
        Table::Meta => 0,
        Table::Device => 1,
        Table::Ledger => 2,
        Table::Feed => 3,
        Table::DeviceId => 4,
    }
}

/// Part of the format: never renumber.
const fn class_byte(class: Class) -> u8 {
    match class {
        Class::Expedited => 1,
        Class::First => 2,
        Class::Reprovision => 3,
        Class::Background => 4,
    }
}

pub(super) fn raw_name(table: Table, name: &[u8]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(1 + name.len());
    raw.push(prefix(table));
    raw.extend_from_slice(name);
    raw
}

pub(super) fn raw_key(key: &Key) -> Vec<u8> {
    raw_name(key.table, &key.name)
}

/// The format, the version and the checksum: what stands for a value in the digest. All of it if it is shorter.
pub(super) fn head(raw: &[u8]) -> &[u8] {
    raw.get(..head_length(raw)).unwrap_or(raw)
}

fn head_length(raw: &[u8]) -> usize {
    let version = if raw.first() == Some(&COUNTED) { 8 } else { 16 };
    1 + version + 4
}

fn checksum(key: &[u8], version: &[u8], behind: [&[u8]; 2]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    for part in [key, version].into_iter().chain(behind) {
        hasher.update(part);
    }
    hasher.finalize().to_be_bytes()
}

/// A value of today's format.
pub(super) fn encode(key: &[u8], version: Version, place: Option<Place>, payload: &[u8]) -> Vec<u8> {
    let mut placed = [0; 9];
    let placed = match place {
        None => &placed[..1],
        Some(Place { class, sequence }) => {
            placed[0] = class_byte(class);
            placed[1..].copy_from_slice(&sequence.to_be_bytes());
            &placed[..]
        }
    };
    envelope(FORMAT, key, &version.0, [placed, payload])
}

/// A value whose version is a count.
pub(super) fn encode_counted(key: &[u8], count: u64, payload: &[u8]) -> Vec<u8> {
    envelope(COUNTED, key, &count.to_be_bytes(), [payload, &[]])
}

fn envelope(format: u8, key: &[u8], version: &[u8], behind: [&[u8]; 2]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(1 + version.len() + 4 + behind[0].len() + behind[1].len());
    raw.push(format);
    raw.extend_from_slice(version);
    raw.extend_from_slice(&checksum(key, version, behind));
    behind.iter().for_each(|part| raw.extend_from_slice(part));
    raw
}

/// What is in an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opened<'r> {
    pub(super) version: Version,
    pub(super) place: Option<Place>,
    pub(super) payload: &'r [u8],
}

/// What is in the envelope, after every check.
pub(super) fn open<'r>(key: &[u8], raw: &'r [u8]) -> Result<Opened<'r>, String> {
    let (version, behind) = checked(key, raw)?;
    if version.len() == 8 {
        // What is drawn today does not begin with eight zeros.
        let mut widened = [0; 16];
        widened[8..].copy_from_slice(version);
        return Ok(Opened { version: Version(widened), place: None, payload: behind });
    }
    let version = Version(version.try_into().map_err(|_| "the version has another length")?);
    let (class, behind) = behind.split_first().ok_or("the envelope is cut short")?;
    if *class == 0 {
        return Ok(Opened { version, place: None, payload: behind });
    }
    let class = Class::ALL.into_iter().find(|known| class_byte(*known) == *class);
    let class = class.ok_or("the class of its place is unknown")?;
    let (number, payload) = behind.split_first_chunk().ok_or("the envelope is cut short")?;
    Ok(Opened { version, place: Some(Place { class, sequence: u64::from_be_bytes(*number) }), payload })
}

/// The count and the payload of a value whose version is a count.
pub(super) fn open_counted<'r>(key: &[u8], raw: &'r [u8]) -> Result<(u64, &'r [u8]), String> {
    let (version, payload) = checked(key, raw)?;
    let count = version.try_into().map_err(|_| "it does not count")?;
    Ok((u64::from_be_bytes(count), payload))
}

/// The version, of the length that the format gives it, and what is behind the checksum, which fits.
fn checked<'r>(key: &[u8], raw: &'r [u8]) -> Result<(&'r [u8], &'r [u8]), String> {
    match raw.first() {
        Some(&(FORMAT | COUNTED)) => {}
        Some(format) => return Err(format!("format {format} is unknown")),
        None => return Err("the envelope is cut short".into()),
    }
    let (head, behind) = raw.split_at_checked(head_length(raw)).ok_or("the envelope is cut short")?;
    let (version, sum) = head[1..].split_at(head.len() - 5);
    if checksum(key, version, [behind, &[]]) != sum {
        return Err("the checksum does not fit".into());
    }
    Ok((version, behind))
}

pub(super) fn decode(table: Table, key: &[u8], raw: &[u8]) -> Result<Stored, ReadError> {
    let Opened { version, place, payload } = open(key, raw).map_err(|why| corrupt(table, key, &why))?;
    Ok(Stored { version, place, value: Bytes::copy_from_slice(payload) })
}

/// Names the damaged key, and the way out.
pub(super) fn corrupt(table: Table, key: &[u8], why: &str) -> ReadError {
    let name = String::from_utf8_lossy(key.get(1..).unwrap_or_default()).escape_debug().to_string();
    ReadError::Corrupt { table, detail: format!("key {name:?}: {why}; restore a backup, or delete this key") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn placed() -> impl Strategy<Value = Option<Place>> {
        let place = (0..Class::ALL.len(), any::<u64>());
        prop::option::of(place.prop_map(|(class, sequence)| Place { class: Class::ALL[class], sequence }))
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_and_no_flipped_bit_does(
            name in prop::collection::vec(any::<u8>(), 0..64),
            payload in prop::collection::vec(any::<u8>(), 0..200),
            version in any::<[u8; 16]>(),
            place in placed(),
            count in any::<u64>(),
            flip in any::<prop::sample::Index>(),
        ) {
            let (key, version, payload) = (raw_name(Table::Device, &name), Version(version), payload.as_slice());
            let today = encode(&key, version, place, payload);
            prop_assert_eq!(open(&key, &today), Ok(Opened { version, place, payload }));
            let counted = encode_counted(&key, count, payload);
            prop_assert_eq!(open_counted(&key, &counted), Ok((count, payload)));
            let widened = Version(u128::from(count).to_be_bytes());
            prop_assert_eq!(open(&key, &counted), Ok(Opened { version: widened, place: None, payload }));
            for mut raw in [today, counted] {
                prop_assert!(open(&raw_name(Table::Feed, &name), &raw).is_err(), "a value belongs to its key");
                let bit = flip.index(raw.len() * 8);
                raw[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(open(&key, &raw).is_err());
                prop_assert!(open(&key, &raw[..flip.index(raw.len())]).is_err());
            }
        }
    }

    /// What an earlier release has written, byte for byte.
    #[test]
    fn a_value_of_format_1_is_read() {
        let key = raw_name(Table::Device, b"sn-1");
        let mut raw = vec![1, 0, 0, 0, 0, 0, 0, 0, 7];
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(b"\x01sn-1\0\0\0\0\0\0\0\x07{}");
        raw.extend_from_slice(&hasher.finalize().to_be_bytes());
        raw.extend_from_slice(b"{}");
        let opened = open(&key, &raw).unwrap();
        assert_eq!(
            (opened.version, opened.place, opened.payload),
            (Version(7_u128.to_be_bytes()), None, b"{}".as_slice())
        );
        assert_eq!(head(&raw), &raw[..13]);
    }
}
