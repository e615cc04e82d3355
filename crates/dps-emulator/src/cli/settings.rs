//! The settings that are flags and members of the file alike.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::args::{EnrollmentArg, GroupArg, HubArg, RateArg, YesNo, parse_kebab};
use crate::config::{ConcurrentRegistration, DeriveFrom, QuotaShape, StaySubstatus};

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

impl Settings {
    /// Fills what flags left open from a file; lists add up.
    pub(super) fn over(self, file: Self) -> Self {
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
