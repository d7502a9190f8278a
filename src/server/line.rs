//! The stream that a reader gives to tungstenite: bytes come from the socket, replies go to the
//! outbox.
//!
//! A reader never writes to the socket. What it has to tell others (topics with news, an outbox
//! with replies) it tells just before it waits, once for everything it did since: a burst of
//! requests that arrived together costs one wake-up, not one each.
//!
//! # Threads
//!
//! Its connection's reader alone.

use std::{
    io::{self, Read, Write},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    time::Duration,
};

use rustix::{
    buffer::spare_capacity,
    io::Errno,
    net::{RecvFlags, recv},
};

use crate::{
    base::{fault::Fault, lock, pause},
    config::Config,
    metrics::labels::{Closed, Transport},
    server::{
        connection::{Connection, Phase},
        outbox::Pushed,
        relay::{Shared, last_resort_ms},
        writer::Command,
    },
    topic::Topic,
};

/// Bytes that one read takes while a client keeps the line full.
const AHEAD_BYTES: usize = 64 * 1024;
/// Topics that wait to be told about; beyond it they are told at once.
const NEWS_MAX: usize = 64;

/// Events that wait to be counted.
#[derive(Default)]
struct Appended {
    transport: Option<Transport>,
    events: u64,
    bytes: u64,
}

/// One connection's reading half, and what is to be told before it waits.
pub(crate) struct Line {
    pub(crate) shared: Arc<Shared>,
    pub(crate) connection: Arc<Connection>,
    /// Bytes read beyond what was asked for, while the line is busy.
    ahead: Vec<u8>,
    ahead_from: usize,
    /// The last read filled its buffer: more is likely to be there.
    busy: bool,
    /// Topics that this reader appended to.
    news: Vec<Arc<Topic>>,
    /// Replies went to the outbox.
    replied: bool,
    /// Bytes received since others were last told.
    untold_bytes: usize,
    /// What this reader appended and has not counted yet.
    appended: Appended,
    /// The wall clock when this line last received.
    now_ms: u64,
    /// The settings in force when this line last waited.
    config: Arc<Config>,
    generation: u64,
}

impl Line {
    pub(crate) fn new(shared: Arc<Shared>, connection: Arc<Connection>) -> Self {
        let (generation, config) = shared.config();
        let now_ms = shared.clock.unix_ms();
        Self {
            shared,
            connection,
            ahead: Vec::new(),
            ahead_from: 0,
            busy: false,
            news: Vec::new(),
            replied: false,
            untold_bytes: 0,
            appended: Appended::default(),
            now_ms,
            config,
            generation,
        }
    }

    /// A line as a reader of `shared` has one, from a client of its own.
    #[cfg(test)]
    pub(crate) fn of_test(shared: &Arc<Shared>, address: std::net::SocketAddr) -> Self {
        let birth = crate::server::connection::Birth {
            id: u64::MAX,
            peer: address,
            socket: std::net::TcpStream::connect(address).unwrap(),
            writer: 0,
            handle: shared.writers[0].clone(),
            now_ms: 0,
            deadline_ms: u64::MAX,
        };
        Self::new(Arc::clone(shared), Arc::new(Connection::new(birth)))
    }

    /// The settings in force when this line last waited.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The wall clock, as of what is being handled: when it was received.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Notes that `topic` has an event, with `bytes` of payload, that its followers do not know of.
    pub(crate) fn has_news(&mut self, topic: &Arc<Topic>, transport: Transport, bytes: usize) {
        self.appended.transport = Some(transport);
        self.appended.events += 1;
        self.appended.bytes += bytes as u64;
        if Fault::WakeBeforeAppend.is_on() {
            return;
        }
        if self.news.iter().rev().any(|known| Arc::ptr_eq(known, topic)) {
            return;
        }
        if NEWS_MAX <= self.news.len() {
            self.tell();
        }
        self.news.push(Arc::clone(topic));
    }

    /// Tells everybody what they do not know yet.
    ///
    /// # Blocking
    ///
    /// While a writer's lane is full.
    pub(crate) fn tell(&mut self) {
        self.untold_bytes = 0;
        let Appended { transport, events, bytes } = std::mem::take(&mut self.appended);
        if let Some(transport) = transport {
            self.shared.metrics.published.add(transport, events);
            self.shared.metrics.published_bytes.add(bytes);
        }
        for topic in self.news.drain(..) {
            if topic.id().is_some() {
                // Its followers hear of it when it is stored.
                self.shared.vault.tell(&topic);
            } else {
                self.shared.wake(&topic);
            }
        }
        if std::mem::take(&mut self.replied) {
            self.connection.flush();
        }
    }

