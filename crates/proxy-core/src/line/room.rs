//! Room in a line that is full: who gets the next place that comes free, and when those who got none should come back.
//!
//! The bound is shared by weight. A tenant alone may have all of it; when others come, whoever has its share already is refused, so that
//! the places that come free go to those who have less. A place that was given is never taken away.
//!
//! Devices that were turned away stand in a second line, outside, of which nothing is kept but counts: each is told when a place should
//! come free for it, by the forecast of the line inside and shared in the same way. So places are asked for as fast as they come free: the
//! line does not run empty while devices wait outside, and those do not ask again and again.
//!
//! Invariants:
//! - Only a line that holds `length_max` refuses a tenant that has less than its share. Room is held for a device while its place is being
//!   written, so that the bound is exact.
//! - A promise ends when a device of its tenant gets a place, or [`GRACE`] after its moment. It reserves nothing against tenants that
//!   have less than their share themselves.
//! - Memory: one count per tenant and [`STEP`] of the longest wait that is told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Line, LineFull};
use crate::ids::TenantName;
use crate::place::Place;
use rate_control::entropy::Entropy;
use rate_control::time::Mono;

/// Promises are counted in steps of this.
const STEP: Duration = Duration::from_secs(5);

/// How long after its moment a promise holds: devices are told whole seconds, spread a little, and are late themselves.
const GRACE: Duration = Duration::from_secs(15);

/// Nobody is told to come back later than when the whole line has left, within these bounds: a forecast for longer is worth little,
/// and the line should not run empty should it go faster. Who is farther back comes then, and is told anew.
const LONGEST_MIN: Duration = Duration::from_secs(600);
const LONGEST_MAX: Duration = Duration::from_secs(3600);

/// Devices that were turned away, as counts.
#[derive(Debug, Default)]
pub(super) struct Outside {
    tenants: BTreeMap<TenantName, Promised>,
}

#[derive(Debug, Default)]
struct Promised {
    total: usize,
    by_step: BTreeMap<u128, usize>,
}

fn step(moment: Mono) -> u128 {
    u128::from(moment.as_nanos()) / STEP.as_nanos()
}

impl Outside {
    /// Ends promises that nobody came for.
    fn forget_past(&mut self, now: Mono) {
        if self.tenants.is_empty() {
            return;
        }
        let oldest = step(now).saturating_sub(GRACE.as_nanos() / STEP.as_nanos());
        self.tenants.retain(|_, promised| {
            promised.by_step = promised.by_step.split_off(&oldest);
            promised.total = promised.by_step.values().sum();
            promised.total > 0
        });
    }

    fn promise(&mut self, tenant: &TenantName, moment: Mono) {
        let promised = self.tenants.entry(tenant.clone()).or_default();
        *promised.by_step.entry(step(moment)).or_default() += 1;
        promised.total += 1;
    }

    /// A device of `tenant` has got a place: it is taken for the one that was promised one first.
    pub(super) fn came_in(&mut self, tenant: &TenantName) {
        let Some(promised) = self.tenants.get_mut(tenant) else { return };
        if let Some(mut first) = promised.by_step.first_entry() {
            promised.total -= 1;
            *first.get_mut() -= 1;
            if *first.get() == 0 {
                first.remove();
            }
        }
        if promised.total == 0 {
            self.tenants.remove(tenant);
        }
    }

    fn others_than(&self, tenant: &TenantName) -> bool {
        self.tenants.keys().any(|other| other != tenant)
    }
}

/// Devices whose places are being written: they have room, and do not wait yet.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    of: BTreeMap<TenantName, usize>,
    total: usize,
    /// Places that were left before anybody arrived there, as that is heard of in any order.
    left: BTreeSet<Place>,
}

impl Arriving {
    fn hold(&mut self, tenant: &TenantName) {
        *self.of.entry(tenant.clone()).or_default() += 1;
        self.total += 1;
    }

    fn release(&mut self, tenant: &TenantName) {
        let Some(held) = self.of.get_mut(tenant) else { return };
        *held -= 1;
        self.total -= 1;
        if *held == 0 {
            self.of.remove(tenant);
        }
        if self.total == 0 {
            self.left.clear();
        }
    }

    /// A device arrives at `place`. Whether it still has it.
    pub(super) fn arrives(&mut self, tenant: &TenantName, place: Place) -> bool {
        let left = self.left.remove(&place);
        self.release(tenant);
        !left
    }

    /// `place`, where nobody is, was left.
    pub(super) fn left(&mut self, place: Place) {
        if self.total > 0 {
            self.left.insert(place);
        }
    }
}

/// What one tenant has of a line, and may have while others want some of it.
#[derive(Debug, Default)]
struct Share {
    weight: u64,
    held: usize,
    promised: usize,
    most: usize,
}

impl Share {
    /// So many places in a row are its before it has its share: while they come free, its own devices leave as well. `total` is the
    /// weight of all.
    fn first(&self, total: u64) -> usize {
        let lacking = self.most.saturating_sub(self.held) as u128;
        match total.saturating_sub(self.weight) {
            0 => usize::MAX,
            others => usize::try_from(lacking * u128::from(total) / u128::from(others)).unwrap_or(usize::MAX),
        }
    }

