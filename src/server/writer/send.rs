//! The sends themselves, what did not fit, and who takes nothing.

use std::{io, net::Shutdown, sync::Arc, time::Duration};

use rustix::net::{SendFlags, send};

use super::{
    Peer, Writer,
    peer::{Following, Form, PartKind, Stall},
};
use crate::{
    base::{lock, sync::atomic::Ordering},
    metrics::labels::Closed,
    server::{connection::Bye, keeper::Watch, relay::grace_deadline_ms, state::Which},
    state::version_in,
    wire::stream::{Dialect, Place},
};

impl Writer {
    /// Marks a peer as getting something in this turn.
    pub(super) fn touch(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        if !peer.touched {
            peer.touched = true;
            self.touched.push(index);
        }
    }

    /// Adds replies or notices to what a peer gets in this turn.
    pub(super) fn control(&mut self, index: usize, write: impl FnOnce(&mut Vec<u8>)) {
        self.control_at(index, Place::Same, write);
    }

    /// As [`Writer::control`], where the client is at `place` with it.
    pub(super) fn control_at(
        &mut self,
        index: usize,
        place: Place<'_>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let peer = &mut self.peers[index];
        if peer.finishing {
            return;
        }
        match peer.dialect {
            Dialect::WebSocket => write(&mut peer.control),
            dialect @ (Dialect::Sse | Dialect::Ndjson) => {
                let mut frames = Vec::new();
                write(&mut frames);
                dialect.translate(&mut peer.control, &frames, |_| place);
            }
        }
        self.touch(index);
    }

    /// Ends a connection from here, with a goodbye that waits its turn.
    pub(super) fn say_bye(&mut self, index: usize, reason: Closed, bye: &Bye<'_>) {
        let deadline_ms = grace_deadline_ms(self.clock.uptime_ms());
        let connection = &self.peers[index].connection;
        connection.say_bye(reason, deadline_ms, bye);
        let id = connection.id;
        self.watch(index, deadline_ms);
        self.flush(id);
    }

    /// Has the keeper look at a connection. A writer waits for nobody: if the keeper's lane is
    /// full, the keeper looks later, when it would have looked anyway.
    pub(super) fn watch(&self, index: usize, at_ms: u64) {
        let connection = Arc::downgrade(&self.peers[index].connection);
        drop(self.keeper.offer(Watch { connection, at_ms }));
    }

    pub(super) fn flush(&mut self, connection: u64) {
        let Some(&index) = self.by_connection.get(&connection) else { return };
        if self.peers[index].is_stalled() {
            self.peers[index].outbox_waits = true;
        } else {
            self.take_outbox(index);
        }
    }

    /// Takes over what waits in a connection's outbox.
    pub(super) fn take_outbox(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        peer.outbox_waits = false;
        let taken = peer.connection.outbox.take();
        if peer.control.is_empty() {
            peer.control = taken.bytes;
        } else {
            peer.control.extend_from_slice(&taken.bytes);
        }
        if let Some(words) = taken.last_words
            && !peer.finishing
        {
            peer.goodbye = Some(words);
            if peer.connection.reason() != Some(Closed::Shutdown) {
                self.drop_follows(index);
            }
            self.try_goodbye(index);
        }
        self.touch(index);
    }

    /// Says the last words if nothing is left to be delivered before them. A relay that stops
    /// delivers what it has first; who cannot take it within the drain is cut off.
    fn try_goodbye(&mut self, index: usize) {
        let peer = &self.peers[index];
        let waits = !peer.behind.is_empty() || 0 < peer.paging;
        if peer.goodbye.is_none() || peer.is_stalled() || waits {
            return;
        }
        // Whoever waits for acknowledgements has what it may have.
        let has_news = |(feed, following): (&usize, &Following)| {
            let state = &self.feeds[*feed];
            let news = following.cursor.is_none() && state.at < state.topic.look(|log| log.tail());
            news.then_some(*feed)
        };
        let news: Vec<usize> = peer.follows.iter().filter_map(has_news).collect();
        if news.is_empty() {
            let peer = &mut self.peers[index];
            let words = peer.goodbye.take().unwrap_or_default();
            peer.control.extend_from_slice(&words);
            peer.finishing = true;
            self.drop_follows(index);
            self.touch(index);
        } else {
            news.into_iter().for_each(|feed| self.queue(feed));
        }
    }

