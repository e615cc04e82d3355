//! Input that nobody means well. Whatever comes, the service answers or closes, writes nothing, and goes on. (The harness fails
//! every test whose service has panicked.)

use dps_proxy_tests::gateway::{BACKEND_TOKEN, OPERATOR_TOKEN, Plane};
use dps_proxy_tests::raw::{RawReply, exchange, provision_request};
use dps_proxy_tests::{TestDevice, TestDps, TestGateway};
use reqwest::Method;
use serde_json::json;

struct Victim {
    gateway: TestGateway,
    dps: TestDps,
    device: TestDevice,
}

impl Victim {
    async fn start() -> Self {
        let dps = TestDps::start().await;
        let gateway =
            TestGateway::builder().instance("eu-1", &dps).set("device.request_timeout", "\"2s\"").start().await;
        Self { gateway, dps, device: TestDevice::of_fleet("victim") }
    }

    async fn send(&self, bytes: &[u8]) -> RawReply {
        exchange(self.gateway.address(Plane::Device), bytes).await
    }

    /// Sends a body with the device's own, valid credential.
    async fn post(&self, body: &[u8]) -> RawReply {
        self.send(&provision_request(&format!("Authorization: {}\r\n", self.device.usual_credential()), body)).await
    }

    /// It still answers, nobody was called and nothing was written.
    async fn is_unharmed(&self) {
        let view = self.gateway.instance_view("eu-1").await;
        assert_eq!((&view["registeredCount"], &view["lineLength"]), (&json!(0), &json!(0)), "{view}");
        let stats = self.dps.emulator.stats();
        assert_eq!((stats.registers, stats.polls, stats.lookups), (0, 0, 0));
        assert_eq!(self.gateway.provision(&self.device).await.status, 202);
    }
}

