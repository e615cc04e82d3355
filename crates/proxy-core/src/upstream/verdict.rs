//! What to do about an answer of DPS: every known code has one line here. Whom a failure is held against is said in [`super::evidence`].
//!
//! Sources: the device API's published error codes and the SDKs' own handling. Codes are classified by what is known of the six
//! digits, else by the HTTP status in front of them, because Microsoft publishes only some. Every error of DPS has such a code: a
//! refusal without one is somebody else's (a firewall, a proxy's login page), and is never held against the device.

use std::time::Duration;

use super::{Answer, DpsError, Progress, RegistrationState, Said, Status};
use crate::ids::OperationId;

/// What an answer means for the device.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It has a hub.
    Assigned(RegistrationState),
    /// DPS works on it: poll.
    Assigning {
        /// What to poll. `None` only in the answer to a lookup.
        operation_id: Option<OperationId>,
    },
    /// Nobody of this instance goes before the wait is over; the device keeps its place.
    Throttled {
        /// As DPS asked, if it did.
        retry_after: Option<Duration>,
        /// DPS's name for the refusal.
        tracking_id: Option<String>,
    },
    /// Go again after a short wait; nothing is wrong with the instance.
    Requeue {
        /// For the timeline.
        why: String,
    },
    /// Go again after a growing wait; the instance may be ill.
    Retry {
        /// For the timeline.
        why: String,
    },
    /// DPS will not have it until an operator mends something.
    Refused(RefusalWords),
    /// Whether the registration happened is unknown: look it up.
    Unknown {
        /// For the timeline.
        why: String,
    },
    /// DPS holds no registration of this device.
    NotRegistered,
    /// This DPS has no status lookups.
    NoLookups,
}

/// What DPS called a failure, for whoever asks Microsoft about it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Named {
    /// Its six digits.
    pub error_code: Option<i64>,
    /// Its tracking ID.
    pub tracking_id: Option<String>,
}

impl Named {
    /// As `answer` named it.
    #[must_use]
    pub fn of(answer: &Answer) -> Self {
        let error_code = match &answer.said {
            Said::Error(error) => error.error_code,
            Said::Progress(progress) => progress.state.error_code,
            Said::Unreadable { .. } | Said::Foreign { .. } => None,
        };
        Self { error_code, tracking_id: tracking_id(answer).map(str::to_owned) }
    }
}

/// A refusal in words for the operator who must mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusalWords {
    /// Our stable code.
    pub code: &'static str,
    /// What to mend.
    pub detail: String,
    /// DPS's six digits.
    pub error_code: Option<i64>,
    /// DPS's name for the failure.
    pub tracking_id: Option<String>,
}

impl RefusalWords {
    /// A refusal of ours about an answer that DPS named so.
    #[must_use]
    pub fn of_ours(code: &'static str, detail: String, named: Named) -> Self {
        Self { code, detail, error_code: named.error_code, tracking_id: named.tracking_id }
    }
}

/// Which call was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `PUT …/register`.
    Register,
    /// `GET …/operations/…`.
    Poll,
    /// `POST …/registrations/…`.
    Lookup,
}

/// Judges one answer.
#[must_use]
pub fn judge(call: Call, answer: &Answer) -> Verdict {
    let verdict = match &answer.said {
        Said::Progress(progress) => judge_progress(call, progress, answer.request_id.as_deref()),
        Said::Error(error) => judge_error(call, error, answer),
        Said::Unreadable { http_status, detail } => {
            Verdict::Unknown { why: format!("DPS answered {http_status} with a body that cannot be read: {detail}") }
        }
        Said::Foreign { http_status, detail } => {
            Verdict::Unknown { why: format!("HTTP {http_status} from something between us and DPS: {detail}") }
        }
    };
    // Every event that Microsoft could be asked about carries DPS's name for it.
    let traced = |why: String| format!("{why}{}", trace(tracking_id(answer)));
    match verdict {
        Verdict::Requeue { why } => Verdict::Requeue { why: traced(why) },
        Verdict::Retry { why } => Verdict::Retry { why: traced(why) },
        Verdict::Unknown { why } => Verdict::Unknown { why: traced(why) },
        other => other,
    }
}

