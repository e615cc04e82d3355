//! Who is connected, and who makes room.
//!
//! Invariants:
//! - A connection has a [`Ticket`] for as long as it is open, and there are never more than `connections_max`.
//! - Only a connection that waits for its peer makes room: the one that has waited longest, of a source above its share if there is
//!   one that waits.
//! - Every change of a connection between waiting and being answered is one store to its own entry; the lock is taken when a
//!   connection comes or goes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Instant;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::Limits;
use crate::metrics::{ConnectionMetrics, DropReason};

/// `waits_since` of a connection that does not wait for its peer.
const BUSY: u64 = u64::MAX;
/// How many of the longest waiting are looked for at once, at least; looking takes a pass over all.
const BATCH_MIN: usize = 64;

/// Where a connection comes from: an IPv4 address, or the network of an IPv6 host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Source([u8; 8]);

impl Source {
    /// A host with IPv6 has the addresses of a whole /64 to choose from.
    pub(super) fn of(address: IpAddr) -> Self {
        let mut source = [0; 8];
        match address.to_canonical() {
            IpAddr::V4(address) => source[..4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => source.copy_from_slice(&address.octets()[..8]),
        }
        Self(source)
    }
}

/// What a connection has been told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Nothing.
    Stay,
    /// To end when nothing is under way.
    EndAtRest,
    /// To end at once.
    End(DropReason),
}

impl Order {
    const fn encoded(self) -> u8 {
        match self {
            Self::Stay => 0,
            Self::EndAtRest => 1,
            Self::End(reason) => 2 + reason as u8,
        }
    }

    fn decoded(code: u8) -> Self {
        match code {
            0 => Self::Stay,
            1 => Self::EndAtRest,
            code => Self::End(DropReason::ALL[usize::from(code - 2)]),
        }
    }
}

#[derive(Debug)]
struct Entry {
    source: Source,
    /// When it began to wait for its peer, in microseconds since the listener began; or [`BUSY`].
    waits_since: AtomicU64,
    order: AtomicU8,
    waker: AtomicWaker,
}

impl Entry {
    fn order(&self, order: Order) {
        self.order.fetch_max(order.encoded(), Ordering::AcqRel);
        self.waker.wake();
    }

    fn is_told_to_end(&self) -> bool {
        matches!(Order::decoded(self.order.load(Ordering::Acquire)), Order::End(_))
    }
}

/// All connections of one listener.
#[derive(Debug)]
pub(super) struct Admission {
    began: Instant,
    connections_max: usize,
    /// Connections of one source up to which it is treated like any other.
    source_share: usize,
    table: Mutex<Table>,
    freed: Notify,
    metrics: ConnectionMetrics,
}

#[derive(Debug, Default)]
struct Table {
    entries: Vec<Option<Arc<Entry>>>,
    vacant: Vec<usize>,
    open: usize,
    per_worker: Vec<usize>,
    per_source: HashMap<Source, usize>,
    above_share: HashSet<Source>,
    victims: Victims,
}

/// The longest waiting when they were last looked for, the first first.
#[derive(Debug, Default)]
struct Victims {
    queue: VecDeque<(u64, Arc<Entry>)>,
    above_share_only: bool,
}

/// The right to be open; gives its room back when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    admission: Arc<Admission>,
    index: usize,
    worker: usize,
    entry: Arc<Entry>,
}

