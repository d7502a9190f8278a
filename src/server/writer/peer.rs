//! A connection as its writer sees it: cursors, and what did not fit into the socket.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::Arc,
    time::Instant,
};

use crate::{
    name::Pattern,
    server::{
        connection::Connection,
        state::Which,
        writer::{By, Follow, acks::Acks, stream::Told, watch::Watcher},
    },
    wire::{request::SlowPolicy, stream::Dialect},
};

/// One connection of a writer.
///
/// Invariants:
///
/// 1. `unsent` is empty or `stalled` is set; only then is the peer in the writer's `stalled`.
/// 2. A feed is in `behind` if and only if its follow has a cursor of its own and is not parked.
/// 3. A feed is in `window_full` if and only if its follow is parked for its window.
pub(super) struct Peer {
    pub(super) connection: Arc<Connection>,
    pub(super) dialect: Dialect,
    /// Where a stream of server-sent events has come to in the topics of its pattern.
    pub(super) told: Option<Box<Told>>,
    /// Bytes that the socket did not take: the rest of one frame, or of replies.
    pub(super) unsent: Vec<u8>,
    /// How much of `unsent` has gone since.
    pub(super) unsent_from: usize,
    /// Replies and notices that go first in this turn.
    pub(super) control: Vec<u8>,
    /// Events that go in this turn: ranges of the writer's arena.
    pub(super) parts: Vec<Part>,
    /// Topics followed, by feed.
    pub(super) follows: HashMap<usize, Following>,
    /// Feeds in which this peer is behind.
    pub(super) behind: VecDeque<usize>,
    pub(super) patterns: HashMap<u64, PatternState>,
    /// Its place in each state that it watches.
    pub(super) watchers: [Option<Box<Watcher>>; 2],
    /// Cursors whose events must be acknowledged.
    pub(super) acking: usize,
    /// Feeds in which its window is full.
    pub(super) window_full: Vec<usize>,
    /// Cursors that wait for a page from disk.
    pub(super) paging: usize,
    /// Set while the socket is full.
    pub(super) stalled: Option<Stall>,
    /// In the writer's `touched`.
    pub(super) touched: bool,
    /// In the writer's `lagging`.
    pub(super) lagging: bool,
    /// The outbox has more, which waits for room in the socket.
    pub(super) outbox_waits: bool,
    /// Last words that wait until every cursor has reached its tail: the relay stops.
    pub(super) goodbye: Option<Vec<u8>>,
    /// Nothing comes after what waits; then the writing half is shut down.
    pub(super) finishing: bool,
    /// The writing half is shut down.
    pub(super) finished: bool,
    /// The reader has ended.
    pub(super) detached: bool,
}

/// A socket that is full.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stall {
    /// When the socket first took nothing, or last took something.
    pub(super) since: Instant,
    /// Where the peer is in the writer's `stalled`.
    pub(super) slot: usize,
}

/// Events on their way to one peer.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Where they are in the arena, or among what is joined.
    pub(super) range: Range<usize>,
    pub(super) kind: PartKind,
    pub(super) form: Form,
}

impl Part {
    /// Text frames in the arena.
    pub(super) fn frames(range: Range<usize>, kind: PartKind) -> Part {
        Part { range, kind, form: Form::Frames }
    }

    pub(super) fn bytes<'a>(&self, arena: &'a [u8], joined: &'a [u8]) -> &'a [u8] {
        let place = if self.form == Form::Joined { joined } else { arena };
        &place[self.range.clone()]
    }
}

/// In which form a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As text frames, which for a stream are still to be translated.
    Frames,
    /// In the arena, as its stream has it.
    Shared,
    /// The same, behind what else its peer gets in this turn.
    Joined,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum PartKind {
    /// Events of `feed` after `from` up to `to`: what is not sent is not lost, the cursor goes
    /// back.
    Events { feed: usize, from: u64, to: u64 },
    /// Changes of a state after version `from`: what is not sent is newer the next time.
    States { which: Which, is_starting: bool, from: u64, count: u64 },
    /// A notice that must be kept if it is not sent, and where its client is with it.
    Notice(At),
}

