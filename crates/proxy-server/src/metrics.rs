//! Metrics: one registry owned by the service; names `dps_proxy_<owner>_<what>_<unit>`.
//!
//! Invariant: labels are closed sets (plane, matched route, status, instance name from the configuration): never an ID or a raw path.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use proxy_core::attestation::Reason;
use proxy_core::gateway::Gateway;
use proxy_core::store::Health;
use proxy_core::upstream::evidence::Blame;
use proxy_core::use_cases::operator::InstanceView;
use rate_control::adaptive_limit::LimitState;
use rate_control::circuit_breaker::CircuitState;
use rate_control::time::WallTime;

use crate::plane::Plane;

mod connections;
mod text;

use connections::Connections;
pub use connections::{ConnectionMetrics, DropReason};
pub use text::TextFormat;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    plane: &'static str,
    route: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlaneLabels {
    plane: &'static str,
}

/// What the service counts itself. What the core counts is read when it is asked for.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<PlaneLabels, Histogram>,
    reloads: Counter,
    reloads_refused: Counter,
    credentials_refused: Family<ReasonLabels, Counter>,
    connections: Connections,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry with everything at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("dps_proxy");
        let requests = Family::<RequestLabels, Counter>::default();
        registry.register("http_requests", "Requests answered, by plane, matched route and status", requests.clone());
        let seconds = Family::<PlaneLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.0005, 2.0, 16))
        });
        registry.register_with_unit(
            "http_request_duration",
            "Time from the head of a request to the head of its answer",
            Unit::Seconds,
            seconds.clone(),
        );
        let (reloads, reloads_refused) = (Counter::default(), Counter::default());
        registry.register("config_reloads", "Configurations that were applied", reloads.clone());
        registry.register("config_reloads_refused", "Configurations that were rejected", reloads_refused.clone());
        let credentials_refused = Family::<ReasonLabels, Counter>::default();
        for reason in Reason::ALL {
            drop(credentials_refused.get_or_create(&ReasonLabels { reason: reason.as_str() }));
        }
        let help = "Device credentials that were refused, by reason";
        registry.register("credentials_refused", help, credentials_refused.clone());
        let connections = Connections::register(&mut registry);
        Self {
            registry: Mutex::new(registry),
            requests,
            seconds,
            reloads,
            reloads_refused,
            credentials_refused,
            connections,
        }
    }

    /// The connections of a plane's listener.
    #[must_use]
    pub fn connections(&self, plane: Plane) -> ConnectionMetrics {
        self.connections.of(plane)
    }

    /// A request was answered.
    pub fn answered(&self, plane: Plane, route: &'static str, status: u16, took: Duration) {
        let plane = plane.as_str();
        self.requests.get_or_create(&RequestLabels { plane, route, status }).inc();
        self.seconds.get_or_create(&PlaneLabels { plane }).observe(took.as_secs_f64());
    }

    /// A device's credential was not believed.
    pub fn credential_refused(&self, reason: Reason) {
        self.credentials_refused.get_or_create(&ReasonLabels { reason: reason.as_str() }).inc();
    }

    /// A changed configuration was taken over, or refused.
    pub fn reloaded(&self, applied: bool) {
        if applied {
            self.reloads.inc()
        } else {
            self.reloads_refused.inc()
        };
    }

    /// Everything, in the text format `format`.
    #[must_use]
    pub async fn encode(&self, gateway: &Gateway, server: ServerFacts, format: TextFormat) -> String {
        let mut core = Registry::with_prefix("dps_proxy");
        core.register_collector(Box::new(Core {
            now: gateway.now().wall,
            instances: gateway.instances().await,
            parked: gateway.parked(),
            store_writable: gateway.store_health() == Health::Writable,
            store_refused: gateway.store_refused(),
            store_in_vain: gateway.store_in_vain(),
            task_deaths: gateway.supervisor().deaths(),
            server,
        }));
        let (mut own, mut text) = (String::new(), String::new());
        let encoded = encode(&mut own, &self.registry.lock()).and_then(|()| encode(&mut text, &core));
        if encoded.is_err() {
            tracing::error!("metrics could not be written as text");
        }
        // Each part ends with the end mark; only the last one may keep it.
        format.of_open_metrics(format!("{}{text}", own.trim_end_matches("# EOF\n")))
    }
}

/// What the server knows and does not count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerFacts {
    /// When the store was begun, if that was noted.
    pub store_began: Option<WallTime>,
    /// When the certificate of each listener that has one ends.
    pub certificate_ends: Vec<(Plane, WallTime)>,
}

/// What there is to tell at one moment.
#[derive(Debug)]
struct Core {
    now: WallTime,
    instances: Vec<InstanceView>,
    parked: usize,
    store_writable: bool,
    store_refused: u64,
    store_in_vain: Duration,
    task_deaths: BTreeMap<&'static str, u64>,
    server: ServerFacts,
}

