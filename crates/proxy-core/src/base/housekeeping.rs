//! What goes on as long as the gateway does, whoever asks for something or not.

use std::sync::Arc;
use std::time::Duration;

use super::Base;
use super::task_names::{FEED_PRUNING, STORE_WATCH};
use crate::feed::PAGE;
use crate::supervise::Task;

/// How often the store is looked at while nobody writes.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often the change feed is pruned.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

impl Base {
    /// Starts it.
    pub(crate) fn keep_house(self: &Arc<Self>) {
        let (pruning, watching) = (Arc::clone(self), Arc::clone(self));
        self.spawn_kept(Task::new(FEED_PRUNING), move || Arc::clone(&pruning).prune_feed());
        self.spawn_kept(Task::new(STORE_WATCH), move || Arc::clone(&watching).watch_store());
    }

    /// Notices what becomes of the store while nobody writes.
    async fn watch_store(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            self.watched.look();
        }
    }

    /// Keeps the change feed within its retention.
    async fn prune_feed(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(PRUNE_EVERY) => {}
            }
            let settings = self.settings();
            loop {
                match self.feed.prune(&*self.store, &self.versions, &settings.feed, self.now()).await {
                    Ok(pruned) if pruned == PAGE && !self.is_stopping() => {}
                    Ok(_) => break,
                    Err(error) => {
                        tracing::warn!(%error, "the change feed could not be pruned; trying again in a minute");
                        break;
                    }
                }
            }
        }
    }
}
