//! Crashes, faults and overload against the real binary: the promises of the service, judged by what devices, operators and the
//! emulated DPS instances see.
//!
//! Every scenario builds `dps-proxy` if needed, runs a copy of it as a process of its own against emulators in this process, and ends
//! both. Seeds are printed, `STORM_SEED` sets them; `cargo test --test storm -- --nocapture` shows the figures.

#![expect(clippy::unwrap_used, reason = "all of it is a test: a panic is a failure that names its line")]

mod durability;
mod faults;
mod kills;
mod limiter;
mod outage;
mod support;
mod wire;
