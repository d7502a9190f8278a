//! One commit: everything of a batch in one transaction of the database.

use std::collections::{BTreeSet, HashMap};

use redb::{ReadableTable, Table, WriteTransaction};

use crate::store::{
    Batch, Committed, ConsumerChange, Keep, Key, NewTopic, Run, StoreError, TopicId, Trimmed,
    backend::failed,
    facts::{Facts, Oldest, Topic},
    record::{self, Chunk, TopicRecord},
    retention,
    tables::{CONSUMERS, EVENTS, KEYS, TOPICS, put_header},
    values,
};

const COMMIT: &str = "write to the store";

/// Idempotency keys that one commit forgets at most.
const KEYS_MAX: usize = 1_024;

type Events<'t> = Table<'t, (TopicId, u64), &'static [u8]>;

/// What a commit is about, beside the batch.
#[derive(Debug, Default)]
pub(super) struct Journaled {
    /// Up to which event topics were written to the journal. The batch must contain them.
    pub(super) upto: HashMap<TopicId, u64>,
    /// Whether the journal holds anything: the commit then makes it obsolete.
    pub(super) is_used: bool,
}

/// Writes `batch` and returns when it is on disk. After an error the facts are not to be trusted.
pub(super) fn commit(
    db: &redb::Database,
    facts: &mut Facts,
    batch: &Batch,
    journaled: &Journaled,
) -> Result<Committed, StoreError> {
    let txn = db.begin_write().map_err(failed(COMMIT))?;
    let mut changed = BTreeSet::new();
    for topic in &batch.topics {
        add_topic(facts, topic)?;
        changed.insert(topic.id);
    }
    let mut done = Committed::default();
    {
        let mut events = None;
        for run in &batch.runs {
            append(opened(&mut events, &txn)?, facts, run)?;
            changed.insert(run.topic);
        }
        for keep in &batch.keeps {
            let Some(topic) = facts.topics.get_mut(&keep.topic) else { continue };
            retain(&mut events, &txn, (keep, topic), &mut done)?;
        }
    }
    changed.extend(done.trimmed.iter().map(|trimmed| trimmed.topic));
    for (id, upto) in &journaled.upto {
        let tail = facts.topics.get(id).map_or(0, |topic| topic.record.tail);
        if tail < *upto {
            return Err(misuse(format!("topic {id} was written up to {upto}, not to {tail}")));
        }
    }
    put_keys(&txn, facts, &batch.runs)?;
    put_positions(&txn, &batch.positions)?;
    forget(&txn, facts, &batch.forgotten)?;
    expire_keys(&txn, facts, batch.keys_before_ms)?;
    put_topics(&txn, facts, &changed)?;
    if let Some(state) = &batch.state {
        values::put(&txn, state)?;
    }
    if journaled.is_used {
        facts.header.generation = facts.header.generation.wrapping_add(1);
    }
    if !batch.forgotten.is_empty() {
        facts.header.incarnation += 1;
    }
    if journaled.is_used || !batch.forgotten.is_empty() {
        put_header(&txn, facts.header)?;
    }
    txn.commit().map_err(failed(COMMIT))?;
    Ok(done)
}

/// Whether a commit of `batch` would change anything.
pub(super) fn has_work(facts: &Facts, batch: &Batch) -> bool {
    let Batch { keeps, keys_before_ms, .. } = batch;
    let is_old = |(time_ms, _): &(u64, TopicId)| *time_ms < *keys_before_ms;
    let trims = |keep: &Keep| {
        facts.topics.get(&keep.topic).is_some_and(|topic| retention::has_work(topic, keep))
    };
    !batch.is_idle() || facts.expiry.first().is_some_and(is_old) || keeps.iter().any(trims)
}

/// Writes something that changes nothing, to see whether it can be written.
pub(super) fn probe(db: &redb::Database, facts: &Facts) -> Result<(), StoreError> {
    let txn = db.begin_write().map_err(failed(COMMIT))?;
    put_header(&txn, facts.header)?;
    txn.commit().map_err(failed(COMMIT))
}

