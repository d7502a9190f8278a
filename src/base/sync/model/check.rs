//! Runs a model under many schedules: that it holds, and that it finds a bug that is put back.

use std::{
    env,
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use shuttle::{
    Config, MaxSteps, Runner,
    scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler},
};

use super::put_back;
use crate::base::{fault::Fault, sync::Arc};

/// Preemptions that PCT plans per schedule.
const PCT_DEPTH: usize = 3;
/// More steps than a schedule of any model here takes: whoever waits is waiting in vain.
const STEPS_MAX: usize = 60_000;
/// Schedules in which a bug must be found; most need fewer than 500, none a tenth of these.
const SCHEDULES_MAX: usize = 20_000;
/// Names a file with the one schedule that is run.
const REPLAY: &str = "LANDLINE_REPLAY";
const STACK_BYTES: usize = 512 * 1024;

/// Runs `model` under `schedules` random schedules and as many of PCT. `LANDLINE_SCHEDULES`
/// multiplies them; `LANDLINE_REPLAY` names a file with the one schedule that is run instead.
///
/// # Panics
///
/// If one of them fails; its schedule is printed.
#[track_caller]
pub fn holds(schedules: usize, model: fn()) {
    if let Some(path) = env::var_os(REPLAY) {
        let scheduler = ReplayScheduler::new_from_file(path).expect("the file has a schedule");
        run(scheduler, model);
        return;
    }
    let factor: usize = env::var("LANDLINE_SCHEDULES")
        .map_or(1, |text| text.parse().expect("LANDLINE_SCHEDULES is a number"));
    let schedules = schedules * factor;
    let random = run(RandomScheduler::new(schedules), model);
    let pct = run(PctScheduler::new(PCT_DEPTH, schedules), model);
    say(&format!("held, schedules_random={random} schedules_pct={pct}"));
}

/// Puts `fault` back and runs `model` until it fails, half of the time by each scheduler. Does
/// nothing where a schedule is replayed.
///
/// # Panics
///
/// If it does not fail within [`SCHEDULES_MAX`].
#[track_caller]
pub fn finds(fault: Fault, model: fn()) {
    if env::var_os(REPLAY).is_some() {
        return;
    }
    let count = Arc::new(AtomicUsize::new(0));
    let counted = |count: &Arc<AtomicUsize>| {
        let count = Arc::clone(count);
        move || {
            count.fetch_add(1, Ordering::Relaxed);
            model();
        }
    };
    put_back(Some(fault));
    let is_found = catch_unwind(AssertUnwindSafe(|| {
        run(PctScheduler::new(PCT_DEPTH, SCHEDULES_MAX / 2), counted(&count));
        run(RandomScheduler::new(SCHEDULES_MAX / 2), counted(&count));
    }))
    .is_err();
    put_back(None);
    let count = count.load(Ordering::Relaxed);
    assert!(is_found, "{fault:?} was not found in {count} schedules");
    say(&format!("found {fault:?}, schedules={count}"));
}

/// Says what a test did, past the test harness, which shows only what failed.
fn say(text: &str) {
    let thread = thread::current();
    let line = format!("model {}: {text}\n", thread.name().unwrap_or("?"));
    drop(io::stderr().write_all(line.as_bytes()));
}

fn run(scheduler: impl Scheduler + 'static, model: impl Fn() + Send + Sync + 'static) -> usize {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(model)
}
