//! The place in line that a device has, and how far the registration from it has come.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::unknown::{Members, Unknown};
use crate::ids::{InstanceName, OperationId};
use crate::place::{Class, Place};
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
#[serde(rename_all = "kebab-case", tag = "at", try_from = "StoredStage")]
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

/// A [`Stage`] as it is read: all of its members at once, as a tagged one would be copied first.
#[derive(Deserialize)]
#[serde(rename = "Stage", rename_all = "camelCase", deny_unknown_fields)]
struct StoredStage {
    at: StageName,
    time: Option<WallTime>,
    dps_time: Option<WallTime>,
    operation_id: Option<OperationId>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum StageName {
    Waiting,
    Sent,
    Assigning,
}

impl TryFrom<StoredStage> for Stage {
    type Error = &'static str;

    fn try_from(stored: StoredStage) -> Result<Self, Self::Error> {
        let StoredStage { at, time, dps_time, operation_id } = stored;
        match (at, time, dps_time, operation_id) {
            (StageName::Waiting, None, None, None) => Ok(Self::Waiting),
            (StageName::Sent, Some(time), dps_time, None) => Ok(Self::Sent { time, dps_time }),
            (StageName::Assigning, Some(time), None, Some(operation_id)) => Ok(Self::Assigning { operation_id, time }),
            _ => Err("the stage of a registration has members of another stage, or lacks its own"),
        }
    }
}

/// Which members a stage of this kind has; `None` for everything that is no stage, or one that this version does not know.
pub(super) fn fields_of(type_name: &str, members: &Members) -> Option<&'static [&'static str]> {
    match members.get("at")?.as_str().filter(|_| type_name == "Stage")? {
        "waiting" => Some(&["at"]),
        "sent" => Some(&["at", "time", "dpsTime"]),
        "assigning" => Some(&["at", "time", "operationId"]),
        _ => None,
    }
}

/// A place in line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pending {
    /// Whose line.
    pub instance: InstanceName,
    /// The place. The store keeps it beside the record and gives its number, so it is not in the bytes of the record; earlier releases wrote
    /// it there.
    #[serde(default = "nowhere", skip_serializing)]
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
    /// What a newer version wrote beside this.
    #[serde(flatten, skip_deserializing)]
    pub(super) unknown: Unknown,
    /// What a newer version wrote into the stage; put there when the record is stored.
    #[serde(skip)]
    pub(super) unknown_of_stage: Unknown,
}

impl Pending {
    /// Its registration comes to another stage. What is unknown of a stage goes with it.
    pub(super) fn come_to(&mut self, stage: Stage) {
        if self.stage != stage {
            self.stage = stage;
            self.unknown_of_stage = Unknown::default();
        }
    }
}

/// Until the record is put together with what the store says beside it.
const fn nowhere() -> Place {
    Place::last(Class::Background)
}

const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Where a device stood before it was booked on another instance, because its own failed; it comes back there if that is sooner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Home {
    /// Whose line.
    pub instance: InstanceName,
    /// Its place in it, which nobody else is given.
    pub place: Place,
    /// Since when it had that.
    pub joined_at: StoredMoment,
    /// What a newer version wrote beside this.
    #[serde(flatten, skip_deserializing)]
    pub(super) unknown: Unknown,
}
