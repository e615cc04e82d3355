//! What DPS let us know of an instance, kept for the next process: the limit that was learned, and how long it asked us to wait.
//!
//! Neither is needed for safety, which is the ledger's business: without it the next process is throttled again, and learns anew. So a
//! write that fails is only told.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Gateway;
use super::dispatch::Dispatcher;
use crate::ids::InstanceName;
use crate::settings::Settings;
use crate::store::{Expect, Key, ReadError, Store, Table, Write};
use rate_control::learner::Learned;
use rate_control::time::{BootId, Mono, Now, WallTime};

/// A wait that DPS asked for, by both clocks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pause {
    boot: BootId,
    until: Mono,
    until_time: WallTime,
}

/// What an earlier process heard of an instance.
#[derive(Debug, Default)]
pub(super) struct RecoveredLimits {
    pub(super) learned: Option<Learned>,
    /// Nothing is sent before.
    pub(super) paused_until: Option<Mono>,
}

fn learned_key(instance: &InstanceName) -> Key {
    Key::new(Table::Meta, format!("learned/{instance}"))
}

fn pause_key(instance: &InstanceName) -> Key {
    Key::new(Table::Meta, format!("pause/{instance}"))
}

/// Reads what was kept; what cannot be understood was not heard.
pub(super) async fn read(
    store: &dyn Store,
    instance: &InstanceName,
    settings: &Settings,
    boot: &BootId,
    now: Now,
) -> Result<RecoveredLimits, ReadError> {
    let learned = store.get(&learned_key(instance)).await?;
    let learned = learned.and_then(|stored| std::str::from_utf8(&stored.value).ok()?.parse().ok());
    let pause = store.get(&pause_key(instance)).await?;
    let pause: Option<Pause> = pause.and_then(|stored| serde_json::from_slice(&stored.value).ok());
    let paused_until = pause.map(|pause| {
        // The boot clock of another boot says nothing; a wall clock may have been set, so it is believed within bounds.
        let left = if pause.boot == *boot { pause.until.since(now.mono) } else { pause.until_time.since(now.wall) };
        now.mono.after(left.min(settings.registration.throttle_wait_max))
    });
    Ok(RecoveredLimits { learned, paused_until })
}

impl Gateway {
    pub(super) async fn keep_learned(self: Arc<Self>, dispatcher: Arc<Dispatcher>) {
        let _one_by_one = dispatcher.keeping.lock().await;
        let learned = dispatcher.line.lock().learned();
        tracing::info!(instance = %dispatcher.name, limit_per_minute = learned.limit, "registrations that may leave per minute have changed");
        self.keep(learned_key(&dispatcher.name), learned.to_string().into(), &dispatcher.name).await;
    }

    pub(super) async fn keep_pause(self: Arc<Self>, dispatcher: Arc<Dispatcher>) {
        let _one_by_one = dispatcher.keeping.lock().await;
        let now = self.now();
        let until = dispatcher.line.lock().throttled_until();
        let until_time = now.wall.after(until.since(now.mono));
        let pause = Pause { boot: self.clock.boot_id(), until, until_time };
        let value = serde_json::to_vec(&pause).expect("a pause has string keys only");
        self.keep(pause_key(&dispatcher.name), value.into(), &dispatcher.name).await;
    }

    async fn keep(&self, key: Key, value: Bytes, instance: &InstanceName) {
        let write = Write { key, expect: Expect::Any, value: Some(value) };
        if let Err(error) = self.store.commit(vec![write]).await {
            tracing::warn!(%instance, %error, "what DPS let us know was not kept for the next process");
        }
    }
}
