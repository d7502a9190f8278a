//! Promise 6, consumers: a name whose acknowledged position the relay keeps, for one connection at
//! a time, across reconnects and on durable topics across restarts.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    node::{Node, Scratch, wait_for_metric},
    peer::{Peer, number, seq, seqs},
    wait::{LIMIT, wait_until},
};

const QUIET: Duration = Duration::from_millis(300);

fn request(topic: &str, consumer: &str, from: &str, window: u64) -> Value {
    json!({
        "type": "subscribe", "topic": topic, "from": from, "ack": true, "window": window,
        "consumer": consumer
    })
}

#[track_caller]
fn consume(peer: &mut Peer, topic: &str, consumer: &str, from: &str) -> Value {
    peer.ask(request(topic, consumer, from, 100), "subscribed")
}

#[track_caller]
fn ack(peer: &mut Peer, topic: &str, seq: u64) {
    peer.send(&json!({"type": "ack", "topic": topic, "seq": seq}));
    peer.fence();
}

/// What `GET /v1/consumers` says.
#[track_caller]
fn list(node: &Node, query: &str) -> Vec<Value> {
    node.get(&format!("/v1/consumers{query}")).json()["consumers"].as_array().unwrap().clone()
}

#[track_caller]
fn stored(node: &Node, consumer: &str) -> Value {
    let found = list(node, "").into_iter().find(|listed| listed["consumer"] == consumer);
    found.unwrap_or_else(|| panic!("no consumer {consumer}"))
}

/// Waits until nobody holds `consumer`: the end of its connection has been noticed.
#[track_caller]
fn wait_until_free(node: &Node, consumer: &str) {
    wait_until("the consumer to be free", LIMIT, || stored(node, consumer)["connected"] == false);
}

fn dir() -> Scratch {
    Scratch::new("data")
}

// The position.

#[test]
fn the_next_connection_gets_what_was_not_acknowledged_at_once() {
    let dir = dir();
    for node in [Node::start(), Node::durable(&dir, &[])] {
        node.peer().publish_many("jobs", 5, 0);
        let mut peer = node.peer();
        let head = consume(&mut peer, "jobs", "mill", "start");
        assert_eq!((seq(&head), &head["recovery"]), (0, &Value::Null));
        assert_eq!(seqs(&peer.events(5)), [1, 2, 3, 4, 5]);
        ack(&mut peer, "jobs", 3);
        peer.cut();

        // Wherever it asks to start, and long before the timeout of acknowledgements.
        for from in ["live", "start"] {
            let mut peer = node.peer();
            let head = consume(&mut peer, "jobs", "mill", from);
            assert_eq!((seq(&head), &head["recovery"]["mode"]), (3, &json!("complete")));
            assert_eq!(seqs(&peer.events(2)), [4, 5]);
            peer.cut();
        }
        let mut peer = node.peer();
        consume(&mut peer, "jobs", "mill", "live");
        assert_eq!(seqs(&peer.events(2)), [4, 5]);
        ack(&mut peer, "jobs", 5);
        peer.close();
        let mut peer = node.peer();
        assert_eq!(seq(&consume(&mut peer, "jobs", "mill", "start")), 5);
        assert_eq!(peer.receive(QUIET), None);
        assert_eq!(peer.publish("jobs", "next"), 6);
        assert_eq!(seq(&peer.expect("event")), 6);
    }
}

#[test]
fn consumers_of_a_topic_are_independent_and_bound_to_it() {
    let node = Node::start();
    for topic in ["a", "b"] {
        node.peer().publish_many(topic, 4, 0);
    }
    let mut peer = node.peer();
    consume(&mut peer, "a", "one", "start");
    assert_eq!(seqs(&peer.events(4)), [1, 2, 3, 4]);
    ack(&mut peer, "a", 4);
    consume(&mut peer, "b", "one", "start");
    assert_eq!(seqs(&peer.events(4)), [1, 2, 3, 4]);
    let mut other = node.peer();
    consume(&mut other, "a", "two", "start");
    assert_eq!(seqs(&other.events(4)), [1, 2, 3, 4]);
    ack(&mut other, "a", 2);

    let positions: Vec<_> = list(&node, "")
        .iter()
        .map(|it| json!([it["topic"], it["consumer"], it["seq"], it["lag"], it["connected"]]))
        .collect();
    let expected = [
        json!(["a", "one", 4, 0, true]),
        json!(["a", "two", 2, 2, true]),
        json!(["b", "one", 0, 4, true]),
    ];
    assert_eq!(positions, expected);
}

