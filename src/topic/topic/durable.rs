//! What a durable topic has for the store, and who waits for it.
//!
//! # Threads
//!
//! Readers add; the committer takes, and says what became of it.

use std::sync::Arc;

use super::{Confirm, Topic, Unstored};
use crate::{
    base::{clock::Clock, fault::Fault, lane::Inlet},
    config::Policy,
    metrics::labels::Evicted,
    name::Name,
    store::{ConsumerChange, Key, NewTopic, StoredTopic, TopicId},
    topic::{
        log::{Evictions, Log, Pending},
        registry::millis,
    },
    wire::{codes::Durability, position::Epoch, reply::Receipt},
};

/// What waits for the store, behind the log's lock.
#[derive(Default)]
pub(super) struct Durable {
    /// The store has the topic itself.
    is_registered: bool,
    /// In the order in which they came; a duplicate waits for an earlier event.
    waiters: Vec<Waiter>,
    /// Who waits until the consumers are stored as they are now.
    savers: Vec<Saver>,
}

/// The way to somebody who waits until consumers are stored.
pub type Saver = Inlet<Result<(), Unstored>>;

struct Waiter {
    who: Arc<dyn Confirm>,
    request: Option<u64>,
    receipt: Receipt,
}

/// What the committer takes.
#[derive(Default)]
pub struct Taken {
    pub new: Option<NewTopic>,
    pub pending: Pending,
    pub positions: Vec<ConsumerChange>,
    pub savers: Vec<Saver>,
}

type Answer = (Arc<dyn Confirm>, Option<u64>, Result<Receipt, Unstored>);

/// Answers that are to be given with no lock held.
#[must_use]
#[derive(Default)]
pub struct Told {
    answers: Vec<Answer>,
    savers: Vec<(Saver, Result<(), Unstored>)>,
}

impl Told {
    /// Gives all answers, and then asks that they be passed on.
    ///
    /// # Blocking
    ///
    /// While a writer's lane is full.
    pub fn tell(self) {
        for (who, request, outcome) in &self.answers {
            who.confirm(*request, outcome);
        }
        for (who, ..) in self.answers {
            who.confirmed();
        }
        for (saver, outcome) in self.savers {
            // Who has given up waiting does not hear it.
            drop(saver.offer(outcome));
        }
    }

    /// Adds the answers of `other`.
    pub fn append(&mut self, mut other: Told) {
        self.answers.append(&mut other.answers);
        self.savers.append(&mut other.savers);
    }

    /// Adds that what `savers` wait for is stored.
    pub fn saved(&mut self, savers: Vec<Saver>) {
        self.savers.extend(savers.into_iter().map(|saver| (saver, Ok(()))));
    }
}

impl Durable {
    pub(super) fn wait(&mut self, who: Arc<dyn Confirm>, request: Option<u64>, receipt: Receipt) {
        self.waiters.push(Waiter { who, request, receipt });
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiters.is_empty() && self.savers.is_empty()
    }

    /// What was promised before a reload counts as well.
    fn needs_commit(&self, log: &Log) -> bool {
        let is_synced = log.durability() == Durability::Synced && log.stored() < log.appended();
        let is_promised = |waiter: &Waiter| waiter.receipt.durability == Durability::Synced;
        is_synced
            || !self.savers.is_empty()
            || !self.is_registered
            || self.waiters.iter().any(is_promised)
    }
}

impl Topic {
    /// A durable topic that the store does not have yet.
    #[must_use]
    pub fn new_durable(
        name: Name,
        (id, epoch): (TopicId, Epoch),
        policy: Policy,
        writers: usize,
        now_ms: u64,
    ) -> Self {
        let log = Log::new(&name, epoch, policy).durable();
        Self::with_log(name, log, Some(id), writers, now_ms)
    }

    /// A topic that the store has.
    #[must_use]
    pub fn restored(stored: &StoredTopic, policy: Policy, writers: usize, now_ms: u64) -> Self {
        let log = Log::new(&stored.name, stored.epoch, policy).restored(stored);
        let topic = Self::with_log(stored.name.clone(), log, Some(stored.id), writers, now_ms);
        topic.log.with(|body| body.durable.is_registered = true);
        topic
    }

    /// Takes over a consumer that the store has.
    pub fn restore_consumer(&self, change: &ConsumerChange) {
        if let Some(mut state) = change.state {
            self.log.with(|body| {
                // What it acknowledged may be lost, if it was not always on disk.
                state.seq = state.seq.min(body.log.tail());
                body.consumers.restore(change.name.clone(), state);
            });
        }
    }

