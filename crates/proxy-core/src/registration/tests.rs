//! One table of what follows from every end of a call.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::device::{Command, Reason, Seat, Sender};
use crate::ids::{EnrollmentName, TenantName};
use crate::place::{Class, Place};
use crate::upstream::Progress;
use crate::upstream::evidence::weigh;
use rate_control::time::{BootId, BootTag, Mono, Process, StoredMoment};

fn now() -> Now {
    let process = Process { boot: BootTag::of(&BootId("boot".to_owned())), began: Mono::default() };
    Now { mono: Mono::from_nanos(3_600_000_000_000), wall: WallTime::from_unix_millis(1_790_000_000_000), process }
}

fn instance() -> InstanceName {
    InstanceName::parse("eu-1").unwrap()
}

fn operation() -> OperationId {
    OperationId::parse("5.1").unwrap()
}

fn rules() -> RegistrationSettings {
    RegistrationSettings {
        api_version: "2021-10-01".to_owned(),
        connect_timeout: Duration::from_secs(10),
        request_timeout: Duration::from_secs(30),
        token_life: Duration::from_secs(120),
        upstream_max_delay: Duration::from_secs(30),
        connections_max: 10,
        idle_connections_max: 10,
        idle_timeout: Duration::from_secs(60),
        in_flight_max: 10,
        poll_interval: Duration::from_secs(3),
        poll_interval_max: Duration::from_secs(30),
        throttle_wait_max: Duration::from_secs(3600),
        assigning_max: Duration::from_secs(300),
        breaker_threshold: 5,
        // No jitter that a table would have to name.
        backoff_min: Duration::ZERO,
        backoff_max: Duration::from_secs(60),
        attempts_max: 3,
        lookup_spends: true,
        refusal_ttl: Duration::from_secs(600),
        reprovision_cooldown: Duration::from_secs(600),
        suspect_cooldown: Duration::from_secs(600),
        timeline_max: 32,
    }
}

/// A device whose registration number `attempts` was sent `age` ago, of which `fruitless` had no result.
fn sent(attempts: u32, fruitless: u32, age: Duration) -> Record {
    let place = Place::last(Class::First);
    let then = Now {
        mono: Mono::from_nanos(u64::try_from((Duration::from_secs(3600) - age).as_nanos()).unwrap()),
        wall: WallTime::from_unix_millis(1_790_000_000_000 - i64::try_from(age.as_millis()).unwrap()),
        ..now()
    };
    let mut record = Record::new(
        RegistrationId::parse("sn-1").unwrap(),
        TenantName::parse("default").unwrap(),
        EnrollmentName::parse("fleet").unwrap(),
    );
    let apply = |record: &mut Record, command| record.apply(command, then, 32).map(drop).unwrap();
    let seat = Seat { instance: instance(), class: Class::First, request_id: None };
    apply(&mut record, Command::Join { seat, reason: Reason::First, payload: None, reprovision: false });
    for attempt in 1..=attempts {
        let over = record.flight().cloned();
        let send = Step::Send { dps_time: Some(then.wall), slot: None, sender: Sender(1), over };
        apply(&mut record, Command::Attempt { instance: instance(), place, step: send });
        if attempt < attempts {
            let step = Step::Back { why: "why".to_owned(), fruitless: attempt <= fruitless };
            apply(&mut record, Command::Attempt { instance: instance(), place, step });
        }
    }
    record
}

fn answer(said: Said) -> CallResult {
    Ok(Answer { said, retry_after: None, date: None, request_id: Some("T-1".to_owned()) })
}

fn error(http_status: u16, error_code: Option<i64>) -> CallResult {
    let message = "words".to_owned();
    answer(Said::Error(DpsError { http_status, error_code, tracking_id: None, message, body_is_empty: false }))
}

fn progress(status: Status, operation_id: Option<OperationId>, state: RegistrationState) -> CallResult {
    answer(Said::Progress(Progress { operation_id, status, state }))
}

fn assigned(updated_ago: Duration) -> CallResult {
    let state = RegistrationState {
        assigned_hub: Some(HubName::parse("hub.azure-devices.net").unwrap()),
        last_updated: Some(WallTime::from_unix_millis(
            now().wall.unix_millis() - i64::try_from(updated_ago.as_millis()).unwrap(),
        )),
        ..RegistrationState::default()
    };
    progress(Status::Assigned, None, state)
}

fn failed(code: i64) -> CallResult {
    progress(Status::Failed, None, RegistrationState { error_code: Some(code), ..RegistrationState::default() })
}

fn assigning() -> CallResult {
    progress(Status::Assigning, Some(operation()), RegistrationState::default())
}

