//! The appointments that a line has given, as a calendar: how many devices have to have gone by which departure, and from which departure on
//! there is room for one more.
//!
//! Whoever is told a moment comes back then. So who was told one goes by then, whoever else comes: the scheduler takes turns between tenants
//! only as far as the calendar leaves room, and what it leaves is earliest deadline first.
//!
//! Moments are departures of the line, counted from its start, not times: a line that pauses or changes its pace moves all of them alike.
//!
//! Invariants:
//! - The room up to a departure is the number of departures from now to it, less the devices that have to have gone by then. As long as
//!   no room is negative all appointments can be kept; an appointment that is given at a [free](Appointments::first_free) departure
//!   makes none negative.
//! - An appointment that was missed counts as one for the next departure.
//! - Memory: 16 bytes for each departure from now to the last appointment, at most two and a half times that. Every operation is
//!   O(log departures), but for a doubling of the calendar.

use std::ops::Range;

use crate::line::lane::DepartureNumber;

/// Departures in a row.
#[derive(Debug, Clone, Copy, Default)]
struct Node {
    /// Departures, less the devices that have an appointment among them.
    sum: i32,
    /// The least sum of its first departures, over any number of them but none.
    least: i32,
}

impl Node {
    const fn leaf(sum: i32) -> Self {
        Self { sum, least: sum }
    }

    fn join(self, right: Self) -> Self {
        Self { sum: self.sum + right.sum, least: self.least.min(self.sum + right.least) }
    }
}

/// The smallest calendar.
const LEAVES_MIN: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Appointments {
    /// The next departure.
    next: DepartureNumber,
    /// The departure of the first leaf.
    base: DepartureNumber,
    /// A segment tree: the root at 1, the leaves in the second half. Empty until somebody has an appointment.
    nodes: Vec<Node>,
    /// Devices that have one.
    given: usize,
}

/// What a walk over leaves in order has seen.
#[derive(Debug)]
struct Seen {
    sum: i32,
    least: i32,
}

impl Appointments {
    /// The number of the next departure.
    pub(super) const fn next(&self) -> DepartureNumber {
        self.next
    }

    /// Whether nobody has one.
    pub(super) const fn is_empty(&self) -> bool {
        self.given == 0
    }

    /// Somebody departs, with an appointment or without.
    pub(super) fn departs(&mut self) {
        self.change(self.next, -1);
        self.next = self.next.saturating_add(1);
    }

    /// A device has an appointment: it goes with `departure` at the latest.
    pub(super) fn give(&mut self, departure: DepartureNumber) {
        if self.index(departure) >= self.leaves() {
            self.begin_anew(departure);
        }
        self.given += 1;
        self.change(departure, -1);
    }

    /// A device whose appointment that was has gone, or needs none any more.
    pub(super) fn end(&mut self, departure: DepartureNumber) {
        self.given -= 1;
        self.change(departure, 1);
    }

    /// Nobody has one any more.
    pub(super) fn clear(&mut self) {
        *self = Self { next: self.next, base: self.next, ..Self::default() };
    }

    /// Whether a device with this appointment, or without any, may go next, and all others can still keep theirs.
    pub(super) fn may_go(&self, appointment: Option<DepartureNumber>) -> bool {
        if self.given == 0 || appointment.is_some_and(|departure| departure <= self.next) {
            return true;
        }
        let end = appointment.map_or(self.leaves(), |departure| self.index(departure).min(self.leaves()));
        // Behind the calendar's end all that is left of it was missed.
        self.index(self.next) < self.leaves() && self.seen(end).least >= 1
    }

    /// The first departure from `from` on for which one more appointment can be given.
    pub(super) fn first_free(&self, from: DepartureNumber) -> DepartureNumber {
        let after_last_full = |last: usize| {
            self.base.saturating_add(DepartureNumber::try_from(last).unwrap_or(DepartureNumber::MAX)).saturating_add(1)
        };
        let free = if self.given == 0 { None } else { self.last_full().map(after_last_full) };
        from.max(self.next).max(free.unwrap_or(0))
    }

