//! Promise 6 in company: acknowledgements beside other subscriptions of the same connection, beside
//! other connections, a slow socket, a disk and a relay that stops.

use std::{collections::BTreeMap, thread, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    node::{Node, Scratch, wait_for_metric},
    peer::{Peer, seq, seqs},
    wait::Watch,
};

const QUIET: Duration = Duration::from_millis(300);

fn subscribe(topic: &str, from: &str, window: Option<u64>) -> Value {
    let mut request = json!({"type": "subscribe", "topic": topic, "from": from});
    if let Some(window) = window {
        request["ack"] = json!(true);
        request["window"] = json!(window);
    }
    request
}

#[track_caller]
fn ack(peer: &mut Peer, topic: &str, seq: u64) {
    peer.send(&json!({"type": "ack", "topic": topic, "seq": seq}));
}

/// The next event; replies and notices on the way are passed over, but no gap or error is.
#[track_caller]
fn event(peer: &mut Peer) -> Value {
    loop {
        let message = peer.message();
        match message["type"].as_str() {
            Some("event") => return message,
            Some("attached" | "subscribed" | "unsubscribed") => {}
            _ => panic!("awaited an event, got {message}"),
        }
    }
}

/// Reads up to event `last` in order and acknowledges each by itself; what comes again is passed
/// over. Returns how many came.
#[track_caller]
fn take(peer: &mut Peer, topic: &str, mut next: u64, last: u64) -> u64 {
    let mut count = 0;
    while next <= last {
        let event = event(peer);
        count += 1;
        assert!(seq(&event) <= next, "{event}: a hole before it, awaited {next}");
        if seq(&event) == next {
            ack(peer, topic, next);
            next += 1;
        }
    }
    count
}

/// Whether an acknowledgement is answered with an error.
#[track_caller]
fn is_refused(peer: &mut Peer, topic: &str, seq: u64) -> bool {
    peer.fence();
    peer.forget();
    ack(peer, topic, seq);
    peer.fence();
    let refused = peer.receive(QUIET).is_some();
    peer.forget();
    refused
}

#[test]
fn a_pattern_and_a_name_on_one_topic_share_a_window_that_never_stays_shut() {
    let node = Node::start();
    let name = ["jobs/a", "start"];
    let pattern = ["jobs/+", "start"];
    let live = ["jobs/a", "live"];
    let cases: [[(&[&str; 2], Option<u64>); 2]; 8] = [
        [(&pattern, Some(2)), (&name, Some(3))],
        [(&name, Some(3)), (&pattern, Some(2))],
        [(&pattern, Some(2)), (&live, Some(3))],
        [(&pattern, Some(2)), (&live, None)],
        [(&pattern, None), (&name, Some(2))],
        [(&name, None), (&pattern, Some(2))],
        [(&name, Some(2)), (&pattern, None)],
        [(&pattern, Some(2)), (&name, None)],
    ];
    node.peer().publish_many("jobs/a", 20, 0);
    let mut last = 20;
    for (number, case) in cases.into_iter().enumerate() {
        for end in 0..2 {
            let mut peer = node.peer();
            for (filter, window) in case {
                peer.ask(subscribe(filter[0], filter[1], window), "subscribed");
            }
            // Whatever is left is enough to go on, with acknowledgements or without.
            let (left, (gone, _)) = (case[1 - end], case[end]);
            peer.ask(json!({"type": "unsubscribe", "topic": gone[0]}), "unsubscribed");
            last += 1;
            assert_eq!(peer.publish("jobs/a", number), last);
            // What came of the first subscription alone may be ahead of what came of both.
            let mut seen = 0;
            while seen < last {
                let message = peer.message();
                assert_ne!(message["type"], "gap", "{message}");
                if message["type"] == "event" {
                    seen = seq(&message);
                    ack(&mut peer, "jobs/a", seen);
                }
            }
            assert!(left.1.is_none() || !is_refused(&mut peer, "jobs/a", seen), "{number} {end}");
        }
    }
}

