//! One lane of a line: places in the order they were given, with the rank of any place in O(log n).
//!
//! Invariants:
//! - A place keeps its sequence number for life. Leaving the front and coming back (after DPS throttled it) puts it where it was; so does
//!   arriving later than those behind it.
//! - `rank` counts only places that still wait; places given up behind or before it move it at once.
//! - Times of joining grow with the sequence numbers, so that places can be counted by either: one that arrives between others counts as
//!   having joined between them.
//! - Memory is 24 bytes and the length of the ID per place that waits: places are kept in chunks, each with its IDs in one piece, and a
//!   chunk is gone when nobody waits in it and before it.
//!
//! The chunk and the slot of a sequence number are guessed first: where numbers are dense, as in a storm, the guess is right, and finding a
//! place touches as little memory among a million as among a thousand.

use std::collections::VecDeque;

use crate::ids::RegistrationId;
use crate::place::Sequence;
use rate_control::failpoint::Failpoint;

/// When a place was joined, in tenths of a second since a moment long before; see [`Line`](crate::line::Line).
pub type Joined = u32;

/// What a device that waits needs from DPS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// A registration.
    Register,
    /// A status lookup, because the outcome of its last registration is unknown.
    Lookup,
}

/// The number of a departure of the line, counted from its start.
pub type DepartureNumber = u32;

/// No appointment.
const NONE: DepartureNumber = DepartureNumber::MAX;

/// Places in one chunk as long as they only join at the end.
const CHUNK: usize = 128;

/// Room that a full chunk gets for places that arrive after the first one of the next chunk.
const LATE: usize = 8;

/// Slots in one chunk, if older places come back into it.
const SLOTS_MAX: usize = 2 * CHUNK;

/// A device that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Who.
    pub id: RegistrationId,
    /// What for.
    pub job: JobKind,
    /// Since when.
    pub joined: Joined,
    /// With which departure it goes at the latest; it keeps that wherever it waits.
    pub appointment: Option<DepartureNumber>,
}

/// 24 bytes; a place that was left keeps its number and its ID until its chunk is gone.
#[derive(Debug, Clone, Copy)]
struct Slot {
    sequence: Sequence,
    joined: Joined,
    /// Where in the chunk's IDs this one begins.
    id_at: u32,
    /// See [`Lane::appoint`]; [`NONE`] if there is none.
    appointment: DepartureNumber,
    id_length: u8,
    job: JobKind,
}

#[derive(Debug)]
struct Chunk {
    /// Number of the first slot.
    first: Sequence,
    /// A bit for each slot that is live; at most [`SLOTS_MAX`].
    live: [u128; 2],
    /// In order of sequence; never empty, at most [`SLOTS_MAX`].
    slots: Vec<Slot>,
    ids: String,
}

impl Chunk {
    fn new(sequence: Sequence, waiting: &Waiting, joined: Joined) -> Self {
        // A fleet's IDs are mostly of one length.
        let (slots, ids) = (Vec::with_capacity(CHUNK), String::with_capacity(CHUNK * waiting.id.as_str().len()));
        let mut chunk = Self { first: sequence, live: [0; 2], slots, ids };
        chunk.put(0, sequence, waiting, joined);
        chunk
    }

