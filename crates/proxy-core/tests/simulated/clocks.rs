//! Clocks that are wrong, and that are set: ours, and DPS's.

use proxy_core::gateway::provision::{Answered, ProvisionError};
use proxy_core::time::{Clock as _, WallTime};

use crate::support::dps::{Call, Fate};
use crate::support::{World, enrollment_name, id, name, seconds, settings, sleep};

const HOUR_MILLIS: i64 = 3_600_000;
const TWENTY_YEARS_MILLIS: i64 = 20 * 365 * 24 * HOUR_MILLIS;

/// What happens between the moment that was stored and the moment that it is read.
#[derive(Debug, Clone, Copy)]
enum Then {
    Nothing,
    Killed,
    Rebooted,
}

const THEN: [Then; 3] = [Then::Nothing, Then::Killed, Then::Rebooted];

impl Then {
    async fn happens(self, world: &mut World) {
        match self {
            Self::Nothing => {}
            Self::Killed => world.kill().await,
            Self::Rebooted => world.reboot(seconds(20)).await,
        }
    }
}

async fn is_refused(world: &World, device: &str) -> bool {
    match world.provision(world.ask(device)).await {
        Err(ProvisionError::Refused(_)) => true,
        Ok(_) => false,
        Err(other) => panic!("{device}: {other:?}"),
    }
}

/// A world in which DPS has refused `device` for ten seconds while our clock was wrong by `wrong_millis`; it is right again.
async fn refused_by_a_wrong_clock(wrong_millis: i64) -> World {
    let mut settings = settings(&[("a", 60)]);
    settings.registration.refusal_ttl = seconds(10);
    let world = World::new(settings).await;
    // Devices are judged by DPS's time, which is read first.
    sleep(seconds(1)).await;
    world.clock.set_wall_offset_millis(wrong_millis);
    world.dps("a").next(Call::Register, Fate::error(404, Some(404_201)));
    world.queue("device-1").await;
    sleep(seconds(1)).await;
    assert!(is_refused(&world, "device-1").await);
    world.clock.set_wall_offset_millis(0);
    world
}

