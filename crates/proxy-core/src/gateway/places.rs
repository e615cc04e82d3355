//! Lines follow the records, and a device that waits changes its class.
//!
//! Invariants:
//! - The new place is on disk before the old one is left, so the device is never without.
//! - What a line holds in memory changes in the same step as the record, which runs to its end whatever becomes of the request.

use std::sync::Arc;

use super::provision::{Reserved, suspect_not_before};
use super::{Gateway, lost_race};
use crate::device::{Command, Effects, Rejected, Versioned};
use crate::ids::InstanceName;
use crate::line::Line;
use crate::place::Class;
use crate::store::CommitError;

impl Gateway {
    /// Lines follow their records, as part of the step that wrote them: the place that is new counts from now on, and the one that is not
    /// on disk any more is left. So no place outlives its record, whatever becomes of the request that changed it.
    pub(super) fn follow_in_lines(&self, effects: &Effects) {
        let (left, joined) = (effects.left(), effects.joined());
        if let (Some((_, left)), Some((tenant, joined))) = (left, joined)
            && left.instance == joined.instance
        {
            return self.in_line(&joined.instance, |line| line.exchange(tenant, left.place, joined.place));
        }
        if let Some((tenant, joined)) = joined {
            let begun = joined.last_registration_begun;
            let not_before = suspect_not_before(begun, joined.reason, &self.settings(), self.now());
            self.in_line(&joined.instance, |line| {
                line.confirm(tenant, joined.place);
                if let Some(not_before) = not_before {
                    line.defer(tenant, joined.place, not_before);
                }
            });
        }
        if let Some((tenant, left)) = left {
            self.in_line(&left.instance, |line| {
                line.leave(tenant, left.place);
            });
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
    pub(super) async fn reseat(
        self: &Arc<Self>,
        old: Versioned,
        class: Class,
        why: &'static str,
    ) -> Result<(), CommitError> {
        let now = self.now();
        let draft = self.draft(old, now);
        let record = draft.record();
        let dispatcher = record.pending().and_then(|pending| self.dispatcher(&pending.instance));
        let dispatcher = dispatcher.ok_or_else(|| lost_race(Rejected::NoPlace))?;
        let id = record.registration_id().clone();
        let place = dispatcher.line.lock().reserve_again(record.tenant(), id, class, now.mono);
        let reserved = Reserved { dispatcher, counted: false, place };
        self.take_seat(draft, Command::Reseat { place, why }, reserved).await
    }
}
