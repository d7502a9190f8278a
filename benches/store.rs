//! What durability costs: publishing to durable topics beside the database alone and beside a plain
//! file, replay from disk beside replay from memory, and a start after a crash.
//!
//! Each figure is the median of some rounds, and what is compared is measured in turns in one run:
//! a disk that others use changes all of them alike. Linux only: bytes written come from `/proc`.
//!
//! # Threads
//!
//! A few send for the publishers; they end with the measurement that started them.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]
#![expect(clippy::disallowed_methods, reason = "a bench has a clock and threads of its own")]

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crossbeam::channel::bounded;
use landline::{
    config::{Config, ConnectionSettings, Policy, StoreSettings, TopicSettings},
    server::Server,
    wire::frame,
};
use redb::{Database, TableDefinition};

use support::{connect, publish_frame, reply};

mod support;

/// Bytes of one stored event here, more or less.
const EVENT_BYTES: usize = 200;
const EVENTS: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("events");
const TOPIC: &str = "home/kitchen/lamp";
const PUBLISHERS: usize = 64;
const SENDERS: usize = 4;
/// Publishes that one publisher has under way.
const PIPELINE: usize = 128;

/// How much is measured: all of it, or only that it runs.
struct Scale {
    rounds: usize,
    singles: u64,
    /// Times that every publisher fills its pipeline.
    turns: usize,
    replayed: u64,
    stored: u64,
}

/// A measurement, and what it is asked for by.
type Part = (&'static str, fn(&Scale));

fn main() {
    let once = std::env::args().any(|argument| argument == "--test");
    let scale = if once {
        Scale { rounds: 1, singles: 20, turns: 1, replayed: 2_000, stored: 5_000 }
    } else {
        Scale { rounds: 5, singles: 2_000, turns: 8, replayed: 100_000, stored: 1_000_000 }
    };
    let parts: [Part; 4] = [
        ("single", one_at_a_time),
        ("pipelined", pipelined),
        ("replay", replay),
        ("start", start_after_a_crash),
    ];
    let named: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, measure) in parts {
        if named.is_empty() || named.iter().any(|wanted| wanted == name) {
            measure(&scale);
        }
    }
}

