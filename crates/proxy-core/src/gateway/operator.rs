//! What operators see and do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::dispatch::Counts;
use super::provision::{Entry, ProvisionError, Wish};
use super::task_names::IMPORT;
use super::wait_explanation::WaitExplanation;
use super::{CAS_ATTEMPTS_MAX, ChangeError, Gateway, StoreError, about};
use crate::device::{Claim, Command, Draft, Listing, Pending, Reason, Record, Rejected, Stage, Versioned};
use crate::feed::Change;
use crate::ids::{IdScope, InstanceName, RegistrationId, TenantName};
use crate::line::{Holding, TenantStatus};
use crate::place::Class;
use crate::placement;
use crate::secret::SymmetricKey;
use crate::settings::{Settings, UpstreamAttestation};
use crate::store::{CommitError, Write};
use crate::upstream::evidence::Blame;
use rate_control::adaptive_limit::LimitState;
use rate_control::circuit_breaker::CircuitState;
use rate_control::time::{Mono, Now, StoredMoment, WallTime};

/// One instance as operators see it.
#[derive(Debug, Clone)]
pub struct InstanceView {
    /// Our name.
    pub name: InstanceName,
    /// Its ID scope.
    pub id_scope: IdScope,
    /// Registrations per minute.
    pub quota_per_minute: u32,
    /// Registrations per minute that may leave: the adaptive limit, at most the quota.
    pub limit_per_minute: u32,
    /// What the adaptive limit is at: `quota` (it is the quota), `held` (lowered after DPS throttled), `growing` (it rises
    /// again), `off`.
    pub limit_state: LimitState,
    /// When it grows next, while it is below the quota.
    pub limit_grows_at: Option<WallTime>,
    /// Registrations that could leave now.
    pub budget: u32,
    /// Devices that wait.
    pub line_length: usize,
    /// Of these, the ones that wait for a moment of their own (a cool-down, a wait after a failure), and not for their turn.
    pub deferred: usize,
    /// The latest such moment.
    pub deferred_until: Option<WallTime>,
    /// Devices under way.
    pub under_way: usize,
    /// When half of the devices that wait for their turn now should be done.
    pub half_drained_at: Option<WallTime>,
    /// When the last device that waits for its turn now should be done.
    pub drained_at: Option<WallTime>,
    /// Registrations that left within the last minute.
    pub left_last_minute: u32,
    /// Devices that were assigned within the last minute.
    pub assigned_last_minute: u32,
    /// The same for each tenant that has devices waiting, or had some within the last minute.
    pub tenants: Vec<TenantView>,
    /// What keeps the front from going.
    pub holding: Holding,
    /// Until when calls are paused.
    pub paused_until: Option<WallTime>,
    /// Whether calls go through: `closed` (they do), `open` (they fail, and are paused until `pausedUntil`), `half-open` (one trial call
    /// decides).
    pub breaker: CircuitState,
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// Devices that may have a record there, tombstones included.
    pub registered_count: u64,
    /// Records of others, as configured.
    pub external_count: u64,
    /// Records it may hold.
    pub capacity: u64,
    /// Takes no new devices.
    pub draining: bool,
    /// Whether the task that serves the line runs.
    pub dispatcher_up: bool,
    /// By how much DPS's clock is ahead of ours; negative if it is behind. Nothing before DPS was heard of.
    pub clock_offset_seconds: Option<i64>,
    /// What happened since the process started.
    pub counts: CountsView,
}

/// One tenant's devices in a line.
#[derive(Debug, Clone)]
pub struct TenantView {
    /// Whose.
    pub tenant: TenantName,
    /// Devices that wait.
    pub line_length: usize,
    /// Of these, the ones that wait for a moment of their own, and not for their turn.
    pub deferred: usize,
    /// The latest such moment.
    pub deferred_until: Option<WallTime>,
    /// When half of those that wait for their turn should be done.
    pub half_drained_at: WallTime,
    /// When all of those should be done.
    pub drained_at: WallTime,
    /// Registrations that left within the last minute.
    pub left_last_minute: u32,
    /// Devices that were assigned within the last minute.
    pub assigned_last_minute: u32,
}

