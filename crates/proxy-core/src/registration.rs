//! A registration is data: what follows from the end of a call to DPS is decided here, in one place, and carried out by one driver (the
//! gateway's `register`).
//!
//! Invariants:
//! - [`decide`] reads, and changes nothing: it is told the time and handed its randomness.
//! - Nothing is sent again before it is clear what became of what was sent: an unknown outcome is looked up first.
//! - What a failure is evidence of is decided in [`crate::upstream::evidence`], what an answer means in [`crate::upstream::verdict`].
//!   Here both meet the device's record.
//! - Only DPS's own words are held against a device, and only while others get results.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::device::{Decision, Record, Stage, Step};
use crate::ids::{DeviceId, HubName, InstanceName, OperationId, RegistrationId};
use crate::line::lane::JobKind;
use crate::settings::RegistrationSettings;
use crate::upstream::evidence::{Blame, Evidence};
use crate::upstream::verdict::{Call, Named, RefusalWords, Verdict, judge, trace};
use crate::upstream::{Answer, CallResult, DpsError, NoAnswer, RegistrationState, Said, Status};
use rate_control::entropy::Entropy;
use rate_control::retry;
use rate_control::time::{Now, StoredMoment, WallTime};

#[cfg(test)]
mod tests;

/// After "another registration of this device is running" (409203): 1 to 3 s, as the SDKs' own tests do.
const REQUEUE_WAIT_MIN: Duration = Duration::from_secs(1);
const REQUEUE_WAIT_SPREAD: Duration = Duration::from_secs(2);

/// A proof that is good for this much longer than we made it is one by another clock.
const TOKEN_TOLERANCE: Duration = Duration::from_secs(60);

/// Least wait before looking up what became of a call without a clear answer: DPS needs a moment to have recorded it.
const LOOKUP_WAIT: Duration = Duration::from_secs(2);

/// The same after an old connection broke: most likely DPS has never heard of the call.
const OLD_CONNECTION_WAIT: Duration = Duration::from_secs(1);

/// Least wait between two polls of one device: DPS allows 5 per 10 s.
pub const POLL_WAIT_MIN: Duration = Duration::from_secs(2);

/// Least wait after DPS throttled us, whatever it asked for.
const THROTTLE_WAIT_MIN: Duration = Duration::from_secs(1);

/// What is known when a call has ended.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The device, as it was when the call left.
    pub record: &'a Record,
    /// Who was called.
    pub instance: &'a InstanceName,
    /// The hubs that the instance may assign; empty for any.
    pub hubs: Option<&'a BTreeSet<HubName>>,
    /// The device is one of an enrollment group, which DPS names by its registration ID.
    pub in_group: bool,
    /// How registrations are done.
    pub rules: &'a RegistrationSettings,
    /// When the registration before this one was sent.
    pub sent_before: Option<StoredMoment>,
    /// Until when the proof was good, by DPS's clock.
    pub expires: WallTime,
    /// DPS came to results about devices not long ago, and calls to it do not fail.
    pub others_get_results: bool,
    /// The last call to the instance failed.
    pub instance_fails: bool,
    /// Polls of this registration that failed in a row, without the one that has ended.
    pub failed_polls: u32,
    /// When the call ended.
    pub now: Now,
}

/// What follows from the end of a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// DPS works on it: it is polled after the wait.
    Poll {
        /// What to poll.
        operation_id: OperationId,
        /// How long to wait first.
        wait: Duration,
    },
    /// It goes on being polled.
    PollAgain {
        /// How long to wait first.
        wait: Duration,
        /// Why the poll failed, if it did.
        failed: Option<String>,
    },
    /// The device goes again from its place.
    Return {
        /// What its record hears of it.
        step: Step,
        /// To be registered, or to be looked up.
        job: JobKind,
        /// How long to wait first.
        wait: Duration,
    },
    /// The same at once, but nobody of the instance goes before the wait is over.
    Throttled {
        /// What its record hears of it.
        step: Step,
        /// To be registered, or to be looked up.
        job: JobKind,
        /// How long nobody goes.
        wait: Duration,
        /// How long DPS asked for, if it did.
        asked: Option<Duration>,
    },
    /// It has a hub, unless somebody else has its device ID.
    Assign {
        /// What DPS decided.
        decision: Box<Decision>,
        /// What DPS called its answer.
        named: Named,
    },
    /// It leaves the line, and is told why.
    Refuse {
        /// Why.
        words: RefusalWords,
        /// It was DPS that said so: a result.
        by_dps: bool,
    },
}

