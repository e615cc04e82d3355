//! Instances that fail: who waits, who is booked elsewhere, who must not be, and how an instance comes back.

use proxy_core::device::{Record, Stage};
use proxy_core::use_cases::operator::InstanceView;
use rate_control::circuit_breaker::CircuitState;
use rate_control::time::{Clock, WallTime};

use crate::support::clock::Dice;
use crate::support::dps::{Call, Fate, Weather};
use crate::support::judge::{assert_within_quota, two_at_once};
use crate::support::{World, millis, name, seconds, settings, sleep};

async fn view(world: &World, instance: &str) -> InstanceView {
    world.gateway.instances().await.into_iter().find(|view| view.name == name(instance)).unwrap()
}

fn instance_of(record: &Record) -> String {
    record.pending().unwrap().instance.to_string()
}

/// So many devices ask once; the registration IDs of those that were placed at `instance`.
async fn queue_at(world: &World, devices: u32, instance: &str) -> Vec<String> {
    let mut placed = Vec::new();
    for number in 0..devices {
        let device = format!("device-{number}");
        world.queue(&device).await;
        let record = world.record(&device).await.unwrap();
        if record.pending().is_some() && instance_of(&record) == instance {
            placed.push(device);
        }
    }
    placed
}

/// The next pause between two tries at an instance that fails.
async fn paused_until(world: &World, instance: &str) -> WallTime {
    for _ in 0..1_000 {
        if let Some(until) = view(world, instance).await.paused_until {
            return until;
        }
        sleep(millis(100)).await;
    }
    panic!("{instance} is tried all the time");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_dies_in_mid_drain_loses_those_that_nothing_was_sent_for_and_keeps_the_others() {
    let mut rules = settings(&[("a", 60), ("b", 600)]);
    rules.instances.values_mut().for_each(|instance| instance.weight = 1);
    let world = World::new(rules).await;
    // What is accepted now is still being worked on when the instance dies.
    world.dps("a").assigning(seconds(100));
    let at_a = queue_at(&world, 400, "a").await;
    sleep(seconds(30)).await;
    world.dps("a").reachable(false);
    sleep(millis(200)).await;
    let mut begun = Vec::new();
    for device in &at_a {
        let stage = world.record(device).await.unwrap().pending().unwrap().stage.clone();
        if stage != Stage::Waiting {
            begun.push(device.clone());
        }
    }
    assert!(begun.len() > 20, "{}", begun.len());
    sleep(seconds(40)).await;
    for device in &at_a {
        // Whoever comes back is booked on the instance that works, which has it sooner; its place is new, and durable before it is told.
        let _ = world.provision(world.ask(device)).await.unwrap();
        let record = world.record(device).await.unwrap();
        let there = record.pending().is_none() || instance_of(&record) == "b";
        assert_ne!(there, begun.contains(device), "{device}: {:?}", record.timeline());
    }
    assert_eq!(view(&world, "a").await.registered_count, begun.len() as u64, "capacity follows");
    world.dps("a").reachable(true);
    sleep(seconds(900)).await;
    assert_within_quota(world.dps("b"), 600, "b");
    for number in 0..400 {
        let device = format!("device-{number}");
        let hub = world.hub(&device).await;
        assert!(hub.starts_with("hub-a") || !begun.contains(&device), "{device} is at {hub}");
    }
    assert_eq!(two_at_once(world.dps("a")).or(two_at_once(world.dps("b"))), None);
    assert_within_quota(world.dps("a"), 60, "a");
}

#[tokio::test(start_paused = true)]
async fn an_idle_instance_takes_over_the_line_of_one_that_fails_without_being_asked() {
    let world = World::new(settings(&[("a", 60), ("b", 600)])).await;
    world.dps("a").reachable(false);
    queue_at(&world, 110, "a").await;
    sleep(seconds(120)).await;
    let told: Vec<(u64, usize)> =
        [view(&world, "a").await, view(&world, "b").await].map(|view| (view.counts.assigned, view.line_length)).into();
    assert_eq!(told, [(0, 0), (110, 0)]);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_works_again_after_its_line_was_emptied_gets_devices_again() {
    let world = World::new(settings(&[("a", 60), ("b", 60)])).await;
    world.dps("a").reachable(false);
    queue_at(&world, 20, "a").await;
    sleep(seconds(200)).await;
    assert_eq!((view(&world, "a").await.line_length, view(&world, "b").await.counts.assigned), (0, 20));
    world.dps("a").reachable(true);
    for number in 100..140 {
        world.queue(&format!("device-{number}")).await;
        sleep(seconds(2)).await;
    }
    let at_a = view(&world, "a").await;
    assert!(at_a.counts.assigned > 10 && at_a.breaker == CircuitState::Closed, "{at_a:?}");
}

#[tokio::test(start_paused = true)]
async fn devices_with_an_unknown_outcome_at_the_front_do_not_keep_those_behind_from_a_sibling() {
    let world = World::new(settings(&[("a", 600), ("b", 120)])).await;
    let at_a = queue_at(&world, 700, "a").await;
    sleep(seconds(5)).await;
    // Whatever is sent is lost, and comes back to the front to be looked up.
    world.dps("a").weather(Weather { lost: 1000, ..Weather::fair(100) });
    sleep(seconds(600)).await;
    let mut left = 0;
    for device in &at_a {
        let record = world.record(device).await.unwrap();
        left += usize::from(record.pending().is_some_and(|pending| pending.attempts == 0));
    }
    assert_eq!(left, 0, "{left} of {} wait although nothing was sent for them", at_a.len());
}

#[tokio::test(start_paused = true)]
async fn a_device_whose_outcome_is_unknown_is_never_sent_to_another_instance() {
    let world = World::new(settings(&[("a", 60), ("b", 60)])).await;
    // DPS's clock is known once it has been heard of.
    for number in 100..140 {
        world.settle(world.ask(&format!("device-{number}"))).await;
    }
    for side in ["a", "b"] {
        world.dps(side).next_of(Call::Register, "device-0", Fate::lost_after_commit());
    }
    let first = queue_at(&world, 1, "a").await;
    let on = if first.is_empty() { "b" } else { "a" };
    sleep(seconds(1)).await;
    world.dps(on).reachable(false);
    sleep(seconds(300)).await;
    world.queue("device-0").await;
    assert_eq!(instance_of(&world.record("device-0").await.unwrap()), on);
    world.dps(on).reachable(true);
    sleep(seconds(200)).await;
    assert_eq!(world.hub("device-0").await, format!("hub-{on}.azure-devices.net"));
    assert_eq!(world.dps(on).count_of(Call::Register, "device-0"), 1, "it was looked up");
}

#[tokio::test(start_paused = true)]
async fn new_devices_go_to_instances_that_work_and_to_one_that_fails_if_there_is_no_other() {
    let world = World::new(settings(&[("a", 60), ("b", 60)])).await;
    world.dps("a").reachable(false);
    queue_at(&world, 20, "a").await;
    sleep(seconds(60)).await;
    for number in 100..110 {
        let device = format!("device-{number}");
        world.queue(&device).await;
        assert_eq!(instance_of(&world.record(&device).await.unwrap()), "b");
    }
    world.dps("b").reachable(false);
    sleep(seconds(120)).await;
    let queued = world.queue("device-200").await;
    assert!(queued.retry_after_seconds >= 1);
    world.dps("a").reachable(true);
    world.dps("b").reachable(true);
    sleep(seconds(300)).await;
    for number in (0..20).chain(100..110).chain([200]) {
        world.hub(&format!("device-{number}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn all_instances_down_and_back_costs_nobody_a_place_and_known_devices_nothing() {
    let world = World::new(settings(&[("a", 120), ("b", 120)])).await;
    world.settle(world.ask("known")).await;
    for side in ["a", "b"] {
        world.dps(side).reachable(false);
    }
    for number in 0..200 {
        world.queue(&format!("device-{number}")).await;
    }
    sleep(seconds(600)).await;
    let on = instance_of(&world.record("device-7").await.unwrap());
    let until = paused_until(&world, &on).await;
    let calls = world.dps("a").calls() + world.dps("b").calls();
    world.hub("known").await;
    let queued = world.queue("device-7").await;
    assert_eq!(world.dps("a").calls() + world.dps("b").calls(), calls);
    // An honest time: not before the next try.
    assert!(queued.appointment >= until, "{queued:?} {until:?}");
    for side in ["a", "b"] {
        world.dps(side).reachable(true);
    }
    sleep(seconds(300)).await;
    for number in 0..200 {
        world.hub(&format!("device-{number}")).await;
    }
    for side in ["a", "b"] {
        assert_within_quota(world.dps(side), 120, side);
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_comes_back_is_tried_with_one_device_and_then_ramped_up() {
    let mut rules = settings(&[("a", 600)]);
    rules.instances.get_mut(&name("a")).unwrap().burst = 100;
    let world = World::new(rules).await;
    world.dps("a").weather(Weather { failing: 1000, ..Weather::fair(400) });
    for number in 0..300 {
        world.queue(&format!("device-{number}")).await;
    }
    sleep(seconds(400)).await;
    // While everything fails, calls go out one at a time.
    let sent = world.dps("a").sent();
    let late: Vec<_> = sent.iter().filter(|sent| sent.at > seconds(10)).collect();
    assert!(late.len() > 3, "{} tries", late.len());
    for pair in late.windows(2) {
        assert!(pair[0].ended.is_some_and(|ended| ended <= pair[1].at), "two at once: {pair:?}");
    }
    world.dps("a").weather(Weather::fair(400));
    let healed = world.clock.elapsed();
    sleep(seconds(200)).await;
    let sent: Vec<_> =
        world.dps("a").sent().into_iter().filter(|sent| sent.call == Call::Register && sent.at > healed).collect();
    let out_at =
        |moment| sent.iter().filter(|sent| sent.at <= moment && sent.ended.is_none_or(|end| end > moment)).count();
    let first_answer = sent[0].ended.unwrap();
    assert_eq!(out_at(sent[0].at), 1);
    assert!(out_at(first_answer + millis(10)) <= 2, "{}", out_at(first_answer + millis(10)));
    assert!(out_at(first_answer + millis(450)) <= 4);
    assert_eq!(view(&world, "a").await.breaker, CircuitState::Closed);
    assert_within_quota(world.dps("a"), 600, "a");
}

#[tokio::test(start_paused = true)]
async fn trouble_drawn_from_seeds_leaves_everybody_assigned_once_it_is_over() {
    for seed in 1..=6 {
        let world = World::seeded(settings(&[("a", 90), ("b", 60), ("c", 30)]), seed).await;
        let mut dice = Dice::new(seed);
        for number in 0..250 {
            world.queue(&format!("device-{number}")).await;
        }
        for _ in 0..12 {
            let side = ["a", "b", "c"][usize::try_from(dice.below(3)).unwrap()];
            match dice.below(3) {
                0 => world.dps(side).reachable(false),
                1 => world.dps(side).weather(Weather::foul()),
                _ => {
                    world.dps(side).reachable(true);
                    world.dps(side).weather(Weather::fair(100));
                }
            }
            sleep(dice.millis(1_000, 60_000)).await;
        }
        for side in ["a", "b", "c"] {
            world.dps(side).reachable(true);
            world.dps(side).weather(Weather::fair(100));
        }
        sleep(seconds(900)).await;
        for number in 0..250 {
            world.settle(world.ask(&format!("device-{number}"))).await;
        }
        for (side, quota) in [("a", 90), ("b", 60), ("c", 30)] {
            assert_within_quota(world.dps(side), quota, &format!("seed {seed}, {side}"));
            assert_eq!(two_at_once(world.dps(side)), None, "seed {seed}, {side}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_outage_delayed_does_not_make_the_appointments_after_it_late() {
    let world = World::new(settings(&[("a", 300)])).await;
    world.dps("a").assigning(seconds(8));
    for number in 0..500 {
        world.queue(&format!("device-{number}")).await;
    }
    sleep(seconds(20)).await;
    world.dps("a").weather(Weather { failing: 1000, ..Weather::fair(100) });
    sleep(seconds(120)).await;
    world.dps("a").weather(Weather::fair(100));
    while view(&world, "a").await.breaker != CircuitState::Closed {
        sleep(seconds(1)).await;
    }
    let mut told = Vec::new();
    while let Some(drained_at) = view(&world, "a").await.drained_at {
        told.push((drained_at, world.clock.elapsed()));
        sleep(seconds(1)).await;
    }
    let done = world.clock.now().wall.after(seconds(9));
    let (late, at) = told.iter().map(|(told, at)| (told.since(done), at)).max().unwrap();
    assert!(told.len() > 50 && late < seconds(10), "told to be done {late:?} after it was, at {at:?}");
}

#[tokio::test(start_paused = true)]
async fn polls_that_succeed_do_not_hide_that_registrations_fail() {
    let world = World::new(settings(&[("a", 600)])).await;
    world.dps("a").assigning(seconds(60));
    queue_at(&world, 40, "a").await;
    sleep(seconds(10)).await;
    for _ in 0..1000 {
        world.dps("a").next(Call::Register, Fate::error(500, Some(500_001)));
    }
    for number in 100..140 {
        world.queue(&format!("device-{number}")).await;
    }
    sleep(seconds(45)).await;
    for _ in 0..20 {
        sleep(seconds(1)).await;
        let now = view(&world, "a").await;
        assert!(now.breaker != CircuitState::Closed && now.consecutive_failures >= 2, "{:?}", now.breaker);
    }
    assert!(view(&world, "a").await.counts.assigned >= 40, "the polls succeeded");
}

#[tokio::test(start_paused = true)]
async fn polls_that_were_put_off_go_on_soon_after_the_instance_works_again() {
    let mut rules = settings(&[("a", 600)]);
    (rules.registration.poll_interval_max, rules.registration.backoff_max) = (seconds(300), seconds(5));
    let world = World::new(rules).await;
    world.dps("a").assigning(seconds(10));
    queue_at(&world, 30, "a").await;
    sleep(seconds(5)).await;
    world.dps("a").reachable(false);
    for number in 100..130 {
        world.queue(&format!("device-{number}")).await;
    }
    sleep(seconds(200)).await;
    world.dps("a").reachable(true);
    while view(&world, "a").await.breaker != CircuitState::Closed {
        sleep(seconds(1)).await;
    }
    sleep(seconds(12)).await;
    assert!(view(&world, "a").await.counts.assigned >= 30, "{} assigned", view(&world, "a").await.counts.assigned);
}
