//! The follow core against a model of the relay: one cursor per topic and connection, answers
//! and events in one stream, logs that are cut short, connections that break.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::{
    client::message::Incoming,
    wire::request::{self, Request},
};

const TOPICS: [&str; 3] = ["a/x", "a/y", "b/x"];

/// A relay with a few logs and one client.
struct Relay {
    epoch: u64,
    logs: BTreeMap<&'static str, (u64, u64)>,
    names: BTreeSet<Name>,
    patterns: BTreeSet<String>,
    cursors: BTreeMap<Name, u64>,
    stream: VecDeque<String>,
}

impl Relay {
    fn new() -> Self {
        Relay {
            epoch: 1,
            logs: BTreeMap::new(),
            names: BTreeSet::new(),
            patterns: BTreeSet::new(),
            cursors: BTreeMap::new(),
            stream: VecDeque::new(),
        }
    }

    fn log(&mut self, topic: &'static str) -> &mut (u64, u64) {
        if !self.logs.contains_key(topic) {
            self.logs.insert(topic, (1, 0));
            let name = Name::parse(topic).unwrap();
            for pattern in self.patterns.clone() {
                if Pattern::parse(&pattern).unwrap().matches(&name) {
                    self.attach(&pattern, &name, &From::Start);
                }
            }
        }
        self.logs.get_mut(topic).unwrap()
    }

    fn publish(&mut self, topic: &'static str) {
        self.log(topic).1 += 1;
    }

    fn truncate(&mut self, topic: &'static str, keep: u64) {
        let (first, tail) = self.log(topic);
        *first = (*first).max((*tail + 1).saturating_sub(keep));
    }

    fn restart(&mut self) {
        self.epoch += 1;
        self.logs.clear();
    }

    fn disconnect(&mut self) {
        self.names.clear();
        self.patterns.clear();
        self.cursors.clear();
        self.stream.clear();
    }

    fn say(&mut self, text: String) {
        self.stream.push_back(text);
    }

    fn start(&self, name: &Name, from: &From) -> u64 {
        let (first, tail) = self.logs[name.as_str()];
        let after = |position: &Position| {
            let valid = position.epoch == Epoch::from_number(self.epoch)
                && (first - 1..=tail).contains(&position.seq);
            if valid { position.seq } else { first - 1 }
        };
        match from {
            From::Live => tail,
            From::Start => first - 1,
            From::Last(count) => tail.saturating_sub(*count).max(first - 1),
            // Times are sequences here.
            From::Since(seq) => seq.saturating_sub(1).clamp(first - 1, tail),
            From::After(position) => after(position),
            From::Positions(positions) => {
                let listed = positions.iter().find(|(listed, _)| listed == name);
                listed.map_or(first - 1, |(_, position)| after(position))
            }
        }
    }

