//! What the service says about itself.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

use dps_emulator::{Fault, FaultAction};
use dps_proxy_tests::binary;
use dps_proxy_tests::device::FLEET_KEY;
use dps_proxy_tests::gateway::{BACKEND_TOKEN, OPERATOR_TOKEN, READ_TOKEN};
use dps_proxy_tests::{Plane, Recorder, TestDevice, TestDps, TestGateway, eventually};
use reqwest::header::AUTHORIZATION;
use serde_json::{Value, json};

const INDIVIDUAL_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

#[tokio::test]
async fn every_line_is_json_and_those_about_a_device_name_it_its_instance_and_the_request() {
    let dps = TestDps::start().await;
    let mut gateway = TestGateway::builder()
        .instance("eu-1", &dps)
        .set("log.filter", "\"info,proxy_core=debug,proxy_server=debug\"")
        .start()
        .await;
    let device = TestDevice::of_fleet("sn-1");
    gateway.assigned(&device).await;
    let request_id = gateway.provision(&device).await.ok().header("x-request-id").to_owned();
    gateway.logged("the request's line", |line| line.to_string().contains(&request_id)).await;
    gateway.terminate().await;
    for line in gateway.log_lines() {
        let json: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        assert!(json["timestamp"].is_string() && json["level"].is_string() && json["message"].is_string(), "{line}");
    }
    let logs = gateway.logs();
    let about = |member: &str| logs.iter().filter(|line| line[member] == "sn-1").collect::<Vec<_>>();
    assert!(about("registration_id").iter().any(|line| line["instance"] == "eu-1"), "{logs:?}");
    let answered = logs.iter().find(|line| line["request_id"] == request_id.as_str()).unwrap();
    assert_eq!(answered["plane"], "device");
}

/// What is to be found in the lines about one device, in order, once it is known: by whom, where, and DPS's names for it.
#[derive(Default)]
struct Known {
    instance: bool,
    operation: bool,
    tracking: bool,
}

impl Known {
    fn check(&mut self, line: &Value) {
        for (known, member) in [
            (&mut self.instance, "instance"),
            (&mut self.operation, "operation_id"),
            (&mut self.tracking, "tracking_id"),
        ] {
            assert!(!*known || line[member].is_string(), "no {member} any more: {line}");
            *known |= line[member].is_string();
        }
    }
}

#[tokio::test]
async fn every_line_about_a_registration_names_its_request_its_instance_and_dps_s_own_ids() {
    let dps = TestDps::start().await;
    let throttle = FaultAction::Status { code: 429, retry_after: Some(1), error_code: None, intermediary: false };
    dps.emulator.add_fault(Fault::new(throttle).for_device("sn-2").times(1));
    let builder = TestGateway::builder().instance("eu-1", &dps).set("log.filter", "\"trace\"");
    let mut gateway = builder.start().await;
    for id in ["sn-1", "sn-2", "sn-3"] {
        let device = TestDevice::of_fleet(id);
        let first = gateway.provision(&device).await.header("x-request-id").to_owned();
        gateway.assigned(&device).await;
        let again = gateway.operator_post(&format!("/v1/registrations/{id}/retry"), json!({})).await.ok();
        let requests = [first.as_str(), again.header("x-request-id")];
        let logs = gateway.logs();
        for line in logs.iter().filter(|line| requests.contains(&line["request_id"].as_str().unwrap_or_default())) {
            assert!(line["registration_id"] == id || line["registration_id"].is_null(), "{line}");
        }
        // The registration itself, wherever it runs.
        let own: Vec<_> = logs.iter().filter(|line| line["registration_id"] == id && line["plane"].is_null()).collect();
        let count = |member: &str, value: &str| own.iter().filter(|line| line[member] == value).count();
        let sent = if id == "sn-2" { 2 } else { 1 };
        assert_eq!((count("call", "Register"), count("message", "assigned")), (sent, 1), "{own:?}");
        let mut known = Known::default();
        for line in &own {
            assert_eq!(line["instance"], "eu-1", "{line}");
            // Who caused it stands in the record, so what the store says while that is read is the beginning of a new try.
            if line["request_id"].is_null() {
                assert_eq!(line["level"], "TRACE", "{line}");
                known = Known::default();
                continue;
            }
            assert_eq!(line["request_id"], json!(first), "{line}");
            // Another try has no operation yet.
            if line["message"].as_str().unwrap().contains("sent") {
                known = Known::default();
            }
            known.check(line);
        }
        assert!(known.operation && known.tracking, "{own:?}");
        let throttled = own.iter().find(|line| line["message"] == "DPS throttled the instance");
        assert_eq!(throttled.is_some(), id == "sn-2");
        assert!(throttled.is_none_or(|line| line["tracking_id"].is_string()), "{throttled:?}");
    }
    gateway.terminate().await;
    let logs = gateway.logs();
    for line in &logs {
        // Whatever mentions a device says so in the field that one looks for it by.
        let mentioned = ["sn-1", "sn-2", "sn-3"].into_iter().find(|id| line.to_string().contains(id));
        assert!(mentioned.is_none_or(|id| line["registration_id"] == id), "{line}");
    }
    for answered in logs.iter().filter(|line| line["message"] == "answered" && line["registration_id"].is_string()) {
        assert_eq!(answered["instance"], "eu-1", "{answered}");
    }
}

