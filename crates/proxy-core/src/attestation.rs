//! How a device proves itself to us, and how we prove it to DPS.
//!
//! Invariants:
//! - The enrollment is found by allow-list record, then audience, then host, then the default: never by trying keys.
//! - A device that is unknown, one that signs with a wrong key and one that is not on the list get the same answer, and for each of
//!   them the same is computed: for a SAS token one key derivation and one signature, for a bearer token one hash.
//! - `credential-expired`, and what a malformed or overlong credential is told, depend on its own text alone, so they tell nothing
//!   about whether the device is known.
//!
//! What does not hold: constant time as a whole. A record is read and decoded before its device is believed (which enrollment applies
//! may depend on it), an individual key is decoded, and the store takes longer for some names than for others: differences of
//! microseconds, which whoever can measure them may use to tell that a record is there. A valid credential cannot be made of that.

use std::time::Duration;

use crate::ids::{DeviceId, EnrollmentName, HubName, InstanceName, RegistrationId};
use crate::record::Record;
use crate::sas::{self, CREDENTIAL_BYTES_MAX, SasToken};
use crate::secret::{SymmetricKey, TokenDigest};
use crate::settings::{
    Credential, DeriveFrom, DeviceAttestation, Enrollment, Membership, Settings, UpstreamAttestation,
};
use crate::time::{Now, WallTime};
use crate::upstream::Caller;

/// How long a token we sign for DPS is good for. A registration is over long before; polls sign anew.
const UPSTREAM_TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// What a device presented.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    /// The `Authorization` header.
    pub authorization: Option<&'a str>,
    /// The host it called us by (`Host` or SNI), without port.
    pub host: Option<&'a str>,
    /// The hardware ID as it spells it.
    pub hardware_id: &'a str,
}

/// The device is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotBelieved {
    /// No, wrong or unacceptable credential, or an unknown device.
    #[error("the device is unknown or its credential is not valid")]
    Unauthorized,
    /// The credential says itself that it is over.
    #[error("the credential has expired")]
    Expired,
}

/// Decides whether the device is who it says it is, and by which enrollment.
///
/// # Errors
/// [`NotBelieved`], after the same work whatever the reason.
pub fn authenticate<'s>(
    settings: &'s Settings,
    registration_id: &RegistrationId,
    record: Option<&Record>,
    presented: Presented<'_>,
    now: Now,
) -> Result<(&'s EnrollmentName, &'s Enrollment), NotBelieved> {
    let authorization = presented.authorization.unwrap_or("");
    if authorization.len() > CREDENTIAL_BYTES_MAX {
        return Err(NotBelieved::Unauthorized);
    }
    if let Some(bearer) = strip_scheme(authorization, "Bearer") {
        return by_fleet_token(settings, record, presented.host, bearer);
    }
    if authorization.is_empty() {
        return by_allow_list_alone(settings, record);
    }
    let token = SasToken::parse(authorization).map_err(|_| NotBelieved::Unauthorized)?;
    by_sas_token(settings, registration_id, record, presented, &token, now.wall)
}

fn strip_scheme<'a>(authorization: &'a str, scheme: &str) -> Option<&'a str> {
    let (found, rest) = authorization.split_once(' ')?;
    found.eq_ignore_ascii_case(scheme).then(|| rest.trim())
}

/// The enrollment that the allow-list names for this device.
fn listed<'s>(settings: &'s Settings, record: Option<&Record>) -> Option<(&'s EnrollmentName, &'s Enrollment)> {
    let record = record.filter(|record| record.listed.is_some())?;
    settings.enrollments.get_key_value(record.enrollment.as_str())
}

fn by_host<'s>(settings: &'s Settings, host: Option<&str>) -> Option<(&'s EnrollmentName, &'s Enrollment)> {
    let host = host?.to_ascii_lowercase();
    settings.enrollments.iter().find(|(_, enrollment)| enrollment.hosts.contains(&host))
}

fn by_default(settings: &Settings) -> Option<(&EnrollmentName, &Enrollment)> {
    settings.enrollments.get_key_value(settings.default_enrollment.as_ref()?)
}

