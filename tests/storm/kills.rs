//! `kill -9` at random moments with sends in flight and the quotas nearly used up, again and again on one store.
//!
//! Devices stream in all the time, so that the ledger is always nearly full; each retries through every broken connection. Two tenants
//! share two well instances; a third instance takes half of what is configured, so that its limit has to come down and be kept over the
//! kills; a fourth one breaks every call for some of the time, so that its breaker opens and its devices are booked on a fifth one, and come
//! home. Afterwards the devices' diaries, the emulators'
//! journals, the operator plane and the backend plane must agree: no acknowledged place and no acknowledged assignment is lost, order is
//! kept, a registration is repeated only where a kill or a fault had left an outcome unknown or DPS had refused it, and no window ever
//! held more than the quota.
//!
//! `STORM_KILLS` sets the number of kills and `STORM_SEED` when they come; 200 take about a quarter of an hour.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{
    Device, Dice, Instance, Plan, Said, Site, counted_in_last_minute, emulator_config, registers, unix_ms, until,
};
use dps_emulator::{CallKind, Emulator, Fault, FaultAction, JournalEntry};
use futures_util::{StreamExt as _, stream};

/// Kills unless `STORM_KILLS` says otherwise: what fits into every run of the tests.
const KILLS: usize = 36;
/// Kills between two lines of a long campaign.
const PROGRESS: usize = 20;
const QUOTA: u32 = 300;
const BURST: u32 = 20;
/// Enrollments, each one a tenant, with their instances and how many of their devices are in line or under way at any time.
const FLEETS: [(&str, &[&str], usize); 4] =
    [("fleet", &WELL, 110), ("guests", &WELL, 110), ("shrunk", &[SHRUNK], 60), ("failing", &[FAILING, SPARE], 120)];
/// How long each register call is on its way at DPS: what makes sends be in flight.
const LATENCY: Duration = Duration::from_millis(300);
const WELL: [&str; 2] = ["eu-1", "eu-2"];
/// Takes [`REALLY_TAKEN`].
const SHRUNK: &str = "us-1";
const REALLY_TAKEN: u32 = QUOTA / 2;
/// Breaks every call while [`breaks`] says so.
const FAILING: &str = "us-2";
/// Takes devices from [`FAILING`] while that fails, and is quick, so that it has room for them.
const SPARE: &str = "us-3";
const SPARE_QUOTA: u32 = QUOTA * 4;
const INSTANCES: [&str; 5] = [WELL[0], WELL[1], SHRUNK, FAILING, SPARE];
/// What is configured.
fn quota_of(name: &str) -> u32 {
    if name == SPARE { SPARE_QUOTA } else { QUOTA }
}

/// The fault that does it.
const BROKEN: &str = "broken";
/// The adaptive limit, against what is really taken.
const ADAPTED: std::ops::RangeInclusive<f64> = 0.8..=1.1;

/// Whether every call breaks between this kill and the next one.
const fn breaks(kill: usize) -> bool {
    kill % 6 >= 4
}

/// A device's ID begins with the name of its enrollment.
fn device(site: &Site, id: &str) -> Device {
    site.device_of(enrollment_of(id), id)
}

fn enrollment_of(id: &str) -> &str {
    id.split_once('-').map_or(id, |(enrollment, _)| enrollment)
}

/// What a device lived through, in Unix milliseconds.
#[derive(Debug, Clone, Default)]
struct Diary {
    first_asked: u64,
    place_acknowledged: Option<u64>,
    hub: Option<String>,
    broken: u32,
}

#[derive(Default)]
struct Storm {
    next: AtomicU64,
    over: AtomicBool,
    boots: AtomicU64,
    boots_broken: AtomicU64,
    diaries: Mutex<HashMap<String, Diary>>,
    /// Devices with a hub, in the order in which they got it.
    assigned: Mutex<Vec<(String, String)>>,
    complaints: Mutex<Vec<String>>,
}

