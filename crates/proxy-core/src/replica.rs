//! The life of one gateway among those that share a store: a standby until the lease of the lines is its own, active until another one takes it,
//! and a standby again.
//!
//! Invariants:
//! - There is a [`Gateway`] while this process is active, one for each epoch, and none otherwise: nothing of what an epoch held in memory outlives it.
//! - The lease is renewed from the moment it is taken, also while the lines are still being read.
//! - It is given back only when nothing of this process is under way any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;

use crate::base::{OpenError, Stopped, StoreError};
use crate::gateway::{Fixed, Gateway, Surroundings};
use crate::ownership::{Contender, LeaseSeen, LeaseTimes, Ownership};
use crate::settings::Settings;
use crate::store::{CommitError, LeaseOwner, Store};
use crate::upstream::Connect;
use rate_control::entropy::Entropy;
use rate_control::time::Clock;

/// Before lines are read again that could not be.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// What a replica works with, whatever it is at the time.
#[derive(Debug)]
pub struct Parts {
    /// Where the records live. It is closed when the replica stops.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How it reaches the DPS instances.
    pub connect: Arc<dyn Connect>,
    /// What does not change while it runs.
    pub fixed: Fixed,
    /// Its chance.
    pub entropy: Entropy,
}

/// One gateway among those that share a store. See the module.
#[derive(Debug)]
pub struct Replica {
    contender: Contender,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    connect: Arc<dyn Connect>,
    fixed: Fixed,
    entropy: Mutex<Entropy>,
    /// Those that the next gateway opens with.
    settings: ArcSwap<Settings>,
    active: ArcSwapOption<Gateway>,
    takeovers: AtomicU64,
}

impl Replica {
    /// A standby that is called `owner`.
    #[must_use]
    pub fn new(parts: Parts, owner: LeaseOwner, times: LeaseTimes, settings: Settings) -> Self {
        let Parts { store, clock, connect, fixed, entropy } = parts;
        Self {
            contender: Contender::new(Arc::clone(&store), Arc::clone(&clock), owner, times),
            store,
            clock,
            connect,
            fixed,
            entropy: Mutex::new(entropy),
            settings: ArcSwap::from_pointee(settings),
            active: ArcSwapOption::empty(),
            takeovers: AtomicU64::new(0),
        }
    }

    /// The gateway, while this replica is active.
    #[must_use]
    pub fn active(&self) -> Option<Arc<Gateway>> {
        self.active.load_full()
    }

    /// What is known here of the lease of the lines.
    #[must_use]
    pub fn lease(&self) -> LeaseSeen {
        self.contender.seen()
    }

    /// How often this replica became active.
    #[must_use]
    pub fn takeovers(&self) -> u64 {
        self.takeovers.load(Ordering::Relaxed)
    }

    /// The next gateway opens with these. The one that is active has to be told itself.
    pub fn keep_settings(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }

    /// Is a standby, and active whenever the lease is its own, until `stop` is ready. Then what is under way ends within `drain`, the lease is given
    /// back, and the store is closed.
    ///
    /// # Errors
    /// If it can never be active as it is: its settings do not fit the records, or the lease is refused. On a store that nobody else has, also
    /// if that cannot be read.
    pub async fn run(&self, stop: impl Future<Output = ()>, drain: Duration) -> Result<Option<Stopped>, OpenError> {
        tokio::pin!(stop);
        let ended = loop {
            let owned = tokio::select! {
                biased;
                () = &mut stop => break Ok(None),
                owned = self.contender.own() => owned,
            };
            let owned = match owned {
                Ok(owned) => owned,
                Err(why) => break Err(StoreError::from(CommitError::Refused(why)).into()),
            };
            let opened = tokio::select! {
                biased;
                () = &mut stop => {
                    self.contender.release(&owned).await;
                    break Ok(None);
                }
                () = self.contender.keep(&owned) => None,
                opened = self.open(&owned) => Some(opened),
            };
            match opened {
                Some(Ok(gateway)) => {
                    self.active.store(Some(Arc::clone(&gateway)));
                    let stops = tokio::select! {
                        biased;
                        () = &mut stop => true,
                        () = self.contender.keep(&owned) => false,
                    };
                    if !stops {
                        tracing::warn!("another gateway owns the lines; this one is a standby");
                    }
                    self.active.store(None);
                    let stopped = self.end(&gateway, &owned, drain).await;
                    if stops {
                        break Ok(Some(stopped));
                    }
                }
                Some(Err(error)) => {
                    self.contender.release(&owned).await;
                    if self.store.is_exclusive() || matches!(error, OpenError::Settings(_)) {
                        break Err(error);
                    }
                    tracing::error!(%error, "the lines could not be taken over; another gateway may, or this one tries again");
                    tokio::time::sleep(READ_AGAIN).await;
                }
                None => tracing::warn!("another gateway owns the lines before this one was active"),
            }
        };
        self.store.close().await;
        ended
    }

    async fn open(&self, owned: &Ownership) -> Result<Arc<Gateway>, OpenError> {
        let surroundings = Surroundings {
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            connect: Arc::clone(&self.connect),
            ownership: owned.clone(),
        };
        let (settings, entropy) = ((*self.settings.load_full()).clone(), self.entropy.lock().split());
        let gateway = Gateway::open_before(surroundings, settings, self.fixed, entropy, |owner| owner).await?;
        self.takeovers.fetch_add(1, Ordering::Relaxed);
        let (replica, epoch) = (&self.contender.owner().replica, owned.epoch().0);
        tracing::info!(%replica, epoch, "this gateway owns the lines");
        Ok(gateway)
    }

    /// Ends what the gateway has under way, renewing the lease meanwhile, and gives that back.
    async fn end(&self, gateway: &Gateway, owned: &Ownership, drain: Duration) -> Stopped {
        let ending = gateway.end(drain);
        tokio::pin!(ending);
        let stopped = tokio::select! {
            biased;
            stopped = &mut ending => stopped,
            () = self.contender.keep(owned) => ending.await,
        };
        self.contender.release(owned).await;
        stopped
    }
}
