//! `proxy-sim`: runs the simulation from the command line.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use proxy_sim::{Mutant, Report, Storm, meta, run};

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
        /// Breaks something on purpose, to see the judge notice.
        #[arg(long = "break")]
        mutant: Option<Mutant>,
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
        /// Breaks something on purpose, to see the judge notice.
        #[arg(long = "break")]
        mutant: Option<Mutant>,
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
    },
}

fn main() -> ExitCode {
    let good = match Cli::parse().command {
        Command::Run { seed, mutant, log } => {
            let report = run(seed, mutant);
            if log {
                report.lines().for_each(|line| println!("{line}"));
            }
            println!("{report}");
            report.violations.is_empty()
        }
        Command::Seeds { from, count, mutant } => seeds(from, count, mutant),
        Command::Storm { devices, instances, quota, boot_seconds, kills, seed } => {
            let (began, boot) = (Instant::now(), Duration::from_secs(boot_seconds));
            let report = Storm { devices, instances, quota_per_minute: quota, boot, kills, seed }.run();
            println!("{report}, in {:.1} s", began.elapsed().as_secs_f64());
            report.report.violations.is_empty()
        }
        Command::Meta { seed } => match meta(seed) {
            Ok(report) => {
                println!("seed {seed}: the same twice, {} events, {}", report.figures.events, report.digest());
                true
            }
            Err(difference) => {
                println!("{difference}");
                false
            }
        },
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn seeds(from: u64, count: u64, mutant: Option<Mutant>) -> bool {
    let began = Instant::now();
    let mut total = Total::default();
    for seed in from..from.saturating_add(count) {
        let report = run(seed, mutant);
        total.add(&report);
        if !report.violations.is_empty() {
            println!("{report}");
            return false;
        }
    }
    println!("{count} seeds from {from} are good: {total}, in {:.1} s", began.elapsed().as_secs_f64());
    true
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
