//! The control interface: plain HTTP and JSON, for tests in any language. Bodies with unknown members are refused.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::http::StatusCode;
use actix_web::{App, HttpResponse, HttpServer, web};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::shared::Shared;
use crate::config::{GroupConfig, HubConfig, IndividualConfig, Quota, QuotaShape};
use crate::config_error::ConfigError;
use crate::device_api::Dps;
use crate::faults::{ActiveFault, Fault, FaultId, FaultSpec};

/// The most journal entries one answer holds.
const PAGE_MAX: usize = 10_000;

pub(crate) fn server(shared: Arc<Shared>, listener: std::net::TcpListener) -> io::Result<Server> {
    let data = web::Data::from(shared);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(data.clone())
            .route("/healthz", web::get().to(healthz))
            .route("/stats", web::get().to(stats))
            .route("/reset-stats", web::post().to(reset_stats))
            .route("/journal", web::get().to(journal))
            .route("/quota", web::get().to(quota))
            .route("/quota", web::post().to(set_quota))
            .route("/hubs", web::get().to(hubs))
            .route("/hubs", web::post().to(set_hubs))
            .route("/assigning", web::post().to(set_assigning))
            .route("/clock", web::post().to(set_clock))
            .route("/groups", web::post().to(put_group))
            .route("/enrollments", web::post().to(put_enrollment))
            .route("/faults", web::get().to(faults))
            .route("/faults", web::post().to(add_fault))
            .route("/faults", web::delete().to(clear_faults))
            .route("/faults/{id}", web::delete().to(remove_fault))
            .route("/registrations/{id}", web::get().to(registration))
            .route("/registrations/{id}", web::delete().to(delete_registration))
            .default_service(web::to(async || problem(StatusCode::NOT_FOUND, "there is no such resource")))
    })
    .workers(1)
    .disable_signals()
    .shutdown_timeout(1)
    .listen(listener)?;
    Ok(server.run())
}

fn problem(status: StatusCode, text: impl AsRef<str>) -> HttpResponse {
    HttpResponse::build(status).json(json!({ "error": text.as_ref() }))
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ConfigError> {
    serde_json::from_slice(body).map_err(|error| ConfigError::new(error.to_string()))
}

/// Reads a body, acts, and answers 204 or 400.
fn apply<T: DeserializeOwned>(body: &[u8], act: impl FnOnce(T) -> Result<(), ConfigError>) -> HttpResponse {
    match read(body).and_then(act) {
        Ok(()) => HttpResponse::NoContent().finish(),
        Err(error) => problem(StatusCode::BAD_REQUEST, error.to_string()),
    }
}

async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "emulator": true, "version": env!("CARGO_PKG_VERSION") }))
}

async fn stats(shared: web::Data<Shared>) -> HttpResponse {
    HttpResponse::Ok().json(shared.with(Dps::stats))
}

