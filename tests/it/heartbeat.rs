//! The dead are noticed and let go, the living are left alone.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::support::{
    http::{Body, Http, request_text},
    node::{Node, wait_for_metric},
    peer::{Incoming, Peer},
    proxy::{Mode, Proxy},
    wait::{LIMIT, Watch, wait_until},
    witness::Witness,
};

const BRISK: &[&str] = &["--heartbeat", "1s", "--heartbeat-timeout", "3s"];

/// Reads whatever comes until `count` pings have been seen.
#[track_caller]
fn see_pings(peer: &mut Peer, count: usize) {
    wait_until("pings of the relay", LIMIT, || {
        match peer.receive(Duration::from_millis(20)) {
            None | Some(Incoming::Text(_)) => {}
            other => panic!("awaited pings, got {other:?}"),
        }
        count <= peer.pings()
    });
}

#[test]
fn a_silent_client_is_pinged_and_then_closed_with_4101() {
    let node = Node::with(BRISK);
    let mut peer = node.peer();
    peer.ignore_pings();

    let (_, code) = peer.last_words();

    assert!(1 <= peer.pings(), "it was never pinged");
    assert_eq!(code, Some(4_101));
    drop(peer);
    wait_for_metric(&node, &["disconnects_total", "reason=\"heartbeat_missed\""], 1.0);
}

#[test]
fn a_client_that_answers_pings_stays() {
    let node = Node::with(BRISK);
    let mut peer = node.peer();

    // Twice as many as fit into the time-out.
    see_pings(&mut peer, 6);

    peer.fence();
}

#[test]
fn a_client_that_talks_stays_even_if_it_ignores_pings() {
    let node = Node::with(BRISK);
    let mut peer = node.peer();
    peer.ignore_pings();

    for count in 1..=6 {
        see_pings(&mut peer, count);
        peer.fence();
    }
}

#[test]
fn a_connection_whose_other_end_is_gone_is_let_go() {
    let node = Node::with(BRISK);
    let proxy = Proxy::start(node.addr());
    let witness = Witness::start(&node);
    let (files, threads) = (node.open_files(), node.threads());
    let mut peer = Peer::connect(proxy.addr());
    peer.subscribe("lamp");
    assert!(files < node.open_files());

    proxy.half_open();

    wait_until("the connection to be let go", LIMIT, || {
        node.open_files() <= files && node.threads() <= threads
    });
    witness.finish();
}

#[test]
fn a_client_that_takes_nothing_is_let_go_after_the_write_stall() {
    let node = Node::with(&["--write-stall", "2s"]);
    let witness = Witness::start(&node);
    let (files, threads) = (node.open_files(), node.threads());
    let mut stalled = Peer::connect_tiny(node.addr());
    stalled.subscribe("flood");

    node.peer().publish_many("flood", 1_500, 16 * 1024);

    wait_until("the connection to be let go", LIMIT, || {
        node.open_files() <= files && node.threads() <= threads
    });
    wait_for_metric(&node, &["disconnects_total", "reason=\"stalled\""], 1.0);
    witness.finish();
}

#[test]
fn a_client_that_reads_no_replies_is_let_go_after_the_write_stall() {
    let node = Node::with(&["--write-stall", "2s"]);
    let witness = Witness::start(&node);
    let mut publisher = node.peer();
    publisher.publish_many("large", 50, 64 * 1024);
    let mut greedy = Peer::connect_tiny(node.addr());

    // Each reply is a megabyte; the relay stops reading when the outbox is full.
    let request = json!({"type": "history", "topic": "large", "from": "start", "id": 1});
    wait_until("the connection to be let go", LIMIT, || {
        (0..100).any(|_| {
            let frame = crate::support::frame::masked(1, request.to_string().as_bytes());
            !greedy.try_send_raw(&frame)
        })
    });

    witness.finish();
}

