//! Between the service and an instance: a network whose connections can be held up, or forgotten.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// New connections are accepted, and nothing travels on them.
    holds_new: bool,
    /// Nothing travels on connections before this one any more, in either direction.
    forgotten: u64,
    accepted: u64,
}

/// Forwards connections to an instance. It ends with the runtime of its test.
#[derive(Debug, Clone)]
pub struct Relay {
    address: SocketAddr,
    state: watch::Sender<State>,
}

impl Relay {
    /// Starts one in front of `target`.
    ///
    /// # Panics
    /// If it cannot listen.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let relay = Self { address, state: watch::Sender::new(State::default()) };
        let state = relay.state.clone();
        drop(tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let mut number = 0;
                state.send_modify(|state| {
                    number = state.accepted;
                    state.accepted += 1;
                });
                drop(tokio::spawn(forward(from, target, number, state.subscribe())));
            }
        }));
        relay
    }

    /// Its base URL; certificates of the instance behind it are good for it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// Connections that came so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.state.borrow().accepted
    }

    /// From now on new connections are accepted and held up, or go through again, also those that were held up.
    pub fn hold_new(&self, holds_new: bool) {
        self.state.send_modify(|state| state.holds_new = holds_new);
    }

    /// Loses its memory of the connections that there are: whatever is sent on them vanishes, and on Linux nothing of it is acknowledged. New
    /// ones work.
    pub fn forget(&self) {
        self.state.send_modify(|state| state.forgotten = state.accepted);
    }
}

/// Packets that come for the connection are dropped before anybody sees them.
#[cfg(target_os = "linux")]
fn vanish(connection: &TcpStream) {
    const RETURN_CONSTANT: u16 = 0x06;
    let drop_all = socket2::SockFilter::new(RETURN_CONSTANT, 0, 0, 0);
    socket2::SockRef::from(connection).attach_filter(&[drop_all]).expect("a filter that drops everything");
}

/// Elsewhere they are acknowledged, and come to nothing.
#[cfg(not(target_os = "linux"))]
fn vanish(_: &TcpStream) {}

async fn forward(mut from: TcpStream, target: SocketAddr, number: u64, mut state: watch::Receiver<State>) {
    if state.wait_for(|state| !state.holds_new).await.is_err() {
        return;
    }
    let Ok(mut to) = TcpStream::connect(target).await else { return };
    let forgotten = tokio::select! {
        _ = copy_bidirectional(&mut from, &mut to) => false,
        waited = state.wait_for(|state| state.forgotten > number) => waited.is_ok(),
    };
    if forgotten {
        vanish(&from);
        // Both ends stay open, as nobody tells them.
        std::future::pending::<()>().await;
    }
}
