//! Which hub is this device on?

use dps_emulator::{Fault, FaultAction};
use dps_proxy_tests::{Reply, TestDevice, TestDps, TestGateway, eventually};
use reqwest::Method;
use serde_json::{Value, json};

async fn lookup(gateway: &TestGateway, ids: &[String]) -> Reply {
    gateway.send(gateway.backend(Method::POST, "/v1/assignments/lookup").json(&json!({ "deviceIds": ids }))).await
}

async fn invalidate(gateway: &TestGateway, id: &str, body: Value) -> Reply {
    gateway.send(gateway.backend(Method::POST, &format!("/v1/devices/{id}/assignment/invalidate")).json(&body)).await
}

#[tokio::test]
async fn an_assignment_is_told_with_an_etag_and_304_as_long_as_it_stays() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    gateway.assigned(&TestDevice::of_fleet("GW01:sensor_9.x-a")).await;
    let path = "/v1/devices/gw01:sensor_9.x-a/assignment";

    let reply = gateway.backend_get(path).await.ok();
    assert_eq!(reply.header("cache-control"), "no-cache");
    let expected = json!({
        "deviceId": "gw01:sensor_9.x-a", "registrationId": "gw01:sensor_9.x-a", "tenant": "default", "assignedHub": dps.hubs()[0],
        "instance": "eu-1", "state": "confirmed",
    });
    for (member, value) in expected.as_object().unwrap() {
        assert_eq!(reply.json[member], *value, "{member}");
    }
    for member in ["assignedAt", "lastConfirmedAt"] {
        let moment: jiff::Timestamp = reply.json[member].as_str().unwrap().parse().unwrap();
        assert!(moment <= jiff::Timestamp::now());
    }
    let etag = reply.header("etag").to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 2, "{etag}");
    let tag = etag.trim_matches('"');
    // Apache and others mark the encoding that they applied within the tag; nginx makes it weak.
    let by_proxies =
        [format!("\"{tag}-gzip\""), format!("W/\"{tag}-gzip\""), format!("\"{tag}--gzip\""), format!("\"{tag}-br\"")];
    let conditions = [etag.clone(), format!("W/{etag}"), format!("\"other\", {etag}"), "*".to_owned()];
    for condition in conditions.into_iter().chain(by_proxies) {
        let reply = gateway.send(gateway.backend(Method::GET, path).header("If-None-Match", &condition)).await;
        assert_eq!((reply.status, reply.body.as_str(), reply.header("etag")), (304, "", etag.as_str()), "{condition}");
    }
    let changed = gateway.send(gateway.backend(Method::GET, path).header("If-None-Match", "\"other\"")).await;
    changed.ok();
    invalidate(&gateway, "gw01:sensor_9.x-a", json!({})).await.ok();
    let reply = gateway.send(gateway.backend(Method::GET, path).header("If-None-Match", etag)).await.ok();
    assert_eq!(reply.json["state"], "suspect", "{}", reply.body);
}

#[tokio::test]
async fn never_seen_and_in_line_are_told_apart() {
    let dps = TestDps::start().await;
    let gateway =
        TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.quota_per_minute", "1").start().await;
    gateway.assigned(&TestDevice::of_fleet("first")).await;
    assert_eq!(gateway.provision(&TestDevice::of_fleet("second")).await.status, 202);
    gateway.backend_get("/v1/devices/second/assignment").await.problem(404, "in-line");
    for never in ["third", "%20", "a%2Fb", "%00", "a%25b"] {
        gateway.backend_get(&format!("/v1/devices/{never}/assignment")).await.problem(404, "never-seen");
    }
    // Who is on the list but never came was never seen either.
    gateway.import_csv("hardwareId,enrollment\nlisted,fleet\n").await.ok();
    gateway.backend_get("/v1/devices/listed/assignment").await.problem(404, "never-seen");
}

#[tokio::test]
async fn ids_in_paths_are_percent_decoded_once() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    gateway.assigned(&TestDevice::of_fleet("gw:1")).await;
    for spelling in ["gw:1", "gw%3A1", "gw%3a1", "%67w:1"] {
        let reply = gateway.backend_get(&format!("/v1/devices/{spelling}/assignment")).await.ok();
        assert_eq!(reply.json["deviceId"], "gw:1", "{spelling}");
        let reply = gateway.operator_get(&format!("/v1/registrations/{spelling}")).await.ok();
        assert_eq!(reply.json["registrationId"], "gw:1", "{spelling}");
    }
    gateway.backend_get("/v1/devices/gw%253A1/assignment").await.problem(404, "never-seen");
    for bad in ["%FF", "gw%C3%28", "%ff%3A1", "gw%zz", "gw%3"] {
        gateway.backend_get(&format!("/v1/devices/{bad}/assignment")).await.problem(400, "invalid-path");
    }
}

