//! Opening the store: sled is opened, what lies there is vouched for, and made durable, before anybody is served.
//!
//! Invariants:
//! - The lock on the directory is taken first and given up last.
//! - Rows are trusted by the seal of a clean close, or read once and compared with the digest that was committed with them.
//! - No panic of sled leaves this module.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use rand_core::{OsRng, TryRngCore as _};
use sled::Db;

use super::digest::{self, DIGEST_KEY, Digest};
use super::disk::{self, DataFiles, Head, Noted};
use super::{OpenError, codec, panic_text};
use crate::store::Table;

/// The layout of keys and envelopes. A store written by a newer one is refused; one of schema 1 becomes one of schema 2 when it is opened, and
/// each of its values does when it is written next.
const SCHEMA: u32 = 2;
pub(super) const SCHEMA_NAME: &[u8] = b"store.schema";
pub(super) const ID_NAME: &[u8] = b"store.id";

/// The way around a digest that does not fit.
const ANYWAY: &str = " (to open what is left anyway, remove the file `head`)";

/// Fixed when a store is created. Sled's default makes small durable commits write ten times as much.
const SEGMENT_SIZE: usize = 64 * 1024;

/// A store that was vouched for.
pub(super) struct Opened {
    pub(super) lock: File,
    pub(super) db: Db,
    pub(super) files: DataFiles,
    pub(super) head: Head,
    pub(super) digest: Digest,
    pub(super) store_id: String,
}

/// Opens what is in the directory `path`, or creates it.
pub(super) fn open(path: &Path, cache_capacity: u64) -> Result<Opened, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    std::fs::create_dir_all(path).map_err(io)?;
    let lock = disk::lock(path)?;
    disk::remove_torn_snapshots(path).map_err(io)?;
    let head = Head::read(path)?;
    let sealed = disk::break_seal(path)?;
    let existed = disk::has_data(path);
    let (db, at_once) = open_db_or_again(path, cache_capacity)?;
    let vouched = if sealed && at_once { Vouched::BySeal } else { Vouched::ByHead(head) };
    // What a killed predecessor wrote but did not sync is visible now, so it has to be durable too.
    let prepared = catch_unwind(AssertUnwindSafe(|| prepare(path, &db, existed, vouched)))
        .unwrap_or_else(|panic| Err(damaged(path, &panic_text(&*panic))));
    let Prepared { files, head, digest, store_id } = prepared?;
    Ok(Opened { lock, db, files, head, digest, store_id })
}

fn damaged(path: &Path, detail: &str) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), detail: detail.to_owned() }
}

fn sled_error(path: &Path, error: sled::Error) -> OpenError {
    match error {
        sled::Error::Io(source) => OpenError::Io { path: path.to_owned(), source },
        other => damaged(path, &other.to_string()),
    }
}

/// Opens sled, and once more if it broke off: after a loss of power it may panic over the torn end of its log and, in doing so,
/// remove what it stumbled on. Whether everything is still there is then for the digest and the head to say. Also returns
/// whether the first try went well.
fn open_db_or_again(path: &Path, cache_capacity: u64) -> Result<(Db, bool), OpenError> {
    let broke_off = match open_db(path, cache_capacity) {
        Ok(db) => return Ok((db, true)),
        Err(OpenError::Damaged { detail, .. }) => detail,
        Err(error) => return Err(error),
    };
    tracing::warn!(path = %path.display(), "opening the store was interrupted ({broke_off}); trying once more");
    disk::remove_torn_snapshots(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    // The first failure says what happened; a second one only that it happens again.
    open_db(path, cache_capacity).map(|db| (db, false)).map_err(|_| damaged(path, &broke_off))
}

pub(super) fn open_db(path: &Path, cache_capacity: u64) -> Result<Db, OpenError> {
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(cache_capacity)
        .segment_size(SEGMENT_SIZE)
        .mode(sled::Mode::HighThroughput)
        .flush_every_ms(None);
    // An opening that was refused a moment ago may still be letting go. If it never does, sled says so.
    disk::wait_until_released(path);
    // Sled panics on some damage it meets while opening.
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(opened) => opened.map_err(|error| sled_error(path, error)),
        Err(panic) => Err(damaged(path, &format!("sled panicked: {}", panic_text(&*panic)))),
    }
}

/// What the rows of a store are held against when it is opened.
#[derive(Clone, Copy)]
enum Vouched {
    /// No byte changed since it was closed cleanly.
    BySeal,
    /// What the last owner noted, if the file is there.
    ByHead(Option<Noted>),
}

struct Prepared {
    files: DataFiles,
    head: Head,
    digest: Digest,
    store_id: String,
}

/// Makes what is there durable and checks, or writes, the schema, the identity and the digest.
fn prepare(path: &Path, db: &Db, existed: bool, vouched: Vouched) -> Result<Prepared, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let sled = |error| sled_error(path, error);
    db.flush().map_err(sled)?;
    let mut files = DataFiles::open(path).map_err(io)?;
    let schema = meta(path, db, SCHEMA_NAME)?;
    let id = meta(path, db, ID_NAME)?;
    let (store_id, digest) = match (schema, id) {
        (Some(schema), Some(id)) => {
            let found = schema.parse::<u32>().map_err(|_| damaged(path, "its schema is not a number"))?;
            if found > SCHEMA {
                return Err(OpenError::Newer { path: path.to_owned(), found, known: SCHEMA });
            }
            if disk::marked_id(path).map_err(io)?.is_some_and(|marked| marked != id) {
                return Err(damaged(path, "its identity is not the one in the file `identity`"));
            }
            let mut digest = verify(path, db, vouched)?;
            if found < SCHEMA {
                take_over(path, db, &mut digest, found)?;
                files.sync().map_err(io)?;
            }
            (id, digest)
        }
        (None, None) if db.is_empty() => {
            // A sled that lost its head opens as if it were new.
            if let Some(id) = disk::marked_id(path).map_err(io)? {
                return Err(damaged(path, &format!("store {id} was here, and sled finds nothing of it")));
            }
            if existed {
                tracing::info!(path = %path.display(), "finishing the creation of a store that was interrupted");
            }
            let created = create(path, db)?;
            db.flush().map_err(sled)?;
            files.sync().map_err(io)?;
            created
        }
        _ => return Err(damaged(path, "it holds data but not its schema and identity")),
    };
    disk::mark_id(path, &store_id).map_err(io)?;
    // What it counts is durable by now.
    let head = Head::create(path, digest.sequence).map_err(io)?;
    Ok(Prepared { files, head, digest, store_id })
}