/// Where a client is that has got a notice.
#[derive(Clone, Copy, Debug)]
pub(super) enum At {
    /// Where it was.
    Same,
    /// After an event of a feed.
    Event { feed: usize, seq: u64 },
    /// After a version of a state.
    State { which: Which, version: u64 },
}

/// One cursor.
#[derive(Clone, Debug, Default)]
pub(super) struct Following {
    /// Where the peer is, if not with the feed's group.
    pub(super) cursor: Option<u64>,
    /// Where the peer is in the feed's group, if it is there.
    pub(super) slot: usize,
    /// The subscription to the topic by its name.
    pub(super) by_name: Option<SlowPolicy>,
    /// It acknowledges.
    pub(super) name_acks: bool,
    /// Subscriptions to patterns that match it.
    pub(super) by_pattern: Vec<u64>,
    /// It has not reached the tail since it began.
    pub(super) replaying: bool,
    /// Set where what is sent must be acknowledged.
    pub(super) acks: Option<Box<Acks>>,
    /// What it waits for, while it is neither with the group nor in `behind`.
    pub(super) parked: Option<Parked>,
}

/// What a cursor waits for before it can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parked {
    /// An acknowledgement: its window is full.
    Window,
    /// A page from disk.
    Page,
    /// An event that is being put aside.
    Burial,
}

/// A subscription to a pattern.
pub(super) struct PatternState {
    pub(super) pattern: Pattern,
    pub(super) slow: SlowPolicy,
    /// Topics that came before the subscription was confirmed, or before a stream was in all of
    /// them; `None` from then on.
    pub(super) held: Option<Vec<Follow>>,
    /// Feeds that it brought.
    pub(super) feeds: Vec<usize>,
    /// A topic was refused for the limit of cursors; no further one comes.
    pub(super) full: bool,
    /// The window, where its events must be acknowledged.
    pub(super) window: Option<u64>,
}

impl Peer {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self {
            connection,
            dialect: Dialect::WebSocket,
            told: None,
            unsent: Vec::new(),
            unsent_from: 0,
            control: Vec::new(),
            parts: Vec::new(),
            follows: HashMap::new(),
            behind: VecDeque::new(),
            patterns: HashMap::new(),
            watchers: [None, None],
            acking: 0,
            window_full: Vec::new(),
            paging: 0,
            stalled: None,
            touched: false,
            lagging: false,
            outbox_waits: false,
            goodbye: None,
            finishing: false,
            finished: false,
            detached: false,
        }
    }

    /// Takes `feed` out of those in which the peer is behind.
    pub(super) fn forget_behind(&mut self, feed: usize) {
        // It was looked at just now, and so is the last.
        if self.behind.back() == Some(&feed) {
            self.behind.pop_back();
        } else {
            self.behind.retain(|behind| *behind != feed);
        }
    }

    /// The window of the patterns that `following` has to acknowledge for, if any.
    pub(super) fn pattern_window(&self, following: &Following) -> Option<u64> {
        following.by_pattern.iter().find_map(|by| self.patterns.get(by)?.window)
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// Notes why the peer follows `feed`.
    pub(super) fn note(&mut self, following: &mut Following, feed: usize, by: By) {
        match by {
            By::Name { slow, .. } => following.by_name = Some(slow),
            By::Pattern { subscription } => {
                following.by_pattern.push(subscription);
                if let Some(state) = self.patterns.get_mut(&subscription) {
                    state.feeds.push(feed);
                }
            }
        }
    }

    /// What happens to `following` when its log has passed its cursor.
    pub(super) fn slow_policy(&self, following: &Following) -> SlowPolicy {
        let by_pattern = || {
            let first = following.by_pattern.first()?;
            self.patterns.get(first).map(|pattern| pattern.slow)
        };
        following.by_name.or_else(by_pattern).unwrap_or_default()
    }
}
