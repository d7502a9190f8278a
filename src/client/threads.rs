//! The two threads of a client: one connects, reads and reconnects; one writes.
//!
//! # Threads
//!
//! - `client-read` is in `connect`, in `read`, waiting for a full inbox, or in the pause before
//!   the next attempt. Shutting the socket down, ending the inboxes and raising the stop signal
//!   end all of these except `connect`, which ends at its own time limit.
//! - `client-write` is in `write`, or waits for something to write. Shutting the socket down ends
//!   the first, [`Shared::end`] the second.
//!
//! # Locks
//!
//! [`Rank::Client`](crate::base::lock::Rank::Client), for one message or one batch; never during
//! a read, a write, a delivery or a callback.

use std::{io::Write, net::Shutdown, sync::Arc, time::Duration};

use tungstenite::Message;

use crate::{
    base::{
        backoff::Backoff,
        clock::Clock,
        lifecycle::Stop,
        lock::{self, Ranked},
        random,
        sync::Condvar,
    },
    client::{
        error::{ClientError, LinkError},
        follow::SubId,
        inbox::{Inbox, Put},
        link::{self, Address, Failure, Masks, Opened},
        message::Incoming,
        options::{Options, State},
        session::{self, Link, Post, Session, Work},
    },
    wire::codes::ComeBack,
};

/// A connection that lasted this long was a good one: the next attempt is the first again.
const GOOD: Duration = Duration::from_secs(1);
/// The longest pause that a relay may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What the threads and the callers share.
pub(super) struct Shared {
    pub address: Address,
    pub options: Options,
    pub clock: Clock,
    pub stop: Stop,
    pub session: Ranked<Session>,
    /// There is something for the writer.
    pub work: Condvar,
    /// There is room for a request, nothing is waiting for an answer, or the state has changed.
    pub changed: Condvar,
}

impl Shared {
    /// Runs `change` on the session and lets the writer send what came of it.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut Session) -> R) -> R {
        let outcome = self.session.with(change);
        self.work.notify_one();
        outcome
    }

    /// Ends the client for everybody.
    pub(super) fn end(&self, error: ClientError) {
        self.session.with(|session| session.end(error));
        self.work.notify_all();
        self.changed.notify_all();
    }

    fn set_state(&self, state: State) {
        let changed = self.session.with(|session| {
            let goes_on = session.over.is_none();
            if goes_on {
                session.state = state.clone();
            }
            goes_on
        });
        self.changed.notify_all();
        if changed {
            self.tell(&state);
        }
    }

    fn tell(&self, state: &State) {
        lock::assert_none_held();
        if let Some(observer) = &self.options.on_state {
            observer(state);
        }
    }

    /// Closes the socket under both threads.
    pub(super) fn cut(&self) {
        if let Some(link) = self.session.with(|session| session.link()) {
            // It may be closed already.
            drop(link.socket.shutdown(Shutdown::Both));
        }
    }
}

/// The body of `client-read`.
pub(super) fn read(shared: &Arc<Shared>) {
    let Options { backoff_floor, backoff_ceiling, .. } = shared.options;
    let mut backoff = Backoff::new(backoff_floor, backoff_ceiling);
    while !shared.stop.is_raised() {
        shared.set_state(State::Connecting);
        let started = shared.clock.now();
        let id = shared.session.with(Session::hello_id);
        let failure = match link::open(&shared.address, &shared.options, &shared.clock, id) {
            Ok(opened) => run(shared, opened),
            Err(failure) => failure,
        };
        shared.change(Session::link_down);
        if shared.session.with(|session| session.over.is_some()) {
            break;
        }
        let good = GOOD <= shared.clock.now().saturating_duration_since(started);
        if good {
            backoff.reset();
        }
        let Some(pause) = pause(&failure, good, &mut backoff) else {
            shared.end(session::dismissed(&shared.address.authority(), failure.error));
            break;
        };
        log::debug!("{}: {}; next attempt in {pause:?}", shared.address.authority(), failure.error);
        shared.set_state(State::Waiting { retry_in: pause, reason: failure.error });
        if shared.stop.wait(pause) {
            break;
        }
    }
    shared.end(ClientError::Closed);
    let state = shared.session.with(|session| {
        session.reader_done = true;
        session.state.clone()
    });
    shared.changed.notify_all();
    shared.tell(&state);
}

/// How long to wait before the next attempt. `None` if there is to be none.
fn pause(failure: &Failure, good: bool, backoff: &mut Backoff) -> Option<Duration> {
    match (failure.advice, failure.wait) {
        (ComeBack::Never, _) => None,
        (_, Some(asked)) => Some(asked.min(PAUSE_MAX)),
        // At once, but not in a circle.
        (ComeBack::AtOnce, None) if good => Some(Duration::ZERO),
        (ComeBack::AtOnce | ComeBack::WithBackoff, None) => Some(backoff.delay()),
    }
}

