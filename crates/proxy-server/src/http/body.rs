//! Request bodies: bounded in size and time, JSON only, and every fault told apart.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpRequest, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// Reads a JSON body of at most `bytes_max`, which has to be there within `timeout`.
///
/// # Errors
/// 415 for another content type, 413 if it is too large, 408 if it is too slow, 400 if it is not the JSON that is expected.
pub async fn json<T: DeserializeOwned>(
    request: &HttpRequest,
    payload: web::Payload,
    bytes_max: usize,
    timeout: Duration,
) -> Result<T, Problem> {
    require_content_type(request, &["application/json"])?;
    let bytes = read(payload, bytes_max, timeout).await?;
    parse(&bytes)
}

/// The same, for bodies that may be left out: an empty one is the default.
///
/// # Errors
/// As [`json`]; an empty body needs no content type.
pub async fn optional_json<T: DeserializeOwned + Default>(
    request: &HttpRequest,
    payload: web::Payload,
    bytes_max: usize,
    timeout: Duration,
) -> Result<T, Problem> {
    let bytes = read(payload, bytes_max, timeout).await?;
    if bytes.is_empty() {
        return Ok(T::default());
    }
    require_content_type(request, &["application/json"])?;
    parse(&bytes)
}

/// The media type of the body, if it is one of `accepted`.
///
/// # Errors
/// 415 otherwise.
pub fn require_content_type<'a>(request: &HttpRequest, accepted: &[&'a str]) -> Result<&'a str, Problem> {
    let sent = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media_type = sent.split(';').next().unwrap_or("").trim();
    accepted.iter().copied().find(|accepted| media_type.eq_ignore_ascii_case(accepted)).ok_or_else(|| {
        let detail = format!("the body's Content-Type must be {}", accepted.join(" or "));
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", detail)
    })
}

fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Problem> {
    // Serde would take a list of the fields in their order as well.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|first| *first == b'[') {
        return Err(Problem::bad_request(
            "invalid-json",
            "the body cannot be read: it has to be a JSON object, not an array",
        ));
    }
    // serde_json stops at 128 levels of nesting, so a deep document costs no more than its bytes.
    serde_json::from_slice(bytes)
        .map_err(|error| Problem::bad_request("invalid-json", format!("the body cannot be read: {error}")))
}

/// Reads a whole body.
///
/// # Errors
/// 413, 408, or 400 if the connection breaks.
pub async fn read(payload: web::Payload, bytes_max: usize, timeout: Duration) -> Result<Bytes, Problem> {
    let reading = async {
        let mut payload = payload;
        let mut body = BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk =
                chunk.map_err(|_| Problem::bad_request("incomplete-body", "the body ended before it was complete"))?;
            if body.len() + chunk.len() > bytes_max {
                let detail = format!("the body exceeds {bytes_max} bytes (body_max_bytes of this listener)");
                return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", detail));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    };
    tokio::time::timeout(timeout, reading).await.unwrap_or_else(|_| Err(too_slow(timeout)))
}

/// 408.
#[must_use]
pub fn too_slow(timeout: Duration) -> Problem {
    let detail = format!("the body was not there within {} s (request_timeout of this listener)", timeout.as_secs());
    Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", detail)
}