    /// Queues a reply.
    ///
    /// # Blocking
    ///
    /// While the outbox is full because the client does not read.
    pub(crate) fn reply(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.make_room();
        // The keeper's ping may have come between; a reply goes beyond the bound rather than
        // wait a second time.
        self.connection.outbox.offer(usize::MAX, write);
        self.replied = true;
    }

    /// Waits until the outbox has room for another reply.
    ///
    /// # Blocking
    ///
    /// While the client does not read.
    pub(crate) fn make_room(&mut self) {
        let bytes_max = self.config.connections.max_outbox;
        if bytes_max <= self.connection.outbox.waiting() {
            self.tell();
            self.shared.metrics.outbox_waits.add(1);
            self.connection.outbox.wait_for_room(bytes_max);
        }
    }

    /// Hands a command to this connection's writer, after everything said so far.
    pub(crate) fn command(&mut self, command: Command) {
        self.connection.command(command);
    }

    /// Enters a phase that ends after `timeout` at the latest.
    pub(crate) fn enter(&self, phase: Phase, timeout: Duration) {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX / 2);
        self.connection.enter(phase, self.shared.clock.uptime_ms() + timeout_ms);
    }

    /// Notes that a pong has come.
    pub(crate) fn note_pong(&self) {
        self.connection.pulse.answer(self.shared.clock.uptime_ms(), self.connection.asked_ms());
    }

    /// Says that nothing more comes after what was said. Once the client has that, it gets a moment
    /// to close.
    pub(crate) fn finish(&mut self, reason: Closed) {
        let now_ms = self.shared.clock.uptime_ms();
        let deadline_ms = last_resort_ms(now_ms, &self.config.connections);
        self.connection.finish(reason, deadline_ms, |_| {});
        self.replied = true;
        self.tell();
        self.shared.watch(&self.connection, now_ms);
    }

    /// Reads what has arrived, much at once. `None` if nothing has: a line that waits does not keep
    /// a large buffer.
    #[inline(never)]
    fn read_ahead(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        lock::assert_none_held();
        // Not zeroed before: where little has come that would be most of the work.
        let mut ahead = Vec::with_capacity(AHEAD_BYTES);
        let spare = spare_capacity(&mut ahead);
        let got = match recv(&self.connection.socket, spare, RecvFlags::DONTWAIT) {
            Ok((_, got)) => got,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.note(got);
        let len = got.min(buffer.len());
        buffer[..len].copy_from_slice(&ahead[..len]);
        self.busy = buffer.len() < got;
        if self.busy {
            self.ahead = ahead;
            self.ahead_from = len;
        }
        Ok(Some(len))
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        lock::assert_none_held();
        let got = loop {
            match (&self.connection.socket).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.note(got);
        Ok(got)
    }

    fn note(&mut self, got: usize) {
        pause::point();
        self.untold_bytes += got;
        self.now_ms = self.shared.clock.unix_ms();
        self.connection.heard(self.shared.clock.uptime_ms(), got);
        self.shared.metrics.received_bytes.add(got as u64);
    }
}

/// Does `work`, and then `clean_up` also if `work` panicked, which then goes on. Not a destructor's
/// business: a lock that is taken while a panic unwinds counts as torn for everybody.
pub(crate) fn finally<T, R>(
    subject: &mut T,
    work: impl FnOnce(&mut T) -> R,
    clean_up: impl FnOnce(&mut T),
) -> R {
    let outcome = catch_unwind(AssertUnwindSafe(|| work(subject)));
    clean_up(subject);
    outcome.unwrap_or_else(|panic| resume_unwind(panic))
}

impl Read for Line {
    /// Reads from the socket, after telling everybody what they do not know yet.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ahead_from < self.ahead.len() {
            let rest = &self.ahead[self.ahead_from..];
            let len = rest.len().min(buffer.len());
            buffer[..len].copy_from_slice(&rest[..len]);
            self.ahead_from += len;
            if self.ahead_from == self.ahead.len() {
                self.ahead = Vec::new();
                self.ahead_from = 0;
            }
            return Ok(len);
        }
        if AHEAD_BYTES <= self.untold_bytes {
            self.tell();
        }
        if self.busy
            && let Some(got) = self.read_ahead(buffer)?
        {
            return Ok(got);
        }
        self.tell();
        if self.shared.generation() != self.generation {
            (self.generation, self.config) = self.shared.config();
        }
        let got = self.receive(buffer)?;
        self.busy = got == buffer.len();
        Ok(got)
    }
}

impl Write for Line {
    /// Queues `bytes` for the writer. Never touches the socket.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.make_room();
        match self.connection.outbox.offer(usize::MAX, |out| out.extend_from_slice(bytes)) {
            Pushed::Queued | Pushed::Full => self.replied = true,
            // The last word has been said; the client's closing handshake needs no answer.
            Pushed::Closed => {}
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
