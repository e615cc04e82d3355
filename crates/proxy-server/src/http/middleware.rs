//! What every request passes: a request ID, header bounds, an access log line, a count.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix_web::body::MessageBody;
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::PayloadError;
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderName, HeaderValue, TRANSFER_ENCODING};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage as _, ResponseError as _, web};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use proxy_core::gateway::about;
use tracing::Instrument as _;
use tracing::field::Empty;

use super::problem::Problem;
use super::{backend, device, operator};
use crate::app::App;
use crate::config::HttpSettings;
use crate::metrics::Plane;

/// How long a chunked body is kept after its answer: more than an answer needs to leave.
const CHUNKED_BODY_KEPT: Duration = Duration::from_secs(10);

/// How much of headers one request may have.
#[derive(Debug, Clone, Copy)]
pub struct HeaderBounds {
    headers_max: usize,
    header_bytes_max: usize,
}

impl HeaderBounds {
    /// Those of a listener.
    #[must_use]
    pub fn of(settings: &HttpSettings) -> Self {
        Self { headers_max: settings.headers_max, header_bytes_max: settings.header_bytes_max }
    }
}

/// Says in every further log line of this request which device it is about.
pub fn about_device(registration_id: &str) {
    tracing::Span::current().record("registration_id", registration_id);
}

/// Says in every further log line of this request which instance it is about.
pub fn about_instance(instance: &str) {
    tracing::Span::current().record("instance", instance);
}

/// Gives the request an ID (`x-request-id` on the answer), refuses a flood of headers, logs the outcome and counts it.
///
/// # Errors
/// As the inner service: handlers turn their problems into responses themselves.
pub async fn observe<B: MessageBody + 'static>(
    plane: Plane,
    bounds: HeaderBounds,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let id: Arc<str> = uuid::Uuid::now_v7().to_string().into();
    // Handlers and the gateway fill in which device and which instance it is about, for every line of this request. The span is of
    // the highest level, so that no filter takes it from a line that is written.
    let span = tracing::error_span!("request", request_id = %id, plane = plane.as_str(), registration_id = Empty, instance = Empty, operation_id = Empty);
    let header_value = HeaderValue::from_str(&id).ok();
    about::with_request_id(id, async move {
        let began = Instant::now();
        let (method, app) = (request.method().clone(), request.app_data::<web::Data<App>>().cloned());
        let route = route(plane, request.path());
        let (request, body) = keep_chunked_body(request);
        let outcome = answer(bounds, request, next).await;
        if let Some(body) = body {
            actix_web::rt::spawn(tokio::time::timeout(CHUNKED_BODY_KEPT, body.count()));
        }
        let mut response = outcome?;
        if let Some(value) = header_value {
            response.headers_mut().insert(HeaderName::from_static("x-request-id"), value);
        }
        let status = response.status().as_u16();
        if let Some(app) = app {
            app.metrics.answered(plane, route, status, began.elapsed());
        }
        let milliseconds = began.elapsed().as_millis();
        tracing::debug!(%method, route, status, milliseconds, "answered");
        Ok(response)
    })
    .instrument(span)
    .await
}

/// A second handle on a chunked body.
///
/// actix closes a connection, after the answer, whose request body is neither read to its end nor dropped. One that is dropped it
/// reads to the end for the next request; with chunks that may be never, and no timeout counts. So it must not be dropped before
/// the answer has left.
fn keep_chunked_body(mut request: ServiceRequest) -> (ServiceRequest, Option<SharedBody>) {
    if !request.headers().contains_key(TRANSFER_ENCODING) {
        return (request, None);
    }
    let body = SharedBody(Rc::new(RefCell::new(request.take_payload())));
    request.set_payload(Payload::Stream { payload: Box::pin(body.clone()) });
    (request, Some(body))
}

#[derive(Clone)]
struct SharedBody(Rc<RefCell<Payload>>);

impl Stream for SharedBody {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_next(context)
    }
}

/// The route that a path belongs to, for labels. actix could tell it too, but only by matching every expression again.
fn route(plane: Plane, path: &str) -> &'static str {
    let paths: &[&'static str] = match plane {
        Plane::Device => &device::PATHS,
        Plane::Backend => &backend::PATHS,
        Plane::Operator => &operator::PATHS,
    };
    let matches = |pattern: &&&str| {
        let (mut segments, mut expected) = (path.split('/'), pattern.split('/'));
        loop {
            match (segments.next(), expected.next()) {
                (None, None) => return true,
                (Some(segment), Some(wanted))
                    if segment == wanted || (wanted.starts_with('{') && !segment.is_empty()) => {}
                (Some(_) | None, Some(_) | None) => return false,
            }
        }
    };
    paths.iter().find(matches).copied().unwrap_or("unmatched")
}

async fn answer<B: MessageBody + 'static>(
    bounds: HeaderBounds,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let HeaderBounds { headers_max, header_bytes_max } = bounds;
    let headers = request.headers();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers.len() > headers_max || bytes > header_bytes_max {
        let detail = format!(
            "a request has at most {headers_max} header fields and {header_bytes_max} bytes of them (headers_max, header_bytes_max of this listener)"
        );
        let problem = Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers-too-large", detail);
        return Ok(request.into_response(problem.error_response()).map_into_right_body());
    }
    Ok(next.call(request).await?.map_into_left_body())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_the_route_and_never_the_path() {
        for (plane, path, label) in [
            (Plane::Device, "/v1/provision", "/v1/provision"),
            (Plane::Device, "/v1/provision/x", "unmatched"),
            (Plane::Backend, "/v1/devices/sn-1/assignment", "/v1/devices/{deviceId}/assignment"),
            (Plane::Backend, "/v1/devices//assignment", "unmatched"),
            (Plane::Operator, "/v1/registrations/import", "/v1/registrations/import"),
            (Plane::Operator, "/v1/registrations/sn-1", "/v1/registrations/{registrationId}"),
            (Plane::Operator, "/v1/registrations/sn-1/block", "/v1/registrations/{registrationId}/{action}"),
            (Plane::Operator, "/v1/devices/sn-1/assignment", "unmatched"),
        ] {
            assert_eq!(route(plane, path), label, "{path}");
        }
    }
}
