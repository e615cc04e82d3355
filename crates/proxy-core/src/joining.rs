//! How a device takes a place: room in the inventory, room in the line, the record on disk, and only then its turn.
//!
//! Invariants:
//! - The new place is on disk before the old one is left, so a device is never without.
//! - Placement's count is exact: a device is counted in under the lock under which its instance was chosen, and out again if its record is
//!   not written.
//! - From the moment that a device is counted in, everything runs in one step to its end, whatever becomes of the request: it is expected,
//!   its record is written, and the line follows; or all of that is taken back.
//! - What the owner of the lines says is advice that may be old. A line that turns out to be full is not the last word while others may
//!   have room.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::base::{Base, StoreError, about};
use crate::device::{Command, Draft, Record, Rejected, Seat, Versioned};
use crate::dialect::Dialect;
use crate::ids::{EnrollmentName, InstanceName, TenantName};
use crate::line::LineFull;
use crate::line_owner::{At, Avoid, Coming, LineOwner, Newcomer, NotExpected};
use crate::place::Class;
use crate::placement::{self, NoRoom};
use crate::records::{Records, lost_race};
use crate::store::CommitError;

/// Why a device gets no place.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum JoinError {
    /// The line takes nobody else, or nobody else of this tenant.
    #[error("{full}")]
    LineFull {
        /// Which bound.
        full: LineFull,
        /// When to come back: then there should be room.
        retry_after_seconds: u64,
    },
    /// No instance takes it.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The store cannot keep a place.
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// How a device comes to a place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    /// In which lane.
    pub(crate) class: Class,
    /// At which instance.
    pub(crate) wish: Wish<'a>,
    /// The device itself asks, in this dialect, and comes back when it is told to.
    pub(crate) asked: Option<Dialect>,
}