    /// Sends every peer of this turn what it gets, each with one system call.
    pub(super) fn send_touched(&mut self) {
        // A send may touch its peer once more, to say goodbye.
        while !self.touched.is_empty() {
            let mut touched = std::mem::take(&mut self.touched);
            for index in touched.drain(..) {
                let Some(peer) = self.peers.get_mut(index) else { continue };
                if std::mem::take(&mut peer.touched) {
                    self.send(index);
                }
            }
            if self.touched.is_empty() {
                self.touched = touched;
            }
        }
    }

    fn send(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        if peer.is_stalled() {
            // Only replies and goodbyes get here; they wait behind what is unsent.
            peer.unsent.append(&mut peer.control);
            peer.connection.outbox.hold(peer.unsent.len());
            return;
        }
        if peer.dialect != Dialect::WebSocket {
            self.join_as_stream(index);
        }
        let peer = &self.peers[index];
        let bytes: &[u8] = match (&peer.control[..], &peer.parts[..]) {
            (_, [first, ..]) if first.form == Form::Joined => &self.joined,
            ([], [part]) => &self.arena[part.range.clone()],
            (control, []) => control,
            (control, parts) => {
                self.joined.clear();
                self.joined.extend_from_slice(control);
                for part in parts {
                    self.joined.extend_from_slice(&self.arena[part.range.clone()]);
                }
                &self.joined
            }
        };
        let wanted = bytes.len();
        let sent = if wanted == 0 { Ok(0) } else { send_now(peer, bytes) };
        self.metrics.sends.add(u64::from(wanted != 0));
        match sent {
            Ok(sent) if sent == wanted => {
                self.count_delivered(index);
                let peer = &mut self.peers[index];
                peer.control = Vec::new();
                peer.parts.clear();
                self.metrics.sent_bytes.add(sent as u64);
                self.try_goodbye(index);
                self.finish_if_done(index);
            }
            Ok(sent) => {
                self.metrics.sent_bytes.add(sent as u64);
                self.keep_unsent(index, sent);
            }
            Err(_) => self.lost(index),
        }
    }

    fn count_delivered(&mut self, index: usize) {
        if 0 < self.peers[index].acking {
            for at in 0..self.peers[index].parts.len() {
                if let PartKind::Events { feed, to, .. } = self.peers[index].parts[at].kind {
                    self.expect_acks(index, feed, to);
                }
            }
        }
        let (mut events, mut states) = (0, 0);
        for part in &self.peers[index].parts {
            match part.kind {
                PartKind::Events { from, to, .. } => events += to - from,
                PartKind::States { count, .. } => states += count,
                PartKind::Notice(_) => {}
            }
        }
        if 0 < states {
            self.metrics.state_sent.add(states);
        }
        if 0 < events {
            self.metrics.delivered.add(self.peers[index].dialect.into(), events);
        }
    }

