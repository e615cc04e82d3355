//! The DPS device API over HTTPS.
//!
//! Invariants: one request on the wire per call. Redirects, ambient proxies and the library's retries are off; HTTP/1.1 only, TLS 1.2 or
//! 1.3. `Location` is never followed (it may lack the operation ID); unknown fields and a missing content type are tolerated.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use percent_encoding::utf8_percent_encode;
use reqwest::header::{AUTHORIZATION, DATE, HeaderMap, RETRY_AFTER};
use reqwest::{Certificate, Client, Method, Response, redirect, retry, tls};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Answer, CallResult, Caller, Connect, DpsError, NoAnswer, Progress, RegistrationState, Said, Status, Upstream, time,
};
use crate::ids::{DeviceId, HubName, IdScope, InstanceName, OperationId};
use crate::sas::UNRESERVED;
use crate::settings::{Instance, RegistrationSettings};
use crate::time::WallTime;

/// More than any answer needs: DPS's own limit for a message is 96 KB.
const ANSWER_BYTES_MAX: usize = 128 * 1024;

/// Longest part of DPS's words that is kept.
const MESSAGE_CHARS_MAX: usize = 300;

/// Connects to real endpoints.
#[derive(Debug, Clone, Copy, Default)]
pub struct HttpsConnect;

impl Connect for HttpsConnect {
    fn connect(
        &self,
        name: &InstanceName,
        instance: &Instance,
        registration: &RegistrationSettings,
    ) -> Result<Arc<dyn Upstream>, String> {
        DpsClient::new(instance, registration)
            .map(|client| Arc::new(client) as Arc<dyn Upstream>)
            .map_err(|problem| format!("instance {name}: {problem}"))
    }
}

/// The client of one instance, with its own pool of connections.
#[derive(Debug)]
pub struct DpsClient {
    http: Client,
    endpoint: String,
    id_scope: IdScope,
    api_version: String,
}

impl DpsClient {
    /// A client for `instance`.
    ///
    /// # Errors
    /// If the extra CA is not PEM, or the machine has no root certificates (a container without a CA bundle).
    pub fn new(instance: &Instance, registration: &RegistrationSettings) -> Result<Self, String> {
        let mut builder = Client::builder()
            .http1_only()
            .tls_version_min(tls::Version::TLS_1_2)
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .referer(false)
            .connect_timeout(registration.connect_timeout)
            .timeout(registration.request_timeout)
            .pool_max_idle_per_host(registration.idle_connections_max)
            .pool_idle_timeout(registration.idle_timeout)
            .user_agent(concat!("dps-proxy/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = &instance.extra_ca_pem {
            let roots = Certificate::from_pem_bundle(pem)
                .map_err(|error| format!("extra_ca_file is not a PEM bundle: {error}"))?;
            builder = builder.tls_certs_merge(roots);
        }
        let http = builder.build().map_err(|error| {
            format!("the TLS client cannot be built (is there a CA bundle on this machine?): {}", chain(&error))
        })?;
        Ok(Self {
            http,
            endpoint: instance.endpoint.trim_end_matches('/').to_owned(),
            id_scope: instance.id_scope.clone(),
            api_version: registration.api_version.clone(),
        })
    }

    fn url(&self, caller: &Caller, suffix: &str) -> String {
        let id = utf8_percent_encode(&caller.registration_id, UNRESERVED);
        format!("{}/{}/registrations/{id}{suffix}?api-version={}", self.endpoint, self.id_scope, self.api_version)
    }

    async fn call(&self, method: Method, url: String, caller: &Caller, body: Option<Value>) -> CallResult {
        let mut request = self.http.request(method, url).header(AUTHORIZATION, &caller.authorization);
        if let Some(body) = &body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| no_answer(&error))?;
        read_answer(response).await
    }
}

impl Upstream for DpsClient {
    fn register<'a>(&'a self, caller: &'a Caller, payload: Option<&'a Value>) -> BoxFuture<'a, CallResult> {
        let mut body = json!({ "registrationId": caller.registration_id });
        if let Some(payload) = payload {
            body["payload"] = payload.clone();
        }
        Box::pin(self.call(Method::PUT, self.url(caller, "/register"), caller, Some(body)))
    }

    fn poll<'a>(&'a self, caller: &'a Caller, operation_id: &'a OperationId) -> BoxFuture<'a, CallResult> {
        let suffix = format!("/operations/{}", utf8_percent_encode(operation_id.as_str(), UNRESERVED));
        Box::pin(self.call(Method::GET, self.url(caller, &suffix), caller, None))
    }

    fn lookup<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, CallResult> {
        let body = json!({ "registrationId": caller.registration_id });
        Box::pin(self.call(Method::POST, self.url(caller, ""), caller, Some(body)))
    }

    fn time(&self) -> BoxFuture<'_, Result<WallTime, NoAnswer>> {
        Box::pin(async move {
            let url = format!("{}/{}{}?api-version={}", self.endpoint, self.id_scope, time::PATH, self.api_version);
            let response = self.http.get(url).send().await.map_err(|error| no_answer(&error))?;
            let (http_status, headers, body) = read_whole(response).await?;
            time::read_date(http_status, |name| text_header(&headers, name), &body)
        })
    }
}

