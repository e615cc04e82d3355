//! Several gateways on one store: one is active, and another one takes over. No quota is broken and nothing acknowledged is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proxy_core::gateway::Gateway;
use proxy_core::sas;
use proxy_core::use_cases::provision::Outcome;
use rate_control::failpoint::Failpoint;
use tokio::task::JoinSet;

use crate::support::clock::{Dice, EPOCH_MILLIS};
use crate::support::dps::{Call, Weather};
use crate::support::judge::{assert_within_quota, counted, most_in_any_minute, two_at_once};
use crate::support::replicas::Replicas;
use crate::support::{AUDIENCE, Ask, group_key, millis, seconds, settings, sleep};

fn ask(device: &str) -> Ask {
    let key = sas::derive_device_key(&group_key(), device);
    let resource = format!("{AUDIENCE}%2Fregistrations%2F{device}");
    let token = sas::device_token(&key, &resource, EPOCH_MILLIS / 1000 + 12 * 3600, None);
    Ask {
        hardware_id: device.to_owned(),
        authorization: Some(token),
        payload: None,
        reprovision: false,
        wait: Duration::ZERO,
    }
}

/// What devices were told.
#[derive(Default)]
struct Fleet {
    places: Mutex<BTreeMap<String, usize>>,
    hubs: Mutex<BTreeMap<String, String>>,
}

impl Fleet {
    /// Asks whoever is active, as a balancer does, until it has its hub.
    async fn device(self: Arc<Self>, replicas: Arc<Replicas>, device: String) -> Result<(), String> {
        for _ in 0..400 {
            let Some((_, gateway)) = replicas.active() else {
                sleep(seconds(2)).await;
                continue;
            };
            // A process that is stopped or killed meanwhile does not answer.
            let answered = tokio::time::timeout(seconds(10), ask(&device).of(Arc::clone(&gateway))).await;
            let alive = replicas.active().is_some_and(|(_, active)| Arc::ptr_eq(&active, &gateway));
            let wait = match answered {
                Ok(Ok(Outcome::Assigned(assigned))) if alive => {
                    let hub = assigned.hub.to_string();
                    let told = self.hubs.lock().entry(device.clone()).or_insert_with(|| hub.clone()).clone();
                    return if told == hub { Ok(()) } else { Err(format!("{device} was told two hubs")) };
                }
                Ok(Ok(Outcome::Queued(queued))) if alive => {
                    *self.places.lock().entry(device.clone()).or_default() += 1;
                    queued.retry_after_seconds
                }
                _ => 2,
            };
            sleep(seconds(wait)).await;
        }
        Err(format!("{device} is never served"))
    }
}

async fn sends_after(replicas: &Replicas, from: Duration) -> Option<Duration> {
    for _ in 0..600 {
        let sent = replicas.dps("a").sent();
        if let Some(first) = sent.iter().find(|sent| sent.call == Call::Register && sent.at >= from) {
            return Some(first.at - from);
        }
        sleep(millis(100)).await;
    }
    None
}

async fn queue(gateway: &Arc<Gateway>, devices: std::ops::Range<u32>) {
    for number in devices {
        let told = ask(&format!("device-{number}")).of(Arc::clone(gateway)).await;
        assert!(matches!(told, Ok(Outcome::Queued(_))), "{number}: {told:?}");
    }
}

