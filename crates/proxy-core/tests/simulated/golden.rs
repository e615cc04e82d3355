//! The golden messages between us and DPS: what the emulator wrote is understood, and what we send is written down for it to judge.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;

use proxy_core::ids::{HubName, IdScope, OperationId};
use proxy_core::sas;
use proxy_core::upstream::answer;
use proxy_core::upstream::https::DpsClient;
use proxy_core::upstream::verdict::{Call, Verdict, judge};
use proxy_core::upstream::{Answer, Caller, LastLook, Said, Status, Upstream as _};
use rate_control::time::WallTime;
use serde_json::{Map, Value, json};

use crate::support::{group_key, seconds, settings};

const SCOPE: &str = "0ne000AB12C";
const ID: &str = "device-0001";
/// When the proofs end: two minutes after the emulator's golden messages begin.
const EXPIRES: i64 = 1_795_000_120;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/wire").join(format!("{name}.json"))
}

fn golden(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path(name)).unwrap()).unwrap()
}

/// The golden message as the client understands it.
fn understood(name: &str) -> Answer {
    let message = golden(name);
    let headers = message["headers"].as_object().unwrap();
    let header = |wanted: &str| {
        headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).and_then(|(_, value)| value.as_str())
    };
    let status = u16::try_from(message["status"].as_u64().unwrap()).unwrap();
    answer::read(status, header, message["body"].to_string().as_bytes()).unwrap()
}

#[test]
fn what_the_emulator_wrote_is_understood() {
    let registered = understood("emulator-register-202");
    let Verdict::Assigning { operation_id: Some(operation_id) } = judge(Call::Register, &registered) else { panic!() };
    assert_eq!(operation_id.as_str(), golden("emulator-register-202")["body"]["operationId"].as_str().unwrap());
    assert_eq!(registered.retry_after, Some(seconds(3)));
    assert!(matches!(
        judge(Call::Poll, &understood("emulator-poll-202")),
        Verdict::Assigning { operation_id: Some(_) }
    ));

    for (call, name) in [(Call::Poll, "emulator-poll-200-assigned"), (Call::Lookup, "emulator-lookup-200")] {
        let Verdict::Assigned(state) = judge(call, &understood(name)) else { panic!("{name}") };
        let message = golden(name);
        let body = message["body"].get("registrationState").unwrap_or(&message["body"]);
        let text = |member: &str| body[member].as_str().unwrap();
        assert_eq!(state.assigned_hub, Some(HubName::parse(text("assignedHub")).unwrap()), "{name}");
        assert_eq!(state.device_id.as_ref().map(|id| id.as_str()), Some(text("deviceId")), "{name}");
        assert_eq!(state.substatus.as_deref(), Some(text("substatus")), "{name}");
        assert_eq!(state.etag.as_deref(), Some(text("etag")), "{name}");
        assert_eq!(state.last_updated, WallTime::parse(text("lastUpdatedDateTimeUtc")), "{name}");
    }

    let failed = understood("emulator-poll-200-failed");
    let Said::Progress(progress) = &failed.said else { panic!("{failed:?}") };
    assert_eq!((progress.status, progress.state.error_code), (Status::Failed, Some(400_207)));
    let Verdict::Refused(words) = judge(Call::Poll, &failed) else { panic!("{failed:?}") };
    assert_eq!(words.code, "custom-allocation-failed");

    let throttled = understood("emulator-error-429");
    assert!(
        matches!(judge(Call::Register, &throttled), Verdict::Throttled { retry_after: Some(_), .. }),
        "{throttled:?}"
    );
    let Verdict::Refused(words) = judge(Call::Register, &understood("emulator-error-401")) else { panic!() };
    assert_eq!((words.code, words.error_code), ("unauthorized-by-dps", Some(401_002)));
    assert_eq!(words.tracking_id.as_deref(), golden("emulator-error-401")["body"]["trackingId"].as_str());
}

/// Answers one request with `{}` and gives it back as a golden message.
fn record(listener: &TcpListener) -> Value {
    let (stream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    let first = line();
    let (mut headers, mut length) = (Map::new(), 0);
    loop {
        let line = line();
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            // Of this machine and of this release.
            "host" | "user-agent" => {}
            name => drop(headers.insert(name.to_owned(), json!(value))),
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}").unwrap();
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap();
    json!({
        "provenance": "written by dps-proxy's DPS client",
        "method": method,
        "path": path,
        "query": query,
        "headers": headers,
        "body": serde_json::from_slice::<Value>(&body).unwrap_or(Value::Null),
    })
}

/// `UPDATE_FIXTURES=1` writes them anew.
#[tokio::test]
async fn what_we_send_is_what_is_written_down() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = settings(&[("a", 60)]);
    let mut instance = settings.instances.values().next().unwrap().clone();
    instance.id_scope = IdScope::parse(SCOPE).unwrap();
    instance.endpoint = format!("http://{}", listener.local_addr().unwrap());
    let client = DpsClient::new(&instance, &settings.registration).unwrap();
    let key = sas::derive_device_key(&group_key(), ID);
    let authorization =
        sas::device_token(&key, &format!("{SCOPE}%2Fregistrations%2F{ID}"), EXPIRES, Some("registration"));
    let expires = WallTime::from_unix_millis(EXPIRES * 1000);
    let caller = Caller { registration_id: ID.to_owned(), authorization, expires };
    let operation_id = golden("emulator-register-202")["body"]["operationId"].as_str().map(OperationId::parse);
    let operation_id = operation_id.unwrap().unwrap();

    let recording = tokio::task::spawn_blocking(move || [(); 4].map(|()| record(&listener)));
    let (payload, last_look) = (json!({ "model": "th-1" }), LastLook::new(|| Ok(())));
    drop(client.time().await);
    drop(client.register(&caller, Some(&payload), &last_look).await);
    drop(client.poll(&caller, &operation_id).await);
    drop(client.lookup(&caller, &last_look).await);
    for (name, message) in
        ["proxy-time", "proxy-register", "proxy-poll", "proxy-lookup"].iter().zip(recording.await.unwrap())
    {
        let text = format!("{}\n", serde_json::to_string_pretty(&message).unwrap());
        if std::env::var_os("UPDATE_FIXTURES").is_some() {
            std::fs::write(path(name), &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path(name)).unwrap_or_default(), text, "{name}");
        let credential = message["headers"].get("authorization");
        assert_eq!(credential.is_some(), *name != "proxy-time", "the question for the time carries no credential");
    }
}
