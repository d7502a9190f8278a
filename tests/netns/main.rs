//! A real network between the relay and its clients, which loses packets, swallows them in one
//! direction or both, is slow, or is unplugged: whoever resumes, and whoever publishes with keys,
//! comes to every event once and in order, and the relay lets go of those whom it cannot reach.
//!
//! `make netns`; `docs/testing.md` says more. `tests/netns.sh` makes the two namespaces and the
//! links; this process is in that of the clients.

#![expect(clippy::disallowed_methods, reason = "tests have threads and clocks of their own")]
#![expect(clippy::cast_possible_truncation, reason = "tests know their numbers")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that fails should say so at once"
)]

#[path = "../it/support/mod.rs"]
pub mod support;

use std::{
    env,
    net::SocketAddr,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use landline::client::{
    Client, Delivery, From, Message, Options, Pending, SubscribeOptions, Subscription,
};

use crate::support::{
    dice::{Dice, seeds},
    http::Http,
    node::{Metrics, Node},
    peer::{Peer, seq, seqs},
    stream::Stream,
    wait::{Watch, pause, wait_until},
};

/// Where the relay listens: on the link that fails, and on the one that does not.
const FAULTY: &str = "192.0.2.17:5263";
const SIDE: &str = "192.0.2.33:5263";
/// As long as the longest fault; a publish is sent again for longer.
const LIMIT: Duration = Duration::from_secs(120);
const TIMEOUT: Duration = Duration::from_secs(15);
/// Longer than [`TIMEOUT`] until somebody who is silent is gone: from the last sign of life to the
/// first ping, and the time to close.
const SLACK: Duration = Duration::from_secs(10);
const SUBSCRIBERS: usize = 4;
const PUBLISHERS: usize = 2;
/// Clients that only wait.
const IDLE: usize = 5;
/// Longest time from a publish to its event where nothing is wrong, on a machine that is busy.
const IN_TIME: Duration = Duration::from_secs(10);

const FLAGS: &[&str] = &[
    "--listen",
    SIDE,
    "--listen",
    FAULTY,
    "--allow-anonymous",
    "--heartbeat",
    "5s",
    "--heartbeat-timeout",
    "15s",
    "--dedupe-window",
    "10m",
    "--max-events",
    "1000000",
];

/// What is wrong with the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// One packet of five is lost, in each direction.
    Loss,
    /// Nothing comes through.
    Blackhole,
    /// Nothing that clients send arrives.
    DeafRelay,
    /// Nothing that the relay sends arrives.
    MuteRelay,
    /// The cable is out.
    Unplugged,
    /// 256 kbit/s, and up to a second in a queue.
    Slow,
}

impl Fault {
    const ALL: [Fault; 6] = [
        Fault::Loss,
        Fault::Blackhole,
        Fault::DeafRelay,
        Fault::MuteRelay,
        Fault::Unplugged,
        Fault::Slow,
    ];

    fn time(self) -> Duration {
        Duration::from_secs(match self {
            Fault::Blackhole => 60,
            Fault::Loss | Fault::Slow => 20,
            Fault::DeafRelay | Fault::MuteRelay | Fault::Unplugged => 30,
        })
    }

    /// Whether nobody can be reached while it lasts.
    fn separates(self) -> bool {
        !matches!(self, Fault::Loss | Fault::Slow)
    }
}

/// The link between the two namespaces.
struct Link {
    relay: String,
}

impl Link {
    fn set(&self, fault: Fault) {
        const LOSE: &str = "numgen random mod 100 < 20";
        match fault {
            Fault::Loss => {
                self.drop_to_relay(LOSE);
                self.drop_to_clients(LOSE);
            }
            Fault::Blackhole => {
                self.drop_to_relay("");
                self.drop_to_clients("");
            }
            Fault::DeafRelay => self.drop_to_relay(""),
            Fault::MuteRelay => self.drop_to_clients(""),
            Fault::Unplugged => run("ip", &["-n", &self.relay, "link", "set", "faulty", "down"]),
            Fault::Slow => {
                let shape = "tbf rate 256kbit burst 16kb latency 1s".split(' ');
                let add = ["-n", &self.relay, "qdisc", "add", "dev", "faulty", "root"];
                run("tc", &add.into_iter().chain(shape).collect::<Vec<_>>());
            }
        }
    }

    fn heal(&self, fault: Fault) {
        match fault {
            Fault::Unplugged => run("ip", &["-n", &self.relay, "link", "set", "faulty", "up"]),
            Fault::Slow => {
                run("tc", &["-n", &self.relay, "qdisc", "del", "dev", "faulty", "root"]);
            }
            Fault::Loss | Fault::Blackhole | Fault::DeafRelay | Fault::MuteRelay => {
                self.in_relay("flush ruleset");
                run("nft", &["flush ruleset"]);
            }
        }
    }

    fn in_relay(&self, rules: &str) {
        run("ip", &["netns", "exec", &self.relay, "nft", rules]);
    }

    fn drop_to_relay(&self, which: &str) {
        self.in_relay(&drop_arriving(which));
    }

