//! An outbox between those who append and the writer that takes.

use crate::{
    base::{
        fault::Fault,
        lane::{self, Inlet},
        sync::{
            Arc,
            model::check::{finds, holds},
            thread,
        },
    },
    server::outbox::{Outbox, Pushed},
};

/// Fewer than two replies wait; the third reply of a reader waits for room.
const BYTES_MAX: usize = 2;
const REPLIES: u8 = 3;

fn tell(outbox: &Outbox, flushes: &Inlet<()>) {
    if outbox.must_tell() {
        flushes.send(()).unwrap();
    }
}

/// Two append and one of them waits for room; the writer, told through its lane, takes everything
/// there ever was, in the order of each.
fn replies() {
    let outbox = Arc::new(Outbox::new());
    let (flushes, inbox) = lane::open(lane::COMMANDS);
    let reader = {
        let (outbox, flushes) = (Arc::clone(&outbox), flushes.clone());
        thread::spawn(move || {
            for reply in 0..REPLIES {
                outbox.wait_for_room(BYTES_MAX);
                assert_eq!(outbox.offer(usize::MAX, |out| out.push(reply)), Pushed::Queued);
                tell(&outbox, &flushes);
            }
        })
    };
    let keeper = {
        let (outbox, flushes) = (Arc::clone(&outbox), flushes);
        thread::spawn(move || {
            assert_eq!(outbox.offer(usize::MAX, |out| out.push(u8::MAX)), Pushed::Queued);
            tell(&outbox, &flushes);
        })
    };
    let mut taken = Vec::new();
    while taken.len() <= usize::from(REPLIES) {
        inbox.recv().expect("somebody tells the writer as long as something waits");
        taken.extend(outbox.take().bytes);
    }
    reader.join().unwrap();
    keeper.join().unwrap();
    assert!(taken.iter().filter(|reply| **reply != u8::MAX).copied().eq(0..REPLIES));
}

/// A reader has promised a reply that the committer brings, and somebody says the last words
/// meanwhile: what was promised before them goes out before them, and they go out.
fn last_words() {
    let outbox = Arc::new(Outbox::new());
    let (flushes, inbox) = lane::open(lane::COMMANDS);
    let speaker = {
        let (outbox, flushes) = (Arc::clone(&outbox), flushes.clone());
        thread::spawn(move || {
            assert_eq!(outbox.finish(|out| out.push(9)), Pushed::Queued);
            tell(&outbox, &flushes);
        })
    };
    let is_promised = outbox.promise(1);
    let committer = {
        let (outbox, flushes) = (Arc::clone(&outbox), flushes);
        thread::spawn(move || {
            if is_promised {
                outbox.keep_promise(1, |out| out.push(1));
            }
            tell(&outbox, &flushes);
        })
    };
    let mut said = Vec::new();
    loop {
        inbox.recv().expect("somebody tells the writer until the last words are out");
        let taken = outbox.take();
        said.extend(taken.bytes);
        if let Some(words) = taken.last_words {
            said.extend(words);
            break;
        }
    }
    speaker.join().unwrap();
    committer.join().unwrap();
    let expected: &[u8] = if is_promised { &[1, 9] } else { &[9] };
    assert_eq!(said, expected);
}

/// A connection is cut while its reader waits for room: the reader goes on.
fn cut() {
    let outbox = Arc::new(Outbox::new());
    outbox.offer(usize::MAX, |out| out.extend([0; BYTES_MAX]));
    let reader = {
        let outbox = Arc::clone(&outbox);
        thread::spawn(move || outbox.wait_for_room(BYTES_MAX))
    };
    outbox.close();
    reader.join().unwrap();
}

#[test]
fn a_writer_takes_every_reply_that_was_queued() {
    holds(3_000, replies);
    finds(Fault::OutboxFlag, replies);
}

#[test]
fn the_last_words_follow_what_was_promised_before_them() {
    holds(3_000, last_words);
    finds(Fault::OutboxPromise, last_words);
}

#[test]
fn a_connection_that_is_cut_keeps_no_reader_waiting() {
    holds(3_000, cut);
    finds(Fault::Unnotified, cut);
}
