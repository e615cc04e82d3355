//! The stream of changes.

use dps_proxy_tests::{TestDevice, TestDps, TestGateway};
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
    assert_eq!(dps_proxy_tests::sse::Events::new(response).next_of("assignment").await, assigned);
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
async fn an_empty_last_event_id_is_none() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    for (header, query) in [(Some(""), ""), (Some(" "), ""), (None, "?lastEventId="), (Some(""), "?lastEventId=")] {
        let mut request = gateway.backend(Method::GET, &format!("/v1/assignments/changes{query}"));
        if let Some(id) = header {
            request = request.header("Last-Event-ID", id);
        }
        let mut events = dps_proxy_tests::sse::Events::new(request.send().await.unwrap());
        let greeting = events.next().await.unwrap();
        assert_ne!(greeting.kind, "reset", "{header:?} {query}: {greeting:?}");
    }
}
