//! The requests of one connection, one after the other: how far the one under way has come, and how long its peer may take for the
//! rest.
//!
//! Invariants:
//! - Every head and every body has `request_timeout` to arrive, the first of a connection and all that follow; a connection on which
//!   nothing arrives has `keep_alive`.
//! - A connection may be closed for another until its request is whole or its credential was accepted: until then, whoever sends
//!   slowly is as good as idle.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_http::ConnectionType;
use actix_http::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest};
use actix_web::error::PayloadError;
use actix_web::http::header::{CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING, UPGRADE};
use actix_web::{HttpMessage as _, HttpRequest};
use bytes::Bytes;
use tokio::time::Instant;

use super::head::Head;
use crate::listener::{Connection, Deadline};
use crate::metrics::DropReason;

/// How much of a chunked body is one turn: its end is not known, and further requests may stand behind it.
const CHUNKED_TURN_BYTES: usize = 512;
/// What a client is told whose request did not arrive in time.
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// How long a peer may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) request: Duration,
    pub(super) keep_alive: Duration,
}

/// The requests of one connection, one after the other. Handlers reach it through [`Exchange::of`].
#[derive(Debug)]
pub struct Exchange {
    connection: Rc<Connection>,
    timeouts: Timeouts,
    /// Whether a request is being handled.
    under_way: Cell<bool>,
    /// Whether a request is being handled, or its answer is not written yet.
    owes_answer: Cell<bool>,
    /// Whether all of that request has arrived.
    whole: Cell<bool>,
    /// What is left of its body, in bytes; `None` if only the body itself tells.
    body_left: Cell<Option<u64>>,
    /// Whether a part of the next request has arrived, or the connection is new: `request_timeout` runs.
    expected: Cell<bool>,
    /// How far the head of the next request has come.
    head: Cell<Head>,
    /// Whether the connection goes on behind the answer, and actix has nothing of what comes then.
    goes_on: Cell<bool>,
    /// Whether actix was told that the connection has ended, although it has not.
    taken_back: Cell<bool>,
}

impl Exchange {
    pub(super) fn begin(connection: Rc<Connection>, timeouts: Timeouts) -> Rc<Self> {
        let exchange = Self {
            connection,
            timeouts,
            under_way: Cell::default(),
            owes_answer: Cell::default(),
            whole: Cell::default(),
            body_left: Cell::default(),
            expected: Cell::new(true),
            head: Cell::default(),
            goes_on: Cell::default(),
            taken_back: Cell::default(),
        };
        exchange.connection.wait_until(Some(exchange.until_whole()));
        Rc::new(exchange)
    }

    /// That of a request, if it came over a listener.
    #[must_use]
    pub fn of(request: &HttpRequest) -> Option<Rc<Self>> {
        request.conn_data::<Rc<Self>>().cloned()
    }

    /// The connection.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The request is worth finishing, whole or not: its credential was accepted.
    pub fn is_accepted(&self) {
        self.connection.is_worth_finishing();
    }

    fn until_whole(&self) -> Deadline {
        let at = Instant::now() + self.timeouts.request;
        Deadline { at, reason: Some(DropReason::RequestTimeout), last_word: TOO_SLOW }
    }

    pub(super) fn bytes_arrived(&self) {
        if !self.under_way.get() && !self.expected.replace(true) {
            self.connection.wait_until(Some(self.until_whole()));
        }
    }

    /// A head is there, with this length of the body. Whoever reads the body bounds its time.
    fn head_arrived(&self, body_left: Option<u64>) {
        self.under_way.set(true);
        self.owes_answer.set(true);
        self.expected.set(false);
        self.head.take();
        self.body_left.set(body_left);
        self.connection.wait_until(None);
    }

    /// How many of these bytes are one turn, and whether it ends with them: what is left of a body, or up to one head's end.
    pub(super) fn turn(&self, bytes: &[u8]) -> (usize, bool) {
        if !self.under_way.get() {
            let mut head = self.head.get();
            let turn = head.turn(bytes);
            self.head.set(head);
            return turn;
        }
        let most = match self.body_left.get() {
            Some(left) => usize::try_from(left).unwrap_or(usize::MAX),
            None => CHUNKED_TURN_BYTES,
        };
        let count = bytes.len().min(most);
        self.body_left.set(self.body_left.get().map(|left| left - count as u64));
        (count, true)
    }

    /// Whether what comes now belongs to a later request.
    pub(super) fn has_all(&self) -> bool {
        self.whole.get() || (self.under_way.get() && self.body_left.get() == Some(0))
    }

