//! The network, and the DPS instances at its other end.
//!
//! A call is planned when it is sent: when it arrives (or never), and when the caller hears of it or gives up. What DPS does with it is
//! the emulator's own logic, asked at the moment of arrival.
//!
//! Invariants:
//! - A call arrives at most once, and no later than the longest delay after its caller gave up or its process was killed.
//! - DPS never counts a call later than it answers it.
//! - Requests are written here, byte by byte, and share no code with the core's client; answers are read by the core, as from a socket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dps_emulator::{Config, Dps, GroupConfig, HubConfig, Now, PollLimit, Quota, Reply, Request};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use proxy_core::ids::{InstanceName, OperationId};
use proxy_core::settings::{Instance as InstanceSettings, RegistrationSettings};
use proxy_core::upstream::time::{Speaker, TimeAnswer};
use proxy_core::upstream::{CallResult, Caller, Connect, LastLook, NoAnswer, Upstream, answer};
use rate_control::time::WallTime;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::SimClock;
use crate::dice::Dice;
use crate::log::{Call, Event, Log};
use crate::mutant::Mutant;
use crate::scenario::{InstancePlan, Outage, Scenario, Weather};
use crate::settings::{GROUP_KEYS, tenant_name};

/// The window of the quota.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);

/// What may stand as it is in one segment of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How long it takes to learn that nobody listens.
const REFUSED_AFTER: Duration = Duration::from_millis(30);

/// One process of ours, as the network sees it: once killed it sends nothing and hears nothing.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) number: u32,
    died: Mutex<Option<Instant>>,
    /// Cancelled when it dies.
    pub(crate) gone: CancellationToken,
}

impl Process {
    pub(crate) fn new(number: u32) -> Self {
        Self { number, died: Mutex::default(), gone: CancellationToken::new() }
    }

    pub(crate) fn kill(&self) {
        *self.died.lock() = Some(Instant::now());
        self.gone.cancel();
    }

    fn is_dead(&self) -> bool {
        self.died.lock().is_some()
    }

    /// Returns for a living process only.
    async fn alive(&self) {
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
    }

    fn may_still_arrive(&self, longest: Duration) -> bool {
        self.died.lock().is_none_or(|died| died.elapsed() <= longest)
    }
}

/// One DPS instance and the way to it.
pub(crate) struct Site {
    name: InstanceName,
    clock: Arc<SimClock>,
    log: Arc<Log>,
    /// The longest that the network keeps a call that was given up.
    longest_delay: Duration,
    first_quota: Quota,
    skew_millis: i64,
    state: Mutex<State>,
}

struct State {
    dps: Dps,
    dice: Dice,
    weather: Weather,
    outage: Option<Outage>,
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The fate of one call on its way.
struct Fate {
    /// When it arrives after it was sent, if it does.
    there: Option<Duration>,
    back: Duration,
    /// Whatever comes back is lost.
    lost: bool,
    /// When the caller is told that the connection broke; if it is not told, it gives up in the end.
    breaks: Option<Duration>,
}

/// The hubs of an instance, first ones first.
fn hubs(name: &InstanceName, count: usize) -> Vec<HubConfig> {
    (0..count).map(|number| HubConfig::new(format!("hub-{name}-{number}.azure-devices.net"))).collect()
}

impl Site {
    pub(crate) fn new(scenario: &Scenario, plan: &InstancePlan, clock: &Arc<SimClock>, log: &Arc<Log>) -> Self {
        let index = scenario.instances.iter().take_while(|other| other.name != plan.name).count() as u64;
        let mut dice = Dice::new(scenario.seed, "network", index);
        let quota = Quota { count: plan.quota, window: WINDOW, shape: plan.shape };
        let config = Config {
            id_scope: plan.scope.clone(),
            groups: (0..scenario.tenants)
                .filter(|&tenant| plan.tenant.is_none_or(|dedicated| dedicated == tenant))
                .map(|tenant| GroupConfig::new(tenant_name(tenant), GROUP_KEYS[tenant]))
                .collect(),
            hubs: hubs(&plan.name, plan.hubs),
            quota,
            bucket_burst: Some(plan.burst),
            lookup_counts: scenario.lookup_counts,
            poll_limit: PollLimit::default(),
            assigning: plan.assigning,
            give_up: scenario.give_up,
            concurrent: plan.concurrent,
            retry_after_seconds: plan.retry_after_seconds,
            seed: dice.next(),
            journal_capacity: 1,
            faults: plan.faults.clone(),
            ..Config::default()
        };
        let dps = Dps::new(&config).expect("the configuration is made here");
        let state = State { dps, dice, weather: plan.weather, outage: None };
        Self {
            name: plan.name.clone(),
            clock: Arc::clone(clock),
            log: Arc::clone(log),
            longest_delay: scenario.upstream_max_delay,
            first_quota: quota,
            skew_millis: plan.skew_millis,
            state: Mutex::new(state),
        }
    }