    /// Devices that have to have gone with `departure`.
    pub(super) fn by(&self, departure: DepartureNumber) -> usize {
        let departures = departure.saturating_sub(self.next).saturating_add(1);
        let room = self.seen(self.index(departure.max(self.next)).saturating_add(1).min(self.leaves())).sum;
        usize::try_from(i64::from(departures) - i64::from(room)).unwrap_or(0).min(self.given)
    }

    fn leaves(&self) -> usize {
        self.nodes.len() / 2
    }

    fn index(&self, departure: DepartureNumber) -> usize {
        departure.saturating_sub(self.base) as usize
    }

    fn change(&mut self, departure: DepartureNumber, by: i32) {
        let index = self.index(departure);
        if index >= self.leaves() {
            return;
        }
        let mut node = self.leaves() + index;
        self.nodes[node] = Node::leaf(self.nodes[node].sum + by);
        while node > 1 {
            node /= 2;
            self.nodes[node] = self.nodes[2 * node].join(self.nodes[2 * node + 1]);
        }
    }

    /// The room up to the departure before the leaf `end`, and the least room up to any from now to there.
    fn seen(&self, end: usize) -> Seen {
        let mut seen = Seen { sum: 0, least: i32::MAX };
        if end > 0 {
            self.walk(1, 0..self.leaves(), &(self.index(self.next)..end), &mut seen);
        }
        seen
    }

    /// Walks over the `leaves` of `node`. Those before the `wanted` ones are past: what is left there was missed.
    fn walk(&self, node: usize, leaves: Range<usize>, wanted: &Range<usize>, seen: &mut Seen) {
        if leaves.start >= wanted.end {
            return;
        }
        let past = leaves.end <= wanted.start;
        if past || (leaves.start >= wanted.start && leaves.end <= wanted.end) {
            if !past {
                seen.least = seen.least.min(seen.sum + self.nodes[node].least);
            }
            seen.sum += self.nodes[node].sum;
        } else {
            let middle = leaves.start.midpoint(leaves.end);
            self.walk(2 * node, leaves.start..middle, wanted, seen);
            self.walk(2 * node + 1, middle..leaves.end, wanted, seen);
        }
    }

    /// The last leaf up to which there is no room; `None` if there is everywhere.
    fn last_full(&self) -> Option<usize> {
        let all = *self.nodes.get(1)?;
        if all.least >= 1 {
            return None;
        }
        if let Ok(lacking) = usize::try_from(-all.sum) {
            // More appointments than departures: some were missed.
            return Some(self.leaves().max(self.index(self.next)) + lacking - 1);
        }
        let (mut node, mut sum) = (1, 0);
        while node < self.leaves() {
            let [left, right] = [self.nodes[2 * node], self.nodes[2 * node + 1]];
            let in_right = sum + left.sum + right.least < 1;
            node = 2 * node + usize::from(in_right);
            if in_right {
                sum += left.sum;
            }
        }
        Some(node - self.leaves())
    }

