//! What a store should hold, kept naively, and a workload that changes it at random.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{event, new_topic, position, read_all, run, state, time, value};
use crate::{
    config::Policy,
    name::Name,
    store::{Batch, Keep, Loaded, Pages, Run, StateBatch, StateRecord, TopicId, sim::random},
};

/// All that is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) incarnation: u64,
    pub(super) topics: BTreeMap<TopicId, Topic>,
    pub(super) values: BTreeMap<Name, StateRecord>,
    /// The epoch, the horizon and the newest version of the shared state, once there is one.
    pub(super) place: Option<(u64, u64, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Topic {
    pub(super) first: u64,
    pub(super) tail: u64,
    /// First and last event of each.
    pub(super) chunks: Vec<(u64, u64)>,
    pub(super) keys: BTreeSet<u64>,
    pub(super) position: Option<u64>,
}

/// What a store says of a topic when it is opened: first, tail, bytes, keys, position.
type Seen = (u64, u64, u64, Vec<u64>, Option<u64>);

impl State {
    pub(super) fn apply(&mut self, batch: &Batch) {
        for topic in &batch.topics {
            let (chunks, keys) = (Vec::new(), BTreeSet::new());
            let new = Topic { first: 1, tail: 0, chunks, keys, position: None };
            self.topics.entry(topic.id).or_insert(new);
        }
        for run in &batch.runs {
            let topic = self.topics.get_mut(&run.topic).unwrap();
            if topic.tail < run.first {
                topic.tail = run.first + run.count - 1;
                topic.chunks.push((run.first, topic.tail));
                topic.keys.extend(run.keys.iter().map(|key| key.seq));
            }
        }
        for keep in &batch.keeps {
            if let Some(topic) = self.topics.get_mut(&keep.topic) {
                topic.retain(keep);
            }
        }
        for change in &batch.positions {
            if let Some(topic) = self.topics.get_mut(&change.topic) {
                topic.position = change.state.map(|state| state.seq);
            }
        }
        self.topics.retain(|id, _| !batch.forgotten.contains(id));
        self.incarnation += u64::from(!batch.forgotten.is_empty());
        for topic in self.topics.values_mut() {
            topic.keys.retain(|seq| batch.keys_before_ms <= time(*seq));
        }
        if let Some(state) = batch.state.as_deref() {
            self.apply_state(state);
        }
    }

    fn apply_state(&mut self, state: &StateBatch) {
        let StateBatch { epoch, horizon, upto, is_whole, ref changes, ref forgotten } = *state;
        self.values.retain(|key, _| !is_whole && !forgotten.contains(key));
        let changes = changes.iter().map(|change| (change.key.clone(), change.clone()));
        self.values.extend(changes);
        self.place = Some((epoch.number(), horizon, upto));
    }

    fn is_state(&self, loaded: &Loaded) -> bool {
        let Some(state) = &loaded.state else { return self.place.is_none() };
        let place = (state.epoch.number(), state.horizon, state.upto);
        let is_same = state.entries.iter().eq(self.values.values());
        !state.is_damaged && is_same && self.place == Some(place)
    }

    fn seen(&self) -> BTreeMap<TopicId, Seen> {
        let seen = |(id, topic): (&TopicId, &Topic)| {
            let oldest = topic.chunks.first().map_or(topic.tail + 1, |(first, _)| *first);
            let keys = topic.keys.iter().copied().collect();
            (*id, (topic.first, topic.tail, bytes(*id, oldest, topic.tail), keys, topic.position))
        };
        self.topics.iter().map(seen).collect()
    }

    /// Whether a store that was just opened holds exactly this.
    pub(super) fn is(&self, loaded: &Loaded) -> bool {
        self.incarnation == loaded.incarnation
            && self.seen() == seen(loaded)
            && self.is_state(loaded)
    }

    /// Panics unless every event reads as it was written.
    #[track_caller]
    pub(super) fn assert_readable(&self, pages: &dyn Pages) {
        for (id, topic) in &self.topics {
            let found = read_all(pages, *id, topic.first - 1, topic.tail);
            assert!(found == super::events(*id, topic.first, topic.tail), "topic {id}");
        }
    }
}

fn bytes(id: TopicId, first: u64, last: u64) -> u64 {
    (first..=last).map(|seq| event(id, seq).len() as u64).sum()
}

fn seen(loaded: &Loaded) -> BTreeMap<TopicId, Seen> {
    let mut all = BTreeMap::new();
    for topic in &loaded.topics {
        assert_eq!((&topic.name, topic.epoch), (&super::name(topic.id), super::epoch(topic.id)));
        let mine = loaded.keys.iter().filter(|(id, _)| *id == topic.id);
        let keys = mine.map(|(_, key)| key.seq).collect();
        let position = loaded.consumers.iter().find(|consumer| consumer.topic == topic.id);
        let position = position.and_then(|consumer| consumer.state).map(|state| state.seq);
        all.insert(topic.id, (topic.first, topic.tail, topic.bytes, keys, position));
    }
    all
}

impl Topic {
    /// Retention as its description says it, with no bound on the work.
    pub(super) fn retain(&mut self, keep: &Keep) {
        let Policy { max_events, max_bytes, max_age, .. } = keep.policy;
        while max_events < self.tail + 1 - self.first && self.first < self.tail {
            self.first += 1;
        }
        let first = self.first;
        self.chunks.retain(|(_, last)| first <= *last);
        let size = |chunks: &[(u64, u64)]| {
            chunks.iter().map(|(first, last)| bytes(keep.topic, *first, *last)).sum::<u64>()
        };
        while max_bytes < size(&self.chunks) && 1 < self.chunks.len() {
            self.first = self.chunks.remove(0).1 + 1;
        }
        let Some(age) = max_age else { return };
        let age_ms = u64::try_from(age.as_millis()).unwrap();
        while let Some((_, last)) = self.chunks.first()
            && time(*last) + age_ms < keep.now_ms
        {
            self.first = self.chunks.remove(0).1 + 1;
        }
    }
}

/// Batches at random, and what the store holds after each.
pub(super) struct Workload {
    random: u64,
    pub(super) state: State,
    /// What was only written: the next commit repeats it.
    written: Batch,
    next_id: TopicId,
}

/// One call of the store.
pub(super) struct Op {
    pub(super) batch: Batch,
    pub(super) is_commit: bool,
}

impl Workload {
    pub(super) fn new(seed: u64) -> Self {
        let random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        Self { random, state: State::default(), written: Batch::default(), next_id: 1 }
    }

    fn below(&mut self, bound: u64) -> u64 {
        random(&mut self.random) % bound
    }

    pub(super) fn next(&mut self) -> Op {
        let is_commit = self.below(5) < 3;
        let mut batch =
            if is_commit { std::mem::take(&mut self.written) } else { Batch::default() };
        let mut fresh = Batch::default();
        if self.state.topics.len() < 3 || self.below(10) == 0 {
            fresh.topics.push(new_topic(self.next_id));
            self.next_id += 1;
        }
        let mut scratch = self.state.clone();
        scratch.apply(&fresh);
        for _ in 0..=self.below(3) {
            let ids: Vec<_> = scratch.topics.keys().copied().collect();
            let id = ids[usize::try_from(self.below(ids.len() as u64)).unwrap()];
            let run = run(id, scratch.topics[&id].tail + 1, 1 + self.below(20));
            scratch.apply(&Batch { runs: vec![run.clone()], ..Batch::default() });
            fresh.runs.push(run);
        }
        batch.topics.extend(fresh.topics.iter().cloned());
        batch.runs.extend(fresh.runs.iter().cloned());
        if is_commit {
            self.add_the_rest(&mut batch, &scratch);
        } else {
            self.written.topics.extend(fresh.topics);
            self.written.runs.extend(fresh.runs);
        }
        self.state.apply(&batch);
        Op { batch, is_commit }
    }

    fn add_the_rest(&mut self, batch: &mut Batch, state: &State) {
        for (id, topic) in &state.topics {
            let now_ms = time(topic.tail);
            let policy = match self.below(6) {
                0 => Policy { max_events: 1 + self.below(40), ..super::KEEP_ALL },
                1 => Policy { max_bytes: 1 + self.below(9_000), ..super::KEEP_ALL },
                2 => Policy { max_age: Some(Duration::from_millis(200)), ..super::KEEP_ALL },
                _ => continue,
            };
            batch.keeps.push(Keep { topic: *id, policy, now_ms: now_ms + self.below(80) });
        }
        for (id, topic) in &state.topics {
            if 0 < topic.tail && self.below(3) == 0 {
                batch.positions.push(position(*id, 1 + self.below(topic.tail)));
            }
        }
        if self.below(4) == 0 {
            batch.keys_before_ms = time(self.below(60));
        }
        if 4 < state.topics.len() && self.below(3) == 0 {
            batch.forgotten.extend(state.topics.keys().next());
        }
        if self.below(2) == 0 {
            batch.state = Some(Box::new(self.change_state(state)));
        }
    }

    /// Some keys change, a few are deleted, and of some deletions nothing is left.
    fn change_state(&mut self, before: &State) -> StateBatch {
        let (_, horizon, mut version) = before.place.unwrap_or_default();
        let mut batch = state(Vec::new());
        batch.is_whole = self.below(12) == 0;
        if batch.is_whole {
            batch.changes.extend(before.values.values().cloned());
        }
        for _ in 0..=self.below(4) {
            version += 1;
            let key = format!("home/{}", self.below(12));
            batch.changes.push(value(&key, version, self.below(4) == 0));
        }
        let gone = before.values.values().find(|entry| entry.value.is_none());
        let gone = gone.filter(|gone| batch.changes.iter().all(|change| change.key != gone.key));
        batch.horizon = gone.map_or(horizon, |gone| gone.version.max(horizon));
        batch.forgotten.extend(gone.map(|gone| gone.key.clone()));
        batch.upto = version;
        batch
    }
}

/// Takes out of `batch` what a store holds already, as one does who has recovered it.
pub(super) fn strip(batch: &mut Batch, held: &BTreeMap<TopicId, u64>) {
    batch.topics.retain(|topic| !held.contains_key(&topic.id));
    let is_new = |run: &Run| held.get(&run.topic).is_none_or(|tail| *tail < run.first);
    batch.runs.retain(is_new);
}

/// The tail of each topic.
pub(super) fn tails(loaded: &Loaded) -> BTreeMap<TopicId, u64> {
    loaded.topics.iter().map(|topic| (topic.id, topic.tail)).collect()
}
