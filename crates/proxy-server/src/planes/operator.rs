//! The operator plane: health, metrics, instances, and what can be done about one device.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, VARY};
use actix_web::{HttpRequest, HttpResponse, web};
use proxy_core::attestation::Reason;
use proxy_core::ids::{InstanceName, RegistrationId};
use tracing::Instrument as _;

use super::{bearer, import, lists, openapi};
use crate::api::document::OPERATOR;
use crate::api::instances::{Instance, Instances, InstancesProblems};
use crate::api::members::FromMembers;
use crate::api::names::HardwareId;
use crate::api::problem::Code;
use crate::api::refusals::{Refusals, RefusalsProblems, RefusalsQuery, Refused};
use crate::api::registrations::{
    Action, ActionProblems, DeleteProblems, DeleteQuery, Move, Registration, RegistrationProblems,
};
use crate::api::service::{
    Health, HealthStatus, MetricsProblems, OpenProblems, Readiness, ReadinessStatus, ReloadProblems, Reloaded,
};
use crate::config::OperatorRole;
use crate::http::problem::Problem;
use crate::http::routes::{Routes, get, path_parameter, resource};
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
const REGISTRATION: &str = "/v1/registrations/{registrationId}";
const BLOCK: &str = "/v1/registrations/{registrationId}/block";
const UNBLOCK: &str = "/v1/registrations/{registrationId}/unblock";
const RETRY: &str = "/v1/registrations/{registrationId}/retry";
const EXPEDITE: &str = "/v1/registrations/{registrationId}/expedite";
const MOVE: &str = "/v1/registrations/{registrationId}/move";
/// All of these, in labels.
const ACTION: &str = "/v1/registrations/{registrationId}/{action}";

/// What this plane answers.
pub(super) const ROUTES: Routes = Routes {
    plane: Plane::Operator,
    paths: &[
        HEALTHZ,
        READYZ,
        METRICS,
        openapi::OPENAPI,
        INSTANCES,
        REFUSALS,
        RELOAD,
        import::IMPORT,
        lists::REGISTRATIONS,
        REGISTRATION,
        ACTION,
    ],
    configure,
};

fn configure(config: &mut web::ServiceConfig) {
    config
        .service(resource(HEALTHZ, "GET, HEAD").route(get().to(healthz)))
        .service(resource(READYZ, "GET, HEAD").route(get().to(readyz)))
        .service(resource(METRICS, "GET, HEAD").route(get().to(metrics)))
        .service(resource(openapi::OPENAPI, "GET, HEAD").route(get().to(openapi::openapi)))
        .service(resource(INSTANCES, "GET, HEAD").route(get().to(instances)))
        .service(resource(REFUSALS, "GET, HEAD").route(get().to(refusals)))
        .service(resource(RELOAD, "POST").route(web::post().to(reload_config)))
        .service(resource(import::IMPORT, "POST").route(web::post().to(import::import)))
        .service(resource(lists::REGISTRATIONS, "GET, HEAD").route(get().to(lists::registrations)))
        .service(
            resource(REGISTRATION, "GET, HEAD, DELETE").route(get().to(registration)).route(web::delete().to(delete)),
        )
        .service(resource(BLOCK, "POST").route(web::post().to(block)))
        .service(resource(UNBLOCK, "POST").route(web::post().to(unblock)))
        .service(resource(RETRY, "POST").route(web::post().to(retry)))
        .service(resource(EXPEDITE, "POST").route(web::post().to(expedite)))
        .service(resource(MOVE, "POST").route(web::post().to(move_to)));
}

/// What the document says of it.
#[derive(utoipa::OpenApi)]
#[openapi(paths(
    healthz,
    readyz,
    metrics,
    instances,
    refusals,
    reload_config,
    import::import,
    lists::registrations,
    registration,
    delete,
    block,
    unblock,
    retry,
    expedite,
    move_to
))]
pub(super) struct Described;

/// Whether the service answers. Needs no token.
#[utoipa::path(
    get,
    path = HEALTHZ,
    tag = OPERATOR,
    responses(
        (status = 200, description = "It does.", body = Health, headers(("Cache-Control" = String, description = "`no-store`"))),
        OpenProblems,
    ),
)]
async fn healthz() -> HttpResponse {
    HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(Health { status: HealthStatus::Alive })
}

