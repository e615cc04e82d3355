//! The conformance suite on sled, and what only a disk can do: kills, damage, locks, lack of space.

use std::collections::{HashMap, HashSet};
use std::process::Command;
use std::sync::atomic::AtomicU64;

use parking_lot::Condvar;
use tempfile::TempDir;

use super::opening::{ID_NAME, SCHEMA_NAME, open_db};
use super::*;
use crate::store::conformance::{Fixture, commit, conformance, device, join, put, unnamed};
use crate::store::{Expect, MAX_WRITES, Version, Write};
use kills::{CHILD_DIR, child_of};

mod kills;
mod leases;

/// Where tests get hold of the writer.
#[derive(Default)]
pub(super) struct Hooks {
    held: Mutex<bool>,
    released: Condvar,
    applied_batch: AtomicU64,
    synced_batch: AtomicU64,
    pub(super) acks_before_sync: AtomicU64,
}

impl Hooks {
    pub(super) fn hold(&self, hold: bool) {
        *self.held.lock() = hold;
        self.released.notify_all();
    }

    /// Between applying and syncing.
    pub(super) fn pass_gate(&self) {
        self.applied_batch.fetch_add(1, Ordering::SeqCst);
        let mut held = self.held.lock();
        while *held {
            self.released.wait(&mut held);
        }
    }

    pub(super) fn synced(&self) {
        self.synced_batch.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn acked(&self) {
        if self.synced_batch.load(Ordering::SeqCst) != self.applied_batch.load(Ordering::SeqCst) {
            self.acks_before_sync.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn options() -> SledOptions {
    SledOptions { min_free_bytes: 0, ..SledOptions::default() }
}

fn open(dir: &TempDir) -> SledStore {
    SledStore::open(dir.path(), options()).unwrap()
}

fn fixture() -> Fixture {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let store = open(&dir);
    let shared = Arc::clone(&store.shared);
    let copies = Arc::new(Mutex::new(Vec::new()));
    let (killed_in, kept) = (Arc::clone(&dir), Arc::clone(&copies));
    let killed = move || -> Arc<dyn Store> {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(killed_in.path(), copy.path());
        let survivor = open(&copy);
        kept.lock().push(copy);
        Arc::new(survivor)
    };
    Fixture {
        store: Arc::new(store),
        hold: Box::new(move |hold| shared.hooks.hold(hold)),
        killed: Box::new(killed),
        _keep: Box::new((dir, copies)),
    }
}

/// Says why a test did not run; where skipping is not acceptable, fails.
fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "must not be skipped in CI: {why}");
    eprintln!("skipped: {why}");
}

conformance!(fixture());

#[tokio::test]
async fn a_reopened_store_is_the_same_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let id = store.store_id().to_owned();
    assert_eq!(id.len(), 32);
    commit(&store, vec![put(device("a"), Expect::Absent, "x"), put(device("b"), Expect::Absent, "y")]).await.unwrap();
    store.close().await;
    drop(store);
    for clean in [true, false] {
        let store = open(&dir);
        assert_eq!(store.store_id(), id);
        assert_eq!(store.get(&device("b")).await.unwrap().unwrap().value, "y");
        if clean {
            store.close().await;
        }
    }
}

#[tokio::test]
async fn a_second_owner_is_told_which_directory_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let error = SledStore::open(dir.path(), options()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }));
    assert!(error.to_string().contains(&*dir.path().to_string_lossy()), "{error}");
    commit(&store, vec![put(device("a"), Expect::Absent, "x")]).await.unwrap();
    store.close().await;
    open(&dir);
}

#[tokio::test]
async fn a_torn_snapshot_of_a_killed_start_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    for n in 0..500 {
        commit(&store, vec![put(device(&n.to_string()), Expect::Absent, [b'x'; 400])]).await.unwrap();
    }
    drop(store);
    std::fs::write(dir.path().join("snap.FFFFFFFFFFFFFFFF.generating"), [0_u8; 7]).unwrap();
    let store = open(&dir);
    assert_eq!(store.scan(Table::Device, None, 4096).await.unwrap().len(), 500);
    assert!(!dir.path().join("snap.FFFFFFFFFFFFFFFF.generating").exists());
}

