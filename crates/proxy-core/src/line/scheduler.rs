//! The lanes of one line, a lane per tenant and class, and whose turn it is among them.
//!
//! Three rules, from the outside in:
//! 1. **Urgent and ordinary.** Expedited devices go first, but take no more than a configured share of the departures while
//!    ordinary ones wait, so that ordinary appointments hold. A few of the share are saved up, so that one alone goes at once.
//! 2. **Tenants** share by weight, by stride scheduling: each departure moves its tenant's pass on by `1 / weight`, and the tenant
//!    with the smallest pass is next. A tenant that had nobody waiting joins at the present pass: it saves nothing up. But a device that
//!    was told a moment goes in time: where a turn would make somebody late, the device goes whose moment is the first.
//! 3. **Classes** of one tenant are ordered by when a device joined, plus a handicap per class: a device of a later class goes
//!    before one of an earlier class that joined more than the handicap after it. So nobody starves.
//!
//! Invariants:
//! - Within a lane places depart in the order of their sequence numbers.
//! - [`FairScheduler::ahead`] is what then happens, if nobody else joins and no appointment stands against it: the same arithmetic, without walking
//!   the line.
//! - `ready` holds each tenant whose front may go, by its pass, so that the next one is found in O(log tenants); `waiting` counts the
//!   devices of all tenants. Both follow every change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::ids::{InstanceName, TenantName};
use crate::line::lane::{DepartureNumber, JobKind, Joined, Lane, Waiting};
use crate::place::{Class, Place};
use crate::settings::Settings;
use rate_control::time::Mono;

mod appointments;
mod arrivals;
mod drains;
mod tenant;
#[cfg(test)]
mod tests;
mod walk;

use appointments::Appointments;
pub use drains::Drain;
use tenant::TenantLanes;
pub use walk::Walk;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    Urgent,
    Ordinary,
}

impl Tier {
    fn of(class: Class) -> Self {
        if class == Class::Expedited { Self::Urgent } else { Self::Ordinary }
    }
}

/// The rules, as far as operators tune them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fairness {
    /// Per cent of the departures that expedited devices may take while others wait; 1 to 50.
    pub urgent_share_percent: u32,
    /// Handicap of one class against the one before it, in tenths of a second.
    pub handicap: Joined,
    /// Weights of tenants that have another than 1; each 1 to 1,000.
    pub weights: BTreeMap<TenantName, u32>,
    /// Devices of several tenants may stand in the line.
    pub shared: bool,
}

impl Fairness {
    /// The rules for the line of `instance`.
    #[must_use]
    pub fn of(settings: &Settings, instance: &InstanceName) -> Self {
        let tenths = settings.line.class_handicap.as_millis() / 100;
        let dedicated = settings.instances.get(instance).is_some_and(|instance| instance.tenant.is_some());
        let users = settings
            .enrollments
            .values()
            .filter(|enrollment| enrollment.instances.is_empty() || enrollment.instances.contains(instance));
        let tenants: BTreeSet<&TenantName> = users.map(|enrollment| &enrollment.tenant).collect();
        Self {
            urgent_share_percent: settings.line.urgent_share_percent,
            handicap: u32::try_from(tenths).unwrap_or(u32::MAX),
            weights: settings.tenants.iter().map(|(name, tenant)| (name.clone(), tenant.weight)).collect(),
            shared: !dedicated && tenants.len() > 1,
        }
    }
}

/// Expedited devices that may go in a row after a time without any.
const URGENT_BURST: u64 = 10;

/// Expedited devices still to come that an ordinary appointment allows for, as far as their share lets them.
const URGENT_RESERVE: usize = 25;

/// No appointment is given so many departures ahead; no line is as long.
const AFTER_MAX: usize = 1 << 26;

/// A pass moves by this divided by the tenant's weight.
const STRIDE: u64 = 1 << 20;

/// The front of the lanes: who goes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Whose device.
    pub tenant: TenantName,
    /// Its place.
    pub place: Place,
    /// What for.
    pub job: JobKind,
}

