//! Promise 5 for the shared state: `stored` survives, with its version and in its epoch, and nobody
//! sees what is not stored.

use std::{collections::BTreeSet, io::ErrorKind, net::TcpStream, thread, time::Duration};

use landline::store::{
    disk::Disk,
    sim::{Fault, SimDisk, Step},
};
use serde_json::{Value, json};

use crate::support::{
    http::Http,
    node::{Node, Scratch, wait_for_metric},
    peer::{Peer, number},
    relay::{Relay, config},
    wait::{LIMIT, wait_for, wait_until},
};

/// A relay whose state is durable, in `dir`.
fn node(dir: &Scratch) -> Node {
    let path = dir.path().to_str().expect("a path that is text");
    Node::with(&["--durable-state", "--data-dir", path])
}

fn set(key: &str, value: impl Into<Value>) -> Value {
    json!({"type": "set", "key": key, "value": value.into()})
}

fn stored(peer: &mut Peer, request: Value) -> Value {
    let reply = peer.ask(request, "stored");
    assert_eq!(reply["durability"], "synced", "{reply}");
    reply
}

fn all(peer: &mut Peer) -> Value {
    peer.ask(json!({"type": "get", "key": "#", "limit": 1_000}), "values")
}

/// Keys with their values and versions.
fn values(reply: &Value) -> Vec<(String, Value, u64)> {
    let entry = |value: &Value| {
        (
            value["key"].as_str().unwrap().to_owned(),
            value["value"].clone(),
            number(value, "version"),
        )
    };
    reply["values"].as_array().unwrap().iter().map(entry).collect()
}

#[test]
fn what_was_answered_survives_kill_9_with_versions_deletions_and_its_epoch() {
    let dir = Scratch::new("data");
    let before = node(&dir);
    let mut peer = before.peer();
    stored(&mut peer, set("lamp", json!({"on": true, "name": "\u{e9}\"\\"})));
    stored(&mut peer, set("door", 1));
    let receipt = stored(&mut peer, set("door", "open"));
    let gone = peer.ask(json!({"type": "delete", "key": "lamp"}), "deleted");
    assert_eq!((number(&gone, "version"), &gone["epoch"]), (4, &receipt["epoch"]));
    stored(&mut peer, set("room/1", [1, 2]));
    let old = all(&mut peer);
    before.kill();

    let after = node(&dir);
    let mut peer = after.peer();

    let new = all(&mut peer);
    assert_eq!((&new["epoch"], number(&new, "version")), (&receipt["epoch"], 5));
    assert_eq!(new["values"], old["values"], "each message is as it was sent before");
    assert_eq!(after.metrics().sum(&["landline_state_tombstones"]), 1.0);
    peer.refused(json!({"type": "delete", "key": "lamp"}), "not_found");
    assert_eq!(number(&stored(&mut peer, set("lamp", 2)), "version"), 6);
    after.stop();
    let again = all(&mut node(&dir).peer());
    let expected = [
        ("door".to_owned(), json!("open"), 3),
        ("lamp".to_owned(), json!(2), 6),
        ("room/1".to_owned(), json!([1, 2]), 5),
    ];
    assert_eq!(values(&again), expected);
}

#[test]
fn after_a_restart_a_change_on_a_condition_sees_the_version_that_was_told() {
    let dir = Scratch::new("data");
    let before = node(&dir);
    let new = json!({"type": "set", "key": "lock", "value": "a", "if_version": 0});
    assert_eq!(number(&stored(&mut before.peer(), new.clone()), "version"), 1);
    before.kill();

    let after = node(&dir);
    let mut peer = after.peer();
    let refusal = peer.refused(new, "conflict");
    assert_eq!(number(&refusal, "version"), 1, "{refusal}");
    let next = json!({"type": "set", "key": "lock", "value": "b", "if_version": 1});
    assert_eq!(number(&stored(&mut peer, next), "version"), 2);
}

#[test]
fn a_key_goes_at_its_time_also_over_a_restart_and_stays_gone() {
    let dir = Scratch::new("data");
    let before = node(&dir);
    let mut peer = before.peer();
    for (key, ttl_ms) in [("soon", 1), ("later", 1_500), ("much later", 3_600_000)] {
        stored(&mut peer, json!({"type": "set", "key": key, "value": 1, "ttl_ms": ttl_ms}));
    }
    before.kill();

    let after = node(&dir);
    wait_for_metric(&after, &["landline_state_tombstones"], 2.0);
    let left = all(&mut after.peer());
    let keys: Vec<_> = values(&left).into_iter().map(|(key, ..)| key).collect();
    assert_eq!(keys, ["much later"]);
    after.kill();

    let again = node(&dir);
    assert_eq!(values(&all(&mut again.peer())), values(&left));
    assert_eq!(again.metrics().sum(&["landline_state_tombstones"]), 2.0);
}

