//! Keys, tokens and certificates: from files into types that cannot be printed.

use proxy_core::secret::{SymmetricKey, TokenDigest};
use rate_control::time::SystemClock;
use rustls_pki_types::CertificateDer;

use super::TlsFiles;
use super::reader::{Document, Secrecy, Section};
use crate::pki::certificate::{self, Finding};
use crate::pki::pem;

/// Shortest token: 16 characters of base64 are 96 bits, which nobody guesses over a network.
const TOKEN_CHARS: std::ops::RangeInclusive<usize> = 16..=512;

/// Longest password of a database.
const PASSWORD_BYTES_MAX: usize = 1024;

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
        None => {
            let message = "the file must hold one token of visible ASCII characters, without spaces or a word such as Bearer in front";
            section.problem(key, message);
        }
        Some(text) if !TOKEN_CHARS.contains(&text.len()) => {
            let message =
                "the token in the file must have 16 to 512 characters; make one with `openssl rand -base64 32`";
            section.problem(key, message);
        }
        Some(text) => {
            if text.starts_with(['"', '\'']) && text.len() > 1 && text.chars().next() == text.chars().next_back() {
                section.warning(key, "the token in the file stands in quotes, which count as part of it; remove them if they are not meant");
            }
            return Some(TokenDigest::of(text));
        }
    }
    None
}

/// A symmetric key of a file's content.
pub(super) fn symmetric_key(section: &Section<'_>, key: &str, content: &[u8]) -> Option<SymmetricKey> {
    let parsed = SymmetricKey::from_base64(&String::from_utf8_lossy(content));
    parsed
        .map_err(|rule| {
            let message = format!("in the file: {rule}; it is on the page of the enrollment, to be copied as it is");
            section.problem(key, message);
        })
        .ok()
}

/// Further roots of trust; at least one.
pub(super) fn roots(section: &Section<'_>, key: &'static str) -> Option<Vec<u8>> {
    // Whoever reads it next needs every section on lines of its own.
    authorities(section, key).map(|certificates| pem::to_pem(&certificates))
}

/// Who may vouch for a peer; at least one.
pub(super) fn authorities(section: &Section<'_>, key: &'static str) -> Option<Vec<CertificateDer<'static>>> {
    let pem = section.file(key, "file name (PEM)", Secrecy::Public)?;
    read(section, key, &pem, pem::certificates)
}

/// A password of a file's content: its one line, without the line break. Spaces count.
pub(super) fn password<'c>(section: &Section<'_>, key: &str, content: &'c [u8]) -> Option<&'c [u8]> {
    let line = content.strip_suffix(b"\n").unwrap_or(content);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let sound = std::str::from_utf8(line).is_ok_and(|text| !text.chars().any(char::is_control));
    if !sound || line.len() > PASSWORD_BYTES_MAX {
        section.problem(
            key,
            format!("the file must hold one line of text, the password, of at most {PASSWORD_BYTES_MAX} bytes"),
        );
        return None;
    }
    Some(line)
}

fn read<T>(section: &Section<'_>, key: &str, file: &[u8], parse: impl Fn(&[u8]) -> Result<T, String>) -> Option<T> {
    parse(file).map_err(|what| section.problem(key, format!("the file {what}"))).ok()
}

/// The certificate and key of a listener, tried out together. `host_names` are what clients know it by, if that is known.
pub(super) fn tls_files(section: &Section<'_>, host_names: &[String]) -> Option<TlsFiles> {
    const KINDS: [&str; 2] = ["file name (PEM chain)", "file name (PEM key)"];
    let chain = section.file("tls_cert_file", KINDS[0], Secrecy::Public);
    let key = section.file("tls_key_file", KINDS[1], Secrecy::Secret);
    let chain = chain.and_then(|file| read(section, "tls_cert_file", &file, pem::certificates));
    let key = key.and_then(|file| read(section, "tls_key_file", &file, pem::private_key));
    let certificates = chain.as_deref().unwrap_or_default();
    let is_served = section.document().is_served(section.path(), certificates);
    for finding in certificate::check(certificates, host_names, SystemClock::wall()) {
        match finding {
            // Refusing the configuration would not get clients another one, and would keep everything else in it from being changed.
            Finding::OutOfTime(message) if is_served => {
                let message = format!("{message}. It is the one in use, so everything else is applied");
                section.warning("tls_cert_file", message);
            }
            Finding::Problem(message) | Finding::OutOfTime(message) => section.problem("tls_cert_file", message),
            Finding::Warning(message) => section.warning("tls_cert_file", message),
        }
    }
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
