//! Makes sense of an HTTP answer that came in DPS's name.
//!
//! Invariants: pure, and everything that is handed on is bounded. A member that is missing, of another type, or against its rule never
//! hides the others: it is left out or cut. `Location` is never looked at (it may lack the operation ID).

use std::time::Duration;

use serde_json::{Map, Value};

use super::{Answer, CallResult, DpsError, NoAnswer, Progress, RegistrationState, Said, Status};
use crate::ids::{DeviceId, HubName, OperationId, RegistrationId};
use rate_control::time::WallTime;

/// Longest part of DPS's words that is kept.
const MESSAGE_CHARS_MAX: usize = 300;

/// Longest name of a failure, of a registration's revision or of a content type that is kept; DPS's own have 36 characters.
const NAME_CHARS_MAX: usize = 128;

/// Longest substatus that is believed; the longest known one has 30 characters.
const SUBSTATUS_CHARS_MAX: usize = 64;

/// Makes sense of an HTTP answer that arrived whole. `header` gives the value of a header by its lower-case name, if there is one that is
/// text. Pure, so that an answer that came by another way than a socket is understood in the same way.
///
/// # Errors
/// [`NoAnswer::Lost`] if something between us and DPS gave a gateway's error in its stead.
pub fn read<'h>(http_status: u16, header: impl Fn(&str) -> Option<&'h str>, body: &[u8]) -> CallResult {
    let said = understand(http_status, header("content-type"), body);
    let from_dps = speaks_for_dps(&said);
    if matches!(http_status, 408 | 502..=504) && !from_dps {
        return Err(NoAnswer::Lost(format!("HTTP {http_status} from something between us and DPS")));
    }
    let date = header("date").and_then(parse_http_date);
    Ok(Answer {
        said,
        retry_after: header("retry-after").and_then(|text| parse_retry_after(text.trim(), date)),
        date: date.filter(|_| from_dps),
        request_id: header("x-ms-request-id").and_then(name),
    })
}

/// Only DPS tells how far a registration is, and only DPS puts its six-digit code into an error.
fn speaks_for_dps(said: &Said) -> bool {
    matches!(said, Said::Progress(_) | Said::Error(DpsError { error_code: Some(_), .. }))
}

/// Whole seconds, or a date on the clock of whoever answered (RFC 9110, section 10.2.3).
fn parse_retry_after(text: &str, date: Option<WallTime>) -> Option<Duration> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    seconds.or_else(|| Some(parse_http_date(text)?.since(date?)))
}

/// A `Date` header.
pub(super) fn parse_http_date(text: &str) -> Option<WallTime> {
    jiff::fmt::rfc2822::parse(text).ok().map(|zoned| WallTime::from_unix_millis(zoned.timestamp().as_millisecond()))
}

fn understand(http_status: u16, content_type: Option<&str>, body: &[u8]) -> Said {
    let json = serde_json::from_slice::<Value>(body).ok();
    let object = json.as_ref().and_then(Value::as_object);
    if !(200..300).contains(&http_status) {
        return Said::Error(understand_error(http_status, object, body.is_empty()));
    }
    let Some(object) = object.filter(|object| is_of_dps(object)) else {
        return Said::Foreign { http_status, detail: foreign(content_type, body) };
    };
    match understand_progress(http_status, object) {
        Ok(progress) => Said::Progress(progress),
        Err(detail) => Said::Unreadable { http_status, detail },
    }
}

/// Whether it has any of the members that DPS tells a registration's progress with.
fn is_of_dps(object: &Map<String, Value>) -> bool {
    ["operationId", "status", "registrationState", "registrationId", "assignedHub"]
        .iter()
        .any(|member| object.contains_key(*member))
}

/// What came instead of DPS's answer, in words.
fn foreign(content_type: Option<&str>, body: &[u8]) -> String {
    let kind = content_type.and_then(|text| name(text.split(';').next().unwrap_or_default()));
    let page = kind.as_deref() == Some("text/html") || body.trim_ascii_start().starts_with(b"<");
    match (body.is_empty(), page, kind) {
        (true, ..) => "no body at all".to_owned(),
        (_, true, _) => "a web page, as of a captive portal, a login or a block page".to_owned(),
        (.., Some(kind)) => format!("{} bytes of {kind} that are not DPS's JSON", body.len()),
        (.., None) => format!("{} bytes that are not DPS's JSON", body.len()),
    }
}

