//! Promise 4: an epoch names one life of a log. It changes when continuity is lost, then every
//! resume says so, and it stays otherwise.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    node::Node,
    peer::{number, position, seq, seqs},
    wait::{LIMIT, wait_until},
};

fn epoch(message: &Value) -> &str {
    message["epoch"].as_str().unwrap_or_else(|| panic!("{message} has no epoch"))
}

#[test]
fn a_memory_topic_begins_a_new_life_with_the_relay_and_a_resume_is_told() {
    let before = Node::start();
    let mut peer = before.peer();
    let first_life = peer.subscribe("lamp");
    for number in 1..=5 {
        peer.publish("lamp", number);
    }
    drop(peer);
    before.stop();
    let after = Node::start();

    // An empty log, a log that has grown past the old position, and one that has not: the same
    // sequence in another life is another event.
    for published in [0, 1, 10] {
        let topic = format!("lamp/{published}");
        let mut peer = after.peer();
        peer.publish_many(&topic, published, 0);
        let mut resumed = after.peer();
        let reply = resumed.subscribe_from(&topic, position(&first_life, 3));

        assert_ne!(epoch(&reply), epoch(&first_life));
        assert_eq!(reply["recovery"]["mode"], "reset", "{reply}");
        assert_eq!(reply["recovery"]["reason"], "epoch_changed", "{reply}");
        assert_eq!(seq(&reply), 0, "{reply}");
        let events = resumed.events(published as usize);
        assert_eq!(seqs(&events), (1..=published).collect::<Vec<_>>());
    }
}

#[test]
fn a_killed_relay_begins_a_new_life_too() {
    let before = Node::start();
    let first_life = before.peer().subscribe("lamp");
    before.kill();

    let after = Node::start();
    let reply = after.peer().subscribe_from("lamp", position(&first_life, 0));

    assert_eq!(reply["recovery"]["reason"], "epoch_changed", "{reply}");
}

#[test]
fn an_epoch_outlives_connections_eviction_and_a_reload() {
    let node = Node::with_config("max_events = 10\n");
    let mut peer = node.peer();
    let subscribed = peer.subscribe("lamp");
    peer.cut();

    let mut peer = node.peer();
    peer.publish_many("lamp", 100, 10);
    node.reload("max_events = 5\n");
    wait_until("the relay to keep fewer events", LIMIT, || {
        peer.publish_many("lamp", 1, 10);
        let history = peer.history("lamp", json!("start"), 1);
        number(&history, "tail") - number(&history, "first") + 1 == 5
    });
    let receipt = peer.ask(json!({"type": "publish", "topic": "lamp", "data": 1}), "published");
    let history = peer.history("lamp", json!("start"), 1);
    let http: Value = node.get("/v1/topics/lamp/events").json();

    for message in [&receipt, &history, &http, &peer.subscribe("lamp")] {
        assert_eq!(epoch(message), epoch(&subscribed), "{message}");
    }
}

#[test]
fn every_topic_has_an_epoch_of_its_own() {
    let node = Node::start();
    let mut peer = node.peer();

    let mut epochs: Vec<String> =
        (0..50).map(|topic| epoch(&peer.subscribe(&format!("t/{topic}"))).to_owned()).collect();
    epochs.sort();
    epochs.dedup();

    assert_eq!(epochs.len(), 50);
    assert!(epochs.iter().all(|epoch| epoch.len() == 16), "{epochs:?}");
}

#[test]
fn a_stopped_and_continued_relay_goes_on_in_the_same_life() {
    let node = Node::start();
    let mut peer = node.peer();
    let subscribed = peer.subscribe("lamp");

    node.signal(Signal::STOP);
    peer.send(&json!({"type": "publish", "topic": "lamp", "data": 1}));
    node.signal(Signal::CONT);

    assert_eq!(seq(&peer.expect("event")), 1);
    assert_eq!(epoch(&peer.history("lamp", json!("start"), 1)), epoch(&subscribed));
}

#[test]
fn a_forgotten_topic_begins_a_new_life_and_one_with_a_subscriber_is_not_forgotten() {
    let node = Node::with_config(
        "forget_after = \"1s\"\n[[topics]]\npattern = \"brief\"\nmax_age = \"1s\"\n",
    );
    let mut subscriber = node.peer();
    let held = subscriber.subscribe("held");
    let mut peer = node.peer();
    let first_life = peer.ask(json!({"type": "publish", "topic": "brief", "data": 1}), "published");

    wait_until("the topic to be forgotten", LIMIT, || {
        !node.get("/v1/topics").body.contains("\"brief\"")
    });
    let reply = peer.subscribe_from("brief", position(&first_life, 1));

    assert_eq!(reply["recovery"]["reason"], "epoch_changed", "{reply}");
    assert_eq!(peer.publish("brief", "anew"), 1);
    assert_eq!(seq(&peer.expect("event")), 1);
    let receipt = peer.ask(json!({"type": "publish", "topic": "held", "data": 1}), "published");
    assert_eq!(epoch(&receipt), epoch(&held));
    assert_eq!(seq(&subscriber.expect("event")), 1);
}
