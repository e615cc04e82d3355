//! The storm over real sockets: a whole fleet knocks at once at the real service with TLS and emulated instances behind it, and
//! each device comes back when it was told to, until it has its hub. One round with fresh connections, one with keep-alive.
//!
//! Service, instances and load share the processors, so the times say what this machine takes in, not what the service could do
//! on its own. With keep-alive the clients' connections carry all devices in turn, as behind a site's gateway: a connection for
//! each device would need as many descriptors as devices.
//!
//! `STORM_DEVICES`, `STORM_INSTANCES`, `STORM_QUOTA` (per instance and minute), `STORM_CLIENTS` (that many requests at once) and
//! `STORM_MODES` (`fresh,keep-alive`) change the run.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use dps_emulator::{Quota, QuotaShape, Stats};
use dps_proxy_tests::device::unix_seconds_in;
use dps_proxy_tests::load::{Answer, Client, Connections, Target, Times, memory_of, parameter, provision_request};
use dps_proxy_tests::{Plane, TestDevice, TestDps, TestGateway};

const MINUTE: Duration = Duration::from_mins(1);
const MIB: f64 = 1_048_576.0;

#[derive(Debug, Clone, Copy)]
struct Scale {
    devices: u32,
    instances: u32,
    quota: u32,
    clients: usize,
}

impl Scale {
    /// The time in which the quotas let the fleet through, if nothing else takes any.
    fn ideal(self) -> Duration {
        MINUTE * self.devices / (self.instances * self.quota)
    }
}

fn main() -> anyhow::Result<()> {
    // `cargo test --benches` only asks whether this starts.
    let quick = !std::env::args().any(|argument| argument == "--bench");
    let (devices, quota) = if quick { (200, 6_000) } else { (100_000, 10_000) };
    let scale = Scale {
        devices: parameter("STORM_DEVICES", devices)?,
        instances: parameter("STORM_INSTANCES", 4)?,
        quota: parameter("STORM_QUOTA", quota)?,
        clients: parameter("STORM_CLIENTS", 32)?,
    };
    anyhow::ensure!(scale.devices > 0 && scale.instances > 0 && scale.quota > 0 && scale.clients > 0, "{scale:?}");
    let modes = parameter("STORM_MODES", "fresh,keep-alive".to_owned())?;
    let processors = std::thread::available_parallelism()?;
    println!(
        "{} devices, {} instances of {} registrations per minute, {} requests at once; service, instances and load share {processors} processors",
        scale.devices, scale.instances, scale.quota, scale.clients
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    for mode in modes.split(',') {
        let connections = match mode {
            "fresh" => Connections::Fresh,
            "keep-alive" => Connections::KeepAlive,
            other => anyhow::bail!("STORM_MODES={other}: there are fresh and keep-alive"),
        };
        runtime.block_on(round(scale, connections))?;
    }
    Ok(())
}

async fn round(scale: Scale, connections: Connections) -> anyhow::Result<()> {
    let quota = Quota { count: scale.quota, window: MINUTE, shape: QuotaShape::Sliding };
    let mut instances = Vec::new();
    for _ in 0..scale.instances {
        // Of the journal only the last entry is read.
        let change = |config: &mut dps_emulator::Config| (config.quota, config.journal_capacity) = (quota, 16);
        instances.push(TestDps::start_with(change).await);
    }
    let mut gateway = start(scale, &instances).await;
    let target = Target::new(gateway.address(Plane::Device))?;
    let (began, began_unix) = (Instant::now(), SystemTime::now());
    let deadline = began + scale.ideal() * 4 + MINUTE * 3;
    let fleet = Fleet::new(scale.devices, deadline);
    let seen = tokio::task::block_in_place(|| fleet.storm(&target, connections, scale.clients))?;
    let peak = memory_of(gateway.pid().context("the service runs")?, "VmHWM")?;
    let last_call = instances.iter().filter_map(|dps| dps.emulator.journal().last().map(|entry| entry.unix_ms)).max();
    let last_call = SystemTime::UNIX_EPOCH + Duration::from_millis(last_call.context("instances were called")?);
    let done_at_dps = last_call.duration_since(began_unix).unwrap_or_default();
    report(scale, connections, seen, began, done_at_dps, peak);
    report_instances(scale, &instances.iter().map(|dps| dps.emulator.stats()).collect::<Vec<_>>());
    let status = gateway.terminate().await;
    anyhow::ensure!(status.success(), "the service ended with {status}");
    Ok(())
}

async fn start(scale: Scale, instances: &[TestDps]) -> TestGateway {
    let mut builder = TestGateway::builder().tls(Plane::Device);
    // What an operator gets who sets nothing, instead of what suits small tests.
    for key in ["workers", "connections_max", "repeat_burst", "repeat_per"] {
        builder = builder.unset(&format!("device.{key}"));
    }
    for key in ["store.cache_mib", "line.jitter_max", "line.expected_registration"] {
        builder = builder.unset(key);
    }
    for (number, dps) in instances.iter().enumerate() {
        let name = format!("eu-{}", number + 1);
        let quota = scale.quota.to_string();
        builder = builder.instance(&name, dps).set(&format!("instances.{name}.quota_per_minute"), &quota);
    }
    builder.start().await
}

/// What the clients saw.
#[derive(Debug, Default)]
struct Seen {
    joining: Times,
    draining: Times,
    /// When the last device was told of its place, or its hub.
    joined_at: Option<Instant>,
    told_at: Option<Instant>,
    requests: u64,
    put_off: u64,
}

impl Seen {
    fn append(&mut self, other: Self) {
        self.joining.append(other.joining);
        self.draining.append(other.draining);
        self.joined_at = self.joined_at.max(other.joined_at);
        self.told_at = self.told_at.max(other.told_at);
        self.requests += other.requests;
        self.put_off += other.put_off;
    }
}

/// Devices by number: those below `next` have asked at least once, `back` says who comes back when, the rest is still to knock.
#[derive(Debug)]
struct Queue {
    next: u32,
    back: BinaryHeap<Reverse<(Instant, u32)>>,
    without_hub: u32,
    failed: bool,
}

struct Fleet {
    devices: u32,
    deadline: Instant,
    expiry: i64,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// A device whose turn it is.
struct Turn {
    device: u32,
    first: bool,
}

impl Fleet {
    fn new(devices: u32, deadline: Instant) -> Self {
        let queue = Queue { next: 0, back: BinaryHeap::new(), without_hub: devices, failed: false };
        let expiry = unix_seconds_in(Duration::from_hours(12));
        Self { devices, deadline, expiry, queue: Mutex::new(queue), changed: Condvar::new() }
    }

    fn storm(&self, target: &Target, connections: Connections, clients: usize) -> anyhow::Result<Seen> {
        let run = || {
            let seen = self.client(Client::new(target.clone(), connections));
            if seen.is_err() {
                self.queue.lock().unwrap_or_else(PoisonError::into_inner).failed = true;
                self.changed.notify_all();
            }
            seen
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..clients).map(|_| scope.spawn(run)).collect();
            let mut all = Seen::default();
            for thread in threads {
                all.append(thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
            }
            Ok(all)
        })
    }

    fn client(&self, mut client: Client) -> anyhow::Result<Seen> {
        let mut seen = Seen::default();
        while let Some(Turn { device, first }) = self.turn()? {
            let request = provision_request(&TestDevice::of_fleet(&format!("storm-{device:07}")), self.expiry, None);
            let (answer, took) = client.ask(&request)?;
            let now = Instant::now();
            seen.requests += 1;
            if first {
                seen.joining.add(took);
                seen.joined_at = Some(now);
            } else {
                seen.draining.add(took);
            }
            match answer {
                Answer { status: 200, .. } => {
                    seen.told_at = Some(now);
                    self.has_hub();
                }
                Answer { status: status @ (202 | 429 | 503), retry_after: Some(wait) } => {
                    seen.put_off += u64::from(status != 202);
                    self.comes_back(device, now + wait);
                }
                answer => anyhow::bail!("device {device} was told {answer:?}"),
            }
        }
        Ok(seen)
    }

    /// Waits for the next device that is to ask: one whose time has come, or else one that has not asked yet.
    fn turn(&self) -> anyhow::Result<Option<Turn>> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = Instant::now();
            anyhow::ensure!(now < self.deadline, "{} devices have no hub yet, and patience ends", queue.without_hub);
            if queue.without_hub == 0 || queue.failed {
                return Ok(None);
            }
            let due = queue.back.peek().map_or(self.deadline, |Reverse((due, _))| *due);
            if due <= now {
                return Ok(queue.back.pop().map(|Reverse((_, device))| Turn { device, first: false }));
            }
            if queue.next < self.devices {
                queue.next += 1;
                return Ok(Some(Turn { device: queue.next - 1, first: true }));
            }
            let waited = self.changed.wait_timeout(queue, due - now);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn has_hub(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.without_hub -= 1;
        if queue.without_hub == 0 {
            self.changed.notify_all();
        }
    }

    fn comes_back(&self, device: u32, at: Instant) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let sooner = queue.back.peek().is_none_or(|Reverse((due, _))| at < *due);
        queue.back.push(Reverse((at, device)));
        if sooner {
            self.changed.notify_one();
        }
    }
}

