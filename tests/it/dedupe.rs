//! Promise 7: the same key on the same topic within the window is the same event, told as such.

use std::{sync::Barrier, thread, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    node::{Node, Scratch, wait_for_metric},
    peer::{Peer, number, seq, seqs},
    wait::{LIMIT, pause, wait_for},
};

#[track_caller]
fn publish(peer: &mut Peer, topic: &str, key: &str) -> Value {
    let request = json!({"type": "publish", "topic": topic, "data": key, "key": key});
    peer.ask(request, "published")
}

#[track_caller]
fn post(node: &Node, topic: &str, key: &str) -> Value {
    let (path, key) = (format!("/v1/topics/{topic}/events"), format!("Idempotency-Key: {key}"));
    let reply = node.http().request("POST", &path, &[&key], "1");
    assert!(reply.status == 201 || reply.status == 200, "{reply:?}");
    reply.json()
}

fn is_duplicate(receipt: &Value) -> bool {
    receipt["duplicate"] == true
}

#[test]
fn a_repeated_key_is_answered_with_the_first_event_and_delivered_once() {
    let node = Node::start();
    let mut peer = node.peer();
    let mut subscriber = node.peer();
    subscriber.subscribe("lamp");

    let first = publish(&mut peer, "lamp", "k1");
    let second = publish(&mut peer, "lamp", "k2");
    let again = publish(&mut peer, "lamp", "k1");
    let from_another = publish(&mut node.peer(), "lamp", "k1");

    assert_eq!((seq(&first), is_duplicate(&first)), (1, false));
    assert_eq!((seq(&second), is_duplicate(&second)), (2, false));
    for receipt in [again, from_another] {
        assert_eq!((seq(&receipt), is_duplicate(&receipt)), (1, true), "{receipt}");
        assert_eq!(receipt["epoch"], first["epoch"]);
    }
    peer.publish("lamp", "last");
    assert_eq!(seqs(&subscriber.events(3)), [1, 2, 3]);
}

#[test]
fn keys_hold_across_websocket_and_http() {
    let node = Node::start();
    let mut peer = node.peer();
    let mut http = node.http();
    let mut post = |key: &str| {
        let key = format!("Idempotency-Key: {key}");
        let reply = http.request("POST", "/v1/topics/lamp/events", &[&key], "1");
        assert!(reply.status == 201 || reply.status == 200, "{reply:?}");
        reply.json()
    };

    assert_eq!(seq(&publish(&mut peer, "lamp", "k1")), 1);
    let over_http = post("k1");
    let fresh = post("k2");
    let over_websocket = publish(&mut peer, "lamp", "k2");

    assert_eq!((seq(&over_http), is_duplicate(&over_http)), (1, true), "{over_http}");
    assert_eq!((seq(&fresh), is_duplicate(&fresh)), (2, false), "{fresh}");
    assert_eq!((seq(&over_websocket), is_duplicate(&over_websocket)), (2, true));
}

#[test]
fn a_key_belongs_to_its_topic() {
    let node = Node::start();
    let mut peer = node.peer();

    for topic in ["a", "b", "a/b"] {
        let receipt = publish(&mut peer, topic, "k");
        assert_eq!((seq(&receipt), is_duplicate(&receipt)), (1, false), "{topic}: {receipt}");
    }
}

#[test]
fn after_the_window_a_key_is_new() {
    let node = Node::with(&["--dedupe-window", "1s"]);
    let mut peer = node.peer();
    publish(&mut peer, "lamp", "k");

    let receipt = wait_for("the key to be forgotten", LIMIT, || {
        let receipt = publish(&mut peer, "lamp", "k");
        (!is_duplicate(&receipt)).then_some(receipt)
    });

    assert_eq!(seq(&receipt), 2);
}

#[test]
fn a_key_outlives_its_event() {
    let node = Node::with(&["--max-events", "5"]);
    let mut peer = node.peer();
    publish(&mut peer, "lamp", "k");
    peer.publish_many("lamp", 100, 10);

    let first = number(&peer.history("lamp", json!("start"), 1), "first");
    let receipt = publish(&mut peer, "lamp", "k");

    assert!(1 < first, "the event is gone");
    assert_eq!((seq(&receipt), is_duplicate(&receipt)), (1, true), "{receipt}");
}

