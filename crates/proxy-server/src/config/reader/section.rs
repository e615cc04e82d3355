//! One table of the document: takes its values by key, each of one type and within bounds.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proxy_core::ids::InvalidName;
use toml::{Table, Value};

use super::suggestion::did_you_mean;
use super::{Document, KeyInfo, join};
use crate::config::files::read_bounded;
use crate::rows::BYTE_ORDER_MARK;

/// Keys of earlier versions, by their path with `NAME` for what the operator names, and what they are called now.
const RENAMED: [(&str, &str); 2] = [
    ("instances.NAME.learn_limit", "adaptive_limit"),
    ("instances.NAME.learned_min_percent", "adaptive_limit_min_percent"),
];

/// One table of the document. Call [`check_unknown`](Self::check_unknown) after the last key was taken.
#[derive(Debug)]
pub(crate) struct Section<'d> {
    document: &'d Document,
    path: String,
    pattern: String,
    table: Option<&'d Table>,
    /// Whether the effective values are recorded: not in tables that the operator names.
    fixed: bool,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'d> Section<'d> {
    pub(super) fn new(
        document: &'d Document,
        path: String,
        pattern: String,
        table: Option<&'d Table>,
        fixed: bool,
    ) -> Self {
        Self { document, path, pattern, table, fixed, asked: RefCell::default() }
    }

    /// The key path of `key` in this table.
    pub(crate) fn key(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// The key path of the table.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The document it belongs to.
    pub(crate) fn document(&self) -> &'d Document {
        self.document
    }

    /// Whether `key` is set at all.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Notes a problem of `key`.
    pub(crate) fn problem(&self, key: &str, message: impl Into<String>) {
        self.document.problem(&self.key(key), message);
    }

    /// Notes a warning about `key`.
    pub(crate) fn warning(&self, key: &str, message: impl Into<String>) {
        self.document.warning(&self.key(key), message);
    }

    fn take(&self, key: &'static str, kind: &'static str, default: &str, bounds: &str) -> Option<&'d Value> {
        self.asked.borrow_mut().insert(key);
        let info = KeyInfo { kind, default: default.to_owned(), bounds: bounds.to_owned() };
        self.document.report.borrow_mut().known.insert(join(&self.pattern, key), info);
        self.table?.get(key)
    }

    fn in_force<T: fmt::Debug>(&self, key: &str, value: T) -> T {
        if self.fixed {
            self.document.report.borrow_mut().effective.insert(self.key(key), format!("{value:?}"));
        }
        value
    }

    fn wrong_type(&self, key: &str, expected: &str, found: &Value) {
        self.problem(key, format!("must be {expected}, but is {}", type_in_words(found)));
    }

    /// A whole number within `bounds`.
    pub(crate) fn whole<T>(&self, key: &'static str, default: T, bounds: std::ops::RangeInclusive<T>) -> T
    where
        T: Copy + PartialOrd + fmt::Display + fmt::Debug + TryFrom<i64>,
    {
        let words = format!("{} to {}", bounds.start(), bounds.end());
        let value = match self.take(key, "whole number", &default.to_string(), &words) {
            None => default,
            Some(Value::Integer(number)) => match T::try_from(*number) {
                Ok(value) if bounds.contains(&value) => value,
                Ok(_) | Err(_) => {
                    self.problem(key, format!("{number} is out of bounds: {words}"));
                    default
                }
            },
            Some(other) => {
                self.wrong_type(key, &format!("a whole number ({words})"), other);
                default
            }
        };
        self.in_force(key, value)
    }

    /// A duration within bounds; all three are written as an operator writes them.
    pub(crate) fn duration(
        &self,
        key: &'static str,
        default: &'static str,
        min: &'static str,
        max: &'static str,
    ) -> Duration {
        let words = format!("{min} to {max}");
        let fallback = parse_duration(default).unwrap_or_default();
        let expected = format!("a duration such as \"{default}\" ({words})");
        let value = match self.take(key, "duration", &format!("\"{default}\""), &words) {
            None => fallback,
            Some(Value::String(text)) => match parse_duration(text) {
                None => {
                    self.problem(key, format!("is not {expected}"));
                    fallback
                }
                Some(value) if Some(value) < parse_duration(min) || Some(value) > parse_duration(max) => {
                    self.problem(key, format!("is out of bounds: {words}"));
                    fallback
                }
                Some(value) => value,
            },
            Some(Value::Integer(_)) => {
                self.problem(key, format!("has no unit; write {expected}"));
                fallback
            }
            Some(other) => {
                self.wrong_type(key, &expected, other);
                fallback
            }
        };
        self.in_force(key, value)
    }

    /// Yes or no.
    pub(crate) fn flag(&self, key: &'static str, default: bool) -> bool {
        let value = match self.take(key, "true or false", &default.to_string(), "") {
            None => default,
            Some(Value::Boolean(value)) => *value,
            Some(other) => {
                self.wrong_type(key, "true or false", other);
                default
            }
        };
        self.in_force(key, value)
    }

    /// One of some words. `None` if it is missing, or wrong (which is then noted).
    pub(crate) fn choice<T: Copy>(&self, key: &'static str, default: &str, choices: &[(&'static str, T)]) -> Option<T> {
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let words = words.join(", ");
        let default_in_toml = if default.is_empty() { String::new() } else { format!("\"{default}\"") };
        let chosen = match self.take(key, "word", &default_in_toml, &words) {
            None => default,
            Some(Value::String(text)) => text.as_str(),
            Some(other) => {
                self.wrong_type(key, &format!("one of {words}"), other);
                return None;
            }
        };
        let found = choices.iter().find(|(word, _)| *word == chosen);
        if found.is_none() && !chosen.is_empty() {
            let hint = did_you_mean(chosen, choices.iter().map(|(word, _)| *word));
            self.problem(key, format!("is not one of {words}{hint}"));
        }
        found.map(|(word, value)| (self.in_force(key, word), *value).1)
    }

    /// A text. `None` if it is missing or of another type (which is then noted).
    pub(crate) fn text(&self, key: &'static str, kind: &'static str, default: &str) -> Option<String> {
        let default_in_toml = if default.is_empty() { String::new() } else { format!("\"{default}\"") };
        let value = match self.take(key, kind, &default_in_toml, "") {
            None => (!default.is_empty()).then(|| default.to_owned()),
            Some(found) => self.as_text(key, found),
        };
        if value.as_ref().is_some_and(|text| text.trim().is_empty()) {
            self.problem(key, "is empty; leave the key out if there is nothing to say");
            return None;
        }
        self.in_force(key, value)
    }

    fn as_text(&self, key: &str, value: &Value) -> Option<String> {
        match value {
            Value::String(text) => Some(text.clone()),
            // What looks like a number in a variable may be meant as text; there it cannot be put in quotes as easily.
            other => match self.document.overrides.get(&self.key(key)) {
                Some(found) if !other.is_array() && !other.is_table() => Some(found.raw.clone()),
                _ => {
                    self.wrong_type(key, "a text in quotes", other);
                    None
                }
            },
        }
    }

    /// A text that obeys a grammar.
    pub(crate) fn parsed<T>(
        &self,
        key: &'static str,
        kind: &'static str,
        default: &str,
        parse: impl Fn(&str) -> Result<T, InvalidName>,
    ) -> Option<T> {
        let text = self.text(key, kind, default)?;
        parse(&text).map_err(|rule| self.problem(key, rule.to_string())).ok()
    }

    /// A list of texts that obey a grammar, or a single one. What does not obey it is noted and left out.
    pub(crate) fn list<T>(
        &self,
        key: &'static str,
        kind: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let found = match self.take(key, kind, "", "") {
            None => return Vec::new(),
            Some(Value::Array(items)) => items.as_slice(),
            Some(single) => std::slice::from_ref(single),
        };
        let mut parsed = Vec::new();
        for (index, item) in found.iter().enumerate() {
            let place =
                if found.len() == 1 && !self.is_array(key) { key.to_owned() } else { format!("{key}[{index}]") };
            if let Some(text) = self.as_text(&place, item) {
                match parse(&text) {
                    Ok(value) => parsed.push(value),
                    Err(message) => self.problem(&place, message),
                }
            }
        }
        parsed
    }

    fn is_array(&self, key: &str) -> bool {
        self.table.and_then(|table| table.get(key)).is_some_and(Value::is_array)
    }

    /// A table of texts whose keys the operator chooses.
    pub(crate) fn texts(&self, key: &'static str, kind: &'static str) -> BTreeMap<String, String> {
        match self.take(key, kind, "", "") {
            None => BTreeMap::new(),
            Some(Value::Table(table)) => {
                let text =
                    |(name, value): (&String, &Value)| Some((name.clone(), self.as_text(&join(key, name), value)?));
                table.iter().filter_map(text).collect()
            }
            Some(other) => {
                self.wrong_type(key, "a table of texts, such as { name = \"value\" }", other);
                BTreeMap::new()
            }
        }
    }

    /// Notes a variable that sets `key`, which is a table or an array of tables, as a whole: it would silently drop what the file
    /// says in it, tokens for example.
    fn refuse_whole_override(&self, key: &str) {
        if let Some(found) = self.document.overrides.get(&self.key(key)) {
            let message = format!(
                "{} would replace everything that the file says here; a variable sets one key, such as DPS_PROXY__LINE__LENGTH_MAX, \
                 so remove it and write this into the file",
                found.variable
            );
            self.problem(key, message);
        }
    }

    /// The table `key`; an empty one if it is missing.
    pub(crate) fn section(&self, key: &'static str) -> Section<'d> {
        self.asked.borrow_mut().insert(key);
        self.refuse_whole_override(key);
        let table = match self.table.and_then(|table| table.get(key)) {
            None => None,
            Some(Value::Table(table)) => Some(table),
            Some(other) => {
                self.wrong_type(key, "a table", other);
                None
            }
        };
        Section::new(self.document, self.key(key), join(&self.pattern, key), table, self.fixed)
    }

    /// The tables in the table `key`, each named by the operator.
    pub(crate) fn named(&self, key: &'static str) -> Vec<(String, Section<'d>)> {
        let outer = self.section(key);
        let Some(table) = outer.table else { return Vec::new() };
        let mut found = Vec::new();
        for (name, value) in table {
            outer.refuse_whole_override(name);
            let Value::Table(inner) = value else {
                outer.wrong_type(name, "a table", value);
                continue;
            };
            let pattern = format!("{}.NAME", outer.pattern);
            found.push((name.clone(), Section::new(self.document, outer.key(name), pattern, Some(inner), false)));
        }
        found
    }

    /// The tables of the array `key`.
    pub(crate) fn array(&self, key: &'static str) -> Vec<Section<'d>> {
        self.asked.borrow_mut().insert(key);
        self.refuse_whole_override(key);
        let items = match self.table.and_then(|table| table.get(key)) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => {
                self.wrong_type(key, &format!("an array of tables, each headed [[{}]]", self.key(key)), other);
                return Vec::new();
            }
        };
        let mut found = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let place = format!("{key}[{index}]");
            match item {
                Value::Table(table) => {
                    let pattern = join(&self.pattern, key);
                    found.push(Section::new(self.document, self.key(&place), pattern, Some(table), false));
                }
                other => self.wrong_type(&place, "a table", other),
            }
        }
        found
    }

    /// The path that `key` names. `None` if it is missing.
    pub(crate) fn path_of(&self, key: &'static str, kind: &'static str, default: &str) -> Option<PathBuf> {
        self.text(key, kind, default).map(|name| self.document.resolve(&name))
    }

    /// The content of the file that `key` names. `None` if the key is missing, or the file cannot be used (which is noted).
    pub(crate) fn file(&self, key: &'static str, kind: &'static str, secret: Secrecy) -> Option<Vec<u8>> {
        let name = self.text(key, kind, "")?;
        self.read_file(key, &name, secret)
    }

    /// The contents of the files that `key` lists, each with its place in the document.
    pub(crate) fn files(&self, key: &'static str, kind: &'static str, secret: Secrecy) -> Vec<(String, Vec<u8>)> {
        let names = self.list(key, kind, |name| Ok(name.to_owned()));
        let place = |index: usize| if self.is_array(key) { format!("{key}[{index}]") } else { key.to_owned() };
        let read = |(index, name): (usize, String)| Some((place(index), self.read_file(&place(index), &name, secret)?));
        names.into_iter().enumerate().filter_map(read).collect()
    }

    /// Reads the file `name` on behalf of `key`. No message names it: it may be a secret that was put in the wrong place.
    pub(crate) fn read_file(&self, key: &str, name: &str, secret: Secrecy) -> Option<Vec<u8>> {
        let path = self.document.resolve(name);
        let read = read_bounded(&path);
        self.document.report.borrow_mut().files.note(&path, read.as_ref().ok().map(Vec::as_slice));
        let content = read.map_err(|error| self.problem(key, self.unreadable(&error))).ok()?;
        let content = content.strip_prefix(BYTE_ORDER_MARK).map(<[u8]>::to_vec).unwrap_or(content);
        if content.trim_ascii().is_empty() {
            self.problem(key, "the file is empty; write the value into it");
            return None;
        }
        if secret == Secrecy::Secret && is_world_readable(&path) {
            self.warning(key, "every user of this machine can read the file; take that right away (chmod o-r)");
        }
        Some(content)
    }

    fn unreadable(&self, error: &std::io::Error) -> String {
        let base = self.document.base.display();
        let what = match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file",
            std::io::ErrorKind::PermissionDenied => "this user may not read the file",
            std::io::ErrorKind::IsADirectory => "this is a directory, not a file",
            std::io::ErrorKind::FileTooLarge => "the file is larger than 4 MiB",
            _ => return format!("the file cannot be read ({error}); relative names start at {base}"),
        };
        format!("{what}; the key takes the name of a file, and relative names start at {base}")
    }

    /// Whether `key` is a list without anything in it.
    pub(crate) fn is_empty_list(&self, key: &str) -> bool {
        self.table.and_then(|table| table.get(key)).and_then(Value::as_array).is_some_and(Vec::is_empty)
    }

    /// Notes every key of the table that nobody asked for. Call it after the last key was taken.
    pub(crate) fn check_unknown(&self) {
        let asked = self.asked.borrow();
        for key in self.table.into_iter().flat_map(Table::keys).filter(|key| !asked.contains(key.as_str())) {
            let path = join(&self.pattern, key);
            match RENAMED.iter().find(|(old, _)| *old == path) {
                Some((_, new)) => self.problem(key, format!("is called `{new}` now; rename it")),
                None => {
                    let hint = did_you_mean(key, asked.iter().copied());
                    self.problem(key, format!("is not a key of the configuration{hint}"));
                }
            }
        }
    }
}

/// Whether a file must be kept from other users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Secrecy {
    /// It holds a secret.
    Secret,
    /// Anybody may read it.
    Public,
}

#[cfg(unix)]
fn is_world_readable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

#[cfg(not(unix))]
fn is_world_readable(_path: &Path) -> bool {
    false
}

fn type_in_words(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number with a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

/// `15m`, `1h 30m`, `500ms`. Not negative, and of units that always last the same.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let parsed = text.parse::<jiff::SignedDuration>().ok().or_else(|| days(text))?;
    Duration::try_from(parsed).ok()
}

/// Whole days, which jiff leaves out of absolute durations because calendars have days of 23 hours.
fn days(text: &str) -> Option<jiff::SignedDuration> {
    let count: i64 = text.trim().strip_suffix('d')?.trim().parse().ok()?;
    count.checked_mul(24).and_then(jiff::SignedDuration::try_from_hours)
}
