//! Faults on demand: rules that say which calls go wrong, how, and how often.
//!
//! A rule is looked at for every call of the device API. Delays add up; of all other rules the first that fits acts. Nothing
//! is guessed: a rule with an unknown field or action, or with a field its action does not use, is refused.

mod action;
mod active;
mod file;
mod reading;
mod rewrite;
mod rule;
mod spec;

pub use action::FaultAction;
pub use active::{ActiveFault, FaultId};
pub use file::FaultFile;
pub use rule::{Fault, IdMatch, Occurrence};
pub use spec::FaultSpec;

pub(crate) use active::{Faults, Picked};
pub(crate) use rewrite::rewrite;
