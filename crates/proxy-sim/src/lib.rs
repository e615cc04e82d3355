//! The deterministic simulation of dps-proxy.
//!
//! The real gateway, on a simulated clock, disk and network, serves simulated fleets and calls the real logic of the DPS emulator. From
//! one seed come the inventory, the options, the devices and everything that goes wrong. In the *safety phase* processes are killed, disks
//! fill up, clocks jump, calls are lost and instances die; then all of that is healed, and in the *liveness phase* everybody must be
//! served within a bound computed from quota and fleet. Then a judge reads the log.
//!
//! Invariants:
//! - The same seed gives the same log, byte for byte: no wall clock, no randomness but the seed's, no thread but one.
//! - The judge shares nothing with what it judges: it counts what arrived at DPS and reads what is on disk.
//! - What is broken on purpose to test the judge ([`Mutant`]) is broken here, around the gateway, or at a failpoint that no release
//!   build has.
//!
//! There are two kinds of runs: in those of [`Kind::Mishaps`] everything goes wrong that can, so that safety is tested; in those of
//! [`Kind::Orderly`] hardly anything does, so that what the service is good for can be measured against tight bounds.

use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, Once};
use std::time::Duration;

use clap::ValueEnum;
use rate_control::failpoint::Failpoint;
use sha2::{Digest as _, Sha256};

mod clock;
mod delay;
mod dice;
mod disk;
mod far_owner;
mod fleet;
mod invariant;
mod judge;
mod log;
mod mutant;
mod network;
mod scenario;
mod settings;
mod storm;
mod world;

pub use invariant::Invariant;
pub use judge::Violation;
pub use mutant::Mutant;
pub use storm::{Storm, StormReport};

use log::{Call, Entry, Event, Told};
use scenario::{Manner, Scenario};
use world::World;

/// How much goes wrong in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// All that can, as the seed has it: whether every promise of safety is kept.
    Mishaps,
    /// Nothing, or one thing: how well the service serves.
    Orderly,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Mishaps, Self::Orderly];
}

/// A run to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// What everything is drawn from.
    pub seed: u64,
    /// How much goes wrong.
    pub kind: Kind,
    /// What is broken on purpose.
    pub mutant: Option<Mutant>,
    /// Reads of the store take a while, each another one, so that much happens between reading and acting.
    pub slow_reads: bool,
    /// That a commit is durable is heard of after a while, each time another one, so that of two the later one may be heard of first.
    pub slow_acks: bool,
    /// The owner of the lines is far away: each question takes a while to get there, and each answer to come back.
    pub slow_owner: bool,
    /// Machines on one store, at least 1: whenever the process of one ends, that of the next one starts.
    pub machines: usize,
}

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// What it was made from.
    pub run: Run,
    /// Promises that were broken, in order of time. A run is good if there are none.
    pub violations: Vec<Violation>,
    /// What the run was like.
    pub figures: Figures,
    scenario: Scenario,
    log: Vec<Entry>,
}

/// What a run was like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Simulated time until everybody was served.
    pub lasted: Duration,
    /// Of that, after healing.
    pub healing: Duration,
    /// Devices.
    pub devices: usize,
    /// DPS instances.
    pub instances: usize,
    /// Starts of the gateway.
    pub processes: u32,
    /// Questions of devices.
    pub questions: u64,
    /// Of these, of devices with the manners the service asks for, which have one job and are never in a hurry.
    pub questions_of_obedient: u64,
    /// Devices with those manners.
    pub obedient: u64,
    /// Register calls.
    pub registers: u64,
    /// Polls.
    pub polls: u64,
    /// Status lookups.
    pub lookups: u64,
    /// Calls without an answer.
    pub unanswered: u64,
    /// Calls that DPS throttled.
    pub throttled: u64,
    /// Times that a device was told a refusal of DPS.
    pub refused: u64,
    /// Events in the log.
    pub events: usize,
}

