//! The limiter at work: an overload for minutes, and a quota that is lowered and raised in the middle of a storm.

use std::ops::Range;
use std::time::{Duration, Instant};

use dps_emulator::{CallKind, Emulator, Fault, FaultAction, JournalEntry, Quota, QuotaShape};
use futures_util::future::join_all;

use crate::support::{Device, Dice, Instance, MINUTE, Plan, Said, Site, emulator_config, registers, until};

const INSTANCES: [&str; 2] = ["eu-1", "eu-2"];
/// Within what DPS is assumed to answer.
const LATENCY: Duration = Duration::from_millis(250);

async fn slow_emulator(name: &str, quota: u32) -> Emulator {
    let emulator = Emulator::start(emulator_config(name, quota)).await.unwrap();
    emulator.add_fault(Fault::new(FaultAction::Delay { delay: LATENCY }).on(CallKind::Register));
    emulator
}

/// Milliseconds of all counted calls, in order.
fn counted(journal: &[JournalEntry]) -> Vec<u64> {
    journal.iter().filter(|entry| entry.counted).map(|entry| entry.at_ns / 1_000_000).collect()
}

/// Each device asks when it knocks and comes back when it was told to, until it has its hub.
async fn requests_per_device(fleet: &[(Device, Duration)]) -> f64 {
    let lives = fleet.iter().map(async |(device, knock)| {
        tokio::time::sleep(*knock).await;
        let mut requests = 0_u32;
        loop {
            requests += 1;
            match device.ask().await {
                Said::Hub(_) => return requests,
                Said::Queued { wait, .. } => tokio::time::sleep(wait).await,
                other => panic!("{}: {other:?}", device.id),
            }
        }
    });
    let outcomes = tokio::time::timeout(Duration::from_secs(200), join_all(lives)).await.expect("the line is drained");
    f64::from(outcomes.iter().sum::<u32>()) / outcomes.len() as f64
}

/// All at the same time, because they mostly wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quota_is_used_up_never_broken_and_edited_in_mid_storm() {
    tokio::join!(
        Box::pin(tenants_need_two_requests_per_device_too("tenants", 0..10_000)),
        Box::pin(tenants_need_two_requests_per_device_too("a late tenant", 5_000..25_000)),
        Box::pin(an_overload_is_drained_at_the_quota_in_two_requests_per_device()),
        Box::pin(a_quota_edited_in_mid_storm_holds_from_the_edit_on()),
    );
}

async fn an_overload_is_drained_at_the_quota_in_two_requests_per_device() {
    const DEVICES: usize = 300;
    const QUOTA: u32 = 60;
    const BURST: u32 = 10;
    let mut dice = Dice::new("limiter");
    let mut emulators = Vec::new();
    let mut instances = Vec::new();
    for name in INSTANCES {
        let emulator = slow_emulator(name, QUOTA).await;
        instances.push(Instance { name: name.to_owned(), endpoint: emulator.url(), quota: QUOTA, burst: BURST });
        emulators.push(emulator);
    }
    let site = Site::new(&Plan { instances, ..Plan::default() });
    let service = site.start().await;
    let began = Instant::now();
    let fleet: Vec<_> =
        (0..DEVICES).map(|number| (site.device(&format!("sn-{number}")), dice.millis(0, 500))).collect();
    let requests = requests_per_device(&fleet).await;
    println!("limiter: {DEVICES} devices assigned in {:?}, {requests:.3} requests per device", began.elapsed());
    assert!(requests <= 2.05, "{requests} requests per device");

    for (name, emulator) in INSTANCES.iter().zip(&emulators) {
        let times = counted(&emulator.journal());
        // After the first burst there is a line until the last one leaves; from there to there the quota could have been used.
        let burst = BURST as usize;
        let span = times[times.len() - 1] - times[burst - 1];
        let possible = span as f64 / MINUTE.as_millis() as f64 * f64::from(QUOTA);
        let share = (times.len() - burst) as f64 / possible;
        let stats = emulator.stats();
        println!(
            "limiter: {name}: {} counted in {:.1} s, {:.2} % of the quota used after the burst; at most {} in any sliding and {} in any \
             fixed minute of {QUOTA}, {} throttled",
            times.len(),
            (times[times.len() - 1] - times[0]) as f64 / 1000.0,
            share * 100.0,
            stats.registrations_max_sliding,
            stats.registrations_max_fixed,
            stats.throttled,
        );
        assert!(span > 90_000, "the overload was too short to show anything: {span} ms");
        assert!(share >= 0.99, "{name}: only {share} of the quota was used");
        assert_eq!((stats.over_quota_sliding, stats.throttled), (0, 0));
        assert!(stats.registrations_max_sliding <= QUOTA && stats.registrations_max_fixed <= QUOTA);
        assert_eq!(stats.registrations_counted, stats.devices_registered, "one registration each");
    }
    service.stop().await;
}

