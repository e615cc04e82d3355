//! The change feed: every change of an assignment, in order, durable with the change itself.
//!
//! Invariants:
//! - An event is written in the same commit as the record it is about, and nobody sees it before both are durable.
//! - Readers never see an event while an earlier number may still become durable, so resuming after any seen number leaves no gap.
//! - Numbers grow; they may have holes (a commit that lost its race). A reader is never told a number above the last durable event,
//!   because the next process would give it out again. An epoch, made once per store, tells numbers of another
//!   store apart.
//! - A reader whose next event was pruned is told so, whether it resumes or is merely slow; nothing is skipped in silence.

use std::collections::BTreeSet;
use std::fmt;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::device::{AssignmentState, Record};
use crate::ids::{DeviceId, HubName, InstanceName, RegistrationId, TenantName};
use crate::settings::FeedSettings;
use crate::store::{CommitError, Expect, Key, ReadError, Store, Table, Versions, Write};
use rate_control::time::{Now, StoredMoment};

/// Rows read at once.
pub const PAGE: usize = 512;

/// One change of one assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Whose device.
    pub tenant: TenantName,
    /// Which device, as its hub knows it.
    pub device_id: DeviceId,
    /// Which device, as DPS knows it.
    pub registration_id: RegistrationId,
    /// The hub.
    pub assigned_hub: HubName,
    /// The instance.
    pub instance: InstanceName,
    /// How far to rely on it from now on.
    pub state: AssignmentState,
    /// The revision that the assignment has now.
    pub revision: u64,
    /// When.
    pub at: StoredMoment,
}

impl Change {
    /// The change that a record's assignment has just had.
    #[must_use]
    pub fn of(record: &Record, at: StoredMoment) -> Option<Self> {
        let assignment = record.assignment()?;
        Some(Self {
            tenant: record.tenant().clone(),
            device_id: assignment.device_id.clone(),
            registration_id: record.registration_id().clone(),
            assigned_hub: assignment.hub.clone(),
            instance: assignment.instance.clone(),
            state: assignment.state,
            revision: assignment.revision,
            at,
        })
    }
}

/// A point in the feed, as clients name it: `{epoch}-{number}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventId {
    /// Of this store.
    pub epoch: String,
    /// The last event seen.
    pub number: u64,
}

impl EventId {
    /// Reads what [`Display`](fmt::Display) wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (epoch, number) = text.rsplit_once('-')?;
        Some(Self { epoch: epoch.to_owned(), number: number.parse().ok()? })
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.number)
    }
}

#[derive(Debug)]
struct Numbers {
    next: u64,
    being_written: BTreeSet<u64>,
    /// The highest number that is durable. One above it may be given out again by the next process.
    durable: u64,
}

/// Gives out numbers and tells readers how far they may read.
#[derive(Debug)]
pub struct Feed {
    epoch: String,
    numbers: Mutex<Numbers>,
    readable: watch::Sender<u64>,
    /// The highest number that was pruned; set before the rows go, so that whoever read while they went knows it.
    pruned: Mutex<u64>,
}

/// A number that is being written; the feed waits for it until this is dropped.
#[derive(Debug)]
pub struct Ticket<'a> {
    feed: &'a Feed,
    number: u64,
    durable: bool,
}

impl Ticket<'_> {
    /// The write that goes into the commit of the change.
    #[must_use]
    pub fn write(&self, change: &Change) -> Write {
        let value = serde_json::to_vec(change).expect("a change has string keys only");
        Write::put(key(self.number), Expect::Any, value)
    }

    /// The commit is durable: the event may be seen.
    pub fn committed(mut self) {
        self.durable = true;
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut numbers = self.feed.numbers.lock();
        numbers.being_written.remove(&self.number);
        if self.durable {
            numbers.durable = numbers.durable.max(self.number);
        }
        let readable = numbers.being_written.first().map_or(numbers.durable, |&first| numbers.durable.min(first - 1));
        self.feed.readable.send_if_modified(|current| std::mem::replace(current, readable.max(*current)) < readable);
    }
}

fn key(number: u64) -> Key {
    Key::new(Table::Feed, number.to_be_bytes())
}

fn number_of(name: &[u8]) -> Option<u64> {
    name.try_into().ok().map(u64::from_be_bytes)
}

/// Where a reader starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Behind this number.
    After(u64),
    /// The number asked for is too old, of another store, or not one of ours: the reader missed events and starts at the end.
    Reset(u64),
}

/// What a reader finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The next events; none if there is nothing new.
    Events(Vec<(u64, Change)>),
    /// Events behind the number asked for were pruned: the reader missed them and goes on at the end.
    Reset(u64),
}

