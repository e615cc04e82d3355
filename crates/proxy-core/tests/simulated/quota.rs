//! Promises 1 and 2: never over the quota, and nearly always at it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proxy_core::device::Stage;
use proxy_core::gateway::Gateway;
use proxy_core::use_cases::provision::Outcome;
use tokio::task::JoinSet;

use crate::support::clock::Dice;
use crate::support::dps::{Call, Fate, Reply, Weather};
use crate::support::judge::{assert_within_quota, bucket_overdrawn, counted, two_at_once};
use crate::support::{Ask, World, id, millis, name, seconds, settings, sleep};

/// What devices were told, and by which gateway they are served now.
struct Storm {
    gateway: Mutex<Arc<Gateway>>,
    promised: Mutex<BTreeSet<String>>,
    hubs: Mutex<BTreeMap<String, String>>,
    seed: u64,
}

impl Storm {
    /// Asks again and again, as real devices do, whatever happens.
    async fn device(self: Arc<Self>, ask: Ask) {
        for _ in 0..60 {
            let gateway = Arc::clone(&self.gateway.lock());
            let answered = ask.clone().of(Arc::clone(&gateway)).await;
            // What a killed process would have answered reaches nobody.
            let alive = Arc::ptr_eq(&gateway, &self.gateway.lock());
            let wait = match answered {
                Ok(Outcome::Assigned(assigned)) if alive => {
                    let hub = assigned.hub.to_string();
                    let told = self.hubs.lock().entry(ask.hardware_id.clone()).or_insert_with(|| hub.clone()).clone();
                    assert_eq!(told, hub, "seed {}: {} was told two hubs", self.seed, ask.hardware_id);
                    return;
                }
                Ok(Outcome::Queued(queued)) if alive => {
                    self.promised.lock().insert(ask.hardware_id.clone());
                    queued.retry_after_seconds
                }
                _ => 5,
            };
            sleep(seconds(wait)).await;
        }
    }
}

/// What can be derived from the records: it has to be the same in memory and after a restart.
async fn derived(world: &World) -> (u64, usize) {
    let view = world.gateway.instances().await.remove(0);
    (view.registered_count, view.line_length + view.under_way)
}

/// One storm with everything that can go wrong.
async fn foul_storm(seed: u64) {
    let mut dice = Dice::new(seed);
    let quota = 20 + u32::try_from(dice.below(60)).unwrap();
    let mut world = World::seeded(settings(&[("a", quota)]), seed).await;
    let mut largest = quota;
    world.dps("a").weather(Weather::foul());
    world.dps("a").skew_millis(i64::try_from(dice.below(20_000)).unwrap() - 10_000);
    let storm = Arc::new(Storm {
        gateway: Mutex::new(Arc::clone(&world.gateway)),
        promised: Mutex::default(),
        hubs: Mutex::default(),
        seed,
    });
    let mut devices = JoinSet::new();
    for round in 0..12_u64 {
        world.dps("a").hub(&format!("hub-{round}.azure-devices.net"));
        for number in 0..25 {
            let ask = world.ask(&format!("device-{round}-{number}"));
            devices.spawn(Arc::clone(&storm).device(ask));
        }
        sleep(dice.millis(500, 40_000)).await;
        match dice.below(6) {
            0 => world.kill().await,
            1 => world.reboot(dice.millis(1_000, 400_000)).await,
            2 => {
                // The last writes never reach the disk.
                world.store.hold_acks(true);
                sleep(dice.millis(0, 2_000)).await;
                if dice.chance(500) { world.kill().await } else { world.reboot(dice.millis(1_000, 400_000)).await }
            }
            3 => world.clock.set_wall_offset_millis(i64::try_from(dice.below(1_200_000)).unwrap() - 600_000),
            4 => {
                let mut changed = (*world.gateway.settings()).clone();
                let quota = 10 + u32::try_from(dice.below(70)).unwrap();
                largest = largest.max(quota);
                changed.instances.values_mut().for_each(|instance| instance.quota_per_minute = quota);
                world.gateway.apply(changed).await.unwrap();
            }
            _ => world.restart().await,
        }
        *storm.gateway.lock() = Arc::clone(&world.gateway);
    }
    sleep(seconds(120)).await;
    world.dps("a").weather(Weather::fair(100));
    sleep(seconds(2400)).await;
    assert_within_quota(world.dps("a"), largest, &format!("seed {seed}"));
    assert_eq!(two_at_once(world.dps("a")), None, "seed {seed}: a device had two registrations on the wire");
    let promised = storm.promised.lock().clone();
    for device in &promised {
        let record = world.record(device).await.unwrap_or_else(|| panic!("seed {seed}: {device} lost its place"));
        assert!(record.assignment().is_some(), "seed {seed}: {device} was never served: {record:?}");
    }
    while let Some(device) = devices.join_next().await {
        device.unwrap();
    }
    assert!(storm.hubs.lock().len() >= 290, "seed {seed}: {} of 300 know their hub", storm.hubs.lock().len());
    let before = derived(&world).await;
    world.restart().await;
    assert_eq!((derived(&world).await, before), ((300, 0), (300, 0)), "seed {seed}");
}

