//! Devices that change their place while an instance fails: booked on a sibling, brought home, and never in two lines at once.

use std::sync::Arc;

use proxy_core::gateway::Gateway;
use proxy_core::gateway::operator::InstanceView;
use proxy_core::ids::RegistrationId;
use proxy_core::settings::Settings;
use tokio::task::JoinHandle;

use crate::support::{World, id, millis, name, seconds, settings, sleep};

fn view(world: &World, instance: &str) -> InstanceView {
    world.gateway.instances().into_iter().find(|view| view.name == name(instance)).unwrap()
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
        let pending = world.record(device).await.and_then(|record| record.pending);
        if pending.is_some_and(|pending| pending.instance == name(instance)) {
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
    let line = view(&world, "a");
    assert_eq!(line.line_length + line.under_way, at_a.len(), "places in the line, devices that have one");
}

#[tokio::test(start_paused = true)]
async fn an_operator_who_hangs_up_leaves_no_ghosts_behind() {
    type Wish = fn(Arc<Gateway>, RegistrationId) -> JoinHandle<bool>;
    let wishes: [Wish; 4] = [
        |gateway, id| tokio::spawn(async move { gateway.block(&id, None).await.is_ok() }),
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
        let (line, there) = (view(&world, instance), waiting_at(&world, &all, instance).await);
        assert!(there.len() > 10, "{instance} has {}", there.len());
        assert_eq!(line.line_length + line.under_way, there.len(), "{instance}");
    }
}
