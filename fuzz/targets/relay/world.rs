//! What all clients together were told of topics, and what follows from it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// A topic: its name, how many events it keeps if that is bounded, and whether it is durable.
pub const TOPICS: [(&str, Option<u64>, bool); 4] = [
    ("d/all", None, true),
    ("d/few", Some(FEW), true),
    ("m/all", None, false),
    ("m/few", Some(FEW), false),
];
pub const FEW: u64 = 4;

/// A publish. Its data is its number.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub topic: usize,
    pub key: Option<usize>,
    pub connection: u64,
}

#[derive(Debug, Default)]
pub struct World {
    pub sent: Vec<Sent>,
    pub topics: [Life; TOPICS.len()],
}

/// One life of a topic.
#[derive(Debug, Default)]
pub struct Life {
    pub epoch: Option<String>,
    /// By sequence, the publish that an event is.
    events: BTreeMap<u64, u64>,
    /// By sequence, the key that it has, as `published` said.
    keys: BTreeMap<u64, usize>,
    /// By key, the sequence.
    seqs: BTreeMap<usize, u64>,
    /// Publishes that were answered, without duplicates.
    confirmed: BTreeSet<u64>,
    /// The highest sequence that anybody was told.
    pub tail: u64,
    /// The last event of any gap.
    lost: u64,
}

pub fn topic(message: &Value) -> usize {
    let name = message["topic"].as_str().unwrap_or_default();
    let at = TOPICS.iter().position(|(known, ..)| *known == name);
    at.unwrap_or_else(|| panic!("of which topic is {message}"))
}

pub fn number(message: &Value, field: &str) -> u64 {
    message[field].as_u64().unwrap_or_else(|| panic!("{message} has no number {field}"))
}

impl World {
    /// Promise 4: the epoch is what it was.
    pub fn epoch(&mut self, topic: usize, message: &Value) -> String {
        let found = message["epoch"].as_str().unwrap_or_else(|| panic!("no epoch: {message}"));
        let known = self.topics[topic].epoch.get_or_insert_with(|| found.to_owned());
        assert_eq!(known, found, "the epoch of {} has changed: {message}", TOPICS[topic].0);
        found.to_owned()
    }

    /// Somebody got event `seq`; everybody gets the same one.
    pub fn saw(&mut self, topic: usize, seq: u64, data: &Value) {
        let number = data.as_u64().unwrap_or_else(|| panic!("nobody published {data}"));
        let sent = self.sent.get(number as usize).unwrap_or_else(|| panic!("not sent: {number}"));
        assert_eq!(sent.topic, topic, "{number} was published to another topic");
        let life = &mut self.topics[topic];
        let known = life.events.insert(seq, number);
        assert!(known.is_none_or(|known| known == number), "event {seq} was {known:?}: {number}");
        if let Some(key) = life.keys.get(&seq) {
            assert_eq!(sent.key, Some(*key), "event {seq} has another key");
        }
        life.tail = life.tail.max(seq);
    }

    /// Promises 5 and 7: what `published` says of the publish `number`.
    pub fn published(&mut self, number: u64, reply: &Value) {
        let Sent { topic, key, .. } = self.sent[number as usize];
        self.epoch(topic, reply);
        let seq = number_of(reply);
        let expected = if TOPICS[topic].2 { "synced" } else { "memory" };
        assert_eq!(reply["durability"], expected, "{reply}");
        let life = &mut self.topics[topic];
        life.tail = life.tail.max(seq);
        let is_duplicate = reply["duplicate"] == true;
        if let Some(key) = key {
            let known = *life.seqs.entry(key).or_insert(seq);
            assert_eq!(known, seq, "key {key} has two events: {reply}");
            let other = *life.keys.entry(seq).or_insert(key);
            assert_eq!(other, key, "event {seq} has two keys: {reply}");
            let event = life.events.get(&seq).map(|number| self.sent[*number as usize].key);
            assert!(event.is_none_or(|found| found == Some(key)), "{reply}: {event:?}");
        }
        assert!(key.is_some() || !is_duplicate, "{reply} without a key");
        if !is_duplicate {
            self.saw(topic, seq, &number.into());
            assert!(self.topics[topic].confirmed.insert(number), "{number} was stored twice");
        }
    }

    /// Promise 2: only what retention may remove is announced as gone.
    pub fn gone(&mut self, topic: usize, to: u64) {
        assert!(TOPICS[topic].1.is_some(), "{} keeps everything", TOPICS[topic].0);
        let life = &mut self.topics[topic];
        life.lost = life.lost.max(to);
    }

    /// What is in memory alone ends with the relay.
    pub fn restarted(&mut self) {
        for (life, (_, _, is_durable)) in self.topics.iter_mut().zip(TOPICS) {
            if !is_durable {
                *life = Life::default();
            }
        }
    }

    /// What a topic has in the end, from event `first` on: everything that anybody was told of.
    pub fn judge(&self, topic: usize, (first, tail): (u64, u64), found: &BTreeMap<u64, u64>) {
        let (name, keeps, _) = TOPICS[topic];
        let life = &self.topics[topic];
        assert!(life.tail <= tail, "{name} ends with {tail}, {} was told", life.tail);
        let may_be_gone = keeps.map_or(0, |keeps| tail.saturating_sub(keeps));
        assert!(first <= may_be_gone + 1, "{name} lacks events before {first} of {tail}");
        assert!(
            life.lost <= may_be_gone,
            "a gap up to {}, {name} has {first} to {tail}",
            life.lost
        );
        let numbers: BTreeSet<u64> = life.events.values().copied().collect();
        assert_eq!(numbers.len(), life.events.len(), "a publish is there twice: {life:?}");
        for (seq, number) in life.events.range(first..) {
            assert_eq!(found.get(seq), Some(number), "event {seq} of {name}");
        }
        for number in &life.confirmed {
            assert!(numbers.contains(number), "{number} was confirmed and is not in {name}");
        }
        // Promise 1: what one connection publishes has rising sequences.
        let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
        for number in life.events.values() {
            let connection = self.sent[*number as usize].connection;
            let before = newest.insert(connection, *number);
            assert!(before.is_none_or(|before| before < *number), "{number} came after {before:?}");
        }
    }
}

fn number_of(reply: &Value) -> u64 {
    number(reply, "seq")
}
