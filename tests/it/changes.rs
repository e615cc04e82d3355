//! The stream of changes.

use dps_proxy_tests::gateway::Plane;
use dps_proxy_tests::sse::Events;
use dps_proxy_tests::{TestDevice, TestDps, TestGateway, eventually};
use reqwest::Method;
use serde_json::json;

#[tokio::test]
async fn every_change_is_told_in_order_and_a_reader_resumes_without_a_gap_across_a_crash() {
    let dps = TestDps::start().await;
    let mut gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let device = TestDevice::of_fleet("sn-1");
    let mut events = gateway.changes(None).await;
    let greeting = events.next().await.unwrap();
    gateway.assigned(&device).await;
    let assigned = events.next_of("assignment").await;
    let expected = json!({
        "tenant": "default", "deviceId": "sn-1", "registrationId": "sn-1", "assignedHub": dps.hubs()[0], "instance": "eu-1", "state": "confirmed",
    });
    for (member, value) in expected.as_object().unwrap() {
        assert_eq!(assigned.data[member], *value, "{member}: {}", assigned.data);
    }
    gateway.send(gateway.backend(Method::POST, "/v1/devices/sn-1/assignment/invalidate")).await.ok();
    let suspect = events.next_of("assignment").await;
    assert_eq!(suspect.data["state"], "suspect");
    assert!(suspect.data["revision"].as_u64() > assigned.data["revision"].as_u64());
    drop(events);

    // While nobody listens: another device gets its hub, and the service crashes.
    gateway.assigned(&TestDevice::of_fleet("sn-2")).await;
    gateway.kill9();
    gateway.start_again().await;
    gateway.send(gateway.operator(Method::DELETE, "/v1/registrations/sn-2")).await.ok();
    let mut resumed = gateway.changes(Some(&assigned.id)).await;
    assert_eq!(resumed.next_of("assignment").await, suspect, "what was seen before the crash, as it was");
    let mut told = Vec::new();
    while told.len() < 2 {
        let event = resumed.next_of("assignment").await;
        if event.data["deviceId"] == "sn-2" {
            told.push(event.data["state"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(told, ["confirmed", "retired"]);
    // From the greeting on everything is there; the query parameter serves browsers.
    let path = format!("/v1/assignments/changes?lastEventId={}", greeting.id);
    let response = gateway.backend(Method::GET, &path).send().await.unwrap();
    assert_eq!(Events::new(response).next_of("assignment").await, assigned);
}

#[tokio::test]
async fn an_event_id_that_is_not_kept_gets_a_reset() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    for foreign in ["0123456789abcdef-7", "nonsense", "-", "18446744073709551616"] {
        let mut events = gateway.changes(Some(foreign)).await;
        let first = events.next().await.unwrap();
        assert_eq!(first.kind, "reset", "{foreign}");
        // The ID that comes with the reset is one to resume from.
        let resumed = gateway.changes(Some(&first.id)).await.next().await.unwrap();
        assert_eq!(resumed.kind, "", "{foreign}");
    }
}

#[tokio::test]
async fn streams_are_bounded_and_end_when_the_service_stops() {
    let dps = TestDps::start().await;
    let mut gateway =
        TestGateway::builder().instance("eu-1", &dps).set("backend.change_streams_max", "2").start().await;
    let mut open = vec![gateway.changes(None).await, gateway.changes(None).await];
    for events in &mut open {
        events.next().await.unwrap();
    }
    let reply = gateway.backend_get("/v1/assignments/changes").await.problem(503, "too-many-streams");
    assert!(reply.detail().contains("backend.change_streams_max"), "{}", reply.detail());
    assert_eq!(gateway.terminate().await.code(), Some(0));
    for mut events in open {
        assert_eq!(events.next().await, None);
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_gives_its_room_back_at_once() {
    let builder = TestGateway::builder().instance("eu-1", &TestDps::start().await).tls(Plane::Backend);
    let builder = builder.set("backend.change_streams_max", "1").set("backend.change_heartbeat", "\"5m\"");
    let gateway = builder.start().await;
    for _ in 0..2 {
        let mut events = gateway.changes(None).await;
        events.next().await.unwrap();
        gateway.backend_get("/v1/assignments/changes").await.problem(503, "too-many-streams");
        drop(events);
        let room =
            async || gateway.backend(Method::HEAD, "/v1/assignments/changes").send().await.unwrap().status() == 200;
        eventually("there is room", room).await;
    }
}

#[tokio::test]
async fn a_reader_of_a_quiet_tenant_hears_heartbeats_while_others_are_busy_and_resumes_behind_them() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("backend.change_heartbeat", "\"1s\"");
    let builder = builder
        .set("enrollments.quiet.tenant", "\"quiet\"")
        .set("enrollments.quiet.group_key_file", "\"fleet.key\"")
        .set("enrollments.quiet.audiences", "[\"quiet.test\"]");
    let gateway = builder.start().await;
    let following = |last_seen: String| {
        gateway.backend(Method::GET, "/v1/assignments/changes?tenant=quiet").header("Last-Event-ID", last_seen).send()
    };
    let mut events = Events::new(following(String::new()).await.unwrap());
    let greeting = events.next().await.unwrap();
    // One change after the other, none of them this reader's, and each sooner than a heartbeat after the one before.
    let busy = async {
        for number in 0.. {
            gateway.assigned(&TestDevice::of_fleet(&format!("busy-{number}"))).await;
        }
    };
    let hears = async {
        let mut heard = Vec::new();
        while heard.len() < 2 || heard.last() == Some(&greeting.id) {
            let event = events.next().await.expect("the stream goes on");
            assert_eq!(event.kind, "", "nothing of another tenant: {event:?}");
            heard.push(event.id);
        }
        heard.pop().expect("a heartbeat")
    };
    let position = tokio::select! {
        () = busy => unreachable!("it goes on for ever"),
        position = hears => position,
    };
    drop(events);
    let mut resumed = Events::new(following(position.clone()).await.unwrap());
    assert_eq!(resumed.next().await.unwrap().id, position);
    gateway.assigned_by(&TestDevice::of_fleet("sn-1"), "quiet.test").await;
    assert_eq!(resumed.next_of("assignment").await.data["deviceId"], "sn-1");
}

#[tokio::test]
async fn an_empty_last_event_id_is_none() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    for (header, query) in [(Some(""), ""), (Some(" "), ""), (None, "?lastEventId="), (Some(""), "?lastEventId=")] {
        let mut request = gateway.backend(Method::GET, &format!("/v1/assignments/changes{query}"));
        if let Some(id) = header {
            request = request.header("Last-Event-ID", id);
        }
        let mut events = Events::new(request.send().await.unwrap());
        let greeting = events.next().await.unwrap();
        assert_ne!(greeting.kind, "reset", "{header:?} {query}: {greeting:?}");
    }
}
