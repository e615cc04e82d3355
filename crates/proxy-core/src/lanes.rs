//! The lanes of one line, a lane per tenant and class, and whose turn it is among them.
//!
//! Three rules, from the outside in:
//! 1. **Urgent and ordinary.** Expedited devices go first, but take no more than a configured share of the departures while
//!    ordinary ones wait, so that ordinary appointments hold. A few of the share are saved up, so that one alone goes at once.
//! 2. **Tenants** share by weight, by stride scheduling: each departure moves its tenant's pass on by `1 / weight`, and the tenant
//!    with the smallest pass is next. A tenant that had nobody waiting joins at the present pass: it saves nothing up.
//! 3. **Classes** of one tenant are ordered by when a device joined, plus a handicap per class: a device of a later class goes
//!    before one of an earlier class that joined more than the handicap after it. So nobody starves.
//!
//! Invariants:
//! - Within a lane places depart in the order of their sequence numbers.
//! - [`Lanes::ahead`] is what then happens, if nobody else joins: the same arithmetic, without walking the line.
//! - A lane whose first place is still being written yields to the others.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{RegistrationId, TenantName};
use crate::lane::{Errand, Front, Joined, Lane, Sequence, Waiting};

/// Which lane of its tenant a place is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Moved ahead by an operator.
    Expedited,
    /// A device without an assignment.
    First,
    /// A device that has an assignment and asks for another, or whose assignment was contradicted.
    Reprovision,
    /// Nobody at the door: a backend or an operator wants the assignment confirmed.
    Background,
}

impl Class {
    /// All of them, in order of departure.
    pub const ALL: [Self; 4] = [Self::Expedited, Self::First, Self::Reprovision, Self::Background];
    const ORDINARY: [Self; 3] = [Self::First, Self::Reprovision, Self::Background];

    fn tier(self) -> Tier {
        if self == Self::Expedited { Tier::Urgent } else { Tier::Ordinary }
    }
}

/// A place in the line of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The class.
    pub class: Class,
    /// The number, unique within the class.
    pub sequence: Sequence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    Urgent,
    Ordinary,
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
}

/// Expedited devices that may go in a row after a time without any.
const URGENT_BURST: u64 = 10;

/// Expedited devices still to come that an ordinary appointment allows for, as far as their share lets them.
const URGENT_RESERVE: usize = 25;

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
    pub errand: Errand,
}

#[derive(Debug, Default)]
struct TenantLanes {
    stride: u64,
    lanes: [Lane; 4],
    pass: [u64; 2],
}

impl TenantLanes {
    fn lane(&self, class: Class) -> &Lane {
        &self.lanes[class as usize]
    }

    fn waiting(&self, tier: Tier) -> usize {
        match tier {
            Tier::Urgent => self.lane(Class::Expedited).len(),
            Tier::Ordinary => Class::ORDINARY.iter().map(|class| self.lane(*class).len()).sum(),
        }
    }

    /// The device of this tenant that is next in `tier`, if one may go.
    fn front(&self, tier: Tier, handicap: Joined) -> Option<(Class, Front)> {
        let ready = |class: Class| self.lane(class).front().filter(|front| front.confirmed).map(|front| (class, front));
        match tier {
            Tier::Urgent => ready(Class::Expedited),
            Tier::Ordinary => Class::ORDINARY
                .into_iter()
                .filter_map(ready)
                .min_by_key(|(class, front)| (aged(*class, front.joined, handicap), *class)),
        }
    }

    /// How many of this tenant's devices in the same tier go before the one at `place`, which joined at `joined`.
    fn rank(&self, place: Place, joined: Joined, handicap: Joined) -> usize {
        let own = self.lane(place.class).rank(place.sequence);
        if place.class == Class::Expedited {
            return own;
        }
        let moment = aged(place.class, joined, handicap);
        let others = Class::ORDINARY.into_iter().filter(|class| *class != place.class);
        let ahead = others.map(|class| {
            // At the same moment the earlier class goes first.
            let tie = u64::from(class < place.class);
            let before = (moment + tie).saturating_sub(aged(class, 0, handicap));
            self.lane(class).joined_before(Joined::try_from(before).unwrap_or(Joined::MAX))
        });
        own + ahead.sum::<usize>()
    }
}

/// When a device of `class` counts as having joined.
fn aged(class: Class, joined: Joined, handicap: Joined) -> u64 {
    u64::from(joined) + u64::from(handicap) * (class as u64).saturating_sub(Class::First as u64)
}

/// All lanes of one line. See the module for the rules.
#[derive(Debug)]
pub struct Lanes {
    fairness: Fairness,
    tenants: BTreeMap<TenantName, TenantLanes>,
    /// The pass of the last departure, per tier.
    present: [u64; 2],
    /// What expedited devices have saved up, in per cent of a departure.
    credit: u64,
}

