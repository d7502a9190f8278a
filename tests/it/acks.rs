//! Promise 6 without consumers: a window of events that nobody acknowledged, sent again from the
//! first of them, put aside when that was often enough, and never a window that stays shut.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    node::{Node, Scratch, wait_for_metric},
    peer::{Peer, number, seq, seqs},
    wait::Watch,
};

/// Flags that make what is not acknowledged come again soon, and three times at most.
const QUICK: [&str; 4] = ["--ack-timeout", "200ms", "--max-deliveries", "3"];
/// Long enough to see that nothing comes, shorter than the default timeout of acknowledgements.
const QUIET: Duration = Duration::from_millis(300);

/// Subscribes with acknowledgements.
#[track_caller]
fn follow(peer: &mut Peer, topic: &str, from: &str, window: u64) -> Value {
    let request = json!({
        "type": "subscribe", "topic": topic, "from": from, "ack": true, "window": window
    });
    peer.ask(request, "subscribed")
}

#[track_caller]
fn ack(peer: &mut Peer, topic: &str, seq: u64) {
    peer.send(&json!({"type": "ack", "topic": topic, "seq": seq}));
}

#[track_caller]
fn publish(node: &Node, topic: &str, count: u64) {
    node.peer().publish_many(topic, count, 0);
}

#[track_caller]
fn assert_quiet(peer: &mut Peer) {
    peer.fence();
    let said = peer.receive(QUIET);
    assert_eq!(said, None, "awaited nothing");
}

/// Reads up to event `last`, acknowledging each event by itself, and asserts that every event comes
/// at least once and none is ahead of the window. Returns how many came.
#[track_caller]
fn take_all(peer: &mut Peer, topic: &str, (after, last): (u64, u64), window: u64) -> u64 {
    let (mut acked, mut count) = (after, 0);
    while acked < last {
        let event = peer.expect("event");
        count += 1;
        assert_eq!(event["topic"], topic);
        assert!(seq(&event) <= acked + window, "{event} is ahead of {acked} by more than {window}");
        if acked < seq(&event) {
            assert_eq!(seq(&event), acked + 1, "a hole");
            acked += 1;
            ack(peer, topic, acked);
        }
    }
    count
}

// The window.

#[test]
fn at_most_a_window_of_events_is_sent_and_unacknowledged() {
    let node = Node::start();
    publish(&node, "jobs", 10);
    let mut peer = node.peer();
    let mut live = node.peer();
    assert_eq!(seq(&follow(&mut peer, "jobs", "start", 3)), 0);
    assert_eq!(seq(&follow(&mut live, "jobs", "live", 2)), 10);

    assert_eq!(seqs(&peer.events(3)), [1, 2, 3]);
    assert_quiet(&mut peer);
    ack(&mut peer, "jobs", 2);
    assert_eq!(seqs(&peer.events(2)), [4, 5]);
    assert_quiet(&mut peer);
    ack(&mut peer, "jobs", 5);
    assert_eq!(seqs(&peer.events(3)), [6, 7, 8]);
    ack(&mut peer, "jobs", 8);
    assert_eq!(seqs(&peer.events(2)), [9, 10]);
    ack(&mut peer, "jobs", 10);

    publish(&node, "jobs", 5);
    assert_eq!(seqs(&peer.events(3)), [11, 12, 13]);
    assert_eq!(seqs(&live.events(2)), [11, 12]);
    assert_quiet(&mut peer);
    assert_quiet(&mut live);
    ack(&mut live, "jobs", 12);
    assert_eq!(seqs(&live.events(2)), [13, 14]);
}

