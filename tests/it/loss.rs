//! Promise 2: never a silent loss. What the relay cannot deliver it announces to the client and
//! counts for the operator, with the same reason.

use std::thread;

use serde_json::{Value, json};

use crate::support::{
    node::{Node, wait_for_metric},
    peer::{Peer, number, position, seq, seqs},
    wait::{LIMIT, wait_until},
};

/// Larger than what the kernel buffers between the relay and a peer that does not read.
const FLOOD_EVENTS: u64 = 1_500;
const FLOOD_PADDING: usize = 16 * 1024;

/// A relay that keeps few events and is patient with peers that do not read.
#[track_caller]
fn forgetful_node() -> Node {
    Node::with(&["--max-events", "100", "--write-stall", "60s"])
}

/// What a peer that stalled reads when it goes on.
#[derive(Debug)]
struct Reading {
    gaps: Vec<Value>,
    last_seq: u64,
}

/// Reads to event `tail` and checks that a hole is where a gap says so, and nowhere else.
#[track_caller]
fn read_through(peer: &mut Peer, after: u64, tail: u64) -> Reading {
    let mut reading = Reading { gaps: Vec::new(), last_seq: after };
    while reading.last_seq < tail {
        let message = peer.message();
        let next = reading.last_seq + 1;
        match message["type"].as_str() {
            Some("event") => {
                assert_eq!(seq(&message), next, "a hole without a gap");
                reading.last_seq = next;
            }
            Some("gap") => {
                assert_eq!(number(&message, "from"), next, "{message}");
                assert!(next <= number(&message, "to"), "{message}");
                reading.last_seq = number(&message, "to");
                reading.gaps.push(message);
            }
            _ => panic!("neither event nor gap: {message}"),
        }
    }
    assert_eq!(reading.last_seq, tail);
    reading
}

/// How many events the gaps speak of.
fn lost(gaps: &[Value]) -> u64 {
    gaps.iter().map(|gap| number(gap, "to") - number(gap, "from") + 1).sum()
}

/// How many events the relay has counted as lost to a subscription, for `reason`.
#[track_caller]
fn counted_as_lost(node: &Node, reason: &str) -> f64 {
    let label = format!("reason=\"{reason}\"");
    node.metrics().sum(&["gap_events_total", &label])
}

/// Waits until the relay has found one peer that takes nothing more, after all that the kernel
/// takes in its place.
#[track_caller]
pub(crate) fn wait_for_stall(node: &Node) {
    let mut sent = -1.0;
    wait_until("a peer to take nothing more", LIMIT, || {
        let metrics = node.metrics();
        let before = std::mem::replace(&mut sent, metrics.sum(&["topic_delivered_total"]));
        metrics.sum(&["server_stalled_connections"]) == 1.0 && before == sent
    });
}

#[test]
fn a_peer_that_stalled_gets_one_gap_with_the_right_range_and_then_the_rest() {
    // The log holds more than the kernel buffers: what is lost is lost after the stall.
    let node = Node::with(&["--max-events", "600", "--write-stall", "60s"]);
    let mut stalled = Peer::connect_tiny(node.addr());
    stalled.subscribe("flood");
    let mut publisher = node.peer();

    publisher.publish_many("flood", 600, FLOOD_PADDING);
    wait_for_stall(&node);
    publisher.publish_many("flood", FLOOD_EVENTS, FLOOD_PADDING);
    let tail = 600 + FLOOD_EVENTS;
    let reading = read_through(&mut stalled, 0, tail);

    assert_eq!(reading.gaps.len(), 1, "{:?}", reading.gaps);
    let gap = &reading.gaps[0];
    assert_eq!(gap["topic"], "flood");
    assert_eq!(gap["reason"], "slow");
    assert_eq!(number(gap, "to"), tail - 600, "all that is retained is delivered");
    assert_eq!(counted_as_lost(&node, "slow"), lost(&reading.gaps) as f64);
    publisher.publish("flood", "live again");
    assert_eq!(seq(&stalled.expect("event")), tail + 1);
}

