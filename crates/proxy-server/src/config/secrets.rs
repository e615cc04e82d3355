//! Keys, tokens and certificates: from files into types that cannot be printed.

use proxy_core::secret::{SymmetricKey, TokenDigest};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsFiles;
use super::reader::{Document, Secrecy, Section};

/// Shortest token: 16 characters of base64 are 96 bits, which nobody guesses over a network.
const TOKEN_CHARS: std::ops::RangeInclusive<usize> = 16..=512;

/// A token and the key that named its file.
pub(super) type Placed = (String, TokenDigest);

/// What a token opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plane {
    /// The backend plane.
    Backend,
    /// The operator plane.
    Operator,
}

/// A token of a file's content.
pub(super) fn token(section: &Section<'_>, key: &str, content: &[u8]) -> Option<TokenDigest> {
    let text =
        std::str::from_utf8(content.trim_ascii()).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()));
    match text {
        None => section.problem(key, "the file must hold one token of visible ASCII characters, without spaces"),
        Some(text) if !TOKEN_CHARS.contains(&text.len()) => {
            let message =
                "the token in the file must have 16 to 512 characters; make one with `openssl rand -base64 32`";
            section.problem(key, message);
        }
        Some(text) => return Some(TokenDigest::of(text)),
    }
    None
}

/// A symmetric key of a file's content.
pub(super) fn symmetric_key(section: &Section<'_>, key: &str, content: &[u8]) -> Option<SymmetricKey> {
    let parsed = SymmetricKey::from_base64(&String::from_utf8_lossy(content));
    parsed
        .map_err(|rule| section.problem(key, format!("in the file: {rule}; copy it from the enrollment as it is")))
        .ok()
}

/// Further roots of trust; at least one.
pub(super) fn roots(section: &Section<'_>, key: &'static str) -> Option<Vec<u8>> {
    let pem = section.file(key, "file name (PEM)", Secrecy::Public)?;
    certificates(section, key, &pem).map(|_| pem)
}

fn certificates(section: &Section<'_>, key: &str, pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => Some(found),
        Ok(_) | Err(_) => {
            section.problem(key, "the file must hold certificates in PEM (-----BEGIN CERTIFICATE-----)");
            None
        }
    }
}

/// The certificate and key of a listener, tried out together.
pub(super) fn tls_files(section: &Section<'_>) -> Option<TlsFiles> {
    const KINDS: [&str; 2] = ["file name (PEM chain)", "file name (PEM key)"];
    let chain = section.file("tls_cert_file", KINDS[0], Secrecy::Public);
    let key = section.file("tls_key_file", KINDS[1], Secrecy::Secret);
    let chain = chain.and_then(|pem| certificates(section, "tls_cert_file", &pem));
    let key = key.and_then(|pem| {
        let parsed = PrivateKeyDer::from_pem_slice(&pem);
        // Without the parser's own words, which may quote the file.
        parsed
            .map_err(|_| section.problem("tls_key_file", "the file must hold a private key in PEM, not encrypted"))
            .ok()
    });
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    if let Err(error) = rustls::sign::CertifiedKey::from_der(chain?, key?, &provider) {
        section.problem("tls_key_file", format!("does not go with tls_cert_file: {error}; renew both together"));
        return None;
    }
    let path = |key, kind| section.path_of(key, kind, "");
    Some(TlsFiles { cert: path("tls_cert_file", KINDS[0])?, key: path("tls_key_file", KINDS[1])? })
}

/// Nobody gets another's plane: no token may open two of them, nor be given out twice on one.
pub(super) fn check_distinct(document: &Document, tokens: &[(Plane, Placed)], fleet: &[Placed]) {
    for (index, (_, (key, digest))) in tokens.iter().enumerate() {
        let same = tokens[..index].iter().find(|(_, (_, earlier))| earlier == digest).map(|(_, (earlier, _))| earlier);
        if let Some(earlier) = same.or_else(|| fleet.iter().find(|(_, token)| token == digest).map(|(key, _)| key)) {
            document.problem(key, format!("is the same token as {earlier}; give everybody a token of their own"));
        }
    }
}
