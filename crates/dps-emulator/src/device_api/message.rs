//! A request as it comes in and an answer as it goes out, without a transport.

use std::sync::Arc;
use std::time::Duration;

use crate::journal::RefusedCall;

/// A request as it arrived.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Method, upper-case.
    pub method: &'a str,
    /// Path as received, not decoded.
    pub path: &'a str,
    /// Query as received, without the question mark; empty if there is none.
    pub query: &'a str,
    /// Scheme and authority of the URL, for `Location`; for example `https://localhost:8443`.
    pub origin: &'a str,
    /// `Authorization`
    pub authorization: Option<&'a str>,
    /// `Content-Type`
    pub content_type: Option<&'a str>,
    /// Whether the connection has carried a call before.
    pub reused_connection: bool,
    /// The body. Whoever reads it may stop after [`MESSAGE_BYTES_MAX`](crate::MESSAGE_BYTES_MAX) + 1 bytes.
    pub body: &'a [u8],
}

/// What the client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// How long it waits for it.
    pub delay: Duration,
    /// The answer; `None` is a connection that is reset without one.
    pub answer: Option<Answer>,
    /// What was refused and why, if it was; for a log.
    pub refused: Option<Arc<RefusedCall>>,
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers, in order.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}
