//! Over real sockets, service and load on the same machine: cached lookups against a bare actix handler that returns the same bytes,
//! and joins over keep-alive and over fresh TLS connections.
//!
//! The load shares the cores with what it measures, so the ratio is what counts: both sides are asked by the same client, in turns,
//! in one run.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actix_web::{HttpResponse, HttpServer, web};
use anyhow::Context as _;
use dps_emulator::TestCa;
use proxy_core::device::{Command, Decision, Draft, Reason, Record, Seat, Sender, Step};
use proxy_core::ids::{DeviceId, EnrollmentName, HubName, InstanceName, RegistrationId, TenantName};
use proxy_core::place::{Class, Place};
use proxy_core::sas;
use proxy_core::secret::SymmetricKey;
use proxy_core::store::sled_store::{SledOptions, SledStore};
use proxy_core::store::{Store as _, Versions};
use proxy_server::config;
use proxy_server::lifecycle::{Addresses, Application};
use rate_control::entropy::Entropy;
use rate_control::time::{Clock as _, SystemClock};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const CLIENTS: usize = 8;
const ROUNDS: usize = 5;
const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef";

fn main() -> anyhow::Result<()> {
    // `cargo test --benches` only asks whether this starts.
    let quick = !std::env::args().any(|argument| argument == "--bench");
    let round = if quick { Duration::from_millis(50) } else { Duration::from_secs(2) };
    proxy_server::tls::install_provider();
    let directory = tempfile::tempdir()?;
    let group_key = SymmetricKey::from_digest([7; 32]);
    let ca = TestCa::generate()?;
    let file = write_files(directory.path(), &group_key, &ca)?;
    let (addresses, stop) = serve(file, directory.path().join("store"))?;

    let lookup = format!(
        "GET /v1/devices/device-1/assignment HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    );
    let sample = ask_once(addresses.backend, lookup.as_bytes())?;
    anyhow::ensure!(sample.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&sample));
    let bare = serve_bare(&sample)?;
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let ours = rate(round, || keep_asking(addresses.backend, &lookup, sample.len()))?;
        let theirs = rate(round, || keep_asking(bare, &lookup, sample.len()))?;
        println!("lookups per second: {ours:>8.0}   bare actix: {theirs:>8.0}   ratio {:.2}", ours / theirs);
        ratios.push(ours / theirs);
    }
    ratios.sort_by(f64::total_cmp);
    println!("lookups as a ratio to bare actix, median of {ROUNDS} rounds: {:.2}", ratios[ROUNDS / 2]);

    let devices = Arc::new(Devices { group_key, next: AtomicU64::new(0) });
    let tls = client_config(&ca)?;
    let keep_alive = rate(round, || keep_joining(addresses.device, &tls, &devices))?;
    println!("joins per second over keep-alive TLS connections: {keep_alive:.0}");
    let fresh = rate(round, || join_afresh(addresses.device, &tls, &devices))?;
    println!("joins per second, each over a fresh TLS connection: {fresh:.0}");
    drop(stop);
    Ok(())
}

fn write_files(directory: &Path, group_key: &SymmetricKey, ca: &TestCa) -> anyhow::Result<std::path::PathBuf> {
    let leaf = ca.issue(["localhost"])?;
    for (name, text) in [
        ("chain.pem", leaf.chain_pem),
        ("key.pem", leaf.key_pem),
        ("group.key", group_key.expose_base64()),
        ("backend.token", TOKEN.to_owned()),
        ("operator.token", TOKEN.chars().rev().collect()),
    ] {
        std::fs::write(directory.join(name), text)?;
    }
    let config = r#"
default_enrollment = "fleet"
[store]
path = "store"
free_space_min_mib = 16
[device]
listen = "127.0.0.1:0"
host_name = "localhost"
tls_cert_file = "chain.pem"
tls_key_file = "key.pem"
workers = 2
connections_max = 4096
parked_max = 100
[backend]
listen = "127.0.0.1:0"
workers = 2
[[backend.tokens]]
name = "bench"
token_file = "backend.token"
[operator]
listen = "127.0.0.1:0"
[[operator.tokens]]
name = "bench"
token_file = "operator.token"
role = "operate"
[shutdown]
readiness_delay = "0s"
drain_timeout = "1s"
[instances.a]
id_scope = "0ne000AB12C"
endpoint = "https://localhost:9"
quota_per_minute = 1
burst = 1
capacity = 1000000000
[enrollments.fleet]
attestation = "sas-token"
group_key_file = "group.key"
"#;
    let file = directory.join("dps-proxy.toml");
    std::fs::write(&file, config)?;
    Ok(file)
}

/// Starts the service on threads of its own; it ends when the sender is dropped.
fn serve(
    file: std::path::PathBuf,
    store: std::path::PathBuf,
) -> anyhow::Result<(Addresses, std::sync::mpsc::Sender<()>)> {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        actix_web::rt::System::with_tokio_rt(runtime).block_on(async move {
            seed(&store).await.expect("a seeded store");
            let loaded = config::load(&file, Vec::new()).expect("a sound configuration");
            let application = Application::build(loaded, None).await.expect("the service starts");
            let addresses = application.addresses();
            let waiting = tokio::task::spawn_blocking(move || stopped.recv());
            ready.send(addresses).expect("somebody waits");
            application.run_until(async { drop(waiting.await) }).await.expect("the service ends");
        });
    });
    Ok((is_ready.recv().context("the service did not start")?, stop))
}

