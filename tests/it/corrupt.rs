//! A network that flips bits, in both directions and for clients of all kinds: the relay answers
//! or closes, counts how each of them ended, keeps nothing of them, and nobody else notices.
//!
//! WebSocket has no checksum: what a client behind such a network is told, or is taken to have
//! said, cannot be judged.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    dice::{Dice, seeds},
    frame,
    http::{Http, request_text},
    mirror::Mirror,
    node::{Metrics, Node},
    peer::{Peer, is_timeout, seqs, tcp, upgrade_request},
    proxy::{Damage, Proxy, Way},
    stream::Stream,
    wait::{Deadline, LIMIT, wait_until},
    witness::Witness,
};

const RUNS: usize = 16;
/// Connections of one run, one in eight of which is left to the relay.
const CONNECTIONS: u64 = 32;
/// Events and changes that the others see during one run.
const ROUNDS: u64 = 20;

const FLAGS: &[&str] = &[
    "--heartbeat",
    "1s",
    "--heartbeat-timeout",
    "3s",
    "--handshake-timeout",
    "3s",
    "--idle-timeout",
    "3s",
    "--write-stall",
    "3s",
    "--lost-debounce",
    "100ms",
];

/// One request of a client that means well.
fn request(dice: &mut Dice, number: u64) -> Value {
    let topic = format!("noise/{}", dice.below(5));
    let key = format!("noise/key{}", dice.below(5));
    let mut request = match dice.below(16) {
        0 => json!({"type": "hello", "user": "someone", "client": "a tablet"}),
        1..=3 => json!({"type": "publish", "topic": topic, "data": {"number": number}}),
        4 => json!({"type": "publish", "topic": topic, "data": "x".repeat(3_000), "key": "k"}),
        5 => json!({"type": "subscribe", "topic": topic, "from": "start"}),
        6 => json!({"type": "subscribe", "topic": "noise/#", "from": {"last": 10}}),
        7 => json!({"type": "subscribe", "topic": topic, "ack": true, "window": 4}),
        8 => json!({"type": "unsubscribe", "topic": topic}),
        9 => json!({"type": "ack", "topic": topic, "seq": number}),
        10 => json!({"type": "history", "topic": topic, "from": "start", "limit": 20}),
        11 => json!({"type": "watch", "pattern": "noise/#"}),
        12 => json!({"type": "set", "key": key, "value": number, "ttl_ms": 500}),
        13 => json!({"type": "delete", "key": key}),
        14 => json!({"type": "join", "topic": topic, "info": {"room": 3}}),
        _ => json!({"type": "ping"}),
    };
    request["id"] = json!(number);
    request
}

/// What one client sends, all of it at once. Only what `may_stream` asks for a stream, which the
/// relay does not end while its client takes what comes.
fn bytes(dice: &mut Dice, addr: SocketAddr, may_stream: bool) -> Vec<u8> {
    let http = |method, path: &str, accept, body| request_text(addr, method, path, accept, body);
    let sse: &[&str] = &["Accept: text/event-stream"];
    match dice.below(6).max(if may_stream { 0 } else { 2 }) {
        0 => http("GET", "/v1/topics/noise/1/events?from=start", sse, "").into(),
        1 => http("GET", "/v1/state?match=noise/%23", &["Accept: application/x-ndjson"], "").into(),
        2 => [
            http("GET", "/v1/topics", &[], ""),
            http("POST", "/v1/topics/noise/2/events", &["Content-Type: application/json"], "[1]"),
            http("GET", "/metrics", &[], ""),
            http("PUT", "/v1/state/noise/http", &["Content-Type: application/json"], "{\"a\": 1}"),
            http("GET", "/v1/connections?limit=5", &[], ""),
        ]
        .concat()
        .into(),
        _ => {
            let mut bytes = upgrade_request(addr, "").into_bytes();
            for number in 1..=5 + dice.below(60) {
                let text = request(dice, number).to_string();
                bytes.extend(frame::masked(frame::TEXT, text.as_bytes()));
            }
            bytes
        }
    }
}

/// Sends, and reads until the relay has nothing to say for a moment, or ends it.
fn talk(mut stream: TcpStream, bytes: &[u8]) -> TcpStream {
    // The relay may have had enough of it before that.
    stream.write_all(bytes).ok();
    let deadline = Deadline::after(Duration::from_millis(300));
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut buffer = [0; 16 * 1024];
    while !deadline.is_over() && stream.read(&mut buffer).is_ok_and(|count| 0 < count) {}
    stream
}

/// Whether the relay ends it. What it says before is passed over, pings are not answered.
fn is_ended(mut stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut buffer = [0; 16 * 1024];
    let deadline = Deadline::after(LIMIT);
    while !deadline.is_over() {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !is_timeout(&error),
        }
    }
    false
}

/// Whether a connection is left to the relay, rather than ended by its client.
fn is_left(number: u64) -> bool {
    number.is_multiple_of(8)
}