/// DPS's name for what it answered, for a support request.
#[must_use]
pub fn tracking_id(answer: &Answer) -> Option<&str> {
    let of_error = match &answer.said {
        Said::Error(error) => error.tracking_id.as_deref(),
        Said::Progress(_) | Said::Unreadable { .. } | Said::Foreign { .. } => None,
    };
    of_error.or(answer.request_id.as_deref())
}

/// A tracking ID as it ends the words of an event; nothing if there is none.
#[must_use]
pub fn trace(tracking_id: Option<&str>) -> String {
    tracking_id.map(|id| format!(", tracking ID {id}")).unwrap_or_default()
}

/// Whether the answer shows that this DPS has no status lookups: a resource that is not there, said by a server without a word.
#[must_use]
pub fn knows_no_lookups(call: Call, error: &DpsError) -> bool {
    call == Call::Lookup && error.http_status == 404 && error.error_code.is_none() && error.body_is_empty
}

fn judge_progress(call: Call, progress: &Progress, tracking_id: Option<&str>) -> Verdict {
    let state = &progress.state;
    match progress.status {
        Status::Assigned if state.assigned_hub.is_some() => Verdict::Assigned(state.clone()),
        Status::Assigned => Verdict::Unknown { why: "DPS answered assigned without a hub".to_owned() },
        Status::Assigning if call == Call::Register && progress.operation_id.is_none() => {
            Verdict::Unknown { why: "DPS answered assigning without an operation ID".to_owned() }
        }
        Status::Assigning => Verdict::Assigning { operation_id: progress.operation_id.clone() },
        Status::Unassigned if call == Call::Lookup => Verdict::NotRegistered,
        Status::Unassigned => Verdict::Requeue { why: "DPS answered unassigned".to_owned() },
        Status::Disabled => Verdict::Refused(RefusalWords {
            code: "enrollment-disabled",
            detail: "DPS says that the enrollment is disabled: enable it in DPS, then retry the device".to_owned(),
            error_code: state.error_code,
            tracking_id: tracking_id.map(str::to_owned),
        }),
        Status::Failed => judge_failed(state, tracking_id),
    }
}

fn judge_failed(state: &RegistrationState, tracking_id: Option<&str>) -> Verdict {
    let said = state.error_message.as_deref().unwrap_or("");
    let refused = |code, advice: &str| {
        Verdict::Refused(RefusalWords {
            code,
            detail: with_words(advice, said),
            error_code: state.error_code,
            tracking_id: tracking_id.map(str::to_owned),
        })
    };
    match state.error_code {
        Some(400_207) => refused(
            "custom-allocation-failed",
            "the custom allocation webhook of the enrollment failed: fix the webhook",
        ),
        Some(400_208) => {
            refused("no-hub-selected", "DPS could not select a hub: link a hub to the instance or to the enrollment")
        }
        Some(400_209) => {
            refused("hub-refused-dps", "the linked hub refused DPS: renew the linked hub's access policy in DPS")
        }
        Some(401_002) => unauthorized(state.error_code, tracking_id, said),
        Some(404_201) => not_enrolled(state.error_code, tracking_id, said),
        Some(409_203) => {
            Verdict::Requeue { why: "DPS answered 409203: another registration of this device was running".to_owned() }
        }
        Some(code) if code / 1000 == 429 || code / 1000 >= 500 => {
            Verdict::Retry { why: with_words(&format!("DPS failed with {code}"), said) }
        }
        Some(_) | None => {
            refused("registration-failed", "DPS reported the registration as failed: see its code and message")
        }
    }
}

