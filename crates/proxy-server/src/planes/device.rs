//! The device plane: `POST /v1/provision` and `GET /v1/time`.

use std::time::{Duration, Instant};

use actix_web::http::header::{AUTHORIZATION, CACHE_CONTROL, HOST, HeaderMap, HeaderName, RETRY_AFTER};
use actix_web::{HttpRequest, HttpResponse, web};
use proxy_core::attestation::{Presented, Proof, Selector};
use proxy_core::base::about;
use proxy_core::dialect::Dialect;
use proxy_core::ids::RegistrationId;
use proxy_core::use_cases::provision::{Intent, Outcome, ProvisionError, ProvisionRequest};
use rate_control::time::WallTime;
use serde_json::{Map, Value};

use crate::api::device::{Assigned, Provision, ProvisionProblems, Queued, Time, TimeProblems};
use crate::api::document::DEVICE;
use crate::api::problem::Code;
use crate::http::exchange::Exchange;
use crate::http::problem::Problem;
use crate::http::routes::{Routes, get, resource};
use crate::http::{body, middleware};
use crate::plane::Plane;
use crate::refusals;
use crate::state::App;

const PROVISION: &str = "/v1/provision";
const TIME: &str = "/v1/time";

/// The port of a URL without one: devices reach us by TLS, ours or that of something in front.
const HTTPS_PORT: u16 = 443;

/// What this plane answers.
pub(super) const ROUTES: Routes = Routes { plane: Plane::Device, paths: &[PROVISION, TIME], configure };

fn configure(config: &mut web::ServiceConfig) {
    config
        .service(resource(PROVISION, "POST").route(web::post().to(provision)))
        .service(resource(TIME, "GET, HEAD").route(get().to(time)));
}

/// What the document says of it.
#[derive(utoipa::OpenApi)]
#[openapi(paths(provision, time))]
pub(super) struct Described;