    /// Takes over a key that the store has. What is left of its window is judged by the wall clock,
    /// which may have been set: it is never longer than the whole window.
    pub fn restore_key(&self, key: &Key, clock: &Clock, window: std::time::Duration) {
        let age_ms = clock.unix_ms().saturating_sub(key.time_ms);
        if millis(window) <= age_ms {
            return;
        }
        // Before the relay was up there is no time: such a key is remembered a little longer.
        let uptime_ms = clock.uptime_ms().saturating_sub(age_ms);
        self.log.with(|body| body.log.remember_key(key, uptime_ms));
    }

    /// Waits, through `saver`, until the consumers are stored as they are now.
    pub fn save(&self, saver: Saver) {
        self.log.with(|body| body.durable.savers.push(saver));
    }

    /// Whether the committer must be told that something waits for it: true once until it looks.
    pub fn must_tell_committer(&self) -> bool {
        self.told.raise()
    }

    /// As [`Topic::must_tell_committer`], for what may wait a while.
    pub fn must_tell_committer_lazily(&self) -> bool {
        self.told_lazily.raise()
    }

    /// The committer could not be told after all, of what may wait.
    pub fn was_not_told(&self) {
        self.told_lazily.lower();
    }

    /// The committer looks now. What comes after this tells it again.
    pub fn committer_looks(&self) {
        self.told.lower();
        self.told_lazily.lower();
    }

    /// Copies what the store does not have: the events after `after` (what is stored, or what is
    /// only written), about `bytes_max` of them, and all else that changed.
    pub fn take(&self, after: impl FnOnce(&Log) -> u64, bytes_max: u64) -> Taken {
        let Some(id) = self.id else { return Taken::default() };
        self.log.with(|body| {
            let new = (!body.durable.is_registered).then(|| NewTopic {
                id,
                name: self.name.clone(),
                epoch: body.log.epoch(),
                tail: 0,
            });
            Taken {
                new,
                pending: body.log.pending(id, after(&body.log), bytes_max),
                positions: body.consumers.take_changes(id),
                savers: std::mem::take(&mut body.durable.savers),
            }
        })
    }

    /// Whether something is here that somebody waits for and that only a commit can make as safe as
    /// it is to be. Consumers' positions may wait.
    #[must_use]
    pub fn needs_commit(&self) -> bool {
        self.log.with(|body| body.durable.needs_commit(&body.log))
    }

    /// Copies the events that are to be handed to the operating system, about `bytes_max` of them,
    /// with the policy they follow. `None` if something has come that needs a commit: looking
    /// earlier, under another lock, would take an event of `always` for one of `interval`.
    #[must_use]
    pub fn take_written(&self, bytes_max: u64) -> Option<(Pending, Policy)> {
        let id = self.id?;
        self.log.with(|body| {
            let log = &body.log;
            let needs_commit = body.durable.needs_commit(log) && !Fault::WrittenUnlooked.is_on();
            (!needs_commit).then(|| (log.pending(id, log.tail(), bytes_max), *log.policy()))
        })
    }

    /// Notes that events up to `visible` may be seen and those up to `stored` are in the database.
    /// Returns the answers to be given, and the change of the log's memory.
    pub fn stored(&self, visible: u64, stored: Option<u64>) -> (Told, i64) {
        self.log.with(|body| {
            let before = body.log.memory();
            body.durable.is_registered |= stored.is_some();
            body.log.advance(visible, stored.unwrap_or(0));
            let tail = body.log.tail();
            let ready = body.durable.waiters.extract_if(.., |waiter| waiter.receipt.seq <= tail);
            let answers = ready.map(|waiter| (waiter.who, waiter.request, Ok(waiter.receipt)));
            (
                Told { answers: answers.collect(), savers: Vec::new() },
                self.note_size(before, &body.log),
            )
        })
    }

    /// Notes that what was taken could not be stored, and takes back what may not be seen. Returns
    /// the answers to be given, the change of the log's memory, and how many events and bytes of
    /// them went.
    pub fn not_stored(&self, taken: Option<Taken>) -> (Told, i64, (u64, u64)) {
        self.log.with(|body| {
            let before = body.log.memory();
            let gone = body.log.roll_back();
            let waiters = body.durable.waiters.drain(..);
            let failed = |waiter: Waiter| (waiter.who, waiter.request, Err(Unstored));
            let answers = waiters.map(failed).collect();
            let mut savers = std::mem::take(&mut body.durable.savers);
            if let Some(taken) = taken {
                body.consumers.repeat(taken.positions);
                savers.extend(taken.savers);
            }
            let savers = savers.into_iter().map(|saver| (saver, Err(Unstored))).collect();
            (Told { answers, savers }, self.note_size(before, &body.log), gone)
        })
    }

