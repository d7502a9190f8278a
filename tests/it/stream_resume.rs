//! A browser that comes back with the id of its last event gets what it lacks, each event once, or
//! is told what it cannot get.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use serde_json::Value;

use crate::support::{
    node::{Node, Scratch},
    peer::{number, seq},
    stream::{Message, Stream},
};

const LAMP: &str = "/v1/topics/lamp/events";
const HOME: &str = "/v1/topics/home/%23/events";

/// What a browser has seen of a stream, over all of its connections.
#[derive(Default)]
struct Seen {
    last_id: Option<String>,
    at: BTreeMap<String, u64>,
    gaps: Vec<Value>,
}

impl Seen {
    /// Connects as a browser does, and reads until `enough` of the messages seen in this
    /// connection.
    #[track_caller]
    fn read(&mut self, node: &Node, path: &str, mut enough: impl FnMut(&Seen, &Message) -> bool) {
        let mut stream = Stream::sse_after(node.addr(), path, self.last_id.as_deref());
        loop {
            let message = stream.message().expect("the stream goes on");
            if let Some(id) = &message.id {
                self.last_id = Some(id.clone());
            }
            match message.event.as_str() {
                "message" => {
                    let topic = message.data["topic"].as_str().unwrap().to_owned();
                    let at = self.at.entry(topic.clone()).or_default();
                    assert_eq!(seq(&message.data), *at + 1, "{topic}");
                    *at += 1;
                }
                "gap" => {
                    if let (Some(topic), Some(to)) =
                        (message.data["topic"].as_str(), message.data["to"].as_u64())
                    {
                        self.at.insert(topic.to_owned(), to);
                    }
                    self.gaps.push(message.data.clone());
                }
                _ => {}
            }
            if enough(self, &message) {
                return;
            }
        }
    }

    fn total(&self) -> u64 {
        self.at.values().sum()
    }
}

/// Some number below `limit`, another one each time.
fn some(step: &mut u64, limit: u64) -> u64 {
    *step = step.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*step >> 33) % limit
}

#[test]
fn a_stream_cut_at_random_moments_loses_nothing_and_repeats_nothing() {
    for (path, topics) in [(LAMP, &["lamp"][..]), (HOME, &["home/a", "home/b", "home/c"])] {
        let node = Node::with(&["--max-events", "200000"]);
        let is_over = Arc::new(AtomicBool::new(false));
        let mut publisher = node.peer();
        let over = Arc::clone(&is_over);
        let publishing = thread::spawn(move || {
            let mut counts = vec![0; topics.len()];
            while !over.load(Ordering::Relaxed) {
                for (topic, count) in topics.iter().zip(&mut counts) {
                    publisher.publish_many(topic, 5, 200);
                    *count += 5;
                }
            }
            counts
        });

        let (mut seen, mut step) = (Seen::default(), 7);
        // Live at first: what was published before the first connection is not its business.
        let mut from_start = Some(format!("{path}?from=start"));
        for _ in 0..60 {
            let mut left = 1 + some(&mut step, 400);
            let path = from_start.take().unwrap_or_else(|| path.to_owned());
            seen.read(&node, &path, |_, message| {
                left -= u64::from(message.event == "message");
                left == 0
            });
        }
        is_over.store(true, Ordering::Relaxed);
        let counts: Vec<u64> = publishing.join().unwrap();
        let all: u64 = counts.iter().sum();
        if seen.total() < all {
            seen.read(&node, path, |seen, _| seen.total() == all);
        }

        assert_eq!(seen.at.values().copied().collect::<Vec<_>>(), counts);
        assert_eq!(seen.gaps, [] as [Value; 0]);
    }
}

#[test]
fn a_stream_that_saw_no_event_yet_resumes_as_well() {
    let node = Node::start();
    let mut peer = node.peer();
    peer.publish("home/a", 1);
    for path in [LAMP, HOME] {
        let mut first = Stream::sse(node.addr(), path);
        let last = if path == LAMP { "subscribed" } else { "ready" };
        while first.message().unwrap().event != last {}
        let id = first.last_id.clone();
        drop(first);

        peer.publish("lamp", 1);
        peer.publish("home/a", 2);
        peer.publish("home/new", 3);

        let mut again = Stream::sse_after(node.addr(), path, id.as_deref());
        let mut data = Vec::new();
        let wanted = if path == LAMP { 1 } else { 2 };
        while data.len() < wanted {
            let message = again.message().unwrap();
            if message.event == "message" {
                data.push(number(&message.data, "data"));
            }
        }
        data.sort_unstable();
        let expected: &[u64] = if path == LAMP { &[1] } else { &[2, 3] };
        assert_eq!(data, expected);
    }
}

#[test]
fn what_the_log_has_passed_is_named_once() {
    let node = Node::with(&["--max-events", "10"]);
    let mut peer = node.peer();
    for path in [LAMP, HOME] {
        let topic = if path == LAMP { "lamp" } else { "home/a" };
        peer.publish_many(topic, 5, 0);
        let mut seen = Seen::default();
        let start = format!("{path}?from=start");
        seen.read(&node, &start, |seen, _| seen.total() == 5);

        peer.publish_many(topic, 45, 0);
        seen.read(&node, path, |seen, _| seen.total() == 50);
        assert_eq!(seen.gaps.len(), 1, "{:?}", seen.gaps);
        let gap = &seen.gaps[0];
        assert_eq!((number(gap, "from"), number(gap, "to")), (6, 40), "{gap}");
        assert_eq!(gap["reason"], "truncated");

        peer.publish(topic, 1);
        seen.read(&node, path, |seen, _| seen.total() == 51);
        assert_eq!(seen.gaps.len(), 1, "a loss is told once: {:?}", seen.gaps);
    }
}

#[test]
fn after_a_restart_durable_topics_go_on_and_others_say_that_they_began_anew() {
    let dir = Scratch::new("stream-restart");
    let node = Node::durable(&dir, &[]);
    let mut peer = node.peer();
    peer.publish_many("lamp", 7, 0);
    peer.publish_many("home/a", 7, 0);
    let (mut lamp, mut home) = (Seen::default(), Seen::default());
    lamp.read(&node, &format!("{LAMP}?from=start"), |seen, _| seen.total() == 3);
    home.read(&node, &format!("{HOME}?from=start"), |seen, _| seen.total() == 3);
    node.kill();

    let node = Node::durable(&dir, &[]);
    lamp.read(&node, LAMP, |seen, _| seen.total() == 7);
    home.read(&node, HOME, |seen, _| seen.total() == 7);
    assert_eq!((lamp.gaps.len(), home.gaps.len()), (0, 0));
    node.stop();

    // All of it lives in memory from here on.
    let node = Node::start();
    node.peer().publish_many("home/b", 2, 0);
    for (path, seen) in [(LAMP, &mut lamp), (HOME, &mut home)] {
        seen.at.clear();
        seen.read(&node, path, |seen, _| !seen.gaps.is_empty());
        assert_eq!(seen.gaps[0]["reason"], "epoch_changed", "{:?}", seen.gaps);
    }
    assert_eq!(home.gaps[0]["topics"], 1, "which it was an id does not say: {:?}", home.gaps);
    home.at.clear();
    home.read(&node, HOME, |seen, _| seen.total() == 2);
}
