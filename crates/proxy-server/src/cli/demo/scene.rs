//! Sets the stage: keys, certificates, emulators, a configuration file.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dps_emulator::{Config, Emulator, GroupConfig, HubConfig, Quota, QuotaShape, TestCa, Tls};
use proxy_core::sas;
use proxy_core::secret::SymmetricKey;
use rate_control::entropy::Entropy;
use rate_control::time::{Clock as _, SystemClock};

use super::{Emulators, Options, instance_name};
use crate::cli::terminal::print;
use crate::lifecycle::Addresses;

/// The host name that devices call the proxy by, and sign for.
pub(super) const HOST_NAME: &str = "localhost";

/// Files that the configuration refers to.
const CA: &str = "ca.pem";
const CHAIN: &str = "proxy.pem";
const PRIVATE_KEY: &str = "proxy-key.pem";
const GROUP_KEY: &str = "group.key";
const BACKEND_TOKEN: &str = "backend.token";
const OPERATOR_TOKEN: &str = "operator.token";

/// Burst of every instance; the product's default.
pub(super) const BURST: u32 = 10;

/// What only this run of the demo knows.
pub(super) struct Secrets {
    pub(super) ca_pem: String,
    pub(super) ca_file: PathBuf,
    pub(super) group_key: SymmetricKey,
    pub(super) backend_token: String,
}

impl Secrets {
    /// Makes them and writes them where the configuration looks, readable by the owner only. A directory of an earlier run keeps its
    /// group key and tokens, so that its devices are still known.
    pub(super) fn make(directory: &Path, ca: &TestCa, entropy: &mut Entropy) -> anyhow::Result<Self> {
        let leaf = ca.issue([HOST_NAME, "127.0.0.1"])?;
        let ca_file = directory.join(CA);
        write_secret(&ca_file, &ca.ca_pem())?;
        write_secret(&directory.join(CHAIN), &leaf.chain_pem)?;
        write_secret(&directory.join(PRIVATE_KEY), &leaf.key_pem)?;
        let group_key = keep_or_write(&directory.join(GROUP_KEY), || random_base64(entropy, 64))?;
        keep_or_write(&directory.join(OPERATOR_TOKEN), || random_hex(entropy))?;
        Ok(Self {
            ca_pem: ca.ca_pem(),
            ca_file,
            group_key: SymmetricKey::from_base64(&group_key)
                .with_context(|| format!("{GROUP_KEY} in {}", directory.display()))?,
            backend_token: keep_or_write(&directory.join(BACKEND_TOKEN), || random_hex(entropy))?,
        })
    }
}

fn random_bytes(entropy: &mut Entropy, length: usize) -> Vec<u8> {
    std::iter::repeat_with(|| entropy.next_u64().to_le_bytes()).flatten().take(length).collect()
}

fn random_base64(entropy: &mut Entropy, length: usize) -> String {
    STANDARD.encode(random_bytes(entropy, length))
}