#[tokio::test]
async fn an_outage_is_one_line_when_it_begins_and_one_when_it_is_over() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder()
        .instance("eu-1", &dps)
        .set("registration.backoff_min", "\"50ms\"")
        .set("registration.backoff_max", "\"200ms\"");
    let gateway = builder.start().await;
    dps.emulator.add_fault(Fault::new(FaultAction::Reset));
    for number in 0..3 {
        gateway.provision(&TestDevice::of_fleet(&format!("sn-{number}"))).await;
    }
    let failing = "consecutiveFailures";
    eventually("calls have failed several times in a row", async || {
        let instances = gateway.operator_get("/v1/instances").await.ok().json;
        instances["instances"][0][failing].as_u64().unwrap() >= 5
    })
    .await;
    dps.emulator.clear_faults();
    gateway
        .logged("that calls go through again", |line| line["message"] == "calls to the instance go through again")
        .await;
    let warned: Vec<_> =
        gateway.logs().into_iter().filter(|line| line["level"] == "WARN" && line["instance"] == "eu-1").collect();
    assert_eq!(warned.len(), 1, "{warned:?}");
    let wait = warned[0]["wait_seconds"].to_string();
    assert!(wait.len() <= "0.123".len(), "{wait}");
}

#[tokio::test]
async fn the_first_line_names_version_configuration_instances_and_store() {
    let dps = TestDps::start().await;
    let builder = TestGateway::builder().instance("eu-1", &dps).instance("eu-2", &TestDps::start().await);
    let gateway = builder.start().await;
    let lines = gateway.logs();
    let first = &lines[0];
    assert_eq!((&first["message"], &first["version"]), (&json!("starting"), &json!("0.1.0")), "{first}");
    assert_eq!(first["configuration"], gateway.config_path().display().to_string());
    assert_eq!(first["instances"], json!(["eu-1", "eu-2"]));
    assert!(first["store"].as_str().unwrap().ends_with("/store"), "{first}");
}

#[tokio::test]
async fn the_filter_changes_with_the_file_and_lists_are_arrays() {
    let dps = TestDps::start().await;
    let mut gateway = TestGateway::builder().instance("eu-1", &dps).start().await;
    let device = TestDevice::of_fleet("sn-1");
    let silent = gateway.assigned(&device).await.header("x-request-id").to_owned();
    gateway
        .reconfigure(|config| {
            config.set("log.filter", "\"info,proxy_server=debug\"");
        })
        .await;
    let taken = gateway.logged("the change", |line| line["message"] == "configuration applied").await;
    assert_eq!(taken["restart_needed"], json!([]), "{taken}");
    let loud = gateway.provision(&device).await.ok().header("x-request-id").to_owned();
    gateway.logged("the answer", |line| line["message"] == "answered" && line["request_id"] == loud.as_str()).await;
    assert!(!gateway.logs().iter().any(|line| line["message"] == "answered" && line["request_id"] == silent.as_str()));
    gateway.edit_config(|config| {
        config.set("backend.lookup_ids_max", "\"wrong\"");
    });
    let refused = gateway.logged("the refusal", |line| line["level"] == "ERROR").await;
    assert!(refused["problems"][0].as_str().unwrap().contains("backend.lookup_ids_max"), "{refused}");
}

