//! A full disk: durable topics refuse by name, everything else goes on, and the relay resumes by
//! itself as soon as there is room; also where the room is its own, which retention gives back.
//!
//! Each scenario runs on a disk in memory with a bound, and on a small file system where this
//! process may mount one.

use std::{fs, net::SocketAddr, path::PathBuf, process::Command};

use landline::store::sim::SimDisk;
use serde_json::json;

use crate::support::{
    http::Http,
    node::{Metrics, Node, Scratch},
    peer::{Peer, number, seq},
    relay::{self, Relay},
    wait::{LIMIT, wait_until},
};

const DISK_BYTES: u64 = 8 * 1_024 * 1_024;
const FILLER_BYTES: u64 = 3 * 1_024 * 1_024;
const EVENT_BYTES: usize = 8 * 1_024;
/// What the topic keeps after the policy has become stricter: the least that is allowed.
const LITTLE_BYTES: u64 = 256 * 1_024;
const TOPIC: &str = "always/log";

/// What a publisher was told.
#[derive(Debug, Default)]
struct Told {
    epoch: String,
    /// The data of all confirmed events; the first has sequence 1.
    events: Vec<String>,
}

impl Told {
    /// Publishes one event; whether it was confirmed, or refused for lack of room.
    #[track_caller]
    fn publish(&mut self, peer: &mut Peer) -> bool {
        let number = self.events.len() + 1;
        let data = format!("{number} {}", "x".repeat(EVENT_BYTES));
        // With a key, one that turns out to be stored after all is not stored twice.
        let key = number.to_string();
        let request = json!({"type": "publish", "topic": TOPIC, "data": data, "key": key});
        let reply = peer.request(request);
        if reply["type"] != "published" {
            assert_eq!(reply["code"], "unavailable", "{reply}");
            assert!(reply["message"].as_str().unwrap().contains("cannot be written"), "{reply}");
            assert!(reply["retry_after_ms"].is_u64(), "{reply}");
            return false;
        }
        assert_eq!((seq(&reply), &reply["durability"]), (number as u64, &json!("synced")));
        self.epoch = reply["epoch"].as_str().unwrap().to_owned();
        self.events.push(data);
        true
    }

    /// Everything that was confirmed is there, as far as retention keeps it.
    #[track_caller]
    fn is_there(&self, addr: SocketAddr) -> u64 {
        let mut peer = Peer::connect(addr);
        let head = peer.subscribe_from(TOPIC, json!("start"));
        assert_eq!(head["epoch"], self.epoch, "{head}");
        let first = number(&head, "first");
        assert_eq!(number(&head, "tail"), self.events.len() as u64, "{head}");
        for (data, expected) in self.events.iter().zip(1..).skip(first as usize - 1) {
            let event = peer.expect("event");
            assert_eq!((seq(&event), event["data"].as_str()), (expected, Some(&**data)));
        }
        first
    }
}

fn metrics(addr: SocketAddr) -> Metrics {
    Metrics::parse(&Http::connect(addr).get("/metrics").body)
}

/// Publishes until the disk is full and the relay says so, everywhere where it should.
#[track_caller]
fn fill(addr: SocketAddr) -> Told {
    let (mut peer, mut subscriber) = (Peer::connect(addr), Peer::connect(addr));
    subscriber.subscribe("memory");
    let mut told = Told::default();
    // It may find a little more room by itself, and be ready for a while.
    wait_until("the disk to be full", LIMIT, || {
        while told.publish(&mut peer) {
            assert!((told.events.len() as u64) < DISK_BYTES / EVENT_BYTES as u64, "never full");
        }
        let ready = Http::connect(addr).get("/readyz");
        ready.status == 503
            && ready.body.contains("the disk is full")
            && metrics(addr).sum(&["landline_store_ok"]) == 0.0
    });

    assert!(20 < told.events.len(), "{} events were stored", told.events.len());
    for expected in 1..=10 {
        assert_eq!(peer.publish("memory", "memory is not full"), expected);
        assert_eq!(seq(&subscriber.expect("event")), expected);
    }
    let metrics = metrics(addr);
    assert!(1.0 <= metrics.sum(&["landline_store_failures_total", "full"]));
    assert!(1.0 <= metrics.sum(&["landline_store_refused_total", "unavailable"]));
    assert_eq!(Http::connect(addr).get("/healthz").status, 200);
    // What is stored can still be read.
    told.is_there(addr);
    told
}

