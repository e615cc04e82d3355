//! 403, 422, 429 and 503.

use dps_emulator::{Fault, FaultAction, GroupConfig};
use dps_proxy_tests::device::FLEET_KEY;
use dps_proxy_tests::gateway::Plane;
use dps_proxy_tests::{Reply, TestDevice, TestDps, TestGateway, eventually_some, raw};
use reqwest::Method;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// Asks until DPS's refusal is there.
async fn refused(gateway: &TestGateway, device: &TestDevice) -> Reply {
    let reply = eventually_some("DPS refuses", async || {
        let reply = gateway.ask(device).wait(5).send().await;
        (reply.status != 202).then_some(reply)
    });
    reply.await.problem(422, "refused-by-dps")
}

#[tokio::test]
async fn a_blocked_or_retired_device_that_proves_itself_is_403() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let device = TestDevice::of_fleet("sn-1");
    let hub = gateway.assigned(&device).await.json;

    gateway.operator_post("/v1/registrations/sn-1/block", json!({ "reason": "stolen" })).await.ok();
    let reply = gateway.provision(&device).await.problem(403, "blocked");
    assert!(!reply.body.contains("stolen"), "the operator's words are not the device's business: {}", reply.body);
    gateway.operator_post("/v1/registrations/sn-1/unblock", json!({})).await.ok();
    assert_eq!(gateway.provision(&device).await.ok().json, hub);

    gateway.send(gateway.operator(Method::DELETE, "/v1/registrations/sn-1")).await.ok();
    gateway.provision(&device).await.problem(403, "retired");
    assert_eq!(dps.registers(), 1);
}

#[tokio::test]
async fn a_refusal_by_dps_is_422_with_its_code_and_is_remembered_without_further_calls() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let fail = FaultAction::Fail { error_code: 400_208, message: "no hub is linked".to_owned() };
    dps.emulator.add_fault(Fault::new(fail).for_device("sn-1"));
    let device = TestDevice::of_fleet("SN-1");

    let reply = refused(&gateway, &device).await;
    assert_eq!(reply.json["upstream"]["errorCode"], 400_208, "{}", reply.body);
    assert!(reply.json["upstream"]["trackingId"].as_str().is_some_and(|id| id.len() == 36), "{}", reply.body);
    assert_eq!(reply.json["upstream"]["instance"], "eu-1");
    assert!(reply.detail().contains("link a hub") && reply.detail().contains("no hub is linked"), "{}", reply.detail());

    let requests = dps.emulator.stats().requests;
    for _ in 0..10 {
        gateway.ask(&device).wait(1).send().await.problem(422, "refused-by-dps");
    }
    assert_eq!(dps.emulator.stats().requests, requests, "nobody asks DPS again");

    // An operator mended the cause, and says so.
    dps.emulator.clear_faults();
    gateway.operator_post("/v1/registrations/sn-1/retry", json!({})).await.ok();
    assert_eq!(gateway.assigned(&device).await.json["assignedHub"], dps.hubs()[0]);
    assert_eq!(dps.registers_of("sn-1"), 2);
}

/// A device refused because the enrollment group had another key, which it has no more.
async fn refused_for_a_wrong_key() -> (TestDps, TestGateway, TestDevice) {
    let dps = TestDps::start_with(|config| {
        config.groups = vec![GroupConfig::new("fleet", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")];
    })
    .await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let device = TestDevice::of_fleet("sn-1");
    let reply = refused(&gateway, &device).await;
    assert_eq!(
        (&reply.json["upstream"]["errorCode"], &reply.json["upstream"]["reason"]),
        (&json!(401_002), &json!("unauthorized-by-dps"))
    );
    assert!(reply.json["upstream"]["trackingId"].is_string(), "{}", reply.body);
    assert!(reply.detail().contains("key"), "{}", reply.detail());
    dps.emulator.put_group(&GroupConfig::new("fleet", FLEET_KEY)).unwrap();
    (dps, gateway, device)
}

#[tokio::test]
async fn a_refusal_is_dropped_when_a_changed_configuration_is_taken_over() {
    let (dps, mut gateway, device) = refused_for_a_wrong_key().await;
    gateway
        .reconfigure(|config| {
            config.set("registration.refusal_ttl", "\"2h\"");
        })
        .await;
    assert_eq!(gateway.assigned(&device).await.json["assignedHub"], dps.hubs()[0]);
}

#[tokio::test]
async fn a_refusal_is_dropped_by_a_reload_of_an_unchanged_configuration() {
    let (dps, mut gateway, device) = refused_for_a_wrong_key().await;
    gateway.reconfigure(|_| {}).await;
    assert_eq!(gateway.assigned(&device).await.json["assignedHub"], dps.hubs()[0]);
}

#[tokio::test]
async fn a_refusal_ends_by_itself() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).set("registration.refusal_ttl", "\"1s\"").start().await;
    dps.emulator.add_fault(Fault::new(FaultAction::Disabled).times(1));
    let device = TestDevice::of_fleet("sn-1");
    refused(&gateway, &device).await;
    let back = eventually_some("the refusal is over", async || {
        let reply = gateway.provision(&device).await;
        (reply.status != 422).then_some(reply)
    });
    assert_eq!(back.await.status, 202);
}

