//! A switch for each open question: what the service does here is not documented.

use serde::{Deserialize, Serialize};

/// What a second registration of a device gets while the first one runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConcurrentRegistration {
    /// An operation of its own.
    #[default]
    NewOperation,
    /// HTTP 409 with error code 409203.
    Conflict,
}

/// Substatus of a repeated registration that stays on its hub.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StaySubstatus {
    /// `initialAssignment`
    #[default]
    InitialAssignment,
    /// `reprovisionedToInitialAssignment`
    Reprovisioned,
}

/// Which spelling of a registration ID a group key is derived with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeriveFrom {
    /// The lower-case form.
    #[default]
    Lower,
    /// The spelling in the request's path.
    AsGiven,
}
