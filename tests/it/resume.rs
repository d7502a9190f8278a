//! Promise 3: a peer that lost its connection gets exactly what it missed, or is told what it
//! cannot have. Several of these are bugs that other relays had.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    node::Node,
    peer::{Incoming, Peer, number, position, seq, seqs},
    proxy::Proxy,
    wait::{LIMIT, wait_until},
};

fn counted(from: u64, to: u64) -> Vec<u64> {
    (from..=to).collect()
}

/// A relay with events 1 to `tail` of `lamp`, of which it retains `retained`, and a message that
/// names the epoch.
#[track_caller]
fn lamp(retained: u64, tail: u64) -> (Node, Value) {
    let node = Node::with(&["--max-events", &retained.to_string()]);
    let mut publisher = node.peer();
    publisher.publish_many("lamp", tail, 10);
    let history = publisher.history("lamp", json!("start"), 1);
    assert_eq!(number(&history, "first"), tail + 1 - retained.min(tail), "{history}");
    (node, history)
}

#[test]
fn a_peer_gets_what_was_published_while_it_was_away() {
    let node = Node::start();
    let mut publisher = node.peer();
    let mut peer = node.peer();
    let subscribed = peer.subscribe("lamp");
    publisher.publish("lamp", "on");
    assert_eq!(peer.expect("event")["data"], "on");

    peer.cut();
    publisher.publish("lamp", "off");
    publisher.publish("lamp", "on again");
    let mut peer = node.peer();
    let reply = peer.subscribe_from("lamp", position(&subscribed, 1));

    assert_eq!(reply["recovery"], json!({"mode": "complete"}), "{reply}");
    assert_eq!(seq(&reply), 1, "the cursor stays where it was: {reply}");
    let events = peer.events(2);
    assert_eq!((&events[0]["data"], &events[1]["data"]), (&json!("off"), &json!("on again")));
}

#[test]
fn a_topic_without_events_can_be_resumed() {
    let node = Node::start();
    let mut peer = node.peer();
    let subscribed = peer.subscribe("quiet");
    peer.cut();

    let mut peer = node.peer();
    let reply = peer.subscribe_from("quiet", position(&subscribed, 0));

    assert_eq!(reply["recovery"], json!({"mode": "complete"}), "{reply}");
    assert_eq!((seq(&reply), number(&reply, "first"), number(&reply, "tail")), (0, 1, 0));
    assert_eq!(peer.publish("quiet", "first"), 1);
    assert_eq!(seq(&peer.expect("event")), 1);
}

#[test]
fn a_cursor_at_the_tail_of_a_log_that_aged_out_is_complete() {
    let node = Node::with_config("[[topics]]\npattern = \"brief\"\nmax_age = \"1s\"\n");
    let mut peer = node.peer();
    let subscribed = peer.subscribe("brief");
    for number in 1..=3 {
        peer.publish("brief", number);
    }
    wait_until("the log to be empty", LIMIT, || {
        number(&peer.history("brief", json!("start"), 1), "first") == 4
    });

    let mut resumed = node.peer();
    let reply = resumed.subscribe_from("brief", position(&subscribed, 3));

    assert_eq!(reply["recovery"], json!({"mode": "complete"}), "{reply}");
    peer.publish("brief", 4);
    assert_eq!(seq(&resumed.expect("event")), 4);
}

#[test]
fn every_position_is_answered_by_the_rule() {
    const FIRST: u64 = 11;
    const TAIL: u64 = 20;
    let (node, epoch) = lamp(TAIL + 1 - FIRST, TAIL);

    for cursor in 0..=TAIL + 3 {
        let mut peer = node.peer();
        let reply = peer.subscribe_from("lamp", position(&epoch, cursor));
        let expected = if cursor < FIRST - 1 {
            let missing = [cursor + 1, FIRST - 1];
            json!({"mode": "partial", "missing": missing, "reason": "truncated"})
        } else if cursor <= TAIL {
            json!({"mode": "complete"})
        } else {
            json!({"mode": "reset", "reason": "ahead"})
        };
        let mut recovery = reply["recovery"].clone();
        if cursor > TAIL {
            // What is gone before the oldest retained event may be named here too.
            recovery.as_object_mut().unwrap().remove("missing");
        }
        assert_eq!(recovery, expected, "cursor {cursor}: {reply}");
        let after = if cursor > TAIL { FIRST - 1 } else { cursor.max(FIRST - 1) };
        assert_eq!(seq(&reply), after, "cursor {cursor}: {reply}");
        let events = peer.events((TAIL - after) as usize);
        assert_eq!(seqs(&events), counted(after + 1, TAIL), "cursor {cursor}");
        peer.fence();
    }
}

