//! Promise 8: state conflates. A slow watcher gets the latest value of each key, never a backlog;
//! versions never go back; a watch resumed from a version gets each key changed since, once,
//! deletions included.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    mirror::{Mirror, values},
    node::Node,
    peer::{Peer, number},
    wait::{LIMIT, wait_until},
};

const MIB: u64 = 1 << 20;

fn set(peer: &mut Peer, key: &str, value: impl Into<Value>) -> u64 {
    let value = value.into();
    number(&peer.ask(json!({"type": "set", "key": key, "value": value}), "stored"), "version")
}

fn delete(peer: &mut Peer, key: &str) -> u64 {
    number(&peer.ask(json!({"type": "delete", "key": key}), "deleted"), "version")
}

fn watch(peer: &mut Peer, pattern: &str) -> Value {
    peer.ask(json!({"type": "watch", "pattern": pattern}), "watching")
}

fn watch_from(peer: &mut Peer, pattern: &str, epoch: &Value, version: u64) -> Value {
    let from = json!({"epoch": epoch, "version": version});
    peer.ask(json!({"type": "watch", "pattern": pattern, "from": from}), "watching")
}

/// Key and version of each state message up to `synced`.
fn until_synced(peer: &mut Peer) -> Vec<(String, u64, bool)> {
    let mut seen = Vec::new();
    loop {
        let message = peer.message();
        if message["type"] == "synced" {
            return seen;
        }
        assert_eq!(message["type"], "state", "{message}");
        let key = message["key"].as_str().unwrap().to_owned();
        seen.push((key, number(&message, "version"), message["deleted"] == true));
    }
}

#[test]
fn a_watch_begins_with_its_position_and_is_synced_even_when_nothing_is_there() {
    let node = Node::start();
    let mut peer = node.peer();

    let began = watch(&mut peer, "home/#");
    let synced = peer.expect("synced");
    let version = set(&mut peer, "home/lamp", "on");
    set(&mut peer, "garden/lamp", "on");
    let state = peer.expect("state");
    let last = set(&mut peer, "home/fan", 3);

    assert_eq!((&began["reset"], number(&began, "version")), (&json!(true), 0));
    assert_eq!((&synced["pattern"], number(&synced, "version")), (&json!("home/#"), 0));
    assert_eq!((&state["key"], number(&state, "version")), (&json!("home/lamp"), version));
    assert_eq!(state["value"], "on");
    assert!(state["time"].is_u64());
    let state = peer.expect("state");
    assert_eq!((&state["key"], number(&state, "version")), (&json!("home/fan"), last));
}

#[test]
fn a_snapshot_has_the_values_and_not_how_they_came_about() {
    let node = Node::start();
    let mut setter = node.peer();
    for value in 0..5 {
        set(&mut setter, "a/x", value);
        set(&mut setter, "b", value);
    }
    set(&mut setter, "a/y", 1);
    delete(&mut setter, "a/y");
    let mut peer = node.peer();

    let began = watch(&mut peer, "a/#");

    assert_eq!(number(&began, "version"), 12);
    assert_eq!(until_synced(&mut peer), [("a/x".to_owned(), 9, false)]);
}

#[test]
fn a_watch_resumed_from_a_version_gets_what_changed_since_once() {
    let node = Node::start();
    let mut setter = node.peer();
    let mut peer = node.peer();
    let epoch = watch(&mut peer, "#")["epoch"].clone();
    peer.expect("synced");
    for key in ["a", "b", "c", "d"] {
        set(&mut setter, key, 0);
    }
    let position = number(&(0..4).map(|_| peer.expect("state")).last().unwrap(), "version");
    peer.cut();
    for value in 1..50 {
        set(&mut setter, "a", value);
    }
    delete(&mut setter, "b");
    set(&mut setter, "e", 1);
    delete(&mut setter, "e");

    let mut peer = node.peer();
    let began = watch_from(&mut peer, "#", &epoch, position);

    assert_eq!((&began["reset"], number(&began, "version")), (&json!(false), 56));
    let seen = until_synced(&mut peer);
    let expected = [("a", 53, false), ("b", 54, true), ("e", 56, true)];
    assert_eq!(seen, expected.map(|(key, version, gone)| (key.to_owned(), version, gone)));
    // From its end there is nothing, which is said too.
    let began = watch_from(&mut node.peer(), "#", &epoch, 56);
    assert_eq!(began["reset"], false);
}

