//! What an operator sees and does.

use std::collections::{BTreeMap, BTreeSet};

use dps_emulator::{Fault, FaultAction};
use dps_proxy_tests::gateway::Plane;
use dps_proxy_tests::{TestDevice, TestDps, TestGateway, eventually};
use reqwest::Method;
use serde_json::{Value, json};

/// An instance that has spent its quota for a minute.
async fn spent(name: &str, dps: &TestDps) -> TestGateway {
    let builder = TestGateway::builder().instance(name, dps).set(&format!("instances.{name}.quota_per_minute"), "1");
    let gateway = builder.start().await;
    gateway.assigned(&TestDevice::of_fleet("first")).await;
    gateway
}

fn timeline(registration: &Value) -> Vec<String> {
    let events = registration["timeline"].as_array().unwrap();
    for event in events {
        let _at: jiff::Timestamp = event["at"].as_str().unwrap().parse().unwrap();
    }
    events.iter().map(|event| event["what"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn health_and_readiness_need_no_token_and_tell_no_detail() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    for (path, status) in [("/healthz", "alive"), ("/readyz", "ready")] {
        let reply = gateway.send(gateway.request(Plane::Operator, Method::GET, path)).await.ok();
        assert_eq!(reply.json, json!({ "status": status }));
        let head = gateway.send(gateway.request(Plane::Operator, Method::HEAD, path)).await;
        assert_eq!(head.status, 200, "load balancers ask so");
    }
}

/// Labels and value.
type Sample = (BTreeMap<String, String>, f64);

/// Names and samples of the OpenMetrics text; anything that is not of its form fails.
fn parse_metrics(text: &str) -> BTreeMap<String, Vec<Sample>> {
    let (mut metrics, mut types) = (BTreeMap::<String, Vec<_>>::new(), BTreeSet::new());
    let body = text.strip_suffix("# EOF\n").expect("the end mark is the last line");
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.split(' ');
            let (keyword, name) = (words.next().unwrap(), words.next().unwrap());
            assert!(["HELP", "TYPE", "UNIT"].contains(&keyword), "{line}");
            assert!(keyword != "TYPE" || types.insert(name.to_owned()), "{name} is declared twice");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) =
            series.split_once('{').map_or((series, ""), |(name, rest)| (name, rest.strip_suffix('}').unwrap()));
        assert!(types.iter().any(|declared| name.starts_with(declared.as_str())), "{name} is not declared");
        let labels = labels.split("\",").filter(|label| !label.is_empty()).map(|label| {
            let (name, value) = label.split_once("=\"").unwrap();
            (name.to_owned(), value.trim_end_matches('"').to_owned())
        });
        metrics.entry(name.to_owned()).or_default().push((labels.collect(), value.parse().unwrap()));
    }
    metrics
}

