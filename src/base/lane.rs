//! Bounded queues between threads. There is no unbounded one.
//!
//! [`LANES`] is the complete list; `ARCHITECTURE.md` prints it as a table and a test keeps the two
//! equal. A lane that waits may only lead to a later stage, never back, which is what makes a cycle
//! of full queues impossible.

use std::time::Duration;

pub use crate::base::sync::channel::{Receiver, RecvError, RecvTimeoutError, TryRecvError};
use crate::base::{
    lock,
    sync::channel::{self, SendTimeoutError, Sender, TrySendError},
};

/// What a sender experiences when the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The sender blocks, which pushes the delay back to whoever feeds it.
    Wait,
    /// The sender gets the message back at once and must account for it.
    Refuse,
}

/// The fixed properties of one kind of queue.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    pub name: &'static str,
    pub capacity: usize,
    pub when_full: WhenFull,
}

/// Readers, the keeper and `main` to one writer. Waiting here closes the peer's TCP window: that
/// is the point.
pub const COMMANDS: Lane = Lane { name: "commands", capacity: 2_048, when_full: WhenFull::Wait };
/// Acceptors and readers to the keeper: connections whose deadlines are to be watched. Writers
/// offer there, and never wait.
pub const DEADLINES: Lane = Lane { name: "deadlines", capacity: 1_024, when_full: WhenFull::Wait };

/// Readers, the keeper and the pager to the committer. Waiting here is what a busy disk does to
/// publishers.
pub const COMMITS: Lane = Lane { name: "commits", capacity: 4_096, when_full: WhenFull::Wait };
/// Readers to the pager, for history that is on disk. Writers offer there, and never wait.
pub const PAGES: Lane = Lane { name: "pages", capacity: 1_024, when_full: WhenFull::Wait };

/// Whoever works for a caller to the caller that waits for one answer.
pub const REPLIES: Lane = Lane { name: "replies", capacity: 1, when_full: WhenFull::Refuse };
/// `landline pub --lines` to the thread that confirms. Waiting stops reading the input.
pub const CONFIRMATIONS: Lane =
    Lane { name: "confirmations", capacity: 1_024, when_full: WhenFull::Wait };
/// The subscriptions of `landline sub` to its output. Waiting fills their inboxes.
pub const PRINTS: Lane = Lane { name: "prints", capacity: 1_024, when_full: WhenFull::Wait };

/// Whoever submits to one worker of a `bus::Pool`. Each sender says how long it waits for room:
/// not for ever, because a job may submit to the worker that runs it.
pub const JOBS: Lane = Lane { name: "jobs", capacity: 1_024, when_full: WhenFull::Refuse };

/// Every lane of the relay and of its client.
pub const LANES: &[Lane] =
    &[COMMANDS, DEADLINES, COMMITS, PAGES, REPLIES, CONFIRMATIONS, PRINTS, JOBS];

/// The message comes back so that the caller can count, coalesce or retry it.
#[derive(Debug, PartialEq, Eq)]
pub enum Rejected<T> {
    /// Only on lanes that [`WhenFull::Refuse`], from [`Inlet::offer`] and from
    /// [`Inlet::send_timeout`].
    Full(T),
    /// The receiving stage has shut down.
    Closed(T),
}

/// The sending end of a lane.
pub struct Inlet<T> {
    lane: Lane,
    sender: Sender<T>,
}

/// Opens a queue with the properties of `lane`.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that creates queues")]
pub fn open<T>(lane: Lane) -> (Inlet<T>, Receiver<T>) {
    let (sender, receiver) = channel::bounded(lane.capacity);
    (Inlet { lane, sender }, receiver)
}

impl<T> Clone for Inlet<T> {
    fn clone(&self) -> Self {
        Self { lane: self.lane, sender: self.sender.clone() }
    }
}

impl<T> Inlet<T> {
    /// Hands `message` to the receiving stage.
    ///
    /// # Errors
    ///
    /// [`Rejected`] with the message, which is never lost silently.
    ///
    /// # Blocking
    ///
    /// On lanes that wait, until there is room. Never with a ranked lock held.
    pub fn send(&self, message: T) -> Result<(), Rejected<T>> {
        match self.lane.when_full {
            WhenFull::Wait => {
                lock::assert_none_held();
                match self.offer(message) {
                    Err(Rejected::Full(message)) => self.wait(message),
                    done => done,
                }
            }
            WhenFull::Refuse => self.offer(message),
        }
    }