fn words(next: &Next) -> String {
    let step = |step: &Step| match step {
        Step::NothingLeft { .. } => "as if not sent",
        Step::Back { fruitless: true, .. } => "counts as fruitless",
        Step::Back { fruitless: false, .. } => "back",
        Step::Event { .. } => "keeps the sent mark",
        other => panic!("no step of a return: {other:?}"),
    };
    match next {
        Next::Poll { operation_id, wait } => format!("poll {operation_id} in {} s", wait.as_secs()),
        Next::PollAgain { wait, failed: None } => format!("poll again in {} s", wait.as_secs()),
        Next::PollAgain { wait, failed: Some(_) } => format!("poll failed, again in {} s", wait.as_secs()),
        Next::Return { step: what, job, wait } => format!("{job:?} in {} s, {}", wait.as_secs(), step(what)),
        Next::Throttled { step: what, job, wait, .. } => {
            format!("pause {} s, then {job:?}, {}", wait.as_secs(), step(what))
        }
        Next::Assign { decision, .. } => format!("assign {} as {}", decision.hub, decision.device_id),
        Next::Refuse { words, by_dps: true } => format!("refuse {}, a result", words.code),
        Next::Refuse { words, by_dps: false } => format!("refuse {}", words.code),
    }
}

struct Row<'a> {
    record: &'a Record,
    others_get_results: bool,
    hubs: BTreeSet<HubName>,
    expires: WallTime,
}

impl<'a> Row<'a> {
    fn of(record: &'a Record) -> Self {
        let expires = now().wall.after(Duration::from_secs(120));
        Self { record, others_get_results: true, hubs: BTreeSet::new(), expires }
    }