/// All lanes of one line. See the module for the rules.
#[derive(Debug)]
pub struct FairScheduler {
    fairness: Fairness,
    /// Where a tenant is in `tenants`, in the order in which they were first seen.
    numbers: BTreeMap<TenantName, usize>,
    tenants: Vec<TenantLanes>,
    /// Per tier, the tenants whose front may go: pass and number.
    ready: [BTreeSet<(u64, usize)>; 2],
    /// The tenants whose ordinary front may go and has an appointment, by that.
    due: BTreeSet<(DepartureNumber, usize)>,
    /// Those of all ordinary devices.
    appointments: Appointments,
    /// Devices that wait, per tier.
    waiting: [usize; 2],
    /// The pass of the last departure, per tier.
    present: [u64; 2],
    /// The highest pass of any tenant, per tier: one that has gone ahead of its turn owes the others nothing once nobody waits.
    highest: [u64; 2],
    /// What expedited devices have saved up, in per cent of a departure.
    credit: u64,
}

impl FairScheduler {
    /// Empty lanes.
    #[must_use]
    pub fn new(fairness: Fairness) -> Self {
        let credit = URGENT_BURST * u64::from(100 - fairness.urgent_share_percent.min(99));
        let (numbers, tenants, ready) = (BTreeMap::new(), Vec::new(), <[BTreeSet<_>; 2]>::default());
        let (due, appointments) = (BTreeSet::new(), Appointments::default());
        Self {
            fairness,
            numbers,
            tenants,
            ready,
            due,
            appointments,
            waiting: [0; 2],
            present: [0; 2],
            highest: [0; 2],
            credit,
        }
    }

    /// Changes the rules from now on. Places are untouched; appointments end if tenants share by other rules than those they were
    /// given by. Whether they did: then those of devices that are elsewhere at the moment do as well.
    pub fn configure(&mut self, fairness: Fairness) -> bool {
        let as_before = (fairness.shared, &fairness.weights) == (self.fairness.shared, &self.fairness.weights);
        self.fairness = fairness;
        for lanes in &mut self.tenants {
            lanes.stride = stride(&self.fairness, &lanes.name);
        }
        if !as_before {
            self.forget_appointments();
        }
        self.credit = self.credit.min(URGENT_BURST * self.urgent_cost());
        for number in 0..self.tenants.len() {
            [Tier::Urgent, Tier::Ordinary].into_iter().for_each(|tier| self.list(number, tier));
        }
        !as_before
    }

