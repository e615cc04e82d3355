//! Clocks that are wrong, and that are set: ours, and DPS's.

use proxy_core::gateway::provision::{Answered, ProvisionError};

use crate::support::dps::{Call, Fate};
use crate::support::{World, id, seconds, settings, sleep};

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