#[tokio::test]
async fn metrics_can_be_read_and_name_no_device() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    gateway.assigned(&TestDevice::of_fleet("sn-secret-1")).await;
    gateway
        .provision(&TestDevice::of_group("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "sn-secret-2"))
        .await
        .problem(401, "unauthorized");
    gateway.backend_get("/v1/devices/sn-secret-1/assignment").await.ok();
    gateway.send(gateway.request(Plane::Device, Method::GET, "/sn-secret-3")).await.problem(404, "no-such-path");
    let open = gateway.operator(Method::GET, "/metrics").header("Accept", "application/openmetrics-text;version=1.0.0");
    let reply = gateway.send(open).await.ok();
    assert!(reply.header("content-type").starts_with("application/openmetrics-text"), "{:?}", reply.headers);
    assert!(!reply.body.contains("secret"), "{}", reply.body);
    let metrics = parse_metrics(&reply.body);
    assert!(metrics.keys().all(|name| name.starts_with("dps_proxy_")), "{:?}", metrics.keys());
    let of = |name: &str, wanted: &[(&str, &str)]| {
        let fits = |labels: &BTreeMap<String, String>| {
            wanted.iter().all(|(name, value)| labels.get(*name).is_some_and(|label| label == value))
        };
        metrics[name].iter().filter(|(labels, _)| fits(labels)).map(|(_, value)| value).sum::<f64>()
    };
    let requests = |status| {
        of("dps_proxy_http_requests_total", &[("plane", "device"), ("route", "/v1/provision"), ("status", status)])
    };
    assert_eq!((requests("200"), requests("401")), (1.0, 1.0), "{}", reply.body);
    assert_eq!(of("dps_proxy_instance_registrations_sent_total", &[("instance", "eu-1")]), 1.0);
    assert_eq!(of("dps_proxy_instance_registered", &[("instance", "eu-1")]), 1.0);
    assert_eq!(of("dps_proxy_store_writable", &[]), 1.0);
    for (states, of_them) in [("breaker", "closed"), ("limit", "quota")] {
        let name = format!("dps_proxy_instance_{states}_state");
        assert_eq!((of(&name, &[]), of(&name, &[("state", of_them)])), (1.0, 1.0), "in one state: {states}");
    }
    assert!(of("dps_proxy_http_request_duration_seconds_count", &[("plane", "backend")]) >= 1.0);
}

#[tokio::test]
async fn the_latest_reason_of_a_block_stands_with_who_gave_it_in_record_and_log() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    gateway.assigned(&TestDevice::of_fleet("sn-1")).await;
    let block = async |body: Value| gateway.operator_post("/v1/registrations/sn-1/block", body).await.ok().json;
    let first = block(json!({})).await;
    assert_eq!((&first["blocked"]["by"], first["blocked"].get("reason")), (&json!("test-operator"), None), "{first}");
    for reason in ["stolen", "stolen\nand found"] {
        let again = block(json!({ "reason": reason })).await;
        assert_eq!(again["blocked"]["reason"], reason.replace('\n', ""), "{again}");
        assert_eq!(again["blocked"]["at"], first["blocked"]["at"], "since when");
    }
    let last = block(json!({})).await;
    assert_eq!(last["blocked"]["reason"], "stolenand found", "no reason takes none away");
    let told: Vec<_> = timeline(&last).into_iter().filter(|what| what.contains("blocked")).collect();
    let by = "blocked by operator test-operator";
    assert_eq!(told, [by.to_owned(), format!("{by}: stolen"), format!("{by}: stolenand found")]);
    let line = gateway.logged("who and why", |line| line["action"] == "block" && line["reason"] == "stolen").await;
    assert_eq!((&line["operator"], &line["registration_id"]), (&json!("test-operator"), &json!("sn-1")), "{line}");
    assert_eq!(line["instance"], "eu-1", "{line}");
}

#[tokio::test]
async fn a_device_can_be_blocked_before_anything_is_known_of_it() {
    let dps = TestDps::start().await;
    let mut gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let device = TestDevice::of_fleet("sn-1");
    let path = |action: &str| format!("/v1/registrations/SN-1{action}");
    let blocked = gateway.operator_post(&path("/block"), json!({ "reason": "stolen" })).await.ok().json;
    assert_eq!((&blocked["registrationId"], &blocked["blocked"]["reason"]), (&json!("sn-1"), &json!("stolen")));
    assert_eq!((blocked.get("tenant"), blocked.get("enrollment")), (None, None), "{blocked}");
    gateway.kill9();
    gateway.start_again().await;
    // Who cannot prove to be the device does not learn of it, who can is kept out; neither changes anything.
    gateway.ask(&device).anonymous().send().await.problem(401, "unauthorized");
    gateway.provision(&device).await.problem(403, "blocked");
    assert_eq!(gateway.operator_get(&path("")).await.ok().json, blocked);
    gateway.backend_get("/v1/devices/sn-1/assignment").await.problem(404, "blocked");
    gateway.backend_get("/v1/devices/sn-1/assignment?tenant=default").await.problem(404, "never-seen");
    for action in ["/move", "/expedite"] {
        let body = if action == "/move" { json!({ "instance": "eu-1" }) } else { json!({}) };
        gateway.operator_post(&path(action), body).await.problem(409, "not-now");
    }
    // Listing it says whose it is, and lets nobody in.
    let imported = gateway.import_csv("hardwareId,enrollment\nsn-1,fleet\n").await.ok();
    assert_eq!(imported.json["new"], 1, "{}", imported.body);
    let listed = gateway.operator_get(&path("")).await.ok().json;
    assert_eq!((&listed["tenant"], &listed["blocked"]["reason"]), (&json!("default"), &json!("stolen")), "{listed}");
    gateway.provision(&device).await.problem(403, "blocked");
    gateway.operator_post(&path("/unblock"), json!({})).await.ok();
    gateway.assigned(&device).await;

    // Where the block was all that was known, nothing is left of it.
    for undo in ["unblock", "delete"] {
        gateway.operator_post("/v1/registrations/sn-2/block", json!({})).await.ok();
        let request = match undo {
            "unblock" => gateway.operator(Method::POST, "/v1/registrations/sn-2/unblock"),
            _ => gateway.operator(Method::DELETE, "/v1/registrations/sn-2"),
        };
        assert_eq!(gateway.send(request).await.status, 204, "{undo}");
        gateway.operator_get("/v1/registrations/sn-2").await.problem(404, "unknown-registration");
    }
    gateway.operator_post("/v1/registrations/sn-2/unblock", json!({})).await.problem(404, "unknown-registration");
    gateway.assigned(&TestDevice::of_fleet("sn-2")).await;
    assert_eq!(gateway.instance_view("eu-1").await["registeredCount"], 2);
}

