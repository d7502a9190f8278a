//! Models of an outbox and of a writer's sleep, run under every order that the memory model allows.
//! `make loom` runs them.

use crate::{
    base::{
        fault::Fault,
        lane,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
            model::explore::{finds, holds},
            thread,
        },
    },
    server::{
        outbox::{Outbox, Pushed},
        writer::Waker,
    },
};

/// Two append one reply each; the writer, told through its lane, takes both.
fn replies() {
    let outbox = Arc::new(Outbox::new());
    let (flushes, inbox) = lane::open(lane::COMMANDS);
    let threads = [flushes.clone(), flushes].map(|flushes| {
        let outbox = Arc::clone(&outbox);
        thread::spawn(move || {
            assert_eq!(outbox.offer(usize::MAX, |out| out.push(1)), Pushed::Queued);
            if outbox.must_tell() {
                flushes.send(()).unwrap();
            }
        })
    });
    let mut taken = Vec::new();
    while inbox.recv().is_ok() {
        taken.extend(outbox.take().bytes);
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(taken, [1, 1]);
}

/// A writer that is parked gets every command. The lane is the least that a lane can be: putting
/// something into it and looking at it orders nothing else.
fn parked() {
    const COMMANDS: usize = 2;
    let (waker, lane) = (Arc::new(Waker::new().unwrap()), Arc::new(AtomicUsize::new(0)));
    // Of its own, since loom takes a ring for the end of a join that its thread waits in.
    let writer = {
        let (waker, lane) = (Arc::clone(&waker), Arc::clone(&lane));
        thread::spawn(move || {
            let mut taken = lane.load(Ordering::Relaxed);
            while taken < COMMANDS {
                waker.park(None, || lane.load(Ordering::Relaxed) == taken);
                taken = lane.load(Ordering::Relaxed);
            }
        })
    };
    let send = move || {
        lane.fetch_add(1, Ordering::Relaxed);
        waker.ring();
    };
    let other = thread::spawn(send.clone());
    send();
    other.join().unwrap();
    writer.join().unwrap();
}

#[test]
fn a_writer_takes_every_reply() {
    holds(replies);
    finds(Fault::OutboxFlag, replies);
}

#[test]
fn a_writer_that_is_parked_is_woken_for_every_command() {
    holds(parked);
    finds(Fault::WakerLooksEarly, parked);
    finds(Fault::RingUnfenced, parked);
    finds(Fault::SleepUnfenced, parked);
}
