//! What an earlier process left: records give back the lines, the counts, the aliases and the registrations under way; the ledger
//! gives back what may still count. And the settings, at start and while the service runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::aliases::Aliases;
use super::dispatch::{Dispatcher, slot_of};
use super::provision::suspect_not_before;
use super::recovered_limits::{self, RecoveredLimits};
use super::recovered_places::{RecoveredLine, RecoveredPlace, RecoveredStage};
use super::relief::Away;
use super::task_names::{FEED_PRUNING, RELIEF, STORE_WATCH};
use super::{Fixed, Gateway, NotApplicable, StoreError};
use crate::device::{Effects, Record, Stage, Versioned};
use crate::dps_clock::DpsClock;
use crate::feed::Feed;
use crate::ids::{IdScope, InstanceName};
use crate::line::lane::JobKind;
use crate::line::scheduler::Fairness;
use crate::line::{Line, RecoveryState};
use crate::placement::Occupancy;
use crate::repeat::RepeatGuard;
use crate::settings::Settings;
use crate::store::watched::Watched;
use crate::store::{CommitError, Expect, Key, MAX_WRITES, ReadError, Store, Stored, Table, Versions, Write};
use crate::supervise::Task;
use crate::upstream::{Connect, Upstream};
use crate::waiters::Waiters;
use rate_control::entropy::Entropy;
use rate_control::ledger::{SlotId, SlotRecord};
use rate_control::time::Clock;

/// Rows read at once while starting.
const SCAN_PAGE: usize = 1024;

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The settings do not fit what is stored, or an instance's client cannot be made.
    #[error(transparent)]
    Settings(#[from] NotApplicable),
}

/// What new settings need, made but not in force yet.
struct Renewed {
    dispatchers: BTreeMap<InstanceName, Arc<Dispatcher>>,
    /// Of these, the new ones.
    added: Vec<Arc<Dispatcher>>,
    /// New clients of those that stay.
    clients: Vec<(Arc<Dispatcher>, Arc<dyn Upstream>)>,
    /// What the new ones took over from a time when they were there before.
    taken_over: Vec<Write>,
}

