//! Registrations of the whole instance, in three shapes.

use super::nanos;
use super::recent::Recent;
use crate::config::{Quota, QuotaShape};

#[derive(Debug)]
enum State {
    Sliding(Recent),
    Fixed {
        window: u64,
        taken: u64,
    },
    /// `level` is in units of one call per `window` nanoseconds: a call costs `window`, a nanosecond brings `count`.
    Bucket {
        level: u128,
        filled_at: u64,
    },
}

/// The registration quota of one instance.
#[derive(Debug)]
pub(crate) struct RegistrationQuota {
    quota: Quota,
    window: u64,
    burst: u32,
    state: State,
}

impl RegistrationQuota {
    pub(crate) fn new(quota: Quota, burst: Option<u32>, now: u64) -> Self {
        let window = nanos(quota.window);
        let burst = burst.unwrap_or_else(|| (quota.count / 10).max(1));
        let state = match quota.shape {
            QuotaShape::Sliding => State::Sliding(Recent::default()),
            QuotaShape::Fixed => State::Fixed { window: now / window, taken: 0 },
            QuotaShape::Bucket => State::Bucket { level: u128::from(burst) * u128::from(window), filled_at: now },
        };
        Self { quota, window, burst, state }
    }

    pub(crate) fn quota(&self) -> Quota {
        self.quota
    }

    /// Changes the quota. What was counted before still counts if the shape stays the same (for fixed windows and buckets:
    /// and the window too). After an increase a sliding window remembers only as many calls as the old quota had.
    pub(crate) fn change(&mut self, quota: Quota, burst: Option<u32>, now: u64) {
        let old = std::mem::replace(self, Self::new(quota, burst, now));
        match (old.state, &mut self.state) {
            (State::Sliding(mut recent), State::Sliding(kept)) => {
                while recent.times.len() > quota.count as usize {
                    recent.times.pop_front();
                }
                *kept = recent;
            }
            (State::Fixed { window, taken }, State::Fixed { window: new_window, taken: new_taken })
                if window == *new_window && old.window == self.window =>
            {
                *new_taken = taken;
            }
            (State::Bucket { level, .. }, State::Bucket { level: new_level, .. }) if old.window == self.window => {
                *new_level = level.min(*new_level);
            }
            _ => {}
        }
    }

    /// Whether a call fits now; `Err` is the time in nanoseconds until one does.
    pub(crate) fn check(&mut self, now: u64) -> Result<(), u64> {
        let count = self.quota.count;
        match &mut self.state {
            State::Sliding(recent) => recent.check(now, count, self.window),
            State::Fixed { window, taken } => {
                let current = now / self.window;
                if current != *window {
                    (*window, *taken) = (current, 0);
                }
                if *taken < u64::from(count) { Ok(()) } else { Err((current + 1) * self.window - now) }
            }
            State::Bucket { level, filled_at } => {
                let full = u128::from(self.burst) * u128::from(self.window);
                let gained = u128::from(now.saturating_sub(*filled_at)) * u128::from(count);
                (*level, *filled_at) = ((*level + gained).min(full), now);
                let missing = u128::from(self.window).saturating_sub(*level);
                if missing == 0 { Ok(()) } else { Err(missing.div_ceil(u128::from(count)) as u64) }
            }
        }
    }

    /// Counts a call whether it fits or not. `Err` is the time until one does, given that this one counted too.
    pub(crate) fn charge(&mut self, now: u64) -> Result<(), u64> {
        let verdict = self.check(now);
        self.record(now);
        verdict.map_err(|wait| self.check(now).err().unwrap_or(wait))
    }

