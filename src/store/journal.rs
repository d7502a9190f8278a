//! The journal: batches that were handed to the operating system and not yet to the database.
//!
//! One record after the other: bytes of the payload (u32), CRC-32 over all that follows (u32), the
//! generation (u64), the payload. A record counts only while its generation is the database's.
//! Every commit that makes the journal obsolete moves the database on to another one, in the same
//! transaction; that the file is emptied afterwards only saves room. So what an older journal
//! leaves in the file, because a crash undid its truncation, is never taken for something to apply.

use std::{collections::HashMap, io, sync::Arc};

use crate::{
    name::Name,
    store::{
        Batch, Key, NewTopic, Run, StoreError, TopicId,
        backend::{io_failed, open_failed},
        commit::Journaled,
        disk::{Disk, DiskFile},
        facts::Facts,
        record::{Fields, checksum, push_bytes, push_numbers},
    },
    wire::position::Epoch,
};

/// Name of the journal's file.
pub(super) const FILE: &str = "journal";

const WRITE: &str = "write to the journal";
const READ: &str = "read the journal";
const HEAD_BYTES: usize = 16;

/// The open journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: Arc<dyn DiskFile>,
    end: u64,
    /// Up to which event topics were written.
    upto: HashMap<TopicId, u64>,
}

/// What the journal has for the database.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) batch: Batch,
    /// Bytes behind it that are no whole record, unless they are the torn last one.
    pub(super) ignored: u64,
}

impl Journal {
    pub(super) fn open(disk: &dyn Disk) -> Result<Journal, StoreError> {
        let place = || format!("{}/{FILE}", disk.place());
        let file = disk.open(FILE).map_err(open_failed(place(), READ))?;
        let end = file.len().map_err(io_failed(READ))?;
        Ok(Journal { file, end, upto: HashMap::new() })
    }

    /// Bytes that are written and not yet obsolete.
    pub(super) fn bytes(&self) -> u64 {
        self.end
    }

    /// What a commit must know of the journal.
    pub(super) fn facts(&self) -> Journaled {
        Journaled { upto: self.upto.clone(), is_used: 0 < self.end }
    }

    /// Appends the topics and runs of `batch`.
    pub(super) fn write(&mut self, facts: &Facts, batch: &Batch) -> Result<(), StoreError> {
        let refused = |why| StoreError::Damaged { what: WRITE, why };
        for topic in &batch.topics {
            let id = topic.id;
            if facts.topics.contains_key(&id) || self.upto.insert(id, 0).is_some() {
                return Err(refused(format!("topic {id} is there already")));
            }
        }
        for run in &batch.runs {
            let (id, first, count) = (run.topic, run.first, run.count);
            let stored = facts.topics.get(&id).map(|topic| topic.record.tail);
            let tail = self.upto.get(&id).copied().or(stored);
            let tail = tail.ok_or_else(|| refused(format!("topic {id} is not known")))?;
            if first != tail + 1 || count == 0 {
                let why = format!("topic {id} does not go on from {tail} with {first}+{count}");
                return Err(refused(why));
            }
            self.upto.insert(id, tail + count);
        }
        let record = encode(facts.header.generation, batch).map_err(io_failed(WRITE))?;
        self.file.write_at(self.end, &record).map_err(io_failed(WRITE))?;
        self.end += record.len() as u64;
        Ok(())
    }

    /// Empties the journal after a commit that made it obsolete.
    pub(super) fn empty(&mut self) -> Result<(), StoreError> {
        if 0 < self.end {
            self.upto.clear();
            self.file.set_len(0).map_err(io_failed("empty the journal"))?;
            self.end = 0;
        }
        Ok(())
    }

    /// Reads what the database does not have yet.
    pub(super) fn replay(&self, facts: &Facts) -> Result<Replay, StoreError> {
        let mut replay = Replay::default();
        // What comes later in the journal builds on this.
        let mut tails: HashMap<TopicId, u64> = HashMap::new();
        let mut at = 0;
        while at < self.end {
            match self.record(at, facts.header.generation)? {
                Found::Whole(batch, next) if continues(&batch, facts, &mut tails) => {
                    let Batch { topics, runs, .. } = *batch;
                    replay.batch.topics.extend(topics);
                    replay.batch.runs.extend(runs);
                    at = next;
                }
                Found::Obsolete | Found::Torn => break,
                Found::Whole(..) | Found::Garbage => {
                    replay.ignored = self.end - at;
                    break;
                }
            }
        }
        Ok(replay)
    }

    fn record(&self, at: u64, generation: u64) -> Result<Found, StoreError> {
        let left = usize::try_from(self.end - at).unwrap_or(usize::MAX);
        let mut head = [0; HEAD_BYTES];
        if left < HEAD_BYTES {
            return Ok(Found::Torn);
        }
        self.file.read_at(at, &mut head).map_err(io_failed(READ))?;
        let [len, crc] = [0, 4].map(|at| {
            u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes are four bytes"))
        });
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if left - HEAD_BYTES < len {
            return Ok(Found::Torn);
        }
        let mut payload = vec![0; len];
        self.file.read_at(at + HEAD_BYTES as u64, &mut payload).map_err(io_failed(READ))?;
        if checksum(&head[8..], &payload) != crc {
            let is_last = left - HEAD_BYTES == len;
            return Ok(if is_last { Found::Torn } else { Found::Garbage });
        }
        if head[8..] != generation.to_le_bytes() {
            return Ok(Found::Obsolete);
        }
        let next = at + (HEAD_BYTES + len) as u64;
        Ok(decode(&payload).map_or(Found::Garbage, |batch| Found::Whole(Box::new(batch), next)))
    }
}

