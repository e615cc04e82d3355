//! Linked hubs as they are configured, and the check of their names and weights.

use serde::{Deserialize, Serialize};

use crate::config_error::ConfigError;

/// A linked hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubConfig {
    /// Host name.
    pub name: String,
    /// `allocationWeight`, 1 to 1000; 1 if the service is told nothing.
    #[serde(default = "one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

impl HubConfig {
    /// A hub of weight 1.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), weight: 1 }
    }
}

pub(crate) fn check_hubs(hubs: &[HubConfig]) -> Result<(), ConfigError> {
    for (index, hub) in hubs.iter().enumerate() {
        let ok = !hub.name.is_empty()
            && hub.name.len() <= 253
            && hub.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
        if !ok {
            return Err(ConfigError::new(format!("`{}` is not a host name", hub.name)));
        }
        if !(1..=1000).contains(&hub.weight) {
            return Err(ConfigError::new(format!("weight {} of {} is not within 1 to 1000", hub.weight, hub.name)));
        }
        if hubs[..index].iter().any(|other| other.name.eq_ignore_ascii_case(&hub.name)) {
            return Err(ConfigError::new(format!("hub {} is named twice", hub.name)));
        }
    }
    if hubs.len() > 50 {
        return Err(ConfigError::new("an instance links at most 50 hubs"));
    }
    Ok(())
}
