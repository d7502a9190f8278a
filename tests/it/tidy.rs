//! House rules that no compiler checks. Each failure names the file, the line and the rule.

use std::{fs, path::Path};

/// Who may use whom: a module may import those listed beside it, and itself.
const LAYERS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("name", &["base"]),
    ("bus", &["base", "name"]),
    ("wire", &["base", "name"]),
    ("config", &["base", "name"]),
    ("http", &["base", "name", "wire", "config"]),
    ("metrics", &["base", "wire"]),
    ("store", &["base", "name", "wire", "config", "metrics"]),
    ("topic", &["base", "name", "wire", "config", "metrics", "store"]),
    ("state", &["base", "name", "wire", "bus"]),
    ("presence", &["base", "name"]),
    (
        "server",
        &[
            "base", "name", "bus", "wire", "config", "http", "metrics", "store", "topic", "state",
            "presence",
        ],
    ),
    ("client", &["base", "name", "wire"]),
    (
        "cli",
        &[
            "base", "name", "bus", "wire", "config", "http", "metrics", "store", "topic", "state",
            "presence", "server", "client",
        ],
    ),
];

const FILE_LINES_MAX: usize = 600;
const LINE_COLUMNS_MAX: usize = 100;

#[test]
fn every_file_is_tidy() {
    let mut problems = Vec::new();

    for root in ["src", "tests", "benches", "fuzz"] {
        for_each_source(&Path::new(env!("CARGO_MANIFEST_DIR")).join(root), &mut |path, text| {
            let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(path);
            for (line, rule) in violations(path, text) {
                problems.push(format!("{}:{line}: {rule}", path.display()));
            }
        });
    }

    assert!(problems.is_empty(), "untidy:\n{}", problems.join("\n"));
}

#[test]
fn every_test_file_is_part_of_the_tests() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    for (root, list) in [(dir.clone(), "main.rs"), (dir.join("support"), "mod.rs")] {
        let text = fs::read_to_string(root.join(list)).expect("the list of modules");
        for entry in fs::read_dir(&root).expect("a directory of tests") {
            let path = entry.expect("a directory entry").path();
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            let listed = text.contains(&format!("mod {name};"));
            assert!(listed || path.ends_with(list), "{} is in no list", path.display());
        }
    }
}

#[test]
fn every_bug_that_can_be_put_back_is_found_by_a_model() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut models = String::new();
    for_each_source(&src, &mut |_, text| models.push_str(text));
    let faults = fs::read_to_string(src.join("base/fault.rs")).expect("the list of faults");
    let list = faults.split("pub enum Fault {").nth(1).and_then(|rest| rest.split("\n}").next());
    let names = list.expect("the faults are an enum").lines().filter_map(|line| {
        line.trim().strip_suffix(',').filter(|name| name.chars().all(char::is_alphanumeric))
    });
    let missing: Vec<&str> =
        names.filter(|name| !models.contains(&format!("finds(Fault::{name}, "))).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn the_rules_find_what_breaks_them() {
    let long = format!("//! A file.\n// {}\n", "x".repeat(100));
    for (path, text, rule) in [
        ("src/base/a.rs", "use crate::wire::frame;\n", "description"),
        ("src/base/a.rs", "//! A file.\nuse crate::wire::frame;\n", "base may not use wire"),
        (
            "src/base/a.rs",
            "//! A file.\nuse crate::{\n    base::sync,\n    wire,\n};\n",
            "use wire",
        ),
        ("src/topic.rs", "//! A file.\nfn a() { crate::server::b(); }\n", "use server"),
        ("src/unheard/a.rs", "//! A file.\n", "layer"),
        ("src/base/a.rs", &long, "columns"),
        ("src/base/a.rs", &"//! A file.\n".repeat(601), "lines"),
        ("tests/it/a.rs", &["//! A file.\nthread::", "sleep(x);\n"].concat(), "sleep"),
    ] {
        let found = violations(Path::new(path), text);
        assert!(found.iter().any(|(_, said)| said.contains(rule)), "{rule}: {found:?}");
    }
    let good = "//! A file.\nuse crate::{\n    base::{wire, sync},\n    name::Name,\n};\n";
    assert_eq!(violations(Path::new("src/wire/a.rs"), good), []);
}

/// Line and rule of everything that is wrong with a file.
fn violations(path: &Path, text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let lines = text.lines().count();
    if FILE_LINES_MAX < lines {
        found.push((lines, format!("the file is longer than {FILE_LINES_MAX} lines")));
    }
    if !text.starts_with("//! ") {
        found.push((1, "the file does not start with a description of the module".to_owned()));
    }
    let sleep = ["thread::", "sleep"].concat();
    for (index, line) in text.lines().enumerate() {
        if LINE_COLUMNS_MAX < line.chars().count() {
            found.push((index + 1, format!("the line is longer than {LINE_COLUMNS_MAX} columns")));
        }
        if line.contains(&sleep) {
            found.push((index + 1, "wait on a channel instead of a sleep".to_owned()));
        }
    }
    if let Some(layer) = layer(path) {
        match LAYERS.iter().find(|(name, _)| *name == layer) {
            None => found.push((1, format!("{layer} is in no layer; list it in tidy.rs"))),
            Some((_, allowed)) => {
                for (line, used) in uses(text) {
                    if used != layer && !allowed.contains(&used.as_str()) {
                        found.push((line, format!("{layer} may not use {used}")));
                    }
                }
            }
        }
    }
    found
}

/// The layer a source file belongs to; the crate's roots stand above all layers.
fn layer(path: &Path) -> Option<&str> {
    let mut parts = path.iter().filter_map(|part| part.to_str());
    if parts.next() != Some("src") {
        return None;
    }
    let part = parts.next()?;
    let layer = part.strip_suffix(".rs").unwrap_or(part);
    (layer != "lib" && layer != "main").then_some(layer)
}

/// Line and name of each module of this crate that a file mentions by its path.
fn uses(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let is_word = text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$');
        let line_start = text[..at].rfind('\n').map_or(0, |at| at + 1);
        if is_word || text[line_start..at].trim_start().starts_with("//") {
            continue;
        }
        let line = text[..at].matches('\n').count() + 1;
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.push((line, first_word(rest))),
            Some(list) => {
                found.extend(top_level(list).into_iter().map(|name| (line, name)));
            }
        }
    }
    found.retain(|(_, name)| !name.is_empty() && name.starts_with(char::is_lowercase));
    found
}

/// The first words of the entries of a `use` list, without what stands in braces within it.
fn top_level(list: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(first_word(list[start..at].trim_start()));
                return names;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(first_word(list[start..at].trim_start()));
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn for_each_source(dir: &Path, visit: &mut dyn FnMut(&Path, &str)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            for_each_source(&path, visit);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            visit(&path, &fs::read_to_string(&path).expect("a source file"));
        }
    }
}
