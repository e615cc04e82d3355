//! The judge of the registration quota.

use std::collections::VecDeque;

/// Entries kept exactly; beyond them, calls within the same millisecond are merged so that memory stays bounded.
const EXACT_TIMES_MAX: usize = 1_000_000;

/// The judge of the registration quota: the most calls in any sliding and in any fixed window.
#[derive(Debug)]
pub(crate) struct WindowJudge {
    window: u64,
    times: VecDeque<(u64, u32)>,
    inside: u32,
    pub(crate) max_sliding: u32,
    fixed: (u64, u32),
    pub(crate) max_fixed: u32,
}

impl WindowJudge {
    pub(crate) fn new(window_ns: u64) -> Self {
        Self { window: window_ns, times: VecDeque::new(), inside: 0, max_sliding: 0, fixed: (0, 0), max_fixed: 0 }
    }

    /// Judges by another window from now on. What was seen inside the old window is kept.
    pub(crate) fn set_window(&mut self, window_ns: u64) {
        self.window = window_ns;
        self.fixed = (0, 0);
    }

    pub(crate) fn reset(&mut self) {
        (self.max_sliding, self.max_fixed) = (0, 0);
    }

    /// Counts a call and says how many the sliding window that ends with it holds.
    pub(crate) fn count(&mut self, now: u64) -> u32 {
        while let Some(&(at, calls)) = self.times.front() {
            if at.saturating_add(self.window) > now {
                break;
            }
            self.times.pop_front();
            self.inside -= calls;
        }
        let crowded = self.times.len() >= EXACT_TIMES_MAX;
        match self.times.back_mut() {
            Some((at, calls)) if *at == now || (crowded && now - *at < 1_000_000) => *calls += 1,
            _ => self.times.push_back((now, 1)),
        }
        self.inside += 1;
        self.max_sliding = self.max_sliding.max(self.inside);
        let index = now / self.window;
        if self.fixed.0 != index {
            self.fixed = (index, 0);
        }
        self.fixed.1 += 1;
        self.max_fixed = self.max_fixed.max(self.fixed.1);
        self.inside
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn judge_equals_a_count(gaps in prop::collection::vec(0_u64..40, 1..200), window in 1_u64..200) {
            let mut judge = WindowJudge::new(window);
            let mut times: Vec<u64> = Vec::new();
            let mut now = 0;
            for gap in gaps {
                now += gap;
                times.push(now);
                let inside = judge.count(now);
                prop_assert_eq!(inside as usize, times.iter().filter(|&&at| at + window > now).count());
            }
            let sliding = times.iter().map(|&end| times.iter().filter(|&&at| at <= end && at + window > end).count()).max();
            prop_assert_eq!(Some(judge.max_sliding as usize), sliding);
            let fixed = times.iter().map(|&t| times.iter().filter(|&&at| at / window == t / window).count()).max();
            prop_assert_eq!(Some(judge.max_fixed as usize), fixed);
        }
    }
}
