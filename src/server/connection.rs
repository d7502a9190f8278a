//! One connection, as its reader, its writer and the keeper share it.
//!
//! # Threads
//!
//! The reader owns the reading half of the socket, the writer the writing half; both use the one
//! descriptor by reference. Anybody may end it, which wakes both.

use std::{
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, OnceLock},
};

use crate::{
    base::{
        limits::PUBLISHED_BYTES,
        sync::atomic::{AtomicU64, Ordering},
    },
    metrics::labels::{Channel, Closed},
    server::{
        echo::ECHO,
        outbox::Outbox,
        pulse::Pulse,
        relay::Shared,
        writer::{Command, WriterHandle},
    },
    state::{Settle, Unsaved},
    topic::{Confirm, Unstored},
    wire::{
        self,
        codes::CloseCode,
        frame,
        reply::{self, Receipt},
        state::Stored,
        stream::{self, Dialect, Place},
    },
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
    /// A [`State`]. Times are milliseconds since the relay's start, like all here.
    state: AtomicU64,
    heard_ms: AtomicU64,
    pinged_ms: AtomicU64,
    /// When the ping was sent that is to be answered.
    asked_ms: AtomicU64,
    pub(crate) pulse: Pulse,
    received_bytes: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    /// Set before anything but an HTTP answer is said.
    dialect: OnceLock<Dialect>,
    reason: OnceLock<Closed>,
}

/// What a connection is doing, which decides its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Phase {
    /// Waiting for a request, or for the rest of one.
    Http,
    /// Between requests.
    Idle,
    WebSocket,
    /// Answering with a stream.
    Stream,
    /// Said its last word.
    Closing,
}

/// A phase, and when it ends at the latest. Both are one word, so that they change together: a
/// phase with another one's deadline would be a connection that is cut too early, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    pub(crate) deadline_ms: u64,
}

impl State {
    const DEADLINE_BITS: u32 = 61;
    const DEADLINE_MAX: u64 = (1 << Self::DEADLINE_BITS) - 1;

    fn pack(self) -> u64 {
        (self.phase as u64) << Self::DEADLINE_BITS | self.deadline_ms.min(Self::DEADLINE_MAX)
    }

    fn unpack(word: u64) -> Self {
        let phase = match word >> Self::DEADLINE_BITS {
            0 => Phase::Http,
            1 => Phase::Idle,
            2 => Phase::WebSocket,
            3 => Phase::Stream,
            _ => Phase::Closing,
        };
        Self { phase, deadline_ms: word & Self::DEADLINE_MAX }
    }

    /// What becomes of it when `next` is to begin: the last word is the last.
    fn enter(self, next: State) -> State {
        if self.phase == Phase::Closing { self } else { next }
    }

    /// What becomes of it when the last word is said. Who says a further one cannot delay the end.
    fn close(self, deadline_ms: u64) -> State {
        let before_ms = if self.phase == Phase::Closing { self.deadline_ms } else { u64::MAX };
        State { phase: Phase::Closing, deadline_ms: deadline_ms.min(before_ms) }
    }

