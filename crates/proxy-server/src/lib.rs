//! The HTTP service and the command line of dps-proxy.
//!
//! A request's way: `listener` → `http::connection` → `http::middleware` → a handler in `http` → `proxy_core::gateway`. `app` binds and
//! runs the three planes, `config` reads the file, `reload` takes a changed one over, `refusals` keeps whose credential was not
//! believed, `demo` shows it all on one machine, `plan`
//! simulates a storm beforehand.

pub mod app;
mod certificate;
pub mod cli;
pub mod config;
pub mod demo;
pub mod ending;
pub mod http;
pub mod listener;
pub mod metrics;
pub mod new_store;
pub mod panics;
mod pem;
pub mod plan;
pub mod refusals;
pub mod reload;
mod rows;
pub mod telemetry;
pub mod tls;