/// What stands at a place in the journal.
enum Found {
    /// A record, and where the next one begins.
    Whole(Box<Batch>, u64),
    /// A record of another generation.
    Obsolete,
    /// The last one, not all of it.
    Torn,
    Garbage,
}

/// Whether `batch` goes on where the database and the records before it end.
fn continues(batch: &Batch, facts: &Facts, tails: &mut HashMap<TopicId, u64>) -> bool {
    for topic in &batch.topics {
        if facts.topics.contains_key(&topic.id) || tails.insert(topic.id, 0).is_some() {
            return false;
        }
    }
    batch.runs.iter().all(|run| {
        let stored = facts.topics.get(&run.topic).map(|topic| topic.record.tail);
        let Some(tail) = tails.get(&run.topic).copied().or(stored) else { return false };
        tails.insert(run.topic, tail + run.count);
        run.first == tail + 1
    })
}

pub(super) fn encode(generation: u64, batch: &Batch) -> io::Result<Vec<u8>> {
    let frames: usize = batch.runs.iter().map(|run| run.frames.len() + 128).sum();
    let mut out = Vec::with_capacity(HEAD_BYTES + 64 + frames);
    out.resize(HEAD_BYTES, 0);
    push_numbers(&mut out, &[batch.topics.len() as u64]);
    for topic in &batch.topics {
        push_numbers(&mut out, &[topic.id, topic.epoch.number()]);
        push_bytes(&mut out, topic.name.as_str().as_bytes());
    }
    push_numbers(&mut out, &[batch.runs.len() as u64]);
    for run in &batch.runs {
        push_numbers(&mut out, &[run.topic, run.first, run.count, run.first_ms, run.last_ms]);
        push_bytes(&mut out, &run.frames);
        push_numbers(&mut out, &[run.keys.len() as u64]);
        for key in &run.keys {
            push_numbers(&mut out, &[key.seq, key.time_ms]);
            push_bytes(&mut out, key.text.as_bytes());
        }
    }
    let len = u32::try_from(out.len() - HEAD_BYTES).map_err(io::Error::other)?;
    let (head, payload) = out.split_at_mut(HEAD_BYTES);
    head[8..].copy_from_slice(&generation.to_le_bytes());
    let crc = checksum(&head[8..], payload);
    head[..4].copy_from_slice(&len.to_le_bytes());
    head[4..8].copy_from_slice(&crc.to_le_bytes());
    Ok(out)
}

fn decode(payload: &[u8]) -> Option<Batch> {
    let mut fields = Fields(payload);
    let mut batch = Batch::default();
    for _ in 0..fields.number()? {
        let (id, epoch) = (fields.number()?, Epoch::from_number(fields.number()?));
        let name = Name::parse(std::str::from_utf8(fields.bytes()?).ok()?).ok()?;
        batch.topics.push(NewTopic { id, name, epoch, tail: 0 });
    }
    for _ in 0..fields.number()? {
        let (topic, first, count) = (fields.number()?, fields.number()?, fields.number()?);
        let (first_ms, last_ms) = (fields.number()?, fields.number()?);
        // As for a chunk: what goes on from it has a sequence too.
        first.checked_add(count).filter(|_| 1 <= count)?;
        let frames = fields.bytes()?.to_vec();
        let mut keys = Vec::new();
        for _ in 0..fields.number()? {
            let (seq, time_ms) = (fields.number()?, fields.number()?);
            let text = std::str::from_utf8(fields.bytes()?).ok()?.into();
            keys.push(Key { seq, time_ms, text });
        }
        batch.runs.push(Run { topic, first, count, first_ms, last_ms, frames, keys });
    }
    fields.0.is_empty().then_some(batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Such a run was taken, and the next one then panicked with its sequence.
    #[test]
    fn a_run_without_events_or_with_more_than_there_are_sequences_is_no_record() {
        let payload = |first, count| {
            let (frames, keys) = (b"frames".to_vec(), Vec::new());
            let run = Run { topic: 1, first, count, first_ms: 2, last_ms: 3, frames, keys };
            let batch = Batch { runs: vec![run], ..Batch::default() };
            encode(7, &batch).unwrap().split_off(HEAD_BYTES)
        };
        for (first, count) in [(1, 0), (1, u64::MAX), (u64::MAX, 1)] {
            assert!(decode(&payload(first, count)).is_none(), "{first}+{count}");
        }
        assert!(decode(&payload(1, u64::MAX - 1)).is_some());
        assert!(decode(&payload(5, 1)).is_some());
    }
}
