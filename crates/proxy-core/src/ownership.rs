//! Which of the gateways on one store is active: the one that owns the lease of the lines. The others are standbys, who watch the lease and take it
//! when it was given back or has run out.
//!
//! Invariants:
//! - Everything that the active gateway writes is fenced with the epoch of its lease, so nothing of it counts once another one has taken it. The one
//!   exception is the end of a send, which an owner that was deposed may still write, of its own sends alone.
//! - That a lease has run out is observed, never read ([`LeaseWatch`]).
//! - An owner that cannot renew stops sending before anybody may take the lease ([`Tenure`]), and goes on if it was not taken. Safety does not depend
//!   on it: see [`rate_control::ownership`].

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ids::LeaseName;
use crate::store::{ClockReading, Fence, Lease, LeaseChange, LeaseError, LeaseOwner, Store};
use rate_control::ownership::{Beat, Epoch, LeaseWatch, Sightings, Tenure};
use rate_control::time::{Clock, Mono};

/// The times of a lease. All are measured with boot-time clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// A lease that is not renewed for so long may be taken.
    pub ttl: Duration,
    /// What two clocks may differ by within `ttl`, and what a read may be late.
    pub guard: Duration,
    /// How often it is renewed.
    pub renewal_interval: Duration,
    /// How often a standby looks at it.
    pub watch_interval: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(5),
            guard: Duration::from_millis(500),
            renewal_interval: Duration::from_secs(1),
            watch_interval: Duration::from_millis(500),
        }
    }
}

/// The one lease of all lines.
///
/// # Panics
/// Never: it is a name.
#[must_use]
pub fn lease_of_the_lines() -> LeaseName {
    LeaseName::parse("lines").expect("it is a name")
}

/// Who owned the lines before.
#[derive(Debug, Clone)]
pub enum Predecessors {
    /// Processes that are gone, as nobody else can have the store.
    Gone,
    /// Processes that may live, with what was seen of their clocks.
    MayLive(Box<Sightings>),
}

/// The right to serve the lines, for as long as nobody else takes it.
#[derive(Debug, Clone)]
pub struct Ownership {
    fence: Option<Fence>,
    tenure: Option<Arc<Mutex<Tenure>>>,
    deposed: CancellationToken,
    predecessors: Predecessors,
}

impl Ownership {
    /// Of a store that nobody else can have, without a lease.
    #[must_use]
    pub fn undisputed() -> Self {
        Self { fence: None, tenure: None, deposed: CancellationToken::new(), predecessors: Predecessors::Gone }
    }

    /// What every commit of the owner carries.
    #[must_use]
    pub const fn fence(&self) -> Option<&Fence> {
        self.fence.as_ref()
    }

    /// The epoch, for sends.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.fence.as_ref().map_or(Epoch::default(), |fence| fence.epoch)
    }

    /// Who owned the lines before.
    #[must_use]
    pub const fn predecessors(&self) -> &Predecessors {
        &self.predecessors
    }

    /// Whether a call may leave at `now`, as far as the owner knows.
    #[must_use]
    pub fn may_leave(&self, now: Mono) -> bool {
        let in_time = self.tenure.as_ref().is_none_or(|tenure| tenure.lock().may_leave(now));
        in_time && !self.is_deposed()
    }

    fn renewed(&self, sent: Mono) {
        if let Some(tenure) = &self.tenure {
            tenure.lock().renewed(sent);
        }
    }

    /// Another gateway owns the lines: said by a commit that was refused, or by a renewal.
    pub fn depose(&self) {
        self.deposed.cancel();
    }

    /// Whether another gateway owns the lines, as far as is known here.
    #[must_use]
    pub fn is_deposed(&self) -> bool {
        self.deposed.is_cancelled()
    }

    /// Waits until another gateway owns the lines. Cancel-safe.
    pub async fn deposed(&self) {
        self.deposed.cancelled().await;
    }
}

/// What a gateway knows of the lease.
#[derive(Debug, Clone, Default)]
pub struct LeaseSeen {
    /// As it was read or changed last; `None` if nobody has ever taken it, or it was not read yet.
    pub lease: Option<Lease>,
    /// Why it could not be read last, if it could not.
    pub trouble: Option<String>,
}

/// A gateway that would own the lines, and does when its time has come.
#[derive(Debug)]
pub struct Contender {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    lease: LeaseName,
    owner: LeaseOwner,
    times: LeaseTimes,
    /// Of the clocks of earlier owners.
    sightings: Mutex<Sightings>,
    seen: watch::Sender<LeaseSeen>,
}

