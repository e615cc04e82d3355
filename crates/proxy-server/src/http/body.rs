//! Request bodies: bounded in size and time, decoded, and every fault told apart. Every plane reads its bodies here.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpRequest, web};
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::StreamExt as _;

use super::coding::{Decoder, PIECE};
use super::problem::Problem;
use crate::api::members::{self, FromMembers};
use crate::api::problem::Code;
use crate::rows::BYTE_ORDER_MARK;

/// Reads a JSON body of at most `bytes_max`, before and after decoding, which has to be there within `timeout`.
///
/// # Errors
/// 415 for another content type or coding, 413 if it is too large, 408 if it is too slow, 400 if it is not the JSON that is expected.
pub async fn json<T: FromMembers>(
    request: &HttpRequest,
    payload: web::Payload,
    bytes_max: usize,
    timeout: Duration,
) -> Result<T, Problem> {
    require_content_type(request, &["application/json"])?;
    parse(&read(request, payload, bytes_max, timeout).await?)
}

/// The same, for bodies that may be left out: an empty one is the default.
///
/// # Errors
/// As [`json`]; an empty body needs no content type.
pub async fn optional_json<T: FromMembers + Default>(
    request: &HttpRequest,
    payload: web::Payload,
    bytes_max: usize,
    timeout: Duration,
) -> Result<T, Problem> {
    let bytes = read(request, payload, bytes_max, timeout).await?;
    if bytes.is_empty() {
        return Ok(T::default());
    }
    require_content_type(request, &["application/json"])?;
    parse(&bytes)
}

/// The media type of the body, if it is one of `accepted` and in UTF-8.
///
/// # Errors
/// 415 otherwise.
pub fn require_content_type<'a>(request: &HttpRequest, accepted: &[&'a str]) -> Result<&'a str, Problem> {
    let unsupported =
        |detail: String| Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::UnsupportedMediaType, detail);
    let sent = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let mut parts = sent.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or("");
    let is_charset = |(name, _): &(&str, &str)| name.trim().eq_ignore_ascii_case("charset");
    let charset = parts.filter_map(|parameter| parameter.split_once('=')).find(is_charset);
    let charset = charset.map(|(_, value)| value.trim().trim_matches('"').to_ascii_lowercase());
    let found = accepted.iter().copied().find(|accepted| media_type.eq_ignore_ascii_case(accepted));
    let found =
        found.ok_or_else(|| unsupported(format!("the body's Content-Type must be {}", accepted.join(" or "))))?;
    match charset.as_deref() {
        // ASCII is a part of UTF-8.
        None | Some("utf-8" | "utf8" | "us-ascii") => Ok(found),
        Some(_) => {
            Err(unsupported("the body must be in UTF-8, and the charset of its Content-Type says otherwise".to_owned()))
        }
    }
}

fn parse<T: FromMembers>(bytes: &[u8]) -> Result<T, Problem> {
    let invalid = |detail: String| Problem::bad_request(Code::InvalidJson, detail);
    // RFC 8259 lets a reader ignore it.
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|_| invalid("the body is not UTF-8".to_owned()))?;
    members::read("the body", text).map_err(invalid)
}

async fn read(
    request: &HttpRequest,
    payload: web::Payload,
    bytes_max: usize,
    timeout: Duration,
) -> Result<Bytes, Problem> {
    let mut body = Body::new(request, payload, bytes_max as u64, "body_max_bytes of this listener")?;
    let reading = async {
        // Mostly all of it comes at once, and is not copied then.
        let first = body.next().await?.unwrap_or_default();
        let Some(second) = body.next().await? else { return Ok(first) };
        let mut whole = BytesMut::from(first);
        whole.extend_from_slice(&second);
        while let Some(bytes) = body.next().await? {
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    };
    tokio::time::timeout(timeout, reading).await.unwrap_or_else(|_| Err(too_slow(timeout)))
}

/// A body, decoded piece by piece.
pub struct Body {
    payload: web::Payload,
    decoder: Decoder,
    received: Bytes,
    ended: bool,
    /// Bytes so far, as they came and decoded.
    taken: [u64; 2],
    bytes_max: u64,
    bound: &'static str,
}

impl Body {
    /// A body that may have `bytes_max`, before and after decoding; `bound` is what that is called in the configuration.
    ///
    /// # Errors
    /// 415 for a coding that is not known.
    pub fn new(
        request: &HttpRequest,
        payload: web::Payload,
        bytes_max: u64,
        bound: &'static str,
    ) -> Result<Self, Problem> {
        let decoder = Decoder::of(request)?;
        Ok(Self { payload, decoder, received: Bytes::new(), ended: false, taken: [0; 2], bytes_max, bound })
    }

    /// The next bytes; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// 413 if the bound is exceeded, 400 if the connection breaks or the body is not of its coding.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            if self.received.is_empty() {
                if self.ended {
                    return Ok(None);
                }
                self.receive().await?;
            }
            let decoded = self.decode()?;
            self.count(1, decoded.len())?;
            if !decoded.is_empty() {
                return Ok(Some(decoded));
            }
        }
    }

    async fn receive(&mut self) -> Result<(), Problem> {
        match self.payload.next().await {
            None => self.ended = true,
            Some(chunk) => {
                let incomplete =
                    |_| Problem::bad_request(Code::IncompleteBody, "the body ended before it was complete");
                self.received = chunk.map_err(incomplete)?;
                self.count(0, self.received.len())?;
            }
        }
        Ok(())
    }

    fn decode(&mut self) -> Result<Bytes, Problem> {
        if matches!(self.decoder, Decoder::Identity) {
            return Ok(std::mem::take(&mut self.received));
        }
        // Without a single byte there is nothing of any coding, and that is no body.
        if self.received.is_empty() {
            return if self.taken[0] == 0 { Ok(Bytes::new()) } else { self.decoder.end().map(Bytes::from) };
        }
        let piece = self.received.len().min(PIECE);
        let decoded = self.decoder.decode(&self.received[..piece])?;
        self.received.advance(piece);
        Ok(decoded.into())
    }

    fn count(&mut self, which: usize, bytes: usize) -> Result<(), Problem> {
        self.taken[which] += bytes as u64;
        if self.taken[which] <= self.bytes_max {
            return Ok(());
        }
        let decoded = if which == 1 && self.taken[0] <= self.bytes_max { ", decoded," } else { "" };
        let detail = format!("the body{decoded} exceeds {} bytes ({})", self.bytes_max, self.bound);
        Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, Code::BodyTooLarge, detail))
    }
}

/// 408.
#[must_use]
pub fn too_slow(timeout: Duration) -> Problem {
    let detail = format!("the body did not arrive within {} s (request_timeout of this listener)", timeout.as_secs());
    Problem::new(StatusCode::REQUEST_TIMEOUT, Code::RequestTimeout, detail)
}