    fn now(&self) -> Now {
        let unix = self.clock.unix_millis() + self.skew_millis;
        let monotonic = self.clock.elapsed().as_nanos();
        Now { monotonic_ns: u64::try_from(monotonic).unwrap_or(u64::MAX), unix_ms: u64::try_from(unix).unwrap_or(0) }
    }

    pub(crate) fn set_outage(&self, outage: Option<Outage>) {
        self.state.lock().outage = outage;
    }

    /// Nothing goes wrong from here on, and the quota is at least what it was at first.
    pub(crate) fn heal(&self) {
        {
            let mut state = self.state.lock();
            state.outage = None;
            state.weather = state.weather.fair();
            state.dps.clear_faults();
        }
        self.raise_quota(self.first_quota.count);
    }

    /// The quota that DPS really has.
    pub(crate) fn set_quota(&self, count: u32) {
        let (now, mut state) = (self.now(), self.state.lock());
        state.dps.set_quota(Quota { count, ..self.first_quota }, now).expect("a quota is at least 1");
    }

    /// It is at least this from now on.
    pub(crate) fn raise_quota(&self, count: u32) {
        let current = self.state.lock().dps.quota().count;
        if count > current {
            self.set_quota(count);
        }
    }

    pub(crate) fn set_hubs(&self, count: usize) {
        let (now, mut state) = (self.now(), self.state.lock());
        state.dps.set_hubs(hubs(&self.name, count), now).expect("the hubs are made here");
    }

    /// How many calls DPS counted while its window held more than its quota.
    pub(crate) fn over_quota(&self) -> u64 {
        let (now, mut state) = (self.now(), self.state.lock());
        state.dps.stats(now).over_quota_sliding
    }

    /// The hub that DPS has given a device.
    pub(crate) fn hub_of(&self, id: &str) -> Option<String> {
        let (now, mut state) = (self.now(), self.state.lock());
        state.dps.registration(id, now)?.assigned_hub
    }

    fn fate(&self, timeout: Duration) -> (Fate, Option<Outage>) {
        let longest = u64::try_from((timeout + self.longest_delay).as_millis()).unwrap_or(u64::MAX);
        let limit = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let mut state = self.state.lock();
        let State { dice, weather, outage, .. } = &mut *state;
        let (least, most) = weather.latency;
        let (there, back) = (dice.millis(least, most), dice.millis(least, most));
        let mut fate = Fate { there: Some(there), back, lost: false, breaks: None };
        let roll = dice.below(1000);
        let mut bound = 0;
        let mut falls = |weight: u64| {
            bound += weight;
            roll < bound
        };
        let mut outage = *outage;
        if falls(weather.never_left) {
            outage = Some(Outage::Refuses);
        } else if falls(weather.lost_there) {
            fate.lost = true;
            fate.there = None;
            fate.breaks = dice.chance(500).then(|| dice.millis(1, limit));
        } else if falls(weather.lost_back) {
            fate.lost = true;
            fate.breaks = Some(there + dice.millis(1, limit));
        } else if falls(weather.late) {
            fate.lost = true;
            // The longest delay begins when the caller gives up, however early that is.
            let breaks = dice.chance(500).then(|| dice.millis(1, limit));
            let latest = breaks
                .map_or(longest, |breaks| u64::try_from((breaks + self.longest_delay).as_millis()).unwrap_or(longest));
            fate.there = Some(dice.millis(breaks.map_or(limit, |_| 0), latest));
            fate.breaks = breaks;
        } else if falls(weather.reset) {
            fate.lost = true;
            fate.breaks = Some(dice.millis(1, 200));
            fate.there = Some(dice.millis(0, 400));
        }
        (fate, outage)
    }

