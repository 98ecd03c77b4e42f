//! Reads the source as text and holds it to the rules that no compiler checks: which module may
//! name which, where `unsafe` and the file system are, how long lines and functions are, and what
//! must not be left behind. Each message names the replacement; each rule is shown to bite below.

mod text;

use std::collections::BTreeSet;
use std::path::Path;
use text::{Code, named_after};

/// Which module of the crate may name which others. Down, never up, never sideways.
const LAYERS: &[(&str, &[&str])] = &[
    ("main", &["cli", "sys"]),
    ("lib", &[]),
    ("manual", &[]),
    ("defect", &[]),
    ("lease", &[]),
    (
        "cli",
        &[
            "app", "daemon", "audit", "fs", "volume", "package", "vault", "key", "storage",
            "format", "crypto", "sys",
        ],
    ),
    ("app", &["daemon", "audit", "fs", "package", "key", "sys"]),
    (
        "daemon",
        &["fuse", "audit", "fs", "volume", "sys", "key", "storage", "format", "lease", "crypto"],
    ),
    ("audit", &["key", "format", "crypto"]),
    ("fuse", &["fs", "sys"]),
    ("fs", &["volume", "package", "format"]),
    ("volume", &["defect", "epoch", "tree", "space", "key", "format", "crypto", "storage", "sys"]),
    ("package", &["format", "crypto", "storage", "sys"]),
    ("vault", &["audit", "key", "format", "crypto", "storage", "sys"]),
    ("epoch", &["defect", "tree", "space", "key", "format", "crypto", "storage", "sys"]),
    ("tree", &["format"]),
    ("space", &["defect", "format", "storage"]),
    ("key", &["format", "crypto", "storage", "sys"]),
    // For `Cipher` alone, which a configuration names.
    ("format", &["crypto"]),
    ("crypto", &["sys"]),
    ("storage", &["sys", "format"]),
    ("sys", &[]),
];
/// Who may name `std::fs`: the road to the disk, and those whose files are not a volume's.
const FILE_USERS: &[&str] =
    &["storage", "sys", "cli", "key", "daemon", "vault", "audit", "package", "app"];
const COLUMNS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;
/// Functions that are longer because they are one flat list: `("src/...rs", "name")`.
const LONG_FUNCTIONS: &[(&str, &str)] = &[
    ("src/fuse/wire/tests.rs", "golden"),
    ("tests/crash/applications.rs", "databases"),
    ("tests/crash/applications.rs", "trees"),
    ("tests/crash/scripts.rs", "contents"),
    ("tests/crash/scripts.rs", "sizes_and_holes"),
    ("tests/crash/scripts.rs", "names"),
    ("tests/crash/space.rs", "reuse"),
];
/// Put together here so that this file does not contain them.
const LEFTOVERS: &[&str] =
    &[concat!("FIX", "ME"), concat!("TO", "DO"), concat!("X", "XX"), concat!("to", "do!")];

#[test]
fn source_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for directory in ["src", "tests"] {
        collect(&root.join(directory), &mut paths);
    }
    assert!(paths.len() > 20, "the source was not found");
    let mut problems = Vec::new();
    for path in paths {
        let name = path.strip_prefix(root).expect("found under it").to_str().expect("ASCII names");
        let text = std::fs::read_to_string(&path).expect("source is readable");
        problems.extend(check(name, &text));
    }
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// The map of the source in README.md names every directory of `src`, and nothing else.
#[test]
fn readme_maps_the_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("README.md")).expect("README.md is readable");
    let entries = std::fs::read_dir(root.join("src")).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir());
    let directories: BTreeSet<String> = paths
        .map(|path| path.file_name().expect("it has one").to_str().expect("ASCII").to_owned())
        .collect();
    assert!(directories.len() > 5, "the source was not found");
    let problems = check_map(&text, &directories);
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// Contradictions between the lines of a README that begin a table's row with a directory of `src`,
/// and the directories that there are.
fn check_map(readme: &str, directories: &BTreeSet<String>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut mapped = BTreeSet::new();
    for (number, line) in (1..).zip(readme.lines()) {
        let Some(rest) = line.strip_prefix("| `src/") else { continue };
        let (name, description) = rest.split_once('`').unwrap_or((rest, ""));
        if !directories.contains(name) {
            problems.push(format!("README.md:{number}: there is no src/{name}; drop the line"));
        }
        if !mapped.insert(name.to_owned()) {
            problems.push(format!("README.md:{number}: src/{name} is there twice; drop one"));
        }
        if !description.contains(char::is_alphabetic) {
            problems.push(format!("README.md:{number}: say what src/{name} is"));
        }
    }
    let missing = directories.difference(&mapped);
    problems.extend(missing.map(|name| format!("README.md: add src/{name} to the source map")));
    problems
}