#[tokio::test]
async fn a_newer_schema_and_a_vanished_store_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(&dir));
    let plant = |name: &[u8], text: &[u8]| {
        let db = open_db(dir.path(), 1 << 20).unwrap();
        let key = codec::raw_name(Table::Meta, name);
        db.insert(&key, codec::encode_counted(&key, 1, text)).unwrap();
        db.flush().unwrap();
        drop(db);
        std::fs::remove_file(dir.path().join("seal")).ok();
    };
    plant(SCHEMA_NAME, b"3");
    let error = SledStore::open(dir.path(), options()).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 3, known: 2, .. }), "{error}");
    plant(SCHEMA_NAME, b"2");
    plant(ID_NAME, b"another");
    assert!(matches!(SledStore::open(dir.path(), options()), Err(OpenError::Damaged { .. })));
    for gone in ["db", "conf", "blobs"] {
        let gone = dir.path().join(gone);
        if gone.is_dir() { std::fs::remove_dir_all(gone).unwrap() } else { std::fs::remove_file(gone).unwrap() }
    }
    for entry in std::fs::read_dir(dir.path()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("snap.") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let error = SledStore::open(dir.path(), options()).unwrap_err();
    assert!(error.to_string().contains("sled finds nothing"), "{error}");
}

/// What is in the fixture is in its README.
#[tokio::test]
async fn a_store_of_schema_1_is_taken_over_and_each_value_when_it_is_written_next() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/store-schema-1");
    // Closed cleanly, and as after a kill: then every row is counted.
    for sealed in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&fixture, dir.path());
        if !sealed {
            std::fs::remove_file(dir.path().join("seal")).unwrap();
        }
        let store = open(&dir);
        let rows = store.scan(Table::Device, None, 100).await.unwrap();
        assert_eq!(rows.len(), 10);
        let counted = |version: Version| version.0[..8] == [0; 8];
        assert!(rows.iter().all(|row| counted(row.stored.version) && row.stored.place.is_none()));
        let key = Key::new(Table::Device, rows[0].name.clone());
        let old = rows[0].stored.version;
        let new = commit(&store, vec![put(key.clone(), Expect::Version(old), "new")]).await.unwrap();
        assert!(commit(&store, vec![put(key.clone(), Expect::Version(old), "late")]).await.is_err());
        drop(store);
        std::fs::remove_file(dir.path().join("seal")).unwrap();
        let store = open(&dir);
        assert_eq!(store.get(&key).await.unwrap().unwrap().version, new);
        assert_eq!(store.scan(Table::Device, None, 100).await.unwrap()[1..], rows[1..]);
        let schema = codec::raw_name(Table::Meta, SCHEMA_NAME);
        let raw = store.shared.db.read().clone().unwrap().get(&schema).unwrap().unwrap();
        assert_eq!(codec::open(&schema, &raw).unwrap().payload, b"2", "an earlier release does not open it any more");
    }
}

