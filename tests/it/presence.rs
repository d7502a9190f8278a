//! Who is there: users that come, go, come back, break and fall silent, as the state of the relay
//! shows them. That its version has not changed proves that nobody was told anything.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    node::{Node, wait_for_metric},
    peer::{Peer, number},
    proxy::Proxy,
    wait::{LIMIT, Watch, wait_until},
};

/// A member of a topic, and the rest of what its connection hears.
#[track_caller]
fn member(node: &Node, user: &str, topic: &str) -> Peer {
    enter(node.peer(), user, topic)
}

#[track_caller]
fn enter(mut peer: Peer, user: &str, topic: &str) -> Peer {
    peer.ask(json!({"type": "hello", "user": user}), "welcome");
    join(&mut peer, topic);
    peer
}

#[track_caller]
fn join(peer: &mut Peer, topic: &str) {
    let joined = peer.ask(json!({"type": "join", "topic": topic}), "joined");
    assert_eq!(joined["topic"], topic);
}

/// Who is in all topics, with the version of the state.
#[track_caller]
fn look(peer: &mut Peer) -> Value {
    let mut values = peer.ask(json!({"type": "get", "key": "$presence/#"}), "values");
    values["id"].take();
    values
}

/// The keys of who is there.
#[track_caller]
fn keys(peer: &mut Peer) -> Vec<String> {
    let values = look(peer)["values"].as_array().unwrap().clone();
    values.iter().map(|value| value["key"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn connections(peer: &mut Peer) -> u64 {
    number(&look(peer)["values"][0]["value"], "connections")
}

#[track_caller]
fn wait_until_gone(peer: &mut Peer, key: &str) {
    wait_until("a user to be gone", LIMIT, || !keys(peer).iter().any(|found| found == key));
}

#[test]
fn twenty_quick_reconnects_are_seen_by_nobody() {
    let node = Node::with(&["--leave-debounce", "60s", "--lost-debounce", "60s"]);
    let mut witness = node.peer();
    let mut peer = member(&node, "ada", "room");
    let before = look(&mut witness);

    for round in 0..20 {
        match round % 3 {
            0 => peer.close(),
            1 => peer.cut(),
            _ => {
                peer.ask(json!({"type": "leave", "topic": "room"}), "left");
                drop(peer);
            }
        }
        let gone = f64::from(round + 1);
        wait_until("the relay to notice", LIMIT, || {
            node.metrics().sum(&["presence_leaves_total"]) == gone
        });
        peer = member(&node, "ada", "room");
    }

    assert_eq!(look(&mut witness), before);
    assert_eq!(node.metrics().sum(&["presence_returns_total"]), 20.0);
    assert_eq!(node.metrics().sum(&["presence_members"]), 1.0);
}

#[test]
fn a_user_with_five_tabs_is_there_once_until_the_last_one_is_closed() {
    let node = Node::with(&["--leave-debounce", "50ms", "--lost-debounce", "60s"]);
    let mut witness = node.peer();

    let mut tabs = Vec::new();
    for count in 1..=5 {
        tabs.push(member(&node, "ada", "room"));
        assert_eq!(keys(&mut witness), ["$presence/room/ada"]);
        assert_eq!(connections(&mut witness), count);
    }
    while let Some(tab) = tabs.pop() {
        tab.close();
        if !tabs.is_empty() {
            let left = tabs.len() as u64;
            wait_until("one less", LIMIT, || connections(&mut witness) == left);
        }
    }

    wait_until_gone(&mut witness, "$presence/room/ada");
    // Five came, four went one by one, and the last one was removed.
    assert_eq!(look(&mut witness)["version"], 10);
    assert_eq!(node.metrics().sum(&["presence_leaves_total", "closed"]), 5.0);
}

#[test]
fn a_client_that_breaks_is_gone_after_the_longer_debounce_and_not_before() {
    let node = Node::with(&["--leave-debounce", "1ms", "--lost-debounce", "1s"]);
    let mut witness = node.peer();
    let broken = member(&node, "ada", "room");
    let ended = member(&node, "bob", "room");

    let watch = Watch::start();
    broken.cut();
    ended.finish_sending();
    wait_for_metric(&node, &["presence_leaves_total", "lost"], 2.0);
    wait_until_gone(&mut witness, "$presence/room/ada");
    let elapsed = watch.elapsed();
    wait_until_gone(&mut witness, "$presence/room/bob");

    assert!(Duration::from_secs(1) <= elapsed, "it was gone after {elapsed:?}");
    assert!(elapsed < Duration::from_secs(10), "it was gone after {elapsed:?}");
}

#[test]
fn who_leaves_is_gone_in_time_and_who_breaks_may_come_back() {
    let node = Node::with(&["--leave-debounce", "100ms", "--lost-debounce", "60s"]);
    let mut witness = node.peer();
    let mut leaver = member(&node, "ada", "room");
    let broken = member(&node, "bob", "room");

    // The keeper has looked at the new connections, and has nothing to do for more than 20 s.
    assert_eq!(leaver.receive(Duration::from_millis(1_500)), None);
    let watch = Watch::start();
    leaver.ask(json!({"type": "leave", "topic": "room"}), "left");
    wait_until_gone(&mut witness, "$presence/room/ada");
    let elapsed = watch.elapsed();
    assert!(Duration::from_millis(100) <= elapsed, "it was gone after {elapsed:?}");
    assert!(elapsed < Duration::from_secs(10), "it was gone after {elapsed:?}");
    broken.cut();
    wait_for_metric(&node, &["presence_leaves_total", "lost"], 1.0);

    // For a minute it may come back.
    assert_eq!(keys(&mut witness), ["$presence/room/bob"]);
    leaver.refused(json!({"type": "leave", "topic": "room"}), "not_found");
}

#[test]
fn a_half_open_connection_ends_by_heartbeat_and_its_user_with_it() {
    let brisk = ["--heartbeat", "1s", "--heartbeat-timeout", "2s"];
    let node = Node::with(&[&brisk[..], &["--lost-debounce", "50ms"]].concat());
    let proxy = Proxy::start(node.addr());
    let _silent = enter(Peer::connect(proxy.addr()), "ada", "room");
    let mut witness = node.peer();
    assert_eq!(keys(&mut witness), ["$presence/room/ada"]);

    proxy.half_open();

    wait_until_gone(&mut witness, "$presence/room/ada");
    assert_eq!(node.metrics().sum(&["presence_leaves_total", "lost"]), 1.0);
}

#[test]
fn a_further_connection_of_somebody_whose_first_is_half_open_takes_over() {
    let brisk = ["--heartbeat", "1s", "--heartbeat-timeout", "2s"];
    let node = Node::with(&[&brisk[..], &["--lost-debounce", "1ms"]].concat());
    let proxy = Proxy::start(node.addr());
    let _silent = enter(Peer::connect(proxy.addr()), "ada", "room");
    proxy.half_open();
    let mut back = member(&node, "ada", "room");
    assert_eq!(connections(&mut back), 2);

    wait_until("the first one to be let go", LIMIT, || connections(&mut back) == 1);

    assert_eq!(look(&mut back)["version"], 3);
}

#[test]
fn nobody_is_there_after_a_restart_and_the_epoch_says_so() {
    let node = Node::with(&["--leave-debounce", "1ms", "--lost-debounce", "1ms"]);
    let mut peer = member(&node, "ada", "room");
    let before = look(&mut peer);
    node.stop();

    let node = Node::start();
    let after = look(&mut node.peer());

    assert_eq!(after["values"], json!([]));
    assert_ne!(after["epoch"], before["epoch"]);
}

#[test]
fn another_user_of_a_connection_takes_its_places_with_what_it_says() {
    let node = Node::with(&["--leave-debounce", "1ms"]);
    let mut peer = member(&node, "ada", "hall");
    peer.ask(json!({"type": "join", "topic": "room", "info": {"seat": 4}}), "joined");

    peer.ask(json!({"type": "hello", "user": "bob"}), "welcome");

    wait_until_gone(&mut peer, "$presence/hall/ada");
    wait_until_gone(&mut peer, "$presence/room/ada");
    assert_eq!(keys(&mut peer), ["$presence/hall/bob", "$presence/room/bob"]);
    let room = peer.ask(json!({"type": "get", "key": "$presence/room/bob"}), "values");
    assert_eq!(room["values"][0]["value"]["info"], json!({"seat": 4}));
    // The same user once more is no news.
    let before = look(&mut peer);
    peer.ask(json!({"type": "hello", "user": "bob"}), "welcome");
    assert_eq!(look(&mut peer), before);
}

#[test]
fn info_is_what_was_said_last_and_small() {
    let node = Node::start();
    let mut peer = member(&node, "ada", "room");
    let info = |peer: &mut Peer| look(peer)["values"][0]["value"]["info"].clone();
    assert_eq!(info(&mut peer), Value::Null);

    peer.ask(json!({"type": "join", "topic": "room", "info": "away"}), "joined");
    assert_eq!((info(&mut peer), connections(&mut peer)), (json!("away"), 1));
    let large = json!({"type": "join", "topic": "room", "info": "x".repeat(1_023)});
    assert_eq!(peer.refused(large, "bad_request")["field"], "info");
    let largest = json!({"type": "join", "topic": "room", "info": "x".repeat(1_022)});
    peer.ask(largest, "joined");
    // Without an id there is no answer.
    peer.send(&json!({"type": "join", "topic": "room", "info": "back"}));
    peer.fence();
    assert_eq!(info(&mut peer), "back");
    assert_eq!(node.metrics().sum(&["presence_joins_total"]), 1.0);
}

#[test]
fn what_may_not_be_joined_is_refused_and_nothing_is_half_done() {
    let node = Node::with(&["--max-subscriptions", "2", "--max-keys", "3"]);
    let mut peer = node.peer();
    let refused = peer.refused(json!({"type": "join", "topic": "room"}), "bad_request");
    assert!(refused["message"].as_str().unwrap().contains("hello"), "{refused}");
    let mut peer = member(&node, "ada", "room");
    peer.refused(json!({"type": "join", "topic": "$presence/room/ada"}), "forbidden");
    peer.refused(json!({"type": "join", "topic": "a/+"}), "bad_request");
    join(&mut peer, "hall");
    let third = peer.refused(json!({"type": "join", "topic": "attic"}), "limit_exceeded");
    assert_eq!(third["field"], "topic");
    join(&mut peer, "hall");

    // There is room for one more key: for one of the two places that another user would take.
    let before = keys(&mut peer);
    let refused = peer.refused(json!({"type": "hello", "user": "bob"}), "limit_exceeded");
    assert_eq!(refused["field"], "user");
    assert_eq!(keys(&mut peer), before);
    let mut other = member(&node, "eve", "room");
    let refused = other.refused(json!({"type": "join", "topic": "hall"}), "limit_exceeded");
    assert_eq!(refused["field"], "topic");
    other.refused(json!({"type": "leave", "topic": "hall"}), "not_found");
    // Who is there already needs no room.
    member(&node, "ada", "room");

    assert_eq!(node.metrics().sum(&["presence_members"]), 3.0);
}

#[test]
fn debounces_change_while_the_relay_runs() {
    let node = Node::with_config("lost_debounce = \"60s\"\n");
    let mut witness = node.peer();
    let first = member(&node, "ada", "room");
    let second = member(&node, "bob", "room");
    first.cut();
    wait_for_metric(&node, &["presence_leaves_total", "lost"], 1.0);

    node.reload("lost_debounce = \"1ms\"\n");
    wait_until("the new settings to be in force", LIMIT, || node.stderr().contains("reloaded"));
    second.cut();

    wait_until_gone(&mut witness, "$presence/room/bob");
    assert_eq!(keys(&mut witness), ["$presence/room/ada"]);
}
