//! The service's own limits: registrations per instance in three shapes, and polls per device.
//!
//! Each shape is written on its own, so that a client tuned to one of them is also judged by the other two. Time is passed
//! in, in nanoseconds; memory is bounded by the limits themselves and by the devices that polled within one window.
//!
//! A window is half open: a call at `t` counts in `[t, t + window)`.

mod polls;
mod recent;
mod registrations;

pub(crate) use polls::PollLimiter;
pub(crate) use registrations::RegistrationQuota;

/// Windows are bounded to a day by the configuration check, so the conversion cannot lose anything.
fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Whole seconds, rounded up, at least one: what `Retry-After` can say.
pub(crate) fn retry_after_seconds(wait_ns: u64) -> u64 {
    wait_ns.div_ceil(1_000_000_000).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_whole_seconds() {
        assert_eq!(retry_after_seconds(0), 1);
        assert_eq!(retry_after_seconds(1), 1);
        assert_eq!(retry_after_seconds(1_000_000_000), 1);
        assert_eq!(retry_after_seconds(1_000_000_001), 2);
    }
}