impl Storm {
    /// One spot of the crowd: a device after the other, until the storm is over.
    async fn spot(self: Arc<Self>, site: Arc<Site>, enrollment: &'static str) {
        while !self.over.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            self.live(&device(&site, &format!("{enrollment}-{number:05}"))).await;
        }
    }

    async fn live(&self, device: &Device) {
        self.diaries.lock().unwrap().insert(device.id.clone(), Diary { first_asked: unix_ms(), ..Diary::default() });
        let note = |write: &dyn Fn(&mut Diary)| write(self.diaries.lock().unwrap().get_mut(&device.id).unwrap());
        loop {
            // Every second device is held on the line, so that kills hit requests as well.
            let held = u64::from(device.id.ends_with(['1', '3', '5', '7', '9'])) * 5;
            let said = device.ask_waiting(held).await;
            let now = unix_ms();
            let wait = match said {
                Said::Hub(hub) => {
                    self.assigned.lock().unwrap().push((device.id.clone(), hub.clone()));
                    return note(&|diary| diary.hub = Some(hub.clone()));
                }
                Said::Queued { wait, .. } => {
                    note(&|diary| diary.place_acknowledged = diary.place_acknowledged.or(Some(now)));
                    wait
                }
                Said::Nothing(_) => {
                    note(&|diary| diary.broken += 1);
                    Duration::from_millis(250)
                }
                Said::Problem { status, wait, body } => {
                    self.complaints.lock().unwrap().push(format!("{}: {status} {body}", device.id));
                    wait.unwrap_or(Duration::from_secs(1))
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Devices with a hub that boot again and again: each must hear of the same hub.
    async fn boot_again(self: Arc<Self>, site: Arc<Site>, mut dice: Dice) {
        while !self.over.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(40)).await;
            let Some((id, hub)) = self.any_assigned(&mut dice) else { continue };
            match device(&site, &id).ask().await {
                Said::Hub(now) if now == hub => drop(self.boots.fetch_add(1, Ordering::Relaxed)),
                Said::Nothing(_) => drop(self.boots_broken.fetch_add(1, Ordering::Relaxed)),
                Said::Problem { status: 429, .. } => {}
                other => self.complaints.lock().unwrap().push(format!("{id} was at {hub}, and is told {other:?}")),
            }
        }
    }

    /// Devices that were told of a place and have no hub yet.
    fn waiting(&self) -> Vec<String> {
        let diaries = self.diaries.lock().unwrap();
        let waits = |diary: &Diary| diary.place_acknowledged.is_some() && diary.hub.is_none();
        diaries.iter().filter(|(_, diary)| waits(diary)).map(|(id, _)| id.clone()).collect()
    }

    /// A device that has a hub, any.
    fn any_assigned(&self, dice: &mut Dice) -> Option<(String, String)> {
        let assigned = self.assigned.lock().unwrap();
        let lucky = usize::try_from(dice.below(assigned.len() as u64)).unwrap_or(0);
        assigned.get(lucky).cloned()
    }
}

/// One kill, as the emulators saw it.
#[derive(Debug, Clone, Copy)]
struct Kill {
    at: u64,
    ready: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "one storm, told from its beginning to its end")]
