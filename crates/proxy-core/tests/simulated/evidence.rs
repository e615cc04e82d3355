//! What the end of a call is held against: the device, the instance, the path, or ourselves.

use std::time::Duration;

use proxy_core::use_cases::operator::InstanceView;
use proxy_core::use_cases::provision::{Outcome, ProvisionError};
use rate_control::circuit_breaker::CircuitState;

use crate::support::dps::{Call, Fate, Reply};
use crate::support::{World, individual, millis, seconds, settings, sleep};

/// The next calls of all kinds fare so.
fn all_calls(world: &World, fate: &Fate, times: usize) {
    for call in [Call::Register, Call::Poll, Call::Lookup] {
        for _ in 0..times {
            world.dps("a").next(call, fate.clone());
        }
    }
}

async fn view(world: &World) -> InstanceView {
    world.gateway.instances().await.remove(0)
}

#[tokio::test(start_paused = true)]
async fn web_pages_in_place_of_every_answer_open_the_circuit_and_refuse_nobody_however_long() {
    let mut settings = settings(&[("a", 600)]);
    settings.registration.backoff_max = seconds(10);
    let world = World::new(settings).await;
    world.dps("a").takes_nobody(true);
    for number in 0..30 {
        world.queue(&format!("device-{number}")).await;
    }
    sleep(seconds(1)).await;
    assert_ne!(view(&world).await.breaker, CircuitState::Closed);
    let calls_at_first = world.dps("a").calls();
    assert!(calls_at_first <= 20, "{calls_at_first}");
    for _ in 0..60 {
        sleep(seconds(60)).await;
        for number in 0..30 {
            let told = world.provision(world.ask(&format!("device-{number}"))).await;
            assert!(matches!(told, Ok(Outcome::Queued(_))), "device-{number}: {told:?}");
        }
    }
    let trials = world.dps("a").calls() - calls_at_first;
    // One at a time, about 5 s apart (full jitter below 10 s), for an hour.
    assert!((360..=1500).contains(&trials), "{trials}");
    let counts = view(&world).await.counts;
    assert_eq!((counts.blamed.instance, counts.blamed.ourselves, counts.refused), (0, 0, 0));
    assert!(counts.blamed.path >= 360, "{counts:?}");

    world.dps("a").takes_nobody(false);
    let before = world.dps("a").calls();
    sleep(seconds(10) + millis(500)).await;
    assert!(world.dps("a").calls() > before, "somebody tries within 10 s");
    sleep(seconds(240)).await;
    for number in 0..30 {
        world.hub(&format!("device-{number}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_heals_gets_a_call_within_ten_seconds_however_few_wait() {
    for devices in [1, 5] {
        for fate in [Fate::error(500, Some(500_001)), Fate::lost_before_arrival(), Fate::NeverLeft] {
            let mut settings = settings(&[("a", 60)]);
            settings.registration.backoff_max = seconds(10);
            let world = World::new(settings).await;
            all_calls(&world, &fate, 10_000);
            for number in 0..devices {
                world.queue(&format!("device-{number}")).await;
            }
            sleep(seconds(900)).await;
            // From here on, whoever comes is served.
            world.dps("a").forget_fates();
            let healed = world.clock.elapsed();
            let calls = || world.dps("a").sent().iter().filter(|sent| sent.at >= healed).count();
            let mut waited = Duration::ZERO;
            while calls() == 0 {
                sleep(millis(100)).await;
                waited += millis(100);
                assert!(waited <= seconds(16), "{devices} devices, {fate:?}: nobody tries");
            }
            // A trial that was under way when the instance healed takes 5 s to be given up.
            let under_way = if matches!(fate, Fate::Lost { .. }) { seconds(5) } else { Duration::ZERO };
            assert!(waited <= seconds(10) + under_way + millis(200), "{devices} devices, {fate:?}: {waited:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dps_that_forbids_calls_like_ours_is_held_against_no_device() {
    for http_status in [403, 405, 415] {
        let world = World::new(settings(&[("a", 600)])).await;
        let forbids = Fate::error(http_status, Some(i64::from(http_status) * 1000 + 1));
        all_calls(&world, &forbids, 100);
        for number in 0..10 {
            world.queue(&format!("device-{number}")).await;
        }
        sleep(seconds(120)).await;
        let counts = view(&world).await.counts;
        assert_eq!((counts.refused, counts.blamed.instance, counts.blamed.path), (0, 0, 0), "{http_status}");
        assert!(counts.blamed.ourselves > 1, "{http_status}");
        assert_ne!(view(&world).await.breaker, CircuitState::Closed);
        world.dps("a").forget_fates();
        sleep(seconds(120)).await;
        for number in 0..10 {
            world.hub(&format!("device-{number}")).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dps_without_lookups_is_registered_with_again_after_an_unknown_outcome() {
    let world = World::new(settings(&[("a", 60)])).await;
    for fate in [Fate::lost_before_arrival(), Fate::lost_after_commit()] {
        let device = format!("device-{}", world.dps("a").calls());
        world.dps("a").next_of(Call::Register, &device, fate);
        world.dps("a").next_of(Call::Lookup, &device, Fate::reply(Reply::NotThere));
        world.settle(world.ask(&device)).await;
        assert_eq!(world.dps("a").count_of(Call::Register, &device), 2);
        assert_eq!(world.dps("a").count_of(Call::Lookup, &device), 1);
        assert_eq!(view(&world).await.consecutive_failures, 0, "it is no failure");
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_device_that_dps_names_differently_is_refused_and_an_individual_one_is_not() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.dps("a").device_id("device-1", "Device-1");
    world.settle(world.ask("device-1")).await;
    world.dps("a").device_id("device-2", "somebody-else");
    world.queue("device-2").await;
    sleep(seconds(10)).await;
    let Err(ProvisionError::Refused(refusal)) = world.provision(world.ask("device-2")).await else {
        panic!("it is refused");
    };
    assert_eq!((refusal.code.as_str(), refusal.tracking_id.as_deref()), ("unexpected-device-id", Some("request-1")));
    assert!(refusal.detail.contains("somebody-else") && refusal.detail.contains("individual"), "{}", refusal.detail);
    assert_eq!(world.record("device-2").await.unwrap().assignment(), None);

    let world = World::new(individual(settings(&[("a", 60)]))).await;
    world.list("device-2", "plant").await;
    world.dps("a").device_id("device-2", "somebody-else");
    world.settle(world.ask("device-2")).await;
}

#[tokio::test(start_paused = true)]
async fn registrations_that_get_lost_on_the_way_are_never_held_against_their_device() {
    let world = World::new(settings(&[("a", 600)])).await;
    for _ in 0..15 {
        world.dps("a").next_of(Call::Register, "device-x", Fate::lost_before_arrival());
    }
    world.queue("device-x").await;
    for number in 0..900 {
        world.queue(&format!("device-{number}")).await;
        sleep(seconds(1)).await;
    }
    sleep(seconds(60)).await;
    world.hub("device-x").await;
    assert_eq!(world.dps("a").count_of(Call::Register, "device-x"), 16);
}
