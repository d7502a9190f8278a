//! What requests do, whichever way they came: WebSocket and HTTP share this.

use std::sync::Arc;

use crate::{
    base::limits::HISTORY_BYTES_MAX,
    metrics::labels::Recovered,
    name::Name,
    server::{
        relay::Shared,
        writer::{By, Command, Follow},
    },
    topic::{Draft, Follower, Publication, RegistryError, Start, Topic},
    wire::{
        codes::Code,
        position::{From, Mode},
        reply::HistoryHead,
        request::Refusal,
    },
};

impl Shared {
    /// The topic `name`, created if need be.
    ///
    /// # Errors
    ///
    /// The limit of topics is reached.
    ///
    /// # Blocking
    ///
    /// While the lane of a writer that must hear of a new topic is full.
    pub(crate) fn open_topic(&self, name: &Name) -> Result<Arc<Topic>, Refusal> {
        let announce = |follower, topic: &Arc<Topic>| self.announce_topic(follower, topic);
        self.registry.open(name, announce).map_err(|error| match error {
            RegistryError::Full { .. } => Refusal {
                field: Some("topic"),
                ..Refusal::new(Code::LimitExceeded, format!("{name} cannot be created: {error}"))
            },
        })
    }

    /// Makes a pattern's subscriber follow a topic that has come to exist, from its beginning.
    fn announce_topic(&self, follower: Follower, topic: &Arc<Topic>) {
        let Follower { writer, connection, subscription } = follower;
        if topic.follow(writer) {
            let start = Start { seq: 0, recovery: None };
            let (topic, by) = (Arc::clone(topic), By::Pattern { subscription });
            let follow = Box::new(Follow { connection, topic, start, by });
            self.writers[writer].send(Command::Follow(follow));
        }
    }

    /// Opens `name` and counts the caller's writer among its followers.
    ///
    /// # Errors
    ///
    /// As [`Shared::open_topic`].
    pub(crate) fn open_and_follow(
        &self,
        name: &Name,
        writer: usize,
    ) -> Result<Arc<Topic>, Refusal> {
        loop {
            let topic = self.open_topic(name)?;
            // A topic that was forgotten between the two is looked up again, and made anew.
            if topic.follow(writer) {
                return Ok(topic);
            }
        }
    }

    /// Appends an event to `topic`, or to its successor if it was forgotten.
    ///
    /// # Errors
    ///
    /// The limit of topics is reached.
    pub(crate) fn publish(
        &self,
        topic: &mut Arc<Topic>,
        draft: &Draft<'_>,
        now_ms: u64,
    ) -> Result<Publication, Refusal> {
        loop {
            if let Some(done) = self.registry.publish(topic, draft, now_ms) {
                return Ok(done);
            }
            let name = topic.name().clone();
            *topic = self.open_topic(&name)?;
        }
    }

    /// Where a subscription that asks for `from` starts, counted by how much was there.
    pub(crate) fn start(&self, topic: &Topic, from: &From) -> Start {
        let start = topic.look(|log| log.start(from));
        if let Some(recovery) = start.recovery {
            let mode = match recovery.mode {
                Mode::Complete => Recovered::Complete,
                Mode::Partial => Recovered::Partial,
                Mode::Reset => Recovered::Reset,
            };
            self.metrics.recoveries.add(mode, 1);
        }
        start
    }

    /// Events of `topic`, joined by commas, and what stands beside them.
    ///
    /// # Errors
    ///
    /// There is no such topic.
    pub(crate) fn history(
        &self,
        topic: &str,
        from: Option<&From>,
        limit: u64,
    ) -> Result<(HistoryHead, Vec<u8>), Refusal> {
        let Some(topic) = self.registry.find(topic) else {
            let message = format!("there is no topic {topic}");
            return Err(Refusal { field: Some("topic"), ..Refusal::new(Code::NotFound, message) });
        };
        let mut events = Vec::new();
        let newest = From::Last(limit);
        let from = from.unwrap_or(&newest);
        let head = topic.look(|log| {
            let start = log.start(from);
            log.events_after(start.seq, limit, HISTORY_BYTES_MAX, &mut events);
            HistoryHead {
                epoch: log.epoch(),
                first: log.first(),
                tail: log.tail(),
                recovery: start.recovery,
            }
        });
        Ok((head, events))
    }
}

/// The refusal of a name that only the relay writes.
pub(crate) fn check_writable(topic: &Name) -> Result<(), Refusal> {
    if topic.is_reserved() {
        let message = format!("{topic} begins with $ and is written by the relay alone");
        return Err(Refusal { field: Some("topic"), ..Refusal::new(Code::Forbidden, message) });
    }
    Ok(())
}
