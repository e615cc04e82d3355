//! Black-box tests: each is named by the sentence it proves, and sees only what a device, a backend or an operator sees.

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test, and the line says which")]

mod answers;
mod backend;
mod bodies;
mod certificates;
mod changes;
mod check_config;
mod clocks;
mod connections;
mod credentials;
mod demo;
mod evidence;
mod golden;
mod hostile;
mod import;
mod lists;
mod logs;
mod malformed;
mod on_database;
mod openapi;
mod operator;
mod plan;
mod planes;
mod postgresql;
mod refusals;
mod shutdown;
mod store_copy;
mod store_formats;
mod store_watch;
mod tls;
mod tree;
mod tuning;