fn judge_error(call: Call, error: &DpsError, answer: &Answer) -> Verdict {
    let tracking_id = tracking_id(answer);
    let words = error.message.as_str();
    if knows_no_lookups(call, error) {
        return Verdict::NoLookups;
    }
    match (error.http_status, call) {
        // Whatever DPS refuses carries its six digits. Without them something in between spoke, which no device is to blame for.
        (300..=428 | 430..=499, _) if error.error_code.is_none() => Verdict::Retry {
            why: with_words(
                &format!("HTTP {} without an error code of DPS, as from a proxy in between", error.http_status),
                words,
            ),
        },
        (429, _) => Verdict::Throttled { retry_after: answer.retry_after, tracking_id: tracking_id.map(str::to_owned) },
        (409 | 412, _) => Verdict::Requeue { why: with_words(&format!("DPS answered {}", error.http_status), words) },
        (500.., _) => Verdict::Retry {
            why: with_words(
                &format!("DPS failed with {}", error.error_code.unwrap_or(error.http_status.into())),
                words,
            ),
        },
        (status, _) if status < 400 || error.error_code.is_none() => Verdict::Retry {
            why: format!(
                "HTTP {status} without an error code of DPS: check what is between us and DPS (firewall, proxy), and the instance's endpoint"
            ),
        },
        (401, _) => unauthorized(error.error_code, tracking_id, words),
        (404, Call::Lookup) => Verdict::NotRegistered,
        (404, Call::Poll) => Verdict::Requeue { why: "DPS does not know the operation any more".to_owned() },
        (404, Call::Register) => not_enrolled(error.error_code, tracking_id, words),
        (403, _) => Verdict::Retry {
            why: with_words(
                "DPS answered 403 and forbids the call: check the instance's network rules (IP filter, private endpoint)",
                words,
            ),
        },
        (405 | 415, _) => Verdict::Retry {
            why: with_words(
                &format!(
                    "DPS answered {} to a call of ours: check the instance's endpoint and registration.api_version",
                    error.http_status
                ),
                words,
            ),
        },
        (status, _) => refused_with(
            "rejected-by-dps",
            &format!(
                "DPS answered {status} to a call of ours: check the instance's ID scope, its endpoint and registration.api_version"
            ),
            error,
            tracking_id,
        ),
    }
}

fn refused_with(code: &'static str, advice: &str, error: &DpsError, tracking_id: Option<&str>) -> Verdict {
    Verdict::Refused(RefusalWords {
        code,
        detail: with_words(advice, &error.message),
        error_code: error.error_code,
        tracking_id: tracking_id.map(str::to_owned),
    })
}

fn unauthorized(error_code: Option<i64>, tracking_id: Option<&str>, words: &str) -> Verdict {
    Verdict::Refused(RefusalWords {
        code: "unauthorized-by-dps",
        detail: with_words(
            "DPS rejected the credential for this device: check the enrollment's key in DPS against the configured one, that the enrollment exists and is enabled, and the instance's ID scope",
            words,
        ),
        error_code,
        tracking_id: tracking_id.map(str::to_owned),
    })
}

fn not_enrolled(error_code: Option<i64>, tracking_id: Option<&str>, words: &str) -> Verdict {
    Verdict::Refused(RefusalWords {
        code: "not-enrolled",
        detail: with_words(
            "DPS knows no enrollment for this device: create the enrollment or the group in this instance",
            words,
        ),
        error_code,
        tracking_id: tracking_id.map(str::to_owned),
    })
}

