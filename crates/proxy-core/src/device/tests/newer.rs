//! Two versions on one store: what a newer one writes into a record, this one keeps, or says that it cannot read it.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

/// What is free in its form, and the places, which hold nothing but what every version knows.
const CLOSED: [&str; 4] =
    ["/assignment/payload", "/pending/payload", "/pending/place", concat!("/pending/home", "/place")];

fn value_of(record: &Record) -> Value {
    serde_json::from_slice(&record.encode()).unwrap()
}

fn read(value: &Value) -> Result<Record, UnreadableRecord> {
    // Whoever waits here is the first one.
    let place = value.get("pending").map(|_| place(1));
    let stored = Stored { version: Version([1; 16]), place, value: Bytes::from(value.to_string()) };
    Record::decode(&stored).map(|versioned| versioned.record)
}

/// The ways to all parts of a record that a newer version may add to.
fn parts(value: &Value) -> Vec<String> {
    let (mut found, mut next) = (Vec::new(), vec![String::new()]);
    while let Some(at) = next.pop() {
        match value.pointer(&at).unwrap() {
            Value::Object(members) if !CLOSED.contains(&at.as_str()) => {
                next.extend(members.keys().map(|name| format!("{at}/{name}")));
                found.push(at);
            }
            Value::Array(items) => next.extend((0..items.len()).map(|number| format!("{at}/{number}"))),
            _ => {}
        }
    }
    found.sort();
    found
}

/// Adds members to a part.
fn add(value: &mut Value, at: &str, members: &Map<String, Value>) {
    value.pointer_mut(at).unwrap().as_object_mut().unwrap().extend(members.clone());
}

fn members() -> impl Strategy<Value = Map<String, Value>> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,6}", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    // Names that no part has in this version.
    prop::collection::btree_map("new-.{0,8}", value, 1..4).prop_map(|members| members.into_iter().collect())
}

/// The part and everything it is in, but for the record itself, are as before.
fn is_untouched(before: &Value, after: &Value, at: &str) -> bool {
    let mut ways = at.match_indices('/').skip(1).map(|(end, _)| &at[..end]).chain([at]);
    ways.all(|way| before.pointer(way).is_some_and(|part| after.pointer(way) == Some(part)))
}

proptest! {
    #[test]
    fn what_a_newer_version_wrote_outlives_every_command_that_leaves_its_part_alone(
        state in 0_usize..64, command in 0_usize..64, additions in prop::collection::btree_map(0_usize..64, members(), 1..5)
    ) {
        let (states, commands) = (states(), commands());
        let (name, plain) = &states[state % states.len()];
        let (called, command) = &commands[command % commands.len()];
        let mut newer = value_of(plain);
        let parts = parts(&newer);
        let mut added = BTreeMap::<&str, Map<String, Value>>::new();
        for (at, members) in additions {
            added.entry(&parts[at % parts.len()]).or_default().extend(members);
        }
        for (at, members) in &added {
            add(&mut newer, at, members);
        }
        let mut record = read(&newer).unwrap();
        prop_assert_eq!(value_of(&record), newer, "it is written as it was read");

        let (mut without, known_before) = (plain.clone(), value_of(plain));
        let outcome = record.apply(command.clone(), now(), TIMELINE_MAX).is_ok();
        prop_assert_eq!(outcome, without.apply(command.clone(), now(), TIMELINE_MAX).is_ok(), "{} {}", name, called);
        let (after, known_after) = (value_of(&record), value_of(&without));
        for (at, members) in &added {
            if is_untouched(&known_before, &known_after, at) || at.is_empty() {
                let part = after.pointer(at).unwrap();
                for (member, value) in members {
                    prop_assert_eq!(part.get(member), Some(value), "{}: {} of {:?}", called, member, at);
                }
            }
        }
    }
}

/// All parts that there are, of some record, each with a member of its own.
fn with_a_member_in_every_part(record: &Record) -> Value {
    let mut value = value_of(record);
    for at in parts(&value) {
        let Value::Object(members) = json!({ "new": at }) else { panic!("an object") };
        add(&mut value, &at, &members);
    }
    value
}

fn new_members(record: &Record) -> BTreeSet<String> {
    let value = value_of(record);
    let named = |at: &String| value.pointer(at).and_then(|part| part.get("new")).is_some();
    parts(&value).into_iter().filter(named).filter(|at| !at.starts_with("/timeline")).collect()
}

