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
