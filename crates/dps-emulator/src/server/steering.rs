//! What a test sees of a running emulator and changes of it.

use std::time::Duration;

use super::Emulator;
use crate::config::{GroupConfig, HubConfig, IndividualConfig, Quota};
use crate::config_error::ConfigError;
use crate::device_api::Dps;
use crate::faults::{ActiveFault, Fault, FaultId};
use crate::journal::{JournalEntry, Stats};
use crate::operation::Registration;

impl Emulator {
    /// The counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.with(Dps::stats)
    }

    /// Sets the counters to zero.
    pub fn reset_stats(&self) {
        self.shared.with(|dps, _| dps.reset_stats());
    }

    /// The whole journal, as far as it is remembered.
    #[must_use]
    pub fn journal(&self) -> Vec<JournalEntry> {
        self.journal_after(0)
    }

    /// The journal after a sequence number.
    #[must_use]
    pub fn journal_after(&self, sequence: u64) -> Vec<JournalEntry> {
        self.shared.with(|dps, _| dps.journal_after(sequence, usize::MAX))
    }

    /// Adds a fault.
    pub fn add_fault(&self, fault: Fault) -> FaultId {
        self.shared.with(|dps, _| dps.add_fault(fault))
    }

    /// Removes a fault; says whether there was one.
    pub fn remove_fault(&self, id: FaultId) -> bool {
        self.shared.with(|dps, _| dps.remove_fault(id))
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.shared.with(|dps, _| dps.clear_faults());
    }

    /// The faults and how often they acted.
    #[must_use]
    pub fn faults(&self) -> Vec<ActiveFault> {
        self.shared.with(|dps, _| dps.faults())
    }

    /// Changes the registration quota.
    ///
    /// # Errors
    /// If it allows nothing or its window is out of range.
    pub fn set_quota(&self, quota: Quota) -> Result<(), ConfigError> {
        self.shared.with(|dps, now| dps.set_quota(quota, now))
    }

    /// Changes the linked hubs; later registrations may move.
    ///
    /// # Errors
    /// Names a hub that is malformed or named twice.
    pub fn set_hubs(&self, hubs: Vec<HubConfig>) -> Result<(), ConfigError> {
        self.shared.with(|dps, now| dps.set_hubs(hubs, now))
    }

    /// Sets the emulator's clock: by so many seconds ahead of the machine's (negative: behind). Dates, timestamps and its judgement of
    /// tokens follow it; quotas, waits and operations do not.
    pub fn set_clock_offset_s(&self, offset: i64) {
        self.shared.set_clock_offset_s(offset);
    }

    /// Changes how long operations last that begin from now on.
    pub fn set_assigning(&self, assigning: Duration) {
        self.shared.with(|dps, _| dps.set_assigning(assigning));
    }

    /// Creates or replaces an enrollment group.
    ///
    /// # Errors
    /// Names what is wrong with it.
    pub fn put_group(&self, group: &GroupConfig) -> Result<(), ConfigError> {
        self.shared.with(|dps, _| dps.put_group(group))
    }

    /// Creates or replaces an individual enrollment.
    ///
    /// # Errors
    /// Names what is wrong with it.
    pub fn put_enrollment(&self, enrollment: &IndividualConfig) -> Result<(), ConfigError> {
        self.shared.with(|dps, _| dps.put_enrollment(enrollment))
    }

    /// What is known of a registration.
    #[must_use]
    pub fn registration(&self, registration_id: &str) -> Option<Registration> {
        self.shared.with(|dps, now| dps.registration(registration_id, now))
    }

    /// Deletes a registration record; says whether there was one.
    pub fn delete_registration(&self, registration_id: &str) -> bool {
        self.shared.with(|dps, now| dps.delete_registration(registration_id, now))
    }
}
