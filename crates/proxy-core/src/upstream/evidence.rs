//! What the end of a call is evidence of: the device, the instance, the path to it, or ourselves.
//!
//! One table, used for registrations, polls and lookups alike. It decides three things:
//! - whether the circuit counts a failure, and what operators are told is to blame;
//! - whether the answer is DPS's: if not, its slot of the quota is held as if no answer had come (see [`rate_control::ledger`]);
//! - whether a registration without a result may be held against its device: only if DPS itself spoke.
//!
//! What to do for the device is the business of [`super::verdict`].

use super::verdict::{Call, knows_no_lookups};
use super::{CallResult, DpsError, NoAnswer, Progress, Said, Status};

/// Who is to blame for a call that failed, if the device is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// DPS itself failed.
    Instance,
    /// Something between us and DPS: no connection, a connection that broke, or somebody who answers in DPS's stead.
    Path,
    /// This machine or its configuration: DPS forbids calls like ours, or we cannot open connections.
    Ourselves,
}

impl Blame {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Instance, Self::Path, Self::Ourselves];

    /// Its name in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Instance => "instance",
            Self::Path => "path",
            Self::Ourselves => "ourselves",
        }
    }

    /// What to look at, in words for operators.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Instance => "DPS is to blame",
            Self::Path => {
                "what is between us and DPS is to blame (network, firewall, proxy, or the instance's endpoint)"
            }
            Self::Ourselves => "this machine or its configuration is to blame",
        }
    }
}

/// What the end of a call shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The instance works: DPS answered in its own words, also if it refused the device.
    Works,
    /// A failure that is not the device's.
    Against(Blame),
    /// Nothing: DPS throttled us, an old connection broke, or nothing was sent.
    Nothing,
}

/// Weighs the end of a call.
#[must_use]
pub fn weigh(call: Call, result: &CallResult) -> Evidence {
    let answer = match result {
        Ok(answer) => answer,
        Err(NoAnswer::Withheld(_) | NoAnswer::OldConnection(_)) => return Evidence::Nothing,
        Err(NoAnswer::NeverLeft(_) | NoAnswer::Lost(_)) => return Evidence::Against(Blame::Path),
        Err(NoAnswer::NoMeans(_)) => return Evidence::Against(Blame::Ourselves),
    };
    match &answer.said {
        Said::Progress(progress) => of_progress(progress),
        Said::Error(error) => of_error(call, error),
        Said::Unreadable { .. } => Evidence::Against(Blame::Instance),
        Said::Foreign { .. } => Evidence::Against(Blame::Path),
    }
}

fn of_progress(progress: &Progress) -> Evidence {
    match (progress.status, progress.state.error_code) {
        (Status::Failed, Some(code)) if code / 1000 == 429 || code / 1000 >= 500 => Evidence::Against(Blame::Instance),
        (Status::Assigned, _) if progress.state.assigned_hub.is_none() => Evidence::Nothing,
        _ => Evidence::Works,
    }
}

fn of_error(call: Call, error: &DpsError) -> Evidence {
    match (error.http_status, error.error_code) {
        (429, _) => Evidence::Nothing,
        _ if knows_no_lookups(call, error) => Evidence::Nothing,
        (500.., _) => Evidence::Against(Blame::Instance),
        // Whatever DPS refuses carries its six digits.
        (_, None) => Evidence::Against(Blame::Path),
        (403 | 405 | 415, Some(_)) => Evidence::Against(Blame::Ourselves),
        (_, Some(_)) => Evidence::Works,
    }
}

/// A failure in words for logs and timelines.
#[must_use]
pub fn words(result: &CallResult) -> String {
    let answer = match result {
        Ok(answer) => answer,
        Err(no_answer) => return no_answer.to_string(),
    };
    match &answer.said {
        Said::Progress(progress) => match progress.state.error_code {
            Some(code) => format!("DPS ended a registration with {code}"),
            None => "DPS answered".to_owned(),
        },
        Said::Error(DpsError { http_status, error_code: Some(code), .. }) => {
            format!("DPS answered HTTP {http_status} with {code}")
        }
        Said::Error(DpsError { http_status, .. }) => format!("HTTP {http_status} without an error code of DPS"),
        Said::Unreadable { http_status, detail } => {
            format!("DPS answered HTTP {http_status} with a body that cannot be read: {detail}")
        }
        Said::Foreign { http_status, detail } => format!("HTTP {http_status} that is not DPS's: {detail}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::HubName;
    use crate::upstream::{Answer, RegistrationState};

    fn said(said: Said) -> CallResult {
        Ok(Answer { said, retry_after: None, date: None, request_id: None })
    }

    fn error(http_status: u16, error_code: Option<i64>) -> CallResult {
        let (tracking_id, message) = (None, String::new());
        said(Said::Error(DpsError { http_status, error_code, tracking_id, message, body_is_empty: true }))
    }

    fn progress(status: Status, error_code: Option<i64>) -> CallResult {
        let assigned_hub = (status == Status::Assigned).then(|| HubName::parse("hub.example").unwrap());
        let state = RegistrationState { assigned_hub, error_code, ..RegistrationState::default() };
        said(Said::Progress(Progress { operation_id: None, status, state }))
    }

    #[test]
    fn every_end_of_a_call_is_evidence_of_one_thing() {
        use Blame::{Instance, Ourselves, Path};
        use Call::{Lookup, Poll, Register};
        use Evidence::{Against, Nothing, Works};
        let text = || "why".to_owned();
        for (call, result, expected) in [
            (Register, progress(Status::Assigning, None), Works),
            (Poll, progress(Status::Assigned, None), Works),
            (Poll, progress(Status::Failed, Some(400_208)), Works),
            (Poll, progress(Status::Failed, Some(500_001)), Against(Instance)),
            (Poll, progress(Status::Disabled, None), Works),
            (Register, error(401, Some(401_002)), Works),
            (Register, error(404, Some(404_201)), Works),
            (Register, error(409, Some(409_203)), Works),
            (Register, error(400, Some(400_004)), Works),
            (Register, error(403, Some(403_001)), Against(Ourselves)),
            (Register, error(415, Some(415_001)), Against(Ourselves)),
            (Register, error(429, Some(429_001)), Nothing),
            (Register, error(429, None), Nothing),
            (Register, error(500, Some(500_001)), Against(Instance)),
            (Register, error(500, None), Against(Instance)),
            (Register, error(302, None), Against(Path)),
            (Register, error(401, None), Against(Path)),
            (Register, error(404, None), Against(Path)),
            (Lookup, error(404, None), Nothing),
            (Lookup, error(404, Some(404_201)), Works),
            (Register, said(Said::Foreign { http_status: 200, detail: text() }), Against(Path)),
            (Lookup, said(Said::Foreign { http_status: 404, detail: text() }), Against(Path)),
            (Register, said(Said::Unreadable { http_status: 200, detail: text() }), Against(Instance)),
            (Register, Err(NoAnswer::NeverLeft(text())), Against(Path)),
            (Register, Err(NoAnswer::Lost(text())), Against(Path)),
            (Register, Err(NoAnswer::NoMeans(text())), Against(Ourselves)),
            (Register, Err(NoAnswer::OldConnection(text())), Nothing),
            (Register, Err(NoAnswer::Withheld("paused")), Nothing),
        ] {
            assert_eq!(weigh(call, &result), expected, "{call:?} {result:?}");
        }
    }
}
