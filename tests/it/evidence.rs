//! What goes wrong between us and DPS, or in DPS's answers, and whom that is held against.

use std::time::{Duration, Instant};

use dps_emulator::{CallKind, Fault, FaultAction, GroupConfig, JournalEntry};
use dps_proxy_tests::relay::Relay;
use dps_proxy_tests::{GatewayBuilder, Reply, TestDevice, TestDps, TestGateway, eventually, eventually_some};
use serde_json::{Value, json};

fn rewrite(set: &[(&str, Value)], remove: &[&str]) -> Fault {
    Fault::new(FaultAction::Rewrite {
        set: set.iter().map(|(path, value)| ((*path).to_owned(), value.clone())).collect(),
        remove: remove.iter().map(|&path| path.to_owned()).collect(),
    })
}

async fn refused(gateway: &TestGateway, device: &TestDevice) -> Reply {
    let reply = eventually_some("the device is refused", async || {
        let reply = gateway.ask(device).wait(5).send().await;
        (reply.status != 202).then_some(reply)
    });
    reply.await.problem(422, "refused-by-dps")
}

async fn counts(gateway: &TestGateway) -> Value {
    gateway.instance_view("eu-1").await["counts"].clone()
}

fn warnings(gateway: &TestGateway) -> Vec<Value> {
    let about_an_instance = |line: &Value| line["level"] == "WARN" && line["instance"].is_string();
    gateway.logs().into_iter().filter(about_an_instance).collect()
}

#[tokio::test]
async fn a_web_page_in_place_of_every_answer_is_one_warning_and_is_held_against_no_device() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("registration.backoff_min", "\"100ms\"");
    let gateway = builder.set("registration.backoff_max", "\"300ms\"").start().await;
    dps.emulator.add_fault(Fault::new(FaultAction::WebPage { code: 200 }));
    let devices: Vec<TestDevice> = (0..10).map(|number| TestDevice::of_fleet(&format!("sn-{number}"))).collect();
    for device in &devices {
        assert_eq!(gateway.provision(device).await.status, 202);
    }
    eventually("a dozen trial requests were answered by somebody else", async || {
        counts(&gateway).await["blamed"]["path"].as_u64() > Some(20)
    })
    .await;
    let view = gateway.instance_view("eu-1").await;
    assert_ne!(view["breaker"], "closed");
    let told = warnings(&gateway);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["instance"], &told[0]["blame"]), (&json!("eu-1"), &json!("path")));
    assert!(
        told[0]["why"].as_str().is_some_and(|why| why.contains("web page") || why.contains("HTTP 200")),
        "{told:?}"
    );
    let metrics = gateway.operator_get("/metrics").await.body;
    let line = metrics.lines().find(|line| line.contains("calls_failed") && line.contains("blame=\"path\"")).unwrap();
    assert!(!line.ends_with(" 0"), "{line}");
    assert_eq!(gateway.provision(&devices[0]).await.status, 202, "nobody is refused");

    dps.emulator.clear_faults();
    for device in &devices {
        gateway.assigned(device).await;
    }
    assert_eq!(counts(&gateway).await["refused"], 0);
}

/// Behind a relay, with several idle connections to it, up to one for each of `devices`.
async fn with_idle_connections(devices: usize, request_timeout: &str) -> (TestDps, Relay, TestGateway) {
    let dps = TestDps::start().await;
    let relay = Relay::start(dps.emulator.addr()).await;
    let builder = TestGateway::builder().instance("eu-1", &dps);
    let builder = builder.set("instances.eu-1.endpoint", &format!("\"{}\"", relay.url()));
    let gateway = builder.set("registration.request_timeout", &format!("{request_timeout:?}")).start().await;
    // Held up together, they connect side by side.
    relay.hold_new(true);
    let devices: Vec<TestDevice> =
        (0..devices).map(|number| TestDevice::of_fleet(&format!("early-{number}"))).collect();
    for device in &devices {
        gateway.provision(device).await;
    }
    eventually("several connections are there", async || relay.accepted() >= devices.len() as u64 / 2).await;
    relay.hold_new(false);
    for device in &devices {
        gateway.assigned(device).await;
    }
    (dps, relay, gateway)
}