async fn nothing_acknowledged_is_lost_and_no_quota_broken_by_kill_9() {
    let mut dice = Dice::new("kills");
    let planned = kills_planned();
    let mut emulators = Vec::new();
    let mut instances = Vec::new();
    for name in INSTANCES {
        let quota = quota_of(name);
        let really = if name == SHRUNK { REALLY_TAKEN } else { quota };
        let emulator = Emulator::start(emulator_config(name, really)).await.unwrap();
        emulator.add_fault(Fault::new(FaultAction::Delay { delay: LATENCY }).on(CallKind::Register));
        instances.push(Instance { name: name.to_owned(), endpoint: emulator.url(), quota, burst: BURST });
        emulators.push(emulator);
    }
    let [first, second, _shrunk, failing, _spare] = emulators.as_slice() else { unreachable!() };
    let registration = "upstream_max_delay = \"1s\"\nconnect_timeout = \"1s\"\nrequest_timeout = \"5s\"".to_owned();
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let enrollments = FLEETS.iter().map(|(name, instances, _)| ((*name).to_owned(), owned(instances))).collect();
    let line = "rebook_after = \"1s\"".to_owned();
    let plan = Plan { instances, registration, line, enrollments, tenants: true, ..Plan::default() };
    let site = Arc::new(Site::new(&plan));
    let mut service = site.start().await;

    let storm = Arc::new(Storm::default());
    let crowd: Vec<_> = FLEETS
        .iter()
        .flat_map(|(enrollment, _, devices)| std::iter::repeat_n(*enrollment, *devices))
        .map(|enrollment| tokio::spawn(Arc::clone(&storm).spot(Arc::clone(&site), enrollment)))
        .collect();
    let boots: Vec<_> =
        (0..3).map(|_| tokio::spawn(Arc::clone(&storm).boot_again(Arc::clone(&site), dice.fork()))).collect();
    let well = [first, second];
    let used = || well.map(|dps| counted_in_last_minute(&dps.journal(), unix_ms()));
    until("nine tenths of both quotas are used", Duration::from_secs(90), async || {
        used().iter().all(|&used| used * 10 >= QUOTA as usize * 9)
    })
    .await;

    let mut kills = Vec::new();
    let (mut shares, mut in_flight) = (Vec::new(), Vec::new());
    let (mut unknown, mut limits, mut opened) = ([0; INSTANCES.len()], Vec::new(), 0);
    for kill in 0..planned {
        let broken = breaks(kill).then(|| failing.add_fault(Fault::new(FaultAction::Reset).named(BROKEN)));
        tokio::time::sleep(dice.millis(2_000, 4_500)).await;
        opened += usize::from(site.instance(FAILING).await["breaker"] != "closed");
        limits.push(site.instance(SHRUNK).await["limitPerMinute"].as_f64().unwrap() / f64::from(REALLY_TAKEN));
        let at = service.kill().await;
        for (unknown, emulator) in unknown.iter_mut().zip(&emulators) {
            *unknown += unanswered_at(&emulator.journal(), at);
        }
        for emulator in well {
            let journal = emulator.journal();
            shares.push(counted_in_last_minute(&journal, at) as f64 / f64::from(QUOTA));
            in_flight.push(unanswered_at(&journal, at));
        }
        broken.map(|fault| failing.remove_fault(fault));
        service = site.start().await;
        kills.push(Kill { at, ready: unix_ms() });
        check_places(&site, &storm, &mut dice).await;
        if kills.len().is_multiple_of(PROGRESS) {
            report_progress(&shares, &storm);
        }
    }

    storm.over.store(true, Ordering::Relaxed);
    let drained =
        tokio::time::timeout(Duration::from_secs(120), futures_util::future::join_all(crowd.into_iter().chain(boots)))
            .await;
    assert!(drained.is_ok(), "not all devices came to an end: {:?}", storm.waiting());
    // Once more, so that the last word is the disk's.
    let _last = service.kill().await;
    let service = site.start().await;

    let diaries = storm.diaries.lock().unwrap().clone();
    let journals: Vec<Vec<JournalEntry>> = emulators.iter().map(Emulator::journal).collect();
    check_assignments(&site, &diaries, &emulators).await;
    let (rebooked, home) = moved_by_themselves(&site, &diaries).await;
    println!("kills: {rebooked} devices were booked on {SPARE} because {FAILING} failed, {home} of them came home");
    let (late, held) = check_order(&diaries, &journals, &kills);
    let mean_share = shares.iter().sum::<f64>() / shares.len() as f64;
    let least_share = shares.iter().copied().fold(1.0, f64::min);
    let downtime = kills.iter().map(|kill| kill.ready - kill.at).sum::<u64>() / kills.len() as u64;
    let broken: u32 = diaries.values().map(|diary| diary.broken).sum();
    let busy = in_flight.iter().filter(|&&count| count > 0).count();
    println!(
        "kills: {} kills, mean downtime {downtime} ms; {} devices; {busy} of {} times at least one was in flight; quota of the well ones used at \
         kills {:.1} % on average, {:.1} % at least; {late} devices after one that came later, all in flight at a kill, and {held} whose call it ended before DPS had it; {broken} requests of \
         devices in line broken; {} boots of assigned devices, {} broken; {FAILING} not closed at {opened} kills",
        kills.len(),
        diaries.len(),
        in_flight.len(),
        mean_share * 100.0,
        least_share * 100.0,
        storm.boots.load(Ordering::Relaxed),
        storm.boots_broken.load(Ordering::Relaxed),
    );
    for ((name, emulator), unknown) in INSTANCES.iter().zip(&emulators).zip(unknown) {
        check_instance(name, emulator, unknown);
    }
    let settled = &limits[planned / 2..];
    let (low, high) = settled.iter().fold((f64::MAX, 0.0_f64), |(low, high), part| (low.min(*part), high.max(*part)));
    println!("kills: {SHRUNK}: limit at the later half of the kills {low:.2} to {high:.2} of what it takes");
    assert_eq!(*storm.complaints.lock().unwrap(), Vec::<String>::new(), "nobody is refused for a restart");
    assert!(mean_share >= 0.9, "the ledger was not nearly full at the kills: {mean_share}");
    assert!(busy * 10 >= in_flight.len() * 8, "too few in flight: {in_flight:?}");
    assert!(broken as usize >= planned, "the kills hit too few requests: {broken}");
    assert!(opened > 0, "the breaker was never open at a kill");
    assert!(rebooked > 0, "nobody was booked elsewhere");
    assert!(settled.iter().all(|part| ADAPTED.contains(part)), "what DPS showed is lost: {limits:.2?}");
    service.stop().await;
}

