//! The fault table: each fault of the emulator alone, and the kinds of faults in pairs, under load.
//!
//! One service has an instance, an enrollment and a fleet for each case, so that many cases rage at the same time, and a calm instance
//! that must not notice any of it. A fault acts on every k-th call and a bounded number of times. Then everything that should be
//! assigned is, the store agrees with DPS, refused devices come in once the operator has let them, and DPS has counted exactly the
//! registrations that the service counts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dps_emulator::{ActiveFault, CallKind, Emulator, Fault, FaultAction};
use futures_util::future::join_all;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::support::{Device, Instance, Plan, Said, Site, emulator_config, hubs_of};

const QUOTA: u32 = 6_000;
const CALM_DEVICES: usize = 40;
/// What registering takes: an answer, one poll after 3 s, and a busy machine.
const CALM_PATIENCE: Duration = Duration::from_secs(30);
/// Cases that rage at the same time. All at once would starve a small machine for longer than the timeouts, which are faults too.
const AT_ONCE: usize = 10;
/// For the same reason.
static ONE_TEST_AT_A_TIME: Mutex<()> = Mutex::const_new(());
const PATIENCE: Duration = Duration::from_secs(90);
/// Everything short, so that every retry happens within the test; `assigning_max` leaves time for three polls in a row without an answer.
const REGISTRATION: &str = "\
connect_timeout = \"1s\"
request_timeout = \"3s\"
connections_max = 64
upstream_max_delay = \"1s\"
backoff_min = \"100ms\"
backoff_max = \"1s\"
poll_interval_max = \"4s\"
assigning_max = \"16s\"
attempts_max = 1000
";

/// What a fault does to the device it hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Nothing but time: no further registration.
    Waits,
    /// Its outcome is unknown: a lookup, and in doubt one more registration.
    InDoubt,
    /// One more registration.
    GoesAgain,
    /// 422 with this reason and, if it is one of DPS's, this code; after the operator's retry one more registration.
    Refused(&'static str, Option<u32>),
}

use Effect::{GoesAgain, InDoubt, Refused, Waits};

#[derive(Debug, Clone)]
struct Kind {
    name: String,
    call: Option<CallKind>,
    action: FaultAction,
    effect: Effect,
}

impl Kind {
    fn new(name: impl Into<String>, call: Option<CallKind>, action: FaultAction, effect: Effect) -> Self {
        Self { name: name.into(), call, action, effect }
    }

    fn fault(&self) -> Fault {
        let fault = Fault::new(self.action.clone()).named(self.name.clone());
        if let Some(call) = self.call { fault.on(call) } else { fault }
    }
}

fn delay(millis: u64) -> FaultAction {
    FaultAction::Delay { delay: Duration::from_millis(millis) }
}

/// An answer of DPS with its error body.
fn status(code: u16, retry_after: Option<u32>) -> FaultAction {
    FaultAction::Status { code, retry_after, error_code: None, intermediary: false }
}

/// An empty answer of something in between.
fn bare(code: u16) -> FaultAction {
    FaultAction::Status { code, retry_after: None, error_code: None, intermediary: true }
}

fn fail(error_code: u32) -> FaultAction {
    FaultAction::Fail { error_code, message: "a fault was asked for".to_owned() }
}

fn malformed(body: Option<&str>) -> FaultAction {
    FaultAction::MalformedBody { body: body.map(str::to_owned), content_type: None }
}

fn wrong_hub() -> FaultAction {
    FaultAction::WrongHub { host: "hub-of-a-stranger.azure-devices.net".to_owned() }
}

const REGISTER: Option<CallKind> = Some(CallKind::Register);
const POLL: Option<CallKind> = Some(CallKind::Poll);

