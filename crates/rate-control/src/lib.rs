//! How fast calls may leave for a service with a quota, and when none may: decided from what was sent and answered, and the time.
//!
//! Everything here is pure: the time is an argument, randomness is handed in, nothing waits and nothing is logged. Only `time::SystemClock` and a
//! fresh seed ask the operating system, for whoever runs the service. Nothing here knows of devices, nor of DPS more than that it takes so
//! many registrations in any 60 seconds.

pub mod adaptive_limit;
pub mod circuit_breaker;
pub mod concurrency_limit;
pub mod entropy;
pub mod epoch;
pub mod failpoint;
pub mod latency_estimate;
pub mod ledger;
pub mod ownership;
pub mod retry;
pub mod text;
pub mod time;
pub mod token_bucket;
