//! The backend plane: which hub is this device on?

use actix_web::http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use actix_web::{HttpRequest, HttpResponse, web};
use proxy_core::ids::HubName;
use proxy_core::use_cases::backend::{AssignmentView, Found};

use super::tenants::visible_tenants;
use super::{bearer, changes, lists, openapi};
use crate::api::assignments::{
    Assignment, AssignmentProblems, FoundAnswer, HubInvalidated, InvalidateHubProblems, InvalidateProblems,
    Invalidation, Lookup, LookupAnswer, LookupAnswers, LookupProblems,
};
use crate::api::document::BACKEND;
use crate::api::names::{HostName, TenantName};
use crate::api::problem::Code;
use crate::http::problem::Problem;
use crate::http::routes::{Routes, get, path_parameter, resource};
use crate::http::{body, middleware};
use crate::plane::Plane;
use crate::state::App;

/// Longest reason that is kept.
const REASON_CHARS_MAX: usize = 200;

const ASSIGNMENT: &str = "/v1/devices/{deviceId}/assignment";
const INVALIDATE: &str = "/v1/devices/{deviceId}/assignment/invalidate";
const LOOKUP: &str = "/v1/assignments/lookup";
const INVALIDATE_HUB: &str = "/v1/hubs/{hostName}/invalidate";

/// What this plane answers.
pub(super) const ROUTES: Routes = Routes {
    plane: Plane::Backend,
    paths: &[ASSIGNMENT, INVALIDATE, lists::ASSIGNMENTS, LOOKUP, changes::CHANGES, INVALIDATE_HUB, openapi::OPENAPI],
    configure,
};

fn configure(config: &mut web::ServiceConfig) {
    config
        .service(resource(ASSIGNMENT, "GET, HEAD").route(get().to(assignment)))
        .service(resource(INVALIDATE, "POST").route(web::post().to(invalidate)))
        .service(resource(lists::ASSIGNMENTS, "GET, HEAD").route(get().to(lists::assignments)))
        .service(resource(LOOKUP, "POST").route(web::post().to(lookup)))
        .service(resource(changes::CHANGES, "GET, HEAD").route(get().to(changes::changes)))
        .service(resource(INVALIDATE_HUB, "POST").route(web::post().to(invalidate_hub)))
        .service(resource(openapi::OPENAPI, "GET, HEAD").route(get().to(openapi::openapi)));
}

/// What the document says of it.
#[derive(utoipa::OpenApi)]
#[openapi(paths(assignment, invalidate, lists::assignments, lookup, changes::changes, invalidate_hub))]
pub(super) struct Described;

/// Changes with every change that a backend could care about, and is never the same for two records that follow each other.
fn etag(view: &AssignmentView) -> String {
    format!("\"{}-{:x}\"", view.revision, view.last_confirmed_at.unix_millis())
}

/// Whether a member of `If-None-Match` names `etag`: compared weakly (RFC 9110 8.8.3.2), and without the suffix by which a proxy
/// that compresses tells its own encoding apart. Our tags never end in one of these.
fn names(known: &str, etag: &str) -> bool {
    const ENCODINGS: [&str; 6] = ["--gzip", "-gzip", ";gzip", "-br", "-zstd", "-deflate"];
    let inside = |tag: &str| tag.trim_start_matches("W/").trim_matches('"').to_owned();
    let known_inside = inside(known);
    let plain = ENCODINGS.iter().find_map(|encoding| known_inside.strip_suffix(encoding)).unwrap_or(&known_inside);
    known == "*" || plain == inside(etag)
}