impl Feed {
    /// Finds the end of the feed in `store`. `epoch` was made once for this store.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn open(store: &dyn Store, epoch: String) -> Result<Self, ReadError> {
        let last = store.last(Table::Feed).await?.and_then(|row| number_of(&row.name)).unwrap_or(0);
        let oldest = store.scan(Table::Feed, None, 1).await?.first().and_then(|row| number_of(&row.name));
        let pruned = oldest.map_or(last, |oldest| oldest.saturating_sub(1));
        let numbers = Numbers { next: last + 1, being_written: BTreeSet::new(), durable: last };
        Ok(Self { epoch, numbers: Mutex::new(numbers), readable: watch::Sender::new(last), pruned: Mutex::new(pruned) })
    }

    /// The next number.
    #[must_use]
    pub fn ticket(&self) -> Ticket<'_> {
        let mut numbers = self.numbers.lock();
        let number = numbers.next;
        numbers.next += 1;
        numbers.being_written.insert(number);
        Ticket { feed: self, number, durable: false }
    }

    /// The name of event `number`.
    #[must_use]
    pub fn id(&self, number: u64) -> EventId {
        EventId { epoch: self.epoch.clone(), number }
    }

    /// Tells when more can be read.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.readable.subscribe()
    }

    /// Where a reader that saw `last_seen` goes on; without one, at the end.
    #[must_use]
    pub fn start(&self, last_seen: Option<&str>) -> Start {
        let end = *self.readable.borrow();
        let Some(last_seen) = last_seen else { return Start::After(end) };
        match EventId::parse(last_seen) {
            Some(id) if id.epoch == self.epoch && id.number <= end && id.number >= *self.pruned.lock() => {
                Start::After(id.number)
            }
            Some(_) | None => Start::Reset(end),
        }
    }

    /// At most [`PAGE`] events behind `after` that may be seen.
    ///
    /// # Errors
    /// If the store cannot be read, or an event in it is damaged.
    pub async fn read(&self, store: &dyn Store, after: u64) -> Result<Next, ReadError> {
        let readable = *self.readable.borrow();
        let rows = store.scan(Table::Feed, Some(&after.to_be_bytes()), PAGE).await?;
        // Only now: what was pruned during the scan is missing from it.
        if after < *self.pruned.lock() {
            return Ok(Next::Reset(readable));
        }
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(number) = number_of(&row.name).filter(|&number| number <= readable) else { break };
            let change: Change = serde_json::from_slice(&row.stored.value).map_err(|error| ReadError::Corrupt {
                table: Table::Feed,
                detail: format!("event {number}: {error}"),
            })?;
            events.push((number, Change { at: change.at.shown(), ..change }));
        }
        Ok(Next::Events(events))
    }

    /// Deletes events beyond the retention, oldest first, at most a page; the newest one always stays, so that numbers go on.
    /// Returns how many went; call again if it was a full page.
    ///
    /// # Errors
    /// As the store's; nothing is lost by trying again later.
    pub async fn prune(
        &self,
        store: &dyn Store,
        versions: &Versions,
        settings: &FeedSettings,
        now: Now,
    ) -> Result<usize, CommitError> {
        let readable = *self.readable.borrow();
        let rows =
            store.scan(Table::Feed, None, PAGE).await.map_err(|error| CommitError::ReadOnly(error.to_string()))?;
        let keep_from = readable.saturating_sub(settings.events_max.saturating_sub(1));
        let mut deletions = Vec::new();
        let mut last = 0;
        for row in rows {
            let Some(number) = number_of(&row.name) else { continue };
            let age = serde_json::from_slice::<Change>(&row.stored.value).ok().map(|change| change.at.age(now));
            if number >= readable || (number >= keep_from && age.is_some_and(|age| age <= settings.retention)) {
                break;
            }
            deletions.push(Write::delete(key(number), Expect::Any));
            last = number;
        }
        if deletions.is_empty() {
            return Ok(0);
        }
        let count = deletions.len();
        *self.pruned.lock() = last;
        store.commit(versions.commit(deletions)).await?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::conformance::commit;
    use crate::store::memory::MemoryStore;
    use rate_control::entropy::Entropy;

    use rate_control::time::{BootId, BootTag, Mono, Process, WallTime};

    /// A moment of the machine's only boot, by a wall clock that may be set.
    fn at(up: Duration, wall: WallTime) -> Now {
        let process = Process { boot: BootTag::of(&BootId("boot".to_owned())), began: Mono::default() };
        Now { mono: Mono::default().after(up), wall, process }
    }

    fn start() -> Now {
        at(Duration::from_secs(1), WallTime::from_unix_millis(1_795_492_800_000))
    }

    async fn filled(store: &MemoryStore, events: u64) -> Feed {
        let feed = Feed::open(store, "epoch".to_owned()).await.unwrap();
        for revision in 1..=events {
            append(store, &feed, revision).await;
        }
        feed
    }

    async fn append(store: &MemoryStore, feed: &Feed, revision: u64) {
        append_at(store, feed, revision, start()).await;
    }

    async fn append_at(store: &MemoryStore, feed: &Feed, revision: u64, now: Now) {
        let change = Change {
            tenant: TenantName::parse("default").unwrap(),
            device_id: DeviceId::parse("sn-1").unwrap(),
            registration_id: RegistrationId::parse("sn-1").unwrap(),
            assigned_hub: HubName::parse("hub.azure-devices.net").unwrap(),
            instance: InstanceName::parse("eu-1").unwrap(),
            state: AssignmentState::Confirmed,
            revision,
            at: StoredMoment::of(now),
        };
        let ticket = feed.ticket();
        commit(store, vec![ticket.write(&change)]).await.unwrap();
        ticket.committed();
    }

    async fn prune(store: &MemoryStore, feed: &Feed, settings: &FeedSettings, now: Now) -> usize {
        feed.prune(store, &Versions::new(Entropy::from_system()), settings, now).await.unwrap()
    }

    fn keep(events_max: u64) -> FeedSettings {
        FeedSettings { retention: Duration::from_secs(60), events_max }
    }

    fn numbers(next: Next) -> Vec<u64> {
        match next {
            Next::Events(events) => events.into_iter().map(|(number, _)| number).collect(),
            Next::Reset(end) => panic!("reset to {end}"),
        }
    }

    #[tokio::test]
    async fn a_reader_that_falls_behind_the_retention_is_told_and_one_at_its_edge_is_not() {
        let store = MemoryStore::new();
        let feed = filled(&store, 10).await;
        assert_eq!(prune(&store, &feed, &keep(3), start()).await, 7);
        for slow in [0, 1, 6] {
            assert_eq!(feed.read(&store, slow).await.unwrap(), Next::Reset(10), "after {slow}");
        }
        assert_eq!(numbers(feed.read(&store, 7).await.unwrap()), [8, 9, 10], "nothing was missed");
        // Told once: from the end on it reads as everybody does.
        assert!(numbers(feed.read(&store, 10).await.unwrap()).is_empty());
        append(&store, &feed, 11).await;
        assert_eq!(numbers(feed.read(&store, 10).await.unwrap()), [11]);
    }

    #[tokio::test]
    async fn resuming_and_reading_agree_on_what_is_missing_across_a_restart() {
        let store = MemoryStore::new();
        let feed = filled(&store, 5).await;
        prune(&store, &feed, &keep(2), start()).await;
        let reopened = Feed::open(&store, "epoch".to_owned()).await.unwrap();
        for feed in [&feed, &reopened] {
            assert_eq!(feed.start(Some("epoch-2")), Start::Reset(5));
            assert_eq!(feed.read(&store, 2).await.unwrap(), Next::Reset(5));
            assert_eq!(feed.start(Some("epoch-3")), Start::After(3));
            assert_eq!(numbers(feed.read(&store, 3).await.unwrap()), [4, 5]);
        }
    }

    #[tokio::test]
    async fn a_wall_clock_that_is_set_changes_no_retention() {
        let store = MemoryStore::new();
        let feed = Feed::open(&store, "epoch".to_owned()).await.unwrap();
        let (right, far) = (start().wall, start().wall.after(Duration::from_secs(20 * 365 * 86_400)));
        let up = Duration::from_secs;
        append_at(&store, &feed, 1, at(up(1), far)).await;
        append_at(&store, &feed, 2, at(up(11), right)).await;
        append_at(&store, &feed, 3, at(up(12), right)).await;
        for wall in [right, far] {
            assert_eq!(prune(&store, &feed, &keep(100), at(up(61), wall)).await, 0, "kept for a minute");
        }
        assert_eq!(prune(&store, &feed, &keep(100), at(up(62), right)).await, 1, "and not for twenty years");
        assert_eq!(numbers(feed.read(&store, 1).await.unwrap()), [2, 3]);
    }

    #[tokio::test]
    async fn a_number_that_was_never_used_is_no_gap() {
        let store = MemoryStore::new();
        let feed = filled(&store, 2).await;
        drop(feed.ticket());
        append(&store, &feed, 4).await;
        assert_eq!(prune(&store, &feed, &keep(1), start()).await, 2);
        assert_eq!(numbers(feed.read(&store, 2).await.unwrap()), [4]);
    }
}
