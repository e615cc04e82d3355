//! Asking DPS for the time: a poll of nobody's operation, without a credential. DPS refuses it, registers nothing, counts nothing against
//! the registration quota, and dates its refusal.

use super::answer::{parse_http_date, read};
use super::{NoAnswer, Said};
use crate::time::WallTime;

/// Path behind the ID scope. No device can have this registration ID, as it is not one.
pub const PATH: &str = "/registrations/-/operations/-";

/// Reads the date of whoever refused the call.
///
/// DPS is believed by its words. A DPS that has none for such a call (an emulator of another kind) is believed if it refuses as an HTTP
/// service does and sends no page; a firewall or a captive portal answers with a page, a redirect or a gateway's error.
///
/// # Errors
/// [`NoAnswer::Lost`] if whoever answered does not speak for DPS, or names no date.
pub fn read_date<'h>(
    http_status: u16,
    header: impl Fn(&str) -> Option<&'h str> + Copy,
    body: &[u8],
) -> Result<WallTime, NoAnswer> {
    let answer = read(http_status, header, body)?;
    if let Some(date) = answer.date {
        return Ok(date);
    }
    let no_page = body.is_empty() || serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
    let refuses = matches!(&answer.said, Said::Error(_)) && matches!(http_status, 400 | 401 | 404 | 405);
    let date = header("date").filter(|_| refuses && no_page).and_then(parse_http_date);
    date.ok_or_else(|| {
        NoAnswer::Lost(format!("HTTP {http_status} to the question for the time, not in DPS's words or without a date"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_believed_of_whoever_speaks_for_dps() {
        let dated = |name: &str| (name == "date").then_some("Thu, 01 Jan 2026 00:00:01 GMT");
        let date = WallTime::parse("2026-01-01T00:00:01Z").unwrap();
        let dps = br#"{"errorCode":401002,"trackingId":"t","message":"Unauthorized"}"#;
        for (status, body) in [
            (401, &dps[..]),
            (429, br#"{"errorCode":429001}"#),
            (500, br#"{"errorCode":500001}"#),
            (404, b""),
            (401, b"{}"),
        ] {
            assert_eq!(read_date(status, dated, body), Ok(date), "{status}");
        }
        for (status, body) in [
            (200, &b"<html>blocked</html>"[..]),
            (302, b""),
            (401, b"<html>log in</html>"),
            (403, b""),
            (404, b"not here"),
            (407, b""),
            (502, b""),
            (503, b""),
        ] {
            assert!(matches!(read_date(status, dated, body), Err(NoAnswer::Lost(_))), "{status}");
        }
        assert!(read_date(401, |_| None, dps).is_err(), "no date");
    }
}
