//! How a device proves itself to us, and how we prove it to DPS.
//!
//! Invariants:
//! - The enrollment is found by allow-list record, then audience, then host, then the default: never by trying keys.
//! - A device that is unknown, one that signs with a wrong key and one that is not on the list get the same answer, and for each of
//!   them the same is computed: for a SAS token one key derivation and one signature, for a bearer token one hash.
//! - That a credential has expired or ends too late, and what a malformed or overlong one is told, depend on its own text alone, so
//!   they tell nothing about whether the device is known.
//! - Why a credential was not believed is for operators ([`Reason`]); finding it out costs no more for one reason than for another.
//!
//! What does not hold: constant time as a whole. A record is read and decoded before its device is believed (which enrollment applies
//! may depend on it), an individual key is decoded, and the store takes longer for some names than for others: differences of
//! microseconds, which whoever can measure them may use to tell that a record is there. A valid credential cannot be made of that.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::device::Record;
use crate::ids::{DeviceId, EnrollmentName, HubName, InstanceName, RegistrationId};
use crate::sas::{self, CREDENTIAL_BYTES_MAX, SasToken};
use crate::secret::{SymmetricKey, TokenDigest};
use crate::settings::{
    Credential, DeriveFrom, DeviceAttestation, Enrollment, Membership, Settings, UpstreamAttestation,
};
use crate::upstream::Caller;
use rate_control::time::{Now, WallTime};

mod disbelief;

pub use disbelief::{NotBelieved, Reason, Told};

/// What a device presented, by whatever transport.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    /// The hardware ID as it spells it.
    pub hardware_id: &'a str,
    /// What it proves itself with.
    pub proof: Proof<'a>,
    /// What tells its enrollment where the proof does not.
    pub selector: Selector<'a>,
}

/// What a device proves itself with.
#[derive(Clone, Copy)]
pub enum Proof<'a> {
    /// Nothing: it may be on an allow-list.
    Nothing,
    /// A SAS token, or `Bearer` and a fleet token: the value of an `Authorization` header. A secret.
    Token(&'a str),
}

impl fmt::Debug for Proof<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Token(_) => "Token(***)",
        })
    }
}

/// Where a device called us: enrollments may have hosts of their own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selector<'a> {
    /// The host it called us by (`Host` or SNI), without port.
    pub host: Option<&'a str>,
    /// The ports it may have called us at; an audience may name one of them.
    pub ports: &'a [u16],
}

/// No configuration can allow a token to be valid for longer than this.
const LIFETIME_EVER_MAX: Duration = Duration::from_hours(24 * 366);

/// Decides whether the device is who it says it is, and by which enrollment.
///
/// # Errors
/// [`NotBelieved`], after the same work whatever the reason, but for what the credential's own text decides.
pub fn authenticate<'s>(
    settings: &'s Settings,
    registration_id: &RegistrationId,
    record: Option<&Record>,
    presented: Presented<'_>,
    now: Now,
) -> Result<(&'s EnrollmentName, &'s Enrollment), NotBelieved> {
    let authorization = match presented.proof {
        Proof::Nothing => "",
        Proof::Token(token) => token,
    };
    if authorization.len() > CREDENTIAL_BYTES_MAX {
        return Err(Reason::Malformed("the credential is longer than 2,048 bytes").into());
    }
    let scheme = authorization.split(' ').next().unwrap_or_default();
    if scheme.eq_ignore_ascii_case("Bearer") {
        let bearer = authorization[scheme.len()..].trim();
        return by_fleet_token(settings, record, presented.selector.host, bearer);
    }
    if authorization.is_empty() {
        return by_allow_list_alone(settings, record);
    }
    if !scheme.eq_ignore_ascii_case("SharedAccessSignature") {
        return Err(Reason::WrongScheme.into());
    }
    let token = SasToken::parse(authorization).map_err(|malformed| Reason::Malformed(malformed.0))?;
    check_expiry(settings, &token, now.wall)?;
    by_sas_token(settings, registration_id, record, presented, &token)
}

