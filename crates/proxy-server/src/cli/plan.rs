//! `dps-proxy plan`: how long a storm takes, what it costs and what it needs, simulated before it happens.
//!
//! The simulation is `storm-sim`'s: the service's own decisions on a simulated clock. Here are the questions (options, the tenants'
//! file) and the answers (text, chart, SVG).

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use proxy_core::ids::TenantName;
use storm_sim::{BootCurve, CAPACITY, Comparison, DpsModel, Fleet, INSTANCES_MAX, Manner, Report, Scenario, Tenant};

use super::terminal::{print, report};
use crate::config::parse_duration;

mod answer;
mod bars;
mod chart;
mod numbers;
mod progress;
mod tenants;

use numbers::{Quota, Quotas};
use progress::Progress;

/// What is planned.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Devices that come back: 3000000, 3_000_000, 3,000,000 or 3M.
    #[arg(long, value_name = "N", default_value = "1000000", value_parser = numbers::devices)]
    devices: u32,
    /// A CSV of tenants instead: columns tenant, devices and optionally boot_seconds, begins_after_seconds, dedicated_instances,
    /// weight.
    #[arg(long, value_name = "FILE", conflicts_with = "devices")]
    tenants: Option<PathBuf>,
    /// DPS instances, dedicated ones included [default: as many as --quota names, else 10; with --deadline as many as it takes].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(INSTANCES_MAX)))]
    instances: Option<u16>,
    /// Registrations that each instance accepts per minute; NAME=N for one instance, repeated or separated by commas [default: 1000].
    #[arg(long, value_name = "N|NAME=N", value_delimiter = ',', value_parser = numbers::quota)]
    quota: Vec<Quota>,
    /// How devices come back: evenly within a time (60s), at a rate that rises until a time (ramp:10m), or one that decays exponentially with a mean (tail:5m).
    #[arg(long, value_name = "CURVE", default_value = "60s", value_parser = boot_curve)]
    boot: BootCurve,
    /// How long DPS takes to answer a call.
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = at_most_30_seconds)]
    latency: Duration,
    /// How long DPS takes from accepting a registration until it has assigned a hub.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = at_most_30_seconds)]
    assigning: Duration,
    /// Find how many instances are needed so that every device knows its hub within this time; with --instances, tell whether that many are enough.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    deadline: Option<Duration>,
    /// Also simulate the alternatives: retries straight against DPS, and a proxy with one Retry-After for all.
    #[arg(long)]
    compare: bool,
    /// Seed of the random numbers; the same seed gives the same answer.
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
        _ => Err(format!("{shape} is not a curve; expected a time such as 60s, or ramp:10m, or tail:5m")),
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

