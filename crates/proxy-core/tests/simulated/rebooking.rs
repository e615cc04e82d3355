//! Devices that change their place while an instance fails: booked on a sibling, brought home, and never in two lines at once.

use std::sync::Arc;
use std::time::Duration;

use proxy_core::device::Record;
use proxy_core::gateway::Gateway;
use proxy_core::ids::{RegistrationId, TenantName};
use proxy_core::settings::{DeviceAttestation, Membership, Settings};
use proxy_core::use_cases::operator::InstanceView;
use proxy_core::use_cases::provision::Outcome;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::support::dps::{Call, Weather};
use crate::support::judge::{assert_within_quota, two_at_once};
use crate::support::{Ask, World, enrollment, enrollment_name, id, millis, name, seconds, settings, sleep};

async fn view(world: &World, instance: &str) -> InstanceView {
    world.gateway.instances().await.into_iter().find(|view| view.name == name(instance)).unwrap()
}

/// Instances that get as many devices each, whatever their quotas.
fn even(instances: &[(&str, u32)]) -> Settings {
    let mut rules = settings(instances);
    rules.instances.values_mut().for_each(|instance| instance.weight = 1);
    rules
}

fn devices(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("device-{number:04}")).collect()
}

/// Those of `devices` whose record says that they wait at `instance`.
async fn waiting_at(world: &World, devices: &[String], instance: &str) -> Vec<String> {
    let mut waiting = Vec::new();
    for device in devices {
        let record = world.record(device).await;
        if record.as_ref().and_then(Record::pending).is_some_and(|pending| pending.instance == name(instance)) {
            waiting.push(device.clone());
        }
    }
    waiting
}

/// Lets every request get as far as its commit, cuts it off there, and only then lets the disk finish.
async fn cut_off_during_the_fsync<T>(world: &World, requests: Vec<JoinHandle<T>>) {
    sleep(millis(500)).await;
    for request in requests {
        request.abort();
        assert!(request.await.is_err(), "it must still wait for the disk");
    }
    world.store.hold_acks(false);
    sleep(millis(500)).await;
}

#[tokio::test(start_paused = true)]
async fn devices_that_hang_up_while_they_are_booked_elsewhere_leave_no_ghosts_behind() {
    let world = World::new(even(&[("a", 60), ("b", 6000)])).await;
    world.dps("a").reachable(false);
    let all = devices(800);
    for device in &all {
        world.queue(device).await;
    }
    let at_a = waiting_at(&world, &all, "a").await;
    assert_eq!(at_a.len(), 400);
    sleep(seconds(29)).await;
    world.store.hold_acks(true);
    sleep(seconds(3)).await;
    let asks: Vec<_> =
        at_a.iter().map(|device| tokio::spawn(world.ask(device).of(Arc::clone(&world.gateway)))).collect();
    sleep(millis(500)).await;
    // Whoever tries the instance at this moment is told its own place at once.
    let (held, told): (Vec<_>, Vec<_>) = asks.into_iter().partition(|ask| !ask.is_finished());
    assert!(told.len() <= 4, "{} of 400 were not booked elsewhere", told.len());
    cut_off_during_the_fsync(&world, held).await;
    let at_a = waiting_at(&world, &all, "a").await;
    let line = view(&world, "a").await;
    assert_eq!(line.line_length + line.under_way, at_a.len(), "places in the line, devices that have one");
}

