//! Four lessons of systems that had a client, a state manager and handlers, and learned them from
//! their bugs. Each is a test that would have caught them.
//!
//! 1. What goes out on one connection must be written by one thread at a time: here.
//! 2. Subscriptions are known by an id of their own, not by what they are about: here, and within
//!    the process in `state::store::tests`, where of several handlers one goes.
//! 3. Many readers must not hold up one another: here, and within the process in
//!    `state::store::tests`, with fifty handlers and a hundred operations of each thread.
//! 4. What is far away is stood in for by something that misbehaves on demand: here.

use std::{collections::BTreeMap, sync::Arc, thread, time::Duration};

use landline::{
    base::random,
    client::{Client, Delivery, From, Options, SubscribeOptions, Watch, WatchEvent},
};
use serde_json::{Value, json};

use crate::support::{
    node::Node,
    proxy::{Mode, Proxy},
    wait::{Deadline, LIMIT, pause},
};

fn connect(url: &str) -> Client {
    let options = Options::default().backoff(Duration::from_millis(10), Duration::from_millis(100));
    Client::connect(url, options).expect("the relay is there")
}

fn url(node: &Node) -> String {
    format!("http://{}", node.addr())
}

/// Takes in events until what the watch has is as `wanted`.
#[track_caller]
fn follow_to(
    watch: &mut Watch,
    held: &mut BTreeMap<String, Value>,
    wanted: &BTreeMap<String, Value>,
) {
    let deadline = Deadline::after(LIMIT);
    while held != wanted {
        assert!(!deadline.is_over(), "held {held:?}, wanted {wanted:?}");
        match watch.recv_timeout(deadline.left()).expect("the watch goes on") {
            Some(WatchEvent::Reset) => held.clear(),
            Some(WatchEvent::Set(value)) => {
                held.insert(value.key.as_str().to_owned(), value.json().expect("JSON"));
            }
            Some(WatchEvent::Deleted { key, .. }) => {
                held.remove(key.as_str());
            }
            _ => {}
        }
    }
}

#[test]
fn twenty_threads_on_one_connection_write_and_read_without_a_torn_message() {
    const THREADS: u64 = 20;
    const EACH: u64 = 50;
    let node = Node::start();
    let client = Arc::new(connect(&url(&node)));
    let mut events =
        client.subscribe("work", From::Start, SubscribeOptions::default()).expect("a subscription");
    let mut watch = client.watch("work/#").expect("a watch");

    thread::scope(|scope| {
        for own in 0..THREADS {
            let client = Arc::clone(&client);
            scope.spawn(move || {
                for turn in 0..EACH {
                    // Sizes that end in the middle of any buffer.
                    let padding = "x".repeat((own * 257 + turn * 31) as usize % 5_000);
                    client.publish("work", &json!({"by": own, "padding": padding})).expect("sent");
                    client.set(&format!("work/{own}"), &turn).expect("set");
                    assert!(client.ping().is_ok());
                }
            });
        }
    });

    assert!(matches!(events.recv_timeout(LIMIT), Ok(Some(Delivery::Attached { .. }))));
    for seq in 1..=THREADS * EACH {
        match events.recv_timeout(LIMIT).expect("the subscription goes on") {
            Some(Delivery::Event(event)) => assert_eq!(event.seq, seq),
            other => panic!("awaited event {seq}, got {other:?}"),
        }
    }
    let wanted = (0..THREADS).map(|own| (format!("work/{own}"), json!(EACH - 1))).collect();
    follow_to(&mut watch, &mut BTreeMap::new(), &wanted);
    assert_eq!(node.metrics().sum(&["landline_server_requests_refused_total"]), 0.0);
}

#[test]
fn three_watches_of_one_key_are_three_and_the_others_stay_when_one_goes() {
    let node = Node::start();
    let clients: Vec<Client> = (0..3).map(|_| connect(&url(&node))).collect();
    let mut watches: Vec<Watch> =
        clients.iter().map(|client| client.watch("lamp").expect("a watch")).collect();
    let mut wanted = BTreeMap::from([("lamp".to_owned(), json!(1))]);
    clients[0].set("lamp", &1).expect("set");
    for watch in &mut watches {
        follow_to(watch, &mut BTreeMap::new(), &wanted);
    }

    drop(watches.remove(1));
    clients[0].set("lamp", &2).expect("set");

    wanted.insert("lamp".to_owned(), json!(2));
    for watch in &mut watches {
        follow_to(watch, &mut BTreeMap::new(), &wanted);
    }
}

#[test]
fn fifty_readers_and_a_writer_see_whole_values_that_never_go_back() {
    const READERS: u64 = 50;
    const EACH: u64 = 100;
    let node = Node::start();
    let writer = connect(&url(&node));
    let value = |number: u64| json!({"number": number, "again": vec![number; 50]});
    writer.set("shared", &value(0)).expect("set");
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                let client = connect(&url(&node));
                scope.spawn(move || {
                    let mut before = 0;
                    for _ in 0..EACH {
                        let found = client.get("shared").expect("read").expect("it is there");
                        assert!(before <= found.version, "{before}, {}", found.version);
                        before = found.version;
                        let read: Value = found.json().expect("JSON");
                        let number = read["number"].as_u64().expect("a number");
                        assert_eq!(read, value(number), "one version, not parts of two");
                    }
                })
            })
            .collect();
        let mut number = 0;
        while readers.iter().any(|reader| !reader.is_finished()) {
            number += 1;
            writer.set("shared", &value(number)).expect("set");
        }
    });
}

#[test]
fn a_relay_that_is_cut_off_stalls_and_trickles_at_random_costs_a_watch_nothing() {
    let node = Node::start();
    let proxy = Proxy::start(node.addr());
    let setter = connect(&url(&node));
    let client = connect(&format!("http://{}", proxy.addr()));
    let mut watch = client.watch("#").expect("a watch");
    let (mut held, mut wanted) = (BTreeMap::new(), BTreeMap::new());

    for turn in 0..200_u64 {
        let key = format!("key/{}", random::below(20));
        if random::below(4) == 0 && wanted.remove(&key).is_some() {
            setter.delete(&key).expect("deleted");
        } else {
            setter.set(&key, &turn).expect("set");
            wanted.insert(key, json!(turn));
        }
        match random::below(12) {
            0 => proxy.cut(),
            1 => proxy.half_open(),
            2 => proxy.set(Mode::Stall),
            3 => proxy.set(Mode::Trickle),
            4..6 => proxy.set(Mode::Pass),
            _ => pause(Duration::from_millis(1)),
        }
    }
    proxy.set(Mode::Pass);
    proxy.cut();

    follow_to(&mut watch, &mut held, &wanted);
}