/// Which instance a device is to go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish<'a> {
    /// The one where it has been; for a new device, one that works if there is one.
    Any,
    /// The one that an operator moves it to.
    Moved(&'a InstanceName),
    /// The one that has it sooner, as long as that takes new devices.
    Rebooked(&'a InstanceName),
}

/// The instance that placement chose for a device.
struct Chosen {
    instance: InstanceName,
    /// Placement has newly counted the device in.
    counted: bool,
}

/// Gives devices places. See the module.
#[derive(Debug)]
pub(crate) struct Joining {
    base: Arc<Base>,
    records: Arc<Records>,
    owner: Arc<dyn LineOwner>,
}

impl Joining {
    pub(crate) const fn new(base: Arc<Base>, records: Arc<Records>, owner: Arc<dyn LineOwner>) -> Self {
        Self { base, records, owner }
    }

    /// Puts a device into a line. `command` takes the place that was found. The inner result is the store's, so that a lost race is decided
    /// anew.
    ///
    /// Cancel-safe: a device that was counted in comes in, or is counted out.
    pub(crate) async fn enter(
        &self,
        mut draft: Draft,
        entry: Entry<'_>,
        command: impl FnOnce(Seat) -> Command + Clone,
    ) -> Result<Result<(), CommitError>, JoinError> {
        let Entry { class, wish, asked } = entry;
        let request_id = about::request_id().map(|id| id.to_string());
        let mut tried = BTreeSet::new();
        loop {
            let record = draft.record();
            let avoid = self.avoid(record.tenant(), wish, &tried).await;
            let Chosen { instance, counted } = self.choose(record, wish, &avoid)?;
            about::instance(&instance);
            let anywhere = counted && wish == Wish::Any && record.moving_to().is_none();
            let whose = (record.tenant().clone(), record.enrollment().clone());
            let newcomer = newcomer(record, instance.clone(), Coming::Anew);
            let (command, at, request_id) = (command.clone(), instance.clone(), request_id.clone());
            let seated = self.seat(draft, newcomer, counted, command(Seat { instance: at, class, request_id }));
            let why = match seated.await {
                Ok(written) => return Ok(written),
                Err((same, why)) => {
                    draft = *same;
                    why
                }
            };
            let NotExpected::Full(full) = why else { return Err(NoRoom::NoneFits.into()) };
            // Others were faster since the owner was asked, and there may be room elsewhere.
            let is_news = anywhere && !avoid.full.contains(&instance) && tried.insert(instance.clone());
            if !is_news {
                return Err(self.turned_away(&whose, instance, anywhere, asked, full).await);
            }
        }
    }

    /// Gives a device that waits a place in another class of the same line. The store's error is returned as it is, so that a lost race can
    /// be decided anew.
    pub(crate) async fn reseat(&self, old: Versioned, class: Class, why: &'static str) -> Result<(), CommitError> {
        let instance = old.record.pending().map(|pending| pending.instance.clone());
        let instance = instance.ok_or_else(|| lost_race(Rejected::NoPlace))?;
        let newcomer = newcomer(&old.record, instance, Coming::Changing);
        let draft = self.records.draft(old, self.base.now());
        let seated = self.seat(draft, newcomer, false, Command::Reseat { class, why }).await;
        seated.unwrap_or_else(|_| Err(lost_race(Rejected::NoPlace)))
    }

    /// Books a device on the instance `to`.
    ///
    /// # Errors
    /// If that does not take it: it keeps its place then. The inner error is the store's.
    pub(crate) async fn rebook(&self, old: Versioned, to: &InstanceName) -> Result<Result<(), CommitError>, JoinError> {
        let Some(class) = old.record.pending().map(|pending| pending.place.class) else {
            return Ok(Err(lost_race(Rejected::NoPlace)));
        };
        let entry = Entry { class, wish: Wish::Rebooked(to), asked: None };
        self.enter(self.records.draft(old, self.base.now()), entry, |seat| Command::Rebook { seat }).await
    }

    /// Gives a device that was booked elsewhere its first place back.
    ///
    /// # Errors
    /// If the instance does not take it, or somebody is at its place: it keeps the one that it has. The inner error is the store's.
    pub(crate) async fn bring_home(&self, old: Versioned) -> Result<Result<(), CommitError>, JoinError> {
        let Some(home) = old.record.pending().and_then(|pending| pending.home.clone()) else {
            return Ok(Err(lost_race(Rejected::Bound)));
        };
        let wish = Wish::Rebooked(&home.instance);
        let Chosen { instance, counted } = self.choose(&old.record, wish, &Avoid::default())?;
        let newcomer = newcomer(&old.record, instance, Coming::Returning(home.place));
        let draft = self.records.draft(old, self.base.now());
        let seated = self.seat(draft, newcomer, counted, Command::ComeHome).await;
        seated.map_err(|_| NoRoom::NoneFits.into())
    }

    /// Where a device would be assigned sooner that waits at an instance that fails, among the instances that may take it and `may_take` it.
    pub(crate) async fn sooner_elsewhere(
        &self,
        record: &Record,
        may_take: impl Fn(&InstanceName) -> bool,
    ) -> Option<InstanceName> {
        let pending = record.pending().filter(|_| record.may_be_rebooked())?;
        let mut among = self.open_to(record.enrollment());
        among.retain(|name| *name != pending.instance && may_take(name));
        let at = At { instance: &pending.instance, tenant: record.tenant(), place: pending.place };
        self.owner.sooner(at, &among).await
    }

    /// What the device is to be placed by. Lines that it was `tried` in are full.
    async fn avoid(&self, tenant: &TenantName, wish: Wish<'_>, tried: &BTreeSet<InstanceName>) -> Avoid {
        if wish != Wish::Any {
            return Avoid::default();
        }
        let mut avoid = self.owner.avoid(tenant).await;
        avoid.full.extend(tried.iter().cloned());
        avoid
    }

    /// The instances that fit the enrollment and take new devices.
    fn open_to(&self, enrollment: &EnrollmentName) -> BTreeSet<InstanceName> {
        let settings = self.base.look_at_settings();
        let Some(enrollment) = settings.enrollments.get(enrollment) else { return BTreeSet::new() };
        let occupancy = self.records.occupancy.lock();
        let open = settings.instances.iter().filter(|(name, instance)| {
            placement::fits(enrollment, name, instance) && !instance.draining && occupancy.has_room(name, instance)
        });
        open.map(|(name, _)| name.clone()).collect()
    }

    /// What a device is told that `asked` has no place for. One that may go anywhere is told when the first of its instances should have
    /// room. It is told in its dialect if it asks itself, and so will be there then.
    async fn turned_away(
        &self,
        (tenant, enrollment): &(TenantName, EnrollmentName),
        asked: InstanceName,
        anywhere: bool,
        dialect: Option<Dialect>,
        full: LineFull,
    ) -> JoinError {
        let mut among = if anywhere { self.open_to(enrollment) } else { BTreeSet::new() };
        if among.is_empty() {
            among.insert(asked);
        }
        let wait = self.owner.room_in(tenant, &among, dialect.is_some()).await;
        let jitter_max = self.base.look_at_settings().line.jitter_max;
        let told_in = dialect.unwrap_or(Dialect::PLAIN);
        let retry_after_seconds = told_in.told_seconds(wait, jitter_max, |most| self.base.spread(most));
        JoinError::LineFull { full, retry_after_seconds }
    }

    /// Room in the line, the record on disk, with that the place, and only then its turn; or what was taken is given back. The inner result is the
    /// store's.
    ///
    /// Cancel-safe: it goes on in a task of its own when its future is dropped.
    ///
    /// # Errors
    /// The device is not expected there. Nothing was written, and the draft is returned as it was.
    async fn seat(
        &self,
        mut draft: Draft,
        newcomer: Newcomer,
        counted: bool,
        command: Command,
    ) -> Result<Result<(), CommitError>, (Box<Draft>, NotExpected)> {
        let (records, owner) = (Arc::clone(&self.records), Arc::clone(&self.owner));
        let seating = async move {
            let counted = counted.then_some(&newcomer.instance);
            let count_out = || counted.map_or((), |instance| records.occupancy.lock().remove(instance));
            if let Err(why) = owner.expect(&newcomer).await {
                count_out();
                return Err((Box::new(draft), why));
            }
            let written = match draft.apply(command) {
                Ok(()) => records.commit_here(&mut draft, Vec::new(), counted).await,
                Err(rejected) => {
                    count_out();
                    Err(lost_race(rejected))
                }
            };
            if written.is_err() {
                owner.withdraw(&newcomer).await;
            }
            Ok(written)
        };
        self.base.to_the_end(seating).await.unwrap_or_else(|error| Ok(Err(error)))
    }

    /// Chooses an instance, and counts the device in if it is new there.
    ///
    /// New settings come into force under the same lock and only if they have every instance that is counted here, so that nobody is
    /// placed on an instance that is gone.
    fn choose(&self, record: &Record, wish: Wish<'_>, avoid: &Avoid) -> Result<Chosen, NoRoom> {
        let mut occupancy = self.records.occupancy.lock();
        let settings = self.base.look_at_settings();
        let enrollment = settings.enrollments.get(record.enrollment()).ok_or(NoRoom::NoneFits)?;
        let open = |name: &&InstanceName| {
            settings.instances.get(*name).is_some_and(|instance| placement::serves(&enrollment.tenant, instance))
        };
        let home = match wish {
            Wish::Moved(to) | Wish::Rebooked(to) => Some(Some(to).filter(open).ok_or(NoRoom::NoneFits)?),
            // A device that has been at an instance stays there: only an operator re-homes it, and never to one of another tenant.
            Wish::Any => {
                let been =
                    record.assignment().map(|assignment| &assignment.instance).into_iter().chain(record.footprint());
                record.moving_to().into_iter().chain(been).find(open)
            }
        };
        let Some(home) = home else {
            let mut place = |avoid: &BTreeSet<InstanceName>| {
                occupancy.place(&settings.instances, enrollment, record.registration_id(), avoid)
            };
            let Avoid { sick, full } = avoid;
            // Better an instance that fails than none.
            let placed = place(&(sick | full)).or_else(|_| place(full)).or_else(|_| place(&BTreeSet::new()));
            return Ok(Chosen { instance: placed?, counted: true });
        };
        let counted = !record.footprint().contains(home);
        if counted {
            let instance = settings.instances.get(home).ok_or(NoRoom::NoneFits)?;
            let shut = matches!(wish, Wish::Rebooked(_)) && instance.draining;
            if shut || !occupancy.has_room(home, instance) {
                return Err(NoRoom::AllFull(occupancy.why_shut(home, instance)));
            }
            occupancy.add(home);
        }
        Ok(Chosen { instance: home.clone(), counted })
    }
}

fn newcomer(record: &Record, instance: InstanceName, coming: Coming) -> Newcomer {
    Newcomer { instance, tenant: record.tenant().clone(), coming }
}
