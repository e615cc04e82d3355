//! What is to be said of a listener's certificates: their time, their names, their order.
//!
//! Invariant: nothing here keeps a handshake from being made; it tells operators before clients have to.

use std::time::Duration;

use rate_control::time::WallTime;
use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls_pki_types::{CertificateDer, ServerName};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How long before its end a certificate is warned about.
pub(crate) const WARNED_AHEAD: Duration = Duration::from_secs(30 * DAY_SECONDS);

const DAY_SECONDS: u64 = 86_400;

/// One thing to say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Clients will not connect.
    Problem(String),
    /// They will not either, because of the time it is: a certificate that was sound once becomes so by itself.
    OutOfTime(String),
    /// They may not, or not for long.
    Warning(String),
}

/// Looks at a chain, the server's own certificate first, which devices know by `host_names` (none: not checked).
pub(crate) fn check(chain: &[CertificateDer<'_>], host_names: &[String], now: WallTime) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut parsed = Vec::new();
    for (index, der) in chain.iter().enumerate() {
        match X509Certificate::from_der(der) {
            Ok(([], certificate)) => {
                findings.extend(time(&certificate, index, now));
                parsed.push(certificate);
            }
            Ok(_) | Err(_) => findings.push(Finding::Problem(format!("{} is no X.509 certificate", name_of(index)))),
        }
    }
    if parsed.len() == chain.len() {
        findings.extend(order(&parsed));
    }
    findings.extend(names(chain, host_names));
    findings
}

/// When the first certificate of the chain ends that clients look at. `None` if there is none that can be read.
pub(crate) fn end(chain: &[CertificateDer<'_>]) -> Option<WallTime> {
    let ends = chain.iter().enumerate().filter_map(|(index, der)| {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        (index == 0 || !is_root(&certificate)).then(|| seconds(certificate.validity().not_after.timestamp()))
    });
    ends.min()
}

/// Whole days until `end`; negative once it has passed.
pub(crate) fn days_left(end: WallTime, now: WallTime) -> i64 {
    (end.unix_seconds() - now.unix_seconds()).div_euclid(DAY_SECONDS as i64)
}

fn seconds(unix: i64) -> WallTime {
    WallTime::from_unix_millis(unix.saturating_mul(1000))
}

fn name_of(index: usize) -> String {
    if index == 0 {
        "the server's certificate".to_owned()
    } else {
        format!("certificate number {} of the chain", index + 1)
    }
}

/// A root in the chain is ignored by clients: they go by their own.
fn is_root(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject().as_raw() == certificate.issuer().as_raw()
}

fn time(certificate: &X509Certificate<'_>, index: usize, now: WallTime) -> Option<Finding> {
    let (begin, end) = (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
    let (begin, end, name) = (seconds(begin), seconds(end), name_of(index));
    let finding = if index > 0 && is_root(certificate) { Finding::Warning } else { Finding::OutOfTime };
    if now > end {
        let days = days_left(now, end);
        return Some(finding(format!("{name} expired on {end}, {days} days ago; renew it")));
    }
    if now < begin {
        return Some(finding(format!(
            "{name} is not valid before {begin}; now it is {now}: check this machine's clock, or wait"
        )));
    }
    let ahead = end.since(now) < WARNED_AHEAD;
    ahead.then(|| Finding::Warning(format!("{name} expires on {end}, in {} days; renew it", days_left(end, now))))
}

/// Each certificate is issued by the next one, else some clients find no way to their root.
fn order(chain: &[X509Certificate<'_>]) -> Option<Finding> {
    let broken = chain.windows(2).position(|pair| pair[0].issuer().as_raw() != pair[1].subject().as_raw())?;
    Some(Finding::Warning(format!(
        "{} was not issued by the one after it: put the server's own first and each issuer behind, and leave out others",
        name_of(broken)
    )))
}

fn names(chain: &[CertificateDer<'_>], host_names: &[String]) -> Option<Finding> {
    let certificate = ParsedCertificate::try_from(chain.first()?).ok()?;
    let is_for = |name: &&String| {
        ServerName::try_from(name.as_str()).is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
    };
    let others: Vec<&str> = host_names.iter().filter(|name| !is_for(name)).map(String::as_str).collect();
    (!others.is_empty()).then(|| {
        Finding::Warning(format!(
            "the server's certificate is not for {} (device.host_name): clients that check the name refuse it; names count only as \
             subject alternative names",
            others.join(", ")
        ))
    })
}