impl Contender {
    /// A gateway that is called `owner` at the lease of the lines.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, owner: LeaseOwner, times: LeaseTimes) -> Self {
        let seen = watch::Sender::new(LeaseSeen::default());
        Self { store, clock, lease: lease_of_the_lines(), owner, times, sightings: Mutex::default(), seen }
    }

    /// Who it is.
    #[must_use]
    pub const fn owner(&self) -> &LeaseOwner {
        &self.owner
    }

    /// What is known of the lease now.
    #[must_use]
    pub fn seen(&self) -> LeaseSeen {
        self.seen.borrow().clone()
    }

    /// Waits until the lease may be taken, and takes it. A store that does not answer is asked again, for as long as that takes. Of a store that
    /// nobody else can have, ownership is undisputed: it needs no lease, and is there also while that store takes no writes.
    ///
    /// Cancel-safe: a taking that is under way happens or does not; whoever asks again finds that out.
    ///
    /// # Errors
    /// Why the lease can never be taken, in words for an operator.
    pub async fn own(&self) -> Result<Ownership, String> {
        if self.store.is_exclusive() {
            return Ok(Ownership::undisputed());
        }
        let mut watch = LeaseWatch::new(self.times.ttl + self.times.guard);
        loop {
            if let Some(from) = self.look(&mut watch).await
                && let Some(owned) = self.take(from).await?
            {
                return Ok(owned);
            }
            tokio::time::sleep(self.times.watch_interval).await;
        }
    }

    /// Looks at the lease. What it may be taken from, if it may.
    async fn look(&self, watch: &mut LeaseWatch) -> Option<Option<(Epoch, Beat)>> {
        let began = self.clock.now().mono;
        let read = self.store.lease(&self.lease).await;
        let ended = self.clock.now().mono;
        let lease = match read {
            Ok(lease) => lease,
            Err(error) => {
                watch.read_failed();
                self.seen.send_modify(|seen| seen.trouble = Some(error.to_string()));
                return None;
            }
        };
        self.saw(lease.clone());
        let Some(Lease { epoch, beat, reading, released, owner }) = lease else { return Some(None) };
        self.sightings.lock().saw(&reading.boot, reading.mono, ended);
        watch.read(epoch, beat, began, ended);
        let is_free = released || owner.id == self.owner.id;
        if is_free { Some(Some((epoch, beat))) } else { watch.may_take().map(Some) }
    }

    /// Takes the lease; `None` if somebody was faster, or nobody knows.
    async fn take(&self, seen: Option<(Epoch, Beat)>) -> Result<Option<Ownership>, String> {
        let sent = self.reading();
        let change = LeaseChange::Take { seen, owner: self.owner.clone(), reading: sent.clone() };
        match self.change(change).await {
            Ok(epoch) => Ok(Some(self.owned(epoch, sent.mono))),
            Err(LeaseError::Refused(why)) => Err(why),
            Err(LeaseError::Lost { .. } | LeaseError::Unavailable(_)) => Ok(None),
        }
    }

    /// Changes the lease, and remembers how it is.
    async fn change(&self, change: LeaseChange) -> Result<Epoch, LeaseError> {
        let changed = self.store.change_lease(&self.lease, change).await;
        match &changed {
            Ok(lease) => self.saw(Some(lease.clone())),
            Err(LeaseError::Lost { now }) => self.saw(now.clone()),
            Err(error) => self.seen.send_modify(|seen| seen.trouble = Some(error.to_string())),
        }
        changed.map(|lease| lease.epoch)
    }

    fn saw(&self, lease: Option<Lease>) {
        self.seen.send_replace(LeaseSeen { lease, trouble: None });
    }

    fn owned(&self, epoch: Epoch, sent: Mono) -> Ownership {
        Ownership {
            fence: Some(Fence { lease: self.lease.clone(), epoch }),
            tenure: Some(Arc::new(Mutex::new(Tenure::new(self.times.ttl, self.times.guard, sent)))),
            deposed: CancellationToken::new(),
            predecessors: Predecessors::MayLive(Box::new(self.sightings.lock().clone())),
        }
    }

    fn reading(&self) -> ClockReading {
        ClockReading { boot: self.clock.boot_id(), mono: self.clock.now().mono }
    }

    /// Renews the lease until another gateway owns the lines. A store that does not answer is asked again.
    ///
    /// Cancel-safe.
    pub async fn keep(&self, owned: &Ownership) {
        let Some(fence) = owned.fence.as_ref() else { return owned.deposed().await };
        loop {
            tokio::select! {
                biased;
                () = owned.deposed() => return,
                () = tokio::time::sleep(self.times.renewal_interval) => {}
            }
            let (owner, reading) = (self.owner.id, self.reading());
            let sent = reading.mono;
            match self.change(LeaseChange::Renew { epoch: fence.epoch, owner, reading }).await {
                Ok(_) => owned.renewed(sent),
                Err(LeaseError::Lost { .. }) => return owned.depose(),
                Err(error) => tracing::debug!(%error, "the lease of the lines could not be renewed yet"),
            }
        }
    }

    /// Gives the lease back, so that another gateway may take it at once. To be called when nothing is under way any more. The service goes
    /// without it if the store does not answer: then the lease runs out.
    pub async fn release(&self, owned: &Ownership) {
        let Some(fence) = owned.fence.as_ref() else { return };
        if owned.is_deposed() {
            return;
        }
        owned.depose();
        let release = LeaseChange::Release { epoch: fence.epoch, owner: self.owner.id, reading: self.reading() };
        if let Err(error) = self.change(release).await {
            tracing::warn!(%error, "the lease of the lines was not given back; another gateway takes it when it has run out");
        }
    }
}
