//! Connections that are no WebSockets: what they get has another frame, and says where its client
//! is with it.
//!
//! Cursors, groups, turns and what happens to the slow are the same. Whoever stands at the tail of
//! the same topic, or watches the same keys, shares the translation of a batch as it shares the
//! batch. The rest is translated when it is sent.

use std::{collections::BTreeMap, sync::Arc};

use slab::Slab;

use super::{
    By, View, Writer,
    feed::Feed,
    peer::{At, Form, Part, PartKind},
};
use crate::{
    base::limits::STREAM_TOPICS_MAX,
    server::connection::Connection,
    state::version_in,
    wire::{
        marks::{self, Mark},
        position::Mode,
        reply::{self, Attachment},
        stream::{Dialect, Place},
    },
};

/// A part as streams have it, made when the first of them needs it.
#[derive(Default)]
pub(super) struct Forms {
    sse: Option<Part>,
    ndjson: Option<Part>,
}

/// Where a pattern's stream has come to: what its client has been sent, or will be in any case.
#[derive(Default)]
pub(super) struct Told {
    places: BTreeMap<usize, (Mark, u64)>,
}

impl Told {
    /// The places of all feeds but `but`.
    fn text(&self, but: Option<usize>) -> Vec<u8> {
        let mut text = Vec::new();
        marks::begin(&mut text);
        for (feed, (mark, seq)) in &self.places {
            if Some(*feed) != but {
                marks::push(&mut text, mark, *seq);
            }
        }
        text
    }

    fn set(&mut self, feed: usize, seq: u64) {
        if let Some((_, told)) = self.places.get_mut(&feed) {
            *told = seq;
        }
    }
}

impl Writer {
    pub(super) fn speak(&mut self, connection: &Arc<Connection>) {
        if let Some(&index) = self.by_connection.get(&connection.id) {
            self.peers[index].dialect = connection.dialect();
        }
    }

    /// Lets a pattern's stream into all of its topics at once, and says where it begins: from here
    /// on it can be resumed. An id that came before would not have a place for every topic.
    pub(super) fn ready(&mut self, connection: u64) {
        let Some(&index) = self.by_connection.get(&connection) else { return };
        let open = self.peers[index].patterns.iter().next();
        let Some((subscription, pattern)) = open.map(|(by, open)| (*by, open.pattern.clone()))
        else {
            return;
        };
        self.release(index, subscription);
        let peer = &self.peers[index];
        let topics = peer.follows.len();
        let text = peer.told.as_ref().map(|told| told.text(None));
        let place = text.as_ref().map_or(Place::Same, |text| Place::Everywhere(text));
        self.control_at(index, place, |out| reply::ready(out, pattern.as_str(), topics));
    }

    /// How many topics a peer's patterns may bring it.
    pub(super) fn cursors_max(&self, index: usize) -> usize {
        let max = self.settings.max_cursors;
        if self.peers[index].told.is_some() { max.min(STREAM_TOPICS_MAX) } else { max }
    }

    /// Says what became of a subscription, and what its position lacks.
    pub(super) fn announce_in_stream(
        &mut self,
        index: usize,
        topic: &str,
        by: By,
        at: &Attachment,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        // A pattern's stream is somewhere only once it is in all of its topics.
        let place = match by {
            By::Name { .. } => Place::At(at.epoch, at.seq),
            By::Pattern { .. } => Place::Same,
        };
        match at.recovery.filter(|recovery| recovery.mode != Mode::Complete) {
            None => self.control_at(index, place, write),
            // The client is behind the loss once it knows of it.
            Some(lost) => {
                self.control(index, write);
                self.control_at(index, place, |out| reply::gap_of_recovery(out, topic, &lost));
            }
        }
    }

    /// Notes where a pattern's stream begins in a feed.
    pub(super) fn tell(&mut self, index: usize, feed: usize, seq: u64) {
        let Some(told) = &mut self.peers[index].told else { return };
        let topic = &self.feeds[feed].topic;
        let mark = Mark::of(topic.name().as_str(), topic.look(|log| log.epoch()));
        told.places.insert(feed, (mark, seq));
    }

    /// Events of a feed after `seq` were not sent.
    pub(super) fn untell(&mut self, index: usize, feed: usize, seq: u64) {
        if let Some(told) = &mut self.peers[index].told {
            told.set(feed, seq);
        }
    }