fn random_hex(entropy: &mut Entropy) -> String {
    random_bytes(entropy, 32).iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn keep_or_write(path: &Path, make: impl FnOnce() -> String) -> anyhow::Result<String> {
    if let Ok(kept) = std::fs::read_to_string(path) {
        return Ok(kept.trim().to_owned());
    }
    let made = make();
    write_secret(path, &made)?;
    Ok(made)
}

fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let write = || {
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?
            .write_all(text.as_bytes())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

pub(super) async fn start_emulators(
    options: &Options,
    ca: &TestCa,
    secrets: &Secrets,
    entropy: &mut Entropy,
) -> anyhow::Result<Emulators> {
    let mut emulators = Vec::new();
    for number in 0..options.instances as usize {
        let config = Config {
            tls: Tls::Issued(ca.clone()),
            id_scope: id_scope(number),
            groups: vec![GroupConfig {
                name: "fleet".to_owned(),
                key_base64: secrets.group_key.expose_base64(),
                ..GroupConfig::default()
            }],
            hubs: hubs(number, options.hubs).into_iter().map(|name| HubConfig { name, weight: 1 }).collect(),
            quota: Quota { count: options.quota, window: Duration::from_secs(60), shape: QuotaShape::Sliding },
            seed: entropy.next_u64(),
            ..Config::default()
        };
        emulators.push(Emulator::start(config).await.with_context(|| instance_name(number))?);
    }
    Ok(emulators)
}

fn id_scope(number: usize) -> String {
    format!("0ne{:08X}", 0xDE00 + number)
}

fn hubs(number: usize, count: u32) -> Vec<String> {
    (1..=count).map(|hub| format!("hub-{}-{hub}.azure-devices.net", number + 1)).collect()
}

pub(super) fn write_config(options: &Options, directory: &Path, emulators: &[Emulator]) -> anyhow::Result<PathBuf> {
    let mut text = format!(
        r#"# Written by `dps-proxy demo`. Edit it while the demo runs: quota_per_minute, burst, weight, draining … change within a second.
default_enrollment = "fleet"

[store]
path = "store"
free_space_min_mib = 64

[device]
listen = "127.0.0.1:0"
host_name = "{HOST_NAME}"
tls_cert_file = "{CHAIN}"
tls_key_file = "{PRIVATE_KEY}"
connections_max = 4096
parked_max = 1000
workers = 2

[backend]
listen = "127.0.0.1:0"
connections_max = 256
[[backend.tokens]]
name = "demo-backend"
token_file = "{BACKEND_TOKEN}"

[operator]
listen = "127.0.0.1:0"
[[operator.tokens]]
name = "demo-operator"
token_file = "{OPERATOR_TOKEN}"
role = "operate"

[shutdown]
readiness_delay = "0s"
drain_timeout = "5s"

[enrollments.fleet]
attestation = "sas-token"
upstream = "group"
group_key_file = "{GROUP_KEY}"
"#
    );
    for (number, emulator) in emulators.iter().enumerate() {
        let hubs: Vec<String> = hubs(number, options.hubs).iter().map(|hub| format!("\"{hub}\"")).collect();
        write!(
            text,
            "\n[instances.{}]\nid_scope = \"{}\"\nendpoint = \"{}\"\nextra_ca_file = \"{CA}\"\nquota_per_minute = {}\nburst = {}\nhubs = [{}]\n",
            instance_name(number),
            id_scope(number),
            emulator.url(),
            options.quota,
            BURST.min(options.quota),
            hubs.join(", "),
        )?;
    }
    let file = directory.join("dps-proxy.toml");
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// A credential for `hardware_id`, as a device makes it from its own key.
pub(super) fn device_credential(group_key: &SymmetricKey, hardware_id: &str, lifetime: Duration) -> String {
    let id = hardware_id.to_ascii_lowercase();
    let key = sas::derive_device_key(group_key, &id);
    let expiry = SystemClock::new().now().wall.after(lifetime).unix_seconds();
    sas::device_token(&key, &format!("{HOST_NAME}%2Fregistrations%2F{id}"), expiry, None)
}

/// Where everything is, while the demo runs.
pub(super) fn print_addresses(addresses: Addresses, directory: &Path) {
    print(&format!(
        "Devices        https://{HOST_NAME}:{device} (CA certificate in {ca})\nBackends       http://{backend} (token in {backend_token})\n\
         Operators      http://{operator} (token in {operator_token})",
        device = addresses.device.port(),
        ca = directory.join(CA).display(),
        backend = addresses.backend,
        backend_token = directory.join(BACKEND_TOKEN).display(),
        operator = addresses.operator,
        operator_token = directory.join(OPERATOR_TOKEN).display(),
    ));
}

/// Two commands that a reader can paste while the demo keeps running. They refer to the directory that the addresses were printed with.
pub(super) fn print_curls(addresses: Addresses, secrets: &Secrets) {
    let credential = device_credential(&secrets.group_key, "my-own-device", Duration::from_secs(86_400));
    print(&format!(
        "\nTry it:\n  curl --cacert {ca} https://{HOST_NAME}:{device}/v1/provision -H 'Content-Type: application/json' -H 'Prefer: wait=20' \
         -H 'Authorization: {credential}' -d '{{\"hardwareId\":\"my-own-device\"}}'\n  curl http://{backend}/v1/devices/my-own-device/assignment \
         -H 'Authorization: Bearer {token}'",
        ca = secrets.ca_file.display(),
        device = addresses.device.port(),
        backend = addresses.backend,
        token = secrets.backend_token,
    ));
}
