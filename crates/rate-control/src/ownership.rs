//! Who may send: one owner at a time, by a lease with a fencing epoch, so that an instance's quota stays exact when the owner changes.
//!
//! The lease is a row that all replicas share: an epoch, which grows with each owner, and a beat, which grows with each renewal. **Lease times are
//! no safety parameter**: a lease may be taken too early, its old owner may have been stopped, or its clock may have stood still, and still no
//! 60 seconds hold more than the quota. What the proof needs:
//!
//! - *Arm*: a send exists only once the store has confirmed its slot under the epoch that holds now; taking the lease waits for such
//!   writes under way and refuses all later ones. A successor reads the slots after it has taken the lease.
//! - *Carry over*: a successor counts every send of its predecessors until it has left the window ([`Sightings`], and
//!   [`Ledger::inherit`](crate::ledger::Ledger::inherit)). A send whose end nobody knows is an *orphan*: it is counted until its end is seen, or for as long as
//!   its token lives at DPS and a window beyond.
//! - *Token*: the token of a send ends a bounded time after it was armed, so DPS does not accept what leaves much later.
//!
//! No wall clock enters. [`LeaseWatch`] tells when a lease may be taken, [`Tenure`] when its owner stops sending by itself; both only spare
//! orphans. `tests/ownership.rs` lets replicas contend and counts what DPS would count.

use serde::{Deserialize, Serialize};

mod lease_watch;
mod sightings;
mod tenure;

pub use crate::epoch::Epoch;
pub use lease_watch::LeaseWatch;
pub use sightings::Sightings;
pub use tenure::Tenure;

/// How often the lease was renewed within its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Beat(pub u64);