#[tokio::test]
async fn a_lookup_answers_each_of_a_thousand_ids_in_order_and_refuses_more() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    gateway.assigned(&TestDevice::of_fleet("known")).await;
    let mut ids: Vec<String> = (0..1000).map(|number| format!("unknown-{number}")).collect();
    ids[7] = "known".to_owned();
    ids[13] = "KNOWN".to_owned();
    ids[999] = "known".to_owned();
    let reply = lookup(&gateway, &ids).await.ok();
    let answers = reply.json["assignments"].as_array().unwrap();
    let answered: Vec<_> = answers.iter().map(|answer| answer["deviceId"].as_str().unwrap()).collect();
    assert_eq!(answered, ids);
    for (number, answer) in answers.iter().enumerate() {
        if [7, 999].contains(&number) {
            assert_eq!((&answer["found"], &answer["assignment"]["assignedHub"]), (&json!(true), &json!(dps.hubs()[0])));
        } else {
            let code = if number == 13 { "differs-in-case" } else { "never-seen" };
            assert_eq!((&answer["found"], &answer["code"]), (&json!(false), &json!(code)), "{answer}");
        }
    }
    assert_eq!(lookup(&gateway, &[]).await.ok().json["assignments"], json!([]));
    ids.push("one-more".to_owned());
    let reply = lookup(&gateway, &ids).await.problem(400, "too-many-ids");
    assert!(reply.detail().contains("1000") && reply.detail().contains("1001"), "{}", reply.detail());
}

#[tokio::test]
async fn a_device_id_in_another_case_is_said_to_be_one() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    gateway.assigned(&TestDevice::of_fleet("SN-Case-1")).await;
    gateway.backend_get("/v1/devices/sn-case-1/assignment").await.ok();
    let reply = gateway.backend_get("/v1/devices/SN-Case-1/assignment").await.problem(404, "differs-in-case");
    assert!(reply.detail().contains("case-sensitive") && reply.detail().contains("sn-case-1"), "{}", reply.detail());
    let looked_up = lookup(&gateway, &["SN-CASE-1".to_owned()]).await.ok();
    let expected =
        json!({ "deviceId": "SN-CASE-1", "found": false, "code": "differs-in-case", "knownAs": "sn-case-1" });
    assert_eq!(looked_up.json["assignments"], json!([expected]));
    invalidate(&gateway, "Sn-Case-1", json!({})).await.problem(404, "differs-in-case");
    gateway.backend_get("/v1/devices/SN-Case-1/assignment?tenant=other").await.problem(404, "never-seen");
}

#[tokio::test]
async fn a_device_without_a_hub_says_why_it_has_none() {
    let dps = TestDps::start().await;
    let fail = FaultAction::Fail { error_code: 400_208, message: "no hub is linked".to_owned() };
    dps.emulator.add_fault(Fault::new(fail).for_device("refused"));
    let builder = TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.quota_per_minute", "1");
    let gateway = builder.start().await;
    gateway.import_csv("hardwareId,enrollment\nlisted,fleet\n").await.ok();
    gateway.ask(&TestDevice::of_fleet("refused")).wait(20).send().await.problem(422, "refused-by-dps");
    for id in ["blocked", "let-in", "waiting"] {
        assert_eq!(gateway.provision(&TestDevice::of_fleet(id)).await.status, 202);
    }
    for id in ["blocked", "let-in"] {
        gateway.operator_post(&format!("/v1/registrations/{id}/block"), json!({ "reason": "stolen" })).await.ok();
    }
    gateway.operator_post("/v1/registrations/let-in/unblock", json!({})).await.ok();
    let states = [
        ("refused", "refused"),
        ("blocked", "blocked"),
        ("let-in", "not-in-line"),
        ("waiting", "in-line"),
        ("listed", "never-seen"),
        ("nobody", "never-seen"),
    ];
    let ids: Vec<String> = states.iter().map(|(id, _)| (*id).to_owned()).collect();
    let answers = lookup(&gateway, &ids).await.ok().json["assignments"].clone();
    for (number, (id, code)) in states.into_iter().enumerate() {
        let reply = gateway.backend_get(&format!("/v1/devices/{id}/assignment")).await.problem(404, code);
        assert!(!reply.body.contains("stolen"), "{}", reply.body);
        assert_eq!((&answers[number]["code"], &answers[number]["found"]), (&json!(code), &json!(false)), "{id}");
        invalidate(&gateway, id, json!({})).await.problem(404, code);
    }
    for refused in [&gateway.backend_get("/v1/devices/refused/assignment").await.json, &answers[0]] {
        assert_eq!(refused["upstream"]["errorCode"], 400_208, "{refused}");
        assert_eq!(refused["upstream"]["instance"], "eu-1");
    }
}

