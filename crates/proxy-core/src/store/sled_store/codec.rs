//! The bytes on disk. Invariant: what decodes is what was encoded under that very key, or it does not decode.
//!
//! ```text
//! key    table prefix (1) | name
//! value  format (1) | version, big-endian (8) | CRC-32 of key, version and payload, big-endian (4) | payload
//! ```

use bytes::Bytes;

use crate::store::{Key, ReadError, Stored, Table, Version};

const FORMAT: u8 = 1;
/// Bytes before the payload.
pub(super) const HEADER: usize = 13;

/// The first byte of every key of `table`. Part of the format: never renumber.
pub(super) const fn prefix(table: Table) -> u8 {
    match table {
        Table::Meta => 0,
        Table::Device => 1,
        Table::Ledger => 2,
        Table::Feed => 3,
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

fn checksum(key: &[u8], version: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(version);
    hasher.update(payload);
    hasher.finalize()
}

pub(super) fn encode(key: &[u8], version: Version, payload: &[u8]) -> Vec<u8> {
    let version = version.to_be_bytes();
    let mut raw = Vec::with_capacity(HEADER + payload.len());
    raw.push(FORMAT);
    raw.extend_from_slice(&version);
    raw.extend_from_slice(&checksum(key, &version, payload).to_be_bytes());
    raw.extend_from_slice(payload);
    raw
}

/// The version and the payload, after every check.
pub(super) fn open<'a>(key: &[u8], raw: &'a [u8]) -> Result<(Version, &'a [u8]), String> {
    let header = raw.first_chunk::<HEADER>().ok_or("the envelope is cut short")?;
    let [format, v0, v1, v2, v3, v4, v5, v6, v7, c0, c1, c2, c3] = *header;
    if format != FORMAT {
        return Err(format!("format {format} is unknown"));
    }
    let version = [v0, v1, v2, v3, v4, v5, v6, v7];
    let payload = raw.get(HEADER..).unwrap_or_default();
    if checksum(key, &version, payload) != u32::from_be_bytes([c0, c1, c2, c3]) {
        return Err("the checksum does not fit".into());
    }
    Ok((Version::from_be_bytes(version), payload))
}

pub(super) fn decode(table: Table, key: &[u8], raw: &[u8]) -> Result<Stored, ReadError> {
    let (version, payload) = open(key, raw).map_err(|why| corrupt(table, key, &why))?;
    Ok(Stored { version, value: Bytes::copy_from_slice(payload) })
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

    proptest! {
        #[test]
        fn what_is_encoded_decodes_and_no_flipped_bit_does(
            name in proptest::collection::vec(any::<u8>(), 0..64),
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            version in 1_u64..,
            flip in any::<proptest::sample::Index>(),
        ) {
            let key = raw_name(Table::Device, &name);
            let mut raw = encode(&key, version, &payload);
            prop_assert_eq!(open(&key, &raw), Ok((version, payload.as_slice())));
            prop_assert!(open(&raw_name(Table::Feed, &name), &raw).is_err(), "a value belongs to its key");
            let bit = flip.index(raw.len() * 8);
            raw[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(open(&key, &raw).is_err());
            prop_assert!(open(&key, &raw[..flip.index(raw.len())]).is_err());
        }
    }
}
