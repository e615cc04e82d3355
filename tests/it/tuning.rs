//! Tuning live.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use dps_proxy_tests::{TestDevice, TestDps, TestGateway, eventually};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;

/// A second is promised; the machine that runs the tests may be busy.
const SOON: Duration = Duration::from_millis(2500);

/// Waits until the instance has this quota, and says how long it took.
async fn takes_over(gateway: &TestGateway, quota: u32) -> Duration {
    let began = Instant::now();
    eventually(&format!("a quota of {quota}"), async || gateway.instance_view("eu-1").await["quotaPerMinute"] == quota)
        .await;
    began.elapsed()
}

async fn reload(gateway: &TestGateway) -> dps_proxy_tests::Reply {
    gateway.send(gateway.operator(Method::POST, "/v1/config/reload")).await
}

fn reloads_logged(gateway: &TestGateway) -> usize {
    gateway.logs().iter().filter(|line| line["message"] == "configuration applied").count()
}

#[tokio::test]
async fn a_changed_file_takes_effect_within_a_second_however_it_was_changed() {
    let dps = TestDps::start().await;
    let mut gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    gateway.edit_config(|config| {
        config.set("instances.eu-1.quota_per_minute", "500");
    });
    let edited = takes_over(&gateway, 500).await;

    let text = gateway.config().text().replace("quota_per_minute = 500", "quota_per_minute = 501");
    let beside = gateway.directory().join(".new.toml");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(&beside, gateway.config_path()).unwrap();
    let renamed = takes_over(&gateway, 501).await;
    assert!(edited < SOON && renamed < SOON, "{edited:?}, {renamed:?}");
}

#[tokio::test]
async fn a_mounted_config_map_takes_effect_within_a_second() {
    let dps = TestDps::start().await;
    let mut gateway =
        TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.quota_per_minute", "600").prepare();
    // As Kubernetes mounts it: the file is a link into `..data`, which is a link that is swapped.
    let directory = gateway.directory().to_owned();
    let version = |name: &str, text: String| {
        std::fs::create_dir(directory.join(name)).unwrap();
        std::fs::write(directory.join(name).join("dps-proxy.toml"), text).unwrap();
    };
    version("..v1", gateway.config().text());
    std::fs::remove_file(gateway.config_path()).unwrap();
    symlink("..v1", directory.join("..data")).unwrap();
    symlink("..data/dps-proxy.toml", gateway.config_path()).unwrap();
    gateway.start_again().await;

    version("..v2", gateway.config().text().replace("quota_per_minute = 600", "quota_per_minute = 601"));
    symlink("..v2", directory.join("..data_tmp")).unwrap();
    std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    let swapped = takes_over(&gateway, 601).await;
    assert!(swapped < SOON, "{swapped:?}");
}

#[tokio::test]
async fn sighup_and_a_request_take_the_file_over_and_the_request_tells_what_came_of_it() {
    let dps = TestDps::start().await;
    let mut gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    gateway.signal(Signal::HUP);
    eventually("SIGHUP was heard", async || reloads_logged(&gateway) == 1).await;
    let told = gateway
        .reconfigure(|config| {
            config.set("instances.eu-1.quota_per_minute", "502");
        })
        .await;
    assert_eq!(told.json, json!({ "applied": true, "restartNeeded": [], "warnings": told.json["warnings"] }));
    assert_eq!(gateway.instance_view("eu-1").await["quotaPerMinute"], 502);

    let told = gateway
        .reconfigure(|config| {
            config.set("device.keep_alive", "\"33s\"").set("instances.eu-1.quota_per_minute", "503");
        })
        .await;
    assert_eq!(told.json["restartNeeded"], json!(["device.keep_alive"]));
    assert_eq!(gateway.instance_view("eu-1").await["quotaPerMinute"], 503, "the rest takes effect");
}