#[test]
fn a_name_without_acknowledgements_takes_none_from_a_pattern() {
    let node = Node::with(&["--ack-timeout", "200ms"]);
    for (topic, windows) in [("a/x", [None, Some(2)]), ("b/x", [Some(2), None])] {
        let mut peer = node.peer();
        peer.publish_many(topic, 10, 0);
        for window in windows {
            let filter = if window.is_some() { &format!("{}/+", &topic[..1]) } else { topic };
            peer.ask(subscribe(filter, "live", window), "subscribed");
            if window.is_some() {
                // Until then the pattern has not come to the topic.
                peer.expect("attached");
            }
        }
        node.peer().publish_many(topic, 5, 0);
        let got: Vec<Value> = (0..4).map(|_| event(&mut peer)).collect();
        assert_eq!(seqs(&got), [11, 12, 11, 12], "{topic}");
        take(&mut peer, topic, 11, 15);
        peer.ask(json!({"type": "unsubscribe", "topic": topic}), "unsubscribed");
        let last = node.peer().publish(topic, "last");
        assert_eq!(take(&mut peer, topic, last, last), 1);
    }
}

#[test]
fn a_name_takes_nothing_from_what_a_pattern_has_to_get() {
    let node = Node::start();
    node.peer().publish_many("jobs/a", 10, 0);
    let mut peer = node.peer();
    peer.ask(subscribe("jobs/+", "start", Some(2)), "subscribed");
    assert_eq!(seqs(&[event(&mut peer), event(&mut peer)]), [1, 2]);
    peer.ask(subscribe("jobs/a", "live", Some(4)), "subscribed");

    ack(&mut peer, "jobs/a", 2);

    assert_eq!(take(&mut peer, "jobs/a", 3, 10), 8);
    peer.fence();
    assert_eq!(peer.receive(QUIET), None);
}

#[test]
fn a_socket_that_was_full_leaves_no_window_shut() {
    let flags = ["--ack-timeout", "300ms", "--max-deliveries", "1000000", "--max-bytes", "1GiB"];
    let node = Node::with(&flags);
    let mut slow = Peer::connect_tiny(node.addr());
    slow.ask(subscribe("jobs", "live", Some(64)), "subscribed");
    let mut plain = Peer::connect_tiny(node.addr());
    plain.ask(subscribe("jobs", "live", None), "subscribed");
    let mut quick = node.peer();
    quick.ask(subscribe("jobs", "live", Some(64)), "subscribed");
    thread::scope(|scope| {
        scope.spawn(|| node.peer().publish_many("jobs", 300, 100_000));
        // Somebody who reads is served meanwhile.
        take(&mut quick, "jobs", 1, 300);
    });
    wait_for_metric(&node, &["landline_server_stalled_connections"], 2.0);

    take(&mut slow, "jobs", 1, 300);

    for expected in 1..=300 {
        assert_eq!(seq(&event(&mut plain)), expected);
    }
    assert_eq!(node.metrics().sum(&["ack_dead_letters_total"]), 0.0);
}

#[test]
fn events_from_disk_keep_to_the_window() {
    let dir = Scratch::new("data");
    let node = Node::durable(&dir, &["--max-tail", "4KiB"]);
    node.peer().publish_many("jobs", 3_000, 20);
    for window in [1, 7, 1_000] {
        let last = if window == 1 { 300 } else { 3_000 };
        let mut peer = node.peer();
        peer.ask(subscribe("jobs", "start", Some(window)), "subscribed");
        let mut acked = 0;
        while acked < last {
            let event = event(&mut peer);
            assert_eq!(seq(&event), acked + 1);
            acked += 1;
            ack(&mut peer, "jobs", acked);
        }
    }
    let mut peer = node.peer();
    peer.ask(subscribe("jobs", "start", Some(700)), "subscribed");
    assert_eq!(seqs(&peer.events(700)), (1..=700).collect::<Vec<_>>());
    peer.fence();
    assert_eq!(peer.receive(QUIET), None, "beyond the window");
}

#[test]
fn what_comes_again_from_disk_comes_in_order() {
    let dir = Scratch::new("data");
    let flags = ["--max-tail", "4KiB", "--ack-timeout", "100ms", "--max-deliveries", "1000000"];
    let node = Node::durable(&dir, &flags);
    node.peer().publish_many("jobs", 500, 100);
    let mut peer = node.peer();
    peer.ask(subscribe("jobs", "start", Some(50)), "subscribed");
    let mut seen = BTreeMap::new();
    let (mut acked, mut previous) = (0, 0);
    while acked < 500 {
        let seq = seq(&event(&mut peer));
        assert!(seq == previous + 1 || seq <= acked + 1, "{seq} after {previous}, acked {acked}");
        assert!(seq <= acked + 50, "{seq} is beyond the window after {acked}");
        previous = seq;
        let times = seen.entry(seq).or_insert(0);
        *times += 1;
        if *times == 2 && seq == (acked + 50).min(500) {
            acked = seq;
            ack(&mut peer, "jobs", acked);
        }
    }
}

