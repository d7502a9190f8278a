//! Which topics and pattern subscriptions exist, and how much memory all logs may take together.
//!
//! # Threads
//!
//! Readers look topics up and create them; the keeper sweeps. A connection keeps the topic it
//! published to last, so that a busy publisher does not come here at all.
//!
//! # Locks
//!
//! [`Rank::Registry`], for one look-up or one creation. A log's lock may be taken inside it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    base::{
        clock::{Clock, Leaps},
        lock::{Rank, Ranked},
        random,
        sync::atomic::{AtomicBool, AtomicU64, Ordering},
    },
    config::{Policy, TopicSettings},
    metrics::{Metrics, labels::Evicted},
    name::{Name, Pattern},
    store::{Loaded, StoredTopic, TopicId},
    topic::{
        dedupe::Window,
        largest::{Largest, Top},
        log::{Draft, Evictions, Log},
        topic::{Asked, Publication, Topic},
        trie::Trie,
    },
    wire::position::Epoch,
};

/// All topics of one relay.
pub struct Registry {
    inner: Ranked<Inner>,
    /// Memory of all logs.
    bytes: AtomicU64,
    bytes_max: AtomicU64,
    dedupe_window_ms: AtomicU64,
    /// Somebody is making room.
    reclaiming: AtomicBool,
    /// What durable topics are made with; `None` without a store.
    origin: Option<Origin>,
    /// Consumers of all topics.
    consumers: AtomicU64,
    writers: usize,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// What identities of durable topics come from.
struct Origin {
    seed: u64,
    incarnation: AtomicU64,
    next_id: AtomicU64,
}

impl Origin {
    /// The epoch of a topic that is made now. Derived rather than drawn, so that a topic that
    /// somebody has subscribed to and that was not stored before a crash comes back as the same;
    /// and since the store counts whenever it forgets topics, none comes back that was forgotten.
    fn epoch(&self, name: &Name) -> Epoch {
        let incarnation = self.incarnation.load(Ordering::Relaxed);
        Epoch::from_number(random::derive(self.seed, incarnation, name.as_str().as_bytes()))
    }
}

struct Inner {
    topics: HashMap<Name, Arc<Topic>>,
    patterns: Trie<Follower>,
    settings: TopicSettings,
    /// When topics that nobody ever published to were last forgotten to make room; monotonic, so
    /// that a wall clock that is set back does not put the next time off.
    made_room_ms: Option<u64>,
    leaps: Leaps,
    /// Durable ones among them, which the store does not know to be gone.
    forgotten: Vec<TopicId>,
}

impl Inner {
    /// All topics. For work on each that is not to be done with the lock held.
    fn all(&self) -> Vec<Arc<Topic>> {
        self.topics.values().cloned().collect()
    }

    /// Forgets the topics that have no follower and never had an event: nobody loses anything, and
    /// who only asks for names cannot use them up. At most once a second, since it looks at all.
    fn forget_unused(&mut self, uptime_ms: u64) -> Vec<Arc<Topic>> {
        let is_too_soon = |made_ms: u64| uptime_ms < made_ms.saturating_add(MAKE_ROOM_EVERY_MS);
        if self.made_room_ms.is_some_and(is_too_soon) {
            return Vec::new();
        }
        self.made_room_ms = Some(uptime_ms);
        // However lately it was used: by a wall clock that was set back that is in time to come.
        let is_used =
            |topic: &Arc<Topic>| 0 < topic.look(|log| log.tail()) || !topic.retire(u64::MAX);
        self.topics.extract_if(|_, topic| !is_used(topic)).map(|(_, topic)| topic).collect()
    }
}

const MAKE_ROOM_EVERY_MS: u64 = 1_000;

/// Who is to be told when a topic comes to exist that a pattern matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follower {
    /// The writer that owns the connection.
    pub writer: usize,
    pub connection: u64,
    /// The pattern's subscription on that connection.
    pub subscription: u64,
}

/// What a sweep found for the store to do.
#[derive(Default)]
pub struct Swept {
    /// Topics whose consumers changed.
    pub changed: Vec<Arc<Topic>>,
    /// Topics that are no more.
    pub forgotten: Vec<TopicId>,
}

/// Why a topic cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    #[error("the relay already has {max} topics, which is its limit")]
    Full { max: usize },
}

