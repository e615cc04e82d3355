//! How a device proves itself, and what one that does not is told.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dps_emulator::IndividualConfig;
use dps_proxy_tests::device::{AUDIENCE, FLEET_KEY, derive_key, unix_seconds_in};
use dps_proxy_tests::gateway::Plane;
use dps_proxy_tests::{GatewayBuilder, Reply, TestDevice, TestDps, TestGateway};
use reqwest::Method;
use serde_json::{Value, json};

const HOUR: Duration = Duration::from_hours(1);
const FLEET_TOKEN: &str = "fleet-token-of-the-tests-0123456789";
const INDIVIDUAL_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// A reply without what may differ between two that say the same.
fn indistinct(reply: &Reply) -> (u16, Value, Vec<(String, String)>) {
    let mut body = reply.json.clone();
    for member in ["requestId", "retryAfter"] {
        assert!(body.as_object_mut().unwrap().remove(member).is_some());
    }
    let differing = ["x-request-id", "retry-after", "date", "content-length"];
    let headers = reply.headers.iter().filter(|(name, _)| !differing.contains(&name.as_str()));
    (reply.status, body, headers.map(|(name, value)| (name.to_string(), format!("{value:?}"))).collect())
}

fn with_enrollment(builder: GatewayBuilder, name: &str, keys: &[(&str, &str)]) -> GatewayBuilder {
    keys.iter().fold(builder, |builder, (key, value)| builder.set(&format!("enrollments.{name}.{key}"), value))
}

#[tokio::test]
async fn no_wrong_and_unknown_credentials_cannot_be_told_apart() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps);
    let builder = with_enrollment(
        builder,
        "listed",
        &[("membership", "\"allow-list\""), ("audiences", "[\"listed.test\"]"), ("group_key_file", "\"fleet.key\"")],
    );
    let gateway = builder.start().await;
    gateway.import_csv("hardwareId,enrollment\non-the-list,listed\nblocked,listed\n").await.ok();
    gateway.operator_post("/v1/registrations/blocked/block", json!({})).await.ok();
    let known = TestDevice::of_fleet("known");
    gateway.assigned(&known).await;
    let logged_before = gateway.operator_get("/v1/instances").await.ok().json;

    let (stranger, other) = (TestDevice::of_fleet("stranger"), TestDevice::of_fleet("other"));
    let wrong_key = TestDevice::of_group(INDIVIDUAL_KEY, "known");
    let blocked_wrong_key = TestDevice::of_group(INDIVIDUAL_KEY, "blocked");
    let se = unix_seconds_in(HOUR);
    let sr = format!("{AUDIENCE}%2Fregistrations%2Fknown");
    let refused = [
        ("no credential", &known, None),
        ("an empty one", &known, Some(String::new())),
        ("no scheme", &known, Some("hello".to_owned())),
        ("another scheme", &known, Some("Basic YTpi".to_owned())),
        ("no parameters", &known, Some("SharedAccessSignature".to_owned())),
        ("no sig", &known, Some(format!("SharedAccessSignature sr={sr}&se={se}"))),
        ("a bearer token that nobody gave out", &known, Some("Bearer nobody-gave-this-out".to_owned())),
        ("another key", &known, Some(wrong_key.usual_credential())),
        ("another key of a blocked device", &blocked_wrong_key, Some(blocked_wrong_key.usual_credential())),
        ("another device's token", &known, Some(other.usual_credential())),
        ("another audience", &known, Some(known.credential("elsewhere.test", se))),
        ("a hub's audience", &known, Some(known.credential_over("hub-a.azure-devices.net%2Fdevices%2Fknown", se))),
        (
            "a changed expiry",
            &known,
            Some(known.usual_credential().replace(&format!("se={se}"), &format!("se={}", se + 1))),
        ),
        ("a token that is too long", &known, Some(format!("{}&skn={}", known.usual_credential(), "x".repeat(3000)))),
        ("a device that is not on the list", &stranger, Some(stranger.credential("listed.test", se))),
    ];
    let mut first = None;
    for (what, device, credential) in refused {
        let ask = gateway.ask(device).anonymous();
        let ask = if let Some(credential) = credential { ask.authorization(credential) } else { ask };
        let reply = ask.send().await;
        assert_eq!(reply.status, 401, "{what}: {}", reply.body);
        let reply = reply.problem(401, "unauthorized");
        let schemes: Vec<_> = reply.headers.get_all("www-authenticate").iter().collect();
        assert_eq!(schemes, ["SharedAccessSignature", "Bearer"], "{what}");
        let seen = indistinct(&reply);
        assert_eq!(*first.get_or_insert_with(|| seen.clone()), seen, "{what}");
    }
    // Nothing was written and nobody was called.
    gateway.operator_get("/v1/registrations/stranger").await.problem(404, "unknown-registration");
    assert_eq!(
        gateway.operator_get("/v1/instances").await.ok().json["instances"][0]["registeredCount"],
        logged_before["instances"][0]["registeredCount"]
    );
    assert_eq!(dps.registers(), 1);
    // Who is on the list gets a place by the same audience.
    let listed = TestDevice::of_fleet("on-the-list");
    assert_eq!(gateway.ask(&listed).authorization(listed.credential("listed.test", se)).send().await.status, 202);
}

