//! HTTP as every plane speaks it: requests on a connection, bodies within bounds, and what every request passes.
//!
//! Invariant: what an error looks like outside is decided in [`problem`] alone.

pub mod body;
pub mod coding;
pub mod exchange;
mod head;
pub mod middleware;
pub mod problem;
pub mod routes;
pub mod serve;
mod spelling;
mod turns;
