//! What a device is told: its hub, its place, the time.

use std::time::{Duration, Instant};

use dps_proxy_tests::gateway::Plane;
use dps_proxy_tests::{Recorder, TestDevice, TestDps, TestGateway};
use reqwest::Method;
use serde_json::{Value, json};

/// RFC 3339 in UTC.
fn moment(value: &Value) -> jiff::Timestamp {
    let text = value.as_str().unwrap_or_else(|| panic!("no moment: {value}"));
    assert!(text.ends_with('Z'), "{text}");
    text.parse().unwrap()
}

#[tokio::test]
async fn a_place_comes_with_the_moment_to_come_back_and_coming_back_then_gives_the_hub() {
    let dps = TestDps::start().await;
    // What registering is assumed to take is left at its default here: nobody has tuned it to this machine.
    let gateway = TestGateway::builder()
        .instance("eu-1", &dps)
        .unset("line.expected_registration")
        .tls(Plane::Device)
        .start()
        .await;
    let device = TestDevice::of_fleet("SN-007-888-abc-mac-a1-b2-c3-d4-e5-f6");

    let queued = gateway.provision(&device).await;
    assert_eq!(queued.status, 202, "{}", queued.body);
    assert_eq!(queued.header("cache-control"), "no-store");
    assert_eq!(queued.header("content-type"), "application/json");
    assert_eq!(queued.json["status"], "queued");
    assert!(queued.json["position"].is_u64(), "{}", queued.body);
    let wait = queued.retry_after();
    let ahead = moment(&queued.json["appointment"]).duration_since(jiff::Timestamp::now()).as_secs_f64();
    assert!(
        ahead <= wait as f64,
        "the appointment ({ahead} s ahead) is over when the device comes back after {wait} s"
    );

    // What the device does by itself between its two requests.
    tokio::time::sleep(Duration::from_secs(wait)).await;
    let assigned = gateway.provision(&device).await.ok();
    assert!(assigned.body.len() <= 512, "{} bytes", assigned.body.len());
    assert_eq!(assigned.header("cache-control"), "no-store");
    assert_eq!(assigned.header("retry-after"), "");
    assert_eq!(assigned.json["status"], "assigned");
    assert_eq!(assigned.json["registrationId"], device.registration_id(), "IDs are folded");
    assert_eq!(assigned.json["deviceId"], device.registration_id());
    assert_eq!(assigned.json["assignedHub"], dps.hubs()[0]);
    assert_eq!(assigned.json["substatus"], "initialAssignment");
    assert!(moment(&assigned.json["assignedAt"]) <= jiff::Timestamp::now());
    assert_eq!(assigned.json.get("credential"), None, "the default hands out none");

    // Another spelling of the same ID is the same device, and a known device costs DPS nothing.
    let other_spelling = TestDevice { hardware_id: device.hardware_id.to_uppercase(), ..device.clone() };
    assert_eq!(gateway.provision(&other_spelling).await.ok().json, assigned.json);
    assert_eq!(dps.registers(), 1);
}

#[tokio::test]
async fn each_device_of_a_storm_has_an_appointment_of_its_own_and_comes_back_once() {
    const DEVICES: usize = 24;
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.quota_per_minute", "600");
    let builder = builder.set("instances.eu-1.burst", "1").unset("line.expected_registration").unset("line.jitter_max");
    let gateway = builder.start().await;
    let devices: Vec<TestDevice> =
        (0..DEVICES).map(|number| TestDevice::of_fleet(&format!("storm-{number}"))).collect();
    let outcomes = futures_util::future::join_all(devices.iter().map(async |device| {
        let first = gateway.provision(device).await;
        assert_eq!(first.status, 202, "{}", first.body);
        let (mut reply, mut requests) = (first.clone(), 1);
        while reply.status == 202 {
            tokio::time::sleep(Duration::from_secs(reply.retry_after())).await;
            reply = gateway.provision(device).await;
            requests += 1;
        }
        assert_eq!(reply.status, 200, "{}", reply.body);
        (first, requests)
    }))
    .await;
    let requests: usize = outcomes.iter().map(|(_, requests)| requests).sum();
    // 2.05 on average, over so few devices: one may come a third time.
    assert!(requests <= 2 * DEVICES + 1, "{requests} requests of {DEVICES} devices");
    let mut appointments: Vec<_> = outcomes.iter().map(|(first, _)| first.json["appointment"].to_string()).collect();
    appointments.sort();
    appointments.dedup();
    assert!(appointments.len() > DEVICES / 2, "appointments are personal: {appointments:?}");
    assert_eq!(dps.registers(), DEVICES as u64, "one registration per device");
}

#[tokio::test]
async fn prefer_wait_holds_the_request_until_the_hub_is_known_but_no_longer_than_asked() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.quota_per_minute", "1");
    let gateway = builder.set("device.wait_max", "\"20s\"").start().await;
    let (first, second) = (TestDevice::of_fleet("wait-1"), TestDevice::of_fleet("wait-2"));

    let assigned = gateway.ask(&first).wait(20).send().await.ok();
    assert_eq!(assigned.json["assignedHub"], dps.hubs()[0]);
    assert_eq!(assigned.header("preference-applied"), "wait=20");

    // The quota is spent for a minute.
    let began = Instant::now();
    let queued = gateway.ask(&second).wait(1).send().await;
    assert_eq!(queued.status, 202, "{}", queued.body);
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(queued.header("preference-applied"), "wait=1");
    assert_eq!(queued.json["position"], 1);
    assert!((40..=75).contains(&queued.retry_after()), "{}", queued.body);
    let again = gateway.provision(&second).await;
    assert_eq!((again.status, &again.json["position"]), (202, &json!(1)), "repeating keeps the place");
}