#[tokio::test]
async fn an_expired_credential_is_told_so_with_the_time() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    let device = TestDevice::of_fleet("late");
    let expired = device.credential(AUDIENCE, unix_seconds_in(Duration::ZERO) - 3600);
    let reply = gateway.ask(&device).authorization(expired).send().await.problem(401, "credential-expired");
    let time: jiff::Timestamp = reply.json["serverTime"].as_str().unwrap().parse().unwrap();
    assert!(jiff::Timestamp::now().duration_since(time).as_secs().abs() < 5, "{}", reply.body);
    // A clock that is a little behind is forgiven: the default is five minutes.
    let behind = device.credential(AUDIENCE, unix_seconds_in(Duration::ZERO) - 200);
    assert_eq!(gateway.ask(&device).authorization(behind).send().await.status, 202);
    // So it says of a device that nobody knows, too: the token's own text decides.
    let unknown = TestDevice::of_group(INDIVIDUAL_KEY, "nobody");
    let expired = unknown.credential(AUDIENCE, 1_000_000_000);
    gateway.ask(&unknown).authorization(expired).send().await.problem(401, "credential-expired");
}

#[tokio::test]
async fn a_credential_that_ends_further_ahead_than_any_may_is_told_so_with_the_time() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    let (known, stranger) = (TestDevice::of_fleet("fast"), TestDevice::of_group(INDIVIDUAL_KEY, "nobody"));
    let now = unix_seconds_in(Duration::ZERO);
    for (what, expiry) in [
        ("24 h, of a device that is two hours fast", now + 26 * 3600),
        ("30 days", now + 30 * 86_400),
        ("a rollover of GPS weeks", now + 1024 * 7 * 86_400),
        ("the end of 32 bits", 2_147_483_647),
        ("milliseconds", (now + 3600) * 1000),
        ("nanoseconds, more than fits", i64::MAX),
    ] {
        // The token's own text decides, so it says nothing about who is known.
        for device in [&known, &stranger] {
            let reply = gateway.ask(device).authorization(device.credential(AUDIENCE, expiry)).send().await;
            assert_eq!(reply.status, 401, "{what}: {}", reply.body);
            let reply = reply.problem(401, "credential-too-far-ahead");
            let time: jiff::Timestamp = reply.json["serverTime"].as_str().unwrap().parse().unwrap();
            assert!(jiff::Timestamp::now().duration_since(time).as_secs().abs() < 5, "{what}: {}", reply.body);
        }
    }
    // As long as the longest that SDKs make, of a clock that is a little fast.
    let usual = known.credential(AUDIENCE, now + 24 * 3600 + 3000);
    assert_eq!(gateway.ask(&known).authorization(usual).send().await.status, 202);
}

