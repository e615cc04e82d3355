//! A storm on a simulated clock: a whole fleet knocks at once, and a judge who counts for himself says what it cost.
//!
//! The engine drives the decisions of `proxy-core` as they are (placement, line, ledger, pace, forecast), synchronously and without
//! disk or network, so that a million devices drain in seconds; the alternatives (devices that retry as published SDKs do, a proxy
//! that tells everybody the same `Retry-After`) run in the same engine against the same DPS.
//!
//! Invariants:
//! - One seed, one outcome: nothing asks the machine for time or randomness, and events at the same moment happen in the order in
//!   which they were planned.
//! - DPS's side and the judge share no code with the ledger that they judge.
//! - Only `wiring` speaks to the line and the settings of `proxy-core`; `inventory` follows its placement, and a test holds them together.

mod agenda;
mod alternatives;
mod bucket;
mod deadline;
mod dps;
mod fleet;
mod inventory;
mod judge;
mod scenario;
mod storm;
mod watcher;
mod wiring;

pub use alternatives::{Comparison, Contender, compare};
pub use deadline::{Needed, OutOfReach, instances_needed};
pub use fleet::{BootCurve, CAPACITY, Fleet, FleetError, INSTANCES_MAX, Tenant};
pub use judge::{Report, TenantReport};
pub use scenario::{DpsModel, Manner, Retry, Scenario};
pub use storm::{run, run_watched};
pub use watcher::{Trial, Watcher};
