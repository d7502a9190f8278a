//! One topic: its log behind its lock, and which writers follow it.
//!
//! # Threads
//!
//! Readers append; the committer stores; writers and readers copy out. A publisher wakes the
//! writers that have followers here, each at most once until it has looked.
//!
//! # Locks
//!
//! [`Rank::Log`], for one append or one copy of at most a turn's bytes.

mod durable;

use std::sync::Arc;

use self::durable::Durable;
pub use self::durable::{Saver, Taken, Told};
use crate::{
    base::{
        flag::Flag,
        interest::Interest,
        lock::{Rank, Ranked},
        sync::atomic::{AtomicU64, Ordering},
    },
    config::Policy,
    name::Name,
    store::TopicId,
    topic::{
        consumers::Consumers,
        dedupe::Window,
        log::{Appended, Draft, Evictions, Log},
    },
    wire::{codes::Durability, position::Epoch, reply::Receipt},
};

/// Who waits for a publish, and the request that it answers.
pub type Asked<'a> = (&'a Arc<dyn Confirm>, Option<u64>);

/// A topic that exists. Shared by everybody who publishes to it or follows it.
pub struct Topic {
    name: Name,
    log: Ranked<Body>,
    interest: Interest,
    /// The log's memory, readable without its lock by whoever looks for the largest.
    bytes: AtomicU64,
    /// Its number in the store, if it is durable.
    id: Option<TopicId>,
    /// The committer has been told that something waits for it here.
    told: Flag,
    /// The committer has been told that something may be stored some time soon.
    told_lazily: Flag,
    /// When it was last of use to anybody, Unix milliseconds.
    used_ms: AtomicU64,
}

struct Body {
    log: Log,
    consumers: Consumers,
    durable: Durable,
    /// The registry has forgotten this topic; whoever still holds it must look it up again.
    retired: bool,
}

/// The outcome of a publish.
#[derive(Clone, Copy, Debug)]
pub struct Publication {
    pub receipt: Receipt,
    pub evictions: Evictions,
    /// Change of the log's memory.
    pub grown: i64,
    /// Bytes of the frame that is to be stored; 0 for a duplicate, and on a memory topic.
    pub unstored: u64,
    /// The answer comes through the waiter, when the event is as safe as it is to be.
    pub is_pending: bool,
}

/// Who waits until an event is as safe as it is to be.
pub trait Confirm: Send + Sync {
    /// Takes the answer. Must not wait for anything; called with no lock held.
    fn confirm(&self, request: Option<u64>, outcome: &Result<Receipt, Unstored>);

    /// Called after a number of answers, once for each of them: time to pass them on.
    ///
    /// # Blocking
    ///
    /// While a writer's lane is full.
    fn confirmed(&self);
}

/// An event could not be stored, and is not there, as far as anybody can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event could not be stored")]
pub struct Unstored;

impl Topic {
    #[must_use]
    pub fn new(name: Name, epoch: Epoch, policy: Policy, writers: usize, now_ms: u64) -> Self {
        Self::with_log(name.clone(), Log::new(&name, epoch, policy), None, writers, now_ms)
    }

    fn with_log(name: Name, log: Log, id: Option<TopicId>, writers: usize, now_ms: u64) -> Self {
        let consumers = Consumers::default();
        let body = Body { log, consumers, durable: Durable::default(), retired: false };
        Self {
            name,
            id,
            told: Flag::default(),
            told_lazily: Flag::default(),
            log: Ranked::new(Rank::Log, body),
            interest: Interest::new(writers),
            bytes: AtomicU64::new(0),
            used_ms: AtomicU64::new(now_ms),
        }
    }

    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Appends `draft`. `None` if the registry has forgotten this topic.
    ///
    /// On a durable topic the event is not to be seen yet, and `waiter` is told when it is: with
    /// the request that it gave, or that it could not be stored.
    pub fn publish(
        &self,
        draft: &Draft<'_>,
        now_ms: u64,
        window: Window,
        waiter: Option<Asked<'_>>,
    ) -> Option<Publication> {
        let publication = self.log.with(|body| {
            let before = body.log.memory();
            let (appended, evictions) =
                (!body.retired).then(|| body.log.append(draft, now_ms, window))?;
            let Appended { seq, duplicate, bytes } = appended;
            let is_pending = body.log.tail() < seq;
            // The first of two with one key may have come before a reload asked for more.
            let durability = match body.log.durability() {
                Durability::Synced if !is_pending && body.log.stored() < seq => Durability::Written,
                Durability::Synced => Durability::Synced,
                Durability::Written => Durability::Written,
                Durability::Memory => Durability::Memory,
            };
            let receipt = Receipt { epoch: body.log.epoch(), seq, durability, duplicate };
            if let Some((waiter, request)) = waiter
                && is_pending
            {
                body.durable.wait(Arc::clone(waiter), request, receipt);
            }
            let grown = self.note_size(before, &body.log);
            let unstored = if self.id.is_some() { bytes } else { 0 };
            Some(Publication { receipt, evictions, grown, unstored, is_pending })
        })?;
        self.touch(now_ms);
        Some(publication)
    }

    /// Its number in the store, if it is durable.
    #[must_use]
    pub fn id(&self) -> Option<TopicId> {
        self.id
    }

    /// Runs `use_them` on the consumers, with the log for looking things up.
    pub fn consumers<R>(&self, use_them: impl FnOnce(&mut Consumers, &Log) -> R) -> R {
        self.log.with(|body| use_them(&mut body.consumers, &body.log))
    }

