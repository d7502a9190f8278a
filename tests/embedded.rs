//! A relay inside another program: it serves that program, and nothing of it stays behind.
//!
//! By itself, because it looks at all threads of its process.

#![expect(clippy::disallowed_methods, reason = "tests have threads and clocks of their own")]
#![expect(clippy::cast_possible_truncation, reason = "tests know their numbers")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that fails should say so at once"
)]

#[path = "it/support/mod.rs"]
pub mod support;

use std::{
    fs,
    io::ErrorKind,
    net::TcpStream,
    sync::{Arc, mpsc},
    time::Duration,
};

use landline::{
    config::Config,
    server::{RelayEvent, Server},
    state::Update,
    store::sim::{Fault, SimDisk, Step},
};
use serde_json::json;

use crate::support::{
    peer::Peer,
    wait::{LIMIT, wait_until},
};

/// Threads of this process that belong to a relay.
#[track_caller]
fn relay_threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("list threads");
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    let is_of_a_relay = |name: &String| {
        let number =
            ["writer-", "accept-", "conn-", "bus-"].iter().find_map(|kind| name.strip_prefix(kind));
        name == "keeper" || number.is_some_and(|number| number.parse::<u64>().is_ok())
    };
    let names = tasks.filter_map(|task| name(task.ok()?)).map(|name| name.trim().to_owned());
    names.filter(is_of_a_relay).collect()
}

fn config(listen: &[&str]) -> Config {
    Config { listen: listen.iter().map(|&at| at.to_owned()).collect(), ..Config::default() }
}

// One test, because all share the list of threads.
#[test]
fn a_relay_within_a_program_serves_it_and_leaves_nothing_behind() {
    neither_a_dropped_relay_nor_one_that_could_not_start_leaves_anything_behind();
    the_program_and_clients_share_the_state();
    the_program_hears_what_happens();
    the_program_hears_that_the_store_has_failed_and_come_back();
    handlers_are_drained_when_the_relay_stops();
    wait_until("all threads to end", LIMIT, || relay_threads().is_empty());
}

fn neither_a_dropped_relay_nor_one_that_could_not_start_leaves_anything_behind() {
    let server = Server::start(config(&["127.0.0.1:0"])).expect("start");
    let addr = server.addresses()[0];
    let mut peer = Peer::connect(addr);
    peer.subscribe("lamp");

    assert!(Server::start(config(&["127.0.0.1:0", &addr.to_string()])).is_err());
    assert_eq!(relay_threads().iter().filter(|name| *name == "keeper").count(), 1);
    peer.publish("lamp", 1);

    drop(server);
    let (messages, code) = peer.last_words();
    assert_eq!(messages.last().map(|bye| bye["reason"] == "shutdown"), Some(true));
    assert_eq!(code, Some(1_001));
    assert!(TcpStream::connect(addr).is_err(), "somebody still listens");
    wait_until("all threads to end", LIMIT, || relay_threads().is_empty());

    let again = Server::start(config(&[&addr.to_string()])).expect("the port is free");
    assert_eq!(again.addresses(), [addr]);
    assert!(again.stop().late.is_empty());
    wait_until("all threads to end", LIMIT, || relay_threads().is_empty());
}

fn the_program_and_clients_share_the_state() {
    let server = Server::start(config(&["127.0.0.1:0"])).expect("start");
    let mut peer = Peer::connect(server.addresses()[0]);
    peer.ask(json!({"type": "watch", "pattern": "#"}), "watching");
    peer.expect("synced");
    let (tell, told) = mpsc::sync_channel(100);
    let id = server
        .state()
        .subscribe("from/client", move |update| {
            if let Update::Set(value) = update {
                _ = tell.send((value.get::<u64>().ok(), value.version()));
            }
        })
        .expect("a name");

    let stored = server.state().set("from/program", &json!({"on": true})).expect("stored");
    let state = peer.expect("state");
    assert_eq!((&state["key"], &state["value"]["on"]), (&json!("from/program"), &json!(true)));
    assert_eq!(state["version"], stored.version);
    peer.ask(json!({"type": "set", "key": "from/client", "value": 7}), "stored");
    assert_eq!(told.recv_timeout(LIMIT).expect("the handler is called"), (Some(7), 2));
    assert_eq!(server.state().get::<u64>("from/client").expect("a number"), Some(7));
    let conflict = server.state().compare_and_set("from/client", 1, &8).expect_err("it has 2");
    assert_eq!(conflict.to_string(), "from/client is not changed");
    assert!(server.state().unsubscribe(id));

    let state = server.state().clone();
    assert!(server.stop().late.is_empty());
    assert!(state.set("a", &1).is_err(), "the relay is gone");
}

