//! The OpenAPI document: what the planes' handlers say of themselves, and what is true of all of them.

use utoipa::OpenApi as _;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::header::Header;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Required, Response, ServerBuilder, ServerVariableBuilder};

use super::{changes, names, problem, registrations};

/// The tag of what devices ask.
pub const DEVICE: &str = "device";
/// The tag of what backends ask.
pub const BACKEND: &str = "backend";
/// The tag of what operators ask.
pub const OPERATOR: &str = "operator";

const ABOUT: &str = "\
A provisioning gateway in front of many Azure IoT Hub Device Provisioning Service instances. Three planes, each with its own listener and \
its own kind of credential: devices, backends, operators. A token of one opens no other; the tag of an operation names its plane.

Every path that takes `GET` takes `HEAD`, with the same answer but its body. Another path is 404 `no-such-path`, another method 405 \
`method-not-allowed` with `Allow`. Request bodies may have `Content-Encoding: gzip` or `deflate`. In a request, a member that is `null` counts \
as left out, and one that is unknown is 400 `invalid-json`. What is no HTTP, has far too many headers or comes too slowly is refused with 400, \
431 or 408 and no body.";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "dps-proxy", description = ABOUT),
    tags(
        (name = DEVICE, description = "Devices ask for their hub."),
        (name = BACKEND, description = "Backends ask which hub a device is on, and follow what changes."),
        (name = OPERATOR, description = "Operators see and steer the service."),
    ),
    components(schemas(
        problem::Problem,
        problem::Code,
        problem::Upstream,
        names::HardwareId,
        names::HostName,
        names::InstanceName,
        names::Moment,
        names::TenantName,
        changes::Change,
        changes::Reset,
        registrations::RegistrationState,
        super::assignments::AssignmentState,
        super::refusals::RefusalReason,
        super::allow_list::AllowListRow,
    ))
)]
struct Common;

/// Response headers that are not always there; all others are. (utoipa's header has no word for that.)
const SOMETIMES: [&str; 2] = ["Accept-Encoding", "Preference-Applied"];

/// Request bodies that may be left out. (utoipa would say that they may be `null`.)
const OPTIONAL_BODIES: [&str; 2] = ["Action", "Invalidation"];

/// The document of these planes, as text that ends with a line end.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn text(planes: impl IntoIterator<Item = OpenApi>) -> Result<String, serde_json::Error> {
    let mut document = planes.into_iter().fold(Common::openapi(), OpenApi::merge_from);
    let components = document.components.get_or_insert_default();
    let schemes = security_schemes().into_iter();
    components.security_schemes = schemes.map(|(name, scheme)| (name.to_owned(), RefOr::T(scheme))).collect();
    components.headers = shared_headers().collect();
    for path in document.paths.paths.values_mut() {
        operations(path).into_iter().for_each(complete);
    }
    Ok(document.to_pretty_json()? + "\n")
}

fn security_schemes() -> [(&'static str, SecurityScheme); 4] {
    let bearer = |description: &str| {
        SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(description)).build())
    };
    let sas = "`SharedAccessSignature sr={audience}%2Fregistrations%2F{registrationId}&sig={signature}&se={end}`: a SAS token that the \
               device makes with its own key, by default for the gateway's public host name.";
    [
        ("deviceSasToken", SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description("Authorization", sas)))),
        ("fleetToken", bearer("A token that devices share, where their enrollment says so.")),
        ("backendToken", bearer("A token of `backend.tokens`; it may be limited to tenants.")),
        ("operatorToken", bearer("A token of `operator.tokens`; one of role `read` may only `GET`.")),
    ]
}

fn operations(path: &mut PathItem) -> impl IntoIterator<Item = &mut Operation> {
    [&mut path.get, &mut path.post, &mut path.delete].into_iter().flatten()
}

/// What is true of every operation.
fn complete(operation: &mut Operation) {
    let tags = operation.tags.clone().unwrap_or_default();
    operation.servers = Some(tags.iter().filter_map(|tag| server(tag)).collect());
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        let is_optional = |content: &RefOr<Content>| {
            let RefOr::T(Content { schema: Some(RefOr::Ref(schema)), .. }) = content else { return false };
            OPTIONAL_BODIES.iter().any(|name| schema.ref_location == Ref::from_schema_name(*name).ref_location)
        };
        if body.content.values().any(is_optional) {
            body.required = Some(Required::False);
        }
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            complete_headers(response);
        }
    }
}

fn complete_headers(response: &mut Response) {
    response.headers.insert("x-request-id".to_owned(), RefOr::Ref(problem::shared(problem::REQUEST_ID)));
    for (name, header) in &mut response.headers {
        if let RefOr::T(header) = header
            && !SOMETIMES.contains(&name.as_str())
        {
            is_always_there(header);
        }
    }
}

fn is_always_there(header: &mut Header) {
    header.extensions = Some(Extensions::from_iter([("required", true)]));
}

fn shared_headers() -> impl Iterator<Item = (String, RefOr<Header>)> {
    problem::shared_headers().into_iter().map(|(name, mut header)| {
        is_always_there(&mut header);
        (name.to_owned(), header.into())
    })
}

/// The listener of a plane.
fn server(plane: &str) -> Option<utoipa::openapi::Server> {
    let (scheme, listener) = match plane {
        DEVICE => ("https", "gateway.example.com:8443"),
        BACKEND => ("http", "127.0.0.1:8081"),
        OPERATOR => ("http", "127.0.0.1:8082"),
        _ => return None,
    };
    let scheme = ServerVariableBuilder::new().default_value(scheme).enum_values(Some(["https", "http"]));
    let listener = ServerVariableBuilder::new().default_value(listener).description(Some(format!("`{plane}.listen`")));
    let server = ServerBuilder::new().url("{scheme}://{listener}").description(Some(format!("The {plane} listener.")));
    Some(server.parameter("scheme", scheme).parameter("listener", listener).build())
}
