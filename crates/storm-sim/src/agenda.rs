//! What is planned to happen, in order of time; at the same moment in the order of planning.
//!
//! A binary heap of a million entries misses the cache at every step. So only what is planned for the second that is under way, while it
//! is, is in a heap; what is planned for later seconds lies unsorted until its second comes, and is then sorted once. First knocks are
//! known in their order beforehand, and are read from their list.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use rate_control::time::Mono;

use crate::fleet::Newcomer;

/// Something that happens. Devices and instances are numbers from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// A device asks.
    Knock(u32),
    /// An instance's line is asked who goes next.
    Ring(u16),
    /// DPS counts a device's registration.
    Counted(u32),
    /// DPS's answer to it arrives.
    Answered(u32),
    /// Whoever registered the device asks DPS for the result.
    Poll(u32),
    /// DPS's answer to that arrives.
    PollAnswered(u32),
}

/// The number tells apart what is planned for the same moment.
type Entry = Reverse<(Mono, u64, Event)>;

/// The plan.
#[derive(Debug)]
pub(crate) struct Agenda<'a> {
    /// Who has not knocked yet, in the order of knocking, and the number of the first of them. Planned before everything else.
    newcomers: &'a [Newcomer],
    next_newcomer: u32,
    /// The second under way, and what had been planned for it when it began, the last first.
    second: u64,
    this_second: Vec<Entry>,
    /// What has been planned since then up to its end.
    soon: BinaryHeap<Entry>,
    /// By second.
    later: BTreeMap<u64, Vec<Entry>>,
    planned: u64,
}

impl<'a> Agenda<'a> {
    /// A plan of nothing but first knocks, which are in order; devices are numbered from 0 as they stand there.
    pub(crate) fn of(newcomers: &'a [Newcomer]) -> Self {
        let (this_second, soon, later) = (Vec::new(), BinaryHeap::new(), BTreeMap::new());
        Self { newcomers, next_newcomer: 0, second: 0, this_second, soon, later, planned: 0 }
    }

    /// Plans `event` for `moment`.
    pub(crate) fn plan(&mut self, moment: Mono, event: Event) {
        let entry = Reverse((moment, self.planned, event));
        self.planned += 1;
        let second = second_of(moment);
        if second <= self.second {
            self.soon.push(entry);
        } else {
            self.later.entry(second).or_default().push(entry);
        }
    }

    /// The next event and its moment.
    pub(crate) fn next(&mut self) -> Option<(Mono, Event)> {
        self.begin_second();
        let (earlier, soon) = (self.this_second.last(), self.soon.peek());
        // Both are in reverse.
        let is_soon = soon > earlier;
        let planned_at = earlier.max(soon).map(|Reverse((moment, ..))| *moment);
        if let Some((newcomer, others)) = self.newcomers.split_first()
            && planned_at.is_none_or(|planned_at| newcomer.knocks_at <= planned_at)
        {
            self.newcomers = others;
            self.next_newcomer += 1;
            return Some((newcomer.knocks_at, Event::Knock(self.next_newcomer - 1)));
        }
        let next = if is_soon { self.soon.pop() } else { self.this_second.pop() };
        next.map(|Reverse((moment, _, event))| (moment, event))
    }

    /// Takes up the next second for which something is planned when all before it has happened, unless a newcomer knocks before.
    fn begin_second(&mut self) {
        let newcomer_in = self.newcomers.first().map(|newcomer| second_of(newcomer.knocks_at));
        if self.this_second.is_empty()
            && self.soon.is_empty()
            && let Some(next) = self.later.first_entry()
            && newcomer_in.is_none_or(|second| second >= *next.key())
        {
            (self.second, self.this_second) = next.remove_entry();
            self.this_second.sort_unstable();
        }
    }
}

fn second_of(moment: Mono) -> u64 {
    moment.as_nanos() / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_planned_for_one_moment_happens_in_the_order_of_planning() {
        let moment = Mono::from_nanos(7_000_000_007);
        let newcomers = [Mono::from_nanos(7_000_000_006), moment].map(|knocks_at| Newcomer { knocks_at, tenant: 0 });
        let mut agenda = Agenda::of(&newcomers);
        agenda.plan(moment, Event::Ring(1));
        agenda.plan(moment, Event::Knock(9));
        agenda.plan(newcomers[0].knocks_at, Event::Knock(8));
        agenda.plan(Mono::default(), Event::Poll(3));
        assert_eq!(agenda.next(), Some((Mono::default(), Event::Poll(3))));
        let planned = [Event::Knock(0), Event::Knock(8), Event::Knock(1)];
        assert_eq!([(); 3].map(|()| agenda.next().map(|(_, event)| event)), planned.map(Some));
        assert_eq!(agenda.next(), Some((moment, Event::Ring(1))));
        agenda.plan(moment, Event::Counted(9));
        assert_eq!(agenda.next(), Some((moment, Event::Knock(9))));
        assert_eq!(agenda.next(), Some((moment, Event::Counted(9))));
        assert_eq!(agenda.next(), None);
    }
}