#[test]
fn a_consumer_is_for_one_topic_and_moves_by_acknowledgements() {
    let node = Node::start();
    let mut peer = node.peer();
    for (field, value, at) in [
        ("topic", json!("jobs/#"), "consumer"),
        ("consumer", json!("a/b"), "consumer"),
        ("consumer", json!(""), "consumer"),
        ("consumer", json!(7), "consumer"),
        ("consumer", json!("x".repeat(129)), "consumer"),
        ("ack", json!(false), "ack"),
    ] {
        let mut request = request("jobs", "mill", "live", 5);
        request[field] = value;
        assert_eq!(peer.refused(request, "bad_request")["field"], at);
    }
    assert_eq!(list(&node, "").len(), 0);
    let implied = json!({"type": "subscribe", "topic": "jobs", "consumer": "mill"});
    peer.ask(implied, "subscribed");
    peer.publish("jobs", 1);
    ack(&mut peer, "jobs", 1);
    assert_eq!(number(&stored(&node, "mill"), "seq"), 1);
}

#[test]
fn what_retention_removed_moves_the_position_and_is_named() {
    let dir = dir();
    let flags = ["--max-events", "10"];
    for node in [Node::with(&flags), Node::durable(&dir, &flags)] {
        node.peer().publish_many("jobs", 5, 0);
        let mut peer = node.peer();
        consume(&mut peer, "jobs", "mill", "start");
        assert_eq!(seqs(&peer.events(5)), [1, 2, 3, 4, 5]);
        ack(&mut peer, "jobs", 2);
        peer.cut();
        wait_until_free(&node, "mill");
        node.peer().publish_many("jobs", 25, 0);
        wait_for_metric(&node, &["events_evicted_total"], 20.0);

        let mut peer = node.peer();
        let head = consume(&mut peer, "jobs", "mill", "live");
        let recovery = json!({"mode": "partial", "missing": [3, 20], "reason": "truncated"});
        assert_eq!((seq(&head), &head["recovery"]), (20, &recovery));
        assert_eq!(number(&stored(&node, "mill"), "seq"), 20);
        assert_eq!(seqs(&peer.events(10)), (21..=30).collect::<Vec<_>>());
    }
}

#[test]
fn who_ends_or_changes_a_subscription_lets_go_of_its_consumer() {
    let node = Node::start();
    node.peer().publish_many("jobs", 3, 0);
    let mut peer = node.peer();
    consume(&mut peer, "jobs", "one", "start");
    ack(&mut peer, "jobs", 1);
    consume(&mut peer, "jobs", "two", "start");
    assert_eq!(stored(&node, "one")["connected"], false);
    ack(&mut peer, "jobs", 3);
    assert_eq!(
        (number(&stored(&node, "one"), "seq"), number(&stored(&node, "two"), "seq")),
        (1, 3)
    );
    peer.subscribe("jobs");
    assert_eq!(stored(&node, "two")["connected"], false);
    consume(&mut peer, "jobs", "one", "live");
    peer.ask(json!({"type": "unsubscribe", "topic": "jobs"}), "unsubscribed");
    assert_eq!(stored(&node, "one")["connected"], false);

    // Nobody is replaced by who takes them up now.
    let mut other = node.peer();
    assert_eq!(seq(&consume(&mut other, "jobs", "one", "live")), 1);
    other.fence();
    peer.fence();
    // The same connection may take up its own again.
    consume(&mut other, "jobs", "one", "live");
    other.fence();
    assert_eq!(node.metrics().sum(&["consumer_replaced_total"]), 0.0);
}

// One connection at a time.

