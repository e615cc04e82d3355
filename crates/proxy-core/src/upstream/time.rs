//! Asking DPS for the time: a poll of nobody's operation, without a credential. DPS refuses it, registers nothing, counts nothing against
//! the registration quota, and dates its refusal.

use std::time::Duration;

use super::answer::{parse_http_date, read};
use super::{NoAnswer, Said};
use rate_control::time::WallTime;

/// Path behind the ID scope. No device can have this registration ID, as it is not one.
pub const PATH: &str = "/registrations/-/operations/-";

/// Whom an answer to the question for the time is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// DPS, by its words; or a DPS that has none for such a call (an emulator of another kind), by refusing as an HTTP service does and
    /// without a page.
    Dps,
    /// Somebody in front of DPS, who has a certificate for its name: a firewall that inspects TLS, a gateway. Its words are not DPS's.
    Front,
    /// Anybody: the connection proved nothing, and the words are not DPS's.
    Stranger,
}

/// An answer to the question for the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeAnswer {
    /// Who gave it.
    pub speaker: Speaker,
    /// Its HTTP status.
    pub http_status: u16,
    /// What the clock of whoever answered reads, to the second.
    pub date: Option<WallTime>,
    /// How long to wait before the next question, if that was said.
    pub retry_after: Option<Duration>,
}

/// Reads the answer to the question for the time. `proven`: it came on a connection whose other end proved DPS's name by a certificate.
///
/// # Errors
/// [`NoAnswer::Lost`] if it is a gateway's error: DPS was not reached.
pub fn read_answer<'h>(
    http_status: u16,
    header: impl Fn(&str) -> Option<&'h str> + Copy,
    body: &[u8],
    proven: bool,
) -> Result<TimeAnswer, NoAnswer> {
    let answer = read(http_status, header, body)?;
    let no_page = body.is_empty() || serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
    let refuses = matches!(&answer.said, Said::Error(_)) && matches!(http_status, 400 | 401 | 404 | 405);
    let speaker = match answer.date {
        Some(_) => Speaker::Dps,
        None if refuses && no_page => Speaker::Dps,
        None if proven => Speaker::Front,
        None => Speaker::Stranger,
    };
    let date = answer.date.or_else(|| header("date").and_then(parse_http_date));
    Ok(TimeAnswer { speaker, http_status, date, retry_after: answer.retry_after })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_speaks_for_dps_is_told_by_words_and_who_stands_before_it_by_a_certificate() {
        let dated = |name: &str| (name == "date").then_some("Thu, 01 Jan 2026 00:00:01 GMT");
        let date = WallTime::parse("2026-01-01T00:00:01Z");
        let dps = br#"{"errorCode":401002,"trackingId":"t","message":"Unauthorized"}"#;
        for (status, body) in [
            (401, &dps[..]),
            (429, br#"{"errorCode":429001}"#),
            (500, br#"{"errorCode":500001}"#),
            (404, b""),
            (401, b"{}"),
        ] {
            for proven in [false, true] {
                let answer = read_answer(status, dated, body, proven).unwrap();
                assert_eq!((answer.speaker, answer.date), (Speaker::Dps, date), "{status}");
            }
        }
        for (status, body) in [
            (200, &b"<html>blocked</html>"[..]),
            (302, b""),
            (401, b"<html>log in</html>"),
            (403, b""),
            (404, b"not here"),
            (407, b""),
            (429, b""),
        ] {
            for (proven, speaker) in [(false, Speaker::Stranger), (true, Speaker::Front)] {
                let answer = read_answer(status, dated, body, proven).unwrap();
                assert_eq!((answer.speaker, answer.date), (speaker, date), "{status}");
            }
        }
        for status in [408, 502, 503, 504] {
            assert!(matches!(read_answer(status, dated, b"", true), Err(NoAnswer::Lost(_))), "{status}");
        }
        assert_eq!(read_answer(401, |_| None, dps, true).unwrap().date, None);
    }

    #[test]
    fn a_throttle_says_how_long_to_wait() {
        let headers = |name: &str| (name == "retry-after").then_some("17");
        assert_eq!(read_answer(429, headers, b"", false).unwrap().retry_after, Some(Duration::from_secs(17)));
    }
}
