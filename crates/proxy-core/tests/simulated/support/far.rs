//! An owner of the lines that is far away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use proxy_core::device::{Effects, Flight, Pending};
use proxy_core::ids::{InstanceName, TenantName};
use proxy_core::line_owner::{At, Avoid, Explained, LineOwner, LineReport, Newcomer, NotExpected, Told};

/// Each question takes `way` to get there, and each answer to come back; reports do not.
#[derive(Debug)]
pub(crate) struct Far {
    pub(crate) owner: Arc<dyn LineOwner>,
    pub(crate) way: Duration,
}

impl Far {
    fn far<'a, T: Send + 'a>(&'a self, answer: BoxFuture<'a, T>) -> BoxFuture<'a, T> {
        async move {
            // On the paused clock: the way there, and the way back.
            tokio::time::sleep(self.way).await;
            let answer = answer.await;
            tokio::time::sleep(self.way).await;
            answer
        }
        .boxed()
    }
}

impl LineOwner for Far {
    fn avoid<'a>(&'a self, tenant: &'a TenantName) -> BoxFuture<'a, Avoid> {
        self.far(self.owner.avoid(tenant))
    }

    fn expect<'a>(&'a self, newcomer: &'a Newcomer) -> BoxFuture<'a, Result<(), NotExpected>> {
        self.far(self.owner.expect(newcomer))
    }

    fn withdraw<'a>(&'a self, newcomer: &'a Newcomer) -> BoxFuture<'a, ()> {
        self.far(self.owner.withdraw(newcomer))
    }

    fn follow<'a>(&'a self, effects: &'a Effects) -> BoxFuture<'a, ()> {
        self.far(self.owner.follow(effects))
    }

    fn tell<'a>(&'a self, at: At<'a>) -> BoxFuture<'a, Option<Told>> {
        self.far(self.owner.tell(at))
    }

    fn sooner<'a>(&'a self, at: At<'a>, among: &'a BTreeSet<InstanceName>) -> BoxFuture<'a, Option<InstanceName>> {
        self.far(self.owner.sooner(at, among))
    }

    fn on_its_way<'a>(&'a self, flight: &'a Flight) -> BoxFuture<'a, bool> {
        self.far(self.owner.on_its_way(flight))
    }

    fn room_in<'a>(
        &'a self,
        tenant: &'a TenantName,
        among: &'a BTreeSet<InstanceName>,
        promised: bool,
    ) -> BoxFuture<'a, Duration> {
        self.far(self.owner.room_in(tenant, among, promised))
    }

    fn explain<'a>(&'a self, tenant: &'a TenantName, pending: &'a Pending) -> BoxFuture<'a, Option<Explained>> {
        self.far(self.owner.explain(tenant, pending))
    }

    fn report(&self) -> BoxFuture<'_, BTreeMap<InstanceName, LineReport>> {
        self.owner.report()
    }
}
