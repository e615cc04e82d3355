//! The world of one run: the gateway's process, its machine, its disk, the network, the devices, and what befalls them.
//!
//! Invariants:
//! - One process at a time. It is killed by killing its disk and its network first: what is left of it can neither read, nor write, nor
//!   call anybody, and devices never hear its last words.
//! - What befalls the world comes one after the other, from one task.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proxy_core::device::Record;
use proxy_core::gateway::{Gateway, Surroundings};
use proxy_core::ids::{InstanceName, RegistrationId};
use proxy_core::line_owner::LineOwner;
use proxy_core::ownership::Ownership;
use proxy_core::store::Table;
use proxy_core::store::memory::Failure;
use rate_control::entropy::Entropy;

use crate::clock::SimClock;
use crate::delay::Delay;
use crate::dice::Dice;
use crate::disk::{self, Disk, Slow};
use crate::far_owner::FarOwner;
use crate::log::{Event, Kept, Log};
use crate::mutant::Mutant;
use crate::network::{Network, Process, Site};
use crate::scenario::{Occasion, Scenario};
use crate::settings::{fixed, settings};

/// How long whoever runs the service waits before starting it again after it could not start.
const START_AGAIN: Duration = Duration::from_secs(2);

/// How often the lengths of the lines are written down.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);

/// A process that serves.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) process: Arc<Process>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) mutant: Option<Mutant>,
    /// True time, which all machines' clocks know; and the clocks of the first one.
    pub(crate) clock: Arc<SimClock>,
    machines: Vec<Arc<SimClock>>,
    pub(crate) log: Arc<Log>,
    sites: BTreeMap<InstanceName, Arc<Site>>,
    /// How long the way to the owner of the lines takes, if it is far away.
    way_to_owner: Option<Arc<Delay>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    running: Option<Running>,
    disk: Arc<Disk>,
    disk_read_only: bool,
    /// What the operator's file says.
    quotas: BTreeMap<InstanceName, u32>,
    starts: u32,
    /// Registration IDs of devices that hold a 202.
    acknowledged: BTreeSet<String>,
    /// Devices that are still at it.
    busy: usize,
}

impl World {
    pub(crate) fn new(scenario: Scenario, mutant: Option<Mutant>) -> Self {
        let machines: Vec<_> = (0..scenario.machines).map(|machine| Arc::new(SimClock::new(machine))).collect();
        let clock = Arc::clone(&machines[0]);
        let log = Arc::new(Log::new(Arc::clone(&clock)));
        let site = |plan| Arc::new(Site::new(&scenario, plan, &clock, &log));
        let drawn = |wanted: bool, what| wanted.then(|| Arc::new(Delay::new(Dice::new(scenario.seed, what, 0))));
        let way_to_owner = drawn(scenario.slow_owner, "owner");
        let slow = Slow { reads: drawn(scenario.slow_reads, "reads"), acks: drawn(scenario.slow_acks, "acks") };
        let state = State {
            running: None,
            disk: Arc::new(Disk::new(mutant, slow)),
            disk_read_only: false,
            quotas: scenario.instances.iter().map(|plan| (plan.name.clone(), plan.quota)).collect(),
            starts: 0,
            acknowledged: BTreeSet::new(),
            busy: scenario.devices.len(),
        };
        Self {
            sites: scenario.instances.iter().map(|plan| (plan.name.clone(), site(plan))).collect(),
            scenario,
            mutant,
            clock,
            machines,
            log,
            way_to_owner,
            state: Mutex::new(state),
        }
    }

    /// The process that serves now, if one does.
    pub(crate) fn running(&self) -> Option<Running> {
        self.state.lock().running.clone()
    }

    /// Commits that the disk has applied in this life.
    pub(crate) fn commits(&self) -> u64 {
        self.disk().commits()
    }

    /// A device holds a 202.
    pub(crate) fn acknowledged(&self, id: &RegistrationId) {
        self.state.lock().acknowledged.insert(id.to_string());
    }

    /// A device will not ask again.
    pub(crate) fn is_done(&self) {
        self.state.lock().busy -= 1;
    }

