//! Why a credential was not believed: the cause for operators, and the little of it that a device is told.
//!
//! Invariants:
//! - A device is told a cause of its own only where the text of its credential alone decides ([`Told`]).
//! - Nothing here holds any part of the credential.

use crate::ids::{EnrollmentName, TenantName};

/// The device is not believed. `Display` says no more than the device may know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the device is unknown or its credential is not valid")]
pub struct NotBelieved {
    /// Why.
    pub reason: Reason,
    /// The enrollment it was judged by, and whose that is, if one was found.
    pub enrollment: Option<(EnrollmentName, TenantName)>,
}

impl NotBelieved {
    /// What the device is told.
    #[must_use]
    pub fn told(&self) -> Told {
        match self.reason {
            Reason::Expired => Told::Expired,
            Reason::LifetimeTooLong | Reason::ImplausibleExpiry => Told::TooFarAhead,
            _ => Told::Unauthorized,
        }
    }
}

impl From<Reason> for NotBelieved {
    /// Not believed before any enrollment was looked for.
    fn from(reason: Reason) -> Self {
        Self { reason, enrollment: None }
    }
}

/// What a device that is not believed learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// No, wrong or unacceptable credential, or an unknown device: one and the same answer.
    Unauthorized,
    /// The credential says itself that it is over.
    Expired,
    /// The credential says itself that it ends later than any may.
    TooFarAhead,
}

/// Why a credential was not believed. Names are stable: they are label values and for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There was none.
    NoCredential,
    /// Neither a SAS token nor a bearer token.
    WrongScheme,
    /// A SAS token that cannot be read; which part of it.
    Malformed(&'static str),
    /// Its `se` is over.
    Expired,
    /// Its `se` is further ahead than `attestation.sas_lifetime_max` allows.
    LifetimeTooLong,
    /// Its `se` is further ahead than any configuration could allow: milliseconds, or a clock that is years off.
    ImplausibleExpiry,
    /// Neither allow-list, audience, host name nor default leads to an enrollment.
    NoEnrollment,
    /// The enrollment expects another kind of credential.
    WrongKind,
    /// Its audience is not one of the enrollment's.
    UnknownAudience,
    /// It is made out to another registration ID.
    OtherRegistrationId,
    /// Not signed by this device's key.
    WrongSignature,
    /// Not one of the enrollment's fleet tokens.
    WrongFleetToken,
    /// The device is not on the allow-list, and the enrollment wants that.
    NotListed,
    /// The device is on the allow-list without a key that can be used, and the enrollment is individual.
    NoDeviceKey,
}

impl Reason {
    /// One of each.
    pub const ALL: [Self; 14] = [
        Self::NoCredential,
        Self::WrongScheme,
        Self::Malformed(""),
        Self::Expired,
        Self::LifetimeTooLong,
        Self::ImplausibleExpiry,
        Self::NoEnrollment,
        Self::WrongKind,
        Self::UnknownAudience,
        Self::OtherRegistrationId,
        Self::WrongSignature,
        Self::WrongFleetToken,
        Self::NotListed,
        Self::NoDeviceKey,
    ];

    /// Its stable name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoCredential => "no-credential",
            Self::WrongScheme => "wrong-scheme",
            Self::Malformed(_) => "malformed-credential",
            Self::Expired => "expired",
            Self::LifetimeTooLong => "lifetime-too-long",
            Self::ImplausibleExpiry => "implausible-expiry",
            Self::NoEnrollment => "no-enrollment",
            Self::WrongKind => "wrong-kind-of-credential",
            Self::UnknownAudience => "unknown-audience",
            Self::OtherRegistrationId => "other-registration-id",
            Self::WrongSignature => "wrong-signature",
            Self::WrongFleetToken => "wrong-fleet-token",
            Self::NotListed => "not-on-allow-list",
            Self::NoDeviceKey => "no-device-key",
        }
    }

    /// The same in plain words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::NoCredential => "the request has no credential",
            Self::WrongScheme => "the credential is neither a SharedAccessSignature nor a Bearer token",
            Self::Malformed(part) => part,
            Self::Expired => "the token's se is in the past",
            Self::LifetimeTooLong => "the token's se is further ahead than attestation.sas_lifetime_max allows",
            Self::ImplausibleExpiry => "the token's se is more than a year ahead",
            Self::NoEnrollment => {
                "no enrollment was found by allow-list, audience or host name, and there is no default"
            }
            Self::WrongKind => "the enrollment expects another kind of credential",
            Self::UnknownAudience => "the token's sr names an audience that the enrollment does not accept",
            Self::OtherRegistrationId => "the token's sr names another registration ID than the request",
            Self::WrongSignature => "the token is not signed with this device's key",
            Self::WrongFleetToken => "the bearer token is none of the enrollment's fleet tokens",
            Self::NotListed => "the device is not on the allow-list, which its enrollment requires",
            Self::NoDeviceKey => "the device's allow-list entry has no key that can be used",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn next_step(self) -> &'static str {
        match self {
            Self::NoCredential => {
                "have the device send Authorization: SharedAccessSignature sr=…&sig=…&se=…, or a fleet token"
            }
            Self::WrongScheme => {
                "have the device send Authorization: SharedAccessSignature …, or Bearer with a fleet token"
            }
            Self::Malformed(_) => {
                "correct how the device builds its token: sr={audience}/registrations/{registrationId}, sig and se"
            }
            Self::Expired => {
                "check the device's clock, and that it makes a fresh token for each attempt (GET /v1/time tells the time)"
            }
            Self::LifetimeTooLong => {
                "have the device make shorter tokens or check its clock, or raise attestation.sas_lifetime_max"
            }
            Self::ImplausibleExpiry => {
                "check the device's clock (a GPS week rollover adds 19.6 years), and that se is in seconds, not milliseconds"
            }
            Self::NoEnrollment => "set default_enrollment, or add the device's audience or host name to an enrollment",
            Self::WrongKind => "compare attestation of the enrollment with what the device sends",
            Self::UnknownAudience => {
                "have the device sign for device.host_name, or add what it signs for to the enrollment's audiences"
            }
            Self::OtherRegistrationId => {
                "have the device sign for its own ID: the hardwareId of the request in lower case; check for cloned firmware"
            }
            Self::WrongSignature => {
                "check which group key the device's key was derived from, and derive_from: the derivation is case-sensitive"
            }
            Self::WrongFleetToken => {
                "compare the device's token with fleet_token_files; while it is rotated, list both"
            }
            Self::NotListed => "import the device (POST /v1/registrations/import), or set membership = \"signature\"",
            Self::NoDeviceKey => "import the device again with its individual key",
        }
    }
}