#[test]
fn another_epoch_starts_over_at_the_oldest_event() {
    let (node, _) = lamp(5, 20);
    let mut peer = node.peer();

    let reply = peer.subscribe_from("lamp", json!({"epoch": "0123456789abcdef", "seq": 18}));

    assert_eq!(reply["recovery"]["mode"], "reset", "{reply}");
    assert_eq!(reply["recovery"]["reason"], "epoch_changed", "{reply}");
    assert_eq!(seq(&reply), 15);
    assert_eq!(seqs(&peer.events(5)), counted(16, 20));
}

#[test]
fn a_position_without_an_epoch_or_with_nonsense_is_an_error_and_not_everything() {
    let (node, _) = lamp(20, 20);
    let mut peer = node.peer();

    for from in [
        json!({"seq": 3}),
        json!({"epoch": null, "seq": 3}),
        json!({"epoch": "", "seq": 3}),
        json!({"epoch": "unknown", "seq": 3}),
        json!({"epoch": "0123456789abcdef"}),
        json!({"epoch": "0123456789abcdef", "seq": -1}),
        json!({"epoch": "0123456789abcdef", "seq": "3"}),
        json!("17"),
        json!(17),
    ] {
        let request = json!({"type": "subscribe", "topic": "lamp", "from": from});
        let error = peer.refused(request, "bad_request");
        let field = error["field"].as_str().unwrap_or_default();
        assert!(field.starts_with("from"), "{error}");
    }

    let subscribed = peer.subscribe("lamp");
    assert_eq!(subscribed.get("replaced"), None, "a refused request subscribes to nothing");
}

#[test]
fn every_form_of_from_starts_where_it_says() {
    let (node, epoch) = lamp(10, 30);
    let mut reader = node.peer();
    let all = reader.history("lamp", json!("start"), 1_000);
    let events = all["events"].as_array().unwrap();
    let time = number(&events[7], "time");
    let at_time = events.iter().find(|event| time <= number(event, "time")).map(seq).unwrap();

    for (from, first) in [
        (json!("live"), 31),
        (json!("start"), 21),
        (json!({"last": 0}), 31),
        (json!({"last": 1}), 30),
        (json!({"last": 10}), 21),
        (json!({"last": 1_000_000}), 21),
        (json!({"since": 0}), 21),
        (json!({"since": time}), at_time),
        (json!({"since": time + 3_600_000}), 31),
        (position(&epoch, 25), 26),
        (position(&epoch, 30), 31),
    ] {
        let mut peer = node.peer();
        let reply = peer.subscribe_from("lamp", from.clone());
        assert_eq!(seq(&reply), first - 1, "{from}: {reply}");
        assert_eq!((number(&reply, "first"), number(&reply, "tail")), (21, 30), "{from}");
        let is_position = from.get("seq").is_some();
        assert_eq!(reply.get("recovery").is_some(), is_position, "{from}: {reply}");
        assert_eq!(seqs(&peer.events((31 - first) as usize)), counted(first, 30), "{from}");

        if from != "live" {
            let history = reader.history("lamp", from.clone(), 1_000);
            let events = history["events"].as_array().unwrap();
            assert_eq!(seqs(events), counted(first, 30), "history {from}");
            assert_eq!(history["epoch"], epoch["epoch"]);
        }
    }
}

#[test]
fn since_in_a_topic_without_events_is_live() {
    let node = Node::start();
    let mut peer = node.peer();

    let reply = peer.subscribe_from("quiet", json!({"since": 1_700_000_000_000_u64}));

    assert_eq!(seq(&reply), 0, "{reply}");
    peer.publish("quiet", 1);
    assert_eq!(seq(&peer.expect("event")), 1);
}