fn text<'v>(object: &'v Map<String, Value>, member: &str) -> Option<&'v str> {
    object.get(member)?.as_str()
}

/// Whole numbers, also those written as text.
fn number(object: &Map<String, Value>, member: &str) -> Option<i64> {
    match object.get(member)? {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A name that we only hand on: printable ASCII without spaces, cut to a bound. `None` if nothing is left.
fn name(text: &str) -> Option<String> {
    let name: String = text.chars().filter(char::is_ascii_graphic).take(NAME_CHARS_MAX).collect();
    (!name.is_empty()).then_some(name)
}

/// Words for people, cut to a bound, without control characters.
fn words(text: &str) -> String {
    text.chars().map(|symbol| if symbol.is_control() { ' ' } else { symbol }).take(MESSAGE_CHARS_MAX).collect()
}

fn understand_error(http_status: u16, object: Option<&Map<String, Value>>, body_is_empty: bool) -> DpsError {
    let nothing = Map::new();
    let object = object.unwrap_or(&nothing);
    // The service spells two members two ways (seen in Azure/iot-identity-service's schema).
    DpsError {
        http_status,
        error_code: number(object, "errorCode").or_else(|| number(object, "code")),
        tracking_id: text(object, "trackingId").and_then(name),
        message: text(object, "message").or_else(|| text(object, "errorMessage")).map(words).unwrap_or_default(),
        body_is_empty,
    }
}

fn understand_progress(http_status: u16, object: &Map<String, Value>) -> Result<Progress, String> {
    let operation_id = text(object, "operationId").and_then(|text| OperationId::parse(text).ok());
    let nothing = Map::new();
    // A status lookup is answered with the bare state, register and poll with a wrapper around it.
    let state = match object.get("registrationState") {
        Some(Value::Object(state)) => state,
        _ if object.contains_key("operationId") => &nothing,
        _ => object,
    };
    let status = text(object, "status").or_else(|| text(state, "status")).map(str::to_ascii_lowercase);
    let state = understand_state(state)?;
    let status = match status.as_deref() {
        Some("unassigned") => Status::Unassigned,
        Some("assigning") => Status::Assigning,
        Some("assigned") => Status::Assigned,
        Some("failed") => Status::Failed,
        Some("disabled") => Status::Disabled,
        Some(_) => return Err("a status that is none of unassigned, assigning, assigned, failed, disabled".to_owned()),
        // Some leave the status out: 202 means that DPS works on it, 200 that it has done so.
        None if http_status == 200 && state.assigned_hub.is_some() => Status::Assigned,
        None if operation_id.is_some() => Status::Assigning,
        None => return Err("neither a status nor an operation ID that can be used".to_owned()),
    };
    Ok(Progress { operation_id, status, state })
}

fn understand_state(state: &Map<String, Value>) -> Result<RegistrationState, String> {
    let hub = text(state, "assignedHub").filter(|hub| !hub.is_empty()).map(HubName::parse).transpose();
    let substatus = text(state, "substatus").filter(|text| {
        text.len() <= SUBSTATUS_CHARS_MAX && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
    });
    let named = |member| text(state, member).filter(|text| !text.is_empty());
    let (device_id, registration_id) = (named("deviceId"), named("registrationId"));
    let odd_name = device_id.is_some_and(|id| DeviceId::parse(id).is_err())
        || registration_id.is_some_and(|id| RegistrationId::parse(id).is_err());
    Ok(RegistrationState {
        assigned_hub: hub.map_err(|error| format!("assignedHub: {error}"))?,
        device_id: device_id.and_then(|id| DeviceId::parse(id).ok()),
        registration_id: registration_id.and_then(|id| RegistrationId::parse(id).ok()),
        odd_name,
        substatus: substatus.map(str::to_owned),
        payload: state.get("payload").filter(|payload| !payload.is_null()).cloned(),
        etag: text(state, "etag").and_then(name),
        last_updated: text(state, "lastUpdatedDateTimeUtc").and_then(WallTime::parse),
        error_code: number(state, "errorCode"),
        error_message: text(state, "errorMessage").map(words),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(http_status: u16, body: &str) -> Progress {
        match understand(http_status, None, body.as_bytes()) {
            Said::Progress(progress) => progress,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_three_shapes_of_success_are_understood() {
        let accepted = ok(
            202,
            r#"{"operationId":"5.0123456789abcdef.11111111-2222-3333-4444-555555555555","status":"assigning"}"#,
        );
        assert_eq!((accepted.status, accepted.operation_id.is_some()), (Status::Assigning, true));

        let done = ok(
            200,
            r#"{"operationId":"5.0123","status":"assigned","registrationState":{"symmetricKey":{"enrollmentGroupId":"plant"},"registrationId":"dev-1","assignedHub":"hub-a.azure-devices.net","deviceId":"dev-1","status":"assigned","substatus":"initialAssignment","lastUpdatedDateTimeUtc":"2026-01-01T00:00:01.0000000Z","etag":"IjAxMDAi"}}"#,
        );
        assert_eq!(done.status, Status::Assigned);
        assert_eq!(done.state.assigned_hub, Some(HubName::parse("hub-a.azure-devices.net").unwrap()));
        assert_eq!(done.state.last_updated, WallTime::parse("2026-01-01T00:00:01Z"));

        let looked_up = ok(
            200,
            r#"{"registrationId":"dev-1","assignedHub":"hub-a.azure-devices.net","deviceId":"dev-1","status":"assigned"}"#,
        );
        assert_eq!((looked_up.status, looked_up.operation_id), (Status::Assigned, None));
        assert!(looked_up.state.assigned_hub.is_some());
    }

    #[test]
    fn what_is_left_out_is_not_missed() {
        assert_eq!(ok(202, r#"{"operationId":"5.1"}"#).status, Status::Assigning);
        let done = ok(200, r#"{"operationId":"5.1","registrationState":{"assignedHub":"Hub.example."}}"#);
        assert_eq!((done.status, done.state.substatus), (Status::Assigned, None));
        assert_eq!(done.state.assigned_hub, Some(HubName::parse("hub.example").unwrap()), "no dot at the end");
    }

    #[test]
    fn what_is_against_its_rule_is_cut_or_left_out_and_hides_nothing() {
        let long = "x".repeat(100_000);
        let body = format!(
            r#"{{"operationId":"..","status":"assigned","registrationState":{{"assignedHub":"hub.example","deviceId":"{long}","etag":"{long}","substatus":"{long}","errorMessage":"{long}","payload":null,"registrationId":7}}}}"#
        );
        let Progress { operation_id, state, .. } = ok(200, &body);
        assert_eq!((operation_id, state.device_id, state.odd_name, state.substatus), (None, None, true, None));
        assert_eq!(state.etag.map(|etag| etag.len()), Some(NAME_CHARS_MAX));
        assert_eq!(state.error_message.map(|words| words.len()), Some(MESSAGE_CHARS_MAX));
        let body = format!(r#"{{"errorCode":500001,"trackingId":"{long}","message":{{"deep":true}}}}"#);
        let Said::Error(error) = understand(500, None, body.as_bytes()) else { panic!("an error") };
        assert_eq!(error.tracking_id.map(|id| id.len()), Some(NAME_CHARS_MAX));
        let answer = read(500, |name| (name == "x-ms-request-id").then_some(long.as_str()), body.as_bytes()).unwrap();
        assert_eq!(answer.request_id.map(|id| id.len()), Some(NAME_CHARS_MAX));
    }

    #[test]
    fn errors_are_read_in_both_spellings_and_without_a_body() {
        let spelled = |body: &[u8]| match understand(404, None, body) {
            Said::Error(error) => (error.error_code, error.message, error.body_is_empty),
            other => panic!("{other:?}"),
        };
        let gone = (Some(404_201), "gone".to_owned(), false);
        assert_eq!(spelled(br#"{"errorCode":404201,"message":"gone","trackingId":"t"}"#), gone);
        assert_eq!(spelled(br#"{"code":"404201","errorMessage":"gone"}"#), gone);
        assert_eq!(spelled(b"<html>"), (None, String::new(), false));
        assert_eq!(spelled(b""), (None, String::new(), true));
    }

    #[test]
    fn what_only_looks_like_success_is_foreign_or_unreadable() {
        for body in ["<html>", "{}", "[]", "", r#"{"sign-in":"please"}"#, r#"{"operationId":"5.1","stat"#] {
            assert!(matches!(understand(200, None, body.as_bytes()), Said::Foreign { .. }), "{body}");
        }
        for body in [r#"{"status":"exploded"}"#, r#"{"status":"assigned","assignedHub":"https://x"}"#] {
            assert!(matches!(understand(200, None, body.as_bytes()), Said::Unreadable { .. }), "{body}");
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