/// Opens the table of events when it is needed, once.
fn opened<'a, 't>(
    events: &'a mut Option<Events<'t>>,
    txn: &'t WriteTransaction,
) -> Result<&'a mut Events<'t>, StoreError> {
    match events {
        Some(events) => Ok(events),
        None => Ok(events.insert(txn.open_table(EVENTS).map_err(failed(COMMIT))?)),
    }
}

/// A batch that does not continue what is there: a bug above the store.
fn misuse(why: String) -> StoreError {
    StoreError::Damaged { what: COMMIT, why }
}

fn add_topic(facts: &mut Facts, topic: &NewTopic) -> Result<(), StoreError> {
    let NewTopic { id, ref name, epoch, tail } = *topic;
    let renewed = |topic: &&mut Topic| topic.record.name == *name && topic.record.epoch != epoch;
    if let Some(topic) = facts.topics.get_mut(&id).filter(renewed) {
        topic.record.epoch = epoch;
        return Ok(());
    }
    if facts.topics.contains_key(&id) {
        return Err(misuse(format!("topic {id} is there already")));
    }
    let record = TopicRecord {
        name: name.clone(),
        epoch,
        first: tail + 1,
        tail,
        newest_ms: 0,
        bytes_ever: 0,
    };
    facts.topics.insert(id, Topic::new(record));
    Ok(())
}

fn append(events: &mut Events<'_>, facts: &mut Facts, run: &Run) -> Result<(), StoreError> {
    let id = run.topic;
    let topic = facts.topics.get_mut(&id);
    let topic = topic.ok_or_else(|| misuse(format!("topic {id} is not known")))?;
    let record = &mut topic.record;
    if run.first != record.tail + 1 || run.count == 0 {
        let (first, count, tail) = (run.first, run.count, record.tail);
        return Err(misuse(format!("topic {id} does not go on from {tail} with {first}+{count}")));
    }
    let chunk = Chunk::of(run, record.bytes_ever);
    events.insert((id, chunk.first), chunk.encode(id).as_slice()).map_err(failed(COMMIT))?;
    record.tail = chunk.last();
    record.newest_ms = chunk.last_ms;
    record.bytes_ever += chunk.frames.len() as u64;
    topic.oldest.get_or_insert(Oldest::of(&chunk));
    Ok(())
}

fn retain<'t>(
    events: &mut Option<Events<'t>>,
    txn: &'t WriteTransaction,
    (keep, topic): (&Keep, &mut Topic),
    done: &mut Committed,
) -> Result<(), StoreError> {
    let mut reason = retention::trim_count(topic, &keep.policy);
    if retention::excess(topic, keep).is_some() {
        let (why, more) = retention::trim(opened(events, txn)?, keep.topic, topic, keep)?;
        reason = why.or(reason);
        done.more |= more;
    }
    if let Some(reason) = reason {
        done.trimmed.push(Trimmed { topic: keep.topic, first: topic.record.first, reason });
    }
    Ok(())
}

fn put_topics(
    txn: &WriteTransaction,
    facts: &Facts,
    changed: &BTreeSet<TopicId>,
) -> Result<(), StoreError> {
    if changed.is_empty() {
        return Ok(());
    }
    let mut table = txn.open_table(TOPICS).map_err(failed(COMMIT))?;
    for id in changed {
        // One that is forgotten in the same commit has no facts any more.
        if let Some(topic) = facts.topics.get(id) {
            table.insert(*id, topic.record.encode(*id).as_slice()).map_err(failed(COMMIT))?;
        }
    }
    Ok(())
}

