//! The sources of every crate point one way: no files import each other in a circle, and no folders do.
//!
//! A module and its own children may know each other. Beside that, what is in a circle can be understood, tested and moved only as a
//! whole. What else holds for the tree is in [`rules`].

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

mod rules;
mod source;

use source::{Import, Source};

/// A module that has a file, by its path from the crate's root.
type Module = Vec<String>;

/// Which child of a module imports which other one, with the files that do.
type Siblings = BTreeMap<String, BTreeMap<String, (String, String)>>;

/// How often an import is followed through what other modules import.
const REEXPORTS_MAX: usize = 8;

/// The sources of one crate.
#[derive(Default)]
struct Tree {
    files: BTreeMap<Module, String>,
    imports: BTreeMap<Module, Vec<Import>>,
}

impl Tree {
    /// Takes files by their names from the crate's root. Those that are for tests only are left out.
    fn of(files: impl IntoIterator<Item = (String, String)>) -> Self {
        let (mut tree, mut tests) = (Self::default(), BTreeSet::<Module>::new());
        for (file, text) in files {
            let module = module_of(&file);
            let Source { imports, test_modules } = Source::read(&text);
            tests.extend(test_modules.into_iter().map(|test| [&module[..], &[test]].concat()));
            tree.imports.entry(module.clone()).or_default().extend(imports);
            tree.files.insert(module, file);
        }
        let is_test = |module: &Module| (1..=module.len()).any(|length| tests.contains(&module[..length]));
        tree.files.retain(|module, _| !is_test(module));
        tree.imports.retain(|module, _| !is_test(module));
        tree
    }

    /// The sources below this folder.
    fn read(root: &Path) -> Self {
        let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let file = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                    files.push((file, std::fs::read_to_string(&path).unwrap()));
                }
            }
        }
        Self::of(files)
    }

    /// A path from the crate's root, if it leads into this crate.
    fn absolute(&self, within: &[String], path: &[String]) -> Option<Vec<String>> {
        let first = path.first()?.as_str();
        let ups = path.iter().take_while(|segment| *segment == "super").count();
        match first {
            "crate" => Some(path[1..].to_vec()),
            "self" => Some([within, &path[1..]].concat()),
            "super" => Some([within.get(..within.len().checked_sub(ups)?)?, &path[ups..]].concat()),
            _ => {
                let child = [within, &path[..1]].concat();
                self.files.contains_key(&child).then(|| [within, path].concat())
            }
        }
    }

    /// The module with a file that a path leads to, also if another one passes it on.
    fn target(&self, path: &[String], follow: usize) -> Option<Module> {
        let length = (0..=path.len()).rev().find(|length| self.files.contains_key(&path[..*length]))?;
        let (module, rest) = path.split_at(length);
        let passed_on = rest.first().filter(|_| follow > 0).and_then(|name| {
            let is_it = |import: &&Import| import.inside.is_empty() && import.name.as_ref() == Some(name);
            let import = self.imports.get(module)?.iter().find(is_it)?;
            let further = [&self.absolute(module, &import.path)?[..], &rest[1..]].concat();
            self.target(&further, follow - 1)
        });
        passed_on.or_else(|| Some(module.to_vec()))
    }

    /// Who imports whom among the children of each module. Whatever is below a child counts as it.
    fn siblings(&self) -> BTreeMap<Module, Siblings> {
        let mut all: BTreeMap<Module, Siblings> = BTreeMap::new();
        for (module, imports) in &self.imports {
            for import in imports {
                let within = [&module[..], &import.inside[..]].concat();
                let Some(path) = self.absolute(&within, &import.path) else { continue };
                let Some(target) = self.target(&path, REEXPORTS_MAX) else { continue };
                let parent = module.iter().zip(&target).take_while(|(one, other)| one == other).count();
                // One is below the other, or they are the same.
                let (Some(from), Some(to)) = (module.get(parent), target.get(parent)) else { continue };
                let siblings = all.entry(module[..parent].to_vec()).or_default().entry(from.clone()).or_default();
                let files = (self.files[module].clone(), self.files[&target].clone());
                siblings.entry(to.clone()).or_insert(files);
            }
        }
        all
    }

    /// Circles of imports, at most one below each module, each with its files.
    fn circles(&self) -> Vec<String> {
        let describe = |siblings: &Siblings| {
            let circle = siblings.keys().filter_map(|start| way_back(siblings, start)).min_by_key(Vec::len)?;
            let next = circle.iter().cycle().skip(1);
            let steps = circle.iter().zip(next).map(|(from, to)| {
                let (importer, imported) = &siblings[*from][*to];
                format!("{importer} imports {imported}")
            });
            Some(steps.collect::<Vec<_>>().join(", "))
        };
        self.siblings().values().filter_map(describe).collect()
    }
}

