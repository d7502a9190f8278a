//! How many instructions the hot paths take: a figure that no other load on the machine changes.
//!
//! `tests/counts.sh` runs this under callgrind, which writes down its counts before each call of
//! [`counting_begins`] and of [`counting_ends`], and compares them with `baseline.txt`. Without
//! callgrind it only shows that the paths run. Prints, for each path, its name and how often it was
//! taken in between.
//!
//! # Threads
//!
//! All threads count, but this one does not while it is in [`deliver`], where it publishes and
//! reads for everybody. What the kernel does is not in it.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

use std::{hint::black_box, io::Write};

use landline::{
    config::Policy,
    http::head::{self, Parsed},
    name::{Filter, Name},
    state::{Change, Limits, Map, Now, Wanted},
    topic::{Copied, Draft, Topic, dedupe::Window},
    wire::{
        position::Epoch,
        request,
        stream::{Dialect, Place},
    },
};

use support::Crowd;

mod support;

const TOPIC: &str = "home/kitchen/lamp";
const EPOCH: Epoch = Epoch::from_number(7);
const WINDOW: Window = Window { uptime_ms: 1 << 30, length_ms: 120_000 };
/// Events of one batch.
const BATCH: usize = 32;
const BATCH_EVENTS: u64 = BATCH as u64;
/// How often a path is taken before it counts: until its memory has its size, and its log is full.
const WARM_UP: u64 = 2_000;
const TIMES: u64 = 2_000;

/// From here on instructions count.
#[inline(never)]
fn counting_begins() {
    black_box("begins");
}

#[inline(never)]
fn counting_ends() {
    black_box("ends");
}

/// Takes a path often, and says how often under its name.
type Path = fn(&str);

fn main() {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let paths: [(&str, Path); 12] = [
        ("append", append),
        ("append-key", append_with_key),
        ("copy-32", copy),
        ("decode-publish", |name| decode(name, &publish_text())),
        ("decode-subscribe", |name| decode(name, &subscribe_text())),
        ("state", state),
        ("sse-32", sse),
        ("head-get", |name| head(name, GET)),
        ("head-post", |name| head(name, POST)),
        ("deliver-1", |name| deliver(name, 1, 100)),
        ("deliver-100", |name| deliver(name, 100, 50)),
        ("deliver-1000", |name| deliver(name, 1_000, 20)),
    ];
    for (name, path) in paths {
        if wanted.as_deref().is_none_or(|wanted| wanted == name) {
            path(name);
        }
    }
}

/// Takes a path of this thread often enough, and counts.
fn own(name: &str, mut path: impl FnMut()) {
    (0..WARM_UP).for_each(|_| path());
    counting_begins();
    (0..TIMES).for_each(|_| path());
    counting_ends();
    println!("{name} {TIMES}");
}

/// 128 bytes of JSON.
fn payload() -> String {
    format!("\"{}\"", "x".repeat(126))
}

/// A topic that somebody follows.
fn topic() -> Topic {
    let policy = Policy { max_events: 1_000, ..Policy::default() };
    let name = Name::parse(TOPIC).expect("the name is valid");
    let topic = Topic::new(name, EPOCH, policy, 1, 0);
    assert!(topic.follow(0), "a fresh topic takes followers");
    topic
}

/// One event in, the oldest out, and who is to be woken.
fn append(name: &str) {
    let (topic, data) = (topic(), payload());
    own(name, || publish(&topic, &data, None));
}

/// The same under a fresh idempotency key each time.
fn append_with_key(name: &str) {
    let (topic, data) = (topic(), payload());
    let keys: Vec<String> = (0..WARM_UP + TIMES).map(|number| format!("order-{number}")).collect();
    let mut keys = keys.iter();
    own(name, || publish(&topic, &data, keys.next().map(String::as_str)));
}

fn publish(topic: &Topic, data: &str, key: Option<&str>) {
    let draft = Draft { user: None, name: None, data: black_box(data), key };
    topic.publish(&draft, 1 << 40, WINDOW, None).expect("a topic in memory refuses nothing");
    topic.wake(|writer| {
        black_box(writer);
    });
}

fn fill(topic: &Topic, events: usize) {
    let data = payload();
    (0..events).for_each(|_| publish(topic, &data, None));
}

/// What a writer copies for everybody who follows.
fn copy(name: &str) {
    let topic = topic();
    fill(&topic, 1_500);
    let mut out = Vec::new();
    own(name, || {
        out.clear();
        let cursor = topic.look(|log| log.tail()) - BATCH_EVENTS;
        let copied = topic.look(|log| log.copy_after(cursor, u64::MAX, usize::MAX, &mut out));
        assert_eq!(copied, Copied::UpTo(cursor + BATCH_EVENTS));
    });
}

