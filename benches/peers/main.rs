//! Other relays beside this one, each as the process that people run, over loopback.
//!
//! One thread publishes and reads for everybody. *Closed*: at most [`WINDOW`] messages are
//! published that not everybody has, which shows the highest throughput. *Open*: messages are due
//! at a rate, and their age is counted from the moment at which they were. Every delivery is
//! checked: the next message, once and whole. A fresh server for every run; the peers take turns,
//! so that what else the machine does meets all of them; figures are medians. CPU is that of the
//! server's process, sending through the kernel included.
//!
//! `cargo bench --bench peers -- closed` or `open` runs one part, the name of a peer it and
//! Landline alone. Whoever is not installed is left out, and named.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]
#![expect(clippy::disallowed_methods, reason = "a bench has a clock of its own")]
#![expect(clippy::panic, reason = "a bench that went wrong has nothing to say")]

use std::{
    env,
    time::{Duration, Instant},
};

use crate::{
    crowd::{Crowd, Publisher},
    server::{PEERS, Peer, Server},
};

mod crowd;
mod protocol;
mod server;
#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code, unreachable_pub, reason = "what tests wait with")]
#[path = "../../tests/it/support/wait.rs"]
mod wait;

/// Published and not yet received by everybody.
const WINDOW: u64 = 128;
/// Published at once, once the window has room for it.
const STEP: u64 = 32;
/// Messages per second of the open loop, and subscribers who get them.
const RATE: u64 = 500;
const OPEN_SUBSCRIBERS: usize = 100;
const ROUNDS: usize = 3;

/// How long each run is.
struct Lengths {
    rounds: usize,
    warm_up: Duration,
    measured: Duration,
    /// Of the open loop.
    messages: u64,
    crowds: &'static [usize],
}

const FULL: Lengths = Lengths {
    rounds: ROUNDS,
    warm_up: Duration::from_millis(300),
    measured: Duration::from_secs(2),
    messages: 2_000,
    crowds: &[1, 100, 1_000],
};

const ONCE: Lengths = Lengths {
    rounds: 1,
    warm_up: Duration::from_millis(20),
    measured: Duration::from_millis(100),
    messages: 20,
    crowds: &[3],
};

fn main() {
    let wanted: Vec<String> = env::args().skip(1).collect();
    let lengths = if wanted.iter().any(|word| word == "--test") { ONCE } else { FULL };
    let words: Vec<&str> =
        wanted.iter().map(String::as_str).filter(|word| !word.starts_with("--")).collect();
    let (parts, names): (Vec<&str>, Vec<&str>) =
        words.into_iter().partition(|word| matches!(*word, "closed" | "open"));
    let mut peers = Vec::new();
    for peer in &PEERS {
        if !names.is_empty() && peer.name != "landline" && !names.contains(&peer.name) {
            continue;
        }
        match peer.version() {
            Some(version) => {
                println!("{}: {version}", peer.name);
                peers.push(peer);
            }
            None => println!("left out: {} is not installed ({})", peer.name, peer.package),
        }
    }
    if parts.is_empty() || parts.contains(&"closed") {
        closed(&peers, &lengths);
    }
    if parts.is_empty() || parts.contains(&"open") {
        open(&peers, &lengths);
    }
}

/// Deliveries per second, and the server's CPU seconds per million.
fn closed(peers: &[&Peer], lengths: &Lengths) {
    println!(
        "\ndeliveries per second, and server CPU seconds per million of them, window {WINDOW}"
    );
    for &subscribers in lengths.crowds {
        let found = in_turns(peers, lengths.rounds, |peer| fan_out(peer, subscribers, lengths));
        let own = support::median(found[0].iter().map(|run| run.rate).collect());
        for (peer, runs) in peers.iter().zip(&found) {
            let rate = support::median(runs.iter().map(|run| run.rate).collect());
            let cost =
                support::median(runs.iter().map(|run| run.cpu_ns / run.deliveries / 1e3).collect());
            let load = support::median(runs.iter().map(|run| run.load).collect());
            println!(
                "{subscribers:>5} subscribers  {:<10} {rate:>11.0}/s  {cost:>7.3} s  {:>5.2} of \
                 landline's rate; load busy {load:.2}",
                peer.name,
                rate / own
            );
        }
    }
}