    fn decide(&self, call: Call, result: &CallResult) -> String {
        let (rules, instance) = (rules(), instance());
        let situation = Situation {
            record: self.record,
            instance: &instance,
            hubs: Some(&self.hubs),
            in_group: true,
            rules: &rules,
            sent_before: None,
            expires: self.expires,
            others_get_results: self.others_get_results,
            instance_fails: false,
            failed_polls: 0,
            now: now(),
        };
        words(&decide(&situation, call, result, weigh(call, result), &mut Entropy::from_seed(1)))
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn every_end_of_a_call_has_one_consequence() {
    use Call::{Lookup, Poll, Register};
    let lost = || Err(NoAnswer::Lost("reset".to_owned()));
    let old_connection = || Err(NoAnswer::OldConnection("closed".to_owned()));
    let never_left = || Err(NoAnswer::NeverLeft("refused".to_owned()));
    let withheld = || Err(NoAnswer::Withheld("DPS throttled the instance"));
    let nothing = || progress(Status::Unassigned, None, RegistrationState::default());
    let record = sent(1, 0, SECOND);
    let row = Row::of(&record);
    for (call, result, expected) in [
        (Register, assigned(Duration::ZERO), "assign hub.azure-devices.net as sn-1"),
        (Register, assigning(), "poll 5.1 in 3 s"),
        (Register, error(429, Some(429_001)), "pause 1 s, then Register, back"),
        (Register, error(401, Some(401_002)), "refuse unauthorized-by-dps, a result"),
        (Register, error(404, Some(404_201)), "refuse not-enrolled, a result"),
        (Register, error(409, Some(409_203)), "Register in 2 s, counts as fruitless"),
        (Register, error(500, Some(500_001)), "Register in 0 s, counts as fruitless"),
        (Register, error(302, None), "Register in 0 s, back"),
        (Register, failed(400_208), "refuse no-hub-selected, a result"),
        (Register, withheld(), "Register in 0 s, as if not sent"),
        (Register, never_left(), "Register in 0 s, as if not sent"),
        (Register, lost(), "Lookup in 2 s, keeps the sent mark"),
        (Register, old_connection(), "Lookup in 1 s, keeps the sent mark"),
        (Poll, assigned(Duration::ZERO), "assign hub.azure-devices.net as sn-1"),
        (Poll, assigning(), "poll again in 3 s"),
        (Poll, error(429, None), "poll failed, again in 3 s"),
        (Poll, error(404, Some(404_202)), "Register in 2 s, counts as fruitless"),
        (Poll, error(503, Some(503_001)), "poll failed, again in 3 s"),
        (Poll, failed(400_207), "refuse custom-allocation-failed, a result"),
        (Poll, failed(500_001), "Register in 0 s, counts as fruitless"),
        (Poll, lost(), "poll failed, again in 3 s"),
        (Lookup, assigned(Duration::ZERO), "assign hub.azure-devices.net as sn-1"),
        (Lookup, assigned(10 * SECOND), "Register in 0 s, back"),
        (Lookup, assigning(), "poll 5.1 in 3 s"),
        (Lookup, nothing(), "Register in 0 s, back"),
        (Lookup, error(404, Some(404_201)), "Register in 0 s, back"),
        (Lookup, error(429, Some(429_001)), "pause 1 s, then Lookup, keeps the sent mark"),
        (Lookup, error(500, Some(500_001)), "Lookup in 2 s, keeps the sent mark"),
        (Lookup, lost(), "Lookup in 2 s, keeps the sent mark"),
        (Lookup, withheld(), "Lookup in 0 s, keeps the sent mark"),
    ] {
        assert_eq!(row.decide(call, &result), expected, "{call:?} {result:?}");
    }
}

#[test]
fn a_device_without_a_result_while_others_get_one_is_refused_in_the_end() {
    let (second, third) = (sent(2, 1, SECOND), sent(3, 2, SECOND));
    let fails = error(500, Some(500_001));
    assert_eq!(Row::of(&second).decide(Call::Register, &fails), "Register in 0 s, counts as fruitless");
    assert_eq!(Row::of(&third).decide(Call::Register, &fails), "refuse no-result");
    let alone = Row { others_get_results: false, ..Row::of(&third) };
    assert_eq!(alone.decide(Call::Register, &fails), "Register in 0 s, back");
    let foreign = answer(Said::Foreign { http_status: 200, detail: "a page".to_owned() });
    assert_eq!(Row::of(&third).decide(Call::Register, &foreign), "Lookup in 2 s, keeps the sent mark");
}

#[test]
fn lookups_grow_apart_and_end() {
    let fails = error(500, Some(500_001));
    let wait = |age| Row::of(&sent(1, 0, age)).decide(Call::Lookup, &fails);
    assert_eq!(wait(8 * SECOND), "Lookup in 8 s, keeps the sent mark");
    assert_eq!(wait(200 * SECOND), "Lookup in 30 s, keeps the sent mark");
    assert_eq!(wait(301 * SECOND), "Register in 0 s, counts as fruitless");
    let works_on_it = progress(Status::Assigning, None, RegistrationState::default());
    assert_eq!(
        Row::of(&sent(1, 0, 301 * SECOND)).decide(Call::Lookup, &works_on_it),
        "Register in 0 s, counts as fruitless"
    );
}

#[test]
fn what_dps_decided_is_checked_before_it_is_kept() {
    let record = sent(1, 0, SECOND);
    let other_hub = BTreeSet::from([HubName::parse("other.azure-devices.net").unwrap()]);
    let row = Row { hubs: other_hub, ..Row::of(&record) };
    assert_eq!(row.decide(Call::Register, &assigned(Duration::ZERO)), "refuse unexpected-hub");
    let hub = Some(HubName::parse("hub.azure-devices.net").unwrap());
    let named = |device_id: Option<&str>, registration_id: Option<&str>| RegistrationState {
        assigned_hub: hub.clone(),
        device_id: device_id.map(|name| DeviceId::parse(name).unwrap()),
        registration_id: registration_id.map(|id| RegistrationId::parse(id).unwrap()),
        ..RegistrationState::default()
    };
    for (state, expected) in [
        (named(Some("SN-1"), Some("sn-1")), "assign hub.azure-devices.net as SN-1"),
        (named(Some("pump-7"), None), "refuse unexpected-device-id"),
        (named(None, Some("sn-2")), "refuse unexpected-device-id"),
    ] {
        let result = progress(Status::Assigned, None, state);
        assert_eq!(Row::of(&record).decide(Call::Poll, &result), expected, "{result:?}");
    }
}

#[test]
fn a_proof_that_had_ended_by_the_clock_of_dps_is_not_held_against_the_device() {
    let record = sent(1, 0, SECOND);
    let refused_at = |date| {
        let Ok(mut refused) = error(401, Some(401_002)) else { panic!("an answer") };
        refused.date = Some(date);
        Ok(refused)
    };
    let row = Row::of(&record);
    let late = now().wall.after(Duration::from_secs(121));
    assert_eq!(row.decide(Call::Register, &refused_at(now().wall)), "refuse unauthorized-by-dps, a result");
    assert_eq!(row.decide(Call::Register, &refused_at(late)), "Register in 2 s, back");
    assert_eq!(row.decide(Call::Poll, &refused_at(late)), "poll failed, again in 3 s");
    assert_eq!(row.decide(Call::Lookup, &refused_at(late)), "Lookup in 2 s, keeps the sent mark");
}

#[test]
fn what_was_sent_before_is_given_back_when_nothing_left() {
    let record = sent(2, 0, SECOND);
    let (rules, instance) = (rules(), instance());
    let earlier = Some(StoredMoment::of(now()));
    let situation = Situation {
        record: &record,
        instance: &instance,
        hubs: None,
        in_group: false,
        rules: &rules,
        sent_before: earlier,
        expires: now().wall,
        others_get_results: true,
        instance_fails: true,
        failed_polls: 0,
        now: now(),
    };
    let result = Err(NoAnswer::NeverLeft("refused".to_owned()));
    let next = decide(&situation, Call::Register, &result, weigh(Call::Register, &result), &mut Entropy::from_seed(1));
    let Next::Return { step: Step::NothingLeft { why, sent_before }, .. } = next else { panic!("{next:?}") };
    assert_eq!((why.as_str(), sent_before), ("eu-1 cannot be reached: refused", earlier));
}