/// Answers. Exit code 2 if what was asked makes no sense or has no answer, 1 if the instances that were named miss the deadline or the
/// chart cannot be written.
#[must_use]
pub fn run(options: &Options) -> ExitCode {
    let answered = Question::of(options).and_then(|question| question.answer(options));
    let Answer { text, drawing, meets } = match answered {
        Ok(answer) => answer,
        Err(what) => {
            report(&format!("dps-proxy plan: {what}"));
            return ExitCode::from(2);
        }
    };
    print(&text);
    if let Some((path, drawing)) = options.chart.as_ref().zip(drawing) {
        if let Err(error) = std::fs::write(path, drawing) {
            report(&format!("dps-proxy plan: {}: {error}", path.display()));
            return ExitCode::FAILURE;
        }
        print(&format!("Chart written to {}", path.display()));
    }
    if meets { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What is asked.
struct Question {
    scenario: Scenario,
    /// Names of the first instances.
    names: Vec<String>,
}

/// What is said.
struct Answer {
    text: String,
    drawing: Option<String>,
    /// False if the number of instances that was named does not meet the deadline.
    meets: bool,
}

impl Question {
    fn of(options: &Options) -> Result<Self, String> {
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
        let Quotas { named, others } = Quotas::of(&options.quota)?;
        let (names, quotas): (Vec<String>, Vec<u32>) = named.into_iter().unzip();
        let default = if names.is_empty() { 10 } else { u16::try_from(names.len()).unwrap_or(INSTANCES_MAX) };
        let instances = options.instances.unwrap_or(default);
        if usize::from(instances) < names.len() {
            return Err(format!("--instances {instances} is fewer than the {} that --quota names", names.len()));
        }
        if options.deadline.is_none() || options.instances.is_some() {
            check_room(&fleet, instances)?;
        }
        let dps = DpsModel {
            quota_per_minute: others,
            enforced_per_minute: others,
            latency: options.latency,
            assigning: options.assigning,
        };
        let scenario = Scenario { fleet, instances, dps, quotas, manner: Manner::Appointments, seed: options.seed };
        Ok(Self { scenario, names })
    }

    fn answer(mut self, options: &Options) -> Result<Answer, String> {
        let mut progress = Progress::new(self.scenario.fleet.devices());
        let (mut text, report, meets) = match (options.deadline, options.instances) {
            (Some(deadline), Some(_)) => self.meets(deadline, &mut progress)?,
            (Some(deadline), None) => {
                let needed = self.needed(deadline, &mut progress)?;
                (answer::explain(&needed, &self.scenario, deadline), needed.report, true)
            }
            (None, _) => (String::new(), self.simulated(&mut progress)?, true),
        };
        self.scenario.instances = report.instances;
        text.push_str(&answer::figures(&report, &self.scenario, &self.names));
        text.push_str(&bars::in_terminal(&report.waiting));
        progress.says("the alternatives");
        let compared = options.compare.then(|| storm_sim::compare(&self.scenario)).transpose();
        let compared: Option<Comparison> = compared.map_err(|error| error.to_string())?;
        progress.ends();
        if let Some(comparison) = &compared {
            text.push_str(&answer::table(comparison, &self.scenario));
        }
        let drawn = options.chart.is_some().then(|| drawing(&report, compared.as_ref(), &self.scenario)).transpose();
        Ok(Answer { text, drawing: drawn?, meets })
    }

    fn simulated(&self, progress: &mut Progress) -> Result<Report, String> {
        storm_sim::run_watched(&self.scenario, progress).map_err(|error| error.to_string())
    }

    fn needed(&self, deadline: Duration, progress: &mut Progress) -> Result<storm_sim::Needed, String> {
        storm_sim::instances_needed(&self.scenario, deadline, progress.with(deadline))
            .map_err(|error| format!("the deadline of {} cannot be met: {error}", answer::time(deadline)))
    }

    /// Whether the instances that were named meet the deadline, and how many do if they do not.
    fn meets(&self, deadline: Duration, progress: &mut Progress) -> Result<(String, Report, bool), String> {
        let report = self.simulated(progress)?;
        let meets = report.finished_after <= deadline;
        let others = if meets { None } else { Some(self.needed(deadline, progress)) };
        let instead = others.map(|needed| needed.map(|needed| needed.report.instances));
        Ok((answer::yes_or_no(&report, &self.scenario, deadline, instead.as_ref()), report, meets))
    }
}

fn check_room(fleet: &Fleet, instances: u16) -> Result<(), String> {
    let dedicated = fleet.dedicated_instances();
    if u64::from(instances) < dedicated + u64::from(fleet.shares()) {
        return Err(format!(
            "--instances {instances} is too few: {dedicated} are dedicated to tenants, and tenants without any of their own need one that is shared"
        ));
    }
    let needed = fleet.instances_for_room();
    if u64::from(instances) < needed {
        return Err(format!(
            "{} devices on {instances} instances: one holds {CAPACITY} registrations, so this fleet needs {needed} instances",
            fleet.devices()
        ));
    }
    Ok(())
}

fn drawing(report: &Report, compared: Option<&Comparison>, scenario: &Scenario) -> Result<String, String> {
    fn curve<'a>(name: &'a str, report: &'a Report) -> chart::Curve<'a> {
        let (waiting, throttled) = (report.waiting.as_slice(), report.throttled);
        chart::Curve { name, waiting, requests_per_device: report.requests_per_device(), throttled }
    }
    match compared {
        Some(comparison) => {
            let curves: Vec<_> = comparison.outcomes.iter().map(|(who, report)| curve(who.name, report)).collect();
            let title = format!("A storm of {} devices at one instance, by policy", comparison.devices);
            let mut note = format!("The busiest of {} lines.", scenario.instances);
            if comparison.divided_by > 1 {
                note.push_str(&format!(
                    " Simulated with devices and quota divided by {}; the counts here are scaled up again.",
                    comparison.divided_by
                ));
            }
            chart::svg(&title, &note, comparison.divided_by, &curves)
        }
        None => {
            let title = format!("A storm of {} devices on {} instances", report.devices, report.instances);
            let done = format!("Every device knows its hub after {}.", answer::time(report.finished_after));
            chart::svg(&title, &done, 1, &[curve("dps-proxy, an appointment each", report)])
        }
    }
}
