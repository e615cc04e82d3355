//! The gateway: puts the layers together, and offers the use cases to whoever serves devices, backends and operators.
//!
//! Each layer knows only those below it: `base` (store, time, settings, chance, tasks, feed) ← `line_owner` (what may be asked of the owner of
//! the lines) ← `records` ← `joining` (how a device takes a place) ← `owner` (dispatches the lines) and `use_cases` ← here.
//!
//! Invariants of the whole:
//! - Durable before told: a place before its 202, an assignment before its 200, a *sent* mark before its call.
//! - A device has at most one registration under way, because only its own place's departure may send one, and none that was sent from an
//!   earlier place may still be on its way.
//! - Locks are never held across an await. The decisions are in [`crate::line`], [`crate::placement`], [`crate::attestation`],
//!   [`crate::registration`] and [`crate::upstream::verdict`]; what is built on them carries them out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::base::{Base, NotApplicable, OpenError, Stopped, StoreError};
use crate::device::Record;
use crate::feed::{EventId, Next, Start};
use crate::ids::{HubName, InstanceName, RegistrationId, TenantName};
use crate::joining::Joining;
use crate::line_owner::LineOwner;
use crate::owner::{Owner, Recovered};
use crate::ownership::Ownership;
use crate::records::device_ids;
use crate::records::scopes::{read_scopes, remember_scopes};
use crate::records::{Derived, Records, read_all};
use crate::repeat::RepeatGuard;
use crate::settings::Settings;
use crate::store::{CommitError, Health, ReadError, Store};
use crate::supervise::Supervisor;
use crate::upstream::Connect;
use crate::use_cases::backend::{AssignmentView, Backend, BackendError, Found, Tenants};
use crate::use_cases::import::{Import, ImportRow, Imported};
use crate::use_cases::lists::{Cursor, Filter, ListError, Lists, Page, RegistrationSummary};
use crate::use_cases::operator::{InstanceView, Operator, OperatorError, RegistrationView};
use crate::use_cases::provision::{Outcome, Provision, ProvisionError, ProvisionRequest};
use crate::use_cases::rejoin::Rejoin;
use crate::use_cases::reload::Reload;
use rate_control::entropy::Entropy;
use rate_control::time::{Clock, Now, WallTime};

/// What does not change while the gateway runs.
#[derive(Debug, Clone, Copy)]
pub struct Fixed {
    /// Open requests that may wait (`Prefer: wait`).
    pub parked_max: usize,
    /// Requests of one device that pass at once.
    pub repeat_burst: u32,
    /// One more passes per this time.
    pub repeat_interval: Duration,
}

/// What a gateway works with.
#[derive(Debug)]
pub struct Surroundings {
    /// Where its records live.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How it reaches the DPS instances.
    pub connect: Arc<dyn Connect>,
    /// By what right it serves the lines.
    pub ownership: Ownership,
}

/// The gateway. See the module.
#[derive(Debug)]
pub struct Gateway {
    base: Arc<Base>,
    provision: Provision,
    backend: Backend,
    operator: Operator,
    lists: Lists,
    import: Import,
    reload: Reload,
}

impl Gateway {
    /// Reads what is stored, rebuilds the lines, and starts one dispatcher per instance. All of the gateway's tasks run on the tokio
    /// runtime this is called on.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was started then.
    pub async fn open(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        connect: Arc<dyn Connect>,
        settings: Settings,
        fixed: Fixed,
        entropy: Entropy,
    ) -> Result<Arc<Self>, OpenError> {
        let surroundings = Surroundings { store, clock, connect, ownership: Ownership::undisputed() };
        Self::open_before(surroundings, settings, fixed, entropy, |owner| owner).await
    }

