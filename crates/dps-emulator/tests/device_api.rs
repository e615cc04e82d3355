//! The device API as a function of requests and times: statuses, headers, bodies, substatus, quotas, faults.

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test, and the line says which")]

use std::time::Duration;

use dps_emulator::{
    Answer, Answered, CallKind, ConcurrentRegistration, Config, DeriveFrom, Dps, Fault, FaultAction, GroupConfig,
    HubConfig, IndividualConfig, Now, PollLimit, Quota, QuotaShape, Reply, ReprovisionPolicy, Request, StaySubstatus,
    derive_device_key, device_token,
};
use serde_json::{Value, json};

const SCOPE: &str = "0ne000AB12C";
const UNIX_MS: u64 = 1_795_000_000_000;
/// Bytes 00 to 1f.
const G2: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const G2_BYTES: [u8; 32] = {
    let mut bytes = [0; 32];
    let mut i = 0;
    while i < 32 {
        bytes[i] = i as u8;
        i += 1;
    }
    bytes
};
/// Bytes 20 to 3f.
const OTHER_KEY: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

fn config() -> Config {
    Config {
        id_scope: SCOPE.to_owned(),
        groups: vec![GroupConfig::new("plant", G2)],
        hubs: ["hub-a.azure-devices.net", "hub-b.azure-devices.net"].map(HubConfig::new).to_vec(),
        ..Config::default()
    }
}

/// An instance and a clock.
struct Bench {
    dps: Dps,
    ms: u64,
}

fn bench(config: &Config) -> Bench {
    Bench { dps: Dps::new(config).unwrap(), ms: 0 }
}

fn token(id: &str) -> String {
    device_token(&derive_device_key(&G2_BYTES, id), SCOPE, id, UNIX_MS / 1000 + 3600)
}

#[derive(Clone)]
struct Call {
    method: &'static str,
    path: String,
    query: &'static str,
    authorization: Option<String>,
    content_type: Option<&'static str>,
    body: Vec<u8>,
}

impl Call {
    fn register(id: &str) -> Self {
        Self {
            method: "PUT",
            path: format!("/{SCOPE}/registrations/{id}/register"),
            query: "api-version=2021-10-01",
            authorization: Some(token(id)),
            content_type: Some("application/json; charset=utf-8"),
            body: json!({ "registrationId": id }).to_string().into_bytes(),
        }
    }

    fn poll(id: &str, operation: &str) -> Self {
        Self {
            method: "GET",
            path: format!("/{SCOPE}/registrations/{id}/operations/{operation}"),
            body: Vec::new(),
            ..Self::register(id)
        }
    }

    fn lookup(id: &str) -> Self {
        Self { method: "POST", path: format!("/{SCOPE}/registrations/{id}"), ..Self::register(id) }
    }

    fn body(self, body: &str) -> Self {
        Self { body: body.as_bytes().to_vec(), ..self }
    }
}

impl Bench {
    fn now(&self) -> Now {
        Now { monotonic_ns: self.ms * 1_000_000, unix_ms: UNIX_MS + self.ms }
    }

    fn reply(&mut self, call: &Call) -> Reply {
        let now = self.now();
        self.dps.handle(
            &Request {
                method: call.method,
                path: &call.path,
                query: call.query,
                origin: "https://localhost:8443",
                authorization: call.authorization.as_deref(),
                content_type: call.content_type,
                reused_connection: false,
                body: &call.body,
            },
            now,
        )
    }

    fn answer(&mut self, call: &Call) -> Answer {
        self.reply(call).answer.expect("an answer")
    }

    fn send(&mut self, call: &Call) -> (u16, Value) {
        let answer = self.answer(call);
        (answer.status, serde_json::from_slice(&answer.body).expect("JSON"))
    }

    /// Registers, waits, polls: the final body.
    fn provision(&mut self, id: &str) -> Value {
        let (status, body) = self.send(&Call::register(id));
        assert_eq!(status, 202, "{body}");
        self.ms += 500;
        let (status, body) = self.send(&Call::poll(id, operation(&body)));
        assert_eq!(status, 200, "{body}");
        body
    }

    fn last(&self) -> dps_emulator::JournalEntry {
        self.dps.journal_after(0, usize::MAX).pop().expect("an entry")
    }
}

fn operation(body: &Value) -> &str {
    body["operationId"].as_str().expect("operationId")
}

