//! What DPS answers, and what becomes of the device, of its instance and of the others.

use std::sync::Arc;
use std::time::Duration;

use proxy_core::device::{AssignmentState, Record, Refusal};
use proxy_core::line::Holding;
use proxy_core::store::{Commit, Expect, Key, Store as _, Table, Version, Write};
use proxy_core::use_cases::provision::{Outcome, ProvisionError};
use rate_control::entropy::Entropy;
use serde_json::json;

use crate::support::dps::{Call, Dps, Fate, Reply, Weather};
use crate::support::judge::{bucket_overdrawn, counted, two_at_once};
use crate::support::{World, enrollment_name, id, individual, millis, name, seconds, settings, sleep};

fn registered_at(dps: &Dps) -> Vec<(String, Duration)> {
    dps.sent().into_iter().filter(|sent| sent.call == Call::Register).map(|sent| (sent.id, sent.at)).collect()
}

async fn refusal(world: &World, device: &str) -> Option<Refusal> {
    match world.provision(world.ask(device)).await {
        Err(ProvisionError::Refused(refusal)) => Some(*refusal),
        Ok(_) => None,
        Err(other) => panic!("{device}: {other:?}"),
    }
}

/// A world whose devices are placed by name: `a-…` at `a`, `b-…` at `b`.
async fn two_instances() -> World {
    let mut settings = settings(&[("a", 60), ("b", 60)]);
    let plant = settings.enrollments[&enrollment_name("plant")].clone();
    for side in ["a", "b"] {
        let mut enrollment = plant.clone();
        enrollment.instances = [name(side)].into();
        enrollment.device = proxy_core::settings::DeviceAttestation::SasToken {
            audiences: [format!("{side}.example")].into(),
            membership: proxy_core::settings::Membership::Signature,
        };
        settings.enrollments.insert(enrollment_name(side), enrollment);
    }
    World::new(settings).await
}

async fn queue_at(world: &World, side: &str, device: &str) {
    let ask = world.ask_of(device, &format!("{side}.example"));
    assert!(matches!(world.provision(ask).await, Ok(Outcome::Queued(_))), "{device}");
}

// --- throttling -------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_429_pauses_its_instance_as_long_as_dps_asked_and_the_device_stays_first() {
    let world = two_instances().await;
    world.dps("a").next(Call::Register, Fate::throttled(Some(25)));
    queue_at(&world, "a", "a-0").await;
    sleep(seconds(1)).await;
    for number in 1..5 {
        queue_at(&world, "a", &format!("a-{number}")).await;
        queue_at(&world, "b", &format!("b-{number}")).await;
    }
    sleep(seconds(60)).await;
    let at_a = registered_at(world.dps("a"));
    assert_eq!(at_a.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["a-0", "a-0", "a-1", "a-2", "a-3", "a-4"]);
    assert!(at_a[1].1 - at_a[0].1 >= seconds(25), "{at_a:?}");
    assert!(at_a[1].1 - at_a[0].1 < seconds(27), "{at_a:?}");
    assert!(registered_at(world.dps("b")).iter().all(|(_, at)| *at < seconds(3)), "the other instance goes on");
}

