//! A store that does not write: nothing is acknowledged that is not durable, nothing that DPS said is lost.

use std::sync::Arc;

use proxy_core::base::StoreError;
use proxy_core::store::memory::Failure;
use proxy_core::store::{CommitError, Health, Table};
use proxy_core::use_cases::provision::{Outcome, ProvisionError};

use crate::support::dps::{Call, Fate, Reply};
use crate::support::judge::assert_within_quota;
use crate::support::{World, id, millis, seconds, settings, sleep};

fn full_disk() -> Health {
    Health::ReadOnly("the disk is full".to_owned())
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_read_only_known_devices_are_answered_and_nothing_else_is_promised() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.settle(world.ask("known")).await;
    world.store.set_health(full_disk());
    let calls = world.dps("a").calls();
    for _ in 0..5 {
        world.hub("known").await;
        let answered = world.provision(world.ask("new")).await;
        assert!(
            matches!(answered, Err(ProvisionError::Store(StoreError::Commit(CommitError::ReadOnly(_))))),
            "{answered:?}"
        );
        sleep(seconds(10)).await;
    }
    assert_eq!(world.dps("a").calls(), calls);
    assert_eq!((world.store.rows(Table::Device), world.gateway.instances().await[0].registered_count), (1, 1));
    world.store.set_health(Health::Writable);
    world.settle(world.ask("new")).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_remembered_does_not_keep_a_known_device_from_its_answer() {
    for health in [full_disk(), Health::ReadOnly("the store failed".to_owned())] {
        let world = World::new(settings(&[("a", 60)])).await;
        world.settle(world.ask("told")).await;
        sleep(seconds(1000)).await;
        assert!(matches!(world.provision(world.ask("told").reprovision()).await, Ok(Outcome::Queued(_))));
        sleep(seconds(20)).await;
        world.dps("a").reachable(false);
        world.queue("queued").await;
        world.store.set_health(health);
        for ask in [
            world.ask("queued").payload(serde_json::json!({ "model": "th-1" })),
            world.ask("queued").reprovision(),
            world.ask("queued"),
        ] {
            let answered = world.provision(ask).await;
            assert!(matches!(answered, Ok(Outcome::Queued(_))), "{answered:?}");
        }
        let calls = world.dps("a").count(Call::Register);
        for _ in 0..3 {
            world.assigned(world.ask("told").reprovision()).await;
        }
        assert_eq!(world.dps("a").count(Call::Register), calls);
        world.store.set_health(Health::Writable);
        world.assigned(world.ask("told").reprovision()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_credential_for_once_is_not_handed_out_while_that_cannot_be_remembered() {
    let mut inventory = settings(&[("a", 60)]);
    let plant = inventory.enrollments.get_mut("plant").unwrap();
    (plant.credential, plant.credential_once) = (proxy_core::settings::Credential::DerivedKey, true);
    let world = World::new(inventory).await;
    for device in ["device-1", "device-2"] {
        world.queue(device).await;
    }
    sleep(seconds(20)).await;
    assert!(world.assigned(world.ask("device-1")).await.credential.is_some());
    world.store.set_health(full_disk());
    assert!(world.assigned(world.ask("device-1")).await.credential.is_none(), "it has it");
    let answered = world.provision(world.ask("device-2")).await;
    assert!(matches!(answered, Err(ProvisionError::Store(_))), "{answered:?}");
    world.store.set_health(Health::Writable);
    assert!(world.assigned(world.ask("device-2")).await.credential.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_place_taken_before_the_store_went_read_only_is_kept_and_served_when_it_is_back() {
    let world = World::new(settings(&[("a", 60)])).await;
    for number in 0..30 {
        world.queue(&format!("device-{number}")).await;
    }
    world.store.set_health(full_disk());
    sleep(seconds(600)).await;
    let sent = world.dps("a").count(Call::Register);
    assert!(sent <= 11, "{sent} sent without a durable mark");
    assert!(world.gateway.instances().await[0].budget >= 50, "no slot is spent on what cannot be sent");
    world.store.set_health(Health::Writable);
    sleep(seconds(180)).await;
    for number in 0..30 {
        world.hub(&format!("device-{number}")).await;
    }
    assert_eq!(world.dps("a").count(Call::Register), 30);
}

#[tokio::test(start_paused = true)]
async fn an_assignment_that_came_while_the_store_could_not_write_is_stored_when_it_can() {
    for minutes in [1, 20] {
        let world = World::new(settings(&[("a", 60)])).await;
        world
            .dps("a")
            .next(Call::Register, Fate::Answered { there: millis(20), back: millis(500), reply: Reply::Serve });
        world.queue("device-1").await;
        sleep(seconds(1)).await;
        world.store.set_health(full_disk());
        sleep(seconds(60 * minutes)).await;
        assert!(matches!(world.provision(world.ask("device-1")).await, Ok(Outcome::Queued(_))));
        world.store.set_health(Health::Writable);
        sleep(seconds(15)).await;
        world.hub("device-1").await;
        assert_eq!(world.dps("a").count(Call::Register), 1);
    }
}

/// Fails the `nth` commit of a whole registration; returns whether as many others came before it.
async fn fail_nth(nth: u32, failure: &Failure) -> bool {
    let what = format!("commit {nth} fails with {failure:?}");
    let mut world = World::new(settings(&[("a", 60)])).await;
    world.settle(world.ask("known")).await;
    sleep(seconds(100)).await;
    // Every commit is held until the test lets it through, so that the nth can be told apart.
    world.store.hold_acks(true);
    let mut armed = nth == 1;
    if armed {
        world.store.fail_next_commit(failure.clone());
    }
    let request = tokio::spawn(world.ask("device-1").of(Arc::clone(&world.gateway)));
    let mut passed = 0;
    for _ in 0..400 {
        sleep(millis(50)).await;
        if world.store.held() == 0 {
            continue;
        }
        passed += 1;
        if passed + 1 == nth {
            armed = true;
            world.store.fail_next_commit(failure.clone());
        }
        world.store.sync();
    }
    let acknowledged = request.is_finished() && matches!(request.await.unwrap(), Ok(Outcome::Queued(_)));
    world.hub("known").await;
    if matches!(failure, Failure::Failed { .. }) {
        world.kill().await;
    } else {
        world.store.hold_acks(false);
    }
    if acknowledged {
        let record = world.record("device-1").await;
        assert!(
            record.is_some_and(|record| record.pending().is_some() || record.assignment().is_some()),
            "{what}: the place is lost"
        );
        sleep(seconds(300)).await;
        world.hub("device-1").await;
    }
    sleep(seconds(100)).await;
    let (hub, _) = world.settle(world.ask("device-1")).await;
    assert_eq!(hub, "hub-a.azure-devices.net", "{what}");
    sleep(seconds(100)).await;
    let view = world.gateway.instances().await.remove(0);
    assert_eq!((view.line_length, view.under_way, view.registered_count, view.budget), (0, 0, 2, 60), "{what}");
    assert_within_quota(world.dps("a"), 60, &what);
    armed
}

#[tokio::test(start_paused = true)]
async fn a_registration_survives_the_failure_of_any_of_its_commits() {
    let failures = [
        Failure::Busy,
        Failure::ReadOnly("for a moment".to_owned()),
        Failure::Failed { applied: false },
        Failure::Failed { applied: true },
    ];
    for failure in failures {
        let mut steps = 0;
        while steps < 20 && fail_nth(steps + 1, &failure).await {
            steps += 1;
        }
        assert!((4..20).contains(&steps), "place, sent, assigning and assigned are {steps} commits");
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_is_told_when_nothing_was_changed() {
    let world = World::new(settings(&[("a", 60)])).await;
    world.settle(world.ask("device-1")).await;
    let before = world.record("device-1").await;
    world.store.set_health(full_disk());
    let device = id("device-1");
    assert!(world.gateway.block(&device, "oncall", None).await.is_err());
    assert!(world.gateway.retry(&device).await.is_err());
    assert!(world.gateway.retire(&device, false).await.is_err());
    assert!(world.gateway.invalidate("device-1", None, "hub-404001").await.is_err());
    assert_eq!(world.record("device-1").await, before);
    world.hub("device-1").await;
}
