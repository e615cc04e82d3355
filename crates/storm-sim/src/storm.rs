//! The engine: devices knock, lines decide, DPS answers.
//!
//! Invariants:
//! - Every device has exactly one event planned, or waits for its turn in a line or for a connection; so the storm ends when nothing
//!   is planned any more, and not before everybody was told a hub.
//! - A registration is counted by DPS at a random moment between its departure and its answer, so the ledger is tried where it is
//!   weakest.

use std::collections::VecDeque;
use std::time::Duration;

use proxy_core::placement::NoRoom;
use rate_control::entropy::Entropy;
use rate_control::time::Mono;

use crate::agenda::{Agenda, Event};
use crate::bucket::Bucket;
use crate::dps::{Counts, Dps};
use crate::fleet::Newcomer;
use crate::inventory::Inventory;
use crate::judge::{Judge, Report};
use crate::scenario::{Manner, Scenario};
use crate::watcher::Watcher;
use crate::wiring::{self, CONNECTIONS_MAX, POLL_INTERVAL, SimulatedLine, Slot, Stand, Turn};

/// How long DPS asks to wait before a registration is polled (its `Retry-After`, 3 s in Microsoft's documentation).
const DPS_RETRY_AFTER: Duration = Duration::from_secs(3);

/// How often a [`Watcher`] hears of devices: after so many.
const WATCHED_EVERY: u64 = 4096;

/// Simulates a storm to its end.
///
/// # Errors
/// [`NoRoom`] if the instances cannot hold the fleet: one holds [`CAPACITY`](crate::CAPACITY) devices, and somebody may have no shared one
/// to go to.
pub fn run(scenario: &Scenario) -> Result<Report, NoRoom> {
    run_watched(scenario, &mut ())
}

/// The same as [`run`], watched.
///
/// # Errors
/// As [`run`].
pub fn run_watched(scenario: &Scenario, watcher: &mut dyn Watcher) -> Result<Report, NoRoom> {
    let mut entropy = Entropy::from_seed(scenario.seed);
    let newcomers = scenario.fleet.boot(&mut entropy);
    run_newcomers(scenario, &newcomers, entropy, watcher)
}

/// Simulates a storm of devices whose first knocks are known already, in the order of those.
pub(crate) fn run_newcomers(
    scenario: &Scenario,
    newcomers: &[Newcomer],
    entropy: Entropy,
    watcher: &mut dyn Watcher,
) -> Result<Report, NoRoom> {
    let mut storm = Storm::new(scenario, newcomers, entropy);
    let mut watched = 0;
    while let Some((moment, event)) = storm.agenda.next() {
        storm.now = moment;
        match event {
            Event::Knock(device) => storm.knock(device)?,
            Event::Ring(site) => {
                storm.sites[usize::from(site)].rings_at = None;
                storm.ring(site);
            }
            Event::Counted(device) => storm.counted(device),
            Event::Answered(device) => storm.answered(device),
            Event::Poll(device) => storm.poll(device),
            Event::PollAnswered(device) => storm.poll_answered(device),
        }
        if storm.judge.devices_told() >= watched + WATCHED_EVERY {
            watched = storm.judge.devices_told();
            watcher.told(scenario.instances, watched);
        }
    }
    let counts: Vec<Counts> = storm.sites.iter().map(|site| site.dps.counts).collect();
    Ok(storm.judge.report(scenario, &counts))
}

/// How far a device has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody has heard of it.
    Absent,
    Waiting,
    /// A registration is sent or polled.
    UnderWay,
    /// The proxy knows its hub; it does not yet.
    Assigned,
}

/// One line of the processor's cache each: there are millions, and each is met again when all the others have been.
#[derive(Debug)]
#[repr(align(64))]
struct Device {
    place: Option<Stand>,
    slot: Slot,
    came_at: Mono,
    /// When DPS accepted its registration.
    accepted_at: Mono,
    /// What DPS asked it to wait when it refused the registration.
    refused_seconds: Option<u16>,
    refusals: u16,
    instance: u16,
    tenant: u16,
    stage: Stage,
    /// Whether the poll under way will find a hub.
    poll_finds_hub: bool,
}

/// One instance and what stands in front of it.
#[derive(Debug)]
struct Site {
    line: SimulatedLine,
    bucket: Bucket,
    dps: Dps,
    /// Calls of the proxy under way; each takes a connection.
    calls: usize,
    polls_waiting: VecDeque<u32>,
    /// When the line is asked next, if that is planned.
    rings_at: Option<Mono>,
}

