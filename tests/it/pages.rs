//! What the documents name is there: targets of the Makefile, and files.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Targets that have no row in the table of `docs/testing.md`: parts of others, and what tests
/// nothing.
const PARTS: [&str; 17] = [
    "needs",
    "check-tests",
    "check-builds",
    "check-fuzz",
    "want-faults",
    "counts-build",
    "static-default",
    "static-small",
    "format",
    "lint",
    "test",
    "docs",
    "packages",
    "python-packages",
    "fuzz-build",
    "bench",
    "clean",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Name and text of every document.
fn documents() -> Vec<(String, String)> {
    let mut names = Vec::new();
    for dir in ["", "docs", "benches", "fuzz"] {
        for entry in fs::read_dir(root().join(dir)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                names.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    names.sort();
    names.into_iter().map(|name| (name.clone(), read(&name))).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What stands between code marks, and each line of a fenced block, without its comment.
fn code(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut is_fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        } else if is_fenced {
            found.push(line.split(" # ").next().unwrap_or_default());
        } else {
            found.extend(line.split('`').skip(1).step_by(2));
        }
    }
    found
}

/// The targets that a piece of code has made.
fn targets_of(code: &str) -> Vec<&str> {
    let words: Vec<&str> = code.split_whitespace().collect();
    let pairs = words.windows(2).filter(|pair| pair[0] == "make");
    let targets = pairs.map(|pair| pair[1].trim_end_matches([';', ',']));
    targets.filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase())).collect()
}

/// The paths of this repository that a piece of text names from its root.
fn paths_of(text: &str) -> Vec<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "/._-*".contains(c);
    let words = text.split(|c| !is_part(c)).map(|word| word.trim_end_matches('.'));
    words.filter(|word| word.starts_with("src/") || word.starts_with("tests/")).collect()
}

/// The targets of the Makefile but those that look for a tool.
fn targets() -> BTreeSet<String> {
    let makefile = read("Makefile");
    let rules = makefile.lines().filter(|line| !line.contains(":="));
    let names = rules.filter_map(|line| Some(line.split_once(':')?.0));
    let is_target =
        |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let names = names.filter(is_target).filter(|name| !name.starts_with("need-"));
    names.map(str::to_owned).collect()
}

/// The names of all files below `dir`.
fn files(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.insert(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
}

#[test]
fn every_target_that_a_document_names_is_in_the_makefile() {
    let targets = targets();
    let mut named = 0;
    for (document, text) in documents() {
        for target in code(&text).into_iter().flat_map(targets_of) {
            named += 1;
            assert!(targets.contains(target), "{document} names `make {target}`");
        }
    }

    assert!(20 < named, "only {named} were found");
}

#[test]
fn every_target_is_in_the_table_of_tests_or_known_as_a_part() {
    let text = read("docs/testing.md");
    let rows = text.lines().filter(|line| line.starts_with('|'));
    let listed: BTreeSet<String> =
        rows.flat_map(code).flat_map(targets_of).chain(PARTS).map(str::to_owned).collect();

    assert_eq!(listed, targets());
}

#[test]
fn every_file_that_a_document_names_is_there() {
    let mut names = BTreeSet::new();
    for dir in ["src", "tests", "fuzz/targets", "fuzz/src", "benches", "examples"] {
        files(&root().join(dir), &mut names);
    }
    let mut named = 0;
    for (document, text) in documents() {
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for piece in code(&text).into_iter().chain(links) {
            for path in paths_of(piece) {
                named += 1;
                assert!(root().join(path).exists(), "{document} names {path}");
            }
            // A file beside the one before it, or one of `src` without that.
            let name = piece.rsplit('/').next().unwrap_or_default();
            let is_source = [".rs", ".mjs", ".py"].iter().any(|end| name.ends_with(end));
            if is_source && !name.contains(char::is_whitespace) {
                named += 1;
                let is_there = if piece.starts_with(name) {
                    names.contains(name)
                } else {
                    ["", "src"].iter().any(|dir| root().join(dir).join(piece).exists())
                };
                assert!(is_there, "{document} names {piece}");
            }
        }
    }

    assert!(60 < named, "only {named} were found");
}
