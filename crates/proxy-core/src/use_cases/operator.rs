//! What operators see and do.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::provision::ProvisionError;
use super::rejoin::Rejoin;
use crate::base::{Base, StoreError, about};
use crate::device::{Command, Reason, Record, Rejected, Stage, Versioned};
use crate::ids::{IdScope, InstanceName, RegistrationId, TenantName};
use crate::joining::{Entry, Joining, Wish};
use crate::line::{Holding, TenantStatus};
use crate::line_owner::{CountsView, Explained, LineOwner, LineReport};
use crate::place::Class;
use crate::placement;
use crate::records::{CAS_ATTEMPTS_MAX, ChangeError, Records};
use crate::settings::{Instance, Settings};
use crate::store::CommitError;
use rate_control::adaptive_limit::LimitState;
use rate_control::circuit_breaker::CircuitState;
use rate_control::time::{Mono, Now, WallTime};

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
    /// `off`.
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
    /// tries).
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

impl InstanceView {
    fn of(name: InstanceName, instance: &Instance, registered_count: u64, report: LineReport) -> Self {
        let LineReport { now, status, dispatcher_up, clock_offset_millis, counts } = report;
        let at = |moment: Mono| now.wall_at(moment);
        Self {
            name,
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
            registered_count,
            external_count: instance.external_count,
            capacity: instance.capacity,
            draining: instance.draining,
            dispatcher_up,
            clock_offset_seconds: clock_offset_millis.map(|millis| millis / 1000),
            counts,
        }
    }
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
            ChangeError::DeviceIdTaken(other) => Self::NotNow(format!("its device ID belongs to {other}")),
            ChangeError::Store(error) => Self::Store(error),
        }
    }
}

/// Does what operators wish.
#[derive(Debug)]
pub(crate) struct Operator {
    base: Arc<Base>,
    records: Arc<Records>,
    joining: Arc<Joining>,
    rejoin: Rejoin,
    owner: Arc<dyn LineOwner>,
}

impl Operator {
    pub(crate) const fn new(
        base: Arc<Base>,
        records: Arc<Records>,
        joining: Arc<Joining>,
        rejoin: Rejoin,
        owner: Arc<dyn LineOwner>,
    ) -> Self {
        Self { base, records, joining, rejoin, owner }
    }

    /// All instances, by name.
    pub(crate) async fn instances(&self) -> Vec<InstanceView> {
        let mut reports: BTreeMap<InstanceName, LineReport> = self.owner.report().await;
        let settings = self.base.settings();
        let occupancy = self.records.occupancy.lock();
        let view = |(name, instance): (&InstanceName, &Instance)| {
            let report = reports.remove(name)?;
            Some(InstanceView::of(name.clone(), instance, occupancy.filled(name), report))
        };
        settings.instances.iter().filter_map(view).collect()
    }

    /// One device, with its timeline and why it waits.
    ///
    /// # Errors
    /// [`OperatorError::Unknown`], or the store's.
    pub(crate) async fn registration(&self, id: &RegistrationId) -> Result<RegistrationView, OperatorError> {
        let record = self.find(id).await?.record;
        about::whereabouts(&record);
        let explained = match record.pending() {
            Some(pending) => self.owner.explain(record.tenant(), pending).await,
            None => None,
        };
        let now = self.base.now();
        let record = record.shown(now);
        let Some(Explained { because, position, wait }) = explained else {
            return Ok(RegistrationView { record, waiting_because: None, position: None, appointment: None });
        };
        let appointment = wait.map(|wait| now.wall_at(now.mono.after(wait)));
        Ok(RegistrationView { record, waiting_because: Some(because), position, appointment })
    }

    async fn find(&self, id: &RegistrationId) -> Result<Versioned, OperatorError> {
        self.records.load(id).await.map_err(StoreError::from)?.ok_or(OperatorError::Unknown)
    }