#[tokio::test]
async fn a_wait_that_was_cut_short_is_told_as_what_it_was() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.quota_per_minute", "1");
    let mut gateway = builder.set("device.wait_max", "\"1s\"").start().await;
    gateway.assigned(&TestDevice::of_fleet("first")).await;
    let second = TestDevice::of_fleet("second");
    let queued = gateway.ask(&second).wait(60).send().await;
    assert_eq!((queued.status, queued.header("preference-applied")), (202, "wait=1"), "as long as device.wait_max");
    assert_eq!(gateway.provision(&second).await.header("preference-applied"), "", "nobody asked for it");
    gateway.terminate().await;
    // With no room for held requests the place is told at once, and nothing was waited for.
    gateway.start_with(&[("DPS_PROXY__DEVICE__PARKED_MAX", "0")]).await;
    let at_once = gateway.ask(&second).wait(60).send().await;
    assert_eq!((at_once.status, at_once.header("preference-applied")), (202, ""), "{}", at_once.body);
}

#[tokio::test]
async fn concurrent_requests_of_one_device_share_one_registration() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let device = TestDevice::of_fleet("twin");
    let replies = futures_util::future::join_all((0..20).map(|_| gateway.ask(&device).wait(20).send())).await;
    assert!(replies.iter().all(|reply| reply.status == 200), "{replies:?}");
    assert_eq!(dps.registers(), 1);
    assert_eq!(dps.emulator.stats().concurrent_registrations, 0);
}

#[tokio::test]
async fn the_payload_reaches_dps_and_the_latest_one_wins_until_it_is_sent() {
    let dps = TestDps::start_with(|config| config.tls = dps_emulator::Tls::Off).await;
    let recorder = Recorder::start(dps.emulator.addr()).await;
    let builder = TestGateway::builder().instance("eu-1", &dps).unset("instances.eu-1.extra_ca_file");
    let builder = builder.set("instances.eu-1.endpoint", &format!("\"{}\"", recorder.url()));
    let mut gateway = builder.set("instances.eu-1.quota_per_minute", "1").start().await;
    // The first device spends the quota, so that the second one's payload can still change.
    gateway.assigned(&TestDevice::of_fleet("payload-0")).await;
    let device = TestDevice::of_fleet("payload-1");
    for model in ["th-1", "th-2", "th-3"] {
        assert_eq!(gateway.ask(&device).with("payload", json!({ "model": model })).send().await.status, 202);
    }
    gateway
        .reconfigure(|config| {
            config.set("instances.eu-1.quota_per_minute", "60");
        })
        .await;
    gateway.assigned(&device).await;
    let sent = recorder.sent();
    assert!(sent.contains(r#""payload":{"model":"th-3"}"#), "{sent}");
    assert!(!sent.contains("th-1") && !sent.contains("th-2"), "{sent}");
    assert!(sent.contains("/registrations/payload-1/register?api-version=2021-10-01 "), "{sent}");
}

#[tokio::test]
async fn reprovision_registers_anew_once_and_repeating_it_does_not_loop() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("registration.suspect_cooldown", "\"4s\"");
    let mut gateway = builder.start().await;
    let device = TestDevice::of_fleet("again");
    let before = gateway.assigned(&device).await;
    dps.emulator.set_hubs(vec![dps_emulator::HubConfig::new("hub-new.azure-devices.net")]).unwrap();
    // Within the cool-down its last registration is what it asks for; one that it waits for anyway is as well.
    let reprovision = || gateway.ask(&device).with("reprovision", json!(true));
    assert_eq!(reprovision().send().await.ok().json["assignedHub"], before.json["assignedHub"]);
    let contradict = gateway.backend(Method::POST, "/v1/devices/again/assignment/invalidate").json(&json!({}));
    gateway.send(contradict).await.ok();
    let queued = reprovision().send().await;
    assert_eq!(queued.status, 202, "{}", queued.body);
    let after = reprovision().wait(20).send().await.ok();
    assert_eq!(after.json["assignedHub"], "hub-new.azure-devices.net");
    assert_eq!(after.json["substatus"], "deviceDataMigrated", "{}", after.body);
    // The device may not have heard the answer, and repeats: within the cool-down this is the same wish. That survives a restart.
    gateway.ask(&device).with("reprovision", json!(true)).send().await.ok();
    gateway.kill9();
    gateway.start_again().await;
    gateway.ask(&device).with("reprovision", json!(true)).send().await.ok();
    assert_eq!(dps.registers_of("again"), 2);
}

#[tokio::test]
async fn the_time_is_told_to_devices_without_a_clock() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    let reply = gateway.send(gateway.request(Plane::Device, Method::GET, "/v1/time")).await.ok();
    let (told, seconds) = (moment(&reply.json["time"]), reply.json["unixSeconds"].as_i64().unwrap());
    let off = jiff::Timestamp::now().duration_since(told).as_secs().abs();
    assert!(off < 5 && told.as_second() == seconds, "{}", reply.body);
    assert_eq!(reply.header("cache-control"), "no-store");
}

#[tokio::test]
async fn what_a_custom_allocation_returns_reaches_the_device() {
    let payload = json!({ "site": "7", "nested": { "list": [1, 2.5, null], "text": "ünïcode" } });
    let dps = TestDps::start_with(|config| config.groups[0].payload = Some(payload.clone())).await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let device = TestDevice::of_fleet("sn-1");
    assert_eq!(gateway.assigned(&device).await.json["payload"], payload);
    assert_eq!(gateway.provision(&device).await.ok().json["payload"], payload, "and again, from the store");
}
