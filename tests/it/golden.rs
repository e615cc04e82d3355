//! The golden messages of the three planes are what the service sends. `UPDATE_FIXTURES=1` writes those of backends and operators anew.

use std::path::Path;

use dps_emulator::{Fault, FaultAction};
use dps_proxy_tests::device::AUDIENCE;
use dps_proxy_tests::gateway::{Plane, READ_TOKEN};
use dps_proxy_tests::{Reply, TestDevice, TestDps, TestGateway, eventually_some};
use reqwest::Method;
use serde_json::{Value, json};

/// Members whose text is part of the contract.
const STABLE: [&str; 10] =
    ["status", "code", "type", "title", "substatus", "reason", "state", "breaker", "limitState", "class"];
/// Lists of which the first item stands for all: how many there are depends on the moment.
const OF_ANY_LENGTH: [&str; 1] = ["timeline"];

/// A value with everything that differs from run to run replaced by its type.
fn shape(name: &str, value: &Value) -> Value {
    match value {
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), shape(name, value))).collect(),
        Value::Array(items) => {
            let most = if OF_ANY_LENGTH.contains(&name) { 1 } else { usize::MAX };
            items.iter().take(most).map(|item| shape(name, item)).collect()
        }
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
        let exact = ["content-type", "cache-control", "www-authenticate", "allow", "vary"].contains(&name.as_str());
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

/// Compares an answer with its golden message, or writes that.
fn golden(file: &str, reply: &Reply) {
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        let told = |name: &&str| !["content-length", "date"].contains(name);
        let headers = reply.headers.keys().map(|name| name.as_str()).filter(told);
        let headers: Value = headers.map(|name| (name.to_owned(), json!(reply.header(name)))).collect();
        let message = json!({
            "status": reply.status, "headers": headers, "body": reply.json,
            "provenance": "an answer of the running service, written and compared by shape by tests/it/golden.rs",
        });
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/wire").join(file);
        std::fs::write(path, format!("{message:#}\n")).unwrap();
    }
    compare(file, reply);
}

/// A gateway with a device in each of several states: `first` is assigned, `second` waits, `refused` is, `listed` never came, and
/// `unknown` is blocked and nothing else.
async fn with_devices() -> (TestGateway, TestDps) {
    let dps = TestDps::start_with(|config| config.groups[0].payload = Some(json!({ "site": "7" }))).await;
    let builder = TestGateway::builder()
        .instance("eu-1", &dps)
        .set("instances.eu-1.quota_per_minute", "2")
        .set("instances.eu-1.burst", "2");
    let gateway = builder.start().await;
    let fail = FaultAction::Fail { error_code: 400_208, message: "no hub".to_owned() };
    dps.emulator.add_fault(Fault::new(fail).for_device("refused"));
    let [first, refused, second] = ["FIRST", "refused", "second"].map(TestDevice::of_fleet);
    gateway.assigned(&first).await;
    let refusal = eventually_some("DPS refuses", async || {
        let reply = gateway.ask(&refused).wait(10).send().await;
        (reply.status != 202).then_some(reply)
    });
    assert_eq!(refusal.await.status, 422);
    assert_eq!(gateway.ask(&second).with("payload", json!({ "model": "th-1" })).send().await.status, 202);
    gateway.ask(&first).anonymous().send().await.problem(401, "unauthorized");
    (gateway, dps)
}

