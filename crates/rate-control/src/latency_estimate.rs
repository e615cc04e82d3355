//! What a duration typically is: the longest but one of the last ones seen, so that a device that is told this seldom comes back too
//! early, and one straggler does not hold up the others.

use std::time::Duration;

/// How many of the last ones count.
const OBSERVATIONS: usize = 64;

/// Fewer say little about the slow ones.
const OBSERVATIONS_MIN: usize = 8;

/// See the module.
#[derive(Debug)]
pub struct LatencyEstimate {
    expected: Duration,
    recent: Vec<Duration>,
    oldest: usize,
    value: Duration,
}

impl LatencyEstimate {
    /// At least `expected`, until enough were seen.
    #[must_use]
    pub fn new(expected: Duration) -> Self {
        Self { expected, recent: Vec::new(), oldest: 0, value: expected }
    }

    /// Changes what is expected.
    pub fn expect(&mut self, expected: Duration) {
        self.expected = expected;
        self.update();
    }

    /// One was seen.
    pub fn observe(&mut self, duration: Duration) {
        if self.recent.len() < OBSERVATIONS {
            self.recent.push(duration);
            return self.update();
        }
        let gone = std::mem::replace(&mut self.recent[self.oldest], duration);
        self.oldest = (self.oldest + 1) % OBSERVATIONS;
        // Mostly neither of the two was among the longest.
        let changes_nothing = gone == duration || (gone < self.value && duration <= self.value);
        if !changes_nothing {
            self.update();
        }
    }

    fn update(&mut self) {
        if self.recent.len() < OBSERVATIONS_MIN {
            self.value = self.recent.iter().copied().fold(self.expected, Duration::max);
            return;
        }
        let longest = self.recent.iter().fold([Duration::ZERO; 2], |[first, second], &duration| {
            if duration > first { [duration, first] } else { [first, second.max(duration)] }
        });
        self.value = longest[1];
    }

    /// What it typically is.
    #[must_use]
    pub const fn value(&self) -> Duration {
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::Entropy;

    #[test]
    fn it_is_the_longest_but_one_of_the_last_ones() {
        let mut entropy = Entropy::from_seed(1);
        let (mut typical, mut seen) = (LatencyEstimate::new(Duration::ZERO), Vec::new());
        for _ in 0..10 * OBSERVATIONS {
            let duration = entropy.up_to(Duration::from_nanos(40));
            typical.observe(duration);
            seen.push(duration);
            let mut last: Vec<Duration> = seen.iter().rev().take(OBSERVATIONS).copied().collect();
            last.sort_unstable();
            if last.len() >= OBSERVATIONS_MIN {
                assert_eq!(typical.value(), last[last.len() - 2]);
            }
        }
    }

    #[test]
    fn one_straggler_in_a_while_does_not_count() {
        let seconds = Duration::from_secs;
        let mut typical = LatencyEstimate::new(seconds(4));
        typical.observe(seconds(1));
        assert_eq!(typical.value(), seconds(4));
        for _ in 0..7 {
            typical.observe(seconds(2));
        }
        assert_eq!(typical.value(), seconds(2));
        typical.observe(seconds(90));
        assert_eq!(typical.value(), seconds(2));
        typical.observe(seconds(30));
        assert_eq!(typical.value(), seconds(30));
        for _ in 0..OBSERVATIONS {
            typical.observe(seconds(1));
        }
        assert_eq!(typical.value(), seconds(1));
    }
}
