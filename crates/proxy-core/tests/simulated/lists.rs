//! Lists in pages: nobody is missing, nobody is there twice, and list and feed together leave no gap.

use std::collections::BTreeMap;

use proxy_core::feed::{Next, Start};
use proxy_core::use_cases::import::ImportRow;
use proxy_core::use_cases::lists::{Cursor, Filter, ListError, RegistrationState};

use crate::support::dps::{Call, Fate};
use crate::support::{World, id, name, seconds, settings, sleep};

fn device(number: u32) -> String {
    format!("device-{number:03}")
}

async fn assigned(devices: u32) -> World {
    let world = World::new(settings(&[("a", 1000)])).await;
    for number in 0..devices {
        world.queue(&device(number)).await;
    }
    sleep(seconds(60)).await;
    world
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_followed_from_its_position_knows_everything_whatever_changed_while_it_was_read() {
    let world = assigned(50).await;
    let (mut cursor, mut known, mut pages) = (None, BTreeMap::new(), 0);
    let position = loop {
        let (page, position) = world.gateway.assignments(cursor.clone(), 7, None).await.unwrap();
        pages += 1;
        for view in page.items {
            assert!(known.insert(view.registration_id.clone(), (view.revision, view.state)).is_none(), "twice");
        }
        // Devices on both sides of the cursor change between two pages, one is forgotten, and a new one comes in before it.
        for number in [pages, 49 - pages] {
            world.gateway.invalidate(&device(number), None, "hub-404001").await.unwrap();
        }
        world.queue(&format!("device-000-{pages}")).await;
        sleep(seconds(20)).await;
        if pages == 3 {
            world.gateway.retire(&id(&device(48)), true).await.unwrap();
        }
        let Some(after) = page.next else { break position };
        cursor = Some(Cursor { position, after });
    };
    assert!(pages >= 8, "{pages}");
    let Start::After(mut at) = world.gateway.feed_start(Some(&position.to_string())) else { panic!("a reset") };
    loop {
        let Next::Events(events) = world.gateway.feed_read(at).await.unwrap() else { panic!("a reset") };
        let Some((last, _)) = events.last() else { break };
        at = *last;
        for (_, change) in events {
            let entry = known.entry(change.registration_id).or_insert((0, change.state));
            if change.revision > entry.0 {
                *entry = (change.revision, change.state);
            }
        }
    }
    for number in 0..50 {
        let (revision, state) = known[&id(&device(number))];
        match world.record(&device(number)).await {
            Some(record) => {
                let assignment = record.assignment().unwrap();
                assert_eq!((revision, state), (assignment.revision, assignment.state), "{number}");
            }
            None => assert_eq!(state, proxy_core::device::AssignmentState::Retired, "{number}"),
        }
    }
    for page in 1..=pages {
        assert!(known.contains_key(&id(&format!("device-000-{page}"))), "{page}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_position_is_not_kept_any_more_has_to_be_begun_anew() {
    let mut kept = settings(&[("a", 1000)]);
    kept.feed.events_max = 2;
    let world = World::new(kept).await;
    for number in 0..5 {
        world.queue(&device(number)).await;
    }
    sleep(seconds(20)).await;
    let (page, position) = world.gateway.assignments(None, 2, None).await.unwrap();
    let cursor = Cursor { position, after: page.next.unwrap() };
    assert_eq!(world.gateway.assignments(Some(cursor.clone()), 2, None).await.unwrap().0.items.len(), 2);
    for number in 0..5 {
        world.gateway.invalidate(&device(number), None, "hub-404001").await.unwrap();
    }
    // The feed is pruned once a minute.
    sleep(seconds(130)).await;
    let outdated = world.gateway.assignments(Some(cursor), 2, None).await;
    assert!(matches!(outdated, Err(ListError::Outdated)), "{outdated:?}");
}

#[tokio::test(start_paused = true)]
async fn every_device_is_in_one_state_and_filters_find_it_there() {
    let world = World::new(settings(&[("a", 4)])).await;
    for known in ["assigned", "blocked", "retired"] {
        world.queue(known).await;
    }
    world.dps("a").next_of(Call::Register, "refused", Fate::error(401, Some(401_002)));
    world.queue("refused").await;
    sleep(seconds(30)).await;
    world.gateway.block(&id("blocked"), "operator", None).await.unwrap();
    world.gateway.retire(&id("retired"), false).await.unwrap();
    world.queue("waiting").await;
    let listed = |hardware_id: &str| ImportRow {
        hardware_id: hardware_id.to_owned(),
        enrollment: "plant".to_owned(),
        tenant: None,
        batch: None,
        key: None,
    };
    world.gateway.import(vec![listed("listed")]).await.unwrap();
    let all = world.gateway.registrations(None, 100, Filter::default()).await.unwrap();
    assert_eq!((all.items.len(), all.next), (6, None));
    for summary in &all.items {
        assert_eq!(summary.registration_id.as_str(), summary.state.as_str(), "{summary:?}");
    }
    for state in RegistrationState::ALL {
        let filter = Filter { state: Some(state), ..Filter::default() };
        let page = world.gateway.registrations(None, 100, filter).await.unwrap();
        let expected = all.items.iter().filter(|summary| summary.state == state).cloned().collect::<Vec<_>>();
        assert_eq!(page.items, expected, "{state:?}");
    }
    let at = |instance: &str| Filter { instance: Some(name(instance)), ..Filter::default() };
    assert_eq!(world.gateway.registrations(None, 100, at("b")).await.unwrap().items, []);
    let at_a = world.gateway.registrations(None, 100, at("a")).await.unwrap().items;
    assert!(at_a.iter().any(|summary| summary.registration_id == id("waiting")), "{at_a:?}");
    assert!(at_a.iter().all(|summary| summary.registration_id != id("listed")), "{at_a:?}");
}