#[tokio::test]
async fn an_audience_may_name_the_port_and_an_end_may_have_a_fraction() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    let device = TestDevice::of_fleet("sn-1");
    let (port, se) = (gateway.address(Plane::Device).port(), unix_seconds_in(HOUR));
    let ask = async |audience: &str, host: Option<&str>| {
        let request = gateway.request(Plane::Device, Method::POST, "/v1/provision");
        let request = request.json(&json!({ "hardwareId": "sn-1" }));
        let request = request.header("Authorization", device.credential(audience, se));
        gateway.send(if let Some(host) = host { request.header("Host", host) } else { request }).await.status
    };
    // By the port the device calls, which `Host` names; without one it is that of HTTPS.
    assert_eq!(ask(&format!("{AUDIENCE}:{port}"), None).await, 202);
    assert_eq!(ask(&format!("{AUDIENCE}%3A{port}"), None).await, 202);
    assert_eq!(ask(&format!("{AUDIENCE}:8443"), Some(&format!("{AUDIENCE}:8443"))).await, 202);
    assert_eq!(ask(&format!("{AUDIENCE}:443"), Some(AUDIENCE)).await, 202);
    assert_eq!(ask(&format!("{AUDIENCE}:1"), None).await, 401);
    assert_eq!(ask(&format!("elsewhere.test:{port}"), None).await, 401);

    let sr = format!("{AUDIENCE}%2Fregistrations%2Fsn-1");
    let fraction = device.credential_with_se(&sr, &format!("{se}.75"));
    assert_eq!(gateway.ask(&device).authorization(fraction).send().await.status, 202);
}