    /// Puts a new slot at index `at`.
    fn put(&mut self, at: usize, sequence: Sequence, waiting: &Waiting, joined: Joined) {
        let id = waiting.id.as_str();
        // Some arrive a little late into most chunks: those must not grow to twice their size.
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact(LATE);
        }
        if self.ids.capacity() - self.ids.len() < id.len() {
            self.ids.reserve_exact(LATE * id.len());
        }
        let id_at = u32::try_from(self.ids.len()).unwrap_or(u32::MAX);
        self.ids.push_str(id);
        let id_length = u8::try_from(id.len()).unwrap_or(u8::MAX);
        let (job, appointment) = (waiting.job, waiting.appointment.unwrap_or(NONE));
        let behind: Vec<bool> = (at..self.slots.len()).map(|at| self.is_live(at)).collect();
        self.slots.insert(at, Slot { sequence, joined, id_at, appointment, id_length, job });
        self.mark(at, true);
        for (number, live) in behind.into_iter().enumerate() {
            self.mark(at + 1 + number, live);
        }
        self.first = self.slots.first().map_or(sequence, |slot| slot.sequence);
    }

    /// Puts a device into the slot at index `at`, which has its number.
    fn put_back(&mut self, at: usize, waiting: &Waiting, joined: Joined) {
        let mut slot = self.slots[at];
        if self.id(slot) != waiting.id.as_str() {
            slot.id_at = u32::try_from(self.ids.len()).unwrap_or(u32::MAX);
            self.ids.push_str(waiting.id.as_str());
            slot.id_length = u8::try_from(waiting.id.as_str().len()).unwrap_or(u8::MAX);
        }
        (slot.job, slot.joined, slot.appointment) = (waiting.job, joined, waiting.appointment.unwrap_or(NONE));
        self.slots[at] = slot;
        self.mark(at, true);
    }

    fn id(&self, slot: Slot) -> &str {
        let at = slot.id_at as usize;
        self.ids.get(at..at + usize::from(slot.id_length)).unwrap_or_default()
    }

    fn waiting(&self, at: usize) -> Option<Waiting> {
        let slot = self.slots.get(at).copied().filter(|_| self.is_live(at))?;
        let id = RegistrationId::parse(self.id(slot)).expect("it was one");
        let appointment = Some(slot.appointment).filter(|departure| *departure != NONE);
        Some(Waiting { id, job: slot.job, joined: slot.joined, appointment })
    }

    fn is_live(&self, at: usize) -> bool {
        self.live[at / 128] >> (at % 128) & 1 == 1
    }

    fn mark(&mut self, at: usize, live: bool) {
        let (word, bit) = (&mut self.live[at / 128], 1 << (at % 128));
        if live {
            *word |= bit;
        } else {
            *word &= !bit;
        }
    }

    fn len(&self) -> usize {
        (self.live[0].count_ones() + self.live[1].count_ones()) as usize
    }

    /// Live places in the first `slots` slots.
    fn count(&self, slots: usize) -> usize {
        let below = |word: u128, slots: usize| match slots {
            0 => 0,
            1..128 => (word & ((1 << slots) - 1)).count_ones(),
            _ => word.count_ones(),
        };
        (below(self.live[0], slots) + below(self.live[1], slots.saturating_sub(128))) as usize
    }

    fn front(&self) -> Option<&Slot> {
        let at = if self.live[0] > 0 { self.live[0].trailing_zeros() } else { 128 + self.live[1].trailing_zeros() };
        self.slots.get(at as usize)
    }

    /// Where `sequence` is, or would be.
    fn find(&self, sequence: Sequence) -> Result<usize, usize> {
        let guess = usize::try_from(sequence.saturating_sub(self.first)).unwrap_or(usize::MAX);
        if self.slots.get(guess).is_some_and(|slot| slot.sequence == sequence) {
            return Ok(guess);
        }
        self.slots.binary_search_by_key(&sequence, |slot| slot.sequence)
    }
}

/// Places ordered by sequence number.
#[derive(Debug)]
pub struct Lane {
    /// The first one has somebody waiting.
    chunks: VecDeque<Chunk>,
    /// Fenwick tree over the chunks' live places, 1-based, behind `gone` chunks that were drained.
    tree: Vec<u32>,
    gone: usize,
    len: usize,
}

impl Default for Lane {
    fn default() -> Self {
        Self { chunks: VecDeque::new(), tree: vec![0], gone: 0, len: 0 }
    }
}

impl Lane {
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

    /// Puts `waiting` at `sequence`, wherever that is relative to the others. Replaces what was there.
    pub fn insert(&mut self, sequence: Sequence, waiting: &Waiting) {
        let Some(index) = self.chunk_of(sequence).or((!self.chunks.is_empty()).then_some(0)) else {
            return self.push(sequence, waiting, waiting.joined);
        };
        let is_last = index + 1 == self.chunks.len();
        let found = self.chunks[index].find(sequence);
        let joined = self.joined_between(index, found, waiting.joined);
        let chunk = &mut self.chunks[index];
        match found {
            Ok(at) => {
                let was_live = chunk.is_live(at);
                chunk.put_back(at, waiting, joined);
                if !was_live {
                    self.count_one(index);
                }
            }
            Err(at) if is_last && at == chunk.slots.len() && at >= CHUNK => self.push(sequence, waiting, joined),
            Err(at) => {
                chunk.put(at, sequence, waiting, joined);
                self.count_one(index);
                if self.chunks[index].slots.len() == SLOTS_MAX {
                    self.split(index);
                }
            }
        }
    }

    /// `joined`, or the nearest time that fits between those of the slots before and behind.
    fn joined_between(&self, index: usize, found: Result<usize, usize>, joined: Joined) -> Joined {
        let slots = &self.chunks[index].slots;
        let (at, behind) = found.map_or_else(|at| (at, at), |at| (at, at + 1));
        let before = match at.checked_sub(1) {
            Some(before) => slots.get(before),
            None => index.checked_sub(1).and_then(|before| self.chunks[before].slots.last()),
        };
        let behind = slots.get(behind).or_else(|| self.chunks.get(index + 1)?.slots.first());
        let least = before.map_or(0, |slot| slot.joined);
        joined.min(behind.map_or(Joined::MAX, |slot| slot.joined)).max(least)
    }