fn publish_text() -> String {
    format!(r#"{{"type":"publish","topic":"{TOPIC}","data":{}}}"#, payload())
}

fn subscribe_text() -> String {
    let from = format!(r#"{{"epoch":"{EPOCH}","seq":1234}}"#);
    format!(r#"{{"type":"subscribe","id":7,"topic":"{TOPIC}","from":{from}}}"#)
}

fn decode(name: &str, text: &str) {
    own(name, || {
        let decoded = request::decode(black_box(text));
        assert!(decoded.request.is_ok(), "{text}");
        drop(black_box(decoded));
    });
}

/// A change of one of many keys, and a copy of it for one who watches some of them.
fn state(name: &str) {
    let limits =
        Limits { keys_max: 1_000, value_bytes_max: 1_024, bytes_max: 1 << 30, tombstones_max: 1 };
    let mut map = Map::new(limits, false);
    let key = |number| Name::parse(&format!("home/lamp-{number}")).expect("the name is valid");
    let keys: Vec<Name> = (0..100).map(key).collect();
    let filters = [Filter::parse("home/+").expect("the filter is valid")];
    let (value, mut out) = (payload(), Vec::new());
    let mut turns = keys.iter().cycle();
    own(name, || {
        let key = turns.next().expect("a cycle has no end");
        let value = Some(black_box(value.as_str()));
        let change = Change { key, value, if_version: None, ttl_ms: None, user: None };
        let now = Now { uptime_ms: 1, unix_ms: 1 };
        let applied = map.apply(&change, now).expect("all bounds are wide enough");
        out.clear();
        let after = applied.version - 1;
        let wanted = Wanted { filters: &filters, after, upto: u64::MAX, is_snapshot: false };
        black_box(map.copy(&wanted, usize::MAX, &mut out));
        assert!(!out.is_empty(), "the change was not copied");
    });
}

/// A batch of events, as a stream of server-sent events has it.
fn sse(name: &str) {
    let topic = topic();
    fill(&topic, BATCH);
    let (mut frames, mut out) = (Vec::new(), Vec::new());
    topic.look(|log| log.copy_after(0, u64::MAX, usize::MAX, &mut frames));
    own(name, || {
        out.clear();
        let mut seq = 0;
        Dialect::Sse.translate(&mut out, black_box(&frames), |_| {
            seq += 1;
            Place::At(EPOCH, seq)
        });
        assert_eq!(seq, BATCH_EVENTS);
        black_box(&out);
    });
}

/// As a browser asks for a stream.
const GET: &str = "GET /v1/topics/home%2Fkitchen%2Flamp/events?from=start HTTP/1.1\r\n\
    Host: 127.0.0.1:5263\r\nConnection: keep-alive\r\nAccept: text/event-stream\r\n\
    Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101\r\n\
    Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en-US,en;q=0.9\r\n\
    Referer: http://127.0.0.1:5263/\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Site: same-origin\r\n\r\n";
/// As curl publishes.
const POST: &str = "POST /v1/topics/home/kitchen/lamp HTTP/1.1\r\nHost: 127.0.0.1:5263\r\n\
    User-Agent: curl/8.5.0\r\nAccept: */*\r\nContent-Type: application/json\r\n\
    Content-Length: 128\r\n\r\n";

/// Where `memchr` finds it at the same place of its registers in every build.
#[repr(align(64))]
struct Aligned([u8; 1_024]);

fn head(name: &str, text: &str) {
    let mut buffer = Aligned([0; 1_024]);
    let bytes = &mut buffer.0[..text.len()];
    bytes.copy_from_slice(text.as_bytes());
    own(name, || {
        let parsed = head::parse(black_box(&*bytes));
        assert!(matches!(parsed, Ok(Parsed::Done { .. })), "{parsed:?}");
    });
}

/// Events from a publisher's socket to `followers` sockets, a batch at a time: the next one goes
/// when all have it. One writer, whatever the machine's cores.
#[inline(never)]
fn deliver(name: &str, followers: usize, batches: u64) {
    let relay = support::relay_with(1);
    let address = relay.addresses()[0];
    let mut publisher = support::connect(address);
    let mut crowd = Crowd::join(address, TOPIC, followers);
    let batch = support::publish_frame(TOPIC, None).repeat(BATCH);
    let mut published = 0;
    let mut round = || {
        publisher.write_all(&batch).expect("the relay reads");
        published += BATCH_EVENTS;
        while crowd.slowest() < published {
            crowd.turn(support::PATIENCE);
        }
    };
    (0..batches).for_each(|_| round());
    counting_begins();
    (0..batches).for_each(|_| round());
    counting_ends();
    println!("{name} {}", batches * BATCH_EVENTS);
    drop((publisher, crowd));
    support::stop(relay);
}
