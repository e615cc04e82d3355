//! The same on real sockets, over TLS: resets, lost replies, pause and resume, the control interface.

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test, and the line says which")]

use std::time::{Duration, Instant};

use dps_emulator::{
    Answered, CallKind, Config, Emulator, Fault, FaultAction, GroupConfig, HubConfig, Quota, TestCa, Tls,
    derive_device_key, device_token,
};
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const SCOPE: &str = "0ne000AB12C";
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn config() -> Config {
    Config {
        id_scope: SCOPE.to_owned(),
        groups: vec![GroupConfig::new("plant", KEY)],
        hubs: vec![HubConfig::new("hub-a.azure-devices.net")],
        assigning: Duration::from_millis(50),
        control: Some("127.0.0.1:0".parse().unwrap()),
        ..Config::default()
    }
}

fn client(ca_pem: &str) -> Client {
    let ca = reqwest::Certificate::from_pem(ca_pem.as_bytes()).unwrap();
    Client::builder().tls_certs_only([ca]).timeout(Duration::from_secs(10)).build().unwrap()
}

fn token(id: &str) -> String {
    let group: Vec<u8> = (0..32).collect();
    device_token(&derive_device_key(&group, id), SCOPE, id, 4_000_000_000)
}

struct Setup {
    emulator: Emulator,
    client: Client,
}

impl Setup {
    async fn start(config: Config) -> Self {
        let emulator = Emulator::start(config).await.unwrap();
        let client = client(&emulator.ca_pem().unwrap());
        Self { emulator, client }
    }

    async fn send(&self, method: Method, id: &str, tail: &str) -> reqwest::Result<Response> {
        let url = format!("{}/{SCOPE}/registrations/{id}{tail}?api-version=2021-10-01", self.emulator.url());
        let request = self.client.request(method, url).header("Authorization", token(id));
        request.json(&json!({ "registrationId": id })).send().await
    }

    async fn register(&self, id: &str) -> reqwest::Result<Response> {
        self.send(Method::PUT, id, "/register").await
    }

    async fn provision(&self, id: &str) -> Value {
        let body: Value = self.register(id).await.unwrap().json().await.unwrap();
        // Longer than this emulator takes to assign, as a client waits that polls once.
        tokio::time::sleep(Duration::from_millis(60)).await;
        let tail = format!("/operations/{}", body["operationId"].as_str().unwrap());
        self.send(Method::GET, id, &tail).await.unwrap().json().await.unwrap()
    }

    async fn control(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("http://{}{path}", self.emulator.control_addr().unwrap());
        let mut request = reqwest::Client::new().request(method, url);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap_or(Value::Null))
    }
}

/// True if the client saw no byte of an answer, but the end of the connection.
fn is_broken_off(result: &reqwest::Result<Response>) -> bool {
    result.as_ref().is_err_and(|error| error.is_request() && !error.is_timeout())
}

#[tokio::test]
async fn provisioning_over_tls() {
    let s = Setup::start(config()).await;
    let response = s.register("dev-1").await.unwrap();
    assert_eq!(response.status(), 202);
    let headers = response.headers().clone();
    assert_eq!(headers["retry-after"], "3");
    assert_eq!(headers["content-type"], "application/json; charset=utf-8");
    assert_eq!(headers["transfer-encoding"], "chunked", "as the service sends its bodies");
    assert!(headers["location"].to_str().unwrap().starts_with(&s.emulator.url()));
    assert_eq!(s.provision("dev-1").await["registrationState"]["assignedHub"], "hub-a.azure-devices.net");
    let looked_up: Value = s.send(Method::POST, "dev-1", "").await.unwrap().json().await.unwrap();
    assert_eq!(looked_up["status"], "assigned");
    assert_eq!(s.send(Method::DELETE, "dev-1", "").await.unwrap().status(), 405);

    let stats = s.emulator.stats();
    assert_eq!((stats.registers, stats.polls, stats.lookups, stats.others), (2, 1, 1, 1));
    let kinds: Vec<_> = s.emulator.journal().iter().map(|e| e.call).collect();
    assert_eq!(kinds[0], CallKind::Register);
    assert_eq!(s.emulator.journal_after(4).len(), 1);
    let url = format!("{}/{SCOPE}/registrations/dev-1/register", s.emulator.url());
    let too_large = s.client.put(url).body(vec![b' '; 200_000]).send().await.unwrap();
    assert!([400, 413].contains(&too_large.status().as_u16()), "{}", too_large.status());
    s.emulator.stop().await;
}

