//! Reads a value that is written as a text, without a copy of that text: a record has a dozen of them, and every answer reads one.

use std::fmt;

use serde::Deserializer;
use serde::de::{Error, Visitor};

/// Reads what `parse` makes of a text; `expected` is what that should be, in words.
///
/// # Errors
/// If there is no text, or what `parse` says against it.
pub(crate) fn read<'de, D: Deserializer<'de>, T, E: fmt::Display>(
    deserializer: D,
    expected: &'static str,
    parse: fn(&str) -> Result<T, E>,
) -> Result<T, D::Error> {
    deserializer.deserialize_str(Text { expected, parse })
}

struct Text<T, E> {
    expected: &'static str,
    parse: fn(&str) -> Result<T, E>,
}

impl<T, E: fmt::Display> Visitor<'_> for Text<T, E> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<F: Error>(self, text: &str) -> Result<T, F> {
        (self.parse)(text).map_err(F::custom)
    }
}

#[cfg(test)]
mod tests {
    use crate::ids::InstanceName;
    use crate::time::WallTime;

    #[test]
    fn a_text_is_read_from_bytes_with_escapes_and_from_values_and_a_fault_names_the_rule() {
        let name = InstanceName::parse("eu-1").unwrap();
        for text in [r#""eu-1""#, r#""eu\u002d1""#] {
            assert_eq!(serde_json::from_str::<InstanceName>(text).unwrap(), name);
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::from_value::<InstanceName>(value).unwrap(), name);
        }
        assert_eq!(serde_json::to_string(&name).unwrap(), r#""eu-1""#);
        let told = |text| serde_json::from_str::<InstanceName>(text).unwrap_err().to_string();
        assert!(told(r#""-""#).starts_with("a name has 1 to 63 characters"), "{}", told(r#""-""#));
        assert!(told("7").contains("expected a string"), "{}", told("7"));
        let told = serde_json::from_str::<WallTime>(r#""noon""#).unwrap_err().to_string();
        assert!(told.starts_with("expected an RFC 3339 time"), "{told}");
    }
}