    fn serve(&self, wire: &Wire) -> (Reply, Now) {
        let now = self.now();
        let request = Request {
            method: wire.method,
            path: &wire.path,
            query: &wire.query,
            origin: "https://localhost",
            authorization: Some(&wire.authorization),
            content_type: wire.body.as_ref().map(|_| "application/json"),
            reused_connection: false,
            body: wire.body.as_deref().unwrap_or_default(),
        };
        (self.state.lock().dps.handle(&request, now), now)
    }
}

/// A request as it is on the wire.
struct Wire {
    call: Call,
    id: String,
    method: &'static str,
    path: String,
    query: String,
    authorization: String,
    body: Option<Vec<u8>>,
}

/// The network between one process and all instances.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) process: Arc<Process>,
    pub(crate) sites: BTreeMap<InstanceName, Arc<Site>>,
    pub(crate) mutant: Option<Mutant>,
}

impl Connect for Network {
    fn connect(
        &self,
        name: &InstanceName,
        instance: &InstanceSettings,
        registration: &RegistrationSettings,
    ) -> Result<Arc<dyn Upstream>, String> {
        let site = self.sites.get(name).ok_or_else(|| format!("no such instance: {name}"))?;
        Ok(Arc::new(Client {
            site: Arc::clone(site),
            process: Arc::clone(&self.process),
            scope: instance.id_scope.to_string(),
            api_version: registration.api_version.clone(),
            timeout: registration.request_timeout,
            mutant: self.mutant,
        }))
    }
}

/// The client of one instance.
#[derive(Debug)]
struct Client {
    site: Arc<Site>,
    process: Arc<Process>,
    scope: String,
    api_version: String,
    timeout: Duration,
    mutant: Option<Mutant>,
}

impl Client {
    fn wire(&self, call: Call, caller: &Caller, method: &'static str, suffix: &str, body: Option<&Value>) -> Wire {
        let id = utf8_percent_encode(&caller.registration_id, SEGMENT);
        Wire {
            call,
            id: caller.registration_id.clone(),
            method,
            path: format!("/{}/registrations/{id}{suffix}", self.scope),
            query: format!("api-version={}", self.api_version),
            authorization: caller.authorization.clone(),
            body: body.map(|body| body.to_string().into_bytes()),
        }
    }

    fn look(&self, last_look: &LastLook) -> Result<(), &'static str> {
        if self.mutant == Some(Mutant::NoLastLook) { Ok(()) } else { last_look.ask() }
    }

    async fn call(&self, wire: Wire) -> CallResult {
        if self.process.is_dead() {
            return std::future::pending().await;
        }
        let log = &self.site.log;
        let (fate, outage) = self.site.fate(self.timeout);
        if outage == Some(Outage::Refuses) {
            tokio::time::sleep(REFUSED_AFTER).await;
            self.process.alive().await;
            return Err(NoAnswer::NeverLeft("connection refused".to_owned()));
        }
        let number = log.number();
        log.add(Event::Sent {
            process: self.process.number,
            number,
            instance: self.site.name.clone(),
            call: wire.call,
            id: wire.id.clone(),
        });
        let given_up = Instant::now() + fate.breaks.unwrap_or(self.timeout).min(self.timeout);
        let answer = match outage {
            Some(Outage::Gateway) => {
                tokio::time::sleep(fate.back.min(self.timeout)).await;
                Some(Heard { status: 503, headers: Vec::new(), body: Vec::new() })
            }
            Some(Outage::Fails) => {
                tokio::time::sleep(fate.back.min(self.timeout)).await;
                let body = json!({ "errorCode": 500_001, "trackingId": "00000000-0000", "message": "out of order" });
                Some(Heard { status: 500, headers: Vec::new(), body: body.to_string().into_bytes() })
            }
            Some(Outage::Silent | Outage::Refuses) => {
                tokio::time::sleep_until(given_up).await;
                None
            }
            None => self.travel(wire, number, &fate, given_up).await,
        };
        self.process.alive().await;
        let retry_after = answer.as_ref().and_then(|heard| heard.header("retry-after")?.parse().ok());
        log.add(Event::Heard { number, status: answer.as_ref().map(|heard| heard.status), retry_after });
        let Some(heard) = answer else {
            let lost = "no answer".to_owned();
            let not_sent = self.mutant == Some(Mutant::LostIsNotSent);
            return Err(if not_sent { NoAnswer::NeverLeft(lost) } else { NoAnswer::Lost(lost) });
        };
        let deaf = self.mutant == Some(Mutant::IgnoreRetryAfter) && heard.status == 429;
        answer::read(heard.status, |name| heard.header(name).filter(|_| !(deaf && name == "retry-after")), &heard.body)
    }

    /// There and back, if the way lets it.
    async fn travel(&self, wire: Wire, number: u64, fate: &Fate, given_up: Instant) -> Option<Heard> {
        let (answered, answer) = oneshot::channel();
        if let Some(there) = fate.there {
            let (site, process) = (Arc::clone(&self.site), Arc::clone(&self.process));
            let arrives = Instant::now() + there;
            tokio::spawn(async move {
                tokio::time::sleep_until(arrives).await;
                if !process.may_still_arrive(site.longest_delay) {
                    return;
                }
                let (reply, now) = site.serve(&wire);
                let status = reply.answer.as_ref().map(|answer| answer.status);
                site.log.add(Event::Arrived { number, status });
                // Nobody listens any more if the caller gave up.
                let _ = answered.send((reply, now));
            });
        }
        let back = async {
            let (Ok((reply, now)), false) = (answer.await, fate.lost) else { return std::future::pending().await };
            // One tick later, so that DPS never counts after it answered.
            tokio::time::sleep(reply.delay + fate.back + Duration::from_millis(1)).await;
            reply.answer.map(|answer| Heard::of(answer, now))
        };
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(given_up) => None,
            heard = back => heard,
        }
    }
}

