//! The one thread that writes: it gathers commits, decides them, applies them, syncs once and acknowledges them all.
//!
//! Invariants:
//! - A key enters the overlay before sled learns of its new value and leaves it after the sync, so no read shows what a crash
//!   could take back.
//! - Commits go to sled in groups: each is one batch of sled with the digest of what it leaves, so whatever prefix a crash leaves is
//!   vouched for. No commit is torn: one that is larger than a group is a group of its own.
//! - Sled is flushed after each group ([`GROUP_BYTES_MAX`]), because it deadlocks with itself when too many of its writes are under way.
//! - Nothing is acknowledged, not even a conflict, before the sync of its batch: whoever lost a race finds the winner on
//!   reading again.
//! - Whether the files still have their names is asked every [`NAMES_EVERY`] while there are writes: if not, nothing is acknowledged any more.
//!   (What was before is gone with them, so a finer promise is worth nothing; a look at a file right after its sync costs a tenth of it.)
//! - After the first failure to write, nothing is ever written or acknowledged again, and the overlay stays: an fsync that
//!   failed must not be repeated, because the kernel may have dropped the pages. Sled is then not even closed.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sled::{Batch, Db};
use tokio::sync::{mpsc, oneshot, watch};

use super::digest::{self, DIGEST_KEY, Digest};
use super::disk::{self, DataFiles, Head};
use super::plan::{Known, Plan, Source, Work};
use super::{Shared, panic_text};
use crate::store::CommitError;
use crate::store::answer::Outcome;

/// How long it holds that the files were found under their names.
const NAMES_EVERY: Duration = Duration::from_millis(10);

/// The bytes of keys and values that are handed to sled at once, before it has to have written them: a quarter of a segment.
///
/// Sled writes with seven threads of its own. When the end of its file becomes free, one of them is to cut it off, and whoever needs a
/// segment at the end waits for that with the lock of the segment accountant held. Each thread takes that lock at the end of each
/// write. So if seven writes that were queued before the cut are under way while somebody waits for it, nobody is left to cut, and
/// nothing is ever written again.
///
/// A flush keeps that from happening. After a cut one free segment is left, so it is waited for with the second segment that is begun
/// at the earliest. The queue is first in, first out: a flush in between queues a write and waits until it was done, so the cut was
/// taken up before, and it needs no lock to end. Where more than one segment is begun between two flushes, the deadlock still needs
/// seven writes that were queued before the cut and have not ended: one is queued per segment that is filled, and two per batch, and the
/// flush before left none but those that are about to end.
///
/// So little may be written between two flushes. What a group brings about is several times its bytes, because nodes are written anew,
/// split, and moved out of segments that are to become free. Reading writes too, as whoever meets a node that is too
/// full splits it: see [`Shared::flush_after_reads`]. A commit that is larger stays whole, as a crash must not tear it; few are.
///
/// Handing over many commits at once also costs sled less: each of its batches is two writes to the file, however small.
const GROUP_BYTES_MAX: usize = 16 * 1024;

/// What a row costs in sled's log beside its key and value.
const ROW_BYTES: usize = 32;

pub(super) enum Message {
    Work(Pending),
    Close,
}

pub(super) struct Pending {
    pub(super) work: Work,
    pub(super) reply: oneshot::Sender<Outcome>,
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) inbox: mpsc::Receiver<Message>,
    pub(super) batch_max: usize,
    pub(super) files: DataFiles,
    pub(super) head: Head,
    /// Of what sled holds.
    pub(super) digest: Digest,
    pub(super) known: Known,
    pub(super) lock: File,
    pub(super) finished: watch::Sender<bool>,
    /// When the files were last found under their names.
    pub(super) names_seen: Option<Instant>,
}

/// Writes that sled gets as one batch.
#[derive(Default)]
struct Group {
    batch: Batch,
    bytes: usize,
    /// How many commits they are.
    commits: u64,
}

