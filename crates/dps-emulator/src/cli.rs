//! The command line and the configuration file: the same settings, by the same names. Flags win over the file; lists add up.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;
use serde::Deserialize;

use crate::config::{
    ConcurrentRegistration, Config, DeriveFrom, GroupConfig, HubConfig, IndividualConfig, PollLimit, Quota, QuotaShape,
    StaySubstatus, Tls,
};
use crate::faults::FaultFile;

/// A strict emulator of the Azure Device Provisioning Service (DPS) device API, for tests.
#[derive(Debug, Default, Parser)]
#[command(name = "dps-emulator", version, after_long_help = LONG_HELP)]
pub struct Cli {
    /// Settings from a TOML file (same names as the flags; see below)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the certificate authority to trust is written
    #[arg(long, value_name = "FILE", conflicts_with_all = ["tls_cert", "plain_http"])]
    pub ca_out: Option<PathBuf>,
    /// The settings that a file can hold too.
    #[command(flatten)]
    pub settings: Settings,
}

const LONG_HELP: &str = r#"START
  dps-emulator --id-scope 0ne000AB12C --group plant=BASE64KEY --hub hub-a.azure-devices.net --ca-out ca.pem
  Let your device trust ca.pem, take https://localhost:8443 as the global device endpoint and 0ne000AB12C as ID scope, and
  sign with the key derived from the group key. Clients that cannot change the port need --listen 127.0.0.1:443; clients
  that cannot change the host name need global.azure-devices-provisioning.net in their hosts file (the certificate has it).

CONFIGURATION FILE (--config)
  listen = "127.0.0.1:8443"
  id-scope = "0ne000AB12C"
  quota = "1000/60s"
  hub = [{ name = "hub-a.azure-devices.net", weight = 3 }, { name = "hub-b.azure-devices.net" }]
  [[group]]
  name = "plant"
  key = "BASE64"              # secondary-key, hub (static allocation), disabled = true,
  reprovision = "migrate"     # migrate | reset | never
  payload = { site = "7" }    # returned with the assignment, as a custom allocation policy does
  [[enrollment]]
  id = "gateway-1"
  key = "BASE64"              # secondary-key, device-id, hub, reprovision, payload, disabled

FAULTS (--faults FILE, or POST /faults with one rule as JSON)
  [[fault]]
  action = "status"           # see the list
  name = "maintenance"        # shown in the journal
  call = "register"           # register | poll | lookup | any (default)
  registration-id = "dev-1"   # or registration-id-prefix
  reused-connection = true    # only on connections that have carried a call before (false: on new ones)
  nth = 3                     # or every = 10, or probability = 0.05; default: always
  from-ms = 0                 # since the start; until-ms too
  times = 5                   # at most
  Actions and their own fields:
    delay            delay-ms                     answer late
    status           status, retry-after, error-code, intermediary = true (empty body, not from the service)
    reset                                         TCP reset, nothing processed
    lose-reply                                    processed and counted, then TCP reset
    silence                                       nothing processed, and no answer ever
    web-page         status                       an HTML page (200 by default) of something in between; nothing processed
    rewrite          set = { "registrationState.deviceId" = "x" }, remove = ["status"]
                                                  processed; members of the JSON answer are changed or left out
    stuck-assigning                               assigning until the service gives up (--give-up-ms)
    fail             error-code, message          the operation ends failed (400207 400208 400209 404201 409203 …)
    malformed-body   body, content-type           half of the true body if `body` is absent
    wrong-hub        host                         the operation ends on another hub
    disabled, unassigned                          the operation ends with this status
  Delays add up; of the others the first rule that fits acts. An unknown action or field is refused.

CONTROL (--control 127.0.0.1:9443, plain HTTP, JSON)
  GET /stats  POST /reset-stats  GET /journal?after=N&limit=M  GET /healthz
  POST /clock {"offset-seconds":-7200}
  GET|POST /quota {"count":500,"seconds":60,"shape":"sliding"}   POST /assigning {"milliseconds":500}
  GET|POST /hubs {"hubs":[{"name":"hub-c.azure-devices.net","weight":1}]}
  POST /groups {"name":"plant","key":"BASE64","disabled":true}   POST /enrollments {"id":"dev-1","key":"BASE64"}
  GET|DELETE /registrations/{id}   GET|POST|DELETE /faults   DELETE /faults/{id}

