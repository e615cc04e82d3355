//! Problems (RFC 9457), as they are written: the document, its codes, and which of them an operation may answer with.

use std::collections::BTreeMap;

use proxy_core::device;
use serde::{Serialize, Serializer};
use serde_json::json;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{PartialSchema, ToSchema};

use super::names::{InstanceName, Moment};

/// The media type of a problem.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// An error, for programs (`code`) and for people (`detail`).
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Always `about:blank`: `code` tells problems apart.
    #[serde(rename = "type")]
    #[schema(value_type = String, format = "uri-reference")]
    pub kind: &'static str,
    /// The status in words.
    #[schema(value_type = String)]
    pub title: &'static str,
    /// The status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What is wrong.
    pub code: Code,
    /// The same in plain words: names the limit or the rule.
    pub detail: String,
    /// The request, as `x-request-id` and our log name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub request_id: Option<String>,
    /// When to come back, in seconds; as the header `Retry-After`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1)]
    pub retry_after: Option<u64>,
    /// With `credential-expired` and `credential-too-far-ahead`: what time it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub server_time: Option<Moment>,
    /// With `refused-by-dps` and `refused`: what DPS said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub upstream: Option<Upstream>,
    /// With `differs-in-case`: the spelling that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub known_as: Option<String>,
    /// With `invalid-configuration`: all that is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub problems: Option<Vec<String>>,
}

/// What DPS said when it refused a device.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    /// The instance that refused.
    pub instance: InstanceName,
    /// The kind of refusal.
    #[schema(examples("not-enrolled"))]
    pub reason: String,
    /// DPS's six-digit code, if it gave one.
    #[schema(required = true)]
    pub error_code: Option<i64>,
    /// DPS's name for the failure, for a support request.
    #[schema(required = true)]
    pub tracking_id: Option<String>,
    /// When.
    pub at: Moment,
}

impl From<&device::Refusal> for Upstream {
    fn from(refusal: &device::Refusal) -> Self {
        Self {
            instance: (&refusal.instance).into(),
            reason: refusal.code.clone(),
            error_code: refusal.error_code,
            tracking_id: refusal.tracking_id.clone(),
            at: refusal.at.into(),
        }
    }
}

macro_rules! codes {
    ($(#[doc = $meaning:literal] $code:ident = $name:literal,)+) => {
        /// What is wrong, for programs. Stable; others may be added.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $meaning] $code,)+
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$code,)+];

            /// How it is written.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$code => $name,)+
                }
            }

            /// What it means.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$code => $meaning,)+
                }
            }
        }
    };
}