#[test]
fn register_then_poll_until_assigned() {
    let mut b = bench(&config());
    let answer = b.answer(&Call::register("dev-1"));
    assert_eq!(answer.status, 202, "never an immediate 200: IoT Edge refuses it");
    assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(answer.header("retry-after"), Some("3"));
    assert_eq!(answer.header("location"), Some("https://localhost:8443/0ne000AB12C/registrations/dev-1/register"));
    assert_eq!(answer.header("x-ms-request-id").map(str::len), Some(36));
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    let op = operation(&body).to_owned();
    assert_eq!(body, json!({ "operationId": op, "status": "assigning" }), "no registrationState yet");
    assert!(op.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-'), "{op}");

    b.ms = 499;
    let answer = b.answer(&Call::poll("dev-1", &op));
    assert_eq!((answer.status, answer.header("retry-after")), (202, Some("3")));
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        body,
        json!({ "operationId": op, "status": "assigning",
                "registrationState": { "registrationId": "dev-1", "status": "assigning" } })
    );

    b.ms = 500;
    let (status, body) = b.send(&Call::poll("dev-1", &op));
    assert_eq!(status, 200);
    let state = body["registrationState"].clone();
    assert_eq!(body["status"], "assigned");
    assert_eq!(state["substatus"], "initialAssignment");
    assert_eq!(state["deviceId"], "dev-1");
    assert_eq!(state["symmetricKey"]["enrollmentGroupId"], "plant");
    assert_eq!(state["createdDateTimeUtc"], dps_emulator::timestamp(UNIX_MS));
    assert_eq!(state["lastUpdatedDateTimeUtc"], dps_emulator::timestamp(UNIX_MS + 500));
    assert!(state["assignedHub"].as_str().unwrap().ends_with(".azure-devices.net"));
    assert!(!body.to_string().contains("null"));

    let (status, looked_up) = b.send(&Call::lookup("dev-1"));
    assert_eq!((status, &looked_up), (200, &state), "the lookup's answer is bare");
    let stats = b.dps.stats(b.now());
    assert_eq!((stats.registers, stats.polls, stats.lookups), (1, 2, 1));
    assert_eq!(stats.registrations_counted, 2, "a lookup counts unless told otherwise");
    assert_eq!((stats.devices_registered, stats.per_hub.values().sum::<u64>()), (1, 1));
}

#[test]
fn bodies_of_every_sdk_are_accepted() {
    let mut b = bench(&config());
    for body in [
        "",
        " ",
        "{}",
        r#"{"registrationId":"DEV-1"}"#,
        r#"{"payload":null,"registrationId":"dev-1"}"#,
        r#"{"payload":{"a":1}}"#,
    ] {
        assert_eq!(b.send(&Call::register("dev-1").body(body)).0, 202, "{body}");
    }
    let mut without_type = Call::register("dev-1").body("");
    without_type.content_type = None;
    assert_eq!(b.send(&without_type).0, 202);
    let mut forced = Call::register("dev-1");
    forced.query = "api-version=2019-03-31&forceRegistration=true";
    assert_eq!(b.send(&forced).0, 202);
    let (_, body) = b.send(&Call::register("dev-1"));
    for poll_body in ["{}", " ", "null"] {
        let mut poll = Call::poll("dev-1", operation(&body)).body(poll_body);
        poll.content_type = None;
        assert_eq!(b.send(&poll).0, 202, "{poll_body}");
    }
}

#[test]
fn ids_are_decoded_and_folded() {
    let mut b = bench(&config());
    let mut call = Call::register("gw01:sensor_9.x-a");
    call.path = format!("/{SCOPE}/registrations/GW01%3asensor_9.x-A/register");
    let (status, body) = b.send(&call);
    assert_eq!(status, 202);
    b.ms += 500;
    let mut poll = Call::poll("gw01:sensor_9.x-a", operation(&body));
    assert_eq!(b.send(&poll).1["registrationState"]["deviceId"], "gw01:sensor_9.x-a");
    poll.path = poll.path.replace("gw01:", "another-");
    assert_eq!(b.send(&poll).0, 401, "somebody else's operation");

    let mixed = "SN-1";
    let as_given = Call {
        authorization: Some(device_token(&derive_device_key(&G2_BYTES, mixed), SCOPE, mixed, 1_900_000_000)),
        ..Call::register(mixed)
    };
    assert_eq!(b.send(&as_given).0, 401, "keys are derived from the lower-case form");
    let mut lenient = bench(&Config { derive_from: DeriveFrom::AsGiven, ..config() });
    assert_eq!(lenient.send(&as_given).0, 202);
}

fn assert_error(bench: &mut Bench, call: &Call, status: u16, code: u32) {
    let answer = bench.answer(call);
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, body["errorCode"].as_u64()), (status, Some(u64::from(code))), "{body}");
    assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"), "Node crashes without it");
    assert_eq!(answer.header("x-ms-request-id"), body["trackingId"].as_str());
    assert_eq!(answer.header("x-ms-error-code"), Some(code.to_string().as_str()));
    assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()));
    assert_eq!(body["timestampUtc"], dps_emulator::timestamp(bench.now().unix_ms));
    assert_eq!(body.as_object().unwrap().len(), 4);
}

