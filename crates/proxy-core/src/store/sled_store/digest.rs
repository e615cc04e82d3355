//! What vouches for the rows after an unclean end, when sled may have dropped a part of its log without a word.
//!
//! Every batch that sled applies also writes the one row below, which counts the batches and describes all other rows. It is
//! committed with them, so every prefix of the log carries a description that fits. A row that was lost, rolled back or raised
//! from the dead alone does not fit any more; a whole log that was cut back fits, and its count is behind the one in the file
//! `head`.
//!
//! ```text
//! key    0xFF
//! value  a counted envelope of `codec`, counting the batches | rows, big-endian (8) | sum of their hashes, big-endian (8)
//! ```

use sled::Db;

use super::{SCAN_ROWS_MAX, codec};

/// Behind every table, so no scan meets it.
pub(super) const DIGEST_KEY: [u8; 1] = [0xFF];

/// Multiplier of the hash, the fractional part of the golden ratio. Part of the format.
const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

/// All rows but its own, in any order, and how many batches led to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Digest {
    pub(super) sequence: u64,
    pub(super) rows: u64,
    pub(super) sum: u64,
}

impl Digest {
    /// Puts `new` where `old` was, each the hash of a row.
    pub(super) fn replace(&mut self, old: Option<u64>, new: Option<u64>) {
        if let Some(gone) = old {
            self.rows = self.rows.wrapping_sub(1);
            self.sum = self.sum.wrapping_sub(gone);
        }
        if let Some(came) = new {
            self.rows = self.rows.wrapping_add(1);
            self.sum = self.sum.wrapping_add(came);
        }
    }

    /// The digest of the rows that are there. Reads them all, each in both ways there are, for a damaged index may show one thing
    /// to a scan and another to a look-up; then there is no digest. Calls `each` with every row, as it may take long.
    pub(super) fn of(db: &Db, sequence: u64, each: impl Fn()) -> sled::Result<Option<Self>> {
        let mut digest = Self { sequence, ..Self::default() };
        for (number, row) in db.range::<&[u8], _>(..DIGEST_KEY.as_slice()).enumerate() {
            // Reading splits nodes, see `Shared::flush_after_reads`.
            if number % SCAN_ROWS_MAX == SCAN_ROWS_MAX - 1 {
                db.flush()?;
            }
            let (key, raw) = row?;
            each();
            if db.get(&key)?.as_ref() != Some(&raw) {
                return Ok(None);
            }
            digest.replace(None, Some(hash(&key, &raw)));
        }
        Ok(Some(digest))
    }

    /// Whether both describe the same rows.
    pub(super) fn fits(self, other: Self) -> bool {
        (self.rows, self.sum) == (other.rows, other.sum)
    }

    pub(super) fn encode(self) -> Vec<u8> {
        let mut payload = self.rows.to_be_bytes().to_vec();
        payload.extend_from_slice(&self.sum.to_be_bytes());
        codec::encode_counted(&DIGEST_KEY, self.sequence, &payload)
    }

    pub(super) fn decode(raw: &[u8]) -> Result<Self, String> {
        let (sequence, payload) = codec::open_counted(&DIGEST_KEY, raw)?;
        let [rows, sum] = payload.as_chunks::<8>().0 else { return Err("it has another length".into()) };
        Ok(Self { sequence, rows: u64::from_be_bytes(*rows), sum: u64::from_be_bytes(*sum) })
    }
}

/// Hash of a row by its key and the head of its envelope, whose checksum stands for the payload. Part of the format.
pub(super) fn hash(key: &[u8], raw: &[u8]) -> u64 {
    [key, codec::head(raw)].iter().fold(0, |state, bytes| {
        let state = bytes
            .chunks(8)
            .fold(state, |state, chunk| mix(state, chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))));
        // Tells `ab`, `c` from `a`, `bc`.
        mix(state, u64::try_from(bytes.len()).unwrap_or(u64::MAX))
    })
}

/// One step of the hash; a bijection in either argument, then the finisher of splitmix64.
fn mix(state: u64, word: u64) -> u64 {
    let mut mixed = (state ^ word).wrapping_add(MIX);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ mixed >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, version: u64, payload: &str) -> Option<u64> {
        let version = crate::store::Version(u128::from(version).to_be_bytes());
        Some(hash(key.as_bytes(), &codec::encode(key.as_bytes(), version, None, payload.as_bytes())))
    }

    #[test]
    fn a_digest_forgets_the_order_and_nothing_else() {
        let (mut one, mut other) = (Digest::default(), Digest::default());
        for n in 0..100 {
            one.replace(None, row(&format!("key {n}"), n, "x"));
            other.replace(None, row(&format!("key {}", 99 - n), 99 - n, "x"));
        }
        assert!(one.fits(other));
        for (old, new) in [
            (row("key 1", 1, "x"), None),
            (None, row("key 100", 1, "x")),
            (row("key 1", 1, "x"), row("key 1", 2, "x")),
            (row("key 1", 1, "x"), row("key 1", 1, "y")),
            (row("key 1", 1, "x"), row("key 01", 1, "x")),
        ] {
            let mut changed = one;
            changed.replace(old, new);
            assert!(!changed.fits(one));
            changed.replace(new, old);
            assert!(changed.fits(one));
        }
        one.sequence = 7;
        assert_eq!(Digest::decode(&one.encode()), Ok(one));
    }
}
