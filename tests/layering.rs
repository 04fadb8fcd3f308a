//! The floors hold: a module imports only modules that `src/lib.rs` lists above
//! it, only the wire knows Pingora, and judgement touches nothing of the
//! machine. What a comment links to does not count.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn a_module_imports_only_modules_listed_above_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let floors = floors(&read(&source.join("lib.rs")));
    assert!(
        floors.len() > 10,
        "the list of modules was not found: {floors:?}"
    );
    let mut violations = Vec::new();
    let mut imports = 0;
    for (floor, module) in floors.iter().enumerate() {
        let files = files_of(&source, module);
        assert!(!files.is_empty(), "module {module} has no file");
        for file in files {
            for used in used_modules(&read(&file)) {
                imports += 1;
                match floors.iter().position(|name| *name == used) {
                    Some(other) if other <= floor => {}
                    Some(_) => violations.push(format!(
                        "{}: {module} may not import {used}, which src/lib.rs lists below it",
                        file.display()
                    )),
                    None => violations.push(format!(
                        "{}: crate::{used} is no module that src/lib.rs lists",
                        file.display()
                    )),
                }
            }
        }
    }
    assert!(imports > 50, "only {imports} imports were found");
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn every_way_to_write_an_import_is_seen() {
    for (case, text, expected) in [
        ("one", "use crate::policy::PolicySet;", &["policy"][..]),
        (
            "a group",
            "use crate::{audit, gate::{Gate, ports}, limit::*};",
            &["audit", "gate", "limit"],
        ),
        (
            "a group over lines",
            "use crate::{\n    audit,\n    gate::{\n        Gate,\n    },\n};",
            &["audit", "gate"],
        ),
        (
            "in an expression",
            "let x = crate::config::parse(1);",
            &["config"],
        ),
        ("a visibility", "pub(in crate::proxy) fn a() {}", &["proxy"]),
        ("with blanks", "use crate :: gate ;", &["gate"]),
        ("a comment", "// crate::gate\n/// [`crate::proxy`]", &[]),
        ("behind code", "let a = 1; // crate::gate", &[]),
        (
            "another path that ends so",
            "use mycrate::gate; pub(crate) fn a() {}",
            &[],
        ),
    ] {
        let expected: BTreeSet<String> = expected.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(used_modules(text), expected, "{case}");
    }
}

/// The modules of `src/lib.rs`, in order.
/// The floors of words and judgement, and what none of them may name: runtimes,
/// sockets, files, and the time.
const PURE: [&str; 7] = [
    "egress", "limit", "identity", "policy", "audit", "config", "gate",
];
const MACHINE: [&str; 15] = [
    "tokio::",
    "pingora",
    "hickory_resolver::",
    "axum::",
    "nix::",
    "notify::",
    "std::fs",
    "std::process",
    "std::thread",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "SystemTime::now",
    "Instant::now",
];

#[test]
fn only_the_wire_knows_pingora() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let modules = floors(&read(&source.join("lib.rs")));
    let knows = |module: &String| {
        files_of(&source, module)
            .iter()
            .any(|file| !named(&read(file), &["pingora::", "pingora_proxy::"]).is_empty())
    };
    let knowing: Vec<_> = modules.iter().filter(|module| knows(module)).collect();
    // `server` may, and so far need not.
    assert_eq!(knowing, ["proxy"]);
}

#[test]
fn judgement_touches_nothing_of_the_machine() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut violations = Vec::new();
    for module in PURE {
        let files = files_of(&source, module);
        assert!(!files.is_empty(), "module {module} has no file");
        // What only tests do is their own affair.
        let own = files.iter().filter(|file| !is_of_tests(file));
        for file in own {
            for name in named(&read(file), &MACHINE) {
                violations.push(format!("{}: {name}", file.display()));
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn what_a_floor_may_not_name_is_seen() {
    for (case, text, expected) in [
        ("an import", "use tokio::time::sleep;", &["tokio::"][..]),
        (
            "in an expression",
            "let a = std::fs::read(b);",
            &["std::fs"],
        ),
        (
            "the time",
            "let now = SystemTime::now();",
            &["SystemTime::now"],
        ),
        (
            "Pingora by another name",
            "use pingora_core::x;",
            &["pingora"],
        ),
        (
            "a comment",
            "// No tokio:: here.\n/// Nor [`tokio::time`].",
            &[],
        ),
        ("another crate", "use mytokio::x;", &[]),
        (
            "a test",
            "fn a() {}\n#[cfg(test)]\nmod tests { use std::fs; }",
            &[],
        ),
        (
            "before a test",
            "use std::fs;\n#[cfg(test)]\nmod tests {}",
            &["std::fs"],
        ),
    ] {
        assert_eq!(named(text, &MACHINE), expected, "{case}");
    }
}

/// `tests.rs`, or a file in a folder `tests` of the module's.
fn is_of_tests(file: &Path) -> bool {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let inside = file.strip_prefix(&source).expect("a file of the library");
    inside.ends_with("tests.rs") || inside.iter().any(|folder| folder == "tests")
}

/// Which of these names stand in code, as words, before its tests.
fn named<'n>(text: &str, names: &[&'n str]) -> Vec<&'n str> {
    let code: String = text
        .split("#[cfg(test)]\nmod tests")
        .take(1)
        .flat_map(str::lines)
        .filter_map(|line| line.split("//").next())
        .flat_map(|line| line.chars().chain(['\n']))
        .collect();
    let part_of_a_word = |c: char| c.is_alphanumeric() || c == '_';
    let stands = |name: &&&str| {
        code.match_indices(**name)
            .any(|(at, _)| !code[..at].chars().next_back().is_some_and(part_of_a_word))
    };
    names.iter().filter(stands).copied().collect()
}

fn floors(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_suffix(';'))
        .filter_map(|line| line.strip_prefix("pub mod ").or(line.strip_prefix("mod ")))
        .map(str::to_owned)
        .collect()
}

/// The files of a module, submodules included.
fn files_of(source: &Path, module: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = [source.join(format!("{module}.rs"))]
        .into_iter()
        .filter(|file| file.is_file())
        .collect();
    let mut folders = vec![source.join(module)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The first names behind every `crate::` in code.
fn used_modules(text: &str) -> BTreeSet<String> {
    // A string that holds `//` loses its rest, which is no import.
    let code: String = text
        .lines()
        .flat_map(|line| line.split("//").next())
        .flat_map(|line| line.chars().chain([' ']))
        .collect();
    let mut found = BTreeSet::new();
    let mut rest = code.as_str();
    while let Some(at) = rest.find("crate") {
        let before = rest[..at].chars().next_back();
        rest = &rest[at + "crate".len()..];
        let part_of_a_word = |c: char| c.is_alphanumeric() || c == '_';
        if before.is_some_and(part_of_a_word) {
            continue;
        }
        let Some(path) = rest.trim_start().strip_prefix("::") else {
            continue;
        };
        let path = path.trim_start();
        match path.strip_prefix('{') {
            Some(group) => found.extend(first_names(group)),
            None => found.extend(first_name(path)),
        }
    }
    found
}

/// The first name of each member of a group, whose brace is already open.
fn first_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut depth, mut begin) = (1, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            names.extend(first_name(group[begin..at].trim_start()));
            begin = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn first_name(path: &str) -> Option<String> {
    let name: String = path
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    (!name.is_empty()).then_some(name)
}
