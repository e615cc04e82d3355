//! Whether a run kept the promises, by code of its own: it reads the log and never asks the gateway, its ledger or its limiter.
//!
//! Invariants:
//! - What the quota is about is counted by times of arrival at DPS, every call that arrived, also those that DPS did not serve.
//! - A verdict depends on nothing but the log and the scenario.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use proxy_core::ids::InstanceName;

use crate::invariant::Invariant;
use crate::log::{Call, Entry, Event, Kept, Told};
use crate::network::WINDOW;
use crate::scenario::{Manner, Scenario};

mod lines;
mod service;
mod told;
mod trouble;
mod way;

/// Phases of the fixed windows that are counted; a sliding count covers all of them, this one is written on its own.
const PHASES_SECONDS: [u64; 3] = [0, 13, 37];

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub invariant: Invariant,
    /// When, in true time since the run began.
    pub at: Duration,
    /// What happened.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at {:.3} s): {}", self.invariant, self.at.as_secs_f64(), self.detail)
    }
}

/// A call, as far as it has come.
struct Sent {
    at: Duration,
    process: u32,
    instance: InstanceName,
    call: Call,
    id: String,
}

/// What is known of one device from outside.
#[derive(Default)]
struct Seen {
    acknowledged: bool,
    hub: Option<String>,
    /// Events that may each change its hub once.
    causes: usize,
    changes: usize,
    /// Something other than its first registration was asked for.
    wanted_more: bool,
    told_hub: bool,
    /// Where a registration of it has gone.
    home: Option<InstanceName>,
    /// When it is due again, by its own appointment.
    due: Duration,
    place: Option<(String, String)>,
    /// What the disk held of it when last looked.
    kept: Option<Kept>,
}

/// One instance as its arrivals show it.
#[derive(Default)]
struct Counted {
    /// When calls arrived that draw on the quota, and when each was sent.
    arrivals: Vec<(Duration, Duration)>,
    /// When each such call was sent.
    sends: Vec<Duration>,
    /// The operator's quotas and since when each is in force.
    quotas: Vec<(Duration, u32)>,
}

impl Counted {
    /// The quota at a moment. Of two at the same moment the larger: which came first cannot be seen.
    fn quota_at(&self, moment: Duration) -> u32 {
        let before = self.quotas.iter().rev().find(|(since, _)| *since < moment).map(|(_, quota)| *quota);
        let now = self.quotas.iter().filter(|(since, _)| *since == moment).map(|(_, quota)| *quota).max();
        before.max(now).unwrap_or(0)
    }

    fn largest_quota(&self) -> u32 {
        self.quotas.iter().map(|(_, quota)| *quota).max().unwrap_or(0)
    }
}

/// Calls of one process to one instance.
#[derive(Default)]
struct Out {
    /// On the wire.
    calls: usize,
    /// Of these, registrations and lookups.
    deciding: usize,
    /// Registrations and lookups that ended in a row without a word of DPS, or with a failure of its own.
    failures: u32,
}

/// `Retry-After` in force for an instance.
#[derive(Clone, Copy)]
struct Pause {
    since: Duration,
    until: Duration,
}

struct Judge<'a> {
    scenario: &'a Scenario,
    violations: Vec<Violation>,
    devices: Vec<Seen>,
    by_id: BTreeMap<String, usize>,
    sent: BTreeMap<u64, Sent>,
    /// Register calls on the wire, by process and device. Those of a process that has ended stay.
    on_the_wire: BTreeMap<(u32, String), u64>,
    /// The latest register call of each device.
    latest: BTreeMap<String, u64>,
    out: BTreeMap<(u32, InstanceName), Out>,
    counted: BTreeMap<InstanceName, Counted>,
    /// By instance: a pause outlives the process that heard of it.
    pauses: BTreeMap<InstanceName, Pause>,
    /// The process that ended last.
    ended: Option<u32>,
    over: bool,
}

