//! Models of flags and of who is woken, run under every order that the memory model allows.
//! `make loom` runs them.

use crate::base::{
    fault::Fault,
    flag::Flag,
    interest::Interest,
    lane::{self, Inlet},
    lock::{Rank, Ranked},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        model::explore::{finds, holds},
        thread::{self, JoinHandle},
    },
};

/// Starts two threads, each of which has the sending end of a lane.
fn two(
    inlet: Inlet<()>,
    body: impl Fn(&Inlet<()>) + Clone + Send + 'static,
) -> [JoinHandle<()>; 2] {
    [inlet.clone(), inlet].map(|inlet| {
        let body = body.clone();
        thread::spawn(move || body(&inlet))
    })
}

/// Two add something that no lock guards, and raise the flag. Who was told last has seen all.
fn flag() {
    let (flag, added) = (Arc::new(Flag::default()), Arc::new(AtomicUsize::new(0)));
    let (inlet, inbox) = lane::open(lane::COMMANDS);
    let adders = {
        let (flag, added) = (Arc::clone(&flag), Arc::clone(&added));
        two(inlet, move |inlet| {
            added.fetch_add(1, Ordering::Relaxed);
            if flag.raise() {
                inlet.send(()).unwrap();
            }
        })
    };
    let mut seen = 0;
    while inbox.recv().is_ok() {
        flag.lower();
        seen = added.load(Ordering::Relaxed);
    }
    adders.into_iter().for_each(|adder| adder.join().unwrap());
    assert_eq!(seen, 2);
}

/// A writer begins to follow a log while two append to it and wake whoever follows.
fn follower() {
    let log = Arc::new(Ranked::new(Rank::Log, 0));
    let interest = Arc::new(Interest::new(1));
    let (inlet, inbox) = lane::open(lane::COMMANDS);
    let publishers = {
        let (log, interest) = (Arc::clone(&log), Arc::clone(&interest));
        two(inlet, move |inlet| {
            log.with(|tail| *tail += 1);
            interest.wake(|_| inlet.send(()).unwrap());
        })
    };
    let is_late = Fault::FollowLate.is_on();
    let mut seen = log.with(|tail| {
        if !is_late {
            interest.follow(0);
        }
        *tail
    });
    if is_late {
        interest.follow(0);
    }
    while inbox.recv().is_ok() {
        interest.woken(0);
        seen = log.with(|tail| *tail);
    }
    publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
    assert_eq!(seen, 2);
}

#[test]
fn who_lowers_a_flag_sees_what_was_added_before_it_was_raised() {
    holds(flag);
    finds(Fault::FlagUnordered, flag);
}

#[test]
fn a_follower_reads_what_it_is_not_woken_for() {
    holds(follower);
    finds(Fault::FollowLate, follower);
}
