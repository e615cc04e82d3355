//! Certificates and private keys from PEM files, however the files were put together. Everything that reads PEM reads it here.
//!
//! Invariants:
//! - Sections may share a line, be indented or stand amid other text; none is dropped in silence.
//! - No message quotes the file: it may hold a key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The certificates of a file, in their order; at least one.
///
/// # Errors
/// What is wrong with the file and what it probably is instead, in words that follow "the file".
pub(crate) fn certificates(file: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = on_lines_of_their_own(file);
    if has_line_breaks_written_out(&text) {
        return Err(likely_cause(file, &text, Wanted::Certificates));
    }
    let sections = sections(&text)?;
    let found = sections.into_iter().filter(|(kind, _)| *kind == SectionKind::Certificate);
    let found: Vec<CertificateDer<'static>> = found.map(|(_, der)| CertificateDer::from(der)).collect();
    let announced = text.matches("-----BEGIN CERTIFICATE-----").count();
    if found.len() != announced {
        return Err(format!("announces {announced} certificates, but {} can be read; copy it anew", found.len()));
    }
    if found.is_empty() { Err(likely_cause(file, &text, Wanted::Certificates)) } else { Ok(found) }
}

/// The private key of a file.
///
/// # Errors
/// As [`certificates`]; also if the file holds several keys.
pub(crate) fn private_key(file: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let text = on_lines_of_their_own(file);
    if is_encrypted(&text) || has_line_breaks_written_out(&text) {
        return Err(likely_cause(file, &text, Wanted::Key));
    }
    let mut keys = sections(&text)?.into_iter().filter_map(|(kind, der)| PrivateKeyDer::from_pem(kind, der));
    match (keys.next(), keys.next()) {
        (Some(key), None) => Ok(key),
        (Some(_), Some(_)) => {
            Err("holds several private keys; leave only the one that goes with the certificate".to_owned())
        }
        (None, _) => Err(likely_cause(file, &text, Wanted::Key)),
    }
}

/// The certificates as PEM, each on lines of its own.
pub(crate) fn to_pem(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    let mut pem = String::new();
    for certificate in certificates {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = STANDARD.encode(certificate);
        for line in encoded.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem.into_bytes()
}

/// Puts every mark on a line of its own, without white space around it.
fn on_lines_of_their_own(file: &[u8]) -> String {
    let text = String::from_utf8_lossy(file);
    let mut rest = text.trim_start_matches('\u{feff}');
    let mut spread = String::with_capacity(rest.len() + 64);
    while let Some((before, mark, after)) = next_mark(rest) {
        spread.extend([before, "\n", mark, "\n"]);
        rest = after;
    }
    spread.push_str(rest);
    spread.lines().flat_map(|line| [line.trim(), "\n"]).collect()
}

/// What stands before the next `-----BEGIN …-----` or `-----END …-----`, the mark, and what stands behind it.
fn next_mark(text: &str) -> Option<(&str, &str, &str)> {
    let start = ["-----BEGIN ", "-----END "].iter().filter_map(|mark| text.find(mark)).min()?;
    let label = start + "-----".len();
    let end = label + text[label..].find("-----")? + "-----".len();
    Some((&text[..start], &text[start..end], &text[end..]))
}

fn sections(text: &str) -> Result<Vec<(SectionKind, Vec<u8>)>, String> {
    let read = <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()).enumerate().map(|(index, section)| {
        let number = index + 1;
        section.map_err(|_| format!("has a PEM section (number {number}) that is cut off or not base64; copy it anew"))
    });
    read.collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Certificates,
    Key,
}

fn is_encrypted(text: &str) -> bool {
    text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("Proc-Type: 4,ENCRYPTED")
}

fn has_line_breaks_written_out(text: &str) -> bool {
    text.contains("-----BEGIN ") && text.contains("\\n")
}

