//! The wall clock is set by hours and by years while the relay runs, and between two runs: order,
//! resuming, heartbeats, windows and lives of keys do not go by it; times of events never go back;
//! what is kept by age is, and says so.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    clock::FakeClock,
    node::{Node, Scratch},
    peer::{Incoming, Peer, number, position, seq},
    stream::Stream,
    wait::{LIMIT, wait_until},
    witness::Witness,
};

const HOUR_MS: u64 = 3_600_000;
const YEARS: i64 = 3 * 365 * 24;

const FLAGS: &[&str] = &["--heartbeat", "1s", "--heartbeat-timeout", "3s", "--durable-state"];

/// Waits for so many pings; nothing else comes.
#[track_caller]
fn see_pings(peer: &mut Peer, count: usize) {
    let goal = peer.pings() + count;
    wait_until("pings of the relay", LIMIT, || {
        let got = peer.receive(Duration::from_millis(20));
        assert!(!matches!(got, Some(Incoming::End | Incoming::Close(_))), "{got:?}");
        goal <= peer.pings()
    });
}

/// Publishes what was published under the same key before, and is told so.
#[track_caller]
fn publish_again(peer: &mut Peer) {
    let reply = peer.ask(once(), "published");
    assert_eq!((seq(&reply), &reply["duplicate"]), (1, &json!(true)), "{reply}");
}

fn once() -> Value {
    json!({"type": "publish", "topic": "once", "data": 1, "key": "k"})
}

fn lease(node: &Node) -> u16 {
    node.get("/v1/state/lease").status
}

#[test]
fn a_wall_clock_that_is_set_disconnects_nobody_and_ends_nothing_early_or_late() {
    let Some(clock) = FakeClock::new() else { return };
    let dir = Scratch::new("data");
    let node = Node::durable_at(&clock, &dir, FLAGS);
    let witness = Witness::start(&node);
    let (mut peer, mut subscriber, mut idle) = (node.peer(), node.peer(), node.peer());
    let head = subscriber.subscribe("lamp");
    let mut stream = Stream::sse(node.addr(), "/v1/topics/lamp/events");
    stream.expect("subscribed");
    peer.ask(once(), "published");
    let hour = json!({"type": "set", "key": "lease", "value": 1, "ttl_ms": HOUR_MS});
    peer.ask(hour, "stored");
    idle.ask(json!({"type": "hello", "user": "anna"}), "welcome");
    idle.ask(json!({"type": "join", "topic": "lamp"}), "joined");

    let mut last_ms = 0;
    for (expected, hours) in (1..).zip([5, -5, 30, -24 * 60, YEARS, 0]) {
        clock.set(hours);
        assert_eq!(peer.publish("lamp", hours), expected);
        let event = subscriber.expect("event");
        assert_eq!((seq(&event), &event["data"]), (expected, &json!(hours)));
        assert_eq!(stream.expect("message").data, event);
        assert!(last_ms <= number(&event, "time"), "{event} after {last_ms}");
        last_ms = number(&event, "time");
        publish_again(&mut peer);
        // Nothing ends sooner, and what is to end soon is not put off.
        let brief = json!({"type": "set", "key": "brief", "value": 1, "ttl_ms": 100});
        peer.ask(brief, "stored");
        see_pings(&mut idle, 1);
        wait_until("a key to expire", LIMIT, || node.get("/v1/state/brief").status == 404);
        assert_eq!(lease(&node), 200, "{hours} hours");
        let present = peer.ask(json!({"type": "get", "key": "$presence/lamp/anna"}), "values");
        assert_eq!(present["values"][0]["value"]["connections"], 1, "{present}");
    }

    idle.fence();
    let metrics = node.metrics();
    for reason in ["heartbeat_missed", "stalled", "deadline", "lost"] {
        let label = format!("reason=\"{reason}\"");
        let ended = metrics.sum(&["landline_server_disconnects_total", &label]);
        assert_eq!(ended, 0.0, "{reason}");
    }

    // Who was away gets what it missed, by position and by time.
    let mut later = node.peer();
    let resumed = later.subscribe_from("lamp", position(&head, 2));
    assert_eq!(resumed["recovery"], json!({"mode": "complete"}));
    assert_eq!(seq(&later.expect("event")), 3);
    let since = node.peer().history("lamp", json!({"since": last_ms}), 10);
    assert_eq!(since["events"].as_array().unwrap().last().map(seq), Some(6), "{since}");
    witness.finish();
}

