//! What requests do, whichever way they came: WebSocket and HTTP share this.

use std::sync::Arc;

use crate::{
    base::sync::atomic::Ordering,
    metrics::labels::Recovered,
    name::Name,
    server::{
        happening::RelayEvent,
        relay::Shared,
        writer::{By, Command, Follow},
    },
    topic::{Asked, Draft, Follower, Publication, RegistryError, Start, Topic},
    wire::{
        codes::Code,
        position::{From, Mode},
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
        let opened = self.registry.open(name, announce).map_err(|error| match error {
            RegistryError::Full { .. } => Refusal {
                field: Some("topic"),
                ..Refusal::new(Code::LimitExceeded, format!("{name} cannot be created: {error}"))
            },
        })?;
        let (topic, is_new) = opened;
        if is_new {
            self.happened(|| RelayEvent::TopicCreated { topic: name.clone() });
            self.vault.tell(&topic);
        }
        Ok(topic)
    }

    /// Wakes the writers whose connections follow `topic`.
    ///
    /// # Blocking
    ///
    /// While a writer's lane is full.
    pub(crate) fn wake(&self, topic: &Arc<Topic>) {
        topic.wake(|writer| self.writers[writer].send(Command::Wake(Arc::clone(topic))));
    }

    /// Makes a pattern's subscriber follow a topic that has come to exist, from its beginning.
    fn announce_topic(&self, follower: Follower, topic: &Arc<Topic>) {
        let Follower { writer, connection, subscription } = follower;
        if topic.follow(writer) {
            let start = Start { seq: 0, recovery: None };
            let (topic, by) = (Arc::clone(topic), By::Pattern { subscription });
            let follow = Box::new(Follow { connection, topic, start, by, acks: None });
            self.writers[writer].send(Command::Follow(follow));
        }
    }

    /// Counts a consumer that is about to be made.
    ///
    /// # Errors
    ///
    /// The limit of consumers is reached.
    pub(crate) fn count_new_consumer(&self) -> Result<(), Refusal> {
        let max = self.config().1.acks.max_consumers as u64;
        let count = self.registry.consumer_count();
        // Relaxed: a count, each of its changes is applied exactly once.
        if count.fetch_add(1, Ordering::Relaxed) < max {
            return Ok(());
        }
        self.discount_consumer();
        let message = format!("the relay already has {max} consumers, which is its limit");
        Err(Refusal { field: Some("consumer"), ..Refusal::new(Code::LimitExceeded, message) })
    }

    pub(crate) fn discount_consumer(&self) {
        self.registry.consumer_count().fetch_sub(1, Ordering::Relaxed);
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
    /// The limit of topics is reached, or the store has failed or is too slow.
    ///
    /// # Blocking
    ///
    /// On a durable topic, until there is room in the backlog; the caller has told the committer of
    /// everything it appended before.
    pub(crate) fn publish(
        &self,
        topic: &mut Arc<Topic>,
        draft: &Draft<'_>,
        now_ms: u64,
        asked: Option<Asked<'_>>,
    ) -> Result<Publication, Refusal> {
        loop {
            if topic.id().is_some() && !self.vault.has_room() {
                self.vault.wait_for_room()?;
            }
            if let Some(done) = self.registry.publish(topic, draft, now_ms, asked) {
                self.vault.owe(&done);
                return Ok(done);
            }
            let name = topic.name().clone();
            *topic = self.open_topic(&name)?;
        }
    }

    /// Where a subscription that asks for `from` starts, counted by how much was there.
    ///
    /// # Errors
    ///
    /// The history on disk, which has to be looked into, cannot be read now.
    ///
    /// # Blocking
    ///
    /// For the disk, where a time is asked for that memory does not reach.
    pub(crate) fn start(&self, topic: &Arc<Topic>, from: &From) -> Result<Start, Refusal> {
        let start = self.locate(topic, from)?;
        self.count_recovery(&start);
        Ok(start)
    }

    /// Where `from` is in `topic`.
    ///
    /// # Errors
    ///
    /// As [`Shared::start`].
    ///
    /// # Blocking
    ///
    /// As [`Shared::start`].
    pub(crate) fn locate(&self, topic: &Arc<Topic>, from: &From) -> Result<Start, Refusal> {
        if let From::Since(time_ms) = from
            && topic.look(|log| log.begins_on_disk(*time_ms))
        {
            let seq = self.pager.since(topic, *time_ms)?;
            return Ok(topic.look(|log| {
                // Events that are not in the database yet are newer than all that are.
                let seq = if log.stored() < seq { log.start(from).seq + 1 } else { seq };
                Start { seq: (seq - 1).max(log.first() - 1).min(log.tail()), recovery: None }
            }));
        }
        Ok(topic.look(|log| log.start(from)))
    }

    pub(crate) fn count_recovery(&self, start: &Start) {
        if let Some(recovery) = start.recovery {
            let mode = match recovery.mode {
                Mode::Complete => Recovered::Complete,
                Mode::Partial => Recovered::Partial,
                Mode::Reset => Recovered::Reset,
            };
            self.metrics.recoveries.add(mode, 1);
        }
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
