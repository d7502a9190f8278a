//! Subscriptions as a writer sees them: where a cursor is placed, what its client is told, and how
//! it ends.

use std::sync::Arc;

use super::{
    AckSetup, By, Feed, Follow, OpenPattern, PatternOpened, Unfollow, Writer,
    acks::Acks,
    deliver::address,
    peer::{Following, Parked, PatternState},
};
use crate::{
    metrics::labels::Closed,
    server::connection::Bye,
    topic::{Start, Topic},
    wire::{
        codes::{CloseCode, Code},
        reply::{self, Attachment, Cursor},
        request::Refusal,
        stream::Dialect,
    },
};

impl Writer {
    pub(super) fn follow(&mut self, follow: Follow) {
        let Some(&index) = self.by_connection.get(&follow.connection) else {
            follow.topic.unfollow(self.index, self.clock.unix_ms());
            return;
        };
        if let By::Pattern { subscription } = follow.by {
            let held_max = self.cursors_max(index);
            match self.peers[index].patterns.get_mut(&subscription) {
                // Who comes after one more than there may be changes nothing.
                Some(PatternState { held: Some(held), .. }) if held.len() <= held_max => {
                    return held.push(follow);
                }
                Some(PatternState { held: None, full: false, .. }) => {}
                _ => return follow.topic.unfollow(self.index, self.clock.unix_ms()),
            }
        }
        self.place(index, &follow);
    }

    /// Gives a peer a cursor, or moves the one it has, and says so.
    fn place(&mut self, index: usize, follow: &Follow) {
        let Follow { topic, start, by, .. } = follow;
        let setup = self.setup(index, follow);
        let existing = self.by_topic.get(&address(topic)).copied();
        let existing = existing.filter(|feed| self.peers[index].follows.contains_key(feed));
        if self.peers[index].finishing {
            return topic.unfollow(self.index, self.clock.unix_ms());
        }
        if let (By::Pattern { subscription }, None) = (*by, existing)
            && self.cursors_max(index) <= self.peers[index].follows.len()
        {
            topic.unfollow(self.index, self.clock.unix_ms());
            return self.refuse_cursor(index, topic, subscription);
        }
        let Some(feed) = existing else {
            self.announce(index, topic, start, *by, Cursor::New);
            let feed = self.feed(topic, start.seq);
            self.feeds[feed].followers += 1;
            self.metrics.cursors.add(1);
            let name_acks = follow.acks.is_some();
            let mut following = Following { replaying: true, name_acks, ..Following::default() };
            self.acknowledge_from(index, &mut following, setup.as_ref(), start.seq);
            self.stand(index, feed, start.seq, following, *by);
            return self.bury_if_due(index, feed);
        };
        // The topic counts followers, not reasons to follow.
        topic.unfollow(self.index, self.clock.unix_ms());
        let at = self.feeds[feed].at;
        let following = self.peers[index].follows.get(&feed);
        let seq = following.and_then(|following| following.cursor).unwrap_or(at);
        let is_pattern = matches!(by, By::Pattern { .. });
        let has_pattern = following.is_some_and(|following| !following.by_pattern.is_empty());
        // A pattern takes what is there; and what a pattern still has to get, no other subscription
        // may skip.
        if is_pattern || (has_pattern && seq < start.seq) {
            let kept = Start { seq, recovery: if is_pattern { None } else { start.recovery } };
            self.announce(index, topic, &kept, *by, Cursor::Kept);
            let peer = &mut self.peers[index];
            if let Some(mut following) = peer.follows.remove(&feed) {
                peer.note(&mut following, feed, *by);
                self.keep_acknowledging(index, &mut following, follow, (setup.as_ref(), seq));
                self.peers[index].follows.insert(feed, following);
            }
            // The window may be another.
            self.unpark_for_window(index, feed);
        } else {
            self.announce(index, topic, start, *by, Cursor::Moved);
            let mut following = self.take_following(index, feed);
            following.name_acks = setup.is_some();
            // What a pattern has sent acknowledged stays so.
            let setup = setup.or_else(|| {
                let window = self.peers[index].pattern_window(&following)?;
                Some(AckSetup::plain(start.seq, window))
            });
            self.acknowledge_from(index, &mut following, setup.as_ref(), start.seq);
            self.stand(index, feed, start.seq, following, *by);
            self.bury_if_due(index, feed);
        }
    }

    /// How the cursor to be acknowledges, if it does.
    fn setup(&self, index: usize, follow: &Follow) -> Option<AckSetup> {
        let By::Pattern { subscription } = follow.by else {
            return follow.acks.as_deref().cloned();
        };
        let window = self.peers[index].patterns.get(&subscription)?.window?;
        Some(AckSetup::plain(follow.start.seq, window))
    }

    /// Makes a cursor that stays where it is acknowledge for one more subscription.
    fn keep_acknowledging(
        &mut self,
        index: usize,
        following: &mut Following,
        follow: &Follow,
        (setup, at): (Option<&AckSetup>, u64),
    ) {
        let is_name = matches!(follow.by, By::Name { .. });
        if is_name {
            following.name_acks = setup.is_some();
        }
        match (&mut following.acks, setup) {
            (Some(acks), Some(setup)) if is_name => acks.adopt(setup),
            // What it lacks for a pattern is acknowledged from there on.
            (None, Some(setup)) => {
                self.acknowledge_from(index, following, Some(setup), at);
            }
            (_, None) if is_name => self.end_name_acks(index, following),
            _ => {}
        }
    }

