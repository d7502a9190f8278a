//! The synchronous client: publish, subscribe and look back, over one connection that mends
//! itself.
//!
//! ```no_run
//! use landline::client::{Client, Delivery, From, Options, SubscribeOptions};
//!
//! # fn main() -> Result<(), landline::client::ClientError> {
//! let client = Client::connect("http://127.0.0.1:5263", Options::default().user("anna"))?;
//! let mut lamps = client.subscribe("home/+/lamp", From::Live, SubscribeOptions::default())?;
//! let receipt = client.publish("home/hall/lamp", "on")?;
//! if let Delivery::Attached { topic, .. } = lamps.recv()? {
//!     println!("{topic} exists now; its event {} is next", receipt.seq);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A connection that is lost is made again, for ever, with growing random pauses. Subscriptions
//! then go on exactly where they were; what the relay no longer stores is announced, never
//! skipped. Publishes that were not confirmed are sent again under the key they had, so that the
//! relay stores each once.
//!
//! A subscription that [acknowledges](SubscribeOptions::acknowledge) gets what it has not
//! acknowledged again, at the latest on the next connection. With a
//! [consumer](SubscribeOptions::consumer) the relay keeps how far it has come, so that the next
//! process goes on there:
//!
//! ```no_run
//! use landline::client::{Client, Delivery, From, Options, SubscribeOptions};
//!
//! # fn main() -> Result<(), landline::client::ClientError> {
//! let client = Client::connect("http://127.0.0.1:5263", Options::default())?;
//! let options = SubscribeOptions::default().consumer("printer");
//! let mut jobs = client.subscribe("jobs", From::Start, options)?;
//! loop {
//!     if let Delivery::Event(job) = jobs.recv()? {
//!         println!("{}", job.data);
//!         jobs.ack(&job)?;
//!     }
//! }
//! # }
//! ```
//!
//! # Place
//!
//! Above `wire`. It shares no code with the server beside `base`, `name` and `wire`.
//!
//! # Threads
//!
//! Two per client, `client-read` and `client-write` (see `threads`), and one `client-sub` for
//! each handler. All end when the last [`Client`], [`Subscription`] and [`Listener`] is dropped.
//!
//! # Locks
//!
//! `Rank::Client` around `session::Session`; `Rank::Inbox` in each subscription's inbox.

mod delivery;
mod error;
mod follow;
mod inbox;
mod keys;
mod link;
mod message;
mod options;
mod presence;
mod publish;
mod reply;
mod requests;
mod session;
mod start;
mod subscription;
mod threads;
mod value;
mod watch;
mod watches;

