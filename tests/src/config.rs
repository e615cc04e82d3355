//! Configuration files for the service.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A configuration file in the making: dotted keys with values as TOML writes them.
#[derive(Debug, Clone, Default)]
pub struct ConfigText {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    arrays: Vec<(String, Vec<(String, String)>)>,
}

impl ConfigText {
    /// Sets a key, such as `device.repeat_burst` or `instances.eu-1.weight`, to a value as TOML writes it: `5`, `"text"`, `["a"]`.
    pub fn set(&mut self, key: &str, value: &str) -> &mut Self {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        self.sections.entry(section.to_owned()).or_default().insert(name.to_owned(), value.to_owned());
        self
    }

    /// Leaves a key out.
    pub fn unset(&mut self, key: &str) -> &mut Self {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        if let Some(section) = self.sections.get_mut(section) {
            section.remove(name);
        }
        self
    }

    /// Leaves a whole table out.
    pub fn remove_table(&mut self, table: &str) -> &mut Self {
        self.sections.remove(table);
        self
    }

    /// Adds an element to an array of tables such as `backend.tokens`.
    pub fn push(&mut self, array: &str, keys: &[(&str, &str)]) -> &mut Self {
        let keys = keys.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.arrays.push((array.to_owned(), keys));
        self
    }

    /// The file.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // The unnamed section sorts first, as TOML wants it.
        for (section, keys) in &self.sections {
            if !section.is_empty() {
                let _infallible = writeln!(text, "\n[{section}]");
            }
            for (name, value) in keys {
                let _infallible = writeln!(text, "{name} = {value}");
            }
        }
        for (array, keys) in &self.arrays {
            let _infallible = writeln!(text, "\n[[{array}]]");
            for (name, value) in keys {
                let _infallible = writeln!(text, "{name} = {value}");
            }
        }
        text
    }
}
