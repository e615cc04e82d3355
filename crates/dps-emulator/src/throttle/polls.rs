//! Polls of each device.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::nanos;
use super::recent::Recent;
use crate::config::PollLimit;

/// The poll limit, per device, over a sliding window.
#[derive(Debug)]
pub(crate) struct PollLimiter {
    limit: PollLimit,
    window: u64,
    rejected_count: bool,
    devices: HashMap<Arc<str>, Recent>,
    /// When to look whether a device can be forgotten.
    sweep: VecDeque<(u64, Arc<str>)>,
}

impl PollLimiter {
    pub(crate) fn new(limit: PollLimit, rejected_count: bool) -> Self {
        let window = nanos(limit.window);
        Self { limit, window, rejected_count, devices: HashMap::new(), sweep: VecDeque::new() }
    }

    /// Counts a poll; `Err` is the time in nanoseconds until the device may poll again.
    pub(crate) fn poll(&mut self, device: &Arc<str>, now: u64) -> Result<(), u64> {
        self.forget_idle(now);
        if !self.devices.contains_key(device) {
            self.devices.insert(Arc::clone(device), Recent::default());
            self.sweep.push_back((now.saturating_add(self.window), Arc::clone(device)));
        }
        let Some(recent) = self.devices.get_mut(device) else { return Ok(()) };
        let verdict = recent.check(now, self.limit.count, self.window);
        match verdict {
            Ok(()) => recent.record(now, self.limit.count),
            Err(wait) if self.rejected_count => {
                recent.record(now, self.limit.count);
                // The time to wait, given that this poll counted too.
                return Err(recent.check(now, self.limit.count, self.window).err().unwrap_or(wait));
            }
            Err(_) => {}
        }
        verdict
    }

    fn forget_idle(&mut self, now: u64) {
        while self.sweep.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, device)) = self.sweep.pop_front() else { return };
            let last = self.devices.get(&device).and_then(|recent| recent.times.back().copied()).unwrap_or(0);
            let again = last.saturating_add(self.window);
            if again <= now {
                self.devices.remove(&device);
            } else {
                // The queue stays in order only roughly; that delays forgetting, never a verdict.
                self.sweep.push_back((again.max(now.saturating_add(1)), device));
            }
        }
    }

    #[cfg(test)]
    fn remembered(&self) -> usize {
        self.devices.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn poll_limit_equals_a_count_per_device(polls in prop::collection::vec((0_u64..30, 0_u8..3), 1..200), rejected in any::<bool>()) {
            let limit = PollLimit { count: 5, window: Duration::from_nanos(100) };
            let mut limiter = PollLimiter::new(limit, rejected);
            let names: Vec<Arc<str>> = ["a", "b", "c"].map(Arc::from).to_vec();
            let mut counted: Vec<(u64, u8)> = Vec::new();
            let mut now = 0;
            for (gap, device) in polls {
                now += gap;
                let inside = counted.iter().filter(|(at, who)| *who == device && at + 100 > now).count();
                let got = limiter.poll(&names[device as usize], now);
                prop_assert_eq!(got.is_ok(), inside < 5);
                if got.is_ok() || rejected {
                    counted.push((now, device));
                }
            }
        }
    }

    #[test]
    fn idle_devices_are_forgotten() {
        let mut limiter = PollLimiter::new(PollLimit { count: 5, window: Duration::from_nanos(100) }, true);
        for i in 0..1000_u64 {
            let _ = limiter.poll(&Arc::from(format!("d{i}")), i);
        }
        assert!(limiter.remembered() <= 101, "{}", limiter.remembered());
    }
}
