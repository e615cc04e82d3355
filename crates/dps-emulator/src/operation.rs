//! Operations and what devices have become: `assigning` for a while, then a result.
//!
//! Invariant: an operation ends at its due time, whoever looks and whenever. Nothing here reads a clock; the results of
//! [`Registry::advance`] depend only on the calls and their times.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use crate::allocation::Hubs;
use crate::config::{Config, StaySubstatus};
use crate::enrollment::Terms;
use crate::journal::Stats;
use crate::now::Now;
use crate::seeded::{guid, mix};
use crate::wire::Status;

mod ending;
mod outcome;
mod registration;

pub use registration::Registration;

use outcome::Outcome;

/// How an operation is going to end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Plan {
    Allocate,
    GiveUp,
    Fail { error_code: u32, message: Arc<str> },
    Hub(Arc<str>),
    Disabled,
    Unassigned,
}

#[derive(Debug)]
struct Operation {
    device: Arc<str>,
    text: Arc<str>,
    created_unix_s: u64,
    told: bool,
    terms: Terms,
    plan: Plan,
    outcome: Option<Arc<Outcome>>,
}

#[derive(Debug, Default)]
struct Device {
    registers: u32,
    running_told: u32,
    running_untold: u32,
    created_ms: u64,
    hub: Option<Arc<str>>,
    last: Option<Arc<Outcome>>,
}

/// What a poll sees.
pub(crate) enum Polled {
    Running { text: Arc<str> },
    Ended { text: Arc<str>, outcome: Arc<Outcome> },
}

