//! The device records in the store, and what is derived from them: how full the instances are, and which device has which name.
//!
//! Invariants:
//! - A record is changed by compare-and-set only. Whoever loses reads again and decides again.
//! - Counts, names and lines follow a commit as part of the step that wrote it, which runs to its end whatever becomes of the request. So
//!   nothing outlives its record. Lines are told through [`LineOwner`], which may be far away.
//! - What a change announces goes to disk with it.
//!
//! The parts: `device_ids` (whose a device ID is), `aliases` (where to look for one in whatever case), `scan` (reading all records), `scopes`
//! (ID scopes that records refer to).

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::base::{Base, StoreError};
use crate::device::{Draft, Effects, Outline, Record, Rejected, Versioned};
use crate::feed::Change;
use crate::ids::{InstanceName, RegistrationId};
use crate::line_owner::LineOwner;
use crate::placement::Occupancy;
use crate::store::{CommitError, ReadError, Write};
use rate_control::time::{Now, StoredMoment};

mod aliases;
pub(crate) mod device_ids;
mod scan;
pub(crate) mod scopes;

use aliases::Aliases;
pub(crate) use scan::{Scan, read_all};

/// How often a compare-and-set is tried anew before we call the store busy. Two writers of one device are rare, sixteen are a bug.
pub(crate) const CAS_ATTEMPTS_MAX: usize = 16;

/// Why a record was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError<E> {
    /// There is no such record.
    #[error("unknown device")]
    Unknown,
    /// The edit itself refused; nothing was written.
    #[error("refused")]
    Refused(E),
    /// The device ID that the change gives belongs to this other registration of the tenant; nothing was written.
    #[error("the device ID belongs to {0}")]
    DeviceIdTaken(RegistrationId),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A command that does not fit the record any more is a lost race: whoever lost it decides anew.
pub(crate) const fn lost_race(_: Rejected) -> CommitError {
    CommitError::Conflict { index: 0 }
}

/// What is derived from all records.
#[derive(Debug, Default)]
pub(crate) struct Derived {
    pub(crate) occupancy: Occupancy,
    aliases: Aliases,
}

impl Derived {
    /// One more record.
    pub(crate) fn add(&mut self, record: &Record) {
        self.occupancy.follow(None, Some(record.footprint()), None);
        self.aliases.follow(&Effects::of_new(record));
    }
}

/// The records. See the module.
#[derive(Debug)]
pub(crate) struct Records {
    base: Arc<Base>,
    owner: Arc<dyn LineOwner>,
    pub(crate) occupancy: Mutex<Occupancy>,
    aliases: RwLock<Aliases>,
}

impl Records {
    /// Records of which this is known; `owner` is told of changes.
    pub(crate) fn new(base: Arc<Base>, owner: Arc<dyn LineOwner>, derived: Derived) -> Self {
        let Derived { occupancy, aliases } = derived;
        let (occupancy, aliases) = (Mutex::new(occupancy), RwLock::new(aliases));
        Self { base, owner, occupancy, aliases }
    }

    pub(crate) async fn load(&self, id: &RegistrationId) -> Result<Option<Versioned>, ReadError> {
        let stored = self.base.store.get(&Record::key(id)).await?;
        stored.map(|stored| Record::decode(&stored)).transpose().map_err(|error| error.into_read_error(id.as_str()))
    }

    /// Begins to change a record that was read.
    pub(crate) fn draft(&self, stored: Versioned, now: Now) -> Draft {
        Draft::of(stored, now, self.base.look_at_settings().registration.timeline_max)
    }

    /// Begins a record that is not in the store.
    pub(crate) fn new_draft(&self, record: Record, now: Now) -> Draft {
        Draft::new(record, now, self.base.look_at_settings().registration.timeline_max)
    }

    /// Writes a changed record, together with `more` (written first) and the feed event of a changed assignment; then counts, aliases and
    /// lines follow the record.
    ///
    /// Cancel-safe: it goes on in a task of its own when its future is dropped.
    pub(crate) async fn commit(self: &Arc<Self>, mut draft: Draft, more: Vec<Write>) -> Result<(), CommitError> {
        let records = Arc::clone(self);
        self.base.to_the_end(async move { records.commit_here(&mut draft, more, None).await }).await?
    }

