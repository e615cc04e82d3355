//! Whether lines went as fast as they could, in order, and by everybody's share.

use std::time::Duration;

use super::Violation;
use super::way::{Way, Ways, time_for};
use crate::invariant::Invariant;
use crate::network::WINDOW;
use crate::scenario::InstancePlan;

/// Of the quota, while devices wait.
const USED_MIN: f64 = 0.99;

/// A stretch in which devices wait is long enough to be counted.
const STRETCH_MIN: Duration = Duration::from_secs(30);

/// Of its share by weight a tenant gets at least this part: whoever was told a moment goes in time, also when it is another one's turn.
const SHARE_MIN: f64 = 0.75;

/// Departures more or less that show nothing.
const SHARE_SLACK: f64 = 4.0;

/// Expedited devices that may go in a row after a time without any.
const URGENT_BURST: f64 = 10.0;

/// Between a departure and its call is a commit, in which it may be overtaken by the next one.
fn under_way(ways: &Ways<'_>) -> Duration {
    ways.scenario.sync_every * 2 + Duration::from_millis(50)
}

/// While devices wait, the quota is used.
pub(super) fn quota_used(ways: &Ways<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for plan in &ways.scenario.instances {
        for (from, until) in ways.stretches(|way| way.is_of(&plan.name)) {
            if until - from < STRETCH_MIN {
                continue;
            }
            let sent = ways.sent(&plan.name, from, until).len() as f64;
            // The first one asks DPS for the time before.
            let possible = f64::from(plan.quota) * (until - from).as_secs_f64() / WINDOW.as_secs_f64();
            if sent + 2.0 < USED_MIN * possible {
                let detail = format!(
                    "{sent} registrations left for {} in the {:.1} s until then, in which devices waited all the time; the quota allows {possible:.1}",
                    plan.name,
                    (until - from).as_secs_f64(),
                );
                violations.push(Violation { invariant: Invariant::QuotaUsed, at: until, detail });
            }
        }
    }
    violations
}

/// Registrations leave at an even pace: a token bucket of the quota's rate and the configured burst never lacks more than what came
/// together on the way to the disk.
pub(super) fn paced(ways: &Ways<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for plan in &ways.scenario.instances {
        let rate = f64::from(plan.quota) / WINDOW.as_secs_f64();
        let (mut tokens, mut last) = (f64::from(plan.burst), Duration::ZERO);
        let lacking_max = rate * under_way(ways).as_secs_f64() + 0.1;
        for &(at, _) in ways.sent(&plan.name, Duration::ZERO, Duration::MAX) {
            tokens = (tokens + rate * (at - last).as_secs_f64()).min(f64::from(plan.burst)) - 1.0;
            last = at;
            if tokens < -lacking_max {
                let detail = format!(
                    "a registration left for {} {:.1} ahead of {} a minute with a burst of {}",
                    plan.name, -tokens, plan.quota, plan.burst
                );
                violations.push(Violation { invariant: Invariant::Paced, at, detail });
                break;
            }
        }
    }
    violations
}

/// Who was told its place before another one of its lane even asked goes before it, give or take `slack`.
pub(super) fn order(ways: &Ways<'_>, slack: Duration) -> Vec<Violation> {
    let (mut violations, slack) = (Vec::new(), slack + under_way(ways));
    for plan in &ways.scenario.instances {
        for tenant in 0..ways.scenario.tenants {
            let lane = ways.devices.iter().filter(|way| way.tenant == tenant && way.is_of(&plan.name));
            violations.extend(order_in_lane(lane.collect(), slack, plan));
        }
    }
    violations
}

fn order_in_lane(mut lane: Vec<&Way>, slack: Duration, plan: &InstancePlan) -> Option<Violation> {
    lane.retain(|way| way.expedited.is_none() && way.joined().is_some());
    let mut earlier = lane.clone();
    earlier.sort_by_key(|way| way.joined());
    lane.sort_by_key(|way| way.asked.first().copied());
    let (mut seen, mut latest) = (0, Duration::ZERO);
    for way in lane {
        let (asked, left) = (way.asked.first()?, way.left()?);
        while let Some(joined) = earlier.get(seen).and_then(|way| way.joined())
            && joined < *asked
        {
            latest = latest.max(earlier[seen].left()?);
            seen += 1;
        }
        if latest > left + slack {
            let detail = format!(
                "a device that asked at {:.3} s went before one that had a place then and went at {:.3} s, to {}",
                asked.as_secs_f64(),
                latest.as_secs_f64(),
                plan.name
            );
            return Some(Violation { invariant: Invariant::LaneOrder, at: left, detail });
        }
    }
    None
}

