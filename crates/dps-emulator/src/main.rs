//! `dps-emulator`: a strict emulator of the Azure Device Provisioning Service device API, for tests on loopback.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use clap::Parser as _;
use dps_emulator::Emulator;
use dps_emulator::cli::Cli;
use tracing_subscriber::EnvFilter;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        EnvFilter::new(
            // actix logs each connection that a fault resets as an error of its own.
            "warn,dps_emulator=info,actix_http::h1::dispatcher=off",
        )
    });
    // Colour codes are for people: a file or a pipe gets none.
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();

    let mut cli = Cli::parse();
    let ca_out = cli.ca_out.take();
    let config = cli.into_config()?;
    let (id_scope, enrolled, linked) =
        (config.id_scope.clone(), config.groups.len() + config.enrollments.len(), config.hubs.len());
    let emulator = Emulator::start(config).await?;

    tracing::info!(
        "this is an EMULATOR of the Azure Device Provisioning Service, for tests; devices: {} with ID scope {id_scope}",
        emulator.url()
    );
    if let Some(control) = emulator.control_addr() {
        tracing::info!("control: http://{control}");
    }
    match (&ca_out, emulator.ca_pem()) {
        (Some(path), Some(pem)) => {
            std::fs::write(path, pem).with_context(|| format!("cannot write {}", path.display()))?;
            tracing::info!("devices have to trust {}", path.display());
        }
        (Some(_), None) => anyhow::bail!("--ca-out needs a generated certificate"),
        (None, Some(_)) => {
            tracing::warn!("no client can trust the generated certificate: use --ca-out FILE to write its CA");
        }
        (None, None) => {}
    }
    if enrolled == 0 {
        tracing::warn!("no --group and no --enrollment: every device gets 401");
    }
    if linked == 0 {
        tracing::warn!("no --hub: registrations fail with 400208, unless an enrollment names its hub");
    }

    wait_for_signal().await?;
    let stats = emulator.stats();
    emulator.stop().await;
    tracing::info!(
        requests = stats.requests,
        registrations_counted = stats.registrations_counted,
        registrations_max_sliding = stats.registrations_max_sliding,
        throttled = stats.throttled,
        devices_registered = stats.devices_registered,
        "stopped"
    );
    Ok(())
}

#[cfg(unix)]
async fn wait_for_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(not(unix))]
async fn wait_for_signal() -> std::io::Result<()> {
    tokio::signal::ctrl_c().await
}