#[test]
fn a_recent_position_in_a_long_log_is_found_exactly() {
    const TAIL: u64 = 30_000;
    let (node, epoch) = lamp(TAIL, TAIL);

    for cursor in [TAIL, TAIL - 1, TAIL - 7, TAIL - 10_001, 10_000, 1] {
        let mut peer = node.peer();
        let reply = peer.subscribe_from("lamp", position(&epoch, cursor));
        assert_eq!(reply["recovery"], json!({"mode": "complete"}), "{cursor}: {reply}");
        let count = (TAIL - cursor).min(50);
        assert_eq!(seqs(&peer.events(count as usize)), counted(cursor + 1, cursor + count));
        let history = peer.request(json!({
            "type": "history", "topic": "lamp", "from": position(&epoch, cursor), "limit": 3
        }));
        let events = seqs(history["events"].as_array().unwrap());
        assert_eq!(events, counted(cursor + 1, TAIL.min(cursor + 3)));
    }
}

#[test]
fn a_history_of_what_is_gone_names_it_and_is_counted() {
    let (node, epoch) = lamp(10, 20);
    let mut peer = node.peer();
    let mut ask = |at| {
        let from = position(&epoch, at);
        peer.ask(json!({"type": "history", "topic": "lamp", "from": from}), "history")
    };
    let (gone, ahead) = (ask(5), ask(21));
    let losses = |reason: &str| {
        let label = format!("reason=\"{reason}\"");
        node.metrics().sum(&["landline_topic_history_losses_total", &label])
    };

    let truncated = json!({"mode": "partial", "missing": [6, 10], "reason": "truncated"});
    assert_eq!(gone["recovery"], truncated, "{gone}");
    assert_eq!(ahead["recovery"]["reason"], "ahead", "{ahead}");
    for history in [gone, ahead] {
        assert_eq!(seqs(history["events"].as_array().unwrap()), counted(11, 20));
    }
    assert_eq!((losses("truncated"), losses("ahead"), losses("damaged")), (1.0, 1.0, 0.0));
}

#[test]
fn three_reconnects_with_half_open_predecessors_lose_and_repeat_nothing() {
    let node = Node::start();
    let proxy = Proxy::start(node.addr());
    let mut publisher = node.peer();
    let mut peer = Peer::connect(proxy.addr());
    let mut subscribed = peer.subscribe("lamp");
    let mut seen = Vec::new();

    for round in 0..3_u64 {
        for number in 1..=10 {
            publisher.publish("lamp", number);
        }
        seen.extend(seqs(&peer.events(5)));
        proxy.half_open();
        for number in 1..=10 {
            publisher.publish("lamp", number);
        }
        peer = Peer::connect(proxy.addr());
        let last = *seen.last().unwrap();
        subscribed = peer.subscribe_from("lamp", position(&subscribed, last));
        assert_eq!(subscribed["recovery"], json!({"mode": "complete"}), "round {round}");
        seen.extend(seqs(&peer.events((20 * (round + 1) - last) as usize)));
    }

    assert_eq!(seen, counted(1, 60));
}