/// Sends a change whose answer is awaited later, under a number of its own.
fn send(peer: &mut Peer, mut request: Value) {
    request["id"] = json!(1_000);
    peer.send(&request);
}

/// Lets the disk wait, with one commit under way that a change of `peer` has begun.
#[track_caller]
fn hold_a_commit(disk: &SimDisk, peer: &mut Peer, request: Value) {
    disk.hold(true);
    send(peer, request);
    wait_until("a sync to wait", LIMIT, || disk.waiting() == 1);
}

#[test]
fn nobody_sees_a_value_before_it_is_stored_and_changes_that_wait_share_a_commit() {
    let disk = SimDisk::default();
    let relay = Relay::start(&disk).unwrap();
    let commits = || relay.metrics().sum(&["landline_store_commits_total"]);
    let (mut peer, mut other) = (relay.peer(), relay.peer());
    stored(&mut peer, set("lamp", "old"));
    let before = commits();

    hold_a_commit(&disk, &mut peer, set("lamp", "new"));
    let seen = all(&mut other);
    assert_eq!(
        (values(&seen), number(&seen, "version")),
        (vec![("lamp".to_owned(), json!("old"), 1)], 1)
    );
    let mut peers: Vec<_> = (0..20).map(|_| relay.peer()).collect();
    for (index, peer) in peers.iter_mut().enumerate() {
        send(peer, set(&format!("room/{}", index % 10), index));
        peer.fence();
    }
    // What waits is in the way of who asks for what is seen.
    let early = json!({"type": "set", "key": "lamp", "value": "mine", "if_version": 1});
    other.refused(early, "conflict");
    assert_eq!(values(&all(&mut other)), values(&seen));
    disk.hold(false);

    assert_eq!(number(&peer.expect("stored"), "version"), 2);
    let versions: BTreeSet<_> =
        peers.iter_mut().map(|peer| number(&peer.expect("stored"), "version")).collect();
    assert_eq!(versions, (3..=22).collect());
    assert_eq!(commits(), before + 2.0);
    let seen = all(&mut other);
    assert_eq!((values(&seen).len(), number(&seen, "version")), (11, 22));
    wait_until("the backlog to be settled", LIMIT, || {
        relay.metrics().0["landline_store_backlog_bytes"] == 0.0
    });
    drop((peer, other, peers));
    relay.stop();
}

#[test]
fn a_stop_waits_for_the_disk_and_answers_before_it_says_bye() {
    let disk = SimDisk::default();
    let relay = Relay::start(&disk).unwrap();
    let addr = relay.addr();
    let (mut first, mut second) = (relay.peer(), relay.peer());
    stored(&mut first, set("lamp", 1));
    hold_a_commit(&disk, &mut first, set("lamp", 2));
    send(&mut second, set("lamp", 3));
    second.fence();

    thread::scope(|scope| {
        let stop = scope.spawn(|| relay.stop());
        wait_until("the relay to let nobody in", LIMIT, || TcpStream::connect(addr).is_err());
        disk.hold(false);
        for mut peer in [first, second] {
            let (words, _) = peer.last_words();
            peer.finish_sending();
            let kinds: Vec<_> = words.iter().map(|word| word["type"].as_str().unwrap()).collect();
            assert_eq!(kinds, ["stored", "bye"], "{words:?}");
        }
        stop.join().unwrap();
    });

    let again = Relay::start(&disk.crashed(None)).unwrap();
    assert_eq!(values(&all(&mut again.peer())), [("lamp".to_owned(), json!(3), 3)]);
    again.stop();
}