#[derive(Debug)]
struct Storm<'a> {
    scenario: &'a Scenario,
    now: Mono,
    agenda: Agenda<'a>,
    devices: Vec<Device>,
    sites: Vec<Site>,
    inventory: Inventory,
    judge: Judge,
    entropy: Entropy,
}

impl<'a> Storm<'a> {
    fn new(scenario: &'a Scenario, newcomers: &'a [Newcomer], entropy: Entropy) -> Self {
        let site = |(line, number)| Site {
            line,
            bucket: Bucket::new(scenario.quota_of(number), wiring::burst(scenario.quota_of(number))),
            dps: Dps::new(scenario.enforced_by(number)),
            calls: 0,
            polls_waiting: VecDeque::new(),
            rings_at: None,
        };
        let device = |newcomer: &Newcomer| Device {
            place: None,
            slot: None,
            came_at: newcomer.knocks_at,
            accepted_at: Mono::default(),
            refused_seconds: None,
            refusals: 0,
            instance: 0,
            tenant: newcomer.tenant,
            stage: Stage::Absent,
            poll_finds_hub: false,
        };
        Self {
            scenario,
            now: Mono::default(),
            agenda: Agenda::of(newcomers),
            devices: newcomers.iter().map(device).collect(),
            sites: wiring::lines(scenario).into_iter().zip(0..).map(site).collect(),
            inventory: Inventory::new(&scenario.fleet, scenario.instances),
            judge: Judge::new(scenario),
            entropy,
        }
    }

    fn plan(&mut self, wait: Duration, event: Event) {
        self.agenda.plan(self.now.after(wait), event);
    }

    fn of(&mut self, number: u32) -> (&mut Device, &mut Site) {
        let device = &mut self.devices[number as usize];
        let site = &mut self.sites[usize::from(device.instance)];
        (device, site)
    }

    fn has_proxy(&self) -> bool {
        !matches!(self.scenario.manner, Manner::Direct(_))
    }

    /// A device asks.
    fn knock(&mut self, number: u32) -> Result<(), NoRoom> {
        self.judge.request(self.now);
        let came = self.devices[number as usize].stage == Stage::Absent;
        if came {
            let tenant = self.devices[number as usize].tenant;
            let instance = self.inventory.place(tenant)?;
            self.judge.came(instance, self.now);
            let device = &mut self.devices[number as usize];
            (device.instance, device.stage) = (instance, Stage::Waiting);
        }
        let device = &self.devices[number as usize];
        match (device.stage, self.scenario.manner) {
            (Stage::Assigned, _) => self.judge.told(device.instance, device.tenant, device.came_at, self.now),
            (_, Manner::Appointments) => self.tell_appointment(number, came),
            (Stage::Waiting, Manner::SharedRetryAfter(wait)) => self.try_bucket(number, wait),
            // Its registration takes longer than it was told.
            (_, Manner::SharedRetryAfter(_)) => self.plan(Duration::from_secs(1), Event::Knock(number)),
            (_, Manner::Direct(_)) => self.send(number),
        }
        Ok(())
    }

    fn tell_appointment(&mut self, number: u32, came: bool) {
        let now = self.now;
        let device = &mut self.devices[number as usize];
        let (instance, tenant) = (device.instance, device.tenant);
        let line = &mut self.sites[usize::from(instance)].line;
        if came {
            device.place = Some(line.join(tenant, number, now));
        }
        let told = device.place.and_then(|place| line.told_seconds(tenant, place, now, &mut self.entropy));
        // Between two steps of its registration a place is in neither set for a moment.
        self.plan(Duration::from_secs(told.unwrap_or(2)), Event::Knock(number));
        if came {
            self.ring(instance);
        }
    }

    fn try_bucket(&mut self, number: u32, wait: Duration) {
        let now = self.now;
        let (_, site) = self.of(number);
        if site.bucket.due(now) > now {
            let spread = self.entropy.up_to(wait * 3 / 100);
            return self.plan(wait + spread, Event::Knock(number));
        }
        site.bucket.take(now);
        site.calls += 1;
        self.send(number);
        let dps = self.scenario.dps;
        let done = dps.latency * 2 + dps.assigning.max(DPS_RETRY_AFTER);
        self.plan(Duration::from_secs(done.as_secs() + 1), Event::Knock(number));
    }

