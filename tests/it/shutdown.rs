//! Stopping, starting again, and what keeps the service from starting.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use dps_proxy_tests::gateway::Plane;
use dps_proxy_tests::{TestDevice, TestDps, TestGateway, eventually};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;

#[tokio::test]
async fn a_service_that_is_told_to_stop_turns_readiness_off_first_and_still_answers() {
    let dps = TestDps::start().await;
    let mut gateway =
        TestGateway::builder().instance("eu-1", &dps).set("shutdown.readiness_delay", "\"2s\"").start().await;
    gateway.signal(Signal::TERM);
    let readiness = || gateway.send(gateway.request(Plane::Operator, Method::GET, "/readyz"));
    eventually("readiness is off", async || readiness().await.status == 503).await;
    let not_ready = readiness().await;
    assert_eq!((&not_ready.json, not_ready.header("retry-after")), (&json!({ "status": "not-ready" }), "1"));
    // A load balancer that has not noticed yet still sends devices here: they get places.
    assert_eq!(gateway.provision(&TestDevice::of_fleet("late")).await.status, 202);
    assert_eq!(gateway.ended().await.code(), Some(0));
    gateway.start_again().await;
    assert_eq!(gateway.assigned(&TestDevice::of_fleet("late")).await.json["assignedHub"], dps.hubs()[0]);
    assert!(dps.registers_of("late") == 1, "what was begun before the stop is polled after it");
}

#[tokio::test]
async fn an_interrupt_stops_the_service_as_sigterm_does() {
    let mut gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    gateway.signal(Signal::INT);
    assert_eq!(gateway.ended().await.code(), Some(0));
    let logs = gateway.logs();
    let stopped = |line: &serde_json::Value| line["message"].as_str().unwrap_or_default().starts_with("stopped;");
    assert!(logs.iter().any(stopped), "{logs:?}");
}

#[tokio::test]
async fn a_full_disk_keeps_new_devices_out_and_known_ones_are_still_answered() {
    let dps = TestDps::start().await;
    let mut gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let known = TestDevice::of_fleet("known");
    let hub = gateway.assigned(&known).await.json["assignedHub"].clone();
    gateway.terminate().await;
    // No volume of the tests has a tebibyte free: to the store it is full.
    gateway.start_with(&[("DPS_PROXY__STORE__FREE_SPACE_MIN_MIB", "1048576")]).await;
    assert_eq!(gateway.provision(&known).await.ok().json["assignedHub"], hub);
    gateway.backend_get("/v1/devices/known/assignment").await.ok();
    for id in ["new-1", "new-2"] {
        gateway.provision(&TestDevice::of_fleet(id)).await.problem(503, "store-read-only");
    }
    gateway.operator_post("/v1/registrations/known/block", json!({})).await.problem(503, "store-read-only");
    gateway.send(gateway.request(Plane::Operator, Method::GET, "/readyz")).await.ok();
    let metrics = gateway.operator_get("/metrics").await.ok().body;
    assert!(metrics.contains("dps_proxy_store_writable 0"), "{metrics}");
    assert_eq!(dps.registers(), 1, "nobody without a durable place is registered");
    gateway.terminate().await;
    // With room again, everybody gets in.
    gateway.start_again().await;
    gateway.assigned(&TestDevice::of_fleet("new-1")).await;
    assert!(gateway.operator_get("/metrics").await.ok().body.contains("dps_proxy_store_writable 1"));
}