fn elapsed(began: tokio::time::Instant) -> Duration {
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn when_the_active_gateway_is_killed_another_one_sends_within_eight_seconds_and_nobody_loses_a_place() {
    for seed in 1..=10 {
        let began = tokio::time::Instant::now();
        let replicas = Replicas::start(settings(&[("a", 120)]), 3, seed);
        let (first, gateway) = replicas.until_active().await;
        queue(&gateway, 0..100).await;
        sleep(seconds(10) + millis(seed * 97)).await;
        replicas.kill(first);
        let first_send = sends_after(&replicas, elapsed(began)).await;
        assert!(first_send.is_some_and(|wait| wait <= seconds(8)), "seed {seed}: {first_send:?}");
        let (second, gateway) = replicas.until_active().await;
        assert_ne!(first, second);
        sleep(seconds(700)).await;
        for number in 0..100 {
            let told = ask(&format!("device-{number}")).of(Arc::clone(&gateway)).await;
            assert!(matches!(told, Ok(Outcome::Assigned(_))), "seed {seed}, device {number}: {told:?}");
        }
        assert_within_quota(replicas.dps("a"), 120, "after a takeover");
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_is_told_to_stop_hands_the_lines_over_within_a_second() {
    let began = tokio::time::Instant::now();
    let replicas = Replicas::start(settings(&[("a", 600)]), 2, 1);
    let (first, gateway) = replicas.until_active().await;
    queue(&gateway, 0..300).await;
    sleep(seconds(5)).await;
    let stopped = replicas.terminate(first).await.unwrap().unwrap();
    let from = elapsed(began);
    assert_eq!((stopped.unwritten, stopped.trouble), (0, None));
    let first_send = sends_after(&replicas, from).await.unwrap();
    assert!(first_send <= seconds(1), "{first_send:?}");
    sleep(seconds(120)).await;
    let (_, gateway) = replicas.until_active().await;
    for number in 0..300 {
        let told = ask(&format!("device-{number}")).of(Arc::clone(&gateway)).await;
        assert!(matches!(told, Ok(Outcome::Assigned(_))), "device {number}: {told:?}");
    }
    assert_within_quota(replicas.dps("a"), 600, "after a handover");
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_is_told_to_stop_while_it_reads_the_lines_gives_the_lease_back() {
    let replicas = Replicas::start(settings(&[("a", 60)]), 2, 1);
    replicas.hold_scans(0);
    replicas.hold_scans(1);
    sleep(seconds(2)).await;
    assert!(replicas.active().is_none(), "it owns the lease, and reads");
    let (first, second) = (replicas.terminate(0).await, replicas.terminate(1).await);
    assert!(matches!((&first, &second), (Ok(None), Ok(None))), "{first:?}, {second:?}");
    replicas.begin(0);
    sleep(seconds(1)).await;
    assert!(replicas.active().is_some(), "the lease had not to run out");
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_wakes_after_another_one_took_over_changes_nothing_and_says_how_its_calls_ended() {
    let replicas = Replicas::start(settings(&[("a", 60)]), 2, 3);
    let (first, gateway) = replicas.until_active().await;
    queue(&gateway, 0..40).await;
    sleep(seconds(7)).await;
    replicas.stop(first, true);
    let (second, active) = replicas.until_active().await;
    assert_ne!(first, second);
    sleep(seconds(15)).await;
    replicas.stop(first, false);
    sleep(seconds(20)).await;
    assert!(replicas.active().is_some_and(|(number, _)| number == second));
    // Nothing that the first one would have given a place to is anywhere.
    let told = ask("late").of(gateway).await;
    assert!(told.is_err(), "{told:?}");
    assert!(matches!(ask("late").of(Arc::clone(&active)).await, Ok(Outcome::Queued(_))));
    sleep(seconds(600)).await;
    for number in 0..40 {
        let told = ask(&format!("device-{number}")).of(Arc::clone(&active)).await;
        assert!(matches!(told, Ok(Outcome::Assigned(_))), "device {number}: {told:?}");
    }
    assert_within_quota(replicas.dps("a"), 60, "with a gateway that woke");
    assert_eq!(two_at_once(replicas.dps("a")), None);
}

/// Kills, stops, handovers and foul weather, chosen by the seed. What went wrong, if anything did.
async fn contest(seed: u64) -> Result<(), String> {
    const QUOTA: u32 = 90;
    let mut dice = Dice::new(seed);
    let replicas = Replicas::start(settings(&[("a", QUOTA)]), 3, seed);
    replicas.dps("a").weather(if dice.chance(500) { Weather::foul() } else { Weather::fair(300) });
    let fleet = Arc::new(Fleet::default());
    let mut devices = JoinSet::new();
    for round in 0..10 {
        for number in 0..25 {
            devices.spawn(Arc::clone(&fleet).device(Arc::clone(&replicas), format!("device-{round}-{number}")));
        }
        sleep(dice.millis(1_000, 30_000)).await;
        let hit = replicas.active().map_or(0, |(number, _)| number);
        match dice.below(8) {
            0 | 1 => {
                replicas.kill(hit);
                sleep(dice.millis(0, 20_000)).await;
                replicas.begin(hit);
            }
            2 => drop((replicas.terminate(hit).await.unwrap(), replicas.begin(hit))),
            // Shorter and longer than a lease lives, and than anything that is given up.
            asleep => {
                replicas.stop(hit, true);
                sleep(dice.millis(100, if asleep == 3 { 600_000 } else { 60_000 })).await;
                replicas.stop(hit, false);
            }
        }
    }
    replicas.dps("a").weather(Weather::fair(300));
    let served = tokio::time::timeout(seconds(3 * 3600), async {
        while let Some(ended) = devices.join_next().await {
            ended.map_err(|error| error.to_string())??;
        }
        Ok::<(), String>(())
    });
    served.await.map_err(|_| "not all were served".to_owned())??;
    let most = most_in_any_minute(&counted(replicas.dps("a")));
    if most > QUOTA as usize {
        return Err(format!("{most} in a minute of {QUOTA}"));
    }
    two_at_once(replicas.dps("a")).map_or(Ok(()), |two| Err(format!("two registrations at once: {two:?}")))
}

#[tokio::test(start_paused = true)]
async fn gateways_that_are_killed_and_stopped_and_wake_break_no_quota_and_lose_nobody() {
    for seed in 1..=40 {
        assert_eq!(contest(seed).await, Ok(()), "seed {seed}");
    }
}

/// What keeps the promises is what is said to keep them.
#[test]
fn each_rule_that_is_left_out_breaks_a_promise() {
    if !Failpoint::EXIST {
        return;
    }
    for rule in [Failpoint::NoFence, Failpoint::OrphansForgotten, Failpoint::OrphansAbandoned] {
        let _broken = rule.switch_on();
        let convicted = (1..=60).find(|&seed| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            runtime.block_on(contest(seed)).is_err()
        });
        assert!(convicted.is_some(), "{rule:?} is not noticed");
    }
}