#[tokio::test]
async fn an_invalid_edit_is_refused_whole_and_the_old_values_stay() {
    let dps = TestDps::start().await;
    let mut gateway =
        TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.quota_per_minute", "700").start().await;
    gateway.edit_config(|config| {
        config.set("instances.eu-1.quota_per_minute", "701").set("line.length_max", "0").set("lien.x", "1");
    });
    gateway
        .logged("the refusal", |line| {
            line["message"].as_str().is_some_and(|message| message.contains("configuration rejected"))
        })
        .await;
    let reply = reload(&gateway).await.problem(422, "invalid-configuration");
    let problems = reply.json["problems"].to_string();
    assert!(problems.contains("line.length_max") && problems.contains("lien"), "{problems}");
    assert_eq!(gateway.instance_view("eu-1").await["quotaPerMinute"], 700);
    assert_eq!(gateway.provision(&TestDevice::of_fleet("sn-1")).await.status, 202);

    std::fs::write(gateway.config_path(), "").unwrap();
    reload(&gateway).await.problem(422, "invalid-configuration");
    std::fs::remove_file(gateway.config_path()).unwrap();
    reload(&gateway).await.problem(422, "invalid-configuration");
    assert_eq!(gateway.instance_view("eu-1").await["quotaPerMinute"], 700);
    // Mended, it is taken over without being asked.
    gateway.edit_config(|config| {
        config.unset("line.length_max").remove_table("lien").remove_table("line");
    });
    takes_over(&gateway, 701).await;
}

#[tokio::test]
async fn an_instance_that_records_refer_to_cannot_be_removed() {
    let (used, unused) = (TestDps::start().await, TestDps::start().await);
    let builder = TestGateway::builder().instance("used", &used).instance("unused", &unused);
    let mut gateway = builder.set("instances.unused.draining", "true").start().await;
    gateway.provision(&TestDevice::of_fleet("sn-1")).await;
    gateway
        .reconfigure(|config| {
            config.remove_table("instances.unused");
        })
        .await;
    let table = gateway.config().clone();
    gateway.edit_config(|config| {
        config
            .remove_table("instances.used")
            .set("instances.third.id_scope", &format!("\"{}\"", unused.id_scope()))
            .set("instances.third.endpoint", &format!("\"{}\"", unused.emulator.url()))
            .set("instances.third.extra_ca_file", "\"ca.pem\"");
    });
    let reply = reload(&gateway).await.problem(422, "invalid-configuration");
    let problems = reply.json["problems"].to_string();
    assert!(problems.contains("instances.used") && problems.contains("draining"), "{problems}");
    gateway.instance_view("used").await;
    gateway.edit_config(|config| *config = table);
    reload(&gateway).await.ok();
}

#[tokio::test]
async fn in_mid_storm_a_raised_quota_lets_more_go_and_a_lowered_one_nobody_and_no_place_is_lost() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.quota_per_minute", "2");
    let mut gateway = builder.set("instances.eu-1.burst", "2").start().await;
    let devices: Vec<_> = (0..12).map(|number| TestDevice::of_fleet(&format!("sn-{number:02}"))).collect();
    for device in &devices {
        assert_eq!(gateway.provision(device).await.status, 202);
    }
    eventually("the quota of two is used", async || dps.registers() == 2).await;

    gateway
        .reconfigure(|config| {
            config.set("instances.eu-1.quota_per_minute", "60").set("instances.eu-1.burst", "1");
        })
        .await;
    eventually("more have gone", async || dps.registers() >= 5).await;
    gateway
        .reconfigure(|config| {
            config.set("instances.eu-1.quota_per_minute", "3");
        })
        .await;
    let gone = gateway.instance_view("eu-1").await["counts"]["registrations"].as_u64().unwrap();
    let gone = usize::try_from(gone).unwrap();
    assert!((5..9).contains(&gone), "one per second, not all at once: {gone}");
    for (number, device) in devices[gone..].iter().enumerate() {
        let reply = gateway.provision(device).await;
        assert_eq!(reply.json["position"], number + 1, "{}", reply.body);
        assert!(reply.retry_after() > 30, "the last minute already holds the new quota: {}", reply.body);
    }
    assert_eq!(gateway.instance_view("eu-1").await["budget"], 0);
    assert_eq!(dps.registers(), gone as u64);

    gateway
        .reconfigure(|config| {
            config.set("instances.eu-1.quota_per_minute", "600");
        })
        .await;
    futures_util::future::join_all(devices.iter().map(|device| gateway.assigned(device))).await;
    let registers = dps.emulator.journal().into_iter().filter(|entry| entry.call == dps_emulator::CallKind::Register);
    let mut order: Vec<String> = registers.map(|entry| entry.registration_id.unwrap().to_string()).collect();
    // The first two left together.
    order[..2].sort();
    let expected: Vec<String> = devices.iter().map(TestDevice::registration_id).collect();
    assert_eq!(order, expected, "one registration each, in the order of the line");
}