/// Whether the service can do its main job. Needs no token.
#[utoipa::path(
    get,
    path = READYZ,
    tag = OPERATOR,
    responses(
        (status = 200, description = "It can.", body = Readiness, headers(("Cache-Control" = String, description = "`no-store`"))),
        (status = 503, description = "It starts or stops.", body = Readiness, headers(
            ("Cache-Control" = String, description = "`no-store`"),
            ("Retry-After" = u64, description = "When to come back, in whole seconds."),
        )),
        OpenProblems,
    ),
)]
async fn readyz(app: web::Data<App>) -> HttpResponse {
    let is_ready = app.is_ready();
    let mut response = if is_ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    if !is_ready {
        response.insert_header((RETRY_AFTER, 1));
    }
    let status = if is_ready { ReadinessStatus::Ready } else { ReadinessStatus::NotReady };
    response.insert_header((CACHE_CONTROL, "no-store")).json(Readiness { status })
}

/// Metrics for Prometheus, in its own text format or, by `Accept`, in OpenMetrics.
#[utoipa::path(
    get,
    path = METRICS,
    tag = OPERATOR,
    responses(
        (
            status = 200,
            description = "All metrics.",
            content((String = "text/plain"), (String = "application/openmetrics-text")),
            headers(
                ("Cache-Control" = String, description = "`no-store`"),
                ("Vary" = String, description = "`accept`"),
            )
        ),
        MetricsProblems,
    ),
    security(("operatorToken" = [])),
)]
async fn metrics(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    bearer::operator(&app, &request, OperatorRole::Read)?;
    let accept: Vec<&str> = request.headers().get_all(ACCEPT).filter_map(|value| value.to_str().ok()).collect();
    let format = TextFormat::preferred(&accept.join(","));
    let text = app.metrics.encode(&app.gateway, app.facts(), format).await;
    Ok(HttpResponse::Ok()
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header((VARY, "accept"))
        .insert_header((CONTENT_TYPE, format.content_type()))
        .body(text))
}

/// All instances: quota, budget, line, drain forecast, breaker, counts.
#[utoipa::path(
    get,
    path = INSTANCES,
    tag = OPERATOR,
    responses(
        (status = 200, description = "By name.", body = Instances, headers(("Cache-Control" = String, description = "`no-store`"))),
        InstancesProblems,
    ),
    security(("operatorToken" = [])),
)]
async fn instances(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    bearer::operator(&app, &request, OperatorRole::Read)?;
    let instances = app.gateway.instances().await.into_iter().map(Instance::from).collect();
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(Instances { instances }))
}

/// Refusals told at once, unless fewer are asked for.
const REFUSALS_DEFAULT: usize = 100;
const REFUSALS_MAX: usize = 1000;

/// The latest credentials that were not believed, and why. Devices never learn it.
///
/// In memory only, at most `device.refusals_kept`.
#[utoipa::path(
    get,
    path = REFUSALS,
    tag = OPERATOR,
    params(RefusalsQuery),
    responses(
        (status = 200, description = "Newest first.", body = Refusals, headers(("Cache-Control" = String, description = "`no-store`"))),
        RefusalsProblems,
    ),
    security(("operatorToken" = [])),
)]
async fn refusals(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    bearer::operator(&app, &request, OperatorRole::Read)?;
    let query = web::Query::<RefusalsQuery>::from_query(request.query_string()).map_err(|_| {
        let detail = "the query parameters are hardwareId, requestId, reason, tenant and limit, each at most once";
        Problem::bad_request(Code::InvalidQuery, detail)
    })?;
    let RefusalsQuery { hardware_id, request_id, reason, tenant, limit } = query.into_inner();
    if reason.as_deref().is_some_and(|name| reason_named(name).is_none()) {
        let names = Reason::ALL.map(Reason::as_str).join(", ");
        return Err(Problem::bad_request(Code::InvalidQuery, format!("reason: is one of {names}")));
    }
    let limit = limit.unwrap_or(REFUSALS_DEFAULT);
    if !(1..=REFUSALS_MAX).contains(&limit) {
        return Err(Problem::bad_request(Code::InvalidQuery, format!("limit: is 1 to {REFUSALS_MAX}")));
    }
    let latest = app.refusals.latest(&Wanted { hardware_id, request_id, reason, tenant }, limit);
    let refusals = latest.into_iter().map(Refused::from).collect();
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(Refusals { refusals }))
}