#[test]
fn a_relay_that_stops_says_goodbye_whatever_the_windows_hold() {
    let dir = Scratch::new("data");
    let flags = ["--max-tail", "4KiB", "--drain", "20s"];
    for node in [Node::with(&["--drain", "20s"]), Node::durable(&dir, &flags)] {
        node.peer().publish_many("jobs", 2_000, 50);
        let mut peers: Vec<Peer> = [1, 2, 256, 1_999, 2_000, 65_536]
            .into_iter()
            .map(|window| {
                let mut peer = node.peer();
                peer.ask(subscribe("jobs", "start", Some(window)), "subscribed");
                peer
            })
            .collect();
        // One whose events are still on their way, and one that acknowledges meanwhile.
        let mut fresh = node.peer();
        fresh.send(&subscribe("jobs", "start", Some(300)));
        peers.push(fresh);
        let mut busy = node.peer();
        busy.ask(subscribe("jobs", "start", Some(10)), "subscribed");
        take(&mut busy, "jobs", 1, 100);
        peers.push(busy);

        let watch = Watch::start();
        node.signal(rustix::process::Signal::TERM);
        thread::scope(|scope| {
            for mut peer in peers {
                scope.spawn(move || {
                    let (messages, code) = peer.last_words();
                    assert_eq!(code, Some(1_001));
                    assert_eq!(messages.last().unwrap()["type"], "bye");
                });
            }
        });

        let elapsed = watch.elapsed();
        assert!(elapsed < Duration::from_secs(8), "the goodbyes took {elapsed:?}");
        let mut node = node;
        node.ends_cleanly();
    }
}

#[test]
fn a_storm_of_acknowledgements_changes_nothing_but_the_position() {
    const EVENTS: u64 = 3_000;
    let node = Node::start();
    node.peer().publish_many("jobs", EVENTS, 0);
    let mut peer = node.peer();
    peer.ask(subscribe("jobs", "start", Some(100)), "subscribed");
    for expected in 1..=EVENTS {
        assert_eq!(seq(&event(&mut peer)), expected);
        for seq in [expected, expected, expected / 2, 0, expected - 1, expected] {
            ack(&mut peer, "jobs", seq);
        }
    }
    let last = node.peer().publish("jobs", "last");
    assert_eq!(seq(&event(&mut peer)), last);
    // The last of them may still be on their way: nothing answers them.
    let all = (EVENTS * 6) as f64;
    wait_for_metric(&node, &["ack_received_total"], all);
    assert_eq!(node.metrics().sum(&["ack_received_total"]), all);
}

#[test]
fn hundreds_of_subscribers_that_acknowledge_and_others_get_everything() {
    const EVENTS: u64 = 100;
    let flags = ["--ack-timeout", "10s"];
    let node = Node::with(&flags);
    let mut peers: Vec<(Peer, Option<u64>)> = (0..240)
        .map(|number| {
            let mut peer = node.peer();
            let window = (number % 6 != 0).then_some(1 + number % 40);
            let filter = if number % 3 == 0 { "jobs/#" } else { "jobs/a" };
            peer.ask(subscribe(filter, "live", window), "subscribed");
            (peer, window)
        })
        .collect();
    thread::scope(|scope| {
        scope.spawn(|| node.peer().publish_many("jobs/a", EVENTS, 100));
        for peers in peers.chunks_mut(60) {
            scope.spawn(|| {
                for expected in 1..=EVENTS {
                    for (peer, window) in &mut *peers {
                        assert_eq!(seq(&event(peer)), expected);
                        if window.is_some() {
                            ack(peer, "jobs/a", expected);
                        }
                    }
                }
            });
        }
    });
    let metrics = node.metrics();
    assert_eq!(metrics.sum(&["ack_redelivered_events_total"]), 0.0);
    let last = node.peer().publish("jobs/a", "last");
    for (peer, _) in &mut peers {
        assert_eq!(seq(&event(peer)), last);
    }
}
