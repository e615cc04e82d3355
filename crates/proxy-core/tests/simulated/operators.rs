//! What operators do to a device, and the change feed that backends follow.

use proxy_core::attestation::{HandedCredential, Told};
use proxy_core::device::AssignmentState;
use proxy_core::feed::{Next, Start};
use proxy_core::placement::NoRoom;
use proxy_core::secret::TokenDigest;
use proxy_core::settings::{Credential, DeviceAttestation, Membership, UpstreamAttestation};
use proxy_core::store::Table;
use proxy_core::store::memory::Failure;
use proxy_core::use_cases::import::{ImportRow, Imported};
use proxy_core::use_cases::operator::OperatorError;
use proxy_core::use_cases::provision::{Outcome, ProvisionError};

use crate::support::dps::{Call, Fate, Reply};
use crate::support::{World, enrollment, enrollment_name, group_key, id, millis, name, seconds, settings, sleep};

async fn is_blocked(world: &World, device: &str) -> bool {
    matches!(world.provision(world.ask(device)).await, Err(ProvisionError::Blocked))
}

async fn registered(world: &World, instance: &str) -> u64 {
    world.gateway.instances().await.into_iter().find(|view| view.name == name(instance)).unwrap().registered_count
}

#[tokio::test(start_paused = true)]
async fn a_blocked_device_is_kept_out_and_not_registered_until_it_is_let_in() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.dps("a").next(Call::Register, Fate::throttled(Some(10)));
    world.queue("device-0").await;
    sleep(seconds(1)).await;
    world.queue("device-1").await;
    world.gateway.block(&id("device-1"), "oncall", Some("stolen")).await.unwrap();
    assert!(is_blocked(&world, "device-1").await);
    sleep(seconds(60)).await;
    assert_eq!(world.dps("a").count_of(Call::Register, "device-1"), 0);
    world.gateway.unblock(&id("device-1"), "oncall").await.unwrap();
    world.settle(world.ask("device-1")).await;
    world.gateway.block(&id("device-1"), "oncall", None).await.unwrap();
    assert!(is_blocked(&world, "device-1").await);
}

