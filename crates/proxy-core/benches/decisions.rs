//! What one decision costs, without disk or network: tokens, the ledger, a place in line.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use proxy_core::lane::Lane;
use proxy_core::ledger::Ledger;
use proxy_core::sas::{self, SasToken};
use proxy_core::secret::SymmetricKey;
use proxy_core::time::Mono;

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

fn lane(criterion: &mut Criterion) {
    for waiting in [1_000_u64, 1_000_000] {
        let mut lane = Lane::default();
        for sequence in 0..waiting {
            lane.insert(sequence, ());
        }
        let mut next = waiting;
        criterion.bench_function(&format!("lane: join, ask for one's rank, leave, {waiting} waiting"), |bench| {
            bench.iter(|| {
                lane.insert(next, ());
                let rank = lane.rank(black_box(next - waiting / 2));
                lane.remove(next - waiting);
                next += 1;
                rank
            });
        });
    }
}

criterion_group!(benches, tokens, ledger, lane);
criterion_main!(benches);
