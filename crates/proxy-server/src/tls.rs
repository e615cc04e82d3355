//! TLS of our own listeners: 1.2 and 1.3, HTTP/1.1 only, one crypto provider, certificates renewed while they serve.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use arc_swap::ArcSwap;
use rate_control::time::{SystemClock, WallTime};
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

use crate::config::{TlsFiles, read_bounded};
use crate::pki::{certificate, pem};
use crate::plane::Plane;

/// Installs the process-wide crypto provider; calling it again changes nothing.
pub fn install_provider() {
    let _installed_before = CryptoProvider::install_default(aws_lc_rs::default_provider());
}

/// A listener's certificate, which can be renewed while it serves.
#[derive(Debug)]
pub struct Certificate {
    plane: Plane,
    files: TlsFiles,
    current: ArcSwap<CertifiedKey>,
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl Certificate {
    /// Reads the certificate and its key.
    ///
    /// # Errors
    /// If a file cannot be read or is not what it should be; the message names it.
    pub fn load(plane: Plane, files: &TlsFiles) -> anyhow::Result<Arc<Self>> {
        let current = ArcSwap::from_pointee(certified_key(files)?);
        Ok(Arc::new(Self { plane, files: files.clone(), current }))
    }

    /// Whose it is.
    #[must_use]
    pub fn plane(&self) -> Plane {
        self.plane
    }

    /// When the first certificate of the chain in use ends.
    #[must_use]
    pub fn end(&self) -> Option<WallTime> {
        certificate::end(&self.current.load().cert)
    }

    /// The chain in use.
    #[must_use]
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().cert.clone()
    }

    fn tell_end(&self, now: WallTime) {
        let Some(end) = self.end() else { return };
        let (plane, days_left) = (self.plane.as_str(), certificate::days_left(end, now));
        if now >= end {
            tracing::error!(plane, %end, days_left, "the certificate of this listener has expired: clients refuse it; renew it");
        } else if end.since(now) < certificate::WARNED_AHEAD {
            tracing::warn!(plane, %end, days_left, "the certificate of this listener expires soon; renew it");
        }
    }

    /// Reads the same files anew and changes nothing yet.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn read_anew(&self) -> anyhow::Result<Renewal<'_>> {
        Ok(Renewal { certificate: self, read: Arc::new(certified_key(&self.files)?) })
    }

    /// The TLS configuration of a listener with this certificate.
    ///
    /// # Errors
    /// If the crypto provider has no TLS 1.2 or 1.3.
    pub fn server_config(self: &Arc<Self>) -> anyhow::Result<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .context("TLS versions")?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Self>::clone(self));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// A certificate that was read anew and is not in use yet.
#[derive(Debug)]
#[must_use]
pub struct Renewal<'a> {
    certificate: &'a Certificate,
    read: Arc<CertifiedKey>,
}

impl Renewal<'_> {
    /// Handshakes from now on use it.
    pub fn renew(self) {
        self.certificate.current.store(self.read);
    }
}

fn certified_key(files: &TlsFiles) -> anyhow::Result<CertifiedKey> {
    let chain = read(&files.cert, pem::certificates)?;
    let key = read(&files.key, pem::private_key)?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .with_context(|| format!("{} and {} do not fit together", files.cert.display(), files.key.display()))
}

fn read<T>(path: &Path, parse: impl Fn(&[u8]) -> Result<T, String>) -> anyhow::Result<T> {
    let bytes = read_bounded(path).with_context(|| format!("{} cannot be read", path.display()))?;
    parse(&bytes).map_err(|what| anyhow!("{}: the file {what}", path.display()))
}

/// Says in the log which certificates are near their end or past it: at once, then once a day. Never ends.
pub async fn watch_ends(certificates: Vec<Arc<Certificate>>) {
    loop {
        let now = SystemClock::wall();
        for certificate in &certificates {
            certificate.tell_end(now);
        }
        tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    }
}
