//! Models of the stop signal, of a crew and of wake flags, run under many schedules.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use crate::base::{
    clock::Clock,
    fault::Fault,
    lifecycle::{Cause, Crew, Panics, Stop},
    sync::{
        Arc,
        model::check::{finds, holds},
        thread,
    },
};

const FOR_EVER: Duration = Duration::from_secs(3_600);

/// Two raise the signal while two wait for it: one of them is the first, its hook runs once, and
/// whoever is woken finds the cause.
fn stop_signal() {
    let stop = Stop::default();
    let hooked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&hooked);
    stop.on_raise(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let raisers = ["a", "b"].map(|name| {
        let stop = stop.clone();
        thread::spawn(move || stop.raise(Cause::ThreadPanicked { name: name.to_owned() }))
    });
    let waiters = [(); 2].map(|()| {
        let stop = stop.clone();
        thread::spawn(move || {
            assert!(stop.wait(FOR_EVER));
            assert!(stop.is_raised(), "woken without a cause");
        })
    });
    let firsts = raisers.map(|raiser| raiser.join().unwrap());
    waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    assert_eq!(firsts.iter().filter(|first| **first).count(), 1);
    assert_eq!(hooked.load(Ordering::Relaxed), 1);
}

/// A crew is waited for until nobody is left.
fn crew() {
    let (stop, panics) = (Stop::default(), Panics::default());
    let crew = Crew::new(stop.clone(), Arc::clone(&panics));
    for name in ["conn-1", "conn-2"] {
        let stop = stop.clone();
        crew.spawn(name.to_owned(), 64 * 1024, move || _ = stop.is_raised()).unwrap();
    }
    let clock = Clock::manual(0);
    assert_eq!(crew.join(&clock, clock.now() + FOR_EVER), 0);
    assert_eq!(crew.running(), 0);
}

#[test]
fn the_stop_signal_wakes_everybody_with_its_cause() {
    holds(5_000, stop_signal);
    finds(Fault::StopWithoutCause, stop_signal);
}

#[test]
fn a_crew_is_waited_for_to_its_last_member() {
    holds(5_000, crew);
    finds(Fault::Unnotified, crew);
}