impl TenantView {
    fn of(status: TenantStatus, now: Now) -> Self {
        let at = |moment: Mono| now.wall_at(moment);
        Self {
            tenant: status.tenant,
            line_length: status.waiting,
            deferred: status.deferred,
            deferred_until: status.deferred_until.map(at),
            half_drained_at: at(status.half_drained_at),
            drained_at: at(status.drained_at),
            left_last_minute: status.last_minute.left,
            assigned_last_minute: status.last_minute.assigned,
        }
    }
}

/// [`Counts`] at one moment.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the fields are those of Counts")]
pub struct CountsView {
    pub registrations: u64,
    pub repeated: u64,
    pub lookups: u64,
    pub polls: u64,
    pub lost: u64,
    pub unreachable: u64,
    pub throttled: u64,
    pub blamed: BlamedView,
    pub assigned: u64,
    pub refused: u64,
}

/// Calls that failed, by who is to blame if the device is not.
#[derive(Debug, Clone, Copy)]
pub struct BlamedView {
    /// DPS itself.
    pub instance: u64,
    /// What is between us and DPS.
    pub path: u64,
    /// This machine, or its configuration.
    pub ourselves: u64,
}

impl BlamedView {
    /// The number of one of them.
    #[must_use]
    pub const fn of(&self, blame: Blame) -> u64 {
        match blame {
            Blame::Instance => self.instance,
            Blame::Path => self.path,
            Blame::Ourselves => self.ourselves,
        }
    }
}

impl CountsView {
    fn of(counts: &Counts) -> Self {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            registrations: read(&counts.registrations),
            repeated: read(&counts.repeated),
            lookups: read(&counts.lookups),
            polls: read(&counts.polls),
            lost: read(&counts.lost),
            unreachable: read(&counts.unreachable),
            throttled: read(&counts.throttled),
            blamed: BlamedView {
                instance: read(&counts.blamed.instance),
                path: read(&counts.blamed.path),
                ourselves: read(&counts.blamed.ourselves),
            },
            assigned: read(&counts.assigned),
            refused: read(&counts.refused),
        }
    }
}

/// One device as operators see it.
#[derive(Debug, Clone)]
pub struct RegistrationView {
    /// The device, without secrets.
    pub record: Record,
    /// Why it waits, in plain words.
    pub waiting_because: Option<String>,
    /// Its place now.
    pub position: Option<usize>,
    /// When its assignment should be there.
    pub appointment: Option<WallTime>,
}

/// Why an operator's wish was not done. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// No such device.
    #[error("no device of that registration ID is known")]
    Unknown,
    /// It does not fit the device's state.
    #[error("{0}")]
    NotNow(String),
    /// The wish itself is wrong.
    #[error("{0}")]
    Wrong(String),
    /// The line or the inventory has no room.
    #[error(transparent)]
    NoPlace(Box<ProvisionError>),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Rejected> for OperatorError {
    fn from(rejected: Rejected) -> Self {
        Self::NotNow(rejected.to_string())
    }
}

impl From<ChangeError<Rejected>> for OperatorError {
    fn from(error: ChangeError<Rejected>) -> Self {
        match error {
            ChangeError::Unknown => Self::Unknown,
            ChangeError::Refused(rejected) => rejected.into(),
            ChangeError::Store(error) => Self::Store(error),
        }
    }
}

/// One line of an allow-list.
#[derive(Debug, Clone)]
pub struct ImportRow {
    /// The hardware ID in whatever case.
    pub hardware_id: String,
    /// By which rules.
    pub enrollment: String,
    /// Whose, if the file says so; must be the enrollment's tenant.
    pub tenant: Option<String>,
    /// The delivery.
    pub batch: Option<String>,
    /// The device's individual key, base64. A secret.
    pub key: Option<String>,
}

/// What became of one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Imported {
    /// The device was not known.
    New,
    /// It was, and its entry was renewed.
    Renewed,
    /// It was, exactly so.
    Unchanged,
    /// The line is wrong; the text says how.
    Rejected(String),
}

