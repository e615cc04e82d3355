//! A connection's bytes as actix gets them: one request at a time.
//!
//! Invariant: actix is given one request at a time, and the next one when the answer has been given and read. Pipelined requests wait
//! where they are, at most [`HELD_MAX`] bytes of them here, the others in what carries them (the kernel, and under TLS a record).

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::exchange::Exchange;
use super::spelling::Written;
use crate::listener::Stream;

/// How much is read at once, and so the most that is kept of what stands behind the request under way.
const HELD_MAX: usize = 4096;
/// How much is read at once while a request is under way: mostly nothing, to notice that the peer is gone.
const LOOK_BYTES: usize = 1024;

/// A connection's bytes, given to actix so that it takes one request at a time.
///
/// actix reads whatever there is and takes every request in it, before it answers any: thousands of requests in 128 KiB, some 5 KB
/// of memory for each. So it is given a turn at a time, and no next head while a request is answered.
pub(super) struct OneAtATime {
    stream: Stream,
    exchange: Rc<Exchange>,
    /// What was read behind the turn that was given.
    held: BytesMut,
    turn_is_over: bool,
    /// How far actix has written an answer of its own, whose header names are to be spelt.
    own_answer: Option<Written>,
}

impl OneAtATime {
    /// The next requests of a connection. With `spells_names`, header names of what actix answers by itself are spelt as usual.
    pub(super) fn new(stream: Stream, exchange: Rc<Exchange>, spells_names: bool) -> Self {
        let own_answer = spells_names.then(Written::default);
        Self { stream, exchange, held: BytesMut::new(), turn_is_over: false, own_answer }
    }

    /// The exchange that these bytes belong to.
    pub(super) fn exchange(&self) -> &Rc<Exchange> {
        &self.exchange
    }

    /// Waits for the first bytes. False if there will be none; the connection is shut down then.
    pub(super) async fn arrive(&mut self) -> bool {
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
            let looked = self.look(context);
            // Else what comes next wakes us by itself.
            if !self.held.is_empty() {
                self.exchange.connection().hold_reading(context);
            }
            return looked;
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
            self.exchange.set_taken_back(true);
            return Poll::Ready(Ok(()));
        }
        polled
    }
}

impl AsyncWrite for OneAtATime {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let Some(written) = this.own_answer.as_mut().filter(|_| !this.exchange.owes_answer()) else {
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
        if self.exchange.is_taken_back() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