#[tokio::test]
async fn when_a_firewall_forgets_idle_connections_one_call_is_lost_and_nothing_is_blamed() {
    for resets in [false, true] {
        let (dps, relay, gateway) = with_idle_connections(8, "2s").await;
        if resets {
            dps.emulator.add_fault(Fault::new(FaultAction::Reset).on_reused_connections());
        } else {
            relay.forget();
        }
        // On a busy machine a call may have timed out while connections were held up.
        let (before, calm, warned) = (relay.accepted(), counts(&gateway).await, warnings(&gateway));
        gateway.assigned(&TestDevice::of_fleet("late")).await;
        let view = gateway.instance_view("eu-1").await;
        let lost = calm["lost"].as_u64().unwrap() + 1;
        assert_eq!(view["counts"]["lost"], lost, "resets: {resets}: the other idle connections are not tried");
        assert_eq!((&view["breaker"], &view["consecutiveFailures"]), (&json!("closed"), &json!(0)));
        assert_eq!(view["counts"]["blamed"], calm["blamed"]);
        assert!(relay.accepted() > before, "a new connection");
        assert_eq!(warnings(&gateway), warned);
    }
}

#[tokio::test]
async fn while_a_call_is_silent_on_an_old_connection_nobody_else_is_sent_into_one() {
    let (_dps, relay, gateway) = with_idle_connections(8, "30s").await;
    let (connections, calm) = (relay.accepted(), counts(&gateway).await);
    relay.forget();
    let (first, second) = (TestDevice::of_fleet("first"), TestDevice::of_fleet("second"));
    gateway.provision(&first).await;
    eventually("its call is out", async || {
        counts(&gateway).await["registrations"].as_u64() > calm["registrations"].as_u64()
    })
    .await;
    // Silence is what is waited for: two seconds of it are suspicious.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    gateway.assigned(&second).await;
    assert!(relay.accepted() > connections, "on a new connection");
    gateway.assigned(&first).await;
    assert_eq!(counts(&gateway).await["lost"].as_u64(), calm["lost"].as_u64().map(|lost| lost + 1));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn connections_forgotten_while_all_are_in_use_are_given_up_long_before_an_answer_is() {
    let (dps, relay, gateway) = with_idle_connections(16, "30s").await;
    let (connections, calm, warned) = (relay.accepted(), counts(&gateway).await, warnings(&gateway));
    relay.forget();
    let began = Instant::now();
    let devices: Vec<TestDevice> = (0..16).map(|number| TestDevice::of_fleet(&format!("late-{number}"))).collect();
    for device in &devices {
        gateway.provision(device).await;
    }
    eventually("a call on a new connection", async || relay.accepted() > connections).await;
    let first_fresh = began.elapsed();
    for device in &devices {
        gateway.assigned(device).await;
    }
    let all_done = began.elapsed();
    let view = gateway.instance_view("eu-1").await;
    let lost = view["counts"]["lost"].as_u64().unwrap() - calm["lost"].as_u64().unwrap();
    println!(
        "{connections} connections forgotten: {lost} calls lost, the first new connection after {first_fresh:?}, all done after {all_done:?}"
    );
    // That needs an answer within its time limit, which is longer than all of this.
    assert!(all_done < Duration::from_secs(30), "{all_done:?}");
    assert!((1..=connections).contains(&lost), "{lost} of {connections}: each at most once");
    assert_eq!((&view["breaker"], &view["consecutiveFailures"]), (&json!("closed"), &json!(0)));
    assert_eq!((&view["counts"]["blamed"], warnings(&gateway)), (&calm["blamed"], warned));
    assert_eq!(view["counts"]["repeated"], lost, "what was lost is registered again, after it was looked up");
    drop(dps);
}

/// How long the kernel keeps each connection of the service to `peer` on which nothing is acknowledged. `None` where this machine shows the
/// descriptors of other processes to nobody.
#[cfg(target_os = "linux")]
fn user_timeouts(gateway: &TestGateway, peer: std::net::SocketAddr) -> Option<Vec<Option<Duration>>> {
    use rustix::io::Errno;
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let pid = i32::try_from(gateway.pid().unwrap()).unwrap();
    let process = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    let mut timeouts = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let number = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
        let descriptor = match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(Errno::PERM | Errno::NOSYS) => return None,
            // It was closed meanwhile.
            Err(_) => continue,
        };
        let socket = socket2::SockRef::from(&descriptor);
        if socket.peer_addr().is_ok_and(|address| address.as_socket() == Some(peer)) {
            timeouts.push(socket.tcp_user_timeout().unwrap());
        }
    }
    Some(timeouts)
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_kernel_gives_up_connections_to_dps_within_the_longest_delay() {
    for (longest_delay, kept) in [("2s", 2), ("3s", 3), ("30s", 5)] {
        let dps = TestDps::start().await;
        let builder = TestGateway::builder().instance("eu-1", &dps).set("registration.connect_timeout", "\"1s\"");
        let delay = format!("{longest_delay:?}");
        let gateway = builder.set("registration.upstream_max_delay", &delay).start().await;
        gateway.assigned(&TestDevice::of_fleet("sn-1")).await;
        let Some(timeouts) = user_timeouts(&gateway, dps.emulator.addr()) else {
            return println!("skipped: needs a machine that shows the descriptors of a child process");
        };
        assert!(!timeouts.is_empty(), "the connection is kept");
        assert!(timeouts.iter().all(|timeout| *timeout == Some(Duration::from_secs(kept))), "{delay}: {timeouts:?}");
    }
}

