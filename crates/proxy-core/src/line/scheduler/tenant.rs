//! The lanes of one tenant, and where it stands among the others.

use std::collections::BTreeMap;

use super::arrivals::Arrivals;
use super::{Class, Place, Tier};
use crate::ids::TenantName;
use crate::line::lane::{DepartureNumber, Front, Joined, Lane};

#[derive(Debug)]
pub(super) struct TenantLanes {
    pub(super) name: TenantName,
    pub(super) stride: u64,
    pub(super) lanes: [Lane; 4],
    /// By tier.
    pub(super) pass: [u64; 2],
    /// By tier, the pass with which it is listed as ready.
    pub(super) ready_at: [Option<u64>; 2],
    /// The appointments of its ordinary devices that wait, and how many have each: they need not be in the order of the places.
    pub(super) appointed: BTreeMap<DepartureNumber, u32>,
    /// The earliest of them, as it is listed.
    pub(super) due_at: Option<DepartureNumber>,
    /// How fast its devices join.
    pub(super) arrivals: Arrivals,
}

impl TenantLanes {
    pub(super) fn new(name: TenantName, stride: u64) -> Self {
        let (lanes, arrivals) = (<[Lane; 4]>::default(), Arrivals::default());
        Self {
            name,
            stride,
            lanes,
            pass: [0; 2],
            ready_at: [None; 2],
            appointed: BTreeMap::new(),
            due_at: None,
            arrivals,
        }
    }

    pub(super) fn lane(&self, class: Class) -> &Lane {
        &self.lanes[class as usize]
    }

    pub(super) fn waiting(&self, tier: Tier) -> usize {
        match tier {
            Tier::Urgent => self.lane(Class::Expedited).len(),
            Tier::Ordinary => Class::ORDINARY.iter().map(|class| self.lane(*class).len()).sum(),
        }
    }

    /// The device of this tenant that is next in `tier`, if one may go.
    pub(super) fn front(&self, tier: Tier, handicap: Joined) -> Option<(Class, Front)> {
        let ready = |class: Class| self.lane(class).front();
        if tier == Tier::Urgent {
            return ready(Class::Expedited).map(|front| (Class::Expedited, front));
        }
        // Asked with every event of a line: a loop, because the chain of iterators that says the same takes twice as long.
        let mut first: Option<(u64, Class, Front)> = None;
        for class in Class::ORDINARY {
            let Some(front) = ready(class) else { continue };
            let since = aged(class, front.joined, handicap);
            // At the same moment the earlier class goes first.
            if first.is_none_or(|(earliest, ..)| since < earliest) {
                first = Some((since, class, front));
            }
        }
        first.map(|(_, class, front)| (class, front))
    }

    /// One of its ordinary devices has an appointment.
    pub(super) fn appoint(&mut self, departure: DepartureNumber) {
        *self.appointed.entry(departure).or_default() += 1;
    }

    /// One that had this appointment waits no more.
    pub(super) fn end_appointment(&mut self, departure: DepartureNumber) {
        if let Some(count) = self.appointed.get_mut(&departure) {
            *count -= 1;
            if *count == 0 {
                self.appointed.remove(&departure);
            }
        }
    }

    /// How many of this tenant's devices in the same tier go before the one at `place`, which joined at `joined`.
    pub(super) fn rank(&self, place: Place, joined: Joined, handicap: Joined) -> usize {
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
