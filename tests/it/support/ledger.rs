//! What clients of a relay were told, and whether a relay that comes after it keeps all of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use serde_json::{Value, json};

use super::{
    http::Http,
    peer::{Peer, number, seq},
    relay::FEW,
    values::Values,
};

/// What ended the relay, and so what must be left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process: what was `written` is there.
    Killed,
    /// The machine: what was `synced` is there.
    PowerLoss,
}

/// A `published`, and what it was the answer to.
#[derive(Clone, Debug)]
struct Receipt {
    topic: String,
    seq: u64,
    data: String,
    key: Option<String>,
    is_synced: bool,
}

/// Everything that clients know.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// What they know of the state.
    pub values: Values,
    /// By topic, as told.
    epochs: BTreeMap<String, String>,
    /// Topic and data of all that was sent, whatever became of it.
    sent: BTreeSet<(String, String)>,
    receipts: Vec<Receipt>,
    /// By topic and consumer that was answered `subscribed`: the last acknowledgement.
    consumers: BTreeMap<(String, String), u64>,
    /// By topic, what a subscriber got.
    seen: BTreeMap<String, BTreeMap<u64, String>>,
    /// What was wrong already while it was told.
    problems: Vec<String>,
}

impl Ledger {
    /// Events that were confirmed.
    #[must_use]
    pub fn confirmed(&self) -> usize {
        self.receipts.len()
    }

    pub fn note_sent(&mut self, request: &Value) {
        self.sent.insert((text(&request["topic"]), text(&request["data"])));
    }

    /// Notes the answer `published` to `request`.
    pub fn note_published(&mut self, request: &Value, reply: &Value) {
        let topic = text(&request["topic"]);
        self.note_epoch(&topic, reply);
        let receipt = Receipt {
            seq: seq(reply),
            data: text(&request["data"]),
            key: request["key"].as_str().map(str::to_owned),
            is_synced: reply["durability"] == "synced",
            topic,
        };
        let same = |known: &&Receipt| known.topic == receipt.topic && known.key == receipt.key;
        let known = self.receipts.iter().find(|known| receipt.key.is_some() && same(known));
        match known {
            Some(known) if known.seq != receipt.seq => {
                let said = format!("{known:?} was answered once more with {reply}");
                self.problems.push(said);
            }
            Some(_) => {}
            None => self.receipts.push(receipt),
        }
    }

    /// Notes the answer `subscribed` to the consumer `name` of `topic`.
    pub fn note_consumer(&mut self, topic: &str, name: &str, reply: &Value) {
        self.note_epoch(topic, reply);
        let acknowledged = self.consumers.entry((topic.to_owned(), name.to_owned())).or_default();
        if *acknowledged < seq(reply) {
            self.problems.push(format!("{name} of {topic} was put at {reply}"));
        }
    }

    pub fn note_ack(&mut self, topic: &str, name: &str, seq: u64) {
        self.consumers.insert((topic.to_owned(), name.to_owned()), seq);
    }

    /// Notes an event that a subscriber got, which has to be the one after the last that it got.
    pub fn note_event(&mut self, event: &Value) {
        let (topic, data) = (text(&event["topic"]), text(&event["data"]));
        let seen = self.seen.entry(topic).or_default();
        if let Some((last, _)) = seen.last_key_value()
            && seq(event) != last + 1
        {
            self.problems.push(format!("after event {last} a subscriber got {event}"));
        }
        seen.insert(seq(event), data);
    }

    /// The newest event of `topic` that a subscriber got.
    #[must_use]
    pub fn last_seen(&self, topic: &str) -> u64 {
        let last = self.seen.get(topic).and_then(BTreeMap::last_key_value);
        last.map_or(0, |(seq, _)| *seq)
    }

    pub fn note_epoch(&mut self, topic: &str, reply: &Value) {
        let epoch = text(&reply["epoch"]);
        let known = self.epochs.entry(topic.to_owned()).or_insert_with(|| epoch.clone());
        if *known != epoch {
            self.problems.push(format!("the epoch of {topic} was {known}: {reply}"));
        }
    }

