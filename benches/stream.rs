//! Server-sent events beside WebSockets: the same events to as many subscribers of one topic, in
//! turns in one run, in the closed loop of `fanout`.
//!
//! The load comes from one thread that shares the machine with the relay, and has to look at every
//! byte of a stream to count its events, where it skips the frames of a WebSocket: the relay's CPU
//! time per delivery is the figure that is only the relay's.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]
#![expect(clippy::disallowed_methods, reason = "a bench has a clock of its own")]

use std::{io::Write, net::TcpStream, time::Instant};

use support::{Crowd, connect, publish_frame};

mod support;

const TOPIC: &str = "home/kitchen/lamp";
/// Published and not yet received by everybody.
const WINDOW: u64 = 128;
/// Published at once, once the window has room for it.
const STEP: usize = 32;
const STEP_EVENTS: u64 = STEP as u64;

fn main() {
    let once = std::env::args().any(|argument| argument == "--test");
    let (rounds, sizes): (usize, &[(usize, u64)]) =
        if once { (1, &[(20, 64)]) } else { (9, &[(100, 19_200), (1_000, 1_920)]) };
    println!("subscribers             deliveries/s  relay CPU s per million");
    for &(subscribers, events) in sizes {
        compare(rounds, subscribers, events);
    }
}

/// Publishes `events` events in each round to each of two crowds.
fn compare(rounds: usize, subscribers: usize, events: u64) {
    let relay = support::relay();
    let address = relay.addresses()[0];
    let mut publisher = connect(address);
    let mut sockets = Crowd::join(address, "sockets", subscribers);
    let mut streams = Crowd::listen(address, TOPIC, subscribers);
    let (mut socket_rates, mut stream_rates) = (Vec::new(), Vec::new());
    let (mut socket_costs, mut stream_costs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (crowd, topic, rates, costs) in [
            (&mut sockets, "sockets", &mut socket_rates, &mut socket_costs),
            (&mut streams, TOPIC, &mut stream_rates, &mut stream_costs),
        ] {
            let (begun, cpu) = (Instant::now(), support::relay_ns());
            deliver(&mut publisher, crowd, topic, events);
            let deliveries = (events * subscribers as u64) as f64;
            rates.push(deliveries / begun.elapsed().as_secs_f64());
            // Nanoseconds each are milliseconds per million.
            costs.push((support::relay_ns() - cpu) as f64 / deliveries / 1e3);
        }
    }
    let (sockets_rate, streams_rate) =
        (support::median(socket_rates), support::median(stream_rates));
    let (sockets_cost, streams_cost) =
        (support::median(socket_costs), support::median(stream_costs));
    println!("{subscribers:>11} WebSockets {sockets_rate:>13.0} {sockets_cost:>12.3}");
    println!(
        "{subscribers:>11} streams    {streams_rate:>13.0} {streams_cost:>12.3}   {:.2} of \
         WebSockets, {:.2} of their CPU",
        streams_rate / sockets_rate,
        streams_cost / sockets_cost
    );
    drop((sockets, streams, publisher));
    support::stop(relay);
}

fn deliver(publisher: &mut TcpStream, crowd: &mut Crowd, topic: &str, events: u64) {
    let step = publish_frame(topic, None).repeat(STEP);
    let before = crowd.slowest();
    let (mut published, mut slowest) = (0, 0);
    while slowest < events {
        while published < events && published + STEP_EVENTS <= slowest + WINDOW {
            publisher.write_all(&step).expect("the relay reads");
            published += STEP_EVENTS;
        }
        crowd.turn(support::PATIENCE);
        slowest = crowd.slowest() - before;
    }
}
