//! A DPS instance written for these tests: it counts by its own time of arrival and keeps everything it saw.
//!
//! A call is planned when it is sent: when it arrives (or never), what DPS does with it, and when the caller hears of it (or gives
//! up). Arrival does not depend on the caller: a call that was given up, or whose process was killed, may still arrive up to
//! [`MAX_DELAY`] later.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proxy_core::ids::{DeviceId, HubName, OperationId};
use proxy_core::sas::SasToken;
use proxy_core::upstream::{Answer, CallResult, Caller, DpsError, NoAnswer, Progress, RegistrationState, Said, Status};
use rate_control::time::WallTime;
use serde_json::Value;
use tokio::time::Instant;

use super::clock::{Dice, EPOCH_MILLIS};

mod fate;
mod network;

pub(crate) use fate::{Call, Fate, Reply, Weather};
pub(crate) use network::{Network, Process};

/// The longest that the network may keep a call which was given up.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(30);

/// A call as it left the gateway.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) call: Call,
    pub(crate) id: String,
    pub(crate) at: Duration,
    /// When the caller heard of it or gave up.
    pub(crate) ended: Option<Duration>,
    pub(crate) payload: Option<Value>,
}

/// A call as it arrived at DPS.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) call: Call,
    pub(crate) id: String,
    pub(crate) at: Duration,
}

#[derive(Debug, Clone)]
struct Registration {
    hub: HubName,
    etag: String,
    updated: WallTime,
}

#[derive(Debug, Clone)]
struct Operation {
    name: String,
    ready: Instant,
    end: Reply,
    done: bool,
}

#[derive(Debug)]
struct Inner {
    weather: Weather,
    dice: Dice,
    script: BTreeMap<(Call, String), VecDeque<Fate>>,
    next: BTreeMap<Call, VecDeque<Fate>>,
    reachable: bool,
    assigning: Duration,
    poll_after: Option<u64>,
    skew_millis: i64,
    hub: HubName,
    device_ids: BTreeMap<String, DeviceId>,
    sent: Vec<Sent>,
    arrivals: Vec<Arrival>,
    registrations: BTreeMap<String, Registration>,
    operations: BTreeMap<String, Operation>,
    operations_begun: u64,
    commits: u64,
    takes_nobody: bool,
    /// Registrations and lookups it takes in any minute; more are throttled and do not count.
    takes_per_minute: Option<usize>,
    taken: VecDeque<Duration>,
    tells_time: bool,
    /// Who answers the question for the time in its stead: with which status, and with a clock that is by how much ahead.
    front: Option<(u16, Option<i64>)>,
    asked_for_time: Vec<Duration>,
    /// The shortest and the longest that tokens which arrived had left, in seconds.
    token_life: Option<(i64, i64)>,
    /// How long the next connections take to come up.
    connecting: VecDeque<Duration>,
}

/// One DPS instance.
#[derive(Debug)]
pub(crate) struct Dps {
    began: Instant,
    inner: Mutex<Inner>,
}