    /// Makes a cursor at `seq` acknowledge as `setup` says, or not.
    fn acknowledge_from(
        &mut self,
        index: usize,
        following: &mut Following,
        setup: Option<&AckSetup>,
        seq: u64,
    ) {
        let peer = &mut self.peers[index];
        peer.acking -= usize::from(following.acks.is_some());
        following.acks = setup.map(|setup| Box::new(Acks::new(setup, seq)));
        peer.acking += usize::from(following.acks.is_some());
    }

    /// Says that a pattern brings more topics than one connection may follow. Said once: no further
    /// topic comes through that subscription.
    fn refuse_cursor(&mut self, index: usize, topic: &Arc<Topic>, subscription: u64) {
        let max = self.cursors_max(index);
        let Some(state) = self.peers[index].patterns.get_mut(&subscription) else { return };
        if std::mem::replace(&mut state.full, true) {
            return;
        }
        let message = format!(
            "this connection already follows {max} topics, which is its limit for patterns; {} and \
             every further topic of {} is not delivered",
            topic.name(),
            state.pattern
        );
        let refusal = Refusal::new(Code::LimitExceeded, message);
        self.metrics.requests_refused.add(Code::LimitExceeded, 1);
        self.control(index, |out| {
            reply::error(out, None, Some(topic.name().as_str()), &refusal);
        });
    }

    /// Takes a cursor out of its place, to be stood elsewhere.
    fn take_following(&mut self, index: usize, feed: usize) -> Following {
        let peer = &mut self.peers[index];
        let mut following = peer.follows.remove(&feed).unwrap_or_default();
        if following.cursor.take().is_some() {
            peer.behind.retain(|behind| *behind != feed);
            peer.window_full.retain(|parked| *parked != feed);
            peer.paging -= usize::from(following.parked.take() == Some(Parked::Page));
        } else {
            self.leave_group(index, feed, following.slot);
        }
        following.replaying = true;
        following
    }

    /// Stands a cursor at `seq`: with the feed's group if that is where the group is, else behind.
    /// Only who has reached the tail makes a new group, so that no cursor is ever ahead of one.
    fn stand(
        &mut self,
        index: usize,
        feed_index: usize,
        seq: u64,
        mut following: Following,
        by: By,
    ) {
        // The position may have been looked up after the group last moved.
        while self.feeds[feed_index].at < seq && !self.feeds[feed_index].group.is_empty() {
            self.arena.clear();
            self.move_group(feed_index, seq);
            self.send_touched();
            self.arena.clear();
        }
        following.cursor = Some(seq);
        if self.peers[index].finishing {
            // One of these sends found its socket broken.
            return self.leave(index, feed_index, &following);
        }
        self.peers[index].note(&mut following, feed_index, by);
        let feed = &mut self.feeds[feed_index];
        let at_tail = feed.group.is_empty() && feed.topic.look(|log| log.tail()) == seq;
        if at_tail {
            feed.at = seq;
        }
        let with_group = at_tail || (feed.at == seq && !feed.group.is_empty());
        self.tell(index, feed_index, seq);
        let peer = &mut self.peers[index];
        peer.follows.insert(feed_index, following);
        peer.behind.push_back(feed_index);
        if with_group {
            self.join_group(index, feed_index, seq);
        } else {
            self.queue_lagging(index);
        }
    }

    fn announce(&mut self, index: usize, topic: &Topic, start: &Start, by: By, cursor: Cursor) {
        // What has gone since the position was met is announced by a gap; `first` says what there
        // was when it was met, as `recovery` does.
        let first_then = |first: u64| match cursor {
            Cursor::New | Cursor::Moved => first.min(start.seq + 1),
            Cursor::Kept => first,
        };
        let attachment = topic.look(|log| Attachment {
            epoch: log.epoch(),
            seq: start.seq,
            first: first_then(log.first()),
            tail: log.tail(),
            recovery: start.recovery,
            cursor,
        });
        let name = topic.name().as_str();
        let pattern = match by {
            By::Name { .. } => None,
            By::Pattern { subscription } => {
                let open = self.peers[index].patterns.get(&subscription);
                open.map(|open| open.pattern.clone())
            }
        };
        let write = |out: &mut Vec<u8>| match (by, pattern) {
            (By::Name { request, .. }, _) => reply::subscribed(out, request, name, &attachment),
            (_, Some(pattern)) => reply::attached(out, name, pattern.as_str(), &attachment),
            (By::Pattern { .. }, None) => {}
        };
        if self.peers[index].dialect == Dialect::WebSocket {
            self.control(index, write);
        } else {
            self.announce_in_stream(index, name, by, &attachment, write);
        }
    }

    fn feed(&mut self, topic: &Arc<Topic>, at: u64) -> usize {
        *self
            .by_topic
            .entry(address(topic))
            .or_insert_with(|| self.feeds.insert(Feed::new(Arc::clone(topic), at)))
    }

