//! Operations and what devices have become: `assigning` for a while, then a result.
//!
//! Invariant: an operation ends at its due time, whoever looks and whenever. Nothing here reads a clock; the results of
//! [`Registry::advance`] depend only on the calls and their times.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use crate::config::{Config, ReprovisionPolicy, StaySubstatus};
use crate::device_api::Now;
use crate::enrollment::{Hubs, Terms};
use crate::faults::mix;
use crate::journal::Stats;
use crate::wire::{RegistrationResult, Status, Substatus, SymmetricKeyResult, timestamp};

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

/// A finished registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) status: Status,
    substatus: Option<Substatus>,
    hub: Option<Arc<str>>,
    device_id: Arc<str>,
    group: Option<Arc<str>>,
    error: Option<(u32, Arc<str>)>,
    /// From a custom allocation policy.
    payload: Option<Arc<serde_json::Value>>,
    created_ms: u64,
    updated_ms: u64,
    etag: u64,
}

impl Outcome {
    pub(crate) fn result<'a>(&'a self, registration_id: &'a str) -> RegistrationResult<'a> {
        let assigned = self.status == Status::Assigned;
        RegistrationResult {
            symmetric_key: self
                .group
                .as_deref()
                .filter(|_| assigned)
                .map(|group| SymmetricKeyResult { enrollment_group_id: group }),
            registration_id,
            created_date_time_utc: Some(timestamp(self.created_ms)),
            assigned_hub: self.hub.as_deref().filter(|_| assigned),
            // The embedded C parser wants both of assignedHub and deviceId, or neither.
            device_id: assigned.then_some(&*self.device_id),
            status: self.status,
            substatus: self.substatus,
            error_code: self.error.as_ref().map(|(code, _)| *code),
            error_message: self.error.as_ref().map(|(_, message)| &**message),
            payload: self.payload.as_deref().filter(|_| assigned),
            last_updated_date_time_utc: Some(timestamp(self.updated_ms)),
            etag: Some(etag(self.etag)),
        }
    }
}

/// Base64 of a quoted hexadecimal text, as in published captures.
fn etag(value: u64) -> String {
    use base64::Engine as _;
    let quoted = format!("\"{:08x}-0000-0000-0000-{:012x}\"", value >> 32, value & 0xFFFF_FFFF_FFFF);
    base64::engine::general_purpose::STANDARD.encode(quoted)
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

/// What is known of a registration, for tests and the control interface.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// In lower case.
    pub registration_id: String,
    /// Status of the last finished registration; `assigning` if none has finished.
    pub status: Status,
    /// Substatus, if assigned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub substatus: Option<Substatus>,
    /// Device ID at the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Hub on which the device is now, also after a later failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assigned_hub: Option<String>,
    /// Register calls that were accepted.
    pub registers: u32,
    /// Operations that run now.
    pub running: u32,
    /// First registration, Unix milliseconds.
    pub created_unix_ms: u64,
    /// Last finished registration, Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_unix_ms: Option<u64>,
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

    fn end(&mut self, key: u64, ended_ms: u64, hubs: &Hubs, stats: &mut Stats) {
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

/// Looks like a version-4 GUID, and is always the same for the same input.
pub(crate) fn guid(seed: u64, number: u64) -> String {
    let (high, low) = (mix(seed ^ number.rotate_left(17)), mix(seed.rotate_left(32) ^ number));
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xFFFF,
        high & 0xFFF,
        0x8000 | ((low >> 48) & 0x3FFF),
        low & 0xFFFF_FFFF_FFFF
    )
}