#[test]
fn a_part_that_is_changed_keeps_what_is_new_in_it_and_one_that_is_replaced_takes_it_along() {
    let newer = |state: &str| {
        let (_, record) = states().into_iter().find(|(name, _)| *name == state).unwrap();
        read(&with_a_member_in_every_part(&record)).unwrap()
    };
    let table: [(&str, Vec<Command>, &[&str]); 16] = [
        ("waits", vec![], &["", "/pending", "/pending/stage"]),
        ("waits", vec![Command::Reseat { class: Class::Expedited, why: "why" }], &["", "/pending", "/pending/stage"]),
        ("waits", vec![send()], &["", "/pending"]),
        ("waits", vec![Command::Rebook { seat: seat("b") }], &["", "/pending"]),
        ("away", vec![], &["", "/pending", "/pending/home", "/pending/stage"]),
        ("away", vec![Command::ComeHome], &["", "/pending"]),
        ("waits", vec![Command::Move { seat: seat("b") }], &[""]),
        ("sent", vec![at_a(Step::Event { why: "why".to_owned() })], &["", "/flight", "/pending", "/pending/stage"]),
        ("sent", vec![assign()], &["", "/flight"]),
        ("sent", vec![land()], &["", "/pending", "/pending/stage"]),
        ("sent", vec![Command::Move { seat: seat("b") }], &["", "/flight"]),
        ("moved", vec![at_b(sending(2, Some(flight(1))))], &["", "/pending"]),
        ("renews", vec![send(), assign()], &["", "/assignment"]),
        ("assigned", vec![contradict(None), Command::Retire { kept: None }], &["", "/assignment"]),
        (
            "blocked",
            vec![Command::Block { by: "other".to_owned(), reason: None }, block()],
            &["", "/assignment", "/blocked"],
        ),
        ("listed", vec![Command::List(Listing { claim: claim("one"), batch: None, key: None })], &["", "/listed"]),
    ];
    for (state, commands, kept) in table {
        let called = format!("{state} {commands:?}");
        let kept: BTreeSet<String> = kept.iter().map(ToString::to_string).collect();
        assert_eq!(new_members(&after(newer(state), commands)), kept, "{called}");
    }
    let refused = after(newer("sent"), [land(), refuse()]);
    assert_eq!(new_members(&refused), BTreeSet::from([String::new()]));
    let (first, last) = (&refused.timeline()[0], refused.timeline().last().unwrap());
    assert!(!first.unknown.is_empty() && last.unknown.is_empty(), "an event keeps its own: {refused:?}");
    let all = states().into_iter().map(|(name, _)| newer(name)).flat_map(|record| parts(&value_of(&record)));
    let all: BTreeSet<String> = all.collect();
    for at in ["/listed", "/assignment", "/refusal", "/blocked", "/timeline/0"] {
        assert!(all.contains(at), "{at} is in some state");
    }
}

#[test]
fn a_member_that_another_stage_has_is_new_to_this_one() {
    let waits = after(fresh(), [join(Reason::First)]);
    let mut newer = value_of(&waits);
    newer["pending"]["stage"]["time"] = json!("since when");
    let record = read(&newer).unwrap();
    assert_eq!(record.pending().unwrap().stage, Stage::Waiting);
    assert_eq!(value_of(&record), newer);
}

#[test]
fn what_this_version_would_have_to_understand_is_not_taken_for_damage() {
    let all = after(fresh(), [list("one"), join(Reason::First), send(), land(), assign(), join(Reason::Reprovision)]);
    let with = |at: &str, part: Value| {
        let mut value = value_of(&all);
        // As an earlier release has written it.
        value["pending"]["place"] = json!({ "class": "first", "sequence": 1 });
        *value.pointer_mut(at).unwrap() = part;
        read(&value).unwrap_err()
    };
    for at in ["/pending/stage/at", "/pending/reason", "/pending/place/class", "/assignment/state"] {
        let error = with(at, json!("brand-new"));
        assert!(matches!(error, UnreadableRecord::Newer(_)), "{at}: {error}");
        assert!(error.to_string().starts_with(&format!("{at} is \"brand-new\", and this version knows ")), "{error}");
        let read_error = error.into_read_error("sn-1").to_string();
        assert!(read_error.contains("newer version") && read_error.contains("registration sn-1"), "{read_error}");
    }
    let error = with("/pending/place", json!({ "class": "first", "sequence": 1, "epoch": 2 }));
    assert_eq!(error.to_string(), "/pending/place has members that this version does not know and cannot keep: epoch");
    for (at, part) in [
        ("/pending/stage/at", json!(7)),
        ("/pending/stage", json!({ "at": "sent" })),
        ("/pending/joinedAt", json!("noon")),
        ("/registrationId", json!("-")),
        ("/timeline", json!("none")),
    ] {
        let error = with(at, part);
        assert!(matches!(error, UnreadableRecord::Damaged(_)), "{at}: {error}");
    }
    for bytes in ["", "[]", "{}", "not a record", r#"{"registrationId":"sn-1","registrationId":"sn-2"}"#] {
        let stored = Stored { version: Version([1; 16]), place: None, value: Bytes::from_static(bytes.as_bytes()) };
        assert!(matches!(Record::decode(&stored), Err(UnreadableRecord::Damaged(_))), "{bytes}");
    }
}

#[test]
fn people_are_not_shown_what_this_version_does_not_know() {
    for (name, record) in states() {
        let newer = read(&with_a_member_in_every_part(&record)).unwrap();
        assert_eq!(newer.shown(now()), record.shown(now()), "{name}");
    }
}