codes! {
    /// an operator keeps the device out
    Blocked = "blocked",
    /// an operator has deleted the device
    Retired = "retired",
    /// the registration ID belongs to another tenant
    BelongsToAnotherTenant = "belongs-to-another-tenant",
    /// several tenants have a device of that ID: name one with `tenant`
    AmbiguousDeviceId = "ambiguous-device-id",
    /// the body exceeds the bound of this listener, as sent or decoded
    BodyTooLarge = "body-too-large",
    /// the token's own `se` is in the past of `serverTime`
    CredentialExpired = "credential-expired",
    /// the token's own `se` is further ahead of `serverTime` than is allowed
    CredentialTooFarAhead = "credential-too-far-ahead",
    /// there is a device in another spelling, `knownAs`: device IDs are case-sensitive
    DiffersInCase = "differs-in-case",
    /// too many header fields, or too many bytes of them
    HeadersTooLarge = "headers-too-large",
    /// the device waits for its first assignment
    InLine = "in-line",
    /// the body ended before it was complete
    IncompleteBody = "incomplete-body",
    /// the configuration is refused whole; see `problems`
    InvalidConfiguration = "invalid-configuration",
    /// the body is not what its `Content-Encoding` says
    InvalidContentEncoding = "invalid-content-encoding",
    /// the hardware ID is none
    InvalidHardwareId = "invalid-hardware-id",
    /// the name cannot be that of a hub
    InvalidHostName = "invalid-host-name",
    /// the body is not the JSON that is expected
    InvalidJson = "invalid-json",
    /// the path is not percent-encoded UTF-8
    InvalidPath = "invalid-path",
    /// a query parameter cannot be read, or is unknown
    InvalidQuery = "invalid-query",
    /// the registration ID in the path is none
    InvalidRegistrationId = "invalid-registration-id",
    /// the wish names no instance, or one that does not fit
    InvalidRequest = "invalid-request",
    /// the line takes no more devices, or no more of this tenant
    LineFull = "line-full",
    /// a row does not end within the bound; what stood before is on the list
    LineTooLong = "line-too-long",
    /// the changes since the list was begun are no longer kept: start over from the first page
    ListOutdated = "list-outdated",
    /// the path has no such method; see `Allow`
    MethodNotAllowed = "method-not-allowed",
    /// no device of that ID has ever been given a place
    NeverSeen = "never-seen",
    /// no instance takes the device
    NoRoom = "no-room",
    /// the file has text and not a single row
    NoRows = "no-rows",
    /// the plane has no such path
    NoSuchPath = "no-such-path",
    /// the device is known and has no hub, and waits for none until it asks again
    NotInLine = "not-in-line",
    /// the wish does not fit the device's state
    NotNow = "not-now",
    /// the token has such a reading under way already
    OneAtATime = "one-at-a-time",
    /// `payload` exceeds its bound
    PayloadTooLarge = "payload-too-large",
    /// the token may look, not act
    ReadOnlyToken = "read-only-token",
    /// DPS has refused the device, so it has no hub; see `upstream`
    Refused = "refused",
    /// DPS refuses the device; see `upstream`
    RefusedByDps = "refused-by-dps",
    /// the body was not there in time
    RequestTimeout = "request-timeout",
    /// the request has several `Authorization` fields
    SeveralCredentials = "several-credentials",
    /// the service is about to stop
    ShuttingDown = "shutting-down",
    /// the store is behind
    StoreBusy = "store-busy",
    /// the stored record cannot be read
    StoreDamaged = "store-damaged",
    /// the store takes no writes
    StoreReadOnly = "store-read-only",
    /// the store cannot be read now
    StoreUnavailable = "store-unavailable",
    /// the device repeats far faster than it was told to
    TooFast = "too-fast",
    /// more device IDs than a lookup takes
    TooManyIds = "too-many-ids",
    /// more rows than an import takes; those before are on the list
    TooManyLines = "too-many-lines",
    /// as many streams of changes are open as may be
    TooManyStreams = "too-many-streams",
    /// the request has both a `Content-Length` and a `Transfer-Encoding`
    TwoLengths = "two-lengths",
    /// no credential, or one that this plane does not believe
    Unauthorized = "unauthorized",
    /// no device of that registration ID is known
    UnknownRegistration = "unknown-registration",
    /// a `Content-Encoding` that is not known; see `Accept-Encoding`
    UnsupportedContentEncoding = "unsupported-content-encoding",
    /// another `Content-Type` than is expected
    UnsupportedMediaType = "unsupported-media-type",
    /// the first line does not name the columns
    WrongHeader = "wrong-header",
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

fn code_schema(codes: &[Code]) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(codes.iter().map(|code| code.as_str())))
}

/// The codes in words, one a line.
fn meanings(codes: &[Code]) -> String {
    let lines: Vec<String> = codes.iter().map(|code| format!("- `{code}`: {}", code.meaning().trim())).collect();
    lines.join("\n")
}

impl PartialSchema for Code {
    fn schema() -> RefOr<Schema> {
        let description =
            format!("What is wrong, for programs. Stable; others may be added.\n\n{}", meanings(Self::ALL));
        code_schema(Self::ALL).description(Some(description)).into()
    }
}

impl ToSchema for Code {}

/// Codes by status.
pub(super) type Told = &'static [(u16, &'static [Code])];

/// What any request may be told.
pub(super) const EVERY: Told = &[(400, &[Code::SeveralCredentials, Code::TwoLengths]), (431, &[Code::HeadersTooLarge])];
/// What a request with a JSON body may be told.
pub(super) const BODY: Told = &[
    (400, &[Code::InvalidJson, Code::InvalidContentEncoding, Code::IncompleteBody]),
    (408, &[Code::RequestTimeout]),
    (413, &[Code::BodyTooLarge]),
    (415, &[Code::UnsupportedMediaType, Code::UnsupportedContentEncoding]),
];
/// What whoever needs a bearer token may be told.
pub(super) const TOKEN: Told = &[(401, &[Code::Unauthorized])];
/// What whoever needs a token that may act is told with another one.
pub(super) const ACT: Told = &[(401, &[Code::Unauthorized]), (403, &[Code::ReadOnlyToken])];
/// What whoever needs the store may be told.
pub(super) const STORE: Told =
    &[(503, &[Code::StoreReadOnly, Code::StoreBusy, Code::StoreUnavailable, Code::StoreDamaged])];
