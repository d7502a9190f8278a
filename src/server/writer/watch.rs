//! Watches as a writer sees them: a position in a state, the snapshot that comes first, and how a
//! watch ends.
//!
//! A connection has one position in a state for all its watches. While a watch begins, that
//! position stands still: first comes what the new watch lacks up to there, then `synced`, then
//! everything goes on together. So what a client sees outside of snapshots only ever rises.

use std::collections::VecDeque;

use super::{
    PartKind, Writer,
    peer::{At, Part, Peer},
};
use crate::{
    base::{limits::TURN_BYTES, lock},
    name::Filter,
    server::state::Which,
    state::{Copied, Wanted},
    wire::{
        codes::Code,
        frame, reply,
        request::Refusal,
        state::{self, StatePosition, Watching},
    },
};

/// A watch to be. The state already counts it on this writer.
pub(crate) struct WatchOrder {
    pub(crate) connection: u64,
    pub(crate) request: Option<u64>,
    pub(crate) filter: Filter,
    pub(crate) from: Option<StatePosition>,
}

/// A watch that ends.
pub(crate) struct UnwatchOrder {
    pub(crate) connection: u64,
    pub(crate) request: Option<u64>,
    pub(crate) filter: Filter,
}

/// One connection's place in a state.
///
/// Invariants:
///
/// 1. `circle` is set only if `filters` are not empty and nothing is starting.
/// 2. `cursor` is `None` if the peer is in its circle's group, or if `filters` are empty.
#[derive(Default)]
pub(super) struct Watcher {
    /// What is watched and has been synced, sorted.
    pub(super) filters: Vec<Filter>,
    pub(super) circle: Option<usize>,
    /// Where it is, if not with its circle's group.
    pub(super) cursor: Option<u64>,
    /// Where the peer is in the group, if it is there.
    pub(super) slot: usize,
    /// Watches that begin, one after the other.
    pub(super) starting: VecDeque<Starting>,
}

/// A watch that begins.
pub(super) struct Starting {
    filter: Filter,
    request: Option<u64>,
    from: Option<StatePosition>,
    /// Set once its client has been told how it begins.
    pub(super) stage: Option<Stage>,
}

/// How far a beginning has come.
#[derive(Clone, Copy)]
pub(super) struct Stage {
    pub(super) at: u64,
    upto: u64,
    is_snapshot: bool,
}

impl Watcher {
    /// How many watches it has.
    pub(super) fn len(&self) -> usize {
        self.filters.len() + self.starting.len()
    }

    /// Whether it has something to get that the group does not get for it.
    pub(super) fn is_behind(&self) -> bool {
        !self.starting.is_empty() || (!self.filters.is_empty() && self.cursor.is_some())
    }
}

impl Writer {
    pub(super) fn begin_watch(&mut self, which: Which, order: WatchOrder) {
        let WatchOrder { connection, request, filter, from } = order;
        let index = self.by_connection.get(&connection).copied();
        let Some(index) = index.filter(|index| !self.peers[*index].finishing) else {
            return self.views[which as usize].space.unfollow(self.index);
        };
        // Watching once more is beginning anew.
        self.forget_watch(index, which, &filter);
        self.leave_circle(index, which);
        let starting = Starting { filter, request, from, stage: None };
        self.peers[index].watchers[which as usize]
            .get_or_insert_default()
            .starting
            .push_back(starting);
        self.metrics.watches.add(1);
        self.queue_lagging(index);
    }

    pub(super) fn end_watch(&mut self, which: Which, order: &UnwatchOrder) {
        let UnwatchOrder { connection, request, filter } = order;
        let Some(&index) = self.by_connection.get(connection) else { return };
        self.forget_watch(index, which, filter);
        if request.is_some() {
            self.control(index, |out| state::unwatched(out, *request, filter.as_str()));
        }
    }

    /// Takes a filter out of what a peer watches; what is left of its watches goes on from where it
    /// is.
    fn forget_watch(&mut self, index: usize, which: Which, filter: &Filter) {
        let Some(watcher) = &self.peers[index].watchers[which as usize] else { return };
        if watcher.filters.contains(filter) {
            self.leave_circle(index, which);
        }
        let own = &mut self.peers[index].watchers[which as usize];
        let Some(watcher) = own else { return };
        let before = watcher.len();
        watcher.filters.retain(|own| own != filter);
        let mut unanswered = None;
        watcher.starting.retain_mut(|starting| {
            let stays = starting.filter != *filter;
            unanswered = unanswered.or(starting.request.take_if(|_| !stays));
            stays
        });
        let gone = before - watcher.len();
        if watcher.len() == 0 {
            *own = None;
        }
        for _ in 0..gone {
            self.metrics.watches.sub(1);
            self.views[which as usize].space.unfollow(self.index);
        }
        if let Some(request) = unanswered {
            let message = "the watch was ended, or asked for again, before it could begin";
            let refusal =
                Refusal { field: Some("pattern"), ..Refusal::new(Code::Conflict, message) };
            self.metrics.requests_refused.add(refusal.code, 1);
            self.control(index, |out| reply::error(out, Some(request), None, &refusal));
        }
        self.queue_lagging(index);
    }

    /// Ends all watches of a peer.
    pub(super) fn drop_watches(&mut self, index: usize) {
        for which in Which::ALL {
            self.leave_circle(index, which);
            let Some(watcher) = self.peers[index].watchers[which as usize].take() else { continue };
            for _ in 0..watcher.len() {
                self.metrics.watches.sub(1);
                self.views[which as usize].space.unfollow(self.index);
            }
        }
    }

