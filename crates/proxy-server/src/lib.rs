//! The HTTP service and the command line of dps-proxy.
//!
//! A request's way: `listener` → `http` → a handler in `planes` → `proxy_core::gateway`. `api` are the bodies of requests and answers;
//! `state` is what handlers reach; `lifecycle`
//! starts and stops all of it, `config` reads the file, and `reload` takes a changed one over. `cli` are the commands: `serve`, `demo`,
//! `plan` and `check-config`.

pub mod api;
pub mod cli;
pub mod config;
pub mod http;
pub mod lifecycle;
pub mod listener;
pub mod metrics;
mod pki;
pub mod plane;
pub mod planes;
pub mod refusals;
pub mod reload;
mod rows;
pub mod scans;
pub mod state;
pub mod telemetry;
pub mod tls;
