//! TLS of our own listeners: 1.2 and 1.3, HTTP/1.1 only, one crypto provider, certificates renewed while they serve.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::TlsFiles;

/// Installs the process-wide crypto provider; calling it again changes nothing.
pub fn install_provider() {
    let _installed_before = CryptoProvider::install_default(aws_lc_rs::default_provider());
}

/// A listener's certificate, which can be renewed while it serves.
#[derive(Debug)]
pub struct Certificate {
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
    pub fn load(files: &TlsFiles) -> anyhow::Result<Arc<Self>> {
        let current = ArcSwap::from_pointee(certified_key(files)?);
        Ok(Arc::new(Self { files: files.clone(), current }))
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
    let chain = read_chain(&files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .with_context(|| format!("{} is not a private key in PEM", files.key.display()))?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .with_context(|| format!("{} and {} do not fit together", files.cert.display(), files.key.display()))
}

fn read_chain(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let chain = read().with_context(|| format!("{} is not a certificate chain in PEM", path.display()))?;
    if chain.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(chain)
}
