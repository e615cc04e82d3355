//! A simulated storm in words.

use std::fmt::Write as _;
use std::time::Duration;

use storm_sim::{Comparison, Needed, Report, Scenario, Trial};

/// DPS instances in one subscription (Microsoft's limit).
const INSTANCES_PER_SUBSCRIPTION: u16 = 10;

/// Tenants that are listed; the slowest ones.
const TENANTS_SHOWN: usize = 20;

/// A time as people say it.
pub(super) fn time(duration: Duration) -> String {
    seconds(usize::try_from(duration.as_secs_f64().round() as u64).unwrap_or(usize::MAX))
}

/// `1h 40m 48s`, without the zeros in front.
pub(super) fn seconds(seconds: usize) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m {seconds}s"),
        _ => format!("{hours}h {minutes}m {seconds}s"),
    }
}

/// `1 instance`, `2 instances`.
pub(super) fn instances(number: u16) -> String {
    format!("{number} {}", if number == 1 { "instance" } else { "instances" })
}

/// Registrations that so many instances accept until the deadline.
fn registrations_until(scenario: &Scenario, instances: u16, deadline: Duration) -> u64 {
    let per_minute: u64 = (0..instances).map(|instance| u64::from(scenario.quota_of(instance))).sum();
    (per_minute as f64 * deadline.as_secs_f64() / 60.0) as u64
}

/// The quotas, as far as they are alike.
fn quotas(scenario: &Scenario, instances: u16) -> String {
    let all = || (0..instances).map(|instance| scenario.quota_of(instance));
    match (all().min().unwrap_or(0), all().max().unwrap_or(0)) {
        (least, most) if least == most => most.to_string(),
        (least, most) => format!("{least} to {most}"),
    }
}

/// What the quotas add up to, beside what is needed.
fn sum(scenario: &Scenario, instances: u16, deadline: Duration) -> String {
    format!(
        "{instances} × {} per minute × {:.1} min = {} registrations, for {} devices",
        quotas(scenario, instances),
        deadline.as_secs_f64() / 60.0,
        registrations_until(scenario, instances, deadline),
        scenario.fleet.devices()
    )
}

/// Whether a number of instances meets a deadline, and why; `instead` says how many do if it does not, or why none do.
pub(super) fn yes_or_no(
    report: &Report,
    scenario: &Scenario,
    deadline: Duration,
    instead: Option<&Result<u16, String>>,
) -> String {
    let (finished, number) = (report.finished_after, report.instances);
    let mut text = match finished <= deadline {
        true => format!(
            "Yes: {} within {}, done after {}, {} to spare\n",
            instances(number),
            time(deadline),
            time(finished),
            time(deadline - finished)
        ),
        false => format!(
            "No: {} {} not done within {}, but after {}, {} too late\n",
            instances(number),
            if number == 1 { "is" } else { "are" },
            time(deadline),
            time(finished),
            time(finished - deadline)
        ),
    };
    let _ = writeln!(text, "  {}", sum(scenario, number, deadline));
    let _ = match instead {
        Some(Ok(needed)) => writeln!(text, "  it takes {}", instances(*needed)),
        Some(Err(why)) => writeln!(text, "  {why}"),
        None => Ok(()),
    };
    text.push('\n');
    text
}

/// Why it takes so many instances.
pub(super) fn explain(needed: &Needed, scenario: &Scenario, deadline: Duration) -> String {
    let (fewest, found) = (needed.fewest_thinkable, needed.report.instances);
    let registrations = |instances| registrations_until(scenario, instances, deadline);
    let mut text = format!(
        "{} within {}: {}\n  {}\n",
        devices(scenario.fleet.devices()),
        time(deadline),
        instances(found),
        sum(scenario, found, deadline)
    );
    let _ = if registrations(fewest - 1) < scenario.fleet.devices() {
        writeln!(text, "  {} could accept {} until then: too few for certain", fewest - 1, registrations(fewest - 1))
    } else {
        writeln!(text, "  fewer than {fewest} leave a tenant without an instance, or have no room")
    };
    for tried in &needed.trials {
        let _ = writeln!(text, "  {}", trial(tried, deadline));
    }
    if found > fewest {
        let _ = writeln!(
            text,
            "  Why more than {fewest}: devices that come late find the first minutes' quota gone, each slot is held for DPS's latency\n  \
             as well, and the last device has to come back for its hub"
        );
    }
    text.push('\n');
    text
}

/// One number of instances that was tried.
pub(super) fn trial(trial: &Trial, deadline: Duration) -> String {
    let verdict = if trial.finished_after <= deadline { "in time" } else { "too late" };
    format!("{} simulated: done after {}, {verdict}", trial.instances, time(trial.finished_after))
}

