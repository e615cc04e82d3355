//! Clocks that are wrong, and that are set: ours, and DPS's.

use std::time::Duration;

use proxy_core::sas;
use proxy_core::use_cases::provision::{Outcome, ProvisionError};
use rate_control::time::{Clock as _, WallTime};

use crate::support::dps::{Call, Fate, Reply};
use crate::support::{AUDIENCE, Ask, World, enrollment_name, group_key, id, millis, name, seconds, settings, sleep};

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
        let view = world.gateway.registration(&id("device-1")).await.unwrap().record.refusal().cloned().unwrap();
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
            assert!(matches!(again, Ok(Outcome::Assigned(_))), "{then:?}: {again:?}");
            sleep(seconds(901)).await;
            let again = world.provision(world.ask("device-1").reprovision()).await;
            assert!(matches!(again, Ok(Outcome::Queued(_))), "{then:?}: {again:?}");
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
        for view in world.gateway.instances().await {
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
        let off = |seconds: i64| why.contains(&format!("this machine's clock is {seconds} s {side} DPS's"));
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
    let view = world.gateway.instances().await.remove(0);
    assert_eq!((view.budget, view.counts.registrations, view.clock_offset_seconds), (60, 0, None), "nothing was spent");
    assert!(view.counts.unreachable > 0);
    world.dps("a").tells_time(true);
    world.settle(world.ask("device-1")).await;
    assert_eq!(world.dps("a").count(Call::Register), 1);
}

