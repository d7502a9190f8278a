//! The end, in order and otherwise; and what a relay survives without ending.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    loss::wait_for_stall,
    support::{
        http::{Body, Http, request_text},
        node::{Metrics, Node, wait_for_metric},
        peer::{Peer, number, seq, seqs, upgrade_request},
        wait::{LIMIT, Watch, wait_for, wait_until},
        witness::Witness,
    },
};

#[test]
fn a_stop_says_goodbye_with_a_time_to_come_back_and_closes_with_1001() {
    let mut node = Node::with(&["--drain", "5s"]);
    let mut peers = [node.peer(), node.peer(), node.peer()];
    for peer in &mut peers {
        peer.subscribe("lamp");
    }

    let watch = Watch::start();
    node.signal(Signal::TERM);
    for peer in &mut peers {
        let (messages, code) = peer.last_words();
        let bye = messages.last().expect("a bye");
        assert_eq!((&bye["type"], &bye["reason"]), (&json!("bye"), &json!("shutdown")));
        assert!(number(bye, "reconnect_after_ms") <= 60_000, "{bye}");
        assert_eq!(code, Some(1_001));
    }
    drop(peers);
    node.ends_cleanly();

    assert!(watch.elapsed() < Duration::from_secs(15), "took {:?}", watch.elapsed());
}

#[test]
fn what_was_acknowledged_before_a_stop_is_delivered_before_the_goodbye() {
    let mut node = Node::with(&["--drain", "20s"]);
    let mut peer = node.peer();
    let mut subscriber = node.peer();
    subscriber.subscribe("lamp");
    peer.publish_many("lamp", 3_000, 1_000);

    node.signal(Signal::TERM);
    let (messages, code) = subscriber.last_words();

    let (bye, events) = messages.split_last().expect("a bye");
    assert_eq!((&bye["type"], code), (&json!("bye"), Some(1_001)));
    let seqs: Vec<u64> = events.iter().map(seq).collect();
    assert_eq!(seqs, (1..=3_000).collect::<Vec<_>>());
    drop((peer, subscriber));
    node.ends_cleanly();
}

#[test]
fn a_stalled_client_does_not_hold_up_a_stop_beyond_the_drain() {
    let mut node = Node::with(&["--drain", "2s", "--write-stall", "60s"]);
    let mut stalled = Peer::connect_tiny(node.addr());
    stalled.subscribe("flood");
    node.peer().publish_many("flood", 1_500, 16 * 1024);

    let watch = Watch::start();
    node.signal(Signal::TERM);
    node.ends_cleanly();

    assert!(watch.elapsed() < Duration::from_secs(12), "took {:?}", watch.elapsed());
}

#[test]
fn a_client_that_does_not_answer_the_close_does_not_hold_up_a_stop() {
    let mut node = Node::with(&["--drain", "2s"]);
    let silent = node.peer();
    let half_a_head = node.http();
    let mut halfway = node.http();
    halfway.send("GET /healthz HT");

    node.signal(Signal::TERM);
    node.ends_cleanly();

    drop((silent, half_a_head, halfway));
}

#[test]
fn a_second_signal_ends_the_relay_at_once() {
    let mut node = Node::with(&["--drain", "60s", "--write-stall", "60s"]);
    let mut stalled = Peer::connect_tiny(node.addr());
    stalled.subscribe("flood");
    node.peer().publish_many("flood", 1_500, 16 * 1024);

    let mut healthy = node.peer();
    let watch = Watch::start();
    node.signal(Signal::TERM);
    assert_eq!(healthy.expect("bye")["reason"], "shutdown");
    node.signal(Signal::TERM);
    node.wait_exit(Duration::from_secs(25));

    assert!(watch.elapsed() < Duration::from_secs(25), "took {:?}", watch.elapsed());
}

