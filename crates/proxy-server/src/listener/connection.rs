//! What is known of one connection, and when it has to end.
//!
//! The protocol says whether the connection waits for its peer and until when; the stream notes what was read and written. From
//! both follows when the connection has to end, whatever the protocol is doing then.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::Limits;
use super::admission::{Order, Ticket};
use crate::metrics::DropReason;

/// How long a connection has to rest before its protocol is asked to give back what it does not need.
const LONG_REST: Duration = Duration::from_millis(100);

/// Until when a connection may wait for its peer.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    /// The moment.
    pub at: Instant,
    /// What it is counted as; `None` for the usual end of an idle connection.
    pub reason: Option<DropReason>,
    /// What the peer is told then, if it reads.
    pub last_word: &'static [u8],
}

/// Output that the peer has not read yet.
#[derive(Debug, Clone, Copy)]
struct Unread {
    since: Instant,
    /// Bytes that it has taken since then.
    taken: usize,
}

/// One connection. It lives on its worker's thread.
#[derive(Debug)]
pub struct Connection {
    peer: SocketAddr,
    limits: Limits,
    ticket: Ticket,
    deadline: Cell<Option<Deadline>>,
    unread: Cell<Option<Unread>>,
    /// Whether nothing is under way: no part of a request has come that was not answered.
    at_rest: Cell<bool>,
    /// When it has rested for long, unless it has already.
    long_rest_at: Cell<Option<Instant>>,
    rests_long: Cell<bool>,
    peer_is_done: Cell<bool>,
    /// Who waits for the peer to be done.
    waits_for_peer: RefCell<Option<Waker>>,
    /// Who wants to read and may not.
    reader: RefCell<Option<Waker>>,
}

/// Why and how a connection ends before its protocol is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) reason: Option<DropReason>,
    pub(super) last_word: &'static [u8],
}

impl Connection {
    pub(super) fn new(peer: SocketAddr, limits: Limits, ticket: Ticket, deadline: Option<Deadline>) -> Self {
        Self {
            peer,
            limits,
            ticket,
            deadline: Cell::new(deadline),
            unread: Cell::default(),
            at_rest: Cell::new(true),
            long_rest_at: Cell::default(),
            rests_long: Cell::default(),
            peer_is_done: Cell::default(),
            waits_for_peer: RefCell::default(),
            reader: RefCell::default(),
        }
    }

    /// Who is connected.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    // --- what the protocol says -----------------------------------------------------------------------------------

    /// Nothing is under way: it waits for its peer from now on, at most until `deadline`. It may be closed for another connection.
    pub fn rests(&self, deadline: Deadline) {
        self.at_rest.set(true);
        self.rests_long.set(false);
        self.long_rest_at.set(Some(Instant::now() + LONG_REST));
        self.deadline.set(Some(deadline));
        self.ticket.waits();
        self.resume_reading();
    }

    /// Whether it has rested for a while. When that begins, the protocol is polled, so that it can give back what it does not need.
    #[must_use]
    pub fn rests_long(&self) -> bool {
        self.rests_long.get()
    }

    /// It waits for the rest of something until `deadline`, or without one; it may still be closed for another connection, as before.
    pub fn wait_until(&self, deadline: Option<Deadline>) {
        self.deadline.set(deadline);
    }

    /// Something is being answered that is worth finishing: it is not closed for another connection.
    pub fn is_worth_finishing(&self) {
        self.ticket.is_busy();
    }

