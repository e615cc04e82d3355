//! The table of all states and commands, and what holds whatever happens in whatever order.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::ids::{DeviceId, EnrollmentName, HubName, InstanceName, OperationId, RegistrationId, TenantName};
use crate::place::{Class, Place};
use crate::store::{Change, Placing, Stored, Version};
use rate_control::ledger::SlotId;
use rate_control::time::{BootId, BootTag, Mono, Now, Process, StoredMoment, WallTime};

mod flight;
mod newer;

const TIMELINE_MAX: usize = 8;

fn instance(name: &str) -> InstanceName {
    InstanceName::parse(name).unwrap()
}

fn now() -> Now {
    let process = Process { boot: BootTag::of(&BootId("boot".to_owned())), began: Mono::default() };
    Now { mono: Mono::from_nanos(60_000_000_000), wall: WallTime::from_unix_millis(1_790_000_000_000), process }
}

fn claim(tenant: &str) -> Claim {
    Claim {
        tenant: TenantName::parse(tenant).unwrap(),
        enrollment: EnrollmentName::parse("fleet").unwrap(),
        spelling: Some("SN-1".to_owned()),
    }
}

fn place(sequence: u64) -> Place {
    Place { class: Class::First, sequence }
}

fn seat(name: &str) -> Seat {
    Seat { instance: instance(name), class: Class::First, request_id: Some("request".to_owned()) }
}

/// As the store keeps it: whoever joined has a number.
fn stored(mut record: Record) -> Record {
    if let Some(pending) = record.pending.as_mut().filter(|pending| !pending.place.is_numbered()) {
        pending.place.sequence = 1;
    }
    record
}

fn list(tenant: &str) -> Command {
    Command::List(Listing { claim: claim(tenant), batch: Some("batch".to_owned()), key: None })
}

fn join(reason: Reason) -> Command {
    Command::Join { seat: seat("a"), reason, payload: None, reprovision: reason == Reason::Reprovision }
}

fn at_a(step: Step) -> Command {
    Command::Attempt { instance: instance("a"), place: place(1), step }
}

const SENDER: Sender = Sender(1);

/// A registration leaves, under this slot.
fn sending(slot: u32, over: Option<Flight>) -> Step {
    Step::Send { dps_time: None, slot: Some(SlotId(slot)), sender: SENDER, over }
}

fn send() -> Command {
    at_a(sending(1, None))
}

/// Where a device is that was moved.
fn at_b(step: Step) -> Command {
    Command::Attempt { instance: instance("b"), place: place(1), step }
}

/// What [`send`] sends.
fn flight(slot: u32) -> Flight {
    let (sent, unknown) = (StoredMoment::of(now()), Unknown::default());
    Flight { instance: instance("a"), slot: Some(SlotId(slot)), sent, sender: SENDER, unknown }
}

/// Its call has ended.
fn land() -> Command {
    Command::Land { call: flight(1) }
}

fn assign() -> Command {
    at_a(Step::Assign(Box::new(Decision {
        hub: HubName::parse("hub.azure-devices.net").unwrap(),
        device_id: DeviceId::parse("Pump-7").unwrap(),
        substatus: None,
        payload: None,
        dps_etag: None,
        dps_last_updated: None,
    })))
}

fn refuse() -> Command {
    at_a(Step::Refuse(Box::new(Refusal {
        code: "not-enrolled".to_owned(),
        detail: "DPS knows no enrollment".to_owned(),
        error_code: Some(404_201),
        tracking_id: Some("T-1".to_owned()),
        instance: instance("a"),
        at: StoredMoment::of(now()),
        until: now().wall.after(Duration::from_secs(60)),
        settings_mark: 7,
        unknown: Unknown::default(),
    })))
}

fn block() -> Command {
    Command::Block { by: "ops".to_owned(), reason: Some("stolen".to_owned()) }
}

fn contradict(hub: Option<&str>) -> Command {
    Command::Contradict { hub: hub.map(|hub| HubName::parse(hub).unwrap()), reason: "404".to_owned() }
}

