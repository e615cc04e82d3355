//! A listener on a thread of its own.

use std::io;
use std::net::{SocketAddr, TcpListener};

use actix_web::dev::{Server, ServerHandle};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;

use super::start_error::StartError;

/// A listener that is being served.
pub(super) struct Listening {
    handle: ServerHandle,
    ended: oneshot::Receiver<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Listening {
    pub(super) async fn start(
        name: &str,
        build: impl FnOnce() -> io::Result<Server> + Send + 'static,
    ) -> Result<Self, StartError> {
        let (ready, is_ready) = oneshot::channel::<io::Result<ServerHandle>>();
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                actix_web::rt::System::new().block_on(async move {
                    match build() {
                        Ok(server) => {
                            // If nobody waits any more, the handle is gone and the server ends by itself.
                            let _ = ready.send(Ok(server.handle()));
                            if let Err(error) = server.await {
                                tracing::error!(%error, "the server ended");
                            }
                        }
                        Err(error) => drop(ready.send(Err(error))),
                    }
                });
                let _ = end.send(());
            })
            .map_err(StartError::Thread)?;
        let handle = is_ready
            .await
            .map_err(|_| StartError::Thread(io::Error::other("it ended before it was ready")))?
            .map_err(StartError::Thread)?;
        Ok(Self { handle, ended, thread: Some(thread) })
    }

    pub(super) async fn stop(mut self) {
        self.handle.stop(false).await;
        let _ = (&mut self.ended).await;
        if let Some(thread) = self.thread.take() {
            // It has nothing left to do; joining makes sure that its sockets are closed.
            let _ = thread.join();
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // The command is sent by the call itself; nobody has to wait for its end.
            drop(self.handle.stop(false));
        }
    }
}

pub(super) fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        // A storm of devices must not be dropped by the kernel before the emulator has seen it.
        socket.listen(4096)?;
        socket.set_nonblocking(true)?;
        Ok(TcpListener::from(socket))
    };
    bind().map_err(|source| StartError::Listen { address, source })
}