    /// Whether the listener drains: then no further request should be taken.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.ticket.order() != Order::Stay
    }

    /// Ready when the peer has said that it sends no more. Only one task may wait for it. Cancel-safe.
    pub async fn peer_done(&self) {
        std::future::poll_fn(|context| {
            if self.peer_is_done.get() {
                return Poll::Ready(());
            }
            *self.waits_for_peer.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Whoever reads is woken when the next answer has been given or read.
    pub fn hold_reading(&self, context: &Context<'_>) {
        *self.reader.borrow_mut() = Some(context.waker().clone());
    }

    fn resume_reading(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    // --- what the stream notes ------------------------------------------------------------------------------------

    pub(super) fn has_read(&self) {
        self.at_rest.set(false);
        self.rests_long.set(false);
        self.long_rest_at.set(None);
    }

    pub(super) fn peer_is_done(&self) {
        self.peer_is_done.set(true);
        if let Some(waiting) = self.waits_for_peer.take() {
            waiting.wake();
        }
    }

    pub(super) fn is_unread(&self) -> bool {
        self.unread.get().is_some()
    }

    pub(super) fn cannot_write(&self) {
        if !self.is_unread() {
            self.unread.set(Some(Unread { since: Instant::now(), taken: 0 }));
        }
    }

    pub(super) fn has_written(&self, count: usize) {
        if let Some(Unread { since, taken }) = self.unread.get() {
            let taken = taken + count;
            let enough = taken >= self.limits.unread_max_bytes;
            let unread = if enough { Unread { since: Instant::now(), taken: 0 } } else { Unread { since, taken } };
            self.unread.set(Some(unread));
        }
    }

    pub(super) fn has_flushed(&self) {
        if self.unread.take().is_some() {
            self.resume_reading();
        }
    }

    // --- when it has to end ---------------------------------------------------------------------------------------

    /// Runs `protocol` to its end, or until the connection has to end.
    pub(super) async fn run<T>(&self, protocol: impl Future<Output = T>) -> Result<T, End> {
        let mut protocol = std::pin::pin!(protocol);
        let mut alarm = std::pin::pin!(tokio::time::sleep(self.limits.handshake_timeout));
        std::future::poll_fn(|context| {
            if let Poll::Ready(done) = protocol.as_mut().poll(context) {
                return Poll::Ready(Ok(done));
            }
            self.poll_end(alarm.as_mut(), context).map(Err)
        })
        .await
    }

    fn poll_end(&self, mut alarm: Pin<&mut Sleep>, context: &mut Context<'_>) -> Poll<End> {
        self.ticket.wake_on_order(context.waker());
        match self.ticket.order() {
            Order::End(reason) => return Poll::Ready(End { reason: Some(reason), last_word: b"" }),
            Order::EndAtRest if self.at_rest.get() && !self.is_unread() => {
                return Poll::Ready(End { reason: None, last_word: b"" });
            }
            Order::EndAtRest | Order::Stay => {}
        }
        // The alarm is set anew only when it would ring too late: deadlines move with every request.
        loop {
            let end = self.next_end();
            let long_rest = self.long_rest_at.get().filter(|at| end.is_none_or(|(end, _)| *at < end));
            let Some(at) = long_rest.or(end.map(|(at, _)| at)) else { return Poll::Pending };
            if at < alarm.deadline() {
                alarm.as_mut().reset(at);
            }
            ready!(alarm.as_mut().poll(context));
            match end {
                _ if at > alarm.deadline() => alarm.as_mut().reset(at),
                Some((_, end)) if long_rest.is_none() => return Poll::Ready(end),
                Some(_) | None => {
                    self.long_rest_at.set(None);
                    self.rests_long.set(true);
                    context.waker().wake_by_ref();
                }
            }
        }
    }

    fn next_end(&self) -> Option<(Instant, End)> {
        let unread = self.unread.get().map(|unread| {
            let end = End { reason: Some(DropReason::WriteTimeout), last_word: b"" };
            (unread.since + self.limits.write_timeout, end)
        });
        let waiting = self.deadline.get().map(|Deadline { at, reason, last_word }| {
            // Nobody reads a last word behind what is unread.
            (at, End { reason, last_word: if unread.is_some() { b"" } else { last_word } })
        });
        unread.into_iter().chain(waiting).min_by_key(|(at, _)| *at)
    }
}
