//! What the relay says about itself, to those who ask.

use serde_json::{Value, json};

use crate::support::{
    http::Body,
    node::{Node, Scratch},
    peer::{Incoming, Peer, number},
    wait::{LIMIT, wait_for, wait_until},
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
    let known = "connections disconnects gaps limits memory rates refused stalled store \
                 subscriptions topics totals uptime version";
    let known = known.split_whitespace().map(|name| json!(format!("$sys/{name}")));
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
    assert_eq!(value("stalled"), 0);
    for nothing in ["disconnects", "gaps", "refused"] {
        assert_eq!(value(nothing), json!({}), "{nothing}");
    }
}

/// Waits until the value of one key is as `is_so` says. It is taken once a second.
#[track_caller]
fn wait_for_value(peer: &mut Peer, key: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    wait_for(&format!("{key} to be so"), LIMIT, || Some(ask(peer, key).0).filter(&is_so))
}

#[test]
fn what_has_happened_is_counted_by_its_reason_since_the_start() {
    let flags = ["--max-connections", "4", "--max-events", "1000", "--write-stall", "60s"];
    let node = Node::with(&flags);
    let mut peer = node.peer();
    let limits = ask(&mut peer, "$sys/limits").0;
    assert_eq!(number(&limits, "max_connections"), 4);
    assert_eq!(limits.as_object().unwrap().len(), 4, "there is no store: {limits}");
    peer.refused(json!({"type": "publish", "topic": "$sys/x", "data": 1}), "forbidden");
    for _ in 0..2 {
        peer.refused(json!({"type": "unwatch", "pattern": "none"}), "not_found");
    }
    let mut stuck = Peer::connect_tiny(node.addr());
    stuck.subscribe("a");
    let mut publisher = node.peer();
    let mut published = 0;
    wait_until("its socket to be full", LIMIT, || {
        publisher.publish_many("a", 1_500, 2_000);
        published += 1_500;
        ask(&mut peer, "$sys/stalled").0 == 1
    });
    publisher.publish_many("a", 4_500, 2_000);
    published += 4_500;

    // Of the three places that are left one is free.
    let _last = node.peer();
    for _ in 0..2 {
        let mut turned_away = node.http();
        assert_eq!(turned_away.reply(Body::Expected).status, 503);
    }
    let all = json!({"connections": 2, "forbidden": 1, "not_found": 2});
    wait_for_value(&mut peer, "$sys/refused", |refused| *refused == all);

    // It reads on, and gets a gap in place of what has gone.
    let (mut gaps, mut at) = (0, 0);
    while at < published {
        let message = stuck.message();
        gaps += u64::from(message["type"] == "gap");
        at = message["seq"].as_u64().unwrap_or(0);
    }
    assert_ne!(gaps, 0);
    wait_for_value(&mut peer, "$sys/gaps", |said| *said == json!({"slow": gaps}));
    wait_for_value(&mut peer, "$sys/stalled", |stalled| *stalled == 0);
    stuck.close();
    publisher.cut();
    let all = json!({"client": 1, "lost": 1});
    wait_for_value(&mut peer, "$sys/disconnects", |disconnects| *disconnects == all);

    let totals =
        wait_for_value(&mut peer, "$sys/totals", |totals| totals["published"] == published);
    assert!(0 < number(&totals, "delivered"), "{totals}");
    assert!(6_000_000 < number(&totals, "received_bytes"), "{totals}");
    assert!(0 < number(&totals, "sent_bytes"), "{totals}");
}

#[test]
fn a_store_says_how_large_it_is_and_what_waits_for_it() {
    let dir = Scratch::new("store");
    let node = Node::durable(&dir, &["--max-backlog", "1MiB"]);
    let mut peer = node.peer();
    peer.publish("a", "x".repeat(1_000));
    let store = ask(&mut peer, "$sys/store").0;
    assert_eq!((&store["ok"], &store["durable"]), (&json!(true), &json!(true)), "{store}");
    assert_eq!(number(&store, "backlog_bytes"), 0, "it is stored: {store}");
    assert!(1_000 < number(&store, "file_bytes"), "{store}");
    let limits = ask(&mut peer, "$sys/limits").0;
    assert_eq!(number(&limits, "max_backlog"), 1 << 20);
}

#[test]
fn nothing_is_said_while_nobody_asks_and_at_most_once_a_second_to_who_does() {
    let node = Node::with(&["--heartbeat", "1s", "--heartbeat-timeout", "30s"]);
    let mut peer = node.peer();
    assert_eq!(version(&mut peer), 0);

    // All of it is said at once, and then only what has changed.
    let (uptime, first) = ask(&mut peer, "$sys/uptime");
    assert_eq!(first, 14);
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