impl Registry {
    #[must_use]
    pub fn new(
        settings: TopicSettings,
        writers: usize,
        clock: Clock,
        metrics: Arc<Metrics>,
        loaded: Option<&Loaded>,
    ) -> Self {
        let origin = loaded.map(|loaded| Origin {
            seed: loaded.seed,
            incarnation: AtomicU64::new(loaded.incarnation),
            next_id: AtomicU64::new(
                loaded.topics.iter().map(|topic| topic.id + 1).max().unwrap_or(1),
            ),
        });
        let registry = Self {
            origin,
            consumers: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            bytes_max: AtomicU64::new(0),
            dedupe_window_ms: AtomicU64::new(0),
            reclaiming: AtomicBool::new(false),
            inner: Ranked::new(
                Rank::Registry,
                Inner {
                    topics: HashMap::new(),
                    patterns: Trie::default(),
                    settings: TopicSettings::default(),
                    made_room_ms: None,
                    leaps: Leaps::new(&clock),
                    forgotten: Vec::new(),
                },
            ),
            writers,
            clock,
            metrics,
        };
        registry.apply(settings);
        if let Some(loaded) = loaded {
            registry.restore(loaded);
        }
        registry
    }

    /// Takes over what the store has. Topics that are not durable any more stay there, untouched.
    fn restore(&self, loaded: &Loaded) {
        let now_ms = self.clock.unix_ms();
        let by_id: HashMap<TopicId, Arc<Topic>> = self.inner.with(|inner| {
            let mut by_id = HashMap::new();
            let mut stored: Vec<&StoredTopic> = loaded.topics.iter().collect();
            // Of two with one name the older was about to be forgotten.
            stored.sort_unstable_by_key(|stored| stored.id);
            for stored in stored {
                let policy = inner.settings.policy(&stored.name);
                if policy.durable {
                    let topic = Topic::restored(stored, policy, self.writers, now_ms);
                    let topic = Arc::new(topic);
                    by_id.insert(stored.id, Arc::clone(&topic));
                    inner.topics.insert(stored.name.clone(), topic);
                }
            }
            by_id
        });
        if by_id.len() < loaded.topics.len() {
            let count = loaded.topics.len() - by_id.len();
            log::warn!("stored topics are not durable any more and stay as they are count={count}");
        }
        for change in &loaded.consumers {
            if let Some(topic) = by_id.get(&change.topic) {
                topic.restore_consumer(change);
                self.consumers.fetch_add(1, Ordering::Relaxed);
            }
        }
        let window = Duration::from_millis(self.dedupe_window_ms.load(Ordering::Relaxed));
        for (id, key) in &loaded.keys {
            if let Some(topic) = by_id.get(id) {
                topic.restore_key(key, &self.clock, window);
            }
        }
        let bytes = by_id.values().map(|topic| topic.look(Log::memory)).sum();
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// All durable topics.
    #[must_use]
    pub fn durable(&self) -> Vec<Arc<Topic>> {
        let mut topics = self.inner.with(|inner| inner.all());
        topics.retain(|topic| topic.id().is_some());
        topics
    }

    /// How long an idempotency key is remembered.
    #[must_use]
    pub fn dedupe_window_ms(&self) -> u64 {
        self.dedupe_window_ms.load(Ordering::Relaxed)
    }

    /// Consumers of all topics, for whoever makes and removes them to count.
    #[must_use]
    pub fn consumer_count(&self) -> &AtomicU64 {
        &self.consumers
    }

    /// Puts `settings` into force, also for the topics that exist.
    pub fn apply(&self, settings: TopicSettings) {
        // Relaxed: limits, each read by itself.
        self.bytes_max.store(settings.max_memory, Ordering::Relaxed);
        let window_ms = millis(settings.dedupe_window);
        self.dedupe_window_ms.store(window_ms, Ordering::Relaxed);
        self.metrics.topics_limit.set(settings.max_topics as u64);
        self.metrics.log_bytes_limit.set(settings.max_memory);
        let topics: Vec<(Arc<Topic>, Policy)> = self.inner.with(|inner| {
            inner.settings = settings;
            let policy = |topic: &Arc<Topic>| inner.settings.policy(topic.name());
            inner.topics.values().map(|topic| (Arc::clone(topic), policy(topic))).collect()
        });
        let now_ms = self.clock.unix_ms();
        for (topic, policy) in topics {
            let (gone, grown) = topic.change(|log| log.set_policy(policy, now_ms));
            self.account(gone, grown);
        }
        self.reclaim();
    }

    /// The topic `name`, if it exists.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Topic>> {
        self.inner.with(|inner| inner.topics.get(name).cloned())
    }