/// Seconds until a part of a line is drained, by its name.
type Drain = (&'static str, fn(&InstanceView) -> Option<WallTime>);

const DRAINS: [Drain; 2] = [("half", |view| view.half_drained_at), ("all", |view| view.drained_at)];

type Reading = (&'static str, &'static str, fn(&InstanceView) -> f64);

const GAUGES: [Reading; 11] = [
    ("instance_quota_per_minute", "Registrations the instance takes per minute, as configured", |view| {
        f64::from(view.quota_per_minute)
    }),
    ("instance_budget", "Registrations for which the quota has room now", |view| f64::from(view.budget)),
    ("instance_line_length", "Devices waiting in the line", |view| view.line_length as f64),
    (
        "instance_deferred",
        "Of the devices waiting, those that may not go before a certain moment (a cool-down, a wait after a failure)",
        |view| view.deferred as f64,
    ),
    ("instance_under_way", "Devices whose registration is under way", |view| view.under_way as f64),
    ("instance_registered", "Devices that may have a record at the instance, tombstones included", |view| {
        view.registered_count as f64
    }),
    ("instance_capacity", "Records the instance may hold", |view| view.capacity as f64),
    (
        "instance_limit_per_minute",
        "Registrations that may leave per minute; less than the quota after DPS throttled",
        |view| f64::from(view.limit_per_minute),
    ),
    ("instance_consecutive_failures", "Failures of the instance in a row", |view| f64::from(view.consecutive_failures)),
    ("dispatcher_up", "1 while the task that serves the instance's line runs", |view| {
        f64::from(u8::from(view.dispatcher_up))
    }),
    ("instance_draining", "1 if the instance takes no new devices", |view| f64::from(u8::from(view.draining))),
];

const COUNTERS: [Reading; 9] = [
    ("instance_registrations_sent", "Registrations sent", |view| view.counts.registrations as f64),
    (
        "instance_registrations_repeated",
        "Registrations sent again because an earlier one was throttled or had no clear outcome",
        |view| view.counts.repeated as f64,
    ),
    ("instance_lookups_sent", "Status lookups sent", |view| view.counts.lookups as f64),
    ("instance_polls_sent", "Polls sent", |view| view.counts.polls as f64),
    ("instance_calls_lost", "Calls without an answer", |view| view.counts.lost as f64),
    ("instance_calls_unreachable", "Calls for which no connection could be made", |view| {
        view.counts.unreachable as f64
    }),
    ("instance_throttled", "Calls that DPS throttled", |view| view.counts.throttled as f64),
    ("instance_devices_assigned", "Devices assigned", |view| view.counts.assigned as f64),
    ("instance_devices_refused", "Devices refused by DPS", |view| view.counts.refused as f64),
];

impl Core {
    fn encode_store(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let writable = ConstGauge::new(i64::from(self.store_writable));
        writable.encode(encoder.encode_descriptor(
            "store_writable",
            "1 while the store takes writes",
            None,
            writable.metric_type(),
        )?)?;
        let refused = ConstCounter::new(self.store_refused);
        refused.encode(encoder.encode_descriptor(
            "store_commits_refused",
            "Commits that the store refused because it took no writes or was behind",
            None,
            refused.metric_type(),
        )?)?;
        let stalled = ConstGauge::new(self.store_in_vain.as_secs_f64());
        stalled.encode(encoder.encode_descriptor(
            "store_write_stall",
            "How long writes have waited for the store without any progress",
            Some(&Unit::Seconds),
            stalled.metric_type(),
        )?)?;
        Ok(())
    }
}

impl Collector for Core {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.encode_store(&mut encoder)?;
        let help = "Tasks that panicked, by what they do; they are restarted where that is safe";
        let mut family =
            encoder.encode_descriptor("task_deaths", help, None, ConstCounter::new(0_u64).metric_type())?;
        for (&task, &deaths) in &self.task_deaths {
            ConstCounter::new(deaths).encode(family.encode_family(&[("task", task)])?)?;
        }
        if let Some(began) = self.server.store_began {
            let began = ConstGauge::new(began.unix_seconds());
            began.encode(encoder.encode_descriptor(
                "store_began_timestamp",
                "The day the store was begun, as Unix time; a recent one means that the records of the fleet are not here",
                Some(&Unit::Seconds),
                began.metric_type(),
            )?)?;
        }
        let parked = ConstGauge::new(i64::try_from(self.parked).unwrap_or(i64::MAX));
        parked.encode(encoder.encode_descriptor(
            "requests_parked",
            "Requests held open by Prefer: wait",
            None,
            parked.metric_type(),
        )?)?;
        self.encode_certificates(&mut encoder)?;
        for (name, help, read) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, ConstGauge::new(0.0).metric_type())?;
            for view in &self.instances {
                let labels = [("instance", view.name.as_str())];
                ConstGauge::new(read(view)).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "1 for the state the instance's breaker is in";
        self.encode_states(&mut encoder, ("instance_breaker_state", help), |view| {
            CircuitState::ALL.map(|state| (state.as_str(), view.breaker == state))
        })?;
        let help = "1 for the state the instance's adaptive limit is in";
        self.encode_states(&mut encoder, ("instance_limit_state", help), |view| {
            LimitState::ALL.map(|state| (state.as_str(), view.limit_state == state))
        })?;
        self.encode_blamed(&mut encoder)?;
        self.encode_drains(&mut encoder)?;
        self.encode_clocks(&mut encoder)?;
        self.encode_tenants(&mut encoder)?;
        for (name, help, read) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, ConstCounter::new(0.0).metric_type())?;
            for view in &self.instances {
                let labels = [("instance", view.name.as_str())];
                ConstCounter::new(read(view)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl Core {
    /// One series per state that there is, of which each instance is in one.
    fn encode_states<const N: usize>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        read: impl Fn(&InstanceView) -> [(&'static str, bool); N],
    ) -> Result<(), fmt::Error> {
        let mut family = encoder.encode_descriptor(name, help, None, ConstGauge::new(0_i64).metric_type())?;
        for view in &self.instances {
            for (state, is_in_it) in read(view) {
                let labels = [("instance", view.name.as_str()), ("state", state)];
                ConstGauge::new(i64::from(is_in_it)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_certificates(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let kind = ConstGauge::new(0_i64).metric_type();
        let help = "Time until the certificate of this listener ends, or has ended if negative; 86400 are a day";
        let mut family = encoder.encode_descriptor("tls_certificate_left", help, Some(&Unit::Seconds), kind)?;
        for (plane, end) in &self.server.certificate_ends {
            let left = end.unix_seconds() - self.now.unix_seconds();
            ConstGauge::new(left).encode(family.encode_family(&[("plane", plane.as_str())])?)?;
        }
        Ok(())
    }

    fn encode_blamed(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Calls that failed, by who is to blame if the device is not";
        let kind = ConstCounter::new(0_u64).metric_type();
        let mut family = encoder.encode_descriptor("instance_calls_failed", help, None, kind)?;
        for view in &self.instances {
            for blame in Blame::ALL {
                let labels = [("instance", view.name.as_str()), ("blame", blame.as_str())];
                ConstCounter::new(view.counts.blamed.of(blame)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_drains(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let kind = ConstGauge::new(0.0).metric_type();
        let help = "Time until this part of the devices waiting now should be done; 0 if nobody waits";
        let mut family = encoder.encode_descriptor("instance_drain", help, Some(&Unit::Seconds), kind)?;
        for view in &self.instances {
            for (part, read) in DRAINS {
                let labels = [("instance", view.name.as_str()), ("part", part)];
                let left = read(view).map_or(0.0, |moment| moment.since(self.now).as_secs_f64());
                ConstGauge::new(left).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_clocks(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let kind = ConstGauge::new(0.0).metric_type();
        let help = "DPS's clock minus the clock of this machine; absent until DPS has answered";
        let mut family = encoder.encode_descriptor("instance_clock_offset", help, Some(&Unit::Seconds), kind)?;
        for view in &self.instances {
            let Some(offset) = view.clock_offset_seconds else { continue };
            let labels = [("instance", view.name.as_str())];
            ConstGauge::new(offset as f64).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_tenants(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let kind = ConstGauge::new(0.0).metric_type();
        let help = "Devices of the tenant that wait at the instance";
        let mut family = encoder.encode_descriptor("tenant_line_length", help, None, kind)?;
        for view in &self.instances {
            for tenant in &view.tenants {
                let labels = [("instance", view.name.as_str()), ("tenant", tenant.tenant.as_str())];
                ConstGauge::new(tenant.line_length as f64).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Time until the tenant's devices waiting now at the instance should be done";
        let kind = ConstGauge::new(0.0).metric_type();
        let mut family = encoder.encode_descriptor("tenant_drain", help, Some(&Unit::Seconds), kind)?;
        for view in &self.instances {
            for tenant in &view.tenants {
                for (part, moment) in [("half", tenant.half_drained_at), ("all", tenant.drained_at)] {
                    let labels = [("instance", view.name.as_str()), ("tenant", tenant.tenant.as_str()), ("part", part)];
                    let left = moment.since(self.now).as_secs_f64();
                    ConstGauge::new(left).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}