/// A device asks for its hub.
///
/// It repeats the same request until it gets 200, each time when it was told to. Coming early finds the same place; coming late finds the
/// answer. The registration happens at its time whether or not the device is back. An enrollment that believes its allow-list alone needs no
/// credential.
#[utoipa::path(
    post,
    path = PROVISION,
    tag = DEVICE,
    params(
        ("Prefer" = Option<String>, Header, nullable = false, description = "`wait=N` (RFC 7240): holds the request up to N seconds, and `device.wait_max`."),
    ),
    request_body = Provision,
    responses(
        (status = 200, description = "It has a hub.", body = Assigned, headers(
            ("Cache-Control" = String, description = "`no-store`"),
            ("Preference-Applied" = String, description = "`wait=N`, if the wish to wait was honoured."),
        )),
        (status = 202, description = "It waits in line.", body = Queued, headers(
            ("Cache-Control" = String, description = "`no-store`"),
            ("Preference-Applied" = String, description = "`wait=N`, if the wish to wait was honoured."),
            ("Retry-After" = u64, description = "When to come back, in whole seconds: a forecast for this device alone."),
        )),
        ProvisionProblems,
    ),
    security(("deviceSasToken" = []), ("fleetToken" = [])),
)]
async fn provision(app: web::Data<App>, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, Problem> {
    let limits = &app.server.device;
    let body: Provision =
        body::json(&request, payload, limits.http.body_max_bytes, limits.http.request_timeout).await?;
    if let Ok(id) = RegistrationId::parse(&body.hardware_id) {
        middleware::about_device(id.as_str());
    }
    let payload = checked_payload(body.payload, limits.payload_max_bytes)?;
    let authorization = request.headers().get(AUTHORIZATION);
    let (host, port) = host_and_port(request.headers()).unzip();
    let ports = [port.flatten().unwrap_or(HTTPS_PORT), limits.http.listen.port()];
    let mut question = ProvisionRequest {
        presented: Presented {
            hardware_id: &body.hardware_id,
            proof: authorization.map_or(Proof::Nothing, |value| Proof::Token(value.to_str().unwrap_or("\u{fffd}"))),
            selector: Selector { host: host.as_deref(), ports: &ports },
        },
        intent: Intent { payload, reprovision: body.reprovision },
        patience: preferred_wait(request.headers()).min(limits.wait_max),
        dialect: Dialect::PLAIN,
    };
    let asked = Instant::now();
    let wait = question.patience;
    let answered = answer(&app, &request, &mut question).await;
    let answered = answered.map_err(|error| {
        note(&app, &request, &body.hardware_id, &error);
        Problem::from(error).told_at(credential_time(&app))
    })?;
    Ok(respond(answered, wait, asked.elapsed()))
}

/// Waits for the answer for as long as the question says, but not for a device that sends no more.
async fn answer(
    app: &App,
    request: &HttpRequest,
    question: &mut ProvisionRequest<'_>,
) -> Result<Outcome, ProvisionError> {
    tokio::select! {
        biased;
        answered = app.gateway.provision(question) => return answered,
        () = peer_is_done(request), if !question.patience.is_zero() => {}
    }
    // Mostly nobody is there any more; a client that only said that it has nothing to add is answered at once.
    question.patience = Duration::ZERO;
    app.gateway.provision(question).await
}

/// Ready when the device sends no more over this connection: most likely it has closed it.
async fn peer_is_done(request: &HttpRequest) {
    match Exchange::of(request) {
        Some(exchange) => exchange.connection().peer_done().await,
        None => std::future::pending().await,
    }
}

/// What operators are to find of a refusal, whatever the device is told.
fn note(app: &App, request: &HttpRequest, hardware_id: &str, error: &ProvisionError) {
    let ProvisionError::NotBelieved(not_believed) = error else { return };
    let (id, peer) = (about::request_id(), request.peer_addr().map(|address| address.ip()));
    let refused = refusals::Request { id: id.as_deref(), hardware_id, peer };
    app.metrics.credential_refused(not_believed.reason);
    app.refusals.note(app.gateway.now().wall, not_believed, refused);
}

/// `wait` is what the device asked for, within `device.wait_max`; `waited` is how long it did.
fn respond(answered: Outcome, wait: Duration, waited: Duration) -> HttpResponse {
    let mut response = match answered {
        Outcome::Assigned(_) => HttpResponse::Ok(),
        Outcome::Queued(_) => HttpResponse::Accepted(),
    };
    response.insert_header((CACHE_CONTROL, "no-store"));
    // A place that is told early was not waited for: too many requests are held, or the service is about to stop.
    let honoured = matches!(answered, Outcome::Assigned(_)) || waited >= wait;
    if honoured && !wait.is_zero() {
        response.insert_header((HeaderName::from_static("preference-applied"), format!("wait={}", wait.as_secs())));
    }
    match answered {
        Outcome::Assigned(assigned) => response.json(Assigned::from(*assigned)),
        Outcome::Queued(queued) => {
            response.insert_header((RETRY_AFTER, queued.retry_after_seconds));
            response.json(Queued::from(queued))
        }
    }
}

fn checked_payload(payload: Option<Map<String, Value>>, bytes_max: usize) -> Result<Option<Value>, Problem> {
    let Some(payload) = payload.map(Value::Object) else { return Ok(None) };
    if payload.to_string().len() > bytes_max {
        let detail = format!("payload exceeds {bytes_max} bytes of JSON (device.payload_max_bytes)");
        return Err(Problem::new(actix_web::http::StatusCode::PAYLOAD_TOO_LARGE, Code::PayloadTooLarge, detail));
    }
    Ok(Some(payload))
}

/// The host the device called, and the port if it named one.
fn host_and_port(headers: &HeaderMap) -> Option<(String, Option<u16>)> {
    let host = headers.get(HOST)?.to_str().ok()?;
    let (name, port) = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
        .map_or((host, None), |(name, port)| (name, port.parse().ok()));
    Some((name.to_ascii_lowercase(), port))
}

/// `Prefer: wait=N` (RFC 7240), in seconds; zero if there is none that can be read.
fn preferred_wait(headers: &HeaderMap) -> Duration {
    let preferences = headers.get_all(HeaderName::from_static("prefer")).filter_map(|value| value.to_str().ok());
    let wait = preferences.flat_map(|value| value.split(',')).find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| value.trim().trim_matches('"').parse().ok()).flatten()
    });
    Duration::from_secs(wait.unwrap_or(0))
}

/// The time that devices' credentials are judged by.
fn credential_time(app: &App) -> WallTime {
    app.gateway.credential_time(app.gateway.now())
}

/// The time, for devices without a clock. Needs no credential.
#[utoipa::path(
    get,
    path = TIME,
    tag = DEVICE,
    responses(
        (status = 200, description = "The time.", body = Time, headers(("Cache-Control" = String, description = "`no-store`"))),
        TimeProblems,
    ),
)]
async fn time(app: web::Data<App>) -> HttpResponse {
    HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(Time::from(credential_time(&app)))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn headers(name: &str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap());
        headers
    }

    #[test]
    fn prefer_wait_is_read_as_rfc_7240_writes_it() {
        for (value, seconds) in [
            ("wait=10", 10),
            ("respond-async, wait=5", 5),
            ("Wait = \"7\"; foo=bar", 7),
            ("wait=x", 0),
            ("respond-async", 0),
        ] {
            assert_eq!(preferred_wait(&headers("prefer", value)), Duration::from_secs(seconds), "{value}");
        }
    }

    #[test]
    fn the_host_and_its_port_are_told_apart() {
        for (value, expected) in [
            ("Gateway.example.com:443", ("gateway.example.com", Some(443))),
            ("gateway.example.com", ("gateway.example.com", None)),
            ("gateway.example.com:99999", ("gateway.example.com", None)),
            ("[::1]", ("[::1]", None)),
            ("[::1]:8443", ("[::1]", Some(8443))),
        ] {
            let (host, port) = host_and_port(&headers("host", value)).unwrap();
            assert_eq!((host.as_str(), port), expected);
        }
    }
}