#[test]
fn malformed_calls_are_refused_with_the_services_error_body() {
    let mut b = bench(&config());
    let ok = Call::register("dev-1");
    let with = |change: &dyn Fn(&mut Call)| {
        let mut call = ok.clone();
        change(&mut call);
        call
    };
    for (call, status, code) in [
        (with(&|c| c.path = "/".to_owned()), 404, 404_000),
        (with(&|c| c.path = format!("/{SCOPE}/enrollments/dev-1")), 404, 404_000),
        (with(&|c| c.path += "/more"), 404, 404_000),
        (with(&|c| c.path = format!("/{SCOPE}/registrations//register")), 404, 404_000),
        (with(&|c| c.method = "POST"), 405, 405_000),
        (with(&|c| c.query = ""), 400, 400_000),
        (with(&|c| c.query = "api-version=latest"), 400, 400_000),
        (with(&|c| c.content_type = Some("text/plain")), 415, 415_000),
        (with(&|c| c.content_type = None), 415, 415_000),
        (with(&|c| c.body = b"{".to_vec()), 400, 400_000),
        (with(&|c| c.body = b"[]".to_vec()), 400, 400_000),
        (with(&|c| c.body = br#"{"registrationId":"dev-2"}"#.to_vec()), 400, 400_000),
        (with(&|c| c.body = br#"{"payload":1}"#.to_vec()), 400, 400_000),
        (with(&|c| c.body = br#"{"registrationID":"dev-1"}"#.to_vec()), 400, 400_000),
        (with(&|c| c.body = br#"{"tpm":{"endorsementKey":"AA=="}}"#.to_vec()), 400, 400_000),
        (with(&|c| c.body = br#"{"csr":"AA=="}"#.to_vec()), 400, 400_000),
        (with(&|c| c.body = vec![b' '; 96 * 1024 + 1]), 413, 413_000),
        (with(&|c| c.path = format!("/{SCOPE}/registrations/dev_/register")), 400, 400_000),
        (Call::lookup("dev-1"), 404, 404_201),
        (Call::lookup("dev-1").body(r#"{"csr":"AA=="}"#), 400, 400_000),
        (Call::poll("dev-1", "5.0123456789abcdef.11111111-2222-3333-4444-555555555555"), 404, 404_201),
        (Call::poll("dev-1", "nonsense"), 404, 404_201),
        (with(&|c| c.path = c.path.replace(SCOPE, "0ne0000000F")), 401, 401_002),
        (with(&|c| c.authorization = None), 401, 401_002),
    ] {
        assert_error(&mut b, &call, status, code);
    }
    let mut largest = ok;
    largest.body = vec![b' '; 96 * 1024];
    assert_eq!(b.send(&largest).0, 202);
}

#[test]
fn credentials_are_verified() {
    let individual = IndividualConfig {
        secondary_key_base64: Some(G2.to_owned()),
        device_id: Some("Hub-Name".to_owned()),
        ..IndividualConfig::new("solo", OTHER_KEY)
    };
    let disabled = IndividualConfig { disabled: true, ..IndividualConfig::new("off", G2) };
    let mut b = bench(&Config { enrollments: vec![individual, disabled], ..config() });
    let other: Vec<u8> = (0x20..0x40).collect();
    let se = UNIX_MS / 1000 + 60;
    for (id, header, status) in [
        ("dev-1", token("dev-1"), 202),
        ("dev-1", token("dev-2"), 401),
        ("dev-1", device_token(&G2_BYTES, SCOPE, "dev-1", se), 401),
        ("dev-1", device_token(&derive_device_key(&G2_BYTES, "dev-1"), "0ne000AB12c", "DEV-1", se), 202),
        ("dev-1", device_token(&derive_device_key(&G2_BYTES, "dev-1"), "0ne000AB12D", "dev-1", se), 401),
        ("dev-1", device_token(&derive_device_key(&G2_BYTES, "dev-1"), SCOPE, "dev-1", UNIX_MS / 1000), 401),
        ("dev-1", device_token(&derive_device_key(&G2_BYTES, "dev-1"), SCOPE, "dev-1", UNIX_MS / 1000 + 1), 202),
        ("dev-1", "Bearer x".to_owned(), 401),
        // An individual key is used as it is, primary or secondary, and decides before the group.
        ("solo", device_token(&other, SCOPE, "solo", se), 202),
        ("solo", device_token(&G2_BYTES, SCOPE, "solo", se), 202),
        ("solo", token("solo"), 401),
        ("off", device_token(&G2_BYTES, SCOPE, "off", se), 401),
    ] {
        let call = Call { authorization: Some(header.clone()), ..Call::register(id) };
        let (got, body) = b.send(&call);
        assert_eq!(got, status, "{id} {header}");
        assert_eq!(b.last().unauthorized.is_some(), status == 401);
        if status == 401 {
            assert_eq!(body["message"], "Unauthorized", "no distinct texts");
        }
    }
    b.ms += 500;
    let now = b.now();
    let solo = b.dps.registration("SOLO", now).unwrap();
    assert_eq!(solo.device_id.as_deref(), Some("Hub-Name"));

    b.dps.put_group(&GroupConfig { disabled: true, ..GroupConfig::new("plant", G2) }).unwrap();
    assert_error(&mut b, &Call::register("dev-1"), 401, 401_002);
    let rolled = GroupConfig { secondary_key_base64: Some(G2.to_owned()), ..GroupConfig::new("plant", OTHER_KEY) };
    b.dps.put_group(&rolled).unwrap();
    assert_eq!(b.send(&Call::register("dev-1")).0, 202, "the secondary group key works too");
}

#[test]
fn an_expired_token_may_poll_what_it_created() {
    let short = |b: &Bench, call: Call| Call {
        authorization: Some(device_token(
            &derive_device_key(&G2_BYTES, "dev-1"),
            SCOPE,
            "dev-1",
            (UNIX_MS + b.ms) / 1000 + 1,
        )),
        ..call
    };
    for (enforced, status) in [(false, 200), (true, 401)] {
        let mut b = bench(&Config { poll_expiry_enforced: enforced, ..config() });
        let register = short(&b, Call::register("dev-1"));
        let (_, body) = b.send(&register);
        assert_eq!(b.last().token_seconds_left, Some(1));
        b.ms = 31_000;
        let poll = Call { authorization: register.authorization.clone(), ..Call::poll("dev-1", operation(&body)) };
        assert_eq!(b.send(&poll).0, status);
        assert_eq!(b.last().token_seconds_left, Some(-30), "by the emulator's own clock");
        assert_eq!(b.send(&register).0, 401, "but it cannot register again");
    }
    let mut skewed = bench(&Config { clock_skew: Duration::from_secs(60), ..config() });
    let register = short(&skewed, Call::register("dev-1"));
    skewed.ms = 60_000;
    assert_eq!(skewed.send(&register).0, 202);
    skewed.ms = 61_001;
    assert_eq!(skewed.send(&register).0, 401);
}

#[test]
fn registering_again_keeps_creation_and_changes_the_rest() {
    let mut b = bench(&config());
    let first = b.provision("dev-1")["registrationState"].clone();
    b.ms += 60_000;
    let again = b.provision("dev-1")["registrationState"].clone();
    assert_eq!(again["substatus"], "initialAssignment");
    assert_eq!(again["assignedHub"], first["assignedHub"]);
    assert_eq!(again["createdDateTimeUtc"], first["createdDateTimeUtc"]);
    assert_ne!(again["lastUpdatedDateTimeUtc"], first["lastUpdatedDateTimeUtc"]);
    assert_ne!(again["etag"], first["etag"]);
    let mut other = bench(&Config { stay_substatus: StaySubstatus::Reprovisioned, ..config() });
    other.provision("dev-1");
    assert_eq!(other.provision("dev-1")["registrationState"]["substatus"], "reprovisionedToInitialAssignment");
}

#[test]
fn a_change_of_hubs_moves_a_device_as_its_policy_says() {
    for (policy, hub, substatus) in [
        (ReprovisionPolicy::Migrate, "hub-c.azure-devices.net", "deviceDataMigrated"),
        (ReprovisionPolicy::Reset, "hub-c.azure-devices.net", "deviceDataReset"),
        (ReprovisionPolicy::Never, "hub-a.azure-devices.net", "initialAssignment"),
    ] {
        let group = GroupConfig { reprovision: policy, ..GroupConfig::new("plant", G2) };
        let mut b =
            bench(&Config { groups: vec![group], hubs: vec![HubConfig::new("hub-a.azure-devices.net")], ..config() });
        assert_eq!(b.provision("dev-1")["registrationState"]["assignedHub"], "hub-a.azure-devices.net");
        b.dps.set_hubs(vec![HubConfig::new("hub-c.azure-devices.net")], b.now()).unwrap();
        assert_eq!(b.send(&Call::lookup("dev-1")).1["assignedHub"], "hub-a.azure-devices.net", "a lookup moves nobody");
        let state = b.provision("dev-1")["registrationState"].clone();
        assert_eq!((state["assignedHub"].as_str(), state["substatus"].as_str()), (Some(hub), Some(substatus)));
        let stats = b.dps.stats(b.now());
        assert_eq!(stats.per_hub.get(hub), Some(&1));
        assert_eq!((stats.per_hub.len(), stats.devices_registered), (1, 1));
        assert_eq!(stats.moved, u64::from(policy != ReprovisionPolicy::Never));
    }
}

#[test]
fn static_allocation_and_no_hub_at_all() {
    let group = GroupConfig { hub: Some("hub-s.azure-devices.net".to_owned()), ..GroupConfig::new("plant", G2) };
    let mut b = bench(&Config { groups: vec![group], ..config() });
    assert_eq!(b.provision("dev-1")["registrationState"]["assignedHub"], "hub-s.azure-devices.net");
    let mut empty = bench(&Config { hubs: Vec::new(), ..config() });
    let body = empty.provision("dev-1");
    assert_eq!(
        (body["status"].as_str(), body["registrationState"]["errorCode"].as_u64()),
        (Some("failed"), Some(400_208))
    );
    assert!(body["registrationState"].get("deviceId").is_none());
    assert_eq!(empty.dps.stats(empty.now()).devices_registered, 0);
}

#[test]
fn concurrent_registrations_get_an_operation_each_or_a_conflict() {
    let mut b = bench(&config());
    let (_, first) = b.send(&Call::register("dev-1"));
    let (status, second) = b.send(&Call::register("dev-1"));
    assert_eq!(status, 202);
    assert_ne!(operation(&first), operation(&second));
    assert_eq!(b.dps.stats(b.now()).concurrent_registrations, 1);
    b.ms = 500;
    for body in [&first, &second] {
        assert_eq!(b.send(&Call::poll("dev-1", operation(body))).0, 200);
    }
    let mut strict = bench(&Config { concurrent: ConcurrentRegistration::Conflict, ..config() });
    strict.send(&Call::register("dev-1"));
    assert_error(&mut strict, &Call::register("dev-1"), 409, 409_203);
    strict.ms = 500;
    assert_eq!(strict.send(&Call::register("dev-1")).0, 202);
}

#[test]
fn the_quota_throttles_and_says_when_there_is_room() {
    for shape in [QuotaShape::Sliding, QuotaShape::Fixed, QuotaShape::Bucket] {
        let quota = Quota { count: 3, window: Duration::from_secs(60), shape };
        let mut b = bench(&Config { quota, bucket_burst: Some(3), ..config() });
        b.ms = 10_000;
        for _ in 0..3 {
            assert_eq!(b.send(&Call::register("dev-1")).0, 202);
        }
        b.ms = 10_500;
        let (_, body) = b.send(&Call::register("dev-2"));
        assert_eq!(body["errorCode"], 429_001);
        let answer = b.answer(&Call::lookup("dev-1"));
        let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        // Sliding: rejected calls count, so the newest three are one at 10.0 s and two at 10.5 s.
        let expected = match shape {
            QuotaShape::Sliding | QuotaShape::Fixed => {
                if shape == QuotaShape::Fixed {
                    50
                } else {
                    60
                }
            }
            QuotaShape::Bucket => 20,
        };
        assert_eq!((answer.status, wait), (429, expected), "{shape:?}");
        let entry = b.last();
        assert!(entry.throttled && entry.counted);
        let stats = b.dps.stats(b.now());
        assert_eq!((stats.throttled, stats.registrations_counted, stats.registrations_max_sliding), (2, 5, 5));
        assert_eq!(stats.over_quota_sliding, 2);
        b.ms += wait * 1000;
        assert_eq!(b.send(&Call::register("dev-1")).0, 202, "{shape:?}: Retry-After tells the truth");
    }
}

#[test]
fn what_draws_on_the_quota_is_selectable() {
    let quota = Quota { count: 2, window: Duration::from_secs(60), shape: QuotaShape::Sliding };
    let wrong = Call { authorization: None, ..Call::register("dev-1") };

    let mut strict = bench(&Config { quota, ..config() });
    assert_eq!(strict.send(&wrong).0, 401);
    assert_eq!(strict.send(&Call::lookup("dev-1")).0, 404);
    assert_eq!(strict.send(&Call::register("dev-1")).0, 429);

    let mut lenient = bench(&Config { quota, rejected_count: false, lookup_counts: false, ..config() });
    for _ in 0..3 {
        assert_eq!(lenient.send(&wrong).0, 401);
        assert_eq!(lenient.send(&Call::lookup("dev-1")).0, 404);
    }
    assert_eq!(lenient.send(&Call::register("dev-1")).0, 202);
    assert_eq!(lenient.send(&Call::register("dev-1")).0, 202);
    assert_eq!(lenient.send(&Call::register("dev-1")).0, 429);
    lenient.ms = 60_000;
    assert_eq!(lenient.send(&Call::register("dev-1")).0, 202, "the rejected call did not count");
    assert_eq!(lenient.dps.stats(lenient.now()).registrations_max_sliding, 3, "but the judge saw the overrun");
}

#[test]
fn polls_are_limited_per_device_and_cost_no_registration() {
    let mut b = bench(&Config { assigning: Duration::from_mins(1), ..config() });
    let (_, one) = b.send(&Call::register("dev-1"));
    let (_, two) = b.send(&Call::register("dev-2"));
    for i in 0..5 {
        b.ms = i * 1000;
        assert_eq!(b.send(&Call::poll("dev-1", operation(&one))).0, 202);
    }
    assert_eq!(b.send(&Call::poll("dev-2", operation(&two))).0, 202, "another device has its own limit");
    let answer = b.answer(&Call::poll("dev-1", operation(&one)));
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("7")), "polls at 0,1,2,3,4,4; room at 11 s");
    b.ms = 11_000;
    assert_eq!(b.send(&Call::poll("dev-1", operation(&one))).0, 202);
    let stats = b.dps.stats(b.now());
    assert_eq!((stats.poll_limit_violations, stats.throttled, stats.registrations_counted), (1, 0, 2));
}

#[test]
fn operations_are_given_up_and_forgotten() {
    let mut b = bench(&Config { assigning: Duration::from_hours(9), ..config() });
    let (_, body) = b.send(&Call::register("dev-1"));
    b.ms = 299_999;
    assert_eq!(b.send(&Call::poll("dev-1", operation(&body))).0, 202);
    b.ms = 300_000;
    let (status, ended) = b.send(&Call::poll("dev-1", operation(&body)));
    assert_eq!((status, ended["status"].as_str()), (200, Some("failed")));
    let long = |call: Call| Call {
        authorization: Some(device_token(
            &derive_device_key(&G2_BYTES, "dev-1"),
            SCOPE,
            "dev-1",
            UNIX_MS / 1000 + 9999,
        )),
        ..call
    };
    b.ms = 3_599_999;
    assert_eq!(b.send(&long(Call::poll("dev-1", operation(&body)))).0, 200);
    b.ms = 3_600_000;
    assert_eq!(b.send(&long(Call::poll("dev-1", operation(&body)))).0, 404);
}

#[test]
fn a_quota_can_be_changed_while_running() {
    let mut b = bench(&Config { poll_limit: PollLimit { count: 100, window: Duration::from_secs(1) }, ..config() });
    for _ in 0..5 {
        b.send(&Call::register("dev-1"));
    }
    let lower = Quota { count: 5, ..Quota::default() };
    b.dps.set_quota(lower, b.now()).unwrap();
    assert_eq!(b.send(&Call::register("dev-1")).0, 429);
    b.dps.set_quota(Quota { count: 7, ..lower }, b.now()).unwrap();
    assert_eq!(b.send(&Call::register("dev-1")).0, 202);
    assert!(b.dps.set_quota(Quota { count: 0, ..lower }, b.now()).is_err());
}

#[test]
fn deleted_registrations_are_gone() {
    let mut b = bench(&config());
    b.provision("dev-1");
    assert!(b.dps.delete_registration("dev-1", b.now()));
    assert!(!b.dps.delete_registration("dev-1", b.now()));
    assert_eq!(b.send(&Call::lookup("dev-1")).0, 404);
    assert_eq!(b.dps.stats(b.now()).devices_registered, 0);
    assert_eq!(b.provision("dev-1")["registrationState"]["substatus"], "initialAssignment");
}

#[test]
fn faults_that_shape_an_operation() {
    let mut b = bench(&config());
    for (action, status, code) in [
        (
            FaultAction::Fail { error_code: 400_207, message: "Custom allocation failed".to_owned() },
            "failed",
            Some(400_207),
        ),
        (FaultAction::Fail { error_code: 400_209, message: "hub".to_owned() }, "failed", Some(400_209)),
        (FaultAction::Disabled, "disabled", None),
        (FaultAction::Unassigned, "unassigned", None),
    ] {
        b.dps.add_fault(Fault::new(action).times(1));
        let body = b.provision("dev-1");
        assert_eq!(body["status"], status);
        assert_eq!(body["registrationState"]["errorCode"].as_u64(), code);
        assert!(!body.to_string().contains("null"));
    }
    b.dps.add_fault(Fault::new(FaultAction::WrongHub { host: "elsewhere.azure-devices.net".to_owned() }).times(1));
    assert_eq!(b.provision("dev-1")["registrationState"]["assignedHub"], "elsewhere.azure-devices.net");
    b.dps.add_fault(Fault::new(FaultAction::StuckAssigning).for_device("dev-2"));
    let (_, body) = b.send(&Call::register("dev-2"));
    b.ms += 200_000;
    assert_eq!(b.send(&Call::poll("dev-2", operation(&body))).0, 202);
    assert_eq!(b.send(&Call::lookup("dev-2")).1, json!({ "registrationId": "dev-2", "status": "assigning" }));
    assert_eq!(b.provision("dev-3")["status"], "assigned", "only the device that was named");
}

#[test]
fn faults_that_replace_or_lose_the_answer() {
    let mut b = bench(&config());
    let status =
        |code, intermediary| FaultAction::Status { code, retry_after: Some(9), error_code: None, intermediary };

    b.dps.add_fault(Fault::new(status(503, false)).times(1));
    assert_error(&mut b, &Call::register("dev-1"), 503, 503_001);
    assert!(b.last().counted, "the service itself answered, so it has counted");

    b.dps.add_fault(Fault::new(status(502, true)).times(1));
    let answer = b.answer(&Call::register("dev-1"));
    assert_eq!((answer.status, answer.header("retry-after"), answer.body.len()), (502, Some("9"), 0));
    assert!(!b.last().counted, "it never reached the service");

    b.dps.add_fault(Fault::new(FaultAction::Reset).named("cable").times(1));
    assert_eq!(b.reply(&Call::register("dev-1")).answer, None);
    let entry = b.last();
    assert_eq!((entry.answered, entry.counted, entry.fault.as_deref()), (Answered::Reset, false, Some("cable")));
    assert_eq!(b.dps.stats(b.now()).operations_started, 0);

    b.dps.add_fault(Fault::new(FaultAction::LoseReply).times(1));
    assert_eq!(b.reply(&Call::register("dev-1")).answer, None);
    let entry = b.last();
    assert_eq!((entry.answered, entry.counted), (Answered::Lost, true));
    assert!(entry.operation_id.is_some());
    b.send(&Call::register("dev-1"));
    let stats = b.dps.stats(b.now());
    assert_eq!((stats.concurrent_registrations, stats.concurrent_after_lost_reply), (0, 1));
    b.ms += 500;
    assert_eq!(b.send(&Call::lookup("dev-1")).1["status"], "assigned", "it was committed");

    b.dps.add_fault(
        Fault::new(FaultAction::MalformedBody { body: None, content_type: None }).on(CallKind::Register).times(1),
    );
    let answer = b.answer(&Call::register("dev-1"));
    assert_eq!(answer.status, 202);
    assert!(serde_json::from_slice::<Value>(&answer.body).is_err());
    let html =
        FaultAction::MalformedBody { body: Some("<html>".to_owned()), content_type: Some("text/html".to_owned()) };
    b.dps.add_fault(Fault::new(html).times(1));
    let answer = b.answer(&Call::lookup("dev-1"));
    assert_eq!((answer.header("content-type"), answer.body.as_slice()), (Some("text/html"), b"<html>".as_slice()));

    b.dps.add_fault(Fault::new(FaultAction::Delay { delay: Duration::from_secs(4) }).on(CallKind::Lookup));
    let reply = b.reply(&Call::lookup("dev-1"));
    assert_eq!((reply.delay, reply.answer.map(|a| a.status)), (Duration::from_secs(4), Some(200)));
    b.dps.clear_faults();
    assert_eq!(b.reply(&Call::lookup("dev-1")).delay, Duration::ZERO);
}

#[test]
fn the_same_calls_get_the_same_bytes() {
    let run = || {
        let mut b = bench(&Config { seed: 42, ..config() });
        b.dps.add_fault(Fault::new(FaultAction::Reset).with_probability(0.3));
        (0..200)
            .map(|i| {
                b.ms += 37;
                b.reply(&Call::register(&format!("dev-{}", i % 50)))
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let listen = "0.0.0.0:8443".parse().unwrap();
    assert!(Dps::new(&Config { listen, ..config() }).is_err());
    assert!(Dps::new(&Config { listen, allow_non_loopback: true, ..config() }).is_ok());
    for bad in [
        Config { id_scope: "a/b".to_owned(), ..config() },
        Config { groups: vec![GroupConfig::new("plant", "AAAA")], ..config() },
        Config { groups: vec![GroupConfig::new("plant", "not base64")], ..config() },
        Config { groups: vec![GroupConfig::new("plant", G2), GroupConfig::new("plant", G2)], ..config() },
        Config { enrollments: vec![IndividualConfig::new("a", G2), IndividualConfig::new("A", G2)], ..config() },
        Config { hubs: vec![HubConfig::new("https://hub")], ..config() },
        Config { hubs: vec![HubConfig { name: "hub".to_owned(), weight: 0 }], ..config() },
        Config { hubs: vec![HubConfig::new("a"), HubConfig::new("A")], ..config() },
        Config { retry_after_seconds: 0, ..config() },
        Config { quota: Quota { count: 0, ..Quota::default() }, ..config() },
    ] {
        assert!(Dps::new(&bad).is_err());
    }
}

#[test]
fn many_devices_are_spread_and_the_journal_stays_bounded() {
    let quota = Quota { count: 1_000_000, ..Quota::default() };
    let mut b = bench(&Config { quota, journal_capacity: 1000, ..config() });
    for i in 0..20_000 {
        b.ms += 1;
        assert_eq!(b.send(&Call::register(&format!("dev-{i}"))).0, 202);
    }
    b.ms += 500;
    let stats = b.dps.stats(b.now());
    assert_eq!(stats.devices_registered, 20_000);
    assert!(stats.per_hub.values().all(|&n| (9_500..10_500).contains(&n)), "{:?}", stats.per_hub);
    assert_eq!(b.dps.journal_after(0, usize::MAX).len(), 1000);
    assert_eq!(stats.journal_forgotten, 19_000);
}

/// Golden messages in `fixtures/wire/emulator-*`, for anybody's parser. `UPDATE_FIXTURES=1` writes them anew.
#[test]
fn golden_messages() {
    let quota = Quota { count: 4, ..Quota::default() };
    let mut b = bench(&Config { quota, ..config() });
    let mut golden = Vec::new();
    let answer = b.answer(&Call::register("device-0001"));
    let op = operation(&serde_json::from_slice(&answer.body).unwrap()).to_owned();
    golden.push(("register-202", answer));
    golden.push(("poll-202", b.answer(&Call::poll("device-0001", &op))));
    b.ms = 500;
    golden.push(("poll-200-assigned", b.answer(&Call::poll("device-0001", &op))));
    golden.push(("lookup-200", b.answer(&Call::lookup("device-0001"))));
    golden.push(("error-401", b.answer(&Call { authorization: None, ..Call::register("device-0001") })));
    let failing =
        FaultAction::Fail { error_code: 400_207, message: "Custom allocation failed with status code: 400".to_owned() };
    b.dps.add_fault(Fault::new(failing));
    let (_, body) = b.send(&Call::register("device-0002"));
    golden.push(("error-429", b.answer(&Call::register("device-0003"))));
    b.ms = 1000;
    golden.push(("poll-200-failed", b.answer(&Call::poll("device-0002", operation(&body)))));

    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/wire");
    for (name, answer) in golden {
        let headers: serde_json::Map<String, Value> =
            answer.headers.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let message = json!({
            "provenance": "written by dps-emulator (seed 1) after the published API specification; not captured from Azure",
            "status": answer.status,
            "headers": headers,
            "body": serde_json::from_slice::<Value>(&answer.body).unwrap(),
        });
        let text = format!("{}\n", serde_json::to_string_pretty(&message).unwrap());
        let path = folder.join(format!("emulator-{name}.json"));
        if std::env::var_os("UPDATE_FIXTURES").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), text, "{}", path.display());
    }
}

/// What dps-proxy's client sends, in `fixtures/wire/proxy-*`, is what this service takes.
#[test]
fn golden_requests_of_dps_proxy_are_accepted() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/wire");
    let mut b = bench(&config());
    for (name, ms, status) in [("time", 0, 400), ("register", 0, 202), ("poll", 500, 200), ("lookup", 500, 200)] {
        b.ms = ms;
        let text = std::fs::read_to_string(folder.join(format!("proxy-{name}.json"))).unwrap();
        let message: Value = serde_json::from_str(&text).unwrap();
        let header = |name: &str| message["headers"][name].as_str();
        let body = match &message["body"] {
            Value::Null => Vec::new(),
            body => body.to_string().into_bytes(),
        };
        let now = b.now();
        let request = Request {
            method: message["method"].as_str().unwrap(),
            path: message["path"].as_str().unwrap(),
            query: message["query"].as_str().unwrap(),
            origin: "https://localhost:8443",
            authorization: header("authorization"),
            content_type: header("content-type"),
            reused_connection: false,
            body: &body,
        };
        let reply = b.dps.handle(&request, now);
        let answer = reply.answer.unwrap();
        assert_eq!(answer.status, status, "{name}: {}", String::from_utf8_lossy(&answer.body));
    }
    let stats = b.dps.stats(b.now());
    assert_eq!((stats.registers, stats.polls, stats.lookups, stats.others), (1, 1, 1, 1));
    assert_eq!(stats.registrations_counted, 2, "the question for the time spends nothing");
}

#[test]
fn what_is_refused_is_in_the_journal_with_reason_method_and_path() {
    let mut b = bench(&config());
    let misspelt = Call::register("device-0001").body(r#"{"registrationid":"device-0001"}"#);
    let anonymous = Call { authorization: None, ..Call::register("device-0001") };
    let nowhere = Call { path: "/nowhere".to_owned(), ..Call::register("device-0001") };
    let patch = Call { method: "PATCH", ..Call::register("device-0001") };
    for call in [&misspelt, &anonymous, &nowhere, &patch] {
        b.reply(call);
    }
    b.answer(&Call::register("device-0001"));
    let journal = b.dps.journal_after(0, 10);
    let refused: Vec<_> = journal
        .iter()
        .map(|entry| entry.refused.as_deref().map(|refused| (refused.method.as_str(), refused.path.as_str())))
        .collect();
    let path = misspelt.path.as_str();
    let expected = [Some(("PUT", path)), Some(("PUT", path)), Some(("PUT", "/nowhere")), Some(("PATCH", path)), None];
    assert_eq!(refused, expected);
    let reasons: Vec<&str> =
        journal.iter().filter_map(|entry| entry.refused.as_deref()).map(|refused| refused.reason.as_str()).collect();
    for (reason, word) in reasons.iter().zip([
        "unknown field `registrationid`",
        "no Authorization header",
        "no such resource",
        "not allowed",
    ]) {
        assert!(reason.contains(word), "{reason}");
    }
    let entry = serde_json::to_value(&journal[1]).unwrap();
    assert_eq!(entry["reason"], "no Authorization header");
    assert_eq!((entry["method"].as_str(), entry["path"].as_str()), (Some("PUT"), Some(path)));
    let accepted = serde_json::to_value(&journal[4]).unwrap();
    assert!(accepted.get("reason").is_none() && accepted.get("path").is_none(), "{accepted}");
}

#[test]
fn only_a_call_without_a_credential_is_told_that_it_has_none() {
    let mut b = bench(&config());
    let (status, body) = b.send(&Call { authorization: None, ..Call::register("device-0001") });
    assert_eq!((status, body["errorCode"].as_u64()), (401, Some(401_002)));
    assert!(body["message"].as_str().unwrap().contains("no Authorization header"), "{body}");
    let (_, body) = b.send(&Call { authorization: Some("nonsense".to_owned()), ..Call::register("device-0001") });
    assert_eq!(body["message"], "Unauthorized");
}

#[test]
fn a_payload_is_returned_with_an_assignment_as_custom_allocation_does() {
    let payload = json!({ "site": "7" });
    let group = GroupConfig { payload: Some(payload.clone()), ..GroupConfig::new("plant", G2) };
    let mut b = bench(&Config { groups: vec![group.clone()], ..config() });
    let (_, body) = b.send(&Call::register("device-0001"));
    let operation = operation(&body).to_owned();
    let (_, running) = b.send(&Call::poll("device-0001", &operation));
    assert!(running["registrationState"].get("payload").is_none(), "{running}");
    b.ms = 500;
    let (_, ended) = b.send(&Call::poll("device-0001", &operation));
    assert_eq!(ended["registrationState"]["payload"], payload);
    assert_eq!(b.send(&Call::lookup("device-0001")).1["payload"], payload);
    let wrong = Config { groups: vec![GroupConfig { payload: Some(json!("text")), ..group }], ..config() };
    assert!(Dps::new(&wrong).err().unwrap().to_string().contains("not an object"));
}
