//! What the benches over real sockets share: a relay in this process, raw WebSocket peers, and who
//! used how much CPU.
//!
//! # Place
//!
//! Compiled into each bench that names it. Linux only, as `/proc` and epoll are.

#![expect(clippy::panic, reason = "a bench that went wrong has nothing to say")]
#![allow(dead_code, reason = "not every bench uses all of it")]

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    mem::MaybeUninit,
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    path::PathBuf,
    time::Duration,
};

use landline::{
    config::{Config, ConnectionSettings},
    server::Server,
    wire::frame,
};
use rustix::event::{
    Timespec,
    epoll::{self, CreateFlags, Event, EventData, EventFlags},
};

/// How long anything here may take before the bench gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const PAYLOAD_BYTES: usize = 128;
const READ_BYTES: usize = 128 * 1024;
/// Subscribers that one turn reads for.
const READY_MAX: usize = 256;
const TEXT: u8 = 0x1;

/// A relay as it is by default, on a free port, without heartbeats: a peer here never speaks.
pub(crate) fn relay() -> Server {
    relay_with(Config::default().writers)
}

/// As [`relay`], with so many writers.
pub(crate) fn relay_with(writers: usize) -> Server {
    let hours = Duration::from_secs(7_200);
    let connections = ConnectionSettings {
        heartbeat: hours,
        heartbeat_timeout: hours * 2,
        ..ConnectionSettings::default()
    };
    let listen = vec!["127.0.0.1:0".to_owned()];
    let config = Config { listen, writers, connections, ..Config::default() };
    Server::start(config).expect("a free port and a few threads are there")
}

/// Ends a relay and asserts that nobody lost anything and nothing is left running.
pub(crate) fn stop(relay: Server) {
    let metrics = relay.metrics();
    assert_eq!(metrics.gaps.sum(), 0, "a subscriber was sent a gap");
    assert_eq!(metrics.requests_refused.sum(), 0, "the relay refused a request");
    let report = relay.stop();
    assert!(report.late.is_empty(), "threads did not end: {:?}", report.late);
}

/// A connection that has become a WebSocket, in blocking mode.
pub(crate) fn connect(relay: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(relay).expect("the relay listens");
    stream.set_nodelay(true).expect("a fresh socket takes options");
    stream.set_read_timeout(Some(PATIENCE)).expect("a fresh socket takes options");
    stream.set_write_timeout(Some(PATIENCE)).expect("a fresh socket takes options");
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {relay}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("the relay reads");
    // Nothing follows the answer before the first request, so that nothing is read too far.
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut chunk = [0; 1_024];
        let got = stream.read(&mut chunk).expect("the relay answers in time");
        assert_ne!(got, 0, "the relay closed during the handshake");
        answer.extend_from_slice(&chunk[..got]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    stream
}

/// Waits for the one message that is due, and returns its text.
pub(crate) fn reply(mut stream: &TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0; 1_024];
        let got = stream.read(&mut chunk).expect("the relay answers in time");
        assert_ne!(got, 0, "the relay closed instead of answering");
        bytes.extend_from_slice(&chunk[..got]);
        if 4 <= bytes.len() && frame::length(&bytes) <= bytes.len() {
            assert_eq!(frame::length(&bytes), bytes.len(), "one message was due");
            return String::from_utf8_lossy(frame::payload(&bytes)).into_owned();
        }
    }
}

/// Appends `text` as a client sends it. The mask is zero, which costs the relay the same.
pub(crate) fn push_client_frame(out: &mut Vec<u8>, text: &str) {
    let start = out.len();
    frame::push_text_header(out, text.len());
    out[start + 1] |= 0x80;
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(text.as_bytes());
}