#[test]
fn a_peer_that_reads_in_fits_and_starts_is_told_of_each_hole() {
    let node = forgetful_node();
    let mut slow = Peer::connect_tiny(node.addr());
    slow.subscribe("flood");

    let tail = 10 * 300;
    let reading = thread::scope(|scope| {
        let mut publisher = node.peer();
        scope.spawn(move || {
            for _ in 0..10 {
                publisher.publish_many("flood", 300, FLOOD_PADDING);
            }
        });
        read_through(&mut slow, 0, tail)
    });

    assert_eq!(counted_as_lost(&node, "slow"), lost(&reading.gaps) as f64);
}

#[test]
fn a_peer_that_stalled_in_the_middle_of_a_replay_is_told_that_it_was_truncated() {
    let node = Node::with(&["--max-events", "700", "--write-stall", "60s"]);
    let mut publisher = node.peer();
    publisher.publish_many("flood", 700, FLOOD_PADDING);
    let mut stalled = Peer::connect_tiny(node.addr());
    let subscribed = stalled.subscribe_from("flood", json!("start"));
    wait_for_stall(&node);

    publisher.publish_many("flood", 700, FLOOD_PADDING);
    let reading = read_through(&mut stalled, seq(&subscribed), 1_400);

    assert_eq!(reading.gaps.len(), 1, "{:?}", reading.gaps);
    assert_eq!(reading.gaps[0]["reason"], "truncated", "{:?}", reading.gaps);
    assert_eq!(counted_as_lost(&node, "truncated"), lost(&reading.gaps) as f64);
}

#[test]
fn a_stalled_peer_that_asked_for_it_is_disconnected_and_resumes() {
    let node = forgetful_node();
    let mut stalled = Peer::connect_tiny(node.addr());
    let request = json!({"type": "subscribe", "topic": "flood", "slow": "disconnect"});
    let subscribed = stalled.ask(request, "subscribed");
    let mut publisher = node.peer();

    publisher.publish_many("flood", FLOOD_EVENTS, FLOOD_PADDING);
    let first = number(&publisher.history("flood", json!("start"), 1), "first");
    let (mut messages, code) = stalled.last_words();

    assert_eq!(code, Some(4_200), "the close code");
    let bye = messages.pop().expect("a bye");
    assert_eq!((&bye["type"], &bye["reason"]), (&json!("bye"), &json!("slow_consumer")));
    let seen = seqs(&messages);
    assert_eq!(seen, (1..=seen.len() as u64).collect::<Vec<_>>(), "no hole before the end");
    drop(stalled);
    wait_for_metric(&node, &["disconnects_total", "reason=\"slow_consumer\""], 1.0);

    let last = seen.len() as u64;
    let mut resumed = node.peer();
    let reply = resumed.subscribe_from("flood", position(&subscribed, last));
    assert_eq!(reply["recovery"]["mode"], "partial", "{reply}");
    assert_eq!(reply["recovery"]["missing"], json!([last + 1, first - 1]), "{reply}");
    assert_eq!(read_through(&mut resumed, first - 1, FLOOD_EVENTS).gaps.len(), 0);
}

#[test]
fn a_peer_in_the_middle_of_the_log_loses_nothing() {
    let node = Node::with(&["--write-stall", "60s"]);
    let mut stalled = Peer::connect_tiny(node.addr());
    stalled.subscribe("flood");

    node.peer().publish_many("flood", FLOOD_EVENTS, FLOOD_PADDING);
    let reading = read_through(&mut stalled, 0, FLOOD_EVENTS);

    assert_eq!(reading.gaps.len(), 0, "{:?}", reading.gaps);
}

#[test]
fn events_that_grew_too_old_are_told_as_missing() {
    let node = Node::with_config("[[topics]]\npattern = \"brief/#\"\nmax_age = \"1s\"\n");
    let mut peer = node.peer();
    let subscribed = peer.subscribe("brief/a");
    for number in 1..=5 {
        peer.publish("brief/a", number);
    }
    assert_eq!(peer.events(5).len(), 5);

    let mut resumed = node.peer();
    wait_until("the events to grow too old", LIMIT, || {
        number(&resumed.history("brief/a", json!("start"), 10), "first") == 6
    });
    let reply = resumed.subscribe_from("brief/a", position(&subscribed, 2));

    assert_eq!(reply["recovery"]["mode"], "partial", "{reply}");
    assert_eq!(reply["recovery"]["missing"], json!([3, 5]), "{reply}");
    assert_eq!(reply["recovery"]["reason"], "truncated", "{reply}");
    assert_eq!((seq(&reply), number(&reply, "tail")), (5, 5), "{reply}");
    peer.publish("brief/a", 6);
    assert_eq!(seq(&resumed.expect("event")), 6);
}

