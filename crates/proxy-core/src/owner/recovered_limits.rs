//! What DPS let us know of an instance, kept for the next process: the adaptive limit, and how long it asked us to wait.
//!
//! Neither is needed for safety, which is the ledger's business: without it the next process is throttled again, and its limit comes down
//! again. So a write that fails is only told.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::dispatcher::Dispatcher;
use crate::base::Base;
use crate::ids::InstanceName;
use crate::settings::Settings;
use crate::store::{Expect, Key, ReadError, Store, Table, Write};
use rate_control::adaptive_limit::{HOLD, Kept};
use rate_control::time::{BootId, Mono, Now, WallTime};

/// A moment to come, by both clocks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Until {
    boot: BootId,
    until: Mono,
    until_time: WallTime,
}

impl Until {
    fn of(until: Mono, boot: BootId, now: Now) -> Self {
        Self { boot, until, until_time: now.wall_at(until) }
    }

    /// How long until then. The boot clock of another boot says nothing; a wall clock may have been set, so it is believed within `most`.
    fn left(&self, most: Duration, boot: &BootId, now: Now) -> Duration {
        let left = if self.boot == *boot { self.until.since(now.mono) } else { self.until_time.since(now.wall) };
        left.min(most)
    }
}

/// The adaptive limit as it is kept.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptLimit {
    limit: u32,
    quota: u32,
    grows: Until,
}

/// What an earlier process heard of an instance.
#[derive(Debug, Default)]
pub(super) struct RecoveredLimits {
    pub(super) limit: Option<Kept>,
    /// Nothing is sent before.
    pub(super) paused_until: Option<Mono>,
}

/// The name is older than the adaptive limit: what stood there before is read, too, and overwritten.
fn limit_key(instance: &InstanceName) -> Key {
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
    let limit = store.get(&limit_key(instance)).await?;
    let limit = limit.and_then(|stored| kept_limit(&stored.value, boot, now));
    let pause = store.get(&pause_key(instance)).await?;
    let pause: Option<Until> = pause.and_then(|stored| serde_json::from_slice(&stored.value).ok());
    let most = settings.registration.throttle_wait_max;
    let paused_until = pause.map(|pause| now.mono.after(pause.left(most, boot, now)));
    Ok(RecoveredLimits { limit, paused_until })
}

fn kept_limit(value: &[u8], boot: &BootId, now: Now) -> Option<Kept> {
    if let Ok(KeptLimit { limit, quota, grows }) = serde_json::from_slice(value) {
        return Some(Kept { limit, quota, grows_in: grows.left(HOLD, boot, now) });
    }
    // Earlier versions wrote `200@1000`, or `200..800@1000` while they sought the limit in between. It is held from now on.
    let (limit, quota) = std::str::from_utf8(value).ok()?.split_once('@')?;
    let limit = limit.split("..").next()?.parse().ok()?;
    Some(Kept { limit, quota: quota.parse().ok()?, grows_in: HOLD })
}

/// Keeps the limit of an instance.
pub(super) async fn keep_limit(base: Arc<Base>, dispatcher: Arc<Dispatcher>) {
    let _one_by_one = dispatcher.keeping.lock().await;
    let now = base.now();
    let Kept { limit, quota, grows_in } = dispatcher.line.lock().kept_limit(now.mono);
    let instance = &dispatcher.name;
    tracing::info!(%instance, limit_per_minute = limit, quota_per_minute = quota, "registrations that may leave per minute have changed");
    let grows = Until::of(now.mono.after(grows_in), base.clock.boot_id(), now);
    let kept = serde_json::to_vec(&KeptLimit { limit, quota, grows }).expect("a limit has string keys only");
    keep(&base, limit_key(instance), kept.into(), instance).await;
}

/// Keeps how long an instance is paused.
pub(super) async fn keep_pause(base: Arc<Base>, dispatcher: Arc<Dispatcher>) {
    let _one_by_one = dispatcher.keeping.lock().await;
    let now = base.now();
    let until = dispatcher.line.lock().throttled_until();
    let pause = Until::of(until, base.clock.boot_id(), now);
    let value = serde_json::to_vec(&pause).expect("a pause has string keys only");
    keep(&base, pause_key(&dispatcher.name), value.into(), &dispatcher.name).await;
}

async fn keep(base: &Base, key: Key, value: Bytes, instance: &InstanceName) {
    let write = Write::put(key, Expect::Any, value);
    if let Err(error) = base.commit(vec![write]).await {
        tracing::warn!(%instance, %error, "the state of the limits could not be saved for the next start");
    }
}

#[cfg(test)]
mod tests {
    use rate_control::time::{BootTag, Process};

    use super::*;

    fn at(boot: &BootId, mono_seconds: u64, wall_seconds: i64) -> Now {
        let mono = Mono::from_nanos(mono_seconds * 1_000_000_000);
        let process = Process { boot: BootTag::of(boot), began: Mono::default() };
        Now { mono, wall: WallTime::from_unix_millis(wall_seconds * 1000), process }
    }

    #[test]
    fn the_limit_is_read_back_in_any_boot_and_as_earlier_versions_wrote_it() {
        let [boot, other] = ["one", "two"].map(|boot| BootId(boot.to_owned()));
        let now = at(&boot, 1000, 5000);
        let grows = Until::of(now.mono.after(HOLD), boot.clone(), now);
        let value = serde_json::to_vec(&KeptLimit { limit: 200, quota: 1000, grows }).unwrap();
        let left = |seconds| HOLD - Duration::from_secs(seconds);
        for (boot, now, grows_in) in [
            (&boot, at(&boot, 1010, 5), left(10)),
            (&other, at(&other, 3, 5010), left(10)),
            (&other, at(&other, 3, 5), HOLD),
            (&boot, at(&boot, 9000, 5010), Duration::ZERO),
        ] {
            assert_eq!(kept_limit(&value, boot, now), Some(Kept { limit: 200, quota: 1000, grows_in }));
        }
        for value in ["200@1000", "200..800@1000"] {
            let kept = Some(Kept { limit: 200, quota: 1000, grows_in: HOLD });
            assert_eq!(kept_limit(value.as_bytes(), &boot, now), kept, "{value}");
        }
        for value in ["", "@", "200", "..@1000", "\u{fffd}", "{}"] {
            assert_eq!(kept_limit(value.as_bytes(), &boot, now), None, "{value}");
        }
    }
}