#[tokio::test(start_paused = true)]
async fn no_minute_holds_more_than_the_quota_whatever_goes_wrong() {
    for seed in 1..=30 {
        foul_storm(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn with_a_line_and_quick_answers_nearly_all_of_the_quota_is_used() {
    for latency in [0, 100, 298] {
        let world = World::new(settings(&[("a", 60)])).await;
        world.dps("a").weather(Weather::fair(latency));
        for number in 0..660 {
            world.queue(&format!("device-{number}")).await;
        }
        sleep(seconds(600)).await;
        let used = counted(world.dps("a")).iter().filter(|&&time| time < seconds(600)).count();
        assert!(used * 100 >= 600 * 99, "latency {latency} ms: {used} of 600 in ten minutes");
        assert_within_quota(world.dps("a"), 60, &format!("latency {latency} ms"));
    }
}

#[tokio::test(start_paused = true)]
async fn after_the_quota_is_lowered_nothing_is_sent_while_the_window_holds_the_new_quota() {
    // Some are between their durable mark and the wire when the quota changes.
    for held in [false, true] {
        let world = World::new(settings(&[("a", 100)])).await;
        for number in 0..40 {
            world.queue(&format!("device-{number}")).await;
        }
        sleep(millis(2_000)).await;
        world.store.hold_acks(held);
        sleep(seconds(2)).await;
        let mut lowered = (*world.gateway.settings()).clone();
        let instance = lowered.instances.values_mut().next().unwrap();
        (instance.quota_per_minute, instance.burst) = (5, 5);
        world.gateway.apply(lowered).await.unwrap();
        let changed = world.clock.elapsed();
        sleep(millis(1)).await;
        world.store.hold_acks(false);
        sleep(seconds(400)).await;
        let sent: Vec<Duration> =
            world.dps("a").sent().iter().filter(|sent| sent.call == Call::Register).map(|sent| sent.at).collect();
        assert!(sent.iter().any(|&at| at > changed), "the line goes on");
        for &at in sent.iter().filter(|&&at| at > changed) {
            let window = sent.iter().filter(|&&other| other < at && at - other < seconds(60)).count();
            assert!(window < 5, "held {held}: sent at {at:?} although the last minute already held {window}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_bucket_as_large_as_the_burst_is_never_overdrawn_by_restarts_and_changed_quotas() {
    let mut world = World::new(settings(&[("a", 60)])).await;
    for number in 0..200 {
        world.queue(&format!("device-{number}")).await;
    }
    for step in 0..6 {
        sleep(seconds(3)).await;
        if step % 2 == 0 {
            world.kill().await;
        } else {
            let mut changed = (*world.gateway.settings()).clone();
            changed.instances.values_mut().for_each(|instance| instance.quota_per_minute = 60 - step % 4);
            world.gateway.apply(changed).await.unwrap();
        }
    }
    sleep(seconds(120)).await;
    let overdrawn = bucket_overdrawn(&counted(world.dps("a")), 10, 60);
    assert!(overdrawn < 0.01, "a bucket of 10 lacked {overdrawn} tokens");
    assert!(counted(world.dps("a")).len() > 60);
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_is_being_written_down_when_dps_throttles_does_not_leave() {
    let mut rules = settings(&[("a", 60)]);
    rules.instances.values_mut().for_each(|instance| instance.burst = 1);
    let world = World::new(rules).await;
    let dps = world.dps("a");
    dps.weather(Weather::fair(1_500));
    dps.next(
        Call::Register,
        Fate::Answered {
            there: millis(750),
            back: millis(750),
            reply: Reply::Error { http_status: 429, error_code: Some(429_001), retry_after: Some(20) },
        },
    );
    world.queue("first").await;
    world.queue("second").await;
    // The second one leaves a second after the first; its mark is not on disk yet when the answer to the first one comes.
    sleep(millis(900)).await;
    world.store.hold_acks(true);
    sleep(millis(1_000)).await;
    assert_eq!(world.gateway.instances().await[0].counts.throttled, 1);
    world.store.sync();
    world.store.hold_acks(false);
    sleep(seconds(10)).await;
    assert_eq!(dps.count(Call::Register), 1);
    let record = world.record("second").await.unwrap();
    let (pending, why) = (record.pending().unwrap(), &record.timeline().last().unwrap().what);
    assert_eq!((&pending.stage, pending.attempts), (&Stage::Waiting, 0), "{why}");
    assert!(why.contains("DPS throttled"), "{why}");
    world.settle(world.ask("first")).await;
    world.settle(world.ask("second")).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_still_connects_when_its_instance_gets_another_endpoint_goes_there_instead() {
    let rules = settings(&[("a", 60)]);
    let world = World::new(rules.clone()).await;
    world.settle(world.ask("first")).await;
    world.dps("a").connects_in(seconds(5));
    world.queue("second").await;
    sleep(seconds(1)).await;
    let mut elsewhere = rules;
    elsewhere.instances.values_mut().for_each(|instance| instance.endpoint = "https://other.example".to_owned());
    world.gateway.apply(elsewhere).await.unwrap();
    // Whoever answers at the new endpoint is not reached yet.
    world.dps("a").reachable(false);
    sleep(seconds(5)).await;
    assert_eq!(world.dps("a").count(Call::Register), 1, "the old endpoint never hears of it");
    world.dps("a").reachable(true);
    world.settle(world.ask("second")).await;
    let timeline = format!("{:?}", world.record("second").await.unwrap().timeline());
    assert!(timeline.contains("the settings of the instance changed before the call was sent"), "{timeline}");
    assert_eq!(world.dps("a").count(Call::Register), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_still_connects_when_the_service_stops_does_not_leave() {
    let mut world = World::new(settings(&[("a", 60)])).await;
    world.settle(world.ask("first")).await;
    world.dps("a").connects_in(seconds(5));
    world.queue("second").await;
    sleep(seconds(1)).await;
    let stopped = world.gateway.stop(seconds(20)).await;
    assert_eq!((stopped.left_with_dps, stopped.unwritten), (0, 0));
    assert_eq!(world.dps("a").count(Call::Register), 1, "nothing leaves after the stop began");
    world.kill().await;
    world.settle(world.ask("second")).await;
    let timeline = format!("{:?}", world.record("second").await.unwrap().timeline());
    assert!(timeline.contains("the service stopped before the call was sent"), "{timeline}");
    assert_eq!((world.dps("a").count(Call::Register), world.dps("a").count(Call::Lookup)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_moved_or_retired_while_its_call_connects_is_not_registered_where_it_was() {
    for is_moved in [true, false] {
        let world = World::new(settings(&[("a", 60), ("b", 60)])).await;
        // Both know the time, and connect at once for it.
        sleep(seconds(1)).await;
        ["a", "b"].iter().for_each(|side| world.dps(side).connects_in(seconds(5)));
        world.queue("device-1").await;
        sleep(seconds(1)).await;
        let at = world.record("device-1").await.unwrap().pending().unwrap().instance.clone();
        let other = if at.as_str() == "a" { "b" } else { "a" };
        if is_moved {
            world.gateway.move_to(&id("device-1"), &name(other)).await.unwrap();
        } else {
            world.gateway.retire(&id("device-1"), false).await.unwrap();
        }
        sleep(seconds(30)).await;
        let registered = |side: &str| world.dps(side).count(Call::Register);
        assert_eq!((registered(at.as_str()), registered(other)), (0, usize::from(is_moved)));
        let views = world.gateway.instances().await;
        assert!(views.iter().all(|view| (view.under_way, view.line_length) == (0, 0)), "{views:?}");
        if is_moved {
            assert_eq!(world.hub("device-1").await, format!("hub-{other}.azure-devices.net"));
        }
    }
}
