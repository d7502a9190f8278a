//! Acknowledgements and consumers, reading side.

use std::{collections::HashMap, sync::Arc};

use super::Session;
use crate::{
    base::{lane, lock},
    name::{Name, UserName},
    server::{
        relay::Shared,
        writer::{AckCell, AckSetup, AckTopic, Command, not_acking, not_sent},
    },
    topic::{Start, Topic},
    wire::{
        position::{From, Position},
        request::{self, Acks, Refusal},
    },
};

/// What a session knows of its cursors that acknowledge.
#[derive(Default)]
pub(super) struct Acking {
    /// By topic, where it was subscribed to by its name.
    topics: HashMap<Name, Entry>,
    /// Subscriptions to patterns that acknowledge.
    patterns: Vec<u64>,
}

struct Entry {
    cell: Arc<AckCell>,
    topic: Arc<Topic>,
    /// The consumer, and the fence that holds it.
    consumer: Option<(UserName, u64)>,
}

impl Acking {
    /// Notes a pattern's subscription.
    pub(super) fn add_pattern(&mut self, subscription: u64) {
        self.patterns.push(subscription);
    }

    pub(super) fn remove_pattern(&mut self, subscription: u64) {
        self.patterns.retain(|known| *known != subscription);
    }

    /// Ends what the subscription to `topic` held.
    pub(super) fn remove(&mut self, shared: &Shared, topic: &Name) {
        if let Some(entry) = self.topics.remove(topic) {
            entry.release(shared);
        }
    }

    /// Ends everything.
    pub(super) fn clear(&mut self, shared: &Shared) {
        self.topics.drain().for_each(|(_, entry)| entry.release(shared));
    }
}

impl Entry {
    fn release(self, shared: &Shared) {
        if let Some((name, fence)) = self.consumer {
            let now_ms = shared.clock.unix_ms();
            self.topic.consumers(|consumers, _| consumers.release(&name, fence, now_ms));
            shared.vault.tell_lazily(&self.topic);
        }
    }
}

impl Session {
    /// Notes that an event and all before it were handled.
    #[inline(never)]
    pub(super) fn ack(&mut self, id: Option<u64>, topic: &str, seq: u64) -> Result<(), Refusal> {
        let shared = &self.line.shared;
        shared.metrics.acks.add(1);
        let Some(entry) = self.acking.topics.get(topic) else {
            return self.ack_of_pattern(id, topic, seq);
        };
        let offered = entry.cell.offered();
        if offered < seq {
            return Err(not_sent(topic, seq, offered));
        }
        if let Some((name, fence)) = &entry.consumer {
            let now_ms = self.line.now_ms();
            let moved = entry
                .topic
                .consumers(|consumers, _| consumers.acknowledge(name, *fence, seq, now_ms));
            if moved {
                shared.vault.tell_lazily(&entry.topic);
            }
        }
        if entry.cell.acknowledge(seq) {
            let connection = self.line.connection.id;
            self.line.command(Command::Acked { connection });
        }
        Ok(())
    }

    fn ack_of_pattern(
        &mut self,
        request: Option<u64>,
        topic: &str,
        seq: u64,
    ) -> Result<(), Refusal> {
        let found = self.line.shared.registry.find(topic);
        let Some(topic) = found.filter(|_| !self.acking.patterns.is_empty()) else {
            request::parse_topic(topic)?;
            return Err(not_acking(topic));
        };
        // What is wrong with it, the writer says, to a client that may not be reading.
        self.line.make_room();
        let connection = self.line.connection.id;
        self.line.command(Command::AckTopic(Box::new(AckTopic {
            connection,
            request,
            topic,
            seq,
        })));
        Ok(())
    }

    /// Where a subscription with acknowledgements starts, and how it acknowledges. A consumer is
    /// on disk, where its topic is, before anything is sent to it.
    ///
    /// # Errors
    ///
    /// There are too many consumers, or the store has failed.
    ///
    /// # Blocking
    ///
    /// For the disk, if a consumer of a durable topic is new.
    #[inline(never)]
    pub(super) fn begin_acks(
        &mut self,
        topic: &Arc<Topic>,
        from: &From,
        acks: &Acks,
    ) -> Result<(Start, Box<AckSetup>), Refusal> {
        let shared = Arc::clone(&self.line.shared);
        let (start, consumer, deliveries) = match &acks.consumer {
            None => (shared.start(topic, from)?, None, 0),
            Some(name) => self.claim(topic, from, name)?,
        };
        let cell = Arc::new(AckCell::new(start.seq));
        let entry =
            Entry { cell: Arc::clone(&cell), topic: Arc::clone(topic), consumer: consumer.clone() };
        let old = self.acking.topics.insert(topic.name().clone(), entry);
        // The same consumer has been claimed anew, which its old fence does not touch.
        if let Some(old) = old {
            old.release(&shared);
        }
        Ok((start, Box::new(AckSetup { cell, window: acks.window, consumer, deliveries })))
    }

    #[expect(clippy::type_complexity, reason = "what one caller takes apart at once")]
    fn claim(
        &mut self,
        topic: &Arc<Topic>,
        from: &From,
        name: &UserName,
    ) -> Result<(Start, Option<(UserName, u64)>, u32), Refusal> {
        let shared = Arc::clone(&self.line.shared);
        let (connection, writer) = (self.line.connection.id, self.line.connection.writer);
        let is_known = topic.consumers(|consumers, _| consumers.contains(name));
        // A new one starts where it asks to.
        let wanted = if is_known { None } else { Some(shared.start(topic, from)?) };
        if !is_known {
            shared.count_new_consumer()?;
        }
        let now_ms = shared.clock.unix_ms();
        let (claim, start) = topic.consumers(|consumers, log| {
            let begin = wanted.as_ref().map_or(log.tail(), |start| start.seq);
            let holder = (connection, writer);
            let claim = consumers.claim(name, holder, (begin, log.tail()), now_ms);
            let start = if claim.is_new {
                wanted.unwrap_or(Start { seq: claim.seq, recovery: None })
            } else {
                log.start(&From::After(Position { epoch: log.epoch(), seq: claim.seq }))
            };
            (claim, start)
        });
        if !is_known && !claim.is_new {
            // Somebody else has made it meanwhile.
            shared.discount_consumer();
        }
        if claim.is_new
            && topic.id().is_some()
            && let Err(refusal) = self.save(topic)
        {
            if topic.consumers(|consumers, _| consumers.unmake(name, claim.fence)) {
                shared.discount_consumer();
            }
            return Err(refusal);
        }
        if !claim.is_new {
            shared.count_recovery(&start);
        }
        if let Some(previous) = claim.previous
            && previous.connection != connection
        {
            shared.metrics.consumers_replaced.add(1);
            let replaced = Command::Replaced { connection: previous.connection };
            shared.writers[previous.writer].send(replaced);
        }
        // What retention removed is not waited for.
        if claim.seq < start.seq {
            topic.consumers(|consumers, _| {
                consumers.acknowledge(name, claim.fence, start.seq, now_ms)
            });
        }
        Ok((start, Some((name.clone(), claim.fence)), claim.deliveries))
    }

    /// Waits until the consumers of `topic` are on disk as they are now.
    fn save(&mut self, topic: &Arc<Topic>) -> Result<(), Refusal> {
        let shared = Arc::clone(&self.line.shared);
        let (saver, saved) = lane::open(lane::REPLIES);
        topic.save(saver);
        // What this reader has published is told as well, or the committer would not hear of it.
        self.line.tell();
        shared.vault.tell(topic);
        lock::assert_none_held();
        match saved.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(shared.vault.unstored()),
        }
    }
}