/// Each contradiction is said, and a map that is right passes.
#[test]
fn the_map_bites() {
    let directories = ["fs", "key"].map(str::to_owned).into();
    let right = "| Directory | What |\n| `src/fs` | files |\n| `src/key` | keys |\n";
    assert_eq!(check_map(right, &directories), Vec::<String>::new());
    let cases = [
        ("| `src/fs` | files |\n", "add src/key"),
        ("| `src/fs` | files |\n| `src/key` | keys |\n| `src/old` | gone |\n", "no src/old"),
        ("| `src/fs` | files |\n| `src/key` | keys |\n| `src/fs` | again |\n", "twice"),
        ("| `src/fs` | files |\n| `src/key` | |\n", "say what src/key is"),
    ];
    for (readme, expected) in cases {
        let problems = check_map(readme, &directories);
        assert!(
            problems.len() == 1 && problems[0].contains(expected),
            "{expected:?} is to be said of {readme:?}, not {problems:?}"
        );
    }
}

/// All Rust files under a directory.
fn collect(directory: &Path, paths: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
    paths.sort();
}

/// Every breach of a rule in one file, as `path:line: what, and what instead`.
fn check(path: &str, text: &str) -> Vec<String> {
    let code = Code::new(text);
    let mut problems = Vec::new();
    check_text(path, text, &mut problems);
    check_code(path, &code, &mut problems);
    check_functions(path, &code, &mut problems);
    if let Some(module) = module_of(path) {
        check_layer(path, module, &code, &mut problems);
        if !text.starts_with("//!") {
            problems.push(format!("{path}:1: begin with `//!` and what this file knows"));
        }
    }
    problems
}

/// The top-level module that a file under `src` belongs to.
fn module_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("src/")?;
    rest.split('/').next()?.split('.').next()
}

/// Rules on the raw text, comments and strings included.
fn check_text(path: &str, text: &str, problems: &mut Vec<String>) {
    for (number, line) in (1..).zip(text.lines()) {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX {
            let problem = format!("{columns} columns; break the line, {COLUMNS_MAX} fit");
            problems.push(format!("{path}:{number}: {problem}"));
        }
        for leftover in LEFTOVERS.iter().filter(|leftover| text::has_word(line, leftover)) {
            problems.push(format!("{path}:{number}: {leftover}; do it, or open an issue"));
        }
    }
}

/// Rules on the code, line by line.
fn check_code(path: &str, code: &Code, problems: &mut Vec<String>) {
    let is_test_file = path.starts_with("tests/") || path.ends_with("/tests.rs");
    for (number, line) in (1..).zip(code.text.lines()) {
        let mut say = |problem: &str| problems.push(format!("{path}:{number}: {problem}"));
        if text::has_word(line, "unsafe") && !path.starts_with("src/sys/") {
            say("`unsafe`; call a safe function in `src/sys` instead");
        }
        if text::has_word(line, "fuser") && path.starts_with("src/") {
            say("names `fuser`, which is for the benchmark; use `fuse::wire`");
        }
        if line.contains(concat!("super::", "super::")) {
            say("two levels up; write the path from `crate::` instead");
        }
        if path.starts_with("src/") && line.contains("pub use") && line.contains("::*") {
            say("glob re-export; name what is exported");
        }
        let in_test = is_test_file || number > code.test_line;
        if in_test && code.is_bare_statement(number, "matches!(") {
            say("the result of `matches!` is dropped; write `assert!(matches!(..))`");
        }
    }
}

fn check_functions(path: &str, code: &Code, problems: &mut Vec<String>) {
    for function in code.functions() {
        let excepted = LONG_FUNCTIONS.contains(&(path, function.name.as_str()));
        if function.lines > FUNCTION_LINES_MAX && !excepted {
            let (line, name, lines) = (function.line, &function.name, function.lines);
            problems.push(format!(
                "{path}:{line}: `{name}` has {lines} lines; split it, {FUNCTION_LINES_MAX} fit"
            ));
        }
    }
}

