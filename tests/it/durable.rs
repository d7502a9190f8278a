//! Promise 5, and 4 and 3 for durable topics: what was stored survives a killed relay, in its epoch
//! and order, also where memory keeps only the newest of it.

use std::{fs, os::unix::fs::PermissionsExt, thread};

use serde_json::{Value, json};

use crate::support::{
    node::{Node, Scratch, wait_for_metric},
    peer::{number, position, seq, seqs},
    wait::{LIMIT, wait_until},
};

/// Flags that make memory keep hardly anything.
const TINY_TAIL: [&str; 2] = ["--max-tail", "4KiB"];

fn dir() -> Scratch {
    Scratch::new("data")
}

fn publish(node: &Node, topic: &str, count: u64) -> Value {
    let mut peer = node.peer();
    (1..count).for_each(|n| peer.send(&json!({"type": "publish", "topic": topic, "data": n})));
    peer.ask(json!({"type": "publish", "topic": topic, "data": count}), "published")
}

#[test]
fn what_was_answered_synced_survives_a_killed_relay_in_its_epoch() {
    let dir = dir();
    let node = Node::durable(&dir, &[]);
    let mut peer = node.peer();
    let empty = peer.subscribe("quiet/topic");
    let receipt = publish(&node, "lamp", 500);
    assert_eq!((seq(&receipt), &receipt["durability"]), (500, &json!("synced")));
    node.kill();

    let node = Node::durable(&dir, &[]);
    let mut peer = node.peer();
    let head = peer.subscribe_from("lamp", position(&receipt, 100));
    assert_eq!(head["recovery"]["mode"], "complete", "{head}");
    assert_eq!(head["epoch"], receipt["epoch"]);
    let events = peer.events(400);
    assert_eq!(seqs(&events), (101..=500).collect::<Vec<_>>());
    assert_eq!(events[399]["data"], 500);
    let next = publish(&node, "lamp", 1);
    assert_eq!((seq(&next), &next["epoch"]), (501, &receipt["epoch"]));
    let empty_again = peer.subscribe_from("quiet/topic", position(&empty, 0));
    assert_eq!(empty_again["recovery"]["mode"], "complete", "{empty_again}");
}

#[test]
fn a_clean_restart_keeps_everything_too() {
    let dir = dir();
    let node = Node::durable(&dir, &[]);
    let receipt = publish(&node, "lamp", 3);
    node.stop();
    let node = Node::durable(&dir, &[]);
    let history = node.peer().history("lamp", json!("start"), 10);
    assert_eq!(history["epoch"], receipt["epoch"]);
    assert_eq!(seqs(history["events"].as_array().unwrap()), [1, 2, 3]);
    assert_eq!((number(&history, "first"), number(&history, "tail")), (1, 3));
}

#[test]
fn subscribers_and_publishers_of_every_transport_see_stored_events_alone() {
    let dir = dir();
    let node = Node::durable(&dir, &[]);
    let mut subscriber = node.peer();
    subscriber.subscribe("lamp");
    let reply = node.http().request("POST", "/v1/topics/lamp/events", &[], "{\"on\":true}");
    assert_eq!((reply.status, &reply.json()["durability"]), (201, &json!("synced")));
    let stored = node.metrics().sum(&["landline_store_events_total"]);
    assert_eq!(stored, 1.0, "the answer came before the commit");
    assert_eq!(seq(&subscriber.expect("event")), 1);
    // Without an id there is no answer, but the event is stored and delivered.
    subscriber.send(&json!({"type": "publish", "topic": "lamp", "data": 2}));
    assert_eq!(seq(&subscriber.expect("event")), 2);
    let topics = node.get("/v1/topics").json();
    assert_eq!(topics["topics"][0]["durability"], "synced");
}

#[test]
fn written_events_survive_a_killed_process() {
    for sync in ["os", "interval"] {
        let dir = dir();
        let flags = ["--sync", sync, "--sync-interval", "1h"];
        let node = Node::durable(&dir, &flags);
        let receipt = publish(&node, "lamp", 50);
        assert_eq!(receipt["durability"], "written", "{sync}");
        let commits = node.metrics().sum(&["landline_store_commits_total"]);
        node.kill();
        let node = Node::durable(&dir, &flags);
        let history = node.peer().history("lamp", json!("start"), 100);
        assert_eq!(history["epoch"], receipt["epoch"], "{sync}");
        assert_eq!(history["events"].as_array().unwrap().len(), 50, "{sync}: {commits} commits");
    }
}