fn with_words(advice: &str, words: &str) -> String {
    if words.is_empty() { advice.to_owned() } else { format!("{advice} (DPS: {words})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(http_status: u16, error_code: Option<i64>) -> Answer {
        Answer {
            said: Said::Error(DpsError {
                http_status,
                error_code,
                tracking_id: None,
                message: "words".to_owned(),
                body_is_empty: false,
            }),
            retry_after: Some(Duration::from_secs(7)),
            date: None,
            request_id: Some("request".to_owned()),
        }
    }

    fn failed(error_code: i64) -> Answer {
        let state = RegistrationState { error_code: Some(error_code), ..RegistrationState::default() };
        let progress = Progress { operation_id: None, status: Status::Failed, state };
        Answer { said: Said::Progress(progress), retry_after: None, date: None, request_id: None }
    }

    fn kind(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Assigned(_) => "assigned",
            Verdict::Assigning { .. } => "assigning",
            Verdict::Throttled { .. } => "throttled",
            Verdict::Requeue { .. } => "requeue",
            Verdict::Retry { .. } => "retry",
            Verdict::Refused(words) => words.code,
            Verdict::Unknown { .. } => "unknown",
            Verdict::NotRegistered => "not-registered",
            Verdict::NoLookups => "no-lookups",
        }
    }

    #[test]
    fn every_known_code_has_a_verdict() {
        use Call::{Lookup, Poll, Register};
        for (call, answer, expected) in [
            (Register, error(429, Some(429_001)), "throttled"),
            (Poll, error(429, None), "throttled"),
            (Register, error(401, Some(401_002)), "unauthorized-by-dps"),
            (Register, error(404, Some(404_201)), "not-enrolled"),
            (Poll, error(404, Some(404_202)), "requeue"),
            (Lookup, error(404, Some(404_201)), "not-registered"),
            (Register, error(409, Some(409_203)), "requeue"),
            (Register, error(412, Some(412_001)), "requeue"),
            (Register, error(403, Some(403_001)), "retry"),
            (Register, error(400, Some(400_004)), "rejected-by-dps"),
            (Lookup, error(405, Some(405_001)), "retry"),
            (Register, error(415, Some(415_001)), "retry"),
            (Register, error(500, Some(500_001)), "retry"),
            (Register, error(503, Some(503_001)), "retry"),
            (Poll, failed(400_207), "custom-allocation-failed"),
            (Poll, failed(400_208), "no-hub-selected"),
            (Poll, failed(400_209), "hub-refused-dps"),
            (Poll, failed(404_201), "not-enrolled"),
            (Poll, failed(401_002), "unauthorized-by-dps"),
            (Poll, failed(409_203), "requeue"),
            (Poll, failed(429_001), "retry"),
            (Poll, failed(500_001), "retry"),
            (Poll, failed(499_999), "registration-failed"),
        ] {
            assert_eq!(kind(&judge(call, &answer)), expected, "{call:?} {answer:?}");
        }
    }

    #[test]
    fn a_lookup_that_this_dps_does_not_know_is_told_from_a_device_that_it_does_not_know() {
        let mut answer = error(404, None);
        let Said::Error(said) = &mut answer.said else { panic!("an error") };
        said.body_is_empty = true;
        assert_eq!(judge(Call::Lookup, &answer), Verdict::NoLookups);
        assert_eq!(
            kind(&judge(Call::Register, &answer)),
            "retry",
            "a registration that is not there is somebody else's"
        );
    }

    #[test]
    fn a_refusal_without_a_code_of_dps_is_not_believed() {
        for call in [Call::Register, Call::Poll, Call::Lookup] {
            for http_status in
                [301, 302, 304, 307, 308, 400, 401, 403, 404, 405, 407, 410, 415, 421, 451, 500, 503, 511]
            {
                let answer = error(http_status, None);
                assert_eq!(kind(&judge(call, &answer)), "retry", "{call:?} {http_status}");
            }
        }
    }

    #[test]
    fn a_throttle_hands_on_what_dps_asked_for() {
        assert_eq!(
            judge(Call::Register, &error(429, None)),
            Verdict::Throttled { retry_after: Some(Duration::from_secs(7)), tracking_id: Some("request".to_owned()) }
        );
    }

    #[test]
    fn what_goes_into_a_timeline_names_the_tracking_id() {
        let mut own = error(500, Some(500_001));
        if let Said::Error(error) = &mut own.said {
            error.tracking_id = Some("of-the-error".to_owned());
        }
        let ended = Answer { request_id: Some("request".to_owned()), ..failed(409_203) };
        let answers = [(own, "of-the-error"), (error(409, Some(409_201)), "request"), (ended, "request")];
        for (answer, tracking_id) in answers {
            match judge(Call::Register, &answer) {
                Verdict::Retry { why } | Verdict::Requeue { why } => {
                    assert!(why.ends_with(&format!(", tracking ID {tracking_id}")), "{why}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
