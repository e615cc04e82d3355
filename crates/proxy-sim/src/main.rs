//! `proxy-sim`: runs the simulation from the command line.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use proxy_sim::{Kind, Mutant, Report, Run, Storm};

/// Simulates dps-proxy: the real core against the real emulator's logic, everything from one seed.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one seed and prints what it came to.
    Run {
        /// What everything is drawn from.
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        options: Options,
        /// Prints every event as well.
        #[arg(long)]
        log: bool,
    },
    /// Runs seeds one after the other and stops at the first failure.
    Seeds {
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// How many.
        #[arg(long, default_value_t = 1000)]
        count: u64,
        #[command(flatten)]
        options: Options,
    },
    /// Breaks one thing after the other on purpose, and tells how many seeds the judge needs to notice.
    Mutants {
        /// At most so many.
        #[arg(long, default_value_t = 40)]
        seeds: u64,
    },
    /// Runs a storm at any size; a million devices take minutes and some gigabytes.
    Storm {
        /// Devices that come back.
        #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
        devices: u32,
        /// DPS instances that share them.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=100))]
        instances: u16,
        /// Registrations that each accepts in any 60 seconds.
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
        quota: u32,
        /// Within how many seconds they come back.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        boot_seconds: u64,
        /// How often the process is killed while the lines drain.
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000))]
        kills: u32,
        /// What chance is drawn from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Runs one seed twice and compares the logs to the byte.
    Meta {
        /// What everything is drawn from.
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        options: Options,
    },
}

/// What a seed is run with.
#[derive(Debug, Clone, Copy, Args)]
struct Options {
    /// How much goes wrong; both kinds one after the other unless it is said.
    #[arg(long)]
    kind: Option<Kind>,
    /// Breaks something on purpose, to see the judge notice. Some of them exist in debug builds only.
    #[arg(long = "break")]
    mutant: Option<Mutant>,
    /// Reads of the store take a while, each another one.
    #[arg(long)]
    slow_reads: bool,
    /// That a commit is durable is heard of after a while, each time another one.
    #[arg(long)]
    slow_acks: bool,
    /// The owner of the lines is far away: each question takes a while to get there, and each answer to come back.
    #[arg(long)]
    slow_owner: bool,
    /// Machines that share the store: whenever the process of one ends, that of the next one starts.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    machines: u8,
}

impl Options {
    fn runs(self, seed: u64) -> impl Iterator<Item = Run> {
        let Self { kind, mutant, slow_reads, slow_acks, slow_owner, machines } = self;
        let kinds = Kind::ALL.into_iter().filter(move |one| kind.is_none_or(|kind| kind == *one));
        let machines = machines.into();
        kinds.map(move |kind| Run { seed, kind, mutant, slow_reads, slow_acks, slow_owner, machines })
    }
}

fn main() -> ExitCode {
    let good = match Cli::parse().command {
        Command::Run { seed, options, log } => {
            options.runs(seed).map(|run| show(&run.make(), log)).fold(true, |a, b| a & b)
        }
        Command::Seeds { from, count, options } => seeds(from, count, options),
        Command::Mutants { seeds } => mutants(seeds),
        Command::Storm { devices, instances, quota, boot_seconds, kills, seed } => {
            let (began, boot) = (Instant::now(), Duration::from_secs(boot_seconds));
            let report = Storm { devices, instances, quota_per_minute: quota, boot, kills, seed }.run();
            println!("{report}, in {:.1} s", began.elapsed().as_secs_f64());
            report.report.violations.is_empty()
        }
        Command::Meta { seed, options } => options.runs(seed).map(is_the_same_twice).fold(true, |a, b| a & b),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(report: &Report, log: bool) -> bool {
    if log {
        report.lines().for_each(|line| println!("{line}"));
    }
    println!("{report}");
    report.violations.is_empty()
}

fn is_the_same_twice(run: Run) -> bool {
    match run.make_twice() {
        Ok(report) => {
            println!("seed {}: the same twice, {} events, {}", run.seed, report.figures.events, report.digest());
            true
        }
        Err(difference) => {
            println!("{difference}");
            false
        }
    }
}

fn seeds(from: u64, count: u64, options: Options) -> bool {
    let began = Instant::now();
    let mut total = Total::default();
    for run in (from..from.saturating_add(count)).flat_map(|seed| options.runs(seed)) {
        let report = run.make();
        total.add(&report);
        if !report.violations.is_empty() {
            println!("{report}");
            return false;
        }
    }
    println!("{count} seeds from {from} are good: {total}, in {:.1} s", began.elapsed().as_secs_f64());
    true
}

/// Whether each of them is noticed within so many seeds.
fn mutants(seeds: u64) -> bool {
    let mut all = true;
    for &mutant in Mutant::all() {
        if !mutant.exists() {
            println!("{:<22} exists in debug builds only", mutant.to_string());
            continue;
        }
        let seeds = seeds.saturating_mul(mutant.rarity());
        let found = (1..=seeds).find_map(|seed| {
            let report = Run::breaking(mutant, seed).make();
            let named = |violation: &&proxy_sim::Violation| mutant.breaks().contains(&violation.invariant);
            report.violations.iter().find(named).map(|violation| (seed, violation.invariant))
        });
        match found {
            Some((seed, invariant)) => println!("{:<22} seed {seed:>3}: {invariant}", mutant.to_string()),
            None => println!("{:<22} not noticed within {seeds} seeds", mutant.to_string()),
        }
        all &= found.is_some();
    }
    all
}

/// What all runs came to together.
#[derive(Debug, Default)]
struct Total {
    hours: f64,
    devices: usize,
    processes: u32,
    calls: u64,
    events: usize,
}

impl Total {
    fn add(&mut self, report: &Report) {
        let figures = &report.figures;
        self.hours += figures.lasted.as_secs_f64() / 3600.0;
        self.devices += figures.devices;
        self.processes += figures.processes;
        self.calls += figures.registers + figures.polls + figures.lookups;
        self.events += figures.events;
    }
}

impl std::fmt::Display for Total {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { hours, devices, processes, calls, events } = self;
        write!(
            f,
            "{hours:.0} simulated hours, {devices} devices, {processes} processes, {calls} calls to DPS, {events} events"
        )
    }
}