#[test]
fn a_position_that_says_nothing_any_more_is_answered_with_everything() {
    let node = Node::with(&["--max-tombstones", "3"]);
    let mut setter = node.peer();
    for key in ["a", "b", "c", "d", "e", "f"] {
        set(&mut setter, key, 0);
    }
    let epoch = watch(&mut setter, "zzz")["epoch"].clone();
    for key in ["a", "b", "c", "d"] {
        delete(&mut setter, key);
    }
    for (epoch, version, reset) in [
        (&epoch, 6, true),
        (&epoch, 7, false),
        (&epoch, 10, false),
        (&epoch, 11, true),
        (&json!("00000000000000aa"), 10, true),
    ] {
        let mut peer = node.peer();
        let began = watch_from(&mut peer, "#", epoch, version);
        assert_eq!(began["reset"], reset, "from {version} of {epoch}");
        let seen = until_synced(&mut peer);
        let keys: Vec<&str> = seen.iter().map(|(key, ..)| key.as_str()).collect();
        match (reset, version) {
            (true, _) => assert_eq!(keys, ["e", "f"]),
            (false, 7) => assert_eq!(keys, ["b", "c", "d"]),
            _ => assert!(keys.is_empty()),
        }
    }
    let error = setter
        .refused(json!({"type": "watch", "pattern": "#", "from": {"version": 3}}), "bad_request");
    assert_eq!(error["field"], "from");
}

#[test]
fn a_stalled_watcher_gets_the_newest_of_each_key_and_costs_no_memory() {
    const KEYS: u64 = 1_000;
    const CHANGES: u64 = 100;
    let node = Node::with(&["--write-stall", "60s"]);
    let mut setter = node.peer();
    let padding = "x".repeat(1_000);
    let value = |key: u64, change: u64| json!({"n": key * change, "padding": padding});
    for key in 0..KEYS {
        let key_name = format!("k/{key}");
        setter.send(&json!({"type": "set", "key": key_name, "value": value(key, 0)}));
    }
    setter.fence();
    let mut peer = Peer::connect_tiny(node.addr());
    let mut mirror = Mirror::new();
    mirror.watch(&mut peer, "k/#");
    mirror.read_until(&mut peer, "a snapshot", |mirror| mirror.is_synced("k/#"));
    // It is stalled for good before the first change.
    peer.send(&json!({"type": "subscribe", "topic": "flood"}));
    wait_until("the watcher is stalled", LIMIT, || {
        setter.publish_many("flood", 100, 10_000);
        0.0 < node.metrics().sum(&["landline_server_stalled_connections"])
    });
    let (before, messages) = (node.rss(), mirror.messages);

    for change in 1..=CHANGES {
        for key in 0..KEYS {
            let key_name = format!("k/{key}");
            setter.send(&json!({"type": "set", "key": key_name, "value": value(key, change)}));
        }
        setter.fence();
    }
    let grown = node.rss().saturating_sub(before);
    let end = number(&setter.ask(json!({"type": "get", "key": "k/0"}), "values"), "version");
    mirror.read_until(&mut peer, "the newest values", |mirror| mirror.position == end);

    let got = (mirror.messages - messages) as u64;
    assert_eq!(got, KEYS, "each key once, after {CHANGES} changes of each");
    assert_eq!(mirror.content(), values(node.addr(), "k/#"));
    assert!(grown < 16 * MIB, "{} MiB for one stalled watcher", grown / MIB);
}

#[test]
fn a_stalled_watcher_whose_deletions_are_forgotten_begins_anew() {
    let node = Node::with(&["--max-tombstones", "10", "--write-stall", "60s"]);
    let mut setter = node.peer();
    let padding = "x".repeat(2_000);
    let mut peer = Peer::connect_tiny(node.addr());
    let mut mirror = Mirror::new();
    mirror.watch(&mut peer, "#");
    mirror.read_until(&mut peer, "a snapshot", |mirror| mirror.is_synced("#"));
    // It is stalled for good before the first change.
    peer.send(&json!({"type": "subscribe", "topic": "flood"}));
    wait_until("the watcher is stalled", LIMIT, || {
        setter.publish_many("flood", 100, 10_000);
        0.0 < node.metrics().sum(&["landline_server_stalled_connections"])
    });

    for key in 0..1_000 {
        setter.send(&json!({"type": "set", "key": format!("k/{key}"), "value": padding}));
    }
    for key in 0..900 {
        setter.send(&json!({"type": "delete", "key": format!("k/{key}")}));
    }
    let end = set(&mut setter, "end", 1);
    mirror.read_until(&mut peer, "the newest values", |mirror| mirror.position == end);

    assert_eq!(mirror.content(), values(node.addr(), "#"));
    assert!(1 < mirror.resets, "it was told to begin anew");
    assert!(1.0 <= node.metrics().sum(&["landline_state_watch_resets_total"]));
}