#[tokio::test]
async fn a_directory_that_is_removed_or_replaced_takes_no_writes() {
    for (gone, made_anew) in [("removed", false), ("removed", true), ("renamed", false), ("renamed", true)] {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("store");
        let store = SledStore::open(&path, options()).unwrap();
        commit(&store, vec![put(device("a"), Expect::Absent, "x")]).await.unwrap();
        assert_eq!(store.health(), Health::Writable);
        match gone {
            "removed" => std::fs::remove_dir_all(&path).unwrap(),
            _ => std::fs::rename(&path, parent.path().join("aside")).unwrap(),
        }
        if made_anew {
            drop(SledStore::open(&path, options()));
        }
        // Whoever asks notices at once, and else the writer soon.
        if made_anew {
            assert!(matches!(store.health(), Health::Failed(_)));
        }
        let began = Instant::now();
        let refused = loop {
            let outcome = commit(&store, vec![put(device("b"), Expect::Any, "x")]).await;
            if outcome.is_err() || made_anew || began.elapsed() > Duration::from_secs(10) {
                break outcome;
            }
        };
        let Err(CommitError::ReadOnly(why) | CommitError::Failed(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains(&*path.to_string_lossy()) && why.contains("removed or replaced"), "{why}");
        assert!(matches!(store.health(), Health::Failed(_)), "{:?}", store.health());
        assert_eq!(store.get(&device("a")).await.unwrap().unwrap().value, "x", "what is known is still answered");
        assert!(commit(&store, vec![put(device("b"), Expect::Any, "x")]).await.is_err(), "for good");
        store.close().await;
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Values that any read may show for device `n`: every generation ever committed.
fn generation(n: usize, generation: u64) -> Vec<u8> {
    format!("device {n} generation {generation} ").repeat(12).into_bytes()
}

/// The number that a value ends with, which tells how often its key was written.
fn written(value: &[u8]) -> u64 {
    str::from_utf8(value).unwrap().split_whitespace().last().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_flipped_byte_is_an_error_and_never_a_wrong_value() {
    let original = tempfile::tempdir().unwrap();
    let store = open(&original);
    for round in 0..3 {
        let writes = (0..300).map(|n| put(device(&n.to_string()), Expect::Any, generation(n, round)));
        commit(&store, writes.collect()).await.unwrap();
    }
    drop(store);
    let bytes = std::fs::read(original.path().join("db")).unwrap();
    let (mut refused, mut newest, mut reported) = (0, 0, 0);
    for step in 0..40 {
        for sealed in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            copy_dir(original.path(), dir.path());
            let mut damaged = bytes.clone();
            let at = (step * bytes.len() / 40 + 13 * step) % bytes.len();
            damaged[at] ^= 0x5A;
            std::fs::write(dir.path().join("db"), damaged).unwrap();
            if !sealed {
                // As after a kill: nothing vouches for the file as a whole.
                std::fs::remove_file(dir.path().join("seal")).unwrap();
            }
            match SledStore::open(dir.path(), options()) {
                Err(error) => {
                    assert!(error.to_string().contains(&*dir.path().to_string_lossy()), "{error}");
                    refused += 1;
                }
                Ok(_) if sealed => panic!("byte {at} of a closed store changed unnoticed"),
                Ok(store) => {
                    for n in 0..300 {
                        match store.get(&device(&n.to_string())).await {
                            Ok(Some(stored)) if stored.value == generation(n, 2) => newest += 1,
                            Ok(other) => panic!("byte {at}: device {n} is {other:?}"),
                            Err(_) => reported += 1,
                        }
                    }
                }
            }
        }
    }
    eprintln!("{refused} of 80 openings refused; reads of the others: {newest} newest, {reported} reported damage");
}

/// Opens a copy of a killed store and gives what it serves, by `get` and by `scan`: how often each key was written.
async fn serve(dir: &Path) -> Result<BTreeMap<String, u64>, OpenError> {
    let store = SledStore::open(dir, options())?;
    let mut served = BTreeMap::new();
    for row in store.scan(Table::Device, None, MAX_WRITES).await.unwrap() {
        let name = String::from_utf8(row.name).unwrap();
        assert_eq!(store.get(&device(&name)).await.unwrap().as_ref(), Some(&row.stored), "{name}");
        served.insert(name, written(&row.stored.value));
    }
    Ok(served)
}

#[tokio::test]
async fn after_a_power_loss_any_part_of_what_was_not_synced_may_be_there() {
    const BLOCK: usize = 4096;
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let write = async |count| {
        let writes = (0..400).map(|n| put(device(&n.to_string()), Expect::Any, generation(n, count)));
        commit(&store, writes.collect()).await.unwrap();
    };
    let (mut random, mut refused) = (0x5EED_u64, 0);
    for round in 0..12 {
        let (acked, newer) = (2 * round + 1, 2 * round + 2);
        write(acked).await;
        let synced = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), synced.path());
        write(newer).await;
        let old = std::fs::read(synced.path().join("db")).unwrap();
        let new = std::fs::read(dir.path().join("db")).unwrap();
        for _ in 0..4 {
            let lost = tempfile::tempdir().unwrap();
            copy_dir(synced.path(), lost.path());
            let mut mixed = new.clone();
            for (n, block) in mixed.chunks_mut(BLOCK).enumerate() {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Every other block, at random, never got there; nor did the newest head.
                if random >> 63 == 0 {
                    let before = old.get(n * BLOCK..).unwrap_or_default();
                    let kept = before.len().min(block.len());
                    block.fill(0);
                    block[..kept].copy_from_slice(&before[..kept]);
                }
            }
            std::fs::write(lost.path().join("db"), mixed).unwrap();
            let served = match serve(lost.path()).await {
                Ok(served) => served,
                Err(error) => {
                    // Sled may reuse a segment before we have synced the one that replaces it.
                    eprintln!("round {round} of a power loss: {error}");
                    refused += 1;
                    std::fs::remove_file(lost.path().join("head")).unwrap();
                    let anyway = serve(lost.path()).await;
                    let alarm = anyway.is_ok_and(|served| served.len() == 400 && served.values().all(|n| *n >= acked));
                    assert!(!alarm, "refused, and everything acknowledged is there");
                    continue;
                }
            };
            let found: HashSet<u64> = served.values().copied().collect();
            assert!(served.len() == 400 && (found == [acked].into() || found == [newer].into()), "{found:?}");
        }
    }
    assert!(refused < 12, "{refused} of 48 openings refused");
}

#[tokio::test]
async fn a_damaged_value_is_reported_refused_and_can_be_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    commit(&store, vec![put(device("a"), Expect::Absent, "x"), put(device("b"), Expect::Absent, "x")]).await.unwrap();
    let raw = codec::raw_key(&device("a"));
    let db = store.shared.db.read().clone().unwrap();
    let mut value = db.get(&raw).unwrap().unwrap().to_vec();
    *value.last_mut().unwrap() ^= 1;
    db.insert(&raw, value).unwrap();
    drop(db);
    assert!(matches!(store.get(&device("a")).await, Err(ReadError::Corrupt { table: Table::Device, .. })));
    assert!(matches!(store.scan(Table::Device, None, 10).await, Err(ReadError::Corrupt { .. })));
    let change = commit(&store, vec![put(device("b"), Expect::Any, "y"), put(device("a"), Expect::Any, "y")]).await;
    assert!(matches!(change, Err(CommitError::Refused(_))), "{change:?}");
    assert_eq!(store.get(&device("b")).await.unwrap().unwrap().value, "x");
    commit(&store, vec![Write::delete(device("a"), Expect::Any)]).await.unwrap();
    assert_eq!(store.get(&device("a")).await.unwrap(), None);
    drop(store);
    // The digest has forgotten the damaged row as well.
    std::fs::remove_file(dir.path().join("seal")).unwrap();
    assert_eq!(open(&dir).get(&device("b")).await.unwrap().unwrap().value, "x");
}