    pub(super) fn open_pattern(&mut self, open: OpenPattern) {
        let OpenPattern { connection, subscription, pattern, slow, window } = open;
        if let Some(&index) = self.by_connection.get(&connection) {
            let held = Some(Vec::new());
            let state =
                PatternState { pattern, slow, held, feeds: Vec::new(), full: false, window };
            let peer = &mut self.peers[index];
            peer.patterns.insert(subscription, state);
            if peer.dialect == Dialect::Sse {
                peer.told = Some(Box::default());
            }
        }
    }

    pub(super) fn pattern_opened(&mut self, opened: &PatternOpened) {
        let &PatternOpened { connection, subscription, request, attached, replaced } = opened;
        let Some(&index) = self.by_connection.get(&connection) else { return };
        let Some(open) = self.peers[index].patterns.get_mut(&subscription) else { return };
        let pattern = open.pattern.clone();
        self.control(index, |out| {
            reply::subscribed_pattern(out, request, pattern.as_str(), attached, replaced);
        });
        if self.peers[index].told.is_none() {
            self.release(index, subscription);
        }
    }

    /// Lets the topics that a pattern has brought so far in.
    pub(super) fn release(&mut self, index: usize, subscription: u64) {
        let open = self.peers[index].patterns.get_mut(&subscription);
        for follow in open.and_then(|open| open.held.take()).unwrap_or_default() {
            self.follow(follow);
        }
    }

    pub(super) fn unfollow(&mut self, unfollow: &Unfollow) {
        let Unfollow { connection, request, filter, topic, subscription, quiet } = unfollow;
        let Some(&index) = self.by_connection.get(connection) else { return };
        match topic {
            Some(topic) => self.end_name(index, topic),
            None => self.end_pattern(index, *subscription),
        }
        if !quiet {
            self.control(index, |out| {
                reply::done_with(out, *request, "unsubscribed", filter.as_str())
            });
        }
    }

    fn end_name(&mut self, index: usize, topic: &Arc<Topic>) {
        let Some(&feed) = self.by_topic.get(&address(topic)) else { return };
        if let Some(following) = self.peers[index].follows.get_mut(&feed) {
            following.by_name = None;
            following.name_acks = false;
            self.leave_if_unwanted(index, feed);
            self.stop_acks_if_unwanted(index, feed);
        }
    }

    fn end_pattern(&mut self, index: usize, subscription: u64) {
        let Some(state) = self.peers[index].patterns.remove(&subscription) else { return };
        for follow in state.held.unwrap_or_default() {
            follow.topic.unfollow(self.index, self.clock.unix_ms());
        }
        let has_window = state.window.is_some();
        for feed in state.feeds {
            if let Some(following) = self.peers[index].follows.get_mut(&feed) {
                following.by_pattern.retain(|by| *by != subscription);
                self.leave_if_unwanted(index, feed);
                if has_window {
                    self.stop_acks_if_unwanted(index, feed);
                }
            }
        }
    }

    /// Takes a peer out of a feed that none of its subscriptions asks for any more.
    fn leave_if_unwanted(&mut self, index: usize, feed: usize) {
        let peer = &mut self.peers[index];
        let unwanted = peer.follows.get(&feed).is_some_and(|following| {
            following.by_name.is_none() && following.by_pattern.is_empty()
        });
        if unwanted && let Some(following) = peer.follows.remove(&feed) {
            if following.cursor.is_some() {
                peer.behind.retain(|behind| *behind != feed);
                peer.window_full.retain(|parked| *parked != feed);
                peer.paging -= usize::from(following.parked == Some(Parked::Page));
            }
            peer.acking -= usize::from(following.acks.is_some());
            self.leave(index, feed, &following);
        }
    }

    /// Has a cursor acknowledge only as the subscriptions that are left ask for.
    fn stop_acks_if_unwanted(&mut self, index: usize, feed: usize) {
        let Some(mut following) = self.peers[index].follows.remove(&feed) else { return };
        if !following.name_acks {
            self.end_name_acks(index, &mut following);
        }
        self.peers[index].follows.insert(feed, following);
        self.unpark_for_window(index, feed);
    }

    /// The subscription by the topic's name does not acknowledge any more: patterns may.
    fn end_name_acks(&mut self, index: usize, following: &mut Following) {
        let peer = &mut self.peers[index];
        match (peer.pattern_window(following), &mut following.acks) {
            (Some(window), Some(acks)) => acks.part_with_consumer(window),
            (None, Some(_)) => {
                following.acks = None;
                peer.acking -= 1;
            }
            (_, None) => {}
        }
    }

    /// Another connection has taken over a consumer of this one.
    pub(super) fn replaced(&mut self, connection: u64) {
        let Some(&index) = self.by_connection.get(&connection) else { return };
        let bye = Bye {
            reason: "replaced",
            text: "another connection has taken over a consumer of this one",
            code: CloseCode::Replaced,
            reconnect_after_ms: None,
        };
        self.say_bye(index, Closed::Replaced, &bye);
    }
}