#[test]
fn one_of_many_concurrent_publishers_of_a_key_wins() {
    const PUBLISHERS: usize = 8;
    let node = Node::start();
    let barrier = Barrier::new(PUBLISHERS);

    for round in 1..=20_u64 {
        let key = format!("k{round}");
        let receipts: Vec<Value> = thread::scope(|scope| {
            let publishers: Vec<_> = (0..PUBLISHERS)
                .map(|_| {
                    let mut peer = node.peer();
                    let (barrier, key) = (&barrier, &key);
                    scope.spawn(move || {
                        barrier.wait();
                        publish(&mut peer, "lamp", key)
                    })
                })
                .collect();
            publishers.into_iter().map(|publisher| publisher.join().unwrap()).collect()
        });

        assert_eq!(seqs(&receipts), vec![round; PUBLISHERS], "{receipts:?}");
        let winners = receipts.iter().filter(|receipt| !is_duplicate(receipt)).count();
        assert_eq!(winners, 1, "{receipts:?}");
    }
}

#[test]
fn events_without_a_key_are_never_duplicates() {
    let node = Node::start();
    let mut peer = node.peer();

    for number in 1..=10 {
        assert_eq!(peer.publish("lamp", "same"), number);
    }
}

#[test]
fn the_memory_for_keys_is_bounded_also_over_many_topics() {
    const TOPICS: usize = 10;
    const KEYS: usize = 400_000;
    let node = Node::with(&["--max-events", "10", "--max-memory", "8MiB"]);
    let mut peer = node.peer();
    let padding = "k".repeat(100);
    let before = node.rss();

    for number in 0..KEYS {
        let (topic, key) = (format!("t/{}", number % TOPICS), format!("{padding}{number}"));
        peer.send(&json!({"type": "publish", "topic": topic, "data": 1, "key": key}));
    }
    peer.fence();

    let grown = node.rss().saturating_sub(before);
    assert!(grown < 64 << 20, "{KEYS} keys of {TOPICS} topics cost {grown} bytes");
}

// Across a restart.

#[test]
fn a_key_that_was_answered_is_a_duplicate_after_the_relay_was_killed() {
    for (sync, rest) in [("always", 0), ("os", 0), ("interval", 0), ("os", 50), ("always", 50)] {
        let dir = Scratch::new("data");
        let flags = ["--sync", sync, "--sync-interval", "1h"];
        let node = Node::durable(&dir, &flags);
        let mut peer = node.peer();
        // The first commit is that of the topic itself.
        peer.publish("lamp", 0);
        let first = publish(&mut peer, "lamp", "k1");
        let second = post(&node, "lamp", "k2");
        assert_eq!((seq(&first), seq(&second)), (2, 3));
        peer.publish_many("lamp", rest, 0);
        assert_eq!(peer.publish("lamp", "last"), 4 + rest);
        node.kill();

        for _ in 0..2 {
            let node = Node::durable(&dir, &flags);
            let mut peer = node.peer();
            for receipt in [publish(&mut peer, "lamp", "k1"), post(&node, "lamp", "k1")] {
                assert!(is_duplicate(&receipt), "{sync}: {receipt}");
                assert_eq!((seq(&receipt), &receipt["epoch"]), (2, &first["epoch"]));
            }
            for receipt in [publish(&mut peer, "lamp", "k2"), post(&node, "lamp", "k2")] {
                assert!(is_duplicate(&receipt), "{sync}: {receipt}");
                assert_eq!((seq(&receipt), &receipt["epoch"]), (3, &first["epoch"]));
            }
            node.kill();
        }
        let node = Node::durable(&dir, &flags);
        assert!(!is_duplicate(&publish(&mut node.peer(), "other", "k1")));
        let fresh = publish(&mut node.peer(), "lamp", "k3");
        assert_eq!((seq(&fresh), is_duplicate(&fresh)), (5 + rest, false), "{sync}: {fresh}");
    }
}