    /// Whether devices of several tenants may stand in the line.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.fairness.shared
    }

    fn forget_appointments(&mut self) {
        self.appointments.clear();
        self.due.clear();
        for lanes in &mut self.tenants {
            lanes.due_at = None;
            lanes.appointed.clear();
            lanes.lanes.iter_mut().for_each(Lane::forget_appointments);
        }
    }

    fn urgent_gain(&self) -> u64 {
        u64::from(self.fairness.urgent_share_percent.clamp(1, 99))
    }

    fn urgent_cost(&self) -> u64 {
        100 - self.urgent_gain()
    }

    /// Devices that wait.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.waiting[Tier::Urgent as usize] + self.waiting[Tier::Ordinary as usize]
    }

    /// Expedited devices that wait.
    #[must_use]
    pub const fn expedited(&self) -> usize {
        self.waiting[Tier::Urgent as usize]
    }

    /// Whether nobody waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn of(&self, tenant: &TenantName) -> Option<&TenantLanes> {
        self.numbers.get(tenant).map(|&number| &self.tenants[number])
    }

    /// The tenants that have devices waiting, and how many.
    pub fn tenants(&self) -> impl Iterator<Item = (&TenantName, usize)> {
        let of = |lanes: &TenantLanes| lanes.waiting(Tier::Urgent) + lanes.waiting(Tier::Ordinary);
        self.tenants.iter().map(move |lanes| (&lanes.name, of(lanes))).filter(|(_, waiting)| *waiting > 0)
    }

    /// What counts for the tenant when it shares with others.
    #[must_use]
    pub fn weight(&self, tenant: &TenantName) -> u32 {
        weight(&self.fairness, tenant)
    }

    /// Puts a device at `place`.
    pub fn insert(&mut self, tenant: &TenantName, place: Place, waiting: &Waiting) {
        let number = self.numbers.get(tenant).copied().unwrap_or_else(|| {
            self.tenants.push(TenantLanes::new(tenant.clone(), stride(&self.fairness, tenant)));
            self.numbers.insert(tenant.clone(), self.tenants.len() - 1);
            self.tenants.len() - 1
        });
        let tier = Tier::of(place.class);
        let pass = self.pass(&self.tenants[number], tier);
        let lanes = &mut self.tenants[number];
        lanes.pass[tier as usize] = pass;
        let lane = &mut lanes.lanes[place.class as usize];
        // Mostly nobody has one, as tenants do not share the line.
        let had = if self.appointments.is_empty() { None } else { lane.appointment(place.sequence) };
        let before = lane.len();
        lane.insert(place.sequence, waiting);
        self.waiting[tier as usize] += lane.len() - before;
        self.change_appointment(number, had, waiting.appointment);
        self.list(number, tier);
    }

    /// A device of `tenant` has joined, and has not only come back to its place.
    pub fn joins(&mut self, tenant: &TenantName, now: Mono) {
        if let Some(&number) = self.numbers.get(tenant) {
            self.tenants[number].arrivals.joined(now);
        }
    }

    /// Takes a place out that does not depart.
    pub fn remove(&mut self, tenant: &TenantName, place: Place) -> Option<Waiting> {
        let number = *self.numbers.get(tenant)?;
        let waiting = self.tenants[number].lanes[place.class as usize].remove(place.sequence)?;
        self.change_appointment(number, waiting.appointment, None);
        self.goes(Tier::of(place.class));
        self.list(number, Tier::of(place.class));
        Some(waiting)
    }

    fn change_appointment(&mut self, number: usize, had: Option<DepartureNumber>, has: Option<DepartureNumber>) {
        let lanes = &mut self.tenants[number];
        if let Some(departure) = had {
            self.appointments.end(departure);
            lanes.end_appointment(departure);
        }
        if let Some(departure) = has {
            self.appointments.give(departure);
            lanes.appoint(departure);
        }
    }

    /// One device less waits.
    fn goes(&mut self, tier: Tier) {
        let tier = tier as usize;
        self.waiting[tier] -= 1;
        if self.waiting[tier] == 0 {
            self.present[tier] = self.present[tier].max(self.highest[tier]);
        }
    }

    /// Lists the tenant as ready under its present pass if its front may go, and as nothing else.
    fn list(&mut self, number: usize, tier: Tier) {
        let lanes = &mut self.tenants[number];
        let front = lanes.front(tier, self.fairness.handicap);
        let ready_at = front.map(|_| lanes.pass[tier as usize]);
        if tier == Tier::Ordinary {
            // Whoever is before the device that has to go first goes before it.
            let due_at = front.and_then(|_| lanes.appointed.keys().next().copied());
            let listed_at = std::mem::replace(&mut lanes.due_at, due_at);
            if listed_at != due_at {
                listed_at.map(|due| self.due.remove(&(due, number)));
                due_at.map(|due| self.due.insert((due, number)));
            }
        }
        let listed_at = std::mem::replace(&mut lanes.ready_at[tier as usize], ready_at);
        if listed_at != ready_at {
            let ready = &mut self.ready[tier as usize];
            listed_at.map(|pass| ready.remove(&(pass, number)));
            ready_at.map(|pass| ready.insert((pass, number)));
        }
    }

    /// The device at `place` has an appointment from now on, unless it has an earlier one: it goes after so many others at the latest, as
    /// far as there is [room](Self::first_free). Expedited devices need none.
    pub fn appoint(&mut self, tenant: &TenantName, place: Place, after: usize) {
        let Some(&number) = self.numbers.get(tenant) else { return };
        if place.class == Class::Expedited || !self.fairness.shared || after > AFTER_MAX {
            return;
        }
        let departure = self.departure(after);
        let lane = &mut self.tenants[number].lanes[place.class as usize];
        let had = lane.appointment(place.sequence);
        if had.is_none_or(|had| departure < had) {
            lane.appoint(place.sequence, departure);
            let has = lane.appointment(place.sequence);
            self.change_appointment(number, had, has);
            self.list(number, Tier::Ordinary);
        }
    }

    /// After how many others the device at `place` goes at the latest, if it has an appointment: as many as have to have gone by then, if
    /// some were missed.
    #[must_use]
    pub fn appointment(&self, tenant: &TenantName, place: Place) -> Option<usize> {
        let departure = self.of(tenant)?.lane(place.class).appointment(place.sequence)?;
        let in_time = departure.saturating_sub(self.appointments.next()) as usize;
        Some(in_time.max(self.appointments.by(departure).saturating_sub(1)))
    }

    /// After how many others one more device can go, `ahead` at least, so that all who have an appointment can keep it.
    #[must_use]
    pub fn first_free(&self, ahead: usize) -> usize {
        (self.appointments.first_free(self.departure(ahead)) - self.appointments.next()) as usize
    }

    /// The departure after so many others.
    fn departure(&self, after: usize) -> DepartureNumber {
        self.appointments.next().saturating_add(DepartureNumber::try_from(after).unwrap_or(DepartureNumber::MAX))
    }

    /// Since when the device at `place` waits.
    #[must_use]
    pub fn joined(&self, tenant: &TenantName, place: Place) -> Option<Joined> {
        self.of(tenant)?.lane(place.class).joined(place.sequence)
    }

    /// Who goes next.
    #[must_use]
    pub fn front(&self) -> Option<Turn> {
        match (self.front_of(Tier::Urgent), self.front_of(Tier::Ordinary)) {
            (Some(_), Some(ordinary)) if self.credit < self.urgent_cost() => Some(ordinary),
            (Some(urgent), _) => Some(urgent),
            (None, ordinary) => ordinary,
        }
    }

    fn front_of(&self, tier: Tier) -> Option<Turn> {
        let mut lanes = &self.tenants[self.ready[tier as usize].first()?.1];
        let (mut class, mut front) = lanes.front(tier, self.fairness.handicap)?;
        if tier == Tier::Ordinary
            && let Some((_, number)) = self.due.first()
            && !self.appointments.may_go(front.appointment)
        {
            lanes = &self.tenants[*number];
            (class, front) = lanes.front(tier, self.fairness.handicap)?;
        }
        let place = Place { class, sequence: front.sequence };
        Some(Turn { tenant: lanes.name.clone(), place, job: front.job })
    }

    /// Takes the device whose turn it is out.
    pub fn depart(&mut self, turn: &Turn) -> Option<Waiting> {
        let tier = Tier::of(turn.place.class);
        let number = *self.numbers.get(&turn.tenant)?;
        let waiting = self.tenants[number].lanes[turn.place.class as usize].remove(turn.place.sequence)?;
        self.change_appointment(number, waiting.appointment, None);
        self.appointments.departs();
        let lanes = &mut self.tenants[number];
        let pass = &mut lanes.pass[tier as usize];
        // Who goes before its turn, to keep an appointment, does not move the others on.
        let fair = self.ready[tier as usize].first().map_or(*pass, |(fair, _)| *fair);
        self.present[tier as usize] = self.present[tier as usize].max(fair);
        *pass += lanes.stride;
        self.highest[tier as usize] = self.highest[tier as usize].max(*pass);
        self.goes(tier);
        self.list(number, tier);
        match tier {
            Tier::Ordinary => {
                let most = URGENT_BURST * self.urgent_cost();
                self.credit = (self.credit + self.urgent_gain()).min(most);
            }
            Tier::Urgent if self.waiting[Tier::Ordinary as usize] > 0 => {
                self.credit = self.credit.saturating_sub(self.urgent_cost());
            }
            Tier::Urgent => {}
        }
        Some(waiting)
    }

    /// How many devices go before the one at `place`, which joined at `joined` and may be elsewhere at the moment, if nobody else
    /// joins.
    #[must_use]
    pub fn ahead(&self, tenant: &TenantName, place: Place, joined: Joined) -> usize {
        let rank = self.of(tenant).map_or(0, |lanes| lanes.rank(place, joined, self.fairness.handicap));
        let in_tier = rank + self.others_before(tenant, Tier::of(place.class), rank, |_, _| 0);
        self.with_other_tier(Tier::of(place.class), in_tier)
    }

    /// How many devices of other tenants are expected to join within `horizon` and to go before the one at `place`, besides those that
    /// are [ahead](Self::ahead) of it already. As many as the shares let them, at most.
    #[must_use]
    pub fn expected_ahead(
        &self,
        tenant: &TenantName,
        place: Place,
        joined: Joined,
        now: Mono,
        horizon: Duration,
    ) -> usize {
        if place.class == Class::Expedited || !self.fairness.shared {
            return 0;
        }
        let rank = self.of(tenant).map_or(0, |lanes| lanes.rank(place, joined, self.fairness.handicap));
        let with = self.others_before(tenant, Tier::Ordinary, rank, |lanes, room| {
            if room == 0 { 0 } else { lanes.arrivals.expected(now, horizon) }
        });
        with - self.others_before(tenant, Tier::Ordinary, rank, |_, _| 0)
    }

    /// For how many expedited devices still to come the appointment of a device of `class` with so many before it allows.
    #[must_use]
    pub fn reserve(&self, class: Class, ahead: usize) -> usize {
        let share = usize::try_from(self.urgent_gain()).unwrap_or(0);
        if class == Class::Expedited { 0 } else { (ahead.saturating_mul(share) / 100).min(URGENT_RESERVE) }
    }

    /// How many go before a device that has so many of its own tier before it.
    fn with_other_tier(&self, tier: Tier, in_tier: usize) -> usize {
        let in_tier = in_tier as u64;
        let (gain, cost) = (self.urgent_gain(), self.urgent_cost());
        let between = match tier {
            Tier::Ordinary => (self.waiting[Tier::Urgent as usize] as u64).min((self.credit + in_tier * gain) / cost),
            Tier::Urgent => {
                let lacking = ((in_tier + 1) * cost).saturating_sub(self.credit);
                (self.waiting[Tier::Ordinary as usize] as u64).min(lacking.div_ceil(gain))
            }
        };
        usize::try_from(in_tier + between).unwrap_or(usize::MAX)
    }

    /// Where a tenant stands, or would if a device of it joined: it has saved nothing up while it was away.
    fn pass(&self, lanes: &TenantLanes, tier: Tier) -> u64 {
        let pass = lanes.pass[tier as usize];
        if lanes.waiting(tier) == 0 { pass.max(self.present[tier as usize]) } else { pass }
    }

    /// Devices of other tenants that go before the `rank`-th one (from 0) of `tenant`: those whose pass is smaller by then. `more` says
    /// how many wait besides those that do, given for how many there is room.
    fn others_before(
        &self,
        tenant: &TenantName,
        tier: Tier,
        rank: usize,
        more: impl Fn(&TenantLanes, usize) -> usize,
    ) -> usize {
        let own = self.numbers.get(tenant).copied();
        let (own_pass, own_stride) = own.map_or_else(
            || (self.present[tier as usize], stride(&self.fairness, tenant)),
            |number| (self.pass(&self.tenants[number], tier), self.tenants[number].stride),
        );
        let own_pass = own_pass + rank as u64 * own_stride;
        // At the same pass the tenants go in the order in which they were first seen.
        let own = own.unwrap_or(usize::MAX);
        let others = self.tenants.iter().enumerate().filter(|&(number, _)| number != own);
        let before = others.map(|(number, lanes)| {
            let Some(distance) = own_pass.checked_sub(self.pass(lanes, tier)) else { return 0 };
            let tie = u64::from(distance.is_multiple_of(lanes.stride) && number < own);
            let turns = usize::try_from(distance.div_ceil(lanes.stride) + tie).unwrap_or(usize::MAX);
            let waiting = lanes.waiting(tier).min(turns);
            waiting + more(lanes, turns - waiting).min(turns - waiting)
        });
        before.sum()
    }
}

fn weight(fairness: &Fairness, tenant: &TenantName) -> u32 {
    fairness.weights.get(tenant).copied().unwrap_or(1).clamp(1, 1000)
}

fn stride(fairness: &Fairness, tenant: &TenantName) -> u64 {
    STRIDE / u64::from(weight(fairness, tenant))
}
