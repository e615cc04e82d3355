//! How the device listener is secured: certificates for tests from an authority that lives as long as the process, and the rustls set-up.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Names every generated certificate carries. The last one is the service's global device endpoint, for clients whose host
/// name is fixed and which are led here by a hosts file.
pub const DEFAULT_NAMES: [&str; 4] = ["localhost", "127.0.0.1", "::1", "global.azure-devices-provisioning.net"];

/// How the device listener is secured. TLS 1.2 and 1.3 are both offered: the Python SDK speaks only 1.2.
#[derive(Debug, Clone, Default)]
pub enum Tls {
    /// Plain HTTP. No SDK can use it; it is for tests and debugging.
    Off,
    /// A certificate authority made at start-up, with a certificate for localhost, 127.0.0.1, `::1` and
    /// `global.azure-devices-provisioning.net`.
    #[default]
    Generated,
    /// A certificate chain and its key, both PEM.
    Files {
        /// Certificate chain, leaf first.
        cert: PathBuf,
        /// Private key.
        key: PathBuf,
    },
    /// A certificate issued by this authority, so that several emulators can share one.
    Issued(TestCa),
}

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {detail}")]
pub struct TlsError {
    what: &'static str,
    detail: String,
}

fn failed<E: fmt::Display>(what: &'static str) -> impl FnOnce(E) -> TlsError {
    move |error| TlsError { what, detail: error.to_string() }
}

/// A certificate authority for tests. Clones share it.
#[derive(Clone)]
pub struct TestCa {
    issuer: Arc<CertifiedIssuer<'static, KeyPair>>,
}

impl fmt::Debug for TestCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestCa")
    }
}

/// A certificate and its private key, both PEM.
#[derive(Clone)]
pub struct Leaf {
    /// Certificate chain, leaf first (without the authority itself).
    pub chain_pem: String,
    /// Private key.
    pub key_pem: String,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").field("chain_pem", &self.chain_pem).field("key_pem", &"…").finish()
    }
}

impl TestCa {
    /// Makes an authority with a fresh key (ECDSA P-256).
    ///
    /// # Errors
    /// If the cryptographic library refuses.
    pub fn generate() -> Result<Self, TlsError> {
        let mut params = CertificateParams::new(Vec::new()).map_err(failed("authority"))?;
        params.distinguished_name.push(DnType::CommonName, "dps-emulator test authority (not for production)");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().map_err(failed("authority key"))?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(failed("authority"))?;
        Ok(Self { issuer: Arc::new(issuer) })
    }

    /// Issues a server certificate for these host names or IP addresses.
    ///
    /// # Errors
    /// If a name is neither a host name nor an address.
    pub fn issue<S: Into<String>>(&self, names: impl IntoIterator<Item = S>) -> Result<Leaf, TlsError> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let common_name = names.first().cloned().unwrap_or_default();
        let mut params = CertificateParams::new(names).map_err(failed("certificate name"))?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(failed("certificate key"))?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(failed("certificate"))?;
        Ok(Leaf { chain_pem: leaf.pem(), key_pem: key.serialize_pem() })
    }

    /// The authority's certificate, for a client's trust store.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        self.issuer.pem()
    }
}

/// Makes aws-lc-rs the process's cryptography unless one was chosen before. Safe to call any number of times.
pub fn install_crypto() {
    // An error only says that somebody was here before, which is what was wanted.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
}

pub(crate) struct Prepared {
    pub(crate) server: Option<rustls::ServerConfig>,
    pub(crate) ca_pem: Option<String>,
}

pub(crate) fn prepare(tls: &Tls, further_names: &[String]) -> Result<Prepared, TlsError> {
    let issued = |ca: &TestCa| {
        let names = DEFAULT_NAMES.iter().map(|name| (*name).to_owned()).chain(further_names.iter().cloned());
        let leaf = ca.issue(names)?;
        Ok(Prepared {
            server: Some(server_config(leaf.chain_pem.as_bytes(), leaf.key_pem.as_bytes())?),
            ca_pem: Some(ca.ca_pem()),
        })
    };
    match tls {
        Tls::Off => Ok(Prepared { server: None, ca_pem: None }),
        Tls::Generated => issued(&TestCa::generate()?),
        Tls::Issued(ca) => issued(ca),
        Tls::Files { cert, key } => {
            let read = |path: &Path| {
                std::fs::read(path)
                    .map_err(|error| TlsError { what: "cannot read", detail: format!("{}: {error}", path.display()) })
            };
            Ok(Prepared { server: Some(server_config(&read(cert)?, &read(key)?)?), ca_pem: None })
        }
    }
}

fn server_config(chain_pem: &[u8], key_pem: &[u8]) -> Result<rustls::ServerConfig, TlsError> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(chain_pem).collect::<Result<_, _>>().map_err(failed("certificate chain"))?;
    if chain.is_empty() {
        return Err(TlsError { what: "certificate chain", detail: "no certificate in the file".to_owned() });
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(failed("private key"))?;
    // No client certificate is asked for: X.509 attestation is not emulated.
    rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(failed("TLS versions"))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(failed("certificate and key"))
}