impl Gateway {
    /// All instances, by name.
    #[must_use]
    pub fn instances(&self) -> Vec<InstanceView> {
        let settings = self.settings();
        let now = self.now();
        let dispatchers = self.dispatchers.load();
        let view = |(name, instance): (&InstanceName, &crate::settings::Instance)| {
            let dispatcher = dispatchers.get(name)?;
            let status = dispatcher.status(&mut dispatcher.line.lock(), now.mono);
            let at = |moment: Mono| now.wall_at(moment);
            Some(InstanceView {
                name: name.clone(),
                id_scope: instance.id_scope.clone(),
                quota_per_minute: status.quota_per_minute,
                limit_per_minute: status.limit_per_minute,
                limit_state: status.limit_state,
                limit_grows_at: status.limit_grows_at.map(at),
                budget: status.budget,
                line_length: status.waiting,
                deferred: status.deferred,
                deferred_until: status.deferred_until.map(at),
                under_way: status.under_way,
                half_drained_at: status.half_drained_at.map(at),
                drained_at: status.drained_at.map(at),
                left_last_minute: status.last_minute.left,
                assigned_last_minute: status.last_minute.assigned,
                tenants: status.tenants.into_iter().map(|tenant| TenantView::of(tenant, now)).collect(),
                holding: status.holding,
                paused_until: status.paused_until.map(at),
                breaker: status.breaker,
                consecutive_failures: status.failures,
                registered_count: self.occupancy.lock().filled(name),
                external_count: instance.external_count,
                capacity: instance.capacity,
                draining: instance.draining,
                dispatcher_up: dispatcher.up.load(Ordering::Relaxed),
                clock_offset_seconds: dispatcher.offset_millis(now).map(|millis| millis / 1000),
                counts: CountsView::of(&dispatcher.counts),
            })
        };
        settings.instances.iter().filter_map(view).collect()
    }

    /// One device, with its timeline and why it waits.
    ///
    /// # Errors
    /// [`OperatorError::Unknown`], or the store's.
    pub async fn registration(&self, id: &RegistrationId) -> Result<RegistrationView, OperatorError> {
        let Versioned { record, .. } = self.load(id).await.map_err(StoreError::from)?.ok_or(OperatorError::Unknown)?;
        about::whereabouts(&record);
        let record = record.shown(self.now());
        let mut view = RegistrationView { record, waiting_because: None, position: None, appointment: None };
        if let Some(pending) = view.record.pending().cloned() {
            self.explain(&pending, &mut view);
        }
        Ok(view)
    }

    fn explain(&self, pending: &Pending, view: &mut RegistrationView) {
        let Some(dispatcher) = self.dispatcher(&pending.instance) else { return };
        let now = self.now();
        let mut line = dispatcher.line.lock();
        let forecast = line.forecast(view.record.tenant(), pending.place, now.mono);
        view.position = forecast.map(|forecast| forecast.position);
        view.appointment = forecast.map(|forecast| now.wall_at(forecast.appointment));
        let status = dispatcher.status(&mut line, now.mono);
        let clock_trouble = dispatcher.clock_trouble(now);
        let why = WaitExplanation {
            pending,
            status: &status,
            position: view.position,
            not_before: line.not_before(pending.place),
            failed_polls: line.failed_polls(pending.place),
            urgent_share_percent: self.settings().line.urgent_share_percent,
            now,
            clock_trouble: clock_trouble.as_deref(),
        };
        view.waiting_because = Some(why.to_string());
    }

    /// Keeps a device out, also one that nobody has heard of yet. Its place, if nothing was sent for it yet, is given up. Of several
    /// reasons the latest stands. `by` names who says so.
    ///
    /// # Errors
    /// The store's.
    pub async fn block(
        self: &Arc<Self>,
        id: &RegistrationId,
        by: &str,
        reason: Option<&str>,
    ) -> Result<Record, OperatorError> {
        let (now, reason) = (self.now(), reason.map(str::to_owned));
        let block = || Command::Block { by: by.to_owned(), reason: reason.clone() };
        for _ in 0..CAS_ATTEMPTS_MAX {
            match self.change(id, now, &[], |draft| draft.apply(block())).await {
                Ok(((), record)) => return Ok(record),
                Err(ChangeError::Unknown) => {}
                Err(error) => return Err(error.into()),
            }
            let mut draft = self.new_draft(Record::unclaimed(id.clone()), now);
            draft.apply(block())?;
            let record = draft.record().clone();
            match self.commit(draft, Vec::new()).await {
                Ok(()) => return Ok(record),
                // Somebody has heard of it meanwhile.
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(StoreError::from(error).into()),
            }
        }
        Err(StoreError::Contended.into())
    }

