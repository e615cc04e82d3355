//! Between the service and an instance: records what the service sends.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

/// What came, piece by piece, each with the number of its connection.
type Pieces = Vec<(usize, Vec<u8>)>;

/// What came on one connection: all bytes, and where each piece begins, with its number among all pieces.
type Connection = (Vec<u8>, Vec<(usize, usize)>);

/// Forwards connections to an instance without TLS and keeps what the service sent. It ends with the runtime of its test.
#[derive(Debug, Clone)]
pub struct Recorder {
    address: SocketAddr,
    sent: Arc<Mutex<Pieces>>,
}

/// A request of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Its method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Its body; empty if there is none.
    pub body: String,
}

impl Recorder {
    /// Starts one in front of `target`.
    ///
    /// # Panics
    /// If it cannot listen.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let recorder = Self { address, sent: Arc::default() };
        let sent = Arc::clone(&recorder.sent);
        drop(tokio::spawn(async move {
            let mut number = 0;
            while let Ok((from, _)) = listener.accept().await {
                drop(tokio::spawn(forward((from, number), target, Arc::clone(&sent))));
                number += 1;
            }
        }));
        recorder
    }

    /// Its base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything that was sent so far, connection by connection.
    #[must_use]
    pub fn sent(&self) -> String {
        let connections = self.connections();
        connections.iter().map(|(bytes, _)| String::from_utf8_lossy(bytes)).collect()
    }

    /// The requests that were sent so far, in the order in which they began.
    #[must_use]
    pub fn requests(&self) -> Vec<Recorded> {
        let connections = self.connections();
        let mut requests: Vec<(usize, Recorded)> = connections.iter().flat_map(requests_of).collect();
        requests.sort_by_key(|(began, _)| *began);
        requests.into_iter().map(|(_, request)| request).collect()
    }

    fn connections(&self) -> Vec<Connection> {
        let mut connections: Vec<Connection> = Vec::new();
        for (piece, (number, bytes)) in self.sent.lock().unwrap_or_else(PoisonError::into_inner).iter().enumerate() {
            connections.resize_with(connections.len().max(number + 1), Default::default);
            let (all, pieces) = &mut connections[*number];
            pieces.push((all.len(), piece));
            all.extend_from_slice(bytes);
        }
        connections
    }
}

/// The whole requests of one connection, each with the piece that it began in.
fn requests_of((bytes, pieces): &Connection) -> Vec<(usize, Recorded)> {
    let (mut requests, mut at) = (Vec::new(), 0);
    while let Some(length) = bytes[at..].windows(4).position(|four| four == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[at..at + length]).into_owned();
        let mut words = head.lines().next().unwrap_or_default().split(' ').map(str::to_owned);
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let body_length = lengths.next().and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0);
        let body = at + length + 4;
        let Some(body_bytes) = bytes.get(body..body + body_length) else { break };
        let began = pieces.iter().take_while(|(begin, _)| *begin <= at).last().map_or(0, |(_, piece)| *piece);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let body_text = String::from_utf8_lossy(body_bytes).into_owned();
        requests.push((began, Recorded { method, target, body: body_text }));
        at = body + body_length;
    }
    requests
}

async fn forward((from, number): (TcpStream, usize), target: SocketAddr, sent: Arc<Mutex<Pieces>>) {
    let Ok(to) = TcpStream::connect(target).await else { return };
    let (mut from_read, mut from_write) = from.into_split();
    let (mut to_read, mut to_write) = to.into_split();
    let forth = async {
        let mut buffer = [0; 8192];
        while let Ok(count @ 1..) = from_read.read(&mut buffer).await {
            sent.lock().unwrap_or_else(PoisonError::into_inner).push((number, buffer[..count].to_vec()));
            if tokio::io::AsyncWriteExt::write_all(&mut to_write, &buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    let back = async {
        let _ended = tokio::io::copy(&mut to_read, &mut from_write).await;
    };
    tokio::select! {
        () = forth => {}
        () = back => {}
    }
}