/// Decides what follows from the end of a call.
#[must_use]
pub fn decide(
    situation: &Situation<'_>,
    call: Call,
    result: &CallResult,
    evidence: Evidence,
    entropy: &mut Entropy,
) -> Next {
    let mut deciding = Deciding { at: situation, call, entropy };
    match result {
        Ok(answer) => deciding.answered(answer, evidence),
        Err(no_answer) => deciding.unanswered(no_answer),
    }
}

/// DPS assigned a device ID that `other` has already.
#[must_use]
pub fn device_id_taken(device_id: &DeviceId, other: &RegistrationId, named: Named) -> RefusalWords {
    let detail = format!(
        "DPS named the device {device_id}, which registration {other} of the same tenant has already: give one of the enrollments another deviceId"
    );
    RefusalWords::of_ours("device-id-taken", detail, named)
}

/// DPS gave no result within `registration.assigning_max`. `named` is what it called its last answer, if that was DPS's.
#[must_use]
pub fn out_of_time(situation: &Situation<'_>, named: Option<Named>, entropy: &mut Entropy) -> Next {
    let mut deciding = Deciding { at: situation, call: Call::Poll, entropy };
    deciding.go_again(NO_RESULT_IN_TIME, Duration::ZERO, named)
}

const NO_RESULT_IN_TIME: &str = "DPS gave no result in time";

/// What DPS called an answer that gave no result, if that may be held against the device: not what somebody else answered, and not that a
/// proof of ours was not believed.
#[must_use]
pub fn no_result(answer: &Answer, evidence: Evidence) -> Option<Named> {
    let not_believed = matches!(answer.said, Said::Error(DpsError { http_status: 401, .. }));
    (evidence != Evidence::Against(Blame::Path) && !not_believed).then(|| Named::of(answer))
}

/// How long nobody of an instance goes after DPS throttled a call: as it asked, within our bounds.
#[must_use]
pub fn throttle_wait(rules: &RegistrationSettings, retry_after: Option<Duration>) -> Duration {
    let most = rules.throttle_wait_max.max(THROTTLE_WAIT_MIN);
    retry_after
        .unwrap_or_else(|| retry::ceiling(3, rules.backoff_min, rules.backoff_max))
        .clamp(THROTTLE_WAIT_MIN, most)
}

/// How long to wait before the next poll: as DPS asked, within our bounds.
#[must_use]
pub fn poll_wait(rules: &RegistrationSettings, retry_after: Option<Duration>) -> Duration {
    let most = rules.poll_interval_max.max(POLL_WAIT_MIN);
    retry_after.unwrap_or(rules.poll_interval).clamp(rules.poll_interval.clamp(POLL_WAIT_MIN, most), most)
}

/// How long to wait after so many polls in a row that failed.
#[must_use]
pub fn poll_backoff(rules: &RegistrationSettings, failures: u32, entropy: &mut Entropy) -> Duration {
    let ceiling = retry::ceiling(failures, rules.backoff_min, rules.poll_interval_max);
    POLL_WAIT_MIN.max(ceiling) + entropy.up_to(POLL_WAIT_MIN)
}

/// One decision under way.
struct Deciding<'a> {
    at: &'a Situation<'a>,
    call: Call,
    entropy: &'a mut Entropy,
}

