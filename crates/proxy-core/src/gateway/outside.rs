//! Devices that get no place, because the lines that could take them are full: told when there should be one.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Gateway;
use super::dispatch::Dispatcher;
use super::provision::ProvisionError;
use crate::device::Record;
use crate::dialect::Dialect;
use crate::ids::{InstanceName, TenantName};
use crate::line::LineFull;
use crate::placement;
use rate_control::time::Now;

impl Gateway {
    /// Instances whose lines take no device of `tenant` now.
    pub(super) fn full_lines(&self, tenant: &TenantName, now: Now) -> BTreeSet<InstanceName> {
        let dispatchers = self.dispatchers.load();
        let full = dispatchers.iter().filter(|(_, dispatcher)| !dispatcher.line.lock().has_room(tenant, now.mono));
        full.map(|(name, _)| name.clone()).collect()
    }

    /// What a device is told that `asked` has no place for. One that may go anywhere is told when the first of its instances should have
    /// room. It is told in its dialect if it asks itself, and so will be there then.
    pub(super) fn turned_away(
        &self,
        record: &Record,
        asked: &Arc<Dispatcher>,
        anywhere: bool,
        dialect: Option<Dialect>,
        full: LineFull,
        now: Now,
    ) -> ProvisionError {
        let tenant = record.tenant();
        let first = if anywhere { self.first_with_room(record, now) } else { None };
        let first = first.unwrap_or_else(|| Arc::clone(asked));
        let mut entropy = self.entropy.lock();
        let mut line = first.line.lock();
        let room_at = if dialect.is_some() {
            line.turn_away(tenant, now.mono, &mut entropy)
        } else {
            line.room_forecast(tenant, now.mono)
        };
        drop(line);
        let (wait, jitter_max) = (room_at.since(now.mono), self.settings.load().line.jitter_max);
        let retry_after_seconds =
            dialect.unwrap_or(Dialect::PLAIN).told_seconds(wait, jitter_max, |most| entropy.up_to(most));
        ProvisionError::LineFull { full, retry_after_seconds }
    }

    /// Of the instances that the device may go to, the one whose line should have room first; those that fail come last.
    fn first_with_room(&self, record: &Record, now: Now) -> Option<Arc<Dispatcher>> {
        let settings = self.settings.load();
        let enrollment = settings.enrollments.get(record.enrollment())?;
        let sick = self.sick_instances(now.mono);
        let open = |name: &InstanceName| {
            settings.instances.get(name).is_some_and(|instance| {
                placement::fits(enrollment, name, instance)
                    && !instance.draining
                    && self.occupancy.lock().has_room(name, instance)
            })
        };
        let dispatchers = self.dispatchers.load();
        let candidates = dispatchers.iter().filter(|(name, _)| open(name));
        let first = candidates.min_by_key(|(name, dispatcher)| {
            (sick.contains(*name), dispatcher.line.lock().room_forecast(record.tenant(), now.mono))
        });
        first.map(|(_, dispatcher)| Arc::clone(dispatcher))
    }
}
