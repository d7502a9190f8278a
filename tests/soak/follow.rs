//! Who follows topics: what every message must be, over WebSocket and as server-sent events.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use socket2::SockRef;

use crate::{
    support::{
        peer::{TINY_BUFFER, number, position, seq},
        stream::Stream,
        wait::{Deadline, LIMIT, pause},
    },
    world::{Mark, Me, Next, Phase, Targets, World, is_stored},
};

/// How far a follower has come in one topic.
#[derive(Clone, Debug)]
struct At {
    epoch: String,
    seq: u64,
    /// The life of the relay in which the epoch was told, or an earlier one.
    life: u64,
    /// The position that a further connection will name: that of the last id, for a stream.
    told: Option<Told>,
    /// By publisher, the last event since the last hole.
    marks: BTreeMap<u64, u64>,
}

/// Epoch, sequence, and the life in which the epoch was told.
type Told = (String, u64, u64);

/// Where a stream's `gap` may repeat what `recovery` has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    WebSocket,
    Stream,
}

struct Follower {
    pattern: String,
    way: Way,
    at: BTreeMap<String, At>,
    /// The life of the relay before the connection began.
    life: u64,
}

impl Follower {
    fn new(pattern: &str, way: Way) -> Follower {
        Follower { pattern: pattern.to_owned(), way, at: BTreeMap::new(), life: 0 }
    }

    fn is_pattern(&self) -> bool {
        self.pattern.contains(['+', '#'])
    }

    /// Goes back to what the next connection names as its positions.
    fn begin(&mut self, world: &World) {
        self.life = world.life();
        self.at.retain(|_, at| match &at.told {
            Some((epoch, seq, _)) if *epoch == at.epoch && *seq == at.seq => true,
            Some((epoch, seq, life)) => {
                (at.epoch, at.seq, at.life) = (epoch.clone(), *seq, *life);
                at.marks.clear();
                true
            }
            None => false,
        });
    }

    fn request(&self) -> Value {
        let place = |at: &At| json!({"epoch": at.epoch, "seq": at.seq});
        let from = if self.at.is_empty() {
            json!("start")
        } else if self.is_pattern() {
            let places = self.at.iter().map(|(topic, at)| (topic.clone(), place(at)));
            json!({"positions": places.collect::<serde_json::Map<_, _>>()})
        } else {
            self.at.values().map(place).next().expect("it follows a topic")
        };
        json!({"type": "subscribe", "id": 1, "topic": self.pattern, "from": from})
    }

    /// A message has been dealt with, and the next connection goes on behind it.
    fn tell(&mut self, topic: Option<&str>) {
        for (_, at) in self.at.iter_mut().filter(|(own, _)| topic.is_none_or(|one| one == **own)) {
            match &mut at.told {
                Some((epoch, seq, _)) if *epoch == at.epoch => *seq = at.seq,
                told => *told = Some((at.epoch.clone(), at.seq, at.life)),
            }
        }
    }

    fn take(&mut self, world: &World, message: &Value) {
        match message["type"].as_str() {
            Some("subscribed") if self.is_pattern() => {}
            Some("subscribed" | "attached") => self.begin_topic(world, message),
            Some("event") => self.take_event(world, message),
            Some("gap") => self.take_gap(world, message),
            Some("error") => assert_eq!(message["code"], "unavailable", "{message}"),
            _ => {}
        }
    }

    /// Whether a position was met as the protocol says.
    fn begin_topic(&mut self, world: &World, message: &Value) {
        let topic = message["topic"].as_str().expect("a topic").to_owned();
        let epoch = message["epoch"].as_str().expect("an epoch").to_owned();
        let (first, tail) = (number(message, "first"), number(message, "tail"));
        let start = seq(message);
        assert!(start <= tail, "{message}");
        let recovery = &message["recovery"];
        let mode = recovery["mode"].as_str().unwrap_or("none");
        world.count(&format!("beginnings: {mode}, {}", recovery["reason"]), 1);
        let known = self.at.remove(&topic);
        let expected = match &known {
            None => "none",
            Some(at) if at.epoch != epoch => {
                let later = at.life < world.life();
                assert!(later && !is_stored(&topic), "{topic} has a new epoch: {at:?}, {message}");
                "reset"
            }
            Some(at) if tail < at.seq => panic!("{topic} has lost events: {at:?}, {message}"),
            Some(at) if at.seq + 1 < first => "partial",
            Some(_) => "complete",
        };
        // Nor is a topic named that came to exist since, or that a stream's id leaves out because
        // it is at its beginning.
        let unnamed = match &known {
            None => self.is_pattern(),
            Some(at) => self.way == Way::Stream && at.seq == 0,
        };
        assert!(mode == expected || unnamed, "{known:?} was met with {message}");
        assert!(mode != "partial" || !is_stored(&topic), "{message}: nothing was to go");
        let due = match (&known, mode) {
            (Some(at), "complete") => at.seq,
            (Some(_), "reset" | "partial") => first - 1,
            // From the start.
            _ => start,
        };
        assert_eq!(start, due, "{known:?} was met with {message}");
        let (told, marks) = match known {
            Some(at) if mode == "complete" => (at.told, at.marks),
            Some(at) => (at.told, BTreeMap::new()),
            None => (None, BTreeMap::new()),
        };
        let at = At { epoch, seq: start, life: self.life, told, marks };
        self.at.insert(topic, at);
        if self.way == Way::WebSocket {
            self.tell(None);
        }
    }

