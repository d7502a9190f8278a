//! A wall clock that a test sets, for a relay that runs as a process. Its monotonic clock is the
//! machine's.

use std::{fs, path::PathBuf, process::Command};

use super::node::Scratch;

/// What every process that has it on takes for the time of day.
pub struct FakeClock {
    library: PathBuf,
    offset: Scratch,
}

impl FakeClock {
    /// The time of the machine; `None` where there is no libfaketime.
    #[track_caller]
    #[must_use]
    pub fn new() -> Option<FakeClock> {
        let dirs = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let mut libraries = dirs.map(|dir| dir.path().join("faketime/libfaketime.so.1"));
        let Some(library) = libraries.find(|library| library.is_file()) else {
            eprintln!("NOT RUN: there is no libfaketime, and so no clock to set");
            return None;
        };
        let clock = FakeClock { library, offset: Scratch::new("clock") };
        clock.set(0);
        Some(clock)
    }

    /// Sets it to so many hours after the time of the machine.
    #[track_caller]
    pub fn set(&self, hours: i64) {
        // Renamed, because it is read whenever somebody asks for the time.
        let new = self.offset.path().with_extension("new");
        fs::write(&new, format!("{hours:+}h")).expect("write the time");
        fs::rename(&new, self.offset.path()).expect("set the clock");
    }

    pub(super) fn put_on(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", self.offset.path())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
}
