//! `dps-proxy plan`: how long a storm takes, what it costs and what it needs, simulated before it happens.
//!
//! The simulation is `storm-sim`'s: the service's own decisions on a simulated clock. Here are the questions (options, the tenants'
//! file) and the answers (text, chart, SVG).

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use proxy_core::ids::TenantName;
use storm_sim::{BootCurve, Comparison, DpsModel, Fleet, INSTANCES_MAX, Manner, Scenario, Tenant, Trial};

use crate::cli;
use crate::config::parse_duration;

mod answer;
mod chart;
mod tenants;

/// What is planned.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Devices that knock.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=50_000_000))]
    devices: u32,
    /// A CSV of tenants instead: columns tenant, devices and, as you like, boot_seconds, dedicated_instances, weight.
    #[arg(long, value_name = "FILE", conflicts_with = "devices")]
    tenants: Option<PathBuf>,
    /// DPS instances, dedicated ones included [default: 10; with --deadline as many as it takes].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(INSTANCES_MAX)), conflicts_with = "deadline")]
    instances: Option<u16>,
    /// Registrations that each instance accepts per minute.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    quota: u32,
    /// How devices come back: all within a time (60s), more and more up to a time (ramp:10m), or with a tail of a mean (tail:5m).
    #[arg(long, value_name = "CURVE", default_value = "60s", value_parser = boot_curve)]
    boot: BootCurve,
    /// From a call to DPS until its answer.
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = at_most_30_seconds)]
    latency: Duration,
    /// From DPS's taking a registration until it has a hub for it.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = at_most_30_seconds)]
    assigning: Duration,
    /// Find how many instances it takes until everybody knows its hub within this time.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    deadline: Option<Duration>,
    /// Also simulate the alternatives: retries straight against DPS, and a proxy with one Retry-After for all.
    #[arg(long)]
    compare: bool,
    /// Where all randomness comes from; the same seed gives the same answer.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the chart to this SVG file as well.
    #[arg(long, value_name = "FILE.svg", value_parser = svg_path)]
    chart: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let bounds = Duration::ZERO..=Duration::from_secs(30 * 86_400);
    parse_duration(text)
        .filter(|duration| bounds.contains(duration))
        .ok_or_else(|| "expected a time of at most 30 days, such as 90s, 30m or 2h".to_owned())
}

fn at_most_30_seconds(text: &str) -> Result<Duration, String> {
    let short = |duration: &Duration| *duration <= Duration::from_secs(30);
    duration(text).ok().filter(short).ok_or_else(|| "expected a time of at most 30s, such as 300ms".to_owned())
}

fn boot_curve(text: &str) -> Result<BootCurve, String> {
    let (shape, time) = text.split_once(':').unwrap_or(("within", text));
    let time = duration(time)?;
    match shape {
        "within" => Ok(BootCurve::Within(time)),
        "ramp" => Ok(BootCurve::Ramp(time)),
        "tail" => Ok(BootCurve::Tail(time)),
        _ => Err(format!("{shape} is no curve; expected a time such as 60s, or ramp:10m, or tail:5m")),
    }
}

fn svg_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("svg")) {
        return Err("charts are written as SVG only: expected a name that ends in .svg".to_owned());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder.filter(|folder| !folder.is_dir()) {
        Some(folder) => Err(format!("there is no folder {}", folder.display())),
        None => Ok(path),
    }
}

/// Answers. Exit code 2 if what was asked makes no sense or has no answer, 1 if the chart cannot be written.
#[must_use]
pub fn run(options: &Options) -> ExitCode {
    let answered = scenario(options).and_then(|scenario| answer(options, scenario));
    let (text, drawing) = match answered {
        Ok(answer) => answer,
        Err(what) => {
            cli::report(&format!("dps-proxy plan: {what}"));
            return ExitCode::from(2);
        }
    };
    cli::print(&text);
    if let Some((path, drawing)) = options.chart.as_ref().zip(drawing) {
        if let Err(error) = std::fs::write(path, drawing) {
            cli::report(&format!("dps-proxy plan: {}: {error}", path.display()));
            return ExitCode::FAILURE;
        }
        cli::print(&format!("Chart written to {}", path.display()));
    }
    ExitCode::SUCCESS
}

fn scenario(options: &Options) -> Result<Scenario, String> {
    let fleet = match &options.tenants {
        Some(path) => tenants::read(path, options.boot)?,
        None => vec![Tenant {
            name: TenantName::parse("fleet").expect("letters"),
            devices: options.devices,
            boot: options.boot,
            begins_after: Duration::ZERO,
            dedicated_instances: 0,
            weight: 1,
        }],
    };
    let fleet = Fleet::new(fleet).map_err(|error| error.to_string())?;
    let instances = options.instances.unwrap_or(10);
    let dedicated = fleet.dedicated_instances();
    if options.deadline.is_none() && u64::from(instances) < dedicated + u64::from(fleet.shares()) {
        return Err(format!(
            "--instances {instances} is too few: {dedicated} are dedicated to tenants, and tenants without any of their own need one that is shared"
        ));
    }
    let dps = DpsModel {
        quota_per_minute: options.quota,
        enforced_per_minute: options.quota,
        latency: options.latency,
        assigning: options.assigning,
    };
    Ok(Scenario { fleet, instances, dps, manner: Manner::Appointments, seed: options.seed })
}

/// The text, and the drawing if one is wanted.
fn answer(options: &Options, mut scenario: Scenario) -> Result<(String, Option<String>), String> {
    let mut text = String::new();
    let report = match options.deadline {
        Some(deadline) => {
            // Whoever waits for it sees that it goes on; the answer names them all in any case.
            let watched = std::io::stderr().is_terminal();
            let mut tried = |trial: &Trial| {
                if watched {
                    cli::report(&answer::trial(trial, deadline));
                }
            };
            let needed = storm_sim::instances_needed(&scenario, deadline, &mut tried)
                .map_err(|error| format!("the deadline of {} cannot be met: {error}", answer::time(deadline)))?;
            text.push_str(&answer::explain(&needed, &scenario, deadline));
            scenario.instances = needed.report.instances;
            needed.report
        }
        None => storm_sim::run(&scenario).map_err(|error| error.to_string())?,
    };
    text.push_str(&answer::figures(&report, &scenario));
    text.push_str(&chart::in_terminal(&report.waiting));
    let compared = options.compare.then(|| storm_sim::compare(&scenario)).transpose();
    let compared: Option<Comparison> = compared.map_err(|error| error.to_string())?;
    if let Some(comparison) = &compared {
        text.push_str(&answer::table(comparison, &scenario));
    }
    let drawing = options.chart.is_some().then(|| match &compared {
        Some(comparison) => {
            let curves = comparison.outcomes.iter().map(|(who, report)| (who.name, report.waiting.as_slice()));
            chart::svg("Devices that wait for their hub, busiest line", &curves.collect::<Vec<_>>())
        }
        None => chart::svg("Devices that wait for their hub", &[("dps-proxy", report.waiting.as_slice())]),
    });
    Ok((text, drawing))
}
