//! One lane of a line: places in the order they were given, with the rank of any place in O(log n).
//!
//! Invariants:
//! - A place keeps its sequence number for life. Leaving the front and coming back (after DPS throttled it) puts it where it was.
//! - `rank` counts only places that still wait; places given up behind or before it move it at once.
//! - Memory is one small slot per place between the oldest and the newest one that waits, plus four bytes.

use std::collections::VecDeque;

/// A place's sequence number within its instance, given in the order of joining and never reused.
pub type Sequence = u64;

/// Places with a payload each, ordered by sequence number.
#[derive(Debug)]
pub struct Lane<T> {
    /// Sequence number of the first slot.
    base: Sequence,
    slots: VecDeque<Option<T>>,
    /// Index below which no slot is occupied; makes finding the front O(1) amortised.
    front_hint: usize,
    /// Fenwick tree over `slots`' occupancy, 1-based; its length is a power of two plus one.
    tree: Vec<u32>,
    len: usize,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self { base: 0, slots: VecDeque::new(), front_hint: 0, tree: vec![0; 2], len: 0 }
    }
}

impl<T> Lane<T> {
    /// Places that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts `item` at `sequence`, wherever that is relative to the others. Replaces what was there.
    pub fn insert(&mut self, sequence: Sequence, item: T) {
        if self.slots.is_empty() {
            self.base = sequence;
        }
        if sequence < self.base {
            // An older place returns to the front (a rare event: it was thought gone).
            for _ in sequence..self.base {
                self.slots.push_front(None);
            }
            self.base = sequence;
            self.rebuild();
        }
        let index = usize::try_from(sequence - self.base).unwrap_or(usize::MAX);
        if index >= self.slots.len() {
            self.make_room(sequence);
        }
        let index = usize::try_from(sequence - self.base).unwrap_or(usize::MAX);
        if self.slots[index].replace(item).is_none() {
            self.len += 1;
            self.add(index, 1);
        }
        self.front_hint = self.front_hint.min(index);
    }

    /// The place at `sequence`.
    #[must_use]
    pub fn get(&self, sequence: Sequence) -> Option<&T> {
        self.slots.get(self.index_of(sequence)?)?.as_ref()
    }

    /// The place at `sequence`, to change it.
    pub fn get_mut(&mut self, sequence: Sequence) -> Option<&mut T> {
        let index = self.index_of(sequence)?;
        self.slots.get_mut(index)?.as_mut()
    }

    /// Takes the place at `sequence` out.
    pub fn remove(&mut self, sequence: Sequence) -> Option<T> {
        let index = self.index_of(sequence)?;
        let item = self.slots.get_mut(index)?.take()?;
        self.len -= 1;
        self.add(index, -1);
        Some(item)
    }

    /// The first place in order.
    pub fn front(&mut self) -> Option<(Sequence, &T)> {
        if self.len == 0 {
            return None;
        }
        while self.slots[self.front_hint].is_none() {
            self.front_hint += 1;
        }
        let sequence = self.base + self.front_hint as u64;
        self.slots[self.front_hint].as_ref().map(|item| (sequence, item))
    }

    /// How many places are before `sequence`.
    #[must_use]
    pub fn rank(&self, sequence: Sequence) -> usize {
        let Some(offset) = sequence.checked_sub(self.base) else { return 0 };
        let mut index = usize::try_from(offset).unwrap_or(usize::MAX).min(self.slots.len());
        let mut sum = 0usize;
        while index > 0 {
            sum += self.tree[index] as usize;
            index &= index - 1;
        }
        sum
    }

    fn index_of(&self, sequence: Sequence) -> Option<usize> {
        usize::try_from(sequence.checked_sub(self.base)?).ok()
    }

    /// Extends the slots up to `sequence`: drops the empty ones at the front first, then grows the tree by doubling.
    fn make_room(&mut self, sequence: Sequence) {
        let wanted = |base: Sequence| usize::try_from(sequence - base).unwrap_or(usize::MAX).saturating_add(1);
        if wanted(self.base) < self.tree.len() {
            self.slots.resize_with(wanted(self.base), || None);
            return;
        }
        while self.slots.front().is_some_and(Option::is_none) {
            self.slots.pop_front();
            self.base += 1;
        }
        if self.slots.is_empty() {
            self.base = sequence;
        }
        self.front_hint = 0;
        self.slots.resize_with(wanted(self.base), || None);
        self.rebuild();
    }

    fn rebuild(&mut self) {
        // Room for as many again, so that the cost of rebuilding is constant per place.
        let capacity = (self.slots.len() * 2).next_power_of_two().max(16);
        self.tree = vec![0; capacity + 1];
        self.front_hint = 0;
        for index in 0..self.slots.len() {
            if self.slots[index].is_some() {
                self.tree[index + 1] += 1;
            }
        }
        for index in 1..=capacity {
            let parent = index + (index & index.wrapping_neg());
            if parent <= capacity {
                self.tree[parent] += self.tree[index];
            }
        }
    }

    fn add(&mut self, index: usize, change: i32) {
        let mut index = index + 1;
        while index < self.tree.len() {
            self.tree[index] = self.tree[index].wrapping_add_signed(change);
            index += index & index.wrapping_neg();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Join(u64),
        Leave(usize),
        PopFront,
        Return,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1u64..40).prop_map(Step::Join),
            1 => (0usize..1000).prop_map(Step::Leave),
            3 => Just(Step::PopFront),
            1 => Just(Step::Return),
        ]
    }

    proptest! {
        /// The lane is an ordered map that can also count; compare it with one that counts by walking.
        #[test]
        fn the_lane_equals_a_naive_ordered_map(first in 0u64..1_000_000, steps in prop::collection::vec(step(), 1..300)) {
            let mut lane = Lane::default();
            let mut naive = BTreeMap::new();
            let mut next = first;
            let mut popped = None;
            for step in steps {
                match step {
                    Step::Join(gap) => { next += gap; lane.insert(next, next); naive.insert(next, next); }
                    Step::Leave(index) => {
                        let Some(&sequence) = naive.keys().nth(index % naive.len().max(1)) else { continue };
                        prop_assert_eq!(lane.remove(sequence), naive.remove(&sequence));
                    }
                    Step::PopFront => {
                        let front = lane.front().map(|(sequence, _)| sequence);
                        prop_assert_eq!(front, naive.keys().next().copied());
                        if let Some(sequence) = front { lane.remove(sequence); naive.remove(&sequence); popped = Some(sequence); }
                    }
                    Step::Return => if let Some(sequence) = popped.take() { lane.insert(sequence, sequence); naive.insert(sequence, sequence); },
                }
                prop_assert_eq!(lane.len(), naive.len());
                for (rank, &sequence) in naive.keys().enumerate().step_by(7) {
                    prop_assert_eq!(lane.rank(sequence), rank);
                    prop_assert_eq!(lane.get(sequence), Some(&sequence));
                }
            }
        }
    }
}