#[test]
fn a_second_connection_takes_over_and_the_first_is_told() {
    let node = Node::start();
    node.peer().publish_many("jobs", 3, 0);
    let mut first = node.peer();
    consume(&mut first, "jobs", "mill", "start");
    assert_eq!(seqs(&first.events(3)), [1, 2, 3]);
    ack(&mut first, "jobs", 1);

    let mut second = node.peer();
    assert_eq!(seq(&consume(&mut second, "jobs", "mill", "start")), 1);
    assert_eq!(seqs(&second.events(2)), [2, 3]);

    let (messages, code) = first.last_words();
    assert_eq!(code, Some(4_002));
    let bye = messages.last().unwrap();
    assert_eq!((&bye["type"], &bye["reason"]), (&json!("bye"), &json!("replaced")));
    assert_eq!(node.metrics().sum(&["consumer_replaced_total"]), 1.0);
    ack(&mut second, "jobs", 3);
    assert_eq!(number(&stored(&node, "mill"), "seq"), 3);
}

#[test]
fn what_a_replaced_connection_says_changes_nothing() {
    const ROUNDS: u64 = 100;
    let node = Node::start();
    node.peer().publish_many("jobs", ROUNDS, 0);
    let mut held = node.peer();
    consume(&mut held, "jobs", "mill", "start");
    for round in 1..=ROUNDS {
        let mut next = node.peer();
        // The old holder has all of it and acknowledges without an end, on its way out.
        while seq(&held.expect("event")) < ROUNDS {}
        let mut stream = held.stream();
        let all = json!({"type": "ack", "topic": "jobs", "seq": ROUNDS}).to_string();
        let all = crate::support::frame::masked(crate::support::frame::TEXT, all.as_bytes());
        let head = consume(&mut next, "jobs", "mill", "start");
        for _ in 0..50 {
            if std::io::Write::write_all(&mut stream, &all).is_err() {
                break;
            }
        }
        assert_eq!(seq(&head), round - 1);
        assert_eq!(held.close_code(), Some(4_002));
        let position = number(&stored(&node, "mill"), "seq");
        assert_eq!(position, round - 1, "an acknowledgement of who was replaced counted");
        ack(&mut next, "jobs", round);
        if round == ROUNDS {
            break;
        }
        // Everything after it comes to the next holder, who has this one's place.
        held = next;
        held.forget();
        let mut again = node.peer();
        assert_eq!(seq(&consume(&mut again, "jobs", "mill", "live")), round);
        held = again;
    }
    assert_eq!(number(&stored(&node, "mill"), "seq"), ROUNDS);
}

#[test]
fn a_replaced_connection_that_does_not_read_keeps_nobody_waiting() {
    let node = Node::with(&["--write-stall", "60s", "--max-bytes", "1GiB"]);
    let mut first = Peer::connect_tiny(node.addr());
    consume(&mut first, "jobs", "mill", "live");
    node.peer().publish_many("jobs", 100, 100_000);
    wait_for_metric(&node, &["landline_server_stalled_connections"], 1.0);

    let mut second = node.peer();
    assert_eq!(seq(&consume(&mut second, "jobs", "mill", "live")), 0);
    assert_eq!(seqs(&second.events(100)), (1..=100).collect::<Vec<_>>());
    ack(&mut second, "jobs", 100);

    let (messages, code) = first.last_words();
    assert_eq!((code, &messages.last().unwrap()["reason"]), (Some(4_002), &json!("replaced")));
    assert_eq!(number(&stored(&node, "mill"), "seq"), 100);
}

// Deliveries.

#[test]
fn an_event_that_ends_each_of_its_connections_is_put_aside_after_as_many() {
    let dir = dir();
    let flags = ["--max-deliveries", "3"];
    for node in [Node::with(&flags), Node::durable(&dir, &flags)] {
        let mut aside = node.peer();
        aside.subscribe("$dead/jobs");
        let mut peer = node.peer();
        // It has everything there is when it comes.
        consume(&mut peer, "jobs", "mill", "live");
        node.peer().publish_many("jobs", 2, 0);
        for delivery in 1..=3 {
            assert_eq!(seq(&peer.expect("event")), 1, "delivery {delivery}");
            peer.cut();
            wait_until_free(&node, "mill");
            assert_eq!(number(&stored(&node, "mill"), "deliveries"), delivery);
            peer = node.peer();
            consume(&mut peer, "jobs", "mill", "live");
        }
        let gap = peer.expect("gap");
        assert_eq!((number(&gap, "from"), number(&gap, "to")), (1, 1));
        assert_eq!(gap["reason"], "dead_letter");
        assert_eq!(seq(&peer.expect("event")), 2);
        let data = aside.expect("event")["data"].clone();
        assert_eq!((number(&data, "deliveries"), &data["consumer"]), (3, &json!("mill")));
        ack(&mut peer, "jobs", 2);
        assert_eq!(number(&stored(&node, "mill"), "seq"), 2);
    }
}

