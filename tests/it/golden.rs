//! The golden messages of the device plane are what the service sends.

use std::path::Path;

use dps_emulator::{Fault, FaultAction};
use dps_proxy_tests::device::AUDIENCE;
use dps_proxy_tests::gateway::Plane;
use dps_proxy_tests::{Reply, TestDevice, TestDps, TestGateway, eventually_some};
use reqwest::Method;
use serde_json::{Value, json};

/// Members whose text is part of the contract.
const STABLE: [&str; 6] = ["status", "code", "type", "title", "substatus", "reason"];

/// A value with everything that differs from run to run replaced by its type.
fn shape(name: &str, value: &Value) -> Value {
    match value {
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), shape(name, value))).collect(),
        Value::Array(items) => items.iter().map(|item| shape(name, item)).collect(),
        stable if STABLE.contains(&name) => stable.clone(),
        Value::String(text) if text.parse::<jiff::Timestamp>().is_ok() => json!("a moment"),
        Value::String(_) => json!("a text"),
        Value::Number(_) => json!("a number"),
        Value::Bool(_) | Value::Null => value.clone(),
    }
}

fn compare(file: &str, reply: &Reply) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/wire").join(file);
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(golden["status"], reply.status, "{file}: {}", reply.body);
    assert_eq!(shape("", &golden["body"]), shape("", &reply.json), "{file}: {}", reply.body);
    let headers = golden["headers"].as_object().unwrap();
    for (name, value) in headers {
        let exact = ["content-type", "cache-control", "www-authenticate"].contains(&name.as_str());
        assert!(
            if exact { reply.header(name) == value.as_str().unwrap() } else { !reply.header(name).is_empty() },
            "{file}: {name}: {:?}",
            reply.headers
        );
    }
    let expected = |name: &str| headers.contains_key(name) || ["content-length", "date"].contains(&name);
    let unexpected: Vec<_> = reply.headers.keys().filter(|name| !expected(name.as_str())).collect();
    assert!(unexpected.is_empty(), "{file}: {unexpected:?}");
}

#[tokio::test]
async fn the_golden_messages_are_what_devices_get() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder()
        .instance("eu-1", &dps)
        .set("instances.eu-1.quota_per_minute", "2")
        .set("instances.eu-1.burst", "2");
    let builder =
        builder.set("line.length_max", "1").set("device.repeat_burst", "4").set("device.repeat_per", "\"30s\"");
    let gateway = builder.start().await;
    let fail = FaultAction::Fail { error_code: 400_208, message: "no hub".to_owned() };
    dps.emulator.add_fault(Fault::new(fail).for_device("refused"));
    let devices = ["first", "refused", "second", "third", "blocked"].map(TestDevice::of_fleet);
    let [first, refused, second, third, blocked] = &devices;

    gateway.assigned(first).await;
    compare("device-200-assigned.json", &gateway.provision(first).await);
    let refusal = eventually_some("DPS refuses", async || {
        let reply = gateway.ask(refused).wait(10).send().await;
        (reply.status != 202).then_some(reply)
    });
    compare("device-422-refused-by-dps.json", &refusal.await);
    compare("device-202-queued.json", &gateway.provision(second).await);
    compare("device-503-line-full.json", &gateway.provision(third).await);
    for _ in 0..3 {
        gateway.provision(second).await;
    }
    compare("device-429-too-fast.json", &gateway.provision(second).await);
    gateway.import_csv("hardwareId,enrollment\nblocked,fleet\n").await.ok();
    gateway.operator_post("/v1/registrations/blocked/block", json!({})).await.ok();
    compare("device-403-blocked.json", &gateway.provision(blocked).await);
    compare("device-401-unauthorized.json", &gateway.ask(first).anonymous().send().await);
    let expired = first.credential(AUDIENCE, 1_000_000_000);
    compare("device-401-credential-expired.json", &gateway.ask(first).authorization(expired).send().await);
    let too_far_ahead = first.credential(AUDIENCE, 2_147_483_647);
    let reply = gateway.ask(first).authorization(too_far_ahead).send().await;
    compare("device-401-credential-too-far-ahead.json", &reply);
    compare("device-400-invalid-hardware-id.json", &gateway.provision(&TestDevice::of_fleet("-a")).await);
    compare("device-200-time.json", &gateway.send(gateway.request(Plane::Device, Method::GET, "/v1/time")).await);
}