fn singles() -> Vec<Kind> {
    let html = Some("<html>It works!</html>");
    let mut kinds = vec![
        Kind::new("delay 0.5 s", None, delay(500), Waits),
        Kind::new("delay > timeout, register", REGISTER, delay(4_000), InDoubt),
        Kind::new("delay > timeout, poll", POLL, delay(4_000), Waits),
        Kind::new("429, register", REGISTER, status(429, None), GoesAgain),
        Kind::new("429 after 2 s, register", REGISTER, status(429, Some(2)), GoesAgain),
        Kind::new("429, poll", POLL, status(429, None), Waits),
        Kind::new("429 after 2 s, poll", POLL, status(429, Some(2)), Waits),
        Kind::new("connection reset, register", REGISTER, FaultAction::Reset, GoesAgain),
        Kind::new("connection reset, poll", POLL, FaultAction::Reset, Waits),
        Kind::new("reply lost, register", REGISTER, FaultAction::LoseReply, InDoubt),
        Kind::new("reply lost, poll", POLL, FaultAction::LoseReply, Waits),
        Kind::new("stuck assigning", REGISTER, FaultAction::StuckAssigning, GoesAgain),
        Kind::new("half a body, register", REGISTER, malformed(None), InDoubt),
        Kind::new("half a body, poll", POLL, malformed(None), Waits),
        Kind::new("html, register", REGISTER, malformed(html), InDoubt),
        Kind::new("html, poll", POLL, malformed(html), Waits),
        Kind::new("empty object, register", REGISTER, malformed(Some("{}")), InDoubt),
        Kind::new("empty object, poll", POLL, malformed(Some("{}")), Waits),
        Kind::new("wrong hub", REGISTER, wrong_hub(), Refused("unexpected-hub", None)),
        Kind::new("disabled", REGISTER, FaultAction::Disabled, Refused("enrollment-disabled", None)),
        Kind::new("unassigned", REGISTER, FaultAction::Unassigned, GoesAgain),
        Kind::new("404, poll", POLL, status(404, None), GoesAgain),
    ];
    for code in [500, 503] {
        kinds.push(Kind::new(format!("{code}, register"), REGISTER, status(code, None), GoesAgain));
        kinds.push(Kind::new(format!("{code}, poll"), POLL, status(code, None), Waits));
    }
    for code in [408, 500, 502, 503, 504] {
        kinds.push(Kind::new(format!("bare {code}, register"), REGISTER, bare(code), GoesAgain));
        kinds.push(Kind::new(format!("bare {code}, poll"), POLL, bare(code), Waits));
    }
    for code in [302, 401, 403, 404] {
        kinds.push(Kind::new(format!("bare {code}, register"), REGISTER, bare(code), GoesAgain));
        kinds.push(Kind::new(format!("bare {code}, poll"), POLL, bare(code), Waits));
    }
    for (code, effect) in [
        (400_207, Refused("custom-allocation-failed", Some(400_207))),
        (400_208, Refused("no-hub-selected", Some(400_208))),
        (400_209, Refused("hub-refused-dps", Some(400_209))),
        (401_002, Refused("unauthorized-by-dps", Some(401_002))),
        (404_201, Refused("not-enrolled", Some(404_201))),
        (409_203, GoesAgain),
        (429_001, GoesAgain),
        (500_001, GoesAgain),
        (499_999, Refused("registration-failed", Some(499_999))),
    ] {
        kinds.push(Kind::new(format!("failed with {code}"), REGISTER, fail(code), effect));
    }
    for (code, effect) in [
        (400, Refused("rejected-by-dps", Some(400_001))),
        (401, Refused("unauthorized-by-dps", Some(401_001))),
        (403, GoesAgain),
        (404, Refused("not-enrolled", Some(404_001))),
        (409, GoesAgain),
        (412, GoesAgain),
        (415, GoesAgain),
    ] {
        kinds.push(Kind::new(format!("{code}, register"), REGISTER, status(code, None), effect));
    }
    kinds
}

