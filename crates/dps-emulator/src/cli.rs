//! The command line and the configuration file: the same settings, by the same names. Flags win over the file; lists add up.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;

use crate::config::{Config, PollLimit, Quota};
use crate::faults::FaultFile;
use crate::tls::Tls;

mod args;
mod help;
mod settings;

pub use args::{EnrollmentArg, GroupArg, HubArg, RateArg, YesNo};
pub use settings::Settings;

use help::LONG_HELP;

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

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
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