    /// Whether all that was asked was answered a while ago, and nothing has come of the next request.
    pub(super) fn is_idle(&self) -> bool {
        let is_answered = !self.under_way.get() && !self.owes_answer.get() && !self.expected.get();
        is_answered && self.goes_on.get() && self.connection.rests_long()
    }

    /// Whether actix writes an answer to a request that a handler was given, and not one of its own.
    pub(super) fn owes_answer(&self) -> bool {
        self.owes_answer.get()
    }

    /// Whether actix was told that the connection has ended, although it has not.
    pub(super) fn is_taken_back(&self) -> bool {
        self.taken_back.get()
    }

    /// Notes that actix is told so, or that it has the connection again.
    pub(super) fn set_taken_back(&self, taken_back: bool) {
        self.taken_back.set(taken_back);
    }

    pub(super) fn is_flushed(&self) {
        self.owes_answer.set(self.under_way.get());
    }

    fn is_whole(&self) {
        self.whole.set(true);
        self.connection.is_worth_finishing();
    }

    fn is_answered(&self) {
        self.under_way.set(false);
        // Of a request that was not read to its end, there may be more to come.
        self.goes_on.set(self.goes_on.get() && self.whole.take());
        let at = Instant::now() + self.timeouts.keep_alive;
        self.connection.rests(Deadline { at, reason: None, last_word: b"" });
    }
}

/// A request is being handled; it is answered when this is dropped.
#[derive(Debug)]
pub(super) struct Answering(Rc<Exchange>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.is_answered();
    }
}

impl Answering {
    /// Whether the connection should not be used for a further request.
    pub(super) fn is_last(&self) -> bool {
        self.0.connection.is_draining()
    }

    /// The connection ends behind this answer.
    pub(super) fn closes(&self) {
        self.0.goes_on.set(false);
    }
}

/// Notes that a request is being handled, and when its body has arrived. `None` if it did not come over a listener.
pub(super) fn begin(request: &mut ServiceRequest) -> Option<Answering> {
    let exchange = Exchange::of(request.request())?;
    let chunked = request.headers().contains_key(TRANSFER_ENCODING);
    let length = (!chunked).then(|| content_length(request.headers()));
    exchange.head_arrived(length);
    exchange.goes_on.set(goes_on(request, length));
    let body = match request.take_payload() {
        Payload::None => {
            exchange.is_whole();
            return Some(Answering(exchange));
        }
        body => body,
    };
    // With a request for another protocol, actix reads a body to the end of the connection, whatever length it names. (It closes the
    // connection behind the answer then.)
    let left = length.filter(|_| request.headers().contains_key(UPGRADE));
    let arriving = Arriving { body, exchange: Rc::clone(&exchange), left };
    request.set_payload(Payload::Stream { payload: Box::pin(arriving) });
    Some(Answering(exchange))
}

/// Whether the connection goes on behind this request, and actix has nothing of what comes then: with a length, its last turn ends
/// where the request does.
fn goes_on(request: &ServiceRequest, length: Option<u64>) -> bool {
    let head = request.head();
    head.connection_type() == ConnectionType::KeepAlive && length.is_some() && !head.headers().contains_key(UPGRADE)
}

/// The length of a body that is not chunked; actix has refused what is no number.
fn content_length(headers: &HeaderMap) -> u64 {
    headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.trim().parse().ok()).unwrap_or(0)
}

/// A body that notes when it has arrived.
struct Arriving {
    body: Payload,
    exchange: Rc<Exchange>,
    left: Option<u64>,
}

impl futures_util::Stream for Arriving {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let next = match this.left {
            Some(0) => None,
            Some(_) | None => ready!(Pin::new(&mut this.body).poll_next(context)),
        };
        let Some(Ok(mut bytes)) = next else {
            if next.is_none() {
                this.exchange.is_whole();
            }
            return Poll::Ready(next);
        };
        if let Some(left) = &mut this.left {
            bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= bytes.len() as u64;
        }
        Poll::Ready(Some(Ok(bytes)))
    }
}

/// An answer's body, together with the note that it is being given.
pub struct Answer {
    body: BoxBody,
    _answering: Option<Answering>,
}

impl Answer {
    pub(super) fn new(body: BoxBody, answering: Option<Answering>) -> Self {
        Self { body, _answering: answering }
    }
}

impl MessageBody for Answer {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(context)
    }
}
