//! Shared state as a stream: a snapshot, then each change; what a browser comes back with brings it
//! exactly what it lacks.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{
    node::Node,
    peer::{Peer, number},
    stream::Stream,
};

const HOME: &str = "/v1/state?match=home/%23";

fn set(peer: &mut Peer, key: &str, value: &Value) {
    peer.ask(json!({"type": "set", "key": key, "value": value}), "stored");
}

fn delete(peer: &mut Peer, key: &str) {
    peer.ask(json!({"type": "delete", "key": key}), "deleted");
}

/// Applies what comes until `version` has come. Returns whether all had to be forgotten first.
#[track_caller]
fn mirror(stream: &mut Stream, held: &mut BTreeMap<String, Value>, version: u64) -> bool {
    let mut reset = false;
    let mut before = 0;
    loop {
        let message = stream.message().expect("the stream goes on");
        let data = message.data;
        match message.event.as_str() {
            "watching" => {
                reset = data["reset"] == true;
                if reset {
                    held.clear();
                }
                continue;
            }
            "synced" => {}
            _ => {
                let key = data["key"].as_str().unwrap().to_owned();
                assert!(before < number(&data, "version"), "{data}");
                if data["deleted"] == true {
                    held.remove(&key);
                } else {
                    held.insert(key, data["value"].clone());
                }
            }
        }
        before = number(&data, "version");
        if !stream.head.contains("ndjson") {
            let id = message.id.expect("a position");
            assert_eq!(id.rsplit_once(':').unwrap().1, before.to_string());
        }
        if version <= before {
            return reset;
        }
    }
}

fn held(pairs: &[(&str, u64)]) -> BTreeMap<String, Value> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect()
}

#[test]
fn a_stream_of_values_begins_with_all_of_them_and_goes_on_with_each_change() {
    let node = Node::start();
    let mut peer = node.peer();
    set(&mut peer, "home/a", &json!(1));
    set(&mut peer, "away/a", &json!(2));
    set(&mut peer, "home/b", &json!(3));
    let mut streams = [Stream::sse(node.addr(), HOME), Stream::lines(node.addr(), HOME)];
    let mut mirrors = [BTreeMap::new(), BTreeMap::new()];
    for (stream, mirrored) in streams.iter_mut().zip(&mut mirrors) {
        assert!(mirror(stream, mirrored, 3));
        assert_eq!(*mirrored, held(&[("home/a", 1), ("home/b", 3)]));
        assert_eq!(stream.expect("synced").data["version"], 3);
    }

    set(&mut peer, "home/a", &json!(4));
    delete(&mut peer, "home/b");

    for (stream, mirrored) in streams.iter_mut().zip(&mut mirrors) {
        while *mirrored != held(&[("home/a", 4)]) {
            let name = if stream.head.contains("ndjson") { "state" } else { "message" };
            let data = stream.expect(name).data;
            let key = data["key"].as_str().unwrap().to_owned();
            if let Some(value) = data.get("value") {
                mirrored.insert(key, value.clone());
            } else {
                mirrored.remove(&key);
            }
        }
    }
}

#[test]
fn a_browser_that_comes_back_gets_each_key_that_changed_deletions_included() {
    let node = Node::start();
    let mut peer = node.peer();
    let mut mirrored = BTreeMap::new();
    for number in 1..=50 {
        set(&mut peer, &format!("home/{number}"), &json!(number));
    }
    let mut first = Stream::sse(node.addr(), HOME);
    // Cut within the snapshot.
    mirror(&mut first, &mut mirrored, 20);
    let id = first.last_id.clone();
    drop(first);
    delete(&mut peer, "home/3");
    delete(&mut peer, "home/40");
    set(&mut peer, "home/4", &json!(400));

    let mut again = Stream::sse_after(node.addr(), HOME, id.as_deref());
    let reset = mirror(&mut again, &mut mirrored, 53);

    assert!(!reset, "the position is known");
    let mut expected: BTreeMap<String, Value> =
        (1..=50).map(|number| (format!("home/{number}"), json!(number))).collect();
    expected.remove("home/3");
    expected.remove("home/40");
    expected.insert("home/4".to_owned(), json!(400));
    assert_eq!(mirrored, expected);
}

#[test]
fn a_state_that_began_anew_is_told_as_such() {
    let before = Node::start();
    set(&mut before.peer(), "home/a", &json!(1));
    let mut stream = Stream::sse(before.addr(), HOME);
    let mut mirrored = BTreeMap::new();
    mirror(&mut stream, &mut mirrored, 1);
    before.kill();

    let after = Node::start();
    set(&mut after.peer(), "home/b", &json!(2));
    let id = stream.last_id.clone();
    let mut stream = Stream::sse_after(after.addr(), HOME, id.as_deref());

    assert!(mirror(&mut stream, &mut mirrored, 1));
    assert_eq!(mirrored, held(&[("home/b", 2)]));
}

#[test]
fn what_the_relay_says_about_itself_is_a_stream_too() {
    let node = Node::start();
    let mut sse = Stream::sse(node.addr(), "/v1/state?match=$sys/%23");
    sse.expect("watching");
    let mut uptimes = Vec::new();
    while uptimes.len() < 2 {
        let message = sse.message().unwrap();
        if message.data["key"] == "$sys/uptime" {
            uptimes.push(number(&message.data, "value"));
        }
    }
    assert!(uptimes[0] < uptimes[1]);
}
