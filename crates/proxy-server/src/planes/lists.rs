//! Lists of all devices, in pages: assignments for backends, registrations for operators.

use actix_web::http::header::CACHE_CONTROL;
use actix_web::{HttpRequest, HttpResponse, web};
use proxy_core::ids::{InstanceName, RegistrationId, TenantName};
use proxy_core::use_cases::lists::{Cursor, Filter, RegistrationState};

use super::bearer;
use super::tenants::visible_tenants;
use crate::api::assignments::{Assignment, AssignmentPage, AssignmentsQuery, ListProblems};
use crate::api::document::{BACKEND, OPERATOR};
use crate::api::problem::Code;
use crate::api::registrations::{RegistrationPage, RegistrationsProblems, RegistrationsQuery};
use crate::config::OperatorRole;
use crate::http::problem::Problem;
use crate::plane::Plane;
use crate::state::App;

/// Devices in a page, unless fewer or more are asked for.
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1000;

/// All assignments.
pub(super) const ASSIGNMENTS: &str = "/v1/assignments";
/// All devices.
pub(super) const REGISTRATIONS: &str = "/v1/registrations";

fn invalid(parameter: &str, rule: impl std::fmt::Display) -> Problem {
    Problem::bad_request(Code::InvalidQuery, format!("{parameter}: {rule}"))
}

fn limit(asked: Option<usize>) -> Result<usize, Problem> {
    let limit = asked.unwrap_or(LIMIT_DEFAULT);
    if (1..=LIMIT_MAX).contains(&limit) { Ok(limit) } else { Err(invalid("limit", format!("is 1 to {LIMIT_MAX}"))) }
}

/// A page of the assignments that the token may see.
///
/// In whatever state, in the order of the registration IDs. As long as a page has `next`, there is more. A page looks at no more than 20,000
/// records, so it may be short, or empty, and still have a `next`. One page at a time per token.
#[utoipa::path(
    get,
    path = ASSIGNMENTS,
    operation_id = "list_assignments",
    tag = BACKEND,
    params(AssignmentsQuery),
    responses(
        (status = 200, description = "A page.", body = AssignmentPage, headers(("Cache-Control" = String, description = "`no-cache`"))),
        ListProblems,
    ),
    security(("backendToken" = [])),
)]
pub(super) async fn assignments(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let token = bearer::backend(&app, &request)?;
    let query = web::Query::<AssignmentsQuery>::from_query(request.query_string()).map_err(|_| {
        Problem::bad_request(Code::InvalidQuery, "the query parameters are after, limit and tenant, each at most once")
    })?;
    let tenants = visible_tenants(&token, &request)?;
    let limit = limit(query.limit)?;
    let cursor = query.after.as_deref().map(str::parse::<Cursor>).transpose().map_err(|rule| invalid("after", rule))?;
    let _one_at_a_time = app.scans.begin(Plane::Backend, &token.name)?;
    let (page, position) = app.gateway.assignments(cursor, limit, tenants).await?;
    let next = page.next.map(|after| Cursor { position: position.clone(), after }.to_string());
    let assignments = page.items.into_iter().map(Assignment::from).collect();
    let body = AssignmentPage { assignments, feed_position: position.to_string(), next };
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-cache")).json(body))
}

/// A page of the devices that the query names.
///
/// In the order of their registration IDs. As long as a page has `next`, there is more. A page looks at no more than 20,000 records, so it may
/// be short, or empty, and still have a `next`. One page at a time per token.
#[utoipa::path(
    get,
    path = REGISTRATIONS,
    operation_id = "list_registrations",
    tag = OPERATOR,
    params(RegistrationsQuery),
    responses(
        (status = 200, description = "A page.", body = RegistrationPage, headers(("Cache-Control" = String, description = "`no-store`"))),
        RegistrationsProblems,
    ),
    security(("operatorToken" = [])),
)]
pub(super) async fn registrations(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let token = bearer::operator(&app, &request, OperatorRole::Read)?;
    let query = web::Query::<RegistrationsQuery>::from_query(request.query_string()).map_err(|_| {
        let detail = "the query parameters are state, tenant, instance, after and limit, each at most once";
        Problem::bad_request(Code::InvalidQuery, detail)
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
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(RegistrationPage::from(page)))
}

fn state_named(name: &str) -> Result<RegistrationState, Problem> {
    RegistrationState::ALL.into_iter().find(|state| state.as_str() == name).ok_or_else(|| {
        let names = RegistrationState::ALL.map(RegistrationState::as_str).join(", ");
        invalid("state", format!("is one of {names}"))
    })
}