    /// The same for the owner of the lines, with something between the lines and all who ask of them.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was started then. If another gateway owns the lines by now, that is [`CommitError::Fenced`].
    pub async fn open_before(
        surroundings: Surroundings,
        settings: Settings,
        fixed: Fixed,
        entropy: Entropy,
        between: impl FnOnce(Arc<dyn LineOwner>) -> Arc<dyn LineOwner>,
    ) -> Result<Arc<Self>, OpenError> {
        let Surroundings { store, clock, connect, ownership } = surroundings;
        let base = Arc::new(Base::open(store, clock, settings, ownership, fixed.parked_max, entropy).await?);
        let repeat = RepeatGuard::new(fixed.repeat_burst, fixed.repeat_interval, base.entropy.lock().next_u64());
        let (derived, mut recovered) = recover(&base).await?;
        check_and_remember_scopes(&base, &derived).await?;
        device_ids::index_earlier(&base).await?;
        let lines = Arc::new(Owner::lines(&base, &mut recovered));
        let line_owner = between(Arc::clone(&lines) as _);
        let records = Arc::new(Records::new(Arc::clone(&base), Arc::clone(&line_owner), derived));
        let joining = Arc::new(Joining::new(Arc::clone(&base), Arc::clone(&records), Arc::clone(&line_owner)));
        let owner = Owner::new(&base, connect, &lines, &records, &joining);
        owner.start(recovered).await?;
        base.keep_house();
        Ok(Arc::new(Self::over(&base, &records, &joining, line_owner, Arc::new(owner), repeat)))
    }

    fn over(
        base: &Arc<Base>,
        records: &Arc<Records>,
        joining: &Arc<Joining>,
        line_owner: Arc<dyn LineOwner>,
        owner: Arc<Owner>,
        repeat: RepeatGuard,
    ) -> Self {
        let layers = || (Arc::clone(base), Arc::clone(records));
        let (base, records) = layers();
        let rejoin = Rejoin::new(base, records, Arc::clone(joining));
        let (base, records) = layers();
        let backend = Backend::new(base, records, rejoin.clone());
        let (base, records) = layers();
        let provision = Provision::new(base, records, Arc::clone(joining), Arc::clone(&line_owner), repeat);
        let (base, records) = layers();
        let operator = Operator::new(base, records, Arc::clone(joining), rejoin, line_owner);
        let (base, records) = layers();
        let reload = Reload::new(base, records, owner);
        let (base, records) = layers();
        let lists = Lists::new(Arc::clone(&base), Arc::clone(&records));
        let import = Import::new(Arc::clone(&base), records);
        Self { base, provision, backend, operator, lists, import, reload }
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.base.settings()
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Now {
        self.base.now()
    }

    /// The time that credentials are judged and made by: DPS's, if its clocks agree that ours is off. Ours while that is in doubt.
    #[must_use]
    pub fn credential_time(&self, now: Now) -> WallTime {
        self.base.agreed_time.credential_time(now)
    }

    /// Whether the store takes writes.
    #[must_use]
    pub fn store_health(&self) -> Health {
        self.base.store.health()
    }

    /// Commits that the store refused since the start.
    #[must_use]
    pub fn store_refused(&self) -> u64 {
        self.base.watched.refused()
    }

    /// Looks whether the store hangs, see [`Watched::look_for_standstill`](crate::store::watched::Watched::look_for_standstill); why, if it
    /// does. It has failed for good then.
    #[must_use]
    pub fn look_for_store_standstill(&self, longest: Duration) -> Option<String> {
        self.base.watched.look_for_standstill(longest)
    }

    /// How long writes have waited for the store without any progress, as of the last look.
    #[must_use]
    pub fn store_in_vain(&self) -> Duration {
        self.base.watched.in_vain()
    }

    /// Open requests that wait now.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.base.waiters.len()
    }

    /// Who looks after the tasks.
    #[must_use]
    pub fn supervisor(&self) -> &Supervisor {
        &self.base.supervisor
    }

    /// Sends nothing more, gives no new places, and answers those who wait. What is known is still answered.
    pub fn begin_stop(&self) {
        self.base.begin_stop();
    }

    /// Ends what [`begin_stop`](Self::begin_stop) began: lets what is under way end for at most `drain`, and closes the store, after which
    /// nothing can be answered. Registrations that DPS still works on stay durable and are polled by the next process.
    pub async fn stop(&self, drain: Duration) -> Stopped {
        self.base.stop(drain).await
    }

    /// The same, but the store stays open: for the next gateway of this process, which may be the owner of the lines again.
    pub async fn end(&self, drain: Duration) -> Stopped {
        self.base.end(drain).await
    }

