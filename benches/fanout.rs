//! Deliveries over real sockets, from the publisher to every subscriber, in a closed loop: at most
//! [`WINDOW`] events are published that the slowest subscriber does not have.
//!
//! The load comes from one thread, which publishes and reads for everybody and shares the machine
//! with the relay. Where it is busy nearly all the time it is what limits the throughput, and the
//! relay's CPU time per delivery is the figure that counts. A table of that follows the times.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

use std::{cell::RefCell, fs, io::Write};

use divan::{Bencher, counter::ItemsCount};
use landline::base::clock::Clock;

use support::Crowd;

mod support;

const TOPIC: &str = "home/kitchen/lamp";
/// Published and not yet received by everybody.
const WINDOW: u64 = 128;
/// Published at once, once the window has room for it.
const STEP: usize = 32;
const STEP_EVENTS: u64 = STEP as u64;

thread_local! {
    /// What the benches have to say once the table of times is printed.
    static COSTS: RefCell<Vec<Cost>> = const { RefCell::new(Vec::new()) };
}

/// What delivering took, over all rounds of one bench.
struct Cost {
    subscribers: usize,
    deliveries: u64,
    busy_ns: u64,
    load_ns: u64,
    relay_ns: u64,
    sends: u64,
}

fn main() {
    divan::main();
    COSTS.with_borrow(|costs| {
        if costs.is_empty() {
            return;
        }
        println!(
            "\nsubscribers  deliveries/s  CPU s per million: relay  process  per send  load busy"
        );
        for Cost { subscribers, deliveries, busy_ns, load_ns, relay_ns, sends } in costs {
            let per_second = *deliveries as f64 * 1e9 / *busy_ns as f64;
            // Nanoseconds each are milliseconds per million.
            let per_million = |ns: u64| ns as f64 / *deliveries as f64 / 1e3;
            let relay = per_million(*relay_ns);
            let process = per_million(relay_ns + load_ns);
            let each = *deliveries as f64 / (*sends).max(1) as f64;
            let busy = *load_ns as f64 / *busy_ns as f64;
            println!(
                "{subscribers:>11} {per_second:>13.0} {relay:>25.3} {process:>8.3} {each:>9.1} \
                 {busy:>10.2}"
            );
        }
    });
}

/// One round is so many events that it takes a fraction of a second.
#[divan::bench(args = [1, 100, 1_000], sample_count = 10, sample_size = 1)]
fn closed_loop(bencher: Bencher, subscribers: usize) {
    let relay = support::relay();
    let address = relay.addresses()[0];
    let mut publisher = support::connect(address);
    let mut crowd = Crowd::join(address, TOPIC, subscribers);
    let step = support::publish_frame(TOPIC, None).repeat(STEP);
    let events = STEP_EVENTS
        * match subscribers {
            1 => 6_000,
            100 => 600,
            _ => 60,
        };
    let clock = Clock::default();
    let mut cost =
        Cost { subscribers, deliveries: 0, busy_ns: 0, load_ns: 0, relay_ns: 0, sends: 0 };
    let (mut published, mut goal) = (0, 0);
    let (load, relayed) = (load_ns(), support::relay_ns());
    let sends = relay.metrics().sends.value();
    bencher.counter(ItemsCount::new(events * subscribers as u64)).bench_local(|| {
        let begin = clock.now();
        goal += events;
        let mut slowest = crowd.slowest();
        while slowest < goal {
            assert!(clock.now() - begin < support::PATIENCE, "{slowest} of {goal} events came");
            while published < goal && published + STEP_EVENTS <= slowest + WINDOW {
                publisher.write_all(&step).expect("the relay reads");
                published += STEP_EVENTS;
            }
            cost.deliveries += crowd.turn(support::PATIENCE);
            slowest = crowd.slowest();
        }
        cost.busy_ns += u64::try_from((clock.now() - begin).as_nanos()).expect("seconds at most");
    });
    cost.load_ns = load_ns() - load;
    cost.relay_ns = support::relay_ns() - relayed;
    assert_eq!(cost.deliveries, published * subscribers as u64);
    cost.sends = relay.metrics().sends.value() - sends;
    COSTS.with_borrow_mut(|costs| costs.push(cost));
    drop((publisher, crowd));
    support::stop(relay);
}

/// CPU time of the thread that makes the load, which is this one.
fn load_ns() -> u64 {
    let own = fs::read_to_string("/proc/thread-self/comm").expect("this is Linux");
    support::cpu_ns(|name| name == own.trim_end())
}
