//! The files that a configuration consists of: read whole, within a bound, and remembered by a fingerprint of their content.
//!
//! Invariant: of what was read, [`FilesRead`] keeps a fingerprint only, and prints none of it.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hasher as _};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Largest file that is read; a bound against a `…_file` key that points at a device or a disk image.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The files that a configuration consists of, each with a fingerprint of the content that was read (`None`: unreadable).
/// `Debug` shows the paths only.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct FilesRead(BTreeMap<PathBuf, Option<u64>>);

impl FilesRead {
    /// Notes that `path` held `content`. A file that was seen before keeps its first fingerprint: if it has changed since,
    /// the next look at it finds the difference.
    pub(crate) fn note(&mut self, path: &Path, content: Option<&[u8]>) {
        self.0.entry(path.to_owned()).or_insert_with(|| content.map(fingerprint));
    }

    /// The paths, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }

    /// The same files as they are now.
    pub(crate) fn look_again(&self) -> Self {
        let look = |path: &PathBuf| read_bounded(path).ok().map(|bytes| fingerprint(&bytes));
        Self(self.0.keys().map(|path| (path.clone(), look(path))).collect())
    }
}

impl fmt::Debug for FilesRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

fn fingerprint(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Reads a file of bounded size.
pub(crate) fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    // Before opening: to open a pipe waits until somebody writes to it.
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(std::io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let file = std::fs::File::open(path)?;
    let mut content = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
    let fits = u64::try_from(content.len()).is_ok_and(|length| length <= FILE_BYTES_MAX);
    if fits { Ok(content) } else { Err(std::io::ErrorKind::FileTooLarge.into()) }
}
