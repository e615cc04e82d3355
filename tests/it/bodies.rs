//! Bodies as clients really send them: compressed, with a byte order mark, with members that are not quite right.

use std::io::Write as _;

use dps_proxy_tests::gateway::Plane;
use dps_proxy_tests::{Reply, TestDevice, TestDps, TestGateway};
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use reqwest::Method;
use serde_json::json;

async fn gateway() -> TestGateway {
    TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// `POST /v1/provision` with this body and these headers, as a device that is believed.
async fn provision(gateway: &TestGateway, body: impl Into<reqwest::Body>, headers: &[(&str, &str)]) -> Reply {
    let device = TestDevice::of_fleet("sn-1");
    let mut request = gateway
        .request(Plane::Device, Method::POST, "/v1/provision")
        .header("Authorization", device.usual_credential())
        .body(body);
    if !headers.iter().any(|(name, _)| *name == "Content-Type") {
        request = request.header("Content-Type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    gateway.send(request).await
}

#[tokio::test]
async fn a_compressed_body_is_read_on_every_plane() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let body = br#"{"hardwareId":"sn-1"}"#;
    for (coding, bytes) in [
        ("gzip", gzip(body)),
        ("GZIP", gzip(body)),
        ("x-gzip", gzip(body)),
        ("deflate", zlib(body)),
        ("identity", body.to_vec()),
        ("", body.to_vec()),
        ("identity, gzip", gzip(body)),
    ] {
        let reply = provision(&gateway, bytes, &[("Content-Encoding", coding)]).await;
        assert!([200, 202].contains(&reply.status), "{coding}: {}", reply.body);
    }
    gateway.assigned(&TestDevice::of_fleet("sn-1")).await;
    let lookup = gateway.backend(Method::POST, "/v1/assignments/lookup").header("Content-Encoding", "gzip");
    let lookup = lookup.header("Content-Type", "application/json").body(gzip(br#"{"deviceIds":["sn-1"]}"#));
    assert_eq!(gateway.send(lookup).await.ok().json["assignments"][0]["found"], true);

    let csv =
        (0..2000).fold("hardwareId,enrollment\n".to_owned(), |csv, number| csv + &format!("mac-{number},fleet\n"));
    let import = gateway.operator(Method::POST, "/v1/registrations/import").header("Content-Encoding", "gzip");
    let reply = gateway.send(import.header("Content-Type", "text/csv").body(gzip(csv.as_bytes()))).await.ok();
    assert_eq!((&reply.json["new"], &reply.json["rows"]), (&json!(2000), &json!(2000)), "{}", reply.body);
}

#[tokio::test]
async fn another_coding_is_415_and_named_and_one_that_is_not_what_it_says_is_400() {
    let gateway = gateway().await;
    let body = br#"{"hardwareId":"sn-1"}"#;
    for coding in ["br", "zstd", "compress", "gzip, gzip", "aes128gcm"] {
        let reply = provision(&gateway, &body[..], &[("Content-Encoding", coding)]).await;
        let reply = reply.problem(415, "unsupported-content-encoding");
        assert!(reply.detail().contains("Content-Encoding") && reply.detail().contains("gzip"), "{}", reply.body);
        assert!(reply.header("accept-encoding").contains("gzip"), "RFC 7694: {:?}", reply.headers);
    }
    let whole = gzip(body);
    let mut damaged = whole.clone();
    damaged[whole.len() - 6] ^= 1;
    for bytes in [body.to_vec(), whole[..whole.len() - 3].to_vec(), damaged] {
        let reply = provision(&gateway, bytes, &[("Content-Encoding", "gzip")]).await;
        let reply = reply.problem(400, "invalid-content-encoding");
        assert!(reply.detail().contains("Content-Encoding"), "{}", reply.body);
    }
}

#[tokio::test]
async fn a_small_body_that_decodes_to_a_large_one_is_413() {
    let gateway = gateway().await;
    let bomb = gzip(&vec![b' '; 4 << 20]);
    assert!(bomb.len() < 8192, "{}", bomb.len());
    let reply = provision(&gateway, bomb.clone(), &[("Content-Encoding", "gzip")]).await.problem(413, "body-too-large");
    assert!(reply.detail().contains("decoded") && reply.detail().contains("8192"), "{}", reply.body);
    let import = gateway.operator(Method::POST, "/v1/registrations/import").header("Content-Encoding", "gzip");
    let endless = gateway.send(import.header("Content-Type", "text/csv").body(gzip(&vec![b'x'; 4 << 20]))).await;
    endless.problem(413, "line-too-long");
}

#[tokio::test]
async fn a_byte_order_mark_and_the_charset_of_utf_8_do_no_harm_and_another_charset_is_415() {
    let gateway = gateway().await;
    let marked = "\u{feff}{\"hardwareId\":\"sn-1\"}";
    for content_type in ["application/json", "application/json; charset=utf-8", "application/json;charset=\"UTF-8\""] {
        let reply = provision(&gateway, marked, &[("Content-Type", content_type)]).await;
        assert!([200, 202].contains(&reply.status), "{content_type}: {}", reply.body);
    }
    for charset in ["utf-16", "iso-8859-1"] {
        let content_type = format!("application/json; charset={charset}");
        let reply = provision(&gateway, marked, &[("Content-Type", &content_type)]).await;
        assert!(reply.problem(415, "unsupported-media-type").detail().contains("UTF-8"));
    }
    let utf_16: Vec<u8> = marked.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let reply = provision(&gateway, utf_16, &[]).await.problem(400, "invalid-json");
    assert!(reply.detail().contains("UTF-8"), "{}", reply.body);
}

#[tokio::test]
async fn a_member_that_is_wrong_is_named_with_its_rule_in_our_words() {
    let gateway = gateway().await;
    let cases = [
        (r#"{"hardwareId":"sn-1","payload":"{\"model\":\"th-1\"}"}"#, vec!["\"payload\"", "JSON object", "text"]),
        (r#"{"hardwareId":"sn-1","payload":[1]}"#, vec!["\"payload\"", "JSON object", "list"]),
        (r#"{"hardwareId":123456}"#, vec!["\"hardwareId\"", "text", "number", "quotes"]),
        (r#"{"hardwareId":null}"#, vec!["\"hardwareId\"", "missing"]),
        (r#"{"hardwareId":"sn-1","reprovision":"true"}"#, vec!["\"reprovision\"", "true or false", "without quotes"]),
        (r#"{"hardwareId":"sn-1","reprovision":1}"#, vec!["\"reprovision\"", "true or false", "number"]),
        (r#"{"hardwareId":"sn-1","hardwareId":"sn-1"}"#, vec!["\"hardwareId\"", "twice"]),
        (r#"{"hardwareId":"sn-1","reprovsion":true}"#, vec!["\"reprovsion\"", "unknown", "did you mean `reprovision`"]),
        (r#"[{"hardwareId":"sn-1"}]"#, vec!["object", "list"]),
        (r#"{"hardwareId":"sn-1""#, vec!["not complete"]),
        (r#"{"hardwareId":sn-1}"#, vec!["not JSON", "byte 15"]),
        ("", vec!["empty"]),
    ];
    for (body, words) in cases {
        let reply = provision(&gateway, body, &[]).await.problem(400, "invalid-json");
        for word in words {
            assert!(reply.detail().contains(word), "{body}: {word} is not in {}", reply.detail());
        }
        for foreign in ["line 1", "column", "invalid type", "expected a map", "EOF"] {
            assert!(!reply.detail().contains(foreign), "{body}: {}", reply.detail());
        }
    }
    let nulls = r#"{"hardwareId":"sn-1","payload":null,"reprovision":null}"#;
    assert!([200, 202].contains(&provision(&gateway, nulls, &[]).await.status), "null is left out");

    let post = async |request: reqwest::RequestBuilder, body: &'static str| {
        gateway.send(request.header("Content-Type", "application/json").body(body)).await.problem(400, "invalid-json")
    };
    let lookup = post(gateway.backend(Method::POST, "/v1/assignments/lookup"), r#"{"deviceIds":["a",7]}"#).await;
    assert!(lookup.detail().contains("\"deviceIds\"") && lookup.detail().contains("item 2"), "{}", lookup.body);
    let block = post(gateway.operator(Method::POST, "/v1/registrations/sn-1/block"), r#"{"reason":["x"]}"#).await;
    assert!(block.detail().contains("\"reason\""), "{}", block.body);
}

#[tokio::test]
async fn head_is_answered_like_get_without_a_body_on_every_plane() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    gateway.assigned(&TestDevice::of_fleet("sn-1")).await;
    let ask = async |plane, method, path: &str| {
        let request = match plane {
            Plane::Backend => gateway.backend(method, path),
            Plane::Operator => gateway.operator(method, path),
            Plane::Device => gateway.request(plane, method, path),
        };
        gateway.send(request).await
    };
    for (plane, path) in [
        (Plane::Device, "/v1/time"),
        (Plane::Backend, "/v1/devices/sn-1/assignment"),
        (Plane::Backend, "/v1/devices/nobody/assignment"),
        (Plane::Operator, "/healthz"),
        (Plane::Operator, "/readyz"),
        (Plane::Operator, "/metrics"),
        (Plane::Operator, "/v1/instances"),
        (Plane::Operator, "/v1/registrations/sn-1"),
    ] {
        let (get, head) = (ask(plane, Method::GET, path).await, ask(plane, Method::HEAD, path).await);
        assert_eq!((head.status, head.body.as_str()), (get.status, ""), "{path}");
        for header in ["content-type", "etag", "cache-control"] {
            assert_eq!(head.header(header), get.header(header), "{path}: {header}");
        }
    }
    // A stream has no end to wait for.
    let head = ask(Plane::Backend, Method::HEAD, "/v1/assignments/changes").await.ok();
    assert_eq!((head.header("content-type"), head.body.as_str()), ("text/event-stream", ""));
    let post = ask(Plane::Backend, Method::HEAD, "/v1/assignments/lookup").await;
    assert_eq!((post.status, post.header("allow")), (405, "POST"));
}

#[tokio::test]
async fn a_list_of_blank_lines_without_end_is_413() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).set("operator.import_rows_max", "1").start().await;
    let import = gateway.operator(Method::POST, "/v1/registrations/import").header("Content-Encoding", "gzip");
    let blank = gateway.send(import.header("Content-Type", "text/csv").body(gzip(&vec![b'\n'; 3 << 20]))).await;
    let blank = blank.problem(413, "body-too-large");
    assert!(blank.detail().contains("operator.import_rows_max"), "{}", blank.body);
}
