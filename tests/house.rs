//! The house rules that the compiler does not know: who may use whom, and who may name what.
//!
//! * **Floors.** A top-level module uses only modules on lower floors; neighbours on one floor do not meet. `lib.rs`, which
//!   puts the public list together, may name them all.
//! * **Doors.** Some libraries and parts of libraries are named in one room only: the consensus library, the database, the
//!   codec; time, tasks, threads and chance.
//! * Every file belongs to a module of the table.
//!
//! What counts is code: comments, doc tests and strings do not. Code under `cfg(test)` or feature `sim`, and the files of
//! modules declared so, may look upwards and name time, threads and chance, since it is built from the outside in; the
//! doors of the three libraries hold there too.
//!
//! It reads tokens and not types. `use` declarations are followed, renamed or not; what a macro makes up is not seen.

#[path = "house/lexer.rs"]
mod lexer;
#[path = "house/paths.rs"]
mod paths;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use lexer::lex;
use paths::{Found, read};

/// Each top-level module and the floor it stands on.
const FLOORS: &[(&str, u8)] = &[
    ("sim", 9),
    // Whole clusters under test, and doors for the benchmarks: they stand on everything and nothing stands on them.
    ("cluster_tests", 9),
    ("internals", 9),
    ("fuzz", 9),
    ("recipes", 8),
    ("api", 7),
    ("node", 6),
    ("raft", 5),
    ("storage", 4),
    ("transport", 3),
    ("state_machine", 3),
    ("watch_hub", 3),
    ("format", 2),
    ("codec", 1),
    ("command", 1),
    ("config", 1),
    ("rt", 0),
    ("choices", 0),
    ("error", 0),
    ("types", 0),
];

/// Neighbours that meet: errors carry identifiers, and identifiers know nothing of errors.
const MEET: &[(&str, &str)] = &[("error", "types")];

/// What only some modules may name.
struct Door {
    paths: &'static [&'static str],
    rooms: &'static [&'static str],
    /// Whether code that is only built for tests may name it anywhere.
    open_to_tests: bool,
}

const DOORS: &[Door] = &[
    Door { paths: &["openraft", "openraft_macros"], rooms: &["raft"], open_to_tests: false },
    Door { paths: &["openraft_rt", "openraft_rt_tokio"], rooms: &["raft", "rt"], open_to_tests: false },
    Door { paths: &["redb"], rooms: &["storage"], open_to_tests: false },
    Door { paths: &["bincode"], rooms: &["codec", "format"], open_to_tests: false },
    Door {
        paths: &[
            "tokio::time",
            "tokio::spawn",
            "tokio::task",
            "tokio::runtime",
            "std::thread",
            "std::time::Instant",
            "std::time::SystemTime",
            "std::time::UNIX_EPOCH",
            "rand",
            "rustix::time",
            "clippy::disallowed_methods",
            "clippy::disallowed_types",
        ],
        rooms: &["rt"],
        open_to_tests: true,
    },
    Door { paths: &["rustix"], rooms: &["rt", "storage"], open_to_tests: true },
    // It wakes its receivers in random order: rt::watch does not.
    Door { paths: &["tokio::sync::watch"], rooms: &[], open_to_tests: true },
];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// Checks sources, given as paths below the repository and their text.
fn check(sources: &[(String, String)]) -> Vec<Violation> {
    let files: Vec<_> = sources.iter().map(|(path, text)| (path, module_of(path), lex(text))).collect();
    let files: Vec<_> = files.iter().map(|(path, module, tokens)| (path, module, read(module, tokens))).collect();
    // A file is test code as a whole if it, or a module above it, is declared so in another file.
    let test_modules: BTreeSet<&Vec<String>> = files.iter().flat_map(|(.., found)| &found.test_modules).collect();
    let mut violations = Vec::new();
    for (path, module, found) in &files {
        let test_file = (1..=module.len()).any(|depth| test_modules.contains(&module[..depth].to_vec()));
        let complaints = check_file(module, found, test_file);
        violations.extend(complaints.into_iter().map(|(line, what)| Violation { file: path.to_string(), line, what }));
    }
    violations.sort();
    violations.dedup();
    violations
}