#[test]
fn a_loss_of_power_begins_new_epochs_where_something_may_be_lost() {
    let dir = dir();
    let text = format!(
        "data_dir = {:?}\ndurable = true\n[[topics]]\npattern = \"fast/#\"\nsync = \"os\"\n",
        dir.path().to_str().unwrap()
    );
    let node = Node::with_config(&text);
    let (safe, fast) = (publish(&node, "safe", 3), publish(&node, "fast/lamp", 3));
    let running = dir.path().join("running");
    let boot = fs::read(&running).unwrap();
    node.kill();
    // A killed process is no loss of power.
    let node = Node::with_config(&text);
    let epoch = |node: &Node, topic| node.peer().history(topic, json!("start"), 9)["epoch"].clone();
    assert_eq!(epoch(&node, "fast/lamp"), fast["epoch"]);
    node.kill();
    // What another start of the machine has left.
    fs::write(&running, "b5c9fa4e-0000-0000-0000-000000000000").unwrap();
    for _ in 0..2 {
        let node = Node::with_config(&text);
        let mut peer = node.peer();
        let head = peer.subscribe_from("safe", position(&safe, 2));
        assert_eq!(head["recovery"]["mode"], "complete", "{head}");
        assert_eq!(seq(&peer.expect("event")), 3);
        let head = peer.subscribe_from("fast/lamp", position(&fast, 2));
        assert_eq!(head["recovery"]["reason"], "epoch_changed", "{head}");
        assert_eq!(seqs(&peer.events(3)), [1, 2, 3]);
        assert_eq!(fs::read(&running).unwrap(), boot);
        node.kill();
    }
    Node::with_config(&text).stop();
    assert!(!running.exists(), "a stop in good order leaves no trace");
}

#[test]
fn what_an_interval_wrote_is_committed_when_it_is_over() {
    let dir = dir();
    let node = Node::durable(&dir, &["--sync", "interval", "--sync-interval", "50ms"]);
    // The first commit is that of the topic itself.
    publish(&node, "lamp", 10);
    publish(&node, "lamp", 10);
    wait_until("the journal to be empty", LIMIT, || {
        fs::metadata(dir.path().join("journal")).is_ok_and(|journal| journal.len() == 0)
            && 0.0 < node.metrics().sum(&["landline_store_writes_total"])
    });
    let history = node.peer().history("lamp", json!("start"), 100);
    assert_eq!(history["events"].as_array().unwrap().len(), 20);
}

#[test]
fn a_replay_from_disk_joins_the_live_tail_without_a_gap_or_a_duplicate() {
    let dir = dir();
    let node = Node::durable(&dir, &TINY_TAIL);
    publish(&node, "lamp", 20_000);
    let mut early = node.peer();
    early.subscribe_from("lamp", json!("start"));
    let publisher = thread::scope(|scope| {
        let publisher = scope.spawn(|| publish(&node, "lamp", 10_000));
        let mut late = node.peer();
        late.subscribe_from("lamp", json!({"last": 15_000}));
        for expected in 1..=30_000 {
            assert_eq!(seq(&early.expect("event")), expected);
        }
        let first = seq(&late.expect("event"));
        for expected in first + 1..=30_000 {
            assert_eq!(seq(&late.expect("event")), expected);
        }
        publisher.join().unwrap()
    });
    assert_eq!(seq(&publisher), 30_000);
    assert!(10.0 < node.metrics().sum(&["landline_store_pages_total"]));
    let kept = number(&node.get("/v1/topics").json()["topics"][0], "bytes");
    assert!(kept < 100_000, "memory keeps {kept} bytes");
}

#[test]
fn history_on_disk_is_read_page_by_page_by_sequence_and_by_time() {
    let dir = dir();
    let node = Node::durable(&dir, &TINY_TAIL);
    publish(&node, "lamp", 5_000);
    let mut peer = node.peer();
    let mut cursor = 0;
    while cursor < 5_000 {
        let first = peer.history("lamp", json!("start"), 1);
        let page = peer.history("lamp", position(&first, cursor), 999);
        let events = page["events"].as_array().unwrap();
        let expected: Vec<u64> = (cursor + 1..=(cursor + 999).min(5_000)).collect();
        assert_eq!(seqs(events), expected);
        cursor = expected[expected.len() - 1];
    }
    let events = peer.history("lamp", json!("start"), 1_000)["events"].clone();
    let middle = &events[500];
    let since = peer.history("lamp", json!({"since": middle["time"]}), 1);
    let found = &since["events"][0];
    assert_eq!(found["time"], middle["time"], "{since}");
    assert!(seq(found) <= seq(middle));
    let before = position(&since, seq(found) - 1 - u64::from(1 < seq(found)));
    let earlier = peer.history("lamp", before, 1)["events"][0].clone();
    assert!(number(&earlier, "time") < number(found, "time") || seq(found) == 1);
    let newest = peer.history("lamp", json!({"last": 2}), 10);
    assert_eq!(seqs(newest["events"].as_array().unwrap()), [4_999, 5_000]);
    let reply = node.get("/v1/topics/lamp/events?from=start&limit=3");
    assert_eq!(seqs(reply.json()["events"].as_array().unwrap()), [1, 2, 3]);
}

