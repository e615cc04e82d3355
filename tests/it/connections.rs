//! Connections as weapons: idle, dripping, never reading, half a handshake. Whoever asks in good order is answered meanwhile, and
//! whoever keeps the service waiting is closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dps_proxy_tests::gateway::{BACKEND_TOKEN, GatewayBuilder, OPERATOR_TOKEN, Plane};
use dps_proxy_tests::raw::{self, provision_request};
use dps_proxy_tests::{TestDevice, TestDps, TestGateway, eventually, eventually_some, test_ca};
use reqwest::Method;
use rustix::process::Signal;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// A request that every plane answers without a credential, and the status.
fn harmless(plane: Plane) -> (&'static str, u16) {
    match plane {
        Plane::Device => ("GET /v1/time HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        Plane::Backend => ("GET /v1/devices/a/assignment HTTP/1.1\r\nHost: a\r\n\r\n", 401),
        Plane::Operator => ("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    }
}

fn on_all_planes(builder: GatewayBuilder, key: &str, value: &str) -> GatewayBuilder {
    Plane::ALL.into_iter().fold(builder, |builder, plane| builder.set(&format!("{}.{key}", plane.section()), value))
}

async fn connect_from(source: &str, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    socket.connect(address).await.unwrap()
}

/// Sends a request and reads one answer, which fits into one segment.
async fn ask_over(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut buffer = [0; 4096];
    let length = stream.read(&mut buffer).await.unwrap_or(0);
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Waits until so many connections were dropped for a reason: the peer sees the end of its connection a moment before it is counted.
async fn counted(gateway: &TestGateway, plane: Plane, reason: &str, count: u64) {
    eventually("all are counted", async || dropped(gateway, plane, reason).await == count).await;
}

/// How often a connection was dropped for a reason, by the metrics.
async fn dropped(gateway: &TestGateway, plane: Plane, reason: &str) -> u64 {
    let metrics = gateway.operator_get("/metrics").await.ok().body;
    let name = format!("dps_proxy_connections_dropped_total{{plane=\"{}\",reason=\"{reason}\"}} ", plane.section());
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("no {name}in {metrics}")).parse().unwrap()
}

/// Every plane answers over a new connection.
async fn every_plane_answers(gateway: &TestGateway) {
    for plane in Plane::ALL {
        let (request, status) = harmless(plane);
        let mut stream = TcpStream::connect(gateway.address(plane)).await.unwrap();
        let answer = ask_over(&mut stream, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{plane:?}: {answer:?}");
    }
}

#[tokio::test]
async fn every_head_on_a_connection_has_to_arrive_in_time() {
    let builder = TestGateway::builder().instance("eu-1", &TestDps::start().await);
    let gateway = on_all_planes(builder, "request_timeout", "\"1s\"").start().await;
    for plane in Plane::ALL {
        let (request, status) = harmless(plane);
        for rest in ["G", "GET /v1/time HTTP/1.1\r\nHost: a\r\n"] {
            // The rest comes with the first request, and behind its answer.
            let both = format!("{request}{rest}");
            let together = raw::exchange(gateway.address(plane), both.as_bytes());
            let behind = async {
                let mut stream = TcpStream::connect(gateway.address(plane)).await.unwrap();
                let answer = ask_over(&mut stream, request).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
                stream.write_all(rest.as_bytes()).await.unwrap();
                raw::read_to_end(&mut stream).await
            };
            let (together, behind) = tokio::join!(together, behind);
            assert_eq!(together.statuses(), [status, 408], "{plane:?} {rest:?}: {}", together.text);
            assert_eq!(behind.statuses(), [408], "{plane:?} {rest:?}: {}", behind.text);
        }
        eventually("all are counted", async || dropped(&gateway, plane, "request-timeout").await >= 4).await;
    }
    // Bytes that keep dripping do not extend the time.
    let mut dripping = TcpStream::connect(gateway.address(Plane::Device)).await.unwrap();
    ask_over(&mut dripping, harmless(Plane::Device).0).await;
    dripping.write_all(b"GET /v1/time HTTP/1.1\r\n").await.unwrap();
    let drips = async {
        while dripping.write_all(b"x-drip: x\r\n").await.is_ok() {
            // The pace of the attack, not a wait for anything.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), drips).await.is_ok(), "it drips for ever");
}

#[tokio::test]
async fn a_connection_on_which_nothing_comes_is_closed_without_a_word() {
    let builder = TestGateway::builder().instance("eu-1", &TestDps::start().await).set("device.keep_alive", "\"1s\"");
    let gateway = builder.start().await;
    let mut stream = TcpStream::connect(gateway.address(Plane::Device)).await.unwrap();
    assert!(ask_over(&mut stream, harmless(Plane::Device).0).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(raw::read_to_end(&mut stream).await.text, "");
    assert_eq!(dropped(&gateway, Plane::Device, "request-timeout").await, 0);
}

#[tokio::test]
async fn idle_and_dripping_connections_make_room_for_those_who_ask() {
    let dps = TestDps::start().await;
    let builder = on_all_planes(TestGateway::builder().instance("eu-1", &dps), "connections_max", "16");
    // Nothing but the need for room closes any of them.
    let builder = on_all_planes(builder, "request_timeout", "\"5m\"");
    let gateway = on_all_planes(builder, "keep_alive", "\"5m\"").start().await;
    let mut attackers = Vec::new();
    for plane in Plane::ALL {
        for number in 0..48 {
            let mut stream = TcpStream::connect(gateway.address(plane)).await.unwrap();
            let (begun, body) = (harmless(plane).0, provision_request("", b"{}"));
            match number % 4 {
                0 => {}
                1 => stream.write_all(b"GET /v1/ti").await.unwrap(),
                2 => {
                    ask_over(&mut stream, begun).await;
                    stream.write_all(b"G").await.unwrap();
                }
                _ => stream.write_all(&body[..body.len() - 1]).await.unwrap(),
            }
            attackers.push(stream);
        }
        every_plane_answers(&gateway).await;
    }
    assert_eq!(gateway.assigned(&TestDevice::of_fleet("sn-1")).await.json["assignedHub"], dps.hubs()[0]);
    for plane in Plane::ALL {
        let made_room = dropped(&gateway, plane, "oldest-idle").await + dropped(&gateway, plane, "source-share").await;
        assert!(made_room >= 32, "{plane:?}: {made_room}");
        let told = |line: &&serde_json::Value| {
            line["plane"] == plane.section() && line["message"].as_str().is_some_and(|text| text.contains("all conn"))
        };
        assert_eq!(gateway.logs().iter().filter(told).count(), 1, "one line, however many connections");
    }
}

#[tokio::test]
async fn a_source_above_its_share_makes_room_before_others() {
    let builder = TestGateway::builder().instance("eu-1", &TestDps::start().await);
    let builder = builder.set("device.connections_max", "16").set("device.keep_alive", "\"5m\"");
    let gateway = builder.set("device.request_timeout", "\"5m\"").start().await;
    let address = gateway.address(Plane::Device);
    let (request, _) = harmless(Plane::Device);
    let mut idle_for_longest = connect_from("127.0.0.2", address).await;
    ask_over(&mut idle_for_longest, request).await;
    let mut attackers = Vec::new();
    for _ in 0..64 {
        attackers.push(connect_from("127.0.0.3", address).await);
    }
    // The last of them have room only when the earlier ones have made it.
    eventually("room was made", async || dropped(&gateway, Plane::Device, "source-share").await >= 48).await;
    let answer = ask_over(&mut idle_for_longest, request).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    assert_eq!(dropped(&gateway, Plane::Device, "oldest-idle").await, 0);
}

#[tokio::test]
async fn a_request_that_is_being_answered_is_never_closed_for_another_connection() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.quota_per_minute", "1");
    let gateway = builder.set("device.connections_max", "16").start().await;
    gateway.assigned(&TestDevice::of_fleet("first")).await;
    let second = TestDevice::of_fleet("second");
    let (held, ()) = tokio::join!(gateway.ask(&second).wait(8).send(), async {
        let held = async || gateway.operator_get("/metrics").await.body.contains("dps_proxy_requests_parked 1");
        eventually("the request is held", held).await;
        let mut attackers = Vec::new();
        for _ in 0..64 {
            attackers.push(TcpStream::connect(gateway.address(Plane::Device)).await.unwrap());
        }
        every_plane_answers(&gateway).await;
    });
    assert_eq!((held.status, held.header("preference-applied")), (202, "wait=8"), "{}", held.body);
}

/// Resident memory of the service, in KiB.
fn resident_kib(gateway: &TestGateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn answers_that_nobody_reads_are_bounded_and_their_connection_is_closed() {
    const CONNECTIONS: u64 = 20;
    let builder = TestGateway::builder().instance("eu-1", &TestDps::start().await);
    let gateway = builder.set("device.write_timeout", "\"2s\"").start().await;
    every_plane_answers(&gateway).await;
    let before = resident_kib(&gateway);
    let requests = "GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n".repeat(20_000);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (address, requests) = (gateway.address(Plane::Device), requests.clone());
        clients.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // Until the service closes.
            while stream.write_all(requests.as_bytes()).await.is_ok() {}
        });
    }
    let mut peak = 0;
    let closed = async || {
        peak = peak.max(resident_kib(&gateway));
        dropped(&gateway, Plane::Device, "write-timeout").await == CONNECTIONS
    };
    eventually("all are closed", closed).await;
    let each = peak.saturating_sub(before) / CONNECTIONS;
    assert!(each < 512, "{each} KiB for each connection that does not read");
    tokio::time::timeout(Duration::from_secs(20), clients.join_all()).await.expect("their writes have failed");
    every_plane_answers(&gateway).await;
}

#[tokio::test]
async fn an_idle_connection_keeps_no_buffers() {
    const CONNECTIONS: usize = 500;
    let builder = TestGateway::builder().instance("eu-1", &TestDps::start().await);
    let builder = builder.set("device.connections_max", "1000").set("device.keep_alive", "\"5m\"");
    let gateway = builder.start().await;
    let body = r#"{"hardwareId":"sn-1"}"#;
    let request = format!(
        "POST /v1/provision HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // With a body and without one, in both orders.
    let requests = [(request.as_str(), 401), harmless(Plane::Device)];
    let asked = async |count: usize| {
        let mut streams = Vec::new();
        for number in 0..count {
            let mut stream = TcpStream::connect(gateway.address(Plane::Device)).await.unwrap();
            for turn in [number, number + 1] {
                let (request, status) = requests[turn % 2];
                let answer = ask_over(&mut stream, request).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer:?}");
            }
            streams.push(stream);
        }
        streams
    };
    // What the first requests of a process take is not of their connections.
    drop(asked(50).await);
    let before = resident_kib(&gateway);
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS / 50 {
        idle.extend(asked(50).await);
        // Each gives its buffers back a moment after its answer, which shows nowhere but in what the next ones take.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let each = resident_kib(&gateway).saturating_sub(before) * 1024 / CONNECTIONS as u64;
    assert!(each < 8 * 1024, "{each} bytes for each idle connection");
    drop(idle);
    every_plane_answers(&gateway).await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_however_they_are_cut() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    let last = "GET /v1/time HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let body = "{\r\n\r\n\"hardwareId\"\r\n\r\n:\"-\"}";
    let post = format!(
        "POST /v1/provision HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let pair = format!("GET /v1/time HTTP/1.1\r\nHost: a\r\n\r\n{post}");
    let all = format!("{}{last}", pair.repeat(100));
    let expected: Vec<u16> = [200, 400].repeat(100).into_iter().chain([200]).collect();
    for cut in [usize::MAX, 1000, 173] {
        let mut stream = TcpStream::connect(gateway.address(Plane::Device)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut reading, mut writing) = stream.split();
        let write = async {
            for piece in all.as_bytes().chunks(cut.min(all.len())) {
                writing.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let mut text = String::new();
        let (read, ()) = tokio::join!(reading.read_to_string(&mut text), write);
        read.unwrap();
        assert_eq!(raw::RawReply { text }.statuses(), expected, "cut every {cut} bytes");
    }
}

/// The first message of a handshake.
fn client_hello() -> Vec<u8> {
    let mut roots = rustls::RootCertStore::empty();
    let ca = rustls::pki_types::CertificateDer::from_pem_slice(test_ca().ca_pem().as_bytes()).unwrap();
    roots.add(ca).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// Connections that begin a handshake and do not go on: with nothing, half of the first message, and all of it.
async fn unfinished_handshakes(address: SocketAddr, of_each: usize) -> Vec<TcpStream> {
    let hello = client_hello();
    let mut streams = Vec::new();
    for _ in 0..of_each {
        for said in [0, hello.len() / 2, hello.len()] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&hello[..said]).await.unwrap();
            streams.push(stream);
        }
    }
    streams
}

#[tokio::test]
async fn unfinished_handshakes_hold_up_no_other() {
    let builder = TestGateway::builder().instance("eu-1", &TestDps::start().await).tls(Plane::Device);
    let builder = builder.set("device.handshakes_max", "1").set("device.handshake_timeout", "\"5m\"");
    let gateway = builder.start().await;
    let _unfinished = unfinished_handshakes(gateway.address(Plane::Device), 30).await;
    let ca = reqwest::Certificate::from_pem(test_ca().ca_pem().as_bytes()).unwrap();
    for _ in 0..10 {
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([ca.clone()]).build().unwrap();
        let asking = client.get(gateway.url(Plane::Device, "/v1/time")).send();
        let answer = tokio::time::timeout(Duration::from_secs(10), asking).await.expect("it is not held up");
        assert_eq!(answer.unwrap().status(), 200);
    }
    assert_eq!(dropped(&gateway, Plane::Device, "handshake-timeout").await, 0);
}

#[tokio::test]
async fn a_handshake_has_to_end_in_time() {
    let builder = TestGateway::builder().instance("eu-1", &TestDps::start().await).tls(Plane::Device);
    let gateway = builder.set("device.handshake_timeout", "\"1s\"").start().await;
    for mut stream in unfinished_handshakes(gateway.address(Plane::Device), 2).await {
        raw::read_to_end(&mut stream).await;
    }
    counted(&gateway, Plane::Device, "handshake-timeout", 6).await;
    let broken = raw::exchange(gateway.address(Plane::Device), b"GET /v1/time HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(broken.statuses(), Vec::<u16>::new());
    counted(&gateway, Plane::Device, "handshake-failed", 1).await;
}

#[tokio::test]
async fn whoever_gives_up_is_held_no_longer() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.quota_per_minute", "1");
    let gateway = builder.set("device.wait_max", "\"5m\"").start().await;
    gateway.assigned(&TestDevice::of_fleet("first")).await;
    let device = TestDevice::of_fleet("second");
    let fields = format!("Authorization: {}\r\nPrefer: wait=280\r\n", device.usual_credential());
    let request = provision_request(&fields, br#"{"hardwareId":"second"}"#);
    let parked = async |count: u8| {
        let line = format!("dps_proxy_requests_parked {count}\n");
        eventually(&line, async || gateway.operator_get("/metrics").await.body.contains(&line)).await;
    };
    for closes in [false, true] {
        let mut stream = TcpStream::connect(gateway.address(Plane::Device)).await.unwrap();
        stream.write_all(&request).await.unwrap();
        parked(1).await;
        if closes {
            drop(stream);
        } else {
            // A client that only says that it sends no more is told what there is to tell.
            stream.shutdown().await.unwrap();
            let reply = raw::read_to_end(&mut stream).await;
            assert_eq!((reply.status(), reply.header("preference-applied")), (202, ""), "{}", reply.text);
        }
        parked(0).await;
    }
}

#[tokio::test]
async fn header_names_leave_in_their_usual_spelling_on_the_device_plane() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    let device = TestDevice::of_fleet("sn-1");
    let body = br#"{"hardwareId":"sn-1"}"#;
    for (fields, status) in [(format!("Authorization: {}\r\n", device.usual_credential()), 202), (String::new(), 401)] {
        let reply = raw::exchange(gateway.address(Plane::Device), &provision_request(&fields, body)).await;
        assert_eq!(reply.status(), status);
        for name in ["Retry-After", "Content-Length", "Content-Type", "Cache-Control", "Connection", "Date"] {
            assert!(reply.text.contains(&format!("\r\n{name}: ")), "{name}: {}", reply.text);
        }
    }
}

#[tokio::test]
async fn answers_to_what_is_no_request_spell_their_header_names_alike() {
    let gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    let address = gateway.address(Plane::Device);
    let (sound, _) = harmless(Plane::Device);
    let flood = |fields: usize, value: usize| {
        let field = format!("x-field: {}\r\n", "x".repeat(value));
        format!("GET /v1/time HTTP/1.1\r\nHost: a\r\n{}\r\n", field.repeat(fields))
    };
    for refused in ["GET nonsense\r\n\r\n".to_owned(), flood(200, 1), flood(50, 4000)] {
        for request in [refused.clone(), format!("{sound}{refused}")] {
            let reply = raw::exchange(address, request.as_bytes()).await;
            let last = &reply.text[reply.text.rfind("HTTP/1.1 4").unwrap_or_else(|| panic!("{}", reply.text))..];
            for name in ["Content-Length", "Date"] {
                assert!(last.contains(&format!("\r\n{name}: ")), "{name}: {}", reply.text);
            }
        }
    }
}

/// Bytes that the service's kernel holds for it to read from a connection, once everything that was sent has arrived there.
async fn unread_by_the_service(client: &TcpStream) -> usize {
    let (from, to) = (client.local_addr().unwrap().port(), client.peer_addr().unwrap().port());
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next().unwrap(), 16).unwrap();
    eventually_some("everything has arrived", async || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let rows = table.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
        let (mut sent, mut received) = (None, None);
        for row in rows {
            let (on_the_way, unread) = row[4].split_once(':').unwrap();
            match (port(row[1]), port(row[2])) {
                ends if ends == (from, to) => sent = usize::from_str_radix(on_the_way, 16).ok(),
                ends if ends == (to, from) => received = usize::from_str_radix(unread, 16).ok(),
                _ => {}
            }
        }
        received.filter(|_| sent == Some(0))
    })
    .await
}

#[tokio::test]
async fn of_what_stands_behind_a_request_under_way_the_service_takes_4_kib_at_most() {
    const BEHIND: usize = 48 * 1024;
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("instances.eu-1.quota_per_minute", "1");
    let gateway = builder.start().await;
    gateway.assigned(&TestDevice::of_fleet("first")).await;
    let second = TestDevice::of_fleet("second");
    let body = br#"{"hardwareId":"second"}"#;
    let fields = format!("Authorization: {}\r\nPrefer: wait=25\r\n", second.usual_credential());
    let held = provision_request(&fields, body);
    let (next, _) = harmless(Plane::Device);
    let behind = next.repeat(BEHIND.div_ceil(next.len()));
    // In one piece, and with the rest behind a request that is held already.
    let cuts = [held.len() + behind.len(), held.len()];
    let mut streams = Vec::new();
    for (number, cut) in cuts.into_iter().enumerate() {
        let bytes = [&held[..], behind.as_bytes()].concat();
        let mut stream = TcpStream::connect(gateway.address(Plane::Device)).await.unwrap();
        stream.write_all(&bytes[..cut]).await.unwrap();
        let parked = format!("dps_proxy_requests_parked {}", number + 1);
        eventually("it is held", async || gateway.operator_get("/metrics").await.body.contains(&parked)).await;
        stream.write_all(&bytes[cut..]).await.unwrap();
        streams.push(stream);
    }
    // Whatever the service reads, it reads at once: when it answers others, it has.
    every_plane_answers(&gateway).await;
    for stream in &streams {
        let unread = unread_by_the_service(stream).await;
        assert!(unread + 4096 >= behind.len(), "{} bytes are taken", behind.len() - unread);
    }
}

#[tokio::test]
async fn behind_a_refused_request_the_next_one_is_answered_or_the_connection_is_closed() {
    let builder = TestGateway::builder().instance("eu-1", &TestDps::start().await);
    let gateway = builder.set("device.request_timeout", "\"2s\"").start().await;
    let next = "GET /v1/time HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let with_length = |target: &str, content_type: &str, body: &str| {
        let length = body.len();
        format!(
            "{target} HTTP/1.1\r\nHost: a\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    let json = "application/json";
    let (sound, large) = (r#"{"hardwareId":"sn-1"}"#, "x".repeat(100_000));
    let chunked = "POST /v1/provision HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    for (status, refused) in [
        (400, with_length("POST /v1/provision", json, "{")),
        (401, with_length("POST /v1/provision", json, sound)),
        (404, with_length("POST /v1/nothing", json, sound)),
        (405, with_length("POST /v1/time", json, sound)),
        (413, with_length("POST /v1/provision", json, &large)),
        (415, with_length("POST /v1/provision", "text/plain", sound)),
        (415, chunked.to_owned()),
    ] {
        let reply = raw::exchange(gateway.address(Plane::Device), format!("{refused}{next}").as_bytes()).await;
        let statuses = reply.statuses();
        assert!(statuses == [status] || statuses == [status, 200], "{status}: {}", reply.text);
        if statuses == [status] {
            assert_eq!(reply.header("connection"), "close", "{status}: {}", reply.text);
        }
    }
}

#[tokio::test]
async fn all_of_a_shutdown_has_one_drain_timeout() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("shutdown.drain_timeout", "\"4s\"");
    let mut gateway = on_all_planes(builder, "request_timeout", "\"5m\"").start().await;
    let hangs = dps_emulator::FaultAction::Delay { delay: Duration::from_secs(60) };
    dps.emulator.add_fault(dps_emulator::Fault::new(hangs));
    gateway.provision(&TestDevice::of_fleet("sn-1")).await;
    eventually("it was sent", async || gateway.instance_view("eu-1").await["counts"]["registrations"] == 1).await;
    let mut stuck = Vec::new();
    for plane in Plane::ALL {
        for rest in ["", "G"] {
            let mut stream = TcpStream::connect(gateway.address(plane)).await.unwrap();
            ask_over(&mut stream, harmless(plane).0).await;
            stream.write_all(rest.as_bytes()).await.unwrap();
            stuck.push(stream);
        }
        let (target, token, content_type) = match plane {
            Plane::Device => ("/v1/provision", "", "application/json"),
            Plane::Backend => ("/v1/assignments/lookup", BACKEND_TOKEN, "application/json"),
            Plane::Operator => ("/v1/registrations/import", OPERATOR_TOKEN, "text/csv"),
        };
        let half = format!(
            "POST {target} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Type: {content_type}\r\nContent-Length: 100\r\n\r\nx"
        );
        let mut stream = TcpStream::connect(gateway.address(plane)).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        stuck.push(stream);
    }
    let began = std::time::Instant::now();
    gateway.signal(Signal::TERM);
    let healthz = gateway.send(gateway.request(Plane::Operator, Method::GET, "/healthz")).await;
    assert_eq!(healthz.status, 200, "the operator plane answers while the others drain");
    assert_eq!(gateway.ended().await.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}: the drains add up", began.elapsed());
}