    /// Lets a device in again. Returns what is left of it: nothing if the block was all that was known.
    ///
    /// # Errors
    /// [`OperatorError::Unknown`], or the store's.
    pub async fn unblock(self: &Arc<Self>, id: &RegistrationId, by: &str) -> Result<Option<Record>, OperatorError> {
        for _ in 0..CAS_ATTEMPTS_MAX {
            let known = self.load(id).await.map_err(StoreError::from)?.ok_or(OperatorError::Unknown)?;
            if !known.record.is_unclaimed() {
                return self.command(id, &Command::Unblock { by: by.to_owned() }).await.map(Some);
            }
            // The block was all that was known.
            match self.forget(self.draft(known, self.now())).await {
                Ok(()) => return Ok(None),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(StoreError::from(error).into()),
            }
        }
        Err(StoreError::Contended.into())
    }

    /// Carries an operator's command out on a known device.
    async fn command(self: &Arc<Self>, id: &RegistrationId, command: &Command) -> Result<Record, OperatorError> {
        let changed = self.change(id, self.now(), &[], |draft| draft.apply(command.clone()));
        Ok(changed.await?.1)
    }

    /// Forgets a refusal, lets a credential be claimed again, and puts the device into line if it has no hub.
    ///
    /// # Errors
    /// [`OperatorError::Unknown`], or the store's.
    pub async fn retry(self: &Arc<Self>, id: &RegistrationId) -> Result<Record, OperatorError> {
        let record = self.command(id, &Command::Retry).await?;
        if record.assignment().is_some() || !record.footprint().is_empty() {
            self.enter_again(&record, Reason::First).await;
        }
        Ok(self.load(id).await.map_err(StoreError::from)?.ok_or(OperatorError::Unknown)?.record)
    }

    /// Moves a waiting device ahead of all that are not expedited.
    ///
    /// # Errors
    /// [`OperatorError::NotNow`] if it does not wait.
    pub async fn expedite(self: &Arc<Self>, id: &RegistrationId) -> Result<Record, OperatorError> {
        let old = self.load(id).await.map_err(StoreError::from)?.ok_or(OperatorError::Unknown)?;
        let pending = old.record.pending().ok_or(Rejected::NoPlace)?;
        if pending.stage != Stage::Waiting {
            return Err(Rejected::UnderWay.into());
        }
        if pending.place.class == Class::Expedited {
            return Ok(old.record);
        }
        match self.reseat(old, Class::Expedited, "expedited by an operator").await {
            Ok(()) => Ok(self.load(id).await.map_err(StoreError::from)?.ok_or(OperatorError::Unknown)?.record),
            Err(CommitError::Conflict { .. }) => {
                Err(OperatorError::NotNow("the device's state changed at the same moment; try again".to_owned()))
            }
            Err(error) => Err(StoreError::from(error).into()),
        }
    }

    /// Re-homes a device: it joins the line of `instance`, whatever it waited for before.
    ///
    /// # Errors
    /// [`OperatorError::Wrong`] if the instance does not exist or does not fit the device's enrollment.
    pub async fn move_to(
        self: &Arc<Self>,
        id: &RegistrationId,
        instance: &InstanceName,
    ) -> Result<Record, OperatorError> {
        let settings = self.settings();
        for _ in 0..CAS_ATTEMPTS_MAX {
            let old = self.load(id).await.map_err(StoreError::from)?.ok_or(OperatorError::Unknown)?;
            self.check_move(&settings, &old.record, instance)?;
            let pending = old.record.pending();
            if pending.is_some_and(|pending| pending.instance == *instance) {
                return Ok(old.record);
            }
            // Whoever waits for its own sake still does.
            let class = pending.map_or(Class::Background, |pending| pending.place.class);
            let now = self.now();
            let entry = Entry { class, wish: Wish::Moved(instance), asked: None, now };
            let entered = self.enter(self.draft(old, now), entry, |seat| Command::Move { seat }).await;
            match entered.map_err(|error| OperatorError::NoPlace(Box::new(error)))? {
                Ok(()) => {
                    return Ok(self.load(id).await.map_err(StoreError::from)?.ok_or(OperatorError::Unknown)?.record);
                }
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(StoreError::from(error).into()),
            }
        }
        Err(StoreError::Contended.into())
    }