#[tokio::test]
async fn prometheus_own_text_format_is_the_default_and_explains_every_metric() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    gateway.assigned(&TestDevice::of_fleet("sn-1")).await;
    for accept in ["*/*", "text/plain;version=0.0.4", "text/plain", "application/json"] {
        let request = gateway.operator(Method::GET, "/metrics").header("Accept", accept);
        let reply = gateway.send(request).await.ok();
        assert_eq!(reply.header("content-type"), "text/plain; version=0.0.4; charset=utf-8", "{accept}");
        let declared = |keyword: &str| {
            let names = reply.body.lines().filter_map(|line| line.strip_prefix(keyword)?.split_once(' '));
            names.map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect::<BTreeMap<_, _>>()
        };
        let (help, types) = (declared("# HELP "), declared("# TYPE "));
        for line in reply.body.lines() {
            if line.starts_with('#') {
                assert!(line.starts_with("# HELP dps_proxy_") || line.starts_with("# TYPE dps_proxy_"), "{line}");
                continue;
            }
            let name = line.split(['{', ' ']).next().unwrap();
            let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let family = of_histogram.filter(|base| types.get(*base).is_some_and(|kind| kind == "histogram"));
            let family = family.unwrap_or(name);
            let kind = types.get(family).unwrap_or_else(|| panic!("{name} is not declared"));
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            assert!(help.get(family).is_some_and(|text| text.contains(' ')), "{family} is not explained");
        }
        assert!(!reply.body.contains("# EOF"), "that mark belongs to the other format");
    }
}

#[tokio::test]
async fn promtool_has_nothing_to_complain_about() {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = match promtool.spawn() {
        Ok(promtool) => promtool,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "promtool is needed: {error}");
            println!("skipped: needs promtool");
            return;
        }
    };
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).tls(Plane::Device).start().await;
    gateway.operator_get("/v1/instances").await.ok();
    let metrics = gateway.operator_get("/metrics").await.ok().body;
    promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{metrics}");
}

#[tokio::test]
async fn an_instance_shows_its_quota_budget_line_and_when_it_is_drained() {
    let dps = TestDps::start().await;
    let gateway = spent("eu-1", &dps).await;
    for number in 0..3 {
        assert_eq!(gateway.provision(&TestDevice::of_fleet(&format!("sn-{number}"))).await.status, 202);
    }
    let view = gateway.instance_view("eu-1").await;
    let expected = json!({
        "name": "eu-1", "idScope": dps.id_scope(), "quotaPerMinute": 1, "budget": 0, "lineLength": 3, "underWay": 0, "breaker": "closed",
        "registeredCount": 4, "capacity": 1_000_000, "draining": false,
    });
    for (member, value) in expected.as_object().unwrap() {
        assert_eq!(view[member], *value, "{member}: {view}");
    }
    assert_eq!((&view["counts"]["registrations"], &view["counts"]["assigned"]), (&json!(1), &json!(1)));
    assert_eq!((&view["limitPerMinute"], &view["limitState"]), (&json!(1), &json!("quota")));
    let ahead = |moment: &Value| {
        let moment: jiff::Timestamp = moment.as_str().unwrap().parse().unwrap();
        moment.duration_since(jiff::Timestamp::now()).as_secs()
    };
    // Three more at one per minute; the forecast of the only tenant is that of the line.
    let [tenant] = view["tenants"].as_array().unwrap().as_slice() else { panic!("{view}") };
    assert_eq!((&tenant["tenant"], &tenant["lineLength"]), (&json!("default"), &json!(3)));
    for of in [&view, tenant] {
        assert!((150..=200).contains(&ahead(&of["drainedAt"])), "{of}");
        assert!((90..=140).contains(&ahead(&of["halfDrainedAt"])), "{of}");
    }
}