fn by_sas_token<'s>(
    settings: &'s Settings,
    registration_id: &RegistrationId,
    record: Option<&Record>,
    presented: Presented<'_>,
    token: &SasToken<'_>,
    now: WallTime,
) -> Result<(&'s EnrollmentName, &'s Enrollment), NotBelieved> {
    let skew = i64::try_from(settings.attestation.clock_skew.as_secs()).unwrap_or(i64::MAX);
    let lifetime_max = i64::try_from(settings.attestation.sas_lifetime_max.as_secs()).unwrap_or(i64::MAX);
    let left = token.expiry_unix_seconds.saturating_sub(now.unix_seconds());
    if left.saturating_add(skew) <= 0 {
        return Err(NotBelieved::Expired);
    }
    let by_audience = || {
        settings.enrollments.iter().find(|(_, enrollment)| match &enrollment.device {
            DeviceAttestation::SasToken { audiences, .. } => audiences.contains(&token.audience),
            DeviceAttestation::FleetToken { .. } | DeviceAttestation::AllowListAlone => false,
        })
    };
    let found = listed(settings, record)
        .or_else(by_audience)
        .or_else(|| by_host(settings, presented.host))
        .or_else(|| by_default(settings));
    let enrollment = found.map(|(_, enrollment)| enrollment);
    let key = device_key(enrollment, registration_id, record, presented.hardware_id);
    let signed = token.is_signed_by(key.as_ref().unwrap_or(&nobodys_key()));
    let acceptable = enrollment.is_some_and(|enrollment| match &enrollment.device {
        DeviceAttestation::SasToken { audiences, membership } => {
            let on_list = record.is_some_and(|record| record.listed.is_some());
            audiences.contains(&token.audience) && (*membership == Membership::Signature || on_list)
        }
        DeviceAttestation::FleetToken { .. } | DeviceAttestation::AllowListAlone => false,
    });
    let fits = token.registration_id == registration_id.as_str() && left <= lifetime_max.saturating_add(skew);
    match found {
        Some(found) if signed & acceptable & fits && key.is_some() => Ok(found),
        Some(_) | None => Err(NotBelieved::Unauthorized),
    }
}

/// Stands in for the key of a device that has none, to cost the same time. What it signs is never accepted.
fn nobodys_key() -> SymmetricKey {
    SymmetricKey::from_digest([0x5a; 32])
}

/// The key the device signs with. One is derived in any case, so that it takes as long for every device.
fn device_key(
    enrollment: Option<&Enrollment>,
    registration_id: &RegistrationId,
    record: Option<&Record>,
    hardware_id: &str,
) -> Option<SymmetricKey> {
    let spelling = match enrollment.map(|enrollment| enrollment.derive_from) {
        Some(DeriveFrom::AsGiven) => hardware_id,
        Some(DeriveFrom::RegistrationId) | None => registration_id.as_str(),
    };
    let derive = |key: &SymmetricKey| std::hint::black_box(sas::derive_device_key(key, spelling));
    match enrollment.map(|enrollment| &enrollment.upstream) {
        Some(UpstreamAttestation::Group { key, .. }) => Some(derive(key)),
        Some(UpstreamAttestation::Individual) => {
            derive(&nobodys_key());
            individual_key(record?)
        }
        None => {
            derive(&nobodys_key());
            None
        }
    }
}

fn individual_key(record: &Record) -> Option<SymmetricKey> {
    SymmetricKey::from_base64(record.listed.as_ref()?.key.as_ref()?).ok()
}

fn by_fleet_token<'s>(
    settings: &'s Settings,
    record: Option<&Record>,
    host: Option<&str>,
    bearer: &str,
) -> Result<(&'s EnrollmentName, &'s Enrollment), NotBelieved> {
    let found = listed(settings, record);
    let candidate = found.or_else(|| by_host(settings, host)).or_else(|| by_default(settings));
    let offered = std::hint::black_box(TokenDigest::of(bearer));
    let believed = candidate.is_some_and(|(_, enrollment)| match &enrollment.device {
        // Every token is compared, so that the time does not tell which one was nearly right.
        DeviceAttestation::FleetToken { tokens } => {
            tokens.iter().fold(false, |found, token| found | (*token == offered))
        }
        DeviceAttestation::SasToken { .. } | DeviceAttestation::AllowListAlone => false,
    });
    found.filter(|_| believed).ok_or(NotBelieved::Unauthorized)
}