async fn reset_stats(shared: web::Data<Shared>) -> HttpResponse {
    shared.with(|dps, _| dps.reset_stats());
    HttpResponse::NoContent().finish()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

async fn journal(shared: web::Data<Shared>, page: web::Query<Page>) -> HttpResponse {
    let limit = page.limit.unwrap_or(PAGE_MAX).min(PAGE_MAX);
    HttpResponse::Ok().json(shared.with(|dps, _| dps.journal_after(page.after, limit)))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuotaBody {
    count: u32,
    seconds: f64,
    shape: Option<QuotaShape>,
}

async fn quota(shared: web::Data<Shared>) -> HttpResponse {
    let quota = shared.with(|dps, _| dps.quota());
    let seconds = quota.window.as_secs_f64();
    HttpResponse::Ok().json(QuotaBody { count: quota.count, seconds, shape: Some(quota.shape) })
}

async fn set_quota(shared: web::Data<Shared>, body: web::Bytes) -> HttpResponse {
    apply(&body, |wanted: QuotaBody| {
        let window = Duration::try_from_secs_f64(wanted.seconds)
            .map_err(|error| ConfigError::new(format!("seconds: {error}")))?;
        shared.with(|dps, now| {
            let shape = wanted.shape.unwrap_or(dps.quota().shape);
            dps.set_quota(Quota { count: wanted.count, window, shape }, now)
        })
    })
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HubsBody {
    hubs: Vec<HubConfig>,
}

async fn hubs(shared: web::Data<Shared>) -> HttpResponse {
    HttpResponse::Ok().json(HubsBody { hubs: shared.with(|dps, _| dps.hubs().to_vec()) })
}

async fn set_hubs(shared: web::Data<Shared>, body: web::Bytes) -> HttpResponse {
    apply(&body, |wanted: HubsBody| shared.with(|dps, now| dps.set_hubs(wanted.hubs, now)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AssigningBody {
    milliseconds: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Clock {
    offset_seconds: i64,
}

async fn set_clock(shared: web::Data<Shared>, body: web::Bytes) -> HttpResponse {
    apply(&body, |Clock { offset_seconds }| {
        shared.set_clock_offset_s(offset_seconds);
        Ok(())
    })
}

async fn set_assigning(shared: web::Data<Shared>, body: web::Bytes) -> HttpResponse {
    apply(&body, |wanted: AssigningBody| {
        shared.with(|dps, _| dps.set_assigning(Duration::from_millis(wanted.milliseconds)));
        Ok(())
    })
}

async fn put_group(shared: web::Data<Shared>, body: web::Bytes) -> HttpResponse {
    apply(&body, |group: GroupConfig| shared.with(|dps, _| dps.put_group(&group)))
}

async fn put_enrollment(shared: web::Data<Shared>, body: web::Bytes) -> HttpResponse {
    apply(&body, |enrollment: IndividualConfig| shared.with(|dps, _| dps.put_enrollment(&enrollment)))
}

#[derive(Serialize)]
struct FaultView {
    id: FaultId,
    matched: u64,
    acted: u64,
    rule: FaultSpec,
}

async fn faults(shared: web::Data<Shared>) -> HttpResponse {
    let view = |active: &ActiveFault| FaultView {
        id: active.id,
        matched: active.matched,
        acted: active.acted,
        rule: FaultSpec::from(&active.fault),
    };
    let list: Vec<FaultView> = shared.with(|dps, _| dps.faults()).iter().map(view).collect();
    HttpResponse::Ok().json(list)
}

async fn add_fault(shared: web::Data<Shared>, body: web::Bytes) -> HttpResponse {
    match read::<FaultSpec>(&body).and_then(Fault::try_from) {
        Ok(fault) => HttpResponse::Created().json(json!({ "id": shared.with(|dps, _| dps.add_fault(fault)) })),
        Err(error) => problem(StatusCode::BAD_REQUEST, error.to_string()),
    }
}

async fn clear_faults(shared: web::Data<Shared>) -> HttpResponse {
    shared.with(|dps, _| dps.clear_faults());
    HttpResponse::NoContent().finish()
}

async fn remove_fault(shared: web::Data<Shared>, id: web::Path<u64>) -> HttpResponse {
    if shared.with(|dps, _| dps.remove_fault(FaultId(*id))) {
        HttpResponse::NoContent().finish()
    } else {
        problem(StatusCode::NOT_FOUND, "there is no such fault")
    }
}

async fn registration(shared: web::Data<Shared>, id: web::Path<String>) -> HttpResponse {
    match shared.with(|dps, now| dps.registration(&id, now)) {
        Some(registration) => HttpResponse::Ok().json(registration),
        None => problem(StatusCode::NOT_FOUND, "there is no such registration"),
    }
}

async fn delete_registration(shared: web::Data<Shared>, id: web::Path<String>) -> HttpResponse {
    if shared.with(|dps, now| dps.delete_registration(&id, now)) {
        HttpResponse::NoContent().finish()
    } else {
        problem(StatusCode::NOT_FOUND, "there is no such registration")
    }
}