    /// Keeps a device out, also one that nobody has heard of yet. Its place, if nothing was sent for it yet, is given up. Of several
    /// reasons the latest stands. `by` names who says so.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn block(
        &self,
        id: &RegistrationId,
        by: &str,
        reason: Option<&str>,
    ) -> Result<Record, OperatorError> {
        let (now, reason) = (self.base.now(), reason.map(str::to_owned));
        let block = || Command::Block { by: by.to_owned(), reason: reason.clone() };
        for _ in 0..CAS_ATTEMPTS_MAX {
            match self.records.change(id, now, &[], |draft| draft.apply(block())).await {
                Ok(((), record)) => return Ok(record),
                Err(ChangeError::Unknown) => {}
                Err(error) => return Err(error.into()),
            }
            let mut draft = self.records.new_draft(Record::unclaimed(id.clone()), now);
            draft.apply(block())?;
            let record = draft.record().clone();
            match self.records.commit(draft, Vec::new()).await {
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
    pub(crate) async fn unblock(&self, id: &RegistrationId, by: &str) -> Result<Option<Record>, OperatorError> {
        for _ in 0..CAS_ATTEMPTS_MAX {
            let known = self.find(id).await?;
            if !known.record.is_unclaimed() {
                return self.command(id, &Command::Unblock { by: by.to_owned() }).await.map(Some);
            }
            // The block was all that was known.
            match self.records.forget(self.records.draft(known, self.base.now())).await {
                Ok(()) => return Ok(None),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(StoreError::from(error).into()),
            }
        }
        Err(StoreError::Contended.into())
    }

    /// Carries an operator's command out on a known device.
    async fn command(&self, id: &RegistrationId, command: &Command) -> Result<Record, OperatorError> {
        let changed = self.records.change(id, self.base.now(), &[], |draft| draft.apply(command.clone()));
        Ok(changed.await?.1)
    }

    /// Forgets a refusal, lets a credential be claimed again, and puts the device into line if it has no hub.
    ///
    /// # Errors
    /// [`OperatorError::Unknown`], or the store's.
    pub(crate) async fn retry(&self, id: &RegistrationId) -> Result<Record, OperatorError> {
        let record = self.command(id, &Command::Retry).await?;
        if record.assignment().is_some() || !record.footprint().is_empty() {
            self.rejoin.enter_again(&record, Reason::First).await;
        }
        Ok(self.find(id).await?.record)
    }

    /// Moves a waiting device ahead of all that are not expedited.
    ///
    /// # Errors
    /// [`OperatorError::NotNow`] if it does not wait.
    pub(crate) async fn expedite(&self, id: &RegistrationId) -> Result<Record, OperatorError> {
        let old = self.find(id).await?;
        let pending = old.record.pending().ok_or(Rejected::NoPlace)?;
        if pending.stage != Stage::Waiting {
            return Err(Rejected::UnderWay.into());
        }
        if pending.place.class == Class::Expedited {
            return Ok(old.record);
        }
        match self.joining.reseat(old, Class::Expedited, "expedited by an operator").await {
            Ok(()) => Ok(self.find(id).await?.record),
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
    pub(crate) async fn move_to(&self, id: &RegistrationId, instance: &InstanceName) -> Result<Record, OperatorError> {
        let settings = self.base.settings();
        for _ in 0..CAS_ATTEMPTS_MAX {
            let old = self.find(id).await?;
            self.check_move(&settings, &old.record, instance)?;
            let pending = old.record.pending();
            if pending.is_some_and(|pending| pending.instance == *instance) {
                return Ok(old.record);
            }
            // Whoever waits for its own sake still does.
            let class = pending.map_or(Class::Background, |pending| pending.place.class);
            let now = self.base.now();
            let entry = Entry { class, wish: Wish::Moved(instance), asked: None };
            let entered = self.joining.enter(self.records.draft(old, now), entry, |seat| Command::Move { seat }).await;
            match entered.map_err(|error| OperatorError::NoPlace(Box::new(error.into())))? {
                Ok(()) => {
                    return Ok(self.find(id).await?.record);
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
    pub(crate) async fn retire(
        &self,
        id: &RegistrationId,
        dps_record_deleted: bool,
    ) -> Result<Option<Record>, OperatorError> {
        for _ in 0..CAS_ATTEMPTS_MAX {
            let old = self.find(id).await?;
            let mut draft = self.records.draft(old, self.base.now());
            let on_its_way = match draft.record().flight() {
                Some(flight) => self.owner.on_its_way(flight).await.then(|| flight.instance.clone()),
                None => None,
            };
            let kept = on_its_way.as_ref().filter(|_| dps_record_deleted).map(|instance| {
                format!("not forgotten yet: a registration of it is on its way to {instance}, or may be; delete it again later")
            });
            draft.apply(Command::Retire { kept })?;
            let retired = draft.record().clone();
            let forget = on_its_way.is_none() && (dps_record_deleted || retired.footprint().is_empty());
            let done =
                if forget { self.records.forget(draft).await } else { self.records.commit(draft, Vec::new()).await };
            match done {
                Ok(()) => return Ok((!forget).then_some(retired)),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(StoreError::from(error).into()),
            }
        }
        Err(StoreError::Contended.into())
    }
}
