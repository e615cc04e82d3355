//! The one durable record of a device: state, place, instance, sent marker and assignment.
//!
//! Invariants:
//! - A record changes only by compare-and-set, and by the functions here; each leaves it consistent.
//! - `footprint` names every instance that may hold a registration of the device at DPS. It is what capacity is counted from, and an
//!   instance leaves it only before anything was sent there, or when an operator confirms the deletion at DPS.
//! - The timeline is bounded; it never holds a secret.
//! - A moment that something is measured from is a [`StoredMoment`]; one that people only read is a [`WallTime`].

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{DeviceId, EnrollmentName, HubName, InstanceName, OperationId, RegistrationId, TenantName};
use crate::place::Place;
use crate::store::{Expect, Key, Stored, Table, Version, Write};
use rate_control::time::{Now, StoredMoment, WallTime};

/// Stands for tenant and enrollment while they are unknown.
const UNKNOWN: &str = "unknown";

/// Everything we durably know of one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Who.
    pub registration_id: RegistrationId,
    /// The hardware ID in the device's own spelling, when it is not the registration ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware_id: Option<String>,
    /// Whose.
    pub tenant: TenantName,
    /// By which rules.
    pub enrollment: EnrollmentName,
    /// An operator blocked the ID before anything was known of it: tenant and enrollment stand for nothing yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unclaimed: bool,
    /// Its entry on the allow-list, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed: Option<Listed>,
    /// The last assignment, in whatever state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment: Option<Assignment>,
    /// What it waits for, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// The last refusal by DPS, until it expires or is cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// Set while an operator keeps the device out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked: Option<Blocked>,
    /// Set when an operator deleted the device; the record stays as a tombstone until DPS's own record is known to be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<WallTime>,
    /// Where an operator moves it; its home until it is assigned there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_to: Option<InstanceName>,
    /// Instances that may hold a registration of it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub footprint: BTreeSet<InstanceName>,
    /// When the last registration was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sent: Option<StoredMoment>,
    /// When the registration behind the current assignment was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_registration_begun: Option<StoredMoment>,
    /// A reprovisioning that the device asked for was done, and the device was not told yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reprovisioned_untold: bool,
    /// When the device was told of a reprovisioning it asked for; a repeated request means the same one for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reprovision_told: Option<StoredMoment>,
    /// When its credential was handed out, where that happens once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_claimed: Option<WallTime>,
    /// What happened to it, oldest first, bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<TimelineEvent>,
}

/// An allow-list entry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// The delivery it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
    /// The device's individual symmetric key, base64. A secret: it is stored, and never shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// When it was listed.
    pub at: WallTime,
}

impl std::fmt::Debug for Listed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listed")
            .field("batch", &self.batch)
            .field("key", &self.key.as_ref().map(|_| "***"))
            .finish_non_exhaustive()
    }
}

/// How far an assignment may be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AssignmentState {
    /// DPS said so and nobody contradicted. The only state that gives a device 200.
    Confirmed,
    /// A hub or a backend contradicted: the device joins the line.
    Suspect,
    /// An operator moves the device to another instance.
    Moved,
    /// An operator deleted the device.
    Retired,
}

/// What DPS decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// The hub.
    pub hub: HubName,
    /// The device's name at that hub.
    pub device_id: DeviceId,
    /// The instance that decided.
    pub instance: InstanceName,
    /// How far to rely on it.
    pub state: AssignmentState,
    /// DPS's word for what it did, for example `initialAssignment`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub substatus: Option<String>,
    /// What a custom allocation policy returned for the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Value>,
    /// When the device came to this hub.
    pub assigned_at: WallTime,
    /// When DPS last said so.
    pub confirmed_at: WallTime,
    /// When somebody last contradicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspected_at: Option<WallTime>,
    /// Grows with every change that a backend could care about.
    pub revision: u64,
    /// DPS's `etag` of the registration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dps_etag: Option<String>,
    /// DPS's `lastUpdatedDateTimeUtc` of the registration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dps_last_updated: Option<WallTime>,
}

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
    #[serde(default)]
    pub attempts: u32,
    /// Of these, how many DPS gave no result for while it gave one to others.
    #[serde(default)]
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

/// DPS refused the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Our stable code for the kind of refusal.
    pub code: String,
    /// What an operator must fix, in plain words.
    pub detail: String,
    /// DPS's six-digit code, if it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<i64>,
    /// DPS's name for the failure, for a support request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking_id: Option<String>,
    /// The instance that refused.
    pub instance: InstanceName,
    /// When.
    pub at: StoredMoment,
    /// Until when it is believed, by the wall clock that `at` was read from: what counts is how long after `at` that is.
    pub until: WallTime,
    /// Names the settings under which it was given. New ones, also those of a new process, may have mended its cause.
    #[serde(default)]
    pub settings_mark: u64,
}

impl Refusal {
    /// How long it is still believed; `None` if it is over.
    #[must_use]
    pub fn left(&self, now: Now) -> Option<Duration> {
        self.at.left_of(self.until.since(self.at.wall()), now)
    }

    /// The same for people: its end is told by the wall clock of now.
    #[must_use]
    pub fn shown(&self, now: Now) -> Self {
        Self { at: self.at.shown(), until: now.wall.after(self.left(now).unwrap_or_default()), ..self.clone() }
    }
}

