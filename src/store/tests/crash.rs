//! The process dies, the power fails, the disk refuses: at every step of it, one after the other.

use std::io::ErrorKind;

use super::{
    model::{State, Workload, strip, tails},
    open,
};
use crate::store::{
    Batch, Database, Loaded, Store, StoreError,
    sim::{Fault, SimDisk, Step},
};

const OPS: usize = 30;

/// What became of a workload.
struct Outcome {
    disk: SimDisk,
    /// What the store should hold after each operation; first before all of them.
    history: Vec<State>,
    /// How many operations had been done when the last commit succeeded, and the last operation.
    committed: usize,
    done: usize,
    /// The store's seed, once it was open.
    seed: Option<u64>,
    store: Option<Database>,
    workload: Workload,
    error: Option<StoreError>,
}

fn call(store: &mut Database, batch: &Batch, is_commit: bool) -> Result<(), StoreError> {
    if is_commit { store.commit(batch).map(|_| ()) } else { store.write(batch) }
}

/// Runs a workload until it ends or something fails.
fn play(disk: SimDisk, seed: u64) -> Outcome {
    let workload = Workload::new(seed);
    let history = vec![State::default()];
    let (seed, store, error) = (None, None, None);
    let mut outcome =
        Outcome { disk, history, committed: 0, done: 0, seed, store, workload, error };
    match open(&outcome.disk) {
        Ok((store, loaded)) => {
            outcome.seed = Some(loaded.seed);
            outcome.store = Some(store);
        }
        Err(error) => outcome.error = Some(error),
    }
    let Some(store) = &mut outcome.store else { return outcome };
    for at in 1..=OPS {
        let op = outcome.workload.next();
        outcome.history.push(outcome.workload.state.clone());
        if let Err(error) = call(store, &op.batch, op.is_commit) {
            outcome.error = Some(error);
            break;
        }
        outcome.done = at;
        if op.is_commit {
            outcome.committed = at;
        }
    }
    outcome
}

/// Whether a disk holds what it must after `outcome`: all of the first `least` operations, and
/// those behind them completely and in order, as far as they go.
fn check(outcome: &Outcome, image: &SimDisk, least: usize) -> Result<(), String> {
    let (mut store, loaded) = open(image).map_err(|error| format!("does not open: {error}"))?;
    let Some(state) = find(outcome, &loaded, least) else {
        return Err(format!("no state from {least} on is this: {loaded:?}"));
    };
    if let Some(seed) = outcome.seed
        && seed != loaded.seed
    {
        return Err("another seed".to_owned());
    }
    if loaded.warnings.iter().any(|warning| !warning.contains("journal")) {
        return Err(format!("{:?}", loaded.warnings));
    }
    state.assert_readable(&*store.pages());
    // It goes on from there, and that survives too.
    let topics = state.topics.iter();
    let runs = topics.map(|(id, topic)| super::run(*id, topic.tail + 1, 2)).collect();
    let batch = Batch { runs, ..Batch::default() };
    store.commit(&batch).map_err(|error| format!("does not go on: {error}"))?;
    let mut state = state.clone();
    state.apply(&batch);
    let (_, loaded) = open(&image.crashed(None)).map_err(|error| format!("not again: {error}"))?;
    if state.is(&loaded) { Ok(()) } else { Err("what came afterwards is lost".to_owned()) }
}

fn find<'a>(outcome: &'a Outcome, loaded: &Loaded, least: usize) -> Option<&'a State> {
    outcome.history[least..].iter().rev().find(|state| state.is(loaded))
}

/// The workload once without a fault, to count its steps.
fn steps(seed: u64, step: Step) -> u64 {
    let outcome = play(SimDisk::default(), seed);
    assert!(outcome.error.is_none(), "{:?}", outcome.error);
    outcome.disk.count(step)
}

fn faulty(fault: Fault) -> SimDisk {
    let disk = SimDisk::default();
    disk.fail(Some(fault));
    disk
}

#[test]
fn a_workload_without_faults_is_there_however_it_ends() {
    for seed in 1..=10 {
        let outcome = play(SimDisk::default(), seed);
        assert_eq!(outcome.done, OPS, "{:?}", outcome.error);
        check(&outcome, &outcome.disk.killed(), outcome.done).unwrap();
        check(&outcome, &outcome.disk.crashed(None), outcome.committed).unwrap();
        drop(outcome.store);
        let (_, loaded) = open(&outcome.disk).unwrap();
        assert!(outcome.workload.state.is(&loaded));
    }
}

