//! A bucket that fills evenly: what the ideal is measured against, and all that a proxy without a line has.

use rate_control::time::Mono;

/// `quota` permits a minute, of which up to `burst` may be saved up; it starts full.
#[derive(Debug)]
pub(crate) struct Bucket {
    interval_nanos: u64,
    /// How far ahead of the even pace a full bucket may run.
    ahead_nanos: u64,
    /// When the next permit falls due at the even pace.
    even: u64,
}

impl Bucket {
    pub(crate) fn new(quota_per_minute: u32, burst: u32) -> Self {
        let interval_nanos = 60_000_000_000 / u64::from(quota_per_minute.max(1));
        Self { interval_nanos, ahead_nanos: interval_nanos * u64::from(burst.saturating_sub(1)), even: 0 }
    }

    /// The first moment from `now` on at which a permit is there.
    pub(crate) fn due(&self, now: Mono) -> Mono {
        now.max(Mono::from_nanos(self.even.saturating_sub(self.ahead_nanos)))
    }

    /// Takes the next permit, for a moment at which it is due or before.
    pub(crate) fn take(&mut self, now: Mono) {
        self.even = self.even.max(now.as_nanos()) + self.interval_nanos;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_the_even_pace() {
        let mut bucket = Bucket::new(60, 3);
        let start = Mono::from_nanos(5_000_000_000);
        let due: Vec<u64> = (0..5)
            .map(|_| {
                let due = bucket.due(start);
                bucket.take(start);
                due.as_nanos() / 1_000_000_000
            })
            .collect();
        assert_eq!(due, [5, 5, 5, 6, 7]);
    }
}