#[tokio::test]
async fn devices_in_the_line_of_an_instance_that_fails_are_booked_on_another_and_it_is_said_why() {
    let (down, up) = (TestDps::start().await, TestDps::start().await);
    let builder = TestGateway::builder().instance("down", &down).instance("up", &up);
    let gateway = builder
        .set("line.rebook_after", "\"1s\"")
        .set("registration.backoff_min", "\"100ms\"")
        .set("registration.backoff_max", "\"200ms\"")
        .start()
        .await;
    down.emulator.pause().await;
    let fleet: Vec<_> = (0..8).map(|number| TestDevice::of_fleet(&format!("sn-{number}"))).collect();
    for device in &fleet {
        assert_eq!(gateway.provision(device).await.status, 202);
    }
    let hubs = futures_util::future::join_all(fleet.iter().map(|device| gateway.assigned(device))).await;
    assert_eq!(hubs.len(), fleet.len());
    let (at_down, at_up) = (gateway.instance_view("down").await, gateway.instance_view("up").await);
    assert_eq!((&at_down["registeredCount"], &at_up["registeredCount"]), (&json!(0), &json!(8)), "{at_down} {at_up}");
    let mut moved = 0;
    for device in &fleet {
        let view = gateway.operator_get(&format!("/v1/registrations/{}", device.hardware_id)).await.ok().json;
        assert_eq!(view["assignment"]["instance"], "up");
        moved += usize::from(view["timeline"].to_string().contains("booked on another instance"));
    }
    assert!(moved > 0, "none was placed on the instance that failed");
}

#[tokio::test]
async fn an_instance_that_fails_shows_its_breaker_and_known_devices_are_still_answered() {
    let (down, up) = (TestDps::start().await, TestDps::start().await);
    let builder = TestGateway::builder().instance("down", &down).instance("up", &up);
    let gateway = builder.set("instances.down.weight", "1").set("instances.up.weight", "1").start().await;
    let known: Vec<_> = (0..2).map(|number| TestDevice::of_fleet(&format!("known-{number}"))).collect();
    futures_util::future::join_all(known.iter().map(|device| gateway.assigned(device))).await;
    down.emulator.pause().await;
    let new: Vec<_> = (0..6).map(|number| TestDevice::of_fleet(&format!("new-{number}"))).collect();
    for device in &new {
        assert_eq!(gateway.provision(device).await.status, 202);
    }
    eventually("the breaker is open", async || gateway.instance_view("down").await["breaker"] == "open").await;
    for device in &known {
        gateway.provision(device).await.ok();
    }
    eventually("the other instance serves its own", async || {
        let view = gateway.instance_view("up").await;
        view["lineLength"] == 0 && view["underWay"] == 0 && view["counts"]["assigned"] == 4
    })
    .await;
    let waiting = gateway.instance_view("down").await;
    assert_eq!(waiting["counts"]["assigned"], 1, "{waiting}");
    down.emulator.resume().await.unwrap();
    futures_util::future::join_all(new.iter().map(|device| gateway.assigned(device))).await;
}

#[tokio::test]
async fn a_registration_shows_its_timeline_and_why_it_waits() {
    let dps = TestDps::start().await;
    let gateway = spent("eu-1", &dps).await;
    let done = gateway.operator_get("/v1/registrations/first").await.ok().json;
    let told = timeline(&done).join("; ");
    for word in ["joined the line of eu-1", "registration 1 sent to eu-1", &dps.hubs()[0]] {
        assert!(told.contains(word), "{word}: {told}");
    }
    assert_eq!(done.get("waitingBecause"), None);

    gateway.provision(&TestDevice::of_fleet("Second")).await;
    let waiting = gateway.operator_get("/v1/registrations/SECOND").await.ok().json;
    assert_eq!((&waiting["registrationId"], &waiting["hardwareId"]), (&json!("second"), &json!("Second")));
    let why = waiting["waitingBecause"].as_str().unwrap();
    assert!(why.contains("position 1 of 1 in the line of eu-1") && why.contains("1 registrations per minute"), "{why}");
    let _at: jiff::Timestamp = waiting["appointment"].as_str().unwrap().parse().unwrap();
    gateway.operator_get("/v1/registrations/third").await.problem(404, "unknown-registration");
    gateway.operator_get("/v1/registrations/-").await.problem(400, "invalid-registration-id");
    gateway.operator_post("/v1/registrations/third/expedite", json!({})).await.problem(404, "unknown-registration");
    // Only a move has a target; elsewhere it would be skipped in silence.
    for action in ["block", "unblock", "retry", "expedite"] {
        let path = format!("/v1/registrations/second/{action}");
        gateway.operator_post(&path, json!({ "instance": "eu-1" })).await.problem(400, "invalid-json");
    }
    gateway.operator_post("/v1/registrations/second/explode", json!({})).await.problem(404, "no-such-path");
}