    /// Asks a line who goes next, until nobody may.
    fn ring(&mut self, instance: u16) {
        let now = self.now;
        loop {
            let site = &mut self.sites[usize::from(instance)];
            // As the dispatcher does: first a connection, then a departure.
            if site.calls >= CONNECTIONS_MAX {
                return;
            }
            match site.line.next(now) {
                Turn::Depart { device, slot } => {
                    site.calls += 1;
                    self.devices[device as usize].slot = slot;
                    self.send(device);
                }
                Turn::WaitUntil(moment) => {
                    if site.rings_at.is_none_or(|planned| moment < planned) {
                        site.rings_at = Some(moment);
                        self.agenda.plan(moment, Event::Ring(instance));
                    }
                    return;
                }
                Turn::Idle => return,
            }
        }
    }

    /// A registration leaves for DPS.
    fn send(&mut self, number: u32) {
        self.devices[number as usize].stage = Stage::UnderWay;
        let latency = self.scenario.dps.latency;
        let there = self.entropy.up_to(latency);
        self.plan(there, Event::Counted(number));
        self.plan(latency, Event::Answered(number));
    }

    fn counted(&mut self, number: u32) {
        let now = self.now;
        let (device, site) = self.of(number);
        match site.dps.register(now) {
            Ok(()) => {
                (device.accepted_at, device.refused_seconds) = (now, None);
                let instance = device.instance;
                self.judge.accepted(instance, now);
            }
            Err(seconds) => device.refused_seconds = Some(u16::try_from(seconds).unwrap_or(u16::MAX)),
        }
    }

    fn answered(&mut self, number: u32) {
        let (now, manner) = (self.now, self.scenario.manner);
        let sent = Mono::from_nanos(now.as_nanos() - nanos(self.scenario.dps.latency));
        let (device, site) = self.of(number);
        let (instance, slot, place) = (device.instance, device.slot, device.place);
        if let Some(seconds) = device.refused_seconds {
            device.stage = Stage::Waiting;
            device.refusals = device.refusals.saturating_add(1);
            let refusals = device.refusals;
            match (manner, place) {
                (Manner::Direct(retry), _) => {
                    let wait = retry.wait(refusals, &mut self.entropy);
                    self.plan(wait, Event::Knock(number));
                }
                (_, Some(place)) => site.line.throttled(place, slot, sent, Duration::from_secs(seconds.into()), now),
                // The device comes again as it was told, and finds the bucket.
                (_, None) => {}
            }
        } else {
            if let Some(place) = place {
                site.line.accepted(place, slot, sent, now);
            }
            self.plan(DPS_RETRY_AFTER.max(POLL_INTERVAL), Event::Poll(number));
        }
        self.call_ended(instance);
    }

    fn poll(&mut self, number: u32) {
        if !self.has_proxy() {
            self.judge.request(self.now);
            return self.send_poll(number);
        }
        let (_, site) = self.of(number);
        if site.calls >= CONNECTIONS_MAX {
            site.polls_waiting.push_back(number);
        } else {
            site.calls += 1;
            self.send_poll(number);
        }
    }

    fn send_poll(&mut self, number: u32) {
        let dps = self.scenario.dps;
        let there = self.now.after(self.entropy.up_to(dps.latency));
        let device = &mut self.devices[number as usize];
        device.poll_finds_hub = there >= device.accepted_at.after(dps.assigning);
        self.plan(dps.latency, Event::PollAnswered(number));
    }

    fn poll_answered(&mut self, number: u32) {
        let now = self.now;
        let (device, site) = self.of(number);
        let (instance, tenant, came_at) = (device.instance, device.tenant, device.came_at);
        if device.poll_finds_hub {
            device.stage = Stage::Assigned;
            if let Some(place) = device.place {
                site.line.assigned(place, now);
            }
            if !self.has_proxy() {
                self.judge.told(instance, tenant, came_at, now);
            }
        } else {
            self.plan(DPS_RETRY_AFTER.max(POLL_INTERVAL), Event::Poll(number));
        }
        self.call_ended(instance);
    }

    /// A connection of the proxy is free again: for the poll that waits longest, else for the line.
    fn call_ended(&mut self, instance: u16) {
        if !self.has_proxy() {
            return;
        }
        let site = &mut self.sites[usize::from(instance)];
        site.calls = site.calls.saturating_sub(1);
        if let Some(number) = site.polls_waiting.pop_front() {
            site.calls += 1;
            self.send_poll(number);
        } else if self.scenario.manner == Manner::Appointments {
            self.ring(instance);
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