#[test]
fn a_pattern_resumes_each_topic_at_its_own_position() {
    let node = Node::with(&["--max-events", "5"]);
    let mut peer = node.peer();
    for topic in ["home/a", "home/b", "home/c", "home/d"] {
        for number in 1..=8 {
            peer.publish(topic, number);
        }
    }
    let epochs = ["home/a", "home/b", "home/c"].map(|topic| peer.history(topic, json!("start"), 1));

    let mut resumed = node.peer();
    let positions = json!({"positions": {
        "home/a": position(&epochs[0], 6),
        "home/b": position(&epochs[1], 1),
        "home/c": {"epoch": "0123456789abcdef", "seq": 7},
        "home/gone": {"epoch": "0123456789abcdef", "seq": 7},
    }});
    let reply = resumed.subscribe_from("home/#", positions);
    let (mut attached, mut events) = (Vec::new(), Vec::new());
    while attached.len() < 4 || events.len() < 2 + 5 + 5 + 5 {
        let message = resumed.message();
        let topic = message["topic"].as_str().unwrap().to_owned();
        match message["type"].as_str() {
            Some("attached") => attached.push((topic, message)),
            Some("event") => events.push((topic, seq(&message))),
            // A position in a topic that does not exist may be answered with a topic that does.
            _ => panic!("{message}"),
        }
        attached.retain(|(topic, _)| topic != "home/gone");
    }
    attached.sort_by(|(a, _), (b, _)| a.cmp(b));
    let of = |topic: &str| -> Vec<u64> {
        events.iter().filter(|(name, _)| name == topic).map(|(_, seq)| *seq).collect()
    };

    assert!(4 <= number(&reply, "attached"), "{reply}");
    assert_eq!(attached[0].1["recovery"], json!({"mode": "complete"}), "{attached:?}");
    assert_eq!(attached[1].1["recovery"]["missing"], json!([2, 3]), "{attached:?}");
    assert_eq!(attached[2].1["recovery"]["reason"], "epoch_changed", "{attached:?}");
    assert_eq!(of("home/a"), counted(7, 8));
    assert_eq!(of("home/b"), counted(4, 8));
    assert_eq!(of("home/c"), counted(4, 8));
    assert_eq!(of("home/d"), counted(4, 8), "a topic that is not listed, from its beginning");
}

#[test]
fn history_says_what_is_missing_and_can_be_paged() {
    let (node, epoch) = lamp(10, 20);
    let mut peer = node.peer();

    let partial = peer.history("lamp", position(&epoch, 3), 4);
    assert_eq!(partial["recovery"]["missing"], json!([4, 10]), "{partial}");
    let mut seen = seqs(partial["events"].as_array().unwrap());
    while seen.last() != Some(&20) {
        let page = peer.history("lamp", position(&epoch, *seen.last().unwrap()), 4);
        seen.extend(seqs(page["events"].as_array().unwrap()));
    }

    assert_eq!(seen, counted(11, 20));
}

#[test]
fn history_of_a_topic_that_does_not_exist_creates_nothing() {
    let node = Node::start();
    let mut peer = node.peer();

    let reply = peer.request(json!({"type": "history", "topic": "nothing/here"}));

    if reply["type"] == "error" {
        assert_eq!(reply["code"], "not_found", "{reply}");
    } else {
        assert_eq!(reply["events"], json!([]), "{reply}");
    }
    assert!(!node.get("/v1/topics").body.contains("nothing/here"));
}

#[test]
fn connections_that_die_at_any_moment_add_up_to_every_event_once() {
    const TAIL: u64 = 5_000;
    let node = Node::start();
    let proxy = Proxy::start(node.addr());
    let subscribed = node.peer().subscribe("busy");
    let done = Arc::new(AtomicBool::new(false));
    let mut publisher = node.peer();
    let publishing = thread::spawn({
        let done = Arc::clone(&done);
        move || {
            publisher.publish_many("busy", TAIL, 100);
            done.store(true, Ordering::SeqCst);
        }
    });

    let mut seen = Vec::new();
    let mut connections = 0_u64;
    while seen.last() != Some(&TAIL) {
        connections += 1;
        let mut peer = Peer::connect(proxy.addr());
        let last = seen.last().copied().unwrap_or(0);
        peer.send(&json!({
            "type": "subscribe", "topic": "busy", "from": position(&subscribed, last)
        }));
        // Cut after a number of messages that differs each time, also right after the request.
        let patience = connections * 7 % 200;
        for _ in 0..patience {
            match peer.receive(Duration::from_millis(200)) {
                Some(Incoming::Text(text)) => {
                    let message: Value = serde_json::from_str(&text).unwrap();
                    assert_ne!(message["type"], "gap", "{message}");
                    if message["type"] == "event" {
                        seen.push(seq(&message));
                    }
                }
                _ => break,
            }
        }
        if connections.is_multiple_of(2) {
            proxy.cut();
        } else {
            peer.cut();
        }
        assert!(connections < 5_000, "no progress; saw up to {:?}", seen.last());
    }

    publishing.join().unwrap();
    assert!(done.load(Ordering::SeqCst));
    assert_eq!(seen, counted(1, TAIL));
    assert_eq!(BTreeSet::from_iter(&seen).len() as u64, TAIL);
}