/// Judges the token's end by its text and the time alone.
fn check_expiry(settings: &Settings, token: &SasToken<'_>, now: WallTime) -> Result<(), Reason> {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let skew = seconds(settings.attestation.clock_skew);
    let left = token.expiry_unix_seconds.saturating_sub(now.unix_seconds());
    if left.saturating_add(skew) <= 0 {
        return Err(Reason::Expired);
    }
    if left > seconds(LIFETIME_EVER_MAX).saturating_add(skew) {
        return Err(Reason::ImplausibleExpiry);
    }
    if left > seconds(settings.attestation.sas_lifetime_max).saturating_add(skew) {
        return Err(Reason::LifetimeTooLong);
    }
    Ok(())
}

type Found<'s> = Option<(&'s EnrollmentName, &'s Enrollment)>;

/// The enrollment that the allow-list names for this device.
fn listed<'s>(settings: &'s Settings, record: Option<&Record>) -> Found<'s> {
    let record = record.filter(|record| record.listed().is_some())?;
    settings.enrollments.get_key_value(record.enrollment().as_str())
}

fn by_host<'s>(settings: &'s Settings, host: Option<&str>) -> Found<'s> {
    let host = host?.to_ascii_lowercase();
    settings.enrollments.iter().find(|(_, enrollment)| enrollment.hosts.contains(&host))
}

fn by_default(settings: &Settings) -> Found<'_> {
    settings.enrollments.get_key_value(settings.default_enrollment.as_ref()?)
}

/// The device is believed if there is no reason against it.
fn judged<'s>(found: Found<'s>, reason: Option<Reason>) -> Result<(&'s EnrollmentName, &'s Enrollment), NotBelieved> {
    let not_believed = |reason| NotBelieved {
        reason,
        enrollment: found.map(|(name, enrollment)| (name.clone(), enrollment.tenant.clone())),
    };
    match (found, reason) {
        (Some(found), None) => Ok(found),
        (None, None) => Err(not_believed(Reason::NoEnrollment)),
        (_, Some(reason)) => Err(not_believed(reason)),
    }
}

/// Whether an audience that a token names is among `audiences`, also with a port that the device reached us at.
fn is_among(audiences: &BTreeSet<String>, named: &str, ports: &[u16]) -> bool {
    let without_port = || {
        let (host, port) = named.rsplit_once(':')?;
        ports.contains(&port.parse().ok()?).then_some(host)
    };
    audiences.contains(named) || without_port().is_some_and(|host| audiences.contains(host))
}

fn by_sas_token<'s>(
    settings: &'s Settings,
    registration_id: &RegistrationId,
    record: Option<&Record>,
    presented: Presented<'_>,
    token: &SasToken<'_>,
) -> Result<(&'s EnrollmentName, &'s Enrollment), NotBelieved> {
    let accepts = |enrollment: &Enrollment| match &enrollment.device {
        DeviceAttestation::SasToken { audiences, .. } => is_among(audiences, &token.audience, presented.selector.ports),
        DeviceAttestation::FleetToken { .. } | DeviceAttestation::AllowListAlone => false,
    };
    let found = listed(settings, record)
        .or_else(|| settings.enrollments.iter().find(|(_, enrollment)| accepts(enrollment)))
        .or_else(|| by_host(settings, presented.selector.host))
        .or_else(|| by_default(settings));
    let enrollment = found.map(|(_, enrollment)| enrollment);
    let key = device_key(enrollment, registration_id, record, presented.hardware_id);
    let signed = token.is_signed_by(key.as_ref().unwrap_or(&nobodys_key()));
    let accepted = enrollment.is_some_and(accepts);
    let on_list = record.is_some_and(|record| record.listed().is_some());
    // Only now, with all the work done, does it matter which of them it was.
    let reason = match enrollment.map(|enrollment| (&enrollment.device, &enrollment.upstream)) {
        None => Some(Reason::NoEnrollment),
        Some((DeviceAttestation::FleetToken { .. } | DeviceAttestation::AllowListAlone, _)) => Some(Reason::WrongKind),
        Some(_) if !accepted => Some(Reason::UnknownAudience),
        Some(_) if token.registration_id != registration_id.as_str() => Some(Reason::OtherRegistrationId),
        Some((_, UpstreamAttestation::Individual)) if !on_list => Some(Reason::NotListed),
        Some(_) if key.is_none() => Some(Reason::NoDeviceKey),
        Some(_) if !signed => Some(Reason::WrongSignature),
        Some((DeviceAttestation::SasToken { membership: Membership::AllowList, .. }, _)) if !on_list => {
            Some(Reason::NotListed)
        }
        Some(_) => None,
    };
    judged(found, reason)
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
    SymmetricKey::from_base64(record.listed()?.key.as_ref()?).ok()
}