/// One publisher that waits for each answer.
fn one_at_a_time(scale: &Scale) {
    let (mut file, mut database, mut relay) = (Vec::new(), Vec::new(), Vec::new());
    let (mut threads, mut commits) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        file.push(rate(scale.singles, || append_to_file(scale.singles)));
        database.push(rate(scale.singles, || commit_alone(scale.singles, 1)));
        threads.push(commit_behind_threads(scale.singles));
        let dir = Scratch::new("single");
        let server = durable(dir.path(), Policy::default());
        let stream = connect(server.addresses()[0]);
        let request = publish_frame(TOPIC, Some(1));
        let publish = || {
            (&stream).write_all(&request).expect("the relay reads");
            assert!(reply(&stream).contains(r#""durability":"synced""#));
        };
        // The first one makes the topic.
        publish();
        relay.push(rate(scale.singles, || (0..scale.singles).for_each(|_| publish())));
        let metrics = server.metrics();
        let micros = metrics.store_commit_microseconds.value();
        commits.push(each(micros, metrics.store_commits.value()));
        support::stop(server);
    }
    let (file, database, relay) =
        (support::median(file), support::median(database), support::median(relay));
    let threads = support::median(threads);
    println!("one at a time, events/s");
    println!("  plain file and fdatasync {file:>12.0}");
    println!("  redb alone               {database:>12.0}");
    println!("  redb behind the threads  {threads:>12.0}   {:.2} of redb", threads / database);
    println!("  durable publishing       {relay:>12.0}   {:.2} of redb", relay / database);
    println!("  one commit in it, us     {:>12.0}", support::median(commits));
}

/// Many publishers that do not wait for each answer, and the database with the batches that they
/// came to.
fn pipelined(scale: &Scale) {
    let (mut relay, mut database) = (Vec::new(), Vec::new());
    let (mut batches, mut written, mut written_alone) = (Vec::new(), Vec::new(), Vec::new());
    let events = (PUBLISHERS * PIPELINE * scale.turns) as u64;
    for _ in 0..scale.rounds {
        let dir = Scratch::new("pipelined");
        let server = durable(dir.path(), Policy::default());
        let streams: Vec<TcpStream> =
            (0..PUBLISHERS).map(|_| connect(server.addresses()[0])).collect();
        let commits = server.metrics().store_commits.value();
        let disk = disk_bytes();
        relay.push(rate(events, || publish_pipelined(&streams, scale.turns)));
        written.push(each(disk_bytes() - disk, events));
        let commits = server.metrics().store_commits.value() - commits;
        assert_eq!(server.metrics().stored_events.value(), events);
        let batch = events.div_ceil(commits.max(1));
        batches.push(batch as f64);
        support::stop(server);
        let disk = disk_bytes();
        database.push(rate(events, || commit_alone(events, batch)));
        written_alone.push(each(disk_bytes() - disk, events));
    }
    let (relay, database) = (support::median(relay), support::median(database));
    println!("{PUBLISHERS} publishers, {PIPELINE} under way each");
    println!("  events in one commit     {:>12.0}", support::median(batches));
    println!("  redb alone, events/s     {database:>12.0}");
    println!("  durable publishing       {relay:>12.0}   {:.2} of redb", relay / database);
    println!("  bytes to disk per event  {:>12.0}", support::median(written));
    println!("  of redb alone            {:>12.0}", support::median(written_alone));
}

/// A subscriber that reads everything from the beginning.
fn replay(scale: &Scale) {
    let dir = Scratch::new("replay");
    let tiny = Policy { max_tail: 4 << 10, max_events: u64::MAX, ..Policy::default() };
    let (disk, memory) = (durable(dir.path(), tiny), support::relay());
    for server in [&disk, &memory] {
        fill(server.addresses()[0], scale.replayed);
    }
    let (mut from_disk, mut from_memory) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds * 3 {
        from_memory.push(replay_once(memory.addresses()[0], scale.replayed));
        from_disk.push(replay_once(disk.addresses()[0], scale.replayed));
    }
    let (from_disk, from_memory) = (support::median(from_disk), support::median(from_memory));
    println!("replay of {} events, ms", scale.replayed);
    println!("  from memory              {from_memory:>12.1}");
    println!("  from disk                {from_disk:>12.1}   {:.2} times", from_disk / from_memory);
    support::stop(disk);
    support::stop(memory);
}

/// A start on what a relay leaves that is ended without a word.
fn start_after_a_crash(scale: &Scale) {
    let dir = Scratch::new("crash");
    let policy = Policy { max_events: u64::MAX, max_bytes: u64::MAX, ..Policy::default() };
    let server = durable(dir.path(), policy);
    fill(server.addresses()[0], scale.stored);
    let mut starts = Vec::new();
    let mut bytes = 0;
    for _ in 0..scale.rounds {
        // Everything is committed, and nothing is closed: what a crash leaves.
        let image = Scratch::new("image");
        fs::create_dir_all(image.path()).expect("a directory can be made");
        for name in ["landline.redb", "journal"] {
            fs::copy(dir.path().join(name), image.path().join(name)).expect("the store is there");
        }
        bytes = fs::metadata(image.path().join("landline.redb")).map_or(0, |file| file.len());
        let begun = Instant::now();
        let again = durable(image.path(), policy);
        starts.push(begun.elapsed().as_secs_f64() * 1_000.0);
        let newest = history(again.addresses()[0]);
        assert!(newest.contains(&format!("\"tail\":{}", scale.stored)), "{newest}");
        support::stop(again);
    }
    println!("start after a crash with {} stored events ({} MiB)", scale.stored, bytes >> 20);
    println!("  until it listens, ms     {:>12.0}", support::median(starts));
    support::stop(server);
}

// The relay.

/// A relay whose topics are all durable, in `dir`, without heartbeats.
fn durable(dir: &Path, policy: Policy) -> Server {
    let hours = Duration::from_secs(7_200);
    let connections = ConnectionSettings {
        heartbeat: hours,
        heartbeat_timeout: hours * 2,
        ..ConnectionSettings::default()
    };
    let default_policy = Policy { durable: true, ..policy };
    let config = Config {
        listen: vec!["127.0.0.1:0".to_owned()],
        connections,
        topics: TopicSettings { default_policy, ..TopicSettings::default() },
        store: StoreSettings { data_dir: Some(dir.to_owned()), ..StoreSettings::default() },
        ..Config::default()
    };
    Server::start(config).expect("a free port and a directory are there")
}

/// Has every publisher fill its pipeline and wait for the answers, some times.
fn publish_pipelined(streams: &[TcpStream], turns: usize) {
    let burst = publish_frame(TOPIC, Some(1)).repeat(PIPELINE);
    thread::scope(|scope| {
        for own in streams.chunks(PUBLISHERS / SENDERS) {
            let burst = &burst;
            scope.spawn(move || {
                for _ in 0..turns {
                    own.iter().for_each(|mut it| it.write_all(burst).expect("the relay reads"));
                    own.iter().for_each(|stream| await_answers(stream, PIPELINE));
                }
            });
        }
    });
}

/// Reads until `count` messages have come, and nothing else.
fn await_answers(mut stream: &TcpStream, count: usize) {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 16 * 1024]);
    let mut answers = 0;
    while answers < count {
        let got = stream.read(&mut chunk).expect("the relay answers in time");
        assert_ne!(got, 0, "the relay closed instead of answering");
        bytes.extend_from_slice(&chunk[..got]);
        let mut at = 0;
        while at + 4 <= bytes.len() && at + frame::length(&bytes[at..]) <= bytes.len() {
            at += frame::length(&bytes[at..]);
            answers += 1;
        }
        bytes.drain(..at);
    }
    assert!(bytes.is_empty() && answers == count, "more answers came than were asked for");
}

