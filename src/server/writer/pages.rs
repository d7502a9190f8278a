//! Cursors that are behind what memory keeps: what they lack is asked for, page by page.

use std::sync::Arc;

use super::{
    Writer,
    deliver::address,
    peer::{Parked, Part, PartKind},
};
use crate::{
    base::{fault::Fault, limits::PAGES_PER_WRITER},
    metrics::labels::Closed,
    server::{
        connection::Bye,
        pager::{Errand, PageDone, PageFor, Sheet},
    },
    store::Missing,
    topic::Topic,
    wire::codes::{CloseCode, GapReason},
};

impl Writer {
    /// Parks a cursor until the events after `after` have come from disk.
    pub(super) fn ask_for_page(
        &mut self,
        index: usize,
        feed: usize,
        topic: &Arc<Topic>,
        (after, upto): (u64, u64),
    ) {
        let peer = &mut self.peers[index];
        let Some(following) = peer.follows.get_mut(&feed) else { return };
        following.parked = Some(Parked::Page);
        peer.paging += 1;
        peer.behind.retain(|behind| *behind != feed);
        let connection = peer.connection.id;
        let topic = Arc::clone(topic);
        self.page_queue.push_back(PageFor { writer: self.index, connection, topic, after, upto });
        self.ask_for_pages();
    }

    /// Asks for as many pages as may be on their way at once.
    pub(super) fn ask_for_pages(&mut self) {
        self.page_at = None;
        while self.pages_asked < PAGES_PER_WRITER
            && let Some(page) = self.page_queue.pop_front()
        {
            if !self.is_wanted(&page.topic, page.connection, page.after) {
                continue;
            }
            let again = page.clone();
            if !self.pager.offer(Errand::Page(Box::new(page))) {
                // Readers fill the lane, or the relay stops. Looked at again a little later.
                self.page_queue.push_front(again);
                self.page_at = Some(self.now() + super::send::LOOK_AGAIN);
                return;
            }
            self.pages_asked += 1;
        }
    }

    /// Whether a cursor still waits for the page after `after`.
    fn is_wanted(&self, topic: &Arc<Topic>, connection: u64, after: u64) -> bool {
        let feed = self.by_topic.get(&address(topic));
        let index = self.by_connection.get(&connection);
        let (Some(feed), Some(&index)) = (feed, index) else { return false };
        self.peers[index].follows.get(feed).is_some_and(|following| {
            let waits = following.parked == Some(Parked::Page) && following.cursor == Some(after);
            waits || Fault::StalePage.is_on()
        })
    }

    /// A page has come.
    pub(super) fn page(&mut self, done: PageDone) {
        let PageDone { connection, topic, after, sheet } = done;
        self.pages_asked -= 1;
        if self.is_wanted(&topic, connection, after) {
            let (index, feed) = (self.by_connection[&connection], self.by_topic[&address(&topic)]);
            self.peers[index].paging -= 1;
            self.unpark(index, feed, Parked::Page);
            self.take_page(index, feed, after, sheet);
        }
        self.ask_for_pages();
    }

    /// Asks for the page behind one that is about to be sent, so that it is read meanwhile.
    fn ask_ahead(&mut self, index: usize, feed: usize) {
        let topic = Arc::clone(&self.feeds[feed].topic);
        let Some(following) = self.peers[index].follows.get(&feed) else { return };
        let Some(cursor) = following.cursor else { return };
        let limit = following.acks.as_ref().map_or(u64::MAX, |acks| acks.limit());
        let (is_stored, upto) = topic.look(|log| (log.is_on_disk(cursor + 1), log.tail()));
        if is_stored && cursor < limit {
            self.ask_for_page(index, feed, &topic, (cursor, upto.min(limit)));
        }
    }

    fn take_page(
        &mut self,
        index: usize,
        feed: usize,
        after: u64,
        sheet: Result<Sheet, crate::store::StoreError>,
    ) {
        let peer = &mut self.peers[index];
        match sheet {
            // A full socket takes nothing; the page is asked for again when it has room.
            Ok(Sheet::Events { .. }) if peer.is_stalled() || peer.finishing => {}
            Ok(Sheet::Events { upto, frames }) => {
                let len = frames.len();
                // Nothing of this turn refers to what is there; the page takes its place.
                self.arena = frames;
                let kind = PartKind::Events { feed, from: after, to: upto };
                let peer = &mut self.peers[index];
                peer.parts.push(Part::frames(0..len, kind));
                if let Some(following) = peer.follows.get_mut(&feed) {
                    following.cursor = Some(upto);
                    if let Some(acks) = &following.acks {
                        acks.offer(upto);
                    }
                }
                self.touch(index);
                self.ask_ahead(index, feed);
                self.send_touched();
                self.arena.clear();
            }
            Ok(Sheet::AskTheLog) => {}
            Ok(Sheet::Gone { first, why }) => {
                self.arena.clear();
                let replays = peer.follows.get(&feed).is_some_and(|following| following.replaying);
                let reason = match why {
                    Missing::Damaged => GapReason::Damaged,
                    Missing::Removed if replays => GapReason::Truncated,
                    Missing::Removed => GapReason::Slow,
                };
                self.lose(index, feed, after, first, reason);
                self.send_touched();
                self.arena.clear();
            }
            Err(_) => {
                let bye = Bye {
                    reason: "unavailable",
                    text: "history on disk cannot be read now",
                    code: CloseCode::Internal,
                    reconnect_after_ms: None,
                };
                self.say_bye(index, Closed::Unavailable, &bye);
            }
        }
    }
}
