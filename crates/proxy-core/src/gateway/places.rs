//! From one place to another: a device that waits changes its class, or is booked on another instance because its own fails.
//!
//! Invariants:
//! - The new place is on disk before the old one is left, so the device is never without.
//! - Only a device for which nothing can have left may change its instance here. One that is assigned somewhere, or whose outcome is
//!   unknown, is re-homed by nobody but an operator.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument as _;

use super::provision::{Joining, ProvisionError, suspect_not_before};
use super::{Gateway, about};
use crate::ids::{InstanceName, RegistrationId, TenantName};
use crate::lanes::Class;
use crate::line::Line;
use crate::record::{Pending, Record, Stage, Versioned};
use crate::store::CommitError;
use crate::time::{Mono, Now};

/// How often lines of instances that fail are looked at.
const RELIEF_EVERY: Duration = Duration::from_secs(1);

/// Devices at the front of a line that are looked at in one go.
const RELIEF_MAX: usize = 256;

/// A line is taken to have room for others while it is shorter than what it registers in this time.
const RELIEF_AHEAD: Duration = Duration::from_secs(5);

/// Whether nothing can have left for the device, here or elsewhere, and nobody wants it at a certain instance.
pub(super) fn may_be_rebooked(record: &Record) -> bool {
    let fresh = record.pending.as_ref().is_some_and(|pending| {
        pending.stage == Stage::Waiting && pending.attempts == 0 && pending.first_there && record.footprint.len() == 1
    });
    fresh && record.assignment.is_none() && record.moving_to.is_none() && record.blocked.is_none()
}

impl Gateway {
    /// Lines follow their records, as part of the step that wrote them: the place that is new counts from now on, and the one that is not
    /// on disk any more is left. So no place outlives its record, whatever becomes of the request that changed it.
    pub(super) fn follow_in_lines(&self, old: Option<&Record>, new: Option<&Record>) {
        let pending = |record: Option<&Record>| Some((record?.tenant.clone(), record?.pending.clone()?));
        let (before, after) = (pending(old), pending(new));
        let place = |pending: &Option<(TenantName, Pending)>| {
            pending.as_ref().map(|(_, pending)| (pending.instance.clone(), pending.place))
        };
        if place(&before) == place(&after) {
            return;
        }
        match (before, after, new) {
            (Some((_, before)), Some((tenant, after)), _) if before.instance == after.instance => {
                self.in_line(&after.instance, |line| line.exchange(&tenant, before.place, after.place));
            }
            (before, after, new) => {
                if let (Some((tenant, after)), Some(new)) = (after, new) {
                    let not_before = suspect_not_before(new, after.reason, &self.settings(), self.now());
                    self.in_line(&after.instance, |line| {
                        line.confirm(&tenant, after.place);
                        if let Some(not_before) = not_before {
                            line.defer(&tenant, after.place, not_before);
                        }
                    });
                }
                if let Some((tenant, before)) = before {
                    self.in_line(&before.instance, |line| {
                        line.leave(&tenant, before.place);
                    });
                }
            }
        }
    }

    /// Changes the line of an instance, which then looks who may go.
    fn in_line(&self, instance: &InstanceName, change: impl FnOnce(&mut Line)) {
        if let Some(dispatcher) = self.dispatcher(instance) {
            change(&mut dispatcher.line.lock());
            dispatcher.bell.notify_one();
        }
    }

    /// Whether the instance has failed for so long that devices may be booked elsewhere.
    pub(super) fn is_sick(&self, instance: &InstanceName, now: Mono) -> bool {
        let after = self.settings.load().line.rebook_after;
        let sick_for = self.dispatcher(instance).and_then(|dispatcher| dispatcher.line.lock().sick_for(now));
        sick_for.is_some_and(|sick_for| sick_for >= after)
    }

    /// The instances that have.
    pub(super) fn sick_instances(&self, now: Mono) -> BTreeSet<InstanceName> {
        let dispatchers = self.dispatchers.load();
        dispatchers.keys().filter(|name| self.is_sick(name, now)).cloned().collect()
    }

