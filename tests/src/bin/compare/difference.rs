//! Where two transcripts differ.

use serde_json::Value;

/// Waits that are told are forecasts: they may differ by so many seconds, as the clock ticks between a question and its answer.
const PATIENCE_SECONDS: f64 = 4.0;

/// The members that are such waits.
const WAITS: [&str; 2] = ["retry-after", "retryAfter"];

/// One line for each place where `new` is not as `old`.
pub(crate) fn between(old: &Value, new: &Value) -> Vec<String> {
    let mut differences = Vec::new();
    compare("", old, new, &mut differences);
    differences
}

fn compare(path: &str, old: &Value, new: &Value, differences: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(before), Value::Object(after)) => {
            let names = before.keys().chain(after.keys().filter(|name| !before.contains_key(*name)));
            for name in names {
                let (before, after) = (before.get(name), after.get(name));
                compare_member(&format!("{path}/{name}"), before, after, differences);
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            for index in 0..before.len().max(after.len()) {
                compare_member(&format!("{path}/{index}"), before.get(index), after.get(index), differences);
            }
        }
        _ if old == new || is_same_wait(path, old, new) => {}
        _ => differences.push(format!("{path}: {old} -> {new}")),
    }
}

fn compare_member(path: &str, old: Option<&Value>, new: Option<&Value>, differences: &mut Vec<String>) {
    match (old, new) {
        (Some(old), Some(new)) => compare(path, old, new, differences),
        (Some(old), None) => differences.push(format!("{path}: {old} -> nothing")),
        (None, Some(new)) => differences.push(format!("{path}: nothing -> {new}")),
        (None, None) => {}
    }
}

fn is_same_wait(path: &str, old: &Value, new: &Value) -> bool {
    let is_wait = path.rsplit('/').next().is_some_and(|name| WAITS.contains(&name));
    let seconds = |value: &Value| value.as_f64().filter(|_| is_wait);
    seconds(old).zip(seconds(new)).is_some_and(|(old, new)| (old - new).abs() <= PATIENCE_SECONDS)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_difference_is_told_with_its_place_and_forecasts_have_some_patience() {
        let old = json!({ "answers": { "a": { "status": 200, "body": { "retryAfter": 60, "x": [1, 2] } } } });
        let new = json!({ "answers": { "a": { "status": 202, "body": { "retryAfter": 62, "x": [1], "y": 3 } } } });
        assert_eq!(between(&old, &old), [""; 0]);
        let told = between(&old, &new);
        let expected =
            ["/answers/a/body/x/1: 2 -> nothing", "/answers/a/body/y: nothing -> 3", "/answers/a/status: 200 -> 202"];
        assert_eq!(told, expected);
        assert_eq!(between(&json!({ "retryAfter": 60 }), &json!({ "retryAfter": 70 })).len(), 1);
    }
}