/// Reads the log of a run.
pub(crate) fn judge(scenario: &Scenario, log: &[Entry]) -> Vec<Violation> {
    let by_id = |(index, plan): (usize, &crate::scenario::DevicePlan)| (plan.hardware_id.to_ascii_lowercase(), index);
    let mut judge = Judge {
        scenario,
        violations: Vec::new(),
        devices: scenario.devices.iter().map(|_| Seen::default()).collect(),
        by_id: scenario.devices.iter().enumerate().map(by_id).collect(),
        sent: BTreeMap::new(),
        on_the_wire: BTreeMap::new(),
        latest: BTreeMap::new(),
        out: BTreeMap::new(),
        counted: BTreeMap::new(),
        pauses: BTreeMap::new(),
        ended: None,
        over: false,
    };
    for entry in log {
        judge.hear(entry);
    }
    judge.count();
    judge.look_at_the_end(log.last().map_or(Duration::ZERO, |entry| entry.at));
    judge.violations.extend(service::judge(scenario, log));
    judge.violations.sort_by_key(|violation| (violation.at, violation.invariant));
    judge.violations
}

impl Judge<'_> {
    fn convict(&mut self, invariant: Invariant, at: Duration, detail: impl Into<String>) {
        self.violations.push(Violation { invariant, at, detail: detail.into() });
    }

    fn hear(&mut self, entry: &Entry) {
        let at = entry.at;
        match &entry.event {
            Event::Note(_) | Event::Healed => {}
            Event::Started { .. } => self.ended = None,
            Event::Ended { process } => {
                self.forgets_pauses(at);
                self.ended = Some(*process);
            }
            Event::Quota { instance, quota } => {
                self.counted.entry(instance.clone()).or_default().quotas.push((at, *quota));
            }
            Event::Sent { process, number, instance, call, id } => {
                let sent = Sent { at, process: *process, instance: instance.clone(), call: *call, id: id.clone() };
                self.leaves(*number, sent);
            }
            Event::Arrived { number, .. } => self.arrives(at, *number),
            Event::Heard { number, status, retry_after } => self.ends(at, *number, *status, *retry_after),
            Event::Asked { device, reprovision } => {
                let seen = &mut self.devices[*device];
                seen.causes += usize::from(*reprovision);
                seen.wanted_more |= *reprovision;
            }
            Event::Cause { device, .. } => {
                let seen = &mut self.devices[*device];
                seen.causes += 1;
                seen.wanted_more = true;
                (seen.place, seen.home) = (None, None);
            }
            Event::Moved { device } => {
                self.devices[*device].home = None;
            }
            Event::Told { device, told } => self.tells(at, *device, told),
            Event::Found { device, kept, sent } => {
                self.finds(at, *device, kept.as_ref());
                self.finds_sent(at, *device, *sent);
            }
            Event::Stranger { believed, commits } => {
                if *believed || *commits > 0 {
                    let detail = format!("believed: {believed}, commits: {commits}");
                    self.convict(Invariant::StrangersCostNothing, at, detail);
                }
            }
            Event::Line { instance, waiting, under_way, parked } => {
                let (length_max, in_flight_max) = (self.scenario.length_max, self.scenario.in_flight_max);
                // Who was under way may have come back to a full line.
                if *waiting > length_max.saturating_add(in_flight_max) || *parked > self.scenario.parked_max {
                    let detail = format!("{instance}: {waiting} wait, {under_way} under way, {parked} requests parked");
                    self.convict(Invariant::Bounded, at, detail);
                }
            }
            Event::Over { .. } => self.over = true,
            Event::Rows { devices, slots } => self.weigh(at, *devices, *slots),
        }
    }

    /// A process ends. It may not have written down yet what it had just heard, or not been able to; and after a reboot only the wall
    /// clock tells how long a pause still lasts, to the millisecond.
    fn forgets_pauses(&mut self, at: Duration) {
        use crate::scenario::Occasion;
        let unreliable = |(_, occasion): &(Duration, Occasion)| {
            matches!(
                occasion,
                Occasion::WallClock { .. }
                    | Occasion::DiskReadOnly(_)
                    | Occasion::DiskBusy { .. }
                    | Occasion::DiskFails { .. }
            )
        };
        if self.scenario.occasions.iter().any(unreliable) {
            self.pauses.clear();
        }
        let written = self.scenario.sync_every * 2 + Duration::from_millis(5);
        self.pauses.retain(|_, pause| at > pause.since + written);
        self.pauses.values_mut().for_each(|pause| pause.until = pause.until.saturating_sub(Duration::from_millis(2)));
    }

    fn draws_on_quota(&self, call: Call) -> bool {
        call == Call::Register || (call == Call::Lookup && self.scenario.lookup_counts)
    }

    fn leaves(&mut self, number: u64, sent: Sent) {
        let at = sent.at;
        match self.by_id.get(&sent.id.to_ascii_lowercase()) {
            None => self.convict(Invariant::StrangersCostNothing, at, format!("a call for {}", sent.id)),
            Some(&device) => {
                let seen = &self.devices[device];
                if seen.told_hub && !seen.wanted_more && sent.call != Call::Poll {
                    let detail = format!("call {number} ({:?}) of {} after it was told its hub", sent.call, sent.id);
                    self.convict(Invariant::KnownCostNothing, at, detail);
                } else if sent.call == Call::Register
                    && let Some(home) = seen.home.clone().filter(|home| *home != sent.instance)
                {
                    let detail = format!(
                        "call {number} of {} goes to {}, an earlier one went to {home}",
                        sent.id, sent.instance
                    );
                    self.convict(Invariant::AtHome, at, detail);
                }
                if sent.call == Call::Register {
                    self.devices[device].home.get_or_insert_with(|| sent.instance.clone());
                }
            }
        }
        self.goes_out(at, number, &sent);
        if sent.call == Call::Register {
            self.latest.insert(sent.id.clone(), number);
            if let Some(other) = self.on_the_wire.insert((sent.process, sent.id.clone()), number) {
                let detail = format!("calls {other} and {number} of {}", sent.id);
                self.convict(Invariant::OneAtOnce, at, detail);
            }
        }
        if sent.call != Call::Poll
            && let Some(pause) = self.pauses.get(&sent.instance).copied()
            && at < pause.until
            && at > pause.since
        {
            let detail = format!(
                "call {number} went to {}, which had asked at {:.3} s to wait until {:.3} s",
                sent.instance,
                pause.since.as_secs_f64(),
                pause.until.as_secs_f64()
            );
            self.convict(Invariant::RetryAfter, at, detail);
        }
        if self.draws_on_quota(sent.call) {
            self.counted.entry(sent.instance.clone()).or_default().sends.push(at);
        }
        self.sent.insert(number, sent);
    }

    /// As many calls are out as there may be connections, and while calls fail, one at a time.
    fn goes_out(&mut self, at: Duration, number: u64, sent: &Sent) {
        let (threshold, connections_max) = (self.scenario.breaker_threshold, self.scenario.connections_max);
        let out = self.out.entry((sent.process, sent.instance.clone())).or_default();
        let (failures, others) = (out.failures, out.deciding);
        out.calls += 1;
        out.deciding += usize::from(sent.call != Call::Poll);
        let calls = out.calls;
        if sent.call != Call::Poll && failures >= threshold && others > 0 {
            let detail = format!(
                "call {number} went to {}, where {failures} had failed in a row and {others} were out",
                sent.instance
            );
            self.convict(Invariant::CircuitOpen, at, detail);
        }
        if calls > connections_max {
            let detail = format!("{calls} calls out to {}, connections_max {connections_max}", sent.instance);
            self.convict(Invariant::Bounded, at, detail);
        }
    }

    fn comes_in(&mut self, key: (u32, InstanceName), call: Call, status: Option<u16>) {
        let out = self.out.entry(key).or_default();
        out.calls = out.calls.saturating_sub(1);
        if call == Call::Poll {
            return;
        }
        out.deciding = out.deciding.saturating_sub(1);
        let failed = status.is_none_or(|status| status >= 500);
        out.failures = if failed { out.failures + 1 } else { 0 };
    }

    fn arrives(&mut self, at: Duration, number: u64) {
        let Some(sent) = self.sent.get(&number) else { return };
        if self.draws_on_quota(sent.call) {
            let counted = self.counted.entry(sent.instance.clone()).or_default();
            counted.arrivals.push((at, sent.at));
        }
        let unheard = self.on_the_wire.get(&(sent.process, sent.id.clone())) == Some(&number);
        let later = self.latest.get(&sent.id).copied().filter(|&latest| unheard && latest > number);
        if let Some(latest) =
            later.filter(|latest| self.sent.get(latest).is_some_and(|later| later.process > sent.process))
        {
            let detail = format!(
                "call {number} of {}, whose process {} has ended, arrived after call {latest} had left",
                sent.id, sent.process
            );
            self.convict(Invariant::OneAtOnce, at, detail);
        }
    }

    fn ends(&mut self, at: Duration, number: u64, status: Option<u16>, retry_after: Option<u64>) {
        let Some(sent) = self.sent.get(&number) else { return };
        let (instance, call) = (sent.instance.clone(), sent.call);
        let key = (sent.process, sent.id.clone());
        let from = (sent.process, instance.clone());
        if self.on_the_wire.get(&key) == Some(&number) {
            self.on_the_wire.remove(&key);
        }
        self.comes_in(from, call, status);
        if call == Call::Poll || status != Some(429) {
            return;
        }
        if self.is_calm() {
            self.convict(Invariant::CalmIsCalm, at, format!("{instance} throttled call {number}"));
        }
        if let Some(seconds) = retry_after {
            let until = at + Duration::from_secs(seconds).min(self.scenario.throttle_wait_max);
            let pause = self.pauses.entry(instance).or_insert(Pause { since: at, until });
            if until > pause.until {
                *pause = Pause { since: at, until };
            }
        }
    }

    /// No mishaps, and windows rather than a bucket, which a burst of arrivals can empty although the sends were spaced.
    fn is_calm(&self) -> bool {
        let fair = |plan: &crate::scenario::InstancePlan| {
            let weather = plan.weather;
            let weights = [weather.lost_there, weather.lost_back, weather.late, weather.never_left, weather.reset];
            weights.iter().all(|&weight| weight == 0)
                && plan.faults.is_empty()
                && plan.shape != dps_emulator::QuotaShape::Bucket
        };
        self.scenario.occasions.is_empty() && self.scenario.instances.iter().all(fair)
    }

    fn tells(&mut self, at: Duration, device: usize, told: &Told) {
        let seen = &mut self.devices[device];
        match told {
            Told::Queued { retry_after, .. } => {
                seen.acknowledged = true;
                seen.due = at + Duration::from_secs(*retry_after);
            }
            Told::Assigned { hub } => {
                let before = seen.hub.replace(hub.clone());
                seen.told_hub = true;
                if let Some(before) = before.filter(|before| before != hub) {
                    seen.changes += 1;
                    if seen.changes > seen.causes {
                        let detail = format!("device {device} was told {before}, now {hub}");
                        self.convict(Invariant::OneHub, at, detail);
                    }
                }
            }
            Told::Refused { .. } | Told::Turned(_) | Told::TooFast | Told::NoAnswer | Told::HungUp => {}
        }
        let seen = &self.devices[device];
        let answered = matches!(told, Told::Assigned { .. } | Told::TooFast | Told::NoAnswer | Told::HungUp);
        if seen.told_hub && !seen.wanted_more && !answered {
            self.convict(Invariant::KnownIsAnswered, at, format!("device {device} has a hub and was told {told:?}"));
        }
    }

    fn finds(&mut self, at: Duration, device: usize, kept: Option<&Kept>) {
        let timeline_max = self.scenario.timeline_max;
        let seen = &mut self.devices[device];
        let mut found = Vec::new();
        if let Some(hub) = &seen.hub {
            match kept.and_then(|kept| kept.hub.as_ref()) {
                None => found.push((Invariant::AssignmentKept, format!("device {device} was told {hub}; it is gone"))),
                Some(other) if other != hub && seen.causes == 0 => {
                    let detail = format!("device {device} was told {hub}; the disk says {other}");
                    found.push((Invariant::AssignmentKept, detail));
                }
                Some(_) => {}
            }
        } else if seen.acknowledged
            && kept.is_none_or(|kept| kept.place.is_none() && kept.hub.is_none() && !kept.refused)
        {
            found.push((Invariant::PlaceKept, format!("device {device} has no place, no hub and no refusal")));
        }
        let place = kept.and_then(|kept| kept.place.clone());
        if let (Some((joined, before)), Some((joined_now, now))) = (&seen.place, &place)
            && joined == joined_now
            && before != now
            // Whoever waited in the background moves up when it asks.
            && !(before.starts_with("Background ") && now.starts_with("Reprovision "))
        {
            found.push((Invariant::PlaceKept, format!("device {device} stood at {before}, now at {now}")));
        }
        if kept.is_some_and(|kept| kept.timeline > timeline_max) {
            found.push((Invariant::Bounded, format!("the timeline of device {device} exceeds {timeline_max} events")));
        }
        seen.place = place;
        seen.kept = kept.cloned();
        for (invariant, detail) in found {
            self.convict(invariant, at, detail);
        }
    }

    /// What the process that has just ended had on the wire, the disk knows to have left.
    fn finds_sent(&mut self, at: Duration, device: usize, sent: bool) {
        let Some(process) = self.ended else { return };
        let id = self.scenario.devices[device].hardware_id.to_ascii_lowercase();
        let call = self.on_the_wire.get(&(process, id)).copied();
        if let Some(number) = call.filter(|_| !sent && !self.devices[device].wanted_more) {
            let detail = format!("call {number} of device {device} had left, and the disk does not know it");
            self.convict(Invariant::SentKept, at, detail);
        }
    }

    fn weigh(&mut self, at: Duration, devices: usize, slots: usize) {
        let slots_max: u32 = self.counted.values().map(Counted::largest_quota).sum();
        if devices > self.scenario.devices.len() || slots > slots_max as usize {
            let detail = format!("{devices} records and {slots} slots on disk; at most {slots_max} slots");
            self.convict(Invariant::Bounded, at, detail);
        }
    }

    /// Counts the arrivals of each instance.
    fn count(&mut self) {
        for (instance, mut counted) in std::mem::take(&mut self.counted) {
            counted.arrivals.sort_unstable();
            self.count_sliding(&instance, &counted);
            self.count_fixed(&instance, &counted);
            self.count_at_sends(&instance, &counted);
        }
    }

    fn count_sliding(&mut self, instance: &InstanceName, counted: &Counted) {
        let arrivals = &counted.arrivals;
        let mut first = 0;
        for (index, &(at, _)) in arrivals.iter().enumerate() {
            while at - arrivals[first].0 >= WINDOW {
                first += 1;
            }
            let window = &arrivals[first..=index];
            let last_sent = window.iter().map(|&(_, sent)| sent).max().unwrap_or(at);
            let quota = counted.quota_at(last_sent);
            if window.len() > quota as usize {
                let detail = format!("{} arrived at {instance} in one sliding minute, quota {quota}", window.len());
                return self.convict(Invariant::Quota, at, detail);
            }
        }
    }

    fn count_fixed(&mut self, instance: &InstanceName, counted: &Counted) {
        for phase in PHASES_SECONDS {
            let mut minutes: BTreeMap<u64, Vec<(Duration, Duration)>> = BTreeMap::new();
            for &(at, sent) in &counted.arrivals {
                let minute = (at + WINDOW - Duration::from_secs(phase)).as_secs() / WINDOW.as_secs();
                minutes.entry(minute).or_default().push((at, sent));
            }
            for inside in minutes.values() {
                let last_sent = inside.iter().map(|&(_, sent)| sent).max().unwrap_or_default();
                let quota = counted.quota_at(last_sent);
                if let Some(&(at, _)) = inside.get(quota as usize) {
                    let detail = format!(
                        "{} arrived at {instance} in one fixed minute (phase {phase} s), quota {quota}",
                        inside.len()
                    );
                    return self.convict(Invariant::Quota, at, detail);
                }
            }
        }
    }

    fn count_at_sends(&mut self, instance: &InstanceName, counted: &Counted) {
        for &sent in &counted.sends {
            let quota = counted.quota_at(sent) as usize;
            let until = counted.arrivals.partition_point(|&(at, _)| at < sent);
            let from = counted.arrivals.partition_point(|&(at, _)| at + WINDOW <= sent);
            if until - from >= quota {
                let detail = format!(
                    "sent to {instance} although {} had arrived in the minute before, quota {quota}",
                    until - from
                );
                return self.convict(Invariant::LoweredQuota, sent, detail);
            }
        }
    }

    /// Everybody has what it came for.
    fn look_at_the_end(&mut self, at: Duration) {
        let mut starved = BTreeSet::new();
        for (device, (seen, plan)) in self.devices.iter().zip(&self.scenario.devices).enumerate() {
            let returns = plan.manner != Manner::NeverReturns;
            let kept = seen.kept.clone().unwrap_or_default();
            let served = if returns {
                // Who was given a late appointment while the quota was low keeps it; its hub must be there long before.
                seen.told_hub || (seen.due > at && kept.hub.is_some())
            } else {
                // Nobody is left to ask again for a device that was refused.
                !seen.acknowledged || kept.hub.is_some() || kept.refused
            };
            if !served || kept.place.is_some() {
                starved.insert(device);
            }
        }
        if !starved.is_empty() || !self.over {
            let detail =
                format!("not served within {} s: devices {starved:?}", self.scenario.liveness_bound().as_secs());
            self.convict(Invariant::Starved, at, detail);
        }
    }
}
