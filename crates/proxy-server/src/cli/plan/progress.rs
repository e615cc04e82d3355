//! How far a plan has come, on a terminal only: a simulation of millions of devices takes minutes.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use storm_sim::{Trial, Watcher};

use super::answer;

/// A bar on standard error; nothing where that is no terminal.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    /// What a trial is held against.
    deadline: Option<Duration>,
}

impl Progress {
    pub(super) fn new(devices: u64) -> Self {
        let bar = ProgressBar::new(devices);
        let style = ProgressStyle::with_template("{msg:>22} {bar:40} {percent:>3} %  {elapsed}");
        bar.set_style(style.expect("the template is sound"));
        Self { bar, deadline: None }
    }

    /// The same bar, which names each number of instances that was tried.
    pub(super) fn with(&mut self, deadline: Duration) -> &mut Self {
        self.deadline = Some(deadline);
        self
    }

    /// Something begins that cannot tell how far it has come.
    pub(super) fn says(&self, what: &'static str) {
        self.bar.set_message(what);
    }

    pub(super) fn ends(&self) {
        self.bar.finish_and_clear();
    }
}

impl Watcher for Progress {
    fn told(&mut self, instances: u16, devices: u64) {
        self.bar.set_message(answer::instances(instances));
        self.bar.set_position(devices);
    }

    fn tried(&mut self, trial: &Trial) {
        if let Some(deadline) = self.deadline {
            // The answer names them all; on a terminal each is said when it is known.
            self.bar.println(answer::trial(trial, deadline));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.ends();
    }
}
