//! Why a device waits, as operators are told: the exact limit that holds it.

use std::collections::BTreeSet;
use std::time::Duration;

use proxy_core::ids::TenantName;
use proxy_core::line::Holding;
use proxy_core::settings::{DeviceAttestation, Membership};
use proxy_core::store::Health;
use rate_control::circuit_breaker::CircuitState;
use rate_control::time::Clock;

use crate::support::dps::{Call, Fate, Reply, Weather};
use crate::support::{World, enrollment, enrollment_name, id, millis, name, seconds, settings, sleep};

async fn holding(world: &World) -> Holding {
    world.gateway.instances().await[0].holding
}

async fn why(world: &World, device: &str) -> String {
    world.gateway.registration(&id(device)).await.unwrap().waiting_because.unwrap()
}

/// Waits until `wanted` is what holds the line, at most 90 seconds.
async fn until_held_by(world: &World, wanted: Holding) {
    let mut seen = Vec::new();
    for _ in 0..9000 {
        let held_by = holding(world).await;
        if held_by == wanted {
            return;
        }
        if !seen.contains(&held_by) {
            seen.push(held_by);
        }
        sleep(millis(10)).await;
    }
    panic!("never held by {wanted:?}, but by {seen:?}");
}

async fn assert_why(world: &World, device: &str, parts: &[&str]) {
    let why = why(world, device).await;
    for part in parts {
        assert!(why.contains(part), "{part:?} is not in {why:?}");
    }
}

