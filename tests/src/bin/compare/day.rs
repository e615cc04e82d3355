//! One day of the service: first joins, repeats, refusals, operators, a line, a crash, backends.

use std::time::Duration;

use dps_emulator::{CallKind, Fault, FaultAction, IndividualConfig, Tls};
use dps_proxy_tests::gateway::READ_TOKEN;
use dps_proxy_tests::{Plane, Recorder, Reply, TestDevice, TestDps, TestGateway, eventually, sse};
use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::transcript::{Transcript, mask};

const OWN_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
/// The audience of the enrollment whose devices wait for the slow instance.
const DEPOT: &str = "depot.test";
/// The audience of devices with keys of their own.
const OWN: &str = "own.test";

struct Day {
    gateway: TestGateway,
    instances: Vec<(&'static str, TestDps, Recorder)>,
    transcript: Transcript,
}

/// Lives it and tells what was seen.
pub(crate) async fn live() -> Value {
    let mut day = Day::begin().await;
    let mut changes = day.gateway.changes(None).await;
    day.strangers().await;
    day.first_joins().await;
    day.refusals().await;
    day.operators().await;
    day.imports().await;
    let seen = day.line().await;
    let last = day.changes("changes before the crash", &mut changes).await;
    day.crash(seen).await;
    day.reloads().await;
    day.backends().await;
    let mut changes = day.gateway.changes(Some(&last)).await;
    day.changes("changes since then", &mut changes).await;
    day.views().await;
    day.evening().await
}

/// An emulated instance behind a recorder.
async fn instance(name: &'static str) -> (&'static str, TestDps, Recorder) {
    let dps = TestDps::start_with(|config| {
        config.tls = Tls::Off;
        config.enrollments.push(IndividualConfig::new("own-1", OWN_KEY));
    })
    .await;
    let recorder = Recorder::start(dps.emulator.addr()).await;
    (name, dps, recorder)
}

impl Day {
    async fn begin() -> Self {
        let instances = vec![instance("eu-1").await, instance("eu-2").await, instance("slow").await];
        let mut builder = TestGateway::builder()
            .set("registration.suspect_cooldown", "\"1s\"")
            .set("enrollments.fleet.instances", r#"["eu-1", "eu-2"]"#)
            .set("enrollments.depot.group_key_file", "\"fleet.key\"")
            .set("enrollments.depot.audiences", &format!("[{DEPOT:?}]"))
            .set("enrollments.depot.instances", r#"["slow"]"#)
            .set("enrollments.own.upstream", "\"individual\"")
            .set("enrollments.own.membership", "\"allow-list\"")
            .set("enrollments.own.audiences", &format!("[{OWN:?}]"))
            .set("enrollments.own.instances", r#"["eu-1"]"#);
        for (name, dps, recorder) in &instances {
            builder = builder
                .instance(name, dps)
                .unset(&format!("instances.{name}.extra_ca_file"))
                .set(&format!("instances.{name}.endpoint"), &format!("{:?}", recorder.url()));
        }
        let builder = builder.set("instances.slow.quota_per_minute", "1");
        Self { gateway: builder.start().await, instances, transcript: Transcript::default() }
    }

    fn dps(&self, name: &str) -> &TestDps {
        self.instances
            .iter()
            .find(|(known, ..)| *known == name)
            .map(|(_, dps, _)| dps)
            .expect("an instance of that name")
    }

    fn fault(&self, fault: &Fault) {
        for (_, dps, _) in &self.instances {
            dps.emulator.add_fault(fault.clone());
        }
    }

    async fn send(&mut self, name: &str, request: RequestBuilder) -> Reply {
        let reply = self.gateway.send(request).await;
        self.transcript.answer(name, &reply);
        reply
    }

    async fn backend(&mut self, method: Method, path: &str) -> Reply {
        let name = format!("backend: {method} {path}");
        let request = self.gateway.backend(method, path);
        self.send(&name, request).await
    }

    async fn operator(&mut self, method: Method, path: &str, body: &Value) -> Reply {
        let name = format!("operator: {method} {path} {body}");
        let request = self.gateway.operator(method, path);
        let request = if body.is_null() { request } else { request.json(body) };
        self.send(&name, request).await
    }

    /// The device asks once. Whether its call has left by then is a race.
    async fn joins(&mut self, name: &str, device: &TestDevice) {
        let mut reply = self.gateway.provision(device).await;
        assert_eq!(reply.status, 202, "{name}: {}", reply.body);
        reply.json["position"] = json!("either");
        self.transcript.answer(name, &reply);
    }

    async fn asks(&mut self, name: &str, device: &TestDevice) -> Reply {
        let reply = self.gateway.provision(device).await;
        self.transcript.answer(name, &reply);
        reply
    }

    /// Each asks until it is told something else than to wait; all at once.
    async fn settle(&mut self, devices: &[TestDevice]) {
        let gateway = &self.gateway;
        let settled = join_all(devices.iter().map(|device| async move {
            loop {
                let reply = gateway.ask(device).wait(20).send().await;
                if reply.status != 202 {
                    return (device.registration_id(), reply);
                }
            }
        }));
        for (id, reply) in settled.await {
            self.transcript.answer(&format!("device: {id} comes back"), &reply);
        }
    }

    /// Requests that nobody gets anything by.
    async fn strangers(&mut self) {
        let device = TestDevice::of_fleet("sn-1");
        let stranger = TestDevice::of_group(OWN_KEY, "sn-1");
        let cases = [
            ("no credential", self.gateway.ask(&device).anonymous()),
            ("a wrong key", self.gateway.ask(&stranger)),
            ("an old token", self.gateway.ask(&device).authorization(device.credential("gateway.test", 1_000_000_000))),
            ("another audience", self.gateway.ask(&device).authorization(device.credential("x.test", 1_900_000_000))),
            ("an ID that is none", self.gateway.ask(&device).with("hardwareId", json!("no ID"))),
            ("a payload that is no object", self.gateway.ask(&device).with("payload", json!(1))),
            ("an unknown member", self.gateway.ask(&device).with("surprise", json!(true))),
        ];
        for (name, ask) in cases {
            let reply = ask.send().await;
            self.transcript.answer(&format!("device: {name}"), &reply);
        }
        let post = |path| self.gateway.request(Plane::Device, Method::POST, path);
        let requests = [
            ("no JSON", post("/v1/provision").header("Content-Type", "application/json").body("{")),
            ("no JSON type", post("/v1/provision").header("Content-Type", "text/plain").body("{}")),
            ("too large", post("/v1/provision").header("Content-Type", "application/json").body("x".repeat(100_000))),
            ("another path", post("/v1/nothing")),
            ("another method", self.gateway.request(Plane::Device, Method::DELETE, "/v1/provision")),
            ("the time", self.gateway.request(Plane::Device, Method::GET, "/v1/time")),
            ("no backend", self.gateway.request(Plane::Backend, Method::GET, "/v1/devices/sn-1/assignment")),
            ("no operator", self.gateway.request(Plane::Operator, Method::GET, "/v1/instances")),
            ("alive", self.gateway.request(Plane::Operator, Method::GET, "/healthz")),
            ("ready", self.gateway.request(Plane::Operator, Method::GET, "/readyz")),
        ];
        for (name, request) in requests {
            self.send(&format!("stranger: {name}"), request).await;
        }
        let reader = self.gateway.request(Plane::Operator, Method::POST, "/v1/config/reload").bearer_auth(READ_TOKEN);
        self.send("operator: a reader that acts", reader).await;
    }

    async fn first_joins(&mut self) {
        let devices = ["sn-1", "SN-2", "sn-3", "sn-4", "lost-1"].map(TestDevice::of_fleet);
        self.fault(&Fault::new(FaultAction::LoseReply).on(CallKind::Register).for_device("lost-1").times(1));
        for device in &devices {
            self.joins(&format!("device: {} joins", device.hardware_id), device).await;
        }
        self.settle(&devices).await;
        for device in &devices {
            self.asks(&format!("device: {} repeats", device.hardware_id), device).await;
        }
        let again = self.gateway.ask(&devices[0]).with("reprovision", json!(true)).send().await;
        self.transcript.answer("device: sn-1 wants to be registered anew, too early", &again);
        let with_payload = TestDevice::of_fleet("sn-5");
        let asked = self.gateway.ask(&with_payload).with("payload", json!({ "model": "th-1" })).wait(20).send().await;
        self.transcript.answer("device: sn-5 waits on the open request", &asked);
    }

    async fn refusals(&mut self) {
        let refuse =
            |code, error_code| FaultAction::Status { code, retry_after: None, error_code, intermediary: false };
        let fail = FaultAction::Fail { error_code: 400_207, message: "the webhook failed".to_owned() };
        for (device, action) in [
            ("refused-401", refuse(401, Some(401_002))),
            ("refused-404", refuse(404, Some(404_201))),
            ("refused-400", refuse(400, Some(400_001))),
            ("failed", fail),
            ("disabled", FaultAction::Disabled),
        ] {
            self.fault(&Fault::new(action).on(CallKind::Register).for_device(device));
        }
        let devices = ["refused-401", "refused-404", "refused-400", "failed", "disabled"].map(TestDevice::of_fleet);
        for device in &devices {
            self.joins(&format!("device: {} joins", device.hardware_id), device).await;
        }
        self.settle(&devices).await;
        for (_, dps, _) in &self.instances {
            dps.emulator.clear_faults();
        }
        self.asks("device: refused-404 is refused still", &devices[1]).await;
        self.operator(Method::POST, "/v1/registrations/refused-404/retry", &Value::Null).await;
        let assigned = self.gateway.assigned(&devices[1]).await;
        self.transcript.answer("device: refused-404 is assigned in the end", &assigned);
    }

    async fn operators(&mut self) {
        let (first, second) = (TestDevice::of_fleet("sn-1"), TestDevice::of_fleet("SN-2"));
        let post = Method::POST;
        self.operator(post.clone(), "/v1/registrations/sn-1/block", &json!({ "reason": "stolen" })).await;
        self.asks("device: sn-1 is blocked", &first).await;
        self.operator(post.clone(), "/v1/registrations/sn-1/unblock", &Value::Null).await;
        self.asks("device: sn-1 is let in", &first).await;
        self.operator(post.clone(), "/v1/registrations/never-came/block", &Value::Null).await;
        self.operator(post.clone(), "/v1/registrations/never-came/unblock", &Value::Null).await;
        self.operator(post.clone(), "/v1/registrations/sn-2/move", &json!({ "instance": "nowhere" })).await;
        let at = self.gateway.operator_get("/v1/registrations/sn-2").await.ok().json;
        let elsewhere = if at.to_string().contains("\"eu-1\"") { "eu-2" } else { "eu-1" };
        self.operator(post.clone(), "/v1/registrations/sn-2/move", &json!({ "instance": elsewhere })).await;
        eventually("it is assigned there", async || {
            self.gateway.backend_get("/v1/devices/sn-2/assignment").await.json["instance"] == elsewhere
        })
        .await;
        let moved = self.gateway.assigned(&second).await;
        self.transcript.answer("device: sn-2 is moved", &moved);
        self.operator(post.clone(), "/v1/registrations/sn-1/expedite", &Value::Null).await;
        self.operator(post, "/v1/registrations/nobody/retry", &Value::Null).await;
        self.operator(Method::GET, "/v1/registrations/nobody", &Value::Null).await;
    }

    async fn imports(&mut self) {
        let import = |gateway: &TestGateway, kind: &str, body: String| {
            gateway.operator(Method::POST, "/v1/registrations/import").header("Content-Type", kind).body(body)
        };
        let csv =
            format!("hardwareId,enrollment,key\nown-1,own,{OWN_KEY}\nown-2,own,no key\nlisted-1,fleet,\nx y,fleet,\n");
        let json_lines = "{\"hardwareId\":\"listed-2\",\"enrollment\":\"fleet\"}\n{\"hardwareId\":\"listed-1\",\"enrollment\":\"fleet\"}\n";
        for (name, kind, body) in [
            ("rows", "text/csv", csv),
            ("another header", "text/csv", "name\nx\n".to_owned()),
            ("JSON lines", "application/x-ndjson", json_lines.to_owned()),
            ("another type", "application/pdf", String::new()),
        ] {
            let request = import(&self.gateway, kind, body);
            self.send(&format!("operator: import of {name}"), request).await;
        }
        let own = self.gateway.assigned_by(&TestDevice::with_key(OWN_KEY, "own-1"), OWN).await;
        self.transcript.answer("device: own-1 is assigned", &own);
    }

    async fn depot_asks(&mut self, name: &str, number: usize) {
        let device = TestDevice::of_fleet(&format!("depot-{number}"));
        let credential = device.credential(DEPOT, dps_proxy_tests::device::unix_seconds_in(Duration::from_hours(1)));
        let reply = self.gateway.ask(&device).authorization(credential).send().await;
        self.transcript.answer(&format!("device: depot-{number} {name}"), &reply);
    }

    /// Devices that wait for most of an hour. Returns how many calls the slow instance has had.
    async fn line(&mut self) -> u64 {
        let first = self.gateway.assigned_by(&TestDevice::of_fleet("depot-1"), DEPOT).await;
        self.transcript.answer("device: depot-1 is assigned", &first);
        for number in 2..=5 {
            self.depot_asks("joins the line", number).await;
        }
        self.operator(Method::POST, "/v1/registrations/depot-5/expedite", &Value::Null).await;
        self.operator(Method::DELETE, "/v1/registrations/depot-3", &Value::Null).await;
        for number in 2..=5 {
            self.depot_asks("asks again", number).await;
        }
        self.operator(Method::GET, "/v1/registrations/depot-4", &Value::Null).await;
        self.dps("slow").registers()
    }

    async fn crash(&mut self, registers: u64) {
        self.gateway.kill9();
        self.gateway.start_again().await;
        for number in 2..=5 {
            self.depot_asks("asks after the crash", number).await;
        }
        for device in ["sn-1", "SN-2", "refused-401"].map(TestDevice::of_fleet) {
            self.asks(&format!("device: {} asks after the crash", device.hardware_id), &device).await;
        }
        assert_eq!(self.dps("slow").registers(), registers, "the minute is used up");
    }

    async fn reloads(&mut self) {
        for (name, quota) in [("operator: a sound change", "999"), ("operator: a change that is none", "0")] {
            self.gateway.edit_config(|config| {
                config.set("instances.eu-1.quota_per_minute", quota);
            });
            let reload = self.gateway.operator(Method::POST, "/v1/config/reload");
            self.send(name, reload).await;
        }
        self.gateway
            .reconfigure(|config| {
                config.set("instances.eu-1.quota_per_minute", "1000");
            })
            .await;
    }

    async fn backends(&mut self) {
        let known = self.backend(Method::GET, "/v1/devices/sn-1/assignment").await;
        let tag = known.header("etag").to_owned();
        let again = self.gateway.backend(Method::GET, "/v1/devices/sn-1/assignment").header("If-None-Match", tag);
        self.send("backend: what is known already", again).await;
        for id in ["nobody", "SN-1", "depot-4", "refused-401", "depot-3", "listed-1"] {
            self.backend(Method::GET, &format!("/v1/devices/{id}/assignment")).await;
        }
        let all = ["sn-1", "nobody", "sn-2", "SN-1", "depot-4", "refused-401"];
        for (name, ids) in
            [("some", json!(all)), ("too many", json!(vec!["x"; 1001])), ("none that are IDs", json!([1]))]
        {
            let lookup =
                self.gateway.backend(Method::POST, "/v1/assignments/lookup").json(&json!({ "deviceIds": ids }));
            self.send(&format!("backend: looks up {name}"), lookup).await;
        }
        let reason = json!({ "reason": "hub-404001" });
        for path in ["/v1/devices/sn-4/assignment/invalidate", "/v1/hubs/hub-none.azure-devices.net/invalidate"] {
            let request = self.gateway.backend(Method::POST, path).json(&reason);
            self.send(&format!("backend: {path}"), request).await;
        }
        let anew = self.gateway.assigned(&TestDevice::of_fleet("sn-4")).await;
        self.transcript.answer("device: sn-4 is assigned anew", &anew);
        eventually("the backend hears of it", async || {
            let told = self.gateway.backend_get("/v1/devices/sn-4/assignment").await;
            told.json["state"] == "confirmed"
        })
        .await;
        self.backend(Method::GET, "/v1/devices/sn-4/assignment").await;
        let page = self.backend(Method::GET, "/v1/assignments?limit=3").await;
        let next = page.json["next"].as_str().unwrap_or_default().to_owned();
        let further = self.gateway.backend(Method::GET, &format!("/v1/assignments?limit=100&after={next}"));
        self.send("backend: the next page", further).await;
        self.backend(Method::GET, "/v1/assignments?limit=many").await;
    }

    /// What has changed, by device; each device's changes in their order. Returns the ID of the last one.
    async fn changes(&mut self, name: &str, stream: &mut sse::Events) -> String {
        let (mut events, mut last) = (Vec::new(), String::new());
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(700), stream.next()).await {
            last = event.id;
            if !event.kind.is_empty() {
                events.push(json!({ "kind": event.kind, "data": mask(&event.data) }));
            }
        }
        events.sort_by_key(|event| event["data"]["registrationId"].as_str().unwrap_or_default().to_owned());
        self.transcript.note(name, json!(events));
        last
    }

    async fn views(&mut self) {
        for path in [
            "/v1/registrations?limit=1000",
            "/v1/registrations?state=waiting",
            "/v1/registrations?state=nothing",
            "/v1/registrations/sn-1",
            "/v1/registrations/sn-2",
            "/v1/registrations/sn-4",
            "/v1/registrations/lost-1",
            "/v1/registrations/refused-401",
            "/v1/registrations/refused-404",
            "/v1/registrations/depot-3",
            "/v1/registrations/depot-5",
            "/v1/registrations/own-1",
            "/v1/instances",
            "/v1/refusals",
        ] {
            self.operator(Method::GET, path, &Value::Null).await;
        }
        let metrics = self.gateway.operator_get("/metrics").await.ok().body;
        let names: Vec<&str> = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        self.transcript.note("operator: the metrics", json!(names));
    }

    async fn evening(mut self) -> Value {
        let status = self.gateway.terminate().await;
        self.transcript.note("the end", json!(status.code()));
        for (name, dps, recorder) in &self.instances {
            self.transcript.calls(name, &recorder.requests());
            let stats = dps.emulator.stats();
            let counted = json!([stats.registers, stats.lookups, stats.registrations_counted, stats.unauthorized]);
            self.transcript.note(&format!("{name}: registers, lookups, counted, unauthorized"), counted);
        }
        self.transcript.into_value()
    }
}
