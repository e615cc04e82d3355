//! Takes values out of a TOML document key by key, and notes every problem on the way instead of stopping at the first.
//!
//! Invariants:
//! - A getter always returns a usable value; when it had to make one up, a problem was noted, so nobody ever sees it.
//! - Every key that is asked for is recorded, with its type, default and bounds; what is in the document and was never asked
//!   for is an unknown key. So there is no second list of keys that could disagree.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proxy_core::ids::InvalidName;
use rustls_pki_types::CertificateDer;
use toml::{Table, Value};

use super::ServedChains;
use super::files::{FilesRead, read_bounded};
use super::problem::Problem;
use crate::rows::BYTE_ORDER_MARK;

/// Prefix of the environment variables that override keys.
pub(crate) const ENV_PREFIX: &str = "DPS_PROXY__";

/// Keys of earlier versions, by their path with `NAME` for what the operator names, and what they are called now.
const RENAMED: [(&str, &str); 2] = [
    ("instances.NAME.learn_limit", "adaptive_limit"),
    ("instances.NAME.learned_min_percent", "adaptive_limit_min_percent"),
];

/// What is known of one key of the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyInfo {
    /// Type and unit in words.
    pub(crate) kind: &'static str,
    /// The default as it is written in TOML; empty if there is none.
    pub(crate) default: String,
    /// Bounds or choices in words; empty if there are none.
    pub(crate) bounds: String,
}

/// The value of an environment variable that overrides a key.
#[derive(Debug)]
struct Override {
    variable: String,
    raw: String,
}

/// The document, after the environment had its say, and what was found out about it.
#[derive(Debug)]
pub(crate) struct Document {
    table: Table,
    lines: BTreeMap<String, usize>,
    overrides: BTreeMap<String, Override>,
    base: PathBuf,
    served: ServedChains,
    report: RefCell<Report>,
}

/// What was found out.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
    pub(crate) files: FilesRead,
    /// Every key that was asked for, by its path with `NAME` for what the operator names.
    pub(crate) known: BTreeMap<String, KeyInfo>,
    /// The value in force of every key outside the tables that are named by the operator.
    pub(crate) effective: BTreeMap<String, String>,
}

impl Document {
    /// Parses `text`, whose relative file names start at `base`. `files` were read already.
    pub(crate) fn parse(text: &str, base: &Path, files: FilesRead) -> Self {
        let mut document = Self {
            table: Table::new(),
            lines: BTreeMap::new(),
            overrides: BTreeMap::new(),
            base: if base.as_os_str().is_empty() { PathBuf::from(".") } else { base.to_owned() },
            served: ServedChains::default(),
            report: RefCell::new(Report { files, ..Report::default() }),
        };
        let (tree, errors) = toml::de::DeTable::parse_recoverable(text);
        // Only the bare message: the library's full text quotes the line, which may hold a misplaced secret.
        for error in errors {
            document.syntax_problem(text, &error);
        }
        if document.report.get_mut().problems.is_empty() {
            let starts: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
            let line_of = |at: usize| starts.partition_point(|start| *start <= at);
            note_lines(&mut document.lines, "", tree.get_ref(), &line_of);
            match text.parse::<Table>() {
                Ok(table) => document.table = table,
                Err(error) => document.syntax_problem(text, &error),
            }
        }
        document
    }

    /// The service that it is for runs already, with these certificates.
    pub(crate) fn for_service(self, served: ServedChains) -> Self {
        Self { served, ..self }
    }

    /// Whether the listener of this section serves exactly this chain.
    pub(crate) fn is_served(&self, section: &str, chain: &[CertificateDer<'_>]) -> bool {
        self.served.get(section).is_some_and(|served| served == chain)
    }

    fn syntax_problem(&mut self, text: &str, error: &toml::de::Error) {
        let line = error.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
        let message = format!("not valid TOML: {}", error.message());
        self.report.get_mut().problems.push(Problem { key: String::new(), line, variable: None, message });
    }

    /// Whether the text could be parsed at all.
    pub(crate) fn is_sound(&self) -> bool {
        self.report.borrow().problems.is_empty()
    }

    /// Lays `DPS_PROXY__SECTION__KEY=value` over the document.
    pub(crate) fn overlay(&mut self, env: impl IntoIterator<Item = (String, String)>) {
        let variables: BTreeMap<String, String> =
            env.into_iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
        for (variable, raw) in variables {
            if let Err(message) = self.overlay_one(&variable, &raw) {
                let problem = Problem { key: variable, line: None, variable: None, message };
                self.report.get_mut().problems.push(problem);
            }
        }
    }

    fn overlay_one(&mut self, variable: &str, raw: &str) -> Result<(), String> {
        let mut segments: Vec<&str> = variable.trim_start_matches(ENV_PREFIX).split("__").collect();
        let last = segments.pop().unwrap_or_default();
        if last.is_empty() || segments.iter().any(|segment| segment.is_empty()) {
            return Err("a part of the name is empty; write DPS_PROXY__SECTION__KEY".to_owned());
        }
        let mut table = &mut self.table;
        let mut path = String::new();
        for segment in segments {
            let name = existing_name(table, segment);
            path = join(&path, &name);
            let entry = table.entry(name).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = entry else {
                return Err(format!(
                    "`{path}` is not a table, so no variable can set a key in it; set `{path}` as a whole"
                ));
            };
            table = inner;
        }
        let name = existing_name(table, last);
        path = join(&path, &name);
        if let Some(earlier) = self.overrides.get(&path) {
            return Err(format!("sets `{path}`, as {} does; remove one of them", earlier.variable));
        }
        table.insert(name, env_value(raw));
        self.overrides.insert(path, Override { variable: variable.to_owned(), raw: raw.to_owned() });
        Ok(())
    }

    /// The top of the document.
    pub(crate) fn root(&self) -> Section<'_> {
        Section::new(self, String::new(), String::new(), Some(&self.table), true)
    }

