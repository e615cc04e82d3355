//! Notices that the configuration, or a file it refers to, has changed.
//!
//! Invariants:
//! - A change is signalled within one second of being visible: what the operating system reports is only a hint to look sooner
//!   than [`LOOK_EVERY`] (there are volumes that report nothing). Only content counts, so touching a file signals nothing.
//! - No change falls between loading and watching: the comparison starts at the content that was loaded.
//! - Signals coalesce: however many changes there are, at most as many wait as the channel holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use notify::Watcher as _;
use parking_lot::Mutex;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError as TrySignalError;

use super::FilesRead;

/// How often the files are read even if nothing was reported.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A file that is being written is given time until it stays the same for this long …
const SETTLE_STEP: Duration = Duration::from_millis(50);
/// … but only so many times.
const SETTLE_STEPS: usize = 4;

/// Watches until it is dropped.
#[derive(Debug)]
pub struct ConfigWatcher {
    files: Arc<Mutex<FilesRead>>,
    stop: Arc<AtomicBool>,
    wake: SyncSender<()>,
}

impl ConfigWatcher {
    /// Watches the configuration file `path` and everything in `files`, as [`load`](super::load) gave them, and signals on
    /// `changed`. It ends when it is dropped or when the receiver is.
    ///
    /// # Errors
    /// If no thread can be started. That the operating system reports no changes is not an error: then they are polled for.
    pub fn start(path: &Path, files: FilesRead, changed: Sender<()>) -> std::io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let files = Arc::new(Mutex::new(files));
        let stop = Arc::new(AtomicBool::new(false));
        let hints = hints(path, wake.clone());
        let watch = Watch { files: files.clone(), stop: stop.clone(), woken, changed };
        let thread = std::thread::Builder::new().name("config-watch".to_owned());
        thread.spawn(move || {
            watch.run();
            drop(hints);
        })?;
        Ok(Self { files, stop, wake })
    }

    /// Watches `files` from now on: call it with what each loading gave, successful or not. What has changed since they were
    /// read is signalled.
    pub fn set_files(&self, files: FilesRead) {
        *self.files.lock() = files;
        let _ = self.wake.try_send(());
    }
}

impl Drop for ConfigWatcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.wake.try_send(());
    }
}

/// Has the operating system report changes in the directory of `path`. Not of the file: editors and volume mounts replace it,
/// which ends a watch on the file itself.
fn hints(path: &Path, wake: SyncSender<()>) -> Option<notify::RecommendedWatcher> {
    let on_event = move |event: notify::Result<notify::Event>| {
        // Our own reading is reported as well, and must not wake us.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            // Full: it is about to look anyway. Disconnected: nobody does any more.
            let _ = wake.try_send(());
        }
    };
    let directory =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(PathBuf::from("."), Path::to_owned);
    let started = notify::recommended_watcher(on_event).and_then(|mut watcher| {
        watcher.watch(&directory, notify::RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    started
        .inspect_err(
            |error| tracing::info!(%error, "the system does not report changes of the configuration; polling for them instead"),
        )
        .ok()
}

struct Watch {
    files: Arc<Mutex<FilesRead>>,
    stop: Arc<AtomicBool>,
    woken: Receiver<()>,
    changed: Sender<()>,
}

impl Watch {
    fn run(&self) {
        while !self.stop.load(Ordering::Acquire) && !self.changed.is_closed() {
            match self.woken.recv_timeout(LOOK_EVERY) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                // Only the operating system's hints are gone, if it is not the watcher itself.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK_EVERY),
            }
            if self.look() == Listening::No {
                return;
            }
            // In a busy directory (the store may be in it) hints come all the time.
            std::thread::sleep(SETTLE_STEP);
        }
    }

    fn look(&self) -> Listening {
        let known = self.files.lock().clone();
        let mut now = known.look_again();
        if now == known {
            return Listening::Yes;
        }
        for _ in 0..SETTLE_STEPS {
            std::thread::sleep(SETTLE_STEP);
            let later = known.look_again();
            if later == now {
                break;
            }
            now = later;
        }
        let mut files = self.files.lock();
        // Another set of files was given meanwhile: the next look compares with that.
        if *files != known || now == known {
            return Listening::Yes;
        }
        *files = now;
        drop(files);
        match self.changed.try_send(()) {
            // A signal that still waits tells the same.
            Ok(()) | Err(TrySignalError::Full(())) => Listening::Yes,
            Err(TrySignalError::Closed(())) => Listening::No,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Listening {
    Yes,
    No,
}