/// The relay resumes by itself, and nothing is lost.
#[track_caller]
fn resume(addr: SocketAddr, told: &mut Told) -> u64 {
    let mut peer = Peer::connect(addr);
    // It may find out once more that the disk is full while it makes room.
    wait_until("ten events in a row to be stored", LIMIT, || {
        (0..10).all(|_| told.publish(&mut peer)) && Http::connect(addr).get("/readyz").status == 200
    });
    let metrics = metrics(addr);
    assert_eq!(metrics.sum(&["landline_store_ok"]), 1.0);
    assert!(1.0 <= metrics.sum(&["landline_store_recoveries_total"]));
    told.is_there(addr)
}

#[test]
fn in_memory_a_full_disk_is_survived_once_there_is_room() {
    let disk = SimDisk::default();
    disk.limit(Some(DISK_BYTES - FILLER_BYTES));
    let relay = Relay::start(&disk).unwrap();
    let mut told = fill(relay.addr());

    disk.limit(Some(DISK_BYTES));
    assert_eq!(resume(relay.addr(), &mut told), 1);
    relay.stop();

    let again = Relay::start(&disk.crashed(None)).unwrap();
    told.is_there(again.addr());
    again.stop();
}

#[test]
fn in_memory_a_full_disk_is_survived_by_keeping_less() {
    let disk = SimDisk::default();
    disk.limit(Some(DISK_BYTES));
    let relay = Relay::start(&disk).unwrap();
    let mut told = fill(relay.addr());

    let mut config = relay::config();
    config.topics.rules.iter_mut().for_each(|rule| rule.policy.max_bytes = LITTLE_BYTES);
    relay.reload(config);
    wait_until("retention to make room", LIMIT, || 1 < resume(relay.addr(), &mut told));
    assert!(disk.names().iter().any(|name| name == "ballast"), "it is taken again");
    relay.stop();
}

/// A small file system of its own, with a file that takes room.
struct Small {
    dir: Scratch,
}

impl Small {
    /// `None` where this process may not mount anything.
    fn mount() -> Option<Small> {
        let dir = Scratch::new("small");
        fs::create_dir(dir.path()).expect("make a directory");
        let options = format!("size={DISK_BYTES}");
        let args = ["-t", "tmpfs", "-o", &options, "tmpfs"];
        let mounted = Command::new("mount").args(args).arg(dir.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Small { dir });
        }
        eprintln!("NOT RUN: no file system can be mounted here; only the disk in memory was tried");
        None
    }

    fn filler(&self) -> PathBuf {
        self.dir.path().join("filler")
    }

    fn config(&self, max_bytes: u64) -> String {
        let data = self.dir.path().join("data");
        format!(
            "data_dir = {:?}\nmax_bytes = \"{max_bytes}B\"\n[[topics]]\npattern = \"always/#\"\n\
             durable = true\n",
            data.to_str().expect("a path that is text")
        )
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.dir.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn on_a_file_system_a_full_disk_is_survived_once_there_is_room() {
    let Some(small) = Small::mount() else { return };
    fs::write(small.filler(), vec![7; FILLER_BYTES as usize]).expect("take room");
    let node = Node::with_config(&small.config(DISK_BYTES));
    let mut told = fill(node.addr());
    assert!(node.stderr().contains("the disk is full"), "{}", node.stderr());

    // Also a start on a full disk loses nothing.
    node.kill();
    let node = Node::with_config(&small.config(DISK_BYTES));
    told.is_there(node.addr());
    fs::remove_file(small.filler()).expect("make room");
    let mut peer = node.peer();
    wait_until("an event to be stored", LIMIT, || told.publish(&mut peer));
    wait_until("the relay to be ready", LIMIT, || node.get("/readyz").status == 200);
    told.is_there(node.addr());

    node.kill();
    let node = Node::with_config(&small.config(DISK_BYTES));
    assert_eq!(told.is_there(node.addr()), 1);
}

#[test]
fn on_a_file_system_a_full_disk_is_survived_without_a_restart() {
    let Some(small) = Small::mount() else { return };
    fs::write(small.filler(), vec![7; FILLER_BYTES as usize]).expect("take room");
    let node = Node::with_config(&small.config(DISK_BYTES));
    let mut told = fill(node.addr());

    fs::remove_file(small.filler()).expect("make room");
    assert_eq!(resume(node.addr(), &mut told), 1);
    assert!(node.stderr().contains("can be written again"), "{}", node.stderr());

    node.kill();
    let node = Node::with_config(&small.config(DISK_BYTES));
    told.is_there(node.addr());
}

#[test]
fn on_a_file_system_a_full_disk_is_survived_by_keeping_less() {
    let Some(small) = Small::mount() else { return };
    let node = Node::with_config(&small.config(DISK_BYTES));
    let mut told = fill(node.addr());

    node.reload(&small.config(LITTLE_BYTES));
    wait_until("retention to make room", LIMIT, || 1 < resume(node.addr(), &mut told));
    node.kill();
    let node = Node::with_config(&small.config(LITTLE_BYTES));
    told.is_there(node.addr());
}
