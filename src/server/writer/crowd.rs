//! The sockets of one writer that are full, and its bell: whatever of them is ready.
//!
//! Each is reported once and then asked for again, so that a look costs what is ready, not what is
//! stalled.

use std::{
    io,
    net::TcpStream,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::event::{Timespec, epoll};

/// Sockets that one look reports at most.
const READY_MAX: usize = 256;
/// What the bell is known by.
const BELL: u64 = u64::MAX;

/// A set of full sockets.
pub(super) struct Crowd {
    epoll: OwnedFd,
}

impl Crowd {
    /// A set that holds just the bell.
    ///
    /// # Errors
    ///
    /// The operating system has no descriptor left.
    pub(super) fn new(bell: BorrowedFd<'_>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(BELL);
        epoll::add(&epoll, bell, data, epoll::EventFlags::IN)?;
        Ok(Self { epoll })
    }

    /// Adds the socket of peer `index`.
    ///
    /// # Errors
    ///
    /// The operating system has no memory left.
    pub(super) fn watch(&self, socket: &TcpStream, index: usize) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(index as u64), ONCE)?)
    }

    /// Asks again for a socket that was reported.
    ///
    /// # Errors
    ///
    /// As [`Crowd::watch`].
    pub(super) fn watch_on(&self, socket: &TcpStream, index: usize) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(index as u64), ONCE)?)
    }

    pub(super) fn forget(&self, socket: &TcpStream) {
        // It may not have been added, for lack of memory.
        _ = epoll::delete(&self.epoll, socket);
    }

    /// The peers whose sockets have room or an error. An empty answer may also mean that the bell
    /// rang, or nothing at all.
    ///
    /// # Blocking
    ///
    /// Up to `timeout`.
    pub(super) fn wait(&self, timeout: Duration) -> Vec<usize> {
        let mut ready = Vec::with_capacity(READY_MAX);
        // Rounded up, so that a deadline has passed when the wait for it ends.
        let extra = if timeout.is_zero() { 0 } else { 1 };
        let timeout = Timespec::try_from(timeout + Duration::from_millis(extra)).ok();
        let room = rustix::buffer::spare_capacity(&mut ready);
        if epoll::wait(&self.epoll, room, timeout.as_ref()).is_err() {
            // Interrupted: the writer looks again in its next turn.
            return Vec::new();
        }
        let peers = ready.iter().map(|event| event.data.u64()).filter(|data| *data != BELL);
        peers.filter_map(|data| usize::try_from(data).ok()).collect()
    }
}

const ONCE: epoll::EventFlags = epoll::EventFlags::OUT.union(epoll::EventFlags::ONESHOT);
