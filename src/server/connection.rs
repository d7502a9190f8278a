//! One connection, as its reader, its writer and the keeper share it.
//!
//! # Threads
//!
//! The reader owns the reading half of the socket, the writer the writing half; both use the one
//! descriptor by reference. Anybody may end it, which wakes both.

use std::{
    net::{Shutdown, SocketAddr, TcpStream},
    sync::OnceLock,
};

use crate::{
    base::sync::atomic::{AtomicU8, AtomicU64, Ordering},
    metrics::labels::Closed,
    server::{
        outbox::Outbox,
        writer::{Command, WriterHandle},
    },
    wire::{codes::CloseCode, frame, reply},
};

/// What both halves of a connection know.
pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) peer: SocketAddr,
    pub(crate) socket: TcpStream,
    pub(crate) outbox: Outbox,
    /// The writer that owns the writing half, for life.
    pub(crate) writer: usize,
    handle: WriterHandle,
    pub(crate) opened_ms: u64,
    phase: AtomicU8,
    /// When the phase ends at the latest; milliseconds since the relay's start, like all here.
    deadline_ms: AtomicU64,
    heard_ms: AtomicU64,
    pinged_ms: AtomicU64,
    received_bytes: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    reason: OnceLock<Closed>,
}

/// What a connection is doing, which decides its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Waiting for a request, or for the rest of one.
    Http,
    /// Between requests.
    Idle,
    WebSocket,
    /// Said its last word.
    Closing,
}

impl Phase {
    const ALL: [Phase; 4] = [Phase::Http, Phase::Idle, Phase::WebSocket, Phase::Closing];
}

/// What a new connection is made of.
pub(crate) struct Birth {
    pub(crate) id: u64,
    pub(crate) peer: SocketAddr,
    pub(crate) socket: TcpStream,
    pub(crate) writer: usize,
    pub(crate) handle: WriterHandle,
    pub(crate) now_ms: u64,
    pub(crate) deadline_ms: u64,
}

impl Connection {
    pub(crate) fn new(birth: Birth) -> Self {
        let Birth { id, peer, socket, writer, handle, now_ms, deadline_ms } = birth;
        Self {
            id,
            peer,
            socket,
            outbox: Outbox::new(),
            writer,
            handle,
            opened_ms: now_ms,
            phase: AtomicU8::new(Phase::Http as u8),
            deadline_ms: AtomicU64::new(deadline_ms),
            heard_ms: AtomicU64::new(now_ms),
            pinged_ms: AtomicU64::new(now_ms),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            reason: OnceLock::new(),
        }
    }

    /// Hands a command to the connection's writer.
    ///
    /// # Blocking
    ///
    /// While the writer's lane is full.
    pub(crate) fn command(&self, command: Command) {
        self.handle.send(command);
    }

    /// Tells the writer that something waits in the outbox, unless it knows.
    pub(crate) fn flush(&self) {
        if self.outbox.must_tell() {
            self.command(Command::Flush { connection: self.id });
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        // Relaxed here and below: each value stands alone; the keeper looks again later.
        Phase::ALL[usize::from(self.phase.load(Ordering::Relaxed))]
    }

    pub(crate) fn enter(&self, phase: Phase, deadline_ms: u64) {
        if self.phase() != Phase::Closing {
            self.deadline_ms.store(deadline_ms, Ordering::Relaxed);
            self.phase.store(phase as u8, Ordering::Relaxed);
        }
    }

    pub(crate) fn deadline_ms(&self) -> u64 {
        self.deadline_ms.load(Ordering::Relaxed)
    }

    /// Lets the phase end at `deadline_ms` if it would end later.
    pub(crate) fn hurry(&self, deadline_ms: u64) {
        self.deadline_ms.fetch_min(deadline_ms, Ordering::Relaxed);
    }

    /// Notes that the client was heard.
    pub(crate) fn heard(&self, now_ms: u64, bytes: usize) {
        self.heard_ms.store(now_ms, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn heard_ms(&self) -> u64 {
        self.heard_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn pinged_ms(&self) -> u64 {
        self.pinged_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn ping(&self, now_ms: u64, outbox_max: usize) {
        self.pinged_ms.store(now_ms, Ordering::Relaxed);
        // A full outbox needs no ping: whether the client still reads shows by itself.
        self.outbox.offer(outbox_max, frame::push_ping);
        self.flush();
    }

    pub(crate) fn sent_bytes_now(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn received_bytes_now(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Why the connection ended, as far as anybody has said. The first reason stays.
    pub(crate) fn reason(&self) -> Option<Closed> {
        self.reason.get().copied()
    }

    pub(crate) fn note_reason(&self, reason: Closed) {
        _ = self.reason.set(reason);
    }

    /// Says the last words, after which the writer shuts its half down. The peer has until
    /// `deadline_ms` to close its own. The caller flushes.
    pub(crate) fn finish(
        &self,
        reason: Closed,
        deadline_ms: u64,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        self.note_reason(reason);
        self.deadline_ms.store(deadline_ms, Ordering::Relaxed);
        self.phase.store(Phase::Closing as u8, Ordering::Relaxed);
        self.outbox.finish(write);
    }

    /// As [`Connection::finish`], with a `bye` and a close frame.
    pub(crate) fn say_bye(&self, reason: Closed, deadline_ms: u64, bye: &Bye<'_>) {
        self.finish(reason, deadline_ms, |out| bye.write(out));
    }

    /// Ends the connection now: both halves of the socket, and whoever waits for room.
    pub(crate) fn cut(&self, reason: Closed) {
        self.note_reason(reason);
        self.outbox.close();
        // An error means that the socket is gone already, which is what was wanted.
        drop(self.socket.shutdown(Shutdown::Both));
    }
}

/// A goodbye: what the client should know, and the code that tells it what to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bye<'a> {
    /// One word, for programs.
    pub(crate) reason: &'a str,
    /// A sentence, for people; it goes into the close frame.
    pub(crate) text: &'a str,
    pub(crate) code: CloseCode,
    pub(crate) reconnect_after_ms: Option<u64>,
}

impl Bye<'_> {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        reply::bye(out, self.reason, self.reconnect_after_ms);
        frame::push_close(out, self.code, self.text);
    }
}

/// A connection's name in the protocol and the logs.
pub(crate) fn connection_name(id: u64) -> String {
    format!("c{id}")
}