#[tokio::test(start_paused = true)]
async fn an_operator_who_hangs_up_leaves_no_ghosts_behind() {
    type Wish = fn(Arc<Gateway>, RegistrationId) -> JoinHandle<bool>;
    let wishes: [Wish; 4] = [
        |gateway, id| tokio::spawn(async move { gateway.block(&id, "ops", None).await.is_ok() }),
        |gateway, id| tokio::spawn(async move { gateway.retire(&id, false).await.is_ok() }),
        |gateway, id| tokio::spawn(async move { gateway.move_to(&id, &name("b")).await.is_ok() }),
        |gateway, id| tokio::spawn(async move { gateway.expedite(&id).await.is_ok() }),
    ];
    let mut rules = even(&[("a", 60), ("b", 60)]);
    rules.instances.get_mut(&name("b")).unwrap().external_count = 1_000;
    let world = World::new(rules).await;
    world.dps("a").reachable(false);
    world.dps("b").reachable(false);
    let all = devices(80);
    for device in &all {
        world.queue(device).await;
    }
    // The first ones may be trying.
    world.store.hold_acks(true);
    let requests: Vec<_> = all[10..]
        .iter()
        .zip(wishes.iter().cycle())
        .map(|(device, wish)| wish(Arc::clone(&world.gateway), id(device)))
        .collect();
    cut_off_during_the_fsync(&world, requests).await;
    for instance in ["a", "b"] {
        let (line, there) = (view(&world, instance).await, waiting_at(&world, &all, instance).await);
        assert!(there.len() > 10, "{instance} has {}", there.len());
        assert_eq!(line.line_length + line.under_way, there.len(), "{instance}");
    }
}

/// A device that comes back whenever it was told to, until it has its hub.
async fn live(gateway: Arc<Gateway>, ask: Ask) {
    loop {
        match ask.clone().of(Arc::clone(&gateway)).await.unwrap() {
            Outcome::Assigned(_) => return,
            Outcome::Queued(queued) => sleep(seconds(queued.retry_after_seconds)).await,
        }
    }
}