#[tokio::test]
async fn the_digest_follows_every_kind_of_commit_and_no_row_changes_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&dir));
    let any = |name: u64, value: Option<&'static str>| {
        let (key, expect) =
            (device(&(name % 7).to_string()), if name.is_multiple_of(5) { Expect::Absent } else { Expect::Any });
        value.map_or_else(|| Write::delete(key.clone(), expect), |value| put(key.clone(), expect, value))
    };
    let line = InstanceName::parse("a").unwrap();
    let commits = (0..600_u64).map(|n| {
        let store = Arc::clone(&store);
        let writes = vec![
            any(n, Some("one")),
            any(n + 1 + n % 3, (n % 4 != 0).then_some("two")),
            any(n + 4 + n % 2, None),
            join(&format!("joined-{}", n % 5), &line, Expect::Any),
        ];
        // Some conflict, and many share a batch.
        tokio::spawn(async move { commit(&*store, writes).await })
    });
    let commits: Vec<_> = commits.collect();
    for commit in commits {
        let _ = commit.await.unwrap();
    }
    store.close().await;
    drop(store);
    let unseal = || std::fs::remove_file(dir.path().join("seal")).unwrap();
    unseal();
    let rows = open(&dir).scan(Table::Device, None, 100).await.unwrap();
    unseal();
    let db = open_db(dir.path(), 1 << 20).unwrap();
    db.remove(codec::raw_name(Table::Device, &rows[0].name)).unwrap();
    drop(db);
    let error = SledStore::open(dir.path(), options()).unwrap_err();
    assert!(error.to_string().contains("that were committed"), "{error}");
    std::fs::remove_file(dir.path().join("head")).unwrap();
    assert_eq!(open(&dir).scan(Table::Device, None, 100).await.unwrap(), rows[1..], "the way around");
}

