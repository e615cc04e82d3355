//! Requests that no HTTP library would send.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::wait::PATIENCE;

/// What came back until the peer closed the connection.
#[derive(Debug, Clone)]
pub struct RawReply {
    /// All bytes, as text.
    pub text: String,
}

impl RawReply {
    /// The status of the first answer; 0 if there is none.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.statuses().first().copied().unwrap_or(0)
    }

    /// The statuses of all answers.
    #[must_use]
    pub fn statuses(&self) -> Vec<u16> {
        let heads = self.text.split("HTTP/1.").skip(1);
        heads.filter_map(|head| head.split(' ').nth(1)?.get(..3)?.parse().ok()).collect()
    }

    /// The body of the first answer, if it is JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let body = self.text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or(serde_json::Value::Null)
    }

    /// The value of a header of the first answer, by its lower-case name; empty if there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let head = self.text.split("\r\n\r\n").next().unwrap_or("");
        let fields = head.lines().filter_map(|line| line.split_once(": "));
        fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).next().unwrap_or("")
    }
}

/// Sends `bytes` and reads until the peer closes the connection. Say `Connection: close` in the request, unless it is one that the
/// service has to end by itself.
///
/// # Panics
/// If no connection comes about, or the peer does not close it in time.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> RawReply {
    let mut stream = TcpStream::connect(address).await.expect("the service accepts connections");
    // A service that refuses early may close before it has read everything.
    let _refused_early = stream.write_all(bytes).await;
    read_to_end(&mut stream).await
}

/// Reads until the peer closes the connection.
///
/// # Panics
/// If it does not in time.
pub async fn read_to_end(stream: &mut TcpStream) -> RawReply {
    let mut received = Vec::new();
    let reading = async {
        let mut buffer = vec![0; 16 * 1024];
        // A reset after the answer is an end like any other.
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            received.extend_from_slice(&buffer[..count]);
        }
    };
    let closed = tokio::time::timeout(PATIENCE, reading).await;
    let text = String::from_utf8_lossy(&received).into_owned();
    assert!(closed.is_ok(), "the connection stays open after {text:?}");
    RawReply { text }
}

/// A `POST /v1/provision` with these header lines (each ended by CR LF) and this body, which asks to close the connection.
#[must_use]
pub fn provision_request(header_lines: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /v1/provision HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: application/json\r\nConnection: close\r\n{header_lines}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}
