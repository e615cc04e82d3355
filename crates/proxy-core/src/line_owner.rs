//! What others ask of the owner of the lines.
//!
//! Whoever answers devices, backends and operators, and whoever commits a record, knows lines by [`LineOwner`] alone. Each call is a whole
//! question with a whole answer, so that it could be a message to another process; the owner may be far away.
//!
//! Invariants:
//! - No lock crosses a call, and no moment of the owner's boot-time clock does: an answer says *how long from now*, or brings the owner's
//!   clocks along.
//! - What was true when the owner answered need not be true when the answer is there. So answers are advice: what must hold is decided by
//!   compare-and-set on the record, and by the count of the inventory.
//! - Who is promised room by [`expect`](LineOwner::expect) either comes ([`follow`](LineOwner::follow) with the record that says so) or is
//!   taken back ([`withdraw`](LineOwner::withdraw)), in a step that runs to its end whatever becomes of the request.
//! - [`follow`](LineOwner::follow) may be heard in another order than that in which the records were written: each change says all that
//!   the lines have to know of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::device::{Effects, Flight, Pending};
use crate::ids::{InstanceName, TenantName};
use crate::line::{LineFull, LineStatus};
use crate::place::Place;
use crate::upstream::evidence::Blame;
use rate_control::time::Now;

/// Who dispatches the lines, and so knows who stands in them. See the module.
pub trait LineOwner: Send + Sync + fmt::Debug {
    /// Which instances placement had better pass over for a device of `tenant`.
    fn avoid<'a>(&'a self, tenant: &'a TenantName) -> BoxFuture<'a, Avoid>;

    /// A device is about to come into a line: room is held for it until its record is followed, or it is withdrawn. Its place is given by the
    /// store, with the record.
    ///
    /// # Errors
    /// [`NotExpected`]; nothing was changed then.
    fn expect<'a>(&'a self, newcomer: &'a Newcomer) -> BoxFuture<'a, Result<(), NotExpected>>;

    /// Who was expected does not come: its record was not written.
    fn withdraw<'a>(&'a self, newcomer: &'a Newcomer) -> BoxFuture<'a, ()>;

    /// A record was committed, with these effects: the device arrives at the place that the store gave it, and the one that it gave up is
    /// left. Of two commits the later one may be followed first.
    fn follow<'a>(&'a self, effects: &'a Effects) -> BoxFuture<'a, ()>;

    /// What the device at this place is told. Where tenants share the line that is an appointment, which the owner keeps. `None` if the
    /// line does not know the place: it was left, or its device is between two steps of its registration.
    fn tell<'a>(&'a self, at: At<'a>) -> BoxFuture<'a, Option<Told>>;

    /// Which of the lines `among` would have the device sooner that waits at this place of an instance that fails; `None` if none would,
    /// or the instance works.
    fn sooner<'a>(&'a self, at: At<'a>, among: &'a BTreeSet<InstanceName>) -> BoxFuture<'a, Option<InstanceName>>;

    /// Whether this registration may still arrive at DPS: its call has not ended, or whoever sent it died not long ago.
    fn on_its_way<'a>(&'a self, flight: &'a Flight) -> BoxFuture<'a, bool>;

    /// How long until one of the lines `among` should have room for a device of `tenant` that was not expected: the one that has room
    /// first, those that fail last. If it is promised, the device comes then, and others are told a later time.
    fn room_in<'a>(
        &'a self,
        tenant: &'a TenantName,
        among: &'a BTreeSet<InstanceName>,
        promised: bool,
    ) -> BoxFuture<'a, Duration>;

    /// Why a device of `tenant` waits, for operators. `None` if the owner does not know the line.
    fn explain<'a>(&'a self, tenant: &'a TenantName, pending: &'a Pending) -> BoxFuture<'a, Option<Explained>>;

    /// The numbers of all lines, for operators.
    fn report(&self) -> BoxFuture<'_, BTreeMap<InstanceName, LineReport>>;
}

/// Instances that placement had better pass over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Avoid {
    /// Calls to them have failed for so long that devices may be booked elsewhere.
    pub sick: BTreeSet<InstanceName>,
    /// Their lines take no device of the tenant now.
    pub full: BTreeSet<InstanceName>,
}

/// A device that is about to come into a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newcomer {
    /// Which line.
    pub instance: InstanceName,
    /// Whose.
    pub tenant: TenantName,
    /// How.
    pub coming: Coming,
}

/// How a device comes into a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coming {
    /// To the end of a lane.
    Anew,
    /// It is in the line already, and changes its lane. Needs no room.
    Changing,
    /// Back to the place that it had here.
    Returning(Place),
}

/// Why a device is not expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotExpected {
    /// There is no such line.
    NoLine,
    /// It takes nobody else.
    Full(LineFull),
    /// Somebody is at the place that it would return to.
    Taken,
}

/// A place, and whose it is.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// Which line.
    pub instance: &'a InstanceName,
    /// Whose.
    pub tenant: &'a TenantName,
    /// The place.
    pub place: Place,
}

/// What a device in line is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Devices that go before it, plus one; 0 if it is under way.
    pub position: usize,
    /// How long until it should hold its assignment.
    pub wait: Duration,
    /// Calls to the instance have failed for so long that it may be booked elsewhere.
    pub is_sick: bool,
}

/// Why a device waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// In plain words.
    pub because: String,
    /// Devices that go before it, plus one; 0 if it is under way.
    pub position: Option<usize>,
    /// How long until it should hold its assignment.
    pub wait: Option<Duration>,
}

/// A line as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineReport {
    /// What the owner's clocks read. All moments here are of them.
    pub now: Now,
    /// Its numbers, and what holds it up.
    pub status: LineStatus,
    /// Whether the task that serves it runs.
    pub dispatcher_up: bool,
    /// By how much DPS's clock is ahead of the owner's wall clock, in milliseconds. Nothing before DPS was heard of.
    pub clock_offset_millis: Option<i64>,
    /// What happened since the owner's process started.
    pub counts: CountsView,
}

/// How often things happened at one instance since the owner's process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountsView {
    /// Registrations sent.
    pub registrations: u64,
    /// Of these, sent again for a device whose earlier one had no clear outcome.
    pub repeated: u64,
    /// Status lookups sent.
    pub lookups: u64,
    /// Polls sent.
    pub polls: u64,
    /// Calls without an answer.
    pub lost: u64,
    /// Calls for which no connection could be made.
    pub unreachable: u64,
    /// Registrations and lookups that DPS throttled.
    pub throttled: u64,
    /// Calls that failed, by who is to blame.
    pub blamed: BlamedView,
    /// Devices assigned.
    pub assigned: u64,
    /// Devices refused.
    pub refused: u64,
}

/// Calls that failed, by who is to blame if the device is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlamedView {
    /// DPS itself.
    pub instance: u64,
    /// What is between us and DPS.
    pub path: u64,
    /// This machine, or its configuration.
    pub ourselves: u64,
}

impl BlamedView {
    /// The number of one of them.
    #[must_use]
    pub const fn of(&self, blame: Blame) -> u64 {
        match blame {
            Blame::Instance => self.instance,
            Blame::Path => self.path,
            Blame::Ourselves => self.ourselves,
        }
    }
}
