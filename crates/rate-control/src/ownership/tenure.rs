//! For how long an owner sends without hearing from the store.

use std::time::Duration;

use crate::time::Mono;

/// An owner's lease as the owner sees it. Nobody's safety depends on it: a clock that stood still makes it look younger than it is. It keeps an
/// owner that lost the store from making orphans of what it sends.
#[derive(Debug, Clone, Copy)]
pub struct Tenure {
    life: Duration,
    renewed: Mono,
}

impl Tenure {
    /// A lease that was taken by a write that was sent at `sent`; it lives for `ttl`, of which the last `guard` is not used.
    #[must_use]
    pub const fn new(ttl: Duration, guard: Duration, sent: Mono) -> Self {
        Self { life: ttl.saturating_sub(guard), renewed: sent }
    }

    /// A renewal that was *sent* at `sent` succeeded.
    pub fn renewed(&mut self, sent: Mono) {
        self.renewed = sent.max(self.renewed);
    }

    /// Whether a send may leave at `now`.
    #[must_use]
    pub fn may_leave(&self, now: Mono) -> bool {
        now < self.renewed.after(self.life)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenure_counts_from_when_its_renewal_was_sent() {
        let at = |millis: u64| Mono::from_nanos(millis * 1_000_000);
        let mut tenure = Tenure::new(Duration::from_secs(5), Duration::from_millis(500), at(1_000));
        assert!(tenure.may_leave(at(5_499)));
        assert!(!tenure.may_leave(at(5_500)));
        tenure.renewed(at(4_000));
        tenure.renewed(at(3_000));
        assert!(tenure.may_leave(at(8_499)), "a renewal that is answered late takes nothing back");
        assert!(!tenure.may_leave(at(8_500)));
    }
}