    /// On the clients' side: a packet that is dropped where it is sent would be known to be.
    fn drop_to_clients(&self, which: &str) {
        run("nft", &[&drop_arriving(which)]);
    }
}

fn drop_arriving(which: &str) -> String {
    format!(
        "add table inet faults; \
         add chain inet faults arriving {{ type filter hook input priority 0; }}; \
         add rule inet faults arriving iifname \"faulty\" {which} drop"
    )
}

#[track_caller]
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
}

#[track_caller]
fn connect() -> Client {
    let options = Options::default()
        .backoff(Duration::from_millis(100), Duration::from_secs(2))
        .deadline(LIMIT);
    Client::connect(&format!("http://{FAULTY}"), options).expect("connect to the relay")
}

/// How far one publisher, and each subscriber, has come.
#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    /// Somebody was let down.
    failed: AtomicBool,
    published: [AtomicU64; PUBLISHERS],
    seen: [[AtomicU64; PUBLISHERS]; SUBSCRIBERS],
    reconnects: AtomicU64,
}

/// Ends everybody when its thread panics.
struct Guard<'a>(&'a Progress);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.failed.store(true, Ordering::SeqCst);
            self.0.stop.store(true, Ordering::SeqCst);
        }
    }
}

impl Progress {
    fn is_over(&self) -> bool {
        let stopped = self.stop.load(Ordering::SeqCst);
        self.failed.load(Ordering::SeqCst) || (stopped && self.is_complete())
    }

    fn is_complete(&self) -> bool {
        let published = self.published.each_ref().map(|count| count.load(Ordering::SeqCst));
        let seen = |seen: &[AtomicU64; PUBLISHERS]| {
            seen.iter().zip(published).all(|(seen, count)| count <= seen.load(Ordering::SeqCst))
        };
        self.seen.iter().all(seen)
    }
}

/// Publishes 1, 2, 3 and so on, 50 in a second, until it is told to stop.
fn publish(client: &Client, publisher: usize, progress: &Progress) {
    let _guard = Guard(progress);
    let (mut number, mut pending) = (0, Vec::<Pending>::new());
    while !progress.stop.load(Ordering::SeqCst) {
        number += 1;
        let message = Message::new(format!("busy/{publisher}"), &number);
        let message = message.key(format!("{publisher}-{number}"));
        pending.push(client.send(message).expect("hand an event over"));
        if 100 <= pending.len() {
            let confirmed = progress.published[publisher].load(Ordering::SeqCst);
            confirm(publisher, confirmed, pending.drain(..), progress);
        }
        pause(Duration::from_millis(20));
    }
    let confirmed = progress.published[publisher].load(Ordering::SeqCst);
    confirm(publisher, confirmed, pending.drain(..), progress);
}

fn confirm(
    publisher: usize,
    confirmed: u64,
    pending: impl Iterator<Item = Pending>,
    progress: &Progress,
) {
    for (pending, number) in pending.zip(confirmed + 1..) {
        let receipt = pending.wait().expect("every event is confirmed in the end");
        assert_eq!(receipt.seq, number, "publisher {publisher}");
        progress.published[publisher].store(number, Ordering::SeqCst);
    }
}

/// Takes every event of every publisher once and in order, until all is over.
fn follow(mut subscription: Subscription, subscriber: usize, progress: &Progress) {
    let _guard = Guard(progress);
    while !progress.is_over() {
        match subscription.recv_timeout(Duration::from_millis(200)).expect("it goes on") {
            Some(Delivery::Event(event)) => {
                let topic = event.topic.as_str();
                let publisher: usize = topic.trim_start_matches("busy/").parse().unwrap();
                let seen = &progress.seen[subscriber][publisher];
                let next = seen.load(Ordering::SeqCst) + 1;
                assert_eq!((event.seq, event.json::<u64>().unwrap()), (next, next), "{topic}");
                seen.store(next, Ordering::SeqCst);
            }
            Some(Delivery::Reconnected) => {
                progress.reconnects.fetch_add(1, Ordering::SeqCst);
            }
            Some(Delivery::Attached { .. }) | None => {}
            other => panic!("subscriber {subscriber} got {other:?}"),
        }
    }
}

/// Clients over the link that does not fail, who must not notice anything.
struct Side {
    http: Http,
    publisher: Peer,
    subscriber: Peer,
    slowest: Duration,
}

impl Side {
    const CONNECTIONS: f64 = 3.0;

    #[track_caller]
    fn connect(node: &Node) -> Side {
        let (http, publisher, mut subscriber) = (node.http(), node.peer(), node.peer());
        subscriber.subscribe("side");
        Side { http, publisher, subscriber, slowest: Duration::ZERO }
    }

    #[track_caller]
    fn publish(&mut self) {
        let watch = Watch::start();
        let published = self.publisher.publish("side", "so far, so good");
        assert_eq!(seq(&self.subscriber.expect("event")), published);
        self.slowest = self.slowest.max(watch.elapsed());
        assert!(self.slowest < IN_TIME, "an event took {:?}", self.slowest);
    }

    #[track_caller]
    fn look(&mut self) -> Metrics {
        Metrics::parse(&self.http.get("/metrics").body)
    }
}

