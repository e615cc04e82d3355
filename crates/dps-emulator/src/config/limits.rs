//! The limits that the service documents: its registration quota and its poll limit.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config_error::ConfigError;

/// How many registrations an instance takes in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Registrations.
    pub count: u32,
    /// Window.
    pub window: Duration,
    /// How the window moves.
    pub shape: QuotaShape,
}

impl Default for Quota {
    fn default() -> Self {
        Self { count: 1000, window: Duration::from_mins(1), shape: QuotaShape::Sliding }
    }
}

/// How a quota's window moves. The service does not document it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuotaShape {
    /// The window ends at each call.
    #[default]
    Sliding,
    /// Windows follow each other, the first begins when the emulator starts.
    Fixed,
    /// A bucket that refills evenly.
    Bucket,
}

/// How many polls one device may send in a sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollLimit {
    /// Polls.
    pub count: u32,
    /// Window.
    pub window: Duration,
}

impl Default for PollLimit {
    fn default() -> Self {
        Self { count: 5, window: Duration::from_secs(10) }
    }
}

pub(crate) fn check_quota(quota: Quota) -> Result<(), ConfigError> {
    if quota.count == 0 || quota.window.is_zero() || quota.window > Duration::from_hours(24) {
        return Err(ConfigError::new("a quota is at least 1 in a window of more than nothing and at most a day"));
    }
    Ok(())
}
