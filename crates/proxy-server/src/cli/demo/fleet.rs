//! Simulated microcontrollers. Each knows a hardware ID and its own key, asks, waits as long as it was told, and asks again.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use rate_control::entropy::Entropy;
use reqwest::{Certificate, Client, StatusCode};
use serde_json::{Value, json};

use super::Options;
use super::scene::{HOST_NAME, Secrets, device_credential};
use crate::cli::terminal::print;
use crate::lifecycle::Addresses;

/// A device that gets nowhere gives up after this many requests.
const REQUESTS_MAX: u32 = 50;
/// Devices knock within this time after the power is back.
const KNOCK_SPREAD: Duration = Duration::from_millis(500);
/// Connections open at once; a device in line holds none.
const CONNECTIONS_MAX: usize = 2000;

/// What became of one device.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) requests: u32,
    /// The hub, or why there is none.
    pub(super) hub: Result<String, String>,
}

/// The devices.
pub(super) struct Fleet {
    client: Client,
    url: String,
    credentials: Vec<(String, String, Duration)>,
}

impl Fleet {
    pub(super) fn new(
        options: &Options,
        addresses: Addresses,
        secrets: &Secrets,
        entropy: &mut Entropy,
    ) -> anyhow::Result<Self> {
        let client = Client::builder()
            .http1_only()
            .no_proxy()
            .tls_certs_only([Certificate::from_pem(secrets.ca_pem.as_bytes())?])
            .timeout(Duration::from_secs(30))
            .pool_idle_timeout(Duration::from_secs(5))
            .pool_max_idle_per_host(64)
            .build()?;
        let credentials = (0..options.devices)
            .map(|number| {
                let hardware_id = format!("SN-{number:06}-{:08X}", 0x00C0_FFEE + number);
                let credential = device_credential(&secrets.group_key, &hardware_id, Duration::from_secs(3 * 3600));
                (hardware_id, credential, entropy.up_to(KNOCK_SPREAD))
            })
            .collect();
        Ok(Self { client, url: format!("https://{HOST_NAME}:{}/v1/provision", addresses.device.port()), credentials })
    }

    /// Runs all devices to their end.
    pub(super) async fn run(self) -> Vec<Outcome> {
        let total = self.credentials.len();
        let progress = Arc::new(Progress::new(total));
        let room = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
        let devices = self.credentials.into_iter().map(|(hardware_id, credential, power_on)| {
            let device = Device {
                client: self.client.clone(),
                url: self.url.clone(),
                hardware_id,
                credential,
                room: Arc::clone(&room),
            };
            let progress = Arc::clone(&progress);
            async move {
                tokio::time::sleep(power_on).await;
                let outcome = device.provision().await;
                progress.step(outcome.hub.is_ok());
                outcome
            }
        });
        let outcomes = futures_util::stream::iter(devices).buffer_unordered(total.max(1)).collect().await;
        progress.end();
        outcomes
    }
}

struct Device {
    client: Client,
    url: String,
    hardware_id: String,
    credential: String,
    room: Arc<tokio::sync::Semaphore>,
}

enum Said {
    Hub(String),
    ComeBack(Duration),
    No(String),
}

impl Device {
    async fn provision(&self) -> Outcome {
        let mut requests = 0;
        loop {
            requests += 1;
            let said = self.ask().await.unwrap_or_else(|error| Said::No(error.to_string()));
            let hub = match said {
                Said::Hub(hub) => Ok(hub),
                Said::ComeBack(wait) if requests < REQUESTS_MAX => {
                    tokio::time::sleep(wait).await;
                    continue;
                }
                Said::ComeBack(_) => Err(format!("gave up after {requests} requests")),
                Said::No(why) => Err(why),
            };
            return Outcome { requests, hub };
        }
    }

    async fn ask(&self) -> reqwest::Result<Said> {
        let _connection = self.room.acquire().await;
        let request = self.client.post(&self.url).header("Authorization", &self.credential);
        let response = request.json(&json!({ "hardwareId": self.hardware_id })).send().await?;
        let (status, retry_after) = (response.status(), retry_after(&response));
        let body: Value = response.json().await?;
        Ok(match (status, retry_after) {
            (StatusCode::OK, _) => Said::Hub(body["assignedHub"].as_str().unwrap_or_default().to_owned()),
            (StatusCode::ACCEPTED | StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS, Some(wait)) => {
                Said::ComeBack(wait)
            }
            (status, _) => Said::No(format!("{status}: {}", body["detail"].as_str().unwrap_or_default())),
        })
    }
}

fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    response.headers().get("retry-after")?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// A bar on a terminal, plain lines elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
    total: usize,
    done: AtomicUsize,
    assigned: AtomicUsize,
}

impl Progress {
    fn new(total: usize) -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64);
            let style =
                ProgressStyle::with_template("{elapsed_precise} [{wide_bar}] {pos}/{len} devices have their hub");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, began: Instant::now(), total, done: AtomicUsize::new(0), assigned: AtomicUsize::new(0) }
    }

    fn step(&self, assigned: bool) {
        self.assigned.fetch_add(usize::from(assigned), Ordering::Relaxed);
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        match &self.bar {
            Some(bar) => bar.inc(1),
            None if done.is_multiple_of((self.total / 10).max(1)) || done == self.total => {
                let assigned = self.assigned.load(Ordering::Relaxed);
                print(&format!(
                    "{:6.1} s  {assigned} of {} devices have their hub",
                    self.began.elapsed().as_secs_f64(),
                    self.total
                ));
            }
            None => {}
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}