#[test]
fn retention_removes_the_oldest_from_disk_and_says_so_to_who_resumes() {
    let dir = dir();
    let flags = ["--max-events", "1000", "--max-tail", "4KiB"];
    let node = Node::durable(&dir, &flags);
    let receipt = publish(&node, "lamp", 5_000);
    let mut peer = node.peer();
    wait_for_metric(&node, &["events_evicted_total", "count"], 4_000.0);
    let head = peer.subscribe_from("lamp", position(&receipt, 10));
    assert_eq!(head["recovery"]["mode"], "partial", "{head}");
    assert_eq!(head["recovery"]["missing"], json!([11, 4_000]));
    assert_eq!(seqs(&peer.events(1_000)), (4_001..=5_000).collect::<Vec<_>>());
    node.kill();
    let node = Node::durable(&dir, &flags);
    let history = node.peer().history("lamp", json!("start"), 1);
    assert_eq!((number(&history, "first"), number(&history, "tail")), (4_001, 5_000));
}

#[test]
fn events_beyond_their_age_go_and_their_sequences_never_come_again() {
    let dir = dir();
    let node = Node::durable(&dir, &["--max-age", "1s"]);
    let receipt = publish(&node, "lamp", 5);
    node.kill();
    let node = Node::durable(&dir, &["--max-age", "1s"]);
    wait_for_metric(&node, &["events_evicted_total", "age"], 5.0);
    node.kill();
    let node = Node::durable(&dir, &["--max-age", "1s"]);
    let next = publish(&node, "lamp", 1);
    assert_eq!((seq(&next), &next["epoch"]), (6, &receipt["epoch"]));
}

#[test]
fn some_topics_are_durable_and_others_are_not() {
    let dir = dir();
    let text = format!(
        "data_dir = {:?}\n[[topics]]\npattern = \"keep/#\"\ndurable = true\n",
        dir.path().to_str().unwrap()
    );
    let node = Node::with_config(&text);
    let kept = publish(&node, "keep/lamp", 2);
    let lost = publish(&node, "lamp", 2);
    assert_eq!((&kept["durability"], &lost["durability"]), (&json!("synced"), &json!("memory")));
    node.kill();
    let node = Node::with_config(&text);
    let mut peer = node.peer();
    let head =
        peer.subscribe_from("keep/#", json!({"positions": {"keep/lamp": position(&kept, 1)}}));
    assert_eq!(number(&head, "attached"), 1);
    assert_eq!(peer.expect("attached")["recovery"]["mode"], "complete");
    assert_eq!(seq(&peer.expect("event")), 2);
    let head = peer.subscribe_from("lamp", position(&lost, 2));
    assert_eq!(head["recovery"]["reason"], "epoch_changed", "{head}");
}

#[test]
fn a_topic_that_is_not_durable_any_more_stays_on_disk_until_it_is_again() {
    let dir = dir();
    let node = Node::durable(&dir, &[]);
    let kept = publish(&node, "lamp", 2);
    node.stop();
    let node = Node::with(&["--data-dir", dir.path().to_str().unwrap()]);
    assert_eq!(publish(&node, "lamp", 1)["durability"], "memory");
    assert!(node.stderr().contains("not durable any more"), "{}", node.stderr());
    node.stop();
    let node = Node::durable(&dir, &[]);
    let next = publish(&node, "lamp", 1);
    assert_eq!((seq(&next), &next["epoch"]), (3, &kept["epoch"]));
}

