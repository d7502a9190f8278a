//! Promise 9: a stalled or greedy client costs the others nothing but its own bounded memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::json;

use crate::support::{
    frame,
    http::Http,
    node::{Metrics, Node},
    peer::{Incoming, Peer, reset, seqs},
    proxy::{Mode, Proxy},
    wait::{LIMIT, wait_until},
    witness::Witness,
};

const MIB: u64 = 1 << 20;

#[test]
fn one_stalled_client_among_twenty_costs_the_others_nothing() {
    const EVENTS: u64 = 1_000;
    let node = Node::with(&["--max-events", "2000", "--write-stall", "60s"]);
    let mut stalled = Peer::connect_tiny(node.addr());
    stalled.subscribe("flood");
    let mut healthy: Vec<Peer> = (0..19).map(|_| node.peer()).collect();
    for peer in &mut healthy {
        peer.subscribe("flood");
    }

    thread::scope(|scope| {
        let mut publisher = node.peer();
        scope.spawn(move || publisher.publish_many("flood", EVENTS, 8 * 1024));
        for mut peer in healthy {
            scope.spawn(move || {
                let seen = seqs(&peer.events(EVENTS as usize));
                assert_eq!(seen, (1..=EVENTS).collect::<Vec<_>>());
            });
        }
    });

    assert_eq!(seqs(&stalled.events(1)), [1], "the stalled one goes on where it was");
}

#[test]
fn a_stalled_client_costs_a_bounded_amount_of_memory() {
    let node = Node::with(&["--max-bytes", "1MiB", "--write-stall", "60s"]);
    let witness = Witness::start(&node);
    let mut stalled: Vec<Peer> = (0..10).map(|_| Peer::connect_tiny(node.addr())).collect();
    for peer in &mut stalled {
        peer.subscribe("flood");
    }
    node.peer().publish_many("flood", 500, 16 * 1024);
    let before = node.rss();

    node.peer().publish_many("flood", 5_000, 16 * 1024);

    let grown = node.rss().saturating_sub(before);
    assert!(grown < 32 * MIB, "80 MiB went past ten stalled clients, which cost {grown} bytes");
    witness.finish();
    drop(stalled);
}

#[test]
fn a_client_that_never_reads_replies_waits_alone() {
    let node = Node::with(&["--write-stall", "60s"]);
    let witness = Witness::start(&node);
    let before = node.rss();
    let greedy = Peer::connect_tiny(node.addr());
    let mut stream = greedy.stream();

    // It writes until TCP stops it, and then on in vain until the end of the test.
    let writing = thread::spawn(move || {
        let request = json!({"type": "history", "topic": "witness", "id": 1}).to_string();
        let requests = frame::masked(frame::TEXT, request.as_bytes()).repeat(100);
        let sent =
            (0..10_000).take_while(|_| std::io::Write::write_all(&mut stream, &requests).is_ok());
        sent.count()
    });
    witness.see(200);
    let grown = node.rss().saturating_sub(before);
    reset(&greedy.stream());
    let sent = writing.join().unwrap();

    assert!(sent < 10_000, "the relay took {sent} batches of requests");
    assert!(grown < 64 * MIB, "the relay grew by {grown} bytes");
    witness.finish();
}

#[test]
fn a_flood_on_one_topic_leaves_room_for_another() {
    let node = Node::with(&["--max-bytes", "1MiB"]);
    let witness = Witness::start(&node);
    let stop = Arc::new(AtomicBool::new(false));

    thread::scope(|scope| {
        for _ in 0..2 {
            let (mut peer, stop) = (node.peer(), Arc::clone(&stop));
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    peer.publish_many("flood", 500, 200);
                }
            });
        }
        let (mut peer, flag) = (node.peer(), Arc::clone(&stop));
        scope.spawn(move || {
            peer.subscribe("flood");
            while !flag.load(Ordering::SeqCst) {
                assert_ne!(peer.receive(Duration::from_millis(50)), Some(Incoming::End));
            }
        });
        witness.see(300);
        stop.store(true, Ordering::SeqCst);
    });

    witness.finish();
}