impl Report {
    /// The log, one line per event.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.log.iter().map(ToString::to_string)
    }

    /// SHA-256 of the log, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for line in self.lines() {
            hash.update(line.as_bytes());
            hash.update(b"\n");
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The one command that does it again.
    #[must_use]
    pub fn replay(&self) -> String {
        let Run { seed, kind, mutant, slow_reads, slow_acks, slow_owner, machines } = self.run;
        let release = if mutant.is_some_and(|mutant| mutant.failpoint().is_some()) { "" } else { " --release" };
        let mut options = String::new();
        if kind == Kind::Orderly {
            options.push_str(" --kind orderly");
        }
        if let Some(mutant) = mutant {
            options.push_str(&format!(" --break {mutant}"));
        }
        if slow_reads {
            options.push_str(" --slow-reads");
        }
        if slow_acks {
            options.push_str(" --slow-acks");
        }
        if slow_owner {
            options.push_str(" --slow-owner");
        }
        if machines > 1 {
            options.push_str(&format!(" --machines {machines}"));
        }
        format!("cargo run{release} -p proxy-sim -- run --seed {seed}{options} --log")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figures { lasted, healing, devices, instances, processes, .. } = self.figures;
        writeln!(
            f,
            "seed {}, {:?}: {devices} devices of {} tenants, {instances} instances, {processes} processes, {:.0} s, {:.0} s of it after healing",
            self.run.seed,
            self.scenario.course,
            self.scenario.tenants,
            lasted.as_secs_f64(),
            healing.as_secs_f64(),
        )?;
        let Figures { questions, registers, polls, lookups, unanswered, throttled, refused, events, .. } = self.figures;
        writeln!(
            f,
            "  {questions} questions, {registers} registrations, {polls} polls, {lookups} lookups, {unanswered} unanswered, {throttled} throttled, {refused} refused, {events} events"
        )?;
        for (at, occasion) in &self.scenario.occasions {
            writeln!(f, "  {:>8.3} {occasion:?}", at.as_secs_f64())?;
        }
        if self.violations.is_empty() {
            return write!(f, "  good");
        }
        for violation in &self.violations {
            writeln!(f, "  BROKEN: {violation}")?;
        }
        write!(f, "  again: {}", self.replay())
    }
}

