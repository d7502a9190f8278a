//! How topics, chunks of events, keys and positions are written: pure data, both directions.
//!
//! Every record begins with a CRC-32 over its key and the rest, so that neither a flipped bit nor a
//! record under another's key passes for what was written. Numbers are little-endian.

use crate::{
    name::{Name, UserName},
    store::{ConsumerChange, ConsumerState, Key, Run, StateRecord, TopicId},
    wire::{frame, position::Epoch},
};

/// What is known of a topic without looking at its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TopicRecord {
    pub(super) name: Name,
    pub(super) epoch: Epoch,
    /// The oldest event; one after the tail if there is none.
    pub(super) first: u64,
    pub(super) tail: u64,
    pub(super) newest_ms: u64,
    /// Bytes of all frames that the topic ever had.
    pub(super) bytes_ever: u64,
}

/// Consecutive events of one topic, as they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk<'a> {
    pub(super) first: u64,
    pub(super) count: u64,
    /// Bytes of all frames that the topic ever had before this chunk.
    pub(super) bytes_before: u64,
    pub(super) first_ms: u64,
    pub(super) last_ms: u64,
    pub(super) frames: &'a [u8],
}

/// What the store knows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) seed: u64,
    pub(super) incarnation: u64,
    /// Which records of the journal are not yet part of the database: those that carry it.
    pub(super) generation: u64,
}

impl TopicRecord {
    pub(super) fn encode(&self, id: TopicId) -> Vec<u8> {
        let mut out = unsealed();
        let numbers = [self.epoch.number(), self.first, self.tail, self.newest_ms, self.bytes_ever];
        push_numbers(&mut out, &numbers);
        out.extend_from_slice(self.name.as_str().as_bytes());
        seal(&id.to_le_bytes(), &mut out);
        out
    }

    pub(super) fn decode(id: TopicId, bytes: &[u8]) -> Option<TopicRecord> {
        let mut fields = unseal(&id.to_le_bytes(), bytes)?;
        let epoch = Epoch::from_number(fields.number()?);
        let (first, tail) = (fields.number()?, fields.number()?);
        let (newest_ms, bytes_ever) = (fields.number()?, fields.number()?);
        let name = Name::parse(fields.text()?).ok()?;
        let is_sane = 1 <= first && first - 1 <= tail && tail < u64::MAX;
        is_sane.then_some(TopicRecord { name, epoch, first, tail, newest_ms, bytes_ever })
    }
}

impl<'a> Chunk<'a> {
    pub(super) fn of(run: &'a Run, bytes_before: u64) -> Self {
        let Run { first, count, first_ms, last_ms, .. } = *run;
        Self { first, count, bytes_before, first_ms, last_ms, frames: &run.frames }
    }

    pub(super) fn encode(&self, topic: TopicId) -> Vec<u8> {
        let mut out = Vec::with_capacity(36 + self.frames.len());
        out.extend_from_slice(&[0; CRC_BYTES]);
        push_numbers(&mut out, &[self.count, self.bytes_before, self.first_ms, self.last_ms]);
        out.extend_from_slice(self.frames);
        seal(&pair(topic, self.first), &mut out);
        out
    }

    pub(super) fn decode(topic: TopicId, first: u64, bytes: &'a [u8]) -> Option<Self> {
        let mut fields = unseal(&pair(topic, first), bytes)?;
        let (count, bytes_before) = (fields.number()?, fields.number()?);
        let (first_ms, last_ms) = (fields.number()?, fields.number()?);
        let is_sane = 1 <= count && first.checked_add(count).is_some();
        is_sane.then_some(Self { first, count, bytes_before, first_ms, last_ms, frames: fields.0 })
    }

    /// Sequence of its last event.
    pub(super) fn last(&self) -> u64 {
        self.first + self.count - 1
    }

    /// The events from `seq` on, each with its sequence and frame.
    pub(super) fn events_from(&self, seq: u64) -> impl Iterator<Item = (u64, &'a [u8])> {
        frames(self.frames)
            .zip(self.first..)
            .take_while({
                let last = self.last();
                move |(_, at)| *at <= last
            })
            .skip_while(move |(_, at)| *at < seq)
            .map(|(frame, at)| (at, frame))
    }
}

/// The frames that stand one after the other in `bytes`.
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let (frame, rest) = bytes.split_at_checked(frame::length(bytes))?;
        bytes = rest;
        Some(frame)
    })
}

/// When the event in `frame` was appended.
pub(super) fn time_of(frame: &[u8]) -> Option<u64> {
    let rest = frame::payload(frame).strip_prefix(b"{\"type\":\"event\",\"topic\":\"")?;
    let mut at = 0;
    while *rest.get(at)? != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    let rest = rest[at + 1..].strip_prefix(b",\"seq\":")?;
    let (_, rest) = leading_number(rest)?;
    let (time, _) = leading_number(rest.strip_prefix(b",\"time\":")?)?;
    Some(time)
}