#[tokio::test]
async fn a_limit_lowered_while_a_call_connects_holds_for_that_call() {
    let dps = TestDps::start().await;
    let relay = Relay::start(dps.emulator.addr()).await;
    let builder = TestGateway::builder().instance("eu-1", &dps);
    let builder = builder.set("instances.eu-1.endpoint", &format!("\"{}\"", relay.url()));
    let mut gateway = builder.set("registration.idle_connections_max", "0").start().await;
    gateway.assigned(&TestDevice::of_fleet("first")).await;
    relay.hold_new(true);
    let before = relay.accepted();
    assert_eq!(gateway.provision(&TestDevice::of_fleet("second")).await.status, 202);
    eventually("the call of the second device connects", async || relay.accepted() > before).await;
    gateway
        .reconfigure(|config| {
            config.set("instances.eu-1.quota_per_minute", "1").set("instances.eu-1.burst", "1");
        })
        .await;
    relay.hold_new(false);
    eventually("the call is held back", async || {
        let seen = gateway.operator_get("/v1/registrations/second").await.ok().body;
        seen.contains("the limit was lowered before the call was sent")
    })
    .await;
    assert_eq!(dps.registers(), 1);
    assert_eq!(counts(&gateway).await["registrations"], 1);
}

#[tokio::test]
async fn a_dps_that_leaves_out_what_is_optional_assigns_its_devices() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let lookup_unknown = FaultAction::Status { code: 404, retry_after: None, error_code: None, intermediary: true };
    dps.emulator.add_fault(Fault::new(lookup_unknown).on(CallKind::Lookup));
    dps.emulator.add_fault(Fault::new(FaultAction::LoseReply).on(CallKind::Register).nth(2));
    dps.emulator.add_fault(rewrite(&[], &["status", "registrationState"]).on(CallKind::Register));
    let left_out = ["status", "registrationState.substatus", "registrationState.etag", "registrationState.deviceId"];
    let dotted = ("registrationState.assignedHub", json!("Hub-Of.Example."));
    dps.emulator.add_fault(rewrite(&[dotted], &left_out).on(CallKind::Poll));
    for device in ["sn-1", "sn-2"] {
        let assigned = gateway.assigned(&TestDevice::of_fleet(device)).await.json;
        assert_eq!((&assigned["assignedHub"], &assigned["deviceId"]), (&json!("hub-of.example"), &json!(device)));
    }
    assert_eq!((dps.registers_of("sn-2"), counts(&gateway).await["lookups"].as_u64()), (2, Some(1)));
    assert_eq!(gateway.instance_view("eu-1").await["consecutiveFailures"], 0);
}