/// Loads the configuration anew.
///
/// It is taken over whole or not at all.
#[utoipa::path(
    post,
    path = RELOAD,
    tag = OPERATOR,
    responses((status = 200, description = "It was taken over.", body = Reloaded), ReloadProblems),
    security(("operatorToken" = [])),
)]
async fn reload_config(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let token = bearer::operator(&app, &request, OperatorRole::Operate)?;
    tracing::info!(operator = token.name, "reload of the configuration requested");
    // In a task of its own: an operator who hangs up must not leave half of it done.
    let reloading = tokio::spawn(async move { reload::reload(&app).await }.in_current_span());
    match reloading.await.unwrap_or_else(|error| Err(vec![format!("the reload failed: {error}")])) {
        Ok(reload::Applied { restart_needed, warnings }) => {
            Ok(HttpResponse::Ok().json(Reloaded { applied: true, restart_needed, warnings }))
        }
        Err(problems) => {
            let detail = "the configuration is rejected and the current values stay in force: see problems";
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, Code::InvalidConfiguration, detail)
                .retry_after(Duration::from_secs(1))
                .problems(problems))
        }
    }
}

fn registration_id(request: &HttpRequest) -> Result<RegistrationId, Problem> {
    let text = path_parameter(request, "registrationId")?;
    let id = RegistrationId::parse(&text)
        .map_err(|error| Problem::bad_request(Code::InvalidRegistrationId, error.to_string()))?;
    middleware::about_device(id.as_str());
    Ok(id)
}

/// One device: its record, its timeline, and in plain words why it waits.
#[utoipa::path(
    get,
    path = REGISTRATION,
    tag = OPERATOR,
    params(("registrationId" = HardwareId, Path, description = "In whatever case.")),
    responses(
        (status = 200, description = "The device.", body = Registration, headers(("Cache-Control" = String, description = "`no-store`"))),
        RegistrationProblems,
    ),
    security(("operatorToken" = [])),
)]
async fn registration(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    bearer::operator(&app, &request, OperatorRole::Read)?;
    let view = app.gateway.registration(&registration_id(&request)?).await?;
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(Registration::from(view)))
}

/// Retires a device.
///
/// While an instance may still hold its registration, a tombstone stays and counts against capacity; `dpsRecordDeleted=true` says that none
/// does, and forgets it. While a registration of it may be on its way, the tombstone stays, and the device is to be deleted again later.
#[utoipa::path(
    delete,
    path = REGISTRATION,
    tag = OPERATOR,
    params(("registrationId" = HardwareId, Path, description = "In whatever case."), DeleteQuery),
    responses(
        (status = 200, description = "The tombstone.", body = Registration),
        (status = 204, description = "Nothing is left of it."),
        DeleteProblems,
    ),
    security(("operatorToken" = [])),
)]
async fn delete(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let token = bearer::operator(&app, &request, OperatorRole::Operate)?;
    let id = registration_id(&request)?;
    let query = web::Query::<DeleteQuery>::from_query(request.query_string()).map_err(|_| {
        Problem::bad_request(Code::InvalidQuery, "the only query parameter is dpsRecordDeleted=true or false")
    })?;
    let left = app.gateway.retire(&id, query.dps_record_deleted).await?;
    tracing::info!(operator = token.name, tombstone = left.is_some(), "retired");
    match left {
        None => Ok(HttpResponse::NoContent().finish()),
        Some(_) => Ok(HttpResponse::Ok().json(Registration::from(app.gateway.registration(&id).await?))),
    }
}

/// What an operator wishes for one device.
struct Wish {
    operator: String,
    id: RegistrationId,
    /// Bounded and printable: it goes into the timeline.
    reason: Option<String>,
}

impl Wish {
    /// A wish of which no more is said than why.
    async fn read(app: &App, request: &HttpRequest, payload: web::Payload) -> Result<Self, Problem> {
        let (wish, Action { reason }) = Self::with(app, request, payload).await?;
        Ok(wish.because(reason))
    }

    /// A wish with this body, which may be left out.
    async fn with<T: FromMembers + Default>(
        app: &App,
        request: &HttpRequest,
        payload: web::Payload,
    ) -> Result<(Self, T), Problem> {
        let token = bearer::operator(app, request, OperatorRole::Operate)?;
        let id = registration_id(request)?;
        let http = &app.server.operator.http;
        let body = body::optional_json(request, payload, http.body_max_bytes, http.request_timeout).await?;
        Ok((Self { operator: token.name, id, reason: None }, body))
    }

