//! A registration that may be on its way to DPS, whatever has become of the device since it left.

use rate_control::ledger::SlotId;
use rate_control::time::StoredMoment;
use serde::{Deserialize, Serialize};

use super::unknown::Unknown;
use crate::ids::InstanceName;

/// Names the process that sends a call: drawn at random when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sender(pub u64);

/// A registration that may be on its way. It is written with the mark that it leaves, and taken away when that very call has ended, wherever
/// the device is by then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Flight {
    /// Whom it was sent to.
    pub instance: InstanceName,
    /// Its slot in the ledger of that instance, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<SlotId>,
    /// When it was about to leave.
    pub sent: StoredMoment,
    /// By whom.
    pub sender: Sender,
    /// What a newer version wrote beside this.
    #[serde(flatten, skip_deserializing)]
    pub(super) unknown: Unknown,
}

impl Flight {
    /// Whether this is the same call as `other`.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        (&self.instance, self.slot, self.sent, self.sender) == (&other.instance, other.slot, other.sent, other.sender)
    }
}
