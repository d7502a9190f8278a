//! A writer that sleeps, and those who put commands into its lane.

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    base::{
        fault::Fault,
        lane::{self, Receiver},
        sync::{
            Arc,
            model::check::{finds, holds},
            thread,
        },
    },
    server::writer::Waker,
};

const SENDERS: u8 = 2;
const COMMANDS: u8 = 2;

/// Starts those who send, and returns the writer's end.
fn senders(waker: &Arc<Waker>) -> (Receiver<u8>, Vec<thread::JoinHandle<()>>) {
    let (inlet, inbox) = lane::open(lane::COMMANDS);
    let send = |sender| {
        let (inlet, waker) = (inlet.clone(), Arc::clone(waker));
        thread::spawn(move || {
            for command in 0..COMMANDS {
                inlet.send(sender * COMMANDS + command).unwrap();
                waker.ring();
            }
        })
    };
    let threads = (0..SENDERS).map(send).collect();
    // Held as a relay holds one: a writer is told to stop, its lane is not closed.
    std::mem::forget(inlet);
    (inbox, threads)
}

/// A writer that sleeps parked gets every command.
fn parked() {
    let waker = Arc::new(Waker::new().unwrap());
    let (inbox, threads) = senders(&waker);
    let mut got = Vec::new();
    while got.len() < usize::from(SENDERS * COMMANDS) {
        while let Ok(command) = inbox.try_recv() {
            got.push(command);
        }
        if got.len() < usize::from(SENDERS * COMMANDS) {
            waker.park(None, || inbox.is_empty());
        }
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    got.sort_unstable();
    assert!(got.into_iter().eq(0..SENDERS * COMMANDS));
}

/// A writer that polls its bell gets every command.
fn polling() {
    let waker = Arc::new(Waker::new().unwrap());
    let (inbox, threads) = senders(&waker);
    let mut got = 0;
    while got < SENDERS * COMMANDS {
        while inbox.try_recv().is_ok() {
            got += 1;
        }
        if got < SENDERS * COMMANDS {
            let looked = Fault::WakerLooksEarly.is_on().then(|| inbox.is_empty());
            waker.listen();
            while looked.unwrap_or_else(|| inbox.is_empty()) && !rings(&waker) {
                thread::yield_now();
            }
            waker.hush();
        }
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn rings(waker: &Waker) -> bool {
    let mut bells = [PollFd::from_borrowed_fd(waker.bell(), PollFlags::IN)];
    poll(&mut bells, Some(&Timespec::default())).unwrap() == 1
}

#[test]
fn a_writer_that_is_parked_misses_no_command() {
    holds(2_000, parked);
    finds(Fault::WakerLooksEarly, parked);
}

#[test]
fn a_writer_that_polls_misses_no_command() {
    holds(2_000, polling);
    finds(Fault::WakerLooksEarly, polling);
}