/// Which modules the code names, its unit tests aside: those may use what they like.
fn check_layer(path: &str, module: &str, code: &Code, problems: &mut Vec<String>) {
    if path.ends_with("/tests.rs") {
        return;
    }
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
        problems.push(format!("{path}:1: `{module}` is not in LAYERS; say what it may name"));
        return;
    };
    let text = code.without_tests();
    let mut named: BTreeSet<(usize, String)> = named_after(&text, "crate").into_iter().collect();
    named.extend(named_after(&text, "atrest"));
    if path == format!("src/{module}/mod.rs") {
        named.extend(named_after(&text, "super"));
    }
    let is_module = |name: &str| LAYERS.iter().any(|(module, _)| *module == name);
    for (line, other) in named {
        if is_module(&other) && other != module && !allowed.contains(&other.as_str()) {
            let allowed = allowed.join(", ");
            problems.push(format!(
                "{path}:{line}: `{module}` names `{other}`; it may name [{allowed}]: move the \
                 code, or hand the value in from above"
            ));
        }
    }
    for (line, _) in named_after(&text, "std").into_iter().filter(|(_, name)| name == "fs") {
        if !FILE_USERS.contains(&module) {
            problems.push(format!("{path}:{line}: `std::fs`; go through `storage::Storage`"));
        }
    }
}

/// Each rule: a file that breaks it and what is said, and a file that comes close and does not.
#[test]
fn every_rule_bites() {
    let long_line = format!("//! d\nconst A: &str = \"{}\";\n", "x".repeat(COLUMNS_MAX));
    let long_function = format!("//! d\nfn long() {{\n{}}}\n", "    go();\n".repeat(69));
    let fitting_function = format!("//! d\nfn fits() {{\n{}}}\n", "    go();\n".repeat(68));
    let leftover = format!("//! d\n// {} later\n", LEFTOVERS[0]);
    let two_up = concat!("//! d\nuse super::", "super::x;\n");
    let bare = "fn t() {\n    matches!(\n        a,\n        B\n    );\n}\n";
    let in_unit_test = "//! d\n#[cfg(test)]\nmod tests {\n    use crate::fs::X;\n}\n";
    let cases: &[(&str, &str, Option<&str>)] = &[
        ("src/fs/a.rs", "//! d\nuse crate::storage::X;\n", Some(":2: `fs` names `storage`")),
        ("src/fs/a.rs", "//! d\nuse crate::{volume::V, sys};\n", Some("`fs` names `sys`")),
        ("src/fs/mod.rs", "//! d\nuse super::crypto::X;\n", Some("`fs` names `crypto`")),
        ("src/fs/a.rs", "//! d\nuse super::crypto::X;\n", None),
        ("src/fs/a.rs", "//! d\n// crate::storage::X\nuse crate::volume::X;\n", None),
        ("src/tree/a.rs", in_unit_test, None),
        ("src/sys/a.rs", "//! d\nfn f() -> crate::format::X {}\n", Some("may name []")),
        ("src/main.rs", "//! d\nfn main() { atrest::daemon::x() }\n", Some("`main` names")),
        ("src/new/a.rs", "//! d\n", Some("not in LAYERS")),
        ("src/volume/a.rs", "//! d\nuse fuser::X;\n", Some("names `fuser`")),
        ("bench/a.rs", "//! d\nuse fuser::X;\n", None),
        ("src/key/a.rs", "//! d\nfn f() { unsafe { g() } }\n", Some("`unsafe`; call")),
        (
            "src/key/a.rs",
            "//! d\n// unsafe\n#![deny(unsafe_code)]\nconst S: &str = \"unsafe\";",
            None,
        ),
        ("src/sys/a.rs", "//! d\nfn f() { unsafe { g() } }\n", None),
        ("src/volume/a.rs", "//! d\nuse std::fs::File;\n", Some("`std::fs`; go through")),
        ("src/volume/a.rs", "//! d\nuse std::{fs, io};\n", Some("`std::fs`; go through")),
        ("src/volume/a.rs", "//! d\nuse std::os::unix::fs::FileExt;\n", None),
        ("src/key/a.rs", &long_line, Some("columns; break the line")),
        ("src/key/a.rs", &long_function, Some("`long` has 71 lines; split it")),
        ("src/key/a.rs", &fitting_function, None),
        ("src/key/a.rs", &leftover, Some("; do it")),
        ("tests/a/main.rs", bare, Some(":2: the result of `matches!` is dropped")),
        ("tests/a/main.rs", "fn t() -> bool {\n    matches!(a, B)\n}\n", None),
        ("src/key/a.rs", two_up, Some("two levels up")),
        ("src/key/a.rs", "//! d\npub use x::*;\n", Some("glob re-export")),
        ("src/key/a.rs", "use x;\n", Some("begin with `//!`")),
    ];
    for (path, text, expected) in cases {
        let problems = check(path, text);
        match expected {
            Some(part) => assert!(
                problems.len() == 1 && problems[0].contains(part),
                "{part:?} is to be said of {text:?}, not {problems:?}"
            ),
            None => assert_eq!(problems, Vec::<String>::new(), "{text:?}"),
        }
    }
}
