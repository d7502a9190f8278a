//! The promise that publishing costs the same with one subscriber and with a thousand: once inside
//! the process, without anybody who delivers, and once over real sockets with everybody reading.
//!
//! Over sockets two things are measured. The time until the publisher has its reply contains
//! whatever else the machine's cores do meanwhile, and with many subscribers and few cores that is
//! delivering. What publishing itself costs is the CPU time of the one thread that publishes: the
//! reader of the publisher's connection. A table of that follows the times.
//!
//! # Threads
//!
//! One reads for all subscribers; it ends with the bench that started it.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

use std::{
    cell::{Cell, RefCell},
    hint::black_box,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use divan::{Bencher, counter::ItemsCount};
use landline::{
    config::Policy,
    name::Name,
    topic::{Draft, Topic, dedupe::Window},
    wire::position::Epoch,
};
use parking_lot::{Condvar, Mutex};

use support::Crowd;

mod support;

const WRITERS: usize = 2;
const WINDOW: Window = Window { uptime_ms: 1 << 30, length_ms: 120_000 };
/// Publishes that are sent at once and answered at the last.
const BATCH: usize = 2_000;
/// How long the thread that reads for the subscribers waits before it looks whether it may end.
const WAIT: Duration = Duration::from_millis(20);

thread_local! {
    /// What the benches over sockets have to say once the table of times is printed.
    static COSTS: RefCell<Vec<Cost>> = const { RefCell::new(Vec::new()) };
}

/// What publishing took of the processor.
struct Cost {
    bench: &'static str,
    subscribers: usize,
    publishes: u64,
    reader_ns: u64,
    writers_ns: u64,
}

fn main() {
    divan::main();
    COSTS.with_borrow(|costs| {
        if costs.is_empty() {
            return;
        }
        println!("\nCPU per publish, ns          reader    writers");
        for Cost { bench, subscribers, publishes, reader_ns, writers_ns } in costs {
            let each = |ns: &u64| ns / publishes;
            let (reader, writers) = (each(reader_ns), each(writers_ns));
            println!("{bench:14} {subscribers:>5} {reader:>14} {writers:>10}");
        }
    });
}

mod topic {
    use super::*;

    fn followed_by(followers: usize) -> Arc<Topic> {
        let name = Name::parse("home/kitchen/lamp").expect("the name is valid");
        let policy = Policy { max_events: 10_000, ..Policy::default() };
        let topic = Topic::new(name, Epoch::from_number(7), policy, WRITERS, 0);
        for follower in 0..followers {
            assert!(topic.follow(follower % WRITERS));
        }
        Arc::new(topic)
    }

    /// `woken`: the writers look after each event, so that each event wakes them all again.
    fn publish(bencher: Bencher, followers: usize, woken: bool) {
        let topic = followed_by(followers);
        let data = format!("\"{}\"", "x".repeat(126));
        let draft = Draft { user: None, name: None, data: &data, key: None };
        bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
            black_box(topic.publish(black_box(&draft), 1, WINDOW, None));
            topic.wake(|writer| {
                if woken {
                    topic.woken(black_box(writer));
                }
            });
        });
    }

    /// The writers are asleep and each event wakes them.
    #[divan::bench(args = [0, 1, 1_000])]
    fn writers_asleep(bencher: Bencher, followers: usize) {
        publish(bencher, followers, true);
    }

    /// The writers have been woken and have not looked yet.
    #[divan::bench(args = [0, 1, 1_000])]
    fn writers_awake(bencher: Bencher, followers: usize) {
        publish(bencher, followers, false);
    }
}

mod sockets {
    use super::*;

    /// Everybody gets everything.
    #[divan::bench(args = [1, 100, 1_000], sample_count = 30, sample_size = 1)]
    fn same_topic(bencher: Bencher, subscribers: usize) {
        publish(bencher, "same_topic", subscribers, "home/kitchen/lamp");
    }

    /// The control: as many subscribers, but nobody gets anything.
    #[divan::bench(args = [1, 100, 1_000], sample_count = 30, sample_size = 1)]
    fn other_topic(bencher: Bencher, subscribers: usize) {
        publish(bencher, "other_topic", subscribers, "home/attic/lamp");
    }

    fn publish(bencher: Bencher, bench: &'static str, subscribers: usize, topic: &str) {
        const FOLLOWED: &str = "home/kitchen/lamp";
        let relay = support::relay();
        let address = relay.addresses()[0];
        // The first connection of a relay is number one, and so is the thread that reads it.
        let mut publisher = support::connect(address);
        let crowd = Crowd::join(address, FOLLOWED, subscribers);
        let readers = if topic == FOLLOWED { subscribers as u64 } else { 0 };
        let mut batch = support::publish_frame(topic, None).repeat(BATCH - 1);
        batch.extend_from_slice(&support::publish_frame(topic, Some(1)));
        let (received, done) = (Received::default(), AtomicBool::new(false));
        let rounds = Cell::new(0);
        let cpu = || {
            let reader = support::cpu_ns(|name| name == "conn-1");
            (reader, support::cpu_ns(|name| name.starts_with("writer-")))
        };
        let before = cpu();
        thread::scope(|scope| {
            let raise = RaiseOnDrop(&done);
            let counting = scope.spawn(|| received.count(crowd, &done));
            bencher
                .counter(ItemsCount::new(BATCH))
                // Not timed: until nothing of the previous batch is under way.
                .with_inputs(|| received.wait_for(rounds.get() * BATCH as u64 * readers))
                .bench_local_values(|()| {
                    publisher.write_all(&batch).expect("the relay reads");
                    let answer = support::reply(&publisher);
                    assert!(answer.contains(r#""type":"published","id":1"#), "{answer}");
                    rounds.set(rounds.get() + 1);
                });
            received.wait_for(rounds.get() * BATCH as u64 * readers);
            drop(raise);
            let crowd = counting.join().expect("the subscribers were served");
            let each = if readers == 0 { 0 } else { rounds.get() * BATCH as u64 };
            assert_eq!(crowd.slowest(), each, "a subscriber has less than the others");
        });
        let after = cpu();
        let cost = Cost {
            bench,
            subscribers,
            publishes: (rounds.get() * BATCH as u64).max(1),
            reader_ns: after.0 - before.0,
            writers_ns: after.1 - before.1,
        };
        COSTS.with_borrow_mut(|costs| costs.push(cost));
        drop(publisher);
        support::stop(relay);
    }
}

/// How many events all subscribers have received together.
#[derive(Default)]
struct Received {
    events: Mutex<u64>,
    more: Condvar,
}

impl Received {
    /// Reads for the subscribers until `done`, and returns them.
    fn count(&self, mut crowd: Crowd, done: &AtomicBool) -> Crowd {
        // Relaxed: nothing is published with the flag; the scope joins this thread.
        while !done.load(Ordering::Relaxed) {
            let events = crowd.turn(WAIT);
            if 0 < events {
                *self.events.lock() += events;
                self.more.notify_one();
            }
        }
        crowd
    }

    fn wait_for(&self, target: u64) {
        let mut events = self.events.lock();
        while *events < target {
            let late = self.more.wait_for(&mut events, support::PATIENCE).timed_out();
            assert!(!late, "{} of {target} events came", *events);
        }
        assert_eq!(*events, target, "more events came than were published");
    }
}

/// Ends the other thread of a scope, also when this one panics.
struct RaiseOnDrop<'a>(&'a AtomicBool);

impl Drop for RaiseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
