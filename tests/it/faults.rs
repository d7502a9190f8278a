//! The client behind a network that fails by a script, which a seed decides: whoever publishes with
//! keys and whoever resumes come to every event once and in order.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use landline::client::{Client, Delivery, From, Message, Options, Pending, SubscribeOptions};

use crate::support::{
    dice::{Dice, seeds},
    node::Node,
    proxy::{Mode, Proxy},
    wait::{LIMIT, pause},
    witness::Witness,
};

const RUNS: usize = 2;
const STEPS: usize = 30;
/// Publishes that are under way at once.
const WINDOW: usize = 16;

#[derive(Clone, Copy, Debug)]
enum Fault {
    Calm,
    Cut,
    HalfOpen,
    Stall,
    Trickle,
}

/// What happens, and for how long.
fn script(seed: u64) -> Vec<(Fault, Duration)> {
    let mut dice = Dice(seed);
    let step = |_| {
        let fault = match dice.below(7) {
            0 => Fault::Cut,
            1 => Fault::HalfOpen,
            2 => Fault::Stall,
            3 => Fault::Trickle,
            _ => Fault::Calm,
        };
        (fault, Duration::from_millis(10 + dice.below(150)))
    };
    (0..STEPS).map(step).collect()
}

fn play(proxy: &Proxy, script: &[(Fault, Duration)]) {
    for (fault, time) in script {
        match fault {
            Fault::Calm => proxy.set(Mode::Pass),
            Fault::Cut => proxy.cut(),
            Fault::HalfOpen => proxy.half_open(),
            Fault::Stall => proxy.set(Mode::Stall),
            Fault::Trickle => proxy.set(Mode::Trickle),
        }
        pause(*time);
    }
    proxy.set(Mode::Pass);
}

#[track_caller]
fn connect(proxy: &Proxy) -> Client {
    let backoff = (Duration::from_millis(10), Duration::from_millis(100));
    let options = Options::default().backoff(backoff.0, backoff.1);
    Client::connect(&format!("http://{}", proxy.addr()), options).expect("connect to the relay")
}

/// Publishes 1, 2, 3 and so on until it is told to stop. Returns the last one.
fn publish(client: &Client, stop: &AtomicBool) -> u64 {
    let (mut number, mut pending) = (0, Vec::<(u64, Pending)>::new());
    let confirm = |(number, pending): (u64, Pending)| {
        let receipt = pending.wait().unwrap_or_else(|error| panic!("event {number}: {error}"));
        assert_eq!(receipt.seq, number);
    };
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        let message = Message::new("busy", &number).key(format!("key {number}"));
        pending.push((number, client.send(message).expect("hand an event over")));
        if WINDOW <= pending.len() {
            pending.drain(..WINDOW / 2).for_each(confirm);
        }
    }
    pending.into_iter().for_each(confirm);
    number
}

/// Runs one script. Returns how many events there were, and how often the subscriber came back.
#[track_caller]
fn run(node: &Node, seed: u64) -> (u64, u64) {
    let proxy = Proxy::start(node.addr());
    let (publisher, subscriber) = (connect(&proxy), connect(&proxy));
    let mut subscription =
        subscriber.subscribe("busy", From::Live, SubscribeOptions::default()).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let publishing = scope.spawn(|| publish(&publisher, &stop));
        play(&proxy, &script(seed));
        stop.store(true, Ordering::SeqCst);
        let last = publishing.join().expect("every event is confirmed once");
        let (mut seen, mut reconnects) = (0, 0);
        while seen < last {
            match subscription.recv_timeout(LIMIT).expect("the subscription goes on") {
                Some(Delivery::Event(event)) => {
                    seen += 1;
                    assert_eq!((event.seq, event.json::<u64>().unwrap()), (seen, seen));
                }
                Some(Delivery::Reconnected) => reconnects += 1,
                Some(Delivery::Attached { .. }) => {}
                other => panic!("after event {seen} of {last} came {other:?}"),
            }
        }
        (last, reconnects)
    })
}

#[test]
fn by_any_script_of_faults_every_event_is_stored_once_and_delivered_once_in_order() {
    for seed in seeds(RUNS) {
        eprintln!("LANDLINE_SEED={seed}: {:?}", script(seed));
        let node = Node::with(&["--max-events", "1000000"]);
        let witness = Witness::start(&node);
        let (events, reconnects) = run(&node, seed);
        eprintln!("{events} events, {reconnects} reconnects");
        witness.finish();
    }
}
