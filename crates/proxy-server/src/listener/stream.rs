//! The bytes of one connection, plain or under TLS: what is read and written is noted in its [`Connection`].

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::connection::Connection;

/// What carries the bytes.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    fn read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }

    fn write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// An accepted connection, after its handshake. While its peer does not read what was written, it gives nothing to read.
#[derive(Debug)]
pub struct Stream {
    transport: Rc<RefCell<Transport>>,
    connection: Rc<Connection>,
}

impl Stream {
    pub(super) fn new(transport: Transport, connection: Rc<Connection>) -> Self {
        Self { transport: Rc::new(RefCell::new(transport)), connection }
    }

    /// A second handle, to go on or to say a last word when whoever had the first is gone.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self { transport: Rc::clone(&self.transport), connection: Rc::clone(&self.connection) }
    }

    /// What is known of it.
    #[must_use]
    pub fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.connection.is_unread() {
            self.connection.hold_reading(context);
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(self.transport.borrow_mut().read(context, buffer))?;
        if buffer.filled().len() > before {
            self.connection.has_read();
        } else if buffer.remaining() > 0 {
            self.connection.peer_is_done();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.transport.borrow_mut().write(context, bytes);
        match &written {
            Poll::Ready(Ok(count)) => self.connection.has_written(*count),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.connection.cannot_write(),
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.transport.borrow_mut().flush(context);
        match &flushed {
            Poll::Ready(Ok(())) => self.connection.has_flushed(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.connection.cannot_write(),
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = self.transport.borrow_mut().shutdown(context);
        if shut.is_pending() {
            self.connection.cannot_write();
        }
        shut
    }
}