#[test]
fn an_acknowledgement_is_for_all_before_it_and_never_goes_back() {
    let node = Node::start();
    publish(&node, "jobs", 9);
    let mut peer = node.peer();
    follow(&mut peer, "jobs", "start", 4);
    assert_eq!(seqs(&peer.events(4)), [1, 2, 3, 4]);

    for seq in [4, 4, 1, 0, 3, 4] {
        ack(&mut peer, "jobs", seq);
    }

    assert_eq!(seqs(&peer.events(4)), [5, 6, 7, 8]);
    assert_quiet(&mut peer);
    ack(&mut peer, "jobs", 8);
    assert_eq!(seq(&peer.expect("event")), 9);
    ack(&mut peer, "jobs", 9);
    peer.fence();
    ack(&mut peer, "jobs", 7);
    peer.fence();
    publish(&node, "jobs", 9);
    assert_eq!(seqs(&peer.events(4)), [10, 11, 12, 13]);
}

#[test]
fn the_window_is_256_unless_it_is_asked_for_and_has_bounds() {
    let node = Node::start();
    publish(&node, "jobs", 300);
    let mut peer = node.peer();
    let subscribe = json!({"type": "subscribe", "topic": "jobs", "from": "start", "ack": true});
    peer.ask(subscribe.clone(), "subscribed");
    assert_eq!(seqs(&peer.events(256)), (1..=256).collect::<Vec<_>>());
    assert_quiet(&mut peer);

    for (field, value) in [("window", json!(0)), ("window", json!(65_537)), ("ack", json!("yes"))] {
        let mut request = subscribe.clone();
        request[field] = value;
        assert_eq!(peer.refused(request, "bad_request")["field"], field);
    }
    let plain = json!({"type": "subscribe", "topic": "jobs", "window": 5});
    assert_eq!(peer.refused(plain, "bad_request")["field"], "window");
    follow(&mut peer, "jobs", "start", 65_536);
    assert_eq!(seqs(&peer.events(300)), (1..=300).collect::<Vec<_>>());
}

#[test]
fn what_was_not_sent_cannot_be_acknowledged_nor_what_is_not_followed_so() {
    let node = Node::start();
    publish(&node, "jobs", 5);
    let mut peer = node.peer();
    let too_far = json!({"type": "ack", "topic": "jobs", "seq": 3});
    assert_eq!(peer.refused(too_far.clone(), "not_found")["field"], "topic");
    peer.subscribe("jobs");
    peer.refused(too_far.clone(), "not_found");
    follow(&mut peer, "jobs", "start", 2);
    assert_eq!(seqs(&peer.events(2)), [1, 2]);
    assert_eq!(peer.refused(too_far.clone(), "bad_request")["field"], "seq");
    for wrong in [json!(-1), json!("2"), json!(null), json!(1.5)] {
        let request = json!({"type": "ack", "topic": "jobs", "seq": wrong});
        assert_eq!(peer.refused(request, "bad_request")["field"], "seq");
    }
    assert_quiet(&mut peer);
    ack(&mut peer, "jobs", 2);
    assert_eq!(seqs(&peer.events(2)), [3, 4]);
    peer.ask(json!({"type": "unsubscribe", "topic": "jobs"}), "unsubscribed");
    peer.refused(too_far, "not_found");
}

#[test]
fn an_event_at_the_tail_can_be_acknowledged_however_it_came() {
    let node = Node::start();
    publish(&node, "jobs", 1);
    let mut peer = node.peer();
    follow(&mut peer, "jobs", "start", 1);
    for expected in 1..=50 {
        assert_eq!(seq(&peer.expect("event")), expected);
        let again = json!({"type": "ack", "topic": "jobs", "seq": expected + 1});
        peer.refused(again, "bad_request");
        ack(&mut peer, "jobs", expected);
        peer.publish("jobs", expected);
    }
}

// Sending again.

#[test]
fn what_is_not_acknowledged_in_time_comes_again_from_the_first_of_it() {
    let node = Node::with(&QUICK);
    publish(&node, "jobs", 5);
    let mut peer = node.peer();
    let mut plain = node.peer();
    plain.subscribe_from("jobs", json!("start"));
    follow(&mut peer, "jobs", "start", 100);
    assert_eq!(seqs(&peer.events(5)), [1, 2, 3, 4, 5]);
    ack(&mut peer, "jobs", 2);

    let watch = Watch::start();
    assert_eq!(seqs(&peer.events(3)), [3, 4, 5]);
    assert!(watch.elapsed() < Duration::from_secs(10));
    ack(&mut peer, "jobs", 5);

    assert_quiet(&mut peer);
    assert_quiet(&mut peer);
    assert_eq!(seqs(&plain.events(5)), [1, 2, 3, 4, 5]);
    assert_quiet(&mut plain);
    assert_eq!(node.metrics().sum(&["ack_redelivered_events_total"]), 3.0);
}