impl Deciding<'_> {
    fn unanswered(&mut self, no_answer: &NoAnswer) -> Next {
        let (instance, sent_before) = (self.at.instance, self.at.sent_before);
        let nothing_left = |why| Next::Return {
            step: Step::NothingLeft { why, sent_before },
            job: JobKind::Register,
            wait: Duration::ZERO,
        };
        match (self.call, no_answer) {
            (Call::Register, NoAnswer::Withheld(held)) => nothing_left((*held).to_owned()),
            (Call::Register, NoAnswer::NeverLeft(why) | NoAnswer::NoMeans(why)) => {
                nothing_left(format!("{instance} cannot be reached: {why}"))
            }
            (Call::Register, NoAnswer::Lost(why)) => self.look_up(why, LOOKUP_WAIT),
            (Call::Register, NoAnswer::OldConnection(why)) => self.look_up(why, OLD_CONNECTION_WAIT),
            (Call::Lookup, NoAnswer::Withheld(held)) => {
                let step = Step::Event { why: (*held).to_owned() };
                Next::Return { step, job: JobKind::Lookup, wait: Duration::ZERO }
            }
            (Call::Lookup, no_answer) => self.look_up_later(&no_answer.to_string()),
            (Call::Poll, no_answer) => self.poll_failed(no_answer.to_string()),
        }
    }

    fn answered(&mut self, answer: &Answer, evidence: Evidence) -> Next {
        let verdict = self.judged(answer);
        let named = no_result(answer, evidence);
        match self.call {
            Call::Register => self.follow(verdict, answer, named),
            Call::Poll => self.polled(verdict, answer, named),
            Call::Lookup => self.looked_up(verdict, answer, named),
        }
    }

    /// What an answer means. That DPS does not believe what had ended by its clock is nothing that a device is to blame for: its clock was
    /// set, or ours stood still.
    fn judged(&self, answer: &Answer) -> Verdict {
        let verdict = judge(self.call, answer);
        let not_believed = matches!(&answer.said, Said::Error(DpsError { http_status: 401, .. }));
        let Some(date) = answer.date.filter(|_| not_believed) else { return verdict };
        let expires = self.at.expires;
        if date < expires && expires.since(date) <= self.at.rules.token_life + TOKEN_TOLERANCE {
            return verdict;
        }
        let why = format!(
            "DPS's clock was set to {date}, while the token we sent expired at {expires}; tokens are now signed by the new time"
        );
        tracing::warn!(%why, "DPS refused a token because of a clock");
        // What is polled goes on being polled; everything else goes again.
        if self.call == Call::Poll { Verdict::Retry { why } } else { Verdict::Requeue { why } }
    }

    fn polled(&mut self, verdict: Verdict, answer: &Answer, named: Option<Named>) -> Next {
        // A failed poll says nothing about the registration; a registration that *failed* does.
        let ended = matches!(&answer.said, Said::Progress(progress) if progress.status == Status::Failed);
        match verdict {
            Verdict::Assigning { .. } => {
                Next::PollAgain { wait: poll_wait(self.at.rules, answer.retry_after), failed: None }
            }
            // Too many polls of this device; registrations have a quota of their own.
            Verdict::Throttled { retry_after, tracking_id } => {
                let why = format!("DPS throttled it{}", trace(tracking_id.as_deref()));
                let wait = poll_wait(self.at.rules, retry_after.map(|wait| wait.max(POLL_WAIT_MIN * 2)));
                Next::PollAgain { wait, failed: Some(why) }
            }
            Verdict::Retry { why } | Verdict::Unknown { why } if !ended => self.poll_failed(why),
            verdict => self.follow(verdict, answer, named),
        }
    }

    fn looked_up(&mut self, verdict: Verdict, answer: &Answer, named: Option<Named>) -> Next {
        match verdict {
            Verdict::Assigned(state) if !self.is_news(&state) => {
                self.go_again_in_time("DPS holds an older registration only")
            }
            // The failure of an earlier registration says nothing about this one, whatever it was.
            _ if failure(answer).is_some_and(|state| !is_after_send(self.at.record, state)) => {
                self.go_again_in_time("DPS holds an older failure only")
            }
            Verdict::Retry { why } if self.lookups_are_over() => self.failed(&why, named),
            Verdict::Assigning { .. } | Verdict::Requeue { .. } | Verdict::Unknown { .. }
                if self.lookups_are_over() =>
            {
                self.go_again(NO_RESULT_IN_TIME, Duration::ZERO, named)
            }
            verdict => self.follow(verdict, answer, named),
        }
    }

    fn follow(&mut self, verdict: Verdict, answer: &Answer, named: Option<Named>) -> Next {
        match verdict {
            Verdict::Assigned(state) => self.assigned(state, Named::of(answer)),
            Verdict::Assigning { operation_id: Some(operation_id) } => {
                Next::Poll { operation_id, wait: poll_wait(self.at.rules, answer.retry_after) }
            }
            Verdict::Assigning { operation_id: None } => self.look_up_later("DPS is still processing it"),
            Verdict::Throttled { retry_after, tracking_id } => self.throttled(retry_after, tracking_id.as_deref()),
            // What became of the registration is still unknown: nothing is sent again before that is clear.
            Verdict::Requeue { why } | Verdict::Retry { why } if self.call == Call::Lookup => self.look_up_later(&why),
            Verdict::Requeue { why } => {
                let wait = REQUEUE_WAIT_MIN + self.entropy.up_to(REQUEUE_WAIT_SPREAD);
                self.go_again(&why, wait, named)
            }
            Verdict::Retry { why } => self.failed(&why, named),
            Verdict::Refused(words) => Next::Refuse { words, by_dps: true },
            Verdict::Unknown { why } => self.look_up_later(&why),
            Verdict::NotRegistered => self.go_again_in_time("DPS holds no registration of the device"),
            Verdict::NoLookups => {
                self.go_again_in_time("this DPS has no status lookups, so the device is registered again")
            }
        }
    }

    /// A hub, if it is one that this device may have from this instance.
    fn assigned(&mut self, state: RegistrationState, named: Named) -> Next {
        let (id, instance) = (self.at.record.registration_id(), self.at.instance);
        let refused =
            |code, detail| Next::Refuse { words: RefusalWords::of_ours(code, detail, named.clone()), by_dps: false };
        if let Some(detail) = self.names_another(&state) {
            tracing::error!(registration_id = %id, %instance, detail, "DPS named another device than ours");
            return refused("unexpected-device-id", detail);
        }
        // `judge` calls nothing assigned that has no hub.
        let Some(hub) = state.assigned_hub else { return self.look_up_later("DPS answered assigned without a hub") };
        if self.at.hubs.is_some_and(|hubs| !hubs.is_empty() && !hubs.contains(&hub)) {
            tracing::error!(registration_id = %id, %instance, assigned_hub = %hub, "DPS assigned a hub that is not in the instance's list");
            let detail = format!(
                "DPS assigned {hub}, which is not among the hubs configured for {instance}: correct the list or the enrollment's linked hubs"
            );
            return refused("unexpected-hub", detail);
        }
        let own_name = || DeviceId::parse(id.as_str()).expect("a registration ID is a device ID");
        let decision = Box::new(Decision {
            hub,
            device_id: state.device_id.unwrap_or_else(own_name),
            substatus: state.substatus,
            payload: state.payload,
            dps_etag: state.etag,
            dps_last_updated: state.last_updated,
        });
        Next::Assign { decision, named }
    }

    /// Whether DPS answered about another device, in words for an operator. The device of an enrollment group has its registration ID for a
    /// name at the hub, in a spelling that is DPS's to choose; an individual enrollment may give it any.
    fn names_another(&self, state: &RegistrationState) -> Option<String> {
        let (id, instance) = (self.at.record.registration_id(), self.at.instance);
        if let Some(other) = state.registration_id.as_ref().filter(|other| *other != id) {
            return Some(format!(
                "{instance} answered with the registration of {other}, not of {id}: look for a proxy or cache between us and DPS that mixes answers up"
            ));
        }
        if state.odd_name {
            return Some(format!("{instance} answered with a name that is neither a device ID nor a registration ID"));
        }
        let other = state.device_id.as_ref().filter(|name| !name.as_str().eq_ignore_ascii_case(id.as_str()))?;
        self.at.in_group.then(|| {
            format!(
                "{instance} named the device {other}, but a device of an enrollment group is named by its registration ID: if DPS holds an individual enrollment with another deviceId for it, remove that or configure an enrollment with upstream = \"individual\""
            )
        })
    }

    fn throttled(&self, asked: Option<Duration>, tracking_id: Option<&str>) -> Next {
        let wait = throttle_wait(self.at.rules, asked);
        let why = format!(
            "{} throttled us for {} s; the place is kept{}",
            self.at.instance,
            wait.as_secs(),
            trace(tracking_id)
        );
        match self.call {
            Call::Lookup => Next::Throttled { step: Step::Event { why }, job: JobKind::Lookup, wait, asked },
            Call::Register | Call::Poll => {
                Next::Throttled { step: Step::Back { why, fruitless: false }, job: JobKind::Register, wait, asked }
            }
        }
    }

    fn poll_failed(&mut self, why: String) -> Next {
        let wait = poll_backoff(self.at.rules, self.at.failed_polls.saturating_add(1), self.entropy);
        Next::PollAgain { wait, failed: Some(why) }
    }

    /// Keeps the *sent* mark and asks DPS what became of the registration, after this call did not tell.
    fn look_up_later(&self, why: &str) -> Next {
        self.look_up(why, if self.call == Call::Lookup { self.next_lookup_wait() } else { LOOKUP_WAIT })
    }

    fn look_up(&self, why: &str, wait: Duration) -> Next {
        let why = format!("outcome unknown ({why}); looking it up at {}", self.at.instance);
        Next::Return { step: Step::Event { why }, job: JobKind::Lookup, wait }
    }

    /// As long as the registration is old already, so that the waits double: a lookup may cost as much of the quota as a registration.
    /// While calls fail, the circuit sees to that, and needs somebody who tries.
    fn next_lookup_wait(&self) -> Duration {
        let rules = self.at.rules;
        let age = self.at.record.last_sent().map_or(LOOKUP_WAIT, |sent| sent.age(self.at.now));
        let most = if self.at.instance_fails { rules.backoff_max } else { rules.poll_interval_max };
        age.clamp(LOOKUP_WAIT, most.max(LOOKUP_WAIT))
    }

    fn lookups_are_over(&self) -> bool {
        self.at.record.last_sent().is_none_or(|sent| sent.age(self.at.now) > self.at.rules.assigning_max)
    }

    /// Whether a looked-up registration is younger than our send: else it may be what DPS held before.
    fn is_news(&self, found: &RegistrationState) -> bool {
        let (record, instance) = (self.at.record, self.at.instance);
        let Some(updated) = found.last_updated else { return false };
        let known = record.assignment().filter(|known| known.instance == *instance);
        if let Some((known, known_updated)) = known.and_then(|known| Some((known, known.dps_last_updated?))) {
            return updated > known_updated && found.etag != known.dps_etag;
        }
        is_after_send(record, found)
    }

    /// The call failed. The device goes again after a growing wait. `named`: what DPS called the failure, if it was DPS that spoke.
    fn failed(&mut self, why: &str, named: Option<Named>) -> Next {
        let wait = self.growing_wait();
        self.go_again(why, wait, named)
    }

    /// Back to the place, for another registration: at once after a first one that got lost, and after a growing wait if that goes on.
    fn go_again_in_time(&mut self, why: &str) -> Next {
        let wait = if self.attempts() > 1 { self.growing_wait() } else { Duration::ZERO };
        self.go_again(why, wait, None)
    }

    /// Back to the place, for another registration. `named`: DPS itself gave no result, and called that so. A device that this happens to
    /// again and again while others get a result is refused; what is not DPS's doing is never held against it.
    fn go_again(&mut self, why: &str, wait: Duration, named: Option<Named>) -> Next {
        let held_against = named.filter(|_| self.at.others_get_results);
        let counted = held_against.is_some();
        let before = self.at.record.pending().map_or(0, |pending| pending.fruitless);
        let attempts_max = self.at.rules.attempts_max;
        if let Some(named) = held_against.filter(|_| before.saturating_add(1) >= attempts_max) {
            let detail = format!("{attempts_max} registrations had no result, while others did: {why}");
            return Next::Refuse { words: RefusalWords::of_ours("no-result", detail, named), by_dps: false };
        }
        Next::Return { step: Step::Back { why: why.to_owned(), fruitless: counted }, job: JobKind::Register, wait }
    }

    fn attempts(&self) -> u32 {
        self.at.record.pending().map_or(0, |pending| pending.attempts)
    }

    fn growing_wait(&mut self) -> Duration {
        retry::full_jitter(self.attempts(), self.at.rules.backoff_min, self.at.rules.backoff_max, self.entropy)
    }
}

/// The state of a registration that DPS ended without a hub.
fn failure(answer: &Answer) -> Option<&RegistrationState> {
    match &answer.said {
        Said::Progress(progress) if matches!(progress.status, Status::Failed | Status::Disabled) => {
            Some(&progress.state)
        }
        Said::Progress(_) | Said::Error(_) | Said::Unreadable { .. } | Said::Foreign { .. } => None,
    }
}

/// Whether DPS changed `found` after our send, by its own clock.
fn is_after_send(before: &Record, found: &RegistrationState) -> bool {
    let Some(updated) = found.last_updated else { return false };
    match before.pending().map(|pending| &pending.stage) {
        // Before DPS was ever heard of, its clock is unknown, and ours says nothing about it.
        Some(Stage::Sent { dps_time, .. }) => dps_time.is_some_and(|sent| updated >= sent),
        Some(Stage::Assigning { .. } | Stage::Waiting) | None => false,
    }
}
