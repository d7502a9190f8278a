//! Promises 4, 5 and 7 against `kill -9`: the real binary on real files, killed again and again
//! while four publishers and two consumers go on as clients do.
//!
//! How often is in `LANDLINE_KILLS`; `docs/testing.md` says more.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::{
    node::{Node, Scratch},
    peer::{Incoming, Peer, number, position, seq},
    wait::{LIMIT, Watch, pause, wait_for},
};

const PUBLISHERS: u64 = 4;
const TOPICS: [&str; 2] = ["lamp", "door"];
const CONSUMERS: [(&str, &str); 2] = [("lamp", "slow"), ("door", "quick")];
/// Time between two kills, at most.
const ALIVE_MS: u64 = 120;
/// Memory keeps hardly anything, and nothing is given up for being delivered too often.
const FLAGS: [&str; 5] = ["--durable-state", "--max-tail", "4KiB", "--max-deliveries", "1000000"];

/// The relay that runs now, as its clients reach it: where it listens.
#[derive(Debug, Default)]
struct Place {
    addr: Mutex<Option<std::net::SocketAddr>>,
    stop: AtomicBool,
}

/// An event that was confirmed: topic, sequence, epoch and data.
type Confirmed = (String, u64, String, String);

/// What a consumer got of its topic.
#[derive(Debug, Default)]
struct Got {
    /// By sequence.
    events: BTreeMap<u64, String>,
    acknowledged: u64,
    connections: u64,
    again: u64,
}

