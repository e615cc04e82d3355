//! What a test sees of an instance and changes of it while it serves.

use std::time::Duration;

use super::{Dps, window_ns};
use crate::allocation::Hubs;
use crate::config::{GroupConfig, HubConfig, IndividualConfig, Quota, check_hubs, check_quota};
use crate::config_error::ConfigError;
use crate::faults::{ActiveFault, Fault, FaultId};
use crate::journal::{JournalEntry, Stats};
use crate::now::Now;
use crate::operation::Registration;

impl Dps {
    /// The counters at this moment.
    pub fn stats(&mut self, now: Now) -> Stats {
        self.advance(now);
        Stats {
            registrations_max_sliding: self.judge.max_sliding,
            registrations_max_fixed: self.judge.max_fixed,
            devices_registered: self.registry.devices_registered(),
            per_hub: self.registry.per_hub(),
            journal_forgotten: self.journal.forgotten,
            ..self.stats.clone()
        }
    }

    /// Sets the counters to zero, except those that say they stay.
    pub fn reset_stats(&mut self) {
        self.judge.reset();
        self.stats = Stats { registers_per_device_max: self.stats.registers_per_device_max, ..Stats::default() };
    }

    /// At most `limit` journal entries after a sequence number.
    #[must_use]
    pub fn journal_after(&self, sequence: u64, limit: usize) -> Vec<JournalEntry> {
        self.journal.after(sequence, limit)
    }

    /// What is known of a registration.
    pub fn registration(&mut self, registration_id: &str, now: Now) -> Option<Registration> {
        self.advance(now);
        self.registry.registration(&registration_id.to_ascii_lowercase())
    }

    /// Deletes a registration record, as an operator would with the service API. Says whether there was one.
    pub fn delete_registration(&mut self, registration_id: &str, now: Now) -> bool {
        self.advance(now);
        self.registry.delete(&registration_id.to_ascii_lowercase())
    }

    /// Adds a fault.
    pub fn add_fault(&mut self, fault: Fault) -> FaultId {
        self.faults.add(fault)
    }

    /// Removes a fault; says whether there was one.
    pub fn remove_fault(&mut self, id: FaultId) -> bool {
        self.faults.remove(id)
    }

    /// Removes all faults.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// The faults and how often they acted.
    #[must_use]
    pub fn faults(&self) -> Vec<ActiveFault> {
        self.faults.list()
    }

    /// The registration quota.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.quota.quota()
    }

    /// Changes the registration quota from now on; what was counted still counts while the shape stays the same.
    ///
    /// # Errors
    /// If it allows nothing or its window is out of range.
    pub fn set_quota(&mut self, quota: Quota, now: Now) -> Result<(), ConfigError> {
        check_quota(quota)?;
        if quota.window != self.quota.quota().window {
            self.judge.set_window(window_ns(quota));
        }
        self.quota.change(quota, self.config.bucket_burst, now.monotonic_ns);
        Ok(())
    }

    /// Changes how long operations last that begin from now on.
    pub fn set_assigning(&mut self, assigning: Duration) {
        self.registry.set_assigning(assigning);
    }

    /// The linked hubs.
    #[must_use]
    pub fn hubs(&self) -> &[HubConfig] {
        &self.config.hubs
    }

    /// Changes the linked hubs; later registrations may move.
    ///
    /// # Errors
    /// Names a hub that is malformed or named twice.
    pub fn set_hubs(&mut self, hubs: Vec<HubConfig>, now: Now) -> Result<(), ConfigError> {
        check_hubs(&hubs)?;
        self.advance(now);
        self.hubs = Hubs::new(&hubs);
        self.config.hubs = hubs;
        Ok(())
    }

    /// Creates or replaces an enrollment group.
    ///
    /// # Errors
    /// Names what is wrong with it.
    pub fn put_group(&mut self, group: &GroupConfig) -> Result<(), ConfigError> {
        self.enrollments.put_group(group)
    }

    /// Creates or replaces an individual enrollment.
    ///
    /// # Errors
    /// Names what is wrong with it.
    pub fn put_enrollment(&mut self, enrollment: &IndividualConfig) -> Result<(), ConfigError> {
        self.enrollments.put_individual(enrollment)
    }
}
