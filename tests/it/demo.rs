//! `demo`, as somebody runs it who meets the product: what it prints works, and nothing of it is left behind.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use dps_proxy_tests::{binary, eventually, eventually_some};
use reqwest::Certificate;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// A running demo whose temporary directory is made inside `folder`. It is killed when it is dropped.
struct Demo {
    child: Child,
    folder: TempDir,
    said: Arc<Mutex<String>>,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = binary::command();
        command.arg("demo").args(arguments).env("TMPDIR", folder.path()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let (stdout, heard) = (BufReader::new(child.stdout.take().unwrap()), Arc::clone(&said));
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                heard.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        Self { child, folder, said }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    async fn says(&self, words: &str) -> String {
        eventually_some(words, async || Some(self.said()).filter(|said| said.contains(words))).await
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end; its exit code.
    async fn ends(&mut self) -> Option<i32> {
        let mut code = None;
        eventually("the demo ends", async || {
            let ended = self.child.try_wait().unwrap();
            code = ended.map(|status| status.code());
            ended.is_some()
        })
        .await;
        code.flatten()
    }

    fn left_behind(&self) -> Vec<std::path::PathBuf> {
        std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[tokio::test]
async fn a_demo_that_is_interrupted_or_loses_its_terminal_ends_and_leaves_no_key_behind() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        // One registration a minute: it is far from its end.
        let mut demo = Demo::start(&["--devices", "20", "--instances", "1", "--quota", "1"]);
        demo.says("Operators").await;
        assert_eq!(demo.left_behind().len(), 1, "{signal:?}: it works in a directory of its own");
        demo.signal(signal);
        assert_eq!(demo.ends().await, Some(1), "{signal:?}: not every device was assigned");
        assert_eq!(demo.left_behind(), Vec::<std::path::PathBuf>::new(), "{signal:?}");
    }
}

#[tokio::test]
async fn a_demo_that_ends_prints_no_command_that_does_not_work() {
    let mut demo = Demo::start(&["--devices", "5", "--instances", "1"]);
    assert_eq!(demo.ends().await, Some(0), "{}", demo.said());
    let said = demo.says("--keep-running").await;
    assert!(said.contains("5 of 5") && !said.contains("curl -"), "{said}");
    assert_eq!(demo.left_behind(), Vec::<std::path::PathBuf>::new());
}

/// What stands behind `before` up to the next `after`.
fn between<'a>(text: &'a str, before: &str, after: char) -> &'a str {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("no {before} in {text}")).1;
    rest.split(after).next().unwrap().trim()
}

#[tokio::test]
async fn what_a_demo_that_keeps_running_prints_can_be_used() {
    let mut demo = Demo::start(&["--devices", "5", "--instances", "1", "--keep-running"]);
    let said = demo.says("Still running").await;
    let ca = std::fs::read(between(&said, "--cacert ", ' ')).unwrap();
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([Certificate::from_pem(&ca).unwrap()]).build();
    let client = client.unwrap();
    // The two lines, word for word but for the program that sends them.
    let provision = format!("https://localhost:{}", between(&said, " https://localhost:", ' '));
    let url = between(&said, &format!("--cacert {} ", between(&said, "--cacert ", ' ')), ' ');
    assert!(url.starts_with(&provision), "the address that was printed at once is the one that is called: {url}");
    let asked = client.post(url).header("Prefer", "wait=20").header(
        "Authorization",
        between(&said, "Authorization: Shared", '\'').replacen("AccessSignature", "SharedAccessSignature", 1),
    );
    let answer = asked.json(&serde_json::json!({ "hardwareId": "my-own-device" })).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["status"], "assigned", "{answer}");
    let lookup = client.get(between(&said, "\n  curl http", ' ').replacen("://", "http://", 1));
    let lookup = lookup.header("Authorization", format!("Bearer {}", between(&said, "Bearer ", '\'')));
    let found: Value = lookup.send().await.unwrap().json().await.unwrap();
    assert_eq!(found["assignedHub"], answer["assignedHub"], "{found}");
    let operator_token =
        std::fs::read_to_string(Path::new(between(&said, "Operators", ')').split("token in ").nth(1).unwrap()));
    let instances = client
        .get(format!("{}/v1/instances", between(&said, "Operators", '(')))
        .bearer_auth(operator_token.unwrap().trim())
        .send()
        .await
        .unwrap();
    assert_eq!(instances.status(), 200);
    demo.signal(Signal::INT);
    assert_eq!(demo.ends().await, Some(0), "every device was assigned");
    assert_eq!(demo.left_behind(), Vec::<std::path::PathBuf>::new());
}
