//! Who gets how much of a line: tenants, classes, and what DPS itself leaves of the quota.

use std::collections::BTreeSet;
use std::sync::Arc;

use proxy_core::ids::TenantName;
use proxy_core::place::Class;
use proxy_core::settings::{DeviceAttestation, Membership, Settings, TenantSettings};
use proxy_core::use_cases::operator::InstanceView;
use rate_control::adaptive_limit::{HOLD, LimitState};
use rate_control::time::{Clock, WallTime};

use crate::support::dps::{Call, Fate};
use crate::support::judge::{assert_within_quota, counted};
use crate::support::{World, enrollment, enrollment_name, id, millis, name, seconds, settings, sleep};

fn tenant(text: &str) -> TenantName {
    TenantName::parse(text).unwrap()
}

/// One shared instance, two tenants with an audience each.
fn two_tenants(quota: u32) -> Settings {
    let mut rules = settings(&[("a", quota)]);
    for side in ["big", "small"] {
        let mut group = enrollment();
        group.tenant = tenant(side);
        group.device = DeviceAttestation::SasToken {
            audiences: BTreeSet::from([format!("{side}.example")]),
            membership: Membership::Signature,
        };
        rules.enrollments.insert(enrollment_name(side), group);
    }
    rules
}

async fn view(world: &World) -> InstanceView {
    world.gateway.instances().await.into_iter().next().unwrap()
}

async fn join(world: &World, side: &str, number: u32) {
    world.provision(world.ask_of(&format!("{side}-{number}"), &format!("{side}.example"))).await.unwrap();
}

fn registered_of(world: &World, side: &str) -> usize {
    world.dps("a").sent().iter().filter(|sent| sent.call == Call::Register && sent.id.starts_with(side)).count()
}

#[tokio::test(start_paused = true)]
async fn a_tenant_with_many_devices_pushes_nobody_beyond_a_fair_share() {
    let world = World::new(two_tenants(60)).await;
    for number in 0..500 {
        join(&world, "big", number).await;
    }
    sleep(seconds(30)).await;
    for number in 0..10 {
        join(&world, "small", number).await;
    }
    let now = world.gateway.now().wall;
    // Ten devices at half of 60 per minute, not behind the 470 of the other tenant; give or take what appointments allow for.
    let told = drained(&world, "small").await.since(now);
    assert!(told > seconds(15) && told < seconds(35), "{told:?}");
    assert!(drained(&world, "big").await.since(now) > seconds(450));
    sleep(seconds(25)).await;
    assert_eq!(registered_of(&world, "small"), 10);
    assert_within_quota(world.dps("a"), 60, "two tenants");
}

async fn drained(world: &World, side: &str) -> WallTime {
    view(world).await.tenants.iter().find(|drain| drain.tenant == tenant(side)).expect("its devices wait").drained_at
}

/// A device that was told a moment is not put off for one that comes later, however many come: those beyond what appointments allow for go
/// after it, and are told so.
#[tokio::test(start_paused = true)]
async fn tenants_that_come_late_have_what_appointments_leave_them_and_are_told_so() {
    let world = Arc::new(World::new(two_tenants(600)).await);
    let settle = |side: &'static str, number: u32| {
        let world = Arc::clone(&world);
        let ask = world.ask_of(&format!("{side}-{number}"), &format!("{side}.example"));
        tokio::spawn(async move { world.settle(ask).await.1 })
    };
    let mut devices: Vec<_> = (0..1500).map(|number| settle("big", number)).collect();
    sleep(seconds(30)).await;
    let late = 800;
    devices.extend((0..late).map(|number| settle("small", number)));
    sleep(seconds(1)).await;
    let now = world.gateway.now().wall;
    // 2,000 wait, ten leave each second: the large tenant's 1,200 first, but for the 150 that its appointments let in.
    let (big, small) = (drained(&world, "big").await.since(now), drained(&world, "small").await.since(now));
    assert!(big > seconds(115) && big < seconds(150), "{big:?}");
    assert!(small > seconds(190) && small < seconds(225), "{small:?}");
    sleep(seconds(60)).await;
    let early = registered_of(&world, "small");
    assert!((100..=200).contains(&early), "{early}");
    let (mut requests, count) = (0, devices.len());
    for device in devices {
        requests += device.await.unwrap();
    }
    assert!(f64::from(requests) <= 2.05 * count as f64, "{requests} requests of {count} devices");
    assert_within_quota(world.dps("a"), 600, "a late tenant");
}

