//! What every request passes: a request ID, header bounds, an access log line, a count.

use std::sync::Arc;
use std::time::Instant;

use actix_http::ConnectionType;
use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use actix_web::middleware::Next;
use actix_web::{Error, ResponseError as _, web};
use proxy_core::base::about;
use tracing::Instrument as _;
use tracing::field::Empty;

use super::exchange::{self, Answer, Answering};
use super::problem::Problem;
use super::routes::Routes;
use crate::api::problem::Code;
use crate::config::HttpSettings;
use crate::plane::Plane;
use crate::state::App;

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

/// Gives the request an ID (`x-request-id` on the answer), refuses a flood of headers and two credentials, logs the outcome and counts
/// it.
///
/// # Errors
/// As the inner service: handlers turn their problems into responses themselves.
pub async fn observe(
    routes: Routes,
    bounds: HeaderBounds,
    mut request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<Answer>, Error> {
    let plane = routes.plane;
    let answering = exchange::begin(&mut request);
    let id = request_id();
    // Handlers and the gateway fill in which device and which instance it is about, for every line of this request. The span is of
    // the highest level, so that no filter takes it from a line that is written.
    let span = tracing::error_span!(
        "request",
        request_id = &*id,
        plane = plane.as_str(),
        registration_id = Empty,
        instance = Empty,
        operation_id = Empty
    );
    let header_value = HeaderValue::from_str(&id).ok();
    about::with_request_id(id, async move {
        let began = Instant::now();
        let (method, app) = (request.method().clone(), request.app_data::<web::Data<App>>().cloned());
        let route = routes.route(request.path());
        let ambiguous = has_two_lengths(request.headers());
        let mut response = answer(bounds, request, next).await?;
        if let Some(value) = header_value {
            response.headers_mut().insert(HeaderName::from_static("x-request-id"), value);
        }
        let head = response.response_mut().head_mut();
        head.set_camel_case_headers(spells_names(plane));
        if ambiguous || answering.as_ref().is_some_and(Answering::is_last) {
            head.set_connection_type(ConnectionType::Close);
        }
        if head.connection_type() == ConnectionType::Close {
            answering.iter().for_each(Answering::closes);
        }
        let status = response.status().as_u16();
        if let Some(app) = app {
            app.metrics.answered(plane, route, status, began.elapsed());
        }
        let milliseconds = began.elapsed().as_millis();
        tracing::debug!(%method, route, status, milliseconds, "answered");
        Ok(response.map_body(|_, body| Answer::new(body, answering)))
    })
    .instrument(span)
    .await
}

/// Whether header names leave in their usual spelling: libraries on devices look for `Retry-After` and `Content-Length` exactly so.
pub(super) fn spells_names(plane: Plane) -> bool {
    plane == Plane::Device
}

fn request_id() -> Arc<str> {
    let mut text = uuid::Uuid::encode_buffer();
    Arc::from(&*uuid::Uuid::now_v7().hyphenated().encode_lower(&mut text))
}

async fn answer(
    bounds: HeaderBounds,
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    match refused(bounds, request.headers()) {
        Some(problem) => Ok(request.into_response(problem.error_response())),
        None => next.call(request).await,
    }
}

/// Whether two things say where the body ends, so that nobody knows where the next request begins.
fn has_two_lengths(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH)
}

/// What no plane takes, whatever the request is about.
fn refused(bounds: HeaderBounds, headers: &HeaderMap) -> Option<Problem> {
    let HeaderBounds { headers_max, header_bytes_max } = bounds;
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers.len() > headers_max || bytes > header_bytes_max {
        let detail = format!(
            "a request has at most {headers_max} header fields and {header_bytes_max} bytes of them (headers_max, header_bytes_max of this listener)"
        );
        return Some(Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Code::HeadersTooLarge, detail));
    }
    // Something in between may have gone by the length and taken the rest for a request of its own (RFC 9112, section 6.1).
    if has_two_lengths(headers) {
        let detail = "a request has a Content-Length or a Transfer-Encoding; this one has both";
        return Some(Problem::bad_request(Code::TwoLengths, detail));
    }
    // Something in between may have looked at the other one.
    (headers.get_all(AUTHORIZATION).count() > 1).then(|| {
        let detail = "a request has one Authorization header field; this one has several";
        Problem::bad_request(Code::SeveralCredentials, detail)
    })
}
