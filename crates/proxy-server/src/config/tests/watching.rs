use std::time::Instant;

use tokio::sync::mpsc::{Receiver, channel};

use super::*;

/// The promise: a change is signalled within a second. On a busy machine a test may see it a little later.
const SOON: Duration = Duration::from_millis(2500);

fn watched(directory: &Directory, file: &Path) -> (ConfigWatcher, Receiver<()>) {
    let loaded = load(file, []).unwrap_or_else(|problems| panic!("{problems}"));
    let (changed, signals) = channel(1);
    assert!(file.starts_with(directory.path()));
    (ConfigWatcher::start(file, loaded.files, changed).unwrap(), signals)
}

fn is_signalled(signals: &mut Receiver<()>, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    while Instant::now() < deadline {
        if signals.try_recv().is_ok() {
            return true;
        }
        // Between two looks: the channel has no wait with a time limit outside a runtime.
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

#[test]
fn an_edit_in_place_and_a_rename_are_signalled_once_each() {
    let directory = Directory::new();
    let file = directory.write("dps-proxy.toml", &least());
    let (_watcher, mut signals) = watched(&directory, &file);
    assert!(!is_signalled(&mut signals, Duration::from_millis(700)), "nothing has changed");

    directory.write("dps-proxy.toml", &format!("{}# edited\n", least()));
    assert!(is_signalled(&mut signals, SOON), "an edit in place");
    assert!(!is_signalled(&mut signals, Duration::from_millis(700)), "once is enough");

    let new = directory.write("dps-proxy.toml.new", &format!("{}# renamed\n", least()));
    std::fs::rename(new, &file).unwrap();
    assert!(is_signalled(&mut signals, SOON), "another file under its name");

    // The same content once more is no change.
    directory.write("dps-proxy.toml", &format!("{}# renamed\n", least()));
    assert!(!is_signalled(&mut signals, Duration::from_millis(700)), "only the time of the file has changed");
}

#[cfg(unix)]
#[test]
fn a_swapped_symbolic_link_is_signalled() {
    use std::os::unix::fs::symlink;
    let directory = Directory::new();
    // As Kubernetes mounts a ConfigMap.
    for (version, text) in [("v1", least()), ("v2", format!("{}# second\n", least()))] {
        std::fs::create_dir(directory.path().join(version)).unwrap();
        directory.write(&format!("{version}/dps-proxy.toml"), &text);
    }
    symlink("v1", directory.path().join("..data")).unwrap();
    let file = directory.path().join("dps-proxy.toml");
    symlink("..data/dps-proxy.toml", &file).unwrap();
    let (_watcher, mut signals) = watched(&directory, &file);
    symlink("v2", directory.path().join("..data_tmp")).unwrap();
    std::fs::rename(directory.path().join("..data_tmp"), directory.path().join("..data")).unwrap();
    assert!(is_signalled(&mut signals, SOON));
}

#[test]
fn a_secret_that_appears_or_changes_is_signalled() {
    let directory = Directory::new();
    let file = directory.write("dps-proxy.toml", &least().replace("\"key\"", "\"secrets/new-key\""));
    let problems = load(&file, []).unwrap_err();
    let (changed, mut signals) = channel(1);
    let watcher = ConfigWatcher::start(&file, problems.files, changed).unwrap();
    directory.write("secrets/new-key", KEY);
    assert!(is_signalled(&mut signals, SOON), "it appears");

    let loaded = load(&file, []).unwrap();
    // Before the watcher is told, so it must compare with what was loaded.
    directory.write("secrets/new-key", OTHER_KEY);
    watcher.set_files(loaded.files);
    assert!(is_signalled(&mut signals, SOON), "it changes");
}

#[test]
fn signals_coalesce_and_the_watch_ends_with_its_receiver() {
    let directory = Directory::new();
    let file = directory.write("dps-proxy.toml", &least());
    let (watcher, mut signals) = watched(&directory, &file);
    for turn in 0..3 {
        directory.write("dps-proxy.toml", &format!("{}# {turn}\n", least()));
        // Apart, so that they would be three signals if nobody put them together.
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(is_signalled(&mut signals, SOON));
    assert!(!is_signalled(&mut signals, Duration::from_millis(700)), "two more while one waited");
    drop(signals);
    drop(watcher);
}
