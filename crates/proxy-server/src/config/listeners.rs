//! The three planes: where they listen, what bounds them, and who may ask.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use proxy_core::ids::{HubName, TenantName};
use proxy_core::secret::TokenDigest;
use proxy_core::settings::TenantSettings;

use super::reader::{Document, Secrecy, Section};
use super::secrets::{Placed, Plane};
use super::{
    BackendSettings, BackendToken, DeviceSettings, HttpSettings, LiveServer, OperatorRole, OperatorSettings,
    OperatorToken, TlsFiles, secrets,
};

/// What was read; a listener is `None` only if a problem was noted.
#[derive(Debug)]
pub(super) struct Planes {
    pub(super) device: Option<DeviceSettings>,
    pub(super) backend: Option<BackendSettings>,
    pub(super) operator: Option<OperatorSettings>,
    pub(super) live: LiveServer,
    pub(super) tokens: Vec<(Plane, Placed)>,
}

/// What differs between the planes.
struct Defaults {
    listen: &'static str,
    /// 0: one per processor.
    workers: usize,
    connections_max: usize,
    handshakes_max: usize,
    request_timeout: &'static str,
    keep_alive: &'static str,
    body_max_bytes: usize,
    /// Whether plain HTTP must be asked for even on loopback.
    public: bool,
}

const DEVICE: Defaults = Defaults {
    listen: "0.0.0.0:8443",
    workers: 0,
    connections_max: 10_000,
    handshakes_max: 256,
    request_timeout: "10s",
    keep_alive: "15s",
    body_max_bytes: 8192,
    public: true,
};
const BACKEND: Defaults = Defaults {
    listen: "127.0.0.1:8081",
    workers: 2,
    connections_max: 2_000,
    handshakes_max: 64,
    request_timeout: "10s",
    keep_alive: "75s",
    body_max_bytes: 1_048_576,
    public: false,
};
const OPERATOR: Defaults = Defaults {
    listen: "127.0.0.1:8082",
    workers: 1,
    connections_max: 256,
    handshakes_max: 16,
    request_timeout: "10s",
    keep_alive: "75s",
    body_max_bytes: 65_536,
    public: false,
};

pub(super) fn read(root: &Section<'_>) -> Planes {
    let mut tokens = Vec::new();
    let (device, host_names) = device(&root.section("device"));
    let (backend, backend_tokens) = backend(&root.section("backend"), &mut tokens);
    let (operator, operator_tokens) = operator(&root.section("operator"), &mut tokens);
    let listeners = [
        ("device.listen", device.as_ref().map(|plane| plane.http.listen)),
        ("backend.listen", backend.as_ref().map(|plane| plane.http.listen)),
        ("operator.listen", operator.as_ref().map(|plane| plane.http.listen)),
    ];
    check_addresses(root.document(), &listeners);
    Planes { device, backend, operator, live: LiveServer { host_names, backend_tokens, operator_tokens }, tokens }
}

fn check_addresses(document: &Document, listeners: &[(&str, Option<SocketAddr>)]) {
    for (index, (key, address)) in listeners.iter().enumerate() {
        let clashes = |(_, earlier): &&(&str, Option<SocketAddr>)| match (address, earlier) {
            (Some(one), Some(other)) => {
                let overlap = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
                overlap && one.port() == other.port() && one.port() != 0
            }
            _ => false,
        };
        if let Some((earlier, _)) = listeners[..index].iter().find(clashes) {
            document.problem(key, format!("is the address of {earlier} too; give each plane a port of its own"));
        }
    }
}

