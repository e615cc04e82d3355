//! PostgreSQL, 14 or newer, as the store of dps-proxy: one database that several processes share.
//!
//! Invariants, beside those of [`proxy_core::store`]:
//! - **Commits keep their order.** One connection writes, one batch at a time: what was committed while a batch was under way is the next one. A
//!   batch is one statement and one transaction, and every commit in it has an outcome of its own.
//! - **No outcome is guessed.** Every attempt to commit has a name, which the server remembers together with its outcome. When the connection
//!   is lost meanwhile, the attempt is settled over a new one: it happened, and with what outcome; or it never will, also if its statement is
//!   still on its way. Only then does anything else leave.
//! - **No query is cancelled.** A time-out drops the connection. A cancelled wait for a standby would be told as success.
//! - **Numbers become visible in their order.** A line's lock is held from the number to the commit, so a reader with a cursor
//!   ([`PostgresqlStore::places`]) misses none.
//! - Nothing but [`migrate`] creates or changes a table.
//! - No password is printed, neither by `Debug` nor in an error.
//!
//! While the server is away, commits are refused at once and nothing is kept for later, except for the one batch that was under way: it waits for its
//! outcome as long as that takes. Reads fail after their time-out. Everything goes on by itself when the server is back.
//!
//! A commit that carries a fence (a lease, and the epoch in which it was decided) has it checked by the same statement, which holds the
//! lease's row until its end. Taking that lease waits for it; see `migrations/0002_leases.sql`. Leases are read and changed over
//! connections of their own.

mod batch;
mod codec;
mod leases;
mod link;
mod open_error;
mod options;
mod reader;
mod schema;
mod sole_use;
mod store;
mod target;
mod writer;

pub use open_error::OpenError;
pub use options::{ConnectionString, Durability, InvalidConnectionString, Options};
pub use schema::{Migrated, migrate};
pub use sole_use::SoleUse;
pub use store::{LinePlace, PostgresqlStore};
pub use target::SCHEMA;
