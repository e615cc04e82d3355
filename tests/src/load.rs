//! Load over real sockets: blocking TLS clients that cost little beside what they measure.
//!
//! Devices are numbers; a device's key, token and request are made when it asks, so a fleet of any size takes the generator a few
//! bytes per device and one descriptor per client.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::device::{AUDIENCE, TestDevice};
use crate::dps::test_ca;

/// Longest that one answer may take before the run is given up.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// How a client's connections live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// A connection and a full handshake for each request, as after a blackout.
    Fresh,
    /// One connection for all requests of a client.
    KeepAlive,
}

impl fmt::Display for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fresh => "fresh TLS connections",
            Self::KeepAlive => "keep-alive TLS connections",
        })
    }
}

/// The device plane that is asked.
#[derive(Debug, Clone)]
pub struct Target {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Target {
    /// The device plane at `address`, with a certificate of [`test_ca`].
    ///
    /// # Errors
    /// If the certificate authority cannot be trusted.
    pub fn new(address: SocketAddr) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(test_ca().ca_pem().as_bytes())?)?;
        let mut tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        // A device that had no power has no session to resume.
        tls.resumption = rustls::client::Resumption::disabled();
        Ok(Self { address, tls: Arc::new(tls), name: ServerName::try_from("localhost")? })
    }

    fn connect(&self) -> anyhow::Result<Stream> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
        Ok(StreamOwned::new(ClientConnection::new(Arc::clone(&self.tls), self.name.clone())?, stream))
    }
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// What a device was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// `Retry-After`, if there was one.
    pub retry_after: Option<Duration>,
}

/// One client, which asks for one device after the other.
#[derive(Debug)]
pub struct Client {
    target: Target,
    connections: Connections,
    open: Option<Stream>,
    buffer: Vec<u8>,
}

impl Client {
    /// A client that is not connected yet.
    #[must_use]
    pub fn new(target: Target, connections: Connections) -> Self {
        Self { target, connections, open: None, buffer: vec![0; 8192] }
    }

    /// Sends a request and reads its answer; also how long that took, the handshake included where there is one.
    ///
    /// # Errors
    /// If no connection comes about or the answer is cut short.
    pub fn ask(&mut self, request: &[u8]) -> anyhow::Result<(Answer, Duration)> {
        let began = Instant::now();
        if let Some(mut stream) = self.open.take() {
            // The service closes a connection that was idle for too long; then the request goes over a new one.
            if let Ok(answer) = exchange(&mut stream, request, &mut self.buffer) {
                self.open = Some(stream);
                return Ok((answer, began.elapsed()));
            }
        }
        let mut stream = self.target.connect()?;
        let answer = exchange(&mut stream, request, &mut self.buffer)?;
        let took = began.elapsed();
        match self.connections {
            Connections::KeepAlive => self.open = Some(stream),
            Connections::Fresh => {
                stream.conn.send_close_notify();
                // The answer is there; how the connection ends is of no interest.
                let _ended = stream.flush();
            }
        }
        Ok((answer, took))
    }
}

fn exchange(stream: &mut Stream, request: &[u8], buffer: &mut [u8]) -> anyhow::Result<Answer> {
    stream.write_all(request)?;
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..])?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        filled += count;
        let Some(head_end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&buffer[..head_end])?;
        let length: usize = header(head, "content-length").unwrap_or("0").parse()?;
        if filled < head_end + 4 + length {
            continue;
        }
        let status = head.get(9..12).context("a status line")?.parse()?;
        let retry_after = header(head, "retry-after").map(str::parse).transpose()?.map(Duration::from_secs);
        return Ok(Answer { status, retry_after });
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// A device's `POST /v1/provision` with a token of its own; `payload` is a JSON object, or nothing.
#[must_use]
pub fn provision_request(device: &TestDevice, expiry: i64, payload: Option<&str>) -> Vec<u8> {
    let payload = payload.map(|payload| format!(r#","payload":{payload}"#)).unwrap_or_default();
    let body = format!(r#"{{"hardwareId":"{}"{payload}}}"#, device.hardware_id);
    format!(
        "POST /v1/provision HTTP/1.1\r\nHost: {AUDIENCE}\r\nContent-Type: application/json\r\nAuthorization: {}\r\nContent-Length: {}\r\n\r\n{body}",
        device.credential(AUDIENCE, expiry),
        body.len()
    )
    .into_bytes()
}

/// How long answers took.
#[derive(Debug, Clone, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Adds one.
    pub fn add(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// Adds those of another client.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The time within which this share of the answers came, in milliseconds.
    #[must_use]
    pub fn quantile_ms(&mut self, share: f64) -> f64 {
        self.0.sort_unstable();
        let index = (self.0.len() as f64 * share) as usize;
        self.0.get(index.min(self.0.len().saturating_sub(1))).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    }
}

/// A figure of the kernel about a process, from `/proc/PID/status`, in bytes: `VmRSS` is its resident memory, `VmHWM` the most
/// it ever was.
///
/// # Errors
/// If the process is gone or the kernel does not say.
pub fn memory_of(pid: u32, figure: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("no {figure}"))?;
    Ok(kib.parse::<u64>()? * 1024)
}

/// A parameter of a run from the environment, or what it is unless told otherwise.
///
/// # Errors
/// If what the environment says cannot be read as one.
pub fn parameter<T: std::str::FromStr>(name: &str, otherwise: T) -> anyhow::Result<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| anyhow::anyhow!("{name}={text} is not a value of this parameter")),
        Err(_) => Ok(otherwise),
    }
}