/// Publishes `count` events and waits until all are there.
fn fill(relay: SocketAddr, count: u64) {
    let stream = connect(relay);
    let frames = publish_frame(TOPIC, None).repeat(1_000);
    let (thousands, rest) = (count / 1_000, count % 1_000);
    assert_eq!(rest, 0, "thousands are published");
    for thousand in 0..thousands {
        let own = if thousand + 1 == thousands {
            let mut own = publish_frame(TOPIC, None).repeat(999);
            own.extend(publish_frame(TOPIC, Some(1)));
            own
        } else {
            frames.clone()
        };
        (&stream).write_all(&own).expect("the relay reads");
    }
    assert!(reply(&stream).contains(&format!("\"seq\":{count}")));
}

/// Milliseconds until a new subscriber has `count` events.
fn replay_once(relay: SocketAddr, count: u64) -> f64 {
    let mut stream = connect(relay);
    let mut request = Vec::new();
    support::push_client_frame(
        &mut request,
        &format!(r#"{{"type":"subscribe","topic":"{TOPIC}","from":"start"}}"#),
    );
    let begun = Instant::now();
    stream.write_all(&request).expect("the relay reads");
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; 256 * 1024]);
    // The answer comes before the events.
    let mut left = count + 1;
    while 0 < left {
        let got = stream.read(&mut chunk).expect("the relay sends in time");
        assert_ne!(got, 0, "the relay closed instead of sending");
        bytes.extend_from_slice(&chunk[..got]);
        let mut at = 0;
        while at + 4 <= bytes.len() && at + frame::length(&bytes[at..]) <= bytes.len() {
            at += frame::length(&bytes[at..]);
            left -= 1;
        }
        bytes.drain(..at);
    }
    begun.elapsed().as_secs_f64() * 1_000.0
}

