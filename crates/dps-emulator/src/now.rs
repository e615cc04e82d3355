//! The time as the emulator is told it.

/// One moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds since the emulator started, never going back: for quotas and operations.
    pub monotonic_ns: u64,
    /// Unix milliseconds: for tokens and timestamps.
    pub unix_ms: u64,
}
