//! Clocks that differ: ours, DPS's and the devices'. DPS's clock is set here, which is the same as ours being wrong the other way round.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dps_emulator::{CallKind, Fault, FaultAction};
use dps_proxy_tests::device::{AUDIENCE, unix_seconds_in};
use dps_proxy_tests::gateway::Plane;
use dps_proxy_tests::{TestDevice, TestDps, TestGateway, eventually_some};
use reqwest::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const TWO_HOURS: i64 = 7_200;

/// Seconds by which the instance's clock is ahead of ours, as the metric says; `None` while there is none.
async fn offset(gateway: &TestGateway) -> Option<f64> {
    let metrics = gateway.operator_get("/metrics").await.ok().body;
    let line = metrics.lines().find(|line| line.starts_with("dps_proxy_instance_clock_offset_seconds{"))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

#[tokio::test]
async fn with_a_clock_two_hours_off_devices_with_right_ones_are_assigned_and_the_difference_is_told() {
    for ahead in [TWO_HOURS, -TWO_HOURS] {
        let dps = TestDps::start_with(|config| config.clock_offset_s = ahead).await;
        let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
        let told = eventually_some("the instance's clock is read before anybody asks", async || offset(&gateway).await);
        assert!((told.await - ahead as f64).abs() <= 2.0);
        let right = unix_seconds_in(Duration::ZERO) + ahead;
        for device in ["sn-1", "sn-2"].map(TestDevice::of_fleet) {
            let credential = device.credential(AUDIENCE, right + 3600);
            let reply = eventually_some("it is assigned", async || {
                let reply = gateway.ask(&device).authorization(credential.clone()).wait(5).send().await;
                assert!([200, 202].contains(&reply.status), "{}", reply.body);
                (reply.status == 200).then_some(reply)
            });
            assert_eq!(reply.await.json["assignedHub"], dps.hubs()[0]);
        }
        let stats = dps.emulator.stats();
        assert_eq!((stats.registers, stats.unauthorized), (2, 0), "one registration each, and no proof was refused");
        for entry in dps.emulator.journal().iter().filter(|entry| entry.call != CallKind::Other) {
            let left = entry.token_seconds_left.expect("every call is signed");
            assert!((60..=120).contains(&left), "two minutes by DPS's clock: {left} s of {:?}", entry.call);
        }

        // What a device without a clock is told fits what its credential is judged by.
        let time = gateway.send(gateway.request(Plane::Device, Method::GET, "/v1/time")).await.ok();
        assert!((time.json["unixSeconds"].as_i64().unwrap() - right).abs() < 60, "{}", time.body);
        let expired = TestDevice::of_fleet("sn-3").credential(AUDIENCE, right - 4000);
        let reply = gateway.ask(&TestDevice::of_fleet("sn-3")).authorization(expired).send().await;
        let server_time: jiff::Timestamp =
            reply.problem(401, "credential-expired").json["serverTime"].as_str().unwrap().parse().unwrap();
        assert!((server_time.as_second() - right).abs() < 60, "{server_time}");

        let off = |line: &serde_json::Value| line.to_string().contains("this machine's clock differs from DPS's");
        let line = gateway.logged("the clock's line", off).await;
        assert!((line["offset_seconds"].as_i64().unwrap() - ahead).abs() <= 2, "{line}");
        assert_eq!(gateway.logs().iter().filter(|line| off(line)).count(), 1, "one line per change of state");
    }
}

#[tokio::test]
async fn a_clock_of_dps_that_is_set_while_we_run_costs_no_device_its_place() {
    let dps = TestDps::start().await;
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    gateway.assigned(&TestDevice::of_fleet("sn-1")).await;
    dps.emulator.set_clock_offset_s(TWO_HOURS);
    let device = TestDevice::of_fleet("sn-2");
    let credential = device.credential(AUDIENCE, unix_seconds_in(Duration::ZERO) + TWO_HOURS + 3600);
    let reply = eventually_some("it is assigned", async || {
        let reply = gateway.ask(&device).authorization(credential.clone()).wait(5).send().await;
        assert!([200, 202].contains(&reply.status), "{}", reply.body);
        (reply.status == 200).then_some(reply)
    });
    reply.await;
    assert_eq!(dps.registers_of("sn-2"), 2, "the proof that had ended by DPS's clock, and a fresh one");
    let view = gateway.operator_get("/v1/registrations/sn-2").await.ok();
    assert!(view.body.contains("DPS's clock was set"), "{}", view.body);
}

/// Answers everything as a captive portal does, and keeps what it was asked. It ends with the runtime of its test.
async fn portal() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (url, asked) = (format!("http://{}", listener.local_addr().unwrap()), Arc::new(Mutex::new(Vec::new())));
    let heads = Arc::clone(&asked);
    drop(tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 16_384];
            let count = stream.read(&mut bytes).await.unwrap_or(0);
            heads.lock().unwrap().push(String::from_utf8_lossy(&bytes[..count]).into_owned());
            let answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nDate: Thu, 01 Jan 2099 00:00:00 GMT\r\nContent-Length: 15\r\nConnection: close\r\n\r\n<html>log in</h";
            let _gone = stream.write_all(answer).await;
        }
    }));
    (url, asked)
}

