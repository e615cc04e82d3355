//! The device record: everything durably known of one device, as a closed state machine.
//!
//! Invariants:
//! - The fields of a [`Record`] are private to this folder. Every change is a [`Command`]; [`Record::apply`] carries it out whole, or rejects
//!   it and changes nothing. Whoever wants to know what can happen to a device reads `command`, and nothing else.
//! - What a change asks of others (lines, counts, names, the feed) is in its [`Effects`]. They count once the change is on disk.
//! - A record is stored by compare-and-set only: a [`Draft`] remembers the version that it began from.
//!
//! The parts: `record` (what is known, and reading it), `assignment`, `pending` and `flight` (what DPS decided; the place in line; the call
//! that may be on its way), `command` (what
//! can happen) and `apply` (what that does), `effects`, `draft` (a change on its way to the store), `timeline`, `unknown` (what a newer
//! version wrote, which is kept).

mod apply;
mod assignment;
mod command;
mod draft;
mod effects;
mod flight;
mod pending;
mod record;
mod timeline;
mod unknown;

#[cfg(test)]
mod tests;

pub use assignment::{Assignment, AssignmentState};
pub use command::{Claim, Command, Decision, Listing, Rejected, Seat, Step};
pub use draft::Draft;
pub use effects::{Effects, Outline, Standing};
pub use flight::{Flight, Sender};
pub use pending::{Home, Pending, Reason, Stage};
pub use record::{Blocked, Listed, Record, Refusal, UnreadableRecord, Versioned};
pub use timeline::TimelineEvent;
pub use unknown::Unknown;
