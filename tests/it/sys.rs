//! What the relay says about itself, to those who ask.

use serde_json::{Value, json};

use crate::support::{
    node::Node,
    peer::{Incoming, Peer, number},
    wait::{LIMIT, wait_until},
};

/// The value of one key, and the version of the state.
#[track_caller]
fn ask(peer: &mut Peer, key: &str) -> (Value, u64) {
    let values = peer.ask(json!({"type": "get", "key": key}), "values");
    (values["values"][0]["value"].clone(), number(&values, "version"))
}

/// The version of the state, without asking for what is looked at here.
#[track_caller]
fn version(peer: &mut Peer) -> u64 {
    number(&peer.ask(json!({"type": "get", "key": "$presence/#"}), "values"), "version")
}

#[test]
fn who_asks_gets_numbers_that_are_right() {
    let node = Node::start();
    let mut peer = node.peer();
    let _other = node.peer();
    for topic in ["a", "b", "c"] {
        peer.subscribe(topic);
    }
    for _ in 0..500 {
        peer.send(&json!({"type": "publish", "topic": "a", "data": "x".repeat(100)}));
    }
    assert_eq!(peer.events(500).len(), 500);
    peer.fence();

    // What was said in the first second may be older than what was done since.
    wait_until("all topics to be counted", LIMIT, || ask(&mut peer, "$sys/topics").0 == 3);

    let all = peer.ask(json!({"type": "get", "key": "$sys/#"}), "values");
    let keys: Vec<_> = all["values"].as_array().unwrap().iter().map(|it| &it["key"]).collect();
    let known = ["connections", "memory", "rates", "store", "subscriptions", "topics", "uptime"];
    let known = known.iter().chain(&["version"]).map(|name| json!(format!("$sys/{name}")));
    assert_eq!(keys.into_iter().cloned().collect::<Vec<_>>(), known.collect::<Vec<_>>());
    let value = |name: &str| {
        let is_it = |it: &&Value| it["key"] == format!("$sys/{name}");
        all["values"].as_array().unwrap().iter().find(is_it).unwrap()["value"].clone()
    };
    assert_eq!(value("connections"), 2);
    assert_eq!(value("subscriptions"), 3);
    assert_eq!(value("version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(value("store"), json!({"ok": true, "durable": false}));
    assert!(50_000 < number(&value("memory"), "log_bytes"), "{all}");
    let rates = value("rates");
    assert!((1..=500).contains(&number(&rates, "published")), "{rates}");
    assert!((1..=500).contains(&number(&rates, "delivered")), "{rates}");
    assert!(1_000 < number(&rates, "received_bytes"), "{rates}");
    assert!(1_000 < number(&rates, "sent_bytes"), "{rates}");
}

#[test]
fn nothing_is_said_while_nobody_asks_and_at_most_once_a_second_to_who_does() {
    let node = Node::with(&["--heartbeat", "1s", "--heartbeat-timeout", "30s"]);
    let mut peer = node.peer();
    assert_eq!(version(&mut peer), 0);

    // All of it is said at once, and then only what has changed.
    let (uptime, first) = ask(&mut peer, "$sys/uptime");
    assert_eq!(first, 8);
    let mut uptimes = vec![uptime.as_u64().unwrap()];
    let mut versions = vec![first];
    wait_until("three further seconds", LIMIT, || {
        let (uptime, version) = ask(&mut peer, "$sys/uptime");
        if versions.last() != Some(&version) {
            versions.push(version);
            uptimes.push(uptime.as_u64().unwrap());
        }
        4 <= versions.len()
    });
    assert!(uptimes.is_sorted_by(|one, next| one < next), "{uptimes:?}");

    let before = version(&mut peer);
    let pings = peer.pings();
    wait_until("three seconds in which nobody asks", LIMIT, || {
        let silent = peer.receive(std::time::Duration::from_millis(20));
        assert!(matches!(silent, None | Some(Incoming::Pong(_))), "{silent:?}");
        pings + 3 <= peer.pings()
    });
    assert_eq!(version(&mut peer), before);
}
