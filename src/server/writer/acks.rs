//! Cursors whose events must be acknowledged: how far they may go, and when they go back.
//!
//! A cursor that acknowledges stands with its group as any other while its window has room. Beyond
//! that it is parked until an acknowledgement comes. Sending again is moving it back.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    AckSetup, AckTopic, Writer,
    deliver::address,
    peer::{Following, Parked},
};
use crate::{
    base::sync::atomic::{AtomicBool, AtomicU64, Ordering},
    name::UserName,
    server::pager::{Burial, BurialDone, Buried, Errand},
    topic::Topic,
    wire::{
        codes::{Code, GapReason},
        reply,
        request::Refusal,
    },
};

/// What a reader and its writer share of one cursor.
#[derive(Debug, Default)]
pub(crate) struct AckCell {
    /// Acknowledged: this event and all before it.
    acked: AtomicU64,
    /// The newest event that was sent, or is about to be.
    offered: AtomicU64,
    /// The cursor waits for an acknowledgement.
    blocked: AtomicBool,
}

impl AckCell {
    /// What a client can have that starts after event `start`. What it has acknowledged, the writer
    /// knows, where the cursor is shared with a pattern.
    pub(crate) fn new(start: u64) -> Self {
        Self { offered: AtomicU64::new(start), ..Self::default() }
    }

    /// Notes an acknowledgement. Returns whether the writer must be told.
    pub(crate) fn acknowledge(&self, seq: u64) -> bool {
        // SeqCst here and in `block`: either the writer sees the acknowledgement when it looks once
        // more after saying that it waits, or this sees that it waits.
        self.acked.fetch_max(seq, Ordering::SeqCst);
        self.blocked.load(Ordering::SeqCst) && self.blocked.swap(false, Ordering::SeqCst)
    }

    /// The newest event that the client can have.
    pub(crate) fn offered(&self) -> u64 {
        // Relaxed: the client cannot have an event whose offer is not long done.
        self.offered.load(Ordering::Relaxed)
    }

    fn offer(&self, seq: u64) {
        self.offered.fetch_max(seq, Ordering::Relaxed);
    }

    fn acked(&self) -> u64 {
        self.acked.load(Ordering::SeqCst)
    }

    /// Says that the cursor waits.
    fn block(&self) {
        self.blocked.store(true, Ordering::SeqCst);
    }
}

/// One cursor's acknowledgements, as its writer sees them.
#[derive(Clone, Debug)]
pub(super) struct Acks {
    cell: Arc<AckCell>,
    window: u64,
    /// What was acknowledged when this was last looked at.
    acked: u64,
    /// Up to which event was sent when, oldest first; only what is not acknowledged.
    sent: VecDeque<(u64, Instant)>,
    /// The newest event that was ever sent.
    sent_max: u64,
    /// How often the first event that is not acknowledged was sent.
    deliveries: u32,
    consumer: Option<(UserName, u64)>,
}