    fn hurry(self, deadline_ms: u64) -> State {
        State { deadline_ms: self.deadline_ms.min(deadline_ms), ..self }
    }
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
            state: AtomicU64::new(State { phase: Phase::Http, deadline_ms }.pack()),
            heard_ms: AtomicU64::new(now_ms),
            pinged_ms: AtomicU64::new(now_ms),
            asked_ms: AtomicU64::new(now_ms),
            pulse: Pulse::default(),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            dialect: OnceLock::new(),
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
        self.state().phase
    }

    pub(crate) fn state(&self) -> State {
        // SeqCst here and in `change`: a reader enters a phase and then asks whether the relay
        // stops, and a stop says so and then looks at phases; one of them must see the other.
        State::unpack(self.state.load(Ordering::SeqCst))
    }

    /// Enters a phase, unless the last word has been said.
    pub(crate) fn enter(&self, phase: Phase, deadline_ms: u64) {
        self.change(|state| state.enter(State { phase, deadline_ms }));
    }

    /// Lets the phase end at `deadline_ms` if it would end later.
    pub(crate) fn hurry(&self, deadline_ms: u64) {
        self.change(|state| state.hurry(deadline_ms));
    }

    fn change(&self, change: impl Fn(State) -> State) {
        let change = |word| Some(change(State::unpack(word)).pack());
        // Never an error: the closure always has a value.
        _ = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
    }

    /// Notes that the client was heard.
    pub(crate) fn heard(&self, now_ms: u64, bytes: usize) {
        // Relaxed here and below: each value stands alone; the keeper looks again later.
        self.heard_ms.store(now_ms, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn heard_ms(&self) -> u64 {
        self.heard_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn pinged_ms(&self) -> u64 {
        self.pinged_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn asked_ms(&self) -> u64 {
        self.asked_ms.load(Ordering::Relaxed)
    }

    /// Sends a ping; `asked_ms` is when the first one was sent that is still to be answered.
    pub(crate) fn ping(&self, now_ms: u64, asked_ms: u64, outbox_max: usize) {
        self.pinged_ms.store(now_ms, Ordering::Relaxed);
        self.asked_ms.store(asked_ms, Ordering::Relaxed);
        self.pulse.ask();
        // A full outbox needs no ping: whether the client still reads shows by itself.
        self.outbox.offer(outbox_max, frame::push_ping);
        self.flush();
    }

    /// Lets a stream's client hear that the line still stands; it can only listen.
    pub(crate) fn ping_stream(&self, now_ms: u64, unix_ms: u64, outbox_max: usize) {
        self.pinged_ms.store(now_ms, Ordering::Relaxed);
        self.outbox.offer(outbox_max, |out| {
            self.say(out, |out| reply::ping(out, unix_ms));
        });
        self.flush();
    }

    /// Begins to speak `dialect`, for good.
    pub(crate) fn speak(&self, dialect: Dialect) {
        _ = self.dialect.set(dialect);
    }

    /// What the connection is, as a word.
    pub(crate) fn transport(&self) -> &'static str {
        self.dialect.get().map_or("http", |dialect| Channel::from(*dialect).as_str())
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect.get().copied().unwrap_or(Dialect::WebSocket)
    }

    /// Appends what `write` appends as text frames, as this connection speaks.
    pub(crate) fn say(&self, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        match self.dialect() {
            Dialect::WebSocket => write(out),
            dialect @ (Dialect::Sse | Dialect::Ndjson) => {
                let mut frames = Vec::new();
                write(&mut frames);
                dialect.translate(out, &frames, |_| Place::Same);
            }
        }
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
        self.change(|state| state.close(deadline_ms));
        self.outbox.finish(write);
    }

    /// As [`Connection::finish`], with a `bye` and a close frame.
    pub(crate) fn say_bye(&self, reason: Closed, deadline_ms: u64, bye: &Bye<'_>) {
        self.finish(reason, deadline_ms, |out| bye.write(out, self));
    }

    /// Lets go out what was said, and nothing more in: its reader ends at once.
    pub(crate) fn retire(&self, reason: Closed, deadline_ms: u64) {
        self.finish(reason, deadline_ms, |_| {});
        self.flush();
        // An error means that the socket is gone already.
        drop(self.socket.shutdown(Shutdown::Read));
    }

    /// Ends the connection now: both halves of the socket, and whoever waits for room.
    pub(crate) fn cut(&self, reason: Closed) {
        self.note_reason(reason);
        self.outbox.close();
        // An error means that the socket is gone already, which is what was wanted.
        drop(self.socket.shutdown(Shutdown::Both));
    }
}

/// How a WebSocket publisher hears of its events.
pub(crate) struct Publisher {
    pub(crate) connection: Arc<Connection>,
    pub(crate) shared: Arc<Shared>,
}

impl Publisher {
    /// Gives the answer that was promised: what `write` writes, or that nothing was stored.
    fn answer(&self, request: Option<u64>, is_stored: bool, write: impl FnOnce(&mut Vec<u8>, u64)) {
        let bytes = if request.is_some() { PUBLISHED_BYTES } else { 0 };
        let outbox = &self.connection.outbox;
        if !is_stored {
            let refusal = self.shared.vault.unstored();
            self.shared.metrics.requests_refused.add(refusal.code, 1);
            outbox.keep_promise(bytes, |out| reply::error(out, request, None, &refusal));
        } else if let Some(id) = request {
            outbox.keep_promise(bytes, |out| write(out, id));
        }
    }
}

impl Confirm for Publisher {
    fn confirm(&self, request: Option<u64>, outcome: &Result<Receipt, Unstored>) {
        self.answer(request, outcome.is_ok(), |out, id| {
            if let Ok(receipt) = outcome {
                reply::published(out, id, receipt);
            }
        });
    }

    fn confirmed(&self) {
        self.connection.flush();
    }
}

impl Settle for Publisher {
    fn settle(&self, request: Option<u64>, outcome: &Result<Stored, Unsaved>) {
        self.answer(request, outcome.is_ok(), |out, id| {
            if let Ok(stored) = outcome {
                wire::state::stored(out, id, stored);
            }
        });
    }

    fn settled(&self) {
        self.connection.flush();
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
    fn write(&self, out: &mut Vec<u8>, connection: &Connection) {
        match (connection.dialect(), self.reconnect_after_ms) {
            (Dialect::Sse, Some(ms)) => stream::retry(out, ms),
            (Dialect::Sse | Dialect::Ndjson | Dialect::WebSocket, _) => {}
        }
        if !ECHO {
            connection.say(out, |out| reply::bye(out, self.reason, self.reconnect_after_ms));
        }
        if connection.dialect() == Dialect::WebSocket {
            frame::push_close(out, self.code, self.text);
        }
    }
}

/// A connection's name in the protocol and the logs.
pub(crate) fn connection_name(id: u64) -> String {
    format!("c{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 5] =
        [Phase::Http, Phase::Idle, Phase::WebSocket, Phase::Stream, Phase::Closing];

    #[test]
    fn a_state_survives_its_word() {
        for phase in PHASES {
            for deadline_ms in [0, 1, State::DEADLINE_MAX] {
                let state = State { phase, deadline_ms };
                assert_eq!(State::unpack(state.pack()), state);
            }
            let never = State { phase, deadline_ms: u64::MAX };
            let longest = State { phase, deadline_ms: State::DEADLINE_MAX };
            assert_eq!(State::unpack(never.pack()), longest);
        }
    }

    #[test]
    fn nothing_follows_the_last_word_and_its_deadline_only_comes_nearer() {
        for phase in PHASES {
            let closed = State { phase, deadline_ms: 0 }.close(500);
            let expected = if phase == Phase::Closing { 0 } else { 500 };
            assert_eq!(closed, State { phase: Phase::Closing, deadline_ms: expected });
        }
        let closed = State { phase: Phase::WebSocket, deadline_ms: 0 }.close(500);
        for phase in PHASES {
            assert_eq!(closed.enter(State { phase, deadline_ms: 9_000 }), closed);
        }
        assert_eq!(closed.close(9_000), closed);
        assert_eq!(closed.hurry(9_000), closed);
        assert_eq!(closed.hurry(300).deadline_ms, 300);
        assert_eq!(closed.close(300).deadline_ms, 300);
    }
}