#[tokio::test(start_paused = true)]
async fn the_time_is_asked_for_once_and_again_within_each_hour_of_silence() {
    let world = World::new(settings(&[("a", 600)])).await;
    for number in 0..50 {
        world.queue(&format!("device-{number}")).await;
    }
    sleep(seconds(60)).await;
    assert_eq!(world.dps("a").asked_for_time(), 1);
    sleep(seconds(3 * 3600)).await;
    let asked = world.dps("a").asked_for_time();
    assert!((4..=5).contains(&asked), "{asked}");
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
        let view = world.gateway.instances().await.remove(0);
        assert_eq!(view.counts.refused, 0, "{skew_millis}");
        // A proof that is really wrong is still a refusal.
        world.dps("a").next(Call::Register, Fate::error(401, Some(401_002)));
        world.queue("device-6").await;
        sleep(seconds(5)).await;
        assert!(is_refused(&world, "device-6").await, "{skew_millis}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waited_for_its_connection_is_signed_when_it_leaves() {
    let mut settings = settings(&[("a", 60)]);
    settings.registration.connections_max = 1;
    let world = World::new(settings).await;
    world.queue("device-1").await;
    sleep(seconds(1)).await;
    // Both have the only connection before the first device's poll, one after the other.
    for device in ["device-2", "device-3"] {
        let slow = Fate::Answered { there: seconds(28), back: millis(20), reply: Reply::Serve };
        world.dps("a").next_of(Call::Register, device, slow);
        world.queue(device).await;
    }
    sleep(seconds(40)).await;
    assert_eq!(world.dps("a").count(Call::Poll), 0, "it waits for the connection");
    sleep(seconds(40)).await;
    world.hub("device-1").await;
    let life = world.dps("a").token_life_min();
    assert!(life >= 90, "good for two minutes when it left, and {life} s when it arrived");
}

#[tokio::test(start_paused = true)]
async fn a_registration_whose_mark_took_long_to_write_is_signed_after_that() {
    let mut rules = settings(&[("a", 60)]);
    rules.instances.values_mut().for_each(|instance| instance.burst = 1);
    let world = World::new(rules).await;
    world.queue("device-1").await;
    // It goes a second later, and its mark is not on disk for long.
    world.queue("device-2").await;
    sleep(millis(500)).await;
    world.store.hold_acks(true);
    sleep(seconds(100)).await;
    assert_eq!(world.dps("a").count(Call::Register), 1, "a call follows its mark");
    world.store.sync();
    world.store.hold_acks(false);
    sleep(seconds(10)).await;
    world.settle(world.ask("device-2")).await;
    assert_eq!(world.dps("a").count_of(Call::Register, "device-2"), 1);
    let life = world.dps("a").token_life_min();
    assert!(life >= 118, "good for two minutes when it left, and {life} s when it arrived");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_would_end_on_the_way_does_not_leave_and_the_device_goes_again() {
    for (connecting, leaves_at_once) in [(seconds(89), true), (seconds(91), false)] {
        let world = World::new(settings(&[("a", 60)])).await;
        world.settle(world.ask("device-0")).await;
        world.dps("a").connects_in(connecting);
        world.queue("device-1").await;
        sleep(connecting + seconds(10)).await;
        world.hub("device-1").await;
        let timeline = format!("{:?}", world.record("device-1").await.unwrap().timeline());
        assert_eq!(timeline.contains("could have expired on the way"), !leaves_at_once, "{timeline}");
        assert_eq!(world.dps("a").count_of(Call::Register, "device-1"), 1);
        let counts = world.gateway.instances().await.remove(0).counts;
        assert_eq!((counts.registrations, counts.repeated, counts.blamed.ourselves), (2, 0, 0));
        let life = world.dps("a").token_life_min();
        assert!(life >= 29, "the way may take 30 s, and it had {life} s, to the second");
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
        .await
        .iter()
        .map(|view| (view.name.clone(), view.clock_offset_seconds.unwrap() / 100))
        .collect();
    assert_eq!(offsets, [(name("a"), 36), (name("b"), 0)]);
}

// --- clocks that jump, and who has a vote -----------------------------------------------------------------------------

/// A device whose credential ends at `unix_seconds`.
fn ask_until(world: &World, device: &str, unix_seconds: i64) -> Ask {
    let key = sas::derive_device_key(&group_key(), device);
    let resource = format!("{AUDIENCE}%2Fregistrations%2F{device}");
    world.ask(device).authorization(Some(&sas::device_token(&key, &resource, unix_seconds, None)))
}

/// The machine stood still for `millis`, and its wall clock was set right after that. Its boot-time clock noticed nothing.
fn stands_still(world: &World, millis: i64) {
    for dps in world.instances.values() {
        dps.skew_millis(millis);
    }
    world.clock.set_wall_offset_millis(millis);
}

fn true_unix_seconds(world: &World) -> i64 {
    world.clock.now().wall.unix_seconds()
}

/// By how much devices are judged by another time than our wall clock's.
fn judged_off(world: &World) -> Duration {
    let now = world.gateway.now();
    let judged = world.gateway.credential_time(now);
    judged.since(now.wall).max(now.wall.since(judged))
}

#[tokio::test(start_paused = true)]
async fn after_the_machine_stood_still_devices_are_judged_by_the_time_that_it_is() {
    for instances in [&[("a", 60)][..], &[("a", 60), ("b", 60), ("c", 60)]] {
        let world = World::new(settings(instances)).await;
        world.settle(world.ask("device-0")).await;
        stands_still(&world, 2 * HOUR_MILLIS);
        let expired = ask_until(&world, "device-1", true_unix_seconds(&world) - 3_600);
        assert!(matches!(world.provision(expired).await, Err(ProvisionError::NotBelieved(_))), "it ended an hour ago");
        world.settle(ask_until(&world, "device-2", true_unix_seconds(&world) + 3_600)).await;
        assert!(judged_off(&world) < seconds(30));
        let registered: usize = world.instances.values().map(|dps| dps.count(Call::Register)).sum();
        assert_eq!(registered, 2, "what is signed goes by the new time as well: no proof was refused");
    }
}

#[tokio::test(start_paused = true)]
async fn when_nobody_can_say_which_clock_jumped_ours_is_believed_soon_and_dps_as_soon_as_it_is_there() {
    let world = World::new(settings(&[("a", 60), ("b", 60)])).await;
    world.settle(world.ask("device-0")).await;
    for dps in world.instances.values() {
        dps.tells_time(false);
        dps.reachable(false);
    }
    stands_still(&world, 2 * HOUR_MILLIS);
    let before = world.clock.elapsed();
    let known = world.provision(ask_until(&world, "device-0", true_unix_seconds(&world) + 3_600)).await;
    assert!(matches!(known, Ok(Outcome::Assigned(_))), "{known:?}");
    assert!(world.clock.elapsed() - before <= seconds(2), "asking DPS keeps nobody waiting for longer");
    let expired = ask_until(&world, "device-0", true_unix_seconds(&world) - 3_600);
    assert!(matches!(world.provision(expired).await, Err(ProvisionError::NotBelieved(_))));
    assert!(world.clock.elapsed() - before <= seconds(2), "and only once");

    // It was our wall clock after all.
    for dps in world.instances.values() {
        dps.skew_millis(0);
        dps.tells_time(true);
        dps.reachable(true);
    }
    sleep(seconds(61)).await;
    let off = judged_off(&world).abs_diff(seconds(7_200));
    assert!(off <= seconds(2), "{off:?}");
    world.settle(world.ask("device-1")).await;
}

#[tokio::test(start_paused = true)]
async fn one_odd_instance_alone_never_changes_the_time_that_devices_are_judged_by() {
    for wrong_millis in [0, -2 * HOUR_MILLIS] {
        let mut settings = settings(&[("a", 60), ("b", 60), ("c", 60)]);
        settings.enrollments.get_mut(&enrollment_name("plant")).unwrap().instances = [name("c")].into();
        let mut world = World::new(settings).await;
        world.clock.set_wall_offset_millis(wrong_millis);
        world.dps("c").skew_millis(HOUR_MILLIS);
        // Nobody but the odd one is heard of.
        world.dps("a").tells_time(false);
        world.dps("b").tells_time(false);
        world.kill().await;
        sleep(seconds(1)).await;
        assert!(judged_off(&world).is_zero(), "{wrong_millis}: it changes not our own");
        world.dps("a").tells_time(true);
        world.dps("b").tells_time(true);
        sleep(seconds(61)).await;
        let right = Duration::from_millis(wrong_millis.unsigned_abs());
        let is_right = |world: &World| judged_off(world).abs_diff(right) <= seconds(2);
        assert!(is_right(&world), "{wrong_millis}");
        // For hours it alone has calls, and then it alone can be asked.
        for number in 0..24 {
            if number == 12 {
                world.dps("a").tells_time(false);
                world.dps("b").tells_time(false);
            }
            sleep(seconds(600)).await;
            world.queue(&format!("device-{number}")).await;
            sleep(seconds(10)).await;
            assert!(is_right(&world), "{wrong_millis}, after {} min: {:?}", number * 10, judged_off(&world));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reload_forgets_the_clock_of_no_instance_whose_endpoint_stays() {
    let world = World::new(settings(&[("a", 60), ("b", 60), ("c", 60)])).await;
    world.clock.set_wall_offset_millis(-2 * HOUR_MILLIS);
    sleep(seconds(61)).await;
    let asked = |world: &World| ["a", "b", "c"].map(|instance| world.dps(instance).asked_for_time());
    let before = asked(&world);
    let mut changed = (*world.gateway.settings()).clone();
    changed.registration.request_timeout = seconds(20);
    changed.instances.get_mut(&name("c")).unwrap().endpoint = "https://other.example".to_owned();
    world.dps("c").skew_millis(HOUR_MILLIS);
    world.gateway.apply(changed).await.unwrap();
    sleep(millis(10)).await;
    assert_eq!(asked(&world), [before[0], before[1], before[2] + 1], "only the one that may be another");
    assert!(judged_off(&world).abs_diff(seconds(7_200)) <= seconds(2), "two of three say the same as before");
}

// --- somebody in front of DPS -----------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn behind_a_front_that_lets_no_question_for_the_time_through_devices_are_assigned_whatever_our_clock_reads() {
    for (wrong_millis, front) in [
        (0, (403, Some(0))),
        (0, (403, None)),
        (-2 * HOUR_MILLIS, (403, Some(0))),
        (2 * HOUR_MILLIS, (200, Some(0))),
        (TWENTY_YEARS_MILLIS, (403, Some(0))),
        (0, (403, Some(TWENTY_YEARS_MILLIS))),
    ] {
        let mut world = World::new(settings(&[("a", 60)])).await;
        world.clock.set_wall_offset_millis(wrong_millis);
        world.dps("a").behind_a_front(Some(front));
        world.kill().await;
        let now = world.gateway.now().wall.unix_seconds();
        // Devices are judged by our clock until DPS says something.
        world.provision(ask_until(&world, "device-1", now + 3_600)).await.unwrap();
        sleep(seconds(60)).await;
        assert!(world.record("device-1").await.unwrap().assignment().is_some(), "{wrong_millis} {front:?}");
        let life = world.dps("a").token_life_max();
        assert!(life <= 120, "{wrong_millis} {front:?}: a token that is good for {life} s");
        let view = world.gateway.instances().await.remove(0);
        assert_eq!(view.counts.refused, 0);
        let offset = view.clock_offset_seconds.unwrap();
        assert!((offset + wrong_millis / 1000).abs() <= 1, "{front:?}: by DPS's own answers, {offset}");
        assert!(world.dps("a").count(Call::Register) <= 2, "one may go by a wrong guess");
    }
}

#[tokio::test(start_paused = true)]
async fn a_front_that_was_let_through_to_the_others_is_passed_by_the_time_that_they_tell() {
    let mut settings = settings(&[("a", 60), ("b", 60), ("c", 60)]);
    settings.enrollments.get_mut(&enrollment_name("plant")).unwrap().instances = [name("a")].into();
    let mut world = World::new(settings).await;
    world.clock.set_wall_offset_millis(-2 * HOUR_MILLIS);
    world.dps("a").behind_a_front(Some((403, None)));
    world.kill().await;
    sleep(seconds(1)).await;
    world.settle(world.ask("device-1")).await;
    assert_eq!(world.dps("a").count(Call::Register), 1, "no proof was refused");
}

#[tokio::test(start_paused = true)]
async fn a_throttled_question_for_the_time_is_asked_again_when_it_may_be() {
    let mut world = World::new(settings(&[("a", 60)])).await;
    world.dps("a").behind_a_front(Some((429, None)));
    world.kill().await;
    let began = world.clock.elapsed();
    sleep(seconds(1)).await;
    world.queue("device-1").await;
    sleep(seconds(15)).await;
    let asked = |world: &World| world.dps("a").asked_for_time_at().into_iter().filter(|at| *at >= began).count();
    assert_eq!(asked(&world), 1);
    world.dps("a").behind_a_front(None);
    sleep(seconds(30)).await;
    world.hub("device-1").await;
    assert_eq!((asked(&world), world.dps("a").count(Call::Register)), (2, 1));
    let counts = world.gateway.instances().await.remove(0).counts;
    assert_eq!((counts.blamed.path, counts.blamed.instance, counts.blamed.ourselves), (0, 0, 0));
}