#[test]
fn a_full_window_that_is_sent_again_neither_counts_twice_nor_stays_shut() {
    let node = Node::with(&["--ack-timeout", "100ms", "--max-deliveries", "1000000"]);
    publish(&node, "jobs", 40);
    for window in [1, 2, 7] {
        let mut peer = node.peer();
        follow(&mut peer, "jobs", "start", window);
        let mut acked = 0;
        while acked < 40 {
            // Each window is seen at least twice before one event of it is acknowledged.
            let mut seen = BTreeMap::new();
            while seen.get(&(acked + 1)).is_none_or(|times| *times < 2) {
                let event = peer.expect("event");
                assert!(seq(&event) <= acked + window, "{event}: acknowledged is {acked}");
                *seen.entry(seq(&event)).or_insert(0) += 1;
            }
            acked += 1 + acked % window;
            acked = acked.min(*seen.keys().last().unwrap());
            ack(&mut peer, "jobs", acked);
        }
        ack(&mut peer, "jobs", 40);
        peer.ask(json!({"type": "unsubscribe", "topic": "jobs"}), "unsubscribed");
    }
}

// Putting aside.

#[test]
fn an_event_that_nobody_acknowledges_is_put_aside_and_the_window_moves_on() {
    let node = Node::with(&QUICK);
    let (mut peer, mut aside) = (node.peer(), node.peer());
    aside.subscribe("$dead/jobs/a");
    let head = follow(&mut peer, "jobs/a", "live", 1);
    let mut publisher = node.peer();
    publisher.ask(json!({"type": "hello", "user": "kim"}), "welcome");
    publisher
        .send(&json!({"type": "publish", "topic": "jobs/a", "name": "do", "data": {"x": [1]}}));
    publisher.publish("jobs/a", "next");

    let first = peer.expect("event");
    assert_eq!([&first, &first], [&peer.expect("event"), &peer.expect("event")]);
    let gap = peer.expect("gap");
    assert_eq!((number(&gap, "from"), number(&gap, "to")), (1, 1));
    assert_eq!((&gap["topic"], &gap["reason"]), (&json!("jobs/a"), &json!("dead_letter")));
    assert_eq!(seq(&peer.expect("event")), 2);
    ack(&mut peer, "jobs/a", 2);

    let letter = aside.expect("event");
    assert_eq!(letter["name"], "dead_letter");
    let expected = json!({
        "reason": "max_deliveries", "deliveries": 3, "topic": "jobs/a", "epoch": head["epoch"],
        "seq": 1, "event": first
    });
    assert_eq!(letter["data"], expected);
    let metrics = node.metrics();
    assert_eq!(metrics.sum(&["ack_dead_letters_total"]), 1.0);
    assert_eq!(metrics.sum(&["gap_events_total", "dead_letter"]), 1.0);
    assert_quiet(&mut peer);
}

#[test]
fn deliveries_are_counted_for_the_first_unacknowledged_event_alone() {
    let node = Node::with(&QUICK);
    let (mut peer, mut aside) = (node.peer(), node.peer());
    aside.subscribe("$dead/jobs");
    follow(&mut peer, "jobs", "live", 2);
    publish(&node, "jobs", 3);

    let mut said = Vec::new();
    while said.last() != Some(&json!([3, "gap"])) {
        let message = peer.message();
        let seq = message.get("seq").unwrap_or(&message["from"]).clone();
        said.push(json!([seq, message["type"]]));
    }

    let count = |seq: u64| said.iter().filter(|said| **said == json!([seq, "event"])).count();
    assert_eq!(
        said[..6].iter().map(|said| said[0].as_u64().unwrap()).collect::<Vec<_>>(),
        [1, 2, 1, 2, 1, 2]
    );
    assert_eq!((count(1), count(2), count(3)), (3, 6, 6), "{said:?}");
    for seq in 1..=3 {
        let letter = aside.expect("event");
        assert_eq!(
            (&letter["data"]["seq"], &letter["data"]["deliveries"]),
            (&json!(seq), &json!(3))
        );
    }
    assert_quiet(&mut aside);
}