fn module_of(file: &str) -> Module {
    let mut module: Module = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    let is_root = module.len() == 1 && matches!(module[0].as_str(), "lib" | "main");
    if is_root || module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

/// The shortest way that leads from `start` back to it.
fn way_back<'a>(siblings: &'a Siblings, start: &'a str) -> Option<Vec<&'a str>> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut next = VecDeque::from([start]);
    while let Some(here) = next.pop_front() {
        for to in siblings.get(here).into_iter().flat_map(BTreeMap::keys) {
            if to == start {
                let mut way: Vec<&str> = std::iter::successors(Some(here), |at| came_from.get(at).copied()).collect();
                way.reverse();
                return Some(way);
            }
            if let Entry::Vacant(entry) = came_from.entry(to) {
                entry.insert(here);
                next.push_back(to);
            }
        }
    }
    None
}

#[test]
fn no_files_or_folders_of_a_crate_import_each_other_in_a_circle() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let mut circles = Vec::new();
    for entry in std::fs::read_dir(crates).unwrap() {
        let entry = entry.unwrap();
        let tree = Tree::read(&entry.path().join("src"));
        assert!(!tree.files.is_empty(), "{} has sources", entry.path().display());
        let name = entry.file_name().to_string_lossy().into_owned();
        circles.extend(tree.circles().into_iter().map(|circle| format!("{name}: {circle}")));
    }
    assert!(circles.is_empty(), "move what both need into a file of its own:\n{}", circles.join("\n"));
}

/// The circles of a crate of these files.
fn circles(files: &[(&str, &str)]) -> Vec<String> {
    Tree::of(files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned()))).circles()
}

#[test]
fn two_files_that_import_each_other_are_told_by_name() {
    let one = ("one.rs", "use std::fmt;\nuse crate::{two::{self, B as Other}};");
    for two in ["use super::one::A;", "fn f<'a>(x: &'a str) -> char { crate::one::f(x, '\\''); '\"' }"] {
        let found = circles(&[("lib.rs", "mod one; mod two;"), one, ("two.rs", two)]);
        assert_eq!(found, ["one.rs imports two.rs, two.rs imports one.rs"], "{two}");
    }
    assert_eq!(circles(&[one, ("two.rs", "fn f() {}")]), [""; 0]);
}

#[test]
fn a_module_and_its_children_may_know_each_other_but_its_children_may_not() {
    let parent = ("a.rs", "mod x;\nmod y;\npub use x::X;\nuse y::Y;");
    let x = ("a/x.rs", "use super::Z;");
    assert_eq!(circles(&[parent, x, ("a/y.rs", "use super::super::a::X;")]), [""; 0]);
    // That the parent passes it on hides nothing.
    let found = circles(&[parent, ("a/x.rs", "use super::y::Y;"), ("a/y.rs", "use super::X;")]);
    assert_eq!(found, ["a/x.rs imports a/y.rs, a/y.rs imports a/x.rs"]);
}

#[test]
fn folders_that_import_each_other_are_a_circle_whichever_of_their_files_do() {
    let files = [
        ("a.rs", ""),
        ("a/x.rs", "use crate::b::B;"),
        ("a/y.rs", ""),
        ("b/mod.rs", "mod inner { use super::super::c::C; }"),
        ("c.rs", "fn f() -> impl Fn() + use<> { crate::a::y::g }"),
    ];
    assert_eq!(circles(&files), ["a/x.rs imports b/mod.rs, b/mod.rs imports c.rs, c.rs imports a/y.rs"]);
}

#[test]
fn comments_texts_and_tests_import_nothing() {
    let one = ("one.rs", "use crate::two;\n#[cfg(test)]\nmod tests;");
    let two = "// use crate::one;\n/* /* */ use crate::one; */\nconst A: &str = \"use crate::one\\\";\";\n\
        const B: &str = r#\"use \"crate::one;\"#;\n#[cfg(test)]\nuse crate::{one};\n#[cfg(test)]\nmod tests { use crate::one; }";
    assert_eq!(circles(&[one, ("two.rs", two), ("one/tests.rs", "use crate::two;"), ("one/tests/x.rs", "")]), [""; 0]);
    let behind = format!("{two}\nfn f() {{ crate::one::g() }}");
    assert_eq!(circles(&[one, ("two.rs", behind.as_str())]).len(), 1);
}