thread_local! {
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

/// Counts panics of this thread, because tokio catches those of its tasks.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}

impl Run {
    /// A run of this seed in which everything goes wrong that can, and nothing is broken.
    #[must_use]
    pub const fn of(seed: u64) -> Self {
        Self {
            seed,
            kind: Kind::Mishaps,
            mutant: None,
            slow_reads: false,
            slow_acks: false,
            slow_owner: false,
            machines: 1,
        }
    }

    /// The same in which hardly anything goes wrong.
    #[must_use]
    pub const fn orderly(seed: u64) -> Self {
        Self { kind: Kind::Orderly, ..Self::of(seed) }
    }

    /// The first run that shows this mutant, if a seed does.
    #[must_use]
    pub const fn breaking(mutant: Mutant, seed: u64) -> Self {
        let slow_reads = mutant.needs_slow_reads();
        Self { kind: mutant.kind(), mutant: Some(mutant), slow_reads, ..Self::of(seed) }
    }

    /// Makes it.
    ///
    /// # Panics
    /// If tokio cannot make a runtime.
    #[must_use]
    pub fn make(self) -> Report {
        let scenario = Scenario {
            slow_reads: self.slow_reads,
            slow_acks: self.slow_acks,
            slow_owner: self.slow_owner,
            machines: self.machines.max(1),
            ..Scenario::draw(self.seed, self.kind)
        };
        run_scenario(scenario, self)
    }

    /// Makes it twice and compares the logs to the byte.
    ///
    /// # Errors
    /// [`NotTheSame`] with the first line that differs.
    pub fn make_twice(self) -> Result<Report, NotTheSame> {
        let (first, second) = (self.make(), self.make());
        let (mut ours, mut theirs) = (first.lines(), second.lines());
        for line in 1.. {
            match (ours.next(), theirs.next()) {
                (None, None) => break,
                (one, other) if one == other => {}
                (one, other) => {
                    let (first, second) = (one.unwrap_or_default(), other.unwrap_or_default());
                    return Err(NotTheSame { seed: self.seed, line, first, second });
                }
            }
        }
        drop(ours);
        Ok(first)
    }
}

fn run_scenario(scenario: Scenario, run: Run) -> Report {
    let _broken = run.mutant.and_then(Mutant::failpoint).map(Failpoint::switch_on);
    count_panics();
    let panics = PANICS.get();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O needs nothing of the machine");
    let world = runtime.block_on(async {
        let world = Arc::new(World::new(scenario.clone(), run.mutant));
        Box::pin(world.run(fleet::begin)).await;
        world
    });
    let log = world.log.take();
    let mut violations = judge::judge(&scenario, &log);
    let end = log.last().map_or(Duration::ZERO, |entry| entry.at);
    violations.extend(ask_dps(&scenario, &world, &log, end));
    let panicked = PANICS.get() - panics;
    if panicked > 0 {
        let detail = format!("{panicked} panics");
        violations.push(Violation { invariant: Invariant::NoPanic, at: end, detail });
    }
    Report { run, violations, figures: figures(&scenario, &log), scenario, log }
}

/// What DPS itself says at the end: its own count of its own quota, and the hubs that it has given.
fn ask_dps(scenario: &Scenario, world: &World, log: &[Entry], end: Duration) -> Vec<Violation> {
    let mut violations = Vec::new();
    if scenario.real_quota_is_configured() {
        for instance in world.over_quota() {
            let detail = format!("{instance} itself has counted more than its quota in a sliding minute");
            violations.push(Violation { invariant: Invariant::Quota, at: end, detail });
        }
    }
    if scenario.hubs_stay() {
        for entry in log {
            let Event::Told { device, told: Told::Assigned { hub } } = &entry.event else { continue };
            if !world.hubs_at_dps(*device).contains(hub) {
                let detail = format!("device {device} was told {hub}, which DPS has not given it");
                violations.push(Violation { invariant: Invariant::OneHub, at: entry.at, detail });
            }
        }
    }
    violations
}

fn figures(scenario: &Scenario, log: &[Entry]) -> Figures {
    let obedient = |device: usize| {
        let plan = &scenario.devices[device];
        plan.manner == Manner::Obedient
            && !plan.reprovision
            && plan.wait.is_zero()
            && plan.patience.is_none()
            && plan.comebacks == 0
    };
    let mut figures = Figures {
        devices: scenario.devices.len(),
        instances: scenario.instances.len(),
        obedient: (0..scenario.devices.len()).filter(|&device| obedient(device)).count() as u64,
        lasted: log.last().map_or(Duration::ZERO, |entry| entry.at),
        events: log.len(),
        ..Figures::default()
    };
    for entry in log {
        match &entry.event {
            Event::Started { .. } => figures.processes += 1,
            Event::Asked { device, .. } => {
                figures.questions += 1;
                figures.questions_of_obedient += u64::from(obedient(*device));
            }
            Event::Sent { call: Call::Register, .. } => figures.registers += 1,
            Event::Sent { call: Call::Poll, .. } => figures.polls += 1,
            Event::Sent { call: Call::Lookup, .. } => figures.lookups += 1,
            Event::Heard { status: None, .. } => figures.unanswered += 1,
            Event::Heard { status: Some(429), .. } => figures.throttled += 1,
            Event::Told { told: Told::Refused { .. }, .. } => figures.refused += 1,
            Event::Healed => figures.healing = figures.lasted.saturating_sub(entry.at),
            _ => {}
        }
    }
    figures
}

/// Two runs of one seed that differ: the simulation itself is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("two runs of seed {seed} differ at line {line}:\n  {first}\n  {second}")]
pub struct NotTheSame {
    /// The seed.
    pub seed: u64,
    /// The first line that differs, from 1.
    pub line: usize,
    /// That line in the first run; empty if it had ended.
    pub first: String,
    /// That line in the second run; empty if it had ended.
    pub second: String,
}
