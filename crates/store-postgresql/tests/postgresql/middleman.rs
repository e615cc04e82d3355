//! Somebody between the store and the server, who loses what he is told to lose.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    Pass,
    /// The next request is carried out, and nobody hears the answer.
    LoseAnswer,
    /// The next request is kept back, and so is the server's end of its connection.
    KeepRequest,
}

pub(crate) struct Middleman {
    pub(crate) port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    plan: Mutex<Plan>,
    kept: Mutex<Option<(TcpStream, Vec<u8>)>>,
    /// Whether he works at all.
    open: watch::Sender<bool>,
}

impl Middleman {
    pub(crate) async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let shared =
            Arc::new(Shared { plan: Mutex::new(Plan::Pass), kept: Mutex::default(), open: watch::channel(true).0 });
        let working = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, port, Arc::clone(&working)));
            }
        });
        Self { port: own, shared }
    }

    pub(crate) fn next(&self, plan: Plan) {
        *self.shared.plan.lock() = plan;
    }

    /// Whether what was planned has happened.
    pub(crate) fn is_done(&self) -> bool {
        *self.shared.plan.lock() == Plan::Pass
    }

    /// Cuts all connections and takes no new ones, or works again.
    pub(crate) fn open(&self, open: bool) {
        self.shared.open.send_replace(open);
    }

    /// Hands over the request that was kept back, and gives the server's answer to it.
    pub(crate) async fn deliver(&self) -> Vec<u8> {
        let (mut server, request) = loop {
            if let Some(kept) = self.shared.kept.lock().take() {
                break kept;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        server.write_all(&request).await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).await.unwrap();
        answer
    }
}

async fn carry(mut client: TcpStream, port: u16, shared: Arc<Shared>) {
    let mut open = shared.open.subscribe();
    if !*open.borrow_and_update() {
        return;
    }
    let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut up, mut down) = (vec![0; 65536], vec![0; 65536]);
    let mut loses = false;
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let read = read.unwrap_or(0);
                if read == 0 {
                    return;
                }
                let plan = std::mem::replace(&mut *shared.plan.lock(), Plan::Pass);
                match plan {
                    Plan::Pass => {}
                    Plan::LoseAnswer => loses = true,
                    Plan::KeepRequest => {
                        let mut request = up[..read].to_vec();
                        tokio::spawn(async move {
                            // Until whoever asked gives up.
                            let _reset = client.read_to_end(&mut request).await;
                            *shared.kept.lock() = Some((server, request));
                        });
                        return;
                    }
                }
                if server.write_all(&up[..read]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut down) => {
                let read = read.unwrap_or(0);
                if read == 0 || loses || client.write_all(&down[..read]).await.is_err() {
                    return;
                }
            }
            () = async { drop(open.wait_for(|open| !open).await) } => return,
        }
    }
}
