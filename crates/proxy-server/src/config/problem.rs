//! What is wrong with a configuration, in words that say where it is and how to mend it.
//!
//! Invariant: no text here contains the content of a file that a `…_file` key refers to, nor the value of such a key (people
//! do paste a secret where its file name belongs).

use std::fmt;
use std::path::PathBuf;

use super::files::FilesRead;

/// One thing to mend, or to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: `instances.eu-1.burst`, `backend.tokens[0].token_file`. Empty if it concerns the file as a whole.
    pub key: String,
    /// Line of the configuration file, from 1, where it is known.
    pub line: Option<usize>,
    /// The environment variable that set the value, if one did.
    pub variable: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            f.write_str(&self.key)?;
            match (&self.variable, self.line) {
                (Some(variable), _) => write!(f, " (from {variable})")?,
                (None, Some(line)) => write!(f, " (line {line})")?,
                (None, None) => {}
            }
            f.write_str(": ")?;
        } else if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with a configuration. Never empty when it is returned as an error.
#[derive(Debug, Clone, PartialEq)]
pub struct Problems {
    /// The configuration file, as it was named.
    pub file: PathBuf,
    /// What keeps it from being used.
    pub problems: Vec<Problem>,
    /// What does not.
    pub warnings: Vec<Problem>,
    /// Every file that was looked at, so that a watcher notices when one of them is mended.
    pub files: FilesRead,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(f, "{}: {count} {noun}", self.file.display())?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        for warning in &self.warnings {
            write!(f, "\n  warning: {warning}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
