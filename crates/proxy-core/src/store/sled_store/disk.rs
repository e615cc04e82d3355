//! What sled leaves to us on the file system: the lock, the remains of a killed start, true syncs, the seal, the head and the
//! free space.
//!
//! Invariants:
//! - The lock file is held before anything in the directory is touched and released after sled has let go of its own.
//! - [`DataFiles::sync`] returns only when every byte sled handed to the kernel before is on the device: sled's own flush is
//!   not an fsync on Linux, and it never syncs the files in `blobs/`, where it puts tree nodes of more than about 16 KiB.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::OpenError;

const LOCK: &str = "owner.lock";
const SEAL: &str = "seal";
const HEAD: &str = "head";
/// The head of a store whose last write failed.
const HEAD_FAILED: &str = "head.failed";
const IDENTITY: &str = "identity";
const DB: &str = "db";
const BLOBS: &str = "blobs";

/// How long an opening waits for a predecessor that is just exiting.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// File systems stamp directories with a coarse clock: a younger stamp may hide a later change.
const STAMP_GRAIN: Duration = Duration::from_millis(50);

pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK)).map_err(io)?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_WAIT => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
    }
}

/// Whether sled has written here before.
pub(super) fn has_data(path: &Path) -> bool {
    path.join(DB).exists()
}

