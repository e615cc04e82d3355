//! Devices, each with manners of its own, and strangers.
//!
//! Invariant: a device knows what a device can know: what it was told, and true time. It never looks into the gateway.

use std::sync::Arc;
use std::time::Duration;

use proxy_core::attestation::{Presented, Proof, Selector};
use proxy_core::dialect::Dialect;
use proxy_core::sas;
use proxy_core::secret::SymmetricKey;
use proxy_core::use_cases::provision::{Intent, Outcome, ProvisionError, ProvisionRequest};
use serde_json::json;

use crate::dice::Dice;
use crate::log::{Event, Told};
use crate::mutant::Mutant;
use crate::scenario::{DevicePlan, Manner};
use crate::settings::{audience, group_key};
use crate::world::{Running, World};

/// How long a device's token is good for.
const TOKEN_SECONDS: i64 = 3600;

/// Begins the lives of all devices, and of the strangers.
pub(crate) fn begin(world: &Arc<World>) {
    for device in 0..world.scenario.devices.len() {
        tokio::spawn(live(Arc::clone(world), device));
    }
    tokio::spawn(strangers(Arc::clone(world)));
}

/// A device's life, from its first question until it has its hub and no more questions.
async fn live(world: Arc<World>, device: usize) {
    let plan = world.scenario.devices[device].clone();
    let mut dice = Dice::new(world.scenario.seed, "device", device as u64);
    let mut comebacks = plan.comebacks;
    let mut reprovision = plan.reprovision;
    tokio::time::sleep_until(world.clock.at(plan.arrives)).await;
    loop {
        world.log.add(Event::Asked { device, reprovision });
        let (told, come_back) = ask(&world, &plan, reprovision, &mut dice).await;
        world.log.add(Event::Told { device, told: told.clone() });
        match told {
            Told::Assigned { .. } if comebacks == 0 => break,
            Told::Assigned { .. } => {
                comebacks -= 1;
                reprovision = dice.chance(150);
                tokio::time::sleep(dice.seconds(5, 200)).await;
                continue;
            }
            Told::Queued { .. } => world.acknowledged(&world.registration_id(device)),
            Told::Refused { .. } | Told::Turned(_) | Told::TooFast | Told::NoAnswer | Told::HungUp => {}
        }
        let wait = match plan.manner {
            Manner::NeverReturns => break,
            Manner::Obedient => come_back,
            Manner::Impatient => (come_back * dice.count(2, 60) / 100).max(Duration::from_millis(200)),
            Manner::Poller => Duration::from_secs(5),
            Manner::Flapper => dice.millis(300, 40_000),
        };
        tokio::time::sleep(wait).await;
    }
    world.is_done();
}

/// Asks once. Returns what it was told and when it should come back.
async fn ask(world: &World, plan: &DevicePlan, reprovision: bool, dice: &mut Dice) -> (Told, Duration) {
    let whenever = dice.millis(1_000, 12_000);
    let Some(Running { gateway, process }) = world.running() else { return (Told::NoAnswer, whenever) };
    let authorization = token(world, &group_key(plan.tenant), plan.tenant, &plan.hardware_id);
    let (proof, selector) = (Proof::Token(&authorization), Selector::default());
    let presented = Presented { hardware_id: &plan.hardware_id, proof, selector };
    let payload = plan.payload.then(|| json!({ "model": "th-1", "boot": dice.below(3) }));
    let intent = Intent { payload, reprovision };
    let question = ProvisionRequest { presented, intent, patience: plan.wait, dialect: Dialect::PLAIN };
    let hangs_up = async {
        match plan.patience {
            Some(patience) => tokio::time::sleep(patience).await,
            None => std::future::pending().await,
        }
    };
    let answered = tokio::select! {
        biased;
        () = process.gone.cancelled() => return (Told::NoAnswer, whenever),
        answered = Box::pin(gateway.provision(&question)) => answered,
        () = hangs_up => return (Told::HungUp, whenever),
    };
    match answered {
        Ok(Outcome::Assigned(assigned)) => {
            let mut hub = assigned.hub.to_string();
            if world.mutant == Some(Mutant::WrongHub) && dice.chance(300) {
                hub = "hub-of-another.azure-devices.net".to_owned();
            }
            (Told::Assigned { hub }, Duration::ZERO)
        }
        Ok(Outcome::Queued(queued)) => {
            let retry_after = match world.mutant {
                Some(Mutant::EarlyAppointments) => (queued.retry_after_seconds / 2).max(1),
                Some(Mutant::LateAppointments) => queued.retry_after_seconds * 2,
                _ => queued.retry_after_seconds,
            };
            (Told::Queued { retry_after, position: queued.position }, Duration::from_secs(retry_after))
        }
        Err(ProvisionError::Refused(refusal)) => (Told::Refused { code: refusal.code }, whenever),
        Err(ProvisionError::TooFast(wait)) => (Told::TooFast, Duration::from_secs(wait.as_secs() + 1)),
        Err(error) => (Told::Turned(error.to_string()), whenever),
    }
}

fn token(world: &World, group_key: &SymmetricKey, tenant: usize, hardware_id: &str) -> String {
    let registration_id = hardware_id.to_ascii_lowercase();
    let key = sas::derive_device_key(group_key, &registration_id);
    let resource = format!("{}%2Fregistrations%2F{registration_id}", audience(tenant));
    sas::device_token(&key, &resource, world.clock.unix_millis() / 1000 + TOKEN_SECONDS, None)
}

/// Those whom nobody has enrolled: wrong keys, other devices' names, no proof at all.
async fn strangers(world: Arc<World>) {
    let mut dice = Dice::new(world.scenario.seed, "strangers", 0);
    let wrong_key = SymmetricKey::from_digest([9; 32]);
    for number in 0..world.scenario.strangers {
        tokio::time::sleep(dice.seconds(1, 40)).await;
        let impostor = dice.chance(500);
        let device = dice.index(world.scenario.devices.len());
        let plan = &world.scenario.devices[device];
        let hardware_id = if impostor { plan.hardware_id.clone() } else { format!("stranger-{number}") };
        let authorization = match dice.below(3) {
            0 => None,
            1 => Some("SharedAccessSignature sr=x&sig=eA%3D%3D&se=1".to_owned()),
            _ => Some(token(&world, &wrong_key, plan.tenant, &hardware_id)),
        };
        let Some(Running { gateway, .. }) = world.running() else { continue };
        let proof = authorization.as_deref().map_or(Proof::Nothing, Proof::Token);
        let presented = Presented { hardware_id: &hardware_id, proof, selector: Selector::default() };
        let intent = Intent { payload: None, reprovision: true };
        let patience = Duration::from_secs(20);
        let question = ProvisionRequest { presented, intent, patience, dialect: Dialect::PLAIN };
        let (before, asked) = (world.commits(), world.clock.elapsed());
        let answered = Box::pin(gateway.provision(&question)).await;
        let believed = !matches!(
            answered,
            Err(ProvisionError::NotBelieved(_) | ProvisionError::IllFormedId(_) | ProvisionError::Store(_))
        );
        // While an answer takes time, as reads may and agreeing on what time it is, others write.
        let at_once = world.clock.elapsed() == asked && !world.scenario.slow_reads;
        let commits = if at_once { world.commits().saturating_sub(before) } else { 0 };
        world.log.add(Event::Stranger { believed, commits });
    }
}
