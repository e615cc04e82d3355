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
        let waiting = Waiting { id, job: JobKind::Register, joined, appointment: None };
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

/// Everybody who waits departs; whose device each was.
fn drain(filled: &mut Filled) -> Vec<(TenantName, Place)> {
    std::iter::from_fn(|| filled.depart()).collect()
}

fn first(sequence: u64) -> Place {
    Place { class: Class::First, sequence }
}

#[test]
fn what_was_told_is_kept_whatever_stands_before_it() {
    let mut filled = Filled::new(&[]);
    for sequence in 0..=300 {
        filled.join("a", Class::First, 0);
        filled.lanes.appoint(&tenant("a"), first(sequence), usize::try_from(sequence).unwrap());
    }
    let gone: Vec<_> = (0..128).map(|_| filled.lanes.depart(&filled.lanes.front().unwrap()).unwrap()).collect();
    // The first one comes back, long after its neighbours have gone, and one that was told nothing stands before all.
    filled.lanes.insert(&tenant("a"), first(0), &gone[0]);
    for _ in 0..100 {
        filled.join("b", Class::First, 0);
        let sequence = filled.next[1] - 1;
        let after = filled.lanes.first_free(0);
        filled.lanes.appoint(&tenant("b"), first(sequence), after);
    }
    // As urgent as the one that has to go next.
    assert_eq!(filled.lanes.appointment(&tenant("a"), first(0)), Some(1), "its appointment came back with it");
    let order = drain(&mut filled);
    let first_b = order.iter().position(|(name, _)| *name == tenant("b")).unwrap();
    assert_eq!((first_b, order.len()), (174, 274), "those of a who were told to go first went first");
    assert_eq!(filled.lanes.first_free(0), 0, "no appointment is left of those who have gone");
}

#[test]
fn older_places_that_come_back_by_the_hundred_keep_and_end_their_appointments() {
    let mut filled = Filled::new(&[]);
    let waiting = |sequence: u64| {
        let id = RegistrationId::parse(&format!("a-{sequence}")).unwrap();
        Waiting { id, job: JobKind::Register, joined: 0, appointment: None }
    };
    for sequence in (1000..1128).chain((0..300).rev()) {
        filled.lanes.insert(&tenant("a"), first(sequence), &waiting(sequence));
        filled.lanes.appoint(&tenant("a"), first(sequence), 500);
    }
    assert_eq!(filled.lanes.first_free(0), 0);
    assert_eq!(filled.lanes.appointment(&tenant("a"), first(1000)), Some(500));
    assert_eq!(drain(&mut filled).len(), 428);
    assert_eq!((filled.lanes.appointments.by(10_000), filled.lanes.first_free(0)), (0, 0));
}

#[test]
fn of_appointments_that_were_missed_each_is_told_its_own_place() {
    let mut filled = Filled::new(&[]);
    for sequence in 0..50 {
        filled.join("a", Class::First, 0);
        filled.lanes.appoint(&tenant("a"), first(sequence), 0);
    }
    // Only one can go next. The others have to wait for those as urgent as they are.
    let told = filled.lanes.appointment(&tenant("a"), first(7)).unwrap();
    assert_eq!((told, filled.lanes.first_free(0)), (49, 50));
}

#[test]
fn a_tenant_that_went_ahead_of_its_turn_owes_nothing_once_the_line_was_empty() {
    let mut filled = Filled::new(&[]);
    for sequence in 0..200 {
        filled.join("a", Class::First, 0);
        filled.lanes.appoint(&tenant("a"), first(sequence), usize::try_from(sequence).unwrap());
    }
    filled.join("b", Class::First, 0);
    assert_eq!(drain(&mut filled).last().unwrap().0, tenant("b"));
    for _ in 0..100 {
        filled.join("a", Class::First, 9);
        filled.join("c", Class::First, 9);
    }
    let order = drain(&mut filled);
    let of_a = order[..100].iter().filter(|(name, _)| *name == tenant("a")).count();
    assert_eq!(of_a, 50);
}