/// Removes snapshots that a killed opening left half-written: sled would take one for its newest and refuse to open.
pub(super) fn remove_torn_snapshots(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::warn!(file = %entry.path().display(), "removing a half-written snapshot of a killed start");
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The files whose bytes an acknowledgement depends on.
#[derive(Debug)]
pub(super) struct DataFiles {
    db: File,
    blobs_dir: PathBuf,
    synced_blobs: HashSet<OsString>,
    /// The stamp of `blobs/` when it was last listed, if the stamp was old enough then to reveal every later change.
    listed: Option<SystemTime>,
}

impl DataFiles {
    /// Second handles to the files of an open sled in `path`; every file and directory entry is durable when this returns.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let db = OpenOptions::new().read(true).write(true).open(path.join(DB))?;
        let mut files = Self { db, blobs_dir: path.join(BLOBS), synced_blobs: HashSet::new(), listed: None };
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                File::open(entry.path())?.sync_all()?;
            }
        }
        files.sync()?;
        sync_dir(path)?;
        // The entry of the directory itself; a relative path of one part has the working directory for a parent.
        match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => sync_dir(Path::new("."))?,
            Some(parent) => sync_dir(parent)?,
            None => {}
        }
        Ok(files)
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        // Blobs first: the log that points to them must not survive without them.
        self.sync_blobs()?;
        self.db.sync_data()
    }

    fn sync_blobs(&mut self) -> io::Result<()> {
        let stamp = match fs::metadata(&self.blobs_dir) {
            Ok(metadata) => metadata.modified()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if self.listed == Some(stamp) {
            return Ok(());
        }
        let settled = SystemTime::now().duration_since(stamp).is_ok_and(|age| age > STAMP_GRAIN);
        let mut present = HashSet::new();
        let mut grown = false;
        for entry in fs::read_dir(&self.blobs_dir)? {
            let name = entry?.file_name();
            if !self.synced_blobs.contains(&name) {
                match File::open(self.blobs_dir.join(&name)) {
                    Ok(blob) => blob.sync_all()?,
                    // Sled removes a blob when nothing points to it any more.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
                grown = true;
            }
            present.insert(name);
        }
        if grown {
            sync_dir(&self.blobs_dir)?;
        }
        self.synced_blobs = present;
        self.listed = settled.then_some(stamp);
        Ok(())
    }
}

/// Waits until sled has let go of its file: its threads may outlive the handle for a moment. Whoever calls holds the lock, so
/// they are ours.
pub(super) fn wait_until_released(path: &Path) -> bool {
    let Ok(db) = OpenOptions::new().read(true).write(true).open(path.join(DB)) else { return true };
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(5) {
        if db.try_lock().is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// Length and CRC-32 of the data file and of the blobs of a cleanly closed store: what tells a damaged file from a torn end,
/// which sled drops silently. Calls `each` with every piece that it reads, as it may take long.
fn fingerprint(path: &Path, each: impl Fn()) -> io::Result<String> {
    let mut blobs = Vec::new();
    match fs::read_dir(path.join(BLOBS)) {
        Ok(entries) => {
            for entry in entries {
                blobs.push(entry?.path());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    blobs.sort();
    let mut hasher = crc32fast::Hasher::new();
    let bytes = checksum(&path.join(DB), &mut hasher, &each)?;
    for blob in &blobs {
        hasher.update(blob.file_name().unwrap_or_default().as_encoded_bytes());
        let length = checksum(blob, &mut hasher, &each)?;
        hasher.update(&length.to_be_bytes());
    }
    let (blobs, crc) = (blobs.len(), hasher.finalize());
    Ok(format!("dps-proxy store, closed cleanly; bytes {bytes}, blobs {blobs}, crc32 {crc:08x}\n"))
}

/// Adds a file to `hasher` and gives its length.
fn checksum(path: &Path, hasher: &mut crc32fast::Hasher, each: &impl Fn()) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 256 * 1024];
    let mut length = 0_u64;
    loop {
        let read = file.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { return Ok(length) };
        hasher.update(bytes);
        each();
        length += u64::try_from(read).unwrap_or(0);
    }
}

/// Puts `text` at `path/name`, whole or not at all, and makes it durable.
fn write_durably(path: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    let temporary = path.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(temporary, path.join(name))?;
    sync_dir(path)
}

/// The identity noted beside the data, so that data which vanished is told from data which never was.
pub(super) fn marked_id(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path.join(IDENTITY)) {
        Ok(id) => Ok(Some(id.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Notes the identity, if it is not noted yet.
pub(super) fn mark_id(path: &Path, id: &str) -> io::Result<()> {
    if path.join(IDENTITY).exists() {
        return Ok(());
    }
    write_durably(path, IDENTITY, format!("{id}\n").as_bytes())
}

/// Writes the seal of a store that is closed and durable. Holds the lock, like everything here. Calls `each` as it gets on.
pub(super) fn seal(path: &Path, each: impl Fn()) -> io::Result<()> {
    write_durably(path, SEAL, fingerprint(path, each)?.as_bytes())
}

/// Compares the data with its seal, if the last owner left one, and removes the seal: from now on the data changes. Whether there
/// was one.
pub(super) fn break_seal(path: &Path) -> Result<bool, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let sealed = match fs::read(path.join(SEAL)) {
        Ok(sealed) => sealed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io(error)),
    };
    if sealed != fingerprint(path, || ()).map_err(io)?.as_bytes() {
        let detail =
            "the data file changed since it was closed cleanly (to open what is left anyway, remove the file `seal`)";
        return Err(OpenError::Damaged { path: path.to_owned(), detail: detail.into() });
    }
    fs::remove_file(path.join(SEAL)).map_err(io)?;
    sync_dir(path).map_err(io)?;
    Ok(true)
}

/// How many batches are durable at least, noted beside the data: what tells a log that was cut back from one that ends there.
///
/// It is written after the sync of its batch and before the acknowledgement, in place and without a sync of its own. So a kill
/// leaves it exact, and the loss of power may leave it older than the data but never newer.
#[derive(Debug)]
pub(super) struct Head {
    file: File,
}

/// What the last owner noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noted {
    /// So many batches were acknowledged at least.
    pub(super) sequence: u64,
    /// Its last batch failed while it was written, so some of it may be there.
    pub(super) write_failed: bool,
}

impl Head {
    /// What the last owner noted.
    pub(super) fn read(path: &Path) -> Result<Option<Noted>, OpenError> {
        let read = |name: &str| match fs::read(path.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(OpenError::Io { path: path.to_owned(), source }),
        };
        let (text, write_failed) = match (read(HEAD)?, read(HEAD_FAILED)?) {
            (Some(text), _) => (text, false),
            (None, Some(text)) => (text, true),
            (None, None) => return Ok(None),
        };
        let sequence = str::from_utf8(&text).ok().and_then(|text| text.split(' ').nth(3)?.parse().ok());
        match sequence.filter(|sequence| head_text(*sequence).as_bytes() == text) {
            Some(sequence) => Ok(Some(Noted { sequence, write_failed })),
            None => {
                let detail = "its file `head` is unreadable (to open what is there anyway, remove that file)";
                Err(OpenError::Damaged { path: path.to_owned(), detail: detail.into() })
            }
        }
    }

    /// Makes `sequence`, which is durable, the durable head.
    pub(super) fn create(path: &Path, sequence: u64) -> io::Result<Self> {
        write_durably(path, HEAD, head_text(sequence).as_bytes())?;
        match fs::remove_file(path.join(HEAD_FAILED)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        Ok(Self { file: OpenOptions::new().write(true).open(path.join(HEAD))? })
    }

    /// Notes that `sequence` is durable. Within one sector, so that it is whole or not there.
    pub(super) fn note(&self, sequence: u64) -> io::Result<()> {
        self.file.write_all_at(head_text(sequence).as_bytes(), 0)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Notes that a batch failed while it was written. A renaming, because that needs no room on the disk.
    pub(super) fn note_failure(path: &Path) -> io::Result<()> {
        fs::rename(path.join(HEAD), path.join(HEAD_FAILED))?;
        sync_dir(path)
    }
}

/// Of one length for every sequence.
fn head_text(sequence: u64) -> String {
    let text = format!("dps-proxy store, batch {sequence:020}");
    let crc = crc32fast::hash(text.as_bytes());
    format!("{text} crc32 {crc:08x}\n")
}

/// The files that were opened, so that others of the same names are told from them: a directory that was removed, replaced or hidden by
/// another volume leaves us with files that nobody will ever find again.
#[derive(Debug)]
pub(super) struct Identity {
    directory: PathBuf,
    files: [(PathBuf, FileId); 2],
}

/// Device and inode: no two files of one machine share them, as long as both are open.
type FileId = (u64, u64);

/// Why the files are not known to be the ones that were opened.
#[derive(Debug)]
pub(super) enum NotOurs {
    /// They are not, and that will not change.
    Replaced(String),
    /// It cannot be found out now.
    Unclear(String),
}

impl Identity {
    /// Of the files in `directory` that are open now.
    pub(super) fn of(directory: &Path, lock: &File, files: &DataFiles) -> io::Result<Self> {
        let id = |file: &File| file.metadata().map(|metadata| file_id(&metadata));
        let files = [(directory.join(LOCK), id(lock)?), (directory.join(DB), id(&files.db)?)];
        Ok(Self { directory: directory.to_owned(), files })
    }

    /// Whether they are still there under their names. Costs a look at each, no read.
    pub(super) fn check(&self) -> Result<(), NotOurs> {
        for (path, opened) in &self.files {
            let what = match fs::metadata(path) {
                Ok(metadata) if file_id(&metadata) == *opened => continue,
                Ok(_) => "is another file than the one that was opened".to_owned(),
                Err(error) if is_gone(&error) => "is gone".to_owned(),
                Err(error) => return Err(NotOurs::Unclear(format!("{} cannot be found: {error}", path.display()))),
            };
            return Err(NotOurs::Replaced(format!(
                "the store's directory {} was removed or replaced while the service ran ({} {what}): whatever was acknowledged before is \
                 not there any more. Put the old directory back, or accept an empty one and let the devices register again; then start \
                 the service again",
                self.directory.display(),
                path.display(),
            )));
        }
        Ok(())
    }
}

fn file_id(metadata: &fs::Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, StaleNetworkFileHandle};
    matches!(error.kind(), NotFound | NotADirectory | StaleNetworkFileHandle)
}

/// Free bytes for an unprivileged process on the file system of `path`.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_notices_every_change_and_is_gone_after_it_was_checked() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(DB), b"some bytes").unwrap();
        assert!(!break_seal(dir.path()).unwrap());
        seal(dir.path(), || ()).unwrap();
        assert!(break_seal(dir.path()).unwrap());
        assert!(!dir.path().join(SEAL).exists());
        seal(dir.path(), || ()).unwrap();
        fs::write(dir.path().join(DB), b"some byteZ").unwrap();
        let error = break_seal(dir.path()).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        fs::remove_file(dir.path().join(SEAL)).unwrap();
        fs::create_dir(dir.path().join(BLOBS)).unwrap();
        fs::write(dir.path().join(BLOBS).join("7"), b"a blob").unwrap();
        seal(dir.path(), || ()).unwrap();
        fs::rename(dir.path().join(BLOBS).join("7"), dir.path().join(BLOBS).join("8")).unwrap();
        break_seal(dir.path()).unwrap_err();
    }

    #[test]
    fn a_head_holds_the_newest_note_and_no_other_bytes_pass_for_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Head::read(dir.path()).unwrap(), None);
        let head = Head::create(dir.path(), 9).unwrap();
        head.note(10).unwrap();
        let noted = |write_failed| Some(Noted { sequence: 10, write_failed });
        assert_eq!(Head::read(dir.path()).unwrap(), noted(false));
        Head::note_failure(dir.path()).unwrap();
        assert_eq!(Head::read(dir.path()).unwrap(), noted(true));
        Head::create(dir.path(), 10).unwrap();
        assert_eq!(Head::read(dir.path()).unwrap(), noted(false));
        let text = fs::read(dir.path().join(HEAD)).unwrap();
        for at in 0..text.len() {
            let mut damaged = text.clone();
            damaged[at] ^= 1;
            fs::write(dir.path().join(HEAD), damaged).unwrap();
            let error = Head::read(dir.path()).unwrap_err();
            assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        }
        fs::write(dir.path().join(HEAD), b"").unwrap();
        Head::read(dir.path()).unwrap_err();
    }

    #[test]
    fn new_blobs_are_noticed_even_within_one_tick_of_the_directory_stamp() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(DB), b"").unwrap();
        fs::create_dir(dir.path().join(BLOBS)).unwrap();
        let mut files = DataFiles::open(dir.path()).unwrap();
        for n in 0..50 {
            fs::write(dir.path().join(BLOBS).join(n.to_string()), b"x").unwrap();
            files.sync().unwrap();
            assert_eq!(files.synced_blobs.len(), n + 1);
        }
    }
}
