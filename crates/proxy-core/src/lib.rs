//! The domain of dps-proxy: what a gateway in front of many DPS instances decides, and the few things it does.
//!
//! No HTTP server lives here, no environment and no global randomness; the time is an argument. `ARCHITECTURE.md` at the root
//! of the repository has the map and the invariants.

pub mod attestation;
pub mod breaker;
pub mod concurrency;
pub mod dps_clock;
pub mod entropy;
pub mod feed;
pub mod gateway;
pub mod ids;
pub mod lane;
pub mod lanes;
pub mod learner;
pub mod ledger;
pub mod line;
pub mod pace;
pub mod placement;
pub mod record;
pub mod repeat;
pub mod retry;
pub mod sas;
pub mod secret;
pub mod settings;
pub mod store;
pub mod supervise;
mod text;
pub mod time;
pub mod typical;
pub mod upstream;
pub mod waiters;
