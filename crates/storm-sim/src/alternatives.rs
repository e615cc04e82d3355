//! The alternatives side by side: what the devices of the busiest line would cost without appointments.
//!
//! Lines share nothing, so one line tells it all; the line that the most devices stand in is taken, with the very knocks that the
//! fleet makes there. A fleet of fixed 5-second retries makes hundreds of millions of requests; where that would take minutes to
//! simulate, devices and quota are both divided by the same number, so that the drain lasts as long as it does in full.

use std::time::Duration;

use proxy_core::ids::TenantName;
use proxy_core::placement::NoRoom;
use rate_control::entropy::Entropy;

use crate::fleet::{BootCurve, Fleet, Newcomer, Tenant};
use crate::inventory::Inventory;
use crate::judge::Report;
use crate::scenario::{DpsModel, Manner, Retry, Scenario};
use crate::storm::run_newcomers;

/// Requests of the most talkative contender that are simulated at most, roughly.
const REQUESTS_MAX: u64 = 70_000_000;

/// The interval of the most talkative contender, in seconds.
const SHORTEST_RETRY_SECONDS: u64 = 5;

/// One way of serving devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// What it is, in words.
    pub name: &'static str,
    /// How it goes.
    pub manner: Manner,
}

/// All contenders in front of the same instance with the same devices.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Devices that stand in the busiest line.
    pub devices: u64,
    /// By how much devices and quota were divided for the simulation; 1 if they were not.
    pub divided_by: u32,
    /// What each contender's storm cost; dps-proxy comes last.
    pub outcomes: Vec<(Contender, Report)>,
}

/// Simulates the contenders on the busiest line of `scenario`.
///
/// # Errors
/// [`NoRoom`] as for [`run`](crate::run).
pub fn compare(scenario: &Scenario) -> Result<Comparison, NoRoom> {
    let (busiest, mut newcomers) = busiest_line(scenario)?;
    let quota_in_full = scenario.quota_of(busiest);
    let devices = newcomers.len() as u64;
    let (divided_by, quota) = division(devices, quota_in_full);
    if divided_by > 1 {
        // Every so many-th device, so that the boot curve keeps its shape.
        let kept = devices * u64::from(quota) / u64::from(quota_in_full);
        let kept = kept.max(1);
        newcomers = (0..kept).map(|number| newcomers[(number * devices / kept) as usize]).collect();
    }
    let scaled = |per_minute: u32| (per_minute / divided_by).max(1);
    let line = Tenant {
        name: TenantName::parse("line").expect("letters"),
        devices: u32::try_from(newcomers.len()).unwrap_or(u32::MAX),
        boot: BootCurve::Within(Duration::ZERO),
        begins_after: Duration::ZERO,
        dedicated_instances: 0,
        weight: 1,
    };
    let fleet = Fleet::new(vec![line]).expect("one tenant, and the busiest line has devices");
    let dps = DpsModel {
        quota_per_minute: quota,
        enforced_per_minute: scaled(scenario.enforced_by(busiest)),
        ..scenario.dps
    };
    let newcomers = newcomers.as_slice();
    // Each contender runs on a thread of its own: they share nothing but what they read.
    let outcomes = std::thread::scope(|scope| {
        let running: Vec<_> = contenders(devices, quota_in_full)
            .into_iter()
            .map(|contender| {
                let manner = contender.manner;
                let (fleet, quotas) = (fleet.clone(), Vec::new());
                let scenario = Scenario { fleet, instances: 1, dps, quotas, manner, seed: scenario.seed };
                let run = move || run_newcomers(&scenario, newcomers, Entropy::from_seed(scenario.seed), &mut ());
                (contender, scope.spawn(run))
            })
            .collect();
        running
            .into_iter()
            .map(|(contender, run)| Ok((contender, run.join().expect("a simulation does not panic")?)))
            .collect::<Result<Vec<_>, NoRoom>>()
    })?;
    Ok(Comparison { devices, divided_by, outcomes })
}

/// What devices and quota are divided by, and the quota then.
fn division(devices: u64, quota_per_minute: u32) -> (u32, u32) {
    let quota = u64::from(quota_per_minute);
    // On average a device waits for half of the drain.
    let requests = u128::from(devices) * u128::from(devices * 60 / quota / SHORTEST_RETRY_SECONDS / 2);
    let by = u32::try_from(requests.div_ceil(u128::from(REQUESTS_MAX))).unwrap_or(u32::MAX).clamp(1, quota_per_minute);
    (by, quota_per_minute / by)
}

/// The line that takes longest, and its devices in the order of their knocks, as if they had one owner.
fn busiest_line(scenario: &Scenario) -> Result<(u16, Vec<Newcomer>), NoRoom> {
    let newcomers = scenario.fleet.boot(&mut Entropy::from_seed(scenario.seed));
    let mut inventory = Inventory::new(&scenario.fleet, scenario.instances);
    let mut lines: Vec<Vec<Newcomer>> = vec![Vec::new(); usize::from(scenario.instances)];
    for newcomer in newcomers {
        let instance = inventory.place(newcomer.tenant)?;
        lines[usize::from(instance)].push(Newcomer { tenant: 0, ..newcomer });
    }
    let minutes =
        |(number, line): &(u16, Vec<Newcomer>)| line.len() as u64 * 1_000_000 / u64::from(scenario.quota_of(*number));
    Ok((0..).zip(lines).max_by_key(minutes).unwrap_or_default())
}

/// Who is compared.
fn contenders(devices: u64, quota_per_minute: u32) -> Vec<Contender> {
    let seconds = Duration::from_secs;
    let direct = |name, retry| Contender { name, manner: Manner::Direct(retry) };
    let cold_boot = seconds((devices * 60).div_ceil(u64::from(quota_per_minute)).max(1));
    vec![
        // iot-identity-service: a fixed wait between attempts.
        direct("devices retry every 5 s (IoT Edge)", Retry::Constant(seconds(SHORTEST_RETRY_SECONDS))),
        // az_iot_calculate_retry_delay with the values that azure-sdk-for-c's samples give it: 1 s, 100 s, 5 s.
        direct(
            "exponential to 100 s + 0–5 s (azure-sdk-for-c)",
            Retry::ExponentialPlusJitter { min: seconds(1), max: seconds(100), jitter: seconds(5) },
        ),
        // The usual advice for clients in general.
        direct("full jitter, exponential to 300 s", Retry::FullJitter { min: seconds(1), max: seconds(300) }),
        // learn.microsoft.com/azure/iot-dps/concepts-deploy-at-scale, with load = 1: between 1 s and T = N / cps.
        direct(
            "even from 1 s to T = N ÷ rate (Microsoft's formula)",
            Retry::Uniform { min: seconds(1), max: cold_boot },
        ),
        Contender { name: "proxy, one Retry-After: 30 s + 0–3 %", manner: Manner::SharedRetryAfter(seconds(30)) },
        Contender { name: "dps-proxy, an appointment each", manner: Manner::Appointments },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_take_minutes_is_divided_and_what_would_not_is_whole() {
        assert_eq!(division(100_000, 1_000), (1, 1_000));
        let (by, quota) = division(1_000_000, 1_000);
        assert!((80..100).contains(&by), "{by}");
        assert_eq!(quota, 1_000 / by);
        assert_eq!(division(50_000_000, 1).0, 1, "a quota of one cannot be divided");
    }
}