fn commands() -> Vec<(&'static str, Command)> {
    let why = || "why".to_owned();
    vec![
        ("list", list("one")),
        ("list for another tenant", list("two")),
        ("claim", Command::Claim(claim("one"))),
        ("claim by another tenant", Command::Claim(claim("two"))),
        ("join a", join(Reason::First)),
        ("rebook to b", Command::Rebook { seat: seat("b") }),
        ("come home", Command::ComeHome),
        ("move to b", Command::Move { seat: seat("b") }),
        ("reseat", Command::Reseat { class: Class::Expedited, why: "expedited" }),
        ("ask", Command::Ask { spelling: None, payload: Some(serde_json::json!({"a": 1})), reprovision: true }),
        ("send", send()),
        ("send at b", at_b(sending(2, None))),
        ("send at b, a is over", at_b(sending(2, Some(flight(1))))),
        ("land", land()),
        ("land another", Command::Land { call: flight(2) }),
        ("nothing left", at_a(Step::NothingLeft { why: why(), sent_before: None })),
        ("assigning", at_a(Step::Assigning { operation_id: OperationId::parse("5.1").unwrap() })),
        ("back", at_a(Step::Back { why: why(), fruitless: true })),
        ("event", at_a(Step::Event { why: why() })),
        ("assign", assign()),
        ("refuse", refuse()),
        ("give up", at_a(Step::GiveUp)),
        ("tell", Command::Tell { reprovision: true, credential: true }),
        ("contradict", contradict(None)),
        ("contradict another hub", contradict(Some("other.azure-devices.net"))),
        ("block", block()),
        ("unblock", Command::Unblock { by: "ops".to_owned() }),
        ("retry", Command::Retry),
        ("retire", Command::Retire { kept: None }),
        ("retire, kept", Command::Retire { kept: Some(why()) }),
    ]
}

fn fresh() -> Record {
    let Claim { tenant, enrollment, .. } = claim("one");
    Record::new(RegistrationId::parse("sn-1").unwrap(), tenant, enrollment)
}

/// A record after these commands.
fn after(mut record: Record, commands: impl IntoIterator<Item = Command>) -> Record {
    for command in commands {
        record.apply(command.clone(), now(), TIMELINE_MAX).unwrap_or_else(|rejected| panic!("{command:?}: {rejected}"));
        record = stored(record);
    }
    record
}

fn states() -> Vec<(&'static str, Record)> {
    let first = || join(Reason::First);
    let assigned = || vec![first(), send(), land(), assign()];
    let and = |mut commands: Vec<Command>, more: Vec<Command>| {
        commands.extend(more);
        after(fresh(), commands)
    };
    vec![
        ("new", fresh()),
        ("listed", after(fresh(), [list("one")])),
        ("waits", after(fresh(), [first()])),
        ("away", after(fresh(), [first(), Command::Rebook { seat: seat("b") }])),
        ("sent", after(fresh(), [first(), send()])),
        ("lost", after(fresh(), [first(), send(), land()])),
        ("moved", after(fresh(), [first(), send(), Command::Move { seat: seat("b") }])),
        (
            "polled",
            after(
                fresh(),
                [first(), send(), land(), at_a(Step::Assigning { operation_id: OperationId::parse("5.1").unwrap() })],
            ),
        ),
        (
            "again",
            after(fresh(), [first(), send(), land(), at_a(Step::Back { why: "why".to_owned(), fruitless: false })]),
        ),
        ("assigned", and(assigned(), vec![])),
        ("renews", and(assigned(), vec![join(Reason::Reprovision)])),
        ("suspect", and(assigned(), vec![contradict(None)])),
        ("refused", after(fresh(), [first(), send(), land(), refuse()])),
        ("unknown", after(Record::unclaimed(RegistrationId::parse("sn-1").unwrap()), [block()])),
        ("blocked", and(assigned(), vec![block()])),
        ("retired", and(assigned(), vec![Command::Retire { kept: None }])),
    ]
}