    /// Places that are kept for it against tenants that have their share.
    fn kept(&self) -> usize {
        self.promised.min(self.most.saturating_sub(self.held))
    }
}

impl Line {
    /// Whether a device of `tenant` gets a place.
    pub fn has_room(&mut self, tenant: &TenantName, now: Mono) -> bool {
        self.outside.forget_past(now);
        let waiting = self.waiting() + self.arriving.total;
        if waiting >= self.length_max {
            return false;
        }
        if !self.outside.others_than(tenant) {
            return true;
        }
        let shares = self.shares(tenant);
        let kept: usize = shares.iter().filter(|(other, _)| **other != tenant).map(|(_, share)| share.kept()).sum();
        shares.get(tenant).is_none_or(|share| share.held < share.most) || waiting + kept < self.length_max
    }

    /// Holds room for a device of `tenant` whose place is to be written: until it [arrives](Self::arrive), or the room is
    /// [released](Self::release_room).
    ///
    /// # Errors
    /// [`LineFull`] if as many wait as the configuration allows, or the tenant's share is used and others want theirs.
    pub fn hold_room(&mut self, tenant: &TenantName, now: Mono) -> Result<(), LineFull> {
        if !self.has_room(tenant, now) {
            return Err(self.full(tenant));
        }
        self.outside.came_in(tenant);
        self.arriving.hold(tenant);
        Ok(())
    }

    /// The same for a device that waits here already and takes another place: there always is room for that.
    pub fn hold_room_again(&mut self, tenant: &TenantName) {
        self.arriving.hold(tenant);
    }

    /// The place was not written.
    pub fn release_room(&mut self, tenant: &TenantName) {
        self.arriving.release(tenant);
    }

    /// Why a device of `tenant` gets none.
    fn full(&self, tenant: &TenantName) -> LineFull {
        let shares = self.shares(tenant);
        let share = shares.get(tenant).filter(|share| shares.len() > 1 && share.held >= share.most);
        LineFull { length_max: self.length_max, share: share.map(|share| share.most) }
    }

    /// When a place should come free for one more device of `tenant` that is turned away now.
    #[must_use]
    pub fn room_forecast(&self, tenant: &TenantName, now: Mono) -> Mono {
        let shares = self.shares(tenant);
        let total = shares.values().map(|share| share.weight).sum();
        let Some(own) = shares.get(tenant) else { return now };
        let first = own.first(total);
        let others = shares.iter().filter(|(other, _)| **other != tenant).map(|(_, other)| other);
        let before = others.map(|other| {
            // Whoever has less than its share goes first; then places go round by weight, as in the line inside.
            let turns =
                |turns: usize| usize::try_from((turns as u64 + 1) * other.weight / own.weight).unwrap_or(usize::MAX);
            let first_of_other = other.promised.min(other.first(total));
            match own.promised.checked_sub(first) {
                None => first_of_other.min(turns(own.promised)),
                Some(later) => first_of_other + (other.promised - first_of_other).min(turns(later)),
            }
        });
        let ahead = own.promised + before.sum::<usize>();
        let free = self.length_max.saturating_sub(self.waiting() + self.arriving.total);
        let Some(rank) = ahead.checked_sub(free) else { return now };
        let leaves = self.gate.forecast(rank as u64, now);
        let deferred_due = self.deferred.first_key_value().map(|(&(due, _), _)| due);
        // Only those leave whose turn it can be.
        deferred_due.filter(|_| self.scheduler.is_empty()).map_or(leaves, |due| leaves.max(due))
    }

    /// Promises room to a device of `tenant` that is turned away now. Returns when it should come.
    pub fn turn_away(&mut self, tenant: &TenantName, now: Mono, entropy: &mut Entropy) -> Mono {
        self.outside.forget_past(now);
        let longest = self.gate.forecast(self.length_max as u64, now).since(now).clamp(LONGEST_MIN, LONGEST_MAX);
        let moment = self.room_forecast(tenant, now);
        if moment.since(now) > longest {
            return now.after(longest + entropy.up_to(longest / 10));
        }
        self.outside.promise(tenant, moment);
        moment
    }

    /// The shares of all tenants that have devices in the line or outside, and of `asking`.
    fn shares<'l>(&'l self, asking: &'l TenantName) -> BTreeMap<&'l TenantName, Share> {
        let mut shares: BTreeMap<&TenantName, Share> = BTreeMap::from([(asking, Share::default())]);
        for (tenant, held) in self.scheduler.tenants() {
            shares.entry(tenant).or_default().held += held;
        }
        let deferred = self.deferred_of.iter().map(|(tenant, (held, _))| (tenant, held));
        for (tenant, held) in deferred.chain(&self.arriving.of) {
            shares.entry(tenant).or_default().held += held;
        }
        for (tenant, promised) in &self.outside.tenants {
            shares.entry(tenant).or_default().promised = promised.total;
        }
        for (tenant, share) in &mut shares {
            share.weight = u64::from(self.scheduler.weight(tenant));
        }
        let total: u64 = shares.values().map(|share| share.weight).sum();
        for share in shares.values_mut() {
            let most = self.length_max as u128 * u128::from(share.weight) / u128::from(total.max(1));
            share.most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
        }
        shares
    }
}
