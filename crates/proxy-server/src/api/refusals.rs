//! Credentials that were not believed, as operators see them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use proxy_core::attestation;

use super::names::{EnrollmentName, Moment, TenantName};
use super::problem::{EVERY, QUERY, TOKEN, problems};
use crate::refusals;

/// Which refusals to tell: those that fit all of these.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RefusalsQuery {
    /// Only those of this device, in whatever case.
    pub hardware_id: Option<String>,
    /// Only that of this request.
    pub request_id: Option<String>,
    /// Only those for this reason.
    #[param(value_type = Option<RefusalReason>)]
    pub reason: Option<String>,
    /// Only those of this tenant.
    pub tenant: Option<String>,
    /// How many, at most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<usize>,
}

/// Why a credential was not believed.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalReason {
    /// There was none.
    NoCredential,
    /// Neither a SAS token nor a bearer token.
    WrongScheme,
    /// A SAS token that cannot be read.
    MalformedCredential,
    /// Its `se` is over.
    Expired,
    /// Its `se` is further ahead than `attestation.sas_lifetime_max` allows.
    LifetimeTooLong,
    /// Its `se` is more than a year ahead.
    ImplausibleExpiry,
    /// Neither allow-list, audience, host name nor default leads to an enrollment.
    NoEnrollment,
    /// The enrollment expects another kind of credential.
    WrongKindOfCredential,
    /// Its audience is none of the enrollment's.
    UnknownAudience,
    /// It is made out to another registration ID.
    OtherRegistrationId,
    /// Not signed by this device's key.
    WrongSignature,
    /// None of the enrollment's fleet tokens.
    WrongFleetToken,
    /// The device is not on the allow-list.
    NotOnAllowList,
    /// The device is on the allow-list without a key that can be used.
    NoDeviceKey,
}

impl From<attestation::Reason> for RefusalReason {
    fn from(reason: attestation::Reason) -> Self {
        use attestation::Reason;
        match reason {
            Reason::NoCredential => Self::NoCredential,
            Reason::WrongScheme => Self::WrongScheme,
            Reason::Malformed(_) => Self::MalformedCredential,
            Reason::Expired => Self::Expired,
            Reason::LifetimeTooLong => Self::LifetimeTooLong,
            Reason::ImplausibleExpiry => Self::ImplausibleExpiry,
            Reason::NoEnrollment => Self::NoEnrollment,
            Reason::WrongKind => Self::WrongKindOfCredential,
            Reason::UnknownAudience => Self::UnknownAudience,
            Reason::OtherRegistrationId => Self::OtherRegistrationId,
            Reason::WrongSignature => Self::WrongSignature,
            Reason::WrongFleetToken => Self::WrongFleetToken,
            Reason::NotListed => Self::NotOnAllowList,
            Reason::NoDeviceKey => Self::NoDeviceKey,
        }
    }
}

/// The latest refusals.
#[derive(Debug, Serialize, ToSchema)]
pub struct Refusals {
    /// Newest first.
    pub refusals: Vec<Refused>,
}

/// One credential that was not believed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// When.
    pub at: Moment,
    /// The request, as its answer named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub request_id: Option<String>,
    /// As the device spelled it.
    pub hardware_id: String,
    /// Why.
    pub reason: RefusalReason,
    /// The same in plain words.
    #[schema(value_type = String)]
    pub detail: &'static str,
    /// What to do about it.
    #[schema(value_type = String)]
    pub next_step: &'static str,
    /// What the device was judged by, if that was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub enrollment: Option<EnrollmentName>,
    /// Whose enrollment that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub tenant: Option<TenantName>,
    /// Where the request came from: the device, or what stands in front of the gateway. An IP address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    pub peer: Option<IpAddr>,
}

impl From<refusals::Refused> for Refused {
    fn from(refused: refusals::Refused) -> Self {
        let reason = refused.reason;
        Self {
            at: refused.at.into(),
            request_id: refused.request_id,
            hardware_id: refused.hardware_id,
            reason: reason.into(),
            detail: reason.words(),
            next_step: reason.next_step(),
            enrollment: refused.enrollment.map(EnrollmentName::from),
            tenant: refused.tenant.map(TenantName::from),
            peer: refused.peer,
        }
    }
}

problems! {
    /// What `GET /v1/refusals` refuses.
    RefusalsProblems = [EVERY, TOKEN, QUERY] + {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_written_as_the_core_names_them() {
        for reason in attestation::Reason::ALL {
            assert_eq!(serde_json::to_value(RefusalReason::from(reason)).unwrap(), reason.as_str());
        }
    }
}
