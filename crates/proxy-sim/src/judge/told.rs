//! Whether devices were told the truth about their waits.

use std::time::Duration;

use super::Violation;
use super::way::Ways;
use crate::invariant::Invariant;

/// Requests per device, on average.
const REQUESTS_MAX: f64 = 2.05;

/// Of all devices so many, and [`FEW`], may be told too early or too late.
const WRONG_PART: f64 = 0.03;

/// See [`WRONG_PART`].
const FEW: f64 = 3.0;

/// Waits are told in whole seconds, and spread by this at most, only later.
const ROUNDED: Duration = Duration::from_secs(1);
const JITTER: Duration = Duration::from_secs(5);

/// What a wait allows for expedited devices that may come.
const URGENT_RESERVE: Duration = Duration::from_secs(5);

/// What nobody can know before: how long DPS takes.
const TOLERANCE: Duration = Duration::from_secs(4);

/// The first thing that a device is told is when its assignment is there: not before, and no later than what it has to allow for.
pub(super) fn in_time(ways: &Ways<'_>) -> Vec<Violation> {
    let (mut early, mut late) = (Vec::new(), Vec::new());
    for way in &ways.devices {
        let (Some(told), Some(ready)) = (way.told.first(), way.ready()) else { continue };
        if told.due < ready {
            early.push((told.at, ready - told.due));
        }
        let wait = ready.saturating_sub(told.at);
        let allowance = ROUNDED + JITTER.min(wait / 50) + URGENT_RESERVE + TOLERANCE + wait / 50;
        // Where tenants share a line, a wait allows for devices of others that are expected, and may not come.
        if told.due > ready + allowance && ways.scenario.tenants == 1 {
            late.push((told.at, told.due - ready));
        }
    }
    let few = FEW + WRONG_PART * ways.devices.len() as f64;
    let convict = |mut wrong: Vec<(Duration, Duration)>, how: &str| {
        wrong.sort_by_key(|(_, by)| *by);
        let &(at, by) = wrong.last().filter(|_| wrong.len() as f64 > few)?;
        let devices = (wrong.len(), ways.devices.len());
        let detail = format!("{} of {} devices were told to come too {how}, one by {by:.1?}", devices.0, devices.1);
        Some(Violation { invariant: Invariant::ToldInTime, at, detail })
    };
    convict(early, "early").into_iter().chain(convict(late, "late")).collect()
}

/// Devices that come back when they are told to ask twice.
pub(super) fn two_requests(ways: &Ways<'_>) -> Vec<Violation> {
    let obedient: Vec<usize> = ways.devices.iter().filter(|way| way.obedient).map(|way| way.asked.len()).collect();
    let (devices, requests) = (obedient.len() as f64, obedient.iter().sum::<usize>() as f64);
    if requests <= REQUESTS_MAX * devices + FEW {
        return Vec::new();
    }
    let at = ways.devices.iter().filter_map(|way| way.told_hub).max().unwrap_or_default();
    let detail = format!("{devices} devices asked {requests} times, {:.3} each", requests / devices);
    vec![Violation { invariant: Invariant::TwoRequests, at, detail }]
}