fn http(section: &Section<'_>, defaults: &Defaults, host_names: &[String]) -> Option<HttpSettings> {
    let text = section.text("listen", "address and port", defaults.listen);
    let listen = text.and_then(|text| {
        let parsed = text.parse::<SocketAddr>();
        parsed.map_err(|_| section.problem("listen", "is not an IP address and port, such as \"127.0.0.1:8081\"")).ok()
    });
    let workers = section.whole("workers", defaults.workers, 0..=1024);
    let workers = match workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        some => some,
    };
    let connections_max = section.whole("connections_max", defaults.connections_max, 16..=1_000_000);
    let source_share_percent = section.whole("source_share_percent", 50, 1..=100);
    let handshakes_max = section.whole("handshakes_max", defaults.handshakes_max, 1..=100_000);
    let handshake_timeout = section.duration("handshake_timeout", "10s", "1s", "5m");
    let backlog = section.whole("backlog", 2048, 16..=65_535);
    let request_timeout = section.duration("request_timeout", defaults.request_timeout, "1s", "5m");
    let write_timeout = section.duration("write_timeout", "10s", "1s", "5m");
    let unread_max_bytes = section.whole("unread_max_bytes", 65_536, 4096..=16_777_216);
    let keep_alive = section.duration("keep_alive", defaults.keep_alive, "1s", "10m");
    let body_max_bytes = section.whole("body_max_bytes", defaults.body_max_bytes, 1024..=16_777_216);
    // actix gives up at 96 fields and 128 KiB, before anything of ours can answer.
    let headers_max = section.whole("headers_max", 64, 8..=90);
    let header_bytes_max = section.whole("header_bytes_max", 16_384, 1024..=98_304);
    let tls = tls(section, listen, defaults.public, host_names);
    Some(HttpSettings {
        // Where a problem was noted nobody sees it, and port 0 clashes with nothing; so the other checks go on.
        listen: listen.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0))),
        tls,
        workers,
        connections_max,
        source_share_percent,
        handshakes_max,
        handshake_timeout,
        backlog,
        request_timeout,
        write_timeout,
        unread_max_bytes,
        keep_alive,
        body_max_bytes,
        headers_max,
        header_bytes_max,
    })
}

fn tls(section: &Section<'_>, listen: Option<SocketAddr>, public: bool, host_names: &[String]) -> Option<TlsFiles> {
    let wanted = section.choice("tls", "", &[("on", true), ("off", false)]);
    let files = secrets::tls_files(section, host_names);
    let given = ["tls_cert_file", "tls_key_file"].map(|key| section.has(key));
    let exposed = public || listen.is_some_and(|address| !address.ip().is_loopback());
    match (wanted, given) {
        (Some(false), [false, false]) if exposed => {
            let message = "is \"off\": anyone on the network path can read credentials; use it only behind something nearby that terminates TLS";
            section.warning("tls", message);
        }
        (Some(false), [false, false]) => {}
        (Some(false), _) => section.problem("tls", "is \"off\", yet there are TLS files; remove the one or the other"),
        (_, [true, false]) => section.problem("tls_key_file", "is missing; tls_cert_file needs it"),
        (_, [false, true]) => section.problem("tls_cert_file", "is missing; tls_key_file needs it"),
        (wanted, [false, false]) if wanted == Some(true) || exposed => {
            let message = "is missing; name tls_cert_file and tls_key_file, or set tls = \"off\" if something in front terminates TLS";
            section.problem("tls_cert_file", message);
        }
        (_, _) => {}
    }
    files
}

fn device(section: &Section<'_>) -> (Option<DeviceSettings>, Vec<String>) {
    let host_names = section.list("host_name", "host name, or list of them", host_name);
    if !section.has("host_name") || section.is_empty_list("host_name") {
        section.problem(
            "host_name",
            "is missing; name the public host that devices talk to, such as \"provision.example.com\"",
        );
    }
    let http = http(section, &DEVICE, &host_names);
    let payload_max_bytes = section.whole("payload_max_bytes", 4096, 2..=65_536);
    let wait_max = section.duration("wait_max", "30s", "0s", "5m");
    let parked_max = section.whole("parked_max", 10_000, 0..=1_000_000);
    let repeat_burst = section.whole("repeat_burst", 5, 1..=1_000);
    let repeat_per = section.duration("repeat_per", "1s", "10ms", "1h");
    let refusals_kept = section.whole("refusals_kept", 10_000, 0..=1_000_000);
    let refusals_logged_per_second = section.whole("refusals_logged_per_second", 1, 0..=1_000);
    if http.as_ref().is_some_and(|http| payload_max_bytes >= http.body_max_bytes) {
        section.problem(
            "payload_max_bytes",
            "must be less than device.body_max_bytes, which bounds the whole request body",
        );
    }
    if http.as_ref().is_some_and(|http| parked_max > http.connections_max) {
        section.warning("parked_max", "is more than device.connections_max, so it is never reached");
    }
    section.check_unknown();
    let settings = http.map(|http| DeviceSettings {
        http,
        payload_max_bytes,
        wait_max,
        parked_max,
        repeat_burst,
        repeat_per,
        refusals_kept,
        refusals_logged_per_second,
    });
    (settings, host_names)
}

/// A host name or IPv4 address, folded to lower case.
pub(super) fn host_name(text: &str) -> Result<String, String> {
    let rule = "is not a host name: letters, digits, - and . , at most 253 characters, no scheme or port";
    HubName::parse(text).map(|name| name.as_str().to_owned()).map_err(|_| rule.to_owned())
}

