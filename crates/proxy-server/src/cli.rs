//! The command line: `serve`, `demo`, `plan`, `check-config`, `migrate`, `store copy`, `openapi`.
//!
//! Exit codes: 0 done; 1 it failed while it ran (a demo: a device was not assigned); 2 wrong usage or a configuration that
//! cannot be used.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Loaded};
use crate::lifecycle::Application;
use crate::planes;
use crate::state::Source;
use crate::{telemetry, tls};

mod copy;
pub mod demo;
mod migrate;
pub mod plan;
mod signals;
mod terminal;

use signals::stop_signal;
use terminal::{print, report};

const AFTER_HELP: &str = "\
Try it without Azure:   dps-proxy demo
Plan for a storm:       dps-proxy plan --devices 1000000 --deadline 30m
Check a configuration:  dps-proxy check-config /etc/dps-proxy/dps-proxy.toml
Run the service:        dps-proxy serve /etc/dps-proxy/dps-proxy.toml
Make the tables:        dps-proxy migrate /etc/dps-proxy/dps-proxy.toml   (PostgreSQL only)

serve, check-config and migrate also take the file as --config FILE or from DPS_PROXY_CONFIG.

Every key of the file can be overridden by the environment: DPS_PROXY__SECTION__KEY=value.
Changed rates, bursts, bounds, weights, draining and enrollments are applied within a second, without a restart.
Exit codes: 0 done, 1 failed while running, 2 wrong usage or configuration.";

/// Registers devices with many Azure IoT Hub Device Provisioning Service (DPS) instances, within their quotas.
#[derive(Debug, Parser)]
#[command(name = "dps-proxy", version, about, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service.
    Serve(ConfigFile),
    /// Run a demonstration on this machine: emulated DPS instances, the service and a fleet of devices. Needs no Azure account.
    Demo(demo::Options),
    /// Simulate how long a storm takes and what it needs: devices, instances, deadline. Needs no configuration and no network.
    Plan(plan::Options),
    /// Check a configuration and report all of its problems at once. Binds and writes nothing.
    CheckConfig(ConfigFile),
    /// Bring the tables of the PostgreSQL database that the configuration names to what this release needs. Running it again does no harm.
    Migrate(migrate::Options),
    /// Look after stores while no service runs on them.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Print the OpenAPI document of the three planes. Needs no configuration and no network.
    Openapi,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Copy everything from the store of one configuration to the empty store of another, and compare both. After an interruption, the same
    /// command goes on.
    Copy(copy::Options),
}

/// The configuration file, named alike by every command that takes one.
#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file [default: the value of DPS_PROXY_CONFIG, else /etc/dps-proxy/dps-proxy.toml].
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same, as an option.
    #[arg(long = "config", value_name = "FILE", conflicts_with = "file")]
    option: Option<PathBuf>,
}

impl ConfigFile {
    /// What was named, by argument, option or environment, else the usual place.
    fn path(self) -> PathBuf {
        // Not by clap: there the variable would conflict with the option.
        let from_environment =
            || std::env::var_os("DPS_PROXY_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        let named = self.option.or(self.file).or_else(from_environment);
        named.unwrap_or_else(|| PathBuf::from("/etc/dps-proxy/dps-proxy.toml"))
    }
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    tls::install_provider();
    match cli.command {
        Command::CheckConfig(file) => check_config(&file.path()),
        Command::Serve(file) => serve(file.path()),
        Command::Store(StoreCommand::Copy(options)) => copy::run(&options),
        Command::Migrate(options) => migrate::run(options),
        Command::Plan(options) => plan::run(&options),
        Command::Openapi => {
            print(planes::openapi::TEXT);
            ExitCode::SUCCESS
        }
        Command::Demo(options) => match run(demo::run(options)) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => failed(&error),
        },
    }
}

/// Runs a future on the service's runtime: all of tokio's threads for the gateway, actix's own for HTTP.
fn run<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    actix_web::rt::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("threads for the runtime can be started")
    })
    .block_on(future)
}

fn environment() -> Vec<(String, String)> {
    // What is not Unicode cannot be one of our keys.
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn load(path: &Path) -> Result<Loaded, ExitCode> {
    config::load(path, environment()).map_err(|problems| {
        report(&problems.to_string());
        ExitCode::from(2)
    })
}

fn check_config(path: &Path) -> ExitCode {
    match load(path) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                report(&format!("warning: {warning}"));
            }
            let counts = (loaded.settings.instances.len(), loaded.settings.enrollments.len());
            let counted = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
            let (instances, enrollments) = (counted(counts.0, "instance"), counted(counts.1, "enrollment"));
            print(&format!("{}: valid ({instances}, {enrollments})", path.display()));
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

fn serve(path: PathBuf) -> ExitCode {
    let loaded = match load(&path) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    telemetry::start(&loaded.server.log);
    announce(&path, &loaded);
    let source = Source { path, environment: environment() };
    let serving = run(async {
        let application = Application::build(loaded, Some(source)).await?;
        application.run_until(stop_signal()).await
    });
    match serving {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// The first line of a log: what runs, by which file, with which instances and which store.
fn announce(path: &Path, loaded: &Loaded) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        configuration = %path.display(),
        instances = telemetry::list(loaded.settings.instances.keys()),
        store = loaded.server.store.place(),
        "starting"
    );
}

fn failed(error: &anyhow::Error) -> ExitCode {
    report(&format!("dps-proxy: {error:#}"));
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn every_command_takes_the_configuration_file_both_ways() {
        use clap::Parser as _;
        for command in ["serve", "check-config"] {
            for arguments in [&["a.toml"][..], &["--config", "a.toml"], &["--config=a.toml"]] {
                let cli = super::Cli::try_parse_from([&["dps-proxy", command], arguments].concat()).unwrap();
                let (super::Command::Serve(file) | super::Command::CheckConfig(file)) = cli.command else {
                    panic!("{command} takes a file");
                };
                assert_eq!(file.path().to_str(), Some("a.toml"), "{command} {arguments:?}");
            }
            super::Cli::try_parse_from(["dps-proxy", command, "a.toml", "--config", "b.toml"]).unwrap_err();
        }
    }
}
