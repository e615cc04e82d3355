//! The way from a process of ours to the instances, through which the gateway calls them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use proxy_core::ids::{InstanceName, OperationId};
use proxy_core::settings::{Instance as InstanceSettings, RegistrationSettings};
use proxy_core::upstream::time::{Speaker, TimeAnswer};
use proxy_core::upstream::{CallResult, Caller, Connect, LastLook, NoAnswer, Upstream};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Call, Dps, MAX_DELAY, More, to_the_second, wall};

/// One process of ours, as the network sees it: once killed it sends nothing and hears nothing.
#[derive(Debug, Default)]
pub(crate) struct Process {
    died: Mutex<Option<Instant>>,
    /// Whether it is stopped: nothing of it goes on, while the clocks do.
    stopped: watch::Sender<bool>,
    /// Whether it waits for what it reads in pages.
    scans_held: watch::Sender<bool>,
}

impl Process {
    pub(crate) fn kill(&self) {
        *self.died.lock() = Some(Instant::now());
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.died.lock().is_some()
    }

    /// As SIGSTOP does, and SIGCONT.
    pub(crate) fn stop(&self, stopped: bool) {
        self.stopped.send_replace(stopped);
    }

    /// From now on it waits for what it reads in pages, or does no more.
    pub(crate) fn hold_scans(&self, held: bool) {
        self.scans_held.send_replace(held);
    }

    /// Returns while its scans are not held.
    pub(crate) async fn may_scan(&self) {
        let _ = self.scans_held.subscribe().wait_for(|held| !held).await;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    /// Returns while it is not stopped.
    pub(crate) async fn goes_on(&self) {
        let _ = self.stopped.subscribe().wait_for(|stopped| !stopped).await;
    }

    /// Returns for a living process only.
    pub(super) async fn alive(&self) {
        self.goes_on().await;
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
    }

    pub(super) fn may_still_arrive(&self) -> bool {
        self.died.lock().is_none_or(|died| died.elapsed() <= MAX_DELAY)
    }
}

/// The network between one process and all instances.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) process: Arc<Process>,
    pub(crate) instances: BTreeMap<InstanceName, Arc<Dps>>,
}

impl Connect for Network {
    fn connect(
        &self,
        name: &InstanceName,
        _instance: &InstanceSettings,
        _registration: &RegistrationSettings,
    ) -> Result<Arc<dyn Upstream>, String> {
        let dps = self.instances.get(name).ok_or_else(|| format!("no such instance: {name}"))?;
        Ok(Arc::new(Client { dps: Arc::clone(dps), process: Arc::clone(&self.process) }))
    }
}

#[derive(Debug)]
struct Client {
    dps: Arc<Dps>,
    process: Arc<Process>,
}

impl Client {
    fn call<'a>(&'a self, call: Call, caller: &'a Caller, more: More<'a>) -> BoxFuture<'a, CallResult> {
        Arc::clone(&self.dps).call(Arc::clone(&self.process), call, caller, more).boxed()
    }

    /// The last look is taken when the connection is there.
    async fn once_connected(&self, last_look: &LastLook, call: BoxFuture<'_, CallResult>) -> CallResult {
        let connecting = self.dps.inner.lock().connecting.pop_front();
        if let Some(connecting) = connecting {
            // On the paused clock: how long the connection takes to come up.
            tokio::time::sleep(connecting).await;
            self.process.alive().await;
        }
        last_look.ask().map_err(NoAnswer::Withheld)?;
        // Wherever it is stopped, this is the worst place.
        self.process.goes_on().await;
        call.await
    }
}

impl Upstream for Client {
    fn register<'a>(
        &'a self,
        caller: &'a Caller,
        payload: Option<&'a Value>,
        last_look: &'a LastLook,
    ) -> BoxFuture<'a, CallResult> {
        let call = self.call(Call::Register, caller, More { payload, operation: None });
        self.once_connected(last_look, call).boxed()
    }

    fn poll<'a>(&'a self, caller: &'a Caller, operation_id: &'a OperationId) -> BoxFuture<'a, CallResult> {
        self.call(Call::Poll, caller, More { payload: None, operation: Some(operation_id.as_str()) })
    }

    fn lookup<'a>(&'a self, caller: &'a Caller, last_look: &'a LastLook) -> BoxFuture<'a, CallResult> {
        let call = self.call(Call::Lookup, caller, More { payload: None, operation: None });
        self.once_connected(last_look, call).boxed()
    }

    fn time(&self) -> BoxFuture<'_, Result<TimeAnswer, NoAnswer>> {
        async {
            self.process.goes_on().await;
            self.process.alive().await;
            let mut inner = self.dps.inner.lock();
            inner.asked_for_time.push(self.dps.began.elapsed());
            if !inner.tells_time {
                return Err(NoAnswer::NeverLeft("connection refused".to_owned()));
            }
            let date = |ahead| Some(to_the_second(wall(self.dps.began, inner.skew_millis + ahead)));
            Ok(match inner.front {
                Some((http_status, ahead)) => TimeAnswer {
                    speaker: Speaker::Front,
                    http_status,
                    date: ahead.and_then(date),
                    retry_after: (http_status == 429).then_some(Duration::from_secs(17)),
                },
                None => TimeAnswer { speaker: Speaker::Dps, http_status: 401, date: date(0), retry_after: None },
            })
        }
        .boxed()
    }
}