    // Rare, and with a large frame: out of the way of stacks that are to stay small.
    #[inline(never)]
    fn wait(&self, message: T) -> Result<(), Rejected<T>> {
        self.sender.send(message).map_err(|lost| Rejected::Closed(lost.into_inner()))
    }

    /// Hands `message` over if there is room, or comes to be within `limit`, on any lane.
    ///
    /// # Errors
    ///
    /// [`Rejected`] with the message.
    ///
    /// # Blocking
    ///
    /// Up to `limit`, never with a ranked lock held; with a limit of zero not at all, and then a
    /// lock may be.
    pub fn send_timeout(&self, message: T, limit: Duration) -> Result<(), Rejected<T>> {
        if limit.is_zero() {
            return self.offer(message);
        }
        lock::assert_none_held();
        match self.offer(message) {
            Err(Rejected::Full(message)) => self.wait_for(message, limit),
            done => done,
        }
    }

    #[inline(never)]
    fn wait_for(&self, message: T, limit: Duration) -> Result<(), Rejected<T>> {
        self.sender.send_timeout(message, limit).map_err(|lost| match lost {
            SendTimeoutError::Timeout(message) => Rejected::Full(message),
            SendTimeoutError::Disconnected(message) => Rejected::Closed(message),
        })
    }

    /// Hands `message` over if there is room right now, on any lane.
    ///
    /// # Errors
    ///
    /// [`Rejected`] with the message.
    pub fn offer(&self, message: T) -> Result<(), Rejected<T>> {
        self.sender.try_send(message).map_err(|lost| match lost {
            TrySendError::Full(message) => Rejected::Full(message),
            TrySendError::Disconnected(message) => Rejected::Closed(message),
        })
    }

    /// How many messages wait.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.sender.len()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        thread,
    };

    use super::*;
    use crate::base::{
        clock::Clock,
        lock::{Rank, Ranked},
    };

    const ONE: Lane = Lane { name: "test", capacity: 1, when_full: WhenFull::Refuse };

    #[test]
    fn a_full_lane_that_refuses_gives_the_message_back() {
        let (inlet, outlet) = open(ONE);
        assert_eq!(inlet.send(1), Ok(()));
        assert_eq!(inlet.send(2), Err(Rejected::Full(2)));
        assert_eq!(inlet.depth(), 1);
        drop(outlet);
        assert_eq!(inlet.send(3), Err(Rejected::Closed(3)));
    }

    #[test]
    fn a_send_with_a_limit_gives_the_message_back_after_it_and_not_before() {
        let (inlet, outlet) = open(ONE);
        let (clock, limit) = (Clock::default(), Duration::from_millis(30));
        assert_eq!(inlet.send_timeout(1, limit), Ok(()));
        assert_eq!(inlet.send_timeout(2, Duration::ZERO), Err(Rejected::Full(2)));
        let before = clock.now();
        assert_eq!(inlet.send_timeout(3, limit), Err(Rejected::Full(3)));
        assert!(limit <= clock.now() - before);
        drop(outlet);
        assert_eq!(inlet.send_timeout(4, limit), Err(Rejected::Closed(4)));
    }

    #[test]
    fn a_send_with_a_limit_goes_on_when_there_is_room() {
        let (inlet, outlet) = open(ONE);
        assert_eq!(inlet.send(1), Ok(()));
        thread::scope(|scope| {
            let sender = scope.spawn(|| inlet.send_timeout(2, Duration::from_secs(60)));
            assert_eq!(outlet.recv(), Ok(1));
            assert_eq!(outlet.recv_timeout(Duration::from_secs(60)), Ok(2));
            assert_eq!(sender.join().unwrap(), Ok(()));
        });
    }

    #[test]
    fn a_send_that_may_wait_under_a_lock_panics_and_one_that_may_not_is_fine() {
        let (inlet, _outlet) = open(ONE);
        let log = Ranked::new(Rank::Log, ());
        assert_eq!(log.with(|()| inlet.send_timeout(1, Duration::ZERO)), Ok(()));
        let wrong = || log.with(|()| inlet.send_timeout(2, Duration::from_secs(1)));
        assert!(catch_unwind(AssertUnwindSafe(wrong)).is_err());
    }
}
