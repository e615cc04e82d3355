//! Takes values out of a TOML document key by key, and notes every problem on the way instead of stopping at the first.
//!
//! Invariants:
//! - A getter always returns a usable value; when it had to make one up, a problem was noted, so nobody ever sees it.
//! - Every key that is asked for is recorded, with its type, default and bounds; what is in the document and was never asked
//!   for is an unknown key. So there is no second list of keys that could disagree.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use toml::{Table, Value};

use super::ServedChains;
use super::files::FilesRead;
use super::problem::Problem;

mod section;
mod suggestion;

pub(crate) use section::{Secrecy, Section, parse_duration};
pub(crate) use suggestion::did_you_mean;

/// Prefix of the environment variables that override keys.
pub(crate) const ENV_PREFIX: &str = "DPS_PROXY__";

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
