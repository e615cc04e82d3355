//! What one decision costs, without disk or network: tokens, the ledger, a place in line, a record that is read.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use proxy_core::device::Record;
use proxy_core::ids::{RegistrationId, TenantName};
use proxy_core::line::lane::{JobKind, Waiting};
use proxy_core::line::scheduler::{FairScheduler, Fairness};
use proxy_core::place::{Class, Place};
use proxy_core::sas::{self, SasToken};
use proxy_core::secret::SymmetricKey;
use proxy_core::store::{Stored, Version};
use rate_control::ledger::Ledger;
use rate_control::time::Mono;

const KEY: &str = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==";

fn tokens(criterion: &mut Criterion) {
    let group_key = SymmetricKey::from_base64(KEY).expect("the published key");
    let resource = "gateway.example.com%2Fregistrations%2Fdevice-0001";
    let device_key = sas::derive_device_key(&group_key, "device-0001");
    let token = sas::device_token(&device_key, resource, 1_900_000_000, None);
    criterion.bench_function("token: derive the key and sign", |bench| {
        bench.iter(|| {
            let key = sas::derive_device_key(&group_key, black_box("device-0001"));
            sas::device_token(&key, resource, 1_900_000_000, Some("registration"))
        });
    });
    criterion.bench_function("token: parse, derive the key and verify", |bench| {
        bench.iter(|| {
            let parsed = SasToken::parse(black_box(&token)).expect("a token");
            parsed.is_signed_by(&sas::derive_device_key(&group_key, "device-0001"))
        });
    });
}

fn ledger(criterion: &mut Criterion) {
    // A full minute at 1,000 per minute: every send waits for the slot of the one a minute ago.
    criterion.bench_function("ledger: check, take and answer, 1,000 slots in use", |bench| {
        let mut ledger = Ledger::new(1000, Duration::from_secs(30));
        let mut now = 0_u64;
        bench.iter(|| {
            now += 60_200_000;
            let moment = Mono::from_nanos(now);
            if ledger.check(black_box(moment)).is_ok() {
                let slot = ledger.take();
                ledger.answered(slot, moment);
            }
        });
    });
}

/// What a join costs the line, and what asking for one's appointment does, with few and with many that wait.
fn line(criterion: &mut Criterion) {
    let tenant = TenantName::parse("default").expect("a tenant");
    for waiting in [1_000_u64, 1_000_000] {
        let fairness = Fairness { urgent_share_percent: 10, handicap: 6000, weights: BTreeMap::new(), shared: false };
        let mut lanes = FairScheduler::new(fairness);
        let place = |sequence| Place { class: Class::First, sequence };
        let device = |sequence| {
            let id = RegistrationId::parse(&format!("sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6-{sequence:011}"));
            let joined = u32::try_from(sequence / 100).unwrap_or(u32::MAX);
            Waiting { id: id.expect("an ID"), job: JobKind::Register, joined, appointment: None }
        };
        for sequence in 0..waiting {
            lanes.insert(&tenant, place(sequence), &device(sequence));
        }
        let mut next = waiting;
        criterion.bench_function(&format!("line: join, and the front departs, {waiting} waiting"), |bench| {
            bench.iter_batched(
                || {
                    next += 1;
                    (place(next - 1), device(next - 1))
                },
                |(place, device)| {
                    lanes.insert(&tenant, place, &device);
                    let turn = lanes.front().expect("somebody waits");
                    lanes.depart(&turn)
                },
                BatchSize::SmallInput,
            );
        });
        let mut asked = next;
        criterion.bench_function(&format!("line: ask for one's place, {waiting} waiting"), |bench| {
            bench.iter(|| {
                // Devices all over the line, as they come back.
                asked = next - 1 - (asked.wrapping_mul(6_364_136_223_846_793_005) >> 20) % waiting;
                lanes.ahead(&tenant, black_box(place(asked)), u32::try_from(asked / 100).unwrap_or(u32::MAX))
            });
        });
    }
}

/// A start reads every record once: one that waits, one that is assigned, and the first with what a newer version has added.
fn records(criterion: &mut Criterion) {
    let waits = serde_json::json!({
        "registrationId": "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6", "hardwareId": "SN-007-888-ABC-mac-a1-b2-c3-d4-e5-f6",
        "tenant": "default", "enrollment": "plant", "footprint": ["eu-1"],
        "pending": {
            "instance": "eu-1", "place": { "class": "first", "sequence": 123_456 }, "reason": "first",
            "joinedAt": "2026-11-24T12:00:00.000Z[_boot=00c0ffee00c0ffee-5000]", "stage": { "at": "waiting" },
            "firstThere": true, "requestId": "0190c0ffee00", "payload": { "model": "th-1" }
        },
        "timeline": [{ "at": "2026-11-24T12:00:00.000Z", "what": "joined the line of eu-1 (it has no assignment yet)" }]
    });
    let assigned = serde_json::json!({
        "registrationId": "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6", "tenant": "default", "enrollment": "plant", "footprint": ["eu-1"],
        "assignment": {
            "hub": "hub-eu-1.azure-devices.net", "deviceId": "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6", "instance": "eu-1",
            "state": "confirmed", "substatus": "initialAssignment", "assignedAt": "2026-11-24T12:00:05.000Z",
            "confirmedAt": "2026-11-24T12:00:05.000Z", "revision": 1, "dpsEtag": "0190c0ffee", "dpsLastUpdated": "2026-11-24T12:00:04.000Z"
        },
        "lastSent": "2026-11-24T12:00:03.000Z[_boot=00c0ffee00c0ffee-8000]",
        "lastRegistrationBegun": "2026-11-24T12:00:03.000Z[_boot=00c0ffee00c0ffee-8000]",
        "timeline": [
            { "at": "2026-11-24T12:00:00.000Z", "what": "joined the line of eu-1 (it has no assignment yet)" },
            { "at": "2026-11-24T12:00:03.000Z", "what": "registration 1 sent to eu-1" },
            { "at": "2026-11-24T12:00:05.000Z", "what": "assigned to hub-eu-1.azure-devices.net by eu-1" }
        ]
    });
    let mut newer = waits.clone();
    newer["pending"]["owner"] = "gateway-2".into();
    for (name, value) in [("waits", waits), ("is assigned", assigned), ("waits, written by a newer version", newer)] {
        let stored = Stored { version: Version([1; 16]), place: None, value: value.to_string().into() };
        criterion.bench_function(&format!("record: read one that {name}"), |bench| {
            bench.iter(|| Record::decode(black_box(&stored)).expect("a record"));
        });
    }
}

criterion_group!(benches, tokens, ledger, line, records);
criterion_main!(benches);