    fn count_one(&mut self, index: usize) {
        self.len += 1;
        self.add(index, true);
    }

    /// Makes two chunks of one that many older places have come back to: rare.
    fn split(&mut self, index: usize) {
        let whole = &self.chunks[index];
        let halves = [0..CHUNK, CHUNK..SLOTS_MAX].map(|half| {
            let mut places = half.filter_map(|at| Some((whole.slots[at].sequence, whole.waiting(at)?)));
            let (sequence, waiting) = places.next()?;
            let mut chunk = Chunk::new(sequence, &waiting, waiting.joined);
            places.for_each(|(sequence, waiting)| chunk.put(chunk.slots.len(), sequence, &waiting, waiting.joined));
            Some(chunk)
        });
        let [first, second] = halves;
        let behind = self.chunks.split_off(index + 1);
        self.chunks.pop_back();
        self.chunks.extend(first.into_iter().chain(second).chain(behind));
        self.count_anew();
    }

    fn push(&mut self, sequence: Sequence, waiting: &Waiting, joined: Joined) {
        self.chunks.push_back(Chunk::new(sequence, waiting, joined));
        self.len += 1;
        // A Fenwick tree grows by one node that covers the new chunk and the whole nodes before it.
        let node = self.tree.len();
        let (mut sum, mut before) = (1, node - 1);
        let covered = node - (node & node.wrapping_neg());
        while before > covered {
            sum += self.tree[before];
            before -= before & before.wrapping_neg();
        }
        self.tree.push(sum);
    }

    /// The place at `sequence`.
    #[must_use]
    pub fn get(&self, sequence: Sequence) -> Option<Waiting> {
        let (index, at) = self.find(sequence)?;
        self.chunks[index].waiting(at)
    }

    /// When the place at `sequence` was joined, if it still waits.
    #[must_use]
    pub fn joined(&self, sequence: Sequence) -> Option<Joined> {
        let (index, at) = self.find(sequence)?;
        let chunk = &self.chunks[index];
        chunk.is_live(at).then(|| chunk.slots[at].joined)
    }

    /// The device at `sequence` goes with `departure` at the latest.
    pub fn appoint(&mut self, sequence: Sequence, departure: DepartureNumber) {
        if let Some((index, at)) = self.find(sequence) {
            self.chunks[index].slots[at].appointment = departure.min(NONE - 1);
        }
    }

    /// With which departure the device at `sequence` goes at the latest, if it waits and has an appointment.
    #[must_use]
    pub fn appointment(&self, sequence: Sequence) -> Option<DepartureNumber> {
        let (index, at) = self.find(sequence)?;
        let chunk = &self.chunks[index];
        Some(chunk.slots[at].appointment).filter(|departure| *departure != NONE && chunk.is_live(at))
    }

    /// The appointment of the device that has `rank` others of its lane before it.
    #[must_use]
    pub fn appointment_at(&self, rank: usize) -> Option<DepartureNumber> {
        let (mut index, mut end) = (0, self.chunks.len());
        while index + 1 < end {
            let middle = index.midpoint(end);
            if self.prefix(middle) <= rank { index = middle } else { end = middle }
        }
        let chunk = self.chunks.get(index)?;
        let mut live = (0..chunk.slots.len()).filter(|at| chunk.is_live(*at));
        let slot = chunk.slots[live.nth(rank.checked_sub(self.prefix(index))?)?];
        Some(slot.appointment).filter(|departure| *departure != NONE)
    }

    /// Ends all appointments.
    pub fn forget_appointments(&mut self) {
        self.chunks.iter_mut().flat_map(|chunk| &mut chunk.slots).for_each(|slot| slot.appointment = NONE);
    }

    /// Takes the place at `sequence` out.
    pub fn remove(&mut self, sequence: Sequence) -> Option<Waiting> {
        let (index, at) = self.find(sequence)?;
        let chunk = &mut self.chunks[index];
        let waiting = chunk.waiting(at)?;
        chunk.mark(at, false);
        self.len -= 1;
        self.add(index, false);
        while self.chunks.front().is_some_and(|chunk| chunk.len() == 0) {
            self.chunks.pop_front();
            self.gone += 1;
        }
        // Rare enough to cost a constant per place.
        if self.gone > self.chunks.len() + CHUNK {
            self.count_anew();
        }
        Some(waiting)
    }

