//! The fixed pool that performs every socket write.
//!
//! # Place
//!
//! Above `topic`, whose logs it reads; beside `connection`, whose outbox it drains.
//!
//! # Threads
//!
//! `writer-<n>`. A connection belongs to one writer for life, so its frames cannot interleave and
//! its cursors need no lock. A writer never blocks on a socket and never on another thread; it
//! waits in its lane, or, while some of its sockets are full, for one of them or its lane.
//!
//! # Locks
//!
//! One topic's log, to copy a batch; one outbox, to drain it. Never both, never during a write.
//!
//! # Not here
//!
//! What an event looks like on the wire (`wire`), who may subscribe (`websocket`), heartbeats
//! (`keeper`).

pub(crate) mod acks;
mod circles;
mod crowd;
mod deliver;
mod feed;
mod follow;
mod pages;
mod peer;
mod send;
mod stream;
mod survey;
mod waker;
mod watch;

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::Arc,
    time::Instant,
};

use slab::Slab;

pub(crate) use self::{
    acks::{AckCell, not_acking, not_sent},
    survey::{Findings, Survey},
    waker::Waker,
    watch::{UnwatchOrder, WatchOrder},
};
use self::{
    circles::View,
    crowd::Crowd,
    feed::Feed,
    peer::{PartKind, Peer},
};
use crate::{
    base::{
        clock::Clock,
        lane::{Inlet, Receiver, TryRecvError},
        limits::{COMMANDS_PER_TURN, TURN_BYTES},
        lock, pause,
    },
    config::{AckSettings, ConnectionSettings},
    metrics::Metrics,
    name::{Filter, Pattern, UserName},
    server::{
        connection::Connection,
        keeper::Watch,
        pager::{BurialDone, PageDone, PageFor, PagerHandle},
        roster::Roster,
        state::Which,
    },
    state::Space,
    topic::{Start, Topic},
    wire::request::SlowPolicy,
};

/// What a writer is told. Two words each, so that a lane is small also when it is long. Nothing
/// here grows with the number of events: wake-ups and flushes are coalesced by a flag of their
/// topic or outbox.
pub(crate) enum Command {
    /// A connection begins.
    Attach(Arc<Connection>),
    /// A connection is answered with a stream; this comes before anything else of it.
    Speak(Arc<Connection>),
    /// All topics that a pattern's stream begins with have come.
    Ready { connection: u64 },
    /// A connection's reader has ended. What still waits is sent, then the connection is dropped.
    Detach { connection: u64 },
    /// A connection follows a topic from a position.
    Follow(Box<Follow>),
    /// A pattern subscription begins; its topics come as [`Command::Follow`].
    OpenPattern(Box<OpenPattern>),
    /// All topics that matched at the beginning have come, and this many they were.
    PatternOpened(Box<PatternOpened>),
    /// A subscription ends.
    Unfollow(Box<Unfollow>),
    /// A topic has news.
    Wake(Arc<Topic>),
    /// A connection has acknowledged something that a cursor of it waits for.
    Acked { connection: u64 },
    /// A state has news.
    WakeState(Which),
    /// A connection watches keys of a state.
    Watch(Which, Box<WatchOrder>),
    /// It does not watch them any more.
    Unwatch(Which, Box<UnwatchOrder>),
    /// A connection has acknowledged an event of a topic that a pattern brought.
    AckTopic(Box<AckTopic>),
    /// A page of history has come from disk.
    Page(Box<PageDone>),
    /// An event that nobody acknowledged was put aside.
    Buried(Box<BurialDone>),
    /// Another connection has taken over a consumer of this one.
    Replaced { connection: u64 },
    /// Somebody lists connections.
    Survey(Box<Survey>),
    /// An outbox has something.
    Flush { connection: u64 },
    /// New limits, after a reload.
    Settings(Box<(ConnectionSettings, AckSettings)>),
    /// The relay stops; nothing comes after this.
    Stop,
}

/// The way to a writer.
#[derive(Clone)]
pub(crate) struct WriterHandle {
    pub(crate) inlet: Inlet<Command>,
    pub(crate) waker: Arc<Waker>,
}

impl WriterHandle {
    /// Hands over a command.
    ///
    /// # Blocking
    ///
    /// While the lane is full. Never with a lock held.
    pub(crate) fn send(&self, command: Command) {
        // A closed lane means that the relay has stopped; nothing is left to be said to anybody.
        if self.inlet.send(command).is_ok() {
            self.waker.ring();
        }
    }
}