#[tokio::test(start_paused = true)]
async fn after_a_429_the_line_goes_on_by_the_answers_of_dps_and_not_by_its_assignments() {
    let world = World::new(settings(&[("a", 600)])).await;
    // DPS answers in 100 ms and works on a registration for 20 s.
    world.dps("a").assigning(seconds(20));
    world.dps("a").next(Call::Register, Fate::throttled(Some(1)));
    for device in 0..100 {
        world.queue(&format!("device-{device}")).await;
    }
    sleep(seconds(12)).await;
    let sent = world.dps("a").count(Call::Register);
    assert!(sent > 80, "{sent} of 100 sent within 12 s at ten a second");
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_dps_asked_for_outlives_a_crash_and_a_reboot() {
    for reboots in [false, true] {
        let mut world = World::new(settings(&[("a", 600)])).await;
        world.dps("a").next(Call::Register, Fate::throttled(Some(300)));
        for device in 0..20 {
            world.queue(&format!("device-{device}")).await;
        }
        sleep(seconds(5)).await;
        let (paused_at, before) = (world.clock.elapsed(), world.dps("a").count(Call::Register));
        if reboots {
            world.reboot(seconds(20)).await;
        } else {
            world.kill().await;
        }
        sleep(seconds(280)).await;
        assert_eq!(world.dps("a").count(Call::Register), before, "reboots: {reboots}");
        assert_eq!(world.gateway.instances().await[0].holding, Holding::ThrottledByDps);
        sleep(seconds(60)).await;
        let first = registered_at(world.dps("a"))[before].1;
        assert!(
            first >= paused_at + seconds(290) && first <= paused_at + seconds(300),
            "reboots: {reboots}, {first:?}"
        );
        for device in 0..20 {
            world.hub(&format!("device-{device}")).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_429_without_retry_after_pauses_for_a_while_and_a_zero_does_not_loop() {
    for retry_after in [None, Some(0)] {
        let world = World::new(settings(&[("a", 600)])).await;
        for _ in 0..3 {
            world.dps("a").next(Call::Register, Fate::throttled(retry_after));
        }
        world.queue("device-1").await;
        sleep(seconds(120)).await;
        let at = registered_at(world.dps("a"));
        assert_eq!(at.len(), 4, "{retry_after:?}");
        assert!(at.windows(2).all(|pair| pair[1].1 - pair[0].1 >= seconds(1)), "{retry_after:?}: {at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_success_of_another_device_does_not_end_the_wait_that_dps_asked_for() {
    let world = World::new(settings(&[("a", 600)])).await;
    let slow = |reply| Fate::Answered { there: millis(10), back: seconds(4), reply };
    let late_error = Fate::Answered {
        there: millis(10),
        back: seconds(2),
        reply: Reply::Error { http_status: 500, error_code: Some(500_001), retry_after: None },
    };
    world.dps("a").next_of(Call::Register, "throttled", Fate::throttled(Some(8)));
    for number in 0..7 {
        world.dps("a").next_of(Call::Register, &format!("fails-{number}"), late_error.clone());
    }
    world.dps("a").next_of(Call::Register, "works", slow(Reply::Serve));
    for device in
        ["fails-0", "fails-1", "fails-2", "fails-3", "fails-4", "fails-5", "fails-6", "works", "throttled", "waits"]
    {
        world.queue(device).await;
    }
    sleep(millis(100)).await;
    world.queue("waits-too").await;
    sleep(seconds(120)).await;
    let sent = registered_at(world.dps("a"));
    let throttled = sent.iter().find(|(id, _)| id == "throttled").unwrap().1;
    let early: Vec<_> =
        sent.iter().filter(|(_, at)| *at > throttled + millis(100) && *at < throttled + seconds(8)).collect();
    assert!(early.is_empty(), "sent before Retry-After was over: {early:?}");
    assert!(sent.iter().any(|(id, _)| id == "waits-too"));
}

#[tokio::test(start_paused = true)]
async fn a_429_pauses_its_instance_no_longer_than_the_configuration_allows() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.dps("a").next(Call::Register, Fate::throttled(Some(31_536_000)));
    world.queue("device-1").await;
    sleep(seconds(700)).await;
    let at: Vec<Duration> = registered_at(world.dps("a")).into_iter().map(|(_, at)| at).collect();
    assert_eq!(at.len(), 2, "{at:?}");
    assert!((seconds(600)..seconds(602)).contains(&(at[1] - at[0])), "{at:?}");
    world.hub("device-1").await;
}

// --- trouble ----------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn an_unreachable_instance_leaks_no_slot_stalls_no_other_and_recovers() {
    let world = two_instances().await;
    world.dps("a").reachable(false);
    for number in 0..20 {
        queue_at(&world, "a", &format!("a-{number}")).await;
        queue_at(&world, "b", &format!("b-{number}")).await;
    }
    sleep(seconds(600)).await;
    assert_eq!(world.dps("b").count(Call::Register), 20);
    let view = world.gateway.instances().await.remove(0);
    assert_eq!((view.budget, view.line_length + view.under_way), (60, 20), "what never left spends nothing");
    assert_eq!(view.registered_count, 20);
    world.dps("a").reachable(true);
    sleep(seconds(90)).await;
    let served: Vec<String> = registered_at(world.dps("a")).into_iter().map(|(id, _)| id).collect();
    assert_eq!(served, (0..20).map(|number| format!("a-{number}")).collect::<Vec<_>>(), "in order, once each");
}

#[tokio::test(start_paused = true)]
async fn a_silent_instance_stalls_no_other_and_its_devices_keep_their_places() {
    let world = two_instances().await;
    for _ in 0..400 {
        for call in [Call::Register, Call::Lookup] {
            world.dps("a").next(call, Fate::Lost { gives_up: seconds(30), arrives: None });
        }
    }
    for number in 0..20 {
        queue_at(&world, "a", &format!("a-{number}")).await;
        queue_at(&world, "b", &format!("b-{number}")).await;
    }
    sleep(seconds(30)).await;
    assert_eq!(world.dps("b").count(Call::Register), 20);
    for number in 0..20 {
        queue_at(&world, "a", &format!("a-{number}")).await;
    }
    assert_eq!(two_at_once(world.dps("a")), None);
}

#[tokio::test(start_paused = true)]
async fn every_unclear_or_passing_failure_ends_in_an_assignment() {
    for (what, fate) in [
        ("connect error", Fate::NeverLeft),
        ("lost before arrival", Fate::lost_before_arrival()),
        ("lost after commit", Fate::lost_after_commit()),
        ("500 of DPS", Fate::error(500, Some(500_001))),
        ("503 without a code", Fate::error(503, None)),
        ("unreadable", Fate::reply(Reply::Unreadable)),
        ("409203", Fate::error(409, Some(409_203))),
        ("412", Fate::error(412, None)),
        ("429", Fate::throttled(Some(5))),
        ("failed with 409203", Fate::reply(Reply::Fail(409_203))),
        ("failed with 500001", Fate::reply(Reply::Fail(500_001))),
        ("slow", Fate::Answered { there: seconds(10), back: seconds(15), reply: Reply::Serve }),
    ] {
        let world = World::new(settings(&[("a", 60)])).await;
        world.dps("a").next(Call::Register, fate);
        let (hub, _) = world.settle(world.ask("device-1")).await;
        assert_eq!(hub, "hub-a.azure-devices.net", "{what}");
        assert_eq!(two_at_once(world.dps("a")), None, "{what}");
        assert!(world.clock.elapsed() < seconds(60), "{what}: took {:?}", world.clock.elapsed());
        let calls = world.dps("a").calls();
        sleep(seconds(1000)).await;
        assert_eq!(world.dps("a").calls(), calls, "{what}: nothing goes on behind the assignment");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_something_in_between_is_held_against_no_device() {
    for http_status in [302, 400, 401, 403, 404] {
        let world = World::new(settings(&[("a", 600)])).await;
        for _ in 0..30 {
            world.dps("a").next(Call::Register, Fate::error(http_status, None));
        }
        for number in 0..10 {
            world.queue(&format!("device-{number}")).await;
        }
        for _ in 0..60 {
            sleep(seconds(20)).await;
            for number in 0..10 {
                let told = refusal(&world, &format!("device-{number}")).await;
                assert_eq!(told, None, "{http_status}");
            }
        }
        for number in 0..10 {
            world.hub(&format!("device-{number}")).await;
        }
        assert_eq!(world.dps("a").count(Call::Register), 40, "{http_status}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_cannot_be_read_does_not_show_that_the_instance_works() {
    let world = World::new(settings(&[("a", 600)])).await;
    for number in 0..3 {
        world.dps("a").next_of(Call::Register, &format!("fails-{number}"), Fate::error(500, Some(500_001)));
    }
    let late = Fate::Answered { there: millis(20), back: millis(60), reply: Reply::Unreadable };
    world.dps("a").next_of(Call::Register, "unreadable", late);
    for device in ["fails-0", "fails-1", "fails-2", "unreadable"] {
        world.queue(device).await;
    }
    sleep(millis(150)).await;
    assert_eq!(world.gateway.instances().await[0].consecutive_failures, 4);
    sleep(seconds(120)).await;
    assert_eq!(world.gateway.instances().await[0].consecutive_failures, 0, "DPS's own words do");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_again_while_the_outcome_cannot_be_looked_up() {
    for (what, fate) in [
        ("500 of DPS", Fate::error(500, Some(500_001))),
        ("503 without a code", Fate::error(503, None)),
        ("409", Fate::error(409, Some(409_203))),
        ("404 without a code", Fate::error(404, None)),
        ("lost", Fate::lost_before_arrival()),
    ] {
        let world = World::new(settings(&[("a", 60)])).await;
        world.settle(world.ask("known")).await;
        world.dps("a").next(Call::Register, Fate::lost_after_commit());
        for _ in 0..4 {
            world.dps("a").next(Call::Lookup, fate.clone());
        }
        let (hub, _) = world.settle(world.ask("device-1")).await;
        assert_eq!(hub, "hub-a.azure-devices.net", "{what}");
        assert_eq!(world.dps("a").count_of(Call::Register, "device-1"), 1, "{what}");
        assert_eq!(world.dps("a").count(Call::Lookup), 5, "{what}");
    }
    // But not for ever.
    let world = World::new(settings(&[("a", 60)])).await;
    world.dps("a").next(Call::Register, Fate::lost_before_arrival());
    for _ in 0..100 {
        world.dps("a").next(Call::Lookup, Fate::error(500, Some(500_001)));
    }
    world.queue("device-1").await;
    sleep(seconds(280)).await;
    assert_eq!(world.dps("a").count(Call::Register), 1);
    sleep(seconds(600)).await;
    assert_eq!(world.dps("a").count(Call::Register), 2);
    world.hub("device-1").await;
}

/// The most calls that were under way at one moment.
fn most_at_once(dps: &Dps) -> usize {
    let sent = dps.sent();
    let under_way =
        |at: Duration| sent.iter().filter(|call| call.at <= at && call.ended.is_none_or(|end| end > at)).count();
    sent.iter().map(|call| under_way(call.at)).max().unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn calls_to_an_instance_wait_for_a_connection() {
    let mut settings = settings(&[("a", 60)]);
    settings.registration.connections_max = 3;
    let world = World::new(settings).await;
    world.dps("a").weather(Weather::fair(10_000));
    for number in 0..40 {
        world.queue(&format!("device-{number}")).await;
    }
    sleep(seconds(200)).await;
    assert_eq!(most_at_once(world.dps("a")), 3);
    let mut raised = (*world.gateway.settings()).clone();
    raised.registration.connections_max = 6;
    world.gateway.apply(raised).await.unwrap();
    sleep(seconds(600)).await;
    assert!((5..=9).contains(&most_at_once(world.dps("a"))), "{}", most_at_once(world.dps("a")));
    for number in 0..40 {
        world.hub(&format!("device-{number}")).await;
    }
    assert_eq!(world.dps("a").count(Call::Register), 40);
    let overdrawn = bucket_overdrawn(&counted(world.dps("a")), 10, 60);
    assert!(overdrawn < 0.01, "waiting for connections makes no bursts: {overdrawn}");
}

#[tokio::test(start_paused = true)]
async fn the_first_polls_after_a_restart_are_spread() {
    let mut world = World::new(settings(&[("a", 600)])).await;
    world.dps("a").assigning(seconds(120));
    for number in 0..50 {
        world.queue(&format!("device-{number}")).await;
    }
    sleep(seconds(30)).await;
    world.kill().await;
    let (began, before) = (world.clock.elapsed(), world.dps("a").count(Call::Poll));
    sleep(seconds(6)).await;
    let polls: Vec<Duration> = world
        .dps("a")
        .sent()
        .into_iter()
        .filter(|sent| sent.call == Call::Poll)
        .skip(before)
        .map(|sent| sent.at - began)
        .collect();
    assert!(polls.len() >= 50);
    let busiest =
        polls.iter().map(|&at| polls.iter().filter(|&&other| other >= at && other < at + seconds(1)).count()).max();
    assert!(busiest < Some(30), "{busiest:?} of {} in one second", polls.len());
}

#[tokio::test(start_paused = true)]
async fn polls_survive_every_passing_failure_and_keep_their_distance() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.dps("a").assigning(seconds(20));
    for fate in [
        Fate::NeverLeft,
        Fate::lost_before_arrival(),
        Fate::error(500, Some(500_001)),
        Fate::error(503, None),
        Fate::error(404, None),
        Fate::throttled(Some(1)),
        Fate::reply(Reply::Unreadable),
    ] {
        world.dps("a").next(Call::Poll, fate);
    }
    world.settle(world.ask("device-1")).await;
    assert_eq!(world.dps("a").count(Call::Register), 1);
    let polls: Vec<Duration> =
        world.dps("a").sent().iter().filter(|sent| sent.call == Call::Poll).map(|sent| sent.at).collect();
    assert!(polls.windows(5).all(|five| five[4] - five[0] >= seconds(8)), "at most 5 polls in 10 s: {polls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_stays_assigning_is_begun_anew() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.dps("a").next(Call::Register, Fate::reply(Reply::Stuck));
    world.queue("device-1").await;
    sleep(seconds(290)).await;
    assert_eq!(world.dps("a").count(Call::Register), 1);
    sleep(seconds(90)).await;
    assert_eq!(world.dps("a").count(Call::Register), 2);
    world.hub("device-1").await;
}

#[tokio::test(start_paused = true)]
async fn a_device_that_alone_keeps_failing_is_refused_in_the_end_and_holds_up_nobody() {
    let world = World::new(settings(&[("a", 60)])).await;
    for _ in 0..100 {
        world.dps("a").next_of(Call::Register, "device-x", Fate::error(500, Some(500_001)));
    }
    world.queue("device-x").await;
    for number in 0..200 {
        world.queue(&format!("device-{number}")).await;
        sleep(seconds(2)).await;
    }
    assert_eq!(refusal(&world, "device-x").await.unwrap().code, "no-result");
    // Those that open the circuit are held against the instance.
    let sent = world.dps("a").count_of(Call::Register, "device-x");
    assert!((8..=16).contains(&sent), "{sent}");
    assert!(world.dps("a").count(Call::Register) >= 200);
}

// --- refusals ---------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn each_refusal_is_told_with_its_code_and_tracking_id() {
    for (fate, code, error_code, tracking_id) in [
        (Fate::error(401, Some(401_002)), "unauthorized-by-dps", Some(401_002), "tracking-1"),
        (Fate::error(404, Some(404_201)), "not-enrolled", Some(404_201), "tracking-1"),
        (Fate::error(400, Some(400_004)), "rejected-by-dps", Some(400_004), "tracking-1"),
        (Fate::reply(Reply::Fail(400_207)), "custom-allocation-failed", Some(400_207), "request-1"),
        (Fate::reply(Reply::Fail(400_208)), "no-hub-selected", Some(400_208), "request-1"),
        (Fate::reply(Reply::Fail(400_209)), "hub-refused-dps", Some(400_209), "request-1"),
        (Fate::reply(Reply::Fail(404_201)), "not-enrolled", Some(404_201), "request-1"),
        (Fate::reply(Reply::Fail(401_002)), "unauthorized-by-dps", Some(401_002), "request-1"),
        (Fate::reply(Reply::Fail(123_456)), "registration-failed", Some(123_456), "request-1"),
        (Fate::reply(Reply::Disabled), "enrollment-disabled", None, "request-1"),
    ] {
        let world = World::new(settings(&[("a", 60)])).await;
        world.dps("a").next(Call::Register, fate);
        world.queue("device-1").await;
        sleep(seconds(10)).await;
        let told = refusal(&world, "device-1").await.unwrap();
        assert_eq!(
            (told.code.as_str(), told.error_code, told.tracking_id.as_deref()),
            (code, error_code, Some(tracking_id))
        );
        assert!(told.detail.len() > 30, "{code}: in words: {}", told.detail);
        let view = world.gateway.instances().await.remove(0);
        assert_eq!((view.line_length, view.under_way), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_believed_until_it_expires_or_is_dropped() {
    let mut world = World::new(settings(&[("a", 60)])).await;
    world.dps("a").next_of(Call::Register, "device-1", Fate::error(401, Some(401_002)));
    world.queue("device-1").await;
    sleep(seconds(10)).await;
    for _ in 0..30 {
        assert!(refusal(&world, "device-1").await.is_some());
        sleep(seconds(100)).await;
    }
    assert_eq!(world.dps("a").count(Call::Register), 1);
    sleep(seconds(700)).await;
    world.settle(world.ask("device-1")).await;

    // An operator's retry drops it and puts the device in line.
    world.dps("a").next_of(Call::Register, "device-2", Fate::error(401, Some(401_002)));
    world.queue("device-2").await;
    sleep(seconds(10)).await;
    assert!(refusal(&world, "device-2").await.is_some());
    world.gateway.retry(&id("device-2")).await.unwrap();
    sleep(seconds(10)).await;
    world.hub("device-2").await;

    // So do changed settings, and a restart does not bring it back.
    world.dps("a").next_of(Call::Register, "device-3", Fate::error(401, Some(401_002)));
    world.queue("device-3").await;
    sleep(seconds(10)).await;
    assert!(refusal(&world, "device-3").await.is_some());
    let mut changed = (*world.gateway.settings()).clone();
    changed.line.jitter_max = seconds(4);
    world.gateway.apply(changed).await.unwrap();
    world.restart().await;
    world.settle(world.ask("device-3")).await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_the_settings_changed_is_believed_although_the_wall_clock_was_set_back() {
    let world = World::new(settings(&[("a", 60)])).await;
    let mut changed = (*world.gateway.settings()).clone();
    changed.line.jitter_max = seconds(4);
    world.gateway.apply(changed).await.unwrap();
    world.clock.set_wall_offset_millis(-600_000);
    for _ in 0..10 {
        world.dps("a").next(Call::Register, Fate::error(401, Some(401_002)));
    }
    world.queue("device-1").await;
    for _ in 0..5 {
        sleep(seconds(10)).await;
        assert!(refusal(&world, "device-1").await.is_some());
    }
    assert_eq!(world.dps("a").count(Call::Register), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_reprovisioning_does_not_take_a_device_its_confirmed_hub() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.settle(world.ask("device-1")).await;
    sleep(seconds(1000)).await;
    world.dps("a").next(Call::Register, Fate::error(401, Some(401_002)));
    assert!(matches!(world.provision(world.ask("device-1").reprovision()).await, Ok(Outcome::Queued(_))));
    sleep(seconds(10)).await;
    let again = world.provision(world.ask("device-1").reprovision()).await;
    assert!(matches!(again, Err(ProvisionError::Refused(_))), "{again:?}");
    assert_eq!(world.hub("device-1").await, "hub-a.azure-devices.net");
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_the_instance_may_not_answer_with_is_not_stored() {
    let mut settings = settings(&[("a", 60)]);
    let allowed = proxy_core::ids::HubName::parse("hub-a.azure-devices.net").unwrap();
    settings.instances.get_mut("a").unwrap().hubs = [allowed].into();
    let world = World::new(settings).await;
    world.settle(world.ask("device-1")).await;
    world.dps("a").hub("elsewhere.azure-devices.net");
    world.queue("device-2").await;
    sleep(seconds(10)).await;
    assert_eq!(refusal(&world, "device-2").await.unwrap().code, "unexpected-hub");
    assert_eq!(world.record("device-2").await.unwrap().assignment(), None);
}

#[tokio::test(start_paused = true)]
async fn a_device_id_that_another_registration_holds_is_refused() {
    for (first, second) in [("device-1", "device-2"), ("device-2", "device-1")] {
        for together in [false, true] {
            let world = World::new(individual(settings(&[("a", 60)]))).await;
            // The name of one of the two, and a name of neither.
            for taken in ["device-1", "Pump-7"] {
                let (first, second) = (format!("{first}{}", taken.len()), format!("{second}{}", taken.len()));
                let taken = format!("{taken}{}", if taken == "device-1" { "8" } else { "" });
                world.list(&first, "plant").await;
                world.list(&second, "plant").await;
                world.dps("a").device_id(&first, &taken);
                world.dps("a").device_id(&second, &taken);
                world.queue(&first).await;
                if together {
                    // Both are answered while the disk is slow.
                    world.queue(&second).await;
                    sleep(seconds(1)).await;
                    world.store.hold_acks(true);
                    sleep(seconds(10)).await;
                    world.store.hold_acks(false);
                } else {
                    sleep(seconds(10)).await;
                    world.queue(&second).await;
                }
                sleep(seconds(10)).await;
                let told = [world.provision(world.ask(&first)).await, world.provision(world.ask(&second)).await];
                let assigned = told.iter().filter(|told| matches!(told, Ok(Outcome::Assigned(_)))).count();
                let refused = told
                    .iter()
                    .filter(|told| matches!(told, Err(ProvisionError::Refused(refusal)) if refusal.code == "device-id-taken"))
                    .count();
                assert_eq!((assigned, refused), (1, 1), "{first}, {second}, together: {together}: {told:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_assigned_while_it_cannot_be_read_whether_the_device_id_is_taken() {
    let world = World::new(individual(settings(&[("a", 60)]))).await;
    world.list("device-1", "plant").await;
    world.list("device-2", "plant").await;
    world.settle(world.ask("device-2")).await;
    world.dps("a").device_id("device-1", "device-2");
    let key = Record::key(&id("device-2"));
    let stored = world.store.get(&key).await.unwrap().unwrap();
    world.queue("device-1").await;
    world.store.seed(key.clone(), "damaged");
    sleep(seconds(60)).await;
    assert!(matches!(world.provision(world.ask("device-1")).await, Ok(Outcome::Queued(_))));
    assert_eq!(world.record("device-1").await.unwrap().assignment(), None);
    world.store.seed(key, stored.value);
    sleep(seconds(20)).await;
    assert_eq!(refusal(&world, "device-1").await.unwrap().code, "device-id-taken");
    assert_eq!(world.dps("a").count(Call::Register), 2);
}

#[tokio::test(start_paused = true)]
async fn a_device_id_is_free_again_when_the_assignment_is_gone() {
    let world = World::new(individual(settings(&[("a", 60)]))).await;
    for device in ["device-1", "device-2"] {
        world.list(device, "plant").await;
        world.dps("a").device_id(device, "Pump-7");
    }
    world.settle(world.ask("device-1")).await;
    assert_eq!(world.store.rows(Table::DeviceId), 1);
    assert!(world.gateway.retire(&id("device-1"), true).await.unwrap().is_none());
    assert_eq!(world.store.rows(Table::DeviceId), 0);
    world.settle(world.ask("device-2")).await;
    assert_eq!(world.record("device-2").await.unwrap().assignment().unwrap().device_id.as_str(), "Pump-7");
}

#[tokio::test(start_paused = true)]
async fn a_device_id_of_an_earlier_release_is_found_after_the_upgrade() {
    let mut world = World::new(individual(settings(&[("a", 60)]))).await;
    for device in ["device-1", "device-2"] {
        world.list(device, "plant").await;
        world.dps("a").device_id(device, "Pump-7");
    }
    world.settle(world.ask("device-1")).await;
    // An earlier release kept no rows.
    let names = world.store.scan(Table::DeviceId, None, 10).await.unwrap().into_iter().map(|row| row.name);
    let rows = names.map(|name| Key::new(Table::DeviceId, name)).chain([Key::new(Table::Meta, "device-ids")]);
    let writes = rows.map(|key| Write::delete(key, Expect::Any)).collect();
    world
        .store
        .commit(Commit { version: Version::random(&mut Entropy::from_seed(7)), writes, fence: None })
        .await
        .unwrap();
    assert_eq!(world.store.rows(Table::DeviceId), 0);
    world.kill().await;
    world.queue("device-2").await;
    sleep(seconds(30)).await;
    assert_eq!(refusal(&world, "device-2").await.unwrap().code, "device-id-taken");
}

// --- reprovisioning, suspicion ----------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_device_that_repeats_reprovision_is_registered_once() {
    for restart in [false, true] {
        let mut world = World::new(settings(&[("a", 60)])).await;
        world.settle(world.ask("device-1")).await;
        sleep(seconds(3600)).await;
        let before = world.dps("a").count(Call::Register);
        for _ in 0..10 {
            let answered = world.provision(world.ask("device-1").reprovision()).await.unwrap();
            let wait = if let Outcome::Queued(queued) = answered { queued.retry_after_seconds } else { 20 };
            if restart {
                world.kill().await;
            }
            sleep(seconds(wait)).await;
        }
        world.assigned(world.ask("device-1").reprovision()).await;
        assert_eq!(world.dps("a").count(Call::Register) - before, 1, "restart: {restart}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_comes_back_long_after_it_asked_is_told_of_that_registration() {
    let mut world = World::new(settings(&[("a", 60)])).await;
    world.settle(world.ask("device-1")).await;
    sleep(seconds(3600)).await;
    assert!(matches!(world.provision(world.ask("device-1").reprovision()).await, Ok(Outcome::Queued(_))));
    sleep(seconds(60)).await;
    world.reboot(seconds(40)).await;
    sleep(seconds(10 * 24 * 3600)).await;
    world.assigned(world.ask("device-1").reprovision()).await;
    sleep(seconds(5)).await;
    world.assigned(world.ask("device-1").reprovision()).await;
    assert_eq!(world.dps("a").count(Call::Register), 2);
    sleep(seconds(1000)).await;
    assert!(matches!(world.provision(world.ask("device-1").reprovision()).await, Ok(Outcome::Queued(_))), "a new wish");
}

#[tokio::test(start_paused = true)]
async fn being_told_of_a_reprovisioning_is_no_wish_for_another_however_short_the_cool_down() {
    let mut inventory = settings(&[("a", 600)]);
    inventory.registration.reprovision_cooldown = Duration::ZERO;
    let world = World::new(inventory).await;
    world.settle(world.ask("device-1")).await;
    sleep(seconds(10)).await;
    for wish in 1..=3 {
        let ask = world.ask("device-1").reprovision();
        assert!(matches!(world.provision(ask.clone()).await, Ok(Outcome::Queued(_))), "wish {wish}");
        // Who does not ask for it is not held up by it.
        world.hub("device-1").await;
        sleep(seconds(10)).await;
        world.assigned(ask).await;
        sleep(seconds(60)).await;
        assert_eq!(world.dps("a").count(Call::Register), 1 + wish);
    }
}

#[tokio::test(start_paused = true)]
async fn a_recent_registration_satisfies_reprovision() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.settle(world.ask("device-1")).await;
    sleep(seconds(800)).await;
    world.assigned(world.ask("device-1").reprovision()).await;
    assert_eq!(world.dps("a").count(Call::Register), 1);
}

#[tokio::test(start_paused = true)]
async fn a_contradicted_assignment_is_not_told_and_registered_anew_once_per_cool_down() {
    let mut world = World::new(settings(&[("a", 60)])).await;
    world.settle(world.ask("device-1")).await;
    world.dps("a").hub("hub-new.azure-devices.net");
    world.gateway.invalidate("device-1", None, "hub-404001").await.unwrap();
    for restarts in 0..3 {
        sleep(seconds(250)).await;
        if restarts == 1 {
            world.kill().await;
        }
        assert!(matches!(world.provision(world.ask("device-1")).await, Ok(Outcome::Queued(_))));
        assert_eq!(world.dps("a").count(Call::Register), 1, "still within the cool-down");
    }
    sleep(seconds(170)).await;
    assert_eq!(world.hub("device-1").await, "hub-new.azure-devices.net");
    let revisions = world.record("device-1").await.unwrap().assignment().cloned().unwrap();
    assert_eq!((revisions.state, revisions.revision), (AssignmentState::Confirmed, 3));
    for _ in 0..9 {
        world.gateway.invalidate("device-1", None, "hub-404001").await.unwrap();
        sleep(seconds(90)).await;
    }
    assert_eq!(world.dps("a").count(Call::Register), 2);
}

#[tokio::test(start_paused = true)]
async fn invalidating_a_refused_device_again_and_again_does_not_register_it() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.settle(world.ask("device-1")).await;
    sleep(seconds(1000)).await;
    for _ in 0..20 {
        world.dps("a").next(Call::Register, Fate::error(401, Some(401_002)));
    }
    for _ in 0..10 {
        world.gateway.invalidate("device-1", None, "hub-404001").await.unwrap();
        sleep(seconds(30)).await;
    }
    assert_eq!(world.dps("a").count(Call::Register), 2);
    assert!(refusal(&world, "device-1").await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_whole_hub_is_invalidated_at_once() {
    let world = World::new(settings(&[("a", 600)])).await;
    for number in 0..50 {
        world.queue(&format!("device-{number}")).await;
    }
    sleep(seconds(60)).await;
    world.dps("a").hub("hub-new.azure-devices.net");
    world.settle(world.ask("on-the-new-hub")).await;
    let gone = proxy_core::ids::HubName::parse("hub-a.azure-devices.net").unwrap();
    assert_eq!(world.gateway.invalidate_hub(gone, None, "hub-gone".to_owned(), ()).await.unwrap(), 50);
    sleep(seconds(1000)).await;
    for number in 0..50 {
        assert_eq!(world.hub(&format!("device-{number}")).await, "hub-new.azure-devices.net");
    }
    assert_eq!(world.dps("a").count(Call::Register), 101);
}

#[tokio::test(start_paused = true)]
async fn no_device_is_told_two_hubs_while_dps_changes_its_mind() {
    let world = Arc::new(World::new(settings(&[("a", 60)])).await);
    for number in 0..20 {
        world.dps("a").next_of(Call::Register, &format!("device-{number}"), Fate::lost_after_commit());
        world.queue(&format!("device-{number}")).await;
    }
    sleep(seconds(20)).await;
    world.dps("a").hub("hub-new.azure-devices.net");
    let mut told = std::collections::BTreeMap::<String, String>::new();
    for _ in 0..40 {
        sleep(seconds(5)).await;
        for number in 0..20 {
            let device = format!("device-{number}");
            if let Ok(Outcome::Assigned(assigned)) = world.provision(world.ask(&device).payload(json!({}))).await {
                let hub = told.entry(device).or_insert_with(|| assigned.hub.to_string());
                assert_eq!(*hub, assigned.hub.to_string());
            }
        }
    }
    assert_eq!(told.len(), 20);
}