/// What operators find of a refused request.
async fn refusal(gateway: &TestGateway, query: &str) -> Value {
    let found = gateway.operator_get(&format!("/v1/refusals?{query}")).await.ok().json;
    let [refusal] = found["refusals"].as_array().unwrap().as_slice() else { panic!("{query}: {found}") };
    refusal.clone()
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
async fn an_operator_finds_why_a_credential_was_refused_and_the_device_does_not() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).secret("depot.token", FLEET_TOKEN);
    let builder = with_enrollment(
        builder,
        "listed",
        &[("membership", "\"allow-list\""), ("audiences", "[\"listed.test\"]"), ("group_key_file", "\"fleet.key\"")],
    );
    let builder = with_enrollment(
        builder,
        "own",
        &[("upstream", "\"individual\""), ("membership", "\"allow-list\""), ("audiences", "[\"own.test\"]")],
    );
    let depot = [("attestation", "\"fleet-token\""), ("fleet_token_files", "[\"depot.token\"]")];
    let builder = with_enrollment(builder, "depot", &depot).set("enrollments.depot.group_key_file", "\"fleet.key\"");
    let builder = builder.set("enrollments.depot.hosts", "[\"depot.test\"]");
    let gateway = builder.set("device.refusals_logged_per_second", "1000").start().await;
    gateway.import_csv("hardwareId,enrollment\ndepot-1,depot\n").await.ok();
    let (device, se) = (TestDevice::of_fleet("SN-1"), unix_seconds_in(HOUR));
    let sr = format!("{AUDIENCE}%2Fregistrations%2Fsn-1");
    let usual = device.usual_credential();
    let cases: Vec<(&str, &str, Option<String>, Option<&str>)> = vec![
        ("SN-1", "no-credential", None, None),
        ("SN-1", "wrong-scheme", Some("Basic YTpi".to_owned()), None),
        ("SN-1", "malformed-credential", Some(format!("SharedAccessSignature sr={sr}&se={se}")), None),
        ("SN-1", "malformed-credential", Some(format!("{usual}&skn={}", "x".repeat(3000))), None),
        ("SN-1", "expired", Some(device.credential(AUDIENCE, se - 7200)), None),
        ("SN-1", "lifetime-too-long", Some(device.credential(AUDIENCE, se + 30 * 86_400)), None),
        ("SN-1", "implausible-expiry", Some(device.credential(AUDIENCE, 2_147_483_647)), None),
        ("SN-1", "unknown-audience", Some(device.credential("elsewhere.test", se)), Some("fleet")),
        ("SN-1", "other-registration-id", Some(TestDevice::of_fleet("sn-2").usual_credential()), Some("fleet")),
        (
            "SN-1",
            "wrong-signature",
            Some(TestDevice::of_group(INDIVIDUAL_KEY, "SN-1").usual_credential()),
            Some("fleet"),
        ),
        ("SN-1", "not-on-allow-list", Some(device.credential("listed.test", se)), Some("listed")),
        ("SN-1", "not-on-allow-list", Some(device.credential("own.test", se)), Some("own")),
        ("SN-1", "wrong-kind-of-credential", Some(format!("Bearer {FLEET_TOKEN}")), Some("fleet")),
        ("depot-1", "wrong-kind-of-credential", Some(usual.clone()), Some("depot")),
        ("depot-1", "wrong-fleet-token", Some("Bearer not-the-token".to_owned()), Some("depot")),
    ];
    for (hardware_id, reason, credential, enrollment) in &cases {
        let asking = TestDevice::of_fleet(hardware_id);
        let ask = gateway.ask(&asking).anonymous();
        let ask = if let Some(credential) = credential { ask.authorization(credential.as_str()) } else { ask };
        let reply = ask.send().await;
        assert_eq!(reply.status, 401, "{reason}: {}", reply.body);
        let request_id = reply.header("x-request-id").to_owned();
        let found = refusal(&gateway, &format!("requestId={request_id}")).await;
        assert_eq!((&found["reason"], &found["hardwareId"]), (&json!(reason), &json!(hardware_id)), "{found}");
        assert_eq!((&found["requestId"], &found["peer"]), (&json!(request_id), &json!("127.0.0.1")));
        assert_eq!(found["enrollment"].as_str(), *enrollment, "{found}");
        for words in ["detail", "nextStep"] {
            let words = found[words].as_str().unwrap();
            assert!(words.len() > 20 && !reply.body.contains(words), "{reason}: {words}: {}", reply.body);
        }
        let line = gateway
            .logged("its line", |line| line["message"] == "credential refused" && line["request_id"] == *request_id)
            .await;
        assert_eq!((&line["reason"], &line["registration_id"]), (&json!(reason), &json!(asking.registration_id())));
    }
    // By device, by reason, newest first, as many as asked for.
    let of = async |query: &str| {
        let found = gateway.operator_get(&format!("/v1/refusals?{query}")).await.ok().json;
        let reasons = found["refusals"].as_array().unwrap().iter().map(|refusal| refusal["reason"].clone());
        reasons.collect::<Vec<_>>()
    };
    assert_eq!(of("hardwareId=DEPOT-1").await, ["wrong-fleet-token", "wrong-kind-of-credential"]);
    assert_eq!(of("limit=1").await, ["wrong-fleet-token"]);
    assert_eq!(of("reason=wrong-signature&hardwareId=sn-1").await, ["wrong-signature"]);
    assert_eq!(of("").await.len(), cases.len());
    assert!(of("tenant=nobody").await.is_empty());
    for bad in ["reason=hello", "limit=0", "limit=1001", "limit=x", "hello=1"] {
        gateway.operator_get(&format!("/v1/refusals?{bad}")).await.problem(400, "invalid-query");
    }
    let metrics = gateway.operator_get("/metrics").await.ok().body;
    for (reason, count) in [("wrong-kind-of-credential", 2), ("wrong-signature", 1), ("no-enrollment", 0)] {
        let series = format!("dps_proxy_credentials_refused_total{{reason=\"{reason}\"}} {count}\n");
        assert!(metrics.contains(&series), "{series}: {metrics}");
    }
    // Nobody who was refused has left a trace on disk, and nothing of a credential is shown.
    gateway.operator_get("/v1/registrations/sn-1").await.problem(404, "unknown-registration");
    let all = gateway.operator_get("/v1/refusals?limit=1000").await.ok().body + &gateway.log_lines().join("\n");
    let signature = usual.split("&sig=").nth(1).and_then(|rest| rest.split('&').next()).unwrap();
    for secret in [signature, &se.to_string(), "YTpi", "not-the-token", FLEET_TOKEN] {
        assert!(!all.contains(secret), "{secret}: {all}");
    }
    assert_eq!(gateway.send(gateway.request(Plane::Operator, Method::GET, "/v1/refusals")).await.status, 401);
}