impl Writer {
    pub(super) fn run(mut self) {
        while let Some(message) = self.inbox.blocking_recv() {
            let mut batch = Vec::new();
            self.gather(message, &mut batch);
            if !batch.is_empty() {
                self.process(batch);
            }
        }
        self.finish();
    }

    fn gather(&mut self, first: Message, batch: &mut Vec<Pending>) {
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Work(pending) => batch.push(pending),
                // What is already inside is still served; nothing more comes in.
                Message::Close => self.inbox.close(),
            }
            next = if batch.len() < self.batch_max { self.inbox.try_recv().ok() } else { None };
        }
    }

    fn process(&mut self, batch: Vec<Pending>) {
        if let Err(why) = self.shared.writable().and_then(|()| self.still_named()) {
            for Pending { work, reply } in batch {
                if let Work::Raise { line, next } = work {
                    self.known.numbers.raise(&line, next);
                }
                let _ = reply.send(Err(CommitError::ReadOnly(why.clone())));
            }
            return;
        }
        let mut plan = Plan::default();
        let written = catch_unwind(AssertUnwindSafe(|| self.write(batch, &mut plan)))
            .unwrap_or_else(|panic| Err(format!("sled panicked: {}", panic_text(&*panic))));
        match written {
            Ok(()) => self.shared.overlay_clear(),
            Err(why) => {
                self.shared.fail(&why);
                if self.shared.still_ours().is_ok()
                    && let Err(error) = Head::note_failure(&self.shared.path)
                {
                    tracing::error!(path = %self.shared.path.display(), %error, "the failure cannot be recorded; the next start may report what it left as damage");
                }
            }
        }
        self.shared.count_batch(plan.apply.len());
        self.acknowledge(plan.acks);
    }

    /// Looks at the files' names, if that was not done a moment ago.
    fn still_named(&mut self) -> Result<(), String> {
        if self.names_seen.is_none_or(|seen| seen.elapsed() >= NAMES_EVERY) {
            self.shared.still_ours()?;
            self.names_seen = Some(Instant::now());
        }
        Ok(())
    }

    fn write(&mut self, batch: Vec<Pending>, plan: &mut Plan) -> Result<(), String> {
        let db = self.shared.db.read().clone().ok_or("the store is closed")?;
        let from = Source { shared: &self.shared, db: &db };
        let mut broken = None;
        for pending in batch {
            let outcome = match broken.clone() {
                None => plan.decide(from, &mut self.known, pending.work).unwrap_or_else(|why| {
                    broken = Some(why.clone());
                    Err(CommitError::Failed(why))
                }),
                Some(why) => Err(CommitError::Failed(why)),
            };
            plan.acks.push((pending.reply, outcome));
        }
        if let Some(why) = broken {
            return Err(why);
        }
        if plan.apply.is_empty() {
            return Ok(());
        }
        self.shared.overlay_fill(plan.apply.iter().flatten().map(|(key, _)| {
            let durable = plan.slots.get(key).and_then(|slot| slot.durable.clone());
            (key.clone(), durable)
        }));
        if plan.recount {
            let found =
                Digest::of(&db, self.digest.sequence, || self.shared.step()).map_err(|error| error.to_string())?;
            self.digest = found.ok_or("a scan and a look-up of one row disagree")?;
        }
        self.apply(&db, plan).map_err(|error| error.to_string())?;
        #[cfg(test)]
        self.shared.hooks.pass_gate();
        self.files.sync().map_err(|error| error.to_string())?;
        self.shared.step();
        self.head.note(self.digest.sequence).map_err(|error| error.to_string())?;
        #[cfg(test)]
        self.shared.hooks.synced();
        Ok(())
    }

    /// Hands the commits to sled in groups, each atomically and with the digest of what it leaves, and waits for each to be written.
    /// Groups are small, so that the exclusive lock of a batch is short for readers.
    fn apply(&mut self, db: &Db, plan: &mut Plan) -> sled::Result<()> {
        let mut group = Group::default();
        for commit in &plan.apply {
            let bytes = commit.iter().map(bytes_of).sum::<usize>();
            if group.bytes + bytes > GROUP_BYTES_MAX {
                self.write_group(db, &mut group)?;
            }
            for (key, value) in commit {
                let new = value.as_ref().map(|raw| digest::hash(key, raw));
                let old = plan.slots.get_mut(key).and_then(|slot| std::mem::replace(&mut slot.hash, new));
                self.digest.replace(old, new);
                match value {
                    Some(value) => group.batch.insert(key.as_slice(), value.as_slice()),
                    None => group.batch.remove(key.as_slice()),
                }
            }
            group.bytes += bytes;
            group.commits += 1;
        }
        self.write_group(db, &mut group)
    }

    /// Writes a group, if anything is in it, and leaves an empty one. Sled has written it to the file when this returns; it is not
    /// synced yet.
    fn write_group(&mut self, db: &Db, group: &mut Group) -> sled::Result<()> {
        let Group { mut batch, commits, bytes: _ } = std::mem::take(group);
        if commits == 0 {
            return Ok(());
        }
        self.digest.sequence += commits;
        batch.insert(&DIGEST_KEY, self.digest.encode());
        db.apply_batch(batch)?;
        self.shared.step();
        // The barrier, see `GROUP_BYTES_MAX`.
        db.flush()?;
        self.shared.step();
        Ok(())
    }

    fn acknowledge(&self, acks: Vec<(oneshot::Sender<Outcome>, Outcome)>) {
        let failed = self.shared.failure();
        for (reply, outcome) in acks {
            let outcome = match (&failed, outcome) {
                (None, outcome) => outcome,
                (Some(why), Ok(_) | Err(CommitError::Failed(_))) => Err(CommitError::Failed(why.clone())),
                // It lost to something that may not have happened; of itself nothing was applied.
                (Some(why), Err(_)) => Err(CommitError::ReadOnly(why.clone())),
            };
            #[cfg(test)]
            if outcome.is_ok() {
                self.shared.hooks.acked();
            }
            // Nobody listens when the commit's future was dropped: it is durable all the same.
            let _ = reply.send(outcome);
        }
    }

    fn finish(self) {
        let finished = self.finished.clone();
        // Waits for reads in progress; later ones find the store closed.
        let db = self.shared.db.write().take();
        if self.shared.failure().is_some() {
            // Sled flushes when it is dropped, and after a failed write that may wait for ever, with a lock held that every other
            // store of the process needs. So it is left alone, and the directory stays in use until the process ends.
            std::mem::forget((db, self.lock));
        } else {
            self.close(db);
        }
        finished.send_replace(true);
    }

    fn close(mut self, db: Option<Db>) {
        let flushed = catch_unwind(AssertUnwindSafe(|| {
            if let Some(db) = &db {
                db.flush().map_err(|error| error.to_string())?;
                self.shared.step();
                self.files.sync().and_then(|()| self.head.sync()).map_err(|error| error.to_string())?;
                self.shared.step();
            }
            drop(db);
            Ok::<(), String>(())
        }))
        .unwrap_or_else(|panic| Err(panic_text(&*panic)));
        let path = &self.shared.path;
        let released = disk::wait_until_released(path);
        match flushed {
            Ok(()) if released => {
                if let Err(error) = self.files.sync().and_then(|()| disk::seal(path, || self.shared.step())) {
                    tracing::warn!(path = %path.display(), %error, "the closed store is not sealed");
                }
            }
            Ok(()) => {}
            Err(error) => tracing::error!(path = %path.display(), %error, "closing the store failed"),
        }
    }
}

fn bytes_of((key, value): &(Vec<u8>, Option<Vec<u8>>)) -> usize {
    ROW_BYTES + key.len() + value.as_ref().map_or(0, Vec::len)
}
