//! `GET /openapi.json`: what the API is, for programs.
//!
//! Invariant: it says nothing of this service or its configuration, so it needs no token. Devices have no use for it, and their listener
//! has no such path.
//!
//! What is served is the kept file, which a test holds to what the sources say. So the service does without the code that describes it.

use actix_web::HttpResponse;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};

use crate::api::document::{BACKEND, OPERATOR};
use crate::api::service::OpenProblems;

/// The document.
pub(super) const OPENAPI: &str = "/openapi.json";

/// Its text, as it is kept in the repository.
pub const TEXT: &str = include_str!("../../../../docs/openapi.json");

/// What the document says of it.
#[derive(utoipa::OpenApi)]
#[openapi(paths(openapi))]
pub(super) struct Described;

/// This document. Needs no token.
#[utoipa::path(
    get,
    path = OPENAPI,
    tags = [BACKEND, OPERATOR],
    responses(
        (status = 200, description = "OpenAPI 3.1.", content_type = "application/json", body = Object, headers(
            ("Cache-Control" = String, description = "`no-cache`"),
        )),
        OpenProblems,
    ),
)]
pub(super) async fn openapi() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((CONTENT_TYPE, "application/json"))
        .body(TEXT)
}