#[tokio::test]
async fn below_the_watermark_no_writes_are_taken_until_space_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path(), SledOptions { min_free_bytes: u64::MAX, ..options() }).unwrap();
    let Health::ReadOnly(why) = store.health() else { panic!("writable without space") };
    assert!(why.contains("bytes free"), "{why}");
    let commit = || commit(&store, vec![put(device("a"), Expect::Any, "x")]);
    assert!(matches!(commit().await, Err(CommitError::ReadOnly(_))));
    assert_eq!(store.get(&device("a")).await.unwrap(), None, "reads go on");
    store.set_min_free_bytes(0);
    assert_eq!(store.health(), Health::Writable);
    commit().await.unwrap();
}

#[tokio::test]
async fn a_line_that_is_raised_while_there_is_no_room_goes_on_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path(), SledOptions { min_free_bytes: u64::MAX, ..options() }).unwrap();
    let line = InstanceName::parse("a").unwrap();
    assert!(matches!(store.raise_sequence(&line, 70).await, Err(CommitError::ReadOnly(_))));
    store.set_min_free_bytes(0);
    let joins = unnamed(vec![join("b", &line, Expect::Absent)]);
    assert_eq!(store.commit(joins).await.unwrap(), [70]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_inbox_is_busy_and_everything_inside_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = SledOptions { inbox_max: 4, inbox_wait: Duration::from_millis(20), batch_max: 1, ..options() };
    let store = Arc::new(SledStore::open(dir.path(), bounds).unwrap());
    store.shared.hooks.hold(true);
    let submit = |n: i32| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { commit(&*store, vec![put(device(&n.to_string()), Expect::Absent, "x")]).await })
    };
    let applied = || store.shared.hooks.applied_batch.load(Ordering::SeqCst);
    let (before, mut commits) = (applied(), vec![submit(0)]);
    while applied() == before {
        tokio::task::yield_now().await;
    }
    commits.extend((1..12).map(submit));
    // One at the gate and four inside: the others give up.
    while commits.iter().filter(|task| task.is_finished()).count() < 7 {
        tokio::task::yield_now().await;
    }
    store.shared.hooks.hold(false);
    let mut busy = 0;
    for commit in commits {
        match commit.await.unwrap() {
            Ok(_) => {}
            Err(CommitError::Busy) => busy += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(busy, 7);
    assert_eq!(store.scan(Table::Device, None, 100).await.unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_ack_comes_before_its_sync_and_syncs_are_shared() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&dir));
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0..20 {
                    commit(&*store, vec![put(device(&format!("{task}-{n}")), Expect::Absent, "x")]).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(store.shared.hooks.acks_before_sync.load(Ordering::SeqCst), 0);
    let stats = store.stats();
    assert_eq!(stats.commits, 64 * 20);
    assert!(stats.batches < stats.commits / 2, "{stats:?}");
}

#[tokio::test]
async fn sled_gets_little_at_once_and_every_commit_is_there_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let commit = |n: usize| commit(&store, vec![put(device(&n.to_string()), Expect::Absent, vec![b'x'; 1000])]);
    for done in futures_util::future::join_all((0..200).map(commit)).await {
        done.unwrap();
    }
    // Each group is handed over and flushed, and none holds more than fifteen of these.
    assert!(store.steps() > 2 * 200 / 15, "{} steps", store.steps());
    assert_eq!(store.scan(Table::Device, None, 1000).await.unwrap().len(), 200);
    assert_eq!(store.scan(Table::Device, None, 150).await.unwrap().len(), 150, "over more than one look at sled");
    store.close().await;
    drop(store);
    std::fs::remove_file(dir.path().join("seal")).unwrap();
    assert_eq!(open(&dir).scan(Table::Device, None, 1000).await.unwrap().len(), 200, "the digest fits");
}

/// A directory that a small file system is mounted on; gone when dropped.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// `None` if this process may not mount.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(dir.path()).output();
        mount.is_ok_and(|output| output.status.success()).then_some(Self { dir })
    }

    fn store(&self) -> std::path::PathBuf {
        self.dir.path().join("store")
    }

    fn grow(&self) {
        let grown = Command::new("mount").args(["-o", "remount,size=256m"]).arg(self.dir.path()).status().unwrap();
        assert!(grown.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.dir.path()).status();
    }
}

