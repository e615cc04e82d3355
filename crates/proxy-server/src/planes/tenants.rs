//! The tenants that a backend may see.

use std::collections::BTreeSet;

use actix_web::{HttpRequest, web};
use proxy_core::ids::TenantName;

use crate::api::problem::Code;
use crate::config::BackendToken;
use crate::http::problem::Problem;

/// The tenants a request may see: the token's, narrowed by `?tenant=`.
pub(super) fn visible_tenants(
    token: &BackendToken,
    request: &HttpRequest,
) -> Result<Option<BTreeSet<TenantName>>, Problem> {
    let query = web::Query::<Vec<(String, String)>>::from_query(request.query_string())
        .map_err(|_| Problem::bad_request(Code::InvalidQuery, "the query is not percent-encoded UTF-8"))?;
    let Some((_, wanted)) = query.iter().find(|(name, _)| name == "tenant") else { return Ok(token.tenants.clone()) };
    let wanted = TenantName::parse(wanted)
        .map_err(|error| Problem::bad_request(Code::InvalidQuery, format!("tenant: {error}")))?;
    let visible = token.tenants.as_ref().is_none_or(|tenants| tenants.contains(&wanted));
    Ok(Some(visible.then_some(wanted).into_iter().collect()))
}
