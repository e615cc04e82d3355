//! The operator plane: health, metrics, instances, and what can be done about one device.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, VARY};
use actix_web::{HttpRequest, HttpResponse, web};
use proxy_core::attestation::Reason;
use proxy_core::gateway::operator::RegistrationView;
use proxy_core::ids::{InstanceName, RegistrationId};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::Instrument as _;

use super::{bearer, import, lists};
use crate::config::OperatorRole;
use crate::http::members::{FromMembers, Members};
use crate::http::problem::Problem;
use crate::http::routes::{Routes, get, no_such_path, path_parameter, resource};
use crate::http::{body, middleware};
use crate::metrics::TextFormat;
use crate::plane::Plane;
use crate::refusals::{Wanted, reason_named};
use crate::reload;
use crate::state::App;

/// Longest reason that is kept.
const REASON_CHARS_MAX: usize = 200;

const HEALTHZ: &str = "/healthz";
const READYZ: &str = "/readyz";
const METRICS: &str = "/metrics";
const INSTANCES: &str = "/v1/instances";
const REFUSALS: &str = "/v1/refusals";
const RELOAD: &str = "/v1/config/reload";
const IMPORT: &str = "/v1/registrations/import";
const REGISTRATIONS: &str = "/v1/registrations";
const REGISTRATION: &str = "/v1/registrations/{registrationId}";
const ACTION: &str = "/v1/registrations/{registrationId}/{action}";

/// What this plane answers.
pub(super) const ROUTES: Routes = Routes {
    plane: Plane::Operator,
    paths: &[HEALTHZ, READYZ, METRICS, INSTANCES, REFUSALS, RELOAD, IMPORT, REGISTRATIONS, REGISTRATION, ACTION],
    configure,
};

fn configure(config: &mut web::ServiceConfig) {
    config
        .service(resource(HEALTHZ, "GET, HEAD").route(get().to(healthz)))
        .service(resource(READYZ, "GET, HEAD").route(get().to(readyz)))
        .service(resource(METRICS, "GET, HEAD").route(get().to(metrics)))
        .service(resource(INSTANCES, "GET, HEAD").route(get().to(instances)))
        .service(resource(REFUSALS, "GET, HEAD").route(get().to(refusals)))
        .service(resource(RELOAD, "POST").route(web::post().to(reload_config)))
        .service(resource(IMPORT, "POST").route(web::post().to(import::import)))
        .service(resource(REGISTRATIONS, "GET, HEAD").route(get().to(lists::registrations)))
        .service(
            resource(REGISTRATION, "GET, HEAD, DELETE").route(get().to(registration)).route(web::delete().to(delete)),
        )
        .service(resource(ACTION, "POST").route(web::post().to(act)));
}

async fn healthz() -> HttpResponse {
    HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(json!({ "status": "alive" }))
}

async fn readyz(app: web::Data<App>) -> HttpResponse {
    let (mut response, status) =
        if app.is_ready() { (HttpResponse::Ok(), "ready") } else { (HttpResponse::ServiceUnavailable(), "not-ready") };
    if status != "ready" {
        response.insert_header((RETRY_AFTER, 1));
    }
    response.insert_header((CACHE_CONTROL, "no-store")).json(json!({ "status": status }))
}

async fn metrics(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    bearer::operator(&app, &request, OperatorRole::Read)?;
    let accept: Vec<&str> = request.headers().get_all(ACCEPT).filter_map(|value| value.to_str().ok()).collect();
    let format = TextFormat::preferred(&accept.join(","));
    let text = app.metrics.encode(&app.gateway, app.facts(), format);
    Ok(HttpResponse::Ok()
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header((VARY, "accept"))
        .insert_header((CONTENT_TYPE, format.content_type()))
        .body(text))
}

async fn instances(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    bearer::operator(&app, &request, OperatorRole::Read)?;
    Ok(HttpResponse::Ok()
        .insert_header((CACHE_CONTROL, "no-store"))
        .json(json!({ "instances": app.gateway.instances() })))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RefusalsQuery {
    hardware_id: Option<String>,
    request_id: Option<String>,
    reason: Option<String>,
    tenant: Option<String>,
    limit: Option<usize>,
}

/// Refusals told at once, unless fewer are asked for.
const REFUSALS_DEFAULT: usize = 100;
const REFUSALS_MAX: usize = 1000;

async fn refusals(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    bearer::operator(&app, &request, OperatorRole::Read)?;
    let query = web::Query::<RefusalsQuery>::from_query(request.query_string()).map_err(|_| {
        let detail = "the query parameters are hardwareId, requestId, reason, tenant and limit, each at most once";
        Problem::bad_request("invalid-query", detail)
    })?;
    let RefusalsQuery { hardware_id, request_id, reason, tenant, limit } = query.into_inner();
    if reason.as_deref().is_some_and(|name| reason_named(name).is_none()) {
        let names = Reason::ALL.map(Reason::as_str).join(", ");
        return Err(Problem::bad_request("invalid-query", format!("reason: is one of {names}")));
    }
    let limit = limit.unwrap_or(REFUSALS_DEFAULT);
    if !(1..=REFUSALS_MAX).contains(&limit) {
        return Err(Problem::bad_request("invalid-query", format!("limit: is 1 to {REFUSALS_MAX}")));
    }
    let latest = app.refusals.latest(&Wanted { hardware_id, request_id, reason, tenant }, limit);
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(json!({ "refusals": latest })))
}