fn by_allow_list_alone<'s>(
    settings: &'s Settings,
    record: Option<&Record>,
) -> Result<(&'s EnrollmentName, &'s Enrollment), NotBelieved> {
    listed(settings, record)
        .filter(|(_, enrollment)| enrollment.device == DeviceAttestation::AllowListAlone)
        .ok_or(NotBelieved::Unauthorized)
}

/// The enrollment cannot prove the device at this instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device has no key: its enrollment is individual and its allow-list entry carries none")]
pub struct NoKey;

/// The key that DPS (and the hub identity it creates) knows the device by at `instance`.
///
/// # Errors
/// [`NoKey`] if the enrollment is individual and the record has no key.
pub fn upstream_key(enrollment: &Enrollment, record: &Record, instance: &InstanceName) -> Result<SymmetricKey, NoKey> {
    match &enrollment.upstream {
        UpstreamAttestation::Group { key, key_overrides } => Ok(sas::derive_device_key(
            key_overrides.get(instance).unwrap_or(key),
            upstream_spelling(enrollment, record),
        )),
        UpstreamAttestation::Individual => individual_key(record).ok_or(NoKey),
    }
}

/// The spelling DPS is to see: keys derived as given only fit an ID spelled as given.
fn upstream_spelling<'a>(enrollment: &Enrollment, record: &'a Record) -> &'a str {
    match (enrollment.derive_from, &record.hardware_id) {
        (DeriveFrom::AsGiven, Some(hardware_id)) => hardware_id,
        (DeriveFrom::AsGiven, None) | (DeriveFrom::RegistrationId, _) => record.registration_id.as_str(),
    }
}

/// The proof for one call to DPS.
///
/// # Errors
/// [`NoKey`] if there is none.
pub fn caller(
    settings: &Settings,
    enrollment: &Enrollment,
    record: &Record,
    instance: &InstanceName,
    now: WallTime,
) -> Result<Caller, NoKey> {
    let key = upstream_key(enrollment, record, instance)?;
    let spelling = upstream_spelling(enrollment, record);
    let id_scope = settings.instances.get(instance).map(|instance| instance.id_scope.as_str()).unwrap_or_default();
    let resource = sas::resource(id_scope, spelling);
    let expiry = now.after(UPSTREAM_TOKEN_LIFETIME).unix_seconds();
    let authorization = sas::device_token(&key, &resource, expiry, Some("registration"));
    Ok(Caller { registration_id: spelling.to_owned(), authorization })
}

/// What a device is handed to connect to its hub with. A secret; `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub enum HandedCredential {
    /// A SAS token for its hub, and when it ends.
    HubSas {
        /// The token.
        token: String,
        /// Its end.
        expires_at: WallTime,
    },
    /// Its symmetric key, base64.
    DerivedKey {
        /// The key.
        key: String,
    },
}

impl std::fmt::Debug for HandedCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// The credential for an assignment, by the enrollment's rules; `None` if it hands out none or the key is gone.
#[must_use]
pub fn credential(
    enrollment: &Enrollment,
    record: &Record,
    instance: &InstanceName,
    (hub, device_id): (&HubName, &DeviceId),
    now: WallTime,
) -> Option<HandedCredential> {
    match &enrollment.credential {
        Credential::None => None,
        Credential::HubSas { lifetime } => {
            let expires_at = now.after(*lifetime);
            let key = upstream_key(enrollment, record, instance).ok()?;
            Some(HandedCredential::HubSas {
                token: sas::hub_token(&key, hub, device_id, expires_at.unix_seconds()),
                expires_at,
            })
        }
        Credential::DerivedKey => upstream_key(enrollment, record, instance)
            .ok()
            .map(|key| HandedCredential::DerivedKey { key: key.expose_base64() }),
    }
}
