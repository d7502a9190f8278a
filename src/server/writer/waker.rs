//! How a writer that waits hears that its lane has something.
//!
//! A lane can be waited for, and so can sockets, but not both at once; and a lane's own wait spins
//! and yields before it sleeps, which a writer that sleeps between bursts pays every time. So a
//! writer sleeps here: parked, or, while some of its sockets are full, in a poll of these and an
//! event descriptor. It says which with a flag, and whoever puts something into the lane and finds
//! the flag rings.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
    time::Duration,
};

use rustix::event::{EventfdFlags, eventfd};

use crate::base::{
    fault::Fault,
    sync::{
        atomic::{AtomicU8, Ordering, fence},
        thread::{self, Thread},
    },
};

/// One writer's bell.
pub(crate) struct Waker {
    bell: OwnedFd,
    sleep: AtomicU8,
    thread: OnceLock<Thread>,
}

/// How a writer sleeps, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Sleep {
    Awake,
    Parked,
    Polling,
}

impl Waker {
    /// # Errors
    ///
    /// The operating system has no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { bell, sleep: AtomicU8::new(Sleep::Awake as u8), thread: OnceLock::new() })
    }

    /// To be called after a command went into the lane.
    pub(crate) fn ring(&self) {
        // With the fence in `fall_asleep`: either the writer sees the command when it looks at its
        // lane after setting the flag, or this sees the flag.
        if !Fault::RingUnfenced.is_on() {
            fence(Ordering::SeqCst);
        }
        let sleep = self.sleep.load(Ordering::Relaxed);
        if sleep == Sleep::Parked as u8 {
            if let Some(thread) = self.thread.get() {
                thread.unpark();
            }
        } else if sleep == Sleep::Polling as u8 {
            // A full counter means that the bell is ringing already.
            _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    /// Sleeps until somebody rings or `limit` has passed, unless `is_empty` says that the lane has
    /// something. May also return for no reason.
    ///
    /// # Blocking
    ///
    /// Until a command comes, or up to `limit`. To be called by the writer alone.
    pub(crate) fn park(&self, limit: Option<Duration>, is_empty: impl Fn() -> bool) {
        self.thread.get_or_init(thread::current);
        let looked = Fault::WakerLooksEarly.is_on().then(&is_empty);
        self.fall_asleep(Sleep::Parked);
        if looked.unwrap_or_else(is_empty) {
            match limit {
                Some(limit) => thread::park_timeout(limit),
                None => thread::park(),
            }
        }
        self.sleep.store(Sleep::Awake as u8, Ordering::Relaxed);
    }

    /// Says that the writer is going to poll the bell. It looks at its lane once more before.
    pub(crate) fn listen(&self) {
        self.fall_asleep(Sleep::Polling);
    }

    /// Ends what [`Waker::listen`] began, and silences the bell.
    pub(crate) fn hush(&self) {
        self.sleep.store(Sleep::Awake as u8, Ordering::Relaxed);
        let mut count = [0; 8];
        _ = rustix::io::read(&self.bell, &mut count);
    }

    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn fall_asleep(&self, sleep: Sleep) {
        self.sleep.store(sleep as u8, Ordering::Relaxed);
        if !Fault::SleepUnfenced.is_on() {
            fence(Ordering::SeqCst);
        }
    }
}