    /// Gives a device that waits a place in another class of the same line. The store's error is returned as it is, so that a lost
    /// race can be decided anew.
    pub(super) async fn reseat(self: &Arc<Self>, old: &Versioned, class: Class, why: &str) -> Result<(), CommitError> {
        let Some(pending) = &old.record.pending else { return Err(CommitError::Conflict { index: 0 }) };
        let Some(dispatcher) = self.dispatcher(&pending.instance) else {
            return Err(CommitError::Conflict { index: 0 });
        };
        let (now, tenant) = (self.now(), old.record.tenant.clone());
        let id = old.record.registration_id.clone();
        let place = dispatcher.line.lock().reserve_again(&tenant, id, class, now.mono);
        let (gateway, old, mut new) = (Arc::clone(self), old.record.clone(), old.clone());
        new.record.note(now.wall, self.settings().registration.timeline_max, why);
        if let Some(pending) = &mut new.record.pending {
            pending.place = place;
        }
        self.to_the_end(async move {
            let committed = gateway.commit_here(Some(&old), &new, Vec::new(), None).await;
            if committed.is_err() {
                dispatcher.line.lock().leave(&tenant, place);
                dispatcher.bell.notify_one();
            }
            committed
        })
        .await
    }

    /// Books a device on an instance that is none of `avoid`.
    ///
    /// # Errors
    /// If none takes it: it keeps its place then. The inner error is the store's.
    pub(super) async fn rebook(
        self: &Arc<Self>,
        old: Box<Versioned>,
        avoid: &BTreeSet<InstanceName>,
        now: Now,
    ) -> Result<Result<(), CommitError>, ProvisionError> {
        let mut new = (*old).clone();
        let Some(left) = new.record.drop_pending() else { return Ok(Err(CommitError::Conflict { index: 0 })) };
        let joining = Joining {
            reason: left.reason,
            class: left.place.class,
            payload: left.payload.clone(),
            reprovision: left.reprovision,
            request_id: left.request_id.clone(),
        };
        let why = format!("calls to {} fail, and nothing was sent there: booked on another instance", left.instance);
        new.record.note(now.wall, self.settings().registration.timeline_max, why);
        self.enter(Some(old.record), new, joining, Some(avoid), now).await
    }

    /// Keeps booking devices from lines whose instance fails on instances that have nobody waiting.
    pub(super) async fn relieve_sick_instances(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(RELIEF_EVERY) => {}
            }
            let now = self.now();
            let sick = self.sick_instances(now.mono);
            if sick.is_empty() {
                continue;
            }
            let (busy, mut room) = self.busy_instances(&sick);
            for instance in &sick {
                for id in self.first_in_line(instance, RELIEF_MAX) {
                    if room == 0 {
                        break;
                    }
                    room -= usize::from(self.relieve(&id, instance, &busy, now).await);
                }
            }
        }
    }

    /// The instances that have enough to do or fail, and for how many devices the others have room.
    fn busy_instances(&self, sick: &BTreeSet<InstanceName>) -> (BTreeSet<InstanceName>, usize) {
        let (mut busy, mut room) = (sick.clone(), 0);
        for (name, dispatcher) in self.dispatchers.load().iter().filter(|(name, _)| !sick.contains(*name)) {
            let (waiting, rate) = {
                let line = dispatcher.line.lock();
                (line.waiting(), line.limit_per_minute())
            };
            let enough = (f64::from(rate) * RELIEF_AHEAD.as_secs_f64() / 60.0).ceil();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
            match (enough as usize).checked_sub(waiting) {
                Some(more) if more > 0 => room += more,
                Some(_) | None => drop(busy.insert(name.clone())),
            }
        }
        (busy, room)
    }

    fn first_in_line(&self, instance: &InstanceName, most: usize) -> Vec<RegistrationId> {
        self.dispatcher(instance).map(|dispatcher| dispatcher.line.lock().first(most)).unwrap_or_default()
    }

    /// Whether the device was booked elsewhere.
    async fn relieve(
        self: &Arc<Self>,
        id: &RegistrationId,
        instance: &InstanceName,
        busy: &BTreeSet<InstanceName>,
        now: Now,
    ) -> bool {
        let Ok(Some(old)) = self.load(id).await else { return false };
        let waits_here = old.record.pending.as_ref().is_some_and(|pending| pending.instance == *instance);
        if !waits_here || !may_be_rebooked(&old.record) {
            return false;
        }
        // Whoever cannot be booked elsewhere now keeps its place and is looked at again.
        let span = about::registration_span(id, instance);
        let booked = async {
            about::cause(&old.record);
            self.rebook(Box::new(old), busy, now).await
        };
        match booked.instrument(span.clone()).await {
            Ok(booked) => booked.is_ok(),
            Err(error) => {
                span.in_scope(|| tracing::debug!(%error, "not booked elsewhere"));
                false
            }
        }
    }
}
