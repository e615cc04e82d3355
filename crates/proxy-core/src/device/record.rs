//! The one durable record of a device, and how it is read.
//!
//! Invariants:
//! - `footprint` names every instance that may hold a registration of the device at DPS. It is what capacity is counted from, and an
//!   instance leaves it only before anything was sent there, or when an operator confirms the deletion at DPS.
//! - `flight` names the one registration that may be on its way to DPS. It outlives the place that it was sent from, and no other one is sent
//!   beside it.
//! - The timeline is bounded; it never holds a secret.
//! - A moment that something is measured from is a [`StoredMoment`]; one that people only read is a [`WallTime`].

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::assignment::{Assignment, AssignmentState};
use super::flight::Flight;
use super::pending::{self, Pending, Stage};
use super::timeline::TimelineEvent;
use super::unknown::{self, Misread, Unknown};
use crate::ids::{EnrollmentName, InstanceName, RegistrationId, TenantName};
use crate::place::Place;
use crate::store::{Key, Placing, ReadError, Stored, Table, Version};
use rate_control::failpoint::Failpoint;
use rate_control::time::{Now, StoredMoment, WallTime};

/// Stands for tenant and enrollment while they are unknown.
const UNKNOWN: &str = "unknown";

/// How often a device that was booked on another instance is brought home: an instance that comes and goes does not keep devices moving for
/// ever.
const RETURNS_MAX: u32 = 3;

/// Everything we durably know of one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// Who.
    pub(super) registration_id: RegistrationId,
    /// The hardware ID in the device's own spelling, when it is not the registration ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) hardware_id: Option<String>,
    /// Whose.
    pub(super) tenant: TenantName,
    /// By which rules.
    pub(super) enrollment: EnrollmentName,
    /// An operator blocked the ID before anything was known of it: tenant and enrollment stand for nothing yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) unclaimed: bool,
    /// Its entry on the allow-list, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) listed: Option<Listed>,
    /// The last assignment, in whatever state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) assignment: Option<Assignment>,
    /// What it waits for, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pending: Option<Pending>,
    /// The registration that may be on its way to DPS. It is not the place's: it stays when the device leaves that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) flight: Option<Flight>,
    /// The last refusal by DPS, until it expires or is cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) refusal: Option<Refusal>,
    /// Set while an operator keeps the device out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) blocked: Option<Blocked>,
    /// Set when an operator deleted the device; the record stays as a tombstone until DPS's own record is known to be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) retired: Option<WallTime>,
    /// Where an operator moves it; its home until it is assigned there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) moving_to: Option<InstanceName>,
    /// Instances that may hold a registration of it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) footprint: BTreeSet<InstanceName>,
    /// When the last registration was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_sent: Option<StoredMoment>,
    /// When the registration behind the current assignment was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_registration_begun: Option<StoredMoment>,
    /// A reprovisioning that the device asked for was done, and the device was not told yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) reprovisioned_untold: bool,
    /// When the device was told of a reprovisioning it asked for; a repeated request means the same one for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reprovision_told: Option<StoredMoment>,
    /// When its credential was handed out, where that happens once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) credential_claimed: Option<WallTime>,
    /// What happened to it, oldest first, bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) timeline: Vec<TimelineEvent>,
    /// What a newer version wrote beside this.
    #[serde(flatten, skip_deserializing)]
    pub(super) unknown: Unknown,
}

/// An allow-list entry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listed {
    /// The delivery it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
    /// The device's individual symmetric key, base64. A secret: it is stored, and never shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// When it was listed.
    pub at: WallTime,
    /// What a newer version wrote beside this.
    #[serde(flatten, skip_deserializing)]
    pub(super) unknown: Unknown,
}

impl std::fmt::Debug for Listed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listed")
            .field("batch", &self.batch)
            .field("key", &self.key.as_ref().map(|_| "***"))
            .finish_non_exhaustive()
    }
}

