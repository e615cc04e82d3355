//! What a sliding window has to remember.

use std::collections::VecDeque;

/// The latest `count` events; they alone decide whether a sliding window is full.
#[derive(Debug, Default)]
pub(super) struct Recent {
    pub(super) times: VecDeque<u64>,
}

impl Recent {
    /// `Err` is the time until there is room.
    pub(super) fn check(&mut self, now: u64, count: u32, window: u64) -> Result<(), u64> {
        while self.times.front().is_some_and(|&at| at.saturating_add(window) <= now) {
            self.times.pop_front();
        }
        let excess = self.times.len().checked_sub(count as usize);
        match excess.and_then(|index| self.times.get(index)) {
            Some(&at) => Err(at.saturating_add(window) - now),
            None => Ok(()),
        }
    }

    pub(super) fn record(&mut self, now: u64, count: u32) {
        self.times.push_back(now);
        while self.times.len() > count as usize {
            self.times.pop_front();
        }
    }
}