/// No window of the instance held more than the quota, and no registration was repeated without cause.
fn check_instance(name: &str, emulator: &Emulator, unknown: usize) {
    let (stats, journal, quota) = (emulator.stats(), emulator.journal(), quota_of(name));
    let broken = registers(&journal).filter(|entry| entry.fault.as_deref() == Some(BROKEN)).count();
    let devices: HashSet<&str> = registers(&journal).filter_map(|entry| entry.registration_id.as_deref()).collect();
    let repeated = registers(&journal).count() - devices.len();
    let throttled = usize::try_from(stats.throttled).unwrap();
    println!(
        "kills: {name}: {} devices, {} counted, at most {} in any sliding and {} in any fixed minute of {quota}, {repeated} repeated, {unknown} in \
         flight at kills, {broken} broken, {throttled} throttled, {} lookups, {} second registrations while one ran, {} polls over the limit",
        devices.len(),
        stats.registrations_counted,
        stats.registrations_max_sliding,
        stats.registrations_max_fixed,
        stats.lookups,
        stats.concurrent_registrations + stats.concurrent_after_lost_reply,
        stats.poll_limit_violations,
    );
    assert!(stats.registrations_max_sliding <= quota && stats.registrations_max_fixed <= quota, "{stats:?}");
    assert!(name == SHRUNK || (stats.over_quota_sliding, stats.throttled) == (0, 0), "{name}: {stats:?}");
    assert!(
        repeated <= unknown + broken + throttled,
        "{name}: {repeated} repeated, {unknown} unknown, {broken} broken, {throttled} throttled"
    );
}

fn report_progress(shares: &[f64], storm: &Storm) {
    let latest = &shares[shares.len().saturating_sub(PROGRESS * WELL.len())..];
    println!(
        "kills: {} so far; quota used at the latest {PROGRESS}: {:.1} % on average; {} devices in line, {} assigned",
        shares.len() / WELL.len(),
        latest.iter().sum::<f64>() / latest.len() as f64 * 100.0,
        storm.waiting().len(),
        storm.assigned.lock().unwrap().len()
    );
}

fn kills_planned() -> usize {
    let Ok(text) = std::env::var("STORM_KILLS") else { return KILLS };
    text.parse()
        .ok()
        .filter(|&kills| kills > 0)
        .unwrap_or_else(|| panic!("STORM_KILLS={text} is not a number of kills"))
}

/// Registrations that DPS had received and the killed process had no or only just an answer to.
fn unanswered_at(journal: &[JournalEntry], kill: u64) -> usize {
    // The answer leaves after the latency; what the service does with it then takes a moment, on a busy machine a long one.
    let window = u64::try_from(LATENCY.as_millis()).unwrap() + 100;
    registers(journal).filter(|entry| entry.unix_ms + window >= kill && entry.unix_ms <= kill + 50).count()
}

/// Acknowledged places are there after a restart: the operator sees each device in line, under way, or assigned.
async fn check_places(site: &Site, storm: &Storm, dice: &mut Dice) {
    let waiting = storm.waiting();
    let skip = usize::try_from(dice.below(4)).unwrap();
    let mut asked: Vec<String> = waiting.into_iter().skip(skip).step_by(4).collect();
    asked.sort();
    let views = stream::iter(&asked).map(async |id| (id, site.operator(&format!("/v1/registrations/{id}")).await));
    let views: Vec<_> = views.buffer_unordered(8).collect().await;
    for (id, (status, view)) in views {
        assert_eq!(status, 200, "{id} was told of its place, and nothing is known of it: {view}");
        assert!(view["pending"].is_object() || view["assignment"].is_object(), "{id} lost its place: {view}");
    }
}