#[test]
fn a_stalled_network_that_recovers_in_time_loses_nothing() {
    let node = Node::with(&["--write-stall", "60s"]);
    let proxy = Proxy::start(node.addr());
    let mut peer = Peer::connect(proxy.addr());
    peer.subscribe("lamp");
    let mut publisher = node.peer();

    proxy.set(Mode::Stall);
    publisher.publish_many("lamp", 1_000, 100);
    assert!(peer.receive(Duration::from_millis(100)).is_none_or(|got| got != Incoming::End));
    proxy.set(Mode::Pass);

    publisher.publish("lamp", "last");
    wait_until("the last event", LIMIT, || peer.message()["seq"] == 1_001);
}

#[test]
fn an_idle_http_connection_is_closed_and_a_busy_one_is_not() {
    let node = Node::with(&["--idle-timeout", "2s", "--handshake-timeout", "60s"]);
    let mut idle = node.http();
    assert_eq!(idle.get("/healthz").status, 200);
    let mut busy = node.http();

    wait_until("the idle connection to be closed", LIMIT, || {
        assert_eq!(busy.get("/healthz").status, 200);
        idle.is_closed()
    });
}

#[test]
fn an_http_connection_may_be_idle_for_longer_than_a_request_may_take() {
    let node = Node::with(&["--idle-timeout", "60s", "--handshake-timeout", "1s"]);
    let mut idle = node.http();
    assert_eq!(idle.get("/healthz").status, 200);
    let mut silent = node.http();

    // Who is younger and has not asked anything goes first.
    wait_until("the silent connection to be closed", LIMIT, || silent.is_closed());

    assert!(!idle.is_closed(), "it waits between requests, not within one");
    assert_eq!(idle.get("/healthz").status, 200);
}

#[test]
fn a_client_that_ignores_its_goodbye_is_cut_long_before_the_next_heartbeat() {
    let config = "max_events = 100\nwrite_stall = \"60s\"\n";
    let clock = "[[topics]]\npattern = \"clock\"\nmax_age = \"1s\"\n";
    let node = Node::with_config(&[config, clock].concat());
    let mut stubborn = Peer::connect_tiny(node.addr());
    stubborn
        .ask(json!({"type": "subscribe", "topic": "flood", "slow": "disconnect"}), "subscribed");
    let mut publisher = node.peer();
    // The connection is older than the time in which every new one is looked after.
    publisher.publish("clock", 1);
    wait_until("more than a second to pass", LIMIT, || {
        publisher.history("clock", json!("start"), 1)["first"] == 2
    });

    publisher.publish_many("flood", 1_500, 16 * 1024);
    assert_eq!(stubborn.close_code(), Some(4_200));
    let watch = Watch::start();
    // It keeps its side open.
    wait_for_metric(&node, &["disconnects_total", "reason=\"slow_consumer\""], 1.0);

    assert!(watch.elapsed() < Duration::from_secs(12), "took {:?}", watch.elapsed());
}

#[test]
fn a_last_answer_is_whole_however_late_it_is_read() {
    let node = Node::with(&["--heartbeat", "1s", "--max-outbox", "32MiB"]);
    let mut publisher = node.peer();
    publisher.publish_many("large", 50, 64 * 1024);
    let path = "/v1/topics/large/events?from=start";
    let first = request_text(node.addr(), "GET", path, &[], "");
    let last = request_text(node.addr(), "GET", path, &["Connection: close"], "");
    let mut slow = Http::connect_tiny(node.addr());

    slow.send(&(first.repeat(11) + &last));
    wait_for_metric(&node, &["server_stalled_connections"], 1.0);
    // Longer than it may take to close its side once it has everything.
    see_pings(&mut node.peer(), 5);

    let answers = [(); 12].map(|()| slow.reply(Body::Expected).json());
    assert!(answers.iter().all(|answer| answer == &answers[0]));
    assert!(slow.try_reply(Body::Expected).is_none(), "the relay ends the connection");
}

#[test]
fn a_client_that_answers_pings_outlives_a_pause_of_the_relay() {
    let node = Node::with(BRISK);
    let mut peer = node.peer();
    see_pings(&mut peer, 1);

    node.signal(Signal::STOP);
    assert_eq!(peer.receive(Duration::from_secs(5)), None);
    node.signal(Signal::CONT);

    see_pings(&mut peer, 6);
    peer.fence();
}