fn leading_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let len = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = bytes.split_at(len);
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, rest))
}

pub(super) fn encode_key(topic: TopicId, key: &Key) -> Vec<u8> {
    let mut out = unsealed();
    push_numbers(&mut out, &[key.time_ms]);
    out.extend_from_slice(key.text.as_bytes());
    seal(&pair(topic, key.seq), &mut out);
    out
}

pub(super) fn decode_key(topic: TopicId, seq: u64, bytes: &[u8]) -> Option<Key> {
    let mut fields = unseal(&pair(topic, seq), bytes)?;
    Some(Key { seq, time_ms: fields.number()?, text: fields.text()?.into() })
}

pub(super) fn encode_consumer(topic: TopicId, name: &str, state: ConsumerState) -> Vec<u8> {
    let mut out = unsealed();
    push_numbers(&mut out, &[state.seq, u64::from(state.deliveries), state.used_ms]);
    seal(&named(topic, name), &mut out);
    out
}

pub(super) fn decode_consumer(topic: TopicId, name: &str, bytes: &[u8]) -> Option<ConsumerChange> {
    let mut fields = unseal(&named(topic, name), bytes)?;
    let (seq, deliveries) = (fields.number()?, u32::try_from(fields.number()?).ok()?);
    let state = ConsumerState { seq, deliveries, used_ms: fields.number()? };
    Some(ConsumerChange { topic, name: UserName::parse(name).ok()?, state: Some(state) })
}

pub(super) fn encode_state(record: &StateRecord) -> Vec<u8> {
    let StateRecord { key, version, time_ms, expires_unix_ms, text, value } = record;
    let value = value.clone().unwrap_or_default();
    let mut out = unsealed();
    let expires = expires_unix_ms.unwrap_or(NEVER);
    let numbers = [*version, *time_ms, expires, value.start as u64, value.end as u64];
    push_numbers(&mut out, &numbers);
    out.extend_from_slice(text);
    seal(key.as_str().as_bytes(), &mut out);
    out
}

pub(super) fn decode_state(key: &str, bytes: &[u8]) -> Option<StateRecord> {
    let mut fields = unseal(key.as_bytes(), bytes)?;
    let (version, time_ms, expires) = (fields.number()?, fields.number()?, fields.number()?);
    let start = usize::try_from(fields.number()?).ok()?;
    let end = usize::try_from(fields.number()?).ok()?;
    let text = fields.text()?;
    // A deletion has none; a value has at least one character of JSON.
    let value = (start != 0 || end != 0).then_some(start..end);
    let is_sane = value.clone().is_none_or(|value| start < end && text.get(value).is_some());
    is_sane.then_some(StateRecord {
        key: Name::parse(key).ok()?,
        version,
        time_ms,
        expires_unix_ms: (expires != NEVER).then_some(expires),
        text: text.as_bytes().to_vec(),
        value,
    })
}

/// When a key goes that stays.
const NEVER: u64 = u64::MAX;

/// Encodes numbers that belong together under `key`.
pub(super) fn encode_numbers(key: &str, numbers: &[u64]) -> Vec<u8> {
    let mut out = unsealed();
    push_numbers(&mut out, numbers);
    seal(key.as_bytes(), &mut out);
    out
}

pub(super) fn decode_numbers<const N: usize>(key: &str, bytes: &[u8]) -> Option<[u64; N]> {
    let mut fields = unseal(key.as_bytes(), bytes)?;
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = fields.number()?;
    }
    Some(numbers)
}

/// What is left to decode.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    /// Bytes that follow their own count.
    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    /// All that is left.
    fn text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.0).ok()
    }
}

pub(super) fn push_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

pub(super) fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    push_numbers(out, &[bytes.len() as u64]);
    out.extend_from_slice(bytes);
}

const CRC_BYTES: usize = 4;

fn unsealed() -> Vec<u8> {
    vec![0; CRC_BYTES]
}

fn seal(key: &[u8], record: &mut [u8]) {
    let (crc, body) = record.split_at_mut(CRC_BYTES);
    crc.copy_from_slice(&checksum(key, body).to_le_bytes());
}

fn unseal<'a>(key: &[u8], record: &'a [u8]) -> Option<Fields<'a>> {
    let (crc, body) = record.split_first_chunk()?;
    (u32::from_le_bytes(*crc) == checksum(key, body)).then_some(Fields(body))
}

pub(super) fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}

fn pair(topic: TopicId, seq: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&topic.to_le_bytes());
    key[8..].copy_from_slice(&seq.to_le_bytes());
    key
}

fn named(topic: TopicId, name: &str) -> Vec<u8> {
    [&topic.to_le_bytes()[..], name.as_bytes()].concat()
}

#[cfg(test)]
mod tests;