/// Whoever runs out of space keeps sled's global locks, so that each step is a process of its own, as it is in service.
#[test]
fn a_full_disk_stops_acks_and_loses_none() {
    let Some(disk) = SmallDisk::mount() else { return skip("needs a tmpfs mount") };
    let step = |step: &str| {
        let mut command = child_of("store::sled_store::tests::child_on_a_small_disk", &disk.store());
        let log = tempfile::NamedTempFile::new().unwrap();
        command.env(CHILD_STEP, step).stderr(log.reopen().unwrap());
        let (began, mut process) = (Instant::now(), command.spawn().unwrap());
        while process.try_wait().unwrap().is_none() {
            if began.elapsed() > Duration::from_secs(60) {
                process.kill().unwrap();
                panic!("{step}: it hangs");
            }
            // Between two looks: the standard library waits for a process with no time limit only.
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut said = String::new();
        std::io::Read::read_to_string(&mut process.stdout.take().unwrap(), &mut said).unwrap();
        let why = || std::fs::read_to_string(log.path()).unwrap();
        assert!(process.wait().unwrap().success(), "{step}: {said}{}", why());
        said.lines().find_map(|line| line.strip_prefix("said ")).map(str::to_owned).unwrap()
    };
    let acked = step("fill");
    let opened = step("open while full");
    disk.grow();
    let kept = step("open with room");
    // The batch that failed may be there, in part or as a whole.
    assert!(kept.parse::<usize>().unwrap() >= acked.parse().unwrap(), "{kept} of {acked} batches are left");
    eprintln!("{acked} batches acked before the disk was full; opening while full: {opened}");
}

const CHILD_STEP: &str = "STORE_TEST_CHILD_STEP";

/// A step of the test above, in a process that it starts. Without the variable it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_on_a_small_disk() {
    let Ok(step) = std::env::var(CHILD_STEP) else { return };
    let path = std::path::PathBuf::from(std::env::var_os(CHILD_DIR).unwrap());
    let opened = SledStore::open(&path, options());
    let said = match (step.as_str(), opened) {
        ("fill", Ok(store)) => fill(&store).await.to_string(),
        ("open while full", opened) => opened.map_or_else(|error| error.to_string(), |_| "succeeds".to_owned()),
        ("open with room", Ok(store)) => {
            let whole = whole_batches(&store).await;
            commit(&store, vec![put(device("later"), Expect::Absent, "x")]).await.unwrap();
            store.close().await;
            whole.to_string()
        }
        (step, opened) => panic!("{step}: {opened:?}"),
    };
    println!("\nsaid {said}");
}

/// Commits batches of a hundred until one fails; how many were acknowledged.
async fn fill(store: &SledStore) -> usize {
    let mut acked = 0_usize;
    let error = loop {
        let writes = (0..100).map(|n| put(device(&format!("{acked:06}-{n}")), Expect::Absent, [b'x'; 1000]));
        match commit(store, writes.collect()).await {
            Ok(_) => acked += 1,
            Err(error) => break error,
        }
        assert!(acked < 10_000, "the disk never filled");
    };
    assert!(matches!(error, CommitError::Failed(_)), "{error}");
    assert!(matches!(store.health(), Health::Failed(_)));
    let later = commit(store, vec![put(device("later"), Expect::Absent, "x")]).await;
    assert!(matches!(later, Err(CommitError::ReadOnly(_))), "{later:?}");
    store.close().await;
    acked
}

/// How many batches there are all rows of.
async fn whole_batches(store: &SledStore) -> usize {
    let (mut rows_of, mut after): (HashMap<String, usize>, Option<Vec<u8>>) = (HashMap::new(), None);
    loop {
        let rows = store.scan(Table::Device, after.as_deref(), MAX_WRITES).await.unwrap();
        let Some(last) = rows.last() else { break };
        after = Some(last.name.clone());
        for row in rows {
            let name = String::from_utf8(row.name).unwrap();
            *rows_of.entry(name.split('-').next().unwrap().to_owned()).or_default() += 1;
        }
    }
    rows_of.values().filter(|rows| **rows == 100).count()
}
