//! Lists in pages.

use std::collections::BTreeSet;

use dps_proxy_tests::{TestDevice, TestDps, TestGateway, eventually};
use reqwest::Method;
use serde_json::{Value, json};

const TENANT_TOKEN: &str = "token-of-one-tenant-0123456789abcdef";

/// All pages of a list; how many there were.
async fn pages(mut page: impl AsyncFnMut(String) -> Value, path: &str, member: &str) -> (Vec<Value>, usize, Value) {
    let (mut items, mut after, mut count) = (Vec::new(), String::new(), 0);
    loop {
        let body = page(format!("{path}{after}")).await;
        items.extend(body[member].as_array().unwrap().iter().cloned());
        count += 1;
        match body["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return (items, count, body),
        }
    }
}

#[tokio::test]
async fn backends_list_their_assignments_in_pages_and_follow_from_there() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).secret("one.token", TENANT_TOKEN);
    let gateway = builder
        .set("enrollments.other.group_key_file", "\"fleet.key\"")
        .set("enrollments.other.tenant", "\"other\"")
        .set("enrollments.other.audiences", "[\"other.example\"]")
        .push("backend.tokens", &[("name", "\"one\""), ("token_file", "\"one.token\""), ("tenants", "[\"other\"]")])
        .start()
        .await;
    let devices: Vec<_> = (0..7).map(|number| TestDevice::of_fleet(&format!("sn-{number}"))).collect();
    futures_util::future::join_all(devices.iter().map(|device| gateway.assigned(device))).await;
    gateway.assigned_by(&TestDevice::of_fleet("theirs"), "other.example").await;

    let list = async |path: String| gateway.backend_get(&path).await.ok().json;
    let (all, count, last) = pages(list, "/v1/assignments?limit=3", "assignments").await;
    let ids: Vec<_> = all.iter().map(|view| view["deviceId"].as_str().unwrap()).collect();
    assert_eq!(ids, ["sn-0", "sn-1", "sn-2", "sn-3", "sn-4", "sn-5", "sn-6", "theirs"]);
    assert!(count >= 3, "{count}");
    assert_eq!(all[0], gateway.backend_get("/v1/devices/sn-0/assignment").await.ok().json, "as it is told alone");

    // What changes from the list on is told by the feed.
    gateway.send(gateway.backend(Method::POST, "/v1/devices/sn-3/assignment/invalidate")).await.ok();
    let mut events = gateway.changes(last["feedPosition"].as_str()).await;
    let event = events.next_of("assignment").await;
    assert_eq!((&event.data["deviceId"], &event.data["state"]), (&json!("sn-3"), &json!("suspect")));

    // A token of one tenant sees its own, whatever it asks for.
    for path in ["/v1/assignments?limit=100", "/v1/assignments?limit=100&tenant=other"] {
        let request = gateway.request(dps_proxy_tests::gateway::Plane::Backend, Method::GET, path);
        let theirs = gateway.send(request.bearer_auth(TENANT_TOKEN)).await.ok().json;
        assert_eq!(theirs["assignments"].as_array().unwrap().len(), 1, "{theirs}");
        assert_eq!(theirs["assignments"][0]["deviceId"], "theirs");
    }
    for wrong in ["limit=0", "limit=1001", "limit=x", "after=sn-1", "befor=x", "tenant=-"] {
        let reply = gateway.backend_get(&format!("/v1/assignments?{wrong}")).await.problem(400, "invalid-query");
        assert!(!reply.detail().is_empty(), "{wrong}");
    }
    let foreign = "/v1/assignments?after=0123456789abcdef-1~sn-1";
    gateway.backend_get(foreign).await.problem(410, "list-outdated");
}

#[tokio::test]
async fn operators_list_registrations_by_state_tenant_and_instance() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.quota_per_minute", "2");
    let gateway = builder.start().await;
    for done in ["done-1", "done-2"] {
        gateway.assigned(&TestDevice::of_fleet(done)).await;
    }
    for waiting in ["waits-1", "waits-2", "waits-3"] {
        assert_eq!(gateway.provision(&TestDevice::of_fleet(waiting)).await.status, 202);
    }
    gateway.import_csv("hardwareId,enrollment\nlisted-1,fleet\n").await.ok();
    let list = async |path: String| gateway.operator_get(&path).await.ok().json;
    let ids = |items: &[Value]| -> BTreeSet<String> {
        items.iter().map(|item| item["registrationId"].as_str().unwrap().to_owned()).collect()
    };
    let (all, count, _) = pages(list, "/v1/registrations?limit=2", "registrations").await;
    assert_eq!((all.len(), ids(&all).len()), (6, 6));
    assert!(count >= 3, "{count}");
    for (query, expected) in [
        ("state=waiting", vec!["waits-1", "waits-2", "waits-3"]),
        ("state=assigned&tenant=default&instance=eu-1", vec!["done-1", "done-2"]),
        ("state=listed", vec!["listed-1"]),
        ("state=retired", vec![]),
        ("instance=nowhere", vec![]),
    ] {
        let (found, _, _) = pages(list, &format!("/v1/registrations?{query}"), "registrations").await;
        assert_eq!(ids(&found), expected.into_iter().map(str::to_owned).collect(), "{query}");
    }
    let reply = gateway.operator_get("/v1/registrations?state=lost").await.problem(400, "invalid-query");
    assert!(reply.detail().contains("under-way"), "it names the states: {}", reply.detail());
    gateway.operator_get("/v1/registrations?stat=waiting").await.problem(400, "invalid-query");
    let secretless = gateway.operator_get("/v1/registrations").await.ok().body;
    assert!(!secretless.contains("timeline"), "a summary: {secretless}");
}

#[tokio::test]
async fn a_token_reads_all_records_once_at_a_time_and_others_are_answered_meanwhile() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let mut csv = "hardwareId,enrollment\n".to_owned();
    for number in 0..20_000 {
        csv.push_str(&format!("sn-{number:06},fleet\n"));
    }
    gateway.import_csv(csv).await.ok();
    gateway.assigned(&TestDevice::of_fleet("known")).await;
    let invalidate = || gateway.send(gateway.backend(Method::POST, "/v1/hubs/absent.azure-devices.net/invalidate"));
    eventually("of two at once one is refused, and others are answered meanwhile", async || {
        let known = gateway.backend_get("/v1/devices/known/assignment");
        let (first, second, known) = tokio::join!(invalidate(), invalidate(), known);
        known.ok();
        // Which of the two came first is for the network to say; the other may also have come after its end.
        let (done, other) = if first.status == 200 { (first, second) } else { (second, first) };
        assert_eq!(done.ok().json["invalidated"], 0);
        if other.status == 200 {
            return false;
        }
        let refused = other.problem(429, "one-at-a-time");
        assert_eq!(refused.header("retry-after"), "1");
        true
    })
    .await;
    assert_eq!(invalidate().await.status, 200, "afterwards it goes again");
}