    /// The same within a task that runs to its end. `counted` is an instance that placement has already counted for the record; it is given
    /// back if the record is not written.
    pub(crate) async fn commit_here(
        &self,
        draft: &mut Draft,
        more: Vec<Write>,
        counted: Option<&InstanceName>,
    ) -> Result<(), CommitError> {
        let written = self.write(draft, more, false, counted).await;
        if let (Err(_), Some(instance)) = (&written, counted) {
            self.occupancy.lock().remove(instance);
        }
        written
    }

    /// Deletes the record of a device that is retired. If that retired an assignment, the feed says so.
    ///
    /// Cancel-safe: it goes on in a task of its own when its future is dropped.
    pub(crate) async fn forget(self: &Arc<Self>, mut retired: Draft) -> Result<(), CommitError> {
        let records = Arc::clone(self);
        self.base.to_the_end(async move { records.write(&mut retired, Vec::new(), true, None).await }).await?
    }

    /// Makes of the stored record what `draft` has made of it, or deletes it; then everything follows.
    async fn write(
        &self,
        draft: &mut Draft,
        mut writes: Vec<Write>,
        deletes: bool,
        counted: Option<&InstanceName>,
    ) -> Result<(), CommitError> {
        let announces = draft.effects().announces();
        let change = Change::of(draft.record(), StoredMoment::of(self.base.now())).filter(|_| announces);
        let ticket = change.as_ref().map(|_| self.base.feed.ticket());
        writes.extend(ticket.as_ref().zip(change.as_ref()).map(|(ticket, change)| ticket.write(change)));
        writes.push(if deletes { draft.deletion() } else { draft.write() });
        let deleted = deletes.then(|| draft.effects().deleted());
        writes.extend(device_ids::release(deleted.as_ref().unwrap_or(draft.effects())));
        let given = self.base.commit(writes).await?;
        draft.take_number(given.first().copied());
        let effects = deleted.as_ref().unwrap_or(draft.effects());
        let before = effects.before.as_ref().map(|outline| &outline.footprint);
        let after = effects.after.as_ref().map(|outline| &outline.footprint);
        self.occupancy.lock().follow(before, after, counted);
        self.aliases.write().follow(effects);
        // Readers of the feed need not wait for the owner of the line.
        if let Some(ticket) = ticket {
            ticket.committed();
        }
        if concerns_lines(effects) {
            self.owner.follow(effects).await;
        }
        self.base.waiters.wake(draft.record().registration_id());
        Ok(())
    }

    /// Changes an existing record by compare-and-set, at `now`, trying anew while others change it. `edit` may run several times. Whatever
    /// gives a device its ID goes through here.
    pub(crate) async fn change<T, E>(
        self: &Arc<Self>,
        id: &RegistrationId,
        now: Now,
        more: &[Write],
        mut edit: impl FnMut(&mut Draft) -> Result<T, E>,
    ) -> Result<(T, Record), ChangeError<E>> {
        for _ in 0..CAS_ATTEMPTS_MAX {
            let old = self.load(id).await.map_err(StoreError::from)?.ok_or(ChangeError::Unknown)?;
            let before = old.record.clone();
            let mut draft = self.draft(old, now);
            let value = edit(&mut draft).map_err(ChangeError::Refused)?;
            if *draft.record() == before && more.is_empty() {
                return Ok((value, before));
            }
            let record = draft.record().clone();
            let claim = self.claim(id, draft.effects()).await.map_err(StoreError::from)?;
            let claim = claim.map_err(ChangeError::DeviceIdTaken)?;
            match self.commit(draft, [more, &claim].concat()).await {
                Ok(()) => return Ok((value, record)),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(StoreError::from(error).into()),
            }
        }
        Err(StoreError::Contended.into())
    }

    /// The registrations that have been given `device_id` in whatever case, of whatever tenant.
    pub(crate) fn aliases_of(&self, device_id: &str) -> Vec<RegistrationId> {
        self.aliases.read().of(device_id).cloned().collect()
    }

    /// Reads all records behind `after`, a few at a time.
    pub(crate) fn scan(&self, after: Option<RegistrationId>) -> Scan<'_> {
        Scan::new(&self.base, after)
    }
}

/// Whether the owner of the lines has to know: a place was taken or given up, or one to come back to.
fn concerns_lines(effects: &Effects) -> bool {
    let home = |outline: &Option<Outline>| outline.as_ref().and_then(|outline| outline.home.clone());
    effects.left().is_some() || effects.joined().is_some() || home(&effects.before) != home(&effects.after)
}
