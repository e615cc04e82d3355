//! Whose a device is, where it belongs, by which name it is known, and what keeps all that.

use std::future::Future as _;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use proxy_core::attestation::{Reason, Told};
use proxy_core::base::OpenError;
use proxy_core::base::StoreError;
use proxy_core::device::{Claim, Command, Listing, Record};
use proxy_core::gateway::{Fixed, Gateway};
use proxy_core::ids::{IdScope, InstanceName, TenantName};
use proxy_core::secret::TokenDigest;
use proxy_core::settings::{
    DeriveFrom, DeviceAttestation, Enrollment, Instance, Membership, RegistrationSettings, Settings,
    UpstreamAttestation,
};
use proxy_core::store::memory::MemoryStore;
use proxy_core::store::{Health, ReadError, Store as _, Stored, Version};
use proxy_core::upstream::{Connect, Upstream};
use proxy_core::use_cases::backend::Found;
use proxy_core::use_cases::import::{ImportRow, Imported};
use proxy_core::use_cases::provision::{Outcome, ProvisionError};
use rate_control::entropy::Entropy;
use rate_control::time::Clock as _;
use serde_json::{Value, json};

use crate::support::clock::TestClock;
use crate::support::dps::{Call, Dps, Fate, Network, Process};
use crate::support::{
    AUDIENCE, Ask, World, enrollment, enrollment_name, group_key, id, individual, instance, millis, name, seconds,
    settings, sleep,
};

const FIXED: Fixed = Fixed { parked_max: 10, repeat_burst: 5, repeat_interval: Duration::from_secs(1) };

fn tenant(text: &str) -> TenantName {
    TenantName::parse(text).unwrap()
}

fn of_tenant(text: &str) -> Enrollment {
    let device = DeviceAttestation::SasToken {
        audiences: [format!("{text}.example")].into(),
        membership: Membership::Signature,
    };
    Enrollment { tenant: tenant(text), device, ..enrollment() }
}

fn row(device: &str, enrollment: &str, batch: &str) -> ImportRow {
    ImportRow {
        hardware_id: device.to_owned(),
        enrollment: enrollment.to_owned(),
        tenant: None,
        batch: Some(batch.to_owned()),
        key: None,
    }
}

// --- tenants ----------------------------------------------------------------------------------------------------------

/// Two tenants, each with an instance of its own, and one shared instance.
async fn two_tenants() -> World {
    let mut inventory = settings(&[("one", 60), ("two", 60), ("shared", 60)]);
    for side in ["one", "two"] {
        inventory.instances.get_mut(side).unwrap().tenant = Some(tenant(side));
        inventory.enrollments.insert(enrollment_name(side), of_tenant(side));
    }
    World::new(inventory).await
}

