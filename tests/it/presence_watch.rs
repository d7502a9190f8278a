//! Presence and `$sys` as those see it who watch it.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    node::Node,
    peer::{Peer, number},
    wait::{LIMIT, Watch, wait_until},
};

const ROOM: &str = "$presence/room/+";

fn join(node: &Node, user: &str) -> Peer {
    let mut peer = node.peer();
    peer.ask(json!({"type": "hello", "user": user}), "welcome");
    peer.ask(json!({"type": "join", "topic": "room"}), "joined");
    peer
}

fn watcher(node: &Node, pattern: &str) -> Peer {
    let mut peer = node.peer();
    peer.ask(json!({"type": "watch", "pattern": pattern}), "watching");
    while peer.message()["type"] != "synced" {}
    peer
}

/// Key and count of the next message; `None` if the user is gone.
fn next(peer: &mut Peer) -> (String, Option<u64>) {
    let state = peer.expect("state");
    let user = state["key"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    (user, (state["deleted"] != true).then(|| number(&state["value"], "connections")))
}

#[test]
fn five_tabs_are_one_arrival_and_one_departure() {
    let node = Node::with(&["--leave-debounce", "50ms"]);
    let mut watcher = watcher(&node, ROOM);
    let tabs: Vec<Peer> = (0..5).map(|_| join(&node, "anna")).collect();
    for count in 1..=5 {
        assert_eq!(next(&mut watcher), ("anna".to_owned(), Some(count)));
    }
    for (tab, left) in tabs.into_iter().zip([4, 3, 2, 1, 0]) {
        tab.close();
        let expected = (0 < left).then_some(left);
        assert_eq!(next(&mut watcher), ("anna".to_owned(), expected));
    }
    join(&node, "bob");
    assert_eq!(next(&mut watcher), ("bob".to_owned(), Some(1)), "nothing else was said of anna");
}

#[test]
fn twenty_quick_reconnects_are_not_seen() {
    let node = Node::with(&["--leave-debounce", "10s", "--lost-debounce", "10s"]);
    let mut watcher = watcher(&node, ROOM);
    let mut anna = join(&node, "anna");
    assert_eq!(next(&mut watcher), ("anna".to_owned(), Some(1)));
    for turn in 0..20 {
        if turn % 2 == 0 {
            anna.close();
        } else {
            anna.cut();
        }
        wait_until("the relay has noticed", LIMIT, || {
            node.metrics().sum(&["landline_presence_leaves_total"]) == f64::from(turn + 1)
        });
        anna = join(&node, "anna");
    }
    let _bob = join(&node, "bob");
    assert_eq!(next(&mut watcher), ("bob".to_owned(), Some(1)));
    assert_eq!(node.metrics().sum(&["landline_presence_returns_total"]), 20.0);
}

#[test]
fn a_client_that_is_killed_leaves_no_ghost_and_is_not_taken_for_gone_at_once() {
    let node = Node::with(&["--lost-debounce", "300ms"]);
    let mut watcher = watcher(&node, ROOM);
    let url = format!("http://{}", node.addr());
    let mut child = Command::new(env!("CARGO_BIN_EXE_landline"))
        .args(["presence", "room", "--as", "anna", "--info", r#"{"desk":3}"#, "--server", &url])
        .stdout(Stdio::piped())
        .spawn()
        .expect("start landline presence");
    let state = watcher.expect("state");
    assert_eq!(state["value"]["info"], json!({"desk": 3}));
    assert_eq!(next_after(&mut watcher, &mut child), ("anna".to_owned(), None));
}

/// Kills `child` and awaits what is then said of its user, which must take its time.
fn next_after(watcher: &mut Peer, child: &mut Child) -> (String, Option<u64>) {
    let killed = Watch::start();
    child.kill().expect("it runs");
    child.wait().expect("it was killed");
    let said = next(watcher);
    let elapsed = killed.elapsed();
    assert!(Duration::from_millis(300) <= elapsed, "gone after {elapsed:?}");
    said
}

#[test]
fn a_restart_clears_presence_and_says_so_by_its_epoch() {
    let node = Node::start();
    let mut peer = node.peer();
    let began = peer.ask(json!({"type": "watch", "pattern": ROOM}), "watching");
    peer.expect("synced");
    let _anna = join(&node, "anna");
    let version = number(&peer.expect("state"), "version");
    node.kill();

    let node = Node::start();
    let mut peer = node.peer();
    let from = json!({"epoch": began["epoch"], "version": version});
    let began = peer.ask(json!({"type": "watch", "pattern": ROOM, "from": from}), "watching");
    assert_eq!(began["reset"], true);
    assert_eq!(peer.expect("synced")["version"], 0);
}

#[test]
fn what_the_relay_says_of_itself_goes_on_only_while_somebody_watches() {
    let node = Node::start();
    let mut peer = node.peer();
    peer.ask(json!({"type": "watch", "pattern": "$sys/uptime"}), "watching");
    let mut seen: Vec<Value> = Vec::new();
    while seen.len() < 3 {
        let message = peer.message();
        if message["type"] == "state" {
            seen.push(message["value"].clone());
        }
    }
    let seconds: Vec<u64> = seen.iter().map(|value| value.as_u64().unwrap()).collect();
    assert!(seconds.is_sorted() && seconds[0] < seconds[2], "{seconds:?}");
    assert_eq!(node.metrics().sum(&["landline_state_watches"]), 1.0);
    peer.ask(json!({"type": "unwatch", "pattern": "$sys/uptime"}), "unwatched");
    peer.forget();
    peer.ask(json!({"type": "watch", "pattern": "$sys/connections"}), "watching");
    while peer.message()["type"] != "synced" {}
    let _other = node.peer();
    let state = peer.expect("state");
    assert_eq!((&state["key"], &state["value"]), (&json!("$sys/connections"), &json!(2)));
}
