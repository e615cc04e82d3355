//! Counts what DPS saw, by code of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use super::dps::{Call, Dps};

const MINUTE: Duration = Duration::from_secs(60);

/// Registrations (and lookups, which the default settings count as such) that arrived, in order.
pub(crate) fn counted(dps: &Dps) -> Vec<Duration> {
    let counts = |call: Call| matches!(call, Call::Register | Call::Lookup);
    let mut times: Vec<Duration> = dps.arrivals().iter().filter(|seen| counts(seen.call)).map(|seen| seen.at).collect();
    times.sort_unstable();
    times
}

/// The most that arrived in any 60 seconds, wherever they begin.
pub(crate) fn most_in_any_minute(times: &[Duration]) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (index, &time) in times.iter().enumerate() {
        while time - times[first] >= MINUTE {
            first += 1;
        }
        most = most.max(index + 1 - first);
    }
    most
}

/// The most that arrived in any minute of a clock whose minutes begin `phase` after the test did.
pub(crate) fn most_in_a_fixed_minute(times: &[Duration], phase: Duration) -> usize {
    let mut minutes: BTreeMap<u64, usize> = BTreeMap::new();
    for &time in times {
        *minutes.entry((time + MINUTE - phase).as_secs() / 60).or_default() += 1;
    }
    minutes.into_values().max().unwrap_or(0)
}

/// How many tokens a bucket of `size`, filled at `quota` per minute, lacked at worst.
pub(crate) fn bucket_overdrawn(times: &[Duration], size: u32, quota: u32) -> f64 {
    let (mut level, mut last, mut worst) = (f64::from(size), Duration::ZERO, 0.0_f64);
    for &time in times {
        level = f64::from(size).min(level + (time - last).as_secs_f64() * f64::from(quota) / 60.0) - 1.0;
        last = time;
        worst = worst.min(level);
    }
    -worst
}

/// Panics unless the instance saw no more than `quota` in any minute.
pub(crate) fn assert_within_quota(dps: &Dps, quota: u32, what: &str) {
    let times = counted(dps);
    let quota = quota as usize;
    let most = most_in_any_minute(&times);
    assert!(most <= quota, "{what}: {most} in one sliding minute, quota {quota}");
    for phase in [0, 13, 37] {
        let most = most_in_a_fixed_minute(&times, Duration::from_secs(phase));
        assert!(most <= quota, "{what}: {most} in one fixed minute (phase {phase} s), quota {quota}");
    }
}

/// The device and the moment at which it had two registrations on the wire, if it ever had.
pub(crate) fn two_at_once(dps: &Dps) -> Option<(String, Duration)> {
    let mut busy_until: BTreeMap<String, Duration> = BTreeMap::new();
    for sent in dps.sent().into_iter().filter(|sent| sent.call == Call::Register) {
        if busy_until.get(&sent.id).is_some_and(|&until| sent.at < until) {
            return Some((sent.id, sent.at));
        }
        // A killed process does not wait for its answers any more.
        if let Some(ended) = sent.ended {
            busy_until.insert(sent.id, ended);
        }
    }
    None
}
