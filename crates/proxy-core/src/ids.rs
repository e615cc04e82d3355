//! The names of things, parsed once and trusted afterwards.
//!
//! Invariant: a value of one of these types satisfies its grammar. Comparison is byte-wise, because every
//! case-insensitive name is folded when it is parsed.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The rule that [`RegistrationId`] enforces, in the words that a device's developer is shown.
pub const REGISTRATION_ID_RULE: &str = "a hardware ID has 1 to 128 characters: letters, digits and . _ : - ; \
     it starts with a letter or digit and ends with a letter, digit or - (after lower-casing: \
     ^[a-z0-9]([a-z0-9._:-]{0,126}[a-z0-9-])?$)";

/// The rule that instance, tenant and enrollment names obey.
pub const NAME_RULE: &str =
    "a name has 1 to 63 characters: lower-case letters, digits and - ; it starts with a letter or digit";

/// A text that is not a valid name of the kind it was parsed as. `Display` names the rule, never the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{rule}")]
pub struct InvalidName {
    rule: &'static str,
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $parse:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses and, where the name is case-insensitive, folds `text`.
            ///
            /// # Errors
            /// [`InvalidName`] with the rule that `text` breaks.
            pub fn parse(text: &str) -> Result<Self, InvalidName> {
                let parse: fn(&str) -> Result<Arc<str>, InvalidName> = $parse;
                parse(text).map(Self)
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                rate_control::text::read(deserializer, "a string", Self::parse)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.to_string()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

fn is_registration_id(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    bytes.len() <= 128
        && alphanumeric(first)
        && (alphanumeric(last) || (bytes.len() > 1 && last == b'-'))
        && bytes.iter().all(|&byte| alphanumeric(byte) || matches!(byte, b'.' | b'_' | b':' | b'-'))
}

fn bounded_text(text: &str, length_max: usize, rule: &'static str) -> Result<Arc<str>, InvalidName> {
    let sound = !text.is_empty() && text.len() <= length_max && text.bytes().all(|byte| byte.is_ascii_graphic());
    if sound { Ok(text.into()) } else { Err(InvalidName { rule }) }
}

fn short_name(text: &str) -> Result<Arc<str>, InvalidName> {
    let sound = (1..=63).contains(&text.len())
        && !text.starts_with('-')
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if sound { Ok(text.into()) } else { Err(InvalidName { rule: NAME_RULE }) }
}

text_type!(
    /// What DPS knows a device by: the hardware ID in lower case, because registration IDs are case-insensitive at DPS
    /// while key derivation is not. Grammar: [`REGISTRATION_ID_RULE`].
    RegistrationId,
    |text| {
        if text.len() > 128 {
            return Err(InvalidName { rule: REGISTRATION_ID_RULE });
        }
        let folded = text.to_ascii_lowercase();
        if is_registration_id(&folded) { Ok(folded.into()) } else { Err(InvalidName { rule: REGISTRATION_ID_RULE }) }
    }
);

text_type!(
    /// What a hub knows a device by. Case-sensitive, chosen by DPS; at most 128 printable ASCII characters.
    DeviceId,
    |text| bounded_text(text, 128, "a device ID has 1 to 128 printable ASCII characters")
);

text_type!(
    /// The ID scope of one DPS instance, for example `0ne000AB12C`. Opaque and case-preserving.
    IdScope,
    |text| {
        const RULE: &str = "an ID scope has 1 to 64 letters and digits";
        if text.len() <= 64 && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            Ok(text.into())
        } else {
            Err(InvalidName { rule: RULE })
        }
    }
);

text_type!(
    /// DPS's name for one running registration. Opaque; it is not a GUID and must be escaped in a path. What a path would take for a step
    /// (`.` and `..`) cannot be escaped, and is none.
    OperationId,
    |text| {
        const RULE: &str = "an operation ID has 1 to 256 printable ASCII characters and is neither . nor ..";
        if matches!(text, "." | "..") { Err(InvalidName { rule: RULE }) } else { bounded_text(text, 256, RULE) }
    }
);

text_type!(
    /// Host name of an IoT hub, folded to lower case, without scheme, port or the dot that may end a host name.
    HubName,
    |text| {
        const RULE: &str = "a hub is a host name: letters, digits, - and . , at most 253 characters, no scheme or port";
        let text = text.strip_suffix('.').unwrap_or(text);
        let sound = (1..=253).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.')
            && text.split('.').all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'));
        if sound { Ok(text.to_ascii_lowercase().into()) } else { Err(InvalidName { rule: RULE }) }
    }
);

text_type!(
    /// Our stable name of one DPS instance. Grammar: [`NAME_RULE`].
    InstanceName,
    short_name
);

text_type!(
    /// Owner of devices. Grammar: [`NAME_RULE`].
    TenantName,
    short_name
);

text_type!(
    /// Our name of one logical enrollment. Grammar: [`NAME_RULE`].
    EnrollmentName,
    short_name
);

text_type!(
    /// What is leased to one process at a time, for example `lines` or `line/eu-1`.
    LeaseName,
    |text| {
        const RULE: &str = "a lease's name has 1 to 128 characters: lower-case letters, digits, - and / ; it starts with a letter or digit";
        let sound = (1..=128).contains(&text.len())
            && !text.starts_with(['-', '/'])
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'/'));
        if sound { Ok(text.into()) } else { Err(InvalidName { rule: RULE }) }
    }
);