/// What a storm costs.
pub(super) fn figures(report: &Report, scenario: &Scenario, names: &[String]) -> String {
    let subscriptions = report.instances.div_ceil(INSTANCES_PER_SUBSCRIPTION);
    let mut text = format!(
        "{} on {}, quota {} registrations per minute each\n",
        devices(report.devices),
        instances(report.instances),
        quotas(scenario, report.instances)
    );
    let mut row = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:<34}{value}");
    };
    row("half know their hub after", time(report.half_after));
    row("all know their hub after", time(report.finished_after));
    let ideal = format!("{:.3} × (ideal: {})", report.finish_to_ideal(), time(report.ideal_after));
    row("finish compared with the ideal", ideal);
    row(
        "wait of a device",
        format!(
            "half up to {}, 99 % up to {}, longest {}",
            time(report.wait_p50),
            time(report.wait_p99),
            time(report.wait_max)
        ),
    );
    row("requests per device", format!("{:.2}", report.requests_per_device()));
    row("requests per second at the peak", report.knocks_per_second_max.to_string());
    row("longest line (line.length_max)", format!("{} devices at one instance", report.line_length_max));
    row("quota used while there was a line", percent(report.quota_used));
    row("DPS instances", report.instances.to_string());
    row("Azure subscriptions", format!("{subscriptions} ({INSTANCES_PER_SUBSCRIPTION} instances in each at most)"));
    row("registrations billed", report.registrations.to_string());
    row("DPS throttled (429)", report.throttled.to_string());
    row("most registrations in any 60 s", format!("{} at one instance", report.most_in_any_minute));
    if report.tenants.len() > 1 {
        text.push_str(&tenants(report));
    }
    if !names.is_empty() {
        text.push_str(&named_instances(report, scenario, names));
    }
    text
}

/// The instances that were named, and the slowest of the others.
fn named_instances(report: &Report, scenario: &Scenario, names: &[String]) -> String {
    let mut text = format!("\n  {:<24}{:>12}{:>16}\n", "instance", "quota", "all after");
    let done = report.lines_finished_after.iter().zip(0_u16..);
    for ((finished, number), name) in done.clone().zip(names) {
        let _ = writeln!(text, "  {name:<24}{:>12}{:>16}", scenario.quota_of(number), time(*finished));
    }
    if let Some((slowest, number)) = done.skip(names.len()).max_by_key(|(finished, _)| **finished) {
        let _ = writeln!(text, "  {:<24}{:>12}{:>16}", "slowest other", scenario.quota_of(number), time(*slowest));
    }
    text
}

fn tenants(report: &Report) -> String {
    let mut slowest: Vec<_> = report.tenants.iter().collect();
    slowest.sort_by_key(|tenant| std::cmp::Reverse(tenant.finished_after));
    let mut text = format!("\n  {:<24}{:>12}{:>16}{:>16}\n", "tenant", "devices", "half after", "all after");
    for tenant in slowest.iter().take(TENANTS_SHOWN) {
        let (half, all) = (time(tenant.half_after), time(tenant.finished_after));
        let _ = writeln!(text, "  {:<24}{:>12}{half:>16}{all:>16}", tenant.name.as_str(), tenant.devices);
    }
    if let Some(more) = slowest.len().checked_sub(TENANTS_SHOWN).filter(|&more| more > 0) {
        let _ = writeln!(text, "  and {more} faster ones");
    }
    text
}

/// The alternatives, as a table that Markdown understands, too.
pub(super) fn table(comparison: &Comparison, scenario: &Scenario) -> String {
    let mut text = format!(
        "\nSide by side: the busiest of {} lines, {}, quota {}\n",
        scenario.instances,
        devices(comparison.devices),
        quotas(scenario, scenario.instances)
    );
    if comparison.divided_by > 1 {
        let _ = writeln!(
            text,
            "(simulated with devices and quota divided by {}; the drain lasts as long as in full)",
            comparison.divided_by
        );
    }
    let header = ["requests / device", "finish / ideal", "quota used", "     429s", "peak requests / s"];
    let _ = write!(text, "\n| {:<51} |", "");
    for name in header {
        let _ = write!(text, " {name} |");
    }
    let _ = write!(text, "\n|{}|", "-".repeat(53));
    for name in header {
        let _ = write!(text, "{}:|", "-".repeat(name.chars().count() + 1));
    }
    for (contender, report) in &comparison.outcomes {
        let values = [
            format!("{:.2}", report.requests_per_device()),
            format!("{:.2} ×", report.finish_to_ideal()),
            percent(report.quota_used),
            report.throttled.to_string(),
            report.knocks_per_second_max.to_string(),
        ];
        let _ = write!(text, "\n| {:<51} |", contender.name);
        for (value, name) in values.iter().zip(header) {
            let _ = write!(text, " {value:>width$} |", width = name.chars().count());
        }
    }
    text.push('\n');
    text
}

fn devices(count: u64) -> String {
    format!("{count} {}", if count == 1 { "device" } else { "devices" })
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_people_say_them() {
        assert_eq!(["0s", "59s", "1m 0s", "1h 40m 48s"], [0, 59, 60, 6048].map(seconds));
        assert_eq!(time(Duration::from_millis(1_500)), "2s");
    }
}