/// Events sent within this time have one time.
const MERGE: Duration = Duration::from_millis(5);
/// Least time between two looks at who has not acknowledged for too long.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl Acks {
    /// A cursor's that stands at `at`.
    pub(super) fn new(setup: &AckSetup, at: u64) -> Self {
        setup.cell.acked.fetch_max(at, Ordering::SeqCst);
        setup.cell.offer(at);
        Self {
            cell: Arc::clone(&setup.cell),
            window: setup.window,
            acked: at,
            sent: VecDeque::new(),
            sent_max: at,
            deliveries: setup.deliveries.saturating_add(1),
            consumer: setup.consumer.clone(),
        }
    }

    /// Goes on from where it is as `setup` says.
    pub(super) fn adopt(&mut self, setup: &AckSetup) {
        setup.cell.acked.fetch_max(self.cell.acked(), Ordering::SeqCst);
        setup.cell.offer(self.cell.offered());
        self.cell = Arc::clone(&setup.cell);
        self.window = setup.window;
        self.consumer.clone_from(&setup.consumer);
    }

    /// Goes on without the consumer and with the window of another subscription.
    pub(super) fn part_with_consumer(&mut self, window: u64) {
        self.consumer = None;
        self.window = window;
    }

    /// Where a cursor at `at` goes on: not before what was sent and has been acknowledged since.
    pub(super) fn resume(&self, at: u64) -> u64 {
        at.max(self.cell.acked().min(self.sent_max))
    }

    /// Whether a cursor at `at` may be sent something. If not, the next acknowledgement tells.
    fn has_room(&self, at: u64) -> bool {
        self.cell.block();
        at < self.limit()
    }

    /// The last event that may be sent now.
    pub(super) fn limit(&self) -> u64 {
        self.cell.acked().saturating_add(self.window)
    }

    pub(super) fn offer(&self, upto: u64) {
        self.cell.offer(upto);
    }

    /// Notes that events up to `upto` have gone.
    pub(super) fn note_sent(&mut self, upto: u64, now: Instant) {
        self.sent_max = self.sent_max.max(upto);
        if upto <= self.acked {
            return;
        }
        match self.sent.back_mut() {
            Some((last, at)) if now.saturating_duration_since(*at) < MERGE => {
                *last = upto.max(*last);
            }
            _ => self.sent.push_back((upto, now)),
        }
    }

    /// Looks what was acknowledged.
    fn settle(&mut self) {
        let acked = self.cell.acked();
        if self.acked < acked {
            self.acked = acked;
            self.deliveries = 1;
        }
        while self.sent.front().is_some_and(|(upto, _)| *upto <= acked) {
            self.sent.pop_front();
        }
    }
}

/// What became of a cursor whose time was looked at.
enum Look {
    /// Nothing before this moment.
    Later(Instant),
    /// Nothing of it waits to be acknowledged.
    Idle,
    Overdue,
}

impl Writer {
    /// Notes when the first of the events that have just gone must be acknowledged.
    pub(super) fn expect_acks(&mut self, index: usize, feed: usize, upto: u64) {
        let now = self.now();
        let following = self.peers[index].follows.get_mut(&feed);
        if let Some(acks) = following.and_then(|following| following.acks.as_mut()) {
            acks.note_sent(upto, now);
            let at = now + self.acks.timeout;
            self.ack_at = Some(self.ack_at.map_or(at, |before| before.min(at)));
        }
    }

    /// Parks a cursor whose window is full, until the next acknowledgement.
    pub(super) fn park_for_window(&mut self, index: usize, feed: usize) {
        let peer = &mut self.peers[index];
        let Some(following) = peer.follows.get_mut(&feed) else { return };
        let (Some(acks), Some(cursor)) = (&following.acks, following.cursor) else { return };
        if !acks.has_room(cursor) {
            following.parked = Some(Parked::Window);
            peer.forget_behind(feed);
            peer.window_full.push(feed);
        }
    }

    /// A connection has acknowledged something that one of its cursors waits for.
    pub(super) fn acked(&mut self, connection: u64) {
        let Some(&index) = self.by_connection.get(&connection) else { return };
        let peer = &mut self.peers[index];
        let follows = &peer.follows;
        let has_room = |feed: &mut usize| {
            let following = follows.get(feed);
            let acks = following.and_then(|it| Some((it.acks.as_ref()?, it.cursor?)));
            acks.is_none_or(|(acks, cursor)| acks.has_room(cursor))
        };
        let open: Vec<usize> = peer.window_full.extract_if(.., has_room).collect();
        for feed in open {
            self.unpark(index, feed, Parked::Window);
        }
    }

    /// Lets a cursor go on whose window has changed, or is gone.
    pub(super) fn unpark_for_window(&mut self, index: usize, feed: usize) {
        if self.unpark(index, feed, Parked::Window) {
            self.peers[index].window_full.retain(|parked| *parked != feed);
        }
        let following = self.peers[index].follows.get(&feed);
        if following.is_some_and(|following| following.acks.is_none()) {
            self.unpark(index, feed, Parked::Burial);
        }
    }