    /// The first place in order.
    #[must_use]
    pub fn front(&self) -> Option<Front> {
        let slot = if Failpoint::LastInFirstOut.is_on() {
            let chunk = self.chunks.iter().rev().find(|chunk| chunk.len() > 0)?;
            (0..chunk.slots.len()).rev().find(|at| chunk.is_live(*at)).map(|at| &chunk.slots[at])?
        } else {
            self.chunks.front()?.front()?
        };
        let Slot { sequence, joined, job, appointment, .. } = *slot;
        let appointment = Some(appointment).filter(|departure| *departure != NONE);
        Some(Front { sequence, joined, job, appointment })
    }

    /// The first places from `from` on that need a registration, at most `most`.
    #[must_use]
    pub fn first(&self, from: Sequence, most: usize) -> Vec<(Sequence, RegistrationId)> {
        let places = self.chunks.range(self.chunk_of(from).unwrap_or(0)..).flat_map(|chunk| {
            let wanted = move |slot: &Slot| slot.job == JobKind::Register && slot.sequence >= from;
            let numbered = chunk.slots.iter().enumerate().filter(move |(_, slot)| wanted(slot));
            numbered.filter_map(|(at, slot)| Some((slot.sequence, chunk.waiting(at)?.id)))
        });
        places.take(most).collect()
    }

    /// How many places are before `sequence`.
    #[must_use]
    pub fn rank(&self, sequence: Sequence) -> usize {
        let Some(index) = self.chunk_of(sequence) else { return 0 };
        let chunk = &self.chunks[index];
        self.prefix(index) + chunk.count(chunk.find(sequence).unwrap_or_else(|at| at))
    }

    /// How many places were joined before `moment`.
    #[must_use]
    pub fn joined_before(&self, moment: Joined) -> usize {
        let after = self.chunks.partition_point(|chunk| chunk.slots.first().is_some_and(|slot| slot.joined < moment));
        let Some(index) = after.checked_sub(1) else { return 0 };
        let chunk = &self.chunks[index];
        self.prefix(index) + chunk.count(chunk.slots.partition_point(|slot| slot.joined < moment))
    }

    /// The chunk that `sequence` is in if it is anywhere; `None` if it is before all of them.
    fn chunk_of(&self, sequence: Sequence) -> Option<usize> {
        let distance = sequence.checked_sub(self.chunks.front()?.first)?;
        let guess = usize::try_from(distance).unwrap_or(usize::MAX) / CHUNK;
        let begins = |index: usize| self.chunks.get(index).map(|chunk| chunk.first);
        if begins(guess).is_some_and(|first| first <= sequence)
            && begins(guess + 1).is_none_or(|first| first > sequence)
        {
            return Some(guess);
        }
        self.chunks.partition_point(|chunk| chunk.first <= sequence).checked_sub(1)
    }

    fn find(&self, sequence: Sequence) -> Option<(usize, usize)> {
        let index = self.chunk_of(sequence)?;
        Some((index, self.chunks[index].find(sequence).ok()?))
    }

    /// Live places in the first `chunks` chunks.
    fn prefix(&self, chunks: usize) -> usize {
        // Chunks that are gone count nothing.
        let (mut node, mut sum) = (self.gone + chunks, 0);
        while node > 0 {
            sum += self.tree[node] as usize;
            node &= node - 1;
        }
        sum
    }

    fn add(&mut self, index: usize, one_more: bool) {
        let mut node = self.gone + index + 1;
        while node < self.tree.len() {
            self.tree[node] = if one_more { self.tree[node] + 1 } else { self.tree[node] - 1 };
            node += node & node.wrapping_neg();
        }
    }

    fn count_anew(&mut self) {
        self.gone = 0;
        self.tree.clear();
        self.tree.push(0);
        self.tree.extend(self.chunks.iter().map(|chunk| u32::try_from(chunk.len()).unwrap_or(u32::MAX)));
        for node in 1..self.tree.len() {
            let parent = node + (node & node.wrapping_neg());
            if parent < self.tree.len() {
                self.tree[parent] += self.tree[node];
            }
        }
        self.tree.shrink_to(self.tree.len() * 2);
    }
}

