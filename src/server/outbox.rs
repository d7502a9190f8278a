//! What waits to be said to one connection: replies, pongs, goodbyes.
//!
//! Events are not here; they stay in their log until the writer copies them out.
//!
//! # Threads
//!
//! Its reader and the keeper append; its writer takes all at once. A reader whose client does not
//! read its replies waits here, and TCP slows that client alone.
//!
//! # Locks
//!
//! [`Rank::Outbox`], innermost of the server's.

use std::time::Duration;

use crate::base::{
    fault::Fault,
    flag::Flag,
    lock::{Rank, Ranked},
    sync::Condvar,
};

/// Bytes on their way to one connection's writer.
pub(crate) struct Outbox {
    inner: Ranked<Inner>,
    room: Condvar,
    /// The writer has been told, or is about to look.
    told: Flag,
}

#[derive(Default)]
struct Inner {
    bytes: Vec<u8>,
    /// Bytes that the writer has taken but the socket has not.
    held: usize,
    /// Bytes of replies that somebody will add later.
    promised: usize,
    /// Nothing will ever be sent again.
    closed: bool,
    last_words: LastWords,
}

#[derive(Default)]
enum LastWords {
    #[default]
    Unsaid,
    /// Said, and not yet taken.
    Said(Vec<u8>),
    Taken,
}

/// What a writer takes.
pub(crate) struct Taken {
    pub(crate) bytes: Vec<u8>,
    /// Nothing comes after this.
    pub(crate) last_words: Option<Vec<u8>>,
}

/// Whether something was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    Queued,
    /// The connection is gone or has said its last word.
    Closed,
    /// There is no room, and the caller does not wait.
    Full,
}

/// How long a wait for room lasts before it looks again whether the connection still lives. It is
/// woken by both; this only bounds the harm of a missed one.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

impl Outbox {
    pub(crate) fn new() -> Self {
        let inner = Ranked::new(Rank::Outbox, Inner::default());
        Self { inner, room: Condvar::new(), told: Flag::default() }
    }

    /// Appends what `write` writes if fewer than `bytes_max` bytes wait. One reply may go beyond
    /// the bound, so that a reply of any size fits into an empty outbox.
    pub(crate) fn offer(&self, bytes_max: usize, write: impl FnOnce(&mut Vec<u8>)) -> Pushed {
        self.inner.with(|inner| inner.offer(bytes_max, write))
    }

    /// Notes that a reply of at most `bytes` comes later, from another thread. Last words that are
    /// said meanwhile wait for it. `false` if they have been said already.
    pub(crate) fn promise(&self, bytes: usize) -> bool {
        self.inner.with(|inner| {
            let is_open = !inner.has_ended();
            inner.promised += if is_open { bytes } else { 0 };
            is_open
        })
    }

    /// Adds a reply that was promised with `bytes`. The writer is to be told, even if it is empty:
    /// last words may have waited for it.
    pub(crate) fn keep_promise(&self, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) {
        self.inner.with(|inner| {
            inner.promised = inner.promised.saturating_sub(bytes);
            if !inner.closed && !matches!(inner.last_words, LastWords::Taken) {
                write(&mut inner.bytes);
            }
        });
    }

    /// Waits until fewer than `bytes_max` bytes wait, or the connection is closed.
    ///
    /// # Blocking
    ///
    /// As long as the client reads nothing and its writer has not given up on it.
    pub(crate) fn wait_for_room(&self, bytes_max: usize) {
        let has_room =
            |inner: &mut Inner| (inner.closed || inner.waiting() < bytes_max).then_some(());
        while self.inner.wait(&self.room, LOOK_AGAIN, has_room).is_none() {}
    }

    /// Says the last words. Only the first ones are kept.
    pub(crate) fn finish(&self, write: impl FnOnce(&mut Vec<u8>)) -> Pushed {
        self.inner.with(|inner| {
            if inner.has_ended() {
                return Pushed::Closed;
            }
            let mut words = Vec::new();
            write(&mut words);
            inner.last_words = LastWords::Said(words);
            Pushed::Queued
        })
    }

    /// Drops what waits and lets nothing more in.
    pub(crate) fn close(&self) {
        self.inner.with(|inner| {
            inner.closed = true;
            inner.bytes = Vec::new();
            inner.last_words = LastWords::Taken;
            inner.held = 0;
            inner.promised = 0;
        });
        self.room.notify_all();
    }

    /// Whether the writer must be told that something waits: true once until it takes.
    pub(crate) fn must_tell(&self) -> bool {
        self.told.raise()
    }

