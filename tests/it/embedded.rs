//! A relay inside another program: nothing of it stays behind.

use std::{fs, net::TcpStream};

use landline::{config::Config, server::Server};

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
            ["writer-", "accept-", "conn-"].iter().find_map(|kind| name.strip_prefix(kind));
        name == "keeper" || number.is_some_and(|number| number.parse::<u64>().is_ok())
    };
    let names = tasks.filter_map(|task| name(task.ok()?)).map(|name| name.trim().to_owned());
    names.filter(is_of_a_relay).collect()
}

fn config(listen: &[&str]) -> Config {
    Config { listen: listen.iter().map(|&at| at.to_owned()).collect(), ..Config::default() }
}

// One test, because all tests share the list of threads.
#[test]
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
