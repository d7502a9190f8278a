//! Promise 6 across restarts: no position is ahead of what was acknowledged, and nothing that was
//! not acknowledged is lost.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    dice::Dice,
    node::{Node, Scratch},
    peer::{Incoming, Peer, number, seq, seqs},
    wait::{Deadline, LIMIT, pause},
};

#[track_caller]
fn consume(peer: &mut Peer, topic: &str, from: &str, window: u64) -> Value {
    let request = json!({
        "type": "subscribe", "topic": topic, "from": from, "ack": true, "window": window,
        "consumer": "mill"
    });
    peer.ask(request, "subscribed")
}

#[track_caller]
fn ack(peer: &mut Peer, topic: &str, seq: u64) {
    peer.send(&json!({"type": "ack", "topic": topic, "seq": seq}));
}

#[test]
fn a_position_is_on_disk_soon_after_its_acknowledgement() {
    for sync in ["always", "os"] {
        let dir = Scratch::new("data");
        let node = Node::durable(&dir, &["--sync", sync]);
        node.peer().publish_many("jobs", 50, 0);
        let mut peer = node.peer();
        consume(&mut peer, "jobs", "start", 100);
        assert_eq!(seqs(&peer.events(50)), (1..=50).collect::<Vec<_>>());
        ack(&mut peer, "jobs", 20);
        peer.fence();
        pause(Duration::from_millis(2_500));
        node.kill();

        let node = Node::durable(&dir, &["--sync", sync]);
        let mut peer = node.peer();
        let head = consume(&mut peer, "jobs", "start", 100);
        assert_eq!((seq(&head), &head["recovery"]["mode"]), (20, &json!("complete")), "{sync}");
        assert_eq!(seqs(&peer.events(30)), (21..=50).collect::<Vec<_>>());
        // In good order nothing has to be waited for.
        ack(&mut peer, "jobs", 50);
        peer.fence();
        node.stop();
        let node = Node::durable(&dir, &["--sync", sync]);
        assert_eq!(seq(&consume(&mut node.peer(), "jobs", "start", 100)), 50, "{sync}");
    }
}

#[test]
fn a_relay_that_is_killed_any_time_loses_nothing_that_was_not_acknowledged() {
    let dir = Scratch::new("data");
    let mut node = Node::durable(&dir, &["--max-tail", "4KiB"]);
    node.peer().publish_many("jobs", 2_000, 20);
    let mut acked = 0;
    for round in 1..=6 {
        let mut peer = node.peer();
        let head = consume(&mut peer, "jobs", "start", 50);
        assert!(seq(&head) <= acked, "{head} is ahead of {acked}");
        for next in (seq(&head) + 1..).take(100 * round) {
            assert_eq!(seq(&peer.expect("event")), next);
            ack(&mut peer, "jobs", next);
            acked = acked.max(next);
        }
        if round % 2 == 0 {
            pause(Duration::from_millis(700));
        }
        node.kill();
        node = Node::durable(&dir, &["--max-tail", "4KiB"]);
    }
}

#[test]
fn a_consumer_is_on_disk_before_it_is_answered() {
    let dir = Scratch::new("data");
    for round in 0..5_u64 {
        let (topic, tail) = (format!("jobs/{round}"), 3 + round);
        let node = Node::durable(&dir, &["--sync", if round % 2 == 0 { "always" } else { "os" }]);
        (1..=tail).for_each(|number| _ = node.peer().publish(&topic, number));
        assert_eq!(seq(&consume(&mut node.peer(), &topic, "live", 5)), tail);
        node.kill();

        let node = Node::durable(&dir, &[]);
        node.peer().publish_many(&topic, 2, 0);
        let mut peer = node.peer();
        // Were it new, it would start elsewhere.
        let head = consume(&mut peer, &topic, "start", 5);
        assert_eq!((seq(&head), &head["recovery"]["mode"]), (tail, &json!("complete")));
        assert_eq!(seqs(&peer.events(2)), [tail + 1, tail + 2]);
        node.kill();
    }
}

#[test]
fn a_consumer_of_a_memory_topic_is_new_after_a_restart() {
    let node = Node::start();
    node.peer().publish_many("jobs", 3, 0);
    consume(&mut node.peer(), "jobs", "live", 5);
    node.stop();
    let node = Node::start();
    node.peer().publish_many("jobs", 2, 0);
    assert_eq!(node.get("/v1/consumers").json()["consumers"], json!([]));
    let mut peer = node.peer();
    let head = consume(&mut peer, "jobs", "start", 5);
    assert_eq!((seq(&head), &head["recovery"]), (0, &Value::Null));
    assert_eq!(seqs(&peer.events(2)), [1, 2]);
}

// Everything at once.

const FLAGS: [&str; 6] =
    ["--ack-timeout", "300ms", "--max-deliveries", "1000000", "--max-tail", "4KiB"];

/// A consumer's life, and what it must and must not see.
struct Life<'a> {
    dice: Dice,
    dir: &'a Scratch,
    node: Option<Node>,
    peer: Option<Peer>,
    published: u64,
    /// The highest acknowledgement that was ever sent.
    acked: u64,
    /// The highest that was sent over this connection.
    said: u64,
    /// What the relay has certainly noted, while it lives.
    noted: u64,
    window: u64,
    /// The last event of this run of deliveries.
    last: u64,
    seen: BTreeSet<u64>,
}