    fn check_move(&self, settings: &Settings, record: &Record, instance: &InstanceName) -> Result<(), OperatorError> {
        let target = settings
            .instances
            .get(instance)
            .ok_or_else(|| OperatorError::Wrong(format!("there is no instance {instance}")))?;
        if record.blocked().is_some() || record.retired().is_some() {
            return Err(OperatorError::NotNow("the device is blocked or retired".to_owned()));
        }
        let enrollment = settings.enrollments.get(record.enrollment()).ok_or_else(|| {
            OperatorError::NotNow(format!(
                "the device's enrollment {} is no longer in the configuration",
                record.enrollment()
            ))
        })?;
        if !placement::fits(enrollment, instance, target) {
            return Err(OperatorError::Wrong(format!(
                "instance {instance} does not fit the enrollment {}",
                record.enrollment()
            )));
        }
        if record.confirmed().is_some_and(|assignment| assignment.instance == *instance) {
            return Err(OperatorError::NotNow(format!("the device is at {instance} already")));
        }
        Ok(())
    }

    /// Retires a device. While an instance may still hold its registration, a tombstone stays and counts against the
    /// capacity; `dps_record_deleted` says that none does, and forgets the device wholly, unless a registration of it may be on its way
    /// right now. Returns what is left.
    ///
    /// # Errors
    /// [`OperatorError::Unknown`], or the store's.
    pub async fn retire(
        self: &Arc<Self>,
        id: &RegistrationId,
        dps_record_deleted: bool,
    ) -> Result<Option<Record>, OperatorError> {
        for _ in 0..CAS_ATTEMPTS_MAX {
            let old = self.load(id).await.map_err(StoreError::from)?.ok_or(OperatorError::Unknown)?;
            let now = self.now();
            let mut draft = self.draft(old, now);
            let on_its_way = self.on_its_way(draft.record(), now.mono).map(|other| other.flight.instance.clone());
            let kept = on_its_way.as_ref().filter(|_| dps_record_deleted).map(|instance| {
                format!("not forgotten yet: a registration of it is on its way to {instance}, or may be; delete it again later")
            });
            draft.apply(Command::Retire { kept })?;
            let retired = draft.record().clone();
            let forget = on_its_way.is_none() && (dps_record_deleted || retired.footprint().is_empty());
            let done = if forget { self.forget(draft).await } else { self.commit(draft, Vec::new()).await };
            match done {
                Ok(()) => return Ok((!forget).then_some(retired)),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(StoreError::from(error).into()),
            }
        }
        Err(StoreError::Contended.into())
    }

    /// Deletes the record of a device that is retired. If that retired an assignment, the feed says so.
    async fn forget(self: &Arc<Self>, retired: Draft) -> Result<(), CommitError> {
        let gateway = Arc::clone(self);
        self.to_the_end(async move {
            let announces = retired.effects().announces();
            let change = Change::of(retired.record(), StoredMoment::of(gateway.now())).filter(|_| announces);
            let ticket = change.as_ref().map(|_| gateway.feed.ticket());
            let event = ticket.as_ref().zip(change.as_ref()).map(|(ticket, change)| ticket.write(change));
            let writes: Vec<Write> = event.into_iter().chain([retired.deletion()]).collect();
            gateway.store.commit(gateway.versions.commit(writes)).await?;
            if let Some(ticket) = ticket {
                ticket.committed();
            }
            gateway.follow(&retired.effects().deleted(), None);
            gateway.waiters.wake(retired.record().registration_id());
            Ok(())
        })
        .await
    }

    /// Puts devices onto the allow-list, at most [`MAX_WRITES`](crate::store::MAX_WRITES) at once, durably. Lines are judged one by
    /// one, in order: a wrong one does not stop the others, and of two for one device the last one stands. Safe to repeat. It goes on to
    /// the end if nobody waits for it any more, on the gateway's own threads: the caller may read the next lines meanwhile.
    ///
    /// # Errors
    /// If the store fails; none of these lines is on the list then.
    pub async fn import(self: &Arc<Self>, rows: Vec<ImportRow>) -> Result<Vec<Imported>, StoreError> {
        let gateway = Arc::clone(self);
        self.on_own_threads(IMPORT, async move { gateway.import_here(&rows).await }).await
    }