    /// Counts a call. [`Self::check`] was asked at the same time before. A refused call that counts empties a bucket; it does
    /// not put it into debt.
    pub(crate) fn record(&mut self, now: u64) {
        match &mut self.state {
            State::Sliding(recent) => recent.record(now, self.quota.count),
            State::Fixed { taken, .. } => *taken += 1,
            State::Bucket { level, .. } => *level = level.saturating_sub(u128::from(self.window)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn quota(count: u32, window_ns: u64, shape: QuotaShape) -> RegistrationQuota {
        RegistrationQuota::new(Quota { count, window: Duration::from_nanos(window_ns), shape }, Some(3), 0)
    }

    fn arrivals() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec(0_u64..40, 1..200).prop_map(|gaps| {
            gaps.iter()
                .scan(0, |at, gap| {
                    *at += gap;
                    Some(*at)
                })
                .collect()
        })
    }

    /// Runs a quota over arrivals; each item is the verdict.
    fn verdicts(quota: &mut RegistrationQuota, arrivals: &[u64], rejected_count: bool) -> Vec<Result<(), u64>> {
        arrivals
            .iter()
            .map(|&now| {
                if rejected_count {
                    return quota.charge(now);
                }
                let verdict = quota.check(now);
                if verdict.is_ok() {
                    quota.record(now);
                }
                verdict
            })
            .collect()
    }

    proptest! {
        #[test]
        fn sliding_equals_a_count(times in arrivals(), count in 1_u32..8, window in 1_u64..200, rejected in any::<bool>()) {
            let got = verdicts(&mut quota(count, window, QuotaShape::Sliding), &times, rejected);
            let mut counted: Vec<u64> = Vec::new();
            for (index, &now) in times.iter().enumerate() {
                let inside = counted.iter().filter(|&&at| at + window > now).count();
                prop_assert_eq!(got[index].is_ok(), inside < count as usize);
                if got[index].is_ok() || rejected {
                    counted.push(now);
                }
                if let Err(wait) = got[index] {
                    let later = |wait: u64| counted.iter().filter(|&&at| at + window > now + wait).count();
                    prop_assert!(later(wait) < count as usize, "the promised time is too early");
                    prop_assert!(later(wait - 1) >= count as usize, "the promised time is too late");
                }
            }
        }

        #[test]
        fn fixed_equals_a_count(times in arrivals(), count in 1_u32..8, window in 1_u64..200, rejected in any::<bool>()) {
            let got = verdicts(&mut quota(count, window, QuotaShape::Fixed), &times, rejected);
            for (index, &now) in times.iter().enumerate() {
                let before = times[..index].iter().filter(|&&at| at / window == now / window).count();
                prop_assert_eq!(got[index].is_ok(), before < count as usize);
                if let Err(wait) = got[index] {
                    prop_assert_eq!((now + wait) % window, 0);
                    prop_assert!(wait > 0 && wait <= window);
                }
            }
        }

        /// A bucket of `burst` accepts a call exactly if no earlier interval would hold more than `burst` plus what was
        /// refilled since the interval began.
        #[test]
        fn bucket_equals_the_interval_rule(times in arrivals(), count in 1_u32..8, window in 1_u64..200) {
            let got = verdicts(&mut quota(count, window, QuotaShape::Bucket), &times, false);
            let mut accepted: Vec<u64> = Vec::new();
            for (index, &now) in times.iter().enumerate() {
                let fits = |at_time: u64| {
                    let mut with_this = accepted.clone();
                    with_this.push(at_time);
                    (0..with_this.len()).all(|first| {
                        let calls = (with_this.len() - first) as u64;
                        calls * window <= 3 * window + (at_time - with_this[first]) * u64::from(count)
                    })
                };
                prop_assert_eq!(got[index].is_ok(), fits(now));
                if let Err(wait) = got[index] {
                    prop_assert!(fits(now + wait) && !fits(now + wait - 1));
                }
                if got[index].is_ok() {
                    accepted.push(now);
                }
            }
        }
    }

    #[test]
    fn hammering_a_sliding_quota_never_recovers_if_rejected_calls_count() {
        let times: Vec<u64> = (0..1000).map(|i| i * 10).collect();
        let accepted = |rejected| {
            verdicts(&mut quota(2, 100, QuotaShape::Sliding), &times, rejected).iter().filter(|v| v.is_ok()).count()
        };
        assert_eq!(accepted(true), 2);
        assert_eq!(accepted(false), 200);
    }

    #[test]
    fn a_lowered_quota_still_counts_what_was_taken() {
        let mut q = quota(10, 100, QuotaShape::Sliding);
        for moment in 0..10 {
            assert_eq!(q.check(moment), Ok(()));
            q.record(moment);
        }
        q.change(Quota { count: 4, window: Duration::from_nanos(100), shape: QuotaShape::Sliding }, None, 10);
        assert_eq!(q.check(10), Err(96), "the newest four are at 6..=9");
        assert_eq!(q.check(106), Ok(()));
    }
}
