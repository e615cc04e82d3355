//! The owner of the lines is far away, and everything else goes on while it is asked.

use std::time::Duration;

use proxy_core::use_cases::provision::{Outcome, ProvisionError};

use crate::support::{World, instance, millis, name, seconds, settings, sleep};

const WAY: Duration = Duration::from_millis(40);

/// As many devices ask at once. What each is told.
async fn ask_at_once(world: &World, count: usize) -> Vec<Result<Outcome, ProvisionError>> {
    let asks = (0..count).map(|number| world.provision(world.ask(&format!("device-{number}"))));
    futures_util::future::join_all(asks).await
}

#[tokio::test(start_paused = true)]
async fn an_instance_takes_as_many_devices_as_it_may_hold_however_many_join_at_once() {
    let mut rules = settings(&[("a", 60)]);
    rules.instances.insert(name("a"), proxy_core::settings::Instance { capacity: 5, ..instance("0nea", 60) });
    let world = World::far_from_the_owner(rules, WAY).await;
    let told = ask_at_once(&world, 20).await;
    let queued = told.iter().filter(|told| matches!(told, Ok(Outcome::Queued(_)))).count();
    let no_room = told.iter().filter(|told| matches!(told, Err(ProvisionError::NoRoom(_)))).count();
    assert_eq!((queued, no_room), (5, 15), "{told:?}");
    assert_eq!(world.gateway.instances().await[0].registered_count, 5);
}

#[tokio::test(start_paused = true)]
async fn a_line_that_fills_up_meanwhile_sends_devices_on_to_one_that_has_room() {
    let mut rules = settings(&[("a", 60), ("b", 60)]);
    rules.line.length_max = 3;
    // All choose it, as long as its line is not known to be full.
    rules.instances.get_mut(&name("a")).unwrap().weight = 1_000;
    let world = World::far_from_the_owner(rules, WAY).await;
    for told in ask_at_once(&world, 6).await {
        assert!(matches!(told, Ok(Outcome::Queued(_))), "{told:?}");
    }
    for number in 0..6 {
        world.settle(world.ask(&format!("device-{number}"))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_hangs_up_on_its_way_into_line_has_its_place_or_leaves_nothing_behind() {
    let world = World::far_from_the_owner(settings(&[("a", 60)]), WAY).await;
    world.dps("a").reachable(false);
    for number in 0..40 {
        let patience = millis(number * 10);
        let asked = world.provision(world.ask(&format!("device-{number}")));
        let _hung_up = tokio::time::timeout(patience, asked).await;
    }
    sleep(seconds(1)).await;
    let mut on_disk = 0;
    for number in 0..40 {
        on_disk += usize::from(world.record(&format!("device-{number}")).await.is_some());
    }
    let view = world.gateway.instances().await.remove(0);
    assert!(on_disk > 10 && on_disk < 40, "{on_disk} came into line");
    assert_eq!((view.line_length + view.under_way, view.registered_count), (on_disk, on_disk as u64));
    world.dps("a").reachable(true);
    for number in 0..40 {
        world.settle(world.ask(&format!("device-{number}"))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_storm_drains_at_the_quota_and_nobody_loses_a_place() {
    let world = World::far_from_the_owner(settings(&[("a", 60)]), WAY).await;
    let asks = (0..120).map(|number| world.settle(world.ask(&format!("device-{number}"))));
    let settled = futures_util::future::join_all(asks).await;
    assert!(settled.iter().all(|(hub, _)| hub == "hub-a.azure-devices.net"));
    assert!(world.clock.elapsed() < seconds(160), "{:?}", world.clock.elapsed());
}
