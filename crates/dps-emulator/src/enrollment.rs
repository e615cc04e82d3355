//! Who may register, and on which terms: enrollments and their keys.
//!
//! Invariant: an individual enrollment decides before any group; the first match decides, also if it is disabled.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::config::{
    Config, DeriveFrom, GroupConfig, HubConfig, IndividualConfig, ReprovisionPolicy, check_hubs, check_payload,
};
use crate::config_error::ConfigError;
use crate::sas::{Token, derive_device_key};
use crate::wire::is_registration_id;

struct Keys {
    primary: Vec<u8>,
    secondary: Option<Vec<u8>>,
}

impl Keys {
    /// Keys are base64 of 16 to 64 bytes ("Symmetric key attestation").
    fn parse(of: &str, primary: &str, secondary: Option<&str>) -> Result<Self, ConfigError> {
        let decode = |text: &str| {
            let bytes =
                STANDARD.decode(text).map_err(|_| ConfigError::new(format!("the key of `{of}` is not base64")))?;
            if !(16..=64).contains(&bytes.len()) {
                return Err(ConfigError::new(format!("the key of `{of}` is {} bytes, not 16 to 64", bytes.len())));
            }
            Ok(bytes)
        };
        Ok(Self { primary: decode(primary)?, secondary: secondary.map(decode).transpose()? })
    }

    fn each(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.primary.as_slice()).chain(self.secondary.as_deref())
    }
}

/// What an enrollment says about a device that has proved itself.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) group: Option<Arc<str>>,
    pub(crate) device_id: Option<Arc<str>>,
    pub(crate) hub: Option<Arc<str>>,
    pub(crate) reprovision: ReprovisionPolicy,
    /// What a custom allocation policy returns.
    pub(crate) payload: Option<Arc<serde_json::Value>>,
}

struct Enrollment {
    keys: Keys,
    terms: Terms,
    disabled: bool,
}

pub(crate) struct Enrollments {
    individual: HashMap<Box<str>, Enrollment>,
    groups: Vec<Enrollment>,
    derive_from: DeriveFrom,
}

impl Enrollments {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let mut this = Self { individual: HashMap::new(), groups: Vec::new(), derive_from: config.derive_from };
        for group in &config.groups {
            if this.groups.iter().any(|known| known.terms.group.as_deref() == Some(group.name.as_str())) {
                return Err(ConfigError::new(format!("group `{}` is named twice", group.name)));
            }
            this.put_group(group)?;
        }
        for enrollment in &config.enrollments {
            if this.individual.contains_key(enrollment.registration_id.to_ascii_lowercase().as_str()) {
                return Err(ConfigError::new(format!("enrollment `{}` is named twice", enrollment.registration_id)));
            }
            this.put_individual(enrollment)?;
        }
        Ok(this)
    }

    /// Creates or replaces a group.
    pub(crate) fn put_group(&mut self, config: &GroupConfig) -> Result<(), ConfigError> {
        if !is_registration_id(&config.name) {
            return Err(ConfigError::new(format!("`{}` is not an enrollment group ID", config.name)));
        }
        check_static_hub(config.hub.as_deref())?;
        check_payload(&config.name, config.payload.as_ref())?;
        let name: Arc<str> = Arc::from(config.name.as_str());
        let enrollment = Enrollment {
            keys: Keys::parse(&config.name, &config.key_base64, config.secondary_key_base64.as_deref())?,
            terms: Terms {
                group: Some(Arc::clone(&name)),
                device_id: None,
                hub: config.hub.as_deref().map(Arc::from),
                reprovision: config.reprovision,
                payload: config.payload.clone().map(Arc::new),
            },
            disabled: config.disabled,
        };
        let known = self.groups.iter().position(|group| group.terms.group.as_ref() == Some(&name));
        match known {
            Some(index) => self.groups[index] = enrollment,
            // The service's limit is 100 symmetric-key groups, not adjustable.
            None if self.groups.len() == 100 => {
                return Err(ConfigError::new("an instance has at most 100 symmetric-key groups"));
            }
            None => self.groups.push(enrollment),
        }
        Ok(())
    }

    /// Creates or replaces an individual enrollment.
    pub(crate) fn put_individual(&mut self, config: &IndividualConfig) -> Result<(), ConfigError> {
        if !is_registration_id(&config.registration_id) {
            return Err(ConfigError::new(format!("`{}` is not a registration ID", config.registration_id)));
        }
        check_static_hub(config.hub.as_deref())?;
        check_payload(&config.registration_id, config.payload.as_ref())?;
        let id = config.registration_id.to_ascii_lowercase();
        let enrollment = Enrollment {
            keys: Keys::parse(&id, &config.key_base64, config.secondary_key_base64.as_deref())?,
            terms: Terms {
                group: None,
                device_id: config.device_id.as_deref().map(Arc::from),
                hub: config.hub.as_deref().map(Arc::from),
                reprovision: config.reprovision,
                payload: config.payload.clone().map(Arc::new),
            },
            disabled: config.disabled,
        };
        self.individual.insert(id.into(), enrollment);
        Ok(())
    }

    /// Finds the enrollment whose key signed the token. The error is for the journal; clients learn no reason.
    pub(crate) fn authenticate(&self, token: &Token<'_>, as_given: &str, folded: &str) -> Result<Terms, &'static str> {
        if let Some(enrollment) = self.individual.get(folded) {
            if !enrollment.keys.each().any(|key| token.is_signed_with(key)) {
                return Err("signature does not match the individual enrollment");
            }
            return if enrollment.disabled { Err("enrollment is disabled") } else { Ok(enrollment.terms.clone()) };
        }
        let derived_from = match self.derive_from {
            DeriveFrom::Lower => folded,
            DeriveFrom::AsGiven => as_given,
        };
        for group in &self.groups {
            if group.keys.each().any(|key| token.is_signed_with(&derive_device_key(key, derived_from))) {
                return if group.disabled { Err("enrollment group is disabled") } else { Ok(group.terms.clone()) };
            }
        }
        Err("no enrollment has a key that made this signature")
    }
}

fn check_static_hub(hub: Option<&str>) -> Result<(), ConfigError> {
    hub.map_or(Ok(()), |name| check_hubs(&[HubConfig::new(name)]))
}