#[test]
fn a_dead_letter_that_nobody_acknowledges_stays_where_it_is() {
    let node = Node::with(&QUICK);
    let mut peer = node.peer();
    follow(&mut peer, "jobs", "live", 1);
    publish(&node, "jobs", 2);
    wait_for_metric(&node, &["ack_dead_letters_total"], 2.0);
    peer.cut();

    let mut peer = node.peer();
    follow(&mut peer, "$dead/jobs", "start", 1);
    for letter in 1..=2 {
        assert_eq!(seqs(&peer.events(3)), [letter; 3]);
        let gap = peer.expect("gap");
        assert_eq!((number(&gap, "from"), &gap["reason"]), (letter, &json!("dead_letter")));
    }
    assert_quiet(&mut peer);

    assert_eq!(node.metrics().sum(&["ack_dead_letters_total"]), 2.0, "these are not counted");
    let topics = node.get("/v1/topics").json();
    let names = topics["topics"].as_array().unwrap().iter().map(|topic| topic["topic"].clone());
    assert_eq!(names.collect::<Vec<_>>(), ["$dead/jobs", "jobs"]);
    assert_eq!(
        peer.history("$dead/jobs", json!("start"), 9)["events"].as_array().unwrap().len(),
        2
    );
}

#[test]
fn dead_letters_of_a_durable_topic_survive_a_killed_relay() {
    let dir = Scratch::new("data");
    let long = "a/".repeat(127) + "b";
    let node = Node::durable(&dir, &QUICK);
    for topic in ["jobs", &long] {
        let mut peer = node.peer();
        follow(&mut peer, topic, "live", 1);
        publish(&node, topic, 2);
        loop {
            let message = peer.message();
            if message["type"] == "gap" {
                break assert_eq!(number(&message, "to"), 1);
            }
        }
    }
    node.kill();

    let node = Node::durable(&dir, &QUICK);
    for topic in ["jobs", &long] {
        let history = node.peer().history(&format!("$dead/{topic}"), json!("start"), 1);
        let letter = &history["events"][0];
        assert_eq!((&letter["data"]["topic"], number(&letter["data"], "seq")), (&json!(topic), 1));
        assert_eq!(letter["data"]["event"]["data"]["n"], 1);
    }
}

// What may not wedge the window.

#[test]
fn what_the_log_has_lost_is_announced_and_not_waited_for() {
    for sync in [None, Some("data")] {
        let dir = sync.map(Scratch::new);
        let flags = [&QUICK[..], &["--max-events", "5"]].concat();
        let node = match &dir {
            None => Node::with(&flags),
            Some(dir) => Node::durable(dir, &[&flags[..], &["--max-tail", "4KiB"]].concat()),
        };
        let mut peer = node.peer();
        follow(&mut peer, "jobs", "live", 4);
        node.peer().publish_many("jobs", 4, 10);
        assert_eq!(seqs(&peer.events(4)), [1, 2, 3, 4]);
        node.peer().publish_many("jobs", 200, 500);
        wait_for_metric(&node, &["events_evicted_total"], 199.0);

        let mut next = 5;
        while next <= 204 {
            let message = peer.message();
            if message["type"] == "gap" && message["reason"] != "dead_letter" {
                assert!(number(&message, "from") <= next, "{message}");
                next = number(&message, "to") + 1;
            } else {
                assert_eq!(message["type"], "event", "{message}");
                // What came before the gap may come again.
                assert!(seq(&message) <= next, "{message}, awaited {next}");
                next = next.max(seq(&message) + 1);
                if 4 < seq(&message) {
                    ack(&mut peer, "jobs", seq(&message));
                }
            }
        }
        assert_eq!(peer.publish("jobs", "last"), 205);
        assert_eq!(seq(&peer.expect("event")), 205);
        assert_eq!(node.metrics().sum(&["gap_events_total", "dead_letter"]), 0.0);
        assert!(0.0 < node.metrics().sum(&["gap_events_total"]));
    }
}