    /// Moves a peer that is behind in a state by one batch.
    pub(super) fn catch_up_state(&mut self, index: usize, which: Which) {
        let Some(watcher) = &self.peers[index].watchers[which as usize] else { return };
        match watcher.starting.front().map(|starting| starting.stage) {
            Some(None) => {
                self.announce_watch(index, which);
                self.move_start(index, which);
            }
            Some(Some(_)) => self.move_start(index, which),
            None => {
                self.enter_circle(index, which);
                self.catch_up_with_circle(index, which);
            }
        }
    }

    /// Tells a client how its watch begins.
    fn announce_watch(&mut self, index: usize, which: Which) {
        let view = &self.views[which as usize];
        let epoch = view.space.epoch();
        let (version, horizon) = view.space.look(|map| (map.version(), map.horizon()));
        let Some(watcher) = &mut self.peers[index].watchers[which as usize] else { return };
        // What is watched already stands still meanwhile.
        let upto = match watcher.cursor {
            Some(cursor) if !watcher.filters.is_empty() => cursor,
            _ => version,
        };
        watcher.cursor = Some(upto);
        let Some(starting) = watcher.starting.front_mut() else { return };
        let is_known = |from: &StatePosition| {
            from.epoch == epoch && horizon <= from.version && from.version <= version
        };
        let from = starting.from.filter(is_known);
        let reset = from.is_none();
        if reset && starting.from.is_some() {
            self.metrics.watch_resets.add(1);
        }
        // Who is ahead of its other watches goes back to them, or would take what they lack for
        // what it has.
        let at = from.map_or(0, |from| from.version.min(upto));
        starting.stage = Some(Stage { at, upto, is_snapshot: reset });
        let request = starting.request.take();
        let pattern = starting.filter.clone();
        let watching = Watching { epoch, version: upto, reset };
        self.notice(index, At::Same, |out| {
            state::watching(out, request, pattern.as_str(), &watching);
        });
    }

    /// Sends one batch of what a beginning watch lacks, or that it lacks nothing any more.
    fn move_start(&mut self, index: usize, which: Which) {
        let Some(watcher) = &mut self.peers[index].watchers[which as usize] else { return };
        let Some(starting) = watcher.starting.front_mut() else { return };
        let Some(Stage { at, upto, is_snapshot }) = starting.stage else { return };
        if upto <= at {
            // Everything before has been sent in full: this is a turn of its own.
            let Some(done) = watcher.starting.pop_front() else { return };
            let pattern = done.filter.clone();
            let place = watcher.filters.partition_point(|own| own.as_str() < pattern.as_str());
            watcher.filters.insert(place, done.filter);
            let place = At::State { which, version: at };
            return self.notice(index, place, |out| state::synced(out, pattern.as_str(), at));
        }
        let filters = std::slice::from_ref(&starting.filter);
        let wanted = Wanted { filters, after: at, upto, is_snapshot };
        let start = self.arena.len();
        let (space, arena) = (&self.views[which as usize].space, &mut self.arena);
        let copied = space.look(|map| map.copy(&wanted, TURN_BYTES, arena));
        lock::assert_none_held();
        match copied {
            Copied::UpTo(to) => {
                if let Some(stage) = &mut starting.stage {
                    stage.at = to;
                }
                self.add_states(index, which, (start, at), true);
            }
            Copied::Lost => {
                starting.stage = None;
                // It is told so, and begins with nothing.
                starting.from = Some(StatePosition { epoch: space.epoch(), version: u64::MAX });
            }
        }
        self.touch(index);
    }

    /// Adds what was copied behind `start` to what a peer gets.
    pub(super) fn add_states(
        &mut self,
        index: usize,
        which: Which,
        (start, from): (usize, u64),
        is_starting: bool,
    ) {
        let range = start..self.arena.len();
        if range.is_empty() {
            return;
        }
        let count = frame::payloads(&self.arena[range.clone()]).count() as u64;
        let kind = PartKind::States { which, is_starting, from, count };
        self.peers[index].parts.push(Part::frames(range, kind));
        self.touch(index);
    }

    /// Adds a notice that comes before all that is added later.
    fn notice(&mut self, index: usize, at: At, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.arena.len();
        write(&mut self.arena);
        let range = start..self.arena.len();
        self.peers[index].parts.push(Part::frames(range, PartKind::Notice(at)));
        self.touch(index);
    }

    /// The log has forgotten deletions that a peer would need: all its watches begin anew.
    pub(super) fn reset_watches(&mut self, index: usize, which: Which) {
        self.leave_circle(index, which);
        let never =
            StatePosition { epoch: self.views[which as usize].space.epoch(), version: u64::MAX };
        let Some(watcher) = &mut self.peers[index].watchers[which as usize] else { return };
        for filter in std::mem::take(&mut watcher.filters) {
            let from = Some(never);
            watcher.starting.push_back(Starting { filter, request: None, from, stage: None });
        }
        watcher.cursor = None;
        self.queue_lagging(index);
    }

    /// A send was cut: what came after version `at` was not sent.
    pub(super) fn take_back(&mut self, index: usize, which: Which, at: u64, is_starting: bool) {
        if is_starting {
            let watcher = &mut self.peers[index].watchers[which as usize];
            let starting = watcher.as_mut().and_then(|watcher| watcher.starting.front_mut());
            if let Some(stage) = starting.and_then(|starting| starting.stage.as_mut()) {
                stage.at = at;
            }
        } else {
            self.fall_out(index, which);
            if let Some(watcher) = &mut self.peers[index].watchers[which as usize] {
                watcher.cursor = Some(at);
            }
        }
    }
}

impl Peer {
    /// Whether it is behind in any state.
    pub(super) fn is_behind_in_state(&self) -> bool {
        self.watchers.iter().flatten().any(|watcher| watcher.is_behind())
    }
}
