//! What shared state costs: a change for a thousand watchers beside an event for a thousand
//! subscribers, a watcher that stalls, and reading a value.
//!
//! Each figure is the median of some rounds, and what is compared is measured in turns in one run.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]
#![expect(clippy::disallowed_methods, reason = "a bench has a clock of its own")]

use std::{fs, hint::black_box, io::Write, time::Instant};

use landline::{
    name::Name,
    server::Server,
    state::{Change, Limits, Now, Space},
    wire::position::Epoch,
};

use support::{Crowd, connect, publish_frame, push_client_frame, reply, set_frame};

mod support;

const TOPIC: &str = "home/kitchen/lamp";
const CROWD: usize = 1_000;
const KEYS: u64 = 1_000;
const CHANGES: u64 = 100;

/// How much is measured: all of it, or only that it runs.
struct Scale {
    rounds: usize,
    crowd: usize,
    /// Changes of one round that all watchers wait for.
    changes: u64,
    reads: u64,
}

fn main() {
    let once = std::env::args().any(|argument| argument == "--test");
    let scale = if once {
        Scale { rounds: 1, crowd: 50, changes: 10, reads: 1_000 }
    } else {
        Scale { rounds: 7, crowd: CROWD, changes: 300, reads: 1_000_000 }
    };
    to_a_crowd(&scale);
    to_one_that_stalls();
    read(&scale);
}

/// One change after the other, each when everybody has the one before; an event likewise.
fn to_a_crowd(scale: &Scale) {
    let relay = support::relay();
    let address = relay.addresses()[0];
    let stream = connect(address);
    let mut watchers = Crowd::watch(address, "watched", scale.crowd);
    let mut subscribers = Crowd::join(address, TOPIC, scale.crowd);
    let (mut changes, mut events) = (Vec::new(), Vec::new());
    let (mut change_cpu, mut event_cpu) = (Vec::new(), Vec::new());
    let (set, publish) = (set_frame("watched", None), publish_frame(TOPIC, None));
    let deliveries = each(scale.changes * scale.crowd as u64);
    for _ in 0..scale.rounds {
        for (crowd, frame, rates, costs) in [
            (&mut watchers, &set, &mut changes, &mut change_cpu),
            (&mut subscribers, &publish, &mut events, &mut event_cpu),
        ] {
            let (begun, cpu) = (Instant::now(), support::relay_ns());
            let before = crowd.slowest();
            for change in 1..=scale.changes {
                (&stream).write_all(frame).expect("the relay reads");
                while crowd.slowest() < before + change {
                    crowd.turn(support::PATIENCE);
                }
            }
            rates.push(deliveries / begun.elapsed().as_secs_f64());
            // Nanoseconds each are milliseconds per million.
            costs.push(each(support::relay_ns() - cpu) / deliveries / 1e3);
        }
    }
    let (changes, events) = (support::median(changes), support::median(events));
    println!(
        "one change after the other, {} watchers; deliveries/s, relay CPU s per million",
        scale.crowd
    );
    println!("  an event of a topic {events:>12.0} {:>8.3}", support::median(event_cpu));
    println!(
        "  a change of a key   {changes:>12.0} {:>8.3}   {:.2} of a topic",
        support::median(change_cpu),
        changes / events
    );
    drop((watchers, subscribers, stream));
    support::stop(relay);
}

/// A watcher of many keys that reads nothing while all of them change.
fn to_one_that_stalls() {
    let relay = support::relay();
    let address = relay.addresses()[0];
    let stream = connect(address);
    let mut request = Vec::new();
    push_client_frame(&mut request, r##"{"type":"watch","pattern":"#"}"##);
    push_client_frame(&mut request, r##"{"type":"subscribe","topic":"flood"}"##);
    let watcher = connect(address);
    (&watcher).write_all(&request).expect("the relay reads");
    // Its socket is full before anything changes.
    let flood = publish_frame("flood", None).repeat(1_000);
    while relay.metrics().stalled.value() == 0 {
        (&stream).write_all(&flood).expect("the relay reads");
    }
    let (before, begun) = (resident_kib(), Instant::now());
    for change in 0..CHANGES {
        let mut burst = Vec::new();
        for key in 0..KEYS {
            let id = (change + 1 == CHANGES && key + 1 == KEYS).then_some(1);
            burst.extend(set_frame(&format!("key/{key}"), id));
        }
        (&stream).write_all(&burst).expect("the relay reads");
    }
    assert!(reply(&stream).contains("\"stored\""));
    let taken = begun.elapsed().as_secs_f64();
    let grown = resident_kib().saturating_sub(before);
    let sent = relay.metrics().state_sent.value();
    drain(&relay, &watcher, sent + KEYS);
    println!("{KEYS} keys changing {CHANGES} times each, with a watcher that reads nothing");
    println!("  changes/s           {:>12.0}", each(KEYS * CHANGES) / taken);
    println!("  states it then gets {:>12}", relay.metrics().state_sent.value() - sent);
    println!("  memory grown, KiB   {grown:>12}   values of {KEYS} keys included");
    drop((watcher, stream));
    support::stop(relay);
}

/// Reads until the relay has sent `wanted` states.
fn drain(relay: &Server, mut watcher: &std::net::TcpStream, wanted: u64) {
    let mut chunk = vec![0; 256 * 1024];
    while relay.metrics().state_sent.value() < wanted {
        let got = std::io::Read::read(&mut watcher, &mut chunk).expect("the relay sends in time");
        assert_ne!(got, 0, "the relay closed instead of sending");
    }
}

/// One value out of many, by a thread alone.
fn read(scale: &Scale) {
    let limits = Limits {
        keys_max: 100_000,
        value_bytes_max: 1_000,
        bytes_max: 1 << 30,
        tombstones_max: 10,
    };
    let space = Space::new(Epoch::from_number(1), limits, false, 1);
    for key in 0..KEYS {
        let key = Name::parse(&format!("key/{key}")).expect("a name");
        let change =
            Change { key: &key, value: Some("12345"), if_version: None, ttl_ms: None, user: None };
        space.change(&change, Now::default(), None).expect("there is room");
    }
    let keys: Vec<String> = (0..KEYS).map(|key| format!("key/{key}")).collect();
    let mut nanos = Vec::new();
    for _ in 0..scale.rounds {
        let begun = Instant::now();
        for key in keys.iter().cycle().take(usize::try_from(scale.reads).expect("a million")) {
            black_box(space.look(|map| map.get(black_box(key)).cloned()));
        }
        nanos.push(begun.elapsed().as_secs_f64() * 1e9 / each(scale.reads));
    }
    println!("reading one of {KEYS} values");
    println!("  nanoseconds         {:>12.0}", support::median(nanos));
}

// Figures.

#[expect(clippy::cast_precision_loss, reason = "figures are shown with a few digits")]
fn each(amount: u64) -> f64 {
    amount as f64
}

fn resident_kib() -> u64 {
    let text = fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
