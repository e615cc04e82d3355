//! One instance is down while devices join: those it knows are still answered, new ones keep their places, and the other instance
//! does not notice. When it is back, everybody is assigned.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use dps_emulator::Emulator;
use futures_util::future::join_all;

use crate::support::{Instance, Plan, Said, Site, emulator_config, registers, until};

const KNOWN: usize = 20;
const NEW: usize = 100;
const INSTANCES: [&str; 2] = ["eu-1", "eu-2"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "one outage, told from its beginning to its end")]
async fn an_outage_costs_nobody_a_place_or_an_answer() {
    let mut emulators = Vec::new();
    let mut instances = Vec::new();
    for name in INSTANCES {
        let emulator = Emulator::start(emulator_config(name, 1000)).await.unwrap();
        instances.push(Instance { name: name.to_owned(), endpoint: emulator.url(), quota: 1000, burst: 100 });
        emulators.push(emulator);
    }
    let plan = Plan {
        instances,
        registration: "backoff_min = \"100ms\"\nbackoff_max = \"1s\"".to_owned(),
        device: "repeat_per = \"10ms\"".to_owned(),
        ..Plan::default()
    };
    let site = Site::new(&plan);
    let service = site.start().await;
    let known: Vec<_> = (0..KNOWN).map(|number| site.device(&format!("known-{number}"))).collect();
    let hubs: Vec<String> =
        join_all(known.iter().map(async |device| device.ask_until_assigned(Duration::from_secs(30)).await)).await;
    let at_down = hubs.iter().filter(|hub| hub.contains("eu-1")).count();
    assert!(at_down > 0, "none of {KNOWN} devices is at the instance that goes down");

    emulators[0].pause().await;
    let down_since = Instant::now();
    let new: Vec<_> = (0..NEW).map(|number| site.device(&format!("new-{number}"))).collect();
    let first = join_all(new.iter().map(async |device| device.ask().await)).await;
    assert!(first.iter().all(|said| said.status() == 202), "{first:?}");
    let mut homes: HashMap<&str, (String, String)> = HashMap::new();
    for device in &new {
        let (status, view) = site.operator(&format!("/v1/registrations/{}", device.id)).await;
        assert_eq!(status, 200);
        if let Some(instance) = view["pending"]["instance"].as_str() {
            homes.insert(&device.id, (instance.to_owned(), view["pending"]["place"].to_string()));
        }
    }
    let stranded: Vec<_> =
        new.iter().filter(|device| homes.get(device.id.as_str()).is_some_and(|(home, _)| home == "eu-1")).collect();
    let others: Vec<_> =
        new.iter().filter(|device| !stranded.iter().any(|stranded| stranded.id == device.id)).collect();
    assert!(stranded.len() >= NEW / 3 && others.len() >= NEW / 3, "{} and {}", stranded.len(), others.len());

    // The other instance: everybody assigned in the time that registering takes, while the first is down.
    let elsewhere =
        join_all(others.iter().map(async |device| device.ask_until_assigned(Duration::from_secs(15)).await)).await;
    assert!(elsewhere.iter().all(|hub| hub.contains("eu-2")), "{elsewhere:?}");
    let elsewhere_took = down_since.elapsed();

    // Several times during the outage: known devices have their hubs, stranded ones their places.
    let mut refusals = 0;
    for _ in 0..4 {
        for (device, hub) in known.iter().zip(&hubs) {
            assert_eq!(device.ask().await.hub().as_ref(), Some(hub), "{} is known", device.id);
        }
        for device in &stranded {
            let said = device.ask().await;
            let Said::Queued { position, .. } = said else { panic!("{}: {said:?}", device.id) };
            assert!(position <= stranded.len() as u64, "{}: position {position} of {}", device.id, stranded.len());
            let (_, view) = site.operator(&format!("/v1/registrations/{}", device.id)).await;
            assert_eq!(
                view["pending"]["place"].to_string(),
                homes[device.id.as_str()].1,
                "{} stands elsewhere",
                device.id
            );
            assert!(view["waitingBecause"].as_str().is_some_and(|why| !why.is_empty()), "{view}");
        }
        let view = site.instance("eu-1").await;
        refusals = view["counts"]["unreachable"].as_u64().unwrap();
        assert_eq!(site.instance("eu-2").await["breaker"], "closed");
        tokio::time::sleep(Duration::from_millis(800)).await;
    }
    assert!(refusals > 0, "the service must have tried");

    let down_for = down_since.elapsed();
    emulators[0].resume().await.unwrap();
    let back = Instant::now();
    let hubs_now =
        join_all(stranded.iter().map(async |device| device.ask_until_assigned(Duration::from_secs(30)).await)).await;
    assert!(hubs_now.iter().all(|hub| hub.contains("eu-1")), "{hubs_now:?}");
    until("the breaker is closed again", Duration::from_secs(5), async || {
        site.instance("eu-1").await["breaker"] == "closed"
    })
    .await;
    let sent: Vec<usize> = emulators.iter().map(|emulator| registers(&emulator.journal()).count()).collect();
    println!(
        "outage: down for {down_for:?}, {} stranded and {} at the other instance, which had them assigned {elsewhere_took:?} after the \
         outage began; {refusals} tries in vain; all assigned {:?} after it was back; registrations {sent:?}",
        stranded.len(),
        others.len(),
        back.elapsed(),
    );
    assert_eq!(sent.iter().sum::<usize>(), KNOWN + NEW, "one registration each: what never left does not count");
    assert_eq!(sent[0], at_down + stranded.len());
    let counts = site.instance("eu-1").await["counts"].clone();
    let own = |name: &str| usize::try_from(counts[name].as_u64().unwrap()).unwrap();
    println!("outage: the service's own counts: {counts}");
    // A try on a connection that DPS had closed counts as sent, and may find no other one.
    let accounted = sent[0]..=sent[0] + own("unreachable");
    assert!(accounted.contains(&own("registrations")), "{} at DPS; every try is accounted for: {counts}", sent[0]);
    service.stop().await;
}
