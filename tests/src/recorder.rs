//! Between the service and an instance: records what the service sends.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

/// Forwards connections to an instance without TLS and keeps what the service sent. It ends with the runtime of its test.
#[derive(Debug, Clone)]
pub struct Recorder {
    address: SocketAddr,
    sent: Arc<Mutex<Vec<u8>>>,
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
            while let Ok((from, _)) = listener.accept().await {
                drop(tokio::spawn(forward(from, target, Arc::clone(&sent))));
            }
        }));
        recorder
    }

    /// Its base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything that was sent so far.
    #[must_use]
    pub fn sent(&self) -> String {
        String::from_utf8_lossy(&self.sent.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

async fn forward(from: TcpStream, target: SocketAddr, sent: Arc<Mutex<Vec<u8>>>) {
    let Ok(to) = TcpStream::connect(target).await else { return };
    let (mut from_read, mut from_write) = from.into_split();
    let (mut to_read, mut to_write) = to.into_split();
    let forth = async {
        let mut buffer = [0; 8192];
        while let Ok(count @ 1..) = from_read.read(&mut buffer).await {
            sent.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
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
