//! What is on disk before a word leaves: judged from the system calls of the real binary, under `strace`.
//!
//! For each of a few devices, one after the other: between the receipt of its first request and its 202, between the last moment before
//! a registration leaves for DPS and that send, and between DPS's answer and the device's 200, data was written to the store's file
//! and an `fdatasync` of that file was begun after that write and had returned.

use std::time::Duration;

use dps_emulator::{Emulator, Tls};
use tokio::process::Command;

use crate::support::{Instance, Plan, Said, Site, emulator_config, until};

const DEVICES: usize = 4;

/// A line of the trace: which thread, what it did, and whether the call began or ended here.
#[derive(Debug)]
struct Event {
    what: What,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Bytes came from a socket.
    Receipt,
    /// Bytes are about to go to a socket.
    Send,
    /// Data went into the store's file.
    Write,
    SyncBegins,
    SyncEnds,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "one trace, told from its beginning to its end")]
async fn every_202_and_200_and_every_send_follows_a_sync() {
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "strace is missing, and CI must not skip this");
        println!("skipped: needs strace");
        return;
    }
    let mut config = emulator_config("eu-1", 1000);
    // In clear, so that the trace shows the words on both sides.
    config.tls = Tls::Off;
    config.retry_after_seconds = 2;
    let emulator = Emulator::start(config).await.unwrap();
    let instance = Instance { name: "eu-1".to_owned(), endpoint: emulator.url(), quota: 1000, burst: 10 };
    let site = Site::new(&Plan { instances: vec![instance], ..Plan::default() });
    let trace = site.directory().join("trace");
    let mut strace = Command::new("strace");
    // `--daemonize`: the service itself is the child that signals go to.
    strace.args([
        "--daemonize",
        "--follow-forks",
        "--decode-fds=path",
        "--string-limit=1200",
        "--signal=none",
        "--trace",
    ]);
    strace.arg(
        "read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,pwrite64,pwritev,fsync,fdatasync,sync_file_range",
    );
    strace.arg("-o").arg(&trace).arg("--").arg(site.binary());
    let service = site.start_as(strace).await;

    for number in 0..DEVICES {
        let device = site.device(&format!("traced-{number}"));
        assert!(matches!(device.ask().await, Said::Queued { .. }), "a new device is put into line");
        let hub = tokio::time::timeout(Duration::from_secs(30), async {
            // Half of them are held on the line, half come back.
            loop {
                match device.ask_waiting(if number % 2 == 0 { 20 } else { 0 }).await {
                    Said::Hub(hub) => break hub,
                    Said::Queued { wait, .. } => tokio::time::sleep(wait).await,
                    other => panic!("{other:?}"),
                }
            }
        });
        assert!(hub.await.unwrap().starts_with("hub-eu-1-"));
    }
    service.stop().await;

    // The tracer outlives what it traces by a moment.
    let read = || std::fs::read_to_string(&trace).unwrap();
    until("the trace is complete", Duration::from_secs(10), async || read().ends_with("+++ exited with 0 +++\n")).await;
    let text = read();
    let events: Vec<Event> = understand(&text);
    for number in 0..DEVICES {
        let id = format!("traced-{number}");
        let named = |event: &Event| event.text.contains(&id);
        let find = |from: usize, what: What, words: &[&str], must_name: bool| {
            let fits = |event: &Event| {
                event.what == what && words.iter().all(|word| event.text.contains(word)) && (!must_name || named(event))
            };
            events[from..]
                .iter()
                .position(fits)
                .map_or_else(|| panic!("{id}: no {what:?} of {words:?}"), |index| from + index)
        };
        let asked = find(0, What::Receipt, &["POST /v1/provision"], true);
        let queued = find(asked, What::Send, &["HTTP/1.1 202"], false);
        assert_synced(&events[asked..queued], &format!("{id}: its place, before its 202"));
        let left = find(asked, What::Send, &["PUT /", "/register"], true);
        assert_synced(&events[asked..left], &format!("{id}: the sent mark, before the registration leaves"));
        // Two syncs: the place and the mark are two commits.
        assert!(syncs(&events[asked..left]) >= 2, "{id}: the sent mark has no sync of its own");
        let answered = find(left, What::Receipt, &["\\\"status\\\":\\\"assigned\\\"", "hub-eu-1-"], true);
        let told = find(answered, What::Send, &["HTTP/1.1 200", "assignedHub"], true);
        assert_synced(&events[answered..told], &format!("{id}: its assignment, before its 200"));
        assert!(
            !events[..answered]
                .iter()
                .any(|event| event.what == What::Send && event.text.contains("HTTP/1.1 200") && named(event)),
            "{id} heard of a hub before DPS had said one"
        );
    }
    println!(
        "durability: {DEVICES} devices, {} syncs in the trace, one before every 202, every send and every 200",
        syncs(&events)
    );
}

fn syncs(events: &[Event]) -> usize {
    events.iter().filter(|event| event.what == What::SyncEnds).count()
}

/// Somewhere in there: a write, then the begin of a sync, then its end.
fn assert_synced(events: &[Event], what: &str) {
    let after = |from: usize, wanted: What| {
        events[from..].iter().position(|event| event.what == wanted).map(|index| from + index)
    };
    let write = after(0, What::Write).unwrap_or_else(|| panic!("{what}: nothing was written"));
    let sync = after(write, What::SyncBegins).unwrap_or_else(|| panic!("{what}: no sync after the write"));
    assert!(after(sync, What::SyncEnds).is_some(), "{what}: the sync had not ended");
}

/// A receipt counts where its call returned, a send where it began, a write where it returned: each the stricter reading.
fn understand(trace: &str) -> Vec<Event> {
    let mut unfinished = std::collections::HashMap::new();
    let mut events = Vec::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let (text, begins, ends) = if let Some(begin) = rest.strip_suffix("<unfinished ...>") {
            unfinished.insert(thread.to_owned(), begin.to_owned());
            (begin.to_owned(), true, false)
        } else if let Some((_, end)) = rest.split_once(" resumed>") {
            let begin: String = unfinished.remove(thread).unwrap_or_default();
            (begin + end, false, true)
        } else {
            (rest.to_owned(), true, true)
        };
        let call = text.split('(').next().unwrap_or_default().to_owned();
        let on_store =
            text.contains("/store/") && text.split(['>', ',']).next().is_some_and(|file| file.ends_with("/db"));
        let on_socket = text.split('>').next().is_some_and(|file| file.contains("<socket:"));
        let failed = ends && text.contains(") = -1 ");
        let mut push = |what| events.push(Event { what, text: text.clone() });
        match call.as_str() {
            "fdatasync" | "fsync" if on_store => {
                if begins {
                    push(What::SyncBegins);
                }
                if ends && !failed {
                    push(What::SyncEnds);
                }
            }
            "pwrite64" | "pwritev" if on_store && ends && !failed => push(What::Write),
            "read" | "readv" | "recvfrom" | "recvmsg" if on_socket && ends && !failed => push(What::Receipt),
            "write" | "writev" | "sendto" | "sendmsg" if on_socket && begins => push(What::Send),
            _ => {}
        }
    }
    events
}