text_type!(
    /// What people call one of several gateways on one store, for example the name of its host. Nothing is decided by it.
    ReplicaName,
    |text| bounded_text(text, 128, "a replica's name has 1 to 128 printable ASCII characters")
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_id_is_the_hardware_id_in_lower_case() {
        let id = RegistrationId::parse("SN-007-888-ABC").unwrap();
        assert_eq!(id.as_str(), "sn-007-888-abc");
    }

    #[test]
    fn the_registration_id_grammar_is_the_published_one() {
        let longest = "a".repeat(128);
        for good in ["a", "0", "a-", "plant_7.line:3-a", "a.b", longest.as_str()] {
            assert!(RegistrationId::parse(good).is_ok(), "{good} is valid");
        }
        let too_long = "a".repeat(129);
        for bad in ["", "-", "-a", ".a", "a.", "a_", "a:", "a b", "ä", "a/b", "a\n", too_long.as_str()] {
            assert!(RegistrationId::parse(bad).is_err(), "{bad:?} is invalid");
        }
    }

    #[test]
    fn an_operation_id_is_never_a_step_in_a_path() {
        for (text, sound) in [("5.0123", true), ("a/b", true), ("...", true), (".", false), ("..", false), ("", false)]
        {
            assert_eq!(OperationId::parse(text).is_ok(), sound, "{text}");
        }
    }

    #[test]
    fn a_lease_may_be_of_one_line() {
        let longest = "a".repeat(128);
        for good in ["lines", "line/eu-1", "0", longest.as_str()] {
            assert!(LeaseName::parse(good).is_ok(), "{good} is valid");
        }
        let too_long = "a".repeat(129);
        for bad in ["", "/a", "-a", "Lines", "a b", "a.b", "a\n", "ä", too_long.as_str()] {
            assert!(LeaseName::parse(bad).is_err(), "{bad:?} is invalid");
        }
    }

    #[test]
    fn hubs_are_host_names() {
        assert_eq!(HubName::parse("Hub-A.azure-devices.net").unwrap().as_str(), "hub-a.azure-devices.net");
        assert_eq!(HubName::parse("hub.example.").unwrap().as_str(), "hub.example");
        for bad in ["", ".", "https://hub", "hub:443", "hub..net", "hub..", "-hub.net", "hub/x"] {
            assert!(HubName::parse(bad).is_err(), "{bad:?} is invalid");
        }
    }

    #[test]
    fn a_text_is_read_from_bytes_with_escapes_and_from_values_and_a_fault_names_the_rule() {
        let name = InstanceName::parse("eu-1").unwrap();
        for text in [r#""eu-1""#, r#""eu\u002d1""#] {
            assert_eq!(serde_json::from_str::<InstanceName>(text).unwrap(), name);
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::from_value::<InstanceName>(value).unwrap(), name);
        }
        assert_eq!(serde_json::to_string(&name).unwrap(), r#""eu-1""#);
        let told = |text| serde_json::from_str::<InstanceName>(text).unwrap_err().to_string();
        assert!(told(r#""-""#).starts_with("a name has 1 to 63 characters"), "{}", told(r#""-""#));
        assert!(told("7").contains("expected a string"), "{}", told("7"));
        let told = serde_json::from_str::<rate_control::time::WallTime>(r#""noon""#).unwrap_err().to_string();
        assert!(told.starts_with("expected an RFC 3339 time"), "{told}");
    }
}