fn put_keys(txn: &WriteTransaction, facts: &mut Facts, runs: &[Run]) -> Result<(), StoreError> {
    if runs.iter().all(|run| run.keys.is_empty()) {
        return Ok(());
    }
    let mut table = txn.open_table(KEYS).map_err(failed(COMMIT))?;
    for run in runs {
        for key in &run.keys {
            let value = record::encode_key(run.topic, key);
            table.insert((run.topic, key.seq), value.as_slice()).map_err(failed(COMMIT))?;
            let Key { seq, time_ms, .. } = *key;
            if let Some(topic) = facts.topics.get_mut(&run.topic)
                && topic.oldest_key.is_none()
            {
                topic.oldest_key = Some((seq, time_ms));
                facts.expiry.insert((time_ms, run.topic));
            }
        }
    }
    Ok(())
}

fn put_positions(txn: &WriteTransaction, positions: &[ConsumerChange]) -> Result<(), StoreError> {
    if positions.is_empty() {
        return Ok(());
    }
    let mut table = txn.open_table(CONSUMERS).map_err(failed(COMMIT))?;
    for change in positions {
        let key = (change.topic, change.name.as_str());
        match change.state {
            Some(state) => {
                let value = record::encode_consumer(key.0, key.1, state);
                table.insert(key, value.as_slice()).map_err(failed(COMMIT))?;
            }
            None => drop(table.remove(key).map_err(failed(COMMIT))?),
        }
    }
    Ok(())
}

fn forget(
    txn: &WriteTransaction,
    facts: &mut Facts,
    forgotten: &[TopicId],
) -> Result<(), StoreError> {
    if forgotten.is_empty() {
        return Ok(());
    }
    let mut topics = txn.open_table(TOPICS).map_err(failed(COMMIT))?;
    let mut events = txn.open_table(EVENTS).map_err(failed(COMMIT))?;
    let mut keys = txn.open_table(KEYS).map_err(failed(COMMIT))?;
    let mut consumers = txn.open_table(CONSUMERS).map_err(failed(COMMIT))?;
    for &id in forgotten {
        if let Some((_, time_ms)) = facts.topics.remove(&id).and_then(|topic| topic.oldest_key) {
            facts.expiry.remove(&(time_ms, id));
        }
        drop(topics.remove(id).map_err(failed(COMMIT))?);
        let all = (id, 0)..=(id, u64::MAX);
        events.retain_in(all.clone(), |_, _| false).map_err(failed(COMMIT))?;
        keys.retain_in(all, |_, _| false).map_err(failed(COMMIT))?;
        let all = (id, "")..(id.saturating_add(1), "");
        consumers.retain_in(all, |_, _| false).map_err(failed(COMMIT))?;
    }
    Ok(())
}

fn expire_keys(
    txn: &WriteTransaction,
    facts: &mut Facts,
    before_ms: u64,
) -> Result<(), StoreError> {
    if facts.expiry.first().is_none_or(|(time_ms, _)| before_ms <= *time_ms) {
        return Ok(());
    }
    let mut table = txn.open_table(KEYS).map_err(failed(COMMIT))?;
    for _ in 0..KEYS_MAX {
        let Some(&(time_ms, id)) = facts.expiry.first() else { break };
        let Some(topic) = facts.topics.get_mut(&id).filter(|_| time_ms < before_ms) else { break };
        facts.expiry.pop_first();
        let Some((seq, _)) = topic.oldest_key.take() else { continue };
        drop(table.remove((id, seq)).map_err(failed(COMMIT))?);
        let mut rest = table.range((id, seq)..=(id, u64::MAX)).map_err(failed(COMMIT))?;
        if let Some(entry) = rest.next() {
            let (key, value) = entry.map_err(failed(COMMIT))?;
            let (_, seq) = key.value();
            let key = record::decode_key(id, seq, value.value());
            let time_ms = key.map_or(0, |key| key.time_ms);
            topic.oldest_key = Some((seq, time_ms));
            facts.expiry.insert((time_ms, id));
        }
    }
    Ok(())
}