    /// Notes something that keeps the configuration from being used.
    pub(crate) fn problem(&self, key: &str, message: impl Into<String>) {
        let problem = self.locate(key, message.into());
        self.report.borrow_mut().problems.push(problem);
    }

    /// Notes something that the operator should know.
    pub(crate) fn warning(&self, key: &str, message: impl Into<String>) {
        let problem = self.locate(key, message.into());
        self.report.borrow_mut().warnings.push(problem);
    }

    fn locate(&self, key: &str, message: String) -> Problem {
        let mut at = key;
        // The nearest line there is: that of the table, if the key itself is missing.
        let line = loop {
            match self.lines.get(at) {
                Some(line) => break Some(*line),
                None => at = at.rfind(['.', '[']).map(|end| &at[..end]).unwrap_or_default(),
            }
            if at.is_empty() {
                break None;
            }
        };
        let variable = self.overrides.get(key).map(|found| found.variable.clone());
        Problem { key: key.to_owned(), line, variable, message }
    }

    /// How many problems there are so far.
    pub(crate) fn problem_count(&self) -> usize {
        self.report.borrow().problems.len()
    }

    /// A file name of the document as a path.
    pub(crate) fn resolve(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// Ends the reading.
    pub(crate) fn into_report(self) -> Report {
        self.report.into_inner()
    }
}

/// Variable names cannot hold `-` in most shells, so `EU_1` finds `eu-1` if there is one.
fn existing_name(table: &Table, segment: &str) -> String {
    let lower = segment.to_ascii_lowercase();
    if table.contains_key(&lower) {
        return lower;
    }
    table.keys().find(|key| key.replace('-', "_").eq_ignore_ascii_case(&lower)).cloned().unwrap_or(lower)
}

fn env_value(raw: &str) -> Value {
    let parsed = format!("value = {raw}").parse::<Table>().ok();
    // Exactly one key: a line break in the variable must not smuggle in others.
    let single = parsed.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    single.unwrap_or_else(|| Value::String(raw.to_owned()))
}

fn note_lines(
    lines: &mut BTreeMap<String, usize>,
    path: &str,
    table: &toml::de::DeTable<'_>,
    line_of: &dyn Fn(usize) -> usize,
) {
    for (key, value) in table {
        let path = join(path, key.get_ref());
        lines.insert(path.clone(), line_of(key.span().start));
        note_value_lines(lines, &path, value, line_of);
    }
}

fn note_value_lines(
    lines: &mut BTreeMap<String, usize>,
    path: &str,
    value: &toml::Spanned<toml::de::DeValue<'_>>,
    line_of: &dyn Fn(usize) -> usize,
) {
    match value.get_ref() {
        toml::de::DeValue::Table(table) => note_lines(lines, path, table, line_of),
        toml::de::DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}[{index}]");
                lines.insert(path.clone(), line_of(item.span().start));
                note_value_lines(lines, &path, item, line_of);
            }
        }
        _ => {}
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

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
    fn new(document: &'d Document, path: String, pattern: String, table: Option<&'d Table>, fixed: bool) -> Self {
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

/// `; did you mean …?`, or nothing.
pub(crate) fn did_you_mean<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = known.into_iter().map(|word| (distance(text, word), word)).min();
    match near {
        Some((away, word)) if away <= (text.len().max(word.len()) / 3).max(1) || word.starts_with(text) => {
            format!("; did you mean `{word}`?")
        }
        _ => String::new(),
    }
}

/// Levenshtein's distance, in bytes.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, from) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, to) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}
