//! Reads a value that is written as a text, without a copy of that text: a record has a dozen of them, and every answer reads one.

use std::fmt;

use serde::Deserializer;
use serde::de::{Error, Visitor};

/// Reads what `parse` makes of a text; `expected` is what that should be, in words.
///
/// # Errors
/// If there is no text, or what `parse` says against it.
pub fn read<'de, D: Deserializer<'de>, T, E: fmt::Display>(
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