#[tokio::test]
async fn the_golden_messages_are_what_backends_get() {
    let (gateway, dps) = with_devices().await;
    let mut events = gateway.changes(Some("0123456789abcdef-7")).await;
    let post = async |path: &str, body: Value| gateway.send(gateway.backend(Method::POST, path).json(&body)).await;
    golden("backend-200-assignment.json", &gateway.backend_get("/v1/devices/first/assignment").await);
    golden("backend-404-refused.json", &gateway.backend_get("/v1/devices/refused/assignment").await);
    golden("backend-404-differs-in-case.json", &gateway.backend_get("/v1/devices/First/assignment").await);
    golden("backend-404-in-line.json", &gateway.backend_get("/v1/devices/second/assignment").await);
    let ids = json!({ "deviceIds": ["first", "refused", "First", "second", "never"] });
    golden("backend-200-lookup.json", &post("/v1/assignments/lookup", ids).await);
    let ids: Vec<String> = (0..1001).map(|number| number.to_string()).collect();
    golden("backend-400-too-many-ids.json", &post("/v1/assignments/lookup", json!({ "deviceIds": ids })).await);
    golden("backend-200-assignments.json", &gateway.backend_get("/v1/assignments?limit=1").await);
    golden("backend-400-invalid-query.json", &gateway.backend_get("/v1/assignments?limit=0").await);
    golden("backend-405-method-not-allowed.json", &post("/v1/assignments", json!({})).await);
    let reason = json!({ "reason": "hub-404001" });
    golden("backend-200-invalidate.json", &post("/v1/devices/first/assignment/invalidate", reason.clone()).await);
    let hub = format!("/v1/hubs/{}/invalidate", dps.hubs()[0]);
    golden("backend-200-invalidate-hub.json", &post(&hub, reason).await);
    golden(
        "backend-401-unauthorized.json",
        &gateway.send(gateway.request(Plane::Backend, Method::GET, "/v1/assignments")).await,
    );
    for kind in ["reset", "assignment"] {
        let data = events.next_of(kind).await.data;
        let reply = Reply { status: 200, headers: Default::default(), body: data.to_string(), json: data };
        golden(&format!("backend-event-{kind}.json"), &reply);
    }
}

#[tokio::test]
async fn the_golden_messages_are_what_operators_get() {
    let (mut gateway, _dps) = with_devices().await;
    let get = async |gateway: &TestGateway, file: &str, path: &str| golden(file, &gateway.operator_get(path).await);
    let csv = "hardwareId,enrollment,batch\nlisted,fleet,b-1\n-,fleet,\n";
    golden("operator-200-import.json", &gateway.import_csv(csv).await);
    golden("operator-400-wrong-header.json", &gateway.import_csv("device\nsn-1\n").await);
    let act = async |gateway: &TestGateway, path: &str, body: Value| gateway.operator_post(path, body).await;
    golden(
        "operator-200-block.json",
        &act(&gateway, "/v1/registrations/unknown/block", json!({ "reason": "stolen" })).await,
    );
    for (file, path) in [
        ("operator-200-healthz.json", "/healthz"),
        ("operator-200-readyz.json", "/readyz"),
        ("operator-200-instances.json", "/v1/instances"),
        ("operator-200-refusals.json", "/v1/refusals"),
        ("operator-200-registrations.json", "/v1/registrations?limit=4"),
        ("operator-200-registration-assigned.json", "/v1/registrations/first"),
        ("operator-200-registration-listed.json", "/v1/registrations/listed"),
        ("operator-200-registration-refused.json", "/v1/registrations/refused"),
        ("operator-200-registration-waiting.json", "/v1/registrations/second"),
        ("operator-404-unknown-registration.json", "/v1/registrations/never"),
    ] {
        get(&gateway, file, path).await;
    }
    golden("operator-409-not-now.json", &act(&gateway, "/v1/registrations/first/expedite", json!({})).await);
    golden("operator-400-invalid-request.json", &act(&gateway, "/v1/registrations/first/move", json!({})).await);
    golden("operator-200-expedite.json", &act(&gateway, "/v1/registrations/second/expedite", json!({})).await);
    let read_only = gateway.request(Plane::Operator, Method::POST, "/v1/config/reload").bearer_auth(READ_TOKEN);
    golden("operator-403-read-only-token.json", &gateway.send(read_only).await);
    golden("operator-200-reload.json", &gateway.operator_post("/v1/config/reload", json!({})).await);
    let retired = gateway.operator(Method::DELETE, "/v1/registrations/first");
    golden("operator-200-retired.json", &gateway.send(retired).await);
    gateway.edit_config(|config| {
        config.set("instances.eu-1.quota_per_minute", "0");
    });
    golden("operator-422-invalid-configuration.json", &act(&gateway, "/v1/config/reload", json!({})).await);
}