#[test]
fn an_event_is_delivered_as_often_as_is_allowed_whenever_it_came() {
    let node = Node::with(&["--ack-timeout", "200ms", "--max-deliveries", "2"]);
    let mut peer = node.peer();
    consume(&mut peer, "jobs", "mill", "live");
    // While it has everything; behind an acknowledged one; while it is away.
    node.peer().publish_many("jobs", 1, 0);
    assert_eq!(seqs(&peer.events(2)), [1, 1]);
    assert_eq!(number(&peer.expect("gap"), "to"), 1);
    node.peer().publish_many("jobs", 1, 0);
    assert_eq!(seq(&peer.expect("event")), 2);
    ack(&mut peer, "jobs", 2);
    peer.cut();
    wait_until_free(&node, "mill");
    node.peer().publish_many("jobs", 2, 0);
    let mut peer = node.peer();
    assert_eq!(seq(&consume(&mut peer, "jobs", "mill", "live")), 2);
    assert_eq!(seqs(&peer.events(4)), [3, 4, 3, 4]);
    assert_eq!(number(&peer.expect("gap"), "to"), 3);
    assert_eq!(seqs(&peer.events(2)), [4, 4]);
    assert_eq!(number(&peer.expect("gap"), "to"), 4);
}

#[test]
fn an_event_that_may_be_delivered_once_is_delivered_once() {
    let node = Node::with(&["--ack-timeout", "60s", "--max-deliveries", "1"]);
    let mut peer = node.peer();
    consume(&mut peer, "jobs", "mill", "live");
    for round in 0..3 {
        node.peer().publish_many("jobs", 1, 0);
        assert_eq!(seq(&peer.expect("event")), 2 * round + 1);
        ack(&mut peer, "jobs", 2 * round + 1);
        peer.cut();
        wait_until_free(&node, "mill");
        node.peer().publish_many("jobs", 1, 0);
        peer = node.peer();
        consume(&mut peer, "jobs", "mill", "live");
        assert_eq!(seq(&peer.expect("event")), 2 * round + 2);
        ack(&mut peer, "jobs", 2 * round + 2);
    }
    node.peer().publish_many("jobs", 1, 0);
    assert_eq!(seq(&peer.expect("event")), 7);
    peer.cut();
    wait_until_free(&node, "mill");
    peer = node.peer();
    consume(&mut peer, "jobs", "mill", "live");
    assert_eq!(number(&peer.expect("gap"), "from"), 7);
}

#[test]
fn a_consumer_beside_a_pattern_leaves_the_pattern_its_acknowledgements() {
    let node = Node::with(&["--ack-timeout", "200ms", "--max-deliveries", "1000"]);
    let mut peer = node.peer();
    let pattern = json!({"type": "subscribe", "topic": "jobs/+", "ack": true, "window": 2});
    peer.ask(pattern, "subscribed");
    consume(&mut peer, "jobs/a", "mill", "live");
    node.peer().publish_many("jobs/a", 3, 0);
    while seq(&peer.message()) != 1 {}
    peer.ask(json!({"type": "unsubscribe", "topic": "jobs/a"}), "unsubscribed");
    peer.forget();

    // Still sent again, although nobody holds the consumer.
    for _ in 0..6 {
        peer.expect("event");
    }
    peer.send(&json!({"type": "ack", "topic": "jobs/a", "seq": 3}));
    peer.fence();
    peer.forget();
    while peer.receive(QUIET).is_some() {}
    assert_eq!(number(&stored(&node, "mill"), "seq"), 0);
    node.peer().publish_many("jobs/a", 1, 0);
    assert_eq!(seq(&peer.expect("event")), 4);
}

