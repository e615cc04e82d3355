//! The place in line that a device has, and how far the registration from it has come.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{InstanceName, OperationId};
use crate::place::Place;
use rate_control::time::{StoredMoment, WallTime};

/// Why a device is in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It has no assignment.
    First,
    /// It asked for a new one.
    Reprovision,
    /// Its assignment is suspect.
    Suspect,
    /// An operator moves it.
    Moved,
}

/// How far the registration of a device in line has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "at")]
pub enum Stage {
    /// Nothing that counts has left.
    Waiting,
    /// A registration may have left; its outcome is unknown until DPS answers.
    #[serde(rename_all = "camelCase")]
    Sent {
        /// When.
        time: WallTime,
        /// The latest that DPS's own clock can have read then; `None` before DPS was ever heard of.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dps_time: Option<WallTime>,
    },
    /// DPS works on it.
    #[serde(rename_all = "camelCase")]
    Assigning {
        /// What to poll.
        operation_id: OperationId,
        /// When DPS answered so.
        time: WallTime,
    },
}

/// A place in line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// Whose line.
    pub instance: InstanceName,
    /// The place.
    pub place: Place,
    /// Why.
    pub reason: Reason,
    /// Since when.
    pub joined_at: StoredMoment,
    /// How far it has come.
    pub stage: Stage,
    /// The device asked for a new registration: this one will be it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reprovision: bool,
    /// The instance held nothing of the device before it joined this line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub first_there: bool,
    /// The request that gave the device this place, where one did: the lines of its registration name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Registrations sent for it so far.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempts: u32,
    /// Of these, how many DPS gave no result for while it gave one to others.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fruitless: u32,
    /// What the device wants DPS's allocation policy to know. The latest one wins until the registration is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Value>,
    /// The instance that it was first placed at fails, so it waits here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<Home>,
    /// How often it was booked on another instance for that reason.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rebooked: u32,
}

const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Where a device stood before it was booked on another instance, because its own failed; it comes back there if that is sooner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Home {
    /// Whose line.
    pub instance: InstanceName,
    /// Its place in it, which nobody else is given.
    pub place: Place,
    /// Since when it had that.
    pub joined_at: StoredMoment,
}
