//! The owner of the lines: dispatches them, and answers whoever asks of them.
//!
//! Only this folder locks lines. Everybody else knows them by [`LineOwner`](crate::line_owner::LineOwner), which [`Lines`] implements for
//! the process that they are in.
//!
//! The parts, each knowing only those named before it: `dispatcher` (everything of one instance), `away` (devices that wait elsewhere while
//! theirs fails), `wait_explanation` (why a device waits), `lines` (all dispatchers, and the answers), `recovered_places` and
//! `recovered_limits` (what an earlier process left, and what is kept for the next one), `orphans` (sends of earlier owners), `clock` (what DPS's clocks read), `register` (one
//! registration, from departure to its end), `dispatch` (who goes next), `relief` (instances that fail), `takeover` (what is there at
//! start).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::base::task_names::{ORPHANS, RELIEF};
use crate::base::{Base, NotApplicable, OpenError, StoreError};
use crate::dps_clock::DpsClock;
use crate::ids::InstanceName;
use crate::joining::Joining;
use crate::ownership::Predecessors;
use crate::records::Records;
use crate::settings::Settings;
use crate::supervise::Task;
use crate::upstream::{Connect, Upstream};

mod away;
mod clock;
mod dispatch;
mod dispatcher;
mod lines;
mod orphans;
mod recovered_limits;
mod recovered_places;
mod register;
mod relief;
mod takeover;
mod wait_explanation;

use clock::Clocks;
use dispatch::Dispatch;
use dispatcher::Dispatcher;
pub(crate) use lines::Lines;
use orphans::follow_orphans;
use register::Attempts;
use relief::Relief;
pub(crate) use takeover::Recovered;
use takeover::{make_dispatcher, raise_sequences, read_left, take_over, write_taken_over};

/// The work of the owner of all lines of this process.
#[derive(Debug)]
pub(crate) struct Owner {
    base: Arc<Base>,
    connect: Arc<dyn Connect>,
    lines: Arc<Lines>,
    dispatch: Dispatch,
    relief: Relief,
}

/// What new settings need, made but not in force yet.
pub(crate) struct Renewed {
    dispatchers: Arc<BTreeMap<InstanceName, Arc<Dispatcher>>>,
    /// Of these, the new ones.
    added: Vec<Arc<Dispatcher>>,
    /// New clients of those that stay.
    clients: Vec<(Arc<Dispatcher>, Arc<dyn Upstream>)>,
    /// Those that there were.
    before: Arc<BTreeMap<InstanceName, Arc<Dispatcher>>>,
}

impl Owner {
    /// The lines of this process, before anybody is in them.
    pub(crate) fn lines(base: &Arc<Base>, recovered: &mut Recovered) -> Lines {
        Lines::new(Arc::clone(base), std::mem::take(&mut recovered.away))
    }

    /// The owner of `lines`, in which nobody is served yet.
    pub(crate) fn new(
        base: &Arc<Base>,
        connect: Arc<dyn Connect>,
        lines: &Arc<Lines>,
        records: &Arc<Records>,
        joining: &Arc<Joining>,
    ) -> Self {
        let clocks = Clocks::new(Arc::clone(base), Arc::clone(lines));
        let attempts = Attempts::new(Arc::clone(base), Arc::clone(records), clocks.clone(), Arc::clone(lines));
        let dispatch = Dispatch::new(Arc::clone(base), Arc::clone(records), clocks, attempts);
        let relief = Relief::new(Arc::clone(base), Arc::clone(lines), Arc::clone(records), Arc::clone(joining));
        Self { base: Arc::clone(base), connect, lines: Arc::clone(lines), dispatch, relief }
    }