#[tokio::test]
async fn what_dps_says_is_bounded_before_it_is_kept_or_handed_on() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let long = json!("x".repeat(30_000));
    let state = ["substatus", "etag", "errorMessage"].map(|member| format!("registrationState.{member}"));
    let set: Vec<(&str, Value)> = state.iter().map(|path| (path.as_str(), long.clone())).collect();
    let polls = dps.emulator.add_fault(rewrite(&set, &[]).on(CallKind::Poll));
    let told = gateway.assigned(&TestDevice::of_fleet("sn-1")).await;
    assert!(told.body.len() <= 512, "{} bytes", told.body.len());

    dps.emulator.remove_fault(polls);
    dps.emulator.put_group(&GroupConfig::new("fleet", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")).unwrap();
    dps.emulator.add_fault(rewrite(&[("trackingId", long.clone()), ("message", long)], &[]));
    let told = refused(&gateway, &TestDevice::of_fleet("sn-2")).await;
    assert!(told.json["upstream"]["trackingId"].as_str().is_some_and(|id| (1..=128).contains(&id.len())));
    for device in ["sn-1", "sn-2"] {
        let seen = gateway.operator_get(&format!("/v1/registrations/{device}")).await.ok().body;
        assert!(seen.len() < 4096, "{device}: {} bytes", seen.len());
    }
}

#[tokio::test]
async fn a_group_device_that_dps_names_differently_is_not_handed_its_hub() {
    for (path, other) in [("registrationState.deviceId", "sn-2"), ("registrationState.registrationId", "sn-2")] {
        let dps = TestDps::start().await;
        let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
        let fault = dps.emulator.add_fault(rewrite(&[(path, json!(other))], &[]).on(CallKind::Poll));
        let told = refused(&gateway, &TestDevice::of_fleet("sn-1")).await;
        assert_eq!(told.json["upstream"]["reason"], "unexpected-device-id", "{}", told.body);
        assert!(told.json["upstream"]["trackingId"].is_string(), "{}", told.body);
        gateway.backend_get("/v1/devices/sn-2/assignment").await.problem(404, "never-seen");
        let line = gateway.logged("why", |line| line["level"] == "ERROR" && line["registration_id"] == "sn-1").await;
        assert!(line["detail"].as_str().is_some_and(|detail| detail.contains("sn-2")), "{line}");
        dps.emulator.remove_fault(fault);
        // The real one is not in its way.
        gateway.assigned(&TestDevice::of_fleet("sn-2")).await;
        // Nor is another spelling of its own name.
        dps.emulator.add_fault(rewrite(&[("registrationState.deviceId", json!("SN-3"))], &[]).on(CallKind::Poll));
        assert_eq!(gateway.assigned(&TestDevice::of_fleet("sn-3")).await.json["deviceId"], "SN-3");
    }
}

#[tokio::test]
async fn an_operation_id_never_shortens_a_path() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    for (number, odd) in ["..", ".", "../../register", "%2e%2e"].into_iter().enumerate() {
        dps.emulator.clear_faults();
        dps.emulator.add_fault(rewrite(&[("operationId", json!(odd))], &[]).on(CallKind::Register).times(1));
        gateway.assigned(&TestDevice::of_fleet(&format!("sn-{number}"))).await;
    }
    let is_time = |entry: &JournalEntry| {
        entry.refused.as_ref().is_some_and(|refused| refused.path.ends_with("/registrations/-/operations/-"))
    };
    let journal = dps.emulator.journal();
    let others: Vec<_> = journal.iter().filter(|entry| entry.call == CallKind::Other && !is_time(entry)).collect();
    assert!(others.is_empty(), "every call is one of the three, or asks for the time: {others:?}");
}