/// Which hub is this device on?
///
/// Reads memory and the local store only. Rely on an assignment of state `confirmed`.
#[utoipa::path(
    get,
    path = ASSIGNMENT,
    tag = BACKEND,
    params(
        ("deviceId" = String, Path, description = "As its hub knows it; case-sensitive.", min_length = 1),
        ("tenant" = Option<TenantName>, Query, description = "Only devices of this tenant."),
        ("If-None-Match" = Option<String>, Header, nullable = false, description = "The `ETag` that is known; compared weakly."),
    ),
    responses(
        (status = 200, description = "Its assignment, in whatever state.", body = Assignment, headers(
            ("Cache-Control" = String, description = "`no-cache`"),
            ("ETag" = String, description = "Changes with every change of the assignment."),
        )),
        (status = 304, description = "It is as `If-None-Match` names it.", headers(
            ("Cache-Control" = String, description = "`no-cache`"),
            ("ETag" = String, description = "Changes with every change of the assignment."),
        )),
        AssignmentProblems,
    ),
    security(("backendToken" = [])),
)]
async fn assignment(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let token = bearer::backend(&app, &request)?;
    let tenants = visible_tenants(&token, &request)?;
    let device_id = path_parameter(&request, "deviceId")?;
    let view = match app.gateway.find(&device_id, tenants.as_ref()).await? {
        Found::Assignment(view) => view,
        other => return Err(other.into()),
    };
    middleware::about_device(view.registration_id.as_str());
    middleware::about_instance(view.instance.as_str());
    let etag = etag(&view);
    let known = request.headers().get_all(IF_NONE_MATCH).filter_map(|value| value.to_str().ok());
    let unchanged = known.flat_map(|value| value.split(',')).any(|known| names(known.trim(), &etag));
    let mut response = if unchanged { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response.insert_header((CACHE_CONTROL, "no-cache")).insert_header((ETAG, etag));
    Ok(if unchanged { response.finish() } else { response.json(Assignment::from(*view)) })
}

/// The same for many devices at once.
///
/// One answer per ID, in the order asked.
#[utoipa::path(
    post,
    path = LOOKUP,
    tag = BACKEND,
    params(
        ("tenant" = Option<TenantName>, Query, description = "Only devices of this tenant."),
    ),
    request_body = Lookup,
    responses(
        (status = 200, description = "What is known of each.", body = LookupAnswers, headers(
            ("Cache-Control" = String, description = "`no-cache`"),
        )),
        LookupProblems,
    ),
    security(("backendToken" = [])),
)]
async fn lookup(app: web::Data<App>, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, Problem> {
    let token = bearer::backend(&app, &request)?;
    let tenants = visible_tenants(&token, &request)?;
    let limits = &app.server.backend;
    let body: Lookup = body::json(&request, payload, limits.http.body_max_bytes, limits.http.request_timeout).await?;
    if body.device_ids.len() > limits.lookup_ids_max {
        let detail = format!(
            "{} device IDs; a lookup takes at most {} (backend.lookup_ids_max)",
            body.device_ids.len(),
            limits.lookup_ids_max
        );
        return Err(Problem::bad_request(Code::TooManyIds, detail));
    }
    let mut answers = Vec::with_capacity(body.device_ids.len());
    for device_id in &body.device_ids {
        let found = app.gateway.find(device_id, tenants.as_ref()).await?;
        answers.push(lookup_answer(device_id, found));
    }
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-cache")).json(LookupAnswers { assignments: answers }))
}

fn lookup_answer(device_id: &str, found: Found) -> LookupAnswer {
    match found {
        Found::Assignment(view) => LookupAnswer::Found(FoundAnswer {
            device_id: device_id.to_owned(),
            found: true,
            assignment: (*view).into(),
        }),
        other => LookupAnswer::NotFound(Problem::from(other).in_lookup(device_id)),
    }
}

/// Goes into the timeline, so it is bounded and printable.
fn reason(body: &Invalidation) -> String {
    let reason = body.reason.as_deref().unwrap_or("no reason given");
    reason.chars().filter(|character| !character.is_control()).take(REASON_CHARS_MAX).collect()
}

/// Contradicts an assignment.
///
/// It becomes `suspect`, and the device joins the line; one registration per cool-down. For what only the device's hub can tell: `404001` or
/// `amqp:not-found`.
#[utoipa::path(
    post,
    path = INVALIDATE,
    tag = BACKEND,
    params(
        ("deviceId" = String, Path, description = "As its hub knows it; case-sensitive.", min_length = 1),
        ("tenant" = Option<TenantName>, Query, description = "Only devices of this tenant."),
    ),
    request_body = Invalidation,
    responses((status = 200, description = "The assignment as it is now.", body = Assignment), InvalidateProblems),
    security(("backendToken" = [])),
)]
async fn invalidate(app: web::Data<App>, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, Problem> {
    let token = bearer::backend(&app, &request)?;
    let tenants = visible_tenants(&token, &request)?;
    let device_id = path_parameter(&request, "deviceId")?;
    let http = &app.server.backend.http;
    let body: Invalidation = body::optional_json(&request, payload, http.body_max_bytes, http.request_timeout).await?;
    let reason = reason(&body);
    let view = app.gateway.invalidate(&device_id, tenants.as_ref(), &reason).await?;
    middleware::about_device(view.registration_id.as_str());
    middleware::about_instance(view.instance.as_str());
    tracing::info!(backend = token.name, reason, "assignment invalidated");
    Ok(HttpResponse::Ok().json(Assignment::from(view)))
}

/// Contradicts all assignments to a hub.
///
/// For a hub that is gone: a name that no longer resolves, `401001`, `hub-not-found`. It goes on to its end if the caller hangs up, and is
/// safe to repeat.
#[utoipa::path(
    post,
    path = INVALIDATE_HUB,
    tag = BACKEND,
    params(
        ("hostName" = HostName, Path, description = "The hub."),
        ("tenant" = Option<TenantName>, Query, description = "Only devices of this tenant."),
    ),
    request_body = Invalidation,
    responses((status = 200, description = "How many there were.", body = HubInvalidated), InvalidateHubProblems),
    security(("backendToken" = [])),
)]
async fn invalidate_hub(
    app: web::Data<App>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let token = bearer::backend(&app, &request)?;
    let tenants = visible_tenants(&token, &request)?;
    let hub = HubName::parse(&path_parameter(&request, "hostName")?)
        .map_err(|error| Problem::bad_request(Code::InvalidHostName, error.to_string()))?;
    let http = &app.server.backend.http;
    let body: Invalidation = body::optional_json(&request, payload, http.body_max_bytes, http.request_timeout).await?;
    let reason = reason(&body);
    let one_at_a_time = app.scans.begin(Plane::Backend, &token.name)?;
    let invalidated = app.gateway.invalidate_hub(hub.clone(), tenants, reason.clone(), one_at_a_time).await?;
    tracing::warn!(assigned_hub = %hub, backend = token.name, invalidated, reason, "hub invalidated");
    Ok(HttpResponse::Ok().json(HubInvalidated::new(hub, invalidated)))
}