#[test]
fn what_several_watches_match_comes_once_and_a_new_watch_gets_what_it_lacks() {
    let node = Node::start();
    let mut setter = node.peer();
    let mut peer = node.peer();
    for key in ["a/x", "a/y", "b"] {
        set(&mut setter, key, 0);
    }
    let mut mirror = Mirror::new();
    for pattern in ["a/x", "a/#", "b"] {
        mirror.watch(&mut peer, pattern);
    }
    mirror.read_until(&mut peer, "three snapshots", |mirror| mirror.synced.len() == 3);
    assert_eq!(mirror.messages, 4, "a/x is in two snapshots");

    // One after the other: two quick changes of one key are one message.
    for key in ["a/x", "a/y", "b", "c", "a/x"] {
        let version = set(&mut setter, key, 1);
        if key != "c" {
            mirror.read_until(&mut peer, "the change", |mirror| mirror.position == version);
        }
    }
    let (content, messages) = (mirror.content(), mirror.messages);
    peer.ask(json!({"type": "unwatch", "pattern": "a/#"}), "unwatched");
    peer.refused(json!({"type": "unwatch", "pattern": "a/#"}), "not_found");
    for key in ["a/y", "a/x"] {
        set(&mut setter, key, 2);
    }
    mirror.read_until(&mut peer, "the last change", |mirror| mirror.position == 10);

    assert_eq!(messages, 8);
    assert_eq!(content.get("a/x"), Some(&(json!(1), 8)));
    assert_eq!(mirror.messages, 9, "only a/x is still watched");
}

#[test]
fn watching_once_more_begins_anew() {
    let node = Node::start();
    let mut peer = node.peer();
    set(&mut peer, "a", 1);
    for _ in 0..3 {
        watch(&mut peer, "a");
        assert_eq!(until_synced(&mut peer).len(), 1);
    }
    set(&mut peer, "a", 2);
    peer.fence();
    assert_eq!(number(&peer.expect("state"), "version"), 2);
    assert_eq!(node.metrics().sum(&["landline_state_watches"]), 1.0);
    peer.cut();
    wait_until("the watch goes with its connection", LIMIT, || {
        node.metrics().sum(&["landline_state_watches"]) == 0.0
    });
}

#[test]
fn what_the_relay_says_is_a_state_of_its_own() {
    let node = Node::start();
    let mut peer = node.peer();
    let shared = watch(&mut peer, "#");
    peer.expect("synced");
    let own = watch(&mut peer, "$presence/#");
    peer.expect("synced");
    assert_ne!(shared["epoch"], own["epoch"]);
    let error = peer.refused(json!({"type": "set", "key": "$x", "value": 1}), "forbidden");
    assert_eq!(error["field"], "key");
}

#[test]
fn a_thousand_watchers_of_one_key_see_every_change_in_order() {
    const WATCHERS: usize = 1_000;
    let node = Node::start();
    let mut setter = node.peer();
    set(&mut setter, "a", 0);
    let mut peers: Vec<Peer> = (0..WATCHERS).map(|_| node.peer()).collect();
    for peer in &mut peers {
        watch(peer, "a");
        assert_eq!(until_synced(peer).len(), 1);
    }
    for value in 1..=5 {
        set(&mut setter, "a", value);
        for peer in &mut peers {
            let state = peer.expect("state");
            assert_eq!((number(&state, "version"), &state["value"]), (value + 1, &json!(value)));
        }
    }
}

/// Changes at random, and watchers that stall, are cut and resume at random.
#[test]
fn watchers_that_stall_and_resume_at_random_end_with_exactly_what_is_there() {
    const KEYS: u64 = 60;
    const SETTERS: u64 = 3;
    const CHANGES: u64 = 1_500;
    const PATTERNS: [&str; 4] = ["#", "g/1/#", "g/2/#", "g/1/3"];
    let node = Node::with(&["--max-tombstones", "20"]);
    let below = landline::base::random::below;
    thread::scope(|scope| {
        for setter in 0..SETTERS {
            let mut peer = node.peer();
            scope.spawn(move || {
                for change in 0..CHANGES {
                    let key = format!("g/{}/{}", below(3), below(KEYS / 3));
                    if below(4) == 0 {
                        peer.send(&json!({"type": "delete", "key": key}));
                    } else {
                        let value = json!({"by": setter, "n": change});
                        peer.send(&json!({"type": "set", "key": key, "value": value}));
                    }
                    if below(100) == 0 {
                        peer.fence();
                        peer.forget();
                    }
                }
                peer.fence();
            });
        }
        for own in 0..6 {
            let node = &node;
            scope.spawn(move || {
                let mut mirror = Mirror::new();
                let pattern = PATTERNS[own % 4];
                for _ in 0..20 {
                    let mut peer =
                        if below(2) == 0 { Peer::connect_tiny(node.addr()) } else { node.peer() };
                    mirror.watch(&mut peer, pattern);
                    if own == 4 {
                        mirror.watch(&mut peer, "g/2/5");
                    }
                    mirror.read_some(&mut peer, Duration::from_millis(1 + below(20)));
                    peer.cut();
                    mirror.was_cut();
                }
                let mut peer = node.peer();
                mirror.watch(&mut peer, pattern);
                let wanted = |mirror: &Mirror| {
                    mirror.is_synced(pattern) && mirror.content() == values(node.addr(), pattern)
                };
                while !wanted(&mirror) {
                    assert!(mirror.read_some(&mut peer, Duration::from_millis(50)));
                }
            });
        }
    });
}