/// All operations and devices of an instance.
pub(crate) struct Registry {
    devices: HashMap<Arc<str>, Device>,
    operations: HashMap<u64, Operation>,
    due: BinaryHeap<Reverse<(u64, u64, u64)>>,
    retire: VecDeque<(u64, u64)>,
    per_hub: std::collections::BTreeMap<Arc<str>, u64>,
    created: u64,
    etags: u64,
    seed: u64,
    assigning_ns: u64,
    give_up_ns: u64,
    retention_ns: u64,
    stay: StaySubstatus,
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Registry {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            devices: HashMap::new(),
            operations: HashMap::new(),
            due: BinaryHeap::new(),
            retire: VecDeque::new(),
            per_hub: std::collections::BTreeMap::new(),
            created: 0,
            etags: 0,
            seed: config.seed,
            assigning_ns: nanos(config.assigning),
            give_up_ns: nanos(config.give_up),
            retention_ns: nanos(config.operation_retention),
            stay: config.stay_substatus,
        }
    }

    pub(crate) fn set_assigning(&mut self, assigning: std::time::Duration) {
        self.assigning_ns = nanos(assigning);
    }

    /// The device's own copy of its ID, so that the journal does not hold a million others.
    pub(crate) fn known_id(&self, registration_id: &str) -> Option<Arc<str>> {
        self.devices.get_key_value(registration_id).map(|(id, _)| Arc::clone(id))
    }

    /// Whether an operation of the device runs: (told, untold).
    pub(crate) fn running(&self, registration_id: &str) -> (u32, u32) {
        self.devices.get(registration_id).map_or((0, 0), |device| (device.running_told, device.running_untold))
    }

    /// Begins an operation. `told` is false if the client will never see its ID.
    pub(crate) fn begin(
        &mut self,
        registration_id: &str,
        terms: Terms,
        plan: Plan,
        told: bool,
        now: Now,
        stats: &mut Stats,
    ) -> (Arc<str>, Arc<str>) {
        self.created += 1;
        let key = mix(self.seed ^ mix(self.created));
        let id = self.known_id(registration_id).unwrap_or_else(|| Arc::from(registration_id));
        let text: Arc<str> = Arc::from(format!("5.{key:016x}.{}", guid(self.seed, key)));
        let device = self.devices.entry(Arc::clone(&id)).or_default();
        device.registers += 1;
        stats.registers_per_device_max = stats.registers_per_device_max.max(device.registers);
        if device.registers == 1 {
            device.created_ms = now.unix_ms;
        }
        if device.running_told > 0 {
            stats.concurrent_registrations += 1;
        } else if device.running_untold > 0 {
            stats.concurrent_after_lost_reply += 1;
        }
        *(if told { &mut device.running_told } else { &mut device.running_untold }) += 1;
        stats.operations_started += 1;
        let (lasts, plan) = match plan {
            Plan::GiveUp => (self.give_up_ns, Plan::GiveUp),
            _ if self.assigning_ns >= self.give_up_ns => (self.give_up_ns, Plan::GiveUp),
            plan => (self.assigning_ns, plan),
        };
        self.due.push(Reverse((now.monotonic_ns.saturating_add(lasts), self.created, key)));
        self.retire.push_back((now.monotonic_ns.saturating_add(self.retention_ns), key));
        self.operations.insert(
            key,
            Operation {
                device: Arc::clone(&id),
                text: Arc::clone(&text),
                created_unix_s: now.unix_ms / 1000,
                told,
                terms,
                plan,
                outcome: None,
            },
        );
        (id, text)
    }

    /// Ends what is due and forgets what is old.
    pub(crate) fn advance(&mut self, now: Now, hubs: &Hubs, stats: &mut Stats) {
        while let Some(&Reverse((due, _, key))) = self.due.peek() {
            if due > now.monotonic_ns {
                break;
            }
            self.due.pop();
            let ended_ms = now.unix_ms.saturating_sub((now.monotonic_ns - due) / 1_000_000);
            self.end(key, ended_ms, hubs, stats);
        }
        while let Some(&(at, key)) = self.retire.front() {
            if at > now.monotonic_ns {
                break;
            }
            self.retire.pop_front();
            self.operations.remove(&key);
        }
    }

    /// Finds an operation of a device; the number is when it was created, in Unix seconds.
    pub(crate) fn poll(&self, registration_id: &str, operation_id: &str) -> Option<(Polled, u64)> {
        let key = operation_id.strip_prefix("5.")?.get(..16)?;
        let operation = self.operations.get(&u64::from_str_radix(key, 16).ok()?)?;
        if &*operation.text != operation_id || &*operation.device != registration_id {
            return None;
        }
        let text = Arc::clone(&operation.text);
        let polled = match &operation.outcome {
            None => Polled::Running { text },
            Some(outcome) => Polled::Ended { text, outcome: Arc::clone(outcome) },
        };
        Some((polled, operation.created_unix_s))
    }

    /// The stored registration: `Some(None)` while the first one runs.
    pub(crate) fn lookup(&self, registration_id: &str) -> Option<Option<Arc<Outcome>>> {
        self.devices.get(registration_id).map(|device| device.last.clone())
    }

    pub(crate) fn registration(&self, registration_id: &str) -> Option<Registration> {
        let device = self.devices.get(registration_id)?;
        let last = device.last.as_deref();
        Some(Registration {
            registration_id: registration_id.to_owned(),
            status: last.map_or(Status::Assigning, |outcome| outcome.status),
            substatus: last.and_then(|outcome| outcome.substatus),
            device_id: last.map(|outcome| outcome.device_id.to_string()),
            assigned_hub: device.hub.as_deref().map(str::to_owned),
            registers: device.registers,
            running: device.running_told + device.running_untold,
            created_unix_ms: device.created_ms,
            updated_unix_ms: last.map(|outcome| outcome.updated_ms),
        })
    }

    /// Deletes the record, as the service API does. Operations that run go on and will create it anew.
    pub(crate) fn delete(&mut self, registration_id: &str) -> bool {
        let Some(device) = self.devices.remove(registration_id) else { return false };
        if let Some(hub) = device.hub {
            release(&mut self.per_hub, &hub);
        }
        true
    }

    pub(crate) fn per_hub(&self) -> std::collections::BTreeMap<String, u64> {
        self.per_hub.iter().map(|(hub, devices)| (hub.to_string(), *devices)).collect()
    }

    pub(crate) fn devices_registered(&self) -> u64 {
        self.per_hub.values().sum()
    }
}

fn release(per_hub: &mut std::collections::BTreeMap<Arc<str>, u64>, hub: &Arc<str>) {
    if let Some(devices) = per_hub.get_mut(hub) {
        *devices -= 1;
        if *devices == 0 {
            per_hub.remove(hub);
        }
    }
}
