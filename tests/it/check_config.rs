//! `check-config`: everything that is wrong, before anything binds.

use std::net::TcpListener;

use dps_proxy_tests::device::FLEET_KEY;
use dps_proxy_tests::{GatewayBuilder, TestDps, TestGateway, binary};

/// Exit code, standard output and standard error of `check-config`.
fn check(gateway: &TestGateway) -> (Option<i32>, String, String) {
    let output = binary::run(&["check-config", gateway.config_path().to_str().unwrap()]);
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

async fn builder() -> GatewayBuilder {
    TestGateway::builder().instance("eu-1", &TestDps::start().await)
}

#[tokio::test]
async fn a_sound_file_is_exit_0_and_nothing_is_bound_or_written() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = builder().await.set("device.listen", &format!("\"{}\"", taken.local_addr().unwrap())).prepare();
    let (code, stdout, _) = check(&gateway);
    assert_eq!(code, Some(0));
    assert!(stdout.contains(": valid ") && stdout.contains("(1 instance, 1 enrollment)"), "{stdout}");
    assert!(!gateway.directory().join("store").exists());
}

#[tokio::test]
async fn all_problems_are_reported_at_once_with_their_keys_and_no_secret() {
    let mut gateway = builder().await.secret("bad.key", "this-is-no-base64-but-it-is-a-secret").prepare();
    gateway.edit_config(|config| {
        config
            .set("device.repeat_burst", "0")
            .set("device.request_timeout", "10")
            .set("registration.connect_timeout", "\"20s\"")
            .set("registration.upstream_max_delay", "\"5s\"")
            .set("registration.token_life", "\"50s\"")
            .set("device.tls_cert_file", "\"nowhere.pem\"")
            .set("instances.eu-1.quota_per_minute", "\"many\"")
            .set("instances.eu-1.burts", "5")
            .set("instances.eu-2.id_scope", "\"0ne!\"")
            .set("enrollments.fleet.group_key_file", "\"bad.key\"")
            .set("enrollments.depot.attestation", "\"fleet-token\"")
            .set("enrollments.depot.group_key_file", "\"fleet.key\"")
            .set("enrollments.depot.credential", "\"derived-key\"")
            .set("enrollments.open.attestation", "\"allow-list-alone\"")
            .set("enrollments.open.group_key_file", "\"nowhere.key\"")
            .set("default_enrollment", "\"flet\"");
    });
    let (code, _, stderr) = check(&gateway);
    assert_eq!(code, Some(2));
    for key in [
        "device.repeat_burst",
        "device.request_timeout",
        "registration.connect_timeout",
        "registration.token_life",
        "has to be good for all of a call: longer than registration.connect_timeout and registration.request_timeout",
        "device.tls_cert_file",
        "instances.eu-1.quota_per_minute",
        "instances.eu-1.burts",
        "instances.eu-2.id_scope",
        "enrollments.fleet.group_key_file",
        "enrollments.depot.fleet_token_files",
        "enrollments.open.accept_unauthenticated_devices",
        "enrollments.open.group_key_file",
        "default_enrollment",
    ] {
        assert!(stderr.contains(key), "{key} is not reported:\n{stderr}");
    }
    assert!(!stderr.contains("this-is-no-base64") && !stderr.contains(FLEET_KEY), "{stderr}");
    // The service itself refuses the same, with the same words and code.
    let (code, log) = gateway.run_to_end().await;
    assert_eq!((code, log.trim()), (Some(2), stderr.trim()));
}

#[tokio::test]
async fn a_duplicate_and_a_value_out_of_bounds_are_told_together() {
    let (one, other) = (TestDps::start().await, TestDps::start().await);
    let mut gateway = TestGateway::builder().instance("eu-1", &one).instance("eu-2", &other).prepare();
    gateway.edit_config(|config| {
        let endpoint = "\"https://global.azure-devices-provisioning.net\"";
        config
            .set("instances.eu-1.endpoint", endpoint)
            .set("instances.eu-2.endpoint", endpoint)
            .set("instances.eu-2.id_scope", &format!("\"{}\"", one.id_scope()))
            .set("instances.eu-1.quota_per_minute", "0")
            .set("device.listen", "\"nowhere\"")
            .set("log.filter", "\"a=b=c\"")
            .set("line.length_max", "0");
    });
    let (code, _, stderr) = check(&gateway);
    assert_eq!(code, Some(2));
    for key in
        ["instances.eu-1.quota_per_minute", "instances.eu-2.id_scope", "device.listen", "log.filter", "line.length_max"]
    {
        assert!(stderr.contains(key), "{key} is not reported:\n{stderr}");
    }
}

#[tokio::test]
async fn a_variable_that_would_drop_all_tokens_is_refused_by_name() {
    let gateway = builder().await.prepare();
    let variable = "DPS_PROXY__BACKEND__TOKENS";
    let output = binary::command()
        .args(["check-config", gateway.config_path().to_str().unwrap()])
        .env(variable, "[]")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(variable) && stderr.contains("backend.tokens"), "{stderr}");
}

#[tokio::test]
async fn the_file_is_named_alike_for_both_commands() {
    let mut gateway = builder().await.prepare();
    gateway.edit_config(|config| {
        config.set("line.length_max", "0");
    });
    let path = gateway.config_path().to_str().unwrap();
    for command in ["check-config", "serve"] {
        for arguments in [&[command, path][..], &[command, "--config", path]] {
            let output = binary::run(arguments);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.code() == Some(2) && stderr.contains("line.length_max"), "{arguments:?}: {stderr}");
        }
    }
}