    /// A connection has acknowledged an event of a topic that a pattern brought.
    pub(super) fn ack_topic(&mut self, ack: &AckTopic) {
        let AckTopic { connection, request, topic, seq } = ack;
        let Some(&index) = self.by_connection.get(connection) else { return };
        let feed = self.by_topic.get(&address(topic));
        let following = feed.and_then(|feed| self.peers[index].follows.get(feed));
        let acks = following.and_then(|following| following.acks.as_ref());
        let name = topic.name().as_str();
        let refusal = match acks.map(|acks| (acks, acks.cell.offered())) {
            None => not_acking(name),
            Some((_, sent)) if sent < *seq => not_sent(name, *seq, sent),
            Some((acks, _)) => {
                if acks.cell.acknowledge(*seq) {
                    self.acked(*connection);
                }
                return;
            }
        };
        self.metrics.requests_refused.add(refusal.code, 1);
        self.control(index, |out| reply::error(out, *request, None, &refusal));
    }

    /// Lets a cursor go on that was parked for `why`.
    pub(super) fn unpark(&mut self, index: usize, feed: usize, why: Parked) -> bool {
        let peer = &mut self.peers[index];
        let Some(following) = peer.follows.get_mut(&feed) else { return false };
        if following.parked != Some(why) {
            return false;
        }
        following.parked = None;
        peer.behind.push_back(feed);
        self.queue_lagging(index);
        true
    }

    /// Sends again what was not acknowledged in time, and computes when to look again.
    pub(super) fn look_after_acks(&mut self) {
        let now = self.now();
        if self.ack_at.is_none_or(|at| now < at) {
            return;
        }
        let timeout = self.acks.timeout;
        let mut next: Option<Instant> = None;
        let mut overdue = Vec::new();
        for (index, peer) in &mut self.peers {
            if peer.acking == 0 {
                continue;
            }
            for (feed, following) in &mut peer.follows {
                match look(following, timeout, now) {
                    Look::Overdue => overdue.push((index, *feed)),
                    Look::Later(at) => next = Some(next.map_or(at, |next| next.min(at))),
                    Look::Idle => {}
                }
            }
        }
        self.ack_at = next.map(|at| at.max(now + LOOK_AGAIN));
        for (index, feed) in overdue {
            self.redeliver(index, feed);
        }
    }

    /// The first event that is not acknowledged was sent and is overdue: it is sent again, with all
    /// after it, or put aside if it was sent often enough.
    fn redeliver(&mut self, index: usize, feed: usize) {
        let topic = Arc::clone(&self.feeds[feed].topic);
        let Some(following) = self.peers[index].follows.get_mut(&feed) else { return };
        let Some(acks) = &mut following.acks else { return };
        let deliveries = acks.deliveries.saturating_add(1);
        if let Some((name, fence)) = &acks.consumer {
            let told = (acks.acked, deliveries);
            if !topic.consumers(|consumers, _| consumers.redeliver(name, *fence, told)) {
                // Somebody else has it; this connection is about to hear of it.
                return;
            }
        }
        acks.deliveries = deliveries;
        let again = acks.sent.back().map_or(0, |(upto, _)| upto.saturating_sub(acks.acked));
        self.go_back(index, feed);
        if self.acks.max_deliveries < deliveries {
            self.bury(index, feed, &topic);
        } else {
            self.metrics.redelivered.add(again);
        }
    }

    /// Moves a cursor back to what was acknowledged.
    fn go_back(&mut self, index: usize, feed: usize) {
        let peer = &mut self.peers[index];
        let Some(following) = peer.follows.get_mut(&feed) else { return };
        let Some(acks) = &mut following.acks else { return };
        acks.sent.clear();
        let (acked, before, slot) = (acks.acked, following.cursor, following.slot);
        following.cursor = Some(acked);
        match (before, following.parked.take()) {
            (None, _) => {
                peer.behind.push_back(feed);
                self.leave_group(index, feed, slot);
            }
            (Some(_), Some(Parked::Page)) => {
                // The page that comes is not the one that it waits for now.
                peer.paging -= 1;
                peer.behind.push_back(feed);
            }
            (Some(_), Some(Parked::Window | Parked::Burial)) => {
                peer.window_full.retain(|parked| *parked != feed);
                peer.behind.push_back(feed);
            }
            (Some(_), None) => {}
        }
        self.queue_lagging(index);
    }

