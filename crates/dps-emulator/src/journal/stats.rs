//! Counters of everything that arrived and of what became of it.

use serde::Serialize;

/// Counters since the start, or since they were reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// All requests.
    pub requests: u64,
    /// Register calls that arrived.
    pub registers: u64,
    /// Polls that arrived.
    pub polls: u64,
    /// Status lookups that arrived.
    pub lookups: u64,
    /// Requests that are none of the three.
    pub others: u64,
    /// Calls that drew on the registration quota or were refused by it: an overrun is always visible here.
    pub registrations_counted: u64,
    /// The most of them in any sliding window as long as the quota's (60 s unless changed).
    pub registrations_max_sliding: u32,
    /// The most of them in any fixed window of that length; the first begins when the emulator starts.
    pub registrations_max_fixed: u32,
    /// How many of them arrived while the sliding window that ends with them held more than the quota of that moment.
    pub over_quota_sliding: u64,
    /// Calls refused by the registration quota.
    pub throttled: u64,
    /// Polls refused by the poll limit.
    pub poll_limit_violations: u64,
    /// Calls answered 401.
    pub unauthorized: u64,
    /// Calls answered with another 4xx, faults not counted.
    pub refused: u64,
    /// Times a fault acted.
    pub faults_acted: u64,
    /// Registrations of a device that began while an earlier one, whose operation ID the device was told, was running.
    pub concurrent_registrations: u64,
    /// The same, but the reply to the earlier one had been lost.
    pub concurrent_after_lost_reply: u64,
    /// Operations that began.
    pub operations_started: u64,
    /// Operations that ended `assigned`.
    pub operations_assigned: u64,
    /// Operations that ended otherwise.
    pub operations_not_assigned: u64,
    /// Registrations that ended on another hub than before.
    pub moved: u64,
    /// Devices that are assigned now. A reset leaves it.
    pub devices_registered: u64,
    /// Devices assigned to each hub now. A reset leaves it.
    pub per_hub: std::collections::BTreeMap<String, u64>,
    /// The most register calls any one device sent. A reset leaves it.
    pub registers_per_device_max: u32,
    /// Journal entries that were forgotten because the journal was full. A reset leaves it.
    pub journal_forgotten: u64,
}
