//! What holds for the tree as a whole: who may import whom, what pure code may not say, and how long a file may be.
//!
//! Each rule is a table here. Whoever needs an exception writes it into the table, where a reviewer sees it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::Tree;
use super::source::tokens;

/// The most lines of a source file, its unit tests included: what can be reviewed in one sitting.
const LINES_MAX: usize = 600;

/// Files that are longer, and the most that each of them may have. None is added; each is to be split.
const LONGER: [(&str, usize); 3] = [
    ("proxy-core/src/line.rs", 740),
    ("proxy-core/src/store/sled_store/tests.rs", 660),
    ("proxy-server/src/api/registrations.rs", 680),
];

/// Which crates of ours each crate may depend on, beside those it tests with. The emulator and the core share nothing, so that one can convict the
/// other; the black-box tests know the service by its sockets only.
const CRATES: [(&str, &[&str]); 9] = [
    ("crates/rate-control", &[]),
    ("crates/dps-emulator", &[]),
    ("crates/proxy-core", &["rate-control"]),
    ("crates/store-postgresql", &["proxy-core", "rate-control"]),
    ("crates/storm-sim", &["proxy-core", "rate-control"]),
    ("crates/proxy-sim", &["dps-emulator", "proxy-core", "rate-control"]),
    ("crates/proxy-server", &["dps-emulator", "proxy-core", "rate-control", "store-postgresql", "storm-sim"]),
    ("crates/postgresql-cluster", &[]),
    ("tests", &["dps-emulator", "postgresql-cluster"]),
];

/// The layers of a crate, highest first: a module imports from its own layer and from those below. What is not named may be imported by all, and
/// imports from the lowest layer only.
const LAYERS: [(&str, &[&[&str]]); 3] = [
    (
        "proxy-core",
        &[
            &["replica"],
            &["gateway"],
            &["use_cases"],
            &["owner"],
            &["joining"],
            &["records"],
            &["base", "line_owner"],
            &["feed", "ownership", "supervise", "waiters"],
            &["attestation", "device", "line", "registration", "store", "upstream"],
        ],
    ),
    (
        "proxy-server",
        &[
            &["cli"],
            &["lifecycle"],
            &["planes"],
            &["http"],
            &["listener", "reload"],
            &["state"],
            &["config", "metrics", "tls"],
        ],
    ),
    (
        "dps-emulator",
        &[
            &["cli"],
            &["server"],
            &["device_api"],
            &["allocation", "enrollment", "journal", "operation", "throttle"],
            &["config", "faults", "sas", "wire"],
        ],
    ),
];

/// Folders that few may know, whatever their layer: whoever else needs something of lines asks their owner by its interface, so that it may be
/// far away.
const KNOWN_TO_FEW: [(&str, &str, &[&str]); 1] = [("proxy-core", "owner", &["gateway", "use_cases/reload"])];

/// The edges of crates that are pure otherwise: only what begins with one of these waits, spawns or speaks to the world.
const EDGES: [(&str, &[&str]); 2] = [
    ("rate-control", &[]),
    (
        "proxy-core",
        &[
            "base",
            "feed",
            "gateway",
            "joining",
            "owner",
            "ownership",
            "records",
            "replica",
            "store",
            "supervise",
            "upstream/connections",
            "upstream/https",
            "use_cases",
            "waiters",
        ],
    ),
];

/// Where the core may say how something is written as data: what is stored, and what it is made of. Everything that it hands out is converted
/// by the types of `proxy-server/src/api`.
const STORED: [&str; 6] = ["device", "feed", "ids", "place", "recovered_limits", "store"];

/// Words that pure code has no use for.
const IMPURE: [&str; 7] = ["async", "await", "tokio", "reqwest", "sled", "println", "eprintln"];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 10] =
    ["util", "utils", "utilities", "helper", "helpers", "common", "misc", "stuff", "tools", "lib2"];

