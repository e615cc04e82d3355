//! HTTP/1.1 on a connection of a [`listener`](crate::listener): how far the request under way has come, how long its peer may take
//! for the rest, and one request at a time.
//!
//! Invariants:
//! - Every head and every body has `request_timeout` to arrive, the first of a connection and all that follow; a connection on which
//!   nothing arrives has `keep_alive`.
//! - actix is given one request at a time, and the next one when the answer has been given and read: pipelined requests wait where
//!   they are, at most [`HELD_MAX`] bytes of them here, the others in what carries them (the kernel, and under TLS a record).
//! - An idle connection costs no buffers: actix, which keeps 16 KiB for each of its connections, has it only from the first byte of a
//!   request until a moment after the answer.
//! - A connection may be closed for another until its request is whole or its credential was accepted: until then, whoever sends
//!   slowly is as good as idle.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_http::body::{BodySize, BoxBody, MessageBody};
use actix_http::{ConnectionType, Extensions, HttpServiceBuilder, KeepAlive};
use actix_service::{IntoServiceFactory as _, Service as _, ServiceFactory as _, ServiceFactoryExt as _, map_config};
use actix_web::dev::{AppConfig, Payload, ServiceRequest};
use actix_web::error::PayloadError;
use actix_web::http::header::{CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING, UPGRADE};
use actix_web::{HttpMessage as _, HttpRequest, web};
use anyhow::anyhow;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::Instant;

use super::middleware::{self, HeaderBounds};
use super::spelling::Written;
use super::{backend, device, no_such_path, operator};
use crate::app::App;
use crate::config::HttpSettings;
use crate::listener::{Connection, Deadline, Protocol, Reason, Serve, Stream};
use crate::metrics::Plane;

/// How much is read at once, and so the most that is kept of what stands behind the request under way.
const HELD_MAX: usize = 4096;
/// How much is read at once while a request is under way: mostly nothing, to notice that the peer is gone.
const LOOK_BYTES: usize = 1024;
/// How much of a chunked body is one turn: its end is not known, and further requests may stand behind it.
const CHUNKED_TURN_BYTES: usize = 512;
/// How long a refused request may go on sending its body, so that the refusal is not lost with a reset.
const LINGER: Duration = Duration::from_secs(1);
/// How much of an answer actix writes ahead.
const WRITE_AHEAD_MAX: usize = 32 * 1024;
/// What a client is told whose request did not arrive in time.
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// How long a peer may take.
#[derive(Debug, Clone, Copy)]
struct Timeouts {
    request: Duration,
    keep_alive: Duration,
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
    fn begin(connection: Rc<Connection>, timeouts: Timeouts) -> Rc<Self> {
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
        Deadline { at, reason: Some(Reason::RequestTimeout), last_word: TOO_SLOW }
    }