#[test]
fn ten_thousand_topics_are_there_after_a_restart() {
    let dir = dir();
    let node = Node::durable(&dir, &[]);
    let mut peer = node.peer();
    for n in 0..10_000 {
        peer.send(&json!({"type": "publish", "topic": format!("t/{n}"), "data": n}));
    }
    peer.ask(json!({"type": "publish", "topic": "last", "data": 0}), "published");
    wait_for_metric(&node, &["landline_store_events_total"], 10_001.0);
    node.kill();
    let node = Node::durable(&dir, &[]);
    let mut peer = node.peer();
    let head = peer.subscribe_from("t/+", json!("start"));
    assert_eq!(number(&head, "attached"), 10_000);
    let mut events = 0;
    while events < 10_000 {
        events += usize::from(peer.message()["type"] == "event");
    }
}

// Starting, and what keeps it from starting.

/// Runs `serve` to its end; what it said.
#[track_caller]
fn fails_to_start(flags: &[&str]) -> String {
    let command = std::process::Command::new(env!("CARGO_BIN_EXE_landline"))
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(flags)
        .output()
        .unwrap();
    assert!(!command.status.success());
    String::from_utf8(command.stderr).unwrap()
}

#[test]
fn a_second_relay_on_the_same_directory_is_refused_by_name() {
    let dir = dir();
    let node = Node::durable(&dir, &[]);
    let path = dir.path().to_str().unwrap();
    let said = fails_to_start(&["--data-dir", path, "--durable"]);
    assert!(said.contains(path) && said.contains("in use by another"), "{said}");
    publish(&node, "lamp", 1);
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let file = Scratch::new("file");
    fs::write(file.path(), "in the way").unwrap();
    let below = file.path().join("data");
    for path in [file.path(), below.as_path()] {
        let path = path.to_str().unwrap();
        let said = fails_to_start(&["--data-dir", path, "--durable"]);
        assert!(said.contains(path), "{said}");
    }
    // Only who is not root is kept out by permissions.
    let dir = dir();
    fs::create_dir(dir.path()).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(dir.path().join("probe"), "").is_err() {
        let path = dir.path().to_str().unwrap();
        assert!(fails_to_start(&["--data-dir", path, "--durable"]).contains(path));
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_relay_says_at_the_start_what_is_durable() {
    let node = Node::start();
    assert!(node.stderr().contains("data_dir is not set"), "{}", node.stderr());
    let said = fails_to_start(&["--durable"]);
    assert!(said.contains("durable topics need a directory; set data_dir"), "{said}");
    let dir = dir();
    let node = Node::durable(&dir, &[]);
    let path = dir.path().to_str().unwrap();
    wait_until("the log to name the directory", LIMIT, || node.stderr().contains(path));
}

#[test]
fn a_damaged_or_foreign_store_is_put_aside_and_never_deleted() {
    for damage in ["foreign", "overwritten"] {
        let dir = dir();
        let node = Node::durable(&dir, &[]);
        let old = publish(&node, "lamp", 3);
        node.stop();
        let file = dir.path().join("landline.redb");
        let mut bytes = fs::read(&file).unwrap();
        match damage {
            "foreign" => bytes = b"not a database at all".repeat(1_000),
            _ => bytes.iter_mut().step_by(7).for_each(|byte| *byte ^= 0x5a),
        }
        fs::write(&file, &bytes).unwrap();

        let node = Node::durable(&dir, &[]);
        let mut peer = node.peer();
        let head = peer.subscribe_from("lamp", position(&old, 3));
        assert_eq!(head["recovery"]["reason"], "epoch_changed", "{damage}: {head}");
        assert_eq!(seq(&publish(&node, "lamp", 1)), 1);
        let names = fs::read_dir(dir.path()).unwrap();
        let names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let aside = names.iter().find(|name| name.contains(".corrupt-"));
        let aside = aside.unwrap_or_else(|| panic!("{damage}: {names:?}"));
        assert_eq!(fs::read(dir.path().join(aside)).unwrap(), bytes, "{damage}");
        assert!(node.stderr().contains(aside.as_str()), "{damage}: {}", node.stderr());
    }
}

#[test]
fn what_was_replayed_can_be_acknowledged_as_soon_as_it_has_come() {
    let dir = dir();
    let node = Node::durable(&dir, &[]);
    publish(&node, "lamp", 3);
    let mut peer = node.peer();
    let request = json!({"type": "subscribe", "topic": "lamp", "from": "start", "ack": true});
    peer.ask(request, "subscribed");
    assert_eq!(seqs(&peer.events(3)), [1, 2, 3]);

    peer.send(&json!({"type": "ack", "topic": "lamp", "seq": 3}));
    peer.send(&json!({"type": "ping"}));
    // An ack that is refused is answered first.
    peer.expect("pong");
}
