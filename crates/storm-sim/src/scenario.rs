//! A storm to be simulated: who knocks, how DPS behaves and how devices are served.

use std::time::Duration;

use rate_control::entropy::Entropy;

use crate::fleet::Fleet;

/// How DPS behaves, each instance alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DpsModel {
    /// Registrations per minute that we are configured to send; at least 1.
    pub quota_per_minute: u32,
    /// Registrations per minute that DPS accepts; at least 1. The same, unless others share the quota.
    pub enforced_per_minute: u32,
    /// From a call's departure to its answer.
    pub latency: Duration,
    /// From counting a registration to having a hub for it.
    pub assigning: Duration,
}

/// How devices are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// By dps-proxy: each device is told its own appointment, and comes then.
    Appointments,
    /// By a proxy with a bucket and no line: who finds it empty is told this wait, which devices stretch by up to 3 %.
    SharedRetryAfter(Duration),
    /// By nobody: devices call DPS, one instance each, and retry after a refusal.
    Direct(Retry),
}

/// How a device waits after its registration was refused. None of these looks at a `Retry-After`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// `min` · 2^attempt up to `max`, then an even spread of up to `jitter` more.
    ExponentialPlusJitter {
        /// Before the first doubling.
        min: Duration,
        /// The bound of the exponential part.
        max: Duration,
        /// The most that is added.
        jitter: Duration,
    },
    /// Evenly between zero and `min` · 2^attempt, that at most `max`.
    FullJitter {
        /// Before the first doubling.
        min: Duration,
        /// The bound.
        max: Duration,
    },
    /// Evenly between the two, whatever the attempt.
    Uniform {
        /// The shortest wait.
        min: Duration,
        /// The longest wait.
        max: Duration,
    },
    /// Always the same.
    Constant(Duration),
}

impl Retry {
    /// The wait after the `attempt`-th refusal, from 1.
    pub(crate) fn wait(self, attempt: u16, entropy: &mut Entropy) -> Duration {
        let doubled = |min: Duration, max: Duration| min.saturating_mul(1 << attempt.min(20)).min(max);
        match self {
            Self::ExponentialPlusJitter { min, max, jitter } => doubled(min, max) + entropy.up_to(jitter),
            Self::FullJitter { min, max } => entropy.up_to(doubled(min, max)),
            Self::Uniform { min, max } => min + entropy.up_to(max.saturating_sub(min)),
            Self::Constant(wait) => wait,
        }
    }
}

/// A storm to be simulated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// Who knocks.
    pub fleet: Fleet,
    /// DPS instances; 1 to [`INSTANCES_MAX`](crate::INSTANCES_MAX), and at least those that are dedicated.
    pub instances: u16,
    /// How they behave.
    pub dps: DpsModel,
    /// Registrations per minute of the first instances, where they differ from [`dps`](Self::dps); each at least 1.
    pub quotas: Vec<u32>,
    /// How devices are served.
    pub manner: Manner,
    /// Where all randomness comes from.
    pub seed: u64,
}

impl Scenario {
    /// Registrations per minute that we send to an instance (from 0).
    #[must_use]
    pub fn quota_of(&self, instance: u16) -> u32 {
        self.quotas.get(usize::from(instance)).copied().unwrap_or(self.dps.quota_per_minute)
    }

    /// Registrations per minute that an instance (from 0) accepts.
    pub(crate) fn enforced_by(&self, instance: u16) -> u32 {
        self.quotas.get(usize::from(instance)).copied().unwrap_or(self.dps.enforced_per_minute)
    }
}
