//! Values of settings that have a form of their own on the command line.

use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::config::{GroupConfig, HubConfig, IndividualConfig};

/// `yes` or `no`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum YesNo {
    /// Yes.
    Yes,
    /// No.
    No,
}

/// A count per duration, `1000/60s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct RateArg {
    /// How many.
    pub count: u32,
    /// In how long.
    pub window: Duration,
}

impl FromStr for RateArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not of the form 1000/60s (units: ms, s, m, h)");
        let (count, window) = text.split_once('/').ok_or_else(wrong)?;
        let digits = window.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = window[..digits].parse().map_err(|_| wrong())?;
        let unit_ms = match &window[digits..] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let window = Duration::from_millis(number.checked_mul(unit_ms).ok_or_else(wrong)?);
        Ok(Self { count: count.parse().map_err(|_| wrong())?, window })
    }
}

impl TryFrom<String> for RateArg {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A group as a flag or a table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct GroupArg(pub GroupConfig);

impl FromStr for GroupArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, key) = text.split_once('=').ok_or("not of the form NAME=BASE64KEY")?;
        Ok(Self(GroupConfig::new(name, key)))
    }
}

/// An individual enrollment as a flag or a table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct EnrollmentArg(pub IndividualConfig);

impl FromStr for EnrollmentArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (id, key) = text.split_once('=').ok_or("not of the form ID=BASE64KEY")?;
        Ok(Self(IndividualConfig::new(id, key)))
    }
}

/// A hub as a flag or a table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct HubArg(pub HubConfig);

impl FromStr for HubArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((name, weight)) = text.split_once('=') else { return Ok(Self(HubConfig::new(text))) };
        let weight = weight.parse().map_err(|_| format!("`{weight}` is not a weight"))?;
        Ok(Self(HubConfig { name: name.to_owned(), weight }))
    }
}

pub(super) fn parse_kebab<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
    use serde::de::IntoDeserializer as _;
    let deserializer: serde::de::value::StrDeserializer<'_, serde::de::value::Error> = text.into_deserializer();
    T::deserialize(deserializer).map_err(|error| error.to_string())
}