    /// The next event, the same for everybody, and the next one of its publisher.
    fn take_event(&mut self, world: &World, message: &Value) {
        let topic = message["topic"].as_str().expect("a topic");
        let at = self.at.get_mut(topic);
        let at = at.unwrap_or_else(|| panic!("{topic} is not followed: {message}"));
        assert_eq!(seq(message), at.seq + 1, "a hole: {at:?}, {message}");
        at.seq += 1;
        let (publisher, own) = mark(message);
        if let Some(before) = at.marks.insert(publisher, own) {
            assert_eq!(own, before + 1, "out of a publisher's order: {message}");
        }
        world.note((topic, &at.epoch, at.seq), (publisher, own));
        world.count("events delivered", 1);
    }

    fn take_gap(&mut self, world: &World, message: &Value) {
        let reason = message["reason"].as_str().unwrap_or_default();
        world.count(&format!("gaps: {reason}"), 1);
        if message["topics"].is_u64() {
            assert!(self.way == Way::Stream && self.pattern.starts_with("kept/"), "{message}");
            // Which topics of an earlier relay are gone is not said.
            for at in self.at.values_mut().filter(|at| at.life < self.life) {
                at.seq = 0;
            }
            return;
        }
        let at = message["topic"].as_str().and_then(|topic| self.at.get_mut(topic));
        let at = at.unwrap_or_else(|| panic!("a gap in what is not followed: {message}"));
        let (from, to) = (message["from"].as_u64(), message["to"].as_u64());
        let told_before = self.way == Way::Stream && to.is_none_or(|to| to == at.seq);
        if told_before && at.marks.is_empty() {
            return;
        }
        assert_eq!(from, Some(at.seq + 1), "a gap elsewhere: {at:?}, {message}");
        let stored = is_stored(message["topic"].as_str().unwrap_or_default());
        assert!(!stored, "nothing was to go: {message}");
        at.seq = to.expect("a gap has an end");
        at.marks.clear();
    }

    fn has_reached(&self, targets: &Targets) -> bool {
        let own = targets.tails.iter().filter(|(topic, _)| covers(&self.pattern, topic));
        own.into_iter().all(|(topic, (epoch, tail))| {
            self.at.get(topic).is_some_and(|at| at.epoch == *epoch && at.seq == *tail)
        })
    }
}

/// Whose event it is, and which of that publisher's in this topic.
pub fn mark(event: &Value) -> Mark {
    let data = &event["data"];
    assert_eq!(data["topic"], event["topic"], "an event of another topic: {event}");
    (number(data, "publisher"), number(data, "own"))
}

/// Whether a pattern, or a name, covers a topic.
fn covers(pattern: &str, topic: &str) -> bool {
    let (mut pattern, mut topic) = (pattern.split('/'), topic.split('/'));
    loop {
        match (pattern.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some(own), Some(one)) if own == "+" || own == one => {}
            _ => return false,
        }
    }
}

/// When a client that ought to settle must have done so.
fn settles(world: &World, settled: &mut Option<Deadline>) -> Option<std::sync::Arc<Targets>> {
    let Phase::Settle(targets) = world.phase() else { return None };
    let deadline = settled.get_or_insert_with(|| Deadline::after(LIMIT * 3));
    assert!(!deadline.is_over(), "it did not come to the end within {:?}", LIMIT * 3);
    Some(targets)
}

/// Sometimes long enough for events to go from a memory topic meanwhile.
fn stay_away(world: &World, me: &mut Me) {
    if world.runs() && me.one_in(3) {
        pause(me.time(1_000, 20_000));
    }
}