#[tokio::test]
async fn refusals_are_bounded_in_memory_and_sampled_in_the_log() {
    let builder = TestGateway::builder().instance("eu-1", &TestDps::start().await).set("device.refusals_kept", "3");
    let gateway = builder.start().await;
    for number in 0..40 {
        gateway.ask(&TestDevice::of_fleet(&format!("sn-{number}"))).anonymous().send().await;
    }
    let found = gateway.operator_get("/v1/refusals").await.ok().json;
    let ids: Vec<_> = found["refusals"].as_array().unwrap().iter().map(|refusal| &refusal["hardwareId"]).collect();
    assert_eq!(ids, ["sn-39", "sn-38", "sn-37"]);
    let told: u64 = gateway
        .logs()
        .iter()
        .filter(|line| line["message"] == "credential refused")
        .map(|line| 1 + line["left_out"].as_u64().unwrap())
        .sum();
    let lines = gateway.logs().iter().filter(|line| line["message"] == "credential refused").count();
    assert!(lines < 20 && told <= 40, "{lines} lines for {told}");
}

#[tokio::test]
async fn every_sdks_spelling_of_sr_is_accepted() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps);
    let gateway = builder.set("enrollments.fleet.audiences", "[\"0ne000AB12C\"]").start().await;
    let device = TestDevice::of_fleet("Gw01:Sensor_9.x-A");
    let se = unix_seconds_in(HOUR);
    let spellings = [
        ("Node and Java", "0ne000AB12C/registrations/Gw01:Sensor_9.x-A", "&skn=registration"),
        ("Python", "0ne000AB12C%2Fregistrations%2FGw01%3ASensor_9.x-A", ""),
        ("Java", "0ne000AB12C/registrations/gw01:sensor_9.x-a", "&skn="),
        (".NET", "0ne000AB12C%2Fregistrations%2Fgw01%3Asensor_9.x-a", "&skn=registration"),
        ("C", "0ne000AB12C%2fregistrations%2fgw01%3asensor_9.x-a", "&skn=registration"),
        ("embedded C", "0ne000AB12C%2fregistrations%2fgw01%3Asensor_9.x-a", "&skn=registration"),
        ("IoT Edge", "0ne000ab12c%2Fregistrations%2Fgw01%3Asensor_9.x-a", "&skn=registration"),
    ];
    for (sdk, sr, rest) in spellings {
        let usual = format!("{}{rest}", device.credential_over(sr, se));
        let reply = gateway.ask(&device).authorization(usual).send().await;
        assert!([200, 202].contains(&reply.status), "{sdk}: {}", reply.body);
        // Node puts skn before se; C escapes the signature in lower case; some leave + and / of base64 as they are.
        let signature = device.signature(sr, se);
        let lower = signature.replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d");
        let plain = signature.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=");
        for signature in [lower, plain] {
            let reordered = format!("SharedAccessSignature sr={sr}&sig={signature}&skn=registration&se={se}");
            let reply = gateway.ask(&device).authorization(reordered).send().await;
            assert!([200, 202].contains(&reply.status), "{sdk}, reordered: {}", reply.body);
        }
    }
    assert_eq!(gateway.assigned_by(&device, "0ne000AB12C").await.json["registrationId"], "gw01:sensor_9.x-a");
}

#[tokio::test]
async fn a_fleet_token_lets_in_who_is_on_the_list_and_hands_its_credential_out_once() {
    let dps = TestDps::start().await;
    let builder = with_enrollment(
        TestGateway::builder().instance("eu-1", &dps).secret("depot.token", FLEET_TOKEN),
        "depot",
        &[
            ("attestation", "\"fleet-token\""),
            ("fleet_token_files", "[\"depot.token\"]"),
            ("group_key_file", "\"fleet.key\""),
            ("credential", "\"hub-sas\""),
            ("credential_lifetime", "\"30m\""),
            ("credential_once", "true"),
            ("allow_fleet_token_credentials", "true"),
        ],
    );
    let gateway = builder.start().await;
    gateway.import_csv("hardwareId,enrollment\nDEPOT-1,depot\n").await.ok();
    let device = TestDevice::of_fleet("Depot-1");
    let bearer = format!("Bearer {FLEET_TOKEN}");
    let ask = || gateway.ask(&device).authorization(bearer.as_str());

    let unlisted = TestDevice::of_fleet("depot-2");
    gateway.ask(&unlisted).authorization(bearer.as_str()).send().await.problem(401, "unauthorized");
    gateway.provision(&device).await.problem(401, "unauthorized");

    let reply = ask().wait(20).send().await.ok();
    let credential = &reply.json["credential"];
    assert_eq!(credential["type"], "hub-sas", "{}", reply.body);
    // The token is one that the device's own key signs for its hub.
    let expires: jiff::Timestamp = credential["expiresAt"].as_str().unwrap().parse().unwrap();
    let left = expires.duration_since(jiff::Timestamp::now()).as_secs();
    assert!((1700..=1800).contains(&left), "{left} s");
    let sr = format!("{}%2Fdevices%2Fdepot-1", dps.hubs()[0]);
    let own = TestDevice { hardware_id: "depot-1".to_owned(), ..TestDevice::of_fleet("depot-1") };
    assert_eq!(credential["token"], own.credential_over(&sr, expires.as_second()));

    assert_eq!(ask().send().await.ok().json.get("credential"), None, "once only");
    gateway.operator_post("/v1/registrations/depot-1/retry", json!({})).await.ok();
    assert_eq!(ask().send().await.ok().json["credential"]["type"], "hub-sas", "an operator allows it again");
}

