//! Changes members of an answer on its way out.

use std::collections::BTreeMap;

use serde_json::Value;

/// Changes the JSON of an answer; one that is not a JSON object stays as it is.
pub(crate) fn rewrite(body: &[u8], set: &BTreeMap<String, Value>, remove: &[String]) -> Vec<u8> {
    let Ok(mut answer @ Value::Object(_)) = serde_json::from_slice::<Value>(body) else { return body.to_vec() };
    for (path, value) in set {
        if let Some((parent, member)) = parent(&mut answer, path) {
            parent.insert(member.to_owned(), value.clone());
        }
    }
    for path in remove {
        if let Some((parent, member)) = parent(&mut answer, path) {
            parent.remove(member);
        }
    }
    answer.to_string().into_bytes()
}

/// The object that holds the member at `path`, if there is one, and the member's name.
fn parent<'v, 'p>(answer: &'v mut Value, path: &'p str) -> Option<(&'v mut serde_json::Map<String, Value>, &'p str)> {
    let (parents, member) = path.rsplit_once('.').unwrap_or(("", path));
    let mut object = answer;
    for name in parents.split('.').filter(|name| !name.is_empty()) {
        object = object.get_mut(name)?;
    }
    Some((object.as_object_mut()?, member))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_rewritten_member_by_member() {
        let set = BTreeMap::from([
            ("registrationState.deviceId".to_owned(), Value::from("another")),
            ("absent.member".to_owned(), Value::from(1)),
        ]);
        let body = br#"{"status":"assigned","registrationState":{"deviceId":"d","substatus":"s"}}"#;
        let rewritten = rewrite(body, &set, &["status".to_owned(), "registrationState.substatus".to_owned()]);
        assert_eq!(rewritten, br#"{"registrationState":{"deviceId":"another"}}"#);
        assert_eq!(rewrite(b"<html>", &set, &[]), b"<html>");
    }
}