#[test]
fn a_full_disk_refuses_changes_by_name_and_takes_them_when_there_is_room() {
    let disk = SimDisk::default();
    disk.limit(Some(4 << 20));
    let relay = Relay::start(&disk).unwrap();
    let mut peer = relay.peer();
    let large =
        |number: u64| set(&format!("k/{number}"), format!("{number} {}", "x".repeat(40_000)));
    let mut told = 0;
    let refusal = loop {
        let reply = peer.request(large(told));
        if reply["type"] != "stored" {
            break reply;
        }
        told += 1;
        assert!(told < 200, "the disk has no end");
    };
    assert_eq!(refusal["code"], "unavailable", "{refusal}");
    assert!(refusal["retry_after_ms"].is_u64() && 10 < told, "{told}: {refusal}");
    assert_eq!(peer.publish("memory", "memory is not full"), 1);
    let count = |peer: &mut Peer| number(&all(peer), "version");
    assert_eq!(count(&mut peer), told, "what was refused is not seen");

    disk.limit(None);
    relay.wait_ready();
    let receipt = wait_for("the change to be taken", LIMIT, || {
        let reply = peer.request(large(told));
        (reply["type"] == "stored").then_some(reply)
    });
    let seen = all(&mut peer);
    drop(peer);
    relay.stop();

    let again = Relay::start(&disk.crashed(None)).unwrap();
    let found = all(&mut again.peer());
    assert_eq!((&found["epoch"], &found["values"]), (&receipt["epoch"], &seen["values"]));
    let keys: BTreeSet<_> = list(&again).into_iter().collect();
    assert_eq!(keys, (0..=told).map(|number| format!("k/{number}")).collect());
    again.stop();
}

/// All keys, however many pages that takes.
fn list(relay: &Relay) -> Vec<String> {
    let (mut peer, mut keys) = (relay.peer(), Vec::new());
    let mut request = json!({"type": "get", "key": "#", "limit": 1_000});
    loop {
        let page = peer.ask(request.clone(), "values");
        keys.extend(values(&page).into_iter().map(|(key, ..)| key));
        if page["next"].is_null() {
            return keys;
        }
        request["after"] = page["next"].clone();
    }
}

#[test]
fn a_store_that_was_lost_under_the_relay_gets_everything_that_is_seen_once_more() {
    let disk = SimDisk::default();
    let relay = Relay::start(&disk).unwrap();
    let mut peer = relay.peer();
    for number in 1..=3 {
        stored(&mut peer, set(&format!("k/{number}"), number));
    }
    let receipt = peer.ask(json!({"type": "delete", "key": "k/2"}), "deleted");

    disk.remove("landline.redb").unwrap();
    let (step, error) = (Step::Sync, ErrorKind::Other);
    disk.fail(Some(Fault { step, nth: 1, error, forever: false }));
    peer.refused(set("k/1", "not stored"), "unavailable");
    relay.wait_ready();
    wait_until("a change to be stored", LIMIT, || peer.request(set("k/4", 4))["type"] == "stored");
    drop(peer);
    relay.stop();

    let again = Relay::start(&disk.crashed(None)).unwrap();
    let found = all(&mut again.peer());
    assert_eq!(found["epoch"], receipt["epoch"]);
    let found: Vec<_> = values(&found).into_iter().map(|(key, value, _)| (key, value)).collect();
    let expected = [("k/1", 1), ("k/3", 3), ("k/4", 4)];
    assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), json!(value))));
    assert_eq!(again.metrics().sum(&["landline_state_tombstones"]), 1.0);
    again.stop();
}

/// After an error of the disk nobody knows whether a change is there. If it is, who watches must
/// hear of it now: behind later versions it would never be looked for.
#[test]
fn a_change_that_is_on_disk_in_spite_of_an_error_is_seen_before_a_restart() {
    let mut there = 0;
    for nth in 1..=4 {
        let disk = SimDisk::default();
        let relay = Relay::start(&disk).unwrap();
        let mut peer = relay.peer();
        stored(&mut peer, set("lamp", "old"));
        let (step, error) = (Step::Sync, ErrorKind::Other);
        disk.fail(Some(Fault { step, nth, error, forever: false }));
        if peer.request(set("lamp", "new"))["type"] == "stored" {
            // One change does not take so many syncs.
            drop(peer);
            relay.stop();
            continue;
        }
        relay.wait_ready();
        let seen = all(&mut peer);
        there += u64::from(values(&seen)[0].1 == "new");
        let next = stored(&mut peer, set("door", 1));

        let again = Relay::start(&disk.crashed(None)).unwrap();
        let found = all(&mut again.peer());
        assert_eq!(found["epoch"], next["epoch"]);
        assert_eq!(values(&found)[1..], values(&seen), "sync {nth}");
        again.stop();
        drop(peer);
        relay.stop();
    }
    assert!(0 < there, "no change was there after an error");
}

