//! Promise 7: the same key on the same topic within the window is the same event, told as such.

use std::{sync::Barrier, thread};

use serde_json::{Value, json};

use crate::support::{
    node::Node,
    peer::{Peer, number, seq, seqs},
    wait::{LIMIT, wait_for},
};

#[track_caller]
fn publish(peer: &mut Peer, topic: &str, key: &str) -> Value {
    let request = json!({"type": "publish", "topic": topic, "data": key, "key": key});
    peer.ask(request, "published")
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
