//! 400, 408, 413, 415 and 431.

use std::time::Duration;

use dps_proxy_tests::gateway::Plane;
use dps_proxy_tests::{Reply, TestDevice, TestDps, TestGateway, raw};
use reqwest::Method;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

async fn gateway() -> TestGateway {
    TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await
}

async fn post(gateway: &TestGateway, content_type: &str, body: impl Into<reqwest::Body>) -> Reply {
    let request = gateway.request(Plane::Device, Method::POST, "/v1/provision").header("Content-Type", content_type);
    gateway.send(request.body(body)).await
}

#[tokio::test]
async fn a_body_that_is_not_the_expected_json_is_400() {
    let gateway = gateway().await;
    for body in [
        "",
        "{",
        "[]",
        r#" ["sn-1",{"a":1},false]"#,
        "null",
        "\"sn-1\"",
        "{}",
        r#"{"hardwareId":7}"#,
        r#"{"hardwareId":null}"#,
        r#"{"hardwareId":"a","payload":[]}"#,
        r#"{"hardwareId":"a","payload":"x"}"#,
        r#"{"hardwareId":"a","reprovision":"yes"}"#,
        r#"{"hardwareId":"a","reprovision":1}"#,
        r#"{"hardwareId":"a"} {}"#,
        r#"{"hardwareId":"a","hardwareId":"b"}"#,
    ] {
        let reply = post(&gateway, "application/json", body).await.problem(400, "invalid-json");
        assert!(reply.detail().starts_with("the body"), "{body}: {}", reply.detail());
    }
    let unknown = post(&gateway, "application/json; charset=utf-8", r#"{"hardwareId":"a","reprovsion":true}"#).await;
    assert!(unknown.problem(400, "invalid-json").detail().contains("reprovsion"), "a misspelt member is named");
}

#[tokio::test]
async fn an_ill_formed_hardware_id_is_400_and_the_rule_is_named() {
    let gateway = gateway().await;
    let too_long = "a".repeat(129);
    for id in ["", "-a", ".a", "a.", "a:", "a_", "a b", "ä", "a/b", "a%41", "a\u{0}", "a\n", too_long.as_str()] {
        let device = TestDevice::of_fleet(id);
        let reply = gateway.ask(&device).authorization("Bearer x").send().await.problem(400, "invalid-hardware-id");
        assert!(reply.detail().contains("^[a-z0-9]([a-z0-9._:-]{0,126}[a-z0-9-])?$"), "{}", reply.detail());
    }
    let longest = TestDevice::of_fleet(&"A".repeat(128));
    assert_eq!(gateway.provision(&longest).await.status, 202, "128 characters are allowed");
    assert_eq!(gateway.provision(&TestDevice::of_fleet("Gw01:sensor_9.x-A-")).await.status, 202);
}

#[tokio::test]
async fn a_body_or_payload_that_is_too_large_is_413_and_the_limit_is_named() {
    let gateway = gateway().await;
    let reply = post(&gateway, "application/json", "x".repeat(8193)).await.problem(413, "body-too-large");
    assert!(reply.detail().contains("8192") && reply.detail().contains("body_max_bytes"), "{}", reply.detail());

    let device = TestDevice::of_fleet("sn-1");
    let payload = |bytes: usize| json!({ "x": "y".repeat(bytes - r#"{"x":""}"#.len()) });
    let reply = gateway.ask(&device).with("payload", payload(4097)).send().await.problem(413, "payload-too-large");
    assert!(
        reply.detail().contains("4096") && reply.detail().contains("device.payload_max_bytes"),
        "{}",
        reply.detail()
    );
    assert_eq!(gateway.ask(&device).with("payload", payload(4096)).send().await.status, 202, "4 KiB are allowed");
}

#[tokio::test]
async fn another_content_type_is_415() {
    let gateway = gateway().await;
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        let reply = post(&gateway, content_type, r#"{"hardwareId":"a"}"#).await.problem(415, "unsupported-media-type");
        assert!(reply.detail().contains("application/json"));
    }
}

#[tokio::test]
async fn a_flood_of_headers_is_431() {
    let gateway = gateway().await;
    let device = TestDevice::of_fleet("sn-1");
    let mut request =
        gateway.request(Plane::Device, Method::POST, "/v1/provision").json(&json!({ "hardwareId": "sn-1" }));
    for number in 0..70 {
        request = request.header(format!("x-flood-{number}"), "x");
    }
    let reply = gateway
        .send(request.header("Authorization", device.usual_credential()))
        .await
        .problem(431, "headers-too-large");
    assert!(reply.detail().contains("64"), "{}", reply.detail());

    let large = gateway.request(Plane::Device, Method::GET, "/v1/time").header("x-large", "x".repeat(20_000));
    let reply = gateway.send(large).await.problem(431, "headers-too-large");
    assert!(reply.detail().contains("16384"), "{}", reply.detail());
}

#[tokio::test]
async fn each_listener_has_header_bounds_of_its_own() {
    let builder = TestGateway::builder().instance("eu-1", &TestDps::start().await);
    let builder = builder.set("backend.headers_max", "90").set("operator.header_bytes_max", "1024");
    let gateway = builder.start().await;
    let flood = |plane, fields: usize| {
        let request = gateway.request(plane, Method::GET, "/v1/time");
        (0..fields).fold(request, |request, number| request.header(format!("x-flood-{number}"), "x"))
    };
    gateway.send(flood(Plane::Device, 70)).await.problem(431, "headers-too-large");
    gateway.send(flood(Plane::Backend, 70)).await.problem(404, "no-such-path");
    let reply = gateway.send(flood(Plane::Backend, 92)).await.problem(431, "headers-too-large");
    assert!(reply.detail().contains("90") && reply.detail().contains("headers_max"), "{}", reply.detail());
    let large = gateway.request(Plane::Operator, Method::GET, "/healthz").header("x-large", "x".repeat(1000));
    let reply = gateway.send(large).await.problem(431, "headers-too-large");
    assert!(reply.detail().contains("1024") && reply.detail().contains("header_bytes_max"), "{}", reply.detail());
}

#[tokio::test]
async fn what_is_refused_before_it_is_a_request_has_a_status_and_nothing_else() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).set("device.request_timeout", "\"1s\"").start().await;
    let fields = (0..100).fold(String::new(), |fields, number| fields + &format!("x-{number}: x\r\n"));
    for (what, status, request) in [
        ("broken HTTP", 400, "GET /v1/time HTTP/1.1\r\nx y: z\r\n\r\n".to_owned()),
        ("100 fields", 431, format!("GET /v1/time HTTP/1.1\r\nHost: a\r\n{fields}\r\n")),
        ("a head of 140 kB", 431, format!("GET /v1/time HTTP/1.1\r\nHost: a\r\nx: {}", "x".repeat(140_000))),
        ("a head that never ends", 408, "GET /v1/time HTTP/1.1\r\nHost: a\r\n".to_owned()),
    ] {
        let reply = raw::exchange(gateway.address(Plane::Device), request.as_bytes()).await;
        assert_eq!(reply.status(), status, "{what}: {}", reply.text);
        assert_eq!((reply.header("content-type"), reply.json()), ("", json!(null)), "{what}: {}", reply.text);
    }
}

#[tokio::test]
async fn a_request_that_is_too_slow_is_408() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).set("device.request_timeout", "\"1s\"").start().await;
    let address = gateway.address(Plane::Device);

    let mut slow_body = TcpStream::connect(address).await.unwrap();
    let head = "POST /v1/provision HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"hardware";
    slow_body.write_all(head.as_bytes()).await.unwrap();
    let mut slow_head = TcpStream::connect(address).await.unwrap();
    slow_head.write_all(b"POST /v1/provision HTTP/1.1\r\nHost: gate").await.unwrap();

    let (body, head) = tokio::join!(raw::read_to_end(&mut slow_body), raw::read_to_end(&mut slow_head));
    assert_eq!(body.status(), 408, "{}", body.text);
    assert_eq!(
        (body.header("content-type"), &body.json()["code"]),
        ("application/problem+json", &json!("request-timeout"))
    );
    assert!(body.json()["detail"].as_str().unwrap().contains("request_timeout"), "{}", body.text);
    assert_eq!(head.status(), 408, "{}", head.text);

    // Bytes that keep dripping do not extend the time.
    let mut dripping = TcpStream::connect(address).await.unwrap();
    dripping.write_all(b"POST /v1/provision HTTP/1.1\r\n").await.unwrap();
    let began = std::time::Instant::now();
    while dripping.write_all(b"x-drip: x\r\n").await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(10), "dripping keeps a connection open for ever");
        // The pace of the attack, not a wait for anything.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_path_or_method_that_does_not_exist_is_404_or_405() {
    let gateway = gateway().await;
    for plane in Plane::ALL {
        for path in ["/", "/v2/provision", "/v1/provision/", "/v1/%2e%2e/x", "/v1/nothing"] {
            gateway.send(gateway.request(plane, Method::GET, path)).await.problem(404, "no-such-path");
        }
    }
    for (plane, method, path, allowed) in [
        (Plane::Device, Method::GET, "/v1/provision", "POST"),
        (Plane::Device, Method::DELETE, "/v1/provision", "POST"),
        (Plane::Device, Method::POST, "/v1/time", "GET"),
        (Plane::Backend, Method::POST, "/v1/devices/a/assignment", "GET"),
        (Plane::Backend, Method::GET, "/v1/assignments/lookup", "POST"),
        (Plane::Operator, Method::GET, "/v1/config/reload", "POST"),
        (Plane::Operator, Method::PUT, "/v1/registrations/a", "GET"),
        (Plane::Operator, Method::GET, "/v1/registrations/a/block", "POST"),
    ] {
        let reply = gateway.send(gateway.request(plane, method, path)).await.problem(405, "method-not-allowed");
        assert!(reply.header("allow").contains(allowed), "{path}: RFC 9110 wants Allow with 405: {:?}", reply.headers);
    }
}
