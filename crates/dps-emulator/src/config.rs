//! What an emulator is told before it starts, and the check that refuses a configuration that cannot work.
//!
//! Invariant: every default is either a documented figure of the service or the stricter reading of an open question, and
//! every open question is a switch.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::config_error::ConfigError;
use crate::faults::Fault;
use crate::tls::Tls;

mod enrollments;
mod hubs;
mod limits;
mod switches;

pub use enrollments::{GroupConfig, IndividualConfig, ReprovisionPolicy};
pub use hubs::HubConfig;
pub use limits::{PollLimit, Quota, QuotaShape};
pub use switches::{ConcurrentRegistration, DeriveFrom, StaySubstatus};

pub(crate) use enrollments::check_payload;
pub(crate) use hubs::check_hubs;
pub(crate) use limits::check_quota;

/// ID scope used when none is given; it has the documented form but belongs to nobody.
pub const DEFAULT_ID_SCOPE: &str = "0ne00EMULATE";

/// Everything an emulator can be told. Start from [`Config::default`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Where devices connect. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the control interface listens (plain HTTP); none by default.
    pub control: Option<SocketAddr>,
    /// How the device listener is secured.
    pub tls: Tls,
    /// Further names or addresses for a generated certificate.
    pub tls_names: Vec<String>,
    /// Allows listening on an address that is not loopback.
    pub allow_non_loopback: bool,
    /// ID scope of the emulated instance.
    pub id_scope: String,
    /// Symmetric-key enrollment groups.
    pub groups: Vec<GroupConfig>,
    /// Symmetric-key individual enrollments.
    pub enrollments: Vec<IndividualConfig>,
    /// Linked hubs, with their allocation weights.
    pub hubs: Vec<HubConfig>,
    /// Registration quota. The service documents 1,000 per minute and instance.
    pub quota: Quota,
    /// Capacity of the bucket when the shape is [`QuotaShape::Bucket`]; a tenth of the quota by default. A bucket that is
    /// smaller than a minute's worth is the stricter reading (the service does not document its burst).
    pub bucket_burst: Option<u32>,
    /// Whether a refused call (401, 429, 400 …) uses up quota. Not documented; "yes" is the stricter reading, under which
    /// somebody who hammers a sliding window never gets in again.
    pub rejected_count: bool,
    /// Whether a registration status lookup draws on the registration quota. Microsoft's pages disagree; "yes" is the
    /// stricter reading.
    pub lookup_counts: bool,
    /// Polls allowed per device. The service documents 5 per 10 seconds.
    pub poll_limit: PollLimit,
    /// Whether a poll needs a token that has not expired. By default a token that was valid when its operation was created
    /// may poll it (IoT Edge signs for 30 s and never renews while it polls).
    pub poll_expiry_enforced: bool,
    /// How long an operation stays `assigning`.
    pub assigning: Duration,
    /// After how long an operation that never ends becomes `failed`. Not documented.
    pub give_up: Duration,
    /// How long an operation can be polled after its creation. Not documented.
    pub operation_retention: Duration,
    /// What a second registration of a device gets while the first one runs. Not documented.
    pub concurrent: ConcurrentRegistration,
    /// Substatus of a repeated registration that stays on its hub. Not documented.
    pub stay_substatus: StaySubstatus,
    /// Which spelling of the registration ID group keys are derived from. Whether the service folds case is not documented.
    pub derive_from: DeriveFrom,
    /// By how much a token may have expired and still be accepted.
    pub clock_skew: Duration,
    /// By how many seconds the emulator's clock is ahead of the machine's; negative: behind. For clients whose own clock is wrong.
    pub clock_offset_s: i64,
    /// `Retry-After` of a 202, in seconds; published samples show 3, and 2 to 5 suit every SDK.
    pub retry_after_seconds: u32,
    /// Seed of operation IDs, tracking IDs, etags and of faults with a probability.
    pub seed: u64,
    /// How many requests the journal remembers; the oldest are forgotten first, the counters never.
    pub journal_capacity: usize,
    /// Faults that are there from the start.
    pub faults: Vec<Fault>,
    /// Worker threads of the device listener.
    pub workers: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            control: None,
            tls: Tls::Generated,
            tls_names: Vec::new(),
            allow_non_loopback: false,
            id_scope: DEFAULT_ID_SCOPE.to_owned(),
            groups: Vec::new(),
            enrollments: Vec::new(),
            hubs: Vec::new(),
            quota: Quota::default(),
            bucket_burst: None,
            rejected_count: true,
            lookup_counts: true,
            poll_limit: PollLimit::default(),
            poll_expiry_enforced: false,
            assigning: Duration::from_millis(500),
            give_up: Duration::from_mins(5),
            operation_retention: Duration::from_hours(1),
            concurrent: ConcurrentRegistration::NewOperation,
            stay_substatus: StaySubstatus::InitialAssignment,
            derive_from: DeriveFrom::Lower,
            clock_skew: Duration::ZERO,
            clock_offset_s: 0,
            retry_after_seconds: 3,
            seed: 1,
            journal_capacity: 2_000_000,
            faults: Vec::new(),
            workers: 1,
        }
    }
}

impl Config {
    /// Finds what cannot work before anything is bound.
    ///
    /// # Errors
    /// Names the first setting that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        for address in std::iter::once(self.listen).chain(self.control) {
            if !address.ip().is_loopback() && !self.allow_non_loopback {
                return Err(ConfigError::new(format!(
                    "{address} is not a loopback address; this is an emulator, not a service. \
                     If others really must reach it, say --let-strangers-reach-this-emulator"
                )));
            }
        }
        let scope_ok =
            (1..=64).contains(&self.id_scope.len()) && self.id_scope.bytes().all(|b| b.is_ascii_alphanumeric());
        if !scope_ok {
            return Err(ConfigError::new(format!("`{}` is not an ID scope (letters and digits)", self.id_scope)));
        }
        check_quota(self.quota)?;
        check_hubs(&self.hubs)?;
        if self.poll_limit.count == 0 || self.poll_limit.window.is_zero() {
            return Err(ConfigError::new("the poll limit is at least 1 in a window of more than nothing"));
        }
        if self.bucket_burst == Some(0) {
            return Err(ConfigError::new("a bucket holds at least 1"));
        }
        if !(1..=300).contains(&self.retry_after_seconds) {
            return Err(ConfigError::new("Retry-After is within 1 to 300 seconds: the C SDK treats others as 1"));
        }
        if self.workers == 0 || self.workers > 64 {
            return Err(ConfigError::new("workers is within 1 to 64"));
        }
        if self.give_up.is_zero() || self.operation_retention < self.give_up {
            return Err(ConfigError::new("operations are kept at least as long as they can run"));
        }
        Ok(())
    }
}
