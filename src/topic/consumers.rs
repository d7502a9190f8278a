//! The consumers of one topic: named positions, and who holds them.
//!
//! Pure data: time comes in as an argument. A consumer belongs to one connection at a time; whoever
//! claims it gets a higher fence, and what an earlier holder says after that changes nothing.

use std::collections::HashMap;

use crate::{
    base::fault::Fault,
    name::UserName,
    store::{ConsumerChange, ConsumerState, TopicId},
};

/// All consumers of one topic.
#[derive(Debug, Default)]
pub struct Consumers {
    by_name: HashMap<UserName, Consumer>,
    /// Those that changed since the store was last told.
    dirty: Vec<UserName>,
    /// Names that were removed and that the store may still have.
    removed: Vec<UserName>,
    last_fence: u64,
}

#[derive(Debug)]
struct Consumer {
    state: ConsumerState,
    holder: Option<Holder>,
    /// Changed since the store was last told: among the dirty ones.
    is_dirty: bool,
}

/// A connection that holds a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    pub connection: u64,
    /// The writer that owns the connection.
    pub writer: usize,
    pub fence: u64,
}

/// What a claim brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub fence: u64,
    /// The acknowledged position.
    pub seq: u64,
    /// How often the event after it was delivered before.
    pub deliveries: u32,
    pub is_new: bool,
    /// Who held it until now.
    pub previous: Option<Holder>,
}

/// A consumer as a list shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    pub name: UserName,
    pub state: ConsumerState,
    pub holder: Option<Holder>,
}

impl Consumers {
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    #[must_use]
    pub fn contains(&self, name: &UserName) -> bool {
        self.by_name.contains_key(name)
    }

    /// Takes over what the store has.
    pub fn restore(&mut self, name: UserName, state: ConsumerState) {
        self.by_name.insert(name, Consumer { state, holder: None, is_dirty: false });
    }

    /// Makes `connection` the holder of `name`, which begins after event `seq` if it is new.
    /// `tail` is the newest event that it could be sent.
    pub fn claim(
        &mut self,
        name: &UserName,
        (connection, writer): (u64, usize),
        (seq, tail): (u64, u64),
        now_ms: u64,
    ) -> Claim {
        self.last_fence += 1;
        let fence = self.last_fence;
        let is_new = !self.by_name.contains_key(name);
        let consumer = self.by_name.entry(name.clone()).or_insert_with(|| Consumer {
            state: ConsumerState { seq, deliveries: 0, used_ms: now_ms },
            holder: None,
            is_dirty: false,
        });
        self.removed.retain(|removed| removed != name);
        let previous = consumer.holder.replace(Holder { connection, writer, fence });
        let ConsumerState { seq, deliveries, .. } = consumer.state;
        let next = u32::from(seq < tail);
        // Whoever held it until this moment has been sent the next event.
        let deliveries = if previous.is_some() { deliveries.max(next) } else { deliveries };
        // Whoever holds it is sent the next event; if it goes away without a word, that counted.
        consumer.state.deliveries = deliveries.saturating_add(next);
        consumer.state.used_ms = now_ms;
        consumer.soil(name, &mut self.dirty);
        Claim { fence, seq, deliveries, is_new, previous }
    }

    /// Takes back a claim that made a consumer: it could not be stored.
    pub fn unmake(&mut self, name: &UserName, fence: u64) -> bool {
        let is_held = self.held(name, fence).is_some();
        if is_held {
            self.by_name.remove(name);
            self.removed.push(name.clone());
        }
        is_held
    }

    /// Moves `name` to `seq`, if `fence` still holds it and it moves forward. `sent` is the newest
    /// event that its holder was sent.
    pub fn acknowledge(
        &mut self,
        name: &UserName,
        fence: u64,
        (seq, sent): (u64, u64),
        now_ms: u64,
    ) -> bool {
        let Some((consumer, dirty)) = self.held(name, fence) else { return false };
        if seq <= consumer.state.seq {
            return false;
        }
        let deliveries = u32::from(seq < sent);
        consumer.state = ConsumerState { seq, deliveries, used_ms: now_ms };
        consumer.soil(name, dirty);
        true
    }