impl Dps {
    pub(crate) fn new(seed: u64, hub: &str) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            inner: Mutex::new(Inner {
                weather: Weather::fair(100),
                dice: Dice::new(seed),
                script: BTreeMap::new(),
                next: BTreeMap::new(),
                reachable: true,
                assigning: Duration::from_millis(1500),
                poll_after: None,
                skew_millis: 0,
                hub: HubName::parse(hub).unwrap(),
                device_ids: BTreeMap::new(),
                sent: Vec::new(),
                arrivals: Vec::new(),
                registrations: BTreeMap::new(),
                operations: BTreeMap::new(),
                operations_begun: 0,
                commits: 0,
                takes_nobody: false,
                takes_per_minute: None,
                taken: VecDeque::new(),
                tells_time: true,
                front: None,
                asked_for_time: Vec::new(),
                token_life: None,
                connecting: VecDeque::new(),
            }),
        })
    }

    // --- what a test sets -----------------------------------------------------------------------------------------

    pub(crate) fn weather(&self, weather: Weather) {
        self.inner.lock().weather = weather;
    }

    pub(crate) fn reachable(&self, reachable: bool) {
        self.inner.lock().reachable = reachable;
    }

    pub(crate) fn takes_per_minute(&self, most: Option<usize>) {
        self.inner.lock().takes_per_minute = most;
    }

    pub(crate) fn assigning(&self, time: Duration) {
        self.inner.lock().assigning = time;
    }

    pub(crate) fn skew_millis(&self, skew: i64) {
        self.inner.lock().skew_millis = skew;
    }

    /// Whether it answers the question for its time; everything else is another matter.
    pub(crate) fn tells_time(&self, tells: bool) {
        self.inner.lock().tells_time = tells;
    }

    /// Something in front of it, with a certificate for its name, answers the question for the time with this status, and with a date that is
    /// ahead by so many milliseconds, if it has one.
    pub(crate) fn behind_a_front(&self, front: Option<(u16, Option<i64>)>) {
        self.inner.lock().front = front;
    }

    /// From now on, new allocations go to `hub`.
    pub(crate) fn hub(&self, hub: &str) {
        self.inner.lock().hub = HubName::parse(hub).unwrap();
    }

    pub(crate) fn device_id(&self, id: &str, device_id: &str) {
        self.inner.lock().device_ids.insert(id.to_owned(), DeviceId::parse(device_id).unwrap());
    }

    /// A web page comes in place of every answer, and no call arrives, or not any more.
    pub(crate) fn takes_nobody(&self, takes_nobody: bool) {
        self.inner.lock().takes_nobody = takes_nobody;
    }

    /// The connection of the next registration or lookup takes so long to come up; called again, of the one after that.
    pub(crate) fn connects_in(&self, time: Duration) {
        self.inner.lock().connecting.push_back(time);
    }

    /// Nothing that was said about the fates of calls to come holds any more.
    pub(crate) fn forget_fates(&self) {
        let mut inner = self.inner.lock();
        inner.next.clear();
        inner.script.clear();
    }

    /// The fate of the next call of this kind, whoever makes it; called again, of the one after that.
    pub(crate) fn next(&self, call: Call, fate: Fate) {
        self.inner.lock().next.entry(call).or_default().push_back(fate);
    }

    /// The same for the calls of one device.
    pub(crate) fn next_of(&self, call: Call, id: &str, fate: Fate) {
        self.inner.lock().script.entry((call, id.to_owned())).or_default().push_back(fate);
    }

    /// DPS has a registration of this device already, `age` old, at `hub`.
    pub(crate) fn already_holds(&self, id: &str, hub: &str, age: Duration) {
        let mut inner = self.inner.lock();
        let now = wall(self.began, inner.skew_millis);
        let updated = WallTime::from_unix_millis(now.unix_millis() - i64::try_from(age.as_millis()).unwrap());
        let registration = Registration { hub: HubName::parse(hub).unwrap(), etag: "old".to_owned(), updated };
        inner.registrations.insert(id.to_owned(), registration);
    }

    // --- what a test asks -----------------------------------------------------------------------------------------

    pub(crate) fn sent(&self) -> Vec<Sent> {
        self.inner.lock().sent.clone()
    }

    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.inner.lock().arrivals.clone()
    }

    /// Calls of this kind that left the gateway.
    pub(crate) fn count(&self, call: Call) -> usize {
        self.inner.lock().sent.iter().filter(|sent| sent.call == call).count()
    }

    pub(crate) fn count_of(&self, call: Call, id: &str) -> usize {
        self.inner.lock().sent.iter().filter(|sent| sent.call == call && sent.id == id).count()
    }

    pub(crate) fn asked_for_time(&self) -> usize {
        self.inner.lock().asked_for_time.len()
    }

    /// When it was asked for the time.
    pub(crate) fn asked_for_time_at(&self) -> Vec<Duration> {
        self.inner.lock().asked_for_time.clone()
    }

    /// The longest that a token which arrived was still good for, by its own clock, in seconds.
    pub(crate) fn token_life_max(&self) -> i64 {
        self.inner.lock().token_life.map_or(0, |(_, longest)| longest)
    }

    /// The shortest, of those whose calls arrived.
    pub(crate) fn token_life_min(&self) -> i64 {
        self.inner.lock().token_life.map_or(0, |(shortest, _)| shortest)
    }

    pub(crate) fn calls(&self) -> usize {
        self.inner.lock().sent.len()
    }

    // --- the service ----------------------------------------------------------------------------------------------

    fn fate(&self, call: Call, id: &str) -> Fate {
        let mut inner = self.inner.lock();
        if !inner.reachable {
            return Fate::NeverLeft;
        }
        if inner.takes_nobody {
            return Fate::reply(Reply::WebPage);
        }
        if let Some(fate) = inner.script.get_mut(&(call, id.to_owned())).and_then(VecDeque::pop_front) {
            return fate;
        }
        if let Some(fate) = inner.next.get_mut(&call).and_then(VecDeque::pop_front) {
            return fate;
        }
        let Inner { weather, dice, .. } = &mut *inner;
        weather.fate(dice)
    }

    fn arrive(&self, (call, id): (Call, &str), operation: Option<&str>, expires: i64, reply: &Reply) -> Answer {
        let mut inner = self.inner.lock();
        inner.arrivals.push(Arrival { call, id: id.to_owned(), at: self.began.elapsed() });
        let date = wall(self.began, inner.skew_millis);
        let throttled = if call == Call::Poll { None } else { inner.take(self.began.elapsed()) };
        let over = expires <= date.unix_millis() / 1000;
        let left = expires - date.unix_millis() / 1000;
        inner.token_life =
            Some(inner.token_life.map_or((left, left), |(least, most)| (least.min(left), most.max(left))));
        let not_believed =
            over.then_some(Reply::Error { http_status: 401, error_code: Some(401_002), retry_after: None });
        let reply = not_believed.as_ref().or(throttled.as_ref()).unwrap_or(reply);
        let said = inner.serve(call, id, operation, reply, date);
        let retry_after = match (reply, call) {
            (Reply::Error { retry_after, .. }, _) => retry_after.map(Duration::from_secs),
            (_, Call::Register | Call::Poll) => inner.poll_after.map(Duration::from_secs),
            (_, Call::Lookup) => None,
        };
        Answer { said, retry_after, date: Some(to_the_second(date)), request_id: Some("request-1".to_owned()) }
    }

    async fn call(self: Arc<Self>, process: Arc<Process>, call: Call, caller: &Caller, more: More<'_>) -> CallResult {
        if process.is_dead() {
            return std::future::pending().await;
        }
        let id = caller.registration_id.clone();
        let fate = self.fate(call, &id);
        if fate == Fate::NeverLeft {
            // On the paused clock: how long a connection takes to be refused.
            tokio::time::sleep(Duration::from_millis(30)).await;
            process.alive().await;
            return Err(NoAnswer::NeverLeft("connection refused".to_owned()));
        }
        assert!(fate != Fate::Dies, "a fault for the test");
        let index = {
            let mut inner = self.inner.lock();
            let at = self.began.elapsed();
            inner.sent.push(Sent { call, id: id.clone(), at, ended: None, payload: more.payload.cloned() });
            inner.sent.len() - 1
        };
        let (arrives, heard, reply, lost) = match fate {
            Fate::Answered { there, back, reply } => (Some(there), there + back, reply, false),
            Fate::Lost { gives_up, arrives } => (arrives, gives_up, Reply::Serve, true),
            Fate::NeverLeft | Fate::Dies => unreachable!("handled above"),
        };
        let answer = Arc::new(Mutex::new(None));
        if let Some(arrives) = arrives {
            let (dps, answer, process) = (Arc::clone(&self), Arc::clone(&answer), Arc::clone(&process));
            let operation = more.operation.map(str::to_owned);
            let expires = SasToken::parse(&caller.authorization).unwrap().expiry_unix_seconds;
            let at = Instant::now() + arrives;
            tokio::spawn(async move {
                tokio::time::sleep_until(at).await;
                if process.may_still_arrive() {
                    *answer.lock() = Some(dps.arrive((call, &id), operation.as_deref(), expires, &reply));
                }
            });
        }
        // On the paused clock, and one tick later, so that DPS never counts after it answered.
        tokio::time::sleep(heard + Duration::from_millis(1)).await;
        process.alive().await;
        self.inner.lock().sent[index].ended = Some(self.began.elapsed());
        let answer = answer.lock().take().filter(|_| !lost);
        answer.ok_or_else(|| NoAnswer::Lost("connection reset".to_owned()))
    }
}

