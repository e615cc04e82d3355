//! A line that is full: who gets the places that come free, and when those come who got none.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proxy_core::gateway::Gateway;
use proxy_core::ids::TenantName;
use proxy_core::settings::{DeviceAttestation, Membership, Settings, TenantSettings};
use proxy_core::use_cases::provision::{Outcome, ProvisionError};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::support::{Ask, World, enrollment, enrollment_name, name, seconds, settings, sleep};

/// One instance, and a tenant with an audience for each name.
fn tenants(quota: u32, length_max: usize, names: &[&str]) -> Settings {
    let mut rules = settings(&[("a", quota)]);
    rules.line.length_max = length_max;
    for side in names {
        let mut group = enrollment();
        group.tenant = TenantName::parse(side).unwrap();
        group.device = DeviceAttestation::SasToken {
            audiences: BTreeSet::from([format!("{side}.example")]),
            membership: Membership::Signature,
        };
        rules.enrollments.insert(enrollment_name(side), group);
    }
    rules
}

/// How a device fared until it had a place.
#[derive(Debug)]
struct Fared {
    waited: Duration,
    refused: usize,
}

/// Knocks, and comes back as told, until it has a place.
async fn knock(gateway: Arc<Gateway>, ask: Ask) -> Fared {
    let (began, mut refused) = (Instant::now(), 0);
    loop {
        match ask.clone().of(Arc::clone(&gateway)).await {
            Ok(Outcome::Queued(_) | Outcome::Assigned(_)) => return Fared { waited: began.elapsed(), refused },
            Err(ProvisionError::LineFull { retry_after_seconds, .. }) => {
                refused += 1;
                sleep(seconds(retry_after_seconds)).await;
            }
            other => panic!("{}: {other:?}", ask.hardware_id),
        }
    }
}

fn storm(world: &World, side: &str, count: usize) -> Vec<JoinHandle<Fared>> {
    let audience = if side.is_empty() { crate::support::AUDIENCE.to_owned() } else { format!("{side}.example") };
    let device = |number| world.ask_of(&format!("{side}device-{number}"), &audience);
    (0..count).map(|number| tokio::spawn(knock(Arc::clone(&world.gateway), device(number)))).collect()
}

async fn all(devices: Vec<JoinHandle<Fared>>) -> Vec<Fared> {
    let mut fared = Vec::new();
    for device in devices {
        fared.push(device.await.unwrap());
    }
    fared
}

async fn line_length(world: &World) -> usize {
    world.gateway.instances().await.iter().map(|view| view.line_length).sum()
}

#[tokio::test(start_paused = true)]
async fn a_tenant_whose_share_is_not_used_gets_the_next_places_of_a_full_line() {
    let world = World::new(tenants(60, 300, &["t", "u"])).await;
    let crowd = storm(&world, "t", 6_000);
    sleep(seconds(5)).await;
    assert!(line_length(&world).await >= 299, "{}", line_length(&world).await);
    let few = all(storm(&world, "u", 10)).await;
    let longest = few.iter().map(|fared| fared.waited).max().unwrap();
    let refused = few.iter().map(|fared| fared.refused).max().unwrap();
    println!(
        "full line: ten devices of another tenant had their places within {longest:?}, after {refused} refusals at most"
    );
    // Ten places come free within ten seconds.
    assert!(longest <= seconds(15) && refused <= 2, "{longest:?} {few:?}");
    for _ in 0..60 {
        sleep(seconds(10)).await;
        let length = line_length(&world).await;
        assert!((200..=300).contains(&length), "{length} of 300 in line, thousands outside");
    }
    crowd.iter().for_each(JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn tenants_that_all_have_many_devices_outside_share_a_full_line_by_weight() {
    let mut rules = tenants(600, 400, &["gold", "iron"]);
    rules.tenants.insert(TenantName::parse("gold").unwrap(), TenantSettings { weight: 3 });
    let world = World::new(rules).await;
    let iron = storm(&world, "iron", 3_000);
    sleep(seconds(1)).await;
    let gold = storm(&world, "gold", 3_000);
    sleep(seconds(200)).await;
    let view = world.gateway.instances().await.remove(0);
    let of =
        |side: &str| view.tenants.iter().find(|tenant| tenant.tenant.as_str() == side).map_or(0, |t| t.line_length);
    println!("full line: tenants of weight 3 and 1 hold {} and {} of 400 places", of("gold"), of("iron"));
    // 300 and 100, as far as devices come when they are told.
    assert!((180..=320).contains(&of("gold")) && (60..=180).contains(&of("iron")), "{} {}", of("gold"), of("iron"));
    for device in iron.iter().chain(&gold) {
        device.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_never_runs_empty_while_devices_wait_outside_and_they_knock_about_once() {
    let mut rules = settings(&[("a", 600)]);
    rules.line.length_max = 500;
    let world = World::new(rules).await;
    let devices = storm(&world, "", 1_988);
    sleep(seconds(1)).await;
    let began = Instant::now();
    while devices.iter().any(|device| !device.is_finished()) {
        assert!(line_length(&world).await > 100, "{} in line after {:?}", line_length(&world).await, began.elapsed());
        sleep(seconds(1)).await;
    }
    let filled = began.elapsed();
    let fared = all(devices).await;
    let refused: usize = fared.iter().map(|fared| fared.refused).sum();
    while line_length(&world).await > 0 {
        sleep(seconds(1)).await;
    }
    println!(
        "full line: 1,488 devices outside had places after {filled:?}, {refused} refusals in all; drained after {:?} (at the least 199 s)",
        began.elapsed()
    );
    assert!(refused <= 1_488 * 5 / 4, "{refused} refusals");
    assert!(began.elapsed() <= seconds(204), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn devices_far_back_outside_knock_seldom_and_the_line_does_not_run_empty_either() {
    let mut rules = settings(&[("a", 60)]);
    rules.line.length_max = 60;
    let world = World::new(rules).await;
    let devices = storm(&world, "", 1_560);
    sleep(seconds(1)).await;
    let began = Instant::now();
    while devices.iter().any(|device| !device.is_finished()) {
        assert!(line_length(&world).await > 10, "{} in line after {:?}", line_length(&world).await, began.elapsed());
        sleep(seconds(5)).await;
    }
    let fared = all(devices).await;
    let (most, refused) = (
        fared.iter().map(|fared| fared.refused).max().unwrap(),
        fared.iter().map(|fared| fared.refused).sum::<usize>(),
    );
    println!("full line: 1,500 devices outside for 25 minutes: {refused} refusals in all, {most} at most");
    assert!(refused <= 1_500 * 5 / 2, "{refused} in all, {most} at most");
}

#[tokio::test(start_paused = true)]
async fn devices_that_any_of_several_full_instances_may_take_come_as_fast_as_all_of_them_drain() {
    let mut rules = settings(&[("a", 300), ("b", 600)]);
    rules.line.length_max = 100;
    rules.instances.get_mut(&name("a")).unwrap().weight = 600;
    let world = World::new(rules).await;
    let devices = storm(&world, "", 1_700);
    let began = Instant::now();
    let fared = all(devices).await;
    while line_length(&world).await > 0 {
        sleep(seconds(1)).await;
    }
    let refused: usize = fared.iter().map(|fared| fared.refused).sum();
    println!(
        "full lines: 1,700 devices, two instances of 900 a minute in all: {:?}, {refused} refusals",
        began.elapsed()
    );
    // 1,700 at 900 a minute take 113 s.
    assert!(began.elapsed() <= seconds(125), "{:?}", began.elapsed());
}