#[tokio::test]
async fn bodies_that_no_parser_likes_are_400() {
    let victim = Victim::start().await;
    let deep = |open: &str, close: &str, depth: usize| {
        format!(r#"{{"hardwareId":"victim","payload":{}{}}}"#, open.repeat(depth), close.repeat(depth))
    };
    let bodies: Vec<Vec<u8>> = vec![
        deep("[", "]", 3000).into(),
        deep(r#"{"a":"#, "}", 1000).into(),
        format!(r#"{{"hardwareId":"victim","payload":{}"#, "[".repeat(8000)).into(),
        br#"{"hardwareId":"victim","payload":{"n":1e999999}}"#.to_vec(),
        br#"{"hardwareId":"victim","payload":{"n":-}}"#.to_vec(),
        br#"{"hardwareId":"victim","payload":{"n":0x10}}"#.to_vec(),
        br#"{"hardwareId":"victim","payload":{"n":NaN}}"#.to_vec(),
        b"{\"hardwareId\":\"vic\xfftim\"}".to_vec(),
        b"{\"hardwareId\":\"vic\xed\xa0\x80tim\"}".to_vec(),
        br#"{"hardwareId":"\ud800"}"#.to_vec(),
        br#"{"hardwareId":"\u0000"}"#.to_vec(),
        b"{\"hardwareId\":\"vic\0tim\"}".to_vec(),
        // One byte order mark is ignored, not two.
        b"\xef\xbb\xbf\xef\xbb\xbf{\"hardwareId\":\"victim\"}".to_vec(),
        b"\0".repeat(8192),
        b"\x1f\x8b\x08\x00".to_vec(),
    ];
    for body in bodies {
        let reply = victim.post(&body).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        assert_eq!(reply.status(), 400, "{shown}: {}", reply.text);
        assert_eq!(reply.header("content-type"), "application/problem+json", "{shown}");
        assert!(reply.text.len() < 1500, "a refusal is short: {}", reply.text);
    }
    victim.is_unharmed().await;
}

#[tokio::test]
async fn numbers_of_any_size_are_passed_on_or_refused_but_not_harmful() {
    let victim = Victim::start().await;
    let digits = "9".repeat(3000);
    for number in [digits.as_str(), "1e308", "-0", "123456789012345678901234567890", "0.1e-400"] {
        let reply = victim.post(format!(r#"{{"hardwareId":"victim","payload":{{"n":{number}}}}}"#).as_bytes()).await;
        assert!([202, 200, 400].contains(&reply.status()), "{number}: {}", reply.text);
    }
    assert_eq!(victim.gateway.assigned(&victim.device).await.status, 200);
}

#[tokio::test]
async fn requests_that_are_no_http_are_refused_and_closed() {
    let victim = Victim::start().await;
    let many = (0..2000).fold(String::new(), |headers, number| headers + &format!("x-{number}: x\r\n"));
    let long = "a".repeat(100_000);
    let requests: Vec<(&str, Vec<u8>)> = vec![
        ("2,000 headers", provision_request(&many, b"{}")),
        ("a header of 100 kB", provision_request(&format!("x: {long}\r\n"), b"{}")),
        ("a URL of 100 kB", format!("GET /{long} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").into()),
        ("no HTTP", b"hello\r\n\r\n".to_vec()),
        ("a TLS handshake", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
        ("null bytes", b"\0\0\0\0\r\n\r\n".to_vec()),
        ("a null byte in a header", provision_request("x: a\0b\r\n", b"{}")),
        ("a bare carriage return", provision_request("x: a\rb\r\n", b"{}")),
        ("a space before the colon", provision_request("x : a\r\n", b"{}")),
        (
            "two lengths",
            b"POST /v1/provision HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}".to_vec(),
        ),
        ("a negative length", b"POST /v1/provision HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n{}".to_vec()),
        (
            "a huge length",
            b"POST /v1/provision HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n{}".to_vec(),
        ),
        ("HTTP/2 without being asked", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
    ];
    for (what, request) in requests {
        let reply = victim.send(&request).await;
        assert!((400..600).contains(&reply.status()) || reply.text.is_empty(), "{what}: {}", reply.text);
        assert!(!reply.statuses().contains(&500), "{what}: {}", reply.text);
    }
    victim.is_unharmed().await;
}

#[tokio::test]
async fn chunks_that_are_garbage_or_disagree_with_a_length_are_not_taken() {
    let victim = Victim::start().await;
    let head = format!(
        "POST /v1/provision HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nAuthorization: {}\r\n",
        victim.device.usual_credential()
    );
    let body = r#"{"hardwareId":"victim"}"#;
    for (what, rest) in [
        ("no number", "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n".to_owned()),
        (
            "a number that overflows",
            format!("Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{body}\r\n0\r\n\r\n"),
        ),
        ("no end of a chunk", format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}GARBAGE0\r\n\r\n", body.len())),
        ("an unknown coding", format!("Transfer-Encoding: gzip\r\n\r\n{body}")),
        (
            "an ambiguous length, the other way round",
            format!(
                "Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/time HTTP/1.1\r\nHost: a\r\n\r\n",
                body.len()
            ),
        ),
        (
            "an ambiguous length",
            format!(
                "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\nGET /v1/time HTTP/1.1\r\nHost: a\r\n\r\n",
                body.len()
            ),
        ),
    ] {
        let reply = victim.send(format!("{head}{rest}").as_bytes()).await;
        let statuses = reply.statuses();
        assert!(
            statuses.iter().all(|status| (400..500).contains(status)) && statuses.len() <= 1,
            "{what}: {}",
            reply.text
        );
    }
    victim.is_unharmed().await;
    let sound = format!(
        "{head}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        &body[..5],
        body.len() - 5,
        &body[5..]
    );
    let reply = victim.send(sound.as_bytes()).await;
    assert!([200, 202].contains(&reply.status()), "sound chunks are taken: {}", reply.text);
}

#[tokio::test]
async fn a_chunked_body_that_never_ends_does_not_hold_its_connection_for_ever() {
    let victim = Victim::start().await;
    for head in [
        "POST /v1/provision HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n",
        "POST /v1/provision HTTP/1.1\r\nHost: a\r\n",
        "POST /nowhere HTTP/1.1\r\nHost: a\r\n",
        "GET /v1/time HTTP/1.1\r\nHost: a\r\n",
    ] {
        // Reading to the end of the connection fails if it has none.
        let reply = victim.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n50\r\n{{").as_bytes()).await;
        assert!([200, 404, 408, 415].contains(&reply.status()), "{}", reply.text);
    }
    victim.is_unharmed().await;
}

#[tokio::test]
async fn odd_but_legal_http_is_answered() {
    let victim = Victim::start().await;
    let time = "GET /v1/time HTTP/1.1\r\nHost: gateway.test\r\n";
    let pipelined = victim.send(format!("{time}\r\n{time}\r\n{time}Connection: close\r\n\r\n").as_bytes()).await;
    assert_eq!(pipelined.statuses(), [200, 200, 200], "pipelining");
    let old = victim.send(b"GET /v1/time HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.status(), 200, "HTTP/1.0 without Host: {}", old.text);
    let wrong_host =
        victim.send(b"GET /v1/time HTTP/1.1\r\nHost: elsewhere.example:99999\r\nConnection: close\r\n\r\n").await;
    assert_eq!(wrong_host.status(), 200);
    let absolute = victim
        .send(b"GET http://elsewhere.example/v1/time HTTP/1.1\r\nHost: elsewhere.example\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(absolute.status(), 200, "{}", absolute.text);
    for (target, status) in [
        ("/v1/time?x=%zz&%00", 200),
        ("/v1/%zz", 404),
        ("/v1/%00", 404),
        ("//v1//time", 404),
        ("/v1/../v1/time", 404),
        ("/%2e%2e/%2e%2e/etc/passwd", 404),
    ] {
        let reply =
            victim.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes()).await;
        assert_eq!(reply.status(), status, "{target}: {}", reply.text);
    }
    victim.is_unharmed().await;
}

#[tokio::test]
async fn credentials_that_are_garbage_are_401_and_cost_nothing() {
    let victim = Victim::start().await;
    let body = br#"{"hardwareId":"victim"}"#;
    let se = "4000000000";
    let garbage = [
        "SharedAccessSignature sr=%zz&sig=%zz&se=%zz".to_owned(),
        format!("SharedAccessSignature sr=gateway.test%2Fregistrations%2Fvictim&sig=&se={se}"),
        format!("SharedAccessSignature sr=gateway.test%2Fregistrations%2Fvictim&sig={}&se={se}", "A".repeat(1500)),
        format!("SharedAccessSignature sr=%ff%fe&sig=AAAA&se={se}"),
        "SharedAccessSignature sr=gateway.test%2Fregistrations%2Fvictim&sig=AAAA&se=99999999999999999999999999"
            .to_owned(),
        "SharedAccessSignature sr=gateway.test%2Fregistrations%2Fvictim&sig=AAAA&se=-1".to_owned(),
        "SharedAccessSignature &&&===".to_owned(),
        "Bearer".to_owned(),
        "Bearer \u{e9}\u{e9}".to_owned(),
        "sharedaccesssignature".to_owned(),
    ];
    for value in garbage {
        let reply = victim.send(&provision_request(&format!("Authorization: {value}\r\n"), body)).await;
        assert_eq!((reply.status(), &reply.json()["code"]), (401, &json!("unauthorized")), "{value}: {}", reply.text);
    }
    victim.is_unharmed().await;
}

#[tokio::test]
async fn two_credentials_in_one_request_are_400_on_every_plane() {
    let victim = Victim::start().await;
    let right = victim.device.usual_credential();
    for (plane, path, accepted) in [
        (Plane::Device, "/v1/time", right.as_str()),
        (Plane::Backend, "/v1/devices/victim/assignment", BACKEND_TOKEN),
        (Plane::Operator, "/v1/instances", OPERATOR_TOKEN),
    ] {
        for (first, second) in [(accepted, "x"), ("x", accepted), (accepted, accepted)] {
            let request = victim.gateway.request(plane, Method::GET, path);
            let request = request.header("Authorization", format!("Bearer {first}"));
            let reply = victim.gateway.send(request.header("Authorization", format!("Bearer {second}"))).await;
            reply.problem(400, "several-credentials");
        }
    }
    let twice = format!("Authorization: {right}\r\nAuthorization: {right}\r\n");
    let reply = victim.send(&provision_request(&twice, br#"{"hardwareId":"victim"}"#)).await;
    assert_eq!(reply.status(), 400, "{}", reply.text);
    victim.is_unharmed().await;
}

#[tokio::test]
async fn the_length_of_a_body_holds_even_if_the_request_asks_for_another_protocol() {
    let victim = Victim::start().await;
    let fields = format!(
        "Authorization: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        victim.device.usual_credential()
    );
    let request = provision_request(&fields, br#"{"hardwareId":"victim"}"#);
    let reply = victim.send(&request).await;
    assert_eq!(reply.statuses(), [202], "{}", reply.text);
    // What follows belongs to nobody: the connection is closed behind the answer.
    let followed = [&request[..], b"GET /v1/time HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
    let reply = victim.send(&followed).await;
    assert_eq!(reply.statuses(), [202], "{}", reply.text);
    let without = "GET /v1/time HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(victim.send(without.as_bytes()).await.statuses(), [200], "a request without a length has no body");
}
