//! One client: what it asked for, what it follows, and whether what comes is what was promised.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde_json::{Value, json};

use crate::{
    peer::{LIMIT, Wire},
    values::Mirror,
    world::{World, number, topic},
};

pub struct Client {
    wire: Wire,
    pub connection: u64,
    last_id: u64,
    /// What was asked and is not answered.
    asked: BTreeMap<u64, Asked>,
    /// What it is subscribed to, and what that brings.
    filters: Vec<String>,
    pub follows: BTreeMap<usize, Follow>,
    pub mirror: Option<Mirror>,
    /// A consumer of it may be taken over, which ends the connection.
    pub ended: bool,
}

/// A topic that is followed.
#[derive(Clone, Debug)]
pub struct Follow {
    pub epoch: String,
    pub at: u64,
    time: u64,
    /// The last event that was acknowledged, and how many may come after it.
    pub window: Option<(u64, u64)>,
}

#[derive(Clone, Debug)]
pub enum Asked {
    Publish(u64),
    Subscribe {
        filter: String,
        from: Value,
        is_quiet: bool,
        window: Option<u64>,
        consumer: Option<Vec<u64>>,
    },
    Unsubscribe,
    Fence,
    State,
}

impl Client {
    pub fn connect(addr: SocketAddr, connection: u64) -> Client {
        Client {
            wire: Wire::connect(addr),
            connection,
            last_id: 0,
            asked: BTreeMap::new(),
            filters: Vec::new(),
            follows: BTreeMap::new(),
            mirror: None,
            ended: false,
        }
    }

    pub fn close(self) {
        self.wire.close();
    }

    pub fn cut(self) {
        self.wire.cut();
    }

    pub fn is_subscribed(&self, filter: &str) -> bool {
        self.filters.iter().any(|known| known == filter)
    }

    /// Whether an event of it may be on its way.
    pub fn is_publishing(&self) -> bool {
        self.asked.values().any(|asked| matches!(asked, Asked::Publish(_)))
    }

    /// Sends a request under an id of its own; the answer is dealt with when it comes.
    pub fn ask(&mut self, mut request: Value, asked: Asked) -> u64 {
        self.last_id += 1;
        request["id"] = self.last_id.into();
        self.asked.insert(self.last_id, asked);
        self.wire.send(&request);
        self.last_id
    }

    pub fn send(&mut self, request: &Value) {
        self.wire.send(request);
    }

    /// Waits for the answer to `id`.
    pub fn answered(&mut self, id: u64, world: &mut World) -> Value {
        loop {
            if self.ended {
                return Value::Null;
            }
            let answer = self.step(world, LIMIT);
            if answer["id"] == id {
                return answer;
            }
        }
    }

    /// Waits until everything that was sent is carried out.
    pub fn fence(&mut self, world: &mut World) {
        let id = self.ask(json!({"type": "ping"}), Asked::Fence);
        self.answered(id, world);
        while !self.ended && !self.asked.is_empty() {
            self.step(world, LIMIT);
        }
    }

    /// Takes what has come, without waiting for more.
    pub fn take(&mut self, world: &mut World) {
        while !self.ended && !self.step(world, Duration::from_millis(1)).is_null() {}
    }

    /// Waits until it has everything that there is for it: promise 1, and that nothing gets stuck.
    pub fn catch_up(&mut self, world: &mut World, version: u64) {
        loop {
            let lacks = |(topic, follow): (&usize, &Follow)| {
                let open = follow.window.map_or(u64::MAX, |(acked, window)| acked + window);
                follow.at < world.topics[*topic].tail.min(open)
            };
            let is_behind = self.mirror.as_ref().is_some_and(|mirror| mirror.lacks(version));
            if self.ended || !(is_behind || self.follows.iter().any(lacks)) {
                return;
            }
            self.step(world, LIMIT);
        }
    }

    /// The next message, dealt with; `null` if there is none.
    fn step(&mut self, world: &mut World, limit: Duration) -> Value {
        let Some(message) = self.wire.receive(limit) else {
            self.ended |= limit == LIMIT;
            return Value::Null;
        };
        let asked = message["id"].as_u64().and_then(|id| self.asked.remove(&id));
        match message["type"].as_str().unwrap_or_default() {
            "event" => self.event(world, &message),
            "gap" => self.gap(world, &message),
            "subscribed" => self.subscribed(world, &message, asked),
            "attached" => self.attached(world, &message),
            "unsubscribed" => self.unsubscribed(&message),
            "published" => match asked {
                Some(Asked::Publish(number)) => world.published(number, &message),
                _ => panic!("not asked: {message}"),
            },
            "bye" => {
                assert_eq!(message["reason"], "replaced", "{message}");
                self.ended = true;
            }
            "watching" | "state" | "synced" => {
                let mirror = self.mirror.as_mut().unwrap_or_else(|| panic!("{message}"));
                mirror.take(&message);
            }
            "error" => match asked {
                Some(Asked::State) => {}
                Some(Asked::Unsubscribe) => assert_eq!(message["code"], "not_found"),
                asked => panic!("{asked:?} was answered {message}"),
            },
            "pong" | "stored" | "deleted" | "values" => {}
            _ => panic!("unknown: {message}"),
        }
        message
    }

