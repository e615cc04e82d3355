//! Tokens of backends and operators. A token of one plane opens no other.

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use actix_web::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use std::time::Duration;

use crate::api::problem::Code;
use crate::config::{BackendToken, OperatorRole, OperatorToken};
use crate::http::exchange::Exchange;
use crate::http::problem::Problem;
use crate::state::App;

fn presented(request: &HttpRequest) -> &str {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or("");
    match header.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("Bearer") => token.trim(),
        Some(_) | None => "",
    }
}

fn unauthorized() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, Code::Unauthorized, "this plane needs its own bearer token")
        .header(WWW_AUTHENTICATE, "Bearer")
        .retry_after(Duration::from_secs(1))
}

/// A long body, such as an import, is worth its connection even if the listener is full.
fn accepted(request: &HttpRequest) {
    if let Some(exchange) = Exchange::of(request) {
        exchange.is_accepted();
    }
}

/// Who asks the backend plane.
///
/// # Errors
/// 401.
pub fn backend(app: &App, request: &HttpRequest) -> Result<BackendToken, Problem> {
    let token = presented(request);
    let live = app.live.load();
    // All are compared, so that the time tells nothing.
    let found = live
        .backend_tokens
        .iter()
        .fold(None, |found, known| if known.digest.matches(token) { Some(known) } else { found });
    let found = found.cloned().ok_or_else(unauthorized)?;
    accepted(request);
    Ok(found)
}

/// Who asks the operator plane, if the token allows `role`.
///
/// # Errors
/// 401; 403 if the token may only look.
pub fn operator(app: &App, request: &HttpRequest, role: OperatorRole) -> Result<OperatorToken, Problem> {
    let token = presented(request);
    let live = app.live.load();
    let found = live
        .operator_tokens
        .iter()
        .fold(None, |found, known| if known.digest.matches(token) { Some(known) } else { found });
    let found = found.cloned().ok_or_else(unauthorized)?;
    if found.role < role {
        let problem =
            Problem::new(StatusCode::FORBIDDEN, Code::ReadOnlyToken, "this token is read-only (its role is \"read\")");
        return Err(problem.retry_after(Duration::from_secs(1)));
    }
    accepted(request);
    Ok(found)
}