async fn queue_devices(world: &World, devices: u32) {
    for number in 0..devices {
        world.queue(&format!("device-{number}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_rate_and_the_quota_of_the_minute_are_told_apart() {
    let world = World::new(settings(&[("a", 60)])).await;
    queue_devices(&world, 100).await;
    sleep(millis(5_500)).await;
    assert_eq!(holding(&world).await, Holding::Pace);
    assert_why(&world, "device-99", &["of 85 in the line of a; the instance takes 60 registrations per minute"]).await;
    // The burst has used up the minute a little before its end.
    until_held_by(&world, Holding::Quota).await;
    let parts = ["the quota of this minute is used up; the instance takes 60 registrations per minute"];
    assert_why(&world, "device-99", &parts).await;
    sleep(seconds(120)).await;
    assert_eq!(holding(&world).await, Holding::Nothing, "nobody waits");
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_429_is_told_until_calls_are_free_again() {
    let world = World::new(settings(&[("a", 6000)])).await;
    world.dps("a").weather(Weather::fair(400));
    world.dps("a").next(Call::Register, Fate::throttled(Some(20)));
    queue_devices(&world, 1500).await;
    sleep(seconds(5)).await;
    assert_eq!(holding(&world).await, Holding::ThrottledByDps);
    assert_why(&world, "device-1499", &["DPS throttled the instance: paused until 20"]).await;
    until_held_by(&world, Holding::AfterThrottling).await;
    let parts =
        ["DPS throttled the instance recently and calls ramp up: the next call leaves when DPS answers one in flight"];
    assert_why(&world, "device-1499", &parts).await;
    until_held_by(&world, Holding::Pace).await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_its_end_and_the_ramp_after_it_are_told() {
    let world = World::new(settings(&[("a", 6000)])).await;
    world.dps("a").weather(Weather { failing: 1000, ..Weather::fair(400) });
    queue_devices(&world, 300).await;
    until_held_by(&world, Holding::InstanceFailing).await;
    sleep(seconds(60)).await;
    assert_why(&world, "device-299", &["calls to the instance fail (", " in a row); circuit ", "one trial request"])
        .await;
    world.dps("a").weather(Weather::fair(400));
    for _ in 0..100 {
        if holding(&world).await == Holding::RampingUp {
            let parts =
                ["the circuit closed again and calls ramp up: the next call leaves when DPS answers one in flight"];
            return assert_why(&world, "device-299", &parts).await;
        }
        sleep(millis(900)).await;
    }
    panic!("the ramp is never told");
}

#[tokio::test(start_paused = true)]
async fn the_bounds_of_the_configuration_are_told_by_their_names() {
    for in_flight in [true, false] {
        let mut rules = settings(&[("a", 6000)]);
        let registration = &mut rules.registration;
        let bound = if in_flight { &mut registration.in_flight_max } else { &mut registration.connections_max };
        *bound = 3;
        let world = World::new(rules).await;
        world.dps("a").weather(Weather::fair(20_000));
        queue_devices(&world, 50).await;
        sleep(seconds(5)).await;
        let (wanted, words) = if in_flight {
            (Holding::InFlightMax, "3 registrations are under way, as many as registration.in_flight_max allows")
        } else {
            (Holding::ConnectionsMax, "3 calls in flight, as many as registration.connections_max allows")
        };
        assert_eq!(holding(&world).await, wanted);
        assert_why(&world, "device-49", &[words]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_came_down_and_the_concurrency_it_needs_are_told() {
    let mut rules = settings(&[("a", 600)]);
    let instance = rules.instances.get_mut(&name("a")).unwrap();
    (instance.adaptive_limit, instance.adaptive_limit_min_per_minute) = (true, 60);
    let world = World::new(rules).await;
    queue_devices(&world, 2500).await;
    // The slots of the first burst come free together.
    until_held_by(&world, Holding::Concurrency).await;
    assert_why(
        &world,
        "device-2499",
        &["the instance takes 600 registrations per minute; the next call leaves when DPS answers one in flight (at most 2 at the same time)"],
    )
    .await;
    world.dps("a").takes_per_minute(Some(300));
    sleep(seconds(180)).await;
    let limit = world.gateway.instances().await[0].limit_per_minute;
    assert!((280..=300).contains(&limit), "{limit}");
    let words =
        format!("the instance takes {limit} registrations per minute, because DPS refused more; its quota is 600");
    assert_why(&world, "device-2499", &[&words]).await;
}

#[tokio::test(start_paused = true)]
async fn who_shares_the_line_is_told() {
    let mut rules = settings(&[("a", 60)]);
    for side in ["big", "small"] {
        let mut group = enrollment();
        group.tenant = TenantName::parse(side).unwrap();
        let audiences = BTreeSet::from([format!("{side}.example")]);
        group.device = DeviceAttestation::SasToken { audiences, membership: Membership::Signature };
        rules.enrollments.insert(enrollment_name(side), group);
    }
    let world = World::new(rules).await;
    for number in 0..60 {
        let side = if number % 3 == 0 { "small" } else { "big" };
        world.provision(world.ask_of(&format!("{side}-{number}"), &format!("{side}.example"))).await.unwrap();
    }
    assert_why(&world, "big-59", &["; 2 tenants share the line by weight"]).await;
    for number in [37, 38, 40, 41, 43, 44, 46, 47, 49, 50, 52, 53, 55, 56, 58] {
        world.gateway.expedite(&id(&format!("big-{number}"))).await.unwrap();
    }
    sleep(millis(100)).await;
    let told = why(&world, "big-59").await;
    assert!(told.contains(" expedited devices get up to 10 % of the departures; 2 tenants"), "{told}");
    assert_why(&world, "big-58", &["; expedited devices get 10 % of the departures while others wait"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_of_its_own_is_told_with_its_end() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.settle(world.ask("device-1")).await;
    world.gateway.invalidate("device-1", None, "hub-404001").await.unwrap();
    world.queue("device-1").await;
    assert_why(&world, "device-1", &["deferred until 20", "or by registration.suspect_cooldown"]).await;
    let (view, now) = (world.gateway.instances().await.remove(0), world.clock.now().wall);
    let [tenant] = &view.tenants[..] else { panic!("{:?}", view.tenants) };
    assert_eq!((view.line_length, tenant.line_length), (1, 1));
    for until in [view.deferred_until, tenant.deferred_until] {
        let left = until.unwrap().since(now);
        assert!((seconds(880)..seconds(910)).contains(&left), "{left:?}");
    }
    assert_eq!((view.drained_at, tenant.drained_at), (None, now), "nobody waits for a turn");
}

#[tokio::test(start_paused = true)]
async fn failing_polls_are_told_with_their_cause_and_forgotten_when_one_succeeds() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.dps("a").assigning(seconds(100));
    world.queue("device-1").await;
    sleep(seconds(1)).await;
    let fair = why(&world, "device-1").await;
    assert!(
        fair.starts_with("a is processing its registration (operation ") && fair.ends_with("; polling for the result"),
        "{fair}"
    );
    world.dps("a").reachable(false);
    let mut failed = 0;
    while failed < 3 {
        sleep(seconds(1)).await;
        assert!(world.clock.elapsed() < seconds(60), "it does not say that polls fail");
        let told = why(&world, "device-1").await;
        failed = told
            .split_once("failed polls in a row: ")
            .and_then(|(_, rest)| rest.split_once(" (the last one: "))
            .map_or(0, |(count, _)| count.parse::<u32>().unwrap());
    }
    let events = |record: &proxy_core::device::Record| -> Vec<String> {
        let failures = record.timeline().iter().filter(|event| event.what.starts_with("a poll failed: "));
        failures.map(|event| event.what.clone()).collect()
    };
    assert_eq!(events(&world.record("device-1").await.unwrap()).len(), 1, "one event for all of them");
    let counts = world.gateway.instances().await[0].counts;
    assert!(counts.lost + counts.unreachable >= 3, "{counts:?}");
    world.dps("a").reachable(true);
    sleep(seconds(12)).await;
    assert_eq!(why(&world, "device-1").await, fair);
    world
        .dps("a")
        .next(Call::Poll, Fate::reply(Reply::Error { http_status: 500, error_code: Some(500_001), retry_after: None }));
    sleep(Duration::from_secs(90)).await;
    world.hub("device-1").await;
    let last = events(&world.record("device-1").await.unwrap()).pop().unwrap();
    assert!(last.contains("DPS failed with 500001") && last.contains("tracking ID"), "{last}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_no_writes_is_not_told_as_a_failing_instance() {
    let world = World::new(settings(&[("a", 60)])).await;
    queue_devices(&world, 100).await;
    sleep(seconds(5)).await;
    world.store.set_health(Health::ReadOnly("full".to_owned()));
    until_held_by(&world, Holding::Store).await;
    assert_why(&world, "device-99", &["the store takes no writes, and nothing is sent that is not on disk"]).await;
    let seen = world.gateway.instances().await.remove(0);
    assert_eq!((seen.breaker, seen.consecutive_failures), (CircuitState::Closed, 0));
    world.store.set_health(Health::Writable);
    sleep(seconds(120)).await;
    world.hub("device-99").await;
}

#[tokio::test(start_paused = true)]
async fn a_device_whose_outcome_is_unknown_is_told_what_holds_its_lookup() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.dps("a").next(Call::Register, Fate::lost_before_arrival());
    world.queue("device-1").await;
    sleep(seconds(1)).await;
    assert_why(&world, "device-1", &["waiting for a to answer its call"]).await;
    sleep(seconds(5)).await;
    assert_why(&world, "device-1", &["with an unknown outcome; waiting to look it up: deferred until 20"]).await;
    world.dps("a").next(Call::Register, Fate::throttled(Some(30)));
    world.queue("device-2").await;
    sleep(seconds(10)).await;
    let parts = ["waiting to look it up: position ", "DPS throttled the instance: paused until 20"];
    assert_why(&world, "device-1", &parts).await;
}