/// One publish to `topic`, as bytes; the relay answers it if it has an id.
pub(crate) fn publish_frame(topic: &str, id: Option<u64>) -> Vec<u8> {
    let data = "x".repeat(PAYLOAD_BYTES - 2);
    let id = id.map_or(String::new(), |id| format!(r#""id":{id},"#));
    let mut out = Vec::new();
    push_client_frame(
        &mut out,
        &format!(r#"{{"type":"publish",{id}"topic":"{topic}","data":"{data}"}}"#),
    );
    out
}

/// One change of `key`, as bytes, with as much in it as [`publish_frame`] has.
pub(crate) fn set_frame(key: &str, id: Option<u64>) -> Vec<u8> {
    let data = "x".repeat(PAYLOAD_BYTES - 2);
    let id = id.map_or(String::new(), |id| format!(r#""id":{id},"#));
    let mut out = Vec::new();
    push_client_frame(&mut out, &format!(r#"{{"type":"set",{id}"key":"{key}","value":"{data}"}}"#));
    out
}

/// Subscribers that read whatever comes, all from one thread, and count it.
pub(crate) struct Crowd {
    epoll: OwnedFd,
    buffer: Vec<u8>,
    members: Vec<Member>,
}

struct Member {
    stream: TcpStream,
    counter: Counter,
}

/// How a member counts the events that it is sent.
enum Counter {
    Frames(FrameCounter),
    Lines(LineCounter),
}

impl Counter {
    fn count(&mut self, bytes: &[u8]) -> u64 {
        match self {
            Counter::Frames(frames) => frames.count(bytes),
            Counter::Lines(lines) => lines.count(bytes),
        }
    }

    fn events(&self) -> u64 {
        match self {
            Counter::Frames(frames) => frames.events,
            Counter::Lines(lines) => lines.lines / LineCounter::PER_EVENT,
        }
    }
}

impl Crowd {
    /// Connects `count` subscribers of `topic`, which all are subscribed when this returns.
    pub(crate) fn join(relay: SocketAddr, topic: &str, count: usize) -> Self {
        Self::gather(
            relay,
            &format!(r#"{{"type":"subscribe","id":1,"topic":"{topic}"}}"#),
            1,
            count,
        )
    }

    /// Connects `count` watchers of `key`, which is not there, and which all have been synced when
    /// this returns.
    pub(crate) fn watch(relay: SocketAddr, key: &str, count: usize) -> Self {
        Self::gather(relay, &format!(r#"{{"type":"watch","id":1,"pattern":"{key}"}}"#), 2, count)
    }

    /// Connects `count` streams of server-sent events of `topic`, which all have begun when this
    /// returns.
    pub(crate) fn listen(relay: SocketAddr, topic: &str, count: usize) -> Self {
        Self::of(count, || {
            let mut stream = TcpStream::connect(relay).expect("the relay listens");
            let request = format!(
                "GET /v1/topics/{topic}/events HTTP/1.1\r\nHost: {relay}\r\n\
                 Accept: text/event-stream\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).expect("the relay reads");
            let mut answer = Vec::new();
            // The head, when to come back, and that it is subscribed.
            while !answer.ends_with(b"}\n\n") {
                let mut chunk = [0; 1_024];
                let got = stream.read(&mut chunk).expect("the relay answers in time");
                assert_ne!(got, 0, "the relay closed instead of answering");
                answer.extend_from_slice(&chunk[..got]);
            }
            (stream, Counter::Lines(LineCounter::default()))
        })
    }

    /// Connects `count` clients that send `request` and get `answers` messages to it.
    fn gather(relay: SocketAddr, request: &str, answers: u64, count: usize) -> Self {
        let mut frame = Vec::new();
        push_client_frame(&mut frame, request);
        Self::of(count, || {
            let mut stream = connect(relay);
            stream.write_all(&frame).expect("the relay reads");
            let mut counter = FrameCounter::default();
            while counter.events < answers || 0 < counter.left {
                let mut chunk = [0; 1_024];
                let got = stream.read(&mut chunk).expect("the relay answers in time");
                assert_ne!(got, 0, "the relay closed instead of answering");
                counter.count(&chunk[..got]);
            }
            (stream, Counter::Frames(FrameCounter::default()))
        })
    }

    fn of(count: usize, mut connect: impl FnMut() -> (TcpStream, Counter)) -> Self {
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("a descriptor is free");
        let member = |index: usize| {
            let (stream, counter) = connect();
            stream.set_nonblocking(true).expect("an open socket takes options");
            epoll::add(&epoll, &stream, EventData::new_u64(index as u64), EventFlags::IN)
                .expect("the socket is not there yet");
            Member { stream, counter }
        };
        let members: Vec<Member> = (0..count).map(member).collect();
        Self { epoll, buffer: vec![0; READ_BYTES], members }
    }

    /// Waits for something to read, `wait` at most, and reads once from everybody who has
    /// something. Returns how many events came.
    pub(crate) fn turn(&mut self, wait: Duration) -> u64 {
        let wait = Timespec::try_from(wait).expect("a few seconds at most");
        let mut ready = [const { MaybeUninit::<Event>::uninit() }; READY_MAX];
        let ready = match epoll::wait(&self.epoll, &mut ready, Some(&wait)) {
            Ok((ready, _)) => ready,
            Err(rustix::io::Errno::INTR) => return 0,
            Err(error) => panic!("cannot wait for the subscribers: {error}"),
        };
        let mut events = 0;
        for event in ready {
            let index = usize::try_from(event.data.u64()).expect("an index was put in");
            let Member { stream, counter } = &mut self.members[index];
            match stream.read(&mut self.buffer) {
                Ok(0) => panic!("the relay closed subscriber {index}"),
                Ok(got) => events += counter.count(&self.buffer[..got]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("subscriber {index} cannot read: {error}"),
            }
        }
        events
    }

    /// How many events the last of them has.
    pub(crate) fn slowest(&self) -> u64 {
        self.members.iter().map(|member| member.counter.events()).min().unwrap_or(0)
    }
}

/// Counts server-sent events by their lines: an id, the data, and an empty one. A ping counts as an
/// event; there is one in twelve seconds.
#[derive(Default)]
struct LineCounter {
    lines: u64,
}

impl LineCounter {
    const PER_EVENT: u64 = 3;

    fn count(&mut self, bytes: &[u8]) -> u64 {
        let before = self.lines / Self::PER_EVENT;
        // In chunks that a byte can count, which the compiler turns into vector instructions.
        let ends = |chunk: &[u8]| chunk.iter().map(|byte| u8::from(*byte == b'\n')).sum::<u8>();
        self.lines += bytes.chunks(255).map(|chunk| u64::from(ends(chunk))).sum::<u64>();
        self.lines / Self::PER_EVENT - before
    }
}

/// Counts the text frames in a stream of bytes that is cut anywhere.
#[derive(Default)]
struct FrameCounter {
    events: u64,
    /// What came of a header that is not whole yet.
    header: Vec<u8>,
    /// Bytes that the frame under way still has.
    left: usize,
}

impl FrameCounter {
    fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let before = self.events;
        while !bytes.is_empty() {
            if 0 < self.left {
                let step = self.left.min(bytes.len());
                self.left -= step;
                bytes = &bytes[step..];
                continue;
            }
            // Almost always the whole header is there; else it is put together byte by byte.
            if self.header.is_empty() && 10 <= bytes.len() {
                self.begin(frame::length(bytes), bytes[0]);
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            let whole = match self.header.get(1) {
                None => continue,
                Some(126) => 4,
                Some(127) => 10,
                Some(_) => 2,
            };
            if self.header.len() == whole {
                let header = std::mem::take(&mut self.header);
                self.begin(frame::length(&header) - whole, header[0]);
            }
        }
        self.events - before
    }

    /// Notes a frame of which `left` bytes are still to come.
    fn begin(&mut self, left: usize, first: u8) {
        self.left = left;
        self.events += u64::from(first & 0x0f == TEXT);
    }
}

/// CPU time, in nanoseconds, of the relay's threads in this process.
pub(crate) fn relay_ns() -> u64 {
    let relay = ["writer-", "conn-", "accept-", "keeper"];
    cpu_ns(|name| relay.iter().any(|prefix| name.starts_with(prefix)))
}

/// CPU time, in nanoseconds, of the threads of this process whose name `chosen` accepts.
pub(crate) fn cpu_ns(chosen: impl Fn(&str) -> bool) -> u64 {
    cpu_ns_of("self", chosen)
}

/// As [`cpu_ns`], of another process, by its number. Threads that have ended are not in it.
pub(crate) fn cpu_ns_of(process: &str, chosen: impl Fn(&str) -> bool) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("this is Linux");
    let of_task = |path: PathBuf| {
        // A thread may end between the listing and the reading.
        let name = fs::read_to_string(path.join("comm")).ok()?;
        let stat = fs::read_to_string(path.join("schedstat")).ok()?;
        let on_cpu = stat.split_whitespace().next()?.parse::<u64>().ok()?;
        chosen(name.trim_end()).then_some(on_cpu)
    };
    tasks.filter_map(|task| of_task(task.ok()?.path())).sum()
}

pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