fn by_fleet_token<'s>(
    settings: &'s Settings,
    record: Option<&Record>,
    host: Option<&str>,
    bearer: &str,
) -> Result<(&'s EnrollmentName, &'s Enrollment), NotBelieved> {
    let on_list = listed(settings, record);
    let found = on_list.or_else(|| by_host(settings, host)).or_else(|| by_default(settings));
    let offered = std::hint::black_box(TokenDigest::of(bearer));
    let reason = match found.map(|(_, enrollment)| &enrollment.device) {
        None => Some(Reason::NoEnrollment),
        Some(DeviceAttestation::SasToken { .. } | DeviceAttestation::AllowListAlone) => Some(Reason::WrongKind),
        Some(DeviceAttestation::FleetToken { tokens }) => {
            // Every token is compared, so that the time does not tell which one was nearly right.
            let believed = tokens.iter().fold(false, |found, token| found | (*token == offered));
            match (believed, on_list) {
                (false, _) => Some(Reason::WrongFleetToken),
                (true, None) => Some(Reason::NotListed),
                (true, Some(_)) => None,
            }
        }
    };
    judged(found, reason)
}

fn by_allow_list_alone<'s>(
    settings: &'s Settings,
    record: Option<&Record>,
) -> Result<(&'s EnrollmentName, &'s Enrollment), NotBelieved> {
    let found = listed(settings, record);
    let alone = found.is_some_and(|(_, enrollment)| enrollment.device == DeviceAttestation::AllowListAlone);
    judged(found, (!alone).then_some(Reason::NoCredential))
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
    match (enrollment.derive_from, record.hardware_id()) {
        (DeriveFrom::AsGiven, Some(hardware_id)) => hardware_id,
        (DeriveFrom::AsGiven, None) | (DeriveFrom::RegistrationId, _) => record.registration_id().as_str(),
    }
}

/// What proves a device to an instance. It is signed for each call, right before that leaves: a token begun earlier may end on its way.
/// Holds a key; `Debug` does not show it.
pub struct Signer {
    key: SymmetricKey,
    resource: String,
    registration_id: String,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("registration_id", &self.registration_id).finish_non_exhaustive()
    }
}

impl Signer {
    /// What proves the device of `record` to `instance`.
    ///
    /// # Errors
    /// [`NoKey`] if nothing does.
    pub fn of(
        settings: &Settings,
        enrollment: &Enrollment,
        record: &Record,
        instance: &InstanceName,
    ) -> Result<Self, NoKey> {
        let key = upstream_key(enrollment, record, instance)?;
        let registration_id = upstream_spelling(enrollment, record).to_owned();
        let id_scope = settings.instances.get(instance).map(|instance| instance.id_scope.as_str()).unwrap_or_default();
        Ok(Self { key, resource: sas::resource(id_scope, &registration_id), registration_id })
    }

    /// The proof for one call, good until `expires` by DPS's own clock, to the second.
    #[must_use]
    pub fn sign(&self, expires: WallTime) -> Caller {
        let authorization = sas::device_token(&self.key, &self.resource, expires.unix_seconds(), Some("registration"));
        Caller { registration_id: self.registration_id.clone(), authorization, expires }
    }
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

impl fmt::Debug for HandedCredential {
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