NOT EMULATED
  TPM, X.509 and certificate requests, MQTT and AMQP, the service API, geo-latency allocation, the webhook of a custom allocation
  (a payload can be returned). They are refused in plain words. Nothing was verified against live Azure; where its behaviour is not documented there is a flag.
"#;

/// Settings of flags and of the file.
#[derive(Debug, Default, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// Where devices connect [default: 127.0.0.1:8443]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// ID scope of the emulated instance [default: 0ne00EMULATE]
    #[arg(long, value_name = "SCOPE")]
    pub id_scope: Option<String>,
    /// Symmetric-key enrollment group (repeatable)
    #[arg(long, value_name = "NAME=BASE64KEY")]
    pub group: Vec<GroupArg>,
    /// Individual symmetric-key enrollment (repeatable)
    #[arg(long, value_name = "ID=BASE64KEY")]
    pub enrollment: Vec<EnrollmentArg>,
    /// Linked hub (repeatable); weight 1 to 1000 [default weight: 1]
    #[arg(long, value_name = "HOST[=WEIGHT]")]
    pub hub: Vec<HubArg>,
    /// Certificate chain (PEM); a certificate is generated if absent
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Further name or address for the generated certificate (repeatable)
    #[arg(long, value_name = "NAME")]
    pub tls_name: Vec<String>,
    /// Serve without TLS; no SDK can use it
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_name"])]
    pub plain_http: bool,
    /// Registration quota [default: 1000/60s]
    #[arg(long, value_name = "N/DURATION")]
    pub quota: Option<RateArg>,
    /// How the quota's window moves [default: sliding]
    #[arg(long, value_name = "sliding|fixed|bucket", value_parser = parse_kebab::<QuotaShape>)]
    pub quota_shape: Option<QuotaShape>,
    /// Capacity of the bucket [default: a tenth of the quota]
    #[arg(long, value_name = "N")]
    pub quota_burst: Option<u32>,
    /// Whether refused calls use up quota [default: yes]
    #[arg(long, value_name = "yes|no")]
    pub rejected_count: Option<YesNo>,
    /// Whether status lookups use up quota [default: yes]
    #[arg(long, value_name = "yes|no")]
    pub lookup_counts: Option<YesNo>,
    /// Polls per device [default: 5/10s]
    #[arg(long, value_name = "N/DURATION")]
    pub poll_limit: Option<RateArg>,
    /// Whether an expired token may still poll the operation it was valid for [default: yes]
    #[arg(long, value_name = "yes|no")]
    pub poll_with_expired_token: Option<YesNo>,
    /// How long an operation stays `assigning` [default: 500]
    #[arg(long, value_name = "MS")]
    pub assigning_ms: Option<u64>,
    /// When the service gives up on an operation [default: 300000]
    #[arg(long, value_name = "MS")]
    pub give_up_ms: Option<u64>,
    /// A second registration while the first runs [default: new-operation]
    #[arg(long, value_name = "new-operation|conflict", value_parser = parse_kebab::<ConcurrentRegistration>)]
    pub concurrent: Option<ConcurrentRegistration>,
    /// Substatus of a repeated registration that stays on its hub [default: initial-assignment]
    #[arg(long, value_name = "initial-assignment|reprovisioned", value_parser = parse_kebab::<StaySubstatus>)]
    pub stay_substatus: Option<StaySubstatus>,
    /// Spelling of the ID that group keys are derived from [default: lower]
    #[arg(long, value_name = "lower|as-given", value_parser = parse_kebab::<DeriveFrom>)]
    pub derive_from: Option<DeriveFrom>,
    /// By how many seconds a token may have expired [default: 0]
    #[arg(long, value_name = "SECONDS")]
    pub clock_skew_s: Option<u64>,
    /// By how many seconds its clock is ahead of the machine's; negative: behind [default: 0]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub clock_offset_s: Option<i64>,
    /// Retry-After of a 202, in seconds [default: 3]
    #[arg(long, value_name = "SECONDS")]
    pub retry_after: Option<u32>,
    /// Seed of IDs and of faults with a probability [default: 1]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Requests the journal remembers [default: 2000000]
    #[arg(long, value_name = "N")]
    pub journal: Option<usize>,
    /// Control interface (plain HTTP)
    #[arg(long, value_name = "ADDR:PORT")]
    pub control: Option<SocketAddr>,
    /// Fault rules (TOML or JSON)
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,
    /// Listen on addresses that are not loopback. This is not a service: it proves nothing about who calls
    #[arg(long)]
    pub let_strangers_reach_this_emulator: bool,
}