/// Ten thousand known devices, so that lookups read a tree and not a single leaf.
async fn seed(path: &Path) -> anyhow::Result<()> {
    let store = SledStore::open(path, SledOptions { min_free_bytes: 0, ..SledOptions::default() })?;
    let versions = Versions::new(Entropy::from_seed(1));
    let (instance, now) = (InstanceName::parse("a")?, SystemClock::new().now());
    for chunk in (0..10_000).collect::<Vec<_>>().chunks(1000) {
        let mut writes = Vec::new();
        for number in chunk {
            let id = RegistrationId::parse(&format!("device-{number}"))?;
            let record = Record::new(id.clone(), TenantName::parse("default")?, EnrollmentName::parse("fleet")?);
            let place = Place::last(Class::First);
            let decision = Decision {
                hub: HubName::parse("hub-a.azure-devices.net")?,
                device_id: DeviceId::parse(id.as_str())?,
                substatus: Some("initialAssignment".to_owned()),
                payload: None,
                dps_etag: None,
                dps_last_updated: None,
            };
            let (seat, step) = (
                Seat { instance: instance.clone(), class: place.class, request_id: None },
                Step::Assign(decision.into()),
            );
            let mut draft = Draft::new(record, now, 1);
            draft.apply(Command::Join { seat, reason: Reason::First, payload: None, reprovision: false })?;
            for step in [Step::Send { dps_time: None, slot: None, sender: Sender(1), over: None }, step] {
                draft.apply(Command::Attempt { instance: instance.clone(), place, step })?;
            }
            writes.push(draft.write());
        }
        store.commit(versions.commit(writes)).await?;
    }
    store.close().await;
    Ok(())
}

/// A handler that does nothing but return what the service returned, headers and all.
fn serve_bare(sample: &[u8]) -> anyhow::Result<SocketAddr> {
    let text = String::from_utf8(sample.to_vec())?;
    let (head, body) = text.split_once("\r\n\r\n").context("a whole answer")?;
    let own = ["content-length", "date", "connection"];
    let headers: Vec<(String, String)> = head
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(": "))
        .filter(|(name, _)| !own.contains(&name.to_ascii_lowercase().as_str()))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let answer = web::Data::new((headers, body.to_owned()));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        actix_web::rt::System::new().block_on(async move {
            let app = move || {
                actix_web::App::new()
                    .app_data(answer.clone())
                    .route("/v1/devices/{id}/assignment", web::get().to(bare_answer))
            };
            HttpServer::new(app)
                .workers(2)
                .disable_signals()
                .listen(listener)
                .expect("a listener")
                .run()
                .await
                .expect("a server");
        });
    });
    Ok(address)
}

async fn bare_answer(answer: web::Data<(Vec<(String, String)>, String)>) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    for (name, value) in &answer.0 {
        response.insert_header((name.as_str(), value.as_str()));
    }
    response.body(answer.1.clone())
}

/// Asks from all clients at once for `round`; `client` makes one client's step, which counts as one.
fn rate<S: FnMut() -> anyhow::Result<()>>(
    round: Duration,
    client: impl Fn() -> anyhow::Result<S> + Sync,
) -> anyhow::Result<f64> {
    let done = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut step = client()?;
                    while began.elapsed() < round {
                        step()?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })?;
    Ok(done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

fn ask_once(address: SocketAddr, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(request)?;
    let mut buffer = vec![0; 4096];
    let length = stream.read(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

fn keep_asking<'a>(
    address: SocketAddr,
    request: &'a str,
    length: usize,
) -> anyhow::Result<impl FnMut() -> anyhow::Result<()> + 'a> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; length];
    Ok(move || {
        stream.write_all(request.as_bytes())?;
        Ok(stream.read_exact(&mut buffer)?)
    })
}

/// Devices that nobody has seen yet.
struct Devices {
    group_key: SymmetricKey,
    next: AtomicU64,
}

impl Devices {
    fn join_request(&self) -> String {
        let id = format!("joiner-{:09}", self.next.fetch_add(1, Ordering::Relaxed));
        let key = sas::derive_device_key(&self.group_key, &id);
        let expiry = SystemClock::wall().unix_seconds() + 3600;
        let token = sas::device_token(&key, &format!("localhost%2Fregistrations%2F{id}"), expiry, None);
        let body = format!(r#"{{"hardwareId":"{id}"}}"#);
        format!(
            "POST /v1/provision HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: {token}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

fn client_config(ca: &TestCa) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(ca.ca_pem().as_bytes())?)?;
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    // Every handshake is a whole one, as after a blackout.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> anyhow::Result<Tls> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let connection = ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost")?)?;
    Ok(StreamOwned::new(connection, stream))
}

fn join(stream: &mut Tls, devices: &Devices) -> anyhow::Result<()> {
    stream.write_all(devices.join_request().as_bytes())?;
    let mut buffer = [0; 4096];
    let length = stream.read(&mut buffer)?;
    let head = &buffer[..length.min(12)];
    anyhow::ensure!(head == b"HTTP/1.1 202", "{}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}

fn keep_joining<'a>(
    address: SocketAddr,
    config: &'a Arc<ClientConfig>,
    devices: &'a Devices,
) -> anyhow::Result<impl FnMut() -> anyhow::Result<()> + 'a> {
    let mut stream = connect(address, config)?;
    Ok(move || join(&mut stream, devices))
}

fn join_afresh<'a>(
    address: SocketAddr,
    config: &'a Arc<ClientConfig>,
    devices: &'a Devices,
) -> anyhow::Result<impl FnMut() -> anyhow::Result<()> + 'a> {
    Ok(move || join(&mut connect(address, config)?, devices))
}