/// What is written for a day, and what only one machine knows.
const FORBIDDEN: [&str; 6] = ["TODO", "FIXME", "XXX", "HACK", "/root/", "/home/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All files below `folder` that `wanted` accepts, by their paths from there.
fn files(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            let hidden = name.rsplit('/').next().is_some_and(|last| last.starts_with('.') || last == "target");
            if path.is_dir() && !hidden && !name.ends_with("node_modules") {
                folders.push(path);
            } else if path.is_file() && wanted(&name) {
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(String, String)> {
    files(&root().join("crates"), |name| name.ends_with(".rs") && name.contains("/src/"))
}

fn assert_none(broken: &[String], rule: &str) {
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

#[test]
fn no_source_file_is_longer_than_can_be_reviewed_in_one_sitting() {
    let most = |name: &str| LONGER.iter().find(|(file, _)| *file == name).map_or(LINES_MAX, |(_, most)| *most);
    let too_long: Vec<String> = sources()
        .iter()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(name, lines)| *lines > most(name))
        .map(|(name, lines)| format!("{name} has {lines} lines, at most {} are allowed", most(name)))
        .collect();
    assert_none(&too_long, "split what is too long");
}

#[test]
fn crates_depend_on_each_other_one_way() {
    let mut broken = Vec::new();
    let known: BTreeSet<&str> = CRATES.iter().map(|(folder, _)| *folder).collect();
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let name = format!("crates/{}", entry.unwrap().file_name().to_str().unwrap());
        if !known.contains(name.as_str()) {
            broken.push(format!("{name} is in no row of the table"));
        }
    }
    for (folder, allowed) in CRATES {
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let section = manifest.split("\n[").find(|section| section.starts_with("dependencies]")).unwrap_or_default();
        for line in section.lines() {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if known.contains(format!("crates/{name}").as_str()) && !allowed.contains(&name) {
                broken.push(format!("{folder} depends on {name}"));
            }
        }
    }
    assert_none(&broken, "crates depend on each other one way");
}

#[test]
fn folders_import_from_their_own_layer_and_from_those_below() {
    let mut broken = Vec::new();
    for (name, layers) in LAYERS {
        let tree = Tree::read(&root().join("crates").join(name).join("src"));
        let layer = |module: &str| layers.iter().position(|layer| layer.contains(&module));
        let siblings = tree.siblings().remove(&Vec::new()).unwrap_or_default();
        for (from, imported) in &siblings {
            for (to, (importer, target)) in imported {
                if layer(to).is_some_and(|to| layer(from).unwrap_or(layers.len() - 1) > to) {
                    broken.push(format!("{name}: {importer} imports {target}"));
                }
            }
        }
    }
    assert_none(&broken, "nothing imports from a layer above its own");
}

#[test]
fn folders_that_few_may_know_are_known_to_no_other() {
    let mut broken = Vec::new();
    for (name, folder, few) in KNOWN_TO_FEW {
        let tree = Tree::read(&root().join("crates").join(name).join("src"));
        let of_folder = |module: &[String]| module.first().is_some_and(|first| first == folder);
        for (module, imports) in tree.imports.iter().filter(|(module, _)| !of_folder(module)) {
            let knows = imports.iter().any(|import| {
                let within = [&module[..], &import.inside[..]].concat();
                tree.absolute(&within, &import.path).is_some_and(|path| of_folder(&path))
            });
            if knows && !few.contains(&module.join("/").as_str()) {
                broken.push(format!("{name}: {} imports {folder}", tree.files[module]));
            }
        }
    }
    assert_none(&broken, "ask by the interface");
}

#[test]
fn pure_code_neither_waits_nor_speaks_to_the_world() {
    let mut broken = Vec::new();
    for (name, edges) in EDGES {
        let pure = |file: &str| {
            let module = file.trim_end_matches(".rs");
            !edges.iter().any(|edge| module == *edge || module.starts_with(&format!("{edge}/")))
        };
        for (file, text) in
            files(&root().join("crates").join(name).join("src"), |file| file.ends_with(".rs") && pure(file))
        {
            let said: BTreeSet<String> =
                tokens(&text).into_iter().filter(|token| IMPURE.contains(&token.as_str())).collect();
            broken.extend(said.into_iter().map(|word| format!("{name}/src/{file} says `{word}`")));
        }
    }
    assert_none(&broken, "what waits, spawns or speaks to the world is in one of EDGES");
}

#[test]
fn the_core_serialises_what_it_stores_and_nothing_else() {
    let stored = |file: &str| file.trim_end_matches(".rs").split('/').any(|part| STORED.contains(&part));
    let sources = files(&root().join("crates/proxy-core/src"), |file| file.ends_with(".rs") && !stored(file));
    let says = |text: &str| tokens(text).iter().any(|token| token == "Serialize");
    let broken: Vec<String> = sources.into_iter().filter(|(_, text)| says(text)).map(|(name, _)| name).collect();
    assert_none(&broken, "what goes over the wire has a type of its own in `proxy-server/src/api`");
}

#[test]
fn names_of_files_and_folders_say_what_is_inside() {
    let says_nothing = |name: &str| {
        let mut parts = name.trim_end_matches(".rs").split('/');
        parts.any(|part| EMPTY_NAMES.contains(&part))
    };
    let empty: Vec<String> = sources().into_iter().map(|(name, _)| name).filter(|name| says_nothing(name)).collect();
    assert_none(&empty, "a name says what is inside");
}

#[test]
fn nothing_is_left_for_later_and_nothing_depends_on_one_machine() {
    let told = |name: &str| [".rs", ".md", ".toml", ".yaml"].iter().any(|end| name.ends_with(end));
    let this_file = "tests/it/tree/rules.rs";
    let mut broken = Vec::new();
    for (name, text) in files(&root(), |name| told(name) && name != this_file) {
        for (number, line) in text.lines().enumerate() {
            let said = FORBIDDEN.iter().filter(|word| line.contains(**word));
            broken.extend(said.map(|word| format!("{name}:{}: {word}", number + 1)));
        }
    }
    assert_none(&broken, "do it, or leave it");
}