#[test]
fn a_consumer_outlives_a_wall_clock_that_is_set_by_years() {
    let Some(clock) = FakeClock::new() else { return };
    let dir = Scratch::new("data");
    // As on a machine without a battery for its clock, whose time is right some while later.
    clock.set(-YEARS);
    let config = Scratch::new("config.toml");
    let text = "consumer_idle = \"1d\"\n[[topics]]\npattern = \"clock\"\nmax_age = \"1s\"\n";
    fs::write(config.path(), text).unwrap();
    let node = Node::durable_at(&clock, &dir, &["--config", config.path().to_str().unwrap()]);
    let consume =
        json!({"type": "subscribe", "topic": "jobs", "from": "start", "consumer": "printer"});
    let mut publisher = node.peer();
    publisher.publish_many("jobs", 3, 0);
    let mut consumer = node.peer();
    consumer.ask(consume.clone(), "subscribed");
    assert_eq!(seq(&consumer.expect("event")), 1);
    consumer.send(&json!({"type": "ack", "topic": "jobs", "seq": 1}));
    consumer.fence();
    consumer.close();

    clock.set(0);
    // What is too old goes when the relay looks for it, and consumers go at the same time.
    for _ in 0..2 {
        publisher.publish("clock", 1);
        wait_until("the relay to look for what is too old", LIMIT, || {
            publisher.history("clock", json!("start"), 1)["events"] == json!([])
        });
    }

    let resumed = node.peer().ask(consume, "subscribed");
    assert_eq!(seq(&resumed), 1, "it goes on after what it acknowledged: {resumed}");
}

#[test]
fn a_relay_that_starts_again_at_another_time_goes_on() {
    let Some(clock) = FakeClock::new() else { return };
    let dir = Scratch::new("data");
    let node = Node::durable_at(&clock, &dir, FLAGS);
    let mut peer = node.peer();
    let first = peer.ask(once(), "published");
    peer.publish("lamp", 1);
    let times = |peer: &mut Peer| {
        let history = peer.history("lamp", json!("start"), 10);
        let events = history["events"].as_array().unwrap().clone();
        events.iter().map(|event| number(event, "time")).collect::<Vec<_>>()
    };
    let hour = json!({"type": "set", "key": "lease", "value": 1, "ttl_ms": HOUR_MS});
    peer.ask(hour, "stored");
    peer.cut();
    node.kill();

    // Two days back.
    clock.set(-48);
    let node = Node::durable_at(&clock, &dir, FLAGS);
    let mut peer = node.peer();
    assert_eq!(peer.ask(once(), "published")["epoch"], first["epoch"]);
    publish_again(&mut peer);
    assert_eq!(peer.publish("lamp", 2), 2);
    let before = times(&mut peer);
    assert!(before.is_sorted(), "{before:?}");
    assert_eq!(lease(&node), 200, "its hour is not over");
    let brief = json!({"type": "set", "key": "brief", "value": 1, "ttl_ms": 100});
    peer.ask(brief, "stored");
    wait_until("a key to expire", LIMIT, || node.get("/v1/state/brief").status == 404);
    peer.cut();
    node.kill();

    // Four days on: the hour of the key and the window of the other are over.
    clock.set(48);
    let node = Node::durable_at(&clock, &dir, FLAGS);
    let mut peer = node.peer();
    wait_until("the key to expire", LIMIT, || lease(&node) == 404);
    let again = peer.ask(once(), "published");
    assert_eq!((seq(&again), again.get("duplicate")), (2, None), "{again}");
    assert_eq!(peer.publish("lamp", 3), 3);
    let after = times(&mut peer);
    assert_eq!(after[..2], before[..]);
    assert!(after.is_sorted() && before[1] + 24 * HOUR_MS < after[2], "{after:?}");
}

#[test]
fn what_is_kept_by_age_goes_when_the_wall_clock_is_set_ahead_and_is_announced() {
    let Some(clock) = FakeClock::new() else { return };
    let dir = Scratch::new("data");
    let node = Node::durable_at(&clock, &dir, &["--max-age", "1h"]);
    let mut peer = node.peer();
    let published = peer.ask(once(), "published");
    peer.publish("once", 2);

    clock.set(2);
    peer.publish("once", 3);
    // The store makes room once it has answered.
    wait_until("what is too old to go", LIMIT, || {
        number(&peer.history("once", json!("start"), 1), "first") == 3
    });
    let mut subscriber = node.peer();
    let head = subscriber.subscribe_from("once", position(&published, 0));
    assert_eq!(head["recovery"]["missing"], json!([1, 2]), "{head}");
    assert_eq!(seq(&subscriber.expect("event")), 3);

    // Back again: what came meanwhile stays longer by as much, and nothing more goes.
    clock.set(0);
    peer.publish("once", 4);
    assert_eq!(seq(&subscriber.expect("event")), 4);
    let history = peer.history("once", json!("start"), 10);
    let events = history["events"].as_array().unwrap();
    assert_eq!(events.iter().map(seq).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(number(&events[0], "time"), number(&events[1], "time"));
}

#[test]
fn names_that_were_only_asked_for_make_room_also_when_the_wall_clock_was_set_back() {
    let Some(clock) = FakeClock::new() else { return };
    let dir = Scratch::new("data");
    let node = Node::durable_at(&clock, &dir, &["--max-topics", "20"]);
    let mut peer = node.peer();
    for number in 0..20 {
        let topic = format!("asked/{number}");
        peer.subscribe(&topic);
        peer.ask(json!({"type": "unsubscribe", "topic": topic}), "unsubscribed");
    }

    clock.set(-5);
    wait_until("room for another topic", LIMIT, || {
        let request = json!({"type": "publish", "topic": "wanted", "data": 1});
        peer.request(request)["type"] == "published"
    });
}