    /// Has the first event that is not acknowledged put aside, if the cursor's setup or its last
    /// look said so.
    fn bury(&mut self, index: usize, feed: usize, topic: &Arc<Topic>) {
        let peer = &mut self.peers[index];
        let Some(following) = peer.follows.get_mut(&feed) else { return };
        let Some(acks) = &following.acks else { return };
        let burial = Burial {
            writer: self.index,
            connection: peer.connection.id,
            topic: Arc::clone(topic),
            seq: acks.acked + 1,
            deliveries: acks.deliveries.saturating_sub(1),
            consumer: acks.consumer.clone(),
        };
        // Where it cannot be asked for now, the event is sent once more.
        if self.pager.offer(Errand::Bury(Box::new(burial))) {
            following.parked = Some(Parked::Burial);
            peer.behind.retain(|behind| *behind != feed);
        }
    }

    /// Puts aside what earlier holders of a consumer did not acknowledge often enough.
    pub(super) fn bury_if_due(&mut self, index: usize, feed: usize) {
        let topic = Arc::clone(&self.feeds[feed].topic);
        let following = self.peers[index].follows.get(&feed);
        let Some(acks) = following.and_then(|following| following.acks.as_ref()) else { return };
        if self.acks.max_deliveries < acks.deliveries && acks.acked < topic.look(|log| log.tail()) {
            self.go_back(index, feed);
            self.bury(index, feed, &topic);
        }
    }

    /// An event was put aside, or could not be.
    pub(super) fn buried(&mut self, done: &BurialDone) {
        let BurialDone { connection, topic, seq, outcome } = done;
        let Some(&index) = self.by_connection.get(connection) else { return };
        let Some(&feed) = self.by_topic.get(&address(topic)) else { return };
        let Some(following) = self.peers[index].follows.get_mut(&feed) else { return };
        if following.parked != Some(Parked::Burial) {
            return;
        }
        if let Some(acks) = &mut following.acks {
            acks.settle();
        }
        // It may have been acknowledged after all.
        if *outcome == Buried::Done
            && let Some(acks) = &mut following.acks
            && acks.acked + 1 == *seq
        {
            acks.cell.offer(*seq);
            _ = acks.cell.acknowledge(*seq);
            acks.settle();
            following.cursor = Some(*seq);
            self.metrics.gaps.add(GapReason::DeadLetter, 1);
            self.metrics.gap_events.add(GapReason::DeadLetter, 1);
            let name = topic.name().as_str();
            self.control(index, |out| reply::gap(out, name, *seq, *seq, GapReason::DeadLetter));
        }
        self.unpark(index, feed, Parked::Burial);
    }

    /// The log has lost events up to `upto`: nobody can acknowledge them any more.
    pub(super) fn forgive(&mut self, index: usize, feed: usize, upto: u64) {
        let topic = Arc::clone(&self.feeds[feed].topic);
        let now_ms = self.clock.unix_ms();
        let following = self.peers[index].follows.get_mut(&feed);
        let Some(acks) = following.and_then(|following| following.acks.as_mut()) else { return };
        acks.cell.offer(upto);
        _ = acks.cell.acknowledge(upto);
        acks.settle();
        if let Some((name, fence)) = &acks.consumer {
            let position = (upto, upto);
            topic.consumers(|consumers, _| consumers.acknowledge(name, *fence, position, now_ms));
        }
    }
}

fn look(following: &mut Following, timeout: Duration, now: Instant) -> Look {
    let parked = following.parked;
    let Some(acks) = &mut following.acks else { return Look::Idle };
    acks.settle();
    match acks.sent.front() {
        None => Look::Idle,
        Some(_) if parked == Some(Parked::Burial) => Look::Idle,
        Some((_, at)) if *at + timeout <= now => Look::Overdue,
        Some((_, at)) => Look::Later(*at + timeout),
    }
}

/// The refusal of an acknowledgement of what was not sent.
pub(crate) fn not_sent(topic: &str, seq: u64, sent: u64) -> Refusal {
    let message = format!("seq is {seq}; the newest event that was sent of {topic} is {sent}");
    Refusal::field("seq", message)
}

/// The refusal of an acknowledgement where nothing is to be acknowledged.
pub(crate) fn not_acking(topic: &str) -> Refusal {
    let message = format!("this connection has no subscription to {topic} with acks");
    Refusal { field: Some("topic"), ..Refusal::new(Code::NotFound, message) }
}