#[tokio::test]
async fn a_derived_key_is_handed_out_where_it_is_configured() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder()
        .instance("eu-1", &dps)
        .set("enrollments.fleet.credential", "\"derived-key\"")
        .start()
        .await;
    let device = TestDevice::of_group(FLEET_KEY, "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6");
    let reply = gateway.assigned(&device).await;
    let expected = json!({ "type": "derived-key", "key": "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc=" });
    assert_eq!(reply.json["credential"], expected);
}

#[tokio::test]
async fn the_allow_list_alone_is_enough_where_it_was_switched_on_by_name() {
    let dps = TestDps::start().await;
    let keys = [
        ("attestation", "\"allow-list-alone\""),
        ("accept_unauthenticated_devices", "true"),
        ("group_key_file", "\"fleet.key\""),
    ];
    let gateway = with_enrollment(TestGateway::builder().instance("eu-1", &dps), "open", &keys).start().await;
    gateway.import_csv("hardwareId,enrollment\nopen-1,open\n").await.ok();
    let device = TestDevice::of_fleet("open-1");
    let reply = gateway.ask(&device).anonymous().wait(20).send().await.ok();
    assert_eq!((&reply.json["assignedHub"], reply.json.get("credential")), (&json!(dps.hubs()[0]), None));
    gateway.ask(&TestDevice::of_fleet("open-2")).anonymous().send().await.problem(401, "unauthorized");
}

#[tokio::test]
async fn a_device_with_a_key_of_its_own_is_known_by_its_hubs_name_for_it() {
    let dps = TestDps::start_with(|config| {
        let mut enrollment = IndividualConfig::new("camera-7", INDIVIDUAL_KEY);
        enrollment.device_id = Some("Camera.Seven".to_owned());
        config.enrollments.push(enrollment);
    })
    .await;
    let keys = [("upstream", "\"individual\""), ("membership", "\"allow-list\""), ("audiences", "[\"cameras.test\"]")];
    let mut gateway = with_enrollment(TestGateway::builder().instance("eu-1", &dps), "cameras", &keys).start().await;
    let imported =
        gateway.import_csv(format!("hardwareId,enrollment,key\nCamera-7,cameras,{INDIVIDUAL_KEY}\n")).await.ok();
    assert_eq!(imported.json["new"], 1, "{}", imported.body);
    let device = TestDevice::with_key(INDIVIDUAL_KEY, "camera-7");
    let reply = gateway.assigned_by(&device, "cameras.test").await;
    assert_eq!((&reply.json["registrationId"], &reply.json["deviceId"]), (&json!("camera-7"), &json!("Camera.Seven")));

    for _start in 0..2 {
        let found = gateway.backend_get("/v1/devices/Camera.Seven/assignment").await.ok();
        assert_eq!(found.json["registrationId"], "camera-7");
        gateway.backend_get("/v1/devices/camera-7/assignment").await.problem(404, "never-seen");
        let respelt = gateway.backend_get("/v1/devices/camera.seven/assignment").await.problem(404, "differs-in-case");
        assert_eq!(respelt.json["knownAs"], "Camera.Seven", "{}", respelt.body);
        gateway.kill9();
        gateway.start_again().await;
    }
    let shown = gateway.operator_get("/v1/registrations/camera-7").await.ok();
    assert!(!shown.body.contains(INDIVIDUAL_KEY), "a key is never shown: {}", shown.body);
}

