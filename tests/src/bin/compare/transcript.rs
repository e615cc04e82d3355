//! What is kept of a day: every answer, and every call to DPS, without what is different each time.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use dps_proxy_tests::{Recorded, Reply};
use serde_json::{Map, Value, json};

/// The headers that a client may rely on. Of the others only their presence would matter.
const HEADERS: [&str; 8] = [
    "allow",
    "cache-control",
    "content-type",
    "etag",
    "preference-applied",
    "retry-after",
    "www-authenticate",
    "location",
];

/// Members whose value is another one each time.
const VOLATILE: [&str; 9] = [
    "requestId",
    "trackingId",
    "peer",
    "clockOffsetSeconds",
    "answerSeconds",
    "registrationSeconds",
    "unixSeconds",
    "dpsEtag",
    "feedPosition",
];

/// What was kept last.
static LAST: Mutex<String> = Mutex::new(String::new());

/// The name of what was kept last: where a day that does not end is stuck is behind it.
pub(crate) fn last() -> String {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    answers: Map<String, Value>,
    calls: BTreeMap<String, Vec<String>>,
}

impl Transcript {
    /// Keeps an answer under a name of its own.
    pub(crate) fn answer(&mut self, name: &str, reply: &Reply) {
        let headers: Map<String, Value> = HEADERS
            .iter()
            .filter(|header| reply.headers.contains_key(**header))
            .map(|header| ((*header).to_owned(), header_value(reply.header(header))))
            .collect();
        let body = if reply.json.is_null() { json!(mask_text(&reply.body)) } else { mask(&reply.json) };
        let mut seen = json!({ "status": reply.status, "headers": headers, "body": body });
        // With a refusal, the wait is spread at random.
        if reply.status >= 400 {
            for (part, member) in [("headers", "retry-after"), ("body", "retryAfter")] {
                if let Some(wait) = seen[part].get_mut(member) {
                    *wait = json!("<spread>");
                }
            }
        }
        self.note(name, seen);
    }

    /// Keeps something else that was seen.
    pub(crate) fn note(&mut self, name: &str, seen: Value) {
        name.clone_into(&mut LAST.lock().unwrap_or_else(PoisonError::into_inner));
        let before = self.answers.insert(name.to_owned(), seen);
        assert!(before.is_none(), "two answers of the name {name:?}");
    }

    /// Keeps what an instance was asked, by device; each device's calls in their order.
    pub(crate) fn calls(&mut self, instance: &str, requests: &[Recorded]) {
        for request in requests {
            let device = request.target.split(['/', '?']).nth(3).unwrap_or_default();
            // The question for the time: how often it is asked is a matter of time.
            if device != "-" {
                let body = serde_json::from_str(&request.body).map_or_else(|_| json!(request.body), |body| mask(&body));
                let call = format!("{} {} {body}", request.method, mask_text(&request.target));
                self.calls.entry(format!("{device} at {instance}")).or_default().push(call);
            }
        }
    }

    pub(crate) fn into_value(self) -> Value {
        json!({ "answers": self.answers, "calls": self.calls })
    }
}

/// Seconds stay a number, which is compared with some patience.
fn header_value(text: &str) -> Value {
    text.parse::<u64>().map_or_else(|_| json!(mask_text(text)), |number| json!(number))
}

/// Masks what is different each time, however deep it is.
pub(crate) fn mask(value: &Value) -> Value {
    match value {
        Value::String(text) => json!(mask_text(text)),
        Value::Array(items) => items.iter().map(mask).collect(),
        Value::Object(members) => {
            let masked = members.iter().map(|(name, value)| {
                let volatile = VOLATILE.contains(&name.as_str());
                (name.clone(), if volatile && !value.is_null() { json!("<masked>") } else { mask(value) })
            });
            Value::Object(masked.collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// Masks the words of a text that are different each time.
pub(crate) fn mask_text(text: &str) -> String {
    let is_of_word = |character: char| character.is_ascii_alphanumeric() || "-.:_".contains(character);
    let mut masked = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.find(|character: char| !is_of_word(character)).unwrap_or(rest.len());
        let bare = rest[..word].trim_end_matches(['.', ':']);
        masked.push_str(mask_of(bare).unwrap_or(bare));
        masked.push_str(&rest[bare.len()..word]);
        let between = rest[word..].find(is_of_word).map_or(rest.len(), |length| word + length);
        masked.push_str(&rest[word..between]);
        rest = &rest[between..];
    }
    masked
}

/// What a word is masked with; `None` if it is the same each time.
fn mask_of(word: &str) -> Option<&'static str> {
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Vec<&str> = word.split('-').collect();
    if word.len() >= 20 && word.ends_with('Z') && word.as_bytes()[4] == b'-' && word.as_bytes()[10] == b'T' {
        Some("<time>")
    } else if parts.len() == 5 && word.len() == 36 && parts.iter().all(|part| hex(part)) {
        Some("<uuid>")
    } else if parts.len() == 2 && parts[0].len() == 16 && hex(parts[0]) {
        Some("<event>")
    } else if parts.len() == 2 && parts[0].parse::<u32>().is_ok() && parts[1].len() >= 8 && hex(parts[1]) {
        Some("<tag>")
    } else if word.split('.').count() >= 3 && word.split('.').nth(1).is_some_and(|part| part.len() >= 8 && hex(part)) {
        Some("<operation>")
    } else if word.starts_with("127.0.0.1:") || word.starts_with("localhost:") {
        Some("<address>")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_different_each_time_is_masked_and_nothing_else_is() {
        for (text, masked) in [
            ("assigned at 2026-11-30T20:00:00.123Z.", "assigned at <time>."),
            ("tracking ID 01234567-89ab-cdef-0123-456789abcdef)", "tracking ID <uuid>)"),
            ("/s/registrations/d/operations/5.0123456789abcdef.1?api", "/s/registrations/d/operations/<operation>?api"),
            ("http://127.0.0.1:8080 answers", "http://<address> answers"),
            (
                "hub-1.azure-devices.net, sn-1 and api-version=2021-10-01",
                "hub-1.azure-devices.net, sn-1 and api-version=2021-10-01",
            ),
            ("0123456789abcdef-17", "<event>"),
            ("\"3-1a22e582b6c\"", "\"<tag>\""),
        ] {
            assert_eq!(mask_text(text), masked);
        }
        let value = json!({ "requestId": "x", "n": 1, "at": ["2026-11-30T20:00:00Z"] });
        assert_eq!(mask(&value), json!({ "requestId": "<masked>", "n": 1, "at": ["<time>"] }));
    }
}
