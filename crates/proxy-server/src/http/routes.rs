//! What a plane answers, and what all planes do with methods and paths alike.

use actix_web::http::StatusCode;
use actix_web::http::header::ALLOW;
use actix_web::{HttpRequest, HttpResponse, Resource, Route, guard, web};
use percent_encoding::percent_decode_str;

use super::problem::Problem;
use crate::api::problem::Code;
use crate::plane::Plane;

/// What a plane answers.
#[derive(Debug, Clone, Copy)]
pub struct Routes {
    /// The plane.
    pub plane: Plane,
    /// Its paths, as patterns; the first that fits a request serves it.
    pub paths: &'static [&'static str],
    /// Adds the handlers.
    pub configure: fn(&mut web::ServiceConfig),
}

impl Routes {
    /// The route that a path belongs to, for labels. actix could tell it too, but only by matching every expression again.
    #[must_use]
    pub fn route(&self, path: &str) -> &'static str {
        let matches = |pattern: &&&str| {
            let (mut segments, mut expected) = (path.split('/'), pattern.split('/'));
            loop {
                match (segments.next(), expected.next()) {
                    (None, None) => return true,
                    (Some(segment), Some(wanted))
                        if segment == wanted || (wanted.starts_with('{') && !segment.is_empty()) => {}
                    (Some(_) | None, Some(_) | None) => return false,
                }
            }
        };
        self.paths.iter().find(matches).copied().unwrap_or("unmatched")
    }
}

/// A path parameter, percent-decoded once: routes match before `%2F` is decoded, so that it is part of an ID.
///
/// # Errors
/// 400 if the path is not percent-encoded UTF-8.
pub fn path_parameter(request: &HttpRequest, name: &str) -> Result<String, Problem> {
    let invalid =
        || Problem::bad_request(Code::InvalidPath, format!("{name} in the path is not percent-encoded UTF-8"));
    if !is_percent_encoded_utf8(request.uri().path()) {
        return Err(invalid());
    }
    // actix has decoded everything but %25, %2B and %2F, and put U+FFFD in place of what is not UTF-8; the latter is excluded above.
    let raw = request.match_info().get(name).unwrap_or_default();
    percent_decode_str(raw).decode_utf8().map(std::borrow::Cow::into_owned).map_err(|_| invalid())
}

fn is_percent_encoded_utf8(path: &str) -> bool {
    let is_escape =
        |after: &str| after.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    path.split('%').skip(1).all(is_escape) && percent_decode_str(path).decode_utf8().is_ok()
}

/// A path of a plane, which answers 405 to other methods than `allowed` (as the `Allow` header writes them).
pub(crate) fn resource(path: &str, allowed: &'static str) -> Resource {
    web::resource(path)
        .default_service(web::to(move |request: HttpRequest| std::future::ready(method_not_allowed(&request, allowed))))
}

/// A route for `GET`, and for `HEAD`, which is answered alike but without the body.
pub(crate) fn get() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

fn method_not_allowed(request: &HttpRequest, allowed: &'static str) -> Result<HttpResponse, Problem> {
    let detail = format!("{} is not a method of this path", request.method());
    Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, Code::MethodNotAllowed, detail).header(ALLOW, allowed))
}

/// 404 for a path that a plane does not have.
///
/// # Errors
/// Always.
pub async fn no_such_path() -> Result<HttpResponse, Problem> {
    Err(Problem::not_found(Code::NoSuchPath, "this plane has no such path"))
}