#[test]
fn what_was_committed_survives_a_loss_of_power_in_any_sync() {
    for nth in 1..=steps(1, Step::Sync) {
        let fault = Fault { step: Step::Sync, nth, error: ErrorKind::Other, forever: true };
        let outcome = play(faulty(fault), 1);
        for seed in [None, Some(nth), Some(nth + 7_919)] {
            let image = outcome.disk.crashed(seed);
            if let Err(wrong) = check(&outcome, &image, outcome.committed) {
                unreachable!("sync {nth}, sectors {seed:?}: {wrong}");
            }
        }
    }
}

#[test]
fn what_was_committed_survives_a_loss_of_power_in_any_write() {
    for nth in 1..=steps(2, Step::Write) {
        let fault = Fault { step: Step::Write, nth, error: ErrorKind::Other, forever: true };
        let outcome = play(faulty(fault), 2);
        for seed in [Some(nth), Some(nth + 7_919)] {
            let image = outcome.disk.crashed(seed);
            if let Err(wrong) = check(&outcome, &image, outcome.committed) {
                unreachable!("write {nth}, sectors {seed:?}: {wrong}");
            }
        }
    }
}

#[test]
fn what_was_written_survives_a_death_of_the_process_in_any_write() {
    for nth in 1..=steps(3, Step::Write) {
        let fault = Fault { step: Step::Write, nth, error: ErrorKind::Other, forever: true };
        let outcome = play(faulty(fault), 3);
        if let Err(wrong) = check(&outcome, &outcome.disk.killed(), outcome.done) {
            unreachable!("write {nth}: {wrong}");
        }
    }
}

/// Whether the simulated loss of power bites: a disk whose syncs do nothing must lose something.
#[test]
fn a_sync_that_lies_loses_what_was_committed() {
    let disk = SimDisk::default();
    disk.lie();
    let outcome = play(disk, 1);
    let lost = |seed| check(&outcome, &outcome.disk.crashed(seed), outcome.committed).is_err();
    assert!(lost(None));
    assert!(5 < (1..=10).filter(|seed| lost(Some(*seed))).count());
}

#[test]
fn an_error_in_any_step_is_reported_and_recovered_from() {
    for (step, error) in [
        (Step::Write, ErrorKind::Other),
        (Step::Write, ErrorKind::StorageFull),
        (Step::Sync, ErrorKind::Other),
        (Step::Sync, ErrorKind::StorageFull),
    ] {
        for nth in 1..=steps(4, step) {
            let outcome = play(faulty(Fault { step, nth, error, forever: false }), 4);
            recover_and_go_on(outcome, &format!("{step:?} {nth} {error:?}"));
        }
    }
}

fn recover_and_go_on(mut outcome: Outcome, what: &str) {
    let Some(mut store) = outcome.store.take() else {
        // It failed in opening; the next one works.
        assert!(outcome.error.is_some(), "{what}");
        open(&outcome.disk).unwrap();
        return;
    };
    if outcome.error.is_none() {
        // The ballast was what failed, or an answer that nobody waits for.
        assert_eq!(outcome.done, OPS, "{what}");
        return;
    }
    let nothing = Batch::default();
    assert!(matches!(store.commit(&nothing), Err(StoreError::Closed)), "{what}");
    assert!(matches!(store.write(&nothing), Err(StoreError::Closed)), "{what}");

    let loaded = store.recover(&[]).unwrap();

    let state = find(&outcome, &loaded, outcome.done);
    let state = state.unwrap_or_else(|| unreachable!("{what}: lost something: {loaded:?}"));
    assert_eq!(Some(loaded.seed), outcome.seed);
    state.assert_readable(&*store.pages());
    let held = tails(&loaded);
    let is_there = *state == outcome.history[outcome.done + 1];
    // What is known to be lost is done again, then come others.
    let mut workload = Workload::new(4);
    for at in 1..=outcome.done + 10 {
        let mut op = workload.next();
        if outcome.done + usize::from(is_there) < at {
            strip(&mut op.batch, &held);
            call(&mut store, &op.batch, op.is_commit).unwrap();
        }
    }
    drop(store);
    let (store, loaded) = open(&outcome.disk).unwrap();
    assert!(workload.state.is(&loaded), "{what}");
    workload.state.assert_readable(&*store.pages());
}
