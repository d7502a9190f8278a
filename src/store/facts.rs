//! What the writer knows of each topic, so that a commit need not look anything up.
//!
//! Plain data, read from the database when it is opened and kept in step by every commit.

use std::collections::{BTreeSet, HashMap};

use redb::{ReadableDatabase, ReadableTable};

use crate::store::{
    ConsumerChange, Key, Loaded, StoreError, StoredTopic, TopicId,
    backend::{failed, guarded},
    record::{self, Chunk, Header, TopicRecord},
    tables::{self, CONSUMERS, EVENTS, KEYS, TOPICS},
};

/// Everything the writer knows.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) header: Header,
    pub(super) topics: HashMap<TopicId, Topic>,
    /// Time of the oldest key of each topic that has one.
    pub(super) expiry: BTreeSet<(u64, TopicId)>,
}

/// What the writer knows of a topic.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) record: TopicRecord,
    /// The oldest chunk.
    pub(super) oldest: Option<Oldest>,
    /// Sequence and time of the oldest key.
    pub(super) oldest_key: Option<(u64, u64)>,
}

/// What retention must know of a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Oldest {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) bytes_before: u64,
    pub(super) last_ms: u64,
}

impl Oldest {
    pub(super) fn of(chunk: &Chunk<'_>) -> Self {
        let Chunk { first, bytes_before, last_ms, .. } = *chunk;
        Self { first, last: chunk.last(), bytes_before, last_ms }
    }
}

impl Topic {
    pub(super) fn new(record: TopicRecord) -> Self {
        Self { record, oldest: None, oldest_key: None }
    }

    /// Bytes of frames that are stored.
    pub(super) fn bytes(&self) -> u64 {
        self.oldest.map_or(0, |oldest| self.record.bytes_ever.saturating_sub(oldest.bytes_before))
    }
}

const LOAD: &str = "read the store";

/// Reads everything but the events and the shared state.
pub(super) fn load(db: &redb::Database) -> Result<(Facts, Loaded), StoreError> {
    guarded(LOAD, || {
        let txn = db.begin_read().map_err(failed(LOAD))?;
        let header = tables::header(&txn)?;
        let mut warnings = Vec::new();
        let mut topics = load_topics(&txn, &mut warnings)?;
        let keys = load_keys(&txn, &mut topics, &mut warnings)?;
        let consumers = load_consumers(&txn, &topics, &mut warnings)?;
        let expiry = topics
            .iter()
            .filter_map(|(id, topic)| topic.oldest_key.map(|(_, time_ms)| (time_ms, *id)))
            .collect();
        let mut stored: Vec<_> = topics.iter().map(|(id, topic)| stored(*id, topic)).collect();
        stored.sort_by_key(|topic| topic.id);
        let loaded = Loaded {
            seed: header.seed,
            incarnation: header.incarnation,
            has_lost_power: false,
            topics: stored,
            consumers,
            keys,
            state: None,
            warnings,
        };
        Ok((Facts { header, topics, expiry }, loaded))
    })
}

fn stored(id: TopicId, topic: &Topic) -> StoredTopic {
    let TopicRecord { name, epoch, first, tail, newest_ms, .. } = topic.record.clone();
    StoredTopic { id, name, epoch, first, tail, newest_ms, bytes: topic.bytes() }
}

fn load_topics(
    txn: &redb::ReadTransaction,
    warnings: &mut Vec<String>,
) -> Result<HashMap<TopicId, Topic>, StoreError> {
    let table = txn.open_table(TOPICS).map_err(failed(LOAD))?;
    let events = txn.open_table(EVENTS).map_err(failed(LOAD))?;
    let mut topics = HashMap::new();
    for entry in table.iter().map_err(failed(LOAD))? {
        let (id, value) = entry.map_err(failed(LOAD))?;
        let id = id.value();
        // Without its record nobody knows which sequences the topic has given out: going on with
        // the others would be fine, but this one would come back with numbers that were used.
        let record = TopicRecord::decode(id, value.value()).ok_or_else(|| {
            let why = format!("what is known of topic number {id} is damaged");
            StoreError::Damaged { what: LOAD, why }
        })?;
        let mut topic = Topic::new(record);
        find_ends(&events, id, &mut topic, warnings)?;
        topics.insert(id, topic);
    }
    Ok(topics)
}