    /// Runs `look` on the log. For copying and asking; changes go through the other functions.
    pub fn look<R>(&self, look: impl FnOnce(&Log) -> R) -> R {
        self.log.with(|body| look(&body.log))
    }

    /// Runs `change` on the log and returns its outcome and the change of the log's memory.
    pub fn change<R>(&self, change: impl FnOnce(&mut Log) -> R) -> (R, i64) {
        self.log.with(|body| {
            let before = body.log.memory();
            let outcome = change(&mut body.log);
            (outcome, self.note_size(before, &body.log))
        })
    }

    fn note_size(&self, before: u64, log: &Log) -> i64 {
        let after = log.memory();
        // Relaxed: written with the log's lock held; readers only compare sizes.
        self.bytes.store(after, Ordering::Relaxed);
        after.cast_signed() - before.cast_signed()
    }

    /// The log's memory, as of its last change.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Notes that the topic is of use to somebody.
    pub fn touch(&self, now_ms: u64) {
        // Relaxed: a heuristic's clock.
        self.used_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Counts `leap_ms`, by which the wall clock was set ahead, for no time without use: neither of
    /// the topic nor of its consumers. Returns whether the store has to be told.
    pub fn forgive(&self, leap_ms: u64, now_ms: u64) -> bool {
        let used_ms = self.used_ms.load(Ordering::Relaxed);
        self.touch(used_ms.saturating_add(leap_ms).min(now_ms));
        self.log.with(|body| body.consumers.forgive(leap_ms, now_ms))
    }

    /// Whether nobody follows the topic, and it was of no use since `unused_since_ms`.
    #[must_use]
    pub fn is_unused(&self, unused_since_ms: u64) -> bool {
        self.used_ms.load(Ordering::Relaxed) <= unused_since_ms && self.followers() == 0
    }

    /// Marks the topic as forgotten if it [is unused](Topic::is_unused) and nothing in it would be
    /// missed. To be called with the registry's lock held, which then removes it.
    pub fn retire(&self, unused_since_ms: u64) -> bool {
        self.log.with(|body| {
            let idle = self.is_unused(unused_since_ms);
            let missed = !body.log.is_forgettable() || !body.consumers.is_empty();
            body.retired = body.retired || (idle && !missed && body.durable.is_idle());
            body.retired
        })
    }

    /// Adds a follower on `writer`. `false` if the registry has forgotten this topic.
    ///
    /// Done with the log's lock held, and before the log is read for the follower: a publisher
    /// whose event that reading missed appends after it, and so sees the follower.
    pub fn follow(&self, writer: usize) -> bool {
        self.log.with(|body| {
            if !body.retired {
                self.interest.follow(writer);
            }
            !body.retired
        })
    }

    /// Removes a follower on `writer`.
    pub fn unfollow(&self, writer: usize, now_ms: u64) {
        self.touch(now_ms);
        self.interest.unfollow(writer);
    }

    /// Connections that follow this topic.
    #[must_use]
    pub fn followers(&self) -> u64 {
        self.interest.followers()
    }

    /// Calls `wake` for each writer that has followers here and no wake-up pending. To be called
    /// after an append; `wake` must get a command to the writer.
    pub fn wake(&self, wake: impl FnMut(usize)) {
        self.interest.wake(wake);
    }

    /// Clears the wake-up of `writer`, which reads the log next: an event appended after that
    /// reading finds the flag clear and sends another wake-up.
    pub fn woken(&self, writer: usize) {
        self.interest.woken(writer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic() -> Arc<Topic> {
        let name = Name::parse("a").unwrap();
        Arc::new(Topic::new(name, Epoch::from_number(1), Policy::default(), 2, 0))
    }

    fn publish(topic: &Topic, now_ms: u64) -> Option<Publication> {
        let draft = Draft { user: None, name: None, data: "1", key: None };
        topic.publish(&draft, now_ms, Window { uptime_ms: now_ms, length_ms: 1_000 }, None)
    }

    #[test]
    fn a_writer_is_woken_once_until_it_has_looked_and_only_if_it_follows() {
        let topic = topic();
        assert!(topic.follow(1));
        let mut woken = Vec::new();
        topic.wake(|writer| woken.push(writer));
        topic.wake(|writer| woken.push(writer));
        assert_eq!(woken, [1]);
        topic.woken(1);
        topic.wake(|writer| woken.push(writer));
        assert_eq!(woken, [1, 1]);
        topic.unfollow(1, 0);
        topic.woken(1);
        topic.wake(|writer| woken.push(writer));
        assert_eq!(woken, [1, 1]);
    }

    #[test]
    fn a_topic_is_forgotten_only_when_nothing_would_be_missed() {
        let topic = topic();
        assert!(topic.follow(0));
        assert!(!topic.retire(1_000), "somebody follows it");
        topic.unfollow(0, 500);
        assert!(!topic.retire(499), "it was used since");
        publish(&topic, 600).unwrap();
        assert!(!topic.retire(1_000), "it has an event");
        let other = self::topic();
        assert!(other.retire(0));
        assert!(publish(&other, 1).is_none());
        assert!(!other.follow(0));
    }

    #[test]
    fn the_change_of_memory_is_reported() {
        let topic = topic();
        let grown = publish(&topic, 1).unwrap().grown;
        assert_eq!(grown.cast_unsigned(), topic.bytes());
        let ((), shrunk) = topic.change(|log| _ = log.shrink(0, 10));
        assert_eq!((shrunk, topic.bytes()), (-grown, 0));
    }
}