    /// Takes all that waits; last words only when no reply is promised any more. What is appended
    /// after this tells the writer again.
    pub(crate) fn take(&self) -> Taken {
        if !Fault::OutboxFlag.is_on() {
            self.told.lower();
        }
        let taken = self.inner.with(|inner| {
            let bytes = std::mem::take(&mut inner.bytes);
            if 0 < inner.promised && !Fault::OutboxPromise.is_on() {
                return Taken { bytes, last_words: None };
            }
            let last_words = match std::mem::replace(&mut inner.last_words, LastWords::Taken) {
                LastWords::Said(words) => Some(words),
                before @ (LastWords::Unsaid | LastWords::Taken) => {
                    inner.last_words = before;
                    None
                }
            };
            Taken { bytes, last_words }
        });
        if Fault::OutboxFlag.is_on() {
            self.told.lower();
        }
        self.room.notify_all();
        taken
    }

    /// Notes how many bytes the writer has taken that the socket did not.
    pub(crate) fn hold(&self, bytes: usize) {
        self.inner.with(|inner| inner.held = bytes);
        self.room.notify_all();
    }

    /// Bytes that wait now, here or with the writer.
    pub(crate) fn waiting(&self) -> usize {
        self.inner.with(|inner| inner.waiting())
    }
}

impl Inner {
    fn has_ended(&self) -> bool {
        self.closed || !matches!(self.last_words, LastWords::Unsaid)
    }

    fn waiting(&self) -> usize {
        self.bytes.len() + self.held + self.promised
    }

    fn offer(&mut self, bytes_max: usize, write: impl FnOnce(&mut Vec<u8>)) -> Pushed {
        if self.has_ended() {
            return Pushed::Closed;
        }
        if bytes_max <= self.waiting() {
            return Pushed::Full;
        }
        write(&mut self.bytes);
        Pushed::Queued
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writer_is_told_once_until_it_takes() {
        let outbox = Outbox::new();
        assert_eq!(outbox.offer(10, |out| out.push(1)), Pushed::Queued);
        assert!(outbox.must_tell());
        assert_eq!(outbox.offer(10, |out| out.push(2)), Pushed::Queued);
        assert!(!outbox.must_tell());
        assert_eq!(outbox.take().bytes, [1, 2]);
        assert!(outbox.must_tell());
    }

    #[test]
    fn a_full_outbox_takes_last_words_and_then_nothing() {
        let outbox = Outbox::new();
        assert_eq!(outbox.offer(2, |out| out.extend([0; 5])), Pushed::Queued);
        assert_eq!(outbox.offer(2, |out| out.push(1)), Pushed::Full);
        assert_eq!(outbox.finish(|out| out.push(9)), Pushed::Queued);
        assert_eq!(outbox.offer(100, |out| out.push(1)), Pushed::Closed);
        assert_eq!(outbox.finish(|out| out.push(8)), Pushed::Closed);
        let taken = outbox.take();
        assert_eq!((taken.bytes, taken.last_words), (vec![0; 5], Some(vec![9])));
        assert_eq!(outbox.take().last_words, None);
        assert_eq!(outbox.offer(100, |out| out.push(1)), Pushed::Closed);
    }

    #[test]
    fn what_is_promised_takes_room_until_it_is_there_and_taken() {
        let outbox = Outbox::new();
        assert!(outbox.promise(10));
        assert_eq!(outbox.offer(10, |out| out.push(1)), Pushed::Full);
        outbox.keep_promise(10, |out| out.extend([7; 4]));
        assert_eq!(outbox.waiting(), 4);
        assert_eq!(outbox.take().bytes, [7; 4]);
        assert_eq!(outbox.waiting(), 0);
    }

    #[test]
    fn last_words_wait_for_what_was_promised_before_them() {
        let outbox = Outbox::new();
        assert!(outbox.promise(10) && outbox.promise(10));
        assert_eq!(outbox.finish(|out| out.push(9)), Pushed::Queued);
        assert!(!outbox.promise(10), "nothing is promised after them");
        outbox.keep_promise(10, |out| out.push(1));
        let taken = outbox.take();
        assert_eq!((taken.bytes, taken.last_words), (vec![1], None));
        outbox.keep_promise(10, |out| out.push(2));
        let taken = outbox.take();
        assert_eq!((taken.bytes, taken.last_words), (vec![2], Some(vec![9])));
    }

    #[test]
    fn closing_ends_a_wait_for_room() {
        let outbox = Outbox::new();
        outbox.offer(1, |out| out.push(1));
        outbox.close();
        outbox.wait_for_room(1);
        assert_eq!(outbox.waiting(), 0);
    }
}
