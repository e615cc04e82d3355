//! A process that is killed while it writes: nothing is lost that was acknowledged, whatever happens to the files afterwards.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{copy_dir, open, options, serve, skip, written};
use crate::store::conformance::{commit, device, put};
use crate::store::sled_store::{OpenError, SledStore};
use crate::store::{Expect, MAX_WRITES, Store as _, Table, Write};

pub(super) const CHILD_DIR: &str = "STORE_TEST_CHILD_DIR";
const CHILD_COMMITS: &str = "STORE_TEST_CHILD_COMMITS";
const CHILD: &str = "store::sled_store::tests::kills::child_writes_until_killed";

/// The child of the tests below, which start this binary again: it prints every acknowledged commit. Without the variable it does
/// nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_writes_until_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let limit = std::env::var(CHILD_COMMITS).map_or(u64::MAX, |commits| commits.parse().unwrap());
    let store = Arc::new(SledStore::open(Path::new(&dir), options()).unwrap());
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut counts = [0_u64; 50];
                for n in 0..limit {
                    let slot = usize::try_from(n % 50).unwrap();
                    let [record, twin, blink] = ["record", "twin", "blink"].map(|what| format!("{what}-{task}-{slot}"));
                    if n < 50 {
                        // An earlier child has written it so often.
                        let before = store.get(&device(&record)).await.unwrap();
                        counts[slot] = before.map_or(0, |stored| written(&stored.value));
                    }
                    counts[slot] += 1;
                    let count = counts[slot];
                    let there = n / 50 % 2 == 0;
                    let writes = vec![
                        put(device(&record), Expect::Any, format!("{count:>500}")),
                        put(device(&twin), Expect::Any, count.to_string()),
                        // Comes and goes.
                        if there {
                            put(device(&blink), Expect::Any, "1")
                        } else {
                            Write::delete(device(&blink), Expect::Any)
                        },
                    ];
                    commit(&*store, writes).await.unwrap();
                    println!("\nacked {record} {count} {twin} {count}");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

fn child(dir: &Path) -> Command {
    child_of(CHILD, dir)
}

/// This binary again, to run one test of it on `dir`.
pub(super) fn child_of(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads", "1"]).env(CHILD_DIR, dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Lets a child write until `commits` are acknowledged, kills it and notes every acknowledgement it gave.
fn kill_after(dir: &Path, commits: usize, acked: &mut HashMap<String, u64>) {
    let mut process = child(dir).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut seen = 0;
    for line in lines.by_ref() {
        seen += note_ack(&line, acked);
        if seen >= commits {
            break;
        }
    }
    process.kill().unwrap();
    for line in lines {
        seen += note_ack(&line, acked);
    }
    process.wait().unwrap();
    assert!(seen > 0, "the child acknowledged nothing");
}

#[tokio::test]
async fn kill_nine_loses_nothing_that_was_acked() {
    let dir = tempfile::tempdir().unwrap();
    let mut acked: HashMap<String, u64> = HashMap::new();
    let started = Instant::now();
    let mut rounds = 0;
    while rounds < 3 || (rounds < 10 && started.elapsed() < Duration::from_secs(6)) {
        // Each round dies somewhere else.
        kill_after(dir.path(), 200 + rounds * 137, &mut acked);
        let store = open(&dir);
        let rows = store.scan(Table::Device, None, MAX_WRITES).await.unwrap();
        let found: HashMap<_, _> =
            rows.into_iter().map(|row| (String::from_utf8(row.name).unwrap(), written(&row.stored.value))).collect();
        for (name, version) in &acked {
            assert!(found.get(name).is_some_and(|found| found >= version), "{name} {version}: {:?}", found.get(name));
        }
        for (name, version) in found.iter().filter(|(name, _)| name.starts_with("record")) {
            assert_eq!(found.get(&name.replace("record", "twin")), Some(version), "a commit was torn at {name}");
        }
        rounds += 1;
    }
    eprintln!("{rounds} kills, {} commits acked", acked.values().sum::<u64>() / 2);
}

/// Counts a whole line of the child; one that the kill cut short is not counted.
fn note_ack(line: &str, acked: &mut HashMap<String, u64>) -> usize {
    let words: Vec<&str> = line.split(' ').collect();
    let ["acked", record, version, twin, twin_version] = words[..] else { return 0 };
    if version != twin_version {
        return 0;
    }
    let Ok(version) = version.parse::<u64>() else { return 0 };
    for name in [record, twin] {
        let newest = acked.entry(name.to_owned()).or_default();
        *newest = version.max(*newest);
    }
    1
}

#[test]
fn an_fdatasync_precedes_every_ack() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let plain = child(&dir.path().join("store"));
    let mut command = Command::new("strace");
    command.args(["-f", "-e", "trace=fdatasync,write", "-s", "80", "-o"]).arg(&trace);
    command
        .arg(plain.get_program())
        .args(plain.get_args())
        .env(CHILD_DIR, dir.path().join("store"))
        .env(CHILD_COMMITS, "20");
    let Ok(output) = command.output() else { return skip("needs strace") };
    if !trace.exists() || !output.status.success() {
        return skip("needs strace, allowed to trace a child");
    }
    // Sixteen writers wait for their acks one at a time, so no more than sixteen acks can share a sync.
    let (mut acks, mut syncs, mut since_sync) = (0, 0, 0);
    for line in std::fs::read_to_string(&trace).unwrap().lines() {
        if line.contains("fdatasync") && line.contains("= 0") {
            syncs += 1;
            since_sync = 0;
        } else if line.contains("write(1,") && line.contains("acked ") {
            assert!(syncs > 0, "acknowledged before any sync");
            acks += 1;
            since_sync += 1;
            assert!(since_sync <= 32, "{since_sync} acks after one sync");
        }
    }
    assert_eq!(acks, 16 * 20, "every ack is in the trace");
    eprintln!("{acks} acks, {syncs} syncs");
}

#[tokio::test]
async fn a_byte_flipped_after_a_kill_takes_back_nothing_that_was_acked() {
    let (rounds, steps) = (3, 20);
    let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
    let original = tempfile::tempdir().unwrap();
    let mut acked = HashMap::new();
    for round in 0..rounds {
        kill_after(original.path(), 1500 + 400 * round, &mut acked);
        // The copy: sled tidies up when it opens.
        let whole = tempfile::tempdir().unwrap();
        copy_dir(original.path(), whole.path());
        let whole = serve(whole.path()).await.unwrap();
        let bytes = std::fs::read(original.path().join("db")).unwrap();
        for step in 0..steps {
            let dir = tempfile::tempdir().unwrap();
            copy_dir(original.path(), dir.path());
            let mut damaged = bytes.clone();
            let at = (step * bytes.len() / steps + 7919 * step + 13 * round) % bytes.len();
            damaged[at] ^= 0x5A;
            std::fs::write(dir.path().join("db"), damaged).unwrap();
            let outcome = match serve(dir.path()).await {
                Ok(served) => {
                    for (name, version) in &acked {
                        assert!(served.get(name).is_some_and(|found| found >= version), "byte {at}: {name} is older");
                    }
                    // A prefix of the commits: what was applied and not yet acknowledged may be missing.
                    for (name, version) in served.iter().filter(|(name, _)| name.starts_with("record")) {
                        let others = ["twin", "blink"].map(|other| name.replace("record", other));
                        assert_eq!(served.get(&others[0]), Some(version), "byte {at}: {name}");
                        if whole.get(name) == Some(version) {
                            assert_eq!(served.get(&others[1]), whole.get(&others[1]), "byte {at}: {name}");
                        }
                    }
                    "served whole"
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains(&*dir.path().to_string_lossy()), "{text}");
                    let again = SledStore::open(dir.path(), options());
                    assert!(matches!(again, Err(OpenError::Damaged { .. })), "byte {at}: {error}, then {again:?}");
                    ["acknowledged batches are gone", "that were committed", "digest", "sled panicked"]
                        .into_iter()
                        .find(|part| text.contains(part))
                        .unwrap_or("other refusals")
                }
            };
            *outcomes.entry(outcome).or_default() += 1;
        }
    }
    eprintln!("{} rows, {} flipped bytes, one each: {outcomes:?}", acked.len(), rounds * steps);
}
