//! Our logical groups of devices, and the combinations of their keys that are refused.
//!
//! Invariant: what passes neither hands a device's credential to whoever guesses its hardware ID, nor promises a device a hub
//! it cannot log in to, nor leaves it open which enrollment a device belongs to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proxy_core::ids::{EnrollmentName, InstanceName, TenantName};
use proxy_core::placement;
use proxy_core::secret::SymmetricKey;
use proxy_core::settings::{Credential, DeriveFrom, DeviceAttestation, Enrollment, Membership, UpstreamAttestation};

use super::instances::Instances;
use super::listeners::host_name;
use super::reader::{Document, Secrecy, Section, did_you_mean};
use super::secrets::{self, Placed};

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Enrollments {
    /// Those whose name can be used. Where a problem was noted a value is made up.
    pub(super) enrollments: BTreeMap<EnrollmentName, Enrollment>,
    /// Every tenant that one belongs to.
    pub(super) tenants: BTreeSet<TenantName>,
    pub(super) default: Option<EnrollmentName>,
    pub(super) fleet_tokens: Vec<Placed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attestation {
    SasToken,
    FleetToken,
    AllowListAlone,
    X509,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CredentialKind {
    None,
    HubSas,
    DerivedKey,
}

pub(super) fn read(root: &Section<'_>, host_names: &[String], instances: &Instances) -> Enrollments {
    let mut found = Enrollments::default();
    let mut names = BTreeSet::new();
    for (name, section) in root.named("enrollments") {
        let parsed = EnrollmentName::parse(&name);
        let enrollment = enrollment(&section, host_names, instances, &mut found.fleet_tokens);
        found.tenants.insert(enrollment.tenant.clone());
        match parsed {
            Ok(name) => drop(found.enrollments.insert(name, enrollment)),
            Err(rule) => root.document().problem(section.path(), rule.to_string()),
        }
        names.insert(name);
    }
    if names.is_empty() {
        root.problem("enrollments", "there is none; describe each group of devices under [enrollments.NAME]");
    }
    check_ambiguous(root.document(), &found.enrollments);
    found.default = default(root, &names);
    found
}

fn default(root: &Section<'_>, names: &BTreeSet<String>) -> Option<EnrollmentName> {
    let named = root.parsed("default_enrollment", "name of an enrollment", "", EnrollmentName::parse);
    if let Some(name) = named {
        if !names.contains(name.as_str()) {
            let hint = did_you_mean(name.as_str(), names.iter().map(String::as_str));
            root.problem("default_enrollment", format!("there is no enrollment of this name{hint}"));
        }
        return Some(name);
    }
    if names.len() > 1 && !root.has("default_enrollment") {
        let message =
            "is not set: a device that neither allow-list, audience nor host assigns to an enrollment is refused";
        root.warning("default_enrollment", message);
    }
    let single = if names.len() == 1 { names.first() } else { None };
    single.and_then(|name| EnrollmentName::parse(name).ok())
}

fn enrollment(
    section: &Section<'_>,
    host_names: &[String],
    instances: &Instances,
    fleet_tokens: &mut Vec<Placed>,
) -> Enrollment {
    let tenant = section.parsed("tenant", "name", "default", TenantName::parse);
    let (kind, device) = device(section, host_names, fleet_tokens);
    let hosts = section.list("hosts", "list of host names", host_name).into_iter().collect();
    let spellings = [("registration-id", DeriveFrom::RegistrationId), ("as-given", DeriveFrom::AsGiven)];
    let derive_from =
        section.choice("derive_from", "registration-id", &spellings).unwrap_or(DeriveFrom::RegistrationId);
    let upstream = upstream(section, instances);
    let before = section.document().problem_count();
    let listed = listed_instances(section, instances);
    let region = section.text("region", "text", "");
    let labels = section.texts("labels", "table of texts");
    let is_placed = tenant.is_some() && section.document().problem_count() == before;
    let (credential, credential_once) = credential(section, kind);
    if let (Some(DeviceAttestation::SasToken { membership, .. }), Some(upstream)) = (&device, &upstream) {
        check_own_key(section, *membership, upstream, &credential);
    }
    section.check_unknown();
    let enrollment = Enrollment {
        tenant: tenant.unwrap_or_else(|| TenantName::parse("default").expect("letters")),
        // Made up where a problem was noted: no audience, no key.
        device: device.unwrap_or(DeviceAttestation::AllowListAlone),
        hosts,
        derive_from,
        upstream: upstream.unwrap_or(UpstreamAttestation::Individual),
        instances: listed,
        region,
        labels,
        credential,
        credential_once,
    };
    if is_placed {
        check_instances(section, &enrollment, instances);
    }
    enrollment
}

/// How a device proves itself. `None` only if a problem was noted.
fn device(
    section: &Section<'_>,
    host_names: &[String],
    fleet_tokens: &mut Vec<Placed>,
) -> (Option<Attestation>, Option<DeviceAttestation>) {
    const KINDS: [(&str, Attestation); 4] = [
        ("sas-token", Attestation::SasToken),
        ("fleet-token", Attestation::FleetToken),
        ("allow-list-alone", Attestation::AllowListAlone),
        ("x509", Attestation::X509),
    ];
    let kind = section.choice("attestation", "sas-token", &KINDS);
    let audiences = section.list("audiences", "list of texts", audience);
    let memberships = [("signature", Membership::Signature), ("allow-list", Membership::AllowList)];
    let membership = section.choice("membership", "signature", &memberships);
    let tokens = tokens(section, fleet_tokens);
    let open = section.flag("accept_unauthenticated_devices", false);
    if kind != Some(Attestation::SasToken) && kind.is_some() {
        only_with(section, "audiences", "attestation = \"sas-token\"");
        if section.has("membership") && membership == Some(Membership::Signature) {
            let message = "a signature needs attestation = \"sas-token\"; the other kinds always go by the allow-list, leave it out";
            section.problem("membership", message);
        }
    }
    if kind != Some(Attestation::FleetToken) && kind.is_some() {
        only_with(section, "fleet_token_files", "attestation = \"fleet-token\"");
    }
    if open && kind != Some(Attestation::AllowListAlone) {
        section.warning("accept_unauthenticated_devices", "has no effect without attestation = \"allow-list-alone\"");
    }
    let device = match kind {
        None => None,
        Some(Attestation::SasToken) => sas_token(section, audiences, membership, host_names),
        Some(Attestation::FleetToken) => fleet_token(section, tokens),
        Some(Attestation::AllowListAlone) => allow_list_alone(section, open),
        Some(Attestation::X509) => {
            section.problem(
                "attestation",
                "TLS client certificates are not supported yet; use \"sas-token\" or \"fleet-token\"",
            );
            None
        }
    };
    (kind, device)
}

fn only_with(section: &Section<'_>, key: &str, condition: &str) {
    if section.has(key) {
        section.problem(key, format!("has a meaning only with {condition}; remove it"));
    }
}

fn sas_token(
    section: &Section<'_>,
    audiences: Vec<String>,
    membership: Option<Membership>,
    host_names: &[String],
) -> Option<DeviceAttestation> {
    if section.is_empty_list("audiences") {
        section.problem("audiences", "is empty, so no token is accepted; leave it out to accept device.host_name");
        return None;
    }
    let defaults = || host_names.iter().cloned().collect();
    let audiences = if section.has("audiences") { audiences.into_iter().collect() } else { defaults() };
    Some(DeviceAttestation::SasToken { audiences, membership: membership? })
}

/// The text before `/registrations/` in a token's `sr`, folded to lower case.
fn audience(text: &str) -> Result<String, String> {
    let sound = (1..=253).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"/%&?#".contains(&byte));
    let rule = "an audience is what stands before /registrations/ in a token's `sr`: a host name or an ID scope, without slashes";
    if sound { Ok(text.to_ascii_lowercase()) } else { Err(rule.to_owned()) }
}

fn tokens(section: &Section<'_>, fleet_tokens: &mut Vec<Placed>) -> Vec<proxy_core::secret::TokenDigest> {
    let mut tokens = Vec::new();
    for (key, content) in section.files("fleet_token_files", "list of file names", Secrecy::Secret) {
        if let Some(digest) = secrets::token(section, &key, &content) {
            fleet_tokens.push((section.key(&key), digest.clone()));
            tokens.push(digest);
        }
    }
    tokens
}

fn fleet_token(section: &Section<'_>, tokens: Vec<proxy_core::secret::TokenDigest>) -> Option<DeviceAttestation> {
    if !section.has("fleet_token_files") || section.is_empty_list("fleet_token_files") {
        section.problem(
            "fleet_token_files",
            "is missing; name the file that holds the token of the fleet (two during rotation)",
        );
    }
    (!tokens.is_empty()).then_some(DeviceAttestation::FleetToken { tokens })
}

fn allow_list_alone(section: &Section<'_>, open: bool) -> Option<DeviceAttestation> {
    if !open {
        let message = "must be true for attestation = \"allow-list-alone\": anyone who guesses a hardware ID is believed; \
                       prefer \"sas-token\" or \"fleet-token\"";
        section.problem("accept_unauthenticated_devices", message);
        return None;
    }
    let message =
        "is \"allow-list-alone\": anyone who guesses a hardware ID learns its hub, and can make the device register";
    section.warning("attestation", message);
    Some(DeviceAttestation::AllowListAlone)
}

/// How a device is proved to DPS. `None` only if a problem was noted.
fn upstream(section: &Section<'_>, instances: &Instances) -> Option<UpstreamAttestation> {
    let individual = section.choice("upstream", "group", &[("group", false), ("individual", true)]);
    let key = section.file("group_key_file", "file name (base64 key)", Secrecy::Secret);
    let key = key.and_then(|content| secrets::symmetric_key(section, "group_key_file", &content));
    let key_overrides = key_overrides(section, instances);
    if individual? {
        only_with(section, "group_key_file", "upstream = \"group\"");
        only_with(section, "group_key_overrides", "upstream = \"group\"");
        return Some(UpstreamAttestation::Individual);
    }
    if !section.has("group_key_file") {
        section.problem("group_key_file", "is missing; name the file with the primary key of the enrollment group");
    }
    Some(UpstreamAttestation::Group { key: key?, key_overrides })
}

fn key_overrides(section: &Section<'_>, instances: &Instances) -> BTreeMap<InstanceName, SymmetricKey> {
    let mut overrides = BTreeMap::new();
    for (name, file) in section.texts("group_key_overrides", "table: instance = file name (base64 key)") {
        let place = format!("group_key_overrides.{name}");
        let known = known_instance(&name, instances);
        let content = section.read_file(&place, &file, Secrecy::Secret);
        let key = content.and_then(|content| secrets::symmetric_key(section, &place, &content));
        match (known, key) {
            (Ok(name), Some(key)) => drop(overrides.insert(name, key)),
            (Err(message), _) => section.problem(&place, message),
            (Ok(_), None) => {}
        }
    }
    overrides
}

fn known_instance(name: &str, instances: &Instances) -> Result<InstanceName, String> {
    let parsed = InstanceName::parse(name).map_err(|rule| rule.to_string())?;
    if instances.names.contains(name) {
        return Ok(parsed);
    }
    let hint = did_you_mean(name, instances.names.iter().map(String::as_str));
    Err(format!("there is no instance of this name{hint}"))
}

fn listed_instances(section: &Section<'_>, instances: &Instances) -> BTreeSet<InstanceName> {
    let listed = section.list("instances", "list of instances", |name| known_instance(name, instances));
    if section.is_empty_list("instances") {
        section.warning("instances", "is empty, which means every instance that is shared or dedicated to the tenant");
    }
    listed.into_iter().collect()
}

/// What the device is handed, and whether only once.
fn credential(section: &Section<'_>, attestation: Option<Attestation>) -> (Credential, bool) {
    const KINDS: [(&str, CredentialKind); 3] = [
        ("none", CredentialKind::None),
        ("hub-sas", CredentialKind::HubSas),
        ("derived-key", CredentialKind::DerivedKey),
    ];
    let kind = section.choice("credential", "none", &KINDS).unwrap_or(CredentialKind::None);
    let lifetime: Duration = section.duration("credential_lifetime", "1h", "1m", "90d");
    let once = section.flag("credential_once", false);
    let fleet = section.flag("allow_fleet_token_credentials", false);
    if kind != CredentialKind::None {
        check_handing_out(section, attestation, once, fleet);
    }
    if kind != CredentialKind::HubSas && section.has("credential_lifetime") {
        section.warning("credential_lifetime", "has no effect without credential = \"hub-sas\"");
    }
    if kind == CredentialKind::None && once {
        section.warning("credential_once", "has no effect with credential = \"none\"");
    }
    if fleet && attestation.is_some_and(|kind| kind != Attestation::FleetToken) {
        section.warning("allow_fleet_token_credentials", "has no effect without attestation = \"fleet-token\"");
    }
    let credential = match kind {
        CredentialKind::None => Credential::None,
        CredentialKind::HubSas => Credential::HubSas { lifetime },
        CredentialKind::DerivedKey => Credential::DerivedKey,
    };
    (credential, once)
}

/// A device's credential must not go to whoever guesses its hardware ID.
fn check_handing_out(section: &Section<'_>, attestation: Option<Attestation>, once: bool, fleet: bool) {
    match attestation {
        Some(Attestation::AllowListAlone) => {
            let message = "must be \"none\" with attestation = \"allow-list-alone\": anyone who guesses a hardware ID would be handed \
                           that device's credential";
            section.problem("credential", message);
        }
        Some(Attestation::FleetToken) if !(once && fleet) => {
            let message = "with attestation = \"fleet-token\" any device of the fleet could fetch another's credential; use \
                           \"sas-token\", or accept the risk with allow_fleet_token_credentials = true and credential_once = true";
            section.problem("credential", message);
        }
        _ => {}
    }
}

/// A device that signs with its own key needs one that we can verify, and that its hub accepts.
fn check_own_key(
    section: &Section<'_>,
    membership: Membership,
    upstream: &UpstreamAttestation,
    credential: &Credential,
) {
    match upstream {
        UpstreamAttestation::Individual if membership == Membership::Signature => {
            let message = "must be \"allow-list\" with upstream = \"individual\": the key that verifies a device comes with its \
                           entry on the list";
            section.problem("membership", message);
        }
        UpstreamAttestation::Individual => {}
        UpstreamAttestation::Group { key, key_overrides } => {
            let differing = key_overrides.iter().filter(|(_, other)| *other != key);
            for (name, _) in differing.filter(|_| *credential == Credential::None) {
                let message = "differs from the group key, so a device's own key does not work at the hubs of this instance; set \
                               credential to \"hub-sas\" or \"derived-key\", or give all instances one group key";
                section.problem(&format!("group_key_overrides.{name}"), message);
            }
        }
    }
}

/// There must be a place for the devices.
fn check_instances(section: &Section<'_>, enrollment: &Enrollment, instances: &Instances) {
    let tenant = &enrollment.tenant;
    for name in &enrollment.instances {
        let owner = instances.instances.get(name).and_then(|instance| instance.tenant.as_ref());
        if let Some(owner) = owner.filter(|owner| *owner != tenant) {
            let message =
                format!("instances.{name} is dedicated to tenant `{owner}`, this enrollment belongs to `{tenant}`");
            section.problem("instances", message);
        }
    }
    // An instance of which it is not known whom it serves might be the one that fits.
    if !instances.are_placed || instances.names.is_empty() {
        return;
    }
    let all = instances.instances.iter();
    let fitting: BTreeMap<_, _> = all.filter(|(name, instance)| placement::fits(enrollment, name, instance)).collect();
    if fitting.is_empty() {
        let message =
            "no instance fits: look at its `instances`, `region`, `labels` and `tenant`, and at the instances' own";
        section.document().problem(section.path(), message);
    } else if fitting.values().all(|instance| instance.draining) {
        section
            .document()
            .warning(section.path(), "every instance that fits is draining, so new devices are not taken");
    }
    if let UpstreamAttestation::Group { key_overrides, .. } = &enrollment.upstream {
        for name in key_overrides.keys().filter(|name| !fitting.contains_key(name)) {
            section.warning(
                &format!("group_key_overrides.{name}"),
                "has no effect: the enrollment cannot use this instance",
            );
        }
    }
}

/// It must be clear which enrollment a device belongs to.
fn check_ambiguous(document: &Document, enrollments: &BTreeMap<EnrollmentName, Enrollment>) {
    let mut hosts: BTreeMap<&String, &EnrollmentName> = BTreeMap::new();
    let mut audiences: BTreeMap<&String, (&EnrollmentName, Membership)> = BTreeMap::new();
    for (name, enrollment) in enrollments {
        for host in &enrollment.hosts {
            if let Some(earlier) = hosts.insert(host, name) {
                let message =
                    format!("`{host}` selects enrollments.{earlier} too; a host can select one enrollment only");
                document.problem(&format!("enrollments.{name}.hosts"), message);
            }
        }
        let DeviceAttestation::SasToken { audiences: own, membership } = &enrollment.device else { continue };
        for audience in own {
            let Some((earlier, other)) = audiences.insert(audience, (name, *membership)) else { continue };
            // Devices on the allow-list are found by their entry, so sharing does no harm where all are on it.
            if (*membership, other) != (Membership::AllowList, Membership::AllowList) {
                let message = format!(
                    "`{audience}` is an audience of enrollments.{earlier} too, so a token does not tell which one is meant; list \
                     different audiences, or set membership = \"allow-list\" in both"
                );
                document.problem(&format!("enrollments.{name}.audiences"), message);
            }
        }
    }
}