/// `yes` or `no`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum YesNo {
    /// Yes.
    Yes,
    /// No.
    No,
}

/// A count per duration, `1000/60s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct RateArg {
    /// How many.
    pub count: u32,
    /// In how long.
    pub window: Duration,
}

impl FromStr for RateArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not of the form 1000/60s (units: ms, s, m, h)");
        let (count, window) = text.split_once('/').ok_or_else(wrong)?;
        let digits = window.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = window[..digits].parse().map_err(|_| wrong())?;
        let unit_ms = match &window[digits..] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let window = Duration::from_millis(number.checked_mul(unit_ms).ok_or_else(wrong)?);
        Ok(Self { count: count.parse().map_err(|_| wrong())?, window })
    }
}

impl TryFrom<String> for RateArg {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A group as a flag or a table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct GroupArg(pub GroupConfig);

/// An individual enrollment as a flag or a table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct EnrollmentArg(pub IndividualConfig);

/// A hub as a flag or a table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct HubArg(pub HubConfig);

impl FromStr for GroupArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, key) = text.split_once('=').ok_or("not of the form NAME=BASE64KEY")?;
        Ok(Self(GroupConfig::new(name, key)))
    }
}

impl FromStr for EnrollmentArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (id, key) = text.split_once('=').ok_or("not of the form ID=BASE64KEY")?;
        Ok(Self(IndividualConfig::new(id, key)))
    }
}

impl FromStr for HubArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((name, weight)) = text.split_once('=') else { return Ok(Self(HubConfig::new(text))) };
        let weight = weight.parse().map_err(|_| format!("`{weight}` is not a weight"))?;
        Ok(Self(HubConfig { name: name.to_owned(), weight }))
    }
}

fn parse_kebab<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
    use serde::de::IntoDeserializer as _;
    let deserializer: serde::de::value::StrDeserializer<'_, serde::de::value::Error> = text.into_deserializer();
    T::deserialize(deserializer).map_err(|error| error.to_string())
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

impl Settings {
    /// Fills what flags left open from a file; lists add up.
    fn over(self, file: Self) -> Self {
        fn join<T>(mut first: Vec<T>, more: Vec<T>) -> Vec<T> {
            first.extend(more);
            first
        }
        Self {
            listen: self.listen.or(file.listen),
            id_scope: self.id_scope.or(file.id_scope),
            group: join(file.group, self.group),
            enrollment: join(file.enrollment, self.enrollment),
            hub: join(file.hub, self.hub),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            tls_name: join(file.tls_name, self.tls_name),
            plain_http: self.plain_http || file.plain_http,
            quota: self.quota.or(file.quota),
            quota_shape: self.quota_shape.or(file.quota_shape),
            quota_burst: self.quota_burst.or(file.quota_burst),
            rejected_count: self.rejected_count.or(file.rejected_count),
            lookup_counts: self.lookup_counts.or(file.lookup_counts),
            poll_limit: self.poll_limit.or(file.poll_limit),
            poll_with_expired_token: self.poll_with_expired_token.or(file.poll_with_expired_token),
            assigning_ms: self.assigning_ms.or(file.assigning_ms),
            give_up_ms: self.give_up_ms.or(file.give_up_ms),
            concurrent: self.concurrent.or(file.concurrent),
            stay_substatus: self.stay_substatus.or(file.stay_substatus),
            derive_from: self.derive_from.or(file.derive_from),
            clock_skew_s: self.clock_skew_s.or(file.clock_skew_s),
            clock_offset_s: self.clock_offset_s.or(file.clock_offset_s),
            retry_after: self.retry_after.or(file.retry_after),
            seed: self.seed.or(file.seed),
            journal: self.journal.or(file.journal),
            control: self.control.or(file.control),
            faults: self.faults.or(file.faults),
            let_strangers_reach_this_emulator: self.let_strangers_reach_this_emulator
                || file.let_strangers_reach_this_emulator,
        }
    }
}