#[tokio::test]
async fn an_expedited_device_goes_ahead_of_the_others_and_a_blocked_one_leaves_the_line() {
    let dps = TestDps::start().await;
    let gateway = spent("eu-1", &dps).await;
    let devices: Vec<_> = (1..=3).map(|number| TestDevice::of_fleet(&format!("sn-{number}"))).collect();
    let position = async |number: usize| gateway.provision(&devices[number - 1]).await.json["position"].clone();
    for number in 1..=3 {
        assert_eq!(position(number).await, number);
    }
    gateway.operator_post("/v1/registrations/sn-3/expedite", json!({})).await.ok();
    assert_eq!([position(3).await, position(1).await, position(2).await], [1, 2, 3]);
    gateway.operator_post("/v1/registrations/sn-1/block", json!({ "reason": "stolen" })).await.ok();
    assert_eq!([position(3).await, position(2).await], [1, 2]);
    gateway.operator_post("/v1/registrations/sn-1/unblock", json!({})).await.ok();
    assert_eq!(position(1).await, 3, "at the end of the line");
    gateway.operator_post("/v1/registrations/first/expedite", json!({})).await.problem(409, "not-now");
}

#[tokio::test]
async fn a_moved_device_gets_its_hub_from_the_instance_it_was_moved_to() {
    let (old, new) = (TestDps::start().await, TestDps::start().await);
    let builder = TestGateway::builder().instance("old", &old).instance("new", &new);
    let gateway = builder.set("instances.new.draining", "true").start().await;
    let device = TestDevice::of_fleet("sn-1");
    assert_eq!(gateway.assigned(&device).await.json["assignedHub"], old.hubs()[0]);
    gateway.operator_post("/v1/registrations/sn-1/move", json!({ "instance": "new" })).await.ok();
    assert_eq!(gateway.assigned(&device).await.json["assignedHub"], new.hubs()[0]);
    assert_eq!(gateway.backend_get("/v1/devices/sn-1/assignment").await.ok().json["instance"], "new");
    // Both instances may hold a record of it, and both count it.
    for name in ["old", "new"] {
        assert_eq!(gateway.instance_view(name).await["registeredCount"], 1, "{name}");
    }
    gateway.operator_post("/v1/registrations/sn-1/move", json!({ "instance": "new" })).await.problem(409, "not-now");
    gateway
        .operator_post("/v1/registrations/sn-1/move", json!({ "instance": "nowhere" }))
        .await
        .problem(400, "invalid-request");
    gateway.operator_post("/v1/registrations/sn-1/move", json!({})).await.problem(400, "invalid-request");
    gateway
        .operator_post("/v1/registrations/sn-1/move", json!({ "instence": "old" }))
        .await
        .problem(400, "invalid-json");
}

#[tokio::test]
async fn a_deleted_device_leaves_a_tombstone_until_dps_has_deleted_it_too() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.capacity", "1").start().await;
    let (device, next) = (TestDevice::of_fleet("sn-1"), TestDevice::of_fleet("sn-2"));
    gateway.assigned(&device).await;
    let delete = async |query: &str| {
        gateway.send(gateway.operator(Method::DELETE, &format!("/v1/registrations/sn-1{query}"))).await
    };
    delete("?dpsRecordDeletd=true").await.problem(400, "invalid-query");
    let left = delete("").await.ok();
    assert!(left.json["retired"].is_string(), "{}", left.body);
    assert_eq!(gateway.backend_get("/v1/devices/sn-1/assignment").await.ok().json["state"], "retired");
    gateway.provision(&next).await.problem(503, "no-room");
    gateway.provision(&device).await.problem(403, "retired");

    let gone = delete("?dpsRecordDeleted=true").await;
    assert_eq!((gone.status, gone.body.as_str()), (204, ""));
    delete("?dpsRecordDeleted=true").await.problem(404, "unknown-registration");
    assert_eq!(gateway.provision(&next).await.status, 202, "its room is free");
}

#[tokio::test]
async fn a_registration_that_dps_never_finishes_is_told_in_plain_words() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    dps.emulator.add_fault(Fault::new(FaultAction::StuckAssigning));
    let device = TestDevice::of_fleet("sn-1");
    gateway.provision(&device).await;
    eventually("DPS works on it", async || {
        let why = gateway.operator_get("/v1/registrations/sn-1").await.ok().json["waitingBecause"].clone();
        why.as_str().is_some_and(|why| why.contains("eu-1 is processing its registration") && why.contains("operation"))
    })
    .await;
    assert_eq!(gateway.provision(&device).await.json["position"], 0);
    gateway.operator_post("/v1/registrations/sn-1/expedite", json!({})).await.problem(409, "not-now");
}