#[tokio::test]
async fn both_tls_versions_are_spoken() {
    let s = Setup::start(config()).await;
    let ca = s.emulator.ca_pem().unwrap();
    for version in [reqwest::tls::Version::TLS_1_2, reqwest::tls::Version::TLS_1_3] {
        let ca = reqwest::Certificate::from_pem(ca.as_bytes()).unwrap();
        let only =
            Client::builder().tls_certs_only([ca]).tls_version_min(version).tls_version_max(version).build().unwrap();
        assert_eq!(only.get(s.emulator.url()).send().await.unwrap().status(), 404);
    }
    let stranger = client(&TestCa::generate().unwrap().ca_pem());
    assert!(stranger.get(s.emulator.url()).send().await.is_err(), "another authority is not trusted");
    s.emulator.stop().await;
}

#[tokio::test]
async fn reset_and_lost_reply_break_the_connection_off() {
    let s = Setup::start(config()).await;
    // An idle connection in the pool would be retried by the client itself, so each call gets a fresh one.
    s.emulator.add_fault(Fault::new(FaultAction::Reset).times(1));
    assert!(is_broken_off(&s.register("dev-1").await));
    assert_eq!(s.emulator.stats().operations_started, 0);

    s.emulator.add_fault(Fault::new(FaultAction::LoseReply).times(1));
    assert!(is_broken_off(&s.register("dev-1").await));
    let entry = s.emulator.journal().pop().unwrap();
    assert_eq!((entry.answered, entry.counted), (Answered::Lost, true));
    // Longer than this emulator takes to assign; it looks at the clock when it is asked, so there is nothing to await.
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(s.emulator.registration("dev-1").unwrap().assigned_hub.as_deref(), Some("hub-a.azure-devices.net"));
    assert_eq!(s.register("dev-1").await.unwrap().status(), 202, "the next call works");
    s.emulator.stop().await;
}