    fn bytes_arrived(&self) {
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
    fn turn(&self, bytes: &[u8]) -> (usize, bool) {
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
    fn has_all(&self) -> bool {
        self.whole.get() || (self.under_way.get() && self.body_left.get() == Some(0))
    }

    /// Whether all that was asked was answered a while ago, and nothing has come of the next request.
    fn is_idle(&self) -> bool {
        let is_answered = !self.under_way.get() && !self.owes_answer.get() && !self.expected.get();
        is_answered && self.goes_on.get() && self.connection.rests_long()
    }

    fn is_flushed(&self) {
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

/// The requests of a plane, as a listener's protocol.
#[must_use]
pub fn protocol(plane: Plane, settings: &HttpSettings, app: &web::Data<App>) -> Protocol {
    let bounds = HeaderBounds::of(settings);
    let timeouts = Timeouts { request: settings.request_timeout, keep_alive: settings.keep_alive };
    let write_ahead = settings.unread_max_bytes.min(WRITE_AHEAD_MAX);
    // The handle of actix is not for other threads, but what it points to is.
    let app = Arc::clone(app);
    Arc::new(move || on_worker(plane, bounds, timeouts, write_ahead, web::Data::from(Arc::clone(&app))).boxed_local())
}

async fn on_worker(
    plane: Plane,
    bounds: HeaderBounds,
    timeouts: Timeouts,
    write_ahead: usize,
    app: web::Data<App>,
) -> anyhow::Result<Serve> {
    let routes = actix_web::App::new()
        .app_data(app)
        .wrap(actix_web::middleware::from_fn(move |request, next| middleware::observe(plane, bounds, request, next)))
        .configure(match plane {
            Plane::Device => device::routes,
            Plane::Backend => backend::routes,
            Plane::Operator => operator::routes,
        })
        .default_service(web::to(no_such_path));
    let routes = routes.into_factory().map_err(|error: actix_web::Error| error.error_response());
    // The connection's time limits are ours; actix has none but for lingering.
    let service = HttpServiceBuilder::<OneAtATime, _>::default()
        .keep_alive(KeepAlive::Os)
        .client_request_timeout(Duration::ZERO)
        .client_disconnect_timeout(LINGER)
        .h1_write_buffer_size(write_ahead)
        .on_connect_ext(|stream: &OneAtATime, data: &mut Extensions| {
            data.insert(Rc::clone(&stream.exchange));
        })
        .h1(map_config(routes, |()| AppConfig::default()))
        .new_service(())
        .await
        .map_err(|()| anyhow!("the {} plane's routes cannot be made", plane.as_str()))?;
    let service = Rc::new(service);
    Ok(Rc::new(move |stream: Stream| {
        let service = Rc::clone(&service);
        async move {
            let connection = Rc::clone(stream.connection());
            let peer = connection.peer();
            let exchange = Exchange::begin(connection, timeouts);
            loop {
                let mut requests = OneAtATime {
                    stream: stream.handle(),
                    exchange: Rc::clone(&exchange),
                    held: BytesMut::new(),
                    turn_is_over: false,
                    own_answer: middleware::spells_names(plane).then(Written::default),
                };
                if !requests.arrive().await {
                    break;
                }
                exchange.taken_back.set(false);
                // However it ends, whoever was connected knows.
                let _ended = service.call((requests, Some(peer))).await;
                if !exchange.taken_back.get() {
                    break;
                }
            }
        }
        .boxed_local()
    }))
}

/// A connection's bytes, given to actix so that it takes one request at a time.
///
/// actix reads whatever there is and takes every request in it, before it answers any: thousands of requests in 128 KiB, some 5 KB
/// of memory for each. So it is given a turn at a time, and no next head while a request is answered.
struct OneAtATime {
    stream: Stream,
    exchange: Rc<Exchange>,
    /// What was read behind the turn that was given.
    held: BytesMut,
    turn_is_over: bool,
    /// How far actix has written an answer of its own, whose header names are to be spelt.
    own_answer: Option<Written>,
}

impl OneAtATime {
    /// Waits for the first bytes. False if there will be none; the connection is shut down then.
    async fn arrive(&mut self) -> bool {
        let arrived = std::future::poll_fn(|context| {
            let looked = self.look(context);
            if self.held.is_empty() { looked.map_ok(|()| false) } else { Poll::Ready(Ok(true)) }
        });
        let arrived = arrived.await;
        if matches!(arrived, Ok(false)) {
            let _gone = self.stream.shutdown().await;
        }
        arrived.unwrap_or(false)
    }

    /// Reads into what is held, without giving anything: to notice that the peer is done or gone.
    fn look(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.held.len() < HELD_MAX {
            let mut space = [const { MaybeUninit::uninit() }; LOOK_BYTES];
            let mut buffer = ReadBuf::uninit(&mut space[..LOOK_BYTES.min(HELD_MAX - self.held.len())]);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                // The end comes after what is held.
                Poll::Ready(Ok(())) if buffer.filled().is_empty() && self.held.is_empty() => {
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Poll::Pending,
                Poll::Ready(Ok(())) => self.held.extend_from_slice(buffer.filled()),
            }
        }
        Poll::Pending
    }

    fn poll_turn(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.exchange.has_all() {
            self.exchange.connection.hold_reading(context);
            return self.look(context);
        }
        if std::mem::take(&mut self.turn_is_over) {
            let looked = self.look(context);
            if !self.held.is_empty() {
                context.waker().wake_by_ref();
            }
            return looked;
        }
        if self.held.is_empty() {
            return self.read(context, buffer);
        }
        self.give(buffer);
        Poll::Ready(Ok(()))
    }

    /// Gives a turn of what is held.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) {
        self.exchange.bytes_arrived();
        let most = self.held.len().min(buffer.remaining());
        let (count, is_over) = self.exchange.turn(&self.held[..most]);
        buffer.put_slice(&self.held.split_to(count));
        if self.held.is_empty() {
            // It takes no room while nothing is held.
            self.held = BytesMut::new();
        }
        self.turn_is_over = is_over;
    }

    /// Reads, gives a turn of it and holds the rest, which is less than was read.
    fn read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut space = [const { MaybeUninit::uninit() }; HELD_MAX];
        let mut read = ReadBuf::uninit(&mut space[..HELD_MAX.min(buffer.remaining())]);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
        let read = read.filled();
        if !read.is_empty() {
            self.exchange.bytes_arrived();
            let (count, is_over) = self.exchange.turn(read);
            buffer.put_slice(&read[..count]);
            self.held.extend_from_slice(&read[count..]);
            self.turn_is_over = is_over;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for OneAtATime {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = self.poll_turn(context, buffer);
        if polled.is_pending() && self.held.is_empty() && self.exchange.is_idle() {
            // As far as actix knows, this is the end.
            self.exchange.taken_back.set(true);
            return Poll::Ready(Ok(()));
        }
        polled
    }
}

impl AsyncWrite for OneAtATime {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let Some(written) = this.own_answer.as_mut().filter(|_| !this.exchange.owes_answer.get()) else {
            return Pin::new(&mut this.stream).poll_write(context, bytes);
        };
        let mut spelt = bytes.to_vec();
        let mut ahead = *written;
        ahead.spell(&mut spelt);
        let count = ready!(Pin::new(&mut this.stream).poll_write(context, &spelt))?;
        written.spell(&mut spelt[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(Pin::new(&mut this.stream).poll_flush(context))?;
        this.exchange.is_flushed();
        this.own_answer = this.own_answer.map(|_| Written::default());
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.exchange.taken_back.get() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// How far the head of a request has come. Lines end with a line feed, which may follow a carriage return; a head ends with an empty
/// line. Empty lines in front of it are nothing.
#[derive(Debug, Clone, Copy, Default)]
struct Head {
    begun: bool,
    in_line: bool,
}

impl Head {
    /// A turn between requests: all of the bytes, but no more than up to the end of this head; and whether it ends in them.
    fn turn(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (index, byte) in bytes.iter().enumerate() {
            match byte {
                b'\r' => {}
                b'\n' if self.begun && !self.in_line => {
                    *self = Self::default();
                    // Further empty lines take no turns of their own.
                    let rest = &bytes[index + 1..];
                    let empty = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                    return (index + 1 + empty, true);
                }
                b'\n' => self.in_line = false,
                _ => *self = Self { begun: true, in_line: true },
            }
        }
        (bytes.len(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_between_requests_is_one_head_at_most() {
        for (bytes, expected) in [
            ("", (0, false)),
            ("GET / HTTP/1.1\r\nHost", (20, false)),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", (27, true)),
            ("POST / HTTP/1.1\r\nHost: a\r\n\r\n{\"a\":1}", (28, true)),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", (27, true)),
            ("GET / HTTP/1.1\nHost: a\n\nGET / HTTP/1.1\nHost: a\n\n", (24, true)),
            ("GET / HTTP/1.1\n\n\r\n\nG", (19, true)),
            ("\r\n\r\n\nGET / HTTP/1.1\n\nG", (21, true)),
            ("\n\n\n\n\r\n\r\n\r\nG", (11, false)),
        ] {
            assert_eq!(Head::default().turn(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_head_ends_where_it_ends_however_it_is_cut() {
        let both = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for cut in 1..27 {
            let mut head = Head::default();
            assert_eq!(head.turn(&both[..cut]), (cut, false), "cut at {cut}");
            assert_eq!(head.turn(&both[cut..]), (27 - cut, true), "cut at {cut}");
        }
    }
}