/// Holds the rows against what vouches for them; without a seal, reads them all.
fn verify(path: &Path, db: &Db, vouched: Vouched) -> Result<Digest, OpenError> {
    let sled = |error| sled_error(path, error);
    let noted = match db.get(DIGEST_KEY).map_err(sled)? {
        Some(raw) => Some(Digest::decode(&raw).map_err(|why| damaged(path, &format!("its digest: {why}")))?),
        None => None,
    };
    let count = |sequence| {
        let counted = Digest::of(db, sequence, || ()).map_err(sled)?;
        counted.ok_or_else(|| damaged(path, "a scan and a look-up of one row disagree"))
    };
    let (noted, head) = match (vouched, noted) {
        (Vouched::BySeal, Some(noted)) => return Ok(noted),
        (Vouched::ByHead(None), _) => {
            tracing::warn!(path = %path.display(), "the file `head` is missing: the store is taken as it is");
            return count(noted.map_or(0, |noted| noted.sequence));
        }
        (_, None) => return Err(damaged(path, "its digest is gone")),
        (Vouched::ByHead(Some(head)), Some(noted)) => (noted, head),
    };
    if noted.sequence < head.sequence {
        let (lost, of) = (head.sequence - noted.sequence, head.sequence);
        return Err(damaged(path, &format!("the newest {lost} of {of} acknowledged batches are gone{ANYWAY}")));
    }
    let started = Instant::now();
    let found = count(noted.sequence)?;
    if !found.fits(noted) && head.write_failed {
        // Sled keeps whatever part of a batch it had written when a write failed. Nothing of it was acknowledged.
        tracing::warn!(path = %path.display(), rows = found.rows, "the last write failed half way; the store is taken as it is");
        return Ok(found);
    }
    if !found.fits(noted) {
        let (found, noted) = (found.rows, noted.rows);
        return Err(damaged(path, &format!("its {found} rows are not the {noted} that were committed{ANYWAY}")));
    }
    let (rows, took) = (found.rows, started.elapsed());
    tracing::info!(path = %path.display(), rows, ?took, "the store was not closed cleanly; all rows are as committed");
    Ok(noted)
}

fn meta(path: &Path, db: &Db, name: &[u8]) -> Result<Option<String>, OpenError> {
    let key = codec::raw_name(Table::Meta, name);
    let Some(raw) = db.get(&key).map_err(|error| sled_error(path, error))? else { return Ok(None) };
    let opened = codec::open(&key, &raw).map_err(|why| damaged(path, &why))?;
    let text = str::from_utf8(opened.payload).map_err(|_| damaged(path, "its identity is not text"))?;
    Ok(Some(text.to_owned()))
}

/// Makes a store of an earlier schema one of ours, so that no earlier release opens it any more and meets values that it cannot read. The
/// schema itself stays in a format that it can.
fn take_over(path: &Path, db: &Db, digest: &mut Digest, found: u32) -> Result<(), OpenError> {
    let sled = |error| sled_error(path, error);
    let key = codec::raw_name(Table::Meta, SCHEMA_NAME);
    let old = db.get(&key).map_err(sled)?;
    let new = codec::encode_counted(&key, 1, SCHEMA.to_string().as_bytes());
    digest.replace(old.map(|old| digest::hash(&key, &old)), Some(digest::hash(&key, &new)));
    digest.sequence += 1;
    let mut batch = sled::Batch::default();
    batch.insert(key, new);
    batch.insert(&DIGEST_KEY, digest.encode());
    db.apply_batch(batch).map_err(sled)?;
    db.flush().map_err(sled)?;
    tracing::info!(path = %path.display(), found, schema = SCHEMA, "the store was written by an earlier release, which cannot open it any more");
    Ok(())
}

fn create(path: &Path, db: &Db) -> Result<(String, Digest), OpenError> {
    let mut random = [0; 16];
    let filled = OsRng.try_fill_bytes(&mut random);
    filled.map_err(|error| OpenError::Io { path: path.to_owned(), source: io::Error::other(error.to_string()) })?;
    let id = random.iter().fold(String::new(), |mut id, byte| {
        // Writing to a string does not fail.
        let _ = write!(id, "{byte:02x}");
        id
    });
    let (mut batch, mut digest) = (sled::Batch::default(), Digest { sequence: 1, ..Digest::default() });
    for (name, text) in [(SCHEMA_NAME, SCHEMA.to_string()), (ID_NAME, id.clone())] {
        let key = codec::raw_name(Table::Meta, name);
        // So that every release can read which schema it is.
        let value = codec::encode_counted(&key, 1, text.as_bytes());
        digest.replace(None, Some(digest::hash(&key, &value)));
        batch.insert(key, value);
    }
    batch.insert(&DIGEST_KEY, digest.encode());
    db.apply_batch(batch).map_err(|error| sled_error(path, error))?;
    Ok((id, digest))
}
