//! Delivering is moving a cursor: take what lies behind it, hand it on, move.
//!
//! Live delivery, replay and catching up after a stall are this one thing with different starts.

use std::sync::Arc;

use super::{
    ARENA_BYTES, Peer, View, Writer,
    peer::{At, Following, Parked, Part, PartKind},
    stream::Forms,
};
use crate::{
    base::{fault::Fault, limits::TURN_BYTES, lock},
    metrics::labels::Closed,
    server::{
        connection::{Bye, Connection, Phase},
        state::Which,
    },
    topic::{Copied, Topic},
    wire::{
        codes::{CloseCode, GapReason},
        reply,
        request::SlowPolicy,
    },
};

impl Writer {
    pub(super) fn attach(&mut self, connection: Arc<Connection>) {
        let id = connection.id;
        let peer = self.peers.insert(Peer::new(connection));
        self.by_connection.insert(id, peer);
    }

    pub(super) fn detach(&mut self, connection: u64) {
        let Some(&index) = self.by_connection.get(&connection) else { return };
        self.drop_follows(index);
        let peer = &mut self.peers[index];
        peer.detached = true;
        self.take_outbox(index);
        let peer = &mut self.peers[index];
        let words = peer.goodbye.take().unwrap_or_default();
        peer.control.extend_from_slice(&words);
        peer.finishing = true;
        // What still waits goes in this turn; then, or when it has not gone for too long however
        // slowly it goes, the peer goes too. Until then it counts as a connection.
        let stall = u64::try_from(self.settings.write_stall.as_millis()).unwrap_or(u64::MAX / 2);
        let deadline_ms = self.clock.uptime_ms() + stall;
        peer.connection.enter(Phase::Closing, deadline_ms);
        peer.connection.hurry(deadline_ms);
        if !peer.control.is_empty() || peer.is_stalled() {
            self.watch(index, deadline_ms);
        }
        self.touch(index);
    }

    /// Forgets a peer. The last reference to its connection closes the socket.
    pub(super) fn remove(&mut self, index: usize) {
        self.drop_follows(index);
        self.unstall(index);
        let peer = self.peers.remove(index);
        self.by_connection.remove(&peer.connection.id);
        self.roster.remove(peer.connection.id);
        // No index may wait in a queue when its slot gets another tenant.
        if peer.lagging {
            self.lagging.retain(|lagging| *lagging != index);
        }
        if peer.touched {
            self.touched.retain(|touched| *touched != index);
        }
    }

    pub(super) fn drop_follows(&mut self, index: usize) {
        self.drop_watches(index);
        let peer = &mut self.peers[index];
        peer.behind.clear();
        peer.window_full.clear();
        peer.paging = 0;
        peer.acking = 0;
        peer.parts.clear();
        let now_ms = self.clock.unix_ms();
        for (_, pattern) in peer.patterns.drain() {
            for follow in pattern.held.unwrap_or_default() {
                follow.topic.unfollow(self.index, now_ms);
            }
        }
        for (feed, following) in std::mem::take(&mut peer.follows) {
            self.leave(index, feed, &following);
        }
    }

    /// Takes a peer out of a feed, and the feed out of the writer if it was the last.
    pub(super) fn leave(&mut self, index: usize, feed_index: usize, following: &Following) {
        let now_ms = self.clock.unix_ms();
        if following.cursor.is_none() {
            self.leave_group(index, feed_index, following.slot);
        }
        let feed = &mut self.feeds[feed_index];
        feed.followers -= 1;
        feed.topic.unfollow(self.index, now_ms);
        self.metrics.cursors.sub(1);
        if feed.followers == 0 {
            let feed = self.feeds.remove(feed_index);
            self.by_topic.remove(&address(&feed.topic));
            if feed.queued {
                self.ready.retain(|ready| *ready != feed_index);
            }
        }
    }

    /// Takes a peer out of the place `slot` of a feed's group.
    pub(super) fn leave_group(&mut self, index: usize, feed_index: usize, slot: usize) {
        let group = &mut self.feeds[feed_index].group;
        if group.get(slot) != Some(&index) {
            return;
        }
        group.swap_remove(slot);
        if let Some(&moved) = group.get(slot)
            && let Some(following) = self.peers[moved].follows.get_mut(&feed_index)
        {
            following.slot = slot;
        }
    }

    pub(super) fn wake(&mut self, topic: &Arc<Topic>) {
        match self.by_topic.get(&address(topic)) {
            Some(&feed) => self.queue(feed),
            // Its follower is still on the way here, or has gone. Who comes looks by itself.
            None => topic.woken(self.index),
        }
    }

    pub(super) fn queue(&mut self, feed_index: usize) {
        let feed = &mut self.feeds[feed_index];
        if !feed.queued {
            feed.queued = true;
            self.ready.push_back(feed_index);
        }
    }

    pub(super) fn queue_lagging(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        let is_behind = !peer.behind.is_empty() || peer.is_behind_in_state();
        if !peer.lagging && !peer.is_stalled() && is_behind {
            peer.lagging = true;
            self.lagging.push_back(index);
        }
    }