    fn facts(&self, name: &Name, seq: u64) -> String {
        let (first, tail) = self.logs[name.as_str()];
        let epoch = Epoch::from_number(self.epoch);
        format!(r#""topic":"{name}","epoch":"{epoch}","seq":{seq},"first":{first},"tail":{tail}"#)
    }

    fn attach(&mut self, pattern: &str, name: &Name, from: &From) {
        let shared = self.cursors.get(name).copied();
        let seq = shared.unwrap_or_else(|| self.start(name, from));
        self.cursors.insert(name.clone(), seq);
        let facts = self.facts(name, seq);
        let shared = shared.is_some();
        self.say(format!(
            r#"{{"type":"attached","pattern":"{pattern}","shared":{shared},{facts}}}"#
        ));
    }

    fn request(&mut self, text: &str) {
        let decoded = request::decode(text);
        let id = decoded.id.unwrap();
        match decoded.request.unwrap() {
            Request::Subscribe { filter: Filter::Topic(name), from, .. } => {
                let topic = TOPICS.iter().find(|topic| **topic == name.as_str()).unwrap();
                self.log(topic);
                let seq = self.start(&name, &from);
                self.cursors.insert(name.clone(), seq);
                self.names.insert(name.clone());
                let facts = self.facts(&name, seq);
                self.say(format!(r#"{{"type":"subscribed","id":{id},{facts}}}"#));
            }
            Request::Subscribe { filter: Filter::Pattern(pattern), from, .. } => {
                self.patterns.insert(pattern.as_str().to_owned());
                let names = self.logs.keys().map(|topic| Name::parse(topic).unwrap());
                let names: Vec<Name> = names.filter(|name| pattern.matches(name)).collect();
                let count = names.len();
                let reply = format!(
                    r#"{{"type":"subscribed","id":{id},"topic":"{pattern}","attached":{count}}}"#
                );
                // Which comes first is not promised.
                if id.is_multiple_of(2) {
                    self.say(reply.clone());
                }
                names.iter().for_each(|name| self.attach(pattern.as_str(), name, &from));
                if !id.is_multiple_of(2) {
                    self.say(reply);
                }
            }
            Request::Unsubscribe { filter } => {
                match &filter {
                    Filter::Topic(name) => drop(self.names.remove(name)),
                    Filter::Pattern(pattern) => drop(self.patterns.remove(pattern.as_str())),
                }
                let (names, patterns) = (&self.names, &self.patterns);
                self.cursors.retain(|name, _| {
                    let pattern = |text: &String| Pattern::parse(text).unwrap().matches(name);
                    names.contains(name) || patterns.iter().any(pattern)
                });
                self.say(format!(r#"{{"type":"unsubscribed","id":{id},"topic":"{filter}"}}"#));
            }
            Request::History { topic, from, .. } => {
                let seq = self.start(&topic, &from.unwrap_or(From::Last(1)));
                let facts = self.facts(&topic, seq);
                let (_, tail) = self.logs[topic.as_str()];
                let events =
                    if seq < tail { format!(r#"{{"seq":{}}}"#, seq + 1) } else { String::new() };
                let reply =
                    format!(r#"{{"type":"history","id":{id},{facts},"events":[{events}]}}"#);
                // It does not pass through the cursors, so it may overtake them.
                if id.is_multiple_of(3) {
                    self.stream.push_front(reply);
                } else {
                    self.say(reply);
                }
            }
            Request::Hello { .. }
            | Request::Publish(_)
            | Request::Ack { .. }
            | Request::Ping
            | Request::State(_) => {
                panic!("{text}")
            }
        }
    }

    /// Sends at most `count` events of each topic.
    fn pump(&mut self, count: u64) {
        for (name, cursor) in self.cursors.clone() {
            let (first, tail) = self.logs[name.as_str()];
            let mut cursor = cursor;
            if cursor < first - 1 {
                let (from, to) = (cursor + 1, first - 1);
                self.say(format!(
                    r#"{{"type":"gap","topic":"{name}","from":{from},"to":{to},"reason":"slow"}}"#
                ));
                cursor = to;
            }
            for seq in (cursor + 1..=tail).take(usize::try_from(count).unwrap()) {
                self.say(format!(
                    r#"{{"type":"event","topic":"{name}","seq":{seq},"data":{seq}}}"#
                ));
                cursor = seq;
            }
            self.cursors.insert(name, cursor);
        }
    }
}

/// What one subscription has been told about one topic.
#[derive(Default, Debug)]
struct Seen {
    started: bool,
    failed: bool,
    at: BTreeMap<Name, Position>,
    lost: u64,
    resets: u64,
    events: u64,
}

struct World {
    relay: Relay,
    follows: Follows,
    online: bool,
    seen: BTreeMap<SubId, Seen>,
    /// Subscriptions whose inbox is full.
    full: BTreeSet<SubId>,
    log: Vec<String>,
}

impl World {
    fn new() -> Self {
        World {
            relay: Relay::new(),
            follows: Follows::new(),
            online: false,
            seen: BTreeMap::new(),
            full: BTreeSet::new(),
            log: Vec::new(),
        }
    }

    fn settle(&mut self) {
        let mut stalls = Vec::new();
        let steps: Vec<Step> = self.follows.steps().collect();
        for step in steps {
            match step {
                Step::Send(text) => {
                    self.log.push(format!("> {text}"));
                    if self.online {
                        self.relay.request(&text);
                    }
                }
                Step::Deliver(id, delivery) => {
                    self.log.push(format!("  {id} gets {delivery:?}"));
                    let full = self.full.contains(&id);
                    if let Delivery::Event(event) = &delivery
                        && full
                    {
                        stalls.push((id, event.clone()));
                        continue;
                    }
                    let epoch = Epoch::from_number(self.relay.epoch);
                    let seen = self.seen.get_mut(&id).expect("a known subscription");
                    deliver(seen, delivery, epoch, &self.log);
                }
                Step::Started(id) => self.seen.get_mut(&id).unwrap().started = true,
                Step::Failed(id, _) => self.seen.get_mut(&id).unwrap().failed = true,
                Step::Forget(..) | Step::Reconnect => {}
            }
        }
        for (id, event) in stalls {
            self.follows.stall(id, &event);
            self.settle();
        }
    }

    fn receive(&mut self, count: usize) {
        for _ in 0..count {
            let Some(text) = self.relay.stream.pop_front() else { return };
            self.log.push(format!("< {text}"));
            let message: Incoming<'_> = serde_json::from_str(&text).unwrap();
            assert!(self.follows.take(&message) || message.kind.as_str() == "history");
            self.settle();
        }
    }

    fn connect(&mut self) {
        if !self.online {
            self.online = true;
            self.follows.link_up(1 << 20);
            self.settle();
        }
    }

    fn disconnect(&mut self) {
        self.online = false;
        self.relay.disconnect();
        self.follows.link_down();
        self.settle();
    }

    fn join(&mut self, filter: &str, from: From) -> SubId {
        let id = self.follows.join(Filter::parse(filter).unwrap(), from, None).unwrap();
        self.log.push(format!("{id} joins {filter}"));
        self.seen.insert(id, Seen::default());
        self.settle();
        id
    }

    fn leave(&mut self, id: SubId) {
        self.log.push(format!("{id} leaves"));
        self.follows.leave(id);
        self.seen.remove(&id);
        self.settle();
    }

    fn resume(&mut self, id: SubId) {
        self.log.push(format!("{id} has room"));
        self.full.remove(&id);
        self.follows.resume(id);
        self.settle();
    }

    /// Lets everything arrive.
    fn quiesce(&mut self) {
        self.connect();
        for id in self.full.clone() {
            self.resume(id);
        }
        loop {
            self.relay.pump(u64::MAX >> 8);
            if self.relay.stream.is_empty() {
                return;
            }
            self.receive(usize::MAX);
        }
    }
}

/// Checks rule 3 of [`Follows`] from the outside.
#[track_caller]
fn deliver(seen: &mut Seen, delivery: Delivery, epoch: Epoch, log: &[String]) {
    let story = || log[log.len().saturating_sub(60)..].join("\n");
    match delivery {
        Delivery::Attached { topic, position, .. } => {
            assert!(seen.at.insert(topic, position).is_none(), "attached twice\n{}", story());
        }
        Delivery::Event(event) => {
            let at = seen.at.get_mut(&event.topic).expect("attached first");
            assert_eq!((event.epoch, event.seq), (at.epoch, at.seq + 1), "{}", story());
            assert_eq!(event.epoch, epoch);
            *at = event.position();
            seen.events += 1;
        }
        Delivery::Gap { topic, from, to, .. } => {
            let at = seen.at.get_mut(&topic).expect("attached first");
            assert_eq!(from, at.seq + 1, "{}", story());
            assert!(from <= to);
            at.seq = to;
            seen.lost += to - from + 1;
        }
        Delivery::Reset { topic, lost, position, .. } => {
            let at = seen.at.insert(topic, position).expect("attached first");
            assert_eq!(at, lost, "{}", story());
            seen.resets += 1;
        }
        Delivery::Reconnected | Delivery::Unavailable { .. } => {}
    }
}

/// A small generator, so that a failure can be repeated.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Dice {
        Dice(seed * 2_654_435_761 + 1)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % bound
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Loss {
    /// Nothing is ever removed and the relay never restarts.
    None,
    Possible,
}

fn play(seed: u64, moves: usize, loss: Loss) {
    let mut dice = Dice::new(seed);
    let mut world = World::new();
    world.connect();
    for _ in 0..moves {
        match dice.below(14) {
            0..3 => (0..dice.below(4)).for_each(|_| world.relay.publish(TOPICS[dice.below(3)])),
            3 => {
                let filter = ["a/x", "a/y", "a/x", "a/+", "a/+", "#", "+/x"][dice.below(7)];
                let from = match dice.below(5) {
                    0 => From::Start,
                    1 => From::Last(2),
                    2 => From::Since(3),
                    _ => From::Live,
                };
                world.join(filter, from);
            }
            4 if 3 < world.seen.len() => {
                let ids: Vec<SubId> = world.seen.keys().copied().collect();
                world.leave(ids[dice.below(ids.len())]);
            }
            5 if dice.below(3) == 0 => world.disconnect(),
            6 => world.connect(),
            7 if loss == Loss::Possible => world.relay.truncate(TOPICS[dice.below(3)], 2),
            8 if loss == Loss::Possible && dice.below(8) == 0 => {
                world.disconnect();
                world.relay.restart();
            }
            9 if !world.seen.is_empty() => {
                let ids: Vec<SubId> = world.seen.keys().copied().collect();
                let id = ids[dice.below(ids.len())];
                if !world.full.insert(id) {
                    world.resume(id);
                }
            }
            10 => world.relay.pump(1 + dice.below(3) as u64),
            _ => {
                world.relay.pump(dice.below(2) as u64);
                world.receive(dice.below(5));
            }
        }
    }
    world.quiesce();
    let story = || world.log[world.log.len().saturating_sub(120)..].join("\n");
    for (id, seen) in &world.seen {
        assert!(seen.started && !seen.failed, "seed {seed}: {id} never started\n{}", story());
        if loss == Loss::None {
            assert_eq!((seen.lost, seen.resets), (0, 0), "seed {seed}: {id}\n{}", story());
        }
        let filter = world.follows.subs[id].filter.clone();
        for (topic, (_, tail)) in &world.relay.logs {
            let name = Name::parse(topic).unwrap();
            if filter.matches(&name) {
                let at = seen.at.get(&name).map(|at| at.seq);
                assert_eq!(at, Some(*tail), "seed {seed}: {id} on {topic}\n{}", story());
            }
        }
    }
    world.seen.keys().copied().collect::<Vec<_>>().into_iter().for_each(|id| world.leave(id));
    world.receive(usize::MAX);
    assert!(world.relay.cursors.is_empty(), "seed {seed}: something is still followed");
    assert!(world.follows.held.is_empty() && world.follows.topics.is_empty());
    assert!(world.follows.asks.is_empty(), "seed {seed}: {:?}", world.follows.asks);
}

/// Short games first, so that a failure tells a short story.
fn play_all(loss: Loss) {
    for (moves, games) in [(8, 2_000), (20, 2_000), (120, 1_500)] {
        (1..games).for_each(|seed| play(seed, moves, loss));
    }
}

#[test]
fn overlapping_subscriptions_lose_nothing_and_get_nothing_twice() {
    play_all(Loss::None);
}

#[test]
fn every_loss_is_announced_to_each_subscription_exactly() {
    play_all(Loss::Possible);
}

#[test]
fn a_second_subscription_starts_where_it_asked_and_does_not_move_the_first() {
    for (from, start) in
        [(From::Live, 5), (From::Start, 0), (From::Last(2), 3), (From::Since(2), 1)]
    {
        let mut world = World::new();
        (0..5).for_each(|_| world.relay.publish("a/x"));
        let first = world.join("a/x", From::Last(4));
        world.quiesce();
        let second = world.join("a/x", from.clone());
        world.quiesce();
        let name = Name::parse("a/x").unwrap();
        let started = |id: &SubId| world.seen[id].at[&name].seq - world.seen[id].events;
        assert_eq!((started(&first), started(&second)), (1, start), "{from:?}");
    }
}

#[test]
fn a_live_subscription_does_not_skip_what_an_older_one_has_not_got_yet() {
    let mut world = World::new();
    let first = world.join("a/+", From::Start);
    world.quiesce();
    (0..5).for_each(|_| world.relay.publish("a/x"));
    // The relay has attached a/x for the pattern, but nothing of it has arrived here.
    let second = world.join("a/x", From::Live);
    world.quiesce();
    assert_eq!((world.seen[&first].events, world.seen[&second].events), (5, 0));
}

#[test]
fn a_position_that_is_gone_is_answered_with_what_is_missing() {
    let mut world = World::new();
    (0..5).for_each(|_| world.relay.publish("a/x"));
    world.relay.truncate("a/x", 2);
    let epoch = Epoch::from_number(1);
    let partial = world.join("a/x", From::After(Position { epoch, seq: 1 }));
    let foreign = Position { epoch: Epoch::from_number(9), seq: 1 };
    let reset = world.join("a/x", From::After(foreign));
    let ahead = world.join("a/x", From::After(Position { epoch, seq: 6 }));
    world.quiesce();
    assert_eq!((world.seen[&partial].lost, world.seen[&partial].events), (2, 2));
    assert_eq!((world.seen[&reset].resets, world.seen[&reset].events), (1, 2));
    assert_eq!((world.seen[&ahead].resets, world.seen[&ahead].events), (1, 2));
}
