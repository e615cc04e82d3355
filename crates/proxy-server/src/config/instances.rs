//! The inventory of DPS instances.
//!
//! Invariant: no DPS instance is in it twice. Two entries for one would be two ledgers for one quota.

use std::collections::{BTreeMap, BTreeSet};

use proxy_core::ids::{HubName, IdScope, InstanceName, TenantName};
use proxy_core::settings::{Instance, TenantSettings};

use super::reader::{Document, Section};
use super::secrets;

/// What was read.
#[derive(Debug)]
pub(super) struct Instances {
    /// Those whose name can be used. Where a problem was noted a value is made up.
    pub(super) instances: BTreeMap<InstanceName, Instance>,
    /// Every name that stands in the file.
    pub(super) names: BTreeSet<String>,
    /// Whether it is known of each whom it serves: its name, tenant, region and labels could be read.
    pub(super) are_placed: bool,
}

/// One entry, and which of its values are not made up.
struct Entry {
    instance: Instance,
    is_identified: bool,
    is_placed: bool,
}

pub(super) fn read(root: &Section<'_>) -> Instances {
    let (mut instances, mut identified) = (BTreeMap::new(), BTreeSet::new());
    let mut names = BTreeSet::new();
    let mut are_placed = true;
    for (name, section) in root.named("instances") {
        let parsed = InstanceName::parse(&name);
        let entry = entry(&section);
        are_placed &= entry.is_placed && parsed.is_ok();
        match parsed {
            Ok(name) => {
                if entry.is_identified {
                    identified.insert(name.clone());
                }
                instances.insert(name, entry.instance);
            }
            Err(rule) => root.document().problem(section.path(), rule.to_string()),
        }
        names.insert(name);
    }
    if names.is_empty() {
        root.problem("instances", "there is none; describe each DPS instance under [instances.NAME]");
    }
    check_twice(root.document(), &instances, &identified);
    Instances { instances, names, are_placed }
}

/// The tenants that the file says something of.
pub(super) fn tenants(root: &Section<'_>) -> BTreeMap<TenantName, TenantSettings> {
    let mut tenants = BTreeMap::new();
    for (name, section) in root.named("tenants") {
        let weight = section.whole("weight", 1, 1..=1000);
        section.check_unknown();
        match TenantName::parse(&name) {
            Ok(name) => drop(tenants.insert(name, TenantSettings { weight })),
            Err(rule) => root.document().problem(section.path(), rule.to_string()),
        }
    }
    tenants
}

fn entry(section: &Section<'_>) -> Entry {
    let id_scope = section.parsed("id_scope", "ID scope", "", IdScope::parse);
    if !section.has("id_scope") {
        section
            .problem("id_scope", "is missing; it is on the overview page of the DPS instance, such as \"0ne000AB12C\"");
    }
    let endpoint = section.text("endpoint", "URL", "https://global.azure-devices-provisioning.net");
    let endpoint = endpoint.and_then(|text| base_url(&text).map_err(|rule| section.problem("endpoint", rule)).ok());
    let extra_ca_pem = secrets::roots(section, "extra_ca_file");
    let quota_per_minute: u32 = section.whole("quota_per_minute", 1000, 1..=1_000_000);
    let burst = section.whole("burst", 10, 1..=1000);
    // An instance with a tiny quota needs no second key to be right.
    let burst = if section.has("burst") { burst } else { burst.min(quota_per_minute) };
    if burst > quota_per_minute {
        let message = format!(
            "{burst} is more than quota_per_minute ({quota_per_minute}); a burst is part of the quota, lower it"
        );
        section.problem("burst", message);
    }
    let adaptive_limit = section.flag("adaptive_limit", true);
    let adaptive_limit_min_percent: u32 = section.whole("adaptive_limit_min_percent", 10, 1..=100);
    let capacity = section.whole("capacity", 1_000_000, 1..=1_000_000_000_000);
    let external_count = section.whole("external_count", 0, 0..=1_000_000_000_000);
    if external_count >= capacity {
        section.warning("external_count", "leaves no room below `capacity`, so the instance takes no new devices");
    }
    let weight = section.whole("weight", 1, 1..=1_000_000);
    let before = section.document().problem_count();
    let region = section.text("region", "text", "");
    let labels = section.texts("labels", "table of texts");
    let tenant = section.parsed("tenant", "name", "", TenantName::parse);
    let is_placed = section.document().problem_count() == before;
    let hubs = section.list("hubs", "list of host names", |text| HubName::parse(text).map_err(|rule| rule.to_string()));
    let draining = section.flag("draining", false);
    section.check_unknown();
    let is_identified = id_scope.is_some() && endpoint.is_some();
    let instance = Instance {
        id_scope: id_scope.unwrap_or_else(|| IdScope::parse("0ne00000000").expect("letters and digits")),
        endpoint: endpoint.unwrap_or_default(),
        extra_ca_pem,
        quota_per_minute,
        burst,
        adaptive_limit,
        adaptive_limit_min_per_minute: (quota_per_minute * adaptive_limit_min_percent / 100).max(1),
        capacity,
        external_count,
        weight,
        region,
        labels,
        hubs: hubs.into_iter().collect(),
        tenant,
        draining,
    };
    Entry { instance, is_identified, is_placed }
}

/// The endpoint in its shortest spelling. No message repeats it: a URL may hold a password.
fn base_url(text: &str) -> Result<String, String> {
    const RULE: &str = "must be a base URL such as \"https://global.azure-devices-provisioning.net\"";
    let url = reqwest::Url::parse(text).map_err(|error| format!("{RULE}: {error}"))?;
    let host = url.host_str().ok_or(RULE)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("{RULE}, without user name and password"));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{RULE}, without anything after the host name and port"));
    }
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(host) => {}
        "http" => return Err("must begin with https:// ; plain HTTP is for loopback addresses only".to_owned()),
        _ => return Err(RULE.to_owned()),
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Compares those whose ID scope and endpoint are known, whatever else is wrong with them.
fn check_twice(document: &Document, instances: &BTreeMap<InstanceName, Instance>, identified: &BTreeSet<InstanceName>) {
    let on_loopback = |instance: &Instance| {
        let url = reqwest::Url::parse(&instance.endpoint).ok();
        url.and_then(|url| url.host_str().map(is_loopback)).unwrap_or(false)
    };
    let known = || instances.iter().filter(|(name, _)| identified.contains(*name));
    for (name, instance) in known() {
        // An ID scope is unique in Azure whatever endpoint leads to it; two emulators may well share one.
        let same = |other: &Instance| {
            let scope = other.id_scope.as_str().eq_ignore_ascii_case(instance.id_scope.as_str());
            scope && (other.endpoint == instance.endpoint || !(on_loopback(other) || on_loopback(instance)))
        };
        if let Some((earlier, _)) = known().take_while(|(other, _)| *other < name).find(|(_, other)| same(other)) {
            let message = format!(
                "is the ID scope of instances.{earlier} too; one DPS instance under two names would be sent twice its quota, \
                 keep one of them"
            );
            document.problem(&format!("instances.{name}.id_scope"), message);
        }
    }
}
