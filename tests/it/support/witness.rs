//! A well-behaved publisher and subscriber beside the trouble, who must not notice any of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    node::Node,
    peer::seq,
    wait::{LIMIT, Watch, wait_until},
};

/// Longest time from a publish to the event that is still in time, on a machine that is busy with
/// the trouble.
const IN_TIME: Duration = Duration::from_secs(10);

pub struct Witness {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<Duration>,
}

impl Witness {
    /// Starts publishing to `witness`, one event after the other has arrived.
    #[track_caller]
    #[must_use]
    pub fn start(node: &Node) -> Witness {
        let (mut publisher, mut subscriber) = (node.peer(), node.peer());
        subscriber.subscribe("witness");
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let thread = thread::spawn({
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            move || {
                let mut slowest = Duration::ZERO;
                while !stop.load(Ordering::SeqCst) {
                    let watch = Watch::start();
                    let published = publisher.publish("witness", "so far, so good");
                    assert_eq!(seq(&subscriber.expect("event")), published);
                    slowest = slowest.max(watch.elapsed());
                    rounds.fetch_add(1, Ordering::SeqCst);
                }
                slowest
            }
        });
        Witness { stop, rounds, thread }
    }

    /// Waits for `count` more events that are published, and arrive, from now on.
    #[track_caller]
    pub fn see(&self, count: u64) {
        let goal = self.rounds.load(Ordering::SeqCst) + count;
        wait_until("the witness to see events", LIMIT, || {
            goal <= self.rounds.load(Ordering::SeqCst) || self.thread.is_finished()
        });
    }

    /// Ends, and asserts that each event arrived in time.
    #[track_caller]
    pub fn finish(self) {
        self.see(1);
        self.stop.store(true, Ordering::SeqCst);
        let slowest = self.thread.join().expect("the witness notices nothing");
        assert!(slowest < IN_TIME, "an event took {slowest:?}");
    }
}