#[test]
fn an_interrupt_stops_like_a_terminate() {
    let mut node = Node::start();
    let mut peer = node.peer();
    peer.fence();

    node.signal(Signal::INT);

    assert_eq!(peer.close_code(), Some(1_001));
    drop(peer);
    node.ends_cleanly();
}

#[test]
fn a_stopping_relay_takes_nobody_in() {
    let mut node = Node::with(&["--drain", "5s", "--write-stall", "60s"]);
    let mut stalled = Peer::connect_tiny(node.addr());
    stalled.subscribe("flood");
    node.peer().publish_many("flood", 1_500, 16 * 1024);
    let mut watcher = node.http();
    assert_eq!(watcher.get("/readyz").status, 200);
    let mut healthy = node.peer();

    node.signal(Signal::TERM);
    assert_eq!(healthy.expect("bye")["reason"], "shutdown");
    let refused = std::net::TcpStream::connect(node.addr()).map(|stream| {
        use std::io::{Read, Write};
        let mut stream = stream;
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(upgrade_request(node.addr(), "").as_bytes()).ok();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok();
        answer
    });

    let answer = refused.unwrap_or_default();
    assert!(!answer.starts_with("HTTP/1.1 101"), "{answer}");
    node.ends_cleanly();
}

/// How many events the relay retains of a topic that has had more.
#[track_caller]
fn retained(peer: &mut Peer, topic: &str) -> u64 {
    peer.publish_many(topic, 50, 10);
    let history: Value = peer.history(topic, json!("start"), 1);
    number(&history, "tail") - number(&history, "first") + 1
}

#[test]
fn a_reload_applies_the_policy_of_topics_and_keeps_clients() {
    let node = Node::with_config("[[topics]]\npattern = \"a/#\"\nmax_events = 20\n");
    let mut peer = node.peer();
    let mut subscriber = node.peer();
    subscriber.subscribe("b");
    assert_eq!(retained(&mut peer, "a/1"), 20);

    node.reload("[[topics]]\npattern = \"a/#\"\nmax_events = 7\n");

    wait_until("the new policy to hold", LIMIT, || retained(&mut peer, "a/1") == 7);
    assert_eq!(retained(&mut peer, "a/2"), 7, "topics to come follow it too");
    peer.publish("b", 1);
    assert_eq!(seq(&subscriber.expect("event")), 1);
}

#[test]
fn a_reload_of_nonsense_keeps_what_was_and_says_so() {
    let node = Node::with_config("[[topics]]\npattern = \"a/#\"\nmax_events = 20\n");
    let mut peer = node.peer();
    assert_eq!(retained(&mut peer, "a/1"), 20);

    for (number, nonsense) in [
        "not TOML",
        "max_mesage = \"1KiB\"\n",
        "max_events = \"many\"\n",
        "[[topics]]\npattern = \"a/#/b\"\nmax_events = 5\n",
    ]
    .iter()
    .enumerate()
    {
        let before = node.stderr().lines().count();
        node.reload(nonsense);
        wait_until("the relay to complain", LIMIT, || before < node.stderr().lines().count());
        assert_eq!(retained(&mut peer, "a/1"), 20, "after nonsense {number}");
    }

    node.reload("[[topics]]\npattern = \"a/#\"\nmax_events = 5\n");
    wait_until("a good file to be taken again", LIMIT, || retained(&mut peer, "a/1") == 5);
}

#[test]
fn a_relay_that_runs_out_of_files_serves_who_is_there_and_recovers() {
    let node = Node::with_open_files(128, &[]);
    let witness = Witness::start(&node);

    for _ in 0..3 {
        let mut sockets: Vec<Http> = (0..300).map(|_| node.http()).collect();
        let request = upgrade_request(node.addr(), "");
        for http in &mut sockets {
            // Who is turned away may find the connection closed already.
            http.try_send(&request);
        }
        for http in &mut sockets[..10] {
            assert_eq!(http.try_reply(Body::Absent).map(|reply| reply.status), Some(101));
        }
        witness.see(20);
        drop(sockets);
        // A newcomer is served as soon as one of them is gone; the next ones need all to be.
        let mut newcomer = wait_for("a newcomer to be served", LIMIT, || {
            let mut http = node.http();
            http.try_send(&request_text(node.addr(), "GET", "/healthz", &[], ""));
            http.try_reply(Body::Expected).is_some_and(|reply| reply.status == 200).then_some(http)
        });
        wait_until("nobody but it and the witness to be there", LIMIT, || {
            Metrics::parse(&newcomer.get("/metrics").body).0["landline_server_connections"] == 3.0
        });
        node.peer().fence();
    }

    assert!(0.0 < node.metrics().sum(&["server_refused_total"]));
    witness.finish();
}