/// A failure to connect (TCP or TLS) happens before a byte of the request is written; everything else may have left.
fn no_answer(error: &reqwest::Error) -> NoAnswer {
    if error.is_connect() { NoAnswer::NeverLeft(chain(error)) } else { NoAnswer::Lost(chain(error)) }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

async fn read_answer(response: Response) -> CallResult {
    let (http_status, headers, body) = read_whole(response).await?;
    read(http_status, |name| text_header(&headers, name), &body)
}

async fn read_whole(mut response: Response) -> Result<(u16, HeaderMap, Vec<u8>), NoAnswer> {
    let http_status = response.status().as_u16();
    let headers = response.headers().clone();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| NoAnswer::Lost(chain(&error)))? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(NoAnswer::Lost(format!("the answer exceeds {ANSWER_BYTES_MAX} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((http_status, headers, body))
}

/// Makes sense of an HTTP answer that arrived whole. `header` gives the value of a header by its lower-case name, if there is one that is
/// text. Pure, so that an answer that came by another way than a socket is understood in the same way.
///
/// # Errors
/// [`NoAnswer::Lost`] if something between us and DPS gave a gateway's error in its stead.
pub fn read<'h>(http_status: u16, header: impl Fn(&str) -> Option<&'h str>, body: &[u8]) -> CallResult {
    let said = understand(http_status, body);
    let from_dps = speaks_for_dps(&said);
    if matches!(http_status, 408 | 502..=504) && !from_dps {
        return Err(NoAnswer::Lost(format!("HTTP {http_status} from something between us and DPS")));
    }
    let date = header(DATE.as_str()).and_then(parse_http_date);
    Ok(Answer {
        said,
        retry_after: header(RETRY_AFTER.as_str()).and_then(|text| parse_retry_after(text.trim(), date)),
        date: date.filter(|_| from_dps),
        request_id: header("x-ms-request-id").map(str::to_owned),
    })
}

/// Only DPS tells how far a registration is, and only DPS puts its six-digit code into an error.
fn speaks_for_dps(said: &Said) -> bool {
    matches!(said, Said::Progress(_) | Said::Error(DpsError { error_code: Some(_), .. }))
}

fn text_header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Whole seconds, or a date on the clock of whoever answered (RFC 9110, section 10.2.3).
fn parse_retry_after(text: &str, date: Option<WallTime>) -> Option<Duration> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    seconds.or_else(|| Some(parse_http_date(text)?.since(date?)))
}

pub(super) fn parse_http_date(text: &str) -> Option<WallTime> {
    jiff::fmt::rfc2822::parse(text).ok().map(|zoned| WallTime::from_unix_millis(zoned.timestamp().as_millisecond()))
}

/// Every field optional and of a lenient type: a surprising field must not hide the ones we need.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OperationBody {
    operation_id: Option<OperationId>,
    status: Option<String>,
    registration_state: Option<StateBody>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct StateBody {
    assigned_hub: Option<String>,
    device_id: Option<String>,
    status: Option<String>,
    substatus: Option<String>,
    payload: Option<Value>,
    etag: Option<String>,
    last_updated_date_time_utc: Option<String>,
    error_code: Option<i64>,
    error_message: Option<String>,
}

#[derive(Deserialize)]
struct ErrorBody {
    // The service spells both fields two ways (seen in Azure/iot-identity-service's schema).
    #[serde(alias = "code", rename = "errorCode")]
    error_code: Option<Value>,
    #[serde(alias = "errorMessage")]
    message: Option<String>,
    #[serde(rename = "trackingId")]
    tracking_id: Option<String>,
}

fn understand(http_status: u16, body: &[u8]) -> Said {
    if (200..300).contains(&http_status) {
        return match understand_progress(body) {
            Ok(progress) => Said::Progress(progress),
            Err(detail) => Said::Unreadable { http_status, detail },
        };
    }
    let error: ErrorBody =
        serde_json::from_slice(body).unwrap_or(ErrorBody { error_code: None, message: None, tracking_id: None });
    let error_code = error.error_code.and_then(|code| match code {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    });
    let message = error.message.unwrap_or_default().chars().take(MESSAGE_CHARS_MAX).collect();
    Said::Error(DpsError { http_status, error_code, tracking_id: error.tracking_id, message })
}

fn understand_progress(body: &[u8]) -> Result<Progress, String> {
    let operation: OperationBody = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let wrapped = operation.operation_id.is_some() || operation.registration_state.is_some();
    // A status lookup is answered with the bare state, register and poll with a wrapper around it.
    let state: StateBody = match operation.registration_state {
        Some(state) => state,
        None if wrapped => StateBody::default(),
        None => serde_json::from_slice(body).map_err(|error| error.to_string())?,
    };
    let status = operation.status.as_deref().or(state.status.as_deref()).ok_or("no status")?;
    let status = match status.to_ascii_lowercase().as_str() {
        "unassigned" => Status::Unassigned,
        "assigning" => Status::Assigning,
        "assigned" => Status::Assigned,
        "failed" => Status::Failed,
        "disabled" => Status::Disabled,
        _ => return Err("a status that is none of unassigned, assigning, assigned, failed, disabled".to_owned()),
    };
    Ok(Progress { operation_id: operation.operation_id, status, state: understand_state(state)? })
}

fn understand_state(body: StateBody) -> Result<RegistrationState, String> {
    Ok(RegistrationState {
        assigned_hub: body
            .assigned_hub
            .map(|hub| HubName::parse(&hub))
            .transpose()
            .map_err(|error| format!("assignedHub: {error}"))?,
        device_id: body
            .device_id
            .map(|id| DeviceId::parse(&id))
            .transpose()
            .map_err(|error| format!("deviceId: {error}"))?,
        substatus: body.substatus,
        payload: body.payload.filter(|payload| !payload.is_null()),
        etag: body.etag,
        last_updated: body.last_updated_date_time_utc.as_deref().and_then(WallTime::parse),
        error_code: body.error_code,
        error_message: body.error_message.map(|message| message.chars().take(MESSAGE_CHARS_MAX).collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_shapes_of_success_are_understood() {
        let accepted = understand(
            202,
            br#"{"operationId":"5.0123456789abcdef.11111111-2222-3333-4444-555555555555","status":"assigning"}"#,
        );
        let Said::Progress(progress) = accepted else { panic!("{accepted:?}") };
        assert_eq!((progress.status, progress.operation_id.is_some()), (Status::Assigning, true));

        let done = understand(
            200,
            br#"{"operationId":"5.0123","status":"assigned","registrationState":{"symmetricKey":{"enrollmentGroupId":"plant"},"registrationId":"dev-1","assignedHub":"hub-a.azure-devices.net","deviceId":"dev-1","status":"assigned","substatus":"initialAssignment","lastUpdatedDateTimeUtc":"2026-01-01T00:00:01.0000000Z","etag":"IjAxMDAi"}}"#,
        );
        let Said::Progress(progress) = done else { panic!("{done:?}") };
        assert_eq!(progress.status, Status::Assigned);
        assert_eq!(progress.state.assigned_hub, Some(HubName::parse("hub-a.azure-devices.net").unwrap()));
        assert_eq!(progress.state.last_updated, WallTime::parse("2026-01-01T00:00:01Z"));

        let looked_up = understand(200, br#"{"registrationId":"dev-1","assignedHub":"hub-a.azure-devices.net","deviceId":"dev-1","status":"assigned"}"#);
        let Said::Progress(progress) = looked_up else { panic!("{looked_up:?}") };
        assert_eq!((progress.status, progress.operation_id), (Status::Assigned, None));
        assert!(progress.state.assigned_hub.is_some());
    }

    #[test]
    fn errors_are_read_in_both_spellings_and_without_a_body() {
        let spelled = |body: &[u8]| match understand(404, body) {
            Said::Error(error) => (error.error_code, error.message),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            spelled(br#"{"errorCode":404201,"message":"gone","trackingId":"t"}"#),
            (Some(404_201), "gone".to_owned())
        );
        assert_eq!(spelled(br#"{"code":"404201","errorMessage":"gone"}"#), (Some(404_201), "gone".to_owned()));
        assert_eq!(spelled(b"<html>"), (None, String::new()));
    }

    #[test]
    fn what_only_looks_like_success_is_unreadable() {
        for body in [
            &b"<html>"[..],
            b"{}",
            br#"{"status":"exploded"}"#,
            br#"{"status":"assigned","assignedHub":"https://x"}"#,
            b"[]",
        ] {
            assert!(matches!(understand(200, body), Said::Unreadable { .. }), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn a_wait_is_read_in_seconds_and_as_a_date_on_the_clock_of_whoever_asks_for_it() {
        let date = parse_http_date("Thu, 01 Jan 2026 00:00:01 GMT");
        let wait = |text| parse_retry_after(text, date);
        assert_eq!(wait("17"), Some(Duration::from_secs(17)));
        assert_eq!(wait("Thu, 01 Jan 2026 00:02:01 GMT"), Some(Duration::from_secs(120)));
        assert_eq!(wait("Thu, 01 Jan 2026 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("soon"), None);
        assert_eq!(parse_retry_after("Thu, 01 Jan 2026 00:02:01 GMT", None), None);
    }

    #[test]
    fn http_dates_are_read() {
        assert_eq!(parse_http_date("Thu, 01 Jan 2026 00:00:01 GMT"), WallTime::parse("2026-01-01T00:00:01Z"));
    }
}
