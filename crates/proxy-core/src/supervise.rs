//! Looks after tasks: one that dies is noticed at once, counted by name, and begun anew where that is sound.
//!
//! A task *dies* when it panics. Other endings are its own business.
//!
//! Invariants:
//! - Every task runs with its [`Task`] at hand ([`current`]), so that whoever reports a panic can name it.
//! - A death is counted once, before anything else is done about it.
//! - What is done about a death is decided by [`Deaths`], which is pure: the time is an argument.
//! - What a task held must not be lost with it: whoever starts a task that holds something settles that when [`Supervisor::watch`]
//!   says that it died.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::ids::InstanceName;
use rate_control::time::Mono;

/// Two deaths within this time are a fault that beginning anew does not mend.
pub const SECOND_DEATH: Duration = Duration::from_secs(60);

/// Before a task is begun anew that nothing waits for.
const RESTART_WAIT: Duration = Duration::from_secs(1);

tokio::task_local! {
    static CURRENT: Task;
}

/// Who a task is, in logs and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// What it does; one of few names.
    pub name: &'static str,
    /// The instance that it works for, if it is one alone.
    pub instance: Option<InstanceName>,
}

impl Task {
    /// A task that works for no instance in particular.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, instance: None }
    }

    /// A task that works for one instance.
    #[must_use]
    pub fn of(name: &'static str, instance: &InstanceName) -> Self {
        Self { name, instance: Some(instance.clone()) }
    }
}

/// The task that this code runs in, if it is one that is looked after.
#[must_use]
pub fn current() -> Option<Task> {
    CURRENT.try_with(Clone::clone).ok()
}

/// A task has died; that was counted. What it panicked with is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Died;

/// The deaths of one long-lived task.
#[derive(Debug, Default)]
pub struct Deaths {
    last: Option<Mono>,
}

impl Deaths {
    /// It died at `now`. Whether it had died less than [`SECOND_DEATH`] before.
    pub fn again_so_soon(&mut self, now: Mono) -> bool {
        let last = self.last.replace(now);
        last.is_some_and(|last| now.since(last) < SECOND_DEATH)
    }
}

/// Counts deaths, and knows whether the process can go on.
#[derive(Debug)]
pub struct Supervisor {
    deaths: Mutex<BTreeMap<&'static str, u64>>,
    fault: watch::Sender<Option<String>>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self { deaths: Mutex::default(), fault: watch::Sender::new(None) }
    }
}

impl Supervisor {
    /// Runs `work` as `task`.
    ///
    /// Cancel-safe as far as `work` is.
    ///
    /// # Errors
    /// [`Died`] if it panicked.
    pub async fn watch<T>(&self, task: Task, work: impl Future<Output = T>) -> Result<T, Died> {
        let name = task.name;
        self.deaths.lock().entry(name).or_default();
        // What `work` held is dropped by the panic; what others can still reach is made whole by whoever starts the task.
        let ended = CURRENT.scope(task, AssertUnwindSafe(work).catch_unwind()).await;
        ended.map_err(|_panic| {
            self.count_death(name);
            Died
        })
    }

    /// Keeps a task going until it ends by itself: each time it dies it is begun anew, after a second, or after a minute if it had just
    /// been.
    pub async fn keep<F: Future<Output = ()>>(&self, task: Task, now: impl Fn() -> Mono, mut begin: impl FnMut() -> F) {
        let mut deaths = Deaths::default();
        while let Err(Died) = self.watch(task.clone(), begin()).await {
            let wait = if deaths.again_so_soon(now()) { SECOND_DEATH } else { RESTART_WAIT };
            tracing::error!(task = task.name, wait_seconds = wait.as_secs(), "a task panicked and is restarted");
            tokio::time::sleep(wait).await;
        }
    }

    /// A task, or a thread, of that name has died.
    pub fn count_death(&self, name: &'static str) {
        *self.deaths.lock().entry(name).or_default() += 1;
    }

    /// How often tasks died, by name; those that ran and never died are there with 0.
    #[must_use]
    pub fn deaths(&self) -> BTreeMap<&'static str, u64> {
        self.deaths.lock().clone()
    }

    /// Something is broken that only another process can mend. The first reason stands.
    pub fn give_up(&self, reason: String) {
        self.fault.send_if_modified(|fault| {
            let first = fault.is_none();
            fault.get_or_insert(reason);
            first
        });
    }

    /// Why the process cannot go on, if it cannot.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.fault.borrow().clone()
    }

    /// Waits until the process cannot go on, and says why. Cancel-safe.
    pub async fn failed(&self) -> String {
        let mut fault = self.fault.subscribe();
        let failed = fault.wait_for(Option::is_some).await.ok().and_then(|fault| fault.clone());
        match failed {
            Some(reason) => reason,
            // The sender is in `self`, so it outlives this.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn two_deaths_are_one_too_many_only_within_a_minute() {
        let mut deaths = Deaths::default();
        assert!(!deaths.again_so_soon(at(100)));
        assert!(!deaths.again_so_soon(at(160)), "a minute later");
        assert!(deaths.again_so_soon(at(219)));
        assert!(!deaths.again_so_soon(at(1000)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_dies_is_counted_and_begun_anew_until_it_ends() {
        let (supervisor, runs) = (Supervisor::default(), AtomicU32::new(0));
        let task = Task::new("counting");
        supervisor
            .keep(
                task.clone(),
                || at(1),
                || async {
                    assert_eq!(current(), Some(task.clone()));
                    assert!(runs.fetch_add(1, Ordering::Relaxed) == 2, "a fault for the test");
                },
            )
            .await;
        assert_eq!((runs.into_inner(), supervisor.deaths()), (3, [("counting", 2)].into()));
        assert_eq!(current(), None);
    }

    #[tokio::test]
    async fn the_first_reason_to_give_up_stands() {
        let supervisor = Supervisor::default();
        assert_eq!(supervisor.fault(), None);
        supervisor.give_up("first".to_owned());
        supervisor.give_up("second".to_owned());
        assert_eq!((supervisor.failed().await, supervisor.fault()), ("first".to_owned(), Some("first".to_owned())));
    }
}
