//! The backend plane: which hub is this device on?

use actix_web::http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use actix_web::{HttpRequest, HttpResponse, web};
use proxy_core::gateway::backend::{AssignmentView, Found};
use proxy_core::ids::HubName;
use serde_json::{Value, json};

use super::tenants::visible_tenants;
use super::{bearer, changes, lists};
use crate::http::members::{FromMembers, Members};
use crate::http::problem::Problem;
use crate::http::routes::{Routes, get, path_parameter, resource};
use crate::http::{body, middleware};
use crate::plane::Plane;
use crate::state::App;

/// Longest reason that is kept.
const REASON_CHARS_MAX: usize = 200;

const ASSIGNMENT: &str = "/v1/devices/{deviceId}/assignment";
const INVALIDATE: &str = "/v1/devices/{deviceId}/assignment/invalidate";
const ASSIGNMENTS: &str = "/v1/assignments";
const LOOKUP: &str = "/v1/assignments/lookup";
const CHANGES: &str = "/v1/assignments/changes";
const INVALIDATE_HUB: &str = "/v1/hubs/{hostName}/invalidate";

/// What this plane answers.
pub(super) const ROUTES: Routes = Routes {
    plane: Plane::Backend,
    paths: &[ASSIGNMENT, INVALIDATE, ASSIGNMENTS, LOOKUP, CHANGES, INVALIDATE_HUB],
    configure,
};

fn configure(config: &mut web::ServiceConfig) {
    config
        .service(resource(ASSIGNMENT, "GET, HEAD").route(get().to(assignment)))
        .service(resource(INVALIDATE, "POST").route(web::post().to(invalidate)))
        .service(resource(ASSIGNMENTS, "GET, HEAD").route(get().to(lists::assignments)))
        .service(resource(LOOKUP, "POST").route(web::post().to(lookup)))
        .service(resource(CHANGES, "GET, HEAD").route(get().to(changes::changes)))
        .service(resource(INVALIDATE_HUB, "POST").route(web::post().to(invalidate_hub)));
}

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
    Ok(if unchanged { response.finish() } else { response.json(&*view) })
}

struct LookupBody {
    device_ids: Vec<String>,
}

impl FromMembers for LookupBody {
    fn from_members(members: &Members) -> Result<Self, String> {
        Ok(Self { device_ids: members.required_texts("deviceIds")? })
    }
}

async fn lookup(app: web::Data<App>, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, Problem> {
    let token = bearer::backend(&app, &request)?;
    let tenants = visible_tenants(&token, &request)?;
    let limits = &app.server.backend;
    let body: LookupBody =
        body::json(&request, payload, limits.http.body_max_bytes, limits.http.request_timeout).await?;
    if body.device_ids.len() > limits.lookup_ids_max {
        let detail = format!(
            "{} device IDs; a lookup takes at most {} (backend.lookup_ids_max)",
            body.device_ids.len(),
            limits.lookup_ids_max
        );
        return Err(Problem::bad_request("too-many-ids", detail));
    }
    let mut answers = Vec::with_capacity(body.device_ids.len());
    for device_id in &body.device_ids {
        let found = app.gateway.find(device_id, tenants.as_ref()).await?;
        answers.push(lookup_answer(device_id, found));
    }
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-cache")).json(json!({ "assignments": answers })))
}

fn lookup_answer(device_id: &str, found: Found) -> Value {
    match found {
        Found::Assignment(view) => json!({ "deviceId": device_id, "found": true, "assignment": view }),
        other => {
            let problem = Problem::from(other);
            let mut answer = problem.members().clone();
            answer.insert("deviceId".to_owned(), json!(device_id));
            answer.insert("found".to_owned(), json!(false));
            answer.insert("code".to_owned(), json!(problem.code()));
            Value::Object(answer)
        }
    }
}

#[derive(Default)]
struct InvalidateBody {
    reason: Option<String>,
}

impl FromMembers for InvalidateBody {
    fn from_members(members: &Members) -> Result<Self, String> {
        Ok(Self { reason: members.text("reason")? })
    }
}

impl InvalidateBody {
    /// Goes into the timeline, so it is bounded and printable.
    fn reason(&self) -> String {
        let reason = self.reason.as_deref().unwrap_or("no reason given");
        reason.chars().filter(|character| !character.is_control()).take(REASON_CHARS_MAX).collect()
    }
}

async fn invalidate(app: web::Data<App>, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, Problem> {
    let token = bearer::backend(&app, &request)?;
    let tenants = visible_tenants(&token, &request)?;
    let device_id = path_parameter(&request, "deviceId")?;
    let http = &app.server.backend.http;
    let body: InvalidateBody =
        body::optional_json(&request, payload, http.body_max_bytes, http.request_timeout).await?;
    let view = app.gateway.invalidate(&device_id, tenants.as_ref(), &body.reason()).await?;
    middleware::about_device(view.registration_id.as_str());
    middleware::about_instance(view.instance.as_str());
    tracing::info!(backend = token.name, reason = body.reason(), "assignment invalidated");
    Ok(HttpResponse::Ok().json(view))
}

async fn invalidate_hub(
    app: web::Data<App>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let token = bearer::backend(&app, &request)?;
    let tenants = visible_tenants(&token, &request)?;
    let hub = HubName::parse(&path_parameter(&request, "hostName")?)
        .map_err(|error| Problem::bad_request("invalid-host-name", error.to_string()))?;
    let http = &app.server.backend.http;
    let body: InvalidateBody =
        body::optional_json(&request, payload, http.body_max_bytes, http.request_timeout).await?;
    let one_at_a_time = app.scans.begin(Plane::Backend, &token.name)?;
    let invalidated = app.gateway.invalidate_hub(hub.clone(), tenants, body.reason(), one_at_a_time).await?;
    tracing::warn!(assigned_hub = %hub, backend = token.name, invalidated, reason = body.reason(), "hub invalidated");
    Ok(HttpResponse::Ok().json(json!({ "hub": hub, "invalidated": invalidated })))
}
