//! Credentials that were not believed, for operators: the latest ones, a count of each reason, a sampled line.
//!
//! Invariants:
//! - In memory only, and bounded: whoever has no credential costs no disk write, and a flood of them pushes out nothing but its like.
//! - Neither a credential nor any part of one is kept. The hardware ID is: it has passed the grammar of IDs, so it is short and plain.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use parking_lot::Mutex;
use proxy_core::attestation::{NotBelieved, Reason};
use proxy_core::ids::{EnrollmentName, TenantName};
use rate_control::time::WallTime;

/// One credential that was not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// When.
    pub at: WallTime,
    /// The request, as its answer named it.
    pub request_id: Option<String>,
    /// As the device spelled it.
    pub hardware_id: String,
    /// Why.
    pub reason: Reason,
    /// What the device was judged by, if that was found.
    pub enrollment: Option<EnrollmentName>,
    /// Whose enrollment that is.
    pub tenant: Option<TenantName>,
    /// Where the request came from: the device, or what stands in front of us.
    pub peer: Option<IpAddr>,
}

/// A refused request, before it is kept.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its ID.
    pub id: Option<&'a str>,
    /// The hardware ID it named.
    pub hardware_id: &'a str,
    /// Where it came from.
    pub peer: Option<IpAddr>,
}

/// Which ones somebody asks for; what is `None` does not matter.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// In whatever case.
    pub hardware_id: Option<String>,
    /// The request.
    pub request_id: Option<String>,
    /// The name of the reason.
    pub reason: Option<String>,
    /// Whose.
    pub tenant: Option<String>,
}

impl Wanted {
    fn fits(&self, refused: &Refused) -> bool {
        let same =
            |wanted: &Option<String>, is: Option<&str>| wanted.as_deref().is_none_or(|wanted| is == Some(wanted));
        self.hardware_id.as_ref().is_none_or(|wanted| refused.hardware_id.eq_ignore_ascii_case(wanted))
            && same(&self.request_id, refused.request_id.as_deref())
            && same(&self.reason, Some(refused.reason.as_str()))
            && same(&self.tenant, refused.tenant.as_ref().map(TenantName::as_str))
    }
}

/// How many lines of one reason were written within a second, and how many were left out since the last one.
#[derive(Debug, Default)]
struct Sampled {
    second: i64,
    lines: u32,
    left_out: u64,
}

impl Sampled {
    /// How many were left out before this one, if it is to be written.
    fn write(&mut self, second: i64, lines_max: u32) -> Option<u64> {
        if self.second != second {
            (self.second, self.lines) = (second, 0);
        }
        if self.lines >= lines_max {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[derive(Debug, Default)]
struct Kept {
    /// Oldest first.
    latest: VecDeque<Refused>,
    sampled: BTreeMap<&'static str, Sampled>,
}

/// The latest refusals; see the module.
#[derive(Debug)]
pub struct Refusals {
    kept_max: usize,
    lines_per_second: u32,
    kept: Mutex<Kept>,
}

impl Refusals {
    /// Keeps at most `kept_max`, and logs at most `lines_per_second` of each reason.
    #[must_use]
    pub fn new(kept_max: usize, lines_per_second: u32) -> Self {
        Self { kept_max, lines_per_second, kept: Mutex::default() }
    }

    /// Keeps one, and logs it if few of its reason were logged within this second.
    pub fn note(&self, at: WallTime, not_believed: &NotBelieved, request: Request<'_>) {
        let reason = not_believed.reason;
        let (enrollment, tenant) = not_believed.enrollment.clone().unzip();
        let left_out = {
            let mut kept = self.kept.lock();
            if self.kept_max > 0 {
                if kept.latest.len() >= self.kept_max {
                    kept.latest.pop_front();
                }
                kept.latest.push_back(Refused {
                    at,
                    request_id: request.id.map(str::to_owned),
                    hardware_id: request.hardware_id.to_owned(),
                    reason,
                    enrollment: enrollment.clone(),
                    tenant,
                    peer: request.peer,
                });
            }
            kept.sampled.entry(reason.as_str()).or_default().write(at.unix_seconds(), self.lines_per_second)
        };
        let Some(left_out) = left_out else { return };
        tracing::info!(
            hardware_id = request.hardware_id,
            reason = reason.as_str(),
            detail = reason.words(),
            enrollment = enrollment.as_ref().map(EnrollmentName::as_str),
            peer = request.peer.map(|peer| peer.to_string()),
            left_out,
            "credential refused"
        );
    }

    /// The latest that fit, newest first, at most `most`.
    #[must_use]
    pub fn latest(&self, wanted: &Wanted, most: usize) -> Vec<Refused> {
        let kept = self.kept.lock();
        kept.latest.iter().rev().filter(|refused| wanted.fits(refused)).take(most).cloned().collect()
    }
}

/// The name of a reason, if there is one of that name.
#[must_use]
pub fn reason_named(name: &str) -> Option<Reason> {
    Reason::ALL.into_iter().find(|reason| reason.as_str() == name)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn note(refusals: &Refusals, second: u64, hardware_id: &str, reason: Reason) {
        let at = WallTime::from_unix_millis(0).after(Duration::from_secs(second));
        refusals.note(at, &reason.into(), Request { id: None, hardware_id, peer: None });
    }

    #[test]
    fn the_latest_are_kept_newest_first_and_no_more_than_allowed() {
        let refusals = Refusals::new(3, 0);
        for number in 0..10 {
            note(&refusals, number, &format!("SN-{number}"), Reason::WrongSignature);
        }
        let ids = |wanted: &Wanted, most| {
            refusals.latest(wanted, most).into_iter().map(|refused| refused.hardware_id).collect::<Vec<_>>()
        };
        assert_eq!(ids(&Wanted::default(), 10), ["SN-9", "SN-8", "SN-7"]);
        assert_eq!(ids(&Wanted::default(), 2), ["SN-9", "SN-8"]);
        assert_eq!(ids(&Wanted { hardware_id: Some("sn-8".to_owned()), ..Wanted::default() }, 10), ["SN-8"]);
        assert!(ids(&Wanted { reason: Some("expired".to_owned()), ..Wanted::default() }, 10).is_empty());
        note(&Refusals::new(0, 0), 0, "sn-1", Reason::Expired);
    }

    #[test]
    fn lines_are_sampled_by_the_second_and_say_how_many_were_left_out() {
        let mut sampled = Sampled::default();
        let told: Vec<_> = [7, 7, 7, 7, 8, 3].into_iter().map(|second| sampled.write(second, 2)).collect();
        assert_eq!(told, [Some(0), Some(0), None, None, Some(2), Some(0)], "a clock that is set back holds nothing up");
        assert_eq!(Sampled::default().write(0, 0), None);
    }
}
