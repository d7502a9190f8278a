//! A disk that takes its time: who waits for it, who does not, and what a stop does with what
//! waits.

use std::{collections::BTreeSet, net::TcpStream, thread, time::Duration};

use landline::store::sim::SimDisk;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    node::{Node, Scratch},
    peer::{Peer, number, seq, seqs},
    relay::{Relay, config},
    wait::{LIMIT, Watch, wait_until},
};

/// Time in which something would have come that must not.
const MOMENT: Duration = Duration::from_millis(50);

fn published(peer: &mut Peer, topic: &str) -> Value {
    peer.ask(json!({"type": "publish", "topic": topic, "data": "before"}), "published")
}

/// Sends an event whose answer is awaited later, under a number of its own.
fn send(peer: &mut Peer, topic: &str, data: &str) {
    peer.send(&json!({"type": "publish", "topic": topic, "data": data, "id": 1_000}));
}

/// Lets the disk wait, with one commit under way that an event of `peer` has begun.
#[track_caller]
fn hold_a_commit(disk: &SimDisk, peer: &mut Peer, topic: &str) {
    disk.hold(true);
    send(peer, topic, "held");
    wait_until("a sync to wait", LIMIT, || disk.waiting() == 1);
}

fn commits(relay: &Relay) -> f64 {
    relay.metrics().sum(&["landline_store_commits_total"])
}

fn backlog(relay: &Relay) -> f64 {
    relay.metrics().0["landline_store_backlog_bytes"]
}

#[test]
fn while_a_sync_waits_everything_else_goes_on() {
    let disk = SimDisk::default();
    let relay = Relay::start(&disk).unwrap();
    let (mut publisher, mut subscriber, mut other) = (relay.peer(), relay.peer(), relay.peer());
    published(&mut publisher, "always/a");
    subscriber.subscribe("always/a");
    other.subscribe("memory");

    hold_a_commit(&disk, &mut publisher, "always/a");
    for expected in 1..=20 {
        assert_eq!(other.publish("memory", "quick"), expected);
        assert_eq!(seq(&other.expect("event")), expected);
    }
    publisher.fence();
    assert_eq!(publisher.publish("memory", "from who waits"), 21);
    let history = other.history("always/a", json!("start"), 10);
    assert_eq!(number(&history, "tail"), 1, "nobody sees what is not stored: {history}");
    assert_eq!(relay.get("/readyz").status, 200);
    assert_eq!(relay.get("/v1/topics").status, 200);
    assert_eq!(subscriber.receive(MOMENT), None);
    disk.hold(false);

    assert_eq!(seq(&publisher.expect("published")), 2);
    assert_eq!(seq(&subscriber.expect("event")), 2);
    drop((publisher, subscriber, other));
    relay.stop();
}

#[test]
fn fifty_publishers_that_wait_for_one_sync_share_the_next() {
    let disk = SimDisk::default();
    let relay = Relay::start(&disk).unwrap();
    let mut first = relay.peer();
    published(&mut first, "always/a");
    published(&mut first, "always/b");
    let before = commits(&relay);
    let mut peers: Vec<_> = (0..50).map(|_| relay.peer()).collect();

    hold_a_commit(&disk, &mut first, "always/a");
    for (index, peer) in peers.iter_mut().enumerate() {
        send(peer, ["always/a", "always/b"][index % 2], "at once");
        peer.fence();
    }
    disk.hold(false);

    assert_eq!(seq(&first.expect("published")), 2);
    let mut seqs = BTreeSet::new();
    for (index, peer) in peers.iter_mut().enumerate() {
        let inserted = seqs.insert((index % 2, seq(&peer.expect("published"))));
        assert!(inserted, "{seqs:?}");
    }
    assert_eq!(commits(&relay), before + 2.0);
    drop((first, peers));
    relay.stop();
}

