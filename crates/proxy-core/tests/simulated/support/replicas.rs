//! Several gateways on one store, each a process on a machine of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use proxy_core::base::{OpenError, Stopped};
use proxy_core::gateway::{Fixed, Gateway};
use proxy_core::ids::{InstanceName, LeaseName, ReplicaName};
use proxy_core::ownership::LeaseTimes;
use proxy_core::place::Sequence;
use proxy_core::replica::{Parts, Replica};
use proxy_core::settings::Settings;
use proxy_core::store::memory::MemoryStore;
use proxy_core::store::{
    Commit, CommitError, Health, Key, Lease, LeaseChange, LeaseError, LeaseOwner, OwnerId, ReadError, Row, Store,
    Stored, Table,
};
use rate_control::entropy::Entropy;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::clock::TestClock;
use super::dps::{Dps, Network, Process};
use super::seconds;

const DRAIN: Duration = Duration::from_secs(5);

/// A process's way to the store: nothing gets through while it is stopped.
#[derive(Debug)]
struct Door {
    process: Arc<Process>,
    store: Arc<MemoryStore>,
}

impl Door {
    /// What is asked goes out before the process is stopped or after, and what comes back is heard when it goes on.
    fn through<'a, T: Send + 'a>(&'a self, asked: impl Future<Output = T> + Send + 'a) -> BoxFuture<'a, T> {
        async move {
            self.process.goes_on().await;
            let answer = asked.await;
            self.process.goes_on().await;
            answer
        }
        .boxed()
    }
}

impl Store for Door {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, ReadError>> {
        self.through(self.store.get(key))
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Vec<Sequence>, CommitError>> {
        self.through(self.store.commit(commit))
    }

    fn lease<'a>(&'a self, name: &'a LeaseName) -> BoxFuture<'a, Result<Option<Lease>, ReadError>> {
        self.through(self.store.lease(name))
    }

    fn change_lease<'a>(
        &'a self,
        name: &'a LeaseName,
        change: LeaseChange,
    ) -> BoxFuture<'a, Result<Lease, LeaseError>> {
        self.through(self.store.change_lease(name, change))
    }

    fn is_exclusive(&self) -> bool {
        self.store.is_exclusive()
    }

    fn raise_sequence<'a>(&'a self, line: &'a InstanceName, next: Sequence) -> BoxFuture<'a, Result<(), CommitError>> {
        self.through(self.store.raise_sequence(line, next))
    }

    fn scan<'a>(
        &'a self,
        table: Table,
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Row>, ReadError>> {
        self.through(async move {
            self.process.may_scan().await;
            self.store.scan(table, after, limit).await
        })
    }

    fn last(&self, table: Table) -> BoxFuture<'_, Result<Option<Row>, ReadError>> {
        self.through(self.store.last(table))
    }

    fn health(&self) -> Health {
        self.store.health()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.store.close()
    }
}

/// One process.
pub(crate) struct Member {
    pub(crate) process: Arc<Process>,
    pub(crate) replica: Arc<Replica>,
    store: Arc<MemoryStore>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<Option<Stopped>, OpenError>>,
}

/// The gateways, and what they share.
pub(crate) struct Replicas {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) instances: BTreeMap<InstanceName, Arc<Dps>>,
    settings: Settings,
    members: Mutex<Vec<Option<Member>>>,
    starts: Mutex<u32>,
    seed: u64,
}

impl Replicas {
    /// As many replicas as `count`, in front of the instances of `settings`.
    pub(crate) fn start(settings: Settings, count: usize, seed: u64) -> Arc<Self> {
        let instances = settings.instances.keys().zip(0..).map(|(name, number)| {
            (name.clone(), Dps::new(seed * 1000 + number, &format!("hub-{name}.azure-devices.net")))
        });
        let this = Arc::new(Self {
            store: Arc::new(MemoryStore::shared()),
            instances: instances.collect(),
            settings,
            members: Mutex::new((0..count).map(|_| None).collect()),
            starts: Mutex::new(0),
            seed,
        });
        (0..count).for_each(|member| this.begin(member));
        this
    }

    pub(crate) fn dps(&self, instance: &str) -> &Arc<Dps> {
        &self.instances[&super::name(instance)]
    }

    /// Starts the process of a member, on a machine that has just booted.
    pub(crate) fn begin(&self, member: usize) {
        let number = {
            let mut starts = self.starts.lock();
            *starts += 1;
            *starts
        };
        let process = Arc::new(Process::default());
        let clock = Arc::new(TestClock::of_machine(10 + number, seconds(u64::from(number) * 977)));
        let store = Arc::new(self.store.handle());
        let mut entropy = Entropy::from_seed(self.seed * 1000 + u64::from(number));
        let owner = LeaseOwner {
            id: OwnerId::random(&mut entropy),
            replica: ReplicaName::parse(&format!("replica-{member}")).unwrap(),
        };
        let parts = Parts {
            store: Arc::new(Door { process: Arc::clone(&process), store: Arc::clone(&store) }),
            clock: clock as _,
            connect: Arc::new(Network { process: Arc::clone(&process), instances: self.instances.clone() }),
            fixed: Fixed { parked_max: 1000, repeat_burst: 5, repeat_interval: seconds(1) },
            entropy,
        };
        let replica = Arc::new(Replica::new(parts, owner, LeaseTimes::default(), self.settings.clone()));
        let (stop, stopped) = oneshot::channel::<()>();
        let running = {
            let replica = Arc::clone(&replica);
            tokio::spawn(async move { replica.run(async { drop(stopped.await) }, DRAIN).await })
        };
        let begun = Member { process, replica, store, stop: Some(stop), running };
        self.members.lock()[member] = Some(begun);
    }

    /// Which member is active, by its own account, and its gateway. A member that is stopped is not asked.
    pub(crate) fn active(&self) -> Option<(usize, Arc<Gateway>)> {
        let members = self.members.lock();
        let living = members.iter().enumerate().filter_map(|(number, member)| Some((number, member.as_ref()?)));
        let mut active = living.filter(|(_, member)| !member.process.is_stopped());
        active.find_map(|(number, member)| Some((number, member.replica.active()?)))
    }

    /// Waits until a member is active.
    pub(crate) async fn until_active(&self) -> (usize, Arc<Gateway>) {
        loop {
            if let Some(active) = self.active() {
                return active;
            }
            super::sleep(super::millis(100)).await;
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(&self, member: usize) {
        let Some(killed) = self.members.lock()[member].take() else { return };
        killed.process.kill();
        killed.store.kill();
        killed.running.abort();
        if let Some(gateway) = killed.replica.active() {
            // Ends the loops of what is left of it.
            gateway.begin_stop();
        }
    }

    /// The process waits for what it reads in pages.
    pub(crate) fn hold_scans(&self, member: usize) {
        if let Some(member) = &self.members.lock()[member] {
            member.process.hold_scans(true);
        }
    }

    /// `SIGSTOP`, and `SIGCONT`.
    pub(crate) fn stop(&self, member: usize, stopped: bool) {
        if let Some(member) = &self.members.lock()[member] {
            member.process.stop(stopped);
        }
    }

    /// `SIGTERM`: returns when the process has ended.
    pub(crate) async fn terminate(&self, member: usize) -> Result<Option<Stopped>, OpenError> {
        let Some(mut ended) = self.members.lock()[member].take() else { return Ok(None) };
        if let Some(stop) = ended.stop.take() {
            let _ = stop.send(());
        }
        ended.running.await.unwrap()
    }
}