    /// Notes that the event after `after` is sent once more, which makes `deliveries`. Returns
    /// whether `fence` still holds it.
    pub fn redeliver(
        &mut self,
        name: &UserName,
        fence: u64,
        (after, deliveries): (u64, u32),
    ) -> bool {
        let Some((consumer, dirty)) = self.held(name, fence) else { return false };
        if consumer.state.seq == after {
            consumer.state.deliveries = deliveries;
            consumer.soil(name, dirty);
        }
        true
    }

    /// Ends the hold of `fence`, which was sent events up to `sent`.
    pub fn release(&mut self, name: &UserName, fence: u64, sent: u64, now_ms: u64) {
        if let Some((consumer, dirty)) = self.held(name, fence) {
            let next = u32::from(consumer.state.seq < sent);
            consumer.holder = None;
            consumer.state.deliveries = consumer.state.deliveries.max(next);
            consumer.state.used_ms = now_ms;
            consumer.soil(name, dirty);
        }
    }

    /// Counts `leap_ms` for no time without use: the wall clock, whose time is `now_ms`, was set
    /// ahead by as much. Returns whether there are any.
    pub fn forgive(&mut self, leap_ms: u64, now_ms: u64) -> bool {
        for (name, consumer) in &mut self.by_name {
            let used_ms = consumer.state.used_ms.saturating_add(leap_ms).min(now_ms);
            consumer.state.used_ms = used_ms;
            consumer.soil(name, &mut self.dirty);
        }
        !self.by_name.is_empty()
    }

    /// Removes those that nobody holds and nobody held since `unused_since_ms`. Returns how many.
    pub fn expire(&mut self, unused_since_ms: u64) -> u64 {
        let is_idle = |consumer: &Consumer| {
            consumer.holder.is_none() && consumer.state.used_ms <= unused_since_ms
        };
        let idle = self.by_name.iter().filter(|(_, consumer)| is_idle(consumer));
        let idle: Vec<UserName> = idle.map(|(name, _)| name.clone()).collect();
        for name in &idle {
            self.by_name.remove(name);
        }
        let count = idle.len() as u64;
        self.removed.extend(idle);
        count
    }

    /// Whether the store has to be told something.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.removed.is_empty() || !self.dirty.is_empty()
    }

    /// What the store has to be told; it counts as told.
    pub fn take_changes(&mut self, topic: TopicId) -> Vec<ConsumerChange> {
        let mut changes = Vec::with_capacity(self.dirty.len() + self.removed.len());
        for name in std::mem::take(&mut self.dirty) {
            // It may have been removed since.
            if let Some(consumer) = self.by_name.get_mut(&name) {
                consumer.is_dirty = false;
                changes.push(ConsumerChange { topic, name, state: Some(consumer.state) });
            }
        }
        let gone = self.removed.drain(..);
        changes.extend(gone.map(|name| ConsumerChange { topic, name, state: None }));
        changes
    }

    /// Has the store told everything again: what it was told may not have arrived.
    pub fn repeat(&mut self, changes: Vec<ConsumerChange>) {
        for ConsumerChange { name, .. } in changes {
            match self.by_name.get_mut(&name) {
                Some(consumer) => consumer.soil(&name, &mut self.dirty),
                None => self.removed.push(name),
            }
        }
    }

    /// All of them, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let mut list: Vec<Listed> = self
            .by_name
            .iter()
            .map(|(name, consumer)| Listed {
                name: name.clone(),
                state: consumer.state,
                holder: consumer.holder,
            })
            .collect();
        list.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        list
    }

    fn held(&mut self, name: &UserName, fence: u64) -> Option<(&mut Consumer, &mut Vec<UserName>)> {
        let consumer = self.by_name.get_mut(name)?;
        let is_fence = |holder: Holder| holder.fence == fence || Fault::Fence.is_on();
        let is_held = consumer.holder.is_some_and(is_fence);
        is_held.then_some((consumer, &mut self.dirty))
    }
}