#[tokio::test]
async fn an_instance_whose_group_has_another_key_is_proven_to_with_that_one_and_so_is_the_device() {
    let dps = TestDps::start_with(|config| config.groups[0].key_base64 = INDIVIDUAL_KEY.to_owned()).await;
    let gateway = TestGateway::builder()
        .instance("eu-1", &dps)
        .secret("other.key", INDIVIDUAL_KEY)
        .set("enrollments.fleet.group_key_overrides", "{ eu-1 = \"other.key\" }")
        .set("enrollments.fleet.credential", "\"derived-key\"")
        .start()
        .await;
    let reply = gateway.assigned(&TestDevice::of_fleet("SN-1")).await;
    let other = STANDARD.encode(derive_key(INDIVIDUAL_KEY, "sn-1"));
    assert_eq!(reply.json["credential"], json!({ "type": "derived-key", "key": other }));
    // The key that DPS knows the device by does not open our door: only the group's own does.
    let stranger = TestDevice::of_group(INDIVIDUAL_KEY, "SN-1");
    gateway.provision(&stranger).await.problem(401, "unauthorized");
}

#[tokio::test]
async fn keys_that_were_derived_from_the_device_s_own_spelling_are_accepted_and_used() {
    let as_given = TestDevice { hardware_id: "SN-Mixed".to_owned(), key: derive_key(FLEET_KEY, "SN-Mixed") };
    let key = STANDARD.encode(&as_given.key);
    let dps = TestDps::start_with(|config| config.enrollments.push(IndividualConfig::new("sn-mixed", &key))).await;
    let builder = TestGateway::builder().instance("eu-1", &dps);
    let mut gateway = builder.set("enrollments.fleet.derive_from", "\"as-given\"").start().await;
    gateway.provision(&TestDevice::of_fleet("SN-Mixed")).await.problem(401, "unauthorized");
    let respelt = TestDevice { hardware_id: "sn-mixed".to_owned(), ..as_given.clone() };
    gateway.provision(&respelt).await.problem(401, "unauthorized");
    assert_eq!(gateway.assigned(&as_given).await.json["registrationId"], "sn-mixed", "its key is the one DPS has");
    gateway.kill9();
    gateway.start_again().await;
    gateway.provision(&as_given).await.ok();
}

#[tokio::test]
async fn the_host_a_device_calls_does_not_overrule_what_it_signed_for() {
    let dps = TestDps::start().await;
    let keys = [
        ("tenant", "\"umbrella\""),
        ("hosts", "[\"depot.test\"]"),
        ("audiences", "[\"depot.test\"]"),
        ("group_key_file", "\"fleet.key\""),
    ];
    let gateway = with_enrollment(TestGateway::builder().instance("eu-1", &dps), "depot", &keys).start().await;
    let call = async |id: &str, host: &str, audience: &str| {
        let device = TestDevice::of_fleet(id);
        let credential = device.credential(audience, unix_seconds_in(HOUR));
        let request = gateway.request(Plane::Device, Method::POST, "/v1/provision").json(&json!({ "hardwareId": id }));
        gateway.send(request.header("Authorization", credential).header("Host", host)).await
    };
    for (id, host, audience, tenant) in [
        ("sn-1", "depot.test", "depot.test", "umbrella"),
        ("sn-2", "Depot.Test:8443", AUDIENCE, "default"),
        ("sn-3", AUDIENCE, "depot.test", "umbrella"),
        ("sn-4", "elsewhere.test", AUDIENCE, "default"),
    ] {
        assert_eq!(call(id, host, audience).await.status, 202, "{host}, {audience}");
        let record = gateway.operator_get(&format!("/v1/registrations/{id}")).await.ok();
        assert_eq!(record.json["tenant"], tenant, "{host}, {audience}: {}", record.body);
    }
    call("sn-5", "depot.test", "nobody.test").await.problem(401, "unauthorized");
}