/// Lets the link fail once, and says how long everything took.
fn suffer(fault: Fault, link: &Link, side: &mut Side, progress: &Progress) {
    let faulty: SocketAddr = FAULTY.parse().unwrap();
    let mut idle: Vec<Peer> = (0..IDLE).map(|_| Peer::connect(faulty)).collect();
    idle.iter_mut().for_each(|peer| drop(peer.subscribe("quiet")));
    let path = "/v1/topics/quiet/events";
    let mut streams: Vec<Stream> = (0..IDLE).map(|_| Stream::sse(faulty, path)).collect();
    let tail = side.publisher.publish("quiet", "while they were there");
    for stream in &mut streams {
        stream.expect("subscribed");
        assert_eq!(seqs(&stream.events(1)), [tail]);
    }
    let before = side.look();

    let watch = Watch::start();
    link.set(fault);
    let mut noticed = None;
    while watch.elapsed() < fault.time() {
        let alone = side.look().0["landline_server_connections"] <= Side::CONNECTIONS;
        if fault.separates() && alone && noticed.is_none() {
            noticed = Some(watch.elapsed());
        }
        side.publish();
        // They answer pings, those that come.
        idle.iter_mut().for_each(|peer| drop(peer.receive(Duration::from_millis(10))));
        pause(Duration::from_millis(100));
    }
    side.publisher.publish("quiet", "while they were away");
    link.heal(fault);
    let watch = Watch::start();
    let published =
        progress.published.iter().map(|count| count.load(Ordering::SeqCst)).sum::<u64>();
    wait_until("everybody to have everything again", LIMIT, || {
        let now = progress.published.iter().map(|count| count.load(Ordering::SeqCst)).sum::<u64>();
        side.publish();
        published + 200 < now && {
            let seen = progress.seen.iter().flatten().map(|seen| seen.load(Ordering::SeqCst));
            now * SUBSCRIBERS as u64 <= seen.sum::<u64>() + 400
        }
    });
    let recovered = watch.elapsed();
    let after = side.look();
    let ended = |reason: &str| {
        let parts = ["landline_server_disconnects_total", &format!("reason=\"{reason}\"")];
        after.sum(&parts) - before.sum(&parts)
    };
    let reasons = ["heartbeat_missed", "lost", "stalled"].map(|reason| (reason, ended(reason)));
    eprintln!(
        "{fault:?} for {:?}: the relay was alone after {noticed:?}, {reasons:?}; recovered \
         {recovered:?} later",
        fault.time()
    );
    if fault.separates() {
        let noticed = noticed.expect("the relay lets go of those whom it cannot reach");
        assert!(noticed < TIMEOUT + SLACK, "{fault:?} was noticed after {noticed:?}");
        assert!(IDLE as f64 <= ended("heartbeat_missed"), "{reasons:?}");
        assert!(IDLE as f64 <= ended("lost"), "streams: {reasons:?}");
    }
    if fault == Fault::Slow {
        assert_eq!(ended("heartbeat_missed"), 0.0, "who is slow is not dead");
    }
    // Who comes back with the id of its last event has what it missed.
    for stream in &streams {
        let mut stream = Stream::sse_after(faulty, path, stream.last_id.as_deref());
        assert_eq!(stream.expect("subscribed").data["recovery"]["mode"], "complete");
        assert_eq!(seqs(&stream.events(1)), [tail + 1]);
    }
}

#[test]
#[ignore = "needs two network namespaces: make netns"]
fn a_faulty_link_loses_doubles_and_reorders_nothing_and_the_dead_are_noticed() {
    let namespace =
        env::var("LANDLINE_NETNS").expect("tests/netns.sh says where the relay is to be");
    let seed = seeds(1)[0];
    eprintln!("LANDLINE_SEED={seed}");
    let node = Node::within(&namespace, FLAGS);
    let link = Link { relay: namespace };
    let mut side = Side::connect(&node);
    let progress = &Progress::default();
    let mut order = Fault::ALL;
    let mut dice = Dice(seed);
    (1..order.len()).for_each(|at| order.swap(at, dice.below(at as u64 + 1) as usize));

    thread::scope(|scope| {
        let _guard = Guard(progress);
        for subscriber in 0..SUBSCRIBERS {
            let client = connect();
            let options = SubscribeOptions::default();
            let subscription = client.subscribe("busy/#", From::Live, options).unwrap();
            scope.spawn(move || {
                follow(subscription, subscriber, progress);
                client.close();
            });
        }
        for publisher in 0..PUBLISHERS {
            let client = connect();
            scope.spawn(move || publish(&client, publisher, progress));
        }
        for fault in order {
            suffer(fault, &link, &mut side, progress);
        }
        progress.stop.store(true, Ordering::SeqCst);
    });

    let counts = progress.published.each_ref().map(|count| count.load(Ordering::SeqCst));
    let reconnects = progress.reconnects.load(Ordering::SeqCst);
    eprintln!("{counts:?} events, {SUBSCRIBERS} subscribers each once, {reconnects} reconnects");
    eprintln!("over the other link every event came within {:?}", side.slowest);
    assert!(progress.is_complete());
}
