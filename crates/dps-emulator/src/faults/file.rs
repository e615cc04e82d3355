//! A file of rules.

use serde::{Deserialize, Serialize};

use super::rule::Fault;
use super::spec::FaultSpec;
use crate::config_error::ConfigError;

/// A file of rules: `[[fault]]` tables in TOML, or `{"fault":[…]}` in JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultFile {
    /// The rules.
    #[serde(default)]
    pub fault: Vec<FaultSpec>,
}

impl FaultFile {
    /// Reads TOML, or JSON if the text begins with a brace.
    ///
    /// # Errors
    /// Names what was not understood.
    pub fn parse(text: &str) -> Result<Vec<Fault>, ConfigError> {
        let file: Self = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| ConfigError::new(error.to_string()))?
        } else {
            toml::from_str(text).map_err(|error| ConfigError::new(error.to_string()))?
        };
        file.fault.into_iter().map(Fault::try_from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::IdMatch;

    #[test]
    fn files_are_read_and_what_is_unknown_is_refused() {
        let faults = FaultFile::parse(
            "[[fault]]\naction = \"status\"\nstatus = 503\nretry-after = 7\ncall = \"register\"\nnth = 3\n\
             [[fault]]\naction = \"fail\"\nerror-code = 400208\nregistration-id = \"Dev-1\"\n\
             [[fault]]\naction = \"web-page\"\nstatus = 403\n\
             [[fault]]\naction = \"silence\"\nreused-connection = true\n\
             [[fault]]\naction = \"rewrite\"\nremove = [\"status\"]\nset = { operationId = \"..\" }\n",
        )
        .unwrap();
        assert_eq!(faults.len(), 5);
        assert_eq!(faults[1].registration_id, Some(IdMatch::Exact("dev-1".to_owned())));
        assert_eq!(FaultFile::parse(r#"{"fault":[{"action":"reset"}]}"#).unwrap().len(), 1);
        for fault in &faults {
            assert_eq!(&Fault::try_from(FaultSpec::from(fault)).unwrap(), fault, "a rule survives being shown");
        }
        for bad in [
            "[[fault]]\naction = \"explode\"",
            "[[fault]]\naction = \"reset\"\nhow = 1",
            "[[fault]]\naction = \"reset\"\ndelay-ms = 1",
            "[[fault]]\naction = \"delay\"",
            "[[fault]]\naction = \"rewrite\"",
            "[[fault]]\naction = \"silence\"\nstatus = 200",
            "[[fault]]\naction = \"status\"\nstatus = 200",
            "[[fault]]\naction = \"status\"\nstatus = 503\nintermediary = true\nerror-code = 503001",
            "[[fault]]\naction = \"fail\"\nerror-code = 7",
            "[[fault]]\naction = \"disabled\"\ncall = \"poll\"",
            "[[fault]]\naction = \"reset\"\ncall = \"connect\"",
            "[[fault]]\naction = \"reset\"\nnth = 0",
            "[[fault]]\naction = \"reset\"\nnth = 1\nevery = 2",
            "[[fault]]\naction = \"reset\"\nprobability = 1.5",
            "[[faults]]\naction = \"reset\"",
        ] {
            assert!(FaultFile::parse(bad).is_err(), "{bad}");
        }
    }
}