/// DPS refused the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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
    /// What a newer version wrote beside this.
    #[serde(flatten, skip_deserializing)]
    pub unknown: Unknown,
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
#[serde(deny_unknown_fields)]
pub struct Blocked {
    /// In the operator's words; the latest ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who said so last: the name of a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Since when.
    pub at: WallTime,
    /// What a newer version wrote beside this.
    #[serde(flatten, skip_deserializing)]
    pub(super) unknown: Unknown,
}

/// The bytes under a key are no record that this version can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableRecord {
    /// They are no record.
    #[error("a device record cannot be read: {0}")]
    Damaged(String),
    /// A newer version wrote something that this one would have to understand.
    #[error("{0}")]
    Newer(String),
}

impl UnreadableRecord {
    /// What it means for whoever reads the record of `name`.
    #[must_use]
    pub fn into_read_error(self, name: &str) -> ReadError {
        let (table, detail) = (Table::Device, format!("registration {name}: {self}"));
        match self {
            Self::Damaged(_) => ReadError::Corrupt { table, detail },
            Self::Newer(_) => ReadError::Newer { table, detail },
        }
    }
}

/// A record and the version to name when it is changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned {
    /// The record.
    pub record: Record,
    /// Its version in the store.
    pub version: Version,
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
            flight: None,
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
            unknown: Unknown::default(),
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

    /// Who.
    #[must_use]
    pub const fn registration_id(&self) -> &RegistrationId {
        &self.registration_id
    }

    /// The hardware ID in the device's own spelling, when it is not the registration ID.
    #[must_use]
    pub fn hardware_id(&self) -> Option<&str> {
        self.hardware_id.as_deref()
    }

    /// Whose; stands for nothing while the record [is unclaimed](Self::is_unclaimed).
    #[must_use]
    pub const fn tenant(&self) -> &TenantName {
        &self.tenant
    }

    /// By which rules; stands for nothing while the record [is unclaimed](Self::is_unclaimed).
    #[must_use]
    pub const fn enrollment(&self) -> &EnrollmentName {
        &self.enrollment
    }

    /// Whether an operator blocked the ID before anything was known of it.
    #[must_use]
    pub const fn is_unclaimed(&self) -> bool {
        self.unclaimed
    }

    /// Its entry on the allow-list, if it has one.
    #[must_use]
    pub const fn listed(&self) -> Option<&Listed> {
        self.listed.as_ref()
    }

    /// The last assignment, in whatever state.
    #[must_use]
    pub const fn assignment(&self) -> Option<&Assignment> {
        self.assignment.as_ref()
    }

    /// What it waits for, if it does.
    #[must_use]
    pub const fn pending(&self) -> Option<&Pending> {
        self.pending.as_ref()
    }

    /// The registration that may be on its way to DPS, from wherever the device stood then. Whether it still may is for those to tell who
    /// know the process that sent it.
    #[must_use]
    pub const fn flight(&self) -> Option<&Flight> {
        self.flight.as_ref()
    }

    /// The last refusal by DPS, believed or not.
    #[must_use]
    pub const fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }

    /// Set while an operator keeps the device out.
    #[must_use]
    pub const fn blocked(&self) -> Option<&Blocked> {
        self.blocked.as_ref()
    }

    /// When an operator deleted the device, if one did.
    #[must_use]
    pub const fn retired(&self) -> Option<WallTime> {
        self.retired
    }

    /// Where an operator moves it; its home until it is assigned there.
    #[must_use]
    pub const fn moving_to(&self) -> Option<&InstanceName> {
        self.moving_to.as_ref()
    }

    /// Instances that may hold a registration of it.
    #[must_use]
    pub const fn footprint(&self) -> &BTreeSet<InstanceName> {
        &self.footprint
    }

    /// When the last registration was sent.
    #[must_use]
    pub const fn last_sent(&self) -> Option<StoredMoment> {
        self.last_sent
    }

    /// When the registration behind the current assignment was sent.
    #[must_use]
    pub const fn last_registration_begun(&self) -> Option<StoredMoment> {
        self.last_registration_begun
    }

    /// Whether a reprovisioning that the device asked for was done, and the device was not told yet.
    #[must_use]
    pub const fn reprovisioned_untold(&self) -> bool {
        self.reprovisioned_untold
    }

    /// When the device was told of a reprovisioning it asked for.
    #[must_use]
    pub const fn reprovision_told(&self) -> Option<StoredMoment> {
        self.reprovision_told
    }

    /// When its credential was handed out, where that happens once.
    #[must_use]
    pub const fn credential_claimed(&self) -> Option<WallTime> {
        self.credential_claimed
    }

    /// What happened to it, oldest first, bounded.
    #[must_use]
    pub fn timeline(&self) -> &[TimelineEvent] {
        &self.timeline
    }

    /// Whether its place is `place` in the line of `instance`.
    #[must_use]
    pub fn stands_at(&self, instance: &InstanceName, place: Place) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.instance == *instance && pending.place == place)
    }

    /// Whether it waits and nothing can have left for it, here or elsewhere, and nobody wants it at a certain instance: only then may it be
    /// booked on another instance.
    #[must_use]
    pub fn may_be_rebooked(&self) -> bool {
        let fresh = self.pending.as_ref().is_some_and(|pending| {
            pending.stage == Stage::Waiting && pending.attempts == 0 && pending.first_there && self.footprint.len() == 1
        });
        (fresh || Failpoint::RebookedAfterSent.is_on())
            && self.assignment.is_none()
            && self.moving_to.is_none()
            && self.blocked.is_none()
    }

    /// The place that it was booked away from and may still come back to.
    #[must_use]
    pub fn home_to_come_back_to(&self) -> Option<(&InstanceName, Place)> {
        let pending =
            self.pending.as_ref().filter(|pending| self.may_be_rebooked() && pending.rebooked <= RETURNS_MAX)?;
        // Who was moved ahead here would lose by it.
        let home = pending.home.as_ref().filter(|home| home.place.class == pending.place.class)?;
        Some((&home.instance, home.place))
    }

    /// The key of a device's record.
    #[must_use]
    pub fn key(registration_id: &RegistrationId) -> Key {
        Key::new(Table::Device, registration_id.as_str())
    }

    /// Reads what [`encode`](Self::encode) wrote, in this version or another one. What this version does not know is kept.
    ///
    /// # Errors
    /// [`UnreadableRecord`] if the bytes are no record, or hold what this version would have to understand, or the device waits in a line and
    /// nothing says where.
    pub fn decode(stored: &Stored) -> Result<Versioned, UnreadableRecord> {
        // Nearly every record has only what this version knows, and that is found out by the way.
        let mut record: Self = match serde_json::from_slice(&stored.value) {
            Ok(record) => record,
            Err(error) => Self::decode_newer(&stored.value, &error)?,
        };
        if let Some(pending) = &mut record.pending {
            pending.place = stored.place.unwrap_or(pending.place);
            if !pending.place.is_numbered() {
                let why = "it waits in a line, and nothing says at which place";
                return Err(UnreadableRecord::Damaged(why.to_owned()));
            }
        }
        Ok(Versioned { record, version: stored.version })
    }

    /// Reads a record into which a newer version may have written what this one does not know; `error` is why it was not read strictly.
    fn decode_newer(bytes: &[u8], error: &serde_json::Error) -> Result<Self, UnreadableRecord> {
        let damaged = |error: &dyn std::fmt::Display| UnreadableRecord::Damaged(error.to_string());
        let value = serde_json::from_slice(bytes).map_err(|error| damaged(&error))?;
        let read = unknown::read(value, pending::fields_of).map_err(|misread| match misread {
            Misread::NewValue(what) => UnreadableRecord::Newer(what),
            Misread::Wrong(why) => UnreadableRecord::Damaged(why),
        });
        let (mut record, mut aside): (Self, unknown::Aside) = read?;
        if aside.is_empty() {
            return Err(damaged(error));
        }
        record.each_unknown(|at, unknown| *unknown = aside.remove(at).map(Unknown::of).unwrap_or_default());
        match aside.pop_first() {
            None => Ok(record),
            Some((at, members)) => Err(UnreadableRecord::Newer(format!(
                "{at} has members that this version does not know and cannot keep: {}",
                members.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
            ))),
        }
    }

    /// Every part that may hold what this version does not know, by the way to it.
    fn each_unknown(&mut self, mut visit: impl FnMut(&str, &mut Unknown)) {
        visit("", &mut self.unknown);
        if let Some(listed) = &mut self.listed {
            visit("/listed", &mut listed.unknown);
        }
        if let Some(assignment) = &mut self.assignment {
            visit("/assignment", &mut assignment.unknown);
        }
        if let Some(pending) = &mut self.pending {
            visit("/pending", &mut pending.unknown);
            visit("/pending/stage", &mut pending.unknown_of_stage);
            if let Some(home) = &mut pending.home {
                visit("/pending/home", &mut home.unknown);
            }
        }
        if let Some(flight) = &mut self.flight {
            visit("/flight", &mut flight.unknown);
        }
        if let Some(refusal) = &mut self.refusal {
            visit("/refusal", &mut refusal.unknown);
        }
        if let Some(blocked) = &mut self.blocked {
            visit("/blocked", &mut blocked.unknown);
        }
        for (number, event) in self.timeline.iter_mut().enumerate() {
            visit(&format!("/timeline/{number}"), &mut event.unknown);
        }
    }

    /// The bytes to store. The place is not in them: see [`placing`](Self::placing).
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let of_stage = self.pending.as_ref().map(|pending| &pending.unknown_of_stage);
        let bytes = match of_stage.filter(|unknown| !unknown.is_empty()) {
            None => serde_json::to_vec(self),
            Some(unknown) => serde_json::to_value(self).and_then(|mut whole| {
                let stage = whole.pointer_mut("/pending/stage").and_then(serde_json::Value::as_object_mut);
                stage.into_iter().for_each(|stage| unknown.put_into(stage));
                serde_json::to_vec(&whole)
            }),
        };
        Bytes::from(bytes.expect("a record has string keys only"))
    }

    /// What is to be stored beside the bytes: where it stands in line, or that it joins the end of one.
    #[must_use]
    pub fn placing(&self) -> Placing {
        let Some(Pending { instance, place, .. }) = &self.pending else { return Placing::Nowhere };
        let line = instance.clone();
        if place.is_numbered() {
            Placing::At { line, place: *place }
        } else {
            Placing::Join { line, class: place.class }
        }
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

    /// Whether the ID is a tenant's: it was seen or listed as theirs.
    #[must_use]
    pub fn is_claimed(&self) -> bool {
        (self.was_seen() || self.listed.is_some()) && !self.unclaimed
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

    /// The same record for people: without secrets and without what this version does not know, every moment by the wall clock alone.
    #[must_use]
    pub fn shown(mut self, now: Now) -> Self {
        self.each_unknown(|_, unknown| *unknown = Unknown::default());
        if let Some(listed) = &mut self.listed {
            listed.key = None;
        }
        if let Some(pending) = &mut self.pending {
            pending.joined_at = pending.joined_at.shown();
            if let Some(home) = &mut pending.home {
                home.joined_at = home.joined_at.shown();
            }
        }
        if let Some(flight) = &mut self.flight {
            flight.sent = flight.sent.shown();
        }
        self.refusal = self.refusal.map(|refusal| refusal.shown(now));
        for moment in [&mut self.last_sent, &mut self.last_registration_begun, &mut self.reprovision_told] {
            *moment = moment.map(StoredMoment::shown);
        }
        self
    }
}
