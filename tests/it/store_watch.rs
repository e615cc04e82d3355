//! A store in trouble: what devices are told, what the log says, and how the service ends.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dps_proxy_tests::gateway::Plane;
use dps_proxy_tests::{TestDevice, TestDps, TestGateway, eventually};
use reqwest::Method;
use serde_json::Value;

/// The messages of the lines of this level.
fn messages(gateway: &TestGateway, level: &str) -> Vec<String> {
    let logs = gateway.logs();
    let of_level = logs.iter().filter(|line| line["level"] == level);
    of_level.map(|line| line["message"].as_str().unwrap_or_default().to_owned()).collect()
}

fn last_line(gateway: &TestGateway) -> Value {
    let logs = gateway.logs();
    let stopped = |line: &&Value| line["message"].as_str().unwrap_or_default().starts_with("stopped; ");
    logs.iter().rfind(stopped).expect("a last line").clone()
}

#[tokio::test]
async fn a_read_only_store_in_a_storm_is_one_line_and_the_last_line_says_so() {
    let dps = TestDps::start().await;
    let mut gateway = TestGateway::builder().instance("eu-1", &dps).prepare();
    // No volume of the tests has a tebibyte free: to the store it is full.
    gateway.start_with(&[("DPS_PROXY__STORE__FREE_SPACE_MIN_MIB", "1048576")]).await;
    for number in 0..200 {
        gateway.provision(&TestDevice::of_fleet(&format!("sn-{number}"))).await.problem(503, "store-read-only");
    }
    let metrics = gateway.operator_get("/metrics").await.ok().body;
    assert!(metrics.contains("dps_proxy_store_writable 0"), "{metrics}");
    assert!(
        metrics.contains("dps_proxy_store_commits_refused_total 2"),
        "two hundred and those of the start: {metrics}"
    );
    assert_eq!(gateway.terminate().await.code(), Some(0), "nothing that was acknowledged is missing");
    let errors = messages(&gateway, "ERROR");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("the store takes no writes") && errors[0].contains("make room"), "{errors:?}");
    let last = last_line(&gateway);
    let last = last["message"].as_str().unwrap();
    assert!(last.contains("the store took no writes since") && !last.contains("every answer is on disk"), "{last}");
}

#[tokio::test]
async fn a_store_directory_that_is_replaced_is_noticed_without_traffic_and_no_place_goes_to_a_file_that_is_gone() {
    let dps = TestDps::start().await;
    let mut gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let known = TestDevice::of_fleet("known");
    let hub = gateway.assigned(&known).await.json["assignedHub"].clone();
    let store = gateway.directory().join("store");
    std::fs::remove_dir_all(&store).unwrap();
    std::fs::create_dir(&store).unwrap();
    eventually("it is noticed", async || {
        gateway.operator_get("/metrics").await.body.contains("dps_proxy_store_writable 0")
    })
    .await;
    gateway.provision(&TestDevice::of_fleet("new")).await.problem(503, "store-read-only");
    assert_eq!(gateway.provision(&known).await.ok().json["assignedHub"], hub, "known devices are answered");
    gateway.send(gateway.request(Plane::Operator, Method::GET, "/readyz")).await.ok();
    assert_eq!(gateway.terminate().await.code(), Some(1));
    let errors = messages(&gateway, "ERROR");
    let noticed: Vec<_> = errors.iter().filter(|line| line.contains("the store takes no writes")).collect();
    assert_eq!(noticed.len(), 1, "{errors:?}");
    assert!(noticed[0].contains("removed or replaced") && noticed[0].contains(store.to_str().unwrap()), "{errors:?}");
    assert!(last_line(&gateway)["message"].as_str().unwrap().contains("the store failed since"), "{errors:?}");
    assert!(std::fs::read_dir(&store).unwrap().next().is_none(), "nothing was written into the new directory");
}

#[tokio::test]
async fn what_dps_said_and_could_not_be_written_is_told_at_the_stop() {
    let dps = TestDps::start_with(|config| config.assigning = Duration::from_secs(4)).await;
    let mut gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    assert_eq!(gateway.provision(&TestDevice::of_fleet("sn-1")).await.status, 202);
    eventually("DPS works on it, and that is on disk", async || {
        let view = gateway.operator_get("/v1/registrations/sn-1").await.ok().json;
        view["waitingBecause"].as_str().is_some_and(|why| why.contains("is processing its registration"))
    })
    .await;
    let store = gateway.directory().join("store");
    std::fs::rename(&store, gateway.directory().join("aside")).unwrap();
    eventually("it is noticed", async || {
        gateway.operator_get("/metrics").await.body.contains("dps_proxy_store_writable 0")
    })
    .await;
    // The answer comes, and cannot be written.
    eventually("the write was tried", async || {
        let metrics = gateway.operator_get("/metrics").await.body;
        let refused = metrics.lines().find_map(|line| line.strip_prefix("dps_proxy_store_commits_refused_total "));
        refused.is_some_and(|count| count != "0")
    })
    .await;
    assert_eq!(gateway.terminate().await.code(), Some(1));
    let last = last_line(&gateway);
    assert_eq!((&last["level"], &last["unwritten"]), (&"ERROR".into(), &1.into()), "{last}");
    assert!(last["message"].as_str().unwrap().contains("the next start asks DPS again"), "{last}");

    // With the old directory back, the next start does.
    std::fs::rename(gateway.directory().join("aside"), &store).unwrap();
    gateway.start_again().await;
    assert_eq!(gateway.assigned(&TestDevice::of_fleet("sn-1")).await.json["assignedHub"], dps.hubs()[0]);
    assert_eq!(dps.registers_of("sn-1"), 1, "it is polled again, and not registered again");
}