/// The first place of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Front {
    /// Its number.
    pub sequence: Sequence,
    /// Since when it waits.
    pub joined: Joined,
    /// What for.
    pub job: JobKind,
    /// With which departure it goes at the latest.
    pub appointment: Option<DepartureNumber>,
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
            6 => (1u64..4).prop_map(Step::Join),
            1 => (0usize..1000).prop_map(Step::Leave),
            3 => Just(Step::PopFront),
            1 => Just(Step::Return),
        ]
    }

    fn waiting(sequence: u64) -> Waiting {
        let id = RegistrationId::parse(&format!("sn-{sequence}")).unwrap();
        Waiting { id, job: JobKind::Register, joined: joined(sequence), appointment: None }
    }

    /// Several places of one moment, as in a storm.
    fn joined(sequence: u64) -> Joined {
        u32::try_from(sequence / 3).unwrap()
    }

    #[test]
    fn a_place_that_arrives_late_stands_where_its_number_says_and_counts_as_joined_between_the_others() {
        let mut lane = Lane::default();
        // Of each ten the first one is heard of last, two tenths of a second after the others.
        for ten in 0..100 {
            for sequence in (1..10).chain([0]).map(|one| ten * 10 + one) {
                let late = if sequence % 10 == 0 { 2 } else { 0 };
                let joined = u32::try_from(ten).unwrap() + late;
                lane.insert(sequence, &Waiting { joined, ..waiting(sequence) });
            }
        }
        assert_eq!(lane.len(), 1000);
        for sequence in 0..1000 {
            assert_eq!(
                (lane.rank(sequence), lane.get(sequence).unwrap().id),
                (sequence as usize, waiting(sequence).id)
            );
        }
        let joined: Vec<Joined> = (0..1000).map(|sequence| lane.joined(sequence).unwrap()).collect();
        assert!(joined.is_sorted(), "{joined:?}");
        for moment in 0..110 {
            assert_eq!(lane.joined_before(moment), joined.iter().filter(|joined| **joined < moment).count());
        }
        assert_eq!(std::iter::from_fn(|| lane.remove(lane.front()?.sequence)).count(), 1000);
    }

    #[test]
    fn places_that_arrive_a_little_late_take_little_more_memory() {
        let mut lane = Lane::default();
        // Of each seven the first one is heard of last, and most chunks end amidst seven.
        for few in 0..1000 {
            for sequence in [1, 2, 3, 4, 5, 6, 0].map(|one| few * 7 + one) {
                lane.insert(sequence, &waiting(sequence));
            }
        }
        let (slots, ids) = lane
            .chunks
            .iter()
            .fold((0, 0), |(slots, ids), chunk| (slots + chunk.slots.capacity(), ids + chunk.ids.capacity()));
        let needed: usize = (0..7000).map(|sequence| waiting(sequence).id.as_str().len()).sum();
        assert!(slots <= 7000 * 110 / 100, "room for {slots} places");
        assert!(ids <= needed * 110 / 100, "room for {ids} bytes of IDs where {needed} are needed");
    }

    #[test]
    fn a_slot_takes_24_bytes() {
        assert_eq!(size_of::<Slot>(), 24);
    }

    proptest! {
        /// The lane is an ordered map that can also count; compare it with one that counts by walking.
        #[test]
        fn the_lane_equals_a_naive_ordered_map(first in 0u64..1_000_000, steps in prop::collection::vec(step(), 1..1500)) {
            let mut lane = Lane::default();
            let mut naive = BTreeMap::new();
            let mut next = first;
            let mut popped = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Join(gap) => { next += gap; lane.insert(next, &waiting(next)); naive.insert(next, waiting(next)); }
                    Step::Leave(index) => {
                        let Some(&sequence) = naive.keys().nth(index % naive.len().max(1)) else { continue };
                        prop_assert_eq!(lane.remove(sequence), naive.remove(&sequence));
                    }
                    Step::PopFront => {
                        let front = lane.front().map(|front| front.sequence);
                        prop_assert_eq!(front, naive.keys().next().copied());
                        if let Some(sequence) = front { lane.remove(sequence); naive.remove(&sequence); popped.push(sequence); }
                    }
                    Step::Return => if let Some(sequence) = popped.pop() { lane.insert(sequence, &waiting(sequence)); naive.insert(sequence, waiting(sequence)); },
                }
                prop_assert_eq!(lane.len(), naive.len());
                if number % 50 > 0 {
                    continue;
                }
                for (rank, &sequence) in naive.keys().enumerate() {
                    prop_assert_eq!(lane.rank(sequence), rank);
                    prop_assert_eq!(lane.get(sequence), Some(waiting(sequence)));
                    let moment = joined(sequence);
                    prop_assert_eq!(lane.joined_before(moment), naive.keys().filter(|other| joined(**other) < moment).count());
                }
                let few: Vec<u64> = lane.first(0, 5).into_iter().map(|(sequence, _)| sequence).collect();
                prop_assert_eq!(few, naive.keys().take(5).copied().collect::<Vec<_>>());
            }
        }
    }
}