#[test]
fn publishers_wait_while_the_backlog_is_full_and_then_hear_that_the_relay_is_busy() {
    let disk = SimDisk::default();
    let mut config = config();
    config.store.max_backlog = 64 * 1_024;
    config.store.backlog_wait = Duration::from_millis(300);
    let relay = Relay::start_with(config, &disk).unwrap();
    let (mut first, mut refused, mut patient) = (relay.peer(), relay.peer(), relay.peer());
    published(&mut first, "always/a");
    let large = "x".repeat(70 * 1_024);

    hold_a_commit(&disk, &mut first, "always/a");
    // This one is what is too much, and the last that gets in.
    send(&mut patient, "always/a", &large);
    patient.fence();
    let watch = Watch::start();
    let request = json!({"type": "publish", "topic": "always/b", "data": "too much"});
    let reply = refused.refused(request.clone(), "busy");
    assert!(Duration::from_millis(300) <= watch.elapsed(), "{reply}");
    assert!((1..=300).contains(&number(&reply, "retry_after_ms")), "{reply}");
    let metrics = relay.metrics();
    assert_eq!(metrics.sum(&["landline_store_refused_total", "busy"]), 1.0);
    assert_eq!(metrics.sum(&["landline_store_backlog_waits_total"]), 1.0);
    assert!(64.0 * 1_024.0 < backlog(&relay), "{} bytes", backlog(&relay));
    assert_eq!(refused.publish("memory", "memory is not the disk"), 1);
    // One that waits gets in as soon as there is room.
    refused.send(&json!({"type": "publish", "topic": "always/b", "data": 1, "id": 7}));
    assert_eq!(refused.receive(MOMENT), None);
    disk.hold(false);

    assert_eq!(seq(&first.expect("published")), 2);
    assert_eq!(seq(&patient.expect("published")), 3);
    assert_eq!(seq(&refused.expect("published")), 1);
    assert_eq!(seq(&refused.ask(request, "published")), 2);
    wait_until("the backlog to be settled", LIMIT, || backlog(&relay) == 0.0);
    drop((first, refused, patient));
    relay.stop();
}

#[test]
fn a_stop_waits_for_the_disk_and_publishers_hear_published_before_bye() {
    let disk = SimDisk::default();
    let relay = Relay::start(&disk).unwrap();
    let addr = relay.addr();
    let mut peers: Vec<_> = (0..5).map(|_| relay.peer()).collect();
    let mut subscriber = relay.peer();
    published(&mut peers[0], "always/a");
    subscriber.subscribe("always/a");
    let (first, others) = peers.split_first_mut().unwrap();
    hold_a_commit(&disk, first, "always/a");
    for peer in others {
        send(peer, "always/a", "at the last moment");
        peer.fence();
    }

    thread::scope(|scope| {
        let stop = scope.spawn(|| relay.stop());
        wait_until("the relay to let nobody in", LIMIT, || TcpStream::connect(addr).is_err());
        assert_eq!(subscriber.receive(MOMENT), None, "nobody has heard of the stop yet");
        disk.hold(false);
        let mut stored = BTreeSet::new();
        for peer in peers {
            let (words, code) = finish(peer);
            let kinds: Vec<_> = words.iter().map(|word| word["type"].as_str().unwrap()).collect();
            assert_eq!((&kinds[..], code), (&["published", "bye"][..], Some(1_001)));
            stored.insert(seq(&words[0]));
        }
        assert_eq!(stored, BTreeSet::from([2, 3, 4, 5, 6]));
        let (mut words, _) = finish(subscriber);
        assert_eq!(words.pop().unwrap()["reason"], "shutdown");
        assert_eq!(seqs(&words), [2, 3, 4, 5, 6]);
        stop.join().unwrap();
    });

    let again = Relay::start(&disk.crashed(None)).unwrap();
    let history = again.peer().history("always/a", json!("start"), 10);
    assert_eq!(number(&history, "tail"), 6, "{history}");
    again.stop();
}

/// Reads to the end and closes as a client should.
fn finish(mut peer: Peer) -> (Vec<Value>, Option<u16>) {
    let words = peer.last_words();
    peer.finish_sending();
    words
}

#[test]
fn a_stop_in_the_middle_of_a_burst_answers_whatever_is_stored() {
    let dir = Scratch::new("data");
    let mut node = Node::durable(&dir, &[]);
    let mut peer = node.peer();
    for id in 1..=20_000 {
        let request = json!({"type": "publish", "topic": "lamp", "data": id, "id": id});
        // The relay may be gone before the last of them.
        if !peer.try_send(&request) {
            break;
        }
        if id == 10_000 {
            node.signal(Signal::TERM);
        }
    }
    let (words, _) = peer.last_words();
    drop(peer);
    node.ends_cleanly();

    let answered: Vec<_> =
        words.iter().filter(|word| word["type"] == "published").map(seq).collect();
    assert_eq!(answered, (1..=answered.len() as u64).collect::<Vec<_>>());
    let node = Node::durable(&dir, &[]);
    let history = node.peer().history("lamp", json!("start"), 1);
    let goodbye = words.iter().position(|word| word["type"] == "bye");
    assert!(goodbye.is_some(), "the last word was {:?}", words.last());
    assert_eq!(number(&history, "tail"), answered.len() as u64);
}
