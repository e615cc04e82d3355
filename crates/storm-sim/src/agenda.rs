//! What is planned to happen, in order of time; at the same moment in the order of planning.
//!
//! A binary heap of a million entries misses the cache at every step. So only the second that is under way is a heap; what is
//! planned for later seconds lies unsorted until its second comes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use proxy_core::time::Mono;

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
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    /// Everything up to the end of the second under way.
    soon: BinaryHeap<Entry>,
    second: u64,
    /// By second.
    later: BTreeMap<u64, Vec<Entry>>,
    planned: u64,
}

impl Agenda {
    /// Plans `event` for `moment`.
    pub(crate) fn plan(&mut self, moment: Mono, event: Event) {
        let entry = Reverse((moment, self.planned, event));
        self.planned += 1;
        let second = moment.as_nanos() / 1_000_000_000;
        if second <= self.second {
            self.soon.push(entry);
        } else {
            self.later.entry(second).or_default().push(entry);
        }
    }

    /// The next event and its moment.
    pub(crate) fn next(&mut self) -> Option<(Mono, Event)> {
        if self.soon.is_empty()
            && let Some((second, entries)) = self.later.pop_first()
        {
            (self.second, self.soon) = (second, entries.into());
        }
        self.soon.pop().map(|Reverse((moment, _, event))| (moment, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_planned_for_one_moment_happens_in_the_order_of_planning() {
        let mut agenda = Agenda::default();
        let moment = Mono::from_nanos(7_000_000_007);
        agenda.plan(moment, Event::Ring(1));
        agenda.plan(moment, Event::Knock(9));
        agenda.plan(Mono::from_nanos(7_000_000_006), Event::Knock(8));
        agenda.plan(Mono::default(), Event::Poll(3));
        assert_eq!(agenda.next(), Some((Mono::default(), Event::Poll(3))));
        assert_eq!(agenda.next().map(|(_, event)| event), Some(Event::Knock(8)));
        assert_eq!(agenda.next(), Some((moment, Event::Ring(1))));
        agenda.plan(moment, Event::Counted(9));
        assert_eq!(agenda.next(), Some((moment, Event::Knock(9))));
        assert_eq!(agenda.next(), Some((moment, Event::Counted(9))));
        assert_eq!(agenda.next(), None);
    }
}