/// An HTTP answer at the caller's end.
struct Heard {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Heard {
    /// The emulator leaves the date to whoever serves its answers.
    fn of(answer: dps_emulator::Answer, now: Now) -> Self {
        let mut headers = answer.headers;
        let seconds = i64::try_from(now.unix_ms / 1000).unwrap_or(0);
        let date = jiff::Timestamp::from_second(seconds)
            .ok()
            .and_then(|moment| jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&moment).ok());
        headers.extend(date.map(|date| ("Date", date)));
        Self { status: answer.status, headers, body: answer.body }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

impl Upstream for Client {
    fn register<'a>(
        &'a self,
        caller: &'a Caller,
        payload: Option<&'a Value>,
        last_look: &'a LastLook,
    ) -> BoxFuture<'a, CallResult> {
        if let Err(held) = self.look(last_look) {
            return async move { Err(NoAnswer::Withheld(held)) }.boxed();
        }
        let mut body = json!({ "registrationId": caller.registration_id });
        if let Some(payload) = payload {
            body["payload"] = payload.clone();
        }
        let wire = || self.wire(Call::Register, caller, "PUT", "/register", Some(&body));
        if self.mutant == Some(Mutant::SendTwice) {
            let (first, second) = (wire(), wire());
            return async move { futures_util::join!(self.call(first), self.call(second)).0 }.boxed();
        }
        self.call(wire()).boxed()
    }

    fn poll<'a>(&'a self, caller: &'a Caller, operation_id: &'a OperationId) -> BoxFuture<'a, CallResult> {
        let suffix = format!("/operations/{}", utf8_percent_encode(operation_id.as_str(), SEGMENT));
        self.call(self.wire(Call::Poll, caller, "GET", &suffix, None)).boxed()
    }

    fn lookup<'a>(&'a self, caller: &'a Caller, last_look: &'a LastLook) -> BoxFuture<'a, CallResult> {
        if let Err(held) = self.look(last_look) {
            return async move { Err(NoAnswer::Withheld(held)) }.boxed();
        }
        let body = json!({ "registrationId": caller.registration_id });
        self.call(self.wire(Call::Lookup, caller, "POST", "", Some(&body))).boxed()
    }

    fn time(&self) -> BoxFuture<'_, Result<TimeAnswer, NoAnswer>> {
        async move {
            if self.process.is_dead() {
                return std::future::pending().await;
            }
            let (fate, outage) = self.site.fate(self.timeout);
            tokio::time::sleep(fate.there.unwrap_or(self.timeout).min(self.timeout)).await;
            let date = self.site.now().unix_ms / 1000 * 1000;
            tokio::time::sleep(fate.back + Duration::from_millis(1)).await;
            self.process.alive().await;
            if fate.lost || outage.is_some() {
                return Err(NoAnswer::Lost("no answer".to_owned()));
            }
            let date = WallTime::from_unix_millis(i64::try_from(date).unwrap_or(i64::MAX));
            Ok(TimeAnswer { speaker: Speaker::Dps, http_status: 401, date: Some(date), retry_after: None })
        }
        .boxed()
    }
}