/// A large tenant is back within 10 s, and a small one within these milliseconds.
async fn tenants_need_two_requests_per_device_too(what: &str, small_millis: Range<u64>) {
    const QUOTA: u32 = 120;
    const LARGE: usize = 150;
    const SMALL: usize = 30;
    let mut dice = Dice::new(what);
    let emulator = slow_emulator("eu-1", QUOTA).await;
    let instances = vec![Instance { name: "eu-1".to_owned(), endpoint: emulator.url(), quota: QUOTA, burst: 10 }];
    let enrollments = ["large", "small"].map(|name| (name.to_owned(), vec!["eu-1".to_owned()])).to_vec();
    let site = Site::new(&Plan { instances, enrollments, tenants: true, ..Plan::default() });
    let service = site.start().await;
    let mut device = |tenant: &str, number, millis: &Range<u64>| {
        (site.device_of(tenant, &format!("{tenant}-{number}")), dice.millis(millis.start, millis.end))
    };
    let mut fleet: Vec<_> = (0..LARGE).map(|number| device("large", number, &(0..10_000))).collect();
    fleet.extend((0..SMALL).map(|number| device("small", number, &small_millis)));
    let requests = requests_per_device(&fleet).await;
    let stats = emulator.stats();
    println!("{what}: {requests:.3} requests per device, {} throttled", stats.throttled);
    assert!(requests <= 2.05, "{requests} requests per device");
    assert_eq!((stats.over_quota_sliding, stats.throttled), (0, 0));
    assert_eq!(stats.registrations_counted, stats.devices_registered, "one registration each");
    service.stop().await;
}

async fn a_quota_edited_in_mid_storm_holds_from_the_edit_on() {
    const HIGH: u32 = 120;
    const LOW: u32 = 40;
    const HIGHER: u32 = 240;
    let emulator = slow_emulator("eu-1", HIGHER).await;
    let plan = |quota| Plan {
        instances: vec![Instance { name: "eu-1".to_owned(), endpoint: emulator.url(), quota, burst: 10 }],
        ..Plan::default()
    };
    let site = Site::new(&plan(HIGH));
    let service = site.start().await;
    let fleet: Vec<_> = (0..400).map(|number| site.device(&format!("sn-{number}"))).collect();
    for said in join_all(fleet.iter().map(async |device| device.ask().await)).await {
        assert_eq!(said.status(), 202, "{said:?}");
    }
    let in_force = async |quota: u32| {
        site.configure(&plan(quota));
        let edited = Instant::now();
        until("the edit is in force", Duration::from_secs(10), async || {
            site.instance("eu-1").await["quotaPerMinute"] == quota
        })
        .await;
        // What had left before the edit may take its latency to be counted; from here on the strict instance judges by the new quota.
        let took = edited.elapsed();
        tokio::time::sleep(LATENCY).await;
        (took, emulator.journal().last().map_or(0, |entry| entry.sequence))
    };
    let strict = |count| emulator.set_quota(Quota { count, window: MINUTE, shape: QuotaShape::Sliding }).unwrap();
    let count = || registers(&emulator.journal()).count();

    strict(HIGH);
    tokio::time::sleep(Duration::from_secs(28)).await;
    let at_high = count();
    assert!(at_high > LOW as usize + 15, "{at_high} sends before the edit prove nothing about {LOW}");

    let (lowered_in, lowered_at) = in_force(LOW).await;
    strict(LOW);
    // The window must first come down to the new quota: until then nothing leaves, then the new rate holds.
    let at_low = count();
    until("something leaves under the lower quota", Duration::from_secs(80), async || count() > at_low).await;
    let journal = emulator.journal();
    let first = journal.iter().find(|entry| entry.sequence > lowered_at && entry.counted).unwrap();
    let still = journal
        .iter()
        .filter(|entry| entry.counted && entry.at_ns + 60_000_000_000 > first.at_ns && entry.at_ns <= first.at_ns)
        .count();
    assert!(still <= LOW as usize, "the first send after the edit left into a window of {still}");
    let before = journal.iter().rfind(|entry| entry.counted && entry.sequence <= lowered_at).unwrap();
    let silence = Duration::from_nanos(first.at_ns - before.at_ns);
    assert!(silence >= Duration::from_secs(15), "it went on after {silence:?}");
    tokio::time::sleep(Duration::from_secs(8)).await;
    let under_low = count() - at_low;
    let stats = emulator.stats();
    assert_eq!((stats.throttled, stats.over_quota_sliding), (0, 0), "over the lowered quota");

    strict(HIGHER);
    let (raised_in, _) = in_force(HIGHER).await;
    let at_raise = count();
    tokio::time::sleep(Duration::from_secs(8)).await;
    let under_higher = count() - at_raise;
    println!(
        "quota edits: {at_high} sends at {HIGH} per minute; lowered to {LOW} (in force after {lowered_in:?}): silence of {silence:?}, then \
         {under_low} sends, none over the quota; raised to {HIGHER} (in force after {raised_in:?}): {under_higher} sends in 8 s"
    );
    // A second's worth of slack: 32 fall due in 8 s.
    assert!(under_higher >= 26, "{under_higher} sends in 8 s at {HIGHER} per minute");
    let stats = emulator.stats();
    assert_eq!((stats.throttled, stats.over_quota_sliding), (0, 0));
    service.stop().await;
}