impl Lanes {
    /// Empty lanes.
    #[must_use]
    pub fn new(fairness: Fairness) -> Self {
        let credit = URGENT_BURST * u64::from(100 - fairness.urgent_share_percent.min(99));
        Self { fairness, tenants: BTreeMap::new(), present: [0, 0], credit }
    }

    /// Changes the rules from now on. Places are untouched.
    pub fn configure(&mut self, fairness: Fairness) {
        self.fairness = fairness;
        for (tenant, lanes) in &mut self.tenants {
            lanes.stride = stride(&self.fairness, tenant);
        }
        self.credit = self.credit.min(URGENT_BURST * self.urgent_cost());
    }

    fn urgent_gain(&self) -> u64 {
        u64::from(self.fairness.urgent_share_percent.clamp(1, 99))
    }

    fn urgent_cost(&self) -> u64 {
        100 - self.urgent_gain()
    }

    /// Devices that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting(Tier::Urgent) + self.waiting(Tier::Ordinary)
    }

    /// Expedited devices that wait.
    #[must_use]
    pub fn expedited(&self) -> usize {
        self.waiting(Tier::Urgent)
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn waiting(&self, tier: Tier) -> usize {
        self.tenants.values().map(|lanes| lanes.waiting(tier)).sum()
    }

    /// The tenants that have devices waiting, and how many.
    pub fn tenants(&self) -> impl Iterator<Item = (&TenantName, usize)> {
        let of = |lanes: &TenantLanes| lanes.waiting(Tier::Urgent) + lanes.waiting(Tier::Ordinary);
        self.tenants.iter().map(move |(tenant, lanes)| (tenant, of(lanes))).filter(|(_, waiting)| *waiting > 0)
    }

    /// Puts a device at `place`.
    pub fn insert(&mut self, tenant: &TenantName, place: Place, waiting: &Waiting) {
        let tier = place.class.tier();
        if !self.tenants.contains_key(tenant) {
            let lanes = TenantLanes { stride: stride(&self.fairness, tenant), ..TenantLanes::default() };
            self.tenants.insert(tenant.clone(), lanes);
        }
        let Some(lanes) = self.tenants.get_mut(tenant) else { return };
        if lanes.waiting(tier) == 0 {
            let pass = &mut lanes.pass[tier as usize];
            *pass = (*pass).max(self.present[tier as usize]);
        }
        lanes.lanes[place.class as usize].insert(place.sequence, waiting);
    }

    /// The record of the place is durable: it may go.
    pub fn confirm(&mut self, tenant: &TenantName, place: Place) {
        if let Some(lanes) = self.tenants.get_mut(tenant) {
            lanes.lanes[place.class as usize].confirm(place.sequence);
        }
    }

    /// Takes a place out that does not depart.
    pub fn remove(&mut self, tenant: &TenantName, place: Place) -> Option<Waiting> {
        self.tenants.get_mut(tenant)?.lanes[place.class as usize].remove(place.sequence)
    }

    /// Since when the device at `place` waits.
    #[must_use]
    pub fn joined(&self, tenant: &TenantName, place: Place) -> Option<Joined> {
        self.tenants.get(tenant)?.lane(place.class).joined(place.sequence)
    }

    /// The first confirmed devices of all lanes, lane by lane, at most `most`.
    #[must_use]
    pub fn first(&self, most: usize) -> Vec<RegistrationId> {
        let lanes = self.tenants.values().flat_map(|lanes| &lanes.lanes);
        lanes.flat_map(|lane| lane.first(most)).map(|(_, id)| id).take(most).collect()
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
        let ready = self.tenants.iter().filter_map(|(tenant, lanes)| {
            let (class, front) = lanes.front(tier, self.fairness.handicap)?;
            Some((lanes.pass[tier as usize], tenant, class, front))
        });
        let (_, tenant, class, front) = ready.min_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)))?;
        let place = Place { class, sequence: front.sequence };
        Some(Turn { tenant: tenant.clone(), place, errand: front.errand })
    }

    /// Takes the device whose turn it is out.
    pub fn depart(&mut self, turn: &Turn) -> Option<Waiting> {
        let tier = turn.place.class.tier();
        let lanes = self.tenants.get_mut(&turn.tenant)?;
        let waiting = lanes.lanes[turn.place.class as usize].remove(turn.place.sequence)?;
        let pass = &mut lanes.pass[tier as usize];
        self.present[tier as usize] = self.present[tier as usize].max(*pass);
        *pass += lanes.stride;
        match tier {
            Tier::Ordinary => {
                let most = URGENT_BURST * self.urgent_cost();
                self.credit = (self.credit + self.urgent_gain()).min(most);
            }
            Tier::Urgent if self.waiting(Tier::Ordinary) > 0 => {
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
        let rank = self.tenants.get(tenant).map_or(0, |lanes| lanes.rank(place, joined, self.fairness.handicap));
        self.ahead_of_rank(tenant, place.class.tier(), rank)
    }

    /// For how many expedited devices still to come the appointment of a device of `class` with so many before it allows.
    #[must_use]
    pub fn reserve(&self, class: Class, ahead: usize) -> usize {
        let share = usize::try_from(self.urgent_gain()).unwrap_or(0);
        if class == Class::Expedited { 0 } else { (ahead.saturating_mul(share) / 100).min(URGENT_RESERVE) }
    }

    /// How many devices go before `part` of a tenant's devices have gone (0 to 1; 1 is its last one). `None` if none waits.
    #[must_use]
    pub fn ahead_of_part(&self, tenant: &TenantName, part: f64) -> Option<usize> {
        let lanes = self.tenants.get(tenant)?;
        let tiers = [Tier::Urgent, Tier::Ordinary].into_iter();
        let counted = tiers.filter_map(|tier| {
            let last = lanes.waiting(tier).checked_sub(1)?;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a length that fits")]
            let rank = (last as f64 * part.clamp(0.0, 1.0)) as usize;
            Some(self.ahead_of_rank(tenant, tier, rank))
        });
        counted.max()
    }

    fn ahead_of_rank(&self, tenant: &TenantName, tier: Tier, rank: usize) -> usize {
        let in_tier = (rank + self.others_before(tenant, tier, rank)) as u64;
        let (gain, cost) = (self.urgent_gain(), self.urgent_cost());
        let between = match tier {
            Tier::Ordinary => (self.waiting(Tier::Urgent) as u64).min((self.credit + in_tier * gain) / cost),
            Tier::Urgent => {
                let lacking = ((in_tier + 1) * cost).saturating_sub(self.credit);
                (self.waiting(Tier::Ordinary) as u64).min(lacking.div_ceil(gain))
            }
        };
        usize::try_from(in_tier + between).unwrap_or(usize::MAX)
    }

    /// Devices of other tenants that go before the `rank`-th one (from 0) of `tenant`: those whose pass is smaller by then.
    fn others_before(&self, tenant: &TenantName, tier: Tier, rank: usize) -> usize {
        let (own_pass, own_stride) = self
            .tenants
            .get(tenant)
            .filter(|lanes| lanes.waiting(tier) > 0)
            .map_or((self.present[tier as usize], stride(&self.fairness, tenant)), |lanes| {
                (lanes.pass[tier as usize], lanes.stride)
            });
        let own = own_pass + rank as u64 * own_stride;
        let others = self.tenants.iter().filter(|(name, _)| *name != tenant);
        let before = others.map(|(name, lanes)| {
            let Some(distance) = own.checked_sub(lanes.pass[tier as usize]) else { return 0 };
            // At the same pass the tenants go in the order of their names.
            let tie = u64::from(distance.is_multiple_of(lanes.stride) && name < tenant);
            let turns = distance.div_ceil(lanes.stride) + tie;
            lanes.waiting(tier).min(usize::try_from(turns).unwrap_or(usize::MAX))
        });
        before.sum()
    }
}

fn stride(fairness: &Fairness, tenant: &TenantName) -> u64 {
    STRIDE / u64::from(fairness.weights.get(tenant).copied().unwrap_or(1).clamp(1, 1000))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(name: &str) -> TenantName {
        TenantName::parse(name).unwrap()
    }

    fn fairness(weights: &[(&str, u32)]) -> Fairness {
        let weights = weights.iter().map(|(name, weight)| (tenant(name), *weight)).collect();
        Fairness { urgent_share_percent: 10, handicap: 600, weights }
    }

    /// Fills lanes and remembers what was put in.
    struct Filled {
        lanes: Lanes,
        next: [u64; 4],
        places: Vec<(TenantName, Place, Joined)>,
    }

    impl Filled {
        fn new(weights: &[(&str, u32)]) -> Self {
            Self { lanes: Lanes::new(fairness(weights)), next: [0; 4], places: Vec::new() }
        }

        fn join(&mut self, name: &str, class: Class, joined: Joined) {
            let place = Place { class, sequence: self.next[class as usize] };
            self.next[class as usize] += 1;
            let id = RegistrationId::parse(&format!("{name}-{}-{}", class as u8, place.sequence)).unwrap();
            let waiting = Waiting { id, errand: Errand::Register, confirmed: true, joined };
            self.lanes.insert(&tenant(name), place, &waiting);
            self.places.push((tenant(name), place, joined));
        }

        fn depart(&mut self) -> Option<(TenantName, Place)> {
            let turn = self.lanes.front()?;
            self.lanes.depart(&turn).unwrap();
            Some((turn.tenant, turn.place))
        }
    }

    #[test]
    fn a_tenant_with_a_hundred_times_the_devices_pushes_nobody_beyond_his_share() {
        let mut filled = Filled::new(&[]);
        for _ in 0..1000 {
            filled.join("huge", Class::First, 0);
        }
        for _ in 0..10 {
            filled.join("small", Class::First, 50);
        }
        let order: Vec<TenantName> = std::iter::from_fn(|| filled.depart()).map(|(tenant, _)| tenant).collect();
        let last_small = order.iter().rposition(|name| *name == tenant("small")).unwrap();
        assert!(last_small <= 20, "{last_small}");
    }

    #[test]
    fn tenants_share_by_weight() {
        let mut filled = Filled::new(&[("gold", 3)]);
        for _ in 0..400 {
            filled.join("gold", Class::First, 0);
            filled.join("iron", Class::First, 0);
        }
        let gold = (0..400).filter_map(|_| filled.depart()).filter(|(name, _)| *name == tenant("gold")).count();
        assert_eq!(gold, 300);
    }

    #[test]
    fn a_tenant_that_was_away_has_saved_nothing_up() {
        let mut filled = Filled::new(&[]);
        for _ in 0..300 {
            filled.join("early", Class::First, 0);
        }
        for _ in 0..200 {
            filled.depart();
        }
        for _ in 0..100 {
            filled.join("late", Class::First, 9);
        }
        let late = (0..100).filter_map(|_| filled.depart()).filter(|(name, _)| *name == tenant("late")).count();
        assert_eq!(late, 50);
    }

    #[test]
    fn expedited_devices_go_at_once_and_many_of_them_take_their_share_only() {
        let mut filled = Filled::new(&[]);
        for _ in 0..1000 {
            filled.join("t", Class::First, 0);
        }
        filled.join("t", Class::Expedited, 500);
        assert_eq!(filled.depart().unwrap().1.class, Class::Expedited);
        for _ in 0..300 {
            filled.join("t", Class::Expedited, 500);
        }
        let urgent = (0..1000).filter_map(|_| filled.depart()).filter(|(_, place)| place.class == Class::Expedited);
        let urgent = urgent.count();
        assert!((100..=110).contains(&urgent), "{urgent}");
    }

    #[test]
    fn a_later_class_waits_for_its_handicap_and_no_longer() {
        let mut filled = Filled::new(&[]);
        filled.join("t", Class::Background, 0);
        filled.join("t", Class::Reprovision, 0);
        for joined in [599, 600, 601, 1200, 1201] {
            filled.join("t", Class::First, joined);
        }
        let order: Vec<(Class, u64)> =
            std::iter::from_fn(|| filled.depart()).map(|(_, place)| (place.class, place.sequence)).collect();
        let (first, second, third) = (Class::First, Class::Reprovision, Class::Background);
        assert_eq!(order, [(first, 0), (first, 1), (second, 0), (first, 2), (first, 3), (third, 0), (first, 4)]);
    }

    fn join() -> impl Strategy<Value = (usize, usize, u32)> {
        (0usize..4, prop::sample::select(vec![0usize, 1, 1, 1, 1, 2, 3]), 0u32..200)
    }

    proptest! {
        /// What every place was told is what then happens: the forecast is exact as long as nobody joins.
        #[test]
        fn the_places_ahead_are_those_that_go_before(
            joins in prop::collection::vec(join(), 1..300), gone in 0usize..200, weight in 1u32..9
        ) {
            let names = ["a", "b", "c", "d"];
            let mut filled = Filled::new(&[("b", weight), ("c", 2)]);
            let (before, after) = joins.split_at(joins.len() / 2);
            let mut joined = 0;
            for (name, class, gap) in before {
                joined += gap;
                filled.join(names[*name], Class::ALL[*class], joined);
            }
            for _ in 0..gone.min(before.len()) {
                let (tenant, place) = filled.depart().unwrap();
                filled.places.retain(|(name, other, _)| !(*name == tenant && *other == place));
            }
            for (name, class, gap) in after {
                joined += gap;
                filled.join(names[*name], Class::ALL[*class], joined);
            }
            let told: BTreeMap<Place, usize> = filled.places.iter()
                .map(|(name, place, joined)| (*place, filled.lanes.ahead(name, *place, *joined))).collect();
            let mut departed = 0;
            while let Some((_, place)) = filled.depart() {
                prop_assert_eq!(told[&place], departed, "{:?}", place);
                departed += 1;
            }
            prop_assert_eq!(departed, told.len());
        }
    }
}
