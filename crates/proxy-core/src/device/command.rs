//! Everything that can happen to a device.

use serde_json::Value;

use super::flight::{Flight, Sender};
use super::pending::Reason;
use super::record::Refusal;
use crate::ids::{DeviceId, EnrollmentName, HubName, InstanceName, OperationId, TenantName};
use crate::place::{Class, Place};
use rate_control::ledger::SlotId;
use rate_control::time::{StoredMoment, WallTime};

/// One thing that happens to a device. [`Record::apply`](super::Record::apply) says what it does.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// It is on an allow-list.
    List(Listing),
    /// It has proved itself: from now on the ID is its tenant's.
    Claim(Claim),
    /// It joins a line, because of `reason`.
    Join {
        /// Which one.
        seat: Seat,
        /// Why.
        reason: Reason,
        /// For DPS's allocation policy.
        payload: Option<Value>,
        /// The device asked for a new registration.
        reprovision: bool,
    },
    /// Its instance fails and nothing has left: it joins the line of another instance, and may come back.
    Rebook {
        /// Which one.
        seat: Seat,
    },
    /// The instance that it was booked away from works again: it takes the place back that it had there.
    ComeHome,
    /// An operator moves it: it joins the line of another instance, whatever it waited for before.
    Move {
        /// Which one.
        seat: Seat,
    },
    /// It changes the class in the same line, and stands at the end of that.
    Reseat {
        /// The new one.
        class: Class,
        /// For the timeline.
        why: &'static str,
    },
    /// It says what it newly wants, while nothing of its registration has left.
    Ask {
        /// The hardware ID as the device spells it, if that is not the registration ID.
        spelling: Option<String>,
        /// For DPS's allocation policy; `None` leaves what it said before.
        payload: Option<Value>,
        /// It wants a new registration.
        reprovision: bool,
    },
    /// Its registration comes a step further. Only at the place where the registration began.
    Attempt {
        /// Whose line.
        instance: InstanceName,
        /// The place.
        place: Place,
        /// What happened.
        step: Step,
    },
    /// A registration of it has ended, whatever came of it, and wherever the device is by now.
    Land {
        /// Which one.
        call: Flight,
    },
    /// It is told its hub.
    Tell {
        /// And with that, that the reprovisioning it asked for is done.
        reprovision: bool,
        /// And its credential, which is handed out once.
        credential: bool,
    },
    /// A hub or a backend contradicts its assignment.
    Contradict {
        /// Only an assignment to this hub is meant.
        hub: Option<HubName>,
        /// In the words of who says so.
        reason: String,
    },
    /// An operator keeps it out.
    Block {
        /// The name of the operator's token.
        by: String,
        /// In the operator's words.
        reason: Option<String>,
    },
    /// An operator lets it in again.
    Unblock {
        /// The name of the operator's token.
        by: String,
    },
    /// An operator gives it another try: its refusal is forgotten, and a credential may be handed out again.
    Retry,
    /// An operator deletes it.
    Retire {
        /// Why it cannot be forgotten yet, if it should be.
        kept: Option<String>,
    },
}

/// The end of a line: its place there is numbered by the store when the record is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Whose line.
    pub instance: InstanceName,
    /// In which class.
    pub class: Class,
    /// The request that gives it, where one does.
    pub request_id: Option<String>,
}

/// Who has proved itself, and by which rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Whose it is.
    pub tenant: TenantName,
    /// By which rules.
    pub enrollment: EnrollmentName,
    /// The hardware ID as the device spells it, if that is not the registration ID.
    pub spelling: Option<String>,
}

/// A line of an allow-list.
#[derive(Clone, PartialEq, Eq)]
pub struct Listing {
    /// Whose device it is, by which rules, in the spelling of the list.
    pub claim: Claim,
    /// The delivery.
    pub batch: Option<String>,
    /// The device's individual symmetric key, base64. A secret.
    pub key: Option<String>,
}

impl std::fmt::Debug for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listing").field("claim", &self.claim).field("batch", &self.batch).finish_non_exhaustive()
    }
}

/// What happens to a registration on its way.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// It is about to leave.
    Send {
        /// The latest that DPS's own clock can read now; `None` before DPS was ever heard of.
        dps_time: Option<WallTime>,
        /// Its slot in the ledger, if it has one.
        slot: Option<SlotId>,
        /// By whom.
        sender: Sender,
        /// The registration that was sent before and cannot arrive any more, if its end was never heard of.
        over: Option<Flight>,
    },
    /// It has not left after all: everything is as before [`Send`](Self::Send).
    NothingLeft {
        /// For the timeline.
        why: String,
        /// When the registration before this one was sent.
        sent_before: Option<StoredMoment>,
    },
    /// DPS works on it.
    Assigning {
        /// What to poll.
        operation_id: OperationId,
    },
    /// It goes again from the same place.
    Back {
        /// For the timeline.
        why: String,
        /// DPS gave no result while it gave one to others.
        fruitless: bool,
    },
    /// Something happened that changes nothing: only the timeline hears of it.
    Event {
        /// For the timeline.
        why: String,
    },
    /// DPS assigned a hub.
    Assign(Box<Decision>),
    /// DPS, or we, will not have the device.
    Refuse(Box<Refusal>),
    /// It leaves the line without a word, as it was blocked while it waited.
    GiveUp,
}

/// What DPS decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The hub.
    pub hub: HubName,
    /// The device's name at that hub.
    pub device_id: DeviceId,
    /// DPS's word for what it did.
    pub substatus: Option<String>,
    /// What a custom allocation policy returned.
    pub payload: Option<Value>,
    /// DPS's `etag` of the registration.
    pub dps_etag: Option<String>,
    /// DPS's `lastUpdatedDateTimeUtc` of the registration.
    pub dps_last_updated: Option<WallTime>,
}

/// Why a command does not fit the device's state. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The registration began at another place than the device has now.
    #[error("the device is not at the place where this registration began")]
    Elsewhere,
    /// It has a place already.
    #[error("the device has a place already")]
    HasPlace,
    /// It has none.
    #[error("the device does not wait in a line")]
    NoPlace,
    /// Something may have left for it.
    #[error("the device is under way already")]
    UnderWay,
    /// Another registration of it may be on its way.
    #[error("an earlier registration of the device may still be on its way to DPS")]
    InFlight,
    /// It has none on its way, or another one.
    #[error("no such call of the device is out")]
    NoFlight,
    /// No registration has left from its place.
    #[error("no registration of the device was sent")]
    NotSent,
    /// Something may have left for it, or somebody wants it where it is.
    #[error("the device has to stay at its instance")]
    Bound,
    /// An operator keeps it out.
    #[error("the device is blocked")]
    Blocked,
    /// An operator deleted it.
    #[error("the device is retired")]
    Retired,
    /// The ID belongs to another tenant.
    #[error("the registration ID belongs to another tenant")]
    OtherTenant,
    /// It has no assignment, or none to the hub that is meant.
    #[error("the device has no such assignment")]
    NoAssignment,
    /// It has no confirmed assignment that it could be told.
    #[error("the device has no confirmed assignment")]
    NotConfirmed,
}