    fn because(mut self, reason: Option<String>) -> Self {
        let printable = |reason: String| -> String {
            reason.chars().filter(|character| !character.is_control()).take(REASON_CHARS_MAX).collect()
        };
        self.reason = reason.map(printable);
        self
    }

    /// Answers with the device as it is now.
    async fn done(self, app: &App, action: &str) -> Result<HttpResponse, Problem> {
        let view = app.gateway.registration(&self.id).await?;
        tracing::info!(operator = self.operator, action, reason = self.reason, "operator action done");
        Ok(HttpResponse::Ok().json(Registration::from(view)))
    }
}

/// Keeps a device out, also one that nothing is known of yet.
///
/// A further block replaces the reason if it gives one.
#[utoipa::path(
    post,
    path = BLOCK,
    tag = OPERATOR,
    params(("registrationId" = HardwareId, Path, description = "In whatever case.")),
    request_body = Action,
    responses((status = 200, description = "The device as it is now.", body = Registration), ActionProblems),
    security(("operatorToken" = [])),
)]
async fn block(app: web::Data<App>, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, Problem> {
    let wish = Wish::read(&app, &request, payload).await?;
    app.gateway.block(&wish.id, &wish.operator, wish.reason.as_deref()).await?;
    wish.done(&app, "block").await
}

/// Lets a device in again.
#[utoipa::path(
    post,
    path = UNBLOCK,
    tag = OPERATOR,
    params(("registrationId" = HardwareId, Path, description = "In whatever case.")),
    request_body = Action,
    responses(
        (status = 200, description = "The device as it is now.", body = Registration),
        (status = 204, description = "The block was all that was known of it."),
        ActionProblems,
    ),
    security(("operatorToken" = [])),
)]
async fn unblock(app: web::Data<App>, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, Problem> {
    let wish = Wish::read(&app, &request, payload).await?;
    if app.gateway.unblock(&wish.id, &wish.operator).await?.is_some() {
        return wish.done(&app, "unblock").await;
    }
    let operator = wish.operator;
    tracing::info!(operator, action = "unblock", "operator action done; nothing else was known of the device");
    Ok(HttpResponse::NoContent().finish())
}

/// Forgets a refusal.
///
/// Allows a credential to be claimed again, and the device rejoins the line.
#[utoipa::path(
    post,
    path = RETRY,
    tag = OPERATOR,
    params(("registrationId" = HardwareId, Path, description = "In whatever case.")),
    request_body = Action,
    responses((status = 200, description = "The device as it is now.", body = Registration), ActionProblems),
    security(("operatorToken" = [])),
)]
async fn retry(app: web::Data<App>, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, Problem> {
    let wish = Wish::read(&app, &request, payload).await?;
    app.gateway.retry(&wish.id).await?;
    wish.done(&app, "retry").await
}

/// Moves a device ahead of all that are not expedited.
#[utoipa::path(
    post,
    path = EXPEDITE,
    tag = OPERATOR,
    params(("registrationId" = HardwareId, Path, description = "In whatever case.")),
    request_body = Action,
    responses((status = 200, description = "The device as it is now.", body = Registration), ActionProblems),
    security(("operatorToken" = [])),
)]
async fn expedite(app: web::Data<App>, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, Problem> {
    let wish = Wish::read(&app, &request, payload).await?;
    app.gateway.expedite(&wish.id).await?;
    wish.done(&app, "expedite").await
}

/// Moves a device to another instance.
///
/// The target is kept, whatever comes between, until the device is assigned there.
#[utoipa::path(
    post,
    path = MOVE,
    tag = OPERATOR,
    params(("registrationId" = HardwareId, Path, description = "In whatever case.")),
    request_body = Move,
    responses((status = 200, description = "The device as it is now.", body = Registration), ActionProblems),
    security(("operatorToken" = [])),
)]
async fn move_to(app: web::Data<App>, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, Problem> {
    let (wish, Move { reason, instance }) = Wish::with(&app, &request, payload).await?;
    let invalid = |detail: String| Problem::bad_request(Code::InvalidRequest, detail);
    let wanted = instance.ok_or_else(|| invalid("instance: name the instance to move to".to_owned()))?;
    let instance = InstanceName::parse(&wanted).map_err(|error| invalid(format!("instance: {error}")))?;
    app.gateway.move_to(&wish.id, &instance).await?;
    wish.because(reason).done(&app, "move").await
}