/// 600 devices each wait at `a` and `b`; `a` answers 500 for a minute, from 20 s on. When everybody is assigned.
async fn drained_after_an_outage(quotas: (u32, u32)) -> Duration {
    let world = World::new(even(&[("a", quotas.0), ("b", quotas.1)])).await;
    let all = devices(1200);
    for device in &all {
        world.queue(device).await;
    }
    let began = Instant::now();
    let lives: Vec<_> =
        all.iter().map(|device| tokio::spawn(live(Arc::clone(&world.gateway), world.ask(device)))).collect();
    sleep(seconds(20)).await;
    world.dps("a").weather(Weather { failing: 1000, ..Weather::fair(100) });
    sleep(seconds(60)).await;
    world.dps("a").weather(Weather::fair(100));
    let (mut drained, mut moved) = (None, 0);
    while drained.is_none() {
        sleep(seconds(1)).await;
        let left: usize =
            [view(&world, "a").await, view(&world, "b").await].iter().map(|v| v.line_length + v.under_way).sum();
        drained = (left == 0).then(|| began.elapsed());
    }
    for one in lives {
        one.await.unwrap();
    }
    for device in &all {
        moved += usize::from(
            world.record(device).await.unwrap().timeline().iter().any(|event| event.what.contains("booked on")),
        );
    }
    let at: Vec<u64> = [view(&world, "a").await, view(&world, "b").await].map(|view| view.counts.assigned).into();
    println!(
        "outage of 60 s, quotas {quotas:?}: drained after {drained:?}; {moved} devices booked elsewhere; assigned {at:?}"
    );
    assert_within_quota(world.dps("a"), quotas.0, "a");
    assert_within_quota(world.dps("b"), quotas.1, "b");
    drained.unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_not_made_longer_by_a_sibling_that_is_slower() {
    // The sibling's own 600 devices take 300 s.
    let drained = Box::pin(drained_after_an_outage((600, 120))).await;
    assert!(drained <= seconds(320), "{drained:?}");
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_both_of_two_equal_instances_work_until_everybody_is_done() {
    let drained = Box::pin(drained_after_an_outage((600, 600))).await;
    assert!(drained <= seconds(125), "{drained:?}");
}

/// So many devices wait at `a`, which cannot be reached, and `b` takes one in ten seconds.
async fn stuck_beside_a_slow_sibling(count: usize) -> (World, Vec<String>) {
    let mut rules = even(&[("a", 60), ("b", 6)]);
    rules.instances.get_mut(&name("b")).unwrap().external_count = 900_000;
    let world = World::new(rules).await;
    world.dps("a").reachable(false);
    let all = devices(count);
    for device in &all {
        world.queue(device).await;
    }
    (world, all)
}

#[tokio::test(start_paused = true)]
async fn devices_that_were_booked_elsewhere_come_home_to_their_old_places() {
    for killed in [false, true] {
        let (mut world, all) = stuck_beside_a_slow_sibling(60).await;
        sleep(seconds(100)).await;
        for device in &all {
            let _ = world.provision(world.ask(device)).await.unwrap();
        }
        let away = waiting_at(&world, &all, "b").await;
        assert!(away.len() >= 5, "{} are at the sibling", away.len());
        if killed {
            world.kill().await;
        }
        world.dps("a").reachable(true);
        sleep(seconds(400)).await;
        let order: Vec<String> =
            world.dps("a").sent().into_iter().filter(|sent| sent.call == Call::Register).map(|sent| sent.id).collect();
        let home: Vec<&String> = away.iter().filter(|device| order.contains(device)).collect();
        assert!(home.len() * 2 > away.len(), "{} of {} came home", home.len(), away.len());
        // The first ones were booked elsewhere; they go again before those that stood behind them, but for the few that had left already.
        let last_home = order.iter().rposition(|id| home.contains(&id)).unwrap();
        let tries = order.iter().filter(|id| order.iter().filter(|other| other == id).count() > 1).count();
        let before = order[..last_home].iter().filter(|id| !home.contains(id)).count();
        assert!(before <= tries + 25, "killed: {killed}; {before} of those behind went first");
        for device in &all {
            assert!(world.record(device).await.unwrap().assignment().is_some(), "{device}");
        }
        assert_eq!((view(&world, "a").await.line_length, view(&world, "b").await.line_length), (0, 0));
        assert_eq!(two_at_once(world.dps("a")).or(two_at_once(world.dps("b"))), None);
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_comes_and_goes_does_not_keep_devices_moving() {
    let (world, all) = stuck_beside_a_slow_sibling(300).await;
    for _ in 0..20 {
        world.dps("a").reachable(false);
        sleep(seconds(60)).await;
        for device in &all {
            let _ = world.provision(world.ask(device)).await.unwrap();
        }
        world.dps("a").reachable(true);
        sleep(seconds(8)).await;
    }
    let mut most = 0;
    for device in &all {
        let timeline = world.record(device).await.unwrap().timeline().to_vec();
        most = most.max(timeline.iter().filter(|event| event.what.contains("booked on")).count());
    }
    assert!((1..=4).contains(&most), "a device was booked elsewhere {most} times");
}

#[tokio::test(start_paused = true)]
async fn devices_that_have_to_stay_do_not_keep_those_of_other_tenants_from_a_sibling() {
    let mut rules = even(&[("a", 600), ("b", 600)]);
    let audience = |side: &str| DeviceAttestation::SasToken {
        audiences: [format!("{side}.example")].into(),
        membership: Membership::Signature,
    };
    for (side, instances) in [("aa", vec!["a"]), ("zz", vec!["a", "b"])] {
        let mut group = enrollment();
        (group.tenant, group.device) = (TenantName::parse(side).unwrap(), audience(side));
        group.instances = instances.into_iter().map(name).collect();
        rules.enrollments.insert(enrollment_name(side), group);
    }
    rules.instances.get_mut(&name("b")).unwrap().external_count = 900_000;
    let world = World::new(rules).await;
    world.dps("a").reachable(false);
    for (side, count) in [("aa", 600), ("zz", 20)] {
        for number in 0..count {
            world.provision(world.ask_of(&format!("{side}-{number}"), &format!("{side}.example"))).await.unwrap();
        }
    }
    sleep(seconds(60)).await;
    assert_eq!(view(&world, "b").await.counts.assigned, 20, "all that may go to the sibling");
}
