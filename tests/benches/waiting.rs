//! A long line over real sockets: memory per waiting device, the cost of asking again, and how soon the service is ready again.
//!
//! The instances let hardly anybody through, so whoever joins waits. Then the service is killed and started again, and stopped
//! and started again, on the store that it has by then.
//!
//! `WAITING_DEVICES`, `WAITING_INSTANCES` and `WAITING_CLIENTS` (that many requests at once) change the run.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dps_emulator::{Quota, QuotaShape};
use dps_proxy_tests::device::unix_seconds_in;
use dps_proxy_tests::load::{Answer, Client, Connections, Target, Times, memory_of, parameter, provision_request};
use dps_proxy_tests::{Plane, TestDevice, TestDps, TestGateway};

/// The short line that the long one is compared with.
const SHORT: u32 = 1_000;
const ASKED_AGAIN: u64 = 5_000;
/// Rounds of asking again in both lines.
const ROUNDS: usize = 7;
const MIB: f64 = 1_048_576.0;

fn main() -> anyhow::Result<()> {
    // `cargo test --benches` only asks whether this starts.
    let quick = !std::env::args().any(|argument| argument == "--bench");
    let devices: u32 = parameter("WAITING_DEVICES", if quick { 2 * SHORT } else { 1_000_000 })?;
    let instances: u32 = parameter("WAITING_INSTANCES", 1)?;
    let clients: usize = parameter("WAITING_CLIENTS", 32)?;
    anyhow::ensure!(
        devices > SHORT && instances > 0 && clients > 0,
        "more than {SHORT} devices, an instance, a client"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(run(devices, instances, clients))
}

async fn run(devices: u32, instances: u32, clients: usize) -> anyhow::Result<()> {
    println!(
        "{devices} devices with IDs of 48 bytes, a tenth with a payload; {instances} instances; service and load share the machine"
    );
    // Both lines are there at once and asked in turns, as the machine's mood changes from minute to minute.
    let short = Site::start(SHORT, instances).await?;
    let mut long = Site::start(devices, instances).await?;
    tokio::task::block_in_place(|| short.join(clients))?;
    let empty = long.resident()?;
    let took = tokio::task::block_in_place(|| long.join(clients))?;
    println!("joins per second {:.0}", f64::from(devices) / took.as_secs_f64());
    let full = long.resident()?;
    println!(
        "resident memory: {:.1} MiB with nobody in line, {:.1} MiB with {devices}: {:.0} bytes per device (the store's cache included)",
        empty as f64 / MIB,
        full as f64 / MIB,
        full.saturating_sub(empty) as f64 / f64::from(devices)
    );
    tokio::task::block_in_place(|| compare(&short, &long))?;
    drop(short);

    long.gateway.kill9();
    long.restart("kill -9").await?;
    let began = Instant::now();
    let status = long.gateway.terminate().await;
    anyhow::ensure!(status.success(), "the service ended with {status}");
    println!("SIGTERM to the end of the process: {:.2} s", began.elapsed().as_secs_f64());
    long.restart("a clean stop").await
}

/// Asks again in a short and in a long line, in turns.
fn compare(short: &Site, long: &Site) -> anyhow::Result<()> {
    let (mut rounds, mut ratios) = (Vec::new(), Vec::new());
    // The first round warms both up.
    for round in 0..=ROUNDS {
        let (brief, lengthy) = (short.ask_again(round)?, long.ask_again(round)?);
        if round > 0 {
            ratios.push(lengthy.0 / brief.0);
            rounds.push((brief, lengthy));
        }
    }
    rounds.sort_by(|one, other| one.1.0.total_cmp(&other.1.0));
    ratios.sort_by(f64::total_cmp);
    let (brief, lengthy) = rounds[ROUNDS / 2];
    for (line, (p50, p99)) in [(short.devices, brief), (long.devices, lengthy)] {
        println!("asking again with {line} in line, one client: p50 {p50:.3} ms, p99 {p99:.3} ms");
    }
    println!(
        "asking again, long line to short line, p50: {:.2} (median of {ROUNDS} rounds, {:.2} to {:.2})",
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1]
    );
    Ok(())
}

/// A service with its line.
struct Site {
    gateway: TestGateway,
    instances: Vec<TestDps>,
    target: Target,
    devices: u32,
    expiry: i64,
}

impl Site {
    async fn start(devices: u32, instances: u32) -> anyhow::Result<Self> {
        let (running, gateway) = start(devices, instances).await;
        let target = Target::new(gateway.address(Plane::Device))?;
        let expiry = unix_seconds_in(Duration::from_hours(12));
        Ok(Self { gateway, instances: running, target, devices, expiry })
    }