/// The age of deliveries in milliseconds.
fn open(peers: &[&Peer], lengths: &Lengths) {
    println!("\nage of deliveries, {OPEN_SUBSCRIBERS} subscribers, {RATE} messages per second");
    let found = in_turns(peers, lengths.rounds, |peer| pace(peer, lengths));
    for (peer, runs) in peers.iter().zip(&found) {
        let half = support::median(runs.iter().map(|run| run.half_ms).collect());
        let last = support::median(runs.iter().map(|run| run.last_ms).collect());
        let cost =
            support::median(runs.iter().map(|run| run.cpu_ns / run.deliveries / 1e3).collect());
        println!("{:<10} p50 {half:>6.2} ms  p99 {last:>6.2} ms  {cost:>7.3} s CPU", peer.name);
    }
}

/// What `run` finds of each peer, by peer and round. The peers take turns.
fn in_turns<T>(peers: &[&Peer], rounds: usize, run: impl Fn(&Peer) -> T) -> Vec<Vec<T>> {
    let mut found: Vec<Vec<T>> = peers.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (peer, runs) in peers.iter().zip(&mut found) {
            runs.push(run(peer));
        }
    }
    found
}

struct Throughput {
    deliveries: f64,
    rate: f64,
    cpu_ns: f64,
    /// The part of the time in which the load was on a core.
    load: f64,
}

fn fan_out(peer: &Peer, subscribers: usize, lengths: &Lengths) -> Throughput {
    let server = Server::start(peer);
    let mut crowd = Crowd::join(peer.protocol, server.address(), subscribers);
    let mut publisher = Publisher::new(peer.protocol, server.address());
    circulate(&mut publisher, &mut crowd, lengths.warm_up);
    let (before, cpu, own) = (crowd.deliveries(), server.cpu_ns(), support::cpu_ns(|_| true));
    let took = circulate(&mut publisher, &mut crowd, lengths.measured);
    let deliveries = (crowd.deliveries() - before) as f64;
    Throughput {
        deliveries,
        rate: deliveries / took.as_secs_f64(),
        cpu_ns: (server.cpu_ns() - cpu) as f64,
        load: (support::cpu_ns(|_| true) - own) as f64 / took.as_nanos() as f64,
    }
}

/// Keeps the window full for so long, then waits until all have everything; how long that took.
fn circulate(publisher: &mut Publisher, crowd: &mut Crowd, length: Duration) -> Duration {
    let begun = Instant::now();
    loop {
        let is_over = length <= begun.elapsed();
        let slowest = crowd.slowest();
        if is_over && slowest == publisher.published() {
            return begun.elapsed();
        }
        while !is_over && publisher.published() + STEP <= slowest + WINDOW {
            publisher.publish(STEP);
        }
        crowd.turn(support::PATIENCE);
    }
}

struct Ages {
    deliveries: f64,
    cpu_ns: f64,
    half_ms: f64,
    last_ms: f64,
}

fn pace(peer: &Peer, lengths: &Lengths) -> Ages {
    let server = Server::start(peer);
    let mut crowd = Crowd::join(peer.protocol, server.address(), OPEN_SUBSCRIBERS);
    let mut publisher = Publisher::new(peer.protocol, server.address());
    circulate(&mut publisher, &mut crowd, lengths.warm_up);
    let first = publisher.published();
    let count = lengths.messages;
    let gap = Duration::from_nanos(1_000_000_000 / RATE);
    let due = |number: u64| gap * u32::try_from(number - first).expect("a few thousand");
    let (begun, cpu) = (Instant::now(), server.cpu_ns());
    let mut ages = Vec::new();
    while crowd.slowest() < first + count {
        let now = begun.elapsed();
        let next = publisher.published();
        let is_all = next == first + count;
        if !is_all && due(next) <= now {
            publisher.publish(1);
            continue;
        }
        crowd.turn(if is_all { support::PATIENCE } else { due(next) - now });
        let now = begun.elapsed();
        ages.extend(crowd.fresh().map(|number| (now.saturating_sub(due(number))).as_secs_f64()));
    }
    ages.sort_by(f64::total_cmp);
    let at = |percent: usize| ages[(ages.len() - 1) * percent / 100] * 1e3;
    Ages {
        deliveries: ages.len() as f64,
        cpu_ns: (server.cpu_ns() - cpu) as f64,
        half_ms: at(50),
        last_ms: at(99),
    }
}
