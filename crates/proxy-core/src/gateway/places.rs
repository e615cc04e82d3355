//! Lines follow the records, and a device that waits changes its class.
//!
//! Invariants:
//! - The new place is on disk before the old one is left, so the device is never without.
//! - What a line holds in memory changes in the same step as the record, which runs to its end whatever becomes of the request.

use std::sync::Arc;

use super::Gateway;
use super::provision::suspect_not_before;
use crate::ids::InstanceName;
use crate::line::Line;
use crate::place::Class;
use crate::record::{Pending, Record, Versioned};
use crate::store::CommitError;

/// The place that a record speaks of.
fn standing(record: &Record) -> Option<(&Record, &Pending)> {
    Some((record, record.pending.as_ref()?))
}

impl Gateway {
    /// Lines follow their records, as part of the step that wrote them: the place that is new counts from now on, and the one that is not
    /// on disk any more is left. So no place outlives its record, whatever becomes of the request that changed it.
    pub(super) fn follow_in_lines(&self, old: Option<&Record>, new: Option<&Record>) {
        self.away.lock().follow(old, new);
        let (before, after) = (old.and_then(standing), new.and_then(standing));
        let place = |standing: Option<(&Record, &Pending)>| {
            standing.map(|(_, pending)| (pending.instance.clone(), pending.place))
        };
        if place(before) == place(after) {
            return;
        }
        match (before, after) {
            (Some((_, before)), Some((record, after))) if before.instance == after.instance => {
                self.in_line(&after.instance, |line| line.exchange(&record.tenant, before.place, after.place));
            }
            (before, after) => {
                if let Some((record, after)) = after {
                    let not_before = suspect_not_before(record, after.reason, &self.settings(), self.now());
                    self.in_line(&after.instance, |line| {
                        line.confirm(&record.tenant, after.place);
                        if let Some(not_before) = not_before {
                            line.defer(&record.tenant, after.place, not_before);
                        }
                    });
                }
                if let Some((record, before)) = before {
                    self.in_line(&before.instance, |line| {
                        line.leave(&record.tenant, before.place);
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
}
