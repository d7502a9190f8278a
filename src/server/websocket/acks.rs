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
    topic::{Log, Start, Topic, consumers::Claim},
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
            let (now_ms, sent) = (shared.clock.unix_ms(), self.cell.offered());
            self.topic.consumers(|consumers, _| consumers.release(&name, fence, sent, now_ms));
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
            let moved = entry.topic.consumers(|consumers, _| {
                consumers.acknowledge(name, *fence, (seq, offered), now_ms)
            });
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
        let now_ms = shared.clock.unix_ms();
        let holder = (connection, writer);
        let known = claim_known(topic, name, holder, now_ms);
        let (claim, start, tail) = match known {
            Some(claimed) => claimed,
            None => {
                // A new one starts where it asks to.
                let wanted = shared.start(topic, from)?;
                shared.count_new_consumer()?;
                let claimed = claim_at(topic, name, holder, (wanted, now_ms));
                if !claimed.0.is_new {
                    // Somebody else has made it meanwhile.
                    shared.discount_consumer();
                }
                claimed
            }
        };
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
        let mut deliveries = claim.deliveries;
        // What retention removed is not waited for.
        if claim.seq < start.seq {
            deliveries = 0;
            topic.consumers(|consumers, _| {
                consumers.acknowledge(name, claim.fence, (start.seq, tail), now_ms)
            });
        }
        Ok((start, Some((name.clone(), claim.fence)), deliveries))
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

/// What a claim brought, where its holder starts, and the newest event.
type Claimed = (Claim, Start, u64);

/// Claims a consumer if it exists.
fn claim_known(
    topic: &Topic,
    name: &UserName,
    holder: (u64, usize),
    now_ms: u64,
) -> Option<Claimed> {
    topic.consumers(|consumers, log| {
        let tail = log.tail();
        let is_known = consumers.contains(name);
        is_known.then(|| {
            let claim = consumers.claim(name, holder, (tail, tail), now_ms);
            (claim, resume(log, claim), tail)
        })
    })
}

/// Claims a consumer, which begins where it asks to if it is new.
fn claim_at(
    topic: &Topic,
    name: &UserName,
    holder: (u64, usize),
    (wanted, now_ms): (Start, u64),
) -> Claimed {
    topic.consumers(|consumers, log| {
        let tail = log.tail();
        let claim = consumers.claim(name, holder, (wanted.seq, tail), now_ms);
        (claim, if claim.is_new { wanted } else { resume(log, claim) }, tail)
    })
}

fn resume(log: &Log, claim: Claim) -> Start {
    log.start(&From::After(Position { epoch: log.epoch(), seq: claim.seq }))
}
