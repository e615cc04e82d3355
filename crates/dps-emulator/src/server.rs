//! An emulator on real sockets, in threads of its own, so that it starts inside anybody's runtime.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use actix_web::dev::{Server, ServerHandle};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;

use crate::config::{Config, ConfigError, GroupConfig, HubConfig, IndividualConfig, Quota};
use crate::device_api::{Dps, Now, Reply, Request};
use crate::faults::{ActiveFault, Fault, FaultId};
use crate::journal::{JournalEntry, Stats};
use crate::operation::Registration;
use crate::tls::{Prepared, TlsError, install_crypto, prepare};

/// Why an emulator could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot work.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// A certificate could not be read or made.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// An address could not be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A thread could not be started or ended early.
    #[error("the server thread failed: {0}")]
    Thread(io::Error),
}

/// What the device listener, the control listener and the owner share.
pub(crate) struct Shared {
    dps: Mutex<Dps>,
    started: Instant,
    addr: SocketAddr,
    scheme: &'static str,
    /// Connections of workers that are still about to end are reset meanwhile.
    paused: AtomicBool,
    /// By how much its clock is ahead of the machine's, in seconds.
    clock_offset_s: AtomicI64,
}

impl Shared {
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// Does something with the instance at a moment taken under its lock, so that time never goes back.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Dps, Now) -> T) -> T {
        let mut dps = self.dps.lock();
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let offset_ms = self.clock_offset_s.load(Ordering::Relaxed).saturating_mul(1000);
        let now = Now {
            monotonic_ns: u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX),
            unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX).saturating_add_signed(offset_ms),
        };
        act(&mut dps, now)
    }

    /// The reply, and what the emulator's clock read.
    pub(crate) fn handle(&self, request: &Request<'_>) -> (Reply, u64) {
        self.with(|dps, now| (dps.handle(request, now), now.unix_ms))
    }

    pub(crate) fn set_clock_offset_s(&self, offset: i64) {
        self.clock_offset_s.store(offset, Ordering::Relaxed);
    }
}

/// A listener that is being served.
struct Listening {
    handle: ServerHandle,
    ended: oneshot::Receiver<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Listening {
    async fn start(
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

    async fn stop(mut self) {
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

fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
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
        let Prepared { server: tls, ca_pem } = prepare(&config)?;
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
                let server = move || crate::control::server(shared, listener);
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
        let server = move || crate::http::server(shared, listener, tls, workers);
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

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.with(Dps::stats)
    }

    /// Sets the counters to zero.
    pub fn reset_stats(&self) {
        self.shared.with(|dps, _| dps.reset_stats());
    }

    /// The whole journal, as far as it is remembered.
    #[must_use]
    pub fn journal(&self) -> Vec<JournalEntry> {
        self.journal_after(0)
    }

    /// The journal after a sequence number.
    #[must_use]
    pub fn journal_after(&self, sequence: u64) -> Vec<JournalEntry> {
        self.shared.with(|dps, _| dps.journal_after(sequence, usize::MAX))
    }

    /// Adds a fault.
    pub fn add_fault(&self, fault: Fault) -> FaultId {
        self.shared.with(|dps, _| dps.add_fault(fault))
    }

    /// Removes a fault; says whether there was one.
    pub fn remove_fault(&self, id: FaultId) -> bool {
        self.shared.with(|dps, _| dps.remove_fault(id))
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.shared.with(|dps, _| dps.clear_faults());
    }

    /// The faults and how often they acted.
    #[must_use]
    pub fn faults(&self) -> Vec<ActiveFault> {
        self.shared.with(|dps, _| dps.faults())
    }

    /// Changes the registration quota.
    ///
    /// # Errors
    /// If it allows nothing or its window is out of range.
    pub fn set_quota(&self, quota: Quota) -> Result<(), ConfigError> {
        self.shared.with(|dps, now| dps.set_quota(quota, now))
    }

    /// Changes the linked hubs; later registrations may move.
    ///
    /// # Errors
    /// Names a hub that is malformed or named twice.
    pub fn set_hubs(&self, hubs: Vec<HubConfig>) -> Result<(), ConfigError> {
        self.shared.with(|dps, now| dps.set_hubs(hubs, now))
    }

    /// Sets the emulator's clock: by so many seconds ahead of the machine's (negative: behind). Dates, timestamps and its judgement of
    /// tokens follow it; quotas, waits and operations do not.
    pub fn set_clock_offset_s(&self, offset: i64) {
        self.shared.set_clock_offset_s(offset);
    }

    /// Changes how long operations last that begin from now on.
    pub fn set_assigning(&self, assigning: Duration) {
        self.shared.with(|dps, _| dps.set_assigning(assigning));
    }

    /// Creates or replaces an enrollment group.
    ///
    /// # Errors
    /// Names what is wrong with it.
    pub fn put_group(&self, group: &GroupConfig) -> Result<(), ConfigError> {
        self.shared.with(|dps, _| dps.put_group(group))
    }

    /// Creates or replaces an individual enrollment.
    ///
    /// # Errors
    /// Names what is wrong with it.
    pub fn put_enrollment(&self, enrollment: &IndividualConfig) -> Result<(), ConfigError> {
        self.shared.with(|dps, _| dps.put_enrollment(enrollment))
    }

    /// What is known of a registration.
    #[must_use]
    pub fn registration(&self, registration_id: &str) -> Option<Registration> {
        self.shared.with(|dps, now| dps.registration(registration_id, now))
    }

    /// Deletes a registration record; says whether there was one.
    pub fn delete_registration(&self, registration_id: &str) -> bool {
        self.shared.with(|dps, now| dps.delete_registration(registration_id, now))
    }
}