impl Admission {
    pub(super) fn new(limits: Limits, metrics: ConnectionMetrics) -> Self {
        let table = Table { per_worker: vec![0; limits.workers.max(1)], ..Table::default() };
        Self {
            began: Instant::now(),
            connections_max: limits.connections_max,
            source_share: (limits.connections_max * limits.source_share_percent / 100).max(1),
            table: Mutex::new(table),
            freed: Notify::new(),
            metrics,
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(BUSY - 1)
    }

    /// A ticket for the worker with the fewest connections; `None` if all are taken.
    pub(super) fn enter(self: &Arc<Self>, source: Source) -> Option<Ticket> {
        let mut table = self.table.lock();
        if table.open >= self.connections_max {
            return None;
        }
        let (worker, _) = table.per_worker.iter().enumerate().min_by_key(|(_, open)| **open)?;
        let waits_since = AtomicU64::new(self.now());
        let entry = Arc::new(Entry { source, waits_since, order: AtomicU8::new(0), waker: AtomicWaker::new() });
        let index = table.insert(Arc::clone(&entry), worker, self.source_share);
        drop(table);
        self.metrics.opened();
        Some(Ticket { admission: Arc::clone(self), index, worker, entry })
    }

    /// Tells one connection that waits for its peer to end; whether there was one.
    pub(super) fn make_room(&self) -> bool {
        let mut table = self.table.lock();
        let victim = table.victim(true).map(|entry| (entry, DropReason::SourceShare));
        let victim = victim.or_else(|| table.victim(false).map(|entry| (entry, DropReason::OldestIdle)));
        drop(table);
        let Some((entry, reason)) = victim else { return false };
        entry.order(Order::End(reason));
        true
    }

    /// Ready when a connection has gone since this was called.
    pub(super) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Tells all connections.
    pub(super) fn order_all(&self, order: Order) {
        let entries: Vec<_> = self.table.lock().entries.iter().flatten().cloned().collect();
        entries.iter().for_each(|entry| entry.order(order));
    }

    /// Ready when no connection is open.
    pub(super) async fn emptied(&self) {
        loop {
            let freed = self.freed();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.table.lock().open == 0 {
                return;
            }
            freed.await;
        }
    }
}

impl Table {
    fn insert(&mut self, entry: Arc<Entry>, worker: usize, source_share: usize) -> usize {
        self.open += 1;
        self.per_worker[worker] += 1;
        let of_source = self.per_source.entry(entry.source).or_default();
        *of_source += 1;
        if *of_source > source_share {
            self.above_share.insert(entry.source);
        }
        match self.vacant.pop() {
            Some(index) => {
                self.entries[index] = Some(entry);
                index
            }
            None => {
                self.entries.push(Some(entry));
                self.entries.len() - 1
            }
        }
    }

    fn remove(&mut self, index: usize, worker: usize, source_share: usize) {
        let Some(entry) = self.entries[index].take() else { return };
        self.vacant.push(index);
        self.open -= 1;
        self.per_worker[worker] -= 1;
        if let Some(of_source) = self.per_source.get_mut(&entry.source) {
            *of_source -= 1;
            if *of_source <= source_share {
                self.above_share.remove(&entry.source);
            }
            if *of_source == 0 {
                self.per_source.remove(&entry.source);
            }
        }
    }

    /// The connection that has waited longest and was not told to end yet, of all or of the sources above their share.
    fn victim(&mut self, above_share_only: bool) -> Option<Arc<Entry>> {
        if above_share_only && self.above_share.is_empty() {
            return None;
        }
        if self.victims.above_share_only != above_share_only {
            self.victims = Victims { queue: VecDeque::new(), above_share_only };
        }
        self.next_victim().or_else(|| {
            self.look_for_victims(above_share_only);
            self.next_victim()
        })
    }

    fn next_victim(&mut self) -> Option<Arc<Entry>> {
        while let Some((since, entry)) = self.victims.queue.pop_front() {
            let still_waits = entry.waits_since.load(Ordering::Acquire) == since && !entry.is_told_to_end();
            let counts = !self.victims.above_share_only || self.above_share.contains(&entry.source);
            // One that has gone waits no more: its ticket says so.
            if still_waits && counts {
                return Some(entry);
            }
        }
        None
    }

    fn look_for_victims(&mut self, above_share_only: bool) {
        let waiting = self.entries.iter().flatten().filter_map(|entry| {
            let since = entry.waits_since.load(Ordering::Acquire);
            let counts = !above_share_only || self.above_share.contains(&entry.source);
            (since != BUSY && counts && !entry.is_told_to_end()).then_some((since, entry))
        });
        let mut waiting: Vec<_> = waiting.collect();
        let batch = BATCH_MIN.max(self.open / 64);
        if waiting.len() > batch {
            waiting.select_nth_unstable_by_key(batch, |(since, _)| *since);
            waiting.truncate(batch);
        }
        waiting.sort_unstable_by_key(|(since, _)| *since);
        self.victims.queue = waiting.into_iter().map(|(since, entry)| (since, Arc::clone(entry))).collect();
    }
}

impl Ticket {
    pub(super) fn worker(&self) -> usize {
        self.worker
    }

    /// It waits for its peer from now on.
    pub(super) fn waits(&self) {
        self.entry.waits_since.store(self.admission.now(), Ordering::Release);
    }

    /// It does not wait for its peer.
    pub(super) fn is_busy(&self) {
        self.entry.waits_since.store(BUSY, Ordering::Release);
    }

    pub(super) fn order(&self) -> Order {
        Order::decoded(self.entry.order.load(Ordering::Acquire))
    }