/// A cursor to be.
///
/// The topic already counts this follower on this writer, so it is not forgotten on the way, and
/// every event after `start` has woken or will wake the writer.
pub(crate) struct Follow {
    pub(crate) connection: u64,
    pub(crate) topic: Arc<Topic>,
    pub(crate) start: Start,
    pub(crate) by: By,
    /// Set where what is sent must be acknowledged; patterns have it in their own.
    pub(crate) acks: Option<Box<AckSetup>>,
}

/// How a cursor acknowledges.
#[derive(Clone, Debug)]
pub(crate) struct AckSetup {
    pub(crate) cell: Arc<AckCell>,
    pub(crate) window: u64,
    /// The consumer and the fence that holds it.
    pub(crate) consumer: Option<(UserName, u64)>,
    /// How often the first event was sent before.
    pub(crate) deliveries: u32,
}

impl AckSetup {
    /// Without a consumer, from event `start` on.
    fn plain(start: u64, window: u64) -> Self {
        let cell = Arc::new(AckCell::new(start));
        Self { cell, window, consumer: None, deliveries: 0 }
    }
}

/// An acknowledgement for a cursor that a pattern brought.
pub(crate) struct AckTopic {
    pub(crate) connection: u64,
    pub(crate) request: Option<u64>,
    pub(crate) topic: Arc<Topic>,
    pub(crate) seq: u64,
}

/// A pattern's subscription to be.
pub(crate) struct OpenPattern {
    pub(crate) connection: u64,
    pub(crate) subscription: u64,
    pub(crate) pattern: Pattern,
    pub(crate) slow: SlowPolicy,
    /// The window, where its events must be acknowledged.
    pub(crate) window: Option<u64>,
}

/// A subscription that ends.
pub(crate) struct Unfollow {
    pub(crate) connection: u64,
    pub(crate) request: Option<u64>,
    pub(crate) filter: Filter,
    /// The topic, if it is not a pattern.
    pub(crate) topic: Option<Arc<Topic>>,
    pub(crate) subscription: u64,
    /// Nobody waits for an answer.
    pub(crate) quiet: bool,
}

/// What a pattern's subscriber is told when its subscription stands.
pub(crate) struct PatternOpened {
    pub(crate) connection: u64,
    pub(crate) subscription: u64,
    pub(crate) request: Option<u64>,
    pub(crate) attached: usize,
    /// The connection had subscribed to the same pattern before.
    pub(crate) replaced: bool,
}

/// What makes a connection follow a topic.
#[derive(Clone, Copy, Debug)]
pub(crate) enum By {
    /// A subscription to the topic itself.
    Name { request: Option<u64>, slow: SlowPolicy },
    /// A pattern's subscription.
    Pattern { subscription: u64 },
}

/// One writer: its connections, their cursors, and what it is about to send.
pub(crate) struct Writer {
    index: usize,
    inbox: Receiver<Command>,
    waker: Arc<Waker>,
    keeper: Inlet<Watch>,
    roster: Arc<Roster>,
    settings: ConnectionSettings,
    clock: Clock,
    metrics: Arc<Metrics>,
    peers: Slab<Peer>,
    by_connection: HashMap<u64, usize>,
    feeds: Slab<Feed>,
    /// Feeds by the address of their topic, which they keep alive.
    by_topic: HashMap<usize, usize>,
    /// The states, and who watches them here.
    views: [View; 2],
    /// Feeds with news for the followers that stand at the tail.
    ready: VecDeque<usize>,
    /// Peers with cursors behind the tail and room in their socket.
    lagging: VecDeque<usize>,
    /// Peers that get something in this turn.
    touched: Vec<usize>,
    /// Peers whose socket is full.
    stalled: Vec<usize>,
    /// Their sockets, and the bell.
    crowd: Crowd,
    /// When to look who has not acknowledged for too long.
    ack_at: Option<Instant>,
    /// Pages that are to be asked for, and how many are on their way.
    page_queue: VecDeque<PageFor>,
    page_at: Option<Instant>,
    pages_asked: usize,
    pager: PagerHandle,
    acks: AckSettings,
    /// When to look for those that have been full for too long.
    look_at: Option<Instant>,
    /// What this turn copied out of logs; peers' parts are ranges of it.
    arena: Vec<u8>,
    /// Where several parts for one peer are joined.
    joined: Vec<u8>,
    stopping: bool,
}