#[tokio::test(start_paused = true)]
async fn a_refusal_lasts_as_configured_whatever_the_clock_read_when_it_was_given() {
    for wrong_millis in [HOUR_MILLIS, TWENTY_YEARS_MILLIS, -HOUR_MILLIS] {
        // A refusal does not outlast its process, as its cause may have been mended: what its record says does.
        let world = refused_by_a_wrong_clock(wrong_millis).await;
        assert!(is_refused(&world, "device-1").await, "{wrong_millis}");
        let ProvisionError::Refused(told) = world.provision(world.ask("device-1")).await.unwrap_err() else { panic!() };
        let view = world.gateway.registration(&id("device-1")).await.unwrap().record.refusal.unwrap();
        for until in [told.until, view.until] {
            let left = until.since(world.gateway.now().wall);
            assert!((seconds(8)..=seconds(10)).contains(&left), "{wrong_millis}: {left:?}");
        }
        sleep(seconds(6)).await;
        assert!(is_refused(&world, "device-1").await, "{wrong_millis}");
        sleep(seconds(6)).await;
        assert!(!is_refused(&world, "device-1").await, "{wrong_millis}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stored_refusal_is_over_in_time_after_any_restart() {
    for wrong_millis in [HOUR_MILLIS, TWENTY_YEARS_MILLIS] {
        for then in THEN {
            let mut world = refused_by_a_wrong_clock(wrong_millis).await;
            then.happens(&mut world).await;
            let refused =
                async |world: &World| world.record("device-1").await.unwrap().refused(world.gateway.now()).is_some();
            assert!(refused(&world).await, "{then:?}");
            sleep(seconds(11)).await;
            assert!(!refused(&world).await, "{then:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reprovisioning_is_possible_again_after_the_cooldown_whatever_the_clock_read_at_the_last_one() {
    for wrong_millis in [HOUR_MILLIS, TWENTY_YEARS_MILLIS] {
        for then in THEN {
            let mut world = World::new(settings(&[("a", 60)])).await;
            sleep(seconds(1)).await;
            world.clock.set_wall_offset_millis(wrong_millis);
            world.settle(world.ask("device-1")).await;
            world.clock.set_wall_offset_millis(0);
            then.happens(&mut world).await;
            let again = world.provision(world.ask("device-1").reprovision()).await;
            assert!(matches!(again, Ok(Answered::Assigned(_))), "{then:?}: {again:?}");
            sleep(seconds(901)).await;
            let again = world.provision(world.ask("device-1").reprovision()).await;
            assert!(matches!(again, Ok(Answered::Queued(_))), "{then:?}: {again:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspect_device_waits_for_its_cooldown_and_no_longer_whatever_the_clock_read() {
    for then in THEN {
        let mut world = World::new(settings(&[("a", 60)])).await;
        sleep(seconds(1)).await;
        world.clock.set_wall_offset_millis(TWENTY_YEARS_MILLIS);
        world.settle(world.ask("device-1")).await;
        world.clock.set_wall_offset_millis(0);
        world.gateway.invalidate("device-1", None, "hub-404001").await.unwrap();
        then.happens(&mut world).await;
        sleep(seconds(850)).await;
        assert_eq!(world.dps("a").count(Call::Register), 1, "{then:?}");
        sleep(seconds(60)).await;
        assert_eq!(world.dps("a").count(Call::Register), 2, "{then:?}");
    }
}

// --- our clock against DPS's ------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn with_our_clock_wrong_devices_with_right_ones_are_assigned_and_nobody_is_refused() {
    for wrong_millis in [-2 * HOUR_MILLIS, 2 * HOUR_MILLIS, TWENTY_YEARS_MILLIS, -TWENTY_YEARS_MILLIS] {
        let mut world = World::new(settings(&[("a", 60), ("b", 60)])).await;
        world.clock.set_wall_offset_millis(wrong_millis);
        // The time is read at the start, before anybody asks.
        world.kill().await;
        sleep(seconds(1)).await;
        for number in 0..4 {
            let device = format!("device-{number}");
            world.settle(world.ask(&device)).await;
        }
        for instance in ["a", "b"] {
            let life = world.dps(instance).token_life_max();
            assert!((110..=120).contains(&life), "{wrong_millis}: a token that is good for {life} s");
        }
        for view in world.gateway.instances() {
            let offset = view.clock_offset_seconds.unwrap();
            assert!((offset + wrong_millis / 1000).abs() <= 1, "{wrong_millis}: {offset}");
            assert_eq!(view.counts.refused, 0, "{wrong_millis}");
        }
        let told = world.gateway.credential_time(world.gateway.now());
        let right = WallTime::from_unix_millis(world.clock.now().wall.unix_millis() - wrong_millis);
        assert!(told.since(right).max(right.since(told)) <= seconds(1), "{wrong_millis}: {told}");
    }
}

#[tokio::test(start_paused = true)]
async fn why_a_device_waits_names_a_clock_that_is_wrong() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.settle(world.ask("device-0")).await;
    let why = async |device| world.gateway.registration(&id(device)).await.unwrap().waiting_because.unwrap();
    world.dps("a").next(Call::Register, Fate::throttled(Some(30)));
    world.queue("device-1").await;
    sleep(seconds(1)).await;
    assert!(!why("device-1").await.contains("clock"));
    world.clock.set_wall_offset_millis(-2 * HOUR_MILLIS);
    let told = async |side: &str| {
        let why = why("device-1").await;
        let off = |seconds: i64| why.contains(&format!("our wall clock is {seconds} s {side} DPS's"));
        assert!((7199..=7201).any(off), "{why}");
    };
    told("behind").await;
    world.clock.set_wall_offset_millis(2 * HOUR_MILLIS);
    told("ahead of").await;
}

#[tokio::test(start_paused = true)]
async fn no_token_leaves_before_the_time_was_read() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.dps("a").tells_time(false);
    let mut world = world;
    world.kill().await;
    world.queue("device-1").await;
    sleep(seconds(30)).await;
    assert_eq!(world.dps("a").calls(), 0, "nothing left but the question for the time");
    assert!(world.dps("a").asked_for_time() > 2);
    let view = world.gateway.instances().remove(0);
    assert_eq!((view.budget, view.counts.registrations, view.clock_offset_seconds), (60, 0, None), "nothing was spent");
    assert!(view.counts.unreachable > 0);
    world.dps("a").tells_time(true);
    world.settle(world.ask("device-1")).await;
    assert_eq!(world.dps("a").count(Call::Register), 1);
}

#[tokio::test(start_paused = true)]
async fn the_time_is_asked_for_once_and_again_after_an_hour_of_silence() {
    let world = World::new(settings(&[("a", 600)])).await;
    for number in 0..50 {
        world.queue(&format!("device-{number}")).await;
    }
    sleep(seconds(60)).await;
    assert_eq!(world.dps("a").asked_for_time(), 1);
    sleep(seconds(3 * 3600)).await;
    let asked = world.dps("a").asked_for_time();
    assert!((3..=4).contains(&asked), "{asked}");
    world.settle(world.ask("device-50")).await;
    assert_eq!(world.dps("a").count(Call::Register), 51);
}

#[tokio::test(start_paused = true)]
async fn a_proof_refused_because_a_clock_was_set_is_held_against_no_device() {
    for skew_millis in [HOUR_MILLIS, -HOUR_MILLIS, TWENTY_YEARS_MILLIS] {
        // Most instances go on to agree with ours, so that devices' own credentials are judged as before.
        let mut settings = settings(&[("a", 60), ("b", 60), ("c", 60)]);
        settings.enrollments.get_mut(&enrollment_name("plant")).unwrap().instances = [name("a")].into();
        let world = World::new(settings).await;
        world.settle(world.ask("device-0")).await;
        world.dps("a").skew_millis(skew_millis);
        for number in 1..=5 {
            world.queue(&format!("device-{number}")).await;
        }
        for number in 1..=5 {
            world.settle(world.ask(&format!("device-{number}"))).await;
        }
        let view = world.gateway.instances().remove(0);
        assert_eq!(view.counts.refused, 0, "{skew_millis}");
        // A proof that is really wrong is still a refusal.
        world.dps("a").next(Call::Register, Fate::error(401, Some(401_002)));
        world.queue("device-6").await;
        sleep(seconds(5)).await;
        assert!(is_refused(&world, "device-6").await, "{skew_millis}");
    }
}

#[tokio::test(start_paused = true)]
async fn instances_that_contradict_each_other_do_not_change_our_time() {
    let world = World::new(settings(&[("a", 60), ("b", 60)])).await;
    world.dps("a").skew_millis(HOUR_MILLIS);
    let mut world = world;
    world.kill().await;
    sleep(seconds(1)).await;
    let now = world.gateway.now();
    assert_eq!(world.gateway.credential_time(now), now.wall);
    let offsets: Vec<_> = world
        .gateway
        .instances()
        .iter()
        .map(|view| (view.name.clone(), view.clock_offset_seconds.unwrap() / 100))
        .collect();
    assert_eq!(offsets, [(name("a"), 36), (name("b"), 0)]);
}