/// One of each kind; what is of the transport hits registers, polls and lookups alike.
fn kinds_for_pairs() -> Vec<Kind> {
    vec![
        Kind::new("delay > timeout", None, delay(3_500), GoesAgain),
        Kind::new("429", None, status(429, None), GoesAgain),
        Kind::new("503", None, status(503, Some(1)), GoesAgain),
        Kind::new("bare 502", None, bare(502), GoesAgain),
        Kind::new("reset", None, FaultAction::Reset, GoesAgain),
        Kind::new("reply lost", None, FaultAction::LoseReply, GoesAgain),
        Kind::new("malformed", None, malformed(None), GoesAgain),
        Kind::new("stuck", REGISTER, FaultAction::StuckAssigning, GoesAgain),
        Kind::new("409203", REGISTER, fail(409_203), GoesAgain),
        Kind::new("400208", REGISTER, fail(400_208), Refused("no-hub-selected", Some(400_208))),
        Kind::new("wrong hub", REGISTER, wrong_hub(), Refused("unexpected-hub", None)),
        Kind::new("disabled", REGISTER, FaultAction::Disabled, Refused("enrollment-disabled", None)),
        Kind::new("unassigned", REGISTER, FaultAction::Unassigned, GoesAgain),
    ]
}

struct Case {
    name: String,
    kinds: Vec<Kind>,
    devices: usize,
    every: u64,
    times: u64,
}