#[tokio::test]
async fn bytes_that_are_not_http_leave_no_line() {
    let mut gateway = TestGateway::builder().instance("eu-1", &TestDps::start().await).start().await;
    for _ in 0..20 {
        let mut stream = std::net::TcpStream::connect(gateway.address(Plane::Operator)).unwrap();
        stream.write_all(b"garbage\r\n\r\n").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    gateway.terminate().await;
    let told: Vec<_> = gateway.log_lines().into_iter().filter(|line| line.contains("parse error")).collect();
    assert_eq!(told, Vec::<String>::new());
}

#[tokio::test]
async fn no_secret_is_in_the_log_however_much_is_logged() {
    let dps = TestDps::start_with(|config| {
        config.tls = dps_emulator::Tls::Off;
        config.enrollments.push(dps_emulator::IndividualConfig::new("own-1", INDIVIDUAL_KEY));
    })
    .await;
    let recorder = Recorder::start(dps.emulator.addr()).await;
    let builder = TestGateway::builder()
        .instance("eu-1", &dps)
        .unset("instances.eu-1.extra_ca_file")
        .set("instances.eu-1.endpoint", &format!("\"{}\"", recorder.url()))
        .set("log.filter", "\"trace\"")
        .set("enrollments.fleet.credential", "\"derived-key\"")
        .set("enrollments.own.upstream", "\"individual\"")
        .set("enrollments.own.membership", "\"allow-list\"")
        .set("enrollments.own.audiences", "[\"own.test\"]")
        .set("enrollments.own.credential", "\"hub-sas\"");
    let mut gateway = builder.start().await;
    gateway
        .import_csv(format!("hardwareId,enrollment,key\nown-1,own,{INDIVIDUAL_KEY}\nown-2,own,{INDIVIDUAL_KEY}!\n"))
        .await
        .ok();
    let device = TestDevice::of_fleet("sn-1");
    let payload = json!({ "pairing": "payload-is-private" });
    gateway.ask(&device).with("payload", payload).wait(20).send().await.ok();
    let handed = gateway.assigned(&device).await.json["credential"]["key"].as_str().unwrap().to_owned();
    let own = gateway.assigned_by(&TestDevice::with_key(INDIVIDUAL_KEY, "own-1"), "own.test").await;
    let hub_token = own.json["credential"]["token"].as_str().unwrap().to_owned();
    gateway.ask(&device).authorization("Bearer a-wrong-bearer-token").send().await.problem(401, "unauthorized");
    gateway
        .ask(&device)
        .authorization("SharedAccessSignature sr=x&sig=bm90LWEtc2lnbmF0dXJl&se=1")
        .send()
        .await
        .problem(401, "unauthorized");
    gateway.edit_config(|config| {
        config.set("backend.lookup_ids_max", "\"wrong\"");
    });
    gateway
        .logged("the refusal", |line| {
            line["message"].as_str().is_some_and(|message| message.contains("configuration rejected"))
        })
        .await;
    gateway.terminate().await;

    let log = gateway.log_lines().join("\n");
    assert!(log.contains("sn-1") && log.len() > 10_000, "much was logged");
    let sent_signature = recorder.sent();
    let upstream = sent_signature.split("&sig=").nth(1).and_then(|rest| rest.split('&').next()).unwrap().to_owned();
    let secrets = [
        FLEET_KEY,
        INDIVIDUAL_KEY,
        BACKEND_TOKEN,
        OPERATOR_TOKEN,
        READ_TOKEN,
        &handed,
        &hub_token,
        &upstream,
        "a-wrong-bearer-token",
        "bm90LWEtc2lnbmF0dXJl",
        "sig=",
        "payload-is-private",
    ];
    for secret in secrets {
        let found = log.lines().find(|line| line.contains(secret));
        assert_eq!(found, None, "{secret:?} is in the log");
    }
}

#[tokio::test]
async fn the_service_outlives_whoever_reads_its_log() {
    let dps = TestDps::start().await;
    let site = TestGateway::builder().instance("eu-1", &dps).set("log.filter", "\"debug\"").prepare();
    let mut command = binary::command();
    command.arg("serve").arg("--config").arg(site.config_path());
    let mut service = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(service.stderr.take().unwrap());
    let ready = log.by_ref().lines().map_while(Result::ok).find(|line| line.contains("\"ready\"")).unwrap();
    drop(log);
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    let url = format!("http://{}/v1/provision", ready["device"].as_str().unwrap());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for number in 0..20 {
        let device = TestDevice::of_fleet(&format!("sn-{number}"));
        let request = client.post(&url).header(AUTHORIZATION, device.usual_credential());
        let answer = request.json(&json!({ "hardwareId": device.hardware_id })).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 202);
    }
    assert!(service.try_wait().unwrap().is_none(), "it ended");
    service.kill().unwrap();
    service.wait().unwrap();
}