#[tokio::test(start_paused = true)]
async fn a_weight_changed_in_mid_storm_holds_from_then_on() {
    let mut rules = two_tenants(120);
    let world = World::new(rules.clone()).await;
    for number in 0..400 {
        join(&world, "big", number).await;
        join(&world, "small", number).await;
    }
    sleep(seconds(60)).await;
    let before = (registered_of(&world, "big"), registered_of(&world, "small"));
    assert!(before.0.abs_diff(before.1) <= 2, "{before:?}");
    rules.tenants.insert(tenant("small"), TenantSettings { weight: 3 });
    world.gateway.apply(rules).await.unwrap();
    sleep(seconds(120)).await;
    let gained = (registered_of(&world, "big") - before.0, registered_of(&world, "small") - before.1);
    let share = gained.1 as f64 / (gained.0 + gained.1) as f64;
    assert!((0.73..0.77).contains(&share), "{gained:?}");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_yields_to_devices_at_the_door_until_its_device_comes() {
    let world = World::new(settings(&[("a", 60)])).await;
    for number in 0..20 {
        world.settle(world.ask(&format!("known-{number}"))).await;
    }
    sleep(seconds(1000)).await;
    for number in 0..60 {
        world.queue(&format!("new-{number}")).await;
    }
    for number in 0..20 {
        world.gateway.invalidate(&format!("known-{number}"), None, "gone").await.unwrap();
    }
    let class = async |device: &str| world.record(device).await.unwrap().pending().unwrap().place.class;
    assert_eq!(class("known-3").await, Class::Background);
    let writes = world.store.commits();
    world.queue("known-3").await;
    assert_eq!((class("known-3").await, world.store.commits()), (Class::Reprovision, writes + 1));
    world.queue("known-3").await;
    assert_eq!(world.store.commits(), writes + 1, "asking again costs no write");
    sleep(seconds(40)).await;
    let again =
        world.dps("a").sent().iter().filter(|sent| sent.at > seconds(1000) && sent.id.starts_with("known")).count();
    assert_eq!(again, 0, "new devices go first");
    sleep(seconds(90)).await;
    for number in 0..20 {
        world.hub(&format!("known-{number}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_waits_longer_than_the_handicap_goes_before_newer_ones_of_a_better_class() {
    let mut rules = settings(&[("a", 30)]);
    rules.line.class_handicap = seconds(60);
    let world = World::new(rules).await;
    world.settle(world.ask("known")).await;
    sleep(seconds(1000)).await;
    world.gateway.invalidate("known", None, "gone").await.unwrap();
    // New devices keep coming, faster than they are served.
    for number in 0..300 {
        world.queue(&format!("new-{number}")).await;
        sleep(seconds(1)).await;
    }
    let since = world.clock.elapsed();
    assert!(since > seconds(1300));
    world.hub("known").await;
}

#[tokio::test(start_paused = true)]
async fn ordinary_appointments_hold_although_devices_are_expedited() {
    let world = Arc::new(World::new(settings(&[("a", 300)])).await);
    let settle = |number: u32| {
        let world = Arc::clone(&world);
        tokio::spawn(async move { world.settle(world.ask(&format!("device-{number}"))).await.1 })
    };
    let devices: Vec<_> = (0..700).map(settle).collect();
    sleep(seconds(30)).await;
    for number in 675..700 {
        world.gateway.expedite(&id(&format!("device-{number}"))).await.unwrap();
    }
    let (mut requests, mut third) = (0, 0);
    for device in devices.into_iter().take(675) {
        let asked = device.await.unwrap();
        (requests, third) = (requests + asked, third + u32::from(asked > 2));
    }
    assert!(requests <= 675 * 205 / 100, "{requests} requests of 675 devices, {third} asked a third time");
}

/// A tenant of 2,000 has been told its appointments when a hundred devices of another one come, and thirty are expedited.
#[tokio::test(start_paused = true)]
async fn appointments_hold_although_another_tenant_comes_later_and_devices_are_expedited() {
    let world = Arc::new(World::new(two_tenants(600)).await);
    let settle = |side: &'static str, number: u32| {
        let world = Arc::clone(&world);
        let ask = world.ask_of(&format!("{side}-{number}"), &format!("{side}.example"));
        tokio::spawn(async move { world.settle(ask).await.1 })
    };
    let mut devices: Vec<_> = (0..2000).map(|number| settle("big", number)).collect();
    sleep(seconds(20)).await;
    devices.extend((0..100).map(|number| settle("small", number)));
    sleep(seconds(5)).await;
    for number in 1970..2000 {
        world.gateway.expedite(&id(&format!("big-{number}"))).await.unwrap();
    }
    // Half of 600 per minute are the small tenant's.
    sleep(seconds(25)).await;
    assert_eq!(registered_of(&world, "small"), 100);
    let (mut requests, count) = (0, devices.len());
    for device in devices {
        requests += device.await.unwrap();
    }
    assert!(f64::from(requests) <= 2.05 * count as f64, "{requests} requests of {count} devices");
}

#[tokio::test(start_paused = true)]
async fn one_device_in_its_cool_down_does_not_put_off_when_the_line_is_drained() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.settle(world.ask("known")).await;
    world.gateway.invalidate("known", None, "hub-404001").await.unwrap();
    world.queue("known").await;
    // The burst goes at once.
    for number in 0..50 {
        world.queue(&format!("new-{number}")).await;
    }
    let (now, seen) = (world.gateway.now().wall, view(&world).await);
    assert_eq!((seen.line_length, seen.deferred), (41, 1));
    assert!(seen.drained_at.unwrap().since(now) < seconds(60), "{:?}", seen.drained_at);
    assert!(seen.deferred_until.unwrap().since(now) > seconds(800), "{:?}", seen.deferred_until);
    let tenant = &seen.tenants[0];
    assert_eq!((tenant.line_length, tenant.deferred, tenant.deferred_until), (41, 1, seen.deferred_until));
    assert!(tenant.drained_at.since(now) < seconds(60), "{:?}", tenant.drained_at);
    sleep(seconds(60)).await;
    let seen = view(&world).await;
    assert_eq!((seen.line_length, seen.deferred, seen.half_drained_at, seen.drained_at), (1, 1, None, None));
}

#[tokio::test(start_paused = true)]
async fn operators_see_what_left_and_what_was_assigned_within_the_last_minute() {
    let world = World::new(two_tenants(60)).await;
    for number in 0..60 {
        join(&world, "big", number).await;
        if number < 10 {
            join(&world, "small", number).await;
        }
    }
    // The last of 70 leaves at about 60 s.
    sleep(seconds(58)).await;
    let seen = view(&world).await;
    let lately = |view: &InstanceView| (view.left_last_minute, view.assigned_last_minute);
    let (left, assigned) = lately(&seen);
    // The burst of ten left at once, and one each second after that; give or take the 5 s in which they are counted.
    assert!((54..=70).contains(&left) && (50..=66).contains(&assigned), "{:?}", lately(&seen));
    let sum: u32 = seen.tenants.iter().map(|tenant| tenant.left_last_minute).sum();
    assert_eq!((sum, seen.tenants.iter().map(|tenant| tenant.assigned_last_minute).sum()), (left, assigned));
    sleep(seconds(120)).await;
    let seen = view(&world).await;
    assert_eq!((lately(&seen), seen.tenants.len()), ((0, 0), 0));
}

fn adaptive(quota: u32) -> Settings {
    let mut rules = settings(&[("a", quota)]);
    let instance = rules.instances.get_mut(&name("a")).unwrap();
    (instance.adaptive_limit, instance.adaptive_limit_min_per_minute) = (true, quota / 10);
    rules
}

#[tokio::test(start_paused = true)]
async fn the_limit_comes_down_when_the_quota_is_halved_behind_our_back_and_grows_again() {
    let world = World::new(adaptive(300)).await;
    for number in 0..16_000 {
        world.queue(&format!("device-{number}")).await;
    }
    sleep(seconds(120)).await;
    let before = view(&world).await;
    assert_eq!((before.limit_per_minute, before.limit_state, before.limit_grows_at), (300, LimitState::Quota, None));
    world.dps("a").takes_per_minute(Some(150));
    sleep(seconds(180)).await;
    let lowered = view(&world).await;
    assert!((130..=150).contains(&lowered.limit_per_minute), "{}", lowered.limit_per_minute);
    assert_eq!(lowered.limit_state, LimitState::Held);
    let grows_in = lowered.limit_grows_at.unwrap().since(world.clock.now().wall);
    assert!(grows_in <= HOLD, "{grows_in:?}");
    let first = lowered.counts.throttled;
    assert!((2..=10).contains(&first), "{first} throttled");
    sleep(seconds(1500)).await;
    let later = view(&world).await.counts;
    assert!(later.throttled - first <= 25, "{} of 3,750 throttled in 25 minutes", later.throttled - first);
    world.dps("a").takes_per_minute(None);
    sleep(seconds(1800)).await;
    assert_eq!((view(&world).await.limit_per_minute, view(&world).await.limit_state), (300, LimitState::Quota));
    assert_within_quota(world.dps("a"), 300, "the limit came down and grew");
    let times = counted(world.dps("a"));
    assert!(times.len() > 6000, "{}", times.len());
}

#[tokio::test(start_paused = true)]
async fn lookups_that_spend_no_registration_say_nothing_about_its_limit() {
    let mut rules = adaptive(600);
    rules.registration.lookup_spends = false;
    let world = World::new(rules).await;
    for number in 0..100 {
        world.queue(&format!("device-{number}")).await;
    }
    sleep(seconds(20)).await;
    world.dps("a").next(Call::Register, Fate::lost_before_arrival());
    for _ in 0..3 {
        world.dps("a").next(Call::Lookup, Fate::throttled(Some(5)));
    }
    world.queue("device-x").await;
    sleep(seconds(60)).await;
    world.hub("device-x").await;
    assert!(view(&world).await.counts.throttled >= 3);
    assert_eq!((view(&world).await.limit_per_minute, view(&world).await.limit_grows_at), (600, None));
}

#[tokio::test(start_paused = true)]
async fn the_limit_and_when_it_grows_outlive_a_crash() {
    let mut world = World::new(adaptive(600)).await;
    world.dps("a").takes_per_minute(Some(150));
    for number in 0..1500 {
        world.queue(&format!("device-{number}")).await;
    }
    // The first minute was not a whole one, so the limit came down twice.
    sleep(seconds(200)).await;
    let before = view(&world).await;
    assert!((120..=150).contains(&before.limit_per_minute), "{}", before.limit_per_minute);
    world.kill().await;
    let after = view(&world).await;
    assert_eq!(after.limit_per_minute, before.limit_per_minute);
    let grows = [&before, &after].map(|view| view.limit_grows_at.unwrap());
    assert!(grows[0].since(grows[1]).max(grows[1].since(grows[0])) <= seconds(1), "{grows:?}");
    sleep(millis(100)).await;
    let throttled = view(&world).await.counts.throttled;
    sleep(seconds(40)).await;
    assert_eq!(view(&world).await.counts.throttled, throttled);
    assert!(world.gateway.registration(&id("device-399")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn refusals_right_after_a_crash_show_what_was_taken_before_it_too() {
    let mut world = World::new(adaptive(600)).await;
    for number in 0..1500 {
        world.queue(&format!("device-{number}")).await;
    }
    sleep(seconds(25)).await;
    world.kill().await;
    sleep(seconds(15)).await;
    // Some 250 were taken by the first process and 150 by the second one.
    world.dps("a").takes_per_minute(Some(400));
    sleep(seconds(45)).await;
    let limit = view(&world).await.limit_per_minute;
    assert!((380..=420).contains(&limit), "{limit}, and half of the quota is what the second process alone would show");
}