/// What became of a case.
struct Outcome {
    row: String,
    wrongs: Vec<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_alone() {
    let case = |kind: Kind| Case { name: kind.name.clone(), kinds: vec![kind], devices: 24, every: 3, times: 6 };
    rage(singles().into_iter().map(case).collect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_in_pairs() {
    let kinds = kinds_for_pairs();
    let mut cases = Vec::new();
    for (index, first) in kinds.iter().enumerate() {
        for second in &kinds[index + 1..] {
            let name = format!("{} + {}", first.name, second.name);
            cases.push(Case { name, kinds: vec![first.clone(), second.clone()], devices: 10, every: 2, times: 4 });
        }
    }
    rage(cases).await;
}

/// Runs all cases at one service, as many at the same time as may be, beside a calm instance.
async fn rage(cases: Vec<Case>) {
    let _alone = ONE_TEST_AT_A_TIME.lock().await;
    let mut emulators = Vec::new();
    let mut plan = Plan { registration: REGISTRATION.to_owned(), ..Plan::default() };
    for number in 0..=cases.len() {
        let name = instance_name(number, cases.len());
        let emulator = Emulator::start(emulator_config(&name, QUOTA)).await.unwrap();
        plan.instances.push(Instance { name: name.clone(), endpoint: emulator.url(), quota: QUOTA, burst: 100 });
        plan.enrollments.push((name.clone(), vec![name]));
        emulators.push(emulator);
    }
    let site = Site::new(&plan);
    let service = site.start().await;

    let calm_name = instance_name(cases.len(), cases.len());
    let each = cases.iter().zip(&emulators).enumerate().map(|(number, (case, emulator))| {
        let running = Box::pin(run(&site, case, instance_name(number, cases.len()), emulator));
        running.map(move |outcome| (number, outcome))
    });
    let raging = stream::iter(each).buffer_unordered(AT_ONCE).collect::<BTreeMap<usize, Outcome>>();
    let calm = async {
        // In the middle of it.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        let fleet = (0..CALM_DEVICES).map(|number| site.device_of(&calm_name, &format!("calm-{number}")));
        let hubs = join_all(fleet.map(async |device| device.ask_until_assigned(CALM_PATIENCE).await)).await;
        assert_eq!(hubs.len(), CALM_DEVICES);
        began.elapsed()
    };
    let (outcomes, calm_took) = tokio::join!(raging, calm);
    println!(
        "{:<34}{:>6}{:>8}{:>9}{:>8}{:>7}{:>9}{:>9}{:>7}  {:<24}reasons of 422",
        "fault", "acted", "devices", "register", "lookup", "poll", "repeated", "422", "s", "statuses"
    );
    for outcome in outcomes.values() {
        println!("{}", outcome.row);
    }
    let stats = emulators[cases.len()].stats();
    println!(
        "the calm instance beside them: {CALM_DEVICES} devices in {calm_took:?}, {} registers, {} lookups",
        stats.registers, stats.lookups
    );
    assert_eq!(
        (stats.registers, stats.lookups, stats.devices_registered),
        (CALM_DEVICES as u64, 0, CALM_DEVICES as u64)
    );
    let wrongs: Vec<&String> = outcomes.values().flat_map(|outcome| &outcome.wrongs).collect();
    assert!(wrongs.is_empty(), "{wrongs:#?}");
    service.stop().await;
}

fn instance_name(number: usize, calm: usize) -> String {
    if number == calm { "calm".to_owned() } else { format!("c{number:02}") }
}

/// What one device was told until it had a hub or a refusal.
#[derive(Debug, Default)]
struct Told {
    statuses: BTreeMap<u16, usize>,
    refusal: Option<Value>,
    hub: Option<String>,
    trouble: Option<String>,
}

async fn live(device: &Device, patience: Duration) -> Told {
    let deadline = Instant::now() + patience;
    let mut told = Told::default();
    while Instant::now() < deadline {
        let said = device.ask_waiting(5).await;
        *told.statuses.entry(said.status()).or_default() += 1;
        match said {
            Said::Hub(hub) => {
                told.hub = Some(hub);
                return told;
            }
            Said::Queued { wait, .. } => tokio::time::sleep(wait).await,
            Said::Problem { status: 422, body, .. } => {
                told.refusal = Some(body);
                return told;
            }
            other => {
                told.trouble = Some(format!("{}: {other:?}", device.id));
                return told;
            }
        }
    }
    told.trouble = Some(format!("{}: neither assigned nor refused within {patience:?}", device.id));
    told
}

async fn run(site: &Site, case: &Case, instance: String, emulator: &Emulator) -> Outcome {
    let began = Instant::now();
    for kind in &case.kinds {
        emulator.add_fault(kind.fault().every(case.every).times(case.times));
    }
    let fleet: Vec<Device> =
        (0..case.devices).map(|number| site.device_of(&instance, &format!("{instance}-{number}"))).collect();
    let told = join_all(fleet.iter().map(|device| live(device, PATIENCE))).await;
    let took = began.elapsed();
    let acted: Vec<u64> = emulator.faults().iter().map(|ActiveFault { acted, .. }| *acted).collect();
    emulator.clear_faults();

    let mut wrongs: Vec<String> = told.iter().filter_map(|told| told.trouble.clone()).collect();
    let refused: Vec<&Device> =
        fleet.iter().zip(&told).filter(|(_, told)| told.refusal.is_some()).map(|(device, _)| device).collect();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for body in told.iter().filter_map(|told| told.refusal.as_ref()) {
        *reasons.entry(check_refusal(case, body, &mut wrongs)).or_default() += 1;
    }
    // The fault is over: whoever was refused comes in when the operator has mended it.
    let after = join_all(refused.iter().map(async |device| {
        let status = site.operate(&format!("/v1/registrations/{}/retry", device.id)).await;
        (status, live(device, PATIENCE).await)
    }))
    .await;
    wrongs.extend(
        after
            .iter()
            .filter(|(status, told)| *status != 200 || told.hub.is_none())
            .map(|(status, told)| format!("retry {status}: {told:?}")),
    );
    check_store(site, &instance, &fleet, emulator, &mut wrongs).await;

    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
    told.iter()
        .flat_map(|told| &told.statuses)
        .for_each(|(status, count)| *statuses.entry(*status).or_default() += count);
    let (stats, counts) = (emulator.stats(), site.instance(&instance).await["counts"].clone());
    let own = |name: &str| counts[name].as_u64().unwrap_or(u64::MAX);
    let again = stats.registers - case.devices as u64;
    check_counts(case, &acted, again, refused.len() as u64, &mut wrongs);
    if own("registrations") != stats.registers || own("lookups") != stats.lookups || own("polls") != stats.polls {
        wrongs.push(format!("the service counts {counts}, DPS {stats:?}"));
    }
    if own("unreachable") != 0 || stats.over_quota_sliding != 0 || stats.throttled != 0 {
        wrongs.push(format!("unreachable or over quota: {counts} {stats:?}"));
    }
    if acted.contains(&0) {
        wrongs.push(format!("a fault never acted: {acted:?}"));
    }
    let row = format!(
        "{:<34}{:>6}{:>8}{:>9}{:>8}{:>7}{again:>9}{:>9}{:>7.1}  {:<24}{}",
        case.name,
        acted.iter().map(u64::to_string).collect::<Vec<_>>().join("+"),
        case.devices,
        stats.registers,
        stats.lookups,
        stats.polls,
        refused.len(),
        took.as_secs_f64(),
        format!("{statuses:?}"),
        reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect::<Vec<_>>().join(", "),
    );
    Outcome { row, wrongs: wrongs.into_iter().map(|wrong| format!("{}: {wrong}", case.name)).collect() }
}

/// The refusal is one that the case's faults call for. Returns its reason.
fn check_refusal(case: &Case, body: &Value, wrongs: &mut Vec<String>) -> String {
    let reason = body["upstream"]["reason"].as_str().unwrap_or("none").to_owned();
    let code = body["upstream"]["errorCode"].as_u64();
    let due = case.kinds.iter().any(
        |kind| matches!(kind.effect, Refused(wanted, digits) if wanted == reason && digits.map(u64::from) == code),
    );
    if !due || body["detail"].as_str().is_none_or(str::is_empty) {
        wrongs.push(format!("refused with {body}"));
    }
    reason
}

/// How many registrations more than devices there may be: exactly those that the fault makes necessary, if it is alone.
fn check_counts(case: &Case, acted: &[u64], again: u64, refused: u64, wrongs: &mut Vec<String>) {
    let [kind] = case.kinds.as_slice() else {
        let most: u64 = acted.iter().sum();
        if again > most {
            wrongs.push(format!("{again} registrations repeated after {most} faults"));
        }
        return;
    };
    let acted = acted[0];
    let (least, most, refusals) = match kind.effect {
        Waits => (0, 0, 0),
        InDoubt => (0, acted, 0),
        GoesAgain => (acted, acted, 0),
        Refused(..) => (acted, acted, acted),
    };
    if !(least..=most).contains(&again) || refused != refusals {
        wrongs.push(format!(
            "{again} repeated and {refused} refused, but {least} to {most} and {refusals} were due after {acted} faults"
        ));
    }
}

/// In the end the store holds for each device what DPS holds, at a hub of the instance.
async fn check_store(site: &Site, instance: &str, fleet: &[Device], emulator: &Emulator, wrongs: &mut Vec<String>) {
    let views = stream::iter(fleet)
        .map(async |device| (device, site.operator(&format!("/v1/registrations/{}", device.id)).await));
    let views: Vec<_> = views.buffer_unordered(4).collect().await;
    for (device, (status, view)) in views {
        let stored = view["assignment"]["hub"].as_str().map(str::to_owned);
        let at_dps = emulator.registration(&device.id).and_then(|known| known.assigned_hub);
        let expected =
            stored.is_some() && stored == at_dps && stored.as_ref().is_some_and(|hub| hubs_of(instance).contains(hub));
        if status != 200 || !expected || view["assignment"]["state"] != "confirmed" || !view["pending"].is_null() {
            wrongs.push(format!("{}: DPS holds {at_dps:?}, the store {view}", device.id));
        }
    }
}

/// A failure that DPS holds of an earlier registration is not the answer to one that never arrived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_failure_is_not_taken_for_the_answer() {
    let emulator = Emulator::start(emulator_config("eu-1", QUOTA)).await.unwrap();
    let instance = Instance { name: "eu-1".to_owned(), endpoint: emulator.url(), quota: QUOTA, burst: 100 };
    let plan = Plan { instances: vec![instance], registration: REGISTRATION.to_owned(), ..Plan::default() };
    let site = Site::new(&plan);
    let service = site.start().await;
    let device = site.device("sn-1");
    emulator.add_fault(Fault::new(fail(400_208)).times(1));
    let told = live(&device, PATIENCE).await;
    assert!(told.refusal.is_some(), "{told:?}");
    // The operator mends it; the next registration is lost on its way.
    emulator.add_fault(Fault::new(FaultAction::Reset).on(CallKind::Register).times(1));
    assert_eq!(site.operate("/v1/registrations/sn-1/retry").await, 200);
    let told = live(&device, PATIENCE).await;
    assert!(told.hub.is_some(), "{told:?}; {}", site.operator("/v1/registrations/sn-1").await.1["timeline"]);
    service.stop().await;
}