/// Everything derived from the records.
#[derive(Default)]
struct Derived {
    occupancy: Occupancy,
    aliases: Aliases,
    lines: BTreeMap<InstanceName, RecoveredLine>,
    away: Away,
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
        mut entropy: Entropy,
    ) -> Result<Arc<Self>, OpenError> {
        let watched = Arc::new(Watched::new(store, Arc::clone(&clock)));
        let store: Arc<dyn Store> = Arc::clone(&watched) as _;
        // Told from the start, not at the first commit.
        watched.look();
        let versions = Versions::new(entropy.fork());
        let epoch = feed_epoch(&*store, &versions, &mut entropy).await?;
        let feed = Feed::open(&*store, epoch).await.map_err(StoreError::from)?;
        let derived = derive(&*store, &settings, clock.now()).await?;
        let missing: Vec<String> = derived.occupancy.instances().filter(|name| !settings.instances.contains_key(*name)).map(|name| {
            format!("instances.{name}: {} device records refer to this instance, so it cannot be missing; set draining = true instead", derived.occupancy.filled(name))
        }).collect();
        if !missing.is_empty() {
            return Err(NotApplicable(missing).into());
        }
        let scopes = read_scopes(&*store, &settings).await.map_err(StoreError::from)?;
        let moved: Vec<String> = scopes.iter().filter_map(|scope| scope.problem(&derived.occupancy)).collect();
        if !moved.is_empty() {
            return Err(NotApplicable(moved).into());
        }
        match remember_scopes(&*store, &versions, scopes).await {
            // A read-only store still serves what it has, and takes no new devices that would have to be remembered.
            Ok(()) | Err(CommitError::ReadOnly(_)) => {}
            Err(error) => return Err(StoreError::from(error).into()),
        }
        let repeat = RepeatGuard::new(fixed.repeat_burst, fixed.repeat_interval, entropy.next_u64());
        let settings_mark = entropy.next_u64();
        let flights = super::register::Flights::begin(clock.now().mono, settings_mark);
        let gateway = Arc::new(Self {
            store,
            watched,
            versions,
            clock,
            connect,
            settings: ArcSwap::from_pointee(settings),
            applying: tokio::sync::Mutex::new(()),
            dispatchers: ArcSwap::from_pointee(BTreeMap::new()),
            occupancy: Mutex::new(derived.occupancy),
            aliases: RwLock::new(derived.aliases),
            feed,
            waiters: Waiters::new(fixed.parked_max),
            repeat,
            settings_mark: AtomicU64::new(settings_mark),
            flights,
            away: Mutex::new(derived.away),
            claims: Mutex::default(),
            agreed_time: super::clock::Agreed::default(),
            entropy: Mutex::new(entropy),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            supervisor: Arc::default(),
            unwritten: AtomicU64::new(0),
            runtime: tokio::runtime::Handle::current(),
        });
        gateway.start(derived.lines).await?;
        Ok(gateway)
    }

    async fn start(self: &Arc<Self>, mut lines: BTreeMap<InstanceName, RecoveredLine>) -> Result<(), OpenError> {
        let settings = self.settings();
        let mut left = read_left(&*self.store, &settings, &*self.clock).await?;
        let (mut problems, mut taken_over) = (Vec::new(), Vec::new());
        let mut dispatchers = BTreeMap::new();
        for name in settings.instances.keys() {
            match self.make_dispatcher(&settings, name, left.remove(name).unwrap_or_default()) {
                Ok((dispatcher, slots)) => {
                    taken_over.extend(slots);
                    dispatchers.insert(name.clone(), Arc::new(dispatcher));
                }
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(NotApplicable(problems).into());
        }
        self.write_taken_over(&taken_over).await?;
        self.dispatchers.store(Arc::new(dispatchers.clone()));
        for (name, dispatcher) in dispatchers {
            self.take_over(&dispatcher, lines.remove(&name).unwrap_or_default());
            self.spawn_clock(Arc::clone(&dispatcher));
            self.spawn_dispatcher(dispatcher);
        }
        self.spawn_kept(Task::new(FEED_PRUNING), Self::prune_feed);
        self.spawn_kept(Task::new(STORE_WATCH), Self::watch_store);
        self.spawn_kept(Task::new(RELIEF), Self::relieve_sick_instances);
        Ok(())
    }

    /// That nobody waits for the earlier process's answers any more is on disk before anything is sent.
    async fn write_taken_over(&self, slots: &[Write]) -> Result<(), StoreError> {
        for some in slots.chunks(MAX_WRITES) {
            match self.store.commit(self.versions.commit(some.to_vec())).await {
                // Nothing is sent from a read-only store.
                Ok(_) | Err(CommitError::ReadOnly(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The dispatcher of an instance, and the writes that have to be on disk before it sends anything: what it took over.
    fn make_dispatcher(
        &self,
        settings: &Settings,
        name: &InstanceName,
        mut left: RecoveryState,
    ) -> Result<(Dispatcher, Vec<Write>), String> {
        let instance = settings.instances.get(name).ok_or_else(|| format!("there is no instance {name}"))?;
        let upstream = self.connect.connect(name, instance, &settings.registration)?;
        let (boot, now) = (self.clock.boot_id(), self.now().mono);
        let mut changed = Vec::new();
        for (slot, record) in &mut left.slots {
            if let Some(taken_over) = record.taken_over(&boot, now) {
                *record = taken_over;
                changed.push((*slot, record.clone()));
            }
        }
        let rules = (&settings.line, &settings.registration);
        let line = Line::new(instance, rules, Fairness::of(settings, name), left, &boot, now);
        let dispatcher = Dispatcher::new(name.clone(), line, upstream, settings.registration.connections_max);
        let writes = changed.iter().map(|(slot, record)| dispatcher.slot_write(*slot, Some(record))).collect();
        Ok((dispatcher, writes))
    }

    /// Puts everybody back where an earlier process left them.
    fn take_over(self: &Arc<Self>, dispatcher: &Arc<Dispatcher>, left: RecoveredLine) {
        let now = self.now().mono;
        let mut line = dispatcher.line.lock();
        left.all_given().for_each(|place| line.seen(place));
        let mut shortest = BTreeMap::new();
        for RecoveredPlace { place, tenant, id, ago, what } in left.into_ordered() {
            // Who stands behind another one joined no earlier, whatever a clock that was set in between says.
            let shortest = shortest.entry(place.class).or_insert(ago);
            *shortest = ago.min(*shortest);
            let ago = *shortest;
            match what {
                RecoveredStage::Waiting { not_before } => {
                    line.restore(&tenant, place, id, JobKind::Register, ago, now);
                    if let Some(not_before) = not_before {
                        line.defer(&tenant, place, not_before);
                    }
                }
                RecoveredStage::UnknownOutcome => line.restore(&tenant, place, id, JobKind::Lookup, ago, now),
                RecoveredStage::Operation(operation_id) => {
                    line.adopt(&tenant, place, id.clone(), ago, now);
                    self.spawn_poll(Arc::clone(dispatcher), id, place, operation_id);
                }
            }
        }
    }

    /// Applies new settings whole, or none of them: rates, bursts, bounds, weights, draining and enrollments at once, in mid-storm,
    /// without losing a place. Remembered refusals are dropped, as the change may have mended their cause.
    ///
    /// # Errors
    /// [`NotApplicable`] with every reason; the old settings stay in force.
    pub async fn apply(self: &Arc<Self>, new: Settings) -> Result<(), NotApplicable> {
        let _one_at_a_time = self.applying.lock().await;
        let old = self.settings();
        if *old == new {
            self.forget_refusals();
            return Ok(());
        }
        check_applicable(&self.occupancy.lock(), &old, &new)?;
        let Renewed { dispatchers, added, clients, taken_over } = self.renew_dispatchers(&old, &new).await?;
        self.remember_scopes_of(&new).await?;
        self.write_taken_over(&taken_over).await.map_err(|error| NotApplicable(vec![error.to_string()]))?;
        let (new, dispatchers, before) = (Arc::new(new), Arc::new(dispatchers), self.dispatchers.load_full());
        let applicable = {
            // Asked again, as devices were placed meanwhile: they are placed by the settings in force under this lock.
            let occupancy = self.occupancy.lock();
            let applicable = check_applicable(&occupancy, &old, &new);
            if applicable.is_ok() {
                self.settings.store(Arc::clone(&new));
                self.dispatchers.store(Arc::clone(&dispatchers));
            }
            applicable
        };
        if let Err(problems) = applicable {
            let _ = self.remember_scopes_of(&old).await;
            return Err(problems);
        }
        for (dispatcher, client) in clients {
            *dispatcher.upstream.write() = client;
            if peer_changed(&old, &new, &dispatcher.name) {
                // Whoever answers there may have another clock.
                *dispatcher.dps_clock.lock() = DpsClock::default();
            }
        }
        let now = self.now();
        for (name, instance) in &new.instances {
            if let Some(dispatcher) = dispatchers.get(name) {
                dispatcher.configure(instance, &new, now.mono);
            }
        }
        for (name, dispatcher) in before.iter() {
            if !dispatchers.contains_key(name) {
                dispatcher.removed.cancel();
            }
        }
        self.forget_refusals();
        for dispatcher in added {
            self.spawn_clock(Arc::clone(&dispatcher));
            self.spawn_dispatcher(dispatcher);
        }
        self.look_at_clocks();
        self.dispatchers.load().values().for_each(|dispatcher| dispatcher.bell.notify_one());
        Ok(())
    }

    /// The ID scopes are on disk before a record can refer to them.
    async fn remember_scopes_of(&self, settings: &Settings) -> Result<(), NotApplicable> {
        let refused = |error: StoreError| NotApplicable(vec![error.to_string()]);
        let scopes = read_scopes(&*self.store, settings).await.map_err(|error| refused(error.into()))?;
        remember_scopes(&*self.store, &self.versions, scopes).await.map_err(|error| refused(error.into()))
    }

    /// Whoever applies settings, changed or not, may have mended what DPS refused devices for.
    fn forget_refusals(&self) {
        let mark = self.entropy.lock().next_u64();
        self.settings_mark.store(mark, Ordering::Relaxed);
    }

    /// The dispatchers for `new`: kept where the instance stays (with a new client if its connection changed), made where it is new.
    async fn renew_dispatchers(&self, old: &Settings, new: &Settings) -> Result<Renewed, NotApplicable> {
        let current = self.dispatchers.load_full();
        let mut left =
            read_left(&*self.store, new, &*self.clock).await.map_err(|error| NotApplicable(vec![error.to_string()]))?;
        let mut dispatchers = BTreeMap::new();
        let (mut added, mut clients, mut taken_over, mut problems) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (name, instance) in &new.instances {
            if let Some(dispatcher) = current.get(name) {
                dispatchers.insert(name.clone(), Arc::clone(dispatcher));
                if connection_changed(old, new, name) {
                    match self.connect.connect(name, instance, &new.registration) {
                        Ok(client) => clients.push((Arc::clone(dispatcher), client)),
                        Err(problem) => problems.push(problem),
                    }
                }
                continue;
            }
            match self.make_dispatcher(new, name, left.remove(name).unwrap_or_default()) {
                Ok((dispatcher, slots)) => {
                    // Devices that wait elsewhere since it was here before have places that are given to no other.
                    self.away.lock().places_at(name).for_each(|place| dispatcher.line.lock().seen(place));
                    let dispatcher = Arc::new(dispatcher);
                    dispatchers.insert(name.clone(), Arc::clone(&dispatcher));
                    added.push(dispatcher);
                    taken_over.extend(slots);
                }
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(NotApplicable(problems));
        }
        Ok(Renewed { dispatchers, added, clients, taken_over })
    }

    /// Notices what becomes of the store while nobody writes.
    async fn watch_store(self: Arc<Self>) {
        const EVERY: std::time::Duration = std::time::Duration::from_secs(1);
        loop {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            self.watched.look();
        }
    }

    /// Keeps the change feed within its retention.
    async fn prune_feed(self: Arc<Self>) {
        const EVERY: std::time::Duration = std::time::Duration::from_secs(60);
        loop {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            let settings = self.settings();
            loop {
                match self.feed.prune(&*self.store, &self.versions, &settings.feed, self.now()).await {
                    Ok(pruned) if pruned == crate::feed::PAGE && !self.is_stopping() => {}
                    Ok(_) => break,
                    Err(error) => {
                        tracing::warn!(%error, "the change feed could not be pruned; trying again in a minute");
                        break;
                    }
                }
            }
        }
    }
}

fn check_applicable(occupancy: &Occupancy, old: &Settings, new: &Settings) -> Result<(), NotApplicable> {
    let mut problems = Vec::new();
    for (name, before) in &old.instances {
        let filled = occupancy.filled(name);
        match new.instances.get(name) {
            None if filled > 0 => problems.push(format!(
                "instances.{name}: {filled} device records refer to this instance, so it cannot be removed; set draining = true instead"
            )),
            Some(after) if after.id_scope != before.id_scope && filled > 0 => problems.push(format!(
                "instances.{name}.id_scope: {filled} device records refer to this instance, so its ID scope cannot change; add another instance"
            )),
            None | Some(_) => {}
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(NotApplicable(problems)) }
}

/// Whether another DPS may answer at the instance from now on.
fn peer_changed(old: &Settings, new: &Settings, name: &InstanceName) -> bool {
    let peer = |settings: &Settings| {
        settings.instances.get(name).map(|instance| (instance.id_scope.clone(), instance.endpoint.clone()))
    };
    peer(old) != peer(new)
}

fn connection_changed(old: &Settings, new: &Settings, name: &InstanceName) -> bool {
    let of = |settings: &Settings| {
        settings
            .instances
            .get(name)
            .map(|instance| (instance.id_scope.clone(), instance.endpoint.clone(), instance.extra_ca_pem.clone()))
    };
    let http = |settings: &Settings| {
        let registration = &settings.registration;
        (
            registration.api_version.clone(),
            registration.connect_timeout,
            registration.request_timeout,
            registration.upstream_max_delay,
            registration.idle_connections_max,
            registration.idle_timeout,
        )
    };
    of(old) != of(new) || http(old) != http(new)
}

/// Made once per store, so that event numbers of another store are told apart.
async fn feed_epoch(store: &dyn Store, versions: &Versions, entropy: &mut Entropy) -> Result<String, StoreError> {
    let key = Key::new(Table::Meta, "feed-epoch");
    if let Some(stored) = store.get(&key).await? {
        return Ok(String::from_utf8_lossy(&stored.value).into_owned());
    }
    let epoch = format!("{:016x}", entropy.next_u64());
    let write = Write::put(key, Expect::Absent, epoch.clone());
    match store.commit(versions.commit(vec![write])).await {
        Ok(_) => Ok(epoch),
        // A read-only store still serves what it has; numbers of this run are then valid for this run alone.
        Err(CommitError::ReadOnly(_)) => Ok(epoch),
        Err(error) => Err(error.into()),
    }
}

/// The ID scope of an instance, and the one it had when records could last come to refer to it.
struct Scope {
    name: InstanceName,
    configured: IdScope,
    stored: Option<Stored>,
}

impl Scope {
    fn changed(&self) -> bool {
        self.stored.as_ref().is_none_or(|stored| stored.value != self.configured.as_str().as_bytes())
    }

    fn problem(&self, occupancy: &Occupancy) -> Option<String> {
        let (name, filled) = (&self.name, occupancy.filled(&self.name));
        let stored = self.stored.as_ref().filter(|_| filled > 0 && self.changed())?;
        let before = String::from_utf8_lossy(&stored.value);
        Some(format!(
            "instances.{name}.id_scope: {filled} device records refer to this instance with ID scope {before}, so it cannot change; add another instance"
        ))
    }
}

fn scope_key(name: &InstanceName) -> Key {
    Key::new(Table::Meta, format!("id-scope/{name}"))
}

async fn read_scopes(store: &dyn Store, settings: &Settings) -> Result<Vec<Scope>, ReadError> {
    let mut scopes = Vec::with_capacity(settings.instances.len());
    for (name, instance) in &settings.instances {
        let stored = store.get(&scope_key(name)).await?;
        scopes.push(Scope { name: name.clone(), configured: instance.id_scope.clone(), stored });
    }
    Ok(scopes)
}

async fn remember_scopes(store: &dyn Store, versions: &Versions, scopes: Vec<Scope>) -> Result<(), CommitError> {
    let writes: Vec<Write> = scopes
        .into_iter()
        .filter(Scope::changed)
        .map(|scope| Write::put(scope_key(&scope.name), Expect::Any, scope.configured.as_str().to_owned()))
        .collect();
    if writes.is_empty() { Ok(()) } else { store.commit(versions.commit(writes)).await.map(|_| ()) }
}

/// What an earlier process left of the instances' lines, besides the places.
async fn read_left(
    store: &dyn Store,
    settings: &Settings,
    clock: &dyn Clock,
) -> Result<BTreeMap<InstanceName, RecoveryState>, StoreError> {
    let mut slots = read_ledger(store).await?;
    let (boot, now) = (clock.boot_id(), clock.now());
    let mut left = BTreeMap::new();
    for name in settings.instances.keys() {
        let RecoveredLimits { limit, paused_until } = recovered_limits::read(store, name, settings, &boot, now).await?;
        let slots = slots.remove(name).unwrap_or_default();
        left.insert(name.clone(), RecoveryState { slots, limit, paused_until });
    }
    Ok(left)
}

async fn read_ledger(store: &dyn Store) -> Result<BTreeMap<InstanceName, Vec<(SlotId, SlotRecord)>>, StoreError> {
    let mut slots: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let rows = store.scan(Table::Ledger, after.as_deref(), SCAN_PAGE).await?;
        let Some(last) = rows.last() else { return Ok(slots) };
        after = Some(last.name.clone());
        for row in rows {
            let record = serde_json::from_slice(&row.stored.value);
            let (Some((instance, slot)), Ok(record)) = (slot_of(&row.name), record) else {
                let detail = "a ledger slot cannot be read; wait two minutes, then remove the Ledger rows".to_owned();
                return Err(ReadError::Corrupt { table: Table::Ledger, detail }.into());
            };
            slots.entry(instance).or_default().push((slot, record));
        }
    }
}

async fn derive(store: &dyn Store, settings: &Settings, now: rate_control::time::Now) -> Result<Derived, StoreError> {
    let mut derived = Derived::default();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let rows = store.scan(Table::Device, after.as_deref(), SCAN_PAGE).await?;
        let Some(last) = rows.last() else { return Ok(derived) };
        after = Some(last.name.clone());
        for row in &rows {
            let Versioned { record, .. } = Record::decode(&row.stored)
                .map_err(|error| error.into_read_error(&String::from_utf8_lossy(&row.name)))?;
            derived.add(&record, settings, now);
        }
    }
}

impl Derived {
    fn add(&mut self, record: &Record, settings: &Settings, now: rate_control::time::Now) {
        let effects = Effects::of_new(record);
        self.occupancy.follow(None, Some(record.footprint()), None);
        self.aliases.follow(&effects);
        self.away.follow(&effects);
        let Some(pending) = record.pending() else { return };
        let what = match &pending.stage {
            Stage::Waiting => {
                let begun = record.last_registration_begun();
                RecoveredStage::Waiting { not_before: suspect_not_before(begun, pending.reason, settings, now) }
            }
            Stage::Sent { .. } => RecoveredStage::UnknownOutcome,
            Stage::Assigning { operation_id, .. } => RecoveredStage::Operation(operation_id.clone()),
        };
        if let Some(home) = &pending.home {
            self.lines.entry(home.instance.clone()).or_default().given(home.place);
        }
        let (id, tenant) = (record.registration_id().clone(), record.tenant().clone());
        let (place, ago) = (pending.place, pending.joined_at.age(now));
        let line = self.lines.entry(pending.instance.clone()).or_default();
        line.add(RecoveredPlace { place, tenant, id, ago, what });
    }
}
