//! Which call a request is, by its path and method.

use percent_encoding::percent_decode_str;

use super::message::Request;
use crate::call_kind::CallKind;

/// A path taken apart.
pub(super) enum Route<'a> {
    Call { kind: CallKind, scope: &'a str, id: String, operation: String },
    WrongMethod { allow: &'static str },
    Unknown,
}

impl<'a> Route<'a> {
    pub(super) fn of(request: &Request<'a>) -> Self {
        let decode = |text: &str| percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned());
        let Some(path) = request.path.strip_prefix('/') else { return Self::Unknown };
        let segments: Vec<&str> = path.split('/').collect();
        let (kind, method, scope, id, operation) = match segments.as_slice() {
            [scope, "registrations", id] => (CallKind::Lookup, "POST", *scope, *id, ""),
            [scope, "registrations", id, "register"] => (CallKind::Register, "PUT", *scope, *id, ""),
            [scope, "registrations", id, "operations", operation] => (CallKind::Poll, "GET", *scope, *id, *operation),
            _ => return Self::Unknown,
        };
        let (Some(id), Some(operation)) = (decode(id), decode(operation)) else { return Self::Unknown };
        if scope.is_empty() || id.is_empty() {
            return Self::Unknown;
        }
        if request.method != method {
            return Self::WrongMethod { allow: method };
        }
        Self::Call { kind, scope, id, operation }
    }
}