/// Follows a topic or pattern over WebSocket, resuming by position; who is slow reads little, and
/// seldom.
pub fn subscribe(world: &World, me: &mut Me, pattern: &str, slow: bool) {
    let mut follower = Follower::new(pattern, Way::WebSocket);
    let mut settled = None;
    loop {
        let before = world.life();
        let Some(mut peer) = me.connect(world) else { return };
        if slow {
            SockRef::from(&peer.stream()).set_recv_buffer_size(TINY_BUFFER).ok();
        }
        if me.one_in(20) {
            follower = Follower::new(pattern, Way::WebSocket);
        }
        follower.begin(world);
        follower.life = before;
        let request = follower.request();
        me.say(format!("sent {request}"));
        if !peer.try_send(&request) {
            continue;
        }
        let leaves = Deadline::after(me.time(2_000, 40_000));
        loop {
            if settles(world, &mut settled).is_some_and(|targets| follower.has_reached(&targets)) {
                me.part(peer);
                return;
            }
            if world.is_over() || world.runs() && leaves.is_over() {
                me.part(peer);
                stay_away(world, me);
                break;
            }
            if slow && world.runs() {
                pause(me.time(100, 3_000));
            }
            match me.next(world, &mut peer) {
                Next::Message(message) => {
                    follower.take(world, &message);
                    follower.tell(message["topic"].as_str());
                }
                Next::Quiet => {}
                Next::End => break,
            }
        }
    }
}

/// Follows a topic or pattern as a browser does, resuming by the id of the last event.
pub fn stream(world: &World, me: &mut Me, pattern: &str) {
    let path = format!("/v1/topics/{}/events?from=start", pattern.replace('#', "%23"));
    let mut follower = Follower::new(pattern, Way::Stream);
    let mut id: Option<String> = None;
    let mut settled = None;
    loop {
        let before = world.life();
        let Some(tcp) = me.reach(world) else { return };
        follower.begin(world);
        follower.life = before;
        let Some(mut stream) = Stream::try_sse(tcp, &path, id.as_deref()) else {
            pause(me.time(200, 1_500));
            continue;
        };
        world.count("connections: server-sent events", 1);
        me.say(format!("asked for {path} after {id:?}"));
        let leaves = Deadline::after(me.time(2_000, 40_000));
        // Pings come often enough for looking at the phase.
        while let Some(message) = stream.any_message() {
            me.say(format!("{message:?}").chars().take(160).collect());
            follower.take(world, &message.data);
            if message.id.is_some() {
                id.clone_from(&message.id);
                let one = message.data["topic"].as_str().filter(|_| message.event == "message");
                follower.tell(one);
            }
            if settles(world, &mut settled).is_some_and(|targets| follower.has_reached(&targets)) {
                return;
            }
            if world.is_over() || world.runs() && leaves.is_over() {
                drop(stream);
                stay_away(world, me);
                break;
            }
        }
    }
}

/// A consumer of its own name: what it has not acknowledged comes again, and what it has does not
/// go away.
pub fn consume(world: &World, me: &mut Me, topic: &str) {
    let mut settled = None;
    let (mut acked, mut newest) = (0, 0);
    loop {
        let Some(mut peer) = me.connect(world) else { return };
        let request = json!({"type": "subscribe", "id": 1, "topic": topic, "from": "start",
            "consumer": me.name, "window": 16});
        let Some(reply) = me.ask(world, &mut peer, &request) else { continue };
        if reply["type"] == "error" {
            assert_eq!(reply["code"], "unavailable", "{reply}");
            continue;
        }
        let mut cursor = seq(&reply);
        assert!(cursor <= acked, "{acked} was acknowledged at most: {reply}");
        let place = position(&reply, cursor);
        let epoch = place["epoch"].as_str().unwrap_or_default();
        let leaves = Deadline::after(me.time(2_000, 40_000));
        loop {
            if let Some(targets) = settles(world, &mut settled)
                && targets.tails.get(topic).is_none_or(|(_, tail)| *tail == newest)
            {
                return;
            }
            if world.is_over() || world.runs() && leaves.is_over() {
                me.part(peer);
                break;
            }
            let message = match me.next(world, &mut peer) {
                Next::Message(message) if message["type"] == "event" => message,
                Next::Message(_) | Next::Quiet => continue,
                Next::End => break,
            };
            let (now, again) = (seq(&message), seq(&message) <= newest);
            assert!(now <= cursor + 1, "a hole after {cursor}: {message}");
            assert!(now <= newest + 1, "never got {}: {message}", newest + 1);
            (cursor, newest) = (now, newest.max(now));
            world.note((topic, epoch, now), mark(&message));
            world.count(if again { "events redelivered" } else { "events consumed" }, 1);
            if me.one_in(3) {
                acked = acked.max(now);
                peer.try_send(&json!({"type": "ack", "topic": topic, "seq": now}));
            }
        }
    }
}