#[tokio::test]
async fn a_reset_is_a_tcp_reset() {
    let emulator = Emulator::start(Config { tls: Tls::Off, ..config() }).await.unwrap();
    emulator.add_fault(Fault::new(FaultAction::Reset));
    let mut socket = tokio::net::TcpStream::connect(emulator.addr()).await.unwrap();
    let request = format!("POST /{SCOPE}/registrations/dev-1?api-version=2021-10-01 HTTP/1.1\r\nHost: x\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let end = socket.read_to_end(&mut bytes).await;
    assert_eq!(bytes, b"", "not a byte of an answer");
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    emulator.stop().await;
}

#[tokio::test]
async fn delays_hold_the_answer_back() {
    let s = Setup::start(config()).await;
    s.emulator.add_fault(Fault::new(FaultAction::Delay { delay: Duration::from_millis(300) }).times(1));
    let begun = Instant::now();
    assert_eq!(s.register("dev-1").await.unwrap().status(), 202);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    s.emulator.stop().await;
}

#[tokio::test]
async fn pause_refuses_connections_and_resume_keeps_port_and_state() {
    let s = Setup::start(config()).await;
    s.provision("dev-1").await;
    let addr = s.emulator.addr();
    s.emulator.pause().await;
    let refused = tokio::net::TcpStream::connect(addr).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(s.register("dev-1").await.is_err(), "connections from before are closed");
    assert_eq!(s.control(Method::GET, "/healthz", None).await.0, 200, "the control interface stays");
    s.emulator.resume().await.unwrap();
    s.emulator.resume().await.unwrap();
    assert_eq!(s.emulator.addr(), addr);
    let looked_up = s.send(Method::POST, "dev-1", "").await.unwrap();
    assert_eq!(looked_up.status(), 200);
    s.emulator.stop().await;
    drop(tokio::net::TcpListener::bind(addr).await.expect("the port is free again"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_emulators_share_an_authority() {
    let ca = TestCa::generate().unwrap();
    let issued = || Config { tls: Tls::Issued(ca.clone()), ..config() };
    let (a, b) = (Emulator::start(issued()).await.unwrap(), Emulator::start(issued()).await.unwrap());
    let client = client(&ca.ca_pem());
    for url in [a.url(), b.url(), format!("https://127.0.0.1:{}", a.addr().port())] {
        assert_eq!(client.get(url).send().await.unwrap().status(), 404);
    }
    let taken = Emulator::start(Config { listen: a.addr(), ..config() }).await;
    assert!(matches!(taken, Err(dps_emulator::StartError::Listen { .. })));
    tokio::join!(a.stop(), b.stop());
}

#[actix_web::test]
async fn it_starts_inside_an_actix_runtime() {
    let s = Setup::start(config()).await;
    assert_eq!(s.provision("dev-1").await["status"], "assigned");
    let addr = s.emulator.addr();
    drop(s);
    let deadline = Instant::now() + Duration::from_secs(10);
    while tokio::net::TcpStream::connect(addr).await.is_ok() {
        assert!(Instant::now() < deadline, "dropping stops it");
        // Between two looks: nobody tells when a port is closed.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn certificates_from_files() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::generate().unwrap();
    let leaf = ca.issue(["localhost"]).unwrap();
    let (cert, key) = (dir.path().join("chain.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, &leaf.chain_pem).unwrap();
    std::fs::write(&key, &leaf.key_pem).unwrap();
    let emulator = Emulator::start(Config { tls: Tls::Files { cert: cert.clone(), key }, ..config() }).await.unwrap();
    assert_eq!(emulator.ca_pem(), None);
    assert_eq!(client(&ca.ca_pem()).get(emulator.url()).send().await.unwrap().status(), 404);
    emulator.stop().await;
    let missing = Emulator::start(Config { tls: Tls::Files { cert, key: "/nowhere".into() }, ..config() }).await;
    assert!(missing.is_err());
}

#[tokio::test]
async fn the_control_interface() {
    let s = Setup::start(config()).await;
    s.provision("dev-1").await;
    let (_, stats) = s.control(Method::GET, "/stats", None).await;
    assert_eq!((stats["registers"].as_u64(), stats["perHub"]["hub-a.azure-devices.net"].as_u64()), (Some(1), Some(1)));
    let (_, journal) = s.control(Method::GET, "/journal?after=1&limit=5", None).await;
    assert_eq!(journal[0]["call"], "poll");
    assert_eq!(journal[0]["answered"], json!({ "status": 200 }));
    let (_, registration) = s.control(Method::GET, "/registrations/dev-1", None).await;
    assert_eq!(registration["assignedHub"], "hub-a.azure-devices.net");

    let (status, made) =
        s.control(Method::POST, "/faults", Some(json!({ "action": "status", "status": 503, "times": 1 }))).await;
    assert_eq!(status, 201);
    assert_eq!(s.register("dev-1").await.unwrap().status(), 503);
    let (_, rules) = s.control(Method::GET, "/faults", None).await;
    assert_eq!((rules[0]["acted"].as_u64(), rules[0]["rule"]["action"].as_str()), (Some(1), Some("status")));
    assert_eq!(s.control(Method::DELETE, &format!("/faults/{}", made["id"]), None).await.0, 204);
    assert_eq!(s.control(Method::DELETE, "/faults/99", None).await.0, 404);
    assert_eq!(s.control(Method::DELETE, "/faults", None).await.0, 204);

    let hubs = json!({ "hubs": [{ "name": "hub-c.azure-devices.net" }] });
    assert_eq!(s.control(Method::POST, "/hubs", Some(hubs)).await.0, 204);
    assert_eq!(s.provision("dev-1").await["registrationState"]["substatus"], "deviceDataMigrated");
    let group = json!({ "name": "plant", "key": KEY, "disabled": true });
    assert_eq!(s.control(Method::POST, "/groups", Some(group)).await.0, 204);
    assert_eq!(s.register("dev-1").await.unwrap().status(), 401);
    let solo = json!({ "id": "dev-1", "key": KEY });
    assert_eq!(s.control(Method::POST, "/enrollments", Some(solo)).await.0, 204);
    assert_eq!(s.control(Method::POST, "/assigning", Some(json!({ "milliseconds": 5 }))).await.0, 204);
    assert_eq!(s.control(Method::POST, "/quota", Some(json!({ "count": 1, "seconds": 60 }))).await.0, 204);
    assert_eq!(s.register("dev-1").await.unwrap().status(), 429);
    assert_eq!(s.control(Method::GET, "/quota", None).await.1["count"], 1);
    assert_eq!(s.control(Method::POST, "/reset-stats", None).await.0, 204);
    assert_eq!(s.emulator.stats().requests, 0);
    assert_eq!(s.control(Method::DELETE, "/registrations/dev-1", None).await.0, 204);
    assert_eq!(s.control(Method::GET, "/registrations/dev-1", None).await.0, 404);

    for (path, body) in [
        ("/faults", json!({ "action": "explode" })),
        ("/faults", json!({ "action": "reset", "how": 1 })),
        ("/quota", json!({ "count": 0, "seconds": 60 })),
        ("/quota", json!({ "count": 1, "seconds": -1 })),
        ("/hubs", json!({ "hubs": [{ "name": "a", "colour": 1 }] })),
        ("/groups", json!({ "name": "plant", "key": "AAAA" })),
    ] {
        let (status, error) = s.control(Method::POST, path, Some(body.clone())).await;
        assert_eq!(status, 400, "{path} {body}");
        assert!(error["error"].is_string());
    }
    assert_eq!(s.control(Method::GET, "/nothing", None).await.0, 404);
    s.emulator.stop().await;
}

#[tokio::test]
async fn quota_can_be_set_from_the_library() {
    let s = Setup::start(config()).await;
    s.emulator.set_quota(Quota { count: 1, ..Quota::default() }).unwrap();
    assert_eq!(s.register("dev-1").await.unwrap().status(), 202);
    let response = s.register("dev-2").await.unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "60");
    s.emulator.set_hubs(vec![HubConfig::new("hub-z.azure-devices.net")]).unwrap();
    s.emulator.stop().await;
}

#[tokio::test]
async fn dates_and_the_judgement_of_tokens_follow_the_emulators_own_clock() {
    let s = Setup::start(Config { clock_offset_s: -7_200, ..config() }).await;
    let read = |response: &Response| {
        let date = response.headers()["date"].to_str().unwrap();
        jiff::fmt::rfc2822::parse(date).unwrap().timestamp().as_second()
    };
    let ours = || jiff::Timestamp::now().as_second();
    let response = s.register("dev-1").await.unwrap();
    assert!((read(&response) - (ours() - 7_200)).abs() <= 2);
    // The usual token of these tests ends in 2096.
    let seconds = 100 * 366 * 86_400_i64;
    assert_eq!(s.control(Method::POST, "/clock", Some(json!({ "offset-seconds": seconds }))).await.0, 204);
    let response = s.register("dev-1").await.unwrap();
    assert_eq!(response.status(), 401);
    assert!((read(&response) - (ours() + seconds)).abs() <= 2);
    assert_eq!(s.emulator.journal().last().unwrap().unauthorized, Some("token has expired"));
    s.emulator.stop().await;
}

#[tokio::test]
async fn the_program_tells_each_refusal_in_one_line_without_colours() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_dps-emulator"))
        .args(["--listen", "127.0.0.1:0", "--plain-http", "--id-scope", SCOPE, "--group", &format!("plant={KEY}")])
        .env_remove("RUST_LOG")
        .stderr(file)
        .spawn()
        .unwrap();
    let text = || std::fs::read_to_string(&log).unwrap();
    let waited = Instant::now();
    let url = loop {
        let started = text();
        if let Some((_, rest)) = started.split_once("devices: ") {
            break rest.split_whitespace().next().unwrap().to_owned();
        }
        assert!(waited.elapsed() < Duration::from_secs(20), "it does not start: {started}");
        // Between two looks: nobody tells when a file grows.
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let client = reqwest::Client::new();
    let register = format!("{url}/{SCOPE}/registrations/dev-1/register?api-version=2021-10-01");
    let misspelt = client.put(&register).json(&json!({ "registrationid": "dev-1" }));
    for (request, status) in
        [(client.get(format!("{url}/nowhere")), 404), (client.put(&register), 401), (misspelt, 400)]
    {
        assert_eq!(request.send().await.unwrap().status(), status);
    }
    program.kill().unwrap();
    program.wait().unwrap();
    let text = text();
    assert!(!text.contains('\u{1b}'), "{text}");
    let refused: Vec<&str> = text.lines().filter(|line| line.contains("refused")).collect();
    assert_eq!(refused.len(), 3, "{text}");
    for (line, words) in refused.iter().zip([
        ["GET", "/nowhere", "no such resource"],
        ["PUT", "/registrations/dev-1/register", "no Authorization header"],
        ["PUT", "/registrations/dev-1/register", "unknown field"],
    ]) {
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    }
}