#[tokio::test]
async fn a_refusal_of_ours_about_an_answer_names_it_as_dps_did() {
    let dps = TestDps::start().await;
    let builder: GatewayBuilder = TestGateway::builder().instance("eu-1", &dps);
    let gateway = builder.set("instances.eu-1.hubs", &format!("[\"{}\"]", dps.hubs()[0])).start().await;
    dps.emulator.add_fault(Fault::new(FaultAction::WrongHub { host: "hub-of-a-stranger.example".to_owned() }));
    let told = refused(&gateway, &TestDevice::of_fleet("sn-1")).await;
    assert_eq!(told.json["upstream"]["reason"], "unexpected-hub", "{}", told.body);
    assert!(told.json["upstream"]["trackingId"].as_str().is_some_and(|id| id.len() == 36), "{}", told.body);
}

#[tokio::test]
async fn a_device_that_alone_gets_no_result_is_told_what_dps_called_that() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).set("registration.attempts_max", "2");
    let builder = builder.set("registration.backoff_min", "\"10ms\"").set("registration.backoff_max", "\"100ms\"");
    let gateway = builder.start().await;
    let fails = FaultAction::Status { code: 500, retry_after: None, error_code: Some(500_001), intermediary: false };
    dps.emulator.add_fault(Fault::new(fails).on(CallKind::Register).for_device("sn-x"));
    let alone = TestDevice::of_fleet("sn-x");
    gateway.provision(&alone).await;
    let mut number = 0;
    let told = eventually_some("the device is refused", async || {
        // Others get results all the while.
        gateway.assigned(&TestDevice::of_fleet(&format!("sn-{number}"))).await;
        number += 1;
        let reply = gateway.provision(&alone).await;
        (reply.status == 422).then_some(reply)
    })
    .await;
    assert_eq!(
        (&told.json["upstream"]["reason"], &told.json["upstream"]["errorCode"]),
        (&json!("no-result"), &json!(500_001)),
        "{}",
        told.body
    );
    assert!(told.json["upstream"]["trackingId"].is_string(), "{}", told.body);
}

#[tokio::test]
async fn an_instance_that_heals_is_tried_within_ten_seconds_by_default() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).prepare();
    let shown = gateway.config().text();
    assert!(!shown.contains("backoff_max"), "the default is tested");
    let mut gateway = gateway;
    gateway.start_again().await;
    let fails = FaultAction::Status { code: 500, retry_after: None, error_code: Some(500_001), intermediary: false };
    dps.emulator.add_fault(Fault::new(fails));
    gateway.provision(&TestDevice::of_fleet("sn-1")).await;
    // Enough failures for waits of a minute, if they went on doubling.
    eventually("the circuit is open, and its waits have stopped growing", async || {
        gateway.instance_view("eu-1").await["consecutiveFailures"].as_u64() >= Some(5)
    })
    .await;
    let view = gateway.instance_view("eu-1").await;
    let until: Option<jiff::Timestamp> = view["pausedUntil"].as_str().and_then(|text| text.parse().ok());
    let wait = until.map(|until| until.duration_since(jiff::Timestamp::now()));
    assert!(wait.is_none_or(|wait| wait.as_secs() <= Duration::from_secs(10).as_secs() as i64), "{view}");
    dps.emulator.clear_faults();
    gateway.assigned(&TestDevice::of_fleet("sn-1")).await;
}