/// An operator keeps the device out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// In the operator's words; the latest ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who said so last: the name of a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Since when.
    pub at: WallTime,
}

/// One thing that happened to a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEvent {
    /// When.
    pub at: WallTime,
    /// What, in plain words.
    pub what: String,
}

/// The bytes under a key are not a record.
#[derive(Debug, Clone, thiserror::Error)]
#[error("a device record cannot be read: {0}")]
pub struct UnreadableRecord(String);

/// A record and the version to name when it is changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned {
    /// The record.
    pub record: Record,
    /// Its version in the store; `None` if it was never written.
    pub version: Option<Version>,
}

impl Record {
    /// The record of a device that nobody has seen.
    #[must_use]
    pub fn new(registration_id: RegistrationId, tenant: TenantName, enrollment: EnrollmentName) -> Self {
        Self {
            registration_id,
            hardware_id: None,
            tenant,
            enrollment,
            unclaimed: false,
            listed: None,
            assignment: None,
            pending: None,
            refusal: None,
            blocked: None,
            retired: None,
            moving_to: None,
            footprint: BTreeSet::new(),
            last_sent: None,
            last_registration_begun: None,
            reprovisioned_untold: false,
            reprovision_told: None,
            credential_claimed: None,
            timeline: Vec::new(),
        }
    }

    /// The record of a device that an operator blocks before anything is known of it.
    #[must_use]
    pub fn unclaimed(registration_id: RegistrationId) -> Self {
        let tenant = TenantName::parse(UNKNOWN).expect("it is a name");
        let enrollment = EnrollmentName::parse(UNKNOWN).expect("it is a name");
        Self { unclaimed: true, ..Self::new(registration_id, tenant, enrollment) }
    }

    /// Whose it is, once that is known.
    #[must_use]
    pub fn known_tenant(&self) -> Option<&TenantName> {
        (!self.unclaimed).then_some(&self.tenant)
    }

    /// The key of a device's record.
    #[must_use]
    pub fn key(registration_id: &RegistrationId) -> Key {
        Key::new(Table::Device, registration_id.as_str())
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`UnreadableRecord`] if the bytes are not a record of this schema.
    pub fn decode(stored: &Stored) -> Result<Versioned, UnreadableRecord> {
        let record = serde_json::from_slice(&stored.value).map_err(|error| UnreadableRecord(error.to_string()))?;
        Ok(Versioned { record, version: Some(stored.version) })
    }

    /// The bytes to store.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(serde_json::to_vec(self).expect("a record has string keys only"))
    }

    /// Adds an event; the oldest ones give way beyond `timeline_max`.
    pub fn note(&mut self, at: WallTime, timeline_max: usize, what: impl Into<String>) {
        self.timeline.push(TimelineEvent { at, what: what.into() });
        let excess = self.timeline.len().saturating_sub(timeline_max.max(1));
        self.timeline.drain(..excess);
    }

    /// Whether anything was ever done for or to the device, other than to list it: from then on its ID belongs to its tenant.
    #[must_use]
    pub fn was_seen(&self) -> bool {
        self.pending.is_some()
            || self.assignment.is_some()
            || self.refusal.is_some()
            || self.blocked.is_some()
            || self.retired.is_some()
            || !self.footprint.is_empty()
    }

    /// The assignment, if it may be told to a device.
    #[must_use]
    pub fn confirmed(&self) -> Option<&Assignment> {
        self.assignment.as_ref().filter(|assignment| assignment.state == AssignmentState::Confirmed)
    }

    /// The refusal, if it is still believed at `now`.
    #[must_use]
    pub fn refused(&self, now: Now) -> Option<&Refusal> {
        self.refusal.as_ref().filter(|refusal| refusal.left(now).is_some())
    }

    /// The same record for people: without secrets, every moment by the wall clock alone.
    #[must_use]
    pub fn shown(mut self, now: Now) -> Self {
        if let Some(listed) = &mut self.listed {
            listed.key = None;
        }
        if let Some(pending) = &mut self.pending {
            pending.joined_at = pending.joined_at.shown();
            if let Some(home) = &mut pending.home {
                home.joined_at = home.joined_at.shown();
            }
        }
        self.refusal = self.refusal.map(|refusal| refusal.shown(now));
        for moment in [&mut self.last_sent, &mut self.last_registration_begun, &mut self.reprovision_told] {
            *moment = moment.map(StoredMoment::shown);
        }
        self
    }

    /// Gives the place up. The instance leaves the footprint only if nothing was ever sent there.
    pub fn drop_pending(&mut self) -> Option<Pending> {
        let pending = self.pending.take()?;
        if pending.first_there && pending.attempts == 0 && pending.stage == Stage::Waiting {
            self.footprint.remove(&pending.instance);
        }
        Some(pending)
    }
}

impl Versioned {
    /// The write that replaces the stored record with this one, if nobody was faster.
    #[must_use]
    pub fn write(&self) -> Write {
        Write {
            key: Record::key(&self.record.registration_id),
            expect: self.version.map_or(Expect::Absent, Expect::Version),
            value: Some(self.record.encode()),
        }
    }
}