#[tokio::test]
async fn a_contradicted_assignment_is_suspect_and_the_device_registers_once_per_cool_down() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("registration.suspect_cooldown", "\"1s\"");
    let mut gateway = builder.start().await;
    let device = TestDevice::of_fleet("sn-1");
    gateway.assigned(&device).await;
    dps.emulator.set_hubs(vec![dps_emulator::HubConfig::new("hub-new.azure-devices.net")]).unwrap();

    let reply = invalidate(&gateway, "sn-1", json!({ "reason": "hub-404001" })).await.ok();
    assert_eq!(reply.json["state"], "suspect");
    assert_eq!(gateway.provision(&device).await.status, 202, "only a confirmed assignment gives 200");
    assert_eq!(gateway.assigned(&device).await.json["assignedHub"], "hub-new.azure-devices.net");
    assert_eq!(dps.registers_of("sn-1"), 2);
    let timeline = gateway.operator_get("/v1/registrations/sn-1").await.ok();
    assert!(timeline.body.contains("hub-404001"), "{}", timeline.body);

    // Within the cool-down every further contradiction waits for its end.
    gateway
        .reconfigure(|config| {
            config.set("registration.suspect_cooldown", "\"1h\"");
        })
        .await;
    for _ in 0..3 {
        invalidate(&gateway, "sn-1", json!({})).await.ok();
        let queued = gateway.provision(&device).await;
        assert!(queued.status == 202 && queued.retry_after() > 3000, "{}", queued.body);
    }
    assert_eq!(dps.registers_of("sn-1"), 2);
    invalidate(&gateway, "nobody", json!({})).await.problem(404, "never-seen");
    invalidate(&gateway, "sn-1", json!({ "raeson": "x" })).await.problem(400, "invalid-json");
}

#[tokio::test]
async fn a_hub_that_is_gone_makes_all_of_its_devices_suspect_and_no_others() {
    let (gone, stays) = (TestDps::start().await, TestDps::start().await);
    let builder = TestGateway::builder().instance("gone", &gone).instance("stays", &stays);
    let gateway = builder.set("registration.suspect_cooldown", "\"1h\"").start().await;
    let devices: Vec<TestDevice> = (0..8).map(|number| TestDevice::of_fleet(&format!("sn-{number}"))).collect();
    let hubs = futures_util::future::join_all(devices.iter().map(|device| gateway.assigned(device))).await;
    let path = format!("/v1/hubs/{}/invalidate", gone.hubs()[0].to_uppercase());
    let reply = gateway.send(gateway.backend(Method::POST, &path).json(&json!({ "reason": "deleted" }))).await.ok();
    let on_gone = hubs.iter().filter(|reply| reply.json["assignedHub"] == gone.hubs()[0]).count();
    assert_eq!(reply.json["invalidated"], on_gone, "{}", reply.body);
    assert_eq!(on_gone, 4, "devices are placed evenly");
    for (device, before) in devices.iter().zip(&hubs) {
        let expected = if before.json["assignedHub"] == gone.hubs()[0] { 202 } else { 200 };
        assert_eq!(gateway.provision(device).await.status, expected);
    }
    gateway.send(gateway.backend(Method::POST, "/v1/hubs/no_host/invalidate")).await.problem(400, "invalid-host-name");
}

#[tokio::test]
async fn a_token_for_some_tenants_sees_only_their_devices() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder()
        .instance("eu-1", &dps)
        .set("enrollments.fleet.tenant", "\"acme\"")
        .set("enrollments.other.tenant", "\"umbrella\"")
        .set("enrollments.other.audiences", "[\"other.test\"]")
        .set("enrollments.other.group_key_file", "\"fleet.key\"")
        .secret("acme.token", "token-of-acme-0123456789abcdef")
        .push("backend.tokens", &[("name", "\"acme\""), ("token_file", "\"acme.token\""), ("tenants", "[\"acme\"]")]);
    let gateway = builder.start().await;
    let (mine, theirs) = (TestDevice::of_fleet("mine"), TestDevice::of_fleet("theirs"));
    tokio::join!(gateway.assigned(&mine), gateway.assigned_by(&theirs, "other.test"));
    let as_acme = |path: &str| {
        gateway
            .request(dps_proxy_tests::Plane::Backend, Method::GET, path)
            .bearer_auth("token-of-acme-0123456789abcdef")
    };

    gateway.send(as_acme("/v1/devices/mine/assignment")).await.ok();
    for path in [
        "/v1/devices/theirs/assignment",
        "/v1/devices/theirs/assignment?tenant=umbrella",
        "/v1/devices/mine/assignment?tenant=umbrella",
    ] {
        gateway.send(as_acme(path)).await.problem(404, "never-seen");
    }
    gateway.backend_get("/v1/devices/theirs/assignment").await.ok();
    gateway.backend_get("/v1/devices/theirs/assignment?tenant=acme").await.problem(404, "never-seen");

    let stream = as_acme("/v1/assignments/changes").header("Last-Event-ID", "").send().await.unwrap();
    let mut events = dps_proxy_tests::sse::Events::new(stream);
    gateway.send(gateway.backend(Method::POST, "/v1/devices/theirs/assignment/invalidate")).await.ok();
    gateway.send(gateway.backend(Method::POST, "/v1/devices/mine/assignment/invalidate")).await.ok();
    assert_eq!(events.next_of("assignment").await.data["deviceId"], "mine", "others' changes are not told");
    eventually("a second tenant's claim of an ID is refused", async || {
        gateway
            .ask(&mine)
            .authorization(
                mine.credential(
                    "other.test",
                    dps_proxy_tests::device::unix_seconds_in(std::time::Duration::from_hours(1)),
                ),
            )
            .send()
            .await
            .status
            == 403
    })
    .await;
}