#[test]
fn a_damaged_value_is_dropped_and_a_new_epoch_says_so_once() {
    let disk = SimDisk::default();
    let relay = Relay::start(&disk).unwrap();
    let mut peer = relay.peer();
    stored(&mut peer, set("broken", 1));
    stored(&mut peer, set("whole", "stays"));
    let old = stored(&mut peer, set("broken", "marker-of-what-is-damaged"));
    drop(peer);
    relay.stop();
    let mut bytes = disk.bytes("landline.redb").unwrap();
    let marker = b"marker-of-what-is-damaged";
    for at in 0..bytes.len() - marker.len() {
        if bytes[at..].starts_with(marker) {
            bytes[at] ^= 1;
        }
    }
    disk.put("landline.redb", bytes);

    let relay = Relay::start(&disk).unwrap();
    let found = all(&mut relay.peer());
    assert_ne!(found["epoch"], old["epoch"]);
    assert_eq!(values(&found), [("whole".to_owned(), json!("stays"), 2)]);
    assert_eq!(number(&found, "version"), 3, "what is lost had this one");
    wait_until("the new epoch to be stored", LIMIT, || {
        1.0 <= relay.metrics().sum(&["landline_store_commits_total"])
    });
    let crashed = disk.crashed(None);
    relay.stop();

    for disk in [crashed, disk.crashed(None)] {
        let again = Relay::start(&disk).unwrap();
        let mut peer = again.peer();
        assert_eq!(all(&mut peer), found);
        assert_eq!(number(&stored(&mut peer, set("broken", "mended")), "version"), 4);
        drop(peer);
        again.stop();
    }
}

#[test]
fn a_state_that_is_not_durable_leaves_what_is_stored_alone() {
    let disk = SimDisk::default();
    let relay = Relay::start(&disk).unwrap();
    let old = stored(&mut relay.peer(), set("lamp", 1));
    relay.stop();

    let mut config = config();
    config.state.durable = false;
    let relay = Relay::start_with(config, &disk).unwrap();
    let mut peer = relay.peer();
    assert_eq!(values(&all(&mut peer)), []);
    let reply = peer.ask(set("lamp", "in memory"), "stored");
    assert_eq!(reply["durability"], "memory");
    peer.ask(json!({"type": "publish", "topic": "always/a", "data": 1}), "published");
    drop(peer);
    relay.stop();

    let relay = Relay::start(&disk).unwrap();
    let found = all(&mut relay.peer());
    assert_eq!(found["epoch"], old["epoch"]);
    assert_eq!(values(&found), [("lamp".to_owned(), json!(1), 1)]);
    relay.stop();
}

#[test]
fn a_loss_of_power_costs_no_epoch_of_the_state() {
    let disk = SimDisk::default();
    let relay = Relay::start(&disk).unwrap();
    let old = stored(&mut relay.peer(), set("lamp", 1));
    let image = disk.crashed(None);
    relay.stop();

    let again = Relay::start(&image).unwrap();
    let found = all(&mut again.peer());
    assert_eq!((&found["epoch"], values(&found).len()), (&old["epoch"], 1));
    again.stop();
}

/// Time in which a sync that nobody asked for would have begun.
const MOMENT: Duration = Duration::from_millis(50);

#[test]
fn a_relay_that_nobody_changes_writes_nothing_of_its_state() {
    let disk = SimDisk::default();
    let relay = Relay::start(&disk).unwrap();
    stored(&mut relay.peer(), set("lamp", 1));
    let writes = disk.count(Step::Write);
    let mut peer = relay.peer();
    assert_eq!(peer.receive(MOMENT), None);
    values(&all(&mut peer));
    assert_eq!(disk.count(Step::Write), writes);
    drop(peer);
    relay.stop();
}

#[test]
fn a_condition_on_any_version_waits_for_a_change_that_is_on_its_way_to_the_disk() {
    let disk = SimDisk::default();
    let relay = Relay::start(&disk).unwrap();
    let mut peer = relay.peer();
    stored(&mut peer, set("lamp", 1));
    hold_a_commit(&disk, &mut peer, set("lamp", 2));

    let reply = thread::scope(|scope| {
        let addr = relay.addr();
        let put = scope.spawn(move || {
            Http::connect(addr).request("PUT", "/v1/state/lamp", &["If-Match: *"], "3")
        });
        // What it would change is pending, so that it cannot be answered.
        wait_until("somebody to ask", LIMIT, || {
            3.0 <= relay.metrics().0["landline_server_connections"]
        });
        disk.hold(false);
        put.join().unwrap()
    });

    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(number(&reply.json(), "version"), 3);
    assert_eq!(values(&all(&mut peer)), [("lamp".to_owned(), json!(3), 3)]);
}