fn history(relay: SocketAddr) -> String {
    let mut stream = TcpStream::connect(relay).expect("the relay listens");
    let request = format!(
        "GET /v1/topics/{TOPIC}/events?from=last:1 HTTP/1.1\r\nHost: {relay}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("the relay reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the relay answers");
    answer
}

// What it is compared with.

fn append_to_file(count: u64) {
    let dir = Scratch::new("file");
    fs::create_dir_all(dir.path()).expect("a directory can be made");
    let mut file = File::create(dir.path().join("log")).expect("a file can be made");
    for _ in 0..count {
        file.write_all(&[7; EVENT_BYTES]).expect("the disk has room");
        file.sync_data().expect("the disk works");
    }
}

fn commit_alone(count: u64, batch: u64) {
    let dir = Scratch::new("redb");
    fs::create_dir_all(dir.path()).expect("a directory can be made");
    let database = Database::builder()
        .set_cache_size(4 << 20)
        .create(dir.path().join("db"))
        .expect("a database can be made");
    let mut seq = 0;
    while seq < count {
        let events = batch.min(count - seq);
        commit_events(&database, seq, events);
        seq += events;
    }
}

/// Commits per second of a database that is asked over a socket by a client that waits for each
/// answer, through a thread that reads, one that commits and one that writes, as in the relay, and
/// with nothing else of it.
fn commit_behind_threads(count: u64) -> f64 {
    let dir = Scratch::new("threads");
    fs::create_dir_all(dir.path()).expect("a directory can be made");
    let database = Database::create(dir.path().join("db")).expect("a database can be made");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port is there");
    let mut client =
        TcpStream::connect(listener.local_addr().expect("it listens")).expect("it listens");
    let (accepted, _) = listener.accept().expect("the client connects");
    for stream in [&client, &accepted] {
        stream.set_nodelay(true).expect("a fresh socket takes options");
    }
    let (to_commit, commits) = bounded::<u64>(1);
    let (to_writer, answers) = bounded::<u64>(1);
    thread::scope(|scope| {
        let (mut reads, mut writes) = (&accepted, &accepted);
        scope.spawn(move || {
            let mut request = [0; EVENT_BYTES];
            let mut seq = 0;
            while reads.read_exact(&mut request).is_ok() {
                seq += 1;
                to_commit.send(seq).expect("commits are waited for");
            }
        });
        scope.spawn(move || {
            for seq in commits {
                commit_events(&database, seq - 1, 1);
                to_writer.send(seq).expect("answers are waited for");
            }
        });
        scope.spawn(move || {
            for seq in answers {
                writes.write_all(&seq.to_le_bytes()).expect("the client reads");
            }
        });
        let mut turn = || {
            client.write_all(&[7; EVENT_BYTES]).expect("the thread reads");
            client.read_exact(&mut [0; 8]).expect("the thread answers");
        };
        turn();
        let rate = rate(count, || (0..count).for_each(|_| turn()));
        client.shutdown(Shutdown::Both).expect("it is connected");
        rate
    })
}

/// Stores `count` events after `seq` in one commit.
fn commit_events(database: &Database, seq: u64, count: u64) {
    let transaction = database.begin_write().expect("nobody else writes");
    let mut events = transaction.open_table(EVENTS).expect("the table has one type");
    for next in seq + 1..=seq + count {
        events.insert((1, next), &[7; EVENT_BYTES][..]).expect("the disk has room");
    }
    drop(events);
    transaction.commit().expect("the disk works");
}

// Figures.

fn rate(count: u64, work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    each(count, 1) / begun.elapsed().as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "figures are shown with a few digits")]
fn each(amount: u64, count: u64) -> f64 {
    amount as f64 / count as f64
}

/// Bytes that this process has caused to be written to disks so far.
fn disk_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

/// A directory that goes with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{name}"));
        // What an earlier run left.
        drop(fs::remove_dir_all(&path));
        Scratch(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}
