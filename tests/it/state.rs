//! The shared state: keys with values, compare-and-set, expiry, bounds.

use std::thread;

use serde_json::{Value, json};

use crate::support::{
    node::Node,
    peer::{Peer, number},
    wait::{LIMIT, wait_until},
};

fn get(peer: &mut Peer, key: &str) -> Option<(Value, u64)> {
    let reply = peer.ask(json!({"type": "get", "key": key}), "values");
    let values = reply["values"].as_array().unwrap();
    assert!(values.len() <= 1);
    values.first().map(|state| (state["value"].clone(), number(state, "version")))
}

#[test]
fn a_value_is_what_was_set_last_whatever_json_it_is() {
    let node = Node::start();
    let mut peer = node.peer();
    peer.ask(json!({"type": "hello", "user": "anna"}), "welcome");
    for value in [json!(null), json!(1.5), json!("x"), json!({"a": [1, {"b": null}]}), json!([])] {
        let stored = peer.ask(json!({"type": "set", "key": "a/b", "value": value}), "stored");
        assert_eq!(stored["durability"], "memory");
        assert_eq!(get(&mut peer, "a/b"), Some((value, number(&stored, "version"))));
    }
    // What stands there is passed on as it stands.
    peer.send_text(r#"{"type":"set","key":"raw","value":{ "b" : 1.50e1, "a":"\u0041" }}"#);
    peer.fence();
    peer.send_text(r#"{"type":"get","key":"raw","id":99}"#);
    let text = peer.text();
    assert!(text.contains(r#""value":{ "b" : 1.50e1, "a":"\u0041" },"#), "{text}");
    assert!(text.contains(r#""user":"anna""#), "{text}");
    let deleted = peer.ask(json!({"type": "delete", "key": "a/b"}), "deleted");
    assert_eq!(number(&deleted, "version"), 7);
    assert_eq!(get(&mut peer, "a/b"), None);
    peer.refused(json!({"type": "delete", "key": "a/b"}), "not_found");
}

#[test]
fn a_condition_that_does_not_hold_changes_nothing_and_names_what_is_there() {
    let node = Node::start();
    let mut peer = node.peer();
    let set = |version: Value, value: u64| {
        let mut request = json!({"type": "set", "key": "a", "value": value});
        request["if_version"] = version;
        request
    };
    let error = peer.refused(set(json!(3), 1), "conflict");
    assert_eq!((&error["version"], &error["field"]), (&json!(0), &json!("if_version")));
    let version = number(&peer.ask(set(json!(0), 1), "stored"), "version");
    let error = peer.refused(set(json!(0), 2), "conflict");
    assert_eq!(error["version"], version);
    peer.ask(set(json!(version), 2), "stored");
    let stale = json!({"type": "delete", "key": "a", "if_version": version});
    peer.refused(stale, "conflict");
    assert_eq!(get(&mut peer, "a"), Some((json!(2), 2)));
    peer.ask(json!({"type": "delete", "key": "a", "if_version": 2}), "deleted");
    peer.ask(set(json!(0), 3), "stored");
}

#[test]
fn no_update_is_lost_under_compare_and_set() {
    const PEERS: u64 = 8;
    const EACH: u64 = 100;
    let node = Node::start();
    thread::scope(|scope| {
        for _ in 0..PEERS {
            let mut peer = node.peer();
            scope.spawn(move || {
                let mut done = 0;
                while done < EACH {
                    let (value, version) = get(&mut peer, "count").unwrap_or((json!(0), 0));
                    let next = value.as_u64().unwrap() + 1;
                    let request = json!(
                        {"type": "set", "key": "count", "value": next, "if_version": version}
                    );
                    let reply = peer.request(request);
                    done += u64::from(reply["type"] == "stored");
                }
            });
        }
    });
    assert_eq!(get(&mut node.peer(), "count").unwrap().0, PEERS * EACH);
}

#[test]
fn a_key_that_expires_is_deleted_for_everybody_and_setting_it_again_keeps_it() {
    let node = Node::start();
    let mut peer = node.peer();
    let mut watcher = node.peer();
    watcher.ask(json!({"type": "watch", "pattern": "#"}), "watching");
    watcher.expect("synced");
    let set =
        |key: &str, ttl_ms: Value| json!({"type": "set", "key": key, "value": 1, "ttl_ms": ttl_ms});
    let mut expired = 1.0;
    wait_until("a key to be set again before it expires", LIMIT, || {
        let first = number(&peer.ask(set("kept", json!(50)), "stored"), "version");
        let mut again = set("kept", Value::Null);
        again["if_version"] = json!(first);
        let reply = peer.request(again);
        let is_late = reply["code"] == "conflict";
        assert!(is_late || reply["type"] == "stored", "{reply}");
        expired += f64::from(is_late);
        !is_late
    });
    peer.ask(set("long", json!(86_400_000)), "stored");
    let last = number(&peer.ask(set("short", json!(60)), "stored"), "version") + 1;
    // How many come depends on when the watcher's writer looks; this is the last one.
    let gone =
        std::iter::from_fn(|| Some(watcher.expect("state"))).find(|it| it["version"] == last);
    let gone = gone.unwrap_or_default();
    assert_eq!((&gone["key"], &gone["deleted"]), (&json!("short"), &json!(true)));
    assert_eq!(get(&mut peer, "short"), None);
    assert!(get(&mut peer, "kept").is_some() && get(&mut peer, "long").is_some());
    assert!(watcher.receive(std::time::Duration::from_millis(100)).is_none(), "{LIMIT:?}");
    assert_eq!(node.metrics().sum(&["landline_state_expired_total"]), expired);
    let error = peer.refused(set("x", json!(0)), "bad_request");
    assert_eq!(error["field"], "ttl_ms");
}

#[test]
fn every_bound_is_named_by_whoever_meets_it() {
    let node = Node::with(&["--max-keys", "3", "--max-value", "100B", "--max-subscriptions", "2"]);
    let mut peer = node.peer();
    let set = |key: &str, value: Value| json!({"type": "set", "key": key, "value": value});
    for key in ["a", "b", "c"] {
        peer.ask(set(key, json!(1)), "stored");
    }
    peer.ask(set("a", json!(2)), "stored");
    let error = peer.refused(set("d", json!(1)), "limit_exceeded");
    assert!(error["message"].as_str().unwrap().contains("3 keys"), "{error}");
    let error = peer.refused(set("a", json!("x".repeat(99))), "too_large");
    assert_eq!(error["field"], "value");
    for (request, field) in [
        (json!({"type": "set", "value": 1}), "key"),
        (json!({"type": "set", "key": "a/+", "value": 1}), "key"),
        (json!({"type": "set", "key": 5, "value": 1}), "key"),
        (json!({"type": "set", "key": null, "value": 1}), "key"),
        (json!({"type": "set", "key": "a"}), "value"),
        (json!({"type": "set", "key": "a", "value": 1, "if_version": -1}), "if_version"),
        (json!({"type": "delete", "key": "a//b"}), "key"),
        (json!({"type": "get", "key": "a/#/b"}), "key"),
        (json!({"type": "get", "key": "#", "limit": 0}), "limit"),
        (json!({"type": "watch", "pattern": "a+"}), "pattern"),
        (json!({"type": "watch"}), "pattern"),
        (json!({"type": "watch", "pattern": "a", "from": "live"}), "from"),
    ] {
        let error = peer.refused(request.clone(), "bad_request");
        assert_eq!(error["field"], field, "{request}: {error}");
    }
    for pattern in ["a", "b"] {
        peer.ask(json!({"type": "watch", "pattern": pattern}), "watching");
    }
    peer.refused(json!({"type": "watch", "pattern": "c"}), "limit_exceeded");
    peer.ask(json!({"type": "watch", "pattern": "a"}), "watching");
}

#[test]
fn a_long_list_comes_in_pages() {
    let node = Node::start();
    let mut peer = node.peer();
    for key in 0..250 {
        peer.send(&json!({"type": "set", "key": format!("k/{key:03}"), "value": key}));
    }
    let (mut keys, mut after) = (Vec::new(), Value::Null);
    loop {
        let request = json!({"type": "get", "key": "k/+", "after": after, "limit": 100});
        let reply = peer.ask(request, "values");
        let values = reply["values"].as_array().unwrap();
        keys.extend(values.iter().map(|state| state["key"].as_str().unwrap().to_owned()));
        after = reply["next"].clone();
        if after.is_null() {
            break;
        }
        assert_eq!(values.len(), 100);
    }
    assert_eq!(keys, (0..250).map(|key| format!("k/{key:03}")).collect::<Vec<_>>());
}