    /// The socket took `sent` bytes of this turn. What must not be lost is kept: replies, notices
    /// and the frame that was cut. Events behind it are not: their cursor goes back.
    fn keep_unsent(&mut self, index: usize, sent: usize) {
        let peer = &mut self.peers[index];
        let control = std::mem::take(&mut peer.control);
        peer.unsent.extend_from_slice(control.get(sent..).unwrap_or_default());
        let mut before = control.len();
        let mut delivered = 0;
        let mut back: Vec<(usize, u64)> = Vec::new();
        let mut gone: Vec<(usize, u64)> = Vec::new();
        let mut untouched = Vec::new();
        let mut states: Vec<(Which, u64, bool)> = Vec::new();
        for part in std::mem::take(&mut peer.parts) {
            let bytes = part.bytes(&self.arena, &self.joined);
            let taken = sent.saturating_sub(before).min(bytes.len());
            before += bytes.len();
            match part.kind {
                PartKind::Notice(_) => peer.unsent.extend_from_slice(&bytes[taken..]),
                PartKind::States { count, .. } if taken == bytes.len() => {
                    self.metrics.state_sent.add(count);
                }
                PartKind::States { which, .. }
                    if states.iter().any(|(gone, ..)| *gone == which) => {}
                PartKind::States { which, is_starting, from, .. } => {
                    let (frames, end) = peer.dialect.whole(bytes, taken);
                    peer.unsent.extend_from_slice(&bytes[taken..end]);
                    self.metrics.state_sent.add(frames);
                    let last = peer.dialect.last_text(&bytes[..end]).and_then(version_in);
                    states.push((which, last.unwrap_or(from), is_starting));
                }
                PartKind::Events { feed, from, to } if taken == bytes.len() => {
                    delivered += to - from;
                    gone.push((feed, to));
                }
                // The cursor goes back once, to the first event that was not sent.
                PartKind::Events { feed, .. } if back.iter().any(|(gone, _)| *gone == feed) => {}
                PartKind::Events { feed, from, .. } => {
                    let (frames, end) = peer.dialect.whole(bytes, taken);
                    peer.unsent.extend_from_slice(&bytes[taken..end]);
                    delivered += frames;
                    if 0 < frames {
                        gone.push((feed, from + frames));
                    }
                    back.push((feed, from + frames));
                    if taken == 0 {
                        untouched.push(feed);
                    }
                }
            }
        }
        let acking = 0 < peer.acking;
        self.metrics.delivered.add(peer.dialect.into(), delivered);
        peer.connection.outbox.hold(peer.unsent.len());
        self.stall(index);
        if acking {
            gone.into_iter().for_each(|(feed, upto)| self.expect_acks(index, feed, upto));
        }
        for (feed, cursor) in back {
            let following = self.peers[index].follows.get(&feed);
            if let Some(following) = following.filter(|following| following.cursor.is_none()) {
                let slot = following.slot;
                self.leave_group(index, feed, slot);
            }
            self.fall_behind(index, feed, cursor);
            self.untell(index, feed, cursor);
        }
        for (which, at, is_starting) in states {
            self.take_back(index, which, at, is_starting);
        }
        // Those that got nothing come first next time, so that one busy topic cannot keep the
        // others of its peer waiting for ever.
        let behind = &mut self.peers[index].behind;
        behind.retain(|feed| !untouched.contains(feed));
        untouched.into_iter().rev().for_each(|feed| behind.push_front(feed));
    }

    /// Notes that a socket is full.
    fn stall(&mut self, index: usize) {
        let now = self.now();
        let peer = &mut self.peers[index];
        peer.stalled = Some(Stall { since: now, slot: self.stalled.len() });
        self.stalled.push(index);
        self.metrics.stalled.add(1);
        let limit = now + self.settings.write_stall;
        self.look_at = Some(self.look_at.map_or(limit, |at| at.min(limit)));
        // Where it cannot be watched, the limit above still ends it.
        drop(self.crowd.watch(&peer.connection.socket, index));
    }

    /// Notes that a socket is not full any more, or gone.
    pub(super) fn unstall(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        let Some(Stall { slot, .. }) = peer.stalled.take() else { return };
        self.crowd.forget(&peer.connection.socket);
        self.stalled.swap_remove(slot);
        if let Some(&moved) = self.stalled.get(slot)
            && let Some(stall) = &mut self.peers[moved].stalled
        {
            stall.slot = slot;
        }
        self.metrics.stalled.sub(1);
    }

    /// Sends stalled peers more where their socket has room again, and gives up on those that have
    /// taken nothing for too long. Waits for one of them, or for the lane, unless `busy`.
    pub(super) fn look_after_stalled(&mut self, busy: bool) {
        lock::assert_none_held();
        let now = self.now();
        let timeout = if busy {
            Duration::ZERO
        } else {
            self.waker.listen();
            let next = self.next_look();
            let left = next.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
            if self.inbox.is_empty() { left } else { Duration::ZERO }
        };
        let ready = self.crowd.wait(timeout);
        if !busy {
            self.waker.hush();
        }
        for index in ready {
            // It may have been unstalled, or removed, by what an earlier one brought about.
            if self.peers.get(index).is_some_and(Peer::is_stalled) {
                self.resume(index);
            }
        }
        self.give_up_on_late();
    }

