//! An emulator on real sockets, in threads of its own, so that it starts inside anybody's runtime.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::Config;
use crate::device_api::Dps;
use crate::tls::{Prepared, install_crypto, prepare};

mod control;
mod http;
mod listening;
mod shared;
mod start_error;
mod steering;

pub use start_error::StartError;

use listening::{Listening, listen};
use shared::Shared;

/// A running emulator. Dropping it stops it; [`Emulator::stop`] also waits until its ports are free.
pub struct Emulator {
    shared: Arc<Shared>,
    tls: Option<rustls::ServerConfig>,
    ca_pem: Option<String>,
    workers: usize,
    devices: Mutex<Option<Listening>>,
    control: Mutex<Option<Listening>>,
    control_addr: Option<SocketAddr>,
}

impl std::fmt::Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Emulator").field("addr", &self.addr()).field("control_addr", &self.control_addr).finish()
    }
}

impl Emulator {
    /// Starts an emulator; when this returns, connections are accepted. Works in any tokio runtime: the listeners have
    /// threads of their own.
    ///
    /// # Errors
    /// If the configuration cannot work, a certificate is unusable or an address is taken.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let dps = Dps::new(&config)?;
        install_crypto();
        let Prepared { server: tls, ca_pem } = prepare(&config.tls, &config.tls_names)?;
        let listener = listen(config.listen)?;
        let addr = listener.local_addr().map_err(|source| StartError::Listen { address: config.listen, source })?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            dps: Mutex::new(dps),
            started: Instant::now(),
            addr,
            scheme,
            paused: AtomicBool::new(false),
            clock_offset_s: AtomicI64::new(config.clock_offset_s),
        });

        let (control, control_addr) = match config.control {
            None => (None, None),
            Some(address) => {
                let listener = listen(address)?;
                let addr = listener.local_addr().map_err(|source| StartError::Listen { address, source })?;
                let shared = Arc::clone(&shared);
                let server = move || control::server(shared, listener);
                (Some(Listening::start("dps-emulator-control", server).await?), Some(addr))
            }
        };
        let emulator = Self {
            shared,
            tls,
            ca_pem,
            workers: config.workers,
            devices: Mutex::new(None),
            control: Mutex::new(control),
            control_addr,
        };
        emulator.serve_devices(listener).await?;
        Ok(emulator)
    }

    async fn serve_devices(&self, listener: TcpListener) -> Result<(), StartError> {
        let (shared, tls, workers) = (Arc::clone(&self.shared), self.tls.clone(), self.workers);
        shared.paused.store(false, Ordering::Release);
        let server = move || http::server(shared, listener, tls, workers);
        let listening = Listening::start("dps-emulator-devices", server).await?;
        *self.devices.lock() = Some(listening);
        Ok(())
    }

    /// Stops everything and waits until the ports are free.
    pub async fn stop(self) {
        self.pause().await;
        let control = self.control.lock().take();
        if let Some(control) = control {
            control.stop().await;
        }
    }

    /// Closes the device listener and all device connections: new ones are refused. The state stays, as does the control
    /// interface.
    pub async fn pause(&self) {
        self.shared.paused.store(true, Ordering::Release);
        let devices = self.devices.lock().take();
        if let Some(devices) = devices {
            devices.stop().await;
        }
    }

    /// Listens again on the same port, with the same state. Does nothing if it was not paused.
    ///
    /// # Errors
    /// If somebody else has taken the port for longer than a second.
    pub async fn resume(&self) -> Result<(), StartError> {
        if self.devices.lock().is_some() {
            return Ok(());
        }
        let mut attempts = 0;
        let listener = loop {
            match listen(self.addr()) {
                Ok(listener) => break listener,
                Err(error) if attempts == 20 => return Err(error),
                Err(_) => attempts += 1,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        self.serve_devices(listener).await
    }

    /// Where devices connect.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// `https://localhost:PORT` (or `http://…` without TLS).
    #[must_use]
    pub fn url(&self) -> String {
        let addr = self.addr();
        if addr.ip().is_loopback() {
            format!("{}://localhost:{}", self.shared.scheme, addr.port())
        } else {
            format!("{}://{addr}", self.shared.scheme)
        }
    }

    /// Where the control interface listens.
    #[must_use]
    pub fn control_addr(&self) -> Option<SocketAddr> {
        self.control_addr
    }

    /// The certificate authority a client has to trust; none if the certificate came from a file.
    #[must_use]
    pub fn ca_pem(&self) -> Option<String> {
        self.ca_pem.clone()
    }
}