/// Why a file does not hold what is wanted.
fn likely_cause(file: &[u8], text: &str, wanted: Wanted) -> String {
    let has = |label: &str| text.contains(&format!("-----BEGIN {label}-----"));
    let compact: String =
        text.chars().filter(|character| !character.is_whitespace() && *character != '\0').take(40).collect();
    let (needed, convert) = match wanted {
        Wanted::Certificates => {
            ("must hold certificates in PEM (-----BEGIN CERTIFICATE-----)", "openssl x509 -inform der")
        }
        Wanted::Key => {
            ("must hold a private key in PEM (-----BEGIN PRIVATE KEY-----), not encrypted", "openssl pkey -inform der")
        }
    };
    let seen = if file.starts_with(b"\xff\xfe")
        || file.starts_with(b"\xfe\xff")
        || (file.contains(&0) && compact.contains("BEGIN"))
    {
        "it is saved as UTF-16: save it as UTF-8"
    } else if file.first() == Some(&0x30) {
        return format!("{needed}; it is binary (DER or PKCS #12): convert it, for example with `{convert}`");
    } else if compact.starts_with("LS0tLS1CRUdJTi") {
        "it is base64 of a PEM file, so it was encoded once too often (as in a Kubernetes manifest): decode it once"
    } else if has_line_breaks_written_out(text) {
        "it has \\n written out instead of line breaks: put real line breaks in"
    } else if is_encrypted(text) {
        "it is encrypted: store it without a passphrase, for example with `openssl pkey`"
    } else if has("OPENSSH PRIVATE KEY") {
        "it is in OpenSSH's own format: convert it with `ssh-keygen -p -m PKCS8`"
    } else if has("CERTIFICATE REQUEST") || has("NEW CERTIFICATE REQUEST") {
        "it holds a request for a certificate, not the certificate that was made of it"
    } else if has("TRUSTED CERTIFICATE") || has("PKCS7") {
        "it is in another format: convert it, for example with `openssl x509` or `openssl pkcs7 -print_certs`"
    } else if wanted == Wanted::Certificates && text.contains("PRIVATE KEY-----") {
        "it holds a private key: the two files are probably swapped"
    } else if wanted == Wanted::Key && has("CERTIFICATE") {
        "it holds certificates: the two files are probably swapped"
    } else if wanted == Wanted::Key && (has("PUBLIC KEY") || has("RSA PUBLIC KEY")) {
        "it holds the public key"
    } else if compact.starts_with(['"', '\'']) {
        "it begins with a quote: remove the quotes"
    } else {
        "it holds no such section"
    };
    format!("{needed}; {seen}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> (Vec<u8>, Vec<u8>, String) {
        let (one, two) = (vec![0x30, 1, 2, 3], vec![0x30; 100]);
        let pem = to_pem(&[CertificateDer::from(one.clone()), CertificateDer::from(two.clone())]);
        (one, two, String::from_utf8(pem).unwrap())
    }

    #[test]
    fn a_chain_is_read_whole_however_its_lines_lie() {
        let (one, two, pem) = made();
        let expected = vec![CertificateDer::from(one), CertificateDer::from(two)];
        let indented: String = pem.lines().flat_map(|line| ["    ", line, "  \n"]).collect();
        for (name, text) in [
            ("as it is", pem.clone()),
            ("END and BEGIN on one line", pem.replace("-----END CERTIFICATE-----\n", "-----END CERTIFICATE-----")),
            ("all on one line", pem.replace('\n', " ")),
            ("CR LF", pem.replace('\n', "\r\n")),
            ("CR", pem.replace('\n', "\r")),
            ("indented", indented),
            ("text around it", format!("\u{feff}subject=CN = x\nBag Attributes\n{pem}\nissuer -- y\n")),
            ("no line end at the end", pem.trim_end().to_owned()),
        ] {
            assert_eq!(certificates(text.as_bytes()).as_ref(), Ok(&expected), "{name}");
        }
    }

    #[test]
    fn a_chain_that_is_damaged_is_refused_and_not_cut_short() {
        let (_, _, pem) = made();
        let cut = &pem[..pem.len() - 40];
        let bad = pem.replacen("MDAw", "M!Aw", 1);
        let open = pem.replacen("-----END CERTIFICATE-----", "", 1);
        for text in [cut, &bad, &open] {
            assert!(certificates(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn the_likely_cause_is_named() {
        let (_, _, pem) = made();
        let key = "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n";
        let utf_16: Vec<u8> = pem.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (file, said) in [
            (STANDARD.encode(&pem).into_bytes(), "encoded once too often"),
            (vec![0x30, 0x82, 1, 2], "binary"),
            (utf_16, "UTF-16"),
            (key.as_bytes().to_vec(), "swapped"),
            (b"-----BEGIN CERTIFICATE REQUEST-----\nMIGH\n-----END CERTIFICATE REQUEST-----".to_vec(), "request"),
            (b"hello".to_vec(), "no such section"),
        ] {
            let told = certificates(&file).unwrap_err();
            assert!(told.contains(said), "{said}: {told}");
        }
        for (file, said) in [
            (pem.as_str(), "swapped"),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIGH\n-----END ENCRYPTED PRIVATE KEY-----", "encrypted"),
            (
                "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIGH\n-----END EC PRIVATE KEY-----",
                "encrypted",
            ),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nMIGH\n-----END OPENSSH PRIVATE KEY-----", "OpenSSH"),
            (&format!("{key}{key}"), "several"),
        ] {
            let told = private_key(file.as_bytes()).unwrap_err();
            assert!(told.contains(said) && !told.contains("MIGH"), "{said}: {told}");
        }
        assert!(private_key(key.replace('\n', " ").as_bytes()).is_ok());
    }
}