    /// The topic `name`, and whether it was created just now. `created` is then called, after the
    /// lock, for each pattern subscription that is to follow it from its beginning.
    ///
    /// # Errors
    ///
    /// The limit of topics is reached.
    pub fn open(
        &self,
        name: &Name,
        created: impl FnMut(Follower, &Arc<Topic>),
    ) -> Result<(Arc<Topic>, bool), RegistryError> {
        match self.find(name.as_str()) {
            Some(topic) => Ok((topic, false)),
            None => self.create(name, created),
        }
    }

    #[inline(never)]
    fn create(
        &self,
        name: &Name,
        mut created: impl FnMut(Follower, &Arc<Topic>),
    ) -> Result<(Arc<Topic>, bool), RegistryError> {
        let (topic, followers, is_new) = self.inner.with(|inner| {
            // Somebody else may have been quicker.
            if let Some(topic) = inner.topics.get(name) {
                return Ok((Arc::clone(topic), Vec::new(), false));
            }
            let max = inner.settings.max_topics;
            let now_ms = self.clock.unix_ms();
            if max <= inner.topics.len() {
                let forgotten = inner.forget_unused(self.clock.uptime_ms());
                self.metrics.topics_forgotten.add(forgotten.len() as u64);
                let ids = forgotten.iter().filter_map(|topic| self.forget(topic));
                inner.forgotten.extend(ids);
            }
            if max <= inner.topics.len() {
                return Err(RegistryError::Full { max });
            }
            let policy = inner.settings.policy(name);
            let topic = Arc::new(self.make(name, policy, now_ms));
            inner.topics.insert(name.clone(), Arc::clone(&topic));
            Ok((topic, inner.patterns.matching(name), true))
        })?;
        followers.into_iter().for_each(|follower| created(follower, &topic));
        Ok((topic, is_new))
    }

    /// Notes that `topic` is no more. Returns its number in the store, which is to be told.
    fn forget(&self, topic: &Topic) -> Option<TopicId> {
        let (id, origin) = (topic.id()?, self.origin.as_ref()?);
        origin.incarnation.fetch_add(1, Ordering::Relaxed);
        Some(id)
    }

    fn make(&self, name: &Name, policy: Policy, now_ms: u64) -> Topic {
        match &self.origin {
            Some(origin) if policy.durable => {
                let id = origin.next_id.fetch_add(1, Ordering::Relaxed);
                let identity = (id, origin.epoch(name));
                Topic::new_durable(name.clone(), identity, policy, self.writers, now_ms)
            }
            _ => Topic::new(name.clone(), Epoch::random(), policy, self.writers, now_ms),
        }
    }

    /// Appends `draft` to `topic`; counting it is up to the caller. `None` if the topic was
    /// forgotten in the meantime: look it up again.
    pub fn publish(
        &self,
        topic: &Topic,
        draft: &Draft<'_>,
        now_ms: u64,
        waiter: Option<Asked<'_>>,
    ) -> Option<Publication> {
        // Without a key nobody asks when the window ends, nor what time it is.
        let uptime_ms = draft.key.map_or(0, |_| self.clock.uptime_ms());
        let publication = topic.publish(draft, now_ms, self.window(uptime_ms), waiter)?;
        // A duplicate too may have found keys of others to forget.
        self.account(publication.evictions, publication.grown);
        if publication.receipt.duplicate {
            self.metrics.duplicates.add(1);
        } else {
            self.reclaim();
        }
        Some(publication)
    }

    /// Files a pattern subscription and returns the topics that match it now. Every other one that
    /// ever matches is announced through [`Registry::open`].
    #[must_use]
    pub fn follow_pattern(&self, pattern: &Pattern, follower: Follower) -> Vec<Arc<Topic>> {
        // One hold of the lock files the pattern and copies the topics: one created before it is in
        // the copy and was not announced, one created after it is announced and not in the copy.
        // Which of the copy match is found without the lock, for creators wait for it.
        let mut topics = self.inner.with(|inner| {
            inner.patterns.insert(pattern, follower);
            inner.all()
        });
        topics.retain(|topic| pattern.matches(topic.name()));
        topics
    }

    pub fn unfollow_pattern(&self, pattern: &Pattern, follower: Follower) {
        self.inner.with(|inner| inner.patterns.remove(pattern, &follower));
    }

    /// Up to `limit` topics after `after`, by name.
    #[must_use]
    pub fn list(&self, after: Option<&str>, limit: usize) -> Vec<Arc<Topic>> {
        let mut topics = self.inner.with(|inner| inner.all());
        topics.retain(|topic| after.is_none_or(|after| after < topic.name().as_str()));
        topics.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        topics.truncate(limit);
        topics
    }

