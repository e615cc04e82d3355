//! `dps-proxy demo`: emulated DPS instances, the service and a fleet on one machine, over real HTTPS on loopback.
//!
//! Nothing is staged: the service is the same [`Application`] that `serve` runs, from a configuration file that the demo writes and
//! that can be edited while it runs; the report's counts come from the devices on one side and from the emulators' own journals on
//! the other.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use dps_emulator::{Emulator, TestCa};
use rate_control::entropy::Entropy;
use tokio::sync::oneshot;

use super::signals::stop_or_hangup_signal;
use super::terminal::print;
use crate::config::{self, LogFormat, LogSettings};
use crate::lifecycle::{Addresses, Application};
use crate::state::Source;
use crate::telemetry;

mod fleet;
mod report;
mod scene;

use fleet::Fleet;
use report::Report;

/// What the demo shows.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Simulated microcontrollers; each knows only its hardware ID and its own key.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    devices: u32,
    /// Emulated DPS instances.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    instances: u32,
    /// Linked hubs of each instance.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    hubs: u32,
    /// Registrations that each instance accepts per minute.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    quota: u32,
    /// Keep store, keys, certificates and configuration in this directory (default: a temporary one, removed at the end).
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Keep everything running after the report, until Ctrl-C, to try it by hand.
    #[arg(long)]
    keep_running: bool,
    /// What is logged to standard error, in the syntax of RUST_LOG.
    #[arg(long, default_value = "warn,proxy_server::lifecycle::new_store=error", env = "RUST_LOG")]
    log: String,
}

/// Runs the demo. True if every device was assigned.
///
/// SIGINT, SIGTERM and SIGHUP (a terminal that was closed) end it in order: the service is stopped and the temporary directory, which
/// holds keys, is removed.
///
/// # Errors
/// If something cannot be started.
pub async fn run(options: Options) -> anyhow::Result<bool> {
    telemetry::start(&LogSettings { format: LogFormat::Auto, filter: options.log.clone() });
    let temporary =
        if options.data.is_none() { Some(tempfile::tempdir().context("a temporary directory")?) } else { None };
    let directory = match (&options.data, &temporary) {
        (Some(directory), _) => directory.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => anyhow::bail!("no directory to work in"),
    };
    std::fs::create_dir_all(&directory).with_context(|| format!("{}", directory.display()))?;
    let ended = stop_or_hangup_signal();
    tokio::pin!(ended);
    let stage = tokio::select! {
        biased;
        () = &mut ended => return Ok(interrupted()),
        stage = Stage::set(&options, &directory) => stage?,
    };
    let shown = tokio::select! {
        biased;
        () = &mut ended => None,
        shown = stage.show(&options) => Some(shown),
    };
    if options.keep_running && matches!(shown, Some(Ok(_))) {
        scene::print_curls(stage.addresses, &stage.secrets);
        print("Still running; Ctrl-C ends it.");
        ended.await;
    }
    stage.strike().await?;
    shown.unwrap_or_else(|| Ok(interrupted()))
}

fn interrupted() -> bool {
    print("Interrupted.");
    false
}

/// The emulated instances and the service, running.
struct Stage {
    emulators: Emulators,
    secrets: scene::Secrets,
    addresses: Addresses,
    stop: oneshot::Sender<()>,
    serving: Serving,
}

impl Stage {
    async fn set(options: &Options, directory: &Path) -> anyhow::Result<Self> {
        let mut entropy = Entropy::from_system();
        let ca = TestCa::generate().map_err(anyhow::Error::from)?;
        let secrets = scene::Secrets::make(directory, &ca, &mut entropy)?;
        print(&format!(
            "Starting {} emulated DPS {} (quota {} registrations per minute each, {} hubs each) and the proxy …",
            options.instances,
            if options.instances == 1 { "instance" } else { "instances" },
            options.quota,
            options.hubs
        ));
        let emulators = scene::start_emulators(options, &ca, &secrets, &mut entropy).await?;
        let file = scene::write_config(options, directory, &emulators)?;
        let (addresses, stop, serving) = start_service(file.clone()).await?;
        scene::print_addresses(addresses, directory);
        print(&format!("Configuration  {} (edit it while this runs: rates change within a second)", file.display()));
        Ok(Self { emulators, secrets, addresses, stop, serving })
    }

    /// The fleet knocks, and what came of it is reported. True if every device was assigned.
    async fn show(&self, options: &Options) -> anyhow::Result<bool> {
        let mut entropy = Entropy::from_system();
        let fleet = Fleet::new(options, self.addresses, &self.secrets, &mut entropy)?;
        let began = Instant::now();
        let outcomes = fleet.run().await;
        let report = Report { options, outcomes: &outcomes, took: began.elapsed(), emulators: &self.emulators };
        let assigned_all = report.print();
        if !options.keep_running {
            print("\nWith --keep-running everything stays up, and two curl commands show how to try it by hand.");
        }
        Ok(assigned_all)
    }

    async fn strike(self) -> anyhow::Result<()> {
        let _already_gone = self.stop.send(());
        self.serving.await.context("the service's task")??;
        for emulator in self.emulators {
            emulator.stop().await;
        }
        Ok(())
    }
}

type Serving = tokio::task::JoinHandle<anyhow::Result<()>>;

async fn start_service(file: PathBuf) -> anyhow::Result<(Addresses, oneshot::Sender<()>, Serving)> {
    let loaded = config::load(&file, Vec::new())?;
    let source = Source { path: file, environment: Vec::new() };
    let application = Application::build(loaded, Some(source)).await?;
    let (addresses, app) = (application.addresses(), application.app());
    let (stop, stopped) = oneshot::channel::<()>();
    // The sender is dropped when the demo fails; the service then ends as well.
    let mut serving = actix_web::rt::spawn(application.run_until(async { drop(stopped.await) }));
    let deadline = Instant::now() + Duration::from_secs(10);
    while !app.is_ready() {
        tokio::select! {
            ended = &mut serving => { ended.context("the service's task")??; anyhow::bail!("the service ended before it was ready") }
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
        anyhow::ensure!(Instant::now() < deadline, "the service was not ready within 10 s");
    }
    Ok((addresses, stop, serving))
}

/// The name of the emulated instance of this number, from 0.
fn instance_name(number: usize) -> String {
    format!("dps-{}", number + 1)
}

/// An emulator and what the demo calls it.
type Emulators = Vec<Emulator>;
