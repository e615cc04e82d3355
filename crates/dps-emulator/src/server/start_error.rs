//! Why an emulator could not start.

use std::io;
use std::net::SocketAddr;

use crate::config_error::ConfigError;
use crate::tls::TlsError;

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