    /// Makes a calendar that begins with the next departure and has `last` in it.
    fn begin_anew(&mut self, last: DepartureNumber) {
        let leaves = &self.nodes[self.leaves()..];
        let (past, kept) = leaves.split_at(self.index(self.next).min(leaves.len()));
        let missed: i32 = past.iter().map(|leaf| leaf.sum).sum();
        let wanted = (last.saturating_sub(self.next) as usize + 1).max(kept.len());
        let size = (wanted * 5 / 4).next_power_of_two().max(LEAVES_MIN);
        let mut nodes = vec![Node::default(); size];
        nodes.extend(kept.iter().copied());
        nodes.resize(2 * size, Node::leaf(1));
        nodes[size] = Node::leaf(nodes[size].sum + missed);
        for node in (1..size).rev() {
            nodes[node] = nodes[2 * node].join(nodes[2 * node + 1]);
        }
        (self.base, self.nodes) = (self.next, nodes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same by counting.
    #[derive(Debug, Default)]
    struct Naive {
        next: DepartureNumber,
        given: Vec<DepartureNumber>,
    }

    impl Naive {
        fn by(&self, departure: DepartureNumber) -> usize {
            self.given.iter().filter(|given| **given <= departure.max(self.next)).count()
        }

        fn room(&self, departure: DepartureNumber) -> i64 {
            i64::from(departure - self.next) + 1 - i64::try_from(self.by(departure)).unwrap()
        }

        fn end(&self) -> DepartureNumber {
            self.given.iter().copied().max().unwrap_or(0).max(self.next)
                + 1
                + DepartureNumber::try_from(self.given.len()).unwrap()
        }

        fn may_go(&self, appointment: Option<DepartureNumber>) -> bool {
            let end = appointment.unwrap_or_else(|| self.end());
            (self.next..end).all(|departure| self.room(departure) >= 1)
        }

        fn first_free(&self, from: DepartureNumber) -> DepartureNumber {
            let last_full = (self.next..self.end()).rfind(|departure| self.room(*departure) < 1);
            last_full.map_or(0, |last| last + 1).max(from).max(self.next)
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Give(DepartureNumber),
        GiveFree(DepartureNumber),
        Depart(usize),
        DepartOther,
        DepartOthers(u32),
        End(usize),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => (0u32..200).prop_map(Step::Give),
            6 => (0u32..200).prop_map(Step::GiveFree),
            3 => (0usize..1000).prop_map(Step::Depart),
            2 => Just(Step::DepartOther),
            1 => (0u32..20).prop_map(|dice| if dice == 0 { Step::DepartOthers(300) } else { Step::DepartOther }),
            1 => (0usize..1000).prop_map(Step::End),
            1 => (0u32..40).prop_map(|dice| if dice == 0 { Step::Clear } else { Step::DepartOther }),
        ]
    }

    proptest! {
        #[test]
        fn the_calendar_equals_one_that_counts(steps in prop::collection::vec(step(), 1..400)) {
            let (mut calendar, mut naive) = (Appointments::default(), Naive::default());
            for step in steps {
                match step {
                    Step::Give(after) => { let at = naive.next + after; calendar.give(at); naive.given.push(at); }
                    Step::GiveFree(after) => {
                        let kept = (naive.next..naive.end()).all(|at| naive.room(at) >= 0);
                        let at = calendar.first_free(naive.next + after);
                        calendar.give(at);
                        naive.given.push(at);
                        prop_assert!(!kept || (naive.next..naive.end()).all(|at| naive.room(at) >= 0), "one more makes nobody late");
                    }
                    Step::Depart(one) if !naive.given.is_empty() => {
                        let at = naive.given.swap_remove(one % naive.given.len());
                        calendar.end(at);
                        calendar.departs();
                        naive.next += 1;
                    }
                    Step::End(one) if !naive.given.is_empty() => calendar.end(naive.given.swap_remove(one % naive.given.len())),
                    Step::DepartOthers(count) => { (0..count).for_each(|_| calendar.departs()); naive.next += count; }
                    Step::Clear => { calendar.clear(); naive.given.clear(); }
                    Step::DepartOther | Step::Depart(_) | Step::End(_) => { calendar.departs(); naive.next += 1; }
                }
                prop_assert_eq!(calendar.next(), naive.next);
                for after in [0, 1, 7, 50, 120, 400] {
                    let at = naive.next + after;
                    prop_assert_eq!(calendar.may_go(Some(at)), naive.may_go(Some(at)));
                    prop_assert_eq!(calendar.first_free(at), naive.first_free(at));
                    prop_assert_eq!(calendar.by(at), naive.by(at));
                }
                prop_assert_eq!(calendar.may_go(None), naive.may_go(None));
            }
        }
    }

    #[test]
    fn the_memory_follows_the_line_and_not_the_departures() {
        let mut calendar = Appointments::default();
        for _ in 0..100_000 {
            calendar.give(calendar.first_free(calendar.next() + 90));
            calendar.end(calendar.next() + 90);
            calendar.departs();
        }
        assert!(calendar.nodes.len() <= 512, "{}", calendar.nodes.len());
    }
}