/// What a command did, in a word.
fn outcome(state: &Record, command: Command) -> String {
    let mut record = state.clone();
    let effects = match record.apply(command, now(), TIMELINE_MAX) {
        Ok(effects) => effects,
        Err(rejected) => {
            assert_eq!(record, *state, "a rejected command changes nothing");
            return format!("({})", format!("{rejected:?}").to_lowercase());
        }
    };
    let place = match (effects.left(), effects.joined()) {
        (Some(_), Some((_, joined))) => format!("to {}", joined.instance),
        (None, Some(_)) => "joins".to_owned(),
        (Some(_), None) => "leaves".to_owned(),
        (None, None) if record == *state => "-".to_owned(),
        (None, None) => "changes".to_owned(),
    };
    if effects.announces() { format!("{place}, told") } else { place }
}

#[test]
fn every_state_answers_every_command_as_the_table_says() {
    let states = states();
    let mut table = format!("{:<24}", "");
    for (name, _) in &states {
        let _ = write!(table, "{name:<15}");
    }
    for (name, command) in commands() {
        let _ = write!(table, "\n{name:<24}");
        for (_, state) in &states {
            let _ = write!(table, "{:<15}", outcome(state, command.clone()));
        }
    }
    let table: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    let expected = include_str!("tests/transitions.txt");
    assert!(table == expected, "what happens now (tests/transitions.txt says otherwise):\n{table}");
}

#[test]
fn a_place_that_is_left_before_anything_was_sent_gives_the_instance_free_and_any_other_does_not() {
    let footprint = |record: &Record| record.footprint().iter().map(ToString::to_string).collect::<Vec<_>>();
    let waits = after(fresh(), [join(Reason::First)]);
    assert!(footprint(&after(waits.clone(), [block()])).is_empty());
    assert_eq!(footprint(&after(waits.clone(), [Command::Rebook { seat: seat("b") }])), ["b"]);
    assert_eq!(footprint(&after(waits.clone(), [Command::Move { seat: seat("b") }])), ["b"]);
    let sent = after(waits, [send()]);
    assert_eq!(footprint(&after(sent.clone(), [Command::Retire { kept: None }])), ["a"]);
    assert_eq!(footprint(&after(sent.clone(), [Command::Move { seat: seat("b") }])), ["a", "b"]);
    let back = after(sent, [at_a(Step::Back { why: "why".to_owned(), fruitless: false })]);
    assert_eq!(footprint(&after(back, [refuse()])), ["a"], "something was sent once");
}

#[test]
fn a_device_that_comes_home_has_the_place_and_the_waiting_time_that_it_had() {
    let waits = after(fresh(), [join(Reason::First)]);
    let mut home = waits.clone();
    let seconds = Duration::from_secs(50);
    let later = Now { mono: now().mono.after(seconds), wall: now().wall.after(seconds), ..now() };
    home.apply(Command::Rebook { seat: seat("b") }, later, TIMELINE_MAX).unwrap();
    home.pending.as_mut().unwrap().place = place(9);
    home.apply(Command::ComeHome, later, TIMELINE_MAX).unwrap();
    let (before, after) = (waits.pending().unwrap(), home.pending().unwrap());
    assert_eq!((&after.instance, after.place, after.joined_at), (&before.instance, before.place, before.joined_at));
    assert_eq!((after.home.as_ref(), after.rebooked), (None, 1));
}

#[test]
fn a_renewed_assignment_keeps_what_was_handed_out_only_at_the_same_hub() {
    let assigned = after(fresh(), [join(Reason::First), send(), land(), assign()]);
    let claimed = after(assigned, [Command::Tell { reprovision: false, credential: true }]);
    let renewed = after(claimed.clone(), [join(Reason::Reprovision), send(), land(), assign()]);
    assert_eq!(renewed.credential_claimed(), claimed.credential_claimed());
    assert!(renewed.reprovisioned_untold());
    assert_eq!(renewed.assignment().unwrap().revision, 2);
    let Command::Attempt { step: Step::Assign(mut decision), .. } = assign() else { panic!("an assignment") };
    decision.hub = HubName::parse("other.azure-devices.net").unwrap();
    let elsewhere = after(claimed, [join(Reason::Reprovision), send(), at_a(Step::Assign(decision))]);
    assert_eq!(elsewhere.credential_claimed(), None);
}

