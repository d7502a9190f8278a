//! Generated pages of the documentation, compared with the code that generates them.

use std::{env, fs, path::Path};

/// Compares the file `path` of the repository with `expected`; writes it instead where the
/// environment says `UPDATE_DOCS=1`. For tests.
///
/// # Panics
///
/// If the file differs, with the command that updates it.
pub fn compare(path: &str, expected: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, expected)
            .unwrap_or_else(|error| unreachable!("cannot write {path}: {error}"));
        return;
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    assert!(found == expected, "{path} is out of step with the code; run UPDATE_DOCS=1 cargo test");
}

mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        path::{Path, PathBuf},
    };

    use crate::base::{
        lane::{LANES, WhenFull},
        lifecycle::THREADS,
        lock::Rank,
    };

    fn concat_path(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
    }

    fn read(path: &str) -> String {
        fs::read_to_string(concat_path(path)).expect("the file is there")
    }

    /// What ARCHITECTURE.md has under `heading`.
    fn section(heading: &str) -> String {
        let text = read("ARCHITECTURE.md");
        let section = text.split("\n## ").find(|section| section.starts_with(heading));
        section.expect("the section is there").to_owned()
    }

    /// The cells of each row of the first table under `heading`, without their code marks.
    fn rows(heading: &str) -> Vec<Vec<String>> {
        let section = section(heading);
        let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
        let cells = |row: &str| {
            let cells = row.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().replace('`', "")).collect()
        };
        rows.map(cells).collect()
    }

    fn first_cells(heading: &str) -> Vec<String> {
        rows(heading).into_iter().map(|row| row[0].clone()).collect()
    }

    /// All code of `src` but `file` that is there without tests and models.
    fn production(file: &str) -> String {
        let mut text = String::new();
        let mut waiting = vec![concat_path("src")];
        while let Some(dir) = waiting.pop() {
            for entry in fs::read_dir(dir).expect("a directory of sources") {
                let path = entry.expect("a directory entry").path();
                let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
                let is_test = ["tests", "models", "orderings", "docs"].contains(&name);
                if is_test || path.ends_with(file) {
                    continue;
                }
                if path.is_dir() {
                    waiting.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let whole = fs::read_to_string(&path).expect("a source file");
                    text += whole.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                }
            }
        }
        text
    }

    #[test]
    fn the_example_of_the_readme_is_one_that_compiles() {
        let readme = read("README.md");
        let shown = readme.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
        let shown = shown.expect("the README has an example");
        assert!(read("examples/follow.rs").ends_with(shown), "examples/follow.rs is another one");
    }

    #[test]
    fn architecture_lists_every_thread() {
        // Those of the relay have a row; those of the client and the commands are named below.
        let rows = first_cells("Threads");
        assert_eq!(rows, THREADS[..rows.len()]);
        let (section, code) = (section("Threads"), production("base/lifecycle.rs"));
        for thread in &THREADS[1..] {
            assert!(section.contains(&format!("`{thread}`")), "{thread} is not in the section");
            let kind = thread.strip_suffix("-N").or_else(|| thread.strip_suffix("-ID"));
            let name = kind.map_or(format!("\"{thread}\""), |kind| format!("\"{kind}-{{"));
            assert!(code.contains(&name), "nothing starts {thread}");
        }
    }

    #[test]
    fn architecture_lists_the_locks_in_their_order() {
        let ranks: Vec<String> = Rank::ALL.iter().map(|rank| format!("{rank:?}")).collect();
        assert_eq!(first_cells("Locks"), ranks);
        assert!(Rank::ALL.is_sorted_by_key(|rank| *rank as u8));
        let text = read("src/base/lock.rs");
        let list = text.split("pub enum Rank {").nth(1).and_then(|rest| rest.split("\n}").next());
        let declared: Vec<&str> = list
            .expect("the ranks are an enum")
            .lines()
            .filter_map(|line| Some(line.trim().split_once(" = ")?.0))
            .collect();
        assert_eq!(declared, ranks, "Rank::ALL lacks one");
        let code = production("base/lock.rs");
        for rank in ranks {
            assert!(code.contains(&format!("Rank::{rank},")), "no lock has the rank {rank}");
        }
    }

    #[test]
    fn architecture_lists_every_lane_with_its_bound() {
        let lanes: Vec<[String; 3]> = LANES
            .iter()
            .map(|lane| {
                let when_full = match lane.when_full {
                    WhenFull::Wait => "wait",
                    WhenFull::Refuse => "refuse",
                };
                [lane.name.to_owned(), lane.capacity.to_string(), when_full.to_owned()]
            })
            .collect();
        let rows = rows("Lanes");
        let said = |row: &Vec<String>| {
            let when_full = row[3].split([',', ';']).next().unwrap_or_default();
            [row[0].clone(), row[2].clone(), when_full.to_owned()]
        };
        assert_eq!(rows.iter().map(said).collect::<Vec<_>>(), lanes);
        // What is refused is counted, but on a lane for one answer, which none but its asker loses.
        let metrics = read("docs/metrics.md");
        for (row, lane) in rows.iter().zip(LANES) {
            if lane.when_full == WhenFull::Refuse && 1 < lane.capacity {
                let counter = row[3].split(' ').find(|word| word.ends_with("_total"));
                let counter = counter.expect("the row says what counts refusals");
                assert!(
                    metrics.contains(&format!("`landline_{counter}`")),
                    "there is no {counter}"
                );
            }
        }
    }

    #[test]
    fn every_lane_is_in_the_list_and_is_opened() {
        let (text, code) = (read("src/base/lane.rs"), production("base/lane.rs"));
        let declared = text.lines().filter_map(|line| line.strip_prefix("pub const "));
        let declared: Vec<&str> =
            declared.filter_map(|rest| Some(rest.split_once(": Lane ")?.0)).collect();
        assert_eq!(declared.len(), LANES.len(), "LANES lacks one");
        for lane in declared {
            let is_opened = ["open(", "open(lane::"]
                .iter()
                .any(|open| code.contains(&format!("lane::{open}{lane})")));
            assert!(is_opened, "nothing opens {lane}");
        }
        assert!(!code.contains("Lane {"), "a lane that is not in base/lane.rs");
    }

    #[test]
    fn architecture_says_why_each_crate_is_here() {
        let mut used = BTreeSet::new();
        for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
            let manifest: toml::Table = read(manifest).parse().expect("a manifest");
            let targets = manifest.get("target").and_then(toml::Value::as_table);
            let targets = targets.into_iter().flat_map(toml::Table::values);
            for table in targets.filter_map(toml::Value::as_table).chain([&manifest]) {
                for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
                    let crates = table.get(kind).and_then(toml::Value::as_table);
                    used.extend(crates.into_iter().flat_map(|crates| crates.keys().cloned()));
                }
            }
        }
        used.remove("landline");
        let names = |cell: &String| -> Vec<String> {
            let names = cell.split('(').next().unwrap_or_default();
            names.split(',').map(|name| name.trim().to_owned()).collect()
        };
        let listed: Vec<String> = first_cells("Crates").iter().flat_map(names).collect();
        assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), used);
        assert_eq!(listed.len(), used.len(), "a crate has two rows");
        assert!(rows("Crates").iter().all(|row| !row[1].is_empty()), "a crate has no reason");
    }

    /// The last cells of the table under `heading` that has so many columns.
    fn last_cells(heading: &str, columns: usize) -> Vec<String> {
        let text =
            fs::read_to_string(concat_path("ARCHITECTURE.md")).expect("ARCHITECTURE.md is there");
        let section = text.split("\n## ").find(|section| section.starts_with(heading));
        let rows =
            section.expect("the section is there").lines().filter(|row| row.starts_with('|'));
        let cells = rows.skip(2).map(|row| row.trim_matches('|').split('|').collect::<Vec<_>>());
        let last = |cells: Vec<&str>| {
            assert_eq!(cells.len(), columns, "{cells:?}");
            cells.last().map(|cell| cell.trim().to_owned())
        };
        cells.filter_map(last).collect()
    }

    #[test]
    fn whatever_may_fail_is_tested_where_architecture_says() {
        let makefile = fs::read_to_string(concat_path("Makefile")).expect("the Makefile is there");
        let cells = last_cells("When something fails", 5);
        assert!(30 < cells.len(), "{cells:?}");
        for cell in cells.iter().filter(|cell| *cell != "-") {
            for place in cell.split('`').skip(1).step_by(2) {
                let is_there = match place.strip_prefix("make ") {
                    Some(target) => makefile.contains(&format!("\n{target}: ")),
                    None => fs::read_to_string(concat_path(place))
                        .is_ok_and(|text| text.contains("#[test]")),
                };
                assert!(is_there, "{place} is no file with tests, and no target of make");
            }
            assert_ne!(cell.split('`').count(), 1, "{cell} names no place");
        }
    }
}