    /// Gives the followers at the tail of each topic that has news one batch of it.
    pub(super) fn deliver_news(&mut self) {
        // States and those who are behind get at least half of a turn.
        let has_states = self.views.iter().any(View::is_busy);
        let is_alone = self.lagging.is_empty() && !has_states;
        let bytes_max = if is_alone { ARENA_BYTES } else { ARENA_BYTES / 2 };
        for _ in 0..self.ready.len() {
            if bytes_max <= self.arena.len() {
                return;
            }
            let Some(feed_index) = self.ready.pop_front() else { return };
            let feed = &mut self.feeds[feed_index];
            feed.queued = false;
            if !Fault::WakeFlag.is_on() {
                feed.topic.woken(self.index);
            }
            if self.move_group(feed_index, u64::MAX) {
                self.queue(feed_index);
            }
            if Fault::WakeFlag.is_on() {
                self.feeds[feed_index].topic.woken(self.index);
            }
        }
    }

    /// Moves a feed's group towards `upto` by one batch. Returns whether there is more.
    pub(super) fn move_group(&mut self, feed_index: usize, upto: u64) -> bool {
        let feed = &mut self.feeds[feed_index];
        if feed.group.is_empty() {
            return false;
        }
        let from = feed.at;
        let start = self.arena.len();
        let arena = &mut self.arena;
        let (copied, tail) =
            feed.topic.look(|log| (log.copy_after(from, upto, TURN_BYTES, arena), log.tail()));
        lock::assert_none_held();
        match copied {
            Copied::UpTo(to) => {
                feed.at = to;
                let range = start..self.arena.len();
                let more = to < tail.min(upto);
                if to != from {
                    let kind = PartKind::Events { feed: feed_index, from, to };
                    self.hand_out(feed_index, from, &Part::frames(range, kind));
                }
                more
            }
            Copied::Lost { .. } | Copied::Stored => {
                // The log passed the whole group between two turns. Each of them is behind now,
                // and its own turn says what is missing, or asks the disk.
                for index in std::mem::take(&mut feed.group) {
                    self.fall_behind(index, feed_index, from);
                    self.queue_lagging(index);
                }
                false
            }
        }
    }

    /// Adds `part` to everybody in the feed's group who can take it; the others fall behind.
    fn hand_out(&mut self, feed_index: usize, from: u64, part: &Part) {
        let mut forms = Forms::default();
        let mut slot = 0;
        while let Some(&index) = self.feeds[feed_index].group.get(slot) {
            let peer = &mut self.peers[index];
            if peer.is_stalled() {
                // Its place is taken by the last of the group, whose turn it is then.
                self.leave_group(index, feed_index, slot);
                self.fall_behind(index, feed_index, from);
                continue;
            }
            if 0 < peer.acking
                && let PartKind::Events { to, .. } = part.kind
                && let Some(acks) =
                    peer.follows.get(&feed_index).and_then(|following| following.acks.as_ref())
            {
                if acks.limit() < to {
                    self.leave_group(index, feed_index, slot);
                    self.fall_behind(index, feed_index, from);
                    self.queue_lagging(index);
                    continue;
                }
                acks.offer(to);
            }
            let own = self.form_of(index, part, &mut forms);
            let peer = &mut self.peers[index];
            peer.parts.push(own);
            if !peer.touched {
                peer.touched = true;
                self.touched.push(index);
            }
            slot += 1;
        }
    }

    /// Gives a peer that was in the group a cursor of its own. The caller takes it out of the
    /// group.
    pub(super) fn fall_behind(&mut self, index: usize, feed_index: usize, cursor: u64) {
        let peer = &mut self.peers[index];
        if let Some(following) = peer.follows.get_mut(&feed_index) {
            let was_asked_for = following.parked == Some(Parked::Page);
            if was_asked_for {
                // The page that was asked for ahead is not the next one any more.
                following.parked = None;
                peer.paging -= 1;
            }
            if following.cursor.is_none() || was_asked_for {
                peer.behind.push_back(feed_index);
            }
            following.cursor = Some(cursor);
        }
    }

    /// Gives each peer that is behind and has room one batch of what it lacks.
    pub(super) fn deliver_backlogs(&mut self) {
        // One of them is served in any case.
        let bytes_max = ARENA_BYTES.max(self.arena.len() + 1);
        for _ in 0..self.lagging.len() {
            if bytes_max <= self.arena.len() {
                return;
            }
            let Some(index) = self.lagging.pop_front() else { return };
            let peer = &mut self.peers[index];
            peer.lagging = false;
            if peer.is_stalled() || peer.finishing {
                continue;
            }
            let budget = self.arena.len() + TURN_BYTES;
            for _ in 0..peer.behind.len().min(TOPICS_PER_TURN) {
                let peer = &mut self.peers[index];
                if budget <= self.arena.len() || peer.finishing {
                    break;
                }
                // Whoever was served goes to the end.
                let Some(feed_index) = peer.behind.pop_front() else { break };
                peer.behind.push_back(feed_index);
                self.catch_up(index, feed_index);
            }
            for which in Which::ALL {
                let watcher = self.peers[index].watchers[which as usize].as_ref();
                if watcher.is_some_and(|watcher| watcher.is_behind()) {
                    self.catch_up_state(index, which);
                }
            }
            self.queue_lagging(index);
        }
    }