async fn reload_config(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let token = bearer::operator(&app, &request, OperatorRole::Operate)?;
    tracing::info!(operator = token.name, "reload of the configuration asked for");
    // In a task of its own: an operator who hangs up must not leave half of it done.
    let reloading = tokio::spawn(async move { reload::reload(&app).await }.in_current_span());
    match reloading.await.unwrap_or_else(|error| Err(vec![format!("the reload broke off: {error}")])) {
        Ok(applied) => Ok(HttpResponse::Ok().json(json!({
            "applied": true, "restartNeeded": applied.restart_needed, "warnings": applied.warnings,
        }))),
        Err(problems) => {
            let detail = "the configuration is refused whole; the values in force stay: see problems";
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-configuration", detail)
                .retry_after(Duration::from_secs(1))
                .member("problems", json!(problems)))
        }
    }
}

fn registration_id(request: &HttpRequest) -> Result<RegistrationId, Problem> {
    let text = path_parameter(request, "registrationId")?;
    let id = RegistrationId::parse(&text)
        .map_err(|error| Problem::bad_request("invalid-registration-id", error.to_string()))?;
    middleware::about_device(id.as_str());
    Ok(id)
}

async fn registration(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    bearer::operator(&app, &request, OperatorRole::Read)?;
    let view = app.gateway.registration(&registration_id(&request)?).await?;
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(shown(&view)))
}

/// A device as operators are shown it: without tenant and enrollment while those are unknown.
fn shown(view: &RegistrationView) -> Value {
    let mut shown = json!(view);
    if view.record.is_unclaimed()
        && let Some(members) = shown.as_object_mut()
    {
        members.retain(|name, _| !matches!(name.as_str(), "tenant" | "enrollment"));
    }
    shown
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DeleteQuery {
    #[serde(default)]
    dps_record_deleted: bool,
}

async fn delete(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let token = bearer::operator(&app, &request, OperatorRole::Operate)?;
    let id = registration_id(&request)?;
    let query = web::Query::<DeleteQuery>::from_query(request.query_string()).map_err(|_| {
        Problem::bad_request("invalid-query", "the only query parameter is dpsRecordDeleted=true or false")
    })?;
    let left = app.gateway.retire(&id, query.dps_record_deleted).await?;
    tracing::info!(operator = token.name, tombstone = left.is_some(), "retired");
    match left {
        None => Ok(HttpResponse::NoContent().finish()),
        Some(_) => Ok(HttpResponse::Ok().json(shown(&app.gateway.registration(&id).await?))),
    }
}

#[derive(Default)]
struct ActionBody {
    reason: Option<String>,
    instance: Option<String>,
}

impl FromMembers for ActionBody {
    fn from_members(members: &Members) -> Result<Self, String> {
        Ok(Self { reason: members.text("reason")?, instance: members.text("instance")? })
    }
}

async fn act(app: web::Data<App>, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, Problem> {
    let token = bearer::operator(&app, &request, OperatorRole::Operate)?;
    let id = registration_id(&request)?;
    let action = path_parameter(&request, "action")?;
    let http = &app.server.operator.http;
    let body: ActionBody = body::optional_json(&request, payload, http.body_max_bytes, http.request_timeout).await?;
    // It goes into the timeline, so it is bounded and printable.
    let printable =
        |reason: String| reason.chars().filter(|character| !character.is_control()).take(REASON_CHARS_MAX).collect();
    let reason: Option<String> = body.reason.map(printable);
    match action.as_str() {
        "block" => drop(app.gateway.block(&id, &token.name, reason.as_deref()).await?),
        "unblock" => {
            if app.gateway.unblock(&id, &token.name).await?.is_none() {
                tracing::info!(
                    operator = token.name,
                    action,
                    "done for an operator; nothing else was known of the device"
                );
                return Ok(HttpResponse::NoContent().finish());
            }
        }
        "retry" => drop(app.gateway.retry(&id).await?),
        "expedite" => drop(app.gateway.expedite(&id).await?),
        "move" => {
            let wanted = body
                .instance
                .ok_or_else(|| Problem::bad_request("invalid-request", "instance: name the instance to move to"))?;
            let instance = InstanceName::parse(&wanted)
                .map_err(|error| Problem::bad_request("invalid-request", format!("instance: {error}")))?;
            drop(app.gateway.move_to(&id, &instance).await?);
        }
        _ => return no_such_path().await,
    }
    let view = app.gateway.registration(&id).await?;
    tracing::info!(operator = token.name, action, reason, "done for an operator");
    Ok(HttpResponse::Ok().json(shown(&view)))
}