    /// Takes over what an earlier process left, and starts one dispatcher per instance.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was started then.
    pub(crate) async fn start(&self, recovered: Recovered) -> Result<(), OpenError> {
        raise_sequences(&self.base, &recovered).await?;
        let (settings, mut places) = (self.base.settings(), recovered.lines);
        let mut left = read_left(&*self.base.store, &settings, &*self.base.clock).await?;
        let (mut problems, mut taken_over) = (Vec::new(), Vec::new());
        let mut dispatchers = BTreeMap::new();
        for name in settings.instances.keys() {
            let left = left.remove(name).unwrap_or_default();
            match make_dispatcher(&self.base, &*self.connect, &settings, name, left) {
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
        write_taken_over(&self.base, &taken_over).await?;
        self.lines.put_in_force(Arc::new(dispatchers.clone()));
        for (name, dispatcher) in dispatchers {
            take_over(&self.base, &self.dispatch, &dispatcher, places.remove(&name).unwrap_or_default());
            self.dispatch.spawn_clock(Arc::clone(&dispatcher));
            self.dispatch.spawn_dispatcher(dispatcher);
        }
        if let Predecessors::MayLive(_) = self.base.ownership.predecessors() {
            let (base, lines) = (Arc::clone(&self.base), Arc::clone(&self.lines));
            let follow = move || follow_orphans(Arc::clone(&base), Arc::clone(&lines));
            self.base.spawn_kept(Task::new(ORPHANS), follow);
        }
        let relief = self.relief.clone();
        self.base.spawn_kept(Task::new(RELIEF), move || relief.clone().relieve_sick_instances());
        Ok(())
    }

    /// Makes what `new` settings need: a dispatcher where an instance is new, a client where a connection changed.
    ///
    /// # Errors
    /// [`NotApplicable`] with every reason.
    pub(crate) async fn renew(&self, old: &Settings, new: &Settings) -> Result<Renewed, NotApplicable> {
        let refused = |error: StoreError| NotApplicable(vec![error.to_string()]);
        let before = self.lines.all();
        let mut left = read_left(&*self.base.store, new, &*self.base.clock).await.map_err(refused)?;
        let mut dispatchers = BTreeMap::new();
        let (mut added, mut clients, mut taken_over, mut problems) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (name, instance) in &new.instances {
            if let Some(dispatcher) = before.get(name) {
                dispatchers.insert(name.clone(), Arc::clone(dispatcher));
                if connection_changed(old, new, name) {
                    match self.connect.connect(name, instance, &new.registration) {
                        Ok(client) => clients.push((Arc::clone(dispatcher), client)),
                        Err(problem) => problems.push(problem),
                    }
                }
                continue;
            }
            match make_dispatcher(&self.base, &*self.connect, new, name, left.remove(name).unwrap_or_default()) {
                Ok((dispatcher, slots)) => {
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
        write_taken_over(&self.base, &taken_over).await.map_err(refused)?;
        Ok(Renewed { dispatchers: Arc::new(dispatchers), added, clients, before })
    }

    /// From now on there are these lines. Waits for nothing, so that it can be done in the moment in which the settings come into force.
    pub(crate) fn put_in_force(&self, renewed: &Renewed) {
        self.lines.put_in_force(Arc::clone(&renewed.dispatchers));
    }

    /// The lines follow the settings that have come into force.
    pub(crate) fn follow_settings(&self, renewed: Renewed, old: &Settings, new: &Settings) {
        let Renewed { dispatchers, added, clients, before } = renewed;
        for (dispatcher, client) in clients {
            *dispatcher.upstream.write() = client;
            if peer_changed(old, new, &dispatcher.name) {
                // Whoever answers there may have another clock.
                *dispatcher.dps_clock.lock() = DpsClock::default();
            }
        }
        let now = self.base.now();
        for (name, instance) in &new.instances {
            if let Some(dispatcher) = dispatchers.get(name) {
                dispatcher.configure(instance, new, now.mono);
            }
        }
        for (name, dispatcher) in before.iter() {
            if !dispatchers.contains_key(name) {
                dispatcher.removed.cancel();
            }
        }
        for dispatcher in added {
            self.dispatch.spawn_clock(Arc::clone(&dispatcher));
            self.dispatch.spawn_dispatcher(dispatcher);
        }
        self.base.agreed_time.look_at_clocks();
        dispatchers.values().for_each(|dispatcher| dispatcher.bell.notify_one());
    }
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