fn check_file(module: &[String], found: &Found, test_file: bool) -> Vec<(usize, String)> {
    let own = module.first().map(String::as_str);
    let mut complaints = Vec::new();
    if let Some(own) = own
        && floor(own).is_none()
    {
        complaints.push((1, format!("the module {own} has no floor: give it one in the design and in {}", file!())));
        return complaints;
    }
    for path in &found.paths {
        let in_test = test_file || path.in_test;
        let complaint = door_complaint(own, &path.segments, path.glob, in_test).or_else(|| match own {
            Some(own) if !in_test => floor_complaint(own, &path.segments),
            _ => None,
        });
        complaints.extend(complaint.map(|what| (path.line, what)));
    }
    for select in &found.fair_selects {
        if !(test_file || select.in_test) {
            complaints.push((select.line, "select! without biased; polls in random order".to_owned()));
        }
    }
    complaints
}

/// Complains if a module of this crate is named that does not stand on a lower floor.
fn floor_complaint(own: &str, path: &[String]) -> Option<String> {
    let [root, used, ..] = path else { return None };
    if root != "crate" || used == own || MEET.contains(&(own, used)) {
        return None;
    }
    let Some(used_floor) = floor(used) else {
        return Some(format!("crate::{used} is not a module: name it where it lives"));
    };
    let own_floor = floor(own).expect("checked for the file");
    match used_floor.cmp(&own_floor) {
        std::cmp::Ordering::Less => None,
        std::cmp::Ordering::Equal => Some(format!("{own} and {used} share floor {own_floor} and must not meet")),
        std::cmp::Ordering::Greater => {
            Some(format!("{own} (floor {own_floor}) looks up to {used} (floor {used_floor})"))
        }
    }
}

/// Complains if something is named, or could be named through a glob, that is behind another module's door.
fn door_complaint(own: Option<&str>, path: &[String], glob: bool, in_test: bool) -> Option<String> {
    let open = |door: &Door| in_test && door.open_to_tests || own.is_some_and(|own| door.rooms.contains(&own));
    for door in DOORS.iter().filter(|door| !open(door)) {
        for guarded in door.paths {
            let guarded: Vec<&str> = guarded.split("::").collect();
            let common = guarded.iter().zip(path).take_while(|(a, b)| a == b).count();
            if common == guarded.len() || (glob && common > 0 && common == path.len()) {
                let rooms = if door.rooms.is_empty() { "nowhere".into() } else { door.rooms.join(" and ") };
                return Some(format!("{} is named (allowed: {rooms})", guarded.join("::")));
            }
        }
    }
    None
}

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// `src/a/b.rs` and `src/a/b/mod.rs` are module `a::b`; `src/lib.rs` is the root.
fn module_of(path: &str) -> Vec<String> {
    let path = path.strip_prefix("src/").expect("a path below src/");
    let mut module: Vec<String> = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    let last = module.last().expect("split gives at least one part");
    if last == "mod" || (module.len() == 1 && last == "lib") {
        module.pop();
    }
    module
}

