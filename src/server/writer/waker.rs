//! How a writer that waits for full sockets hears that its lane has something.
//!
//! A lane can be waited for, and so can sockets, but not both at once. While a writer waits for
//! sockets it adds an event descriptor to them, and says so with a flag; whoever puts something
//! into the lane and finds the flag rings.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::event::{EventfdFlags, eventfd};

use crate::base::sync::atomic::{AtomicBool, Ordering, fence};

/// One writer's bell.
pub(crate) struct Waker {
    bell: OwnedFd,
    /// The writer waits for sockets, or is about to.
    listening: AtomicBool,
}

impl Waker {
    /// # Errors
    ///
    /// The operating system has no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { bell, listening: AtomicBool::new(false) })
    }

    /// To be called after a command went into the lane.
    pub(crate) fn ring(&self) {
        // With the fence in `listen`: either the writer sees the command when it looks at its lane
        // after raising the flag, or this sees the flag.
        fence(Ordering::SeqCst);
        if self.listening.load(Ordering::Relaxed) {
            // A full counter means that the bell is ringing already.
            _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    /// Raises the flag. The writer looks at its lane once more before it waits.
    pub(crate) fn listen(&self) {
        self.listening.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Lowers the flag and silences the bell.
    pub(crate) fn hush(&self) {
        self.listening.store(false, Ordering::Relaxed);
        let mut count = [0; 8];
        _ = rustix::io::read(&self.bell, &mut count);
    }

    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
