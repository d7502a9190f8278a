//! The follow core with acknowledgements against a model of the relay: windows, redelivery, dead
//! letters, consumers that outlive connections, acknowledgements that are lost on the way.

mod relay;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::*;
use crate::{
    client::{
        inbox::{Inbox, Put},
        message::{Incoming, Text},
        options::InboxLimits,
    },
    name::UserName,
    wire::request::{self, Request},
};
use relay::{DELIVERIES_MAX, Log, Relay, TOPICS, gap};

/// What the program knows about one topic.
#[derive(Debug)]
struct Seen {
    epoch: Epoch,
    start: u64,
    taken: BTreeSet<u64>,
    /// The last that was taken.
    at: u64,
    /// The last that was acknowledged, or is lost with everything before it dealt with.
    acked: u64,
    gaps: BTreeMap<u64, u64>,
}

impl Seen {
    fn new(position: Position) -> Seen {
        let Position { epoch, seq } = position;
        let (gaps, taken) = (BTreeMap::new(), BTreeSet::new());
        Seen { epoch, start: seq, taken, at: seq, acked: seq, gaps }
    }

    /// The first event that neither came nor was announced as lost.
    fn unheard(&self, tail: u64) -> Option<u64> {
        let lost = |seq: u64| self.gaps.iter().any(|(from, to)| (*from..=*to).contains(&seq));
        (self.start + 1..=tail).find(|seq| !self.taken.contains(seq) && !lost(*seq))
    }

    fn deal_with(&mut self, seq: u64) {
        self.acked = self.acked.max(seq);
        for (from, to) in &self.gaps {
            if *from <= self.acked + 1 {
                self.acked = self.acked.max(*to);
            }
        }
    }
}

struct World {
    relay: Relay,
    follows: Follows,
    online: bool,
    id: SubId,
    inbox: Inbox,
    seen: BTreeMap<Name, Seen>,
    events: Vec<Event>,
    log: Vec<String>,
}

impl World {
    fn new(filter: &str, from: From, acks: Acks, room: usize) -> World {
        let mut follows = Follows::new();
        let id = follows.join(Filter::parse(filter).unwrap(), from, Some(acks)).unwrap();
        World {
            relay: Relay::new(),
            follows,
            online: false,
            id,
            inbox: Inbox::new(InboxLimits { events: room, bytes: 1 << 20 }),
            seen: BTreeMap::new(),
            events: Vec::new(),
            log: Vec::new(),
        }
    }

    fn story(&self) -> String {
        self.log[self.log.len().saturating_sub(80)..].join("\n")
    }

    fn settle(&mut self) {
        let steps: Vec<Step> = self.follows.steps().collect();
        for step in steps {
            match step {
                Step::Send(text) => {
                    self.log.push(format!("> {text}"));
                    self.check_start(&text);
                    if self.online {
                        self.relay.requests.push_back(text);
                    }
                }
                Step::Forget(_, name, after) => {
                    self.log.push(format!("  forgets {name} after {after}"));
                    self.inbox.forget(&name, after);
                }
                Step::Deliver(_, delivery) => self.deliver(delivery),
                Step::Started(_) => {}
                Step::Failed(..) | Step::Reconnect => panic!("nothing is refused here"),
            }
        }
    }

    /// The relay takes everything before its start for dealt with.
    fn check_start(&self, text: &str) {
        if let Request::Subscribe { filter, from, .. } = request::decode(text).request.unwrap() {
            let positions = match (filter, from) {
                (Filter::Topic(name), From::After(at)) => vec![(name, at)],
                (_, From::Positions(positions)) => positions,
                _ => return,
            };
            let marks = &self.follows.subs[&self.id].acking.as_ref().unwrap().marks;
            for (name, at) in positions {
                assert!(!marks[&name].knows(at), "{text} skips something\n{}", self.story());
            }
        }
    }

    /// What was sent again in vain is handed to the program, unless it has dealt with it.
    fn check_again(&self, text: &str, message: &Incoming<'_>) {
        let sub = &self.follows.subs[&self.id];
        let name = Name::parse(&message.topic.as_ref().unwrap_or(&Text::default()).0);
        let Ok(name) = name else { return };
        let follows = self.follows.topics.contains_key(&name)
            && matches!(sub.cursors.get(&name), Some(Cursor::At(_)));
        if !text.contains("\"again\"") || !follows {
            return;
        }
        let mark = &sub.acking.as_ref().unwrap().marks[&name];
        let waits = self.inbox.events();
        let waits = waits.iter().any(|event| event.topic == name && event.seq == message.seq);
        assert!(message.seq <= mark.acked || waits, "it is not delivered\n{}", self.story());
    }