    /// Continues with what the store has after it was opened anew. Returns what retention removed
    /// while it was, and the change of the log's memory.
    pub fn reconcile(
        &self,
        loaded: Option<&StoredTopic>,
        keys: &[(TopicId, Key)],
    ) -> (Evictions, i64) {
        self.log.with(|body| {
            let before = body.log.memory();
            body.durable.is_registered = loaded.is_some();
            let mut gone = Evictions::default();
            if let Some(stored) = loaded {
                gone = body.log.trimmed(stored.first, Evicted::Bytes);
                let (from, to) = body.log.reconcile(stored);
                let own = keys.iter().filter(|(id, _)| Some(*id) == self.id);
                let adopted = own.filter(|(_, key)| from <= key.seq && key.seq <= to);
                adopted.for_each(|(_, key)| body.log.remember_key(key, 0));
            }
            (gone, self.note_size(before, &body.log))
        })
    }

    /// Notes that events before `first` are gone from the store.
    pub fn trimmed(&self, first: u64, reason: Evicted) -> (Evictions, i64) {
        self.change(|log| log.trimmed(first, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::SyncPolicy,
        topic::{Draft, dedupe::Window},
    };

    struct Nobody;

    impl Confirm for Nobody {
        fn confirm(&self, _request: Option<u64>, _outcome: &Result<Receipt, Unstored>) {}

        fn confirmed(&self) {}
    }

    fn policy(sync: SyncPolicy) -> Policy {
        Policy { sync, ..Policy::default() }
    }

    /// A topic that the store has, without events.
    fn topic(sync: SyncPolicy) -> Topic {
        let name = Name::parse("lamp").unwrap();
        let identity = (1, Epoch::from_number(1));
        let topic = Topic::new_durable(name, identity, policy(sync), 1, 0);
        assert!(topic.needs_commit(), "the topic itself");
        drop(topic.stored(0, Some(0)));
        assert!(!topic.needs_commit());
        topic
    }

    fn publish(topic: &Topic) -> Durability {
        let draft = Draft { user: None, name: None, data: "1", key: Some("key") };
        let nobody: Arc<dyn Confirm> = Arc::new(Nobody);
        let window = Window { uptime_ms: 0, length_ms: 1_000 };
        topic.publish(&draft, 0, window, Some((&nobody, None))).unwrap().receipt.durability
    }

    fn written(topic: &Topic) -> Option<u64> {
        topic.take_written(u64::MAX).map(|(pending, _)| pending.upto)
    }

    /// Its one event is not to be written, and a commit is all it needs.
    #[track_caller]
    fn assert_waits_for_commit(topic: &Topic) {
        assert!(topic.needs_commit());
        assert_eq!(written(topic), None);
        drop(topic.stored(1, Some(1)));
        assert!(!topic.needs_commit());
    }

    #[test]
    fn an_event_that_needs_a_commit_and_came_after_the_look_is_not_only_written() {
        let topic = topic(SyncPolicy::Always);
        assert!(!topic.needs_commit());
        assert_eq!(publish(&topic), Durability::Synced);
        assert_waits_for_commit(&topic);
    }

    #[test]
    fn what_was_promised_before_a_reload_is_kept() {
        let topic = topic(SyncPolicy::Always);
        assert_eq!(publish(&topic), Durability::Synced);
        topic.change(|log| log.set_policy(policy(SyncPolicy::Interval), 0));
        assert_waits_for_commit(&topic);
    }

    #[test]
    fn a_duplicate_is_as_safe_as_the_event_is() {
        let topic = topic(SyncPolicy::Interval);
        assert_eq!(publish(&topic), Durability::Written);
        assert_eq!(written(&topic), Some(1));
        drop(topic.stored(1, None));
        topic.change(|log| log.set_policy(policy(SyncPolicy::Always), 0));
        assert_eq!(publish(&topic), Durability::Written);
        drop(topic.stored(1, Some(1)));
        assert_eq!(publish(&topic), Durability::Synced);
    }
}