/// While all tenants that use a line have devices waiting in it, each gets its share.
pub(super) fn shares(ways: &Ways<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for plan in &ways.scenario.instances {
        let tenants: Vec<usize> = (0..ways.scenario.tenants)
            .filter(|&tenant| ways.devices.iter().any(|way| way.tenant == tenant && way.is_of(&plan.name)))
            .collect();
        let longest = |tenant: &usize| {
            let stretches = ways.stretches(|way| way.tenant == *tenant && way.is_of(&plan.name));
            stretches.into_iter().max_by_key(|&(from, until)| until - from)
        };
        let all: Option<Vec<(Duration, Duration)>> = tenants.iter().map(longest).collect();
        let Some(all) = all.filter(|all| all.len() > 1) else { continue };
        let from = all.iter().map(|stretch| stretch.0).max().unwrap_or_default();
        let until = all.iter().map(|stretch| stretch.1).min().unwrap_or_default();
        let sent = ways.sent(&plan.name, from, until.max(from));
        let weight = |tenant: usize| f64::from(ways.scenario.weights[tenant]);
        let total: f64 = tenants.iter().map(|&tenant| weight(tenant)).sum();
        for &tenant in &tenants {
            let of_tenant = sent.iter().filter(|(_, device)| ways.devices[*device].tenant == tenant).count() as f64;
            let share = sent.len() as f64 * weight(tenant) / total;
            if of_tenant + SHARE_SLACK < SHARE_MIN * share {
                let detail = format!(
                    "tenant {tenant} got {of_tenant} of {} departures of {}, its share is {share:.1}",
                    sent.len(),
                    plan.name
                );
                violations.push(Violation { invariant: Invariant::FairShares, at: until, detail });
            }
        }
    }
    violations
}

/// Whoever was expedited goes as soon as the share of expedited devices lets all of those who were go that were before it.
pub(super) fn urgent_first(ways: &Ways<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let plan = &ways.scenario.instances[0];
    let each = 100.0 / f64::from(ways.scenario.urgent_share_percent);
    for way in &ways.devices {
        let Some(expedited) = way.expedited.filter(|at| way.waits_at(*at)) else { continue };
        let before = ways.devices.iter().filter(|other| {
            other.expedited.is_some_and(|at| at <= expedited) && other.left().is_none_or(|left| left > expedited)
        });
        let rest = time_for(f64::from(plan.burst), plan);
        let bound = expedited + time_for(1.05 * each * before.count() as f64, plan) + rest + Duration::from_secs(3);
        if way.left().is_none_or(|left| left > bound) {
            let detail = format!(
                "a device that was expedited at {:.3} s had not gone by {:.3} s",
                expedited.as_secs_f64(),
                bound.as_secs_f64()
            );
            violations.push(Violation { invariant: Invariant::UrgentShare, at: bound, detail });
        }
    }
    violations
}

/// While others wait, expedited devices take no more than their share.
pub(super) fn urgent_share(ways: &Ways<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let plan = &ways.scenario.instances[0];
    let share = f64::from(ways.scenario.urgent_share_percent) / 100.0;
    let ordinary = ways.stretches(|way| way.expedited.is_none());
    let urgent: Vec<(Duration, Duration)> = urgent_stretches(ways);
    for (from, until) in urgent {
        let Some(both) = ordinary.iter().find(|stretch| stretch.0 <= from && from < stretch.1) else { continue };
        let until = until.min(both.1);
        let sent = ways.sent(&plan.name, from, until);
        let expedited = |device: usize| ways.devices[device].expedited.is_some_and(|at| at <= until);
        let of_them = sent.iter().filter(|(_, device)| expedited(*device)).count() as f64;
        let allowed = share * sent.len() as f64 + URGENT_BURST + 2.0;
        if of_them > allowed {
            let detail = format!(
                "{of_them} of {} departures in the {:.1} s until then were of expedited devices, {allowed:.1} may be",
                sent.len(),
                (until - from).as_secs_f64()
            );
            violations.push(Violation { invariant: Invariant::UrgentShare, at: until, detail });
        }
    }
    violations
}

/// Stretches in which expedited devices waited, from the moment at which the first of them was expedited.
fn urgent_stretches(ways: &Ways<'_>) -> Vec<(Duration, Duration)> {
    let urgent = ways.devices.iter().filter_map(|way| {
        let from = way.expedited.filter(|at| way.waits_at(*at))?;
        Some((from, way.left()?))
    });
    let mut urgent: Vec<(Duration, Duration)> = urgent.collect();
    urgent.sort_unstable();
    let mut stretches: Vec<(Duration, Duration)> = Vec::new();
    for (from, until) in urgent {
        match stretches.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(until),
            _ => stretches.push((from, until)),
        }
    }
    stretches
}
