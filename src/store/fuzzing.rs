//! What the fuzz targets see of the encodings: records and journals as bytes, there and back.
//!
//! Built with `--cfg fuzzing` alone; see `fuzz/`.

use std::collections::BTreeSet;

use crate::store::{
    Batch, NewTopic, StoreError, TopicId,
    facts::{Facts, Topic},
    journal::{self, Journal},
    record::{self, Chunk, Header, TopicRecord},
    sim::SimDisk,
};

/// A kind of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Topic,
    Chunk,
    Key,
    Consumer,
    State,
    Numbers,
}

/// Under which key a record stands; of the numbers, each kind uses what it needs.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub topic: TopicId,
    pub seq: u64,
    pub name: &'a str,
}

/// A record of this kind with any body, whose checksum is right.
#[must_use]
pub fn sealed(kind: Kind, at: Place<'_>, body: &[u8]) -> Vec<u8> {
    let Place { topic, seq, name } = at;
    let key = match kind {
        Kind::Topic => topic.to_le_bytes().to_vec(),
        Kind::Chunk | Kind::Key => [topic.to_le_bytes(), seq.to_le_bytes()].concat(),
        Kind::Consumer => [&topic.to_le_bytes()[..], name.as_bytes()].concat(),
        Kind::State | Kind::Numbers => name.as_bytes().to_vec(),
    };
    [&record::checksum(&key, body).to_le_bytes()[..], body].concat()
}

/// What `bytes` mean, encoded again; `None` if they are no record of this kind.
#[must_use]
pub fn again(kind: Kind, at: Place<'_>, bytes: &[u8]) -> Option<Vec<u8>> {
    let Place { topic, seq, name } = at;
    Some(match kind {
        Kind::Topic => TopicRecord::decode(topic, bytes)?.encode(topic),
        Kind::Chunk => Chunk::decode(topic, seq, bytes)?.encode(topic),
        Kind::Key => record::encode_key(topic, &record::decode_key(topic, seq, bytes)?),
        Kind::Consumer => {
            let change = record::decode_consumer(topic, name, bytes)?;
            record::encode_consumer(topic, change.name.as_str(), change.state?)
        }
        Kind::State => record::encode_state(&record::decode_state(name, bytes)?),
        Kind::Numbers => record::encode_numbers(name, &record::decode_numbers::<3>(name, bytes)?),
    })
}

/// One record of the journal.
///
/// # Errors
///
/// It is too large.
pub fn journal_record(generation: u64, batch: &Batch) -> std::io::Result<Vec<u8>> {
    journal::encode(generation, batch)
}

/// One record of the journal with any payload, whose checksum is right.
#[must_use]
pub fn journal_sealed(generation: u64, payload: &[u8]) -> Vec<u8> {
    let generation = generation.to_le_bytes();
    let crc = record::checksum(&generation, payload);
    let len = u32::try_from(payload.len()).expect("an input is far below 4 GiB");
    [&len.to_le_bytes()[..], &crc.to_le_bytes(), &generation, payload].concat()
}

/// What a database of this generation that has `topics`, each without events, takes out of the
/// journal that `bytes` are, and how many bytes it passes over as damaged.
///
/// # Errors
///
/// None: the disk is in memory.
pub fn replay(
    generation: u64,
    topics: &[NewTopic],
    bytes: Vec<u8>,
) -> Result<(Batch, u64), StoreError> {
    let disk = SimDisk::default();
    disk.put(journal::FILE, bytes);
    let header = Header { seed: 0, incarnation: 0, generation };
    let topic = |new: &NewTopic| -> (TopicId, Topic) {
        let (name, epoch, tail) = (new.name.clone(), new.epoch, new.tail);
        let first = tail + 1;
        let record = TopicRecord { name, epoch, first, tail, newest_ms: 0, bytes_ever: 0 };
        (new.id, Topic::new(record))
    };
    let topics = topics.iter().map(topic).collect();
    let facts = Facts { header, topics, expiry: BTreeSet::new() };
    let replay = Journal::open(&disk)?.replay(&facts)?;
    Ok((replay.batch, replay.ignored))
}