    /// Moves one cursor that is behind by one batch, up to where the feed's group is.
    fn catch_up(&mut self, index: usize, feed_index: usize) {
        let Some(following) = self.peers[index].follows.get_mut(&feed_index) else { return };
        let (Some(from), replaying) = (following.cursor, following.replaying) else { return };
        let acks = following.acks.as_ref();
        let (from, limit) = acks.map_or((from, u64::MAX), |acks| (acks.resume(from), acks.limit()));
        following.cursor = Some(from);
        let feed = &self.feeds[feed_index];
        let group = if feed.group.is_empty() { u64::MAX } else { feed.at };
        let upto = group.min(limit);
        let start = self.arena.len();
        let arena = &mut self.arena;
        let topic = Arc::clone(&feed.topic);
        let (copied, tail) =
            topic.look(|log| (log.copy_after(from, upto, TURN_BYTES, arena), log.tail()));
        // Before it is sent: an acknowledgement may be here before the send has returned.
        if let (Copied::UpTo(to), Some(acks)) = (copied, &following.acks) {
            acks.offer(to);
        }
        match copied {
            Copied::UpTo(to) => {
                if to != from {
                    let kind = PartKind::Events { feed: feed_index, from, to };
                    let range = start..self.arena.len();
                    self.peers[index].parts.push(Part::frames(range, kind));
                    self.touch(index);
                }
                if let Some(following) = self.peers[index].follows.get_mut(&feed_index) {
                    following.cursor = Some(to);
                }
                if group < to {
                    // What this cursor skipped the group has not looked at yet.
                    self.queue(feed_index);
                } else if tail.min(group) <= to {
                    self.join_group(index, feed_index, to);
                } else if to == from && limit <= to {
                    self.park_for_window(index, feed_index);
                }
                if self.peers[index].goodbye.is_some() {
                    // It may have been the last that the goodbye waited for.
                    self.touch(index);
                }
            }
            Copied::Stored => {
                let upto = upto.min(tail);
                self.ask_for_page(index, feed_index, &topic, (from, upto));
            }
            Copied::Lost { first, reason } => {
                let reason = if replaying { GapReason::Truncated } else { reason };
                self.lose(index, feed_index, from, first, reason);
            }
        }
    }

    pub(super) fn join_group(&mut self, index: usize, feed_index: usize, at: u64) {
        let feed = &mut self.feeds[feed_index];
        let peer = &mut self.peers[index];
        peer.forget_behind(feed_index);
        if let Some(following) = peer.follows.get_mut(&feed_index) {
            following.cursor = None;
            following.replaying = false;
            following.slot = feed.group.len();
        }
        if feed.group.is_empty() {
            feed.at = at;
        }
        feed.group.push(index);
        // An event may have come after the copy; its wake-up found this cursor behind.
        self.queue(feed_index);
    }

    /// The log has passed a cursor: a notice, or the end of the connection.
    pub(super) fn lose(
        &mut self,
        index: usize,
        feed_index: usize,
        from: u64,
        first: u64,
        reason: GapReason,
    ) {
        let topic = Arc::clone(&self.feeds[feed_index].topic);
        let peer = &self.peers[index];
        let policy = peer.follows.get(&feed_index).map(|following| peer.slow_policy(following));
        // Who has been told goodbye already, and is being given what is left, gets a gap.
        if policy == Some(SlowPolicy::Disconnect) && peer.goodbye.is_none() {
            let bye = Bye {
                reason: "slow_consumer",
                text: "the log has passed a subscription that asked to be disconnected then",
                code: CloseCode::SlowConsumer,
                reconnect_after_ms: Some(0),
            };
            return self.say_bye(index, Closed::Slow, &bye);
        }
        self.metrics.gaps.add(reason, 1);
        self.metrics.gap_events.add(reason, first - 1 - from);
        let start = self.arena.len();
        reply::gap(&mut self.arena, topic.name().as_str(), from + 1, first - 1, reason);
        let range = start..self.arena.len();
        let peer = &mut self.peers[index];
        let at = At::Event { feed: feed_index, seq: first - 1 };
        peer.parts.push(Part::frames(range, PartKind::Notice(at)));
        if let Some(following) = peer.follows.get_mut(&feed_index) {
            following.cursor = Some(first - 1);
        }
        self.forgive(index, feed_index, first - 1);
        self.touch(index);
    }
}

/// Topics of one peer that is behind in them, served in one turn.
const TOPICS_PER_TURN: usize = 64;

/// What a topic is found by: it lives as long as its feed does.
pub(super) fn address(topic: &Arc<Topic>) -> usize {
    Arc::as_ptr(topic).addr()
}
