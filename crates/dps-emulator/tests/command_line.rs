//! The command line and the configuration file.

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test, and the line says which")]

use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use dps_emulator::cli::Cli;
use dps_emulator::{ConcurrentRegistration, Config, PollLimit, Quota, QuotaShape, ReprovisionPolicy, Tls};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn parse(line: &str) -> anyhow::Result<Config> {
    Cli::try_parse_from(line.split_whitespace())?.into_config()
}

#[test]
fn the_definition_is_sound_and_the_help_teaches() {
    Cli::command().debug_assert();
    let help = Cli::command().render_long_help().to_string();
    for word in ["--quota-shape", "lose-reply", "stuck-assigning", "GET /stats", "--ca-out", "NOT EMULATED"] {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn the_documented_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let faults = dir.path().join("faults.toml");
    std::fs::write(&faults, "[[fault]]\naction = \"reset\"\nnth = 2\n").unwrap();
    let line = format!(
        "dps-emulator --listen 127.0.0.1:8443 --id-scope 0ne000AB12C --group plant={KEY} \
         --hub hub-a.azure-devices.net --hub hub-b.azure-devices.net --ca-out ca.pem --enrollment gateway-1={KEY} \
         --quota 500/30s --quota-shape bucket --poll-limit 5/10s --assigning-ms 500 --control 127.0.0.1:9443 --faults {}",
        faults.display()
    );
    let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
    assert_eq!(cli.ca_out.as_deref(), Some(std::path::Path::new("ca.pem")));
    let config = cli.into_config().unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8443");
    assert_eq!(config.control.unwrap().to_string(), "127.0.0.1:9443");
    assert_eq!(config.id_scope, "0ne000AB12C");
    assert_eq!((config.groups[0].name.as_str(), config.groups[0].key_base64.as_str()), ("plant", KEY));
    assert_eq!(config.enrollments[0].registration_id, "gateway-1");
    assert_eq!(
        config.hubs.iter().map(|h| h.name.as_str()).collect::<Vec<_>>(),
        ["hub-a.azure-devices.net", "hub-b.azure-devices.net"]
    );
    assert_eq!(config.quota, Quota { count: 500, window: Duration::from_secs(30), shape: QuotaShape::Bucket });
    assert_eq!(config.poll_limit, PollLimit::default());
    assert_eq!(config.assigning, Duration::from_millis(500));
    assert_eq!(config.faults.len(), 1);

    let files = parse("dps-emulator --tls-cert chain.pem --tls-key key.pem --hub hub-a=7").unwrap();
    assert!(matches!(files.tls, Tls::Files { .. }));
    assert_eq!(files.hubs[0].weight, 7);
    let bare = parse("dps-emulator").unwrap();
    assert_eq!(bare.quota, Quota::default(), "1000 a minute, sliding");
    assert!(bare.rejected_count && bare.lookup_counts && !bare.poll_expiry_enforced);
    assert_eq!(parse("dps-emulator --clock-offset-s -7200").unwrap().clock_offset_s, -7200);
    let lenient = parse("dps-emulator --rejected-count no --lookup-counts no --concurrent conflict").unwrap();
    assert!(!lenient.rejected_count && !lenient.lookup_counts);
    assert_eq!(lenient.concurrent, ConcurrentRegistration::Conflict);
}

#[test]
fn what_is_unknown_or_contradictory_is_refused() {
    for line in [
        "dps-emulator --colour blue",
        "dps-emulator --quota 1000",
        "dps-emulator --quota 1000/60",
        "dps-emulator --quota 0/60s",
        "dps-emulator --quota-shape leaky",
        "dps-emulator --group plant",
        "dps-emulator --group plant=AAAA --listen 0.0.0.0:8443",
        "dps-emulator --listen 0.0.0.0:8443",
        "dps-emulator --control 0.0.0.0:9443",
        "dps-emulator --tls-cert chain.pem",
        "dps-emulator --tls-cert chain.pem --tls-key key.pem --ca-out ca.pem",
        "dps-emulator --plain-http --ca-out ca.pem",
        "dps-emulator --hub hub-a=0",
        "dps-emulator --hub hub-a=x",
        "dps-emulator --faults /nowhere",
        "dps-emulator --config /nowhere",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
    assert!(parse("dps-emulator --listen 0.0.0.0:8443 --let-strangers-reach-this-emulator").is_ok());
}

#[test]
fn a_file_holds_the_same_settings_and_flags_win() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("emulator.toml");
    std::fs::write(
        &path,
        format!(
            "listen = \"127.0.0.1:1234\"\nid-scope = \"0ne000AB12C\"\nquota = \"200/1m\"\nquota-shape = \"fixed\"\n\
             rejected-count = \"no\"\nhub = [{{ name = \"hub-a\", weight = 3 }}]\n\
             [[group]]\nname = \"plant\"\nkey = \"{KEY}\"\nreprovision = \"never\"\nhub = \"hub-s\"\n\
             [[enrollment]]\nid = \"solo\"\nkey = \"{KEY}\"\ndevice-id = \"Solo\"\n"
        ),
    )
    .unwrap();
    let config = parse(&format!("dps-emulator --config {} --listen 127.0.0.1:99 --hub hub-b", path.display())).unwrap();
    assert_eq!(config.listen.port(), 99);
    assert_eq!(config.quota, Quota { count: 200, window: Duration::from_mins(1), shape: QuotaShape::Fixed });
    assert!(!config.rejected_count);
    assert_eq!(config.hubs.len(), 2);
    assert_eq!(config.groups[0].reprovision, ReprovisionPolicy::Never);
    assert_eq!(config.enrollments[0].device_id.as_deref(), Some("Solo"));
    std::fs::write(&path, "colour = \"blue\"").unwrap();
    assert!(parse(&format!("dps-emulator --config {}", path.display())).is_err());
}
