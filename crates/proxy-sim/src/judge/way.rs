//! Each device's way through the lines, and what else the log tells of how well the service served.

use std::collections::BTreeMap;
use std::time::Duration;

use proxy_core::ids::InstanceName;

use crate::log::{Call, Entry, Event, Told};
use crate::network::WINDOW;
use crate::scenario::{DevicePlan, InstancePlan, Manner, Scenario};

/// A registration that left.
#[derive(Debug)]
pub(super) struct Send {
    pub(super) at: Duration,
    pub(super) instance: InstanceName,
}

/// What a device was told of its wait.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) at: Duration,
    /// When it is to come back.
    pub(super) due: Duration,
}

/// How a call of a device ended; nothing if its process died before.
#[derive(Debug)]
pub(super) struct Ended {
    /// When the call had left.
    pub(super) sent: Duration,
    pub(super) at: Duration,
    pub(super) status: Option<u16>,
}

/// One device as it was seen from outside.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) tenant: usize,
    pub(super) obedient: bool,
    pub(super) asked: Vec<Duration>,
    pub(super) told: Vec<Wait>,
    pub(super) told_hub: Option<Duration>,
    /// When an operator expedited it.
    pub(super) expedited: Option<Duration>,
    pub(super) sends: Vec<Send>,
    pub(super) ended: Vec<Ended>,
}

impl Way {
    /// When it had a place that it knew of.
    pub(super) fn joined(&self) -> Option<Duration> {
        self.told.first().map(|told| told.at)
    }

    /// When its first registration left.
    pub(super) fn left(&self) -> Option<Duration> {
        self.sends.first().map(|send| send.at)
    }

    /// When DPS had given it a hub: its last call ended then.
    pub(super) fn ready(&self) -> Option<Duration> {
        self.ended.iter().rev().find(|ended| ended.status == Some(200)).map(|ended| ended.at)
    }

    /// Whether it stood in line at that moment.
    pub(super) fn waits_at(&self, moment: Duration) -> bool {
        self.joined().is_some_and(|joined| joined <= moment) && self.left().is_none_or(|left| left > moment)
    }

    /// Whether that was at `instance`, as far as the one that served it tells.
    pub(super) fn is_of(&self, instance: &InstanceName) -> bool {
        self.sends.first().is_some_and(|send| send.instance == *instance)
    }
}

/// All ways of a run.
#[derive(Debug)]
pub(super) struct Ways<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) devices: Vec<Way>,
    /// Moments at which registrations left, in order, and of which device.
    pub(super) sends: BTreeMap<InstanceName, Vec<(Duration, usize)>>,
    /// When processes ended.
    pub(super) ends: Vec<Duration>,
}

impl<'a> Ways<'a> {
    pub(super) fn read(scenario: &'a Scenario, log: &[Entry]) -> Self {
        let way = |plan: &DevicePlan| Way {
            tenant: plan.tenant,
            obedient: plan.manner == Manner::Obedient,
            ..Way::default()
        };
        let by_id: BTreeMap<&str, usize> =
            scenario.devices.iter().enumerate().map(|(index, plan)| (plan.hardware_id.as_str(), index)).collect();
        let devices = scenario.devices.iter().map(way).collect();
        let mut ways = Self { scenario, devices, sends: BTreeMap::new(), ends: Vec::new() };
        let mut calls: BTreeMap<u64, (usize, Duration)> = BTreeMap::new();
        for Entry { at, event } in log {
            let at = *at;
            match event {
                Event::Ended { .. } => ways.ends.push(at),
                Event::Asked { device, .. } => ways.devices[*device].asked.push(at),
                Event::Told { device, told: Told::Queued { retry_after, .. } } => {
                    let due = at + Duration::from_secs(*retry_after);
                    ways.devices[*device].told.push(Wait { at, due });
                }
                Event::Told { device, told: Told::Assigned { .. } } => {
                    ways.devices[*device].told_hub.get_or_insert(at);
                }
                Event::Cause { device, .. } => {
                    ways.devices[*device].expedited.get_or_insert(at);
                }
                Event::Sent { number, instance, call, id, .. } => {
                    let Some(&device) = by_id.get(id.as_str()) else { continue };
                    calls.insert(*number, (device, at));
                    if *call == Call::Register {
                        ways.devices[device].sends.push(Send { at, instance: instance.clone() });
                        ways.sends.entry(instance.clone()).or_default().push((at, device));
                    }
                }
                Event::Heard { number, status, .. } => {
                    if let Some((device, sent)) = calls.remove(number) {
                        ways.devices[device].ended.push(Ended { sent, at, status: *status });
                    }
                }
                _ => {}
            }
        }
        ways
    }

    /// Registrations that left for `instance` from `from` until before `until`.
    pub(super) fn sent(&self, instance: &InstanceName, from: Duration, until: Duration) -> &[(Duration, usize)] {
        let sends = self.sends.get(instance).map_or(&[][..], Vec::as_slice);
        let index = |moment: Duration| sends.partition_point(|(at, _)| *at < moment);
        &sends[index(from)..index(until).max(index(from))]
    }

    /// Stretches in which at least one device for which `counts` waited.
    pub(super) fn stretches(&self, counts: impl Fn(&Way) -> bool) -> Vec<(Duration, Duration)> {
        let mut steps: Vec<(Duration, i32)> = Vec::new();
        for way in self.devices.iter().filter(|way| counts(way)) {
            if let (Some(joined), Some(left)) = (way.joined(), way.left())
                && joined < left
            {
                steps.extend([(joined, 1), (left, -1)]);
            }
        }
        // Who joins at the moment at which another one leaves follows without a gap.
        steps.sort_unstable_by_key(|&(at, step)| (at, -step));
        let (mut stretches, mut waiting, mut began) = (Vec::new(), 0, Duration::ZERO);
        for (at, step) in steps {
            if waiting == 0 {
                began = at;
            }
            waiting += step;
            if waiting == 0 {
                stretches.push((began, at));
            }
        }
        stretches
    }
}

/// How long the quota of `plan` takes for so many registrations.
pub(super) fn time_for(registrations: f64, plan: &InstancePlan) -> Duration {
    WINDOW.mul_f64(registrations / f64::from(plan.quota))
}
