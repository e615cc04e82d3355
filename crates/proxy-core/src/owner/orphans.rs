//! Sends of earlier owners whose end nobody knew when the lines were taken over. An owner that was deposed and lives on still writes how its own
//! ended: seen here, the slot is free a window later instead of when the token of the send can be used no more.

use std::sync::Arc;
use std::time::Duration;

use super::dispatcher::Dispatcher;
use super::lines::Lines;
use crate::base::{Base, StoreError};
use rate_control::ledger::{Settlement, SlotId, SlotRecord};

/// How often orphans are looked at. There are few: what was out when the owner changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks after the orphans of all lines until none is left.
pub(super) async fn follow_orphans(base: Arc<Base>, lines: Arc<Lines>) {
    loop {
        let mut orphans = Vec::new();
        for dispatcher in lines.all().values() {
            let of_this: Vec<SlotId> = dispatcher.line.lock().orphans().collect();
            orphans.extend(of_this.into_iter().map(|slot| (Arc::clone(dispatcher), slot)));
        }
        if orphans.is_empty() {
            return;
        }
        for (dispatcher, slot) in orphans {
            match end_of(&base, &dispatcher, slot).await {
                Ok(Some(settlement)) => {
                    dispatcher.line.lock().orphan_ended(slot, settlement, base.now().mono);
                    dispatcher.bell.notify_one();
                }
                Ok(None) => {}
                // A store in trouble is told by whoever watches it.
                Err(error) => tracing::debug!(instance = %dispatcher.name, %error, "an orphan could not be looked at"),
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// How the send that `slot` is held by has ended, if that is known by now.
async fn end_of(base: &Base, dispatcher: &Dispatcher, slot: SlotId) -> Result<Option<Settlement>, StoreError> {
    let Some(stored) = base.store.get(&dispatcher.slot_key(slot)).await? else {
        return Ok(Some(Settlement::NeverLeft));
    };
    let record: Option<SlotRecord> = serde_json::from_slice(&stored.value).ok();
    Ok(record.and_then(|record| record.settled()).map(|(settlement, _)| settlement))
}