fn the_program_hears_what_happens() {
    let mut config = config(&["127.0.0.1:0"]);
    config.presence.leave_debounce = Duration::from_millis(10);
    let server = Server::start(config).expect("start");
    let (tell, told) = mpsc::sync_channel(100);
    server.events().subscribe(None, move |event: &RelayEvent| drop(tell.send(event.clone())));
    let happened = |what: &str, wanted: &dyn Fn(&RelayEvent) -> bool| {
        while !wanted(&told.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("awaited {what}"))) {}
    };

    let mut peer = Peer::connect(server.addresses()[0]);
    happened("an opened connection", &|event| matches!(event, RelayEvent::ConnectionOpened { .. }));
    peer.publish("lamp", 1);
    happened(
        "a topic",
        &|event| matches!(event, RelayEvent::TopicCreated { topic } if topic.as_str() == "lamp"),
    );
    peer.ask(json!({"type": "hello", "user": "anna"}), "welcome");
    peer.ask(json!({"type": "join", "topic": "room"}), "joined");
    happened(
        "anna",
        &|event| matches!(event, RelayEvent::UserOnline { user, .. } if user.as_str() == "anna"),
    );
    peer.close();
    // The connection and the user end on workers of their own, in any order.
    let mut missing = vec!["closed", "offline"];
    while !missing.is_empty() {
        let event = told.recv_timeout(LIMIT).expect("the end of a connection and of a user");
        if let RelayEvent::ConnectionClosed { user, reason, .. } = &event {
            assert_eq!(user.as_ref().map(landline::name::UserName::as_str), Some("anna"));
            assert_eq!(*reason, "client");
            missing.retain(|what| *what != "closed");
        }
        if let RelayEvent::UserOffline { topic, .. } = &event {
            assert_eq!(topic.as_str(), "room");
            missing.retain(|what| *what != "offline");
        }
    }
    assert!(server.stop().late.is_empty());
}

fn the_program_hears_that_the_store_has_failed_and_come_back() {
    let disk = SimDisk::default();
    let mut config = config(&["127.0.0.1:0"]);
    config.state.durable = true;
    let server = Server::start_on(config, Arc::new(disk.clone())).expect("start");
    let (tell, told) = mpsc::sync_channel(100);
    server.events().subscribe(None, move |event: &RelayEvent| drop(tell.send(event.clone())));
    server.state().set("lamp", &1).expect("stored");

    let (step, error) = (Step::Sync, ErrorKind::Other);
    disk.fail(Some(Fault { step, nth: 1, error, forever: false }));
    server.state().set("lamp", &2).expect_err("the disk fails");

    let event = told.recv_timeout(LIMIT).expect("the store has failed");
    assert!(matches!(&event, RelayEvent::StoreFailed { why } if !why.is_empty()), "{event:?}");
    assert_eq!(told.recv_timeout(LIMIT), Ok(RelayEvent::StoreRecovered));
    server.state().set("lamp", &3).expect("stored");
    assert!(server.stop().late.is_empty());
}

fn handlers_are_drained_when_the_relay_stops() {
    let server = Server::start(config(&["127.0.0.1:0"])).expect("start");
    let (tell, told) = mpsc::sync_channel(1_000);
    server.events().subscribe(None, move |event: &RelayEvent| drop(tell.send(event.clone())));
    let mut peer = Peer::connect(server.addresses()[0]);
    for topic in 0..500 {
        peer.send(&json!({"type": "publish", "topic": format!("t/{topic}"), "data": 1}));
    }
    peer.fence();
    assert!(server.stop().late.is_empty());
    let is_topic = |event: &RelayEvent| matches!(event, RelayEvent::TopicCreated { .. });
    assert_eq!(told.iter().filter(is_topic).count(), 500, "nothing that was taken is dropped");
}
