//! What happened within the last minute, counted in steps of five seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::TenantName;
use rate_control::time::Mono;

const STEP: Duration = Duration::from_secs(5);
const STEPS: u64 = 12;

/// How often something happened within the last minute, give or take a step.
#[derive(Debug, Clone, Default)]
struct MinuteCount {
    steps: [u32; STEPS as usize],
    /// The number of the step that was counted in last.
    newest: u64,
}

impl MinuteCount {
    fn step(now: Mono) -> u64 {
        now.as_nanos() / u64::try_from(STEP.as_nanos()).unwrap_or(u64::MAX)
    }

    fn count(&mut self, now: Mono) {
        let step = Self::step(now).max(self.newest);
        for gone in self.newest + 1..=step.min(self.newest + STEPS) {
            self.steps[(gone % STEPS) as usize] = 0;
        }
        self.newest = step;
        self.steps[(step % STEPS) as usize] += 1;
    }

    fn at(&self, now: Mono) -> u32 {
        let step = Self::step(now);
        let within = |back: &u64| step.saturating_sub(self.newest) + back < STEPS && *back <= self.newest;
        (0..STEPS).filter(within).map(|back| self.steps[((self.newest - back) % STEPS) as usize]).sum()
    }
}

/// Registrations that left and devices that were assigned within the last minute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LastMinute {
    /// Registrations that left for DPS.
    pub left: u32,
    /// Devices that were assigned.
    pub assigned: u32,
}

impl LastMinute {
    /// Whether nothing happened.
    #[must_use]
    pub const fn is_quiet(self) -> bool {
        self.left == 0 && self.assigned == 0
    }
}

#[derive(Debug, Default)]
struct Counts {
    left: MinuteCount,
    assigned: MinuteCount,
}

impl Counts {
    fn at(&self, now: Mono) -> LastMinute {
        LastMinute { left: self.left.at(now), assigned: self.assigned.at(now) }
    }
}

/// What happened lately at one instance, for all tenants and for each.
#[derive(Debug, Default)]
pub(super) struct Recent {
    all: Counts,
    /// Those that did something since the line was made; as many as there are tenants at most.
    tenants: BTreeMap<TenantName, Counts>,
}

impl Recent {
    /// A registration of `tenant` leaves.
    pub(super) fn left(&mut self, tenant: &TenantName, now: Mono) {
        self.all.left.count(now);
        self.of(tenant).left.count(now);
    }

    /// A device of `tenant` was assigned.
    pub(super) fn assigned(&mut self, tenant: &TenantName, now: Mono) {
        self.all.assigned.count(now);
        self.of(tenant).assigned.count(now);
    }

    fn of(&mut self, tenant: &TenantName) -> &mut Counts {
        if !self.tenants.contains_key(tenant) {
            self.tenants.insert(tenant.clone(), Counts::default());
        }
        self.tenants.get_mut(tenant).expect("it was just put there")
    }

    /// The sum over all tenants.
    pub(super) fn all(&self, now: Mono) -> LastMinute {
        self.all.at(now)
    }

    /// The tenants that were not quiet.
    pub(super) fn tenants(&self, now: Mono) -> impl Iterator<Item = (&TenantName, LastMinute)> {
        let at = move |(tenant, counts): (_, &Counts)| (tenant, counts.at(now));
        self.tenants.iter().map(at).filter(|(_, lately)| !lately.is_quiet())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn a_minute_later_nothing_of_it_counts() {
        let mut count = MinuteCount::default();
        assert_eq!(count.at(at(0)), 0);
        for second in 100..220 {
            count.count(at(second));
        }
        assert!((55..=60).contains(&count.at(at(219))), "{}", count.at(at(219)));
        assert!((25..=30).contains(&count.at(at(249))), "{}", count.at(at(249)));
        assert_eq!(count.at(at(280)), 0);
        count.count(at(10_000));
        assert_eq!(count.at(at(10_000)), 1);
    }
}
