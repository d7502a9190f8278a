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
    use std::fs;

    use crate::base::{lane::LANES, lock::Rank};

    /// The first cells of the table under `heading`, without their code marks.
    fn first_cells(heading: &str) -> Vec<String> {
        let text =
            fs::read_to_string(concat_path("ARCHITECTURE.md")).expect("ARCHITECTURE.md is there");
        let section = text.split("\n## ").find(|section| section.starts_with(heading));
        let rows =
            section.expect("the section is there").lines().filter(|line| line.starts_with("| `"));
        rows.filter_map(|row| row.split('`').nth(1).map(str::to_owned)).collect()
    }

    #[test]
    fn the_example_of_the_readme_is_one_that_compiles() {
        let read = |path| fs::read_to_string(concat_path(path)).expect("the file is there");
        let readme = read("README.md");
        let shown = readme.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
        let shown = shown.expect("the README has an example");
        assert!(read("examples/follow.rs").ends_with(shown), "examples/follow.rs is another one");
    }

    fn concat_path(path: &str) -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
    }

    #[test]
    fn architecture_lists_the_locks_in_their_order() {
        let ranks: Vec<String> = Rank::ALL.iter().map(|rank| format!("{rank:?}")).collect();
        assert_eq!(first_cells("Locks"), ranks);
    }

    #[test]
    fn architecture_lists_every_lane() {
        let lanes: Vec<&str> = LANES.iter().map(|lane| lane.name).collect();
        assert_eq!(first_cells("Lanes"), lanes);
    }
}