/// What a writer is made of.
pub(crate) struct WriterParts {
    pub(crate) index: usize,
    pub(crate) inbox: Receiver<Command>,
    pub(crate) waker: Arc<Waker>,
    pub(crate) keeper: Inlet<Watch>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) settings: ConnectionSettings,
    pub(crate) acks: AckSettings,
    pub(crate) pager: PagerHandle,
    /// By [`Which`].
    pub(crate) spaces: [Arc<Space>; 2],
    pub(crate) clock: Clock,
    pub(crate) metrics: Arc<Metrics>,
}

/// Bytes that one turn copies out of logs, all topics and peers together.
const ARENA_BYTES: usize = 4 * TURN_BYTES;

impl Writer {
    /// # Errors
    ///
    /// The operating system has no descriptor left.
    pub(crate) fn new(parts: WriterParts) -> io::Result<Self> {
        let crowd = Crowd::new(parts.waker.bell())?;
        let WriterParts {
            index,
            inbox,
            waker,
            keeper,
            roster,
            settings,
            acks,
            pager,
            spaces,
            clock,
            metrics,
        } = parts;
        Ok(Self {
            index,
            inbox,
            waker,
            keeper,
            roster,
            settings,
            clock,
            metrics,
            peers: Slab::new(),
            by_connection: HashMap::new(),
            feeds: Slab::new(),
            by_topic: HashMap::new(),
            views: spaces.map(View::new),
            ready: VecDeque::new(),
            lagging: VecDeque::new(),
            touched: Vec::new(),
            stalled: Vec::new(),
            crowd,
            ack_at: None,
            page_queue: VecDeque::new(),
            page_at: None,
            pages_asked: 0,
            pager,
            acks,
            look_at: None,
            arena: Vec::new(),
            joined: Vec::new(),
            stopping: false,
        })
    }

    /// Serves until told to stop, or until nobody is left who could tell it anything.
    pub(crate) fn run(mut self) {
        while !self.stopping {
            pause::point();
            for _ in 0..COMMANDS_PER_TURN {
                match self.inbox.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.look_after_acks();
            if self.page_at.is_some_and(|at| at <= self.now()) {
                self.ask_for_pages();
            }
            self.turn();
            if !self.stopping {
                self.rest();
            }
        }
    }

    /// Waits for a command if there is nothing else to do; looks after full sockets meanwhile.
    fn rest(&mut self) {
        let has_states = self.views.iter().any(View::is_busy);
        let busy = has_states || !self.ready.is_empty() || !self.lagging.is_empty();
        if !self.stalled.is_empty() {
            self.look_after_stalled(busy);
        } else if !busy {
            lock::assert_none_held();
            let next = self.next_look();
            let limit = next.map(|at| at.saturating_duration_since(self.now()));
            let inbox = &self.inbox;
            self.waker.park(limit, || inbox.is_empty());
        }
    }

    /// When something is to be looked at even if nobody says anything.
    fn next_look(&self) -> Option<Instant> {
        [self.look_at, self.ack_at, self.page_at].into_iter().flatten().min()
    }

    fn turn(&mut self) {
        self.arena.clear();
        self.deliver_news();
        self.deliver_states();
        self.deliver_backlogs();
        self.send_touched();
        // One huge event needs no memorial.
        for buffer in [&mut self.arena, &mut self.joined] {
            if 2 * ARENA_BYTES < buffer.capacity() {
                *buffer = Vec::new();
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Wake(topic) => self.wake(&topic),
            Command::Flush { connection } => self.flush(connection),
            Command::Attach(connection) => self.attach(connection),
            Command::Speak(connection) => self.speak(&connection),
            Command::Ready { connection } => self.ready(connection),
            Command::Detach { connection } => self.detach(connection),
            Command::Follow(follow) => self.follow(*follow),
            Command::OpenPattern(open) => self.open_pattern(*open),
            Command::PatternOpened(opened) => self.pattern_opened(&opened),
            Command::Unfollow(unfollow) => self.unfollow(&unfollow),
            Command::Settings(settings) => (self.settings, self.acks) = *settings,
            Command::Acked { connection } => self.acked(connection),
            Command::WakeState(which) => self.wake_state(which),
            Command::Watch(which, order) => self.begin_watch(which, *order),
            Command::Unwatch(which, order) => self.end_watch(which, &order),
            Command::AckTopic(ack) => self.ack_topic(&ack),
            Command::Page(page) => self.page(*page),
            Command::Buried(done) => self.buried(&done),
            Command::Replaced { connection } => self.replaced(connection),
            Command::Survey(survey) => self.survey(&survey),
            Command::Stop => self.stopping = true,
        }
    }

    fn now(&self) -> Instant {
        self.clock.now()
    }
}

#[cfg(test)]
mod tests;
