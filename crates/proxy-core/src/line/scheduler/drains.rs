//! When the devices of every tenant are done, all tenants in one sweep: O(tenants · log tenants), however many devices wait.
//!
//! A tenant's devices go evenly between two passes: where it stands now, and that many strides later. So the number of departures up to
//! any pass is a sum of ramps, and one walk over their ends, in order, answers for all tenants. It differs from
//! [`FairScheduler::ahead`] by less than one device of each other tenant, which a forecast for people does not show.

use super::tenant::TenantLanes;
use super::{Class, FairScheduler, Tier};
use crate::ids::TenantName;

/// How many devices go before half and before the last of a tenant's devices have gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// Whose.
    pub tenant: TenantName,
    /// Its devices that wait.
    pub waiting: usize,
    /// Departures before half of them have gone.
    pub half: usize,
    /// Departures before the last one goes.
    pub all: usize,
}

/// Something on the way from the smallest pass to the largest.
#[derive(Debug, Clone, Copy)]
enum Mark {
    /// From here on a tenant has a departure every so many passes.
    Begins { per_pass: f64 },
    /// And from here on not any more.
    Ends { per_pass: f64 },
    /// Half of a tenant's devices, or all but the last one, have gone here: which tenant, and which of the two.
    Asked { number: usize, all: bool },
}

impl FairScheduler {
    /// The tenants that have devices waiting, in the order of their names, with [`Drain`]s that hold if nobody else joins.
    #[must_use]
    pub fn drains(&self) -> Vec<Drain> {
        let (urgent, ordinary) = (self.in_tier(Tier::Urgent), self.in_tier(Tier::Ordinary));
        let drain = |(tenant, &number): (&TenantName, &usize)| {
            let tiers = [(Tier::Urgent, urgent[number]), (Tier::Ordinary, ordinary[number])];
            let here = tiers.into_iter().filter(|(tier, _)| self.tenants[number].waiting(*tier) > 0);
            let here = here.map(|(tier, ends)| (tier, self.as_appointed(number, tier).unwrap_or(ends)));
            let ends = here.map(|(tier, ends)| ends.map(|in_tier| self.with_other_tier(tier, in_tier)));
            let [half, all] = ends.reduce(|one, other| [one[0].max(other[0]), one[1].max(other[1])])?;
            let waiting = [Tier::Urgent, Tier::Ordinary].map(|tier| self.tenants[number].waiting(tier)).iter().sum();
            Some(Drain { tenant: tenant.clone(), waiting, half, all })
        };
        self.numbers.iter().filter_map(drain).collect()
    }

    /// The same for a tenant whose devices have appointments: whoever has an earlier one goes first. It holds where the calendar is full,
    /// and else differs by what appointments allow for.
    fn as_appointed(&self, number: usize, tier: Tier) -> Option<[usize; 2]> {
        let lanes = &self.tenants[number];
        let lane = lanes.lane(Class::First);
        let last = lane.len().checked_sub(1).filter(|_| tier == Tier::Ordinary && lane.len() == lanes.waiting(tier))?;
        let before = |rank| Some(self.appointments.by(lane.appointment_at(rank)?).saturating_sub(1));
        let (half, all) = (before(last / 2)?, before(last)?);
        Some([half, all.max(half)])
    }

    /// By number of the tenant: departures of this tier before half of its devices have gone, and before the last one.
    fn in_tier(&self, tier: Tier) -> Vec<[usize; 2]> {
        let mut marks: Vec<(f64, Mark)> = Vec::with_capacity(4 * self.tenants.len());
        for (number, lanes) in self.tenants.iter().enumerate() {
            let Some(last) = lanes.waiting(tier).checked_sub(1) else { continue };
            let at = |rank: usize| self.distance(lanes, tier) + rank as f64 * lanes.stride as f64;
            let per_pass = 1.0 / lanes.stride as f64;
            marks.push((at(0), Mark::Begins { per_pass }));
            marks.push((at(last / 2), Mark::Asked { number, all: false }));
            marks.push((at(last), Mark::Asked { number, all: true }));
            marks.push((at(last + 1), Mark::Ends { per_pass }));
        }
        marks.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let mut found = vec![[0; 2]; self.tenants.len()];
        let (mut gone, mut per_pass, mut on_the_way, mut before) = (0.0, 0.0, 0_i32, 0.0);
        for (at, mark) in marks {
            gone += per_pass * (at - before);
            before = at;
            match mark {
                Mark::Begins { per_pass: one } => (per_pass, on_the_way) = (per_pass + one, on_the_way + 1),
                Mark::Ends { per_pass: one } => (per_pass, on_the_way) = (per_pass - one, on_the_way - 1),
                Mark::Asked { number, all } => {
                    // Of each other tenant that has not ended, half a departure more on average: they go one by one.
                    let others = 0.5 * f64::from((on_the_way - 1).max(0));
                    #[expect(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "a count, not negative"
                    )]
                    let departures = (gone + others).round() as usize;
                    found[number][usize::from(all)] = departures;
                }
            }
        }
        found
    }

    /// How far a tenant is ahead of the last departure: small numbers, which a float holds exactly.
    fn distance(&self, lanes: &TenantLanes, tier: Tier) -> f64 {
        let (pass, present) = (self.pass(lanes, tier), self.present[tier as usize]);
        if pass >= present { (pass - present) as f64 } else { -((present - pass) as f64) }
    }
}