    fn resident(&self) -> anyhow::Result<u64> {
        memory_of(self.gateway.pid().context("the service runs")?, "VmRSS")
    }

    fn request(&self, number: u32) -> Vec<u8> {
        let device = TestDevice::of_fleet(&format!("plant-7-hall-3-sensor-of-the-long-line-{number:09}"));
        let payload = number.is_multiple_of(10).then_some(r#"{"model":"th-1","site":"plant-7","firmware":"2.4.11"}"#);
        provision_request(&device, self.expiry, payload)
    }

    /// Lets all devices join.
    fn join(&self, clients: usize) -> anyhow::Result<Duration> {
        let (began, next) = (Instant::now(), AtomicU32::new(0));
        let run = || {
            let mut client = Client::new(self.target.clone(), Connections::KeepAlive);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= self.devices {
                    return anyhow::Ok(());
                }
                wait_in_line(&mut client, &self.request(number))?;
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..clients).map(|_| scope.spawn(run)).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
        })?;
        Ok(began.elapsed())
    }

    /// Lets devices from all over the line ask again, one after the other; p50 and p99 in milliseconds.
    fn ask_again(&self, round: usize) -> anyhow::Result<(f64, f64)> {
        let mut client = Client::new(self.target.clone(), Connections::KeepAlive);
        let mut times = Times::default();
        for step in 0..ASKED_AGAIN {
            // A stride by a large prime visits the whole line in no order that a cache could guess.
            let number = (round as u64 * 7_919 + step * 2_654_435_761) % u64::from(self.devices);
            times.add(wait_in_line(&mut client, &self.request(u32::try_from(number)?))?);
        }
        Ok((times.quantile_ms(0.5), times.quantile_ms(0.99)))
    }

    /// Starts the service again and says how long it took until `/readyz` was 200, and whether everybody is still in line.
    async fn restart(&mut self, after: &str) -> anyhow::Result<()> {
        let began = Instant::now();
        self.gateway.start_again().await;
        self.gateway.operator_get("/readyz").await.ok();
        let took = began.elapsed().as_secs_f64();
        let per_million = took * 1e6 / f64::from(self.devices);
        let peak = memory_of(self.gateway.pid().context("the service runs")?, "VmHWM")?;
        println!(
            "ready again after {after}: {took:.2} s ({per_million:.2} s per million); resident memory {:.1} MiB, {:.1} MiB at the peak",
            self.resident()? as f64 / MIB,
            peak as f64 / MIB
        );
        let views = self.gateway.operator_get("/v1/instances").await.ok().json;
        let views = views["instances"].as_array().context("a list of instances")?;
        let sum = |figure: &str| views.iter().filter_map(|view| view[figure].as_u64()).sum::<u64>();
        let (waiting, under_way) = (sum("lineLength"), sum("underWay"));
        let assigned: u64 = self.instances.iter().map(|dps| dps.emulator.stats().devices_registered).sum();
        println!("  {waiting} in line, {under_way} under way, {assigned} assigned by DPS");
        let lost = u64::from(self.devices).saturating_sub(waiting + under_way + assigned);
        anyhow::ensure!(lost == 0, "{lost} places are lost");
        Ok(())
    }
}

async fn start(devices: u32, instances: u32) -> (Vec<TestDps>, TestGateway) {
    let quota = Quota { count: 1, window: Duration::from_mins(1), shape: QuotaShape::Sliding };
    let mut builder = TestGateway::builder().tls(Plane::Device).set("line.length_max", &devices.to_string());
    // What an operator gets who sets nothing, instead of what suits small tests.
    for key in ["device.workers", "device.connections_max", "store.cache_mib", "line.jitter_max"] {
        builder = builder.unset(key);
    }
    let mut running = Vec::new();
    for number in 1..=instances {
        let (name, dps) = (format!("eu-{number}"), TestDps::start_with(|config| config.quota = quota).await);
        builder = builder
            .instance(&name, &dps)
            .set(&format!("instances.{name}.quota_per_minute"), "1")
            .set(&format!("instances.{name}.capacity"), "1000000000");
        running.push(dps);
    }
    (running, builder.start().await)
}

/// Asks for a device that must be told to wait. The few that DPS lets through meanwhile are told their hub.
fn wait_in_line(client: &mut Client, request: &[u8]) -> anyhow::Result<Duration> {
    let (answer, took) = client.ask(request)?;
    match answer {
        Answer { status: 202, retry_after: Some(_) } | Answer { status: 200, .. } => Ok(took),
        other => anyhow::bail!("a device in line was told {other:?}"),
    }
}
