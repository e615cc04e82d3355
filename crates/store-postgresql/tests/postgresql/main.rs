//! The store against the real engine. `cluster` starts one, of the programs that Debian's package `postgresql` brings, in a temporary directory;
//! where there are none, the tests say `skipped: needs PostgreSQL`, which CI must not.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test, and the line says which")]

mod cluster;
mod commits;
mod conformance;
mod failures;
mod figures;
mod leases;
mod middleman;
mod opening;