impl Inner {
    /// `Some` is what DPS answers instead of doing its job.
    fn take(&mut self, now: Duration) -> Option<Reply> {
        const MINUTE: Duration = Duration::from_secs(60);
        while self.taken.front().is_some_and(|taken| now - *taken >= MINUTE) {
            self.taken.pop_front();
        }
        let most = self.takes_per_minute.unwrap_or(usize::MAX);
        let Some(oldest) = self.taken.len().checked_sub(most).and_then(|over| self.taken.get(over)) else {
            self.taken.push_back(now);
            return None;
        };
        let retry_after = Some((*oldest + MINUTE - now).as_secs() + 1);
        Some(Reply::Error { http_status: 429, error_code: Some(429_001), retry_after })
    }

    fn serve(&mut self, call: Call, id: &str, operation: Option<&str>, reply: &Reply, now: WallTime) -> Said {
        match reply {
            Reply::Error { http_status, error_code, .. } => return error(*http_status, *error_code),
            Reply::WebPage => return Said::Foreign { http_status: 200, detail: "a web page".to_owned() },
            Reply::NotThere => {
                let (http_status, error_code, tracking_id, message) = (404, None, None, String::new());
                return Said::Error(DpsError { http_status, error_code, tracking_id, message, body_is_empty: true });
            }
            _ => {}
        }
        self.complete(id, now);
        let said = match call {
            Call::Register => self.register(id, reply.clone(), now),
            Call::Poll => self.poll(id, operation.unwrap_or_default()),
            Call::Lookup => self.lookup(id),
        };
        if *reply == Reply::Unreadable {
            return Said::Unreadable { http_status: 200, detail: "half of a body".to_owned() };
        }
        said
    }

