//! The end of an operation: whether the device gets a hub, which one, and what that says of where it was before.

use std::sync::Arc;

use super::outcome::Outcome;
use super::{Plan, Registry, release};
use crate::allocation::Hubs;
use crate::config::{ReprovisionPolicy, StaySubstatus};
use crate::journal::Stats;
use crate::seeded::mix;
use crate::wire::{Status, Substatus};

impl Registry {
    pub(super) fn end(&mut self, key: u64, ended_ms: u64, hubs: &Hubs, stats: &mut Stats) {
        let Some(operation) = self.operations.get_mut(&key) else { return };
        let device = self.devices.entry(Arc::clone(&operation.device)).or_default();
        let running = if operation.told { &mut device.running_told } else { &mut device.running_untold };
        *running = running.saturating_sub(1);
        if device.created_ms == 0 {
            device.created_ms = ended_ms;
        }
        let terms = &operation.terms;
        let allocated = match &operation.plan {
            Plan::Hub(host) => Ok(Arc::clone(host)),
            Plan::Allocate => match (terms.reprovision, &device.hub) {
                (ReprovisionPolicy::Never, Some(first)) => Ok(Arc::clone(first)),
                _ => terms
                    .hub
                    .clone()
                    .or_else(|| hubs.hashed(&operation.device))
                    .ok_or((Status::Failed, Some((400_208, Arc::from("No IoT hub could be selected"))))),
            },
            // The service's answer to an operation that never ends is not documented.
            Plan::GiveUp => Err((Status::Failed, Some((500_001, Arc::from("The operation timed out"))))),
            Plan::Fail { error_code, message } => Err((Status::Failed, Some((*error_code, Arc::clone(message))))),
            Plan::Disabled => Err((Status::Disabled, None)),
            Plan::Unassigned => Err((Status::Unassigned, None)),
        };
        self.etags += 1;
        let mut outcome = Outcome {
            status: Status::Assigned,
            substatus: None,
            hub: None,
            device_id: terms.device_id.clone().unwrap_or_else(|| Arc::clone(&operation.device)),
            group: terms.group.clone(),
            error: None,
            payload: terms.payload.clone(),
            created_ms: device.created_ms,
            updated_ms: ended_ms,
            etag: mix(self.seed ^ self.etags),
        };
        match allocated {
            Ok(hub) => {
                stats.operations_assigned += 1;
                outcome.substatus = Some(match &device.hub {
                    None => Substatus::InitialAssignment,
                    Some(old) if *old == hub => match self.stay {
                        StaySubstatus::InitialAssignment => Substatus::InitialAssignment,
                        StaySubstatus::Reprovisioned => Substatus::ReprovisionedToInitialAssignment,
                    },
                    Some(_) if terms.reprovision == ReprovisionPolicy::Reset => Substatus::DeviceDataReset,
                    Some(_) => Substatus::DeviceDataMigrated,
                });
                if device.hub.as_ref() != Some(&hub) {
                    *self.per_hub.entry(Arc::clone(&hub)).or_default() += 1;
                    if let Some(old) = device.hub.replace(Arc::clone(&hub)) {
                        stats.moved += 1;
                        release(&mut self.per_hub, &old);
                    }
                }
                outcome.hub = Some(hub);
            }
            Err((status, error)) => {
                stats.operations_not_assigned += 1;
                outcome.status = status;
                outcome.error = error;
            }
        }
        let outcome = Arc::new(outcome);
        device.last = Some(Arc::clone(&outcome));
        operation.outcome = Some(outcome);
    }
}
