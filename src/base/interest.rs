//! Which writers look at something, and which of them have been told that there is news.
//!
//! # Threads
//!
//! Whoever has news asks whom to tell; a writer clears its flag and looks. Each writer is told at
//! most once until it has looked.

use crate::base::{
    flag::Flag,
    sync::atomic::{AtomicU64, Ordering},
};

/// The writers that follow one thing: a topic, or the state.
#[derive(Debug)]
pub struct Interest {
    writers: Box<[Wake]>,
}

/// One writer's interest.
#[derive(Debug, Default)]
struct Wake {
    /// Cursors of this writer that follow the thing.
    followers: AtomicU64,
    /// A wake-up is on its way, or about to be acted upon.
    pending: Flag,
}

impl Interest {
    #[must_use]
    pub fn new(writers: usize) -> Interest {
        Interest { writers: (0..writers).map(|_| Wake::default()).collect() }
    }

    /// Adds a follower on `writer`.
    ///
    /// To be done with the lock held that guards what is followed, and before it is read for the
    /// follower: who adds something that this reading missed does so later, and so sees the
    /// follower.
    pub fn follow(&self, writer: usize) {
        // Relaxed: ordered by that lock.
        self.writers[writer].followers.fetch_add(1, Ordering::Relaxed);
    }

    /// Removes a follower on `writer`.
    pub fn unfollow(&self, writer: usize) {
        self.writers[writer].followers.fetch_sub(1, Ordering::Relaxed);
    }

    #[must_use]
    pub fn followers(&self) -> u64 {
        self.writers.iter().map(|wake| wake.followers.load(Ordering::Relaxed)).sum()
    }

    /// Calls `wake` for each writer that has followers here and no wake-up pending. To be called
    /// after something was added; `wake` must get a command to the writer.
    pub fn wake(&self, mut wake: impl FnMut(usize)) {
        for (writer, state) in self.writers.iter().enumerate() {
            // Relaxed: ordered by the lock, see `follow`.
            if state.followers.load(Ordering::Relaxed) == 0 {
                continue;
            }
            if state.pending.raise() {
                wake(writer);
            }
        }
    }

    /// Clears the wake-up of `writer`, which looks next: what is added after that look finds the
    /// flag clear and sends another wake-up.
    pub fn woken(&self, writer: usize) {
        self.writers[writer].pending.lower();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_told_once_until_it_has_looked_and_only_if_it_follows() {
        let interest = Interest::new(2);
        interest.follow(1);
        let mut woken = Vec::new();
        interest.wake(|writer| woken.push(writer));
        interest.wake(|writer| woken.push(writer));
        assert_eq!(woken, [1]);
        interest.woken(1);
        interest.wake(|writer| woken.push(writer));
        assert_eq!((woken.as_slice(), interest.followers()), (&[1, 1][..], 1));
        interest.unfollow(1);
        interest.woken(1);
        interest.wake(|writer| woken.push(writer));
        assert_eq!(woken, [1, 1]);
    }
}
