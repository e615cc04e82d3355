//! Members of a stored record that this version does not know: a newer version wrote them, and finds them again.
//!
//! Invariants:
//! - A part of a record that is changed keeps what this version does not know of it. A part that is removed or replaced takes that along.
//! - Nothing is dropped in silence: what could not be kept makes the record unreadable for this version.
//! - What is unknown is never printed: it may be a secret.
//!
//! Nearly every record has only what this version knows. It is read strictly, which costs nothing, and only one that fails then is read by
//! [`read`] here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error as _, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde::ser::{Serialize, Serializer};
use serde_json::{Map, Value};

/// Members of one part of a record.
pub(super) type Members = Map<String, Value>;

/// The members of one part of a record that this version does not know.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Unknown(Option<Box<Members>>);

impl Unknown {
    /// These.
    pub(super) fn of(members: Members) -> Self {
        Self((!members.is_empty()).then(|| Box::new(members)))
    }

    /// Whether there are none.
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Puts them into a part that is about to be stored.
    pub(super) fn put_into(&self, members: &mut Members) {
        members.extend(self.0.as_deref().cloned().unwrap_or_default());
    }
}

/// Their names.
impl fmt::Debug for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter().flat_map(|members| members.keys())).finish()
    }
}

impl Serialize for Unknown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().flat_map(|members| members.iter()))
    }
}

/// What was put aside while a value was read: by the way to the part it belongs to, as a JSON pointer.
pub(super) type Aside = BTreeMap<String, Members>;

/// Which members a part may have, where that is not what its type asks for: given the name of the type, and the part.
pub(super) type FieldsOf = fn(&str, &Members) -> Option<&'static [&'static str]>;

/// Why a value cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Misread {
    /// One of a closed set of values is none that this version knows.
    NewValue(String),
    /// It is not what it should be.
    Wrong(String),
}

/// Reads what is known of `value`, and puts aside what nobody asks for.
pub(super) fn read<T: DeserializeOwned>(value: Value, fields_of: FieldsOf) -> Result<(T, Aside), Misread> {
    let reading = Reading { fields_of, aside: RefCell::default() };
    let known = T::deserialize(Part { value, at: String::new(), reading: &reading })?;
    Ok((known, reading.aside.into_inner()))
}

impl fmt::Display for Misread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::NewValue(why) | Self::Wrong(why)) = self;
        f.write_str(why)
    }
}

impl std::error::Error for Misread {}

impl serde::de::Error for Misread {
    fn custom<T: fmt::Display>(why: T) -> Self {
        Self::Wrong(why.to_string())
    }
}

impl From<serde_json::Error> for Misread {
    fn from(error: serde_json::Error) -> Self {
        Self::custom(error)
    }
}

/// One reading of a whole record.
struct Reading {
    fields_of: FieldsOf,
    aside: RefCell<Aside>,
}

/// A part of a record, and the way to it.
struct Part<'a> {
    value: Value,
    at: String,
    reading: &'a Reading,
}

impl Part<'_> {
    fn inside(&self, name: impl fmt::Display, value: Value) -> Self {
        Self { value, at: format!("{}/{name}", self.at), reading: self.reading }
    }

    fn is_not(&self, expected: &str) -> Misread {
        Misread::Wrong(format!("{}: expected {expected}", self.at))
    }
}

impl IntoDeserializer<'_, Misread> for Part<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Part<'_> {
    type Error = Misread;

    /// All that has no parts, and what is free in its form.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misread> {
        Ok(self.value.deserialize_any(visitor)?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misread> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Misread> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Misread> {
        let Value::Array(items) = self.value.take() else { return Err(self.is_not("a list")) };
        let items = items.into_iter().enumerate().map(|(number, item)| self.inside(number, item));
        visitor.visit_seq(SeqDeserializer::new(items))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misread> {
        let Value::Object(members) = self.value.take() else { return Err(self.is_not("an object")) };
        let fields = (self.reading.fields_of)(name, &members).unwrap_or(fields);
        let (known, unknown): (Members, Members) =
            members.into_iter().partition(|(name, _)| fields.contains(&name.as_str()));
        if !unknown.is_empty() {
            self.reading.aside.borrow_mut().insert(self.at.clone(), unknown);
        }
        let known = known.into_iter().map(|(name, value)| {
            let part = self.inside(&name, value);
            (name, part)
        });
        visitor.visit_map(MapDeserializer::new(known))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        mut self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misread> {
        let Value::String(text) = self.value.take() else { return Err(self.is_not("a word")) };
        if !variants.contains(&text.as_str()) {
            let known = variants.join(", ");
            return Err(Misread::NewValue(format!("{} is {text:?}, and this version knows {known}", self.at)));
        }
        visitor.visit_enum(text.into_deserializer())
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct map identifier
        ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "kebab-case")]
    enum Word {
        Known,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Inner {
        word: Word,
        number: Option<u32>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Outer {
        inner: Option<Inner>,
        list: Vec<Inner>,
        free: Value,
    }

    fn no_others(_: &str, _: &Members) -> Option<&'static [&'static str]> {
        None
    }

    #[test]
    fn what_nobody_asks_for_is_put_aside_wherever_it_is() {
        let inner = || json!({ "word": "known", "new": [1] });
        let stored =
            json!({ "inner": inner(), "list": [{ "word": "known" }, inner()], "free": { "a": 1 }, "top": true });
        let (outer, aside): (Outer, Aside) = read(stored, no_others).unwrap();
        assert_eq!((outer.inner.map(|inner| inner.number), outer.list.len()), (Some(None), 2));
        assert_eq!(outer.free, json!({ "a": 1 }), "what is free in its form has no unknown parts");
        let at: Vec<&str> = aside.keys().map(String::as_str).collect();
        assert_eq!(at, ["", "/inner", "/list/1"]);
        assert_eq!(aside["/inner"]["new"], json!([1]));
    }

    #[test]
    fn a_new_word_is_told_from_a_wrong_value() {
        let read = |word: Value, number: Value| {
            let stored = json!({ "inner": { "word": word, "number": number }, "list": [], "free": 1 });
            read::<Outer>(stored, no_others).map(|_| ()).unwrap_err()
        };
        let new = read(json!("new"), json!(1));
        assert_eq!(new, Misread::NewValue("/inner/word is \"new\", and this version knows known".to_owned()));
        assert!(matches!(read(json!(7), json!(1)), Misread::Wrong(_)));
        assert!(matches!(read(json!("known"), json!("one")), Misread::Wrong(_)));
    }

    #[test]
    fn what_is_unknown_is_not_printed() {
        let Value::Object(members) = json!({ "sealedKey": "c2VjcmV0" }) else { panic!("an object") };
        let unknown = Unknown::of(members);
        assert_eq!(format!("{unknown:?}"), r#"{"sealedKey"}"#);
        assert_eq!(serde_json::to_string(&unknown).unwrap(), r#"{"sealedKey":"c2VjcmV0"}"#);
    }
}