/// What is wrong with parameters.
pub(super) const QUERY: Told = &[(400, &[Code::InvalidQuery])];
/// What is wrong with the registration ID in a path, or unknown of it.
pub(super) const REGISTRATION: Told =
    &[(400, &[Code::InvalidPath, Code::InvalidRegistrationId]), (404, &[Code::UnknownRegistration])];

/// The problems that an operation may answer with, as utoipa takes them: groups of them, and its own.
macro_rules! problems {
    ($(#[$doc:meta])* $name:ident = [$($group:ident),*] + { $($status:literal: [$($code:ident),+]),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::Response>> {
                let own: crate::api::problem::Told = &[$(($status, &[$(crate::api::problem::Code::$code),+])),*];
                crate::api::problem::responses(&[$($group,)* own])
            }
        }
    };
}
pub(super) use problems;

/// The answers that these problems are.
pub(super) fn responses(groups: &[Told]) -> BTreeMap<String, RefOr<Response>> {
    let mut told: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for (status, codes) in groups.iter().copied().flatten() {
        told.entry(*status).or_default().extend(*codes);
    }
    told.into_iter().map(|(status, codes)| (status.to_string(), response(status, codes).into())).collect()
}

fn response(status: u16, mut codes: Vec<Code>) -> Response {
    codes.sort_unstable();
    codes.dedup();
    let of_this_status = ObjectBuilder::new().property("code", code_schema(&codes));
    let schema = AllOfBuilder::new().item(Ref::from_schema_name(Problem::name())).item(of_this_status);
    let mut response = ResponseBuilder::new()
        .description(meanings(&codes))
        .header_ref("Cache-Control", shared(NO_STORE))
        .content(MEDIA_TYPE, ContentBuilder::new().schema(Some(schema)).build());
    if matches!(status, 401 | 403 | 422 | 429 | 503) {
        response = response.header_ref("Retry-After", shared(RETRY_AFTER));
    }
    if status == 401 {
        response = response.header("WWW-Authenticate", text("The schemes that this operation takes."));
    }
    if codes.contains(&Code::UnsupportedContentEncoding) {
        response = response
            .header("Accept-Encoding", text("With `unsupported-content-encoding`: the codings that are taken."));
    }
    response.build()
}

/// Headers that many answers have, by their names in the document.
pub(super) const NO_STORE: &str = "NoStore";
pub(super) const REQUEST_ID: &str = "RequestId";
pub(super) const RETRY_AFTER: &str = "RetryAfter";

/// A header that many answers have.
pub(super) fn shared(name: &str) -> Ref {
    Ref::new(format!("#/components/headers/{name}"))
}

/// What these are.
pub(super) fn shared_headers() -> [(&'static str, Header); 3] {
    let string = || ObjectBuilder::new().schema_type(Type::String);
    let id = string().format(Some(SchemaFormat::Custom("uuid".to_owned())));
    let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)).examples([json!(97)]);
    [
        (NO_STORE, header(string(), "`no-store`")),
        (REQUEST_ID, header(id, "Names the request in our log and in problems.")),
        (RETRY_AFTER, header(seconds, "When to come back, in whole seconds.")),
    ]
}

fn text(description: &str) -> Header {
    header(ObjectBuilder::new().schema_type(Type::String), description)
}

fn header(schema: ObjectBuilder, description: &str) -> Header {
    HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_apart_and_written_in_kebab_case() {
        let mut names: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL {
            let kebab = format!("{code:?}").chars().fold(String::new(), |mut name, character| {
                if character.is_uppercase() && !name.is_empty() {
                    name.push('-');
                }
                name.push(character.to_ascii_lowercase());
                name
            });
            assert_eq!(kebab, code.as_str());
        }
    }
}