    async fn import_here(&self, rows: &[ImportRow]) -> Result<Vec<Imported>, StoreError> {
        let settings = self.settings();
        for _ in 0..CAS_ATTEMPTS_MAX {
            let mut outcomes = Vec::with_capacity(rows.len());
            let mut changed: BTreeMap<RegistrationId, Draft> = BTreeMap::new();
            for row in rows {
                outcomes.push(match self.import_row(&settings, row, &mut changed).await? {
                    Ok(imported) => imported,
                    Err(problem) => Imported::Rejected(problem),
                });
            }
            if changed.is_empty() {
                return Ok(outcomes);
            }
            let writes = changed.values().map(Draft::write).collect();
            match self.store.commit(self.versions.commit(writes)).await {
                Ok(_) => return Ok(outcomes),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Contended)
    }

    /// `changed` holds what the lines before this one have made of their devices.
    async fn import_row(
        &self,
        settings: &Settings,
        row: &ImportRow,
        changed: &mut BTreeMap<RegistrationId, Draft>,
    ) -> Result<Result<Imported, String>, StoreError> {
        let (id, listing) = match check_row(settings, row) {
            Ok(checked) => checked,
            Err(problem) => return Ok(Err(problem)),
        };
        let now = self.now();
        let stored = match changed.get(&id) {
            Some(_) => None,
            None => self.load(&id).await?,
        };
        let (mut draft, known) = match (changed.get(&id), stored) {
            (Some(draft), _) => (draft.clone(), true),
            (None, Some(stored)) => {
                let known = !stored.record.is_unclaimed();
                (self.draft(stored, now), known)
            }
            (None, None) => {
                let Claim { tenant, enrollment, .. } = listing.claim.clone();
                (self.new_draft(Record::new(id.clone(), tenant, enrollment), now), false)
            }
        };
        let before = draft.record().clone();
        match draft.apply(Command::List(listing)) {
            Ok(()) if *draft.record() == before => return Ok(Ok(Imported::Unchanged)),
            Ok(()) => {}
            Err(Rejected::OtherTenant) => return Ok(Err(format!("{id} belongs to tenant {}", before.tenant()))),
            Err(Rejected::Retired) => {
                return Ok(Err(format!(
                    "{id} is retired; delete it with dpsRecordDeleted=true before you import it again"
                )));
            }
            Err(rejected) => return Ok(Err(format!("{id}: {rejected}"))),
        }
        changed.insert(id, draft);
        Ok(Ok(if known { Imported::Renewed } else { Imported::New }))
    }
}

/// A line that makes sense in itself.
fn check_row(settings: &Settings, row: &ImportRow) -> Result<(RegistrationId, Listing), String> {
    let id = RegistrationId::parse(&row.hardware_id).map_err(|error| format!("hardwareId: {error}"))?;
    let found = settings.enrollments.get_key_value(row.enrollment.as_str());
    let (name, enrollment) =
        found.ok_or_else(|| format!("enrollment: there is no enrollment {:?} in the configuration", row.enrollment))?;
    if row.tenant.as_deref().is_some_and(|tenant| tenant != enrollment.tenant.as_str()) {
        return Err(format!("tenant: enrollment {name} belongs to tenant {}", enrollment.tenant));
    }
    match (&enrollment.upstream, &row.key) {
        (UpstreamAttestation::Individual, None) => {
            return Err(format!("key: enrollment {name} is individual, so every device needs its key"));
        }
        (UpstreamAttestation::Group { .. }, Some(_)) => {
            return Err(format!("key: enrollment {name} derives keys from its group, so a device has none of its own"));
        }
        (UpstreamAttestation::Individual, Some(key)) => {
            SymmetricKey::from_base64(key).map_err(|error| format!("key: {error}"))?;
        }
        (UpstreamAttestation::Group { .. }, None) => {}
    }
    let spelling = (row.hardware_id != id.as_str()).then(|| row.hardware_id.clone());
    let claim = Claim { tenant: enrollment.tenant.clone(), enrollment: name.clone(), spelling };
    Ok((id, Listing { claim, batch: row.batch.clone(), key: row.key.clone() }))
}