    /// `part` in the form in which a peer shares it with others.
    pub(super) fn form_of(&mut self, index: usize, part: &Part, forms: &mut Forms) -> Part {
        let peer = &self.peers[index];
        let form = match peer.dialect {
            Dialect::WebSocket => return part.clone(),
            // Nobody else is where it is.
            Dialect::Sse if peer.told.is_some() => return part.clone(),
            Dialect::Sse => &mut forms.sse,
            Dialect::Ndjson => &mut forms.ndjson,
        };
        let dialect = peer.dialect;
        form.get_or_insert_with(|| {
            self.joined.clear();
            let frames = &self.arena[part.range.clone()];
            translate(&mut self.joined, dialect, (frames, part.kind), &self.feeds, &self.views);
            let start = self.arena.len();
            self.arena.extend_from_slice(&self.joined);
            Part { range: start..self.arena.len(), form: Form::Shared, ..*part }
        })
        .clone()
    }

    /// Joins what a stream gets in this turn, translated. One part that is shared goes as it is.
    pub(super) fn join_as_stream(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        let is_plain = match &peer.parts[..] {
            [] => true,
            [part] => part.form == Form::Shared && peer.control.is_empty(),
            _ => false,
        };
        if is_plain {
            return;
        }
        self.joined.clear();
        self.joined.extend_from_slice(&peer.control);
        for part in &mut peer.parts {
            let start = self.joined.len();
            let bytes = &self.arena[part.range.clone()];
            match (&mut peer.told, part.form) {
                (_, Form::Shared | Form::Joined) => self.joined.extend_from_slice(bytes),
                (Some(told), Form::Frames) => told.translate(&mut self.joined, bytes, part.kind),
                (None, Form::Frames) => {
                    let what = (bytes, part.kind);
                    translate(&mut self.joined, peer.dialect, what, &self.feeds, &self.views);
                }
            }
            part.range = start..self.joined.len();
            part.form = Form::Joined;
        }
    }
}

impl Told {
    /// Appends `frames` as server-sent events, and goes on to where they lead.
    fn translate(&mut self, out: &mut Vec<u8>, frames: &[u8], kind: PartKind) {
        match kind {
            PartKind::Events { feed, from, to } => {
                let others = self.text(Some(feed));
                let Some((mark, told)) = self.places.get_mut(&feed) else { return };
                let mut seq = from;
                Dialect::Sse.translate(out, frames, |_| {
                    seq += 1;
                    Place::Among(&others, mark, seq)
                });
                *told = to;
            }
            PartKind::Notice(At::Event { feed, seq }) => {
                self.set(feed, seq);
                let all = self.text(None);
                Dialect::Sse.translate(out, frames, |_| Place::Everywhere(&all));
            }
            PartKind::Notice(At::Same | At::State { .. }) | PartKind::States { .. } => {
                Dialect::Sse.translate(out, frames, |_| Place::Same);
            }
        }
    }
}

/// Appends `frames` as `dialect` has them, each with its position in its topic or state.
fn translate(
    out: &mut Vec<u8>,
    dialect: Dialect,
    (frames, kind): (&[u8], PartKind),
    feeds: &Slab<Feed>,
    views: &[View; 2],
) {
    let epoch_of = |feed: usize| feeds[feed].topic.look(|log| log.epoch());
    match kind {
        PartKind::Events { feed, from, .. } => {
            let (epoch, mut seq) = (epoch_of(feed), from);
            dialect.translate(out, frames, |_| {
                seq += 1;
                Place::At(epoch, seq)
            });
        }
        PartKind::States { which, .. } => {
            let epoch = views[which as usize].space.epoch();
            dialect.translate(out, frames, |text| {
                version_in(text).map_or(Place::Same, |version| Place::At(epoch, version))
            });
        }
        PartKind::Notice(at) => {
            let place = match at {
                At::Same => Place::Same,
                At::Event { feed, seq } => Place::At(epoch_of(feed), seq),
                At::State { which, version } => {
                    Place::At(views[which as usize].space.epoch(), version)
                }
            };
            dialect.translate(out, frames, |_| place);
        }
    }
}