    /// Whether [`begin_stop`](Self::begin_stop) was called.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.base.is_stopping()
    }

    /// A token that is cancelled when the gateway stops; streams end with it.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.base.stopping.clone()
    }

    /// Answers a device.
    ///
    /// Cancel-safe: a device that hangs up keeps the place it was given; its registration goes on.
    ///
    /// # Errors
    /// [`ProvisionError`]; for an unbelieved device nothing was written and nobody was called.
    pub async fn provision(&self, request: &ProvisionRequest<'_>) -> Result<Outcome, ProvisionError> {
        self.provision.provision(request).await
    }

    /// Finds a device by the name its hub knows it by (case-sensitive). Reads memory and the local store only.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn find(&self, device_id: &str, tenants: Tenants<'_>) -> Result<Found, ReadError> {
        self.backend.find(device_id, tenants).await
    }

    /// Marks an assignment suspect, because a hub or a backend contradicted it, and puts the device into the line of its
    /// instance. An assignment that is not confirmed stays as it is.
    ///
    /// # Errors
    /// [`BackendError::NotFound`] if there is no assignment of that device ID.
    pub async fn invalidate(
        &self,
        device_id: &str,
        tenants: Tenants<'_>,
        reason: &str,
    ) -> Result<AssignmentView, BackendError> {
        self.backend.invalidate(device_id, tenants, reason).await
    }

    /// Marks every confirmed assignment to `hub` suspect: the whole hub is gone. Returns how many there were. Safe to repeat. It goes on
    /// to the end if nobody waits for it any more; `held` is dropped then.
    ///
    /// # Errors
    /// If the store fails half way; what was marked stays marked.
    pub async fn invalidate_hub(
        &self,
        hub: HubName,
        tenants: Option<BTreeSet<TenantName>>,
        reason: String,
        held: impl Send + 'static,
    ) -> Result<u64, StoreError> {
        self.backend.invalidate_hub(hub, tenants, reason, held).await
    }

    /// Where a reader of the change feed starts, given the last event it saw.
    #[must_use]
    pub fn feed_start(&self, last_seen: Option<&str>) -> Start {
        self.backend.feed_start(last_seen)
    }

    /// Tells a reader of the feed when more can be read.
    #[must_use]
    pub fn feed_grows(&self) -> tokio::sync::watch::Receiver<u64> {
        self.backend.feed_grows()
    }

    /// The events behind `after`, at most a page, or that some of them are not kept any more.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn feed_read(&self, after: u64) -> Result<Next, ReadError> {
        self.backend.feed_read(after).await
    }

    /// The name of an event.
    #[must_use]
    pub fn feed_id(&self, number: u64) -> EventId {
        self.backend.feed_id(number)
    }

    /// All instances, by name.
    pub async fn instances(&self) -> Vec<InstanceView> {
        self.operator.instances().await
    }

    /// One device, with its timeline and why it waits.
    ///
    /// # Errors
    /// [`OperatorError::Unknown`], or the store's.
    pub async fn registration(&self, id: &RegistrationId) -> Result<RegistrationView, OperatorError> {
        self.operator.registration(id).await
    }

    /// Keeps a device out, also one that nobody has heard of yet. Its place, if nothing was sent for it yet, is given up. Of several
    /// reasons the latest stands. `by` names who says so.
    ///
    /// # Errors
    /// The store's.
    pub async fn block(&self, id: &RegistrationId, by: &str, reason: Option<&str>) -> Result<Record, OperatorError> {
        self.operator.block(id, by, reason).await
    }

    /// Lets a device in again. Returns what is left of it: nothing if the block was all that was known.
    ///
    /// # Errors
    /// [`OperatorError::Unknown`], or the store's.
    pub async fn unblock(&self, id: &RegistrationId, by: &str) -> Result<Option<Record>, OperatorError> {
        self.operator.unblock(id, by).await
    }

    /// Forgets a refusal, lets a credential be claimed again, and puts the device into line if it has no hub.
    ///
    /// # Errors
    /// [`OperatorError::Unknown`], or the store's.
    pub async fn retry(&self, id: &RegistrationId) -> Result<Record, OperatorError> {
        self.operator.retry(id).await
    }

    /// Moves a waiting device ahead of all that are not expedited.
    ///
    /// # Errors
    /// [`OperatorError::NotNow`] if it does not wait.
    pub async fn expedite(&self, id: &RegistrationId) -> Result<Record, OperatorError> {
        self.operator.expedite(id).await
    }

    /// Re-homes a device: it joins the line of `instance`, whatever it waited for before.
    ///
    /// # Errors
    /// [`OperatorError::Wrong`] if the instance does not exist or does not fit the device's enrollment.
    pub async fn move_to(&self, id: &RegistrationId, instance: &InstanceName) -> Result<Record, OperatorError> {
        self.operator.move_to(id, instance).await
    }

    /// Retires a device. While an instance may still hold its registration, a tombstone stays and counts against the
    /// capacity; `dps_record_deleted` says that none does, and forgets the device wholly, unless a registration of it may be on its way
    /// right now. Returns what is left.
    ///
    /// # Errors
    /// [`OperatorError::Unknown`], or the store's.
    pub async fn retire(&self, id: &RegistrationId, dps_record_deleted: bool) -> Result<Option<Record>, OperatorError> {
        self.operator.retire(id, dps_record_deleted).await
    }

    /// A page of the assignments, in whatever state, that `tenants` (all, if `None`) may see, and the feed position of the whole list.
    ///
    /// # Errors
    /// [`ListError`].
    pub async fn assignments(
        &self,
        cursor: Option<Cursor>,
        limit: usize,
        tenants: Option<BTreeSet<TenantName>>,
    ) -> Result<(Page<AssignmentView>, EventId), ListError> {
        self.lists.assignments(cursor, limit, tenants).await
    }

    /// A page of the devices that `filter` admits.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn registrations(
        &self,
        after: Option<RegistrationId>,
        limit: usize,
        filter: Filter,
    ) -> Result<Page<RegistrationSummary>, ReadError> {
        self.lists.registrations(after, limit, filter).await
    }

    /// Puts devices onto the allow-list, at most [`MAX_WRITES`](crate::store::MAX_WRITES) at once, durably. Lines are judged one by
    /// one, in order: a wrong one does not stop the others, and of two for one device the last one stands. Safe to repeat. It goes on to
    /// the end if nobody waits for it any more, on the gateway's own threads: the caller may read the next lines meanwhile.
    ///
    /// # Errors
    /// If the store fails; none of these lines is on the list then.
    pub async fn import(&self, rows: Vec<ImportRow>) -> Result<Vec<Imported>, StoreError> {
        self.import.import(rows).await
    }

    /// Applies new settings whole, or none of them: rates, bursts, bounds, weights, draining and enrollments at once, in mid-storm,
    /// without losing a place. Remembered refusals are dropped, as the change may have mended their cause.
    ///
    /// # Errors
    /// [`NotApplicable`] with every reason; the old settings stay in force.
    pub async fn apply(&self, new: Settings) -> Result<(), NotApplicable> {
        self.reload.apply(new).await
    }
}