    /// Wakes the connection's task when it is told something.
    pub(super) fn wake_on_order(&self, waker: &Waker) {
        self.entry.waker.register(waker);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.is_busy();
        self.admission.table.lock().remove(self.index, self.worker, self.admission.source_share);
        self.admission.metrics.closed();
        self.admission.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;
    use crate::metrics::Metrics;
    use crate::plane::Plane;

    const A: Source = Source([10, 0, 0, 1, 0, 0, 0, 0]);
    const B: Source = Source([10, 0, 0, 2, 0, 0, 0, 0]);

    fn admission(connections_max: usize, source_share_percent: usize) -> Arc<Admission> {
        let limits = Limits {
            workers: 2,
            connections_max,
            handshakes_max: 1,
            handshake_timeout: Duration::from_secs(1),
            write_timeout: Duration::from_secs(1),
            unread_max_bytes: 1,
            source_share_percent,
        };
        Arc::new(Admission::new(limits, Metrics::new().connections(Plane::Device)))
    }

    /// Enters, and began to wait at `moment`.
    fn entered(admission: &Arc<Admission>, source: Source, moment: u64) -> Ticket {
        let ticket = admission.enter(source).unwrap();
        ticket.entry.waits_since.store(moment, Ordering::Release);
        ticket
    }

    fn told(tickets: &[Ticket]) -> Vec<Order> {
        tickets.iter().map(Ticket::order).collect()
    }

    #[test]
    fn the_one_that_waits_for_longest_makes_room_and_nobody_who_is_being_answered_does() {
        let admission = admission(3, 100);
        let tickets = [entered(&admission, A, 3), entered(&admission, A, 1), entered(&admission, B, 2)];
        assert!(admission.enter(A).is_none(), "all are taken");
        tickets[1].is_busy();
        assert!(admission.make_room());
        assert_eq!(told(&tickets), [Order::Stay, Order::Stay, Order::End(DropReason::OldestIdle)]);
        assert!(admission.make_room());
        assert!(!admission.make_room(), "the only one left is being answered");
        let [first, busy, last] = tickets;
        drop((first, last));
        assert!(admission.enter(B).is_some());
        assert_eq!(busy.order(), Order::Stay);
    }

    #[test]
    fn a_source_above_its_share_makes_room_before_others_that_wait_for_longer() {
        let admission = admission(4, 50);
        let tickets = [
            entered(&admission, B, 1),
            entered(&admission, A, 2),
            entered(&admission, A, 3),
            entered(&admission, A, 4),
        ];
        assert!(admission.make_room());
        assert_eq!(tickets[1].order(), Order::End(DropReason::SourceShare));
        let [b, a, mut rest @ ..] = tickets;
        drop(a);
        // Within its share it is one of all.
        let newcomer = entered(&admission, Source([9; 8]), 9);
        assert!(admission.make_room());
        assert_eq!(b.order(), Order::End(DropReason::OldestIdle));
        assert_eq!(told(&rest), [Order::Stay, Order::Stay]);
        assert_eq!(newcomer.order(), Order::Stay);
        rest.reverse();
    }

    #[test]
    fn one_that_asked_again_meanwhile_is_not_the_longest_waiting_any_more() {
        let admission = admission(3, 100);
        let tickets = [entered(&admission, A, 1), entered(&admission, A, 2), entered(&admission, A, 3)];
        assert!(admission.make_room());
        tickets[1].entry.waits_since.store(9, Ordering::Release);
        assert!(admission.make_room());
        assert_eq!(
            told(&tickets),
            [Order::End(DropReason::OldestIdle), Order::Stay, Order::End(DropReason::OldestIdle)],
            "the second was answered since they were looked for"
        );
    }

    #[test]
    fn connections_are_spread_over_the_workers() {
        let admission = admission(4, 100);
        let tickets: Vec<_> = (0..4).map(|moment| entered(&admission, A, moment)).collect();
        assert_eq!(tickets.iter().filter(|ticket| ticket.worker() == 0).count(), 2);
    }

    #[test]
    fn a_source_is_an_address_or_the_network_of_an_ipv6_host() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), Source::of(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[test]
    fn orders_survive_their_encoding_and_only_get_stricter() {
        for order in [Order::Stay, Order::EndAtRest].into_iter().chain(DropReason::ALL.map(Order::End)) {
            assert_eq!(Order::decoded(order.encoded()), order);
        }
        let admission = admission(1, 100);
        let ticket = admission.enter(A).unwrap();
        admission.order_all(Order::End(DropReason::OldestIdle));
        admission.order_all(Order::EndAtRest);
        assert_eq!(ticket.order(), Order::End(DropReason::OldestIdle));
    }
}
