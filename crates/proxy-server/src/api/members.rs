//! The members of a JSON object, taken one by one and checked, so that a fault names the member and the rule.
//!
//! Invariants:
//! - A member that is `null` counts as left out.
//! - Every member that nobody asked for is a fault, and so is one that stands there twice.
//! - No message quotes a value: it may be a secret.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::config::did_you_mean;

/// Longest name of a member that a message repeats.
const NAME_CHARS_MAX: usize = 40;

/// As many names are compared with each other; among more, they are looked up.
const FEW_MEMBERS: usize = 8;

/// The members of one object.
#[derive(Debug)]
pub struct Members {
    members: Vec<(String, Value)>,
    asked: RefCell<Vec<&'static str>>,
}

/// What is made of the members of an object.
pub trait FromMembers: Sized {
    /// Takes what belongs to it.
    ///
    /// # Errors
    /// The first member that does not obey its rule, in words.
    fn from_members(members: &Members) -> Result<Self, String>;
}

/// Reads one JSON object.
///
/// # Errors
/// What is wrong with it; `what` it is ("the body", "the line") comes first in the words.
pub fn read<T: FromMembers>(what: &str, text: &str) -> Result<T, String> {
    let read = || {
        let members = Members::parse(text)?;
        let read = T::from_members(&members)?;
        members.check_unknown()?;
        Ok(read)
    };
    // A fault of a member begins with its name.
    read().map_err(|fault: String| {
        let of = if fault.starts_with('"') { "'s" } else { "" };
        format!("{what}{of} {fault}")
    })
}

impl Members {
    fn parse(text: &str) -> Result<Self, String> {
        // serde_json stops at 128 levels of nesting, so a deep document costs no more than its bytes.
        let parsed: Parsed = serde_json::from_str(text).map_err(|error| not_json(text, &error))?;
        let members = match parsed {
            Parsed::Object(members) => members,
            Parsed::Other(kind) => return Err(format!("must be a JSON object {{…}}, but is {kind}")),
        };
        if let Some(name) = doubled(&members) {
            return Err(format!("has the member {} twice; say it once", quoted(name)));
        }
        let asked = RefCell::new(Vec::with_capacity(FEW_MEMBERS));
        Ok(Self { members, asked })
    }

    fn get(&self, name: &'static str) -> Option<&Value> {
        self.asked.borrow_mut().push(name);
        let found = self.members.iter().find(|(member, _)| member == name).map(|(_, value)| value);
        found.filter(|value| !value.is_null())
    }

    /// A text.
    ///
    /// # Errors
    /// If it is something else.
    pub fn text(&self, name: &'static str) -> Result<Option<String>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(_)) => Err(format!("\"{name}\" must be a text, but is a number: put it in quotes")),
            Some(other) => Err(format!("\"{name}\" must be a text, but is {}", kind(other))),
        }
    }

    /// A text that has to be there.
    ///
    /// # Errors
    /// If it is missing or something else.
    pub fn required_text(&self, name: &'static str) -> Result<String, String> {
        self.text(name)?.ok_or_else(|| format!("\"{name}\" is missing; it must be a text"))
    }

    /// True or false; false if it is left out.
    ///
    /// # Errors
    /// If it is something else.
    pub fn flag(&self, name: &'static str) -> Result<bool, String> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::String(text)) if ["true", "false"].contains(&text.to_ascii_lowercase().as_str()) => {
                Err(format!("\"{name}\" must be true or false, but is a text: write it without quotes"))
            }
            Some(other) => Err(format!("\"{name}\" must be true or false, but is {}", kind(other))),
        }
    }

    /// An object.
    ///
    /// # Errors
    /// If it is something else.
    pub fn object(&self, name: &'static str) -> Result<Option<Map<String, Value>>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object.clone())),
            Some(Value::String(text)) if text.trim_start().starts_with('{') => Err(format!(
                "\"{name}\" must be a JSON object {{…}}, but is a text that holds one: write the object itself, without quotes around it and \
                 without backslashes"
            )),
            Some(other) => Err(format!("\"{name}\" must be a JSON object {{…}}, but is {}", kind(other))),
        }
    }

    /// A list of texts that has to be there.
    ///
    /// # Errors
    /// If it is missing or something else.
    pub fn required_texts(&self, name: &'static str) -> Result<Vec<String>, String> {
        let items = match self.get(name) {
            None => return Err(format!("\"{name}\" is missing; it must be a list of texts")),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(format!("\"{name}\" must be a list of texts, but is {}", kind(other))),
        };
        let text = |(index, item): (usize, &Value)| match item {
            Value::String(text) => Ok(text.clone()),
            other => Err(format!("\"{name}\" must be a list of texts, but its item {} is {}", index + 1, kind(other))),
        };
        items.iter().enumerate().map(text).collect()
    }

    fn check_unknown(&self) -> Result<(), String> {
        let asked = self.asked.borrow();
        match self.members.iter().find(|(name, _)| !asked.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) => {
                let known: Vec<String> = asked.iter().map(|name| format!("\"{name}\"")).collect();
                let hint = did_you_mean(name, asked.iter().copied());
                let hint = if hint.is_empty() { format!("; known are {}", known.join(", ")) } else { hint };
                Err(format!("has an unknown member {}{hint}", quoted(name)))
            }
        }
    }
}