    /// Cuts off the stalled peers that have taken nothing for the limit, and computes when to look
    /// again.
    fn give_up_on_late(&mut self) {
        let now = self.now();
        if self.look_at.is_none_or(|at| now < at) {
            return;
        }
        let limit = self.settings.write_stall;
        let since = |index: &usize| self.peers[*index].stalled.map_or(now, |stall| stall.since);
        let is_late = |index: &usize| limit <= now.saturating_duration_since(since(index));
        let late: Vec<usize> = self.stalled.iter().copied().filter(is_late).collect();
        self.look_at = self.stalled.iter().filter(|index| !is_late(index)).map(since).min();
        self.look_at = self.look_at.map(|since| (since + limit).max(now + LOOK_AGAIN));
        for index in late {
            self.peers[index].connection.cut(Closed::Stalled);
            self.lost(index);
        }
    }

    /// A stalled socket has room, or an error.
    fn resume(&mut self, index: usize) {
        let now = self.now();
        let peer = &mut self.peers[index];
        let rest = &peer.unsent[peer.unsent_from..];
        let sent = if rest.is_empty() { Ok(0) } else { send_now(peer, rest) };
        match sent {
            Err(_) => return self.lost(index),
            Ok(sent) => {
                self.metrics.sends.add(1);
                self.metrics.sent_bytes.add(sent as u64);
                peer.unsent_from += sent;
                if let Some(stall) = &mut peer.stalled
                    && 0 < sent
                {
                    stall.since = now;
                }
                if peer.unsent_from < peer.unsent.len() {
                    drop(self.crowd.watch_on(&peer.connection.socket, index));
                    return;
                }
            }
        }
        peer.unsent = Vec::new();
        peer.unsent_from = 0;
        peer.connection.outbox.hold(0);
        self.unstall(index);
        if self.peers[index].outbox_waits {
            self.take_outbox(index);
        }
        self.queue_lagging(index);
        self.try_goodbye(index);
        self.finish_if_done(index);
    }

    /// Everything has gone that was to go.
    fn finish_if_done(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        if !peer.finishing || peer.is_stalled() || !peer.control.is_empty() {
            return;
        }
        if !peer.finished {
            peer.finished = true;
            // An error means that the socket is gone already.
            drop(peer.connection.socket.shutdown(Shutdown::Write));
            // The client has everything; it gets a moment to close its own half.
            let deadline_ms = grace_deadline_ms(self.clock.uptime_ms());
            peer.connection.hurry(deadline_ms);
            if !peer.detached {
                self.watch(index, deadline_ms);
            }
        }
        if self.peers[index].detached {
            self.remove(index);
        }
    }

    /// The socket is broken, or its peer takes nothing.
    fn lost(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        peer.connection.cut(Closed::Lost);
        peer.finishing = true;
        peer.finished = true;
        peer.control = Vec::new();
        peer.unsent = Vec::new();
        peer.unsent_from = 0;
        self.unstall(index);
        self.drop_follows(index);
        if self.peers[index].detached {
            self.remove(index);
        }
        // Else the reader, woken by the cut, ends and says so.
    }
}

/// The least time between two looks at who has been stalled for too long.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Sends without waiting. 0 where the socket has no room.
fn send_now(peer: &Peer, bytes: &[u8]) -> io::Result<usize> {
    lock::assert_none_held();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = match send(&peer.connection.socket, bytes, flags) {
        Ok(sent) => sent,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::NOBUFS) => 0,
        Err(error) => return Err(error.into()),
    };
    // Relaxed: a counter.
    peer.connection.sent_bytes.fetch_add(sent as u64, Ordering::Relaxed);
    Ok(sent)
}