    fn event(&mut self, world: &mut World, event: &Value) {
        let (topic, seq) = (topic(event), number(event, "seq"));
        let follow = self.follows.get_mut(&topic).unwrap_or_else(|| panic!("{event}"));
        assert_eq!(seq, follow.at + 1, "after {} came {event}", follow.at);
        let time = number(event, "time");
        assert!(follow.time <= time, "times go back: {event}");
        if let Some((acked, window)) = follow.window {
            assert!(seq <= acked + window, "beyond {window} after {acked}: {event}");
        }
        (follow.at, follow.time) = (seq, time);
        world.saw(topic, seq, &event["data"]);
    }

    fn gap(&mut self, world: &mut World, gap: &Value) {
        let (topic, from, to) = (topic(gap), number(gap, "from"), number(gap, "to"));
        let follow = self.follows.get_mut(&topic).unwrap_or_else(|| panic!("{gap}"));
        assert!(from == follow.at + 1 && from <= to, "after {} came {gap}", follow.at);
        let reasons = ["slow", "truncated"];
        assert!(reasons.contains(&gap["reason"].as_str().unwrap_or_default()), "{gap}");
        follow.at = to;
        world.gone(topic, to);
    }

    fn subscribed(&mut self, world: &mut World, reply: &Value, asked: Option<Asked>) {
        let Some(Asked::Subscribe { filter, from, is_quiet, window, consumer }) = asked else {
            panic!("not asked: {reply}");
        };
        assert_eq!(reply["topic"], *filter, "{reply}");
        let is_pattern = filter.contains('+');
        if is_pattern && self.is_subscribed(&filter) {
            assert_eq!(reply["replaced"], true, "{reply}");
            self.unsubscribed(reply);
        }
        if !self.is_subscribed(&filter) {
            self.filters.push(filter.clone());
        }
        if is_pattern {
            return;
        }
        let topic = topic(reply);
        if let Some(positions) = consumer {
            let seq = number(reply, "seq");
            assert!(positions.is_empty() || positions.contains(&seq), "{positions:?}: {reply}");
            self.begin(world, topic, reply, window);
            return;
        }
        if reply["shared"] == true {
            return self.shares(world, topic, reply);
        }
        assert_eq!(reply["replaced"] == true, self.follows.contains_key(&topic), "{reply}");
        check_start(world, topic, reply, (&from, is_quiet));
        self.begin(world, topic, reply, window);
    }

    /// The cursor stays where it is, which is where the client knows it.
    fn shares(&mut self, world: &mut World, topic: usize, reply: &Value) {
        world.epoch(topic, reply);
        let follow = self.follows.get(&topic).unwrap_or_else(|| panic!("with whom? {reply}"));
        assert_eq!(follow.at, number(reply, "seq"), "{reply}");
    }

    fn begin(&mut self, world: &mut World, topic: usize, reply: &Value, window: Option<u64>) {
        let (epoch, at) = (world.epoch(topic, reply), number(reply, "seq"));
        assert!(at <= number(reply, "tail"), "{reply}");
        let window = window.map(|window| (at, window));
        self.follows.insert(topic, Follow { epoch, at, time: 0, window });
    }

    fn attached(&mut self, world: &mut World, message: &Value) {
        let topic = topic(message);
        if message["shared"] == true {
            return self.shares(world, topic, message);
        }
        assert!(!self.follows.contains_key(&topic), "it is followed already: {message}");
        self.begin(world, topic, message, None);
    }

    fn unsubscribed(&mut self, message: &Value) {
        let gone = message["topic"].as_str().unwrap_or_default();
        self.filters.retain(|filter| filter != gone);
        let filters = &self.filters;
        let covers = |filter: &String, name: &str| match filter.strip_suffix('+') {
            Some(begin) => name.starts_with(begin),
            None => filter == name,
        };
        self.follows.retain(|topic, _| {
            let name = crate::world::TOPICS[*topic].0;
            filters.iter().any(|filter| covers(filter, name))
        });
    }
}

/// Promise 3: the table in `docs/protocol.md`, section "Resuming". The position is looked up before
/// the answer is written, which has `first` and `tail` of then: unless nothing is on its way, both
/// may be later.
fn check_start(world: &World, topic: usize, reply: &Value, (from, is_quiet): (&Value, bool)) {
    let (first, tail) = (number(reply, "first"), number(reply, "tail"));
    let seq = number(reply, "seq");
    let life = &world.topics[topic];
    let plain = match from.as_str() {
        Some("live") => Some(tail),
        Some(_) => Some(first - 1),
        None => from["last"].as_u64().map(|count| (first - 1).max(tail.saturating_sub(count))),
    };
    if let Some(latest) = plain {
        let is_it = seq == latest || (seq < latest && !is_quiet);
        assert!(is_it && reply["recovery"].is_null(), "{from}: {reply}");
        return;
    }
    let asked = number(from, "seq");
    let is_same = from["epoch"] == reply["epoch"];
    // Nobody sees an event before it is as safe as it is to be: it cannot be lost.
    assert!(!is_same || asked <= tail, "the position {from} is ahead of {reply}: {life:?}");
    let recovery = &reply["recovery"];
    let begin = if is_same { asked } else { 0 };
    let missing = if begin < seq { json!([begin + 1, seq]) } else { Value::Null };
    assert_eq!(recovery["missing"], missing, "{from}: {reply}");
    let mode = match (is_same, begin < seq) {
        (false, _) => "reset",
        (true, true) => "partial",
        (true, false) => "complete",
    };
    assert_eq!(recovery["mode"], mode, "{from}: {reply}");
    let is_at_first = seq + 1 == first || (seq + 1 < first && !is_quiet);
    assert!(is_at_first || mode == "complete" && seq == asked, "{from}: {reply}");
}