/// The name of a member that stands there twice.
fn doubled(members: &[(String, Value)]) -> Option<&str> {
    if members.len() <= FEW_MEMBERS {
        let mut names = members.iter().map(|(name, _)| name.as_str()).enumerate();
        return names
            .find(|(at, name)| members[..*at].iter().any(|(earlier, _)| earlier == name))
            .map(|(_, name)| name);
    }
    let mut names = HashSet::with_capacity(members.len());
    members.iter().map(|(name, _)| name.as_str()).find(|name| !names.insert(*name))
}

fn quoted(name: &str) -> String {
    let shown: String = name.chars().filter(|character| !character.is_control()).take(NAME_CHARS_MAX).collect();
    let cut = if shown.len() < name.len() { "…" } else { "" };
    format!("\"{shown}{cut}\"")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn not_json(text: &str, error: &serde_json::Error) -> String {
    if text.trim().is_empty() {
        return "is empty; it must be a JSON object {…}".to_owned();
    }
    if error.is_eof() {
        return "is not complete: the JSON object ends too early".to_owned();
    }
    if error.to_string().starts_with("recursion limit") {
        return "is nested too deeply: at most 127 levels".to_owned();
    }
    let before: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    format!("is not JSON: look at byte {} of {}", (before + error.column()).max(1), text.len())
}

/// A document as far as it matters here: the members of an object in their order, or that it is something else.
enum Parsed {
    Object(Vec<(String, Value)>),
    Other(&'static str),
}

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ParsedVisitor)
    }
}

struct ParsedVisitor;

impl<'de> Visitor<'de> for ParsedVisitor {
    type Value = Parsed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Parsed::Object(members))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Parsed, A::Error> {
        while items.next_element::<serde::de::IgnoredAny>()?.is_some() {}
        Ok(Parsed::Other("a list"))
    }

    fn visit_unit<E>(self) -> Result<Parsed, E> {
        Ok(Parsed::Other("null"))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Parsed, E> {
        Ok(Parsed::Other("true or false"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Parsed, E> {
        Ok(Parsed::Other("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Parsed, E> {
        Ok(Parsed::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Parsed, E> {
        Ok(Parsed::Other("a number"))
    }

    fn visit_str<E>(self, _: &str) -> Result<Parsed, E> {
        Ok(Parsed::Other("a text"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Sample;

    impl FromMembers for Sample {
        fn from_members(members: &Members) -> Result<Self, String> {
            members.required_text("name")?;
            members.flag("flag")?;
            members.object("object")?;
            Ok(Self)
        }
    }

    #[test]
    fn a_member_that_is_null_is_left_out() {
        read::<Sample>("the body", r#" {"name":"a","flag":null,"object":null} "#).unwrap();
    }

    #[test]
    fn what_is_wrong_is_said_by_member_and_rule_and_never_by_value() {
        for (text, said) in [
            (" ", "is empty"),
            ("{\"name\":\"c2Vj", "is not complete"),
            ("{\"name\":\"c2Vj\"} x", "is not JSON: look at byte 17 of 17"),
            ("\n\n{name:\"c2Vj\"}", "is not JSON: look at byte 4 of 15"),
            ("[\"c2Vj\"]", "must be a JSON object {…}, but is a list"),
            ("\"c2Vj\"", "but is a text"),
            ("7", "but is a number"),
            ("{\"flag\":true}", "\"name\" is missing"),
            ("{\"name\":7}", "\"name\" must be a text, but is a number: put it in quotes"),
            ("{\"name\":\"c2Vj\",\"name\":\"c2Vj\"}", "has the member \"name\" twice"),
            (
                "{\"name\":\"a\",\"flag\":\"true\"}",
                "\"flag\" must be true or false, but is a text: write it without quotes",
            ),
            ("{\"name\":\"a\",\"flag\":1}", "\"flag\" must be true or false, but is a number"),
            ("{\"name\":\"a\",\"object\":\"{\\\"a\\\":\\\"c2Vj\\\"}\"}", "but is a text that holds one"),
            ("{\"name\":\"a\",\"object\":[\"c2Vj\"]}", "\"object\" must be a JSON object {…}, but is a list"),
            ("{\"name\":\"a\",\"flagg\":\"c2Vj\"}", "has an unknown member \"flagg\"; did you mean `flag`?"),
        ] {
            let told = read::<Sample>("the body", text).unwrap_err();
            assert!(told.contains(said) && !told.contains("c2Vj"), "{text}: {told}");
        }
        let deep = format!("{{\"name\":\"a\",\"object\":{}{}}}", "{\"a\":".repeat(200), "}".repeat(200));
        assert!(read::<Sample>("the body", &deep).unwrap_err().contains("nested too deeply"));
        let long = format!("{{\"name\":\"a\",\"{}\":1}}", "x".repeat(5000));
        assert!(read::<Sample>("the body", &long).unwrap_err().len() < 200);
    }
}