impl Place {
    fn stops(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// A connection to the relay of now; `None` when there will be no more.
    fn connect(&self) -> Option<Peer> {
        wait_for("a relay to connect to", LIMIT, || {
            if self.stops() {
                return Some(None);
            }
            let addr = (*self.addr.lock())?;
            Peer::try_connect(addr).map(Some)
        })
    }
}

/// A reply to `request`, or `None` if the connection ends before.
fn ask(peer: &mut Peer, mut request: Value, id: u64) -> Option<Value> {
    request["id"] = json!(id);
    if !peer.try_send(&request) {
        return None;
    }
    loop {
        let message = next(peer)?;
        if message["id"] == id {
            return Some(message);
        }
    }
}

/// The next message, or `None` if the connection ends.
fn next(peer: &mut Peer) -> Option<Value> {
    match peer.receive(LIMIT) {
        Some(Incoming::Text(text)) => Some(serde_json::from_str(&text).expect("JSON")),
        Some(Incoming::End | Incoming::Close(_)) => None,
        other => panic!("awaited a message, got {other:?}"),
    }
}

/// Publishes one numbered event after the other, each until it is confirmed, to both topics in
/// turns. Returns what was confirmed.
fn publish(place: &Place, publisher: u64) -> Vec<Confirmed> {
    let mut confirmed = Vec::new();
    let mut peer = None;
    let mut number = 0;
    loop {
        let topic = TOPICS[number as usize % TOPICS.len()];
        let data = format!("{publisher}.{number}");
        let request = json!({"type": "publish", "topic": topic, "data": data, "key": data});
        let answer = loop {
            let connected = match peer.take() {
                Some(connected) => Some(connected),
                None => place.connect(),
            };
            // What is not confirmed by now need not be there.
            let Some(mut connected) = connected else { return confirmed };
            if let Some(reply) = ask(&mut connected, request.clone(), number + 1) {
                peer = Some(connected);
                break reply;
            }
        };
        assert_eq!(answer["type"], "published", "{answer}");
        assert_eq!(answer["durability"], "synced", "{answer}");
        let epoch = answer["epoch"].as_str().unwrap_or_default().to_owned();
        confirmed.push((topic.to_owned(), seq(&answer), epoch, data));
        number += 1;
        if place.stops() {
            return confirmed;
        }
    }
}

/// What became of a key that one client counts up.
#[derive(Debug, Default)]
struct Counted {
    /// How often it was confirmed.
    confirmed: u64,
    epoch: Option<String>,
    /// The newest value that is known, and its version.
    value: u64,
    version: u64,
    /// How often a value was there that nobody had confirmed.
    surprises: u64,
}

impl Counted {
    /// Notes what the relay says of the key: never less than was known, and the next value at most.
    fn note(&mut self, message: &Value, value: u64) {
        let epoch = self.epoch.get_or_insert_with(|| message["epoch"].as_str().unwrap().to_owned());
        assert_eq!(message["epoch"], **epoch, "{message}");
        let version = number(message, "version");
        assert!(value == self.value || value == self.value + 1, "after {self:?} came {message}");
        assert!(self.version <= version, "after {self:?} came {message}");
        assert!(value == self.value || self.version < version, "after {self:?} came {message}");
        (self.value, self.version) = (value, version);
    }
}

/// Counts a key of the state up, each time on the condition that it is as this client knows it;
/// after a lost connection it looks first.
fn count_up(place: &Place) -> Counted {
    let mut counted = Counted::default();
    while let Some(mut peer) = place.connect() {
        let get = json!({"type": "get", "key": "count"});
        let Some(found) = ask(&mut peer, get, 1) else { continue };
        if let Some(found_value) = found["values"][0]["value"].as_u64() {
            let before = counted.value;
            let mut message = found["values"][0].clone();
            message["epoch"] = found["epoch"].clone();
            counted.note(&message, found_value);
            counted.surprises += counted.value - before;
        } else {
            assert_eq!(counted.value, 0, "{found}");
        }
        for id in 2.. {
            if place.stops() {
                return counted;
            }
            let value = counted.value + 1;
            let request = json!({"type": "set", "key": "count", "value": value,
                "if_version": counted.version});
            let Some(reply) = ask(&mut peer, request, id) else { break };
            assert_eq!(reply["type"], "stored", "{counted:?}: {reply}");
            counted.note(&reply, value);
            counted.confirmed += 1;
        }
    }
    counted
}

/// Reads and acknowledges, over as many connections as it takes. Asserts that each begins right
/// after an acknowledged event, and has no hole.
fn consume(place: &Place, (topic, name): (&str, &str), batch: u64) -> Got {
    let mut got = Got::default();
    while let Some(mut peer) = place.connect() {
        got.connections += 1;
        let request = json!({"type": "subscribe", "topic": topic, "from": "start", "ack": true,
            "window": 16, "consumer": name});
        let Some(head) = ask(&mut peer, request, 1) else { continue };
        assert_eq!(head["type"], "subscribed", "{head}");
        let mut last = seq(&head);
        assert!(last <= got.acknowledged, "{name} acknowledged {}: {head}", got.acknowledged);
        while let Some(event) = next_unless_stopped(place, &mut peer) {
            assert_eq!((&event["type"], seq(&event)), (&json!("event"), last + 1), "{event}");
            last += 1;
            let data = event["data"].as_str().expect("text").to_owned();
            if let Some(before) = got.events.insert(last, data.clone()) {
                assert_eq!(before, data, "event {last} of {topic} has changed");
                got.again += 1;
            }
            if last.is_multiple_of(batch) {
                peer.try_send(&json!({"type": "ack", "topic": topic, "seq": last}));
                got.acknowledged = got.acknowledged.max(last);
            }
        }
    }
    got
}

fn next_unless_stopped(place: &Place, peer: &mut Peer) -> Option<Value> {
    wait_for("an event, or the end", LIMIT, || match peer.receive(Duration::from_millis(20)) {
        Some(Incoming::Text(text)) => Some(Some(serde_json::from_str(&text).expect("JSON"))),
        Some(_) => Some(None),
        None => place.stops().then_some(None),
    })
}

/// Starts a relay and kills it, `kills` times, and then starts the last one.
fn start_and_kill(place: &Place, dir: &Scratch, kills: u64) -> Node {
    let mut random = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..kills {
        let node = Node::durable(dir, &FLAGS);
        *place.addr.lock() = Some(node.addr());
        pause(Duration::from_millis(landline::store::sim::random(&mut random) % ALIVE_MS));
        *place.addr.lock() = None;
        node.kill();
    }
    let node = Node::durable(dir, &FLAGS);
    *place.addr.lock() = Some(node.addr());
    node
}

/// All events of `topic`, with its epoch.
fn all(node: &Node, topic: &str) -> (String, Vec<String>) {
    let mut peer = node.peer();
    let head = peer.subscribe_from(topic, json!("start"));
    let tail = number(&head, "tail");
    assert_eq!(number(&head, "first"), 1, "{head}");
    let mut data = Vec::new();
    for expected in 1..=tail {
        let event = peer.expect("event");
        assert_eq!(seq(&event), expected);
        data.push(event["data"].as_str().expect("text").to_owned());
    }
    let again = node.peer().subscribe_from(topic, position(&head, tail));
    assert_eq!(again["recovery"]["mode"], "complete", "{again}");
    (head["epoch"].as_str().expect("an epoch").to_owned(), data)
}

#[test]
fn a_relay_that_is_killed_again_and_again_loses_doubles_and_reorders_nothing() {
    let kills = std::env::var("LANDLINE_KILLS").map_or(20, |text| text.parse().expect("a number"));
    let (watch, dir, place) = (Watch::start(), Scratch::new("data"), Arc::new(Place::default()));

    let (node, confirmed, got, counted) = thread::scope(|scope| {
        let place = &*place;
        let publishers: Vec<_> =
            (0..PUBLISHERS).map(|number| scope.spawn(move || publish(place, number))).collect();
        let consumers: Vec<_> = CONSUMERS
            .into_iter()
            .zip([7, 3])
            .map(|(who, batch)| scope.spawn(move || consume(place, who, batch)))
            .collect();
        let counter = scope.spawn(move || count_up(place));
        let node = start_and_kill(place, &dir, kills);
        pause(Duration::from_millis(ALIVE_MS));
        place.stop.store(true, Ordering::SeqCst);
        let confirmed: Vec<_> = publishers.into_iter().map(|one| one.join().unwrap()).collect();
        let got: Vec<Got> = consumers.into_iter().map(|one| one.join().unwrap()).collect();
        (node, confirmed, got, counter.join().unwrap())
    });

    let mut events = 0;
    for (topic, got) in TOPICS.into_iter().zip(&got) {
        let (epoch, stored) = all(&node, topic);
        events += stored.len();
        let mut distinct = stored.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), stored.len(), "something is twice in {topic}");
        for (_, seq, told, data) in confirmed.iter().flatten().filter(|one| one.0 == topic) {
            assert_eq!(Some(data), stored.get(*seq as usize - 1), "event {seq} of {topic}");
            assert_eq!(*told, epoch, "the epoch at event {seq} of {topic}");
        }
        for (seq, data) in &got.events {
            assert_eq!(Some(data), stored.get(*seq as usize - 1), "event {seq} of {topic}");
        }
        let last = got.events.last_key_value().map_or(0, |(seq, _)| *seq);
        assert_eq!(got.events.len() as u64, last, "a consumer of {topic} did not get all of it");
    }
    for own in &confirmed {
        for topic in TOPICS {
            let seqs: Vec<_> = own.iter().filter(|one| one.0 == topic).map(|one| one.1).collect();
            assert!(seqs.is_sorted_by(|a, b| a < b), "a publisher's events of {topic}: {seqs:?}");
        }
    }
    let found = node.peer().ask(json!({"type": "get", "key": "count"}), "values");
    assert_eq!(found["values"][0]["value"], counted.value, "{counted:?}: {found}");
    assert!(0 < counted.confirmed && counted.confirmed + counted.surprises == counted.value);
    let told: usize = confirmed.iter().map(Vec::len).sum();
    assert!(0 < told && told <= events, "{told} confirmed, {events} stored");
    let received: usize = got.iter().map(|got| got.events.len()).sum();
    let again: u64 = got.iter().map(|got| got.again).sum();
    let connections: u64 = got.iter().map(|got| got.connections).sum();
    eprintln!(
        "{kills} kills: {told} events confirmed, {events} stored; consumers got {received}, \
         {again} of them again, over {connections} connections; a key counted to {}, {} of that \
         without an answer; {:.1} s",
        counted.value,
        counted.surprises,
        watch.elapsed().as_secs_f64()
    );
}