impl Life<'_> {
    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    #[track_caller]
    fn connect(&mut self) {
        let mut peer = self.node().peer();
        self.window = 1 + self.dice.below(40);
        let from = if self.published == 0 { "live" } else { "start" };
        let head = consume(&mut peer, "jobs", from, self.window);
        let (noted, acked) = (self.noted, self.acked);
        assert!(noted <= seq(&head), "{head} is behind {noted}, which was noted");
        assert!(seq(&head) <= acked, "{head} is ahead of {acked}, which was acknowledged");
        (self.noted, self.said) = (seq(&head), seq(&head));
        self.last = seq(&head);
        self.peer = Some(peer);
    }

    fn publish(&mut self) {
        let mut peer = self.node().peer();
        for _ in 0..=self.dice.below(30) {
            let data = self.published + 1;
            self.published = peer.publish("jobs", data);
            assert_eq!(self.published, data);
        }
    }

    /// Takes what comes, for a moment or until `upto`.
    #[track_caller]
    fn take(&mut self, upto: u64, limit: Duration) {
        let deadline = Deadline::after(limit);
        while self.last < upto && !deadline.is_over() {
            let Some(peer) = &mut self.peer else { return };
            let text = match peer.receive(deadline.left()) {
                Some(Incoming::Text(text)) => text,
                Some(other) => panic!("got {other:?}"),
                None => return,
            };
            let event: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(event["type"], "event", "{event}");
            let seq = seq(&event);
            assert_eq!(number(&event, "data"), seq);
            let again = self.noted < seq && seq <= self.said + 1;
            assert!(seq == self.last + 1 || again, "{event} after {}", self.last);
            assert!(seq <= self.said + self.window, "{event}: {} is acknowledged", self.said);
            self.last = seq;
            self.seen.insert(seq);
        }
    }

    fn ack(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        if self.noted < self.last {
            let seq = self.noted + 1 + self.dice.below(self.last - self.noted);
            ack(peer, "jobs", seq);
            self.said = self.said.max(seq);
            self.acked = self.acked.max(seq);
            if self.dice.below(3) == 0 {
                self.begin_anew();
            }
        }
    }

    /// Reconnects when the relay has handled what was said. The events on the way come again.
    fn begin_anew(&mut self) {
        if let Some(mut peer) = self.peer.take() {
            peer.fence();
            peer.cut();
        }
        self.noted = self.said;
        self.connect();
    }

    fn take_over(&mut self) {
        let Some(mut old) = self.peer.take() else { return self.connect() };
        let last = self.last;
        self.connect();
        // Refused, ignored or not even heard.
        for seq in [last, self.published] {
            let text = json!({"type": "ack", "topic": "jobs", "seq": seq}).to_string();
            old.try_send_raw(&crate::support::frame::masked(1, text.as_bytes()));
        }
        assert_eq!(old.close_code(), Some(4_002));
    }

    fn restart(&mut self) {
        self.peer = None;
        if self.dice.below(4) == 0 {
            self.node.take().unwrap().stop();
        } else {
            self.node.take().unwrap().kill();
            self.noted = 0;
        }
        self.node = Some(Node::durable(self.dir, &FLAGS));
        self.connect();
    }

    fn step(&mut self) {
        match self.dice.below(100) {
            0..25 => self.publish(),
            25..50 => self.take(u64::MAX, Duration::from_millis(20)),
            50..75 => self.ack(),
            75..83 => {
                if let Some(peer) = self.peer.take() {
                    peer.cut();
                }
                self.connect();
            }
            83..92 => self.take_over(),
            92..96 => self.take(u64::MAX, Duration::from_millis(350)),
            _ => self.restart(),
        }
    }

    /// Acknowledges everything, after which nothing comes again.
    fn end(&mut self) {
        while self.said < self.published {
            self.take(self.said + 1, LIMIT);
            self.said += 1;
            self.acked = self.acked.max(self.said);
            if let Some(peer) = &mut self.peer {
                ack(peer, "jobs", self.said);
            }
        }
        self.begin_anew();
        assert_eq!(self.noted, self.published);
        assert_eq!(self.seen, (1..=self.published).collect(), "not all were delivered");
        let quiet = Duration::from_millis(700);
        assert_eq!(self.peer.as_mut().unwrap().receive(quiet), None);
        pause(Duration::from_secs(2));
        self.peer = None;
        self.node.take().unwrap().kill();
        self.node = Some(Node::durable(self.dir, &FLAGS));
        self.connect();
        assert_eq!(self.noted, self.published);
        assert_eq!(self.peer.as_mut().unwrap().receive(quiet), None);
    }
}

#[test]
fn whatever_happens_every_event_is_delivered_until_it_is_acknowledged() {
    let seed = match std::env::var("LANDLINE_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => RandomState::new().hash_one(0) >> 1,
    };
    eprintln!("LANDLINE_SEED={seed}");
    let dir = Scratch::new("data");
    let mut life = Life {
        dice: Dice(seed),
        dir: &dir,
        node: Some(Node::durable(&dir, &FLAGS)),
        peer: None,
        published: 0,
        acked: 0,
        said: 0,
        noted: 0,
        window: 0,
        last: 0,
        seen: BTreeSet::new(),
    };
    life.connect();
    for _ in 0..150 {
        life.step();
    }
    life.end();
}
