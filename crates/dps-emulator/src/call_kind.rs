//! The calls of the device API by name.

use serde::Serialize;

/// The calls of the device API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallKind {
    /// `PUT /{idScope}/registrations/{registrationId}/register`
    Register,
    /// `GET /{idScope}/registrations/{registrationId}/operations/{operationId}`
    Poll,
    /// `POST /{idScope}/registrations/{registrationId}`
    Lookup,
    /// Anything else.
    Other,
}

impl CallKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Poll => "poll",
            Self::Lookup => "lookup",
            Self::Other => "other",
        }
    }
}
