//! Tasks that die: what they held is not lost, the rest goes on, and what cannot be mended is told.

use proxy_core::supervise::Task;

use crate::support::dps::{Call, Fate};
use crate::support::judge::assert_within_quota;
use crate::support::{World, name, seconds, settings, sleep};

fn dispatcher(instance: &str) -> Task {
    Task::of("dispatcher", &name(instance))
}

fn deaths(world: &World, task: &str) -> u64 {
    world.gateway.supervisor().deaths()[task]
}

async fn is_up(world: &World, instance: &str) -> bool {
    let views = world.gateway.instances().await;
    views.iter().find(|view| view.name == name(instance)).unwrap().dispatcher_up
}

#[tokio::test(start_paused = true)]
async fn a_dispatcher_that_dies_is_begun_anew_and_its_line_goes_on() {
    let world = World::new(settings(&[("a", 60)])).await;
    for death in 1..=3 {
        world.clock.kill_task(dispatcher("a"));
        let (_, requests) = world.settle(world.ask(&format!("device-{death}"))).await;
        assert!(requests <= 2, "the line is served as ever: {requests}");
        assert_eq!((deaths(&world, "dispatcher"), is_up(&world, "a").await), (death, true));
        // Not twice within a minute.
        sleep(seconds(61)).await;
    }
    assert_eq!(world.gateway.supervisor().fault(), None);
}

#[tokio::test(start_paused = true)]
async fn a_dispatcher_that_dies_twice_within_a_minute_is_given_up_while_known_devices_and_other_instances_go_on() {
    let world = World::new(settings(&[("a", 60), ("b", 60)])).await;
    let hub = world.settle(world.ask("known")).await.0;
    for _ in 0..2 {
        world.clock.kill_task(dispatcher("a"));
    }
    let mut at_b = 0;
    for number in 0..6 {
        world.queue(&format!("device-{number}")).await;
    }
    let reason = world.gateway.supervisor().failed().await;
    assert!(reason.contains("instance a panicked twice"), "{reason}");
    assert_eq!((is_up(&world, "a").await, is_up(&world, "b").await, deaths(&world, "dispatcher")), (false, true, 2));
    sleep(seconds(30)).await;
    assert_eq!(world.hub("known").await, hub);
    for number in 0..6 {
        let record = world.record(&format!("device-{number}")).await.unwrap();
        match record.pending() {
            Some(pending) => assert_eq!(pending.instance, name("a"), "the other line is served"),
            None => at_b += u32::from(record.assignment().unwrap().instance == name("b")),
        }
    }
    assert!(at_b > 0, "some were placed on the other instance");
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_dies_keeps_its_place_and_its_slot_is_held_as_if_its_answer_were_lost() {
    let world = World::new(settings(&[("a", 3)])).await;
    world.dps("a").next_of(Call::Register, "device-1", Fate::Dies);
    world.queue("device-1").await;
    sleep(seconds(1)).await;
    assert_eq!(deaths(&world, "registration"), 1);
    let view = &world.gateway.instances().await[0];
    assert_eq!((view.under_way, view.line_length, view.budget), (0, 1, 2), "one slot is held");
    assert!(is_up(&world, "a").await, "it is not the dispatcher that died");
    // Whether anything was sent is asked before anything is sent again.
    let (_, requests) = world.settle(world.ask("device-1")).await;
    assert!(requests <= 3, "{requests}");
    assert_eq!(world.dps("a").count_of(Call::Lookup, "device-1"), 1);
    assert_eq!(world.dps("a").count_of(Call::Register, "device-1"), 1, "of the one that died nothing left");
    assert_within_quota(world.dps("a"), 3, "a registration that died");
    // A lost answer holds its slot for 90.1 s, the two calls for 60.1 s each.
    sleep(seconds(100)).await;
    assert_eq!(world.gateway.instances().await[0].budget, 3);
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_dies_is_begun_anew_and_nothing_is_registered_twice() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.dps("a").next_of(Call::Poll, "device-1", Fate::Dies);
    world.settle(world.ask("device-1")).await;
    assert_eq!((deaths(&world, "registration"), world.dps("a").count(Call::Register)), (1, 1));
    assert_eq!(world.gateway.instances().await[0].under_way, 0);
}

#[tokio::test(start_paused = true)]
async fn tasks_that_nobody_waits_for_are_begun_anew_too() {
    let world = World::new(settings(&[("a", 60)])).await;
    for death in 1..=3 {
        world.clock.kill_task(Task::new("relief"));
        world.clock.kill_task(Task::new("feed-pruning"));
        // Both run once a minute at least, and wait a minute after a second death.
        sleep(seconds(200)).await;
        assert_eq!((deaths(&world, "relief"), deaths(&world, "feed-pruning")), (death, death));
    }
    assert_eq!(world.gateway.supervisor().fault(), None);
    world.settle(world.ask("device-1")).await;
}