#[tokio::test(start_paused = true)]
async fn a_device_that_was_ever_seen_belongs_to_its_tenant() {
    let mut world = two_tenants().await;
    let ask = |world: &World, device: &str, side: &str| world.ask_of(device, &format!("{side}.example"));
    world.dps("one").next(Call::Register, Fate::error(401, Some(401_002)));
    for device in ["refused", "blocked", "retired"] {
        assert!(matches!(world.provision(ask(&world, device, "one")).await, Ok(Outcome::Queued(_))));
        sleep(seconds(10)).await;
    }
    world.gateway.block(&id("blocked"), "oncall", None).await.unwrap();
    world.gateway.retire(&id("retired"), false).await.unwrap();
    assert!(matches!(world.provision(ask(&world, "refused", "one")).await, Err(ProvisionError::Refused(_))));
    for age in [0, 7200] {
        sleep(seconds(age)).await;
        for device in ["refused", "blocked", "retired"] {
            let before = world.record(device).await;
            let answered = world.provision(ask(&world, device, "two")).await;
            assert!(matches!(answered, Err(ProvisionError::OtherTenant)), "{device} after {age} s: {answered:?}");
            assert_eq!(world.record(device).await, before);
            let imported = world.gateway.import(vec![row(device, "two", "delivery")]).await.unwrap();
            assert!(matches!(imported[..], [Imported::Rejected(_)]), "{device}: {imported:?}");
        }
        world.kill().await;
    }
    assert_eq!(world.dps("two").calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_goes_back_to_an_instance_that_is_now_dedicated_to_another_tenant() {
    let mut inventory = settings(&[("a", 60)]);
    let dps = ["a", "b"].map(|side| (name(side), Dps::new(1, &format!("hub-{side}.azure-devices.net"))));
    let world = World::with(inventory.clone(), dps.into(), FIXED).await;
    world.settle(world.ask("device-1")).await;
    inventory.instances.get_mut("a").unwrap().tenant = Some(tenant("another"));
    inventory.instances.insert(name("b"), instance("0neb", 60));
    world.gateway.apply(inventory).await.unwrap();
    assert_eq!(world.hub("device-1").await, "hub-a.azure-devices.net", "what it has, it keeps");
    sleep(seconds(1000)).await;
    world.gateway.invalidate("device-1", None, "hub-404001").await.unwrap();
    sleep(seconds(30)).await;
    assert_eq!(world.hub("device-1").await, "hub-b.azure-devices.net");
    assert_eq!(world.dps("a").count(Call::Register), 1);
}

// --- retired ----------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_retired_device_is_told_so_however_it_proves_itself() {
    let sas = |membership| DeviceAttestation::SasToken { audiences: [AUDIENCE.to_owned()].into(), membership };
    for (device, credential) in [
        (sas(Membership::Signature), None),
        (sas(Membership::AllowList), None),
        (DeviceAttestation::FleetToken { tokens: vec![TokenDigest::of("fleet")] }, Some("Bearer fleet")),
        (DeviceAttestation::AllowListAlone, Some("")),
    ] {
        let what = format!("{device:?}");
        let mut inventory = settings(&[("a", 60)]);
        inventory.enrollments.get_mut("plant").unwrap().device = device;
        let mut world = World::new(inventory).await;
        world.gateway.import(vec![row("device-1", "plant", "delivery")]).await.unwrap();
        let ask = |world: &World| match credential {
            None => world.ask("device-1"),
            Some(credential) => world.ask("device-1").authorization(Some(credential)),
        };
        world.settle(ask(&world)).await;
        world.gateway.retire(&id("device-1"), false).await.unwrap();
        for _ in 0..2 {
            let answered = world.provision(ask(&world)).await;
            assert!(matches!(answered, Err(ProvisionError::Retired)), "{what}: {answered:?}");
            world.kill().await;
        }
        let imported = world.gateway.import(vec![row("device-1", "plant", "another")]).await.unwrap();
        assert!(matches!(imported[..], [Imported::Rejected(_)]), "{what}: {imported:?}");
    }
}

// --- moves ------------------------------------------------------------------------------------------------------------

/// A device at one of two instances, and the name of the other.
async fn settled_at_one_of_two() -> (World, String) {
    let world = World::new(settings(&[("a", 60), ("b", 60)])).await;
    world.settle(world.ask("device-1")).await;
    let home = world.record("device-1").await.unwrap().assignment().unwrap().instance.clone();
    (world, if home == name("a") { "b" } else { "a" }.to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_move_keeps_its_target_although_the_target_refuses_the_device_at_first() {
    let (mut world, target) = settled_at_one_of_two().await;
    world.dps(&target).next(Call::Register, Fate::error(401, Some(401_002)));
    world.gateway.move_to(&id("device-1"), &name(&target)).await.unwrap();
    sleep(seconds(10)).await;
    assert!(matches!(world.provision(world.ask("device-1")).await, Err(ProvisionError::Refused(_))));
    world.kill().await;
    let (hub, _) = world.settle(world.ask("device-1")).await;
    assert_eq!(hub, format!("hub-{target}.azure-devices.net"));
    assert_eq!(world.record("device-1").await.unwrap().moving_to(), None, "it is there");
}

#[tokio::test(start_paused = true)]
async fn a_move_keeps_its_target_although_the_device_is_blocked_meanwhile() {
    let (mut world, target) = settled_at_one_of_two().await;
    world.dps(&target).reachable(false);
    world.gateway.move_to(&id("device-1"), &name(&target)).await.unwrap();
    // It waits: nothing has left for the target yet.
    sleep(seconds(1)).await;
    let blocked = world.gateway.block(&id("device-1"), "oncall", None).await.unwrap();
    assert!(blocked.pending().is_none() && !blocked.footprint().contains(&name(&target)), "{blocked:?}");
    world.kill().await;
    world.gateway.unblock(&id("device-1"), "oncall").await.unwrap();
    world.dps(&target).reachable(true);
    let (hub, _) = world.settle(world.ask("device-1")).await;
    assert_eq!(hub, format!("hub-{target}.azure-devices.net"));
    let registered: u64 = world.gateway.instances().await.iter().map(|view| view.registered_count).sum();
    assert_eq!(registered, 2, "both may hold a record of it");
}

// --- reloads and restarts ---------------------------------------------------------------------------------------------

/// A network that lets something happen while a reload makes the client of a new instance.
#[derive(Debug)]
struct Meanwhile {
    network: Network,
    asks: Mutex<Option<Ask>>,
    gateway: OnceLock<Arc<Gateway>>,
}

impl Connect for Meanwhile {
    fn connect(
        &self,
        name: &InstanceName,
        instance: &Instance,
        registration: &RegistrationSettings,
    ) -> Result<Arc<dyn Upstream>, String> {
        if let Some(gateway) = self.gateway.get()
            && let Some(ask) = self.asks.lock().take()
        {
            // As far as it goes at once: it is placed, and its record is being written.
            let mut asking = Box::pin(ask.of(Arc::clone(gateway)));
            let polled = asking.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(polled, Poll::Pending), "it waits for its record");
        }
        self.network.connect(name, instance, registration)
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_on_which_a_device_is_placed_during_a_reload_is_not_removed_by_it() {
    let (before, after) = (settings(&[("a", 60)]), settings(&[("b", 60)]));
    // A world whose clock and DPS are used; its own gateway stays idle.
    let world = World::new(settings(&[("a", 60), ("b", 60)])).await;
    let connect = Arc::new(Meanwhile {
        network: Network { process: Arc::new(Process::default()), instances: world.instances.clone() },
        asks: Mutex::new(Some(world.ask("device-1"))),
        gateway: OnceLock::new(),
    });
    let (store, clock): (Arc<MemoryStore>, Arc<TestClock>) = (Arc::default(), Arc::clone(&world.clock));
    let network: Arc<dyn Connect> = connect.clone();
    let gateway = Gateway::open(store, clock, network, before.clone(), FIXED, Entropy::from_seed(1)).await.unwrap();
    connect.gateway.set(Arc::clone(&gateway)).unwrap();
    let refused = gateway.apply(after).await.unwrap_err();
    assert!(refused.to_string().contains("instances.a"), "{refused}");
    assert_eq!(*gateway.settings(), before);
    sleep(seconds(20)).await;
    let answered = world.ask("device-1").of(gateway).await;
    assert!(matches!(answered, Ok(Outcome::Assigned(_))), "{answered:?}");
}

async fn open(world: &World, store: &Arc<MemoryStore>, settings: Settings) -> Result<Arc<Gateway>, OpenError> {
    let network = Network { process: Arc::new(Process::default()), instances: world.instances.clone() };
    let (store, clock) = (Arc::clone(store), Arc::clone(&world.clock));
    Gateway::open(store, clock, Arc::new(network), settings, FIXED, Entropy::from_seed(9)).await
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_records_refer_to_keeps_its_id_scope_across_a_restart() {
    let scoped = |scope: &str| {
        let mut settings = settings(&[("a", 60)]);
        settings.instances.get_mut("a").unwrap().id_scope = IdScope::parse(scope).unwrap();
        settings
    };
    let world = World::new(scoped("0neone")).await;
    // Nobody is there yet: by a reload and by a restart it may still change.
    world.gateway.apply(scoped("0netwo")).await.unwrap();
    world.gateway.stop(seconds(1)).await;
    let store = Arc::new(world.store.crash());
    let gateway = open(&world, &store, scoped("0nethree")).await.unwrap();
    assert!(world.ask("device-1").of(Arc::clone(&gateway)).await.is_ok());
    gateway.stop(seconds(1)).await;
    let store = Arc::new(store.crash());
    for other in ["0neone", "0netwo", "0nefour"] {
        let refused = open(&world, &store, scoped(other)).await.map(drop).unwrap_err().to_string();
        assert!(refused.contains("instances.a.id_scope") && refused.contains("0nethree"), "{other}: {refused}");
    }
    store.set_health(Health::ReadOnly("the disk is full".to_owned()));
    open(&world, &store, scoped("0nethree")).await.unwrap();
}

// --- names ------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_device_is_found_by_the_name_it_has_now_and_its_old_one_is_free() {
    let mut inventory = settings(&[("a", 60)]);
    inventory.enrollments.insert(enrollment_name("second"), of_tenant("second"));
    let mut inventory = individual(inventory);
    let mut world = World::new(inventory.clone()).await;
    world.list("device-1", "plant").await;
    world.list("device-2", "plant").await;
    world.list("device-3", "second").await;
    let found = async |world: &World, device_id: &str| match world.gateway.find(device_id, None).await.unwrap() {
        Found::Assignment(view) => view.registration_id.to_string(),
        Found::Ambiguous(tenants) => format!("{} tenants", tenants.len()),
        other => format!("{other:?}"),
    };
    world.dps("a").device_id("device-1", "Pump-7");
    world.settle(world.ask("device-1")).await;
    assert_eq!(found(&world, "Pump-7").await, "device-1");
    sleep(seconds(1000)).await;
    world.dps("a").device_id("device-1", "Pump-8");
    world.gateway.invalidate("Pump-7", None, "hub-404001").await.unwrap();
    world.settle(world.ask("device-1")).await;
    world.dps("a").device_id("device-2", "Pump-7");
    world.settle(world.ask("device-2")).await;
    world.dps("a").device_id("device-3", "Pump-7");
    world.settle(world.ask_of("device-3", "second.example")).await;
    for restart in [false, true] {
        assert_eq!(found(&world, "Pump-8").await, "device-1", "restart: {restart}");
        assert_eq!(found(&world, "Pump-7").await, "2 tenants", "restart: {restart}");
        world.kill().await;
    }
    // Whether a tenant still has an enrollment does not change what its devices are called.
    inventory.enrollments.remove("second");
    world.gateway.apply(inventory).await.unwrap();
    assert_eq!(found(&world, "Pump-7").await, "2 tenants");
    world.gateway.retire(&id("device-2"), true).await.unwrap();
    assert_eq!(found(&world, "Pump-7").await, "device-3");
}

#[tokio::test(start_paused = true)]
async fn dps_is_shown_the_spelling_that_the_device_proved_itself_with_last() {
    let mut inventory = settings(&[("a", 60)]);
    let plant = inventory.enrollments.get_mut("plant").unwrap();
    plant.derive_from = DeriveFrom::AsGiven;
    plant.device = DeviceAttestation::FleetToken { tokens: vec![TokenDigest::of("fleet")] };
    let world = World::new(inventory).await;
    world.gateway.import(vec![row("SN-1", "plant", "delivery")]).await.unwrap();
    world.dps("a").reachable(false);
    for (spelling, kept) in [("SN-1", Some("SN-1")), ("Sn-1", Some("Sn-1")), ("sn-1", None)] {
        let ask = world.ask(spelling).authorization(Some("Bearer fleet"));
        assert!(matches!(world.provision(ask).await, Ok(Outcome::Queued(_))));
        assert_eq!(world.record("sn-1").await.unwrap().hardware_id(), kept);
        sleep(seconds(3)).await;
    }
    world.gateway.import(vec![row("SN-1", "plant", "another")]).await.unwrap();
    assert_eq!(world.record("sn-1").await.unwrap().hardware_id(), None, "a list does not change what the device said");
    world.dps("a").reachable(true);
    world.settle(world.ask("sn-1").authorization(Some("Bearer fleet"))).await;
    assert_eq!(world.dps("a").sent().last().unwrap().id, "sn-1");
    for (spelling, kept) in [("SN-1", Some("SN-1")), ("sn-1", None)] {
        sleep(seconds(1000)).await;
        let ask = world.ask(spelling).authorization(Some("Bearer fleet")).reprovision();
        world.settle(ask).await;
        assert_eq!(world.dps("a").sent().last().unwrap().id, spelling);
        assert_eq!(world.record("sn-1").await.unwrap().hardware_id(), kept);
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_lines_for_one_device_the_last_one_stands_wherever_the_lines_are_cut() {
    let rows = [
        row("SN-1", "plant", "first"),
        row("sn-2", "plant", "first"),
        row("sn-1", "plant", "second"),
        row("sn-1", "plant", "second"),
        row("sn-2", "nowhere", "second"),
    ];
    for cut in 0..=rows.len() {
        let world = World::new(settings(&[("a", 60)])).await;
        let mut outcomes = world.gateway.import(rows[..cut].to_vec()).await.unwrap();
        outcomes.extend(world.gateway.import(rows[cut..].to_vec()).await.unwrap());
        assert!(
            matches!(
                outcomes[..],
                [Imported::New, Imported::New, Imported::Renewed, Imported::Unchanged, Imported::Rejected(_)]
            ),
            "cut at {cut}: {outcomes:?}"
        );
        let record = world.record("sn-1").await.unwrap();
        assert_eq!((record.listed().unwrap().batch.as_deref(), record.hardware_id()), (Some("second"), None), "{cut}");
        assert_eq!(world.record("sn-2").await.unwrap().listed().unwrap().batch.as_deref(), Some("first"), "{cut}");
    }
}

// --- what cannot be read ----------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_damaged_record_is_told_to_its_own_device_only() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.store.seed(Record::key(&id("device-1")), "not a record");
    let answered = world.provision(world.ask("device-1")).await;
    assert!(
        matches!(answered, Err(ProvisionError::Store(StoreError::Read(ReadError::Corrupt { .. })))),
        "{answered:?}"
    );
    let forged = world.ask("device-2").authorization;
    for credential in [None, Some("Bearer anything"), Some("nonsense"), forged.as_deref()] {
        let answered = world.provision(world.ask("device-1").authorization(credential)).await;
        let refused = matches!(&answered, Err(ProvisionError::NotBelieved(not_believed)) if not_believed.told() == Told::Unauthorized);
        assert!(refused, "{answered:?}");
    }
}

/// Another version changes what is stored of a device.
async fn rewrite(world: &World, device: &str, change: impl FnOnce(&mut Value)) {
    let key = Record::key(&id(device));
    let stored = world.store.get(&key).await.unwrap().unwrap();
    let mut value = serde_json::from_slice(&stored.value).unwrap();
    change(&mut value);
    let version = Version(stored.version.0.map(|byte| !byte));
    world.store.seed_stored(key, Stored { version, value: value.to_string().into(), ..stored });
}

async fn stored(world: &World, device: &str) -> Value {
    let stored = world.store.get(&Record::key(&id(device))).await.unwrap().unwrap();
    serde_json::from_slice(&stored.value).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_a_newer_version_wrote_of_a_device_is_there_when_this_one_has_served_it() {
    let mut inventory = settings(&[("a", 60), ("b", 60)]);
    inventory.registration.timeline_max = 100;
    let mut world = World::new(inventory).await;
    world.dps("a").reachable(false);
    world.dps("b").reachable(false);
    world.queue("device-1").await;
    sleep(millis(500)).await;
    rewrite(&world, "device-1", |record| {
        record["owner"] = json!({ "since": 7, "name": "fleet" });
        record["pending"]["ticket"] = json!(1);
        record["timeline"][0]["by"] = json!("release-next");
    })
    .await;
    world.gateway.expedite(&id("device-1")).await.unwrap();
    assert_eq!(stored(&world, "device-1").await["pending"]["ticket"], 1, "its place was exchanged, and it still waits");
    world.kill().await;
    world.dps("a").reachable(true);
    world.dps("b").reachable(true);
    world.settle(world.ask("device-1")).await;
    rewrite(&world, "device-1", |record| record["assignment"]["lease"] = json!([1, 2])).await;
    world.gateway.block(&id("device-1"), "ops", Some("stolen")).await.unwrap();
    rewrite(&world, "device-1", |record| record["blocked"]["case"] = json!("c-1")).await;
    world.gateway.block(&id("device-1"), "ops", Some("lost")).await.unwrap();
    assert_eq!(stored(&world, "device-1").await["blocked"]["case"], "c-1");
    world.gateway.unblock(&id("device-1"), "ops").await.unwrap();
    world.kill().await;
    sleep(seconds(1000)).await;
    world.settle(world.ask("device-1").reprovision()).await;
    let renewed = stored(&world, "device-1").await;
    assert_eq!((&renewed["assignment"]["revision"], &renewed["assignment"]["lease"]), (&json!(2), &json!([1, 2])));
    let other = if renewed["assignment"]["instance"] == "a" { "b" } else { "a" };
    world.gateway.move_to(&id("device-1"), &name(other)).await.unwrap();
    sleep(seconds(60)).await;
    let moved = stored(&world, "device-1").await;
    assert_eq!(moved["assignment"]["instance"], other);
    assert_eq!(moved["assignment"].get("lease"), None, "DPS decided anew");
    assert_eq!(moved["owner"], json!({ "since": 7, "name": "fleet" }));
    assert_eq!(moved["timeline"][0]["by"], "release-next");
}

#[tokio::test(start_paused = true)]
async fn what_only_a_newer_version_understands_is_told_to_its_own_device_and_to_whoever_starts() {
    let world = World::new(settings(&[("a", 60)])).await;
    for device in ["device-1", "device-2"] {
        world.settle(world.ask(device)).await;
    }
    rewrite(&world, "device-1", |record| record["assignment"]["state"] = json!("leased")).await;
    let answered = world.provision(world.ask("device-1")).await;
    let refused = matches!(&answered, Err(ProvisionError::Store(StoreError::Read(ReadError::Newer { .. }))));
    assert!(refused, "{answered:?}");
    world.hub("device-2").await;
    world.gateway.stop(Duration::ZERO).await;
    let store = Arc::new(world.store.crash());
    let error = open(&world, &store, settings(&[("a", 60)])).await.map(drop).unwrap_err().to_string();
    let told = ["newer version", "registration device-1", "leased"].iter().all(|word| error.contains(word));
    assert!(told, "{error}");
}

#[tokio::test(start_paused = true)]
async fn no_credential_is_looked_at_beyond_its_greatest_length() {
    let long = "x".repeat(4000);
    let mut inventory = settings(&[("a", 60)]);
    inventory.enrollments.get_mut("plant").unwrap().device =
        DeviceAttestation::FleetToken { tokens: vec![TokenDigest::of(&long), TokenDigest::of("short")] };
    let world = World::new(inventory).await;
    world.gateway.import(vec![row("device-1", "plant", "delivery")]).await.unwrap();
    for (token, believed) in [(long.as_str(), false), ("short", true)] {
        let ask = world.ask("device-1").authorization(Some(&format!("Bearer {token}")));
        assert_eq!(world.provision(ask).await.is_ok(), believed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_without_a_key_of_its_own_is_not_believed() {
    let mut inventory = settings(&[("a", 60)]);
    inventory.enrollments.get_mut("plant").unwrap().upstream = UpstreamAttestation::Individual;
    let world = World::new(inventory).await;
    let (tenant, enrollment) = (tenant("default"), enrollment_name("plant"));
    let mut keyless = Record::new(id("device-1"), tenant.clone(), enrollment.clone());
    let claim = Claim { tenant, enrollment, spelling: None };
    keyless.apply(Command::List(Listing { claim, batch: None, key: None }), world.clock.now(), 1).unwrap();
    world.store.seed(Record::key(&id("device-1")), keyless.encode());
    let mut own = row("device-2", "plant", "delivery");
    own.key = Some(proxy_core::sas::derive_device_key(&group_key(), "device-2").expose_base64());
    world.gateway.import(vec![own]).await.unwrap();
    for (device, wanted) in
        [("device-1", Some(Reason::NoDeviceKey)), ("device-2", None), ("device-3", Some(Reason::NotListed))]
    {
        let answered = world.provision(world.ask(device).payload(json!({}))).await;
        assert_eq!(reason(answered), wanted, "{device}");
    }
}

/// Why the device was not believed; `None` if it has a place.
fn reason(answered: Result<Outcome, ProvisionError>) -> Option<Reason> {
    match answered {
        Ok(_) => None,
        Err(ProvisionError::NotBelieved(not_believed)) => Some(not_believed.reason),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn who_leads_to_no_enrollment_is_not_believed_and_that_is_the_reason() {
    let mut inventory = settings(&[("a", 60)]);
    inventory.default_enrollment = None;
    let world = World::new(inventory).await;
    for (ask, wanted) in [
        (world.ask_of("device-1", "elsewhere.example"), Some(Reason::NoEnrollment)),
        (world.ask("device-1").authorization(Some("Bearer fleet")), Some(Reason::NoEnrollment)),
        // Its audience leads to one.
        (world.ask("device-1"), None),
    ] {
        assert_eq!(reason(world.provision(ask).await), wanted);
    }
}