    /// The clocks of the machine that the last process started on.
    fn machine(&self) -> &Arc<SimClock> {
        let starts = self.state.lock().starts.max(1) as usize;
        &self.machines[(starts - 1) % self.machines.len()]
    }

    fn disk(&self) -> Arc<Disk> {
        Arc::clone(&self.state.lock().disk)
    }

    pub(crate) fn registration_id(&self, device: usize) -> RegistrationId {
        RegistrationId::parse(&self.scenario.devices[device].hardware_id).expect("it is made here")
    }

    /// Runs from the first start to the end. `begin_fleet` is called once, when a process serves.
    pub(crate) async fn run(self: &Arc<Self>, begin_fleet: impl FnOnce(&Arc<Self>)) {
        let syncing = (!self.scenario.sync_every.is_zero()).then(|| tokio::spawn(Arc::clone(self).sync()));
        self.start().await;
        for (name, quota) in self.state.lock().quotas.clone() {
            self.log.add(Event::Quota { instance: name, quota });
        }
        begin_fleet(self);
        let watching = tokio::spawn(Arc::clone(self).watch());
        for (at, occasion) in self.scenario.occasions.clone() {
            tokio::time::sleep_until(self.clock.at(at)).await;
            self.befall(occasion).await;
        }
        tokio::time::sleep_until(self.clock.at(self.scenario.safety)).await;
        self.heal().await;
        let served = self.wait_until_served().await;
        self.log.add(Event::Over { served });
        watching.abort();
        if let Some(syncing) = syncing {
            syncing.abort();
        }
        self.find_all().await;
        let disk = self.disk();
        self.log.add(Event::Rows { devices: disk.rows(Table::Device), slots: disk.rows(Table::Ledger) });
    }