/// Finds the oldest chunk, and makes sure that the newest is where it should be.
fn find_ends(
    events: &impl ReadableTable<(TopicId, u64), &'static [u8]>,
    id: TopicId,
    topic: &mut Topic,
    warnings: &mut Vec<String>,
) -> Result<(), StoreError> {
    let mut all = events.range((id, 0)..=(id, u64::MAX)).map_err(failed(LOAD))?;
    let record = &mut topic.record;
    let Some(oldest) = all.next() else {
        if record.first <= record.tail {
            let (first, tail) = (record.first, record.tail);
            warnings.push(format!(
                "the events {first} to {tail} of topic {} are lost: the file is damaged",
                record.name.as_str()
            ));
            record.first = record.tail + 1;
        }
        return Ok(());
    };
    let (key, value) = oldest.map_err(failed(LOAD))?;
    let (_, first) = key.value();
    topic.oldest = Some(Chunk::decode(id, first, value.value()).map_or(
        // Damaged: what retention does not know makes it go early.
        Oldest { first, last: first, bytes_before: 0, last_ms: 0 },
        |chunk| Oldest::of(&chunk),
    ));
    if record.first < first {
        let (lost, name) = (record.first, record.name.as_str());
        warnings.push(format!("the events {lost} to {} of topic {name} are lost", first - 1));
    }
    let newest = match all.next_back() {
        Some(newest) => newest.map_err(failed(LOAD))?,
        None => (key, value),
    };
    let (key, value) = newest;
    let (_, first) = key.value();
    let newest = Chunk::decode(id, first, value.value());
    if newest.is_none_or(|chunk| chunk.last() != record.tail) {
        let name = record.name.as_str();
        warnings.push(format!("the newest events of topic {name} are damaged"));
    }
    Ok(())
}

fn load_keys(
    txn: &redb::ReadTransaction,
    topics: &mut HashMap<TopicId, Topic>,
    warnings: &mut Vec<String>,
) -> Result<Vec<(TopicId, Key)>, StoreError> {
    let table = txn.open_table(KEYS).map_err(failed(LOAD))?;
    let (mut keys, mut damaged) = (Vec::new(), 0_u64);
    for entry in table.iter().map_err(failed(LOAD))? {
        let (at, value) = entry.map_err(failed(LOAD))?;
        let (id, seq) = at.value();
        let Some(topic) = topics.get_mut(&id) else { continue };
        let key = record::decode_key(id, seq, value.value());
        // A damaged one is removed with the first that are.
        let time_ms = key.as_ref().map_or(0, |key| key.time_ms);
        topic.oldest_key.get_or_insert((seq, time_ms));
        match key {
            Some(key) => keys.push((id, key)),
            None => damaged += 1,
        }
    }
    if 0 < damaged {
        warnings.push(format!("{damaged} idempotency keys are damaged and forgotten"));
    }
    Ok(keys)
}

fn load_consumers(
    txn: &redb::ReadTransaction,
    topics: &HashMap<TopicId, Topic>,
    warnings: &mut Vec<String>,
) -> Result<Vec<ConsumerChange>, StoreError> {
    let table = txn.open_table(CONSUMERS).map_err(failed(LOAD))?;
    let (mut consumers, mut damaged) = (Vec::new(), 0_u64);
    for entry in table.iter().map_err(failed(LOAD))? {
        let (at, value) = entry.map_err(failed(LOAD))?;
        let (id, name) = at.value();
        match record::decode_consumer(id, name, value.value()) {
            Some(consumer) if topics.contains_key(&id) => consumers.push(consumer),
            Some(_) => {}
            None => damaged += 1,
        }
    }
    if 0 < damaged {
        warnings.push(format!("the positions of {damaged} consumers are damaged and forgotten"));
    }
    Ok(consumers)
}