#[tokio::test]
async fn nothing_is_signed_before_somebody_who_speaks_for_dps_told_the_time() {
    let dps = TestDps::start().await;
    let (portal, asked) = portal().await;
    let mut gateway = TestGateway::builder()
        .instance("eu-1", &dps)
        .set("instances.eu-1.endpoint", &format!("{portal:?}"))
        .start()
        .await;
    let device = TestDevice::of_fleet("sn-1");
    assert_eq!(gateway.provision(&device).await.status, 202);
    eventually_some("it was asked for the time", async || (asked.lock().unwrap().len() > 2).then_some(())).await;
    let view = gateway.instance_view("eu-1").await;
    assert_eq!((&view["counts"]["registrations"], &view["clockOffsetSeconds"]), (&0.into(), &serde_json::Value::Null));
    let heads = asked.lock().unwrap().clone();
    assert!(heads.iter().all(|head| !head.to_lowercase().contains("authorization")), "{heads:?}");
    let endpoint = format!("{:?}", dps.emulator.url());
    gateway
        .reconfigure(|config| {
            config.set("instances.eu-1.endpoint", &endpoint);
        })
        .await;
    gateway.assigned(&device).await;
    assert_eq!((dps.registers(), offset(&gateway).await), (1, Some(0.0)), "the portal's date was not believed");
}

#[tokio::test]
async fn a_front_that_answers_the_question_for_the_time_in_dps_s_stead_keeps_no_device_waiting() {
    for code in [403, 200] {
        let dps = TestDps::start().await;
        dps.emulator.add_fault(Fault::new(FaultAction::WebPage { code }).on(CallKind::Other));
        let builder = TestGateway::builder().instance("eu-1", &dps).set("registration.backoff_min", "\"100ms\"");
        let gateway = builder.set("registration.backoff_max", "\"300ms\"").start().await;
        gateway.assigned(&TestDevice::of_fleet("sn-1")).await;
        let stats = dps.emulator.stats();
        assert_eq!((stats.registers, stats.unauthorized), (1, 0), "{code}");
        let told = |line: &serde_json::Value| {
            line["level"] == "WARN" && line.to_string().contains("answers the request for DPS's time in its place")
        };
        let line = gateway.logged("a loud line", told).await;
        assert_eq!((&line["instance"], &line["http_status"]), (&"eu-1".into(), &code.into()), "{line}");
        assert!(offset(&gateway).await.is_some(), "DPS's own answers are dated");
    }
}

#[tokio::test]
async fn a_throttled_question_for_the_time_is_a_wait_and_no_failure() {
    let dps = TestDps::start().await;
    let throttled = FaultAction::Status { code: 429, retry_after: Some(2), error_code: None, intermediary: true };
    dps.emulator.add_fault(Fault::new(throttled).on(CallKind::Other).times(1));
    let gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let device = TestDevice::of_fleet("sn-1");
    assert_eq!(gateway.provision(&device).await.status, 202);
    let throttled = |line: &serde_json::Value| line.to_string().contains("DPS throttled the request for its time");
    let line = gateway.logged("the wait", throttled).await;
    assert_eq!((&line["instance"], &line["wait_seconds"]), (&"eu-1".into(), &2.into()), "{line}");
    gateway.assigned(&device).await;
    let view = gateway.instance_view("eu-1").await;
    let blamed = &view["counts"]["blamed"];
    assert_eq!((&blamed["path"], &blamed["instance"], &view["breaker"]), (&0.into(), &0.into(), &"closed".into()));
    assert_eq!(dps.registers(), 1);
}
