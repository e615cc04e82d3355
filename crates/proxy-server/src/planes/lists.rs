//! Lists of all devices, in pages: assignments for backends, registrations for operators.

use actix_web::http::header::CACHE_CONTROL;
use actix_web::{HttpRequest, HttpResponse, web};
use proxy_core::gateway::lists::{Cursor, Filter, RegistrationState};
use proxy_core::ids::{InstanceName, RegistrationId, TenantName};
use serde::Deserialize;
use serde_json::json;

use super::bearer;
use super::tenants::visible_tenants;
use crate::config::OperatorRole;
use crate::http::problem::Problem;
use crate::plane::Plane;
use crate::state::App;

/// Devices in a page, unless fewer or more are asked for.
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1000;

fn invalid(parameter: &str, rule: impl std::fmt::Display) -> Problem {
    Problem::bad_request("invalid-query", format!("{parameter}: {rule}"))
}

fn limit(asked: Option<usize>) -> Result<usize, Problem> {
    let limit = asked.unwrap_or(LIMIT_DEFAULT);
    if (1..=LIMIT_MAX).contains(&limit) { Ok(limit) } else { Err(invalid("limit", format!("is 1 to {LIMIT_MAX}"))) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AssignmentsQuery {
    after: Option<String>,
    limit: Option<usize>,
    #[serde(rename = "tenant")]
    _tenant: Option<String>,
}

/// A page of the assignments that the token may see.
pub(super) async fn assignments(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let token = bearer::backend(&app, &request)?;
    let query = web::Query::<AssignmentsQuery>::from_query(request.query_string()).map_err(|_| {
        Problem::bad_request("invalid-query", "the query parameters are after, limit and tenant, each at most once")
    })?;
    let tenants = visible_tenants(&token, &request)?;
    let limit = limit(query.limit)?;
    let cursor = query.after.as_deref().map(str::parse::<Cursor>).transpose().map_err(|rule| invalid("after", rule))?;
    let _one_at_a_time = app.scans.begin(Plane::Backend, &token.name)?;
    let (page, position) = app.gateway.assignments(cursor, limit, tenants).await?;
    let next = page.next.map(|after| Cursor { position: position.clone(), after }.to_string());
    let mut body = json!({ "assignments": page.items, "feedPosition": position.to_string() });
    if let Some(next) = next {
        body["next"] = json!(next);
    }
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-cache")).json(body))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistrationsQuery {
    after: Option<String>,
    limit: Option<usize>,
    state: Option<String>,
    tenant: Option<String>,
    instance: Option<String>,
}

/// A page of the devices that the query names.
pub(super) async fn registrations(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let token = bearer::operator(&app, &request, OperatorRole::Read)?;
    let query = web::Query::<RegistrationsQuery>::from_query(request.query_string()).map_err(|_| {
        let detail = "the query parameters are state, tenant, instance, after and limit, each at most once";
        Problem::bad_request("invalid-query", detail)
    })?;
    let RegistrationsQuery { after, limit: asked, state, tenant, instance } = query.into_inner();
    let limit = limit(asked)?;
    let after = after.as_deref().map(RegistrationId::parse).transpose().map_err(|rule| invalid("after", rule))?;
    let filter = Filter {
        state: state.as_deref().map(state_named).transpose()?,
        tenant: tenant.as_deref().map(TenantName::parse).transpose().map_err(|rule| invalid("tenant", rule))?,
        instance: instance.as_deref().map(InstanceName::parse).transpose().map_err(|rule| invalid("instance", rule))?,
    };
    let _one_at_a_time = app.scans.begin(Plane::Operator, &token.name)?;
    let page = app.gateway.registrations(after, limit, filter).await?;
    let mut body = json!({ "registrations": page.items });
    if let Some(next) = page.next {
        body["next"] = json!(next);
    }
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(body))
}

fn state_named(name: &str) -> Result<RegistrationState, Problem> {
    RegistrationState::ALL.into_iter().find(|state| state.as_str() == name).ok_or_else(|| {
        let names = RegistrationState::ALL.map(RegistrationState::as_str).join(", ");
        invalid("state", format!("is one of {names}"))
    })
}