// How many there may be, how long they stay, and where they are seen.

#[test]
fn a_consumer_that_nobody_uses_is_forgotten_and_counted() {
    let dir = dir();
    let flags = ["--consumer-idle", "1s", "--forget-after", "1s"];
    let node = Node::durable(&dir, &flags);
    node.peer().publish_many("jobs", 2, 0);
    let (mut held, mut left) = (node.peer(), node.peer());
    consume(&mut held, "jobs", "held", "start");
    consume(&mut left, "jobs", "left", "start");
    ack(&mut left, "jobs", 2);
    left.close();

    wait_for_metric(&node, &["landline_consumer_expired_total"], 1.0);
    let names = |node: &Node| -> Vec<Value> {
        list(node, "").iter().map(|listed| listed["consumer"].clone()).collect()
    };
    assert_eq!(names(&node), ["held"]);
    assert_eq!(node.metrics().0["landline_consumer_consumers"], 1.0);
    // Who comes back is new.
    let mut back = node.peer();
    assert_eq!(seq(&consume(&mut back, "jobs", "left", "start")), 0);
    back.cut();
    wait_for_metric(&node, &["landline_consumer_expired_total"], 2.0);
    crate::support::wait::pause(Duration::from_secs(2));
    node.kill();
    let node = Node::durable(&dir, &["--consumer-idle", "1h"]);
    assert_eq!(names(&node), ["held"]);
}

#[test]
fn no_more_consumers_are_made_than_are_allowed() {
    let dir = dir();
    let flags = ["--max-consumers", "2"];
    for durable in [false, true] {
        let start = || if durable { Node::durable(&dir, &flags) } else { Node::with(&flags) };
        let mut node = start();
        node.peer().publish_many("jobs", 2, 0);
        let mut peer = node.peer();
        consume(&mut peer, "jobs", "one", "start");
        consume(&mut peer, "other", "two", "start");
        assert_eq!(seqs(&peer.events(2)), [1, 2]);
        let refused = peer.refused(request("jobs", "three", "start", 5), "limit_exceeded");
        assert_eq!(refused["field"], "consumer");
        // What there is goes on, and can be had again.
        ack(&mut peer, "jobs", 2);
        assert_eq!(number(&stored(&node, "one"), "seq"), 2);
        if durable {
            node.stop();
            node = start();
        }
        let mut peer = node.peer();
        peer.refused(request("jobs", "three", "start", 5), "limit_exceeded");
        assert_eq!(seq(&consume(&mut peer, "jobs", "one", "start")), 2);
        assert_eq!(list(&node, "").len(), 2);
    }
}

#[test]
fn all_consumers_can_be_listed_page_by_page() {
    let node = Node::start();
    let mut peer = node.peer();
    let mut expected = Vec::new();
    for topic in ["b", "a/b", "a"] {
        for number in 0..800 {
            let name = format!("c{number:03}");
            peer.send(&request(topic, &name, "live", 1));
            expected.push(format!("{topic}/{name}"));
        }
    }
    peer.fence();
    expected.sort_by_key(|entry| entry.rsplit_once('/').map(|(a, b)| (a.to_owned(), b.to_owned())));

    let mut found: Vec<String> = Vec::new();
    let mut after = String::new();
    loop {
        let page = node.get(&format!("/v1/consumers{after}")).json();
        for listed in page["consumers"].as_array().unwrap() {
            let text = |field: &str| listed[field].as_str().unwrap().to_owned();
            found.push(format!("{}/{}", text("topic"), text("consumer")));
        }
        match page["next"].as_str() {
            Some(next) => after = format!("?after={next}"),
            None => break,
        }
    }
    assert_eq!(found, expected);

    assert_eq!(list(&node, "?topic=a/b").len(), 800);
    assert_eq!(list(&node, "?topic=a/b&after=a/b/c790").len(), 9);
    assert_eq!(list(&node, "?topic=none").len(), 0);
    for query in ["?after=nowhere", "?topic=%2B"] {
        assert_eq!(node.get(&format!("/v1/consumers{query}")).status, 400, "{query}");
    }
}