use std::{
    cell::Cell,
    fmt, io,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;

pub use self::{
    delivery::{Delivery, Event, History, HistoryLoss, LossReason, Receipt, ResetReason},
    error::{ClientError, LinkError, Refused},
    link::Address,
    options::{InboxLimits, Options, State, SubscribeOptions},
    publish::{Message, Pending},
    subscription::{Acker, Listener, Subscription},
    value::{Change, Stored, Value, Values},
    watch::{Watch, WatchEvent},
};
pub use crate::wire::{
    codes::Durability,
    position::{Epoch, From, Position},
};

use crate::{
    base::{
        clock::Clock,
        lane,
        lifecycle::{Cause, Crew, Group, OnPanic, Panics, Stop},
        limits::{JSON_DEPTH_MAX, WORKER_STACK_BYTES},
        lock::{Rank, Ranked},
        sync::Condvar,
    },
    name::Name,
    wire::json,
};
use message::{FromBody, ID_BYTES, Outgoing};
use requests::Reply;
use session::{Answer, Awaited, Session};
use threads::Shared;

/// How long a client that is dropped waits for its last bytes to go out, for the relay's goodbye,
/// and for its threads: each at most this long.
const FAREWELL: Duration = Duration::from_millis(500);

/// A connection to a relay that mends itself. Cloning yields another handle to the same one.
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

/// Ends the threads when the last clone goes.
struct Handle {
    shared: Arc<Shared>,
    handlers: Crew,
    writer: Option<Group>,
    reader: Option<Group>,
}

thread_local! {
    /// Whether this is one of a client's own threads, which cannot wait for themselves.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Client {
    /// Connects to the relay at `url`, `http://host:port` or `ws://host:port`, and waits until it
    /// has welcomed this client. Afterwards a lost connection is made again for ever.
    ///
    /// ```no_run
    /// use landline::client::{Client, Options};
    ///
    /// # fn main() -> Result<(), landline::client::ClientError> {
    /// let client = Client::connect("http://relay.local:5263", Options::default())?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// - [`ClientError::Address`]: `url` is not an address.
    /// - [`ClientError::Connect`]: the first attempt failed; [`Client::start`] would go on trying.
    /// - [`ClientError::Dismissed`], [`ClientError::Refused`]: the relay does not want this client.
    ///
    /// # Blocking
    ///
    /// At most the connect timeout, beside what resolving the name takes.
    pub fn connect(url: &str, options: Options) -> Result<Client, ClientError> {
        let client = Client::start(url, options)?;
        let shared = client.shared();
        let server = shared.address.authority();
        let outcome =
            shared.session.wait_until(&shared.changed, None, |session| match &session.state {
                State::Connecting => None,
                State::Connected { .. } => Some(Ok(())),
                State::Waiting { reason, .. } => Some(Err(ClientError::Connect {
                    server: server.clone(),
                    source: reason.clone(),
                })),
                State::Ended { error } => Some(Err(error.clone())),
            });
        outcome.unwrap_or(Err(ClientError::Closed)).map(|()| client)
    }

    /// As [`Client::connect`], but returns at once and connects in the background.
    ///
    /// # Errors
    ///
    /// - [`ClientError::Address`]: `url` is not an address.
    /// - [`ClientError::Thread`]: the operating system refused a thread.
    pub fn start(url: &str, options: Options) -> Result<Client, ClientError> {
        let stop = Stop::default();
        let shared = Arc::new(Shared {
            address: Address::parse(url)?,
            options,
            clock: Clock::default(),
            stop: stop.clone(),
            session: Ranked::new(Rank::Client, Session::new()),
            work: Condvar::new(),
            changed: Condvar::new(),
        });
        let panics = Panics::default();
        let mut handle = Handle {
            handlers: Crew::new(stop.clone(), Arc::clone(&panics)),
            writer: Some(Group::new(stop.clone(), Arc::clone(&panics))),
            reader: Some(Group::new(stop, panics)),
            shared: Arc::clone(&shared),
        };
        let refused = |error: io::Error| ClientError::Thread { source: Arc::new(error) };
        let writing = Arc::clone(&shared);
        if let Some(group) = &mut handle.writer {
            let body = move || inside(&writing, threads::write);
            let name = "client-write".to_owned();
            group.spawn(name, WORKER_STACK_BYTES, OnPanic::Contain, body).map_err(refused)?;
        }
        if let Some(group) = &mut handle.reader {
            let body = move || inside(&shared, threads::read);
            let name = "client-read".to_owned();
            group.spawn(name, WORKER_STACK_BYTES, OnPanic::Contain, body).map_err(refused)?;
        }
        Ok(Client { handle: Arc::new(handle) })
    }

    /// Publishes `data`, as JSON, to `topic` and waits until the relay has it.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), landline::client::ClientError> {
    /// # let client = landline::client::Client::connect("", Default::default())?;
    /// let receipt = client.publish("home/hall/lamp", &serde_json::json!({"on": true}))?;
    /// println!("event {} of epoch {}", receipt.seq, receipt.epoch);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Client::send`] and [`Pending::wait`].
    ///
    /// # Blocking
    ///
    /// At most the client's deadline. While the connection is down the time spent reconnecting
    /// counts against it. Safe to call from several threads, and from one that reads a
    /// subscription.
    pub fn publish<T: Serialize + ?Sized>(
        &self,
        topic: &str,
        data: &T,
    ) -> Result<Receipt, ClientError> {
        self.send(Message::new(topic, data))?.wait()
    }

    /// Hands an event over without waiting for its confirmation, so that many can be under way.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), landline::client::ClientError> {
    /// # let client = landline::client::Client::connect("", Default::default())?;
    /// use landline::client::Message;
    ///
    /// let pending: Vec<_> = (0..100)
    ///     .map(|n| client.send(Message::new("counter", &n)))
    ///     .collect::<Result<_, _>>()?;
    /// for one in pending {
    ///     one.wait()?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Events of one thread are stored in the order in which they were handed over, also when
    /// the connection is lost in between. Only those that the relay was too busy for, which are
    /// sent again when it says so, may come behind later ones.
    ///
    /// # Errors
    ///
    /// - [`ClientError::Name`], [`ClientError::Encode`], [`ClientError::Invalid`],
    ///   [`ClientError::TooLarge`]: topic or payload break a rule.
    /// - [`ClientError::NotSent`]: the deadline passed before there was room for one more.
    /// - [`ClientError::Closed`], [`ClientError::Dismissed`]: the client has ended.
    ///
    /// # Blocking
    ///
    /// While as many requests wait for an answer as the options allow, at most the deadline.
    pub fn send(&self, message: Message) -> Result<Pending, ClientError> {
        let Message { topic, data, name, key, deadline } = message;
        let name_of_topic =
            Name::parse(&topic).map_err(|rule| ClientError::Name { text: topic.clone(), rule })?;
        let data = data?;
        let key = key.unwrap_or_else(|| self.shared().session.with(Session::next_key));
        let request = Outgoing::Publish {
            topic: name_of_topic.as_str(),
            name: name.as_deref(),
            key: &key,
            data: &data,
        };
        let limit = deadline.unwrap_or(self.shared().options.deadline);
        let awaited = self.file(&message::body(&request), limit, Reply::Published)?;
        Ok(Pending { client: self.clone(), awaited })
    }

    /// As [`Client::send`] with nothing but a topic and a payload.
    ///
    /// # Errors
    ///
    /// As [`Client::send`].
    ///
    /// # Blocking
    ///
    /// As [`Client::send`].
    pub fn publish_nowait<T: Serialize + ?Sized>(
        &self,
        topic: &str,
        data: &T,
    ) -> Result<Pending, ClientError> {
        self.send(Message::new(topic, data))
    }

    /// Follows a topic, or all topics that match a pattern.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), landline::client::ClientError> {
    /// # let client = landline::client::Client::connect("", Default::default())?;
    /// use landline::client::{From, SubscribeOptions};
    ///
    /// let mut all = client.subscribe("home/#", From::Last(10), SubscribeOptions::default())?;
    /// println!("{:?}", all.recv()?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Several subscriptions of one client may overlap: each gets every event once, from its own
    /// start, and ends alone. They share a connection and the relay's cursor per topic, so one
    /// that starts further back makes the relay send again what the others skip. One that
    /// [acknowledges](SubscribeOptions::acknowledge) overlaps with no other.
    ///
    /// # Errors
    ///
    /// - [`ClientError::Name`], [`ClientError::Invalid`]: `filter`, `from` or `options` break a
    ///   rule.
    /// - [`ClientError::Refused`]: the relay does not allow it.
    /// - [`ClientError::Unanswered`]: the deadline passed.
    /// - [`ClientError::Closed`], [`ClientError::Dismissed`]: the client has ended.
    ///
    /// # Blocking
    ///
    /// Until the relay has confirmed the start, at most the deadline: every event that is
    /// published after this returned is delivered.
    pub fn subscribe(
        &self,
        filter: &str,
        from: From,
        options: SubscribeOptions,
    ) -> Result<Subscription, ClientError> {
        let (id, filter, inbox) = self.begin(filter, from, options)?;
        Ok(Subscription::new(id, filter, self.clone(), inbox))
    }

    /// As [`Client::subscribe`], but `handler` is called with each delivery, on a thread of its
    /// own, until the returned listener is dropped or the client ends. The handler may use the
    /// client. If it panics, its subscription ends.
    ///
    /// If `options` acknowledge, each event is acknowledged when the handler has returned. The one
    /// that it panicked in is not, and comes again to whoever subscribes next.
    ///
    /// # Errors
    ///
    /// As [`Client::subscribe`], and [`ClientError::Thread`].
    ///
    /// # Blocking
    ///
    /// As [`Client::subscribe`].
    pub fn subscribe_with(
        &self,
        filter: &str,
        from: From,
        options: SubscribeOptions,
        handler: impl FnMut(Delivery) + Send + 'static,
    ) -> Result<Listener, ClientError> {
        let (id, _, inbox) = self.begin(filter, from, options)?;
        let listener = Listener::new(id, self.clone());
        let shared = Arc::clone(self.shared());
        let body = move || {
            inside(&shared, |shared| subscription::listen(shared, id, &inbox, handler));
        };
        self.handle
            .handlers
            .spawn("client-sub".to_owned(), WORKER_STACK_BYTES, body)
            .map_err(|error| ClientError::Thread { source: Arc::new(error) })?;
        Ok(listener)
    }

    /// Reads stored events: at most `limit` (1 to 1,000) after `from`, or the newest ones.
    ///
    /// # Errors
    ///
    /// - [`ClientError::Name`]: `topic` is not a topic name.
    /// - [`ClientError::Refused`]: the relay says no, with `not_found` if there is no such topic.
    /// - [`ClientError::NotSent`], [`ClientError::Unanswered`]: the deadline passed.
    /// - [`ClientError::Closed`], [`ClientError::Dismissed`]: the client has ended.
    ///
    /// # Blocking
    ///
    /// At most the client's deadline.
    pub fn history(
        &self,
        topic: &str,
        from: Option<&From>,
        limit: u64,
    ) -> Result<History, ClientError> {
        let name = Name::parse(topic)
            .map_err(|rule| ClientError::Name { text: topic.to_owned(), rule })?;
        let from = from.map(FromBody);
        let request = Outgoing::History { topic: name.as_str(), from, limit: Some(limit) };
        let deadline = self.shared().options.deadline;
        let awaited = self.file(&message::body(&request), deadline, Reply::History)?;
        self.wait(&awaited)
    }

    /// Asks the relay for a sign of life and returns how long it took.
    ///
    /// # Errors
    ///
    /// - [`ClientError::NotSent`], [`ClientError::Unanswered`]: the deadline passed.
    /// - [`ClientError::Closed`], [`ClientError::Dismissed`]: the client has ended.
    ///
    /// # Blocking
    ///
    /// At most the client's deadline.
    pub fn ping(&self) -> Result<Duration, ClientError> {
        let clock = &self.shared().clock;
        let started = clock.now();
        let deadline = self.shared().options.deadline;
        let awaited = self.file(&message::body(&Outgoing::Ping), deadline, Reply::Pong)?;
        self.wait(&awaited)?;
        Ok(clock.now().saturating_duration_since(started))
    }

    /// Waits until nothing is under way: every request is answered and every acknowledgement
    /// sent. Returns whether that was so within `limit`.
    ///
    /// # Blocking
    ///
    /// At most `limit`.
    #[must_use]
    pub fn flush(&self, limit: Duration) -> bool {
        let Shared { session, changed, clock, .. } = &**self.shared();
        let deadline = clock.now() + limit;
        let idle = |session: &mut Session| {
            let idle = session.is_idle();
            (idle || session.over.is_some()).then_some(idle)
        };
        session.wait_until(changed, Some(deadline), idle).unwrap_or(false)
    }

    /// What the connection is doing.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared().session.with(|session| session.state.clone())
    }

    /// Ends the client for all its clones and subscriptions: what waits for an answer fails with
    /// [`ClientError::Closed`], though what was handed over is still sent if the connection is
    /// up. Use [`Client::flush`] first to know what became of it. Does not wait for the threads;
    /// dropping the last clone does, for a moment.
    pub fn close(&self) {
        self.shared().stop.raise(Cause::Requested);
        self.shared().end(ClientError::Closed);
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Files a request once there is room for it.
    fn file<T>(
        &self,
        body: &str,
        limit: Duration,
        reply: fn(lane::Inlet<Answer<T>>) -> Reply,
    ) -> Result<Awaited<T>, ClientError> {
        let Shared { session, changed, clock, options, work, .. } = &**self.shared();
        if !json::is_shallow(body) {
            let rule = format!("the data nests deeper than {} levels", JSON_DEPTH_MAX - 1);
            return Err(ClientError::Invalid(rule));
        }
        let bytes = body.len() + ID_BYTES;
        let deadline: Instant = clock.now() + limit;
        let (inlet, answer) = lane::open(lane::REPLIES);
        let mut inlet = Some(inlet);
        let filed = session.wait_until(changed, Some(deadline), |session| {
            if let Some(error) = &session.over {
                return Some(Err(error.clone()));
            }
            if let Some(max) = session.message_bytes_max().filter(|max| *max < bytes) {
                return Some(Err(ClientError::TooLarge { bytes, max }));
            }
            let requests = &mut session.requests;
            if !requests.has_room(bytes, options.pending_requests, options.pending_bytes) {
                requests.expire(clock.now(), options.deadline);
            }
            requests
                .has_room(bytes, options.pending_requests, options.pending_bytes)
                .then(|| inlet.take())
                .flatten()
                .map(|inlet| Ok(session.file(reply(inlet), deadline, body)))
        });
        work.notify_one();
        let id = filed.unwrap_or(Err(ClientError::NotSent { limit }))?;
        Ok(Awaited { id, answer, deadline, limit })
    }
}

fn inside(shared: &Arc<Shared>, body: impl FnOnce(&Arc<Shared>)) {
    INSIDE.set(true);
    body(shared);
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("server", &self.shared().address.authority())
            .finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let Shared { stop, clock, session, changed, .. } = &*self.shared;
        stop.raise(Cause::Requested);
        self.shared.end(ClientError::Closed);
        if INSIDE.get() {
            // The threads end by themselves; one of them is this one.
            return;
        }
        let writer = self.writer.take().map(|writer| writer.join(clock.now() + FAREWELL));
        let limit = clock.now() + FAREWELL;
        let done = |session: &mut Session| session.reader_done.then_some(());
        let polite = session.wait_until(changed, Some(limit), done);
        self.shared.cut();
        let reader = self.reader.take().map(|reader| reader.join(clock.now() + FAREWELL));
        let handlers = self.handlers.join(clock, clock.now() + FAREWELL);
        log::debug!(
            "client ended: politely {}, late {writer:?} {reader:?}, handlers {handlers}",
            polite.is_some()
        );
    }
}
