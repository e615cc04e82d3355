//! What the demo has shown, measured from both sides.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use dps_emulator::{Emulator, Stats};

use super::fleet::Outcome;
use super::scene::BURST;
use super::{Options, instance_name};
use crate::cli::terminal::print;

/// Everything that was measured.
pub(super) struct Report<'a> {
    pub(super) options: &'a Options,
    pub(super) outcomes: &'a [Outcome],
    pub(super) took: Duration,
    pub(super) emulators: &'a [Emulator],
}

impl Report<'_> {
    /// Prints it. True if every device was assigned.
    pub(super) fn print(&self) -> bool {
        let assigned = self.outcomes.iter().filter(|outcome| outcome.hub.is_ok()).count();
        let requests: u32 = self.outcomes.iter().map(|outcome| outcome.requests).sum();
        let stats: Vec<Stats> = self.emulators.iter().map(Emulator::stats).collect();
        let throttled: u64 = stats.iter().map(|stats| stats.throttled).sum();
        let mut text = String::from("\nReport\n");
        let mut row = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {name:<34}{value}");
        };
        row("devices assigned", format!("{assigned} of {}", self.outcomes.len()));
        row("requests per device", format!("{:.2}", f64::from(requests) / self.outcomes.len().max(1) as f64));
        row("time", self.time(&stats));
        row("DPS throttled (429)", throttled.to_string());
        for (number, stats) in stats.iter().enumerate() {
            row(&format!("{} by its own count", instance_name(number)), self.instance(stats));
        }
        row("devices per hub", self.spread());
        print(&text);
        for (why, count) in self.failures() {
            print(&format!("  not assigned: {count} × {why}"));
        }
        assigned == self.outcomes.len()
    }

    fn instance(&self, stats: &Stats) -> String {
        format!(
            "{} registrations, at most {} in any 60 s (quota {}), {} devices",
            stats.registrations_counted, stats.registrations_max_sliding, self.options.quota, stats.devices_registered
        )
    }

    /// The ideal: what is beyond the burst, at the quota's rate, on the instance that has most of it.
    fn time(&self, stats: &[Stats]) -> String {
        let burst = u64::from(BURST.min(self.options.quota));
        let beyond = stats.iter().map(|stats| stats.registrations_counted.saturating_sub(burst)).max().unwrap_or(0);
        let ideal = beyond as f64 * 60.0 / f64::from(self.options.quota);
        let took = self.took.as_secs_f64();
        format!("{took:.1} s; ideal {ideal:.1} s for the quota alone, plus DPS's own processing (about 3 s a device)")
    }

    fn spread(&self) -> String {
        let mut hubs: BTreeMap<&str, usize> = BTreeMap::new();
        for hub in self.outcomes.iter().filter_map(|outcome| outcome.hub.as_deref().ok()) {
            *hubs.entry(hub).or_default() += 1;
        }
        let hubs: Vec<String> =
            hubs.iter().map(|(hub, count)| format!("{} {count}", hub.split('.').next().unwrap_or(hub))).collect();
        hubs.join(", ")
    }

    fn failures(&self) -> BTreeMap<&str, usize> {
        let mut failures = BTreeMap::new();
        for why in self.outcomes.iter().filter_map(|outcome| outcome.hub.as_deref().err()) {
            *failures.entry(why.as_str()).or_default() += 1;
        }
        failures
    }
}
