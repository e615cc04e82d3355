//! Starting tasks that are looked after: each is counted when it dies, and goes on as far as that is sound.

use std::sync::Arc;

use tracing::Instrument as _;

use super::{Base, task_names};
use crate::store::{CommitError, ReadError};
use crate::supervise::{Died, Task};

impl Base {
    /// Runs a task that need not be begun anew if it dies: what it does is tried again by others.
    pub(crate) fn spawn(self: &Arc<Self>, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let base = Arc::clone(self);
        self.spawn_watched(async move {
            if base.supervisor.watch(Task::new(name), work).await == Err(Died) {
                tracing::error!(task = name, "a task panicked; what it left undone is retried by other tasks");
            }
        });
    }

    /// Runs a task for as long as the gateway does.
    pub(crate) fn spawn_kept<F>(self: &Arc<Self>, task: Task, begin: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let base = Arc::clone(self);
        self.spawn_watched(async move {
            let kept = base.supervisor.keep(task, || base.now().mono, begin);
            tokio::select! {
                biased;
                () = kept => {}
                // It ends by itself then, unless it just waits to be begun anew.
                () = base.stopping.cancelled() => {}
            }
        });
    }

    /// `work` has to be looked after already.
    pub(crate) fn spawn_watched(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.tasks.spawn_on(work, &self.runtime));
    }

    /// Runs a step that must not stop half way, whatever becomes of the request that began it.
    ///
    /// Cancel-safe: it goes on in a task of its own when its future is dropped.
    ///
    /// # Errors
    /// [`CommitError::Failed`] if the task died.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        &self,
        step: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, CommitError> {
        // Boxed, because it is large and each wrapper around it would hold it twice.
        let (supervisor, step) = (Arc::clone(&self.supervisor), Box::pin(step.in_current_span()));
        let step = async move { supervisor.watch(Task::new(task_names::COMMIT), step).await };
        match self.tasks.spawn_on(step, &self.runtime).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(Died)) => Err(CommitError::Failed("the task that was to write died".to_owned())),
            Err(error) => Err(CommitError::Failed(error.to_string())),
        }
    }

    /// Runs a reading of many records where no requests are served. It goes on if nobody waits for it any more.
    pub(crate) async fn on_own_threads<T: Send + 'static, E: From<ReadError> + Send + 'static>(
        &self,
        name: &'static str,
        reading: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E> {
        let supervisor = Arc::clone(&self.supervisor);
        let watched = async move { supervisor.watch(Task::new(name), reading).await };
        match self.tasks.spawn_on(watched, &self.runtime).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(ReadError::Unavailable("the task that read it died".to_owned()).into()),
        }
    }
}