    fn deliver(&mut self, delivery: Delivery) {
        self.log.push(format!("  gets {delivery:?}"));
        let event = if let Delivery::Event(event) = &delivery { Some(event.clone()) } else { None };
        match (self.inbox.put(delivery, Duration::ZERO), event) {
            (Put::Full(_), Some(event)) => {
                self.log.push(format!("  has no room for {}", event.seq));
                self.follows.stall(self.id, &event);
                self.settle();
                if !self.inbox.stall() {
                    self.follows.resume(self.id);
                    self.settle();
                }
            }
            (Put::Done, Some(event)) => {
                let story = self.story();
                let seen = self.seen.get(&event.topic);
                if let Some(seen) = seen.filter(|seen| seen.epoch == event.epoch) {
                    assert!(seen.acked < event.seq, "it was acknowledged\n{story}");
                }
            }
            _ => {}
        }
    }

    /// Takes one delivery, as the program does.
    fn take(&mut self) -> bool {
        let Some(taken) = self.inbox.try_take().unwrap() else { return false };
        let story = self.story();
        self.log.push(format!("takes {:?}", taken.delivery));
        match taken.delivery {
            Delivery::Attached { topic, position, .. } => {
                let seen = Seen::new(position);
                assert!(self.seen.insert(topic, seen).is_none(), "attached twice\n{story}");
            }
            Delivery::Event(event) => {
                let seen = self.seen.get_mut(&event.topic).expect("attached first");
                assert_eq!(event.epoch, seen.epoch, "{story}");
                let skipped = (seen.at + 1..event.seq).all(|seq| seq <= seen.acked);
                assert!(skipped, "{seen:?}: a hole before {}\n{story}", event.seq);
                let again = !seen.taken.insert(event.seq);
                assert_eq!(event.redelivered, again, "{event:?}\n{story}");
                seen.at = event.seq;
                self.events.push(event);
            }
            Delivery::Gap { topic, from, to, .. } => {
                let seen = self.seen.get_mut(&topic).expect("attached first");
                assert!(from <= to && from <= seen.at.max(seen.acked) + 1, "{seen:?}\n{story}");
                seen.at = to;
                seen.gaps.insert(from, to);
                seen.deal_with(0);
            }
            Delivery::Reset { topic, position, .. } => {
                let seen = Seen::new(position);
                assert!(self.seen.insert(topic, seen).is_some(), "attached first\n{story}");
            }
            Delivery::Reconnected | Delivery::Unavailable { .. } => {}
        }
        if taken.resume {
            self.follows.resume(self.id);
            self.settle();
        }
        true
    }

    /// Acknowledges one of the events that were taken, and so all before it.
    fn ack(&mut self, event: &Event) {
        self.log.push(format!("acknowledges {} of {}", event.seq, event.topic));
        self.follows.acknowledge(self.id, &event.topic, event.position()).unwrap();
        let seen = self.seen.get_mut(&event.topic).unwrap();
        if seen.epoch == event.epoch {
            seen.deal_with(event.seq);
        }
        self.settle();
    }

    /// The writer tells the relay.
    fn tell(&mut self) {
        for text in self.follows.acks() {
            self.log.push(format!("> {text}"));
            self.relay.requests.push_back(text);
        }
    }

    fn receive(&mut self, count: usize) {
        for _ in 0..count {
            let Some(text) = self.relay.stream.pop_front() else { return };
            self.log.push(format!("< {text}"));
            let message: Incoming<'_> = serde_json::from_str(&text).unwrap();
            assert!(self.follows.take(&message), "{text}");
            self.settle();
            self.check_again(&text, &message);
            let mut waiting: Vec<_> = self
                .inbox
                .events()
                .iter()
                .map(|event| (event.topic.clone(), event.epoch.to_string(), event.seq))
                .collect();
            let all = waiting.len();
            waiting.sort();
            waiting.dedup();
            assert_eq!(waiting.len(), all, "something waits twice\n{}", self.story());
        }
    }

    fn connect(&mut self) {
        if !self.online {
            self.log.push("connects".to_owned());
            self.online = true;
            self.follows.link_up(1 << 20);
            self.settle();
        }
    }

    fn disconnect(&mut self) {
        self.log.push("is cut off".to_owned());
        self.online = false;
        self.relay.disconnect();
        self.follows.link_down();
        self.settle();
    }