fn backend(section: &Section<'_>, tokens: &mut Vec<(Plane, Placed)>) -> (Option<BackendSettings>, Vec<BackendToken>) {
    let http = http(section, &BACKEND, &[]);
    let lookup_ids_max = section.whole("lookup_ids_max", 1000, 1..=10_000);
    let change_streams_max = section.whole("change_streams_max", 100, 0..=10_000);
    let change_heartbeat = section.duration("change_heartbeat", "15s", "1s", "5m");
    let mut found = Vec::new();
    for (entry, name, digest) in read_tokens(section, Plane::Backend, tokens) {
        let listed =
            entry.list("tenants", "list of tenants", |text| TenantName::parse(text).map_err(|rule| rule.to_string()));
        if entry.is_empty_list("tenants") {
            entry.problem("tenants", "is empty, so the token opens nothing; leave it out to let it see every tenant");
        }
        let tenants = entry.has("tenants").then(|| listed.into_iter().collect::<BTreeSet<_>>());
        entry.check_unknown();
        if let (Some(name), Some(digest)) = (name, digest) {
            found.push(BackendToken { name, digest, tenants });
        }
    }
    section.check_unknown();
    (http.map(|http| BackendSettings { http, lookup_ids_max, change_streams_max, change_heartbeat }), found)
}

fn operator(
    section: &Section<'_>,
    tokens: &mut Vec<(Plane, Placed)>,
) -> (Option<OperatorSettings>, Vec<OperatorToken>) {
    let http = http(section, &OPERATOR, &[]);
    let import_line_max_bytes = section.whole("import_line_max_bytes", 4096, 256..=1_048_576);
    let import_rows_max = section.whole("import_rows_max", 1_000_000, 1..=100_000_000);
    let mut found = Vec::new();
    for (entry, name, digest) in read_tokens(section, Plane::Operator, tokens) {
        let roles = [("read", OperatorRole::Read), ("operate", OperatorRole::Operate)];
        let role = entry.choice("role", "", &roles);
        if !entry.has("role") {
            entry.problem("role", "is missing; say \"read\" (to look, and for metrics) or \"operate\" (everything)");
        }
        entry.check_unknown();
        if let (Some(name), Some(digest), Some(role)) = (name, digest, role) {
            found.push(OperatorToken { name, digest, role });
        }
    }
    section.check_unknown();
    (http.map(|http| OperatorSettings { http, import_line_max_bytes, import_rows_max }), found)
}

type TokenEntry<'d> = (Section<'d>, Option<String>, Option<TokenDigest>);

fn read_tokens<'d>(section: &Section<'d>, plane: Plane, tokens: &mut Vec<(Plane, Placed)>) -> Vec<TokenEntry<'d>> {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut found = Vec::new();
    for entry in section.array("tokens") {
        let name = entry.parsed("name", "name", "", TenantName::parse).map(|name| name.as_str().to_owned());
        if !entry.has("name") {
            entry.problem("name", "is missing; it tells in logs who asked");
        }
        let earlier = name.as_ref().and_then(|name| names.insert(name.clone(), entry.key("name")));
        if let Some(earlier) = earlier {
            entry.problem("name", format!("is the name of {earlier} too; give each token a name of its own"));
        }
        let content = entry.file("token_file", "file name", Secrecy::Secret);
        if !entry.has("token_file") {
            entry.problem("token_file", "is missing; name the file that holds the token");
        }
        let digest = content.and_then(|content| secrets::token(&entry, "token_file", &content));
        tokens.extend(digest.clone().map(|digest| (plane, (entry.key("token_file"), digest))));
        found.push((entry, name, digest));
    }
    if found.is_empty() && !section.has("tokens") {
        let who = if plane == Plane::Backend { "no backend" } else { "no operator" };
        section
            .warning("tokens", format!("there is none, so {who} gets in; add one under [[{}.tokens]]", section.path()));
    }
    found
}

/// A token or a share for a tenant without devices is most likely a typing error.
pub(super) fn check_tenants(
    document: &Document,
    tokens: &[BackendToken],
    tenants: &BTreeMap<TenantName, TenantSettings>,
    known: &BTreeSet<TenantName>,
) {
    for token in tokens {
        for tenant in token.tenants.iter().flatten().filter(|tenant| !known.contains(*tenant)) {
            let message = format!("token `{}` names tenant `{tenant}`, which no enrollment belongs to", token.name);
            document.warning("backend.tokens", message);
        }
    }
    for tenant in tenants.keys().filter(|tenant| !known.contains(*tenant)) {
        document.warning(&format!("tenants.{tenant}"), "no enrollment belongs to this tenant".to_owned());
    }
}