/// Makes `hanging_disk.c` something to start the service with; `None` where there is no compiler.
fn hanging_disk(directory: &Path) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/hanging_disk.c");
    let library = directory.join("hanging_disk.so");
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    if made.is_ok_and(|status| status.success()) {
        return Some(library);
    }
    assert!(std::env::var_os("CI").is_none(), "cc is missing, and CI must not skip this");
    println!("skipped: needs cc");
    None
}

/// A service whose disk hangs as soon as the file `hang` is in its directory; `None` where that cannot be had.
async fn with_hanging_disk(dps: &TestDps, hangs: &[&str]) -> Option<(TestGateway, PathBuf)> {
    let mut gateway = TestGateway::builder()
        .instance("eu-1", dps)
        .set("store.write_stall_max", "\"1s\"")
        .set("shutdown.readiness_delay", "\"2s\"")
        .set("shutdown.drain_timeout", "\"1s\"")
        .prepare();
    let library = hanging_disk(gateway.directory())?;
    let hang = gateway.directory().join("hang");
    let mut environment = vec![("LD_PRELOAD", library.to_str()?)];
    environment.extend(hangs.iter().map(|variable| (*variable, hang.to_str().expect("a plain path"))));
    gateway.start_with(&environment).await;
    Some((gateway, hang))
}

#[tokio::test]
async fn a_disk_that_stops_to_answer_ends_the_process_and_loses_nothing() {
    let dps = TestDps::start().await;
    let Some((mut gateway, hang)) = with_hanging_disk(&dps, &["HANG_SYNC"]).await else { return };
    let known = TestDevice::of_fleet("known");
    let hub = gateway.assigned(&known).await.json["assignedHub"].clone();
    std::fs::write(&hang, "").unwrap();
    let new = TestDevice::of_fleet("new");
    let (told, ()) = tokio::join!(gateway.provision(&new), async {
        let off = async || gateway.send(gateway.request(Plane::Operator, Method::GET, "/readyz")).await.status == 503;
        eventually("readiness is off", off).await;
    });
    told.problem(503, "store-read-only");
    assert_eq!(gateway.provision(&known).await.ok().json["assignedHub"], hub, "known devices are answered");
    gateway.provision(&TestDevice::of_fleet("later")).await.problem(503, "store-read-only");
    let metrics = gateway.operator_get("/metrics").await.ok().body;
    assert!(metrics.contains("dps_proxy_store_writable 0"), "{metrics}");
    let stall = metrics.lines().find_map(|line| line.strip_prefix("dps_proxy_store_write_stall_seconds "));
    assert!(stall.is_some_and(|seconds| seconds.parse::<f64>().unwrap() >= 1.0), "{metrics}");
    assert_eq!(gateway.ended().await.code(), Some(1));
    let errors = messages(&gateway, "ERROR");
    let told = errors.iter().filter(|line| line.starts_with("the store hangs: no write has made progress"));
    assert_eq!(told.count(), 1, "{errors:?}");
    let last = last_line(&gateway)["message"].to_string();
    assert!(last.contains("the store failed") && last.contains("it stopped because the store hangs"), "{last}");

    // Nobody was told of a place that is not there, and nobody's place is lost.
    std::fs::remove_file(&hang).unwrap();
    gateway.start_again().await;
    assert_eq!(gateway.provision(&known).await.ok().json["assignedHub"], hub);
    gateway.assigned(&new).await;
    assert_eq!(dps.registers_of("new"), 1);
}

#[tokio::test]
async fn a_process_whose_threads_hang_with_the_store_ends_all_the_same() {
    let dps = TestDps::start().await;
    // Whoever asks the store how it is hangs too: its writer, and the tasks that look after it.
    let Some((mut gateway, hang)) = with_hanging_disk(&dps, &["HANG_SYNC", "HANG_LOOK"]).await else { return };
    std::fs::write(&hang, "").unwrap();
    let new = TestDevice::of_fleet("new");
    tokio::select! {
        told = gateway.provision(&new) => { told.problem(503, "store-read-only"); }
        _line = gateway.logged("it is noticed", |line| line["level"] == "ERROR") => {}
    }
    assert_eq!(gateway.ended().await.code(), Some(1));
    let errors = messages(&gateway, "ERROR");
    assert!(errors.iter().any(|line| line.starts_with("the store hangs: ")), "{errors:?}");
}

#[tokio::test]
async fn every_instance_shows_that_its_dispatcher_runs() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    let metrics = gateway.operator_get("/metrics").await.ok().body;
    for line in ["dps_proxy_dispatcher_up{instance=\"eu-1\"} 1", "dps_proxy_task_deaths_total{task=\"dispatcher\"} 0"] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert_eq!(gateway.instance_view("eu-1").await["dispatcherUp"], true);
}
