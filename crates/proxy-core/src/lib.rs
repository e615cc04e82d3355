//! The domain of dps-proxy: what a gateway in front of many DPS instances decides, and the few things it does.
//!
//! No HTTP server lives here, no environment and no global randomness; the time is an argument. `ARCHITECTURE.md` at the root
//! of the repository has the map and the invariants.

pub mod attestation;
pub mod base;
pub mod device;
pub mod dialect;
pub mod dps_clock;
pub mod feed;
pub mod gateway;
pub mod ids;
mod joining;
pub mod line;
pub mod line_owner;
mod owner;
pub mod ownership;
pub mod place;
pub mod placement;
mod records;
pub mod registration;
pub mod repeat;
pub mod replica;
pub mod sas;
pub mod secret;
pub mod settings;
pub mod store;
pub mod supervise;
pub mod upstream;
pub mod use_cases;
pub mod waiters;