#[tokio::test]
async fn one_device_that_hammers_is_429_and_the_others_are_not() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("device.repeat_burst", "3");
    let gateway = builder.set("device.repeat_per", "\"30s\"").start().await;
    let (hammer, calm) = (TestDevice::of_fleet("hammer"), TestDevice::of_fleet("calm"));
    for _ in 0..3 {
        assert_eq!(gateway.provision(&hammer).await.status, 202);
    }
    let reply = gateway.provision(&hammer).await.problem(429, "too-fast");
    assert!((25..=30).contains(&reply.retry_after()), "{}", reply.body);
    assert!(reply.detail().contains("device.repeat_per"), "{}", reply.detail());
    assert_eq!(gateway.provision(&calm).await.status, 202);
    // Who cannot prove to be the device cannot use its requests up either.
    let forger = TestDevice::of_group("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "victim");
    for _ in 0..5 {
        gateway.provision(&forger).await.problem(401, "unauthorized");
    }
    assert_eq!(gateway.provision(&TestDevice::of_fleet("victim")).await.status, 202);
}

#[tokio::test]
async fn a_full_line_is_503_and_each_device_is_told_when_there_should_be_room_for_it() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.quota_per_minute", "1");
    let gateway = builder.set("line.length_max", "2").start().await;
    let known = TestDevice::of_fleet("first");
    gateway.assigned(&known).await;
    let waiting = [TestDevice::of_fleet("second"), TestDevice::of_fleet("third")];
    for device in &waiting {
        assert_eq!(gateway.provision(device).await.status, 202);
    }
    let mut waits = Vec::new();
    for number in 0..8 {
        let reply = gateway.provision(&TestDevice::of_fleet(&format!("more-{number}"))).await.problem(503, "line-full");
        assert!(reply.detail().contains('2') && reply.detail().contains("length_max"), "{}", reply.detail());
        waits.push(reply.retry_after());
    }
    // One place comes free a minute.
    assert!(waits.windows(2).all(|pair| pair[0] + 30 < pair[1]), "{waits:?}");
    // Who has a place keeps it, who has a hub is answered, and who was turned away left no trace.
    assert_eq!(gateway.provision(&waiting[1]).await.json["position"], 2);
    gateway.provision(&known).await.ok();
    gateway.operator_get("/v1/registrations/more-0").await.problem(404, "unknown-registration");
}

#[tokio::test]
async fn no_room_at_any_instance_is_503() {
    let (small, draining) = (TestDps::start().await, TestDps::start().await);
    let builder = TestGateway::builder().instance("small", &small).instance("draining", &draining);
    let builder = builder.set("instances.small.capacity", "11").set("instances.small.external_count", "10");
    let mut gateway = builder.set("instances.draining.draining", "true").start().await;
    let (first, second) = (TestDevice::of_fleet("first"), TestDevice::of_fleet("second"));
    assert_eq!(gateway.assigned(&first).await.json["assignedHub"], small.hubs()[0]);
    let reply = gateway.provision(&second).await.problem(503, "no-room");
    // What to change: the key, with its number and its instance.
    for told in
        ["instance small holds 11 registrations", "instances.small.capacity allows 11", "instances.draining.draining"]
    {
        assert!(reply.detail().contains(told), "{}", reply.detail());
    }
    gateway.provision(&first).await.ok();
    gateway
        .reconfigure(|config| {
            config.set("instances.small.capacity", "12");
        })
        .await;
    assert_eq!(gateway.assigned(&second).await.json["assignedHub"], small.hubs()[0]);
    assert_eq!(draining.registers(), 0);
}

#[tokio::test]
async fn a_request_under_way_while_the_service_stops_is_answered_503_if_it_is_new_and_200_if_it_is_known() {
    let dps = TestDps::start().await;
    let mut gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let (known, new) = (TestDevice::of_fleet("known"), TestDevice::of_fleet("new"));
    gateway.assigned(&known).await;
    let mut streams = Vec::new();
    for device in [&known, &new] {
        let body = json!({ "hardwareId": device.hardware_id }).to_string();
        let request =
            raw::provision_request(&format!("Authorization: {}\r\n", device.usual_credential()), body.as_bytes());
        let mut stream = TcpStream::connect(gateway.address(Plane::Device)).await.unwrap();
        let (begin, rest) = request.split_at(request.len() - 3);
        stream.write_all(begin).await.unwrap();
        streams.push((stream, rest.to_vec()));
    }
    // Both requests are with their handlers when a later one has been answered on the same worker.
    gateway.provision(&known).await.ok();
    gateway.signal(rustix::process::Signal::TERM);
    eventually_some("the listeners are closed", async || {
        TcpStream::connect(gateway.address(Plane::Device)).await.err()
    })
    .await;
    let mut replies = Vec::new();
    for (mut stream, rest) in streams {
        stream.write_all(&rest).await.unwrap();
        replies.push(raw::read_to_end(&mut stream).await);
    }
    assert_eq!(replies[0].status(), 200, "{}", replies[0].text);
    assert_eq!(
        (replies[1].status(), &replies[1].json()["code"]),
        (503, &json!("shutting-down")),
        "{}",
        replies[1].text
    );
    assert!(replies[1].header("retry-after").parse::<u64>().unwrap() >= 1);
    assert_eq!(gateway.ended().await.code(), Some(0));
}