    /// Asks the relay at `addr`, which came after this one, for everything. Returns what is wrong
    /// with its answers.
    #[must_use]
    pub fn judge(&self, addr: SocketAddr, end: End) -> Vec<String> {
        let mut problems = self.problems.clone();
        let mut peer = Peer::connect(addr);
        for (topic, epoch) in &self.epochs {
            self.judge_topic(&mut peer, (topic, epoch), end, &mut problems);
        }
        problems.extend(self.values.judge(addr));
        self.judge_consumers(addr, &mut problems);
        for receipt in self.receipts.iter().filter(|receipt| receipt.survives(end)) {
            let Receipt { topic, seq: first, data, key, .. } = receipt;
            let Some(key) = key else { continue };
            let again = json!({"type": "publish", "topic": topic, "data": data, "key": key});
            let reply = peer.request(again);
            if reply["seq"] != *first || reply["duplicate"] != true {
                problems.push(format!("{receipt:?} was not known any more: {reply}"));
            }
        }
        problems
    }

    fn judge_topic(
        &self,
        peer: &mut Peer,
        (topic, epoch): (&str, &str),
        end: End,
        problems: &mut Vec<String>,
    ) {
        // A topic that was never stored need not be there, but comes with the epoch it had.
        let head = peer.subscribe_from(topic, json!("start"));
        if head["epoch"] != epoch {
            problems.push(format!("the epoch of {topic} was {epoch}: {head}"));
        }
        let (first, tail) = (number(&head, "first"), number(&head, "tail"));
        let mut events = BTreeMap::new();
        for expected in first..=tail {
            let event = peer.message();
            let data = text(&event["data"]);
            if event["type"] != "event" || event["seq"] != expected {
                problems.push(format!("instead of event {expected} of {topic} came {event}"));
                return;
            }
            if !self.sent.contains(&(topic.to_owned(), data.clone())) {
                problems.push(format!("nobody published {event}"));
            }
            events.insert(expected, data);
        }
        let is_due = |seq: u64| topic != "always/few" || tail < seq + FEW;
        if is_due(first.saturating_sub(1)) && 1 < first {
            problems.push(format!("{topic} lacks events before {first}, of {tail}"));
        }
        for receipt in self.receipts.iter().filter(|receipt| receipt.topic == topic) {
            let Receipt { seq, data, .. } = receipt;
            let found = events.get(seq);
            if receipt.survives(end) && is_due(*seq) && found.is_none() {
                problems.push(format!("lost: {receipt:?}, {topic} has {first} to {tail}"));
            }
            // What was only written may be lost, and its number given to another.
            let is_other = receipt.survives(end) && found.is_some_and(|found| found != data);
            if is_other {
                problems.push(format!("altered: {receipt:?} is {found:?} now"));
            }
        }
        let may_vanish = end == End::PowerLoss && !topic.starts_with("always/");
        for (seq, data) in self.seen.get(topic).into_iter().flatten() {
            let found = events.get(seq);
            if is_due(*seq) && !may_vanish && found != Some(data) {
                problems.push(format!("seen: {seq} of {topic}, {data}, is {found:?} now"));
            }
        }
        let distinct: BTreeSet<_> = events.values().collect();
        if distinct.len() < events.len() && self.keyed_alone(topic) {
            problems.push(format!("something is twice in {topic}: {events:?}"));
        }
        self.judge_next(peer, topic, tail, problems);
    }

    /// Publishing goes on with the next sequence.
    fn judge_next(&self, peer: &mut Peer, topic: &str, tail: u64, problems: &mut Vec<String>) {
        let request = json!({"type": "publish", "topic": topic, "data": "afterwards"});
        let reply = peer.request(request);
        if reply["seq"] != tail + 1 || reply["duplicate"] == true {
            problems.push(format!("after event {tail} of {topic} came {reply}"));
        }
        let event = peer.message();
        if event["seq"] != tail + 1 || event["data"] != "afterwards" {
            problems.push(format!("after event {tail} of {topic} came {event}"));
        }
    }

    /// Whether every event that is known of `topic` had a key.
    fn keyed_alone(&self, topic: &str) -> bool {
        let mut own = self.receipts.iter().filter(|receipt| receipt.topic == topic);
        own.all(|receipt| receipt.key.is_some())
    }

    fn judge_consumers(&self, addr: SocketAddr, problems: &mut Vec<String>) {
        let list = Http::connect(addr).get("/v1/consumers").json();
        for ((topic, name), acknowledged) in &self.consumers {
            let is_it = |one: &&Value| one["topic"] == **topic && one["consumer"] == **name;
            let found = list["consumers"].as_array().into_iter().flatten().find(is_it);
            let Some(found) = found else {
                problems.push(format!("the consumer {name} of {topic} is gone: {list}"));
                continue;
            };
            if *acknowledged < number(found, "seq") {
                problems.push(format!("{name} acknowledged up to {acknowledged}: {found}"));
            }
        }
    }
}

impl Receipt {
    fn survives(&self, end: End) -> bool {
        self.is_synced || end == End::Killed
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}