    async fn sync(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.scenario.sync_every).await;
            self.disk().sync();
        }
    }

    async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SAMPLE_EVERY).await;
            let Some(Running { gateway, .. }) = self.running() else { continue };
            let parked = gateway.parked();
            for view in gateway.instances().await {
                let (waiting, under_way) = (view.line_length, view.under_way);
                self.log.add(Event::Line { instance: view.name, waiting, under_way, parked });
            }
        }
    }

    // --- processes ------------------------------------------------------------------------------------------------

    /// Starts a process, and does not give up.
    async fn start(&self) {
        loop {
            let (number, disk, quotas) = {
                let mut state = self.state.lock();
                state.starts += 1;
                (state.starts, Arc::clone(&state.disk), state.quotas.clone())
            };
            if !self.scenario.sync_every.is_zero() {
                disk.hold();
            }
            let process = Arc::new(Process::new(number));
            let network = Network { process: Arc::clone(&process), sites: self.sites.clone(), mutant: self.mutant };
            let entropy = Entropy::from_seed(Dice::new(self.scenario.seed, "process", number.into()).next());
            let way = self.way_to_owner.clone();
            let between = |owner| match way {
                Some(delay) => Arc::new(FarOwner { owner, delay }) as Arc<dyn LineOwner>,
                None => owner,
            };
            let surroundings = Surroundings {
                store: disk,
                clock: Arc::clone(self.machine()) as _,
                connect: Arc::new(network),
                ownership: Ownership::undisputed(),
            };
            let opened = Gateway::open_before(
                surroundings,
                settings(&self.scenario, &quotas, self.mutant),
                fixed(&self.scenario),
                entropy,
                between,
            );
            match Box::pin(opened).await {
                Ok(gateway) => {
                    self.state.lock().running = Some(Running { gateway, process });
                    self.log.add(Event::Started { process: number });
                    return;
                }
                Err(error) => {
                    self.log.note(format!("process {number} cannot start: {error}"));
                    process.kill();
                    self.renew_disk().await;
                    tokio::time::sleep(START_AGAIN).await;
                }
            }
        }
    }

    /// What was not durable is gone.
    async fn renew_disk(&self) {
        let survivor = self.disk().crash().await;
        let mut state = self.state.lock();
        if state.disk_read_only {
            survivor.set_read_only(true);
        }
        state.disk = Arc::new(survivor);
    }

    /// `kill -9`, or the end of a clean stop.
    async fn end(&self) {
        let Some(Running { gateway, process }) = self.state.lock().running.take() else { return };
        process.kill();
        self.renew_disk().await;
        self.log.add(Event::Ended { process: process.number });
        // Ends the loops of what is left of it.
        gateway.stop(Duration::ZERO).await;
        match self.mutant {
            Some(Mutant::ForgetPlace) => {
                let acknowledged = self.state.lock().acknowledged.clone();
                self.disk().forget_a_place(&acknowledged).await;
            }
            Some(Mutant::ForgetSent) => self.disk().forget_sent().await,
            Some(Mutant::ForgetSlots) => self.disk().forget(Table::Ledger, "").await,
            Some(Mutant::ForgetPause) => self.disk().forget(Table::Meta, "pause/").await,
            _ => {}
        }
        self.find_all().await;
    }

    async fn kill(&self, down: Duration) {
        self.end().await;
        tokio::time::sleep(down).await;
        self.start().await;
    }

    /// Looks up every device on the disk.
    async fn find_all(&self) {
        let disk = self.disk();
        for device in 0..self.scenario.devices.len() {
            let id = self.registration_id(device);
            let stored = disk.peek(&Record::key(&id)).await;
            let sent = stored.as_ref().is_some_and(disk::says_sent);
            let record = stored.and_then(|stored| Record::decode(&stored).ok()).map(|versioned| versioned.record);
            let known = record.is_some() || self.state.lock().acknowledged.contains(id.as_str());
            if known {
                self.log.add(Event::Found { device, kept: record.as_ref().map(kept), sent });
            }
        }
    }

    // --- what befalls -----------------------------------------------------------------------------------------------

    async fn befall(&self, occasion: Occasion) {
        self.log.note(format!("{occasion:?}"));
        match occasion {
            Occasion::Kill { down } => self.kill(down).await,
            Occasion::Reboot { down, uptime } => {
                self.end().await;
                tokio::time::sleep(down).await;
                self.machine().reboot(uptime);
                self.start().await;
            }
            Occasion::Restart { down } => {
                if let Some(Running { gateway, .. }) = self.running() {
                    gateway.stop(Duration::from_secs(2)).await;
                }
                self.kill(down).await;
            }
            Occasion::WallClock { offset_millis } => self.machine().set_wall_offset_millis(offset_millis),
            Occasion::Outage { instance, outage } => self.site(instance).set_outage(outage),
            Occasion::OutageOfAll { outage } => self.sites.values().for_each(|site| site.set_outage(outage)),
            Occasion::Quota { instance, quota } => {
                let name = self.scenario.instances[instance].name.clone();
                self.change_quotas([(name, quota)].into()).await;
            }
            Occasion::RealQuota { instance, percent } => {
                let quota = self.scenario.instances[instance].quota * percent / 100;
                self.site(instance).set_quota(quota.max(1));
            }
            Occasion::DiskReadOnly(read_only) => {
                let mut state = self.state.lock();
                state.disk_read_only = read_only;
                state.disk.set_read_only(read_only);
            }
            Occasion::DiskBusy { commits } => {
                (0..commits).for_each(|_| self.disk().fail_next_commit(Failure::Busy));
            }
            Occasion::DiskFails { applied, kill_after } => {
                self.disk().fail_next_commit(Failure::Failed { applied });
                tokio::time::sleep(kill_after).await;
                self.kill(Duration::ZERO).await;
            }
            Occasion::Hubs { instance, hubs } => self.site(instance).set_hubs(hubs),
            Occasion::Invalidate { device } => self.invalidate(device).await,
            Occasion::Expedite { device } => {
                let Some(Running { gateway, .. }) = self.running() else { return };
                self.log.add(Event::Cause { device, what: "an operator expedites it" });
                if self.mutant == Some(Mutant::NoUrgentShare) {
                    return;
                }
                let done = gateway.expedite(&self.registration_id(device)).await;
                self.log.note(format!("expedited: {}", done.is_ok()));
            }
            Occasion::Move { device, instance } => {
                let Some(Running { gateway, .. }) = self.running() else { return };
                self.log.add(Event::Cause { device, what: "an operator moves it" });
                let target = &self.scenario.instances[instance].name;
                let done = gateway.move_to(&self.registration_id(device), target).await;
                match done {
                    Ok(_) => self.log.add(Event::Moved { device }),
                    Err(_) => self.log.note("not moved".to_owned()),
                }
            }
        }
    }

    async fn invalidate(&self, device: usize) {
        let Some(Running { gateway, .. }) = self.running() else { return };
        self.log.add(Event::Cause { device, what: "a backend contradicts its assignment" });
        let id = self.registration_id(device);
        let done = gateway.invalidate(id.as_str(), None, "hub-404001").await;
        self.log.note(format!("invalidated: {}", done.is_ok()));
    }

    fn site(&self, instance: usize) -> &Site {
        &self.sites[&self.scenario.instances[instance].name]
    }

    /// The operator changes the file. DPS itself gives more before the file asks for it.
    async fn change_quotas(&self, changes: BTreeMap<InstanceName, u32>) {
        let before = self.state.lock().quotas.clone();
        let mut wanted = before.clone();
        wanted.extend(changes);
        let raised = |name: &InstanceName, quota: u32| before.get(name).is_some_and(|&before| quota > before);
        for (name, &quota) in wanted.iter().filter(|&(name, &quota)| raised(name, quota)) {
            if self.scenario.real_quota_is_configured() {
                self.sites[name].raise_quota(quota);
            }
            self.log.add(Event::Quota { instance: name.clone(), quota });
        }
        self.state.lock().quotas = wanted.clone();
        let Some(Running { gateway, .. }) = self.running() else { return };
        match gateway.apply(settings(&self.scenario, &wanted, self.mutant)).await {
            Ok(()) => {
                for (name, &quota) in wanted.iter().filter(|&(name, &quota)| !raised(name, quota)) {
                    self.log.add(Event::Quota { instance: name.clone(), quota });
                }
            }
            Err(error) => {
                self.log.note(format!("the file is refused: {error}"));
                for (name, &quota) in &before {
                    self.log.add(Event::Quota { instance: name.clone(), quota });
                }
                self.state.lock().quotas = before;
            }
        }
    }

    // --- the end ----------------------------------------------------------------------------------------------------

    async fn heal(&self) {
        self.machines.iter().for_each(|machine| machine.set_wall_offset_millis(0));
        self.sites.values().for_each(|site| site.heal());
        {
            let mut state = self.state.lock();
            if std::mem::take(&mut state.disk_read_only) {
                state.disk.set_read_only(false);
            }
        }
        let first = self.scenario.instances.iter().map(|plan| (plan.name.clone(), plan.quota));
        self.change_quotas(first.collect()).await;
        self.log.add(Event::Healed);
    }

    /// Until every device has what it came for, or the bound is over.
    async fn wait_until_served(&self) -> bool {
        let deadline = self.clock.elapsed() + self.scenario.liveness_bound();
        while self.clock.elapsed() < deadline {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let Some(Running { gateway, .. }) = self.running() else { continue };
            let idle = gateway.instances().await.iter().all(|view| view.line_length == 0 && view.under_way == 0);
            if idle && self.state.lock().busy == 0 {
                return true;
            }
        }
        false
    }

    /// Instances whose emulator itself has seen its quota broken.
    pub(crate) fn over_quota(&self) -> Vec<InstanceName> {
        self.sites.iter().filter(|(_, site)| site.over_quota() > 0).map(|(name, _)| name.clone()).collect()
    }

    /// The hubs that DPS has given a device, at whatever instance.
    pub(crate) fn hubs_at_dps(&self, device: usize) -> BTreeSet<String> {
        let id = self.registration_id(device);
        self.sites.values().filter_map(|site| site.hub_of(id.as_str())).collect()
    }
}

fn kept(record: &Record) -> Kept {
    let place = record.pending().map(|pending| {
        let place = format!("{:?} {} of {}", pending.place.class, pending.place.sequence, pending.instance);
        (pending.joined_at.to_string(), place)
    });
    Kept {
        place,
        hub: record.assignment().map(|assignment| assignment.hub.to_string()),
        refused: record.refusal().is_some(),
        timeline: record.timeline().len(),
    }
}