/// Whoever was told a hub is told the same for ever, by every plane and by DPS itself.
async fn check_assignments(site: &Site, diaries: &HashMap<String, Diary>, emulators: &[Emulator]) {
    let ids: Vec<String> = diaries.keys().cloned().collect();
    let again: HashMap<String, Option<String>> = stream::iter(ids.clone())
        .map(|id| {
            let device = device(site, &id);
            async move { (id, device.ask().await.hub()) }
        })
        .buffer_unordered(32)
        .collect()
        .await;
    let backend = site.lookup(&ids).await;
    assert_eq!(backend.len(), ids.len());
    for (id, answer) in ids.iter().zip(&backend) {
        let told = diaries[id].hub.as_deref();
        assert!(told.is_some(), "{id} never got a hub");
        assert_eq!(again[id].as_deref(), told, "{id} was told another hub");
        assert_eq!(answer["assignment"]["assignedHub"].as_str(), told, "{id}: {answer}");
        let at_dps: Vec<String> = emulators
            .iter()
            .filter_map(|emulator| emulator.registration(id))
            .filter_map(|known| known.assigned_hub)
            .collect();
        assert_eq!(at_dps.iter().map(String::as_str).collect::<Vec<_>>(), [told.unwrap()], "{id} at DPS");
    }
}

/// How many devices were booked on another instance, and how many of those were brought home, as their timelines tell.
async fn moved_by_themselves(site: &Site, diaries: &HashMap<String, Diary>) -> (usize, usize) {
    let ids: Vec<&String> = diaries.keys().filter(|id| enrollment_of(id) == "failing").collect();
    let views = stream::iter(ids).map(async |id| site.operator(&format!("/v1/registrations/{id}")).await.1);
    let timelines: Vec<String> =
        views.buffer_unordered(8).map(|view| view["timeline"].to_string()).collect::<Vec<_>>().await;
    let with = |words: &str| timelines.iter().filter(|timeline| timeline.contains(words)).count();
    (with("booked on another instance"), with("to its place there"))
}

/// A device whose place was acknowledged before another device asked at all is registered before it, if both are in one tenant's lane of
/// one instance that works. Calls that leave within one burst overtake each other on the network; and a kill may end a send before it reaches DPS.
/// That registration is made again at once if DPS turns out to have the first one, and when the first one cannot arrive any more if it does not.
/// Returns how many were late for one reason and for the other.
fn check_order(diaries: &HashMap<String, Diary>, journals: &[Vec<JournalEntry>], kills: &[Kill]) -> (usize, usize) {
    const OVERTAKING: u64 = 1_000;
    /// From the start after the kill on: `upstream_max_delay` as set here, the window and the guard.
    const LANDED: u64 = 61_100;
    const SOON: u64 = 10_000;
    let (mut late, mut held) = (0, 0);
    let lanes = journals[..WELL.len()].iter().flat_map(|journal| FLEETS.map(|(tenant, ..)| (journal, tenant)));
    for (journal, tenant) in lanes {
        let mut seen = HashSet::new();
        let arrivals: Vec<(&str, u64)> = registers(journal)
            .filter_map(|entry| Some((entry.registration_id.as_deref()?, entry.unix_ms)))
            .filter(|(id, _)| enrollment_of(id) == tenant && seen.insert(*id))
            .collect();
        for (index, &(id, arrived)) in arrivals.iter().enumerate() {
            let Some(acknowledged) = diaries[id].place_acknowledged else { continue };
            let younger = |(other, _): &&(&str, u64)| diaries[*other].first_asked > acknowledged;
            let Some(&(other, before)) = arrivals[..index].iter().find(younger) else { continue };
            if arrived - before <= OVERTAKING {
                continue;
            }
            let lost =
                |kill: &Kill| (kill.ready + LANDED..=kill.ready + LANDED + SOON).contains(&(arrived + OVERTAKING));
            let after =
                |kill: &Kill| kill.at + OVERTAKING >= before && kill.at <= arrived && arrived <= kill.ready + SOON;
            if kills.iter().any(after) {
                late += 1;
                continue;
            }
            assert!(
                kills.iter().any(lost),
                "{id} (told of its place at {acknowledged}) was registered {} ms after {other}, which came later",
                arrived - before
            );
            held += 1;
        }
    }
    assert!(held <= kills.len(), "{held} registrations of {} kills ended before they reached DPS", kills.len());
    (late, held)
}
