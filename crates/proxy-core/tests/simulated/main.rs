//! The promises of the core on a simulated clock, against a DPS that counts for itself.
//!
//! Every test runs on one thread and on paused time, so that it replays exactly; where chance plays a part, its seed is in the
//! message of a failure.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "here the paused clock is the world's")]
#![allow(clippy::too_many_lines, clippy::unused_async, reason = "a test tells its story in one piece")]

mod adaptive_limit;
mod belonging;
mod clocks;
mod evidence;
mod far_owner;
mod full_line;
mod golden;
mod line;
mod lists;
mod operators;
mod outcomes;
mod places;
mod quota;
mod rebooking;
mod replicas;
mod shares;
mod sick;
mod storage;
mod supervision;
mod support;
mod waiting;
mod why;