#[tokio::test]
async fn a_new_store_is_announced_with_its_day_and_can_be_forbidden() {
    let mut gateway = builder().await.set("store.create", "false").prepare();
    let (code, log) = gateway.run_to_end().await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("store.path") && log.contains("store.create"), "{log}");
    assert!(!gateway.directory().join("store").exists(), "what is forbidden is not begun");

    gateway.edit_config(|config| {
        config.set("store.create", "true");
    });
    gateway.start_again().await;
    let announced = |gateway: &TestGateway| {
        gateway
            .logs()
            .iter()
            .filter(|line| line["message"].as_str().is_some_and(|it| it.contains("new, empty store")))
            .count()
    };
    assert_eq!(announced(&gateway), 1);
    let began = async |gateway: &TestGateway| {
        let metrics = gateway.operator_get("/metrics").await.ok().body;
        let sample = metrics.lines().find_map(|line| line.strip_prefix("dps_proxy_store_began_timestamp_seconds "));
        sample.unwrap_or_else(|| panic!("{metrics}")).parse::<f64>().unwrap()
    };
    let day = began(&gateway).await;
    let now = jiff::Timestamp::now().as_second() as f64;
    assert!((now - 300.0..=now).contains(&day), "{day}");
    gateway.terminate().await;

    gateway.edit_config(|config| {
        config.set("store.create", "false");
    });
    gateway.start_again().await;
    assert_eq!(
        (began(&gateway).await, announced(&gateway)),
        (day, 1),
        "the store that exists is opened, and is as old as it was"
    );
}

#[tokio::test]
async fn combinations_that_would_give_something_to_the_wrong_one_are_refused() {
    let base = [("audiences", "[\"x.test\"]"), ("group_key_file", "\"fleet.key\"")];
    let fleet = [
        ("attestation", "\"fleet-token\""),
        ("fleet_token_files", "[\"fleet.token\"]"),
        ("group_key_file", "\"fleet.key\""),
    ];
    let open = [
        ("attestation", "\"allow-list-alone\""),
        ("accept_unauthenticated_devices", "true"),
        ("group_key_file", "\"fleet.key\""),
    ];
    for (name, keys, more, named) in [
        ("any credential for the allow-list alone", &open[..], &[("credential", "\"hub-sas\"")][..], "credential"),
        (
            "the allow-list alone, unasked",
            &open[..],
            &[("accept_unauthenticated_devices", "false")],
            "accept_unauthenticated_devices",
        ),
        ("a fleet token for a credential", &fleet[..], &[("credential", "\"derived-key\"")], "credential"),
        (
            "more than once",
            &fleet[..],
            &[("credential", "\"hub-sas\""), ("allow_fleet_token_credentials", "true")],
            "credential_once",
        ),
        ("x509", &base[..], &[("attestation", "\"x509\"")], "attestation"),
        ("an instance that does not exist", &base[..], &[("instances", "[\"eu-9\"]")], "instances"),
        ("no instance that fits", &base[..], &[("region", "\"mars\"")], "enrollments.x"),
    ] {
        let mut builder = builder().await.secret("fleet.token", "a-fleet-token-0123456789");
        for (key, value) in keys.iter().chain(more) {
            builder = builder.set(&format!("enrollments.x.{key}"), value);
        }
        let (code, _, stderr) = check(&builder.prepare());
        assert_eq!(code, Some(2), "{name}");
        assert!(stderr.contains("enrollments.x") && stderr.contains(named), "{name}: {stderr}");
    }
    let twice = builder()
        .await
        .set("operator.listen", "\"127.0.0.1:4711\"")
        .set("backend.listen", "\"127.0.0.1:4711\"")
        .prepare();
    assert_eq!(check(&twice).0, Some(2), "two planes on one address");
    let token = builder()
        .await
        .push("backend.tokens", &[("name", "\"again\""), ("token_file", "\"operator.token\"")])
        .prepare();
    assert_eq!(check(&token).0, Some(2), "one token on two planes");
}

#[tokio::test]
async fn a_missing_or_broken_file_is_exit_2_and_names_itself() {
    let mut gateway = builder().await.prepare();
    std::fs::write(gateway.config_path(), "[device\nlisten = 1").unwrap();
    let (code, _, stderr) = check(&gateway);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("dps-proxy.toml") && stderr.contains("line 1"), "{stderr}");
    std::fs::remove_file(gateway.config_path()).unwrap();
    let (code, log) = gateway.run_to_end().await;
    assert_eq!(code, Some(2));
    assert!(log.contains("dps-proxy.toml"), "{log}");
    let unknown = binary::run(&["srve"]);
    assert_eq!(unknown.status.code(), Some(2), "wrong usage");
}

#[tokio::test]
async fn the_environment_overrides_the_file() {
    let mut gateway = builder().await.prepare();
    gateway
        .start_with(&[("DPS_PROXY__INSTANCES__EU-1__QUOTA_PER_MINUTE", "77"), ("DPS_PROXY__LINE__LENGTH_MAX", "5")])
        .await;
    assert_eq!(gateway.instance_view("eu-1").await["quotaPerMinute"], 77);
}