    /// Lets everything arrive and be acknowledged.
    fn quiesce(&mut self) {
        self.connect();
        for _ in 0..10_000 {
            self.relay.take_requests(usize::MAX);
            self.relay.pump(3);
            let quiet = self.relay.stream.is_empty();
            self.receive(usize::MAX);
            while self.take() {}
            for event in std::mem::take(&mut self.events) {
                self.ack(&event);
            }
            self.tell();
            if quiet && self.relay.requests.is_empty() {
                return;
            }
        }
        panic!("it does not come to rest\n{}", self.story());
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Loss {
    /// Nothing is removed, nothing is a dead letter, and the relay never restarts.
    None,
    Possible,
}

fn play(seed: u64, moves: usize, loss: Loss) {
    let mut dice = crate::client::follow::tests::Dice::new(seed);
    let window = [1, 2, 5][dice.below(3)];
    let consumer = (dice.below(2) == 0).then(|| UserName::parse("c").unwrap());
    let filter = if consumer.is_some() { "a/x" } else { ["a/x", "a/+"][dice.below(2)] };
    let from = [From::Start, From::Live][dice.below(2)].clone();
    let room = [2, 4, 100][dice.below(3)];
    let mut world = World::new(filter, from, Acks { window, consumer }, room);
    for _ in 0..moves {
        match dice.below(16) {
            0..3 => world.relay.logs.get_mut(TOPICS[dice.below(2)]).unwrap().tail += 1,
            3 if dice.below(3) == 0 => world.disconnect(),
            4 => world.connect(),
            5 if loss == Loss::Possible => {
                let log = world.relay.logs.get_mut(TOPICS[dice.below(2)]).unwrap();
                log.first = log.first.max(log.tail);
            }
            6 if loss == Loss::Possible && dice.below(6) == 0 => {
                world.disconnect();
                world.relay.restart();
            }
            7 if loss == Loss::Possible || dice.below(4) == 0 => {
                let topic = TOPICS[dice.below(2)];
                if loss == Loss::None
                    && let Some(flight) = world.relay.flights.get_mut(topic)
                {
                    flight.vain = 0;
                }
                world.relay.redeliver(topic);
            }
            8..10 => _ = world.take(),
            10 if !world.events.is_empty() => {
                let at = dice.below(world.events.len());
                let event = world.events[at].clone();
                world.ack(&event);
            }
            11 if world.online => world.tell(),
            12 => world.relay.take_requests(dice.below(4)),
            13 => world.relay.pump(1 + dice.below(3) as u64),
            _ => world.receive(dice.below(4)),
        }
    }
    world.quiesce();

    let story = || format!("seed {seed}\n{}", world.story());
    for topic in TOPICS {
        let name = Name::parse(topic).unwrap();
        if !Filter::parse(filter).unwrap().matches(&name) {
            continue;
        }
        let seen = &world.seen[&name];
        let tail = world.relay.log(topic).tail;
        assert_eq!((seen.at.max(seen.acked), seen.acked), (tail, tail), "{seen:?} {}", story());
        assert_eq!(world.relay.flights[topic].acked, tail, "the relay knows {}", story());
        assert!(loss == Loss::Possible || seen.gaps.is_empty(), "{seen:?} {}", story());
        assert_eq!(seen.unheard(tail), None, "{seen:?} {}", story());
    }
    assert!(world.follows.all_told() && !world.follows.has_acks(), "{}", story());
    leave(world);
}

/// What was acknowledged in the last moment is told before the end.
fn leave(mut world: World) {
    let log = world.relay.logs.get_mut("a/x").unwrap();
    log.tail += 1;
    let tail = log.tail;
    world.relay.pump(1);
    world.receive(usize::MAX);
    while world.take() {}
    for event in std::mem::take(&mut world.events) {
        world.ack(&event);
    }
    world.follows.leave(world.id);
    let sent: Vec<Step> = world.follows.steps().collect();
    let sent: Vec<String> = sent.iter().map(|step| format!("{step:?}")).collect();
    let [told, left, ..] = &sent[..] else { panic!("{sent:?}") };
    assert!(told.contains("ack") && told.contains(&tail.to_string()), "{sent:?}");
    assert!(left.contains("unsubscribe"), "{sent:?}");
}

/// Short games first, so that a failure tells a short story.
fn play_all(loss: Loss) {
    for (moves, games) in [(12, 3_000), (30, 3_000), (150, 2_000)] {
        (1..games).for_each(|seed| play(seed, moves, loss));
    }
}

#[test]
fn what_is_not_acknowledged_comes_again_and_what_is_does_not() {
    play_all(Loss::None);
}

#[test]
fn every_loss_of_an_acknowledged_topic_is_announced() {
    play_all(Loss::Possible);
}

fn numbers(world: &World) -> Vec<(u64, bool)> {
    world.events.iter().map(|event| (event.seq, event.redelivered)).collect()
}

fn step(world: &mut World) {
    world.tell();
    world.relay.take_requests(usize::MAX);
    world.relay.pump(10);
    world.receive(usize::MAX);
    while world.take() {}
}

#[test]
fn the_next_connection_begins_after_what_was_acknowledged() {
    let acks = Acks { window: 10, consumer: None };
    let mut world = World::new("a/x", From::Start, acks, 100);
    world.relay.logs.get_mut("a/x").unwrap().tail = 3;
    world.connect();
    step(&mut world);
    let second = world.events[1].clone();
    world.ack(&second);
    world.disconnect();
    world.connect();
    step(&mut world);
    assert_eq!(numbers(&world), [(1, false), (2, false), (3, false), (3, true)]);
}

#[test]
fn a_consumer_tells_again_what_the_relay_has_not_heard() {
    let consumer = Some(UserName::parse("c").unwrap());
    let mut world = World::new("a/x", From::Start, Acks { window: 10, consumer }, 100);
    world.relay.logs.get_mut("a/x").unwrap().tail = 3;
    world.connect();
    step(&mut world);
    let second = world.events[1].clone();
    world.ack(&second);
    world.tell();
    // Cut before the relay has read it.
    world.disconnect();
    assert_eq!(world.relay.consumers["a/x"], 0);
    world.connect();
    step(&mut world);
    step(&mut world);
    assert_eq!(numbers(&world), [(1, false), (2, false), (3, false), (3, true)]);
    assert_eq!(world.relay.consumers["a/x"], 2);
}

#[test]
fn a_consumer_that_the_relay_knows_goes_on_there_and_hears_what_is_lost() {
    let consumer = Some(UserName::parse("c").unwrap());
    let mut world = World::new("a/x", From::Start, Acks { window: 10, consumer }, 100);
    *world.relay.logs.get_mut("a/x").unwrap() = Log { first: 6, tail: 7 };
    world.relay.consumers.insert("a/x".to_owned(), 3);
    world.connect();
    step(&mut world);
    assert_eq!(numbers(&world), [(6, false), (7, false)]);
    assert!(world.log.iter().any(|line| line.contains("takes Gap") && line.contains("from: 4")));
}

#[test]
fn a_dead_letter_is_announced_and_the_next_event_comes() {
    let acks = Acks { window: 2, consumer: None };
    let mut world = World::new("a/x", From::Start, acks, 100);
    world.relay.logs.get_mut("a/x").unwrap().tail = 2;
    world.connect();
    step(&mut world);
    for _ in 0..DELIVERIES_MAX {
        world.relay.redeliver("a/x");
        step(&mut world);
    }
    let expected = [(1, false), (2, false), (1, true), (2, true), (1, true), (2, true), (2, true)];
    assert_eq!(numbers(&world), expected);
    assert!(world.log.iter().any(|line| line.contains("DeadLetter")));
    let last = world.events[6].clone();
    world.ack(&last);
    step(&mut world);
    assert_eq!(world.relay.flights["a/x"].acked, 2);
}

#[test]
fn a_loss_that_comes_again_is_heard_although_what_stands_before_it_was_acknowledged() {
    let acks = Acks { window: 10, consumer: None };
    let mut world = World::new("a/x", From::Start, acks, 100);
    world.connect();
    world.relay.take_requests(1);
    let event = |seq| format!(r#"{{"type":"event","topic":"a/x","seq":{seq},"data":0}}"#);
    let damaged = || gap("a/x", 2, 3, "damaged");
    for text in [event(1), damaged(), event(4)] {
        world.relay.stream.push_back(text);
    }
    world.receive(usize::MAX);
    assert!(world.take() && world.take(), "attached, and the first event");
    world.relay.stream.push_back(event(1));
    world.receive(1);
    let first = world.events[0].clone();
    world.ack(&first);
    for text in [damaged(), event(4)] {
        world.relay.stream.push_back(text);
    }
    world.receive(usize::MAX);
    while world.take() {}
    let seen = &world.seen[&first.topic];
    assert_eq!(seen.unheard(4), None, "{}", world.story());
    assert_eq!(numbers(&world), [(1, false), (1, true), (4, false)]);
    assert_eq!(seen.acked, 3);
}

#[test]
fn what_is_acknowledged_is_shared_with_no_other_subscription() {
    let acks = || Some(Acks { window: 1, consumer: None });
    let mut follows = Follows::new();
    let mut join = |text: &str, acks| {
        let joined = follows.join(Filter::parse(text).unwrap(), From::Live, acks);
        joined.map_err(|error| error.to_string())
    };
    join("a/x", acks()).unwrap();
    assert!(join("a/#", None).unwrap_err().contains("overlaps with a/x"));
    assert!(join("a/x", acks()).is_err());
    let plain = join("b", None).unwrap();
    assert!(join("+", acks()).is_err());
    join("b", None).unwrap();
    let at = Position { epoch: Epoch::from_number(1), seq: 1 };
    let name = Name::parse("b").unwrap();
    assert!(follows.acknowledge(plain, &name, at).is_err(), "it does not acknowledge");
    assert!(follows.acknowledge(1, &Name::parse("a/x").unwrap(), at).is_err(), "never delivered");
}