impl Consumer {
    /// Notes that the store is to be told of it.
    fn soil(&mut self, name: &UserName, dirty: &mut Vec<UserName>) {
        if !std::mem::replace(&mut self.is_dirty, true) {
            dirty.push(name.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> UserName {
        UserName::parse(text).unwrap()
    }

    fn state(consumers: &Consumers, name: &str) -> ConsumerState {
        let listed = consumers.list().into_iter().find(|listed| listed.name.as_str() == name);
        listed.unwrap().state
    }

    #[test]
    fn what_an_earlier_holder_says_changes_nothing() {
        let mut consumers = Consumers::default();
        let first = consumers.claim(&name("a"), (1, 0), (5, 9), 10);
        assert!(first.is_new && consumers.acknowledge(&name("a"), first.fence, (7, 9), 20));
        let second = consumers.claim(&name("a"), (2, 1), (99, 99), 30);
        assert_eq!((second.seq, second.is_new), (7, false));
        assert_eq!(second.previous.map(|holder| holder.connection), Some(1));
        assert!(!consumers.acknowledge(&name("a"), first.fence, (9, 9), 40));
        assert!(!consumers.redeliver(&name("a"), first.fence, (7, 9)));
        consumers.release(&name("a"), first.fence, 9, 50);
        assert_eq!(state(&consumers, "a").deliveries, 2);
        assert!(consumers.acknowledge(&name("a"), second.fence, (8, 9), 60));
        assert!(!consumers.acknowledge(&name("a"), second.fence, (8, 9), 70), "not backwards");
        assert_eq!(state(&consumers, "a").seq, 8);
    }

    #[test]
    fn every_holder_and_every_redelivery_counts_as_a_delivery_until_an_acknowledgement() {
        let mut consumers = Consumers::default();
        for expected in 0..3 {
            let claim = consumers.claim(&name("a"), (1, 0), (0, 9), 0);
            assert_eq!(claim.deliveries, expected);
            consumers.release(&name("a"), claim.fence, 9, 0);
        }
        let claim = consumers.claim(&name("a"), (1, 0), (0, 9), 0);
        assert!(consumers.redeliver(&name("a"), claim.fence, (0, 5)));
        assert_eq!(state(&consumers, "a").deliveries, 5);
        consumers.acknowledge(&name("a"), claim.fence, (1, 9), 0);
        assert_eq!(state(&consumers, "a").deliveries, 1);
        assert!(consumers.redeliver(&name("a"), claim.fence, (0, 6)), "late, and of no account");
        assert_eq!(state(&consumers, "a").deliveries, 1);
    }

    #[test]
    fn an_event_counts_as_delivered_only_to_who_was_sent_it() {
        let mut consumers = Consumers::default();
        let a = name("a");
        let first = consumers.claim(&a, (1, 0), (0, 0), 0);
        // Event 1 was sent and acknowledged; 2 came while nobody was there.
        consumers.acknowledge(&a, first.fence, (1, 1), 0);
        consumers.release(&a, first.fence, 1, 0);
        let second = consumers.claim(&a, (2, 0), (0, 2), 0);
        assert_eq!((second.seq, second.deliveries), (1, 0));
        // 3 came after the acknowledgement of 2, and was sent before the connection died.
        consumers.acknowledge(&a, second.fence, (2, 2), 0);
        consumers.release(&a, second.fence, 3, 0);
        let third = consumers.claim(&a, (3, 0), (0, 3), 0);
        assert_eq!((third.seq, third.deliveries), (2, 1));
        // The same, and the connection was taken over.
        consumers.acknowledge(&a, third.fence, (3, 3), 0);
        assert_eq!(consumers.claim(&a, (4, 0), (0, 4), 0).deliveries, 1);
    }

    #[test]
    fn holding_a_consumer_that_has_everything_is_no_delivery() {
        let mut consumers = Consumers::default();
        for _ in 0..9 {
            assert_eq!(consumers.claim(&name("a"), (1, 0), (4, 4), 0).deliveries, 0);
        }
    }

    #[test]
    fn the_store_is_told_each_change_once_and_again_if_it_did_not_arrive() {
        let mut consumers = Consumers::default();
        let claim = consumers.claim(&name("a"), (1, 0), (3, 9), 10);
        assert!(consumers.is_dirty(), "one is new");
        let told = consumers.take_changes(7);
        assert_eq!(told.len(), 1);
        assert!(!consumers.is_dirty());
        consumers.repeat(told);
        assert_eq!(consumers.take_changes(7).len(), 1);
        consumers.release(&name("a"), claim.fence, 3, 20);
        assert_eq!(consumers.expire(19), 0);
        assert_eq!(consumers.expire(20), 1);
        assert!(consumers.is_empty());
        let told = consumers.take_changes(7);
        assert_eq!(told.iter().map(|change| change.state).collect::<Vec<_>>(), [None]);
        consumers.repeat(told);
        assert_eq!(consumers.take_changes(7).len(), 1);
    }

    #[test]
    fn a_wall_clock_that_is_set_ahead_makes_no_consumer_idle() {
        let mut consumers = Consumers::default();
        let claim = consumers.claim(&name("a"), (1, 0), (3, 9), 10);
        consumers.release(&name("a"), claim.fence, 3, 20);
        let known = ConsumerState { seq: 3, deliveries: 1, used_ms: 5_010 };
        consumers.restore(name("b"), known);
        drop(consumers.take_changes(7));
        assert!(consumers.forgive(5_000, 5_030));
        assert_eq!(state(&consumers, "a").used_ms, 5_020);
        assert_eq!(state(&consumers, "b").used_ms, 5_030, "never in the time to come");
        assert_eq!((consumers.take_changes(7).len(), consumers.expire(5_019)), (2, 0));
        assert!(!Consumers::default().forgive(5_000, 5_030));
    }

    #[test]
    fn a_claim_that_could_not_be_stored_is_taken_back_by_whoever_made_it() {
        let mut consumers = Consumers::default();
        let claim = consumers.claim(&name("a"), (1, 0), (3, 9), 10);
        assert!(!consumers.unmake(&name("a"), claim.fence + 1) && consumers.contains(&name("a")));
        assert!(consumers.unmake(&name("a"), claim.fence) && !consumers.contains(&name("a")));
        assert!(consumers.is_dirty(), "the store may have it nevertheless");
        let told = consumers.take_changes(7);
        let told: Vec<_> = told.iter().map(|change| (change.topic, change.state)).collect();
        assert_eq!(told, [(7, None)]);
    }

    #[test]
    fn consumers_are_listed_by_name_as_they_are() {
        let mut consumers = Consumers::default();
        let kept = ConsumerState { seq: 4, deliveries: 2, used_ms: 7 };
        for text in ["d", "c", "b"] {
            consumers.restore(name(text), kept);
        }
        assert!(!consumers.is_dirty(), "the store has them");
        let claim = consumers.claim(&name("a"), (8, 1), (3, 9), 10);
        assert_eq!((consumers.len(), consumers.is_empty()), (4, false));
        let list = consumers.list();
        let names: Vec<&str> = list.iter().map(|listed| listed.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
        let holder = Holder { connection: 8, writer: 1, fence: claim.fence };
        assert_eq!((list[0].holder, list[1].holder), (Some(holder), None));
        assert_eq!(list[0].state, ConsumerState { seq: 3, deliveries: 1, used_ms: 10 });
        assert_eq!(list[1].state, kept);
        assert!(consumers.acknowledge(&name("a"), claim.fence, (5, 5), 20));
        assert_eq!(state(&consumers, "a"), ConsumerState { seq: 5, deliveries: 0, used_ms: 20 });
        assert!(consumers.claim(&name("a"), (9, 1), (0, 9), 30).fence > claim.fence);
    }

    #[test]
    fn a_consumer_that_came_back_is_not_removed_from_the_store() {
        let mut consumers = Consumers::default();
        for text in ["a", "b"] {
            consumers.restore(name(text), ConsumerState { seq: 4, deliveries: 0, used_ms: 7 });
        }
        assert_eq!(consumers.expire(7), 2);
        assert!(consumers.is_dirty(), "some were removed");
        assert!(consumers.claim(&name("a"), (1, 0), (6, 9), 10).is_new);
        let told = consumers.take_changes(1);
        let told = told.iter().map(|change| (change.name.as_str(), change.state.is_some()));
        assert_eq!(told.collect::<Vec<_>>(), [("a", true), ("b", false)]);
    }

    #[test]
    fn a_consumer_that_is_held_does_not_expire() {
        let mut consumers = Consumers::default();
        consumers.claim(&name("a"), (1, 0), (0, 9), 10);
        assert_eq!(consumers.expire(u64::MAX), 0);
    }
}