    /// Ends the operations of a device that are due.
    fn complete(&mut self, id: &str, now: WallTime) {
        let due = self.operations.get(id).filter(|operation| operation.ready <= Instant::now()).cloned();
        let Some(operation) = due else { return };
        if matches!(operation.end, Reply::Serve | Reply::Unreadable) && !operation.done {
            self.commits += 1;
            let late = i64::try_from(operation.ready.elapsed().as_millis()).unwrap();
            let updated = WallTime::from_unix_millis(now.unix_millis() - late);
            let registration = Registration { hub: self.hub.clone(), etag: format!("etag-{}", self.commits), updated };
            self.registrations.insert(id.to_owned(), registration);
        }
        if let Some(operation) = self.operations.get_mut(id) {
            operation.done = true;
        }
    }

    fn register(&mut self, id: &str, end: Reply, now: WallTime) -> Said {
        let forever = Duration::from_secs(1_000_000);
        let ready = Instant::now() + if end == Reply::Stuck { forever } else { self.assigning };
        self.operations_begun += 1;
        let name = format!("5.0123456789abcdef.{}", self.operations_begun);
        self.operations.insert(id.to_owned(), Operation { name: name.clone(), ready, end, done: false });
        self.complete(id, now);
        self.poll(id, &name)
    }

    fn poll(&self, id: &str, name: &str) -> Said {
        let Some(operation) = self.operations.get(id).filter(|operation| operation.name == name) else {
            return error(404, Some(404_202));
        };
        let operation_id = Some(OperationId::parse(name).unwrap());
        let (status, state) = match &operation.end {
            _ if !operation.done => (Status::Assigning, RegistrationState::default()),
            Reply::Fail(code) => {
                let words = Some("in DPS's words".to_owned());
                let state =
                    RegistrationState { error_code: Some(*code), error_message: words, ..RegistrationState::default() };
                (Status::Failed, state)
            }
            Reply::Disabled => (Status::Disabled, RegistrationState::default()),
            _ => (Status::Assigned, self.state(id)),
        };
        Said::Progress(Progress { operation_id, status, state })
    }

    fn lookup(&self, id: &str) -> Said {
        if self.operations.get(id).is_some_and(|operation| !operation.done) {
            let state = RegistrationState::default();
            return Said::Progress(Progress { operation_id: None, status: Status::Assigning, state });
        }
        if !self.registrations.contains_key(id) {
            return error(404, Some(404_201));
        }
        Said::Progress(Progress { operation_id: None, status: Status::Assigned, state: self.state(id) })
    }

    fn state(&self, id: &str) -> RegistrationState {
        let Some(registration) = self.registrations.get(id) else { return RegistrationState::default() };
        RegistrationState {
            assigned_hub: Some(registration.hub.clone()),
            device_id: Some(self.device_ids.get(id).cloned().unwrap_or_else(|| DeviceId::parse(id).unwrap())),
            substatus: Some("initialAssignment".to_owned()),
            etag: Some(registration.etag.clone()),
            last_updated: Some(registration.updated),
            ..RegistrationState::default()
        }
    }
}

fn error(http_status: u16, error_code: Option<i64>) -> Said {
    let (tracking_id, message) = (Some("tracking-1".to_owned()), "in DPS's words".to_owned());
    Said::Error(DpsError { http_status, error_code, tracking_id, message, body_is_empty: false })
}

fn to_the_second(time: WallTime) -> WallTime {
    WallTime::from_unix_millis(time.unix_seconds() * 1000)
}

fn wall(began: Instant, skew_millis: i64) -> WallTime {
    WallTime::from_unix_millis(EPOCH_MILLIS + i64::try_from(began.elapsed().as_millis()).unwrap() + skew_millis)
}

struct More<'a> {
    payload: Option<&'a Value>,
    operation: Option<&'a str>,
}