/// What the records of an earlier process say.
async fn recover(base: &Base) -> Result<(Derived, Recovered), OpenError> {
    let (settings, now) = (base.settings(), base.now());
    let (mut derived, mut recovered) = (Derived::default(), Recovered::default());
    let see = |record: &Record| {
        derived.add(record);
        recovered.add(record, &settings, now);
    };
    read_all(&*base.store, see).await.map_err(StoreError::from)?;
    let occupancy = &derived.occupancy;
    let missing: Vec<String> = occupancy.instances().filter(|name| !settings.instances.contains_key(*name)).map(|name| {
        format!("instances.{name}: {} device records refer to this instance, so it cannot be missing; set draining = true instead", occupancy.filled(name))
    }).collect();
    if !missing.is_empty() {
        return Err(NotApplicable(missing).into());
    }
    Ok((derived, recovered))
}

/// An instance that records refer to is the one that it was.
async fn check_and_remember_scopes(base: &Base, derived: &Derived) -> Result<(), OpenError> {
    let scopes = read_scopes(&*base.store, &base.settings()).await.map_err(StoreError::from)?;
    let moved: Vec<String> = scopes.iter().filter_map(|scope| scope.problem(&derived.occupancy)).collect();
    if !moved.is_empty() {
        return Err(NotApplicable(moved).into());
    }
    match remember_scopes(base, scopes).await {
        // A read-only store still serves what it has, and takes no new devices that would have to be remembered.
        Ok(()) | Err(CommitError::ReadOnly(_)) => Ok(()),
        Err(error) => Err(StoreError::from(error).into()),
    }
}