#[test]
fn a_client_that_reads_by_the_byte_gets_what_it_can_and_delays_nobody() {
    let node = Node::with(&["--max-events", "50", "--write-stall", "60s"]);
    let proxy = Proxy::start(node.addr());
    let witness = Witness::start(&node);
    let mut slow = Peer::connect(proxy.addr());
    slow.subscribe("drip");
    proxy.set(Mode::Trickle);

    node.peer().publish_many("drip", 20, 10);
    let events = slow.events(20);

    assert_eq!(seqs(&events), (1..=20).collect::<Vec<_>>());
    witness.finish();
}

#[test]
fn clients_that_come_and_go_leave_nothing_behind() {
    let node = Node::start();
    let witness = Witness::start(&node);
    let (files, threads) = (node.open_files(), node.threads());
    let round = |count: usize| {
        for number in 0..count {
            let mut peer = node.peer();
            peer.subscribe("lamp");
            peer.subscribe("home/#");
            match number % 3 {
                0 => peer.cut(),
                1 => peer.close(),
                _ => drop(peer),
            }
        }
        wait_until("files and threads to be given back", LIMIT, || {
            node.open_files() <= files && node.threads() <= threads
        });
    };
    round(100);
    let before = node.rss();

    round(500);

    let grown = node.rss().saturating_sub(before);
    assert!(grown < 8 * MIB, "500 clients that left cost {grown} bytes");
    witness.finish();
}

#[test]
fn a_connection_costs_one_file_and_one_thread() {
    const PEERS: usize = 50;
    let node = Node::start();
    let (files, threads) = (node.open_files(), node.threads());

    let mut peers: Vec<Peer> = (0..PEERS).map(|_| node.peer()).collect();
    for peer in &mut peers {
        peer.subscribe("lamp");
        peer.fence();
    }

    assert_eq!(node.open_files(), files + PEERS);
    assert_eq!(node.threads(), threads + PEERS as u64);
}

#[test]
fn a_client_that_subscribes_to_everything_again_and_again_pays_for_it_alone() {
    const TOPICS: usize = 3_000;
    let node = Node::with(&["--write-stall", "60s"]);
    let mut publisher = node.peer();
    for topic in 0..TOPICS {
        let topic = format!("many/topics/{topic}");
        publisher.send(&json!({"type": "publish", "topic": topic, "data": 1}));
    }
    publisher.fence();
    let witness = Witness::start(&node);
    let before = node.rss();

    // It reads nothing of the thousands of replies that each request has.
    let greedy = Peer::connect_tiny(node.addr());
    let mut stream = greedy.stream();
    let writing = thread::spawn(move || {
        let request = json!({"type": "subscribe", "topic": "many/#", "from": "start"}).to_string();
        let request = frame::masked(frame::TEXT, request.as_bytes());
        (0..2_000).take_while(|_| std::io::Write::write_all(&mut stream, &request).is_ok()).count()
    });
    witness.see(100);
    let grown = node.rss().saturating_sub(before);
    reset(&greedy.stream());
    writing.join().unwrap();

    assert!(grown < 64 * MIB, "the relay grew by {grown} bytes");
    witness.finish();
}

#[test]
fn connections_that_only_still_have_to_be_sent_to_count_as_connections() {
    let node = Node::with(&["--max-connections", "20", "--write-stall", "60s"]);
    node.peer().publish_many("large", 40, 200 * 1024);
    let history = json!({"type": "history", "topic": "large", "limit": 40});
    let mut half_closed = Vec::new();
    for _ in 0..18 {
        let mut peer = Peer::connect_tiny(node.addr());
        (0..8).for_each(|_| peer.send(&history));
        peer.finish_sending();
        half_closed.push(peer);
    }
    // One connection for all looks: an earlier one may not be gone when the next is to be let in.
    let mut http = node.http();
    wait_until("18 connections to stall", LIMIT, || {
        let metrics = Metrics::parse(&http.get("/metrics").body);
        18.0 <= metrics.sum(&["server_stalled_connections"])
    });

    let mut probes: Vec<Http> = (0..8).map(|_| Http::connect(node.addr())).collect();
    let statuses: Vec<u16> = probes.iter_mut().map(|http| http.get("/healthz").status).collect();

    let served = statuses.iter().filter(|status| **status == 200).count();
    assert!(served <= 2, "beside 18 connections that wait and a limit of 20: {statuses:?}");
}
