//! A store that an earlier release has written is taken over, and nobody loses its place or its hub.

use std::path::Path;

use dps_emulator::{CallKind, HubConfig};
use dps_proxy_tests::{ConfigText, TestDevice, TestDps, TestGateway};
use serde_json::Value;

/// Of the instance in `fixtures/store-schema-1`.
const ID_SCOPE: &str = "0ne005EED01";
const HUB: &str = "hub-seed.azure-devices.net";

/// Who waits in that store, in the order in which they go: an operator has expedited the first one, and the last one asks for a new registration.
const WAITING: [&str; 5] = ["waits-3", "waits-1", "waits-2", "waits-4", "renews"];

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

async fn gateway(dps: &TestDps) -> TestGateway {
    let mut gateway =
        TestGateway::builder().instance("eu-1", dps).set("instances.eu-1.quota_per_minute", "2").prepare();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/store-schema-1");
    copy(&fixture, &gateway.directory().join("store"));
    gateway.start_again().await;
    gateway
}

async fn position(gateway: &TestGateway, device: &str) -> u64 {
    let ask = TestDevice::of_fleet(device);
    let ask = gateway.ask(&ask).with("reprovision", Value::Bool(device == "renews"));
    let reply = ask.send().await;
    assert_eq!(reply.status, 202, "{device}: {}", reply.body);
    reply.json["position"].as_u64().unwrap()
}

async fn assert_all_wait_in_order(gateway: &TestGateway, order: &[&str]) {
    for (before, device) in order.iter().enumerate() {
        assert_eq!(position(gateway, device).await, before as u64 + 1, "{device}");
    }
}

#[tokio::test]
async fn a_store_of_schema_1_keeps_every_hub_and_every_place_and_numbers_on_behind_them() {
    let dps = TestDps::start_with(|config| {
        config.id_scope = ID_SCOPE.to_owned();
        config.hubs = vec![HubConfig::new(HUB)];
    })
    .await;
    let mut gateway = gateway(&dps).await;
    let known = gateway.provision(&TestDevice::of_fleet("known")).await.ok();
    assert_eq!(known.json["assignedHub"], HUB);
    gateway.provision(&TestDevice::of_fleet("blocked")).await.problem(403, "blocked");
    let listed = gateway.operator_get("/v1/registrations/listed").await.ok();
    assert_eq!(listed.json["listed"]["batch"], "delivery-7");
    assert_all_wait_in_order(&gateway, &WAITING).await;
    // Some records are written anew, the others stay as they were.
    let spoken = TestDevice::of_fleet("waits-2");
    assert_eq!(gateway.ask(&spoken).with("payload", serde_json::json!({"model": "th-1"})).send().await.status, 202);
    let mut order: Vec<&str> = WAITING.into_iter().chain(["new"]).collect();
    assert_eq!(position(&gateway, "new").await, 6, "behind those who were there before");
    assert_all_wait_in_order(&gateway, &order).await;
    gateway.kill9();
    gateway.start_again().await;
    assert_all_wait_in_order(&gateway, &order).await;
    assert_eq!(dps.registers(), 0, "the quota of this minute was used by the earlier release");
    let faster = |config: &mut ConfigText| {
        config.set("instances.eu-1.quota_per_minute", "1000");
    };
    gateway.reconfigure(faster).await;
    for device in &order {
        assert_eq!(gateway.assigned(&TestDevice::of_fleet(device)).await.json["assignedHub"], HUB);
    }
    let journal = dps.emulator.journal();
    let registers = journal.iter().filter(|entry| entry.call == CallKind::Register);
    let mut went: Vec<&str> = registers.filter_map(|entry| entry.registration_id.as_deref()).collect();
    // Each once. Calls that leave within one burst overtake each other on the way.
    went.sort_unstable();
    order.sort_unstable();
    assert_eq!(went, order);
    gateway.terminate().await;
}