#[tokio::test]
async fn a_held_request_is_answered_when_the_service_stops_and_the_place_is_found_again() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.quota_per_minute", "1");
    let mut gateway = builder.start().await;
    gateway.assigned(&TestDevice::of_fleet("first")).await;
    let (second, third) = (TestDevice::of_fleet("second"), TestDevice::of_fleet("third"));
    gateway.provision(&second).await;
    let before = gateway.provision(&third).await.json;
    let held = gateway.ask(&third).wait(25);
    let (held, ()) = tokio::join!(held.send(), async {
        let held = async || gateway.operator_get("/metrics").await.body.contains("dps_proxy_requests_parked 1");
        eventually("the request is held", held).await;
        gateway.signal(Signal::TERM);
    });
    assert_eq!((held.status, &held.json["position"]), (202, &json!(2)), "{}", held.body);
    assert_eq!(gateway.ended().await.code(), Some(0));

    gateway.start_again().await;
    let after = gateway.provision(&third).await;
    assert_eq!(after.json["position"], before["position"]);
    let appointment =
        |value: &serde_json::Value| value["appointment"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let later = appointment(&after.json).duration_since(appointment(&before)).as_secs();
    assert!((-3..=6).contains(&later), "the appointment moved by {later} s");
    assert_eq!(gateway.provision(&second).await.json["position"], 1);
    gateway.provision(&TestDevice::of_fleet("first")).await.ok();
    assert_eq!(dps.registers(), 1);
}

#[tokio::test]
async fn places_and_assignments_outlive_a_crash_and_known_devices_need_no_dps() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.quota_per_minute", "1");
    let mut gateway = builder.start().await;
    let known = TestDevice::of_fleet("known");
    let hub = gateway.assigned(&known).await.json;
    let waiting: Vec<_> = (0..5).map(|number| TestDevice::of_fleet(&format!("sn-{number}"))).collect();
    for device in &waiting {
        assert_eq!(gateway.provision(device).await.status, 202);
    }
    gateway.kill9();
    dps.emulator.pause().await;
    gateway.start_again().await;
    assert_eq!(gateway.provision(&known).await.ok().json, hub);
    for (number, device) in waiting.iter().enumerate() {
        assert_eq!(gateway.provision(device).await.json["position"], number + 1);
    }
    let view = gateway.instance_view("eu-1").await;
    assert_eq!(
        (&view["lineLength"], &view["budget"], &view["registeredCount"]),
        (&json!(5), &json!(0), &json!(6)),
        "{view}"
    );
}

#[tokio::test]
async fn a_second_process_on_the_same_store_is_refused_and_the_first_goes_on() {
    let dps = TestDps::start().await;
    let first = TestGateway::builder().instance("eu-1", &dps).start().await;
    let store = first.directory().join("store");
    let mut second = TestGateway::builder().instance("eu-1", &dps).set("store.path", &format!("{store:?}")).prepare();
    let (code, log) = second.run_to_end().await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains(store.to_str().unwrap()), "the store is named: {log}");
    assert!(log.contains("process"), "plain words: {log}");
    first.assigned(&TestDevice::of_fleet("sn-1")).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_its_key() {
    let dps = TestDps::start().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut gateway =
        TestGateway::builder().instance("eu-1", &dps).set("backend.listen", &format!("\"{address}\"")).prepare();
    let (code, log) = gateway.run_to_end().await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("backend.listen") && log.contains(&address), "{log}");
}

#[tokio::test]
async fn a_store_that_cannot_be_written_is_named() {
    let dps = TestDps::start().await;
    let mut gateway = TestGateway::builder().instance("eu-1", &dps).set("store.path", "\"a-file/store\"").prepare();
    std::fs::write(gateway.directory().join("a-file"), "").unwrap();
    let (code, log) = gateway.run_to_end().await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("a-file"), "{log}");
}

#[tokio::test]
async fn what_the_store_keeps_is_for_its_owner_alone() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    gateway.provision(&TestDevice::of_fleet("sn-1")).await;
    let mode = std::fs::metadata(gateway.directory().join("store")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "individual keys are in it: {mode:o}");
}

#[tokio::test]
async fn stopping_is_bounded_even_if_dps_never_finishes() {
    let dps = TestDps::start().await;
    let mut gateway =
        TestGateway::builder().instance("eu-1", &dps).set("shutdown.drain_timeout", "\"1s\"").start().await;
    dps.emulator
        .add_fault(dps_emulator::Fault::new(dps_emulator::FaultAction::Delay { delay: Duration::from_secs(20) }));
    gateway.provision(&TestDevice::of_fleet("sn-1")).await;
    eventually("it was sent", async || gateway.instance_view("eu-1").await["counts"]["registrations"] == 1).await;
    let began = std::time::Instant::now();
    assert_eq!(gateway.terminate().await.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