#[tokio::test(start_paused = true)]
async fn a_device_blocked_while_under_way_is_not_registered_again() {
    for fate in
        [Fate::throttled(Some(10)), Fate::NeverLeft, Fate::error(500, Some(500_001)), Fate::error(409, Some(409_203))]
    {
        for restart in [false, true] {
            let mut world = World::new(settings(&[("a", 60)])).await;
            world.dps("a").next(Call::Register, fate.clone());
            world.queue("device-1").await;
            // On its way: neither answered nor refused yet.
            sleep(millis(10)).await;
            world.gateway.block(&id("device-1"), "oncall", None).await.unwrap();
            let sent = world.dps("a").count(Call::Register);
            sleep(millis(200)).await;
            if restart {
                world.kill().await;
            }
            sleep(seconds(60)).await;
            assert_eq!(world.dps("a").count(Call::Register), sent, "{fate:?}, restart: {restart}");
            let view = world.gateway.instances().await.remove(0);
            assert_eq!((view.line_length, view.under_way), (0, 0), "{fate:?}, restart: {restart}");
            world.gateway.unblock(&id("device-1"), "oncall").await.unwrap();
            world.settle(world.ask("device-1")).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_expedited_device_goes_first_even_in_a_full_line_and_after_a_restart() {
    for restart in [false, true] {
        let mut settings = settings(&[("a", 60)]);
        settings.line.length_max = 20;
        let mut world = World::new(settings).await;
        world.dps("a").next(Call::Register, Fate::throttled(Some(30)));
        world.queue("first").await;
        sleep(seconds(1)).await;
        for number in 0..19 {
            world.queue(&format!("device-{number}")).await;
        }
        assert!(matches!(world.provision(world.ask("too-many")).await, Err(ProvisionError::LineFull { .. })));
        world.gateway.expedite(&id("device-18")).await.unwrap();
        assert_eq!(world.queue("device-18").await.position, 1);
        let sent = world.dps("a").count(Call::Register);
        if restart {
            world.kill().await;
        }
        sleep(seconds(40)).await;
        let order: Vec<String> =
            world.dps("a").sent().into_iter().filter(|sent| sent.call == Call::Register).map(|sent| sent.id).collect();
        assert_eq!(order[sent], "device-18", "restart: {restart}");
        sleep(seconds(60)).await;
        assert_eq!(world.dps("a").count(Call::Register), 21, "and everybody goes once: {restart}");
        assert!(matches!(world.gateway.expedite(&id("device-18")).await, Err(OperatorError::NotNow(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_moved_device_waits_at_its_new_instance_and_is_told_that_hub_only() {
    let mut inventory = settings(&[("a", 60), ("b", 60)]);
    inventory.instances.get_mut("b").unwrap().draining = true;
    let mut world = World::new(inventory).await;
    world.settle(world.ask("device-1")).await;
    assert!(matches!(world.gateway.move_to(&id("device-1"), &name("a")).await, Err(OperatorError::NotNow(_))));
    assert!(matches!(world.gateway.move_to(&id("device-1"), &name("c")).await, Err(OperatorError::Wrong(_))));
    world.dps("b").reachable(false);
    world.gateway.move_to(&id("device-1"), &name("b")).await.unwrap();
    assert!(matches!(world.provision(world.ask("device-1")).await, Ok(Outcome::Queued(_))));
    world.kill().await;
    world.dps("b").reachable(true);
    // Nobody knows that the call of the process that died has not left: it could arrive for that long.
    sleep(seconds(95)).await;
    assert_eq!(world.hub("device-1").await, "hub-b.azure-devices.net");
    assert_eq!((registered(&world, "a").await, registered(&world, "b").await), (1, 1), "both may hold a record of it");
    assert_eq!(world.dps("b").count(Call::Register), 1);
}

#[tokio::test(start_paused = true)]
async fn moving_a_waiting_device_back_and_forth_leaves_no_trace_where_nothing_was_sent() {
    let world = World::new(settings(&[("a", 60), ("b", 60), ("c", 60)])).await;
    world.settle(world.ask("device-1")).await;
    let home = world.record("device-1").await.unwrap().assignment().unwrap().instance.clone();
    let others: Vec<_> = ["a", "b", "c"].into_iter().map(name).filter(|other| *other != home).collect();
    for dps in world.instances.values() {
        dps.reachable(false);
    }
    for target in [&others[0], &others[1], &others[0], &others[1]] {
        world.gateway.move_to(&id("device-1"), target).await.unwrap();
        sleep(seconds(3)).await;
    }
    assert_eq!(registered(&world, others[0].as_str()).await, 0);
    assert_eq!(registered(&world, others[1].as_str()).await, 1);
    assert_eq!(registered(&world, home.as_str()).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_counts_against_the_capacity_until_its_deletion_is_confirmed() {
    let mut inventory = settings(&[("a", 60)]);
    inventory.instances.get_mut("a").unwrap().capacity = 2;
    let mut world = World::new(inventory).await;
    world.settle(world.ask("device-1")).await;
    world.settle(world.ask("device-2")).await;
    let no_room = |answered: &Result<Outcome, ProvisionError>| {
        matches!(answered, Err(ProvisionError::NoRoom(NoRoom::AllFull(_))))
    };
    assert!(no_room(&world.provision(world.ask("device-3")).await));
    assert!(world.gateway.retire(&id("device-1"), false).await.unwrap().is_some());
    world.kill().await;
    assert!(matches!(world.provision(world.ask("device-1")).await, Err(ProvisionError::Retired)));
    assert!(no_room(&world.provision(world.ask("device-3")).await), "the tombstone counts, also after a restart");
    assert!(world.gateway.retire(&id("device-1"), true).await.unwrap().is_none());
    world.settle(world.ask("device-3")).await;
    assert!(no_room(&world.provision(world.ask("device-1")).await), "forgotten, so it is a new device");
    assert!(matches!(world.gateway.retire(&id("device-1"), true).await, Err(OperatorError::Unknown)));
}

#[tokio::test(start_paused = true)]
async fn a_device_retired_before_anything_was_sent_leaves_nothing() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.dps("a").next(Call::Register, Fate::throttled(Some(10)));
    world.queue("device-0").await;
    sleep(seconds(1)).await;
    world.queue("device-1").await;
    assert!(world.gateway.retire(&id("device-1"), false).await.unwrap().is_none());
    sleep(seconds(60)).await;
    assert_eq!(world.dps("a").count_of(Call::Register, "device-1"), 0);
    assert_eq!((registered(&world, "a").await, world.store.rows(Table::Device)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_instance_can_be_added_at_any_time_and_removed_while_no_record_refers_to_it() {
    let mut inventory = settings(&[("a", 60), ("b", 60)]);
    // Whoever is booked on an instance that fails stays there in this test.
    inventory.line.rebook_after = seconds(86_400);
    let b = inventory.instances.remove("b").unwrap();
    let dps =
        ["a", "b"].map(|side| (name(side), crate::support::dps::Dps::new(1, &format!("hub-{side}.azure-devices.net"))));
    let fixed = proxy_core::gateway::Fixed { parked_max: 10, repeat_burst: 5, repeat_interval: seconds(1) };
    let mut world = World::with(inventory.clone(), dps.into(), fixed).await;
    world.dps("a").reachable(false);
    for number in 0..10 {
        world.queue(&format!("device-{number}")).await;
    }
    let mut with_b = inventory.clone();
    with_b.instances.insert(name("b"), b);
    world.gateway.apply(with_b.clone()).await.unwrap();
    world.gateway.apply(inventory.clone()).await.unwrap();
    world.gateway.apply(with_b.clone()).await.unwrap();
    for number in 10..20 {
        world.settle(world.ask(&format!("device-{number}"))).await;
    }
    assert_eq!((registered(&world, "a").await, registered(&world, "b").await), (10, 10));
    let mut without = with_b.clone();
    without.instances.remove("b");
    without.line.length_max = 1;
    let problems = world.gateway.apply(without).await.unwrap_err();
    assert!(problems.to_string().contains("instances.b"), "{problems}");
    assert_eq!(*world.gateway.settings(), with_b, "the old settings stay in force, whole");
    let mut renamed = with_b.clone();
    renamed.instances.get_mut("a").unwrap().id_scope = proxy_core::ids::IdScope::parse("0neother").unwrap();
    assert!(world.gateway.apply(renamed).await.is_err());
    world.dps("a").reachable(true);
    world.kill().await;
    sleep(seconds(90)).await;
    for number in 0..20 {
        world.hub(&format!("device-{number}")).await;
    }
}

// --- how a device proves itself ---------------------------------------------------------------------------------------

fn row(device: &str, key: Option<&str>) -> ImportRow {
    ImportRow {
        hardware_id: device.to_owned(),
        enrollment: "listed".to_owned(),
        tenant: None,
        batch: Some("delivery-1".to_owned()),
        key: key.map(str::to_owned),
    }
}

async fn world_of(device: DeviceAttestation) -> World {
    let mut inventory = settings(&[("a", 60)]);
    let mut listed = enrollment();
    listed.device = device;
    inventory.enrollments = [(enrollment_name("listed"), listed)].into();
    inventory.default_enrollment = Some(enrollment_name("listed"));
    World::new(inventory).await
}

#[tokio::test(start_paused = true)]
async fn a_listed_device_is_believed_by_the_rule_of_its_enrollment_and_no_other() {
    let sas = |membership| DeviceAttestation::SasToken { audiences: ["gateway.example".to_owned()].into(), membership };
    let fleet = DeviceAttestation::FleetToken { tokens: vec![TokenDigest::of("old"), TokenDigest::of("new")] };
    // By rule: the credential, and whether it is enough for a listed device, and for one that is not.
    for (rule, credential, listed, unlisted) in [
        (sas(Membership::Signature), "sas", true, true),
        (sas(Membership::AllowList), "sas", true, false),
        (sas(Membership::AllowList), "Bearer new", false, false),
        (sas(Membership::AllowList), "", false, false),
        (fleet.clone(), "Bearer new", true, false),
        (fleet.clone(), "bearer old", true, false),
        (fleet.clone(), "Bearer other", false, false),
        (fleet.clone(), "sas", false, false),
        (fleet, "", false, false),
        (DeviceAttestation::AllowListAlone, "", true, false),
        (DeviceAttestation::AllowListAlone, "sas", false, false),
        (DeviceAttestation::AllowListAlone, "Bearer new", false, false),
    ] {
        let mut world = world_of(rule.clone()).await;
        let commits = world.store.commits();
        let rows = [row("Device-1", None), row("not an id", None), row("device-1", None), row("device-2", Some("key"))];
        let imported = world.gateway.import(rows.to_vec()).await.unwrap();
        let [first, wrong, again, keyed] = &imported[..] else { panic!("{imported:?}") };
        assert_eq!((first, again), (&Imported::New, &Imported::Unchanged));
        assert!([wrong, keyed].iter().all(|outcome| matches!(outcome, Imported::Rejected(_))), "{imported:?}");
        assert_eq!(world.gateway.import(rows[..1].to_vec()).await.unwrap(), [Imported::Unchanged]);
        assert!(world.store.commits() <= commits + 2);
        world.kill().await;
        for (device, believed) in [("device-1", listed), ("device-9", unlisted)] {
            let ask = world.ask(device);
            let ask = match credential {
                "sas" => ask,
                "" => ask.authorization(None),
                other => ask.authorization(Some(other)),
            };
            let answered = world.provision(ask).await;
            let refused = matches!(&answered, Err(ProvisionError::NotBelieved(not_believed)) if not_believed.told() == Told::Unauthorized);
            assert_eq!(!refused, believed, "{rule:?} with {credential:?}, {device}: {answered:?}");
            assert_eq!(answered.is_ok(), believed);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_individual_device_registers_with_the_key_it_was_listed_with() {
    let mut inventory = settings(&[("a", 60)]);
    let mut listed = enrollment();
    listed.upstream = UpstreamAttestation::Individual;
    listed.device = DeviceAttestation::FleetToken { tokens: vec![TokenDigest::of("fleet")] };
    inventory.enrollments.insert(enrollment_name("listed"), listed);
    let world = World::new(inventory).await;
    let key = group_key().expose_base64();
    let imported = world.gateway.import(vec![row("device-1", Some(&key)), row("device-2", None)]).await.unwrap();
    assert!(matches!(imported[..], [Imported::New, Imported::Rejected(_)]), "{imported:?}");
    world.dps("a").device_id("device-1", "Pump-7");
    let ask = world.ask("device-1").authorization(Some("Bearer fleet"));
    world.settle(ask).await;
    let seen = world.gateway.registration(&id("device-1")).await.unwrap();
    assert!(!format!("{seen:?}").contains(&key), "a key is never shown");
    assert_eq!(seen.record.listed().unwrap().key, None, "a key is never shown");
    let found = world.gateway.find("Pump-7", None).await.unwrap();
    assert!(
        matches!(found, proxy_core::use_cases::backend::Found::Assignment(view) if view.registration_id == id("device-1"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_is_handed_out_once_is_handed_out_once() {
    let mut inventory = settings(&[("a", 60)]);
    let plant = inventory.enrollments.get_mut("plant").unwrap();
    (plant.credential, plant.credential_once) = (Credential::DerivedKey, true);
    let mut world = World::new(inventory).await;
    world.queue("device-1").await;
    sleep(seconds(20)).await;
    // Two at once: one of them gets it.
    let (one, other) = tokio::join!(world.assigned(world.ask("device-1")), world.assigned(world.ask("device-1")));
    let handed = [one, other].into_iter().filter_map(|assigned| assigned.credential).collect::<Vec<_>>();
    assert!(matches!(handed[..], [HandedCredential::DerivedKey { .. }]), "{}", handed.len());
    world.kill().await;
    sleep(seconds(5)).await;
    assert_eq!(world.assigned(world.ask("device-1")).await.credential, None);
    world.gateway.retry(&id("device-1")).await.unwrap();
    assert!(world.assigned(world.ask("device-1")).await.credential.is_some());
    assert!(world.assigned(world.ask("device-1")).await.credential.is_none());
}

// --- the change feed --------------------------------------------------------------------------------------------------

/// A backend that follows the feed and remembers the last event it saw.
#[derive(Default)]
struct Reader {
    last_seen: Option<String>,
    numbers: Vec<u64>,
    seen: Vec<(String, AssignmentState, u64)>,
}

impl Reader {
    /// Reads what there is. Returns whether it was told that it missed something.
    async fn read(&mut self, world: &World) -> bool {
        let (mut after, reset) = match world.gateway.feed_start(self.last_seen.as_deref()) {
            Start::After(after) => (after, false),
            Start::Reset(end) => (end, true),
        };
        loop {
            let Next::Events(page) = world.gateway.feed_read(after).await.unwrap() else {
                panic!("nothing was pruned meanwhile")
            };
            let Some(&(last, _)) = page.last() else { break };
            for (number, change) in page {
                self.numbers.push(number);
                self.seen.push((change.registration_id.to_string(), change.state, change.revision));
            }
            after = last;
        }
        self.last_seen = Some(world.gateway.feed_id(after).to_string());
        reset
    }
}

#[tokio::test(start_paused = true)]
async fn the_feed_has_neither_gap_nor_duplicate_across_crashes_and_lost_races() {
    let mut world = World::new(settings(&[("a", 600)])).await;
    let mut reader = Reader::default();
    reader.read(&world).await;
    for round in 0..12 {
        world.queue(&format!("device-{round}")).await;
        if round % 3 == 0 {
            // The commit of the assignment fails once: its number is never used.
            sleep(seconds(1)).await;
            world.store.fail_next_commit(Failure::Busy);
        }
        sleep(seconds(10)).await;
        if round % 3 == 1 {
            // A change that fails for good leaves a hole at the end.
            world.store.fail_next_commit(Failure::Busy);
            assert!(world.gateway.invalidate(&format!("device-{round}"), None, "hub-404001").await.is_err());
        }
        if round % 3 == 2 {
            world.store.hold_acks(true);
            let unsynced = format!("device-{round}");
            let gateway = std::sync::Arc::clone(&world.gateway);
            tokio::spawn(async move { gateway.invalidate(&unsynced, None, "hub-404001").await });
            sleep(millis(100)).await;
        }
        assert!(!reader.read(&world).await, "round {round}: reset without reason");
        world.kill().await;
        if round % 2 == 0 {
            assert!(!reader.read(&world).await, "round {round}: reset without reason");
        }
    }
    sleep(seconds(1000)).await;
    assert!(!reader.read(&world).await);
    let devices: Vec<String> = (0..12).map(|number| format!("device-{number}")).collect();
    let seen: Vec<String> = reader.seen.iter().map(|(id, _, _)| id.clone()).collect();
    assert_eq!(seen, devices, "every change once, and none that a crash took");
    assert!(reader.numbers.windows(2).all(|pair| pair[0] < pair[1]));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_starts_behind_a_hole_misses_nothing_after_a_crash() {
    let mut world = World::new(settings(&[("a", 600)])).await;
    world.settle(world.ask("device-1")).await;
    world.store.fail_next_commit(Failure::Busy);
    assert!(world.gateway.invalidate("device-1", None, "hub-404001").await.is_err());
    let mut reader = Reader::default();
    reader.read(&world).await;
    world.kill().await;
    world.settle(world.ask("device-2")).await;
    assert!(!reader.read(&world).await);
    assert_eq!(reader.seen.len(), 1, "the assignment of device-2");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_too_old_or_of_another_store_is_told_so() {
    let mut inventory = settings(&[("a", 600)]);
    inventory.feed.events_max = 5;
    let mut world = World::new(inventory).await;
    world.settle(world.ask("device-0")).await;
    let mut reader = Reader::default();
    reader.read(&world).await;
    for number in 1..20 {
        world.settle(world.ask(&format!("device-{number}"))).await;
    }
    sleep(seconds(130)).await;
    assert_eq!(world.store.rows(Table::Feed), 5, "pruned to what is kept");
    for restart in [false, true] {
        if restart {
            world.kill().await;
        }
        let mut late = Reader { last_seen: reader.last_seen.clone(), ..Reader::default() };
        assert!(late.read(&world).await, "it missed events");
        let last = late.last_seen.clone().unwrap();
        assert!(matches!(world.gateway.feed_start(Some(&last)), Start::After(_)));
        for foreign in ["0000000000000000-3", "nonsense", "", "-1", &format!("{last}9")] {
            assert!(matches!(world.gateway.feed_start(Some(foreign)), Start::Reset(_)), "{foreign}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn event_numbers_go_on_although_all_but_the_last_event_have_expired() {
    let mut world = World::new(settings(&[("a", 600)])).await;
    for number in 0..5 {
        world.settle(world.ask(&format!("device-{number}"))).await;
    }
    let mut reader = Reader::default();
    world.store.fail_next_commit(Failure::Busy);
    assert!(world.gateway.invalidate("device-1", None, "hub-404001").await.is_err());
    reader.read(&world).await;
    sleep(seconds(49 * 3600)).await;
    assert_eq!(world.store.rows(Table::Feed), 1, "the newest one stays");
    world.kill().await;
    for number in 5..20 {
        world.settle(world.ask(&format!("device-{number}"))).await;
    }
    let reset = reader.read(&world).await;
    assert!(reset || reader.seen.len() == 15, "a gap of which the reader was not told: {:?}", reader.seen);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_moved_while_its_registration_is_on_the_wire_is_not_registered_twice_at_once() {
    let world = World::new(settings(&[("a", 60), ("b", 60)])).await;
    for side in ["a", "b"] {
        let slow = Fate::Answered { there: seconds(3), back: seconds(3), reply: Reply::Serve };
        world.dps(side).next_of(Call::Register, "device-1", slow);
    }
    world.queue("device-1").await;
    sleep(millis(500)).await;
    let at = world.record("device-1").await.unwrap().pending().unwrap().instance.clone();
    let other = if at == name("a") { "b" } else { "a" };
    world.gateway.move_to(&id("device-1"), &name(other)).await.unwrap();
    sleep(seconds(30)).await;
    assert_eq!(world.hub("device-1").await, format!("hub-{other}.azure-devices.net"));
    let spans = |side: &str| {
        let sent = world.dps(side).sent().into_iter().find(|sent| sent.call == Call::Register).unwrap();
        (sent.at, sent.ended.unwrap())
    };
    let (first, second) = (spans(at.as_str()), spans(other));
    assert!(second.0 >= first.1, "{first:?} and {second:?} overlap");
}

/// A device whose registration is on its way to `at`, where it arrives after 20 s, and which an operator has moved to `other` meanwhile.
async fn moved_in_flight() -> (World, String, String) {
    let world = World::new(settings(&[("a", 60), ("b", 60)])).await;
    for side in ["a", "b"] {
        let slow = Fate::Answered { there: seconds(20), back: seconds(3), reply: Reply::Serve };
        world.dps(side).next_of(Call::Register, "device-1", slow);
    }
    world.queue("device-1").await;
    let at = world.record("device-1").await.unwrap().pending().unwrap().instance.to_string();
    let other = if at == "a" { "b" } else { "a" };
    sleep(millis(500)).await;
    world.gateway.move_to(&id("device-1"), &name(other)).await.unwrap();
    (world, at, other.to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_moved_in_flight_is_not_registered_elsewhere_before_its_call_cannot_arrive_although_the_process_dies()
 {
    for starts in 1..3 {
        let (mut world, at, other) = moved_in_flight().await;
        world.kill().await;
        let killed = world.clock.elapsed();
        for _ in 1..starts {
            sleep(seconds(10)).await;
            world.kill().await;
        }
        sleep(seconds(5)).await;
        let why = world.gateway.registration(&id("device-1")).await.unwrap();
        assert!(why.record.timeline().iter().any(|event| event.what.contains("may still arrive")), "{why:?}");
        sleep(seconds(120)).await;
        assert_eq!(world.hub("device-1").await, format!("hub-{other}.azure-devices.net"));
        let (first, second) = (world.dps(&at).arrivals(), world.dps(&other).sent());
        let registered: Vec<_> = first.iter().filter(|arrival| arrival.call == Call::Register).collect();
        let sent: Vec<_> = second.iter().filter(|sent| sent.call == Call::Register).collect();
        assert_eq!((registered.len(), sent.len()), (1, 1), "one here, and one there");
        assert!(sent[0].at > registered[0].at, "{:?} and {:?}", registered[0], sent[0]);
        // As long as the ledger holds the slot: the longest delay, a window and the guard, from the first start on.
        let waited = sent[0].at - killed;
        assert!((millis(90_100)..seconds(92)).contains(&waited), "{starts} starts: {waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lookup_goes_at_once_after_a_crash_and_another_registration_only_when_the_first_one_cannot_arrive() {
    let mut world = World::new(settings(&[("a", 60)])).await;
    let never = Fate::Lost { gives_up: seconds(30), arrives: None };
    world.dps("a").next_of(Call::Register, "device-1", never);
    world.queue("device-1").await;
    sleep(millis(500)).await;
    world.kill().await;
    let killed = world.clock.elapsed();
    world.settle(world.ask("device-1")).await;
    let sent = world.dps("a").sent();
    let after = |call: Call| {
        let later = sent.iter().filter(|sent| sent.call == call && sent.at >= killed);
        later.map(|sent| sent.at - killed).collect::<Vec<_>>()
    };
    assert!(after(Call::Lookup)[0] < seconds(5));
    let registered = after(Call::Register);
    assert!(matches!(registered[..], [at] if (millis(90_100)..seconds(92)).contains(&at)), "{registered:?}");
}

#[tokio::test(start_paused = true)]
async fn a_device_is_not_forgotten_while_its_registration_is_on_its_way() {
    for dies in [false, true] {
        let (mut world, at, other) = moved_in_flight().await;
        if dies {
            world.kill().await;
        }
        let kept = world.gateway.retire(&id("device-1"), true).await.unwrap().unwrap();
        let last = &kept.timeline().last().unwrap().what;
        assert!(last.contains("not forgotten yet") && last.contains(&at), "{last}");
        assert!(matches!(world.provision(world.ask("device-1")).await, Err(ProvisionError::Retired)));
        sleep(seconds(if dies { 95 } else { 25 })).await;
        assert_eq!(world.record("device-1").await.unwrap().flight().is_some(), dies, "its call has ended");
        assert!(world.gateway.retire(&id("device-1"), true).await.unwrap().is_none());
        world.settle(world.ask("device-1")).await;
        let calls = [&at, &other].map(|side| world.dps(side).count_of(Call::Register, "device-1"));
        assert_eq!(calls.iter().sum::<usize>(), 2, "the one that it was deleted with, and a new one");
    }
}