fn report(
    scale: Scale,
    connections: Connections,
    mut seen: Seen,
    began: Instant,
    done_at_dps: Duration,
    peak_bytes: u64,
) {
    let since = |moment: Option<Instant>| moment.map_or(f64::NAN, |moment| (moment - began).as_secs_f64());
    let (joined, told, ideal) = (since(seen.joined_at), since(seen.told_at), scale.ideal().as_secs_f64());
    let devices = f64::from(scale.devices);
    println!("{connections}:");
    println!("  joins per second {:.0} (all within {joined:.1} s, while the instances drain)", devices / joined);
    for (what, times) in [("joining", &mut seen.joining), ("draining", &mut seen.draining)] {
        let [p50, p99] = [0.5, 0.99].map(|share| times.quantile_ms(share));
        println!("  answer time while {what}: p50 {p50:.1} ms, p99 {p99:.1} ms ({} answers)", times.len());
    }
    println!("  requests per device {:.4}, put off by 429 or 503: {}", seen.requests as f64 / devices, seen.put_off);
    println!(
        "  ideal {ideal:.1} s; DPS was done after {:.1} s ({:.3} of the ideal), the last device was told after {told:.1} s ({:.3})",
        done_at_dps.as_secs_f64(),
        done_at_dps.as_secs_f64() / ideal,
        told / ideal
    );
    println!("  service's resident memory at its peak: {:.1} MiB", peak_bytes as f64 / MIB);
}

fn report_instances(scale: Scale, stats: &[Stats]) {
    let sum = |figure: fn(&Stats) -> u64| stats.iter().map(figure).sum::<u64>();
    let most = stats.iter().map(|stats| stats.registrations_max_sliding.max(stats.registrations_max_fixed)).max();
    println!(
        "  at the instances: {} registrations, {} polls, {} lookups, {} throttled, {} over quota; at most {} of {} in any minute of one instance",
        sum(|stats| stats.registers),
        sum(|stats| stats.polls),
        sum(|stats| stats.lookups),
        sum(|stats| stats.throttled),
        sum(|stats| stats.over_quota_sliding),
        most.unwrap_or(0),
        scale.quota
    );
}