#[test]
fn a_key_outlives_its_event_and_the_relay() {
    let dir = Scratch::new("data");
    let flags = ["--max-events", "5"];
    let node = Node::durable(&dir, &flags);
    let mut peer = node.peer();
    let first = publish(&mut peer, "lamp", "k");
    peer.publish_many("lamp", 100, 10);
    wait_for_metric(&node, &["events_evicted_total", "count"], 96.0);
    node.kill();

    let node = Node::durable(&dir, &flags);
    let mut peer = node.peer();
    assert!(1 < number(&peer.history("lamp", json!("start"), 1), "first"), "the event is gone");
    for receipt in [publish(&mut peer, "lamp", "k"), post(&node, "lamp", "k")] {
        assert_eq!((seq(&receipt), is_duplicate(&receipt)), (1, true), "{receipt}");
        assert_eq!(receipt["epoch"], first["epoch"]);
    }
    assert_eq!(peer.publish("lamp", "next"), 102);
}

#[test]
fn a_key_beyond_its_window_is_new_after_a_restart() {
    let dir = Scratch::new("data");
    let flags = ["--dedupe-window", "2s"];
    let node = Node::durable(&dir, &flags);
    publish(&mut node.peer(), "lamp", "old");
    pause(Duration::from_millis(2_100));
    publish(&mut node.peer(), "lamp", "young");
    node.kill();

    let node = Node::durable(&dir, &flags);
    let mut peer = node.peer();
    let young = publish(&mut peer, "lamp", "young");
    assert_eq!((seq(&young), is_duplicate(&young)), (2, true));
    let old = publish(&mut peer, "lamp", "old");
    assert_eq!((seq(&old), is_duplicate(&old)), (3, false), "{old}");
    let receipt = wait_for("the key to be forgotten", LIMIT, || {
        let receipt = publish(&mut peer, "lamp", "young");
        (!is_duplicate(&receipt)).then_some(receipt)
    });
    assert_eq!(seq(&receipt), 4);
}

#[test]
fn a_key_that_is_not_stored_yet_is_answered_to_all_when_it_is() {
    const PUBLISHERS: usize = 6;
    for sync in ["always", "os"] {
        let dir = Scratch::new("data");
        let mut node = Node::durable(&dir, &["--sync", sync]);
        for round in 1..=5_u64 {
            let (barrier, key) = (Barrier::new(PUBLISHERS), format!("k{round}"));
            let receipts: Vec<Value> = thread::scope(|scope| {
                let publishers: Vec<_> = (0..PUBLISHERS)
                    .map(|number| {
                        let (node, barrier, key) = (&node, &barrier, &key);
                        let mut peer = node.peer();
                        scope.spawn(move || {
                            barrier.wait();
                            match number {
                                0 => post(node, "lamp", key),
                                _ => publish(&mut peer, "lamp", key),
                            }
                        })
                    })
                    .collect();
                publishers.into_iter().map(|publisher| publisher.join().unwrap()).collect()
            });
            // And two in one breath: the second comes before anything can be stored.
            let mut peer = node.peer();
            let publish = json!({"type": "publish", "topic": "pair", "data": 1, "key": key});
            let text = [1, 2].map(|id| {
                let mut request = publish.clone();
                request["id"] = json!(id);
                let bytes = request.to_string().into_bytes();
                crate::support::frame::masked(crate::support::frame::TEXT, &bytes)
            });
            peer.send_raw(&text.concat());
            let pair = [peer.expect("published"), peer.expect("published")];
            node.kill();

            assert_eq!(seqs(&receipts), vec![round; PUBLISHERS], "{receipts:?}");
            let winners = receipts.iter().filter(|receipt| !is_duplicate(receipt)).count();
            assert_eq!(winners, 1, "{receipts:?}");
            assert_eq!((seqs(&pair), is_duplicate(&pair[1])), (vec![round; 2], true), "{pair:?}");
            node = Node::durable(&dir, &["--sync", sync]);
            for topic in ["lamp", "pair"] {
                let history = node.peer().history(topic, json!("start"), 100);
                assert_eq!(number(&history, "tail"), round, "{topic}, {sync}");
            }
        }
    }
}