/// Every Rust file below `src/`, in a fixed order.
fn sources() -> Vec<(String, String)> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<(String, String)>) {
        let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(root, &path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    walk(root, &root.join("src"), &mut found);
    found
}

#[test]
fn every_module_uses_only_lower_floors_and_its_own_doors() {
    let sources = sources();
    // That nothing was found must not be because nothing was read.
    let text_of = |name: &str| &sources.iter().find(|(path, _)| path == name).expect("it is there").1;
    let seen = read(&module_of("src/rt/consensus.rs"), &lex(text_of("src/rt/consensus.rs")));
    assert!(seen.paths.iter().any(|path| path.segments[0] == "openraft_rt_tokio"), "{seen:?}");

    let violations = check(&sources);
    violations.iter().for_each(|violation| println!("{violation}"));
    assert!(violations.is_empty(), "{} violations of the house rules, see above", violations.len());
}

/// What the checker says of one file with this text, without the path.
fn complaints(path: &str, text: &str) -> Vec<String> {
    let strip = |violation: Violation| violation.to_string().split_off(path.len() + 1);
    check(&[(path.to_owned(), text.to_owned())]).into_iter().map(strip).collect()
}

#[test]
fn a_look_upwards_is_seen_however_it_is_written() {
    let up = "storage (floor 4) looks up to raft (floor 5)";
    for (line, text) in [
        (1, "use crate::raft::Node;"),
        (1, "use crate::{types::NodeId, raft};"),
        (2, "use crate::{\n    raft::{a, b},\n    types,\n};\nuse std::io;"),
        (1, "fn f() { crate::raft::run() }"),
        (1, "fn f(x: &crate::raft::Node) {}"),
        (1, "pub(crate) use crate::raft as below;"),
        (1, "use super::super::raft;"),
        (1, "mod inner { use super::super::super::raft::Node; }"),
        (1, "macro_rules! m { () => { $crate::raft::x() } }"),
        (2, "#[cfg(not(test))]\nuse crate::raft;"),
        (3, "#[cfg(test)]\nuse crate::node;\nuse crate::raft;"),
        (2, "#[cfg(test)] mod tests { use crate::node; }\nfn f() { crate::raft::x() }"),
        (3, "struct S {\n #[cfg(test)] t: crate::node::T,\n r: crate::raft::R }"),
        (2, "const A: &str = \"/*\";\nuse crate::raft; // */"),
        (2, "const A: &str = r#\"\"//\"#; const B: char = '\"';\nuse crate::raft;"),
        (1, "fn f<'a>(x: &'a u8) { crate::raft::x() }"),
    ] {
        assert_eq!(complaints("src/storage/log.rs", text), [format!("{line}: {up}")], "{text}");
    }
}

#[test]
fn neighbours_on_one_floor_do_not_meet_and_unknown_names_are_asked_for() {
    let meet = complaints("src/transport/mod.rs", "use crate::state_machine::State;");
    assert_eq!(meet, ["1: transport and state_machine share floor 3 and must not meet"]);
    assert_eq!(
        complaints("src/types.rs", "use crate::error::E;"),
        ["1: types and error share floor 0 and must not meet"]
    );
    assert_eq!(complaints("src/error.rs", "use crate::types::T;"), [""; 0]);
    let root = complaints("src/node/mod.rs", "use crate::Revision;");
    assert_eq!(root, ["1: crate::Revision is not a module: name it where it lives"]);
    for path in ["src/helpers.rs", "src/helpers/mod.rs", "src/main.rs", "src/bin/tool.rs"] {
        let unknown = complaints(path, "");
        assert!(matches!(&unknown[..], [text] if text.contains("has no floor")), "{path}: {unknown:?}");
    }
}

#[test]
fn what_goes_down_or_is_not_code_is_no_violation() {
    let text = r###"
        //! [`crate::node`], use crate::node;
        /* use crate::raft; /* nested */ use redb; */
        /// ```
        /// use crate::api::Cluster;
        /// ```
        use std::{io, time::Duration};
        use super::log::Log;
        use crate::{format::wire::{self, Reader as R}, rt, types::*};
        pub(in crate::storage) const TEXT: &str = "use crate::raft;\" use crate::raft";
        const RAW: &[u8] = br##"crate::raft::x "# use redb;"##;
        const TICK: [char; 3] = ['"', '\'', '\\'];
        fn f() -> impl Sized + use<> { redb::open(); random.rand::<u8>(); x.time.spawn(); rt::sleep(1) }
        #[cfg(test)]
        mod tests {
            use crate::node::Node;
            fn t() { std::thread::spawn(|| tokio::time::pause()); tokio::select! { x = y => {} } }
        }
    "###;
    assert_eq!(complaints("src/storage/log.rs", text), [""; 0]);
    assert_eq!(complaints("src/lib.rs", "pub use crate::api::Cluster; pub use node::X; use self::raft::Y;"), [""; 0]);
}

#[test]
fn every_door_is_watched_however_one_comes_through_it() {
    for (text, what) in [
        ("use openraft::Raft;", "openraft is named (allowed: raft)"),
        ("extern crate openraft as o;", "openraft is named (allowed: raft)"),
        ("type Rt = openraft_rt_tokio::TokioRuntime;", "openraft_rt_tokio is named (allowed: raft and rt)"),
        ("fn f() -> redb::Error { todo!() }", "redb is named (allowed: storage)"),
        ("use ::redb::Database;", "redb is named (allowed: storage)"),
        ("use bincode::config;", "bincode is named (allowed: codec and format)"),
        ("fn f() { tokio::spawn(g()); }", "tokio::spawn is named (allowed: rt)"),
        ("use tokio::{sync::mpsc, time::sleep};", "tokio::time is named (allowed: rt)"),
        ("use tokio::task::JoinHandle;", "tokio::task is named (allowed: rt)"),
        ("use tokio as t; fn f() { t::spawn(g()); }", "tokio::spawn is named (allowed: rt)"),
        ("use tokio::*;", "tokio::time is named (allowed: rt)"),
        ("use std::time; fn f() { time::SystemTime::now(); }", "std::time::SystemTime is named (allowed: rt)"),
        ("use std::{time::{self as t}}; fn f() { t::Instant::now(); }", "std::time::Instant is named (allowed: rt)"),
        ("use std::time::{Duration, Instant};", "std::time::Instant is named (allowed: rt)"),
        ("fn f() { std::thread::sleep(d) }", "std::thread is named (allowed: rt)"),
        ("fn f() { rand::random() }", "rand is named (allowed: rt)"),
        ("use tokio::sync; fn f() { sync::watch::channel(0); }", "tokio::sync::watch is named (allowed: nowhere)"),
        ("#![allow(clippy::disallowed_methods)]", "clippy::disallowed_methods is named (allowed: rt)"),
        ("fn f() { tokio::select! { a = b => {} } }", "select! without biased; polls in random order"),
    ] {
        for room in ["src/node/mod.rs", "src/lib.rs"] {
            assert_eq!(complaints(room, text), [format!("1: {what}")], "{text}");
        }
    }
    let open = |path: &str, text: &str| assert_eq!(complaints(path, text), [""; 0], "{path}: {text}");
    open("src/raft/types.rs", "use openraft::Raft; use openraft_rt::Instant;");
    open("src/storage/state_engine.rs", "use redb::Database;");
    open("src/codec.rs", "use bincode::config;");
    open("src/rt/clock.rs", "use std::time::SystemTime; fn f() { tokio::time::sleep(d); rand::random() }");
    open("src/node/mod.rs", "fn f() { tokio::select! { biased; a = b => {} } }");
    let watch = complaints("src/rt/mod.rs", "use tokio::sync::watch;");
    assert_eq!(watch, ["1: tokio::sync::watch is named (allowed: nowhere)"]);
}

#[test]
fn test_code_may_look_up_and_name_time_but_not_the_libraries() {
    for text in [
        "#[cfg(test)] mod tests { use crate::node; use std::thread; use redb::Database; }",
        "#[allow(unused)] #[cfg(any(test, feature = \"sim\"))] fn f() { crate::node::x(); rand::rng(); redb::open() }",
        "#[cfg(all(unix, feature = \"sim\"))]\n#[derive(Debug)] struct S(crate::node::T, redb::T);",
        "#![cfg(test)]\nuse crate::node; use redb;",
    ] {
        let line = 1 + text.matches('\n').count();
        assert_eq!(
            complaints("src/format/mod.rs", text),
            [format!("{line}: redb is named (allowed: storage)")],
            "{text}"
        );
    }
}

#[test]
fn a_file_is_test_code_if_it_is_declared_so_in_another() {
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let child = file("src/format/golden/bytes.rs", "use crate::node::Node;");
    let declared = |cfg: &str| vec![file("src/format/mod.rs", &format!("{cfg} mod golden;")), child.clone()];
    assert_eq!(check(&declared("#[cfg(test)]")), []);
    assert_eq!(check(&declared("#[cfg(feature = \"sim\")] pub(crate)")), []);
    let found = check(&declared(""));
    assert!(matches!(&found[..], [one] if one.what == "format (floor 2) looks up to node (floor 6)"), "{found:?}");
}