/// Reads one connection until it ends.
fn run(shared: &Arc<Shared>, mut opened: Opened) -> Failure {
    let sink = Arc::clone(shared);
    opened.run(Box::new(move |frames| sink.change(|session| session.push_frames(frames))));
    let Opened { mut socket, stream, connection, message_bytes_max, silence } = opened;
    let link = Link { socket: Arc::clone(&stream), message_bytes_max };
    let now = shared.clock.now();
    let limit = shared.options.deadline;
    let mut posts = Vec::new();
    let wanted = shared.change(|session| {
        if session.over.is_none() {
            session.requests.expire(now, limit);
            session.link_up(link);
            session.hand_over(&mut posts);
        }
        session.over.is_none()
    });
    if !wanted {
        // The client ended while this connection was being made.
        return LinkError::Closed.into();
    }
    shared.set_state(State::Connected { connection });
    let mut wait = None;
    let failure = loop {
        if deliver(shared, &mut posts) {
            break LinkError::Closed.into();
        }
        match socket.read() {
            Ok(Message::Text(text)) => match take(shared, &text, &mut posts) {
                Ok(asked) => wait = asked.or(wait),
                Err(error) => break error.into(),
            },
            Ok(Message::Close(frame)) => {
                // Lets the answering close frame out before the socket goes.
                drop(socket.flush());
                break link::closed(frame);
            }
            Ok(_) => {}
            Err(error) => break link::failure(error, silence.unwrap_or_default()),
        }
    };
    // Frees the writer, should it be in a write. It may be closed already.
    drop(stream.shutdown(Shutdown::Both));
    Failure { wait: wait.or(failure.wait), ..failure }
}

/// Takes one message. Returns how long a goodbye asks to stay away.
fn take(shared: &Shared, text: &str, posts: &mut Vec<Post>) -> Result<Option<Duration>, LinkError> {
    let message: Incoming<'_> = serde_json::from_str(text).map_err(|error| {
        LinkError::Protocol { what: format!("a message cannot be read: {error}") }
    })?;
    let kind = message.kind.as_str();
    if kind == "event" {
        // The usual case changes nothing that others wait for.
        let acks = shared.session.with(|session| {
            session.follow(&message);
            session.hand_over(posts);
            session.has_acks()
        });
        if acks {
            shared.work.notify_one();
        }
        return Ok(None);
    }
    let now = shared.clock.now();
    shared.change(|session| {
        session.take(&message, now);
        session.hand_over(posts);
    });
    shared.changed.notify_all();
    let asked = message.reconnect_after_ms.filter(|_| kind == "bye");
    Ok(asked.map(Duration::from_millis))
}

/// Does what has become due. Returns whether the connection is to be given up.
fn deliver(shared: &Shared, posts: &mut Vec<Post>) -> bool {
    let mut give_up = false;
    for post in posts.drain(..) {
        match post {
            Post::Reconnect => give_up = true,
            Post::Forget { inbox, topic, after } => inbox.forget(&topic, after),
            Post::Deliver { id, inbox, delivery } => {
                if let Put::Full(delivery) = inbox.put(delivery, Duration::ZERO) {
                    wait_for_room(shared, id, &inbox, delivery);
                }
            }
        }
    }
    give_up
}

/// Waits for a full inbox a while, so that TCP slows the relay; then leaves the subscription
/// behind, to resume by position, so that it does not stop the others.
fn wait_for_room(
    shared: &Shared,
    id: SubId,
    inbox: &Arc<Inbox>,
    delivery: crate::client::Delivery,
) {
    let patience = shared.session.with(|session| session.blocked(id, inbox));
    let put = inbox.put(delivery, patience);
    shared.session.with(Session::unblocked);
    if let Put::Full(delivery) = put {
        shared.change(|session| session.stall(id, &delivery));
        if !inbox.stall() {
            shared.change(|session| session.resume(id));
        }
    }
}

/// The body of `client-write`.
pub(super) fn write(shared: &Arc<Shared>) {
    let mut masks = Masks::new(random::number());
    let mut bytes = Vec::new();
    let mut alarm = None;
    loop {
        let work = |session: &mut Session| session.work(shared.clock.now());
        match shared.session.wait_until(&shared.work, alarm, work) {
            None => {}
            Some(Work::Finished) => return,
            Some(Work::Sleep { until }) => alarm = until,
            Some(Work::Send { socket, out, acks }) => {
                let closing = link::frame(&out, &mut masks, &mut bytes);
                lock::assert_none_held();
                let written = (&*socket).write_all(&bytes);
                bytes.clear();
                bytes.shrink_to(BUFFER_BYTES);
                if acks {
                    // No answer will say so.
                    shared.changed.notify_all();
                }
                if written.is_err() || closing {
                    // The reader notices, and what was not confirmed is sent again.
                    let how = if closing { Shutdown::Write } else { Shutdown::Both };
                    drop(socket.shutdown(how));
                }
                if written.is_err() {
                    gone(shared, &socket);
                }
            }
        }
    }
}

/// Waits until the reader has taken notice that `socket` is dead.
fn gone(shared: &Shared, socket: &Arc<std::net::TcpStream>) {
    let _replaced: Option<()> = shared.session.wait_until(&shared.work, None, |session| {
        let current = session.link().is_some_and(|link| Arc::ptr_eq(&link.socket, socket));
        (!current || session.over.is_some()).then_some(())
    });
}

/// What the writer keeps between batches.
const BUFFER_BYTES: usize = 128 * 1024;
