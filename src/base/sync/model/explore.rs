//! What the facade hands out under loom, and what runs a model under every order of its steps that
//! the memory model allows.

use std::{
    env,
    io::{self, Write},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use loom::model::Builder;
pub use loom::sync;

use super::put_back;
use crate::base::{fault::Fault, sync::Arc};

/// Preemptions in one execution, unless `LOOM_MAX_PREEMPTIONS` says how many.
const PREEMPTIONS_MAX: usize = 3;
/// Names the bug that a process has been started to find.
const WANTED: &str = "LANDLINE_FAULT";

/// As `std::thread`, as far as it is used here.
pub mod thread {
    use std::time::Duration;

    pub use loom::thread::*;

    pub fn park_timeout(_limit: Duration) {
        park();
    }
}

/// As `std::thread_local`; what is constant there is made anew for each thread of a model.
#[macro_export]
macro_rules! model_thread_local {
    ($vis:vis static $name:ident: $t:ty = const $init:block;) => {
        loom::thread_local! { $vis static $name: $t = $init; }
    };
}
pub use model_thread_local as thread_local;

/// Runs `model` in every order.
///
/// # Panics
///
/// If it fails in one of them.
#[track_caller]
pub fn holds(model: fn()) {
    if env::var_os(WANTED).is_none() {
        say(&format!("held, executions={}", run(model)));
    }
}

/// Puts `fault` back, and runs `model` until it fails: in a process of its own, since what loom
/// finds may end the process.
///
/// # Panics
///
/// If it does not fail.
#[track_caller]
pub fn finds(fault: Fault, model: fn()) {
    let name = format!("{fault:?}");
    if let Some(wanted) = env::var_os(WANTED) {
        if *wanted == *name {
            put_back(Some(fault));
            say(&format!("put back {name}"));
            run(model);
            put_back(None);
        }
        return;
    }
    let output = Command::new(env::current_exe().expect("a test is a program"))
        .arg(test())
        .args(["--exact", "--nocapture"])
        .env(WANTED, &name)
        .output()
        .expect("the program starts once more");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&format!("put back {name}")), "{name} was not put back: {said}");
    assert!(!output.status.success(), "{name} was not found");
    say(&format!("found {name}"));
}

/// The name of the test that runs here, which its thread has if tests are given threads.
fn test() -> String {
    std::thread::current().name().unwrap_or("?").to_owned()
}

/// Says what a test did, past the test harness, which shows only what failed.
fn say(text: &str) {
    drop(io::stderr().write_all(format!("model {}: {text}\n", test()).as_bytes()));
}

/// Returns how many executions there were.
fn run(model: fn()) -> usize {
    let executions = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&executions);
    let mut builder = Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(PREEMPTIONS_MAX));
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    executions.load(Ordering::Relaxed)
}