#[test]
fn a_client_that_ignores_the_goodbye_does_not_hold_up_the_stop() {
    let mut node = Node::with(&["--drain", "30s"]);
    let mut silent = node.peer();
    silent.subscribe("a");

    node.signal(Signal::TERM);

    assert!(node.wait_exit(Duration::from_secs(15)).success(), "it took the whole drain");
}

#[test]
fn a_stop_delivers_what_a_slow_reader_lacks_before_it_says_bye() {
    let mut node = Node::with(&["--drain", "30s", "--write-stall", "60s"]);
    let mut slow = Peer::connect_tiny(node.addr());
    slow.subscribe("flood");
    node.peer().publish_many("flood", 600, 16 * 1024);
    wait_for_metric(&node, &["server_stalled_connections"], 1.0);

    node.signal(Signal::TERM);
    let events = slow.events(600);
    let (words, code) = slow.last_words();

    assert_eq!(seqs(&events), (1..=600).collect::<Vec<_>>());
    assert_eq!(words.iter().map(|word| &word["type"]).collect::<Vec<_>>(), ["bye"]);
    assert_eq!(code, Some(1001));
    assert!(node.wait_exit(LIMIT).success());
}

#[test]
fn a_handshake_that_a_stop_overtakes_is_refused_and_does_not_hold_it_up() {
    let mut node = Node::with(&["--drain", "60s"]);
    let request = upgrade_request(node.addr(), "");
    let (begin, rest) = request.split_at(30);
    let mut late = node.http();
    late.send(begin);
    let mut healthy = node.peer();

    node.signal(Signal::TERM);
    assert_eq!(healthy.expect("bye")["reason"], "shutdown");
    late.send(rest);
    let answer = late.reply(Body::Expected);

    assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("unavailable")));
    let after: u64 = answer.header("retry-after").and_then(|after| after.parse().ok()).unwrap();
    assert!((1..=60).contains(&after), "{answer:?}");
    assert!(late.try_reply(Body::Expected).is_none(), "the relay ends the connection");
    drop((late, healthy));
    assert!(node.wait_exit(Duration::from_secs(25)).success(), "it took the whole drain");
}

#[test]
fn a_slow_reader_that_asked_to_be_disconnected_gets_a_gap_and_bye_when_the_relay_stops() {
    let node_flags = ["--max-events", "600", "--drain", "30s", "--write-stall", "60s"];
    let mut node = Node::with(&node_flags);
    let mut slow = Peer::connect_tiny(node.addr());
    slow.ask(json!({"type": "subscribe", "topic": "flood", "slow": "disconnect"}), "subscribed");
    let mut publisher = node.peer();
    publisher.publish_many("flood", 600, 16 * 1024);
    wait_for_stall(&node);
    publisher.publish_many("flood", 1_500, 16 * 1024);

    node.signal(Signal::TERM);
    let mut seen = 0;
    let mut gaps = 0;
    let last = loop {
        let message = slow.message();
        match message["type"].as_str() {
            Some("event") => seen = seq(&message),
            Some("gap") => gaps += 1,
            _ => break message,
        }
    };

    assert_eq!((seen, gaps, &last["reason"]), (2_100, 1, &json!("shutdown")));
    assert!(node.wait_exit(LIMIT).success());
}