#[test]
fn a_place_is_beside_the_bytes_and_a_record_of_an_earlier_release_has_it_within() {
    let waits = after(fresh(), [join(Reason::First)]);
    let version = Version([1; 16]);
    let bare: serde_json::Value = serde_json::from_slice(&waits.encode()).unwrap();
    assert!(bare["pending"].get("place").is_none(), "{bare}");
    assert!(Record::decode(&Stored { version, place: None, value: waits.encode() }).is_err(), "nothing says where");
    let mut earlier = bare;
    earlier["pending"]["place"] = serde_json::json!({ "class": "expedited", "sequence": 7 });
    let read = |place| {
        let stored = Stored { version, place, value: earlier.to_string().into() };
        Record::decode(&stored).unwrap().record.pending().unwrap().place
    };
    assert_eq!(read(None), Place { class: Class::Expedited, sequence: 7 });
    assert_eq!(read(Some(place(9))), place(9), "what is beside it stands");
}

#[test]
fn a_draft_that_joins_learns_its_number_from_the_store() {
    let mut draft = Draft::new(fresh(), now(), TIMELINE_MAX);
    draft.apply(join(Reason::First)).unwrap();
    let placing = |draft: &Draft| match draft.write().change {
        Change::Put { placing, .. } => placing,
        other => panic!("{other:?}"),
    };
    assert_eq!(placing(&draft), Placing::Join { line: instance("a"), class: Class::First });
    draft.take_number(Some(7));
    assert_eq!(draft.effects().joined().unwrap().1.place, place(7));
    assert_eq!(placing(&draft), Placing::At { line: instance("a"), place: place(7) });
    draft.take_number(Some(8));
    assert_eq!(draft.record().pending().unwrap().place, place(7), "it has one");
}

#[test]
fn secrets_are_not_in_what_is_printed() {
    let Command::List(mut listing) = list("one") else { panic!("a listing") };
    listing.key = Some("c2VjcmV0".to_owned());
    let record = after(fresh(), [Command::List(listing.clone())]);
    assert!(!format!("{:?} {record:?}", Command::List(listing)).contains("c2VjcmV0"));
    assert_eq!(record.shown(now()).listed().unwrap().key, None);
}

fn check_invariants(record: &Record, earlier: &Record) {
    let names: &BTreeSet<InstanceName> = record.footprint();
    if let Some(pending) = record.pending() {
        assert!(names.contains(&pending.instance), "the instance of a place is counted");
        assert!(record.retired().is_none(), "a retired device waits for nothing");
        let unsent = pending.stage == Stage::Waiting;
        assert!(unsent || pending.attempts > 0, "what was sent is counted");
        assert!(pending.home.as_ref().is_none_or(|home| home.instance != pending.instance), "home is elsewhere");
    }
    if let Some(flight) = record.flight() {
        assert!(names.contains(&flight.instance), "an instance that may still hear of the device is counted");
    }
    if let Some(assignment) = record.assignment() {
        assert!(names.contains(&assignment.instance), "an instance that decided is counted");
    }
    let revision = |record: &Record| record.assignment().map_or(0, |assignment| assignment.revision);
    assert!(revision(record) >= revision(earlier), "revisions never shrink");
    assert!(earlier.footprint().difference(names).count() <= 1, "one instance at a time is given free");
    assert!(record.timeline().len() <= TIMELINE_MAX);
    let place = record.pending().map(|pending| pending.place);
    let stored = Stored { version: Version([1; 16]), place, value: record.encode() };
    assert_eq!(Record::decode(&stored).unwrap().record, *record, "it is read as it was written");
}

proptest! {
    #[test]
    fn whatever_happens_in_whatever_order(numbers in prop::collection::vec(0_usize..64, 0..40)) {
        let (mut record, commands) = (fresh(), commands());
        for number in numbers {
            let (_, command) = &commands[number % commands.len()];
            let (before, outline) = (record.clone(), record.outline());
            match record.apply(command.clone(), now(), TIMELINE_MAX) {
                Ok(effects) => {
                    prop_assert_eq!(effects.before, Some(outline));
                    prop_assert_eq!(effects.after, Some(record.outline()));
                    record = stored(record);
                }
                Err(_) => prop_assert_eq!(&record, &before),
            }
            check_invariants(&record, &before);
        }
    }
}