/// Lets clients of all kinds talk through a network that flips bits. Returns those that have not
/// ended their connections.
fn disturb(node: &Node, seed: u64) -> (Proxy, Vec<TcpStream>) {
    let mut dice = Dice(seed);
    let one_in = [60, 400, 3_000, 20_000][dice.below(4) as usize];
    let way = [Way::ToRelay, Way::ToClient, Way::Both][dice.below(3) as usize];
    eprintln!("LANDLINE_SEED={seed}: one byte in {one_in}, {way:?}");
    let proxy = Proxy::corrupting(node.addr(), Damage { seed, one_in, way });
    let clients = (0..CONNECTIONS).map(|number| {
        let bytes = bytes(&mut dice, node.addr(), !is_left(number));
        // Connected here, one after the other: their order decides what becomes of their bytes.
        let stream = tcp(proxy.addr(), None);
        let client = thread::spawn(move || talk(stream, &bytes));
        (number, client)
    });
    let clients: Vec<_> = clients.collect();
    let talked = clients.into_iter().map(|(number, client)| (number, client.join().unwrap()));
    let left = talked.filter(|(number, _)| is_left(*number)).map(|(_, stream)| stream).collect();
    (proxy, left)
}

/// Well-behaved clients of several kinds beside the noise, over connections of their own.
struct Calm {
    publisher: Peer,
    subscriber: Peer,
    stream: Stream,
    watcher: Peer,
    mirror: Mirror,
    round: u64,
}

impl Calm {
    fn start(node: &Node) -> Calm {
        let (publisher, mut subscriber, mut watcher) = (node.peer(), node.peer(), node.peer());
        subscriber.ask(json!({"type": "subscribe", "topic": "calm/#"}), "subscribed");
        let mut stream = Stream::sse(node.addr(), "/v1/topics/calm/lake/events");
        stream.expect("subscribed");
        let mut mirror = Mirror::new();
        mirror.watch(&mut watcher, "calm/#");
        Calm { publisher, subscriber, stream, watcher, mirror, round: 0 }
    }

    /// Publishes and changes something, and sees all of it.
    #[track_caller]
    fn go_on(&mut self) {
        let first = self.round + 1;
        self.round += ROUNDS;
        for round in first..=self.round {
            assert_eq!(self.publisher.publish("calm/lake", round), round);
            let change = json!({"type": "set", "key": "calm/level", "value": round});
            self.publisher.ask(change, "stored");
        }
        if first == 1 {
            assert_eq!(self.subscriber.expect("attached")["topic"], "calm/lake");
        }
        let expected: Vec<u64> = (first..=self.round).collect();
        assert_eq!(seqs(&self.subscriber.events(ROUNDS as usize)), expected);
        assert_eq!(seqs(&self.stream.events(ROUNDS as usize)), expected);
        while self.mirror.held.get("calm/level").is_none_or(|(value, _)| *value != self.round) {
            let message = self.watcher.message();
            self.mirror.take(&message);
        }
    }
}

/// Series that must come back to what they were.
const GAUGES: [&str; 6] = [
    "landline_server_connections",
    "landline_topic_subscriptions",
    "landline_topic_cursors",
    "landline_state_watches",
    "landline_presence_members",
    "landline_server_stalled_connections",
];

fn gauges(metrics: &Metrics) -> Vec<f64> {
    GAUGES.iter().map(|name| metrics.0[*name]).collect()
}

/// Sessions that began and have not ended with a reason.
fn unaccounted(metrics: &Metrics) -> f64 {
    let began = metrics.sum(&["landline_server_websockets_total"])
        + metrics.sum(&["landline_server_streams_total"]);
    began - metrics.sum(&["landline_server_disconnects_total"])
}

#[test]
fn flipped_bits_end_or_answer_their_own_connection_and_harm_nobody_else() {
    let node = Node::with(FLAGS);
    let witness = Witness::start(&node);
    let mut calm = Calm::start(&node);
    calm.go_on();
    let mut http = Http::connect(node.addr());
    let metrics = |http: &mut Http| Metrics::parse(&http.get("/metrics").body);
    let before = metrics(&mut http);
    let (threads, files) = (node.threads(), node.open_files());

    let mut left = Vec::new();
    for seed in seeds(RUNS) {
        left.push(disturb(&node, seed));
        calm.go_on();
        http.get("/healthz");
    }
    let ending = thread::spawn(move || {
        let mut streams = left.iter().flat_map(|(_, streams)| streams);
        streams.all(is_ended)
    });
    while !ending.is_finished() {
        calm.go_on();
        http.get("/healthz");
    }
    assert!(ending.join().unwrap(), "the relay neither closes nor lets go of a connection");

    let mut after = metrics(&mut http);
    wait_until("everything to be as before", LIMIT, || {
        calm.go_on();
        after = metrics(&mut http);
        node.threads() <= threads
            && node.open_files() <= files
            && gauges(&after) == gauges(&before)
            && unaccounted(&after) == unaccounted(&before)
    });
    assert_eq!(after.sum(&["landline_threads_panicked"]), 0.0);
    let protocol = after.sum(&["landline_server_disconnects_total", "reason=\"protocol\""]);
    let refused = after.sum(&["landline_server_requests_refused_total"]);
    let http_refused = after.sum(&["landline_http_requests_total", "class=\"4xx\""]);
    eprintln!("{protocol} for breaking the protocol, {refused} requests, {http_refused} of HTTP");
    witness.finish();
}