    /// How many topics exist.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.with(|inner| inner.topics.len())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory of all logs.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Removes events beyond their age, consumers that nobody has used for `consumer_idle`, and
    /// topics that nobody would miss.
    pub fn sweep(&self, consumer_idle: Duration) -> Swept {
        let forgotten = self.inner.with(|inner| std::mem::take(&mut inner.forgotten));
        let mut swept = Swept { forgotten, ..Swept::default() };
        let (topics, forget_after) =
            self.inner.with(|inner| (inner.all(), inner.settings.forget_after));
        let (now_ms, uptime_ms) = (self.clock.unix_ms(), self.clock.uptime_ms());
        let leap_ms = self.inner.with(|inner| inner.leaps.ahead_ms(now_ms, uptime_ms));
        let window = self.window(uptime_ms);
        let unused_since_ms = now_ms.saturating_sub(millis(forget_after));
        for topic in topics {
            if 0 < leap_ms && topic.forgive(leap_ms, now_ms) {
                swept.changed.push(Arc::clone(&topic));
            }
            let (gone, grown) = topic.change(|log| {
                log.forget_keys(window);
                log.evict(now_ms)
            });
            self.account(gone, grown);
            let idle_ms = now_ms.saturating_sub(millis(consumer_idle));
            let expired = topic.consumers(|consumers, _| consumers.expire(idle_ms));
            if 0 < expired {
                self.consumers.fetch_sub(expired, Ordering::Relaxed);
                self.metrics.consumers_expired.add(expired);
                swept.changed.push(Arc::clone(&topic));
            }
            // With the registry's lock held, so that nobody finds a topic that is forgotten.
            let forgotten = topic.is_unused(unused_since_ms)
                && self.inner.with(|inner| {
                    topic.retire(unused_since_ms) && inner.topics.remove(topic.name()).is_some()
                });
            self.metrics.topics_forgotten.add(u64::from(forgotten));
            if forgotten {
                swept.forgotten.extend(self.forget(&topic));
            }
        }
        self.reclaim();
        swept
    }

    fn window(&self, uptime_ms: u64) -> Window {
        Window { uptime_ms, length_ms: self.dedupe_window_ms.load(Ordering::Relaxed) }
    }

    /// Notes what went from a log, and how its memory changed.
    pub fn account(&self, gone: Evictions, grown: i64) {
        // Relaxed: a sum; each change is applied exactly once.
        self.bytes.fetch_add(grown.cast_unsigned(), Ordering::Relaxed);
        if gone == Evictions::default() {
            return;
        }
        let Evictions { count, bytes, age, memory, keys, cached: _ } = gone;
        self.metrics.dedupe_evicted.add(keys);
        for (reason, events) in [
            (Evicted::Count, count),
            (Evicted::Bytes, bytes),
            (Evicted::Age, age),
            (Evicted::Memory, memory),
        ] {
            self.metrics.events_evicted.add(reason, events);
        }
    }

    /// Makes room if all logs together are beyond the limit: the oldest events of the largest log
    /// go, until a sixty-fourth of the limit is free. One thread does it; the others go on.
    ///
    /// The others do not wait, so that all logs can take more than the limit while room is made:
    /// by what is published in the meantime, and until the next publish or sweep by what is
    /// published while the one that made room is about to say so. Without others the limit holds
    /// when this returns.
    fn reclaim(&self) {
        let max = self.bytes_max.load(Ordering::Relaxed);
        if self.bytes() <= max || self.reclaiming.swap(true, Ordering::Acquire) {
            return;
        }
        let topics = self.inner.with(|inner| inner.all());
        let mut largest = Largest::new(topics.iter().map(|topic| topic.bytes()));
        let target = max - max / 64;
        loop {
            let excess = self.bytes().saturating_sub(target);
            if excess == 0 {
                break;
            }
            let Some(Top { index, size, second }) = largest.take(|index| topics[index].bytes())
            else {
                break;
            };
            // A little below the next one, so that logs of one size lose alike in few steps.
            let below = second.saturating_sub(excess / 64 + 1);
            let keep = size.saturating_sub(excess).max(below);
            let topic = &topics[index];
            let (gone, grown) = topic.change(|log| log.shrink(keep, RECLAIM_STEPS));
            self.account(gone, grown);
            // Nothing went if others were quicker; once is enough to look at such a topic.
            if 0 < gone.memory + gone.keys + gone.cached {
                largest.put(index, topic.bytes());
            }
        }
        self.reclaiming.store(false, Ordering::Release);
    }
}

/// Events and keys that one hold of a log's lock removes.
const RECLAIM_STEPS: u64 = 1_000;

pub(in crate::topic) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
