//! What the lanes promise, and that their forecast is what then happens.

use proptest::prelude::*;

use super::*;
use crate::ids::RegistrationId;

fn tenant(name: &str) -> TenantName {
    TenantName::parse(name).unwrap()
}

fn fairness(weights: &[(&str, u32)]) -> Fairness {
    let weights = weights.iter().map(|(name, weight)| (tenant(name), *weight)).collect();
    Fairness { urgent_share_percent: 10, handicap: 600, weights, shared: true }
}

/// Fills lanes and remembers what was put in.
struct Filled {
    lanes: FairScheduler,
    next: [u64; 4],
    places: Vec<(TenantName, Place, Joined)>,
}

impl Filled {
    fn new(weights: &[(&str, u32)]) -> Self {
        Self { lanes: FairScheduler::new(fairness(weights)), next: [0; 4], places: Vec::new() }
    }

    fn join(&mut self, name: &str, class: Class, joined: Joined) {
        let place = Place { class, sequence: self.next[class as usize] };
        self.next[class as usize] += 1;
        let id = RegistrationId::parse(&format!("{name}-{}-{}", class as u8, place.sequence)).unwrap();
        let waiting = Waiting { id, job: JobKind::Register, confirmed: true, joined };
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