#[test]
fn a_subscription_that_is_made_anew_starts_with_an_open_window() {
    let node = Node::with(&["--ack-timeout", "100ms", "--max-deliveries", "1000000"]);
    publish(&node, "jobs", 30);
    let mut peer = node.peer();
    let unsubscribe = json!({"type": "unsubscribe", "topic": "jobs"});
    for window in [3, 1, 5] {
        follow(&mut peer, "jobs", "start", window);
        assert_eq!(seq(&peer.expect("event")), 1);
        // Over the old one, whose window is full and whose events come again.
        follow(&mut peer, "jobs", "start", 2);
        while peer.message()["type"] != "event" {}
        peer.ask(unsubscribe.clone(), "unsubscribed");
        peer.forget();
        assert_quiet(&mut peer);
    }
    follow(&mut peer, "jobs", "start", 4);
    take_all(&mut peer, "jobs", (0, 15), 4);
    // Without acknowledgements it goes on by itself.
    peer.subscribe_from("jobs", json!("start"));
    let mut last = 0;
    while last < 30 {
        last = seq(&peer.expect("event"));
    }
    assert_quiet(&mut peer);
    peer.ask(unsubscribe, "unsubscribed");
    let mut peer = node.peer();
    follow(&mut peer, "jobs", "start", 4);
    take_all(&mut peer, "jobs", (0, 30), 4);
}

#[test]
fn each_topic_of_a_pattern_has_a_window_of_its_own() {
    let node = Node::with(&QUICK);
    publish(&node, "jobs/a", 5);
    publish(&node, "other", 1);
    let mut peer = node.peer();
    assert_eq!(number(&follow(&mut peer, "jobs/+", "start", 2), "attached"), 1);
    assert_eq!(peer.expect("attached")["topic"], "jobs/a");
    assert_eq!(seqs(&peer.events(2)), [1, 2]);
    ack(&mut peer, "jobs/a", 2);
    assert_eq!(seqs(&peer.events(2)), [3, 4]);
    ack(&mut peer, "jobs/a", 4);
    assert_eq!(seq(&peer.expect("event")), 5);
    ack(&mut peer, "jobs/a", 5);
    assert_quiet(&mut peer);

    let refused = json!({"type": "ack", "topic": "jobs/a", "seq": 6});
    assert_eq!(peer.refused(refused, "bad_request")["field"], "seq");
    for topic in ["other", "jobs/none", "nowhere"] {
        let refused = json!({"type": "ack", "topic": topic, "seq": 1});
        assert_eq!(peer.refused(refused, "not_found")["field"], "topic");
    }

    // A topic that comes later; what is not acknowledged there comes again and goes aside.
    publish(&node, "jobs/b", 2);
    assert_eq!(peer.expect("attached")["topic"], "jobs/b");
    let deliveries = peer.events(6);
    assert!(deliveries.iter().all(|event| event["topic"] == "jobs/b"));
    assert_eq!(seqs(&deliveries), [1, 2, 1, 2, 1, 2]);
    assert_eq!(peer.expect("gap")["reason"], "dead_letter");
    assert_eq!(seq(&peer.expect("event")), 2);
    ack(&mut peer, "jobs/b", 2);
    assert_quiet(&mut peer);
    peer.ask(json!({"type": "unsubscribe", "topic": "jobs/+"}), "unsubscribed");
    let refused = json!({"type": "ack", "topic": "jobs/a", "seq": 1});
    peer.refused(refused, "not_found");
}