#[test]
fn a_stalled_peer_whose_events_grew_too_old_is_told_so() {
    let node = Node::with_config(
        "write_stall = \"60s\"\n[[topics]]\npattern = \"brief\"\nmax_age = \"2s\"\n",
    );
    let mut stalled = Peer::connect_tiny(node.addr());
    stalled.subscribe("brief");
    let mut publisher = node.peer();

    publisher.publish_many("brief", FLOOD_EVENTS, FLOOD_PADDING);
    wait_until("the events to grow too old", LIMIT, || {
        number(&publisher.history("brief", json!("start"), 1), "first") == FLOOD_EVENTS + 1
    });
    let reading = read_through(&mut stalled, 0, FLOOD_EVENTS);

    let reasons: Vec<_> = reading.gaps.iter().map(|gap| &gap["reason"]).collect();
    assert_eq!(reasons, ["retention"], "{:?}", reading.gaps);
    assert_eq!(counted_as_lost(&node, "retention"), lost(&reading.gaps) as f64);
}

#[test]
fn the_limits_of_a_log_hold_in_events_and_in_bytes() {
    let few = Node::with(&["--max-events", "100"]);
    let small = Node::with(&["--max-bytes", "1MiB"]);

    for node in [&few, &small] {
        node.peer().publish_many("a", 500, 8 * 1024);
    }
    let few = few.peer().history("a", json!("start"), 1_000);
    let small = small.peer().history("a", json!("start"), 1_000);

    assert_eq!((number(&few, "first"), number(&few, "tail")), (401, 500));
    let retained = number(&small, "tail") - number(&small, "first") + 1;
    assert!((64..=128).contains(&retained), "{retained} events of 8 KiB are kept in 1 MiB");
}

#[test]
fn the_memory_of_all_logs_is_bounded_and_the_largest_pays() {
    let node = Node::with(&["--max-memory", "8MiB"]);
    let mut peer = node.peer();
    let modest = peer.subscribe("modest");
    for number in 1..=10 {
        peer.publish("modest", number);
    }
    assert_eq!(peer.events(10).len(), 10);

    peer.publish_many("greedy", 2_000, 16 * 1024);
    let greedy = peer.history("greedy", json!("start"), 1);
    let reply = peer.subscribe_from("modest", position(&modest, 0));

    let retained = number(&greedy, "tail") - number(&greedy, "first") + 1;
    assert!(retained <= 512, "{retained} events of 16 KiB are kept in 8 MiB: {greedy}");
    assert_eq!(reply["recovery"]["mode"], "complete", "the small log pays for nothing: {reply}");
}

#[test]
fn the_memory_of_all_logs_is_bounded_also_if_each_has_one_event() {
    const TOPICS: u64 = 1_000;
    let node = Node::with(&["--max-memory", "8MiB"]);
    let mut peer = node.peer();
    let data = "x".repeat(64 * 1024);

    for topic in 0..TOPICS {
        // Refusing is as good as making room, as long as the publisher is told.
        let request = json!({"type": "publish", "topic": format!("t/{topic}"), "data": data});
        let reply = peer.request(request);
        assert!(reply["type"] == "published" || reply["type"] == "error", "{reply}");
    }

    let kept = node.metrics().0["landline_topic_log_bytes"];
    assert!(kept <= 9e6, "{TOPICS} topics keep {kept} bytes where 8 MiB are allowed");
}

#[test]
fn a_log_of_just_one_large_event_keeps_the_newest() {
    let node = Node::with(&["--max-bytes", "64KiB", "--max-message", "64KiB"]);
    let mut peer = node.peer();
    peer.subscribe("large");

    let data = "x".repeat(63 * 1024);
    for number in 1..=5 {
        assert_eq!(peer.publish("large", data.as_str()), number);
        assert_eq!(seq(&peer.expect("event")), number);
    }
    let history = peer.history("large", json!("start"), 10);

    assert_eq!((number(&history, "first"), number(&history, "tail")), (5, 5));
    assert_eq!(history["events"][0]["data"].as_str(), Some(data.as_str()));
}
