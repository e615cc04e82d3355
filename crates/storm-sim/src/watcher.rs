//! Who hears how far a simulation has come.

use std::time::Duration;

/// One simulated attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// With so many instances …
    pub instances: u16,
    /// … the last device was told its hub after this time.
    pub finished_after: Duration,
}

/// Hears how far a simulation has come, which may take minutes.
pub trait Watcher {
    /// So many devices have been told their hub, in a simulation with so many instances. Said now and then.
    fn told(&mut self, _instances: u16, _devices: u64) {}

    /// A number of instances has been tried.
    fn tried(&mut self, _trial: &Trial) {}
}

/// Nobody watches.
impl Watcher for () {}