impl Cli {
    /// The configuration that the flags and the file describe.
    ///
    /// # Errors
    /// If a file cannot be read or understood, or the configuration cannot work.
    pub fn into_config(self) -> anyhow::Result<Config> {
        let file = match &self.config {
            Some(path) => toml::from_str(&read(path)?).with_context(|| format!("in {}", path.display()))?,
            None => Settings::default(),
        };
        let settings = self.settings.over(file);
        let default = Config::default();
        let tls = match (settings.tls_cert, settings.tls_key, settings.plain_http) {
            (Some(cert), Some(key), false) => Tls::Files { cert, key },
            (None, None, true) => Tls::Off,
            (None, None, false) => Tls::Generated,
            (Some(_), Some(_), true) => bail!("plain-http and tls-cert contradict each other"),
            _ => bail!("tls-cert and tls-key go together"),
        };
        let yes = |choice: Option<YesNo>, default: bool| choice.map_or(default, |choice| choice == YesNo::Yes);
        let faults = match &settings.faults {
            Some(path) => FaultFile::parse(&read(path)?).with_context(|| format!("in {}", path.display()))?,
            None => Vec::new(),
        };
        let give_up = settings.give_up_ms.map_or(default.give_up, Duration::from_millis);
        let config = Config {
            listen: settings.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8443))),
            control: settings.control,
            tls,
            tls_names: settings.tls_name,
            allow_non_loopback: settings.let_strangers_reach_this_emulator,
            id_scope: settings.id_scope.unwrap_or(default.id_scope),
            groups: settings.group.into_iter().map(|GroupArg(group)| group).collect(),
            enrollments: settings.enrollment.into_iter().map(|EnrollmentArg(enrollment)| enrollment).collect(),
            hubs: settings.hub.into_iter().map(|HubArg(hub)| hub).collect(),
            quota: Quota {
                count: settings.quota.map_or(default.quota.count, |rate| rate.count),
                window: settings.quota.map_or(default.quota.window, |rate| rate.window),
                shape: settings.quota_shape.unwrap_or_default(),
            },
            bucket_burst: settings.quota_burst,
            rejected_count: yes(settings.rejected_count, default.rejected_count),
            lookup_counts: yes(settings.lookup_counts, default.lookup_counts),
            poll_limit: settings
                .poll_limit
                .map_or(default.poll_limit, |rate| PollLimit { count: rate.count, window: rate.window }),
            poll_expiry_enforced: !yes(settings.poll_with_expired_token, true),
            assigning: settings.assigning_ms.map_or(default.assigning, Duration::from_millis),
            give_up,
            operation_retention: default.operation_retention.max(give_up),
            concurrent: settings.concurrent.unwrap_or_default(),
            stay_substatus: settings.stay_substatus.unwrap_or_default(),
            derive_from: settings.derive_from.unwrap_or_default(),
            clock_skew: settings.clock_skew_s.map_or(default.clock_skew, Duration::from_secs),
            clock_offset_s: settings.clock_offset_s.unwrap_or(default.clock_offset_s),
            retry_after_seconds: settings.retry_after.unwrap_or(default.retry_after_seconds),
            seed: settings.seed.unwrap_or(default.seed),
            journal_capacity: settings.journal.unwrap_or(default.journal_capacity),
            faults,
            workers: default.workers,
        };
        config.check()?;
        Ok(config)
    }
}
